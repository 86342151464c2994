//! Why a step of a start failed on this host, and what cures it: an errno and the host's switches in, a cause out.
//!
//! One errno has many causes (EPERM of `unshare` has six known ones). Here those that the switches prove come first,
//! then those that they make likely; what is left is told as the kernel's answer, with no guess. `doctor` judges its
//! probes by the same function, so its page and the message of a failed start can't disagree.

mod findings;

use std::fmt;

pub use findings::{Finding, State, Verdict, Weight, diagnose, verdict};

use crate::host::facts::{Attempt, ContainerEngine, FuseDevice, NamespaceBlock, Outcome, Switches, UserNamespaces};
use crate::report::Hint;

/// Numbers of errors, the same on every machine that sifu runs on.
pub(super) mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const ENXIO: i32 = 6;
    pub const EACCES: i32 = 13;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const ENOSYS: i32 = 38;
    pub const EUSERS: i32 = 87;
}

/// Why a step can't be done on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Namespaces(NamespaceBlock),
    /// A limit on namespaces of one more kind: the name of the setting and its value.
    NamespaceLimit {
        setting: &'static str,
        limit: u64,
    },
    /// The caller's AppArmor profile allows no mounts.
    ConfinedByAppArmor {
        label: String,
    },
    /// `/proc` is not mounted.
    ProcMissing,
    /// `/proc` is mounted read-only.
    ProcReadOnly,
    /// Parts of `/proc` are covered, and the kernel gives no fresh one that would uncover them.
    ProcMasked,
    Fuse(FuseDevice),
    /// The device was opened in another user namespace than the one that mounts.
    FuseOfAnotherNamespace,
    /// The kernel is older than the release that allows this to users.
    KernelTooOld {
        needed: (u32, u32),
    },
    /// The kernel has no driver for the filesystem.
    FilesystemMissing {
        module: &'static str,
    },
    /// The filesystems below can't be layers of an overlay.
    OverlayLayers,
    /// `fs.mount-max` has been reached.
    TooManyMounts {
        limit: Option<u64>,
    },
    /// `newuidmap` or `newgidmap` is not there.
    MapHelperMissing,
    /// `newuidmap` or `newgidmap` did not write the map.
    MapHelperRefused,
    /// No known switch explains it: the kernel's bare answer.
    Unexplained,
}

/// Who can cure something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CuredBy {
    Administrator,
    Caller,
    /// Whoever starts the container that the caller is in.
    ContainerStarter,
}

/// What to do about a cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cure {
    pub by: CuredBy,
    /// What the command does, as it would follow "can".
    pub advice: String,
    /// The one command; `None` where no command can do it.
    pub command: Option<String>,
}

impl Cure {
    fn new(by: CuredBy, advice: impl Into<String>, command: impl Into<String>) -> Self {
        Self { by, advice: advice.into(), command: Some(command.into()) }
    }

    fn advice(by: CuredBy, advice: impl Into<String>) -> Self {
        Self { by, advice: advice.into(), command: None }
    }

    /// A setting of the kernel, for now and for the next boot.
    fn sysctl(advice: &str, setting: &str, value: u64) -> Self {
        let command = format!(
            "echo {setting}={value} | sudo tee /etc/sysctl.d/90-sifu.conf && sudo sysctl -p /etc/sysctl.d/90-sifu.conf"
        );
        Self::new(CuredBy::Administrator, advice, command)
    }
}

impl fmt::Display for Cure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.by {
            CuredBy::Administrator => "An administrator",
            CuredBy::Caller => "You",
            CuredBy::ContainerStarter => "Whoever starts the surrounding container",
        };
        match &self.command {
            Some(command) => write!(f, "{who} can {} with `{command}`.", self.advice),
            None => write!(f, "{who} can {}.", self.advice),
        }
    }
}

/// A failed step, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    pub attempt: Attempt,
    pub errno: i32,
    pub cause: Cause,
    pub cure: Option<Cure>,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: ", doing(self.attempt))?;
        match &self.cause {
            Cause::Unexplained => f.write_str(&errno_text(self.errno)),
            cause => write!(f, "{cause}"),
        }
    }
}

impl Hint for Diagnosis {
    fn hints(&self) -> Vec<String> {
        let mut hints = match &self.cure {
            Some(cure) => vec![cure.to_string()],
            // The kernel shows a process no sign of a chroot whose root is a mount, nor of most security modules.
            None if self.attempt == Attempt::UnshareUser && self.errno == errno::EPERM => vec![
                "No known switch forbids it; a chroot or a security module can. `sifu doctor` shows what works here."
                    .to_owned(),
            ],
            None => vec!["No known switch explains it; `sifu doctor` shows what works here.".to_owned()],
        };
        if self.attempt == Attempt::MountFuse {
            hints.push("`--unsquash` unpacks the image into a temporary directory instead.".to_owned());
        }
        hints
    }
}

