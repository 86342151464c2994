//! A tar archive whose files are read where they are: those of `docker save`, of OCI archives.
//!
//! The archive is read once to find its files. A plain archive is then read by position; a compressed one is inflated
//! anew for each file, which costs time but no room.

use super::layered::LayeredError;
use crate::oci::inflate::inflate;
use crate::oci::tar::{EntryKind, TarError, TarReader};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Most files in an archive, which are blobs and documents.
const MAX_FILES: usize = 100_000;
/// Most links from one name to the next.
const MAX_LINKS: usize = 16;
const BUFFER_BYTES: usize = 256 << 10;

/// An archive and where in it its files are.
pub struct Archive {
    file: Arc<File>,
    pub name: String,
    is_compressed: bool,
    files: HashMap<String, Place>,
}

#[derive(Clone, Debug)]
enum Place {
    /// Offset in the unpacked archive, and size.
    At(u64, u64),
    Link(String),
}

impl Archive {
    /// Opens an archive and reads where its files are.
    pub fn open(path: &Path) -> Result<Self, LayeredError> {
        let name = path.display().to_string();
        let opened = File::open(path).map_err(|source| LayeredError::Read { what: name.clone(), source })?;
        Self::of_file(opened, name)
    }

    /// The same for a file that is open; `name` is what errors call it.
    pub fn of_file(file: File, name: String) -> Result<Self, LayeredError> {
        let failed = |source| LayeredError::Read { what: name.clone(), source };
        let file = Arc::new(file);
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let mut start = [0; 6];
        let length = file.read_at(&mut start, 0).map_err(failed)?;
        let is_compressed = start.starts_with(b"\x1f\x8b") || start.starts_with(b"\x28\xb5\x2f\xfd");
        if length == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut archive = Self { file, name: name.clone(), is_compressed, files: HashMap::new() };
        archive.files = archive.find_files().map_err(failed)?;
        Ok(archive)
    }

    fn find_files(&self) -> io::Result<HashMap<String, Place>> {
        if self.is_compressed {
            return files(TarReader::new(self.stream(0)?), |_| Ok(()));
        }
        // What a file holds is passed over by position.
        files(TarReader::new(BufReader::new(&*self.file)), TarReader::pass_over_content)
    }

    fn place(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = clean(name.as_bytes(), "");
        for _ in 0..MAX_LINKS {
            match self.files.get(&name)? {
                Place::At(offset_bytes, size_bytes) => return Some((*offset_bytes, *size_bytes)),
                Place::Link(target) => name = target.clone(),
            }
        }
        None
    }

    pub fn has(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// The size of a file; 0 of what is not there.
    pub fn size_bytes(&self, name: &str) -> u64 {
        self.place(name).map_or(0, |(_, size_bytes)| size_bytes)
    }

    /// Opens a file of the archive.
    pub fn open_file(&self, name: &str) -> io::Result<Box<dyn Read + Send + '_>> {
        let (offset_bytes, size_bytes) = self.place(name).ok_or(io::ErrorKind::NotFound)?;
        if self.is_compressed {
            return Ok(Box::new(self.stream(offset_bytes)?.take(size_bytes)));
        }
        let end = offset_bytes.checked_add(size_bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Box::new(At { file: self.file.clone(), position: offset_bytes, end }))
    }

    /// The unpacked archive from some offset.
    fn stream(&self, offset_bytes: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        let whole = At { file: self.file.clone(), position: 0, end: u64::MAX };
        let mut stream = inflate(BufReader::with_capacity(BUFFER_BYTES, whole))?;
        io::copy(&mut (&mut stream).take(offset_bytes), &mut io::sink())?;
        Ok(stream)
    }
}

/// Where the files of an archive are; `pass` is done at the content of each.
fn files<R: Read>(
    mut reader: TarReader<R>,
    mut pass: impl FnMut(&mut TarReader<R>) -> Result<(), TarError>,
) -> io::Result<HashMap<String, Place>> {
    let wrong = |error: TarError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let mut files = HashMap::new();
    while let Some(entry) = reader.next_entry().map_err(wrong)? {
        let name = clean(&entry.path, "");
        let place = match entry.kind {
            EntryKind::File { size_bytes } => {
                let place = Place::At(reader.position(), size_bytes);
                pass(&mut reader).map_err(wrong)?;
                place
            }
            EntryKind::HardLink(target) => Place::Link(clean(&target, "")),
            EntryKind::Symlink(target) => Place::Link(clean(&target, &name)),
            _ => continue,
        };
        files.insert(name, place);
        if files.len() > MAX_FILES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it holds too many files"));
        }
    }
    Ok(files)
}

/// Part of a file, read by position: many can be read at once.
struct At {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (self.end - self.position).min(buffer.len() as u64) as usize;
        let count = self.file.read_at(&mut buffer[..length], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// A name without `.` and `..`, from the root of the archive; `beside` is the file that a relative one is seen from.
fn clean(name: &[u8], beside: &str) -> String {
    let name = String::from_utf8_lossy(name);
    let mut components: Vec<&str> = Vec::new();
    if !name.starts_with('/') {
        components.extend(beside.split('/'));
        components.pop();
    }
    for component in name.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop();
            }
            component => components.push(component),
        }
    }
    components.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_from_the_root_of_the_archive() {
        let check = |name: &str, beside: &str, expected: &str| assert_eq!(clean(name.as_bytes(), beside), expected);
        check("./blobs//sha256/ab", "", "blobs/sha256/ab");
        check("../x/layer.tar", "y/layer.tar", "x/layer.tar");
        check("layer.tar", "y/VERSION", "y/layer.tar");
        check("../../../etc/passwd", "y/z", "etc/passwd");
        check("/a", "y/z", "a");
    }
}
