//! Inodes and directories, written together: a directory names the places of its inodes, its own inode the place of
//! its entries.
//!
//! Directories come after those below them. Each time, the inodes of all entries are written one behind the other, so
//! that listing a directory with its attributes reads one stretch of the inode table; then the entries:
//!
//! ```text
//! | count - 1 | start of an inode block | inode number | entry | entry | ...     one header for up to 256 entries
//!                                                      | offset in block | number - header's | type | name |
//! ```

use super::blocks::Stored;
use super::compress::Compression;
use super::duplicates::SameAs;
use super::layout::{File, NO_FRAGMENT, Plan};
use super::metadata::{self, Place, Stream};
use super::xattrs::{NO_XATTRS, XattrTable};
use super::{WriteError, content};
use crate::tree::{Body, InodeId, InodeRef, Tree};
use std::collections::HashMap;

/// Entries behind one header, at most.
const RUN: usize = 256;

/// Every inode that has a name, in the order of the inode table.
pub(super) struct Numbered {
    /// Directories after those below them; the root is last.
    directories: Vec<InodeId>,
    /// By inode: its number, from 1; 0 for one without a name.
    numbers: Vec<u32>,
    count: u32,
    /// Files with content, in the order of their first names.
    pub files: Vec<InodeId>,
}

impl Numbered {
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// Numbers the inodes of a tree.
pub(super) fn number(tree: &Tree) -> Result<Numbered, WriteError> {
    let mut files = Vec::new();
    let mut seen = vec![false; tree.inode_count()];
    let mut parents_first = vec![tree.root()];
    let mut walk = tree.walk();
    while let Some(id) = walk.next_entry() {
        if std::mem::replace(&mut seen[id.index()], true) {
            continue;
        }
        match tree.inode(id).body {
            Body::Directory => parents_first.push(id),
            Body::File(content) if content.size_bytes() > 0 => files.push(id),
            _ => {}
        }
    }
    let directories: Vec<InodeId> = parents_first.into_iter().rev().collect();
    let mut numbers = vec![0; tree.inode_count()];
    let mut count = 0_u32;
    let mut give = |id: InodeId| {
        if numbers[id.index()] == 0 {
            count = count.checked_add(1).ok_or(WriteError::TooMany { what: "inodes", limit: u64::from(u32::MAX) })?;
            numbers[id.index()] = count;
        }
        Ok::<(), WriteError>(())
    };
    for &directory in &directories {
        for (_, id) in tree.children(directory) {
            give(id)?;
        }
    }
    give(tree.root())?;
    Ok(Numbered { directories, numbers, count, files })
}

/// The tables that hold the names of an image.
pub(super) struct Metadata {
    pub inodes: Vec<u8>,
    pub directories: Vec<u8>,
    /// Where each inode is, by number.
    pub references: Vec<u64>,
    pub root: u64,
    /// Owners and groups, by the number that inodes have for them.
    pub ids: Vec<u32>,
    pub xattrs: XattrTable,
}

/// Writes the inodes and directories.
pub(super) fn write(
    tree: &Tree,
    numbered: &Numbered,
    same_as: &SameAs,
    plan: &Plan,
    stored: &Stored,
    compression: Compression,
) -> Result<Metadata, WriteError> {
    let mut writer = Writer {
        tree,
        numbered,
        same_as,
        plan,
        stored,
        inodes: Stream::new(compression)?,
        directories: Stream::new(compression)?,
        places: vec![None; numbered.count as usize + 1],
        listings: HashMap::new(),
        ids: Vec::new(),
        id_numbers: HashMap::new(),
        xattrs: XattrTable::default(),
    };
    for &directory in &numbered.directories {
        writer.directory(directory)?;
    }
    let root = writer.inode(tree.root())?;
    let references = writer.places[1..].iter().map(|place| place.map_or(0, Place::reference)).collect();
    Ok(Metadata {
        inodes: writer.inodes.finish()?.0,
        directories: writer.directories.finish()?.0,
        references,
        root: root.reference(),
        ids: writer.ids,
        xattrs: writer.xattrs,
    })
}

struct Writer<'a> {
    tree: &'a Tree,
    numbered: &'a Numbered,
    same_as: &'a SameAs,
    plan: &'a Plan,
    stored: &'a Stored,
    inodes: Stream,
    directories: Stream,
    /// By number: where the inode was written.
    places: Vec<Option<Place>>,
    /// Directories whose entries are written and whose inodes are not.
    listings: HashMap<InodeId, Listing>,
    ids: Vec<u32>,
    id_numbers: HashMap<u32, u16>,
    xattrs: XattrTable,
}

