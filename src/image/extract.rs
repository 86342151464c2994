//! Unpacks a SquashFS into a directory, for machines that can mount none, and removes such a tree again.
//!
//! Everything is made by descriptors beneath the target: no symbolic link is ever followed, names were checked when the
//! image was read, and a thing that already exists is an error, so a hostile image can't reach anything else. The caller
//! is an ordinary user: owners are not kept, device nodes and sockets are left out, set-id bits are dropped (they would
//! give the caller's rights away), and the caller can read and change everything.
//!
//! One thread walks the tree and makes the entries, several fill the files. A directory gets its mode and time when
//! the walk leaves it.

use super::sandbox::Sandbox;
use crate::report::Hint;
use crate::squashfs::{Inode, InodeRef, Piece, Reader, SquashfsError};
use crate::tree::Kind;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::stat::{fchmod, fchmodat, fstat, futimens, mkdirat, mknodat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use starter::paths::ContainerPath;
use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// What unpacking will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Content and directories, in whole blocks of 4 KiB.
    pub size_bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Device nodes and sockets, which an ordinary user can't make or has no use for.
    pub left_out: u64,
}

/// Why an image was not unpacked, or a tree not removed. Paths are those in the image.
#[derive(Debug)]
pub enum ExtractError {
    Image(SquashfsError),
    NoSpace {
        needed_bytes: u64,
        free_bytes: u64,
    },
    NoInodes {
        needed: u64,
        free: u64,
    },
    /// A name that can't be used, or that stands twice in its directory.
    Name {
        path: Vec<u8>,
        reason: &'static str,
    },
    /// The file system of the target refused something.
    Target {
        doing: &'static str,
        path: Vec<u8>,
        errno: Errno,
    },
}

impl fmt::Display for ExtractError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => write!(f, "cannot unpack the image: {error}"),
            Self::NoSpace { needed_bytes, free_bytes } => {
                write!(
                    f,
                    "cannot unpack the image: it needs {} MiB, {} MiB are free",
                    mib(*needed_bytes),
                    free_bytes >> 20
                )
            }
            Self::NoInodes { needed, free } => {
                write!(
                    f,
                    "cannot unpack the image: it needs {needed} files and directories, the file system has room for {free}"
                )
            }
            Self::Name { path, reason } => {
                write!(f, "cannot unpack /{} of the image: {reason}", String::from_utf8_lossy(path))
            }
            Self::Target { doing, path, errno } => {
                write!(f, "cannot {doing} /{}: {}", String::from_utf8_lossy(path), errno.desc().to_lowercase())
            }
        }
    }
}

impl std::error::Error for ExtractError {}

impl Hint for ExtractError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Image(error) => return error.hints(),
            Self::NoSpace { .. }
            | Self::NoInodes { .. }
            | Self::Target { errno: Errno::ENOSPC | Errno::EDQUOT, .. } => {
                "Set `TMPDIR` to a directory on a file system with more room."
            }
            Self::Name { .. } => "The image was damaged after it was made: fetch or build it again.",
            Self::Target { .. } => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

impl From<SquashfsError> for ExtractError {
    fn from(error: SquashfsError) -> Self {
        Self::Image(error)
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Walks the whole tree and adds up what it takes. A damaged tree is noticed here.
pub fn survey(reader: &Reader) -> Result<Survey, ExtractError> {
    const BLOCK_BYTES: u64 = 4096;
    let mut survey = Survey::default();
    let mut linked = HashSet::new();
    for visit in reader.walk() {
        let visit = visit?;
        if is_linked(&visit.inode) && !linked.insert(visit.reference) {
            continue;
        }
        survey.inodes += 1;
        let size_bytes = match visit.inode.kind {
            Kind::File => visit.inode.size_bytes,
            Kind::Directory => BLOCK_BYTES,
            _ => 0,
        };
        // Sizes that nobody has are above every file system's free space, whatever they sum up to.
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        survey.size_bytes = survey.size_bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
    }
    Ok(survey)
}

/// Checks that the file system of `target` has room.
pub fn check_space(survey: &Survey, target: BorrowedFd<'_>) -> Result<(), ExtractError> {
    let stat = fstatvfs(target).map_err(|errno| target_error("measure", b"", errno))?;
    // The types differ between architectures.
    let free_bytes = (stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64);
    if survey.size_bytes > free_bytes {
        return Err(ExtractError::NoSpace { needed_bytes: survey.size_bytes, free_bytes });
    }
    // File systems without a table of inodes say 0.
    let free = stat.files_available() as u64;
    if stat.files() > 0 && survey.inodes > free {
        return Err(ExtractError::NoInodes { needed: survey.inodes, free });
    }
    Ok(())
}

/// Unpacks the whole tree into the empty directory `target`, which gets the mode and time of the image's root: keep it
/// below a directory that only the caller may enter. What was made before an error stays, for [`remove`].
pub fn extract(reader: &Reader, target: OwnedFd) -> Result<Extracted, ExtractError> {
    const JOBS_WAITING: usize = 64;
    const WORKERS_MAX: usize = 8;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let (sender, receiver) = sync_channel(JOBS_WAITING);
    let receiver = Mutex::new(receiver);
    let failure = Failure::default();
    let made = std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| fill_files(reader, &receiver, &failure));
        }
        // The sender goes away with the walk, and then the workers end.
        Tree::new(reader, target, sender, &failure).make()
    });
    match failure.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => made,
    }
}

