//! HTTP: every request that sifu makes.
//!
//! ```text
//! Request ──► send ──► answer          tried again: connections that break, 429, 500, 502, 503, 504
//!               ▲         │            followed by hand: redirects, without credentials to another host
//!               └─────────┘
//! ```
//!
//! There is no limit on how long a transfer takes, only on how long nothing comes. Credentials go to the scheme, host and
//! port that they are for; an encrypted connection never leads to one that is not.

use super::RemoteError;
use super::proxy::proxy_for;
use super::unix_socket::{NoNames, Socket};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use ureq::config::ConfigBuilder;
use ureq::http;
pub use ureq::http::Method;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::AgentScope;
use ureq::{Agent, Proxy, SendBody};

const MAX_REDIRECTS: usize = 10;
/// How often a request is tried.
const TRIES: u32 = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long nothing may come, unless something else is said.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long nothing may come from a daemon, which packs an image before it sends it.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(900);
/// The first pause before another try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that a server can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(120);

/// How much of an error is looked at.
const MAX_MESSAGE_BYTES: u64 = 16 << 10;

/// Where systems keep the certificates that they trust.
const TRUSTED: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Makes requests.
///
/// What connections need is made when the first of their kind is: reading all certificates of a system takes longer than
/// asking a registry of this machine what a tag means.
pub struct Http {
    /// For what is not encrypted.
    open: Agent,
    tls: Tls,
    /// For the host that the certificates are for, and for all others.
    own: OnceLock<Agent>,
    others: OnceLock<Agent>,
    /// Over a socket there is no proxy.
    is_proxied: bool,
    patience: Patience,
}

/// How long is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For anything to come.
    pub stall: Duration,
    /// When all has to be over, further tries included.
    pub end: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { stall: STALL_TIMEOUT, end: None }
    }
}

/// What encrypted connections to one host are made with, besides what this system trusts.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Files of certificates that are trusted too.
    pub authorities: Vec<PathBuf>,
    /// A client's certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whoever answers is taken for the host.
    pub is_unchecked: bool,
}

/// An address: scheme, host with port, and what stands behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub is_https: bool,
    /// Host, with a port if it has one, in lower case.
    pub authority: String,
    /// Begins with `/`.
    pub path: String,
}

/// What is to be sent.
pub struct Request<'a> {
    pub method: Method,
    pub address: Address,
    pub headers: Vec<(&'static str, String)>,
    /// The value of `Authorization`, for the host of the address and no other.
    pub authorization: Option<&'a str>,
    pub body: Body<'a>,
}

