//! Ranks of one job step that share a container: they come one by one, and each may be the first to go.
//!
//! ```text
//!   first rank   binds the names, starts this server, performs the plan         owner
//!   later ranks  connect, send a descriptor of themselves, get the namespaces   owners too
//!                (by an early name: and another rank's plan)
//!   last owner   ends: the names and the namespaces are let go
//! ```
//!
//! A rank that comes while the first one is still at work waits in line. One that comes when all is over finds no name,
//! or a closed connection, and begins anew. Programs may be shorter than it takes to start them all: as long as ranks are
//! still to come, the container is kept for [`PATIENCE`] without an owner.

use nix::sys::socket::{getsockopt, sockopt};
use starter::image_server::{
    EARLY_RANK, LISTENER, PLAN, RANK, receive, send_mount_namespace, send_plan, send_user_namespace,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Connections that have not said what they want; more are not accepted at a time.
const ARRIVALS_MAX: usize = 1024;
/// Ranks of one step have few kinds of plans, or as many as there are ranks, and then nobody needs another's.
const DOORS_MAX: usize = 16;
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
    doors: Vec<Door>,
    /// Connected, and not known yet.
    arrivals: Vec<Arrival>,
    /// Known, and waiting for the namespaces; some for a plan as well.
    waiting: Vec<(UnixStream, Option<Plan>)>,
    /// How many may still come; 0 if that is not known.
    to_come: u32,
}

/// Where ranks come in.
struct Door {
    listener: UnixListener,
    /// What those get that come here without a plan.
    plan: Option<Plan>,
}

#[derive(Clone)]
struct Plan {
    file: Rc<OwnedFd>,
    until: Instant,
}

struct Arrival {
    stream: UnixStream,
    /// What there is for it.
    plan: Option<Plan>,
    /// What it has brought for others.
    listener: Option<OwnedFd>,
    file: Option<OwnedFd>,
}

/// The namespaces of the container.
#[derive(Default)]
pub(super) struct Namespaces {
    pub mount: Option<OwnedFd>,
    pub user: Option<OwnedFd>,
}

impl Ranks {
    pub fn new(meeting: Option<Meeting>) -> Self {
        let mut ranks = Self::default();
        if let Some(Meeting { listener, early, ranks: announced }) = meeting {
            ranks.to_come = announced.map_or(0, |announced| announced.saturating_sub(1));
            ranks.open_door(listener, None);
            if let Some((listener, file)) = early {
                ranks.open_door(listener, Some(file));
            }
        }
        ranks
    }

    fn open_door(&mut self, listener: OwnedFd, file: Option<OwnedFd>) {
        let listener = UnixListener::from(listener);
        // A rank that goes away between the wake-up and the call must not keep the server waiting.
        if self.doors.len() < DOORS_MAX && listener.set_nonblocking(true).is_ok() {
            let plan = file.map(|file| Plan { file: Rc::new(file), until: Instant::now() + PLAN_IS_GOOD_FOR });
            self.doors.push(Door { listener, plan });
        }
    }

    /// Whether later ranks may still come.
    pub fn open(&self) -> bool {
        !self.doors.is_empty()
    }

