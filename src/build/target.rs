//! The place where an image is made before it has its name.
//!
//! ```text
//! images/                         the directory of the target
//!   .demo.sif.sifu-4711-0/        ours alone (mode 0700) and locked while the build runs
//!     new                         the image or sandbox being made; renamed to images/demo.sif when it is whole
//!     old                         what stood there before, on its way out
//!     rootfs-0, rootfs-1 …        the file systems of stages (in another directory with --tmpdir)
//!     source-0, source-1 …        what their sources need meanwhile: packages, an image that was fetched (the same)
//! ```
//!
//! A build that was killed leaves its directory without a lock; the next build beside it removes it.

use super::builder;
use super::error::BuildError;
use super::room::{self, Room};
use crate::report;
use crate::tree::Kind;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, renameat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{geteuid, mkdir};
use starter::paths::HostPath;
use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A target that is being made. Dropping it removes what was made; [`Target::finish`] gives it its name.
pub(super) struct Target {
    path: PathBuf,
    replace: bool,
    work: Work,
}

/// A directory for the files of one build. Dropping it removes it.
pub(super) struct Work {
    /// The directory that it is in, open.
    parent: File,
    path: PathBuf,
    name: OsString,
    /// Whether it stays.
    keeps: Cell<bool>,
    _lock: Option<Flock<File>>,
}

/// What stands at `target`, if anything does.
pub(super) fn existing(target: &Path) -> Result<Option<Kind>, BuildError> {
    match std::fs::symlink_metadata(target) {
        Ok(metadata) => Ok(Some(match metadata.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink,
            kind if kind.is_fifo() => Kind::Fifo,
            kind if kind.is_socket() => Kind::Socket,
            kind if kind.is_char_device() => Kind::CharDevice,
            kind if kind.is_block_device() => Kind::BlockDevice,
            _ => Kind::File,
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BuildError::Target { doing: "examine", path: HostPath::new(target), source }),
    }
}

impl Target {
    /// Prepares the making of `path`.
    pub fn begin(path: &Path, replace: bool) -> Result<Self, BuildError> {
        // Without a slash at the end, which would ask for a directory.
        let path = path.components().as_path();
        if existing(path)?.is_some() && !replace {
            return Err(BuildError::Exists { path: HostPath::new(path) });
        }
        let name = path.file_name().ok_or_else(|| BuildError::NoName { path: HostPath::new(path) })?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Self { path: path.to_owned(), replace, work: Work::begin(&parent, name)? })
    }

    /// The directory for the files of this build.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Makes the file of an image: executable, within the limits of the umask, since it can be run.
    pub fn make_file(&self) -> Result<File, BuildError> {
        let path = self.work.path.join(NEW);
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o755).open(path);
        opened.map_err(|source| self.error("write", source))
    }

    /// Where the directory of a sandbox is made.
    pub fn directory_path(&self) -> PathBuf {
        self.work.path.join(NEW)
    }

    /// Makes the directory of a sandbox.
    pub fn make_directory(&self) -> Result<OwnedFd, BuildError> {
        let path = self.work.path.join(NEW);
        mkdir(&path, Mode::from_bits_truncate(0o755)).map_err(|errno| self.error("make", errno.into()))?;
        File::open(&path).map(OwnedFd::from).map_err(|source| self.error("make", source))
    }

    /// What the file system has left for the image.
    pub fn room(&self) -> Result<Room, BuildError> {
        room::observe(&self.work.parent).map_err(|errno| self.error("measure the free space for", errno.into()))
    }

    /// Where the image will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves what was made to its name.
    pub fn finish(self) -> Result<(), BuildError> {
        let new = self.work.path.join(NEW);
        let failed = |errno: Errno| match errno {
            Errno::EEXIST => BuildError::Exists { path: HostPath::new(&*self.path) },
            errno => self.error("rename the image to", errno.into()),
        };
        if self.replace {
            return self.replace_with(&new).map_err(failed);
        }
        match starter::sys::rename_if_new(&new, &self.path) {
            // File systems that lack it: what was not there at the beginning is taken not to be there now.
            Err(Errno::EINVAL | Errno::ENOSYS) => renameat(AT_FDCWD, &new, AT_FDCWD, &self.path),
            answer => answer,
        }
        .map_err(failed)
    }

    /// Puts `new` in the place of what is there. A file takes a file's place in one step; a directory that is not empty,
    /// and what is of another kind, change places, and the old one goes with the directory of the build.
    fn replace_with(&self, new: &Path) -> nix::Result<()> {
        match renameat(AT_FDCWD, new, AT_FDCWD, &self.path) {
            Err(Errno::EISDIR | Errno::ENOTDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {}
            answer => return answer,
        }
        match starter::sys::rename_exchange(new, &self.path) {
            Err(Errno::EINVAL | Errno::ENOSYS) => {}
            answer => return answer,
        }
        renameat(AT_FDCWD, &self.path, AT_FDCWD, &self.work.path.join(OLD))?;
        renameat(AT_FDCWD, new, AT_FDCWD, &self.path)
    }

    fn error(&self, doing: &'static str, source: io::Error) -> BuildError {
        BuildError::Target { doing, path: HostPath::new(&*self.path), source }
    }
}

