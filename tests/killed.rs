//! A build that is killed, whatever it was doing: no target, no mount and no process are left, and its temporary data goes
//! with the next build beside it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::need::{BUSYBOX, FUSE, USERNS, lacks};
use crate::support::{Scratch, busybox_image, sifu, static_busybox, wait};

/// Moments of a build at which it is killed, at equal distances.
const MOMENTS: u32 = 12;
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves this machine's busybox by HTTP, slowly, for as long as the tests run. Its port.
fn slow_server() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let program = fs::read(static_busybox().expect("a busybox")).expect("a file");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", program.len());
            let mut sent = stream.write_all(head.as_bytes());
            for part in program.chunks(program.len() / 4) {
                // Whoever asked may be gone.
                sent = sent.and_then(|()| stream.write_all(part));
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    port
}

/// A definition whose build unpacks an image, fetches, copies, runs a section and packs.
fn definition(scratch: &Scratch, seconds: u32) {
    let noise: Vec<u8> = (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(scratch.path().join("noise"), noise).expect("a file");
    let text = format!(
        "Bootstrap: localimage\nFrom: {}\nStage: first\n\n%post\n    touch /made\n    chown 3:4 /made\n\n\
         Bootstrap: busybox\nMirrorURL: http://127.0.0.1:{}/busybox\n\n%files from first\n    /made\n%files\n    noise\n\
         %post\n    sleep {seconds} &\n    mkdir -m 000 /closed\n    chown 7:7 /closed /noise\n    sleep 0.1\n",
        busybox_image().display(),
        slow_server()
    );
    scratch.file("image.def", &text);
}

fn start(scratch: &Scratch) -> Child {
    let mut command = sifu(&["build", "--mksquashfs-args", "-comp xz", "image.sif", "image.def"])
        .current_dir(scratch.path())
        .command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().expect("sifu starts")
}

/// The processes that a build in `directory` started: they work there, or name it, or sleep this long.
fn processes(directory: &Path, seconds: u32) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let works_there = fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
        let is_ours = line.contains(&directory.display().to_string()) || line.ends_with(&format!("sleep {seconds} "));
        // A zombie has no command line: it waits to be waited for.
        if !line.is_empty() && (works_there || is_ours) {
            found.push(format!("{} {line}", process.file_name().to_string_lossy()));
        }
    }
    found
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_build_that_is_killed_at_any_moment_leaves_nothing_that_the_next_does_not_remove() {
    if lacks(&[USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let scratch = Scratch::new();
    // A command line that no other process has.
    let seconds = 200_000 + std::process::id();
    definition(&scratch, seconds);
    scratch.file("next.def", "Bootstrap: scratch\n");
    let begun = Instant::now();
    let whole = wait(&mut start(&scratch), PATIENCE).expect("the build ends");
    assert!(whole.success());
    let takes = begun.elapsed();
    fs::remove_file(scratch.path().join("image.sif")).expect("the image");
    let mut interrupted = 0;
    for moment in 0..MOMENTS {
        let all_at_once = moment % 2 == 0;
        let mut build = start(&scratch);
        let part = f64::from(moment) / f64::from(MOMENTS);
        std::thread::sleep(takes.mul_f64(part));
        let group = Pid::from_raw(build.id().cast_signed());
        match all_at_once {
            true => killpg(group, Signal::SIGKILL).expect("the build's processes can be killed"),
            false => build.kill().expect("the build can be killed"),
        }
        let status = build.wait().expect("the build ends");
        let at = format!("killed after {part:.2} of its time, all at once: {all_at_once}");
        let deadline = Instant::now() + PATIENCE;
        let mut left = processes(scratch.path(), seconds);
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            left = processes(scratch.path(), seconds);
        }
        assert_eq!(left, [""; 0], "{at}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains(&scratch.path().display().to_string()), "{at}: {mounts}");
        let target = scratch.path().join("image.sif");
        interrupted += u32::from(!status.success());
        if target.exists() {
            // It was faster than the one before: the image is whole.
            let run = sifu(&["exec", "image.sif", "cat", "/made"]).current_dir(scratch.path()).run();
            assert_eq!(run.code, Some(0), "{at}: {run:?}");
            fs::remove_file(&target).expect("the image");
        }
        let next = sifu(&["build", "--force", "next.sif", "next.def"]).current_dir(scratch.path()).run();
        assert_eq!(next.code, Some(0), "{at}: {next:?}");
        assert_eq!(names(scratch.path()), ["image.def", "next.def", "next.sif", "noise"], "{at}: {next:?}");
    }
    assert!(interrupted >= MOMENTS / 2, "builds were killed before they had ended: {interrupted}");
}
