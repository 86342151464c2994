//! From `config.json`, site and facts to a [`LaunchPlan`]. Pure.
//!
//! | `config.json` | plan |
//! |---|---|
//! | `linux.namespaces`, `uidMappings`, `gidMappings` | identity, namespaces, namespaces to join |
//! | `root` | the root: served, read-only or writable directory; mount points that it lacks are a layer |
//! | `mounts`, `devices`, `sysctl`, `readonlyPaths`, `maskedPaths` | steps, in this order |
//! | `process` | user, limits, capabilities, filter, directory, environment, command |
//!
//! What the specification leaves to the runtime is done as runc and crun do it. What can't be done is an error that names
//! it; what is done otherwise without harm is a [`Notice`].

use super::config::{Config, IdMapping, Mount, Process};
use super::options;
use crate::conf::SiteConfig;
use crate::host::facts::{HostFacts, PathFacts, PathKind};
use crate::launch::capabilities;
use crate::launch::environment::Pair;
use crate::launch::seccomp::{self, Architecture, SeccompContext, SeccompError};
use crate::report::Hint;
use crate::tree::lookup::{self, Kind, Lookup, LookupError};
use starter::paths::{ContainerPath, HostPath};
use starter::plan::{
    Access, Capabilities, Command, Directory, IdRange, Identity, Joined, LaunchPlan, Limit, NamespaceKind, Namespaces,
    Need, Node, NodeContent, Parent, Step, User,
};
use std::fmt;
use std::path::Path;

/// Everything that a plan follows from.
pub struct Facts<'a> {
    pub config: &'a Config,
    pub site: &'a SiteConfig,
    /// The directory that relative paths of the configuration start from.
    pub bundle: &'a HostPath,
    pub root: Root,
    /// The root file system, to be looked at.
    pub tree: &'a dyn Lookup,
    /// With the paths that [`sources`] names.
    pub host: &'a HostFacts,
}

/// Where the root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// An image, through the image server's connection 0.
    Served,
    Directory {
        path: HostPath,
        /// Whether the caller may change it.
        writable: bool,
    },
}

/// A container that is decided.
#[derive(Debug)]
pub struct Planned {
    pub plan: LaunchPlan,
    /// What the image server shows in addition to the image.
    pub invented: Vec<Node>,
    /// For `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    pub terminal: bool,
    pub notices: Vec<Notice>,
}

/// Something that is done otherwise than the configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Limits that a cgroup would enforce.
    Resources(Vec<String>),
    /// Groups that can't be taken on where one id alone is mapped.
    Groups(Vec<u32>),
    /// The root can't be changed by this user.
    ReadOnlyRoot(HostPath),
}

impl Notice {
    /// Whether a user should see it without asking.
    pub fn is_warning(&self) -> bool {
        !matches!(self, Self::ReadOnlyRoot(_))
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resources(names) => write!(
                f,
                "linux.resources ({}) are not enforced: the container stays in the cgroup that it is started from",
                names.join(", ")
            ),
            Self::Groups(groups) => {
                let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
                write!(f, "process.user.additionalGids ({}) are left out: no id but one is mapped", groups.join(", "))
            }
            Self::ReadOnlyRoot(path) => write!(f, "{path} is used read-only, since this user may not change it"),
        }
    }
}

/// Why a configuration can't be run.
#[derive(Debug)]
pub enum BundleError {
    /// It breaks the specification.
    Invalid {
        property: String,
        problem: String,
    },
    /// It is well-formed, and sifu can't do it.
    Unsupported {
        property: String,
        instead: &'static str,
    },
    /// The site forbids it, by this directive.
    Forbidden {
        what: &'static str,
        directive: &'static str,
    },
    /// The source of a mount is not there.
    NoSource {
        destination: String,
        source: HostPath,
    },
    /// Source and destination of a mount are not of one kind.
    Kinds {
        destination: String,
        source_is_directory: bool,
    },
    /// A file stands where a mount needs a directory.
    NotADirectory {
        destination: String,
    },
    Lookup(LookupError),
    Seccomp(SeccompError),
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { property, problem } => write!(f, "{property} in config.json {problem}"),
            Self::Unsupported { property, .. } => write!(f, "{property} in config.json is not supported"),
            Self::Forbidden { what, .. } => write!(f, "this site allows no {what}"),
            Self::NoSource { destination, source } => {
                write!(f, "cannot mount {source} on {destination}: there is no {source}")
            }
            Self::Kinds { destination, source_is_directory: true } => {
                write!(f, "cannot mount a directory on {destination}, which is a file in the root file system")
            }
            Self::Kinds { destination, source_is_directory: false } => {
                write!(f, "cannot mount a file on {destination}, which is a directory in the root file system")
            }
            Self::NotADirectory { destination } => {
                write!(f, "cannot mount on {destination}: a part of the path is no directory in the root file system")
            }
            Self::Lookup(error) => error.fmt(f),
            Self::Seccomp(error) => write!(f, "cannot use linux.seccomp in config.json: {error}"),
        }
    }
}