impl std::error::Error for Diagnosis {}

/// Explains why `attempt` gave `errno`, by the switches of the host and what is known about `/dev/fuse`.
pub fn explain(attempt: Attempt, errno: i32, switches: &Switches, fuse: FuseDevice) -> Diagnosis {
    let cause = match attempt {
        Attempt::UnshareUser => unshare_user(errno, switches),
        Attempt::DenySetgroups | Attempt::WriteUidMap | Attempt::WriteGidMap => write_map(errno, switches),
        Attempt::RunNewuidmap | Attempt::RunNewgidmap if errno == errno::ENOENT => Cause::MapHelperMissing,
        Attempt::RunNewuidmap | Attempt::RunNewgidmap => Cause::MapHelperRefused,
        Attempt::OpenFuse => open_fuse(errno, fuse),
        Attempt::UnshareMounts
        | Attempt::UnsharePid
        | Attempt::UnshareIpc
        | Attempt::UnshareUts
        | Attempt::UnshareNet => unshare_other(attempt, errno, switches),
        Attempt::MakeSlave
        | Attempt::MountTmpfs
        | Attempt::MountFuse
        | Attempt::Bind
        | Attempt::MountOverlay
        | Attempt::MountProc
        | Attempt::PivotRoot => mount(attempt, errno, switches),
        Attempt::JoinNamespaces => refused(errno, switches),
        Attempt::EmulateRoot => match errno {
            errno::EINVAL | errno::ENOSYS if switches.is_older_than((5, 9)) => Cause::KernelTooOld { needed: (5, 9) },
            errno => refused(errno, switches),
        },
    };
    let cure = cure(attempt, &cause, switches);
    Diagnosis { attempt, errno, cause, cure }
}

/// Says what a tried user namespace means for a plan.
pub fn user_namespaces(outcome: Outcome, switches: &Switches) -> UserNamespaces {
    match outcome {
        Outcome::Done => UserNamespaces::Usable,
        Outcome::NotTried | Outcome::TimedOut => UserNamespaces::NotObserved,
        Outcome::Failed { errno } => match unshare_user(errno, switches) {
            Cause::Namespaces(block) => UserNamespaces::Blocked(block),
            _ => UserNamespaces::Blocked(NamespaceBlock::Unknown),
        },
    }
}

fn unshare_user(errno: i32, switches: &Switches) -> Cause {
    let block = match errno {
        // What the switches prove stands before what they allow to suspect: a filter may be a harmless one.
        errno::EPERM if switches.unprivileged_userns_clone == Some(0) => NamespaceBlock::CloneSwitch,
        errno::EPERM if switches.chroot => NamespaceBlock::Chroot,
        errno::EPERM if switches.unmapped_caller => NamespaceBlock::UnmappedCaller,
        errno::ENOSPC if switches.max_user_namespaces == Some(0) => NamespaceBlock::NamespacesForbidden,
        errno::ENOSPC => match switches.max_user_namespaces {
            Some(limit) => NamespaceBlock::NamespacesUsedUp { limit },
            None => return Cause::Unexplained,
        },
        errno::EUSERS => NamespaceBlock::NestedTooDeep,
        errno::EINVAL | errno::ENOSYS if !switches.kernel_has_user_namespaces => NamespaceBlock::KernelWithout,
        _ => return refused(errno, switches),
    };
    Cause::Namespaces(block)
}

/// Causes that any step in or around a user namespace can have.
fn refused(errno: i32, switches: &Switches) -> Cause {
    let confined = switches.apparmor_label.as_deref().is_some_and(|label| label.ends_with("(enforce)"));
    let filtered = switches.seccomp == 2;
    match errno {
        errno::EPERM | errno::ENOSYS if filtered => Cause::Namespaces(NamespaceBlock::Seccomp),
        errno::EPERM | errno::EACCES if switches.apparmor_restrict_userns.is_some_and(|value| value != 0) => {
            Cause::Namespaces(NamespaceBlock::AppArmor)
        }
        errno::EACCES if confined => {
            Cause::ConfinedByAppArmor { label: switches.apparmor_label.clone().unwrap_or_default() }
        }
        errno::EACCES if switches.selinux_enforcing => Cause::Namespaces(NamespaceBlock::SecurityModule),
        _ => Cause::Unexplained,
    }
}

