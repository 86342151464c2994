//! Tests of layers.

mod hostile;
mod model;
mod streams;
mod write;

use super::layers::{Keep, LayerError, Merge, MergeError, Merged};
use super::tar::TarError;
use crate::tree::{Body, Content};
use std::io::Read;
use write::{Header, Layer};

/// Keeps contents in memory, and their names in the order in which they came.
#[derive(Default)]
pub(super) struct Kept(pub Vec<String>);

impl Keep for Kept {
    type Error = std::io::Error;

    fn keep(&mut self, path: &[u8], size_bytes: u64, content: &mut dyn Read) -> std::io::Result<Content> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, size_bytes);
        self.0.push(String::from_utf8_lossy(path).into_owned());
        Ok(Content::Bytes(bytes.into()))
    }
}

/// Merges layers, given from the lowest up, and gets what is missing. Returns also what was read for the first time.
pub(super) fn merge(layers: &[Vec<u8>]) -> Result<(Merged, Kept), LayerError> {
    let layer_error = |error| match error {
        MergeError::Layer(error) => error,
        MergeError::Keep(source) => LayerError::Tar { layer: 0, source: TarError::Read { offset_bytes: 0, source } },
    };
    let mut merge = Merge::new(layers.len());
    let mut kept = Kept::default();
    for (number, layer) in layers.iter().enumerate().rev() {
        merge.read_layer(number, layer.as_slice(), &mut kept).map_err(layer_error)?;
    }
    let mut merged = merge.finish()?;
    for (number, layer) in layers.iter().enumerate() {
        if merged.missing.iter().any(|missing| missing.layer == number) {
            merged.fill(number, layer.as_slice(), &mut Kept::default()).map_err(layer_error)?;
        }
    }
    assert_eq!(merged.missing, []);
    Ok((merged, kept))
}

/// The tree as lines: path, permissions, and content, target or kind; hard links by the first name.
pub(super) fn listing(merged: &Merged) -> String {
    let tree = &merged.tree;
    let mut first = std::collections::HashMap::new();
    let mut lines = String::new();
    let mut walk = tree.walk();
    while let Some(id) = walk.next_entry() {
        let path = String::from_utf8_lossy(walk.path()).into_owned();
        let inode = tree.inode(id);
        let what = match inode.body {
            Body::Directory => "/".to_owned(),
            _ if first.contains_key(&id) => format!("== {}", first[&id]),
            Body::File(Content::Bytes(bytes)) => format!("`{}`", String::from_utf8_lossy(bytes)),
            Body::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            other => format!("{other:?}"),
        };
        first.entry(id).or_insert(path.clone());
        lines += &format!("{path} {:o} {what}\n", inode.mode);
    }
    lines
}

/// What layers, from the lowest up, come to.
#[track_caller]
pub(super) fn check(layers: &[Layer], expected: &str) {
    let streams: Vec<Vec<u8>> = layers.iter().map(Layer::stream).collect();
    let (merged, _) = merge(&streams).unwrap();
    assert_eq!(listing(&merged), expected);
}

/// Why layers, from the lowest up, come to nothing.
#[track_caller]
pub(super) fn refused(layers: &[Layer], expected: &str) {
    let streams: Vec<Vec<u8>> = layers.iter().map(Layer::stream).collect();
    let error = merge(&streams).err().expect("these layers are refused").to_string();
    assert_eq!(error, expected);
}

fn layer() -> Layer {
    Layer::default()
}

fn base() -> Layer {
    layer()
        .directory("c", 0o700)
        .file("c/x", b"x")
        .symlink("a", "c")
        .file("f", b"f")
        .directory("d", 0o755)
        .file("d/y", b"y")
}

#[test]
fn upper_files_replace_lower_ones_whose_content_is_never_kept() {
    let layers = [base(), layer().file("d/y", b"new").file("f", b"newer"), layer().file("f", b"newest")];
    let streams: Vec<Vec<u8>> = layers.iter().map(Layer::stream).collect();
    let (merged, kept) = merge(&streams).unwrap();
    assert_eq!(listing(&merged), "/a 777 -> c\n/c 700 /\n/c/x 644 `x`\n/d 755 /\n/d/y 644 `new`\n/f 644 `newest`\n");
    assert_eq!(kept.0, ["f", "d/y", "c/x"]);
}

#[test]
fn a_whiteout_removes_what_lower_layers_brought_and_nothing_of_its_own() {
    check(
        &[base(), layer().file("d/z", b"z").file("d/.wh.z", b"").file("d/.wh.y", b"").file(".wh.c", b"")],
        "/a 777 -> c\n/d 755 /\n/d/z 644 `z`\n/f 644 `f`\n",
    );
}

#[test]
fn an_opaque_directory_keeps_its_attributes_and_its_own_entries_wherever_the_mark_stands() {
    for upper in
        [layer().file("d/z", b"z").file("d/.wh..wh..opq", b""), layer().file("d/.wh..wh..opq", b"").file("d/z", b"z")]
    {
        check(&[base(), upper], "/a 777 -> c\n/c 700 /\n/c/x 644 `x`\n/d 755 /\n/d/z 644 `z`\n/f 644 `f`\n");
    }
}

#[test]
fn whiteouts_of_what_is_not_there_do_nothing() {
    check(&[layer().file("no/such/.wh.x", b"").file("nor/.wh..wh..opq", b"").file("k", b"k")], "/k 644 `k`\n");
}

