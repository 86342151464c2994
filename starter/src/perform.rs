//! Performs a launch plan: the world is changed here and nowhere else, a function for each kind of step.
//!
//! ```text
//!   user namespace, maps        one thread; a child forked before runs newuidmap and newgidmap where a range is mapped
//!   open /dev/fuse              in the new user namespace, or the kernel refuses the mount
//!   mount and other namespaces  copies of the host's mounts become slaves, since the user namespace differs
//!   (pid namespace: fork)       the parent waits, see `supervise`
//!   sources                     every bind is copied before anything is attached, so that nothing hides a source
//!   root                        attached over `/`; the process's own root is still the host's
//!   steps                       targets are opened by descriptor inside the new root: no link leads out of it
//!   the root becomes ours       chroot where no capability stays, else pivot_root
//!   privileges                  bounding set, no_new_privs, all sets, root emulation, seccomp
//!   directory, umask, exec      in place: the command keeps the caller's process id
//! ```
//!
//! Every mount is nosuid, and nodev unless the step is a `dev`: a plan has no words for anything else.

use crate::image_server::{send_fuse, send_mount_namespace, send_user_namespace};
use crate::mounts::{FsOption, Mount, Mounts, by_number};
use crate::paths::{ContainerPath, HostPath};
use crate::plan::{
    Access, Command, IdRange, Identity, LaunchPlan, Limit, NamespaceKind, Need, Node, NodeContent, Step, User,
};
use crate::resolve::open_inside;
use crate::supervise::{self, Ended};
use crate::sys::{self, mount_attr};
use crate::trapped::{InstallError, install_listener};
use crate::underlay;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat, umask};
use nix::unistd::{
    AccessFlags, Gid, Uid, access, chdir, chroot, execve, fchdir, setgroups, sethostname, setresgid, setresuid,
    symlinkat,
};
use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

/// A part of a launch that a host can refuse as a whole; the names are those that diagnoses use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    UnshareUser,
    DenySetgroups,
    WriteUidMap,
    WriteGidMap,
    RunNewuidmap,
    RunNewgidmap,
    OpenFuse,
    UnshareMounts,
    MakeSlave,
    MountTmpfs,
    MountFuse,
    MountOverlay,
    UnsharePid,
    MountProc,
    UnshareIpc,
    UnshareUts,
    UnshareNet,
    PivotRoot,
    JoinNamespaces,
}

/// Why a plan could not be performed.
#[derive(Debug)]
pub enum PerformError {
    /// The host refused something that every such plan needs.
    Stage {
        stage: Stage,
        errno: Errno,
    },
    /// One step failed.
    Step {
        step: String,
        problem: StepProblem,
    },
    /// Nothing can be done without a server of images, and none was given.
    NoServer,
    /// Something that should never fail did.
    System {
        doing: &'static str,
        errno: Errno,
    },
    /// A namespace of another process can't be entered.
    Join {
        path: HostPath,
        errno: Errno,
    },
    /// The command can't be this user.
    User {
        user: User,
        errno: Errno,
    },
    Limit {
        limit: Limit,
        errno: Errno,
    },
    /// None of the directories can be entered.
    Directory {
        path: ContainerPath,
        errno: Errno,
    },
    /// The command was not started.
    Command {
        name: Vec<u8>,
        errno: Errno,
    },
}

/// What a step stumbled over.
#[derive(Debug)]
pub enum StepProblem {
    /// The source on the host can't be used.
    Source {
        path: Vec<u8>,
        errno: Errno,
    },
    /// The target can't be found or made.
    Target {
        path: ContainerPath,
        errno: Errno,
    },
    /// One of source and target is a directory, the other is not.
    Kinds {
        source_is_directory: bool,
        target: ContainerPath,
    },
    Mount {
        errno: Errno,
    },
}

impl fmt::Display for PerformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage { stage, errno } => write!(f, "{stage:?}: {}", words(*errno)),
            Self::Step { step, problem } => match problem {
                StepProblem::Source { path, errno } => {
                    write!(f, "cannot bind {}: {}", String::from_utf8_lossy(path), words(*errno))
                }
                StepProblem::Target { path, errno } => {
                    write!(f, "cannot mount on {path} in the container: {} (`{step}`)", words(*errno))
                }
                StepProblem::Kinds { source_is_directory: true, target } => {
                    write!(f, "cannot bind a directory over {target} in the container, which is a file (`{step}`)")
                }
                StepProblem::Kinds { source_is_directory: false, target } => {
                    write!(f, "cannot bind a file over {target} in the container, which is a directory (`{step}`)")
                }
                StepProblem::Mount { errno } => write!(f, "cannot mount: {} (`{step}`)", words(*errno)),
            },
            Self::NoServer => f.write_str("the plan names an image and no image server was given"),
            Self::System { doing, errno } => write!(f, "cannot {doing}: {}", words(*errno)),
            Self::Join { path, errno } => {
                write!(f, "cannot enter the namespace {}: {}", path.as_path().display(), words(*errno))
            }
            Self::User { user, errno } => {
                write!(f, "cannot become user {} and group {}: {}", user.uid, user.gid, words(*errno))
            }
            Self::Limit { limit: Limit { resource, soft, hard }, errno } => {
                write!(f, "cannot set the limit {resource} to {soft}, {hard} at most: {}", words(*errno))
            }
            Self::Directory { path, errno } => {
                write!(f, "cannot start in {path} in the container: {}", words(*errno))
            }
            Self::Command { name, errno } => match errno {
                Errno::ENOENT => write!(f, "cannot run {}: not found in the container", String::from_utf8_lossy(name)),
                errno => write!(f, "cannot run {}: {}", String::from_utf8_lossy(name), words(*errno)),
            },
        }
    }
}

impl std::error::Error for PerformError {}

