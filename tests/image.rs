//! Opening what a user points at: every kind of image, and everything that is none.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sifu::image::facts::{ImageKind, PartitionFileSystem};
use sifu::image::{self, ImageError, extract, sandbox::Sandbox};
use sifu::report::Hint;
use sifu::tree::lookup::{self, Kind, Lookup};
use starter::paths::ContainerPath;

use crate::need::{CORPUS, ORDINARY, lacks};
use crate::support::{Scratch, shared};

const TIME_LIMIT: Duration = Duration::from_secs(10);

fn corpus(name: &str) -> PathBuf {
    shared().join("sif-corpus").join(name)
}

/// The root partition of an image, as a bare SquashFS file after `prefix`.
fn bare_squashfs(scratch: &Scratch, prefix: &[u8]) -> PathBuf {
    let image = image::open(corpus("apptainer/def-full.sif").as_os_str()).expect("a valid image");
    let extent = image.facts.root.expect("a SIF has a root partition");
    let whole = fs::read(corpus("apptainer/def-full.sif")).expect("an image of the corpus");
    let start = extent.offset_bytes as usize;
    let path = scratch.path().join("bare.img");
    fs::write(&path, [prefix, &whole[start..start + extent.size_bytes as usize]].concat()).expect("a scratch file");
    path
}

#[track_caller]
fn refused(path: &OsStr) -> ImageError {
    let started = Instant::now();
    let error = image::open(path).err().unwrap_or_else(|| panic!("{} was opened", path.display()));
    assert!(started.elapsed() < TIME_LIMIT, "refused in time: {error}");
    assert!(!error.to_string().is_empty());
    error
}

/// Checks that the error for `path` says `expected`, and gives advice.
#[track_caller]
fn check_refused(path: impl AsRef<OsStr>, expected: &str) {
    let error = refused(path.as_ref());
    assert!(error.to_string().contains(expected), "{error}");
    assert!(!error.hints().is_empty(), "advice for: {error}");
}

#[test]
fn a_sif_shows_its_facts_and_its_root() {
    if lacks(&[CORPUS]) {
        return;
    }
    let image = image::open(corpus("apptainer/def-full.sif").as_os_str()).expect("a valid image");
    assert_eq!(image.facts.kind, ImageKind::Sif);
    assert_eq!(image.facts.name, b"def-full.sif");
    assert_eq!(image.facts.architecture, Some("amd64"));
    assert!(image.facts.has_shell && image.facts.has_singularity_d);
    assert_eq!(image.facts.size_bytes, 126_976);
    let runscript = lookup::read(image.root(), &ContainerPath::fixed("/.singularity.d/runscript"), 4096);
    assert!(runscript.expect("a sound image").expect("a runscript").starts_with(b"#!/bin/sh"));
}

#[test]
fn an_image_of_old_singularity_opens() {
    if lacks(&[CORPUS]) {
        return;
    }
    let image = image::open(corpus("singularity/busybox_amd64.sif").as_os_str()).expect("a valid image");
    assert_eq!((image.facts.kind, image.facts.has_shell), (ImageKind::Sif, true));
}

#[test]
fn a_bare_squashfs_opens_also_after_a_launch_line() {
    if lacks(&[CORPUS]) {
        return;
    }
    for prefix in [&b""[..], b"#!/usr/bin/env run-singularity\n"] {
        let scratch = Scratch::new();
        let image = image::open(bare_squashfs(&scratch, prefix).as_os_str()).expect("a SquashFS file");
        assert_eq!((image.facts.kind, image.facts.has_shell), (ImageKind::Squashfs, true));
        assert_eq!(image.facts.root.map(|root| root.offset_bytes), Some(prefix.len() as u64));
        assert_eq!(image.facts.architecture, None);
    }
}

