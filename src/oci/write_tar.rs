//! A tree as the tar stream of a layer: what unpacks to the same files anywhere.
//!
//! ```text
//! directories before what they hold, siblings in the order of their names; a second name is a hard link to the first
//! | pax records, where a header has no room for something | header | content |
//! ```
//!
//! The stream follows from the tree alone, so one image has one layer with one digest.

use crate::tree::{Body, Content, InodeId, InodeRef, Tree};
use std::collections::HashMap;
use std::io::{self, Read, Write};

const BLOCK_BYTES: usize = 512;
/// Longest name and link target that a header has room for.
const NAME_BYTES: usize = 100;
/// What a size or time of eleven octal digits can state.
const MAX_ELEVEN_DIGITS: u64 = 0o77_777_777_777;
/// What an owner of seven octal digits can state.
const MAX_SEVEN_DIGITS: u64 = 0o7_777_777;

/// What of a tree a layer has no words for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Sockets: programs make them where they run.
    pub sockets: u64,
    /// Names that begin with `.wh.`: in a layer those remove files.
    pub whiteout_names: u64,
}

/// Writes a tree as a tar stream.
///
/// # Errors
/// A content can't be read, or `out` can't be written.
pub fn write_tar(tree: &Tree, out: &mut dyn Write) -> io::Result<LeftOut> {
    let mut writer = Writer { tree, out, first_names: HashMap::new(), left_out: LeftOut::default() };
    writer.entry(tree.root(), b"./")?;
    let mut walk = tree.walk();
    let mut path = Vec::new();
    while let Some(id) = walk.next_entry() {
        // A layer's names don't begin at the root.
        path.clear();
        path.extend_from_slice(&walk.path()[1..]);
        if path.split(|&byte| byte == b'/').any(|name| name.starts_with(b".wh.")) {
            writer.left_out.whiteout_names += 1;
            continue;
        }
        if matches!(tree.inode(id).body, Body::Directory) {
            path.push(b'/');
        }
        writer.entry(id, &path)?;
    }
    writer.out.write_all(&[0; 2 * BLOCK_BYTES])?;
    Ok(writer.left_out)
}

/// Bytes of all contents that [`write_tar`] reads: what progress is measured by.
pub fn content_bytes(tree: &Tree) -> u64 {
    let mut walk = tree.walk();
    let mut total = 0_u64;
    while let Some(id) = walk.next_entry() {
        if let Body::File(content) = tree.inode(id).body {
            total = total.saturating_add(content.size_bytes());
        }
    }
    total
}

struct Writer<'a> {
    tree: &'a Tree,
    out: &'a mut dyn Write,
    /// Where inodes of several names were written.
    first_names: HashMap<InodeId, Vec<u8>>,
    left_out: LeftOut,
}

impl Writer<'_> {
    fn entry(&mut self, id: InodeId, path: &[u8]) -> io::Result<()> {
        let inode = self.tree.inode(id);
        let is_directory = matches!(inode.body, Body::Directory);
        if !is_directory && inode.names > 1 {
            if let Some(first) = self.first_names.get(&id) {
                let first = first.clone();
                return self.header(&inode, path, b'1', &first, 0, (0, 0));
            }
            self.first_names.insert(id, path.to_vec());
        }
        match inode.body {
            Body::Directory => self.header(&inode, path, b'5', b"", 0, (0, 0)),
            Body::Symlink(target) => self.header(&inode, path, b'2', target, 0, (0, 0)),
            Body::CharDevice(number) => self.header(&inode, path, b'3', b"", 0, parts(*number)),
            Body::BlockDevice(number) => self.header(&inode, path, b'4', b"", 0, parts(*number)),
            Body::Fifo => self.header(&inode, path, b'6', b"", 0, (0, 0)),
            Body::Socket => {
                self.left_out.sockets += 1;
                Ok(())
            }
            Body::File(content) => {
                self.header(&inode, path, b'0', b"", content.size_bytes(), (0, 0))?;
                self.content(content)
            }
        }
    }

    fn content(&mut self, content: &Content) -> io::Result<()> {
        let size_bytes = content.size_bytes();
        let copied_bytes = match content {
            Content::Bytes(bytes) => self.out.write_all(bytes).map(|()| bytes.len() as u64)?,
            content => {
                let opened = self.tree.open(content, 0)?;
                // By pieces as large as the image's blocks are at most: `io::copy` takes far smaller ones.
                io::copy(&mut io::BufReader::with_capacity(1 << 20, opened.take(size_bytes)), self.out)?
            }
        };
        if copied_bytes != size_bytes {
            let why = format!("{} ends early", self.tree.content_name(content));
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        self.pad(size_bytes)
    }

    fn header(
        &mut self,
        inode: &InodeRef,
        path: &[u8],
        kind: u8,
        link: &[u8],
        size_bytes: u64,
        device: (u32, u32),
    ) -> io::Result<()> {
        let mut records = Vec::new();
        if path.len() > NAME_BYTES {
            record(&mut records, b"path", path);
        }
        if link.len() > NAME_BYTES {
            record(&mut records, b"linkpath", link);
        }
        let number = |records: &mut Vec<u8>, key: &[u8], value: i64, limit: u64| match u64::try_from(value) {
            Ok(value) if value <= limit => value,
            _ => {
                record(records, key, value.to_string().as_bytes());
                0
            }
        };
        let uid = number(&mut records, b"uid", inode.uid.into(), MAX_SEVEN_DIGITS);
        let gid = number(&mut records, b"gid", inode.gid.into(), MAX_SEVEN_DIGITS);
        let mtime = number(&mut records, b"mtime", inode.mtime, MAX_ELEVEN_DIGITS);
        let size = number(&mut records, b"size", i64::try_from(size_bytes).unwrap_or(i64::MAX), MAX_ELEVEN_DIGITS);
        // A second name has the attributes of the first.
        for xattr in inode.xattrs.iter().filter(|_| kind != b'1') {
            record(&mut records, &[b"SCHILY.xattr.".as_slice(), &xattr.name].concat(), &xattr.value);
        }
        if !records.is_empty() {
            let size = records.len() as u64;
            let fields =
                Fields { name: b"pax", mode: 0o644, uid: 0, gid: 0, size, mtime: 0, link: b"", device: (0, 0) };
            self.out.write_all(&fields.block(b'x'))?;
            self.out.write_all(&records)?;
            self.pad(size)?;
        }
        let mode = u64::from(inode.mode);
        self.out.write_all(&Fields { name: path, mode, uid, gid, size, mtime, link, device }.block(kind))
    }

    fn pad(&mut self, size_bytes: u64) -> io::Result<()> {
        let over = (size_bytes % BLOCK_BYTES as u64) as usize;
        if over == 0 { Ok(()) } else { self.out.write_all(&[0; BLOCK_BYTES][over..]) }
    }
}

