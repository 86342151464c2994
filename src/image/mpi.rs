//! The MPI of an image: its libraries, its launchers, and what a program needs of it.
//!
//! Names are enough to tell what an image has; files are read only for what a program needs, and for versions.

use std::collections::{BTreeSet, VecDeque};

use starter::paths::ContainerPath;

use super::facts::{ImageMpi, ImageMpiFacts, ImageProgram};
use super::libraries;
use crate::elf::{Object, is_of_glibc};
use crate::tree::lookup::{self, Kind, Lookup, LookupError};

/// Where MPIs lie that the linker's cache lacks.
const DIRECTORIES: [&str; 8] = [
    "/usr/lib64/openmpi/lib",
    "/usr/lib64/mpich/lib",
    "/usr/lib64/mvapich2/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib64/mpi/gcc/openmpi4/lib64",
    "/opt/view/lib",
    "/opt/conda/lib",
];
/// Directories that hold a prefix for each package.
const PREFIXES: [&str; 2] = ["/opt", "/usr/local"];
/// Where programs lie, as the `PATH` of images has them.
const PROGRAMS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Libraries that a program is followed through.
const MAX_FOLLOWED: usize = 96;
/// No MPI library is larger.
const MAX_LIBRARY_BYTES: u64 = 256 << 20;

/// Looks for the libraries called `names`, for `plugins` beside them, and for `launchers`.
///
/// `thorough` looks in more places than the linker would, and for launchers.
pub fn observe(
    root: &dyn Lookup,
    machine: u16,
    names: &[&str],
    plugins: &[&str],
    launchers: &[&str],
    thorough: bool,
) -> Result<ImageMpiFacts, LookupError> {
    let mut facts = ImageMpiFacts { places: libraries::places(root, machine)?, ..ImageMpiFacts::default() };
    let mut program_directories: Vec<ContainerPath> = PROGRAMS.map(ContainerPath::fixed).to_vec();
    let mut directories: Vec<ContainerPath> = DIRECTORIES.map(ContainerPath::fixed).to_vec();
    if thorough {
        for prefix in prefixes(root)? {
            directories.extend([prefix.join(b"lib"), prefix.join(b"lib64")].into_iter().flatten());
            program_directories.extend(prefix.join(b"bin"));
        }
    }
    for directory in directories {
        let entries = lookup::list(root, &directory).or_else(libraries::absent)?.unwrap_or_default();
        if entries.iter().any(|entry| names.iter().any(|name| name.as_bytes() == entry.name)) {
            for entry in entries {
                if let Ok(path) = directory.join(&entry.name) {
                    facts.places.entry(entry.name).or_insert(path);
                }
            }
        }
    }
    for name in names {
        let Some(path) = facts.places.get(name.as_bytes()) else { continue };
        let at = match lookup::resolve(root, path) {
            Ok(at) => at,
            Err(error) => {
                libraries::absent::<()>(error)?;
                continue;
            }
        };
        if at.stat.is_none_or(|stat| stat.kind != Kind::File) {
            continue;
        }
        let mut beside = BTreeSet::new();
        for relative in std::iter::once("").chain(plugins.iter().copied()) {
            let mut directory = at.path.parent();
            for component in relative.split('/').filter(|component| !component.is_empty()) {
                directory = directory.join(component.as_bytes()).unwrap_or_else(|_| ContainerPath::root());
            }
            let entries = lookup::list(root, &directory).or_else(libraries::absent)?.unwrap_or_default();
            beside.extend(entries.into_iter().map(|entry| entry.name));
        }
        facts.libraries.push(ImageMpi { name: name.as_bytes().to_vec(), path: at.path, beside });
    }
    if thorough {
        for directory in program_directories {
            for name in launchers {
                let Ok(path) = directory.join(name.as_bytes()) else { continue };
                let at = lookup::resolve(root, &path).map(Some).or_else(libraries::absent)?;
                let is_file = at.and_then(|at| at.stat).is_some_and(|stat| stat.kind == Kind::File);
                if is_file && !facts.launchers.iter().any(|known| known.name() == path.name()) {
                    facts.launchers.push(path);
                }
            }
        }
    }
    Ok(facts)
}

/// The prefixes below `/opt` and `/usr/local`: one or two directories deep.
fn prefixes(root: &dyn Lookup) -> Result<Vec<ContainerPath>, LookupError> {
    let mut prefixes = Vec::new();
    for outer in PREFIXES.map(ContainerPath::fixed) {
        for package in directories_in(root, &outer)? {
            for version in directories_in(root, &package)? {
                if version.name() != b"lib" && version.name() != b"bin" {
                    prefixes.push(version);
                }
            }
            prefixes.push(package);
        }
    }
    Ok(prefixes)
}

fn directories_in(root: &dyn Lookup, path: &ContainerPath) -> Result<Vec<ContainerPath>, LookupError> {
    let entries = lookup::list(root, path).or_else(libraries::absent)?.unwrap_or_default();
    let directories = entries.into_iter().filter(|entry| matches!(entry.kind, Kind::Directory | Kind::Symlink));
    Ok(directories.filter_map(|entry| path.join(&entry.name).ok()).collect())
}

/// Looks at the program that the word `command` means in the image; `None` where the image has no such program.
pub fn program(
    root: &dyn Lookup,
    command: &[u8],
    facts: &ImageMpiFacts,
    is_mpi: impl Fn(&[u8]) -> bool,
) -> Result<Option<ImageProgram>, LookupError> {
    let candidates: Vec<ContainerPath> = if command.contains(&b'/') {
        ContainerPath::parse(command).into_iter().collect()
    } else {
        PROGRAMS.iter().filter_map(|directory| ContainerPath::fixed(directory).join(command).ok()).collect()
    };
    for path in candidates {
        let at = lookup::resolve(root, &path).map(Some).or_else(libraries::absent)?;
        if at.and_then(|at| at.stat).is_some_and(|stat| stat.kind == Kind::File) {
            let object = libraries::object(root, &path)?;
            let mpi = object.as_ref().map_or(Ok(Vec::new()), |object| follow(root, object, facts, &is_mpi))?;
            return Ok(Some(ImageProgram { path: path.as_bytes().to_vec(), object, mpi }));
        }
    }
    Ok(None)
}

/// What `object` needs of MPI: by itself, or else through libraries of the image.
pub fn follow(
    root: &dyn Lookup,
    object: &Object,
    facts: &ImageMpiFacts,
    is_mpi: impl Fn(&[u8]) -> bool,
) -> Result<Vec<Vec<u8>>, LookupError> {
    let mut seen: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut pending = VecDeque::from([object.needed.clone()]);
    while let Some(needed) = pending.pop_front() {
        let found: Vec<Vec<u8>> = needed.iter().filter(|name| is_mpi(name)).cloned().collect();
        if !found.is_empty() {
            return Ok(found);
        }
        for name in needed.into_iter().filter(|name| !is_of_glibc(name)) {
            let Some(path) = facts.places.get(&name) else { continue };
            if seen.len() < MAX_FOLLOWED && seen.insert(name) {
                pending.extend(libraries::object(root, path)?.map(|object| object.needed));
            }
        }
    }
    Ok(Vec::new())
}

/// Reads a library whole, to look for its version.
pub fn content(root: &dyn Lookup, path: &ContainerPath) -> Result<Vec<u8>, LookupError> {
    Ok(lookup::read(root, path, MAX_LIBRARY_BYTES).or_else(libraries::absent)?.unwrap_or_default())
}
