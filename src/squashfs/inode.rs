//! Inodes. Every one starts with the same 16 bytes; what follows depends on the type. Types 8 to 14 are the long
//! forms of 1 to 7, with room for 64-bit sizes, hard link counts and extended attributes.
//!
//! ```text
//!   0      2      4     6     8       12       16
//!   | type | mode | uid | gid | mtime | number | ...        uid and gid are indices into the id table
//! ```

use super::error::SquashfsError;
use super::metadata::{Cursor, Position};
use crate::tree::Kind;

/// Where an inode is: position of its metadata block in the inode table (bits 16 to 47) and offset in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeRef(pub(super) u64);

impl InodeRef {
    /// A reference from its bits; reading it checks them.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & 0xffff_ffff_ffff)
    }

    pub fn bits(self) -> u64 {
        self.0
    }
}

/// An inode as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Number that `st_ino` shows.
    pub number: u32,
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u16,
    pub(super) uid_index: u16,
    pub(super) gid_index: u16,
    /// Seconds since 1970.
    pub mtime: u32,
    pub nlink: u32,
    /// Length of a file or symbolic link; of a directory, its listing's; 0 for the rest.
    pub size_bytes: u64,
    /// Device number of device nodes, as `st_rdev`.
    pub rdev: u32,
    pub(super) xattr: Option<u32>,
    pub(super) body: Body,
}

impl Inode {
    /// The fragment that holds the tail of a regular file, if one does.
    pub fn fragment(&self) -> Option<u32> {
        match self.body {
            Body::File(body) => body.fragment.map(|(index, _)| index),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Directory(DirectoryBody),
    File(FileBody),
    /// Where the target is.
    Symlink(Position),
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryBody {
    /// Block of the listing, counted from the start of the directory table.
    pub block: u32,
    pub offset: u16,
    /// Entries of the index, and where it is.
    pub index_count: u16,
    pub index: Position,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileBody {
    /// Where the first data block is.
    pub start: u64,
    /// Fragment that holds the tail, and the tail's offset in it.
    pub fragment: Option<(u32, u32)>,
    /// Where the list of block lengths is.
    pub blocks: Position,
}

/// What stands for "none" where a fragment or an xattr index is expected.
const NONE: u32 = u32::MAX;

/// No symbolic link on Linux is longer (PATH_MAX with its NUL).
pub(super) const SYMLINK_BYTES_MAX: u32 = 4095;

/// Reads the inode that the cursor stands on.
pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Inode, SquashfsError> {
    let at = cursor.position();
    let damaged = |what| SquashfsError::Damaged { what, offset_bytes: at.block };
    let head: [u8; 16] = cursor.array()?;
    let u16_at = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let u32_at = |b: &[u8], at: usize| u32::from(u16_at(b, at)) | u32::from(u16_at(b, at + 2)) << 16;
    let u64_at = |b: &[u8], at: usize| u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32;
    let some = |value: u32| (value != NONE).then_some(value);

    let (mut nlink, mut size_bytes, mut rdev, mut xattr) = (1, 0, 0, None);
    let kind_id = u16_at(&head, 0);
    let long = kind_id > 7;
    let (kind, body) = match kind_id {
        1 => {
            let b: [u8; 16] = cursor.array()?;
            nlink = u32_at(&b, 4);
            size_bytes = u64::from(u16_at(&b, 8));
            let index = cursor.position();
            let body = DirectoryBody { block: u32_at(&b, 0), offset: u16_at(&b, 10), index_count: 0, index };
            (Kind::Directory, Body::Directory(body))
        }
        8 => {
            let b: [u8; 24] = cursor.array()?;
            nlink = u32_at(&b, 0);
            size_bytes = u64::from(u32_at(&b, 4));
            xattr = some(u32_at(&b, 20));
            let index_count = u16_at(&b, 16);
            let index = cursor.position();
            let body = DirectoryBody { block: u32_at(&b, 8), offset: u16_at(&b, 18), index_count, index };
            (Kind::Directory, Body::Directory(body))
        }
        2 => {
            let b: [u8; 16] = cursor.array()?;
            size_bytes = u64::from(u32_at(&b, 12));
            let fragment = some(u32_at(&b, 4)).map(|index| (index, u32_at(&b, 8)));
            let body = FileBody { start: u64::from(u32_at(&b, 0)), fragment, blocks: cursor.position() };
            (Kind::File, Body::File(body))
        }
        9 => {
            let b: [u8; 40] = cursor.array()?;
            size_bytes = u64_at(&b, 8);
            nlink = u32_at(&b, 24);
            xattr = some(u32_at(&b, 36));
            let fragment = some(u32_at(&b, 28)).map(|index| (index, u32_at(&b, 32)));
            let body = FileBody { start: u64_at(&b, 0), fragment, blocks: cursor.position() };
            (Kind::File, Body::File(body))
        }
        3 | 10 => {
            let b: [u8; 8] = cursor.array()?;
            nlink = u32_at(&b, 0);
            let length = u32_at(&b, 4);
            if !(1..=SYMLINK_BYTES_MAX).contains(&length) {
                return Err(damaged("impossible length of a symbolic link"));
            }
            size_bytes = u64::from(length);
            let target = cursor.position();
            if long {
                cursor.skip(size_bytes)?;
                xattr = some(u32::from_le_bytes(cursor.array()?));
            }
            (Kind::Symlink, Body::Symlink(target))
        }
        4 | 5 | 11 | 12 => {
            let b: [u8; 8] = cursor.array()?;
            nlink = u32_at(&b, 0);
            rdev = u32_at(&b, 4);
            if long {
                xattr = some(u32::from_le_bytes(cursor.array()?));
            }
            (if matches!(kind_id, 4 | 11) { Kind::BlockDevice } else { Kind::CharDevice }, Body::Other)
        }
        6 | 7 | 13 | 14 => {
            nlink = u32::from_le_bytes(cursor.array()?);
            if long {
                xattr = some(u32::from_le_bytes(cursor.array()?));
            }
            (if matches!(kind_id, 6 | 13) { Kind::Fifo } else { Kind::Socket }, Body::Other)
        }
        _ => return Err(damaged("unknown inode type")),
    };
    if size_bytes > i64::MAX as u64 {
        return Err(damaged("impossible file size"));
    }
    Ok(Inode {
        number: u32_at(&head, 12),
        kind,
        mode: u16_at(&head, 2) & 0o7777,
        uid_index: u16_at(&head, 4),
        gid_index: u16_at(&head, 6),
        mtime: u32_at(&head, 8),
        nlink,
        size_bytes,
        rdev,
        xattr,
        body,
    })
}

/// The kind that a directory entry or an inode type (1 to 14) names.
pub(super) fn kind_of(id: u16) -> Option<Kind> {
    Some(match id {
        1 | 8 => Kind::Directory,
        2 | 9 => Kind::File,
        3 | 10 => Kind::Symlink,
        4 | 11 => Kind::BlockDevice,
        5 | 12 => Kind::CharDevice,
        6 | 13 => Kind::Fifo,
        7 | 14 => Kind::Socket,
        _ => return None,
    })
}
