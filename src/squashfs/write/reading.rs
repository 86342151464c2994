//! The content of one file, read from some place on: the only place where the writer reads any.
//!
//! Holes of sparse files are told, not read. What the tree says of a file's length is checked: a file that changed
//! since it was listed is an error, never a wrong image.

use super::{WriteError, content};
use crate::tree::{Content, InodeId, Tree};
use std::io::{self, Read};

/// What the next bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// They are in the buffer.
    Data,
    /// They lie in a hole: zeros, which the buffer does not hold.
    Hole,
}

/// A file being read.
pub(super) struct Reading<'a> {
    tree: &'a Tree,
    content: &'a Content,
    position_bytes: u64,
    /// Stands at the position; opened when bytes are needed.
    reader: Option<Box<dyn Read + 'a>>,
    /// Up to here from the position there are only zeros.
    data_from_bytes: u64,
}

impl<'a> Reading<'a> {
    /// Begins at `position_bytes` of the file `inode`; `None` when that is no file.
    pub fn new(tree: &'a Tree, inode: InodeId, position_bytes: u64) -> Option<Self> {
        let content = content(tree, inode)?;
        Some(Self { tree, content, position_bytes, reader: None, data_from_bytes: 0 })
    }

    /// Length of the whole file.
    pub fn size_bytes(&self) -> u64 {
        self.content.size_bytes()
    }

    /// Reads the next bytes, as many as `buffer` has room for.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<Filled, WriteError> {
        let end_bytes = self.position_bytes + buffer.len() as u64;
        if self.data_from_bytes <= self.position_bytes {
            let rest = self.position_bytes..self.size_bytes();
            self.data_from_bytes = self.tree.first_data(self.content, rest).map_err(|e| self.failed(e))?;
        }
        if self.data_from_bytes >= end_bytes {
            self.reader = None;
            self.position_bytes = end_bytes;
            return Ok(Filled::Hole);
        }
        let answer = match &mut self.reader {
            Some(reader) => reader.read_exact(buffer),
            None => self.tree.open(self.content, self.position_bytes).and_then(|mut reader| {
                reader.read_exact(buffer)?;
                self.reader = Some(reader);
                Ok(())
            }),
        };
        answer.map_err(|e| self.failed(e))?;
        self.position_bytes = end_bytes;
        Ok(Filled::Data)
    }

    /// Checks that the file ends here: one that grew is as wrong as one that shrank.
    pub fn check_end(mut self) -> Result<(), WriteError> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.tree.open(self.content, self.position_bytes).map_err(|e| self.failed(e))?,
        };
        match reader.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.changed()),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn failed(&self, source: io::Error) -> WriteError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => self.changed(),
            _ => WriteError::Read { name: self.tree.content_name(self.content), source },
        }
    }

    fn changed(&self) -> WriteError {
        WriteError::Changed { name: self.tree.content_name(self.content), expected_bytes: self.size_bytes() }
    }
}

/// Whether all of `bytes` are zero: each equals the next, and the first is zero, so one `memcmp`, which ends at once for
/// most blocks.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|&first| first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Attributes, Body, Source};
    use std::ops::Range;
    use std::sync::Arc;

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

    /// Ten bytes of which 4 to 7 are data; the holes can't be read.
    struct Sparse;

    impl Source for Sparse {
        fn open(&self, _: u64, offset_bytes: u64) -> io::Result<Box<dyn Read + '_>> {
            assert!((4..7).contains(&offset_bytes) || offset_bytes == 10, "a hole is read: {offset_bytes}");
            Ok(Box::new(&b"abc"[(offset_bytes as usize - 4).min(3)..]))
        }
        fn name(&self, _: u64) -> String {
            "sparse".to_owned()
        }
        fn first_data(&self, _: u64, range: Range<u64>) -> io::Result<u64> {
            Ok(if range.start < 7 { range.start.max(4) } else { range.end })
        }
    }

    #[test]
    fn holes_are_told_and_never_read() {
        let attributes = || Attributes { mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
        let mut tree = Tree::new(attributes());
        let source = tree.add_source(Arc::new(Sparse)).unwrap();
        let body = Body::File(Content::Stored { source, key: 0, size_bytes: 10 });
        let file = tree.insert(tree.root(), b"sparse", attributes(), body).unwrap();
        let mut reading = Reading::new(&tree, file, 0).unwrap();
        let mut told = Vec::new();
        for length in [2, 2, 1, 2, 3] {
            let mut buffer = vec![0; length];
            told.push((reading.next(&mut buffer).unwrap(), String::from_utf8(buffer).unwrap()));
        }
        reading.check_end().unwrap();
        let told: Vec<(Filled, &str)> = told.iter().map(|(filled, text)| (*filled, text.as_str())).collect();
        let hole = |text| (Filled::Hole, text);
        let data = |text| (Filled::Data, text);
        assert_eq!(told, [hole("\0\0"), hole("\0\0"), data("a"), data("bc"), hole("\0\0\0")]);
    }
}
