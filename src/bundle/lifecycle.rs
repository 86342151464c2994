//! The processes of a container's life: who forks whom, who waits for whom, and what each tells.
//!
//! ```text
//!   sifu oci create ──fork──► performer ──fork──► the container      (with a pid namespace; else the performer becomes it)
//!        │                       │ "pid 4713"         │
//!        │◄──────────────────────┘ ends               │ root, privileges, terminal: everything but the command
//!        │◄─────────────────────────────── "ready" ───┤
//!        │  record, pid file, hooks                   │
//!        ├───────────────────────────────── 'k' ─────►│ listens on the socket `start`
//!        ▼ ends                                       │
//!   sifu oci start ───────────────────── connects ───►│ filter, execve(command)
//!        │◄────────────────── closed, or an error ────┘
//! ```
//!
//! `run` is the parent of the container instead of leaving it: it says 't' (end with me), then 'g', and stays. Whoever
//! waits here waits on a socket, so that the end of the other side ends the wait.

use super::config::Hook;
use super::plan::Planned;
use super::process;
use super::record::{Place, ProcessId, Record, Status};
use super::store::{Entry, StoreError};
use crate::launch::start::{Company, start as begin};
use crate::report::{Failure, Hint};
use crate::squashfs::Reader;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg, shutdown};
use nix::sys::stat::Mode as FileMode;
use serde::{Deserialize, Serialize};
use starter::perform::{self, Entered, Launched, PerformError};
use starter::plan::Node;
use starter::supervise::{self, Ended};
use starter::sys;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a container may take to end after a SIGKILL: it may be in the middle of a write.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a container could not be brought from one point of its life to the next.
#[derive(Debug)]
pub enum LifecycleError {
    Store(StoreError),
    /// The container itself said so.
    Failed {
        message: String,
        hints: Vec<String>,
    },
    /// It went without a word.
    Vanished,
    /// It is not where it would have to be in its life.
    Status {
        id: String,
        doing: &'static str,
        status: Status,
    },
    /// It runs in another pid namespace.
    Elsewhere {
        id: String,
    },
    Signal {
        id: String,
        signal: i32,
        errno: Errno,
    },
    /// It does not end.
    Stuck {
        id: String,
    },
    Hook {
        path: String,
        reason: String,
    },
    System {
        doing: &'static str,
        path: PathBuf,
        errno: Errno,
    },
}

impl fmt::Display for LifecycleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Failed { message, .. } => f.write_str(message),
            Self::Vanished => f.write_str("the container was killed before it was there"),
            Self::Status { id, doing, status } => write!(f, "cannot {doing} container `{id}`: it is {status}"),
            Self::Elsewhere { id } => {
                write!(f, "cannot tell about container `{id}`: it was made in another pid namespace")
            }
            Self::Signal { id, signal, errno } => {
                write!(f, "cannot send signal {signal} to container `{id}`: {}", errno.desc().to_lowercase())
            }
            Self::Stuck { id } => write!(f, "container `{id}` was killed and does not end"),
            Self::Hook { path, reason } => write!(f, "the hook {path} failed: {reason}"),
            Self::System { doing, path, errno } => {
                write!(f, "cannot {doing} {}: {}", path.display(), errno.desc().to_lowercase())
            }
        }
    }
}

impl std::error::Error for LifecycleError {}

impl Hint for LifecycleError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Store(error) => error.hints(),
            Self::Failed { hints, .. } => hints.clone(),
            Self::Status { doing: "delete", .. } => vec!["`--force` kills it first.".to_owned()],
            _ => Vec::new(),
        }
    }
}

impl From<StoreError> for LifecycleError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A container to be made.
pub struct Launch<'a> {
    pub planned: Planned,
    pub images: Vec<(Reader, Vec<Node>)>,
    pub bundle: &'a Path,
    pub annotations: BTreeMap<String, String>,
    pub hooks: Hooks,
    pub pid_file: Option<&'a Path>,
    pub console_socket: Option<&'a Path>,
    /// Words for an error of the launch.
    pub explain: &'a dyn Fn(&PerformError) -> Failure,
}

/// The programs to run at the turns of its life.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    pub before_start: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// What the two processes inside tell the one outside, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// The id of process 1, as the performer sees it.
    Pid(i32),
    Warning(String),
    Verbose(String),
    Ready,
    Failed {
        message: String,
        hints: Vec<String>,
    },
    /// It ends with its parent from now on.
    Tied,
}

/// How the container goes on once it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It waits for `start` on its own.
    Created,
    /// It goes on at once, as a child of this process.
    Foreground,
    /// It goes on at once on its own.
    Detached,
}

