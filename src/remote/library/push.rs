//! Storing an image in a library.
//!
//! ```text
//! entity, collection, container     looked for, and made where they are not there
//! image                             by its hash; one that is uploaded already only gets its tags
//! POST v2/imagefile/ID              ──► an address to PUT the file at ──► PUT v2/imagefile/ID/_complete
//! POST v2/imagefile/ID/_multipart   for large files: an address for each part ──► PUT …/_multipart_complete
//! POST v1/imagefile/ID              libraries of version 1 take the file themselves
//! POST v2/tags/CONTAINER            {"Arch", "Tag", "ImageID"}; version 1 without the architecture
//! ```
//!
//! The addresses that files are put at hold what allows it: the token does not go there.

use super::reference::{LibraryReference, hash_of_digest};
use super::{Library, Method, RemoteError};
use crate::oci::digest::{Algorithm, Digest, Hasher};
use crate::remote::counted::Counted;
use crate::remote::http::{Address, Body, Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files that are larger go in parts, where the library takes parts.
const MAX_WHOLE_BYTES: u64 = 64 << 20;
/// Most parts of a file: more than any store takes.
const MAX_PARTS: u64 = 100_000;

/// A file to store.
pub struct Upload<'a> {
    pub architecture: &'a str,
    pub description: &'a str,
    pub digest: Digest,
    pub size_bytes: u64,
    /// Opens the file at an offset.
    pub open: &'a (dyn Fn(u64) -> io::Result<Box<dyn Read + Send + Sync>> + Sync),
    /// How much of it is on its way, or there.
    pub sent_bytes: Arc<AtomicU64>,
}

impl Upload<'_> {
    /// Opens the file to send it from an offset.
    fn send_from(&self, offset: u64) -> io::Result<Box<dyn Read + Send + Sync>> {
        self.sent_bytes.store(offset, Ordering::Relaxed);
        Ok(Box::new(Counted { stream: (self.open)(offset)?, done_bytes: self.sent_bytes.clone() }))
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The library had the file already.
    pub was_there: bool,
    /// Bytes that are used of those that may be used; 0 stands for no limit.
    pub quota: Option<(u64, u64)>,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
    #[serde(default)]
    uploaded: bool,
}

#[derive(Default, Deserialize)]
struct Completed {
    #[serde(default)]
    quota: Quota,
}

#[derive(Default, Deserialize)]
struct Quota {
    #[serde(default, rename = "quotaTotal")]
    total: u64,
    #[serde(default, rename = "quotaUsage")]
    usage: u64,
}

/// What a version of the protocol can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Abilities {
    /// Files are put where the library says.
    uploads: bool,
    /// Tags are for one architecture.
    tags: bool,
}

impl Abilities {
    /// Version 2.0.0-alpha.1 brought the first, 2.0.0-alpha.2 the second.
    fn of(version: &str) -> Self {
        let major = version.split('.').next().and_then(|major| major.parse::<u64>().ok()).unwrap_or(0);
        Self { uploads: major >= 2, tags: major >= 2 && version != "2.0.0-alpha.1" }
    }
}

impl Library {
    /// Stores a file under the tags of a reference.
    pub fn push(&self, reference: &LibraryReference, upload: &Upload) -> Result<Stored, RemoteError> {
        let [entity, collection, name] = reference.whole_path()?;
        let abilities = self.abilities()?;
        let none = "No description";
        let found = self.find_or_make(
            &format!("v1/entities/{entity}"),
            "v1/entities",
            &|| json!({ "name": entity, "description": none }),
        )?;
        let found = self.find_or_make(
            &format!("v1/collections/{entity}/{collection}"),
            "v1/collections",
            &|| json!({ "name": collection, "description": none, "entity": found.id }),
        )?;
        let path = format!("{entity}/{collection}/{name}");
        let container = self.find_or_make(
            &format!("v1/containers/{path}"),
            "v1/containers",
            &|| json!({ "name": name, "description": none, "collection": found.id }),
        )?;
        let hash = hash_of_digest(&upload.digest);
        let image = self.find_or_make(
            &format!("v1/images/{path}:{hash}?arch={}", upload.architecture),
            "v1/images",
            &|| json!({ "hash": hash, "description": upload.description, "container": container.id }),
        )?;
        let quota = match image.uploaded {
            true => None,
            false if abilities.uploads => self.upload(&image.id, upload)?,
            false => self.upload_as_of_old(&image.id, upload).map(|()| None)?,
        };
        for tag in reference.tags() {
            let what = || format!("the tag {tag}");
            let (version, body) = match abilities.tags {
                true => ("v2", json!({ "Arch": upload.architecture, "Tag": tag, "ImageID": image.id })),
                false => ("v1", json!({ "Tag": tag, "ImageID": image.id })),
            };
            self.tell(Method::POST, &format!("{version}/tags/{}", container.id), &body, what)?;
        }
        Ok(Stored { was_there: image.uploaded, quota: quota.map(|Quota { usage, total }| (usage, total)) })
    }

