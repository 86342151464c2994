//! Writes a [`Tree`] into an empty directory.
//!
//! One thread makes the entries, several fill the files. Every entry is made by a descriptor of its directory, and must be
//! new: no symbolic link is ever followed. Directories get their mode and time when everything in them is made.
//!
//! Files are what they are in the tree as far as the system lets them be. The rest is remembered in a file beside them, so that
//! it is there again when the directory is packed: of an ordinary user's files their owners, device nodes (which become empty
//! files) and extended attributes; of those of a user namespace's root the latter two, and owners that are not mapped.

use super::BuildError;
use super::builder::Who;
use crate::remembered::{self, Device, FileId, Generation, Journal, Record, generation_of};
use crate::report::cause;
use crate::tree::{Attributes, Body, Content, InodeId, Tree, Xattr};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use starter::paths::HostPath;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

/// Why a tree was not written; paths are those in the tree.
#[derive(Debug)]
pub enum UnpackError {
    /// The content of a file could not be read.
    Read {
        name: String,
        source: io::Error,
    },
    Write {
        doing: &'static str,
        path: Vec<u8>,
        source: io::Error,
    },
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { name, source } => write!(f, "cannot read {name}: {}", cause(source)),
            Self::Write { doing, path, source } => {
                write!(f, "cannot {doing} {} of the image: {}", String::from_utf8_lossy(path), cause(source))
            }
        }
    }
}

impl std::error::Error for UnpackError {}

/// What was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Sockets, which belong to a program that is not there.
    pub left_out: u64,
}

/// Writes all of `tree` into `directory`, which is empty and gets the mode and time of its root.
pub fn unpack(tree: &Tree, directory: &HostPath) -> Result<Unpacked, BuildError> {
    let opened = File::open(directory).map_err(|source| BuildError::Target {
        doing: "open",
        path: directory.clone(),
        source,
    })?;
    const JOBS_WAITING: usize = 64;
    const WORKERS_MAX: usize = 8;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let (sender, receiver) = sync_channel(JOBS_WAITING);
    let receiver = Mutex::new(receiver);
    let failure = Failure::default();
    let who = Who::this_process();
    let made = std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| fill_files(tree, &receiver, &failure));
        }
        // The sender goes away with the walk, and then the workers end.
        let mut maker = Maker {
            tree,
            who,
            jobs: sender,
            failure: &failure,
            linked: HashMap::new(),
            unpacked: Unpacked::default(),
            records: Vec::new(),
        };
        maker.make(opened.into()).map(|()| (maker.unpacked, maker.records))
    });
    match failure.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error.into()),
        None => {
            let (unpacked, records) = made?;
            remember(directory, records)?;
            Ok(unpacked)
        }
    }
}

/// Writes down what the files are in the tree, where the directory can't say it.
fn remember(directory: &HostPath, records: Vec<(FileId, Generation, Record)>) -> Result<(), BuildError> {
    if records.is_empty() {
        return Ok(());
    }
    let path = remembered::of_sandbox(directory.as_path());
    if let Some(parent) = path.as_path().parent() {
        let made = std::fs::create_dir_all(parent);
        made.map_err(|source| BuildError::Target { doing: "make", path: HostPath::new(parent), source })?;
    }
    let mut journal = Journal::open(&path)?;
    for (file, generation, record) in records {
        journal.set(file, generation, record)?;
    }
    Ok(())
}

/// The first thing that went wrong in any thread.
#[derive(Default)]
struct Failure {
    happened: AtomicBool,
    first: Mutex<Option<UnpackError>>,
}

impl Failure {
    fn set(&self, error: UnpackError) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.happened.store(true, Ordering::Release);
    }
}

/// A file that exists, and has to be filled.
struct Job<'t> {
    file: File,
    content: &'t Content,
    mode: Mode,
    time: TimeSpec,
    /// Those that the file itself gets.
    xattrs: &'t [Xattr],
    path: Vec<u8>,
}

