//! A library server: images by names of three parts, each a SIF file, by the protocol of the container library.
//!
//! ```text
//! GET v1/images/PATH:TAG?arch=ARCH       what the tag means: {"data": {"hash": "sha256.…", "size": …}}
//! GET v1/imagefile/PATH:TAG?arch=ARCH    the file, or a redirect to where it is
//! GET v1/search?value=…&arch=…           images whose names hold a word
//! DELETE v1/images/PATH:TAG?arch=ARCH
//! ```
//!
//! A token goes to the library and to no other host. Storing images is in `push`.

pub mod push;
pub mod reference;

use super::RemoteError;
use super::credentials::Password;
use super::http::{Address, Body, Http, Method, Request, Response};
use super::registry::percent_encoded;
use crate::oci::digest::Digest;
use reference::{LibraryReference, digest_of_hash};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io::Read;

/// Largest document that a library answers with.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// A library server, with the token for it.
pub struct Library {
    http: Http,
    base: Address,
    authorization: Option<String>,
}

/// What a library knows of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    pub digest: Digest,
    pub size_bytes: Option<u64>,
}

/// An image that a search found.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct FoundImage {
    pub hash: String,
    pub description: String,
    pub entity_name: String,
    pub collection_name: String,
    pub container_name: String,
    pub tags: Vec<String>,
    /// Of the keys that signed it.
    pub fingerprints: Vec<String>,
}

/// What every answer is wrapped in.
#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

impl Library {
    pub fn new(base: Address, token: Option<&Password>, http: Http) -> Self {
        Self { http, base, authorization: token.map(|Password(token)| format!("Bearer {token}")) }
    }

    /// What a reference means for an architecture now.
    pub fn image(&self, reference: &LibraryReference, architecture: &str) -> Result<ImageRecord, RemoteError> {
        #[derive(Deserialize)]
        struct Image {
            hash: String,
            #[serde(default)]
            size: u64,
            arch: Option<String>,
        }
        let what = || self.name(reference, architecture);
        let image: Image = self.get(&with_architecture("v1/images", reference, architecture), what)?;
        // A library that knows nothing of architectures gives what it has.
        if let Some(found) = image.arch.filter(|found| !found.is_empty() && found != architecture) {
            let what = self.name_alone(reference);
            return Err(RemoteError::Architecture { what, wanted: architecture.to_owned(), found });
        }
        let digest = digest_of_hash(&image.hash).ok_or_else(|| {
            let what = format!("the hash of {}", self.name_alone(reference));
            RemoteError::NotUnderstood { host: self.base.authority.clone(), what }
        })?;
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(RemoteError::Digest { what: self.name_alone(reference), expected, found: digest });
        }
        Ok(ImageRecord { digest, size_bytes: (image.size > 0).then_some(image.size) })
    }

    /// Opens the file of an image, `offset_bytes` from its beginning.
    pub fn open(
        &self,
        reference: &LibraryReference,
        architecture: &str,
        offset_bytes: u64,
    ) -> Result<Box<dyn Read + Send>, RemoteError> {
        let path = with_architecture("v1/imagefile", reference, architecture);
        let range = (offset_bytes > 0).then(|| ("Range", format!("bytes={offset_bytes}-")));
        let request = Request { headers: range.into_iter().collect(), ..self.request(Method::GET, &path, Body::Empty) };
        let response = self.http.send(&request)?;
        let response = self.expect(response, &[200, 206], || self.name(reference, architecture))?;
        response.from_offset(offset_bytes)
    }

    /// The images whose names hold `words`.
    pub fn search(&self, words: &str, architecture: &str, signed: bool) -> Result<Vec<FoundImage>, RemoteError> {
        #[derive(Deserialize)]
        struct Found {
            #[serde(default, rename = "image")]
            images: Option<Vec<FoundImage>>,
        }
        let mut path = format!("v1/search?value={}&arch={}", percent_encoded(words), percent_encoded(architecture));
        if signed {
            path += "&signed=true";
        }
        let found: Found = self.get(&path, || "a search".to_owned())?;
        Ok(found.images.unwrap_or_default())
    }

    /// Deletes an image for one architecture.
    pub fn delete(&self, reference: &LibraryReference, architecture: &str) -> Result<(), RemoteError> {
        let path = with_architecture("v1/images", reference, architecture);
        let response = self.http.send(&self.request(Method::DELETE, &path, Body::Empty))?;
        self.expect(response, &[200, 202, 204], || self.name(reference, architecture)).map(|_| ())
    }

    /// What an image is called, and where.
    fn name_alone(&self, reference: &LibraryReference) -> String {
        format!("library://{}/{}", self.base.authority, reference.path_and_tag())
    }

    fn name(&self, reference: &LibraryReference, architecture: &str) -> String {
        format!("{} for {architecture}", self.name_alone(reference))
    }

    fn request<'a>(&'a self, method: Method, path: &str, body: Body<'a>) -> Request<'a> {
        let authorization = self.authorization.as_deref();
        Request { method, address: self.base.below(path), headers: Vec::new(), authorization, body }
    }

    fn get<T: DeserializeOwned>(&self, path: &str, what: impl Fn() -> String) -> Result<T, RemoteError> {
        let response = self.http.send(&self.request(Method::GET, path, Body::Empty))?;
        self.document(self.expect(response, &[200], &what)?, what)
    }

    fn document<T: DeserializeOwned>(&self, response: Response, what: impl Fn() -> String) -> Result<T, RemoteError> {
        let host = response.address.authority.clone();
        let bytes = response.bytes(MAX_DOCUMENT_BYTES)?;
        let wrong = |_| RemoteError::NotUnderstood { host, what: what() };
        serde_json::from_slice::<Envelope<T>>(&bytes).map(|envelope| envelope.data).map_err(wrong)
    }

    /// Takes an answer of the hoped-for kind.
    fn expect(
        &self,
        response: Response,
        hoped_for: &[u16],
        what: impl Fn() -> String,
    ) -> Result<Response, RemoteError> {
        let refused = |host| RemoteError::Token { host, had_token: self.authorization.is_some() };
        response.expect(hoped_for, what, refused, message)
    }
}

fn with_architecture(what: &str, reference: &LibraryReference, architecture: &str) -> String {
    format!("{what}/{}?arch={}", reference.path_and_tag(), percent_encoded(architecture))
}

/// What a library says of an error, in its own words.
fn message(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Failed {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        message: String,
    }
    serde_json::from_slice::<Failed>(bytes).ok().map(|failed| failed.error.message)
}
