//! The tree of a directory on the host: the one part of the room that opens files.
//!
//! Every directory is opened below the first by descriptor, and no symbolic link is followed: what moves while the
//! walk runs can make it fail, but can't lead it out of the directory. Contents are opened the same way when they are
//! read, and a file that is no longer what the walk saw is an error.

use super::{Attributes, Body, Content, InodeId, Source, Tree, TreeError, Xattr};
use crate::remembered::{Device, FileId, IN_SANDBOX, Record, Remembered, generation_of};
use crate::report::{Hint, cause};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Whence, lseek};
use starter::paths::HostPath;
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whose the files of the tree are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// User and group 0 own everything.
    AllRoot,
    /// As the directory has them.
    AsFound,
}

/// How a directory becomes a tree.
#[derive(Clone, Debug)]
pub struct Options {
    pub owners: Owners,
    /// Owners, modes, devices and extended attributes that replace what the directory has.
    pub remembered: Arc<Remembered>,
}

/// Why a directory has no tree.
#[derive(Debug)]
pub enum WalkError {
    /// A system call failed for the file at `path`.
    File {
        path: HostPath,
        doing: &'static str,
        source: io::Error,
    },
    NotADirectory {
        path: HostPath,
    },
    Tree {
        path: HostPath,
        source: TreeError,
    },
}

impl fmt::Display for WalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, doing, source } => write!(f, "cannot {doing} {path}: {}", cause(source)),
            Self::NotADirectory { path } => write!(f, "{path} is not a directory"),
            Self::Tree { path, source } => write!(f, "cannot pack {path}: {source}"),
        }
    }
}

impl std::error::Error for WalkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::Tree { source, .. } => Some(source),
            Self::NotADirectory { .. } => None,
        }
    }
}

impl Hint for WalkError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                vec!["An image holds everything below its directory: make this file readable, or move it away.".into()]
            }
            _ => Vec::new(),
        }
    }
}

/// A directory's tree, and what it could not hold.
pub struct Walked {
    pub tree: Tree,
    /// Names of extended attributes that the packer leaves out, each once, with the first file that has it.
    pub skipped_xattrs: Vec<(String, HostPath)>,
    /// Users who own something in the directory, as the system shows them, each once: first that of the directory itself.
    pub owners: Vec<u32>,
}

/// The namespaces of extended attributes that an image can hold.
const XATTR_NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Walks `path` and everything below it, across mounts.
pub fn from_directory(path: &HostPath, options: &Options) -> Result<Walked, WalkError> {
    let failed = |doing, source: Errno| WalkError::File { path: path.clone(), doing, source: source.into() };
    let root = nix::fcntl::open(path.as_path(), DIRECTORY_FLAGS.difference(OFlag::O_NOFOLLOW), Mode::empty()).map_err(
        |e| match e {
            Errno::ENOTDIR => WalkError::NotADirectory { path: path.clone() },
            e => failed("open", e),
        },
    )?;
    let stat = fstat(&root).map_err(|e| failed("examine", e))?;
    let directory = Directory {
        root: Arc::new(root),
        path: path.clone(),
        components: Vec::new(),
        files: Vec::new(),
        names: Vec::new(),
        lacks_openat2: AtomicBool::new(false),
    };
    let mut walker = Walker {
        options: options.clone(),
        tree: Tree::new(Attributes { mode: 0, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }),
        directory,
        hard_links: HashMap::new(),
        skipped_xattrs: Vec::new(),
        owners: vec![stat.st_uid],
        lacks_listxattrat: false,
    };
    let root = walker.directory.root.clone();
    let (lacks, skipped) = (&mut walker.lacks_listxattrat, &mut walker.skipped_xattrs);
    let xattrs = read_xattrs(root.as_fd(), c".", || path.clone(), lacks, skipped)?;
    let record = walker.record(walker.directory.root.as_fd(), c"", &stat).cloned();
    walker.tree = Tree::new(walker.attributes(&stat, xattrs, record.as_ref()));
    walker.walk()
}

const DIRECTORY_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
// A file can have become a FIFO since it was looked at: never wait for its writer.
const FILE_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

struct Walker {
    options: Options,
    tree: Tree,
    directory: Directory,
    /// Inodes with several names, by device and inode number.
    hard_links: HashMap<(u64, u64), InodeId>,
    skipped_xattrs: Vec<(String, HostPath)>,
    owners: Vec<u32>,
    /// The kernel can't list the attributes of a name in a directory.
    lacks_listxattrat: bool,
}

