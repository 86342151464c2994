//! Fetches what an archive has: its release file, its indexes, its packages.
//!
//! ```text
//! URI/dists/SUITE/InRelease                          signed; or Release and Release.gpg
//! URI/dists/SUITE/main/binary-amd64/Packages.xz      its digest stands in the release file
//! URI/pool/main/d/dpkg/dpkg_1.21.22_amd64.deb        its digest stands in the index
//! ```

use super::DebootstrapError;
use super::signature::{self, Signed};
use crate::build::{BuildError, Note};
use crate::debian::deb;
use crate::debian::index::Package;
use crate::debian::release::{self, Listed, Release};
use crate::debian::sources::Repository;
use crate::oci::digest::{Algorithm, Hasher};
use crate::remote::RemoteError;
use crate::remote::http::{Address, Body, Http, Method, Request};
use crate::squashfs::write::{Progress, Stage};
use starter::paths::HostPath;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Packages that are fetched at the same time.
const PARALLEL: usize = 6;
/// How often a package is tried.
const TRIES: u32 = 4;
/// Most bytes of an index, unpacked; Debian's main has 55 MB.
const MAX_INDEX_BYTES: u64 = 1 << 30;

/// One suite of an archive.
pub(super) struct Suite {
    pub repository: Repository,
    pub release: Release,
    /// Whether it was meant to be believed until a day that is past.
    pub is_out_of_date: bool,
    /// The texts of its indexes, and where they come from.
    pub indexes: Vec<(String, String)>,
}

