//! Why there is no Debian.

use crate::debian::index::IndexError;
use crate::debian::release::ReleaseError;
use crate::debian::resolve::ResolveError;
use crate::debian::sources::SourcesError;
use crate::oci::digest::Digest;
use crate::remote::RemoteError;
use crate::report::{Hint, cause};
use starter::paths::HostPath;
use std::fmt;
use std::io;
use std::process::ExitStatus;

/// Why there is no Debian.
#[derive(Debug)]
pub enum DebootstrapError {
    /// `OSVersion:` is no name of a suite.
    Suite {
        suite: String,
    },
    /// Nothing says which suite.
    NoSuite,
    /// `Include:` with what is no name of a package.
    Name {
        name: String,
    },
    Mirror {
        mirror: String,
        why: &'static str,
    },
    /// Debian has no packages for this machine.
    Architecture {
        name: &'static str,
    },
    /// This machine's apt knows no archive of the suite, or there is no apt.
    NoSources {
        suite: String,
    },
    Sources {
        path: HostPath,
        source: SourcesError,
    },
    /// An archive or a file of it that is not there.
    NotThere {
        what: String,
    },
    /// A file that broke off, or can't be unpacked.
    Fetch {
        address: String,
        why: String,
    },
    Remote {
        address: String,
        source: Box<RemoteError>,
    },
    /// An answer that is none of those that were expected.
    Status {
        address: String,
        status: u16,
    },
    /// A file that is not the one that was promised.
    Digest {
        address: String,
        expected: Digest,
        found: Digest,
    },
    Size {
        address: String,
        expected: u64,
    },
    Signature {
        address: String,
        why: String,
    },
    /// No program that looks at signatures.
    NoVerifier,
    /// No keys to compare signatures with.
    NoKeys,
    /// A text that holds no key.
    NoKey,
    Keyring {
        path: HostPath,
        source: io::Error,
    },
    Release {
        address: String,
        source: ReleaseError,
    },
    OtherSuite {
        address: String,
        wanted: String,
        found: String,
    },
    Index {
        address: String,
        source: IndexError,
    },
    Resolve(ResolveError),
    /// Packages, but none that make a system.
    NoSystem,
    Unpack {
        package: String,
        why: String,
    },
    System {
        doing: &'static str,
        path: HostPath,
        source: io::Error,
    },
    /// dpkg or apt failed in the container.
    Install {
        status: ExitStatus,
        /// The end of what they said.
        said: String,
    },
}

impl fmt::Display for DebootstrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suite { suite } => write!(f, "`{}` names no suite of Debian", suite.escape_debug()),
            Self::NoSuite => f.write_str("the bootstrap agent `debootstrap` needs `OSVersion:` in the header"),
            Self::Name { name } => write!(f, "`{}` in `Include:` is no name of a package", name.escape_debug()),
            Self::Mirror { mirror, why } => {
                write!(f, "`MirrorURL: {}` is no address of a mirror: {why}", mirror.escape_debug())
            }
            Self::Architecture { name } => write!(f, "Debian has no packages for the architecture {name}"),
            Self::NoSources { suite } => write!(f, "this machine's apt knows no archive of {suite}"),
            Self::Sources { path, source } => write!(f, "cannot understand {path}, {source}"),
            Self::NotThere { what } => write!(f, "{what} is not there"),
            Self::Fetch { address, why } => write!(f, "cannot fetch {address}: {why}"),
            Self::Remote { address, source } => write!(f, "cannot fetch {address}: {source}"),
            Self::Status { address, status } => write!(f, "cannot fetch {address}: the server answers {status}"),
            Self::Digest { address, expected, found } => {
                write!(f, "{address} is not what was promised: its digest is {found}, and not {expected}")
            }
            Self::Size { address, expected } => write!(f, "{address} does not have the {expected} bytes of its index"),
            Self::Signature { address, why } => write!(f, "cannot believe {address}: {why}"),
            Self::NoVerifier => f.write_str("cannot look at the signature of the archive: there is no gpgv"),
            Self::NoKeys => f.write_str("cannot look at the signature of the archive: this machine has no keys for it"),
            Self::NoKey => f.write_str("cannot look at the signature of the archive: its key is damaged"),
            Self::Keyring { path, source } => write!(f, "cannot read the keys in {path}: {}", cause(source)),
            Self::Release { address, source } => write!(f, "cannot use {address}: {source}"),
            Self::OtherSuite { address, wanted, found } => {
                write!(f, "{address} is of the suite {}, and not of {wanted}", found.escape_debug())
            }
            Self::Index { address, source } => write!(f, "cannot use {address}, {source}"),
            Self::Resolve(error) => error.fmt(f),
            Self::NoSystem => f.write_str("the archive has no packages that make a system"),
            Self::Unpack { package, why } => write!(f, "cannot unpack the package {package}: {why}"),
            Self::System { doing, path, source } => write!(f, "cannot {doing} {path}: {}", cause(source)),
            Self::Install { status, said } => {
                write!(f, "the packages could not be installed ({status}); the end of what was said:\n{said}")
            }
        }
    }
}

impl std::error::Error for DebootstrapError {}

impl Hint for DebootstrapError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Suite { .. } | Self::NoSuite => "`OSVersion: bookworm` is Debian 12.",
            Self::Mirror { .. } => {
                "`MirrorURL: http://HOST/debian` is one, also with options as in apt's sources.list."
            }
            Self::NoSources { .. } => "Name a mirror: `MirrorURL: http://HOST/debian`.",
            Self::Remote { .. } => "Where the net is reached by a proxy, http_proxy and https_proxy name it.",
            Self::NotThere { .. } => "Has the mirror this suite? Old ones move to an archive of their own.",
            Self::Digest { .. } | Self::Size { .. } => {
                "A mirror that is being renewed is right again after some minutes."
            }
            Self::NoVerifier => "Install gpgv (the package `gpgv` or `gnupg2`).",
            Self::NoKeys | Self::Signature { .. } => {
                "Install the keys (the package `debian-archive-keyring`), name a file of them by `MirrorURL: \
                 [signed-by=/FILE] http://…`, or do without: `MirrorURL: [trusted=yes] http://…`."
            }
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}