fn fill_files(tree: &Tree, jobs: &Mutex<Receiver<Job>>, failure: &Failure) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // After a failure the rest is only taken out of the queue, so that the walk can go on to its end.
        if failure.happened.load(Ordering::Acquire) {
            continue;
        }
        if let Err(error) = fill(tree, job) {
            failure.set(error);
        }
    }
}

fn fill(tree: &Tree, mut job: Job) -> Result<(), UnpackError> {
    const STEP_BYTES: u64 = 1 << 20;
    let read = |source| UnpackError::Read { name: tree.content_name(job.content), source };
    let failed = |source| UnpackError::Write { doing: "write", path: job.path.clone(), source };
    let size_bytes = job.content.size_bytes();
    let mut reader = tree.open(job.content, 0).map_err(read)?;
    let mut buffer = vec![0; size_bytes.min(STEP_BYTES) as usize];
    let mut left = size_bytes;
    while left > 0 {
        let length = left.min(STEP_BYTES) as usize;
        reader.read_exact(&mut buffer[..length]).map_err(read)?;
        job.file.write_all(&buffer[..length]).map_err(failed)?;
        left -= length as u64;
    }
    // Last of all: what is written to a file takes its capabilities away.
    let finished = fchmod(&job.file, job.mode)
        .and_then(|()| set_xattrs(job.file.as_fd(), job.xattrs))
        .and_then(|()| futimens(&job.file, &job.time, &job.time));
    finished.map_err(|errno| failed(errno.into()))
}

fn set_xattrs(file: BorrowedFd<'_>, xattrs: &[Xattr]) -> Result<(), Errno> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    for xattr in xattrs {
        let name = CString::new(&*xattr.name).map_err(|_| Errno::EINVAL)?;
        match starter::sys::set_xattr(&path, &name, &xattr.value, 0) {
            // The file system has none.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
            set => set.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)))?,
        }
    }
    Ok(())
}

struct Maker<'t, 'f> {
    tree: &'t Tree,
    who: Who,
    jobs: SyncSender<Job<'t>>,
    failure: &'f Failure,
    /// The first name of each inode that has several, and its directory.
    linked: HashMap<InodeId, (InodeId, Vec<u8>)>,
    unpacked: Unpacked,
    records: Vec<(FileId, Generation, Record)>,
}

/// A directory whose entries are being made.
struct Open<'t> {
    id: InodeId,
    fd: OwnedFd,
    /// The length of its path.
    path_length: usize,
    children: Box<dyn Iterator<Item = (&'t [u8], InodeId)> + 't>,
}

