//! Images elsewhere: registries, and files on web servers.
//!
//! ```text
//! Reference ──► Registry ──► documents, blobs ──► build::source       http: every request
//!                  ▲                                                  credentials: whose name and password
//!                  └── Credentials                                    download: blobs in parallel, resumed where they broke
//! name ──► Daemon ──► an archive                                      unix_socket: where daemons listen; proxy: the way out
//! ```
//!
//! Libraries have a protocol of their own (`library`), below endpoints (`endpoints`, `services`) that people give names.

pub mod access;
pub mod counted;
pub mod credentials;
pub mod daemon;
pub mod download;
pub mod endpoints;
pub mod http;
pub mod library;
mod proxy;
pub mod registries;
pub mod registry;
pub mod services;
mod unix_socket;

use crate::oci::digest::Digest;
use crate::oci::documents::DocumentError;
use crate::report::{Hint, cause};
use endpoints::EndpointError;
use library::reference::NoLibraryReference;
use std::fmt;
use std::io;

/// Why something elsewhere could not be had.
#[derive(Debug)]
pub enum RemoteError {
    /// What is no address of the web.
    Address {
        address: String,
        why: &'static str,
    },
    /// No connection, or one that broke.
    Connection {
        host: String,
        is_https: bool,
        reason: String,
        is_passing: bool,
    },
    /// An encrypted connection that the server refuses for lack of a client's certificate, or for another one.
    ClientCertificate {
        host: String,
        reason: String,
    },
    /// An answer that ended too early, or came too slowly.
    Read {
        host: String,
        source: io::Error,
    },
    /// An answer larger than it can rightly be.
    TooLarge {
        host: String,
        limit: u64,
    },
    Redirects {
        host: String,
    },
    /// A redirect from an encrypted to an open connection.
    Downgrade {
        from: String,
        to: String,
    },
    /// The server wants credentials, or others.
    Unauthorized {
        host: String,
        had_credentials: bool,
    },
    NotFound {
        what: String,
    },
    /// No socket of a daemon.
    NoDaemon {
        looked: Vec<String>,
    },
    /// A daemon that does not answer, or not as daemons do.
    Daemon {
        daemon: String,
        reason: String,
    },
    NotInDaemon {
        image: String,
        daemon: String,
    },
    /// Another answer than the one that was hoped for.
    Status {
        host: String,
        what: String,
        status: u16,
        message: String,
    },
    /// A way of proving who one is that is not known.
    Challenge {
        host: String,
        why: &'static str,
    },
    Digest {
        what: String,
        expected: Digest,
        found: Digest,
    },
    Size {
        what: String,
        expected: u64,
        found: u64,
    },
    Document {
        what: String,
        source: DocumentError,
    },
    /// A file that says where registries are.
    Registries {
        path: String,
        why: String,
    },
    /// A registry that is not to be used.
    Blocked {
        what: String,
        prefix: String,
    },
    /// What is to be sent can't be read.
    Upload {
        source: io::Error,
    },
    /// A library wants a token, or another.
    Token {
        host: String,
        had_token: bool,
    },
    /// An image for another machine than the one that was asked for.
    Architecture {
        what: String,
        wanted: String,
        found: String,
    },
    /// An answer that is not of the form it should have.
    NotUnderstood {
        host: String,
        what: String,
    },
    /// A text that names no image of a library.
    Library(NoLibraryReference),
    /// Endpoints, and which of them is used.
    Endpoint(Box<EndpointError>),
    /// A file of credentials.
    Credentials {
        path: String,
        why: String,
    },
    /// A program that keeps credentials.
    Helper {
        name: String,
        why: String,
    },
    /// A file of sifu's own can't be written.
    Local {
        doing: &'static str,
        path: String,
        source: io::Error,
    },
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, why } => write!(f, "`{}` is no address: {why}", address.escape_default()),
            Self::Connection { host, reason, .. } => write!(f, "cannot talk to {host}: {reason}"),
            Self::ClientCertificate { host, reason } => {
                write!(f, "{host} wants a certificate of who connects, or another one: {reason}")
            }
            Self::Read { host, source } => write!(f, "the answer of {host} broke off: {}", cause(source)),
            Self::TooLarge { host, limit } => write!(f, "the answer of {host} is larger than {limit} bytes"),
            Self::Redirects { host } => write!(f, "{host} sends from one address to the next without end"),
            Self::Downgrade { from, to } => {
                write!(f, "{from} sends to {to} by a connection that is not encrypted: not followed")
            }
            Self::Unauthorized { host, had_credentials: true } => {
                write!(f, "{host} refuses the name and password that it was given")
            }
            Self::Unauthorized { host, had_credentials: false } => write!(f, "{host} asks for a name and a password"),
            Self::NotFound { what } => write!(f, "{what} is not there"),
            Self::NoDaemon { looked } => {
                write!(f, "no daemon of Docker or Podman is there: neither {}", looked.join(" nor "))
            }
            Self::Daemon { daemon, reason } => write!(f, "cannot talk to the daemon at {daemon}: {reason}"),
            Self::NotInDaemon { image, daemon } => write!(f, "the daemon at {daemon} holds no image `{image}`"),
            Self::Status { host, what, status, message } => {
                write!(f, "{host} answers {status} for {what}")?;
                if message.is_empty() { Ok(()) } else { write!(f, ": {message}") }
            }
            Self::Challenge { host, why } => write!(f, "cannot prove to {host} who asks: {why}"),
            Self::Digest { what, expected, found } => {
                write!(f, "{what} is not what it is called: its digest is {found}, and not {expected}")
            }
            Self::Size { what, expected, found } => write!(f, "{what} has {found} bytes, and not {expected}"),
            Self::Document { what, source } => write!(f, "{what}: {source}"),
            Self::Registries { path, why } => write!(f, "cannot use {path}: {why}"),
            Self::Blocked { what, prefix } => {
                write!(f, "{what} is not to be used: registries.conf blocks `{prefix}`")
            }
            Self::Token { host, had_token: true } => write!(f, "{host} refuses the token that it was given"),
            Self::Token { host, had_token: false } => write!(f, "{host} asks for a token"),
            Self::Architecture { what, wanted, found } => {
                write!(f, "{what} is not there for {wanted}: the library gives what is for {found}")
            }
            Self::NotUnderstood { host, what } => write!(f, "the answer of {host} about {what} is not understood"),
            Self::Library(error) => error.fmt(f),
            Self::Endpoint(error) => error.fmt(f),
            Self::Upload { source } => write!(f, "cannot read what is to be sent: {}", cause(source)),
            Self::Credentials { path, why } => write!(f, "cannot use the credentials in {path}: {why}"),
            Self::Helper { name, why } => write!(f, "the credential helper {name} gives nothing: {why}"),
            Self::Local { doing, path, source } => write!(f, "cannot {doing} {path}: {}", cause(source)),
        }
    }
}

