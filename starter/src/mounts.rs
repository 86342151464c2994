//! Mounts before they have a place, made in either of two ways behind one set of functions.
//!
//! ```text
//!             by descriptors (Linux 5.12)     on the stage (every kernel that sifu runs on)
//!   copy      open_tree, mount_setattr        MS_BIND to the stage, MS_REMOUNT of every mount of the copy
//!   make      fsopen, fsconfig, fsmount       mount(2) on the stage
//!   attach    move_mount                      MS_MOVE from the stage
//! ```
//!
//! Descriptors are tried first. A kernel that lacks one of the calls, or a filter of system calls that does not know it,
//! refuses the first mount; from then on everything is done on the stage: a tmpfs over the root directory, where nobody
//! sees it, since the process's own root lies below. It can't be copied ([`MsFlags::MS_UNBINDABLE`]), so that a copy of
//! `/` does not hold the copies that were made before.

use crate::sys::{self, FsContext};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlink};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat, stat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::cell::{Cell, OnceCell};
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A mount with all that is mounted below it. Unless it is attached, nobody else sees it.
pub struct Mount {
    root: OwnedFd,
    staged: bool,
}

impl AsFd for Mount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// An option of a file system, with its value if it has one.
pub type FsOption<'a> = (&'a CStr, Option<&'a str>);

/// Makes the mounts of one mount namespace.
#[derive(Default)]
pub struct Mounts {
    stage: OnceCell<Stage>,
    /// Whether a root lies over the host's: a stage that came later would hide it.
    covered: Cell<bool>,
    /// Mounts over the host's root, one over the other.
    over_host: Cell<u32>,
}

impl Mounts {
    /// Copies what is mounted at `source`, with all below it, and adds `attributes` (see [`sys::mount_attr`]) to each
    /// mount of the copy.
    pub fn copy(&self, source: &Path, attributes: u64) -> nix::Result<Mount> {
        let by_descriptor = || restricted(sys::open_tree(None, source, true)?, attributes, true);
        self.either(by_descriptor, |stage| stage.copy(source, attributes))
    }

    /// Copies the file or directory `name` (itself if empty) of a directory whose mount is attached.
    pub fn part(&self, directory: BorrowedFd<'_>, name: &OsStr, attributes: u64) -> nix::Result<Mount> {
        let by_descriptor = || restricted(sys::open_tree(Some(directory), Path::new(name), false)?, attributes, false);
        self.either(by_descriptor, |stage| stage.part(directory, name, attributes))
    }

    /// Makes a file system of a kind, and a mount of it with `attributes`. The option `source` is what the list of
    /// mounts shows.
    pub fn make(&self, kind: &CStr, options: &[FsOption<'_>], attributes: u64) -> nix::Result<Mount> {
        if self.stage.get().is_none() {
            match FsContext::open(kind) {
                // What later calls refuse is this file system, and not this way to mount it.
                Err(errno) if refused(errno) => {}
                context => return Ok(Mount { root: configured(&context?, options, attributes)?, staged: false }),
            }
        }
        self.stage()?.make(kind, options, attributes)
    }

    /// Attaches a mount that has no place yet at `place`.
    pub fn attach(&self, mount: &Mount, place: BorrowedFd<'_>) -> nix::Result<()> {
        if !mount.staged {
            return sys::move_mount(mount.as_fd(), place);
        }
        mount_at(Some(&by_number(mount.as_fd())), &by_number(place), None, MsFlags::MS_MOVE, None)
    }

    /// Attaches a mount over the host's root, and over what lies there already.
    pub fn cover_host(&self, mount: &Mount) -> nix::Result<()> {
        self.pile(mount)?;
        self.covered.set(true);
        Ok(())
    }

    /// Attaches a mount where a root will hide it, for what works on attached mounts only.
    pub fn hide(&self, mount: &Mount) -> nix::Result<()> {
        if mount.staged {
            return Ok(());
        }
        self.pile(mount)
    }

    /// How many mounts lie over the host's root.
    pub fn over_host(&self) -> u32 {
        self.over_host.get()
    }

    fn pile(&self, mount: &Mount) -> nix::Result<()> {
        let root = open("/", PATH_ONLY, Mode::empty())?;
        self.attach(mount, root.as_fd())?;
        self.over_host.set(self.over_host.get() + 1);
        Ok(())
    }

    /// Adds attributes to an attached mount, and leaves those below it as they are.
    pub fn restrict(&self, mount: &Mount, attributes: u64) -> nix::Result<()> {
        match mount.staged {
            true => remount(mount.as_fd(), flags_of(mount.as_fd())?, as_flags(attributes)),
            false => sys::mount_setattr(mount.as_fd(), attributes, false),
        }
    }

    /// Adds attributes to the mount whose root `place` is open on, and to those below it; EINVAL where it is on none.
    pub fn restrict_place(&self, place: BorrowedFd<'_>, attributes: u64) -> nix::Result<()> {
        if self.stage.get().is_none() {
            match sys::mount_setattr(place, attributes, true) {
                Err(errno) if refused(errno) => {}
                done => return done,
            }
        }
        remount(place, flags_of(place)?, as_flags(attributes))
    }

    fn either(
        &self,
        by_descriptor: impl FnOnce() -> nix::Result<OwnedFd>,
        staged: impl FnOnce(&Stage) -> nix::Result<Mount>,
    ) -> nix::Result<Mount> {
        if let Some(stage) = self.stage.get() {
            return staged(stage);
        }
        match by_descriptor() {
            Err(errno) if refused(errno) && !self.covered.get() => staged(self.stage()?),
            made => Ok(Mount { root: made?, staged: false }),
        }
    }

    fn stage(&self) -> nix::Result<&Stage> {
        if let Some(stage) = self.stage.get() {
            return Ok(stage);
        }
        if self.covered.get() {
            return Err(Errno::ENOSYS);
        }
        let made = Stage::new()?;
        self.over_host.set(self.over_host.get() + 1);
        Ok(self.stage.get_or_init(|| made))
    }
}

/// Whether an errno can mean that a system call is not there. Filters answer EPERM for what they don't know.
fn refused(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::EPERM)
}