    /// What the library can do; one that doesn't say is of the first version.
    fn abilities(&self) -> Result<Abilities, RemoteError> {
        #[derive(Deserialize)]
        struct Versions {
            #[serde(default, rename = "apiVersion")]
            api: String,
        }
        match self.get::<Versions>("version", || "its version".to_owned()) {
            Ok(versions) => Ok(Abilities::of(&versions.api)),
            Err(RemoteError::NotFound { .. } | RemoteError::NotUnderstood { .. }) => Ok(Abilities::of("1")),
            Err(error) => Err(error),
        }
    }

    fn find_or_make(&self, path: &str, place: &str, new: &dyn Fn() -> Value) -> Result<Identified, RemoteError> {
        let what = || path.split('?').next().unwrap_or_default().to_owned();
        let found: Identified = match self.get(path, what) {
            Err(RemoteError::NotFound { .. }) => self.ask(Method::POST, place, &new(), what)?,
            found => found?,
        };
        // It becomes part of addresses.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if found.id.is_empty() || !found.id.bytes().all(is_plain) {
            return Err(RemoteError::NotUnderstood { host: self.base.authority.clone(), what: what() });
        }
        Ok(found)
    }

    /// Puts the file where the library says.
    fn upload(&self, id: &str, upload: &Upload) -> Result<Option<Quota>, RemoteError> {
        if upload.size_bytes > MAX_WHOLE_BYTES {
            match self.upload_in_parts(id, upload) {
                // A library that takes no parts.
                Err(RemoteError::NotFound { .. }) => {}
                done => return done,
            }
        }
        #[derive(Deserialize)]
        struct Place {
            #[serde(rename = "uploadURL")]
            address: String,
        }
        let what = || "the upload".to_owned();
        let path = format!("v2/imagefile/{id}");
        let size = json!({ "filesize": upload.size_bytes, "sha256sum": upload.digest.hex() });
        let place: Place = self.ask(Method::POST, &path, &size, what)?;
        let open = || upload.send_from(0);
        self.put(&place.address, upload.size_bytes, Some(upload.digest.hex()), &open)?;
        self.complete(&format!("{path}/_complete"), &json!({}))
    }

    fn upload_in_parts(&self, id: &str, upload: &Upload) -> Result<Option<Quota>, RemoteError> {
        #[derive(Deserialize)]
        struct Parts {
            #[serde(rename = "uploadID")]
            upload: String,
            #[serde(rename = "totalParts")]
            count: u64,
            #[serde(rename = "partSize")]
            size: u64,
            #[serde(default)]
            options: Option<Options>,
        }
        #[derive(Default, Deserialize)]
        struct Options {
            #[serde(default, rename = "s3compliant")]
            compliant: String,
        }
        let what = || "the upload in parts".to_owned();
        let path = format!("v2/imagefile/{id}/_multipart");
        let parts: Parts = self.ask(Method::POST, &path, &json!({ "filesize": upload.size_bytes }), what)?;
        if parts.size == 0 || parts.count > MAX_PARTS || parts.count != upload.size_bytes.div_ceil(parts.size) {
            return Err(RemoteError::NotUnderstood { host: self.base.authority.clone(), what: what() });
        }
        // Not every store signs what a part holds.
        let has_sums = matches!(parts.options.unwrap_or_default().compliant.as_str(), "" | "true");
        let done = (0..parts.count).map(|number| {
            let offset = number * parts.size;
            let size_bytes = parts.size.min(upload.size_bytes - offset);
            let sum = has_sums.then(|| sum(upload, offset, size_bytes)).transpose()?;
            self.upload_part(&path, &parts.upload, number + 1, size_bytes, sum.as_deref(), &|| upload.send_from(offset))
        });
        let done: Result<Vec<Value>, RemoteError> = done.collect();
        match done {
            Ok(done) => {
                let body = json!({ "uploadID": parts.upload, "completedParts": done });
                self.complete(&format!("{path}_complete"), &body)
            }
            Err(error) => {
                // The first error counts.
                let _ = self.tell(Method::PUT, &format!("{path}_abort"), &json!({ "uploadID": parts.upload }), what);
                Err(match error {
                    // Parts are taken here: this is another thing that is not there.
                    RemoteError::NotFound { what } => RemoteError::Status {
                        host: self.base.authority.clone(),
                        what,
                        status: 404,
                        message: String::new(),
                    },
                    error => error,
                })
            }
        }
    }

    fn upload_part(
        &self,
        path: &str,
        upload: &str,
        number: u64,
        size_bytes: u64,
        sum: Option<&str>,
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send + Sync>>,
    ) -> Result<Value, RemoteError> {
        #[derive(Deserialize)]
        struct Place {
            #[serde(rename = "presignedURL")]
            address: String,
        }
        let body = json!({
            "partSize": size_bytes, "uploadID": upload, "partNumber": number, "sha256sum": sum.unwrap_or_default(),
        });
        let place: Place = self.ask(Method::PUT, path, &body, || format!("part {number}"))?;
        let stored = self.put(&place.address, size_bytes, sum, open)?;
        Ok(json!({ "partNumber": number, "token": stored.header("etag").unwrap_or_default() }))
    }

    /// Puts bytes at an address that a library gave for it.
    fn put(
        &self,
        address: &str,
        size_bytes: u64,
        sum: Option<&str>,
        open: &dyn Fn() -> io::Result<Box<dyn Read + Send + Sync>>,
    ) -> Result<Response, RemoteError> {
        let address = self.base.join(address)?;
        if self.base.is_https && !address.is_https {
            return Err(RemoteError::Downgrade { from: self.base.authority.clone(), to: address.authority });
        }
        let mut headers = vec![("Content-Type", "application/octet-stream".to_owned())];
        // Sent where it is part of what was signed; elsewhere it could make the signature wrong.
        if let Some(sum) = sum.filter(|_| is_sum_signed(&address)) {
            headers.push(("x-amz-content-sha256", sum.to_owned()));
        }
        let body = Body::Stream(size_bytes, open);
        let response = self.http.send(&Request { method: Method::PUT, address, headers, authorization: None, body })?;
        let host = response.address.authority.clone();
        match response.status {
            200 | 201 | 204 => Ok(response),
            status => Err(RemoteError::Status { host, what: "the upload".to_owned(), status, message: String::new() }),
        }
    }

    fn complete(&self, path: &str, body: &Value) -> Result<Option<Quota>, RemoteError> {
        let what = || "the end of the upload".to_owned();
        let response = self.send(Method::PUT, path, body)?;
        let response = self.expect(response, &[200, 201, 204], what)?;
        // Not every library has more to say.
        Ok(self.document::<Completed>(response, what).ok().map(|completed| completed.quota))
    }

    fn upload_as_of_old(&self, id: &str, upload: &Upload) -> Result<(), RemoteError> {
        let open = || upload.send_from(0);
        let path = format!("v1/imagefile/{id}");
        let response = self.http.send(&self.request(Method::POST, &path, Body::Stream(upload.size_bytes, &open)))?;
        self.expect(response, &[200, 201, 204], || "the upload".to_owned()).map(|_| ())
    }

    fn send(&self, method: Method, path: &str, body: &Value) -> Result<Response, RemoteError> {
        let bytes = body.to_string().into_bytes();
        let kind = ("Content-Type", "application/json".to_owned());
        self.http.send(&Request { headers: vec![kind], ..self.request(method, path, Body::Bytes(&bytes)) })
    }

    /// Sends a document, and takes one.
    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        what: impl Fn() -> String,
    ) -> Result<T, RemoteError> {
        let response = self.send(method, path, body)?;
        self.document(self.expect(response, &[200, 201], &what)?, what)
    }

    /// Sends a document to which no answer matters but whether it was taken.
    fn tell(&self, method: Method, path: &str, body: &Value, what: impl Fn() -> String) -> Result<(), RemoteError> {
        let response = self.send(method, path, body)?;
        self.expect(response, &[200, 201, 204], what).map(|_| ())
    }
}

