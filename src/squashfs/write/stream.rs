//! Writing an image whose contents come as a stream, each once and in an order that is not ours: the layers of an image.
//!
//! ```text
//! content ──► Packer::add ─┬─ a block or more ──► job ──┐                   ┌──► blocks ──► out
//!  (once)                  └─ less ──► fragment ──► job ─┴─► all threads ──┘
//!                                                                            then: tree ──► inodes, tables ──► out
//! ```
//!
//! The thread that brings the contents cuts them into jobs, hands those to the compressing threads, and writes their
//! results in the order of the jobs, so that the image does not depend on the number of threads. What it holds is
//! bounded by the jobs in flight. Files are compared by a digest of their contents, as nothing can be read a second
//! time; a large file that turns out to equal an earlier one is taken back when its last block is done.

use super::compress::{Compression, Compressor};
use super::duplicates::SameAs;
use super::layout::{File, NO_FRAGMENT, Plan};
use super::reading::is_zero;
use super::{Contents, PackOptions, Summary, WriteError, blocks, finish, inodes};
use crate::tree::{Body, Content, InodeId, Tree};
use blocks::{Fragment, Stored, UNCOMPRESSED};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

/// Content of a large file that one job compresses.
const JOB_BYTES: usize = 1 << 20;
/// Jobs in flight for each thread.
const JOBS_A_THREAD: usize = 4;

/// Writes an image where `out` stands. `fill` adds contents to the [`Packer`], then returns the tree that has them and the
/// time of the image, in seconds since 1970. Contents that the tree holds elsewhere are read at the end. Returns the tree
/// again.
///
/// What `out` holds behind the image's last byte ([`Summary::size_bytes`]) is to be cut off.
///
/// # Errors
/// Those of `fill`, and everything that keeps an image from being written.
pub fn write_stream<O: Write + Seek, E: From<WriteError>>(
    options: &PackOptions,
    out: &mut O,
    fill: impl FnOnce(&mut Packer<'_, O>) -> Result<(Tree, i64), E>,
) -> Result<(Tree, Summary), E> {
    super::check_block_bytes(options.block_bytes)?;
    let block_bytes = options.block_bytes;
    let base = out.stream_position().map_err(WriteError::from)?;
    let head = super::head(options);
    out.write_all(&head).map_err(WriteError::from)?;
    let (jobs, waiting) = channel();
    let (done, results) = channel();
    let waiting = Mutex::new(waiting);
    std::thread::scope(|scope| {
        for _ in 0..options.threads.get() {
            let done = done.clone();
            scope.spawn(|| compress(&waiting, done, options.compression, block_bytes));
        }
        // When the last worker is gone, so is the last sender: whoever waits for a result then gets an error.
        drop(done);
        let mut packer = Packer {
            out,
            base,
            end: head.len() as u64,
            jobs,
            results,
            window: options.threads.get() * JOBS_A_THREAD,
            sent: 0,
            early: HashMap::new(),
            expected: VecDeque::new(),
            files: Vec::new(),
            stored: Stored { starts: Vec::new(), block_sizes: Vec::new(), fragments: Vec::new() },
            block_bytes,
            fragment: Vec::new(),
            fragments: 0,
            spare_inputs: Vec::new(),
            spare_outputs: Vec::new(),
            known: HashMap::new(),
            open: Open::default(),
            digest: Sha256::new(),
            duplicate_files: 0,
            duplicate_bytes: 0,
        };
        let (tree, time) = fill(&mut packer)?;
        let summary = packer.finish(&tree, &PackOptions { time, ..options.clone() })?;
        Ok((tree, summary))
    })
}

/// Takes contents, in the order in which they come.
pub struct Packer<'a, O> {
    out: &'a mut O,
    /// Where in `out` the image begins, and how much of it is there.
    base: u64,
    end: u64,
    jobs: Sender<Job>,
    results: Receiver<(u64, Result<Output, WriteError>)>,
    window: usize,
    sent: u64,
    /// Results that came before their turn.
    early: HashMap<u64, Result<Output, WriteError>>,
    /// The jobs in flight, the oldest first.
    expected: VecDeque<Expected>,
    files: Vec<Placed>,
    stored: Stored,
    block_bytes: usize,
    /// The fragment being filled.
    fragment: Vec<u8>,
    fragments: u32,
    /// Memory of jobs that are done. Fresh memory costs a page fault for every page.
    spare_inputs: Vec<Vec<u8>>,
    spare_outputs: Vec<Vec<u8>>,
    /// By digest and size of a content: the first file with it. That of a large file is over its compressed blocks and
    /// their sizes: they are equal for equal contents, and for no others.
    known: HashMap<([u8; 32], u64), u32>,
    open: Open,
    digest: Sha256,
    duplicate_files: u32,
    duplicate_bytes: u64,
}

