//! Which files have the same content: by size, then by a hash, then by comparing the bytes.
//!
//! Only files that share their size with another one are read here. The hash decides what is worth comparing, and
//! nothing else: a collision costs time, never a wrong image.

use super::{WriteError, content};
use crate::tree::{InodeId, Tree};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// For each inode that equals an earlier one of `files`: the first such.
pub(super) type SameAs = HashMap<InodeId, InodeId>;

const BUFFER_BYTES: usize = 64 << 10;

/// Finds duplicates among `files`, none of them empty.
pub(super) fn find(tree: &Tree, files: &[InodeId], threads: NonZeroUsize) -> Result<SameAs, WriteError> {
    let size = |id: InodeId| content(tree, id).map_or(0, crate::tree::Content::size_bytes);
    let mut by_size: HashMap<u64, u32> = HashMap::new();
    for &id in files {
        *by_size.entry(size(id)).or_default() += 1;
    }
    let candidates: Vec<InodeId> = files.iter().copied().filter(|&id| by_size[&size(id)] > 1).collect();
    let hashes = in_parallel(&candidates, threads, |&id| hash(tree, id))?;

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
    let equal = in_parallel(&pairs, threads, |&(id, earlier)| same_bytes(tree, id, earlier))?;
    Ok(pairs.into_iter().zip(equal).filter(|(_, equal)| *equal).map(|(pair, _)| pair).collect())
}

fn hash(tree: &Tree, id: InodeId) -> Result<u64, WriteError> {
    let mut hasher = DefaultHasher::new();
    each_buffer(tree, id, |bytes| {
        hasher.write(bytes);
        true
    })?;
    Ok(hasher.finish())
}

fn same_bytes(tree: &Tree, one: InodeId, other: InodeId) -> Result<bool, WriteError> {
    let Some(content) = content(tree, other) else { return Ok(false) };
    let failed = |source| WriteError::Read { name: tree.content_name(content), source };
    let mut reader = tree.open(content, 0).map_err(failed)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut same = true;
    let mut result = Ok(());
    each_buffer(tree, one, |bytes| {
        let buffer = &mut buffer[..bytes.len()];
        match reader.read_exact(buffer) {
            Ok(()) => same &= *buffer == *bytes,
            Err(source) => {
                same = false;
                result = Err(failed(source));
            }
        }
        same
    })?;
    result.map(|()| same)
}

/// Gives the content of a file to `use_bytes` in pieces, as long as that says yes.
fn each_buffer(tree: &Tree, id: InodeId, mut use_bytes: impl FnMut(&[u8]) -> bool) -> Result<(), WriteError> {
    let Some(content) = content(tree, id) else { return Ok(()) };
    let failed = |source| WriteError::Read { name: tree.content_name(content), source };
    let mut reader = tree.open(content, 0).map_err(failed)?;
    let mut left_bytes = content.size_bytes();
    let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(left_bytes).unwrap_or(BUFFER_BYTES))];
    while left_bytes > 0 {
        let length = buffer.len().min(usize::try_from(left_bytes).unwrap_or(usize::MAX));
        reader.read_exact(&mut buffer[..length]).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                WriteError::Changed { name: tree.content_name(content), expected_bytes: content.size_bytes() }
            }
            _ => failed(source),
        })?;
        left_bytes -= length as u64;
        if !use_bytes(&buffer[..length]) {
            break;
        }
    }
    Ok(())
}

/// `work` of each item, in the items' order; of several errors the first item's.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: NonZeroUsize,
    work: impl Fn(&T) -> Result<R, WriteError> + Sync,
) -> Result<Vec<R>, WriteError> {
    // Some items at a time: taking them costs nothing then, and neighbours lie in one directory.
    const BATCH: usize = 32;
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let done = Mutex::new(Vec::new());
    let run = || {
        while !stop.load(Ordering::Relaxed) {
            let batch = next.fetch_add(1, Ordering::Relaxed);
            let Some(rest) = items.get(batch * BATCH..).filter(|rest| !rest.is_empty()) else { return };
            let answer: Result<Vec<R>, WriteError> = rest.iter().take(BATCH).map(&work).collect();
            stop.fetch_or(answer.is_err(), Ordering::Relaxed);
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((batch, answer));
        }
    };
    let useful = threads.get().min(items.len().div_ceil(BATCH));
    std::thread::scope(|scope| {
        for _ in 1..useful {
            scope.spawn(run);
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(batch, _)| *batch);
    let mut results = Vec::with_capacity(items.len());
    for (_, answer) in done {
        results.extend(answer?);
    }
    Ok(results)
}
