//! Nodes that the image lacks: mount points, generated files. They are merged into the image's tree, and hide what
//! the image has under the same name.
//!
//! The tree is decided once, before the first request ([`InventedTree::plant`]); it needs of the image only which of
//! the directories on the way to a node exist.

use crate::squashfs::{InodeRef, SquashfsError};
use crate::tree::Kind;
use starter::paths::ContainerPath;
use std::collections::HashMap;

/// A node that the server adds to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invented {
    /// Where it appears; no directory on the way may be a symbolic link.
    pub path: ContainerPath,
    /// Permission bits.
    pub mode: u32,
    pub content: InventedContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InventedContent {
    /// An empty directory, but for other invented nodes.
    Directory,
    File(Vec<u8>),
    /// The target.
    Symlink(Vec<u8>),
}

impl InventedContent {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Directory => Kind::Directory,
            Self::File(_) => Kind::File,
            Self::Symlink(_) => Kind::Symlink,
        }
    }
}

/// A directory of the merged tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Image(InodeRef),
    /// Index of an invented node.
    Invented(usize),
}

/// An invented node in its place.
#[derive(Debug)]
pub(super) struct Node {
    pub name: Vec<u8>,
    pub mode: u32,
    pub content: InventedContent,
}

#[derive(Debug, Default)]
pub(super) struct InventedTree {
    nodes: Vec<Node>,
    children: HashMap<Place, Vec<usize>>,
}

/// Mode of directories that are made because something lies below them.
const PARENT_MODE: u32 = 0o755;

impl InventedTree {
    /// Puts every node in its place; of two with one path the later one stays. `find` looks a name up in a directory
    /// of the image.
    pub fn plant(
        invented: Vec<Invented>,
        root: InodeRef,
        mut find: impl FnMut(InodeRef, &[u8]) -> Result<Option<(InodeRef, Kind)>, SquashfsError>,
    ) -> Result<Self, SquashfsError> {
        let mut tree = Self::default();
        for Invented { path, mode, content } in invented {
            let mut place = Place::Image(root);
            let mut names = path.components().peekable();
            let mut last = Some((mode, content));
            while let Some(name) = names.next() {
                let (mode, content) = match names.peek() {
                    None => last.take().unwrap_or((PARENT_MODE, InventedContent::Directory)),
                    Some(_) => {
                        if let Some(next) = tree.directory(place, name, &mut find)? {
                            place = next;
                            continue;
                        }
                        (PARENT_MODE, InventedContent::Directory)
                    }
                };
                place = Place::Invented(tree.put(place, name, mode, content));
            }
        }
        Ok(tree)
    }

    /// The directory `name` of `place`, if it is there already.
    fn directory(
        &self,
        place: Place,
        name: &[u8],
        find: &mut impl FnMut(InodeRef, &[u8]) -> Result<Option<(InodeRef, Kind)>, SquashfsError>,
    ) -> Result<Option<Place>, SquashfsError> {
        if let Some(index) = self.child(place, name) {
            let is_directory = self.nodes[index].content == InventedContent::Directory;
            return Ok(is_directory.then_some(Place::Invented(index)));
        }
        let Place::Image(reference) = place else { return Ok(None) };
        Ok(match find(reference, name)? {
            Some((reference, Kind::Directory)) => Some(Place::Image(reference)),
            _ => None,
        })
    }

    fn put(&mut self, place: Place, name: &[u8], mode: u32, content: InventedContent) -> usize {
        if let Some(index) = self.child(place, name) {
            let node = &mut self.nodes[index];
            (node.mode, node.content) = (mode, content);
            return index;
        }
        self.nodes.push(Node { name: name.to_vec(), mode, content });
        self.children.entry(place).or_default().push(self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    pub fn node(&self, index: usize) -> Option<&Node> {
        self.nodes.get(index)
    }

    /// Indices of the invented nodes in a directory.
    pub fn children(&self, place: Place) -> &[usize] {
        // Most images have invented nodes in few directories, many have none.
        if self.nodes.is_empty() { &[] } else { self.children.get(&place).map_or(&[], Vec::as_slice) }
    }

    /// The invented node `name` of a directory.
    pub fn child(&self, place: Place, name: &[u8]) -> Option<usize> {
        self.children(place).iter().copied().find(|&index| self.nodes[index].name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image that has `/etc` (a directory), `/etc/passwd` and `/bin` (a symbolic link).
    fn find(directory: InodeRef, name: &[u8]) -> Result<Option<(InodeRef, Kind)>, SquashfsError> {
        Ok(match (directory.bits(), name) {
            (0, b"etc") => Some((InodeRef::from_bits(1), Kind::Directory)),
            (0, b"bin") => Some((InodeRef::from_bits(2), Kind::Symlink)),
            (1, b"passwd") => Some((InodeRef::from_bits(3), Kind::File)),
            _ => None,
        })
    }

    /// Plants nodes and prints the tree of invented ones.
    fn check(paths: &[(&'static str, InventedContent)], expected: &[&str]) {
        let invented = paths.iter().map(|(path, content)| Invented {
            path: ContainerPath::fixed(path),
            mode: 0o700,
            content: content.clone(),
        });
        let tree = InventedTree::plant(invented.collect(), InodeRef::from_bits(0), find).unwrap();
        let mut lines = Vec::new();
        let mut open = vec![
            (Place::Image(InodeRef::from_bits(0)), String::new()),
            (Place::Image(InodeRef::from_bits(1)), "/etc".into()),
        ];
        while let Some((place, path)) = open.pop() {
            for &index in tree.children(place) {
                let node = &tree.nodes[index];
                let path = format!("{path}/{}", String::from_utf8_lossy(&node.name));
                lines.push(format!("{path} {:?} {:o}", node.content.kind(), node.mode));
                open.push((Place::Invented(index), path));
            }
        }
        lines.sort();
        assert_eq!(lines, expected);
    }

    #[test]
    fn missing_parents_are_made_and_existing_ones_used() {
        let directory = InventedContent::Directory;
        check(
            &[("/home/ada", directory.clone()), ("/home/bob", directory.clone()), ("/etc/x", directory)],
            &["/etc/x Directory 700", "/home Directory 755", "/home/ada Directory 700", "/home/bob Directory 700"],
        );
    }

    #[test]
    fn a_file_replaces_the_images_own_and_the_later_one_stays() {
        check(
            &[("/etc/passwd", InventedContent::Directory), ("/etc/passwd", InventedContent::File(b"x".to_vec()))],
            &["/etc/passwd File 700"],
        );
    }

    #[test]
    fn a_parent_that_is_no_directory_is_replaced_by_one() {
        check(&[("/bin/a", InventedContent::Directory)], &["/bin Directory 755", "/bin/a Directory 700"]);
    }

    #[test]
    fn the_root_itself_is_not_replaced() {
        check(&[("/", InventedContent::Directory)], &[]);
    }
}
