//! Where the bytes of an image are: a file, or memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Reads at an offset, without a position that readers would share.
pub trait ReadAt {
    /// Fills `buffer` with the bytes at `offset` (in bytes).
    ///
    /// # Errors
    /// `UnexpectedEof` when there are fewer, or what the medium says.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// The size in bytes, of what is open and not of what a path names now.
    fn size(&self) -> io::Result<u64>;

    /// The `length` bytes at `offset`, where they are in memory already.
    fn in_memory(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let _ = (offset, length);
        None
    }
}

/// Writes at an offset.
pub trait Storage: ReadAt {
    /// Writes all of `bytes` at `offset` (in bytes); a gap before it reads as zeros.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts or extends (by zeros) to `size_bytes`.
    fn set_size(&mut self, size_bytes: u64) -> io::Result<()>;

    /// Returns when everything written so far will survive a crash of the machine.
    fn sync(&mut self) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Storage for File {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_size(&mut self, size_bytes: u64) -> io::Result<()> {
        self.set_len(size_bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = usize::try_from(offset).ok().and_then(|at| Some(at..at.checked_add(buffer.len())?));
        match range.and_then(|range| self.get(range)) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// Memory is where tests write; sizes past [`MAX_MEMORY`] are refused as a full disk would.
impl Storage for Vec<u8> {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::StorageFull)?;
        if end > self.len() as u64 {
            self.set_size(end)?;
        }
        // `set_size` has shown that `end` fits.
        let at = offset as usize;
        self[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn set_size(&mut self, size_bytes: u64) -> io::Result<()> {
        if size_bytes > MAX_MEMORY {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.resize(size_bytes as usize, 0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The largest image in memory, in bytes.
const MAX_MEMORY: u64 = 64 << 20;

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}