/// What a request carries.
#[derive(Clone, Copy)]
pub enum Body<'a> {
    Empty,
    Bytes(&'a [u8]),
    /// So many bytes of what this opens.
    Stream(u64, &'a dyn Fn() -> io::Result<Box<dyn Read + Send + Sync>>),
    /// All of what this opens, whose length nobody knows before; what broke is not sent again.
    Endless(&'a dyn Fn() -> io::Result<Box<dyn Read + Send + Sync>>),
}

/// What a server answered.
pub struct Response {
    pub status: u16,
    headers: http::HeaderMap,
    pub body: Box<dyn Read + Send>,
    /// Where the answer came from, redirects followed.
    pub address: Address,
}

impl Response {
    /// The body of a file that was asked for from `offset_bytes` on. A server that can't begin there begins at the start:
    /// what it sends before is passed over.
    pub fn from_offset(self, offset_bytes: u64) -> Result<Box<dyn Read + Send>, RemoteError> {
        let begins = match self.status {
            206 => self
                .header("content-range")
                .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok()),
            _ => Some(0),
        };
        let host = self.address.authority.clone();
        let mut body = self.body;
        match begins {
            Some(at) if at <= offset_bytes => {
                let skipped = io::copy(&mut (&mut body).take(offset_bytes - at), &mut io::sink());
                skipped.map_err(|source| RemoteError::Read { host, source })?;
                Ok(body)
            }
            _ => {
                let why = "it begins in another place than was asked for";
                Err(RemoteError::Read { host, source: io::Error::new(io::ErrorKind::InvalidData, why) })
            }
        }
    }

    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All values of a header.
    pub fn headers(&self, name: &str) -> Vec<String> {
        self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    }

    /// Takes an answer of the hoped-for kind, and makes an error of any other: `refused` where the host wants to know, or knows,
    /// who asks; `message` finds what a protocol's errors say in words.
    pub fn expect(
        self,
        hoped_for: &[u16],
        what: impl Fn() -> String,
        refused: impl FnOnce(String) -> RemoteError,
        message: fn(&[u8]) -> Option<String>,
    ) -> Result<Self, RemoteError> {
        let host = self.address.authority.clone();
        match self.status {
            status if hoped_for.contains(&status) => Ok(self),
            401 | 403 => Err(refused(host)),
            404 | 410 => Err(RemoteError::NotFound { what: what() }),
            status => {
                let message = self.bytes(MAX_MESSAGE_BYTES).ok().and_then(|bytes| message(&bytes)).unwrap_or_default();
                Err(RemoteError::Status { host, what: what(), status, message })
            }
        }
    }

    /// Reads the whole body, which is no longer than `limit` bytes.
    pub fn bytes(self, limit: u64) -> Result<Vec<u8>, RemoteError> {
        let mut bytes = Vec::new();
        let failed = |source| RemoteError::Read { host: self.address.authority.clone(), source };
        self.body.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit {
            return Err(RemoteError::TooLarge { host: self.address.authority, limit });
        }
        Ok(bytes)
    }
}

impl Address {
    /// Reads `https://host:port/path?query`. One with a user's name in it is none: it would end in logs.
    pub fn parse(text: &str) -> Result<Self, RemoteError> {
        let wrong = |why| RemoteError::Address { address: without_secrets(text), why };
        let (scheme, rest) = text.split_once("://").ok_or(wrong("it has no scheme"))?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("its scheme is neither http nor https")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(wrong("it holds a user's name"));
        }
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        if authority.is_empty() || !authority.bytes().all(is_plain) {
            return Err(wrong("its host is none"));
        }
        let path = path.split('#').next().unwrap_or_default();
        if path.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
            return Err(wrong("its path holds blanks or control characters"));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { is_https, authority: authority.to_ascii_lowercase(), path })
    }

    /// The address that a reference leads to from here: absolute, or from the root, or beside.
    pub fn join(&self, reference: &str) -> Result<Self, RemoteError> {
        if reference.contains("://") {
            return Self::parse(reference);
        }
        let scheme = if self.is_https { "https" } else { "http" };
        if let Some(rest) = reference.strip_prefix("//") {
            return Self::parse(&format!("{scheme}://{rest}"));
        }
        let own = self.path.split('?').next().unwrap_or_default();
        let path = match reference {
            rooted if rooted.starts_with('/') => rooted.to_owned(),
            query if query.starts_with('?') => format!("{own}{query}"),
            beside => format!("{}/{beside}", own.rsplit_once('/').map_or("", |(directory, _)| directory)),
        };
        Self::parse(&format!("{scheme}://{}{path}", self.authority))
    }

    /// Whether credentials for one are for the other.
    pub fn is_same_origin(&self, other: &Self) -> bool {
        let port = |address: &Self| {
            let default = if address.is_https { ":443" } else { ":80" };
            address.authority.strip_suffix(default).unwrap_or(&address.authority).to_owned()
        };
        self.is_https == other.is_https && port(self) == port(other)
    }

    /// With more at the end of the query.
    pub fn with_query(&self, query: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        Self { path: format!("{}{separator}{query}", self.path), ..self.clone() }
    }

    /// A path below this one's, which counts as a directory.
    pub fn below(&self, path: &str) -> Self {
        let own = self.path.split('?').next().unwrap_or_default().trim_end_matches('/');
        Self { path: format!("{own}/{path}"), ..self.clone() }
    }

    pub fn text(&self) -> String {
        format!("{}://{}{}", if self.is_https { "https" } else { "http" }, self.authority, self.path)
    }
}

/// An address without what could be a password in it.
fn without_secrets(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match text.split_once("://") {
        Some((scheme, rest)) => {
            let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://{rest}")
        }
        None => text.rsplit_once('@').map_or(text, |(_, rest)| rest).to_owned(),
    }
}

impl Http {
    /// Prepares connections to whatever host, by what this system trusts.
    pub fn to_any_host() -> Self {
        Self::to_host(Tls::default(), Patience::default())
    }

    /// Prepares connections to one host, whose redirects lead to others too.
    pub fn to_host(tls: Tls, patience: Patience) -> Self {
        Self {
            open: settings(patience).build().new_agent(),
            tls,
            own: OnceLock::new(),
            others: OnceLock::new(),
            is_proxied: true,
            patience,
        }
    }

    /// The same for other hosts: what is said for this one alone is not said to them.
    pub fn for_others(&self) -> Self {
        Self::to_host(Tls { authorities: self.tls.authorities.clone(), ..Tls::default() }, self.patience)
    }

    /// Prepares connections to a daemon.
    pub fn to_daemon(tls: Tls) -> Self {
        Self::to_host(tls, Patience { stall: DAEMON_TIMEOUT, ..Patience::default() })
    }

