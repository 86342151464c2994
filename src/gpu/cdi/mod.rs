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
use crate::elf::{Object, ld_cache};
use crate::report::Hint;
use spec::{ContainerEdits, Hook, Mount, Spec};

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
        let (vendor, class) = kind.split_once('/')?;
        let good = |word: &str, first: fn(char) -> bool, more: &str| {
            word.starts_with(first)
                && word.ends_with(|c: char| c.is_ascii_alphanumeric())
                && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        (good(vendor, |c| c.is_ascii_alphabetic(), "_-.")
            && good(class, |c| c.is_ascii_alphabetic(), "_-.")
            && good(name, |c| c.is_ascii_alphanumeric(), "_-.:"))
        .then(|| Self { kind: kind.to_owned(), name: name.to_owned() })
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
        let (file, device) = find(&name, found)?;
        let mut add = |part: &ContainerEdits| {
            edits.add(part, groups, &name).map_err(|wrong| CdiError::Spec { path: file.path.clone(), wrong })
        };
        // What the whole kind needs comes once, before its first device.
        if used.insert(&file.path) {
            add(&file.spec.container_edits)?;
        }
        add(device)?;
    }
    Ok(edits)
}

/// Finds a device in the strongest directory that has it; two files there that have it are a conflict.
fn find<'a>(name: &DeviceName, found: &'a [Found]) -> Result<(&'a Found, &'a ContainerEdits), CdiError> {
    let mut candidates: Vec<(&Found, &ContainerEdits)> = Vec::new();
    for file in found.iter().filter(|file| file.spec.kind == name.kind) {
        candidates.extend(
            file.spec
                .devices
                .iter()
                .filter(|device| device.name == name.name)
                .map(|device| (file, &device.container_edits)),
        );
    }
    let strongest = candidates.iter().map(|(file, _)| file.directory).max();
    candidates.retain(|(file, _)| Some(file.directory) == strongest);
    match candidates[..] {
        [one] => Ok(one),
        [] => {
            let all = found.iter().flat_map(|file| {
                let names = file.spec.devices.iter().map(|device| format!("{}={}", file.spec.kind, device.name));
                names.collect::<Vec<_>>()
            });
            Err(CdiError::NoSuchDevice { name: name.to_string(), known: all.take(20).collect() })
        }
        [(one, _), (other, _), ..] => {
            Err(CdiError::Conflict { name: name.to_string(), one: one.path.clone(), other: other.path.clone() })
        }
    }
}

impl Edits {
    fn add(&mut self, part: &ContainerEdits, groups: &[u32], name: &DeviceName) -> Result<(), Wrong> {
        for variable in &part.env {
            let (key, value) = variable.split_once('=').ok_or_else(|| Wrong::Variable(variable.clone()))?;
            if key.is_empty() || variable.contains('\0') {
                return Err(Wrong::Variable(variable.clone()));
            }
            self.environment.push((key.into(), value.into()));
        }
        for node in &part.device_nodes {
            let source = node.host_path.as_ref().unwrap_or(&node.path);
            self.bind(host_path(source)?, container_path(&node.path)?, BindKind::Device, name);
        }
        for mount in &part.mounts {
            self.mount(mount, name)?;
        }
        for hook in &part.hooks {
            self.hook(hook)?;
        }
        let missing = part.additional_gids.iter().filter(|gid| **gid != 0 && !groups.contains(gid));
        self.remarks.extend(missing.map(|gid| Remark::Group(*gid)));
        self.remarks.extend(part.intel_rdt.is_some().then_some(Remark::Privileged("intelRdt")));
        self.remarks.extend((!part.net_devices.is_empty()).then_some(Remark::Privileged("netDevices")));
        Ok(())
    }

    fn bind(&mut self, source: HostPath, target: ContainerPath, kind: BindKind, name: &DeviceName) {
        // Devices of one kind often bring the same files.
        if !self.binds.iter().any(|bind| bind.target == target && bind.source == source) {
            let reason = format!("device {name}");
            self.binds.push(GpuBind { source, target, kind, required: true, reason });
        }
    }

    fn mount(&mut self, mount: &Mount, name: &DeviceName) -> Result<(), Wrong> {
        let (source, target) = (host_path(&mount.host_path)?, container_path(&mount.container_path)?);
        match mount.file_system.as_deref() {
            None | Some("" | "none" | "bind" | "rbind") => {}
            Some(other) => return Err(Wrong::MountType(other.to_owned())),
        }
        let read_only = mount.options.iter().any(|option| option == "ro");
        let kind = if read_only { BindKind::File } else { BindKind::WritableFile };
        self.bind(source, target, kind, name);
        Ok(())
    }

