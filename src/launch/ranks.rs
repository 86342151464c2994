//! Which processes are ranks of one job step on this node, and which of them may share one container. Pure.
//!
//! Ranks that share a user namespace can copy from each other's memory, and those that share a mount have one image
//! server and one page cache. Everything that a container is made of has to be the same: the image, the options, the
//! caller's namespaces. What each process has for itself (environment, directory, command, mask) may differ.

use super::environment::Pair;
use super::request::{LaunchRequest, Sharing};
use crate::env_names;
use sha2::{Digest, Sha256};
use starter::plan::{Command, Directory, Identity, LaunchPlan, Step};

/// A job step, as its launcher tells its ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStep {
    /// The same for all ranks of the step on this node, another one for every other step.
    pub id: Vec<u8>,
    /// How many ranks this node has, where that is known.
    pub local_ranks: Option<u32>,
}

/// Recognizes the job step by the variables of Slurm, PMIx (Open MPI, Slurm), and Hydra (MPICH, Intel MPI). `parent` tells
/// the process that started this one: its id and the time it was started.
pub fn job_step(variables: &[Pair], parent: impl FnOnce() -> (u32, u64)) -> Option<JobStep> {
    let value =
        |name: &str| variables.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| value.as_slice());
    let number = |name: &str| std::str::from_utf8(value(name)?).ok()?.parse::<u32>().ok();
    let joined = |kind: &str, parts: &[&[u8]]| {
        let mut id = kind.as_bytes().to_vec();
        for part in parts {
            id.push(0);
            id.extend_from_slice(part);
        }
        id
    };
    let local_ranks = env_names::LOCAL_RANK_COUNTS.iter().find_map(|name| number(name));
    if let (Some(job), Some(step)) = (value(env_names::SLURM_JOB_ID), value(env_names::SLURM_STEP_ID)) {
        let all = number(env_names::SLURM_STEP_NUM_TASKS).filter(|&all| all == 1);
        return Some(JobStep { id: joined("slurm", &[job, step]), local_ranks: local_ranks.or(all) });
    }
    if let Some(namespace) = value(env_names::PMIX_NAMESPACE) {
        // Namespaces have names that other launchers of the node may give too; the server's address is its own.
        let server = env_names::PMIX_SERVERS.iter().find_map(|name| value(name)).unwrap_or_default();
        return Some(JobStep { id: joined("pmix", &[namespace, server]), local_ranks });
    }
    if value(env_names::PMI_RANK).is_some() {
        let id = match value(env_names::PMI_PORT) {
            Some(port) => joined("pmi", &[port]),
            // The proxy of the node starts all its ranks itself.
            None => {
                let (pid, started) = parent();
                joined("hydra", &[format!("{pid}.{started}").as_bytes()])
            }
        };
        return Some(JobStep { id, local_ranks });
    }
    None
}

/// The ranks that `--sharens` means: those that one process starts.
pub fn siblings(parent: (u32, u64)) -> JobStep {
    JobStep { id: format!("parent {}.{}", parent.0, parent.1).into_bytes(), local_ranks: None }
}

/// What else has to be the same: the image file and the namespaces of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    pub uid: u32,
    /// Device, inode, size and time of the last change (seconds, nanoseconds) of the image.
    pub image: [u64; 5],
    /// Inodes of the caller's mount and pid namespaces.
    pub namespaces: [u64; 2],
}

/// The name under which the ranks of `step` find each other; `None` where this container is not to be shared.
pub fn share_name(
    request: &LaunchRequest,
    step: Option<&JobStep>,
    plan: &LaunchPlan,
    surroundings: &Surroundings,
) -> Option<Vec<u8>> {
    let step = match request.sharing {
        Sharing::Never => return None,
        // One rank has nobody to share with.
        Sharing::WithinJobStep => step.filter(|step| step.local_ranks != Some(1))?,
        Sharing::Always => step?,
    };
    // The host's commands end with the process that the container was started for, which may be another rank.
    if !request.host_commands.is_empty() || !can_be_shared(plan) {
        return None;
    }
    let of_all = LaunchPlan {
        environment: Vec::new(),
        directory: Directory { candidates: Vec::new() },
        command: Command::Program { arguments: Vec::new() },
        umask: None,
        ..plan.clone()
    };
    let mut hash = Sha256::new();
    hash.update(step.id.len().to_le_bytes());
    hash.update(&step.id);
    hash.update(surroundings.uid.to_le_bytes());
    for number in surroundings.image.iter().chain(&surroundings.namespaces) {
        hash.update(number.to_le_bytes());
    }
    hash.update(of_all.to_text());
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("sifu-{digest}").into_bytes())
}

