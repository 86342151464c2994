//! A file system as a value, and the way to look something up in one.
//!
//! A [`Tree`] holds names, inodes and extended attributes; the content of files stays where it is (a [`Source`]) or, for
//! what the program makes up itself, in memory. Names lie in one buffer and inodes in one array, so that an entry costs
//! some eighty bytes:
//!
//! ```text
//! inodes   | root | bin | sh | etc | hosts | ...           an inode can have several names (hard links)
//!             |      |
//!             |      +-- entries: (name, inode), sorted by the name's bytes
//! names    |binshetchosts...
//! ```
//!
//! Nothing here opens a file: `tree::from_directory` does, and is the only part that knows where content lies.

mod dump;
pub mod from_directory;
pub mod lookup;

pub use from_directory::{Options, Owners, WalkError, Walked, from_directory};
pub use lookup::{Entry, Kind, Lookup, LookupError, Resolved, Stat};

use crate::report::Hint;
use starter::paths::ContainerPath;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

/// Longest name of a directory entry, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// Names one inode of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(u32);

impl InodeId {
    /// The inode's place in a table with one row for each of [`Tree::inode_count`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names one [`Source`] of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceId(u16);

/// Where the content of files lies: a directory, an archive, another image.
pub trait Source: Send + Sync {
    /// Opens the content `key`, `offset_bytes` from its beginning.
    fn open(&self, key: u64, offset_bytes: u64) -> io::Result<Box<dyn Read + '_>>;
    /// The name by which a person knows the content `key`.
    fn name(&self, key: u64) -> String;
    /// Where in `range` (in bytes) the content `key` first has data: before that it holds zeros, which need not be read.
    /// The end of `range` when all of it is zeros.
    ///
    /// # Errors
    /// `UnexpectedEof` for a content that ends before `range` does.
    fn first_data(&self, _key: u64, range: Range<u64>) -> io::Result<u64> {
        Ok(range.start)
    }
}

/// The content of a regular file.
#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes in memory.
    Bytes(Arc<[u8]>),
    /// Bytes that a source holds under a key of its own.
    Stored { source: SourceId, key: u64, size_bytes: u64 },
    /// Bytes that came and went: whoever wrote them down while they streamed knows them by `number`. Nobody else can
    /// read them any more.
    Written { number: u32, size_bytes: u64 },
}

impl Content {
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stored { size_bytes, .. } | Self::Written { size_bytes, .. } => *size_bytes,
        }
    }
}

/// What an inode is, with what only inodes of that kind have.
#[derive(Clone, Debug)]
pub enum Body {
    Directory,
    File(Content),
    Symlink(Box<[u8]>),
    /// Device numbers as in `st_rdev`.
    BlockDevice(u64),
    CharDevice(u64),
    Fifo,
    Socket,
}

/// What every inode has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-id and sticky bits: `0o7777` at most.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    pub xattrs: Vec<Xattr>,
}

/// An extended attribute: `user.origin` and its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Xattr {
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

/// Why a tree can't be changed as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// Empty, `.`, `..`, longer than [`MAX_NAME_BYTES`], or with `/` or NUL in it.
    BadName {
        name: Vec<u8>,
    },
    /// The directory has an entry of that name.
    Exists {
        name: Vec<u8>,
    },
    NotADirectory {
        name: Vec<u8>,
    },
    /// A directory can't have a second name.
    DirectoryLink {
        name: Vec<u8>,
    },
    /// More inodes, bytes of names or sources than their numbers can count.
    TooLarge,
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        match self {
            Self::BadName { name } => write!(f, "`{}` cannot be the name of a file", text(name)),
            Self::Exists { name } => write!(f, "`{}` is there already", text(name)),
            Self::NotADirectory { name } => {
                write!(f, "cannot put `{}` into something that is no directory", text(name))
            }
            Self::DirectoryLink { name } => write!(f, "cannot make `{}` a second name of a directory", text(name)),
            Self::TooLarge => f.write_str("too many files for one image"),
        }
    }
}

impl std::error::Error for TreeError {}
impl Hint for TreeError {}

#[derive(Clone, Copy, Debug)]
struct Name {
    start: u32,
    length: u8,
}

#[derive(Clone, Copy, Debug)]
struct Child {
    name: Name,
    inode: InodeId,
}

#[derive(Debug)]
struct Inode {
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: i64,
    /// Number of names; for a directory, of its own entry alone.
    names: u32,
    xattrs: u32,
    body: InodeBody,
}