fn words(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

/// Something that was done otherwise than the plan says, worth telling.
#[derive(Debug)]
pub enum Warning {
    /// The first directory can't be entered; another was taken.
    Directory { wanted: ContainerPath, taken: ContainerPath },
    /// `/proc` shows the host's processes.
    ProcOfHost,
    /// The command can't give files away.
    NotEmulated(InstallError),
    /// The root was rebuilt from mounts, since an overlay was refused.
    NoOverlay(Errno),
}

impl Warning {
    /// Whether the command can't tell the difference.
    pub fn is_harmless(&self) -> bool {
        matches!(self, Self::NoOverlay(_))
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { wanted, taken } => {
                write!(f, "cannot start in {wanted}, which is not in the container; starting in {taken}")
            }
            Self::NotEmulated(error) => write!(f, "files can belong to root alone in the container: {error}"),
            Self::NoOverlay(errno) => {
                write!(f, "cannot mount an overlay: {}; the root is rebuilt from mounts instead", words(*errno))
            }
            Self::ProcOfHost => {
                f.write_str("the kernel allows no /proc for these processes alone; it shows the host's")
            }
        }
    }
}

/// A process inside the container, just before the command.
#[derive(Debug)]
pub struct Entered {
    pub warnings: Vec<Warning>,
    /// The plan's environment, with the directory that was taken.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What [`launch`] comes to.
#[derive(Debug)]
pub enum Launched {
    /// This process is inside.
    Inside(Entered),
    /// This process stayed outside as the command's parent, and the command has ended.
    Ended(Ended),
    /// This process is outside, and process 1 of the container, which has this id here, needs it no longer.
    Left(i32),
}

/// Does everything of `plan` but its command. `server` is the socket to the image server, `supervisor` that to the
/// supervisor of the root emulation.
///
/// The process must have one thread. After an error it is of no more use than to say so.
pub fn launch(
    plan: &LaunchPlan,
    server: Option<BorrowedFd<'_>>,
    supervisor: Option<BorrowedFd<'_>>,
) -> Result<Launched, PerformError> {
    if plan.connections() > 0 && server.is_none() {
        return Err(PerformError::NoServer);
    }
    let callers_umask = umask(Mode::empty());
    let restore = plan.umask.map_or(callers_umask, Mode::from_bits_truncate);
    let reached = (|| {
        let joined = open_joined(plan)?;
        become_somebody(&plan.identity)?;
        let fuse = open_fuse(plan)?;
        enter_namespaces(plan, joined)?;
        if !plan.has_pid_namespace() {
            return enter(plan, fuse, server, supervisor).map(Launched::Inside);
        }
        match supervise::fork_first_process(plan.parent.detached)? {
            supervise::Forked::Parent(ended) => Ok(Launched::Ended(ended)),
            supervise::Forked::Left(child) => Ok(Launched::Left(child)),
            supervise::Forked::Child(first) => {
                let entered = enter(plan, fuse, server, supervisor)?;
                if plan.parent.detached {
                    first.detach()?;
                } else if plan.parent.init {
                    first.stay_as_init()?;
                }
                Ok(Launched::Inside(entered))
            }
        }
    })();
    umask(restore);
    reached
}

/// Becomes the command. Returns only if that fails.
pub fn exec(plan: &LaunchPlan, environment: &[(Vec<u8>, Vec<u8>)]) -> PerformError {
    match &plan.command {
        Command::Program { arguments } => match exec_program(arguments, environment) {
            Ok(never) => match never {},
            Err(error) => error,
        },
        Command::EmbeddedShell { .. } => {
            PerformError::System { doing: "run a shell of sifu's own here", errno: Errno::ENOSYS }
        }
    }
}

// ---- identity and namespaces ----

/// Puts this process, which must have one thread, into a user namespace in which it is what `identity` says.
pub fn become_somebody(identity: &Identity) -> Result<(), PerformError> {
    match identity {
        Identity::Privileged => Ok(()),
        Identity::Keep { uid, gid } => {
            let (outer_uid, outer_gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            unshare_user()?;
            map_one(*uid, outer_uid, *gid, outer_gid)
        }
        Identity::Root { uid, gid } => {
            unshare_user()?;
            map_one(0, *uid, 0, *gid)
        }
        Identity::Range { newuidmap, newgidmap, uids, gids } => map_ranges(newuidmap, newgidmap, uids, gids),
    }
}

fn unshare_user() -> Result<(), PerformError> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| PerformError::Stage { stage: Stage::UnshareUser, errno })
}

fn map_one(inside_uid: u32, uid: u32, inside_gid: u32, gid: u32) -> Result<(), PerformError> {
    write_to("/proc/self/setgroups", "deny", Stage::DenySetgroups)?;
    write_to("/proc/self/uid_map", &format!("{inside_uid} {uid} 1\n"), Stage::WriteUidMap)?;
    write_to("/proc/self/gid_map", &format!("{inside_gid} {gid} 1\n"), Stage::WriteGidMap)
}

fn write_to(path: &str, text: &str, stage: Stage) -> Result<(), PerformError> {
    let written = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| nix::unistd::write(&file, text.as_bytes()));
    written.map(drop).map_err(|errno| PerformError::Stage { stage, errno })
}

