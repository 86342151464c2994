//! The agent `docker-archive`: what `docker save` and `podman save` write.
//!
//! ```text
//! manifest.json     [{"Config":"HEX.json","RepoTags":["name:tag"],"Layers":["HEX/layer.tar", ...]}, ...]
//! HEX.json          the configuration, whose `diff_ids` say what the layers must be
//! HEX/layer.tar     a layer
//! ```

use super::archive::Archive;
use super::layered::{Blob, Blobs, Layered, LayeredError};
use super::oci::{document, parsed};
use crate::oci::documents::{DocumentError, ImageConfig, MAX_LAYERS, Platform};
use serde::Deserialize;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// An image in an archive of Docker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerArchive {
    /// The file, then perhaps `:NAME` or `:NAME:TAG` or `:@NUMBER` for one of several images.
    pub from: String,
}

/// A row of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl DockerArchive {
    /// Opens the archive and reads what it says.
    pub fn open(&self, wanted: &Platform) -> Result<Layered, LayeredError> {
        let (path, name) = split(&self.from);
        image(Archive::open(Path::new(path))?, name, wanted)
    }
}

/// Reads what an archive says of an image; of several, `name` is meant.
pub(super) fn image(archive: Archive, name: Option<&str>, wanted: &Platform) -> Result<Layered, LayeredError> {
    let place = archive.name.clone();
    let bytes = document(&archive, "manifest.json", &place)?;
    let rows: Vec<Row> = parsed("manifest", &place, &bytes)?;
    let row = choose(rows, name, &place)?;
    let config_bytes = document(&archive, &row.config, &place)?;
    let failed = |source| LayeredError::Document { what: format!("{} of {place}", row.config), source };
    let config = ImageConfig::parse(&config_bytes).map_err(failed)?;
    config.check_platform(wanted).map_err(failed)?;
    let diff_ids = config.diff_ids().map_err(failed)?;
    let count = row.layers.len();
    if count > MAX_LAYERS {
        return Err(failed(DocumentError::TooManyLayers { count }));
    }
    if diff_ids.len() != count {
        return Err(failed(DocumentError::LayerCount { manifest: count, config: diff_ids.len() }));
    }
    if let Some(missing) = row.layers.iter().find(|layer| !archive.has(layer)) {
        return Err(LayeredError::Missing { what: missing.clone(), place });
    }
    let blob = |(name, id): (String, _)| {
        let size_bytes = archive.size_bytes(&name);
        Blob { name, digest: None, diff_id: Some(id), size_bytes }
    };
    let layers: Vec<Blob> = row.layers.into_iter().zip(diff_ids).map(blob).collect();
    Ok(Layered::new(Arc::new(archive), layers, config, config_bytes))
}

impl Blobs for Archive {
    fn open(&self, blob: &Blob) -> io::Result<Box<dyn Read + Send + '_>> {
        self.open_file(&blob.name)
    }
}

/// Parts the file from the image's name, which begins at the first colon behind what exists.
fn split(from: &str) -> (&str, Option<&str>) {
    if Path::new(from).exists() {
        return (from, None);
    }
    match from.split_once(':') {
        Some((path, name)) if !name.is_empty() => (path, Some(name)),
        Some((path, _)) => (path, None),
        None => (from, None),
    }
}

fn choose(mut rows: Vec<Row>, wanted: Option<&str>, place: &str) -> Result<Row, LayeredError> {
    let names = |rows: &[Row]| rows.iter().flat_map(|row| row.repo_tags.iter().flatten().cloned()).collect::<Vec<_>>();
    let Some(wanted) = wanted else {
        return match rows.len() {
            0 => Err(LayeredError::Missing { what: "image".to_owned(), place: place.to_owned() }),
            1 => Ok(rows.swap_remove(0)),
            _ => Err(LayeredError::WhichImage { place: place.to_owned(), names: names(&rows) }),
        };
    };
    let number = wanted.strip_prefix('@').and_then(|number| number.parse::<usize>().ok());
    let tagged = match wanted.rsplit('/').next().unwrap_or_default().contains(':') {
        true => wanted.to_owned(),
        false => format!("{wanted}:latest"),
    };
    let is_wanted = |row: &Row| row.repo_tags.iter().flatten().any(|tag| *tag == tagged);
    match number.filter(|&number| number < rows.len()).or_else(|| rows.iter().position(is_wanted)) {
        Some(at) => Ok(rows.swap_remove(at)),
        None => {
            let names = names(&rows);
            Err(LayeredError::NoImage { place: place.to_owned(), wanted: wanted.to_owned(), names })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wanted: Option<&str>, expected: Result<&str, &str>) {
        let row = |config: &str, tag: &str| Row {
            config: config.to_owned(),
            repo_tags: Some(vec![tag.to_owned()]),
            layers: Vec::new(),
        };
        let rows = vec![row("a", "first:1"), row("b", "host:5000/second:latest")];
        let chosen = choose(rows, wanted, "x.tar").map(|row| row.config).map_err(|error| error.to_string());
        assert_eq!(chosen.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn one_of_several_images_is_named_by_tag_or_number() {
        check(Some("first:1"), Ok("a"));
        check(Some("@1"), Ok("b"));
        check(Some("host:5000/second"), Ok("b"));
        check(None, Err("x.tar holds several images: `first:1`, `host:5000/second:latest`"));
        check(Some("@2"), Err("x.tar holds no image `@2`, but `first:1`, `host:5000/second:latest`"));
        check(Some("first"), Err("x.tar holds no image `first`, but `first:1`, `host:5000/second:latest`"));
    }
}
