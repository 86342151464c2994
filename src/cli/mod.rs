//! The command line: flags, verbs, and what they print.
//!
//! `flags` says what a flag and a verb are, `action_flags` and `commands` hold the tables, `parse` reads a command line by
//! them, `help`, `man` and `completion` write texts from them. Every verb has a function of its own in the file of its name.

pub mod action_flags;
pub mod applet;
pub mod commands;
pub mod completion;
pub mod config;
pub mod flags;
pub mod help;
pub mod inspect;
pub mod man;
pub mod parse;
pub mod run_help;
pub mod sif;
pub mod version;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use self::applet::Applet;
use self::flags::Does;
use self::parse::{Note, Order};
use crate::report::{self, EXIT_USAGE, Failure};

/// Reads the command line and the environment, does what they say, and returns the exit code.
pub fn run() -> ExitCode {
    let mut words = std::env::args_os();
    let applet = Applet::from_argv0(&words.next().unwrap_or_default());
    if words.len() == 0 && applet != Applet::RunSingularity {
        say(&help::usage(applet, &[&commands::ROOT]));
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
                say(&help::usage(applet, path));
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
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes a verb's answer to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<ExitCode, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