/// A content that was added.
#[derive(Clone, Copy, Debug)]
struct Placed {
    size_bytes: u64,
    start: u64,
    first_block: u64,
    blocks: u64,
    fragment: u32,
    fragment_offset: u32,
    /// Its own number, or that of an earlier file with the same content.
    same_as: u32,
}

/// What the next result is of.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Blocks { file: u32, is_first: bool, is_last: bool },
    Fragment,
}

/// The large file whose blocks are being written.
#[derive(Default)]
struct Open {
    stored: Sha256,
    sizes: Sha256,
}

struct Job {
    number: u64,
    bytes: Vec<u8>,
    /// Empty: for what comes of `bytes`.
    room: Vec<u8>,
    is_fragment: bool,
}

struct Output {
    bytes: Vec<u8>,
    sizes: Vec<u32>,
    digest: [u8; 32],
    /// What was compressed, of which the memory is used again.
    input: Vec<u8>,
}

impl<O: Write + Seek> Packer<'_, O> {
    /// Takes the content of a file, `size_bytes` of it; `name` is for errors.
    ///
    /// # Errors
    /// The content can't be read or is of another length, or the image can't be written.
    pub fn add(&mut self, name: &str, size_bytes: u64, content: &mut dyn Read) -> Result<Content, WriteError> {
        if size_bytes == 0 {
            return Ok(Content::Bytes([].into()));
        }
        let number = u32::try_from(self.files.len()).ok().filter(|&number| number < u32::MAX);
        let number = number.ok_or(WriteError::TooMany { what: "files", limit: u64::from(u32::MAX) })?;
        let block_bytes = self.block_bytes as u64;
        let blocks = if size_bytes < block_bytes { 0 } else { size_bytes.div_ceil(block_bytes) };
        self.files.push(Placed {
            size_bytes,
            start: 0,
            first_block: 0,
            blocks,
            fragment: NO_FRAGMENT,
            fragment_offset: 0,
            same_as: number,
        });
        let mut source = Whole { name, size_bytes, content };
        if blocks == 0 {
            self.add_small(number, size_bytes as usize, &mut source)?;
        } else {
            let mut left_bytes = size_bytes;
            while left_bytes > 0 {
                let mut bytes = self.spare_inputs.pop().unwrap_or_default();
                bytes.resize(left_bytes.min(JOB_BYTES as u64) as usize, 0);
                source.fill(&mut bytes)?;
                let is_first = left_bytes == size_bytes;
                left_bytes -= bytes.len() as u64;
                self.send(bytes, Expected::Blocks { file: number, is_first, is_last: left_bytes == 0 })?;
            }
        }
        source.check_end()?;
        Ok(Content::Written { number, size_bytes })
    }

    fn add_small(&mut self, number: u32, length: usize, source: &mut Whole) -> Result<(), WriteError> {
        if self.fragment.len() + length > self.block_bytes {
            self.close_fragment()?;
        }
        let start = self.fragment.len();
        self.fragment.resize(start + length, 0);
        source.fill(&mut self.fragment[start..])?;
        let digest: [u8; 32] = Sha256::digest(&self.fragment[start..]).into();
        if self.is_known(number, digest) {
            self.fragment.truncate(start);
            return Ok(());
        }
        let file = &mut self.files[number as usize];
        (file.fragment, file.fragment_offset) = (self.fragments, start as u32);
        Ok(())
    }

    /// Whether an earlier file has this content; else the file is the first that has it.
    fn is_known(&mut self, number: u32, digest: [u8; 32]) -> bool {
        let file = &mut self.files[number as usize];
        let first = *self.known.entry((digest, file.size_bytes)).or_insert(number);
        file.same_as = first;
        if first == number {
            return false;
        }
        self.duplicate_files += 1;
        self.duplicate_bytes += file.size_bytes;
        true
    }

    fn close_fragment(&mut self) -> Result<(), WriteError> {
        if self.fragment.is_empty() {
            return Ok(());
        }
        let mut next = self.spare_inputs.pop().unwrap_or_default();
        next.clear();
        let bytes = std::mem::replace(&mut self.fragment, next);
        self.fragments += 1;
        self.send(bytes, Expected::Fragment)
    }

    fn send(&mut self, bytes: Vec<u8>, expected: Expected) -> Result<(), WriteError> {
        while self.expected.len() >= self.window {
            self.settle()?;
        }
        let room = self.spare_outputs.pop().unwrap_or_default();
        let job = Job { number: self.sent, bytes, room, is_fragment: matches!(expected, Expected::Fragment) };
        // Nobody takes it when all workers failed; their errors are what `settle` finds.
        let _ = self.jobs.send(job);
        self.sent += 1;
        self.expected.push_back(expected);
        Ok(())
    }

    /// Writes the result of the oldest job, if one is in flight.
    fn settle(&mut self) -> Result<(), WriteError> {
        let Some(expected) = self.expected.pop_front() else { return Ok(()) };
        let number = self.sent - self.expected.len() as u64 - 1;
        let mut output = loop {
            if let Some(result) = self.early.remove(&number) {
                break result?;
            }
            let ended = |_| WriteError::Compress { reason: "a thread ended before its work was done".to_owned() };
            let (number, result) = self.results.recv().map_err(ended)?;
            self.early.insert(number, result);
        };
        self.out.write_all(&output.bytes)?;
        match expected {
            Expected::Fragment => {
                let size = output.sizes.first().copied().unwrap_or(0);
                self.stored.fragments.push(Fragment { start: self.end, size });
                self.end += output.bytes.len() as u64;
                self.digest.update(output.digest);
            }
            Expected::Blocks { file, is_first, is_last } => {
                if is_first {
                    self.open = Open::default();
                    let placed = &mut self.files[file as usize];
                    placed.start = self.end;
                    placed.first_block = self.stored.block_sizes.len() as u64;
                }
                self.open.stored.update(output.digest);
                for &size in &output.sizes {
                    self.open.sizes.update(size.to_le_bytes());
                }
                self.stored.block_sizes.extend(output.sizes);
                self.end += output.bytes.len() as u64;
                if is_last {
                    self.close_file(file)?;
                }
            }
        }
        output.bytes.clear();
        self.spare_outputs.push(output.bytes);
        self.spare_inputs.push(output.input);
        Ok(())
    }

    /// Keeps what was written of a large file, or takes it back when an earlier one has the same content.
    fn close_file(&mut self, number: u32) -> Result<(), WriteError> {
        let Open { stored, mut sizes } = std::mem::take(&mut self.open);
        let placed = self.files[number as usize];
        let stored = stored.finalize();
        sizes.update(stored);
        if self.is_known(number, sizes.finalize().into()) {
            self.stored.block_sizes.truncate(placed.first_block as usize);
            self.end = placed.start;
            self.out.seek(SeekFrom::Start(self.base + self.end))?;
        } else {
            self.digest.update(stored);
        }
        Ok(())
    }

    /// Adds what the tree holds elsewhere, and writes everything but the contents.
    fn finish(mut self, tree: &Tree, options: &PackOptions) -> Result<Summary, WriteError> {
        let mut numbers: HashMap<InodeId, u32> = HashMap::new();
        let mut content_bytes = 0_u64;
        let mut seen = vec![false; tree.inode_count()];
        let mut walk = tree.walk();
        while let Some(id) = walk.next_entry() {
            let Body::File(content) = tree.inode(id).body else { continue };
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            content_bytes = content_bytes.saturating_add(content.size_bytes());
            let written = match content {
                Content::Written { .. } => content.clone(),
                other => {
                    let name = tree.content_name(other);
                    let reader = tree.open(other, 0);
                    let mut reader = reader.map_err(|source| WriteError::Read { name: name.clone(), source })?;
                    self.add(&name, other.size_bytes(), &mut reader)?
                }
            };
            if let Content::Written { number, .. } = written {
                numbers.insert(id, number);
            }
        }
        self.close_fragment()?;
        while !self.expected.is_empty() {
            self.settle()?;
        }
        let Self { out, base, end, files, mut stored, block_bytes, digest, duplicate_files, duplicate_bytes, .. } =
            self;

        let mut plan = Plan {
            block_bytes,
            file_of: vec![u32::MAX; tree.inode_count()],
            content_bytes,
            duplicate_files,
            duplicate_bytes,
            ..Plan::default()
        };
        for (inode, number) in numbers {
            let first = files.get(number as usize).map_or(number, |file| file.same_as);
            plan.file_of[inode.index()] = first;
        }
        let root = tree.root();
        for file in &files {
            let Placed { size_bytes, first_block, blocks, fragment, fragment_offset, .. } = *file;
            plan.files.push(File { inode: root, size_bytes, first_block, blocks, fragment, fragment_offset });
            stored.starts.push(file.start);
        }
        let numbered = inodes::number(tree)?;
        finish(tree, &numbered, Contents { same_as: SameAs::new(), plan, stored, digest, end }, options, base, out)
    }
}

