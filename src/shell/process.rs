//! A [`World`] of processes: the shell as a program, for containers whose image has none.
//!
//! A member of a pipeline is a thread with a copy of the shell, since every descriptor, the current directory and the
//! variables belong to the copy; only programs are processes. Descriptors above 2 can be redirected for what the shell
//! does itself, but not handed to programs.

use super::ast::Command;
use super::evaluate::{Fuel, Shell, Stop};
use super::parse::{MAX_SCRIPT_BYTES, ParseError};
use super::world::{Access, External, FileFacts, Target, World};
use crate::tree::Kind;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{AccessFlags, Pid, User, access};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a variable or a substitution may hold in all, over the life of a script.
const FUEL: u64 = 1 << 34;
/// A program that can't be started by `exec`: sifu's own failure.
const EXEC_FAILURE: u8 = crate::report::EXIT_FAILURE;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The process that the shell lives in.
pub struct ProcessWorld {
    descriptors: BTreeMap<u32, Arc<File>>,
    /// Programs under way, to be ended when the time is up.
    running: Arc<Mutex<Vec<Pid>>>,
}

/// Runs the shell as a program with the variables of `environment`: `-c SCRIPT [NAME [ARGUMENT…]]`; its exit code. The script, until it hands over to
/// another program by `exec`, may take no longer than `limit`.
pub fn run(arguments: &[OsString], environment: &[(Vec<u8>, Vec<u8>)], limit: Duration) -> u8 {
    let [option, script, rest @ ..] = arguments else { return usage() };
    if option != "-c" {
        return usage();
    }
    let Some(world) = ProcessWorld::new() else {
        crate::report::error("the shell's standard descriptors are closed");
        return EXEC_FAILURE;
    };
    let running = Arc::clone(&world.running);
    // A process that ends or becomes another program takes this thread along.
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        for pid in running.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // It may have ended just now.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        crate::report::error(format_args!("the environment scripts took longer than {} s", limit.as_secs_f32()));
        std::process::exit(i32::from(EXEC_FAILURE));
    });
    let directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let mut shell = Shell::new(world, directory.as_os_str().as_bytes(), Fuel::new(FUEL));
    for (name, value) in environment.iter().filter(|(name, _)| super::is_name(name)) {
        shell.define(name, value, true);
    }
    shell.define(b"PWD", directory.as_os_str().as_bytes(), true);
    if let Some((name, rest)) = rest.split_first() {
        shell.state.name = name.as_bytes().to_vec();
        shell.state.arguments = rest.iter().map(|a| a.as_bytes().to_vec()).collect();
    }
    match shell.run(b"-c", script.as_bytes()) {
        Ok(code) => code,
        Err(Stop::Exit(code)) => code,
        Err(Stop::NeedsShell { reason }) => {
            crate::report::error(reason);
            EXEC_FAILURE
        }
        Err(Stop::Exec { .. }) => EXEC_FAILURE,
    }
}

fn usage() -> u8 {
    crate::report::error("usage: -c SCRIPT [NAME [ARGUMENT...]]");
    crate::report::EXIT_USAGE
}

impl ProcessWorld {
    /// The descriptors 0 to 2 of this process; `None` when one can't be copied.
    fn new() -> Option<Self> {
        use std::os::fd::AsFd;
        let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().ok().map(|fd| Arc::new(File::from(fd)));
        let descriptors = BTreeMap::from([
            (0, copy(std::io::stdin().as_fd())?),
            (1, copy(std::io::stdout().as_fd())?),
            (2, copy(std::io::stderr().as_fd())?),
        ]);
        Some(Self { descriptors, running: Arc::default() })
    }

    fn with(&self, changes: impl IntoIterator<Item = (u32, File)>) -> Self {
        let mut descriptors = self.descriptors.clone();
        for (descriptor, file) in changes {
            descriptors.insert(descriptor, Arc::new(file));
        }
        Self { descriptors, running: Arc::clone(&self.running) }
    }

    fn stdio(&self, descriptor: u32) -> Stdio {
        match self.descriptors.get(&descriptor).and_then(|file| file.try_clone().ok()) {
            Some(file) => file.into(),
            None => Stdio::null(),
        }
    }

