//! One ELF file: its class and machine, its soname, and what it needs and defines.
//!
//! ```text
//! | ELF header | program headers | ... | segments ................................................ |
//!                 PT_LOAD: address ─► offset       PT_DYNAMIC: (tag, value) pairs
//!                                                    DT_SONAME, DT_NEEDED ─► names in DT_STRTAB
//!                                                    DT_VERNEED ─► file, version, version ─► file, version ..
//!                                                    DT_VERDEF ─► version ─► version ..
//! ```
//!
//! Only these parts are read, a few kilobytes of a library of a hundred megabytes; section headers, which may be
//! stripped, are not looked at.

use std::fmt;
use std::io;

use goblin::container::Ctx;
use goblin::elf::Elf;
use goblin::elf::dynamic::{
    DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRTAB, DT_VERDEF, DT_VERDEFNUM, DT_VERNEED, DT_VERNEEDNUM,
};
use goblin::elf::header::{Header, SIZEOF_IDENT};
use goblin::elf::program_header::{PT_DYNAMIC, PT_LOAD, ProgramHeader};

/// A file has a dozen program headers.
const MAX_PROGRAM_HEADERS: usize = 128;
/// A library has some forty dynamic entries, and as many more as it needs others.
const MAX_DYNAMIC_BYTES: u64 = 64 << 10;
const MAX_NAME_BYTES: usize = 1024;
/// Package managers that give each library a directory of its own write long lists.
const MAX_RUN_PATH_BYTES: usize = 64 << 10;
/// glibc itself defines some fifty versions.
const MAX_VERSIONS: u64 = 2048;

/// Bytes that can be read anywhere, such as a file's.
pub trait ReadAt {
    /// Reads at `offset` until `buffer` is full or the end is reached; returns how much was read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// The width of a file's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Bits32,
    Bits64,
}

/// What the dynamic linker needs to know of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub class: Class,
    /// `e_machine`: 62 is x86-64, 183 is AArch64.
    pub machine: u16,
    pub soname: Option<Vec<u8>>,
    /// Sonames of the libraries that it needs.
    pub needed: Vec<Vec<u8>>,
    /// Directories in which it looks for them first; `$ORIGIN` stands for its own.
    pub run_paths: Vec<Vec<u8>>,
    /// Versions that must be defined by the libraries it needs, such as `GLIBC_2.34`; weak ones are left out.
    pub version_needs: Vec<Vec<u8>>,
    /// Versions that it defines.
    pub version_definitions: Vec<Vec<u8>>,
}

/// Why bytes are no ELF file that can be looked at.
#[derive(Debug)]
pub enum ElfError {
    Read(io::Error),
    /// Does not begin as ELF does.
    NotElf,
    /// A field that the file's own other fields contradict.
    Broken(&'static str),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::NotElf => f.write_str("not an ELF file"),
            Self::Broken(what) => write!(f, "a broken ELF file: {what}"),
        }
    }
}

impl std::error::Error for ElfError {}

impl From<io::Error> for ElfError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl Object {
    /// Reads what the dynamic linker would.
    pub fn parse<R: ReadAt + ?Sized>(file: &R) -> Result<Self, ElfError> {
        let start = read_up_to(file, 0, 64)?;
        if start.len() < SIZEOF_IDENT || !start.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let header = Elf::parse_header(&start).map_err(|_| ElfError::Broken("its header"))?;
        let context = context(&header)?;
        let segments = segments(file, &header, context)?;
        let image = Image { file, segments, wide: context.is_big(), big_endian: !context.is_little_endian() };
        let dynamic = image.dynamic()?;
        let mut object = Self {
            class: if context.is_big() { Class::Bits64 } else { Class::Bits32 },
            machine: header.e_machine,
            soname: None,
            needed: Vec::new(),
            run_paths: Vec::new(),
            version_needs: Vec::new(),
            version_definitions: Vec::new(),
        };
        let find = |tag| dynamic.iter().find(|(found, _)| *found == tag).map(|(_, value)| *value);
        // No string table: nothing of what follows can be there.
        let Some(strings) = find(DT_STRTAB) else { return Ok(object) };
        for &(tag, value) in &dynamic {
            match tag {
                DT_SONAME => object.soname = Some(image.name(strings, value)?),
                DT_NEEDED => object.needed.push(image.name(strings, value)?),
                DT_RPATH | DT_RUNPATH => {
                    let list = image.text(strings, value, MAX_RUN_PATH_BYTES)?;
                    object.run_paths.extend(list.split(|&byte| byte == b':').map(<[u8]>::to_vec));
                }
                _ => {}
            }
        }
        if let Some(address) = find(DT_VERNEED) {
            object.version_needs = image.version_needs(address, find(DT_VERNEEDNUM), strings)?;
        }
        if let Some(address) = find(DT_VERDEF) {
            object.version_definitions = image.version_definitions(address, find(DT_VERDEFNUM), strings)?;
        }
        Ok(object)
    }

