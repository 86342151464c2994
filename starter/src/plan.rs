//! Launch plans as values and as text.
//!
//! A plan is a list of lines, a verb and its words each, words escaped as in `fstab(5)`:
//!
//! ```text
//! sifu-plan 1
//! identity keep uid=1000 gid=1000
//! root served 0
//! bind /etc/hosts /etc/hosts ro,optional
//! env HOME=/home/ada
//! directory /home/ada
//! exec true
//! ```
//!
//! What must always hold can't be said: there is no word for set-uid mounts, for device nodes on a bind (only `dev`
//! keeps them), or for new privileges. A wrong plan can hide a file; it can't open a hole.
//!
//! [`LaunchPlan::to_text`] and [`LaunchPlan::from_text`] are inverse; both are pure.

use crate::paths::{ContainerPath, HostPath};
use crate::trapped::Scope;
use std::fmt;

/// Everything that one launch does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchPlan {
    pub identity: Identity,
    pub namespaces: Namespaces,
    /// Namespaces of other processes to enter instead.
    pub join: Vec<Joined>,
    /// Whether mounts that the host makes later stay outside.
    pub private_mounts: bool,
    /// The name under which other processes may join the container, an abstract one of `unix(7)`.
    pub share: Option<Vec<u8>>,
    /// Host name in a UTS namespace of its own.
    pub hostname: Option<Vec<u8>>,
    pub steps: Vec<Step>,
    pub umask: Option<u32>,
    /// Who the command is, where not whom the identity makes the process.
    pub user: Option<User>,
    pub limits: Vec<Limit>,
    pub capabilities: Capabilities,
    /// Compiled seccomp filter: `struct sock_filter` instructions, 8 bytes each, in this machine's byte order.
    pub seccomp: Vec<u8>,
    /// What a supervisor does of root in the kernel's place.
    pub emulation: Option<Emulation>,
    pub directory: Directory,
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    pub command: Command,
    /// What stays behind as the parent of the command.
    pub parent: Parent,
}

/// Who the process is in its user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The caller's own ids, the only ones mapped.
    Keep { uid: u32, gid: u32 },
    /// Id 0, the only one mapped.
    Root { uid: u32, gid: u32 },
    /// Id 0 and a range of subordinate ids, written by `newuidmap(1)` and `newgidmap(1)`.
    Range { newuidmap: HostPath, newgidmap: HostPath, uids: Vec<IdRange>, gids: Vec<IdRange> },
    /// Real root: no user namespace.
    Privileged,
}

/// A line of `uid_map` (see `user_namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

impl IdRange {
    /// The map in which root is `caller`, and the ids from 1 on are subordinate ones (each range its first id and count), in
    /// their order.
    pub fn with_root(caller: u32, subordinate: impl IntoIterator<Item = (u32, u32)>) -> Vec<Self> {
        let mut ranges = vec![Self { inside: 0, outside: caller, count: 1 }];
        let mut inside = 1_u32;
        for (outside, count) in subordinate {
            ranges.push(Self { inside, outside, count });
            inside = inside.saturating_add(count);
        }
        ranges
    }
}

/// Namespaces besides those of users and mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    pub pid: bool,
    pub ipc: bool,
    pub uts: bool,
    pub net: bool,
    pub cgroup: bool,
}

/// A kind of namespace that a process can enter by a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceKind {
    Pid,
    Ipc,
    Uts,
    Net,
    Cgroup,
}

impl NamespaceKind {
    pub const ALL: [Self; 5] = [Self::Pid, Self::Ipc, Self::Uts, Self::Net, Self::Cgroup];

    /// The name in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Net => "net",
            Self::Cgroup => "cgroup",
        }
    }
}

/// A namespace that is there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub kind: NamespaceKind,
    pub path: HostPath,
}

/// Ids inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A limit of `setrlimit(2)`; `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*` as the kernel numbers them.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// What becomes of a bind whose source or target is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The launch fails.
    Required,
    /// The step is skipped without a word.
    Optional,
}

