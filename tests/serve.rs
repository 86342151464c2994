//! The image server over a real `/dev/fuse`: trees compared with what they were packed from, damaged images, signals,
//! and the end of its process.
//!
//! The server runs in a process that is forked for it, as the launcher does it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use sifu::serve::{Owner, ServeOptions, run, send_fuse};
use sifu::squashfs::{Reader, SquashfsError};

use crate::need::{CORPUS, FUSE, MKSQUASHFS, ROOT, lacks};
use crate::support::{Scratch, shared};

const MEMORY_LIMIT_KIB: u64 = 256 << 10;

/// A served image; unmounted when dropped.
struct Served {
    server: Pid,
    target: PathBuf,
    /// What it has of the memory of this process, which other tests fill while it is forked.
    inherited_kib: u64,
}

impl Served {
    /// Mounts and serves `image`; an error when it is refused.
    fn start(image: &Path, target: &Path) -> Result<Self, SquashfsError> {
        fs::create_dir_all(target).expect("a mount point");
        let (launcher, server) = fork_server(open(image)?);
        let inherited_kib = kib(server, "VmRSS:");
        let fuse = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", fuse.as_raw_fd());
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("sifu"), target, Some("fuse"), flags, Some(options.as_str())).expect("a mount");
        send_fuse(&launcher, 0, &fuse).expect("the descriptor is sent");
        Ok(Self { server, target: target.to_owned(), inherited_kib })
    }

    /// The most memory that it had of its own.
    fn memory_kib(&self) -> u64 {
        kib(self.server, "VmHWM:").saturating_sub(self.inherited_kib)
    }

    /// Unmounts it, and says how the server ended.
    fn unmount(self) -> WaitStatus {
        umount2(&self.target, MntFlags::MNT_DETACH).expect("unmounted");
        end_of(self.server)
    }
}

/// A line of a process's status, in KiB.
fn kib(process: Pid, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line about its memory");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = umount2(&self.target, MntFlags::MNT_DETACH);
        if matches!(waitpid(self.server, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)) {
            let _ = kill(self.server, Signal::SIGKILL);
            let _ = waitpid(self.server, None);
        }
    }
}

fn open(image: &Path) -> Result<Reader, SquashfsError> {
    let mut file = File::open(image).expect("an image");
    let length = file.metadata().expect("its length").len();
    let mut bytes = Vec::new();
    (&mut file).take(1 << 20).read_to_end(&mut bytes).expect("its start");
    let offset = (0..bytes.len()).step_by(4096).find(|&at| bytes[at..].starts_with(b"hsqs")).unwrap_or(0) as u64;
    Reader::open(file, offset, length - offset)
}

/// Starts a server as the launcher does; gives the launcher's end of the socket.
fn fork_server(reader: Reader) -> (UnixStream, Pid) {
    let (launcher, control) = UnixStream::pair().expect("a socket pair");
    let server = starter::sys::fork_child(|| {
        let options = ServeOptions { owner: Owner::Recorded, invented: Vec::new() };
        run(vec![(reader, options)], control.into(), None, None)
    });
    (launcher, Pid::from_raw(server.expect("a process")))
}

/// How a server ended, which it must soon.
fn end_of(server: Pid) -> WaitStatus {
    let start = Instant::now();
    loop {
        match waitpid(server, Some(WaitPidFlag::WNOHANG)).expect("a child") {
            WaitStatus::StillAlive if start.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            status => return status,
        }
    }
}