impl<'t> Maker<'t, '_> {
    fn make(&mut self, directory: OwnedFd) -> Result<(), UnpackError> {
        let mut path = Vec::new();
        let mut stack = vec![self.open(self.tree.root(), directory, 0)];
        while let Some(top) = stack.last_mut() {
            if self.failure.happened.load(Ordering::Acquire) {
                return Ok(());
            }
            path.truncate(top.path_length);
            let Some((name, id)) = top.children.next() else {
                let Some(done) = stack.pop() else { return Ok(()) };
                self.leave(&done, &path)?;
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(name);
            if let Some(fd) = self.entry(&stack, name, id, &path)? {
                let opened = self.open(id, fd, path.len());
                stack.push(opened);
            }
        }
        Ok(())
    }

    fn open(&self, id: InodeId, fd: OwnedFd, path_length: usize) -> Open<'t> {
        Open { id, fd, path_length, children: Box::new(self.tree.children(id)) }
    }

    /// Makes one entry in the last directory of `stack`; a directory is given back open.
    fn entry(
        &mut self,
        stack: &[Open<'t>],
        name: &'t [u8],
        id: InodeId,
        path: &[u8],
    ) -> Result<Option<OwnedFd>, UnpackError> {
        let Some(Open { id: parent, fd: directory, .. }) = stack.last() else { return Ok(None) };
        let inode = self.tree.inode(id);
        let name_os = OsStr::from_bytes(name);
        let failed =
            |doing| move |errno: Errno| UnpackError::Write { doing, path: path.to_vec(), source: errno.into() };
        if inode.names > 1 && !matches!(inode.body, Body::Directory) {
            match self.linked.get(&id) {
                Some((first_parent, first_name)) => {
                    let (first_parent, first_name) = (*first_parent, first_name.clone());
                    let from = self.reopen(stack, first_parent).map_err(failed("open the directory of"))?;
                    let linked = linkat(&from, OsStr::from_bytes(&first_name), directory, name_os, AtFlags::empty());
                    return linked.map(|()| None).map_err(failed("link"));
                }
                None => drop(self.linked.insert(id, (*parent, name.to_vec()))),
            }
        }
        let mode = Mode::from_bits_truncate(inode.mode.into());
        let time = TimeSpec::new(inode.mtime, 0);
        match inode.body {
            Body::Directory => {
                mkdirat(directory, name_os, Mode::S_IRWXU).map_err(failed("make"))?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                self.own(directory.as_fd(), name, id).map_err(failed("give its owner to"))?;
                return openat(directory, name_os, flags, Mode::empty()).map(Some).map_err(failed("open"));
            }
            Body::File(content) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = openat(directory, name_os, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("make"))?;
                self.own(directory.as_fd(), name, id).map_err(failed("give its owner to"))?;
                let xattrs = if self.who == Who::Root { inode.xattrs } else { &[] };
                let job = Job { file: File::from(file), content, mode, time, xattrs, path: path.to_vec() };
                // Fails only when every worker is gone, and then the failure says why.
                let _ = self.jobs.send(job);
                return Ok(None);
            }
            Body::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), directory, name_os).map_err(failed("make"))?;
            }
            Body::Fifo => mknodat(directory, name_os, SFlag::S_IFIFO, mode, 0).map_err(failed("make"))?,
            Body::CharDevice(number) | Body::BlockDevice(number) if self.who == Who::Root => {
                let is_char = matches!(inode.body, Body::CharDevice(_));
                let kind = if is_char { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
                mknodat(directory, name_os, kind, mode, *number).map_err(failed("make"))?;
            }
            Body::CharDevice(_) | Body::BlockDevice(_) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = openat(directory, name_os, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("make"))?;
                fchmod(&file, mode).map_err(failed("make"))?;
            }
            Body::Socket => {
                self.unpacked.left_out += 1;
                self.linked.remove(&id);
                return Ok(None);
            }
        }
        self.own(directory.as_fd(), name, id).map_err(failed("give its owner to"))?;
        if !matches!(inode.body, Body::Symlink(_)) && self.who != Who::User {
            // A change of owner takes bits away.
            fchmodat(directory, name_os, mode, FchmodatFlags::FollowSymlink).map_err(failed("make"))?;
        }
        utimensat(directory, name_os, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(failed("set the time of"))?;
        Ok(None)
    }

    /// Gives the entry that was made to its owners, and notes what it is in the tree where it can't be that.
    fn own(&mut self, directory: BorrowedFd<'_>, name: &[u8], id: InodeId) -> Result<(), Errno> {
        let inode = self.tree.inode(id);
        let owner = |id: u32| (id != 0).then_some(id);
        let (uid, gid) = match self.who {
            Who::User => (owner(inode.uid), owner(inode.gid)),
            Who::Root | Who::RootOfNamespace => {
                let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
                let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
                match fchownat(directory, OsStr::from_bytes(name), Some(uid), Some(gid), flags) {
                    // They are not mapped.
                    Err(Errno::EINVAL) if self.who == Who::RootOfNamespace => (owner(inode.uid), owner(inode.gid)),
                    owned => owned.map(|()| (None, None))?,
                }
            }
        };
        if self.who == Who::Root {
            return Ok(());
        }
        let device = match inode.body {
            Body::CharDevice(number) => Some(Device::Char(*number)),
            Body::BlockDevice(number) => Some(Device::Block(*number)),
            _ => None,
        };
        let xattrs = inode.xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect();
        let record = Record { uid, gid, mode: None, device, xattrs };
        if !record.is_empty() {
            let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
            let stat = fstatat(directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let file = FileId { device: stat.st_dev, inode: stat.st_ino };
            self.records.push((file, generation_of(directory, &name), record));
        }
        Ok(())
    }

    /// Opens a directory that was made before, by the names that lead to it.
    fn reopen(&self, stack: &[Open<'t>], id: InodeId) -> Result<OwnedFd, Errno> {
        // Some directory on the way is still open: at least the root.
        let mut names = Vec::new();
        let mut at = id;
        let open = loop {
            if let Some(open) = stack.iter().find(|open| open.id == at) {
                break open;
            }
            let parent = self.tree.parent(at);
            names.extend(self.tree.children(parent).find(|(_, child)| *child == at).map(|(name, _)| name));
            at = parent;
        };
        let mut fd =
            open.fd.try_clone().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)))?;
        for name in names.iter().rev() {
            // A directory that is done may be closed to its owner.
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            fd = openat(&fd, OsStr::from_bytes(name), flags, Mode::empty())?;
        }
        Ok(fd)
    }

    /// Gives a directory its mode and time: nothing will be made in it any more.
    fn leave(&self, done: &Open, path: &[u8]) -> Result<(), UnpackError> {
        let inode = self.tree.inode(done.id);
        let time = TimeSpec::new(inode.mtime, 0);
        let finish = || {
            // The root directory has no name by which it was made.
            if self.who != Who::User && done.id == self.tree.root() {
                fchown(&done.fd, Some(Uid::from_raw(inode.uid)), Some(Gid::from_raw(inode.gid)))?;
            }
            if self.who == Who::Root {
                set_xattrs(done.fd.as_fd(), inode.xattrs)?;
            }
            fchmod(&done.fd, Mode::from_bits_truncate(inode.mode.into()))?;
            futimens(&done.fd, &time, &time)
        };
        finish().map_err(|errno: Errno| UnpackError::Write {
            doing: "finish",
            path: path.to_vec(),
            source: errno.into(),
        })
    }
}

