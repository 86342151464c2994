//! The superblock: bytes 0..96 of the partition, little-endian.
//!
//!   0       4        8        12           16          20       22     24      26     28      30
//!   | magic | inodes | mtime  | block size | fragments | packer | log2 | flags | ids  | major | minor |
//!   32           40           48         56            64            72          80          88        96
//!   | root inode | bytes used | id table | xattr table | inode table | directories | fragments | exports |
//!
//! [`Superblock::parse`] is pure and refuses what no image can have, so that later arithmetic can't overflow.

use std::fmt;

/// Length of the superblock.
pub const SUPERBLOCK_BYTES: usize = 96;

/// A table offset that means "this image has no such table".
const NO_TABLE: u64 = u64::MAX;

/// How blocks are compressed; the numbers are those on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Gzip = 1,
    Lzma = 2,
    Lzo = 3,
    Xz = 4,
    Lz4 = 5,
    Zstd = 6,
}

impl Compression {
    fn from_id(id: u16) -> Option<Self> {
        Some(match id {
            1 => Self::Gzip,
            2 => Self::Lzma,
            3 => Self::Lzo,
            4 => Self::Xz,
            5 => Self::Lz4,
            6 => Self::Zstd,
            _ => return None,
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// A checked superblock. Offsets count from the start of the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub inode_count: u32,
    /// When the image was made, seconds since 1970.
    pub mtime: u32,
    /// Power of two, 4 KiB to 1 MiB.
    pub block_bytes: u32,
    pub fragment_count: u32,
    pub compression: Compression,
    pub id_count: u16,
    /// Reference of the root directory's inode: block and offset, as [`super::InodeRef`].
    pub root: u64,
    pub bytes_used: u64,
    pub id_table: u64,
    pub xattr_table: Option<u64>,
    pub inode_table: u64,
    pub directory_table: u64,
    /// Where the directory table ends at the latest: the next table's start.
    pub directory_table_end: u64,
    pub fragment_table: u64,
}

/// Why bytes are no superblock of a usable image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// The partition is shorter than a superblock.
    Short {
        size_bytes: u64,
    },
    /// `hsqs` is missing.
    Magic,
    Version {
        major: u16,
        minor: u16,
    },
    Compression {
        id: u16,
    },
    /// No power of two between 4 KiB and 1 MiB, or not the one its logarithm says.
    BlockSize {
        block_bytes: u32,
        log: u16,
    },
    /// The image says it is longer than the partition, or shorter than its superblock.
    BytesUsed {
        bytes_used: u64,
        size_bytes: u64,
    },
    /// A table lies outside the image, or in the wrong place.
    Table {
        name: &'static str,
        offset_bytes: u64,
    },
    NoIds,
    /// The root directory's inode lies outside the inode table.
    Root {
        reference: u64,
    },
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { size_bytes } => write!(f, "{size_bytes} bytes hold no superblock"),
            Self::Magic => f.write_str("magic number is missing"),
            Self::Version { major, minor } => write!(f, "version {major}.{minor}, expected 4.0"),
            Self::Compression { id } => write!(f, "unknown compression {id}"),
            Self::BlockSize { block_bytes, log } => write!(f, "block size {block_bytes} with logarithm {log}"),
            Self::BytesUsed { bytes_used, size_bytes } => {
                write!(f, "{bytes_used} bytes long in a partition of {size_bytes}")
            }
            Self::Table { name, offset_bytes } => write!(f, "{name} table at byte {offset_bytes}"),
            Self::NoIds => f.write_str("no user ids"),
            Self::Root { reference } => write!(f, "root directory at {reference:#x}, outside the inode table"),
        }
    }
}

