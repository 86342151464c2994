//! The side in the container: sends its streams and words to the host, passes signals on, and ends as the command ends.

use super::{Answer, FROM_KERNEL, MAX_FRAME_BYTES, Pair, Request, SOCKET, STREAM, TO_GROUP};
use crate::env_names::is_of_scheduler;
use crate::report::{Failure, cause};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use starter::image_server;
use starter::supervise::{Ended, end_alike};
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Runs the command on the host. `words` are the path of the command's file, as the kernel gives it, and the caller's own.
pub fn run(words: impl Iterator<Item = OsString>) -> Result<ExitCode, Failure> {
    let mut words: Vec<Vec<u8>> = words.map(OsString::into_vec).collect();
    let name = match words.first_mut() {
        Some(path) => {
            let at = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            path.drain(..at);
            String::from_utf8_lossy(path).into_owned()
        }
        None => return Err(Failure::new("this program is started by the commands beside it")),
    };
    let doing = format!("cannot run {name} on the host");
    let signals = Signals::take().map_err(|error| Failure::new(format!("{doing}: {}", cause(&error))))?;
    let answer = ask(&doing, words, &signals)?;
    signals.give_back();
    match answer {
        Answer::Ended(ended) => Ok(ExitCode::from(end_alike(ended))),
        Answer::NotStarted { why, hint } => {
            let failure = Failure::new(String::from_utf8_lossy(&why)).context(doing);
            let hint = String::from_utf8_lossy(&hint).into_owned();
            Err(if hint.is_empty() { failure } else { failure.hint(hint) })
        }
    }
}

/// Signals, which come as something to read from now on.
struct Signals {
    before: SigSet,
    arriving: SignalFd,
}

impl Signals {
    fn take() -> io::Result<Self> {
        let before = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        let arriving = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { before, arriving })
    }

    /// The next one that has come, and whether the kernel sent it: one of the terminal's goes to a whole group.
    fn next(&self) -> Option<(Signal, bool)> {
        let arrived = self.arriving.read_signal().ok()??;
        let signal = Signal::try_from(i32::try_from(arrived.ssi_signo).ok()?).ok()?;
        Some((signal, arrived.ssi_code == FROM_KERNEL))
    }

    fn give_back(self) {
        let _ = self.before.thread_set_mask();
    }
}

fn ask(doing: &str, words: Vec<Vec<u8>>, signals: &Signals) -> Result<Answer, Failure> {
    let failed = |error: io::Error| Failure::new(format!("{doing}: {}", cause(&error)));
    let mut stream = UnixStream::connect(SOCKET).map_err(|error| {
        let failure = failed(error);
        failure.hint("Commands of the host can be used until the program ends that the container was started for.")
    })?;
    let directory = nix::unistd::getcwd().map_err(|errno| failed(errno.into()))?;
    let mask = nix::sys::stat::umask(Mode::empty());
    let request =
        Request { umask: mask.bits(), directory: directory.into_os_string().into_vec(), words, variables: variables() };
    send(&mut stream, &request).map_err(failed)?;
    loop {
        let (answered, signaled) = {
            let mut events = [
                PollFd::new(stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.arriving.as_fd(), PollFlags::POLLIN),
            ];
            // Every signal is blocked, so nothing interrupts this.
            poll(&mut events, PollTimeout::NONE).map_err(|errno| failed(errno.into()))?;
            (events[0].any() == Some(true), events[1].any() == Some(true))
        };
        if answered {
            return receive(&mut stream).map_err(failed);
        }
        while let Some((signal, of_terminal)) = signaled.then(|| signals.next()).flatten() {
            pass_on(&mut stream, signal, of_terminal);
        }
    }
}

/// Passes a signal on. One that stops a process stops this one as well: its shell waits for that.
fn pass_on(stream: &mut UnixStream, signal: Signal, of_terminal: bool) {
    let (there, here) = match signal {
        // A closed connection is seen by poll; the command's children are not this process's.
        Signal::SIGPIPE | Signal::SIGCHLD => return,
        // The command's group has no terminal that could stop it.
        Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU => (Signal::SIGSTOP, Some(Signal::SIGSTOP)),
        signal => (signal, None),
    };
    let to_group = of_terminal || here.is_some();
    let _ = stream.write_all(&[there as u8 | if to_group { TO_GROUP } else { 0 }]);
    if let Some(here) = here {
        let _ = raise(here);
    }
}

fn variables() -> Vec<Pair> {
    let all = std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec()));
    all.filter(|(name, _)| is_of_scheduler(name)).collect()
}

fn send(stream: &mut UnixStream, request: &Request) -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    for (number, descriptor) in (0_u8..).zip(streams) {
        image_server::send(stream.as_fd(), [STREAM, number], descriptor)?;
    }
    let frame = request.to_frame();
    if frame.len() > MAX_FRAME_BYTES {
        return Err(io::Error::from_raw_os_error(nix::errno::Errno::E2BIG as i32));
    }
    stream.write_all(&frame)
}

fn receive(stream: &mut UnixStream) -> io::Result<Answer> {
    match super::read_frame(stream)? {
        Some(frame) => Answer::parse(&frame).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        // The other side was killed, and took the command with it.
        None => Ok(Answer::Ended(Ended::Signaled(Signal::SIGKILL as i32))),
    }
}
