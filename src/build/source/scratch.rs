//! `Bootstrap: scratch`: an empty root directory, to be filled by `%setup` and `%files`.

use super::Root;
use crate::tree::{Attributes, Tree};

/// An empty file system; its time is the beginning of time, so that it is never the newest file.
pub(super) fn fetch() -> Root {
    Root::of_tree(Tree::new(Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }))
}