impl Walker {
    fn walk(mut self) -> Result<Walked, WalkError> {
        let source = self.tree.add_source(Arc::new(Unwalked)).map_err(|e| self.tree_error(ROOT, e))?;
        // The order of directories doesn't matter, since entries are sorted by name; last in, first out keeps the
        // list short.
        let mut pending = vec![(self.tree.root(), ROOT)];
        while let Some((into, component)) = pending.pop() {
            let fd =
                self.directory.open_directory(component).map_err(|e| self.error(component, b"", "open", e.into()))?;
            for name in self.sorted_names(&fd, component)? {
                self.entry(&fd, component, into, &name, source, &mut pending)?;
            }
        }
        let Self { mut tree, directory, skipped_xattrs, owners, .. } = self;
        tree.sources[usize::from(source.0)] = Arc::new(directory);
        Ok(Walked { tree, skipped_xattrs, owners })
    }

    fn entry(
        &mut self,
        fd: &OwnedFd,
        component: u32,
        into: InodeId,
        name: &[u8],
        source: super::SourceId,
        pending: &mut Vec<(InodeId, u32)>,
    ) -> Result<(), WalkError> {
        if self.is_record_of_sandbox(component, name) {
            return Ok(());
        }
        let os_name = OsStr::from_bytes(name);
        let stat = fstatat(fd, os_name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|e| self.error(component, name, "examine", e.into()))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if !self.owners.contains(&stat.st_uid) {
            self.owners.push(stat.st_uid);
        }
        let linked = kind != SFlag::S_IFDIR && stat.st_nlink > 1;
        if linked && let Some(&known) = self.hard_links.get(&(stat.st_dev, stat.st_ino)) {
            return self.tree.link(into, name, known).map_err(|e| self.tree_error(component, e));
        }
        let c_name = CString::new(name).map_err(|error| self.error(component, name, "examine", error.into()))?;
        let record = self.record(fd.as_fd(), &c_name, &stat).cloned();
        let body = match kind {
            SFlag::S_IFDIR => Body::Directory,
            SFlag::S_IFREG if stat.st_size == 0 => Body::File(Content::Bytes(Arc::new([]))),
            SFlag::S_IFREG => {
                let key = self.directory.files.len() as u64;
                let mut origin = self.directory.keep(component, name).map_err(|e| self.tree_error(component, e))?;
                origin.has_holes = stat.st_blocks.saturating_mul(STAT_BLOCK_BYTES) < stat.st_size;
                self.directory.files.push(origin);
                Body::File(Content::Stored { source, key, size_bytes: stat.st_size.unsigned_abs() })
            }
            SFlag::S_IFLNK => {
                let target =
                    readlinkat(fd, os_name).map_err(|e| self.error(component, name, "read the link", e.into()))?;
                Body::Symlink(target.into_vec().into())
            }
            SFlag::S_IFBLK => Body::BlockDevice(stat.st_rdev),
            SFlag::S_IFCHR => Body::CharDevice(stat.st_rdev),
            SFlag::S_IFIFO => Body::Fifo,
            _ => Body::Socket,
        };
        // A device node that is only remembered is an empty file.
        let body = match record.as_ref().and_then(|record| record.device) {
            Some(Device::Char(number)) if kind == SFlag::S_IFREG => Body::CharDevice(number),
            Some(Device::Block(number)) if kind == SFlag::S_IFREG => Body::BlockDevice(number),
            _ => body,
        };
        let is_directory = matches!(body, Body::Directory);
        let xattrs = {
            let directory = &self.directory;
            let host_path = || directory.host_path(component, name);
            read_xattrs(fd.as_fd(), &c_name, host_path, &mut self.lacks_listxattrat, &mut self.skipped_xattrs)?
        };
        let attributes = self.attributes(&stat, xattrs, record.as_ref());
        let id = self.tree.insert(into, name, attributes, body).map_err(|e| self.tree_error(component, e))?;
        if linked {
            self.hard_links.insert((stat.st_dev, stat.st_ino), id);
        }
        if is_directory {
            let origin = self.directory.keep(component, name).map_err(|e| self.tree_error(component, e))?;
            self.directory.components.push(origin);
            pending.push((id, self.directory.components.len() as u32));
        }
        Ok(())
    }

