//! Library servers: what a user of one sees, and what a hostile one can't do.
//!
//! The server is the tests' own. It keeps images in memory, knows one token, and can be told to misbehave.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::need::{APPTAINER, BUSYBOX, DOCKER_REGISTRY, FUSE, SIFU, USERNS, lacks};
use crate::registry::real::{NAME, PASSWORD, Registry};
use crate::support::{Output, Scratch, Sifu, busybox_image, sifu, sifu_path};
use crate::terminal::Terminal;

const TOKEN: &str = "a.good-token";

/// A request: its first line's words, its headers in lower case, its body.
#[derive(Clone, Debug)]
struct Asked {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn query(&self, key: &str) -> &str {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a document")
    }
}

#[derive(Clone, Default)]
struct Image {
    /// `ENTITY/COLLECTION/NAME`
    path: String,
    hash: String,
    architecture: String,
    description: String,
    bytes: Vec<u8>,
    uploaded: bool,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    /// Entities, collections and containers: their paths by their ids.
    places: BTreeMap<String, String>,
    images: BTreeMap<String, Image>,
    /// By architecture, path and tag: the id of an image.
    tags: BTreeMap<(String, String, String), String>,
    parts: BTreeMap<u64, Vec<u8>>,
    /// Who asks has to have the token.
    closed: bool,
    /// What the library says of its version; nothing where it is empty.
    version: &'static str,
    /// The host that has the files, where it is another.
    store: Option<String>,
}

/// Answers a request in the place of the library, if it does.
type Fault = dyn Fn(&Asked, &State) -> Option<Vec<u8>> + Send + Sync;

struct Server {
    host: String,
    state: Arc<Mutex<State>>,
}

fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn data(data: &Value) -> Vec<u8> {
    answer("200 OK", &["Content-Type: application/json"], json!({ "data": data }).to_string().as_bytes())
}

fn refusal(status: &str, message: &str) -> Vec<u8> {
    answer(status, &[], json!({ "error": { "code": 1, "message": message } }).to_string().as_bytes())
}

fn hash_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256.{hex}")
}

impl Server {
    fn start() -> Self {
        Self::with_fault(Box::new(|_, _| None))
    }

    fn with_fault(fault: Box<Fault>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(Mutex::new(State { version: "2.0.0-alpha.2", ..State::default() }));
        let server = Self { host: host.clone(), state: state.clone() };
        let fault: Arc<Fault> = fault.into();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, fault, host) = (state.clone(), fault.clone(), host.clone());
                std::thread::spawn(move || serve(stream, &state, &fault, &host));
            }
        });
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a state")
    }

    /// Puts an image there under a tag.
    fn hold(&self, path: &str, tag: &str, bytes: &[u8]) {
        self.hold_for("amd64", path, tag, bytes);
    }

    fn hold_for(&self, architecture: &str, path: &str, tag: &str, bytes: &[u8]) {
        let mut state = self.state();
        let id = format!("i{}", state.images.len());
        let image = Image {
            path: path.to_owned(),
            hash: hash_of(bytes),
            architecture: architecture.to_owned(),
            bytes: bytes.to_vec(),
            uploaded: true,
            ..Image::default()
        };
        state.images.insert(id.clone(), image);
        state.tags.insert((architecture.to_owned(), path.to_owned(), tag.to_owned()), id);
    }

    /// How often something was asked for.
    fn count(&self, method: &str, part: &str) -> usize {
        self.state().asked.iter().filter(|asked| asked.method == method && asked.target.contains(part)).count()
    }

    fn address(&self) -> String {
        format!("http://{}/lib", self.host)
    }
}

fn read_request(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut asked = Asked { method, target, headers, body: Vec::new() };
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    asked.body = vec![0; length];
    reader.read_exact(&mut asked.body).ok()?;
    Some(asked)
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, fault: &Arc<Fault>, host: &str) {
    let Some(asked) = read_request(&stream) else { return };
    let bytes = {
        let mut state = state.lock().expect("a state");
        state.asked.push(Asked { body: asked.body.iter().take(4096).copied().collect(), ..asked.clone() });
        fault(&asked, &state).unwrap_or_else(|| route(&asked, &mut state, host))
    };
    // A client that has seen enough hangs up first.
    let _ = stream.write_all(&bytes);
}