fn write_map(errno: i32, switches: &Switches) -> Cause {
    match errno {
        errno::ENOENT if !switches.proc_mounted => Cause::ProcMissing,
        errno::EROFS => Cause::ProcReadOnly,
        errno::EPERM if switches.unmapped_caller => Cause::Namespaces(NamespaceBlock::UnmappedCaller),
        // A filter sees no file names: it can't be the one that refuses a write.
        _ => match refused(errno, switches) {
            Cause::Namespaces(NamespaceBlock::Seccomp) if switches.apparmor_restrict_userns == Some(1) => {
                Cause::Namespaces(NamespaceBlock::AppArmor)
            }
            Cause::Namespaces(NamespaceBlock::Seccomp) => Cause::Unexplained,
            cause => cause,
        },
    }
}

fn open_fuse(errno: i32, fuse: FuseDevice) -> Cause {
    Cause::Fuse(match (errno, fuse) {
        (errno::ENOENT, _) => FuseDevice::Missing,
        (errno::ENODEV | errno::ENXIO, _) => FuseDevice::NoDriver,
        (errno::EACCES, FuseDevice::Denied { .. }) | (_, FuseDevice::NotADevice) => fuse,
        (errno, _) => FuseDevice::Refused { errno },
    })
}

fn unshare_other(attempt: Attempt, errno: i32, switches: &Switches) -> Cause {
    if errno != errno::ENOSPC {
        return refused(errno, switches);
    }
    if attempt == Attempt::UnshareMounts {
        return match switches.max_mnt_namespaces {
            Some(0) => Cause::Namespaces(NamespaceBlock::MountNamespacesForbidden),
            Some(limit) => Cause::Namespaces(NamespaceBlock::MountNamespacesUsedUp { limit }),
            None => Cause::Unexplained,
        };
    }
    let (setting, limit) = match attempt {
        Attempt::UnsharePid => ("user.max_pid_namespaces", switches.max_pid_namespaces),
        Attempt::UnshareIpc => ("user.max_ipc_namespaces", switches.max_ipc_namespaces),
        Attempt::UnshareUts => ("user.max_uts_namespaces", switches.max_uts_namespaces),
        _ => ("user.max_net_namespaces", switches.max_net_namespaces),
    };
    limit.map_or(Cause::Unexplained, |limit| Cause::NamespaceLimit { setting, limit })
}

fn mount(attempt: Attempt, errno: i32, switches: &Switches) -> Cause {
    let older_than = |needed| switches.is_older_than(needed);
    match (attempt, errno) {
        (_, errno::ENOSPC) => Cause::TooManyMounts { limit: switches.mount_max },
        (Attempt::MountFuse, errno::ENODEV) => Cause::FilesystemMissing { module: "fuse" },
        (Attempt::MountOverlay, errno::ENODEV) => Cause::FilesystemMissing { module: "overlay" },
        (Attempt::MountFuse, errno::EPERM) if older_than((4, 18)) => Cause::KernelTooOld { needed: (4, 18) },
        (Attempt::MountOverlay, errno::EPERM) if older_than((5, 11)) => Cause::KernelTooOld { needed: (5, 11) },
        (Attempt::MountFuse, errno::EINVAL) => Cause::FuseOfAnotherNamespace,
        (Attempt::MountOverlay, errno::EINVAL) => Cause::OverlayLayers,
        (Attempt::MountProc, errno::EPERM) if !switches.masked_proc.is_empty() => Cause::ProcMasked,
        (_, errno) => refused(errno, switches),
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespaces(block) => f.write_str(&block_text(*block)),
            Self::NamespaceLimit { setting, limit: 0 } => write!(f, "`{setting}` is 0"),
            Self::NamespaceLimit { setting, limit } => write!(f, "the limit `{setting}` of {limit} has been reached"),
            Self::ConfinedByAppArmor { label } => write!(f, "the AppArmor profile `{label}` forbids it"),
            Self::ProcMissing => f.write_str("`/proc` is not mounted"),
            Self::ProcReadOnly => f.write_str("`/proc` is mounted read-only"),
            Self::ProcMasked => f.write_str("parts of `/proc` are covered by other mounts"),
            Self::Fuse(fuse) => f.write_str(&fuse_text(*fuse)),
            Self::FuseOfAnotherNamespace => {
                f.write_str("`/dev/fuse` was opened in another user namespace, or an option of the mount is unknown")
            }
            Self::KernelTooOld { needed: (major, minor) } => {
                write!(f, "the kernel is older than {major}.{minor}, which is the first to allow it to users")
            }
            Self::FilesystemMissing { module } => write!(f, "the kernel module `{module}` is not loaded"),
            Self::OverlayLayers => {
                f.write_str("the filesystems below can't be layers of an overlay, or there are too many layers")
            }
            Self::TooManyMounts { limit: Some(limit) } => {
                write!(f, "the limit `fs.mount-max` of {limit} mounts has been reached")
            }
            Self::TooManyMounts { limit: None } => f.write_str("there are too many mounts"),
            Self::MapHelperMissing => f.write_str("`newuidmap` or `newgidmap` is not installed"),
            Self::MapHelperRefused => {
                f.write_str("the host's `newuidmap` or `newgidmap` did not map the caller's range of ids")
            }
            Self::Unexplained => f.write_str("the kernel refused it"),
        }
    }
}

