//! What a shell needs from outside: files, streams, processes. The evaluator itself touches nothing.

use super::ast::Command;
use super::evaluate::{Shell, Stop};
use super::parse::ParseError;

/// A snapshot of what a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    pub kind: crate::tree::Kind,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Device and inode number: equal for the same file.
    pub identity: (u64, u64),
}

/// `-r`, `-w`, `-x`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

/// Where a redirection leads, its word expanded.
pub enum Target {
    Read(Vec<u8>),
    Write {
        path: Vec<u8>,
        append: bool,
        clobber: bool,
    },
    ReadWrite(Vec<u8>),
    /// Another descriptor of the same shell.
    Duplicate(u32),
    Close,
    /// A here-document's text.
    Text(Vec<u8>),
}

/// A command that is no built-in and no function.
pub struct External<'a> {
    /// At least the name.
    pub arguments: &'a [Vec<u8>],
    pub variables: Vec<(Vec<u8>, Vec<u8>)>,
    /// The value of `PATH`, if set.
    pub path: Option<Vec<u8>>,
    pub directory: &'a [u8],
}

/// The surroundings of a [`Shell`]. Paths are absolute. An `Err` ends the evaluation; the inner result of
/// [`World::redirect`] is an ordinary error of the script.
pub trait World: Sized {
    /// The table of open descriptors.
    type Streams;

    fn streams(&self) -> Self::Streams;
    fn restore(&mut self, streams: Self::Streams);
    fn redirect(&mut self, descriptor: u32, target: Target) -> Result<Result<(), String>, Stop>;

    /// Runs `body` with its standard output collected; nothing else of the streams changes.
    fn capture(
        shell: &mut Shell<Self>,
        body: &mut dyn FnMut(&mut Shell<Self>) -> Result<(), Stop>,
    ) -> Result<Vec<u8>, Stop>;
    /// Runs the commands, each in a copy of the shell, each one's output the next one's input; their exit codes.
    fn pipeline(shell: &mut Shell<Self>, commands: &[Command]) -> Result<Vec<u8>, Stop>;

    /// Writes to descriptor 1 or 2 (or one that a redirection opened); false when that fails.
    fn write(&mut self, descriptor: u32, bytes: &[u8]) -> Result<bool, Stop>;
    /// The next byte of standard input.
    fn read_byte(&mut self) -> Result<Option<u8>, Stop>;

    /// The file that `path` leads to; with `follow` unset, a symbolic link itself.
    fn facts(&mut self, path: &[u8], follow: bool) -> Result<Option<FileFacts>, Stop>;
    fn access(&mut self, path: &[u8], access: Access) -> Result<bool, Stop>;
    /// The names in a directory, sorted, without `.` and `..`; `None` when there is no such directory.
    fn list(&mut self, path: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Stop>;
    /// The content of a script to source; `None` when it can't be read.
    fn read_script(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>, Stop>;
    /// The home directory of a named user.
    fn home_of(&mut self, user: &[u8]) -> Result<Option<Vec<u8>>, Stop>;
    /// Variables the shell computes (`RANDOM`, `PPID`, …) and `$$`; `None` for any other name.
    fn computed(&mut self, name: &[u8]) -> Result<Option<Vec<u8>>, Stop>;
    fn is_terminal(&mut self, descriptor: u32) -> Result<bool, Stop>;
    /// The file creation mask, set to `new` when given.
    fn umask(&mut self, new: Option<u32>) -> Result<u32, Stop>;

    /// Runs a program and waits for it; its exit code as a shell has it.
    fn run(&mut self, command: External<'_>) -> Result<u8, Stop>;
    /// Becomes a program (`exec`); returns the exit code only on failure.
    fn exec(&mut self, command: External<'_>) -> Result<u8, Stop>;

    /// A feature of shells that this one lacks was asked for.
    fn unsupported(&mut self, what: &str) -> Result<u8, Stop>;
    /// A script to source or evaluate can't be parsed.
    fn bad_script(&mut self, name: &[u8], error: &ParseError) -> Result<u8, Stop>;
}
