//! What the container's file system looks like: which mounts, in which order, on which targets. Pure.
//!
//! ```text
//! root, layer ─► /dev ─► host file systems ─► the site's binds ─► /proc, /sys ─► home ─► /tmp, /var/tmp ─► scratch
//!             ─► generated files: passwd, group, resolv.conf, hostname ─► accelerators ─► commands of the host
//!             ─► the user's binds, shallow ones first ─► the current directory
//! ```
//!
//! A target is looked up in the image, links followed inside it. One that the image lacks becomes a node: of the image
//! server, which shows it as if the image had it, or of a layer over a directory. Below a mount that an earlier step
//! makes, the image says nothing; there a target is made when it turns out to be missing.

use super::accounts::{self, Inside};
use super::binds::{Bind, BindError, parse_list};
use super::request::LaunchRequest;
use crate::conf::{MountDev, SiteConfig};
use crate::gpu::{GpuBind, GpuBinds, libraries};
use crate::host::facts::{HostFacts, Mount, PathFacts, PathKind, WorkingDirectory};
use crate::host_command::{self, HostCommand};
use crate::report::Hint;
use crate::tree::lookup::{self, Kind, Lookup, LookupError};
use starter::paths::{ContainerPath, HostPath};
use starter::plan::{Access, Need, Node, NodeContent, Step};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How the root is put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// By the image server, which invents what the image lacks.
    Served,
    /// A directory that stays as it is, seen through a layer where it lacks something.
    Directory(HostPath),
    /// A directory that the container changes.
    Writable(HostPath),
}

/// Everything that the layout follows from.
pub struct LayoutFacts<'a> {
    pub request: &'a LaunchRequest,
    pub site: &'a SiteConfig,
    pub root: Root,
    /// The image's tree.
    pub tree: &'a dyn Lookup,
    /// Holds the paths of [`sources`].
    pub host: &'a HostFacts,
    /// The user's binds, in order.
    pub binds: &'a [Bind],
    /// For each of `binds`: the image server connection, and whether the source is a directory there.
    pub images: &'a [Option<(usize, bool)>],
    /// What the host's accelerators bring; [`HostFacts::paths`] holds its sources.
    pub accelerators: &'a GpuBinds,
    /// The host's commands, and the program that relays to them.
    pub host_commands: Option<(&'a [HostCommand], HostPath)>,
    /// Ids inside.
    pub uid: u32,
    pub gid: u32,
}

/// The mounts, and what follows from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub steps: Vec<Step>,
    /// What the image server shows in addition.
    pub invented: Vec<Node>,
    /// Every mount point.
    pub covered: Vec<ContainerPath>,
    pub home: ContainerPath,
    /// Where to start, in order of preference.
    pub directories: Vec<ContainerPath>,
    /// Destinations of the user's binds that containers inside get too.
    pub nested_binds: Vec<Vec<u8>>,
    pub notices: Vec<Notice>,
}

/// Something to tell the user that stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something that containers have by default can't be had here.
    Skipped { target: ContainerPath, problem: PlaceProblem },
    /// Files of a driver that was asked for have no place here; the first of them.
    DriverSkipped { count: usize, target: ContainerPath, problem: PlaceProblem },
    /// A bind on a destination that has one already.
    SameDestination { said: String },
}

impl Notice {
    /// Whether it is worth a line by default: what nobody asked for is not.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::DriverSkipped { .. } | Self::SameDestination { .. })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped { target, problem } => write!(f, "not mounted on {target}: {problem}"),
            Self::DriverSkipped { count: 1, target, problem } => {
                write!(f, "a file of the host's driver is not mounted on {target}: {problem}")
            }
            Self::DriverSkipped { count, target, problem } => {
                write!(f, "{count} files of the host's driver are not mounted, the first on {target}: {problem}")
            }
            Self::SameDestination { said } => {
                write!(f, "`{said}` is ignored: an earlier bind has the same destination")
            }
        }
    }
}

/// Why a target can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceProblem {
    /// The image has a file there, and a directory should be mounted; or the other way round.
    Kinds {
        source_is_directory: bool,
    },
    /// The directory that is the root lacks it, and is to stay without.
    Missing,
    /// Something on the way is no directory.
    NotADirectory,
    TooManyLinks,
}

impl fmt::Display for PlaceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kinds { source_is_directory: true } => "it is a file in the image, and the source is a directory",
            Self::Kinds { source_is_directory: false } => "it is a directory in the image, and the source is a file",
            Self::Missing => "the image has no such file or directory, and --writable makes none",
            Self::NotADirectory => "something on the way is no directory in the image",
            Self::TooManyLinks => "too many symbolic links in the image",
        })
    }
}