#[derive(Debug)]
enum InodeBody {
    Directory { parent: InodeId, children: Vec<Child> },
    Other(Body),
}

/// A file system: one root directory and what is below it.
pub struct Tree {
    inodes: Vec<Inode>,
    names: Vec<u8>,
    /// Distinct sets; the first is the empty one.
    xattr_sets: Vec<Arc<[Xattr]>>,
    xattr_index: HashMap<Arc<[Xattr]>, u32>,
    sources: Vec<Arc<dyn Source>>,
}

/// An inode as its reader sees it.
#[derive(Clone, Copy, Debug)]
pub struct InodeRef<'a> {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Number of names that lead to it.
    pub names: u32,
    pub xattrs: &'a [Xattr],
    /// Equal for inodes whose `xattrs` are equal; 0 when there are none.
    pub xattr_set: u32,
    pub body: &'a Body,
}

const DIRECTORY: &Body = &Body::Directory;

impl Tree {
    /// A tree that is an empty root directory.
    pub fn new(root: Attributes) -> Self {
        let empty: Arc<[Xattr]> = Arc::new([]);
        let mut tree = Self {
            inodes: Vec::new(),
            names: Vec::new(),
            xattr_sets: vec![empty.clone()],
            xattr_index: HashMap::from([(empty, 0)]),
            sources: Vec::new(),
        };
        let xattrs = tree.xattr_set(root.xattrs);
        let body = InodeBody::Directory { parent: InodeId(0), children: Vec::new() };
        let Attributes { mode, uid, gid, mtime, .. } = root;
        tree.inodes.push(Inode { mode, uid, gid, mtime, names: 1, xattrs, body });
        tree
    }

    pub fn root(&self) -> InodeId {
        InodeId(0)
    }

    /// How many inodes were ever made; ids are below it.
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// Makes a source known, for [`Content::Stored`].
    pub fn add_source(&mut self, source: Arc<dyn Source>) -> Result<SourceId, TreeError> {
        let id = u16::try_from(self.sources.len()).map_err(|_| TreeError::TooLarge)?;
        self.sources.push(source);
        Ok(SourceId(id))
    }