/// Everything about each entry of a tree but its inode number, by path.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut entries = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let status = fs::symlink_metadata(&path).expect("a status");
        let kind = status.file_type();
        let content = if kind.is_dir() {
            open.extend(fs::read_dir(&path).expect("a listing").map(|entry| entry.expect("an entry").path()));
            String::new()
        } else if kind.is_symlink() {
            fs::read_link(&path).expect("a target").to_string_lossy().into_owned()
        } else if kind.is_file() {
            digest(&path)
        } else {
            format!("device {}", status.rdev())
        };
        let size = if kind.is_dir() { 0 } else { status.len() };
        let xattrs = starter::sys::list_xattrs(&path).unwrap_or_default().escape_ascii().to_string();
        let line = format!(
            "{:o} {}:{} {} {} {size} {content} {xattrs}",
            status.mode(),
            status.uid(),
            status.gid(),
            status.mtime(),
            status.nlink()
        );
        entries.insert(path.strip_prefix(root).expect("below the root").to_owned(), line);
    }
    entries
}

fn digest(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    let mut file = File::open(path).expect("a file");
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).expect("content") {
            0 => return hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// A directory with one of everything that is read in a way of its own.
fn plant(root: &Path) {
    let write = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).expect("a file");
    fs::create_dir_all(root.join("many")).expect("a directory");
    for number in 0..2000 {
        write(&format!("many/{}{number}", "x".repeat(number % 150)), number.to_string().as_bytes());
    }
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(500_001)
    .collect();
    write("noise", &noise);
    write("blocks", &noise[..128 << 10]);
    write("text", "the same words again and again\n".repeat(30_000).as_bytes());
    write("empty", b"");
    let mut sparse = File::create(root.join("sparse")).expect("a file");
    sparse.set_len(20_000_000).expect("a hole");
    sparse.write_all(b"begins").expect("content");
    fs::hard_link(root.join("text"), root.join("other-name")).expect("a link");
    symlink("text", root.join("link")).expect("a link");
    symlink("a".repeat(4000), root.join("long-link")).expect("a link");
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    let deep = (0..40).fold(root.to_owned(), |path, depth| path.join(format!("level{depth}")));
    fs::create_dir_all(deep).expect("directories");
}

fn check(name: &str, options: &[&str]) {
    if lacks(&[ROOT, FUSE, MKSQUASHFS]) {
        return;
    }
    let folder = Scratch::new();
    let (source, image) = (folder.path().join("source"), folder.path().join("image"));
    plant(&source);
    let packed = Command::new("mksquashfs")
        .arg(&source)
        .arg(&image)
        .args(["-noappend", "-quiet", "-no-progress"])
        .args(options)
        .output();
    let packed = packed.expect("mksquashfs runs");
    assert!(packed.status.success(), "{name}: {}", String::from_utf8_lossy(&packed.stderr));
    let served = Served::start(&image, &folder.path().join("target")).expect("it is served");
    let (expected, found) = (describe(&source), describe(&served.target));
    for (path, line) in &expected {
        assert_eq!(found.get(path), Some(line), "{name}: {}", path.display());
    }
    assert_eq!(found.len(), expected.len(), "{name}");
    let server = served.server;
    assert_eq!(served.unmount(), WaitStatus::Exited(server, 0), "{name}");
}

#[test]
fn a_gzip_image_shows_what_was_packed() {
    check("gzip", &["-comp", "gzip"]);
}

#[test]
fn a_zstd_image_shows_what_was_packed() {
    check("zstd", &["-comp", "zstd", "-Xcompression-level", "3"]);
}

#[test]
fn an_xz_image_shows_what_was_packed() {
    check("xz", &["-comp", "xz"]);
}

#[test]
fn an_lzma_image_shows_what_was_packed() {
    check("lzma", &["-comp", "lzma"]);
}

#[test]
fn an_lzo_image_shows_what_was_packed() {
    check("lzo", &["-comp", "lzo"]);
}

#[test]
fn an_lz4_image_shows_what_was_packed() {
    check("lz4", &["-comp", "lz4", "-Xhc"]);
}

#[test]
fn blocks_of_any_size_are_read_with_and_without_fragments() {
    check("small blocks", &["-b", "4096", "-no-fragments"]);
    check("large blocks", &["-b", "1M", "-always-use-fragments", "-comp", "zstd", "-Xcompression-level", "1"]);
    check("nothing compressed", &["-noI", "-noD", "-noF", "-noX"]);
}

