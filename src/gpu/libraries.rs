//! Which of the host's libraries a container gets: those that its programs could load.
//!
//! A driver's library fails to load where it wants a newer C library than the image has, and a program that finds it
//! first fails with it. So such a one is left out, and so is every library that needs one that was left out.

use std::collections::BTreeSet;
use std::fmt;

use starter::paths::{ContainerPath, HostPath};

use super::list::Wanted;
use crate::elf::{self, Class, GlibcVersion, Object, is_version_of};
use crate::host::facts::HostLibrary;
use crate::image::facts::{CLibrary, ImageLibraries};

/// Where the host's libraries are shown; the container's `LD_LIBRARY_PATH` ends with it.
pub const DIRECTORY: &str = "/.singularity.d/libs";

/// Where those for programs with 32-bit addresses are shown.
pub const NARROW_DIRECTORY: &str = "/.singularity.d/libs32";

/// What programs libraries are for, and where these are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub class: Class,
    /// `e_machine`.
    pub machine: u16,
    pub directory: &'static str,
}

impl Target {
    pub fn wide(machine: u16) -> Self {
        Self { class: Class::Bits64, machine, directory: DIRECTORY }
    }

    /// The programs of 32 bits that `machine` runs as well, if it does.
    pub fn narrow(machine: u16) -> Option<Self> {
        let machine = elf::compatible_machine(machine)?;
        Some(Self { class: Class::Bits32, machine, directory: NARROW_DIRECTORY })
    }

    fn fits(self, object: &Object) -> bool {
        (object.class, object.machine) == (self.class, self.machine)
    }

    /// Whether it is for these programs, as far as the file tells.
    pub fn may_fit(self, library: &HostLibrary) -> bool {
        library.object.as_ref().is_ok_and(|object| self.fits(object))
    }
}

/// What becomes of one library of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub name: Vec<u8>,
    pub path: HostPath,
    /// Whether the list asks for it only where the image has none.
    pub if_missing: bool,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Shown at these places: under the name that the linker's cache has, and under its soname.
    Shown(Vec<ContainerPath>),
    LeftOut(Why),
}

/// Why a library is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The image has one of that name.
    ImageHasOne,
    /// It is for another machine than the host's own programs.
    OtherMachine,
    /// The file is missing, broken, or out of reach.
    Unusable(String),
    /// The image's C library is older than it needs.
    NeedsGlibc { needs: GlibcVersion, has: GlibcVersion },
    /// The image has another C library altogether.
    NeedsGlibcOverMusl,
    /// It needs a library that was left out and that the image has not.
    Needs(Vec<u8>),
    /// A name that can't be shown.
    BadName,
}

impl Why {
    /// Whether the user has to know: the image is too old for a library that was asked for.
    pub fn matters(&self) -> bool {
        matches!(self, Self::NeedsGlibc { .. } | Self::NeedsGlibcOverMusl | Self::Needs(_))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImageHasOne => f.write_str("the image has its own"),
            Self::OtherMachine => f.write_str("for another kind of machine"),
            Self::Unusable(why) => f.write_str(why),
            Self::NeedsGlibc { needs, has } => write!(f, "needs glibc {needs}, the image has {has}"),
            Self::NeedsGlibcOverMusl => f.write_str("needs glibc, the image has musl"),
            Self::Needs(name) => write!(f, "needs {}, which is left out", String::from_utf8_lossy(name)),
            Self::BadName => f.write_str("its name holds a slash"),
        }
    }
}

/// Judges every library that the list asks for, in the list's order.
pub fn judge(list: &[Wanted], host: &[&HostLibrary], target: Target, image: &ImageLibraries) -> Vec<Judged> {
    let mut judged: Vec<Judged> = Vec::new();
    let mut taken: BTreeSet<ContainerPath> = BTreeSet::new();
    for wanted in list {
        let Wanted::Library { name, if_missing } = wanted else { continue };
        for library in host.iter().filter(|library| is_version_of(&library.name, name)) {
            let verdict = if *if_missing && image.names.iter().any(|own| is_version_of(own, name)) {
                Verdict::LeftOut(Why::ImageHasOne)
            } else {
                verdict(library, target, image)
            };
            let verdict = match verdict {
                // The linker takes the first of a name as well.
                Verdict::Shown(places) => {
                    let new: Vec<ContainerPath> = places.into_iter().filter(|place| !taken.contains(place)).collect();
                    if new.is_empty() {
                        continue;
                    }
                    taken.extend(new.iter().cloned());
                    Verdict::Shown(new)
                }
                left_out => left_out,
            };
            let (name, path) = (library.name.clone(), library.path.clone());
            judged.push(Judged { name, path, if_missing: *if_missing, verdict });
        }
    }
    leave_out_dependents(&mut judged, host, image);
    judged
}

