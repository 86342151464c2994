//! How to get at what is elsewhere: what the command line, the environment and the site say about it.

use super::RemoteError;
use super::credentials::{Password, Places};
use super::daemon::DaemonPlace;
use super::endpoints::{EndpointError, EndpointFiles, Endpoints};
use super::http::{Address, Http, Patience, Tls};
use super::library::Library;
use super::registries::{Endpoint, RegistriesFiles};
use super::registry::Registry;
use super::services::Services;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use std::fs;
use std::path::{Path, PathBuf};

/// How to get at images elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Connections without encryption.
    pub no_https: bool,
    pub places: Places,
    /// Directories that hold a directory of certificates for each registry, by its host and port; the first that has one
    /// counts.
    pub certificates: Vec<PathBuf>,
    pub registries: RegistriesFiles,
    pub daemon: DaemonPlace,
    /// The variant of the architecture that is wanted.
    pub variant: Option<String>,
    /// The manifest that a reference was found to mean, so that it can't change in between.
    pub pinned: Option<Digest>,
    pub libraries: Libraries,
    pub patience: Patience,
}

/// Which library is asked.
#[derive(Clone, Debug, Default)]
pub struct Libraries {
    /// The address that was said for this one time.
    pub said: Option<String>,
    pub endpoints: EndpointFiles,
}

/// One way to a registry.
pub struct Way {
    pub registry: Registry,
    /// Whether the next way is for the same registry, and for when this one can't be connected to.
    pub is_first_of_two: bool,
}

impl Access {
    /// The registry to which an image is pushed, or which is logged in to.
    pub fn registry(&self, reference: &Reference, pushes: bool) -> Result<Registry, RemoteError> {
        let endpoints = self.registries.read()?.endpoints(reference, true)?;
        let mut ways = Vec::new();
        for endpoint in &endpoints {
            ways.extend(self.ways_to(endpoint, pushes)?);
        }
        let mut found = Err(RemoteError::NotFound { what: reference.to_string() });
        for Way { registry, is_first_of_two } in ways {
            let is_there = !is_first_of_two || !matches!(registry.ping(), Err(RemoteError::Connection { .. }));
            found = Ok(registry);
            if is_there {
                break;
            }
        }
        found
    }

    /// The registries that may hold an image, in the order in which they are to be asked.
    pub fn ways(&self, reference: &Reference) -> Result<Vec<Way>, RemoteError> {
        let mut ways = Vec::new();
        for endpoint in self.registries.read()?.endpoints(reference, false)? {
            ways.extend(self.ways_to(&endpoint, false)?);
        }
        Ok(ways)
    }

    fn ways_to(&self, endpoint: &Endpoint, pushes: bool) -> Result<Vec<Way>, RemoteError> {
        let reference = &endpoint.reference;
        let mut tls = self.tls(reference.host());
        tls.is_unchecked = endpoint.is_insecure;
        // What was said for this one time was said to the registry that was named.
        let said = self.places.said.clone().filter(|_| !endpoint.is_mirror);
        let places = Places { said, ..self.places.clone() };
        let way = |is_https, is_first_of_two| -> Result<Way, RemoteError> {
            let http = Http::to_host(tls.clone(), self.patience);
            let registry = Registry::new(reference, http, is_https, &places, pushes)?;
            Ok(Way { registry, is_first_of_two })
        };
        match (self.no_https, endpoint.is_insecure) {
            (true, _) => Ok(vec![way(false, false)?]),
            (false, false) => Ok(vec![way(true, false)?]),
            (false, true) => Ok(vec![way(true, true)?, way(false, false)?]),
        }
    }

    /// What the directory of a registry's certificates holds: `*.crt` are authorities, `*.cert` with `*.key` a client's.
    fn tls(&self, host: &str) -> Tls {
        let directory = self.certificates.iter().map(|directory| directory.join(host)).find(|path| path.is_dir());
        let listed = directory.and_then(|directory| fs::read_dir(directory).ok());
        let mut files: Vec<PathBuf> = listed.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        let has = |path: &Path, extension: &str| path.extension().is_some_and(|found| found == extension);
        let client = files.iter().find(|path| has(path, "cert"));
        Tls {
            authorities: files.iter().filter(|path| has(path, "crt")).cloned().collect(),
            client: client.map(|certificate| (certificate.clone(), certificate.with_extension("key"))),
            is_unchecked: false,
        }
    }

    /// Connections to a host that is no registry.
    pub fn http(&self, address: &Address) -> Http {
        self.http_to(address, false)
    }

    /// Connections to such a host, which is taken for what it says where it `is_unchecked`.
    pub fn http_to(&self, address: &Address, is_unchecked: bool) -> Http {
        Http::to_host(Tls { is_unchecked, ..self.tls(&address.authority) }, self.patience)
    }

    /// The library of a host, or the one that was said, or that of the endpoint in use.
    pub fn library(&self, host: Option<&str>) -> Result<Library, RemoteError> {
        let endpoints = self.libraries.endpoints.load()?;
        let scheme = if self.no_https { "http" } else { "https" };
        let said = match (&self.libraries.said, host) {
            (Some(_), Some(_)) => return Err(EndpointError::TwoLibraries.into()),
            (Some(said), None) if said.contains("://") => Some(said.clone()),
            (Some(said), None) => Some(format!("{scheme}://{said}")),
            (None, host) => host.map(|host| format!("{scheme}://{host}")),
        };
        let of_endpoint = |name: Option<&str>| -> Result<(Address, Option<Password>), RemoteError> {
            let (name, endpoint) = endpoints.find(name)?;
            let http = self.http(&Address::parse(&endpoint.address())?);
            Ok(Services::find(&http, name, endpoint)?.library()?)
        };
        let (base, token) = match said {
            None => of_endpoint(None)?,
            Some(said) => {
                let base = Address::parse(&said)?;
                match endpoints.exclusive() {
                    None => (base.clone(), token_for(&endpoints, &base)),
                    Some(name) => match of_endpoint(Some(name))? {
                        only if only.0.is_same_origin(&base) => only,
                        _ => return Err(EndpointError::Exclusive { name: name.to_owned() }.into()),
                    },
                }
            }
        };
        let http = self.http(&base);
        Ok(Library::new(base, token.as_ref(), http))
    }
}

/// The token of the endpoint at an address, for a library that was named by it.
fn token_for(endpoints: &Endpoints, base: &Address) -> Option<Password> {
    let is_there = |address: String| Address::parse(&address).is_ok_and(|address| address.is_same_origin(base));
    let found = endpoints.remotes.values().find(|endpoint| endpoint.token.is_some() && is_there(endpoint.address()));
    found.and_then(|endpoint| endpoint.token.clone())
}
