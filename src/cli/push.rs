//! `sifu push FILE URI`: stores a SIF file in a registry or a library, as it is or as an image that other runtimes run.
//!
//! ```text
//! oras://    the file is the one layer
//! library:// in `library`
//! docker://  SquashFS ──► Tree ──► tar ──► gzip ──► registry     digests are known at the end: configuration, manifest
//! ```
//!
//! Nothing is unpacked, and nothing is written to disk.

use super::elsewhere::{ElsewhereOptions, access, watched};
use super::library::LibraryOptions;
use crate::build::Note;
use crate::build::processors;
use crate::build::source::docker::check_sif;
use crate::image::{self, ImageError, metadata};
use crate::oci::digest::{Algorithm, Digest, Hasher};
use crate::oci::documents::{OCI_CONFIG, OCI_GZIP_LAYER, OCI_MANIFEST, SIF_LAYER};
use crate::oci::exported::{self, Said};
use crate::oci::gzip::gzip;
use crate::oci::reference::Reference;
use crate::oci::write_tar::{self, LeftOut, write_tar};
use crate::remote::RemoteError;
use crate::remote::counted::Counted;
use crate::remote::registry::Registry;
use crate::report::{self, Failure, failure};
use crate::sif::{Arch, CONFIG_OBJECT, Time};
use crate::squashfs::PathReader;
use crate::squashfs::write::{Progress, Stage};
use crate::tree::Tree;
use serde_json::json;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The media type of the configuration that goes with a SIF file; it is empty.
const SIF_CONFIG: &str = "application/vnd.sylabs.sif.config.v1+json";
/// How often is looked how far a transfer is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Stores the image at `path` where `uri` says.
pub fn run(library: &LibraryOptions, options: &ElsewhereOptions, path: &OsStr, uri: &OsStr) -> Result<(), Failure> {
    let uri = uri.to_string_lossy();
    let (is_file, place) = match uri.split_once("://") {
        Some(("oras", place)) => (true, place),
        Some(("docker", place)) => (false, place),
        Some(("library", place)) => return super::library::push(library, options, Path::new(path), place),
        _ => {
            return Err(Failure::new(format!(
                "`{uri}` is no place for images: oras://HOST/NAME:TAG, docker://HOST/NAME:TAG and \
                 library://ENTITY/COLLECTION/NAME:TAG are"
            )));
        }
    };
    if library.description.is_some() {
        report::warning("a registry keeps no description: --description has no effect");
    }
    let reference: Reference = place.parse().map_err(|error| failure(&error))?;
    let path = Path::new(path);
    let cannot_read =
        |error: io::Error| Failure::new(format!("cannot read {}: {}", path.display(), report::cause(&error)));
    let mut file = File::open(path).map_err(cannot_read)?;
    check_sif(&file, path).map_err(|_| Failure::new(format!("{} is no SIF file", path.display())))?;
    let registry = access(options)?.registry(&reference, true).map_err(|error| failure(&error))?;
    if is_file {
        let (digest, size_bytes) = digest_of_file(&mut file).map_err(cannot_read)?;
        let done_bytes = Arc::new(AtomicU64::new(0));
        watching(size_bytes, &done_bytes, || push_file(&registry, path, &digest, size_bytes, &done_bytes))?;
    } else {
        push_layers(&registry, path)?;
    }
    report::info(format_args!("Pushed {} to {uri}", path.display()));
    Ok(())
}

/// Stores the file itself.
fn push_file(
    registry: &Registry,
    path: &Path,
    digest: &Digest,
    size_bytes: u64,
    done_bytes: &Arc<AtomicU64>,
) -> Result<(), RemoteError> {
    let open = || -> io::Result<Box<dyn Read + Send + Sync>> {
        done_bytes.store(0, Ordering::Relaxed);
        Ok(Box::new(Counted { stream: File::open(path)?, done_bytes: done_bytes.clone() }))
    };
    let title = path.file_name().unwrap_or_default().to_string_lossy();
    let config = b"{}";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": SIF_CONFIG, "digest": Digest::of(config).to_string(), "size": config.len() },
        "layers": [{
            "mediaType": SIF_LAYER,
            "digest": digest.to_string(),
            "size": size_bytes,
            "annotations": { "org.opencontainers.image.title": title },
        }],
    });
    registry.push_blob(digest, size_bytes, &open)?;
    push_small(registry, config)?;
    registry.push_manifest(&registry.reference.version(), OCI_MANIFEST, manifest.to_string().as_bytes())
}