impl Superblock {
    /// Parses and checks the superblock of a partition of `size_bytes`.
    pub fn parse(bytes: &[u8; SUPERBLOCK_BYTES], size_bytes: u64) -> Result<Self, SuperblockError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if &bytes[..4] != b"hsqs" {
            return Err(SuperblockError::Magic);
        }
        let (major, minor) = (u16_at(28), u16_at(30));
        if (major, minor) != (4, 0) {
            return Err(SuperblockError::Version { major, minor });
        }
        let id = u16_at(20);
        let compression = Compression::from_id(id).ok_or(SuperblockError::Compression { id })?;
        let (block_bytes, log) = (u32_at(12), u16_at(22));
        if !(12..=20).contains(&log) || block_bytes != 1 << log {
            return Err(SuperblockError::BlockSize { block_bytes, log });
        }
        let bytes_used = u64_at(40);
        if bytes_used > size_bytes || bytes_used < SUPERBLOCK_BYTES as u64 {
            return Err(SuperblockError::BytesUsed { bytes_used, size_bytes });
        }
        let table = |name: &'static str, at: usize, length: u64| {
            let offset_bytes = u64_at(at);
            let end = offset_bytes.checked_add(length);
            if offset_bytes >= SUPERBLOCK_BYTES as u64 && end.is_some_and(|end| end <= bytes_used) {
                Ok(offset_bytes)
            } else {
                Err(SuperblockError::Table { name, offset_bytes })
            }
        };
        let inode_table = table("inode", 64, 1)?;
        let directory_table = table("directory", 72, 0)?;
        if inode_table >= directory_table {
            return Err(SuperblockError::Table { name: "directory", offset_bytes: directory_table });
        }
        let id_count = u16_at(26);
        if id_count == 0 {
            return Err(SuperblockError::NoIds);
        }
        // Tables of ids and fragments: one 8-byte pointer for every 8 KiB of entries.
        let id_table = table("id", 48, (u64::from(id_count) * 4).div_ceil(8192) * 8)?;
        let fragment_count = u32_at(16);
        let fragment_table = match fragment_count {
            0 => NO_TABLE,
            count => table("fragment", 80, (u64::from(count) * 16).div_ceil(8192) * 8)?,
        };
        let optional = |name, at, length| match u64_at(at) {
            NO_TABLE => Ok(None),
            _ => table(name, at, length).map(Some),
        };
        let xattr_table = optional("xattr", 56, 16)?;
        let export_table = optional("export", 88, 0)?;
        let directory_table_end = [Some(id_table), Some(fragment_table), xattr_table, export_table]
            .into_iter()
            .flatten()
            .filter(|&start| start > directory_table)
            .fold(bytes_used, u64::min);
        let root = u64_at(32);
        // A reference has a 32-bit block part, so adding the table's start can't overflow.
        if root >> 48 != 0 || root & 0xffff >= 8192 || inode_table + (root >> 16) >= directory_table {
            return Err(SuperblockError::Root { reference: root });
        }
        Ok(Self {
            inode_count: u32_at(4),
            mtime: u32_at(8),
            block_bytes,
            fragment_count,
            compression,
            id_count,
            root,
            bytes_used,
            id_table,
            xattr_table,
            inode_table,
            directory_table,
            directory_table_end,
            fragment_table,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4096;

    /// The superblock of a small image, then what `change` makes of it.
    fn parsed(change: impl FnOnce(&mut [u8; SUPERBLOCK_BYTES])) -> Result<Superblock, SuperblockError> {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[4] = 3;
        bytes[12..16].copy_from_slice(&131_072u32.to_le_bytes());
        bytes[20] = 1;
        bytes[22] = 17;
        bytes[26] = 1;
        bytes[28] = 4;
        for (at, value) in
            [(40, 1000u64), (48, 900), (56, u64::MAX), (64, 200), (72, 400), (80, u64::MAX), (88, u64::MAX)]
        {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        change(&mut bytes);
        Superblock::parse(&bytes, SIZE)
    }

    fn check(error: SuperblockError, change: impl FnOnce(&mut [u8; SUPERBLOCK_BYTES])) {
        assert_eq!(parsed(change), Err(error));
    }

    #[test]
    fn a_plain_superblock_is_understood() {
        let superblock = parsed(|_| {}).unwrap();
        assert_eq!(superblock.compression, Compression::Gzip);
        assert_eq!(superblock.directory_table_end, 900);
        assert_eq!(superblock.xattr_table, None);
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let put = |at: usize, value: u64| {
            move |b: &mut [u8; SUPERBLOCK_BYTES]| b[at..at + 8].copy_from_slice(&value.to_le_bytes())
        };
        check(SuperblockError::Magic, |b| b[0] = b'x');
        check(SuperblockError::Version { major: 3, minor: 1 }, |b| b[28..32].copy_from_slice(&[3, 0, 1, 0]));
        check(SuperblockError::Compression { id: 99 }, |b| b[20] = 99);
        check(SuperblockError::BlockSize { block_bytes: 131_072, log: 16 }, |b| b[22] = 16);
        check(SuperblockError::BlockSize { block_bytes: 0, log: 17 }, |b| b[12..16].fill(0));
        check(SuperblockError::NoIds, |b| b[26] = 0);
        check(SuperblockError::BytesUsed { bytes_used: 5000, size_bytes: SIZE }, put(40, 5000));
        check(SuperblockError::BytesUsed { bytes_used: 0, size_bytes: SIZE }, put(40, 0));
        check(SuperblockError::Table { name: "inode", offset_bytes: 1000 }, put(64, 1000));
        check(SuperblockError::Table { name: "directory", offset_bytes: 200 }, put(72, 200));
        check(SuperblockError::Table { name: "directory", offset_bytes: i64::MAX as u64 }, put(72, i64::MAX as u64));
        check(SuperblockError::Table { name: "id", offset_bytes: 1000 }, put(48, 1000));
        check(SuperblockError::Table { name: "xattr", offset_bytes: 990 }, put(56, 990));
        check(SuperblockError::Root { reference: 200 << 16 }, put(32, 200 << 16));
        check(SuperblockError::Root { reference: u64::MAX }, put(32, u64::MAX));
    }

    #[test]
    fn more_fragments_than_the_image_can_list_are_refused() {
        check(SuperblockError::Table { name: "fragment", offset_bytes: 800 }, |b| {
            b[16..20].fill(255);
            b[80..88].copy_from_slice(&800u64.to_le_bytes());
        });
    }
}
