//! What can be wrong with an image, and the words for it. The path is not known here: whoever opened the file adds it.

use super::descriptor::GROUP_TAG;
use super::{Arch, MAX_DESCRIPTORS};
use crate::report::Hint;
use std::fmt;
use std::io;

/// Why a file can't be read as a SIF image at all.
#[derive(Debug)]
pub enum OpenError {
    /// The magic is not there: some other kind of file.
    NotSif,
    /// The file ends inside the header.
    TooShort { size_bytes: u64 },
    /// The magic lacks its last byte.
    MagicNotTerminated,
    /// Another version than 01.
    Version { found: [u8; 3] },
    /// A negative or absurd number of descriptors.
    DescriptorCount { total: i64 },
    /// The descriptor table begins inside the header or before the file.
    TableOffset { offset: i64 },
    /// The table is too small for the descriptors it should hold.
    TableSize { size: i64, total: i64 },
    /// The table ends after the file does.
    TablePastEnd { end: Option<i64>, size_bytes: u64 },
    /// The medium failed.
    Read { what: &'static str, source: io::Error },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSif => f.write_str("not a SIF image: the magic `SIF_MAGIC` is missing at byte 32"),
            Self::TooShort { size_bytes } => {
                write!(f, "damaged SIF image: {size_bytes} bytes are less than its header of 128")
            }
            Self::MagicNotTerminated => f.write_str("damaged SIF image: the magic at byte 32 is not terminated"),
            Self::Version { found } => {
                let text = found.strip_suffix(b"\0").unwrap_or(found).escape_ascii();
                write!(f, "incompatible SIF version `{text}`, expected `01`")
            }
            Self::DescriptorCount { total } => {
                write!(f, "damaged SIF image: the header counts {total} descriptors, expected 0 to {MAX_DESCRIPTORS}")
            }
            Self::TableOffset { offset } => {
                write!(
                    f,
                    "damaged SIF image: the descriptor table is at offset {offset}, inside the header or outside the file"
                )
            }
            Self::TableSize { size, total } => {
                write!(f, "damaged SIF image: a descriptor table of {size} bytes can't hold {total} descriptors")
            }
            Self::TablePastEnd { end: Some(end), size_bytes } => {
                write!(f, "damaged SIF image: the descriptor table ends at {end}, the file at {size_bytes}")
            }
            Self::TablePastEnd { end: None, size_bytes } => {
                write!(f, "damaged SIF image: the descriptor table's end is no offset of a file of {size_bytes} bytes")
            }
            Self::Read { what, source } => write!(f, "cannot read the {what}: {source}"),
        }
    }
}

impl std::error::Error for OpenError {}

const FETCH_AGAIN: &str = "The file was cut short or changed; fetch or build the image again.";

impl Hint for OpenError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NotSif | Self::Read { .. } => return Vec::new(),
            Self::Version { .. } => "The image was written by a newer program; this version knows only version 01.",
            _ => FETCH_AGAIN,
        };
        vec![hint.to_owned()]
    }
}

/// Why one object of an image must not be used. Listing it is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    IdZero,
    /// Another object has the same id.
    IdTwice,
    /// The group field lacks its tag.
    GroupTag {
        group: u32,
    },
    /// The tag of the link field is neither an object's nor a group's.
    LinkTag {
        link: u32,
    },
    NegativeOffset {
        offset: i64,
    },
    NegativeSize {
        size: i64,
    },
    EndOverflows {
        offset: i64,
        size: i64,
    },
    PastEnd {
        end: i64,
        file_size: u64,
    },
    OnHeader {
        offset: i64,
    },
    OnTable {
        offset: i64,
    },
    /// Its bytes are also another object's.
    Overlaps {
        other_id: u32,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IdZero => f.write_str("its id is 0"),
            Self::IdTwice => f.write_str("multiple objects have this id"),
            Self::GroupTag { group } => write!(f, "its group {group:#x} lacks the tag {GROUP_TAG:#x}"),
            Self::LinkTag { link } => write!(f, "its link {link:#x} leads neither to an object nor to a group"),
            Self::NegativeOffset { offset } => write!(f, "its offset is {offset}"),
            Self::NegativeSize { size } => write!(f, "its size is {size}"),
            Self::EndOverflows { offset, size } => write!(f, "its offset {offset} and size {size} overflow"),
            Self::PastEnd { end, file_size } => write!(f, "it ends at {end}, the file at {file_size}"),
            Self::OnHeader { offset } => write!(f, "its offset {offset} lies in the image's header"),
            Self::OnTable { offset } => write!(f, "its data at {offset} lie on the descriptor table"),
            Self::Overlaps { other_id } => write!(f, "its data overlap those of object {other_id}"),
        }
    }
}

