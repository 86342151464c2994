//! Devices by name: `--device vendor.com/class=name`, as the Container Device Interface describes them.
//!
//! ```text
//! names, descriptions ─► edits ─► binds, environment, links, linker folders     (pure)
//!                                 └─ hooks that vendors ship are done here, not run:
//!                                    create-symlinks, create-soname-symlinks, update-ldcache, chmod
//! ```

pub mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use starter::paths::{ContainerPath, HostPath};

use super::{BindKind, GpuBind, GpuBinds, Notice};
use crate::elf::{NATIVE_MACHINE, Object, ld_cache};
use crate::report::Hint;
use spec::{ContainerEdits, Hook, Mount, Spec};

/// Where an image of CUDA has libraries of a driver for hosts with an older one.
pub const CUDA_COMPAT: &str = "/usr/local/cuda/compat";

/// The name that stands for every device of a kind, unless a description has one of that name.
const ALL: &str = "all";

/// Where descriptions lie; a later directory is stronger.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// A description and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub path: HostPath,
    /// Which of the directories; a later one is stronger.
    pub directory: usize,
    pub spec: Spec,
}

/// The name of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    /// `vendor.com/class`.
    pub kind: String,
    pub name: String,
}

impl DeviceName {
    /// Reads `vendor.com/class=name`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (kind, name) = std::str::from_utf8(text).ok()?.split_once('=')?;
        (spec::is_kind(kind) && spec::is_name(name)).then(|| Self { kind: kind.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.name)
    }
}

/// What devices change in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    pub binds: Vec<GpuBind>,
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Symbolic links: where, and where to.
    pub links: Vec<(ContainerPath, Vec<u8>)>,
    /// Directories whose libraries the container's linker has to know.
    pub linker_folders: Vec<ContainerPath>,
    /// Directories whose libraries need links by their sonames.
    pub soname_folders: Vec<ContainerPath>,
    /// Modes of directories that are made for the devices.
    pub modes: Vec<(ContainerPath, u32)>,
    /// The major version of the host's driver, where the image's own one counts if it is newer.
    pub host_driver: Option<u32>,
    pub remarks: Vec<Remark>,
}

/// Something that a description asks for and that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// A hook that is no vendor's known one.
    Hook { path: String, stage: String },
    /// A hook whose work has no meaning for an ordinary user's container.
    NeedlessHook { name: String },
    /// A group that the caller is not in.
    Group(u32),
    /// Cache partitions and network devices take privileges.
    Privileged(&'static str),
}

impl Remark {
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::Hook { .. } | Self::Group(_))
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hook { path, stage } => write!(f, "the hook `{path}` ({stage}) of a device is not run"),
            Self::NeedlessHook { name } => write!(f, "the hook `{name}` of a device is not needed"),
            Self::Group(gid) => write!(f, "a device asks for the group {gid}, which you are not in"),
            Self::Privileged(what) => write!(f, "a device's `{what}` takes privileges and is left out"),
        }
    }
}

/// Returns what the devices change; `groups` are the caller's.
pub fn edits(names: &[Vec<u8>], found: &[Found], groups: &[u32]) -> Result<Edits, CdiError> {
    let mut edits = Edits::default();
    let mut used: BTreeSet<&HostPath> = BTreeSet::new();
    for text in names {
        let name =
            DeviceName::parse(text).ok_or_else(|| CdiError::BadName(String::from_utf8_lossy(text).into_owned()))?;
        for (file, name, device) in find(&name, found)? {
            // What the whole kind needs comes once, before its first device.
            if used.insert(&file.path) {
                edits.add(&file.spec.container_edits, groups, &name);
            }
            edits.add(device, groups, &name);
        }
    }
    Ok(edits)
}

/// Finds a device, or all of a kind.
fn find<'a>(
    name: &DeviceName,
    found: &'a [Found],
) -> Result<Vec<(&'a Found, DeviceName, &'a ContainerEdits)>, CdiError> {
    let of_the_kind = || found.iter().filter(|file| file.spec.kind.0 == name.kind);
    let known = |name: &str| of_the_kind().any(|file| file.spec.devices.iter().any(|device| device.name.0 == name));
    let names: BTreeSet<&str> = match name.name == ALL && !known(ALL) {
        true => of_the_kind().flat_map(|file| &file.spec.devices).map(|device| device.name.0.as_str()).collect(),
        false => [name.name.as_str()].into(),
    };
    if names.is_empty() || !names.iter().all(|name| known(name)) {
        let all = found.iter().flat_map(|file| {
            let kind = &file.spec.kind.0;
            file.spec.devices.iter().map(move |device| format!("{kind}={}", device.name.0))
        });
        return Err(CdiError::NoSuchDevice { name: name.to_string(), known: all.take(20).collect() });
    }
    names.into_iter().map(|one| find_one(&name.kind, one, found)).collect()
}

