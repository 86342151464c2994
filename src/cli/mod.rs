//! The command line: flags, verbs, and what they print.
//!
//! `flags` says what a flag and a verb are, `action_flags` and `commands` hold the tables, `parse` reads a command line by
//! them, `help`, `man` and `completion` write texts from them. Every verb has a function of its own in the file of its name.

pub mod accelerators;
pub mod action;
pub mod action_flags;
pub mod applet;
pub mod build;
pub mod cache;
pub mod commands;
pub mod completion;
pub mod config;
pub mod doctor;
pub mod elsewhere;
pub mod flags;
pub mod help;
pub mod inspect;
pub mod keyserver;
pub mod library;
pub mod man;
pub mod mpi;
pub mod oci;
pub mod parse;
pub mod progress;
pub mod pull;
pub mod push;
mod ranks;
pub mod registry;
pub mod remote;
pub mod remote_commands;
pub mod run_help;
pub mod sif;
mod unpack;
pub mod version;

use std::cell::Cell;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

use self::applet::Applet;
use self::flags::Does;
use self::parse::{Note, Order};
use crate::host_command;
use crate::report::{self, EXIT_USAGE, Failure};

/// Reads the command line and the environment, does what they say, and returns the exit code.
pub fn run() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    if called == host_command::RELAY {
        return host_command::relay::run(words).unwrap_or_else(|failure| {
            report::fatal(&failure);
            ExitCode::from(failure.code)
        });
    }
    let applet = Applet::from_argv0(&called);
    if words.len() == 0 && applet != Applet::RunSingularity {
        say(&help::usage(applet, &[&commands::ROOT], true));
        return ExitCode::from(EXIT_USAGE);
    }
    let parsed = parse::parse(&commands::ROOT, applet, words, std::env::vars_os());
    report::set_level(parsed.level, parsed.colour);
    for note in &parsed.notes {
        match note {
            Note::Info(text) => report::info(text),
            Note::Warning(text) => report::warning(text),
        }
    }
    let path = &parsed.path;
    let done = match parsed.order {
        Ok(Order::Do(said)) => match path[path.len() - 1].does {
            Does::Verb(verb) => verb(*said),
            Does::Help => help::print_named(applet, &said.words),
            Does::Group(_) | Does::Later(_) => print(&help::help(applet, path)),
        },
        Ok(Order::Help) => print(&help::help(applet, path)),
        Ok(Order::Version) => version::print_long(applet),
        Err(error) => {
            report::fatal(&error.failure());
            if error.is_usage() {
                say(&help::usage(applet, path, error.wants_list()));
            }
            return ExitCode::from(error.failure().code);
        }
    };
    done.unwrap_or_else(|failure| {
        report::fatal(&failure);
        ExitCode::from(failure.code)
    })
}

/// Writes to standard error. A closed one is no reason to fail.
fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes a verb's text to standard output.
pub(crate) fn print(text: &str) -> Result<ExitCode, Failure> {
    answer(|out| {
        out.write_all(text.as_bytes())
            .map_err(|error| Failure::new(format!("cannot write to standard output: {error}")))
    })
}

/// Gives a verb standard output to write its answer to. A reader that has seen enough (`sifu help | head`) ends the verb
/// without an error.
pub(crate) fn answer(write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<ExitCode, Failure> {
    let closed = Cell::new(false);
    let mut out = BufWriter::with_capacity(64 * 1024, StandardOutput { closed: &closed });
    let written = write(&mut out)
        .and_then(|()| out.flush().map_err(|error| Failure::new(format!("cannot write to standard output: {error}"))));
    // What is still in the buffer has nowhere to go if the verb failed to write it.
    let _ = out.into_parts();
    match written {
        Err(_) if closed.get() => Ok(ExitCode::SUCCESS),
        written => written.map(|()| ExitCode::SUCCESS),
    }
}

/// Standard output that remembers that its reader has gone.
struct StandardOutput<'a> {
    closed: &'a Cell<bool>,
}

impl StandardOutput<'_> {
    fn notice<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            self.closed.set(true);
        }
        result
    }
}

impl Write for StandardOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.notice(io::stdout().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.notice(io::stdout().lock().flush())
    }
}
