//! Where everything will lie, decided from sizes alone: blocks of each file, fragments of small files, jobs.
//!
//! Two fragments are filled at a time: what no longer fits one goes to the other, so that they get 95 % full instead of
//! 85 %, and neighbours stay neighbours.
//!
//! ```text
//! file a  |block 0|block 1|part|        pieces: a's blocks, d's blocks, fragment 0 (b, c, e), ...
//! file b  |part|                        jobs:   runs of pieces of about one MiB, compressed on any thread,
//! file c  |part|                                written in this order
//! file d  |block 0|
//! file e  |part|
//! ```

use super::duplicates::SameAs;
use super::{WriteError, content};
use crate::tree::{InodeId, Tree};
use std::ops::Range;

/// Content that one job compresses, about.
const JOB_BYTES: u64 = 1 << 20;
/// Fragments that are filled at a time. More of them get no fuller, and have less in common in each.
const OPEN_FRAGMENTS: usize = 2;
/// Stands in an inode for "no fragment".
pub(super) const NO_FRAGMENT: u32 = u32::MAX;

/// A file whose content is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub inode: InodeId,
    pub size_bytes: u64,
    /// Number of its first block, counted over all files.
    pub first_block: u64,
    /// Number of its blocks, of which the last may be shorter; none for a file in a fragment.
    pub blocks: u64,
    /// The fragment that holds it, or [`NO_FRAGMENT`]; and where in that.
    pub fragment: u32,
    pub fragment_offset: u32,
}

/// What a thread compresses without a pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Some blocks of the file of that number.
    Blocks { file: u32, blocks: Range<u64> },
    /// One fragment: these of [`Plan::small`].
    Fragment { small: Range<u32> },
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub files: Vec<File>,
    /// For each inode the number of its file (that of the first one for a duplicate), or `u32::MAX`.
    pub file_of: Vec<u32>,
    /// Files in fragments, in their order.
    pub small: Vec<u32>,
    pub pieces: Vec<Piece>,
    /// How many of the pieces are fragments.
    pub fragments: u32,
    /// Runs of `pieces`.
    pub jobs: Vec<Range<usize>>,
    pub block_bytes: usize,
    pub content_bytes: u64,
    pub duplicate_files: u32,
    pub duplicate_bytes: u64,
}

/// A fragment that is being filled.
#[derive(Default)]
struct Open {
    files: Vec<u32>,
    bytes: usize,
}

impl Plan {
    /// Makes the next piece of a fragment that gets no more files.
    fn close(&mut self, open: Open) {
        if open.files.is_empty() {
            return;
        }
        let (fragment, start) = (self.fragments, self.small.len() as u32);
        let mut offset = 0;
        for &number in &open.files {
            let file = &mut self.files[number as usize];
            (file.fragment, file.fragment_offset) = (fragment, offset);
            // Less than a block, as the sum is.
            offset += file.size_bytes as u32;
        }
        self.small.extend(open.files);
        self.pieces.push(Piece::Fragment { small: start..self.small.len() as u32 });
        self.fragments += 1;
    }

    /// Bytes of the contents that are compressed: each duplicate once.
    pub fn stored_bytes(&self) -> u64 {
        self.content_bytes - self.duplicate_bytes
    }

    /// Bytes of content in one piece.
    pub fn piece_bytes(&self, piece: &Piece) -> u64 {
        let block_bytes = self.block_bytes as u64;
        match piece {
            Piece::Blocks { file, blocks } => {
                let end = (blocks.end * block_bytes).min(self.files[*file as usize].size_bytes);
                end - blocks.start * block_bytes
            }
            Piece::Fragment { small } => {
                let files = &self.small[small.start as usize..small.end as usize];
                files.iter().map(|file| self.files[*file as usize].size_bytes).sum()
            }
        }
    }

    pub fn block_count(&self) -> u64 {
        self.files.last().map_or(0, |file| file.first_block + file.blocks)
    }
}

const TOO_LARGE: WriteError = WriteError::TooMany { what: "bytes in files", limit: u64::MAX };