    fn sorted_names(&self, fd: &OwnedFd, component: u32) -> Result<Vec<Vec<u8>>, WalkError> {
        let listing = |e: Errno| self.error(component, b"", "list", e.into());
        let mut dir = fd
            .try_clone()
            .map_err(|e| self.error(component, b"", "list", e))
            .and_then(|fd| Dir::from_fd(fd).map_err(listing))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(listing)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What is remembered of `name` in `directory` (of `directory` itself if `name` is empty).
    fn record(&self, directory: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> Option<&Record> {
        let remembered = &self.options.remembered;
        let file = FileId { device: stat.st_dev, inode: stat.st_ino };
        // Most files have none, and asking for the generation is a system call.
        if remembered.may_know(file) { remembered.get(file, generation_of(directory, name)) } else { None }
    }

    /// Whether this is the file in which a sandbox remembers: it tells of files of this directory alone.
    fn is_record_of_sandbox(&self, component: u32, name: &[u8]) -> bool {
        IN_SANDBOX.split_once('/').is_some_and(|(folder, file)| {
            name == file.as_bytes() && self.directory.names_to(component) == [folder.as_bytes()]
        })
    }

    fn attributes(&self, stat: &FileStat, mut xattrs: Vec<Xattr>, record: Option<&Record>) -> Attributes {
        let (mut uid, mut gid) = match self.options.owners {
            Owners::AllRoot => (0, 0),
            Owners::AsFound => (stat.st_uid, stat.st_gid),
        };
        let mut mode = (stat.st_mode & 0o7777) as u16;
        if let Some(record) = record {
            uid = record.uid.unwrap_or(uid);
            gid = record.gid.unwrap_or(gid);
            mode = record.mode.unwrap_or(mode);
            let known = record.xattrs.iter().filter(|(name, _)| can_be_held(name));
            for (name, value) in known {
                xattrs.retain(|xattr| xattr.name != *name);
                xattrs.push(Xattr { name: name.clone(), value: value.clone() });
            }
        }
        Attributes { mode, uid, gid, mtime: stat.st_mtime, xattrs }
    }

    fn error(&self, component: u32, name: &[u8], doing: &'static str, source: io::Error) -> WalkError {
        WalkError::File { path: self.directory.host_path(component, name), doing, source }
    }

    fn tree_error(&self, component: u32, source: TreeError) -> WalkError {
        WalkError::Tree { path: self.directory.host_path(component, b""), source }
    }
}

/// Whether an image can hold an extended attribute of this name.
fn can_be_held(xattr: &[u8]) -> bool {
    XATTR_NAMESPACES.iter().any(|namespace| xattr.starts_with(namespace))
}

/// The extended attributes that an image can hold, of the file called `name` in `directory` itself.
fn read_xattrs(
    directory: BorrowedFd<'_>,
    name: &CStr,
    host_path: impl Fn() -> HostPath,
    lacks_listxattrat: &mut bool,
    skipped: &mut Vec<(String, HostPath)>,
) -> Result<Vec<Xattr>, WalkError> {
    let failed = |source| WalkError::File { path: host_path(), doing: "read the extended attributes of", source };
    let path = || proc_path(directory, name.to_bytes());
    let mut listed = None;
    if !*lacks_listxattrat {
        // The way over /proc costs as much as everything else that is asked of a file.
        match starter::sys::list_xattrs_at(directory, name) {
            // Linux 6.12 and older, old sandboxes.
            Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::ENOSYS | Errno::EPERM)) => {
                *lacks_listxattrat = true;
            }
            answer => listed = Some(answer),
        }
    }
    let names = match listed.unwrap_or_else(|| starter::sys::list_xattrs(&path())) {
        Ok(names) => names,
        // The file system has none.
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut xattrs = Vec::new();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        if !can_be_held(name) {
            let text = String::from_utf8_lossy(name).into_owned();
            if !skipped.iter().any(|(known, _)| *known == text) {
                skipped.push((text, host_path()));
            }
            continue;
        }
        let c_name = CString::new(name).map_err(|e| failed(e.into()))?;
        match starter::sys::get_xattr(&path(), &c_name) {
            Ok(value) => xattrs.push(Xattr { name: name.into(), value: value.into() }),
            // Gone since it was listed.
            Err(e) if e.raw_os_error() == Some(Errno::ENODATA as i32) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(xattrs)
}

/// A name for `name` in the directory `fd` that calls which take no descriptor can use.
fn proc_path(fd: BorrowedFd<'_>, name: &[u8]) -> std::path::PathBuf {
    Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())).join(OsStr::from_bytes(name))
}

