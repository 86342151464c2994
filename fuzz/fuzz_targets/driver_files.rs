//! Arbitrary bytes as what a driver's vendor installs: a library, the linker's cache, a description of devices, a list;
//! and as a seccomp profile. Nothing may panic or take long, and a cache that is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sifu::elf::{Object, ld_cache};
use sifu::gpu::cdi::spec::{self, Language};
use sifu::gpu::list;
use sifu::launch::seccomp::{self, Architecture, SeccompContext};

fuzz_target!(|bytes: &[u8]| {
    let _ = Object::parse(bytes);
    let _ = list::parse(bytes);
    let _ = spec::parse(bytes, Language::Json);
    let _ = spec::parse(bytes, Language::Yaml);
    if let Ok(entries) = ld_cache::parse(bytes) {
        let again = ld_cache::write(&entries);
        assert!(ld_cache::parse(&again).is_ok());
    }
    let context = SeccompContext { capabilities: 0, architecture: Architecture::X86_64, kernel: (6, 1) };
    if let Ok(program) = seccomp::compile(bytes, &context) {
        assert!(program.len().is_multiple_of(8) && program.len() / 8 <= 4096);
    }
});
