//! Which processes are ranks of one job step on this node, and which of them may share one container. Pure.
//!
//! Ranks that share a user namespace can copy from each other's memory, and those that share a mount have one image
//! server and one page cache. Everything that a container is made of has to be the same: the image, the options, the
//! caller's namespaces. What each process has for itself (environment, directory, command, mask) may differ.
//!
//! Ranks that are started together mostly differ in their number alone. Such ones need no plan of their own: they meet
//! under a name made of all that a plan is made from ([`early_name`]), and the first one's plan, with their own number
//! in its environment, is theirs ([`plan_for_others`], [`plan_of_first`]).

use super::environment::Pair;
use super::request::{LaunchRequest, Sharing, Verb};
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
    Some(name("sifu-", hash))
}

/// An abstract name of `unix(7)`.
fn name(prefix: &str, hash: Sha256) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = hash.finalize().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
    prefix.bytes().chain(digits.map(|digit| DIGITS[usize::from(digit)])).collect()
}

/// What a process knows before it has a plan, beside its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub step: JobStep,
    /// Its words, as the kernel got them.
    pub arguments: Vec<Vec<u8>>,
    pub variables: Vec<Pair>,
    /// Its user and groups.
    pub ids: Vec<u32>,
    /// Its capabilities.
    pub capabilities: u64,
    /// The path of its working directory.
    pub path: Vec<u8>,
    /// Root and working directory: device and inode of each.
    pub directories: [[u64; 2]; 2],
    /// This program, the image and the configuration: device, inode, size and time of the last change (seconds,
    /// nanoseconds) of each; `None` for what is not there.
    pub files: [Option<[u64; 5]>; 3],
    /// Inodes of its user, mount, pid and control group namespaces.
    pub namespaces: [u64; 4],
}

