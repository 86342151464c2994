//! What a test needs of the machine, asked once.
//!
//! A test begins with `if lacks(&[USERNS, FUSE]) { return; }`. Where something is missing, one line says which and why,
//! past the test runner's capture. `SIFU_TEST_REQUIRE=userns,fuse` turns such a skip into a failure.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

/// A condition that some tests have: its name in `SIFU_TEST_REQUIRE` and the question that answers it.
pub struct Need {
    pub name: &'static str,
    /// Says why the condition does not hold.
    ask: fn() -> Result<(), String>,
}

/// The sources of this repository, for tests that read them.
pub const SOURCES: Need =
    Need { name: "sources", ask: || is_there(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")) };

/// Says whether one of `needs` is missing here, after telling which.
///
/// # Panics
/// When `SIFU_TEST_REQUIRE` names the missing one.
pub fn lacks(needs: &[Need]) -> bool {
    static ANSWERS: Mutex<Option<HashMap<&'static str, Result<(), String>>>> = Mutex::new(None);
    for need in needs {
        let answer = {
            let mut answers = ANSWERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            answers.get_or_insert_default().entry(need.name).or_insert_with(need.ask).clone()
        };
        let Err(why) = answer else { continue };
        let required = std::env::var("SIFU_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == need.name), "required here: {} ({why})", need.name);
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // `eprintln!` would be captured, and a skip that nobody sees looks like a pass.
        let _ = writeln!(std::io::stderr(), "{test} ... skipped: needs {} ({why})", need.name);
        return true;
    }
    false
}

fn unless(bad: bool, why: &str) -> Result<(), String> {
    if bad { Err(why.to_owned()) } else { Ok(()) }
}

fn is_there(path: &Path) -> Result<(), String> {
    unless(!path.exists(), &format!("no {}", path.display()))
}
