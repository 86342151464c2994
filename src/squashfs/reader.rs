//! The reader: an image opened by its superblock, everything else read when first asked for.
//!
//! A [`Reader`] is one value for the whole life of an image: what a launch looked up before the server is forked is in
//! its caches afterwards. It starts no threads, and all its functions may be called from any thread.

use super::cache::Cache;
use super::directory::{Directory, DirectoryEntry};
use super::error::SquashfsError;
use super::file::{self, Block, File, Piece, Segment};
use super::inode::{self, Body, Inode, InodeRef};
use super::metadata::{Cursor, IndexedTable, Metadata, Position};
use super::source::{ReadAt, Window, read_exact};
use super::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};
use super::xattr::XattrTable;
use super::{cache, codec};
use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

/// What unpacked data blocks kept in memory weigh at most.
const DATA_CACHE_BYTES: usize = 32 << 20;
/// What kept maps of large files weigh at most.
const SEGMENT_CACHE_BYTES: usize = 4 << 20;
/// Buffers that a thread keeps for the blocks it unpacks next.
const SPARE_BUFFERS: usize = 2;

/// A SquashFS 4.0 image. Clones share everything.
#[derive(Clone)]
pub struct Reader(Arc<Image>);

struct Image {
    source: Window,
    superblock: Superblock,
    metadata: Metadata,
    data: Cache<Block>,
    segments: Cache<Segment>,
    ids: OnceLock<Result<Box<[u32]>, SquashfsError>>,
    fragments: OnceLock<Result<IndexedTable, SquashfsError>>,
    xattrs: OnceLock<Result<Option<XattrTable>, SquashfsError>>,
}