/// One change of the new mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The root: the file system of image server connection `connection`, read-only.
    RootServed {
        connection: usize,
    },
    /// The root: a directory of the host.
    RootDirectory {
        source: HostPath,
        access: Access,
    },
    /// A layer under or over the root so far, joined by overlayfs: a fresh tmpfs that holds `nodes`.
    /// Below (`Access::ReadOnly`) it only adds what the root lacks; above it also takes the container's changes.
    RootLayer {
        access: Access,
        size_bytes: Option<u64>,
        nodes: Vec<Node>,
    },
    /// A file or directory of the host with all that is mounted below it.
    Bind {
        source: HostPath,
        target: ContainerPath,
        access: Access,
        need: Need,
        create: bool,
    },
    /// As `Bind`, but device nodes work; for `/dev` and what it holds.
    Device {
        source: HostPath,
        target: ContainerPath,
        need: Need,
        create: bool,
    },
    /// A directory `subdirectory` of the file system of image server connection `connection`.
    Image {
        connection: usize,
        subdirectory: ContainerPath,
        target: ContainerPath,
        create: bool,
    },
    Tmpfs {
        target: ContainerPath,
        mode: u32,
        size_bytes: Option<u64>,
        create: bool,
    },
    /// A read-only file made from nothing, over one that is there.
    File {
        target: ContainerPath,
        mode: u32,
        content: Vec<u8>,
    },
    /// A directory of the host, made where it is not there yet, before anything is mounted.
    HostDirectory {
        path: HostPath,
        mode: u32,
    },
    /// The processes of this pid namespace; those of the host, with a warning, where the kernel refuses and `or_host`.
    Proc {
        target: ContainerPath,
        or_host: bool,
    },
    Devpts {
        target: ContainerPath,
    },
    Mqueue {
        target: ContainerPath,
    },
    /// The devices that belong to this network namespace, read-only; the host's where the kernel refuses.
    Sysfs {
        target: ContainerPath,
    },
    /// Sets a parameter of the kernel that belongs to a namespace: `net.ipv4.ip_forward`.
    Sysctl {
        name: Vec<u8>,
        value: Vec<u8>,
    },
    /// Hides what is there, if anything is: nothing can be read from it any more.
    Mask {
        target: ContainerPath,
    },
    /// Takes rights from what is there, if anything is, with all that is mounted below it.
    Restrict {
        target: ContainerPath,
        read_only: bool,
        no_exec: bool,
    },
    /// Makes a node where the root, or a mount made before, can be written.
    Make {
        node: Node,
        need: Need,
    },
}

/// A file system object made from nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub path: ContainerPath,
    pub mode: u32,
    pub content: NodeContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeContent {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
}

/// What is left of the capabilities; everything else is dropped from every set, the bounding set included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Bit `n` keeps capability `n` of the container's own user namespace.
    pub keep: u64,
}

/// How root is emulated (see [`crate::trapped`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulation {
    pub scope: Scope,
    pub records: Records,
}

/// Where owners and devices are remembered that the file system can't hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Records {
    /// Nowhere: until the container ends.
    Fresh,
    /// As `Fresh`, but what a file of the host says is known from the start.
    Read(HostPath),
    /// In a file of the host.
    Kept(HostPath),
}

/// The directory in which the command starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Tried in order; the first that can be entered is taken. A later one than the first is worth a warning.
    pub candidates: Vec<ContainerPath>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Found on the `PATH` of the plan's environment when it holds no slash.
    Program { arguments: Vec<Vec<u8>> },
    /// sifu's own shell, which needs nothing of the image: `driver` with `arguments` as its positional parameters.
    EmbeddedShell { driver: Vec<u8>, arguments: Vec<Vec<u8>> },
}

/// Whether a process of sifu's stays beside the command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parent {
    /// A process 1 that reaps and forwards signals, when there is a pid namespace; else the command is process 1.
    pub init: bool,
    /// The process outside of a pid namespace leaves as soon as process 1 stands on its own.
    pub detached: bool,
    /// A directory of the host to remove when the command has ended.
    pub remove: Option<HostPath>,
}

impl LaunchPlan {
    /// Whether the command's processes are numbered apart from this one's, so that somebody has to be forked.
    pub fn has_pid_namespace(&self) -> bool {
        self.namespaces.pid || self.join.iter().any(|joined| joined.kind == NamespaceKind::Pid)
    }

    /// How many image server connections the steps name: 1 more than the highest number.
    pub fn connections(&self) -> usize {
        self.steps
            .iter()
            .filter_map(|step| match step {
                Step::RootServed { connection } | Step::Image { connection, .. } => Some(connection + 1),
                _ => None,
            })
            .max()
            .unwrap_or(0)
    }