impl Work {
    /// Makes a directory in `parent_path` for a build of something called `name`; those of killed builds go.
    pub fn begin(parent_path: &Path, name: &OsStr) -> Result<Self, BuildError> {
        let failed = |doing, path: &Path, source| BuildError::Target { doing, path: HostPath::new(path), source };
        let parent = File::open(parent_path).map_err(|e| failed("open the directory", parent_path, e))?;
        let prefix = work_prefix(name);
        remove_abandoned(&parent, parent_path);
        let mut attempt = 0;
        loop {
            let mut work_name = prefix.clone();
            work_name.push(format!("{}-{attempt}", std::process::id()));
            let work = parent_path.join(&work_name);
            match mkdir(&work, Mode::S_IRWXU) {
                Ok(()) => {}
                Err(Errno::EEXIST) if attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                    continue;
                }
                Err(errno) => return Err(failed("make a directory for the build in", parent_path, errno.into())),
            }
            let directory = File::open(&work).map_err(|e| failed("open", &work, e))?;
            // File systems without locks have no cleaning either.
            let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).ok();
            // Another build can have taken it for abandoned before it was locked.
            let is_there = lock.as_ref().is_none_or(|lock| fstat(&**lock).is_ok_and(|stat| stat.st_nlink > 0));
            if is_there {
                return Ok(Self { parent, path: work, name: work_name, keeps: Cell::new(false), _lock: lock });
            }
            attempt += 1;
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets it stay where it is, or not.
    pub fn keep(&self, keeps: bool) {
        self.keeps.set(keeps);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.keeps.get() {
            report::info(format!("The files of the build are kept in {}", self.path.display()));
        } else if let Err(error) = builder::remove(&self.parent, &self.name) {
            report::warning(format!("cannot remove {}: {error}", self.path.display()));
        }
    }
}

const NEW: &str = "new";
const OLD: &str = "old";
/// Names that this process can have left: one build after another in one directory.
const MAX_ATTEMPTS: u32 = 1000;

/// What the names of all directories for builds of `name` begin with; names of 255 bytes leave no room for more.
fn work_prefix(name: &OsStr) -> OsString {
    const KEPT_BYTES: usize = 200;
    let kept = &name.as_bytes()[..name.len().min(KEPT_BYTES)];
    OsString::from_vec([b".".as_slice(), kept, b".sifu-"].concat())
}

/// Whether a name is that of a directory for a build: `.demo.sif.sifu-4711-0`.
fn is_work_name(name: &[u8]) -> bool {
    const MARK: &[u8] = b".sifu-";
    let mark = name.windows(MARK.len()).rposition(|window| window == MARK);
    let Some(mark) = mark.filter(|_| name.starts_with(b".")) else { return false };
    let mut numbers = name[mark + MARK.len()..].splitn(2, |&byte| byte == b'-');
    let is_number = |part: Option<&[u8]>| part.is_some_and(|p| !p.is_empty() && p.iter().all(u8::is_ascii_digit));
    is_number(numbers.next()) && is_number(numbers.next())
}

