//! How many processors this process may use: as many threads compress.
//!
//! ```text
//! affinity mask (taskset, cpuset, Slurm's binding)  ─┐
//! cpu.max of the control group and of those above    ├─ the smallest of them;  --jobs N: N, within the first two
//! SLURM_CPUS_PER_TASK (an allocation without binding) ─┘
//! ```
//!
//! A group's share is a rate: half a processor more is worth a thread more.

use crate::env_names::SLURM_CPUS_PER_TASK;
use crate::host::facts::Mount;
use crate::host::mountinfo;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What limits this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessorFacts {
    /// Processors that the affinity mask allows.
    pub affinity: NonZeroUsize,
    /// What the process's control group and each above it may use.
    pub quotas: Vec<Quota>,
    /// The value of `SLURM_CPUS_PER_TASK`.
    pub slurm_cpus_per_task: Option<String>,
}

/// Processor time in each period, both in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub quota_us: u64,
    pub period_us: u64,
}

impl Quota {
    /// Processors that are busy when the quota is used up: at least one.
    fn processors(self) -> usize {
        usize::try_from(self.quota_us.div_ceil(self.period_us.max(1))).unwrap_or(usize::MAX).max(1)
    }
}

/// How many threads may work: what was `asked` for, within what the kernel grants; without that, what the batch system
/// grants too.
pub fn usable(facts: &ProcessorFacts, asked: Option<NonZeroUsize>) -> NonZeroUsize {
    let slurm = facts.slurm_cpus_per_task.as_ref().and_then(|text| text.trim().parse::<NonZeroUsize>().ok());
    let granted = facts.quotas.iter().map(|quota| quota.processors()).min();
    let granted = granted.and_then(NonZeroUsize::new).map_or(facts.affinity, |quota| quota.min(facts.affinity));
    asked.or(slurm).map_or(granted, |number| number.min(granted))
}

/// Asks the kernel and the environment.
pub fn observe() -> ProcessorFacts {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let own_groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let groups = group_directories(&own_groups, &mountinfo::observe().unwrap_or_default());
    ProcessorFacts {
        affinity: affinity(),
        quotas: groups.iter().filter_map(|group| group.quota(read)).collect(),
        slurm_cpus_per_task: std::env::var(SLURM_CPUS_PER_TASK).ok(),
    }
}

fn affinity() -> NonZeroUsize {
    let count = |set: CpuSet| (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).count();
    let counted = sched_getaffinity(Pid::from_raw(0)).ok().map(count).and_then(NonZeroUsize::new);
    // Machines with more processors than the mask of the C library has bits.
    counted.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
}

/// A control group that limits processor time.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Group {
    Unified(PathBuf),
    /// Of the controller `cpu` alone, before control groups were unified.
    Legacy(PathBuf),
}

impl Group {
    fn quota(&self, read: impl Fn(&Path) -> Option<String>) -> Option<Quota> {
        match self {
            Self::Unified(directory) => {
                let text = read(&directory.join("cpu.max"))?;
                let mut words = text.split_whitespace();
                // `max 100000` is no limit.
                let quota_us = words.next()?.parse().ok()?;
                Some(Quota { quota_us, period_us: words.next()?.parse().ok()? })
            }
            Self::Legacy(directory) => {
                // -1 is no limit, and no number without a sign.
                let quota_us = read(&directory.join("cpu.cfs_quota_us"))?.trim().parse().ok()?;
                Some(Quota { quota_us, period_us: read(&directory.join("cpu.cfs_period_us"))?.trim().parse().ok()? })
            }
        }
    }
}

/// The directories of the groups that limit a process: of its own and of all above, as far as the mounts show them.
/// `own` is `/proc/self/cgroup`: lines of `number:controllers:path`.
fn group_directories(own: &str, mounts: &[Mount]) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|name| name == "cpu") {
            continue;
        }
        let is_its_mount = |mount: &&Mount| match unified {
            true => mount.filesystem == b"cgroup2",
            false => mount.filesystem == b"cgroup" && has_option(&mount.filesystem_options, b"cpu"),
        };
        let Some(mount) = mounts.iter().find(is_its_mount) else { continue };
        // In a container the mount can begin at the process's group, and the path outside of it.
        let root = Path::new(OsStr::from_bytes(&mount.root));
        let Ok(below) = Path::new(path).strip_prefix(root) else { continue };
        if below.components().any(|component| component == std::path::Component::ParentDir) {
            continue;
        }
        for directory in mount.mount_point.as_path().join(below).ancestors() {
            if !directory.starts_with(mount.mount_point.as_path()) {
                break;
            }
            let directory = directory.to_owned();
            groups.push(if unified { Group::Unified(directory) } else { Group::Legacy(directory) });
        }
    }
    groups
}

