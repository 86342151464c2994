//! The data of an image: jobs compressed on all threads, written in their order by the caller's.
//!
//! A thread takes the next job as soon as it is less than a window ahead of the writer, so memory is bounded by
//! `window` results, whatever the jobs' order of completion.

use super::compress::{Compression, Compressor};
use super::layout::{Piece, Plan};
use super::reading::{Filled, Reading, is_zero};
use super::{PackOptions, Progress, Stage, WriteError};
use crate::tree::Tree;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
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
    watch: &mut dyn FnMut(Progress),
) -> Result<Stored, WriteError> {
    let mut stored = Stored {
        starts: vec![0; plan.files.len()],
        block_sizes: Vec::with_capacity(usize::try_from(plan.block_count()).unwrap_or(0)),
        fragments: Vec::with_capacity(plan.fragments as usize),
    };
    let threads = options.threads.get().min(plan.jobs.len());
    let queue = Queue {
        state: Mutex::new(State {
            next: 0,
            written: 0,
            workers: threads,
            stopped: false,
            results: HashMap::new(),
            spare: Vec::new(),
        }),
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
        let mut progress = Progress { stage: Stage::Packing, done_bytes: 0, total_bytes: plan.stored_bytes() };
        watch(progress);
        for (job, pieces) in plan.jobs.iter().enumerate() {
            let output = queue.take_result(job)?;
            let pieces = &plan.pieces[pieces.clone()];
            stored.place(plan, pieces, &output.sizes, end);
            digest.update(output.digest);
            out.write_all(&output.bytes)?;
            queue.give_back(output.bytes);
            progress.done_bytes += pieces.iter().map(|piece| plan.piece_bytes(piece)).sum::<u64>();
            watch(progress);
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
    /// Memory of results that are written. Fresh memory costs a page fault for every page.
    spare: Vec<Vec<u8>>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, once there is room for its result, and memory for that.
    fn take_job(&self) -> Option<(usize, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.next == self.jobs {
                return None;
            }
            if state.next < state.written + self.window {
                state.next += 1;
                return Some((state.next - 1, state.spare.pop().unwrap_or_default()));
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        self.lock().spare.push(bytes);
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
    let mut compressor = match Compressor::for_data(compression, plan.block_bytes) {
        Ok(compressor) => compressor,
        Err(error) => {
            if let Some((job, _)) = queue.take_job() {
                queue.put_result(job, Err(error));
            }
            return;
        }
    };
    let mut block = vec![0; plan.block_bytes];
    while let Some((job, bytes)) = queue.take_job() {
        let output = Output { bytes, sizes: Vec::new(), digest: [0; 32] };
        let result = run(tree, plan, plan.jobs[job].clone(), &mut compressor, &mut block, output);
        queue.put_result(job, result);
    }
}

/// Reads and compresses the pieces of one job into `output`; `block` is its working memory.
fn run(
    tree: &Tree,
    plan: &Plan,
    pieces: Range<usize>,
    compressor: &mut Compressor,
    block: &mut [u8],
    mut output: Output,
) -> Result<Output, WriteError> {
    for piece in &plan.pieces[pieces] {
        match piece {
            Piece::Blocks { file, blocks } => {
                let block_bytes = block.len() as u64;
                let mut reading = reading(tree, plan, *file, blocks.start * block_bytes)?;
                for index in blocks.clone() {
                    let left_bytes = reading.size_bytes() - index * block_bytes;
                    let block = &mut block[..left_bytes.min(block_bytes) as usize];
                    if reading.next(block)? == Filled::Hole || is_zero(block) {
                        output.sizes.push(0);
                    } else {
                        output.append(block, compressor)?;
                    }
                }
                if blocks.end * block_bytes >= reading.size_bytes() {
                    reading.check_end()?;
                }
            }
            Piece::Fragment { small } => {
                let mut used = 0;
                for file in &plan.small[small.start as usize..small.end as usize] {
                    let mut reading = reading(tree, plan, *file, 0)?;
                    // Files in a fragment are smaller than a block.
                    let end = used + reading.size_bytes() as usize;
                    if reading.next(&mut block[used..end])? == Filled::Hole {
                        block[used..end].fill(0);
                    }
                    reading.check_end()?;
                    used = end;
                }
                output.append(&block[..used], compressor)?;
            }
        }
    }
    output.digest = Sha256::digest(&output.bytes).into();
    Ok(output)
}

fn reading<'a>(tree: &'a Tree, plan: &Plan, file: u32, position_bytes: u64) -> Result<Reading<'a>, WriteError> {
    let planned = &plan.files[file as usize];
    // The plan holds files alone.
    let changed = || WriteError::Changed { name: "a file".to_owned(), expected_bytes: planned.size_bytes };
    Reading::new(tree, planned.inode, position_bytes).ok_or_else(changed)
}

impl Output {
    fn append(&mut self, block: &[u8], compressor: &mut Compressor) -> Result<(), WriteError> {
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