fn block_text(block: NamespaceBlock) -> String {
    match block {
        NamespaceBlock::KernelWithout => "this kernel has no user namespaces".to_owned(),
        NamespaceBlock::CloneSwitch => "`kernel.unprivileged_userns_clone` is 0".to_owned(),
        NamespaceBlock::NamespacesForbidden => "`user.max_user_namespaces` is 0".to_owned(),
        NamespaceBlock::NamespacesUsedUp { limit } => {
            format!("the limit `user.max_user_namespaces` of {limit}, or that of a namespace around, has been reached")
        }
        NamespaceBlock::NestedTooDeep => "user namespaces are nested too deeply".to_owned(),
        NamespaceBlock::MountNamespacesForbidden => "`user.max_mnt_namespaces` is 0".to_owned(),
        NamespaceBlock::MountNamespacesUsedUp { limit } => {
            format!("the limit `user.max_mnt_namespaces` of {limit}, or that of a namespace around, has been reached")
        }
        NamespaceBlock::AppArmor => "AppArmor lets only programs with a profile use user namespaces \
             (`kernel.apparmor_restrict_unprivileged_userns` is 1)"
            .to_owned(),
        NamespaceBlock::Seccomp => "a system call filter (seccomp) around this process forbids it".to_owned(),
        NamespaceBlock::Chroot => "this process is in a chroot, where the kernel allows no user namespace".to_owned(),
        NamespaceBlock::UnmappedCaller => {
            "the caller's uid or gid has no mapping in the user namespace that it is in".to_owned()
        }
        NamespaceBlock::SecurityModule => "SELinux's policy forbids it".to_owned(),
        NamespaceBlock::Unknown => "the kernel refused it".to_owned(),
    }
}

fn fuse_text(fuse: FuseDevice) -> String {
    match fuse {
        FuseDevice::NotObserved | FuseDevice::Usable => "`/dev/fuse` could be opened before and no longer".to_owned(),
        FuseDevice::Missing => "there is no `/dev/fuse`".to_owned(),
        FuseDevice::Denied { mode, uid, gid } => {
            format!("`/dev/fuse` is closed to you (mode {mode:04o}, owner {uid}:{gid})")
        }
        FuseDevice::NotADevice => "`/dev/fuse` is not the FUSE device".to_owned(),
        FuseDevice::NoDriver => "`/dev/fuse` is there, but the kernel has no driver for it".to_owned(),
        FuseDevice::Refused { errno } => format!("`/dev/fuse` can't be opened: {}", errno_text(errno)),
    }
}

