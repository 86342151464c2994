//! The rung below serving an image: its root is unpacked to a temporary directory for one start.
//!
//! ```text
//!   TMPDIR/sifu-unpacked-BOOT-PIDNS-PID-START-XXXXXX/root     0700 on the way, so that modes of the image matter to nobody
//! ```
//!
//! The name says whose it is: the boot, the pid namespace, the process (which becomes the command) and when that was
//! started. A process that is left behind removes the tree when that process has ended. Where it was killed, the next
//! start that unpacks does, as it finds the owner gone.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::facts::{Attempt, FuseDevice};
use crate::host::switches;
use crate::image::Image;
use crate::image::extract::{self, Survey};
use crate::launch::diagnosis;
use crate::launch::mount_method::fuse_errno;
use crate::launch::request::LaunchRequest;
use crate::report::{self, Failure, Hint, cause, failure};

const PREFIX: &str = "sifu-unpacked-";

/// An unpacked image, removed when this is dropped.
#[derive(Debug)]
pub struct Unpacked {
    place: Option<PathBuf>,
}

impl Unpacked {
    /// The root file system.
    pub fn tree(&self) -> PathBuf {
        self.place.clone().unwrap_or_default().join("root")
    }

    /// Gives the directory to whoever will remove it.
    pub fn release(mut self) -> PathBuf {
        self.place.take().unwrap_or_default()
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            remove(&place);
        }
    }
}

/// Removes a directory of ours. What can't be removed is left to the next start.
fn remove(place: &Path) {
    if let (Some(base), Some(name)) = (place.parent(), place.file_name())
        && let Ok(base) = fs::File::open(base)
    {
        let _ = extract::remove(base.as_fd(), name);
    }
}

/// Where the image would be unpacked, for a plan that is only printed.
pub fn place(request: &LaunchRequest) -> Unpacked {
    // Not there, so nothing is removed.
    Unpacked { place: Some(temporary_directory(request).join(format!("{PREFIX}XXXXXX"))) }
}

/// Unpacks the image's root into a new temporary directory, after telling its size. `instead` says why it is not served.
pub fn unpack(request: &LaunchRequest, image: &Image, instead: Option<FuseDevice>) -> Result<Unpacked, Failure> {
    let base = temporary_directory(request);
    let reader = image.partition().ok_or_else(|| Failure::new("the image has no partition to unpack"))?;
    let survey = extract::survey(reader).map_err(|error| failure(&error))?;
    announce(&survey, instead, &base);
    let elsewhere = "--tmpdir names another directory for temporary files.";
    let in_base = |error: std::io::Error| {
        Failure::new(format!("cannot make a directory in {}: {}", base.display(), cause(&error))).hint(elsewhere)
    };
    let open = |path: &Path| fs::File::open(path).map(OwnedFd::from);
    let owner = Owner::this();
    remove_abandoned(&base, &owner);
    let space = open(&base).map_err(in_base)?;
    extract::check_space(&survey, space.as_fd()).map_err(|error| failure(&error).hint(elsewhere))?;
    let template = base.join(format!("{PREFIX}{}-XXXXXX", owner.text()));
    let place = nix::unistd::mkdtemp(&template).map_err(|errno| in_base(errno.into()))?;
    let unpacked = Unpacked { place: Some(place) };
    let tree = unpacked.tree();
    let target = fs::create_dir(&tree).and_then(|()| open(&tree)).map_err(in_base)?;
    extract::extract(reader, target).map_err(|error| failure(&error))?;
    wait_for_one_thread();
    Ok(unpacked)
}

fn announce(survey: &Survey, instead: Option<FuseDevice>, base: &Path) {
    let mib = survey.size_bytes.div_ceil(1 << 20);
    let what = format!("unpacking the image to {}: {mib} MiB, {} files", base.display(), survey.inodes);
    match instead {
        None => report::info(what),
        Some(fuse) => {
            let why = diagnosis::explain(Attempt::OpenFuse, fuse_errno(fuse), &switches::observe(), fuse);
            report::warning(format_args!("{why}; {what}"));
            why.hints().iter().for_each(report::info);
        }
    }
}

