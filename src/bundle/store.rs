//! The run directory: what this user's containers leave for the next call, on this machine and until its next boot.
//!
//! ```text
//! $XDG_RUNTIME_DIR/sifu/oci        or /tmp/sifu-<uid>/oci, or what --root names
//! └── <id>/                        0700; locked by whoever makes the container
//!     ├── state.json               the record
//!     └── start                    a socket: the container waits behind it for its start
//! ```
//!
//! Every step down is taken by descriptor, without following a link, and only into what belongs to this user and can be
//! written by nobody else. A run directory of another user's is used as that user, if this is root.

use super::record::{Record, check_id};
use crate::report::Hint;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const STATE: &str = "state.json";
const NEW_STATE: &str = "state.new";
/// The name of the socket behind which a container waits.
pub const START: &str = "start";
/// No record is longer.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Why the run directory can't be used, or has no such container.
#[derive(Debug)]
pub enum StoreError {
    Id {
        id: String,
        reason: &'static str,
    },
    /// There is no container of this id.
    Unknown {
        id: String,
    },
    /// There is one already.
    Exists {
        id: String,
    },
    /// Somebody else could have written it.
    Untrusted {
        path: PathBuf,
        reason: &'static str,
    },
    Record {
        path: PathBuf,
        reason: String,
    },
    System {
        doing: &'static str,
        path: PathBuf,
        errno: Errno,
    },
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id { id, reason } => write!(f, "cannot use `{id}` as the id of a container: {reason}"),
            Self::Unknown { id } => write!(f, "container `{id}` does not exist"),
            Self::Exists { id } => write!(f, "container `{id}` exists already"),
            Self::Untrusted { path, reason } => write!(f, "cannot trust {}: {reason}", path.display()),
            Self::Record { path, reason } => write!(f, "cannot use {}: {reason}", path.display()),
            Self::System { doing, path, errno } => {
                write!(f, "cannot {doing} {}: {}", path.display(), errno.desc().to_lowercase())
            }
        }
    }
}

impl std::error::Error for StoreError {}