/// Says what a container has told on its way, as a warning or not.
pub type Tell = fn(warning: bool, &str);

/// Makes the container, up to its command, under the lock of its entry. In [`Mode::Foreground`] all signals are blocked
/// from then on, and the caller must wait by [`wait`].
pub fn create(entry: &Entry, lock: File, launch: Launch<'_>, mode: Mode, tell: Tell) -> Result<Record, LifecycleError> {
    let system = |doing, path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| LifecycleError::System { doing, path, errno: errno_of(&error) }
    };
    let Launch { planned, images, bundle, annotations, hooks, pid_file, console_socket, explain } = launch;
    let place = process::here().map_err(system("read", Path::new("/proc")))?;
    let console = match console_socket {
        Some(path) => Some(UnixStream::connect(path).map_err(system("connect to the console socket", path))?),
        None => None,
    };
    let gate = match mode {
        Mode::Created => Gate::Socket(UnixListener::bind(entry.start_socket()).map_err(system("listen on", bundle))?),
        Mode::Foreground | Mode::Detached => Gate::Word,
    };
    let (ours, theirs) = UnixStream::pair().map_err(system("make a socket for", bundle))?;
    let mut callers_mask = None;
    if mode == Mode::Foreground {
        callers_mask = supervise::block_signals().ok();
        // So that the container becomes a child of this process when the performer ends.
        nix::sys::prctl::set_child_subreaper(true).map_err(|errno| LifecycleError::System {
            doing: "adopt the processes of",
            path: bundle.to_owned(),
            errno,
        })?;
    }
    let ends_together = planned.plan.has_pid_namespace();
    let fork =
        sys::fork().map_err(|errno| LifecycleError::System { doing: "fork for", path: bundle.to_owned(), errno })?;
    let Some(performer) = fork else {
        // The lock is that of the process outside: here it would last as long as the container.
        drop((ours, lock));
        if let Some(mask) = callers_mask {
            supervise::unblock_signals(&mask);
        }
        let performer = Performer { planned, images, gate, talk: theirs, console, mode, explain };
        sys::exit_immediately(performer.run())
    };
    drop((theirs, gate, console, images, planned));
    let mut made = Made { performer, talk: BufReader::new(ours), container: None };
    let settled = (|| {
        let pid = made.hear(ends_together, tell)?;
        let process = process::identify(pid).ok_or(LifecycleError::Vanished)?;
        made.container = Some(process);
        let record = Record {
            id: entry.id().to_owned(),
            bundle: bundle.to_string_lossy().into_owned(),
            annotations,
            place,
            process,
            mount_namespace: process::namespace(pid, "mnt").unwrap_or(0),
            user_namespace: process::namespace(pid, "user").unwrap_or(0),
            ends_together,
            poststart: hooks.poststart,
            poststop: hooks.poststop,
        };
        entry.write(&record)?;
        if let Some(path) = pid_file {
            write_pid_file(path, pid).map_err(system("write the pid file", path))?;
        }
        run_hooks(&hooks.before_start, &record, Status::Creating)?;
        made.release(mode)?;
        Ok(record)
    })();
    drop(lock);
    if settled.is_err() {
        made.abandon();
    }
    settled
}

/// The caller's side of a container that is being made.
struct Made {
    performer: i32,
    talk: BufReader<UnixStream>,
    container: Option<ProcessId>,
}

impl Made {
    /// Listens until the container is ready; gives its process id.
    fn hear(&mut self, forks: bool, tell: Tell) -> Result<i32, LifecycleError> {
        let mut pid = (!forks).then_some(self.performer);
        let mut ready = false;
        // The performer and the container speak in any order.
        while !(ready && pid.is_some()) {
            match self.next()? {
                Said::Pid(first) => {
                    pid = Some(first);
                    self.container = process::identify(first);
                }
                Said::Warning(text) => tell(true, &text),
                Said::Verbose(text) => tell(false, &text),
                Said::Failed { message, hints } => return Err(LifecycleError::Failed { message, hints }),
                Said::Ready => ready = true,
                Said::Tied => return Err(LifecycleError::Vanished),
            }
        }
        let pid = pid.unwrap_or(self.performer);
        if pid != self.performer {
            let _ = sys::wait_status(self.performer);
        }
        Ok(pid)
    }

    fn next(&mut self) -> Result<Said, LifecycleError> {
        let mut line = String::new();
        match self.talk.read_line(&mut line) {
            Ok(1..) => serde_json::from_str(&line).map_err(|_| LifecycleError::Vanished),
            _ => Err(LifecycleError::Vanished),
        }
    }

