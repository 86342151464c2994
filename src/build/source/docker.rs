//! The agents `docker` and `oras`: images in a registry, as layers or as the SIF file itself.

use super::Fetching;
use super::layered::{Blob, Blobs, Layered, layer_blob};
use crate::build::{BuildError, Note, Transfer};
use crate::cache::Kind;
use crate::def::Header;
use crate::oci::digest::{Digest, Hasher};
use crate::oci::documents::{Descriptor, Document, DocumentError, ImageConfig, Manifest, Platform, SIF_LAYER, choose};
use crate::oci::reference::Reference;
use crate::remote::RemoteError;
use crate::remote::access::{Access, Way};
use crate::remote::download::{self, Downloads};
use crate::remote::registry::Registry;
use crate::squashfs::write::{Progress, Stage};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much of a digest is shown for a blob on its way, as other tools do.
const SHOWN_DIGITS: usize = 12;
/// Most indexes on the way to an image.
const MAX_INDEXES: usize = 4;

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerImage {
    pub reference: Reference,
}

/// A SIF file in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrasImage {
    pub reference: Reference,
}

/// What a reference turned out to mean.
pub struct Resolved {
    registry: Registry,
    manifest: Manifest,
    /// The manifest's own digest.
    pub digest: Digest,
    /// Whether an index named the platform.
    is_chosen: bool,
}

/// The reference of a header: `From`, below `Registry` and `Namespace` where those are said.
pub(super) fn reference(header: &Header) -> Result<Reference, BuildError> {
    let lacks = || BuildError::HeaderLacks { agent: header.agent(), key: "From" };
    let from = header.get("from").ok_or_else(lacks)?;
    let parts = [header.get("registry"), header.get("namespace"), Some(from)];
    let text = parts.into_iter().flatten().map(|part| part.trim_matches('/')).collect::<Vec<_>>().join("/");
    text.parse().map_err(|error| BuildError::Reference(Box::new(error)))
}

/// Finds the manifest that a reference means on a platform.
pub fn resolve(reference: &Reference, access: &Access, wanted: &Platform) -> Result<Resolved, BuildError> {
    let mut last = None;
    let mut skips_next = false;
    for Way { registry, is_first_of_two } in access.ways(reference)? {
        if std::mem::replace(&mut skips_next, false) {
            continue;
        }
        match resolve_in(registry, access, wanted) {
            Ok(resolved) => return Ok(resolved),
            Err(error) => {
                // Without encryption only where nobody answers with it: an answer is an answer.
                skips_next = is_first_of_two && !matches!(error, RemoteError::Connection { .. });
                last = Some(error);
            }
        }
    }
    // The registry itself is asked last: what it says counts.
    Err(last.unwrap_or(RemoteError::NotFound { what: reference.to_string() }).into())
}

fn resolve_in(registry: Registry, access: &Access, wanted: &Platform) -> Result<Resolved, RemoteError> {
    let reference = registry.reference.clone();
    let mut version = access.pinned.as_ref().map_or_else(|| reference.version(), Digest::to_string);
    let mut is_chosen = access.pinned.is_some();
    for _ in 0..MAX_INDEXES {
        let fetched = registry.manifest(&version)?;
        let failed = |source| RemoteError::Document { what: reference.to_string(), source };
        match Document::parse(&fetched.bytes).map_err(failed)? {
            Document::Index(entries) => {
                version = choose(&entries, wanted).map_err(failed)?.digest.to_string();
                is_chosen = true;
            }
            Document::Manifest(manifest) => {
                // By another algorithm it was checked when it was fetched.
                let digest = version.parse().unwrap_or(fetched.digest);
                return Ok(Resolved { registry, manifest, digest, is_chosen });
            }
        }
    }
    Err(RemoteError::Document { what: reference.to_string(), source: DocumentError::Neither })
}

impl DockerImage {
    /// Begins to fetch the layers; those in flight lie in files without names in `directory`.
    pub fn open(&self, access: &Access, wanted: &Platform, directory: &Path) -> Result<Layered, BuildError> {
        let Resolved { registry, manifest, is_chosen, .. } = resolve(&self.reference, access, wanted)?;
        let failed = |source| RemoteError::Document { what: self.reference.to_string(), source };
        let Descriptor { media_type, digest, size_bytes, .. } = &manifest.config;
        if !media_type.is_empty() && !media_type.contains("image") {
            return Err(failed(DocumentError::NoImage { media_type: media_type.clone() }).into());
        }
        let config_bytes = registry.small_blob(digest, *size_bytes)?;
        let config = ImageConfig::parse(&config_bytes).map_err(failed)?;
        if !is_chosen {
            config.check_platform(wanted).map_err(failed)?;
        }
        let blobs: Vec<Blob> = manifest.layers.iter().enumerate().map(|(n, layer)| layer_blob(n, layer)).collect();
        // The uppermost is read first.
        let wanted = manifest.layers.iter().rev().map(|layer| download::Blob {
            digest: layer.digest.clone(),
            size_bytes: layer.size_bytes,
            urls: layer.urls.clone(),
        });
        let downloads = Downloads::begin(registry, directory, wanted.collect());
        Ok(Layered::new(Arc::new(Arriving(downloads)), blobs, config, config_bytes))
    }
}

