//! `docker-daemon:`: images of a daemon, which is Podman's here.

use super::push::dump_of_image;
use super::real::{Layout, podman, succeeds};
use crate::need::{BUSYBOX, FUSE, PODMAN, ROOT, SIFU, SKOPEO, UMOCI, USERNS, lacks};
use crate::support::{Scratch, Sifu, sifu};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Podman's API at a socket, with one image: `localhost/team/box:1`.
struct Daemon {
    scratch: Scratch,
    host: String,
    server: Child,
}

impl Daemon {
    fn start() -> Self {
        let scratch = Scratch::new();
        let layout = Layout::busybox(scratch.path().join("layout"), &scratch.path().join("root"));
        let layer = scratch.file("more/etc/more", "more");
        layout.insert("box", &[layer.as_os_str(), OsStr::new("/etc/more")]);
        let archive = scratch.path().join("box.tar");
        layout.copy("box", &format!("docker-archive:{}:localhost/team/box:1", archive.display()));
        succeeds(podman(scratch.path()).args(["load", "--quiet", "--input"]).arg(&archive));
        let socket = scratch.path().join("podman.sock");
        let host = format!("unix://{}", socket.display());
        let mut service = podman(scratch.path());
        service.args(["system", "service", "--time=0", &host]);
        let server = service.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < end, "podman listens at its socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { scratch, host, server }
    }

    fn sifu<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Sifu {
        sifu(arguments).env("HOME", self.scratch.path()).current_dir(self.scratch.path())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn images_of_a_daemon_are_run_pulled_and_built_from() {
    if lacks(&[SIFU, ROOT, USERNS, FUSE, BUSYBOX, SKOPEO, UMOCI, PODMAN]) {
        return;
    }
    let daemon = Daemon::start();
    let of_variable = |words: &[&str]| daemon.sifu(words).env("DOCKER_HOST", &daemon.host).run();
    let pulled = of_variable(&["pull", "docker-daemon://localhost/team/box:1"]);
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(daemon.scratch.path().join("box_1.sif").exists());
    // The second time it comes from the cache, and the daemon is asked for no more than the name.
    let ran = of_variable(&["run", "docker-daemon:localhost/team/box:1", "you"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "hello you\n"), "{ran:?}");
    assert!(ran.stderr.contains("Using cached SIF image"), "{ran:?}");
    let by_flag = daemon.sifu(&[
        "exec",
        "--docker-host",
        &daemon.host,
        "--disable-cache",
        "docker-daemon:team/box:1",
        "cat",
        "/etc/more",
    ]);
    assert_eq!(by_flag.run().stdout, "more");
    let built = of_variable(&["build", "built.sif", "docker-daemon:localhost/team/box:1"]);
    assert_eq!(built.code, Some(0), "{built:?}");
    let dumps = ["box_1.sif", "built.sif"].map(|name| dump_of_image(&daemon.scratch.path().join(name)));
    assert!(dumps[0] == dumps[1] && dumps[0].contains("/etc/more"));
    daemon
        .scratch
        .file("agent.def", "Bootstrap: docker-daemon\nFrom: localhost/team/box:1\n%runscript\ncat /etc/more\n");
    assert_eq!(of_variable(&["build", "agent.sif", "agent.def"]).code, Some(0));
    assert_eq!(daemon.sifu(&["run", "agent.sif"]).run().stdout, "more");
    let missing = of_variable(&["pull", "docker-daemon:nosuch:1"]);
    assert!(missing.clean_failure().contains("holds no image `nosuch:1`"), "{missing:?}");
}

#[test]
fn a_daemon_is_asked_by_tcp_too() {
    if lacks(&[SIFU, ROOT, USERNS, FUSE, BUSYBOX, SKOPEO, UMOCI, PODMAN]) {
        return;
    }
    let daemon = Daemon::start();
    let host = forward_to(&daemon.scratch.path().join("podman.sock"));
    let call = |words: &[&str]| daemon.sifu(words).env("DOCKER_HOST", &host).run();
    let ran = call(&["exec", "docker-daemon:team/box:1", "cat", "/etc/more"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "more"), "{ran:?}");
    let pulled = call(&["pull", "--disable-cache", "docker-daemon:localhost/team/box:1"]);
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(dump_of_image(&daemon.scratch.path().join("box_1.sif")).contains("/etc/more"));
    let missing = call(&["pull", "docker-daemon:nosuch:1"]);
    assert!(missing.clean_failure().contains(&format!("the daemon at {host} holds no image")), "{missing:?}");
}

/// Hands connections to a port of the loopback on to a socket: the port's address.
fn forward_to(socket: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = format!("tcp://{}", listener.local_addr().unwrap());
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // The daemon goes before this thread does, when the test ends.
            let Ok(daemon) = UnixStream::connect(&socket) else { return };
            let (from_client, to_client) = (client.try_clone().unwrap(), client);
            let (from_daemon, to_daemon) = (daemon.try_clone().unwrap(), daemon);
            let copy = |mut from: Box<dyn Read + Send>, mut to: Box<dyn Write + Send>| {
                std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
            };
            copy(Box::new(from_client), Box::new(to_daemon));
            copy(Box::new(from_daemon), Box::new(to_client));
        }
    });
    host
}

#[test]
fn where_no_daemon_is_the_error_says_what_was_tried() {
    if lacks(&[SIFU]) {
        return;
    }
    let scratch = Scratch::new();
    let host = format!("unix://{}/none.sock", scratch.path().display());
    let pulled = sifu(&["pull", "--docker-host", &host, "docker-daemon:box"]).current_dir(scratch.path()).run();
    assert!(pulled.clean_failure().contains("none.sock: no such file or directory"), "{pulled:?}");
    let pulled =
        sifu(&["pull", "docker-daemon:box"]).env("DOCKER_HOST", "ssh://host").current_dir(scratch.path()).run();
    assert!(pulled.clean_failure().contains("docker save"), "{pulled:?}");
}
