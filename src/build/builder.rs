//! Who builds: the caller, or root of a user namespace of the build's own.
//!
//! ```text
//! outside                                       inside: the same process, from the first directory on
//! ada, who has 100000:65536   ── unshare ──►    0 is ada, 1 … 65536 are 100000 … 165535
//! ```
//!
//! Where the caller has a range of subordinate ids, the file systems of a build are made by root of that range: owners are the
//! kernel's own, and what belongs to subordinate ids can be packed and removed. Where there is none, or where the directory
//! can't hold files of such ids (many network file systems can't), root is emulated in the containers of the build. The image
//! is the same.

use super::BuildError;
use crate::host::facts::SubordinateIds;
use crate::host::{subordinate_ids, user};
use crate::image::extract;
use crate::tree::Owners;
use nix::unistd::{Gid, Uid, chown, geteuid};
use starter::paths::HostPath;
use starter::perform;
use starter::plan::{IdRange, Identity};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the command line says about root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootOptions {
    /// `--fakeroot`: a sandbox is made by root of the range even where nothing runs in it.
    pub asked: bool,
    /// `--ignore-subuid`: no range is mapped, even if there is one.
    pub ignores_range: bool,
    /// `--ignore-fakeroot-command`: without a range, what root may do is not emulated.
    pub no_emulation: bool,
    /// Everything in the image belongs to root.
    pub all_root: bool,
}

/// Who a process of a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root of this machine.
    Root,
    /// Root of a user namespace: what needs the machine's root (device nodes, file capabilities) is emulated.
    RootOfNamespace,
    /// An ordinary user, for whom containers emulate root.
    User,
}

impl Who {
    /// Who this process is.
    pub fn this_process() -> Self {
        // A kernel without user namespaces has no such file.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self::of(geteuid().is_root(), &map)
    }

    fn of(is_root: bool, uid_map: &str) -> Self {
        const EVERYBODY: [&str; 3] = ["0", "0", "4294967295"];
        match is_root {
            false => Self::User,
            true if uid_map.is_empty() || uid_map.split_ascii_whitespace().eq(EVERYBODY) => Self::Root,
            true => Self::RootOfNamespace,
        }
    }
}

/// Who builds, and what became of that so far.
#[derive(Debug)]
pub struct Builder {
    options: RootOptions,
    is_decided: bool,
}

impl Builder {
    pub fn new(options: RootOptions) -> Self {
        Self { options, is_decided: false }
    }

    pub fn options(&self) -> RootOptions {
        self.options
    }

    /// Whose the files of a directory are in its image: an ordinary user's own number means nothing on the next machine.
    pub fn owners(&self) -> Owners {
        if geteuid().is_root() && !self.options.all_root { Owners::AsFound } else { Owners::AllRoot }
    }

    /// Becomes root of the caller's range, if there is one and files of its ids can lie in each of `places`. Decides once.
    /// This process must have one thread.
    pub fn become_root(&mut self, places: &[&Path]) -> Result<(), BuildError> {
        if std::mem::replace(&mut self.is_decided, true) {
            return Ok(());
        }
        match self.range() {
            Some(range) if places.iter().all(|place| range.has_place_in(place)) => range.enter(),
            _ => Ok(()),
        }
    }

    /// Decides that the caller builds as the caller.
    pub fn stay(&mut self) {
        self.is_decided = true;
    }

    /// Becomes root of the caller's range if one of these is its id, and files therefore are out of the caller's reach.
    /// Says whether it did.
    pub fn become_owner_of(&mut self, owners: &[u32]) -> Result<bool, BuildError> {
        // Most directories are the caller's alone, and a look at the range may ask a directory service.
        let caller = geteuid().as_raw();
        match owners.iter().any(|&owner| owner != caller).then(|| self.range()).flatten() {
            Some(range) if owners.iter().any(|&id| range.contains(id)) => {
                self.is_decided = true;
                range.enter().map(|()| true)
            }
            _ => Ok(false),
        }
    }

    fn range(&self) -> Option<Range> {
        if self.options.ignores_range { None } else { Range::of_caller() }
    }
}

/// Root and the subordinate ids of an ordinary user.
pub struct Range {
    identity: Identity,
}

/// Systems have users up to `nobody`, 65534: with fewer ids half of them can't be made.
const LEAST_IDS: u64 = 65_534;

impl Range {
    /// The caller's; `None` for root, and where the ids can't be mapped or are too few.
    pub fn of_caller() -> Option<Self> {
        if geteuid().is_root() {
            return None;
        }
        let user = user::observe();
        Self::of(user.uid, user.gid, &subordinate_ids::observe(&user))
    }