/// The library itself, and the store that it sends to.
fn route(asked: &Asked, state: &mut State, host: &str) -> Vec<u8> {
    let store = state.store.clone().unwrap_or_else(|| host.to_owned());
    let path = asked.path().to_owned();
    let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    // A reference that names the host finds the library at its root.
    if matches!(parts[0], "v1" | "v2" | "version") {
        parts.insert(0, "lib");
    }
    let is_known = asked.header("authorization") == Some(&format!("Bearer {TOKEN}"));
    match parts.as_slice() {
        ["assets", "config", "config.prod.json"] => {
            let document = json!({
                "libraryAPI": { "uri": format!("http://{host}/lib") },
                "tokenAPI": { "uri": format!("http://{host}/tokens") },
                "keystoreAPI": { "uri": format!("http://{host}/keys") },
                "retired": true,
            });
            return answer("200 OK", &[], document.to_string().as_bytes());
        }
        ["tokens", "v1", "token-status"] => {
            return if is_known { data(&json!({})) } else { refusal("404 Not Found", "no such token") };
        }
        ["store", hash] => {
            let Some(image) = state.images.values().find(|image| image.hash == *hash) else {
                return refusal("404 Not Found", "");
            };
            return with_range(asked, &image.bytes);
        }
        ["put", id] => {
            let Some(image) = state.images.get_mut(*id) else { return refusal("404 Not Found", "") };
            image.bytes = asked.body.clone();
            return answer("200 OK", &[], b"");
        }
        ["put", _, number] => {
            state.parts.insert(number.parse().expect("a number"), asked.body.clone());
            return answer("200 OK", &[&format!("ETag: \"part {number}\"")], b"");
        }
        ["keys"] | ["keys", ""] => return if is_known { data(&json!({})) } else { refusal("401 Unauthorized", "") },
        ["lib", "version"] if !state.version.is_empty() => {
            return data(&json!({ "version": "v1.2.3", "apiVersion": state.version }));
        }
        ["tokens" | "keys", "version"] => return data(&json!({ "version": "v4.5" })),
        ["lib", ..] if state.closed && !is_known => return refusal("401 Unauthorized", "who are you?"),
        _ => {}
    }
    match (asked.method.as_str(), parts.as_slice()) {
        ("GET", ["lib", "v1", "rbac", "users", "current"]) => {
            answer("200 OK", &[], br#"{"oidc_user_meta":{"secret":"registry-password"},"username":"ada"}"#)
        }
        ("GET", ["lib", "v1", "search"]) => {
            let found = state.images.iter().filter(|(_, image)| image.path.contains(asked.query("value")));
            let found = found.filter(|(_, image)| image.architecture == asked.query("arch"));
            let found: Vec<Value> = found.map(|(id, image)| shown(id, image, state)).collect();
            data(&json!({ "entity": null, "collection": null, "container": null, "image": found }))
        }
        (method @ ("GET" | "DELETE"), ["lib", "v1", what @ ("images" | "imagefile"), reference @ ..]) => {
            let reference = reference.join("/");
            let (name, tag) = reference.split_once(':').expect("a tag");
            let architecture = asked.query("arch");
            let by_hash = |(_, image): &(&String, &Image)| image.path == name && image.hash == tag;
            let id = match state.images.iter().find(by_hash) {
                Some((id, _)) => Some(id.clone()),
                None => state.tags.get(&(architecture.to_owned(), name.to_owned(), tag.to_owned())).cloned(),
            };
            let Some(id) = id else { return refusal("404 Not Found", "no such image") };
            if method == "DELETE" {
                state.tags.remove(&(architecture.to_owned(), name.to_owned(), tag.to_owned()));
                return data(&json!({}));
            }
            let image = &state.images[&id];
            match *what {
                "images" => data(&shown(&id, image, state)),
                _ => {
                    let location = format!("Location: http://{store}/store/{}", image.hash);
                    answer("303 See Other", &[&location], b"")
                }
            }
        }
        ("GET", ["lib", "v1", "entities" | "collections" | "containers", path @ ..]) => {
            let path = path.join("/");
            match state.places.iter().find(|(_, known)| **known == path) {
                Some((id, path)) => data(&json!({ "id": id, "name": path })),
                None => refusal("404 Not Found", ""),
            }
        }
        ("POST", ["lib", "v1", "entities" | "collections" | "containers"]) => {
            let new = asked.json();
            let above = ["entity", "collection"].iter().find_map(|key| state.places.get(new[*key].as_str()?));
            let name = new["name"].as_str().expect("a name");
            let path = above.map_or(name.to_owned(), |above| format!("{above}/{name}"));
            let id = format!("p{}", state.places.len());
            state.places.insert(id.clone(), path);
            data(&json!({ "id": id }))
        }
        ("POST", ["lib", "v1", "images"]) => {
            let new = asked.json();
            let text = |key: &str| new[key].as_str().expect("a text").to_owned();
            let id = format!("i{}", state.images.len());
            let image = Image {
                path: state.places[&text("container")].clone(),
                hash: text("hash"),
                description: text("description"),
                ..Image::default()
            };
            state.images.insert(id.clone(), image);
            data(&json!({ "id": id, "uploaded": false }))
        }
        ("POST", ["lib", "v2", "imagefile", id]) => data(
            &json!({ "uploadURL": format!("http://{store}/put/{id}?X-Amz-SignedHeaders=host%3Bx-amz-content-sha256") }),
        ),
        ("POST", ["lib", "v1", "imagefile", id]) => {
            let Some(image) = state.images.get_mut(*id) else { return refusal("404 Not Found", "") };
            (image.bytes, image.uploaded) = (asked.body.clone(), true);
            data(&json!({}))
        }
        ("POST", ["lib", "v2", "imagefile", _, "_multipart"]) => {
            let size: u64 = 32 << 20;
            let count = asked.json()["filesize"].as_u64().expect("a size").div_ceil(size);
            state.parts.clear();
            data(
                &json!({ "uploadID": "u1", "totalParts": count, "partSize": size, "options": { "s3compliant": "false" } }),
            )
        }
        ("PUT", ["lib", "v2", "imagefile", id, "_multipart"]) => {
            data(&json!({ "presignedURL": format!("http://{store}/put/{id}/{}", asked.json()["partNumber"]) }))
        }
        ("PUT", ["lib", "v2", "imagefile", id, what @ ("_complete" | "_multipart_complete")]) => {
            if *what == "_multipart_complete" {
                let parts: Vec<u8> = state.parts.values().flatten().copied().collect();
                let Some(image) = state.images.get_mut(*id) else { return refusal("404 Not Found", "") };
                image.bytes = parts;
            }
            let Some(image) = state.images.get_mut(*id) else { return refusal("404 Not Found", "") };
            if hash_of(&image.bytes) != image.hash {
                return refusal("400 Bad Request", "the file is another one");
            }
            image.uploaded = true;
            data(&json!({ "quota": { "quotaTotal": 0, "quotaUsage": image.bytes.len() }, "containerUrl": "x" }))
        }
        ("POST", ["lib", version @ ("v1" | "v2"), "tags", container]) => {
            let tag = asked.json();
            let text = |key: &str| tag[key].as_str().unwrap_or_default().to_owned();
            let path = state.places[*container].clone();
            let architecture = if *version == "v2" { text("Arch") } else { "amd64".to_owned() };
            let id = text("ImageID");
            state.images.get_mut(&id).expect("an image").architecture.clone_from(&architecture);
            state.tags.insert((architecture, path, text("Tag")), id);
            data(&json!({}))
        }
        _ => refusal("404 Not Found", "no such thing"),
    }
}

fn shown(id: &str, image: &Image, state: &State) -> Value {
    let parts: Vec<&str> = image.path.split('/').collect();
    let tags: Vec<&str> = state.tags.iter().filter(|(_, of)| *of == id).map(|((_, _, tag), _)| tag.as_str()).collect();
    json!({
        "id": id, "hash": image.hash, "size": image.bytes.len(), "uploaded": image.uploaded, "arch": image.architecture,
        "description": image.description, "tags": tags,
        "entityName": parts[0], "collectionName": parts.get(1), "containerName": parts.get(2),
    })
}

/// The bytes that a request asks for.
fn with_range(asked: &Asked, bytes: &[u8]) -> Vec<u8> {
    let Some((start, end)) = asked.header("range").and_then(|range| range.trim_start_matches("bytes=").split_once('-'))
    else {
        return answer("200 OK", &[], bytes);
    };
    let start: usize = start.parse().expect("an offset");
    let end = end.parse().map_or(bytes.len(), |last: usize| bytes.len().min(last + 1));
    let range = format!("Content-Range: bytes {start}-{}/{}", end - 1, bytes.len());
    answer("206 Partial Content", &[&range], &bytes[start..end])
}

/// A user with a home of their own.
struct User {
    scratch: Scratch,
}

impl User {
    fn new() -> Self {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path().join("home")).expect("a home");
        Self { scratch }
    }

    /// Somebody who uses a library.
    fn of(server: &Server) -> Self {
        let user = Self::new();
        user.runs(&["remote", "add", "--insecure", "--no-login", "mine", &server.host]).code_is(0);
        user
    }

    fn sifu(&self, arguments: &[&str]) -> Sifu {
        sifu(arguments).env("HOME", self.scratch.path().join("home")).current_dir(self.scratch.path())
    }

    fn runs(&self, arguments: &[&str]) -> Checked {
        Checked(self.sifu(arguments).run())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn remotes(&self) -> String {
        fs::read_to_string(self.path("home/.apptainer/remote.yaml")).expect("a file of endpoints")
    }

    /// What lies in the cache of library images, and in the directory.
    fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for directory in ["", "home/.apptainer/cache/library"] {
            let entries = fs::read_dir(self.path(directory)).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        }
        found.retain(|name| name != "home");
        found
    }
}