/// Why there is no layout.
#[derive(Debug)]
pub enum LayoutError {
    Bind(BindError),
    /// The source of a bind that was asked for.
    Source {
        said: String,
        path: HostPath,
        errno: i32,
    },
    /// Its destination.
    Destination {
        said: String,
        target: ContainerPath,
        problem: PlaceProblem,
    },
    /// A bind over the whole container.
    OverRoot {
        said: String,
    },
    /// `--home`, `--scratch`, `--cwd` with something that is no path in the container.
    Path {
        flag: &'static str,
        said: String,
    },
    /// `user bind control = no`.
    BindsForbidden,
    Lookup(LookupError),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(error) => error.fmt(f),
            Self::Source { said, path, errno } => {
                let cause = crate::report::cause(&std::io::Error::from_raw_os_error(*errno));
                write!(f, "cannot bind `{said}`: {path}: {cause}")
            }
            Self::Destination { said, target, problem } => write!(f, "cannot bind `{said}` on {target}: {problem}"),
            Self::OverRoot { said } => write!(f, "cannot bind `{said}`: its destination is the container's root"),
            Self::Path { flag, said } => write!(f, "cannot use {flag} `{said}`: not an absolute path without `..`"),
            Self::BindsForbidden => f.write_str("this site allows no binds of users' own"),
            Self::Lookup(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LayoutError {}

impl Hint for LayoutError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Bind(error) => return error.hints(),
            Self::Destination { problem: PlaceProblem::Missing, .. } => {
                "Make it in the sandbox first, or leave --writable out."
            }
            Self::Destination { problem: PlaceProblem::Kinds { .. }, .. } => {
                "Bind files on files and directories on directories."
            }
            Self::OverRoot { .. } => "Bind on a directory below the root, such as `-B /:/host`.",
            Self::BindsForbidden => "The site's configuration says `user bind control = no`.",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// The user's binds, in order.
pub fn user_binds(request: &LaunchRequest) -> Result<Vec<Bind>, BindError> {
    let mut binds = Vec::new();
    for value in &request.binds {
        binds.extend(parse_list(value)?);
    }
    for value in &request.mounts {
        binds.push(super::binds::parse_mount(value)?);
    }
    Ok(binds)
}

/// The binds of the site that the request leaves in.
fn site_binds(request: &LaunchRequest, site: &SiteConfig) -> Result<Vec<Bind>, BindError> {
    if left_out(request, "bind-paths") {
        return Ok(Vec::new());
    }
    let mut binds = Vec::new();
    for value in &site.bind_paths {
        binds.extend(parse_list(value)?);
    }
    let unwanted = |bind: &Bind| {
        let destination = destination(bind).map(|path| path.as_bytes().to_vec());
        request.no_mount.iter().any(|word| destination.as_ref() == Some(word))
    };
    binds.retain(|bind| !unwanted(bind));
    Ok(binds)
}

/// Where a bind without a destination goes: to the source's own path.
fn destination(bind: &Bind) -> Option<ContainerPath> {
    bind.destination.clone().or_else(|| ContainerPath::parse(bind.source.as_bytes()).ok())
}

fn left_out(request: &LaunchRequest, word: &str) -> bool {
    request.no_mount.iter().any(|said| said == word.as_bytes())
}

/// The host paths that [`layout`] wants to know of.
pub fn sources(request: &LaunchRequest, site: &SiteConfig, binds: &[Bind]) -> Result<Vec<HostPath>, BindError> {
    let mut paths: Vec<HostPath> = ["/etc/resolv.conf", "/tmp", "/var/tmp"].map(HostPath::new).to_vec();
    paths.extend(site_binds(request, site)?.into_iter().chain(binds.iter().cloned()).map(|bind| bind.source));
    if let Some((source, _)) = request.home.as_deref().map(split_home) {
        paths.push(HostPath::from_bytes(source));
    }
    Ok(paths)
}

/// Splits `source[:destination]`.
fn split_home(value: &[u8]) -> (&[u8], Option<&[u8]>) {
    match value.iter().position(|&b| b == b':') {
        Some(at) => (&value[..at], Some(&value[at + 1..])),
        None => (value, None),
    }
}

/// A mount that a step makes.
struct Placed {
    target: ContainerPath,
    /// The host's path that it shows, if it shows one.
    source: Option<HostPath>,
    is_directory: bool,
}

/// Where to mount.
struct Place {
    path: ContainerPath,
    /// Whether the target may have to be made, inside a mount of an earlier step.
    create: bool,
}

struct Builder<'a> {
    facts: &'a LayoutFacts<'a>,
    steps: Vec<Step>,
    nodes: Vec<Node>,
    placed: Vec<Placed>,
    notices: Vec<Notice>,
}

/// Lays out the container.
pub fn layout(facts: &LayoutFacts) -> Result<Layout, LayoutError> {
    let mut builder = Builder { facts, steps: Vec::new(), nodes: Vec::new(), placed: Vec::new(), notices: Vec::new() };
    let home = builder.home_path()?;
    builder.devices()?;
    builder.host_file_systems()?;
    builder.site_binds()?;
    builder.kernel_file_systems()?;
    builder.home(&home)?;
    builder.temporary_directories()?;
    builder.scratch_directories()?;
    builder.generated_files(&home)?;
    builder.accelerators()?;
    builder.host_commands()?;
    let nested_binds = builder.user_binds()?;
    builder.current_directory()?;
    let directories = builder.directories(&home)?;
    let Builder { mut steps, nodes, placed, notices, .. } = builder;
    let size_bytes = session_bytes(facts.site);
    let writable = facts.request.writable_tmpfs && !facts.request.writable;
    let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
    let (root, layer) = match &facts.root {
        Root::Served => {
            let layer = writable.then(|| Step::RootLayer { access, size_bytes, nodes: Vec::new() });
            (Step::RootServed { connection: 0 }, layer)
        }
        Root::Directory(directory) => {
            let layer =
                (writable || !nodes.is_empty()).then(|| Step::RootLayer { access, size_bytes, nodes: nodes.clone() });
            (Step::RootDirectory { source: directory.clone(), access: Access::ReadOnly }, layer)
        }
        Root::Writable(directory) => {
            (Step::RootDirectory { source: directory.clone(), access: Access::ReadWrite }, None)
        }
    };
    steps.splice(0..0, std::iter::once(root).chain(layer));
    let invented = if facts.root == Root::Served { nodes } else { Vec::new() };
    let covered = placed.into_iter().map(|placed| placed.target).collect();
    Ok(Layout { steps, invented, covered, home, directories, nested_binds, notices })
}

/// What one tmpfs of a session may hold; without a limit of the site the kernel's, half of the memory.
fn session_bytes(site: &SiteConfig) -> Option<u64> {
    (site.sessiondir_max_size_mib > 0).then(|| site.sessiondir_max_size_mib.saturating_mul(1 << 20))
}

impl Builder<'_> {
    fn known(&self, path: &HostPath) -> Option<&PathFacts> {
        self.facts.host.paths.get(path).filter(|facts| facts.exists())
    }

