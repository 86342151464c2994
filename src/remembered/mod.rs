//! What files would have been if root had made them: owners, modes, device numbers and extended attributes that an
//! ordinary user can't give to a file, remembered beside the file system.
//!
//! A record belongs to an inode, so a file keeps it under every name, and after a rename. Inode numbers are used again
//! when a file is gone; a [`Generation`] tells the old file from the new one. On disk it is a text that only grows
//! ([`Journal`]):
//!
//! ```text
//! sifu-remembered 1
//! file - 1311 7f3a9c0012ab34cd uid=33 gid=33
//! file - 1312 09bc44d1aa7e2f10 gid=42 mode=2755 xattr=security.capability=0100000200040000...
//! file - 1313 51d0e3f7a2b94c66 char=259 mode=666
//! file - 1311 7f3a9c0012ab34cd            a later line about an inode replaces an earlier one; this one forgets it
//!      |  |    |                 fields: uid, gid, mode (octal), char and block (the number of `st_rdev`), xattr
//!      |  |    generation (hexadecimal)
//!      |  inode number
//!      device (the number of `st_dev`); `-` for the device on which the text itself lies
//! ```

mod journal;
mod text;

pub use journal::{IN_SANDBOX, Journal, JournalError, generation_of, of_sandbox, read};

use std::collections::{BTreeMap, HashMap};

/// Names an inode for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// As in `st_dev`.
    pub device: u64,
    /// As in `st_ino`.
    pub inode: u64,
}

/// Differs between an inode and every other that has, or had, the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(pub u64);

/// A device node that is none: the number is that of `st_rdev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Char(u64),
    Block(u64),
}

/// What is remembered of one file; what is not set is as the file system has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Permission bits with set-id and sticky bits: `0o7777` at most.
    pub mode: Option<u16>,
    pub device: Option<Device>,
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl Record {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The records of all files.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    records: HashMap<FileId, (Generation, Record)>,
}

impl Remembered {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether a group is remembered of any file.
    pub fn has_groups(&self) -> bool {
        self.records.values().any(|(_, record)| record.gid.is_some())
    }

    /// Whether an owner or a group is remembered of any file.
    pub fn has_owners(&self) -> bool {
        self.records.values().any(|(_, record)| record.uid.is_some() || record.gid.is_some())
    }

    /// Whether there is a record for a file of this number, perhaps one that is gone.
    pub fn may_know(&self, file: FileId) -> bool {
        self.records.contains_key(&file)
    }

    /// The record of this very file.
    pub fn get(&self, file: FileId, generation: Generation) -> Option<&Record> {
        self.records.get(&file).filter(|(known, _)| *known == generation).map(|(_, record)| record)
    }

    /// Puts `record` in the place of what was known; an empty one forgets the file.
    pub fn set(&mut self, file: FileId, generation: Generation, record: Record) {
        if record.is_empty() {
            self.records.remove(&file);
        } else {
            self.records.insert(file, (generation, record));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId { device: 1, inode: 2 };

    fn owned(uid: u32) -> Record {
        Record { uid: Some(uid), ..Record::default() }
    }

    #[test]
    fn a_file_that_got_the_number_of_another_has_no_record() {
        let mut remembered = Remembered::default();
        remembered.set(FILE, Generation(7), owned(33));
        assert_eq!(remembered.get(FILE, Generation(7)), Some(&owned(33)));
        assert!(remembered.may_know(FILE));
        assert_eq!(remembered.get(FILE, Generation(8)), None);
        remembered.set(FILE, Generation(8), owned(5));
        assert_eq!(remembered.get(FILE, Generation(7)), None);
    }

    #[test]
    fn an_empty_record_forgets() {
        let mut remembered = Remembered::default();
        remembered.set(FILE, Generation(7), owned(33));
        remembered.set(FILE, Generation(7), Record::default());
        assert!(remembered.is_empty() && !remembered.may_know(FILE));
    }
}