/// Something that may be needed soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Block `index` of a file.
    Block { reference: InodeRef, inode: Inode, index: u64 },
    /// A fragment: the tails of many small files.
    Fragment(u32),
}

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Reader {
    /// Opens the partition of `size_bytes` at `offset_bytes` of `source`; reads and checks its superblock only.
    pub fn open(source: impl ReadAt + 'static, offset_bytes: u64, size_bytes: u64) -> Result<Self, SquashfsError> {
        let source = Window::new(Box::new(source), offset_bytes);
        if size_bytes < SUPERBLOCK_BYTES as u64 || offset_bytes.checked_add(size_bytes).is_none() {
            return Err(SquashfsError::Superblock(SuperblockError::Short { size_bytes }));
        }
        let mut bytes = [0; SUPERBLOCK_BYTES];
        read_exact(&source, &mut bytes, 0)?;
        let superblock = Superblock::parse(&bytes, size_bytes).map_err(SquashfsError::Superblock)?;
        Ok(Self(Arc::new(Image {
            source,
            metadata: Metadata::new(superblock.compression),
            data: Cache::new(DATA_CACHE_BYTES),
            segments: Cache::new(SEGMENT_CACHE_BYTES),
            superblock,
            ids: OnceLock::new(),
            fragments: OnceLock::new(),
            xattrs: OnceLock::new(),
        })))
    }

    pub fn superblock(&self) -> &Superblock {
        &self.0.superblock
    }

    /// The descriptor that the image is read from.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.source.descriptor()
    }

    /// The root directory.
    pub fn root(&self) -> InodeRef {
        InodeRef(self.0.superblock.root)
    }

    /// Reads an inode.
    pub fn inode(&self, reference: InodeRef) -> Result<Inode, SquashfsError> {
        inode::read(&mut self.inode_cursor(self.inode_position(reference)))
    }

    /// Reads many inodes, quicker when neighbours follow each other.
    pub fn inodes(&self) -> InodeReader<'_> {
        InodeReader { reader: self, cursor: self.inode_cursor(self.inode_position(self.root())) }
    }

    /// Owner and group of an inode.
    pub fn owner(&self, inode: &Inode) -> Result<(u32, u32), SquashfsError> {
        let ids = self.0.ids.get_or_init(|| self.load_ids()).as_ref().map_err(Clone::clone)?;
        let id = |index: u16| {
            let damaged = SquashfsError::Damaged {
                what: "an owner is beyond the id table",
                offset_bytes: self.0.superblock.id_table,
            };
            ids.get(usize::from(index)).copied().ok_or(damaged)
        };
        Ok((id(inode.uid_index)?, id(inode.gid_index)?))
    }

    /// Starts a listing of a directory; `None` if it is none.
    pub fn directory(&self, inode: &Inode) -> Option<Directory<'_>> {
        let Body::Directory(body) = &inode.body else { return None };
        let superblock = self.superblock();
        let start = Position { block: superblock.directory_table, offset: 0 };
        let cursor = Cursor::new(&self.0.metadata, &self.0.source, start, superblock.directory_table_end);
        Some(Directory::open(cursor, superblock.directory_table, body, inode.size_bytes))
    }

    /// Looks `name` up in a directory; `None` if it is not there, or if `inode` is no directory.
    pub fn find(&self, inode: &Inode, name: &[u8]) -> Result<Option<DirectoryEntry>, SquashfsError> {
        let (Body::Directory(body), Some(directory)) = (&inode.body, self.directory(inode)) else { return Ok(None) };
        directory.find(name, self.superblock().directory_table, body, self.inode_cursor(body.index))
    }

    /// The target of a symbolic link; `None` if it is none.
    pub fn symlink_target(&self, inode: &Inode) -> Result<Option<Vec<u8>>, SquashfsError> {
        let Body::Symlink(position) = inode.body else { return Ok(None) };
        // The length was checked when the inode was read.
        let mut target = vec![0; inode.size_bytes as usize];
        self.inode_cursor(position).read(&mut target)?;
        match target.contains(&0) {
            true => Err(SquashfsError::Damaged { what: "a symbolic link holds a NUL", offset_bytes: position.block }),
            false => Ok(Some(target)),
        }
    }

    /// Appends to `pieces` what a regular file holds from `offset` on, `length` bytes or up to its end, and gives the
    /// number of bytes; 0 for an inode of another kind.
    pub fn pieces(
        &self,
        reference: InodeRef,
        inode: &Inode,
        offset: u64,
        length: usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<usize, SquashfsError> {
        match inode.body {
            Body::File(body) => File::new(self, reference, inode, body)?.pieces(offset, length, pieces),
            _ => Ok(0),
        }
    }

    /// Copies what a regular file holds from `offset` on into `out`; gives the number of bytes, fewer at its end.
    pub fn read(
        &self,
        reference: InodeRef,
        inode: &Inode,
        offset: u64,
        out: &mut [u8],
    ) -> Result<usize, SquashfsError> {
        let mut pieces = Vec::new();
        let length = self.pieces(reference, inode, offset, out.len(), &mut pieces)?;
        file::copy_pieces(&pieces, &mut out[..length]);
        Ok(length)
    }

    /// Unpacks `ahead` into the cache, unless it is there; a reader that needs it meanwhile does not wait for this.
    pub fn prefetch(&self, ahead: &Ahead) -> Result<(), SquashfsError> {
        let Some((start, word, needed)) = self.locate(ahead)? else { return Ok(()) };
        if !self.0.data.contains(start) {
            let block = file::load_block(self, start, word, needed, || self.spare_buffer())?;
            self.0.data.offer(start, block, Block::weigh, |block| self.keep_buffer(block));
        }
        Ok(())
    }

    /// Whether there is nothing to unpack for `ahead`.
    pub fn is_ready(&self, ahead: &Ahead) -> bool {
        !matches!(self.locate(ahead), Ok(Some((start, ..))) if !self.0.data.contains(start))
    }

    /// Where the block of `ahead` is, its word, and how long it must be.
    fn locate(&self, ahead: &Ahead) -> Result<Option<(u64, u32, usize)>, SquashfsError> {
        match *ahead {
            Ahead::Block { reference, ref inode, index } => match inode.body {
                Body::File(body) => File::new(self, reference, inode, body)?.block(index),
                _ => Ok(None),
            },
            Ahead::Fragment(index) if index < self.superblock().fragment_count => {
                let (start, word) = self.fragment(index)?;
                Ok(Some((start, word, 0)))
            }
            Ahead::Fragment(_) => Ok(None),
        }
    }

    /// Whether the image keeps extended attributes at all.
    pub fn has_xattrs(&self) -> bool {
        self.0.superblock.xattr_table.is_some()
    }

    /// Names of an inode's extended attributes, with their prefix.
    pub fn xattr_names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>, SquashfsError> {
        let mut names = Vec::new();
        self.each_xattr(inode, |name, value| {
            names.push(name.to_vec());
            value.skip().map(|()| false)
        })?;
        Ok(names)
    }

    /// The value of an extended attribute; `None` if the inode has none of that name.
    pub fn xattr(&self, inode: &Inode, wanted: &[u8]) -> Result<Option<Vec<u8>>, SquashfsError> {
        let mut found = None;
        self.each_xattr(inode, |name, value| {
            if name != wanted {
                return value.skip().map(|()| false);
            }
            found = Some(value.read()?);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Gives up the memory of unpacked data blocks and of maps of files; metadata stays.
    pub fn forget_data(&self) {
        self.0.data.clear();
        self.0.segments.clear();
    }

    fn each_xattr(
        &self,
        inode: &Inode,
        visit: impl FnMut(&[u8], super::xattr::Value<'_, '_>) -> Result<bool, SquashfsError>,
    ) -> Result<(), SquashfsError> {
        let Some(index) = inode.xattr else { return Ok(()) };
        let load = || {
            let superblock = self.superblock();
            superblock.xattr_table.map(|at| XattrTable::load(&self.0.source, at, superblock.bytes_used)).transpose()
        };
        match self.0.xattrs.get_or_init(load).as_ref().map_err(Clone::clone)? {
            Some(table) => table.each(&self.0.metadata, &self.0.source, index, visit),
            None => Ok(()),
        }
    }

    fn load_ids(&self) -> Result<Box<[u32]>, SquashfsError> {
        let superblock = self.superblock();
        let count = u64::from(superblock.id_count);
        let table = IndexedTable::load(&self.0.source, superblock.id_table, count, 4)?;
        let id =
            |index| Ok(u32::from_le_bytes(table.entry(&self.0.metadata, &self.0.source, index)?.unwrap_or_default()));
        (0..count).map(id).collect()
    }

    /// A cursor of the inode table.
    pub(super) fn inode_cursor(&self, position: Position) -> Cursor<'_> {
        Cursor::new(&self.0.metadata, &self.0.source, position, self.superblock().directory_table)
    }

    fn inode_position(&self, reference: InodeRef) -> Position {
        // A block outside the table is noticed when it is loaded.
        let block = self.superblock().inode_table + (reference.0 >> 16);
        Position { block, offset: (reference.0 & 0xffff) as usize }
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.superblock().block_bytes as usize
    }

    pub(super) fn segments(&self) -> &Cache<Segment> {
        &self.0.segments
    }

    /// Where a fragment block is, and its word.
    pub(super) fn fragment(&self, index: u32) -> Result<(u64, u32), SquashfsError> {
        let superblock = self.superblock();
        let count = u64::from(superblock.fragment_count);
        let damaged =
            SquashfsError::Damaged { what: "a fragment is beyond its table", offset_bytes: superblock.fragment_table };
        if u64::from(index) >= count {
            return Err(damaged);
        }
        let load = || IndexedTable::load(&self.0.source, superblock.fragment_table, count, 16);
        let table = self.0.fragments.get_or_init(load).as_ref().map_err(Clone::clone)?;
        let entry: Option<[u8; 16]> = table.entry(&self.0.metadata, &self.0.source, u64::from(index))?;
        let b = entry.ok_or(damaged)?;
        let start = u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        Ok((start, u32::from_le_bytes([b[8], b[9], b[10], b[11]])))
    }

    /// The data block at `start`; `needed` is how long it must be, 0 if that is not known.
    pub(super) fn data_block(&self, start: u64, word: u32, needed: usize) -> Result<cache::Held<Block>, SquashfsError> {
        let load = || file::load_block(self, start, word, needed, || self.spare_buffer());
        let block = self.0.data.get(start, load, Block::weigh, |block| self.keep_buffer(block))?;
        match block.matches(word) {
            true => Ok(block),
            false => Err(SquashfsError::Damaged { what: "two lengths for one data block", offset_bytes: start }),
        }
    }

    /// A buffer for one block, used before if this thread has one.
    fn spare_buffer(&self) -> Vec<u8> {
        let size = self.block_bytes();
        let kept = SPARE.with_borrow_mut(|spare| {
            spare.iter().position(|buffer| buffer.len() == size).map(|at| spare.swap_remove(at))
        });
        kept.unwrap_or_else(|| vec![0; size])
    }

    fn keep_buffer(&self, block: Block) {
        let buffer = block.into_buffer();
        SPARE.with_borrow_mut(|spare| {
            if buffer.len() == self.block_bytes() && spare.len() < SPARE_BUFFERS {
                spare.push(buffer);
            }
        });
    }

    pub(super) fn read_exact(&self, out: &mut [u8], offset_bytes: u64) -> Result<(), SquashfsError> {
        read_exact(&self.0.source, out, offset_bytes)
    }

    pub(super) fn read_packed(&self, start: u64, packed: usize, out: &mut [u8]) -> Result<usize, SquashfsError> {
        codec::read_packed(&self.0.source, self.superblock().compression, start, packed, out)
    }
}

/// Reads inodes one after the other; see [`Reader::inodes`].
pub struct InodeReader<'r> {
    reader: &'r Reader,
    cursor: Cursor<'r>,
}

impl InodeReader<'_> {
    pub fn read(&mut self, reference: InodeRef) -> Result<Inode, SquashfsError> {
        self.cursor.seek(self.reader.inode_position(reference));
        inode::read(&mut self.cursor)
    }
}
