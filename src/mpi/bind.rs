//! What of the host's MPI a container gets: each library of the closure, judged by what the image has. Pure.
//!
//! ```text
//! of glibc                          never: the image's own
//! of the MPI's or fabric's stack    over the image's own, if it has one; and in /.singularity.d/libs
//! another, that the image has       not, unless the image's lacks a version that is needed
//! another                           in /.singularity.d/libs
//! loaded by name from a directory   at its own path, where its MPI looks for it
//! ```
//!
//! What the image's C library can't load is left out, and so is what needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use starter::paths::{ContainerPath, HostPath};

use super::{Abi, Family, is_of_the_stack, launcher, other_name};
use crate::elf::{Class, Object, is_of_glibc};
use crate::gpu::libraries::{DIRECTORY, Why};
use crate::gpu::{BindKind, GpuBind};
use crate::host::facts::{HostLibrary, MpiClosure};
use crate::image::facts::{CLibrary, ImageLibraries};
use crate::report::Hint;

/// Everything that is decided from.
pub struct BindFacts<'a> {
    pub abi: Abi,
    /// The soname of the MPI library that was chosen.
    pub core: &'a [u8],
    pub machine: u16,
    pub closure: &'a MpiClosure,
    pub devices: &'a [HostPath],
    pub image: &'a ImageLibraries,
    /// Where the image's libraries lie.
    pub places: &'a BTreeMap<Vec<u8>, ContainerPath>,
    /// Versions that the image's libraries define, of those that [`to_be_compared`] names.
    pub definitions: &'a BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    /// The caller's variables that the container would not get by itself.
    pub kept_out: &'a [(Vec<u8>, Vec<u8>)],
}

/// What the container gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MpiBinds {
    pub binds: Vec<GpuBind>,
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    pub left_out: Vec<LeftOut>,
}

/// A library that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub name: Vec<u8>,
    pub why: Why,
}

impl LeftOut {
    /// Whether the image is the cause, and not the host or another library that is left out.
    pub fn is_cause(&self) -> bool {
        matches!(self.why, Why::NeedsGlibc { .. } | Why::NeedsGlibcOverMusl)
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the host's MPI is left out: {}", String::from_utf8_lossy(&self.name), self.why)
    }
}

/// Why the host's MPI can't be used in this image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CannotBind {
    pub path: HostPath,
    pub why: Why,
    /// The library that is the cause, where it is not the MPI library itself.
    pub cause: Option<LeftOut>,
}

