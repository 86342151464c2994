//! The libraries of an image: its C library and the names that its dynamic linker would find.

use std::collections::{BTreeMap, BTreeSet};

use starter::paths::ContainerPath;

use super::facts::{CLibrary, ImageLibraries};
use crate::elf::{self, Object, ld_cache};
use crate::tree::lookup::{self, Lookup, LookupError};

/// No linker cache is larger.
const MAX_CACHE_BYTES: u64 = 16 << 20;
/// The C library of glibc has two megabytes.
const MAX_C_LIBRARY_BYTES: u64 = 16 << 20;

/// The libraries of an MPI have some forty megabytes at most.
const MAX_LIBRARY_BYTES: u64 = 256 << 20;

/// Where libraries lie that need no cache to be found, for machines of 32 bits.
const NARROW_DIRECTORIES: [&str; 8] = [
    "/lib",
    "/usr/lib",
    "/lib32",
    "/usr/lib32",
    "/lib/i386-linux-gnu",
    "/usr/lib/i386-linux-gnu",
    "/lib/arm-linux-gnueabihf",
    "/usr/lib/arm-linux-gnueabihf",
];

/// As [`NARROW_DIRECTORIES`], for machines of 64 bits.
const DIRECTORIES: [&str; 7] = [
    "/lib64",
    "/usr/lib64",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib",
];

/// Looks for libraries of a machine in the image's linker cache, or in the usual directories where it has none.
///
/// A cache or a library that can't be read counts as absent; only a failing medium is an error.
pub fn observe(root: &dyn Lookup, machine: u16) -> Result<ImageLibraries, LookupError> {
    let wide = elf::compatible_machine(elf::NATIVE_MACHINE) != Some(machine);
    let directories = if wide { &DIRECTORIES[..] } else { &NARROW_DIRECTORIES };
    let cache = read(root, "/etc/ld.so.cache", MAX_CACHE_BYTES)?.unwrap_or_default();
    let entries = ld_cache::parse(&cache).unwrap_or_default();
    let mut names: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut c_library_paths: Vec<Vec<u8>> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.serves(machine)) {
        names.insert(entry.name.to_vec());
        if entry.name == b"libc.so.6" {
            c_library_paths.push(entry.path.to_vec());
        }
    }
    if names.is_empty() {
        for directory in directories {
            let entries = lookup::list(root, &ContainerPath::fixed(directory))?.unwrap_or_default();
            let libraries = entries.into_iter().map(|entry| entry.name).filter(|name| is_library(name));
            names.extend(libraries);
        }
    }
    c_library_paths.extend(directories.iter().map(|directory| format!("{directory}/libc.so.6").into_bytes()));
    Ok(ImageLibraries { c_library: c_library(root, machine, &c_library_paths)?, names })
}

/// Where each library is that the image's dynamic linker would find, links not followed.
pub fn places(root: &dyn Lookup, machine: u16) -> Result<BTreeMap<Vec<u8>, ContainerPath>, LookupError> {
    let cache = read(root, "/etc/ld.so.cache", MAX_CACHE_BYTES)?.unwrap_or_default();
    let entries = ld_cache::parse(&cache).unwrap_or_default();
    let mut places = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.hwcap == 0 && entry.serves(machine)) {
        if let Ok(path) = ContainerPath::parse(entry.path) {
            places.entry(entry.name.to_vec()).or_insert(path);
        }
    }
    if places.is_empty() {
        for directory in DIRECTORIES.map(ContainerPath::fixed) {
            for entry in lookup::list(root, &directory)?.unwrap_or_default() {
                if let (true, Ok(path)) = (is_library(&entry.name), directory.join(&entry.name)) {
                    places.entry(entry.name).or_insert(path);
                }
            }
        }
    }
    Ok(places)
}

/// Reads what the dynamic linker would of the file at `path`; `None` where it is no ELF file that can be used.
pub fn object(root: &dyn Lookup, path: &ContainerPath) -> Result<Option<Object>, LookupError> {
    let bytes = lookup::read(root, path, MAX_LIBRARY_BYTES).or_else(absent)?;
    Ok(bytes.and_then(|bytes| Object::parse(&bytes[..]).ok()))
}

fn is_library(name: &[u8]) -> bool {
    name.starts_with(b"lib") && name.windows(3).any(|part| part == b".so")
}

fn c_library(root: &dyn Lookup, machine: u16, paths: &[Vec<u8>]) -> Result<CLibrary, LookupError> {
    for path in paths {
        let Ok(path) = ContainerPath::parse(path) else { continue };
        let Some(bytes) = lookup::read(root, &path, MAX_C_LIBRARY_BYTES).or_else(absent)? else { continue };
        let object = Object::parse(&bytes[..]).ok().filter(|object| object.machine == machine);
        if let Some(version) = object.and_then(|object| object.glibc_definition()) {
            return Ok(CLibrary::Glibc(version));
        }
    }
    let entries = lookup::list(root, &ContainerPath::fixed("/lib"))?.unwrap_or_default();
    let musl = entries.iter().any(|entry| entry.name.starts_with(b"ld-musl-"));
    Ok(if musl { CLibrary::Musl } else { CLibrary::Unknown })
}