/// Finds a device in the strongest directory that has it; two that have its name there are a conflict.
fn find_one<'a>(
    kind: &str,
    name: &str,
    found: &'a [Found],
) -> Result<(&'a Found, DeviceName, &'a ContainerEdits), CdiError> {
    let mut candidates: Vec<(&Found, &ContainerEdits)> = Vec::new();
    for file in found.iter().filter(|file| file.spec.kind.0 == kind) {
        let devices = file.spec.devices.iter().filter(|device| device.name.0 == name);
        candidates.extend(devices.map(|device| (file, &device.container_edits)));
    }
    let strongest = candidates.iter().map(|(file, _)| file.directory).max();
    candidates.retain(|(file, _)| Some(file.directory) == strongest);
    let name = DeviceName { kind: kind.to_owned(), name: name.to_owned() };
    match candidates[..] {
        [(file, device)] => Ok((file, name, device)),
        [] => Err(CdiError::NoSuchDevice { name: name.to_string(), known: Vec::new() }),
        [(one, _), (other, _), ..] => {
            Err(CdiError::Conflict { name: name.to_string(), one: one.path.clone(), other: other.path.clone() })
        }
    }
}

impl Edits {
    fn add(&mut self, part: &ContainerEdits, groups: &[u32], name: &DeviceName) {
        let variables = part.env.iter().map(|spec::Variable((key, value))| (key.as_bytes(), value.as_bytes()));
        self.environment.extend(variables.map(|(key, value)| (key.to_vec(), value.to_vec())));
        for node in &part.device_nodes {
            let target = &node.path.0;
            let as_in_the_container = || HostPath::from_bytes(target.as_bytes());
            let source = node.host_path.as_ref().map_or_else(as_in_the_container, |path| path.0.clone());
            self.bind(source, target.clone(), BindKind::Device, name);
        }
        part.mounts.iter().for_each(|mount| self.mount(mount, name));
        part.hooks.iter().for_each(|hook| self.hook(hook));
        let missing = part.additional_gids.iter().filter(|gid| **gid != 0 && !groups.contains(gid));
        self.remarks.extend(missing.map(|gid| Remark::Group(*gid)));
        self.remarks.extend(part.intel_rdt.is_some().then_some(Remark::Privileged("intelRdt")));
        self.remarks.extend((!part.net_devices.is_empty()).then_some(Remark::Privileged("netDevices")));
    }

    fn bind(&mut self, source: HostPath, target: ContainerPath, kind: BindKind, name: &DeviceName) {
        // Devices of one kind often bring the same files.
        if !self.binds.iter().any(|bind| bind.target == target && bind.source == source) {
            let reason = format!("device {name}");
            self.binds.push(GpuBind { source, target, kind, required: true, reason });
        }
    }

    fn mount(&mut self, mount: &Mount, name: &DeviceName) {
        let read_only = mount.options.iter().any(|option| option == "ro");
        let kind = if read_only { BindKind::File } else { BindKind::WritableFile };
        self.bind(mount.host_path.0.clone(), mount.container_path.0.clone(), kind, name);
    }

    /// Does what a vendor's hook would do.
    fn hook(&mut self, hook: &Hook) {
        match hook {
            Hook::CreateSymlinks(links) => self.links.extend(links.iter().cloned()),
            Hook::CreateSonameSymlinks(folders) => self.soname_folders.extend(folders.iter().cloned()),
            Hook::UpdateLdcache(folders) => self.linker_folders.extend(folders.iter().cloned()),
            Hook::Chmod { mode, paths } => self.modes.extend(paths.iter().map(|path| (path.clone(), *mode))),
            Hook::EnableCudaCompat { host_driver } => self.host_driver = self.host_driver.max(*host_driver),
            Hook::Needless { name } => self.remarks.push(Remark::NeedlessHook { name: name.clone() }),
            Hook::Unknown { path, stage } => {
                self.remarks.push(Remark::Hook { path: path.clone(), stage: stage.clone() });
            }
        }
    }

    /// The files whose sonames [`Edits::finish`] has to know.
    pub fn libraries(&self) -> Vec<HostPath> {
        let folders: BTreeSet<ContainerPath> =
            self.linker_folders.iter().chain(&self.soname_folders).cloned().collect();
        let inside = self.binds.iter().filter(|bind| folders.contains(&bind.target.parent()) && is_library(bind));
        inside.map(|bind| bind.source.clone()).collect()
    }

