//! Damaged images: each command answers each of them with one clear error where that is required, and never with a panic,
//! a signal, a hang or more memory than it may have.

use std::ffi::OsString;
use std::time::Duration;

use serde_json::Value;

use crate::need::{CORPUS, FUSE, SIFU, USERNS, lacks};
use crate::support::{Output, shared, sifu};

const MEMORY_LIMIT_BYTES: u64 = 256 << 20;
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The command line for a command as the manifest names it; nothing for those that sifu does not have yet.
fn command_line(command: &str, image: OsString) -> Option<Vec<OsString>> {
    let words: Vec<&str> = command.split(' ').collect();
    match words.as_slice() {
        ["sif", "header" | "list" | "dump" | "info", ..] => {
            Some(words.iter().map(OsString::from).chain([image]).collect())
        }
        ["exec"] => Some(vec!["exec".into(), image, "/bin/ok".into()]),
        _ => None,
    }
}

/// Says what is wrong with `output`, given what the manifest requires.
fn judge(required: &str, output: &Output) -> Option<&'static str> {
    if output.signal.is_some() {
        return Some("a signal ended it");
    }
    if output.stderr.contains("panicked") || output.code == Some(101) {
        return Some("it panicked");
    }
    match (required, output.code) {
        ("error", Some(0)) => Some("it succeeded"),
        ("error", Some(_)) if !output.stderr.lines().any(|line| line.starts_with("FATAL:")) => Some("no clear error"),
        ("ok", code) if code != Some(0) => Some("it failed"),
        _ => None,
    }
}

/// Runs the commands that `wanted` chooses on every damaged image.
fn check(wanted: fn(&str) -> bool) {
    let folder = shared().join("sif-corpus/corrupt");
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).expect("the manifest of damaged images");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let mut wrong = Vec::new();
    let mut runs = 0;
    for case in manifest["cases"].as_array().expect("cases") {
        let (file, what) = (case["file"].as_str().expect("a file"), case["what"].as_str().expect("a description"));
        for (command, required) in case["commands"].as_object().expect("commands") {
            let required = required.as_str().expect("a requirement");
            let Some(line) = command_line(command, folder.join(file).into()).filter(|_| wanted(command)) else {
                continue;
            };
            let output = sifu(&line).limit(TIME_LIMIT).data_limit_bytes(MEMORY_LIMIT_BYTES).run();
            runs += 1;
            if let Some(problem) = judge(required, &output) {
                wrong.push(format!(
                    "{command} {file} ({what}): {problem}: {:?} {}",
                    output.code.or(output.signal),
                    output.stderr.trim()
                ));
            }
        }
    }
    assert!(runs > 0, "the manifest names commands");
    assert!(wrong.is_empty(), "{} of {runs}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_damaged_image_is_read_cleanly() {
    if lacks(&[SIFU, CORPUS]) {
        return;
    }
    check(|command| command.starts_with("sif "));
}

#[test]
fn every_damaged_image_is_started_or_refused_cleanly() {
    if lacks(&[SIFU, CORPUS, USERNS, FUSE]) {
        return;
    }
    check(|command| command == "exec");
}
