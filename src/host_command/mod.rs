//! Commands of the host that a program in a container may start (`--host-cmd sbatch,squeue`): what is said between the
//! two sides. Pure.
//!
//! ```text
//! container                                        host
//! sbatch job.sh                                    server, forked by the launcher before any namespace is made
//!   a file that names the relay, which is sifu
//! relay ── connects to .socket ──────────────────► a process for this one command
//!   'S' 0, 'S' 1, 'S' 2: its standard streams      ►
//!   a frame: umask, directory, words, variables    ► enters the directory, starts the command in a group of its own
//!   a byte for each signal that it gets            ► kill(command, signal), or its group where it came from a terminal
//!   becomes what the command became                ◄ a frame: how it ended, or why it was not started
//! ```
//!
//! A frame is the length of what follows (4 bytes, little-endian) and that many bytes. Numbers have 4 bytes, strings are a
//! length and so many bytes, lists a length and so many strings.
//!
//! A connection that closes ends the command, and so does the end of the container.

pub mod relay;
pub mod server;

use crate::env_names::is_of_scheduler;
use crate::report::Hint;
use starter::paths::HostPath;
use starter::supervise::Ended;
use std::fmt;
use std::io::{self, Read};

/// What stands in the container: a directory with a file for each command, which leads the search path.
pub const DIRECTORY: &str = "/.singularity.d/host-cmd";
/// The program that such a file names: sifu, which is known by this name.
pub const RELAY: &str = "/.singularity.d/host-cmd/.relay";
/// Where the host listens. Whoever can't see this file can't ask for anything.
pub const SOCKET: &str = "/.singularity.d/host-cmd/.socket";

/// First byte of the message that brings a standard stream.
const STREAM: u8 = b'S';
/// First byte of the message that brings the server its listening socket.
const LISTENER: u8 = b'L';
/// Set in the byte of a signal that is for the command's whole group, as those of a terminal are.
const TO_GROUP: u8 = 0x80;
/// `si_code` of signals that the kernel itself sends.
const FROM_KERNEL: i32 = 0x80;
/// More than the kernel takes as arguments and environment of a program.
const MAX_FRAME_BYTES: usize = 8 << 20;

/// A variable and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// A command that the container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCommand {
    pub name: Vec<u8>,
    /// What is started on the host.
    pub path: HostPath,
}

/// What the file of a command holds: the kernel starts the relay with the file's own path and the caller's words.
pub fn script() -> Vec<u8> {
    format!("#!{RELAY}\n").into_bytes()
}

/// Why a command can't be given to a container.
#[derive(Debug, PartialEq, Eq)]
pub enum HostCommandError {
    /// Neither the name of a command nor an absolute path.
    Name {
        said: String,
    },
    NotFound {
        name: String,
    },
    /// The path leads to nothing that can be started.
    NotAProgram {
        path: HostPath,
    },
    /// Two paths of one name.
    Twice {
        name: String,
    },
    /// The relay would need the host's C library.
    NotStatic,
}

impl fmt::Display for HostCommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot use --host-cmd: ")?;
        match self {
            Self::Name { said } => write!(f, "`{said}` is neither the name of a command nor an absolute path"),
            Self::NotFound { name } => write!(f, "no program `{name}` on the host's search path"),
            Self::NotAProgram { path } => write!(f, "{path} is no program that can be started"),
            Self::Twice { name } => write!(f, "two programs are called `{name}`"),
            Self::NotStatic => f.write_str("this sifu needs the host's C library, which the container lacks"),
        }
    }
}

impl std::error::Error for HostCommandError {}

impl Hint for HostCommandError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::NotFound { .. } => vec!["Load the module that has it first, or give its absolute path.".to_owned()],
            Self::NotStatic => vec!["Install a static sifu: `make static` builds one.".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// What a relay asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Request {
    umask: u32,
    directory: Vec<u8>,
    /// The command's name first.
    words: Vec<Vec<u8>>,
    /// Those of the caller that speak to a scheduler.
    variables: Vec<Pair>,
}

/// What the relay gets back.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Ended(Ended),
    NotStarted { why: Vec<u8>, hint: Vec<u8> },
}

impl Request {
    fn to_frame(&self) -> Vec<u8> {
        let mut frame = Frame::default();
        frame.number(self.umask);
        frame.string(&self.directory);
        frame.list(&self.words);
        let flat: Vec<Vec<u8>> =
            self.variables.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).collect();
        frame.list(&flat);
        frame.whole()
    }

    fn parse(frame: &[u8]) -> Option<Self> {
        let mut left = Left(frame);
        let (umask, directory, words, flat) = (left.number()?, left.string()?, left.list()?, left.list()?);
        let whole = left.0.is_empty() && !words.is_empty() && flat.len() % 2 == 0;
        let strings = words.iter().chain(&flat).chain([&directory]);
        // The kernel's strings hold none, and a name with `=` would be another name.
        let clean = strings.into_iter().all(|string| !string.contains(&0));
        let variables: Vec<Pair> = flat.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let named = variables.iter().all(|(name, _)| !name.is_empty() && !name.contains(&b'='));
        (whole && clean && named).then_some(Self { umask, directory, words, variables })
    }
}

impl Answer {
    fn to_frame(&self) -> Vec<u8> {
        let mut frame = Frame::default();
        match self {
            Self::Ended(Ended::Exited(code)) => {
                frame.number(0);
                frame.number(u32::from(*code));
            }
            Self::Ended(Ended::Signaled(signal)) => {
                frame.number(1);
                frame.number(signal.cast_unsigned());
            }
            Self::NotStarted { why, hint } => {
                frame.number(2);
                frame.string(why);
                frame.string(hint);
            }
        }
        frame.whole()
    }

