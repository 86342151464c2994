//! Builds of an ordinary user who has a range of subordinate ids, beside builds without one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sifu::image;

use crate::need::{BUSYBOX, FUSE, ORDINARY, SUBUID, USERNS, lacks};
use crate::support::{Output, Scratch, busybox_image, sifu};

fn lacks_a_range() -> bool {
    lacks(&[ORDINARY, SUBUID, USERNS, FUSE, BUSYBOX])
}

/// Gives files to many users, some of them out of others' reach.
const POST: &str = "%post
    touch /owned /bits /null.is
    chown 33:44 /owned /bits
    chmod 2755 /bits
    mkdir /private
    touch /private/secret
    echo text > /private/secret
    chown -R 1000:65534 /private
    chmod 600 /private/secret
    chmod 700 /private
    mknod /null c 1 3
    ln -s x /link
    chown -h 5:6 /link
";

fn definition(scratch: &Scratch, name: &str, sections: &str) {
    scratch.file(name, &format!("Bootstrap: localimage\nFrom: {}\n{sections}", busybox_image().display()));
}

fn build(scratch: &Scratch, arguments: &[&str]) -> Output {
    let words = [&["build"], arguments].concat();
    let output = sifu(&words).current_dir(scratch.path()).run();
    assert_eq!(output.code, Some(0), "{output:?}");
    output
}

fn dump(image: &Path) -> String {
    let image = image::open(image.as_os_str()).expect("an image");
    image.partition().expect("a partition").clone().into_tree("image.sif").expect("a tree").dump().expect("contents")
}

/// Removes what belongs to subordinate ids, as the next user of the directory would have to.
fn remove(scratch: &Scratch, name: &str) {
    scratch.file("empty.def", "Bootstrap: scratch\n");
    build(scratch, &["--force", "--sandbox", name, "empty.def"]);
    fs::remove_dir_all(scratch.path().join(name)).expect("the caller's own files");
}

#[test]
fn an_image_is_the_same_whether_a_range_is_mapped_or_root_is_emulated() {
    if lacks_a_range() {
        return;
    }
    let scratch = Scratch::new();
    definition(&scratch, "map.def", &format!("{POST}    cat /proc/self/uid_map > /dev/stderr\n"));
    definition(&scratch, "image.def", POST);
    let said = build(&scratch, &["map.sif", "map.def"]).stderr;
    assert!(said.lines().any(|line| line.split_ascii_whitespace().next() == Some("1")), "a range is mapped: {said}");
    let said = build(&scratch, &["--ignore-subuid", "--force", "map.sif", "map.def"]).stderr;
    assert!(!said.lines().any(|line| line.split_ascii_whitespace().next() == Some("1")), "root alone is: {said}");

    build(&scratch, &["range.sif", "image.def"]);
    build(&scratch, &["--ignore-subuid", "emulated.sif", "image.def"]);
    let (range, emulated) = (scratch.path().join("range.sif"), scratch.path().join("emulated.sif"));
    let text = dump(&range);
    assert_eq!(text, dump(&emulated));
    for line in ["/owned file 0664 33:44", "/bits file 2755 33:44", "/private directory 0700 1000:65534", "/null char"]
    {
        assert!(text.lines().any(|known| known.starts_with(line)), "{line}\n{text}");
    }
    // What differs is the time at which the sections ran.
    build(&scratch, &["range.sif", "--force", "image.def"]);
    let epoch = |options: &[&str], name: &str| {
        let words = [&["build", "--force"], options, &[name, "image.def"]].concat();
        let output = sifu(&words).current_dir(scratch.path()).env("SOURCE_DATE_EPOCH", "1000000000").run();
        assert_eq!(output.code, Some(0), "{output:?}");
        fs::read(scratch.path().join(name)).expect("an image")
    };
    assert!(epoch(&[], "range.sif") == epoch(&["--ignore-subuid"], "emulated.sif"), "the bytes differ");
}

#[test]
fn a_sandbox_of_a_range_is_packed_updated_and_replaced() {
    if lacks_a_range() {
        return;
    }
    let scratch = Scratch::new();
    definition(&scratch, "image.def", POST);
    build(&scratch, &["--sandbox", "box", "image.def"]);
    let private = scratch.path().join("box/private");
    let owner = private.symlink_metadata().expect("a directory").uid();
    assert!(owner > 65_536 && fs::read_dir(&private).is_err(), "it belongs to a subordinate id: {owner}");
    build(&scratch, &["packed.sif", "box"]);
    build(&scratch, &["whole.sif", "image.def"]);
    let of_files = |name: &str| -> Vec<String> {
        // What an image says of how it was made differs.
        let text = dump(&scratch.path().join(name));
        text.lines().filter(|line| !line.starts_with("/.singularity.d")).map(str::to_owned).collect()
    };
    let packed = of_files("packed.sif");
    assert!(packed.iter().any(|line| line.starts_with("/private/secret file 0600 1000:65534")), "{packed:?}");
    assert_eq!(packed, of_files("whole.sif"));
    scratch.file("more.def", "Bootstrap: scratch\n%post\n    cat /private/secret > /seen\n    chown 7 /seen\n");
    build(&scratch, &["--update", "--sandbox", "box", "more.def"]);
    build(&scratch, &["--force", "packed.sif", "box"]);
    assert!(of_files("packed.sif").iter().any(|line| line.starts_with("/seen file 0664 7:0")));
    remove(&scratch, "box");
}

#[test]
fn what_a_killed_build_gave_away_goes_with_the_next_build() {
    if lacks_a_range() {
        return;
    }
    let scratch = Scratch::new();
    let wait = format!("{POST}    touch /tmp/started\n    sleep 1000\n");
    definition(&scratch, "slow.def", &wait);
    let bind = format!("{}:/tmp", scratch.path().display());
    let mut slow = sifu(&["build", "--bind", &bind, "slow.sif", "slow.def"])
        .current_dir(scratch.path())
        .command()
        .spawn()
        .expect("sifu starts");
    let begun = Instant::now();
    while !scratch.path().join("started").exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    slow.kill().expect("the build can be killed");
    slow.wait().expect("the build ends");
    let left = |scratch: &Scratch| -> Vec<String> {
        let entries = fs::read_dir(scratch.path()).expect("a directory").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains(".sifu-"))
            .collect()
    };
    assert_eq!(left(&scratch).len(), 1, "what it made is there");
    let work = scratch.path().join(&left(&scratch)[0]);
    let plain = Command::new("rm").args(["-rf"]).arg(&work).output().expect("rm");
    assert!(!plain.status.success(), "some of it belongs to others");
    // Whatever the next one builds, and even if that has no use for the range.
    scratch.file("next.def", "Bootstrap: scratch\n");
    build(&scratch, &["--ignore-subuid", "next.sif", "next.def"]);
    assert_eq!(left(&scratch), [""; 0]);
}
