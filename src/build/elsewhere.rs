//! Images that are named by where they are: each becomes a SIF file, in the cache or in a place of its own.
//!
//! ```text
//! docker:, docker-daemon:, docker-archive:,
//! oci:, oci-archive:                             layers, converted; the key is what they are and how it is done
//! oras:, library:                                a SIF file; the key is its digest
//! http:, https:                                  a SIF file; the key is its address, size and time
//! ```

use super::builder::RootOptions;
use super::sections::RunOptions;
use super::source::docker::{self, OrasImage, SifBlob};
use super::source::library::{LibraryFile, LibraryImage};
use super::source::{DockerArchive, DockerDaemon, HUB_IS_GONE, Layered, OciLayout, platform};
use super::{BuildError, DefinitionOptions, Form, Note, Request};
use crate::cache::{Cache, Kind};
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::remote::RemoteError;
use crate::remote::access::Access;
use crate::remote::download;
use crate::remote::http::{Address, Body, Http, Method, Request as HttpRequest};
use crate::sif::Arch;
use crate::squashfs::write::{PackOptions, Progress, Stage};
use starter::paths::HostPath;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Stands for how images are converted: it changes when that does.
const CONVERSION: &str = "sifu-1";

/// How an image is made of what is elsewhere.
#[derive(Clone, Debug)]
pub struct Conversion {
    pub access: Access,
    pub architecture: Option<Arch>,
    pub root: RootOptions,
    pub pack: PackOptions,
    /// The time that the image states; without it, that of its newest file.
    pub time: Option<i64>,
    /// What was made of an image that failed stays where it is.
    pub keeps_files: bool,
}

/// An image elsewhere, found but not fetched.
enum Found {
    /// It has layers, and this manifest.
    Layers {
        uri: String,
        pinned: Option<Digest>,
        key: String,
    },
    Sif(Box<SifBlob>),
    Library(Box<LibraryFile>),
    Web {
        address: Address,
        size_bytes: Option<u64>,
        key: String,
    },
}

impl Found {
    /// What it is kept under.
    fn key(&self) -> (Kind, String) {
        match self {
            Self::Layers { key, .. } => (Kind::Oci, key.clone()),
            Self::Sif(blob) => (Kind::Oras, blob.digest.hex().to_owned()),
            Self::Library(file) => (Kind::Library, file.record.digest.hex().to_owned()),
            Self::Web { key, .. } => (Kind::Net, key.clone()),
        }
    }
}

/// Whether a text names an image by where it is.
pub fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    match scheme {
        "docker" | "oras" | "http" | "https" | "library" | "shub" | "ipfs" => rest.starts_with("//"),
        "docker-archive" | "docker-daemon" | "oci" | "oci-archive" => !Path::new(text).exists(),
        // Whatever looks like one is not a file, either.
        scheme => {
            rest.starts_with("//")
                && !scheme.is_empty()
                && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !matches!(scheme, "instance" | "localimage")
        }
    }
}

/// The name of the file that a pull makes of an image.
pub fn default_name(uri: &str) -> Result<String, BuildError> {
    let (scheme, rest) = parts(uri);
    match scheme {
        "docker" | "oras" => Ok(reference(rest)?.file_name()),
        "docker-daemon" => {
            let name = rest.rsplit('/').next().unwrap_or_default();
            let (name, tag) = name.split_once([':', '@']).unwrap_or((name, "latest"));
            Ok(format!("{name}_{}.sif", tag.replace(':', "_")))
        }
        "library" => Ok(LibraryImage::parse(rest)?.reference.file_name()),
        "http" | "https" => {
            let path = rest.split(['?', '#']).next().unwrap_or_default();
            let name = path.rsplit('/').next().filter(|name| !name.is_empty() && path.contains('/'));
            Ok(name.unwrap_or("image.sif").to_owned())
        }
        _ => {
            let path = rest.split(':').next().unwrap_or_default().trim_end_matches('/');
            let name = path.rsplit('/').next().unwrap_or_default();
            let name = name.strip_suffix(".tar").unwrap_or(name);
            Ok(format!("{}_latest.sif", if name.is_empty() { "image" } else { name }))
        }
    }
}

