//! What of a host's accelerators a container gets: libraries, programs, files, devices.
//!
//! ```text
//! GpuRequest  --nv --rocm --gpus, variables   ─┐
//! lists       nvliblist.conf, rocmliblist.conf ├─► plan ─► GpuBinds: binds, hidden devices, environment, notices
//! facts       linker cache, ELF needs, devices │
//! image       C library, names of libraries   ─┘
//! ```
//!
//! All of it is decided from values; `host` looks at the host and `image` at the image. No vendor's program is run.

pub mod cdi;
pub mod libraries;
pub mod list;
pub mod selection;

use std::fmt;

use starter::paths::{ContainerPath, HostPath};

use crate::elf::is_version_of;
use crate::host::facts::{Gpu, GpuHostFacts, HostLibrary, Node, PathKind, Vendor};
use crate::image::facts::{CLibrary, ImageLibraries};
use crate::report::Hint;
use libraries::{Judged, Target, Verdict};
use list::Wanted;
use selection::{NoSuchGpu, Origin, Remark, Selection, Share, Variables, Wish};

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuRequest {
    pub nvidia: bool,
    pub amd: bool,
    /// `--gpus`.
    pub gpus: Option<Wish>,
    pub variables: Variables,
}

/// What is looked for, by vendor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    pub nvidia: Vec<Wanted>,
    pub amd: Vec<Wanted>,
}

/// What to do for the accelerators, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuBinds {
    pub binds: Vec<GpuBind>,
    /// Device nodes that must not be usable where the host's whole `/dev` is shown.
    pub hidden: Vec<Hidden>,
    /// Files to make from nothing.
    pub files: Vec<(ContainerPath, Vec<u8>)>,
    /// Symbolic links to make where the container has nothing: where, and where to.
    pub links: Vec<(ContainerPath, Vec<u8>)>,
    /// Modes of directories in `/dev`.
    pub modes: Vec<(ContainerPath, u32)>,
    /// Variables of the caller whose numbers count anew: what they are to hold where the container gets them.
    pub recounted: Vec<(Vec<u8>, Vec<u8>)>,
    /// Variables to set in the container.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Libraries that are left out, with the reason.
    pub left_out: Vec<Judged>,
    /// Device nodes that the caller may not use, with what they are.
    pub refused: Vec<(Node, String)>,
    pub notices: Vec<Notice>,
}

/// A file of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuBind {
    pub source: HostPath,
    pub target: ContainerPath,
    pub kind: BindKind,
    /// Whether the container can't do without.
    pub required: bool,
    pub reason: String,
}

impl GpuBind {
    /// Whether the container may not write to it. Sockets and devices work through a read-only mount as well.
    pub fn read_only(&self) -> bool {
        !matches!(self.kind, BindKind::Device | BindKind::Socket | BindKind::WritableFile)
    }

    /// Whether it only works where device nodes do.
    pub fn device(&self) -> bool {
        self.kind == BindKind::Device
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindKind {
    Library,
    Program,
    File,
    WritableFile,
    Socket,
    Device,
}

impl fmt::Display for BindKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Library => "library",
            Self::Program => "program",
            Self::File => "file",
            Self::WritableFile => "writable file",
            Self::Socket => "socket",
            Self::Device => "device",
        })
    }
}

/// A device node that the container must not use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    pub path: ContainerPath,
    pub reason: String,
}

/// What a user may have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This host has no driver of the vendor's.
    NothingFound(Vendor),
    /// The image's C library is too old for some libraries.
    LeftOut {
        count: usize,
        first: Box<Judged>,
    },
    /// `--gpus` where there is none.
    NoGpu,
    /// The permission bits of every node keep the caller out.
    Denied {
        count: usize,
        first: HostPath,
    },
    Remark(Remark),
    /// Of a device that was asked for by name.
    Device(cdi::Remark),
}