/// A content that must have the length that was said.
struct Whole<'a> {
    name: &'a str,
    size_bytes: u64,
    content: &'a mut dyn Read,
}

impl Whole<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), WriteError> {
        self.content.read_exact(buffer).map_err(|source| self.error(source))
    }

    fn check_end(&mut self) -> Result<(), WriteError> {
        match self.content.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.error(io::ErrorKind::UnexpectedEof.into())),
            Err(source) => Err(self.error(source)),
        }
    }

    fn error(&self, source: io::Error) -> WriteError {
        let name = self.name.to_owned();
        // An error without words of its own is that of a reader that ended: there was more or less than was said.
        if source.kind() == io::ErrorKind::UnexpectedEof && source.get_ref().is_none() {
            WriteError::Changed { name, expected_bytes: self.size_bytes }
        } else {
            WriteError::Read { name, source }
        }
    }
}

/// Compresses jobs until no more can come.
fn compress(
    waiting: &Mutex<Receiver<Job>>,
    done: Sender<(u64, Result<Output, WriteError>)>,
    compression: Compression,
    block_bytes: usize,
) {
    let mut compressor = Compressor::for_data(compression, block_bytes);
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let number = job.number;
        let result = match &mut compressor {
            Ok(compressor) => run(job, compressor, block_bytes),
            Err(WriteError::Compress { reason }) => Err(WriteError::Compress { reason: reason.clone() }),
            Err(other) => Err(WriteError::Compress { reason: other.to_string() }),
        };
        if done.send((number, result)).is_err() {
            return;
        }
    }
}

