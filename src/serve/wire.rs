//! The FUSE protocol of `/dev/fuse`: what is read from the device, what is written to it. Everything is in the byte
//! order of the machine; numbers and layouts are those of `linux/fuse.h`, protocol 7.
//!
//! ```text
//!   request   | length (4) | opcode (4) | unique (8) | node (8) | uid, gid, pid (12) | extensions (4) | body ...
//!   reply     | length (4) | error (4)  | unique (8) | body ...                        error: a negative errno
//! ```

use crate::tree::Kind;

pub(super) const REQUEST_HEADER_BYTES: usize = 40;
pub(super) const REPLY_HEADER_BYTES: usize = 16;

/// What a read of the device must have room for: the kernel refuses less than 8 KiB, or than the largest write and
/// its headers (4 KiB of data, the least that can be agreed on).
pub(super) const REQUEST_BYTES_MAX: usize = 16 << 10;

/// The node of the root directory.
pub(super) const ROOT_NODE: u64 = 1;

/// Seconds for which the kernel may believe an answer: images don't change, so for as long as it can count.
const FOREVER_SECONDS: u64 = u32::MAX as u64;

pub(super) const LOOKUP: u32 = 1;
pub(super) const FORGET: u32 = 2;
pub(super) const GETATTR: u32 = 3;
pub(super) const READLINK: u32 = 5;
pub(super) const OPEN: u32 = 14;
pub(super) const READ: u32 = 15;
pub(super) const STATFS: u32 = 17;
pub(super) const RELEASE: u32 = 18;
pub(super) const GETXATTR: u32 = 22;
pub(super) const LISTXATTR: u32 = 23;
pub(super) const INIT: u32 = 26;
pub(super) const OPENDIR: u32 = 27;
pub(super) const READDIR: u32 = 28;
pub(super) const RELEASEDIR: u32 = 29;
pub(super) const DESTROY: u32 = 38;
pub(super) const IOCTL: u32 = 39;
pub(super) const BATCH_FORGET: u32 = 42;
pub(super) const READDIRPLUS: u32 = 44;

/// What kernel and server can agree on in INIT.
pub(super) mod init {
    pub const ASYNC_READ: u32 = 1;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u32 = 1 << 25;

    /// Everything that is asked for when the kernel has it.
    pub const WANTED: u32 = ASYNC_READ
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | NO_OPEN_SUPPORT
        | PARALLEL_DIROPS
        | MAX_PAGES
        | CACHE_SYMLINKS
        | NO_OPENDIR_SUPPORT
        | EXPLICIT_INVAL_DATA;
}

/// Flags of an OPEN or OPENDIR reply: what was cached before stays valid; a listing may be cached.
pub(super) const OPEN_KEEP_CACHE: u32 = 1 << 1;
pub(super) const OPEN_CACHE_DIR: u32 = 1 << 3;

/// Protocol version answered, and the oldest that has the fields used here.
const MAJOR: u32 = 7;
const MINOR: u32 = 38;
const MINOR_OLDEST: u32 = 23;

/// Requests that may wait in the background (read-ahead).
const BACKGROUND_MAX: u16 = 64;
/// Pages of one READ at most: 1 MiB.
const PAGES_MAX: u16 = 256;
const READAHEAD_BYTES: u32 = 1 << 20;

/// A request as it was read.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Takes a request apart; `None` if it is shorter than its header.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, body) = bytes.split_at_checked(REQUEST_HEADER_BYTES)?;
        Some(Self { opcode: u32_at(head, 4)?, unique: u64_at(head, 8)?, node: u64_at(head, 16)?, body })
    }

    /// The name at `at` of the body, without its NUL.
    pub fn name(&self, at: usize) -> Option<&'a [u8]> {
        let rest = self.body.get(at..)?;
        Some(&rest[..rest.iter().position(|&byte| byte == 0)?])
    }

    pub fn u32_at(&self, at: usize) -> Option<u32> {
        u32_at(self.body, at)
    }
}

/// Offset and size of a READ, READDIR or READDIRPLUS.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub offset: u64,
    pub size: usize,
}