struct Checked(Output);

impl Checked {
    #[track_caller]
    fn code_is(self, code: i32) -> Output {
        assert_eq!(self.0.code, Some(code), "{:?}", self.0);
        self.0
    }

    #[track_caller]
    fn fails_with(self, expected: &str) {
        let said = self.0.clean_failure();
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
}

fn image() -> Vec<u8> {
    fs::read(busybox_image()).expect("the tests' image")
}

#[test]
fn an_image_of_a_library_is_fetched_once_and_used_everywhere() {
    if lacks(&[SIFU, USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let server = Server::start();
    server.hold("ada/tools/box", "1.0", &image());
    let user = User::of(&server);
    let uri = "library://ada/tools/box:1.0";
    user.runs(&["pull", uri]).code_is(0);
    assert!(fs::read(user.path("box_1.0.sif")).expect("the image") == image());
    assert_eq!(user.runs(&["exec", uri, "echo", "hello"]).code_is(0).stdout, "hello\n");
    user.runs(&["test", uri]).code_is(0);
    user.runs(&["build", "--sandbox", "root", "box_1.0.sif"]).code_is(0);
    let short = format!("library://{}/ada/tools/box:1.0", server.host);
    user.runs(&["exec", "--no-https", &short, "true"]).code_is(0);
    user.runs(&["build", "built.sif", uri]).code_is(0);
    assert_eq!(server.count("GET", "/store/"), 1, "one download serves all");
    assert_eq!(user.runs(&["exec", "built.sif", "echo", "built"]).code_is(0).stdout, "built\n");
    user.runs(&["pull", "--disable-cache", "again.sif", uri]).code_is(0);
    assert!(fs::read(user.path("again.sif")).expect("the image") == image());
    let listed = user.runs(&["cache", "list", "-T", "library", "-v"]).code_is(0).stdout;
    assert!(listed.contains("There are 1 container file(s)"), "{listed}");
    for asked in &server.state().asked {
        assert!(!asked.target.contains("/v1/image") || asked.query("arch") == "amd64", "{asked:?}");
    }
}

#[test]
fn a_reference_by_hash_asks_nobody_once_it_is_cached() {
    if lacks(&[SIFU, USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let server = Server::start();
    server.hold("ada/tools/box", "1.0", &image());
    let user = User::of(&server);
    let uri = format!("library://ada/tools/box:{}", hash_of(&image()));
    user.runs(&["exec", &uri, "true"]).code_is(0);
    let before = server.state().asked.len();
    user.runs(&["exec", &uri, "true"]).code_is(0);
    assert_eq!(server.state().asked.len(), before);
    // Another file than the one that was named.
    let tag = format!("sha256.{}", "0".repeat(64));
    let other = format!("library://ada/tools/box:{tag}");
    server.state().tags.insert(("amd64".into(), "ada/tools/box".into(), tag), "i0".into());
    user.runs(&["pull", &other]).fails_with("is not what it is called");
}

#[test]
fn a_definition_begins_with_an_image_of_a_library() {
    if lacks(&[SIFU, USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let server = Server::start();
    server.hold("ada/tools/box", "latest", &image());
    let user = User::new();
    let definition = format!(
        "Bootstrap: library\nFrom: ada/tools/box\nLibrary: {}\n\n%post\n    echo made >/made\n",
        server.address()
    );
    user.scratch.file("box.def", &definition);
    user.runs(&["build", "box.sif", "box.def"]).code_is(0);
    assert_eq!(user.runs(&["exec", "box.sif", "cat", "/made"]).code_is(0).stdout, "made\n");
}

#[test]
fn without_a_library_it_is_said_how_to_add_one() {
    let user = User::new();
    for arguments in [
        &["pull", "library://ada/tools/box"][..],
        &["exec", "library://box", "true"],
        &["search", "box"],
        &["delete", "--force", "library://ada/tools/box:1"],
        &["build", "x.sif", "library://box"],
    ] {
        let output = user.runs(arguments);
        assert!(output.0.stderr.contains("sifu remote add --no-login NAME HOST"), "{:?}", output.0);
        output.fails_with("the endpoint `DefaultRemote` has no library");
    }
}

#[test]
fn the_hub_is_gone_and_every_verb_says_so() {
    let user = User::new();
    user.scratch.file("hub.def", "Bootstrap: shub\nFrom: ada/box\n");
    for arguments in [
        &["pull", "shub://ada/box"][..],
        &["run", "shub://ada/box"],
        &["exec", "shub://ada/box", "true"],
        &["build", "x.sif", "shub://ada/box"],
        &["build", "x.sif", "hub.def"],
    ] {
        user.runs(arguments).fails_with("Singularity Hub was closed in 2021");
    }
}

#[test]
fn a_library_can_be_named_for_one_time() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let server = Server::start();
    server.hold("ada/tools/box", "latest", &image());
    let user = User::new();
    user.runs(&["pull", "--library", &server.address(), "a.sif", "library://ada/tools/box"]).code_is(0);
    let by_variable =
        user.sifu(&["pull", "b.sif", "library://ada/tools/box"]).env("APPTAINER_LIBRARY", server.address());
    Checked(by_variable.run()).code_is(0);
    let twice = format!("library://{}/ada/tools/box", server.host);
    user.runs(&["pull", "--library", &server.address(), "c.sif", &twice]).fails_with("names one library");
    user.runs(&["pull", "library://ada/tools/box/and/more"]).fails_with("more parts");
    user.runs(&["pull", "--library", &server.address(), "library://ada/tools/box:1,2"]).fails_with("one tag is needed");
}

#[test]
fn an_image_goes_to_a_library_and_comes_back() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let server = Server::start();
    let store = Server::start();
    server.state().closed = true;
    let user = User::of(&server);
    let (file, uri) = (busybox_image().to_str().expect("a path"), "library://ada/tools/box:1.0,latest");
    user.runs(&["push", file, uri]).fails_with("is not signed");
    user.runs(&["push", "-U", file, "library://box"]).fails_with("an entity, a collection and a name");
    user.runs(&["push", "-U", file, uri]).fails_with("asks for a token");
    user.scratch.file("token", &format!("{TOKEN}\n"));
    user.runs(&["remote", "login", "--tokenfile", "token"]).code_is(0);
    let output = user.runs(&["push", "-U", "-D", "A box", file, uri]).code_is(0);
    assert!(output.stderr.contains("Pushed"), "{output:?}");
    {
        let state = server.state();
        let put: Vec<&Asked> = state.asked.iter().filter(|asked| asked.target.starts_with("/put/")).collect();
        assert_eq!(put.len(), 1);
        assert_eq!(put[0].header("authorization"), None, "what a store is sent holds no token");
        assert_eq!(put[0].header("x-amz-content-sha256"), hash_of(&image()).strip_prefix("sha256."));
        assert_eq!(state.images["i0"].description, "A box");
        assert_eq!(state.tags.len(), 2);
    }
    // Once more: nothing is sent but the tags.
    let output = user.runs(&["push", "-U", file, "library://ada/tools/box:2"]).code_is(0);
    assert!(output.stderr.contains("had the file already"), "{output:?}");
    assert_eq!(server.count("PUT", "/put/"), 1);
    // The files are with another host, which never sees the token.
    store.hold("x/y/z", "1", &image());
    server.state().store = Some(store.host.clone());
    for tag in ["1.0", "latest", "2"] {
        user.runs(&["pull", "--force", "--disable-cache", "back.sif", &format!("library://ada/tools/box:{tag}")])
            .code_is(0);
        assert!(fs::read(user.path("back.sif")).expect("the image") == image());
    }
    let state = store.state();
    assert_eq!(state.asked.len(), 3);
    assert!(state.asked.iter().all(|asked| asked.header("authorization").is_none()), "{:?}", state.asked);
}

#[test]
fn how_far_an_image_is_on_its_way_to_a_library_is_shown() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let server = Server::with_fault(Box::new(|asked, _| {
        // The answer comes late, so that there is something to look at.
        if asked.target.starts_with("/put/") {
            std::thread::sleep(std::time::Duration::from_secs(2));
        }
        None
    }));
    let user = User::of(&server);
    let size = image().len() >> 10;
    let file = busybox_image().to_str().expect("a path");
    let mut terminal = Terminal::of(&user.sifu(&["push", "-U", file, "library://ada/tools/box:1"]));
    terminal.expect("\rsending");
    terminal.expect(&format!("[====================]  {size} of {size} KiB"));
    terminal.expect("Pushed");
}

#[test]
fn a_library_and_a_file_of_endpoints_are_apptainers_too() {
    if lacks(&[APPTAINER, BUSYBOX]) {
        return;
    }
    let server = Server::start();
    let user = User::of(&server);
    let apptainer = |arguments: &[&str]| {
        let mut command = Command::new("apptainer");
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", user.path("home"));
        let output = command.current_dir(user.scratch.path()).output().expect("apptainer can be started");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let file = busybox_image().to_str().expect("a path");
    // It is told the address: of an endpoint without encryption it can't read one that has a port. It stores nothing where it
    // has no token for such an address, and has none.
    let library = &server.address();
    user.runs(&["push", "-U", file, "library://ada/tools/box:ours"]).code_is(0);
    apptainer(&["remote", "use", "DefaultRemote"]);
    apptainer(&["pull", "--disable-cache", "--library", library, "b.sif", "library://ada/tools/box:ours"]);
    assert!(fs::read(user.path("b.sif")).expect("the image") == image());
    let word = ["search", "--library", library, "box"];
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&apptainer(&word)), sorted(&user.runs(&word).code_is(0).stdout));
    assert_eq!(apptainer(&["remote", "list"]), user.runs(&["remote", "list"]).code_is(0).stdout);
    // Each reads what the other has written down.
    apptainer(&["remote", "add", "--no-login", "theirs", "theirs.invalid"]);
    let listed = user.runs(&["remote", "list"]).code_is(0).stdout;
    assert!(listed.contains("\ntheirs "), "{listed}");
}

#[test]
fn a_large_image_goes_in_parts() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let server = Server::start();
    let user = User::of(&server);
    let mut bytes = image();
    bytes.resize(70 << 20, 7);
    fs::write(user.path("large.sif"), &bytes).expect("a file");
    user.runs(&["push", "-U", "large.sif", "library://ada/tools/large:1"]).code_is(0);
    assert_eq!(server.count("PUT", "/put/"), 3);
    let state = server.state();
    assert!(state.images["i0"].bytes == bytes && state.images["i0"].uploaded);
    let complete = state.asked.iter().find(|asked| asked.target.ends_with("_multipart_complete")).expect("an end");
    assert_eq!(complete.json()["completedParts"][2], json!({ "partNumber": 3, "token": "\"part 3\"" }));
}

#[test]
fn a_library_of_the_first_version_takes_the_file_itself() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let server = Server::start();
    server.state().version = "";
    let user = User::of(&server);
    user.runs(&["push", "-U", busybox_image().to_str().expect("a path"), "library://ada/tools/box:1"]).code_is(0);
    assert!(server.state().images["i0"].bytes == image());
    assert_eq!((server.count("POST", "/v1/tags/"), server.count("POST", "/v2/")), (1, 0));
    user.runs(&["pull", "library://ada/tools/box:1"]).code_is(0);
}

#[test]
fn many_who_want_one_image_download_it_once() {
    if lacks(&[SIFU, USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let server = Server::start();
    server.hold("ada/tools/box", "1", &image());
    let user = User::of(&server);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| user.runs(&["exec", "library://ada/tools/box:1", "true"]).code_is(0));
        }
    });
    assert_eq!(server.count("GET", "/store/"), 1);
}

