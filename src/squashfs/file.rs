//! File contents: a list of block lengths in the inode, the blocks one after the other in the data area, and for
//! most files a tail that shares a fragment block with other tails.
//!
//! ```text
//!   word in the list    bit 24: stored as it is    bits 0..24: length on disk, 0 for a block of zeros
//! ```
//!
//! Where a block lies is the sum of the lengths before it. That sum is made once per segment of a file, and kept.

use super::cache::Held;
use super::error::SquashfsError;
use super::inode::{FileBody, Inode, InodeRef};
use super::metadata::{Cursor, METADATA_BYTES, Position};
use super::reader::Reader;

const STORED_BIT: u32 = 1 << 24;

/// Blocks of a file whose places are kept together: 8 GiB of a file at the usual block size, 768 KiB of memory.
const SEGMENT_BLOCKS: u64 = 1 << 16;

/// Blocks of the largest file that is read: 8 TiB at the usual block size. To find a block of a larger one, more
/// than a second could go by.
const FILE_BLOCKS_MAX: u64 = 1 << 26;

/// Files up to this many blocks are mapped anew each time: quicker than to keep them.
const SMALL_FILE_BLOCKS: u64 = 8;

/// Places of the blocks of one segment.
pub(super) struct Segment {
    /// Where each block starts on disk, and its word.
    places: Box<[(u64, u32)]>,
    /// Where the next segment's words and blocks are.
    next_words: Position,
    next_start: u64,
}

impl Segment {
    pub(super) fn weigh(&self) -> usize {
        128 + size_of_val(&*self.places)
    }
}

enum SegmentRef {
    Own(Segment),
    Kept(Held<Segment>),
}

impl std::ops::Deref for SegmentRef {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        match self {
            Self::Own(segment) => segment,
            Self::Kept(segment) => segment,
        }
    }
}

/// A data block in the cache, unpacked.
pub(super) struct Block {
    bytes: Vec<u8>,
    length: usize,
    /// The word it was read by: one place on disk has one.
    word: u32,
}

impl Block {
    pub(super) fn weigh(&self) -> usize {
        self.bytes.len() + 128
    }

    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// A piece of a file's content: bytes of a cached block, or zeros.
pub enum Piece {
    Bytes(BlockBytes),
    Zeros(usize),
}

/// Bytes of a cached block, held while this lives.
pub struct BlockBytes {
    block: Held<Block>,
    start: usize,
    end: usize,
}

impl std::ops::Deref for BlockBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.block.bytes[self.start..self.end]
    }
}

/// How a block of a file is found.
enum Place {
    Block { start: u64, word: u32 },
    Tail { start: u64, word: u32, offset: usize },
    Zeros,
}

/// A regular file, open for reading.
pub(super) struct File<'r> {
    reader: &'r Reader,
    reference: InodeRef,
    body: FileBody,
    size_bytes: u64,
    /// Whole blocks; with a fragment, the tail is not among them.
    block_count: u64,
}

impl<'r> File<'r> {
    pub(super) fn new(
        reader: &'r Reader,
        reference: InodeRef,
        inode: &Inode,
        body: FileBody,
    ) -> Result<Self, SquashfsError> {
        let block_bytes = reader.block_bytes() as u64;
        let size_bytes = inode.size_bytes;
        let block_count =
            if body.fragment.is_some() { size_bytes / block_bytes } else { size_bytes.div_ceil(block_bytes) };
        // The smallest block of metadata is 3 bytes and unpacks to 8 KiB at most: no table holds a longer list.
        let superblock = reader.superblock();
        let room = superblock.directory_table.saturating_sub(body.blocks.block);
        let list_bytes_max = (room / 3 + 1).saturating_mul(METADATA_BYTES as u64);
        if block_count > FILE_BLOCKS_MAX || block_count * 4 > list_bytes_max {
            let offset_bytes = body.blocks.block;
            return Err(SquashfsError::Damaged { what: "a file is longer than its list of blocks", offset_bytes });
        }
        Ok(Self { reader, reference, body, size_bytes, block_count })
    }

    /// Appends to `pieces` what the file holds from `offset` on, `length` bytes or up to its end.
    pub(super) fn pieces(&self, offset: u64, length: usize, pieces: &mut Vec<Piece>) -> Result<usize, SquashfsError> {
        let block_bytes = self.reader.block_bytes() as u64;
        let end = offset.saturating_add(length as u64).min(self.size_bytes);
        let mut at = offset;
        let mut segment = None;
        while at < end {
            let (index, within) = (at / block_bytes, (at % block_bytes) as usize);
            let count = (block_bytes - within as u64).min(end - at) as usize;
            let expected = (self.size_bytes - index * block_bytes).min(block_bytes) as usize;
            let (start, word, within, needed) = match self.place(index, &mut segment)? {
                Place::Zeros => {
                    pieces.push(Piece::Zeros(count));
                    at += count as u64;
                    continue;
                }
                Place::Block { start, word } => (start, word, within, expected),
                Place::Tail { start, word, offset } => {
                    // Where the tail ends in its fragment, not where the fragment ends: that is known once it is read.
                    (start, word, offset + within, 0)
                }
            };
            let block = self.reader.data_block(start, word, needed)?;
            if within + count > block.length || needed > block.length {
                return Err(SquashfsError::Damaged { what: "a data block is too short", offset_bytes: start });
            }
            pieces.push(Piece::Bytes(BlockBytes { block, start: within, end: within + count }));
            at += count as u64;
        }
        Ok(at.saturating_sub(offset) as usize)
    }

