//! Directory listings: runs of entries that share an inode block, sorted by name.
//!
//! ```text
//!   run    | count - 1 (4) | inode block (4) | inode number (4) |      at most 256 entries
//!   entry  | inode offset (2) | number - run's (2, signed) | type (2) | name length - 1 (2) | name |
//! ```
//!
//! A long directory has an index: for some of its runs, the first name, the run's offset in the listing, and the
//! metadata block that holds it. A look-up starts there and ends at the first name beyond the one looked for.

use super::error::SquashfsError;
use super::inode::{DirectoryBody, InodeRef, kind_of};
use super::metadata::{Cursor, METADATA_BYTES, Position};
use crate::tree::Kind;

/// The longest name.
pub const NAME_BYTES_MAX: usize = 255;
const RUN_ENTRIES_MAX: u32 = 256;
const RUN_HEADER_BYTES: u32 = 12;
const ENTRY_HEADER_BYTES: u32 = 8;
/// A listing's size on disk counts 3 bytes for `.` and `..`, which it does not hold.
const SIZE_EXCESS_BYTES: u64 = 3;

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    name: [u8; NAME_BYTES_MAX + 1],
    name_bytes: usize,
    pub kind: Kind,
    pub inode: InodeRef,
    /// The number that `d_ino` shows.
    pub number: u32,
}

impl Default for DirectoryEntry {
    fn default() -> Self {
        Self { name: [0; NAME_BYTES_MAX + 1], name_bytes: 0, kind: Kind::File, inode: InodeRef(0), number: 0 }
    }
}

impl DirectoryEntry {
    pub fn name(&self) -> &[u8] {
        &self.name[..self.name_bytes]
    }
}

/// A directory being listed, in the order of names.
pub struct Directory<'r> {
    cursor: Cursor<'r>,
    /// Bytes of the listing read so far, and in all.
    at: u32,
    length: u32,
    run: Run,
}

/// The run being read.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Where its header is in the listing.
    at: u32,
    left: u32,
    count: u32,
    block: u32,
    number: u32,
}

/// Where a listing stands between two entries, as a number below 2^57: to go on from there later.
///
/// ```text
///   bits 25..57: bytes of the listing before   8..25: of these, since the run's header   0..8: entries since
///   between two runs only the first part is set
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListingPosition(u64);

impl ListingPosition {
    /// Takes a number that [`ListingPosition::bits`] gave; any other leads to an error or to nonsense, not further.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub fn bits(self) -> u64 {
        self.0
    }
}

impl<'r> Directory<'r> {
    /// Starts a listing; `cursor` belongs to the directory table, which starts at `table`.
    pub(super) fn open(cursor: Cursor<'r>, table: u64, body: &DirectoryBody, size_bytes: u64) -> Self {
        let mut cursor = cursor;
        cursor.seek(Position { block: table + u64::from(body.block), offset: usize::from(body.offset) });
        let length = size_bytes.saturating_sub(SIZE_EXCESS_BYTES).min(u64::from(u32::MAX)) as u32;
        Self { cursor, at: 0, length, run: Run::default() }
    }

    /// Goes on where a listing stood.
    pub fn resume(&mut self, position: ListingPosition) -> Result<(), SquashfsError> {
        let at = (position.0 >> 25) as u32;
        let since_run = (position.0 >> 8 & 0x1_ffff) as u32;
        let entries = (position.0 & 0xff) as u32;
        if at == 0 {
            return Ok(());
        }
        let run_at = at
            .checked_sub(since_run)
            .filter(|_| at <= self.length && (since_run == 0 || since_run >= RUN_HEADER_BYTES));
        let Some(run_at) = run_at else { return Err(self.damaged("a listing goes on where it never stood")) };
        self.cursor.skip(u64::from(run_at))?;
        self.at = run_at;
        if since_run == 0 {
            return Ok(());
        }
        self.start_run()?;
        self.cursor.skip(u64::from(at - self.at))?;
        self.at = at;
        self.run.left = self.run.left.saturating_sub(entries);
        Ok(())
    }

    /// Where the listing stands.
    pub fn position(&self) -> ListingPosition {
        if self.run.left == 0 {
            return ListingPosition(u64::from(self.at) << 25);
        }
        let since_run = u64::from(self.at - self.run.at);
        let entries = u64::from(self.run.count - self.run.left);
        ListingPosition(u64::from(self.at) << 25 | since_run << 8 | entries)
    }

