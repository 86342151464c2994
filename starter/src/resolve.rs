//! Paths inside a root: symbolic links, whoever made them, are followed there and never out of it.
//!
//! The kernel does it (`openat2(2)`, Linux 5.6). Where it does not, or a filter of system calls does not know the call,
//! the path is walked here, one component after the other: each is opened without following it, links are read and their
//! components walked in turn, and `..` goes back to the directory that the walk came from, at the root nowhere. So a
//! directory that somebody moves meanwhile leads out of the root as little as a link does.

use crate::paths::ContainerPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// As many links as the kernel follows for one path.
const LINKS_MAX: usize = 40;
/// Components that links can add up to; each link has less than a page of them.
const COMPONENTS_MAX: usize = 8192;

/// Opens what `path` names inside `root`, as a place (`O_PATH`).
pub fn open_inside(root: BorrowedFd<'_>, path: &ContainerPath) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    let mut opened = openat2(root, path.relative(), how);
    // EAGAIN: something was renamed meanwhile, and the kernel could not tell whether the path had left the root.
    for _ in 0..16 {
        if !matches!(opened, Err(Errno::EAGAIN)) {
            break;
        }
        opened = openat2(root, path.relative(), how);
    }
    match opened {
        Err(Errno::ENOSYS | Errno::EPERM) => walk_inside(root, path),
        opened => opened,
    }
}

/// As [`open_inside`], for every kernel.
pub fn walk_inside(root: BorrowedFd<'_>, path: &ContainerPath) -> nix::Result<OwnedFd> {
    let place = |directory: BorrowedFd<'_>, name: &OsStr| {
        openat(directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
    };
    // The directories below the root that the walk is in.
    let mut inside: Vec<OwnedFd> = Vec::new();
    // What is left to walk, the next component last.
    let mut left: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
    let mut links = 0;
    while let Some(name) = left.pop() {
        match name.as_slice() {
            b"." => continue,
            b".." => {
                inside.pop();
                continue;
            }
            _ => {}
        }
        let opened = place(inside.last().map_or(root, AsFd::as_fd), OsStr::from_bytes(&name))?;
        match SFlag::from_bits_truncate(fstat(&opened)?.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => inside.push(opened),
            SFlag::S_IFLNK => {
                links += 1;
                let target = readlinkat(&opened, "")?.into_vec();
                if links > LINKS_MAX || left.len() > COMPONENTS_MAX {
                    return Err(Errno::ELOOP);
                }
                if target.is_empty() {
                    return Err(Errno::ENOENT);
                }
                if target.first() == Some(&b'/') {
                    inside.clear();
                }
                // A slash at the end asks for a directory, as a dot behind it does.
                let ends_with_slash = (target.last() == Some(&b'/')).then(|| b".".to_vec());
                left.extend(ends_with_slash);
                left.extend(target.rsplit(|&b| b == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec));
            }
            _ if left.is_empty() => return Ok(opened),
            _ => return Err(Errno::ENOTDIR),
        }
    }
    match inside.pop() {
        Some(directory) => Ok(directory),
        None => place(root, OsStr::new(".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::{Path, PathBuf};

    /// A directory with a root in it, and a secret beside the root; removed at the end.
    struct Tree(PathBuf);

    impl Tree {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sifu-resolve-{}-{test}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("root/a/b")).unwrap();
            fs::write(path.join("root/a/file"), "").unwrap();
            fs::create_dir(path.join("secret")).unwrap();
            Self(path)
        }

        fn link(&self, at: &str, target: impl AsRef<Path>) -> &Self {
            symlink(target, self.0.join("root").join(at)).unwrap();
            self
        }

        /// Both ways come to the file `expected` of the root, or to the same errno.
        #[track_caller]
        fn check(&self, path: &'static str, expected: Result<&str, Errno>) {
            let root = fs::File::open(self.0.join("root")).unwrap();
            let path = ContainerPath::fixed(path);
            let number = |opened: nix::Result<OwnedFd>| opened.map(|opened| fstat(&opened).unwrap().st_ino);
            let expected = expected.map(|name| self.0.join("root").join(name).symlink_metadata().unwrap().ino());
            assert_eq!(number(walk_inside(root.as_fd(), &path)), expected, "{path}, walked");
            assert_eq!(number(open_inside(root.as_fd(), &path)), expected, "{path}, opened");
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn plain_paths_lead_where_they_say() {
        let tree = Tree::new("plain");
        tree.check("/", Ok(""));
        tree.check("/a/b", Ok("a/b"));
        tree.check("/a/file", Ok("a/file"));
        tree.check("/a/none", Err(Errno::ENOENT));
        tree.check("/a/file/below", Err(Errno::ENOTDIR));
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let tree = Tree::new("links");
        tree.link("absolute", "/a/b").link("relative", "a/../a/./b").link("a/b/up", "../file").link("root", "/");
        tree.link("slash", "a/b/").link("no-directory", "a/file/");
        tree.check("/absolute", Ok("a/b"));
        tree.check("/relative", Ok("a/b"));
        tree.check("/relative/up", Ok("a/file"));
        tree.check("/root/root/a", Ok("a"));
        tree.check("/slash", Ok("a/b"));
        tree.check("/no-directory", Err(Errno::ENOTDIR));
    }

    #[test]
    fn no_link_leads_out() {
        let tree = Tree::new("out");
        tree.link("up", "../../../../../../../../..").link("a/b/up", "../../../secret");
        tree.link("absolute", tree.0.join("secret")).link("dots", "/../../..").link("mixed", "a/../../secret");
        tree.check("/up", Ok(""));
        tree.check("/up/a", Ok("a"));
        tree.check("/dots/a/b", Ok("a/b"));
        tree.check("/a/b/up", Err(Errno::ENOENT));
        tree.check("/absolute", Err(Errno::ENOENT));
        tree.check("/mixed", Err(Errno::ENOENT));
    }

    #[test]
    fn links_without_end_are_given_up() {
        let tree = Tree::new("loop");
        tree.link("self", "self").link("one", "/two").link("two", "one").link("grows", "grows/x/x/x/x");
        tree.check("/self", Err(Errno::ELOOP));
        tree.check("/one", Err(Errno::ELOOP));
        tree.check("/grows", Err(Errno::ELOOP));
    }
}