#[test]
fn a_transfer_that_breaks_is_taken_up_again() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let server = Server::with_fault(Box::new(|asked, state| {
        if !asked.target.starts_with("/store/") {
            return None;
        }
        // No more than a third of the file at a time.
        let bytes = &state.images["i0"].bytes;
        let mut whole = with_range(asked, bytes);
        let head = whole.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        whole.truncate(whole.len().min(head + bytes.len() / 3 + 1));
        Some(whole)
    }));
    server.hold("ada/tools/box", "1", &image());
    let user = User::of(&server);
    user.runs(&["pull", "library://ada/tools/box:1"]).code_is(0);
    assert!(fs::read(user.path("box_1.sif")).expect("the image") == image());
    assert_eq!(server.count("GET", "/store/"), 3);
}

fn is_record(asked: &Asked) -> bool {
    asked.target.contains("/v1/images/")
}

fn is_file(asked: &Asked) -> bool {
    asked.target.starts_with("/store/")
}

/// Pulls from a library that misbehaves: a clean error, and nothing is left.
#[track_caller]
fn check_hostile(fault: Box<Fault>, expected: &str) {
    let server = Server::with_fault(fault);
    server.hold("ada/tools/box", "1", &image());
    let user = User::of(&server);
    for arguments in [&["pull", "library://ada/tools/box:1"][..], &["exec", "library://ada/tools/box:1", "true"]] {
        user.runs(arguments).fails_with(expected);
        assert_eq!(user.leftovers(), [] as [String; 0]);
    }
}