    /// The plan, a line for each thing it does.
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = Text(b"sifu-plan 1\n".to_vec());
        match &self.identity {
            Identity::Keep { uid, gid } => text.line("identity", &[w("keep"), kv("uid", uid), kv("gid", gid)]),
            Identity::Root { uid, gid } => text.line("identity", &[w("root"), kv("uid", uid), kv("gid", gid)]),
            Identity::Privileged => text.line("identity", &[w("privileged")]),
            Identity::Range { newuidmap, newgidmap, uids, gids } => {
                let mut words = vec![w("range"), newuidmap.as_bytes().to_vec(), newgidmap.as_bytes().to_vec()];
                for (name, ranges) in [("uid", uids), ("gid", gids)] {
                    for range in ranges {
                        words.push(format!("{name}={}:{}:{}", range.inside, range.outside, range.count).into_bytes());
                    }
                }
                text.line("identity", &words);
            }
        }
        let n = self.namespaces;
        let all = [(n.pid, "pid"), (n.ipc, "ipc"), (n.uts, "uts"), (n.net, "net"), (n.cgroup, "cgroup")];
        let named: Vec<Vec<u8>> = all.into_iter().filter(|(on, _)| *on).map(|(_, name)| w(name)).collect();
        if !named.is_empty() {
            text.line("namespaces", &named);
        }
        for joined in &self.join {
            text.line("join", &[w(joined.kind.name()), joined.path.as_bytes().to_vec()]);
        }
        if self.private_mounts {
            text.line("private", &[]);
        }
        if let Some(name) = &self.share {
            text.line("share", std::slice::from_ref(name));
        }
        if let Some(name) = &self.hostname {
            text.line("hostname", std::slice::from_ref(name));
        }
        for step in &self.steps {
            step_text(step, &mut text);
        }
        if let Some(umask) = self.umask {
            text.line("umask", &[format!("{umask:04o}").into_bytes()]);
        }
        if let Some(user) = &self.user {
            let mut words = vec![kv("uid", &user.uid), kv("gid", &user.gid)];
            words.extend(user.groups.iter().map(|group| kv("group", group)));
            text.line("user", &words);
        }
        for limit in &self.limits {
            let numbers = [u64::from(limit.resource), limit.soft, limit.hard];
            text.line("limit", &numbers.map(|number| number.to_string().into_bytes()));
        }
        if self.capabilities.keep != 0 {
            text.line("capabilities", &[format!("{:016x}", self.capabilities.keep).into_bytes()]);
        }
        if !self.seccomp.is_empty() {
            text.line("seccomp", &[hex(&self.seccomp)]);
        }
        if let Some(emulation) = &self.emulation {
            let mut words = vec![match emulation.scope {
                Scope::Everything => w("root"),
                Scope::DevicesAndAttributes => w("devices"),
            }];
            match &emulation.records {
                Records::Fresh => {}
                Records::Read(path) => words.extend([w("read"), path.as_bytes().to_vec()]),
                Records::Kept(path) => words.extend([w("keep"), path.as_bytes().to_vec()]),
            }
            text.line("emulate", &words);
        }
        if !self.directory.candidates.is_empty() {
            let words: Vec<Vec<u8>> = self.directory.candidates.iter().map(|c| c.as_bytes().to_vec()).collect();
            text.line("directory", &words);
        }
        for (name, value) in &self.environment {
            text.line("env", &[[name.as_slice(), b"=", value].concat()]);
        }
        if self.parent.init {
            text.line("init", &[]);
        }
        if self.parent.detached {
            text.line("detached", &[]);
        }
        if let Some(tree) = &self.parent.remove {
            text.line("remove", &[tree.as_bytes().to_vec()]);
        }
        match &self.command {
            Command::Program { arguments } => text.line("exec", arguments),
            Command::EmbeddedShell { driver, arguments } => {
                let mut words = vec![driver.clone()];
                words.extend(arguments.iter().cloned());
                text.line("shell", &words);
            }
        }
        text.0
    }

    /// Reads what [`LaunchPlan::to_text`] wrote; refuses everything else.
    pub fn from_text(text: &[u8]) -> Result<Self, PlanError> {
        let mut lines = text.split(|&b| b == b'\n').enumerate();
        match lines.next() {
            Some((_, b"sifu-plan 1")) => {}
            _ => return Err(PlanError { line: 1, reason: "does not begin with `sifu-plan 1`" }),
        }
        let mut draft = Draft::default();
        for (number, line) in lines {
            if line.is_empty() {
                continue;
            }
            parse_line(line, &mut draft).map_err(|reason| PlanError { line: number + 1, reason })?;
        }
        let end = text.split(|&b| b == b'\n').count();
        Ok(Self {
            identity: draft.identity.ok_or(PlanError { line: end, reason: "has no `identity` line" })?,
            command: draft.command.ok_or(PlanError { line: end, reason: "has no `exec` or `shell` line" })?,
            namespaces: draft.namespaces,
            join: draft.join,
            private_mounts: draft.private_mounts,
            share: draft.share,
            hostname: draft.hostname,
            steps: draft.steps,
            umask: draft.umask,
            user: draft.user,
            limits: draft.limits,
            capabilities: Capabilities { keep: draft.keep },
            seccomp: draft.seccomp,
            emulation: draft.emulation,
            directory: Directory { candidates: draft.candidates },
            environment: draft.environment,
            parent: draft.parent,
        })
    }
}

/// Where a plan's text is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanError {
    pub line: usize,
    pub reason: &'static str,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "launch plan, line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for PlanError {}

/// The text of one step, as in the plan; for messages.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Text(Vec::new());
        step_text(self, &mut text);
        let first = text.0.split(|&b| b == b'\n').next().unwrap_or_default();
        f.write_str(&String::from_utf8_lossy(first))
    }
}

struct Text(Vec<u8>);