/// A process in the namespace can map its own ids only. The helpers are privileged, and must run outside: in a child
/// that was forked before.
fn map_ranges(
    newuidmap: &HostPath,
    newgidmap: &HostPath,
    uids: &[IdRange],
    gids: &[IdRange],
) -> Result<(), PerformError> {
    const UIDS_FAILED: u8 = 1;
    const GIDS_FAILED: u8 = 2;
    let system = |doing| move |error: std::io::Error| PerformError::System { doing, errno: errno_of(&error) };
    let (mut waiting, go) = std::io::pipe().map_err(system("make a pipe"))?;
    let this = std::process::id();
    let child = sys::fork_child(|| {
        let mut byte = [0];
        if waiting.read_exact(&mut byte).is_err() {
            return 0;
        }
        let run = |helper: &HostPath, ranges: &[IdRange]| {
            let mut command = std::process::Command::new(helper.as_path());
            command.arg(this.to_string());
            for range in ranges {
                command.args([range.inside, range.outside, range.count].map(|number| number.to_string()));
            }
            command.stdin(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
        };
        if !run(newuidmap, uids) {
            return UIDS_FAILED;
        }
        if !run(newgidmap, gids) {
            return GIDS_FAILED;
        }
        0
    })
    .map_err(system("fork"))?;
    let unshared = unshare_user();
    if unshared.is_ok() {
        let mut go = &go;
        go.write_all(b"g").map_err(system("wake the process that maps ids"))?;
    }
    drop(go);
    let status =
        supervise::wait_for(child).map_err(|errno| PerformError::System { doing: "wait for a child", errno })?;
    unshared?;
    match std::process::ExitStatus::from_raw(status).code() {
        Some(0) => {}
        Some(code) if code == i32::from(GIDS_FAILED) => {
            return Err(PerformError::Stage { stage: Stage::RunNewgidmap, errno: Errno::EPERM });
        }
        _ => return Err(PerformError::Stage { stage: Stage::RunNewuidmap, errno: Errno::EPERM }),
    }
    // The ids are mapped: where the caller's own is among them, this process is somebody in the namespace already.
    // Who is nobody can make no files.
    let system = |doing| move |errno| PerformError::System { doing, errno };
    if nix::unistd::getgid().as_raw() == OVERFLOW_ID {
        setresgid(ROOT_GROUP, ROOT_GROUP, ROOT_GROUP).map_err(system("become the root group of the container"))?;
    }
    if nix::unistd::getuid().as_raw() == OVERFLOW_ID {
        setresuid(ROOT, ROOT, ROOT).map_err(system("become root of the container"))?;
    }
    Ok(())
}

/// What a user namespace shows of ids that it does not map.
const OVERFLOW_ID: u32 = 65534;
const ROOT: Uid = Uid::from_raw(0);
const ROOT_GROUP: Gid = Gid::from_raw(0);

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn open_fuse(plan: &LaunchPlan) -> Result<Vec<OwnedFd>, PerformError> {
    (0..plan.connections())
        .map(|_| {
            open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| PerformError::Stage { stage: Stage::OpenFuse, errno })
        })
        .collect()
}

/// Opens the namespaces of other processes, as the caller sees them.
fn open_joined(plan: &LaunchPlan) -> Result<Vec<(OwnedFd, CloneFlags, &HostPath)>, PerformError> {
    plan.join
        .iter()
        .map(|joined| {
            let flag = match joined.kind {
                NamespaceKind::Pid => CloneFlags::CLONE_NEWPID,
                NamespaceKind::Ipc => CloneFlags::CLONE_NEWIPC,
                NamespaceKind::Uts => CloneFlags::CLONE_NEWUTS,
                NamespaceKind::Net => CloneFlags::CLONE_NEWNET,
                NamespaceKind::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            };
            let opened = open(joined.path.as_path(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
            let opened = opened.map_err(|errno| PerformError::Join { path: joined.path.clone(), errno })?;
            Ok((opened, flag, &joined.path))
        })
        .collect()
}

fn enter_namespaces(plan: &LaunchPlan, joined: Vec<(OwnedFd, CloneFlags, &HostPath)>) -> Result<(), PerformError> {
    for (namespace, flag, path) in joined {
        setns(namespace, flag).map_err(|errno| PerformError::Join { path: path.clone(), errno })?;
    }
    let n = plan.namespaces;
    let kinds = [
        (true, CloneFlags::CLONE_NEWNS, Stage::UnshareMounts),
        (n.ipc, CloneFlags::CLONE_NEWIPC, Stage::UnshareIpc),
        (n.uts, CloneFlags::CLONE_NEWUTS, Stage::UnshareUts),
        (n.net, CloneFlags::CLONE_NEWNET, Stage::UnshareNet),
        (n.pid, CloneFlags::CLONE_NEWPID, Stage::UnsharePid),
    ];
    for (_, flag, stage) in kinds.into_iter().filter(|(wanted, _, _)| *wanted) {
        unshare(flag).map_err(|errno| PerformError::Stage { stage, errno })?;
    }
    if n.cgroup {
        unshare(CloneFlags::CLONE_NEWCGROUP)
            .map_err(|errno| PerformError::System { doing: "make a cgroup namespace", errno })?;
    }
    // In a user namespace of its own the copies are slaves already.
    let propagation = match (plan.private_mounts, &plan.identity) {
        (true, _) => Some(MsFlags::MS_PRIVATE),
        (false, Identity::Privileged) => Some(MsFlags::MS_SLAVE),
        (false, _) => None,
    };
    if let Some(kind) = propagation {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | kind, none)
            .map_err(|errno| PerformError::Stage { stage: Stage::MakeSlave, errno })?;
    }
    if n.net {
        sys::bring_up_loopback()
            .map_err(|errno| PerformError::System { doing: "bring up the loopback interface", errno })?;
    }
    if let Some(name) = &plan.hostname {
        sethostname(OsStr::from_bytes(name))
            .map_err(|errno| PerformError::System { doing: "set the host name", errno })?;
    }
    Ok(())
}

// ---- the mount tree ----

/// What a step mounts, opened before the root is attached.
enum Source {
    Mount(Mount),
    None,
    /// An optional source that is not there.
    Absent,
}

/// The tree that the command will see.
struct Container<'m> {
    mounts: &'m Mounts,
    /// The root, as the steps see it.
    root: Mount,
}