/// A device number as `st_rdev` packs it, taken apart.
fn parts(number: u64) -> (u32, u32) {
    let major = (number >> 8) & 0xfff;
    let minor = (number & 0xff) | ((number >> 12) & 0xfff00);
    (major as u32, minor as u32)
}

/// Adds `LENGTH KEY=VALUE\n`, whose length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest > length {
        length += 1;
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

struct Fields<'a> {
    name: &'a [u8],
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    link: &'a [u8],
    device: (u32, u32),
}

impl Fields<'_> {
    fn block(&self, kind: u8) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(NAME_BYTES)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.uid).as_bytes());
        put(116, format!("{:07o}", self.gid).as_bytes());
        put(124, format!("{:011o}", self.size).as_bytes());
        put(136, format!("{:011o}", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, &self.link[..self.link.len().min(NAME_BYTES)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::layers::{Keep, Merge};
    use crate::tree::{Attributes, Xattr};
    use std::convert::Infallible;

    struct InMemory;

    impl Keep for InMemory {
        type Error = Infallible;

        fn keep(&mut self, _path: &[u8], _size: u64, content: &mut dyn Read) -> Result<Content, Infallible> {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).unwrap();
            Ok(Content::Bytes(bytes.into()))
        }
    }

    fn attributes(mode: u16) -> Attributes {
        Attributes { mode, uid: 0, gid: 0, mtime: 1_600_000_000, xattrs: Vec::new() }
    }

    #[test]
    fn what_is_written_is_read_as_the_same_tree() {
        let mut tree = Tree::new(attributes(0o755));
        let root = tree.root();
        let file = |text: &str| Body::File(Content::Bytes(text.as_bytes().into()));
        let far = Attributes { uid: 70_000, gid: u32::MAX - 1, mtime: -5, mode: 0o4755, ..attributes(0) };
        let directory = tree.insert(root, &[b'd'; 255], attributes(0o1777), Body::Directory).unwrap();
        let first = tree.insert(directory, &[b'f'; 90], far, file("content")).unwrap();
        tree.link(root, b"second", first).unwrap();
        let xattrs = vec![Xattr { name: (*b"user.x").into(), value: (*b"a\0=\n").into() }];
        tree.insert(root, b"empty", Attributes { xattrs, ..attributes(0o600) }, file("")).unwrap();
        tree.insert(root, b"block", attributes(0o640), Body::BlockDevice(0x0010_08ff)).unwrap();
        tree.insert(root, b"char", attributes(0o640), Body::CharDevice(0x0501)).unwrap();
        tree.insert(root, b"fifo", attributes(0o640), Body::Fifo).unwrap();
        tree.insert(root, b"near", attributes(0o777), Body::Symlink((*b"to").into())).unwrap();
        tree.insert(root, b"wide", attributes(0o777), Body::Symlink(vec![b't'; 300].into())).unwrap();
        let mut stream = Vec::new();
        assert_eq!(write_tar(&tree, &mut stream).unwrap(), LeftOut::default());
        let mut merge = Merge::new(1);
        merge.read_layer(0, stream.as_slice(), &mut InMemory).unwrap();
        assert_eq!(merge.finish().unwrap().tree.dump().unwrap(), tree.dump().unwrap());
    }

    #[test]
    fn what_a_layer_would_misread_is_left_out() {
        let mut tree = Tree::new(attributes(0o755));
        let root = tree.root();
        tree.insert(root, b"socket", attributes(0o600), Body::Socket).unwrap();
        let hidden = tree.insert(root, b".wh.etc", attributes(0o755), Body::Directory).unwrap();
        tree.insert(hidden, b"a", attributes(0o755), Body::Fifo).unwrap();
        let mut stream = Vec::new();
        let left_out = write_tar(&tree, &mut stream).unwrap();
        assert_eq!(left_out, LeftOut { sockets: 1, whiteout_names: 2 });
        assert_eq!(stream.len(), 3 * BLOCK_BYTES);
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 80..110 {
            let mut records = Vec::new();
            record(&mut records, b"path", &vec![b'x'; length]);
            let stated: usize = String::from_utf8_lossy(&records).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(stated, records.len());
        }
    }
}