fn configured(context: &FsContext, options: &[FsOption<'_>], attributes: u64) -> nix::Result<OwnedFd> {
    for (key, value) in options {
        match value {
            Some(value) => context.set(key, value)?,
            None => context.set_flag(key)?,
        }
    }
    context.mount(attributes)
}

fn restricted(copy: OwnedFd, attributes: u64, recursive: bool) -> nix::Result<OwnedFd> {
    if attributes != 0 {
        sys::mount_setattr(copy.as_fd(), attributes, recursive)?;
    }
    Ok(copy)
}

// ---- the stage ----

/// A tmpfs with a mount point for each mount that has no place yet.
struct Stage {
    directory: OwnedFd,
    used: Cell<u32>,
    /// The host's mounts before the stage was one of them.
    host: Vec<HostMount>,
}

/// Follows the magic link to what a descriptor is open on.
pub(crate) fn by_number(descriptor: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

fn mount_at(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&OsStr>,
    flags: MsFlags,
    data: Option<&str>,
) -> nix::Result<()> {
    mount(source, target, kind, flags, data)
}

/// Mounts what `source` is open on, with all below it, at `target` as well.
pub(crate) fn bind_below(source: BorrowedFd<'_>, target: &Path) -> nix::Result<()> {
    mount_at(Some(&by_number(source)), target, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)
}

impl Stage {
    fn new() -> nix::Result<Self> {
        let host = std::fs::read("/proc/self/mountinfo").map_err(|_| Errno::ENOENT)?;
        let host = host.split(|&b| b == b'\n').filter_map(HostMount::parse).collect();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount_at(Some(Path::new("sifu")), Path::new("/"), Some(OsStr::new("tmpfs")), flags, Some("mode=700"))?;
        // The root itself is below what is mounted over it; its parent, which is the root again, is not.
        let directory = open("/..", PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        if fstat(&directory)?.st_dev == stat("/")?.st_dev {
            return Err(Errno::ENOSYS);
        }
        mount_at(None, &by_number(directory.as_fd()), None, MsFlags::MS_UNBINDABLE, None)?;
        Ok(Self { directory, used: Cell::new(0), host })
    }

    /// Makes a mount point, mounts there, and opens what is mounted.
    fn mounted(&self, is_directory: bool, mount: impl FnOnce(&Path) -> nix::Result<()>) -> nix::Result<Mount> {
        let number = self.used.replace(self.used.get() + 1);
        let name = number.to_string();
        if is_directory {
            mkdirat(&self.directory, name.as_str(), Mode::S_IRWXU)?;
        } else {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            openat(&self.directory, name.as_str(), flags, Mode::S_IRUSR)?;
        }
        mount(&by_number(self.directory.as_fd()).join(&name))?;
        Ok(Mount { root: openat(&self.directory, name.as_str(), PATH_ONLY, Mode::empty())?, staged: true })
    }

    fn copy(&self, source: &Path, attributes: u64) -> nix::Result<Mount> {
        let is_directory = is_directory(stat(source)?.st_mode);
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        let copy = self.mounted(is_directory, |place| mount_at(Some(source), place, None, bind, None))?;
        if attributes == 0 {
            return Ok(copy);
        }
        remount(copy.as_fd(), flags_of(copy.as_fd())?, as_flags(attributes))?;
        if is_directory {
            self.restrict_below(&copy, source, as_flags(attributes))?;
        }
        Ok(copy)
    }

    /// Adds attributes to the mounts below the copy of `source`.
    fn restrict_below(&self, copy: &Mount, source: &Path, more: MsFlags) -> nix::Result<()> {
        let opened = open(source, PATH_ONLY, Mode::empty())?;
        let source = readlink(&by_number(opened.as_fd()))?;
        for mount in &self.host {
            let Ok(below) = mount.point.strip_prefix(&source) else { continue };
            if below.as_os_str().is_empty() || mount.flags.contains(more) {
                continue;
            }
            // What can't be reached from here can't be reached from inside: another mount hides it, a directory on the
            // way is closed, or it has been unmounted since.
            let flags = PATH_ONLY | OFlag::O_NOFOLLOW;
            let Ok(root) = openat(copy, below, flags, Mode::empty()) else { continue };
            match remount(root.as_fd(), mount.flags, more) {
                // Not the root of a mount: hidden, too.
                Err(Errno::EINVAL) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn part(&self, directory: BorrowedFd<'_>, name: &OsStr, attributes: u64) -> nix::Result<Mount> {
        let (source, mode) = match name.is_empty() {
            true => (by_number(directory), fstat(directory)?.st_mode),
            false => {
                let status = fstatat(directory, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
                (by_number(directory).join(name), status.st_mode)
            }
        };
        let bind = |place: &Path| mount_at(Some(&source), place, None, MsFlags::MS_BIND, None);
        let part = self.mounted(is_directory(mode), bind)?;
        if attributes != 0 {
            remount(part.as_fd(), flags_of(part.as_fd())?, as_flags(attributes))?;
        }
        Ok(part)
    }

    fn make(&self, kind: &CStr, options: &[FsOption<'_>], attributes: u64) -> nix::Result<Mount> {
        let call = MountCall::new(kind, options)?;
        let flags = as_flags(attributes);
        self.mounted(true, |place| {
            let data = (!call.data.is_empty()).then_some(call.data.as_str());
            mount_at(Some(Path::new(&call.source)), place, Some(OsStr::new(&call.kind)), flags, data)
        })
    }
}

fn is_directory(mode: nix::libc::mode_t) -> bool {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// What `mount(2)` takes in the place of single options.
#[derive(Debug, PartialEq, Eq)]
struct MountCall {
    source: String,
    kind: String,
    data: String,
}

impl MountCall {
    fn new(kind: &CStr, options: &[FsOption<'_>]) -> nix::Result<Self> {
        let word = |text: &CStr| text.to_str().map(str::to_owned).map_err(|_| Errno::EINVAL);
        let mut call = Self { source: "none".to_owned(), kind: word(kind)?, data: String::new() };
        for (key, value) in options {
            match (key.to_bytes(), value) {
                (b"source", Some(source)) => call.source = (*source).to_owned(),
                (b"subtype", Some(subtype)) => call.kind = format!("{}.{subtype}", call.kind),
                // A flag of the call, which the mount's attributes have too.
                (b"ro", None) => {}
                (_, value) => {
                    // A comma would begin another option.
                    if value.is_some_and(|value| value.contains([',', '\\'])) {
                        return Err(Errno::EINVAL);
                    }
                    let separator = if call.data.is_empty() { "" } else { "," };
                    call.data.push_str(separator);
                    call.data.push_str(&word(key)?);
                    if let Some(value) = value {
                        call.data.push('=');
                        call.data.push_str(value);
                    }
                }
            }
        }
        Ok(call)
    }
}

// ---- flags of mounts ----

/// `MS_NOSYMFOLLOW` (Linux 5.10), which the libraries have no name for.
const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// Names of flags in `/proc/self/mountinfo`. Access times are missing: a remount keeps their mode where it names none.
const FLAG_NAMES: [(&[u8], MsFlags); 5] = [
    (b"ro", MsFlags::MS_RDONLY),
    (b"nosuid", MsFlags::MS_NOSUID),
    (b"nodev", MsFlags::MS_NODEV),
    (b"noexec", MsFlags::MS_NOEXEC),
    (b"nosymfollow", NOSYMFOLLOW),
];

/// Attributes as flags of `mount(2)`, which have the same bits.
fn as_flags(attributes: u64) -> MsFlags {
    MsFlags::from_bits_retain(attributes as _)
}

/// The flags of an open mount.
fn flags_of(mount: BorrowedFd<'_>) -> nix::Result<MsFlags> {
    let bits = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let seen = fstatvfs(mount)?.flags();
    Ok(bits.into_iter().filter(|(bit, _)| seen.contains(*bit)).map(|(_, flag)| flag).collect())
}

/// Gives a mount `more` flags than those that it `has`. A remount takes away what it does not name, and the kernel forbids
/// that for flags that come from outside of the user namespace.
fn remount(mount: BorrowedFd<'_>, has: MsFlags, more: MsFlags) -> nix::Result<()> {
    if has.contains(more) {
        return Ok(());
    }
    mount_at(None, &by_number(mount), None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | has | more, None)
}

/// A line of `/proc/self/mountinfo`, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct HostMount {
    point: PathBuf,
    flags: MsFlags,
}

impl HostMount {
    /// Reads `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS …`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b' ').skip(4);
        let point = PathBuf::from(OsStr::from_bytes(&unescape(fields.next()?)));
        let options = fields.next()?.split(|&b| b == b',');
        let flag = |option| FLAG_NAMES.iter().find(|(name, _)| *name == option).map(|(_, flag)| *flag);
        Some(Self { point, flags: options.filter_map(flag).collect() })
    }
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).filter(|byte| (b'0'..=b'7').contains(byte)).map(|byte| byte - b'0');
        match (byte, digit(0), digit(1), digit(2)) {
            (b'\\', Some(a @ 0..=3), Some(b), Some(c)) => {
                plain.push(a << 6 | b << 3 | c);
                rest = &after[3..];
            }
            _ => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_gives_place_and_flags() {
        let check = |line: &str, point: &str, flags: u64| {
            assert_eq!(
                HostMount::parse(line.as_bytes()),
                Some(HostMount { point: point.into(), flags: as_flags(flags) }),
                "{line}"
            );
        };
        check("25 1 0:23 / / rw,relatime shared:1 - ext4 /dev/vda rw", "/", 0);
        check("26 25 0:5 / /dev rw,nosuid,noexec shared:2 - devtmpfs udev rw,size=1k", "/dev", 2 | 8);
        check("27 25 0:6 /a /with\\040blank\\134 ro,nodev,nosymfollow - tmpfs x rw", "/with blank\\", 1 | 4 | 256);
        check("28 25 0:6 / /not\\9escaped rw - tmpfs x rw", "/not\\9escaped", 0);
    }

    #[test]
    fn what_is_no_line_of_mountinfo_is_none() {
        for line in ["", "25 1 0:23 /", "25 1 0:23 / /point"] {
            assert_eq!(HostMount::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn options_become_what_mount_takes() {
        let check = |kind, options: &[FsOption<'_>], expected: (&str, &str, &str)| {
            let call = MountCall::new(kind, options).unwrap();
            assert_eq!((call.source.as_str(), call.kind.as_str(), call.data.as_str()), expected);
        };
        check(c"mqueue", &[], ("none", "mqueue", ""));
        check(
            c"fuse",
            &[
                (c"source", Some("sifu")),
                (c"subtype", Some("sifu")),
                (c"fd", Some("7")),
                (c"default_permissions", None),
                (c"ro", None),
            ],
            ("sifu", "fuse.sifu", "fd=7,default_permissions"),
        );
    }

    #[test]
    fn a_value_begins_no_option_of_its_own() {
        assert_eq!(MountCall::new(c"tmpfs", &[(c"mode", Some("700,suid"))]), Err(Errno::EINVAL));
    }
}