fn cure(attempt: Attempt, cause: &Cause, switches: &Switches) -> Option<Cure> {
    let administrator = |advice: &str, command: &str| Some(Cure::new(CuredBy::Administrator, advice, command));
    let advice = |by, advice: &str| Some(Cure::advice(by, advice));
    match cause {
        Cause::Namespaces(block) => cure_of_block(*block, switches),
        Cause::NamespaceLimit { setting, limit } => Some(Cure::sysctl("raise the limit", setting, raised(*limit))),
        Cause::ConfinedByAppArmor { .. } if switches.container.is_some() => Some(unconfine(switches)),
        Cause::ConfinedByAppArmor { .. } => {
            advice(CuredBy::Administrator, "allow `userns` and `mount` in that profile")
        }
        Cause::ProcMissing => administrator("mount it", "sudo mount -t proc proc /proc"),
        Cause::ProcReadOnly => administrator("make it writable", "sudo mount -o remount,rw /proc"),
        Cause::ProcMasked if switches.container.is_some() => Some(unconfine(switches)),
        Cause::ProcMasked => {
            let place = switches.masked_proc.first()?;
            administrator("uncover it", &format!("sudo umount {place}"))
        }
        Cause::Fuse(FuseDevice::Missing | FuseDevice::Refused { .. }) if switches.container.is_some() => {
            Some(unconfine(switches))
        }
        Cause::Fuse(FuseDevice::Missing | FuseDevice::NoDriver) | Cause::FilesystemMissing { module: "fuse" } => {
            administrator("load the driver", "sudo modprobe fuse")
        }
        Cause::Fuse(FuseDevice::Denied { .. }) => {
            let command = "echo 'KERNEL==\"fuse\", MODE=\"0666\"' | sudo tee /etc/udev/rules.d/90-fuse.rules && sudo chmod 0666 /dev/fuse";
            administrator("open it to every user", command)
        }
        Cause::Fuse(FuseDevice::NotADevice) => {
            administrator("make the device", "sudo rm -r /dev/fuse && sudo mknod -m 0666 /dev/fuse c 10 229")
        }
        Cause::Fuse(FuseDevice::Refused { .. }) => advice(
            CuredBy::Administrator,
            "allow the character device 10:229 in the device rules of this control group",
        ),
        Cause::FilesystemMissing { module } => administrator("load it", &format!("sudo modprobe {module}")),
        Cause::KernelTooOld { needed: (major, minor) } => {
            advice(CuredBy::Administrator, &format!("install a kernel of version {major}.{minor} or later"))
        }
        Cause::OverlayLayers => advice(CuredBy::Caller, "keep the layers on a local filesystem"),
        Cause::TooManyMounts { limit } => {
            Some(Cure::sysctl("raise the limit", "fs.mount-max", raised(limit.unwrap_or(100_000))))
        }
        Cause::MapHelperMissing => {
            administrator("install both", "sudo apt install uidmap || sudo dnf install shadow-utils")
        }
        Cause::MapHelperRefused => {
            administrator("give them their privilege", "sudo chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap")
        }
        Cause::FuseOfAnotherNamespace
        | Cause::Fuse(FuseDevice::NotObserved | FuseDevice::Usable)
        | Cause::Unexplained => match attempt {
            Attempt::PivotRoot => advice(CuredBy::Administrator, "boot with a root that is not the initial ramdisk"),
            _ => None,
        },
    }
}

fn cure_of_block(block: NamespaceBlock, switches: &Switches) -> Option<Cure> {
    let allow = "allow user namespaces";
    Some(match block {
        NamespaceBlock::KernelWithout => {
            Cure::advice(CuredBy::Administrator, "install a kernel that was built with `CONFIG_USER_NS`")
        }
        NamespaceBlock::CloneSwitch => Cure::sysctl(allow, "kernel.unprivileged_userns_clone", 1),
        NamespaceBlock::NamespacesForbidden => Cure::sysctl(allow, "user.max_user_namespaces", raised(0)),
        NamespaceBlock::NamespacesUsedUp { limit } => {
            Cure::sysctl("raise the limit", "user.max_user_namespaces", raised(limit))
        }
        NamespaceBlock::MountNamespacesForbidden => {
            Cure::sysctl("allow mount namespaces", "user.max_mnt_namespaces", raised(0))
        }
        NamespaceBlock::MountNamespacesUsedUp { limit } => {
            Cure::sysctl("raise the limit", "user.max_mnt_namespaces", raised(limit))
        }
        NamespaceBlock::AppArmor => apparmor_cure(switches),
        NamespaceBlock::Seccomp => unconfine(switches),
        NamespaceBlock::NestedTooDeep => Cure::advice(CuredBy::Caller, "start it from a less deeply nested container"),
        NamespaceBlock::Chroot => Cure::advice(
            CuredBy::Administrator,
            "enter that tree with `pivot_root` (as `systemd-nspawn` and `bwrap` do) instead of `chroot`",
        ),
        NamespaceBlock::UnmappedCaller => {
            Cure::advice(CuredBy::ContainerStarter, "map the caller's uid and gid into its user namespace")
        }
        NamespaceBlock::SecurityModule => Cure::new(
            CuredBy::Administrator,
            "see which rule refused it",
            "sudo ausearch -m avc -ts recent | audit2why",
        ),
        NamespaceBlock::Unknown => return None,
    })
}