    /// Returns the newest glibc that its version needs name; `None` when it needs no particular one.
    pub fn glibc_need(&self) -> Option<GlibcVersion> {
        self.version_needs.iter().filter_map(|name| GlibcVersion::from_symbol_version(name)).max()
    }

    /// Returns the version of glibc that it is, if it is `libc.so.6`.
    pub fn glibc_definition(&self) -> Option<GlibcVersion> {
        self.version_definitions.iter().filter_map(|name| GlibcVersion::from_symbol_version(name)).max()
    }
}

/// A version of the GNU C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GlibcVersion {
    pub major: u16,
    pub minor: u16,
    pub patch: u16,
}

impl GlibcVersion {
    /// Reads `GLIBC_2.34` and `GLIBC_2.2.5`; other names (`GLIBC_PRIVATE`, those of other libraries) are none.
    pub fn from_symbol_version(name: &[u8]) -> Option<Self> {
        // The marker of files with packed relative relocations, which glibc understands since 2.36.
        if name == b"GLIBC_ABI_DT_RELR" {
            return Some(Self { major: 2, minor: 36, patch: 0 });
        }
        let text = std::str::from_utf8(name.strip_prefix(b"GLIBC_")?).ok()?;
        let mut numbers = text.splitn(3, '.').map(|word| word.parse::<u16>().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        let patch = match numbers.next() {
            None => 0,
            Some(patch) => patch?,
        };
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for GlibcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 { write!(f, ".{}", self.patch) } else { Ok(()) }
    }
}

fn context(header: &Header) -> Result<Ctx, ElfError> {
    let container = header.container().map_err(|_| ElfError::Broken("its class"))?;
    let endianness = header.endianness().map_err(|_| ElfError::Broken("its byte order"))?;
    Ok(Ctx::new(container, endianness))
}

fn segments<R: ReadAt + ?Sized>(file: &R, header: &Header, context: Ctx) -> Result<Vec<ProgramHeader>, ElfError> {
    let count = usize::from(header.e_phnum);
    let size = ProgramHeader::size(context);
    if count > MAX_PROGRAM_HEADERS || (count > 0 && usize::from(header.e_phentsize) != size) {
        return Err(ElfError::Broken("its program headers"));
    }
    let bytes = read_up_to(file, header.e_phoff, count * size)?;
    ProgramHeader::parse(&bytes, 0, count, context).map_err(|_| ElfError::Broken("its program headers"))
}

fn read_up_to<R: ReadAt + ?Sized>(file: &R, offset: u64, length: usize) -> Result<Vec<u8>, ElfError> {
    let mut bytes = vec![0; length];
    let read = file.read_at(offset, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// A file whose parts are found by the addresses that they are loaded at.
struct Image<'a, R: ?Sized> {
    file: &'a R,
    segments: Vec<ProgramHeader>,
    wide: bool,
    big_endian: bool,
}

impl<R: ReadAt + ?Sized> Image<'_, R> {
    /// Returns the dynamic entries before the one that ends them.
    fn dynamic(&self) -> Result<Vec<(u64, u64)>, ElfError> {
        let Some(segment) = self.segments.iter().find(|segment| segment.p_type == PT_DYNAMIC) else {
            return Ok(Vec::new());
        };
        if segment.p_filesz > MAX_DYNAMIC_BYTES {
            return Err(ElfError::Broken("the size of its dynamic segment"));
        }
        let bytes = read_up_to(self.file, segment.p_offset, segment.p_filesz as usize)?;
        let word = if self.wide { 8 } else { 4 };
        let pairs = bytes.chunks_exact(2 * word).map(|pair| (self.number(&pair[..word]), self.number(&pair[word..])));
        Ok(pairs.take_while(|(tag, _)| *tag != DT_NULL).collect())
    }

    fn number(&self, bytes: &[u8]) -> u64 {
        let shift = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        if self.big_endian { bytes.iter().fold(0, shift) } else { bytes.iter().rev().fold(0, shift) }
    }

    /// Returns where in the file the byte stands that is loaded at `address`.
    fn offset(&self, address: u64) -> Result<u64, ElfError> {
        let holds = |segment: &&ProgramHeader| {
            segment.p_type == PT_LOAD
                && address.checked_sub(segment.p_vaddr).is_some_and(|distance| distance < segment.p_filesz)
        };
        let segment = self.segments.iter().find(holds).ok_or(ElfError::Broken("an address that is not loaded"))?;
        (address - segment.p_vaddr).checked_add(segment.p_offset).ok_or(ElfError::Broken("an offset"))
    }

    /// Returns the name at `index` of the string table at address `strings`.
    fn name(&self, strings: u64, index: u64) -> Result<Vec<u8>, ElfError> {
        self.text(strings, index, MAX_NAME_BYTES)
    }

    fn text(&self, strings: u64, index: u64, limit_bytes: usize) -> Result<Vec<u8>, ElfError> {
        let address = strings.checked_add(index).ok_or(ElfError::Broken("the index of a name"))?;
        let mut bytes = read_up_to(self.file, self.offset(address)?, 128)?;
        if !bytes.contains(&0) {
            bytes = read_up_to(self.file, self.offset(address)?, limit_bytes)?;
        }
        let end = bytes.iter().position(|&byte| byte == 0).ok_or(ElfError::Broken("the length of a name"))?;
        bytes.truncate(end);
        Ok(bytes)
    }

    /// Reads a record of `length` bytes at `address`.
    fn record(&self, address: u64, length: usize) -> Result<Vec<u8>, ElfError> {
        let bytes = read_up_to(self.file, self.offset(address)?, length)?;
        if bytes.len() == length { Ok(bytes) } else { Err(ElfError::Broken("a version beyond its end")) }
    }

    /// `Elf_Verneed`: version (2), count (2), file (4), first `Elf_Vernaux` (4), next (4); and `Elf_Vernaux`: hash (4),
    /// flags (2), other (2), name (4), next (4). The links are distances, 0 at the end.
    fn version_needs(&self, address: u64, count: Option<u64>, strings: u64) -> Result<Vec<Vec<u8>>, ElfError> {
        const WEAK: u64 = 2;
        let mut names = Vec::new();
        let mut left = MAX_VERSIONS;
        let mut need_at = address;
        for _ in 0..count.unwrap_or(0).min(MAX_VERSIONS) {
            let need = self.record(need_at, 16)?;
            let mut version_at = step(need_at, self.number(&need[8..12]))?;
            for _ in 0..self.number(&need[2..4]) {
                left = left.checked_sub(1).ok_or(ElfError::Broken("the number of its versions"))?;
                let version = self.record(version_at, 16)?;
                if self.number(&version[4..6]) & WEAK == 0 {
                    names.push(self.name(strings, self.number(&version[8..12]))?);
                }
                version_at = step(version_at, self.number(&version[12..16]))?;
            }
            need_at = step(need_at, self.number(&need[12..16]))?;
        }
        Ok(names)
    }

    /// `Elf_Verdef`: version (2), flags (2), index (2), count (2), hash (4), first `Elf_Verdaux` (4), next (4); the
    /// `Elf_Verdaux` begins with the name (4).
    fn version_definitions(&self, address: u64, count: Option<u64>, strings: u64) -> Result<Vec<Vec<u8>>, ElfError> {
        let mut names = Vec::new();
        let mut at = address;
        for _ in 0..count.unwrap_or(0).min(MAX_VERSIONS) {
            let definition = self.record(at, 20)?;
            let name_at = step(at, self.number(&definition[12..16]))?;
            names.push(self.name(strings, self.number(&self.record(name_at, 4)?))?);
            at = step(at, self.number(&definition[16..20]))?;
        }
        Ok(names)
    }
}

fn step(address: u64, distance: u64) -> Result<u64, ElfError> {
    address.checked_add(distance).ok_or(ElfError::Broken("a distance between versions"))
}

#[cfg(test)]
mod tests {
    use super::super::fabricate::Library;
    use super::*;