    /// The program as it is to be started, or the exit code that says why not.
    fn prepare(&mut self, command: &External<'_>) -> Result<std::process::Command, u8> {
        let name = &command.arguments[0];
        let (path, problem) = find(command);
        let Some(path) = path else {
            let code = if problem == NOT_THERE { NOT_FOUND } else { NOT_EXECUTABLE };
            self.say(&format!("{}: {problem}", String::from_utf8_lossy(name)));
            return Err(code);
        };
        let mut program = std::process::Command::new(OsStr::from_bytes(&path));
        program
            .args(command.arguments[1..].iter().map(|a| OsStr::from_bytes(a)))
            .env_clear()
            .envs(command.variables.iter().map(|(n, v)| (OsStr::from_bytes(n), OsStr::from_bytes(v))))
            .current_dir(OsStr::from_bytes(command.directory))
            .stdin(self.stdio(0))
            .stdout(self.stdio(1))
            .stderr(self.stdio(2));
        Ok(program)
    }

    fn say(&self, message: &str) {
        if let Some(mut file) = self.descriptors.get(&2).map(Arc::as_ref) {
            // A standard error that is gone is no reason to fail.
            let _ = file.write_all(format!("sh: {message}\n").as_bytes());
        }
    }
}

const NOT_THERE: &str = "command not found";

/// The program's path, or what is wrong with its name.
fn find(command: &External<'_>) -> (Option<Vec<u8>>, &'static str) {
    let name = &command.arguments[0];
    let absolute = |path: &[u8]| {
        if path.starts_with(b"/") { path.to_vec() } else { [command.directory, b"/", path].concat() }
    };
    let state = |path: &[u8]| match std::fs::metadata(OsStr::from_bytes(path)) {
        Err(_) => NOT_THERE,
        Ok(m) if m.is_dir() => "is a directory",
        Ok(_) if access(Path::new(OsStr::from_bytes(path)), AccessFlags::X_OK).is_err() => "permission denied",
        Ok(_) => "",
    };
    if name.contains(&b'/') {
        let path = absolute(name);
        let problem = state(&path);
        return (
            problem.is_empty().then_some(path),
            if problem == NOT_THERE { "no such file or directory" } else { problem },
        );
    }
    let mut problem = NOT_THERE;
    for directory in command.path.iter().flat_map(|p| p.split(|&b| b == b':')) {
        let path = [absolute(if directory.is_empty() { b"." } else { directory }).as_slice(), b"/", name].concat();
        match state(&path) {
            "" if !name.is_empty() => return (Some(path), ""),
            "permission denied" => problem = "permission denied",
            _ => {}
        }
    }
    (None, problem)
}