/// The SIF file of an image elsewhere, in the cache.
pub fn cached(uri: &str, how: &Conversion, cache: &Cache, say: &mut dyn FnMut(Note)) -> Result<PathBuf, BuildError> {
    if let Some(path) = cached_by_name(uri, cache)? {
        say(Note::Doing("Using cached SIF image"));
        return Ok(path);
    }
    let found = find(uri, how)?;
    let (kind, key) = found.key();
    if let Some(path) = cache.get(kind, &key) {
        say(Note::Doing("Using cached SIF image"));
        return Ok(path);
    }
    Ok(cache.obtain(kind, &key, |path| make(&found, how, path, say))?)
}

/// The same if it is there.
pub fn find_cached(uri: &str, how: &Conversion, cache: &Cache) -> Result<Option<PathBuf>, BuildError> {
    if let Some(path) = cached_by_name(uri, cache)? {
        return Ok(Some(path));
    }
    let (kind, key) = find(uri, how)?.key();
    Ok(cache.get(kind, &key))
}

/// The cached file of a reference that holds the file's own digest.
fn cached_by_name(uri: &str, cache: &Cache) -> Result<Option<PathBuf>, BuildError> {
    match parts(uri) {
        ("library", rest) => Ok(LibraryImage::parse(rest)?.cached_by_name(cache)),
        _ => Ok(None),
    }
}

/// Makes the SIF file of an image elsewhere at `path`, where nothing is.
pub fn fetch(uri: &str, how: &Conversion, path: &Path, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
    make(&find(uri, how)?, how, path, say)
}

fn parts(uri: &str) -> (&str, &str) {
    let (scheme, rest) = uri.split_once(':').unwrap_or(("", uri));
    (scheme, rest.strip_prefix("//").unwrap_or(rest))
}

fn reference(text: &str) -> Result<Reference, BuildError> {
    text.parse().map_err(|error| BuildError::Reference(Box::new(error)))
}

/// Finds out what an address means now.
fn find(uri: &str, how: &Conversion) -> Result<Found, BuildError> {
    let (scheme, rest) = parts(uri);
    let wanted = platform(how.architecture, &how.access);
    let elsewhere = |why| BuildError::Elsewhere { what: uri.to_owned(), why };
    let layered = |layered: Layered| Found::Layers { uri: uri.to_owned(), pinned: None, key: key(&layered, how) };
    match scheme {
        "docker" => {
            let digest = docker::resolve(&reference(rest)?, &how.access, &wanted)?.digest;
            let key = Digest::of(format!("{CONVERSION} {digest} {}", options_text(how)).as_bytes());
            Ok(Found::Layers { uri: uri.to_owned(), pinned: Some(digest), key: key.hex().to_owned() })
        }
        "oras" => Ok(Found::Sif(Box::new(OrasImage { reference: reference(rest)? }.resolve(&how.access)?))),
        "oci" | "oci-archive" => {
            let layout = OciLayout { from: rest.to_owned(), is_archive: scheme == "oci-archive" };
            Ok(layered(layout.open(&wanted)?))
        }
        "docker-archive" => Ok(layered(DockerArchive { from: rest.to_owned() }.open(&wanted)?)),
        "http" | "https" => on_the_web(uri, &how.access),
        "shub" => Err(elsewhere(HUB_IS_GONE)),
        "library" => {
            let architecture = how.architecture.unwrap_or_else(Arch::host);
            Ok(Found::Library(Box::new(LibraryImage::parse(rest)?.resolve(&how.access, architecture.name())?)))
        }
        "docker-daemon" => {
            let id = DockerDaemon { from: rest.to_owned() }.resolve(&how.access)?;
            let text = format!("{CONVERSION} docker-daemon {id} {wanted} {}", options_text(how));
            let key = Digest::of(text.as_bytes()).hex().to_owned();
            Ok(Found::Layers { uri: uri.to_owned(), pinned: Some(id), key })
        }
        _ => Err(elsewhere("images of such an address are not known")),
    }
}

fn on_the_web(uri: &str, access: &Access) -> Result<Found, BuildError> {
    let address = Address::parse(uri)?;
    let request = HttpRequest {
        method: Method::HEAD,
        address: address.clone(),
        headers: Vec::new(),
        authorization: None,
        body: Body::Empty,
    };
    let response = access.http(&address).send(&request)?;
    let host = address.authority.clone();
    match response.status {
        200 => {}
        404 | 410 => return Err(RemoteError::NotFound { what: uri.to_owned() }.into()),
        401 | 403 => return Err(RemoteError::Unauthorized { host, had_credentials: false }.into()),
        status => {
            let what = uri.to_owned();
            return Err(RemoteError::Status { host, what, status, message: String::new() }.into());
        }
    }
    let header = |name| response.header(name).unwrap_or_default().to_owned();
    let size_bytes = header("content-length").parse().ok();
    let text = format!("{uri} {} {} {}", header("etag"), header("last-modified"), header("content-length"));
    Ok(Found::Web { address, size_bytes, key: Digest::of(text.as_bytes()).hex().to_owned() })
}

