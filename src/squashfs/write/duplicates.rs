//! Which files have the same content: by size, then by a hash, then by comparing the bytes.
//!
//! Only files that share their size with another one are read here. The hash decides what is worth comparing, and
//! nothing else: a collision costs time, never a wrong image.

use super::reading::{Filled, Reading, is_zero};
use super::{Progress, Stage, WriteError, content};
use crate::tree::{InodeId, Tree};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// For each inode that equals an earlier one of `files`: the first such.
pub(super) type SameAs = HashMap<InodeId, InodeId>;

const BUFFER_BYTES: usize = 64 << 10;

/// Finds duplicates among `files`, none of them empty.
pub(super) fn find(
    tree: &Tree,
    files: &[InodeId],
    threads: NonZeroUsize,
    watch: &mut dyn FnMut(Progress),
) -> Result<SameAs, WriteError> {
    let size = |id: InodeId| content(tree, id).map_or(0, crate::tree::Content::size_bytes);
    let mut by_size: HashMap<u64, u32> = HashMap::new();
    for &id in files {
        *by_size.entry(size(id)).or_default() += 1;
    }
    let candidates: Vec<InodeId> = files.iter().copied().filter(|&id| by_size[&size(id)] > 1).collect();
    let hashes =
        in_parallel(&candidates, threads, |&id| hash(tree, id), |&id| size(id), &mut of_stage(Stage::Hashing, watch))?;

    let mut first: HashMap<(u64, u64), InodeId> = HashMap::new();
    let mut pairs = Vec::new();
    for (&id, &hash) in candidates.iter().zip(&hashes) {
        match first.get(&(size(id), hash)) {
            Some(&earlier) => pairs.push((id, earlier)),
            None => {
                first.insert((size(id), hash), id);
            }
        }
    }
    let compare = |&(id, earlier): &(InodeId, InodeId)| same_bytes(tree, id, earlier);
    let equal = in_parallel(&pairs, threads, compare, |&(id, _)| size(id), &mut of_stage(Stage::Comparing, watch))?;
    Ok(pairs.into_iter().zip(equal).filter(|(_, equal)| *equal).map(|(pair, _)| pair).collect())
}

fn of_stage(stage: Stage, watch: &mut dyn FnMut(Progress)) -> impl FnMut(u64, u64) {
    move |done_bytes, total_bytes| watch(Progress { stage, done_bytes, total_bytes })
}

/// Equal for equal contents, whether their zeros are holes or bytes.
fn hash(tree: &Tree, id: InodeId) -> Result<u64, WriteError> {
    let mut hasher = DefaultHasher::new();
    let mut file = Buffers::new(tree, id)?;
    while let Some(bytes) = file.next()? {
        match bytes {
            Some(bytes) => hasher.write(bytes),
            None => hasher.write_u8(0),
        }
    }
    Ok(hasher.finish())
}

fn same_bytes(tree: &Tree, one: InodeId, other: InodeId) -> Result<bool, WriteError> {
    let (mut one, mut other) = (Buffers::new(tree, one)?, Buffers::new(tree, other)?);
    loop {
        match (one.next()?, other.next()?) {
            (None, None) => return Ok(true),
            (one, other) if one != other => return Ok(false),
            _ => {}
        }
    }
}

/// A file in pieces of [`BUFFER_BYTES`].
struct Buffers<'a> {
    reading: Reading<'a>,
    left_bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Buffers<'a> {
    fn new(tree: &'a Tree, id: InodeId) -> Result<Self, WriteError> {
        // Only files are candidates.
        let changed = || WriteError::Changed { name: "a file".to_owned(), expected_bytes: 0 };
        let reading = Reading::new(tree, id, 0).ok_or_else(changed)?;
        let left_bytes = reading.size_bytes();
        let buffer = vec![0; BUFFER_BYTES.min(usize::try_from(left_bytes).unwrap_or(BUFFER_BYTES))];
        Ok(Self { reading, left_bytes, buffer })
    }

    /// The next piece, `None` within for one of zeros; `None` at the end.
    fn next(&mut self) -> Result<Option<Option<&[u8]>>, WriteError> {
        let length = self.buffer.len().min(usize::try_from(self.left_bytes).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(None);
        }
        let buffer = &mut self.buffer[..length];
        self.left_bytes -= length as u64;
        let zeros = self.reading.next(buffer)? == Filled::Hole || is_zero(buffer);
        Ok(Some((!zeros).then_some(buffer)))
    }
}

/// `work` of each item, in the items' order; of several errors the first item's. The calling thread works too, and
/// tells `watch` how many bytes, as `bytes_of` counts them, are done, and of how many.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: NonZeroUsize,
    work: impl Fn(&T) -> Result<R, WriteError> + Sync,
    bytes_of: impl Fn(&T) -> u64 + Sync,
    watch: &mut dyn FnMut(u64, u64),
) -> Result<Vec<R>, WriteError> {
    // Some items at a time: taking them costs nothing then, and neighbours lie in one directory.
    const BATCH: usize = 32;
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let done_bytes = AtomicU64::new(0);
    let done = Mutex::new(Vec::new());
    let run = |told: &mut dyn FnMut()| {
        while !stop.load(Ordering::Relaxed) {
            let batch = next.fetch_add(1, Ordering::Relaxed);
            let Some(rest) = items.get(batch * BATCH..).filter(|rest| !rest.is_empty()) else { return };
            let each = rest.iter().take(BATCH).map(|item| {
                let answer = work(item);
                done_bytes.fetch_add(bytes_of(item), Ordering::Relaxed);
                told();
                answer
            });
            let answer: Result<Vec<R>, WriteError> = each.collect();
            stop.fetch_or(answer.is_err(), Ordering::Relaxed);
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((batch, answer));
        }
    };
    let useful = threads.get().min(items.len().div_ceil(BATCH));
    let total_bytes = items.iter().map(&bytes_of).fold(0, u64::saturating_add);
    std::thread::scope(|scope| {
        for _ in 1..useful {
            scope.spawn(|| run(&mut || {}));
        }
        run(&mut || {
            watch(done_bytes.load(Ordering::Relaxed), total_bytes);
        });
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(batch, _)| *batch);
    let mut results = Vec::with_capacity(items.len());
    for (_, answer) in done {
        results.extend(answer?);
    }
    Ok(results)
}
