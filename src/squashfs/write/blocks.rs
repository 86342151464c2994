//! The data of an image: jobs compressed on all threads, written in their order by the caller's.
//!
//! A thread takes the next job as soon as it is less than a window ahead of the writer, so memory is bounded by
//! `window` results, whatever the jobs' order of completion.

use super::compress::{Compression, Compressor};
use super::layout::{Piece, Plan};
use super::{PackOptions, WriteError, content};
use crate::tree::Tree;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs in flight for each thread: one being compressed, the others waiting for a slow one before them.
const JOBS_A_THREAD: usize = 4;
/// In the size of a block: it is stored as it is.
pub(super) const UNCOMPRESSED: u32 = 1 << 24;

/// Where the data came to lie.
#[derive(Debug)]
pub(super) struct Stored {
    /// For each file of the plan, where its first block begins.
    pub starts: Vec<u64>,
    /// The size on disk of every block of every file; 0 for a block of zeros, which is not stored.
    pub block_sizes: Vec<u32>,
    pub fragments: Vec<Fragment>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment {
    pub start: u64,
    pub size: u32,
}

impl Fragment {
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }
}

/// Compresses and writes the plan's pieces; `end` is where in the image `out` stands, before and after.
pub(super) fn write(
    tree: &Tree,
    plan: &Plan,
    options: &PackOptions,
    end: &mut u64,
    digest: &mut Sha256,
    out: &mut impl Write,
) -> Result<Stored, WriteError> {
    let mut stored = Stored {
        starts: vec![0; plan.files.len()],
        block_sizes: Vec::with_capacity(usize::try_from(plan.block_count()).unwrap_or(0)),
        fragments: Vec::with_capacity(plan.fragment_count()),
    };
    let threads = options.threads.get().min(plan.jobs.len());
    let queue = Queue {
        state: Mutex::new(State { next: 0, written: 0, workers: threads, stopped: false, results: HashMap::new() }),
        room: Condvar::new(),
        result: Condvar::new(),
        jobs: plan.jobs.len(),
        window: threads * JOBS_A_THREAD,
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(tree, plan, &queue, options.compression));
        }
        let _stop = StopAtEnd(&queue);
        for (job, pieces) in plan.jobs.iter().enumerate() {
            let output = queue.take_result(job)?;
            stored.place(plan, &plan.pieces[pieces.clone()], &output.sizes, end);
            digest.update(output.digest);
            out.write_all(&output.bytes)?;
        }
        Ok(())
    })
    .map(|()| stored)
}

impl Stored {
    /// Notes where the blocks and fragments of one job came to lie.
    fn place(&mut self, plan: &Plan, pieces: &[Piece], sizes: &[u32], end: &mut u64) {
        let mut sizes = sizes.iter().copied();
        for piece in pieces {
            match piece {
                Piece::Blocks { file, blocks } => {
                    if blocks.start == 0 {
                        self.starts[*file as usize] = *end;
                    }
                    for size in sizes.by_ref().take((blocks.end - blocks.start) as usize) {
                        self.block_sizes.push(size);
                        *end += u64::from(size & !UNCOMPRESSED);
                    }
                }
                Piece::Fragment { .. } => {
                    let size = sizes.next().unwrap_or(0);
                    self.fragments.push(Fragment { start: *end, size });
                    *end += u64::from(size & !UNCOMPRESSED);
                }
            }
        }
        debug_assert!(self.block_sizes.len() as u64 <= plan.block_count());
    }
}

/// What a job gives.
struct Output {
    bytes: Vec<u8>,
    /// One for each block and fragment of its pieces.
    sizes: Vec<u32>,
    digest: [u8; 32],
}

struct Queue {
    state: Mutex<State>,
    /// A job may be taken.
    room: Condvar,
    /// The result that the writer waits for is there.
    result: Condvar,
    jobs: usize,
    window: usize,
}

struct State {
    next: usize,
    written: usize,
    workers: usize,
    stopped: bool,
    results: HashMap<usize, Result<Output, WriteError>>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, once there is room for its result.
    fn take_job(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.next == self.jobs {
                return None;
            }
            if state.next < state.written + self.window {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put_result(&self, job: usize, result: Result<Output, WriteError>) {
        let mut state = self.lock();
        state.results.insert(job, result);
        if state.written == job {
            self.result.notify_one();
        }
    }

    fn take_result(&self, job: usize) -> Result<Output, WriteError> {
        let mut state = self.lock();
        loop {
            if let Some(result) = state.results.remove(&job) {
                state.written = job + 1;
                self.room.notify_one();
                return result;
            }
            if state.workers == 0 {
                return Err(WriteError::Compress { reason: "a thread ended before its work was done".to_owned() });
            }
            state = self.result.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Lets the workers go when the writer leaves, in whichever way.
struct StopAtEnd<'a>(&'a Queue);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.room.notify_all();
    }
}

/// Tells the writer that a worker left, in whichever way.
struct Worker<'a>(&'a Queue);

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.0.lock().workers -= 1;
        self.0.result.notify_one();
    }
}

