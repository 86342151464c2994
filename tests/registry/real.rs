//! A real registry on the loopback, in the open or with TLS and passwords, and images in it.

use crate::support::{Scratch, Sifu, busybox_root, find_program, sifu};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const NAME: &str = "ada";
pub const PASSWORD: &str = "hunter2 & more";
/// The password above as bcrypt has it, which is all that the registry takes.
const HTPASSWD: &str = "ada:$2y$05$UXHs/IoVOms4tRTgy7tny.2kvRwJ6BVgD76mFupu4apQJdFY4iIuS\n";

/// Who may use a registry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guard {
    Nobody,
    Password,
    /// TLS, and a certificate of the client's by the same authority.
    Certificate,
}

/// A running registry; it ends with the test.
pub struct Registry {
    pub host: String,
    guard: Guard,
    /// Its files; those of the test may lie here too.
    pub scratch: Scratch,
    server: Child,
}

impl Registry {
    /// One that anybody may use, without TLS.
    pub fn open() -> Self {
        Self::start(Guard::Nobody)
    }

    /// One with TLS, whose certificate nobody knows, and a password.
    pub fn guarded() -> Self {
        Self::start(Guard::Password)
    }

    /// One with TLS, which talks to those alone who have a certificate, as in [`Self::certificates`].
    pub fn for_certified() -> Self {
        Self::start(Guard::Certificate)
    }

    fn start(guard: Guard) -> Self {
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name);
        if guard != Guard::Nobody {
            make_certificates(&path("tls"));
            std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
        }
        for _ in 0..10 {
            // Another process may take the port in between.
            let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            let mut config = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: {host}\n",
                path("data").display()
            );
            let tls = path("tls").display().to_string();
            config += &match guard {
                Guard::Nobody => String::new(),
                Guard::Password => format!(
                    "  tls: {{certificate: {tls}/server.crt, key: {tls}/server.key}}\n\
                     auth:\n  htpasswd: {{realm: test, path: {}}}\n",
                    path("htpasswd").display()
                ),
                Guard::Certificate => format!(
                    "  tls: {{certificate: {tls}/server.crt, key: {tls}/server.key, clientcas: [{tls}/ca.crt]}}\n"
                ),
            };
            std::fs::write(path("config.yml"), config).unwrap();
            let log = std::fs::File::create(path("log")).unwrap();
            // A killed test leaves no registry behind.
            let mut server = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
                .arg(path("config.yml"))
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            let end = Instant::now() + Duration::from_secs(20);
            while server.try_wait().unwrap().is_none() && Instant::now() < end {
                if TcpStream::connect(&host).is_ok() {
                    return Self { host, guard, scratch, server };
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = server.kill();
            let _ = server.wait();
        }
        panic!("docker-registry starts: {}", std::fs::read_to_string(path("log")).unwrap_or_default());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The certificate by which the registry's own is trusted.
    pub fn authority(&self) -> PathBuf {
        self.path("tls/ca.crt")
    }

    /// A directory of what a client may have: `ca.crt`, `client.cert` and `client.key`.
    pub fn certificates(&self) -> PathBuf {
        self.path("tls/client")
    }

    /// A call of sifu whose home and cache are the test's own.
    pub fn sifu<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Sifu {
        let home = self.path("home");
        std::fs::create_dir_all(&home).unwrap();
        sifu(arguments).env("HOME", home).current_dir(self.scratch.path())
    }

    /// Copies the image `name` of the layout to the registry, under the same name.
    pub fn fill(&self, layout: &Layout, name: &str) {
        let mut copy = skopeo();
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        match self.guard {
            Guard::Nobody => {}
            Guard::Password => drop(copy.arg(format!("--dest-creds={NAME}:{PASSWORD}"))),
            Guard::Certificate => drop(copy.arg("--dest-cert-dir").arg(self.certificates())),
        }
        copy.arg(format!("oci:{}:{name}", layout.path.display())).arg(format!("docker://{}/{name}:latest", self.host));
        succeeds(&mut copy);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// An authority and what it signed: for the registry, and for one client.
fn make_certificates(directory: &Path) {
    std::fs::create_dir_all(directory.join("client")).unwrap();
    let openssl = |words: &str| {
        succeeds(Command::new("openssl").args(words.split(' ')).current_dir(directory));
    };
    std::fs::write(directory.join("server.ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    std::fs::write(directory.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=authority",
    );
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=127.0.0.1",
    );
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile server.ext",
    );
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout client/client.key -out client.csr -subj /CN=ada",
    );
    openssl(
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out client/client.cert -days 2 -extfile client.ext",
    );
    std::fs::copy(directory.join("ca.crt"), directory.join("client/ca.crt")).unwrap();
}

/// An OCI layout, which umoci fills.
pub struct Layout {
    path: PathBuf,
}

impl Layout {
    pub fn new(path: PathBuf) -> Self {
        succeeds(Command::new("umoci").args(["init", "--layout"]).arg(&path));
        Self { path }
    }