impl Text {
    fn line(&mut self, verb: &str, words: &[Vec<u8>]) {
        self.0.extend_from_slice(verb.as_bytes());
        for word in words {
            self.0.push(b' ');
            escape(word, &mut self.0);
        }
        self.0.push(b'\n');
    }
}

fn w(word: &str) -> Vec<u8> {
    word.as_bytes().to_vec()
}

fn kv(name: &str, value: &u32) -> Vec<u8> {
    format!("{name}={value}").into_bytes()
}

fn step_text(step: &Step, text: &mut Text) {
    let path = |p: &ContainerPath| p.as_bytes().to_vec();
    let size = |options: &mut Vec<String>, bytes: &Option<u64>| {
        if let Some(bytes) = bytes {
            options.push(format!("size={bytes}"));
        }
    };
    match step {
        Step::RootServed { connection } => text.line("root", &[w("served"), connection.to_string().into_bytes()]),
        Step::RootDirectory { source, access } => {
            text.line("root", &[w("directory"), source.as_bytes().to_vec(), w(access_word(*access))])
        }
        Step::RootLayer { access, size_bytes, nodes } => {
            let mut options = vec![access_word(*access).to_owned()];
            size(&mut options, size_bytes);
            text.line("layer", &[options.join(",").into_bytes()]);
            for node in nodes {
                node_text("with", node, &[], text);
            }
        }
        Step::Bind { source, target, access, need, create } => {
            let mut options = vec![access_word(*access).to_owned()];
            need_word(&mut options, *need);
            create_word(&mut options, *create);
            text.line("bind", &[source.as_bytes().to_vec(), path(target), options.join(",").into_bytes()]);
        }
        Step::Device { source, target, need, create } => {
            let mut options = vec!["rw".to_owned()];
            need_word(&mut options, *need);
            create_word(&mut options, *create);
            text.line("dev", &[source.as_bytes().to_vec(), path(target), options.join(",").into_bytes()]);
        }
        Step::Image { connection, subdirectory, target, create } => {
            let mut options = vec!["ro".to_owned()];
            create_word(&mut options, *create);
            let number = connection.to_string().into_bytes();
            text.line("image", &[number, path(subdirectory), path(target), options.join(",").into_bytes()]);
        }
        Step::Tmpfs { target, mode, size_bytes, create } => {
            let mut options = vec![format!("mode={mode:04o}")];
            size(&mut options, size_bytes);
            create_word(&mut options, *create);
            text.line("tmpfs", &[path(target), options.join(",").into_bytes()]);
        }
        Step::File { target, mode, content } => {
            text.line("file", &[path(target), format!("mode={mode:04o}").into_bytes(), content.clone()])
        }
        Step::HostDirectory { path, mode } => {
            text.line("hostdir", &[path.as_bytes().to_vec(), format!("mode={mode:04o}").into_bytes()])
        }
        Step::Proc { target, or_host } => {
            text.line("proc", &[path(target), w(if *or_host { "new,host" } else { "new" })])
        }
        Step::Devpts { target } => text.line("devpts", &[path(target)]),
        Step::Mqueue { target } => text.line("mqueue", &[path(target)]),
        Step::Sysfs { target } => text.line("sysfs", &[path(target)]),
        Step::Sysctl { name, value } => text.line("sysctl", &[name.clone(), value.clone()]),
        Step::Mask { target } => text.line("mask", &[path(target)]),
        Step::Restrict { target, read_only, no_exec } => {
            let words = [(*read_only, "ro"), (*no_exec, "noexec")];
            let options: Vec<&str> = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect();
            text.line("restrict", &[path(target), options.join(",").into_bytes()]);
        }
        Step::Make { node, need } => {
            let mut options = Vec::new();
            need_word(&mut options, *need);
            node_text("make", node, &options, text);
        }
    }
}

fn node_text(verb: &str, node: &Node, options: &[String], text: &mut Text) {
    let (kind, content): (&str, &[u8]) = match &node.content {
        NodeContent::Directory => ("directory", b""),
        NodeContent::File(content) => ("file", content),
        NodeContent::Symlink(target) => ("symlink", target),
    };
    let mode = format!("{:04o}", node.mode).into_bytes();
    let mut words = vec![w(kind), node.path.as_bytes().to_vec(), mode, content.to_vec()];
    if !options.is_empty() {
        words.push(options.join(",").into_bytes());
    }
    text.line(verb, &words);
}

fn access_word(access: Access) -> &'static str {
    match access {
        Access::ReadOnly => "ro",
        Access::ReadWrite => "rw",
    }
}

fn need_word(options: &mut Vec<String>, need: Need) {
    if need == Need::Optional {
        options.push("optional".to_owned());
    }
}

fn create_word(options: &mut Vec<String>, create: bool) {
    if create {
        options.push("create".to_owned());
    }
}

