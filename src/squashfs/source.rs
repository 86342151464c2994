//! Where the bytes of an image come from: a file read by position, shared by any number of threads.

use super::error::SquashfsError;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// Reads by position, without a cursor that readers would have to share.
pub trait ReadAt: Send + Sync {
    /// Reads at most `buffer.len()` bytes at `offset_bytes`; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize>;

    /// The descriptor behind it, if there is one: a process that closes what it inherited keeps this.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl<F: FileExt + AsFd + Send + Sync> ReadAt for F {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset_bytes)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

/// An image in memory.
pub struct Bytes(pub Vec<u8>);

impl ReadAt for Bytes {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(self.0.len());
        let length = buffer.len().min(self.0.len() - start);
        buffer[..length].copy_from_slice(&self.0[start..start + length]);
        Ok(length)
    }
}

/// A part of a source: the partition in its image file.
pub(super) struct Window {
    source: Box<dyn ReadAt>,
    start_bytes: u64,
}

impl Window {
    pub(super) fn new(source: Box<dyn ReadAt>, start_bytes: u64) -> Self {
        Self { source, start_bytes }
    }
}

impl ReadAt for Window {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        let offset_bytes = self.start_bytes.checked_add(offset_bytes).ok_or(io::ErrorKind::InvalidInput)?;
        self.source.read_at(buffer, offset_bytes)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.source.descriptor()
    }
}

/// Fills `buffer` from `offset_bytes` on.
pub(super) fn read_exact(source: &dyn ReadAt, buffer: &mut [u8], offset_bytes: u64) -> Result<(), SquashfsError> {
    let mut done = 0;
    while done < buffer.len() {
        match source.read_at(&mut buffer[done..], offset_bytes + done as u64) {
            Ok(0) => return Err(SquashfsError::Truncated { offset_bytes, wanted_bytes: buffer.len() }),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SquashfsError::Read { offset_bytes, errno: error.raw_os_error() }),
        }
    }
    Ok(())
}
