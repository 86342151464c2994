//! The one descriptor of an image, and the beginning of the file, which is read once for everybody.

use super::ImageError;
use super::detect::{self, Format, HEAD_BYTES};
use crate::{sif, squashfs};
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// An open image file or directory; copies share the descriptor.
#[derive(Clone, Debug)]
pub struct Source {
    file: Arc<File>,
    size_bytes: u64,
    head: Arc<Vec<u8>>,
}

impl Source {
    /// Opens `path` and tells what is there; `None` for a directory.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Format>), ImageError> {
        let file = open_any(path).map_err(|source| match source.raw_os_error() {
            // The kernel's answer for a socket, and for a device without a driver.
            Some(nix::libc::ENXIO) => ImageError::NotAFile { path: path.into(), what: "a socket or a device" },
            _ => ImageError::Open { path: path.into(), source },
        })?;
        let read = |source| ImageError::Read { path: path.into(), source };
        let metadata = file.metadata().map_err(read)?;
        let file = Arc::new(file);
        if metadata.is_dir() {
            return Ok((Self { file, size_bytes: 0, head: Arc::default() }, None));
        }
        if !metadata.is_file() {
            return Err(ImageError::NotAFile { path: path.into(), what: name_of(metadata.file_type()) });
        }
        let size_bytes = metadata.len();
        let head = Arc::new(read_head(&file, size_bytes).map_err(read)?);
        let format = detect::detect(&head);
        Ok((Self { file, size_bytes, head }, Some(format)))
    }

    /// The size of the file when it was opened; 0 for a directory.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The part of `length` bytes at `offset_bytes`, if it is in memory.
    fn in_head(&self, offset_bytes: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset_bytes).ok()?;
        self.head.get(start..start.checked_add(length)?)
    }
}

/// Opens a file or directory. A fifo or device that somebody put there neither blocks nor becomes the terminal.
fn open_any(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    let opened = options.custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path);
    match opened {
        // A directory that may be entered but not listed is a usable sandbox.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            options.custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY).open(path).map_err(|_| error)
        }
        opened => opened,
    }
}

fn name_of(file_type: FileType) -> &'static str {
    if file_type.is_fifo() { "a fifo" } else { "a device" }
}

fn read_head(file: &File, size_bytes: u64) -> io::Result<Vec<u8>> {
    // No more than HEAD_BYTES, so it fits.
    let mut head = vec![0; size_bytes.min(HEAD_BYTES as u64) as usize];
    let mut done = 0;
    while done < head.len() {
        match file.read_at(&mut head[done..], done as u64) {
            // Cut since its size was asked: what is missing shows when it is needed.
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(done);
    Ok(head)
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl sif::ReadAt for Source {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.in_head(offset, buffer.len()) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => FileExt::read_exact_at(self.file.as_ref(), buffer, offset),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size_bytes)
    }

    fn in_memory(&self, offset: u64, length: usize) -> Option<&[u8]> {
        self.in_head(offset, length)
    }
}

impl squashfs::ReadAt for Source {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        match self.in_head(offset_bytes, buffer.len()) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(bytes.len())
            }
            None => FileExt::read_at(self.file.as_ref(), buffer, offset_bytes),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