/// Writes `word` as `fstab(5)` does: blanks, control bytes, backslashes and bytes above ASCII as `\ooo`; an empty word
/// is a lone backslash.
fn escape(word: &[u8], out: &mut Vec<u8>) {
    if word.is_empty() {
        out.push(b'\\');
    }
    for &byte in word {
        if byte > b' ' && byte < 0x7f && byte != b'\\' {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'\\', b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]);
        }
    }
}

fn unescape(word: &[u8]) -> Result<Vec<u8>, &'static str> {
    if word == b"\\" {
        return Ok(Vec::new());
    }
    if word.is_empty() {
        return Err("has two blanks in a row");
    }
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'\\' {
            out.push(byte);
            rest = tail;
            continue;
        }
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => return Err("has a backslash without three octal digits"),
        }
    }
    Ok(out)
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|b| format!("{b:02x}").into_bytes()).collect()
}

fn unhex(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    if !text.len().is_multiple_of(2) {
        return Err("has an odd number of hexadecimal digits");
    }
    text.chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| "has no hexadecimal digits")?;
            u8::from_str_radix(pair, 16).map_err(|_| "has no hexadecimal digits")
        })
        .collect()
}

#[derive(Default)]
struct Draft {
    identity: Option<Identity>,
    namespaces: Namespaces,
    join: Vec<Joined>,
    private_mounts: bool,
    share: Option<Vec<u8>>,
    hostname: Option<Vec<u8>>,
    steps: Vec<Step>,
    umask: Option<u32>,
    user: Option<User>,
    limits: Vec<Limit>,
    keep: u64,
    seccomp: Vec<u8>,
    emulation: Option<Emulation>,
    candidates: Vec<ContainerPath>,
    environment: Vec<(Vec<u8>, Vec<u8>)>,
    command: Option<Command>,
    parent: Parent,
}

/// The comma-separated last word of a step.
#[derive(Default)]
struct Options {
    read_only: bool,
    optional: bool,
    create: bool,
    no_exec: bool,
    size_bytes: Option<u64>,
    mode: Option<u32>,
}

impl Options {
    fn parse(word: &[u8]) -> Result<Self, &'static str> {
        let mut options = Self::default();
        for option in word.split(|&b| b == b',') {
            match option {
                b"ro" => options.read_only = true,
                b"rw" => {}
                b"optional" => options.optional = true,
                b"create" => options.create = true,
                b"noexec" => options.no_exec = true,
                _ if option.starts_with(b"size=") => options.size_bytes = Some(number(&option[5..])?),
                _ if option.starts_with(b"mode=") => options.mode = Some(octal(&option[5..])?),
                _ => return Err("has an unknown option"),
            }
        }
        Ok(options)
    }
    fn access(&self) -> Access {
        if self.read_only { Access::ReadOnly } else { Access::ReadWrite }
    }
    fn need(&self) -> Need {
        if self.optional { Need::Optional } else { Need::Required }
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, &'static str> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or("has a bad number")
}

fn octal(text: &[u8]) -> Result<u32, &'static str> {
    let value = std::str::from_utf8(text).ok().and_then(|t| u32::from_str_radix(t, 8).ok());
    value.filter(|v| *v <= 0o7777).ok_or("has a bad mode")
}

fn container(word: &[u8]) -> Result<ContainerPath, &'static str> {
    ContainerPath::parse(word).map_err(|_| "has a bad path in the container")
}

fn host(word: &[u8]) -> Result<HostPath, &'static str> {
    if word.contains(&0) { Err("has a NUL byte in a path") } else { Ok(HostPath::from_bytes(word)) }
}

fn no_nul(words: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, &'static str> {
    if words.iter().any(|word| word.contains(&0)) { Err("has a NUL byte") } else { Ok(words.to_vec()) }
}

const WRONG_WORDS: &str = "has a wrong number of words";