fn record(change: &Value) -> Option<Vec<u8>> {
    let mut whole = json!({ "id": "i0", "hash": hash_of(&image()), "size": image().len(), "arch": "amd64" });
    for (key, value) in change.as_object().expect("a mapping") {
        whole[key] = value.clone();
    }
    Some(data(&whole))
}

#[test]
fn a_file_that_is_not_what_the_library_said_is_not_used() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let other = |asked: &Asked, _: &State| {
        let mut bytes = image();
        bytes[5000] ^= 1;
        is_file(asked).then(|| answer("200 OK", &[], &bytes))
    };
    check_hostile(Box::new(other), "is not what it is called");
    let longer = |asked: &Asked, _: &State| is_file(asked).then(|| answer("200 OK", &[], &[image(), vec![0]].concat()));
    check_hostile(Box::new(longer), "bytes, and not");
    let shorter =
        |asked: &Asked, _: &State| is_record(asked).then(|| record(&json!({ "size": image().len() - 1 }))).flatten();
    check_hostile(Box::new(shorter), "bytes, and not");
    let no_sif = b"#!/bin/sh\necho pwned\n".repeat(9);
    let hash = hash_of(&no_sif);
    let script = move |asked: &Asked, _: &State| match asked {
        asked if is_record(asked) => record(&json!({ "hash": hash, "size": no_sif.len() })),
        asked if is_file(asked) => Some(answer("200 OK", &[], &no_sif)),
        _ => None,
    };
    check_hostile(Box::new(script), "SIF");
}

