//! What is known about a host, as plain values: a test writes one down, and so can a user's report.
//!
//! Nothing here looks at anything. Names and paths are bytes, as the host has them.

mod accelerators;
mod mpi;
mod probed;

use std::collections::BTreeMap;

pub use accelerators::*;
pub use mpi::*;
pub use probed::*;
use starter::paths::HostPath;

/// A snapshot of the host, taken only as far as the request needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    pub user: User,
    pub home: Home,
    pub working_directory: WorkingDirectory,
    /// The caller's file mode creation mask.
    pub umask: u32,
    /// Whether the caller may mount without a user namespace: real root, as a rule.
    pub may_mount: bool,
    pub kernel: Kernel,
    pub fuse: FuseDevice,
    pub user_namespaces: UserNamespaces,
    /// `None` when the request did not ask (see [`SubordinateIds`]).
    pub subordinate_ids: Option<SubordinateIds>,
    /// The mount table, in the kernel's order; `None` when the request did not ask or it can't be read.
    pub mounts: Option<Vec<Mount>>,
    /// All false when the request did not ask.
    pub terminal: Terminal,
    /// Those host paths that the request asked about.
    pub paths: BTreeMap<HostPath, PathFacts>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups in the kernel's order, without repetitions; may or may not hold `gid`.
    pub groups: Vec<u32>,
    pub entry: UserEntry,
    pub entry_source: EntrySource,
    /// Names of `gid` and `groups`, as far as they are known.
    pub group_names: BTreeMap<u32, Vec<u8>>,
}

/// A user's line of the password file, without the fields that a container has no use for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserEntry {
    pub name: Vec<u8>,
    pub gecos: Vec<u8>,
    pub home: HostPath,
    pub shell: Vec<u8>,
}

/// Where a [`UserEntry`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntrySource {
    /// `/etc/passwd`.
    PasswordFile,
    /// The host's name service (LDAP, SSSD, NIS), asked through `getent`.
    NameService,
    /// Nobody knows this uid: made from `HOME`, `USER` and `SHELL`.
    Environment,
}

/// The caller's home directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// As the user entry names it.
    pub logical: HostPath,
    /// Without symbolic links; `None` when it is absent, no directory, or out of reach.
    pub physical: Option<HostPath>,
}

/// Where the caller stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkingDirectory {
    Known {
        /// `$PWD` where it names the same directory, else `physical`.
        logical: HostPath,
        physical: HostPath,
    },
    /// The directory has been removed.
    Deleted,
    /// The directory is outside the caller's root, or a parent can't be searched.
    OutOfReach { errno: i32 },
}

/// What `uname` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Such as `6.8.0-45-generic`.
    pub release: String,
    /// Such as `x86_64`.
    pub machine: String,
    pub hostname: Vec<u8>,
}

impl Kernel {
    /// Returns major and minor number; `(0, 0)` when the release does not begin with them.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
            _ => (0, 0),
        }
    }
}

/// What an open of `/dev/fuse` for reading and writing would give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuseDevice {
    NotObserved,
    Usable,
    /// No such file.
    Missing,
    /// The permission bits keep the caller out.
    Denied {
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// Something else lies at that name: a file, or another device.
    NotADevice,
    /// The node is there and the kernel has no driver for it.
    NoDriver,
    /// The bits allow it and the open fails nevertheless, as under the device rules of a container (EPERM).
    Refused {
        errno: i32,
    },
}

impl FuseDevice {
    /// Whether a mount through it is worth a try: it opens, or nobody has looked.
    pub fn may_work(self) -> bool {
        matches!(self, Self::Usable | Self::NotObserved)
    }
}

/// Whether the caller can make a user namespace and be somebody in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserNamespaces {
    /// Nobody has tried. A start tries for real, and the diagnosis of a failure finds the cause.
    NotObserved,
    Usable,
    Blocked(NamespaceBlock),
}

/// What keeps an ordinary user from a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceBlock {
    /// The kernel was built without them, or they are disabled at boot.
    KernelWithout,
    /// `kernel.unprivileged_userns_clone` is 0.
    CloneSwitch,
    /// `user.max_user_namespaces` is 0.
    NamespacesForbidden,
    /// `user.max_user_namespaces` has been reached.
    NamespacesUsedUp { limit: u64 },
    /// Namespaces are nested deeper than the kernel allows (32).
    NestedTooDeep,
    /// `user.max_mnt_namespaces` is 0.
    MountNamespacesForbidden,
    /// `user.max_mnt_namespaces` has been reached.
    MountNamespacesUsedUp { limit: u64 },
    /// AppArmor's restriction of unprivileged user namespaces.
    AppArmor,
    /// A system call filter, as container engines set one.
    Seccomp,
    /// The caller's root is not that of its mount namespace.
    Chroot,
    /// The caller's uid or gid has no name in the namespace that surrounds it.
    UnmappedCaller,
    /// Another security module: the answer was EACCES, which the kernel itself does not give.
    SecurityModule,
    /// A cause that left no trace.
    Unknown,
}