fn enter(
    plan: &LaunchPlan,
    fuse: Vec<OwnedFd>,
    server: Option<BorrowedFd<'_>>,
    supervisor: Option<BorrowedFd<'_>>,
) -> Result<Entered, PerformError> {
    let keep = plan.capabilities.keep;
    // Done early: it costs as much as the server needs to come up.
    sys::bound_capabilities(keep).map_err(|errno| PerformError::System { doing: "drop capabilities", errno })?;
    let mut warnings = Vec::new();
    let mut sources = Vec::with_capacity(plan.steps.len());
    let mounts = Mounts::default();
    for step in &plan.steps {
        sources.push(open_source(&mounts, step)?);
    }
    let host_proc = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::Proc { or_host: true, .. }))
        .then(|| mounts.copy(Path::new("/proc"), 0).ok())
        .flatten();
    let mut images = mount_images(&mounts, fuse, server, plan)?;
    prepare(&mounts, plan, &images, &mut sources)?;
    let mut container: Option<Container<'_>> = None;
    for (step, source) in plan.steps.iter().zip(sources) {
        match (step, source, &mut container) {
            (Step::RootServed { connection }, _, None) => {
                let image = images.get_mut(*connection).and_then(Option::take).ok_or(PerformError::NoServer)?;
                let root = attach_root(&mounts, image)?;
                prime(&root);
                container = Some(Container { mounts: &mounts, root });
            }
            (Step::RootDirectory { .. }, Source::Mount(directory), None) => {
                container = Some(Container { mounts: &mounts, root: attach_root(&mounts, directory)? });
            }
            (Step::HostDirectory { .. }, _, _) => {}
            (_, source, Some(container)) => {
                if let Some(warning) = container.perform(step, source, host_proc.as_ref())? {
                    warnings.push(warning);
                }
            }
            (step, _, None) => return Err(step_error(step, StepProblem::Mount { errno: Errno::EINVAL })),
        }
    }
    let Some(container) = container else {
        return Err(PerformError::System { doing: "enter a container without a root", errno: Errno::EINVAL });
    };
    let namespace = server.map(|control| (control, open_namespace("mnt")));
    if let (Some(control), Some(_), Ok(user)) = (server, &plan.share, open_namespace("user")) {
        // As below.
        let _ = send_user_namespace(control, &user);
    }
    let pivot = |errno| PerformError::Stage { stage: Stage::PivotRoot, errno };
    fchdir(&container.root).map_err(pivot)?;
    if keep == 0 {
        // Nobody inside can mount: the host's tree below is out of reach, and finding every process of the node whose
        // root it is, as pivot_root does, is not needed.
        chroot(".").map_err(pivot)?;
    } else {
        // The host's root, and what is over it but the new root.
        sys::pivot_root_here(mounts.over_host()).map_err(pivot)?;
    }
    chdir("/").map_err(pivot)?;
    drop(container);
    if let Some((control, Ok(namespace))) = namespace {
        // A server that has gone away is noticed by the command, not here.
        let _ = send_mount_namespace(control, &namespace);
    }
    settle(plan, supervisor, warnings)
}

