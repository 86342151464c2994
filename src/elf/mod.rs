//! ELF files as the dynamic linker sees them, and its cache: what a library is called, what it needs, where it lies.
//!
//! Both parsers work over bytes that are handed to them, and take nothing that they read for granted: a driver's
//! library can be as broken as an image's.

#[cfg(test)]
pub mod fabricate;
pub mod ld_cache;
mod object;

pub use object::{Class, ElfError, GlibcVersion, Object, ReadAt};

/// `e_machine` of the programs of the machine that this program was built for.
pub const NATIVE_MACHINE: u16 = match () {
    () if cfg!(target_arch = "x86_64") => goblin::elf::header::EM_X86_64,
    () if cfg!(target_arch = "aarch64") => goblin::elf::header::EM_AARCH64,
    () => goblin::elf::header::EM_NONE,
};

/// Returns the machine with 32-bit addresses whose programs a machine runs as well.
pub fn compatible_machine(machine: u16) -> Option<u16> {
    use goblin::elf::header::{EM_386, EM_AARCH64, EM_ARM, EM_X86_64};
    match machine {
        EM_X86_64 => Some(EM_386),
        EM_AARCH64 => Some(EM_ARM),
        _ => None,
    }
}

/// Whether `found` is the library `name` (which ends in `.so`), in any version.
pub fn is_version_of(found: &[u8], name: &[u8]) -> bool {
    found.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
}

/// Whether a library is a part of glibc: it fits the dynamic linker beside it and no other.
pub fn is_of_glibc(name: &[u8]) -> bool {
    const PARTS: [&str; 16] = [
        "ld-linux",
        "ld64",
        "libBrokenLocale",
        "libanl",
        "libc",
        "libc_malloc_debug",
        "libdl",
        "libm",
        "libmvec",
        "libnsl",
        "libnss_compat",
        "libnss_files",
        "libpthread",
        "libresolv",
        "librt",
        "libutil",
    ];
    let stem = name.windows(3).position(|part| part == b".so").map_or(name, |at| &name[..at]);
    PARTS.iter().any(|part| part.as_bytes() == stem) || stem.starts_with(b"ld-linux")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_counts_in_any_version_and_no_longer_name() {
        for found in ["libcuda.so", "libcuda.so.1", "libcuda.so.570.86.10"] {
            assert!(is_version_of(found.as_bytes(), b"libcuda.so"), "{found}");
        }
        for found in ["libcudart.so", "libcuda.so2", "libcuda", "xlibcuda.so"] {
            assert!(!is_version_of(found.as_bytes(), b"libcuda.so"), "{found}");
        }
    }

    #[test]
    fn parts_of_glibc_are_told_from_others() {
        for name in ["libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libdl.so.2"] {
            assert!(is_of_glibc(name.as_bytes()), "{name}");
        }
        for name in ["libcuda.so.1", "libmpi.so.40", "libcrypt.so.1", "libmlx5.so.1"] {
            assert!(!is_of_glibc(name.as_bytes()), "{name}");
        }
    }
}
