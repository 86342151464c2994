//! What `doctor` finds out: each step of a start tried alone, and the switches that explain the answers.

use starter::paths::HostPath;

use super::{EntrySource, FuseDevice, Kernel, SubordinateIds};

/// A step of a start that a host can refuse. Failures name one of these, so do the probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attempt {
    /// `unshare(CLONE_NEWUSER)`.
    UnshareUser,
    /// Writes `deny` to `/proc/self/setgroups`.
    DenySetgroups,
    /// Writes `/proc/self/uid_map`.
    WriteUidMap,
    /// Writes `/proc/self/gid_map`.
    WriteGidMap,
    /// Runs `newuidmap` over the caller's range.
    RunNewuidmap,
    /// Runs `newgidmap` over the caller's range.
    RunNewgidmap,
    /// Opens `/dev/fuse` in the user namespace.
    OpenFuse,
    /// `unshare(CLONE_NEWNS)`.
    UnshareMounts,
    /// Makes every mount a slave of the host's.
    MakeSlave,
    MountTmpfs,
    MountFuse,
    /// Binds a host directory, with everything mounted below it.
    Bind,
    MountOverlay,
    /// `unshare(CLONE_NEWPID)` and a first process in it.
    UnsharePid,
    /// Mounts a `proc` for a new pid namespace.
    MountProc,
    UnshareIpc,
    UnshareUts,
    UnshareNet,
    /// `pivot_root` and the detachment of the old root.
    PivotRoot,
    /// `setns` into the namespaces of another process of the same user.
    JoinNamespaces,
    /// Lets a supervisor answer the calls that an emulated root makes.
    EmulateRoot,
}

impl Attempt {
    pub const ALL: [Self; 21] = [
        Self::UnshareUser,
        Self::DenySetgroups,
        Self::WriteUidMap,
        Self::WriteGidMap,
        Self::RunNewuidmap,
        Self::RunNewgidmap,
        Self::OpenFuse,
        Self::UnshareMounts,
        Self::MakeSlave,
        Self::MountTmpfs,
        Self::MountFuse,
        Self::Bind,
        Self::MountOverlay,
        Self::UnsharePid,
        Self::MountProc,
        Self::UnshareIpc,
        Self::UnshareUts,
        Self::UnshareNet,
        Self::PivotRoot,
        Self::JoinNamespaces,
        Self::EmulateRoot,
    ];

    /// Returns the step's word, for a process that fails at it to hand to the one that explains it.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnshareUser => "unshare-user",
            Self::DenySetgroups => "deny-setgroups",
            Self::WriteUidMap => "write-uid-map",
            Self::WriteGidMap => "write-gid-map",
            Self::RunNewuidmap => "run-newuidmap",
            Self::RunNewgidmap => "run-newgidmap",
            Self::OpenFuse => "open-fuse",
            Self::UnshareMounts => "unshare-mounts",
            Self::MakeSlave => "make-slave",
            Self::MountTmpfs => "mount-tmpfs",
            Self::MountFuse => "mount-fuse",
            Self::Bind => "bind",
            Self::MountOverlay => "mount-overlay",
            Self::UnsharePid => "unshare-pid",
            Self::MountProc => "mount-proc",
            Self::UnshareIpc => "unshare-ipc",
            Self::UnshareUts => "unshare-uts",
            Self::UnshareNet => "unshare-net",
            Self::PivotRoot => "pivot-root",
            Self::JoinNamespaces => "join-namespaces",
            Self::EmulateRoot => "emulate-root",
        }
    }

    /// The step of that word.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attempt| attempt.name() == name)
    }
}

/// How an attempt went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Something before it failed, or there was no reason to try.
    #[default]
    NotTried,
    Done,
    /// The kernel's answer.
    Failed {
        errno: i32,
    },
    /// No answer within the time that a probe has.
    TimedOut,
}

/// Settings of the host that forbid or limit. A setting that this kernel does not have is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// `kernel.unprivileged_userns_clone` (Debian and its children).
    pub unprivileged_userns_clone: Option<u64>,
    /// `user.max_user_namespaces`, and likewise the others.
    pub max_user_namespaces: Option<u64>,
    pub max_mnt_namespaces: Option<u64>,
    pub max_pid_namespaces: Option<u64>,
    pub max_ipc_namespaces: Option<u64>,
    pub max_uts_namespaces: Option<u64>,
    pub max_net_namespaces: Option<u64>,
    /// `fs.mount-max`: mounts per mount namespace.
    pub mount_max: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu).
    pub apparmor_restrict_userns: Option<u64>,
    /// The caller's AppArmor label, such as `unconfined` or `docker-default (enforce)`.
    pub apparmor_label: Option<String>,
    /// A profile in `/etc/apparmor.d` that names this program.
    pub apparmor_profile: Option<HostPath>,
    pub selinux_enforcing: bool,
    /// `Seccomp` of `/proc/self/status`: 0 off, 1 strict, 2 a filter.
    pub seccomp: u64,
    /// `kernel.yama.ptrace_scope`.
    pub ptrace_scope: Option<u64>,
    /// `/proc` is there.
    pub proc_mounted: bool,
    /// `/proc/self/ns/user` is there: the kernel knows user namespaces.
    pub kernel_has_user_namespaces: bool,
    /// The caller's root is not the root of its mount namespace.
    pub chroot: bool,
    /// The caller is already in a user namespace that is not the host's.
    pub nested: bool,
    /// The caller's uid or gid has no name in the namespace around it.
    pub unmapped_caller: bool,
    /// Places of `/proc` that something was mounted over.
    pub masked_proc: Vec<HostPath>,
    pub container: Option<ContainerEngine>,
    /// This program, for cures that name it.
    pub program: Option<HostPath>,
    pub kernel: Option<Kernel>,
}

