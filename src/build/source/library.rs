//! The agent `library`: SIF files of a library server.

use super::docker::fetch_sif;
use crate::build::{BuildError, Note};
use crate::def::Header;
use crate::remote::RemoteError;
use crate::remote::access::Access;
use crate::remote::library::reference::LibraryReference;
use crate::remote::library::{ImageRecord, Library};
use std::path::Path;

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
