//! Which machine a root file system is for: what its `/bin/sh` was compiled for, else its first program, else this one.
//!
//! ```text
//! ELF:  0        4        5                   16       18            20
//!       | \x7fELF | class | byte order | ...  | type   | machine     |
//! ```

use crate::sif::Arch;
use crate::tree::{Body, InodeId, Tree, lookup};
use starter::paths::ContainerPath;
use std::io::Read;

/// The architecture of the programs in `tree`.
pub(super) fn of(tree: &Tree) -> Arch {
    let shell = lookup::resolve(tree, &ContainerPath::fixed("/bin/sh")).ok();
    let shell = shell.and_then(|resolved| tree.find(&resolved.path)).and_then(|id| of_file(tree, id));
    shell.or_else(|| of_first_program(tree)).unwrap_or_else(Arch::host)
}

fn of_first_program(tree: &Tree) -> Option<Arch> {
    let mut walk = tree.walk();
    while let Some(id) = walk.next_entry() {
        if tree.inode(id).mode & 0o111 != 0
            && let Some(arch) = of_file(tree, id)
        {
            return Some(arch);
        }
    }
    None
}

fn of_file(tree: &Tree, id: InodeId) -> Option<Arch> {
    let Body::File(content) = tree.inode(id).body else { return None };
    let mut head = [0; 20];
    tree.open(content, 0).ok()?.read_exact(&mut head).ok()?;
    of_elf(&head)
}

/// The architecture that an ELF header states; `None` for what is no ELF file, or for a machine that SIF has no code for.
fn of_elf(head: &[u8; 20]) -> Option<Arch> {
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let is_64_bit = head[4] == 2;
    let is_little = head[5] == 1;
    let machine = [head[18], head[19]];
    let machine = if is_little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    // Numbers from elf(5) and <elf.h>.
    let arch = match (machine, is_64_bit, is_little) {
        (3, ..) => Arch::I386,
        (8, false, true) => Arch::Mipsle,
        (8, false, false) => Arch::Mips,
        (8, true, true) => Arch::Mips64le,
        (8, true, false) => Arch::Mips64,
        (21, true, true) => Arch::Ppc64le,
        (21, true, false) => Arch::Ppc64,
        (22, true, _) => Arch::S390x,
        (40, _, true) => Arch::Arm,
        (62, ..) => Arch::Amd64,
        (183, ..) => Arch::Arm64,
        (243, true, _) => Arch::Riscv64,
        (258, true, _) => Arch::Loong64,
        _ => return None,
    };
    Some(arch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Attributes, Content};

    fn elf(class: u8, order: u8, machine: [u8; 2]) -> Vec<u8> {
        [b"\x7fELF".as_slice(), &[class, order], &[0; 12], &machine].concat()
    }

    fn check(head: Vec<u8>, expected: Option<Arch>) {
        assert_eq!(of_elf(&head.try_into().unwrap()), expected);
    }

    #[test]
    fn machine_class_and_byte_order_tell_the_architecture() {
        check(elf(2, 1, [62, 0]), Some(Arch::Amd64));
        check(elf(1, 1, [3, 0]), Some(Arch::I386));
        check(elf(2, 1, [183, 0]), Some(Arch::Arm64));
        check(elf(2, 1, [21, 0]), Some(Arch::Ppc64le));
        check(elf(2, 2, [0, 21]), Some(Arch::Ppc64));
        check(elf(2, 2, [0, 22]), Some(Arch::S390x));
        check(elf(2, 1, [2, 1]), Some(Arch::Loong64));
        check(elf(1, 2, [0, 8]), Some(Arch::Mips));
    }

    #[test]
    fn other_machines_and_other_files_tell_nothing() {
        check(elf(2, 1, [9, 9]), None);
        check(b"#!/bin/sh\necho hello".to_vec(), None);
    }

    fn attributes(mode: u16) -> Attributes {
        Attributes { mode, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }
    }

    #[test]
    fn the_shell_counts_through_its_links_before_any_other_program() {
        let mut tree = Tree::new(attributes(0o755));
        let file = |bytes: Vec<u8>| Body::File(Content::Bytes(bytes.into()));
        let first = file(elf(2, 1, [62, 0]));
        tree.insert(tree.root(), b"a", attributes(0o755), first).unwrap();
        assert_eq!(of(&tree), Arch::Amd64);
        let usr = tree.insert(tree.root(), b"usr", attributes(0o755), Body::Directory).unwrap();
        let dash = file(elf(2, 1, [183, 0]));
        tree.insert(usr, b"dash", attributes(0o755), dash).unwrap();
        tree.insert(usr, b"sh", attributes(0o777), Body::Symlink((*b"dash").into())).unwrap();
        tree.insert(tree.root(), b"bin", attributes(0o777), Body::Symlink((*b"/usr").into())).unwrap();
        assert_eq!(of(&tree), Arch::Arm64);
    }

    #[test]
    fn a_tree_without_programs_is_for_this_machine() {
        let mut tree = Tree::new(attributes(0o755));
        let data = Body::File(Content::Bytes(elf(2, 1, [183, 0]).into()));
        tree.insert(tree.root(), b"not executable", attributes(0o644), data).unwrap();
        assert_eq!(of(&tree), Arch::host());
    }
}