/// A profile for this program alone, which is all that AppArmor asks for.
fn apparmor_cure(switches: &Switches) -> Cure {
    let program = switches.program.as_ref().map_or_else(|| "/usr/bin/sifu".to_owned(), ToString::to_string);
    let profile = format!(
        "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile sifu {program} flags=(unconfined) {{\\n  userns,\\n}}\\n' \
         | sudo tee /etc/apparmor.d/sifu && sudo apparmor_parser -r /etc/apparmor.d/sifu"
    );
    match &switches.apparmor_profile {
        Some(path) => Cure::new(
            CuredBy::Administrator,
            "load the profile that is there",
            format!("sudo apparmor_parser -r {path}"),
        ),
        None => Cure::new(CuredBy::Administrator, "give this program a profile", profile),
    }
}

/// What takes a filter, a profile and masks away: options of the engine that set them.
fn unconfine(switches: &Switches) -> Cure {
    let starter = CuredBy::ContainerStarter;
    match switches.container {
        Some(ContainerEngine::Docker) => Cure::new(
            starter,
            "lift its restrictions",
            "docker run --device /dev/fuse --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
             --security-opt systempaths=unconfined IMAGE",
        ),
        Some(ContainerEngine::Podman) => Cure::new(
            starter,
            "lift its restrictions",
            "podman run --device /dev/fuse --security-opt seccomp=unconfined --security-opt label=disable \
             --security-opt unmask=ALL IMAGE",
        ),
        Some(ContainerEngine::Kubernetes) => Cure::advice(
            starter,
            "lift its restrictions in the pod's securityContext: `seccompProfile: {type: Unconfined}`, \
             `appArmorProfile: {type: Unconfined}`, `procMount: Unmasked`, and a device plugin for `/dev/fuse`",
        ),
        Some(ContainerEngine::Other) => {
            Cure::advice(starter, "start it without a system call filter, masks in `/proc`, or a `/dev` of its own")
        }
        None => Cure::advice(
            CuredBy::Administrator,
            "take the restriction from the service that this session runs in (systemd: `RestrictNamespaces=`, \
             `SystemCallFilter=`)",
        ),
    }
}

/// A limit with room to spare.
fn raised(limit: u64) -> u64 {
    limit.saturating_mul(2).clamp(15_000, 1 << 31)
}

/// What a step is for, as it would follow "cannot".
fn doing(attempt: Attempt) -> &'static str {
    match attempt {
        Attempt::UnshareUser => "create a user namespace",
        Attempt::DenySetgroups => "give up setgroups in the user namespace",
        Attempt::WriteUidMap => "map the caller's uid into the user namespace",
        Attempt::WriteGidMap => "map the caller's gid into the user namespace",
        Attempt::RunNewuidmap => "map the caller's range of uids with newuidmap",
        Attempt::RunNewgidmap => "map the caller's range of gids with newgidmap",
        Attempt::OpenFuse => "serve the image through FUSE",
        Attempt::UnshareMounts => "create a mount namespace",
        Attempt::MakeSlave => "cut the mount namespace off from the host's",
        Attempt::MountTmpfs => "mount a tmpfs",
        Attempt::MountFuse => "mount the image through FUSE",
        Attempt::Bind => "bind a directory of the host",
        Attempt::MountOverlay => "mount an overlay",
        Attempt::UnsharePid => "create a pid namespace",
        Attempt::MountProc => "mount a fresh /proc",
        Attempt::UnshareIpc => "create an ipc namespace",
        Attempt::UnshareUts => "create a uts namespace",
        Attempt::UnshareNet => "create a network namespace",
        Attempt::PivotRoot => "enter the container's root",
        Attempt::JoinNamespaces => "join the namespaces of a running container",
        Attempt::EmulateRoot => "answer system calls in the kernel's place",
    }
}

/// The system's words for an error number and the number itself: `Operation not permitted (error 1)`.
fn errno_text(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string().replace("(os error", "(error")
}

#[cfg(test)]
mod tests {
    use super::errno::*;
    use super::*;
    use crate::host::facts::{Kernel, probed_laptop};
    use starter::paths::HostPath;

    fn laptop() -> Switches {
        probed_laptop().switches
    }

    fn kernel(release: &str) -> Option<Kernel> {
        Some(Kernel { release: release.to_owned(), machine: "x86_64".to_owned(), hostname: Vec::new() })
    }

    /// Explains a failure on a machine with these switches; message and hints have to hold the words.
    #[track_caller]
    fn check(attempt: Attempt, errno: i32, switches: &Switches, message: &str, hint: &str) {
        let diagnosis = explain(attempt, errno, switches, FuseDevice::Usable);
        assert!(diagnosis.to_string().contains(message), "{diagnosis}");
        assert!(diagnosis.hints().join("\n").contains(hint), "{:?}", diagnosis.hints());
    }

