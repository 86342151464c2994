//! The image server: SquashFS partitions over `/dev/fuse`, without libfuse, in a process of its own.
//!
//! ```text
//!   launcher                             server (forked before the container's mount namespace exists)
//!   fork ──────────────────────────────► settle: signals, session, descriptors, limits
//!   mount, send_fuse ──────────────────► the main thread answers; it sleeps in poll(2)
//!   send_mount_namespace ──────────────► held
//!   exec the command                     READs queue up: workers, as many as there are CPUs, 8 at most
//!   the command ends ──────────────────► the namespace is let go, and taken down here
//!                                        the last user is gone: the device says ENODEV, the server ends
//! ```
//!
//! It never sits in the mount namespace that holds its own mount, so it can't keep that alive. Images don't change, so
//! every answer is valid for ever, and "there is no such name" is an answer too.

mod control;
mod invented;
mod process;
mod ranks;
mod served;
mod threads;
mod wire;
mod witness;

pub use invented::{Invented, InventedContent};
pub(crate) use process::settle;
pub use ranks::Meeting;
pub use starter::image_server::{send_fuse, send_mount_namespace};
pub use witness::end_of_this_process;

use crate::squashfs::Reader;
use std::os::fd::OwnedFd;

/// How an image is shown.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub owner: Owner,
    /// Nodes that the image lacks, or that replace its own.
    pub invented: Vec<Invented>,
}

/// Whom the files of an image belong to, in ids of the user namespace of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// One user and group own everything.
    Everyone { uid: u32, gid: u32 },
    /// As the image says.
    Recorded,
}

/// Serves `images` until nobody uses them any more, then ends the process.
///
/// Call it in a process forked for this, with one thread. `control` gets the descriptors ([`send_fuse`] once per image,
/// [`send_mount_namespace`]); if it is closed before the first arrives, the server ends. `owner` comes from
/// [`end_of_this_process`]: when that process has ended, the mount namespace is let go. Whoever joins over the sockets of
/// `ranks` (see [`starter::image_server`]) is an owner too.
pub fn run(images: Vec<(Reader, ServeOptions)>, control: OwnedFd, owner: Option<OwnedFd>, ranks: Option<Meeting>) -> ! {
    let code = threads::serve(images, control, owner, ranks);
    starter::sys::exit_immediately(code)
}
