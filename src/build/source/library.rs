//! The agent `library`: SIF files of a library server.

use super::Fetching;
use super::docker::fetch_sif;
use crate::build::{BuildError, Note};
use crate::cache::{Cache, Kind};
use crate::def::Header;
use crate::remote::RemoteError;
use crate::remote::access::Access;
use crate::remote::library::reference::LibraryReference;
use crate::remote::library::{ImageRecord, Library};
use crate::sif::Arch;
use std::path::{Path, PathBuf};

/// An image in a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryImage {
    pub reference: LibraryReference,
    /// The library's address, where a definition says it.
    pub library: Option<String>,
}

/// A library's file, found but not fetched.
pub struct LibraryFile {
    library: Library,
    reference: LibraryReference,
    architecture: String,
    pub record: ImageRecord,
}

impl LibraryImage {
    /// Reads `From`, and `Library` where it is said.
    pub(super) fn of(header: &Header) -> Result<Self, BuildError> {
        let from = header.get("from").ok_or(BuildError::HeaderLacks { agent: header.agent(), key: "From" })?;
        Ok(Self { library: header.get("library").map(str::to_owned), ..Self::parse(from)? })
    }

    pub fn parse(from: &str) -> Result<Self, BuildError> {
        let reference = from.parse().and_then(LibraryReference::with_one_tag);
        Ok(Self { reference: reference.map_err(RemoteError::from)?, library: None })
    }

    /// The image's file: that of the cache, or one beside the build where nothing is kept.
    pub(super) fn file(&self, fetching: &mut Fetching) -> Result<PathBuf, BuildError> {
        if let Some(path) = fetching.cache.and_then(|cache| self.cached_by_name(cache)) {
            return Ok(path);
        }
        let architecture = fetching.architecture.unwrap_or_else(Arch::host);
        let file = self.resolve(fetching.access, architecture.name())?;
        match fetching.cache {
            Some(cache) => {
                Ok(cache.obtain(Kind::Library, file.record.digest.hex(), |path| file.fetch(path, fetching.say))?)
            }
            None => {
                let path = fetching.work.join("fetched.sif");
                file.fetch(&path, fetching.say).map(|()| path)
            }
        }
    }

    /// The cached file of a reference that holds the file's own digest: nobody has to be asked what it means.
    pub fn cached_by_name(&self, cache: &Cache) -> Option<PathBuf> {
        cache.get(Kind::Library, self.reference.digest()?.hex())
    }

    /// Asks the library what the reference means.
    pub fn resolve(&self, access: &Access, architecture: &str) -> Result<LibraryFile, BuildError> {
        let mut access = access.clone();
        // What is said for this one time is stronger than what a definition says.
        if access.libraries.said.is_none() {
            access.libraries.said.clone_from(&self.library);
        }
        let library = access.library(self.reference.host.as_deref())?;
        let record = library.image(&self.reference, architecture)?;
        Ok(LibraryFile { library, reference: self.reference.clone(), architecture: architecture.to_owned(), record })
    }
}

impl LibraryFile {
    /// Fetches the file to `path` and checks it.
    pub fn fetch(&self, path: &Path, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
        let mut open = |offset_bytes| self.library.open(&self.reference, &self.architecture, offset_bytes);
        fetch_sif(&mut open, &self.record.digest, self.record.size_bytes, path, say)
    }
}