    #[test]
    fn each_cause_of_a_refused_user_namespace_is_named() {
        let at =
            |errno, switches: &Switches, message, hint| check(Attempt::UnshareUser, errno, switches, message, hint);
        at(
            EPERM,
            &Switches { unprivileged_userns_clone: Some(0), seccomp: 2, ..laptop() },
            "`kernel.unprivileged_userns_clone` is 0",
            "kernel.unprivileged_userns_clone=1",
        );
        at(EPERM, &Switches { chroot: true, seccomp: 2, ..laptop() }, "in a chroot", "pivot_root");
        at(EPERM, &Switches { unmapped_caller: true, ..laptop() }, "no mapping", "map the caller's uid");
        at(
            EPERM,
            &Switches { seccomp: 2, container: Some(ContainerEngine::Docker), ..laptop() },
            "system call filter",
            "docker run --device /dev/fuse",
        );
        at(
            EPERM,
            &Switches { seccomp: 2, container: Some(ContainerEngine::Podman), ..laptop() },
            "system call filter",
            "podman run",
        );
        at(EPERM, &Switches { seccomp: 2, ..laptop() }, "system call filter", "RestrictNamespaces=");
        at(
            EACCES,
            &Switches { apparmor_restrict_userns: Some(1), ..laptop() },
            "AppArmor",
            "profile sifu /usr/bin/sifu flags=(unconfined)",
        );
        at(EACCES, &Switches { selinux_enforcing: true, ..laptop() }, "SELinux", "ausearch");
        at(
            ENOSPC,
            &Switches { max_user_namespaces: Some(0), ..laptop() },
            "`user.max_user_namespaces` is 0",
            "user.max_user_namespaces=15000",
        );
        at(ENOSPC, &laptop(), "`user.max_user_namespaces` of 63000", "user.max_user_namespaces=126000");
        at(EUSERS, &laptop(), "nested too deeply", "less deeply");
        at(EINVAL, &Switches { kernel_has_user_namespaces: false, ..laptop() }, "no user namespaces", "CONFIG_USER_NS");
        at(ENOSYS, &Switches { seccomp: 2, ..laptop() }, "system call filter", "");
    }

    #[test]
    fn what_no_switch_explains_is_told_without_a_guess() {
        for errno in [EPERM, EACCES, EINVAL, 12] {
            let diagnosis = explain(Attempt::UnshareUser, errno, &laptop(), FuseDevice::Usable);
            assert_eq!((&diagnosis.cause, &diagnosis.cure), (&Cause::Unexplained, &None), "{errno}");
            assert!(diagnosis.to_string().contains(&format!("(error {errno})")), "{diagnosis}");
            assert!(diagnosis.hints()[0].contains("sifu doctor"));
        }
    }

    #[test]
    fn a_tried_namespace_becomes_a_fact_for_the_plan() {
        let closed = Switches { max_user_namespaces: Some(0), ..laptop() };
        let check = |outcome, expected| assert_eq!(user_namespaces(outcome, &closed), expected);
        check(Outcome::Done, UserNamespaces::Usable);
        check(Outcome::NotTried, UserNamespaces::NotObserved);
        let errno = ENOSPC;
        check(Outcome::Failed { errno }, UserNamespaces::Blocked(NamespaceBlock::NamespacesForbidden));
        check(Outcome::Failed { errno: EINVAL }, UserNamespaces::Blocked(NamespaceBlock::Unknown));
    }

    #[test]
    fn a_profile_that_is_there_has_only_to_be_loaded() {
        let switches = Switches {
            apparmor_restrict_userns: Some(1),
            apparmor_profile: Some(HostPath::new("/etc/apparmor.d/sifu")),
            ..laptop()
        };
        check(Attempt::WriteUidMap, EPERM, &switches, "AppArmor", "apparmor_parser -r /etc/apparmor.d/sifu");
    }

    #[test]
    fn a_filter_is_not_blamed_for_a_write() {
        let filtered = Switches { seccomp: 2, ..laptop() };
        assert_eq!(explain(Attempt::WriteUidMap, EPERM, &filtered, FuseDevice::Usable).cause, Cause::Unexplained);
        let both = Switches { apparmor_restrict_userns: Some(1), ..filtered };
        check(Attempt::WriteUidMap, EPERM, &both, "AppArmor", "profile");
        check(Attempt::DenySetgroups, EROFS, &laptop(), "read-only", "remount,rw");
        check(Attempt::WriteGidMap, ENOENT, &Switches::default(), "not mounted", "mount -t proc");
    }