    /// One that is there.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// One whose image `name` has these layers, tar streams as they are.
    pub fn of_layers(path: PathBuf, name: &str, layers: &[Vec<u8>]) -> Self {
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let blob = |media_type: &str, bytes: &[u8]| {
            let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            std::fs::write(blobs.join(&hex), bytes).unwrap();
            json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
        };
        let layers: Vec<Value> =
            layers.iter().map(|layer| blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        let mut manifest = blob(MANIFEST, manifest.to_string().as_bytes());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        std::fs::write(path.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        std::fs::write(path.join("index.json"), index.to_string()).unwrap();
        Self { path }
    }

    fn reference(&self, name: &str) -> String {
        format!("{}:{name}", self.path.display())
    }

    /// Begins an image without layers.
    pub fn image(&self, name: &str) {
        succeeds(Command::new("umoci").args(["new", "--image", &self.reference(name)]));
    }

    /// A layer more: `words` are those of `umoci insert`.
    pub fn insert<A: AsRef<OsStr>>(&self, name: &str, words: &[A]) {
        let mut insert = Command::new("umoci");
        insert.args(["insert", "--image", &self.reference(name)]);
        if !crate::need::is_root() {
            insert.arg("--rootless");
        }
        succeeds(insert.args(words));
    }

    /// Changes the configuration: `words` are those of `umoci config`.
    pub fn configure(&self, name: &str, words: &[&str]) {
        succeeds(Command::new("umoci").args(["config", "--image", &self.reference(name)]).args(words));
    }

    /// Copies an image to where skopeo knows to.
    pub fn copy(&self, name: &str, to: &str) {
        let mut copy = skopeo();
        copy.args(["--insecure-policy", "copy", "--quiet"]).arg(format!("oci:{}", self.reference(name))).arg(to);
        succeeds(&mut copy);
    }

    /// Unpacks an image as umoci does it: the directory of the root.
    pub fn unpack(&self, name: &str, to: &Path) -> PathBuf {
        self.try_unpack(name, to).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same for an image that umoci may refuse: then it is what it says.
    pub fn try_unpack(&self, name: &str, to: &Path) -> Result<PathBuf, String> {
        let output = Command::new("umoci").args(["unpack", "--image", &self.reference(name)]).arg(to).output().unwrap();
        match output.status.success() {
            true => Ok(to.join("rootfs")),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// An image of busybox that says `hello` and its arguments.
    pub fn busybox(path: PathBuf, root: &Path) -> Self {
        busybox_root(root);
        let layout = Self::new(path);
        layout.image("box");
        layout.insert("box", &[root.as_os_str(), OsStr::new("/")]);
        layout.configure(
            "box",
            &[
                "--config.entrypoint=/bin/echo",
                "--config.entrypoint=hello",
                "--config.cmd=world",
                "--config.env=PATH=/bin",
                "--config.env=COLOUR=green",
                "--config.label=who=ada",
                "--config.workingdir=/tmp",
            ],
        );
        layout
    }
}

/// skopeo, which looks for credentials in the session's directory; without one it looks in a directory of root's, where another
/// user's look is refused.
pub fn skopeo() -> Command {
    let mut skopeo = Command::new("skopeo");
    skopeo.env("XDG_RUNTIME_DIR", "/nonexistent");
    skopeo
}

/// Runs a program of the test's own.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}{stderr}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Podman with a storage of the test's own.
pub fn podman(scratch: &Path) -> Command {
    let mut podman = Command::new(find_program("podman").expect("the test asked for PODMAN"));
    let at = |name: &str| scratch.join(name);
    podman.arg("--root").arg(at("podman")).arg("--runroot").arg(at("podman-run")).args(["--storage-driver", "vfs"]);
    // Where the machine's own default does not start: in containers, with mixed control groups.
    podman.args(["--cgroup-manager", "cgroupfs"]);
    if find_program("runc").is_some() {
        podman.args(["--runtime", "runc"]);
    }
    podman
}

/// Runs a container with Podman.
pub fn podman_run(scratch: &Path, words: &[&str]) -> Command {
    let mut run = podman(scratch);
    run.args(["run", "--rm", "--network", "none", "--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000"]);
    run.args(words);
    run
}