/// Lays out the contents of `files`, in that order.
pub(super) fn plan(tree: &Tree, files: &[InodeId], same_as: &SameAs, block_bytes: usize) -> Result<Plan, WriteError> {
    let mut plan = Plan { block_bytes, file_of: vec![u32::MAX; tree.inode_count()], ..Plan::default() };
    let mut open: Vec<Open> = Vec::new();
    let mut first_block = 0;
    for &inode in files {
        let size_bytes = content(tree, inode).map_or(0, crate::tree::Content::size_bytes);
        plan.content_bytes = plan.content_bytes.checked_add(size_bytes).ok_or(TOO_LARGE)?;
        if let Some(earlier) = same_as.get(&inode) {
            plan.file_of[inode.index()] = plan.file_of[earlier.index()];
            plan.duplicate_files += 1;
            plan.duplicate_bytes += size_bytes;
            continue;
        }
        let number = plan.files.len() as u32;
        // Only files that are nothing but a tail share fragments. With the tails of larger ones there too, images of a
        // Debian root were no smaller (zstd: 0.04 % larger), and reading such a file takes a block of strangers.
        let is_small = size_bytes < block_bytes as u64;
        let (blocks, tail) =
            if is_small { (0, size_bytes as usize) } else { (size_bytes.div_ceil(block_bytes as u64), 0) };
        let blocks_a_piece = (JOB_BYTES / block_bytes as u64).max(1);
        for start in (0..blocks).step_by(blocks_a_piece as usize) {
            let end = blocks.min(start + blocks_a_piece);
            plan.pieces.push(Piece::Blocks { file: number, blocks: start..end });
        }
        if tail > 0 {
            // The older one first.
            let place = open.iter().position(|open| open.bytes + tail <= block_bytes).unwrap_or_else(|| {
                if open.len() == OPEN_FRAGMENTS {
                    let fullest = (0..open.len()).max_by_key(|&at| open[at].bytes).unwrap_or(0);
                    plan.close(open.remove(fullest));
                }
                open.push(Open::default());
                open.len() - 1
            });
            open[place].files.push(number);
            open[place].bytes += tail;
        }
        plan.file_of[inode.index()] = number;
        plan.files.push(File { inode, size_bytes, first_block, blocks, fragment: NO_FRAGMENT, fragment_offset: 0 });
        first_block = first_block.checked_add(blocks).ok_or(WriteError::TooMany { what: "blocks", limit: u64::MAX })?;
    }
    for left in open {
        plan.close(left);
    }
    plan.jobs = jobs(&plan.pieces, block_bytes as u64);
    Ok(plan)
}

/// Cuts the pieces into runs of about [`JOB_BYTES`].
fn jobs(pieces: &[Piece], block_bytes: u64) -> Vec<Range<usize>> {
    let mut jobs = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, piece) in pieces.iter().enumerate() {
        let piece_bytes = match piece {
            Piece::Blocks { blocks, .. } => (blocks.end - blocks.start) * block_bytes,
            Piece::Fragment { .. } => block_bytes,
        };
        if bytes > 0 && bytes + piece_bytes > JOB_BYTES {
            jobs.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += piece_bytes;
    }
    if start < pieces.len() {
        jobs.push(start..pieces.len());
    }
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Attributes, Body, Content};

    fn plan_of(sizes: &[usize]) -> Plan {
        let attributes = || Attributes { mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
        let mut tree = Tree::new(attributes());
        let mut files = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let body = Body::File(Content::Bytes(vec![b'x'; *size].into()));
            files.push(tree.insert(tree.root(), index.to_string().as_bytes(), attributes(), body).unwrap());
        }
        plan(&tree, &files, &SameAs::new(), 4096).unwrap()
    }

    #[test]
    fn small_files_fill_two_fragments_until_the_next_fits_neither() {
        let plan = plan_of(&[4000, 4097, 3000, 96, 4096, 2000, 1000]);
        let fragments: Vec<(u32, u32)> = plan.files.iter().map(|f| (f.fragment, f.fragment_offset)).collect();
        let none = (NO_FRAGMENT, 0);
        assert_eq!(fragments, [(0, 0), none, (1, 0), (0, 4000), none, (2, 0), (1, 3000)]);
        let expected = [
            Piece::Blocks { file: 1, blocks: 0..2 },
            Piece::Blocks { file: 4, blocks: 0..1 },
            Piece::Fragment { small: 0..2 },
            Piece::Fragment { small: 2..4 },
            Piece::Fragment { small: 4..5 },
        ];
        assert_eq!(plan.pieces, expected);
        assert_eq!(plan.fragments, 3);
        assert_eq!(expected.map(|piece| plan.piece_bytes(&piece)), [4097, 4096, 4096, 4000, 2000]);
    }

    #[test]
    fn a_large_file_is_cut_into_jobs_that_cover_it_once() {
        let plan = plan_of(&[3 << 20, 5 << 20]);
        assert_eq!(plan.jobs.len(), 8);
        assert_eq!(plan.jobs.first(), Some(&(0..1)));
        assert_eq!(plan.jobs.last(), Some(&(7..8)));
        assert_eq!(plan.block_count(), 8 << 8);
        assert_eq!(plan.pieces.iter().map(|piece| plan.piece_bytes(piece)).sum::<u64>(), plan.stored_bytes());
    }

    #[test]
    fn nothing_to_store_is_no_job() {
        assert_eq!(plan_of(&[]).jobs, []);
    }
}