impl std::error::Error for RemoteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } | Self::Upload { source } | Self::Local { source, .. } => Some(source),
            Self::Document { source, .. } => Some(source),
            Self::Endpoint(error) => error.source(),
            _ => None,
        }
    }
}

impl Hint for RemoteError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::ClientCertificate { host, .. } => {
                return vec![format!("Put NAME.cert and NAME.key into ~/.config/containers/certs.d/{host}.")];
            }
            Self::Connection { is_https: true, .. } => {
                "A registry without TLS is reached with --no-https; a proxy is named by https_proxy."
            }
            Self::Connection { .. } => "Look whether the host and its port are right and something answers there.",
            Self::Unauthorized { .. } => {
                "Log in with `sifu registry login`, or set APPTAINER_DOCKER_USERNAME and APPTAINER_DOCKER_PASSWORD."
            }
            Self::NotFound { .. } => "Registries say so too of what one may not see: a login may help.",
            Self::NoDaemon { .. } => {
                "DOCKER_HOST or --docker-host says where it is; `podman system service` makes Podman answer."
            }
            Self::Daemon { .. } => "Look whether the daemon runs and its socket may be used by you.",
            Self::NotInDaemon { .. } => "`docker images` or `podman images` lists what is there, for the same user.",
            Self::Status { status: 429, .. } => "Too many requests came from here: wait, or log in.",
            Self::Document { source, .. } => return source.hints(),
            Self::Endpoint(error) => return error.hints(),
            Self::Library(error) => return error.hints(),
            Self::Token { .. } => {
                "Log in with `sifu remote login`; --library and library://HOST take the token of the endpoint at that host."
            }
            Self::Architecture { .. } => "Say which machine it is for: --arch NAME.",
            Self::Digest { .. } | Self::Size { .. } => "It was damaged on its way or where it is kept: try again.",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

impl From<NoLibraryReference> for RemoteError {
    fn from(error: NoLibraryReference) -> Self {
        Self::Library(error)
    }
}

impl From<EndpointError> for RemoteError {
    fn from(error: EndpointError) -> Self {
        Self::Endpoint(Box::new(error))
    }
}

#[cfg(test)]
mod tests;