/// Ranges of ids that are the caller's to map, and the programs that may map them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubordinateIds {
    /// From `/etc/subuid`, in its order.
    pub uid_ranges: Vec<IdRange>,
    /// From `/etc/subgid`, in its order.
    pub gid_ranges: Vec<IdRange>,
    pub newuidmap: Option<MapHelper>,
    pub newgidmap: Option<MapHelper>,
}

impl SubordinateIds {
    /// Whether both kinds of ids can be mapped.
    pub fn usable(&self) -> bool {
        let able = |helper: &Option<MapHelper>| helper.as_ref().is_some_and(|helper| helper.privileged);
        !self.uid_ranges.is_empty() && !self.gid_ranges.is_empty() && able(&self.newuidmap) && able(&self.newgidmap)
    }
}

/// `count` ids from `first` on. Never empty, and never beyond the last id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub first: u32,
    pub count: u32,
}

/// `newuidmap` or `newgidmap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapHelper {
    pub path: HostPath,
    /// Set-user-id root, or with file capabilities.
    pub privileged: bool,
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    pub parent: u64,
    /// Major and minor number.
    pub device: (u32, u32),
    /// The directory of the filesystem that is the root of this mount.
    pub root: Vec<u8>,
    pub mount_point: HostPath,
    /// Options of the mount itself, comma separated, such as `ro,nosuid`.
    pub options: Vec<u8>,
    /// Such as `ext4` or `fuse.squashfuse_ll`.
    pub filesystem: Vec<u8>,
    pub source: Vec<u8>,
    /// Options of the filesystem, comma separated.
    pub filesystem_options: Vec<u8>,
    /// `shared:N`, `master:N` and the like.
    pub propagation: Vec<Vec<u8>>,
}

impl Mount {
    /// Whether `option` is among the options of the mount itself.
    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(|&b| b == b',').any(|word| word == option.as_bytes())
    }
}

/// Which of the standard descriptors are terminals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terminal {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// What lies at a host path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathFacts {
    /// After following symbolic links.
    pub kind: PathKind,
    /// The target, when the path itself is a symbolic link.
    pub link: Option<Vec<u8>>,
    /// Device and inode number of what the path leads to.
    pub identity: Option<(u64, u64)>,
}

impl PathFacts {
    /// A path that leads nowhere.
    pub fn absent(errno: i32) -> Self {
        Self { kind: PathKind::Absent { errno }, link: None, identity: None }
    }

