//! Extended attributes: an inode's index leads to a list of names and values.
//!
//! ```text
//!   xattr table   | values start (8) | count (4) | unused (4) | block positions (8 each) ...
//!   entry         | list (8) | attributes (4) | bytes (4) |
//!   list          | prefix (2) | name length (2) | name | value length (4) | value |      for each attribute
//! ```
//!
//! Bit 8 of the prefix says that the value is the 8-byte position of the real one.

use super::error::SquashfsError;
use super::metadata::{Cursor, IndexedTable, Metadata, Position};
use super::source::{ReadAt, read_exact};

/// Limits of Linux: a name, a value, and all names of an inode.
const NAME_BYTES_MAX: usize = 255;
const VALUE_BYTES_MAX: usize = 65536;
const LIST_BYTES_MAX: usize = 65536;

const OUT_OF_LINE_BIT: u16 = 1 << 8;

pub(super) struct XattrTable {
    entries: IndexedTable,
    /// Where the lists and values start and end.
    start: u64,
    end: u64,
}

impl XattrTable {
    /// Reads the table's head at `offset`.
    pub(super) fn load(source: &dyn ReadAt, offset: u64, bytes_used: u64) -> Result<Self, SquashfsError> {
        let damaged = || SquashfsError::Damaged { what: "impossible xattr table", offset_bytes: offset };
        let mut head = [0; 16];
        read_exact(source, &mut head, offset)?;
        let start = u64::from_le_bytes([head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]]);
        let count = u64::from(u32::from_le_bytes([head[8], head[9], head[10], head[11]]));
        let list = offset + 16;
        let list_bytes = (count * 16).div_ceil(8192) * 8;
        if start > offset || list.checked_add(list_bytes).is_none_or(|end| end > bytes_used) {
            return Err(damaged());
        }
        Ok(Self { entries: IndexedTable::load(source, list, count, 16)?, start, end: offset })
    }

    /// Calls `visit` with name and value of each attribute of entry `index`, until it says stop by returning true.
    pub(super) fn each(
        &self,
        metadata: &Metadata,
        source: &dyn ReadAt,
        index: u32,
        mut visit: impl FnMut(&[u8], Value<'_, '_>) -> Result<bool, SquashfsError>,
    ) -> Result<(), SquashfsError> {
        let damaged = |what| SquashfsError::Damaged { what, offset_bytes: self.start };
        let entry: [u8; 16] = self
            .entries
            .entry(metadata, source, u64::from(index))?
            .ok_or_else(|| damaged("an xattr index is beyond its table"))?;
        let list = u64::from_le_bytes([entry[0], entry[1], entry[2], entry[3], entry[4], entry[5], entry[6], entry[7]]);
        let count = u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]);
        let mut cursor = Cursor::new(metadata, source, self.position(list)?, self.end);
        let (mut name, mut names_bytes) = (Vec::with_capacity(64), 0);
        for _ in 0..count {
            let head: [u8; 4] = cursor.array()?;
            let kind = u16::from_le_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
            name.clear();
            name.extend_from_slice(match kind & 0xff {
                0 => b"user.",
                1 => b"trusted.",
                2 => b"security.",
                _ => return Err(damaged("unknown prefix of an xattr name")),
            });
            let prefix = name.len();
            if length == 0 || prefix + length > NAME_BYTES_MAX {
                return Err(damaged("impossible length of an xattr name"));
            }
            name.resize(prefix + length, 0);
            cursor.read(&mut name[prefix..])?;
            names_bytes += name.len() + 1;
            if name.contains(&0) || names_bytes > LIST_BYTES_MAX {
                return Err(damaged("impossible xattr names"));
            }
            let value_bytes = u32::from_le_bytes(cursor.array()?);
            let value =
                Value { table: self, cursor: &mut cursor, length: value_bytes, elsewhere: kind & OUT_OF_LINE_BIT != 0 };
            if visit(&name, value)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn position(&self, reference: u64) -> Result<Position, SquashfsError> {
        let block = self.start.checked_add(reference >> 16).filter(|&block| block < self.end);
        let damaged = SquashfsError::Damaged { what: "an xattr lies outside its table", offset_bytes: self.start };
        Ok(Position { block: block.ok_or(damaged)?, offset: (reference & 0xffff) as usize })
    }
}

/// A value that was not read yet; [`Value::read`] or [`Value::skip`] must be called before the next name.
pub(super) struct Value<'a, 'r> {
    table: &'a XattrTable,
    cursor: &'a mut Cursor<'r>,
    length: u32,
    elsewhere: bool,
}

impl Value<'_, '_> {
    pub(super) fn read(self) -> Result<Vec<u8>, SquashfsError> {
        if !self.elsewhere {
            return read_value(self.cursor, self.length);
        }
        let at = self.table.position(u64::from_le_bytes(self.cursor.array()?))?;
        let mut cursor = self.cursor.clone();
        cursor.seek(at);
        let length = u32::from_le_bytes(cursor.array()?);
        read_value(&mut cursor, length)
    }

    pub(super) fn skip(self) -> Result<(), SquashfsError> {
        self.cursor.skip(if self.elsewhere { 8 } else { u64::from(self.length) })
    }
}

fn read_value(cursor: &mut Cursor<'_>, length: u32) -> Result<Vec<u8>, SquashfsError> {
    let offset_bytes = cursor.position().block;
    let length = usize::try_from(length).ok().filter(|&length| length <= VALUE_BYTES_MAX);
    let damaged = SquashfsError::Damaged { what: "impossible length of an xattr value", offset_bytes };
    let mut value = vec![0; length.ok_or(damaged)?];
    cursor.read(&mut value)?;
    Ok(value)
}