    fn parsed(bytes: &[u8]) -> Object {
        Object::parse(bytes).expect("an ELF file")
    }

    #[test]
    fn names_and_needs_are_read_for_both_classes_and_byte_orders() {
        for class in [Class::Bits32, Class::Bits64] {
            for big_endian in [false, true] {
                let library = Library {
                    class,
                    big_endian,
                    soname: Some("libcuda.so.1"),
                    needed: &["libc.so.6", "libm.so.6"],
                    glibc_needs: &["GLIBC_2.2.5", "GLIBC_2.14"],
                    definitions: &["libcuda.so.1", "CUDA_1"],
                    ..Library::default()
                };
                let object = parsed(&library.to_bytes());
                assert_eq!(object.class, class);
                assert_eq!(object.machine, 62);
                assert_eq!(object.soname.as_deref(), Some(&b"libcuda.so.1"[..]));
                assert_eq!(object.needed, [b"libc.so.6", b"libm.so.6"]);
                assert_eq!(object.version_needs, [&b"GLIBC_2.2.5"[..], b"GLIBC_2.14"]);
                assert_eq!(object.version_definitions, [&b"libcuda.so.1"[..], b"CUDA_1"]);
                assert_eq!(object.glibc_need().map(|version| version.to_string()).as_deref(), Some("2.14"));
            }
        }
    }

