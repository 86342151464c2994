//! Random layers against a model that unpacks each layer over the one below, as a person would, with paths and a map.

use super::{Layer, listing, merge};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Something that a layer can hold; names are from a small alphabet, so that layers meet.
#[derive(Clone, Debug)]
enum Step {
    File(String, u8),
    Directory(String, u8),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["", "/", "../"]), path()).prop_map(|(start, path)| format!("{start}{path}"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, content)| Step::File(path, content)),
        3 => (path(), 0_u8..4).prop_map(|(path, mode)| Step::Directory(path, mode)),
        2 => (path(), target()).prop_map(|(path, target)| Step::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| Step::HardLink(path, target)),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
    ]
}

/// A file system by paths. Hard links share a number.
#[derive(Clone, Debug, Default)]
struct Model {
    nodes: BTreeMap<Vec<String>, Node>,
    next_inode: u32,
}

#[derive(Clone, Debug)]
struct Node {
    inode: u32,
    mode: u16,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Directory,
    File(String),
    Symlink(String),
}

fn split(path: &str) -> Vec<String> {
    path.split('/').map(str::to_owned).collect()
}

impl Model {
    fn node(&mut self, mode: u16, what: What) -> Node {
        self.next_inode += 1;
        Node { inode: self.next_inode, mode, what }
    }

    /// The directory where a path leads, through links; made if `make`. `Err` for what can't be a directory.
    fn directory(&mut self, path: &[String], make: bool) -> Result<Option<Vec<String>>, ()> {
        let mut at = Vec::new();
        let mut left: Vec<String> = path.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = left.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let mut next = at.clone();
            next.push(name);
            match self.nodes.get(&next).map(|node| node.what.clone()) {
                None if make => {
                    let node = self.node(0o755, What::Directory);
                    self.nodes.insert(next.clone(), node);
                    at = next;
                }
                None => return Ok(None),
                Some(What::Directory) => at = next,
                Some(What::Symlink(target)) => {
                    links += 1;
                    if links > 255 {
                        return Err(());
                    }
                    if target.starts_with('/') {
                        at.clear();
                    }
                    left.extend(target.split('/').rev().map(str::to_owned));
                }
                Some(What::File(_)) if make => return Err(()),
                Some(What::File(_)) => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn place(&mut self, path: &str, make: bool) -> Result<Option<Vec<String>>, ()> {
        let mut parents = split(path);
        let name = parents.pop().unwrap_or_default();
        Ok(self.directory(&parents, make)?.map(|mut directory| {
            directory.push(name);
            directory
        }))
    }

    fn remove(&mut self, path: &[String]) {
        self.nodes.retain(|known, _| !known.starts_with(path));
    }

    fn apply(&mut self, steps: &[Step]) -> Result<(), ()> {
        for step in steps {
            match step {
                Step::Whiteout(path) => {
                    if let Some(place) = self.place(path, false)? {
                        self.remove(&place);
                    }
                }
                Step::Opaque(path) => {
                    if let Some(place) = self.directory(&split(path), false)? {
                        self.nodes.retain(|known, _| !known.starts_with(&place) || known.len() == place.len());
                    }
                }
                _ => {}
            }
        }
        for step in steps {
            match step {
                Step::File(path, content) => {
                    let place = self.place(path, true)?.ok_or(())?;
                    self.remove(&place);
                    let node = self.node(0o644, What::File(content.to_string()));
                    self.nodes.insert(place, node);
                }
                Step::Directory(path, mode) => {
                    let place = self.place(path, true)?.ok_or(())?;
                    let mode = 0o700 + u16::from(*mode);
                    match self.nodes.get_mut(&place) {
                        Some(node) if node.what == What::Directory => node.mode = mode,
                        _ => {
                            self.remove(&place);
                            let node = self.node(mode, What::Directory);
                            self.nodes.insert(place, node);
                        }
                    }
                }
                Step::Symlink(path, target) => {
                    let place = self.place(path, true)?.ok_or(())?;
                    self.remove(&place);
                    let node = self.node(0o777, What::Symlink(target.clone()));
                    self.nodes.insert(place, node);
                }
                Step::HardLink(path, target) => {
                    let from = self.place(target, false)?.ok_or(())?;
                    let node = self.nodes.get(&from).cloned().ok_or(())?;
                    if node.what == What::Directory {
                        return Err(());
                    }
                    let place = self.place(path, true)?.ok_or(())?;
                    if self.nodes.get(&place).is_some_and(|known| known.inode == node.inode) {
                        continue;
                    }
                    self.remove(&place);
                    if !self.nodes.values().any(|known| known.inode == node.inode) {
                        return Err(());
                    }
                    self.nodes.insert(place, node);
                }
                Step::Whiteout(_) | Step::Opaque(_) => {}
            }
        }
        Ok(())
    }

    /// As `listing` has it.
    fn listing(&self) -> String {
        let mut first = BTreeMap::new();
        let mut lines = String::new();
        for (path, node) in &self.nodes {
            let path = format!("/{}", path.join("/"));
            let what = match &node.what {
                What::Directory => "/".to_owned(),
                _ if first.contains_key(&node.inode) => format!("== {}", first[&node.inode]),
                What::File(content) => format!("`{content}`"),
                What::Symlink(target) => format!("-> {target}"),
            };
            first.entry(node.inode).or_insert(path.clone());
            lines += &format!("{path} {:o} {what}\n", node.mode);
        }
        lines
    }
}

fn stream(steps: &[Step]) -> Vec<u8> {
    let hide = |path: &str| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    let layer = steps.iter().fold(Layer::default(), |layer, step| match step {
        Step::File(path, content) => layer.file(path, content.to_string().as_bytes()),
        Step::Directory(path, mode) => layer.directory(path, 0o700 + u64::from(*mode)),
        Step::Symlink(path, target) => layer.symlink(path, target),
        Step::HardLink(path, target) => layer.hard_link(path, target),
        Step::Whiteout(path) => layer.file(&hide(path), b""),
        Step::Opaque(path) => layer.file(&format!("{path}/.wh..wh..opq"), b""),
    });
    layer.stream()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn layers_merge_as_if_each_were_unpacked_over_the_one_below(
        layers in prop::collection::vec(prop::collection::vec(step(), 0..7), 1..5)
    ) {
        let mut model = Model::default();
        let expected = layers.iter().try_for_each(|steps| model.apply(steps)).map(|()| model.listing());
        let streams: Vec<Vec<u8>> = layers.iter().map(|steps| stream(steps)).collect();
        let merged = merge(&streams).map(|(merged, _)| listing(&merged)).map_err(|_| ());
        prop_assert_eq!(merged, expected);
    }
}