impl std::error::Error for BundleError {}

impl Hint for BundleError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unsupported { instead, .. } if !instead.is_empty() => vec![(*instead).to_owned()],
            Self::Forbidden { directive, .. } => vec![format!("Its configuration says `{directive} = no`.")],
            Self::Seccomp(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}

fn invalid(property: impl Into<String>, problem: impl Into<String>) -> BundleError {
    BundleError::Invalid { property: property.into(), problem: problem.into() }
}

fn unsupported(property: impl Into<String>, instead: &'static str) -> BundleError {
    BundleError::Unsupported { property: property.into(), instead }
}

/// The host paths whose kind the plan depends on.
pub fn sources(config: &Config, bundle: &HostPath) -> Vec<HostPath> {
    config.mounts.iter().filter(|mount| is_bind(mount)).map(|mount| source(mount, bundle)).collect()
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

fn source(mount: &Mount, bundle: &HostPath) -> HostPath {
    HostPath::new(bundle.as_path().join(&mount.source))
}

/// The path of the root file system on the host.
pub fn root_path(config: &Config, bundle: &HostPath) -> Result<HostPath, BundleError> {
    let root = config.root.as_ref().ok_or_else(|| invalid("root", "is missing"))?;
    if root.path.is_empty() || root.path.contains('\0') {
        return Err(invalid("root.path", "is no path"));
    }
    Ok(HostPath::new(bundle.as_path().join(&root.path)))
}

/// Decides what the container is.
pub fn plan(facts: &Facts<'_>) -> Result<Planned, BundleError> {
    let config = facts.config;
    let major = config.oci_version.split('.').next().unwrap_or_default();
    if major != "1" {
        return Err(invalid("ociVersion", format!("is `{}`, expected 1.x", config.oci_version)));
    }
    let process = config.process.as_ref().ok_or_else(|| invalid("process", "is missing"))?;
    refuse_what_is_not_built(config, process)?;
    let namespaces = Wanted::read(config)?;
    namespaces.check_site(facts.site)?;
    let mut notices = Vec::new();
    let (identity, user) = who(facts, process, &namespaces, &mut notices)?;
    if !config.hostname.as_deref().unwrap_or_default().is_empty() && !namespaces.has(NamespaceKind::Uts) {
        return Err(invalid("hostname", "needs a uts namespace of the container's own"));
    }
    let weighed: Vec<String> = config
        .linux
        .resources
        .iter()
        .filter(|(_, value)| says_something(value))
        .map(|(name, _)| name.clone())
        .filter(|name| name != "devices")
        .collect();
    if !weighed.is_empty() {
        notices.push(Notice::Resources(weighed));
    }

    let uid = process.user.uid;
    let keep = capability_set(process, uid)?;
    let mut builder = Builder {
        facts,
        namespaces: &namespaces,
        read_only: read_only(facts, &mut notices),
        steps: Vec::new(),
        last: Vec::new(),
        nodes: Vec::new(),
        placed: Vec::new(),
    };
    builder.mounts()?;
    builder.devices()?;
    let directory = builder.directory(process)?;
    builder.parameters()?;
    builder.paths()?;
    let (steps, invented) = builder.finish();

    Ok(Planned {
        plan: LaunchPlan {
            identity,
            namespaces: namespaces.fresh,
            join: namespaces.joined,
            private_mounts: !facts.site.mount_slave,
            share: None,
            hostname: config.hostname.clone().filter(|name| !name.is_empty()).map(String::into_bytes),
            steps,
            umask: Some(process.user.umask.unwrap_or(0o022) & 0o777),
            user,
            limits: limits(process)?,
            capabilities: Capabilities { keep },
            seccomp: filter(facts, keep)?,
            emulation: None,
            directory: Directory { candidates: vec![directory] },
            environment: environment(facts, process)?,
            command: Command::Program { arguments: words(&process.args, "process.args")? },
            parent: Parent { init: false, detached: true, remove: None },
        },
        invented,
        oom_score_adj: process.oom_score_adj,
        terminal: process.terminal,
        notices,
    })
}

/// Whether a part of `linux.resources` asks for anything.
fn says_something(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => false,
        serde_json::Value::Array(parts) => parts.iter().any(says_something),
        serde_json::Value::Object(parts) => parts.values().any(says_something),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) | serde_json::Value::String(_) => true,
    }
}