/// Opens a namespace of this process by its name in `/proc`.
fn open_namespace(name: &str) -> nix::Result<OwnedFd> {
    open(Path::new("/proc/self/ns").join(name).as_path(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Joins a container that runs already, as another process with the plan's command, instead of performing the plan's
/// steps. The process must have one thread.
pub fn join(plan: &LaunchPlan, user: &OwnedFd, mounts: &OwnedFd) -> Result<Entered, PerformError> {
    let joining = |errno| PerformError::Stage { stage: Stage::JoinNamespaces, errno };
    let callers_umask = umask(Mode::empty());
    setns(user, CloneFlags::CLONE_NEWUSER).map_err(joining)?;
    // This also makes the container's root the root of this process.
    setns(mounts, CloneFlags::CLONE_NEWNS).map_err(joining)?;
    sys::bound_capabilities(plan.capabilities.keep)
        .map_err(|errno| PerformError::System { doing: "drop capabilities", errno })?;
    let entered = settle(plan, None, Vec::new());
    umask(plan.umask.map_or(callers_umask, Mode::from_bits_truncate));
    entered
}

/// What a process does for itself, once it has the container's root: privileges, directory, filters.
fn settle(
    plan: &LaunchPlan,
    supervisor: Option<BorrowedFd<'_>>,
    mut warnings: Vec<Warning>,
) -> Result<Entered, PerformError> {
    let keep = plan.capabilities.keep;
    let privileged = plan.identity == Identity::Privileged;
    nix::sys::prctl::set_no_new_privs()
        .map_err(|errno| PerformError::System { doing: "give up new privileges", errno })?;
    for limit in &plan.limits {
        sys::set_limit(limit.resource, limit.soft, limit.hard)
            .map_err(|errno| PerformError::Limit { limit: *limit, errno })?;
    }
    let mine = sys::effective_capabilities().unwrap_or(0);
    if let Some(user) = &plan.user {
        become_user(user).map_err(|errno| PerformError::User { user: user.clone(), errno })?;
    }
    let everything = privileged && keep == u64::MAX && plan.user.is_none();
    if !everything {
        sys::keep_capabilities(keep & mine)
            .map_err(|errno| PerformError::System { doing: "drop capabilities", errno })?;
    }
    sys::default_signal(Signal::SIGPIPE).map_err(|errno| PerformError::System { doing: "restore a signal", errno })?;
    let mut environment = plan.environment.clone();
    enter_directory(plan, &mut environment, &mut warnings)?;
    // Before a filter of the user's, which may forbid what this takes.
    if let (Some(emulation), Some(supervisor)) = (&plan.emulation, supervisor)
        && let Err(error) = install_listener(supervisor, emulation.scope)
    {
        warnings.push(Warning::NotEmulated(error));
    }
    if !plan.seccomp.is_empty() {
        sys::install_seccomp(&plan.seccomp)
            .map_err(|errno| PerformError::System { doing: "install the seccomp filter", errno })?;
    }
    Ok(Entered { warnings, environment })
}

/// Takes on the ids of the command; capabilities stay until they are dropped on purpose.
fn become_user(user: &User) -> nix::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    match setgroups(&groups) {
        // Where one id alone is mapped the kernel lets nobody change groups, and there are none to take on.
        Err(Errno::EPERM) if groups.is_empty() => {}
        done => done?,
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid)?;
    nix::sys::prctl::set_keepcaps(true)?;
    setresuid(uid, uid, uid)?;
    nix::sys::prctl::set_keepcaps(false)
}

fn step_error(step: &Step, problem: StepProblem) -> PerformError {
    PerformError::Step { step: step.to_string(), problem }
}

fn open_source(mounts: &Mounts, step: &Step) -> Result<Source, PerformError> {
    let copied = |source: &HostPath, need: Need, attributes: u64| match mounts.copy(source.as_path(), attributes) {
        Ok(copy) => Ok(Source::Mount(copy)),
        Err(_) if need == Need::Optional => Ok(Source::Absent),
        Err(errno) => Err(step_error(step, StepProblem::Source { path: source.as_bytes().to_vec(), errno })),
    };
    let restricted = |access| match access {
        Access::ReadOnly => mount_attr::NOSUID | mount_attr::NODEV | mount_attr::RDONLY,
        Access::ReadWrite => mount_attr::NOSUID | mount_attr::NODEV,
    };
    match step {
        Step::RootDirectory { source, access } => copied(source, Need::Required, restricted(*access)),
        Step::Bind { source, access, need, .. } => copied(source, *need, restricted(*access)),
        Step::Device { source, need, .. } => copied(source, *need, mount_attr::NOSUID),
        Step::HostDirectory { path, mode } => {
            let made = std::fs::create_dir_all(path).and_then(|()| {
                let directory = File::open(path)?;
                // Only what was made here is ours to change; a directory of somebody else stays as it is.
                let _ = fchmod(&directory, Mode::from_bits_truncate(*mode));
                Ok(())
            });
            made.map(|()| Source::None).map_err(|error| {
                step_error(step, StepProblem::Source { path: path.as_bytes().to_vec(), errno: errno_of(&error) })
            })
        }
        Step::Sysfs { .. } => copied(&HostPath::new("/sys"), Need::Optional, restricted(Access::ReadOnly)),
        Step::Mask { .. } => copied(&HostPath::new("/dev/null"), Need::Required, mount_attr::NOSUID),
        Step::RootServed { .. }
        | Step::Sysctl { .. }
        | Step::Restrict { .. }
        | Step::Image { .. }
        | Step::RootLayer { .. }
        | Step::Tmpfs { .. }
        | Step::File { .. }
        | Step::Proc { .. }
        | Step::Devpts { .. }
        | Step::Mqueue { .. }
        | Step::Make { .. } => Ok(Source::None),
    }
}

/// Mounts the file systems of all connections, attached nowhere yet, and hands their descriptors to the server.
fn mount_images(
    mounts: &Mounts,
    fuse: Vec<OwnedFd>,
    server: Option<BorrowedFd<'_>>,
    plan: &LaunchPlan,
) -> Result<Vec<Option<Mount>>, PerformError> {
    let (uid, gid) = match plan.identity {
        Identity::Keep { uid, gid } => (uid, gid),
        Identity::Root { .. } | Identity::Range { .. } | Identity::Privileged => (0, 0),
    };
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let mut images = Vec::new();
    for (index, fuse) in fuse.into_iter().enumerate() {
        let options: [FsOption<'_>; 9] = [
            (c"source", Some("sifu")),
            (c"subtype", Some("sifu")),
            (c"fd", Some(&fuse.as_raw_fd().to_string())),
            (c"rootmode", Some("40000")),
            (c"user_id", Some(&uid)),
            (c"group_id", Some(&gid)),
            (c"default_permissions", None),
            (c"allow_other", None),
            (c"ro", None),
        ];
        let mounted = mounts.make(c"fuse", &options, mount_attr::RDONLY | mount_attr::NOSUID | mount_attr::NODEV);
        let mounted = mounted.map_err(|errno| PerformError::Stage { stage: Stage::MountFuse, errno })?;
        let (Some(server), Ok(index)) = (server, u8::try_from(index)) else { return Err(PerformError::NoServer) };
        // If both ends of the connection stayed open here, a server that dies would leave this process waiting for it.
        send_fuse(server, index, &fuse)
            .map_err(|error| PerformError::System { doing: "reach the image server", errno: errno_of(&error) })?;
        images.push(Some(mounted));
    }
    Ok(images)
}

/// Makes the sources that are part of something of ours: generated files, directories of images. The kernel copies a
/// part only of a mount that is attached, so these are attached first, where the root will hide them.
fn prepare(
    mounts: &Mounts,
    plan: &LaunchPlan,
    images: &[Option<Mount>],
    sources: &mut [Source],
) -> Result<(), PerformError> {
    let mut session: Option<Mount> = None;
    let mut attached = vec![false; images.len()];
    for (index, (step, source)) in plan.steps.iter().zip(sources).enumerate() {
        let made = match step {
            Step::File { mode, content, .. } => (|| {
                let directory = match session.take() {
                    Some(directory) => directory,
                    None => {
                        let directory = tmpfs(mounts, 0o755, None)?;
                        mounts.hide(&directory)?;
                        directory
                    }
                };
                let name = format!("file{index}");
                write_new(&directory, OsStr::new(&name), *mode, content)?;
                let attributes = mount_attr::RDONLY | mount_attr::NOSUID | mount_attr::NODEV;
                let file = mounts.part(directory.as_fd(), OsStr::new(&name), attributes)?;
                session = Some(directory);
                Ok(file)
            })(),
            Step::Image { connection, subdirectory, .. } => (|| {
                let image = images.get(*connection).and_then(Option::as_ref).ok_or(Errno::EBADF)?;
                if !std::mem::replace(&mut attached[*connection], true) {
                    mounts.hide(image)?;
                }
                let part = open_inside(image.as_fd(), subdirectory)?;
                mounts.part(part.as_fd(), OsStr::new(""), 0)
            })(),
            _ => continue,
        };
        *source = Source::Mount(made.map_err(|errno| step_error(step, StepProblem::Mount { errno }))?);
    }
    Ok(())
}

fn attach_root(mounts: &Mounts, root: Mount) -> Result<Mount, PerformError> {
    mounts.cover_host(&root).map_err(|errno| PerformError::System { doing: "attach the container's root", errno })?;
    Ok(root)
}

/// Lists the beginning of the root once: the kernel then knows these names, and asks the server for none of them again.
fn prime(root: &Mount) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    if let Ok(directory) = openat(root, ".", flags, Mode::empty()) {
        // What is not known is asked for later.
        let _ = sys::list_beginning(directory.as_fd());
    }
}

impl Container<'_> {
    fn perform(
        &mut self,
        step: &Step,
        source: Source,
        host_proc: Option<&Mount>,
    ) -> Result<Option<Warning>, PerformError> {
        let failed = |problem| step_error(step, problem);
        let mounted = |errno| step_error(step, StepProblem::Mount { errno });
        match (step, source) {
            (Step::Sysfs { target }, source) => {
                let attributes = mount_attr::RDONLY | mount_attr::NOSUID | mount_attr::NODEV;
                match (self.mounts.make(c"sysfs", &[], attributes), source) {
                    (Ok(sysfs), _) => self.attach(&sysfs, target, false).map_err(failed)?,
                    // Only who owns the network namespace sees its devices.
                    (Err(Errno::EPERM), Source::Mount(host)) => self.attach(&host, target, false).map_err(failed)?,
                    (Err(errno), _) => return Err(mounted(errno)),
                }
            }
            (_, Source::Absent) => {}
            (Step::Sysctl { name, value }, _) => self.set_parameter(name, value).map_err(mounted)?,
            (Step::Mask { target }, Source::Mount(null)) => self.mask(&null, target).map_err(failed)?,
            (Step::Restrict { target, read_only, no_exec }, _) => {
                let attributes = [(*read_only, mount_attr::RDONLY), (*no_exec, mount_attr::NOEXEC)];
                let attributes = attributes.into_iter().filter(|(on, _)| *on).map(|(_, attribute)| attribute).sum();
                self.restrict(target, attributes).map_err(mounted)?;
            }
            (Step::Bind { target, need, create, .. }, Source::Mount(source)) => {
                self.attach(&source, target, *create).or_else(|problem| excuse(*need, problem)).map_err(failed)?;
            }
            (Step::Device { target, need, create, .. }, Source::Mount(source)) => {
                self.attach(&source, target, *create).or_else(|problem| excuse(*need, problem)).map_err(failed)?;
            }
            (Step::Image { target, create, .. }, Source::Mount(part)) => {
                self.attach(&part, target, *create).map_err(failed)?;
            }
            (Step::File { target, .. }, Source::Mount(file)) => self.attach(&file, target, false).map_err(failed)?,
            (Step::RootLayer { access, size_bytes, nodes }, _) => {
                let refused = |errno| PerformError::Stage { stage: Stage::MountOverlay, errno };
                match (self.overlay(*access, *size_bytes, nodes), access) {
                    (Ok(overlay), _) => self.root = attach_root(self.mounts, overlay)?,
                    (Err(errno), Access::ReadWrite) => return Err(refused(errno)),
                    (Err(errno), Access::ReadOnly) => {
                        self.root = self.underlay(*size_bytes, nodes).map_err(|_| refused(errno))?;
                        return Ok(Some(Warning::NoOverlay(errno)));
                    }
                }
            }
            (Step::Tmpfs { target, mode, size_bytes, create }, _) => {
                let made = tmpfs(self.mounts, *mode, *size_bytes);
                let made = made.map_err(|errno| PerformError::Stage { stage: Stage::MountTmpfs, errno })?;
                self.attach(&made, target, *create).map_err(failed)?;
            }
            (Step::Proc { target, or_host }, _) => {
                let made = self.mounts.make(c"proc", &[], mount_attr::NOSUID | mount_attr::NODEV);
                match (made, host_proc) {
                    (Ok(proc), _) => self.attach(&proc, target, false).map_err(failed)?,
                    (Err(Errno::EPERM), Some(host)) if *or_host => {
                        self.attach(host, target, false).map_err(failed)?;
                        return Ok(Some(Warning::ProcOfHost));
                    }
                    (Err(errno), _) => return Err(PerformError::Stage { stage: Stage::MountProc, errno }),
                }
            }
            (Step::Devpts { target }, _) => {
                let options = [(c"newinstance", None), (c"ptmxmode", Some("0666")), (c"mode", Some("0620"))];
                let devpts = self.mounts.make(c"devpts", &options, mount_attr::NOSUID);
                self.attach(&devpts.map_err(mounted)?, target, true).map_err(failed)?;
            }
            (Step::Mqueue { target }, _) => {
                let mqueue = self.mounts.make(c"mqueue", &[], mount_attr::NOSUID | mount_attr::NODEV);
                self.attach(&mqueue.map_err(mounted)?, target, true).map_err(failed)?;
            }
            (Step::Make { node, need }, _) => make_inside(self.root.as_fd(), node)
                .or_else(|errno| excuse(*need, StepProblem::Target { path: node.path.clone(), errno }))
                .map_err(failed)?,
            // A second root, or a source that does not fit its step.
            _ => return Err(mounted(Errno::EINVAL)),
        }
        Ok(None)
    }

    /// Hides what is at `target` behind nothing: `null`, or an empty directory.
    fn mask(&self, null: &Mount, target: &ContainerPath) -> Result<(), StepProblem> {
        let wrong = |errno| StepProblem::Target { path: target.clone(), errno };
        let place = match open_inside(self.root.as_fd(), target) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            opened => opened.map_err(wrong)?,
        };
        let mount = |errno| StepProblem::Mount { errno };
        if !is_directory(&fstat(&place).map_err(mount)?) {
            return self.mounts.attach(null, place.as_fd()).map_err(mount);
        }
        let attributes = mount_attr::RDONLY | mount_attr::NOSUID | mount_attr::NODEV;
        let options = [(c"source", Some("sifu")), (c"mode", Some("755")), (c"size", Some("4096"))];
        let empty = self.mounts.make(c"tmpfs", &options, attributes).map_err(mount)?;
        self.mounts.attach(&empty, place.as_fd()).map_err(mount)
    }

    /// Adds attributes to the mount at `target`, or makes a mount with them of what is there.
    fn restrict(&self, target: &ContainerPath, attributes: u64) -> nix::Result<()> {
        let place = match open_inside(self.root.as_fd(), target) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            opened => opened?,
        };
        match self.mounts.restrict_place(place.as_fd(), attributes) {
            // Not the root of a mount.
            Err(Errno::EINVAL) => {
                let part = self.mounts.part(place.as_fd(), OsStr::new(""), attributes)?;
                self.mounts.attach(&part, place.as_fd())
            }
            done => done,
        }
    }

    /// Writes a parameter below the container's `/proc/sys`.
    fn set_parameter(&self, name: &[u8], value: &[u8]) -> nix::Result<()> {
        let path: Vec<u8> = name.iter().map(|&byte| if byte == b'.' { b'/' } else { byte }).collect();
        let path = ContainerPath::parse(&[b"/proc/sys/", path.as_slice()].concat()).map_err(|_| Errno::EINVAL)?;
        let place = open_inside(self.root.as_fd(), &path)?;
        let file = open(&by_number(place.as_fd()), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        File::from(file).write_all(value).map_err(|error| errno_of(&error))
    }

    /// Attaches `mount` at `target` inside the root.
    fn attach(&self, mount: &Mount, target: &ContainerPath, create: bool) -> Result<(), StepProblem> {
        let wrong = |errno| StepProblem::Target { path: target.clone(), errno };
        let source_is_directory = is_directory(&fstat(mount).map_err(|errno| StepProblem::Mount { errno })?);
        let open_target = || open_inside(self.root.as_fd(), target);
        let place = match open_target() {
            Ok(place) => place,
            Err(Errno::ENOENT) if create => {
                let (content, mode) = match source_is_directory {
                    true => (NodeContent::Directory, 0o755),
                    false => (NodeContent::File(Vec::new()), 0o644),
                };
                make_inside(self.root.as_fd(), &Node { path: target.clone(), mode, content }).map_err(wrong)?;
                open_target().map_err(wrong)?
            }
            Err(errno) => return Err(wrong(errno)),
        };
        if fstat(&place).is_ok_and(|stat| is_directory(&stat) != source_is_directory) {
            return Err(StepProblem::Kinds { source_is_directory, target: target.clone() });
        }
        self.mounts.attach(mount, place.as_fd()).map_err(|errno| StepProblem::Mount { errno })
    }

    /// Joins the root with a fresh tmpfs that holds `nodes`.
    fn overlay(&self, access: Access, size_bytes: Option<u64>, nodes: &[Node]) -> nix::Result<Mount> {
        let layer = tmpfs(self.mounts, 0o755, size_bytes)?;
        // Overlayfs takes layers that are attached.
        self.mounts.hide(&layer)?;
        let directory = |name| {
            mkdirat(&layer, name, Mode::S_IRWXU)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            openat(&layer, name, flags, Mode::empty())
        };
        let (upper, work) = (directory("upper")?, directory("work")?);
        fchmod(&upper, Mode::from_bits_truncate(fstat(&self.root)?.st_mode & 0o7777))?;
        for node in nodes {
            self.copy_parents(&upper, &node.path)?;
            make_inside(upper.as_fd(), node)?;
        }
        let at = |fd: BorrowedFd<'_>| by_number(fd).display().to_string();
        let (root, upper, work) = (at(self.root.as_fd()), at(upper.as_fd()), at(work.as_fd()));
        match access {
            Access::ReadOnly => {
                let layers = format!("{upper}:{root}");
                let options = [(c"source", Some("sifu")), (c"lowerdir", Some(layers.as_str()))];
                let attributes = mount_attr::RDONLY | mount_attr::NOSUID | mount_attr::NODEV;
                self.mounts.make(c"overlay", &options, attributes)
            }
            Access::ReadWrite => {
                let options = [
                    (c"source", Some("sifu")),
                    (c"lowerdir", Some(root.as_str())),
                    (c"upperdir", Some(&upper)),
                    (c"workdir", Some(&work)),
                    // The attributes that overlayfs keeps by itself are for real root; these anyone can write.
                    (c"userxattr", None),
                ];
                let (attributes, known_early) = (mount_attr::NOSUID | mount_attr::NODEV, &options[..4]);
                match self.mounts.make(c"overlay", &options, attributes) {
                    // Kernels that let users mount an overlay before 5.11, by a patch, don't know the last option.
                    Err(Errno::EINVAL) => self.mounts.make(c"overlay", known_early, attributes),
                    made => made,
                }
            }
        }
    }

    /// Joins the root with `nodes` where no overlay can do it.
    fn underlay(&self, size_bytes: Option<u64>, nodes: &[Node]) -> nix::Result<Mount> {
        let layer = tmpfs(self.mounts, fstat(&self.root)?.st_mode & 0o7777, size_bytes)?;
        self.mounts.cover_host(&layer)?;
        underlay::build(self.root.as_fd(), layer.as_fd(), nodes)?;
        self.mounts.restrict(&layer, mount_attr::RDONLY | mount_attr::NOSUID | mount_attr::NODEV)?;
        Ok(layer)
    }

    /// Gives the directories on the way to a node of the layer the modes that they have in the root.
    fn copy_parents(&self, upper: &OwnedFd, path: &ContainerPath) -> nix::Result<()> {
        let mut at = ContainerPath::root();
        let parent = path.parent();
        for name in parent.components() {
            at = at.join(name).map_err(|_| Errno::EINVAL)?;
            if open_inside(upper.as_fd(), &at).is_ok() {
                continue;
            }
            let mode = open_inside(self.root.as_fd(), &at).and_then(fstat).map_or(0o755, |stat| stat.st_mode & 0o7777);
            make_inside(upper.as_fd(), &Node { path: at.clone(), mode, content: NodeContent::Directory })?;
        }
        Ok(())
    }
}

