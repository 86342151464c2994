//! A tree as text: one line per entry, for tests and for people who compare two trees.
//!
//! ```text
//! / directory 0755 0:0 1700000000
//! /bin/dash file 0755 0:0 1700000000 size=125640 sha256=0f3a…
//! /bin/sh symlink 0777 0:0 1700000000 target=dash
//! /bin/ash link /bin/dash
//! /dev/null char 0666 0:0 1700000000 device=1:3 user.note=hello
//! ```
//!
//! Bytes other than visible ASCII are written `\xNN`, so a line has one meaning.

use super::{Body, InodeId, Tree};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Read};

impl Tree {
    /// Writes the tree as text, contents as their SHA-256.
    pub fn dump(&self) -> io::Result<String> {
        let mut text = String::new();
        let mut first_names: HashMap<InodeId, String> = HashMap::new();
        self.line(&mut text, "/", self.root())?;
        let mut walk = self.walk();
        while let Some(id) = walk.next_entry() {
            let path = visible(walk.path());
            if self.inode(id).names > 1 {
                if let Some(first) = first_names.get(&id) {
                    text.push_str(&format!("{path} link {first}\n"));
                    continue;
                }
                first_names.insert(id, path.clone());
            }
            self.line(&mut text, &path, id)?;
        }
        Ok(text)
    }

    fn line(&self, text: &mut String, path: &str, id: InodeId) -> io::Result<()> {
        let inode = self.inode(id);
        let (kind, more) = match inode.body {
            Body::Directory => ("directory", String::new()),
            Body::File(content) => {
                let mut digest = Sha256::new();
                let mut reader = self.open(content, 0)?;
                let mut buffer = vec![0; 64 << 10];
                loop {
                    match reader.read(&mut buffer)? {
                        0 => break,
                        read => digest.update(&buffer[..read]),
                    }
                }
                let hex = digest.finalize().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
                ("file", format!(" size={} sha256={hex}", content.size_bytes()))
            }
            Body::Symlink(target) => ("symlink", format!(" target={}", visible(target))),
            Body::BlockDevice(rdev) => ("block", format!(" device={}:{}", major(*rdev), minor(*rdev))),
            Body::CharDevice(rdev) => ("char", format!(" device={}:{}", major(*rdev), minor(*rdev))),
            Body::Fifo => ("fifo", String::new()),
            Body::Socket => ("socket", String::new()),
        };
        let (mode, uid, gid, mtime) = (inode.mode, inode.uid, inode.gid, inode.mtime);
        text.push_str(&format!("{path} {kind} {mode:04o} {uid}:{gid} {mtime}{more}"));
        for xattr in inode.xattrs {
            text.push_str(&format!(" {}={}", visible(&xattr.name), visible(&xattr.value)));
        }
        text.push('\n');
        Ok(())
    }
}

/// The major part of a device number in the form of `st_rdev`.
fn major(rdev: u64) -> u32 {
    (((rdev >> 8) & 0xfff) | ((rdev >> 32) & 0xffff_f000)) as u32
}

/// The minor part of a device number in the form of `st_rdev`.
fn minor(rdev: u64) -> u32 {
    ((rdev & 0xff) | ((rdev >> 12) & 0xffff_ff00)) as u32
}

fn visible(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, &byte| {
        if byte.is_ascii_graphic() && byte != b'\\' {
            text.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Attributes, Content, Xattr};
    use super::*;

    #[test]
    fn every_kind_of_entry_has_its_line() {
        let attributes = |mode, xattrs| Attributes { mode, uid: 1, gid: 2, mtime: 3, xattrs };
        let plain = || attributes(0o644, Vec::new());
        let mut tree = Tree::new(attributes(0o755, Vec::new()));
        let root = tree.root();
        let note = Xattr { name: (*b"user.note").into(), value: (*b"a b").into() };
        tree.insert(root, b"null", attributes(0o666, vec![note]), Body::CharDevice(0x103)).unwrap();
        let empty = tree.insert(root, b"a", plain(), Body::File(Content::Bytes(Vec::new().into()))).unwrap();
        tree.link(root, b"b", empty).unwrap();
        tree.insert(root, b"l\n", plain(), Body::Symlink((*b"a").into())).unwrap();
        tree.insert(root, b"p", plain(), Body::Fifo).unwrap();
        let expected = "/ directory 0755 1:2 3\n\
            /a file 0644 1:2 3 size=0 sha256=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\
            /b link /a\n\
            /l\\x0a symlink 0644 1:2 3 target=a\n\
            /null char 0666 1:2 3 device=1:3 user.note=a\\x20b\n\
            /p fifo 0644 1:2 3\n";
        assert_eq!(tree.dump().unwrap(), expected);
    }

    #[test]
    fn device_numbers_come_apart_as_the_c_library_takes_them() {
        // makedev(0x12345, 0x6789a), computed by glibc.
        let rdev = 0x120006783459a;
        assert_eq!((major(rdev), minor(rdev)), (0x12345, 0x6789a));
    }
}