fn read(root: &dyn Lookup, path: &'static str, limit_bytes: u64) -> Result<Option<Vec<u8>>, LookupError> {
    lookup::read(root, &ContainerPath::fixed(path), limit_bytes).or_else(absent)
}

/// What can't be read because of what it is, and not because the medium fails, is as good as absent.
pub(super) fn absent<T>(error: LookupError) -> Result<Option<T>, LookupError> {
    match error {
        LookupError::Damaged { .. } => Err(error),
        LookupError::TooManyLinks { .. } | LookupError::TooLarge { .. } | LookupError::Denied { .. } => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::fabricate::Library;
    use crate::elf::ld_cache::Entry;
    use crate::elf::{Class, GlibcVersion};
    use crate::tree::{Attributes, Body, Content, Tree};

    const X86_64: u16 = 62;

    fn attributes() -> Attributes {
        Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }
    }

    fn tree(files: &[(&str, Vec<u8>)]) -> Tree {
        let mut tree = Tree::new(attributes());
        for (path, bytes) in files {
            let mut directory = tree.root();
            let (parents, name) = path[1..].rsplit_once('/').expect("a path in a directory");
            for parent in parents.split('/') {
                directory = tree.child(directory, parent.as_bytes()).unwrap_or_else(|| {
                    tree.insert(directory, parent.as_bytes(), attributes(), Body::Directory).expect("a directory")
                });
            }
            let content = Body::File(Content::Bytes(bytes[..].into()));
            tree.insert(directory, name.as_bytes(), attributes(), content).expect("a file");
        }
        tree
    }

    fn libc(newest: &str) -> Vec<u8> {
        let definitions = &["libc.so.6", "GLIBC_2.2.5", newest, "GLIBC_PRIVATE"];
        Library { soname: Some("libc.so.6"), definitions, ..Library::default() }.to_bytes()
    }

    fn glibc(name: &str) -> CLibrary {
        CLibrary::Glibc(GlibcVersion::from_symbol_version(name.as_bytes()).expect("a version"))
    }

    #[track_caller]
    fn check(files: &[(&str, Vec<u8>)], c_library: CLibrary, names: &[&str]) {
        let observed = observe(&tree(files), X86_64).expect("an image that can be read");
        let found: Vec<String> = observed.names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!((observed.c_library, found), (c_library, names.iter().map(|name| name.to_string()).collect()));
    }

    #[test]
    fn the_linker_cache_says_where_the_c_library_is() {
        let entry = |name: &'static str, path: &'static str, flags| Entry {
            name: name.as_bytes(),
            path: path.as_bytes(),
            flags,
            hwcap: 0,
        };
        let cache = ld_cache::write(&[
            entry("libc.so.6", "/odd/place/libc.so.6", 0x0303),
            entry("libGL.so.1", "/usr/lib/libGL.so.1", 0x0303),
            entry("libz.so.1", "/lib32/libz.so.1", 3),
        ]);
        let files = [("/etc/ld.so.cache", cache), ("/odd/place/libc.so.6", libc("GLIBC_2.35"))];
        check(&files, glibc("GLIBC_2.35"), &["libGL.so.1", "libc.so.6"]);
    }

    #[test]
    fn without_a_cache_the_usual_directories_are_listed() {
        let files = [
            ("/lib64/libc.so.6", libc("GLIBC_2.17")),
            ("/usr/lib/x86_64-linux-gnu/libz.so.1.2", Vec::new()),
            ("/usr/lib/readme", Vec::new()),
        ];
        check(&files, glibc("GLIBC_2.17"), &["libc.so.6", "libz.so.1.2"]);
        let broken = [("/etc/ld.so.cache", b"no cache".to_vec()), ("/lib64/libc.so.6", libc("GLIBC_2.17"))];
        check(&broken, glibc("GLIBC_2.17"), &["libc.so.6"]);
    }

    #[test]
    fn libraries_of_32_bits_are_another_set() {
        const I386: u16 = 3;
        let definitions = &["GLIBC_2.0", "GLIBC_2.31"];
        let narrow = Library { class: Class::Bits32, machine: I386, definitions, ..Library::default() };
        let files = [
            ("/lib64/libc.so.6", libc("GLIBC_2.40")),
            ("/usr/lib32/libc.so.6", narrow.to_bytes()),
            ("/usr/lib/i386-linux-gnu/libGL.so.1", Vec::new()),
        ];
        let observed = observe(&tree(&files), I386).expect("an image that can be read");
        assert_eq!(observed.c_library, glibc("GLIBC_2.31"));
        assert_eq!(observed.names, [b"libGL.so.1".to_vec(), b"libc.so.6".to_vec()].into());
    }

    #[test]
    fn other_c_libraries_are_told_apart() {
        check(&[("/lib/ld-musl-x86_64.so.1", Vec::new())], CLibrary::Musl, &[]);
        check(&[("/bin/busybox", Vec::new())], CLibrary::Unknown, &[]);
        let foreign = Library { class: Class::Bits32, machine: 3, definitions: &["GLIBC_2.4"], ..Library::default() };
        check(&[("/lib64/libc.so.6", foreign.to_bytes())], CLibrary::Unknown, &["libc.so.6"]);
        check(&[("/lib64/libc.so.6", b"text".to_vec())], CLibrary::Unknown, &["libc.so.6"]);
    }
}