    pub fn exists(&self) -> bool {
        !matches!(self.kind, PathKind::Absent { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    Directory,
    File,
    /// A character or block device.
    Device,
    /// A socket or a named pipe.
    Other,
    /// Not there, or out of reach: what the look-up said.
    Absent {
        errno: i32,
    },
}

impl HostFacts {
    /// Returns what is known about `path`; `None` when nobody asked.
    pub fn path(&self, path: &str) -> Option<&PathFacts> {
        self.paths.get(&HostPath::new(path))
    }
}

/// A researcher's own Linux machine: everything works. The base of the samples that tests plan with.
pub fn laptop() -> HostFacts {
    let path = |path: &str| HostPath::new(path);
    let directory = || PathFacts { kind: PathKind::Directory, link: None, identity: None };
    let file = || PathFacts { kind: PathKind::File, link: None, identity: None };
    let names = [(1000, "ada"), (27, "sudo"), (100, "users")];
    HostFacts {
        user: User {
            uid: 1000,
            gid: 1000,
            groups: vec![27, 100, 1000],
            entry: UserEntry {
                name: b"ada".to_vec(),
                gecos: b"Ada Lovelace".to_vec(),
                home: path("/home/ada"),
                shell: b"/bin/bash".to_vec(),
            },
            entry_source: EntrySource::PasswordFile,
            group_names: names.into_iter().map(|(gid, name)| (gid, name.as_bytes().to_vec())).collect(),
        },
        home: Home { logical: path("/home/ada"), physical: Some(path("/home/ada")) },
        working_directory: WorkingDirectory::Known {
            logical: path("/home/ada/work"),
            physical: path("/home/ada/work"),
        },
        umask: 0o022,
        may_mount: false,
        kernel: Kernel {
            release: "6.8.0-45-generic".to_owned(),
            machine: "x86_64".to_owned(),
            hostname: b"laptop".to_vec(),
        },
        fuse: FuseDevice::Usable,
        user_namespaces: UserNamespaces::Usable,
        subordinate_ids: Some(SubordinateIds {
            uid_ranges: vec![IdRange { first: 100_000, count: 65536 }],
            gid_ranges: vec![IdRange { first: 100_000, count: 65536 }],
            newuidmap: Some(MapHelper { path: path("/usr/bin/newuidmap"), privileged: true }),
            newgidmap: Some(MapHelper { path: path("/usr/bin/newgidmap"), privileged: true }),
        }),
        mounts: None,
        terminal: Terminal { stdin: true, stdout: true, stderr: true },
        paths: [
            (path("/etc/localtime"), file()),
            (path("/etc/hosts"), file()),
            (path("/etc/resolv.conf"), file()),
            (path("/tmp"), directory()),
            (path("/var/tmp"), directory()),
            (path("/home/ada"), directory()),
            (path("/home/ada/work"), directory()),
        ]
        .into_iter()
        .collect(),
    }
}

/// A cluster's login node: no `/dev/fuse`, no subordinate ids, a home behind a symbolic link, users from LDAP.
pub fn login_node_without_fuse() -> HostFacts {
    let mut facts = laptop();
    facts.user.entry_source = EntrySource::NameService;
    facts.home.physical = Some(HostPath::new("/lustre/home/ada"));
    facts.working_directory = WorkingDirectory::Known {
        logical: HostPath::new("/home/ada/work"),
        physical: HostPath::new("/lustre/home/ada/work"),
    };
    facts.kernel.release = "4.18.0-553.el8_10.x86_64".to_owned();
    facts.kernel.hostname = b"login1".to_vec();
    facts.fuse = FuseDevice::Missing;
    facts.subordinate_ids = Some(SubordinateIds::default());
    facts
}

/// An unprivileged container of Docker's defaults, as CI runners are: a filter forbids namespaces, no `/dev/fuse`, and
/// nobody knows the uid.
pub fn docker_default() -> HostFacts {
    let mut facts = laptop();
    facts.user = User {
        uid: 12345,
        gid: 0,
        groups: vec![0],
        entry: UserEntry {
            name: b"user12345".to_vec(),
            gecos: Vec::new(),
            home: HostPath::new("/"),
            shell: b"/bin/sh".to_vec(),
        },
        entry_source: EntrySource::Environment,
        group_names: [(0, b"root".to_vec())].into_iter().collect(),
    };
    facts.home = Home { logical: HostPath::new("/"), physical: Some(HostPath::new("/")) };
    facts.working_directory =
        WorkingDirectory::Known { logical: HostPath::new("/builds"), physical: HostPath::new("/builds") };
    facts.kernel.hostname = b"4f2a6c8e9b10".to_vec();
    facts.fuse = FuseDevice::Missing;
    facts.user_namespaces = UserNamespaces::Blocked(NamespaceBlock::Seccomp);
    facts.subordinate_ids = Some(SubordinateIds::default());
    facts.terminal = Terminal::default();
    facts
}

/// A hardened machine whose administrator allows no user namespaces.
pub fn no_userns() -> HostFacts {
    let mut facts = laptop();
    facts.user_namespaces = UserNamespaces::Blocked(NamespaceBlock::NamespacesForbidden);
    facts
}

/// Returns the sample of that name: `laptop`, `login-node-without-fuse`, `docker-default` or `no-userns`.
pub fn sample(name: &str) -> Option<HostFacts> {
    match name {
        "laptop" => Some(laptop()),
        "login-node-without-fuse" => Some(login_node_without_fuse()),
        "docker-default" => Some(docker_default()),
        "no-userns" => Some(no_userns()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_version_is_read_from_any_release_text() {
        let check = |release: &str, expected| {
            let kernel = Kernel { release: release.to_owned(), machine: String::new(), hostname: Vec::new() };
            assert_eq!(kernel.version(), expected, "{release}");
        };
        check("6.8.0-45-generic", (6, 8));
        check("4.18.0-553.el8_10.x86_64", (4, 18));
        check("5.15", (5, 15));
        check("7.0-rc1", (7, 0));
        check("unknown", (0, 0));
        check("", (0, 0));
        check("99999999999.1", (0, 0));
    }

    #[test]
    fn ids_are_usable_only_with_both_ranges_and_both_privileged_helpers() {
        let whole = laptop().subordinate_ids.unwrap();
        assert!(whole.usable());
        assert!(!SubordinateIds { gid_ranges: Vec::new(), ..whole.clone() }.usable());
        assert!(!SubordinateIds { newuidmap: None, ..whole.clone() }.usable());
        let mut plain = whole;
        plain.newgidmap.as_mut().unwrap().privileged = false;
        assert!(!plain.usable());
    }

    #[test]
    fn every_sample_has_its_name() {
        for name in ["laptop", "login-node-without-fuse", "docker-default", "no-userns"] {
            assert!(sample(name).is_some(), "{name}");
        }
        assert_eq!(sample("mainframe"), None);
    }
}