    /// Whether the launcher has announced more ranks than have come.
    pub fn more_are_announced(&self) -> bool {
        self.open() && self.to_come > 0
    }

    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.doors.iter().filter(|_| self.arrivals.len() < ARRIVALS_MAX).map(|door| door.listener.as_fd())
    }

    pub fn arrivals(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.arrivals.iter().map(|arrival| arrival.stream.as_fd())
    }

    /// Takes the ranks that wait at the listener at `index`, if they are of the same user. Gives the descriptors of those
    /// that have said already that they join.
    pub fn accept(&mut self, index: usize) -> Vec<OwnedFd> {
        let mut owners = Vec::new();
        while self.arrivals.len() < ARRIVALS_MAX
            && let Some(door) = self.doors.get(index)
            && let Ok((stream, _)) = door.listener.accept()
        {
            let plan = door.plan.clone();
            let peer = getsockopt(&stream, sockopt::PeerCredentials);
            let ours = peer.is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw());
            if ours && stream.set_nonblocking(true).is_ok() {
                owners.extend(self.hear_from(Arrival { stream, plan, listener: None, file: None }));
            }
        }
        owners
    }

    /// Hears what the arrival at `index` wants: the descriptor of a new owner, if it joins.
    pub fn hear(&mut self, index: usize) -> Option<OwnedFd> {
        if index >= self.arrivals.len() {
            return None;
        }
        let arrival = self.arrivals.swap_remove(index);
        self.hear_from(arrival)
    }

    fn hear_from(&mut self, mut arrival: Arrival) -> Option<OwnedFd> {
        loop {
            let (process, plan) = match receive(&arrival.stream) {
                Ok(Some((LISTENER, listener))) => {
                    arrival.listener = Some(listener);
                    continue;
                }
                Ok(Some((PLAN, file))) => {
                    arrival.file = Some(file);
                    continue;
                }
                Ok(Some((RANK, process))) => {
                    if let (Some(listener), Some(file)) = (arrival.listener, arrival.file) {
                        self.open_door(listener, Some(file));
                    }
                    (process, None)
                }
                // Who comes too late makes a plan, and finds the container by that.
                Ok(Some((EARLY_RANK, process))) => {
                    (process, Some(arrival.plan.filter(|plan| Instant::now() < plan.until)?))
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.arrivals.push(arrival);
                    return None;
                }
                _ => return None,
            };
            self.to_come = self.to_come.saturating_sub(1);
            self.waiting.push((arrival.stream, plan));
            return Some(process);
        }
    }

    /// Gives the namespaces, if they are there, to all who wait for them.
    pub fn serve(&mut self, namespaces: &Namespaces) {
        let (Some(user), Some(mount)) = (&namespaces.user, &namespaces.mount) else { return };
        for (rank, plan) in self.waiting.drain(..) {
            // A rank that is gone by now needs none.
            let _ = plan
                .map_or(Ok(()), |plan| send_plan(&rank, &*plan.file))
                .and_then(|()| send_user_namespace(&rank, user))
                .and_then(|()| send_mount_namespace(&rank, mount));
        }
    }

    /// Lets the names go: nobody joins any more.
    pub fn close(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::end_of_this_process;
    use starter::image_server::{MOUNT_NAMESPACE, USER_NAMESPACE, send_listener, send_rank};
    use std::fs::File;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    fn door(name: &str) -> (OwnedFd, SocketAddr) {
        let name = format!("sifu-test-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        (UnixListener::bind_addr(&address).unwrap().into(), address)
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn namespaces() -> Namespaces {
        Namespaces { mount: Some(null()), user: Some(null()) }
    }

    fn told(rank: &UnixStream) -> Vec<u8> {
        std::iter::from_fn(|| receive(rank).ok().flatten()).map(|(kind, _)| kind).collect()
    }

    #[test]
    fn who_has_a_plan_lets_others_in() {
        let (listener, address) = door("plan");
        let (early, early_address) = door("early");
        let mut ranks = Ranks::new(Some(Meeting { listener, early: None, ranks: Some(3) }));
        assert_eq!(ranks.listeners().count(), 1);

        // This one is first at the early door, where another waits already.
        let other = UnixStream::connect_addr(&early_address).unwrap();
        send_rank(&other, EARLY_RANK, end_of_this_process().unwrap()).unwrap();
        let rank = UnixStream::connect_addr(&address).unwrap();
        send_listener(&rank, early).unwrap();
        send_plan(&rank, null()).unwrap();
        assert!(ranks.accept(0).is_empty(), "it has not said that it joins");
        assert_eq!((ranks.arrivals().count(), ranks.listeners().count()), (1, 1));
        send_rank(&rank, RANK, end_of_this_process().unwrap()).unwrap();
        assert!(ranks.hear(0).is_some());
        assert_eq!(ranks.accept(1).len(), 1);
        assert!(!ranks.more_are_announced());

        ranks.serve(&Namespaces::default());
        ranks.serve(&namespaces());
        assert_eq!(told(&rank), [USER_NAMESPACE, MOUNT_NAMESPACE]);
        assert_eq!(told(&other), [PLAN, USER_NAMESPACE, MOUNT_NAMESPACE]);
    }

    #[test]
    fn who_comes_without_a_plan_where_there_is_none_is_sent_away() {
        let (listener, address) = door("none");
        let (early, early_address) = door("old");
        let mut ranks = Ranks::new(Some(Meeting { listener, early: Some((early, null())), ranks: None }));
        for door in &mut ranks.doors {
            door.plan.iter_mut().for_each(|plan| plan.until = Instant::now());
        }
        for (index, address) in [&address, &early_address].into_iter().enumerate() {
            let rank = UnixStream::connect_addr(address).unwrap();
            send_rank(&rank, EARLY_RANK, end_of_this_process().unwrap()).unwrap();
            assert!(ranks.accept(index).is_empty());
            ranks.serve(&namespaces());
            assert_eq!(told(&rank), [0; 0]);
        }
    }
}