    /// Makes a new inode, `name` in `directory`.
    pub fn insert(
        &mut self,
        directory: InodeId,
        name: &[u8],
        attributes: Attributes,
        body: Body,
    ) -> Result<InodeId, TreeError> {
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| TreeError::TooLarge)?);
        self.enter(directory, name, id)?;
        let xattrs = self.xattr_set(attributes.xattrs);
        let Attributes { mode, uid, gid, mtime, .. } = attributes;
        let body = match body {
            Body::Directory => InodeBody::Directory { parent: directory, children: Vec::new() },
            other => InodeBody::Other(other),
        };
        self.inodes.push(Inode { mode, uid, gid, mtime, names: 1, xattrs, body });
        Ok(id)
    }

    /// Gives an inode that is no directory one more name.
    pub fn link(&mut self, directory: InodeId, name: &[u8], inode: InodeId) -> Result<(), TreeError> {
        if matches!(self.inodes[inode.index()].body, InodeBody::Directory { .. }) {
            return Err(TreeError::DirectoryLink { name: name.to_vec() });
        }
        self.enter(directory, name, inode)?;
        self.inodes[inode.index()].names += 1;
        Ok(())
    }

    /// Takes an entry out of its directory, with everything below it. Its inode stays in the tree, without this name.
    pub fn remove(&mut self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        let at = self.child_slice(directory).binary_search_by(|child| self.name(child.name).cmp(name)).ok()?;
        let InodeBody::Directory { children, .. } = &mut self.inodes[directory.index()].body else { return None };
        let removed = children.remove(at).inode;
        let mut left = vec![removed];
        while let Some(id) = left.pop() {
            let inode = &mut self.inodes[id.index()];
            inode.names = inode.names.saturating_sub(1);
            if let InodeBody::Directory { children, .. } = &mut inode.body {
                left.extend(std::mem::take(children).into_iter().map(|child| child.inode));
            }
        }
        Some(removed)
    }

    /// Replaces what an inode has besides its body.
    pub fn set_attributes(&mut self, id: InodeId, attributes: Attributes) {
        let xattrs = self.xattr_set(attributes.xattrs);
        let inode = &mut self.inodes[id.index()];
        let Attributes { mode, uid, gid, mtime, .. } = attributes;
        (inode.mode, inode.uid, inode.gid, inode.mtime, inode.xattrs) = (mode, uid, gid, mtime, xattrs);
    }

    /// Replaces the content of a regular file; nothing else has any.
    pub fn set_content(&mut self, id: InodeId, content: Content) {
        if let InodeBody::Other(Body::File(old)) = &mut self.inodes[id.index()].body {
            *old = content;
        }
    }

    /// The inode called `name` in `directory`.
    pub fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        let children = self.child_slice(directory);
        let at = children.binary_search_by(|child| self.name(child.name).cmp(name)).ok()?;
        Some(children[at].inode)
    }

    /// The entries of `directory`, sorted by the bytes of their names; none when it is no directory.
    pub fn children(&self, directory: InodeId) -> impl ExactSizeIterator<Item = (&[u8], InodeId)> {
        self.child_slice(directory).iter().map(|child| (self.name(child.name), child.inode))
    }

    /// The directory that holds `directory`; the root's is itself, as is that of what is no directory.
    pub fn parent(&self, directory: InodeId) -> InodeId {
        match &self.inodes[directory.index()].body {
            InodeBody::Directory { parent, .. } => *parent,
            InodeBody::Other(_) => directory,
        }
    }

    pub fn inode(&self, id: InodeId) -> InodeRef<'_> {
        let inode = &self.inodes[id.index()];
        InodeRef {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            names: inode.names,
            xattrs: &self.xattr_sets[inode.xattrs as usize],
            xattr_set: inode.xattrs,
            body: match &inode.body {
                InodeBody::Directory { .. } => DIRECTORY,
                InodeBody::Other(body) => body,
            },
        }
    }

    /// Opens the content of a file, `offset_bytes` from its beginning.
    pub fn open<'a>(&'a self, content: &'a Content, offset_bytes: u64) -> io::Result<Box<dyn Read + 'a>> {
        match content {
            Content::Bytes(bytes) => {
                let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Box::new(&bytes[start..]))
            }
            Content::Stored { source, key, .. } => self.sources[usize::from(source.0)].open(*key, offset_bytes),
            Content::Written { .. } => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "its content was written as it came, and is gone"))
            }
        }
    }

    /// Where in `range` of a file's content there is data: see [`Source::first_data`].
    pub fn first_data(&self, content: &Content, range: Range<u64>) -> io::Result<u64> {
        match content {
            Content::Bytes(_) | Content::Written { .. } => Ok(range.start),
            Content::Stored { source, key, .. } => self.sources[usize::from(source.0)].first_data(*key, range),
        }
    }

    /// The name by which a person knows some content.
    pub fn content_name(&self, content: &Content) -> String {
        match content {
            Content::Bytes(_) => "a generated file".to_owned(),
            Content::Stored { source, key, .. } => self.sources[usize::from(source.0)].name(*key),
            Content::Written { .. } => "a file of a layer".to_owned(),
        }
    }

    /// Every entry below the root, directories before what they hold, siblings in the order of their names' bytes.
    pub fn walk(&self) -> Walk<'_> {
        Walk { tree: self, stack: vec![(self.root(), 0)], path: Vec::new() }
    }

    /// The inode at `path`, no symbolic link followed.
    pub fn find(&self, path: &ContainerPath) -> Option<InodeId> {
        path.components().try_fold(self.root(), |directory, name| self.child(directory, name))
    }

    /// Makes `latest` (seconds since 1970) the time of every file that claims to be newer.
    pub fn clamp_mtimes(&mut self, latest: i64) {
        for inode in &mut self.inodes {
            inode.mtime = inode.mtime.min(latest);
        }
    }

    /// The newest modification time in the tree.
    pub fn newest_mtime(&self) -> i64 {
        let named = self.inodes.iter().filter(|inode| inode.names > 0);
        named.map(|inode| inode.mtime).max().unwrap_or(0)
    }

    fn enter(&mut self, directory: InodeId, name: &[u8], inode: InodeId) -> Result<(), TreeError> {
        let bad = name.is_empty() || name.len() > MAX_NAME_BYTES || name == b"." || name == b"..";
        if bad || name.contains(&b'/') || name.contains(&0) {
            return Err(TreeError::BadName { name: name.to_vec() });
        }
        let InodeBody::Directory { children, .. } = &self.inodes[directory.index()].body else {
            return Err(TreeError::NotADirectory { name: name.to_vec() });
        };
        // Walkers insert in order: look at the end first.
        let after_last = children.last().is_none_or(|last| self.name(last.name) < name);
        let at = if after_last {
            children.len()
        } else {
            match children.binary_search_by(|child| self.name(child.name).cmp(name)) {
                Ok(_) => return Err(TreeError::Exists { name: name.to_vec() }),
                Err(at) => at,
            }
        };
        let start = u32::try_from(self.names.len()).map_err(|_| TreeError::TooLarge)?;
        let length = u8::try_from(name.len()).map_err(|_| TreeError::BadName { name: name.to_vec() })?;
        self.names.extend_from_slice(name);
        if let InodeBody::Directory { children, .. } = &mut self.inodes[directory.index()].body {
            children.insert(at, Child { name: Name { start, length }, inode });
        }
        Ok(())
    }

    fn xattr_set(&mut self, mut xattrs: Vec<Xattr>) -> u32 {
        xattrs.sort();
        let xattrs: Arc<[Xattr]> = xattrs.into();
        if let Some(&known) = self.xattr_index.get(&xattrs) {
            return known;
        }
        // There are no more sets than inodes, and those are counted in 32 bits.
        let id = self.xattr_sets.len() as u32;
        self.xattr_sets.push(xattrs.clone());
        self.xattr_index.insert(xattrs, id);
        id
    }

    fn child_slice(&self, directory: InodeId) -> &[Child] {
        match &self.inodes[directory.index()].body {
            InodeBody::Directory { children, .. } => children,
            InodeBody::Other(_) => &[],
        }
    }

    fn name(&self, name: Name) -> &[u8] {
        let start = name.start as usize;
        &self.names[start..start + usize::from(name.length)]
    }
}

