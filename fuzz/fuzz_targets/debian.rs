//! Files of Debian's archive: any bytes are sources, an index and a package, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sifu::debian::index::Index;
use sifu::debian::release::Release;
use sifu::debian::{deb, resolve, sources, unpack};
use sifu::tree::{Attributes, Content, Tree};
use std::io::Read;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = sources::parse_list(&text, "amd64");
    let _ = sources::parse_paragraphs(&text, "amd64");
    let _ = Release::parse(&text);
    let mut index = Index::default();
    if index.add(&text, 0).is_ok() {
        let names: Vec<&str> = index.packages().map(|package| package.name).collect();
        let _ = resolve::resolve(&index, &names);
    }
    let mut tree = Tree::new(Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() });
    let mut keep = |_size: u64, content: &mut dyn Read| -> std::io::Result<Content> {
        let mut bytes = Vec::new();
        content.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(Content::Bytes(bytes.into()))
    };
    let _ = unpack::unpack(&mut tree, data, &mut keep);
    if let Ok(files) = deb::data(data) {
        let _ = unpack::unpack(&mut tree, files.take(16 << 20), &mut keep);
    }
    let _ = tree.dump();
});
