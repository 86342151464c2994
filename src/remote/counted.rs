//! How far a transfer is, for whoever watches it from another thread.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A stream that counts what goes through it.
pub struct Counted<S> {
    pub stream: S,
    pub done_bytes: Arc<AtomicU64>,
}

impl<S> Counted<S> {
    fn count(&self, count: usize) -> usize {
        self.done_bytes.fetch_add(count as u64, Ordering::Relaxed);
        count
    }
}

impl<S: Write> Write for Counted<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes).map(|count| self.count(count))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Read> Read for Counted<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).map(|count| self.count(count))
    }
}
