//! Writing SquashFS 4.0: a [`Tree`] becomes an image that the kernel, `unsquashfs` and `squashfuse` read alike.
//!
//! ```text
//! 0            96                                                                            bytes_used    4096·n
//! | superblock | blocks and fragments | inodes | directories | fragment | export | id | xattr | zeros      |
//! |            | (options of lz4)     |        |             | table    | table  | table     |            |
//! ```
//!
//! Everything is decided before the first block is compressed: [`layout`] gives each file its blocks, packs small
//! files into fragments and cuts the work into jobs; [`duplicates`] has found which files are equal. So the jobs need
//! nothing of one another, run on all threads, and are written in their order: the same tree gives the same bytes,
//! however many threads there are. Memory is bounded by the jobs in flight (about four MiB a thread) and by the
//! metadata (about a hundred bytes a file).
//!
//! Contents that can be read once, and in one order, go through [`stream`] instead.
//! All other reading of contents is in [`reading`].

mod blocks;
mod compress;
mod duplicates;
mod estimate;
mod inodes;
mod layout;
mod metadata;
mod reading;
mod stream;
mod xattrs;

pub use compress::Compression;
pub use estimate::estimate;
pub use stream::{Packer, write_stream};

use crate::report::{Hint, cause};
use crate::tree::{Body, InodeId, Tree};
use metadata::{Tables, write_table};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::{self, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;

/// Bytes of a data block, unless another size is asked for: what the kernel reads at once. Larger blocks compress
/// better, and every small read takes longer.
pub const BLOCK_BYTES: usize = 128 << 10;
/// The sizes that the format allows: powers of two from the first to the second.
pub const BLOCK_BYTES_RANGE: (usize, usize) = (4 << 10, 1 << 20);
/// An image's length is a multiple of this, so that a loop device shows all of it.
pub const PADDING_BYTES: u64 = 4096;
const SUPERBLOCK_BYTES: usize = 96;
const MAGIC: u32 = 0x7371_7368;
const NOWHERE: u64 = u64::MAX;

/// How a tree is packed.
#[derive(Clone, Debug)]
pub struct PackOptions {
    pub compression: Compression,
    /// Bytes of a data block: a power of two within [`BLOCK_BYTES_RANGE`].
    pub block_bytes: usize,
    /// How many threads compress.
    pub threads: NonZeroUsize,
    /// When the image was made, in seconds since 1970; the format holds 32 bits.
    pub time: i64,
}

/// How far the writing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Files of one size are read, to store equal ones once.
    Hashing,
    /// Those with equal hashes are compared.
    Comparing,
    /// Contents are compressed and written.
    Packing,
    /// What an image is made of comes from elsewhere.
    Fetching,
    /// An image goes elsewhere.
    Sending,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Length of the image, with its padding.
    pub size_bytes: u64,
    /// Bytes of all files, each inode once.
    pub content_bytes: u64,
    pub inodes: u32,
    pub fragments: u32,
    /// Files whose content another file has too, and the bytes that were not stored for them.
    pub duplicate_files: u32,
    pub duplicate_bytes: u64,
    /// Stands for the whole image: equal for equal images, whatever the number of threads.
    pub digest: [u8; 32],
}

/// Why an image was not written.
#[derive(Debug)]
pub enum WriteError {
    /// The content of a file could not be read.
    Read {
        name: String,
        source: io::Error,
    },
    /// A file is not as long as the tree says: it changed in between.
    Changed {
        name: String,
        expected_bytes: u64,
    },
    /// The image could not be written.
    Output {
        source: io::Error,
    },
    Compress {
        reason: String,
    },
    /// A block size that the format does not have.
    BlockSize {
        bytes: usize,
    },
    /// More than the format can count.
    TooMany {
        what: &'static str,
        limit: u64,
    },
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { name, source } => write!(f, "cannot read {name}: {}", cause(source)),
            Self::Changed { name, expected_bytes } => {
                write!(f, "{name} changed while it was packed: it no longer holds {expected_bytes} bytes")
            }
            Self::Output { source } => write!(f, "cannot write the image: {}", cause(source)),
            Self::Compress { reason } => write!(f, "cannot compress a block: {reason}"),
            Self::BlockSize { bytes } => {
                let (least, most) = BLOCK_BYTES_RANGE;
                write!(f, "blocks of {bytes} bytes are not possible: a power of two from {least} to {most} is")
            }
            Self::TooMany { what, limit } => write!(f, "too many {what} for a SquashFS image: at most {limit}"),
        }
    }
}

impl std::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } | Self::Output { source } => Some(source),
            _ => None,
        }
    }
}

impl Hint for WriteError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "An image holds everything below its directory: make this file readable, or move it away."
            }
            Self::Changed { .. } => "Wait until nothing writes to the directory, then build again.",
            Self::Output { source } if source.kind() == io::ErrorKind::StorageFull => {
                "Free some space, or write the image to another file system."
            }
            Self::Output { source } if source.kind() == io::ErrorKind::FileTooLarge => {
                "Files may not grow that large: raise the limit (`ulimit -f`), or write the image to another file system."
            }
            Self::Output { source } if source.kind() == io::ErrorKind::QuotaExceeded => {
                "Your quota is used up: remove something, or write the image to another file system."
            }
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

impl From<io::Error> for WriteError {
    fn from(source: io::Error) -> Self {
        Self::Output { source }
    }
}

/// Writes `tree` as an image that begins where `out` stands; `out` is left behind the image's last byte.
pub fn write(tree: &Tree, options: &PackOptions, out: &mut (impl Write + Seek)) -> Result<Summary, WriteError> {
    write_watched(tree, options, out, &mut |_| ())
}