    #[test]
    fn each_state_of_the_fuse_device_has_its_cure() {
        let at = |errno, fuse, message: &str, hint: &str| {
            let diagnosis = explain(Attempt::OpenFuse, errno, &laptop(), fuse);
            assert!(diagnosis.to_string().contains(message), "{diagnosis}");
            assert!(diagnosis.hints()[0].contains(hint), "{:?}", diagnosis.hints());
        };
        at(ENOENT, FuseDevice::Missing, "there is no `/dev/fuse`", "modprobe fuse");
        at(EACCES, FuseDevice::Denied { mode: 0o600, uid: 0, gid: 0 }, "mode 0600, owner 0:0", "MODE=\"0666\"");
        at(ENODEV, FuseDevice::NoDriver, "no driver", "modprobe fuse");
        at(EPERM, FuseDevice::Refused { errno: EPERM }, "can't be opened", "10:229");
        at(EINVAL, FuseDevice::NotADevice, "not the FUSE device", "mknod");
        let docker = Switches { container: Some(ContainerEngine::Docker), ..laptop() };
        check(Attempt::OpenFuse, ENOENT, &docker, "no `/dev/fuse`", "--device /dev/fuse");
    }

    #[test]
    fn mounts_fail_for_reasons_of_their_own() {
        let old = Switches { kernel: kernel("3.10.0-1160.el7.x86_64"), ..laptop() };
        check(Attempt::MountFuse, EPERM, &old, "older than 4.18", "4.18 or later");
        check(Attempt::MountFuse, EPERM, &old, "older than 4.18", "--unsquash");
        let el8 = Switches { kernel: kernel("4.18.0-553.el8_10.x86_64"), ..laptop() };
        check(Attempt::MountOverlay, EPERM, &el8, "older than 5.11", "5.11 or later");
        check(Attempt::MountOverlay, ENODEV, &laptop(), "`overlay` is not loaded", "modprobe overlay");
        check(Attempt::MountFuse, ENODEV, &laptop(), "`fuse` is not loaded", "modprobe fuse");
        check(Attempt::MountOverlay, EINVAL, &laptop(), "layers of an overlay", "local filesystem");
        check(Attempt::MountFuse, EINVAL, &laptop(), "another user namespace", "");
        check(Attempt::Bind, ENOSPC, &laptop(), "`fs.mount-max` of 100000", "fs.mount-max=200000");
        let docker = Switches {
            masked_proc: vec![HostPath::new("/proc/kcore")],
            container: Some(ContainerEngine::Docker),
            ..laptop()
        };
        check(Attempt::MountProc, EPERM, &docker, "parts of `/proc`", "systempaths=unconfined");
        let confined = Switches { apparmor_label: Some("docker-default (enforce)".into()), ..docker };
        check(Attempt::MountTmpfs, EACCES, &confined, "`docker-default (enforce)`", "apparmor=unconfined");
        let ubuntu = Switches { apparmor_restrict_userns: Some(1), ..laptop() };
        check(Attempt::UnshareMounts, EPERM, &ubuntu, "AppArmor", "profile sifu");
    }

    #[test]
    fn each_kind_of_namespace_has_its_limit() {
        let none = Switches { max_mnt_namespaces: Some(0), max_net_namespaces: Some(0), ..laptop() };
        check(Attempt::UnshareMounts, ENOSPC, &none, "`user.max_mnt_namespaces` is 0", "max_mnt_namespaces=15000");
        check(Attempt::UnshareNet, ENOSPC, &none, "`user.max_net_namespaces` is 0", "max_net_namespaces=15000");
        check(Attempt::UnsharePid, ENOSPC, &laptop(), "`user.max_pid_namespaces` of 63000", "=126000");
    }

    #[test]
    fn every_attempt_with_every_error_has_words() {
        let whole = Switches { masked_proc: vec![HostPath::new("/proc/kcore")], ..laptop() };
        for attempt in Attempt::ALL {
            for errno in 1..134 {
                for switches in [&whole, &Switches::default()] {
                    let diagnosis = explain(attempt, errno, switches, FuseDevice::NotObserved);
                    assert!(diagnosis.to_string().starts_with("cannot "), "{diagnosis}");
                    // The cure, or that there is none; and what goes without.
                    let expected = if attempt == Attempt::MountFuse { 2 } else { 1 };
                    assert_eq!(diagnosis.hints().len(), expected, "{diagnosis}");
                }
            }
        }
    }
}