/// The iterator of [`Tree::walk`].
pub struct Walk<'a> {
    tree: &'a Tree,
    /// Directories from the root down, each with the number of its entries that were given out.
    stack: Vec<(InodeId, usize)>,
    path: Vec<u8>,
}

impl Walk<'_> {
    /// The path of the entry that [`Walk::next_entry`] gave last.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The next entry.
    pub fn next_entry(&mut self) -> Option<InodeId> {
        loop {
            let (directory, given) = self.stack.last_mut()?;
            let children = self.tree.child_slice(*directory);
            // What was given out last leaves the path now.
            if *given > 0 {
                let name = usize::from(children[*given - 1].name.length);
                self.path.truncate(self.path.len() - name - 1);
            }
            let Some(child) = children.get(*given) else {
                self.stack.pop();
                continue;
            };
            *given += 1;
            self.path.push(b'/');
            self.path.extend_from_slice(self.tree.name(child.name));
            if matches!(self.tree.inodes[child.inode.index()].body, InodeBody::Directory { .. }) {
                self.stack.push((child.inode, 0));
            }
            return Some(child.inode);
        }
    }
}

impl Body {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Directory => Kind::Directory,
            Self::File(_) => Kind::File,
            Self::Symlink(_) => Kind::Symlink,
            Self::BlockDevice(_) => Kind::BlockDevice,
            Self::CharDevice(_) => Kind::CharDevice,
            Self::Fifo => Kind::Fifo,
            Self::Socket => Kind::Socket,
        }
    }
}

impl Lookup for Tree {
    fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError> {
        Ok(self.find(path).map(|id| {
            let inode = self.inode(id);
            let (size_bytes, rdev) = match inode.body {
                Body::File(content) => (content.size_bytes(), 0),
                Body::Symlink(target) => (target.len() as u64, 0),
                Body::BlockDevice(rdev) | Body::CharDevice(rdev) => (0, *rdev),
                Body::Directory | Body::Fifo | Body::Socket => (0, 0),
            };
            Stat {
                kind: inode.body.kind(),
                mode: u32::from(inode.mode),
                uid: inode.uid,
                gid: inode.gid,
                size_bytes,
                mtime: inode.mtime,
                inode: u64::from(id.0) + 1,
                nlink: inode.names,
                rdev,
            }
        }))
    }

    fn read_link(&self, path: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
        Ok(self.find(path).and_then(|id| match self.inode(id).body {
            Body::Symlink(target) => Some(target.to_vec()),
            _ => None,
        }))
    }

