//! What can be wrong with a SquashFS image, and what its owner can do about it.

use super::superblock::SuperblockError;
use crate::report::Hint;
use std::fmt;

/// Why an image, or one thing in it, can't be read. Offsets count from the start of the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SquashfsError {
    /// The superblock is none that an image can have.
    Superblock(SuperblockError),
    /// The medium failed.
    Read { offset_bytes: u64, errno: Option<i32> },
    /// The image file ends before these bytes.
    Truncated { offset_bytes: u64, wanted_bytes: usize },
    /// A block does not decompress to what it should.
    Inflate { offset_bytes: u64 },
    /// A value on disk is impossible; `what` names it.
    Damaged { what: &'static str, offset_bytes: u64 },
    /// A directory contains a directory that was met before: the tree has no end.
    Cycle { path: Vec<u8> },
}

impl fmt::Display for SquashfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock(error) => write!(f, "not a usable SquashFS image: {error}"),
            Self::Read { offset_bytes, errno } => {
                let cause = errno
                    .map_or_else(|| "input/output error".into(), |n| std::io::Error::from_raw_os_error(n).to_string());
                write!(f, "cannot read the SquashFS image at byte {offset_bytes}: {cause}")
            }
            Self::Truncated { offset_bytes, wanted_bytes } => {
                write!(f, "SquashFS image ends early: {wanted_bytes} bytes wanted at byte {offset_bytes}")
            }
            Self::Inflate { offset_bytes } => write!(f, "SquashFS block at byte {offset_bytes} does not decompress"),
            Self::Damaged { what, offset_bytes } => {
                write!(f, "damaged SquashFS image: {what} (near byte {offset_bytes})")
            }
            Self::Cycle { path } => {
                write!(f, "damaged SquashFS image: directory `{}` was met before", String::from_utf8_lossy(path))
            }
        }
    }
}

impl std::error::Error for SquashfsError {}

impl Hint for SquashfsError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Superblock(SuperblockError::Magic) => "The partition holds another file system, or none.",
            Self::Read { .. } => "Check the medium that holds the image, then try again.",
            _ => "The image was damaged after it was made: fetch or build it again.",
        };
        vec![hint.into()]
    }
}
