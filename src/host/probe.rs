//! Tries out each step of a start, in child processes that leave nothing behind.
//!
//! ```text
//! this process ──┬─ fork: user namespace, maps, mounts, pid namespace, pivot_root     one record per step on a pipe
//!                ├─ fork: setns into the first one's namespaces
//!                └─ fork: a user namespace for newuidmap and newgidmap to fill
//! ```
//!
//! Everything that a child changes is in namespaces of its own, which end with it.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getgid, getuid, pivot_root};

use super::facts::{Attempt, FuseDevice, Outcome, ProbeResults, SubordinateIds, User};
use super::{observe_fuse, observe_kernel, subordinate_ids, switches, user};

/// How long one probe may take.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of a record on the pipe: the attempt's place in [`Attempt::ALL`], then the errno, 0 for success.
const RECORD_LEN: usize = 5;

/// The record after the last one.
const END: u8 = u8::MAX;

/// Looks at everything and tries everything. Takes some 20 milliseconds.
pub fn observe() -> ProbeResults {
    let user = user::observe();
    let subordinate_ids = subordinate_ids::observe(&user);
    let fuse = observe_fuse(Path::new("/dev/fuse"));
    ProbeResults {
        outcomes: try_all(&user, &subordinate_ids, fuse),
        uid: user.uid,
        user_name: String::from_utf8_lossy(&user.entry.name).into_owned(),
        entry_source: user.entry_source,
        kernel: observe_kernel(),
        switches: switches::observe(),
        fuse,
        subordinate_ids,
        temporary_directories: switches::observe_temporary_directories(),
        control_groups: switches::observe_control_groups(),
        binary_formats: switches::observe_binary_formats(),
    }
}

/// Tries to make a user namespace, and nothing else: some 200 microseconds. For a start that would have to do a lot of
/// work first, such as unpacking an image, before it tries for itself.
pub fn try_user_namespace() -> Outcome {
    let mut outcome = Outcome::NotTried;
    if let Ok(mut child) = Probe::start(enter_user_namespace) {
        child.collect(&mut |_, seen| outcome = seen);
    }
    outcome
}

fn enter_user_namespace(report: &mut Report) {
    report.attempt(Attempt::UnshareUser, || Ok(unshare(CloneFlags::CLONE_NEWUSER)?));
}

fn try_all(user: &User, ids: &SubordinateIds, fuse: FuseDevice) -> Vec<(Attempt, Outcome)> {
    let mut outcomes: Vec<(Attempt, Outcome)> = Attempt::ALL.map(|attempt| (attempt, Outcome::NotTried)).to_vec();
    let mut note = |attempt: Attempt, outcome: Outcome| {
        if let Some(entry) = outcomes.iter_mut().find(|(of, _)| *of == attempt) {
            entry.1 = outcome;
        }
    };
    let device_there = fuse != FuseDevice::Missing;
    let child = Probe::start(move |report| {
        // Where it stopped is in the report.
        let _ = start_a_container(report, device_there);
    });
    if let Ok(mut child) = child {
        let mut entered = false;
        let ended = child.collect(&mut |attempt, outcome| {
            entered |= (attempt, outcome) == (Attempt::UnshareMounts, Outcome::Done);
            note(attempt, outcome);
        });
        let pid = child.pid;
        if ended
            && entered
            && let Ok(mut joiner) = Probe::start(move |report| join(report, pid))
        {
            joiner.collect(&mut note);
        }
    }
    if !ids.uid_ranges.is_empty() && !ids.gid_ranges.is_empty() {
        map_ranges(user, ids, &mut note);
    }
    outcomes
}

/// A child process that reports; killed and reaped when dropped.
struct Probe {
    pid: Pid,
    records: PipeReader,
}

impl Probe {
    fn start(work: impl FnOnce(&mut Report)) -> io::Result<Self> {
        let (records, writer) = io::pipe()?;
        let parent = nix::unistd::getpid();
        let pid = starter::sys::fork_child(move || {
            // The child ends with this process, however that ends.
            let tied = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_ok();
            if tied && nix::unistd::getppid() == parent {
                let mut report = Report { pipe: writer };
                work(&mut report);
                report.write(END, 0);
                // Its namespaces have to outlive its work: others join them, or fill its maps.
                std::thread::sleep(TIME_LIMIT * 4);
            }
            0
        })?;
        Ok(Self { pid: Pid::from_raw(pid), records })
    }

