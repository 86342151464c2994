//! What a file is, by its first bytes.
//!
//! ```text
//! SIF         `SIF_MAGIC` at 32, after a launch line or 32 zero bytes
//! SquashFS    `hsqs` at 0, or after a launch line that ends in ` run-singularity`
//! ext2/3/4    53 EF at 1080
//! ```

use crate::sif;
use std::fmt;

/// How much of a file [`detect`] wants to see; the descriptor table of a usual SIF and the superblock after it are in it.
pub const HEAD_BYTES: usize = 36 << 10;

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Sif,
    Squashfs {
        offset_bytes: u64,
    },
    /// An ext2, ext3 or ext4 file system.
    Ext,
    /// No image.
    Other(Content),
}

/// What a file that is no image seems to be: words for the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Empty,
    /// It begins like an image that can be executed, and then is none.
    BrokenImage,
    Text,
    Script,
    Program,
    /// A tar archive, packed or not, as `docker save` writes it.
    Archive,
    Unknown,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::BrokenImage => "it begins like a SIF image, and then is none",
            Self::Text => "it holds text",
            Self::Script => "it is a script",
            Self::Program => "it is a program",
            Self::Archive => "it is an archive",
            Self::Unknown => "it is neither SIF nor SquashFS",
        })
    }
}

/// Tells what a file is that begins with `head`: all of it, or [`HEAD_BYTES`].
pub fn detect(head: &[u8]) -> Format {
    if sif::is_sif(head) {
        return Format::Sif;
    }
    let launch_line = sif::launch_line_length(head).unwrap_or(0);
    for offset in [0, launch_line] {
        if head[offset..].starts_with(b"hsqs") {
            return Format::Squashfs { offset_bytes: offset as u64 };
        }
        if head.get(offset + EXT_MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(EXT_MAGIC)) {
            return Format::Ext;
        }
    }
    Format::Other(content(head, launch_line > 0))
}

const EXT_MAGIC_OFFSET: usize = 1080;
const EXT_MAGIC: &[u8] = &[0x53, 0xef];

fn content(head: &[u8], has_launch_line: bool) -> Content {
    const TAR_MAGIC_OFFSET: usize = 257;
    const PACKED: [&[u8]; 5] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04"];
    let start = &head[..head.len().min(512)];
    if head.is_empty() {
        Content::Empty
    } else if has_launch_line || start.windows(9).any(|bytes| bytes == b"SIF_MAGIC") {
        Content::BrokenImage
    } else if head.starts_with(b"\x7fELF") {
        Content::Program
    } else if head.get(TAR_MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(b"ustar"))
        || PACKED.iter().any(|magic| head.starts_with(magic))
    {
        Content::Archive
    } else if start.iter().all(|&byte| byte >= b' ' || matches!(byte, b'\n' | b'\r' | b'\t')) {
        if head.starts_with(b"#!") { Content::Script } else { Content::Text }
    } else {
        Content::Unknown
    }
}

/// A URI where a path was expected: what it names is not a file here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    /// An image somewhere else: a registry, an archive, a URL.
    Elsewhere(&'a str),
    /// `instance://NAME`.
    Instance,
    /// Looks like a URI of a kind that nobody knows.
    Unknown(&'a str),
}

/// Tells whether `argument` is a URI. `docker-archive:FILE` and its like are URIs without slashes.
pub fn transport(argument: &str) -> Option<Transport<'_>> {
    const WITH_SLASHES: [&str; 8] = ["docker", "library", "oras", "shub", "http", "https", "ipfs", "s3"];
    const WITHOUT: [&str; 4] = ["docker-archive", "docker-daemon", "oci", "oci-archive"];
    let (scheme, rest) = argument.split_once(':')?;
    let with_slashes = rest.starts_with("//");
    if WITHOUT.contains(&scheme) || (with_slashes && WITH_SLASHES.contains(&scheme)) {
        Some(Transport::Elsewhere(scheme))
    } else if with_slashes && scheme == "instance" {
        Some(Transport::Instance)
    } else if with_slashes
        && !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    {
        Some(Transport::Unknown(scheme))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &[u8], expected: Format) {
        assert_eq!(detect(head), expected);
    }

    fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![0; offset];
        head.extend_from_slice(bytes);
        head
    }

    #[test]
    fn images_are_known_by_their_magic() {
        check(&with(32, b"SIF_MAGIC\0"), Format::Sif);
        check(b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0", Format::Sif);
        check(b"#!/opt/bin/sifu plan exec       SIF_MAGIC\0", Format::Sif);
        check(b"hsqs....", Format::Squashfs { offset_bytes: 0 });
        check(b"#!/usr/bin/env run-singularity\nhsqs", Format::Squashfs { offset_bytes: 31 });
        check(&with(1080, EXT_MAGIC), Format::Ext);
    }

    #[test]
    fn other_files_are_named_in_words() {
        check(b"", Format::Other(Content::Empty));
        check(b"hello\n", Format::Other(Content::Text));
        check(b"#!/bin/sh\necho hi\n", Format::Other(Content::Script));
        check(b"\x7fELF\x02\x01", Format::Other(Content::Program));
        check(b"\x1f\x8b\x08", Format::Other(Content::Archive));
        check(&with(257, b"ustar\0"), Format::Other(Content::Archive));
        check(b"#!/usr/bin/env run-singularity\n\0SIF_MAGIX\0", Format::Other(Content::BrokenImage));
        check(&with(40, b"SIF_MAGIC"), Format::Other(Content::BrokenImage));
        check(&[0, 1, 2], Format::Other(Content::Unknown));
    }

    #[test]
    fn no_length_of_a_head_panics() {
        let whole = with(1080, EXT_MAGIC);
        for length in 0..whole.len() {
            detect(&whole[..length]);
        }
        for length in 0..40 {
            detect(&b"#!/usr/bin/env run-singularity\nhsqs"[..length.min(35)]);
        }
    }

    #[test]
    fn uris_are_told_from_paths() {
        assert_eq!(transport("docker://alpine"), Some(Transport::Elsewhere("docker")));
        assert_eq!(transport("docker-archive:a.tar"), Some(Transport::Elsewhere("docker-archive")));
        assert_eq!(transport("oci:dir:tag"), Some(Transport::Elsewhere("oci")));
        assert_eq!(transport("instance://web"), Some(Transport::Instance));
        assert_eq!(transport("foo://bar"), Some(Transport::Unknown("foo")));
        for path in ["x.sif", "./co:lon.sif", "co:lon.sif", "a/b://c", "://x", "docker:x"] {
            assert_eq!(transport(path), None, "{path}");
        }
    }
}