/// Removes the directories of builds that were killed, whatever they built: those of this user that nobody has locked.
fn remove_abandoned(parent: &File, parent_path: &Path) {
    let Ok(entries) = std::fs::read_dir(parent_path) else { return };
    for name in entries.flatten().map(|entry| entry.file_name()) {
        if !is_work_name(name.as_bytes()) {
            continue;
        }
        let mut options = OpenOptions::new();
        let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
        let Ok(directory) = options.read(true).custom_flags(flags).open(parent_path.join(&name)) else { continue };
        let is_ours = directory.metadata().is_ok_and(|metadata| metadata.uid() == geteuid().as_raw());
        if is_ours && let Ok(_lock) = Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            // What can't be removed is no reason not to build.
            if let Err(error) = builder::remove(parent, &name) {
                report::warning(format!("a build that was killed left {}: {error}", parent_path.join(&name).display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sifu-target-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_target_that_is_given_up_leaves_nothing() {
        let scratch = Scratch::new("drop");
        let target = Target::begin(&scratch.0.join("a.sif"), false).unwrap();
        std::fs::write(target.work.path.join(NEW), "half").unwrap();
        assert_eq!(scratch.names().len(), 1);
        drop(target);
        assert_eq!(scratch.names(), [""; 0]);
    }

    #[test]
    fn what_stands_at_the_name_is_replaced_only_when_asked() {
        let scratch = Scratch::new("replace");
        let path = scratch.0.join("a.sif");
        let target = Target::begin(&path, false).unwrap();
        target.make_file().unwrap();
        // Somebody else is faster.
        std::fs::write(&path, "theirs").unwrap();
        assert!(matches!(target.finish(), Err(BuildError::Exists { .. })));
        assert!(matches!(Target::begin(&path, false), Err(BuildError::Exists { .. })));
        let target = Target::begin(&path, true).unwrap();
        target.make_file().unwrap();
        target.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        assert_eq!(scratch.names(), ["a.sif"]);
    }

    #[test]
    fn a_sandbox_replaces_a_directory_that_is_not_empty() {
        let scratch = Scratch::new("sandbox");
        let path = scratch.0.join("box");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("old"), "").unwrap();
        let target = Target::begin(&path, true).unwrap();
        target.make_directory().unwrap();
        target.finish().unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        assert_eq!(scratch.names(), ["box"]);
    }

    #[test]
    fn a_file_replaces_a_directory_and_a_directory_a_file() {
        let scratch = Scratch::new("kind");
        let path = scratch.0.join("box");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("old"), "").unwrap();
        let target = Target::begin(&path, true).unwrap();
        target.make_file().unwrap();
        target.finish().unwrap();
        assert!(path.is_file());
        let target = Target::begin(&path, true).unwrap();
        target.make_directory().unwrap();
        target.finish().unwrap();
        assert!(path.is_dir());
        assert_eq!(scratch.names(), ["box"]);
    }

    #[test]
    fn what_a_killed_build_left_goes_with_the_next_and_a_running_one_stays() {
        let scratch = Scratch::new("killed");
        let left = scratch.0.join(".other.sif.sifu-99999999-0");
        std::fs::create_dir_all(left.join("new/deep")).unwrap();
        let other = scratch.0.join(".a.sif.sifu-notes");
        std::fs::create_dir(&other).unwrap();
        let running = Target::begin(&scratch.0.join("a.sif"), false).unwrap();
        let second = Target::begin(&scratch.0.join("a.sif"), false).unwrap();
        assert!(!left.exists() && other.exists() && running.work.path.exists());
        drop((running, second));
        assert_eq!(scratch.names(), [".a.sif.sifu-notes"]);
    }

    #[test]
    fn a_slash_at_the_end_is_no_part_of_the_name() {
        let scratch = Scratch::new("slash");
        let target = Target::begin(&scratch.0.join("a.sif/"), false).unwrap();
        target.make_file().unwrap();
        target.finish().unwrap();
        assert_eq!(scratch.names(), ["a.sif"]);
    }

    #[test]
    fn the_longest_name_is_no_longer_too_long_with_what_is_added() {
        let scratch = Scratch::new("long");
        let target = Target::begin(&scratch.0.join("n".repeat(255)), false).unwrap();
        target.make_file().unwrap();
        target.finish().unwrap();
        assert_eq!(scratch.names(), ["n".repeat(255)]);
        let error = Target::begin(&scratch.0.join("n".repeat(256)), false).err().unwrap().to_string();
        assert!(error.contains("name too long"), "{error}");
    }
}
