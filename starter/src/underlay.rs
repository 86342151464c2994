//! A root with more in it than a directory has, where there is no overlay: rebuilt on a tmpfs.
//!
//! ```text
//!   directory       nodes            tmpfs
//!   bin/                             bin/        mounted from the directory
//!   lib -> usr/lib                   lib         the same link
//!   etc/                             etc/        rebuilt, since something is added below
//!     hosts                            hosts     mounted from the directory
//!     passwd        etc/passwd         passwd    the node
//!                   scratch/a        scratch/a/  made
//! ```
//!
//! A directory is rebuilt only if one of the nodes lies below it, so what this costs is a mount for each entry of those.

use crate::mounts::{bind_below, by_number};
use crate::plan::{Node, NodeContent};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::symlinkat;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const PLACE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Fills `layer`, an empty directory, with what is in `directory` and with `nodes`, which replace what is there under
/// their names unless both are directories. Both must lie on mounts that are attached.
pub(crate) fn build(directory: BorrowedFd<'_>, layer: BorrowedFd<'_>, nodes: &[Node]) -> nix::Result<()> {
    let mut wanted = Wanted::default();
    for node in nodes {
        let mut at = &mut wanted;
        for name in node.path.components() {
            at = at.below.entry(name).or_default();
        }
        at.node = Some(node);
    }
    rebuild(Some(directory), layer, &wanted)
}

/// What is to be at a path, and below it.
#[derive(Default)]
struct Wanted<'a> {
    node: Option<&'a Node>,
    below: BTreeMap<&'a [u8], Wanted<'a>>,
}

/// Fills the directory `to` with what is in `from`, and with what is wanted.
fn rebuild(from: Option<BorrowedFd<'_>>, to: BorrowedFd<'_>, wanted: &Wanted<'_>) -> nix::Result<()> {
    if let Some(from) = from {
        for entry in std::fs::read_dir(by_number(from)).map_err(|error| errno_of(&error))? {
            let name = entry.map_err(|error| errno_of(&error))?.file_name();
            if wanted.below.contains_key(name.as_bytes()) {
                continue;
            }
            match openat(from, name.as_os_str(), PLACE, Mode::empty()) {
                // Removed meanwhile.
                Err(Errno::ENOENT) => {}
                entry => show(&entry?, to, &name)?,
            }
        }
    }
    for (name, wanted) in &wanted.below {
        let name = OsStr::from_bytes(name);
        let there = from.and_then(|from| openat(from, name, PLACE | OFlag::O_DIRECTORY, Mode::empty()).ok());
        match (wanted.node, there) {
            (Some(Node { content: NodeContent::File(content), mode, .. }), _) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let file = openat(to, name, flags, Mode::from_bits_truncate(*mode))?;
                File::from(file).write_all(content).map_err(|error| errno_of(&error))?;
            }
            (Some(Node { content: NodeContent::Symlink(target), .. }), _) => {
                symlinkat(OsStr::from_bytes(target), to, name)?;
            }
            (_, Some(there)) if wanted.below.is_empty() => show(&there, to, name)?,
            (node, there) => {
                let mode = match (&there, node) {
                    (Some(there), _) => fstat(there)?.st_mode & 0o7777,
                    (None, Some(node)) => node.mode,
                    (None, None) => 0o755,
                };
                let made = directory(to, name, mode)?;
                rebuild(there.as_ref().map(AsFd::as_fd), made.as_fd(), wanted)?;
            }
        }
    }
    Ok(())
}

/// Shows what `entry` is open on as `name` in the directory `to`.
fn show(entry: &OwnedFd, to: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    match SFlag::from_bits_truncate(fstat(entry)?.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFLNK => return symlinkat(readlinkat(entry, "")?.as_os_str(), to, name),
        SFlag::S_IFDIR => drop(directory(to, name, 0o700)?),
        _ => drop(openat(to, name, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC, Mode::S_IRUSR)?),
    }
    bind_below(entry.as_fd(), &by_number(to).join(name))
}

fn directory(at: BorrowedFd<'_>, name: &OsStr, mode: u32) -> nix::Result<OwnedFd> {
    mkdirat(at, name, Mode::from_bits_truncate(mode))?;
    openat(at, name, PLACE | OFlag::O_DIRECTORY, Mode::empty())
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