#[test]
fn a_record_that_can_not_be_is_refused() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    for (change, expected) in [
        (json!({ "hash": "sha256./../../../etc/passwd" }), "is not understood"),
        (json!({ "hash": "sif.00000000-0000-0000-0000-000000000000" }), "is not understood"),
        (json!({ "hash": 5 }), "is not understood"),
        (json!({ "size": -1 }), "is not understood"),
        (json!({ "arch": "arm64" }), "is not there for amd64: the library gives what is for arm64"),
    ] {
        check_hostile(Box::new(move |asked, _| is_record(asked).then(|| record(&change)).flatten()), expected);
    }
    let text = |asked: &Asked, _: &State| is_record(asked).then(|| answer("200 OK", &[], b"<html>"));
    check_hostile(Box::new(text), "is not understood");
    let endless = |asked: &Asked, _: &State| is_record(asked).then(|| answer("200 OK", &[], &vec![b' '; 5 << 20]));
    check_hostile(Box::new(endless), "is larger than");
    let circles = |asked: &Asked, _: &State| {
        asked.target.contains("/v1/imagefile/").then(|| answer("302 Found", &["Location: ?again"], b""))
    };
    check_hostile(Box::new(circles), "without end");
}

#[test]
fn an_image_that_is_not_there_for_a_machine_is_said_to_be_missing() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let server = Server::start();
    server.hold("ada/tools/box", "1", &image());
    let user = User::of(&server);
    user.runs(&["pull", "--arch", "arm64", "library://ada/tools/box:1"])
        .fails_with("ada/tools/box:1 for arm64 is not there");
    server.hold_for("arm64", "ada/tools/box", "1", &[image(), vec![1]].concat());
    user.runs(&["pull", "--arch", "arm64", "other.sif", "library://ada/tools/box:1"]).code_is(0);
    assert_eq!(fs::read(user.path("other.sif")).expect("the image").len(), image().len() + 1);
}

