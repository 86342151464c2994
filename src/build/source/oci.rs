//! The agents `oci` and `oci-archive`: an image layout as a directory, or in a tar archive.
//!
//! ```text
//! oci-layout            {"imageLayoutVersion":"1.0.0"}
//! index.json            the images, each with its name in an annotation
//! blobs/sha256/HEX      documents and layers
//! ```

use super::archive::Archive;
use super::layered::{Blob, Blobs, Layered, LayeredError, check_digest, layer_blob};
use crate::oci::digest::{Digest, Hasher};
use crate::oci::documents::{
    Descriptor, Document, DocumentError, ImageConfig, MAX_DOCUMENT_BYTES, Manifest, Platform, choose,
};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most indexes on the way to an image.
const MAX_INDEXES: usize = 4;

/// An image in a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciLayout {
    /// The directory or file, then perhaps `:NAME` for one of several images.
    pub from: String,
    pub is_archive: bool,
}

/// Files by their names in a layout.
pub trait LayoutFiles: Send + Sync {
    fn open_file(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>>;
}

impl LayoutFiles for Archive {
    fn open_file(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        Archive::open_file(self, name)
    }
}

/// A layout that is a directory.
struct Directory(PathBuf);

impl LayoutFiles for Directory {
    fn open_file(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        // Names are made here: documents, and digests that were checked.
        Ok(Box::new(File::open(self.0.join(name))?))
    }
}

struct LayoutBlobs<F>(F);

impl<F: LayoutFiles> Blobs for LayoutBlobs<F> {
    fn open(&self, blob: &Blob) -> io::Result<Box<dyn Read + Send + '_>> {
        let digest = blob.digest.as_ref().ok_or(io::ErrorKind::NotFound)?;
        self.0.open_file(&blob_path(digest))
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm_name(), digest.hex())
}

impl OciLayout {
    /// Opens the layout and reads what it says.
    pub fn open(&self, wanted: &Platform) -> Result<Layered, LayeredError> {
        let (path, name) = split(&self.from);
        let place = path.to_owned();
        if self.is_archive {
            return image(Archive::open(Path::new(path))?, &place, name, wanted);
        }
        image(Directory(PathBuf::from(path)), &place, name, wanted)
    }
}

fn image<F: LayoutFiles + 'static>(
    files: F,
    place: &str,
    name: Option<&str>,
    wanted: &Platform,
) -> Result<Layered, LayeredError> {
    let index = document(&files, "index.json", place)?;
    let failed = |what: &str| {
        let what = format!("{what} of {place}");
        move |source| LayeredError::Document { what, source }
    };
    let Document::Index(entries) = Document::parse(&index).map_err(failed("index.json"))? else {
        return Err(failed("index.json")(DocumentError::Neither));
    };
    let mut entry = named(entries, name, place, wanted)?;
    let mut is_chosen = false;
    let mut manifest = None;
    for _ in 0..MAX_INDEXES {
        let what = entry.digest.to_string();
        let bytes = checked_document(&files, &entry, place)?;
        match Document::parse(&bytes).map_err(failed(&what))? {
            Document::Index(entries) => {
                entry = choose(&entries, wanted).map_err(failed(&what))?.clone();
                is_chosen = true;
            }
            Document::Manifest(found) => {
                manifest = Some(found);
                break;
            }
        }
    }
    let what = entry.digest.to_string();
    let Manifest { config: config_descriptor, layers, .. } =
        manifest.ok_or_else(|| failed(&what)(DocumentError::Neither))?;
    let config_bytes = checked_document(&files, &config_descriptor, place)?;
    let config = ImageConfig::parse(&config_bytes).map_err(failed(&what))?;
    if !is_chosen {
        config.check_platform(wanted).map_err(failed(&what))?;
    }
    let mut blobs = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        if let Err(error) = files.open_file(&blob_path(&layer.digest)) {
            if error.kind() == io::ErrorKind::NotFound && !layer.urls.is_empty() {
                let what = format!("layer {} of {place}", number + 1);
                return Err(LayeredError::Foreign { what, urls: layer.urls.clone() });
            }
            return Err(read_error(error, &blob_path(&layer.digest), place));
        }
        blobs.push(layer_blob(number, layer));
    }
    Ok(Layered::new(Arc::new(LayoutBlobs(files)), blobs, config, config_bytes))
}