    /// Lets the container go on.
    fn release(&mut self, mode: Mode) -> Result<(), LifecycleError> {
        let mut say = |word: &[u8]| self.talk.get_mut().write_all(word).map_err(|_| LifecycleError::Vanished);
        match mode {
            Mode::Created => return say(b"k"),
            Mode::Detached => say(b"g")?,
            Mode::Foreground => {
                say(b"t")?;
                match self.next()? {
                    Said::Tied => {}
                    _ => return Err(LifecycleError::Vanished),
                }
                self.talk.get_mut().write_all(b"g").map_err(|_| LifecycleError::Vanished)?;
            }
        }
        // The command closes the other end.
        let mut line = String::new();
        match self.talk.read_line(&mut line) {
            Ok(0) => Ok(()),
            Ok(_) => match serde_json::from_str(&line) {
                Ok(Said::Failed { message, hints }) => Err(LifecycleError::Failed { message, hints }),
                _ => Err(LifecycleError::Vanished),
            },
            Err(_) => Err(LifecycleError::Vanished),
        }
    }

    /// Leaves nothing behind of a container that was not to be.
    fn abandon(&mut self) {
        if let Some(process) = &self.container {
            let _ = process::signal(process, Signal::SIGKILL as i32);
        }
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.performer), Signal::SIGKILL);
        let _ = sys::wait_status(self.performer);
        if let Some(process) = &self.container {
            let _ = sys::wait_status(process.pid);
        }
    }
}

/// Waits for a container in the foreground: signals to this process go on to it. Gives how its command ended.
pub fn wait(record: &Record) -> Result<Ended, LifecycleError> {
    let ended = supervise::stand_in_for(record.process.pid).map_err(|errno| LifecycleError::System {
        doing: "wait for",
        path: PathBuf::from(&record.id),
        errno,
    })?;
    sweep(record);
    Ok(ended)
}

/// What a container is behind before its command starts.
enum Gate {
    /// Whoever connects starts it.
    Socket(UnixListener),
    /// A byte of the caller's starts it.
    Word,
}

/// The process that performs the plan, and the container's first process.
struct Performer<'a> {
    planned: Planned,
    images: Vec<(Reader, Vec<Node>)>,
    gate: Gate,
    talk: UnixStream,
    console: Option<UnixStream>,
    mode: Mode,
    explain: &'a dyn Fn(&PerformError) -> Failure,
}

impl Performer<'_> {
    /// Performs the plan; returns with an exit code where that does not end in the command.
    fn run(mut self) -> i32 {
        const FAILED: i32 = 1;
        sys::close_on_exec_all();
        if let Some(adjustment) = self.planned.oom_score_adj
            && let Err(error) = std::fs::write("/proc/self/oom_score_adj", adjustment.to_string())
        {
            self.say(&Said::Warning(format!(
                "process.oomScoreAdj ({adjustment}) is left out: {}",
                crate::report::cause(&error)
            )));
        }
        // The filter comes last: it may forbid what waiting for the start takes.
        let filter = std::mem::take(&mut self.planned.plan.seccomp);
        match begin(&self.planned.plan, std::mem::take(&mut self.images), None, None, Company::default()) {
            Ok(Launched::Left(pid)) => {
                self.say(&Said::Pid(pid));
                0
            }
            Ok(Launched::Ended(_)) => FAILED,
            Ok(Launched::Inside(entered)) => {
                let failure = match self.be_the_container(&entered, &filter) {
                    Ok(()) => return FAILED,
                    Err(failure) => failure,
                };
                self.say(&Said::Failed { message: failure.message, hints: failure.hints });
                FAILED
            }
            Err(error) => {
                let failure = (self.explain)(&error);
                self.say(&Said::Failed { message: failure.message, hints: failure.hints });
                FAILED
            }
        }
    }

    fn say(&self, said: &Said) {
        let mut line = serde_json::to_vec(said).unwrap_or_default();
        line.push(b'\n');
        // Who does not listen any more does not care either.
        let _ = (&self.talk).write_all(&line);
    }

    /// Becomes the command when it is time; `Ok` where nobody wants that any more.
    fn be_the_container(&mut self, entered: &Entered, filter: &[u8]) -> Result<(), Failure> {
        let system = |doing: &str| {
            let doing = doing.to_owned();
            move |errno: Errno| Failure::new(format!("cannot {doing}: {}", errno.desc().to_lowercase()))
        };
        if self.mode != Mode::Foreground || self.console.is_some() {
            nix::unistd::setsid().map_err(system("make a session"))?;
        }
        if let Some(console) = self.console.take() {
            give_terminal(&console)?;
        }
        for warning in &entered.warnings {
            let text = warning.to_string();
            self.say(&if warning.is_harmless() { Said::Verbose(text) } else { Said::Warning(text) });
        }
        perform::check_command(&self.planned.plan, &entered.environment).map_err(|error| (self.explain)(&error))?;
        self.say(&Said::Ready);
        let Some(word) = self.word() else { return Ok(()) };
        if word == b't' {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(system("end with the caller"))?;
            self.say(&Said::Tied);
            // A caller that went before would not be noticed: its socket tells.
            if self.word() != Some(b'g') {
                return Ok(());
            }
        }
        let finish = || {
            if !filter.is_empty()
                && let Err(errno) = sys::install_seccomp(filter)
            {
                return Failure::new(format!("cannot install the seccomp filter: {}", errno.desc().to_lowercase()));
            }
            (self.explain)(&perform::exec(&self.planned.plan, &entered.environment))
        };
        let Gate::Socket(listener) = &self.gate else { return Err(finish()) };
        // It may wait for long: what the caller has open is the caller's.
        sys::close_all_except(&[self.talk.as_fd(), listener.as_fd()]);
        let _ = shutdown(self.talk.as_raw_fd(), Shutdown::Both);
        loop {
            let Ok((starter, _)) = listener.accept() else { continue };
            if (&starter).read_exact(&mut [0]).is_err() {
                continue;
            }
            let failure = finish();
            let said = Said::Failed { message: failure.message, hints: failure.hints };
            let _ = (&starter).write_all(&serde_json::to_vec(&said).unwrap_or_default());
            return Ok(());
        }
    }

    fn word(&self) -> Option<u8> {
        let mut word = [0];
        (&self.talk).read_exact(&mut word).ok().map(|()| word[0])
    }
}

