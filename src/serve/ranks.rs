//! Ranks of one job step that share a container: they come one by one, and each may be the first to go.
//!
//! ```text
//!   first rank   binds the name, starts this server, performs the plan          owner
//!   later ranks  connect, send a descriptor of themselves, get the namespaces   owners too
//!   last owner   ends: the name and the namespaces are let go
//! ```
//!
//! A rank that comes while the first one is still at work waits in line. One that comes when all is over finds no name,
//! or a closed connection, and begins anew.

use nix::sys::socket::{getsockopt, sockopt};
use starter::image_server::{RANK, receive, send_mount_namespace, send_user_namespace};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// Connections that have not said what they want; more are not accepted at a time.
const ARRIVALS_MAX: usize = 1024;

/// The line of ranks.
#[derive(Default)]
pub(super) struct Ranks {
    listener: Option<UnixListener>,
    /// Connected, and not known yet.
    arrivals: Vec<UnixStream>,
    /// Known, and waiting for the namespaces.
    waiting: Vec<UnixStream>,
}

/// The namespaces of the container.
#[derive(Default)]
pub(super) struct Namespaces {
    pub mount: Option<OwnedFd>,
    pub user: Option<OwnedFd>,
}

impl Ranks {
    pub fn new(listener: Option<OwnedFd>) -> Self {
        let listener = listener.map(UnixListener::from);
        if let Some(listener) = &listener {
            // A rank that goes away between the wake-up and the call must not keep the server waiting.
            let _ = listener.set_nonblocking(true);
        }
        Self { listener, ..Self::default() }
    }

    /// Whether later ranks may still come.
    pub fn open(&self) -> bool {
        self.listener.is_some()
    }

    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().filter(|_| self.arrivals.len() < ARRIVALS_MAX).map(AsFd::as_fd)
    }

    pub fn arrivals(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.arrivals.iter().map(AsFd::as_fd)
    }

    /// Takes a rank from the line, if it is of the same user.
    pub fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let Ok((stream, _)) = listener.accept() else { return };
        let peer = getsockopt(&stream, sockopt::PeerCredentials);
        if peer.is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw()) {
            self.arrivals.push(stream);
        }
    }

    /// Hears what the arrival at `index` wants: the descriptor of a new owner, if it joins.
    pub fn hear(&mut self, index: usize) -> Option<OwnedFd> {
        if index >= self.arrivals.len() {
            return None;
        }
        let stream = self.arrivals.swap_remove(index);
        match receive(&stream) {
            Ok(Some((RANK, process))) => {
                self.waiting.push(stream);
                Some(process)
            }
            _ => None,
        }
    }

    /// Gives the namespaces, if they are there, to all who wait for them.
    pub fn serve(&mut self, namespaces: &Namespaces) {
        if let (Some(user), Some(mount)) = (&namespaces.user, &namespaces.mount) {
            for rank in self.waiting.drain(..) {
                // A rank that is gone by now needs none.
                let _ = send_user_namespace(&rank, user).and_then(|()| send_mount_namespace(&rank, mount));
            }
        }
    }

    /// Lets the name go: nobody joins any more.
    pub fn close(&mut self) {
        *self = Self::default();
    }
}