/// Whether an inode may have several names.
fn is_linked(inode: &Inode) -> bool {
    inode.nlink > 1 && inode.kind != Kind::Directory
}

/// The first thing that went wrong in any thread.
#[derive(Default)]
struct Failure {
    happened: AtomicBool,
    first: Mutex<Option<ExtractError>>,
}

impl Failure {
    fn set(&self, error: ExtractError) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.happened.store(true, Ordering::Release);
    }

    fn happened(&self) -> bool {
        self.happened.load(Ordering::Acquire)
    }
}

/// A file that exists, and has to be filled.
struct FileJob {
    file: File,
    path: Vec<u8>,
    reference: InodeRef,
    inode: Inode,
}

fn fill_files(reader: &Reader, jobs: &Mutex<Receiver<FileJob>>, failure: &Failure) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // After a failure the rest is only taken out of the queue, so that the walk can go on to its end.
        if failure.happened() {
            continue;
        }
        if let Err(error) = fill(reader, &job) {
            failure.set(error);
        }
    }
}

fn fill(reader: &Reader, job: &FileJob) -> Result<(), ExtractError> {
    let step = (reader.superblock().block_bytes as usize).max(1 << 20);
    let (mut at, mut pieces) = (0, Vec::new());
    let mut ends_in_hole = false;
    while at < job.inode.size_bytes {
        pieces.clear();
        if reader.pieces(job.reference, &job.inode, at, step, &mut pieces)? == 0 {
            return Err(ExtractError::Name { path: job.path.clone(), reason: "its content ends before its size" });
        }
        for piece in &pieces {
            let length = match piece {
                Piece::Bytes(bytes) => {
                    job.file.write_all_at(bytes, at).map_err(|error| {
                        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO));
                        target_error("write", &job.path, errno)
                    })?;
                    ends_in_hole = false;
                    bytes.len()
                }
                Piece::Zeros(length) => {
                    ends_in_hole = true;
                    *length
                }
            };
            at += length as u64;
        }
    }
    let finish = || {
        if ends_in_hole {
            nix::unistd::ftruncate(&job.file, i64::try_from(at).map_err(|_| Errno::EFBIG)?)?;
        }
        fchmod(&job.file, mode_of(&job.inode))?;
        let time = time_of(&job.inode);
        futimens(&job.file, &time, &time)
    };
    finish().map_err(|errno| target_error("finish", &job.path, errno))
}

/// Permissions with read and write for the owner, and without set-id bits.
fn mode_of(inode: &Inode) -> Mode {
    let kept = u32::from(inode.mode) & 0o1777;
    let owner = if inode.kind == Kind::Directory { 0o700 } else { 0o600 };
    Mode::from_bits_truncate(kept | owner)
}

fn time_of(inode: &Inode) -> TimeSpec {
    TimeSpec::new(i64::from(inode.mtime), 0)
}

fn target_error(doing: &'static str, path: &[u8], errno: Errno) -> ExtractError {
    ExtractError::Target { doing, path: path.to_vec(), errno }
}