/// Makes a terminal, hands its master out, and makes it this session's and the standard streams.
fn give_terminal(console: &UnixStream) -> Result<(), Failure> {
    let system = |doing: &'static str| {
        move |errno: Errno| {
            Failure::new(format!("cannot {doing}: {}", errno.desc().to_lowercase()))
                .hint("A terminal takes a mount of type devpts at /dev/pts, and a tmpfs at /dev.")
        }
    };
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .map_err(system("open a terminal in the container"))?;
    grantpt(&master).and_then(|()| unlockpt(&master)).map_err(system("unlock the terminal"))?;
    let name = ptsname_r(&master).map_err(system("name the terminal"))?;
    let terminal = open(name.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, FileMode::empty())
        .map_err(system("open the other side of the terminal"))?;
    let descriptors = [master.as_raw_fd()];
    sendmsg::<()>(
        console.as_raw_fd(),
        &[IoSlice::new(name.as_bytes())],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(system("hand out the terminal"))?;
    sys::control_terminal(terminal.as_fd()).map_err(system("control the terminal"))?;
    nix::unistd::dup2_stdin(&terminal)
        .and_then(|()| nix::unistd::dup2_stdout(&terminal))
        .and_then(|()| nix::unistd::dup2_stderr(&terminal))
        .map_err(system("use the terminal"))
}

/// Writes the pid whole or not at all: whoever waits for the file reads it as soon as it is there.
fn write_pid_file(path: &Path, pid: i32) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    std::fs::write(&new, pid.to_string())?;
    std::fs::rename(&new, path)
}

// ---- the later calls ----

/// Where a container is in its life, with its record if it is made.
pub fn look(entry: &Entry) -> Result<(Status, Option<Record>), LifecycleError> {
    let Some(record) = entry.record()? else {
        let status = if entry.is_being_made()? { Status::Creating } else { Status::Stopped };
        return Ok((status, None));
    };
    let here = here()?;
    // The start is known to a hundredth of a second; the namespace tells processes of one such moment apart.
    let namespace = process::namespace(record.process.pid, "mnt");
    let lives = process::lives(&record.process) && namespace.is_none_or(|inode| inode == record.mount_namespace);
    let status = record.status(&here, lives, entry.waits());
    let status = status.map_err(|_| LifecycleError::Elsewhere { id: entry.id().to_owned() })?;
    // Until its maker is done with it, nobody else may start it.
    let status = if status == Status::Created && entry.is_being_made()? { Status::Creating } else { status };
    Ok((status, Some(record)))
}

fn here() -> Result<Place, LifecycleError> {
    process::here().map_err(|error| LifecycleError::System {
        doing: "read",
        path: PathBuf::from("/proc"),
        errno: errno_of(&error),
    })
}