/// Why an object can't be had.
#[derive(Debug)]
pub enum ObjectError {
    /// 0 is no id.
    InvalidId,
    NotFound {
        id: u32,
    },
    Damaged {
        id: u32,
        problem: Problem,
    },
    /// Larger than the caller wants to hold.
    TooLarge {
        id: u32,
        size_bytes: u64,
        limit_bytes: u64,
    },
    Read {
        id: u32,
        source: io::Error,
    },
    /// Where it should be copied to failed.
    Write {
        id: u32,
        source: io::Error,
    },
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidId => f.write_str("invalid object ID 0"),
            Self::NotFound { id } => write!(f, "object not found: {id}"),
            Self::Damaged { id, problem } => write!(f, "object {id} is damaged: {problem}"),
            Self::TooLarge { id, size_bytes, limit_bytes } => {
                write!(f, "object {id} is too large: {size_bytes} bytes, expected at most {limit_bytes}")
            }
            Self::Read { id, source } => write!(f, "cannot read object {id}: {source}"),
            Self::Write { id, source } => write!(f, "cannot write out object {id}: {source}"),
        }
    }
}

impl std::error::Error for ObjectError {}

impl Hint for ObjectError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::InvalidId | Self::NotFound { .. } => {
                vec!["`sifu sif list IMAGE` shows the objects and their ids.".into()]
            }
            Self::Damaged { .. } => vec![FETCH_AGAIN.into()],
            _ => Vec::new(),
        }
    }
}

/// Why an image has no root file system that this program can open.
#[derive(Debug)]
pub enum RootError {
    /// No primary partition, and nothing else that could be a root.
    None,
    /// An OCI-SIF: the root is made of OCI layers.
    OciSif,
    Several {
        ids: Vec<u32>,
    },
    Damaged {
        id: u32,
        problem: Problem,
    },
    Ext3 {
        id: u32,
    },
    /// SquashFS in a LUKS2 volume.
    EncryptedLuks {
        id: u32,
    },
    EncryptedGocryptfs {
        id: u32,
    },
    /// A raw or archive partition.
    NotAFileSystem {
        id: u32,
        kind: &'static str,
    },
    UnknownFileSystem {
        id: u32,
        code: i32,
    },
    UnknownArchitecture {
        id: u32,
        code: [u8; 3],
    },
    WrongArchitecture {
        image: Arch,
        host: Arch,
    },
}

impl fmt::Display for RootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no root file system found: the image has no primary partition"),
            Self::OciSif => f.write_str("the image is an OCI-SIF, which this version can't open yet"),
            Self::Several { ids } => {
                write!(f, "no root file system found: {} partitions say that they are the primary one (", ids.len())?;
                for (index, id) in ids.iter().take(8).enumerate() {
                    write!(f, "{}object {id}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str(if ids.len() > 8 { ", …)" } else { ")" })
            }
            Self::Damaged { id, problem } => write!(f, "the root file system (object {id}) is damaged: {problem}"),
            Self::Ext3 { id } => {
                write!(f, "the root file system (object {id}) is ext3, which this version can't open yet")
            }
            Self::EncryptedLuks { id } => {
                write!(f, "the root file system (object {id}) is encrypted (LUKS2), which this version can't open yet")
            }
            Self::EncryptedGocryptfs { id } => {
                write!(
                    f,
                    "the root file system (object {id}) is encrypted (gocryptfs), which this version can't open yet"
                )
            }
            Self::NotAFileSystem { id, kind } => {
                write!(f, "the primary partition (object {id}) is of the type `{kind}`, which is no file system")
            }
            Self::UnknownFileSystem { id, code } => {
                write!(f, "the root file system (object {id}) has the unknown type {code}")
            }
            Self::UnknownArchitecture { id, code } => {
                let code = code.strip_suffix(b"\0").unwrap_or(code).escape_ascii();
                write!(f, "the root file system (object {id}) has the unknown architecture code `{code}`")
            }
            Self::WrongArchitecture { image, host } => {
                write!(f, "the image's architecture ({image}) can't run on the host's ({host})")
            }
        }
    }
}

impl std::error::Error for RootError {}