impl Range {
    pub fn parse(body: &[u8]) -> Option<Self> {
        Some(Self { offset: u64_at(body, 8)?, size: u32_at(body, 16)? as usize })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Attributes of a node, as replies have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub number: u64,
    pub kind: Kind,
    pub mode: u32,
    pub size_bytes: u64,
    pub mtime: u64,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub block_bytes: u32,
}

/// The body of a reply, put together in a buffer that is used again. The header's room is in front.
pub(super) struct Body(Vec<u8>);

impl Body {
    pub fn new() -> Self {
        Self(Vec::with_capacity(4096))
    }

    pub fn clear(&mut self) {
        self.0.clear();
        self.0.resize(REPLY_HEADER_BYTES, 0);
    }

    /// Bytes of the body so far.
    pub fn len(&self) -> usize {
        self.0.len() - REPLY_HEADER_BYTES
    }

    /// The whole reply to `unique`.
    pub fn reply(&mut self, unique: u64) -> &[u8] {
        let length = self.0.len();
        self.0[..REPLY_HEADER_BYTES].copy_from_slice(&header(unique, 0, length - REPLY_HEADER_BYTES));
        &self.0
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_ne_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_ne_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_ne_bytes());
    }

    fn attributes(&mut self, a: &Attributes) {
        self.u64(a.number);
        self.u64(a.size_bytes);
        self.u64(a.size_bytes.div_ceil(512));
        for _ in ["atime", "mtime", "ctime"] {
            self.u64(a.mtime);
        }
        for _ in ["atime", "mtime", "ctime"] {
            self.u32(0);
        }
        self.u32(type_bits(a.kind) | a.mode);
        self.u32(a.nlink);
        self.u32(a.uid);
        self.u32(a.gid);
        self.u32(a.rdev);
        self.u32(a.block_bytes);
        self.u32(0);
    }

    /// Answers GETATTR.
    pub fn attribute_reply(&mut self, attributes: &Attributes) {
        self.u64(FOREVER_SECONDS);
        self.u64(0);
        self.attributes(attributes);
    }

    /// Answers LOOKUP: a node, or (with `None`) that there is none, which the kernel remembers as well.
    pub fn entry(&mut self, found: Option<(u64, Attributes)>) {
        self.u64(found.map_or(0, |(node, _)| node));
        self.u64(0);
        self.u64(FOREVER_SECONDS);
        self.u64(FOREVER_SECONDS);
        self.u64(0);
        match found {
            Some((_, attributes)) => self.attributes(&attributes),
            None => self.0.resize(self.0.len() + ATTRIBUTES_BYTES, 0),
        }
    }

    /// Appends an entry of a listing, unless the reply would outgrow `limit` bytes; says whether it did. `plus` is
    /// the node in READDIRPLUS, where 0 means that the kernel has to look it up.
    pub fn directory_entry(
        &mut self,
        entry: &Listed<'_>,
        plus: Option<Option<(u64, Attributes)>>,
        limit: usize,
    ) -> bool {
        let head = if plus.is_some() { ENTRY_BYTES } else { 0 } + DIRENT_HEADER_BYTES;
        let padded = (head + entry.name.len()).next_multiple_of(8);
        if self.len() + padded > limit {
            return false;
        }
        let end = self.0.len() + padded;
        if let Some(found) = plus {
            self.entry(found);
        }
        self.u64(entry.number);
        self.u64(entry.next);
        self.u32(entry.name.len() as u32);
        self.u32(type_bits(entry.kind) >> 12);
        self.bytes(entry.name);
        self.0.resize(end, 0);
        true
    }

    /// Answers STATFS.
    pub fn statistics(&mut self, bytes_used: u64, block_bytes: u32, inodes: u32, name_bytes_max: u32) {
        self.u64(bytes_used.div_ceil(u64::from(block_bytes)));
        self.u64(0);
        self.u64(0);
        self.u64(u64::from(inodes));
        self.u64(0);
        for value in [block_bytes, name_bytes_max, block_bytes, 0, 0, 0, 0, 0, 0, 0] {
            self.u32(value);
        }
    }

    /// Answers INIT with what both sides can do; the flags agreed on, or `None` if the kernel is too old.
    pub fn init_reply(&mut self, request: &Request<'_>) -> Option<u32> {
        let (major, minor, offered) = (request.u32_at(0)?, request.u32_at(4)?, request.u32_at(12)?);
        if major < MAJOR || (major == MAJOR && minor < MINOR_OLDEST) {
            return None;
        }
        // A kernel of a later major version asks again after this answer, with ours.
        let flags = offered & init::WANTED;
        self.u32(MAJOR);
        self.u32(minor.min(MINOR));
        self.u32(READAHEAD_BYTES);
        self.u32(flags);
        self.u16(BACKGROUND_MAX);
        self.u16(BACKGROUND_MAX / 4 * 3);
        // Writes never come, but the kernel wants room for a page.
        self.u32(4096);
        self.u32(1_000_000_000);
        self.u16(PAGES_MAX);
        self.u16(0);
        self.0.resize(REPLY_HEADER_BYTES + INIT_REPLY_BYTES, 0);
        Some(flags)
    }