/// Stands in for the directory while it is still being walked: nothing is read before the walk is done.
struct Unwalked;

impl Source for Unwalked {
    fn open(&self, _: u64, _: u64) -> io::Result<Box<dyn Read + '_>> {
        Err(io::Error::other("the directory is still being walked"))
    }
    fn name(&self, _: u64) -> String {
        "a directory".to_owned()
    }
}

/// Number of the root in [`Directory::components`], counted from one.
const ROOT: u32 = 0;

/// A name in a directory: `parent` is 0 for the root, `n` for `components[n - 1]`.
#[derive(Clone, Copy)]
struct Origin {
    parent: u32,
    name_start: u32,
    name_length: u8,
    /// A file that takes less room than it is long: it has holes, or its file system compresses.
    has_holes: bool,
}

/// What `st_blocks` counts, in bytes, whatever the file system's blocks are.
const STAT_BLOCK_BYTES: i64 = 512;

/// Where the files of a walked directory are: each directory and file as its parent and its name.
struct Directory {
    root: Arc<OwnedFd>,
    path: HostPath,
    components: Vec<Origin>,
    files: Vec<Origin>,
    names: Vec<u8>,
    lacks_openat2: AtomicBool,
}

/// Longest path given to one system call, below the kernel's `PATH_MAX`.
const MAX_PATH_BYTES: usize = 4000;

impl Directory {
    fn keep(&mut self, parent: u32, name: &[u8]) -> Result<Origin, TreeError> {
        let name_start = u32::try_from(self.names.len()).map_err(|_| TreeError::TooLarge)?;
        let name_length = u8::try_from(name.len()).map_err(|_| TreeError::BadName { name: name.to_vec() })?;
        self.names.extend_from_slice(name);
        Ok(Origin { parent, name_start, name_length, has_holes: false })
    }

    fn name_of(&self, origin: Origin) -> &[u8] {
        &self.names[origin.name_start as usize..][..usize::from(origin.name_length)]
    }

    /// The names that lead from the root to the directory `component`.
    fn names_to(&self, mut component: u32) -> Vec<&[u8]> {
        let mut names = Vec::new();
        while component != ROOT {
            let origin = self.components[component as usize - 1];
            names.push(self.name_of(origin));
            component = origin.parent;
        }
        names.reverse();
        names
    }

    fn host_path(&self, component: u32, name: &[u8]) -> HostPath {
        let mut path = self.path.as_path().to_owned();
        path.extend(self.names_to(component).into_iter().map(OsStr::from_bytes));
        if !name.is_empty() {
            path.push(OsStr::from_bytes(name));
        }
        HostPath::new(path)
    }

    fn open_directory(&self, component: u32) -> Result<OwnedFd, Errno> {
        if component == ROOT {
            return openat(&*self.root, ".", DIRECTORY_FLAGS, Mode::empty());
        }
        self.open_below(&self.names_to(component), DIRECTORY_FLAGS)
    }

    /// Opens what `names` lead to, following no symbolic link anywhere.
    fn open_below(&self, names: &[&[u8]], flags: OFlag) -> Result<OwnedFd, Errno> {
        let mut base: Option<OwnedFd> = None;
        let mut left = names;
        loop {
            // As many names as fit one call; one alone where openat2 is not there (Linux 5.5 and older, old sandboxes).
            let mut path = Vec::new();
            let mut taken = 0;
            for name in left {
                let alone = self.lacks_openat2.load(Ordering::Relaxed) && taken == 1;
                if alone || path.len() + name.len() + 1 > MAX_PATH_BYTES {
                    break;
                }
                if taken > 0 {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                taken += 1;
            }
            let last = taken == left.len();
            let flags = if last { flags } else { DIRECTORY_FLAGS };
            let fd = base.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let os_path = OsStr::from_bytes(&path);
            let opened = if taken == 1 {
                openat(fd, os_path, flags, Mode::empty())
            } else {
                let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
                match openat2(fd, os_path, OpenHow::new().flags(flags).resolve(resolve)) {
                    Err(Errno::ENOSYS | Errno::EPERM) => {
                        self.lacks_openat2.store(true, Ordering::Relaxed);
                        continue;
                    }
                    answer => answer,
                }
            };
            if last {
                return opened;
            }
            base = Some(opened?);
            left = &left[taken..];
        }
    }

    fn open_file(&self, origin: Origin) -> io::Result<File> {
        let mut names = self.names_to(origin.parent);
        names.push(self.name_of(origin));
        Ok(File::from(self.open_below(&names, FILE_FLAGS)?))
    }

    fn origin(&self, key: u64) -> Option<Origin> {
        self.files.get(usize::try_from(key).ok()?).copied()
    }
}

/// A file that is read from a place of its own, so that readers of one file don't disturb one another.
struct At {
    file: File,
    offset_bytes: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset_bytes)?;
        self.offset_bytes += read as u64;
        Ok(read)
    }
}