fn run(job: Job, compressor: &mut Compressor, block_bytes: usize) -> Result<Output, WriteError> {
    let mut bytes = job.room;
    let mut sizes = Vec::with_capacity(job.bytes.len().div_ceil(block_bytes));
    for block in job.bytes.chunks(block_bytes) {
        if !job.is_fragment && is_zero(block) {
            sizes.push(0);
            continue;
        }
        let start = bytes.len();
        let flag = if compressor.append(block, &mut bytes)? {
            0
        } else {
            bytes.extend_from_slice(block);
            UNCOMPRESSED
        };
        sizes.push((bytes.len() - start) as u32 | flag);
    }
    let digest = Sha256::digest(&bytes).into();
    Ok(Output { bytes, sizes, digest, input: job.bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::squashfs::write::{BLOCK_BYTES, write};
    use crate::squashfs::{Bytes, Reader};
    use crate::tree::Attributes;
    use std::num::NonZeroUsize;

    fn attributes() -> Attributes {
        Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 7, xattrs: Vec::new() }
    }

    fn options(threads: usize) -> PackOptions {
        let threads = NonZeroUsize::new(threads).unwrap();
        PackOptions { compression: Compression::ZSTD, block_bytes: BLOCK_BYTES, threads, time: 7 }
    }

    /// Bytes without patterns, but the same for the same seed.
    fn noise(seed: u32, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    /// Files of all sizes, some of them equal, some sparse.
    fn contents() -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for (seed, length) in [1, 100, 5000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 << 20].iter().enumerate()
        {
            files.push((format!("noise-{length}"), noise(seed as u32, *length)));
            files.push((format!("again-{length}"), noise(seed as u32, *length)));
        }
        let mut sparse = vec![0; 2 << 20];
        sparse[BLOCK_BYTES * 3 + 5] = 1;
        files.push(("sparse".to_owned(), sparse));
        files.push(("zeros".to_owned(), vec![0; 5 * BLOCK_BYTES]));
        files.push(("empty".to_owned(), Vec::new()));
        files.extend((0..200).map(|index| (format!("small-{index}"), noise(index, 3000))));
        files.push(("last, and as large as an earlier one".to_owned(), noise(6, 3 << 20)));
        files
    }

    fn packed(files: &[(String, Vec<u8>)], threads: usize) -> (Vec<u8>, Summary) {
        let mut out = io::Cursor::new(Vec::new());
        let (_, summary) = write_stream(&options(threads), &mut out, |packer| {
            let mut tree = Tree::new(attributes());
            for (name, bytes) in files {
                let content = packer.add(name, bytes.len() as u64, &mut bytes.as_slice())?;
                tree.insert(tree.root(), name.as_bytes(), attributes(), Body::File(content)).unwrap();
            }
            let own = Body::File(Content::Bytes(b"made up".as_slice().into()));
            tree.insert(tree.root(), b"own", attributes(), own).unwrap();
            Ok::<_, WriteError>((tree, 7))
        })
        .unwrap();
        let mut image = out.into_inner();
        image.truncate(summary.size_bytes as usize);
        (image, summary)
    }

    #[test]
    fn what_went_in_is_what_is_read() {
        let files = contents();
        let (image, summary) = packed(&files, 2);
        let reader = Reader::open(Bytes(image), 0, summary.size_bytes).unwrap();
        let tree = reader.into_tree("image").unwrap();
        for (name, bytes) in &files {
            let id = tree.child(tree.root(), name.as_bytes()).unwrap();
            let Body::File(content) = tree.inode(id).body else { panic!("{name} is a file") };
            let mut read = Vec::new();
            tree.open(content, 0).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == *bytes, "{name}");
        }
        assert_eq!(summary.duplicate_files, 8);
        assert_eq!(tree.children(tree.root()).len(), files.len() + 1);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let files = contents();
        let (one, summary) = packed(&files, 1);
        assert_eq!(packed(&files, 5), (one, summary));
    }

    #[test]
    fn an_image_is_no_larger_than_one_whose_contents_could_be_read_at_will() {
        let files = contents();
        let mut tree = Tree::new(attributes());
        for (name, bytes) in &files {
            let body = Body::File(Content::Bytes(bytes.as_slice().into()));
            tree.insert(tree.root(), name.as_bytes(), attributes(), body).unwrap();
        }
        let mut out = io::Cursor::new(Vec::new());
        let planned = write(&tree, &options(2), &mut out).unwrap();
        let (_, streamed) = packed(&files, 2);
        assert!(streamed.size_bytes <= planned.size_bytes + 4096, "{streamed:?} {planned:?}");
        assert_eq!(streamed.duplicate_bytes, planned.duplicate_bytes);
    }

    #[test]
    fn contents_of_another_length_are_an_error_that_names_them() {
        for (stated, bytes) in [(10, b"short".as_slice()), (2, b"long")] {
            let mut out = io::Cursor::new(Vec::new());
            let error = write_stream(&options(1), &mut out, |packer| {
                packer.add("usr/bin/x", stated, &mut &*bytes)?;
                Ok::<_, WriteError>((Tree::new(attributes()), 0))
            })
            .err()
            .unwrap();
            assert_eq!(
                error.to_string(),
                format!("usr/bin/x changed while it was packed: it no longer holds {stated} bytes")
            );
        }
    }

    #[test]
    fn an_output_that_fails_ends_the_work() {
        let mut room = [0; 200_000];
        let mut out = io::Cursor::new(&mut room[..]);
        let error = write_stream(&options(2), &mut out, |packer| {
            for seed in 0..50 {
                packer.add("noise", 1 << 20, &mut noise(seed, 1 << 20).as_slice())?;
            }
            Ok::<_, WriteError>((Tree::new(attributes()), 0))
        });
        assert!(matches!(error.err(), Some(WriteError::Output { .. })));
    }
}
