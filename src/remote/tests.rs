//! Registries that misbehave: a server of the tests' own answers each request as the test says.

use super::RemoteError;
use super::access::Access;
use super::credentials::{Login, Places};
use super::download::{Blob, Downloads};
use super::registry::Registry;
use crate::oci::digest::Digest;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as it came: its first line, and its headers in lower case.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What a server does with a request: these bytes, then it hangs up.
type Behaviour = dyn Fn(&Asked, usize) -> Vec<u8> + Send + Sync;

struct Server {
    host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(behaviour: Box<Behaviour>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let request = read_request(&stream);
                let number = {
                    let mut log = log.lock().unwrap();
                    log.push(request.clone());
                    log.len() - 1
                };
                let mut stream = stream;
                // A client that has seen enough hangs up first.
                let _ = stream.write_all(&behaviour(&request, number));
            }
        });
        Self { host, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn registry(&self, login: Option<(&str, &str)>) -> Registry {
        let said =
            login.map(|(name, password)| Login::Password { name: name.to_owned(), password: password.to_owned() });
        let access = Access { no_https: true, places: Places { said, ..Places::default() }, ..Access::default() };
        access.registry(&format!("{}/box", self.host).parse().unwrap(), false).unwrap()
    }
}

fn read_request(stream: &TcpStream) -> Asked {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let line = lines.next().unwrap_or_default();
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    Asked { line, headers: headers.collect() }
}

fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// An answer that states more than it brings.
fn cut(status: &str, headers: &[&str], stated: usize, body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {stated}\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn content() -> Vec<u8> {
    (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn download(server: &Server, digest: &Digest, size_bytes: u64) -> std::io::Result<Vec<u8>> {
    let wanted = vec![Blob { digest: digest.clone(), size_bytes, urls: Vec::new() }];
    let downloads = Downloads::begin(server.registry(None), &std::env::temp_dir(), wanted);
    let mut bytes = Vec::new();
    downloads.open(digest)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn a_transfer_that_breaks_goes_on_where_it_broke() {
    const PIECE: usize = 700_000;
    let whole = content();
    let bytes = whole.clone();
    let server = Server::start(Box::new(move |asked, _| {
        let start: usize = asked
            .header("range")
            .map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
        let end = bytes.len().min(start + PIECE);
        let range = format!("Content-Range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        let status = if start == 0 { "200 OK" } else { "206 Partial Content" };
        cut(status, &[&range], bytes.len() - start, &bytes[start..end])
    }));
    assert!(download(&server, &Digest::of(&whole), whole.len() as u64).unwrap() == whole);
    // Every byte came once.
    assert_eq!(server.asked().len(), whole.len().div_ceil(PIECE));
}

#[test]
fn a_layer_that_a_registry_may_not_hold_comes_from_where_its_manifest_says() {
    let whole = content();
    let bytes = whole.clone();
    let other = Server::start(Box::new(move |asked, _| match asked.header("range") {
        None => cut("200 OK", &[], bytes.len(), &bytes[..1000]),
        Some(_) => {
            let range = format!("Content-Range: bytes 1000-{}/{}", bytes.len() - 1, bytes.len());
            answer("206 Partial Content", &[&range], &bytes[1000..])
        }
    }));
    let server = Server::start(Box::new(|asked, _| match asked.header("authorization") {
        None => answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b""),
        Some(_) => answer("404 Not Found", &[], b""),
    }));
    let urls = |paths: &[&str]| paths.iter().map(|path| format!("http://{}/{path}", other.host)).collect();
    let fetch = |urls: Vec<String>| {
        let digest = Digest::of(&whole);
        let blob = Blob { digest: digest.clone(), size_bytes: whole.len() as u64, urls };
        let registry = server.registry(Some(("ada", "secret")));
        let downloads = Downloads::begin(registry, &std::env::temp_dir(), vec![blob]);
        let mut bytes = Vec::new();
        downloads.open(&digest)?.read_to_end(&mut bytes).map(|_| bytes)
    };
    assert!(fetch(urls(&["layer"])).unwrap() == whole);
    assert_eq!(other.asked().len(), 2);
    assert!(other.asked().iter().all(|asked| asked.header("authorization").is_none()));
    assert!(fetch(Vec::new()).unwrap_err().to_string().contains("is not there"));
    assert!(fetch(vec!["file:///etc/passwd".to_owned()]).unwrap_err().to_string().contains("neither http nor https"));
}

#[test]
fn a_server_without_ranges_is_read_from_the_start_again() {
    let whole = content();
    let bytes = whole.clone();
    let server = Server::start(Box::new(move |_, number| {
        let end = if number == 0 { bytes.len() / 2 } else { bytes.len() };
        cut("200 OK", &[], bytes.len(), &bytes[..end])
    }));
    assert!(download(&server, &Digest::of(&whole), whole.len() as u64).unwrap() == whole);
}

#[test]
fn a_blob_longer_than_it_should_be_is_an_error() {
    let server = Server::start(Box::new(|_, _| answer("200 OK", &[], b"too long")));
    let error = download(&server, &Digest::of(b"x"), 3).unwrap_err().to_string();
    assert_eq!(error, "it is longer than the 3 bytes it should have");
}

#[test]
fn credentials_stay_with_the_registry_when_it_sends_elsewhere() {
    let other = Server::start(Box::new(|_, _| answer("200 OK", &[], b"blob")));
    let location = format!("Location: http://{}/elsewhere", other.host);
    let server = Server::start(Box::new(move |asked, _| match asked.header("authorization") {
        None => answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b""),
        Some(_) => answer("307 Temporary Redirect", &[&location], b""),
    }));
    let registry = server.registry(Some(("ada", "secret")));
    assert_eq!(registry.small_blob(&Digest::of(b"blob"), 4).unwrap(), b"blob");
    assert_eq!(server.asked()[1].header("authorization"), Some("Basic YWRhOnNlY3JldA=="));
    assert_eq!(other.asked().len(), 1);
    assert_eq!(other.asked()[0].header("authorization"), None);
}

#[test]
fn a_registry_that_keeps_asking_is_told_once() {
    let server =
        Server::start(Box::new(|_, _| answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b"")));
    let error = server.registry(Some(("ada", "wrong"))).manifest("latest").unwrap_err();
    assert!(matches!(error, RemoteError::Unauthorized { had_credentials: true, .. }), "{error}");
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn a_token_is_fetched_once_and_used_for_all_that_follows() {
    let server = Server::start(Box::new(|asked, _| {
        if asked.line.starts_with("GET /token?") {
            return answer("200 OK", &[], br#"{"token":"abc"}"#);
        }
        match asked.header("authorization") {
            Some("Bearer abc") => answer("200 OK", &[], b"{}"),
            _ => {
                let host = asked.header("host").unwrap_or_default();
                let challenge = format!(
                    "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:box:pull\""
                );
                answer("401 Unauthorized", &[&challenge], b"")
            }
        }
    }));
    let registry = server.registry(None);
    registry.manifest("latest").unwrap();
    registry.manifest("latest").unwrap();
    let lines: Vec<String> = server.asked().into_iter().map(|asked| asked.line).collect();
    assert_eq!(lines[1], "GET /token?scope=repository%3Abox%3Apull&service=s HTTP/1.1");
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_token_server_on_another_host_gets_no_password_in_the_open() {
    let server = Server::start(Box::new(|_, _| {
        answer("401 Unauthorized", &["WWW-Authenticate: Bearer realm=\"http://127.0.0.2:1/token\""], b"")
    }));
    let error = server.registry(Some(("ada", "secret"))).manifest("latest").unwrap_err().to_string();
    assert!(error.ends_with("its token server is another host, without encryption"), "{error}");
}

#[test]
fn a_server_that_is_busy_is_asked_again_when_it_says() {
    let server = Server::start(Box::new(|_, number| match number {
        0 => answer("429 Too Many Requests", &["Retry-After: 1"], b""),
        _ => answer("200 OK", &[], b"{}"),
    }));
    let begun = std::time::Instant::now();
    server.registry(None).manifest("latest").unwrap();
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
    // For an hour nobody waits.
    let server = Server::start(Box::new(|_, _| answer("429 Too Many Requests", &["Retry-After: 3600"], b"")));
    let error = server.registry(None).manifest("latest").unwrap_err();
    assert!(matches!(error, RemoteError::Status { status: 429, .. }), "{error}");
}

#[test]
fn a_manifest_that_is_not_the_one_asked_for_is_refused() {
    let server = Server::start(Box::new(|_, _| answer("200 OK", &[], b"{}")));
    let wanted = Digest::of(b"another").to_string();
    assert!(matches!(server.registry(None).manifest(&wanted), Err(RemoteError::Digest { .. })));
}

#[test]
fn redirects_in_circles_end() {
    let server = Server::start(Box::new(|_, _| answer("302 Found", &["Location: /again"], b"")));
    assert!(matches!(server.registry(None).manifest("latest"), Err(RemoteError::Redirects { .. })));
}

#[test]
fn a_document_without_end_is_not_read_to_its_end() {
    let server = Server::start(Box::new(|_, _| answer("200 OK", &[], &vec![b' '; 9 << 20])));
    assert!(matches!(server.registry(None).manifest("latest"), Err(RemoteError::TooLarge { .. })));
}
