//! The files of packages, as a tree: what dpkg does when it unpacks them over each other, without its scripts.
//!
//! A directory leaves a symbolic link to a directory as it is, so `/lib` stays a link to `usr/lib` although packages hold a
//! directory of that name. Every name is followed inside the tree.

use crate::oci::tar::{Entry, EntryKind, TarError, TarReader};
use crate::tree::lookup::{self, Kind, LookupError};
use crate::tree::{Attributes, Body, Content, InodeId, Tree, TreeError};
use starter::paths::ContainerPath;
use std::fmt;
use std::io::Read;

/// Why the files of a package can't be unpacked.
#[derive(Debug)]
pub enum UnpackError<E> {
    Tar(TarError),
    /// A name, or a link, that leads nowhere good.
    Entry {
        path: Vec<u8>,
        why: EntryFault,
    },
    /// The content of a file could not be kept.
    Keep(E),
}

/// What is wrong with an entry.
#[derive(Debug)]
pub enum EntryFault {
    /// `..` in it, or a byte that no name has.
    Name,
    ParentIsNoDirectory,
    NoLinkTarget,
    Device,
    Lookup(LookupError),
    Tree(TreeError),
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("no name that a file of a package can have"),
            Self::ParentIsNoDirectory => f.write_str("one of its parents is no directory"),
            Self::NoLinkTarget => f.write_str("a hard link to what is not there"),
            Self::Device => f.write_str("a device node, which no package brings"),
            Self::Lookup(error) => error.fmt(f),
            Self::Tree(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Display> fmt::Display for UnpackError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tar(error) => error.fmt(f),
            Self::Entry { path, why } => write!(f, "cannot unpack `{}`: {why}", String::from_utf8_lossy(path)),
            Self::Keep(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for UnpackError<E> {}

/// Puts what a package's tar stream holds into `tree`; `keep` is given the size and content of each file.
pub fn unpack<E>(
    tree: &mut Tree,
    data: impl Read,
    keep: &mut dyn FnMut(u64, &mut dyn Read) -> Result<Content, E>,
) -> Result<(), UnpackError<E>> {
    let mut tar = TarReader::new(data);
    while let Some(entry) = tar.next_entry().map_err(UnpackError::Tar)? {
        let content = match entry.kind {
            EntryKind::File { .. } => {
                let size_bytes = tar.content_bytes();
                Some(keep(size_bytes, &mut tar.content()).map_err(UnpackError::Keep)?)
            }
            _ => None,
        };
        put(tree, &entry, content).map_err(|why| UnpackError::Entry { path: entry.path, why })?;
    }
    // What the compression says at its end is seen by who reads to there.
    tar.drain().map_err(UnpackError::Tar)
}

/// The path of an entry: `./usr/bin/sh`.
fn path_of(name: &[u8]) -> Result<ContainerPath, EntryFault> {
    let mut path = ContainerPath::root();
    for part in name.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")) {
        if part == b".." {
            return Err(EntryFault::Name);
        }
        path = path.join(part).map_err(|_| EntryFault::Name)?;
    }
    Ok(path)
}

fn put(tree: &mut Tree, entry: &Entry, content: Option<Content>) -> Result<(), EntryFault> {
    let path = path_of(&entry.path)?;
    let attributes =
        Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: Vec::new() };
    if path.is_root() {
        tree.set_attributes(tree.root(), attributes);
        return Ok(());
    }
    let (parent, name) = parent(tree, &path, entry.mtime)?;
    let there = tree.child(parent, &name);
    let is_directory = |tree: &Tree, id: InodeId| matches!(tree.inode(id).body, Body::Directory);
    let body = match (&entry.kind, content) {
        (EntryKind::File { .. }, Some(content)) => Body::File(content),
        (EntryKind::HardLink(target), _) => {
            let target = path_of(target)?;
            let resolved = lookup::resolve(tree, &target.parent()).map_err(EntryFault::Lookup)?;
            let target = resolved.path.join(target.name()).ok().and_then(|path| tree.find(&path));
            let target = target.filter(|&id| !is_directory(tree, id)).ok_or(EntryFault::NoLinkTarget)?;
            if there == Some(target) {
                return Ok(());
            }
            if there.is_some_and(|there| is_directory(tree, there)) {
                return Err(EntryFault::Tree(TreeError::Exists { name }));
            }
            tree.remove(parent, &name);
            return tree.link(parent, &name, target).map_err(EntryFault::Tree);
        }
        (EntryKind::Symlink(target), _) => Body::Symlink(target.as_slice().into()),
        (EntryKind::Fifo, _) => Body::Fifo,
        (EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. }, _) => return Err(EntryFault::Device),
        (EntryKind::Directory | EntryKind::File { .. }, _) => Body::Directory,
    };
    if let Some(there) = there {
        let leads_to_directory = || -> Result<bool, EntryFault> {
            let resolved = lookup::resolve(tree, &path).map_err(EntryFault::Lookup)?;
            Ok(resolved.stat.is_some_and(|stat| stat.kind == Kind::Directory))
        };
        match body {
            Body::Directory if is_directory(tree, there) => {
                tree.set_attributes(there, attributes);
                return Ok(());
            }
            Body::Directory if leads_to_directory()? => return Ok(()),
            // A directory that has become a link in a newer package is a matter for its scripts.
            Body::Symlink(_) if is_directory(tree, there) => return Ok(()),
            _ if is_directory(tree, there) => return Err(EntryFault::Tree(TreeError::Exists { name })),
            _ => drop(tree.remove(parent, &name)),
        }
    }
    tree.insert(parent, &name, attributes, body).map(drop).map_err(EntryFault::Tree)
}

