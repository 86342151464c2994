//! Paths into an image that is not mounted: [`Lookup`] for the planner.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::error::SquashfsError;
use super::inode::{Inode, InodeRef};
use super::reader::Reader;
use crate::tree::{Entry, Kind, Lookup, LookupError, Stat};
use starter::paths::ContainerPath;

/// A partition looked at by paths, as a planner does it: many paths with the same directories on the way. What was
/// found stays known.
pub struct PathReader {
    reader: Reader,
    known: RefCell<BTreeMap<ContainerPath, Option<(InodeRef, Inode)>>>,
}

impl PathReader {
    pub fn new(reader: Reader) -> Self {
        Self { reader, known: RefCell::default() }
    }

    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The inode at `path`, no symbolic link followed; `None` if there is none.
    pub fn at(&self, path: &ContainerPath) -> Result<Option<(InodeRef, Inode)>, SquashfsError> {
        if let Some(known) = self.known.borrow().get(path) {
            return Ok(known.clone());
        }
        let mut known = self.known.borrow_mut();
        let root = ContainerPath::root();
        let mut found = match known.get(&root) {
            Some(found) => found.clone(),
            None => {
                let reference = self.reader.root();
                let found = Some((reference, self.reader.inode(reference)?));
                known.insert(root.clone(), found.clone());
                found
            }
        };
        let mut place = root;
        for name in path.components() {
            let Some((_, directory)) = &found else { return Ok(None) };
            // A component of a path is a name.
            let Ok(next) = place.join(name) else { return Ok(None) };
            place = next;
            found = match known.get(&place) {
                Some(found) => found.clone(),
                None => {
                    let entry = self.reader.find(directory, name)?;
                    let found = match entry {
                        Some(entry) => Some((entry.inode, self.reader.inode(entry.inode)?)),
                        None => None,
                    };
                    known.insert(place.clone(), found.clone());
                    found
                }
            };
        }
        Ok(found)
    }

    fn of_kind(&self, path: &ContainerPath, kind: Kind) -> Result<Option<(InodeRef, Inode)>, LookupError> {
        let found = self.at(path).map_err(|error| damaged(path, &error))?;
        Ok(found.filter(|(_, inode)| inode.kind == kind))
    }
}

fn damaged(path: &ContainerPath, error: &SquashfsError) -> LookupError {
    LookupError::Damaged { path: path.clone(), reason: error.to_string() }
}

impl Lookup for PathReader {
    fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError> {
        let stat = || {
            let Some((_, inode)) = self.at(path)? else { return Ok(None) };
            let (uid, gid) = self.reader.owner(&inode)?;
            Ok(Some(Stat {
                kind: inode.kind,
                mode: u32::from(inode.mode),
                uid,
                gid,
                size_bytes: inode.size_bytes,
                mtime: i64::from(inode.mtime),
                inode: u64::from(inode.number),
                nlink: inode.nlink,
                rdev: u64::from(inode.rdev),
            }))
        };
        stat().map_err(|error: SquashfsError| damaged(path, &error))
    }

    fn read_link(&self, path: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
        let Some((_, inode)) = self.of_kind(path, Kind::Symlink)? else { return Ok(None) };
        self.reader.symlink_target(&inode).map_err(|error| damaged(path, &error))
    }

    fn read_file(&self, path: &ContainerPath, limit_bytes: u64) -> Result<Option<Vec<u8>>, LookupError> {
        let Some((reference, inode)) = self.of_kind(path, Kind::File)? else { return Ok(None) };
        if inode.size_bytes > limit_bytes {
            return Err(LookupError::TooLarge { path: path.clone(), size_bytes: inode.size_bytes, limit_bytes });
        }
        // Piece by piece, so that memory grows only with content that is really there.
        let mut content = Vec::new();
        let step = self.reader.superblock().block_bytes as usize;
        while (content.len() as u64) < inode.size_bytes {
            let start = content.len();
            content.resize(start + step.min((inode.size_bytes - start as u64) as usize), 0);
            let (_, free) = content.split_at_mut(start);
            self.reader.read(reference, &inode, start as u64, free).map_err(|error| damaged(path, &error))?;
        }
        Ok(Some(content))
    }

    fn read_dir(&self, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
        let Some((_, inode)) = self.of_kind(path, Kind::Directory)? else { return Ok(None) };
        let Some(mut directory) = self.reader.directory(&inode) else { return Ok(None) };
        let mut entry = super::DirectoryEntry::default();
        let mut entries = Vec::new();
        while directory.next(&mut entry).map_err(|error| damaged(path, &error))? {
            entries.push(Entry { name: entry.name().to_vec(), kind: entry.kind });
        }
        Ok(Some(entries))
    }
}
