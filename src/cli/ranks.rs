//! How ranks of a job step find each other: what this process knows of itself, and whom it meets.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::unpack;
use crate::conf;
use crate::env_names::{LOCAL_RANK_COUNTS, RANK_COUNTS};
use crate::image::Image;
use crate::launch::environment::Pair;
use crate::launch::ranks::{self, Arrival, JobStep, Surroundings};
use crate::launch::request::{LaunchRequest, Sharing};
use crate::launch::start::{self, Early, EarlyGroup};
use nix::sys::stat::{FileStat, fstat, stat};
use starter::plan::LaunchPlan;

/// Who was met before there was a plan.
pub enum Met {
    /// Ranks that differ from this one in their number alone; and this one's plan.
    Group { group: EarlyGroup, plan: Box<LaunchPlan> },
    /// Nobody. Others may come to the socket.
    Nobody(Option<UnixListener>),
}

/// Looks for ranks of this job step whose container this process can join without a plan of its own.
pub fn meet_early(request: &LaunchRequest) -> Met {
    let variables: Vec<Pair> = std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect();
    let Some(name) = early_name(request, &variables) else { return Met::Nobody(None) };
    match start::meet_early(&name) {
        Early::Group(group) => match ranks::plan_of_first(&group.plan, &variables) {
            Some(plan) => Met::Group { group, plan: Box::new(plan) },
            None => Met::Nobody(None),
        },
        Early::First(listener) => Met::Nobody(Some(listener)),
        Early::Alone => Met::Nobody(None),
    }
}

fn early_name(request: &LaunchRequest, variables: &[Pair]) -> Option<Vec<u8>> {
    if request.sharing == Sharing::Never {
        return None;
    }
    let step = step(request, variables)?;
    let identity = |path: &Path| stat(path).ok().map(|file| identity(&file));
    // What is made in a directory leaves it the same.
    let directory = |path: &str| std::fs::metadata(path).ok().map(|file| [file.dev(), file.ino()]);
    let arrival = Arrival {
        step,
        arguments: std::env::args_os().map(OsStringExt::into_vec).collect(),
        variables: variables.to_vec(),
        ids: ids()?,
        capabilities: starter::sys::effective_capabilities().ok()?,
        path: std::env::current_dir().ok()?.as_os_str().as_bytes().to_vec(),
        files: [
            Some(identity(Path::new("/proc/self/exe"))?),
            Some(identity(Path::new(&request.image))?),
            identity(&conf::load::path(None)?),
        ],
        directories: [directory("/")?, directory(".")?],
        namespaces: [namespace("user")?, namespace("mnt")?, namespace("pid")?, namespace("cgroup")?],
    };
    ranks::early_name(request, &arrival)
}

/// Users, then groups.
fn ids() -> Option<Vec<u32>> {
    use nix::unistd::{getegid, geteuid, getgid, getgroups, getuid};
    let own = [geteuid().as_raw(), getuid().as_raw(), getegid().as_raw(), getgid().as_raw()];
    Some(own.into_iter().chain(getgroups().ok()?.into_iter().map(nix::unistd::Gid::as_raw)).collect())
}

/// Device, inode, size, and time of the last change.
fn identity(file: &FileStat) -> [u64; 5] {
    let [size, seconds, nanoseconds] = [file.st_size, file.st_ctime, file.st_ctime_nsec].map(i64::cast_unsigned);
    [file.st_dev, file.st_ino, size, seconds, nanoseconds]
}

fn namespace(name: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/self/ns/{name}")).map(|file| file.ino()).ok()
}

/// How many ranks this node has at most, where that is said.
pub fn announced() -> Option<u32> {
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    LOCAL_RANK_COUNTS.iter().chain(&RANK_COUNTS).find_map(number)
}

fn step(request: &LaunchRequest, variables: &[Pair]) -> Option<JobStep> {
    let step = ranks::job_step(variables, parent);
    match request.sharing {
        Sharing::Always => step.or_else(|| Some(ranks::siblings(parent()))),
        Sharing::WithinJobStep | Sharing::Never => step,
    }
}

/// The name under which other ranks of this job step find the container, if it is to be shared.
pub fn share_name(request: &LaunchRequest, variables: &[Pair], plan: &LaunchPlan, image: &Image) -> Option<Vec<u8>> {
    let step = step(request, variables)?;
    let surroundings = Surroundings {
        uid: nix::unistd::geteuid().as_raw(),
        image: identity(&fstat(image.fd()).ok()?),
        namespaces: [namespace("mnt")?, namespace("pid")?],
    };
    ranks::share_name(request, Some(&step), plan, &surroundings)
}

/// The process that started this one, and when it was started itself, in ticks since the machine was.
fn parent() -> (u32, u64) {
    let id = std::os::unix::process::parent_id();
    (id, unpack::start_of(id).unwrap_or(0))
}
