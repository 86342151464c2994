//! Whether the kernel has an emulator for programs of another architecture: `binfmt_misc` handlers.
//!
//! A handler says in `/proc/sys/fs/binfmt_misc/NAME`:
//!
//! ```text
//! enabled
//! interpreter /usr/bin/qemu-aarch64
//! flags: OCF
//! offset 0
//! magic 7f454c460201010000000000000000000200b700
//! mask ffffffffffffff00fffffffffffffffffeffffff
//! ```
//!
//! Only one with flag F works in a container: the kernel opened its interpreter when it was registered, so the
//! interpreter need not exist in the container.

use crate::sif::Arch;
use std::path::Path;

/// Returns whether a handler of this host runs programs of `arch` in containers.
pub fn runs(arch: Arch) -> bool {
    let Some(header) = elf_header(arch) else { return false };
    let directory = Path::new("/proc/sys/fs/binfmt_misc");
    if !std::fs::read_to_string(directory.join("status")).is_ok_and(|status| status.trim() == "enabled") {
        return false;
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries
        .flatten()
        .filter(|entry| entry.file_name() != "status" && entry.file_name() != "register")
        .any(|entry| std::fs::read_to_string(entry.path()).is_ok_and(|handler| handles(&handler, &header)))
}

/// The first bytes of a program: class, byte order and machine are what handlers look at.
fn elf_header(arch: Arch) -> Option<[u8; 64]> {
    const CLASS_32: u8 = 1;
    const CLASS_64: u8 = 2;
    let (class, big_endian, machine) = match arch {
        Arch::I386 => (CLASS_32, false, 3u16),
        Arch::Amd64 => (CLASS_64, false, 62),
        Arch::Arm => (CLASS_32, false, 40),
        Arch::Arm64 => (CLASS_64, false, 183),
        Arch::Ppc64 => (CLASS_64, true, 21),
        Arch::Ppc64le => (CLASS_64, false, 21),
        Arch::Mips => (CLASS_32, true, 8),
        Arch::Mipsle => (CLASS_32, false, 8),
        Arch::Mips64 => (CLASS_64, true, 8),
        Arch::Mips64le => (CLASS_64, false, 8),
        Arch::S390x => (CLASS_64, true, 22),
        Arch::Riscv64 => (CLASS_64, false, 243),
        Arch::Loong64 => (CLASS_64, false, 258),
        Arch::Unknown | Arch::Other(_) => return None,
    };
    let half = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    const EXECUTABLE: u16 = 2;
    let mut header = [0; 64];
    header[..4].copy_from_slice(b"\x7fELF");
    header[4] = class;
    header[5] = if big_endian { 2 } else { 1 };
    header[6] = 1; // version
    header[16..18].copy_from_slice(&half(EXECUTABLE));
    header[18..20].copy_from_slice(&half(machine));
    Some(header)
}

/// Whether the handler described by `text` is enabled, has flag F, and matches a file that begins with `header`.
fn handles(text: &str, header: &[u8]) -> bool {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    if text.lines().next() != Some("enabled") || !value("flags:").is_some_and(|flags| flags.contains('F')) {
        return false;
    }
    let Some(offset) = value("offset ").and_then(|text| text.parse::<usize>().ok()) else { return false };
    let Some(magic) = value("magic ").and_then(bytes_of_hex) else { return false };
    let mask = match value("mask ") {
        Some(text) => bytes_of_hex(text),
        None => Some(vec![0xff; magic.len()]),
    };
    let (Some(mask), Some(found)) = (mask, header.get(offset..)) else { return false };
    !magic.is_empty()
        && magic.len() <= found.len()
        && mask.len() == magic.len()
        && magic.iter().zip(&mask).zip(found).all(|((magic, mask), byte)| (byte ^ magic) & mask == 0)
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: OCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[track_caller]
    fn check(handler: &str, arch: Arch, expected: bool) {
        assert_eq!(handles(handler, &elf_header(arch).unwrap()), expected, "{handler}");
    }

    #[test]
    fn a_handler_runs_its_own_architecture_only() {
        check(ARM64, Arch::Arm64, true);
        check(ARM64, Arch::Arm, false);
        check(ARM64, Arch::Riscv64, false);
    }

    #[test]
    fn a_handler_that_is_disabled_or_needs_its_interpreter_in_the_container_does_not_count() {
        check(&ARM64.replace("enabled", "disabled"), Arch::Arm64, false);
        check(&ARM64.replace("OCF", "OC"), Arch::Arm64, false);
    }

    #[test]
    fn handlers_that_cannot_be_understood_do_not_count() {
        for handler in ["", "enabled", "enabled\nflags: F\nextension .py\n", "enabled\nflags: F\noffset 99\nmagic 00\n"]
        {
            check(handler, Arch::Arm64, false);
        }
        check(&ARM64.replace("magic 7f", "magic é"), Arch::Arm64, false);
        check(&ARM64.replace("mask ffff", "mask ff"), Arch::Arm64, false);
    }

    #[test]
    fn an_architecture_that_is_not_stated_has_no_header() {
        assert_eq!(elf_header(Arch::Unknown), None);
    }
}