fn temporary_directory(request: &LaunchRequest) -> PathBuf {
    let said = request.tmpdir.clone().or_else(|| std::env::var_os("TMPDIR"));
    said.filter(|path| !path.is_empty()).map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

/// Threads that have been joined may still be on their way out in the kernel, which gives a user namespace to a
/// process with one thread only.
fn wait_for_one_thread() {
    const STEP: Duration = Duration::from_micros(200);
    const STEPS: u32 = 5000;
    for _ in 0..STEPS {
        if fs::read_dir("/proc/self/task").map_or(1, Iterator::count) <= 1 {
            return;
        }
        std::thread::sleep(STEP);
    }
}

// ---- whose directory it is ----

/// A process, told apart from every other of any machine that shares the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    /// The machine's boot: a part of its random id.
    boot: String,
    /// Inode of the pid namespace.
    namespace: u64,
    pid: u32,
    /// When it was started, in ticks since the boot.
    started: u64,
}

impl Owner {
    fn this() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let pid = std::process::id();
        Self {
            boot: boot.chars().filter(char::is_ascii_alphanumeric).take(12).collect(),
            namespace: fs::metadata("/proc/self/ns/pid").map_or(0, |file| file.ino()),
            pid,
            started: start_of(pid).unwrap_or(0),
        }
    }

    fn text(&self) -> String {
        format!("{}-{}-{}-{}", self.boot, self.namespace, self.pid, self.started)
    }

    fn from_name(name: &OsStr) -> Option<Self> {
        let mut parts = name.to_str()?.strip_prefix(PREFIX)?.split('-');
        let boot = parts.next()?.to_owned();
        let owner = Self {
            boot,
            namespace: parts.next()?.parse().ok()?,
            pid: parts.next()?.parse().ok()?,
            started: parts.next()?.parse().ok()?,
        };
        (parts.count() == 1).then_some(owner)
    }

    /// Whether the owner has ended, as far as a process beside `observer` can know: what was owned before this boot of
    /// this machine has no owner either, but might be another machine's.
    fn has_ended(&self, observer: &Self) -> bool {
        self.boot == observer.boot && self.namespace == observer.namespace && start_of(self.pid) != Some(self.started)
    }
}

/// When a process was started, in ticks since the boot; `None` when there is none of that id.
pub fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, blanks and parentheses included. The start is field 22.
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

/// Removes what this user's processes left in `base` when they were killed together with those that clean up.
fn remove_abandoned(base: &Path, observer: &Owner) {
    let me = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let abandoned = Owner::from_name(&entry.file_name()).is_some_and(|owner| owner.has_ended(observer));
        if abandoned && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == me) {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        let owner = Owner { boot: "0b7c".into(), namespace: 4_026_531_836, pid: 12, started: 99 };
        let name = format!("{PREFIX}{}-a1B2c3", owner.text());
        assert_eq!(Owner::from_name(OsStr::new(&name)), Some(owner));
        for other in ["sifu-unpacked-a1B2c3", "sifu-unpacked-a-1-2-3", "sifu-unpacked-a-1-2-x-y", "other-a-1-2-3-y"] {
            assert_eq!(Owner::from_name(OsStr::new(other)), None, "{other}");
        }
    }

    #[test]
    fn only_what_surely_has_no_owner_is_abandoned() {
        let this = Owner::this();
        assert!(!this.has_ended(&this));
        assert!(Owner { started: this.started + 1, ..this.clone() }.has_ended(&this));
        assert!(!Owner { boot: "another".into(), started: 0, ..this.clone() }.has_ended(&this));
        assert!(!Owner { namespace: 1, started: 0, ..this.clone() }.has_ended(&this));
    }
}
