//! The side on the host: a process that listens for as long as the container lives, and one more for each command.
//!
//! It is forked before any namespace is made, so it has the caller's environment, limits, directory and rights, no more and no
//! less. What it starts was found before the container began; nothing that comes from inside chooses a program.

use super::{Answer, HostCommand, HostCommandError, LISTENER, Pair, Request, STREAM, TO_GROUP};
use crate::report::cause;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, Pid, access};
use starter::image_server;
use starter::paths::HostPath;
use starter::supervise::Ended;
use starter::sys;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Commands that run at a time; more wait to be heard.
const COMMANDS_MAX: usize = 256;
/// What a relay may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Finds the commands that `--host-cmd` names, on the search path or by their absolute paths.
pub fn find(said: &[Vec<u8>], search_path: Option<&OsStr>) -> Result<Vec<HostCommand>, HostCommandError> {
    let mut found: Vec<HostCommand> = Vec::new();
    for word in said {
        let lossy = || String::from_utf8_lossy(word).into_owned();
        let name = word.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let is_path = word.contains(&b'/');
        // A name that begins with a dot is one of our own files.
        if name.is_empty() || name.starts_with(b".") || (is_path && word[0] != b'/') {
            return Err(HostCommandError::Name { said: lossy() });
        }
        let path = if is_path {
            let path = HostPath::from_bytes(word);
            if !is_program(path.as_path()) {
                return Err(HostCommandError::NotAProgram { path });
            }
            path
        } else {
            // What a relative directory leads to depends on where one stands.
            let directories = std::env::split_paths(search_path.unwrap_or_default()).filter(|path| path.is_absolute());
            let mut programs = directories.map(|directory| directory.join(OsStr::from_bytes(name)));
            let program = programs.find(|path| is_program(path));
            HostPath::new(program.ok_or_else(|| HostCommandError::NotFound { name: lossy() })?)
        };
        match found.iter().find(|command| command.name == name) {
            None => found.push(HostCommand { name: name.to_vec(), path }),
            Some(other) if other.path == path => {}
            Some(_) => return Err(HostCommandError::Twice { name: String::from_utf8_lossy(name).into_owned() }),
        }
    }
    Ok(found)
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.is_file()) && access(path, AccessFlags::X_OK).is_ok()
}

/// What a server knows.
pub struct HostCommands {
    pub commands: Vec<HostCommand>,
    /// Names of the variables that the container's program is started with.
    pub inside: Vec<Vec<u8>>,
}

/// Hands the server that has the other end of `control` the socket on which the container's relays will call.
pub fn listen(control: &UnixStream) -> io::Result<()> {
    let listener = UnixListener::bind(super::SOCKET)?;
    image_server::send(control.as_fd(), [LISTENER, 0], listener.as_fd())
}

/// Serves until the process that `owner` shows has ended. Call it in a process forked for this, with one thread.
pub fn run(offered: &HostCommands, control: UnixStream, owner: OwnedFd) -> ! {
    let code = i32::from(serve(offered, control, &owner).is_err());
    sys::exit_immediately(code)
}

