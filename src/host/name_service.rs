//! Questions to the host's name service, through the programs that the host brings for it, within a time limit.
//!
//! Questions run side by side: ask all, then take the answers. `/etc/nsswitch.conf` tells whether there is anybody to ask:
//!
//! ```text
//! passwd: files sss      # the files, then SSSD
//! ```

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long the name service may take. Beyond it a start goes on with what the files and the environment say: a site
/// whose directory is down still computes.
const TIME_LIMIT: Duration = Duration::from_millis(300);

/// Bytes of `nsswitch.conf` that are read at most.
const SWITCH_MAX: u64 = 64 << 10;

/// Bytes of an answer that are read at most: a group can have many members.
const ANSWER_MAX: usize = 16 << 20;

/// Returns the moment until which questions asked now may be answered.
pub fn deadline() -> Instant {
    Instant::now() + TIME_LIMIT
}

/// Whether this host looks `database` up anywhere but in the files.
pub fn serves(database: &str) -> bool {
    let mut text = String::new();
    let read = File::open("/etc/nsswitch.conf").and_then(|file| file.take(SWITCH_MAX).read_to_string(&mut text));
    read.is_ok() && names_service(&text, database)
}

/// Whether `nsswitch.conf` names something other than the files for `database`.
fn names_service(text: &str, database: &str) -> bool {
    let services =
        text.lines().find_map(|line| line.trim_start().strip_prefix(database)?.trim_start().strip_prefix(':'));
    services.is_some_and(|services| {
        let services = services.split('#').next().unwrap_or_default();
        services.split_ascii_whitespace().any(|service| service != "files")
    })
}

/// A program that is about to answer.
pub struct Question {
    child: Child,
    answer: ChildStdout,
    deadline: Instant,
}

impl Question {
    /// Starts `program` with `arguments`; `None` when the host does not have it.
    pub fn ask(program: &str, arguments: &[String], deadline: Instant) -> Option<Self> {
        // Fixed places, not the search path: the answer says who the caller is.
        const PLACES: [&str; 3] = ["/usr/bin", "/bin", "/run/current-system/sw/bin"];
        let places = PLACES.into_iter().map(|place| Path::new(place).join(program));
        let program: PathBuf = places.into_iter().find(|place| place.exists())?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let answer = child.stdout.take()?;
        Some(Self { child, answer, deadline })
    }

    /// Returns what was answered before the time ran out; lines that were complete by then count.
    pub fn answer(mut self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut chunk = [0u8; 8192];
        while text.len() < ANSWER_MAX && self.wait_readable() {
            match self.answer.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(count) => text.extend_from_slice(&chunk[..count]),
            }
        }
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        text.truncate(whole);
        text
    }

    fn wait_readable(&self) -> bool {
        let Some(left) = self.deadline.checked_duration_since(Instant::now()) else { return false };
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut [PollFd::new(self.answer.as_fd(), PollFlags::POLLIN)], timeout), Ok(ready) if ready > 0)
    }
}

impl Drop for Question {
    /// Leaves no child to the command that takes this process over. The kill is a no-op for one that has ended.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_whole() {
        let Some(question) = Question::ask("printf", &["a:b\\nc".to_owned()], deadline()) else { return };
        assert_eq!(question.answer(), b"a:b\n");
    }

    #[test]
    fn a_program_that_does_not_answer_costs_the_time_limit_and_no_more() {
        let begin = Instant::now();
        let Some(question) = Question::ask("sleep", &["20".to_owned()], deadline()) else { return };
        assert_eq!(question.answer(), b"");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_that_is_not_there_is_no_question() {
        assert!(Question::ask("no-such-program-of-any-host", &[], deadline()).is_none());
    }

    #[test]
    fn only_a_service_beside_the_files_is_asked() {
        assert!(names_service("passwd: files sss\nsubid: files sss\n", "subid"));
        assert!(names_service("passwd:sss\n", "passwd") && names_service(" passwd : compat\n", "passwd"));
        assert!(!names_service("subid: files # sss\n", "subid"));
        assert!(!names_service("passwd: sss\npasswd_compat: nis\n", "group"));
        assert!(!names_service("", "passwd"));
    }
}
