//! How large an image will be, from some of its blocks: for deciding whether to begin.

use super::reading::{Filled, Reading};
use super::{PackOptions, WriteError, compress::Compressor, content, inodes};
use crate::tree::Tree;

/// Blocks that are compressed: enough for a tenth of error on most trees, and a tenth of a second.
const SAMPLES: u64 = 64;

/// About how many bytes the contents of `tree` take in an image. Files that are stored once although they are there
/// twice are counted twice.
///
/// # Errors
/// A sample can't be read.
pub fn estimate(tree: &Tree, options: &PackOptions) -> Result<u64, WriteError> {
    super::check_block_bytes(options.block_bytes)?;
    let files = inodes::number(tree)?.files;
    let size = |id| content(tree, id).map_or(0, crate::tree::Content::size_bytes);
    let total_bytes = files.iter().map(|&id| size(id)).fold(0, u64::saturating_add);
    let mut compressor = Compressor::for_data(options.compression, options.block_bytes)?;
    let mut block = vec![0; options.block_bytes];
    let mut packed = Vec::new();
    let (mut read_bytes, mut packed_bytes) = (0_u64, 0_u64);
    let (mut before, mut next_sample) = (0_u64, 0_u64);
    for id in files {
        let end = before.saturating_add(size(id));
        while next_sample < SAMPLES {
            let place = (u128::from(total_bytes) * u128::from(next_sample) / u128::from(SAMPLES)) as u64;
            if place >= end {
                break;
            }
            next_sample += 1;
            let block_bytes = options.block_bytes as u64;
            let start = (place - before) / block_bytes * block_bytes;
            let length = block_bytes.min(size(id) - start) as usize;
            let Some(mut reading) = Reading::new(tree, id, start) else { break };
            read_bytes += length as u64;
            if reading.next(&mut block[..length])? == Filled::Data {
                packed.clear();
                let smaller = compressor.append(&block[..length], &mut packed)?;
                packed_bytes += if smaller { packed.len() as u64 } else { length as u64 };
            }
        }
        before = end;
    }
    Ok((u128::from(total_bytes) * u128::from(packed_bytes) / u128::from(read_bytes.max(1))) as u64)
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK_BYTES, Compression};
    use super::*;
    use crate::tree::{Attributes, Body, Content};

    fn check(contents: &[Vec<u8>], expected: std::ops::RangeInclusive<u64>) {
        let attributes = || Attributes { mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
        let mut tree = Tree::new(attributes());
        for (index, content) in contents.iter().enumerate() {
            let body = Body::File(Content::Bytes(content.as_slice().into()));
            tree.insert(tree.root(), index.to_string().as_bytes(), attributes(), body).unwrap();
        }
        let threads = std::num::NonZeroUsize::MIN;
        let options = PackOptions { compression: Compression::ZSTD, block_bytes: BLOCK_BYTES, threads, time: 0 };
        let estimated = estimate(&tree, &options).unwrap();
        assert!(expected.contains(&estimated), "{estimated}");
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    #[test]
    fn noise_stays_as_large_as_it_is_and_zeros_vanish() {
        check(&[noise(3_000_000)], 3_000_000..=3_000_000);
        check(&[vec![0; 9_000_000]], 0..=100_000);
        check(&[noise(3_000_000), vec![0; 3_000_000]], 2_500_000..=3_500_000);
    }

    #[test]
    fn nothing_takes_no_room() {
        check(&[], 0..=0);
        check(&[Vec::new()], 0..=0);
        check(&[b"x".to_vec()], 1..=1);
    }
}