    /// Takes down records until the last one; false when it did not come in time.
    fn collect(&mut self, note: &mut impl FnMut(Attempt, Outcome)) -> bool {
        let deadline = Instant::now() + TIME_LIMIT;
        let mut record = [0u8; RECORD_LEN];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let ready = poll(&mut [PollFd::new(self.records.as_fd(), PollFlags::POLLIN)], timeout);
            // A record is shorter than what a pipe writes at once, so it comes whole.
            if !matches!(ready, Ok(1..)) || self.records.read_exact(&mut record).is_err() {
                return false;
            }
            let [place, a, b, c, d] = record;
            let errno = i32::from_le_bytes([a, b, c, d]);
            match Attempt::ALL.get(usize::from(place)) {
                Some(attempt) if errno == 0 => note(*attempt, Outcome::Done),
                Some(attempt) => note(*attempt, Outcome::Failed { errno }),
                None => return true,
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// The child's end of the pipe.
struct Report {
    pipe: PipeWriter,
}

impl Report {
    fn write(&mut self, place: u8, errno: i32) {
        let [a, b, c, d] = errno.to_le_bytes();
        // When nobody reads any more there is nobody to tell.
        let _ = self.pipe.write_all(&[place, a, b, c, d]);
    }

    /// Does one step and reports how it went; `None` when it failed.
    fn attempt<T>(&mut self, attempt: Attempt, step: impl FnOnce() -> io::Result<T>) -> Option<T> {
        let result = step();
        let errno = match &result {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(Errno::EIO as i32),
        };
        let place = Attempt::ALL.iter().position(|of| *of == attempt).and_then(|place| u8::try_from(place).ok());
        self.write(place.unwrap_or(END - 1), errno);
        result.ok()
    }
}

/// Does what a start does, in its order. A step whose failure makes the next ones senseless ends the probe.
fn start_a_container(report: &mut Report, device_there: bool) -> Option<()> {
    let (uid, gid) = (getuid(), getgid());
    report.attempt(Attempt::UnshareUser, || Ok(unshare(CloneFlags::CLONE_NEWUSER)?))?;
    report.attempt(Attempt::DenySetgroups, || fs::write("/proc/self/setgroups", "deny"))?;
    report.attempt(Attempt::WriteUidMap, || fs::write("/proc/self/uid_map", format!("{uid} {uid} 1\n")))?;
    report.attempt(Attempt::WriteGidMap, || fs::write("/proc/self/gid_map", format!("{gid} {gid} 1\n")))?;
    // Only a device that was opened in the namespace can be mounted there.
    let device = device_there
        .then(|| report.attempt(Attempt::OpenFuse, || fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")));

    report.attempt(Attempt::UnshareMounts, || Ok(unshare(CloneFlags::CLONE_NEWNS)?))?;
    let none = None::<&str>;
    report.attempt(Attempt::MakeSlave, || Ok(mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?));
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let place = ["/tmp", "/var/tmp", "/run", "/mnt", "/etc"].into_iter().find(|place| Path::new(place).is_dir());
    report.attempt(Attempt::MountTmpfs, || {
        let place = place.ok_or(Errno::ENOENT)?;
        mount(Some("tmpfs"), place, Some("tmpfs"), plain, Some("mode=700,size=1m"))?;
        std::env::set_current_dir(place)
    })?;
    for name in ["fuse", "bind", "lower", "upper", "work", "merged", "proc"] {
        fs::create_dir(name).ok()?;
    }
    if let Some(device) = device.flatten() {
        let options = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
        // The kernel mounts before the server has said a word.
        report.attempt(Attempt::MountFuse, || {
            Ok(mount(Some("sifu"), "fuse", Some("fuse"), plain | MsFlags::MS_RDONLY, Some(options.as_str()))?)
        });
    }
    report.attempt(Attempt::Bind, || Ok(mount(Some("/dev"), "bind", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?));
    report.attempt(Attempt::MountOverlay, || {
        let layers = "lowerdir=lower,upperdir=upper,workdir=work";
        let with = format!("{layers},userxattr");
        let overlay = |options: &str| mount(Some("overlay"), "merged", Some("overlay"), plain, Some(options));
        // Kernels that let users mount an overlay before 5.11 (by a patch) do not know the option.
        match overlay(&with) {
            Err(Errno::EINVAL) => Ok(overlay(layers)?),
            result => Ok(result?),
        }
    });
    try_pid_namespace(report);
    for (attempt, flag) in [
        (Attempt::UnshareIpc, CloneFlags::CLONE_NEWIPC),
        (Attempt::UnshareUts, CloneFlags::CLONE_NEWUTS),
        (Attempt::UnshareNet, CloneFlags::CLONE_NEWNET),
    ] {
        report.attempt(attempt, || Ok(unshare(flag)?));
    }
    report.attempt(Attempt::EmulateRoot, starter::sys::try_seccomp_listener);
    report.attempt(Attempt::PivotRoot, || {
        pivot_root(".", ".")?;
        // The old root lies on top of the new one now.
        Ok(umount2(".", MntFlags::MNT_DETACH)?)
    })
}

/// Makes a pid namespace, and in its first process a `proc` for it.
fn try_pid_namespace(report: &mut Report) {
    let pipe = report.pipe.try_clone();
    let first = report.attempt(Attempt::UnsharePid, || {
        let pipe = pipe?;
        unshare(CloneFlags::CLONE_NEWPID)?;
        starter::sys::fork_child(move || {
            let mut report = Report { pipe };
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            report.attempt(Attempt::MountProc, || Ok(mount(Some("proc"), "proc", Some("proc"), flags, None::<&str>)?));
            0
        })
    });
    if let Some(pid) = first {
        let _ = waitpid(Pid::from_raw(pid), None);
    }
}

/// Enters the namespaces of `process`, as a second command in a running container does.
fn join(report: &mut Report, process: Pid) {
    report.attempt(Attempt::JoinNamespaces, || {
        let open = |name: &str| fs::File::open(format!("/proc/{process}/ns/{name}"));
        let (user, mounts) = (open("user")?, open("mnt")?);
        setns(user, CloneFlags::CLONE_NEWUSER)?;
        Ok(setns(mounts, CloneFlags::CLONE_NEWNS)?)
    });
}

/// Lets the host's helpers write the caller's first ranges into the maps of a new namespace.
fn map_ranges(user: &User, ids: &SubordinateIds, note: &mut impl FnMut(Attempt, Outcome)) {
    let Ok(mut child) = Probe::start(enter_user_namespace) else { return };
    let mut namespace = Outcome::NotTried;
    child.collect(&mut |_, outcome| namespace = outcome);
    if namespace != Outcome::Done {
        return;
    }
    for (attempt, helper, own, ranges) in [
        (Attempt::RunNewuidmap, &ids.newuidmap, user.uid, &ids.uid_ranges),
        (Attempt::RunNewgidmap, &ids.newgidmap, user.gid, &ids.gid_ranges),
    ] {
        let (Some(helper), Some(range)) = (helper, ranges.first()) else { continue };
        let words = [child.pid.as_raw().to_string(), "0".to_owned(), own.to_string(), "1".to_owned()];
        let range = ["1".to_owned(), range.first.to_string(), range.count.to_string()];
        note(attempt, run(Command::new(helper.path.as_path()).args(words).args(range)));
    }
}

/// Runs a program that says by its exit code whether it could. A refusal counts as EPERM.
fn run(command: &mut Command) -> Outcome {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = match silent.spawn() {
        Ok(child) => child,
        Err(error) => return Outcome::Failed { errno: error.raw_os_error().unwrap_or(Errno::EIO as i32) },
    };
    let deadline = Instant::now() + TIME_LIMIT;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Ok(Some(status)) if status.success() => return Outcome::Done,
            Ok(Some(_)) => return Outcome::Failed { errno: Errno::EPERM as i32 },
            Err(error) => return Outcome::Failed { errno: error.raw_os_error().unwrap_or(Errno::ECHILD as i32) },
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Outcome::TimedOut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_dies_without_a_word_is_no_success() {
        let mut child = Probe::start(|_| std::process::abort()).unwrap();
        assert!(!child.collect(&mut |attempt, _| panic!("{attempt:?}")));
    }

    #[test]
    fn a_probe_changes_nothing_around_it() {
        let before = (fs::read_link("/proc/self/ns/user").ok(), fs::read_link("/proc/self/ns/mnt").ok());
        let directory = std::env::current_dir().ok();
        let results = observe();
        assert_eq!(before, (fs::read_link("/proc/self/ns/user").ok(), fs::read_link("/proc/self/ns/mnt").ok()));
        assert_eq!(directory, std::env::current_dir().ok());
        assert_ne!(results.outcome(Attempt::UnshareUser), Outcome::NotTried);
    }

    #[test]
    fn a_step_comes_after_those_that_it_needs() {
        let results = observe();
        if results.outcome(Attempt::WriteUidMap) != Outcome::Done {
            assert_eq!(results.outcome(Attempt::UnshareMounts), Outcome::NotTried);
        }
        if results.outcome(Attempt::OpenFuse) != Outcome::Done {
            assert_eq!(results.outcome(Attempt::MountFuse), Outcome::NotTried);
        }
    }
}