    fn resolve(&self, path: &ContainerPath) -> Result<Result<lookup::Resolved, PlaceProblem>, LayoutError> {
        match lookup::resolve(self.facts.tree, path) {
            Ok(resolved) => Ok(Ok(resolved)),
            Err(LookupError::TooManyLinks { .. }) => Ok(Err(PlaceProblem::TooManyLinks)),
            Err(error) => Err(LayoutError::Lookup(error)),
        }
    }

    /// Finds or plans the target for a mount.
    fn place(&mut self, asked: &ContainerPath, is_directory: bool) -> Result<Result<Place, PlaceProblem>, LayoutError> {
        if self.below_a_mount(asked) {
            return Ok(Ok(Place { path: asked.clone(), create: true }));
        }
        let resolved = match self.resolve(asked)? {
            Ok(resolved) => resolved,
            Err(problem) => return Ok(Err(problem)),
        };
        if self.below_a_mount(&resolved.path) {
            // A link of the image leads there; what it says must make nothing in a directory of the host's.
            let create = !self.shows_the_host(&resolved.path);
            return Ok(Ok(Place { path: resolved.path, create }));
        }
        let wrong_kind = PlaceProblem::Kinds { source_is_directory: is_directory };
        if let Some(placed) = self.placed.iter().rev().find(|placed| placed.target == resolved.path) {
            let fits = placed.is_directory == is_directory;
            return Ok(if fits { Ok(Place { path: resolved.path, create: false }) } else { Err(wrong_kind) });
        }
        Ok(match resolved.stat {
            Some(stat) if (stat.kind == Kind::Directory) == is_directory => {
                Ok(Place { path: resolved.path, create: false })
            }
            Some(_) => Err(wrong_kind),
            None if matches!(self.facts.root, Root::Writable(_)) => Err(PlaceProblem::Missing),
            None if self.kind_of(&resolved.existing)? != Some(Kind::Directory) => Err(PlaceProblem::NotADirectory),
            None => {
                self.nodes.push(mount_point(resolved.path.clone(), is_directory));
                Ok(Place { path: resolved.path, create: false })
            }
        })
    }

    fn kind_of(&self, path: &ContainerPath) -> Result<Option<Kind>, LayoutError> {
        Ok(self.facts.tree.lstat(path).map_err(LayoutError::Lookup)?.map(|stat| stat.kind))
    }

    /// As [`Builder::place`] for a file that stands for itself where the image has a link: what the link leads to, such
    /// as a time zone, stays what it is.
    fn place_itself(&mut self, asked: &ContainerPath) -> Result<Result<Place, PlaceProblem>, LayoutError> {
        let resolved = match self.resolve(asked)? {
            Ok(resolved) => resolved,
            Err(problem) => return Ok(Err(problem)),
        };
        if !resolved.last_was_link {
            return self.place(asked, false);
        }
        if matches!(self.facts.root, Root::Writable(_)) {
            return Ok(Err(PlaceProblem::Missing));
        }
        let parent = match self.resolve(&asked.parent())? {
            Ok(parent) => parent.path,
            Err(problem) => return Ok(Err(problem)),
        };
        let Ok(path) = parent.join(asked.name()) else { return Ok(Err(PlaceProblem::NotADirectory)) };
        if !self.placed.iter().any(|placed| placed.target == path) {
            self.nodes.push(mount_point(path.clone(), false));
        }
        Ok(Ok(Place { path, create: false }))
    }

    fn below_a_mount(&self, path: &ContainerPath) -> bool {
        self.placed
            .iter()
            .any(|placed| placed.is_directory && *path != placed.target && path.starts_with(&placed.target))
    }

    /// Whether `path` lies in a directory of the host's.
    fn shows_the_host(&self, path: &ContainerPath) -> bool {
        let around = self.placed.iter().filter(|placed| placed.is_directory && path.starts_with(&placed.target));
        around.max_by_key(|placed| placed.target.components().count()).is_some_and(|placed| placed.source.is_some())
    }

    fn put(&mut self, target: ContainerPath, source: Option<HostPath>, is_directory: bool, step: Step) {
        self.placed.push(Placed { target, source, is_directory });
        self.steps.push(step);
    }

    /// Plans something that containers have by default, which may be missing.
    fn by_default(
        &mut self,
        asked: &ContainerPath,
        source: Option<HostPath>,
        is_directory: bool,
        step: impl FnOnce(Place) -> Step,
    ) -> Result<(), LayoutError> {
        match self.place(asked, is_directory)? {
            Ok(place) => {
                let target = place.path.clone();
                self.put(target, source, is_directory, step(place));
            }
            Err(problem) => self.notices.push(Notice::Skipped { target: asked.clone(), problem }),
        }
        Ok(())
    }

    fn bind_by_default(&mut self, source: &str, target: &ContainerPath, need: Need) -> Result<(), LayoutError> {
        let source = HostPath::new(source);
        self.by_default(target, Some(source.clone()), true, |place| Step::Bind {
            source,
            target: place.path,
            access: Access::ReadWrite,
            need,
            create: place.create,
        })
    }

    // ---- /dev, /proc, /sys ----