/// Fetches what a suite says of itself.
pub(super) fn fetch_suite(
    http: &Http,
    repository: &Repository,
    architecture: &str,
    work: &Path,
) -> Result<Suite, DebootstrapError> {
    let top = format!("{}/dists/{}", repository.uri, repository.suite);
    let (address, text) = fetch_release(http, repository, &top, work)?;
    let text = String::from_utf8_lossy(&text);
    let release =
        Release::parse(&text).map_err(|source| DebootstrapError::Release { address: address.clone(), source })?;
    if !release.is_of(&repository.suite) {
        let (wanted, found) = (repository.suite.clone(), release.codename);
        return Err(DebootstrapError::OtherSuite { address, wanted, found });
    }
    let mut indexes = Vec::new();
    for component in &repository.components {
        let name = format!("{component}/binary-{architecture}/Packages");
        let forms = [".xz", ".gz", ""].map(|suffix| format!("{name}{suffix}"));
        let form = forms.iter().find_map(|form| release.listed(form).map(|listed| (form, listed)));
        let Some((form, listed)) = form else {
            if component == "main" {
                let what = format!("{address} has no packages for {architecture}");
                return Err(DebootstrapError::NotThere { what });
            }
            continue;
        };
        let address = format!("{top}/{form}");
        let packed = checked(http, &address, listed)?;
        indexes.push((address.clone(), index_text(&address, form, packed, release.listed(&name))?));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    let is_out_of_date = release.valid_until.is_some_and(|until| until < now);
    Ok(Suite { repository: repository.clone(), release, is_out_of_date, indexes })
}

/// The release file without its signature, and where it was.
fn fetch_release(
    http: &Http,
    repository: &Repository,
    top: &str,
    work: &Path,
) -> Result<(String, Vec<u8>), DebootstrapError> {
    let inside = format!("{top}/InRelease");
    match bytes(http, &inside, release::MAX_BYTES) {
        Ok(found) if repository.is_trusted => Ok((inside, without_signature(&found))),
        Ok(found) => {
            let text = signature::verify(&inside, &Signed::Inside(&found), &repository.signed_by, work)?;
            Ok((inside, text))
        }
        Err(DebootstrapError::NotThere { .. }) => {
            let address = format!("{top}/Release");
            let text = bytes(http, &address, release::MAX_BYTES)?;
            if repository.is_trusted {
                return Ok((address, text));
            }
            let signature = bytes(http, &format!("{top}/Release.gpg"), release::MAX_BYTES);
            let signature = signature.map_err(|error| match error {
                DebootstrapError::NotThere { .. } => {
                    DebootstrapError::Signature { address: address.clone(), why: "it has no signature".to_owned() }
                }
                other => other,
            })?;
            let signed = Signed::Beside { text: &text, signature: &signature };
            let text = signature::verify(&address, &signed, &repository.signed_by, work)?;
            Ok((address, text))
        }
        Err(error) => Err(error),
    }
}

/// What stands between the lines of a signature that nobody looks at.
fn without_signature(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let body = match text.split_once("-----BEGIN PGP SIGNED MESSAGE-----") {
        // Headers of the armor end with an empty line.
        Some((_, rest)) => rest.split_once("\n\n").map_or(rest, |(_, body)| body),
        None => &text,
    };
    body.split("-----BEGIN PGP SIGNATURE-----").next().unwrap_or_default().as_bytes().to_vec()
}

/// An index, unpacked. `plain` is what the release file states of it.
fn index_text(address: &str, form: &str, packed: Vec<u8>, plain: Option<&Listed>) -> Result<String, DebootstrapError> {
    let failed = |error: io::Error| DebootstrapError::Fetch {
        address: address.to_owned(),
        why: format!("it can't be unpacked: {}", crate::report::cause(&error)),
    };
    let limit = plain.map_or(MAX_INDEX_BYTES, |listed| listed.size_bytes.min(MAX_INDEX_BYTES));
    let mut text = Vec::new();
    let mut read = |source: &mut dyn Read| source.take(limit + 1).read_to_end(&mut text);
    let length = if form.ends_with(".xz") {
        deb::xz(&packed[..]).and_then(|mut source| read(&mut source))
    } else if form.ends_with(".gz") {
        read(&mut flate2::bufread::MultiGzDecoder::new(&packed[..]))
    } else {
        read(&mut &packed[..])
    };
    let length = length.map_err(failed)?;
    if length as u64 > limit {
        return Err(failed(io::Error::other("it is larger than it says")));
    }
    Ok(String::from_utf8(text).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Fetches packages into `directory`, which is made, and compares their digests.
pub(super) fn fetch_packages(
    http: &Http,
    packages: &[&Package],
    suites: &[Suite],
    directory: &Path,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    let made = std::fs::create_dir(directory);
    made.map_err(|source| DebootstrapError::System { doing: "make", path: HostPath::new(directory), source })?;
    let total_bytes = packages.iter().fold(0_u64, |sum, package| sum.saturating_add(package.size_bytes));
    say(Note::Doing(&format!("Fetching {} packages, {}...", packages.len(), crate::build::room::size(total_bytes))));
    let next = AtomicUsize::new(0);
    let stops = AtomicBool::new(false);
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(packages.len()) {
            let sender = sender.clone();
            let (next, stops) = (&next, &stops);
            scope.spawn(move || {
                while !stops.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(package) = packages.get(index) else { return };
                    let Some(suite) = suites.get(package.repository) else { return };
                    if let Err(error) = fetch_package(http, package, &suite.repository, directory, &sender) {
                        stops.store(true, Ordering::Relaxed);
                        // Nobody listens once another one failed.
                        let _ = sender.send(Err((index, error)));
                    }
                }
            });
        }
        drop(sender);
        let mut done_bytes = 0_u64;
        // The first package of the list that fails, and not the first to say so: what was begun before it is awaited, so
        // that the same archive always gives the same error.
        let mut failure: Option<(usize, DebootstrapError)> = None;
        for message in receiver {
            match message {
                Ok(count) => {
                    done_bytes = done_bytes.saturating_add(count).min(total_bytes);
                    say(Note::Progress(Progress { stage: Stage::Fetching, done_bytes, total_bytes }));
                }
                Err(later) if failure.as_ref().is_some_and(|first| first.0 < later.0) => {}
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |(_, error)| Err(error.into()))
    })
}

/// Fetches one package, again where that can help, and tells how many bytes came.
fn fetch_package(
    http: &Http,
    package: &Package,
    repository: &Repository,
    directory: &Path,
    came: &Sender<Result<u64, (usize, DebootstrapError)>>,
) -> Result<(), DebootstrapError> {
    let address = format!("{}/{}", repository.uri, package.file_name);
    let listed = Listed { digest: package.digest.clone(), size_bytes: package.size_bytes };
    let path = directory.join(super::file_name(package));
    again(|| {
        let failed = |doing| {
            let path = HostPath::new(&*path);
            move |source| DebootstrapError::System { doing, path, source }
        };
        let mut file = File::create(&path).map_err(failed("make"))?;
        receive(http, &address, &listed, &mut |bytes| {
            // Nobody listens once another one failed.
            let _ = came.send(Ok(bytes.len() as u64));
            file.write_all(bytes).map_err(failed("write"))
        })
    })
}

/// A file whose digest is known, in memory.
fn checked(http: &Http, address: &str, listed: &Listed) -> Result<Vec<u8>, DebootstrapError> {
    if listed.size_bytes > MAX_INDEX_BYTES {
        return Err(DebootstrapError::Size { address: address.to_owned(), expected: listed.size_bytes });
    }
    again(|| {
        let mut all = Vec::new();
        receive(http, address, listed, &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(all)
    })
}

/// Reads all of a file, and compares its size and digest with those that are known.
fn receive(
    http: &Http,
    address: &str,
    listed: &Listed,
    take: &mut dyn FnMut(&[u8]) -> Result<(), DebootstrapError>,
) -> Result<(), DebootstrapError> {
    const PIECE_BYTES: usize = 256 << 10;
    let mut source = open(http, address)?.take(listed.size_bytes.saturating_add(1));
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut read_bytes = 0;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                read_bytes += count as u64;
                hasher.update(&buffer[..count]);
                take(&buffer[..count])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(address, &error)),
        }
    }
    if read_bytes != listed.size_bytes {
        return Err(DebootstrapError::Size { address: address.to_owned(), expected: listed.size_bytes });
    }
    let found = hasher.finish();
    if found != listed.digest {
        let (address, expected) = (address.to_owned(), listed.digest.clone());
        return Err(DebootstrapError::Digest { address, expected, found });
    }
    Ok(())
}

