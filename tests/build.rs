//! `sifu build`: what it makes is read alike by every reader of SquashFS, and nothing else is left behind.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sifu::image;
use sifu::tree::{Body, Options, Owners, from_directory};
use starter::paths::HostPath;

use crate::need::{APPTAINER, BUSYBOX, FUSE, ORDINARY, ROOT, SQUASHFUSE, UNSQUASHFS, lacks};
use crate::support::{Scratch, find_program, sifu, static_busybox};

/// A directory with everything that an ordinary user can make and that images often get wrong.
fn odd_directory(scratch: &Scratch) -> PathBuf {
    let top = scratch.path().join("root");
    let write = |name: &str, content: &[u8]| fs::write(top.join(name), content).expect("a scratch file");
    for directory in ["bin", "etc", "many", "deep/er/and/deeper", "empty"] {
        fs::create_dir_all(top.join(directory)).expect("a scratch directory");
    }
    write("etc/name", b"odd\n");
    write("etc/nothing", b"");
    write("exactly one block", &[b'x'; 128 << 10]);
    write("a block and a byte", &[b'y'; (128 << 10) + 1]);
    write("name with\nnewline and \u{e9}", b"odd");
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| next_random(&mut state)).take(700_000).collect();
    write("noise", &noise);
    write("the same noise", &noise);
    for number in 0..2000 {
        write(&format!("many/a file with a long name, number {number}"), format!("{number}").as_bytes());
    }
    let sparse = fs::File::create(top.join("sparse")).expect("a scratch file");
    sparse.set_len(3_000_000).expect("a sparse file");
    sparse.write_all_at(b"in the middle", 1_500_000).expect("a sparse file");
    fs::hard_link(top.join("etc/name"), top.join("bin/second name")).expect("a hard link");
    symlink("../etc/name", top.join("bin/link")).expect("a symbolic link");
    symlink("/nowhere", top.join("dangling")).expect("a symbolic link");
    nix::unistd::mkfifo(&top.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).expect("a fifo");
    fs::set_permissions(top.join("bin"), fs::Permissions::from_mode(0o1775)).expect("a mode");
    top
}

fn next_random(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as u8
}

/// The lines of a directory's tree, as the image has it.
fn tree_of(directory: &Path) -> Vec<String> {
    let walked =
        from_directory(&HostPath::new(directory), &Options { owners: Owners::AllRoot, remembered: Default::default() })
            .expect("a tree");
    walked.tree.dump().expect("contents").lines().map(str::to_owned).collect()
}

#[track_caller]
fn check_same(expected: &[String], actual: &[String]) {
    for (expected, actual) in expected.iter().zip(actual) {
        assert_eq!(expected, actual);
    }
    assert_eq!(expected.len(), actual.len());
}

#[track_caller]
fn build(arguments: &[&str], directory: &Path) {
    let output = sifu(&[&["build"], arguments].concat()).current_dir(directory).run();
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""), "{output:?}");
    assert!(output.stderr.contains("Build complete"), "{output:?}");
}

#[track_caller]
fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let path = find_program(program).expect("a program that was asked for");
    let output = Command::new(path).args(arguments).current_dir(directory).stdin(Stdio::null()).output();
    let output = output.expect("a program that starts");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A mount that goes away with this.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: other processes of the machine look at new mounts for a moment.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

const COMPRESSORS: [&str; 7] = [
    "",
    "-comp gzip",
    "-comp zstd -Xcompression-level 1",
    "-comp lz4",
    "-comp xz",
    "-b 4K -noappend -comp gzip -Xcompression-level 1",
    "-b 1M -no-compression",
];

#[test]
fn our_reader_sees_in_the_image_what_the_directory_holds() {
    let scratch = Scratch::new();
    let expected = tree_of(&odd_directory(&scratch));
    for compressor in COMPRESSORS {
        build(&["-F", "--mksquashfs-args", compressor, "image.sif", "root"], scratch.path());
        let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
        let tree = image.partition().expect("a partition").clone().into_tree("image.sif").expect("a tree");
        check_same(&expected, &tree.dump().expect("contents").lines().map(str::to_owned).collect::<Vec<_>>());
    }
}

#[test]
fn unsquashfs_unpacks_from_the_image_what_the_directory_holds() {
    if lacks(&[UNSQUASHFS]) {
        return;
    }
    let scratch = Scratch::new();
    let expected = tree_of(&odd_directory(&scratch));
    for compressor in COMPRESSORS {
        build(&["-F", "--mksquashfs-args", compressor, "image.sif", "root"], scratch.path());
        let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
        let offset = image.facts.root.expect("a partition").offset_bytes.to_string();
        let arguments = ["-no-progress", "-quiet", "-force", "-dest", "unpacked", "-offset", &offset, "image.sif"];
        run("unsquashfs", &arguments, scratch.path());
        check_same(&expected, &tree_of(&scratch.path().join("unpacked")));
        fs::remove_dir_all(scratch.path().join("unpacked")).expect("a scratch directory");
    }
}