fn parse_line(line: &[u8], draft: &mut Draft) -> Result<(), &'static str> {
    let mut split = line.split(|&b| b == b' ');
    let verb = split.next().unwrap_or_default();
    let words = split.map(unescape).collect::<Result<Vec<_>, _>>()?;
    let words_ref: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    match (verb, words_ref.as_slice()) {
        (b"identity", _) => draft.identity = Some(parse_identity(&words_ref)?),
        (b"namespaces", names) => {
            for name in names {
                match *name {
                    b"pid" => draft.namespaces.pid = true,
                    b"ipc" => draft.namespaces.ipc = true,
                    b"uts" => draft.namespaces.uts = true,
                    b"net" => draft.namespaces.net = true,
                    b"cgroup" => draft.namespaces.cgroup = true,
                    _ => return Err("has an unknown namespace"),
                }
            }
        }
        (b"join", [kind, path]) => {
            let known = NamespaceKind::ALL.into_iter().find(|known| known.name().as_bytes() == *kind);
            draft.join.push(Joined { kind: known.ok_or("has an unknown namespace")?, path: host(path)? });
        }
        (b"user", [uid, gid, groups @ ..]) => {
            let groups = groups.iter().map(|group| id(group, "group=")).collect::<Result<_, _>>()?;
            draft.user = Some(User { uid: id(uid, "uid=")?, gid: id(gid, "gid=")?, groups });
        }
        (b"limit", [resource, soft, hard]) => {
            draft.limits.push(Limit { resource: number(resource)?, soft: number(soft)?, hard: number(hard)? });
        }
        (b"hostname", [name]) => draft.hostname = Some(name.to_vec()),
        (b"umask", [mask]) => draft.umask = Some(octal(mask)?),
        (b"capabilities", [keep]) => {
            let text = std::str::from_utf8(keep).map_err(|_| "has a bad capability set")?;
            draft.keep = u64::from_str_radix(text, 16).map_err(|_| "has a bad capability set")?;
        }
        (b"seccomp", [program]) => {
            draft.seccomp = unhex(program)?;
            if !draft.seccomp.len().is_multiple_of(8) {
                return Err("has a seccomp filter of a broken length");
            }
        }
        (b"emulate", [scope, records @ ..]) => {
            let scope = match *scope {
                b"root" => Scope::Everything,
                b"devices" => Scope::DevicesAndAttributes,
                _ => return Err("has nothing that can be emulated"),
            };
            let records = match records {
                [] => Records::Fresh,
                [b"read", path] => Records::Read(host(path)?),
                [b"keep", path] => Records::Kept(host(path)?),
                _ => return Err(WRONG_WORDS),
            };
            draft.emulation = Some(Emulation { scope, records });
        }
        (b"directory", [_, ..]) => {
            draft.candidates = words.iter().map(|word| container(word)).collect::<Result<_, _>>()?
        }
        (b"env", [pair]) => {
            let at = pair.iter().position(|&b| b == b'=').ok_or("has no `=`")?;
            if pair.contains(&0) {
                return Err("has a NUL byte");
            }
            draft.environment.push((pair[..at].to_vec(), pair[at + 1..].to_vec()));
        }
        (b"private", []) => draft.private_mounts = true,
        (b"share", [name]) => draft.share = Some(name.to_vec()),
        (b"init", []) => draft.parent.init = true,
        (b"detached", []) => draft.parent.detached = true,
        (b"remove", [tree]) => draft.parent.remove = Some(host(tree)?),
        (b"exec", _) => draft.command = Some(Command::Program { arguments: no_nul(&words)? }),
        (b"shell", [driver, ..]) => {
            draft.command = Some(Command::EmbeddedShell { driver: driver.to_vec(), arguments: no_nul(&words[1..])? })
        }
        (b"with", _) => {
            let (node, _) = parse_node(&words_ref)?;
            match draft.steps.last_mut() {
                Some(Step::RootLayer { nodes, .. }) => nodes.push(node),
                _ => return Err("has a `with` that follows no `layer`"),
            }
        }
        _ => draft.steps.push(parse_step(verb, &words_ref)?),
    }
    Ok(())
}

fn id(word: &[u8], name: &str) -> Result<u32, &'static str> {
    number(word.strip_prefix(name.as_bytes()).ok_or("has a bad id")?)
}

fn parse_identity(words: &[&[u8]]) -> Result<Identity, &'static str> {
    fn range(word: &[u8]) -> Result<IdRange, &'static str> {
        let mut parts = word.split(|&b| b == b':');
        let mut next = || number(parts.next().ok_or("has a bad id range")?);
        Ok(IdRange { inside: next()?, outside: next()?, count: next()? })
    }
    match words {
        [b"keep", uid, gid] => Ok(Identity::Keep { uid: id(uid, "uid=")?, gid: id(gid, "gid=")? }),
        [b"root", uid, gid] => Ok(Identity::Root { uid: id(uid, "uid=")?, gid: id(gid, "gid=")? }),
        [b"privileged"] => Ok(Identity::Privileged),
        [b"range", newuidmap, newgidmap, ranges @ ..] => {
            let (mut uids, mut gids) = (Vec::new(), Vec::new());
            for word in ranges {
                if let Some(text) = word.strip_prefix(b"uid=") {
                    uids.push(range(text)?);
                } else if let Some(text) = word.strip_prefix(b"gid=") {
                    gids.push(range(text)?);
                } else {
                    return Err("has a bad id range");
                }
            }
            Ok(Identity::Range { newuidmap: host(newuidmap)?, newgidmap: host(newgidmap)?, uids, gids })
        }
        _ => Err("has an unknown identity"),
    }
}

fn parse_node(words: &[&[u8]]) -> Result<(Node, Options), &'static str> {
    let [kind, path, mode, content, rest @ ..] = words else { return Err(WRONG_WORDS) };
    let options = match rest {
        [] => Options::default(),
        [options] => Options::parse(options)?,
        _ => return Err(WRONG_WORDS),
    };
    let content = match *kind {
        b"directory" => NodeContent::Directory,
        b"file" => NodeContent::File(content.to_vec()),
        b"symlink" if content.contains(&0) => return Err("has a NUL byte in a path"),
        b"symlink" => NodeContent::Symlink(content.to_vec()),
        _ => return Err("has an unknown kind of node"),
    };
    Ok((Node { path: container(path)?, mode: octal(mode)?, content }, options))
}