/// A file of which nothing is known but that it is no larger than `limit` bytes.
pub(super) fn bytes(http: &Http, address: &str, limit: u64) -> Result<Vec<u8>, DebootstrapError> {
    again(|| {
        let mut bytes = Vec::new();
        let read = open(http, address)?.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| broken(address, &error))?;
        if bytes.len() as u64 > limit {
            let why = format!("it is larger than {limit} bytes");
            return Err(DebootstrapError::Fetch { address: address.to_owned(), why });
        }
        Ok(bytes)
    })
}

fn broken(address: &str, error: &io::Error) -> DebootstrapError {
    DebootstrapError::Fetch { address: address.to_owned(), why: crate::report::cause(error) }
}

/// Tries again what broke off, after a pause that doubles.
fn again<T>(mut attempt: impl FnMut() -> Result<T, DebootstrapError>) -> Result<T, DebootstrapError> {
    let mut pause = Duration::from_millis(500);
    for _ in 1..TRIES {
        match attempt() {
            Err(DebootstrapError::Fetch { .. } | DebootstrapError::Size { .. }) => std::thread::sleep(pause),
            answer => return answer,
        }
        pause *= 2;
    }
    attempt()
}

/// Opens a file of an archive.
fn open(http: &Http, address: &str) -> Result<Box<dyn Read + Send>, DebootstrapError> {
    let not_there = || DebootstrapError::NotThere { what: address.to_owned() };
    if let Some(path) = address.strip_prefix("file:") {
        // `file:///srv` and `file:/srv` are the same.
        let path = format!("/{}", path.trim_start_matches('/'));
        return match File::open(path) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_there()),
            Err(error) => Err(broken(address, &error)),
        };
    }
    let failed = |error: RemoteError| DebootstrapError::Remote { address: address.to_owned(), source: Box::new(error) };
    let request = Request {
        method: Method::GET,
        address: Address::parse(address).map_err(failed)?,
        headers: Vec::new(),
        authorization: None,
        body: Body::Empty,
    };
    let response = http.send(&request).map_err(failed)?;
    match response.status {
        200 => Ok(response.body),
        404 | 410 => Err(not_there()),
        status => Err(DebootstrapError::Status { address: address.to_owned(), status }),
    }
}
