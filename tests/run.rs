//! `sifu run`, an image that is executed as a program, and the names that sifu is called by.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::need::{BUSYBOX, FUSE, Need, SIFU, USERNS, lacks};
use crate::support::{Scratch, busybox_root, sifu};

const START: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX];

/// An image whose run script says what it was given.
fn image_with_run_script(scratch: &Scratch) -> PathBuf {
    let (root, image) = (scratch.path().join("root"), scratch.path().join("image.sif"));
    busybox_root(&root);
    let script = scratch.file("root/.singularity.d/runscript", "#!/bin/sh\necho \"ran with $#: $*\"\nexit 3\n");
    std::fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let built = sifu(&[OsString::from("build"), image.clone().into(), root.into()]).run();
    assert_eq!(built.code, Some(0), "{built:?}");
    image
}

/// Calls sifu by the name `applet` with `before`, the image and two arguments, in the image's directory.
#[track_caller]
fn check(applet: &'static str, before: &[&str], image: &Path) {
    let mut arguments: Vec<OsString> = before.iter().map(OsString::from).collect();
    arguments.extend(["./image.sif", "one", "two words"].map(OsString::from));
    let directory = image.parent().expect("the image's directory");
    let output = sifu(&arguments).called(applet).current_dir(directory).run();
    assert_eq!((output.code, output.stdout.as_str()), (Some(3), "ran with 2: one two words\n"), "{applet}: {output:?}");
}

#[test]
fn the_run_script_gets_the_arguments_under_every_name() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    let image = image_with_run_script(&scratch);
    check("sifu", &["run"], &image);
    check("apptainer", &["run"], &image);
    check("singularity", &["run"], &image);
    check("run-singularity", &[], &image);
}

#[test]
fn the_working_directory_is_the_caller_s() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    let image = image_with_run_script(&scratch);
    let output = sifu(&[OsString::from("exec"), image.into(), "pwd".into()]).current_dir(scratch.path()).run();
    assert_eq!(output.quiet_success(), scratch.path().display().to_string());
}
