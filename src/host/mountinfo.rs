//! The kernel's mount table of this process, `/proc/self/mountinfo`.
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//! |  |  |    |     |     |          |        | |    |         |
//! id |  dev  root  point options    optional | type source    filesystem options
//!    parent                         fields   separator
//! ```
//!
//! Space, tab, newline and backslash stand as `\040`, `\011`, `\012` and `\134`. Lines that read otherwise are left out:
//! the table is used to explain and to avoid, never to grant.

use std::io::{self, Read};

use starter::paths::HostPath;

use super::facts::Mount;

/// Bytes of mount table that are read at most; some 300,000 mounts.
const TABLE_MAX: u64 = 64 << 20;

/// Reads the mount table of this process.
pub fn observe() -> io::Result<Vec<Mount>> {
    let mut text = Vec::new();
    std::fs::File::open("/proc/self/mountinfo")?.take(TABLE_MAX).read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// Reads a mount table; lines that are none are left out.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&b| b == b' ').filter(|word| !word.is_empty());
    let id = number(words.next()?)?;
    let parent = number(words.next()?)?;
    let mut device = words.next()?.split(|&b| b == b':');
    let device = (number(device.next()?)?, number(device.next()?)?);
    let root = unescape(words.next()?);
    let mount_point = HostPath::from_bytes(&unescape(words.next()?));
    let options = words.next()?.to_vec();
    let mut propagation = Vec::new();
    loop {
        match words.next()? {
            b"-" => break,
            field => propagation.push(field.to_vec()),
        }
    }
    let filesystem = words.next()?.to_vec();
    // A filesystem may have an empty source, which leaves two spaces; the options then take its place.
    let source = words.next()?;
    let (source, filesystem_options) = match words.next() {
        Some(options) => (unescape(source), options.to_vec()),
        None => (Vec::new(), source.to_vec()),
    };
    Some(Mount { id, parent, device, root, mount_point, options, filesystem, source, filesystem_options, propagation })
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// Turns `\ooo` into the byte that it stands for; a backslash before anything else stays.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Returns the mount that `path` (absolute, without symbolic links) lies on: the last one whose mount point is the
/// longest prefix by components.
pub fn covering<'a>(mounts: &'a [Mount], path: &HostPath) -> Option<&'a Mount> {
    let within = |mount: &&Mount| path.as_path().starts_with(mount.mount_point.as_path());
    // Of equally long mount points the later lies on top, and `max_by_key` returns the last.
    mounts.iter().filter(within).max_by_key(|mount| mount.mount_point.as_bytes().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_field_by_field() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:7 master:1 - ext3 /dev/root rw,errors=continue\n";
        let mounts = parse(line);
        assert_eq!(
            mounts,
            [Mount {
                id: 36,
                parent: 35,
                device: (98, 0),
                root: b"/mnt1".to_vec(),
                mount_point: HostPath::new("/mnt 2"),
                options: b"rw,noatime".to_vec(),
                filesystem: b"ext3".to_vec(),
                source: b"/dev/root".to_vec(),
                filesystem_options: b"rw,errors=continue".to_vec(),
                propagation: vec![b"shared:7".to_vec(), b"master:1".to_vec()],
            }]
        );
        assert!(mounts[0].has_option("noatime"));
        assert!(!mounts[0].has_option("no"));
    }

    #[test]
    fn an_empty_source_does_not_shift_the_options() {
        let mounts = parse(b"1 0 0:5 / /x rw - tmpfs  rw,size=4k");
        assert_eq!(mounts[0].source, b"");
        assert_eq!(mounts[0].filesystem_options, b"rw,size=4k");
    }

    #[test]
    fn lines_that_are_none_are_left_out() {
        let text = b"\n1\n1 0 05 / / rw - t s o\nx 0 0:5 / / rw - t s o\n1 0 0:5 / / rw shared:1 t s o\n9 0 0:5 / / rw - t s o";
        assert_eq!(parse(text).iter().map(|mount| mount.id).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn an_escape_needs_three_octal_digits() {
        assert_eq!(unescape(b"a\\134b\\011"), b"a\\b\t");
        assert_eq!(unescape(b"a\\1"), b"a\\1");
        assert_eq!(unescape(b"a\\777"), b"a\\777");
    }

    #[test]
    fn the_deepest_and_latest_mount_covers_a_path() {
        let mounts = parse(
            b"1 0 0:1 / / rw - a s o\n2 1 0:2 / /scratch rw - b s o\n3 2 0:3 / /scratch rw - c s o\n4 1 0:4 / /sc rw - d s o",
        );
        let check = |path: &str, id| assert_eq!(covering(&mounts, &HostPath::new(path)).map(|mount| mount.id), id);
        check("/scratch/x", Some(3));
        check("/scratch2", Some(1));
        check("/sc", Some(4));
        check("relative", None);
    }
}
