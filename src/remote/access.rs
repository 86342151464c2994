//! How to get at what is elsewhere: what the command line, the environment and the site say about it.

use super::RemoteError;
use super::credentials::Places;
use super::http::Http;
use super::registry::Registry;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use std::path::PathBuf;

/// Directories that hold a directory of certificates for each registry, by its host and port.
pub const CERTIFICATE_DIRECTORIES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// How to get at images elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Connections without encryption.
    pub no_https: bool,
    pub places: Places,
    /// The variant of the architecture that is wanted.
    pub variant: Option<String>,
    /// The manifest that a reference was found to mean, so that it can't change in between.
    pub pinned: Option<Digest>,
}

impl Access {
    /// The registry of a reference.
    pub fn registry(&self, reference: &Reference, pushes: bool) -> Result<Registry, RemoteError> {
        let directories =
            CERTIFICATE_DIRECTORIES.iter().map(|directory| PathBuf::from(directory).join(reference.host()));
        let certificates = directories.into_iter().find(|directory| directory.is_dir());
        Registry::new(reference, Http::new(certificates.as_deref()), !self.no_https, &self.places, pushes)
    }
}