fn has_option(options: &[u8], wanted: &[u8]) -> bool {
    options.split(|&byte| byte == b',').any(|option| option == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(affinity: usize, quotas: &[(u64, u64)], slurm: Option<&str>) -> ProcessorFacts {
        ProcessorFacts {
            affinity: NonZeroUsize::new(affinity).unwrap(),
            quotas: quotas.iter().map(|&(quota_us, period_us)| Quota { quota_us, period_us }).collect(),
            slurm_cpus_per_task: slurm.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(facts: &ProcessorFacts, asked: usize, expected: usize) {
        assert_eq!(usable(facts, NonZeroUsize::new(asked)).get(), expected);
    }

    #[test]
    fn the_narrowest_limit_counts() {
        check(&facts(64, &[], None), 0, 64);
        check(&facts(64, &[(800_000, 100_000), (200_000, 100_000)], None), 0, 2);
        check(&facts(64, &[(800_000, 100_000)], Some("4")), 0, 4);
        check(&facts(2, &[(800_000, 100_000)], Some("4")), 0, 2);
    }

    #[test]
    fn a_part_of_a_processor_is_worth_a_thread() {
        check(&facts(64, &[(150_000, 100_000)], None), 0, 2);
        check(&facts(64, &[(1000, 100_000)], None), 0, 1);
        check(&facts(64, &[(0, 0)], None), 0, 1);
    }

    #[test]
    fn what_was_asked_for_is_above_the_batch_system_and_below_the_kernel() {
        check(&facts(64, &[], Some("1")), 8, 8);
        check(&facts(64, &[(400_000, 100_000)], Some("1")), 8, 4);
        check(&facts(4, &[], None), 100, 4);
    }

    #[test]
    fn what_is_no_number_of_processors_limits_nothing() {
        for text in ["", "0", "-1", "many"] {
            check(&facts(3, &[], Some(text)), 0, 3);
        }
    }

    fn directories(own: &str, mounts: &str) -> Vec<Group> {
        group_directories(own, &mountinfo::parse(mounts.as_bytes()))
    }

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_group_is_limited_by_those_above_it() {
        let unified = |path: &str| Group::Unified(path.into());
        let expected = ["/sys/fs/cgroup/slurm/job_7/step_0", "/sys/fs/cgroup/slurm/job_7", "/sys/fs/cgroup/slurm"];
        let mut expected: Vec<Group> = expected.into_iter().map(unified).collect();
        expected.push(unified("/sys/fs/cgroup"));
        assert_eq!(directories("0::/slurm/job_7/step_0\n", UNIFIED), expected);
    }

    #[test]
    fn a_container_that_sees_its_own_group_alone_is_limited_by_that() {
        let mounts = "30 23 0:26 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(directories("0::/docker/ab\n", mounts), [Group::Unified("/sys/fs/cgroup".into())]);
        assert_eq!(directories("0::/elsewhere\n", mounts), []);
        assert_eq!(directories("0::/../outside\n", UNIFIED), []);
    }

    #[test]
    fn legacy_groups_are_those_of_the_cpu_controller() {
        let mounts = "31 23 0:27 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n\
                      32 23 0:28 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let own = "5:cpuset:/x\n4:cpu,cpuacct:/job\n1:name=systemd:/y\n";
        let legacy = |path: &str| Group::Legacy(path.into());
        assert_eq!(directories(own, mounts), [legacy("/cg/cpu,cpuacct/job"), legacy("/cg/cpu,cpuacct")]);
    }

    #[test]
    fn quotas_are_read_in_both_forms_and_no_limit_is_none() {
        let files = |path: &Path| {
            let text = match path.to_str()? {
                "/a/cpu.max" => "150000 100000\n",
                "/b/cpu.max" => "max 100000\n",
                "/c/cpu.cfs_quota_us" => "50000\n",
                "/d/cpu.cfs_quota_us" => "-1\n",
                "/c/cpu.cfs_period_us" | "/d/cpu.cfs_period_us" => "100000\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let quota = |group: Group| group.quota(files).map(|quota| (quota.quota_us, quota.period_us));
        assert_eq!(quota(Group::Unified("/a".into())), Some((150_000, 100_000)));
        assert_eq!(quota(Group::Unified("/b".into())), None);
        assert_eq!(quota(Group::Unified("/none".into())), None);
        assert_eq!(quota(Group::Legacy("/c".into())), Some((50_000, 100_000)));
        assert_eq!(quota(Group::Legacy("/d".into())), None);
    }
}