    #[test]
    fn a_file_without_dynamic_segment_needs_nothing() {
        let object = parsed(&Library { dynamic: false, ..Library::default() }.to_bytes());
        assert_eq!((object.soname, object.needed.len()), (None, 0));
    }

    #[test]
    fn versions_of_glibc_are_ordered_by_number() {
        let read = |name: &str| GlibcVersion::from_symbol_version(name.as_bytes());
        assert!(read("GLIBC_2.9") < read("GLIBC_2.10"));
        assert!(read("GLIBC_2.2.5") < read("GLIBC_2.3"));
        assert_eq!(read("GLIBC_ABI_DT_RELR"), read("GLIBC_2.36"));
        for name in ["GLIBC_PRIVATE", "GLIBCXX_3.4", "GLIBC_2", "GLIBC_2.x", "GLIBC_2.1.x", "GLIBC_", "2.3"] {
            assert_eq!(read(name), None, "{name}");
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\nexit 0 # and some more\n", &[0; 200]] {
            assert!(matches!(Object::parse(bytes), Err(ElfError::NotElf)), "{bytes:?}");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_or_another_file_but_no_panic() {
        let library = Library {
            soname: Some("libx.so.1"),
            needed: &["libc.so.6"],
            glibc_needs: &["GLIBC_2.4"],
            definitions: &["X_1"],
            ..Library::default()
        };
        let whole = library.to_bytes();
        for length in 0..whole.len() {
            let _ = Object::parse(&whole[..length]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = Object::parse(&bytes[..]);
            }
        }
    }

    #[test]
    fn versions_that_lead_in_a_circle_end() {
        let library = Library { needed: &["libc.so.6"], glibc_needs: &["GLIBC_2.4"], ..Library::default() };
        let mut bytes = library.to_bytes();
        // They follow the file's header and two program headers.
        let at = 64 + 2 * 56;
        // 65535 versions, each the next of itself.
        bytes[at + 2..at + 4].copy_from_slice(&[0xff, 0xff]);
        assert!(matches!(Object::parse(&bytes[..]), Err(ElfError::Broken("the number of its versions"))));
    }

    #[test]
    fn the_c_library_of_this_host_is_understood() {
        let Some(bytes) = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6"]
            .iter()
            .find_map(|path| std::fs::read(path).ok())
        else {
            eprintln!("skipped: needs a glibc host (no libc.so.6)");
            return;
        };
        let object = parsed(&bytes);
        assert_eq!(object.soname.as_deref(), Some(&b"libc.so.6"[..]));
        assert!(object.glibc_definition() >= GlibcVersion::from_symbol_version(b"GLIBC_2.17"));
    }
}