    /// Where block `index` is, its word, and how long it must be (0: not known); `None` if nothing is stored for it.
    pub(super) fn block(&self, index: u64) -> Result<Option<(u64, u32, usize)>, SquashfsError> {
        let block_bytes = self.reader.block_bytes() as u64;
        let before = index.saturating_mul(block_bytes);
        if before >= self.size_bytes {
            return Ok(None);
        }
        Ok(match self.place(index, &mut None)? {
            Place::Zeros => None,
            Place::Block { start, word } => Some((start, word, (self.size_bytes - before).min(block_bytes) as usize)),
            Place::Tail { start, word, .. } => Some((start, word, 0)),
        })
    }

    /// Finds block `index`; `segment` keeps the segment of the last call.
    fn place(&self, index: u64, segment: &mut Option<(u64, SegmentRef)>) -> Result<Place, SquashfsError> {
        if index >= self.block_count {
            let Some((fragment, offset)) = self.body.fragment else {
                return Err(self.damaged("a file is longer than its list of blocks"));
            };
            let (start, word) = self.reader.fragment(fragment)?;
            if word & !STORED_BIT == 0 || offset as usize > self.reader.block_bytes() {
                return Err(self.damaged("a file's tail lies outside its fragment"));
            }
            return Ok(Place::Tail { start, word, offset: offset as usize });
        }
        let number = index / SEGMENT_BLOCKS;
        let kept = match segment {
            Some((kept, segment)) if *kept == number => segment,
            _ => &mut segment.insert((number, self.segment(number)?)).1,
        };
        let (start, word) = kept.places[(index % SEGMENT_BLOCKS) as usize];
        Ok(if word & !STORED_BIT == 0 { Place::Zeros } else { Place::Block { start, word } })
    }

    fn segment(&self, number: u64) -> Result<SegmentRef, SquashfsError> {
        if self.block_count <= SMALL_FILE_BLOCKS {
            return self.map(0, self.body.blocks, self.body.start).map(SegmentRef::Own);
        }
        let (mut words, mut start) = (self.body.blocks, self.body.start);
        // A segment begins where the one before it ends, so each asks for those before it; the cache has most.
        for index in 0.. {
            let key = self.reference.bits() << 16 | index;
            let kept = self.reader.segments().get(key, || self.map(index, words, start), Segment::weigh, drop)?;
            if index == number {
                return Ok(SegmentRef::Kept(kept));
            }
            (words, start) = (kept.next_words, kept.next_start);
        }
        Err(self.damaged("a file is longer than its list of blocks"))
    }

    fn map(&self, number: u64, words: Position, start: u64) -> Result<Segment, SquashfsError> {
        let count = (self.block_count - number * SEGMENT_BLOCKS).min(SEGMENT_BLOCKS) as usize;
        let mut cursor: Cursor<'_> = self.reader.inode_cursor(words);
        let mut places = Vec::new();
        let mut start = start;
        let mut piece = [0; 512];
        // Memory grows only as fast as words are really there.
        while places.len() < count {
            let part = &mut piece[..4 * (count - places.len()).min(128)];
            cursor.read(part)?;
            for word in part.chunks_exact(4) {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                places.push((start, word));
                let next = start.checked_add(u64::from(word & !STORED_BIT));
                start = next.ok_or_else(|| self.damaged("a block list ends outside the image"))?;
            }
        }
        Ok(Segment { places: places.into(), next_words: cursor.position(), next_start: start })
    }

    fn damaged(&self, what: &'static str) -> SquashfsError {
        SquashfsError::Damaged { what, offset_bytes: self.body.blocks.block }
    }
}

/// Reads and unpacks one block into `buffer`, whose length is the image's block size; gives the block.
pub(super) fn load_block(
    reader: &Reader,
    start: u64,
    word: u32,
    needed: usize,
    spare: impl FnOnce() -> Vec<u8>,
) -> Result<Block, SquashfsError> {
    let packed = (word & !STORED_BIT) as usize;
    let data_end = reader.superblock().inode_table;
    let in_data = start.checked_add(packed as u64).is_some_and(|end| start >= 96 && end <= data_end);
    if packed > reader.block_bytes() || !in_data {
        return Err(SquashfsError::Damaged { what: "a data block lies outside the data area", offset_bytes: start });
    }
    let stored = word & STORED_BIT != 0;
    // What is known to be small gets room of its size only; a whole block's buffer is one that was used before.
    let mut bytes = match if stored { packed } else { needed } {
        1.. if stored && packed <= reader.block_bytes() / 2 => vec![0; packed],
        1.. if !stored && needed <= reader.block_bytes() / 2 => vec![0; needed],
        _ => spare(),
    };
    let length = if stored {
        reader.read_exact(&mut bytes[..packed], start)?;
        packed
    } else {
        reader.read_packed(start, packed, &mut bytes)?
    };
    Ok(Block { bytes, length, word })
}

impl Block {
    /// Whether this is what `word` describes.
    pub(super) fn matches(&self, word: u32) -> bool {
        self.word == word
    }
}

/// Copies pieces into one buffer.
pub(super) fn copy_pieces(pieces: &[Piece], out: &mut [u8]) {
    let mut at = 0;
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => {
                out[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            }
            Piece::Zeros(count) => {
                out[at..at + count].fill(0);
                at += count;
            }
        }
    }
}
