//! The end of a process, as a descriptor that becomes readable then.
//!
//! The process becomes the command: of what it is now, only its process id stays. A pidfd (Linux 5.3) is all that is needed.
//! Where there is none, or a filter of system calls forbids it, a child holds one end of a pipe until its parent has ended:
//!
//! ```text
//!   process ──fork──► witness: asks for a signal at its parent's end, sleeps
//!      │ ends ──────► the kernel sends the signal; the witness has another parent, and ends
//!                     the pipe's last writer is gone: its other end, wherever it was sent to, is readable
//! ```
//!
//! The signal proves nothing, since anybody can send it, and does not come from a command that has changed its user. So
//! it is the parent that counts, and that is looked at now and then without a signal, too.

use super::settle;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, getppid};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How often the witness looks at its parent without having been told to.
const LOOK_MILLISECONDS: u16 = 10_000;

/// Opens a descriptor that becomes readable when this process, whatever it has become, has ended. Closed on exec.
///
/// The process must have one thread.
pub fn end_of_this_process() -> io::Result<OwnedFd> {
    match starter::sys::pidfd_open(getpid().as_raw()) {
        Err(Errno::ENOSYS | Errno::EPERM) => witnessed(),
        opened => Ok(opened?),
    }
}

fn witnessed() -> io::Result<OwnedFd> {
    let (end, held) = io::pipe()?;
    let process = getpid();
    starter::sys::fork_unseen(move || {
        settle(c"sifu-witness", &[held.as_fd()]);
        outlive(process);
        // The descriptors of other owners are closed already.
        starter::sys::exit_immediately(0)
    })?;
    Ok(end.into())
}

/// Waits until the parent of this process is not `parent` any more. All signals are blocked.
fn outlive(parent: Pid) {
    let mut told = SigSet::empty();
    told.add(Signal::SIGUSR1);
    let signals = SignalFd::with_flags(&told, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
    // Without the signal the end is seen later, and no less.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGUSR1);
    while getppid() == parent {
        let mut wake: Vec<_> = signals.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        let _ = poll(&mut wake, PollTimeout::from(LOOK_MILLISECONDS));
        while let Some(Ok(Some(_))) = signals.as_ref().ok().map(SignalFd::read_signal) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::kill;
    use std::io::{Read, Write};

    fn is_readable(end: &OwnedFd, limit: PollTimeout) -> bool {
        matches!(poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], limit), Ok(1))
    }

    /// Lets a process ask for its own end, and a child of it watch that this comes when it should.
    fn check(ask: fn() -> io::Result<OwnedFd>) {
        let (mut answer, report) = io::pipe().unwrap();
        let (wait, watching) = io::pipe().unwrap();
        let forked = starter::sys::fork_child(move || {
            let Ok(end) = ask() else { return 1 };
            let _ = starter::sys::fork_unseen(move || {
                let early = is_readable(&end, PollTimeout::from(50_u16));
                drop(watching);
                let at_the_end = is_readable(&end, PollTimeout::from(LOOK_MILLISECONDS / 2));
                let _ = (&report).write_all(&[u8::from(!early && at_the_end)]);
                0
            });
            let _ = (&wait).read(&mut [0]);
            0
        });
        assert_eq!(starter::sys::wait_status(forked.unwrap()).unwrap(), 0);
        let mut byte = [0];
        answer.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [1]);
    }

    #[test]
    fn a_pidfd_shows_the_end() {
        check(end_of_this_process);
    }

    #[test]
    fn without_a_pidfd_a_witness_shows_the_end() {
        check(witnessed);
    }

    #[test]
    fn a_signal_from_anybody_is_not_the_end() {
        let (end, held) = io::pipe().unwrap();
        let end = OwnedFd::from(end);
        let forked = starter::sys::fork_child(|| {
            let _ = SigSet::all().thread_block();
            let process = getpid();
            let witness = starter::sys::fork_unseen(move || {
                outlive(process);
                drop(held);
                0
            });
            let _ = kill(Pid::from_raw(witness.unwrap_or(0)), Signal::SIGUSR1);
            u8::from(is_readable(&end, PollTimeout::from(50_u16)))
        });
        assert_eq!(starter::sys::wait_status(forked.unwrap()).unwrap(), 0, "it ended too early");
        assert!(is_readable(&end, PollTimeout::from(LOOK_MILLISECONDS / 2)));
    }
}
