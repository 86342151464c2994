//! An image as the kernel is told of it: each request of the protocol to its answer. No system calls in here.
//!
//! A node's number is the place of its inode, so that nothing needs to be remembered between requests:
//!
//! ```text
//!   1                        the root directory
//!   inode reference + 2      an inode of the image (48 bits)
//!   bit 63, index            an invented node
//! ```

use super::invented::{InventedContent, InventedTree, Place};
use super::wire::{self, Attributes, Body, Listed, Range, Request};
use super::{Owner, ServeOptions};
use crate::squashfs::{
    Ahead, DirectoryEntry, Inode, InodeRef, ListingPosition, NAME_BYTES_MAX, Piece, Reader, SquashfsError,
};
use crate::tree::Kind;
use nix::errno::Errno;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const INVENTED_BIT: u64 = 1 << 63;

/// Bits of a listing's offset: from here on the invented nodes, by index; from there on the image's own entries.
/// 1 and 2 are `.` and `..`.
const OFFSET_INVENTED_BIT: u64 = 1 << 61;
const OFFSET_IMAGE_BIT: u64 = 1 << 62;

/// READs are 1 MiB at most; a listing that asks for more is given this.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Blocks of a file that is read from start to end to have ready.
const AHEAD_BLOCKS: u64 = 2;
/// Blocks to have ready behind a place that a program went to: it touches others nearby, and 4 were better than 1 or
/// 16 in starts of programs and in random reads.
const NEARBY_BLOCKS: u64 = 4;

pub(super) struct Served {
    pub reader: Reader,
    owner: Owner,
    invented: InventedTree,
    /// What was agreed on in INIT.
    flags: AtomicU32,
    /// Where the last READ of the image ended: file and offset, mixed. Tells sequential reading.
    last_read_end: AtomicU64,
    /// The fragment used last. Tells reading of small files in the order they were packed in.
    last_fragment: AtomicU32,
}

/// What to write to the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The kernel expects nothing.
    Silent,
    Error(Errno),
    /// `Work::body` is the reply.
    Body,
    /// `Work::pieces` are; so many bytes.
    Pieces(usize),
    Bytes(&'a [u8]),
}

/// What a thread needs to answer requests, used again for each.
pub(super) struct Work {
    pub body: Body,
    pub pieces: Vec<Piece>,
    entry: DirectoryEntry,
    /// What the last READ makes likely.
    pub ahead: Vec<Ahead>,
}

impl Work {
    pub fn new() -> Self {
        Self { body: Body::new(), pieces: Vec::new(), entry: DirectoryEntry::default(), ahead: Vec::new() }
    }
}

enum Found<'a> {
    Image(InodeRef, Inode),
    Invented(usize, &'a super::invented::Node),
}

/// Why there is no answer but an errno.
enum Refusal {
    Errno(Errno),
    Damaged,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<SquashfsError> for Refusal {
    fn from(_: SquashfsError) -> Self {
        Self::Damaged
    }
}

impl Served {
    /// Plants the invented nodes.
    pub fn new(reader: Reader, options: ServeOptions) -> Result<Self, SquashfsError> {
        let find = |directory, name: &[u8]| {
            let found = reader.find(&reader.inode(directory)?, name)?;
            Ok(found.map(|entry| (entry.inode, entry.kind)))
        };
        let invented = InventedTree::plant(options.invented, reader.root(), find)?;
        Ok(Self {
            reader,
            owner: options.owner,
            invented,
            flags: AtomicU32::new(0),
            last_read_end: AtomicU64::new(0),
            last_fragment: AtomicU32::new(u32::MAX),
        })
    }

    /// Answers one request.
    pub fn answer<'a>(&'a self, request: &Request<'_>, work: &mut Work) -> Answer<'a> {
        work.body.clear();
        work.pieces.clear();
        work.ahead.clear();
        match self.decide(request, work) {
            Ok(answer) => answer,
            Err(Refusal::Errno(errno)) => Answer::Error(errno),
            Err(Refusal::Damaged) => Answer::Error(Errno::EIO),
        }
    }