impl Notice {
    /// Whether it is worth a warning; the others are for those who want to know more.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::NothingFound(_) | Self::NoGpu | Self::Denied { .. } => true,
            Self::LeftOut { first, .. } => !first.if_missing,
            Self::Remark(remark) => remark.is_warning(),
            Self::Device(remark) => remark.is_warning(),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingFound(Vendor::Nvidia) => {
                f.write_str("--nv: this host has no NVIDIA driver: neither its library nor its devices were found")
            }
            Self::NothingFound(Vendor::Amd) => {
                f.write_str("--rocm: this host has no AMD driver: neither its library nor its devices were found")
            }
            Self::LeftOut { count, first } => {
                let name = String::from_utf8_lossy(&first.name);
                let Verdict::LeftOut(why) = &first.verdict else { return Ok(()) };
                match count {
                    1 => write!(f, "1 library of the host can't work in this image and is left out: {name} ({why})"),
                    _ => write!(
                        f,
                        "{count} libraries of the host can't work in this image and are left out: {name} ({why}) and {} \
                         more, see `sifu gpu explain`",
                        count - 1
                    ),
                }
            }
            Self::NoGpu => f.write_str("--gpus: this host has no GPU that may be used"),
            Self::Denied { count: 1, first } => {
                write!(f, "you may not use this host's GPU: {first}: permission denied")
            }
            Self::Denied { count, first } => {
                write!(f, "you may use none of this host's {count} GPUs: {first}: permission denied")
            }
            Self::Remark(remark) => remark.fmt(f),
            Self::Device(remark) => remark.fmt(f),
        }
    }
}

/// What was asked for and can't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuError {
    NoSuchGpu(NoSuchGpu),
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NoSuchGpu(NoSuchGpu { pick, count }) = self;
        match count {
            1 => write!(f, "cannot use the GPU `{pick}`: there is one, with the number 0"),
            _ => write!(f, "cannot use the GPU `{pick}`: there are {count}, with the numbers 0 to {}", count - 1),
        }
    }
}

impl std::error::Error for GpuError {}

impl Hint for GpuError {
    fn hints(&self) -> Vec<String> {
        vec!["`sifu gpu explain` lists them. Under a batch system only those of the job are counted.".to_owned()]
    }
}

/// What of an image the libraries depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    pub libraries: ImageLibraries,
    /// Those for programs with 32-bit addresses, where `--compat32` asks for the host's.
    pub narrow: Option<ImageLibraries>,
}

/// Decides what the container gets.
pub fn plan(
    request: &GpuRequest,
    lists: &Lists,
    host: &GpuHostFacts,
    image: &ImageFacts,
) -> Result<GpuBinds, GpuError> {
    let mut binds = GpuBinds::default();
    let asked = [(Vendor::Nvidia, request.nvidia, &lists.nvidia), (Vendor::Amd, request.amd, &lists.amd)];
    let mut wish = request.gpus.as_ref();
    for (vendor, _, list) in asked.into_iter().filter(|(_, asked, _)| *asked) {
        let gpus: Vec<&Gpu> = host.gpus.iter().filter(|gpu| gpu.vendor == vendor).collect();
        if has_driver(vendor, list, host) {
            binds.add_libraries(list, host, image);
        } else {
            // What else the list names may be there for other reasons: the dispatchers of OpenGL are on every desktop.
            let own = list.iter().filter(|wanted| !matches!(wanted, Wanted::Library { if_missing: true, .. }));
            binds.add_libraries(&own.cloned().collect::<Vec<_>>(), host, image);
            binds.notices.push(Notice::NothingFound(vendor));
        }
        binds.add_listed(list, host);
        binds.add_control_devices(vendor, host);
        if gpus.iter().any(|gpu| gpu.accessible()) {
            // The numbers of --gpus count the accelerators of one vendor.
            let selection =
                selection::select(vendor, &gpus, wish.take(), &request.variables).map_err(GpuError::NoSuchGpu)?;
            binds.add_gpus(&gpus, selection);
        } else {
            binds.add_refused(&gpus);
        }
    }
    if matches!(wish, Some(Wish::These(_))) && (request.nvidia || request.amd) {
        binds.notices.push(Notice::NoGpu);
    }
    Ok(binds)
}