    fn devices(&mut self) -> Result<(), LayoutError> {
        let dev = ContainerPath::fixed("/dev");
        let request = self.facts.request;
        if left_out(request, "dev") || self.facts.site.mount_dev == MountDev::No {
            return Ok(());
        }
        if !request.contain && self.facts.site.mount_dev == MountDev::Yes {
            let source = HostPath::new("/dev");
            return self.by_default(&dev, Some(source.clone()), true, |place| Step::Device {
                source,
                target: place.path,
                need: Need::Required,
                create: place.create,
            });
        }
        let size_bytes = session_bytes(self.facts.site);
        let before = self.steps.len();
        self.by_default(&dev, None, true, |place| Step::Tmpfs {
            target: place.path,
            mode: 0o755,
            size_bytes,
            create: place.create,
        })?;
        if self.steps.len() == before {
            return Ok(());
        }
        for name in ["null", "zero", "random", "urandom", "tty"] {
            self.device(name, HostPath::new(format!("/dev/{name}")))?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            self.make_in_dev(name, NodeContent::Symlink(target.as_bytes().to_vec()));
        }
        if let Ok(target) = dev.join(b"shm") {
            self.steps.push(Step::Tmpfs { target, mode: 0o1777, size_bytes, create: true });
        }
        if self.facts.site.mount_devpts && !left_out(request, "devpts") {
            if let Ok(target) = dev.join(b"pts") {
                self.make_in_dev("pts", NodeContent::Directory);
                self.steps.push(Step::Devpts { target });
            }
            self.make_in_dev("ptmx", NodeContent::Symlink(b"pts/ptmx".to_vec()));
        }
        if self.facts.host.terminal.stdin {
            self.device("console", HostPath::new("/proc/self/fd/0"))?;
        }
        if request.ipc
            && let Ok(target) = dev.join(b"mqueue")
        {
            self.make_in_dev("mqueue", NodeContent::Directory);
            self.steps.push(Step::Mqueue { target });
        }
        Ok(())
    }

    fn device(&mut self, name: &str, source: HostPath) -> Result<(), LayoutError> {
        if let Ok(target) = ContainerPath::fixed("/dev").join(name.as_bytes()) {
            self.steps.push(Step::Device { source, target, need: Need::Optional, create: true });
        }
        Ok(())
    }

    fn make_in_dev(&mut self, name: &str, content: NodeContent) {
        if let Ok(path) = ContainerPath::fixed("/dev").join(name.as_bytes()) {
            self.steps.push(Step::Make { node: Node { path, mode: 0o755, content }, need: Need::Optional });
        }
    }

    fn kernel_file_systems(&mut self) -> Result<(), LayoutError> {
        let request = self.facts.request;
        if self.facts.site.mount_proc && !left_out(request, "proc") {
            let proc = ContainerPath::fixed("/proc");
            if request.pid {
                let or_host = !request.strict;
                self.by_default(&proc, None, true, |place| Step::Proc { target: place.path, or_host })?;
            } else {
                self.bind_by_default("/proc", &proc, Need::Required)?;
            }
        }
        if self.facts.site.mount_sys && !left_out(request, "sys") {
            self.bind_by_default("/sys", &ContainerPath::fixed("/sys"), Need::Optional)?;
        }
        Ok(())
    }

    // ---- what the site adds ----

    fn host_file_systems(&mut self) -> Result<(), LayoutError> {
        if !self.facts.site.mount_hostfs || left_out(self.facts.request, "hostfs") || self.facts.request.contain {
            return Ok(());
        }
        let mounts = self.facts.host.mounts.as_deref().unwrap_or_default();
        let wanted: Vec<HostPath> =
            mounts.iter().filter(|mount| holds_data(mount)).map(|m| m.mount_point.clone()).collect();
        for source in wanted {
            let Ok(target) = ContainerPath::parse(source.as_bytes()) else { continue };
            self.by_default(&target, Some(source.clone()), true, |place| Step::Bind {
                source,
                target: place.path,
                access: Access::ReadWrite,
                need: Need::Optional,
                create: false,
            })?;
        }
        Ok(())
    }

    fn site_binds(&mut self) -> Result<(), LayoutError> {
        for bind in site_binds(self.facts.request, self.facts.site).map_err(LayoutError::Bind)? {
            let (Some(target), Some(facts)) = (destination(&bind), self.known(&bind.source)) else { continue };
            let is_directory = facts.kind == PathKind::Directory;
            let place = if is_directory { self.place(&target, true)? } else { self.place_itself(&target)? };
            match place {
                Ok(place) => {
                    let access = if bind.read_only { Access::ReadOnly } else { Access::ReadWrite };
                    let source = bind.source.clone();
                    let step = Step::Bind {
                        source: bind.source,
                        target: place.path.clone(),
                        access,
                        need: Need::Optional,
                        create: place.create,
                    };
                    self.put(place.path, Some(source), is_directory, step);
                }
                Err(problem) => self.notices.push(Notice::Skipped { target, problem }),
            }
        }
        Ok(())
    }

    // ---- home and temporary directories ----

    /// The home directory's path inside.
    fn home_path(&self) -> Result<ContainerPath, LayoutError> {
        let request = self.facts.request;
        if let Some(value) = &request.home {
            let (source, destination) = split_home(value);
            let said = destination.unwrap_or(source);
            let absolute = match self.absolute(said) {
                Some(path) if destination.is_none() => path,
                _ => said.to_vec(),
            };
            return ContainerPath::parse(&absolute)
                .map_err(|_| LayoutError::Path { flag: "--home", said: String::from_utf8_lossy(value).into_owned() });
        }
        if self.facts.uid == 0 && self.facts.host.user.uid != 0 {
            return Ok(ContainerPath::fixed("/root"));
        }
        Ok(ContainerPath::parse(self.facts.host.home.logical.as_bytes()).unwrap_or_else(|_| ContainerPath::root()))
    }

