//! A registry: documents and blobs by the distribution protocol.
//!
//! ```text
//! GET /v2/REPOSITORY/manifests/TAG ──► 401, WWW-Authenticate: Bearer realm=…,service=…,scope=…
//!     GET REALM?service=…&scope=… ──► a token                     name and password go there
//! GET … with the token ──► the manifest ──► blobs by digest
//! POST /v2/REPOSITORY/blobs/uploads/ ──► where to PUT a blob ──► PUT /v2/REPOSITORY/manifests/TAG
//!                                    ──► where to PATCH one of unknown length ──► PUT, with its digest
//! ```

use super::RemoteError;
use super::credentials::{Login, Places};
use super::http::{Address, Body, Http, Method, Request, Response, jittered};
use crate::oci::digest::{Algorithm, Digest, Hasher};
use crate::oci::documents::{DOCKER_LIST, DOCKER_MANIFEST, MAX_DOCUMENT_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::oci::reference::Reference;
use serde::Deserialize;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Largest answer of a token server.
const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// How often a stream is sent.
const STREAM_TRIES: u32 = 3;
/// The first pause before it is sent again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A repository of a registry.
pub struct Registry {
    http: Http,
    /// `/v2/REPOSITORY/` at the registry.
    base: Address,
    pub reference: Reference,
    login: Option<Login>,
    /// What the registry accepted last.
    authorization: Mutex<Option<String>>,
    /// `pull` or `pull,push`.
    actions: &'static str,
}

/// A document with its digest.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub bytes: Vec<u8>,
    pub digest: Digest,
}

impl Registry {
    /// Prepares to talk to the registry of `reference`; nothing is sent yet.
    pub fn new(
        reference: &Reference,
        http: Http,
        is_https: bool,
        places: &Places,
        pushes: bool,
    ) -> Result<Self, RemoteError> {
        let scheme = if is_https { "https" } else { "http" };
        let base = Address::parse(&format!("{scheme}://{}/v2/{}/", reference.host(), reference.repository))?;
        Ok(Self {
            http,
            base,
            reference: reference.clone(),
            login: places.find(&reference.registry, &reference.repository)?,
            authorization: Mutex::new(None),
            actions: if pushes { "pull,push" } else { "pull" },
        })
    }