/// The entry of a layout's index: that of the name, or the only one, or the one for the platform.
fn named(
    entries: Vec<Descriptor>,
    name: Option<&str>,
    place: &str,
    wanted: &Platform,
) -> Result<Descriptor, LayeredError> {
    let names = || entries.iter().filter_map(Descriptor::name).map(str::to_owned).collect::<Vec<_>>();
    if let Some(name) = name {
        let found = entries.iter().find(|entry| entry.name() == Some(name) || entry.digest.to_string() == name);
        let place = place.to_owned();
        return found.cloned().ok_or_else(|| LayeredError::NoImage { place, wanted: name.to_owned(), names: names() });
    }
    if let [only] = entries.as_slice() {
        return Ok(only.clone());
    }
    // Without names, the entries can be one image for several machines.
    if !entries.is_empty() && entries.iter().all(|entry| entry.platform.is_some()) {
        let failed = |source| LayeredError::Document { what: format!("index.json of {place}"), source };
        return choose(&entries, wanted).cloned().map_err(failed);
    }
    match entries.is_empty() {
        true => Err(LayeredError::Missing { what: "image".to_owned(), place: place.to_owned() }),
        false => Err(LayeredError::WhichImage { place: place.to_owned(), names: names() }),
    }
}

/// Reads a document whose digest is known.
fn checked_document(files: &dyn LayoutFiles, descriptor: &Descriptor, place: &str) -> Result<Vec<u8>, LayeredError> {
    let bytes = document(files, &blob_path(&descriptor.digest), place)?;
    let mut hasher = Hasher::new(descriptor.digest.algorithm());
    hasher.update(&bytes);
    check_digest(&format!("{} of {place}", descriptor.digest), &descriptor.digest, hasher.finish())?;
    Ok(bytes)
}

/// Reads a document of an image.
pub fn document(files: &dyn LayoutFiles, name: &str, place: &str) -> Result<Vec<u8>, LayeredError> {
    let mut bytes = Vec::new();
    let opened = files.open_file(name).map_err(|error| read_error(error, name, place))?;
    opened.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| read_error(error, name, place))?;
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(LayeredError::TooLarge { what: format!("{name} of {place}"), limit: MAX_DOCUMENT_BYTES });
    }
    Ok(bytes)
}

/// Reads JSON.
pub fn parsed<T: DeserializeOwned>(what: &'static str, place: &str, bytes: &[u8]) -> Result<T, LayeredError> {
    serde_json::from_slice(bytes).map_err(|error| LayeredError::Document {
        what: place.to_owned(),
        source: DocumentError::Json { what, reason: error.to_string() },
    })
}

fn read_error(error: io::Error, name: &str, place: &str) -> LayeredError {
    match error.kind() {
        io::ErrorKind::NotFound => LayeredError::Missing { what: name.to_owned(), place: place.to_owned() },
        _ => LayeredError::Read { what: format!("{name} of {place}"), source: error },
    }
}

/// Parts the place from the image's name, which begins at the last colon unless that belongs to the place.
fn split(from: &str) -> (&str, Option<&str>) {
    if Path::new(from).exists() {
        return (from, None);
    }
    // A digest as the name has a colon of its own.
    let at = from.find(":sha256:").or_else(|| from.rfind(':').filter(|&at| !from[at..].contains('/')));
    match at {
        Some(at) if at + 1 < from.len() => (&from[..at], Some(&from[at + 1..])),
        Some(at) => (&from[..at], None),
        None => (from, None),
    }
}
