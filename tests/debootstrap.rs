//! `Bootstrap: debootstrap`: what is believed of an archive, and a Debian of real packages.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sifu::image;
use sifu::oci::digest::Digest;

use crate::need::{FUSE, GPG, MIRROR, ROOT, USERNS, lacks};
use crate::support::{Output, Scratch, sifu};

/// An archive of one package, in files. What is wrong with it, a test does.
struct Archive {
    scratch: Scratch,
}

const PACKAGES: &str = "dists/bookworm/main/binary-amd64/Packages";

impl Archive {
    fn new() -> Self {
        let archive = Self { scratch: Scratch::new() };
        fs::create_dir_all(archive.path(PACKAGES).parent().expect("a parent")).expect("a scratch directory");
        archive.list(&package("base-files", "Priority: required\nDepends: missing\n"));
        archive
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.scratch.path().join(name)
    }

    /// Writes the index, and a release file that knows it.
    fn list(&self, packages: &str) {
        fs::write(self.path(PACKAGES), packages).expect("an index");
        let architectures = ["amd64", "arm64"].map(|name| {
            let name = format!("main/binary-{name}/Packages");
            format!(" {} {} {name}\n", Digest::of(packages.as_bytes()).hex(), packages.len())
        });
        let release = format!(
            "Origin: Test\nSuite: stable\nCodename: bookworm\nDate: Sat, 17 May 2025 09:20:01 UTC\nSHA256:\n{}",
            architectures.concat()
        );
        fs::write(self.path("dists/bookworm/Release"), release).expect("a release file");
    }

    /// Builds from the archive, with these options before its address.
    fn build(&self, options: &str, header: &str) -> Output {
        let mirror = self.scratch.path().display();
        let text =
            format!("Bootstrap: debootstrap\nOSVersion: bookworm\nMirrorURL: {options} file://{mirror}\n{header}\n");
        let definition = self.scratch.file("image.def", &text);
        let definition = definition.display().to_string();
        sifu(&["build", "image.sif", &definition]).current_dir(self.scratch.path()).run()
    }

    #[track_caller]
    fn fails(&self, options: &str, header: &str, expected: &str) {
        let output = self.build(options, header);
        let said = output.clean_failure();
        assert!(said.contains(expected), "{said}");
        let left = fs::read_dir(self.scratch.path()).expect("a directory").flatten().map(|entry| entry.file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().contains(".sifu-")), "nothing is left behind");
    }
}

fn package(name: &str, rest: &str) -> String {
    let hex = Digest::of(b"other").hex().to_owned();
    format!(
        "Package: {name}\nVersion: 1\nArchitecture: all\nFilename: pool/{name}.deb\nSize: 5\nSHA256: {hex}\n{rest}\n"
    )
}

#[test]
fn an_archive_without_a_signature_is_believed_only_when_told_to() {
    if lacks(&[GPG]) {
        return;
    }
    let archive = Archive::new();
    let key = archive.path("key.gpg");
    fs::write(&key, b"\x99").expect("a file");
    archive.fails(&format!("[signed-by={}]", key.display()), "", "it has no signature");
    archive.fails("[trusted=yes]", "", "the archive has no packages that make a system");
}