impl Hint for RootError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::None => {
                "`sifu sif list IMAGE` shows what is in it; `sifu sif setprim ID IMAGE` makes a System partition the root."
            }
            Self::OciSif => {
                "Open it with SingularityCE 4 (`singularity run --oci`), or build a SIF from the OCI image that it was made of."
            }
            Self::Several { .. } => "Choose one with `sifu sif setprim ID IMAGE`.",
            Self::Damaged { .. } => FETCH_AGAIN,
            Self::Ext3 { .. } => {
                "Rebuild it as SquashFS where Apptainer is at hand: `apptainer build new.sif old.sif`."
            }
            Self::EncryptedLuks { .. } => {
                "Unlock it where it was made (needs root and the key), and build a SIF that is not encrypted."
            }
            Self::EncryptedGocryptfs { .. } => {
                "Run it with Apptainer and its key, or build an image from it that is not encrypted."
            }
            Self::NotAFileSystem { .. } | Self::UnknownFileSystem { .. } => {
                "The image may be a plugin, or come from a newer program; `sifu sif list IMAGE` shows what is in it."
            }
            Self::UnknownArchitecture { .. } => "The image was written by a newer program, or was damaged.",
            Self::WrongArchitecture { .. } => {
                "Get the image for this machine's architecture, or register an emulator with binfmt_misc (flag F)."
            }
        };
        vec![hint.to_owned()]
    }
}

/// Why an image was not changed.
#[derive(Debug)]
pub enum WriteError {
    Open(OpenError),
    Object(ObjectError),
    /// Every descriptor is in use. The capacity of an image is fixed when it is made.
    Full {
        capacity: i64,
    },
    Capacity {
        asked: u32,
    },
    LaunchLineTooLong {
        length: usize,
    },
    NameTooLong {
        length: usize,
    },
    GroupTooLarge {
        group: u32,
    },
    LinkTooLarge {
        link: u32,
    },
    UnknownArchitecture {
        arch: Arch,
    },
    SecondPrimary {
        id: u32,
    },
    NotAPartition {
        id: u32,
    },
    NotASystemPartition {
        id: u32,
    },
    NotOci {
        id: u32,
    },
    /// The place for data lies where it can't be.
    DataOffset {
        offset: i64,
    },
    /// Offsets would pass what the format can hold.
    Overflow,
    /// The source of the data failed.
    Source {
        source: io::Error,
    },
    Storage {
        what: &'static str,
        source: io::Error,
    },
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Object(error) => error.fmt(f),
            Self::Full { capacity } => {
                write!(f, "insufficient descriptor capacity: all {capacity} descriptors are in use")
            }
            Self::Capacity { asked } => {
                write!(f, "a capacity of {asked} descriptors is too large, expected at most {MAX_DESCRIPTORS}")
            }
            Self::LaunchLineTooLong { length } => {
                write!(f, "launch script too large: {length} bytes, expected at most 31")
            }
            Self::NameTooLong { length } => write!(f, "name value too large: {length} bytes, expected at most 128"),
            Self::GroupTooLarge { group } => {
                write!(f, "group id {group} is too large, expected at most {}", !GROUP_TAG)
            }
            Self::LinkTooLarge { link } => write!(f, "link id {link} is too large, expected at most {}", !GROUP_TAG),
            Self::UnknownArchitecture { arch } => write!(f, "unknown architecture: {arch}"),
            Self::SecondPrimary { id } => {
                write!(f, "image already contains a primary partition: object {id}")
            }
            Self::NotAPartition { id } => write!(f, "data object not a partition: {id}"),
            Self::NotASystemPartition { id } => write!(f, "data object not a system partition: {id}"),
            Self::NotOci { id } => write!(f, "data object not an OCI blob or index: {id}"),
            Self::DataOffset { offset } => {
                write!(
                    f,
                    "damaged SIF image: its data should begin at {offset}, which is not after the descriptor table"
                )
            }
            Self::Overflow => f.write_str("the image would pass 2^63 bytes"),
            Self::Source { source } => write!(f, "cannot read the data: {source}"),
            Self::Storage { what, source } => write!(f, "cannot write the {what}: {source}"),
        }
    }
}

impl std::error::Error for WriteError {}

impl Hint for WriteError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Open(error) => error.hints(),
            Self::Object(error) => error.hints(),
            Self::Full { .. } => vec!["Delete an object that is no longer needed with `sifu sif del ID IMAGE`.".into()],
            Self::SecondPrimary { .. } => {
                vec!["Add it as a System partition (type 1) and choose it with `sifu sif setprim ID IMAGE`.".into()]
            }
            _ => Vec::new(),
        }
    }
}

impl From<OpenError> for WriteError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<ObjectError> for WriteError {
    fn from(error: ObjectError) -> Self {
        Self::Object(error)
    }
}