fn serve(offered: &HostCommands, control: UnixStream, owner: &OwnedFd) -> io::Result<()> {
    // What a terminal or a batch system sends to the job is not for this process: the container ends by it, and then this.
    let callers_mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let _ = nix::unistd::setsid();
    let _ = nix::unistd::chdir("/");
    let _ = nix::sys::prctl::set_name(c"sifu-host-cmd");
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    sys::close_all_except(&[control.as_fd(), owner.as_fd()]);
    // They stand on numbers that are closed already.
    std::mem::forget(null);

    if !wait_for(&control, owner)? {
        return Ok(());
    }
    let listener = match image_server::receive(&control)? {
        Some((LISTENER, listener)) => UnixListener::from(listener),
        // The container was never entered.
        _ => return Ok(()),
    };
    drop(control);
    listener.set_nonblocking(true)?;
    let ended = SignalFd::with_flags(&child_ended(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut running = 0;
    loop {
        let (calls, is_over, reap) = {
            let calls = if running < COMMANDS_MAX { PollFlags::POLLIN } else { PollFlags::empty() };
            let mut events = [
                PollFd::new(listener.as_fd(), calls),
                PollFd::new(owner.as_fd(), PollFlags::POLLIN),
                PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut events, PollTimeout::NONE)?;
            events.map(|event| event.any() == Some(true)).into()
        };
        if reap {
            while let Ok(Some(_)) = ended.read_signal() {}
            while let Ok(Some(_)) = sys::reap_any() {
                running -= 1;
            }
        }
        // The processes of the commands see it, too.
        if is_over {
            return Ok(());
        }
        if calls && let Ok((stream, _)) = listener.accept() {
            let peer = getsockopt(&stream, sockopt::PeerCredentials);
            if peer.is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw()) {
                // A relay whose command could not be forked sees its connection close.
                let forked = sys::fork_child(|| u8::from(attend(offered, &stream, owner, &callers_mask).is_err()));
                running += usize::from(forked.is_ok());
            }
        }
    }
}

fn child_ended() -> SigSet {
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    ended
}

/// Waits until `stream` can be read, or the process of `owner` has ended: then false.
fn wait_for(stream: &UnixStream, owner: &OwnedFd) -> io::Result<bool> {
    let mut events = [PollFd::new(stream.as_fd(), PollFlags::POLLIN), PollFd::new(owner.as_fd(), PollFlags::POLLIN)];
    poll(&mut events, PollTimeout::NONE)?;
    Ok(events[0].any() == Some(true))
}

/// One command, from its relay's call to its end.
fn attend(offered: &HostCommands, stream: &UnixStream, owner: &OwnedFd, mask: &SigSet) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut streams = Vec::new();
    for number in 0..3_u8 {
        match image_server::receive(stream)? {
            Some((STREAM, descriptor)) => streams.push(descriptor),
            _ => return Err(io::Error::other(format!("no stream {number}"))),
        }
    }
    let frame = super::read_frame(&mut &*stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let request = Request::parse(&frame).ok_or(io::ErrorKind::InvalidData)?;
    let ended = SignalFd::with_flags(&child_ended(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // The command inherits the mask. One that ends before signals are blocked again is seen by the first look at it.
    mask.thread_set_mask()?;
    let started = start(offered, request, streams);
    SigSet::all().thread_set_mask()?;
    let answer = match started {
        Ok(child) => Answer::Ended(see_through(child, stream, owner, &ended)?),
        Err((why, hint)) => Answer::NotStarted { why: why.into_bytes(), hint: hint.as_bytes().to_vec() },
    };
    (&mut &*stream).write_all(&answer.to_frame())
}

/// Starts the command; the error is for people, with a hint.
fn start(offered: &HostCommands, request: Request, streams: Vec<OwnedFd>) -> Result<Child, (String, &'static str)> {
    let Request { umask, directory, words, variables } = request;
    let name = words.first().map(Vec::as_slice).unwrap_or_default();
    let Some(command) = offered.commands.iter().find(|command| command.name == name) else {
        return Err(("--host-cmd does not name it".to_owned(), ""));
    };
    let directory = OsString::from_vec(directory);
    nix::unistd::chdir(directory.as_os_str()).map_err(|errno| {
        let why = format!("the directory {} of the container: {}", directory.display(), cause(&errno.into()));
        (why, "Change to a directory that the host has at the same path, or bind it there.")
    })?;
    nix::sys::stat::umask(Mode::from_bits_truncate(umask));
    let host: Vec<Pair> = std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
    let environment = super::environment(&host, &offered.inside, &variables);
    let mut streams = streams.into_iter().map(Stdio::from);
    let mut next = || streams.next().unwrap_or_else(Stdio::null);
    let started = Command::new(command.path.as_path())
        .arg0(OsStr::from_bytes(name))
        .args(words[1..].iter().map(|word| OsStr::from_bytes(word)))
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))))
        .stdin(next())
        .stdout(next())
        .stderr(next())
        .process_group(0)
        .spawn();
    started.map_err(|error| (format!("{}: {}", command.path, cause(&error)), ""))
}

/// Passes signals on until the command ends; ends it when its relay or the container has ended.
fn see_through(mut child: Child, stream: &UnixStream, owner: &OwnedFd, ended: &SignalFd) -> io::Result<Ended> {
    let group = Pid::from_raw(child.id().cast_signed());
    let mut deadline: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ended::from_status(status.into_raw()));
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            let _ = killpg(group, Signal::SIGKILL);
            deadline = Some(Instant::now() + GRACE);
        }
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let (called, is_over) = {
            let watched = if deadline.is_none() { PollFlags::POLLIN } else { PollFlags::empty() };
            let mut events = [
                PollFd::new(ended.as_fd(), PollFlags::POLLIN),
                PollFd::new(stream.as_fd(), watched),
                PollFd::new(owner.as_fd(), watched),
            ];
            // What has hung up is ready whether one asks for it or not.
            let count = if deadline.is_none() { 3 } else { 1 };
            poll(&mut events[..count], timeout)?;
            let ready = |event: &PollFd<'_>| deadline.is_none() && event.any() == Some(true);
            (ready(&events[1]), ready(&events[2]))
        };
        while let Ok(Some(_)) = ended.read_signal() {}
        if is_over || (called && !pass_on(stream.as_fd(), group)) {
            let _ = killpg(group, Signal::SIGTERM);
            let _ = killpg(group, Signal::SIGCONT);
            deadline = Some(Instant::now() + GRACE);
        }
    }
}

/// Passes on the signals that the relay sends; false when it has gone.
fn pass_on(stream: BorrowedFd<'_>, leader: Pid) -> bool {
    let mut signals = [0; 64];
    match nix::unistd::read(stream, &mut signals) {
        Ok(0) => false,
        Ok(count) => {
            for byte in &signals[..count] {
                let Ok(signal) = Signal::try_from(i32::from(byte & !TO_GROUP)) else { continue };
                let _ = if byte & TO_GROUP == 0 { kill(leader, signal) } else { killpg(leader, signal) };
            }
            true
        }
        Err(errno) => matches!(errno, Errno::EINTR | Errno::EAGAIN),
    }
}