#[test]
fn a_directory_opens_and_its_path_is_made_absolute_by_name() {
    let scratch = Scratch::new();
    scratch.file("root/bin/busybox", "");
    symlink("busybox", scratch.path().join("root/bin/sh")).expect("a link");
    let image = image::open(scratch.path().join("root/../root/.").as_os_str()).expect("a directory");
    assert_eq!((image.facts.kind, image.facts.has_shell), (ImageKind::Sandbox, true));
    assert_eq!(image.facts.path.as_path(), scratch.path().join("root"));
    assert!(!image.facts.has_singularity_d);
    assert!(image.partition().is_none());
}

#[test]
fn a_directory_that_may_be_entered_but_not_listed_opens() {
    let scratch = Scratch::new();
    scratch.file("root/bin/sh", "");
    let root = scratch.path().join("root");
    fs::set_permissions(&root, PermissionsExt::from_mode(0o111)).expect("mode");
    let image = image::open(root.as_os_str()).expect("a directory");
    assert!(image.facts.has_shell);
    fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).expect("mode");
}

#[test]
fn what_is_no_image_is_named() {
    let scratch = Scratch::new();
    check_refused(scratch.path().join("none.sif"), "none.sif: no such file or directory");
    check_refused(scratch.file("empty.sif", ""), "it is empty");
    check_refused(scratch.file("text.sif", "hello\n"), "it holds text");
    check_refused(scratch.file("script.sif", "#!/bin/sh\n"), "it is a script");
    let ext = scratch.path().join("ext.img");
    let mut bytes = vec![0; 4096];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(&ext, bytes).expect("a scratch file");
    check_refused(ext, "ext3 or ext4");
}

#[test]
fn a_fifo_a_socket_and_a_device_are_refused_at_once() {
    let scratch = Scratch::new();
    let fifo = scratch.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    check_refused(fifo, "is a fifo");
    check_refused("/dev/null", "is a device");
    let socket = scratch.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    check_refused(socket, "is a socket or a device");
}

#[test]
fn an_image_that_may_not_be_read_is_named() {
    if lacks(&[ORDINARY]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("secret.sif", "x");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).expect("mode");
    check_refused(path, "permission denied");
}

#[test]
fn uris_are_refused_by_kind() {
    check_refused("docker://alpine", "no `docker` images");
    check_refused("docker-archive:x.tar", "no `docker-archive` images");
    check_refused("instance://web", "no instances");
    check_refused("foo://bar", "`foo` is no known kind");
}

#[test]
fn images_that_can_not_be_opened_yet_say_which_and_what_to_do() {
    if lacks(&[CORPUS]) {
        return;
    }
    check_refused(corpus("apptainer/enc-pass.sif"), "encrypted (gocryptfs)");
    check_refused(corpus("corrupt/part-fs-luks.sif"), "encrypted (LUKS2)");
    check_refused(corpus("corrupt/part-fs-ext3.sif"), "ext3");
    check_refused(corpus("oci-sif/docker-manifest.sif"), "OCI-SIF");
    check_refused(corpus("corrupt/primary-twice.sif"), "primary");
    check_refused(corpus("corrupt/primary-missing.sif"), "no primary partition");
    check_refused(corpus("corrupt/part-arch-arm64.sif"), "arm64");
    check_refused(corpus("corrupt/trunc-data.sif"), "ends at");
}

#[test]
fn an_encrypted_image_still_says_what_it_is() {
    if lacks(&[CORPUS]) {
        return;
    }
    let opened = image::open_to_read(corpus("apptainer/enc-pass.sif").as_os_str()).expect("readable");
    let metadata = opened.into_metadata().expect("the object is not encrypted").metadata;
    assert!(metadata.labels.contains_key("org.label-schema.build-arch"));
}

