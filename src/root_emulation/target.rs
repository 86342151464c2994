//! The process that made a call: its memory, its descriptors, and the files that its paths lead to.
//!
//! The supervisor's working directory is the host's `/proc`, and its root is that of the process, so a path means here
//! what it means there: absolute ones as they are, relative ones below `PID/cwd` or `PID/fd/N`.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{chroot, fchdir};
use starter::sys::{RawStat, RawStatx};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Turns the error of a system call into its number.
pub(super) fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A file as a call names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// What the descriptor is open on; `AT_FDCWD` is the working directory.
    Descriptor(i32),
    /// A path, relative to a descriptor.
    Path { directory: i32, path: Vec<u8>, follow: bool },
}

impl Reference {
    /// The directory that holds the file, and its name there; `None` where the path ends in no name.
    pub(super) fn split(&self) -> Option<(Self, CString)> {
        let Self::Path { directory, path, .. } = self else { return None };
        let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
        let start = path[..end].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let name = &path[start..end];
        if name == b"." || name == b".." {
            return None;
        }
        let parent = match start {
            0 => Self::Descriptor(*directory),
            _ => Self::Path { directory: *directory, path: path[..start].to_vec(), follow: true },
        };
        Some((parent, CString::new(name).ok()?))
    }

    /// Whether the path asks for a directory by its last byte.
    pub(super) fn ends_in_slash(&self) -> bool {
        matches!(self, Self::Path { path, .. } if path.ends_with(b"/"))
    }

    /// The path by which the supervisor gets there, and whether a symbolic link at its end is followed.
    fn seen_from_here(&self, thread: i32) -> Result<(CString, bool), Errno> {
        let text = |path: Vec<u8>| CString::new(path).map_err(|_| Errno::EINVAL);
        let (path, follow) = match self {
            Self::Descriptor(descriptor) => (start_of(thread, *descriptor), true),
            Self::Path { directory, path, follow } => {
                let seen = if path.starts_with(b"/") {
                    own_process(path, thread).unwrap_or_else(|| path.clone())
                } else {
                    let mut seen = start_of(thread, *directory);
                    seen.push(b'/');
                    seen.extend_from_slice(path);
                    seen
                };
                (seen, *follow)
            }
        };
        Ok((text(path)?, follow))
    }
}

fn start_of(thread: i32, descriptor: i32) -> Vec<u8> {
    match descriptor {
        libc::AT_FDCWD => format!("{thread}/cwd").into_bytes(),
        _ => format!("{thread}/fd/{descriptor}").into_bytes(),
    }
}

/// Paths that every process sees as its own.
fn own_process(path: &[u8], thread: i32) -> Option<Vec<u8>> {
    let below = |prefix: &str, place: &str| {
        let rest = path.strip_prefix(prefix.as_bytes())?;
        Some([format!("{thread}/{place}").as_bytes(), rest].concat())
    };
    let whole =
        |name: &str, descriptor: u8| (path == name.as_bytes()).then(|| format!("{thread}/fd/{descriptor}").into());
    below("/proc/self/", "")
        .or_else(|| below("/proc/thread-self/", ""))
        .or_else(|| below("/dev/fd/", "fd/"))
        .or_else(|| whole("/dev/stdin", 0))
        .or_else(|| whole("/dev/stdout", 1))
        .or_else(|| whole("/dev/stderr", 2))
}

/// A thread that waits for the answer to its call.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub thread: i32,
    root: &'a Root,
}

/// The root directory of the supervisor.
pub(super) struct Root {
    /// The host's `/proc`, which is also the working directory.
    proc: OwnedFd,
    /// Mount, device and inode of the present root.
    adopted: std::cell::Cell<Option<(u64, u32, u32, u64)>>,
}

impl Root {
    /// Makes the host's `/proc` the working directory.
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = nix::fcntl::open("/proc", flags, Mode::empty())?;
        fchdir(&proc)?;
        Ok(Self { proc, adopted: std::cell::Cell::new(None) })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// Takes on the root of `thread`. Most processes share one, so a look is mostly all.
    fn adopt(&self, thread: i32) -> Result<(), Errno> {
        let name = format!("{thread}/root");
        let c_name = CString::new(name.as_str()).map_err(|_| Errno::EINVAL)?;
        let mask = libc::STATX_INO | libc::STATX_MNT_ID;
        let answer = RawStatx::of(AT_FDCWD, &c_name, 0, mask).map_err(errno)?;
        let seen = answer.fields();
        let identity = (seen.stx_mnt_id, seen.stx_dev_major, seen.stx_dev_minor, seen.stx_ino);
        if self.adopted.get() != Some(identity) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let root = openat(AT_FDCWD, name.as_str(), flags, Mode::empty())?;
            fchdir(&root)?;
            let changed = chroot(".");
            fchdir(&self.proc)?;
            changed?;
            self.adopted.set(Some(identity));
        }
        Ok(())
    }
}

impl<'a> Target<'a> {
    pub(super) fn new(thread: i32, root: &'a Root) -> Self {
        Self { thread, root }
    }

    /// Reads a string that ends with NUL, of at most `limit` bytes without it; `too_long` is the error of longer ones.
    pub(super) fn read_string(self, address: u64, limit: usize, too_long: Errno) -> Result<Vec<u8>, Errno> {
        const PAGE_BYTES: u64 = 4096;
        let mut string = Vec::new();
        let mut at = address;
        loop {
            // No further than the page: the next one need not be there.
            let mut page = [0; PAGE_BYTES as usize];
            let length = (PAGE_BYTES - at % PAGE_BYTES) as usize;
            let count = starter::sys::read_memory(self.thread, at, &mut page[..length]).map_err(errno)?;
            let read = &page[..count];
            match read.iter().position(|&byte| byte == 0) {
                Some(end) => string.extend_from_slice(&read[..end]),
                None => string.extend_from_slice(read),
            }
            if string.len() > limit {
                return Err(too_long);
            }
            if read.contains(&0) {
                return Ok(string);
            }
            if count < length {
                return Err(Errno::EFAULT);
            }
            at = at.checked_add(length as u64).ok_or(Errno::EFAULT)?;
        }
    }