    /// Does what a vendor's hook would do.
    fn hook(&mut self, hook: &Hook) -> Result<(), Wrong> {
        let program = hook.path.rsplit('/').next().unwrap_or_default();
        let mut words = hook.args.iter().skip(1).map(String::as_str).peekable();
        words.next_if_eq(&"hook");
        let work = words.next().unwrap_or_default();
        let options: Vec<&str> = words.collect();
        let vendors_own = ["nvidia-ctk", "nvidia-cdi-hook"].contains(&program);
        match work {
            "create-symlinks" if vendors_own => {
                for link in values(&options, "--link") {
                    let (target, path) = link.split_once("::").ok_or_else(|| Wrong::HookOption(link.to_owned()))?;
                    self.links.push((container_path(path)?, target.as_bytes().to_vec()));
                }
            }
            "update-ldcache" if vendors_own => {
                for folder in values(&options, "--folder") {
                    self.linker_folders.push(container_path(folder)?);
                }
            }
            "create-soname-symlinks" if vendors_own => {
                for folder in values(&options, "--folder") {
                    self.soname_folders.push(container_path(folder)?);
                }
            }
            "chmod" if vendors_own => {
                let mode = values(&options, "--mode").next().unwrap_or_default();
                let mode = u32::from_str_radix(mode, 8).map_err(|_| Wrong::HookOption(mode.to_owned()))?;
                for path in values(&options, "--path") {
                    self.modes.push((container_path(path)?, mode & 0o777));
                }
            }
            "enable-cuda-compat" | "disable-device-node-modification" if vendors_own => {
                self.remarks.push(Remark::NeedlessHook { name: work.to_owned() });
            }
            _ => self.remarks.push(Remark::Hook { path: hook.path.clone(), stage: hook.hook_name.clone() }),
        }
        Ok(())
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
    /// `objects` holds what is known of [`Edits::libraries`], `image_cache` is the image's `/etc/ld.so.cache` or empty.
    pub fn finish(mut self, objects: &BTreeMap<HostPath, Object>, image_cache: &[u8]) -> GpuBinds {
        let soname = |bind: &GpuBind| objects.get(&bind.source).and_then(|object| object.soname.clone());
        // Where in the container a name of a library lies.
        let mut entries: Vec<(Vec<u8>, ContainerPath, u16)> = Vec::new();
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

/// The values of an option in `--name value` and `--name=value`, commas split.
fn values<'a>(options: &'a [&'a str], name: &'a str) -> impl Iterator<Item = &'a str> {
    let given = options.iter().enumerate().filter_map(move |(at, word)| match word.strip_prefix(name)? {
        "" => options.get(at + 1).copied(),
        rest => rest.strip_prefix('='),
    });
    given.flat_map(|value| value.split(','))
}

fn host_path(text: &str) -> Result<HostPath, Wrong> {
    let absolute = text.starts_with('/') && !text.contains('\0');
    if absolute { Ok(HostPath::new(text)) } else { Err(Wrong::Path(text.to_owned())) }
}

fn container_path(text: &str) -> Result<ContainerPath, Wrong> {
    ContainerPath::parse(text.as_bytes())
        .ok()
        .filter(|path| !path.is_root())
        .ok_or_else(|| Wrong::Path(text.to_owned()))
}

/// Why a device can't be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CdiError {
    BadName(String),
    NoSuchDevice { name: String, known: Vec<String> },
    Conflict { name: String, one: HostPath, other: HostPath },
    Spec { path: HostPath, wrong: Wrong },
}

/// What a description says that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    Path(String),
    Variable(String),
    MountType(String),
    HookOption(String),
}

impl fmt::Display for CdiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName(text) => write!(f, "`{text}` is not the name of a device"),
            Self::NoSuchDevice { name, .. } => write!(f, "no description on this host has the device `{name}`"),
            Self::Conflict { name, one, other } => write!(f, "the device `{name}` is in {one} and in {other}"),
            Self::Spec { path, wrong } => write!(f, "cannot use {path}: {wrong}"),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(text) => write!(f, "`{text}` is not an absolute path without `..`"),
            Self::Variable(text) => write!(f, "`{text}` is not NAME=VALUE"),
            Self::MountType(name) => write!(f, "a mount has the type `{name}`, and only binds can be made"),
            Self::HookOption(text) => write!(f, "a hook has the option `{text}`, which is not understood"),
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
            Self::Conflict { .. } | Self::Spec { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
