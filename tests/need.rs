//! What a test needs of the machine, asked once.
//!
//! A test begins with `if lacks(&[USERNS, FUSE]) { return; }`. Where something is missing, one line says which and why,
//! past the test runner's capture. `SIFU_TEST_REQUIRE=userns,fuse` turns such a skip into a failure.

use std::collections::HashMap;
use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::support;

/// A condition that some tests have: its name in `SIFU_TEST_REQUIRE` and the question that answers it.
pub struct Need {
    pub name: &'static str,
    /// Says why the condition does not hold.
    ask: fn() -> Result<(), String>,
}

/// An ordinary user may make user namespaces.
pub const USERNS: Need = Need { name: "userns", ask: || succeeds("unshare", &["--user", "--map-root-user", "true"]) };
/// `/dev/fuse` may be opened.
pub const FUSE: Need = Need { name: "fuse", ask: can_open_fuse };
/// The user has a range of subordinate ids and the programs that map it.
pub const SUBUID: Need = Need { name: "subuid", ask: has_subordinate_ids };
/// The test runs as an ordinary user.
pub const ORDINARY: Need = Need { name: "ordinary", ask: || unless(is_root(), "this is root") };
/// A busybox that is linked with nothing, to make images of.
pub const BUSYBOX: Need = Need { name: "busybox", ask: || support::static_busybox().map(drop) };
/// The corpus of SIF files.
pub const CORPUS: Need = Need { name: "corpus", ask: || is_there(&support::shared().join("sif-corpus")) };
/// The sources of this repository, for tests that read them.
pub const SOURCES: Need = Need { name: "sources", ask: has_sources };
/// sifu was built, with the starter beside it.
pub const SIFU: Need = Need { name: "sifu", ask: || is_there(&support::sifu_path().with_file_name("starter")) };
/// That sifu needs no library of the host.
pub const STATIC: Need = Need { name: "static", ask: is_static };
/// The tools of SquashFS itself.
pub const UNSQUASHFS: Need = Need { name: "unsquashfs", ask: || has_program("unsquashfs") };
/// Another program that serves SquashFS.
pub const SQUASHFUSE: Need = Need { name: "squashfuse", ask: || has_program("squashfuse") };
/// The packer of SquashFS itself.
pub const MKSQUASHFS: Need = Need { name: "mksquashfs", ask: || has_program("mksquashfs") };
/// The programs that set extended attributes and capabilities of files.
pub const XATTR_TOOLS: Need =
    Need { name: "xattr-tools", ask: || ["setfattr", "setcap"].into_iter().try_for_each(has_program) };
/// The tools of a file system whose quotas need no more of the kernel than it.
pub const BTRFS: Need = Need { name: "btrfs", ask: || has_program("mkfs.btrfs").and_then(|()| has_program("btrfs")) };
/// An installed Apptainer, to run what sifu made.
pub const APPTAINER: Need = Need { name: "apptainer", ask: || has_program("apptainer") };
/// A C library that is not the host's, with its compiler.
pub const MUSL: Need = Need { name: "musl", ask: || has_program("musl-gcc") };
/// An interpreter that makes the system calls it is told to.
pub const PYTHON: Need = Need { name: "python", ask: || has_program("python3") };
/// Another OCI runtime.
pub const RUNC: Need = Need { name: "runc", ask: || has_program("runc") };
/// The programs that make and install RPM packages.
pub const DNF: Need =
    Need { name: "dnf", ask: || ["dnf", "rpmbuild", "createrepo_c"].into_iter().try_for_each(has_program) };
/// A program that signs, and the one that looks at signatures.
pub const GPG: Need = Need { name: "gpg", ask: || has_program("gpg").and_then(|()| has_program("gpgv")) };
/// A mirror of this machine's apt that answers.
pub const MIRROR: Need = Need { name: "mirror", ask: has_mirror };
/// The cluster that `setup/slurm` started.
pub const SLURM: Need = Need { name: "slurm", ask: has_cluster };
/// A registry, as Debian packs it, with what makes certificates for it.
pub const DOCKER_REGISTRY: Need = Need {
    name: "docker-registry",
    ask: || ["docker-registry", "openssl", "setpriv"].into_iter().try_for_each(has_program),
};
/// The program that copies images.
pub const SKOPEO: Need = Need { name: "skopeo", ask: || has_program("skopeo") };
/// The program that makes and unpacks images of layers.
pub const UMOCI: Need = Need { name: "umoci", ask: || has_program("umoci") };
/// Another runtime, with a daemon's socket.
pub const PODMAN: Need = Need { name: "podman", ask: || has_program("podman") };
/// Both families of MPI, with what compiles for them.
pub const MPI: Need = Need {
    name: "mpi",
    ask: || {
        ["mpirun.openmpi", "mpicc.openmpi", "mpirun.mpich", "mpicc.mpich", "cc"].into_iter().try_for_each(has_program)
    },
};
/// The rights to mount a file system.
pub const ROOT: Need = Need { name: "root", ask: || unless(!is_root(), "this is an ordinary user") };