/// The name under which ranks meet that differ in nothing but what a launcher tells each of them alone.
///
/// Two processes of one name would make the same plan, as far as the host has not changed between them, and but for the
/// values of the variables in [`env_names::OF_ONE_RANK`]. `None` where that can't be said, or nothing is to be shared.
pub fn early_name(request: &LaunchRequest, arrival: &Arrival) -> Option<Vec<u8>> {
    let alone = arrival.step.local_ranks == Some(1) && request.sharing != Sharing::Always;
    if alone || !is_plain(request) || arrival.ids.first() == Some(&0) {
        return None;
    }
    let mut hash = Sha256::new();
    let mut whole = |bytes: &[u8]| {
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    };
    whole(&arrival.step.id);
    whole(&arrival.arguments.len().to_le_bytes());
    arrival.arguments.iter().for_each(|argument| whole(argument));
    // The order of variables may be any.
    let mut variables: Vec<(&[u8], &[u8])> = arrival
        .variables
        .iter()
        .map(|(name, value)| (name.as_slice(), if is_of_one_rank(name) { b"" } else { value.as_slice() }))
        .collect();
    variables.sort_unstable();
    whole(&variables.len().to_le_bytes());
    for (name, value) in variables {
        whole(name);
        whole(value);
    }
    whole(&arrival.ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
    whole(&arrival.path);
    for file in arrival.files {
        whole(&file.into_iter().flatten().flat_map(u64::to_le_bytes).collect::<Vec<_>>());
    }
    let directories = arrival.directories.into_iter().flatten();
    for number in arrival.namespaces.into_iter().chain(directories).chain([arrival.capabilities]) {
        whole(&number.to_le_bytes());
    }
    Some(name("sifu-early-", hash))
}

fn is_of_one_rank(name: &[u8]) -> bool {
    env_names::OF_ONE_RANK.iter().any(|known| known.as_bytes() == name)
}

/// Whether all that a plan for the request depends on is in an [`Arrival`], or is the same for all processes of a user. What
/// is not named here is not: files that options name, terminals, accelerators, id ranges.
fn is_plain(request: &LaunchRequest) -> bool {
    let plain = LaunchRequest {
        binds: request.binds.clone(),
        mounts: request.mounts.clone(),
        home: request.home.clone(),
        no_home: request.no_home,
        no_mount: request.no_mount.clone(),
        scratch: request.scratch.clone(),
        cwd: request.cwd.clone(),
        tmpdir: request.tmpdir.clone(),
        cleanenv: request.cleanenv,
        env: request.env.clone(),
        no_env: request.no_env.clone(),
        no_eval: request.no_eval,
        no_umask: request.no_umask,
        userns: request.userns,
        no_nv: request.no_nv,
        no_rocm: request.no_rocm,
        app: request.app.clone(),
        sharing: request.sharing,
        strict: request.strict,
        level: request.level.min(1),
        colour: request.colour,
        ..LaunchRequest::new(request.verb, request.image.clone(), request.arguments.clone())
    };
    matches!(request.verb, Verb::Exec | Verb::Run) && request.sharing != Sharing::Never && plain == *request
}

/// The first rank's plan as far as others need it, for [`plan_of_first`]. `unseen` names variables that have the caller's
/// values inside, whatever those are.
pub fn plan_for_others(plan: &LaunchPlan, unseen: &[Vec<u8>]) -> Option<Vec<u8>> {
    if !can_be_shared(plan) || !matches!(plan.command, Command::Program { .. }) {
        return None;
    }
    let (own, same): (Vec<Pair>, Vec<Pair>) =
        plan.environment.iter().cloned().partition(|(name, _)| is_of_one_rank(name) && unseen.contains(name));
    let rest = LaunchPlan { steps: Vec::new(), share: None, environment: same, ..plan.clone() };
    let mut text = Vec::new();
    for (name, _) in own {
        text.extend_from_slice(&name);
        text.push(b'\n');
    }
    text.push(b'\n');
    text.extend_from_slice(&rest.to_text());
    Some(text)
}

/// The plan of a rank that has these variables, from the text that the first rank left. `None` if that is damaged.
pub fn plan_of_first(text: &[u8], variables: &[Pair]) -> Option<LaunchPlan> {
    let mut rest = text;
    let mut own = Vec::new();
    loop {
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        let name = &rest[..end];
        rest = &rest[end + 1..];
        if name.is_empty() {
            break;
        }
        own.push(variables.iter().find(|(known, _)| known == name)?.clone());
    }
    let mut plan = LaunchPlan::from_text(rest).ok()?;
    plan.environment.extend(own);
    plan.environment.sort();
    Some(plan)
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

    fn arrival(rank: &str) -> Arrival {
        Arrival {
            step: JobStep { id: b"x".to_vec(), local_ranks: None },
            arguments: vec![b"sifu".to_vec(), b"exec".to_vec(), b"a.sif".to_vec(), b"a".to_vec()],
            variables: pairs(&format!("PMIX_RANK={rank} HOME=/home/ada")),
            ids: vec![1000, 1000, 1000, 1000, 20],
            capabilities: 0,
            path: b"/home/ada".to_vec(),
            directories: [[1, 2], [1, 77]],
            files: [Some([1, 3, 0, 0, 0]), Some([1, 4, 0, 0, 0]), None],
            namespaces: [1, 2, 3, 4],
        }
    }

    fn request(change: impl FnOnce(&mut LaunchRequest)) -> LaunchRequest {
        let mut request = LaunchRequest::new(Verb::Exec, "a.sif", vec!["a".into()]);
        change(&mut request);
        request
    }

    #[test]
    fn who_differs_in_its_number_alone_has_the_same_early_name() {
        let name = |change: fn(&mut Arrival)| {
            let mut arrival = arrival("0");
            change(&mut arrival);
            early_name(&request(|_| ()), &arrival).expect("a name")
        };
        let usual = name(|_| ());
        assert_eq!(name(|arrival| arrival.variables[0].1 = b"63".to_vec()), usual);
        assert_eq!(name(|arrival| arrival.variables.reverse()), usual);
        let others: [fn(&mut Arrival); 15] = [
            |arrival| arrival.step.id = b"y".to_vec(),
            |arrival| arrival.arguments[3] = b"b".to_vec(),
            |arrival| arrival.arguments = vec![b"sifu".to_vec(), b"exec".to_vec(), b"a.sifa".to_vec()],
            |arrival| arrival.variables[1].1 = b"/home/bob".to_vec(),
            |arrival| arrival.variables[0].0 = b"PMI_RANK".to_vec(),
            |arrival| drop(arrival.variables.remove(0)),
            |arrival| arrival.ids[0] = 1001,
            |arrival| arrival.ids.truncate(4),
            |arrival| arrival.capabilities = 1,
            |arrival| arrival.path = b"/home".to_vec(),
            |arrival| arrival.directories[0][1] = 9,
            |arrival| arrival.directories[1][1] = 9,
            |arrival| arrival.files[1] = Some([1, 4, 0, 0, 1]),
            |arrival| arrival.files[2] = Some([1, 5, 0, 0, 0]),
            |arrival| arrival.namespaces[1] = 9,
        ];
        for (number, change) in others.into_iter().enumerate() {
            assert_ne!(name(change), usual, "change {number}");
        }
    }

    #[test]
    fn there_is_no_early_name_where_a_plan_depends_on_more() {
        let name = |change: fn(&mut LaunchRequest)| early_name(&request(change), &arrival("0"));
        assert!(name(|request| request.binds = vec![b"/scratch".to_vec()]).is_some());
        let refused: [fn(&mut LaunchRequest); 9] = [
            |request| request.sharing = Sharing::Never,
            |request| request.verb = Verb::Shell,
            |request| request.nv = true,
            |request| request.contain = true,
            |request| request.env_files = vec!["a.env".into()],
            |request| request.security = vec![b"seccomp:a.json".to_vec()],
            |request| request.fakeroot = true,
            |request| request.mpi = true,
            |request| request.level = 5,
        ];
        for (number, change) in refused.into_iter().enumerate() {
            assert_eq!(name(change), None, "change {number}");
        }
        let root = Arrival { ids: vec![0, 0, 0, 0], ..arrival("0") };
        assert_eq!(early_name(&request(|_| ()), &root), None);
        let step = JobStep { id: b"x".to_vec(), local_ranks: Some(1) };
        assert_eq!(early_name(&request(|_| ()), &Arrival { step, ..arrival("0") }), None);
    }

    #[test]
    fn the_first_ones_plan_gets_the_number_of_who_takes_it() {
        let mut first = plan();
        first.environment = pairs("HOME=/home/ada PMIX_RANK=0 PMI_RANK=of-the-image");
        first.umask = Some(0o22);
        let text = plan_for_others(&first, &[b"PMIX_RANK".to_vec(), b"HOME".to_vec()]).expect("a plan");
        let other = plan_of_first(&text, &pairs("PMI_RANK=7 PMIX_RANK=7 HOME=/elsewhere")).expect("a plan");
        assert_eq!(other.environment, pairs("HOME=/home/ada PMIX_RANK=7 PMI_RANK=of-the-image"));
        assert_eq!((other.command, other.umask), (first.command, first.umask));
        assert_eq!(plan_of_first(&text, &[]), None, "a variable is missing");
        assert_eq!(plan_of_first(&text[..text.len() / 2], &pairs("PMIX_RANK=7")), None, "half a plan");
        assert_eq!(plan_of_first(b"", &[]), None);
    }

    #[test]
    fn a_plan_that_is_one_processs_own_is_for_nobody_else() {
        let mut own = plan();
        own.namespaces.ipc = true;
        assert_eq!(plan_for_others(&own, &[]), None);
        let shell = Command::EmbeddedShell { driver: Vec::new(), arguments: Vec::new() };
        assert_eq!(plan_for_others(&LaunchPlan { command: shell, ..plan() }, &[]), None);
    }
}
