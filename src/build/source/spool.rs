//! The contents of layers in one file, for what needs them in another order than that of the stream: unpacking to a
//! directory.
//!
//! ```text
//! file   | content | content | content | ...        in the order in which they came; the tree knows each by its offset
//! ```

use super::layered::{Layered, LayeredError, MergeFailure};
use crate::oci::layers::{Keep, Notices};
use crate::tree::{Body, Content, Source, Tree};
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Contents that are smaller stay in memory.
const SMALL_BYTES: u64 = 256;

impl Layered {
    /// Merges the layers into a tree whose contents lie in `file`, which is empty and belongs to nobody else.
    pub fn spool(&self, file: File) -> Result<(Tree, Notices), LayeredError> {
        let failed = |source| LayeredError::Read { what: "the contents of the layers".to_owned(), source };
        let mut spool = Spool::new(file);
        let (mut tree, notices) = self.merge(&mut spool).map_err(|failure| match failure {
            MergeFailure::Source(error) => error,
            MergeFailure::Keep(source) => failed(source),
        })?;
        spool.finish(&mut tree).map_err(failed)?;
        Ok((tree, notices))
    }
}

/// Contents on their way into the file.
pub(super) struct Spool {
    out: BufWriter<File>,
    end: u64,
    places: Vec<(u64, u64)>,
}

impl Spool {
    /// Begins with `file`, which is empty and belongs to nobody else.
    pub fn new(file: File) -> Self {
        Self { out: BufWriter::with_capacity(1 << 20, file), end: 0, places: Vec::new() }
    }

    /// Makes the file a source of `tree`, whose contents were kept in it.
    pub fn finish(self, tree: &mut Tree) -> io::Result<()> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let source = tree.add_source(Arc::new(Spooled { file, places: self.places })).map_err(io::Error::other)?;
        let mut written = Vec::new();
        let mut walk = tree.walk();
        while let Some(id) = walk.next_entry() {
            if let Body::File(Content::Written { number, size_bytes }) = tree.inode(id).body {
                written.push((id, *number, *size_bytes));
            }
        }
        for (id, number, size_bytes) in written {
            tree.set_content(id, Content::Stored { source, key: number.into(), size_bytes });
        }
        Ok(())
    }
}

impl Keep for Spool {
    type Error = io::Error;

    fn keep(&mut self, _path: &[u8], size_bytes: u64, content: &mut dyn Read) -> io::Result<Content> {
        if size_bytes <= SMALL_BYTES {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            return Ok(Content::Bytes(bytes.into()));
        }
        let number = u32::try_from(self.places.len()).map_err(io::Error::other)?;
        let copied_bytes = io::copy(content, &mut self.out)?;
        self.places.push((self.end, copied_bytes));
        self.end += copied_bytes;
        Ok(Content::Written { number, size_bytes: copied_bytes })
    }
}

/// The file, and where in it each content is.
struct Spooled {
    file: File,
    places: Vec<(u64, u64)>,
}

impl Source for Spooled {
    fn open(&self, key: u64, offset_bytes: u64) -> io::Result<Box<dyn Read + '_>> {
        let place = usize::try_from(key).ok().and_then(|key| self.places.get(key));
        let &(start, size_bytes) = place.ok_or(io::ErrorKind::NotFound)?;
        let offset_bytes = offset_bytes.min(size_bytes);
        Ok(Box::new(At { file: &self.file, position: start + offset_bytes }.take(size_bytes - offset_bytes)))
    }

    fn name(&self, _key: u64) -> String {
        "a file of a layer".to_owned()
    }
}

struct At<'a> {
    file: &'a File,
    position: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}