    /// A path of the host without its relation to the current directory.
    fn absolute(&self, path: &[u8]) -> Option<Vec<u8>> {
        if path.first() == Some(&b'/') {
            return Some(path.to_vec());
        }
        match &self.facts.host.working_directory {
            WorkingDirectory::Known { logical, .. } => Some([logical.as_bytes(), b"/", path].concat()),
            _ => None,
        }
    }

    fn home(&mut self, home: &ContainerPath) -> Result<(), LayoutError> {
        let request = self.facts.request;
        let asked = request.home.as_deref();
        if request.no_home
            || left_out(request, "home")
            || (!self.facts.site.mount_home && asked.is_none())
            || home.is_root()
        {
            return Ok(());
        }
        let source = match asked {
            Some(value) => {
                let (source, _) = split_home(value);
                let path = HostPath::from_bytes(source);
                match self.facts.host.paths.get(&path).map(|facts| facts.kind) {
                    Some(PathKind::Directory) => {}
                    Some(PathKind::Absent { errno }) => {
                        return Err(LayoutError::Source { said: format!("--home {path}"), path, errno });
                    }
                    _ => {
                        const ENOTDIR: i32 = 20;
                        return Err(LayoutError::Source { said: format!("--home {path}"), path, errno: ENOTDIR });
                    }
                }
                path
            }
            None if request.contain => return self.contained(home, "home", 0o755),
            None => match &self.facts.host.home.physical {
                Some(_) => self.facts.host.home.logical.clone(),
                // A home that is not there is made up, so that programs can write to it.
                None => return self.contained(home, "home", 0o755),
            },
        };
        self.by_default(home, Some(source.clone()), true, |place| Step::Bind {
            source,
            target: place.path,
            access: Access::ReadWrite,
            need: if asked.is_some() { Need::Required } else { Need::Optional },
            create: place.create,
        })
    }

    /// An empty directory, in memory or below `--workdir`.
    fn contained(&mut self, target: &ContainerPath, name: &str, mode: u32) -> Result<(), LayoutError> {
        let size_bytes = session_bytes(self.facts.site);
        match &self.facts.request.workdir {
            None => self.by_default(target, None, true, |place| Step::Tmpfs {
                target: place.path,
                mode,
                size_bytes,
                create: place.create,
            }),
            Some(workdir) => {
                let source = HostPath::new(Path::new(workdir).join(name));
                self.by_default(target, None, true, |place| Step::Bind {
                    source: source.clone(),
                    target: place.path,
                    access: Access::ReadWrite,
                    need: Need::Required,
                    create: place.create,
                })?;
                self.steps.insert(0, Step::HostDirectory { path: source, mode });
                Ok(())
            }
        }
    }

    fn temporary_directories(&mut self) -> Result<(), LayoutError> {
        let request = self.facts.request;
        if left_out(request, "tmp") || !self.facts.site.mount_tmp {
            return Ok(());
        }
        for (path, name) in [("/tmp", "tmp"), ("/var/tmp", "var_tmp")] {
            let target = ContainerPath::fixed(path);
            // A link, usually of one to the other, stays one.
            if self.resolve(&target)?.is_ok_and(|resolved| resolved.last_was_link) {
                continue;
            }
            if request.contain {
                self.contained(&target, name, 0o1777)?;
            } else if self.known(&HostPath::new(path)).is_some_and(|facts| facts.kind == PathKind::Directory) {
                self.bind_by_default(path, &target, Need::Optional)?;
            }
        }
        Ok(())
    }

    fn scratch_directories(&mut self) -> Result<(), LayoutError> {
        for said in &self.facts.request.scratch {
            let wrong = || LayoutError::Path { flag: "--scratch", said: String::from_utf8_lossy(said).into_owned() };
            let target = ContainerPath::parse(said).map_err(|_| wrong())?;
            if target.is_root() {
                return Err(wrong());
            }
            let name = Path::new("scratch").join(target.relative());
            let name = String::from_utf8_lossy(name.as_os_str().as_bytes()).into_owned();
            self.contained(&target, &name, 0o755)?;
        }
        Ok(())
    }

    // ---- files made for this container ----

