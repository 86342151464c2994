//! What the launcher tells the image server: a message is two bytes and one descriptor, over a Unix socket.
//!
//! ```text
//!   'F' index    a `/dev/fuse` descriptor, sent once the file system of image `index` is mounted
//!   'N' 0        the mount namespace of the container, to be held until its last owner ends
//!   'U' 0        its user namespace, for ranks that join
//! ```
//!
//! Reading `/dev/fuse` before the mount fails, so the server waits for the first message.
//!
//! A rank of the same job step that comes later speaks to the server over a socket of its own:
//!
//! ```text
//!   'R' 0        rank to server: a descriptor of the rank's process, which is an owner from now on
//!   'L' 0, 'P' 0 before that, if it can help others: a listening socket, and a file that holds what they need of its plan
//!   'E' 0        rank to server, over such a socket: as 'R', by a rank that has no plan of its own
//!   'U' 0, 'N' 0 server to rank: the namespaces, once they are there
//!   'P' 0        before them, to a rank without a plan: the file
//! ```

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// First byte of the message that brings a `/dev/fuse` descriptor.
pub const FUSE: u8 = b'F';
/// First byte of the message that brings the mount namespace.
pub const MOUNT_NAMESPACE: u8 = b'N';
/// First byte of the message that brings the user namespace.
pub const USER_NAMESPACE: u8 = b'U';
/// First byte of the message by which a rank joins.
pub const RANK: u8 = b'R';
/// First byte of the message by which a rank joins that has no plan of its own.
pub const EARLY_RANK: u8 = b'E';
/// First byte of the message that brings a plan.
pub const PLAN: u8 = b'P';
/// First byte of the message that brings a socket at which ranks without a plan come in.
pub const LISTENER: u8 = b'L';

/// Hands the server the `/dev/fuse` descriptor of image `index`; the file system must be mounted.
pub fn send_fuse(control: impl AsFd, index: u8, fuse: impl AsFd) -> io::Result<()> {
    send(control.as_fd(), [FUSE, index], fuse.as_fd())
}

/// Hands the server the container's mount namespace: it closes it, and so takes the namespace down, when the owner
/// has ended, so that nobody has to wait for that.
pub fn send_mount_namespace(control: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    send(control.as_fd(), [MOUNT_NAMESPACE, 0], namespace.as_fd())
}

/// Hands the server the container's user namespace.
pub fn send_user_namespace(control: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    send(control.as_fd(), [USER_NAMESPACE, 0], namespace.as_fd())
}

/// Tells the server that a process wants to join, as a [`RANK`] or an [`EARLY_RANK`]; `end` becomes readable when it has
/// ended.
pub fn send_rank(server: impl AsFd, kind: u8, end: impl AsFd) -> io::Result<()> {
    send(server.as_fd(), [kind, 0], end.as_fd())
}

/// Hands over the file with a plan.
pub fn send_plan(to: impl AsFd, plan: impl AsFd) -> io::Result<()> {
    send(to.as_fd(), [PLAN, 0], plan.as_fd())
}

/// Hands the server a socket at which ranks without a plan come in.
pub fn send_listener(server: impl AsFd, listener: impl AsFd) -> io::Result<()> {
    send(server.as_fd(), [LISTENER, 0], listener.as_fd())
}

/// Waits for one message: its first byte and its descriptor; `None` when the other side is gone.
pub fn receive(socket: impl AsFd) -> io::Result<Option<(u8, OwnedFd)>> {
    let mut bytes = [0; 2];
    loop {
        match crate::sys::receive_descriptor(socket.as_fd(), &mut bytes) {
            Ok((2, Some(descriptor))) => return Ok(Some((bytes[0], descriptor))),
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends one message.
pub fn send(control: BorrowedFd<'_>, message: [u8; 2], descriptor: BorrowedFd<'_>) -> io::Result<()> {
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
