//! The socket between launcher and server: a message is two bytes and one descriptor.
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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const FUSE: u8 = b'F';
const MOUNT_NAMESPACE: u8 = b'N';

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

#[derive(Debug)]
pub(super) enum Message {
    Fuse {
        index: u8,
        descriptor: OwnedFd,
    },
    MountNamespace(OwnedFd),
    /// Nothing that is known.
    Other,
    /// The launcher closed its end.
    Closed,
}

/// Waits for the next message.
pub(super) fn receive(control: BorrowedFd<'_>) -> Message {
    let mut bytes = [0; 2];
    loop {
        return match starter::sys::receive_descriptor(control, &mut bytes) {
            Ok((2, Some(descriptor))) => match bytes {
                [FUSE, index] => Message::Fuse { index, descriptor },
                [MOUNT_NAMESPACE, 0] => Message::MountNamespace(descriptor),
                _ => Message::Other,
            },
            Ok((0, _)) => Message::Closed,
            Ok(_) => Message::Other,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => Message::Closed,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_arrive_in_order_and_the_end_is_seen() {
        let (launcher, server) = UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send_fuse(&launcher, 3, &null).unwrap();
        send_mount_namespace(&launcher, &null).unwrap();
        drop(launcher);
        assert!(matches!(receive(server.as_fd()), Message::Fuse { index: 3, .. }));
        assert!(matches!(receive(server.as_fd()), Message::MountNamespace(_)));
        assert!(matches!(receive(server.as_fd()), Message::Closed));
    }

    #[test]
    fn bytes_without_a_descriptor_are_no_message() {
        use std::io::Write;
        let (mut launcher, server) = UnixStream::pair().unwrap();
        launcher.write_all(b"F\0").unwrap();
        assert!(matches!(receive(server.as_fd()), Message::Other));
    }
}