    fn decide<'a>(&'a self, request: &Request<'_>, work: &mut Work) -> Result<Answer<'a>, Refusal> {
        match request.opcode {
            wire::LOOKUP => self.lookup(request, work),
            wire::GETATTR => {
                let attributes = self.attributes(&self.found(request.node)?)?;
                work.body.attribute_reply(&attributes);
                Ok(Answer::Body)
            }
            wire::READ => self.read(request, work),
            wire::READDIR => self.list(request, work, false),
            wire::READDIRPLUS => self.list(request, work, true),
            wire::READLINK => self.read_link(request, work),
            wire::OPEN => self.open(wire::init::NO_OPEN_SUPPORT, wire::OPEN_KEEP_CACHE, work),
            wire::OPENDIR => {
                self.open(wire::init::NO_OPENDIR_SUPPORT, wire::OPEN_KEEP_CACHE | wire::OPEN_CACHE_DIR, work)
            }
            wire::FORGET | wire::BATCH_FORGET => Ok(Answer::Silent),
            wire::RELEASE | wire::RELEASEDIR | wire::DESTROY => Ok(Answer::Body),
            wire::INIT => {
                let agreed = work.body.init_reply(request).ok_or(Errno::EPROTO)?;
                self.flags.store(agreed, Ordering::Relaxed);
                Ok(Answer::Body)
            }
            wire::STATFS => {
                let superblock = self.reader.superblock();
                let (bytes, inodes) = (superblock.bytes_used, superblock.inode_count);
                work.body.statistics(bytes, superblock.block_bytes, inodes, NAME_BYTES_MAX as u32);
                Ok(Answer::Body)
            }
            wire::GETXATTR | wire::LISTXATTR if self.reader.has_xattrs() => self.xattr(request, work),
            // Programs ask whether a file is a terminal: "no" is this errno.
            wire::IOCTL => Err(Errno::ENOTTY.into()),
            // The kernel remembers this answer for most requests, and does without them: xattrs where an image has
            // none, FLUSH, LSEEK, STATX, INTERRUPT.
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    fn lookup(&self, request: &Request<'_>, work: &mut Work) -> Result<Answer<'static>, Refusal> {
        let name = request.name(0).ok_or(Errno::EINVAL)?;
        let place = self.place(request.node)?;
        let found = match self.invented.child(place, name) {
            Some(index) => Some(self.invented_node(index)?),
            None => match place {
                Place::Invented(_) => None,
                Place::Image(directory) => match self.reader.find(&self.reader.inode(directory)?, name)? {
                    Some(entry) => Some(Found::Image(entry.inode, self.reader.inode(entry.inode)?)),
                    None => None,
                },
            },
        };
        let reply = match &found {
            Some(found) => Some((self.node(found), self.attributes(found)?)),
            None => None,
        };
        work.body.entry(reply);
        Ok(Answer::Body)
    }

    fn open(&self, without: u32, flags: u32, work: &mut Work) -> Result<Answer<'static>, Refusal> {
        // A kernel that can do without OPEN does so from this answer on, and keeps what it cached.
        if self.flags.load(Ordering::Relaxed) & without != 0 {
            return Err(Errno::ENOSYS.into());
        }
        work.body.open_reply(flags);
        Ok(Answer::Body)
    }

    fn read<'a>(&'a self, request: &Request<'_>, work: &mut Work) -> Result<Answer<'a>, Refusal> {
        let range = Range::parse(request.body).ok_or(Errno::EINVAL)?;
        match self.found(request.node)? {
            Found::Invented(_, node) => {
                let InventedContent::File(bytes) = &node.content else { return Err(Errno::EINVAL.into()) };
                let start = usize::try_from(range.offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Answer::Bytes(&bytes[start..bytes.len().min(start.saturating_add(range.size))]))
            }
            Found::Image(reference, inode) => {
                let size = range.size.min(REPLY_BYTES_MAX);
                let length = self.reader.pieces(reference, &inode, range.offset, size, &mut work.pieces)?;
                self.look_ahead(reference, inode, range.offset, length, &mut work.ahead);
                Ok(Answer::Pieces(length))
            }
        }
    }

    /// Notes what a READ makes likely: the blocks that follow in the file (a program that touches one page of a
    /// library touches others), and at its end the fragment after its own if fragments are used in order.
    fn look_ahead(&self, reference: InodeRef, inode: Inode, offset: u64, length: usize, ahead: &mut Vec<Ahead>) {
        let block_bytes = u64::from(self.reader.superblock().block_bytes);
        let end = offset + length as u64;
        let mixed = |offset: u64| offset ^ reference.bits() << 16;
        let sequential = self.last_read_end.swap(mixed(end), Ordering::Relaxed) == mixed(offset);
        if end < inode.size_bytes {
            let next = end.div_ceil(block_bytes);
            // Who reads in order asks for the next block at once: what helps then are those after it.
            let blocks = if sequential { next + 1..next + 1 + AHEAD_BLOCKS } else { next..next + NEARBY_BLOCKS };
            ahead.extend(blocks.map(|index| Ahead::Block { reference, inode: inode.clone(), index }));
        } else if let Some(fragment) = inode.fragment() {
            let last = self.last_fragment.swap(fragment, Ordering::Relaxed);
            if fragment == last.wrapping_add(1) {
                ahead.push(Ahead::Fragment(fragment.wrapping_add(1)));
            }
        }
    }

    fn read_link<'a>(&'a self, request: &Request<'_>, work: &mut Work) -> Result<Answer<'a>, Refusal> {
        match self.found(request.node)? {
            Found::Invented(_, node) => match &node.content {
                InventedContent::Symlink(target) => Ok(Answer::Bytes(target)),
                _ => Err(Errno::EINVAL.into()),
            },
            Found::Image(_, inode) => {
                work.body.bytes(&self.reader.symlink_target(&inode)?.ok_or(Errno::EINVAL)?);
                Ok(Answer::Body)
            }
        }
    }

    fn list(&self, request: &Request<'_>, work: &mut Work, plus: bool) -> Result<Answer<'static>, Refusal> {
        let range = Range::parse(request.body).ok_or(Errno::EINVAL)?;
        let limit = range.size.min(REPLY_BYTES_MAX);
        let place = self.place(request.node)?;
        let number = self.attributes(&self.found(request.node)?)?.number;
        let mut offset = range.offset;
        // For `.` and `..` the kernel looks nothing up.
        let unknown = plus.then_some(None);
        for (at, name) in [(0, &b"."[..]), (1, b"..")] {
            if offset == at {
                let entry = Listed { name, kind: Kind::Directory, number, next: at + 1 };
                if !work.body.directory_entry(&entry, unknown, limit) {
                    return Ok(Answer::Body);
                }
                offset += 1;
            }
        }
        if offset == 2 {
            offset = OFFSET_IMAGE_BIT;
        }
        if offset & OFFSET_IMAGE_BIT != 0 {
            if let Place::Image(reference) = place
                && !self.list_image(reference, offset & !OFFSET_IMAGE_BIT, plus, limit, work)?
            {
                return Ok(Answer::Body);
            }
            offset = OFFSET_INVENTED_BIT;
        }
        let first = usize::try_from(offset & !OFFSET_INVENTED_BIT).unwrap_or(usize::MAX);
        for (at, &index) in self.invented.children(place).iter().enumerate().skip(first) {
            let found = self.invented_node(index)?;
            let attributes = self.attributes(&found)?;
            let Found::Invented(_, node) = found else { unreachable!("an invented node was asked for") };
            let next = OFFSET_INVENTED_BIT | (at as u64 + 1);
            let entry = Listed { name: &node.name, kind: attributes.kind, number: attributes.number, next };
            let plus = plus.then_some(Some((INVENTED_BIT | index as u64, attributes)));
            if !work.body.directory_entry(&entry, plus, limit) {
                break;
            }
        }
        Ok(Answer::Body)
    }

    /// Lists what the image has in a directory; false when the reply is full.
    fn list_image(
        &self,
        directory: InodeRef,
        offset: u64,
        plus: bool,
        limit: usize,
        work: &mut Work,
    ) -> Result<bool, Refusal> {
        let inode = self.reader.inode(directory)?;
        let mut listing = self.reader.directory(&inode).ok_or(Errno::ENOTDIR)?;
        listing.resume(ListingPosition::from_bits(offset))?;
        let mut inodes = self.reader.inodes();
        while listing.next(&mut work.entry)? {
            let entry = &work.entry;
            if self.invented.child(Place::Image(directory), entry.name()).is_some() {
                continue;
            }
            let next = OFFSET_IMAGE_BIT | listing.position().bits();
            let listed = Listed { name: entry.name(), kind: entry.kind, number: u64::from(entry.number), next };
            let plus = plus.then(|| {
                // An inode that can't be read is listed by its name; whoever looks it up learns what is wrong.
                let found = Found::Image(entry.inode, inodes.read(entry.inode).ok()?);
                Some((self.node(&found), self.attributes(&found).ok()?))
            });
            if !work.body.directory_entry(&listed, plus, limit) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn xattr(&self, request: &Request<'_>, work: &mut Work) -> Result<Answer<'static>, Refusal> {
        let size = request.u32_at(0).ok_or(Errno::EINVAL)? as usize;
        let value = match self.found(request.node)? {
            Found::Invented(..) if request.opcode == wire::GETXATTR => return Err(Errno::ENODATA.into()),
            Found::Invented(..) => Vec::new(),
            Found::Image(_, inode) if request.opcode == wire::GETXATTR => {
                let name = request.name(8).ok_or(Errno::EINVAL)?;
                self.reader.xattr(&inode, name)?.ok_or(Errno::ENODATA)?
            }
            Found::Image(_, inode) => {
                let mut names = self.reader.xattr_names(&inode)?;
                names.iter_mut().for_each(|name| name.push(0));
                names.concat()
            }
        };
        if size == 0 {
            work.body.u32(value.len() as u32);
            work.body.u32(0);
        } else if value.len() > size {
            return Err(Errno::ERANGE.into());
        } else {
            work.body.bytes(&value);
        }
        Ok(Answer::Body)
    }

    fn place(&self, node: u64) -> Result<Place, Refusal> {
        if node & INVENTED_BIT != 0 {
            return Ok(Place::Invented((node & !INVENTED_BIT) as usize));
        }
        match node {
            0 => Err(Errno::ESTALE.into()),
            wire::ROOT_NODE => Ok(Place::Image(self.reader.root())),
            _ => Ok(Place::Image(InodeRef::from_bits(node - 2))),
        }
    }

    fn found(&self, node: u64) -> Result<Found<'_>, Refusal> {
        match self.place(node)? {
            Place::Invented(index) => self.invented_node(index),
            Place::Image(reference) => Ok(Found::Image(reference, self.reader.inode(reference)?)),
        }
    }

    fn invented_node(&self, index: usize) -> Result<Found<'_>, Refusal> {
        let node = self.invented.node(index).ok_or(Errno::ESTALE)?;
        Ok(Found::Invented(index, node))
    }

    fn node(&self, found: &Found<'_>) -> u64 {
        match found {
            Found::Invented(index, _) => INVENTED_BIT | *index as u64,
            Found::Image(reference, _) if *reference == self.reader.root() => wire::ROOT_NODE,
            Found::Image(reference, _) => reference.bits() + 2,
        }
    }

    fn attributes(&self, found: &Found<'_>) -> Result<Attributes, Refusal> {
        let superblock = self.reader.superblock();
        let block_bytes = superblock.block_bytes;
        Ok(match found {
            Found::Image(reference, inode) => {
                let (uid, gid) = match self.owner {
                    Owner::Everyone { uid, gid } => (uid, gid),
                    Owner::Recorded => self.reader.owner(inode)?,
                };
                // A link count of 1 says of a directory that it does not count its subdirectories.
                let counted =
                    inode.kind != Kind::Directory || self.invented.children(Place::Image(*reference)).is_empty();
                Attributes {
                    number: u64::from(inode.number),
                    kind: inode.kind,
                    mode: u32::from(inode.mode),
                    size_bytes: inode.size_bytes,
                    mtime: u64::from(inode.mtime),
                    nlink: if counted { inode.nlink } else { 1 },
                    uid,
                    gid,
                    rdev: inode.rdev,
                    block_bytes,
                }
            }
            Found::Invented(index, node) => {
                let (uid, gid) = match self.owner {
                    Owner::Everyone { uid, gid } => (uid, gid),
                    Owner::Recorded => (0, 0),
                };
                Attributes {
                    // Inodes of the image are numbered from 1 to their count.
                    number: u64::from(superblock.inode_count) + 1 + *index as u64,
                    kind: node.content.kind(),
                    mode: node.mode & 0o7777,
                    size_bytes: match &node.content {
                        InventedContent::Directory => 0,
                        InventedContent::File(bytes) | InventedContent::Symlink(bytes) => bytes.len() as u64,
                    },
                    mtime: u64::from(superblock.mtime),
                    nlink: 1,
                    uid,
                    gid,
                    rdev: 0,
                    block_bytes,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::invented::Invented;
    use super::*;
    use crate::squashfs::Bytes;
    use crate::squashfs::write::{BLOCK_BYTES, Compression, PackOptions, write};
    use crate::tree::{Attributes as TreeAttributes, Body as TreeBody, Content, Tree, Xattr};
    use starter::paths::ContainerPath;
    use std::collections::BTreeMap;

    const LARGE_BYTES: usize = 300_000;

    fn owned(mode: u16) -> TreeAttributes {
        TreeAttributes { mode, uid: 7, gid: 8, mtime: 1000, xattrs: Vec::new() }
    }

    fn file(bytes: Vec<u8>) -> TreeBody {
        TreeBody::File(Content::Bytes(bytes.into()))
    }

    /// `/etc/{passwd,hosts}`, `/many/0000` to `/many/2999`, `/large`, `/link` to `etc/hosts`, `/marked` with an xattr.
    fn image() -> Vec<u8> {
        static IMAGE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        IMAGE.get_or_init(pack).clone()
    }

    fn pack() -> Vec<u8> {
        let mut tree = Tree::new(owned(0o755));
        let root = tree.root();
        let etc = tree.insert(root, b"etc", owned(0o750), TreeBody::Directory).unwrap();
        tree.insert(etc, b"passwd", owned(0o644), file(b"of the image".to_vec())).unwrap();
        tree.insert(etc, b"hosts", owned(0o644), file(b"hosts".to_vec())).unwrap();
        let many = tree.insert(root, b"many", owned(0o755), TreeBody::Directory).unwrap();
        for number in 0..3000 {
            tree.insert(many, format!("{number:04}").as_bytes(), owned(0o644), file(Vec::new())).unwrap();
        }
        let large = (0..LARGE_BYTES).map(|at| (at / 1000) as u8).collect();
        tree.insert(root, b"large", owned(0o4755), file(large)).unwrap();
        tree.insert(root, b"link", owned(0o777), TreeBody::Symlink(b"etc/hosts"[..].into())).unwrap();
        let xattrs = vec![Xattr { name: b"user.note"[..].into(), value: b"value"[..].into() }];
        tree.insert(root, b"marked", TreeAttributes { xattrs, ..owned(0o644) }, file(Vec::new())).unwrap();
        let options = PackOptions {
            compression: Compression::Gzip { level: 1 },
            block_bytes: BLOCK_BYTES,
            threads: 1.try_into().unwrap(),
            time: 2000,
        };
        let mut out = std::io::Cursor::new(Vec::new());
        write(&tree, &options, &mut out).unwrap();
        out.into_inner()
    }

    fn served(image: Vec<u8>, invented: &[(&'static str, InventedContent)]) -> Served {
        let size = image.len() as u64;
        let reader = Reader::open(Bytes(image), 0, size).unwrap();
        let invented = invented
            .iter()
            .map(|(path, content)| Invented { path: ContainerPath::fixed(path), mode: 0o600, content: content.clone() })
            .collect();
        Served::new(reader, ServeOptions { owner: Owner::Everyone { uid: 1, gid: 2 }, invented }).unwrap()
    }

    /// What the kernel would get: the body of the reply, or the errno.
    fn ask(served: &Served, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut work = Work::new();
        match served.answer(&Request { opcode, unique: 1, node, body }, &mut work) {
            Answer::Silent => Ok(Vec::new()),
            Answer::Error(errno) => Err(errno),
            Answer::Body => Ok(work.body.reply(1)[wire::REPLY_HEADER_BYTES..].to_vec()),
            Answer::Bytes(bytes) => Ok(bytes.to_vec()),
            Answer::Pieces(length) => {
                let bytes: Vec<u8> = work
                    .pieces
                    .iter()
                    .flat_map(|piece| match piece {
                        Piece::Bytes(bytes) => bytes.to_vec(),
                        Piece::Zeros(count) => vec![0; *count],
                    })
                    .collect();
                assert_eq!(bytes.len(), length);
                Ok(bytes)
            }
        }
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The node at a path, 0 if there is none.
    fn node(served: &Served, path: &str) -> u64 {
        path.split('/').filter(|name| !name.is_empty()).fold(wire::ROOT_NODE, |directory, name| {
            u64_at(&ask(served, wire::LOOKUP, directory, format!("{name}\0").as_bytes()).unwrap(), 0)
        })
    }

    fn range(offset: u64, size: u32) -> Vec<u8> {
        let mut body = vec![0; 40];
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        body[16..20].copy_from_slice(&size.to_ne_bytes());
        body
    }

    fn read(served: &Served, path: &str, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        ask(served, wire::READ, node(served, path), &range(offset, size))
    }

    /// Names and nodes of a directory, listed `size` bytes at a time.
    fn list(served: &Served, path: &str, opcode: u32, size: u32) -> BTreeMap<String, u64> {
        let (mut entries, mut offset) = (BTreeMap::new(), 0);
        let head = if opcode == wire::READDIRPLUS { 128 } else { 0 };
        loop {
            let reply = ask(served, opcode, node(served, path), &range(offset, size)).unwrap();
            assert!(reply.len() <= size as usize);
            if reply.is_empty() {
                return entries;
            }
            let mut at = 0;
            while at < reply.len() {
                let length = u32_at(&reply, at + head + 16) as usize;
                let name = String::from_utf8(reply[at + head + 24..at + head + 24 + length].to_vec()).unwrap();
                let node = if head > 0 { u64_at(&reply, at) } else { 0 };
                offset = u64_at(&reply, at + head + 8);
                assert_eq!(entries.insert(name.clone(), node), None, "{name} is listed twice");
                at += (head + 24 + length).next_multiple_of(8);
            }
        }
    }

    #[test]
    fn names_are_found_and_absence_is_an_answer() {
        let served = served(image(), &[]);
        assert_ne!(node(&served, "/many/1234"), 0);
        assert_eq!(node(&served, "/many/3000"), 0);
        assert_eq!(node(&served, "/many/12345"), 0);
        assert_eq!(node(&served, "/zzz"), 0);
        let attributes = ask(&served, wire::GETATTR, node(&served, "/large"), &[]).unwrap();
        assert_eq!(u64_at(&attributes, 16 + 8), LARGE_BYTES as u64);
        assert_eq!(u32_at(&attributes, 16 + 60), 0o104_755);
        assert_eq!((u32_at(&attributes, 16 + 68), u32_at(&attributes, 16 + 72)), (1, 2));
    }

    #[test]
    fn content_is_read_at_any_offset_and_ends_with_the_file() {
        let served = served(image(), &[]);
        let all = read(&served, "/large", 0, 1 << 20).unwrap();
        assert_eq!(all.len(), LARGE_BYTES);
        assert!(all.iter().enumerate().all(|(at, &byte)| byte == (at / 1000) as u8));
        assert_eq!(read(&served, "/large", 131_000, 2000).unwrap(), all[131_000..133_000]);
        assert_eq!(read(&served, "/large", LARGE_BYTES as u64 - 5, 4096).unwrap(), all[LARGE_BYTES - 5..]);
        assert_eq!(read(&served, "/large", u64::MAX, 4096).unwrap(), b"");
        assert_eq!(read(&served, "/etc/hosts", 0, 4096).unwrap(), b"hosts");
    }

    #[test]
    fn a_listing_is_the_same_in_pieces_of_any_size() {
        let served = served(image(), &[("/many/invented", InventedContent::Directory)]);
        let whole = list(&served, "/many", wire::READDIR, 1 << 20);
        assert_eq!(whole.len(), 3000 + 3);
        for size in [64, 1000, 4096] {
            assert_eq!(list(&served, "/many", wire::READDIR, size), whole);
        }
        let plus = list(&served, "/many", wire::READDIRPLUS, 4096);
        assert_eq!(plus.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
        assert_eq!(plus["1234"], node(&served, "/many/1234"));
        assert_eq!(plus["invented"], node(&served, "/many/invented"));
    }

    #[test]
    fn a_listing_goes_on_nowhere_else_than_where_it_stood() {
        let served = served(image(), &[]);
        let many = node(&served, "/many");
        for offset in
            (0..64).map(|bit| 1 << bit).chain([u64::MAX, OFFSET_IMAGE_BIT | 1 << 60, OFFSET_IMAGE_BIT | 13 << 25])
        {
            // Any answer will do but a panic: whoever seeks in a directory gets what it asked for.
            let _ = ask(&served, wire::READDIRPLUS, many, &range(offset, 4096));
        }
    }

    #[test]
    fn invented_nodes_are_merged_and_hide_what_the_image_has() {
        let passwd = InventedContent::File(b"generated".to_vec());
        let served = served(
            image(),
            &[
                ("/etc/passwd", passwd),
                ("/home/ada", InventedContent::Directory),
                ("/etc/link", InventedContent::Symlink(b"hosts".to_vec())),
            ],
        );
        assert_eq!(read(&served, "/etc/passwd", 0, 4096).unwrap(), b"generated");
        assert_eq!(read(&served, "/etc/passwd", 3, 2).unwrap(), b"er");
        assert_eq!(read(&served, "/etc/passwd", 100, 2).unwrap(), b"");
        assert_eq!(read(&served, "/etc/hosts", 0, 4096).unwrap(), b"hosts");
        let names: Vec<String> = list(&served, "/etc", wire::READDIRPLUS, 4096).into_keys().collect();
        assert_eq!(names, [".", "..", "hosts", "link", "passwd"]);
        assert_eq!(list(&served, "/home", wire::READDIR, 4096).len(), 3);
        assert_eq!(ask(&served, wire::READLINK, node(&served, "/etc/link"), &[]).unwrap(), b"hosts");
        assert_eq!(ask(&served, wire::READLINK, node(&served, "/link"), &[]).unwrap(), b"etc/hosts");
        assert_eq!(node(&served, "/home/ada/x"), 0);
        // A directory that got invented entries no longer knows how many subdirectories it has.
        assert_eq!(u32_at(&ask(&served, wire::GETATTR, wire::ROOT_NODE, &[]).unwrap(), 16 + 64), 1);
    }

    #[test]
    fn extended_attributes_are_read_and_sized() {
        let served = served(image(), &[("/new", InventedContent::Directory)]);
        let xattr = |opcode, path: &str, size: u32, name: &[u8]| {
            let body = [&size.to_ne_bytes()[..], &[0; 4], name, b"\0"].concat();
            ask(&served, opcode, node(&served, path), &body)
        };
        assert_eq!(xattr(wire::GETXATTR, "/marked", 100, b"user.note").unwrap(), b"value");
        assert_eq!(xattr(wire::GETXATTR, "/marked", 0, b"user.note").unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(xattr(wire::GETXATTR, "/marked", 4, b"user.note"), Err(Errno::ERANGE));
        assert_eq!(xattr(wire::GETXATTR, "/marked", 100, b"user.none"), Err(Errno::ENODATA));
        assert_eq!(xattr(wire::GETXATTR, "/new", 100, b"user.note"), Err(Errno::ENODATA));
        assert_eq!(xattr(wire::LISTXATTR, "/marked", 100, b"").unwrap(), b"user.note\0");
        assert_eq!(xattr(wire::LISTXATTR, "/large", 100, b"").unwrap(), b"");
    }

    #[test]
    fn what_can_not_be_is_refused_by_errno() {
        let served = served(image(), &[]);
        assert_eq!(ask(&served, wire::GETATTR, 0, &[]), Err(Errno::ESTALE));
        assert_eq!(ask(&served, wire::GETATTR, INVENTED_BIT | 9, &[]), Err(Errno::ESTALE));
        assert_eq!(ask(&served, wire::GETATTR, 1 << 47, &[]), Err(Errno::EIO));
        assert_eq!(ask(&served, wire::READ, node(&served, "/large"), &[0; 8]), Err(Errno::EINVAL));
        assert_eq!(ask(&served, wire::READLINK, node(&served, "/large"), &[]), Err(Errno::EINVAL));
        assert_eq!(ask(&served, wire::IOCTL, node(&served, "/large"), &[]), Err(Errno::ENOTTY));
        assert_eq!(ask(&served, 4242, wire::ROOT_NODE, &[]), Err(Errno::ENOSYS));
    }

    #[test]
    fn a_kernel_that_can_open_without_asking_is_told_to() {
        let served = served(image(), &[]);
        assert_eq!(
            ask(&served, wire::OPEN, wire::ROOT_NODE, &[]).map(|reply| u32_at(&reply, 8)),
            Ok(wire::OPEN_KEEP_CACHE)
        );
        let init: Vec<u8> = [7, 45, 0, u32::MAX].iter().flat_map(|value: &u32| value.to_ne_bytes()).collect();
        ask(&served, wire::INIT, 0, &init).unwrap();
        assert_eq!(ask(&served, wire::OPEN, wire::ROOT_NODE, &[]), Err(Errno::ENOSYS));
        assert_eq!(ask(&served, wire::OPENDIR, wire::ROOT_NODE, &[]), Err(Errno::ENOSYS));
    }

    proptest::proptest! {
        #[test]
        fn no_damage_to_an_image_makes_it_panic(at in 0..6000usize, value: u8, more in 0..6000usize, other: u8) {
            let mut bytes = image();
            let length = bytes.len();
            // The tables are at the end, the superblock at the beginning.
            bytes[length - 1 - at % length] = value;
            bytes[more % 96] ^= other & 1;
            let Ok(reader) = Reader::open(Bytes(bytes), 0, length as u64) else { return Ok(()) };
            let options = ServeOptions { owner: Owner::Recorded, invented: Vec::new() };
            let Ok(served) = Served::new(reader, options) else { return Ok(()) };
            for opcode in [wire::GETATTR, wire::READDIR, wire::READDIRPLUS, wire::LISTXATTR, wire::READLINK, wire::READ] {
                for node in [1, 2, 34, 66, 100, 2000] {
                    let _ = ask(&served, opcode, node, &range(0, 4096));
                }
            }
            for name in [&b"etc\0"[..], b"many\0", b"large\0"] {
                let _ = ask(&served, wire::LOOKUP, wire::ROOT_NODE, name);
            }
        }
    }
}
