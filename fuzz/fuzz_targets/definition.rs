//! Arbitrary bytes as a definition file, with one build argument: nothing may panic or take long, and every error names a
//! place in the file. What the image keeps of it never holds the value of a secret.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sifu::def::{BuildArgs, parse, parse_json};

const SECRET: &[u8] = b"\x01the value of a secret\x01";

fuzz_target!(|text: &[u8]| {
    let mut given = BuildArgs::default();
    given.add("TOKEN", SECRET);
    let _ = given.add_file(&text[..text.len().min(256)]);
    given.add("TOKEN", SECRET);
    let whole = [b"Bootstrap: scratch\n%arguments\n# secret: TOKEN\n%post\n".as_slice(), text].concat();
    if let Ok(definition) = parse_json(text, &given) {
        assert!(!definition.stages.is_empty());
    }
    for text in [text, &whole] {
        match parse(text, &given) {
            Ok(definition) => assert!(!definition.stages.is_empty()),
            Err(error) => {
                assert!(error.line as usize <= text.split(|&b| b == b'\n').count());
                assert!(!error.to_string().is_empty());
            }
        }
    }
    if let Ok(definition) = parse(&whole, &given)
        && definition.stages.len() == 1
    {
        assert!(!definition.text.windows(SECRET.len()).any(|bytes| bytes == SECRET) || text.windows(SECRET.len()).any(|bytes| bytes == SECRET));
    }
});