/// An optional step may fail.
fn excuse(need: Need, problem: StepProblem) -> Result<(), StepProblem> {
    match need {
        Need::Required => Err(problem),
        Need::Optional => Ok(()),
    }
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn tmpfs(mounts: &Mounts, mode: u32, size_bytes: Option<u64>) -> nix::Result<Mount> {
    let (mode, size) = (format!("{mode:o}"), size_bytes.map(|size| size.to_string()));
    let options = [(c"source", Some("sifu")), (c"mode", Some(mode.as_str())), (c"size", size.as_deref())];
    let given = if size.is_some() { 3 } else { 2 };
    mounts.make(c"tmpfs", &options[..given], mount_attr::NOSUID | mount_attr::NODEV)
}

/// Makes a node inside `root`, and the directories on the way that are missing. What is there already stays.
fn make_inside(root: BorrowedFd<'_>, node: &Node) -> nix::Result<()> {
    let mut directory = open_inside(root, &ContainerPath::root())?;
    let mut at = ContainerPath::root();
    let parent = node.path.parent();
    for name in parent.components() {
        at = at.join(name).map_err(|_| Errno::EINVAL)?;
        directory = match open_inside(root, &at) {
            Err(Errno::ENOENT) => {
                mkdirat(&directory, OsStr::from_bytes(name), Mode::from_bits_truncate(0o755))?;
                open_inside(root, &at)?
            }
            opened => opened?,
        };
    }
    let name = OsStr::from_bytes(node.path.name());
    let made = match &node.content {
        NodeContent::Directory => mkdirat(&directory, name, Mode::from_bits_truncate(node.mode)),
        NodeContent::File(content) => write_new(&directory, name, node.mode, content),
        NodeContent::Symlink(target) => symlinkat(OsStr::from_bytes(target), &directory, name),
    };
    match made {
        Err(Errno::EEXIST) => Ok(()),
        made => made,
    }
}

/// Writes a file that must not be there yet.
fn write_new(directory: impl AsFd, name: &OsStr, mode: u32, content: &[u8]) -> nix::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::from_bits_truncate(mode))?;
    File::from(file).write_all(content).map_err(|error| errno_of(&error))
}