/// Gives the caller the right to read everything below `directory`, and tells which modes that changed: paths below it,
/// without a leading slash, with what they had.
pub fn make_readable(directory: &HostPath) -> Result<Vec<(Vec<u8>, u16)>, BuildError> {
    let mut changed = Vec::new();
    let mut pending = vec![Vec::new()];
    while let Some(relative) = pending.pop() {
        let path = directory.as_path().join(OsStr::from_bytes(&relative));
        let failed = |source| BuildError::Target { doing: "read", path: HostPath::new(&*path), source };
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            let kind = metadata.file_type();
            if !kind.is_dir() && !kind.is_file() {
                continue;
            }
            let below = match relative.is_empty() {
                true => entry.file_name().as_bytes().to_vec(),
                false => [relative.as_slice(), b"/", entry.file_name().as_bytes()].concat(),
            };
            let needed = if kind.is_dir() { 0o500 } else { 0o400 };
            let mode = metadata.mode() & 0o7777;
            if mode & needed != needed {
                let permissions = std::fs::Permissions::from_mode(mode | needed);
                std::fs::set_permissions(entry.path(), permissions).map_err(failed)?;
                changed.push((below.clone(), mode as u16));
            }
            if kind.is_dir() {
                pending.push(below);
            }
        }
    }
    Ok(changed)
}

