//! The server's end of the socket to the launcher; [`starter::image_server`] says what a message is.

use starter::image_server::{FUSE, MOUNT_NAMESPACE, USER_NAMESPACE};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

#[derive(Debug)]
pub(super) enum Message {
    Fuse {
        index: u8,
        descriptor: OwnedFd,
    },
    MountNamespace(OwnedFd),
    UserNamespace(OwnedFd),
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
                [USER_NAMESPACE, 0] => Message::UserNamespace(descriptor),
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
    use starter::image_server::{send_fuse, send_mount_namespace};
    use std::os::fd::AsFd;
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
