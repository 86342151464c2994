//! Claims: one process makes an image, the others wait for it.
//!
//! ```text
//! HOST BOOT PID START          the content of a claim: whose it is, for those on the same machine
//! ```

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, gethostname};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a claim is touched.
const BEAT: Duration = Duration::from_secs(5);
/// How long a claim of another machine may lie untouched: network file systems show times late.
const MAX_SILENCE: Duration = Duration::from_secs(90);

/// The right to make an image, given up when it goes.
pub(super) struct Claim {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    beating: Option<std::thread::JoinHandle<()>>,
}

/// What became of an attempt.
pub(super) enum Claiming {
    Mine(Claim),
    /// Another process has it.
    Held,
}

impl Claim {
    /// Takes the claim on `key`, also from a process that is gone.
    pub fn take(directory: &Path, key: &str) -> io::Result<Claiming> {
        let path = directory.join(format!("{key}.claim"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                file.write_all(own_mark().as_bytes())?;
                Ok(Claiming::Mine(Self::hold(path, file)))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_abandoned(directory, &path) {
                    take_away(&path)?;
                }
                Ok(Claiming::Held)
            }
            Err(error) => Err(error),
        }
    }

    fn hold(path: PathBuf, file: File) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let stop = ended.clone();
        let beating = std::thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                std::thread::park_timeout(BEAT);
                let _ = file.set_modified(std::time::SystemTime::now());
            }
        });
        Self { path, ended, beating: Some(beating) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(beating) = self.beating.take() {
            beating.thread().unpark();
            let _ = beating.join();
        }
        // Not when another process took it for abandoned meanwhile.
        if fs::read_to_string(&self.path).is_ok_and(|mark| mark == own_mark()) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Who this process is.
fn own_mark() -> String {
    let host = gethostname().unwrap_or_default().to_string_lossy().replace(' ', "_");
    let pid = std::process::id();
    format!("{host} {} {pid} {}", boot_id(), start_time(pid).unwrap_or_default())
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "-".to_owned(), |id| id.trim().to_owned())
}

/// When a process began, in clock ticks since the machine did: field 22 of proc_pid_stat(5).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether nobody stands behind a claim any more.
fn is_abandoned(directory: &Path, path: &Path) -> bool {
    let Ok(mark) = fs::read_to_string(path) else { return false };
    let own = own_mark();
    let mut own = own.split(' ');
    let words: Vec<&str> = mark.split(' ').collect();
    if let [host, boot, pid, start] = words.as_slice()
        && own.next() == Some(host)
        && own.next() == Some(boot)
        && let Ok(pid) = pid.parse::<i32>()
    {
        let is_gone = kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
        let is_other = start_time(pid.unsigned_abs()).is_some_and(|now| now.to_string() != **start);
        return is_gone || is_other;
    }
    // Of another machine, or not written to its end: time tells, the file system's own.
    let age = || -> io::Result<Duration> {
        let probe = directory.join(format!(".now-{}", std::process::id()));
        let now = File::create(&probe).and_then(|file| file.metadata()).and_then(|metadata| metadata.modified());
        let _ = fs::remove_file(&probe);
        let touched = fs::metadata(path)?.modified()?;
        Ok(now?.duration_since(touched).unwrap_or_default())
    };
    age().is_ok_and(|age| age > MAX_SILENCE)
}

/// Takes an abandoned claim away. Of several who try, one succeeds; a claim that was made anew in between goes back.
fn take_away(path: &Path) -> io::Result<()> {
    let judged = fs::read_to_string(path).unwrap_or_default();
    let aside = path.with_extension(format!("abandoned-{}", std::process::id()));
    match fs::rename(path, &aside) {
        Ok(()) => {
            if fs::read_to_string(&aside).is_ok_and(|mark| mark != judged) {
                let _ = fs::hard_link(&aside, path);
            }
            fs::remove_file(&aside)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_of_a_process_that_is_gone_is_taken_over() {
        let directory = std::env::temp_dir().join(format!("sifu-claim-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let Claiming::Mine(claim) = Claim::take(&directory, "k").unwrap() else { panic!("nobody has it") };
        assert!(matches!(Claim::take(&directory, "k").unwrap(), Claiming::Held));
        drop(claim);
        // A process number that no machine gives out, and a start that is not ours.
        let host = gethostname().unwrap_or_default().to_string_lossy().into_owned();
        for mark in
            [format!("{host} {} 2000000000 5", boot_id()), format!("{host} {} {} 1", boot_id(), std::process::id())]
        {
            fs::write(directory.join("k.claim"), mark).unwrap();
            assert!(matches!(Claim::take(&directory, "k").unwrap(), Claiming::Held));
            assert!(matches!(Claim::take(&directory, "k").unwrap(), Claiming::Mine(_)));
        }
        // Another machine's is young.
        fs::write(directory.join("k.claim"), "elsewhere 1 2 3").unwrap();
        assert!(matches!(Claim::take(&directory, "k").unwrap(), Claiming::Held));
        assert!(matches!(Claim::take(&directory, "k").unwrap(), Claiming::Held));
        let old = std::time::SystemTime::now() - MAX_SILENCE * 2;
        OpenOptions::new().write(true).open(directory.join("k.claim")).unwrap().set_modified(old).unwrap();
        assert!(matches!(Claim::take(&directory, "k").unwrap(), Claiming::Held));
        assert!(matches!(Claim::take(&directory, "k").unwrap(), Claiming::Mine(_)));
        fs::remove_dir_all(&directory).unwrap();
    }
}
