//! References: how people name an image in a library.
//!
//! ```text
//! library://[HOST/]ENTITY/COLLECTION/NAME[:TAG]      TAG: `latest` unless said; sha256.HEX names the file itself
//! library://COLLECTION/NAME[:TAG]                    the library knows whose
//! library://NAME[:TAG]
//! ```
//!
//! The first of four parts is a host, and so is one with a port.

use crate::oci::digest::Digest;
use crate::oci::reference::is_host;
use crate::report::Hint;
use std::fmt;
use std::str::FromStr;

const DEFAULT_TAG: &str = "latest";
const MAX_BYTES: usize = 1024;

/// An image in a library.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LibraryReference {
    /// The library's host, with a port if it has one, where it was said.
    pub host: Option<String>,
    /// One to three parts.
    path: Vec<String>,
    /// Several to store it under, one to get it by.
    tags: Vec<String>,
}

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoLibraryReference {
    pub text: String,
    pub why: &'static str,
}

impl fmt::Display for NoLibraryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` names no image in a library: {}", self.text.escape_default(), self.why)
    }
}

impl std::error::Error for NoLibraryReference {}

impl Hint for NoLibraryReference {
    fn hints(&self) -> Vec<String> {
        vec!["An image is library://ENTITY/COLLECTION/NAME:TAG, or with a host: library://HOST/ENTITY/COLLECTION/NAME:TAG.".to_owned()]
    }
}

impl FromStr for LibraryReference {
    type Err = NoLibraryReference;

    /// Reads what stands behind `library:`, with or without the slashes.
    fn from_str(text: &str) -> Result<Self, NoLibraryReference> {
        let wrong = |why| NoLibraryReference { text: text.to_owned(), why };
        if text.len() > MAX_BYTES {
            return Err(wrong("it is too long"));
        }
        let rest = text.strip_prefix("library:").unwrap_or(text);
        let rest = rest.trim_start_matches('/');
        let mut parts: Vec<&str> = rest.split('/').collect();
        let host =
            if parts.len() == 4 || (parts.len() > 1 && parts[0].contains(':')) { Some(parts.remove(0)) } else { None };
        if host.is_some_and(|host| !is_host(host)) {
            return Err(wrong("its host is none"));
        }
        if parts.len() > 3 {
            return Err(wrong("it has more parts than a host, an entity, a collection and a name"));
        }
        let last = parts.pop().unwrap_or_default();
        let (name, tags) = match last.split_once(':') {
            Some((name, tags)) => (name, tags.split(',').collect()),
            None => (last, vec![DEFAULT_TAG]),
        };
        parts.push(name);
        if !parts.iter().all(|part| is_word(part)) {
            return Err(wrong("its parts are of letters, digits, and `.`, `_`, `-` after them"));
        }
        if !tags.iter().all(|tag| is_word(tag)) {
            return Err(wrong("its tag is of letters, digits, and `.`, `_`, `-` after them"));
        }
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Ok(Self { host: host.map(str::to_ascii_lowercase), path: owned(&parts), tags: owned(&tags) })
    }
}

/// It becomes part of addresses and of names of files.
fn is_word(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

impl LibraryReference {
    /// What an image is got by: its parts and one tag.
    pub fn path_and_tag(&self) -> String {
        format!("{}:{}", self.path.join("/"), self.tags[0])
    }

    /// Checks that there is one tag, as where an image is got.
    pub fn with_one_tag(self) -> Result<Self, NoLibraryReference> {
        if self.tags.len() > 1 {
            let why = "one tag is needed, and there are several";
            return Err(NoLibraryReference { text: self.to_string(), why });
        }
        Ok(self)
    }

    /// Entity, collection and name, as where an image is stored.
    pub fn whole_path(&self) -> Result<[&str; 3], NoLibraryReference> {
        match self.path.as_slice() {
            [entity, collection, name] => Ok([entity, collection, name]),
            _ => {
                let why = "to be stored an image needs an entity, a collection and a name";
                Err(NoLibraryReference { text: self.to_string(), why })
            }
        }
    }

    pub fn tags(&self) -> &[String] {
        &self.tags
    }

    /// The digest of the file, where the tag is its hash.
    pub fn digest(&self) -> Option<Digest> {
        digest_of_hash(&self.tags[0])
    }

    /// The name of the file that a pull makes: `box_latest.sif`.
    pub fn file_name(&self) -> String {
        format!("{}_{}.sif", self.path[self.path.len() - 1], self.tags[0])
    }
}

impl fmt::Display for LibraryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("library://")?;
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        write!(f, "{}:{}", self.path.join("/"), self.tags.join(","))
    }
}

/// The digest that a library's hash of an image is: `sha256.` and its digits.
pub fn digest_of_hash(hash: &str) -> Option<Digest> {
    format!("sha256:{}", hash.strip_prefix("sha256.")?).parse().ok()
}

/// The hash by which a library knows a file.
pub fn hash_of_digest(digest: &Digest) -> String {
    format!("sha256.{}", digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, host: Option<&str>, expected: &str, file: &str) {
        let reference: LibraryReference = text.parse().unwrap();
        assert_eq!(reference.host.as_deref(), host, "{text}");
        assert_eq!((reference.path_and_tag().as_str(), reference.file_name().as_str()), (expected, file), "{text}");
    }

    #[test]
    fn what_is_not_said_is_left_to_the_library() {
        check("library://box", None, "box:latest", "box_latest.sif");
        check("library:///box:1", None, "box:1", "box_1.sif");
        check("library:box", None, "box:latest", "box_latest.sif");
        check("box:1.0", None, "box:1.0", "box_1.0.sif");
        check("library://tools/box:1.0", None, "tools/box:1.0", "box_1.0.sif");
        check("library://ada/tools/box", None, "ada/tools/box:latest", "box_latest.sif");
    }

    #[test]
    fn the_first_of_four_parts_is_a_host_and_so_is_one_with_a_port() {
        check("library://lib.example/ada/tools/box:1", Some("lib.example"), "ada/tools/box:1", "box_1.sif");
        check(
            "library://Lib.example:5000/ada/tools/box",
            Some("lib.example:5000"),
            "ada/tools/box:latest",
            "box_latest.sif",
        );
        check("library://localhost:5000/box", Some("localhost:5000"), "box:latest", "box_latest.sif");
        check("library://127.0.0.1:5000/tools/box:1", Some("127.0.0.1:5000"), "tools/box:1", "box_1.sif");
        check("library://[::1]:5000/a/b/c", Some("[::1]:5000"), "a/b/c:latest", "c_latest.sif");
    }

    #[test]
    fn a_hash_as_a_tag_is_the_digest_of_the_file() {
        let digest = Digest::of(b"x");
        let reference: LibraryReference = format!("library://a/b/c:{}", hash_of_digest(&digest)).parse().unwrap();
        assert_eq!(reference.digest(), Some(digest));
        for tag in ["latest", "sha256.abc", "sif.0123"] {
            assert_eq!(format!("library://a/b/c:{tag}").parse::<LibraryReference>().unwrap().digest(), None);
        }
    }

    #[test]
    fn several_tags_are_for_storing() {
        let reference: LibraryReference = "library://a/b/c:1,latest".parse().unwrap();
        assert_eq!(reference.tags(), ["1", "latest"]);
        assert_eq!(reference.whole_path(), Ok(["a", "b", "c"]));
        assert!(reference.with_one_tag().is_err());
        assert!("library://b/c".parse::<LibraryReference>().unwrap().whole_path().is_err());
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_reference() {
        for text in [
            "",
            "library://",
            "a//b",
            "a/../b",
            "../b",
            "a/b/c/d/e",
            "h:1/a/b/c/d",
            "a:",
            "a:b:c",
            "a:x,",
            "a b",
            "a?x=y",
            "a#b",
            "a@b",
            "user@lib.example/a/b/c",
            ":1/a",
            "a/b/c\n",
            "a/.b",
            "%2e%2e/b",
            "lib.example:x y/a",
            "é",
        ] {
            assert!(text.parse::<LibraryReference>().is_err(), "{text}");
        }
        assert!("a".repeat(2000).parse::<LibraryReference>().is_err());
    }
}