fn parse_step(verb: &[u8], words: &[&[u8]]) -> Result<Step, &'static str> {
    Ok(match (verb, words) {
        (b"root", [b"served", connection]) => Step::RootServed { connection: small(connection)? },
        (b"root", [b"directory", source, access]) => {
            Step::RootDirectory { source: host(source)?, access: Options::parse(access)?.access() }
        }
        (b"layer", [options]) => {
            let options = Options::parse(options)?;
            Step::RootLayer { access: options.access(), size_bytes: options.size_bytes, nodes: Vec::new() }
        }
        (b"bind", [source, target, options]) => {
            let options = Options::parse(options)?;
            Step::Bind {
                source: host(source)?,
                target: container(target)?,
                access: options.access(),
                need: options.need(),
                create: options.create,
            }
        }
        (b"dev", [source, target, options]) => {
            let options = Options::parse(options)?;
            Step::Device {
                source: host(source)?,
                target: container(target)?,
                need: options.need(),
                create: options.create,
            }
        }
        (b"image", [connection, subdirectory, target, options]) => Step::Image {
            connection: small(connection)?,
            subdirectory: container(subdirectory)?,
            target: container(target)?,
            create: Options::parse(options)?.create,
        },
        (b"tmpfs", [target, options]) => {
            let options = Options::parse(options)?;
            Step::Tmpfs {
                target: container(target)?,
                mode: options.mode.ok_or("has a tmpfs without a mode")?,
                size_bytes: options.size_bytes,
                create: options.create,
            }
        }
        (b"file", [target, mode, content]) => Step::File {
            target: container(target)?,
            mode: Options::parse(mode)?.mode.ok_or("has a file without a mode")?,
            content: content.to_vec(),
        },
        (b"hostdir", [path, mode]) => Step::HostDirectory {
            path: host(path)?,
            mode: Options::parse(mode)?.mode.ok_or("has a directory without a mode")?,
        },
        (b"proc", [target, b"new"]) => Step::Proc { target: container(target)?, or_host: false },
        (b"proc", [target, b"new,host"]) => Step::Proc { target: container(target)?, or_host: true },
        (b"devpts", [target]) => Step::Devpts { target: container(target)? },
        (b"mqueue", [target]) => Step::Mqueue { target: container(target)? },
        (b"sysfs", [target]) => Step::Sysfs { target: container(target)? },
        (b"sysctl", [name, value]) => Step::Sysctl { name: name.to_vec(), value: value.to_vec() },
        (b"mask", [target]) => Step::Mask { target: container(target)? },
        (b"restrict", [target, options]) => {
            let Options { read_only, no_exec, .. } = Options::parse(options)?;
            Step::Restrict { target: container(target)?, read_only, no_exec }
        }
        (b"make", _) => {
            let (node, options) = parse_node(words)?;
            Step::Make { node, need: options.need() }
        }
        _ => return Err("has an unknown verb or a wrong number of words"),
    })
}