/// Opens a damaged image in every way there is; gives why it can't be used, if something noticed.
fn use_damaged(path: &Path) -> Option<String> {
    if let Ok(opened) = image::open_to_read(path.as_os_str()) {
        // Whether there is metadata is not the question; that it ends is.
        let _ = opened.data_partition(None);
        let _ = opened.data_partition(Some(3));
        let _ = opened.into_metadata();
    }
    let image = match image::open(path.as_os_str()) {
        Ok(image) => image,
        Err(error) => return Some(error.to_string()),
    };
    let _ = lookup::list(image.root(), &ContainerPath::fixed("/etc"));
    match lookup::read(image.root(), &ContainerPath::fixed("/bin/ok"), 64 << 20) {
        Ok(Some(_)) => None,
        Ok(None) => Some("no /bin/ok".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

/// Unpacks an image and removes the tree again; gives the error, if there was one.
fn unpack(path: &Path) -> Option<String> {
    let image = match image::open(path.as_os_str()) {
        Ok(image) => image,
        Err(error) => return Some(error.to_string()),
    };
    let reader = image.partition().expect("a SIF has a partition");
    let scratch = Scratch::new();
    let target = scratch.path().join("tree");
    fs::create_dir(&target).expect("a target");
    let directory = OwnedFd::from(fs::File::open(&target).expect("a directory"));
    let unpacked = extract::survey(reader)
        .and_then(|survey| extract::check_space(&survey, directory.as_fd()))
        .and_then(|()| extract::extract(reader, directory));
    let parent = fs::File::open(scratch.path()).expect("a directory");
    extract::remove(parent.as_fd(), OsStr::new("tree")).expect("the tree can be removed");
    let left: Vec<_> = fs::read_dir(scratch.path()).expect("a directory").flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "{} left {left:?}", path.display());
    unpacked.err().map(|error| error.to_string())
}

#[test]
fn every_damaged_image_is_noticed_where_it_must_be_and_never_panics() {
    if lacks(&[CORPUS]) {
        return;
    }
    let manifest = fs::read_to_string(corpus("corrupt/manifest.json")).expect("the manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let mut wrong = Vec::new();
    for case in manifest["cases"].as_array().expect("cases") {
        let file = case["file"].as_str().expect("a file");
        let path = corpus("corrupt").join(file);
        let started = Instant::now();
        let problem = use_damaged(&path);
        if case["commands"]["exec"] == "error" && problem.is_none() {
            wrong.push(format!("{file} can be run"));
        }
        if case["commands"]["build --sandbox"] == "error" && unpack(&path).is_none() {
            wrong.push(format!("{file} can be unpacked"));
        }
        if started.elapsed() > TIME_LIMIT {
            wrong.push(format!("{file} takes {:?}", started.elapsed()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_valid_images_of_the_damaged_folder_are_sound() {
    if lacks(&[CORPUS]) {
        return;
    }
    for file in ["base.sif", "base-raw.sif", "signed.sif"] {
        let path = corpus("corrupt").join(file);
        assert_eq!(use_damaged(&path), None, "{file}");
        assert_eq!(unpack(&path), None, "{file}");
    }
}

/// Compares two roots entry by entry, below `directory`.
fn compare(image: &dyn Lookup, tree: &dyn Lookup, directory: &ContainerPath, count: &mut usize) {
    let in_image = image.read_dir(directory).expect("sound").expect("a directory");
    let in_tree = tree.read_dir(directory).expect("sound").expect("a directory");
    let (mut names, expected): (Vec<_>, Vec<_>) =
        (in_tree.into_iter().map(|e| e.name).collect(), in_image.into_iter().map(|e| e.name).collect::<Vec<_>>());
    names.sort();
    assert_eq!(names, expected, "{directory}");
    for name in expected {
        let path = directory.join(&name).expect("a name");
        let (a, b) =
            (image.lstat(&path).expect("sound").expect("there"), tree.lstat(&path).expect("sound").expect("there"));
        assert_eq!(a.kind, b.kind, "{path}");
        assert_eq!(a.mtime, b.mtime, "time of {path}");
        assert_eq!(image.read_link(&path).expect("sound"), tree.read_link(&path).expect("sound"), "{path}");
        assert_eq!(
            image.read_file(&path, 1 << 30).expect("sound"),
            tree.read_file(&path, 1 << 30).expect("sound"),
            "{path}"
        );
        match a.kind {
            Kind::Directory => {
                assert_eq!(b.mode, (a.mode & 0o1777) | 0o700, "{path}");
                compare(image, tree, &path, count);
            }
            Kind::File => assert_eq!(b.mode, (a.mode & 0o1777) | 0o600, "{path}"),
            _ => {}
        }
        *count += 1;
    }
}

#[test]
fn an_unpacked_tree_is_the_image_s() {
    if lacks(&[CORPUS]) {
        return;
    }
    for name in ["apptainer/def-full.sif", "singularity/busybox_amd64.sif"] {
        let image = image::open(corpus(name).as_os_str()).expect("a valid image");
        let reader = image.partition().expect("a SIF has a partition");
        let survey = extract::survey(reader).expect("a sound image");
        let scratch = Scratch::new();
        let target = scratch.path().join("tree");
        fs::create_dir(&target).expect("a target");
        let extracted = extract::extract(reader, fs::File::open(&target).expect("a directory").into());
        assert_eq!(extracted.expect("room for it").left_out, 0);
        let tree = Sandbox::new(fs::File::open(&target).map(std::sync::Arc::new).expect("a directory"));
        let mut count = 0;
        compare(image.root(), &tree, &ContainerPath::root(), &mut count);
        assert!(count > 20, "{count} entries");
        assert!(survey.inodes > 20 && survey.size_bytes > 50_000, "{survey:?}");
    }
}

#[test]
fn unpacking_into_a_tree_that_has_the_names_already_changes_nothing_outside() {
    if lacks(&[CORPUS]) {
        return;
    }
    let image = image::open(corpus("apptainer/def-full.sif").as_os_str()).expect("a valid image");
    let scratch = Scratch::new();
    let outside = scratch.path().join("outside");
    let target = scratch.path().join("tree");
    fs::create_dir(&outside).and_then(|()| fs::create_dir(&target)).expect("directories");
    symlink(&outside, target.join("bin")).expect("a link");
    let directory = fs::File::open(&target).expect("a directory");
    let error =
        extract::extract(image.partition().expect("a partition"), directory.into()).expect_err("a name is taken");
    assert!(error.to_string().contains("twice"), "{error}");
    assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 0);
}

#[test]
fn too_little_room_is_noticed_before_anything_is_unpacked() {
    let scratch = Scratch::new();
    let directory = fs::File::open(scratch.path()).expect("a directory");
    let survey = extract::Survey { size_bytes: 1 << 60, inodes: 1 };
    let error = extract::check_space(&survey, directory.as_fd()).expect_err("nobody has an exbibyte");
    assert!(error.to_string().contains("1099511627776 MiB"), "{error}");
    assert!(error.hints()[0].contains("TMPDIR"));
    extract::check_space(&extract::Survey { size_bytes: 4096, inodes: 1 }, directory.as_fd()).expect("a page fits");
}

#[test]
fn a_tree_is_removed_whatever_its_modes_and_depth_and_links_are_not_followed() {
    let scratch = Scratch::new();
    let kept = scratch.file("kept/file", "kept");
    let tree = scratch.path().join("tree");
    let mut at = tree.clone();
    fs::create_dir(&at).expect("a directory");
    symlink(scratch.path().join("kept"), tree.join("link")).expect("a link");
    for _ in 0..300 {
        at = at.join("d");
        fs::create_dir(&at).expect("a directory");
        fs::write(at.join("f"), "x").expect("a file");
    }
    while at != tree {
        fs::set_permissions(&at, PermissionsExt::from_mode(0o000)).expect("mode");
        at.pop();
    }
    let parent = fs::File::open(scratch.path()).expect("a directory");
    extract::remove(parent.as_fd(), OsStr::new("tree")).expect("it is the caller's");
    assert!(!tree.exists() && kept.exists());
    extract::remove(parent.as_fd(), OsStr::new("tree")).expect("that it is gone is no error");
    extract::remove(parent.as_fd(), OsStr::new("kept")).expect("a small tree");
    assert_eq!(fs::read_dir(scratch.path()).expect("a directory").count(), 0);
}

#[test]
fn a_sandbox_is_not_left_by_links_and_nothing_in_it_blocks() {
    let scratch = Scratch::new();
    scratch.file("outside/secret", "secret");
    scratch.file("root/etc/file", "text");
    let root = scratch.path().join("root");
    symlink(scratch.path().join("outside"), root.join("out")).expect("a link");
    symlink("/etc/file", root.join("absolute")).expect("a link");
    symlink("../../../../etc/file", root.join("relative")).expect("a link");
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let image = image::open(root.as_os_str()).expect("a directory");
    let at = |path: &'static str| ContainerPath::fixed(path);
    let root = image.root();
    assert_eq!(root.lstat(&at("/out")).expect("sound").expect("there").kind, Kind::Symlink);
    assert_eq!(root.lstat(&at("/out/secret")).expect("sound"), None);
    assert_eq!(root.read_file(&at("/out/secret"), 99).expect("sound"), None);
    assert_eq!(root.read_dir(&at("/out")).expect("sound"), None);
    assert_eq!(root.read_file(&at("/fifo"), 99).expect("sound"), None);
    assert_eq!(lookup::read(root, &at("/absolute"), 99).expect("sound").as_deref(), Some(&b"text"[..]));
    assert_eq!(lookup::read(root, &at("/relative"), 99).expect("sound").as_deref(), Some(&b"text"[..]));
    assert_eq!(lookup::read(root, &at("/out/secret"), 99).expect("sound"), None);
    assert!(matches!(root.read_file(&at("/etc/file"), 3), Err(lookup::LookupError::TooLarge { size_bytes: 4, .. })));
}

#[test]
fn data_partitions_are_found_by_id_or_as_the_first() {
    if lacks(&[CORPUS]) {
        return;
    }
    let open = |name: &str| image::open_to_read(corpus(name).as_os_str()).expect("readable");
    let opened = open("corrupt/primary-missing.sif");
    assert_eq!(opened.facts.data.len(), 1);
    assert_eq!(opened.facts.data[0].file_system, PartitionFileSystem::Squashfs);
    let (first, _) = opened.data_partition(None).expect("a data partition");
    let (by_id, _) = opened.data_partition(Some(opened.facts.data[0].id)).expect("the same");
    assert_eq!(first, by_id);
    let refuse = |id: Option<u32>, name: &str, expected: &str| {
        let error = open(name).data_partition(id).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "{name} {id:?}: {error}");
    };
    refuse(None, "apptainer/def-full.sif", "no data partition");
    refuse(Some(1), "apptainer/def-full.sif", "Def.FILE");
    refuse(Some(77), "apptainer/def-full.sif", "not found: 77");
    refuse(Some(1), "corrupt", "no SIF");
}

#[test]
fn the_image_stays_the_one_that_was_opened() {
    if lacks(&[CORPUS]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("image.sif");
    fs::copy(corpus("apptainer/def-full.sif"), &path).expect("a copy");
    let image = image::open(path.as_os_str()).expect("a valid image");
    let inode = fs::metadata(&path).expect("there").ino();
    fs::remove_file(&path).and_then(|()| fs::write(&path, "other")).expect("exchanged");
    assert_ne!(fs::metadata(&path).map(|m| m.ino()).unwrap_or(0), 0);
    let fd = fs::File::from(image.fd().try_clone_to_owned().expect("a descriptor"));
    assert_eq!(fd.metadata().expect("open").ino(), inode);
    let read = lookup::read(image.root(), &ContainerPath::fixed("/.singularity.d/test"), 4096);
    assert!(read.expect("still readable").is_some());
}

/// Errors of the medium are no panic either: a directory cut from under a sandbox.
#[test]
fn a_sandbox_that_is_removed_is_empty() -> io::Result<()> {
    let scratch = Scratch::new();
    scratch.file("root/file", "x");
    let image = image::open(scratch.path().join("root").as_os_str()).expect("a directory");
    fs::remove_dir_all(scratch.path().join("root"))?;
    assert_eq!(image.root().lstat(&ContainerPath::fixed("/file")).expect("an answer"), None);
    Ok(())
}