    fn read_file(&self, path: &ContainerPath, limit_bytes: u64) -> Result<Option<Vec<u8>>, LookupError> {
        let Some(id) = self.find(path) else { return Ok(None) };
        let Body::File(content) = self.inode(id).body else { return Ok(None) };
        let size_bytes = content.size_bytes();
        if size_bytes > limit_bytes {
            return Err(LookupError::TooLarge { path: path.clone(), size_bytes, limit_bytes });
        }
        let mut bytes = Vec::new();
        let read = self.open(content, 0).and_then(|reader| reader.take(size_bytes).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(bytes)),
            // Nobody may read what was written and is gone.
            Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
                Err(LookupError::Denied { path: path.clone() })
            }
            Err(e) => Err(LookupError::Damaged { path: path.clone(), reason: e.to_string() }),
        }
    }

    fn read_dir(&self, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
        let Some(id) = self.find(path) else { return Ok(None) };
        if !matches!(self.inode(id).body, Body::Directory) {
            return Ok(None);
        }
        let entry =
            |(name, child): (&[u8], InodeId)| Entry { name: name.to_vec(), kind: self.inode(child).body.kind() };
        Ok(Some(self.children(id).map(entry).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes() -> Attributes {
        Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 7, xattrs: Vec::new() }
    }

    fn file(bytes: &[u8]) -> Body {
        Body::File(Content::Bytes(bytes.into()))
    }

    #[test]
    fn entries_come_sorted_whatever_the_order_they_were_made_in() {
        let mut tree = Tree::new(attributes());
        for name in ["b", "a-", "a", "c", "B"] {
            tree.insert(tree.root(), name.as_bytes(), attributes(), Body::Fifo).unwrap();
        }
        let names: Vec<&[u8]> = tree.children(tree.root()).map(|(name, _)| name).collect();
        assert_eq!(names, [b"B".as_slice(), b"a", b"a-", b"b", b"c"]);
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let mut tree = Tree::new(attributes());
        for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            let answer = tree.insert(tree.root(), name, attributes(), Body::Socket);
            assert_eq!(answer, Err(TreeError::BadName { name: name.to_vec() }));
        }
        assert_eq!(tree.inode_count(), 1);
    }

    #[test]
    fn a_name_can_be_taken_once_and_only_directories_hold_any() {
        let mut tree = Tree::new(attributes());
        let a = tree.insert(tree.root(), b"a", attributes(), Body::Fifo).unwrap();
        let exists = tree.insert(tree.root(), b"a", attributes(), Body::Fifo);
        assert_eq!(exists, Err(TreeError::Exists { name: b"a".to_vec() }));
        let below = tree.insert(a, b"b", attributes(), Body::Fifo);
        assert_eq!(below, Err(TreeError::NotADirectory { name: b"b".to_vec() }));
        let root = tree.root();
        assert_eq!(tree.link(root, b"r", root), Err(TreeError::DirectoryLink { name: b"r".to_vec() }));
    }

    #[test]
    fn a_walk_names_directories_before_what_they_hold() {
        let mut tree = Tree::new(attributes());
        let b = tree.insert(tree.root(), b"b", attributes(), Body::Directory).unwrap();
        tree.insert(tree.root(), b"c", attributes(), Body::Fifo).unwrap();
        let d = tree.insert(b, b"d", attributes(), Body::Directory).unwrap();
        tree.insert(d, b"e", attributes(), file(b"x")).unwrap();
        tree.insert(tree.root(), b"a", attributes(), Body::Directory).unwrap();
        let mut walk = tree.walk();
        let mut paths = Vec::new();
        while walk.next_entry().is_some() {
            paths.push(String::from_utf8(walk.path().to_vec()).unwrap());
        }
        assert_eq!(paths, ["/a", "/b", "/b/d", "/b/d/e", "/c"]);
    }

    #[test]
    fn a_tree_answers_as_a_root_file_system() {
        let mut tree = Tree::new(attributes());
        let bin = tree.insert(tree.root(), b"bin", attributes(), Body::Directory).unwrap();
        let sh = tree.insert(bin, b"dash", attributes(), file(b"#!")).unwrap();
        tree.link(bin, b"ash", sh).unwrap();
        tree.insert(bin, b"sh", attributes(), Body::Symlink((*b"dash").into())).unwrap();
        let resolved = lookup::resolve(&tree, &ContainerPath::fixed("/bin/sh")).unwrap();
        assert_eq!(resolved.path, ContainerPath::fixed("/bin/dash"));
        assert_eq!(resolved.stat.map(|s| (s.kind, s.size_bytes, s.nlink)), Some((Kind::File, 2, 2)));
        assert_eq!(lookup::read(&tree, &ContainerPath::fixed("/bin/ash"), 9).unwrap(), Some(b"#!".to_vec()));
        let limited = lookup::read(&tree, &ContainerPath::fixed("/bin/ash"), 1);
        assert!(matches!(limited, Err(LookupError::TooLarge { size_bytes: 2, limit_bytes: 1, .. })));
        assert_eq!(lookup::read(&tree, &ContainerPath::fixed("/nothing"), 9).unwrap(), None);
    }
}
