//! Root for those who are none: a supervisor answers the system calls by which root differs from the caller.
//!
//! ```text
//!   launcher                       supervisor (in the host's namespaces)
//!   fork ────────────────────────► run: waits
//!   namespaces, mounts
//!   install_listener ────────────► joins the user namespace, takes the listener, says so
//!   exec the command               a trapped call: look at the file; without a record, let the kernel go on;
//!                                  with one, answer from it; chown, mknod, setxattr write one
//!   the last process ends ───────► the listener hangs up, the supervisor ends
//! ```
//!
//! Nothing is put into the container, so it does not matter what its programs are linked with. What is remembered goes
//! into a [`Journal`], from which a packer takes it. `docs/root-emulation.md` has the reasons and the figures.

mod decide;
mod identity;
mod supervisor;
mod target;

use crate::remembered::Journal;
use crate::serve::settle;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{Mode, umask};
use starter::sys::NotificationAnswer;
use starter::trapped::{Call, LISTENER, Scope, USER_NAMESPACE};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use supervisor::{Reply, Supervisor};
use target::Root;

/// Answers the calls of the processes below the one that sends its listener over `control`
/// ([`starter::trapped::install_listener`]), until the last of them has ended; then ends this process.
///
/// Call it in a process forked for this, with one thread, in the host's namespaces: it joins the user namespace of those
/// processes, where it has all capabilities, and stays on the mounts of the host.
pub fn run(control: OwnedFd, journal: Journal, scope: Scope) -> ! {
    let ended = supervise(control, journal, scope);
    starter::sys::exit_immediately(if ended.is_ok() { 0 } else { 1 })
}

fn supervise(control: OwnedFd, journal: Journal, scope: Scope) -> Result<(), Errno> {
    let root = Root::new()?;
    {
        let mut needed = vec![control.as_fd(), root.descriptor()];
        needed.extend(journal.descriptor());
        settle(c"sifu-root", &needed);
    }
    // That took the working directory away.
    nix::unistd::fchdir(root.descriptor())?;
    // Modes are those that the callers ask for.
    umask(Mode::empty());
    let listener = receive_listener(control)?;
    let mut supervisor = Supervisor::new(scope, journal, root);
    while wait(listener.as_fd())? {
        let notification = match starter::sys::receive_notification(listener.as_fd()) {
            Ok(notification) => notification,
            // The caller has gone, or a signal came.
            Err(_) => continue,
        };
        let is_waiting = || starter::sys::notification_is_valid(listener.as_fd(), notification.id);
        let reply = match Call::from_number(notification.number) {
            Some(call) => supervisor.answer(call, &notification, &is_waiting),
            None => Ok(Reply::Continue),
        };
        let answer = match reply {
            Ok(Reply::Continue) => NotificationAnswer::Continue,
            Ok(Reply::Value(value)) => NotificationAnswer::Value(value),
            Ok(Reply::Descriptor { descriptor, close_on_exec }) => {
                match starter::sys::answer_with_descriptor(
                    listener.as_fd(),
                    notification.id,
                    descriptor.as_fd(),
                    close_on_exec,
                ) {
                    Ok(()) => continue,
                    Err(error) => NotificationAnswer::Error(error.raw_os_error().unwrap_or(nix::libc::EIO)),
                }
            }
            Err(errno) => NotificationAnswer::Error(errno as i32),
        };
        // Whoever has gone needs no answer.
        let _ = starter::sys::answer_notification(listener.as_fd(), notification.id, answer);
    }
    Ok(())
}

/// Joins the user namespace, waits for the listener, and tells the sender that all is ready.
fn receive_listener(control: OwnedFd) -> Result<OwnedFd, Errno> {
    match setns(receive(control.as_fd(), USER_NAMESPACE)?, CloneFlags::CLONE_NEWUSER) {
        // It is this one already.
        Err(Errno::EINVAL) => {}
        joined => joined?,
    }
    let listener = receive(control.as_fd(), LISTENER)?;
    starter::sys::wake_on_this_cpu(listener.as_fd());
    send(control.as_raw_fd(), b"L", MsgFlags::MSG_NOSIGNAL)?;
    Ok(listener)
}

/// Waits for the message that begins with `what`, and gives its descriptor.
fn receive(control: BorrowedFd<'_>, what: u8) -> Result<OwnedFd, Errno> {
    let mut byte = [0];
    loop {
        match starter::sys::receive_descriptor(control, &mut byte) {
            Ok((1, Some(descriptor))) if byte == [what] => return Ok(descriptor),
            Ok(_) => return Err(Errno::ECONNRESET),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(target::errno(error)),
        }
    }
}

/// Waits for a call; false when nobody is left who could make one.
fn wait(listener: BorrowedFd<'_>) -> Result<bool, Errno> {
    loop {
        let mut polled = [PollFd::new(listener, PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            answer => answer?,
        };
        let events = polled[0].revents().unwrap_or(PollFlags::empty());
        if events.contains(PollFlags::POLLIN) {
            return Ok(true);
        }
        if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Ok(false);
        }
    }
}
