//! Images that a daemon of Docker or Podman holds, by the API that both answer.
//!
//! ```text
//! GET /images/NAME/json ──► {"Id":"sha256:…"}       what the name means now
//! GET /images/ID/get    ──► what `docker save` writes
//! ```
//!
//! Where the daemon is: what was said, `DOCKER_HOST`, `CONTAINER_HOST`, then the first socket that is there.

use super::RemoteError;
use super::http::{Address, Body, Http, Method, Request, Response, Tls};
use crate::oci::digest::Digest;
use serde::Deserialize;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest description of an image.
const MAX_DESCRIPTION_BYTES: u64 = 8 << 20;
const MAX_MESSAGE_BYTES: u64 = 16 << 10;

/// What is said about where the daemon is.
#[derive(Clone, Debug, Default)]
pub struct DaemonPlace {
    /// `unix:///run/docker.sock`, `tcp://host:2375`; without one, the sockets are looked at.
    pub host: Option<String>,
    /// A directory with `ca.pem`, `cert.pem` and `key.pem`; with it, TCP is encrypted.
    pub certificates: Option<PathBuf>,
    pub sockets: Vec<PathBuf>,
}

/// A daemon that was found.
pub struct Daemon {
    http: Http,
    base: Address,
    /// What errors call it.
    name: String,
}

impl DaemonPlace {
    /// Prepares to talk to the daemon; nothing is sent yet.
    pub fn find(&self) -> Result<Daemon, RemoteError> {
        let Some(host) = &self.host else {
            let socket = self.sockets.iter().find(|socket| socket.exists());
            let looked = || self.sockets.iter().map(|socket| socket.display().to_string()).collect();
            return socket.map(|socket| over_socket(socket)).ok_or_else(|| RemoteError::NoDaemon { looked: looked() });
        };
        let wrong = |why| RemoteError::Address { address: host.clone(), why };
        let (scheme, rest) = host.split_once("://").ok_or(wrong("it begins with neither unix:// nor tcp://"))?;
        match scheme {
            "unix" if rest.starts_with('/') => Ok(over_socket(Path::new(rest))),
            "unix" => Err(wrong("a socket is named by its whole path")),
            "tcp" | "http" | "https" => {
                let is_https = scheme == "https" || self.certificates.is_some();
                let base = Address::parse(&format!("{}://{rest}", if is_https { "https" } else { "http" }))?;
                let pem = |name: &str| self.certificates.as_ref().map(|directory| directory.join(name));
                let tls = Tls {
                    authorities: pem("ca.pem").into_iter().collect(),
                    client: pem("cert.pem").zip(pem("key.pem")).filter(|(certificate, _)| certificate.exists()),
                    is_unchecked: false,
                };
                Ok(Daemon { http: Http::to_daemon(tls), base, name: host.clone() })
            }
            "ssh" => Err(wrong("a daemon behind ssh is not asked: `ssh HOST docker save` makes a docker-archive")),
            _ => Err(wrong("it begins with neither unix:// nor tcp://")),
        }
    }
}

fn over_socket(socket: &Path) -> Daemon {
    let name = socket.display().to_string();
    // The host of a request is not looked at.
    let base = Address { is_https: false, authority: "localhost".to_owned(), path: "/".to_owned() };
    Daemon { http: Http::over_socket(socket), base, name }
}

impl Daemon {
    /// What a name means now: the digest of an image's configuration.
    pub fn image_id(&self, name: &str) -> Result<Digest, RemoteError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Description {
            id: String,
        }
        let response = self.get(name, "json")?;
        let description: Description = serde_json::from_slice(&response.bytes(MAX_DESCRIPTION_BYTES)?)
            .map_err(|_| self.odd("its description of the image is not understood"))?;
        // Podman leaves the algorithm out.
        let id = if description.id.contains(':') { description.id } else { format!("sha256:{}", description.id) };
        id.parse().map_err(|_| self.odd("the id of the image is no digest"))
    }

    /// The image as `docker save` writes it.
    pub fn archive(&self, name: &str) -> Result<Box<dyn Read + Send>, RemoteError> {
        Ok(self.get(name, "get")?.body)
    }

    fn get(&self, name: &str, what: &str) -> Result<Response, RemoteError> {
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/' | b':' | b'@');
        if name.is_empty() || !name.bytes().all(is_plain) || name.split('/').any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(RemoteError::Address { address: name.to_owned(), why: "no image can be called so" });
        }
        let request = Request {
            method: Method::GET,
            address: self.base.join(&format!("/images/{name}/{what}"))?,
            headers: Vec::new(),
            authorization: None,
            body: Body::Empty,
        };
        let response = self.http.send(&request).map_err(|error| self.named(error))?;
        match response.status {
            200 => Ok(response),
            404 => Err(RemoteError::NotInDaemon { image: name.to_owned(), daemon: self.name.clone() }),
            status => {
                #[derive(Deserialize)]
                struct Message {
                    message: String,
                }
                let bytes = response.bytes(MAX_MESSAGE_BYTES).unwrap_or_default();
                let message = serde_json::from_slice(&bytes).map(|Message { message }| message).unwrap_or_default();
                Err(RemoteError::Status { host: self.name.clone(), what: name.to_owned(), status, message })
            }
        }
    }

    /// With the name by which people know the daemon.
    fn named(&self, error: RemoteError) -> RemoteError {
        match error {
            RemoteError::Connection { reason, .. } => RemoteError::Daemon { daemon: self.name.clone(), reason },
            error => error,
        }
    }

    fn odd(&self, reason: &str) -> RemoteError {
        RemoteError::Daemon { daemon: self.name.clone(), reason: reason.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(host: &str) -> String {
        let place = DaemonPlace { host: Some(host.to_owned()), ..DaemonPlace::default() };
        place.find().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_daemon_is_named_by_a_socket_or_a_port() {
        assert_eq!((error("unix:///run/x.sock"), error("tcp://127.0.0.1:2375")), (String::new(), String::new()));
        assert_eq!(error("unix://x.sock"), "`unix://x.sock` is no address: a socket is named by its whole path");
        assert!(error("ssh://host").contains("docker save"));
        assert!(error("nonsense").contains("neither unix:// nor tcp://"));
    }

    #[test]
    fn where_no_socket_is_the_error_names_those_that_were_looked_for() {
        let sockets = vec!["/no/docker.sock".into(), "/no/podman.sock".into()];
        let error = DaemonPlace { sockets, ..DaemonPlace::default() }.find().err().unwrap().to_string();
        assert_eq!(error, "no daemon of Docker or Podman is there: neither /no/docker.sock nor /no/podman.sock");
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_asked_of_nobody() {
        let place = DaemonPlace { host: Some("tcp://127.0.0.1:1".to_owned()), ..DaemonPlace::default() };
        for name in ["", "a/../../containers/json", "a?b=c", "a b", "/a", "a\r\nX: y"] {
            let error = place.find().unwrap().image_id(name).unwrap_err();
            assert!(matches!(error, RemoteError::Address { .. }), "{name}: {error}");
        }
    }
}