#[test]
fn the_kernel_mounts_what_the_directory_holds() {
    if lacks(&[ROOT]) {
        return;
    }
    let scratch = Scratch::new();
    let top = odd_directory(&scratch);
    let device = nix::sys::stat::makedev(12, 345);
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::sys::stat::mknod(&top.join("device"), nix::sys::stat::SFlag::S_IFCHR, mode, device).expect("a device");
    let expected = tree_of(&top);
    fs::create_dir(scratch.path().join("mounted")).expect("a scratch directory");
    for compressor in COMPRESSORS {
        build(&["-F", "--mksquashfs-args", compressor, "image.sif", "root"], scratch.path());
        let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
        let options = format!("loop,ro,offset={}", image.facts.root.expect("a partition").offset_bytes);
        let mount = find_program("mount").expect("mount");
        let mounted = Command::new(mount)
            .args(["-t", "squashfs", "-o", &options, "image.sif", "mounted"])
            .current_dir(scratch.path())
            .output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: needs a kernel that mounts SquashFS {compressor} from a loop device");
            continue;
        }
        let mounted = Mounted(scratch.path().join("mounted"));
        check_same(&expected, &tree_of(&mounted.0));
    }
}

#[test]
fn squashfuse_serves_what_the_directory_holds() {
    if lacks(&[SQUASHFUSE, FUSE, ROOT]) {
        return;
    }
    let scratch = Scratch::new();
    let expected = tree_of(&odd_directory(&scratch));
    fs::create_dir(scratch.path().join("served")).expect("a scratch directory");
    for compressor in COMPRESSORS {
        build(&["-F", "--mksquashfs-args", compressor, "image.sif", "root"], scratch.path());
        let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
        let options = format!("offset={}", image.facts.root.expect("a partition").offset_bytes);
        run("squashfuse", &["-o", &options, "image.sif", "served"], scratch.path());
        let served = Mounted(scratch.path().join("served"));
        // It counts names by itself, so that a second name of a file may look like a file of its own.
        let files = |lines: Vec<String>| -> Vec<String> { lines.into_iter().filter(|line| !is_linked(line)).collect() };
        check_same(&files(expected.clone()), &files(tree_of(&served.0)));
    }
}

/// Whether a line of a tree is of the file that has two names.
fn is_linked(line: &str) -> bool {
    line.starts_with("/bin/second") || line.starts_with("/etc/name ")
}

#[test]
fn the_kernel_shows_the_xattrs_and_owners_of_the_directory() {
    if lacks(&[ROOT]) {
        return;
    }
    let scratch = Scratch::new();
    let top = odd_directory(&scratch);
    let capability = ["-n", "security.capability", "-v", "0x0100000200040000000000000000000000000000", "etc/name"];
    let has_setfattr = find_program("setfattr").is_some();
    if has_setfattr {
        run("setfattr", &["-n", "user.origin", "-v", "here", "noise"], &top);
        run("setfattr", &capability, &top);
    } else {
        eprintln!("skipped in part: needs setfattr");
    }
    std::os::unix::fs::lchown(top.join("dangling"), Some(12), Some(70_000)).expect("an owner");
    let as_found = |directory: &Path| {
        let walked = from_directory(
            &HostPath::new(directory),
            &Options { owners: Owners::AsFound, remembered: Default::default() },
        )
        .expect("a tree");
        walked.tree.dump().expect("contents").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = as_found(&top);
    assert_eq!(expected.iter().any(|line| line.contains("user.origin")), has_setfattr);
    assert!(expected.iter().any(|line| line.contains("12:70000")));
    build(&["image.sif", "root"], scratch.path());
    let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
    let options = format!("loop,ro,offset={}", image.facts.root.expect("a partition").offset_bytes);
    fs::create_dir(scratch.path().join("mounted")).expect("a scratch directory");
    run("mount", &["-t", "squashfs", "-o", &options, "image.sif", "mounted"], scratch.path());
    let mounted = Mounted(scratch.path().join("mounted"));
    check_same(&expected, &as_found(&mounted.0));
}

#[test]
fn the_number_of_processors_and_the_time_of_day_change_no_byte() {
    let scratch = Scratch::new();
    odd_directory(&scratch);
    build(&["--jobs", "1", "one.sif", "root"], scratch.path());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    build(&["two.sif", "root"], scratch.path());
    let read = |name: &str| fs::read(scratch.path().join(name)).expect("an image");
    assert!(read("one.sif") == read("two.sif"));
    fs::write(scratch.path().join("root/etc/name"), "even\n").expect("a scratch file");
    build(&["three.sif", "root"], scratch.path());
    let id = |name: &str| read(name)[48..64].to_vec();
    assert_ne!(id("one.sif"), id("three.sif"), "another content is another image");
}

#[test]
fn a_file_of_holes_takes_neither_time_nor_room() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("root")).expect("a scratch directory");
    for name in ["one", "two"] {
        let file = fs::File::create(scratch.path().join("root").join(name)).expect("a scratch file");
        file.set_len(64 << 30).expect("a sparse file");
        file.write_all_at(b"in the middle", 32 << 30).expect("a sparse file");
    }
    // Reading this much would take longer than a test may.
    build(&["image.sif", "root"], scratch.path());
    assert!(fs::metadata(scratch.path().join("image.sif")).expect("an image").len() < 1 << 20);
    let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
    let tree = image.partition().expect("a partition").clone().into_tree("image.sif").expect("a tree");
    let file = tree.child(tree.root(), b"two").expect("the second file");
    let Body::File(content) = tree.inode(file).body else { panic!("a file") };
    let mut middle = [b'?'; 14];
    let mut reader = tree.open(content, (32 << 30) - 1).expect("content");
    std::io::Read::read_exact(&mut reader, &mut middle).expect("content");
    assert_eq!((content.size_bytes(), &middle), (64 << 30, b"\0in the middle"));
}