/// Whether what the plan makes is all in the two namespaces that can be joined, and nothing of it one rank's own.
fn can_be_shared(plan: &LaunchPlan) -> bool {
    let n = plan.namespaces;
    let other_namespaces = n.pid || n.ipc || n.uts || n.net;
    let own = plan.emulation.is_some() || plan.parent.remove.is_some() || plan.identity == Identity::Privileged;
    // A writable layer of one rank is not to be seen by another, unless it is the image itself.
    let layered =
        plan.steps.iter().any(|step| matches!(step, Step::RootLayer { access: starter::plan::Access::ReadWrite, .. }));
    !other_namespaces && !own && !layered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::request::Verb;
    use starter::plan::{Capabilities, Namespaces, Parent};

    fn pairs(text: &str) -> Vec<Pair> {
        let pair = |word: &str| {
            let (name, value) = word.split_once('=').unwrap();
            (name.as_bytes().to_vec(), value.as_bytes().to_vec())
        };
        text.split_whitespace().map(pair).collect()
    }

    #[test]
    fn steps_are_told_apart_and_ranks_of_one_are_not() {
        let id = |text: &str| job_step(&pairs(text), || (7, 8)).map(|step| step.id);
        let same = |one: &str, two: &str| assert_eq!(id(one).unwrap(), id(two).unwrap(), "{one} {two}");
        let other = |one: &str, two: &str| assert_ne!(id(one), id(two), "{one} {two}");
        same("SLURM_JOB_ID=5 SLURM_STEP_ID=0 SLURM_PROCID=0", "SLURM_JOB_ID=5 SLURM_STEP_ID=0 SLURM_PROCID=1");
        other("SLURM_JOB_ID=5 SLURM_STEP_ID=0", "SLURM_JOB_ID=5 SLURM_STEP_ID=1");
        other("SLURM_JOB_ID=51 SLURM_STEP_ID=0", "SLURM_JOB_ID=5 SLURM_STEP_ID=10");
        same("PMIX_NAMESPACE=a PMIX_SERVER_URI2=x PMIX_RANK=0", "PMIX_NAMESPACE=a PMIX_SERVER_URI2=x PMIX_RANK=1");
        other("PMIX_NAMESPACE=a PMIX_SERVER_URI2=x", "PMIX_NAMESPACE=a PMIX_SERVER_URI2=y");
        same("PMI_RANK=0 PMI_FD=7", "PMI_RANK=1 PMI_FD=8");
        assert_eq!(id("HOME=/ SLURM_JOB_ID=5"), None);
    }

    #[test]
    fn the_number_of_local_ranks_is_read_where_it_is_said() {
        let ranks = |text: &str| job_step(&pairs(text), || (7, 8)).unwrap().local_ranks;
        assert_eq!(ranks("PMIX_NAMESPACE=a OMPI_COMM_WORLD_LOCAL_SIZE=4"), Some(4));
        assert_eq!(ranks("PMI_RANK=0 MPI_LOCALNRANKS=2"), Some(2));
        assert_eq!(ranks("SLURM_JOB_ID=5 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1"), Some(1));
        assert_eq!(ranks("SLURM_JOB_ID=5 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=8"), None);
    }

    fn plan() -> LaunchPlan {
        LaunchPlan {
            identity: Identity::Keep { uid: 1000, gid: 1000 },
            namespaces: Namespaces::default(),
            join: Vec::new(),
            private_mounts: false,
            share: None,
            hostname: None,
            steps: vec![Step::RootServed { connection: 0 }],
            umask: None,
            user: None,
            limits: Vec::new(),
            capabilities: Capabilities { keep: 0 },
            seccomp: Vec::new(),
            emulation: None,
            directory: Directory { candidates: Vec::new() },
            environment: Vec::new(),
            command: Command::Program { arguments: vec![b"a".to_vec()] },
            parent: Parent::default(),
        }
    }

    fn name(sharing: Sharing, local_ranks: Option<u32>, plan: &LaunchPlan, image: u64) -> Option<Vec<u8>> {
        let request = LaunchRequest { sharing, ..LaunchRequest::new(Verb::Exec, "a.sif", vec!["a".into()]) };
        let step = JobStep { id: b"x".to_vec(), local_ranks };
        let surroundings = Surroundings { uid: 1000, image: [image, 0, 0, 0, 0], namespaces: [1, 2] };
        share_name(&request, Some(&step), plan, &surroundings)
    }

    #[test]
    fn only_what_each_rank_has_for_itself_may_differ() {
        let usual = name(Sharing::WithinJobStep, None, &plan(), 1);
        assert!(usual.is_some());
        let mut other = plan();
        other.command = Command::Program { arguments: vec![b"b".to_vec()] };
        other.environment = pairs("RANK=1");
        other.umask = Some(0o77);
        assert_eq!(name(Sharing::WithinJobStep, None, &other, 1), usual);
        assert_ne!(name(Sharing::WithinJobStep, None, &plan(), 2), usual);
        other.steps.push(Step::Proc { target: starter::paths::ContainerPath::fixed("/proc"), or_host: false });
        assert_ne!(name(Sharing::WithinJobStep, None, &other, 1), usual);
    }

    #[test]
    fn nothing_is_shared_alone_or_with_what_one_rank_has_for_itself() {
        assert_eq!(name(Sharing::WithinJobStep, Some(1), &plan(), 1), None);
        assert!(name(Sharing::Always, Some(1), &plan(), 1).is_some());
        assert_eq!(name(Sharing::Never, None, &plan(), 1), None);
        let mut own = plan();
        own.namespaces.pid = true;
        assert_eq!(name(Sharing::Always, None, &own, 1), None);
    }
}