/// Whether the host has a device of the vendor's or the library that stands for the driver.
fn has_driver(vendor: Vendor, list: &[Wanted], host: &GpuHostFacts) -> bool {
    let is_driver = |name: &[u8]| list::driver(list).is_some_and(|driver| is_version_of(name, driver));
    host.gpus.iter().any(|gpu| gpu.vendor == vendor)
        || host.control.iter().any(|(found, _)| *found == vendor)
        || host.libraries.iter().any(|library| is_driver(&library.name))
}

impl GpuBinds {
    fn add_libraries(&mut self, list: &[Wanted], host: &GpuHostFacts, image: &ImageFacts) {
        let narrow = image.narrow.as_ref().and_then(|image| Some((Target::narrow(host.machine)?, image)));
        let for_narrow = |library: &&HostLibrary| narrow.is_some_and(|(target, _)| target.may_fit(library));
        let (others, wide): (Vec<&HostLibrary>, Vec<&HostLibrary>) = host.libraries.iter().partition(for_narrow);
        let mut left_out = self.add_libraries_for(list, &wide, Target::wide(host.machine), &image.libraries);
        if let Some((target, image)) = narrow {
            left_out.extend(self.add_libraries_for(list, &others, target, image));
        }
        let mut matters: Vec<&Judged> = left_out
            .iter()
            .filter(|library| matches!(&library.verdict, Verdict::LeftOut(why) if why.matters()))
            .collect();
        // What an image can do without is worth a word only where nothing else is.
        if matters.iter().any(|library| !library.if_missing) {
            matters.retain(|library| !library.if_missing);
        }
        if let Some(&first) = matters.first() {
            self.notices.push(Notice::LeftOut { count: matters.len(), first: Box::new(first.clone()) });
        }
        self.left_out.extend(left_out);
    }

    /// Adds the libraries that the programs of one machine can load; returns the others.
    fn add_libraries_for(
        &mut self,
        list: &[Wanted],
        host: &[&HostLibrary],
        target: Target,
        image: &ImageLibraries,
    ) -> Vec<Judged> {
        let judged = libraries::judge(list, host, target, image);
        let (left_out, shown): (Vec<Judged>, Vec<Judged>) =
            judged.into_iter().partition(|library| matches!(library.verdict, Verdict::LeftOut(_)));
        let reason = match image.c_library {
            CLibrary::Unknown => "in the list",
            CLibrary::Glibc(_) | CLibrary::Musl => "in the list, and the image can load it",
        };
        for library in shown {
            let Verdict::Shown(places) = library.verdict else { continue };
            self.binds.extend(places.into_iter().map(|target| GpuBind {
                source: library.path.clone(),
                target,
                kind: BindKind::Library,
                required: false,
                reason: reason.to_owned(),
            }));
        }
        left_out
    }

    /// Adds the programs and paths of the list that the host has.
    fn add_listed(&mut self, list: &[Wanted], host: &GpuHostFacts) {
        let programs = ContainerPath::fixed("/usr/bin");
        for wanted in list {
            match wanted {
                Wanted::Library { .. } => {}
                Wanted::Program(name) => {
                    let (Some(source), Ok(target)) = (host.programs.get(name), programs.join(name)) else { continue };
                    self.add_from_list(source.clone(), target, BindKind::Program);
                }
                Wanted::Path { path, writable } => {
                    self.add_files(host.files.get(&HostPath::from_bytes(path.as_bytes())), *writable);
                }
            }
        }
    }

    fn add_files(&mut self, found: Option<&Vec<(HostPath, PathKind)>>, writable: bool) {
        for (path, kind) in found.into_iter().flatten() {
            let Ok(target) = ContainerPath::parse(path.as_bytes()) else { continue };
            let kind = match kind {
                PathKind::Other => BindKind::Socket,
                _ if writable => BindKind::WritableFile,
                _ => BindKind::File,
            };
            self.add_from_list(path.clone(), target, kind);
        }
    }

    /// A path that two lines mean comes once.
    fn add_from_list(&mut self, source: HostPath, target: ContainerPath, kind: BindKind) {
        if !self.binds.iter().any(|bind| bind.target == target) {
            self.binds.push(GpuBind { source, target, kind, required: false, reason: "in the list".to_owned() });
        }
    }

