//! The command line as such: help, versions, usage errors, messages and the site's configuration.

use std::fs::File;
use std::process::Stdio;

use crate::support::{Scratch, sifu};

/// Runs sifu by the name `applet`, and expects the exit code and the start of what each stream got.
#[track_caller]
fn check(applet: &'static str, arguments: &[&str], code: i32, stdout: &str, stderr: &str) {
    let output = sifu(arguments).called(applet).run();
    assert_eq!(output.code, Some(code), "{arguments:?}: {output:?}");
    for (got, expected) in [(&output.stdout, stdout), (&output.stderr, stderr)] {
        assert_eq!(got.is_empty(), expected.is_empty(), "{arguments:?}: {output:?}");
        assert!(got.starts_with(expected), "{arguments:?}: {output:?}");
    }
}

#[test]
fn help_is_an_answer_on_standard_output() {
    for arguments in [&["help"][..], &["--help"], &["-h"]] {
        check("sifu", arguments, 0, "Run single-file (SIF) containers", "");
    }
    check("sifu", &["help", "exec"], 0, "Run a command within a container", "");
    check("sifu", &["exec", "--help"], 0, "Run a command within a container", "");
    check("sifu", &["sif"], 0, "Look into SIF files", "");
}

#[test]
fn no_arguments_are_a_usage_error() {
    check("sifu", &[], 1, "", "Usage:\n  sifu ");
    check("apptainer", &[], 1, "", "Usage:\n  apptainer ");
    check("run-singularity", &[], 1, "", "FATAL:   `run-singularity` needs IMAGE");
}

#[test]
fn the_version_answers_to_the_name_that_was_called() {
    let version = env!("CARGO_PKG_VERSION");
    check("sifu", &["version"], 0, &format!("{version}\n"), "");
    check("sifu", &["--version"], 0, &format!("sifu version {version}\n"), "");
    check("singularity", &["--version"], 0, "apptainer version 1.", "");
}

#[test]
fn an_error_of_the_command_line_comes_with_the_usage() {
    let output = sifu(&["exec", "--contian", "a.sif", "true"]).run();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_eq!(
        output.clean_failure(),
        "FATAL:   `sifu exec` has no option `--contian`\n         hint: Did you mean `--contain`?\n\
         Usage:\n  sifu exec [OPTIONS] IMAGE COMMAND [ARGUMENTS...]\n\nRun `sifu help exec` for more.\n"
    );
}

#[test]
fn what_is_not_there_yet_says_so() {
    check("sifu", &["sign", "a.sif"], 255, "", "FATAL:   the command `sifu sign` is not there yet");
    check(
        "sifu",
        &["exec", "--intel-hpu", "a.sif", "true"],
        255,
        "",
        "FATAL:   the option `--intel-hpu` of `sifu exec` is not there yet",
    );
}

#[test]
fn escapes_in_a_word_do_not_reach_the_terminal() {
    let output = sifu(&["\u{1b}[31mred"]).run();
    assert!(!output.stderr.contains('\u{1b}'), "{output:?}");
    assert_eq!(output.code, Some(1), "{output:?}");
}

#[test]
fn a_full_disk_is_an_error_and_a_closed_pipe_is_none() {
    let status = |stdout: Stdio| {
        let mut command = sifu(&["help"]).command();
        command.stdout(stdout).stderr(Stdio::null()).status().expect("sifu can be started").code()
    };
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    assert_eq!(status(full.into()), Some(255));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(status(writer.into()), Some(0));
}

#[test]
fn a_directive_is_read_from_the_file_that_is_named() {
    let scratch = Scratch::new();
    let file = scratch.file("site.conf", "bind path = /a\nbind path = /b:/c\n").display().to_string();
    check("sifu", &["-c", &file, "config", "global", "--get", "bind path"], 0, "/a,/b:/c\n", "");
    let output = sifu(&["config", "global", "--get", "bind path"]).env("APPTAINER_CONFIG_FILE", &file).run();
    assert_eq!(output.quiet_success(), "/a,/b:/c");
    check("sifu", &["config", "global", "--get", "bind paht"], 255, "", "FATAL:   there is no directive `bind paht`\n");
}

#[test]
fn a_bad_configuration_is_an_error_with_file_and_line() {
    let scratch = Scratch::new();
    let file = scratch.file("site.conf", "# home\nmount home = perhaps\n").display().to_string();
    let output = sifu(&["-c", &file, "config", "global", "--get", "mount home"]).run();
    assert_eq!(
        output.clean_failure(),
        format!(
            "FATAL:   cannot use the configuration `{file}`: line 2: `mount home` cannot be `perhaps`\n         \
             hint: `mount home` can be yes or no.\n"
        )
    );
    let missing = scratch.path().join("none.conf").display().to_string();
    check(
        "sifu",
        &["-c", &missing, "config", "global", "--get", "mount home"],
        255,
        "",
        "FATAL:   cannot read the conf",
    );
}
