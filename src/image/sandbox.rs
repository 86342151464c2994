//! A directory as a root file system: looked up by descriptors, never left.
//!
//! Every path is opened beneath the directory's descriptor with `openat2(2)`, which refuses symbolic links and `..`
//! on the way, so a directory that somebody exchanges for a link meanwhile leads nowhere. Kernels before 5.6, and
//! filters that don't know the call, get one `openat(O_NOFOLLOW)` per component, which comes to the same.

use crate::tree::lookup::{Entry, Kind, Lookup, LookupError, Stat};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use starter::paths::ContainerPath;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A sandbox directory.
#[derive(Debug)]
pub struct Sandbox {
    directory: Arc<File>,
    /// Whether `openat2` was refused once, and is not asked again.
    without_openat2: AtomicBool,
}

impl Sandbox {
    /// Wraps a descriptor of a directory; `O_PATH` is enough.
    pub fn new(directory: Arc<File>) -> Self {
        Self { directory, without_openat2: AtomicBool::new(false) }
    }

    /// Opens the directory at `path` for reading.
    pub(super) fn open_directory(&self, path: &ContainerPath) -> Result<OwnedFd, Errno> {
        self.open_beneath(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Opens what is at `path`, if there is anything.
    fn open(&self, path: &ContainerPath, flags: OFlag) -> Result<Option<OwnedFd>, LookupError> {
        match self.open_beneath(path, flags) {
            Ok(fd) => Ok(Some(fd)),
            // ELOOP: a symbolic link where the caller had seen a directory, or as the last component of an open.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(lookup_error(path, errno)),
        }
    }

    /// Opens `path` beneath the directory; no component is followed.
    fn open_beneath(&self, path: &ContainerPath, flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let relative = path.relative();
        let mut opened = Err(Errno::ENOSYS);
        if !self.without_openat2.load(Ordering::Relaxed) {
            let resolve =
                ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
            // EAGAIN: a rename happened meanwhile and the kernel could not tell whether the path stayed beneath.
            for _ in 0..8 {
                opened = openat2(&self.directory, relative, OpenHow::new().flags(flags).resolve(resolve));
                if !matches!(opened, Err(Errno::EAGAIN)) {
                    break;
                }
            }
        }
        if matches!(opened, Err(Errno::ENOSYS | Errno::EPERM)) {
            opened = open_by_components(self.directory.as_fd(), relative, flags);
            if opened.is_ok() {
                self.without_openat2.store(true, Ordering::Relaxed);
            }
        }
        opened
    }

    /// Opens what `path` names without any access to its content.
    fn open_path(&self, path: &ContainerPath) -> Result<Option<(OwnedFd, FileStat)>, LookupError> {
        let Some(fd) = self.open(path, OFlag::O_PATH)? else { return Ok(None) };
        let stat = fstat(&fd).map_err(|errno| lookup_error(path, errno))?;
        Ok(Some((fd, stat)))
    }
}

/// Opens `relative` one component at a time. The paths are normalized: no `..`, and `.` only alone.
fn open_by_components(directory: BorrowedFd<'_>, relative: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let mut at: Option<OwnedFd> = None;
    let mut names = relative.iter().peekable();
    while let Some(name) = names.next() {
        let parent = at.as_ref().map_or(directory, |fd| fd.as_fd());
        if names.peek().is_none() {
            return openat(parent, name, flags, Mode::empty());
        }
        let on_the_way = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        at = Some(openat(parent, name, on_the_way, Mode::empty())?);
    }
    Err(Errno::ENOENT)
}

impl Lookup for Sandbox {
    fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError> {
        Ok(self.open_path(path)?.map(|(_, stat)| stat_of(&stat)))
    }

    fn read_link(&self, path: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
        match self.open_path(path)? {
            Some((fd, stat)) if kind_of(&stat) == Kind::Symlink => {
                let target = readlinkat(&fd, "").map_err(|errno| lookup_error(path, errno))?;
                Ok(Some(target.into_vec()))
            }
            _ => Ok(None),
        }
    }

    fn read_file(&self, path: &ContainerPath, limit_bytes: u64) -> Result<Option<Vec<u8>>, LookupError> {
        // Looked at before it is opened: opening a device or a fifo can do something.
        match self.open_path(path)? {
            Some((_, stat)) if kind_of(&stat) == Kind::File => {}
            _ => return Ok(None),
        }
        let Some(fd) = self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)? else {
            return Ok(None);
        };
        let stat = fstat(&fd).map_err(|errno| lookup_error(path, errno))?;
        if kind_of(&stat) != Kind::File {
            return Ok(None);
        }
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let mut content = Vec::new();
        if size_bytes <= limit_bytes {
            // The file may have grown since: one byte more than the limit shows it.
            let mut limited = File::from(fd).take(limit_bytes.saturating_add(1));
            limited
                .read_to_end(&mut content)
                .map_err(|error| LookupError::Damaged { path: path.clone(), reason: error.to_string() })?;
        }
        let size_bytes = size_bytes.max(content.len() as u64);
        if size_bytes > limit_bytes {
            return Err(LookupError::TooLarge { path: path.clone(), size_bytes, limit_bytes });
        }
        Ok(Some(content))
    }

    fn read_dir(&self, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
        let Some(fd) = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)? else { return Ok(None) };
        let mut directory = nix::dir::Dir::from_fd(fd).map_err(|errno| lookup_error(path, errno))?;
        let mut entries = Vec::new();
        for entry in directory.iter() {
            let entry = entry.map_err(|errno| lookup_error(path, errno))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let kind = match entry.file_type() {
                Some(of) => kind_of_entry(of),
                // Some file systems don't say; the inode does.
                None => {
                    let child = path
                        .join(name)
                        .map_err(|error| LookupError::Damaged { path: path.clone(), reason: error.to_string() })?;
                    match self.lstat(&child)? {
                        Some(stat) => stat.kind,
                        None => continue,
                    }
                }
            };
            entries.push(Entry { name: name.to_vec(), kind });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(entries))
    }
}

fn lookup_error(path: &ContainerPath, errno: Errno) -> LookupError {
    match errno {
        Errno::EACCES | Errno::EPERM => LookupError::Denied { path: path.clone() },
        _ => LookupError::Damaged { path: path.clone(), reason: errno.desc().to_lowercase() },
    }
}

// The numeric types of `stat` differ between architectures; where they are the same, the conversion is none.
#[allow(clippy::unnecessary_cast)]
fn stat_of(stat: &FileStat) -> Stat {
    Stat {
        kind: kind_of(stat),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mtime: stat.st_mtime as i64,
        inode: stat.st_ino as u64,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        rdev: stat.st_rdev as u64,
    }
}

fn kind_of(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Kind::Directory,
        SFlag::S_IFLNK => Kind::Symlink,
        SFlag::S_IFBLK => Kind::BlockDevice,
        SFlag::S_IFCHR => Kind::CharDevice,
        SFlag::S_IFIFO => Kind::Fifo,
        SFlag::S_IFSOCK => Kind::Socket,
        _ => Kind::File,
    }
}

fn kind_of_entry(of: nix::dir::Type) -> Kind {
    match of {
        nix::dir::Type::Directory => Kind::Directory,
        nix::dir::Type::Symlink => Kind::Symlink,
        nix::dir::Type::BlockDevice => Kind::BlockDevice,
        nix::dir::Type::CharacterDevice => Kind::CharDevice,
        nix::dir::Type::Fifo => Kind::Fifo,
        nix::dir::Type::Socket => Kind::Socket,
        nix::dir::Type::File => Kind::File,
    }
}