    /// Answers OPEN or OPENDIR.
    pub fn open_reply(&mut self, flags: u32) {
        self.u64(0);
        self.u32(flags);
        self.u32(0);
    }
}

const ATTRIBUTES_BYTES: usize = 88;
const ENTRY_BYTES: usize = 128;
const DIRENT_HEADER_BYTES: usize = 24;
const INIT_REPLY_BYTES: usize = 64;

/// An entry of a listing: `next` is where the listing goes on after it.
pub(super) struct Listed<'a> {
    pub name: &'a [u8],
    pub kind: Kind,
    pub number: u64,
    pub next: u64,
}

/// The header of a reply with `body_bytes` more to come; `error` is 0 or an errno.
pub(super) fn header(unique: u64, error: i32, body_bytes: usize) -> [u8; REPLY_HEADER_BYTES] {
    let mut header = [0; REPLY_HEADER_BYTES];
    header[..4].copy_from_slice(&((REPLY_HEADER_BYTES + body_bytes) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&(-error).to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// The type bits of `st_mode`; shifted right by 12 they are `d_type`.
fn type_bits(kind: Kind) -> u32 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice => 0o020_000,
        Kind::Directory => 0o040_000,
        Kind::BlockDevice => 0o060_000,
        Kind::File => 0o100_000,
        Kind::Symlink => 0o120_000,
        Kind::Socket => 0o140_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init_request(major: u32, minor: u32, flags: u32) -> Vec<u8> {
        [major, minor, 131_072, flags].iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    fn init(major: u32, minor: u32, flags: u32) -> (Option<u32>, Vec<u8>) {
        let body = init_request(major, minor, flags);
        let request = Request { opcode: INIT, unique: 7, node: 0, body: &body };
        let mut reply = Body::new();
        reply.clear();
        let agreed = reply.init_reply(&request);
        (agreed, reply.reply(7).to_vec())
    }

    #[test]
    fn only_what_the_kernel_offers_is_agreed_on() {
        assert_eq!(init(7, 45, u32::MAX).0, Some(init::WANTED));
        assert_eq!(init(7, 27, init::ASYNC_READ | 1 << 3).0, Some(init::ASYNC_READ));
        assert_eq!(init(7, 8, u32::MAX).0, None);
        assert_eq!(init(7, 45, 0).1.len(), REPLY_HEADER_BYTES + 64);
    }

    #[test]
    fn replies_have_the_lengths_of_the_protocol() {
        let attributes = Attributes {
            number: 5,
            kind: Kind::File,
            mode: 0o644,
            size_bytes: 513,
            mtime: 1,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            block_bytes: 4096,
        };
        let mut body = Body::new();
        body.clear();
        body.entry(Some((9, attributes)));
        assert_eq!(body.len(), 128);
        body.clear();
        body.entry(None);
        assert_eq!(body.len(), 128);
        body.clear();
        body.attribute_reply(&attributes);
        assert_eq!(body.len(), 104);
        body.clear();
        body.statistics(1, 4096, 1, 255);
        assert_eq!(body.len(), 80);
    }

    #[test]
    fn a_listing_never_outgrows_its_limit() {
        let mut body = Body::new();
        body.clear();
        let entry = Listed { name: b"abcdefghi", kind: Kind::File, number: 1, next: 1 };
        assert!(body.directory_entry(&entry, None, 80));
        assert!(body.directory_entry(&entry, None, 80));
        assert!(!body.directory_entry(&entry, None, 80));
        assert_eq!(body.len(), 80);
    }

    #[test]
    fn short_requests_are_no_requests() {
        assert!(Request::parse(&[0; 39]).is_none());
        let request = Request::parse(&[0; 44]).unwrap();
        assert_eq!(request.name(0), Some(&b""[..]));
        assert_eq!(request.u32_at(1), None);
        assert!(Range::parse(request.body).is_none());
    }
}