    /// Returns what is to be done, with the linker's cache of the container written anew where folders ask for it.
    ///
    /// `objects` holds what is known of [`Edits::libraries`], `compat` are the names of libraries in [`CUDA_COMPAT`] that
    /// count first, `image_cache` is the image's `/etc/ld.so.cache` or empty.
    pub fn finish(mut self, objects: &BTreeMap<HostPath, Object>, compat: &[Vec<u8>], image_cache: &[u8]) -> GpuBinds {
        let soname = |bind: &GpuBind| objects.get(&bind.source).and_then(|object| object.soname.clone());
        // Where in the container a name of a library lies.
        let compat = compat.iter().filter_map(|name| {
            Some((name.clone(), ContainerPath::fixed(CUDA_COMPAT).join(name).ok()?, NATIVE_MACHINE))
        });
        let mut entries: Vec<(Vec<u8>, ContainerPath, u16)> = compat.collect();
        let mut soname_links = Vec::new();
        for bind in self.binds.iter().filter(|bind| is_library(bind)) {
            let folder = bind.target.parent();
            let Some((object, name)) = objects.get(&bind.source).zip(soname(bind)) else { continue };
            let Ok(by_soname) = folder.join(&name) else { continue };
            if by_soname.parent() != folder {
                continue;
            }
            if by_soname != bind.target && self.soname_folders.contains(&folder) {
                soname_links.push((by_soname.clone(), bind.target.name().to_vec()));
            }
            if self.linker_folders.contains(&folder) {
                // ldconfig makes the link by the soname; without one the file itself is what the name stands for.
                let linked =
                    by_soname == bind.target || self.links.iter().chain(&soname_links).any(|(at, _)| *at == by_soname);
                entries.push((name, if linked { by_soname } else { bind.target.clone() }, object.machine));
            }
        }
        self.links.extend(soname_links);
        let mut binds = GpuBinds { binds: self.binds, environment: self.environment, ..GpuBinds::default() };
        if !entries.is_empty() {
            // What the devices bring is stronger than what the image has.
            let new = entries.iter().filter_map(|(name, path, machine)| {
                let flags = ld_cache::flags_of(*machine)?;
                Some(ld_cache::Entry { name, path: path.as_bytes(), flags, hwcap: 0 })
            });
            let old = ld_cache::parse(image_cache).unwrap_or_default();
            let cache = ld_cache::write(&new.chain(old).collect::<Vec<_>>());
            binds.files.push((ContainerPath::fixed("/etc/ld.so.cache"), cache));
        }
        binds.links = self.links;
        binds.modes = self.modes;
        binds.notices = self.remarks.into_iter().map(Notice::Device).collect();
        binds
    }
}

fn is_library(bind: &GpuBind) -> bool {
    matches!(bind.kind, BindKind::File | BindKind::WritableFile)
        && bind.target.name().windows(3).any(|part| part == b".so")
}

/// Returns those libraries of an image that count before the host's: all of its [`CUDA_COMPAT`] (`names`), if the driver
/// there is newer than the host's. Which of the names are links by sonames is seen by their one number.
pub fn newer_than_the_host(names: &[Vec<u8>], host_driver: u32) -> Vec<Vec<u8>> {
    let version = |name: &[u8]| {
        let version = std::str::from_utf8(name.strip_prefix(b"libcuda.so.")?).ok()?;
        version.split_once('.')?.0.parse::<u32>().ok()
    };
    if names.iter().filter_map(|name| version(name)).max() <= Some(host_driver) {
        return Vec::new();
    }
    let by_soname = |name: &&Vec<u8>| {
        let number = name.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
        let before = &name[..name.len() - number.len()];
        before.ends_with(b".so.") && !number.is_empty() && number.iter().all(u8::is_ascii_digit)
    };
    names.iter().filter(by_soname).cloned().collect()
}

/// Why a device can't be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CdiError {
    BadName(String),
    NoSuchDevice { name: String, known: Vec<String> },
    Conflict { name: String, one: HostPath, other: HostPath },
}

impl fmt::Display for CdiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName(text) => write!(f, "`{text}` is not the name of a device"),
            Self::NoSuchDevice { name, .. } => write!(f, "no description on this host has the device `{name}`"),
            Self::Conflict { name, one, other } if one == other => write!(f, "the device `{name}` is twice in {one}"),
            Self::Conflict { name, one, other } => write!(f, "the device `{name}` is in {one} and in {other}"),
        }
    }
}

impl std::error::Error for CdiError {}

impl Hint for CdiError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::BadName(_) => vec!["Devices are called VENDOR/CLASS=NAME, such as nvidia.com/gpu=0.".to_owned()],
            Self::NoSuchDevice { known, .. } if known.is_empty() => {
                vec!["Descriptions are looked for in /etc/cdi and /var/run/cdi, or where --cdi-dirs says.".to_owned()]
            }
            Self::NoSuchDevice { known, .. } => vec![format!("There are: {}.", known.join(", "))],
            Self::Conflict { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
