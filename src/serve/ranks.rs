//! Ranks of one job step that share a container: they come one by one, and each may be the first to go.
//!
//! ```text
//!   first rank   binds the names, starts this server, performs the plan         owner
//!   later ranks  connect, send a descriptor of themselves, get the namespaces   owners too
//!                (by the early name: and the first rank's plan)
//!   last owner   ends: the names and the namespaces are let go
//! ```
//!
//! A rank that comes while the first one is still at work waits in line. One that comes when all is over finds no name,
//! or a closed connection, and begins anew. Programs may be shorter than it takes to start them all: as long as ranks are
//! still to come, the container is kept for [`PATIENCE`] without an owner.

use nix::sys::socket::{getsockopt, sockopt};
use starter::image_server::{EARLY_RANK, RANK, receive, send_mount_namespace, send_plan, send_user_namespace};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Connections that have not said what they want; more are not accepted at a time.
const ARRIVALS_MAX: usize = 1024;
/// Between the end of the last rank and the coming of the next one.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// So long a plan may be somebody else's: the host that it was made for may have changed after that.
const PLAN_IS_GOOD_FOR: Duration = Duration::from_secs(10);

/// Where ranks find the container.
pub struct Meeting {
    /// A listening socket, for ranks whose own plan says the same.
    pub listener: OwnedFd,
    /// Another one, for those that have none, and the file with the plan that they are to have.
    pub early: Option<(OwnedFd, OwnedFd)>,
    /// How many ranks there will be at most, this one included, where that is known.
    pub ranks: Option<u32>,
}

impl Meeting {
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let early = self.early.iter().flat_map(|(listener, plan)| [listener.as_fd(), plan.as_fd()]);
        std::iter::once(self.listener.as_fd()).chain(early)
    }
}

/// The line of ranks.
#[derive(Default)]
pub(super) struct Ranks {
    listeners: Vec<UnixListener>,
    /// For ranks without one, and until when.
    plan: Option<(OwnedFd, Instant)>,
    /// Connected, and not known yet.
    arrivals: Vec<UnixStream>,
    /// Known, and waiting for the namespaces; whether for a plan as well.
    waiting: Vec<(UnixStream, bool)>,
    /// How many may still come; 0 if that is not known.
    to_come: u32,
}

/// The namespaces of the container.
#[derive(Default)]
pub(super) struct Namespaces {
    pub mount: Option<OwnedFd>,
    pub user: Option<OwnedFd>,
}

impl Ranks {
    pub fn new(meeting: Option<Meeting>) -> Self {
        let Some(Meeting { listener, early, ranks }) = meeting else { return Self::default() };
        let (early, plan) = early.unzip();
        let listeners: Vec<UnixListener> = std::iter::once(listener).chain(early).map(UnixListener::from).collect();
        for listener in &listeners {
            // A rank that goes away between the wake-up and the call must not keep the server waiting.
            let _ = listener.set_nonblocking(true);
        }
        Self {
            listeners,
            plan: plan.map(|plan| (plan, Instant::now() + PLAN_IS_GOOD_FOR)),
            to_come: ranks.map_or(0, |ranks| ranks.saturating_sub(1)),
            ..Self::default()
        }
    }

    /// Whether later ranks may still come.
    pub fn open(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Whether the launcher has announced more ranks than have come.
    pub fn more_are_announced(&self) -> bool {
        self.open() && self.to_come > 0
    }

    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listeners.iter().filter(|_| self.arrivals.len() < ARRIVALS_MAX).map(AsFd::as_fd)
    }

    pub fn arrivals(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.arrivals.iter().map(AsFd::as_fd)
    }

    /// Takes the ranks that wait at the listener at `index`, if they are of the same user. Gives the descriptors of those
    /// that have said already that they join.
    pub fn accept(&mut self, index: usize) -> Vec<OwnedFd> {
        let mut owners = Vec::new();
        while self.arrivals.len() < ARRIVALS_MAX
            && let Some(listener) = self.listeners.get(index)
            && let Ok((stream, _)) = listener.accept()
        {
            let peer = getsockopt(&stream, sockopt::PeerCredentials);
            let ours = peer.is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw());
            if ours && stream.set_nonblocking(true).is_ok() {
                owners.extend(self.hear_from(stream));
            }
        }
        owners
    }

    /// Hears what the arrival at `index` wants: the descriptor of a new owner, if it joins.
    pub fn hear(&mut self, index: usize) -> Option<OwnedFd> {
        if index >= self.arrivals.len() {
            return None;
        }
        let stream = self.arrivals.swap_remove(index);
        self.hear_from(stream)
    }

    fn hear_from(&mut self, stream: UnixStream) -> Option<OwnedFd> {
        let (early, process) = match receive(&stream) {
            Ok(Some((RANK, process))) => (false, process),
            Ok(Some((EARLY_RANK, process))) if self.plan().is_some() => (true, process),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.arrivals.push(stream);
                return None;
            }
            _ => return None,
        };
        self.to_come = self.to_come.saturating_sub(1);
        self.waiting.push((stream, early));
        Some(process)
    }

    /// The plan for those that have none, if it is still good.
    fn plan(&self) -> Option<BorrowedFd<'_>> {
        self.plan.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(plan, _)| plan.as_fd())
    }

    /// Gives the namespaces, if they are there, to all who wait for them.
    pub fn serve(&mut self, namespaces: &Namespaces) {
        let (Some(user), Some(mount)) = (&namespaces.user, &namespaces.mount) else { return };
        for (rank, early) in std::mem::take(&mut self.waiting) {
            let plan = if early { self.plan() } else { None };
            if early && plan.is_none() {
                continue;
            }
            // A rank that is gone by now needs none.
            let _ = plan
                .map_or(Ok(()), |plan| send_plan(&rank, plan))
                .and_then(|()| send_user_namespace(&rank, user))
                .and_then(|()| send_mount_namespace(&rank, mount));
        }
    }

    /// Lets the names go: nobody joins any more.
    pub fn close(&mut self) {
        *self = Self::default();
    }
}