    /// Prepares connections to a daemon's socket in the file system.
    pub fn over_socket(socket: &Path) -> Self {
        let config = settings(Patience { stall: DAEMON_TIMEOUT, ..Patience::default() }).build();
        let open = Agent::with_parts(config, Socket(socket.to_owned()), NoNames);
        Self { open, is_proxied: false, ..Self::to_any_host() }
    }

    /// What talks to an address on behalf of a request to `origin`.
    fn agent(&self, address: &Address, origin: &Address) -> Result<&Agent, RemoteError> {
        if !address.is_https {
            return Ok(&self.open);
        }
        // A client's certificate stays with its registry, and so does what was said about trusting it.
        let is_own = address.is_same_origin(origin);
        let kept = if is_own { &self.own } else { &self.others };
        if let Some(agent) = kept.get() {
            return Ok(agent);
        }
        let mut config = TlsConfig::builder().disable_verification(is_own && self.tls.is_unchecked);
        if let Some(roots) = trusted(&self.tls.authorities) {
            config = config.root_certs(roots);
        }
        if let Some((certificate, key)) = self.tls.client.as_ref().filter(|_| is_own) {
            config = config.client_cert(Some(client_certificate(certificate, key)?));
        }
        Ok(kept.get_or_init(|| settings(self.patience).tls_config(config.build()).build().new_agent()))
    }

    /// Sends a request, again where that can help, and follows redirects of what only asks.
    pub fn send(&self, request: &Request) -> Result<Response, RemoteError> {
        let mut address = request.address.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = request.authorization.filter(|_| address.is_same_origin(&request.address));
            let response = self.try_often(request, &address, authorization)?;
            let is_redirect = matches!(response.status, 301 | 302 | 303 | 307 | 308);
            let may_follow = matches!(request.method, Method::GET | Method::HEAD);
            let Some(location) = response.header("location").filter(|_| is_redirect && may_follow) else {
                return Ok(response);
            };
            let next = address.join(location)?;
            if address.is_https && !next.is_https {
                return Err(RemoteError::Downgrade { from: address.authority, to: next.authority });
            }
            address = next;
        }
        Err(RemoteError::Redirects { host: request.address.authority.clone() })
    }

    fn try_often(
        &self,
        request: &Request,
        address: &Address,
        authorization: Option<&str>,
    ) -> Result<Response, RemoteError> {
        let mut pause = FIRST_PAUSE;
        let mut tried = 1;
        loop {
            let answer = self.once(request, address, authorization);
            let asked = match &answer {
                Ok(response) if matches!(response.status, 429 | 500 | 502 | 503 | 504) => retry_after(response),
                // Nothing but a broken connection is worth another try.
                Err(RemoteError::Connection { is_passing: true, .. }) => None,
                _ => return answer,
            };
            let is_repeatable = !matches!(request.body, Body::Endless(_));
            if !is_repeatable || tried == TRIES || asked.is_some_and(|asked| asked > MAX_PAUSE) {
                return answer;
            }
            tried += 1;
            let until_next = asked.unwrap_or_else(|| jittered(pause));
            if self.patience.end.is_some_and(|end| Instant::now() + until_next >= end) {
                return answer;
            }
            std::thread::sleep(until_next);
            pause *= 2;
        }
    }

    fn once(&self, request: &Request, address: &Address, authorization: Option<&str>) -> Result<Response, RemoteError> {
        let failed = |error: ureq::Error| connection_error(address, error);
        let mut builder = http::Request::builder().method(request.method.clone()).uri(address.text());
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(value) = authorization {
            builder = builder.header("Authorization", value);
        }
        let body = match request.body {
            Body::Empty => SendBody::none(),
            Body::Bytes(bytes) => {
                builder = builder.header("Content-Length", bytes.len());
                SendBody::from_owned_reader(io::Cursor::new(bytes.to_vec()))
            }
            Body::Stream(length, open) => {
                builder = builder.header("Content-Length", length);
                let opened = open().map_err(|source| RemoteError::Upload { source })?;
                SendBody::from_owned_reader(opened.take(length))
            }
            // In chunks.
            Body::Endless(open) => {
                SendBody::from_owned_reader(open().map_err(|source| RemoteError::Upload { source })?)
            }
        };
        let built = builder.body(body).map_err(|error| failed(error.into()))?;
        let agent = self.agent(address, &request.address)?;
        let mut sent = agent.configure_request(built);
        if self.is_proxied {
            let proxy = proxy_for(address, &|name| std::env::var(name).ok());
            sent = sent.proxy(proxy.map(|proxy| Proxy::new(&proxy)).transpose().map_err(failed)?);
        }
        if let Some(end) = self.patience.end {
            sent = sent.timeout_global(Some(end.saturating_duration_since(Instant::now())));
        }
        let (parts, body) = agent.run(sent.build()).map_err(failed)?.into_parts();
        Ok(Response {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: Box::new(Incoming(body.into_reader())),
            address: address.clone(),
        })
    }
}

