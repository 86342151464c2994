//! What this host is and allows, observed.
//!
//! [`facts`] is what is known, as plain structs; the other modules look. A start asks for what its request needs and no
//! more: [`observe`] costs a few dozen system calls, none of which grows with the mounts, the processes or the files of
//! the host. [`switches`] explains a start that failed; [`probe`] tries everything out, for `doctor`.

pub mod accelerators;
pub mod facts;
pub mod mountinfo;
pub mod mpi;
mod name_service;
pub mod probe;
pub mod subordinate_ids;
pub mod switches;
pub mod user;
pub mod working_directory;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use starter::paths::HostPath;

use facts::{FuseDevice, Home, HostFacts, Kernel, PathFacts, PathKind, Terminal, UserNamespaces};

/// The capability that mounts are asked for, see `capabilities(7)`.
const CAP_SYS_ADMIN: u32 = 21;

/// What a request needs to know beyond what every start needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct What {
    /// Ranges of ids to map, for a root in the container that can be other users too.
    pub subordinate_ids: bool,
    /// The mount table: one read that grows with the mounts of the host.
    pub mounts: bool,
    /// Which of the standard descriptors are terminals.
    pub terminal: bool,
    /// Whether `/dev/fuse` can be opened.
    pub fuse: bool,
    /// Host paths whose kind the plan depends on, such as the sources of binds.
    pub paths: Vec<HostPath>,
}

/// Takes the snapshot that a start with the needs of `what` is planned from.
///
/// Nothing here fails: what cannot be seen is a fact too, and says why where that matters.
pub fn observe(what: &What) -> HostFacts {
    let user = user::observe();
    let home = observe_home(&user.entry.home);
    HostFacts {
        subordinate_ids: what.subordinate_ids.then(|| subordinate_ids::observe(&user)),
        home,
        user,
        working_directory: working_directory::observe(),
        umask: observe_umask(),
        may_mount: starter::sys::effective_capabilities().is_ok_and(|set| set >> CAP_SYS_ADMIN & 1 == 1),
        kernel: observe_kernel(),
        fuse: if what.fuse { observe_fuse(Path::new("/dev/fuse")) } else { FuseDevice::NotObserved },
        user_namespaces: UserNamespaces::NotObserved,
        mounts: if what.mounts { mountinfo::observe().ok() } else { None },
        terminal: if what.terminal { observe_terminal() } else { Terminal::default() },
        paths: what.paths.iter().map(|path| (path.clone(), observe_path(path))).collect(),
    }
}

/// Looks at a home directory: whether it is there, and where it is without symbolic links.
///
/// The directory is opened, so that an automounter brings it, but never read.
pub fn observe_home(logical: &HostPath) -> Home {
    Home { logical: logical.clone(), physical: physical_directory(logical.as_path()) }
}

fn physical_directory(path: &Path) -> Option<HostPath> {
    if !path.is_absolute() {
        return None;
    }
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
    // O_DIRECTORY makes O_PATH trigger automounts, which it does not do by itself.
    let directory = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let physical = fs::read_link(link).or_else(|_| fs::canonicalize(path)).ok()?;
    Some(HostPath::new(physical))
}

/// Says what lies at `path`, following symbolic links.
pub fn observe_path(path: &HostPath) -> PathFacts {
    let link = match fs::symlink_metadata(path) {
        Err(error) => return PathFacts::absent(error.raw_os_error().unwrap_or(Errno::ENOENT as i32)),
        Ok(metadata) if metadata.file_type().is_symlink() => {
            fs::read_link(path).ok().map(|target| target.as_os_str().as_bytes().to_vec())
        }
        Ok(metadata) => return PathFacts { kind: kind(&metadata), link: None, identity: identity(&metadata) },
    };
    match fs::metadata(path) {
        Ok(metadata) => PathFacts { kind: kind(&metadata), link, identity: identity(&metadata) },
        Err(error) => PathFacts { link, ..PathFacts::absent(error.raw_os_error().unwrap_or(Errno::ENOENT as i32)) },
    }
}

fn kind(metadata: &fs::Metadata) -> PathKind {
    let file_type = metadata.file_type();
    if file_type.is_dir() {
        PathKind::Directory
    } else if file_type.is_file() {
        PathKind::File
    } else if file_type.is_char_device() || file_type.is_block_device() {
        PathKind::Device
    } else {
        PathKind::Other
    }
}

fn identity(metadata: &fs::Metadata) -> Option<(u64, u64)> {
    Some((metadata.dev(), metadata.ino()))
}

/// Says whether the device at `path` serves filesystems from user space, by opening it.
///
/// Permission bits are not asked: a container's device rules deny an open that the bits allow.
pub fn observe_fuse(path: &Path) -> FuseDevice {
    let opened = fs::OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let metadata = match &opened {
        Ok(file) => file.metadata(),
        Err(_) => fs::metadata(path),
    };
    match (opened, metadata) {
        (Ok(_), Ok(metadata)) if is_fuse(&metadata) => FuseDevice::Usable,
        (Ok(_), _) => FuseDevice::NotADevice,
        (Err(error), metadata) => {
            let errno = error.raw_os_error().unwrap_or(Errno::EIO as i32);
            match (errno, metadata) {
                (nix::libc::ENOENT, _) => FuseDevice::Missing,
                (_, Ok(metadata)) if !is_fuse(&metadata) => FuseDevice::NotADevice,
                (nix::libc::EACCES, Ok(metadata)) => {
                    FuseDevice::Denied { mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid() }
                }
                // The device node is there, and no driver answers for it.
                (nix::libc::ENODEV | nix::libc::ENXIO, _) => FuseDevice::NoDriver,
                (errno, _) => FuseDevice::Refused { errno },
            }
        }
    }
}

/// Whether a file is the character device 10:229, which is FUSE on every Linux.
fn is_fuse(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == nix::sys::stat::makedev(10, 229)
}

fn observe_umask() -> u32 {
    // The mask can only be read by setting it. For that moment it is strict, for the sake of other threads.
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    nix::sys::stat::umask(mask);
    mask.bits()
}

fn observe_kernel() -> Kernel {
    match nix::sys::utsname::uname() {
        Ok(name) => Kernel {
            release: name.release().to_string_lossy().into_owned(),
            machine: name.machine().to_string_lossy().into_owned(),
            hostname: name.nodename().as_bytes().to_vec(),
        },
        Err(_) => Kernel { release: String::new(), machine: std::env::consts::ARCH.to_owned(), hostname: Vec::new() },
    }
}

fn observe_terminal() -> Terminal {
    use std::io::IsTerminal;
    Terminal {
        stdin: std::io::stdin().is_terminal(),
        stdout: std::io::stdout().is_terminal(),
        stderr: std::io::stderr().is_terminal(),
    }
}