/// The directory that `path` is in, made where it is missing, and the last name.
fn parent(tree: &mut Tree, path: &ContainerPath, mtime: i64) -> Result<(InodeId, Vec<u8>), EntryFault> {
    let resolved = lookup::resolve(tree, &path.parent()).map_err(EntryFault::Lookup)?;
    let mut at = tree.find(&resolved.existing).ok_or(EntryFault::ParentIsNoDirectory)?;
    for name in resolved.path.components().skip(resolved.existing.components().count()) {
        let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
        at = match tree.insert(at, name, attributes, Body::Directory) {
            Ok(made) => made,
            Err(TreeError::NotADirectory { .. }) => return Err(EntryFault::ParentIsNoDirectory),
            Err(error) => return Err(EntryFault::Tree(error)),
        };
    }
    match tree.inode(at).body {
        Body::Directory => Ok((at, path.name().to_vec())),
        _ => Err(EntryFault::ParentIsNoDirectory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: u8, link: &str, size_bytes: usize) -> Vec<u8> {
        let mut block = vec![0; 512];
        let mut set = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        set(0, name);
        set(100, if kind == b'5' { "0000755" } else { "0000644" });
        set(108, "0000007");
        set(116, "0000010");
        set(124, &format!("{size_bytes:011o}"));
        set(136, "00000000012");
        set(148, "        ");
        set(157, link);
        set(257, "ustar\x0000");
        block[156] = kind;
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    /// A stream of entries: `name/` is a directory, `name>target` a link, `name=target` a hard link.
    fn stream(entries: &[&str]) -> Vec<u8> {
        let one = |entry: &&str| {
            if let Some((name, target)) = entry.split_once('>') {
                return header(name, b'2', target, 0);
            }
            if let Some((name, target)) = entry.split_once('=') {
                return header(name, b'1', target, 0);
            }
            if entry.ends_with('/') {
                return header(entry, b'5', "", 0);
            }
            if let Some(name) = entry.strip_prefix('!') {
                return header(name, b'3', "", 0);
            }
            let mut content = entry.as_bytes().to_vec();
            content.resize(512, 0);
            [header(entry, b'0', "", entry.len()), content].concat()
        };
        entries.iter().flat_map(one).chain(vec![0; 1024]).collect()
    }

    fn unpacked(packages: &[&[&str]]) -> Result<Tree, String> {
        let mut tree = Tree::new(Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() });
        for entries in packages {
            let mut keep = |_size: u64, content: &mut dyn Read| -> std::io::Result<Content> {
                let mut bytes = Vec::new();
                content.read_to_end(&mut bytes)?;
                Ok(Content::Bytes(bytes.into()))
            };
            unpack(&mut tree, &stream(entries)[..], &mut keep).map_err(|error| error.to_string())?;
        }
        Ok(tree)
    }

    #[track_caller]
    fn check(packages: &[&[&str]], expected: &[&str]) {
        let dump = unpacked(packages).expect("a tree").dump().expect("contents");
        let names = dump.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "));
        assert_eq!(names.collect::<Vec<_>>(), expected, "{dump}");
    }

    #[track_caller]
    fn check_error(packages: &[&[&str]], expected: &str) {
        assert_eq!(unpacked(packages).err().as_deref(), Some(expected));
    }

    #[test]
    fn a_link_to_a_directory_stays_where_a_package_has_a_directory() {
        let links = ["usr/", "usr/lib/", "lib>usr/lib"];
        check(
            &[&links, &["./", "./lib/", "./lib/x", "./lib/y=./lib/x"]],
            &[
                "/ directory",
                "/lib symlink",
                "/usr directory",
                "/usr/lib directory",
                "/usr/lib/x file",
                "/usr/lib/y link",
            ],
        );
    }

    #[test]
    fn a_newer_file_takes_the_place_of_an_older_one() {
        check(&[&["a", "b>a"], &["a>b", "b"]], &["/ directory", "/a symlink", "/b file"]);
        check(&[&["d/", "d/x"], &["d>e"]], &["/ directory", "/d directory", "/d/x file"]);
    }

    #[test]
    fn owners_and_modes_are_those_of_the_package() {
        let dump = unpacked(&[&["./a"]]).expect("a tree").dump().expect("contents");
        assert!(dump.contains("/a file 0644 7:8"), "{dump}");
    }

    #[test]
    fn nothing_leads_out_of_the_tree() {
        check(&[&["up>../../..", "up/etc/x"]], &["/ directory", "/etc directory", "/etc/x file", "/up symlink"]);
        check(&[&["/abs/x"]], &["/ directory", "/abs directory", "/abs/x file"]);
        check_error(&[&["../x"]], "cannot unpack `../x`: no name that a file of a package can have");
        check_error(&[&["x", "y=../x"]], "cannot unpack `y`: no name that a file of a package can have");
    }

    #[test]
    fn what_can_not_be_unpacked_is_an_error() {
        check_error(&[&["x", "x/y"]], "cannot unpack `x/y`: one of its parents is no directory");
        check_error(&[&["y=x"]], "cannot unpack `y`: a hard link to what is not there");
        check_error(&[&["d/", "y=d"]], "cannot unpack `y`: a hard link to what is not there");
        check_error(&[&["d/", "d"]], "cannot unpack `d`: `d` is there already");
        check_error(&[&["!null"]], "cannot unpack `null`: a device node, which no package brings");
        check_error(&[&["a>b", "b>a", "a/x"]], "cannot unpack `a/x`: too many symbolic links at /a in the image");
    }
}
