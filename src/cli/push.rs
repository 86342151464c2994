//! `sifu push FILE URI`: stores a SIF file in a registry.

use super::elsewhere::{ElsewhereOptions, access};
use crate::build::source::docker::check_sif;
use crate::oci::digest::{Algorithm, Digest, Hasher};
use crate::oci::documents::{OCI_MANIFEST, SIF_LAYER};
use crate::oci::reference::Reference;
use crate::remote::RemoteError;
use crate::report::{self, Failure, failure};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The media type of the configuration that goes with a SIF file; it is empty.
const SIF_CONFIG: &str = "application/vnd.sylabs.sif.config.v1+json";

/// Stores the image at `path` where `uri` says.
pub fn run(options: &ElsewhereOptions, path: &OsStr, uri: &OsStr) -> Result<(), Failure> {
    let uri = uri.to_string_lossy();
    let place = match uri.split_once("://") {
        Some(("oras", place)) => place,
        Some((scheme @ ("library" | "docker"), _)) => {
            return Err(Failure::new(format!("pushing to {scheme}:// is not there yet in this version")).hint(
                "An image of a registry that holds the SIF file itself: `sifu push FILE oras://HOST/NAME:TAG`.",
            ));
        }
        _ => return Err(Failure::new(format!("`{uri}` is no place for images: oras://HOST/NAME:TAG is one"))),
    };
    let reference: Reference = place.parse().map_err(|error| failure(&error))?;
    let path = Path::new(path);
    let cannot_read =
        |error: io::Error| Failure::new(format!("cannot read {}: {}", path.display(), report::cause(&error)));
    let mut file = File::open(path).map_err(cannot_read)?;
    check_sif(&file, path).map_err(|_| Failure::new(format!("{} is no SIF file", path.display())))?;
    let (digest, size_bytes) = digest(&mut file).map_err(cannot_read)?;

    let registry = access(options)?.registry(&reference, true).map_err(|error| failure(&error))?;
    let open = || -> io::Result<Box<dyn Read + Send + Sync>> { Ok(Box::new(File::open(path)?)) };
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
    let stored = || -> Result<(), RemoteError> {
        registry.push_blob(&digest, size_bytes, &open)?;
        registry.push_blob(&Digest::of(config), config.len() as u64, &|| Ok(Box::new(config.as_slice())))?;
        registry.push_manifest(&reference.version(), OCI_MANIFEST, manifest.to_string().as_bytes())
    };
    stored().map_err(|error| failure(&error))?;
    report::info(format_args!("Pushed {} to {uri}", path.display()));
    Ok(())
}

fn digest(file: &mut File) -> io::Result<(Digest, u64)> {
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