/// The entries of a directory, written.
struct Listing {
    place: Place,
    bytes: u64,
    subdirectories: u32,
    index: Vec<IndexRow>,
}

/// Where in a long directory the metadata blocks change: readers begin there instead of at the first entry.
struct IndexRow {
    /// From the directory's first byte.
    offset: u32,
    block: u32,
    name: Vec<u8>,
}

impl Writer<'_> {
    /// Writes the inodes of the directory's entries, then the entries.
    fn directory(&mut self, directory: InodeId) -> Result<(), WriteError> {
        let tree = self.tree;
        let mut entries = Vec::with_capacity(tree.children(directory).len());
        let mut subdirectories = 0;
        for (name, id) in tree.children(directory) {
            let number = self.numbered.numbers[id.index()];
            let place = match self.places[number as usize] {
                Some(place) => place,
                None => self.inode(id)?,
            };
            let kind = basic_type(tree.inode(id).body);
            subdirectories += u32::from(kind == DIRECTORY);
            entries.push(Entry { name, number, place, kind });
        }
        let listing = self.listing(&entries, subdirectories)?;
        self.listings.insert(directory, listing);
        Ok(())
    }

    fn listing(&mut self, entries: &[Entry<'_>], subdirectories: u32) -> Result<Listing, WriteError> {
        let place = self.directories.place();
        let mut listing = Listing { place, bytes: 0, subdirectories, index: Vec::new() };
        let mut block = place.block;
        let mut left = entries;
        while let Some(first) = left.first() {
            let here = self.directories.place();
            if here.block != block {
                block = here.block;
                // Readers that find no row go on from the last one: a bound on their number is no bound on names.
                if listing.index.len() < usize::from(u16::MAX) {
                    let offset = table_u32(listing.bytes, "bytes of names in one directory")?;
                    let block = table_u32(block, "bytes of directories")?;
                    listing.index.push(IndexRow { offset, block, name: first.name.to_vec() });
                }
            }
            let run = run_length(left, usize::from(here.offset));
            let (now, later) = left.split_at(run);
            let mut bytes = Vec::with_capacity(12 + run * 24);
            bytes.extend((run as u32 - 1).to_le_bytes());
            bytes.extend(table_u32(first.place.block, "bytes of inodes")?.to_le_bytes());
            bytes.extend(first.number.to_le_bytes());
            for entry in now {
                bytes.extend(entry.place.offset.to_le_bytes());
                bytes.extend((entry.number.wrapping_sub(first.number) as u16).to_le_bytes());
                bytes.extend(entry.kind.to_le_bytes());
                bytes.extend((entry.name.len() as u16 - 1).to_le_bytes());
                bytes.extend(entry.name);
            }
            self.directories.write(&bytes)?;
            listing.bytes += bytes.len() as u64;
            left = later;
        }
        Ok(listing)
    }

    /// Writes one inode.
    fn inode(&mut self, id: InodeId) -> Result<Place, WriteError> {
        let number = self.numbered.numbers[id.index()];
        let inode = self.tree.inode(id);
        let xattrs = self.xattrs.number(inode.xattr_set, inode.xattrs);
        let (kind, rest) = match inode.body {
            Body::Directory => self.directory_inode(id, xattrs)?,
            Body::File(_) => self.file_inode(id, inode, xattrs),
            Body::Symlink(target) => {
                let mut rest = inode.names.to_le_bytes().to_vec();
                rest.extend(table_u32(target.len() as u64, "bytes of a symbolic link")?.to_le_bytes());
                rest.extend(&**target);
                with_xattrs(SYMLINK, rest, xattrs)
            }
            Body::BlockDevice(rdev) | Body::CharDevice(rdev) => {
                let mut rest = inode.names.to_le_bytes().to_vec();
                // The 32 bits of `st_rdev` as the kernel packs them: twelve of the major number, twenty of the minor.
                rest.extend(table_u32(*rdev, "device numbers")?.to_le_bytes());
                with_xattrs(basic_type(inode.body), rest, xattrs)
            }
            Body::Fifo | Body::Socket => {
                with_xattrs(basic_type(inode.body), inode.names.to_le_bytes().to_vec(), xattrs)
            }
        };
        let mut bytes = Vec::with_capacity(16 + rest.len());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(inode.mode.to_le_bytes());
        bytes.extend(self.id_number(inode.uid)?.to_le_bytes());
        bytes.extend(self.id_number(inode.gid)?.to_le_bytes());
        bytes.extend(time(inode.mtime).to_le_bytes());
        bytes.extend(number.to_le_bytes());
        bytes.extend(rest);
        let place = self.inodes.place();
        self.inodes.write(&bytes)?;
        self.places[number as usize] = Some(place);
        Ok(place)
    }

    fn directory_inode(&mut self, id: InodeId, xattrs: u32) -> Result<(u16, Vec<u8>), WriteError> {
        let none = Listing { place: Place { block: 0, offset: 0 }, bytes: 0, subdirectories: 0, index: Vec::new() };
        let listing = self.listings.remove(&id).unwrap_or(none);
        let links = listing.subdirectories.saturating_add(2);
        // The root's parent is one past the last inode, as mksquashfs has it.
        let parent = match id == self.tree.root() {
            true => self.numbered.count.wrapping_add(1),
            false => self.numbered.numbers[self.tree.parent(id).index()],
        };
        let block = table_u32(listing.place.block, "bytes of directories")?;
        // The size counts three bytes more, for `.` and `..`, which are not stored.
        let size = table_u32(listing.bytes.saturating_add(3), "bytes of names in one directory")?;
        let mut rest = Vec::new();
        if let Ok(size) = u16::try_from(size)
            && listing.index.is_empty()
            && xattrs == NO_XATTRS
        {
            rest.extend(block.to_le_bytes());
            rest.extend(links.to_le_bytes());
            rest.extend(size.to_le_bytes());
            rest.extend(listing.place.offset.to_le_bytes());
            rest.extend(parent.to_le_bytes());
            return Ok((DIRECTORY, rest));
        }
        rest.extend(links.to_le_bytes());
        rest.extend(size.to_le_bytes());
        rest.extend(block.to_le_bytes());
        rest.extend(parent.to_le_bytes());
        rest.extend((listing.index.len() as u16).to_le_bytes());
        rest.extend(listing.place.offset.to_le_bytes());
        rest.extend(xattrs.to_le_bytes());
        for row in &listing.index {
            rest.extend(row.offset.to_le_bytes());
            rest.extend(row.block.to_le_bytes());
            rest.extend((row.name.len() as u32 - 1).to_le_bytes());
            rest.extend(&row.name);
        }
        Ok((DIRECTORY + EXTENDED, rest))
    }

    fn file_inode(&self, id: InodeId, inode: InodeRef<'_>, xattrs: u32) -> (u16, Vec<u8>) {
        let first = self.same_as.get(&id).copied().unwrap_or(id);
        let number = self.plan.file_of[first.index()] as usize;
        let empty =
            File { inode: id, size_bytes: 0, first_block: 0, blocks: 0, fragment: NO_FRAGMENT, fragment_offset: 0 };
        let file = self.plan.files.get(number).unwrap_or(&empty);
        debug_assert_eq!(Some(file.size_bytes), content(self.tree, id).map(crate::tree::Content::size_bytes));
        let start = self.stored.starts.get(number).copied().unwrap_or(0);
        let blocks = &self.stored.block_sizes[file.first_block as usize..][..file.blocks as usize];
        let block_bytes = self.plan.block_bytes as u64;
        let unpacked = |index: usize| block_bytes.min(file.size_bytes - index as u64 * block_bytes);
        let zeros = blocks.iter().enumerate().filter(|(_, size)| **size == 0);
        let sparse: u64 = zeros.map(|(index, _)| unpacked(index)).sum();
        let mut rest = Vec::with_capacity(40 + blocks.len() * 4);
        let kind = if let Ok(start) = u32::try_from(start)
            && let Ok(size) = u32::try_from(file.size_bytes)
            && (inode.names, sparse, xattrs) == (1, 0, NO_XATTRS)
        {
            rest.extend(start.to_le_bytes());
            rest.extend(file.fragment.to_le_bytes());
            rest.extend(file.fragment_offset.to_le_bytes());
            rest.extend(size.to_le_bytes());
            FILE
        } else {
            rest.extend(start.to_le_bytes());
            rest.extend(file.size_bytes.to_le_bytes());
            rest.extend(sparse.to_le_bytes());
            rest.extend(inode.names.to_le_bytes());
            rest.extend(file.fragment.to_le_bytes());
            rest.extend(file.fragment_offset.to_le_bytes());
            rest.extend(xattrs.to_le_bytes());
            FILE + EXTENDED
        };
        rest.extend(blocks.iter().flat_map(|size| size.to_le_bytes()));
        (kind, rest)
    }

    fn id_number(&mut self, id: u32) -> Result<u16, WriteError> {
        if let Some(&number) = self.id_numbers.get(&id) {
            return Ok(number);
        }
        // The superblock counts them in 16 bits.
        let number = u16::try_from(self.ids.len()).ok().filter(|&number| number < u16::MAX);
        let number = number.ok_or(WriteError::TooMany { what: "owners and groups", limit: u64::from(u16::MAX) })?;
        self.ids.push(id);
        self.id_numbers.insert(id, number);
        Ok(number)
    }
}