    /// Fetches a manifest or index, by tag or digest.
    pub fn manifest(&self, version: &str) -> Result<Fetched, RemoteError> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let address = self.base.join(&format!("manifests/{version}"))?;
        let response = self.ask(Method::GET, &address, &[("Accept", accept)], Body::Empty)?;
        let what = || format!("{}/{}:{version}", self.reference.registry, self.reference.repository);
        let response = self.expect(response, &[200], what)?;
        let bytes = response.bytes(MAX_DOCUMENT_BYTES)?;
        let digest = Digest::of(&bytes);
        if let Ok(expected) = version.parse::<Digest>() {
            let mut hasher = Hasher::new(expected.algorithm());
            hasher.update(&bytes);
            let found = hasher.finish();
            if found != expected {
                return Err(RemoteError::Digest { what: what(), expected, found });
            }
        }
        Ok(Fetched { bytes, digest })
    }

    /// Opens a blob, `offset_bytes` from its beginning. A server that can't begin there begins at the start: what it sends
    /// before is passed over.
    pub fn blob(&self, digest: &Digest, offset_bytes: u64) -> Result<Box<dyn Read + Send>, RemoteError> {
        let address = self.base.join(&format!("blobs/{digest}"))?;
        let range = (offset_bytes > 0).then(|| ("Range", format!("bytes={offset_bytes}-")));
        let response = self.ask(Method::GET, &address, range.as_slice(), Body::Empty)?;
        let response = self.expect(response, &[200, 206], || digest.to_string())?;
        response.from_offset(offset_bytes)
    }

    /// Opens a layer that registries may not hold, at the address that its manifest names. Nobody is told there who asks,
    /// and what comes is checked by its digest as any blob is.
    pub fn foreign_blob(&self, url: &str, offset_bytes: u64) -> Result<Box<dyn Read + Send>, RemoteError> {
        let address = Address::parse(url)?;
        if self.base.is_https && !address.is_https {
            return Err(RemoteError::Downgrade { from: self.base.authority.clone(), to: address.authority });
        }
        let range = (offset_bytes > 0).then(|| ("Range", format!("bytes={offset_bytes}-")));
        let headers = range.into_iter().collect();
        let request = Request { method: Method::GET, address, headers, authorization: None, body: Body::Empty };
        let response = self.http.for_others().send(&request)?;
        let host = response.address.authority.clone();
        match response.status {
            200 | 206 => response.from_offset(offset_bytes),
            404 | 410 => Err(RemoteError::NotFound { what: url.to_owned() }),
            status => Err(RemoteError::Status { host, what: url.to_owned(), status, message: String::new() }),
        }
    }

    /// Reads a small blob and checks it.
    pub fn small_blob(&self, digest: &Digest, size_bytes: u64) -> Result<Vec<u8>, RemoteError> {
        let host = self.base.authority.clone();
        if size_bytes > MAX_DOCUMENT_BYTES {
            return Err(RemoteError::TooLarge { host, limit: MAX_DOCUMENT_BYTES });
        }
        let mut bytes = Vec::new();
        let read = self.blob(digest, 0)?.take(size_bytes + 1).read_to_end(&mut bytes);
        read.map_err(|source| RemoteError::Read { host, source })?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != *digest {
            return Err(RemoteError::Digest { what: digest.to_string(), expected: digest.clone(), found });
        }
        Ok(bytes)
    }

    /// Whether the registry has a blob already.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, RemoteError> {
        let address = self.base.join(&format!("blobs/{digest}"))?;
        Ok(self.ask(Method::HEAD, &address, &[], Body::Empty)?.status == 200)
    }

    /// Stores a blob, `size_bytes` of what `open` gives.
    pub fn push_blob(
        &self,
        digest: &Digest,
        size_bytes: u64,
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send + Sync>>,
    ) -> Result<(), RemoteError> {
        if self.has_blob(digest)? {
            return Ok(());
        }
        let what = || format!("the upload of {digest}");
        let place = self.begin_upload(&what)?;
        let place = place.with_query(&format!("digest={}", percent_encoded(&digest.to_string())));
        let stored = self.ask(Method::PUT, &place, &[octets()], Body::Stream(size_bytes, open))?;
        self.expect(stored, &[201], what).map(|_| ())
    }

    /// Stores what `open` gives as a blob whose digest and size are known when its end is; begins again when the connection
    /// breaks.
    pub fn push_stream(
        &self,
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send + Sync>>,
    ) -> Result<(Digest, u64), RemoteError> {
        let mut tried = 1;
        loop {
            match self.try_push_stream(open) {
                Err(
                    RemoteError::Connection { is_passing: true, .. } | RemoteError::Status { status: 429 | 500.., .. },
                ) if tried < STREAM_TRIES => {}
                answer => return answer,
            }
            std::thread::sleep(jittered(FIRST_PAUSE * (1 << tried)));
            tried += 1;
        }
    }

    fn try_push_stream(
        &self,
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send + Sync>>,
    ) -> Result<(Digest, u64), RemoteError> {
        let what = || "the upload of a layer".to_owned();
        let place = self.begin_upload(&what)?;
        let seen = Mutex::new(Seen::default());
        let hashed = || -> io::Result<Box<dyn Read + Send + Sync>> {
            let state = Seen::default();
            *seen.lock().unwrap_or_else(PoisonError::into_inner) = state.clone();
            Ok(Box::new(Hashed { stream: open()?, state }))
        };
        let taken = self.ask(Method::PATCH, &place, &[octets()], Body::Endless(&hashed))?;
        let taken = self.expect(taken, &[202, 201, 204], what)?;
        let (digest, size_bytes) = seen.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
        let place = match taken.header("location") {
            Some(location) => taken.address.join(location)?,
            None => place,
        };
        let place = place.with_query(&format!("digest={}", percent_encoded(&digest.to_string())));
        // Checks that all of it arrived.
        let stored = self.ask(Method::PUT, &place, &[octets()], Body::Bytes(b""))?;
        self.expect(stored, &[201], what)?;
        Ok((digest, size_bytes))
    }

    /// Asks for a place to send a blob to.
    fn begin_upload(&self, what: &dyn Fn() -> String) -> Result<Address, RemoteError> {
        let begun = self.ask(Method::POST, &self.base.join("blobs/uploads/")?, &[], Body::Bytes(b""))?;
        let begun = self.expect(begun, &[202], what)?;
        let missing =
            RemoteError::Challenge { host: begun.address.authority.clone(), why: "it names no place for an upload" };
        begun.address.join(begun.header("location").ok_or(missing)?)
    }

    /// Stores a manifest under a tag.
    pub fn push_manifest(&self, version: &str, media_type: &str, bytes: &[u8]) -> Result<(), RemoteError> {
        let address = self.base.join(&format!("manifests/{version}"))?;
        let kind = ("Content-Type", media_type.to_owned());
        let stored = self.ask(Method::PUT, &address, &[kind], Body::Bytes(bytes))?;
        self.expect(stored, &[201], || format!("the manifest {version}")).map(|_| ())
    }

    /// Sees whether anybody answers; whatever the answer is.
    pub fn ping(&self) -> Result<(), RemoteError> {
        let root = Address { path: "/v2/".to_owned(), ..self.base.clone() };
        let body = Body::Empty;
        let request = Request { method: Method::GET, address: root, headers: Vec::new(), authorization: None, body };
        self.http.send(&request).map(|_| ())
    }

    /// Sees whether the registry takes the credentials.
    pub fn check_login(&self) -> Result<(), RemoteError> {
        let root = Address { path: "/v2/".to_owned(), ..self.base.clone() };
        let response = self.ask(Method::GET, &root, &[], Body::Empty)?;
        self.expect(response, &[200], || "the registry".to_owned()).map(|_| ())
    }

    /// Sends a request; proves who asks when the registry wants to know, once.
    fn ask(
        &self,
        method: Method,
        address: &Address,
        headers: &[(&'static str, String)],
        body: Body,
    ) -> Result<Response, RemoteError> {
        let mut authorization = self.lock().clone();
        let mut asked = false;
        loop {
            // An upload can be sent to another host: nothing that is for the registry goes there.
            let own = authorization.as_deref().filter(|_| address.is_same_origin(&self.base));
            let request = Request {
                method: method.clone(),
                address: address.clone(),
                headers: headers.to_vec(),
                authorization: own,
                body,
            };
            let response = self.http.send(&request)?;
            if response.status != 401 || asked {
                return Ok(response);
            }
            asked = true;
            let Some(new) = self.answer_challenge(&response)? else { return Ok(response) };
            *self.lock() = Some(new.clone());
            authorization = Some(new);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to say to a registry that asks who is there; `None` when there is nothing to say.
    fn answer_challenge(&self, response: &Response) -> Result<Option<String>, RemoteError> {
        let challenges = response.headers("www-authenticate");
        let parsed: Vec<Challenge> = challenges.iter().filter_map(|text| Challenge::parse(text)).collect();
        if let Some(bearer) = parsed.iter().find(|challenge| challenge.scheme == "bearer") {
            return self.token(bearer).map(Some);
        }
        if parsed.iter().any(|challenge| challenge.scheme == "basic") {
            return Ok(self.login.as_ref().and_then(Login::basic));
        }
        let why = "it asks for neither a password nor a token";
        Err(RemoteError::Challenge { host: self.base.authority.clone(), why })
    }

    /// Gets a token from the server that the registry names.
    fn token(&self, challenge: &Challenge) -> Result<String, RemoteError> {
        let host = self.base.authority.clone();
        let wrong = |why| RemoteError::Challenge { host: host.clone(), why };
        let realm = Address::parse(challenge.get("realm").ok_or(wrong("it names no token server"))?)?;
        // Name and password go there: never by an open connection where the registry's own is encrypted, and by an open
        // one only to the registry itself.
        if !realm.is_https && !(realm.is_same_origin(&self.base)) {
            return Err(wrong("its token server is another host, without encryption"));
        }
        let own_scope = format!("repository:{}:{}", self.reference.repository, self.actions);
        let scope = match challenge.get("scope") {
            Some(scope) if !self.actions.contains("push") => scope.to_owned(),
            _ => own_scope,
        };
        let mut query = vec![("scope", scope)];
        if let Some(service) = challenge.get("service") {
            query.push(("service", service.to_owned()));
        }
        let encoded = |query: &[(&str, String)]| {
            query.iter().map(|(key, value)| format!("{key}={}", percent_encoded(value))).collect::<Vec<_>>().join("&")
        };
        let basic = self.login.as_ref().and_then(Login::basic);
        let form;
        let request = match &self.login {
            Some(Login::IdentityToken(token)) => {
                query.push(("grant_type", "refresh_token".to_owned()));
                query.push(("client_id", "sifu".to_owned()));
                query.push(("refresh_token", token.clone()));
                form = encoded(&query).into_bytes();
                let kind = ("Content-Type", "application/x-www-form-urlencoded".to_owned());
                Request {
                    method: Method::POST,
                    address: realm,
                    headers: vec![kind],
                    authorization: None,
                    body: Body::Bytes(&form),
                }
            }
            _ => Request {
                method: Method::GET,
                address: realm.with_query(&encoded(&query)),
                headers: Vec::new(),
                authorization: basic.as_deref(),
                body: Body::Empty,
            },
        };
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let response = self.http.send(&request)?;
        let response = self.expect(response, &[200], || "a token".to_owned())?;
        let answer: Answer = serde_json::from_slice(&response.bytes(MAX_TOKEN_BYTES)?)
            .map_err(|_| wrong("its token server's answer is not understood"))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() || token.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
            return Err(wrong("its token server gives no token"));
        }
        Ok(format!("Bearer {token}"))
    }

    /// Takes an answer of the hoped-for kind.
    fn expect(
        &self,
        response: Response,
        hoped_for: &[u16],
        what: impl Fn() -> String,
    ) -> Result<Response, RemoteError> {
        let refused = |host| RemoteError::Unauthorized { host, had_credentials: self.login.is_some() };
        response.expect(hoped_for, what, refused, message)
    }
}

fn octets() -> (&'static str, String) {
    ("Content-Type", "application/octet-stream".to_owned())
}

/// What went by of a stream.
#[derive(Clone)]
struct Seen(Arc<Mutex<(Hasher, u64)>>);

impl Default for Seen {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((Hasher::new(Algorithm::Sha256), 0))))
    }
}

