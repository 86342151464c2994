//! The processes around a command in a pid namespace of its own: the parent outside, and process 1 inside.
//!
//! ```text
//!   outside   the launcher, which stays: the caller knows its process id
//!   inside    process 1: the command itself, or the small init that waits for it and for orphans
//!             process 2: the command
//! ```
//!
//! A signal that was sent to the launcher, or to process 1, is passed on to the command. One that the terminal sends
//! goes to the whole process group, so the command has it already. How the command ended reaches the launcher over a
//! pipe, since the exit code of process 1 could not tell an exit code of 137 from a kill.

use crate::perform::PerformError;
use crate::sys;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::io::{PipeReader, PipeWriter, Read, Write};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(u8),
    Signaled(i32),
}

impl Ended {
    /// Reads a status as `wait(2)` gives it.
    pub fn from_status(status: i32) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = std::process::ExitStatus::from_raw(status);
        match (status.code(), status.signal()) {
            // The low byte is all that the kernel keeps.
            (Some(code), _) => Self::Exited(code as u8),
            (None, Some(signal)) => Self::Signaled(signal),
            (None, None) => Self::Exited(255),
        }
    }

    /// The exit code that a shell shows for it.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => u8::try_from(128 + signal).unwrap_or(255),
        }
    }
}

/// Ends this process as `ended` says; gives the exit code for a signal that does not kill this process.
pub fn end_alike(ended: Ended) -> u8 {
    if let Ended::Signaled(number) = ended
        && let Ok(signal) = Signal::try_from(number)
    {
        // A core dump of the launcher would hide the command's.
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
        let _ = sys::default_signal(signal);
        let _ = nix::sys::signal::raise(signal);
    }
    ended.code()
}

/// Which of two processes this one is.
pub(crate) enum Forked {
    /// Outside; everything inside has ended.
    Parent(Ended),
    /// Outside; process 1, with this id, goes on by itself.
    Left(i32),
    /// Process 1.
    Child(First),
}

/// Process 1 of the pid namespace.
pub(crate) struct First {
    /// Tells the parent how the command ended.
    result: PipeWriter,
    callers_mask: SigSet,
}

/// Forks process 1 of a pid namespace that was unshared before. If `detached`, the parent stays only until that has
/// said that it stands on its own.
pub(crate) fn fork_first_process(detached: bool) -> Result<Forked, PerformError> {
    let system = |doing| move |errno| PerformError::System { doing, errno };
    let (result, report) = std::io::pipe().map_err(|_| Errno::EMFILE).map_err(system("make a pipe"))?;
    let callers_mask = block_signals().map_err(system("block signals"))?;
    match sys::fork().map_err(system("fork"))? {
        None => {
            drop(result);
            // Without its parent the container would go on unseen.
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            let first = First { result: report, callers_mask };
            unblock_signals(&first.callers_mask);
            Ok(Forked::Child(first))
        }
        Some(child) => {
            drop(report);
            if detached {
                let mut result = result;
                let told = result.read_exact(&mut [0]);
                unblock_signals(&callers_mask);
                if told.is_ok() {
                    return Ok(Forked::Left(child));
                }
                let status = wait_for(child).map_err(system("wait for the container"))?;
                return Ok(Forked::Parent(Ended::from_status(status)));
            }
            let status = pass_on_until_end(child).map_err(system("wait for the container"))?;
            unblock_signals(&callers_mask);
            Ok(Forked::Parent(told(result).unwrap_or(Ended::from_status(status))))
        }
    }
}

/// What process 1 wrote, if it wrote anything.
fn told(mut result: PipeReader) -> Option<Ended> {
    let mut status = [0; 4];
    result.read_exact(&mut status).ok()?;
    Some(Ended::from_status(i32::from_ne_bytes(status)))
}

impl First {
    /// Lets the process outside go.
    pub(crate) fn detach(self) -> Result<(), PerformError> {
        let system = |doing| move |errno| PerformError::System { doing, errno };
        nix::sys::prctl::set_pdeathsig(None).map_err(system("leave the process outside"))?;
        let mut result = self.result;
        result.write_all(b"1").map_err(|_| Errno::EPIPE).map_err(system("leave the process outside"))
    }

    /// Forks the command and stays as its init: returns in the new process only.
    pub(crate) fn stay_as_init(self) -> Result<(), PerformError> {
        let system = |doing| move |errno| PerformError::System { doing, errno };
        let _ = block_signals().map_err(system("block signals"))?;
        match sys::fork().map_err(system("fork"))? {
            None => {
                unblock_signals(&self.callers_mask);
                Ok(())
            }
            Some(command) => {
                let _ = nix::sys::prctl::set_name(c"sifu-init");
                let status = pass_on_until_end(command).unwrap_or(255 << 8);
                let mut result = self.result;
                let _ = result.write_all(&status.to_ne_bytes());
                // The rest of the namespace goes with its process 1.
                sys::exit_immediately(i32::from(Ended::from_status(status).code()))
            }
        }
    }
}

/// Stands in for `child` until it ends: signals to this process go on to it, and every child that ends is reaped.
pub fn stand_in_for(child: i32) -> nix::Result<Ended> {
    pass_on_until_end(child).map(Ended::from_status)
}

/// Blocks all signals, as [`stand_in_for`] wants them; gives the mask as it was.
pub fn block_signals() -> nix::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    Ok(before)
}

/// Sets the mask of signals as it was.
pub fn unblock_signals(mask: &SigSet) {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
}

/// Passes signals on to `child` until it ends, and gives its status; reaps every other child meanwhile. All signals
/// must be blocked.
fn pass_on_until_end(child: i32) -> nix::Result<i32> {
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC)?;
    loop {
        while let Some((pid, status)) = sys::reap_any()? {
            if pid == child {
                return Ok(status);
            }
        }
        let Some(signal) = signals.read_signal()? else { continue };
        let from_kernel = signal.ssi_code == KERNEL;
        match Signal::try_from(signal.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) => {}
            // The terminal stops the group; the command has the signal, and the shell waits for this process to stop.
            Ok(Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) if from_kernel => {
                let _ = kill(Pid::this(), Signal::SIGSTOP);
            }
            Ok(_) if from_kernel => {}
            Ok(signal) => {
                let _ = kill(Pid::from_raw(child), signal);
            }
            Err(_) => {}
        }
    }
}

/// `si_code` of signals that the kernel itself sends: those of the terminal.
const KERNEL: i32 = 0x80;

/// Waits for one child, and gives its status.
pub fn wait_for(child: i32) -> nix::Result<i32> {
    loop {
        match sys::wait_status(child) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}