#[test]
fn entries_follow_symbolic_links_among_their_parents_within_the_image() {
    check(
        &[base().symlink("up", "../../../../c"), layer().file("a/b", b"b").file("up/q", b"q").file("a/.wh.x", b"")],
        "/a 777 -> c\n/c 700 /\n/c/b 644 `b`\n/c/q 644 `q`\n/d 755 /\n/d/y 644 `y`\n/f 644 `f`\n/up 777 -> ../../../../c\n",
    );
}

#[test]
fn a_directory_replaces_a_symbolic_link_and_a_link_a_directory() {
    check(
        &[base(), layer().directory("a", 0o711).file("a/b", b"b").symlink("d", "c")],
        "/a 711 /\n/a/b 644 `b`\n/c 700 /\n/c/x 644 `x`\n/d 777 -> c\n/f 644 `f`\n",
    );
}

#[test]
fn a_parent_behind_a_dangling_link_is_made_where_the_link_leads() {
    check(
        &[layer().symlink("l", "no/where"), layer().file("l/q", b"q")],
        "/l 777 -> no/where\n/no 755 /\n/no/where 755 /\n/no/where/q 644 `q`\n",
    );
}

#[test]
fn hard_links_reach_into_lower_layers_and_survive_what_they_were_made_from() {
    check(
        &[
            base(),
            layer().hard_link("h", "c/x").hard_link("h2", "a/x"),
            layer().file("c/.wh.x", b"").file("h", b"other"),
        ],
        "/a 777 -> c\n/c 700 /\n/d 755 /\n/d/y 644 `y`\n/f 644 `f`\n/h 644 `other`\n/h2 644 `x`\n",
    );
    check(
        &[base(), layer().hard_link("h", "a").hard_link("f", "f").hard_link("d/y", "c/x")],
        "/a 777 -> c\n/c 700 /\n/c/x 644 `x`\n/d 755 /\n/d/y 644 == /c/x\n/f 644 `f`\n/h 777 == /a\n",
    );
}

#[test]
fn a_file_that_survives_against_the_forecast_is_read_again() {
    // `a/b` is written through the link; then `a` becomes a directory of its own, with another `a/b`.
    let layers = [
        layer().directory("c", 0o755).symlink("a", "c"),
        layer().file("a/b", b"through the link").file("other", b"other"),
        layer().file(".wh.a", b"").directory("a", 0o755),
        layer().file("a/b", b"direct"),
    ];
    check(&layers, "/a 755 /\n/a/b 644 `direct`\n/c 755 /\n/c/b 644 `through the link`\n/other 644 `other`\n");
    // The first name of a file is replaced above, its second one is not.
    let layers = [layer().file("one", b"content").hard_link("two", "one"), layer().file("one", b"new")];
    check(&layers, "/one 644 `new`\n/two 644 `content`\n");
}

#[test]
fn the_root_takes_the_attributes_of_its_entry() {
    let streams = [layer().directory("./", 0o711).file("./z", b"z").stream(), layer().directory(".", 0o700).stream()];
    let (merged, _) = merge(&streams).unwrap();
    assert_eq!(merged.tree.inode(merged.tree.root()).mode, 0o700);
    assert_eq!(listing(&merged), "/z 644 `z`\n");
}

#[test]
fn what_other_software_keeps_for_itself_stays_out() {
    let layer = layer()
        .file(".wh..wh.plnk/5.7", b"aufs")
        .entry(Header::new(b".wh..wh.aufs", b'0'), b"")
        .entry(Header::new(b"whiteout", b'3').octal(329, 8, 0).octal(337, 8, 0), b"")
        .records(&[
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
            ("SCHILY.xattr.security.selinux", b"system_u"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.redirect", b"/../../etc"),
        ])
        .file("x", b"x");
    let (merged, _) = merge(&[layer.stream()]).unwrap();
    assert_eq!(listing(&merged), "/x 644 `x`\n");
    let x = merged.tree.child(merged.tree.root(), b"x").unwrap();
    let names: Vec<&[u8]> = merged.tree.inode(x).xattrs.iter().map(|xattr| &*xattr.name).collect();
    assert_eq!(names, [b"security.capability".as_slice(), b"user.note"]);
    assert_eq!(merged.notices.dropped_whiteout_devices, 1);
    let dropped: Vec<&[u8]> = merged.notices.dropped_xattrs.keys().map(Vec::as_slice).collect();
    assert_eq!(dropped, [b"security.selinux".as_slice(), b"trusted.overlay.opaque", b"user.overlay.redirect"]);
}

#[test]
fn devices_owners_and_times_are_kept_as_recorded() {
    let layer = layer()
        .entry(Header::new(b"null", b'3').octal(329, 8, 1).octal(337, 8, 0x345).octal(100, 8, 0o4666), b"")
        .records(&[("uid", b"2000000"), ("gid", b"7"), ("mtime", b"-1.5")])
        .file("f", b"");
    let (merged, _) = merge(&[layer.stream()]).unwrap();
    let tree = &merged.tree;
    let null = tree.inode(tree.child(tree.root(), b"null").unwrap());
    assert!(matches!(null.body, Body::CharDevice(0x0030_0145)), "{:?}", null.body);
    assert_eq!(null.mode, 0o4666);
    let f = tree.inode(tree.child(tree.root(), b"f").unwrap());
    assert_eq!((f.uid, f.gid, f.mtime), (2_000_000, 7, -2));
}
