//! The agent `docker-daemon`: an image that a daemon of Docker or Podman of this machine, or another, holds.
//!
//! ```text
//! socket ──► a file without a name ──► as docker-archive
//! ```
//!
//! The daemon sends the uppermost layer last and its manifest behind that, and the uppermost layer is read first here: so
//! the archive lies in a file as long as it is read. Nothing of it is unpacked there.

use super::docker_archive;
use super::layered::{Layered, LayeredError};
use crate::build::BuildError;
use crate::build::source::archive::Archive;
use crate::oci::digest::Digest;
use crate::oci::documents::Platform;
use crate::remote::RemoteError;
use crate::remote::access::Access;
use crate::remote::download::unnamed_file;
use std::io::{self, Seek};
use std::path::Path;

/// An image in a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerDaemon {
    /// Its name, with a tag or without, or its id.
    pub from: String,
}

impl DockerDaemon {
    /// What the name means now.
    pub fn resolve(&self, access: &Access) -> Result<Digest, RemoteError> {
        access.daemon.find()?.image_id(&self.from)
    }

    /// Fetches the image to a file without a name in `directory`.
    pub fn open(&self, access: &Access, wanted: &Platform, directory: &Path) -> Result<Layered, BuildError> {
        let daemon = access.daemon.find()?;
        // By its id there is one image, whatever names it has.
        let id = match &access.pinned {
            Some(pinned) => pinned.clone(),
            None => daemon.image_id(&self.from)?,
        };
        let failed = |doing| {
            let path = directory.display().to_string();
            move |source| RemoteError::Local { doing, path, source }
        };
        let mut file = unnamed_file(directory).map_err(failed("write to"))?;
        let mut stream = daemon.archive(&id.to_string())?;
        let kept = io::copy(&mut stream, &mut file).and_then(|_| file.rewind());
        kept.map_err(failed("keep what the daemon sends in"))?;
        let archive =
            Archive::of_file(file, self.from.clone()).map_err(|error| BuildError::Layered(Box::new(error)))?;
        let layered: Result<Layered, LayeredError> = docker_archive::image(archive, None, wanted);
        Ok(layered?)
    }
}