impl Seen {
    fn finish(self) -> (Digest, u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (hasher, size_bytes) = std::mem::replace(&mut *seen, (Hasher::new(Algorithm::Sha256), 0));
        (hasher.finish(), size_bytes)
    }
}

/// A stream that is hashed while it is sent.
struct Hashed {
    stream: Box<dyn Read + Send + Sync>,
    state: Seen,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        let mut seen = self.state.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0.update(&buffer[..count]);
        seen.1 += count as u64;
        Ok(count)
    }
}

/// What a registry says of an error, in its own words.
fn message(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        message: String,
    }
    let Errors { errors } = serde_json::from_slice(bytes).ok()?;
    errors.into_iter().map(|error| error.message).find(|message| !message.is_empty())
}

/// What a registry wants to know: `Bearer realm="https://…",service="…",scope="…"`.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', ',', '\t']);
            let Some((key, after)) = rest.split_once('=') else { break };
            let after = after.trim_start();
            let mut value = String::new();
            if let Some(quoted) = after.strip_prefix('"') {
                let mut characters = quoted.char_indices();
                let end = loop {
                    match characters.next()? {
                        (at, '"') => break at + 1,
                        (_, '\\') => value.push(characters.next()?.1),
                        (_, character) => value.push(character),
                    }
                };
                rest = &quoted[end..];
            } else {
                let end = after.find(',').unwrap_or(after.len());
                value.push_str(after[..end].trim());
                rest = &after[end..];
            }
            parameters.push((key.trim().to_ascii_lowercase(), value));
        }
        (!scheme.is_empty()).then(|| Self { scheme: scheme.to_ascii_lowercase(), parameters })
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// A value of a query.
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_has_a_scheme_and_parameters() {
        let challenge = Challenge::parse(
            r#"Bearer realm="https://auth.example/token",service="a \"b\"",scope="repository:a/b:pull,push", x=y"#,
        )
        .unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.get("realm"), Some("https://auth.example/token"));
        assert_eq!(challenge.get("service"), Some("a \"b\""));
        assert_eq!(challenge.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(challenge.get("x"), Some("y"));
        assert_eq!(Challenge::parse("Basic").unwrap().parameters, []);
        assert_eq!(Challenge::parse("Bearer realm=\"unended"), None);
        assert_eq!(Challenge::parse(""), None);
    }

    #[test]
    fn values_of_a_query_hold_nothing_that_ends_them() {
        assert_eq!(percent_encoded("sha256:ab&c=d e/é"), "sha256%3Aab%26c%3Dd%20e%2F%C3%A9");
    }
}
