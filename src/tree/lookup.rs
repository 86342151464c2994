//! Looking things up in a root file system that is not mounted: a SquashFS partition, a sandbox directory, a tree in memory.
//!
//! An implementation answers for one name at a time ([`Lookup::lstat`], [`Lookup::read_link`], …) and never follows a
//! symbolic link; [`resolve`] follows them, inside the root, with a bound.

use starter::paths::ContainerPath;
use std::fmt;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Directory,
    File,
    Symlink,
    BlockDevice,
    CharDevice,
    Fifo,
    Socket,
}

/// What is known of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits: `0o7777` at most.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    pub inode: u64,
    pub nlink: u32,
    /// Device number of device nodes, as `st_rdev`.
    pub rdev: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
}

/// Why a look-up has no answer (a name that is not there is an answer).
#[derive(Debug)]
pub enum LookupError {
    /// The file system is damaged, or the medium failed.
    Damaged { path: ContainerPath, reason: String },
    /// More symbolic links than [`MAX_SYMLINKS`].
    TooManyLinks { path: ContainerPath },
    /// The file is larger than the caller's limit.
    TooLarge { path: ContainerPath, size_bytes: u64, limit_bytes: u64 },
    /// The caller may not read it.
    Denied { path: ContainerPath },
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { path, reason } => write!(f, "cannot read {path} in the image: {reason}"),
            Self::TooManyLinks { path } => write!(f, "too many symbolic links at {path} in the image"),
            Self::TooLarge { path, size_bytes, limit_bytes } => {
                write!(f, "{path} in the image is too large: {size_bytes} bytes, expected at most {limit_bytes}")
            }
            Self::Denied { path } => write!(f, "cannot read {path} in the image: permission denied"),
        }
    }
}

impl std::error::Error for LookupError {}

/// A root file system that can be asked. No path given to these functions is followed at its last component; callers
/// pass paths whose directories hold no symbolic links (as [`resolve`] returns).
pub trait Lookup {
    /// The inode at `path`, `None` when there is none.
    fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError>;
    /// The target of the symbolic link at `path`; `None` when `path` is no symbolic link.
    fn read_link(&self, path: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError>;
    /// The content of the regular file at `path`; `None` when `path` is no regular file.
    fn read_file(&self, path: &ContainerPath, limit_bytes: u64) -> Result<Option<Vec<u8>>, LookupError>;
    /// The entries of the directory at `path`, sorted by name; `None` when `path` is no directory.
    fn read_dir(&self, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError>;
}

/// As `path_resolution(7)`.
pub const MAX_SYMLINKS: usize = 40;

/// Where a path leads inside the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The path with every symbolic link followed; components that do not exist are kept as they are.
    pub path: ContainerPath,
    /// The inode, if all of the path exists.
    pub stat: Option<Stat>,
    /// The longest leading part of `path` that exists.
    pub existing: ContainerPath,
    /// Whether the last component of the path asked for was itself a symbolic link.
    pub last_was_link: bool,
}

/// Follows `path` inside `root`, as a process whose root directory it is would; `..` at the top stays there.
pub fn resolve(root: &dyn Lookup, path: &ContainerPath) -> Result<Resolved, LookupError> {
    let mut pending: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
    let asked = path.components().count();
    let mut done = ContainerPath::root();
    let mut existing = ContainerPath::root();
    let mut stat = root.lstat(&done)?;
    let (mut links, mut left_of_asked, mut last_was_link) = (0, asked, false);
    // Components that came from the path itself are the bottom `left_of_asked` of the stack; the rest came from links.
    while let Some(name) = pending.pop() {
        let from_path = pending.len() < left_of_asked;
        if from_path {
            left_of_asked = pending.len();
        }
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                done = done.parent();
                stat = root.lstat(&done)?;
                if stat.is_some() {
                    existing = done.clone();
                }
                continue;
            }
            _ => {}
        }
        let next = done.join(&name).map_err(|e| LookupError::Damaged { path: done.clone(), reason: e.to_string() })?;
        let is_directory = stat.as_ref().is_some_and(|s| s.kind == Kind::Directory);
        let found = if is_directory { root.lstat(&next)? } else { None };
        if let Some(found) = &found
            && found.kind == Kind::Symlink
        {
            links += 1;
            if links > MAX_SYMLINKS {
                return Err(LookupError::TooManyLinks { path: path.clone() });
            }
            if from_path && left_of_asked == 0 {
                last_was_link = true;
            }
            let target = root.read_link(&next)?.unwrap_or_default();
            if target.first() == Some(&b'/') {
                done = ContainerPath::root();
                stat = root.lstat(&done)?;
                existing = done.clone();
            }
            pending.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
            continue;
        }
        if found.is_some() {
            existing = next.clone();
        }
        done = next;
        stat = found;
    }
    Ok(Resolved { path: done, stat, existing, last_was_link })
}

/// Reads the regular file that `path` leads to; `None` when it leads to none.
pub fn read(root: &dyn Lookup, path: &ContainerPath, limit_bytes: u64) -> Result<Option<Vec<u8>>, LookupError> {
    let at = resolve(root, path)?;
    match at.stat {
        Some(_) => root.read_file(&at.path, limit_bytes),
        None => Ok(None),
    }
}

/// Lists the directory that `path` leads to; `None` when it leads to none.
pub fn list(root: &dyn Lookup, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
    let at = resolve(root, path)?;
    match at.stat {
        Some(_) => root.read_dir(&at.path),
        None => Ok(None),
    }
}
