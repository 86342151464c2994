//! Arbitrary bytes as a SquashFS image: walked, listed, looked up and read. Nothing may panic, hang or outgrow memory.
//!
//! Compressed metadata would keep a fuzzer from reaching anything, so an input is a superblock and five parts, and the
//! image is put together from them with metadata that is stored as it is:
//!
//! ```text
//!   | how (1) | lengths of four parts (2 each) | superblock's fields (16) | data | inodes | directories | ids, fragments, xattrs |
//! ```
//!
//! With the lowest bit of `how` clear, the rest is taken for an image without change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sifu::squashfs::{Ahead, Bytes, DirectoryEntry, ListingPosition, PathReader, Reader};
use sifu::tree::{Kind, Lookup};
use starter::paths::ContainerPath;

const SUPERBLOCK: usize = 96;
const PART_MAX: usize = 8192;
/// Entries of a tree, and pieces of a file, that are looked at: inputs are small, but what they claim is not.
const ENTRIES_MAX: usize = 300;
const READS_MAX: u64 = 20;

/// A metadata block that is stored as it is.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let bytes = &bytes[..bytes.len().min(PART_MAX)];
    let mut block = (0x8000 | bytes.len() as u16).to_le_bytes().to_vec();
    block.extend_from_slice(bytes);
    block
}

fn image(input: &[u8]) -> Option<Vec<u8>> {
    let (&how, rest) = input.split_first()?;
    if how & 1 == 0 {
        return Some(rest.to_vec());
    }
    let (lengths, rest) = rest.split_at_checked(8)?;
    let (fields, mut rest) = rest.split_at_checked(16)?;
    let mut parts = Vec::new();
    for length in lengths.chunks(2) {
        let length = usize::from(u16::from_le_bytes([length[0], length[1]])) % PART_MAX;
        let (part, more) = rest.split_at(length.min(rest.len()));
        parts.push(part);
        rest = more;
    }
    parts.push(rest);
    let mut image = vec![0; SUPERBLOCK];
    image.extend_from_slice(parts[0]);
    let table = |image: &mut Vec<u8>, part: &[u8]| {
        let at = image.len() as u64;
        image.extend_from_slice(&stored(part));
        at
    };
    let inodes = table(&mut image, parts[1]);
    let directories = table(&mut image, parts[2]);
    // One block holds ids, fragments and xattr entries; each table's list points to it.
    let shared = table(&mut image, parts[3]);
    let fragments = image.len() as u64;
    image.extend_from_slice(&shared.to_le_bytes());
    let ids = image.len() as u64;
    image.extend_from_slice(&shared.to_le_bytes());
    let values = table(&mut image, parts[4]);
    let xattrs = image.len() as u64;
    image.extend_from_slice(&values.to_le_bytes());
    image.extend_from_slice(&u64::from(fields[0]).to_le_bytes());
    image.extend_from_slice(&shared.to_le_bytes());

    let log = 12 + fields[1] % 9;
    image[..4].copy_from_slice(b"hsqs");
    image[4] = fields[2];
    image[12..16].copy_from_slice(&(1u32 << log).to_le_bytes());
    image[16] = fields[3];
    image[20] = 1 + fields[4] % 6;
    image[22] = log;
    image[26] = fields[5];
    image[28] = 4;
    let root = u64::from(fields[6]) | u64::from(fields[7] % 32) << 8;
    let used = image.len() as u64;
    let export = u64::MAX;
    for (at, value) in [
        (32, root),
        (40, used),
        (48, ids),
        (56, xattrs),
        (64, inodes),
        (72, directories),
        (80, fragments),
        (88, export),
    ] {
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    Some(image)
}

fuzz_target!(|input: &[u8]| {
    let Some(image) = image(input) else { return };
    let size = image.len() as u64;
    let Ok(reader) = Reader::open(Bytes(image), 0, size) else { return };
    let mut buffer = vec![0; 5000];
    for visit in reader.walk().take(ENTRIES_MAX) {
        let Ok(visit) = visit else { break };
        let _ = reader.owner(&visit.inode);
        let _ = reader.symlink_target(&visit.inode);
        for name in reader.xattr_names(&visit.inode).unwrap_or_default() {
            let _ = reader.xattr(&visit.inode, &name);
        }
        let end = visit.inode.size_bytes;
        for step in 0..READS_MAX {
            // The first pieces one after the other, then some far away.
            let offset = if step < 10 { step * 5000 } else { (end / READS_MAX).saturating_mul(step) };
            if let Ok(length) = reader.read(visit.reference, &visit.inode, offset, &mut buffer) {
                assert_eq!(
                    length as u64,
                    if visit.inode.kind == Kind::File { end.saturating_sub(offset).min(5000) } else { 0 }
                );
            }
            let _ =
                reader.prefetch(&Ahead::Block { reference: visit.reference, inode: visit.inode.clone(), index: step });
        }
        if let Some(mut directory) = reader.directory(&visit.inode) {
            let (mut entry, mut positions) = (DirectoryEntry::default(), Vec::new());
            while positions.len() < ENTRIES_MAX && matches!(directory.next(&mut entry), Ok(true)) {
                assert!(!entry.name().is_empty() && !entry.name().contains(&b'/'));
                let _ = reader.find(&visit.inode, entry.name());
                positions.push((directory.position(), entry.name().to_vec()));
            }
            // A listing goes on behind each entry as it would have without a break.
            for pair in positions.windows(2) {
                let mut directory = reader.directory(&visit.inode).expect("it was one");
                directory.resume(pair[0].0).expect("it stood there");
                assert!(directory.next(&mut entry).expect("as before"));
                assert_eq!(entry.name(), pair[1].1);
            }
            if let Some(mut directory) = reader.directory(&visit.inode) {
                let bits = input.iter().take(8).fold(0, |bits, &byte| bits << 8 | u64::from(byte));
                if directory.resume(ListingPosition::from_bits(bits)).is_ok() {
                    let _ = directory.next(&mut entry);
                }
            }
        }
    }
    let paths = PathReader::new(reader);
    for path in ["/", "/etc", "/etc/passwd", "/a/b"] {
        let path = ContainerPath::fixed(path);
        let _ = (paths.lstat(&path), paths.read_dir(&path), paths.read_file(&path, 1 << 20));
    }
});