/// Says whether one of `needs` is missing here, after telling which.
///
/// # Panics
/// When `SIFU_TEST_REQUIRE` names the missing one.
pub fn lacks(needs: &[Need]) -> bool {
    static ANSWERS: Mutex<Option<HashMap<&'static str, Result<(), String>>>> = Mutex::new(None);
    for need in needs {
        let answer = {
            let mut answers = ANSWERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            answers.get_or_insert_default().entry(need.name).or_insert_with(need.ask).clone()
        };
        let Err(why) = answer else { continue };
        let required = std::env::var("SIFU_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == need.name), "required here: {} ({why})", need.name);
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // `eprintln!` would be captured, and a skip that nobody sees looks like a pass.
        let _ = writeln!(std::io::stderr(), "{test} ... skipped: needs {} ({why})", need.name);
        return true;
    }
    false
}

fn unless(bad: bool, why: &str) -> Result<(), String> {
    if bad { Err(why.to_owned()) } else { Ok(()) }
}

fn has_program(name: &str) -> Result<(), String> {
    support::find_program(name).map(drop).ok_or_else(|| format!("no {name} on the search path"))
}

fn is_there(path: &Path) -> Result<(), String> {
    unless(!path.exists(), &format!("no {}", path.display()))
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn has_sources() -> Result<(), String> {
    unless(std::env::var_os("SIFU_TEST_ROOT").is_some(), "the tests run from a copy")?;
    is_there(&support::checkout().join("src/lib.rs"))
}

fn succeeds(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    match output {
        Err(error) => Err(format!("{program}: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Whether somebody listens where apt's packages come from.
fn has_mirror() -> Result<(), String> {
    let entries = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).chain(["/etc/apt/sources.list".into()]);
    let paths =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "list" || extension == "sources"));
    let text: String = paths.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let address = lines.flat_map(|line| line.split("http://").nth(1)).next().ok_or("apt has no mirror by http")?;
    let host = address.split(['/', ' ']).next().unwrap_or_default().to_owned();
    let host = if host.contains(':') { host } else { format!("{host}:80") };
    let addresses = host.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut answers = addresses.map(|address| TcpStream::connect_timeout(&address, Duration::from_secs(3)));
    unless(!answers.any(|answer| answer.is_ok()), "the mirror of apt does not answer")
}

fn is_static() -> Result<(), String> {
    let path = support::sifu_path();
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let elf = goblin::elf::Elf::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    unless(!elf.libraries.is_empty(), "this sifu is linked with the host's C library")
}

fn has_cluster() -> Result<(), String> {
    let configuration = support::slurm_configuration().ok_or("SIFU_TEST_SLURM names no slurm.conf of a cluster")?;
    is_there(&configuration)?;
    has_program("sbatch")?;
    let ping = Command::new("scontrol").arg("ping").env("SLURM_CONF", configuration).output();
    let answer = ping.map_err(|error| format!("scontrol: {error}"))?;
    unless(!answer.status.success(), String::from_utf8_lossy(&answer.stdout).trim())
}

fn can_open_fuse() -> Result<(), String> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.map(drop).map_err(|error| format!("/dev/fuse: {error}"))
}

fn has_subordinate_ids() -> Result<(), String> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().ok_or("no passwd entry")?;
    for table in ["/etc/subuid", "/etc/subgid"] {
        let text = std::fs::read_to_string(table).map_err(|error| format!("{table}: {error}"))?;
        let own = [user.name.clone(), user.uid.to_string()];
        let listed = text.lines().any(|line| own.iter().any(|name| line.split(':').next() == Some(name)));
        unless(!listed, &format!("{} is not in {table}", user.name))?;
    }
    for program in ["newuidmap", "newgidmap"] {
        unless(support::find_program(program).is_none(), &format!("no {program}"))?;
    }
    Ok(())
}