    fn of(uid: u32, gid: u32, ids: &SubordinateIds) -> Option<Self> {
        let count =
            |ranges: &[crate::host::facts::IdRange]| ranges.iter().map(|range| u64::from(range.count)).sum::<u64>();
        let are_enough = count(&ids.uid_ranges) >= LEAST_IDS && count(&ids.gid_ranges) >= LEAST_IDS;
        let (newuidmap, newgidmap) = (ids.newuidmap.as_ref()?, ids.newgidmap.as_ref()?);
        (ids.usable() && are_enough).then(|| Self {
            identity: Identity::Range {
                newuidmap: newuidmap.path.clone(),
                newgidmap: newgidmap.path.clone(),
                uids: IdRange::with_root(uid, ids.uid_ranges.iter().map(|range| (range.first, range.count))),
                gids: IdRange::with_root(gid, ids.gid_ranges.iter().map(|range| (range.first, range.count))),
            },
        })
    }

    /// Whether this id of the host is a subordinate one.
    fn contains(&self, uid: u32) -> bool {
        let Identity::Range { uids, .. } = &self.identity else { return false };
        let subordinate = uids.iter().filter(|range| range.inside > 0);
        subordinate.into_iter().any(|range| (range.outside..range.outside + range.count).contains(&uid))
    }

    fn enter(&self) -> Result<(), BuildError> {
        perform::become_somebody(&self.identity).map_err(|error| BuildError::Namespace(Box::new(error)))
    }

    /// Tries whether files in `directory` can be given to ids of the range, in a process of its own.
    fn has_place_in(&self, directory: &Path) -> bool {
        let probe = directory.join(format!(".probe-{}", std::process::id()));
        let can_give_away = || {
            File::options().write(true).create_new(true).open(&probe).ok()?;
            let (uid, gid) = (Uid::from_raw(LEAST_IDS as u32), Gid::from_raw(1));
            let given = chown(&probe, Some(uid), Some(gid)).ok().and_then(|()| probe.symlink_metadata().ok());
            std::fs::remove_file(&probe).ok()?;
            given.filter(|given| (given.uid(), given.gid()) == (uid.as_raw(), gid.as_raw()))
        };
        self.in_child(|| can_give_away().is_some())
    }

    /// Removes `name` in `parent`, whoever of the range owns what is in it.
    pub fn remove(&self, parent: &File, name: &OsStr) -> io::Result<()> {
        match self.in_child(|| extract::remove(parent.as_fd(), name).is_ok()) {
            true => Ok(()),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Whether `work` succeeds, done by root of the range in a process of its own.
    fn in_child(&self, work: impl FnOnce() -> bool) -> bool {
        let child = starter::sys::fork_child(|| {
            // The helpers say what they think of it; whoever asks here has another way.
            if let Ok(null) = File::options().write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stderr(&null);
            }
            u8::from(self.enter().is_err() || !work())
        });
        child.is_ok_and(|child| starter::supervise::wait_for(child).is_ok_and(|status| status == 0))
    }
}

/// Removes the tree `name` in `parent`, as the caller or as root of the caller's range.
pub fn remove(parent: &File, name: &OsStr) -> io::Result<()> {
    match extract::remove(parent.as_fd(), name) {
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(nix::libc::EPERM) =>
        {
            Range::of_caller().map_or(Err(error), |range| range.remove(parent, name))
        }
        removed => removed,
    }
}

/// Whether a directory remembers owners: those of an emulated root, which root of a range would not see.
pub fn remembers_owners(directory: &HostPath) -> bool {
    let remembered = crate::remembered::read(&crate::remembered::of_sandbox(directory.as_path()));
    remembered.is_ok_and(|remembered| remembered.has_owners())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts;

    #[test]
    fn root_is_real_where_every_id_is_mapped_to_itself() {
        assert_eq!(Who::of(true, "         0          0 4294967295\n"), Who::Root);
        assert_eq!(Who::of(true, ""), Who::Root);
        assert_eq!(
            Who::of(true, "         0       1000          1\n         1     100000      65536\n"),
            Who::RootOfNamespace
        );
        assert_eq!(Who::of(false, "         0          0 4294967295\n"), Who::User);
    }

    fn ids(count: u32) -> SubordinateIds {
        let mut ids = facts::laptop().subordinate_ids.expect("ids");
        for ranges in [&mut ids.uid_ranges, &mut ids.gid_ranges] {
            ranges.iter_mut().for_each(|range| range.count = count);
        }
        ids
    }

    #[test]
    fn a_range_is_of_use_if_it_has_everybody_up_to_nobody() {
        assert!(Range::of(1000, 1000, &ids(65_536)).is_some());
        assert!(Range::of(1000, 1000, &ids(65_534)).is_some());
        assert!(Range::of(1000, 1000, &ids(1000)).is_none());
        assert!(Range::of(1000, 1000, &SubordinateIds { newgidmap: None, ..ids(65_536) }).is_none());
    }

    #[test]
    fn the_caller_is_no_subordinate_id() {
        let range = Range::of(1000, 1000, &ids(65_536)).expect("a range");
        assert!(!range.contains(1000) && !range.contains(0) && !range.contains(99_999) && !range.contains(165_536));
        assert!(range.contains(100_000) && range.contains(165_535));
    }
}
