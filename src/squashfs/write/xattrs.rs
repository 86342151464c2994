//! Extended attributes: each distinct set once, and the numbers by which inodes name them.
//!
//! ```text
//! | sets, in metadata blocks | rows (place, count, bytes), in metadata blocks | header | list of the rows' blocks |
//! ```

use super::metadata::Tables;
use super::{NOWHERE, WriteError};
use crate::tree::Xattr;
use std::collections::HashMap;

/// Stands in an inode for "none".
pub(super) const NO_XATTRS: u32 = u32::MAX;

/// The namespaces that the format knows, each with its number.
const NAMESPACES: [(&[u8], u16); 3] = [(b"user.", 0), (b"trusted.", 1), (b"security.", 2)];

/// The sets that inodes of an image use.
#[derive(Default)]
pub(super) struct XattrTable {
    numbers: HashMap<u32, u32>,
    /// Each set in the bytes of the format, and how many attributes it has.
    sets: Vec<(Vec<u8>, u32)>,
}

impl XattrTable {
    /// The number for an inode with these attributes, of which equal ones have equal `set`. Attributes of other
    /// namespaces than those of the format are left out.
    pub fn number(&mut self, set: u32, xattrs: &[Xattr]) -> u32 {
        if let Some(&number) = self.numbers.get(&set) {
            return number;
        }
        let mut bytes = Vec::new();
        let mut count = 0;
        for xattr in xattrs {
            let known = NAMESPACES.iter().find_map(|(prefix, id)| Some((xattr.name.strip_prefix(*prefix)?, *id)));
            // Linux has no longer names (255 bytes) and no longer values (64 KiB).
            if let Some((name, id)) = known
                && let Ok(name_length) = u16::try_from(name.len())
                && let Ok(value_length) = u32::try_from(xattr.value.len())
            {
                bytes.extend(id.to_le_bytes());
                bytes.extend(name_length.to_le_bytes());
                bytes.extend(name);
                bytes.extend(value_length.to_le_bytes());
                bytes.extend(&*xattr.value);
                count += 1;
            }
        }
        let number = if count == 0 { NO_XATTRS } else { self.sets.len() as u32 };
        if count > 0 {
            self.sets.push((bytes, count));
        }
        self.numbers.insert(set, number);
        number
    }

    /// Appends the table; says where its header is.
    pub fn write(&self, tables: &mut Tables) -> Result<u64, WriteError> {
        if self.sets.is_empty() {
            return Ok(NOWHERE);
        }
        let mut stream = tables.stream()?;
        let mut rows = Vec::with_capacity(self.sets.len() * 16);
        for (bytes, count) in &self.sets {
            rows.extend(stream.place().reference().to_le_bytes());
            rows.extend(count.to_le_bytes());
            rows.extend((bytes.len() as u32).to_le_bytes());
            stream.write(bytes)?;
        }
        let sets_at = tables.append(&stream.finish()?.0);
        let rows_at = tables.append_blocks(&rows)?;
        let header = tables.append(&sets_at.to_le_bytes());
        tables.append(&(self.sets.len() as u32).to_le_bytes());
        tables.append(&[0; 4]);
        for at in rows_at {
            tables.append(&at.to_le_bytes());
        }
        Ok(header)
    }
}