/// Reads all that can be read, for as long as the tree goes on.
fn read_what_can_be_read(root: &Path) {
    let mut open = vec![(root.to_owned(), 0)];
    while let Some((path, depth)) = open.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(status) = fs::symlink_metadata(&path) else { continue };
            let kind = status.file_type();
            if kind.is_dir() && depth < 20 {
                open.push((path, depth + 1));
            } else if kind.is_symlink() {
                let _ = fs::read_link(&path);
            } else if kind.is_file() && !kind.is_fifo() {
                let mut buffer = vec![0; 1 << 20];
                if let Ok(mut file) = File::open(&path) {
                    while matches!(file.read(&mut buffer), Ok(1..)) {}
                }
            }
        }
    }
}

#[test]
fn damaged_images_are_errors_and_never_the_end_of_the_server() {
    if lacks(&[ROOT, FUSE, CORPUS]) {
        return;
    }
    let folder = Scratch::new();
    let mut served_images = 0;
    for entry in fs::read_dir(shared().join("sif-corpus/corrupt")).expect("damaged images") {
        let image = entry.expect("an entry").path();
        let name = image.file_name().expect("a name").to_string_lossy().into_owned();
        if !name.starts_with("sqfs-") {
            continue;
        }
        let Ok(served) = Served::start(&image, &folder.path().join(&name)) else { continue };
        served_images += 1;
        read_what_can_be_read(&served.target);
        assert!(served.memory_kib() < MEMORY_LIMIT_KIB, "{name}: {} KiB", served.memory_kib());
        let server = served.server;
        assert_eq!(served.unmount(), WaitStatus::Exited(server, 0), "{name}");
    }
    assert!(served_images > 10, "only {served_images} images were served");
}

#[test]
fn signals_for_the_job_do_not_end_the_server() {
    if lacks(&[ROOT, FUSE, MKSQUASHFS]) {
        return;
    }
    let folder = Scratch::new();
    let (source, image) = (folder.path().join("source"), folder.path().join("image"));
    plant(&source);
    let packed = Command::new("mksquashfs")
        .arg(&source)
        .arg(&image)
        .args(["-noappend", "-quiet"])
        .output()
        .expect("mksquashfs runs");
    assert!(packed.status.success());
    let served = Served::start(&image, &folder.path().join("target")).expect("it is served");
    // The first answer comes after the server has blocked them.
    fs::metadata(&served.target).expect("an answer");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGXCPU, Signal::SIGQUIT] {
        kill(served.server, signal).expect("a signal");
    }
    assert_eq!(digest(&served.target.join("noise")), digest(&source.join("noise")));
    let process = PathBuf::from(format!("/proc/{}", served.server));
    assert_eq!(fs::read_to_string(process.join("comm")).expect("its name"), "sifu-serve\n");
    assert_eq!(fs::read_link(process.join("cwd")).expect("its directory"), Path::new("/"));
    for number in 0..3 {
        assert_eq!(fs::read_link(process.join(format!("fd/{number}"))).expect("a descriptor"), Path::new("/dev/null"));
    }
    let server = served.server;
    assert_eq!(served.unmount(), WaitStatus::Exited(server, 0));
}

#[test]
fn a_server_whose_launcher_goes_before_the_mount_ends() {
    if lacks(&[MKSQUASHFS]) {
        return;
    }
    let folder = Scratch::new();
    let image = folder.path().join("image");
    let source = folder.path().join("source");
    fs::create_dir(&source).expect("a directory");
    let packed = Command::new("mksquashfs").arg(&source).arg(&image).arg("-quiet").output().expect("mksquashfs runs");
    assert!(packed.status.success());
    let (launcher, server) = fork_server(open(&image).expect("a sound image"));
    drop(launcher);
    assert_eq!(end_of(server), WaitStatus::Exited(server, 0));
}
