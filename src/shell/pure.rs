//! A [`World`] without effects: files are looked up in the image, output is collected, and whatever would need a
//! process, a write or a fact that is not known yet ends the evaluation with [`Stop::NeedsShell`].

use super::ast::Command;
use super::evaluate::{Fuel, Shell, Stop};
use super::parse::{MAX_SCRIPT_BYTES, ParseError};
use super::world::{Access, External, FileFacts, Target, World};
use crate::tree::lookup::{self, Kind, Lookup, LookupError, Resolved};
use starter::paths::ContainerPath;

/// What scripts may write before the evaluation gives up.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// The fuel for an image's environment: about a million commands, or 64 MiB of text handled.
pub const FUEL: u64 = 1 << 26;

/// The image as it will be seen inside the container.
pub struct PureWorld<'a> {
    image: &'a dyn Lookup,
    /// Paths below which the container shows something else than the image.
    covered: &'a [ContainerPath],
    streams: Streams,
    /// What was written to the container's standard output and standard error.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    captures: Vec<Vec<u8>>,
    /// The program is known, not run: `exec` ends with [`Stop::Exec`].
    exec_allowed: bool,
}

/// Where descriptors 0 to 2 lead.
#[derive(Clone)]
pub struct Streams {
    input: Input,
    out: Sink,
    err: Sink,
}

#[derive(Clone)]
enum Input {
    /// The container's own standard input.
    Inherited,
    Text {
        bytes: std::rc::Rc<[u8]>,
        at: std::rc::Rc<std::cell::Cell<usize>>,
    },
    Closed,
}

#[derive(Clone, Copy)]
enum Sink {
    Null,
    Stdout,
    Stderr,
    Capture(usize),
    Closed,
}

impl<'a> PureWorld<'a> {
    pub fn new(image: &'a dyn Lookup, covered: &'a [ContainerPath]) -> Self {
        Self {
            image,
            covered,
            streams: Streams { input: Input::Inherited, out: Sink::Stdout, err: Sink::Stderr },
            stdout: Vec::new(),
            stderr: Vec::new(),
            captures: Vec::new(),
            exec_allowed: false,
        }
    }

    /// Lets `exec PROGRAM` end the evaluation with [`Stop::Exec`] instead of [`Stop::NeedsShell`].
    pub fn allow_exec(mut self) -> Self {
        self.exec_allowed = true;
        self
    }

    fn resolve(&self, path: &[u8], follow: bool) -> Result<Option<Resolved>, Stop> {
        // A path with `..` is left to a shell: what it means depends on links on the way.
        let Ok(path) = ContainerPath::parse(path) else {
            return Err(needs(format!("looks at {}", String::from_utf8_lossy(path))));
        };
        if self.is_covered(&path) {
            return Err(needs(format!("looks at {path}, which is not of the image")));
        }
        let parent = if follow { path.clone() } else { path.parent() };
        let mut at = lookup::resolve(self.image, &parent).map_err(failed)?;
        if self.is_covered(&at.path) {
            return Err(needs(format!("looks at {}, which is not of the image", at.path)));
        }
        if !follow && !path.is_root() {
            let Ok(whole) = at.path.join(path.name()) else { return Ok(None) };
            at.stat = if at.stat.is_some() { self.image.lstat(&whole).map_err(failed)? } else { None };
            at.path = whole;
        }
        if at.stat.is_none() {
            // A mount point that the image lacks appears with the directories above it.
            if self.covered.iter().any(|c| c.starts_with(&at.path) || c.starts_with(&path)) {
                return Err(needs(format!("looks at {path}, which may be a mount point")));
            }
            return Ok(None);
        }
        Ok(Some(at))
    }

    fn is_covered(&self, path: &ContainerPath) -> bool {
        self.covered.iter().any(|c| path.starts_with(c))
    }
}

fn needs(reason: String) -> Stop {
    Stop::NeedsShell { reason }
}

fn failed(error: LookupError) -> Stop {
    needs(error.to_string())
}