    pub(super) fn read_path(self, address: u64) -> Result<Vec<u8>, Errno> {
        self.read_string(address, libc::PATH_MAX as usize - 1, Errno::ENAMETOOLONG)
    }

    /// Reads `length` bytes, which the caller has limited.
    pub(super) fn read_bytes(self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        match length {
            0 => Ok(bytes),
            _ if starter::sys::read_memory(self.thread, address, &mut bytes).map_err(errno)? == length => Ok(bytes),
            _ => Err(Errno::EFAULT),
        }
    }

    pub(super) fn write(self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        starter::sys::write_memory(self.thread, address, bytes).map_err(errno)
    }

    /// Device and inode of a file.
    pub(super) fn identify(self, reference: &Reference) -> Result<crate::remembered::FileId, Errno> {
        let (path, follow) = self.path_to(reference)?;
        let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
        let answer = RawStatx::of(AT_FDCWD, &path, flags, libc::STATX_INO).map_err(errno)?;
        let seen = answer.fields();
        let device = nix::sys::stat::makedev(seen.stx_dev_major.into(), seen.stx_dev_minor.into());
        Ok(crate::remembered::FileId { device, inode: seen.stx_ino })
    }

    /// Opens a file so that it can be examined and changed, not read.
    pub(super) fn open(self, reference: &Reference) -> Result<OwnedFd, Errno> {
        let (path, follow) = self.path_to(reference)?;
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let flags = if follow { flags } else { flags | OFlag::O_NOFOLLOW };
        openat(AT_FDCWD, path.as_c_str(), flags, Mode::empty()).map_err(|errno| match (errno, reference) {
            (Errno::ENOENT, Reference::Descriptor(_)) => Errno::EBADF,
            (errno, _) => errno,
        })
    }

    fn path_to(self, reference: &Reference) -> Result<(CString, bool), Errno> {
        // The root also bounds `..` and absolute symbolic links of relative paths.
        if !matches!(reference, Reference::Descriptor(_)) {
            self.root.adopt(self.thread)?;
        }
        reference.seen_from_here(self.thread)
    }

    /// The permission bits that the process takes from new files.
    pub(super) fn umask(self) -> Result<u32, Errno> {
        let name = format!("{}/status", self.thread);
        let file = openat(AT_FDCWD, name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut status = String::new();
        File::from(file).take(1 << 16).read_to_string(&mut status).map_err(errno)?;
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).ok_or(Errno::EIO)?;
        u32::from_str_radix(line.trim(), 8).map_err(|_| Errno::EIO)
    }
}

/// A path to what `descriptor` is open on, for calls that take paths alone.
pub(super) fn path_of(descriptor: impl AsFd) -> PathBuf {
    PathBuf::from(format!("self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

/// The status of what `descriptor` is open on.
pub(super) fn status_of(descriptor: impl AsFd) -> Result<RawStat, Errno> {
    RawStat::of(descriptor.as_fd()).map_err(errno)
}

/// Opens `name` in `directory` to be examined and changed.
pub(super) fn open_in(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(directory, name, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(directory: i32, path: &str, follow: bool) -> Reference {
        Reference::Path { directory, path: path.into(), follow }
    }

    fn check_seen(reference: &Reference, expected: &str) {
        let (path, _) = reference.seen_from_here(7).unwrap();
        assert_eq!(path.to_str().unwrap(), expected, "{reference:?}");
    }

    #[test]
    fn paths_are_relative_to_what_the_process_names() {
        check_seen(&path(libc::AT_FDCWD, "../a", true), "7/cwd/../a");
        check_seen(&path(5, "a", true), "7/fd/5/a");
        check_seen(&path(5, "/a", true), "/a");
        check_seen(&Reference::Descriptor(5), "7/fd/5");
        check_seen(&Reference::Descriptor(libc::AT_FDCWD), "7/cwd");
    }

    #[test]
    fn what_is_own_to_a_process_is_that_of_the_caller() {
        check_seen(&path(5, "/proc/self/fd/3", true), "7/fd/3");
        check_seen(&path(5, "/dev/fd/3", true), "7/fd/3");
        check_seen(&path(5, "/dev/stdout", true), "7/fd/1");
        check_seen(&path(5, "/proc/selfish", true), "/proc/selfish");
        check_seen(&path(5, "/proc/12/fd/3", true), "/proc/12/fd/3");
    }

    fn check_split(whole: &str, expected: Option<(&str, &str)>) {
        let found = path(5, whole, true).split().map(|(parent, name)| {
            let parent = match parent {
                Reference::Descriptor(descriptor) => descriptor.to_string(),
                Reference::Path { path, .. } => String::from_utf8(path).unwrap(),
            };
            (parent, name.into_string().unwrap())
        });
        let expected = expected.map(|(parent, name)| (parent.to_owned(), name.to_owned()));
        assert_eq!(found, expected, "{whole}");
    }

    #[test]
    fn a_new_file_has_a_directory_and_a_name() {
        check_split("name", Some(("5", "name")));
        check_split("a/b//", Some(("a/", "b")));
        check_split("/b", Some(("/", "b")));
        for nameless in ["", "/", "//", "a/..", "."] {
            check_split(nameless, None);
        }
    }
}