    /// Keeps in mind why no GPU can be used.
    fn add_refused(&mut self, gpus: &[&Gpu]) {
        /// What permission bits say; the device rules of a job's control group say another one.
        const EACCES: i32 = 13;
        for gpu in gpus {
            gpu.nodes.iter().for_each(|node| self.refuse(node, &label(None, gpu)));
        }
        let first = gpus.first().and_then(|gpu| gpu.nodes.first());
        let denied = |gpu: &&Gpu| gpu.nodes.first().is_some_and(|node| node.refused == Some(EACCES));
        if let Some(first) = first.filter(|_| gpus.iter().all(denied)) {
            self.notices.push(Notice::Denied { count: gpus.len(), first: first.path.clone() });
        }
    }

    fn add_control_devices(&mut self, vendor: Vendor, host: &GpuHostFacts) {
        for (_, node) in host.control.iter().filter(|(found, _)| *found == vendor) {
            self.add_device(node, "serves all GPUs");
        }
    }

    fn add_gpus(&mut self, gpus: &[&Gpu], selection: Selection) {
        let Selection { shares, origin, environment, remarks } = selection;
        let mut numbers = 0..;
        for (gpu, share) in gpus.iter().zip(&shares) {
            let label = label(gpu.accessible().then(|| numbers.next()).flatten(), gpu);
            let shown = *share != Share::Nothing;
            for node in &gpu.nodes {
                self.add_or_hide(node, shown, &label, origin);
            }
            let mut instance_numbers = 0..;
            for (at, instance) in gpu.instances.iter().enumerate() {
                let number = instance.accessible().then(|| instance_numbers.next()).flatten();
                let name = number.map_or("another instance".to_owned(), |number: usize| format!("instance {number}"));
                let shown = match share {
                    Share::Whole => true,
                    Share::Instances(numbers) => numbers.contains(&at),
                    Share::Nothing => false,
                };
                // Two instances share the node of the GPU instance that both are in.
                let kept = |node: &Node| self.binds.iter().any(|bind| bind.source == node.path);
                let nodes: Vec<&Node> = instance.nodes.iter().filter(|node| !kept(node)).collect();
                for node in nodes {
                    self.add_or_hide(node, shown, &format!("{label}, {name}"), origin);
                }
            }
        }
        let shown: Vec<ContainerPath> = self.binds.iter().map(|bind| bind.target.clone()).collect();
        self.hidden.retain(|hidden| !shown.contains(&hidden.path));
        self.recounted.extend(environment.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value)));
        self.notices.extend(remarks.into_iter().map(Notice::Remark));
    }

    fn add_or_hide(&mut self, node: &Node, shown: bool, label: &str, origin: Origin) {
        let Ok(path) = ContainerPath::parse(node.path.as_bytes()) else { return };
        if node.refused.is_some() {
            self.refuse(node, label);
        } else if shown {
            self.add_device(node, &format!("{label}: {origin}"));
        } else if !self.hidden.iter().any(|hidden| hidden.path == path) {
            self.hidden.push(Hidden { path, reason: format!("{label}: not chosen, {origin}") });
        }
    }

    fn refuse(&mut self, node: &Node, what: &str) {
        if !self.refused.iter().any(|(refused, _)| refused.path == node.path) {
            self.refused.push((node.clone(), what.to_owned()));
        }
    }

    fn add_device(&mut self, node: &Node, reason: &str) {
        let Ok(target) = ContainerPath::parse(node.path.as_bytes()) else { return };
        if node.refused.is_some() {
            self.refuse(node, reason);
        } else if !self.binds.iter().any(|bind| bind.target == target) {
            let (source, reason) = (node.path.clone(), reason.to_owned());
            self.binds.push(GpuBind { source, target, kind: BindKind::Device, required: false, reason });
        }
    }
}

/// Names a GPU by the number that it is picked by, if it can be picked, and by its identifier.
fn label(number: Option<usize>, gpu: &Gpu) -> String {
    let id = String::from_utf8_lossy(&gpu.id);
    match (number, id.is_empty()) {
        (Some(number), true) => format!("GPU {number}"),
        (Some(number), false) => format!("GPU {number}, {id}"),
        (None, true) => "a GPU".to_owned(),
        (None, false) => id.into_owned(),
    }
}

#[cfg(test)]
mod tests;
