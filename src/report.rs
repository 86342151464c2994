//! What people see when something is said: levels, `FATAL:` and `WARNING:` lines, exit codes.
//!
//! Rooms return errors of their own; [`Failure`] is the last form of each, made in `cli`: a message, hints, an exit code.
//! All of it goes to standard error. Nothing here knows a room's error types.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Exit code of sifu's own failures (the command's own code passes through otherwise).
pub const EXIT_FAILURE: u8 = 255;
/// Exit code of a command line that can't be understood.
pub const EXIT_USAGE: u8 = 1;

/// Gives advice for an error: whole sentences, what the reader can do. Implemented once per room, beside its error.
pub trait Hint {
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The end of a verb that did not succeed.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub hints: Vec<String>,
    pub code: u8,
}

impl Failure {
    /// A failure of sifu's own: exit code 255.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), code: EXIT_FAILURE }
    }

    /// A command line that can't be understood: exit code 1.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), code: EXIT_USAGE }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Puts what was being done before the message: `cannot open x.sif: no such file`.
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

/// An error of a room becomes a failure with its hints.
pub fn failure<E: fmt::Display + Hint>(error: &E) -> Failure {
    Failure { message: error.to_string(), hints: error.hints(), code: EXIT_FAILURE }
}

/// The words of the C library for an error of the system, lower-case and without its number.
pub fn cause(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// Levels as `APPTAINER_MESSAGELEVEL` has them: -3 errors only (--silent), -1 warnings (--quiet), 1 default, 4 verbose, 5 debug.
static LEVEL: AtomicI32 = AtomicI32::new(1);
static COLOUR: AtomicBool = AtomicBool::new(true);

/// The level at which [`debug`] speaks.
pub const DEBUG: i32 = 5;

/// Sets how much is said: -3, -1, 1, 4 or 5; and whether colours may be used on a terminal.
pub fn set_level(level: i32, colour: bool) {
    LEVEL.store(level, Ordering::Relaxed);
    COLOUR.store(colour, Ordering::Relaxed);
}

pub fn level() -> i32 {
    LEVEL.load(Ordering::Relaxed)
}

pub fn info(message: impl fmt::Display) {
    say(1, "INFO:    ", "34", &message);
}

/// Said unless `--silent`.
pub fn warning(message: impl fmt::Display) {
    say(-1, "WARNING: ", "33", &message);
}

pub fn verbose(message: impl fmt::Display) {
    say(4, "VERBOSE: ", "36", &message);
}

pub fn debug(message: impl fmt::Display) {
    say(DEBUG, "DEBUG:   ", "36", &message);
}

/// An error that does not end the program.
pub fn error(message: impl fmt::Display) {
    say(-3, "ERROR:   ", "31", &message);
}

/// Prints the failure's lines.
pub fn fatal(failure: &Failure) {
    say(i32::MIN, "FATAL:   ", "31", &failure.message);
    for hint in &failure.hints {
        say(i32::MIN, "         hint: ", "0", hint);
    }
}

fn say(needed: i32, label: &str, colour: &str, message: &dyn fmt::Display) {
    if level() < needed {
        return;
    }
    let stderr = std::io::stderr();
    let text = printable(&message.to_string());
    // One write: lines of concurrent processes don't mix. A closed stderr is no reason to fail.
    let line = if COLOUR.load(Ordering::Relaxed) && stderr.is_terminal() {
        format!("\u{1b}[{colour}m{label}\u{1b}[0m{text}\n")
    } else {
        format!("{label}{text}\n")
    };
    let _ = stderr.lock().write_all(line.as_bytes());
}

/// Replaces control characters (file and object names can hold terminal escapes) by visible escapes; newlines stay.
pub fn printable(text: &str) -> String {
    if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| {
            let hide = c.is_control() && c != '\n' && c != '\t';
            let escaped: Vec<char> = if hide { c.escape_default().collect() } else { vec![c] };
            escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_a_terminal_become_visible() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\n");
    }

    #[test]
    fn context_goes_before_the_message() {
        assert_eq!(Failure::new("no such file").context("cannot open x").message, "cannot open x: no such file");
    }
}