/// The key of layers that are at hand: what they are, and how they are converted.
fn key(layered: &Layered, how: &Conversion) -> String {
    let mut text = format!("{CONVERSION} {} {}", Digest::of(&layered.config_bytes), options_text(how));
    for digest in layered.digests() {
        text += &format!(" {digest}");
    }
    Digest::of(text.as_bytes()).hex().to_owned()
}

fn options_text(how: &Conversion) -> String {
    format!("{:?} {} {:?}", how.pack.compression, how.pack.block_bytes, how.time)
}

fn make(found: &Found, how: &Conversion, path: &Path, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
    match found {
        Found::Layers { uri, pinned, .. } => {
            let access = Access { pinned: pinned.clone(), ..how.access.clone() };
            let request = Request {
                target: HostPath::new(path),
                source: OsString::from(uri),
                form: Form::Sif,
                replace: true,
                pack: how.pack.clone(),
                time: how.time,
                definition: DefinitionOptions {
                    run: RunOptions { root: how.root, ..RunOptions::default() },
                    keeps_files: how.keeps_files,
                    ..DefinitionOptions::default()
                },
                architecture: how.architecture,
                is_data: false,
                access,
                cache: None,
            };
            super::build(&request, say)
        }
        Found::Sif(blob) => blob.fetch(path, say),
        Found::Library(file) => file.fetch(path, say),
        Found::Web { address, size_bytes, .. } => {
            let file = docker::new_file(path)?;
            let http = how.access.http(address);
            let mut open = |offset_bytes: u64| open_on_the_web(&http, address, offset_bytes);
            let total_bytes = size_bytes.unwrap_or(0);
            download::to_file(&mut open, &file, *size_bytes, &mut |_, done_bytes| {
                say(Note::Progress(Progress { stage: Stage::Fetching, done_bytes, total_bytes }));
            })?;
            docker::check_sif(&file, path)
        }
    }
}

fn open_on_the_web(http: &Http, address: &Address, offset_bytes: u64) -> Result<Box<dyn Read + Send>, RemoteError> {
    let range = (offset_bytes > 0).then(|| ("Range", format!("bytes={offset_bytes}-")));
    let request = HttpRequest {
        method: Method::GET,
        address: address.clone(),
        headers: range.into_iter().collect(),
        authorization: None,
        body: Body::Empty,
    };
    let response = http.send(&request)?;
    match response.status {
        200 | 206 => response.from_offset(offset_bytes),
        status => {
            let host = address.authority.clone();
            Err(RemoteError::Status { host, what: "the image".to_owned(), status, message: String::new() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_files() {
        for uri in [
            "docker://a",
            "oras://h.example/a:b",
            "https://h.example/x.sif",
            "oci:dir",
            "docker-archive:./x.tar",
            "nosuch://x",
        ] {
            assert!(is_uri(uri), "{uri}");
        }
        for path in ["a.sif", "./a:b", "/docker/x", "docker:a", "instance://a", "a/b://c", "://x"] {
            assert!(!is_uri(path), "{path}");
        }
    }

    #[track_caller]
    fn check(uri: &str, expected: &str) {
        assert_eq!(default_name(uri).unwrap(), expected);
    }

    #[test]
    fn a_pull_without_a_name_takes_the_last_part_and_the_tag() {
        check("docker://localhost:5000/deep/er/box:1.0", "box_1.0.sif");
        check("docker://box", "box_latest.sif");
        check("oras://localhost:5000/mine/named:v1", "named_v1.sif");
        check("library://localhost:5000/ada/tools/box:1.0", "box_1.0.sif");
        check("library://box", "box_latest.sif");
        check("http://h.example/files/cmd.sif?x=/y", "cmd.sif");
        check("https://h.example", "image.sif");
        check("docker-daemon:box", "box_latest.sif");
        check("docker-daemon://localhost/team/box:1.0", "box_1.0.sif");
        check("oci-archive:/tmp/x.tar", "x_latest.sif");
        check("oci:dir/", "dir_latest.sif");
    }
}
