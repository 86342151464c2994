//! Arbitrary bytes as a script: parsed, and evaluated against an image without files. Nothing may panic or take long,
//! and text that is quoted must come back as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sifu::shell::{Fuel, pure, single_quote};
use sifu::tree::lookup::{Entry, Kind, Lookup, LookupError, Stat};
use starter::paths::ContainerPath;

/// A root directory and nothing in it.
struct Empty;

impl Lookup for Empty {
    fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError> {
        let kind = Kind::Directory;
        let stat = Stat { kind, mode: 0o755, uid: 0, gid: 0, size_bytes: 0, mtime: 0, inode: 1, nlink: 2, rdev: 0 };
        Ok(path.is_root().then_some(stat))
    }
    fn read_link(&self, _: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
        Ok(None)
    }
    fn read_file(&self, _: &ContainerPath, _: u64) -> Result<Option<Vec<u8>>, LookupError> {
        Ok(None)
    }
    fn read_dir(&self, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
        Ok(path.is_root().then(Vec::new))
    }
}

fuzz_target!(|script: &[u8]| {
    let mut shell = pure::shell(&Empty, &[], b"/");
    shell.fuel = Fuel::new(1 << 20);
    let _ = shell.run(b"fuzz", script);
    if !script.contains(&0) && script.len() < 4096 {
        let mut shell = pure::shell(&Empty, &[], b"/");
        let assignment = [b"X=".as_slice(), &single_quote(script)].concat();
        assert_eq!(shell.run(b"fuzz", &assignment), Ok(0));
        assert_eq!(shell.get(b"X"), Some(script));
    }
});