    fn generated_files(&mut self, home: &ContainerPath) -> Result<(), LayoutError> {
        let (request, site, host) = (self.facts.request, self.facts.site, self.facts.host);
        let inside = Inside { user: &host.user, uid: self.facts.uid, gid: self.facts.gid, home };
        // A root that may change the files itself gets no second ones over them.
        let wanted = !(self.facts.uid == 0 && matches!(self.facts.root, Root::Writable(_)));
        type Make = fn(&[u8], &Inside) -> Vec<u8>;
        let files: [(&'static str, bool, Make); 2] =
            [("/etc/passwd", site.config_passwd, accounts::passwd), ("/etc/group", site.config_group, accounts::group)];
        for (path, configured, make) in files.into_iter().filter(|_| wanted) {
            let path = ContainerPath::fixed(path);
            if !configured || self.below_a_mount(&path) {
                continue;
            }
            let Ok(resolved) = self.resolve(&path)? else { continue };
            if !matches!(&resolved.stat, Some(stat) if stat.kind == Kind::File) {
                continue;
            }
            /// Larger files are no password files.
            const LIMIT: u64 = 16 << 20;
            let content = match self.facts.tree.read_file(&resolved.path, LIMIT) {
                Ok(Some(content)) => content,
                Ok(None) | Err(LookupError::TooLarge { .. } | LookupError::Denied { .. }) => continue,
                Err(error) => return Err(LayoutError::Lookup(error)),
            };
            self.generate(resolved.path, make(&content, &inside));
        }
        let resolver = ContainerPath::fixed("/etc/resolv.conf");
        let unwanted = left_out(request, "/etc/resolv.conf") || self.below_a_mount(&resolver);
        if !request.dns.is_empty() {
            let lines = request.dns.iter().flat_map(|address| [b"nameserver ".as_slice(), address, b"\n"].concat());
            self.generate_itself(&resolver, lines.collect())?;
        } else if site.config_resolv_conf && !unwanted && self.known(&HostPath::new("/etc/resolv.conf")).is_some() {
            match self.place_itself(&resolver)? {
                Ok(place) => {
                    let source = HostPath::new("/etc/resolv.conf");
                    let step = Step::Bind {
                        source: source.clone(),
                        target: place.path.clone(),
                        access: Access::ReadWrite,
                        need: Need::Optional,
                        create: place.create,
                    };
                    self.put(place.path, Some(source), false, step);
                }
                Err(problem) => self.notices.push(Notice::Skipped { target: resolver, problem }),
            }
        }
        if let Some(name) = &request.hostname {
            self.generate_itself(&ContainerPath::fixed("/etc/hostname"), [name.as_slice(), b"\n"].concat())?;
        }
        Ok(())
    }

    fn generate_itself(&mut self, path: &ContainerPath, content: Vec<u8>) -> Result<(), LayoutError> {
        match self.place_itself(path)? {
            Ok(place) => self.generate(place.path, content),
            Err(problem) => self.notices.push(Notice::Skipped { target: path.clone(), problem }),
        }
        Ok(())
    }

    fn generate(&mut self, path: ContainerPath, content: Vec<u8>) {
        self.nodes.retain(|node| node.path != path);
        match self.facts.root {
            Root::Served | Root::Directory(_) => {
                self.nodes.push(Node { path, mode: 0o644, content: NodeContent::File(content) })
            }
            Root::Writable(_) => self.put(path.clone(), None, false, Step::File { target: path, mode: 0o644, content }),
        }
    }

    // ---- accelerators ----

    fn accelerators(&mut self) -> Result<(), LayoutError> {
        let facts = self.facts;
        let whole_dev = self.placed.iter().any(|placed| placed.target.as_bytes() == b"/dev" && placed.source.is_some());
        if !whole_dev {
            for (path, mode) in &facts.accelerators.modes {
                if self.below_a_mount(path) && !self.shows_the_host(path) {
                    let node = Node { path: path.clone(), mode: *mode, content: NodeContent::Directory };
                    self.steps.push(Step::Make { node, need: Need::Optional });
                }
            }
        }
        self.room_for_libraries()?;
        let mut skipped = Vec::new();
        for bind in &facts.accelerators.binds {
            let as_on_the_host = bind.source.as_bytes() == bind.target.as_bytes();
            if !(whole_dev && as_on_the_host && bind.target.starts_with(&ContainerPath::fixed("/dev"))) {
                skipped.extend(self.accelerator_bind(bind)?.map(|problem| (bind.target.clone(), problem)));
            }
        }
        let count = skipped.len();
        if let Some((target, problem)) = skipped.into_iter().next() {
            self.notices.push(Notice::DriverSkipped { count, target, problem });
        }
        for hidden in facts.accelerators.hidden.iter().filter(|_| whole_dev) {
            // An empty file that nobody may open: drivers pass over devices that they can't open.
            let target = hidden.path.clone();
            self.put(target.clone(), None, false, Step::File { target, mode: 0, content: Vec::new() });
        }
        for (path, content) in &facts.accelerators.files {
            self.generate_itself(path, content.clone())?;
        }
        for (path, target) in &facts.accelerators.links {
            self.accelerator_link(path, target)?;
        }
        Ok(())
    }

    /// A root that gets no mount points has an empty directory for the libraries, where a mount of its own has room.
    fn room_for_libraries(&mut self) -> Result<(), LayoutError> {
        if !matches!(self.facts.root, Root::Writable(_)) {
            return Ok(());
        }
        for directory in [libraries::DIRECTORY, libraries::NARROW_DIRECTORY].map(ContainerPath::fixed) {
            if self.facts.accelerators.binds.iter().any(|bind| bind.target.parent() == directory) {
                self.memory_over(&directory)?;
            }
        }
        Ok(())
    }

    /// Plans a file system in memory over an empty directory, if there is one.
    fn memory_over(&mut self, directory: &ContainerPath) -> Result<(), LayoutError> {
        let Ok(resolved) = self.resolve(directory)? else { return Ok(()) };
        let entries = self.facts.tree.read_dir(&resolved.path).map_err(LayoutError::Lookup)?;
        let empty = entries.is_some_and(|entries| entries.is_empty());
        if empty && !self.below_a_mount(&resolved.path) {
            let (target, size_bytes) = (resolved.path.clone(), session_bytes(self.facts.site));
            self.put(resolved.path, None, true, Step::Tmpfs { target, mode: 0o755, size_bytes, create: false });
        }
        Ok(())
    }

    /// Plans a mount; returns why a file that the container can do without has no place.
    fn accelerator_bind(&mut self, bind: &GpuBind) -> Result<Option<PlaceProblem>, LayoutError> {
        let said = || format!("{} ({})", bind.source, bind.reason);
        let is_directory = match self.facts.host.paths.get(&bind.source).map(|facts| facts.kind) {
            Some(PathKind::Absent { errno }) if bind.required => {
                return Err(LayoutError::Source { said: said(), path: bind.source.clone(), errno });
            }
            None | Some(PathKind::Absent { .. }) => return Ok(None),
            Some(kind) => kind == PathKind::Directory,
        };
        let place = match self.place(&bind.target, is_directory)? {
            Ok(place) => place,
            Err(problem) if bind.required => {
                return Err(LayoutError::Destination { said: said(), target: bind.target.clone(), problem });
            }
            Err(problem) => return Ok(Some(problem)),
        };
        let (source, target) = (bind.source.clone(), place.path.clone());
        let need = if bind.required { Need::Required } else { Need::Optional };
        // Nobody said this path on the command line, so nothing is made on the host for it.
        let create = place.create && !self.shows_the_host(&place.path);
        let step = if bind.device() {
            Step::Device { source, target, need, create }
        } else {
            let access = if bind.read_only() { Access::ReadOnly } else { Access::ReadWrite };
            Step::Bind { source, target, access, need, create }
        };
        self.put(place.path, Some(bind.source.clone()), is_directory, step);
        Ok(None)
    }

    /// Plans a symbolic link where there is nothing.
    fn accelerator_link(&mut self, path: &ContainerPath, target: &[u8]) -> Result<(), LayoutError> {
        let content = NodeContent::Symlink(target.to_vec());
        if self.below_a_mount(path) {
            if self.shows_the_host(path) {
                return Ok(());
            }
            let node = Node { path: path.clone(), mode: 0o777, content };
            self.steps.push(Step::Make { node, need: Need::Optional });
            return Ok(());
        }
        let Ok(resolved) = self.resolve(path)? else { return Ok(()) };
        let taken = self.nodes.iter().any(|node| node.path == resolved.path);
        if taken || resolved.last_was_link || resolved.stat.is_some() {
            return Ok(());
        }
        if matches!(self.facts.root, Root::Writable(_)) {
            self.notices.push(Notice::Skipped { target: path.clone(), problem: PlaceProblem::Missing });
        } else if self.kind_of(&resolved.existing)? == Some(Kind::Directory) {
            self.nodes.push(Node { path: resolved.path, mode: 0o777, content });
        }
        Ok(())
    }

    // ---- commands of the host ----

    /// A directory in memory, so that it is the same whatever the root is, and writable for the socket to come.
    fn host_commands(&mut self) -> Result<(), LayoutError> {
        let Some((commands, relay)) = &self.facts.host_commands else { return Ok(()) };
        let asked = ContainerPath::fixed(host_command::DIRECTORY);
        let said = || "--host-cmd".to_owned();
        let wrong = |problem| LayoutError::Destination { said: said(), target: asked.clone(), problem };
        let place = self.place(&asked, true)?.map_err(wrong)?;
        let directory = place.path.clone();
        let step = Step::Tmpfs { target: place.path, mode: 0o755, size_bytes: Some(1 << 20), create: place.create };
        self.put(directory, None, true, step);
        for command in *commands {
            let path = asked.join(&command.name);
            let path = path.map_err(|_| LayoutError::Path { flag: "--host-cmd", said: said() })?;
            let node = Node { path, mode: 0o755, content: NodeContent::File(host_command::script()) };
            self.steps.push(Step::Make { node, need: Need::Required });
        }
        let target = ContainerPath::fixed(host_command::RELAY);
        let (source, access, need) = (relay.clone(), Access::ReadOnly, Need::Required);
        self.put(target.clone(), Some(relay.clone()), false, Step::Bind { source, target, access, need, create: true });
        Ok(())
    }

    // ---- what the user adds ----

    fn user_binds(&mut self) -> Result<Vec<Vec<u8>>, LayoutError> {
        let facts = self.facts;
        if !facts.binds.is_empty() && !facts.site.user_bind_control {
            return Err(LayoutError::BindsForbidden);
        }
        let mut binds: Vec<(ContainerPath, usize, &Bind)> = Vec::new();
        for (index, bind) in facts.binds.iter().enumerate() {
            let target = match &bind.destination {
                Some(target) => target.clone(),
                None => self
                    .absolute(bind.source.as_bytes())
                    .and_then(|path| ContainerPath::parse(&clean(&path)).ok())
                    .ok_or_else(|| LayoutError::Path { flag: "--bind", said: bind.said.clone() })?,
            };
            if target.is_root() {
                return Err(LayoutError::OverRoot { said: bind.said.clone() });
            }
            binds.push((target, index, bind));
        }
        // A bind inside another one comes after it, whatever the order they were said in.
        binds.sort_by_key(|(target, _, _)| target.components().count());
        let mut seen: Vec<(ContainerPath, &Bind)> = Vec::new();
        let mut nested = Vec::new();
        for (target, index, bind) in binds {
            if let Some((_, first)) = seen.iter().find(|(taken, _)| *taken == target) {
                if first.source != bind.source {
                    self.notices.push(Notice::SameDestination { said: bind.said.clone() });
                }
                continue;
            }
            self.user_bind(&target, bind, facts.images.get(index).copied().flatten())?;
            if !bind.nonested {
                nested.push(target.as_bytes().to_vec());
            }
            seen.push((target, bind));
        }
        Ok(nested)
    }

    fn user_bind(
        &mut self,
        target: &ContainerPath,
        bind: &Bind,
        image: Option<(usize, bool)>,
    ) -> Result<(), LayoutError> {
        let is_directory = match (image, self.facts.host.paths.get(&bind.source)) {
            (Some((_, is_directory)), _) => is_directory,
            (None, Some(PathFacts { kind: PathKind::Absent { errno }, .. })) => {
                let path = bind.source.clone();
                return Err(LayoutError::Source { said: bind.said.clone(), path, errno: *errno });
            }
            (None, facts) => facts.is_some_and(|facts| facts.kind == PathKind::Directory),
        };
        let place = self.place(target, is_directory)?.map_err(|problem| LayoutError::Destination {
            said: bind.said.clone(),
            target: target.clone(),
            problem,
        })?;
        let step = match (image, &bind.image) {
            (Some((connection, _)), Some(part)) => Step::Image {
                connection,
                subdirectory: part.path.clone(),
                target: place.path.clone(),
                create: place.create,
            },
            _ if bind.source.as_path().starts_with("/dev") && !bind.read_only => Step::Device {
                source: bind.source.clone(),
                target: place.path.clone(),
                need: Need::Required,
                create: place.create,
            },
            _ => Step::Bind {
                source: bind.source.clone(),
                target: place.path.clone(),
                access: if bind.read_only { Access::ReadOnly } else { Access::ReadWrite },
                need: Need::Required,
                create: place.create,
            },
        };
        let source = image.is_none().then(|| bind.source.clone());
        self.put(place.path, source, is_directory, step);
        Ok(())
    }

    // ---- the current directory ----

    fn current_directory(&mut self) -> Result<(), LayoutError> {
        /// What the image has there is worth more than what the host has.
        const NEVER: [&str; 10] = ["/", "/etc", "/bin", "/mnt", "/usr", "/var", "/opt", "/sbin", "/lib", "/lib64"];
        const NEVER_BELOW: [&str; 3] = ["/sys", "/proc", "/dev"];
        let request = self.facts.request;
        if request.contain || left_out(request, "cwd") {
            return Ok(());
        }
        let WorkingDirectory::Known { logical, physical } = &self.facts.host.working_directory else { return Ok(()) };
        let path = physical.as_path();
        if NEVER.iter().any(|never| path == Path::new(never)) || NEVER_BELOW.iter().any(|never| path.starts_with(never))
        {
            return Ok(());
        }
        if self.shows(physical, physical) || self.shows(logical, physical) {
            return Ok(());
        }
        let Ok(target) = ContainerPath::parse(physical.as_bytes()) else { return Ok(()) };
        // Inside something that the user has put there, nothing is made.
        if self.placed.iter().any(|placed| target.starts_with(&placed.target)) {
            return Ok(());
        }
        self.by_default(&target, Some(physical.clone()), true, |place| Step::Bind {
            source: physical.clone(),
            target: place.path,
            access: Access::ReadWrite,
            need: Need::Optional,
            create: false,
        })
    }

    /// Whether the mounts so far show the host's directory `physical` at the path `seen`.
    fn shows(&self, seen: &HostPath, physical: &HostPath) -> bool {
        let Ok(path) = ContainerPath::parse(seen.as_bytes()) else { return false };
        let mut deepest: Option<&Placed> = None;
        for placed in self.placed.iter().filter(|placed| path.starts_with(&placed.target)) {
            if deepest.is_none_or(|so_far| placed.target.starts_with(&so_far.target)) {
                deepest = Some(placed);
            }
        }
        let Some(Placed { target, source: Some(source), .. }) = deepest else { return false };
        let Ok(rest) = path.as_path().strip_prefix(target.as_path()) else { return false };
        let home = &self.facts.host.home;
        let whole = |source: &HostPath| HostPath::new(source.as_path().join(rest));
        // A home behind a link shows the directory that the link leads to.
        let shown = [Some(source.clone()), (*source == home.logical).then(|| home.physical.clone()).flatten()];
        shown.into_iter().flatten().any(|source| {
            let whole = whole(&source);
            strip_slash(whole.as_path()) == strip_slash(physical.as_path())
                || strip_slash(whole.as_path()) == strip_slash(seen.as_path())
        })
    }

    /// Where the command starts.
    fn directories(&self, home: &ContainerPath) -> Result<Vec<ContainerPath>, LayoutError> {
        let request = self.facts.request;
        if let Some(said) = &request.cwd {
            let path = ContainerPath::parse(&clean(said))
                .map_err(|_| LayoutError::Path { flag: "--cwd", said: String::from_utf8_lossy(said).into_owned() })?;
            return Ok(vec![path]);
        }
        let mut directories = Vec::new();
        if let (false, WorkingDirectory::Known { logical, physical }) =
            (request.contain, &self.facts.host.working_directory)
        {
            let first = if self.shows(logical, physical) { logical } else { physical };
            directories.extend(ContainerPath::parse(first.as_bytes()));
        }
        directories.push(home.clone());
        directories.push(ContainerPath::root());
        directories.dedup();
        Ok(directories)
    }
}

/// Takes `..` and `.` away by name, as users mean it who write a path relative to where they stand.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    [b"/".as_slice(), &names.join(&b'/')].concat()
}

fn strip_slash(path: &Path) -> &OsStr {
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_suffix(b"/") {
        Some(rest) if !rest.is_empty() => OsStr::from_bytes(rest),
        _ => path.as_os_str(),
    }
}

fn mount_point(path: ContainerPath, is_directory: bool) -> Node {
    if is_directory {
        Node { path, mode: 0o755, content: NodeContent::Directory }
    } else {
        Node { path, mode: 0o644, content: NodeContent::File(Vec::new()) }
    }
}

/// Whether a mount of the host holds files that users work with, rather than the kernel's or the host's own.
fn holds_data(mount: &Mount) -> bool {
    const OTHERS: [&[u8]; 14] = [
        b"proc",
        b"sysfs",
        b"devtmpfs",
        b"devpts",
        b"tmpfs",
        b"mqueue",
        b"cgroup",
        b"cgroup2",
        b"securityfs",
        b"debugfs",
        b"tracefs",
        b"pstore",
        b"bpf",
        b"overlay",
    ];
    const PLACES: [&str; 6] = ["/proc", "/sys", "/dev", "/run", "/boot", "/var"];
    let point = mount.mount_point.as_path();
    !OTHERS.contains(&mount.filesystem.as_slice())
        && point != Path::new("/")
        && !PLACES.iter().any(|place| point.starts_with(place))
}