fn refuse_what_is_not_built(config: &Config, process: &Process) -> Result<(), BundleError> {
    const LABELS: &str = "Leave it out: sifu runs the command under the label of its caller.";
    let linux = &config.linux;
    let refused = [
        (!process.apparmor_profile.is_empty(), "process.apparmorProfile", LABELS),
        (!process.selinux_label.is_empty(), "process.selinuxLabel", LABELS),
        (!linux.mount_label.is_empty(), "linux.mountLabel", LABELS),
        (process.scheduler.is_some(), "process.scheduler", "Start the runtime by chrt(1)."),
        (process.io_priority.is_some(), "process.ioPriority", "Start the runtime by ionice(1)."),
        (config.domainname.as_ref().is_some_and(|name| !name.is_empty()), "domainname", ""),
        (linux.personality.is_some(), "linux.personality", "Start the runtime by setarch(8)."),
        (linux.intel_rdt.is_some(), "linux.intelRdt", ""),
        (!linux.time_offsets.is_empty(), "linux.timeOffsets", ""),
        (
            !config.hooks.create_container.is_empty(),
            "hooks.createContainer",
            "prestart, createRuntime, poststart and poststop hooks are run.",
        ),
        (
            !config.hooks.start_container.is_empty(),
            "hooks.startContainer",
            "prestart, createRuntime, poststart and poststop hooks are run.",
        ),
        (
            matches!(linux.rootfs_propagation.as_str(), "shared" | "rshared" | "unbindable" | "runbindable"),
            "linux.rootfsPropagation",
            "`private` and `slave` can be had: nothing that the container mounts reaches the host.",
        ),
    ];
    match refused.into_iter().find(|(found, _, _)| *found) {
        Some((_, property, instead)) => Err(unsupported(property, instead)),
        None => Ok(()),
    }
}

// ---- namespaces and identity ----

/// The namespaces that `linux.namespaces` asks for.
struct Wanted {
    user: bool,
    fresh: Namespaces,
    joined: Vec<Joined>,
}

impl Wanted {
    fn read(config: &Config) -> Result<Self, BundleError> {
        const OWN: &str = "sifu makes this namespace itself; leave `path` out.";
        let mut wanted = Self { user: false, fresh: Namespaces::default(), joined: Vec::new() };
        for (index, namespace) in config.linux.namespaces.iter().enumerate() {
            let property = format!("linux.namespaces[{index}]");
            if config.linux.namespaces[..index].iter().any(|other| other.kind == namespace.kind) {
                return Err(invalid(property, format!("is a second `{}`", namespace.kind)));
            }
            let kind = match (namespace.kind.as_str(), namespace.path.is_empty()) {
                ("mount", true) => continue,
                ("user", true) => {
                    wanted.user = true;
                    continue;
                }
                ("mount" | "user", false) => return Err(unsupported(format!("{property}.path"), OWN)),
                ("pid", _) => NamespaceKind::Pid,
                ("ipc", _) => NamespaceKind::Ipc,
                ("uts", _) => NamespaceKind::Uts,
                ("network", _) => NamespaceKind::Net,
                ("cgroup", _) => NamespaceKind::Cgroup,
                ("time", _) => return Err(unsupported(format!("{property} (a time namespace)"), "")),
                (other, _) => return Err(invalid(property, format!("is of the unknown type `{other}`"))),
            };
            if !namespace.path.is_empty() {
                if !namespace.path.starts_with('/') || namespace.path.contains('\0') {
                    return Err(invalid(format!("{property}.path"), "is no absolute path"));
                }
                wanted.joined.push(Joined { kind, path: HostPath::new(&namespace.path) });
                continue;
            }
            match kind {
                NamespaceKind::Pid => wanted.fresh.pid = true,
                NamespaceKind::Ipc => wanted.fresh.ipc = true,
                NamespaceKind::Uts => wanted.fresh.uts = true,
                NamespaceKind::Net => wanted.fresh.net = true,
                NamespaceKind::Cgroup => wanted.fresh.cgroup = true,
            }
        }
        Ok(wanted)
    }

    /// Whether the container has a namespace of this kind that is not its caller's.
    fn has(&self, kind: NamespaceKind) -> bool {
        let fresh = match kind {
            NamespaceKind::Pid => self.fresh.pid,
            NamespaceKind::Ipc => self.fresh.ipc,
            NamespaceKind::Uts => self.fresh.uts,
            NamespaceKind::Net => self.fresh.net,
            NamespaceKind::Cgroup => self.fresh.cgroup,
        };
        fresh || self.joined.iter().any(|joined| joined.kind == kind)
    }

