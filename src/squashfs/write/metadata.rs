//! Metadata blocks: streams of up to 8 KiB pieces, each with its size before it.
//!
//! ```text
//! | u16: size, 0x8000 when stored as it is | bytes |  | u16 | bytes |  ...
//! ```
//!
//! A place in such a stream is the start of its block and the offset in the unpacked block. The small tables (ids,
//! fragments, export) have in addition a list of where their blocks begin.

use super::WriteError;
use super::compress::{Compression, Compressor};

/// Unpacked bytes of a metadata block.
pub(super) const BLOCK_BYTES: usize = 8192;
const UNCOMPRESSED: u16 = 0x8000;

/// A place in a stream of metadata blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the block begins, counted from the first.
    pub block: u64,
    pub offset: u16,
}

impl Place {
    /// The form in which inodes are referred to.
    pub fn reference(self) -> u64 {
        (self.block << 16) | u64::from(self.offset)
    }
}

/// Makes a stream of metadata blocks.
pub(super) struct Stream {
    compressor: Compressor,
    /// The block being filled: always shorter than [`BLOCK_BYTES`].
    open: Vec<u8>,
    packed: Vec<u8>,
    starts: Vec<u64>,
}

impl Stream {
    pub fn new(compression: Compression) -> Result<Self, WriteError> {
        let compressor = Compressor::new(compression)?;
        Ok(Self { compressor, open: Vec::with_capacity(BLOCK_BYTES), packed: Vec::new(), starts: Vec::new() })
    }

    /// Where the next byte will be.
    pub fn place(&self) -> Place {
        Place { block: self.packed.len() as u64, offset: self.open.len() as u16 }
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.open.len()));
            self.open.extend_from_slice(now);
            bytes = later;
            if self.open.len() == BLOCK_BYTES {
                self.close_block()?;
            }
        }
        Ok(())
    }

    /// The blocks, and where each begins.
    pub fn finish(mut self) -> Result<(Vec<u8>, Vec<u64>), WriteError> {
        if !self.open.is_empty() {
            self.close_block()?;
        }
        Ok((self.packed, self.starts))
    }

    fn close_block(&mut self) -> Result<(), WriteError> {
        let start = self.packed.len();
        self.starts.push(start as u64);
        self.packed.extend([0, 0]);
        let flag = if self.compressor.append(&self.open, &mut self.packed)? {
            0
        } else {
            self.packed.extend_from_slice(&self.open);
            UNCOMPRESSED
        };
        let size = (self.packed.len() - start - 2) as u16 | flag;
        self.packed[start..start + 2].copy_from_slice(&size.to_le_bytes());
        self.open.clear();
        Ok(())
    }
}

/// What follows the data of an image.
pub(super) struct Tables {
    compression: Compression,
    start: u64,
    pub bytes: Vec<u8>,
}

impl Tables {
    pub fn new(compression: Compression, start: u64) -> Self {
        Self { compression, start, bytes: Vec::new() }
    }

    /// Where in the image the next table will begin.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Appends bytes as they are; says where in the image they begin.
    pub fn append(&mut self, bytes: &[u8]) -> u64 {
        let at = self.end();
        self.bytes.extend_from_slice(bytes);
        at
    }

    pub fn stream(&self) -> Result<Stream, WriteError> {
        Stream::new(self.compression)
    }

    /// Appends `content` as metadata blocks; gives where in the image each begins.
    pub fn append_blocks(&mut self, content: &[u8]) -> Result<Vec<u64>, WriteError> {
        let mut stream = self.stream()?;
        stream.write(content)?;
        let (packed, starts) = stream.finish()?;
        let at = self.append(&packed);
        Ok(starts.into_iter().map(|start| at + start).collect())
    }
}

/// Appends a table and the list of its blocks; says where the list is, which is what the superblock has.
pub(super) fn write_table(tables: &mut Tables, content: &[u8]) -> Result<u64, WriteError> {
    let starts = tables.append_blocks(content)?;
    let list: Vec<u8> = starts.iter().flat_map(|start| start.to_le_bytes()).collect();
    Ok(tables.append(&list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_block_is_closed_at_once_so_places_stay_inside_blocks() {
        let mut stream = Stream::new(Compression::None).unwrap();
        stream.write(&[1; BLOCK_BYTES - 1]).unwrap();
        assert_eq!(stream.place(), Place { block: 0, offset: 8191 });
        stream.write(&[2]).unwrap();
        assert_eq!(stream.place(), Place { block: 8194, offset: 0 });
        stream.write(&[3, 4]).unwrap();
        let (bytes, starts) = stream.finish().unwrap();
        assert_eq!(starts, [0, 8194]);
        assert_eq!(bytes[..3], [0x00, 0xa0, 1]);
        assert_eq!(bytes[8194..], [0x02, 0x80, 3, 4]);
    }
}