/// The exit code of a process as shells tell it.
fn exit_code(status: std::process::ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

impl World for ProcessWorld {
    type Streams = BTreeMap<u32, Arc<File>>;

    fn streams(&self) -> Self::Streams {
        self.descriptors.clone()
    }

    fn restore(&mut self, streams: Self::Streams) {
        self.descriptors = streams;
    }

    fn redirect(&mut self, descriptor: u32, target: Target) -> Result<Result<(), String>, Stop> {
        let open = |path: &[u8], options: &mut std::fs::OpenOptions| {
            let opened = options.open(OsStr::from_bytes(path));
            opened.map_err(|e| format!("{}: {e}", String::from_utf8_lossy(path)))
        };
        let mut options = std::fs::OpenOptions::new();
        let file = match target {
            Target::Close => {
                self.descriptors.remove(&descriptor);
                return Ok(Ok(()));
            }
            Target::Duplicate(from) => match self.descriptors.get(&from) {
                Some(file) => {
                    self.descriptors.insert(descriptor, Arc::clone(file));
                    return Ok(Ok(()));
                }
                None => return Ok(Err(format!("{from}: bad descriptor"))),
            },
            Target::Read(path) => open(&path, options.read(true)),
            Target::ReadWrite(path) => open(&path, options.read(true).write(true).create(true).truncate(false)),
            Target::Write { path, append: true, .. } => open(&path, options.append(true).create(true)),
            Target::Write { path, clobber, .. } => {
                let regular = std::fs::metadata(OsStr::from_bytes(&path)).is_ok_and(|m| m.is_file());
                if regular && !clobber {
                    return Ok(Err(format!("{}: exists", String::from_utf8_lossy(&path))));
                }
                open(&path, options.write(true).create(true).truncate(true))
            }
            Target::Text(text) => match std::io::pipe() {
                Ok((reader, mut writer)) => {
                    // The text may be larger than a pipe holds; whoever reads it may stop early.
                    std::thread::spawn(move || {
                        let _ = writer.write_all(&text);
                    });
                    Ok(File::from(std::os::fd::OwnedFd::from(reader)))
                }
                Err(e) => Err(format!("here-document: {e}")),
            },
        };
        Ok(file.map(|file| {
            self.descriptors.insert(descriptor, Arc::new(file));
        }))
    }

    fn capture(
        shell: &mut Shell<Self>,
        body: &mut dyn FnMut(&mut Shell<Self>) -> Result<(), Stop>,
    ) -> Result<Vec<u8>, Stop> {
        let (mut reader, writer) = match std::io::pipe() {
            Ok(pipe) => pipe,
            Err(e) => return Err(shell.fatal(&format_args!("no pipe: {e}"))),
        };
        let collector = std::thread::spawn(move || {
            let mut output = Vec::new();
            let _ = reader.read_to_end(&mut output);
            output
        });
        let saved = shell.world.streams();
        let writer = File::from(std::os::fd::OwnedFd::from(writer));
        shell.world.descriptors.insert(1, Arc::new(writer));
        let result = body(shell);
        // The collector ends when the last writing end is closed.
        shell.world.restore(saved);
        let output = collector.join().unwrap_or_default();
        result.map(|()| output)
    }

    fn pipeline(shell: &mut Shell<Self>, commands: &[Command]) -> Result<Vec<u8>, Stop> {
        let mut members = Vec::with_capacity(commands.len());
        let mut input: Option<File> = None;
        for (at, command) in commands.iter().enumerate() {
            let mut changes: Vec<(u32, File)> = input.take().map(|file| (0, file)).into_iter().collect();
            if at + 1 < commands.len() {
                match std::io::pipe() {
                    Ok((reader, writer)) => {
                        input = Some(File::from(std::os::fd::OwnedFd::from(reader)));
                        changes.push((1, File::from(std::os::fd::OwnedFd::from(writer))));
                    }
                    Err(e) => return Err(shell.fatal(&format_args!("no pipe: {e}"))),
                }
            }
            let world = shell.world.with(changes);
            members.push((shell.branch(world), command));
        }
        Ok(std::thread::scope(|scope| {
            let threads: Vec<_> = members
                .into_iter()
                .map(|(mut member, command)| {
                    scope.spawn(move || match member.member(command) {
                        Ok(status) => status,
                        Err(Stop::Exit(status)) => status,
                        Err(Stop::Exec { .. } | Stop::NeedsShell { .. }) => EXEC_FAILURE,
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(EXEC_FAILURE)).collect()
        }))
    }

    fn write(&mut self, descriptor: u32, bytes: &[u8]) -> Result<bool, Stop> {
        Ok(match self.descriptors.get(&descriptor) {
            Some(file) => file.as_ref().write_all(bytes).is_ok(),
            None => false,
        })
    }

    fn read_byte(&mut self) -> Result<Option<u8>, Stop> {
        let Some(file) = self.descriptors.get(&0) else { return Ok(None) };
        // Byte by byte: what follows the line belongs to whoever reads next.
        let mut byte = [0];
        loop {
            match file.as_ref().read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(byte[0])),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(None),
            }
        }
    }

    fn facts(&mut self, path: &[u8], follow: bool) -> Result<Option<FileFacts>, Stop> {
        let path = OsStr::from_bytes(path);
        let found = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
        Ok(found.ok().map(|m| {
            let kind = match m.file_type() {
                t if t.is_dir() => Kind::Directory,
                t if t.is_symlink() => Kind::Symlink,
                t if t.is_block_device() => Kind::BlockDevice,
                t if t.is_char_device() => Kind::CharDevice,
                t if t.is_fifo() => Kind::Fifo,
                t if t.is_socket() => Kind::Socket,
                _ => Kind::File,
            };
            FileFacts {
                kind,
                mode: m.mode() & 0o7777,
                uid: m.uid(),
                gid: m.gid(),
                size_bytes: m.len(),
                mtime: m.mtime(),
                identity: (m.dev(), m.ino()),
            }
        }))
    }

    fn access(&mut self, path: &[u8], wanted: Access) -> Result<bool, Stop> {
        let flags = match wanted {
            Access::Read => AccessFlags::R_OK,
            Access::Write => AccessFlags::W_OK,
            Access::Execute => AccessFlags::X_OK,
        };
        Ok(access(Path::new(OsStr::from_bytes(path)), flags).is_ok())
    }

    fn list(&mut self, path: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Stop> {
        let Ok(entries) = std::fs::read_dir(OsStr::from_bytes(path)) else { return Ok(None) };
        let mut names: Vec<Vec<u8>> = entries.flatten().map(|entry| entry.file_name().into_vec()).collect();
        names.sort();
        Ok(Some(names))
    }

    fn read_script(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>, Stop> {
        let Ok(file) = File::open(OsStr::from_bytes(path)) else { return Ok(None) };
        let mut text = Vec::new();
        let read = file.take(MAX_SCRIPT_BYTES as u64 + 1).read_to_end(&mut text);
        Ok(read.ok().map(|_| text))
    }

    fn home_of(&mut self, user: &[u8]) -> Result<Option<Vec<u8>>, Stop> {
        let name = String::from_utf8_lossy(user);
        let user = User::from_name(&name).ok().flatten();
        Ok(user.map(|user| user.dir.into_os_string().into_vec()))
    }

    fn computed(&mut self, name: &[u8]) -> Result<Option<Vec<u8>>, Stop> {
        Ok(match name {
            b"$" => Some(std::process::id().to_string().into_bytes()),
            b"PPID" => Some(nix::unistd::getppid().to_string().into_bytes()),
            b"EUID" => Some(nix::unistd::geteuid().to_string().into_bytes()),
            b"HOSTNAME" => nix::unistd::gethostname().ok().map(OsString::into_vec),
            b"RANDOM" => {
                let mut bytes = [0; 2];
                let read = File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
                read.ok().map(|()| (u16::from_ne_bytes(bytes) & 0x7fff).to_string().into_bytes())
            }
            b"EPOCHSECONDS" => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.ok().map(|d| d.as_secs().to_string().into_bytes())
            }
            _ => None,
        })
    }

    fn is_terminal(&mut self, descriptor: u32) -> Result<bool, Stop> {
        Ok(self.descriptors.get(&descriptor).is_some_and(|file| file.is_terminal()))
    }

    fn umask(&mut self, new: Option<u32>) -> Result<u32, Stop> {
        let old = umask(Mode::from_bits_truncate(new.unwrap_or(0o022)));
        if new.is_none() {
            umask(old);
        }
        Ok(new.unwrap_or(old.bits()))
    }

    fn run(&mut self, command: External<'_>) -> Result<u8, Stop> {
        let mut program = match self.prepare(&command) {
            Ok(program) => program,
            Err(code) => return Ok(code),
        };
        let spawned = program.spawn();
        // The copies of the descriptors go with it, so that a pipe ends when the program does.
        drop(program);
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) => {
                self.say(&format!("{}: {e}", String::from_utf8_lossy(&command.arguments[0])));
                return Ok(NOT_EXECUTABLE);
            }
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let list = || self.running.lock().unwrap_or_else(PoisonError::into_inner);
        list().push(pid);
        let status = child.wait();
        list().retain(|other| *other != pid);
        Ok(status.map_or(NOT_EXECUTABLE, exit_code))
    }

    fn exec(&mut self, command: External<'_>) -> Result<u8, Stop> {
        let mut program = match self.prepare(&command) {
            Ok(program) => program,
            Err(_) => return Ok(EXEC_FAILURE),
        };
        let error = program.exec();
        self.say(&format!("{}: {error}", String::from_utf8_lossy(&command.arguments[0])));
        Ok(EXEC_FAILURE)
    }

    fn unsupported(&mut self, what: &str) -> Result<u8, Stop> {
        self.say(&format!("{what} is not supported by this shell"));
        Ok(1)
    }

    fn bad_script(&mut self, name: &[u8], error: &ParseError) -> Result<u8, Stop> {
        self.say(&format!("{}: {error}", String::from_utf8_lossy(name)));
        Ok(2)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What the shell of processes prints, and its exit code.
    pub fn run_process(script: &str) -> (String, u8) {
        let world = ProcessWorld::new().expect("descriptors");
        let mut shell = Shell::new(world, b"/proc/self/ns", Fuel::new(u64::MAX));
        let null = Target::Write { path: b"/dev/null".to_vec(), append: true, clobber: true };
        shell.world.redirect(2, null).expect("goes on").expect("opens");
        shell.define(b"PATH", b"/usr/local/bin:/usr/bin:/bin", true);
        shell.state.arguments = vec![b"one".to_vec(), b"two words".to_vec(), b"*".to_vec()];
        let mut status = 0;
        let output = ProcessWorld::capture(&mut shell, &mut |shell| {
            status = shell.run(b"sh", script.as_bytes())?;
            Ok(())
        });
        (String::from_utf8_lossy(&output.expect("output")).into_owned(), status)
    }
}
