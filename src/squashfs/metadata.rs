//! Metadata: inodes, directories and small tables are streams of blocks, each 8 KiB unpacked, with a 16-bit header:
//!
//! ```text
//!   0        2              2 + n                   bit 15 of the header: stored as it is
//!   | header | n bytes      | next header ...       bits 0..15: n, 1 to 8192
//! ```
//!
//! A [`Cursor`] reads such a stream from a block and an offset in it, and never beyond the end of its table.

use super::Compression;
use super::cache::{Cache, Held};
use super::codec;
use super::error::SquashfsError;
use super::source::{ReadAt, read_exact};

/// Length of a metadata block, unpacked.
pub(super) const METADATA_BYTES: usize = 8192;

/// What all metadata blocks kept in memory weigh at most.
const CACHE_BYTES: usize = 32 << 20;

/// The metadata blocks of an image, unpacked when first asked for.
pub(super) struct Metadata {
    compression: Compression,
    blocks: Cache<Block>,
}

struct Block {
    bytes: Box<[u8]>,
    /// Where the next block's header is.
    next: u64,
}

/// A place in a stream of metadata: where its block starts, and an offset in the unpacked block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub block: u64,
    pub offset: usize,
}

impl Metadata {
    pub(super) fn new(compression: Compression) -> Self {
        Self { compression, blocks: Cache::new(CACHE_BYTES) }
    }

    fn block(&self, source: &dyn ReadAt, start: u64, end: u64) -> Result<Held<Block>, SquashfsError> {
        let load = || self.load(source, start, end);
        self.blocks.get(start, load, |block| block.bytes.len() + size_of::<Block>() + 64, drop)
    }

    fn load(&self, source: &dyn ReadAt, start: u64, end: u64) -> Result<Block, SquashfsError> {
        let damaged = |what| Err(SquashfsError::Damaged { what, offset_bytes: start });
        // One read for header and content; the content is shorter than this as a rule.
        let mut packed = [0; 2 + METADATA_BYTES];
        let room = end.saturating_sub(start).min(packed.len() as u64) as usize;
        if room < 3 {
            return damaged("a reference points outside its table");
        }
        read_exact(source, &mut packed[..room], start)?;
        let header = u16::from_le_bytes([packed[0], packed[1]]);
        let length = usize::from(header & 0x7fff);
        if length == 0 || length > METADATA_BYTES || 2 + length > room {
            return damaged("impossible length of a metadata block");
        }
        let content = &packed[2..2 + length];
        let bytes = if header & 0x8000 != 0 {
            content.into()
        } else {
            let mut unpacked = [0; METADATA_BYTES];
            match codec::decompress(self.compression, content, &mut unpacked) {
                Some(0) | None => return Err(SquashfsError::Inflate { offset_bytes: start }),
                Some(length) => unpacked[..length].into(),
            }
        };
        Ok(Block { bytes, next: start + 2 + length as u64 })
    }
}

/// Reads a table of metadata from a position on.
#[derive(Clone)]
pub(super) struct Cursor<'r> {
    metadata: &'r Metadata,
    source: &'r dyn ReadAt,
    /// The block of `position`, once it was needed.
    block: Option<Held<Block>>,
    position: Position,
    /// End of the table.
    end: u64,
}

impl<'r> Cursor<'r> {
    pub(super) fn new(metadata: &'r Metadata, source: &'r dyn ReadAt, position: Position, end: u64) -> Self {
        Self { metadata, source, block: None, position, end }
    }

    /// Goes to another position of the same table; keeps the block if it is the same.
    pub(super) fn seek(&mut self, position: Position) {
        if position.block != self.position.block {
            self.block = None;
        }
        self.position = position;
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Fills `out`, across blocks if need be.
    pub(super) fn read(&mut self, mut out: &mut [u8]) -> Result<(), SquashfsError> {
        while !out.is_empty() {
            let rest = self.rest()?;
            let count = rest.len().min(out.len());
            out[..count].copy_from_slice(&rest[..count]);
            out = &mut out[count..];
            self.position.offset += count;
        }
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], SquashfsError> {
        if let Some(&bytes) = self.rest()?.first_chunk() {
            self.position.offset += N;
            return Ok(bytes);
        }
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Passes over `count` bytes.
    pub(super) fn skip(&mut self, mut count: u64) -> Result<(), SquashfsError> {
        while count > 0 {
            let step = (self.rest()?.len() as u64).min(count);
            self.position.offset += step as usize;
            count -= step;
        }
        Ok(())
    }

    /// What is left of the current block, or the next block: never empty.
    fn rest(&mut self) -> Result<&[u8], SquashfsError> {
        loop {
            if self.block.is_none() {
                self.block = Some(self.metadata.block(self.source, self.position.block, self.end)?);
            }
            let Some(block) = &self.block else { unreachable!("set above") };
            let (length, next) = (block.bytes.len(), block.next);
            if self.position.offset < length {
                break;
            }
            if self.position.offset > length {
                return Err(SquashfsError::Damaged {
                    what: "an offset points outside its metadata block",
                    offset_bytes: self.position.block,
                });
            }
            self.position = Position { block: next, offset: 0 };
            self.block = None;
        }
        let Some(block) = &self.block else { unreachable!("the loop ends with a block") };
        Ok(&block.bytes[self.position.offset..])
    }
}

/// Loads a table of `count` fixed-size entries that is found by a list of block positions at `list`.
pub(super) struct IndexedTable {
    blocks: Box<[u64]>,
    entry_bytes: usize,
    count: u64,
    end: u64,
}

impl IndexedTable {
    /// Reads the list of block positions; `count` was checked against the image's length.
    pub(super) fn load(source: &dyn ReadAt, list: u64, count: u64, entry_bytes: usize) -> Result<Self, SquashfsError> {
        let blocks = (count * entry_bytes as u64).div_ceil(METADATA_BYTES as u64) as usize;
        let mut positions = Vec::new();
        let mut piece = [0; 4096];
        while positions.len() < blocks {
            let part = &mut piece[..8 * (blocks - positions.len()).min(512)];
            read_exact(source, part, list + 8 * positions.len() as u64)?;
            positions.extend(part.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default())));
        }
        Ok(Self { blocks: positions.into(), entry_bytes, count, end: list })
    }

    /// Reads entry `index`; `None` when there are fewer.
    pub(super) fn entry<const N: usize>(
        &self,
        metadata: &Metadata,
        source: &dyn ReadAt,
        index: u64,
    ) -> Result<Option<[u8; N]>, SquashfsError> {
        if index >= self.count {
            return Ok(None);
        }
        let at = index as usize * self.entry_bytes;
        let position = Position { block: self.blocks[at / METADATA_BYTES], offset: at % METADATA_BYTES };
        Cursor::new(metadata, source, position, self.end).array().map(Some)
    }
}