fn work(tree: &Tree, plan: &Plan, queue: &Queue, compression: Compression) {
    let _worker = Worker(queue);
    let mut compressor = match Compressor::new(compression) {
        Ok(compressor) => compressor,
        Err(error) => {
            if let Some(job) = queue.take_job() {
                queue.put_result(job, Err(error));
            }
            return;
        }
    };
    let mut block = vec![0; plan.block_bytes];
    while let Some(job) = queue.take_job() {
        let result = run(tree, plan, plan.jobs[job].clone(), &mut compressor, &mut block);
        queue.put_result(job, result);
    }
}

/// Reads and compresses the pieces of one job; `block` is its working memory.
fn run(
    tree: &Tree,
    plan: &Plan,
    pieces: Range<usize>,
    compressor: &mut Compressor,
    block: &mut [u8],
) -> Result<Output, WriteError> {
    let mut output = Output { bytes: Vec::new(), sizes: Vec::new(), digest: [0; 32] };
    for piece in &plan.pieces[pieces] {
        match piece {
            Piece::Blocks { file, blocks } => {
                let block_bytes = block.len() as u64;
                let mut reader = Reading::new(tree, plan, *file, blocks.start * block_bytes)?;
                for index in blocks.clone() {
                    let left_bytes = reader.size_bytes - index * block_bytes;
                    let block = &mut block[..left_bytes.min(block_bytes) as usize];
                    reader.fill(block)?;
                    output.append(block, true, compressor)?;
                }
                if blocks.end * block_bytes >= reader.size_bytes {
                    reader.check_end()?;
                }
            }
            Piece::Fragment { small } => {
                let mut used = 0;
                for file in &plan.small[small.start as usize..small.end as usize] {
                    let mut reader = Reading::new(tree, plan, *file, 0)?;
                    // Files in a fragment are smaller than a block.
                    let length = reader.size_bytes as usize;
                    reader.fill(&mut block[used..used + length])?;
                    reader.check_end()?;
                    used += length;
                }
                output.append(&block[..used], false, compressor)?;
            }
        }
    }
    output.digest = Sha256::digest(&output.bytes).into();
    Ok(output)
}

impl Output {
    fn append(&mut self, block: &[u8], may_be_sparse: bool, compressor: &mut Compressor) -> Result<(), WriteError> {
        if may_be_sparse && is_zero(block) {
            self.sizes.push(0);
            return Ok(());
        }
        let start = self.bytes.len();
        let flag = if compressor.append(block, &mut self.bytes)? {
            0
        } else {
            self.bytes.extend_from_slice(block);
            UNCOMPRESSED
        };
        self.sizes.push((self.bytes.len() - start) as u32 | flag);
        Ok(())
    }
}

/// Each byte equals the next, and the first is zero: one `memcmp`, which ends at once for most blocks.
pub(super) fn is_zero(block: &[u8]) -> bool {
    block.first().is_none_or(|&first| first == 0 && block[1..] == block[..block.len() - 1])
}

/// A file being read, with what its errors need.
struct Reading<'a> {
    reader: Box<dyn Read + 'a>,
    name: Box<dyn Fn() -> String + 'a>,
    size_bytes: u64,
}

impl<'a> Reading<'a> {
    fn new(tree: &'a Tree, plan: &Plan, file: u32, offset_bytes: u64) -> Result<Self, WriteError> {
        let planned = &plan.files[file as usize];
        let Some(content) = content(tree, planned.inode) else {
            return Err(WriteError::Changed { name: "a file".to_owned(), expected_bytes: planned.size_bytes });
        };
        let name = move || tree.content_name(content);
        let reader = tree.open(content, offset_bytes).map_err(|source| WriteError::Read { name: name(), source })?;
        Ok(Self { reader, name: Box::new(name), size_bytes: planned.size_bytes })
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), WriteError> {
        self.reader.read_exact(buffer).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.changed(),
            _ => WriteError::Read { name: (self.name)(), source },
        })
    }

    /// Checks that the file ends here: one that grew is as wrong as one that shrank.
    fn check_end(&mut self) -> Result<(), WriteError> {
        match self.reader.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.changed()),
            Err(source) => Err(WriteError::Read { name: (self.name)(), source }),
        }
    }

    fn changed(&self) -> WriteError {
        WriteError::Changed { name: (self.name)(), expected_bytes: self.size_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_byte_anywhere_makes_a_block_worth_storing() {
        assert!(is_zero(&[0; 100]) && is_zero(&[]));
        for at in 0..100 {
            let mut block = [0; 100];
            block[at] = 1;
            assert!(!is_zero(&block), "{at}");
        }
        assert!(!is_zero(&[1; 100]));
    }
}