/// As [`write`]; tells `watch`, often, how far it is.
pub fn write_watched(
    tree: &Tree,
    options: &PackOptions,
    out: &mut (impl Write + Seek),
    watch: &mut dyn FnMut(Progress),
) -> Result<Summary, WriteError> {
    check_block_bytes(options.block_bytes)?;
    let numbered = inodes::number(tree)?;
    let same_as = duplicates::find(tree, &numbered.files, options.threads, watch)?;
    let plan = layout::plan(tree, &numbered.files, &same_as, options.block_bytes)?;

    let base = out.stream_position()?;
    let mut digest = Sha256::new();
    let head = head(options);
    out.write_all(&head)?;
    let mut end = head.len() as u64;
    let stored = blocks::write(tree, &plan, options, &mut end, &mut digest, out, watch)?;
    finish(tree, &numbered, Contents { same_as, plan, stored, digest, end }, options, base, out)
}

fn check_block_bytes(bytes: usize) -> Result<(), WriteError> {
    let (least, most) = BLOCK_BYTES_RANGE;
    let possible = bytes.is_power_of_two() && (least..=most).contains(&bytes);
    if possible { Ok(()) } else { Err(WriteError::BlockSize { bytes }) }
}

/// What stands before the first block; the superblock comes last.
fn head(options: &PackOptions) -> Vec<u8> {
    let mut head = vec![0; SUPERBLOCK_BYTES];
    head.extend(options.compression.stored_options());
    head
}

/// The contents of an image, written.
struct Contents {
    same_as: duplicates::SameAs,
    plan: layout::Plan,
    stored: blocks::Stored,
    digest: Sha256,
    /// Where in the image they end.
    end: u64,
}

/// Writes what names the contents, in an image that begins at `base` of `out`.
fn finish(
    tree: &Tree,
    numbered: &inodes::Numbered,
    contents: Contents,
    options: &PackOptions,
    base: u64,
    out: &mut (impl Write + Seek),
) -> Result<Summary, WriteError> {
    let Contents { same_as, plan, stored, mut digest, mut end } = contents;
    let mut tables = Tables::new(options.compression, end);
    let metadata = inodes::write(tree, numbered, &same_as, &plan, &stored, options.compression)?;
    let superblock = write_tables(&mut tables, numbered, &stored, &metadata, options)?;
    digest.update(superblock);
    digest.update(&tables.bytes);
    out.write_all(&tables.bytes)?;
    end += tables.bytes.len() as u64;

    let size_bytes = end.next_multiple_of(PADDING_BYTES);
    out.write_all(&vec![0; (size_bytes - end) as usize])?;
    out.seek(SeekFrom::Start(base))?;
    out.write_all(&superblock)?;
    out.seek(SeekFrom::Start(base + size_bytes))?;

    Ok(Summary {
        size_bytes,
        content_bytes: plan.content_bytes,
        inodes: numbered.count(),
        fragments: stored.fragments.len() as u32,
        duplicate_files: plan.duplicate_files,
        duplicate_bytes: plan.duplicate_bytes,
        digest: digest.finalize().into(),
    })
}

/// Puts the tables behind the blocks, in the order in which the kernel checks that they follow one another.
fn write_tables(
    tables: &mut Tables,
    numbered: &inodes::Numbered,
    stored: &blocks::Stored,
    metadata: &inodes::Metadata,
    options: &PackOptions,
) -> Result<[u8; SUPERBLOCK_BYTES], WriteError> {
    let inode_table = tables.append(&metadata.inodes);
    let directory_table = tables.append(&metadata.directories);
    let fragments: Vec<u8> = stored.fragments.iter().flat_map(|fragment| fragment.to_bytes()).collect();
    let fragment_table = if fragments.is_empty() { NOWHERE } else { write_table(tables, &fragments)? };
    let export: Vec<u8> = metadata.references.iter().flat_map(|reference| reference.to_le_bytes()).collect();
    let export_table = write_table(tables, &export)?;
    let ids: Vec<u8> = metadata.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let id_table = write_table(tables, &ids)?;
    let xattr_table = metadata.xattrs.write(tables)?;

    let has_xattrs = xattr_table != NOWHERE;
    let flags =
        options.compression.flags() | FLAG_DUPLICATES | FLAG_EXPORT | if has_xattrs { 0 } else { FLAG_NO_XATTRS };
    let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(numbered.count().to_le_bytes());
    bytes.extend(inodes::time(options.time).to_le_bytes());
    bytes.extend((options.block_bytes as u32).to_le_bytes());
    bytes.extend((stored.fragments.len() as u32).to_le_bytes());
    bytes.extend(options.compression.id().to_le_bytes());
    bytes.extend((options.block_bytes.trailing_zeros() as u16).to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend((metadata.ids.len() as u16).to_le_bytes());
    bytes.extend(4_u16.to_le_bytes());
    bytes.extend(0_u16.to_le_bytes());
    bytes.extend(metadata.root.to_le_bytes());
    bytes.extend(tables.end().to_le_bytes());
    for table in [id_table, xattr_table, inode_table, directory_table, fragment_table, export_table] {
        bytes.extend(table.to_le_bytes());
    }
    bytes.try_into().map_err(|_| WriteError::TooMany { what: "bytes of superblock", limit: SUPERBLOCK_BYTES as u64 })
}

const FLAG_DUPLICATES: u16 = 0x40;
const FLAG_EXPORT: u16 = 0x80;
const FLAG_NO_XATTRS: u16 = 0x200;

/// The content of a regular file.
fn content(tree: &Tree, id: InodeId) -> Option<&crate::tree::Content> {
    match tree.inode(id).body {
        Body::File(content) => Some(content),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