struct Entry<'a> {
    name: &'a [u8],
    number: u32,
    place: Place,
    kind: u16,
}

/// How many of `entries` one header serves: those whose inodes are in its block, with numbers near its own, and that
/// begin in the metadata block in which it begins, `offset` bytes from that block's start.
fn run_length(entries: &[Entry<'_>], offset: usize) -> usize {
    let Some(first) = entries.first() else { return 0 };
    let mut end = offset + 12 + 8 + first.name.len();
    let mut run = 1;
    for entry in entries.iter().take(RUN).skip(1) {
        let near = i16::try_from(i64::from(entry.number) - i64::from(first.number)).is_ok();
        if !near || entry.place.block != first.place.block || end >= metadata::BLOCK_BYTES {
            break;
        }
        end += 8 + entry.name.len();
        run += 1;
    }
    run
}

const DIRECTORY: u16 = 1;
const FILE: u16 = 2;
const SYMLINK: u16 = 3;
/// Added to a type: the inode has the fields that few need.
const EXTENDED: u16 = 7;

fn basic_type(body: &Body) -> u16 {
    match body {
        Body::Directory => DIRECTORY,
        Body::File(_) => FILE,
        Body::Symlink(_) => SYMLINK,
        Body::BlockDevice(_) => 4,
        Body::CharDevice(_) => 5,
        Body::Fifo => 6,
        Body::Socket => 7,
    }
}

fn with_xattrs(kind: u16, mut rest: Vec<u8>, xattrs: u32) -> (u16, Vec<u8>) {
    if xattrs == NO_XATTRS {
        return (kind, rest);
    }
    rest.extend(xattrs.to_le_bytes());
    (kind + EXTENDED, rest)
}

/// A time of the format: before 1970 and after 2106 there is none.
pub(super) fn time(seconds: i64) -> u32 {
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}

fn table_u32(value: u64, what: &'static str) -> Result<u32, WriteError> {
    u32::try_from(value).map_err(|_| WriteError::TooMany { what, limit: u64::from(u32::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_the_format_are_its_nearest() {
        assert_eq!([time(-5), time(0), time(1 << 31), time(1 << 40)], [0, 0, 1 << 31, u32::MAX]);
    }

    fn entries(specs: &[(u32, u64)]) -> Vec<Entry<'static>> {
        let entry =
            |&(number, block)| Entry { name: b"12345678", number, place: Place { block, offset: 0 }, kind: FILE };
        specs.iter().map(entry).collect()
    }

    #[test]
    fn a_header_serves_entries_near_its_own() {
        assert_eq!(run_length(&entries(&[(1, 0), (2, 0), (3, 8000)]), 0), 2);
        assert_eq!(run_length(&entries(&[(1, 0), (40_000, 0)]), 0), 1);
        assert_eq!(run_length(&entries(&[(40_000, 0), (7_233, 0), (7_231, 0)]), 0), 2);
        assert_eq!(run_length(&entries(&[(1, 0); 300]), 0), 256);
    }

    #[test]
    fn a_header_serves_entries_of_its_metadata_block_and_always_one() {
        assert_eq!(run_length(&entries(&[(1, 0); 300]), 8192 - 12 - 32), 2);
        assert_eq!(run_length(&entries(&[(1, 0); 300]), 8191), 1);
    }
}