/// What comes of an answer.
struct Incoming<R>(R);

impl<R: Read> Read for Incoming<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| {
            let is_late = |error: &ureq::Error| matches!(error, ureq::Error::Timeout(_));
            match error.get_ref().and_then(|inner| inner.downcast_ref()).is_some_and(is_late) {
                true => io::Error::new(io::ErrorKind::TimedOut, "nothing came in time"),
                false => error,
            }
        })
    }
}

fn connection_error(address: &Address, error: ureq::Error) -> RemoteError {
    let is_passing = match &error {
        ureq::Error::Io(error) => {
            !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidData)
        }
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
        _ => false,
    };
    let host = address.authority.clone();
    let reason = match error {
        ureq::Error::Io(error) => crate::report::cause(&error),
        ureq::Error::HostNotFound => "no such host".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        other => other.to_string(),
    };
    // What the library for TLS says of the server's alert is all that is known of it here.
    if reason.contains("fatal alert") && reason.contains("Certificate") {
        return RemoteError::ClientCertificate { host, reason };
    }
    RemoteError::Connection { host, is_https: address.is_https, reason, is_passing }
}

/// The pause that a server asks for, in seconds; a date is not understood, and no server that was met sends one.
fn retry_after(response: &Response) -> Option<Duration> {
    response.header("retry-after")?.trim().parse::<u64>().ok().map(Duration::from_secs)
}

/// Half to all of a pause, so that many who wait don't come back at once.
pub fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) as u32;
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

fn settings(patience: Patience) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_per_read(Some(patience.stall))
        .timeout_per_write(Some(patience.stall))
        .user_agent(concat!("sifu/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        // Chosen for each request.
        .proxy(None)
}

/// The certificates of this system, and those of some files. `None` where there are none: then those that come with the
/// program count.
fn trusted(more: &[PathBuf]) -> Option<RootCerts> {
    let system = TRUSTED.iter().map(Path::new).find(|path| path.exists());
    let files = system.into_iter().chain(more.iter().map(PathBuf::as_path));
    let certificates: Vec<Certificate<'static>> = files.flat_map(certificates).collect();
    if certificates.is_empty() { None } else { Some(RootCerts::Specific(Arc::new(certificates))) }
}

/// The certificates in a file; none where it can't be read.
fn certificates(path: &Path) -> Vec<Certificate<'static>> {
    let pem = fs::read(path).unwrap_or_default();
    let items = parse_pem(&pem).flatten();
    let certificates = items.filter_map(|item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    });
    certificates.collect()
}

fn client_certificate(certificate: &Path, key: &Path) -> Result<ClientCert, RemoteError> {
    let failed = |path: &Path, why: String| RemoteError::Credentials { path: path.display().to_string(), why };
    let chain = certificates(certificate);
    if chain.is_empty() {
        return Err(failed(certificate, "it holds no certificate".to_owned()));
    }
    let pem = fs::read(key).map_err(|error| failed(key, crate::report::cause(&error)))?;
    let key = PrivateKey::from_pem(&pem).map_err(|_| failed(key, "it holds no private key".to_owned()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(
            address("HTTPS://Host.Example:5000/v2/a?b=c#d"),
            Address { is_https: true, authority: "host.example:5000".to_owned(), path: "/v2/a?b=c".to_owned() }
        );
        assert_eq!(address("http://localhost").path, "/");
        for text in [
            "ftp://host.example/",
            "host.example/x",
            "http://",
            "http://user:secret@host.example/",
            "http://a b/",
            "http://h/\n",
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_redirect_leads_from_where_it_was_found() {
        let here = address("https://host.example/v2/a/blobs/x?y=z");
        let check = |reference: &str, expected: &str| assert_eq!(here.join(reference).unwrap().text(), expected);
        check("/other", "https://host.example/other");
        check("beside?q", "https://host.example/v2/a/blobs/beside?q");
        check("?q", "https://host.example/v2/a/blobs/x?q");
        check("//cdn.example/b", "https://cdn.example/b");
        check("http://cdn.example/b", "http://cdn.example/b");
    }

    #[test]
    fn credentials_are_for_one_scheme_host_and_port() {
        let check = |one: &str, other: &str, expected| {
            assert_eq!(address(one).is_same_origin(&address(other)), expected, "{one} {other}");
        };
        check("https://a.example/x", "https://A.example:443/y", true);
        check("http://a.example:80/x", "http://a.example/y", true);
        check("https://a.example/", "http://a.example/", false);
        check("https://a.example/", "https://a.example:5000/", false);
        check("https://a.example/", "https://a.example.evil.example/", false);
    }
}