/// The tree that is being made.
struct Tree<'a> {
    reader: &'a Reader,
    target: Sandbox,
    jobs: SyncSender<FileJob>,
    failure: &'a Failure,
    /// The directories from the root to where the walk is; all of them still lack their mode and time.
    open: Vec<(Vec<u8>, Inode)>,
    /// The directory that entries are being made in.
    current: Option<(Vec<u8>, OwnedFd)>,
    /// The first name of each inode that has several.
    linked: HashMap<InodeRef, Vec<u8>>,
    linked_bytes: usize,
    extracted: Extracted,
}

/// What the names of linked files may take in memory; beyond it links become copies.
const LINKED_BYTES_MAX: usize = 32 << 20;

impl<'a> Tree<'a> {
    fn new(reader: &'a Reader, target: OwnedFd, jobs: SyncSender<FileJob>, failure: &'a Failure) -> Self {
        Self {
            reader,
            target: Sandbox::new(Arc::new(File::from(target))),
            jobs,
            failure,
            open: Vec::new(),
            current: None,
            linked: HashMap::new(),
            linked_bytes: 0,
            extracted: Extracted::default(),
        }
    }

    fn make(mut self) -> Result<Extracted, ExtractError> {
        for visit in self.reader.walk() {
            if self.failure.happened() {
                break;
            }
            let visit = visit?;
            self.leave_up_to(&visit.path)?;
            if visit.path.is_empty() {
                self.open.push((visit.path, visit.inode));
            } else {
                self.entry(visit.path, visit.reference, visit.inode)?;
            }
        }
        while !self.open.is_empty() {
            self.leave()?;
        }
        Ok(self.extracted)
    }

    /// Leaves the directories that `path` is not in.
    fn leave_up_to(&mut self, path: &[u8]) -> Result<(), ExtractError> {
        while self.open.last().is_some_and(|(directory, _)| !is_below(path, directory)) {
            self.leave()?;
        }
        Ok(())
    }

    /// Gives the innermost directory its mode and time: nothing will be made in it any more.
    fn leave(&mut self) -> Result<(), ExtractError> {
        let Some((path, inode)) = self.open.pop() else { return Ok(()) };
        self.enter(&path)?;
        let Some((_, directory)) = self.current.take() else { return Ok(()) };
        let time = time_of(&inode);
        fchmod(&directory, mode_of(&inode))
            .and_then(|()| futimens(&directory, &time, &time))
            .map_err(|errno| target_error("finish", &path, errno))
    }

    /// Opens the directory at `path` for making entries.
    fn enter(&mut self, path: &[u8]) -> Result<(), ExtractError> {
        if self.current.as_ref().is_none_or(|(current, _)| current != path) {
            let opened = self.open_directory(path).map_err(|errno| target_error("open", path, errno))?;
            self.current = Some((path.to_vec(), opened));
        }
        Ok(())
    }

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let absolute = ContainerPath::parse(&[b"/", path].concat()).map_err(|_| Errno::EINVAL)?;
        self.target.open_directory(&absolute)
    }

    /// Makes one entry; its directory is the innermost open one.
    fn entry(&mut self, path: Vec<u8>, reference: InodeRef, inode: Inode) -> Result<(), ExtractError> {
        let (parent, name) = split(&path);
        let (parent, name) = (parent.to_vec(), name.to_vec());
        self.enter(&parent)?;
        let Some((_, directory)) = &self.current else { return Ok(()) };
        let directory = directory.as_fd();
        let c_name = CString::new(name)
            .map_err(|_| ExtractError::Name { path: path.clone(), reason: "its name holds a NUL byte" })?;
        let failed = |errno| match errno {
            Errno::EEXIST => {
                ExtractError::Name { path: path.clone(), reason: "its name stands twice in the directory" }
            }
            _ => target_error("create", &path, errno),
        };
        if is_linked(&inode)
            && let Some(first) = self.linked.get(&reference)
        {
            match self.link(first, directory, &c_name) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) => return Err(failed(Errno::EEXIST)),
                // No hard links here, or too many: it gets a copy of its own.
                Err(_) => {}
            }
        }
        match inode.kind {
            Kind::Directory => {
                mkdirat(directory, c_name.as_c_str(), Mode::S_IRWXU).map_err(failed)?;
                self.open.push((path, inode));
                return Ok(());
            }
            Kind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file =
                    openat(directory, c_name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
                self.remember(&path, reference, &inode);
                // Fails only when every worker is gone, and then the failure says why.
                let _ = self.jobs.send(FileJob { file: File::from(file), path, reference, inode });
                return Ok(());
            }
            Kind::Symlink => {
                let target = self.reader.symlink_target(&inode)?.unwrap_or_default();
                symlinkat(OsStr::from_bytes(&target), directory, c_name.as_c_str()).map_err(failed)?;
            }
            Kind::Fifo => {
                mknodat(directory, c_name.as_c_str(), SFlag::S_IFIFO, mode_of(&inode), 0).map_err(failed)?;
            }
            Kind::BlockDevice | Kind::CharDevice | Kind::Socket => {
                self.extracted.left_out += 1;
                return Ok(());
            }
        }
        let time = time_of(&inode);
        utimensat(directory, c_name.as_c_str(), &time, &time, UtimensatFlags::NoFollowSymlink).map_err(failed)?;
        self.remember(&path, reference, &inode);
        Ok(())
    }

    fn remember(&mut self, path: &[u8], reference: InodeRef, inode: &Inode) {
        const ENTRY_BYTES: usize = 64;
        if is_linked(inode) && self.linked_bytes < LINKED_BYTES_MAX {
            self.linked_bytes += path.len() + ENTRY_BYTES;
            self.linked.entry(reference).or_insert_with(|| path.to_vec());
        }
    }

    /// Gives the entry at `first` another name.
    fn link(&self, first: &[u8], directory: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
        let (parent, first_name) = split(first);
        let parent = self.open_directory(parent)?;
        linkat(&parent, OsStr::from_bytes(first_name), directory, name.as_c_str(), AtFlags::empty())
    }
}