#[test]
fn a_token_is_checked_kept_and_forgotten() {
    let server = Server::start();
    let user = User::of(&server);
    user.scratch.file("token", TOKEN);
    user.scratch.file("bad", "another");
    user.runs(&["remote", "login", "--tokenfile", "bad", "mine"]).fails_with("refuses the token");
    assert!(!user.remotes().contains("Token"));
    user.runs(&["remote", "login", "nobody"]).fails_with("no endpoint is called `nobody`");
    Checked(user.sifu(&["remote", "login"]).run()).fails_with("on a terminal only");
    let output =
        Checked(user.sifu(&["remote", "login", "--password-stdin"]).input(&format!("{TOKEN}\n")).run()).code_is(0);
    assert!(!output.stderr.contains(TOKEN), "{output:?}");
    assert!(user.remotes().contains(&format!("Token: {TOKEN}\n")));
    let mode = fs::metadata(user.path("home/.apptainer/remote.yaml")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = user.runs(&["remote", "status"]).code_is(0).stdout;
    assert!(status.contains("library    OK      v1.2.3") && status.contains("logged in"), "{status}");
    assert_eq!(user.runs(&["remote", "get-login-password"]).code_is(0).stdout, "registry-password\n");
    user.runs(&["remote", "logout"]).code_is(0);
    assert!(!user.remotes().contains(TOKEN));
    let status = user.runs(&["remote", "status", "mine"]).code_is(0).stdout;
    assert!(status.contains("logged out"), "{status}");
    // Added with a login at once.
    user.runs(&["remote", "add", "-i", "--tokenfile", "token", "second", &server.host]).code_is(0);
    assert!(user.remotes().starts_with("Active: second\n"), "{}", user.remotes());
    assert!(user.remotes().contains(TOKEN));
}

#[test]
fn a_token_goes_to_no_open_connection_that_an_encrypted_endpoint_names() {
    // That it is encrypted is what the file says: nothing is asked of it before the address is read.
    let server = Server::start();
    server.state().closed = true;
    server.hold("ada/tools/box", "1", b"x");
    let user = User::new();
    let text = format!("Active: a\nRemotes:\n    a:\n        URI: {}\n        Token: {TOKEN}\n", server.host);
    user.scratch.file("home/.apptainer/remote.yaml", &text);
    user.runs(&["pull", "library://ada/tools/box:1"]).fails_with("cannot talk to");
    // By an open connection to the same host it does not go either.
    let library = server.address();
    user.runs(&["pull", "--library", &library, "library://ada/tools/box:1"]).fails_with("asks for a token");
    assert!(server.state().asked.iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn endpoints_are_added_used_and_removed() {
    let user = User::new();
    user.runs(&["remote", "add", "--no-login", "a", "https://a.invalid/x/"]).code_is(0);
    user.runs(&["remote", "add", "--no-login", "a", "https://a.invalid"]).fails_with("is called `a` already");
    user.runs(&["remote", "add", "--no-login", "b", "http://b.invalid"]).fails_with("without encryption");
    user.runs(&["remote", "add", "--no-login", "--no-default", "-i", "b", "http://b.invalid"]).code_is(0);
    let listed = user.runs(&["remote", "list"]).code_is(0).stdout;
    assert!(listed.contains("\na              a.invalid/x          ✓                              ✓\n"), "{listed}");
    assert!(listed.contains("\nb              b.invalid                                           ✗!\n"), "{listed}");
    user.runs(&["remote", "use", "b"]).code_is(0);
    assert!(user.remotes().starts_with("Active: b\n"));
    user.runs(&["remote", "use", "c"]).fails_with("no endpoint is called `c`");
    user.runs(&["remote", "remove", "DefaultRemote"]).fails_with("the site's");
    user.runs(&["remote", "remove", "b"]).code_is(0);
    user.runs(&["pull", "library://x"]).fails_with("the endpoint `DefaultRemote` has no library");
    user.runs(&["remote", "-c", "other.yaml", "add", "--no-login", "c", "c.invalid"]).code_is(0);
    user.runs(&["remote", "add", "-c", "other.yaml", "--no-login", "d", "d.invalid"]).code_is(0);
    assert!(fs::read_to_string(user.path("other.yaml")).expect("a file").contains("c.invalid"));
    assert!(!user.remotes().contains("c.invalid"));
    user.scratch.file("home/.apptainer/remote.yaml", "Active: [\n");
    user.runs(&["remote", "list"]).fails_with("cannot use the endpoints in");
}

/// A sifu of the test's own, whose site's files are beside it.
struct Site {
    user: User,
}

impl Site {
    fn new() -> Self {
        let user = User::new();
        fs::create_dir(user.path("bin")).expect("a directory");
        fs::copy(sifu_path(), user.path("bin/sifu")).expect("a copy of the program");
        Self { user }
    }

    fn run(&self, arguments: &[&str]) -> Checked {
        let mut command = Command::new(self.user.path("bin/sifu"));
        command.args(arguments).env_clear().env("HOME", self.user.path("home")).env("PATH", "/usr/bin:/bin");
        let output = command.output().expect("sifu can be started");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Checked(Output {
            code: output.status.code(),
            signal: None,
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        })
    }
}

#[test]
fn a_site_has_endpoints_and_key_servers() {
    let server = Server::start();
    let ours = Site::new();
    let (user, run) = (&ours.user, |arguments: &[&str]| ours.run(arguments));
    let site = user.path("etc/sifu/remote.yaml");
    run(&["remote", "add", "--global", "-i", "ours", &server.host]).code_is(0);
    assert_eq!(fs::metadata(&site).expect("the site's file").permissions().mode() & 0o777, 0o644);
    let own = format!("http://{}/keys", server.host);
    let listed = run(&["keyserver", "list", "ours"]).code_is(0).stdout;
    assert!(listed.contains(&format!("\nours *^\n   #1  {own}\n")), "{listed}");
    let added = format!("http://{}/keys/", server.host.replace("127.0.0.1", "localhost"));
    run(&["keyserver", "login", "-p", TOKEN, &added]).fails_with("no key server is");
    run(&["keyserver", "add", "--order", "1", &added]).code_is(0);
    run(&["keyserver", "add", &added]).fails_with("is there already");
    run(&["keyserver", "add", "--order", "9", "https://k.invalid"]).fails_with("from 1 to 3");
    let listed = run(&["keyserver", "list"]).code_is(0).stdout;
    assert!(listed.contains(&format!("#1  {}\n", added.trim_end_matches('/')).replace("\n", "  🔒\n")), "{listed}");
    assert!(listed.contains(&format!("#2  {own}")), "{listed}");
    run(&["keyserver", "login", "-p", "another", &added]).fails_with("refuses");
    run(&["keyserver", "login", "-p", TOKEN, &added]).code_is(0);
    assert!(user.remotes().contains(&format!("Auth: \"Bearer {TOKEN}\"")), "{}", user.remotes());
    run(&["keyserver", "logout", &added]).code_is(0);
    assert!(!user.remotes().contains(TOKEN));
    run(&["keyserver", "remove", &added]).code_is(0);
    run(&["keyserver", "remove", &own]).fails_with("the only key server");
    // A user has what the site has, and nothing else where the site says so.
    run(&["remote", "add", "--no-login", "--no-default", "mine", "m.invalid"]).code_is(0);
    run(&["remote", "use", "mine"]).code_is(0);
    run(&["remote", "use", "--exclusive", "ours"]).code_is(0);
    run(&["remote", "use", "mine"]).fails_with("allows no other endpoint than `ours`");
    run(&["pull", "--library", "https://m.invalid", "library://a/b/c"])
        .fails_with("allows no other endpoint than `ours`");
    run(&["pull", "library://a/b/c"]).fails_with("a/b/c:latest for amd64 is not there");
}

#[test]
fn images_of_a_library_are_found_and_deleted() {
    if lacks(&[BUSYBOX]) {
        return;
    }
    let server = Server::start();
    server.hold("ada/tools/box", "1", &image());
    let user = User::of(&server);
    user.runs(&["search", "bo"]).fails_with("too short");
    let found = user.runs(&["search", "box"]).code_is(0).stdout;
    assert_eq!(found, "Found 1 container images for amd64 matching \"box\":\n\n\tlibrary://ada/tools/box:1\n\n");
    let found = user.runs(&["search", "--arch", "arm64", "--signed", "box"]).code_is(0).stdout;
    assert_eq!(found, "No container images found for arm64 matching \"box\".\n\n");
    assert_eq!(server.count("GET", "signed=true"), 1);
    let uri = "library://ada/tools/box:1";
    Checked(user.sifu(&["delete", uri]).input("n\n").run()).code_is(0);
    assert_eq!(server.count("DELETE", ""), 0);
    Checked(user.sifu(&["delete", uri]).input("y\n").run()).code_is(0);
    assert_eq!(server.count("DELETE", "/lib/v1/images/ada/tools/box:1?arch=amd64"), 1);
    user.runs(&["delete", "--force", uri]).fails_with("is not there");
    user.runs(&["delete", "--force", "docker://box"]).fails_with("no image of a library");
}

#[test]
fn a_deletion_is_given_up_after_the_time_that_was_said() {
    let server = Server::with_fault(Box::new(|asked, _| {
        let hangs = asked.method == "DELETE";
        hangs.then(|| std::thread::sleep(std::time::Duration::from_secs(40)));
        None
    }));
    server.hold("ada/tools/box", "1", b"x");
    let user = User::of(&server);
    let delete = ["delete", "--force", "--timeout", "1", "library://ada/tools/box:1"];
    let begun = std::time::Instant::now();
    user.runs(&delete).fails_with("no answer in time");
    assert!(begun.elapsed() < std::time::Duration::from_secs(40), "it is not waited for");
    user.runs(&["delete", "--timeout", "soon", "library://ada/tools/box:1"]).fails_with("soon");
}

#[test]
fn a_key_server_whose_certificate_nobody_knows_is_used_where_the_site_says_so() {
    if lacks(&[DOCKER_REGISTRY]) {
        return;
    }
    // A server with TLS that wants a name and a password; what else it serves doesn't matter.
    let keys = Registry::guarded();
    let site = Site::new();
    let server = Server::start();
    site.run(&["remote", "add", "--global", "-i", "ours", &server.host]).code_is(0);
    let address = format!("https://{}/v2/", keys.host);
    let login = ["keyserver", "login", "-u", NAME, "-p", PASSWORD, &address];
    site.run(&["keyserver", "add", &address]).code_is(0);
    site.run(&login).fails_with("certificate");
    site.run(&["keyserver", "remove", &address]).code_is(0);
    site.run(&["keyserver", "add", "--insecure", &address]).code_is(0);
    let wrong = ["keyserver", "login", "-u", NAME, "-p", "wrong", &address];
    site.run(&wrong).fails_with("refuses what it was given");
    site.run(&login).code_is(0);
    assert!(site.user.remotes().contains("Auth: \"Basic "), "{}", site.user.remotes());
}