/// Gives the tree of such a directory the modes that its files had.
pub fn restore_modes(tree: &mut Tree, changed: &[(Vec<u8>, u16)]) {
    for (path, mode) in changed {
        let id = path.split(|&b| b == b'/').try_fold(tree.root(), |directory, name| tree.child(directory, name));
        if let Some(id) = id {
            let inode = tree.inode(id);
            let attributes = Attributes {
                mode: *mode,
                uid: inode.uid,
                gid: inode.gid,
                mtime: inode.mtime,
                xattrs: inode.xattrs.to_vec(),
            };
            tree.set_attributes(id, attributes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Options, Owners, Xattr, from_directory};

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sifu-unpack-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn attributes(mode: u16) -> Attributes {
        Attributes { mode, uid: 0, gid: 0, mtime: 1_000_000_000, xattrs: Vec::new() }
    }

    fn file(bytes: &[u8]) -> Body {
        Body::File(Content::Bytes(bytes.into()))
    }

    #[test]
    fn a_tree_becomes_a_directory_and_that_the_tree_again() {
        let mut tree = Tree::new(attributes(0o755));
        let root = tree.root();
        let a = tree.insert(root, b"a", attributes(0o555), Body::Directory).unwrap();
        let deep = tree.insert(a, b"deep", attributes(0o1777), Body::Directory).unwrap();
        let x = tree.insert(deep, b"x", attributes(0o4755), file(b"content")).unwrap();
        tree.insert(a, b"secret", attributes(0), file(&[7; 3_000_000])).unwrap();
        tree.insert(root, b"b", attributes(0o777), Body::Symlink((*b"a/deep/x").into())).unwrap();
        tree.insert(root, b"p", attributes(0o640), Body::Fifo).unwrap();
        tree.link(root, b"z", x).unwrap();
        let z = tree.insert(root, b"zz", attributes(0o700), Body::Directory).unwrap();
        tree.link(z, b"again", x).unwrap();
        let expected = tree.dump().unwrap();
        let scratch = Scratch::new("round");
        let unpacked = unpack(&tree, &HostPath::new(&*scratch.0)).unwrap();
        assert_eq!(unpacked, Unpacked::default());
        let path = HostPath::new(&*scratch.0);
        let changed = make_readable(&path).unwrap();
        assert_eq!(changed, [(b"a/secret".to_vec(), 0)]);
        let mut again =
            from_directory(&path, &Options { owners: Owners::AllRoot, remembered: Default::default() }).unwrap().tree;
        restore_modes(&mut again, &changed);
        assert_eq!(again.dump().unwrap(), expected);
    }

    #[test]
    fn what_an_ordinary_user_can_not_make_is_remembered() {
        if nix::unistd::geteuid().is_root() {
            println!("skipped: needs an ordinary user (root makes device nodes, and gives files away)");
            return;
        }
        let mut tree = Tree::new(attributes(0o755));
        let root = tree.root();
        let owned = |mode| Attributes { uid: 33, gid: 34, ..attributes(mode) };
        let capable = || {
            let xattr = Xattr { name: (*b"security.capability").into(), value: (*b"cap").into() };
            Attributes { xattrs: vec![xattr], ..attributes(0o755) }
        };
        tree.insert(root, b".singularity.d", attributes(0o755), Body::Directory).unwrap();
        tree.insert(root, b"null", attributes(0o666), Body::CharDevice(259)).unwrap();
        tree.insert(root, b"www", owned(0o2750), Body::Directory).unwrap();
        tree.insert(root, b"file", owned(0o600), file(b"x")).unwrap();
        tree.insert(root, b"link", owned(0o777), Body::Symlink((*b"file").into())).unwrap();
        tree.insert(root, b"ping", capable(), file(b"y")).unwrap();
        let expected = tree.dump().unwrap();
        tree.insert(root, b"socket", attributes(0o666), Body::Socket).unwrap();
        let scratch = Scratch::new("devices");
        let path = HostPath::new(&*scratch.0);
        assert_eq!(unpack(&tree, &path).unwrap(), Unpacked { left_out: 1 });
        let remembered = std::sync::Arc::new(remembered::read(&remembered::of_sandbox(&scratch.0)).unwrap());
        let again = from_directory(&path, &Options { owners: Owners::AllRoot, remembered }).unwrap().tree;
        let times_aside =
            |dump: &str| dump.lines().filter(|line| !line.starts_with("/.sing")).collect::<Vec<_>>().join("\n");
        assert_eq!(times_aside(&again.dump().unwrap()), times_aside(&expected));
    }

    #[test]
    fn a_name_that_is_taken_is_an_error() {
        let mut tree = Tree::new(attributes(0o755));
        tree.insert(tree.root(), b"taken", attributes(0o644), file(b"new")).unwrap();
        let scratch = Scratch::new("taken");
        std::os::unix::fs::symlink("/etc/passwd", scratch.0.join("taken")).unwrap();
        let error = unpack(&tree, &HostPath::new(&*scratch.0)).unwrap_err();
        assert_eq!(error.to_string(), "cannot make /taken of the image: file exists");
    }
}