/// Stores the root file system as a layer, with a configuration that other runtimes understand.
fn push_layers(registry: &Registry, path: &Path) -> Result<(), Failure> {
    let failed = |error: ImageError| failure(&error);
    let opened = image::open_to_read(path.as_os_str()).map_err(failed)?;
    let kept = opened.object(CONFIG_OBJECT);
    let architecture = opened.facts.architecture.unwrap_or_else(|| Arch::host().name());
    // A SIF file is no directory.
    let reader = opened
        .into_partition()
        .map_err(failed)?
        .ok_or_else(|| Failure::new(format!("{} was replaced by a directory", path.display())))?;
    let collected = metadata::collect(&PathReader::new(reader.clone()))
        .map_err(|source| failed(ImageError::Lookup { path: path.into(), source }))?;
    let created = Time(reader.superblock().mtime.into()).to_string().replacen(' ', "T", 1).replace(" +0000 UTC", "Z");
    let name = path.display().to_string();
    let tree = Arc::new(reader.into_tree(&name).map_err(|error| failure(&error))?);
    let done_bytes = Arc::new(AtomicU64::new(0));
    let left_out = watching(write_tar::content_bytes(&tree), &done_bytes, || {
        let (layer, diff_id, left_out) = push_layer(registry, &tree, &done_bytes)?;
        let config = exported::configuration(
            &Said {
                kept: kept.as_deref(),
                runscript: &collected.metadata.runscript,
                environment: &collected.metadata.environment,
                labels: &collected.metadata.labels,
                architecture,
                created: &created,
            },
            &diff_id,
        );
        push_small(registry, &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": Digest::of(&config).to_string(), "size": config.len() },
            "layers": [{ "mediaType": OCI_GZIP_LAYER, "digest": layer.0.to_string(), "size": layer.1 }],
        });
        registry.push_manifest(&registry.reference.version(), OCI_MANIFEST, manifest.to_string().as_bytes())?;
        Ok(left_out)
    })?;
    if left_out.sockets > 0 {
        report::warning(format_args!("{} sockets are left out: layers hold none", left_out.sockets));
    }
    if left_out.whiteout_names > 0 {
        let count = left_out.whiteout_names;
        report::warning(format_args!(
            "{count} files below names in `.wh.` are left out: in layers such names remove files"
        ));
    }
    Ok(())
}

/// Sends the layer of a tree: its digest and size, and the digest of what is in it.
fn push_layer(
    registry: &Registry,
    tree: &Arc<Tree>,
    done_bytes: &Arc<AtomicU64>,
) -> Result<((Digest, u64), Digest, LeftOut), RemoteError> {
    let threads = processors::usable(&processors::observe(), None);
    // Of the last attempt.
    let result = Arc::new(Mutex::new((None, LeftOut::default())));
    let open = || -> io::Result<Box<dyn Read + Send + Sync>> {
        done_bytes.store(0, Ordering::Relaxed);
        let (tree, done_bytes, told) = (tree.clone(), done_bytes.clone(), result.clone());
        let (stream, uncompressed) = gzip(threads, move |out| {
            let left_out = write_tar(&tree, &mut Counted { stream: out, done_bytes })?;
            told.lock().unwrap_or_else(PoisonError::into_inner).1 = left_out;
            Ok(())
        });
        result.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(uncompressed);
        Ok(Box::new(stream))
    };
    let layer = registry.push_stream(&open)?;
    let result = result.lock().unwrap_or_else(PoisonError::into_inner);
    let diff_id = result.0.as_ref().and_then(|uncompressed| uncompressed.digest());
    let ended = || RemoteError::Upload { source: io::Error::other("the layer was not sent to its end") };
    Ok((layer, diff_id.ok_or_else(ended)?, result.1.clone()))
}

fn push_small(registry: &Registry, bytes: &[u8]) -> Result<(), RemoteError> {
    let open = || -> io::Result<Box<dyn Read + Send + Sync>> { Ok(Box::new(io::Cursor::new(bytes.to_vec()))) };
    registry.push_blob(&Digest::of(bytes), bytes.len() as u64, &open)
}

/// Does some work on a thread of its own, and shows how far it is meanwhile.
pub fn watching<T: Send>(
    total_bytes: u64,
    done_bytes: &AtomicU64,
    work: impl FnOnce() -> Result<T, RemoteError> + Send,
) -> Result<T, Failure> {
    watched(|say| {
        let watcher = std::thread::current();
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let done = work();
                watcher.unpark();
                done
            });
            while !worker.is_finished() {
                let done_bytes = done_bytes.load(Ordering::Relaxed);
                say(Note::Progress(Progress { stage: Stage::Sending, done_bytes, total_bytes }));
                std::thread::park_timeout(LOOK_EVERY);
            }
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// The digest of a file and its size.
pub fn digest_of_file(file: &mut File) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut size_bytes = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size_bytes)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size_bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