fn verdict(library: &HostLibrary, target: Target, image: &ImageLibraries) -> Verdict {
    let object = match &library.object {
        Ok(object) => object,
        Err(why) => return Verdict::LeftOut(Why::Unusable(why.clone())),
    };
    if !target.fits(object) {
        return Verdict::LeftOut(Why::OtherMachine);
    }
    match (object.glibc_need(), image.c_library) {
        (Some(needs), CLibrary::Glibc(has)) if needs > has => {
            return Verdict::LeftOut(Why::NeedsGlibc { needs, has });
        }
        (Some(_), CLibrary::Musl) => return Verdict::LeftOut(Why::NeedsGlibcOverMusl),
        _ => {}
    }
    let directory = ContainerPath::fixed(target.directory);
    let mut places = Vec::new();
    for name in [Some(&library.name), object.soname.as_ref()].into_iter().flatten() {
        let Some(place) = directory.join(name).ok().filter(|place| place.parent() == directory) else {
            return Verdict::LeftOut(Why::BadName);
        };
        if !places.contains(&place) {
            places.push(place);
        }
    }
    Verdict::Shown(places)
}

/// Leaves out what needs something that was left out, and what needs that, until nothing changes.
fn leave_out_dependents(judged: &mut [Judged], host: &[&HostLibrary], image: &ImageLibraries) {
    loop {
        let shown: BTreeSet<&[u8]> = judged.iter().flat_map(places).map(ContainerPath::name).collect();
        let absent: BTreeSet<Vec<u8>> = judged
            .iter()
            .filter(|library| matches!(&library.verdict, Verdict::LeftOut(why) if why.matters()))
            .map(|library| library.name.clone())
            .filter(|name| !shown.contains(&name[..]) && !image.names.contains(name))
            .collect();
        let mut changed = false;
        for library in judged.iter_mut().filter(|library| matches!(library.verdict, Verdict::Shown(_))) {
            let object = host.iter().find(|found| found.name == library.name && found.path == library.path);
            let needed = object.and_then(|found| found.object.as_ref().ok()).map_or(&[][..], |object| &object.needed);
            if let Some(name) = needed.iter().find(|name| absent.contains(*name)) {
                library.verdict = Verdict::LeftOut(Why::Needs(name.clone()));
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

fn places(library: &Judged) -> &[ContainerPath] {
    match &library.verdict {
        Verdict::Shown(places) => places,
        Verdict::LeftOut(_) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::super::list;
    use super::*;
    use crate::elf::fabricate::Library;

    const X86_64: u16 = 62;

    fn library(name: &str, fabricated: &Library<'_>) -> HostLibrary {
        let object = Object::parse(&fabricated.to_bytes()[..]).map_err(|error| error.to_string());
        HostLibrary { name: name.into(), path: HostPath::new(format!("/usr/lib/{name}.570")), object }
    }

    fn image(c_library: CLibrary, names: &[&str]) -> ImageLibraries {
        ImageLibraries { c_library, names: names.iter().map(|name| name.as_bytes().to_vec()).collect() }
    }

    fn glibc(version: &str) -> CLibrary {
        CLibrary::Glibc(GlibcVersion::from_symbol_version(version.as_bytes()).expect("a version"))
    }

    /// Checks what becomes of libraries: `libx.so.1 -> place place` or `libx.so.1: why`.
    #[track_caller]
    fn check(list: &str, host: &[HostLibrary], image: &ImageLibraries, expected: &[&str]) {
        let list = list::parse(list.as_bytes()).expect("a list");
        let host: Vec<&HostLibrary> = host.iter().collect();
        let said: Vec<String> = judge(&list, &host, Target::wide(X86_64), image)
            .iter()
            .map(|library| {
                let name = String::from_utf8_lossy(&library.name).into_owned();
                match &library.verdict {
                    Verdict::LeftOut(why) => format!("{name}: {why}"),
                    Verdict::Shown(places) => {
                        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
                        format!("{name} -> {}", places.join(" ").replace(DIRECTORY, "libs"))
                    }
                }
            })
            .collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn a_library_is_shown_under_its_names() {
        let host = [
            library("libcuda.so.1", &Library { soname: Some("libcuda.so.1"), ..Library::default() }),
            library("libcuda.so", &Library { soname: Some("libcuda.so.1"), ..Library::default() }),
            library("libcudart.so", &Library::default()),
        ];
        let expected = ["libcuda.so.1 -> libs/libcuda.so.1", "libcuda.so -> libs/libcuda.so"];
        check("libcuda.so", &host, &image(CLibrary::Unknown, &[]), &expected);
    }

    #[test]
    fn one_that_wants_a_newer_c_library_is_left_out_with_all_that_need_it() {
        let host = [
            library(
                "liba.so.1",
                &Library { glibc_needs: &["GLIBC_2.2.5"], needed: &["libb.so.1"], ..Library::default() },
            ),
            library("libb.so.1", &Library { needed: &["libc.so.6", "libd.so.1"], ..Library::default() }),
            library("libd.so.1", &Library { glibc_needs: &["GLIBC_9.99"], ..Library::default() }),
            library(
                "libe.so.1",
                &Library { glibc_needs: &["GLIBC_2.31"], needed: &["libX.so.6"], ..Library::default() },
            ),
        ];
        let list = "liba.so\nlibb.so\nlibd.so\nlibe.so";
        let expected = [
            "liba.so.1: needs libb.so.1, which is left out",
            "libb.so.1: needs libd.so.1, which is left out",
            "libd.so.1: needs glibc 9.99, the image has 2.31",
            "libe.so.1 -> libs/libe.so.1",
        ];
        check(list, &host, &image(glibc("GLIBC_2.31"), &[]), &expected);
        let own = ["liba.so.1 -> libs/liba.so.1", "libb.so.1 -> libs/libb.so.1", expected[2], expected[3]];
        check(list, &host, &image(glibc("GLIBC_2.31"), &["libd.so.1"]), &own);
    }

    #[test]
    fn other_machines_broken_files_and_odd_names_are_left_out() {
        let mut broken = library("libx.so.4", &Library::default());
        broken.object = Err("not an ELF file".to_owned());
        let host = [
            library("libx.so.1", &Library { class: Class::Bits32, machine: 3, ..Library::default() }),
            library("libx.so.2", &Library { machine: 183, ..Library::default() }),
            library("libx.so.3", &Library { soname: Some("../libc.so.6"), ..Library::default() }),
            broken,
            library("libx.so.5", &Library { soname: Some("a/libc.so.6"), ..Library::default() }),
            library("libx.so.6", &Library { soname: Some(""), ..Library::default() }),
        ];
        let expected = [
            "libx.so.1: for another kind of machine",
            "libx.so.2: for another kind of machine",
            "libx.so.3: its name holds a slash",
            "libx.so.4: not an ELF file",
            "libx.so.5: its name holds a slash",
            "libx.so.6: its name holds a slash",
        ];
        check("libx.so", &host, &image(glibc("GLIBC_2.31"), &[]), &expected);
    }

    #[test]
    fn an_image_keeps_its_own_where_the_list_says_so() {
        let host = [library("libGL.so.1", &Library::default()), library("libcuda.so.1", &Library::default())];
        let image = image(glibc("GLIBC_2.31"), &["libGL.so.1", "libcuda.so.1"]);
        let expected = ["libGL.so.1: the image has its own", "libcuda.so.1 -> libs/libcuda.so.1"];
        check("libGL.so if-missing\nlibcuda.so", &host, &image, &expected);
    }

    #[test]
    fn an_image_with_musl_gets_what_needs_no_glibc() {
        let host = [
            library("liba.so.1", &Library { glibc_needs: &["GLIBC_2.2.5"], ..Library::default() }),
            library("libb.so.1", &Library::default()),
        ];
        let expected = ["liba.so.1: needs glibc, the image has musl", "libb.so.1 -> libs/libb.so.1"];
        check("liba.so\nlibb.so", &host, &image(CLibrary::Musl, &[]), &expected);
    }

    #[test]
    fn the_first_of_a_name_counts() {
        let mut second = library("libx.so.1", &Library::default());
        second.path = HostPath::new("/opt/libx.so.1");
        let mut first = library("libx.so.1", &Library { machine: 183, ..Library::default() });
        first.path = HostPath::new("/arm/libx.so.1");
        let host = [first, library("libx.so.1", &Library::default()), second];
        let list = list::parse(b"libx.so").expect("a list");
        let host: Vec<&HostLibrary> = host.iter().collect();
        let judged = judge(&list, &host, Target::wide(X86_64), &image(CLibrary::Unknown, &[]));
        let shown: Vec<&HostPath> =
            judged.iter().filter(|library| !places(library).is_empty()).map(|library| &library.path).collect();
        assert_eq!(shown, [&HostPath::new("/usr/lib/libx.so.1.570")]);
    }
}
