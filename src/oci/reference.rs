//! References: how people name an image in a registry.
//!
//! ```text
//! [host[:port]/]path[:tag][@digest]          debian:12      localhost:5000/team/tool@sha256:…
//! ```
//!
//! What stands before the first `/` is a host when it has a dot or a port in it or is `localhost`; else the image is of
//! the default registry, whose names are here and nowhere else.

use super::digest::Digest;
use std::fmt;
use std::str::FromStr;

/// The registry of references that name none: what it is called, where it answers, and under which name credentials for
/// it are kept.
pub const DEFAULT_REGISTRY: (&str, &str, &str) = ("docker.io", "registry-1.docker.io", "https://index.docker.io/v1/");
/// Where images of the default registry are that name no place in it.
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest path, in bytes: as the registries have it.
const MAX_PATH_BYTES: usize = 255;

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host, with a port if it has one.
    pub registry: String,
    pub repository: String,
    /// `latest` where nothing was said.
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoReference {
    pub text: String,
    pub why: &'static str,
}

impl fmt::Display for NoReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` names no image in a registry: {}", self.text.escape_default(), self.why)
    }
}

impl std::error::Error for NoReference {}
impl crate::report::Hint for NoReference {}

impl FromStr for Reference {
    type Err = NoReference;

    fn from_str(text: &str) -> Result<Self, NoReference> {
        let wrong = |why| NoReference { text: text.to_owned(), why };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|_| wrong("its digest is none"))?)),
            None => (text, None),
        };
        let (registry, rest) = match name.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
            _ => (DEFAULT_REGISTRY.0, name),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if !is_host(registry) {
            return Err(wrong("its registry is no host"));
        }
        let is_part = |part: &str| {
            let is_separator = |byte: u8| matches!(byte, b'.' | b'_' | b'-');
            let bytes = part.as_bytes();
            !part.is_empty()
                && bytes.iter().all(|&byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || is_separator(byte))
                && !is_separator(bytes[0])
                && !is_separator(bytes[bytes.len() - 1])
        };
        if path.len() > MAX_PATH_BYTES || !path.split('/').all(is_part) {
            return Err(wrong("its path is of lower-case letters, digits, and `.`, `_`, `-` between them"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("its tag is of letters, digits, `.`, `_` and `-`"));
        }
        let is_default = registry == DEFAULT_REGISTRY.0;
        let repository =
            if is_default && !path.contains('/') { format!("{DEFAULT_NAMESPACE}/{path}") } else { path.to_owned() };
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl Reference {
    /// The host that answers for the registry.
    pub fn host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY.0 { DEFAULT_REGISTRY.1 } else { &self.registry }
    }

    /// What the registry knows the image by: the digest, or the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The name of the file that a pull makes: `box_latest.sif`.
    pub fn file_name(&self) -> String {
        let name = self.repository.rsplit('/').next().unwrap_or_default();
        let version = match (&self.tag, &self.digest) {
            (Some(tag), _) => tag.clone(),
            (None, Some(digest)) => digest.hex().to_owned(),
            (None, None) => DEFAULT_TAG.to_owned(),
        };
        format!("{name}_{version}.sif")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    (1..=128).contains(&bytes.len())
        && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && !matches!(bytes[0], b'.' | b'-')
}

/// A host name or address, perhaps with a port.
pub fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, "")) => (name, None),
            Some((name, port)) => (name, Some(port.strip_prefix(':').unwrap_or("x"))),
            None => return false,
        },
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_name = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':'));
    is_name && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str, file: &str) {
        let reference: Reference = text.parse().unwrap();
        assert_eq!((reference.to_string().as_str(), reference.file_name().as_str()), (expected, file));
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        let (hub, ..) = DEFAULT_REGISTRY;
        check("debian", &format!("{hub}/library/debian:latest"), "debian_latest.sif");
        check("team/tool:1.0", &format!("{hub}/team/tool:1.0"), "tool_1.0.sif");
        check("localhost/tool", "localhost/tool:latest", "tool_latest.sif");
        check("127.0.0.1:5000/deep/er/tool:v1", "127.0.0.1:5000/deep/er/tool:v1", "tool_v1.sif");
        check("[::1]:5000/tool", "[::1]:5000/tool:latest", "tool_latest.sif");
    }

    #[test]
    fn a_digest_takes_the_place_of_a_tag() {
        let digest = Digest::of(b"x");
        check(&format!("localhost/a@{digest}"), &format!("localhost/a@{digest}"), &format!("a_{}.sif", digest.hex()));
        let both: Reference = format!("localhost/a:1@{digest}").parse().unwrap();
        assert_eq!((both.version(), both.file_name()), (digest.to_string(), "a_1.sif".to_owned()));
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_reference() {
        for text in [
            "",
            "Debian",
            "a//b",
            "a/../b",
            "localhost:port/a",
            "host.example:99999/a",
            "a:tag with blank",
            "a@sha256:..",
            "user:pass@host.example/a",
            "host.example/a?x",
            "a:",
            "-a",
            "host.example/",
            "[::1/a",
            "a\n",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
