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

/// Whether `found` is the library `name` (which ends in `.so`), in any version.
pub fn is_version_of(found: &[u8], name: &[u8]) -> bool {
    found.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
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
}