#[test]
fn a_signature_counts_by_its_key_and_for_its_text() {
    if lacks(&[GPG]) {
        return;
    }
    let archive = Archive::new();
    let home = archive.path("home");
    fs::create_dir(&home).expect("a scratch directory");
    fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("its mode");
    let gpg = |arguments: &[&str]| {
        let mut command = Command::new("gpg");
        command.args(["--homedir", &home.display().to_string(), "--batch", "--quiet", "--pinentry-mode", "loopback"]);
        let output = command.args(["--passphrase", ""]).args(arguments).stdin(Stdio::null()).output();
        let output = output.expect("gpg");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let path = |name: &str| archive.path(name).display().to_string();
    for name in ["ours", "other"] {
        gpg(&["--quick-gen-key", name, "ed25519", "sign", "never"]);
        gpg(&["--armor", "--output", &path(&format!("{name}.asc")), "--export", &format!("={name}")]);
    }
    let (ours, other) = (format!("[signed-by={}]", path("ours.asc")), format!("[signed-by={}]", path("other.asc")));
    let accepted = "the archive has no packages that make a system";
    let (release, inside) = (path("dists/bookworm/Release"), path("dists/bookworm/InRelease"));
    gpg(&["-u", "ours", "--armor", "--output", &format!("{release}.gpg"), "--detach-sign", &release]);
    archive.fails(&ours, "", accepted);
    archive.fails(&other, "", "no key that is trusted for it made the signature");
    gpg(&["-u", "ours", "--output", &inside, "--clear-sign", &release]);
    archive.fails(&ours, "", accepted);
    archive.fails(&other, "", "no key that is trusted for it made the signature");
    let signed = fs::read_to_string(&inside).expect("a release file");
    fs::write(&inside, signed.replace("Origin: Test", "Origin: Else")).expect("a release file");
    archive.fails(&ours, "", "the signature is wrong");
    // What stands around the signed text does not count.
    fs::write(&inside, format!("SHA256:\n 00 1 x\n\n{signed}")).expect("a release file");
    archive.fails(&ours, "", accepted);
    // The agent of gpg ends with its directory.
    let _ = Command::new("gpgconf").args(["--homedir", &home.display().to_string(), "--kill", "all"]).status();
}

#[test]
fn what_is_not_what_was_promised_is_refused() {
    let archive = Archive::new();
    let system = package("base-files", "Priority: required\n") + &package("dpkg", "Essential: yes\n");
    archive.list(&system);
    archive.fails("[trusted=yes]", "Include: nonsense", "no package is called `nonsense`");
    archive.fails("[trusted=yes]", "", "pool/base-files.deb is not there");
    fs::create_dir(archive.path("pool")).expect("a scratch directory");
    for name in ["base-files", "dpkg"] {
        fs::write(archive.path(&format!("pool/{name}.deb")), "OTHER").expect("a package");
    }
    archive.fails("[trusted=yes]", "", "is not what was promised: its digest is sha256:");
    for name in ["base-files", "dpkg"] {
        fs::write(archive.path(&format!("pool/{name}.deb")), "other").expect("a package");
    }
    archive.fails("[trusted=yes]", "", "it is no Debian package: it ends too early");
    fs::write(archive.path(PACKAGES), system.replace("base-files", "BASE-files")).expect("an index");
    archive.fails("[trusted=yes]", "", "Packages is not what was promised");
}

#[test]
fn a_header_that_leads_nowhere_is_an_error() {
    let archive = Archive::new();
    archive.fails("[trusted=yes", "", "is no address of a mirror: a bracket that is not closed");
    archive.fails("[trusted=yes]", "Include: a;b", "`a;b` in `Include:` is no name of a package");
    archive.fails("[trusted=yes]", "OSVersion: ../x", "`../x` names no suite of Debian");
    archive.fails("[trusted=yes]", "OSVersion: trixie", "dists/trixie/Release is not there");
    fs::rename(archive.path("dists/bookworm"), archive.path("dists/trixie")).expect("a suite of another name");
    archive.fails("[trusted=yes]", "OSVersion: trixie", "is of the suite bookworm, and not of trixie");
}

/// The line of an image's dump about a file.
fn line_of(image: &Path, name: &str) -> String {
    let image = image::open(image.as_os_str()).expect("an image");
    let tree = image.partition().expect("a partition").clone().into_tree("image.sif").expect("a tree");
    let dump = tree.dump().expect("contents");
    dump.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default().to_owned()
}

/// As root alone: it takes longer than others.
#[test]
fn two_stages_can_be_made_of_packages() {
    if lacks(&[ROOT, FUSE, MIRROR]) {
        return;
    }
    let scratch = Scratch::new();
    let header = "Bootstrap: debootstrap\nOSVersion: bookworm\n";
    let text = format!("{header}Stage: one\n%post\n    echo made > /made\n\n{header}%files from one\n    /made\n");
    scratch.file("debian.def", &text);
    let build = sifu(&["build", "--sandbox", "box", "debian.def"]).current_dir(scratch.path());
    let output = build.limit(Duration::from_secs(600)).run();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(fs::read_to_string(scratch.path().join("box/made")).expect("a file"), "made\n");
}

#[test]
fn a_debian_is_made_of_packages_with_their_owners() {
    if lacks(&[USERNS, FUSE, MIRROR]) {
        return;
    }
    let scratch = Scratch::new();
    let text = "Bootstrap: debootstrap\nOSVersion: bookworm\nInclude: ca-certificates\n\n%post\n    dpkg --audit\n    dpkg -V\n";
    scratch.file("debian.def", text);
    let build = sifu(&["build", "debian.sif", "debian.def"]).current_dir(scratch.path());
    let output = build.limit(Duration::from_secs(600)).run();
    assert_eq!(output.code, Some(0), "{output:?}");
    let says = |command: &[&str]| {
        let words = [&["exec", "debian.sif"], command].concat();
        let output = sifu(&words).current_dir(scratch.path()).run();
        assert_eq!(output.code, Some(0), "{output:?}");
        output.stdout
    };
    assert!(says(&["cat", "/etc/debian_version"]).starts_with("12."));
    // What was wanted stays; what only came along can go with it.
    assert_eq!(says(&["apt-mark", "showauto"]), "libssl3\nopenssl\n");
    let image = scratch.path().join("debian.sif");
    for (name, expected) in [
        ("/etc/shadow", "/etc/shadow file 0640 0:42"),
        ("/usr/bin/chage", "/usr/bin/chage file 2755 0:42"),
        ("/usr/bin/su", "/usr/bin/su file 4755 0:0"),
        ("/var/mail", "/var/mail directory 2775 0:8"),
        ("/bin", "/bin symlink 0777 0:0"),
    ] {
        let line = line_of(&image, name);
        assert!(line.starts_with(expected), "{line}, expected {expected}");
    }
    for name in ["/usr/sbin/policy-rc.d", "/var/log/dpkg.log", "/.install.script"] {
        assert_eq!(line_of(&image, name), "");
    }
}
