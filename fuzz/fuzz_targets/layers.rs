//! Arbitrary bytes as two layers of an image: nothing may panic, take long or keep more than was given, and the tree that
//! comes of them holds nothing that a directory could not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sifu::oci::inflate::inflate;
use sifu::oci::layers::{Keep, Merge};
use sifu::tree::Content;
use std::io::{self, Read};

/// Content that a run of the fuzzer may unpack.
const MAX_BYTES: u64 = 64 << 20;

struct Counted(u64);

impl Keep for Counted {
    type Error = io::Error;

    fn keep(&mut self, _path: &[u8], size_bytes: u64, content: &mut dyn Read) -> io::Result<Content> {
        let copied = io::copy(&mut content.take(MAX_BYTES.saturating_sub(self.0)), &mut io::sink())?;
        self.0 += copied;
        if copied < size_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Content::Written { number: 0, size_bytes })
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (lower, upper) = bytes.split_at(bytes.len() / 2 / 512 * 512);
    let mut merge = Merge::new(2);
    let mut kept = Counted(0);
    for (number, layer) in [(1, upper), (0, lower)] {
        let Ok(stream) = inflate(layer) else { return };
        if merge.read_layer(number, stream.take(MAX_BYTES), &mut kept).is_err() {
            return;
        }
    }
    let Ok(merged) = merge.finish() else { return };
    let mut walk = merged.tree.walk();
    while let Some(id) = walk.next_entry() {
        assert!(merged.tree.inode(id).names > 0);
        assert!(walk.path().split(|&byte| byte == b'/').skip(1).all(|name| !matches!(name, b"" | b"." | b"..")));
    }
});
