//! Definitions that can't be built for want of room, rights or length: one clear error each, and nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::need::{BTRFS, BUSYBOX, FUSE, ORDINARY, ROOT, USERNS, lacks};
use crate::support::{Output, Scratch, busybox_image, sifu, sifu_path};

const MIB: usize = 1 << 20;

/// A directory with definitions that need 8 MiB: by `%files`, and by `%post`.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(8 * MIB)
    .collect();
    fs::write(scratch.path().join("noise"), noise).expect("a file");
    scratch.file("files.def", "Bootstrap: scratch\n%files\n    noise /noise\n");
    let base = busybox_image().display();
    scratch.file("post.def", &format!("Bootstrap: localimage\nFrom: {base}\n%post\n    cat /tmp/noise > /noise\n"));
    scratch
}

fn build(scratch: &Scratch, arguments: &[&str]) -> Output {
    let bind = format!("{}:/tmp", scratch.path().display());
    let words = [&["build", "--bind", &bind], arguments].concat();
    sifu(&words).current_dir(scratch.path()).run()
}

fn hidden(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with('.')).collect()
}

/// What a build says that fails, and leaves nothing in any of these directories.
#[track_caller]
fn check(output: &Output, directories: &[&Path], expected: &[&str]) {
    // Programs of a section say what they think of it, before the one error.
    let (before, said) = output.stderr.split_once("FATAL:").expect("an error");
    assert!(!said.contains("FATAL:") && !before.contains("panicked"), "{output:?}");
    for text in expected {
        assert!(said.contains(text), "{text}: {output:?}");
    }
    assert_eq!(output.code, Some(255), "{output:?}");
    for directory in directories {
        assert_eq!(hidden(directory), [""; 0], "{output:?}");
    }
}

/// A small file system, unmounted in the end.
struct Small(PathBuf);