/// Splits a path without a leading slash into its directory and its name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Whether `path` lies in `directory`, at any depth.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Removes the tree `name` in the directory `parent`, whatever modes its directories have got. Symbolic links are removed
/// and never followed. That it is not there is no error.
pub fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        // EISDIR on Linux, EPERM by POSIX.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let top = Doomed::open(parent, name)?;
    let mut stack = vec![top];
    let mut moved = 0_u64;
    loop {
        let depth = stack.len();
        let Some(directory) = stack.last_mut() else { return Ok(()) };
        let Some(child) = directory.names.pop() else {
            let Some(empty) = stack.pop() else { return Ok(()) };
            let above = stack.last().map_or(parent, |directory| directory.fd.as_fd());
            unlinkat(above, empty.name.as_c_str(), UnlinkatFlags::RemoveDir)?;
            continue;
        };
        match unlinkat(&directory.fd, child.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR | Errno::EPERM) if depth < Doomed::DEPTH_MAX => {
                let opened = Doomed::open(directory.fd.as_fd(), OsStr::from_bytes(child.as_bytes()))?;
                stack.push(opened);
            }
            // Deeper than descriptors last: it goes on from the top, under another name.
            Err(Errno::EISDIR | Errno::EPERM) => {
                moved += 1;
                let new_name = CString::new(format!(".removed-{}-{moved}", std::process::id())).unwrap_or_default();
                // A directory that changes its parent is written to: its `..` does.
                fchmodat(&stack[depth - 1].fd, child.as_c_str(), Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
                renameat(&stack[depth - 1].fd, child.as_c_str(), &stack[0].fd, new_name.as_c_str())?;
                stack[0].names.push(new_name);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A directory whose entries are being removed.
struct Doomed {
    fd: OwnedFd,
    name: CString,
    /// What is left in it.
    names: Vec<CString>,
}

impl Doomed {
    /// Directories that are open at a time.
    const DEPTH_MAX: usize = 100;

    fn open(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Self> {
        let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match openat(parent, name.as_c_str(), flags, Mode::empty()) {
            Err(Errno::EACCES) => {
                fchmodat(parent, name.as_c_str(), Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
                openat(parent, name.as_c_str(), flags, Mode::empty())?
            }
            opened => opened?,
        };
        if fstat(&fd)?.st_mode & 0o700 != 0o700 {
            fchmod(&fd, Mode::S_IRWXU)?;
        }
        let mut listing = nix::dir::Dir::from_fd(fd.try_clone()?)?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        Ok(Self { fd, name, names })
    }
}