#[test]
fn an_image_and_its_files_are_no_newer_than_the_time_that_is_asked_for() {
    let scratch = Scratch::new();
    odd_directory(&scratch);
    let output =
        sifu(&["build", "image.sif", "root"]).current_dir(scratch.path()).env("SOURCE_DATE_EPOCH", "1000000000").run();
    assert_eq!(output.code, Some(0), "{output:?}");
    let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
    let tree = image.partition().expect("a partition").clone().into_tree("image.sif").expect("a tree");
    assert_eq!(tree.newest_mtime(), 1_000_000_000);
}

#[test]
fn a_sandbox_from_an_image_is_the_directory_again() {
    let scratch = Scratch::new();
    let expected = tree_of(&odd_directory(&scratch));
    build(&["image.sif", "root"], scratch.path());
    build(&["--sandbox", "again", "image.sif"], scratch.path());
    check_same(&expected, &tree_of(&scratch.path().join("again")));
    // An image packed from the image is the image.
    build(&["second.sif", "image.sif"], scratch.path());
    build(&["-s", "third", "second.sif"], scratch.path());
    check_same(&expected, &tree_of(&scratch.path().join("third")));
}

#[test]
fn an_image_that_is_there_stays_unless_force_is_given() {
    let scratch = Scratch::new();
    odd_directory(&scratch);
    let path = scratch.path().join("image.sif");
    fs::write(&path, "keep").expect("a scratch file");
    let output = sifu(&["build", "image.sif", "root"]).current_dir(scratch.path()).run();
    assert!(output.clean_failure().contains("build target image.sif already exists"), "{output:?}");
    assert_eq!((output.code, fs::read(&path).expect("the file").as_slice()), (Some(255), b"keep".as_slice()));
    build(&["--force", "image.sif", "root"], scratch.path());
    assert_eq!(fs::metadata(&path).expect("the image").mode() & 0o111, 0o111, "an image can be executed");
    assert_eq!(names(scratch.path()), ["image.sif", "root"]);
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[track_caller]
fn check_failure(arguments: &[&str], directory: &Path, expected: &str) {
    let before = names(directory);
    let output = sifu(&[&["build"], arguments].concat()).current_dir(directory).run();
    assert!(output.clean_failure().contains(expected), "{expected}: {output:?}");
    assert_eq!(output.code, Some(255));
    assert_eq!(names(directory), before, "a build that failed leaves nothing");
}

#[test]
fn what_can_not_be_built_is_one_clear_error() {
    let scratch = Scratch::new();
    odd_directory(&scratch);
    fs::write(scratch.path().join("new.def"), "Bootstrap: scratch\n%pots\n").expect("a scratch file");
    let directory = scratch.path();
    check_failure(&["image.sif", "nothing"], directory, "nothing");
    check_failure(&["no/image.sif", "root"], directory, "no:");
    check_failure(&["image.sif", "new.def"], directory, "new.def:2:2: no section is called `%pots`");
    check_failure(&["image.sif", "docker://debian"], directory, "docker");
    check_failure(&["-F", "root", "root"], directory, "is the directory that the image is made of");
    check_failure(&["--mksquashfs-args", "-comp lzo", "image.sif", "root"], directory, "lzo");
    check_failure(&[&"n".repeat(300), "root"], directory, "name too long");
}

/// Builds the odd directory into a file system of `size`: what the build says, and what it leaves.
fn build_into_small(size: &str) -> (String, Vec<String>) {
    let scratch = Scratch::new();
    let top = odd_directory(&scratch);
    let small = scratch.path().join("small");
    fs::create_dir(&small).expect("a scratch directory");
    run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", "small"], scratch.path());
    let mounted = Mounted(small);
    let output = sifu(&["build", "image.sif", &top.to_string_lossy()]).current_dir(&mounted.0).run();
    (output.clean_failure().to_owned(), names(&mounted.0))
}

#[test]
fn a_build_that_can_not_fit_is_refused_before_it_begins() {
    if lacks(&[ROOT]) {
        return;
    }
    let (text, left) = build_into_small("64k");
    assert!(text.contains("no room for image.sif") && !text.contains("Creating SIF file"), "{text}");
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_file_system_that_fills_is_one_clear_error_and_nothing_is_left() {
    if lacks(&[ROOT]) {
        return;
    }
    let (text, left) = build_into_small("700k");
    assert!(text.contains("no space left on device") && text.contains("Creating SIF file"), "{text}");
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_directory_that_can_not_be_written_is_one_clear_error() {
    if lacks(&[ROOT]) {
        return;
    }
    let scratch = Scratch::new();
    let top = odd_directory(&scratch);
    fs::create_dir(scratch.path().join("closed")).expect("a scratch directory");
    run("mount", &["-t", "tmpfs", "-o", "ro", "tmpfs", "closed"], scratch.path());
    let mounted = Mounted(scratch.path().join("closed"));
    let output = sifu(&["build", "image.sif", &top.to_string_lossy()]).current_dir(&mounted.0).run();
    let text = output.clean_failure();
    assert!(text.contains("read-only file system") && text.contains("hint: "), "{text}");
}

#[test]
fn a_build_that_is_killed_leaves_no_image_and_the_next_removes_what_it_left() {
    let scratch = Scratch::new();
    odd_directory(&scratch);
    let start = std::time::Instant::now();
    build(&["-F", "other.sif", "root"], scratch.path());
    let whole = start.elapsed();
    let mut left_something = 0;
    for round in 0..24 {
        let mut child = sifu(&["build", "image.sif", "root"])
            .current_dir(scratch.path())
            .command()
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sifu can be started");
        std::thread::sleep(whole * round / 20);
        child.kill().expect("a child can be killed");
        let ended = child.wait().expect("a child ends");
        let left = names(scratch.path());
        let image = scratch.path().join("image.sif");
        // One that was renamed is whole, whether the build could still say so or not.
        if ended.success() || image.exists() {
            assert!(image::open(image.as_os_str()).is_ok(), "round {round}");
            assert_eq!(fs::read(&image).ok(), fs::read(scratch.path().join("other.sif")).ok(), "round {round}");
            fs::remove_file(&image).expect("the image can be removed");
        }
        left_something += usize::from(left.iter().any(|name| name.starts_with('.')));
    }
    assert!(left_something > 0, "some build was killed in the middle");
    build(&["-F", "other.sif", "root"], scratch.path());
    assert_eq!(names(scratch.path()), ["other.sif", "root"]);
}

#[test]
fn an_ordinary_users_unreadable_file_is_named() {
    if lacks(&[ORDINARY]) {
        return;
    }
    let scratch = Scratch::new();
    let top = odd_directory(&scratch);
    fs::set_permissions(top.join("noise"), fs::Permissions::from_mode(0o000)).expect("a mode");
    check_failure(&["image.sif", "root"], scratch.path(), "root/noise: permission denied");
}

#[test]
fn apptainer_runs_what_was_built() {
    if lacks(&[APPTAINER, BUSYBOX, FUSE, ORDINARY]) {
        return;
    }
    let scratch = Scratch::new();
    let top = odd_directory(&scratch);
    fs::copy(static_busybox().expect("a busybox"), top.join("bin/busybox")).expect("a copy");
    symlink("busybox", top.join("bin/cat")).expect("a symbolic link");
    for compressor in COMPRESSORS {
        build(&["-F", "--mksquashfs-args", compressor, "image.sif", "root"], scratch.path());
        let said = run("apptainer", &["--silent", "exec", "image.sif", "/bin/cat", "/etc/name"], scratch.path());
        assert_eq!(said, "odd\n", "{compressor}");
    }
}
