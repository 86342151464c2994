//! A stream compressed with gzip by all processors while it is read.
//!
//! ```text
//! a thread: fill ──► pieces of 1 MiB ──► threads: one gzip member each ──► read, in their order
//! ```
//!
//! Members behind one another are one gzip stream (RFC 1952, 2.2). What comes out follows from what goes in: neither the
//! number of threads nor their pace shows in it.

use super::digest::{Algorithm, Digest, Hasher};
use libdeflater::{CompressionLvl, Compressor};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

const PIECE_BYTES: usize = 1 << 20;
/// What registries' own clients use.
const LEVEL: i32 = 6;

type Compressed = Vec<u8>;

/// What is compressed, for who wants to know when all of it was read.
#[derive(Clone, Default)]
pub struct Uncompressed(Arc<Mutex<Option<Digest>>>);

impl Uncompressed {
    /// The digest of the stream before it was compressed; `None` before its end.
    pub fn digest(&self) -> Option<Digest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Compresses what `fill` writes.
pub fn gzip(
    threads: NonZeroUsize,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> (impl Read + Send + Sync + 'static, Uncompressed) {
    // As many pieces wait as keep all threads busy while one is read.
    let (ordered, results) = sync_channel::<io::Result<Receiver<Compressed>>>(2 * threads.get());
    let (jobs, waiting) = channel::<(Vec<u8>, SyncSender<Compressed>)>();
    let waiting = Arc::new(Mutex::new(waiting));
    for _ in 0..threads.get() {
        let waiting = waiting.clone();
        thread::spawn(move || {
            let mut compressor = Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default());
            loop {
                let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((piece, result)) = job else { return };
                // Nobody may be there any more who wants it.
                let _ = result.send(member(&mut compressor, &piece));
            }
        });
    }
    let uncompressed = Uncompressed::default();
    let told = uncompressed.clone();
    thread::spawn(move || {
        let mut pieces = Pieces { piece: Vec::new(), hasher: Hasher::new(Algorithm::Sha256), ordered, jobs };
        let filled = fill(&mut pieces).and_then(|()| pieces.send());
        match filled {
            Ok(()) => *told.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(pieces.hasher.finish()),
            // Without a reader there is nobody to tell.
            Err(error) => drop(pieces.ordered.send(Err(error))),
        }
    });
    (Members { results: Mutex::new(results), member: Vec::new(), position: 0 }, uncompressed)
}

fn member(compressor: &mut Compressor, piece: &[u8]) -> Compressed {
    let mut compressed = vec![0; compressor.gzip_compress_bound(piece.len())];
    // The bound is large enough whatever the piece holds.
    let length = compressor.gzip_compress(piece, &mut compressed).unwrap_or(0);
    compressed.truncate(length);
    compressed
}

/// Cuts a stream into pieces and hands them out.
struct Pieces {
    piece: Vec<u8>,
    hasher: Hasher,
    ordered: SyncSender<io::Result<Receiver<Compressed>>>,
    jobs: std::sync::mpsc::Sender<(Vec<u8>, SyncSender<Compressed>)>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        self.hasher.update(&piece);
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (result, coming) = sync_channel(1);
        self.ordered.send(Ok(coming)).map_err(|_| gone())?;
        self.jobs.send((piece, result)).map_err(|_| gone())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The compressed pieces, one behind the other.
struct Members {
    /// Locked for nobody: a receiver can't be shared between threads, and what is sent has to be.
    results: Mutex<Receiver<io::Result<Receiver<Compressed>>>>,
    member: Compressed,
    position: usize,
}

impl Read for Members {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.member.len() {
            let results = self.results.get_mut().unwrap_or_else(PoisonError::into_inner);
            match results.recv() {
                Err(_) => return Ok(0),
                Ok(coming) => {
                    self.member = coming?.recv().map_err(|_| io::Error::other("a thread that compresses ended"))?;
                    self.position = 0;
                }
            }
        }
        let count = buffer.len().min(self.member.len() - self.position);
        buffer[..count].copy_from_slice(&self.member[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::inflate::inflate;

    fn compressed(threads: usize, bytes: &[u8]) -> (Vec<u8>, Option<Digest>) {
        let bytes = bytes.to_vec();
        let (mut reader, uncompressed) = gzip(NonZeroUsize::new(threads).unwrap(), move |out| out.write_all(&bytes));
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        (all, uncompressed.digest())
    }

    #[test]
    fn pieces_come_out_in_their_order_whatever_the_number_of_threads() {
        let bytes: Vec<u8> = (0..5 * PIECE_BYTES + 77).map(|at| ((at * at) >> 11) as u8).collect();
        let (one, digest) = compressed(1, &bytes);
        assert_eq!(digest, Some(Digest::of(&bytes)));
        assert_eq!(compressed(7, &bytes).0, one);
        let mut back = Vec::new();
        inflate(one.as_slice()).unwrap().read_to_end(&mut back).unwrap();
        assert!(back == bytes);
    }

    #[test]
    fn who_fails_to_fill_is_heard_by_who_reads() {
        let (mut reader, uncompressed) = gzip(NonZeroUsize::MIN, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("no more"))
        });
        let mut all = Vec::new();
        assert_eq!(reader.read_to_end(&mut all).unwrap_err().to_string(), "no more");
        assert_eq!(uncompressed.digest(), None);
    }
}
