//! An image as a [`Tree`] whose contents stay in the image: what is packed again, compared or changed.

use super::error::SquashfsError;
use super::inode::{Inode, InodeRef};
use super::reader::Reader;
use crate::report::Hint;
use crate::tree::{Attributes, Body, Content, InodeId, Kind, Source, Tree, TreeError, Xattr};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

/// Why an image has no tree.
#[derive(Debug)]
pub enum AsTreeError {
    Image(SquashfsError),
    /// A name in the image can't be one of a tree.
    Tree {
        path: Vec<u8>,
        source: TreeError,
    },
}

impl fmt::Display for AsTreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Tree { path, source } => {
                write!(f, "damaged SquashFS image: /{}: {source}", String::from_utf8_lossy(path))
            }
        }
    }
}

impl std::error::Error for AsTreeError {}

impl Hint for AsTreeError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Image(error) => error.hints(),
            Self::Tree { .. } => vec!["The image was damaged after it was made: fetch or build it again.".to_owned()],
        }
    }
}

impl From<SquashfsError> for AsTreeError {
    fn from(error: SquashfsError) -> Self {
        Self::Image(error)
    }
}

impl Reader {
    /// Walks the whole image; `name` is what errors about its contents call it.
    pub fn into_tree(self, name: &str) -> Result<Tree, AsTreeError> {
        let reader = Arc::new(self);
        let tree_error = |path: &[u8], source| AsTreeError::Tree { path: path.to_vec(), source };
        let root = reader.inode(reader.root())?;
        let mut tree = Tree::new(attributes(&reader, &root)?);
        let source = tree
            .add_source(Arc::new(Contents { reader: reader.clone(), name: name.to_owned() }))
            .map_err(|e| tree_error(b"", e))?;
        // Directories on the way to the current entry, each with the length of its path.
        let mut open: Vec<(usize, InodeId)> = vec![(0, tree.root())];
        let mut linked: HashMap<InodeRef, InodeId> = HashMap::new();
        for visit in reader.walk().skip(1) {
            let visit = visit?;
            let at = visit.path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash);
            while open.len() > 1 && open.last().is_some_and(|(length, _)| *length > at) {
                open.pop();
            }
            let directory = open.last().map_or(tree.root(), |(_, directory)| *directory);
            let name = if at == 0 { visit.path.as_slice() } else { &visit.path[at + 1..] };
            let is_linked = visit.inode.kind != Kind::Directory && visit.inode.nlink > 1;
            if is_linked && let Some(&known) = linked.get(&visit.reference) {
                tree.link(directory, name, known).map_err(|e| tree_error(&visit.path, e))?;
                continue;
            }
            let body = match visit.inode.kind {
                Kind::Directory => Body::Directory,
                Kind::File => {
                    let size_bytes = visit.inode.size_bytes;
                    Body::File(Content::Stored { source, key: visit.reference.bits(), size_bytes })
                }
                Kind::Symlink => Body::Symlink(reader.symlink_target(&visit.inode)?.unwrap_or_default().into()),
                Kind::BlockDevice => Body::BlockDevice(u64::from(visit.inode.rdev)),
                Kind::CharDevice => Body::CharDevice(u64::from(visit.inode.rdev)),
                Kind::Fifo => Body::Fifo,
                Kind::Socket => Body::Socket,
            };
            let attributes = attributes(&reader, &visit.inode)?;
            let id = tree.insert(directory, name, attributes, body).map_err(|e| tree_error(&visit.path, e))?;
            if visit.inode.kind == Kind::Directory {
                open.push((visit.path.len(), id));
            } else if is_linked {
                linked.insert(visit.reference, id);
            }
        }
        Ok(tree)
    }
}

fn attributes(reader: &Reader, inode: &Inode) -> Result<Attributes, SquashfsError> {
    let (uid, gid) = reader.owner(inode)?;
    let mut xattrs = Vec::new();
    if reader.has_xattrs() {
        for name in reader.xattr_names(inode)? {
            if let Some(value) = reader.xattr(inode, &name)? {
                xattrs.push(Xattr { name: name.into(), value: value.into() });
            }
        }
    }
    Ok(Attributes { mode: inode.mode, uid, gid, mtime: i64::from(inode.mtime), xattrs })
}

/// The contents of an image's files; a file's key is the reference to its inode.
struct Contents {
    reader: Arc<Reader>,
    name: String,
}

impl Source for Contents {
    fn open(&self, key: u64, offset_bytes: u64) -> io::Result<Box<dyn Read + '_>> {
        let reference = InodeRef::from_bits(key);
        let inode = self.reader.inode(reference).map_err(io::Error::other)?;
        Ok(Box::new(Reading { reader: &self.reader, reference, inode, offset_bytes }))
    }

    fn name(&self, _: u64) -> String {
        format!("a file of {}", self.name)
    }
}

struct Reading<'a> {
    reader: &'a Reader,
    reference: InodeRef,
    inode: Inode,
    offset_bytes: u64,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let answer = self.reader.read(self.reference, &self.inode, self.offset_bytes, buffer);
        let read = answer.map_err(io::Error::other)?;
        self.offset_bytes += read as u64;
        Ok(read)
    }
}