/// Lets a container that waits become its command.
pub fn start(entry: &Entry) -> Result<(), LifecycleError> {
    let wrong = |status| LifecycleError::Status { id: entry.id().to_owned(), doing: "start", status };
    let record = match look(entry)? {
        (Status::Created, Some(record)) => record,
        (status, _) => return Err(wrong(status)),
    };
    // Another start may have been quicker.
    let socket = entry.take_start_socket().map_err(|_| wrong(Status::Running))?;
    let said = UnixStream::connect(&socket).and_then(|mut stream| {
        stream.write_all(b"s")?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said)?;
        Ok(said)
    });
    entry.drop_start_socket();
    match said {
        Ok(said) if said.is_empty() => run_hooks(&record.poststart, &record, Status::Running),
        Ok(said) => match serde_json::from_slice(&said) {
            Ok(Said::Failed { message, hints }) => Err(LifecycleError::Failed { message, hints }),
            _ => Err(LifecycleError::Vanished),
        },
        Err(_) => Err(wrong(Status::Stopped)),
    }
}

/// Sends a signal to a container's command, or to all of its processes.
pub fn kill(entry: &Entry, signal: i32, all: bool) -> Result<(), LifecycleError> {
    let wrong = |status| LifecycleError::Status { id: entry.id().to_owned(), doing: "send a signal to", status };
    match look(entry)? {
        (Status::Created | Status::Running, Some(record)) => {
            if all {
                process::signal_all(&record, signal);
                return Ok(());
            }
            match process::signal(&record.process, signal) {
                Ok(true) => Ok(()),
                Ok(false) => Err(wrong(Status::Stopped)),
                Err(errno) => Err(LifecycleError::Signal { id: entry.id().to_owned(), signal, errno }),
            }
        }
        // What a container without a pid namespace has left behind.
        (Status::Stopped, Some(record)) if all && !record.ends_together => {
            process::signal_all(&record, signal);
            Ok(())
        }
        (status, _) => Err(wrong(status)),
    }
}

/// Removes what is kept of a container that has ended, and what it left running; with `force` ends it first.
pub fn delete(entry: Entry, force: bool) -> Result<(), LifecycleError> {
    let id = entry.id().to_owned();
    let record = match look(&entry)? {
        (Status::Stopped, record) => record,
        (Status::Created | Status::Running, Some(record)) if force => Some(record),
        (status, _) => return Err(LifecycleError::Status { id, doing: "delete", status }),
    };
    let Some(record) = record else { return Ok(entry.remove()?) };
    if here()?.boot == record.place.boot {
        if force {
            process::signal(&record.process, Signal::SIGKILL as i32).map_err(|errno| LifecycleError::Signal {
                id: id.clone(),
                signal: Signal::SIGKILL as i32,
                errno,
            })?;
        }
        sweep(&record);
        let end = Instant::now() + PATIENCE;
        while process::lives(&record.process) {
            if Instant::now() > end {
                return Err(LifecycleError::Stuck { id });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    entry.remove()?;
    run_hooks(&record.poststop, &record, Status::Stopped)
}

/// Ends what a container without a pid namespace of its own left running.
fn sweep(record: &Record) {
    if record.ends_together {
        return;
    }
    // Those that fork meanwhile are found the next time.
    const ROUNDS: u32 = 100;
    for _ in 0..ROUNDS {
        if process::signal_all(record, Signal::SIGKILL as i32) == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Removes a container that could not be made, or that ran in the foreground and has ended.
pub fn forget(entry: Entry, record: Option<&Record>) -> Result<(), LifecycleError> {
    entry.remove()?;
    record.map_or(Ok(()), |record| run_hooks(&record.poststop, record, Status::Stopped))
}

// ---- hooks ----

/// Runs hooks of the host one after the other, as the caller, with the state on their standard input.
pub fn run_hooks(hooks: &[Hook], record: &Record, status: Status) -> Result<(), LifecycleError> {
    hooks.iter().try_for_each(|hook| {
        run_hook(hook, &record.state(status)).map_err(|reason| LifecycleError::Hook { path: hook.path.clone(), reason })
    })
}

fn run_hook(hook: &Hook, state: &str) -> Result<(), String> {
    if !hook.path.starts_with('/') {
        return Err("its path is not absolute".to_owned());
    }
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(Stdio::piped());
    let words = |error: std::io::Error| crate::report::cause(&error);
    let mut child = command.spawn().map_err(words)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not care for the state closes it.
        let _ = stdin.write_all(state.as_bytes());
    }
    let end = hook.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        if let Some(status) = child.try_wait().map_err(words)? {
            break status;
        }
        if end.is_some_and(|end| Instant::now() > end) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("it did not end within {} s", hook.timeout.unwrap_or(0)));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