// ---- the last steps ----

fn enter_directory(
    plan: &LaunchPlan,
    environment: &mut [(Vec<u8>, Vec<u8>)],
    warnings: &mut Vec<Warning>,
) -> Result<(), PerformError> {
    let mut first_error = None;
    for candidate in &plan.directory.candidates {
        match chdir(candidate.as_path()) {
            Ok(()) => {
                if let Some((wanted, _)) = &first_error {
                    let (wanted, taken) = (ContainerPath::clone(wanted), candidate.clone());
                    for (_, value) in environment.iter_mut().filter(|(name, _)| name == b"PWD") {
                        *value = taken.as_bytes().to_vec();
                    }
                    warnings.push(Warning::Directory { wanted, taken });
                }
                return Ok(());
            }
            Err(errno) => {
                first_error.get_or_insert((candidate.clone(), errno));
            }
        }
    }
    match first_error {
        Some((path, errno)) => Err(PerformError::Directory { path, errno }),
        None => Ok(()),
    }
}

/// Says beforehand whether [`exec`] will find something to execute; what that is, only `execve(2)` knows.
pub fn check_command(plan: &LaunchPlan, environment: &[(Vec<u8>, Vec<u8>)]) -> Result<(), PerformError> {
    let Command::Program { arguments } = &plan.command else { return Ok(()) };
    let name = arguments.first().cloned().unwrap_or_default();
    let mut worst = Errno::ENOENT;
    for candidate in candidates(&name, environment) {
        match access(OsStr::from_bytes(&candidate), AccessFlags::X_OK) {
            Ok(()) => return Ok(()),
            Err(Errno::EACCES) => worst = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(PerformError::Command { name, errno: worst })
}

/// The paths at which a program of this name is looked for.
fn candidates(name: &[u8], environment: &[(Vec<u8>, Vec<u8>)]) -> Vec<Vec<u8>> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = environment.iter().find(|(name, _)| name == b"PATH").map_or(&b""[..], |(_, value)| value);
    path.split(|&b| b == b':')
        // An empty entry stands for the current directory.
        .map(|directory| if directory.is_empty() { b"." } else { directory })
        .map(|directory| [directory, b"/", name].concat())
        .collect()
}

fn exec_program(arguments: &[Vec<u8>], environment: &[(Vec<u8>, Vec<u8>)]) -> Result<Infallible, PerformError> {
    let name = arguments.first().cloned().unwrap_or_default();
    let failed = |errno| PerformError::Command { name: name.clone(), errno };
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| failed(Errno::EINVAL));
    let words = arguments.iter().map(|word| text(word)).collect::<Result<Vec<_>, _>>()?;
    let pairs = environment
        .iter()
        .map(|(name, value)| text(&[name.as_slice(), b"=", value].concat()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut worst = Errno::ENOENT;
    for candidate in candidates(&name, environment) {
        let program = text(&candidate)?;
        let errno = match execve(&program, &words, &pairs) {
            Ok(never) => match never {},
            Err(errno) => errno,
        };
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // On the way to a program of that name further down the path.
            Errno::EACCES => worst = Errno::EACCES,
            // A script without a first line that names its interpreter.
            Errno::ENOEXEC => {
                let mut shell = vec![text(b"/bin/sh")?, program];
                shell.extend(words.iter().skip(1).cloned());
                let Err(errno) = execve(c"/bin/sh", &shell, &pairs);
                return Err(failed(if errno == Errno::ENOENT { Errno::ENOEXEC } else { errno }));
            }
            errno => return Err(failed(errno)),
        }
    }
    Err(failed(worst))
}