    /// Reads the next entry into `entry`; false at the end.
    pub fn next(&mut self, entry: &mut DirectoryEntry) -> Result<bool, SquashfsError> {
        if self.run.left == 0 {
            if self.at >= self.length {
                return Ok(false);
            }
            self.start_run()?;
        }
        let head: [u8; ENTRY_HEADER_BYTES as usize] = self.cursor.array()?;
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let name_bytes = usize::from(u16_at(6)) + 1;
        let used = ENTRY_HEADER_BYTES + name_bytes as u32;
        if name_bytes > NAME_BYTES_MAX || used > self.length - self.at {
            return Err(self.damaged("impossible length of a file name"));
        }
        self.cursor.read(&mut entry.name[..name_bytes])?;
        entry.name_bytes = name_bytes;
        if !is_file_name(entry.name()) {
            return Err(self.damaged("impossible file name"));
        }
        entry.kind = kind_of(u16_at(4)).ok_or_else(|| self.damaged("unknown type of a directory entry"))?;
        entry.inode = InodeRef(u64::from(self.run.block) << 16 | u64::from(u16_at(0)));
        entry.number = self.run.number.wrapping_add_signed(i32::from(u16_at(2) as i16));
        self.at += used;
        self.run.left -= 1;
        Ok(true)
    }

    fn start_run(&mut self) -> Result<(), SquashfsError> {
        if self.length - self.at < RUN_HEADER_BYTES {
            return Err(self.damaged("a directory listing ends inside a header"));
        }
        let head: [u8; RUN_HEADER_BYTES as usize] = self.cursor.array()?;
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let count = u32_at(0).wrapping_add(1);
        if count == 0 || count > RUN_ENTRIES_MAX {
            return Err(self.damaged("impossible number of directory entries"));
        }
        self.run = Run { at: self.at, left: count, count, block: u32_at(4), number: u32_at(8) };
        self.at += RUN_HEADER_BYTES;
        Ok(())
    }

    /// Finds `name`; `index` is a cursor on the directory's index, of `index_count` entries.
    pub(super) fn find(
        mut self,
        name: &[u8],
        table: u64,
        body: &DirectoryBody,
        index: Cursor<'_>,
    ) -> Result<Option<DirectoryEntry>, SquashfsError> {
        if let Some((at, block)) = last_index_entry(index, body.index_count, name)?
            && at < self.length
        {
            let offset = (usize::from(body.offset) + at as usize) % METADATA_BYTES;
            self.cursor.seek(Position { block: table + u64::from(block), offset });
            self.at = at;
        }
        let mut entry = DirectoryEntry::default();
        while self.next(&mut entry)? {
            match entry.name().cmp(name) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Ok(Some(entry)),
                std::cmp::Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    fn damaged(&self, what: &'static str) -> SquashfsError {
        SquashfsError::Damaged { what, offset_bytes: self.cursor.position().block }
    }
}

/// Finds the last entry of the index whose name is not beyond `name`: offset in the listing, block in the table.
fn last_index_entry(mut index: Cursor<'_>, count: u16, name: &[u8]) -> Result<Option<(u32, u32)>, SquashfsError> {
    let mut last = None;
    let mut first_name = [0; NAME_BYTES_MAX + 1];
    for _ in 0..count {
        let head: [u8; 12] = index.array()?;
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = u32_at(8).wrapping_add(1) as usize;
        if length == 0 || length > NAME_BYTES_MAX {
            let offset_bytes = index.position().block;
            return Err(SquashfsError::Damaged { what: "impossible length of a name in an index", offset_bytes });
        }
        index.read(&mut first_name[..length])?;
        if first_name[..length] > *name {
            break;
        }
        last = Some((u32_at(0), u32_at(4)));
    }
    Ok(last)
}

/// Whether `name` can be a file's: not empty, no slash, no NUL, not `.` or `..`.
fn is_file_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|&byte| byte == b'/' || byte == 0)
}

#[cfg(test)]
mod tests {
    use super::is_file_name;

    #[test]
    fn names_that_would_leave_their_directory_are_none() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert!(!is_file_name(bad), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b"\xff\n"] {
            assert!(is_file_name(good), "{good:?}");
        }
    }
}