impl Hint for StoreError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Exists { id } => vec![format!("`sifu oci delete {id}` makes room for another.")],
            Self::Untrusted { .. } => {
                vec!["It must be a directory of yours that nobody else can write; --root names another.".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// The run directory of a user.
pub struct Store {
    directory: OwnedFd,
    path: PathBuf,
    owner: u32,
}

/// The directory of one container.
pub struct Entry {
    directory: OwnedFd,
    path: PathBuf,
    owner: u32,
    id: String,
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Store {
    /// Opens the run directory at `path`, after making what is missing of it below `base` if `make`.
    pub fn open(base: &Path, below: &[&str], make: bool) -> Result<Self, StoreError> {
        let system = |doing, path: &Path| {
            let path = path.to_owned();
            move |errno| StoreError::System { doing, path, errno }
        };
        let mut path = base.to_owned();
        // What the caller or the machine names may be reached over links, and lie among the directories of others.
        let mut directory = match open(base, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(Errno::ENOENT) if make && below.is_empty() => {
                std::fs::create_dir_all(base.parent().unwrap_or(base))
                    .and_then(|()| {
                        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(base)
                    })
                    .map_err(|error| system("make", base)(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
                open(base, DIRECTORY, Mode::empty()).map_err(system("open", base))?
            }
            opened => opened.map_err(system("open", base))?,
        };
        let mut owner = nix::unistd::geteuid().as_raw();
        if below.is_empty() {
            owner = become_owner(&directory, &path, owner)?;
        }
        for name in below {
            path.push(name);
            if make {
                match mkdirat(&directory, *name, Mode::S_IRWXU) {
                    Err(Errno::EEXIST) => {}
                    made => made.map_err(system("make", &path))?,
                }
            }
            directory = openat(&directory, *name, DIRECTORY, Mode::empty()).map_err(|errno| match errno {
                Errno::ELOOP | Errno::ENOTDIR => {
                    StoreError::Untrusted { path: path.clone(), reason: "it is no directory" }
                }
                errno => system("open", &path)(errno),
            })?;
            owned_by(&directory, &path, owner)?;
        }
        Ok(Self { directory, path, owner })
    }

    /// Makes the directory of a new container, with a lock that is held by whoever makes the rest.
    pub fn make(&self, id: &str) -> Result<(Entry, File), StoreError> {
        check_id(id).map_err(|reason| StoreError::Id { id: id.to_owned(), reason })?;
        match mkdirat(&self.directory, id, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => return Err(StoreError::Exists { id: id.to_owned() }),
            made => made.map_err(|errno| StoreError::System { doing: "make", path: self.path.join(id), errno })?,
        }
        let entry = self.entry(id)?;
        let lock = entry.try_lock()?.ok_or_else(|| StoreError::Exists { id: id.to_owned() })?;
        Ok((entry, lock))
    }

    /// Opens the directory of a container.
    pub fn entry(&self, id: &str) -> Result<Entry, StoreError> {
        check_id(id).map_err(|reason| StoreError::Id { id: id.to_owned(), reason })?;
        let path = self.path.join(id);
        let directory = match openat(&self.directory, id, DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT) => return Err(StoreError::Unknown { id: id.to_owned() }),
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                return Err(StoreError::Untrusted { path, reason: "it is no directory" });
            }
            opened => opened.map_err(|errno| StoreError::System { doing: "open", path: path.clone(), errno })?,
        };
        owned_by(&directory, &path, self.owner)?;
        Ok(Entry { directory, path, owner: self.owner, id: id.to_owned() })
    }

    /// The ids of all containers, in order.
    pub fn ids(&self) -> Result<Vec<String>, StoreError> {
        let system = |errno| StoreError::System { doing: "list", path: self.path.clone(), errno };
        let mut listed = Dir::openat(&self.directory, ".", DIRECTORY, Mode::empty()).map_err(system)?;
        let mut ids: Vec<String> = listed
            .iter()
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
            .filter(|name| check_id(name).is_ok())
            .collect();
        ids.sort();
        Ok(ids)
    }
}

/// Checks that nobody but `owner` can have changed a directory.
fn owned_by(directory: &OwnedFd, path: &Path, owner: u32) -> Result<(), StoreError> {
    let untrusted = |reason| StoreError::Untrusted { path: path.to_owned(), reason };
    let stat =
        fstat(directory).map_err(|errno| StoreError::System { doing: "look at", path: path.to_owned(), errno })?;
    match (stat.st_uid == owner, stat.st_mode & 0o022) {
        (false, _) => Err(untrusted("it belongs to somebody else")),
        (true, 0) => Ok(()),
        (true, _) => Err(untrusted("others can write to it")),
    }
}

/// As [`owned_by`] for a directory that somebody named. Root, to whom any user's can be named, does what is to be done
/// with the rights of that user from then on, and no others: it would follow whatever the user wrote.
fn become_owner(directory: &OwnedFd, path: &Path, owner: u32) -> Result<u32, StoreError> {
    let system = |doing| {
        let path = path.to_owned();
        move |errno| StoreError::System { doing, path, errno }
    };
    let stat = fstat(directory).map_err(system("look at"))?;
    if owner != 0 || stat.st_uid == owner {
        return owned_by(directory, path, owner).map(|()| owner);
    }
    owned_by(directory, path, stat.st_uid)?;
    let (uid, gid) = (nix::unistd::Uid::from_raw(stat.st_uid), nix::unistd::Gid::from_raw(stat.st_gid));
    nix::unistd::setgroups(&[])
        .and_then(|()| nix::unistd::setresgid(gid, gid, gid))
        .and_then(|()| nix::unistd::setresuid(uid, uid, uid))
        .map_err(system("become the owner of"))?;
    Ok(stat.st_uid)
}

impl Entry {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A path of the socket `start` that is short enough for `bind(2)` and `connect(2)`, wherever the directory is.
    pub fn start_socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{START}", self.directory.as_raw_fd()))
    }

    /// Whether the container waits for its start.
    pub fn waits(&self) -> bool {
        let socket = fstatat(&self.directory, START, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
        socket.is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK)
    }

    /// Takes the socket away: of several that start the container one succeeds. Gives its path.
    pub fn take_start_socket(&self) -> Result<PathBuf, StoreError> {
        let taken = format!("starting.{}", std::process::id());
        renameat(&self.directory, START, &self.directory, taken.as_str()).map_err(|errno| StoreError::System {
            doing: "take",
            path: self.path.join(START),
            errno,
        })?;
        Ok(PathBuf::from(format!("/proc/self/fd/{}/{taken}", self.directory.as_raw_fd())))
    }

    /// Removes what [`Entry::take_start_socket`] gave.
    pub fn drop_start_socket(&self) {
        let taken = format!("starting.{}", std::process::id());
        let _ = unlinkat(&self.directory, taken.as_str(), UnlinkatFlags::NoRemoveDir);
    }

    /// Whether somebody makes this container just now.
    pub fn is_being_made(&self) -> Result<bool, StoreError> {
        self.try_lock().map(|lock| lock.is_none())
    }

    fn try_lock(&self) -> Result<Option<File>, StoreError> {
        let system = |errno| StoreError::System { doing: "lock", path: self.path.clone(), errno };
        let directory = openat(self.directory.as_fd(), ".", DIRECTORY, Mode::empty()).map_err(system)?;
        let directory = File::from(directory);
        match directory.try_lock() {
            Ok(()) => Ok(Some(directory)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(system(Errno::from_raw(error.raw_os_error().unwrap_or(0)))),
        }
    }

    /// Reads the record; `None` while the container is made.
    pub fn record(&self) -> Result<Option<Record>, StoreError> {
        let path = self.path.join(STATE);
        let system = |doing| {
            let path = path.clone();
            move |errno| StoreError::System { doing, path, errno }
        };
        let untrusted = |reason| StoreError::Untrusted { path: path.clone(), reason };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.directory, STATE, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return Err(untrusted("it is a symbolic link")),
            opened => opened.map_err(system("open"))?,
        };
        let stat = fstat(&file).map_err(system("look at"))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(untrusted("it is no file"));
        }
        if stat.st_uid != self.owner {
            return Err(untrusted("it belongs to somebody else"));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(untrusted("others can write to it"));
        }
        let mut text = Vec::new();
        File::from(file)
            .take(MAX_RECORD_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|error| system("read")(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
        if text.len() as u64 > MAX_RECORD_BYTES {
            return Err(untrusted("it is longer than any record"));
        }
        let read = Record::parse(&text, &self.id);
        read.map(Some).map_err(|reason| StoreError::Record { path, reason })
    }

    /// Writes the record, whole or not at all.
    pub fn write(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path.join(STATE);
        let system = |errno| StoreError::System { doing: "write", path: path.clone(), errno };
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.directory, NEW_STATE, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(system)?;
        File::from(file)
            .write_all(record.to_text().as_bytes())
            .map_err(|error| system(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
        renameat(&self.directory, NEW_STATE, &self.directory, STATE).map_err(system)
    }

    /// Removes everything of the container.
    pub fn remove(self) -> Result<(), StoreError> {
        let system = |errno| StoreError::System { doing: "remove", path: self.path.clone(), errno };
        let mut listed = Dir::openat(&self.directory, ".", DIRECTORY, Mode::empty()).map_err(system)?;
        let names: Vec<_> = listed.iter().filter_map(|entry| Some(entry.ok()?.file_name().to_owned())).collect();
        for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
            match unlinkat(&self.directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(system(errno)),
            }
        }
        match std::fs::remove_dir(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(system(Errno::from_raw(error.raw_os_error().unwrap_or(0))))
            }
            _ => Ok(()),
        }
    }
}
