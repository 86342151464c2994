//! The names in the layers of an image: each path once, as a number.
//!
//! A path is the number of its parent and a name of its own; names lie in one buffer. Finding one costs a look into a
//! table of hashes, so paths cost some forty bytes each however deep they are.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Longest path, in components: more than any path that a kernel takes.
pub(super) const MAX_DEPTH: usize = 2048;

/// Names one path of [`Names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameId(u32);

impl NameId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// All paths; the first is the root.
pub(super) struct Names {
    rows: Vec<Row>,
    bytes: Vec<u8>,
    /// By hash of parent and name: the row that was entered last; others with that hash hang on it.
    last: HashMap<u64, u32>,
    hasher: RandomState,
}

struct Row {
    parent: u32,
    /// The row before it with the same hash; the root, which has no name, for none.
    previous: u32,
    start: usize,
    length: u16,
}

impl Default for Names {
    fn default() -> Self {
        let root = Row { parent: 0, previous: 0, start: 0, length: 0 };
        Self { rows: vec![root], bytes: Vec::new(), last: HashMap::new(), hasher: RandomState::new() }
    }
}

impl Names {
    pub const ROOT: NameId = NameId(0);

    /// How many paths there are.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// The path of these components.
    pub fn enter(&mut self, components: &[&[u8]]) -> NameId {
        components.iter().fold(Self::ROOT, |directory, name| self.child(directory, name))
    }

    /// The path of `name` in `directory`.
    pub fn child(&mut self, directory: NameId, name: &[u8]) -> NameId {
        let hash = self.hasher.hash_one((directory.0, name));
        let previous = self.last.get(&hash).copied().unwrap_or(0);
        let mut at = previous;
        while at != 0 {
            let row = &self.rows[at as usize];
            if row.parent == directory.0 && self.name(NameId(at)) == name {
                return NameId(at);
            }
            at = row.previous;
        }
        let id = self.rows.len() as u32;
        let row = Row { parent: directory.0, previous, start: self.bytes.len(), length: name.len() as u16 };
        self.bytes.extend_from_slice(name);
        self.rows.push(row);
        self.last.insert(hash, id);
        NameId(id)
    }

    /// The directory of a path; the root's is itself.
    pub fn parent(&self, id: NameId) -> NameId {
        NameId(self.rows[id.index()].parent)
    }

    /// The last component of a path.
    pub fn name(&self, id: NameId) -> &[u8] {
        let row = &self.rows[id.index()];
        &self.bytes[row.start..row.start + usize::from(row.length)]
    }

    /// The whole path, without a `/` before it.
    pub fn path(&self, id: NameId) -> Vec<u8> {
        let mut components = Vec::new();
        let mut at = id;
        while at != Self::ROOT {
            components.push(self.name(at));
            at = self.parent(at);
        }
        components.reverse();
        components.join(&b'/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_number_however_it_is_entered() {
        let mut names = Names::default();
        let b = names.enter(&[b"a", b"b"]);
        let a = names.child(Names::ROOT, b"a");
        assert_eq!(names.child(a, b"b"), b);
        assert_ne!(names.child(b, b"b"), b);
        assert_eq!((names.parent(b), names.parent(a), names.parent(Names::ROOT)), (a, Names::ROOT, Names::ROOT));
        assert_eq!(names.path(b), b"a/b");
        assert_eq!(names.path(Names::ROOT), b"");
    }
}
