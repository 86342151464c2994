//! A walk through the whole tree, parents before children, for listing and unpacking.

use super::directory::{Directory, DirectoryEntry};
use super::error::SquashfsError;
use super::inode::{Inode, InodeRef};
use super::reader::Reader;
use crate::tree::Kind;
use std::collections::HashSet;

/// The longest path of a walk (PATH_MAX): no image that Linux could have made has a longer one.
const PATH_BYTES_MAX: usize = 4096;

/// A thing met on a walk.
pub struct Visit {
    /// Path from the root without a leading slash; empty for the root itself.
    pub path: Vec<u8>,
    pub reference: InodeRef,
    pub inode: Inode,
}

/// Visits every entry once; ends after the first error. A directory that is met twice is one.
pub struct Walk<'r> {
    reader: &'r Reader,
    /// The directories being listed, and how long the path of each is.
    open: Vec<(Directory<'r>, usize)>,
    path: Vec<u8>,
    seen: HashSet<InodeRef>,
    next: Option<Result<Visit, SquashfsError>>,
    over: bool,
}

impl Reader {
    /// Walks the tree from its root.
    pub fn walk(&self) -> Walk<'_> {
        let mut walk =
            Walk { reader: self, open: Vec::new(), path: Vec::new(), seen: HashSet::new(), next: None, over: false };
        walk.next = Some(walk.visit(self.root()));
        walk
    }
}

impl<'r> Walk<'r> {
    /// Reads the inode at the current path, and opens it if it is a directory.
    fn visit(&mut self, reference: InodeRef) -> Result<Visit, SquashfsError> {
        let inode = self.reader.inode(reference)?;
        if let Some(directory) = self.reader.directory(&inode) {
            if !self.seen.insert(reference) {
                return Err(SquashfsError::Cycle { path: self.path.clone() });
            }
            self.open.push((directory, self.path.len()));
        }
        Ok(Visit { path: self.path.clone(), reference, inode })
    }

    fn step(&mut self) -> Result<Option<Visit>, SquashfsError> {
        let mut entry = DirectoryEntry::default();
        while let Some((directory, path_bytes)) = self.open.last_mut() {
            self.path.truncate(*path_bytes);
            if !directory.next(&mut entry)? {
                self.open.pop();
                continue;
            }
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(entry.name());
            if self.path.len() >= PATH_BYTES_MAX {
                let offset_bytes = self.reader.superblock().directory_table;
                return Err(SquashfsError::Damaged { what: "a path is longer than paths can be", offset_bytes });
            }
            let visit = self.visit(entry.inode)?;
            if (visit.inode.kind == Kind::Directory) != (entry.kind == Kind::Directory) {
                let offset_bytes = self.reader.superblock().inode_table;
                return Err(SquashfsError::Damaged { what: "an entry and its inode differ in kind", offset_bytes });
            }
            return Ok(Some(visit));
        }
        Ok(None)
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Visit, SquashfsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let item = self.next.take().or_else(|| self.step().transpose());
        self.over = !matches!(item, Some(Ok(_)));
        item
    }
}