impl fmt::Display for CannotBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host's MPI can't be loaded in this image: {}: {}", self.path, self.why)?;
        match &self.cause {
            Some(cause) => write!(f, " ({} {})", String::from_utf8_lossy(&cause.name), cause.why),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CannotBind {}

impl Hint for CannotBind {
    fn hints(&self) -> Vec<String> {
        let hint = match self.cause.as_ref().map_or(&self.why, |cause| &cause.why) {
            Why::NeedsGlibc { .. } | Why::NeedsGlibcOverMusl => {
                "Build an MPI into the image that speaks with the host's launcher (docs/mpi.md, hybrid), or take a newer base."
            }
            _ => "`ldd` of the library tells what it lacks on the host.",
        };
        vec![hint.to_owned()]
    }
}

/// The libraries of the closure that the image has as well and that may stay its own: whose versions have to be compared.
pub fn to_be_compared(closure: &MpiClosure, places: &BTreeMap<Vec<u8>, ContainerPath>) -> Vec<Vec<u8>> {
    let names = closure.libraries.iter().map(|library| &library.name);
    names.filter(|name| !is_of_the_stack(name) && places.contains_key(*name)).cloned().collect()
}

/// Decides what the container gets.
pub fn plan(facts: &BindFacts<'_>) -> Result<MpiBinds, CannotBind> {
    let closure = facts.closure;
    let plugins = || closure.plugins.iter().flat_map(|directory| &directory.libraries);
    let objects = || closure.libraries.iter().chain(plugins()).filter_map(|library| library.object.as_ref().ok());
    let needed_versions: BTreeSet<&[u8]> =
        objects().flat_map(|object| object.version_needs.iter().map(Vec::as_slice)).collect();

    // What is left out, by name; the rest is shown or stays the image's.
    let mut out: BTreeMap<&[u8], Why> = BTreeMap::new();
    let mut own: BTreeSet<&[u8]> = BTreeSet::new();
    for library in &closure.libraries {
        let name = library.name.as_slice();
        if stays_the_images(facts, library, &needed_versions) {
            own.insert(name);
        } else if let Some(why) = cannot_be_loaded(library, facts) {
            out.insert(name, why);
        }
    }
    let available = |name: &[u8], out: &BTreeMap<&[u8], Why>| {
        let shown = closure.libraries.iter().any(|library| library.name == name) && !out.contains_key(name);
        is_of_glibc(name) || shown || facts.places.contains_key(name)
    };
    let lacks = |object: &Object, out: &BTreeMap<&[u8], Why>| {
        object.needed.iter().find(|name| !available(name, out)).map(|name| Why::Needs(name.clone()))
    };
    loop {
        let more: Vec<(&[u8], Why)> = closure
            .libraries
            .iter()
            .filter(|library| !out.contains_key(&library.name[..]) && !own.contains(&library.name[..]))
            .filter_map(|library| Some((&library.name[..], lacks(library.object.as_ref().ok()?, &out)?)))
            .collect();
        if more.is_empty() {
            break;
        }
        out.extend(more);
    }
    if let Some(why) = out.get(facts.core) {
        return Err(cannot_bind(facts, why, &out));
    }

    let mut result = MpiBinds::default();
    for library in &closure.libraries {
        if !out.contains_key(&library.name[..]) && !own.contains(&library.name[..]) {
            result.show(library, facts);
        }
    }
    result.left_out = out.iter().map(|(name, why)| LeftOut { name: name.to_vec(), why: why.clone() }).collect();
    for directory in &closure.plugins {
        let judged: Vec<(&HostLibrary, Option<Why>)> = directory
            .libraries
            .iter()
            .map(|library| {
                let lacking = || lacks(library.object.as_ref().ok()?, &out);
                (library, cannot_be_loaded(library, facts).or_else(lacking))
            })
            .collect();
        let because_of_the_image = |why: &Why| match why {
            Why::Needs(name) => closure.libraries.iter().any(|library| library.name == *name),
            why => why.matters(),
        };
        if !judged.iter().any(|(_, why)| why.as_ref().is_some_and(because_of_the_image)) {
            result.at_its_own_path(&directory.path, "the host's MPI loads libraries from it");
            continue;
        }
        for (library, why) in judged {
            match why {
                None => {
                    let path = HostPath::new(directory.path.as_path().join(file_name(&library.name)));
                    result.at_its_own_path(&path, "the host's MPI loads it by name");
                }
                Some(why) => result.left_out.push(LeftOut { name: library.name.clone(), why }),
            }
        }
    }
    for path in &closure.files {
        result.at_its_own_path(path, "the host's MPI reads it");
    }
    for path in facts.devices {
        let Ok(target) = ContainerPath::parse(path.as_bytes()) else { continue };
        let (source, kind) = (path.clone(), BindKind::Device);
        result.binds.push(GpuBind { source, target, kind, required: false, reason: "a fabric's".to_owned() });
    }
    let for_ranks = |(name, _): &&(Vec<u8>, Vec<u8>)| launcher::is_for_ranks(name);
    result.environment = facts.kept_out.iter().filter(for_ranks).cloned().collect();
    Ok(result)
}

/// Whether the image's own library of that name does as well.
fn stays_the_images(facts: &BindFacts<'_>, library: &HostLibrary, needed_versions: &BTreeSet<&[u8]>) -> bool {
    if is_of_the_stack(&library.name) || !facts.places.contains_key(&library.name) {
        return false;
    }
    // A file that can't be read is as good as absent.
    let Some(has) = facts.definitions.get(&library.name) else { return false };
    let Ok(object) = &library.object else { return true };
    let needed = object.version_definitions.iter().filter(|version| needed_versions.contains(&version[..]));
    let mut lacking = needed.filter(|version| !has.contains(version));
    lacking.next().is_none()
}

fn cannot_be_loaded(library: &HostLibrary, facts: &BindFacts<'_>) -> Option<Why> {
    let object = match &library.object {
        Ok(object) => object,
        Err(why) => return Some(Why::Unusable(why.clone())),
    };
    if object.class != Class::Bits64 || object.machine != facts.machine {
        return Some(Why::OtherMachine);
    }
    match (object.glibc_need(), facts.image.c_library) {
        (Some(needs), CLibrary::Glibc(has)) if needs > has => Some(Why::NeedsGlibc { needs, has }),
        (Some(_), CLibrary::Musl) => Some(Why::NeedsGlibcOverMusl),
        _ => None,
    }
}

fn cannot_bind(facts: &BindFacts<'_>, why: &Why, out: &BTreeMap<&[u8], Why>) -> CannotBind {
    let path = facts.closure.libraries.iter().find(|library| library.name == facts.core);
    let path = path.map_or_else(|| HostPath::from_bytes(facts.core), |library| library.path.clone());
    let mut cause = None;
    let mut at = why;
    // A chain of needs is no longer than there are libraries.
    for _ in 0..out.len() {
        let Why::Needs(name) = at else { break };
        let Some(next) = out.get(&name[..]) else { break };
        cause = Some(LeftOut { name: name.clone(), why: next.clone() });
        at = next;
    }
    CannotBind { path, why: why.clone(), cause }
}

impl MpiBinds {
    fn show(&mut self, library: &HostLibrary, facts: &BindFacts<'_>) {
        let directory = ContainerPath::fixed(DIRECTORY);
        let mut names = vec![library.name.clone()];
        if facts.abi.family == Family::Mpich {
            names.extend(other_name(&library.name));
        }
        let known = |name: &[u8]| facts.closure.libraries.iter().any(|other| other.name == name);
        for (number, name) in names.iter().enumerate() {
            // The other name is not taken from a library that really has it.
            if number > 0 && known(name) {
                continue;
            }
            let own = facts.places.get(name).filter(|_| is_of_the_stack(name));
            let reason = if own.is_some() { "instead of the image's own" } else { "the host's MPI needs it" };
            let targets = own.cloned().into_iter().chain(directory.join(name).ok());
            self.binds.extend(targets.map(|target| GpuBind {
                source: library.path.clone(),
                target,
                kind: BindKind::Library,
                required: false,
                reason: reason.to_owned(),
            }));
        }
    }

    fn at_its_own_path(&mut self, path: &HostPath, reason: &str) {
        let Ok(target) = ContainerPath::parse(path.as_bytes()) else { return };
        let (source, kind) = (path.clone(), BindKind::File);
        self.binds.push(GpuBind { source, target, kind, required: false, reason: reason.to_owned() });
    }
}

fn file_name(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::GlibcVersion;
    use crate::elf::fabricate::Library;
    use crate::host::facts::PluginDirectory;

    fn library(name: &str, needed: &[&str], glibc: &str, definitions: &[&str]) -> HostLibrary {
        let needs = &[glibc];
        let glibc_needs = if glibc.is_empty() { &[][..] } else { &needs[..] };
        let library = Library { soname: Some(name), needed, glibc_needs, definitions, ..Library::default() };
        let object = Object::parse(&library.to_bytes()[..]).map_err(|error| error.to_string());
        HostLibrary { name: name.into(), path: HostPath::new(format!("/host/{name}")), object }
    }

    /// An Open MPI with two components, of which one needs a library that wants a newer glibc.
    fn closure() -> MpiClosure {
        MpiClosure {
            libraries: vec![
                library("libmpi.so.40", &["libopen-pal.so.40", "libz.so.1", "libc.so.6"], "GLIBC_2.14", &[]),
                library("libopen-pal.so.40", &["libc.so.6"], "GLIBC_2.14", &[]),
                library("libucp.so.0", &["libucs.so.0"], "", &[]),
                library("libucs.so.0", &["libc.so.6"], "GLIBC_2.34", &[]),
                library("libz.so.1", &["libc.so.6"], "GLIBC_2.14", &["libz.so.1", "ZLIB_1.2.9"]),
            ],
            plugins: vec![PluginDirectory {
                path: HostPath::new("/host/openmpi"),
                libraries: vec![
                    library("mca_btl_vader.so", &["libopen-pal.so.40"], "", &[]),
                    library("mca_pml_ucx.so", &["libucp.so.0"], "", &[]),
                    library("mca_broken.so", &["libgone.so.1"], "", &[]),
                ],
            }],
            files: vec![HostPath::new("/etc/openmpi")],
        }
    }

    fn glibc(version: &str) -> CLibrary {
        CLibrary::Glibc(GlibcVersion::from_symbol_version(version.as_bytes()).expect("a version"))
    }

    /// Plans for an image with a C library and with the libraries of `places`, which define no versions.
    fn planned(c_library: CLibrary, closure: &MpiClosure, places: &[(&str, &str)]) -> Result<MpiBinds, CannotBind> {
        let image = ImageLibraries { c_library, names: BTreeSet::new() };
        let places: BTreeMap<Vec<u8>, ContainerPath> = places
            .iter()
            .map(|(name, path)| (name.as_bytes().to_vec(), ContainerPath::parse(path.as_bytes()).unwrap()))
            .collect();
        let definitions = places.keys().map(|name| (name.clone(), Vec::new())).collect();
        let core = &closure.libraries[0].name;
        let soname = Abi::of(core, true).unwrap();
        plan(&BindFacts {
            abi: soname,
            core,
            machine: 62,
            closure,
            devices: &[],
            image: &image,
            places: &places,
            definitions: &definitions,
            kept_out: &[(b"PMIX_RANK".to_vec(), b"0".to_vec()), (b"HOME".to_vec(), b"/".to_vec())],
        })
    }

    #[track_caller]
    fn check(planned: &MpiBinds, expected: &[&str]) {
        let said: Vec<String> = planned.binds.iter().map(|bind| format!("{} {}", bind.source, bind.target)).collect();
        let said: Vec<String> = said.iter().map(|line| line.replace(DIRECTORY, "libs")).collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn an_image_without_mpi_gets_the_whole_closure_and_whole_directories() {
        let planned = planned(glibc("GLIBC_2.36"), &closure(), &[]).unwrap();
        let expected = [
            "/host/libmpi.so.40 libs/libmpi.so.40",
            "/host/libopen-pal.so.40 libs/libopen-pal.so.40",
            "/host/libucp.so.0 libs/libucp.so.0",
            "/host/libucs.so.0 libs/libucs.so.0",
            "/host/libz.so.1 libs/libz.so.1",
            "/host/openmpi /host/openmpi",
            "/etc/openmpi /etc/openmpi",
        ];
        check(&planned, &expected);
        assert_eq!(planned.environment, [(b"PMIX_RANK".to_vec(), b"0".to_vec())]);
    }

    #[test]
    fn what_an_older_c_library_cannot_load_is_left_out_with_all_that_need_it() {
        let planned = planned(glibc("GLIBC_2.31"), &closure(), &[]).unwrap();
        let expected = [
            "/host/libmpi.so.40 libs/libmpi.so.40",
            "/host/libopen-pal.so.40 libs/libopen-pal.so.40",
            "/host/libz.so.1 libs/libz.so.1",
            "/host/openmpi/mca_btl_vader.so /host/openmpi/mca_btl_vader.so",
            "/etc/openmpi /etc/openmpi",
        ];
        check(&planned, &expected);
        let causes: Vec<String> =
            planned.left_out.iter().filter(|library| library.is_cause()).map(ToString::to_string).collect();
        assert_eq!(causes, ["libucs.so.0 of the host's MPI is left out: needs glibc 2.34, the image has 2.31"]);
        assert_eq!(planned.left_out.len(), 4);
    }

    #[test]
    fn an_mpi_that_cannot_be_loaded_at_all_is_refused_with_the_cause() {
        let error = planned(glibc("GLIBC_2.12"), &closure(), &[]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the host's MPI can't be loaded in this image: /host/libmpi.so.40: needs glibc 2.14, the image has 2.12"
        );
        let mut closure = closure();
        closure.libraries[0] = library("libmpi.so.40", &["libucs.so.0"], "GLIBC_2.14", &[]);
        let error = planned(glibc("GLIBC_2.31"), &closure, &[]).unwrap_err().to_string();
        assert!(
            error.ends_with("needs libucs.so.0, which is left out (libucs.so.0 needs glibc 2.34, the image has 2.31)")
        );
        let error = planned(CLibrary::Musl, &closure, &[]).unwrap_err().to_string();
        assert!(error.ends_with("needs glibc, the image has musl"), "{error}");
    }

    #[test]
    fn an_mpi_of_the_images_own_is_covered_and_other_libraries_stay() {
        let places = [("libmpi.so.40", "/usr/lib/libmpi.so.40"), ("libz.so.1", "/usr/lib/libz.so.1")];
        let planned = planned(glibc("GLIBC_2.36"), &closure(), &places).unwrap();
        assert_eq!(planned.binds[0].target, ContainerPath::fixed("/usr/lib/libmpi.so.40"));
        assert_eq!(planned.binds[0].reason, "instead of the image's own");
        assert!(planned.binds.iter().all(|bind| bind.source != HostPath::new("/host/libz.so.1")));
    }

    #[test]
    fn a_library_of_the_image_that_lacks_a_version_is_not_enough() {
        let mut closure = closure();
        closure.libraries[0] = library("libmpi.so.40", &["libz.so.1"], "ZLIB_1.2.9", &[]);
        let places = [("libz.so.1", "/usr/lib/libz.so.1")];
        let planned = planned(glibc("GLIBC_2.36"), &closure, &places).unwrap();
        assert!(planned.binds.iter().any(|bind| bind.source == HostPath::new("/host/libz.so.1")));
    }

    #[test]
    fn mpich_serves_under_both_names() {
        let closure =
            MpiClosure { libraries: vec![library("libmpich.so.12", &["libc.so.6"], "", &[])], ..MpiClosure::default() };
        let planned = planned(glibc("GLIBC_2.36"), &closure, &[]).unwrap();
        check(&planned, &["/host/libmpich.so.12 libs/libmpich.so.12", "/host/libmpich.so.12 libs/libmpi.so.12"]);
    }
}