    fn check_site(&self, site: &SiteConfig) -> Result<(), BundleError> {
        let rules = [
            (self.has(NamespaceKind::Pid), site.allow_pid_ns, "pid namespaces", "allow pid ns"),
            (self.has(NamespaceKind::Ipc), site.allow_ipc_ns, "ipc namespaces", "allow ipc ns"),
            (self.has(NamespaceKind::Uts), site.allow_uts_ns, "uts namespaces", "allow uts ns"),
            (self.user, site.allow_user_ns, "user namespaces", "allow user ns"),
        ];
        match rules.into_iter().find(|(wanted, allowed, _, _)| *wanted && !*allowed) {
            Some((_, _, what, directive)) => Err(BundleError::Forbidden { what, directive }),
            None => Ok(()),
        }
    }
}

/// Who the process is in its user namespace, and who it becomes for the command.
fn who(
    facts: &Facts<'_>,
    process: &Process,
    namespaces: &Wanted,
    notices: &mut Vec<Notice>,
) -> Result<(Identity, Option<User>), BundleError> {
    let caller = &facts.host.user;
    let user = &process.user;
    let becomes = User { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone() };
    if !namespaces.user && facts.host.may_mount {
        return Ok((Identity::Privileged, Some(becomes)));
    }
    if !facts.site.allow_user_ns {
        return Err(BundleError::Forbidden { what: "user namespaces", directive: "allow user ns" });
    }
    let (uids, gids) = (&facts.config.linux.uid_mappings, &facts.config.linux.gid_mappings);
    let single = |inside: (u32, u32)| match inside {
        (0, 0) => Identity::Root { uid: caller.uid, gid: caller.gid },
        (uid, gid) => Identity::Keep { uid, gid },
    };
    let identity = match (uids.as_slice(), gids.as_slice()) {
        ([], []) => single((user.uid, user.gid)),
        ([], _) | (_, []) => return Err(invalid("linux.uidMappings", "and linux.gidMappings need each other")),
        ([uid], [gid]) if uid.size == 1 && gid.size == 1 => {
            for (property, mapping, own) in
                [("linux.uidMappings[0].hostID", uid, caller.uid), ("linux.gidMappings[0].hostID", gid, caller.gid)]
            {
                if mapping.host_id != own {
                    let problem =
                        format!("is {}, and the caller's id is {own}: without mappings it is mapped", mapping.host_id);
                    return Err(invalid(property, problem));
                }
            }
            single((uid.container_id, gid.container_id))
        }
        (uids, gids) => {
            let helpers = facts.host.subordinate_ids.as_ref();
            let helper = |helper: Option<&crate::host::facts::MapHelper>, name: &str| {
                let path = helper.map(|helper| helper.path.clone());
                path.ok_or_else(|| {
                    invalid(format!("linux.{name}Mappings"), format!("needs new{name}map, which is not installed"))
                })
            };
            Identity::Range {
                newuidmap: helper(helpers.and_then(|ids| ids.newuidmap.as_ref()), "uid")?,
                newgidmap: helper(helpers.and_then(|ids| ids.newgidmap.as_ref()), "gid")?,
                uids: ranges(uids),
                gids: ranges(gids),
            }
        }
    };
    match &identity {
        Identity::Range { uids, gids, .. } => {
            check_mapped(uids, user.uid, "process.user.uid")?;
            check_mapped(gids, user.gid, "process.user.gid")?;
            for group in &user.additional_gids {
                check_mapped(gids, *group, "process.user.additionalGids")?;
            }
            Ok((identity, Some(becomes)))
        }
        Identity::Root { .. } | Identity::Keep { .. } | Identity::Privileged => {
            let (uid, gid) = if let Identity::Keep { uid, gid } = identity { (uid, gid) } else { (0, 0) };
            for (property, asked, mapped) in [("process.user.uid", user.uid, uid), ("process.user.gid", user.gid, gid)]
            {
                if asked != mapped {
                    return Err(invalid(property, format!("is {asked}, and {mapped} alone is mapped")));
                }
            }
            let others: Vec<u32> = user.additional_gids.iter().copied().filter(|group| *group != gid).collect();
            if !others.is_empty() {
                notices.push(Notice::Groups(others));
            }
            Ok((identity, None))
        }
    }
}

fn ranges(mappings: &[IdMapping]) -> Vec<IdRange> {
    mappings.iter().map(|m| IdRange { inside: m.container_id, outside: m.host_id, count: m.size }).collect()
}

fn check_mapped(ranges: &[IdRange], id: u32, property: &str) -> Result<(), BundleError> {
    let mapped = ranges.iter().any(|range| id >= range.inside && id - range.inside < range.count);
    if mapped {
        Ok(())
    } else {
        Err(invalid(property, format!("is {id}, which linux.uidMappings and gidMappings leave out")))
    }
}

