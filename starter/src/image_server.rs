//! What the launcher tells the image server: a message is two bytes and one descriptor, over a Unix socket.
//!
//! ```text
//!   'F' index    a `/dev/fuse` descriptor, sent once the file system of image `index` is mounted
//!   'N' 0        the mount namespace of the container, to be held until its owner ends
//! ```
//!
//! Reading `/dev/fuse` before the mount fails, so the server waits for the first message.

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// First byte of the message that brings a `/dev/fuse` descriptor.
pub const FUSE: u8 = b'F';
/// First byte of the message that brings the mount namespace.
pub const MOUNT_NAMESPACE: u8 = b'N';

/// Hands the server the `/dev/fuse` descriptor of image `index`; the file system must be mounted.
pub fn send_fuse(control: impl AsFd, index: u8, fuse: impl AsFd) -> io::Result<()> {
    send(control.as_fd(), [FUSE, index], fuse.as_fd())
}

/// Hands the server the container's mount namespace: it closes it, and so takes the namespace down, when the owner
/// has ended, so that nobody has to wait for that.
pub fn send_mount_namespace(control: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    send(control.as_fd(), [MOUNT_NAMESPACE, 0], namespace.as_fd())
}

fn send(control: BorrowedFd<'_>, message: [u8; 2], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor.as_raw_fd()];
    let control_message = [ControlMessage::ScmRights(&descriptors)];
    loop {
        match sendmsg::<()>(
            control.as_raw_fd(),
            &[IoSlice::new(&message)],
            &control_message,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
