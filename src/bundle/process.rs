//! Processes of containers: whether they are those that were started, and signals for no others.

use super::record::{Place, ProcessId, Record};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Where this process counts ids.
pub fn here() -> std::io::Result<Place> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(Place { boot, pid_namespace: fs::metadata("/proc/self/ns/pid")?.ino() })
}

/// What `/proc/PID/stat` says: when the process was started, and whether it still runs.
fn observe(pid: i32) -> Option<(u64, bool)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, blanks and parentheses included. The state is field 3, the start field 22.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some((fields.get(19)?.parse().ok()?, !matches!(*fields.first()?, "Z" | "X")))
}

/// Names a process that lives.
pub fn identify(pid: i32) -> Option<ProcessId> {
    observe(pid).map(|(start, _)| ProcessId { pid, start })
}

/// Whether the process is there, and no zombie.
pub fn lives(process: &ProcessId) -> bool {
    observe(process.pid).is_some_and(|(start, runs)| start == process.start && runs)
}

/// Holds on to the process, if it lives: its id can't come to mean another from then on.
pub fn hold(process: &ProcessId) -> Option<OwnedFd> {
    let held = starter::sys::pidfd_open(process.pid).ok()?;
    lives(process).then_some(held)
}

/// Inode of a namespace of a process, by its name in `/proc/PID/ns`.
pub fn namespace(pid: i32, name: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/{name}")).ok().map(|metadata| metadata.ino())
}

/// Sends a signal to the process of the container; `Ok(false)` if it has ended.
pub fn signal(process: &ProcessId, signal: i32) -> nix::Result<bool> {
    let Some(held) = hold(process) else { return Ok(false) };
    match starter::sys::pidfd_send_signal(held.as_fd(), signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Sends a signal to every process in the container's mount namespace, and says how many there were.
pub fn signal_all(record: &Record, signal: i32) -> usize {
    let mut sent = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some((start, true)) = observe(pid) else { continue };
        let Ok(held) = starter::sys::pidfd_open(pid) else { continue };
        // Both, since a number of a namespace that is gone may be given to another.
        let inside = namespace(pid, "mnt") == Some(record.mount_namespace)
            && namespace(pid, "user") == Some(record.user_namespace)
            && start >= record.process.start
            && pid != i32::try_from(std::process::id()).unwrap_or(0);
        if inside && starter::sys::pidfd_send_signal(held.as_fd(), signal).is_ok() {
            sent += 1;
        }
    }
    sent
}

/// Reads a signal: `15`, `TERM`, `SIGTERM`, in any case.
pub fn signal_number(text: &str) -> Option<i32> {
    const LAST: i32 = 64;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=LAST).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("term", 15), ("37", 37)] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIG", "SIGNOTHING"] {
            assert_eq!(signal_number(text), None, "{text}");
        }
    }
}