impl Source for Directory {
    fn open(&self, key: u64, offset_bytes: u64) -> io::Result<Box<dyn Read + '_>> {
        let origin = self.origin(key).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Box::new(At { file: self.open_file(origin)?, offset_bytes }))
    }

    fn first_data(&self, key: u64, range: Range<u64>) -> io::Result<u64> {
        let origin = self.origin(key).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if !origin.has_holes {
            return Ok(range.start);
        }
        let file = self.open_file(origin)?;
        if file.metadata()?.len() < range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = i64::try_from(range.start).map_err(io::Error::other)?;
        match lseek(&file, start, Whence::SeekData) {
            Ok(at) => Ok(at.unsigned_abs().min(range.end)),
            // Nothing but a hole is left.
            Err(Errno::ENXIO) => Ok(range.end),
            // The file system can't tell.
            Err(_) => Ok(range.start),
        }
    }

    fn name(&self, key: u64) -> String {
        match self.origin(key) {
            Some(origin) => self.host_path(origin.parent, self.name_of(origin)).to_string(),
            None => self.path.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remembered::Generation;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// A directory of this test's own, removed at its end.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sifu-walk-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_remembered_replaces_what_was_found() {
        let scratch = Scratch::new("remembered");
        for name in ["file", "node", "other"] {
            std::fs::write(scratch.0.join(name), "").unwrap();
        }
        std::fs::set_permissions(scratch.0.join("file"), std::fs::Permissions::from_mode(0o750)).unwrap();
        std::fs::set_permissions(scratch.0.join("node"), std::fs::Permissions::from_mode(0o666)).unwrap();
        std::fs::set_permissions(scratch.0.join("other"), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::create_dir(scratch.0.join(".singularity.d")).unwrap();
        std::fs::write(scratch.0.join(IN_SANDBOX), "").unwrap();
        let directory = File::open(&scratch.0).unwrap();
        let mut remembered = Remembered::default();
        let mut know = |name: &CStr, generation: Option<Generation>, record| {
            let metadata = std::fs::metadata(scratch.0.join(name.to_str().unwrap())).unwrap();
            let file = FileId { device: metadata.dev(), inode: metadata.ino() };
            remembered.set(file, generation.unwrap_or_else(|| generation_of(directory.as_fd(), name)), record);
        };
        let xattrs = [("security.capability", "cap"), ("system.posix_acl_access", "acl"), ("user.a", "b")];
        let xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())).collect();
        let owned = Record { uid: Some(33), gid: Some(34), mode: Some(0o2755), device: None, xattrs };
        know(c"file", None, owned.clone());
        let device = Some(Device::Char(0x103));
        know(c"node", None, Record { uid: Some(5), device, ..Record::default() });
        // Of a file that had the number before.
        know(c"other", Some(Generation(1)), owned);
        let options = Options { owners: Owners::AllRoot, remembered: Arc::new(remembered) };
        let tree = from_directory(&HostPath::new(&scratch.0), &options).unwrap().tree;
        let at = |name: &str| tree.inode(tree.child(tree.root(), name.as_bytes()).unwrap());
        let file = at("file");
        assert_eq!((file.uid, file.gid, file.mode), (33, 34, 0o2755));
        let names: Vec<_> = file.xattrs.iter().map(|xattr| String::from_utf8_lossy(&xattr.name)).collect();
        assert_eq!(names, ["security.capability", "user.a"]);
        let node = at("node");
        assert_eq!((node.uid, node.gid, node.mode), (5, 0, 0o666));
        assert!(matches!(node.body, Body::CharDevice(0x103)), "{node:?}");
        let other = at("other");
        assert_eq!((other.uid, other.gid, other.mode), (0, 0, 0o644));
        assert_eq!(tree.dump().unwrap().lines().count(), 5, "the record itself is left out");
    }

    fn walk(path: &Path) -> Result<Walked, WalkError> {
        from_directory(&HostPath::new(path), &Options { owners: Owners::AllRoot, remembered: Arc::default() })
    }

    fn kinds(path: &Path) -> Vec<String> {
        let dump = walk(path).unwrap().tree.dump().unwrap();
        dump.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn links_are_kept_and_not_followed() {
        let scratch = Scratch::new("links");
        std::fs::write(scratch.0.join("file"), "content").unwrap();
        std::fs::hard_link(scratch.0.join("file"), scratch.0.join("again")).unwrap();
        symlink("/etc", scratch.0.join("outside")).unwrap();
        std::fs::create_dir(scratch.0.join("dir")).unwrap();
        symlink("..", scratch.0.join("dir/loop")).unwrap();
        let expected =
            ["/ directory", "/again file", "/dir directory", "/dir/loop symlink", "/file link", "/outside symlink"];
        assert_eq!(kinds(&scratch.0), expected);
    }

    #[test]
    fn paths_longer_than_one_system_call_takes_are_walked_and_read() {
        let scratch = Scratch::new("deep");
        let name = "d".repeat(250);
        let mut fd = nix::fcntl::open(&scratch.0, DIRECTORY_FLAGS, Mode::empty()).unwrap();
        for _ in 0..40 {
            nix::sys::stat::mkdirat(&fd, name.as_str(), Mode::from_bits_truncate(0o755)).unwrap();
            fd = openat(&fd, name.as_str(), DIRECTORY_FLAGS, Mode::empty()).unwrap();
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
        let file = openat(&fd, "leaf", flags, Mode::from_bits_truncate(0o644)).unwrap();
        nix::unistd::write(&file, b"deep").unwrap();
        let tree = walk(&scratch.0).unwrap().tree;
        let dump = tree.dump().unwrap();
        assert_eq!(dump.lines().count(), 42);
        assert!(dump.lines().last().unwrap().contains("/leaf file 0644 0:0"), "{dump}");
    }

    #[test]
    fn a_name_that_is_no_directory_is_an_error_that_says_so() {
        let scratch = Scratch::new("file");
        let path = scratch.0.join("file");
        std::fs::write(&path, "").unwrap();
        let error = walk(&path).err().unwrap().to_string();
        assert_eq!(error, format!("{} is not a directory", path.display()));
    }

    #[test]
    fn a_directory_that_may_not_be_read_is_named() {
        if nix::unistd::geteuid().is_root() {
            println!("skipped: needs an ordinary user (root may read everything)");
            return;
        }
        let scratch = Scratch::new("denied");
        let path = scratch.0.join("closed");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        let error = walk(&scratch.0).err().unwrap();
        assert!(error.to_string().contains("closed"), "{error}");
        assert_eq!(error.hints().len(), 1);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn holes_of_a_file_are_known_and_a_file_that_was_cut_is_noticed() {
        let scratch = Scratch::new("sparse");
        let path = scratch.0.join("sparse");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"data", 4 << 20).unwrap();
        drop(file);
        let tree = walk(&scratch.0).unwrap().tree;
        let Body::File(content) = tree.inode(tree.child(tree.root(), b"sparse").unwrap()).body else {
            panic!("no file")
        };
        let first = |start: u64| tree.first_data(content, start..8 << 20);
        if first(0).unwrap() == 0 {
            println!("skipped: needs a file system that tells where holes are");
            return;
        }
        assert_eq!([first(0).unwrap(), first(4 << 20).unwrap(), first(6 << 20).unwrap()], [4 << 20, 4 << 20, 8 << 20]);
        File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(first(0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_that_became_a_symbolic_link_is_not_read() {
        let scratch = Scratch::new("swap");
        let path = scratch.0.join("file");
        std::fs::write(&path, "content").unwrap();
        let tree = walk(&scratch.0).unwrap().tree;
        std::fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        assert_eq!(tree.dump().unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
    }
}