/// Blobs that are read while they arrive.
struct Arriving(Downloads);

impl Blobs for Arriving {
    fn open(&self, blob: &Blob) -> io::Result<Box<dyn Read + Send + '_>> {
        let digest = blob.digest.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(self.0.open(digest)?))
    }

    fn transfers(&self) -> Vec<Transfer> {
        let under_way = self.0.under_way().into_iter();
        let transfer = |(digest, done_bytes, total_bytes): (&Digest, u64, u64)| {
            let name = digest.hex()[..SHOWN_DIGITS].to_owned();
            Transfer { name, done_bytes, total_bytes }
        };
        under_way.map(transfer).collect()
    }
}

/// The blob of a SIF file in a registry.
pub struct SifBlob {
    registry: Registry,
    pub digest: Digest,
    pub size_bytes: u64,
}

impl OrasImage {
    /// The image's file: that of the cache, or one beside the build where nothing is kept.
    pub(super) fn file(&self, fetching: &mut Fetching) -> Result<PathBuf, BuildError> {
        let blob = self.resolve(fetching.access)?;
        match fetching.cache {
            Some(cache) => Ok(cache.obtain(Kind::Oras, blob.digest.hex(), |path| blob.fetch(path, fetching.say))?),
            None => {
                let path = fetching.work.join("fetched.sif");
                blob.fetch(&path, fetching.say).map(|()| path)
            }
        }
    }

    /// Finds the file.
    pub fn resolve(&self, access: &Access) -> Result<SifBlob, BuildError> {
        let host = Platform::default();
        let Resolved { registry, manifest, .. } = resolve(&self.reference, access, &host)?;
        match manifest.layers.as_slice() {
            [only] if only.media_type == SIF_LAYER => {
                Ok(SifBlob { registry, digest: only.digest.clone(), size_bytes: only.size_bytes })
            }
            _ => {
                let media_type = manifest.layers.first().map(|layer| layer.media_type.clone()).unwrap_or_default();
                let source = DocumentError::NoImage { media_type };
                Err(RemoteError::Document { what: self.reference.to_string(), source }.into())
            }
        }
    }
}

impl SifBlob {
    /// Fetches the file to `path` and checks it.
    pub fn fetch(&self, path: &Path, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
        let mut open = |offset_bytes| self.registry.blob(&self.digest, offset_bytes);
        fetch_sif(&mut open, &self.digest, Some(self.size_bytes), path, say)
    }
}

/// Fetches a SIF file of a known digest to `path`; `open` gives it from some offset.
pub fn fetch_sif(
    open: &mut dyn FnMut(u64) -> Result<Box<dyn Read + Send>, RemoteError>,
    digest: &Digest,
    size_bytes: Option<u64>,
    path: &Path,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    let file = new_file(path)?;
    let mut hasher = Hasher::new(digest.algorithm());
    let total_bytes = size_bytes.unwrap_or(0);
    download::to_file(open, &file, size_bytes, &mut |bytes, done_bytes| {
        hasher.update(bytes);
        say(Note::Progress(Progress { stage: Stage::Fetching, done_bytes, total_bytes }));
    })?;
    let found = hasher.finish();
    if found != *digest {
        let expected = digest.clone();
        return Err(RemoteError::Digest { what: "the image".to_owned(), expected, found }.into());
    }
    check_sif(&file, path)
}

/// Makes the file of an image, executable within the limits of the umask.
pub fn new_file(path: &Path) -> Result<File, BuildError> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = File::options().read(true).write(true).create(true).truncate(true).mode(0o755).open(path);
    opened.map_err(|source| RemoteError::Local { doing: "write", path: path.display().to_string(), source }.into())
}

/// Checks that what was fetched is a SIF file.
pub fn check_sif(file: &File, path: &Path) -> Result<(), BuildError> {
    let mut start = [0; 42];
    let read = file.read_exact_at(&mut start, 0);
    if read.is_ok() && start[32..].starts_with(b"SIF_MAGIC") {
        return Ok(());
    }
    Err(BuildError::NoSif { path: path.display().to_string() })
}