impl World for PureWorld<'_> {
    type Streams = Streams;

    fn streams(&self) -> Streams {
        self.streams.clone()
    }

    fn restore(&mut self, streams: Streams) {
        self.streams = streams;
    }

    fn redirect(&mut self, descriptor: u32, target: Target) -> Result<Result<(), String>, Stop> {
        let text = |bytes: Vec<u8>| Input::Text { bytes: bytes.into(), at: std::rc::Rc::default() };
        match (descriptor, target) {
            (0, Target::Read(path)) if path == b"/dev/null" => self.streams.input = text(Vec::new()),
            (0, Target::Read(path)) => match self.read_script(&path)? {
                Some(bytes) => self.streams.input = text(bytes),
                None => return Ok(Err(format!("{}: can't be read", String::from_utf8_lossy(&path)))),
            },
            (0, Target::Text(bytes)) => self.streams.input = text(bytes),
            (0, Target::Close) => self.streams.input = Input::Closed,
            (0, Target::Duplicate(0)) => {}
            (1 | 2, Target::Write { path, .. }) if path == b"/dev/null" => self.set_sink(descriptor, Sink::Null),
            (1 | 2, Target::Close) => self.set_sink(descriptor, Sink::Closed),
            (1 | 2, Target::Duplicate(1)) => self.set_sink(descriptor, self.streams.out),
            (1 | 2, Target::Duplicate(2)) => self.set_sink(descriptor, self.streams.err),
            (descriptor, _) => return Err(needs(format!("redirects descriptor {descriptor}"))),
        }
        Ok(Ok(()))
    }

    fn capture(
        shell: &mut Shell<Self>,
        body: &mut dyn FnMut(&mut Shell<Self>) -> Result<(), Stop>,
    ) -> Result<Vec<u8>, Stop> {
        let saved = shell.world.streams.out;
        shell.world.captures.push(Vec::new());
        shell.world.streams.out = Sink::Capture(shell.world.captures.len() - 1);
        body(shell)?;
        shell.world.streams.out = saved;
        Ok(shell.world.captures.pop().unwrap_or_default())
    }

    fn pipeline(shell: &mut Shell<Self>, commands: &[Command]) -> Result<Vec<u8>, Stop> {
        // One after the other: each reads what the one before has written.
        let input = shell.world.streams.input.clone();
        let mut statuses = Vec::with_capacity(commands.len());
        for (at, command) in commands.iter().enumerate() {
            if at + 1 == commands.len() {
                statuses.push(shell.member(command)?);
                break;
            }
            let mut status = 0;
            let output = Self::capture(shell, &mut |shell| {
                status = shell.member(command)?;
                Ok(())
            })?;
            statuses.push(status);
            shell.world.streams.input = Input::Text { bytes: output.into(), at: std::rc::Rc::default() };
        }
        shell.world.streams.input = input;
        Ok(statuses)
    }

    fn write(&mut self, descriptor: u32, bytes: &[u8]) -> Result<bool, Stop> {
        let sink = if descriptor == 2 { self.streams.err } else { self.streams.out };
        let buffer = match sink {
            Sink::Null => return Ok(true),
            Sink::Closed => return Ok(false),
            Sink::Stdout => &mut self.stdout,
            Sink::Stderr => &mut self.stderr,
            Sink::Capture(at) => match self.captures.get_mut(at) {
                Some(buffer) => buffer,
                None => return Ok(false),
            },
        };
        if buffer.len().saturating_add(bytes.len()) > MAX_OUTPUT_BYTES {
            return Err(needs("writes too much".to_owned()));
        }
        buffer.extend_from_slice(bytes);
        Ok(true)
    }

    fn read_byte(&mut self) -> Result<Option<u8>, Stop> {
        match &self.streams.input {
            Input::Inherited => Err(needs("reads the standard input".to_owned())),
            Input::Closed => Ok(None),
            Input::Text { bytes, at } => {
                let byte = bytes.get(at.get()).copied();
                at.set(at.get() + usize::from(byte.is_some()));
                Ok(byte)
            }
        }
    }

    fn facts(&mut self, path: &[u8], follow: bool) -> Result<Option<FileFacts>, Stop> {
        // A trailing slash asks for the directory that a link leads to.
        let follow = follow || path.ends_with(b"/");
        let stat = self.resolve(path, follow)?.and_then(|at| at.stat);
        let Some(stat) = stat.filter(|s| s.kind == Kind::Directory || !path.ends_with(b"/")) else { return Ok(None) };
        Ok(Some(FileFacts {
            kind: stat.kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size_bytes: stat.size_bytes,
            mtime: stat.mtime,
            identity: (0, stat.inode),
        }))
    }

    fn access(&mut self, path: &[u8], access: Access) -> Result<bool, Stop> {
        let Some(facts) = self.facts(path, true)? else { return Ok(false) };
        // Whose files these are inside depends on the identity there, so only what holds for everybody is an answer.
        let bit = match access {
            Access::Read => 0o4,
            Access::Execute => 0o1,
            Access::Write => return Err(needs("asks whether a file can be written".to_owned())),
        };
        if facts.mode & bit != 0 {
            Ok(true)
        } else if access == Access::Execute && facts.mode & 0o111 == 0 && facts.kind == Kind::File {
            Ok(false)
        } else {
            Err(needs("asks for the caller's rights on a file".to_owned()))
        }
    }

    fn list(&mut self, path: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Stop> {
        let Some(at) = self.resolve(path, true)? else { return Ok(None) };
        if self.covered.iter().any(|c| c != &at.path && c.starts_with(&at.path)) {
            return Err(needs(format!("lists {}, where something is mounted", at.path)));
        }
        let entries = self.image.read_dir(&at.path).map_err(failed)?;
        Ok(entries.map(|entries| entries.into_iter().map(|e| e.name).collect()))
    }

    fn read_script(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>, Stop> {
        let Some(at) = self.resolve(path, true)? else { return Ok(None) };
        self.image.read_file(&at.path, MAX_SCRIPT_BYTES as u64).map_err(failed)
    }

    fn home_of(&mut self, user: &[u8]) -> Result<Option<Vec<u8>>, Stop> {
        Err(needs(format!("asks for the home directory of {}", String::from_utf8_lossy(user))))
    }

    fn computed(&mut self, name: &[u8]) -> Result<Option<Vec<u8>>, Stop> {
        match name {
            b"$" | b"PPID" | b"RANDOM" | b"SECONDS" | b"EPOCHSECONDS" | b"HOSTNAME" | b"EUID" => {
                Err(needs(format!("uses the variable {}", String::from_utf8_lossy(name))))
            }
            _ => Ok(None),
        }
    }

    fn is_terminal(&mut self, descriptor: u32) -> Result<bool, Stop> {
        Err(needs(format!("asks whether descriptor {descriptor} is a terminal")))
    }

    fn umask(&mut self, _new: Option<u32>) -> Result<u32, Stop> {
        Err(needs("uses `umask`".to_owned()))
    }

    fn run(&mut self, command: External<'_>) -> Result<u8, Stop> {
        Err(needs(format!("runs `{}`", String::from_utf8_lossy(&command.arguments[0]))))
    }

    fn exec(&mut self, command: External<'_>) -> Result<u8, Stop> {
        if !self.exec_allowed {
            return self.run(command);
        }
        Err(Stop::Exec { arguments: command.arguments.to_vec(), variables: command.variables })
    }

    fn unsupported(&mut self, what: &str) -> Result<u8, Stop> {
        Err(needs(format!("uses {what}")))
    }

    fn bad_script(&mut self, name: &[u8], error: &ParseError) -> Result<u8, Stop> {
        Err(needs(format!("{}, {error}", String::from_utf8_lossy(name))))
    }
}

impl PureWorld<'_> {
    fn set_sink(&mut self, descriptor: u32, sink: Sink) {
        if descriptor == 2 {
            self.streams.err = sink;
        } else {
            self.streams.out = sink;
        }
    }
}

/// A shell that evaluates against an image, in the container's root directory.
pub fn shell<'a>(image: &'a dyn Lookup, covered: &'a [ContainerPath], directory: &[u8]) -> Shell<PureWorld<'a>> {
    Shell::new(PureWorld::new(image, covered), directory, Fuel::new(FUEL))
}