impl Switches {
    /// Whether the kernel is known to be older than `version`. Distributions bring some of what is new to old kernels, so
    /// this explains what failed, and decides nothing.
    pub fn is_older_than(&self, version: (u32, u32)) -> bool {
        let own = self.kernel.as_ref().map_or((0, 0), Kernel::version);
        own != (0, 0) && own < version
    }
}

/// What put the caller in a container, as far as it left a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerEngine {
    Docker,
    Podman,
    Kubernetes,
    /// Some other, such as a SIF container.
    Other,
}

/// A directory for temporary files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemporaryDirectory {
    pub path: HostPath,
    /// `TMPDIR` and the like, when a variable named it.
    pub variable: Option<String>,
    /// Why nothing can be written there.
    pub unwritable: Option<i32>,
    pub noexec: bool,
    pub nodev: bool,
    /// Bytes that the caller may still write.
    pub free_bytes: u64,
}

/// How the caller's control groups can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlGroups {
    /// Nothing is mounted where they belong.
    Absent,
    /// Only the first version, which can't be handed to users.
    Version1,
    /// The second version, and the caller's own group.
    Version2 {
        group: HostPath,
        /// Whether the caller may make groups in it.
        delegated: bool,
        controllers: Vec<String>,
        /// `systemd-run` is there, and a manager of the user's is running.
        user_manager: bool,
    },
}

/// An interpreter that the kernel runs programs of other machines with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinaryFormat {
    /// Such as `qemu-aarch64`.
    pub name: String,
    pub enabled: bool,
    /// Loaded when it was registered (flag `F`), so that it works inside containers too.
    pub fixed: bool,
}

/// Everything that `doctor` judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResults {
    pub uid: u32,
    pub user_name: String,
    pub entry_source: EntrySource,
    pub kernel: Kernel,
    pub switches: Switches,
    pub fuse: FuseDevice,
    /// One outcome per attempt, in the order of [`Attempt::ALL`].
    pub outcomes: Vec<(Attempt, Outcome)>,
    pub subordinate_ids: SubordinateIds,
    pub temporary_directories: Vec<TemporaryDirectory>,
    pub control_groups: ControlGroups,
    /// `None` when the kernel offers none.
    pub binary_formats: Option<Vec<BinaryFormat>>,
}

impl ProbeResults {
    /// How `attempt` went.
    pub fn outcome(&self, attempt: Attempt) -> Outcome {
        self.outcomes.iter().find(|(of, _)| *of == attempt).map_or(Outcome::NotTried, |(_, outcome)| *outcome)
    }
}

/// What `doctor` finds on a machine where everything works: the base of the samples that tests judge.
pub fn probed_laptop() -> ProbeResults {
    let facts = super::laptop();
    ProbeResults {
        uid: facts.user.uid,
        user_name: "ada".to_owned(),
        entry_source: facts.user.entry_source,
        kernel: facts.kernel.clone(),
        switches: Switches {
            max_user_namespaces: Some(63_000),
            max_mnt_namespaces: Some(63_000),
            max_pid_namespaces: Some(63_000),
            max_ipc_namespaces: Some(63_000),
            max_uts_namespaces: Some(63_000),
            max_net_namespaces: Some(63_000),
            mount_max: Some(100_000),
            ptrace_scope: Some(0),
            proc_mounted: true,
            kernel_has_user_namespaces: true,
            program: Some(HostPath::new("/usr/bin/sifu")),
            kernel: Some(facts.kernel),
            ..Switches::default()
        },
        fuse: FuseDevice::Usable,
        outcomes: Attempt::ALL.into_iter().map(|attempt| (attempt, Outcome::Done)).collect(),
        subordinate_ids: facts.subordinate_ids.unwrap_or_default(),
        temporary_directories: vec![TemporaryDirectory {
            path: HostPath::new("/tmp"),
            variable: None,
            unwritable: None,
            noexec: false,
            nodev: true,
            free_bytes: 64 << 30,
        }],
        control_groups: ControlGroups::Version2 {
            group: HostPath::new("/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice"),
            delegated: true,
            controllers: ["cpu", "memory", "pids"].map(str::to_owned).to_vec(),
            user_manager: true,
        },
        binary_formats: Some(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_is_found_by_its_name() {
        for attempt in Attempt::ALL {
            assert_eq!(Attempt::from_name(attempt.name()), Some(attempt));
        }
        assert_eq!(Attempt::from_name("dance"), None);
    }
}