    fn parse(frame: &[u8]) -> Option<Self> {
        let mut left = Left(frame);
        let answer = match left.number()? {
            0 => Self::Ended(Ended::Exited(u8::try_from(left.number()?).ok()?)),
            1 => Self::Ended(Ended::Signaled(i32::try_from(left.number()?).ok()?)),
            2 => Self::NotStarted { why: left.string()?, hint: left.string()? },
            _ => return None,
        };
        left.0.is_empty().then_some(answer)
    }
}

#[derive(Default)]
struct Frame(Vec<u8>);

impl Frame {
    fn number(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    fn string(&mut self, string: &[u8]) {
        // The other side refuses what is longer than a frame may be.
        self.number(u32::try_from(string.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(string);
    }

    fn list(&mut self, strings: &[Vec<u8>]) {
        self.number(u32::try_from(strings.len()).unwrap_or(u32::MAX));
        strings.iter().for_each(|string| self.string(string));
    }

    fn whole(self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        [&length.to_le_bytes()[..], &self.0].concat()
    }
}

/// What is left to read of a frame.
struct Left<'a>(&'a [u8]);

impl Left<'_> {
    fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*number))
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string.to_vec())
    }

    fn list(&mut self) -> Option<Vec<Vec<u8>>> {
        // Not reserved: the number is the other side's word.
        (0..self.number()?).map(|_| self.string()).collect()
    }
}

/// Reads a frame; `None` where the other side has gone.
fn read_frame(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            return Ok(None);
        }
        read => read?,
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // As much as comes is kept, not as much as was announced.
    let mut frame = Vec::new();
    stream.take(length as u64).read_to_end(&mut frame)?;
    if frame.len() < length { Ok(None) } else { Ok(Some(frame)) }
}

/// The environment of a command: the `host`'s own, in which the scheduler's variables are as the caller has them. One that
/// the container was started with (`inside`) and that the caller lacks was unset there, and is unset here.
fn environment(host: &[Pair], inside: &[Vec<u8>], callers: &[Pair]) -> Vec<Pair> {
    let is_callers = |name: &[u8]| callers.iter().any(|(caller, _)| caller == name);
    let was_unset = |name: &[u8]| inside.iter().any(|inside| inside == name);
    let stays = |name: &[u8]| !is_of_scheduler(name) || !(is_callers(name) || was_unset(name));
    let kept = host.iter().filter(|(name, _)| stays(name));
    kept.chain(callers.iter().filter(|(name, _)| is_of_scheduler(name))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<Pair> {
        pairs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    }

    fn request() -> Request {
        Request {
            umask: 0o27,
            directory: b"/a b".to_vec(),
            words: [&b"sbatch"[..], b"", b"--wrap=echo \xff"].map(<[u8]>::to_vec).to_vec(),
            variables: pairs(&[("SLURM_CONF", "/etc/slurm.conf"), ("SBATCH_X", "a=b")]),
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let frame = request().to_frame();
        assert_eq!(Request::parse(&frame[4..]), Some(request()));
        assert_eq!(frame[..4], u32::try_from(frame.len() - 4).unwrap().to_le_bytes());
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let not_started = Answer::NotStarted { why: b"no".to_vec(), hint: Vec::new() };
        for answer in [Answer::Ended(Ended::Exited(7)), Answer::Ended(Ended::Signaled(15)), not_started] {
            assert_eq!(Answer::parse(&answer.to_frame()[4..]), Some(answer));
        }
    }

    #[test]
    fn a_frame_that_is_cut_or_goes_on_is_refused() {
        let frame = request().to_frame()[4..].to_vec();
        for length in 0..frame.len() {
            assert_eq!(Request::parse(&frame[..length]), None, "{length}");
        }
        assert_eq!(Request::parse(&[&frame[..], b"x"].concat()), None);
        assert_eq!(Request::parse(&[0xff; 64]), None);
        assert_eq!(Answer::parse(&[9, 0, 0, 0, 1, 0, 0, 0]), None);
    }

    #[test]
    fn strings_that_the_kernel_would_cut_are_refused() {
        for broken in [
            Request { directory: b"/a\0b".to_vec(), ..request() },
            Request { words: vec![b"sbatch".to_vec(), b"a\0".to_vec()], ..request() },
            Request { words: Vec::new(), ..request() },
            Request { variables: pairs(&[("SLURM_A=LD_PRELOAD", "x")]), ..request() },
            Request { variables: pairs(&[("", "x")]), ..request() },
        ] {
            assert_eq!(Request::parse(&broken.to_frame()[4..]), None, "{broken:?}");
        }
    }

    #[test]
    fn the_environment_is_the_host_s_with_the_caller_s_word_for_the_scheduler() {
        let host = pairs(&[("PATH", "/usr/bin"), ("SLURM_CONF", "/etc/a"), ("SLURM_JOB_ID", "7"), ("SBATCH_A", "1")]);
        // --cleanenv: nothing was inside, so nothing was unset.
        assert_eq!(environment(&host, &[], &[]), host);
        let inside = [b"SLURM_CONF".to_vec(), b"SLURM_JOB_ID".to_vec(), b"SBATCH_A".to_vec()];
        let callers = pairs(&[("SLURM_CONF", "/etc/b"), ("SBATCH_A", "1"), ("PATH", "/evil"), ("LD_PRELOAD", "x.so")]);
        let expected = pairs(&[("PATH", "/usr/bin"), ("SLURM_CONF", "/etc/b"), ("SBATCH_A", "1")]);
        assert_eq!(environment(&host, &inside, &callers), expected);
    }
}
