//! What a start leaves behind: no process, no mount, no file, however it ended.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::need::{BUSYBOX, FUSE, SIFU, USERNS, lacks};
use crate::support::{Scratch, busybox_image, parent_of, processes_of, sifu_path, wait};

/// How many starts at a time.
const LANES: u32 = 8;
const STARTS: u32 = 1000;
/// Every so many starts one is killed instead of left alone.
const KILLED: u32 = 3;

/// A sifu of this test's own, so that its processes and files can be told from those of tests that run meanwhile.
struct OwnSifu {
    scratch: Scratch,
}

impl OwnSifu {
    fn new() -> Self {
        let scratch = Scratch::new();
        for directory in ["bin", "home", "tmp"] {
            fs::create_dir(scratch.path().join(directory)).expect("a directory");
        }
        for program in ["sifu", "starter"] {
            let to = scratch.path().join("bin").join(program);
            fs::copy(sifu_path().with_file_name(program), to).expect("a copy of the program");
        }
        Self { scratch }
    }

    fn bin(&self) -> PathBuf {
        self.scratch.path().join("bin")
    }

    fn exec(&self, command: &[&str]) -> Command {
        let mut sifu = Command::new(self.bin().join("sifu"));
        sifu.arg("exec").arg(busybox_image()).args(command).env_clear();
        sifu.env("PATH", "/usr/bin:/bin").env("LANG", "C");
        sifu.env("HOME", self.scratch.path().join("home")).env("TMPDIR", self.scratch.path().join("tmp"));
        sifu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sifu
    }

    /// Processes of this sifu: its servers and starters; a command that runs has another command line.
    fn processes(&self) -> Vec<(i32, String)> {
        processes_of(&[self.bin().join("sifu"), self.bin().join("starter")])
    }
}

/// Lines of this namespace's mount table that a FUSE server stands behind.
fn fuse_mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    table.lines().filter(|line| line.contains(" - fuse")).map(str::to_owned).collect()
}

/// Everything below `directory`.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// Names that sifu might leave where everybody can write.
fn public_files() -> Vec<OsString> {
    let mut found: Vec<OsString> = Vec::new();
    let runtime = format!("/run/user/{}", nix::unistd::geteuid());
    for directory in ["/tmp", "/var/tmp", "/dev/shm", &runtime] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path().into_os_string()).filter(|path| {
            let path = path.to_string_lossy();
            // Those of the tests themselves come and go.
            path.contains("sifu") && !path.contains("sifu-test-") && !path.contains("sifu-stage-")
        }));
    }
    found.sort();
    found
}

/// Waits until no process is left, or says which are.
#[track_caller]
fn assert_all_gone(sifu: &OwnSifu) {
    let end = Instant::now() + Duration::from_secs(10);
    while !sifu.processes().is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(sifu.processes(), [], "processes are left");
}

/// Runs `starts` starts, `LANES` at a time; `one` gets the number of its start.
fn in_lanes(starts: u32, one: impl Fn(u32) + Sync) {
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= starts {
                        break;
                    }
                    one(number);
                }
            });
        }
    });
}

/// A number that looks random and is the same in every run.
fn scramble(number: u32) -> u32 {
    let mut value = number.wrapping_mul(0x9E37_79B9) ^ 0x5151_F00D;
    value ^= value >> 15;
    value = value.wrapping_mul(0x85EB_CA6B);
    value ^ (value >> 13)
}

#[test]
fn a_thousand_starts_and_kills_leave_no_process_no_mount_and_no_file() {
    if lacks(&[SIFU, USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let sifu = OwnSifu::new();
    busybox_image();
    let (mounts, public) = (fuse_mounts(), public_files());
    in_lanes(STARTS, |number| {
        if number % KILLED != 0 {
            let status = sifu.exec(&["true"]).status().expect("sifu can be started");
            assert!(status.success(), "start {number}: {status:?}");
            return;
        }
        let mut child = sifu.exec(&["sleep", "60"]).spawn().expect("sifu can be started");
        let random = scramble(number);
        // From before the first system call of the start to well after its last.
        std::thread::sleep(Duration::from_micros(u64::from(random % 12_000)));
        if random & (1 << 20) != 0 {
            // The server first. Other lanes' servers have commands that should succeed.
            let own = |pid: i32| parent_of(pid) == i32::try_from(child.id()).ok();
            if let Some((pid, _)) = sifu.processes().into_iter().find(|(pid, _)| own(*pid)) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = child.kill();
        assert!(wait(&mut child, Duration::from_secs(10)).is_some(), "start {number} can't be killed");
    });
    assert_all_gone(&sifu);
    assert_eq!(fuse_mounts(), mounts, "mounts are left");
    assert_eq!(public_files(), public, "files are left where everybody can write");
    for directory in ["home", "tmp"] {
        assert_eq!(files_below(&sifu.scratch.path().join(directory)), [] as [PathBuf; 0], "files are left");
    }
}

#[test]
fn the_server_of_a_killed_command_leaves_by_itself() {
    if lacks(&[SIFU, USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let sifu = OwnSifu::new();
    let mut child = sifu.exec(&["sleep", "60"]).spawn().expect("sifu can be started");
    let end = Instant::now() + Duration::from_secs(10);
    let runs = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep");
    while !runs(child.id()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(runs(child.id()), "the command took the place of sifu");
    assert!(!sifu.processes().is_empty(), "a server serves it");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    assert_all_gone(&sifu);
}

#[test]
fn a_process_that_outlives_the_command_keeps_its_files() {
    if lacks(&[SIFU, USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let sifu = OwnSifu::new();
    let script = "(sleep 1; cat /etc/group >$OUT) & exit 0";
    let out = sifu.scratch.path().join("out");
    let bind = format!("{0}:{0}", sifu.scratch.path().display());
    let mut command = Command::new(sifu.bin().join("sifu"));
    command.args(["exec", "--bind", &bind]).arg(busybox_image()).args(["sh", "-c", script]).env("OUT", &out);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("sifu can be started");
    assert!(status.success());
    std::thread::sleep(Duration::from_millis(1500));
    assert!(fs::read_to_string(&out).expect("what was written").starts_with("root:"));
    assert_all_gone(&sifu);
}