// ---- the process ----

/// What the command can have: at `execve(2)` the kernel gives root what the bounding set has, and others the ambient set.
fn capability_set(process: &Process, uid: u32) -> Result<u64, BundleError> {
    let Some(sets) = &process.capabilities else { return Ok(0) };
    let read = |names: &[String], property: &str| {
        names.iter().try_fold(0, |set, name| match capabilities::bit(name.as_bytes()) {
            Some(bit) => Ok(set | bit),
            None => Err(invalid(property, format!("names `{name}`, which is not a capability"))),
        })
    };
    let bounding = read(&sets.bounding, "process.capabilities.bounding")?;
    let ambient = read(&sets.ambient, "process.capabilities.ambient")?;
    Ok(if uid == 0 { bounding } else { bounding & ambient })
}

fn limits(process: &Process) -> Result<Vec<Limit>, BundleError> {
    /// In the order of the kernel's numbers.
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let mut limits: Vec<Limit> = Vec::new();
    for (index, rlimit) in process.rlimits.iter().enumerate() {
        let property = format!("process.rlimits[{index}]");
        let known = NAMES.iter().position(|name| rlimit.kind.strip_prefix("RLIMIT_") == Some(name));
        let Some(resource) = known.and_then(|number| u32::try_from(number).ok()) else {
            return Err(invalid(property, format!("is of the unknown type `{}`", rlimit.kind)));
        };
        if limits.iter().any(|limit| limit.resource == resource) {
            return Err(invalid(property, format!("is a second `{}`", rlimit.kind)));
        }
        limits.push(Limit { resource, soft: rlimit.soft, hard: rlimit.hard });
    }
    Ok(limits)
}

fn filter(facts: &Facts<'_>, capabilities: u64) -> Result<Vec<u8>, BundleError> {
    let Some(profile) = facts.config.linux.seccomp.as_ref().filter(|profile| profile.get() != "null") else {
        return Ok(Vec::new());
    };
    let kernel = &facts.host.kernel;
    let architecture = Architecture::from_machine(&kernel.machine)
        .ok_or_else(|| unsupported("linux.seccomp", "Leave it out: the calls of this machine are not known."))?;
    let context = SeccompContext { capabilities, architecture, kernel: kernel.version() };
    seccomp::compile(profile.get().as_bytes(), &context).map_err(BundleError::Seccomp)
}

fn environment(facts: &Facts<'_>, process: &Process) -> Result<Vec<Pair>, BundleError> {
    let mut variables: Vec<Pair> = Vec::new();
    for (assignment, bytes) in process.env.iter().zip(words(&process.env, "process.env")?) {
        // What is no assignment no program would find.
        let Some(at) = assignment.find('=').filter(|at| *at > 0) else { continue };
        let (name, value) = (bytes[..at].to_vec(), bytes[at + 1..].to_vec());
        variables.retain(|(other, _)| *other != name);
        variables.push((name, value));
    }
    if !variables.iter().any(|(name, _)| name == b"HOME") {
        variables.push((b"HOME".to_vec(), home(facts.tree, process.user.uid)));
    }
    Ok(variables)
}

/// The home directory that `/etc/passwd` of the root file system has for `uid`.
fn home(tree: &dyn Lookup, uid: u32) -> Vec<u8> {
    const MAX_PASSWD_BYTES: u64 = 1 << 20;
    let passwd = lookup::read(tree, &ContainerPath::fixed("/etc/passwd"), MAX_PASSWD_BYTES).ok().flatten();
    let passwd = passwd.unwrap_or_default();
    let uid = uid.to_string().into_bytes();
    let found = passwd.split(|&byte| byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
        (fields.len() == 7 && fields[2] == uid).then(|| fields[5].to_vec())
    });
    found.filter(|home| !home.is_empty() && !home.contains(&0)).unwrap_or_else(|| b"/".to_vec())
}

fn words(text: &[String], property: &str) -> Result<Vec<Vec<u8>>, BundleError> {
    if text.iter().any(|word| word.contains('\0')) {
        return Err(invalid(property, "has a NUL byte"));
    }
    if property == "process.args" && text.first().is_none_or(String::is_empty) {
        return Err(invalid(property, "names no program"));
    }
    Ok(text.iter().map(|word| word.clone().into_bytes()).collect())
}

// ---- the mount tree ----

/// Whether the container's root is one that nobody changes.
fn read_only(facts: &Facts<'_>, notices: &mut Vec<Notice>) -> bool {
    match &facts.root {
        _ if facts.config.root.as_ref().is_some_and(|root| root.readonly) => true,
        Root::Directory { path, writable: false } => {
            notices.push(Notice::ReadOnlyRoot(path.clone()));
            true
        }
        Root::Served | Root::Directory { .. } => false,
    }
}