impl Small {
    fn new(scratch: &Scratch) -> Self {
        let path = scratch.path().join("small");
        fs::create_dir(&path).expect("a scratch directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&path).status();
        assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs");
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_that_fills_is_one_clear_error() {
    if lacks(&[ROOT, BUSYBOX]) {
        return;
    }
    let scratch = scratch();
    let small = Small::new(&scratch);
    let both = [scratch.path(), &small.0];
    let no_space = ["noise: no space left on device", "hint: Free some space, or build elsewhere"];
    check(&build(&scratch, &["small/image.sif", "files.def"]), &both, &no_space);
    check(&build(&scratch, &["--tmpdir", "small", "image.sif", "files.def"]), &both, &no_space);
    check(&build(&scratch, &["--sandbox", "small/box", "files.def"]), &both, &no_space);
    let full = ["%post (line 3) failed with exit code 1", "hint: The file system that the image is built on is full"];
    check(&build(&scratch, &["--tmpdir", "small", "image.sif", "post.def"]), &both, &full);
    // The directory fits, the image beside it does not.
    let elsewhere = build(&scratch, &["--tmpdir", ".", "small/image.sif", "files.def"]);
    check(&elsewhere, &both, &["no room for small/image.sif", "hint: Free some space or quota"]);
    assert_eq!(fs::read_dir(&small.0).expect("a directory").count(), 0);
}

/// A file system with room and a quota of 4 MiB, of which the kernel tells nothing before it is used up. `None` where
/// there can be none.
fn with_quota(scratch: &Scratch) -> Option<Small> {
    let image = scratch.path().join("btrfs.img");
    fs::File::create(&image).and_then(|file| file.set_len(128 * MIB as u64)).expect("an image");
    let succeeds = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let path = scratch.path().join("limited");
    fs::create_dir(&path).expect("a scratch directory");
    if !succeeds(Command::new("mkfs.btrfs").args(["--quiet", "--mixed"]).arg(&image))
        || !succeeds(Command::new("mount").args(["-o", "loop"]).args([&image, &path]))
    {
        println!("skipped: needs btrfs and loop devices");
        return None;
    }
    let small = Small(path);
    assert!(succeeds(Command::new("btrfs").args(["quota", "enable"]).arg(&small.0)), "quotas");
    assert!(succeeds(Command::new("btrfs").args(["qgroup", "limit", "4M", "0/5"]).arg(&small.0)), "a limit");
    Some(small)
}

#[test]
fn a_quota_that_is_used_up_is_one_clear_error() {
    if lacks(&[ROOT, BUSYBOX, BTRFS]) {
        return;
    }
    let scratch = scratch();
    let Some(limited) = with_quota(&scratch) else { return };
    let both = [scratch.path(), &limited.0];
    let expected = ["quota exceeded", "hint: "];
    let fails = |arguments: &[&str], expected: &[&str]| {
        check(&build(&scratch, arguments), &both, expected);
        // What was removed counts until this.
        let synced = Command::new("btrfs").args(["filesystem", "sync"]).arg(&limited.0).output();
        assert!(synced.is_ok_and(|output| output.status.success()));
    };
    fails(&["limited/image.sif", "files.def"], &expected);
    fails(&["--tmpdir", ".", "limited/image.sif", "files.def"], &expected);
    fails(&["--sandbox", "limited/box", "files.def"], &expected);
    fails(&["--tmpdir", "limited", "image.sif", "post.def"], &["%post (line 3) failed"]);
    fs::create_dir(scratch.path().join("root")).expect("a directory");
    fs::rename(scratch.path().join("noise"), scratch.path().join("root/noise")).expect("a move");
    fails(&["limited/image.sif", "root"], &expected);
    assert_eq!(fs::read_dir(&limited.0).expect("a directory").count(), 0);
}

#[test]
fn a_limit_of_file_sizes_is_one_clear_error() {
    if lacks(&[USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let scratch = scratch();
    let limited = |arguments: &str| {
        let program = sifu_path();
        let script = format!("ulimit -f 4000; exec {} build --bind .:/tmp {arguments}", program.display());
        let output = Command::new("sh").args(["-c", &script]).current_dir(scratch.path()).output().expect("a shell");
        Output {
            code: output.status.code(),
            signal: std::os::unix::process::ExitStatusExt::signal(&output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    };
    let too_large = ["file too large", "hint: Files may not grow that large"];
    check(&limited("image.sif files.def"), &[scratch.path()], &too_large);
    check(&limited("--sandbox box files.def"), &[scratch.path()], &too_large);
    // The section's program gets the signal that it expects.
    check(&limited("image.sif post.def"), &[scratch.path()], &["%post (line 3) failed"]);
    fs::create_dir(scratch.path().join("root")).expect("a directory");
    fs::rename(scratch.path().join("noise"), scratch.path().join("root/noise")).expect("a move");
    check(&limited("image.sif root"), &[scratch.path()], &["file too large", "hint: "]);
}

#[test]
fn a_directory_that_may_not_be_written_is_one_clear_error() {
    if lacks(&[ORDINARY]) {
        return;
    }
    let scratch = scratch();
    let closed = scratch.path().join("closed");
    fs::create_dir(&closed).expect("a scratch directory");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("its mode");
    let expected = ["cannot make a directory for the build in closed: permission denied", "hint: "];
    check(&build(&scratch, &["closed/image.sif", "files.def"]), &[scratch.path(), &closed], &expected);
    check(&build(&scratch, &["--tmpdir", "closed", "image.sif", "files.def"]), &[scratch.path(), &closed], &expected);
}

#[test]
fn a_name_that_is_too_long_is_one_clear_error() {
    let scratch = scratch();
    let name = "n".repeat(256);
    check(&build(&scratch, &[&name, "files.def"]), &[scratch.path()], &["name too long"]);
    scratch.file("long.def", &format!("Bootstrap: scratch\n%files\n    noise /{name}\n"));
    check(&build(&scratch, &["image.sif", "long.def"]), &[scratch.path()], &["%files, line 3", "name too long"]);
}