/// Connections are few; a bound here keeps what is allocated for them small.
fn small(word: &[u8]) -> Result<usize, &'static str> {
    Some(number::<usize>(word)?).filter(|n| *n < 256).ok_or("has a bad connection number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> ContainerPath {
        ContainerPath::parse(path.as_bytes()).unwrap()
    }

    fn everything() -> LaunchPlan {
        let node = |path: &str, content| Node { path: at(path), mode: 0o644, content };
        LaunchPlan {
            identity: Identity::Range {
                newuidmap: HostPath::new("/usr/bin/newuidmap"),
                newgidmap: HostPath::new("/usr/bin/newgidmap"),
                uids: vec![
                    IdRange { inside: 0, outside: 1000, count: 1 },
                    IdRange { inside: 1, outside: 100_000, count: 65536 },
                ],
                gids: vec![IdRange { inside: 0, outside: 1000, count: 1 }],
            },
            namespaces: Namespaces { pid: true, ipc: true, uts: true, net: true, cgroup: true },
            join: vec![Joined { kind: NamespaceKind::Net, path: HostPath::new("/run/netns/a b") }],
            private_mounts: true,
            share: Some(b"sifu 1".to_vec()),
            hostname: Some(b"boxy".to_vec()),
            steps: vec![
                Step::RootServed { connection: 0 },
                Step::RootDirectory { source: HostPath::new("/srv/my box"), access: Access::ReadOnly },
                Step::RootLayer {
                    access: Access::ReadWrite,
                    size_bytes: Some(64 << 20),
                    nodes: vec![
                        node("/etc/passwd", NodeContent::File(b"root:x:0:0\n".to_vec())),
                        node("/mnt", NodeContent::Directory),
                    ],
                },
                Step::Bind {
                    source: HostPath::new("/home/ada"),
                    target: at("/home/ada"),
                    access: Access::ReadWrite,
                    need: Need::Optional,
                    create: true,
                },
                Step::Device { source: HostPath::new("/dev"), target: at("/dev"), need: Need::Required, create: false },
                Step::Device {
                    source: HostPath::new("/dev/null"),
                    target: at("/dev/null"),
                    need: Need::Optional,
                    create: true,
                },
                Step::Image { connection: 1, subdirectory: at("/"), target: at("/data"), create: false },
                Step::Tmpfs { target: at("/tmp"), mode: 0o1777, size_bytes: None, create: false },
                Step::File { target: at("/etc/group"), mode: 0o644, content: b"a:x:1:\n".to_vec() },
                Step::HostDirectory { path: HostPath::new("/scratch/w/tmp"), mode: 0o1777 },
                Step::Proc { target: at("/proc"), or_host: false },
                Step::Proc { target: at("/proc"), or_host: true },
                Step::Devpts { target: at("/dev/pts") },
                Step::Mqueue { target: at("/dev/mqueue") },
                Step::Sysfs { target: at("/sys") },
                Step::Sysctl { name: b"net.ipv4.ping_group_range".to_vec(), value: b"0 0".to_vec() },
                Step::Mask { target: at("/proc/kcore") },
                Step::Restrict { target: at("/proc/sys"), read_only: true, no_exec: false },
                Step::Restrict { target: at("/tmp"), read_only: true, no_exec: true },
                Step::Make {
                    node: node("/dev/fd", NodeContent::Symlink(b"/proc/self/fd".to_vec())),
                    need: Need::Optional,
                },
            ],
            umask: Some(0o22),
            user: Some(User { uid: 5, gid: 6, groups: vec![7, 8] }),
            limits: vec![Limit { resource: 7, soft: 1024, hard: u64::MAX }],
            capabilities: Capabilities { keep: 1 << 13 },
            seccomp: vec![1, 2, 3, 4, 5, 6, 7, 255],
            emulation: Some(Emulation {
                scope: Scope::DevicesAndAttributes,
                records: Records::Kept(HostPath::new("/a b")),
            }),
            directory: Directory { candidates: vec![at("/a b"), at("/")] },
            environment: vec![(b"A".to_vec(), b"x\ny \\z\xff=".to_vec()), (b"EMPTY".to_vec(), Vec::new())],
            command: Command::Program { arguments: vec![b"sh".to_vec(), b"".to_vec(), b"two words".to_vec()] },
            parent: Parent { init: true, detached: true, remove: Some(HostPath::new("/tmp/x")) },
        }
    }

    #[test]
    fn text_and_back_is_the_same_plan() {
        let plan = everything();
        assert_eq!(LaunchPlan::from_text(&plan.to_text()), Ok(plan.clone()));
        let shell = LaunchPlan {
            identity: Identity::Keep { uid: 1, gid: 2 },
            emulation: Some(Emulation { scope: Scope::Everything, records: Records::Fresh }),
            command: Command::EmbeddedShell { driver: b". /x\nexec \"$@\"".to_vec(), arguments: vec![] },
            parent: Parent::default(),
            ..plan
        };
        assert_eq!(LaunchPlan::from_text(&shell.to_text()), Ok(shell));
    }

    #[test]
    fn connections_are_one_more_than_the_highest_number() {
        assert_eq!(everything().connections(), 2);
    }

    #[test]
    fn what_is_no_plan_is_refused_with_its_line() {
        let check = |text: &str, line: usize, reason: &str| {
            let error = LaunchPlan::from_text(text.as_bytes()).unwrap_err();
            assert_eq!((error.line, error.reason), (line, reason), "{text}");
        };
        check("", 1, "does not begin with `sifu-plan 1`");
        check("sifu-plan 2\n", 1, "does not begin with `sifu-plan 1`");
        check("sifu-plan 1\nexec true\n", 3, "has no `identity` line");
        check("sifu-plan 1\nbind /a ../b rw\n", 2, "has a bad path in the container");
        check("sifu-plan 1\nbind /a /b/../c rw\n", 2, "has a bad path in the container");
        check("sifu-plan 1\nbind /a /b suid\n", 2, "has an unknown option");
        check("sifu-plan 1\nenv A=\\0\n", 2, "has a backslash without three octal digits");
        check("sifu-plan 1\nwith file /a 0644 x\n", 2, "has a `with` that follows no `layer`");
        check("sifu-plan 1\nroot served 999999999\n", 2, "has a bad connection number");
        check("sifu-plan 1\nemulate ada\n", 2, "has nothing that can be emulated");
        check("sifu-plan 1\nmount /a /b\n", 2, "has an unknown verb or a wrong number of words");
    }
}