/// Collects the steps of the mount tree.
struct Builder<'a> {
    facts: &'a Facts<'a>,
    namespaces: &'a Wanted,
    read_only: bool,
    steps: Vec<Step>,
    /// Steps that take rights away, which others need before.
    last: Vec<Step>,
    /// Mount points that the root lacks.
    nodes: Vec<Node>,
    /// Targets of the mounts so far, and whether they are directories.
    placed: Vec<(ContainerPath, bool)>,
}

/// Where something is mounted.
struct Place {
    path: ContainerPath,
    /// Whether it may have to be made when its turn comes.
    create: bool,
}

impl Builder<'_> {
    fn mounts(&mut self) -> Result<(), BundleError> {
        for (index, mount) in self.facts.config.mounts.iter().enumerate() {
            self.mount(index, mount)?;
        }
        Ok(())
    }

    fn mount(&mut self, index: usize, mount: &Mount) -> Result<(), BundleError> {
        let property = format!("mounts[{index}]");
        // Runtimes take a relative destination as one from the root, since it once was allowed.
        let absolute = format!("/{}", mount.destination);
        let destination = ContainerPath::parse(absolute.as_bytes())
            .map_err(|_| invalid(format!("{property}.destination"), format!("is no path: `{}`", mount.destination)))?;
        let options = options::parse(&mount.options)
            .map_err(|option| unsupported(format!("the option `{option}` of {property}"), ""))?;
        let fresh = |kind| self.namespaces.has(kind);
        let target = match mount.kind.as_str() {
            _ if is_bind(mount) => self.bind(&property, mount, &destination, &options)?,
            "proc" if fresh(NamespaceKind::Pid) => {
                let place = self.place(&destination, true)?;
                self.put(place, true, |place| Step::Proc { target: place.path, or_host: true })
            }
            "proc" => self.bind_of_host("/proc", &destination, Access::ReadWrite, Need::Required)?,
            "sysfs" if fresh(NamespaceKind::Net) => {
                let place = self.place(&destination, true)?;
                self.put(place, true, |place| Step::Sysfs { target: place.path })
            }
            "sysfs" => self.bind_of_host("/sys", &destination, Access::ReadOnly, Need::Optional)?,
            // The host's has them already.
            "cgroup" | "cgroup2" if self.shows_host("/sys") => destination.clone(),
            "cgroup" | "cgroup2" => {
                self.bind_of_host("/sys/fs/cgroup", &destination, Access::ReadOnly, Need::Optional)?
            }
            "mqueue" if fresh(NamespaceKind::Ipc) => {
                let place = self.place(&destination, true)?;
                self.make_below_a_mount(&place);
                self.put(place, true, |place| Step::Mqueue { target: place.path })
            }
            "mqueue" => self.bind_of_host("/dev/mqueue", &destination, Access::ReadWrite, Need::Optional)?,
            "devpts" => {
                let place = self.place(&destination, true)?;
                self.put(place, true, |place| Step::Devpts { target: place.path })
            }
            "tmpfs" => {
                let place = self.place(&destination, true)?;
                let (mode, size_bytes) = (options.mode.unwrap_or(0o1777), options.size_bytes);
                self.put(place, true, |place| Step::Tmpfs {
                    target: place.path,
                    mode,
                    size_bytes,
                    create: place.create,
                })
            }
            other => {
                return Err(unsupported(
                    format!("the type `{other}` of {property}"),
                    "bind, tmpfs, proc, sysfs, devpts, mqueue and cgroup can be mounted.",
                ));
            }
        };
        let read_only = options.read_only && mount.kind == "tmpfs";
        let no_exec = options.no_exec && (mount.kind == "tmpfs" || is_bind(mount));
        if read_only || no_exec {
            self.last.push(Step::Restrict { target: target.clone(), read_only, no_exec });
        }
        if target == ContainerPath::fixed("/dev") && mount.kind == "tmpfs" {
            self.usual_devices()?;
        }
        Ok(())
    }

    fn bind(
        &mut self,
        property: &str,
        mount: &Mount,
        destination: &ContainerPath,
        options: &options::Options,
    ) -> Result<ContainerPath, BundleError> {
        if mount.source.is_empty() || mount.source.contains('\0') {
            return Err(invalid(format!("{property}.source"), "is no path"));
        }
        let source = source(mount, self.facts.bundle);
        let known = self.facts.host.paths.get(&source).filter(|found| PathFacts::exists(found));
        let Some(known) = known else {
            return Err(BundleError::NoSource { destination: mount.destination.clone(), source });
        };
        let is_directory = known.kind == PathKind::Directory;
        let of_devices = known.kind == PathKind::Device || source.as_path().starts_with("/dev");
        let place = self.place(destination, is_directory)?;
        if of_devices && !options.no_dev {
            let target = self.put(place, is_directory, |place| Step::Device {
                source,
                target: place.path,
                need: Need::Required,
                create: place.create,
            });
            if options.read_only {
                self.last.push(Step::Restrict { target: target.clone(), read_only: true, no_exec: false });
            }
            return Ok(target);
        }
        let access = if options.read_only { Access::ReadOnly } else { Access::ReadWrite };
        Ok(self.put(place, is_directory, |place| Step::Bind {
            source,
            target: place.path,
            access,
            need: Need::Required,
            create: place.create,
        }))
    }

    fn bind_of_host(
        &mut self,
        source: &str,
        destination: &ContainerPath,
        access: Access,
        need: Need,
    ) -> Result<ContainerPath, BundleError> {
        let place = self.place(destination, true)?;
        let source = HostPath::new(source);
        Ok(self.put(place, true, |place| Step::Bind { source, target: place.path, access, need, create: place.create }))
    }

    /// Finds or plans the target for a mount.
    fn place(&mut self, asked: &ContainerPath, is_directory: bool) -> Result<Place, BundleError> {
        if self.below_a_mount(asked) {
            return Ok(Place { path: asked.clone(), create: true });
        }
        let destination = || asked.to_string();
        let resolved = lookup::resolve(self.facts.tree, asked).map_err(BundleError::Lookup)?;
        if self.below_a_mount(&resolved.path) {
            return Ok(Place { path: resolved.path, create: true });
        }
        let wrong = || BundleError::Kinds { destination: destination(), source_is_directory: is_directory };
        if let Some((_, placed)) = self.placed.iter().rev().find(|(target, _)| *target == resolved.path) {
            return if *placed == is_directory {
                Ok(Place { path: resolved.path, create: false })
            } else {
                Err(wrong())
            };
        }
        match resolved.stat {
            Some(stat) if (stat.kind == Kind::Directory) == is_directory => {
                Ok(Place { path: resolved.path, create: false })
            }
            Some(_) => Err(wrong()),
            None => {
                let above = self.facts.tree.lstat(&resolved.existing).map_err(BundleError::Lookup)?;
                if above.is_none_or(|stat| stat.kind != Kind::Directory) {
                    return Err(BundleError::NotADirectory { destination: destination() });
                }
                let content = if is_directory { NodeContent::Directory } else { NodeContent::File(Vec::new()) };
                let mode = if is_directory { 0o755 } else { 0o644 };
                Ok(self.lacking(Node { path: resolved.path, mode, content }))
            }
        }
    }

    /// Plans a node that the root lacks.
    fn lacking(&mut self, node: Node) -> Place {
        let path = node.path.clone();
        match (&self.facts.root, self.read_only) {
            (Root::Directory { .. }, false) => self.steps.push(Step::Make { node, need: Need::Required }),
            _ => self.nodes.push(node),
        }
        Place { path, create: false }
    }

    fn below_a_mount(&self, path: &ContainerPath) -> bool {
        self.placed.iter().any(|(target, is_directory)| *is_directory && path != target && path.starts_with(target))
    }

    fn shows_host(&self, directory: &str) -> bool {
        self.steps.iter().any(|step| {
            matches!(step, Step::Bind { source, target, .. }
                if source.as_path() == Path::new(directory) && target.as_bytes() == directory.as_bytes())
        })
    }

    fn make_below_a_mount(&mut self, place: &Place) {
        if place.create {
            let node = Node { path: place.path.clone(), mode: 0o755, content: NodeContent::Directory };
            self.steps.push(Step::Make { node, need: Need::Optional });
        }
    }

    fn put(&mut self, place: Place, is_directory: bool, step: impl FnOnce(Place) -> Step) -> ContainerPath {
        let target = place.path.clone();
        self.placed.push((target.clone(), is_directory));
        self.steps.push(step(place));
        target
    }

    // ---- /dev ----

    /// What the specification wants in every `/dev` that is the container's own.
    fn usual_devices(&mut self) -> Result<(), BundleError> {
        for name in ["null", "zero", "full", "random", "urandom", "tty"] {
            let target = in_dev(name)?;
            self.steps.push(Step::Device {
                source: HostPath::new(format!("/dev/{name}")),
                target,
                need: Need::Optional,
                create: true,
            });
        }
        for (name, to) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            let node = Node { path: in_dev(name)?, mode: 0o777, content: NodeContent::Symlink(to.into()) };
            self.steps.push(Step::Make { node, need: Need::Optional });
        }
        Ok(())
    }

    /// `linux.devices`: nodes can't be made by a user; those of the host are shown.
    fn devices(&mut self) -> Result<(), BundleError> {
        for (index, device) in self.facts.config.linux.devices.iter().enumerate() {
            let property = format!("linux.devices[{index}]");
            let path = ContainerPath::parse(device.path.as_bytes())
                .map_err(|_| invalid(format!("{property}.path"), "is no absolute path"))?;
            if !matches!(device.kind.as_str(), "c" | "u" | "b") {
                return Err(unsupported(format!("the type `{}` of {property}", device.kind), ""));
            }
            let place = self.place(&path, false)?;
            let source = HostPath::new(&device.path);
            self.put(place, false, |place| Step::Device {
                source,
                target: place.path,
                need: Need::Required,
                create: place.create,
            });
        }
        Ok(())
    }

    // ---- the rest ----

    fn directory(&mut self, process: &Process) -> Result<ContainerPath, BundleError> {
        let directory = ContainerPath::parse(process.cwd.as_bytes())
            .map_err(|_| invalid("process.cwd", format!("is no absolute path: `{}`", process.cwd)))?;
        let mut node = Node { path: directory.clone(), mode: 0o755, content: NodeContent::Directory };
        let resolved = lookup::resolve(self.facts.tree, &directory).map_err(BundleError::Lookup)?;
        if self.below_a_mount(&resolved.path) {
            self.steps.push(Step::Make { node, need: Need::Optional });
        } else if resolved.stat.is_none() && !self.placed.iter().any(|(target, _)| *target == resolved.path) {
            node.path = resolved.path;
            self.lacking(node);
        }
        Ok(directory)
    }

    fn parameters(&mut self) -> Result<(), BundleError> {
        for (name, value) in &self.facts.config.linux.sysctl {
            let property = format!("linux.sysctl.{name}");
            let own = match name.split('.').next().unwrap_or_default() {
                "net" => self.namespaces.has(NamespaceKind::Net),
                "fs" => name.starts_with("fs.mqueue.") && self.namespaces.has(NamespaceKind::Ipc),
                "kernel" if matches!(name.as_str(), "kernel.hostname" | "kernel.domainname") => {
                    self.namespaces.has(NamespaceKind::Uts)
                }
                "kernel" => {
                    ["kernel.msg", "kernel.sem", "kernel.shm"].iter().any(|prefix| name.starts_with(prefix))
                        && self.namespaces.has(NamespaceKind::Ipc)
                }
                _ => false,
            };
            if !own || name.contains(['/', '\0']) {
                return Err(invalid(property, "belongs to no namespace of the container's own"));
            }
            self.steps.push(Step::Sysctl { name: name.clone().into_bytes(), value: value.clone().into_bytes() });
        }
        Ok(())
    }

    fn paths(&mut self) -> Result<(), BundleError> {
        let linux = &self.facts.config.linux;
        let read = |property: &str, path: &String| {
            ContainerPath::parse(path.as_bytes())
                .map_err(|_| invalid(property, format!("has no absolute path: `{path}`")))
        };
        for path in &linux.readonly_paths {
            let target = read("linux.readonlyPaths", path)?;
            self.last.push(Step::Restrict { target, read_only: true, no_exec: false });
        }
        for path in &linux.masked_paths {
            self.last.push(Step::Mask { target: read("linux.maskedPaths", path)? });
        }
        Ok(())
    }

    /// The steps with the root before them, and what the image server has to invent.
    fn finish(self) -> (Vec<Step>, Vec<Node>) {
        let Self { facts, read_only, steps, last, nodes, .. } = self;
        let size_mib = facts.site.sessiondir_max_size_mib;
        let size_bytes = (size_mib > 0).then(|| size_mib.saturating_mul(1 << 20));
        let (mut all, mut invented) = (Vec::new(), Vec::new());
        match &facts.root {
            Root::Served => {
                all.push(Step::RootServed { connection: 0 });
                if !read_only {
                    all.push(Step::RootLayer { access: Access::ReadWrite, size_bytes, nodes: Vec::new() });
                }
                invented = nodes;
            }
            Root::Directory { path, .. } => {
                let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
                all.push(Step::RootDirectory { source: path.clone(), access });
                if !nodes.is_empty() {
                    all.push(Step::RootLayer { access: Access::ReadOnly, size_bytes, nodes });
                }
            }
        }
        all.extend(steps);
        all.extend(last);
        (all, invented)
    }
}

fn in_dev(name: &str) -> Result<ContainerPath, BundleError> {
    ContainerPath::parse(format!("/dev/{name}").as_bytes()).map_err(|_| invalid("linux.devices", "has no path"))
}

#[cfg(test)]
mod tests;