/// Whether the signature in an address covers the header that holds the sum.
fn is_sum_signed(address: &Address) -> bool {
    let query = address.path.split_once('?').map_or("", |(_, query)| query);
    let signed =
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == "X-Amz-SignedHeaders");
    signed.is_some_and(|(_, headers)| {
        headers.split(';').flat_map(|one| one.split("%3B")).any(|one| one == "x-amz-content-sha256")
    })
}

fn sum(upload: &Upload, offset: u64, size_bytes: u64) -> Result<String, RemoteError> {
    let failed = |source| RemoteError::Upload { source };
    let mut part = (upload.open)(offset).map_err(failed)?.take(size_bytes);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match part.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish().hex().to_owned()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_says_what_a_library_can_do() {
        let check =
            |version, uploads, tags| assert_eq!(Abilities::of(version), Abilities { uploads, tags }, "{version}");
        check("", false, false);
        check("1.0.0", false, false);
        check("2.0.0-alpha.1", true, false);
        check("2.0.0-alpha.2", true, true);
        check("2.1.0", true, true);
        check("10.0", true, true);
        check("v2", false, false);
    }

    #[test]
    fn a_sum_is_sent_where_it_was_signed() {
        let check = |query: &str, expected| {
            let address = Address::parse(&format!("https://store.example/x?{query}")).unwrap();
            assert_eq!(is_sum_signed(&address), expected, "{query}");
        };
        check("X-Amz-SignedHeaders=host%3Bx-amz-content-sha256&X-Amz-Signature=1", true);
        check("a=b&X-Amz-SignedHeaders=host;x-amz-content-sha256", true);
        check("X-Amz-SignedHeaders=host", false);
        check("", false);
    }
}
