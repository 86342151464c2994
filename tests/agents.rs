//! Bootstrap agents that fetch one program, or have a program of this machine do the work.

use std::fs;
use std::process::Command;

use crate::need::{BUSYBOX, DNF, FUSE, USERNS, lacks};
use crate::support::{Output, Scratch, sifu, static_busybox};

fn build(scratch: &Scratch, definition: &str) -> Output {
    scratch.file("image.def", definition);
    sifu(&["build", "image.sif", "image.def"]).current_dir(scratch.path()).run()
}

#[track_caller]
fn fails(definition: &str, expected: &str) {
    let scratch = Scratch::new();
    let output = build(&scratch, definition);
    let said = output.clean_failure();
    assert!(said.contains(expected), "{said}");
    assert_eq!(fs::read_dir(scratch.path()).expect("a directory").count(), 1, "nothing is left behind");
}

#[test]
fn a_header_lacks_what_its_agent_needs() {
    for agent in ["dnf", "yum", "zypper", "busybox"] {
        let expected = format!("the bootstrap agent `{agent}` needs `MirrorURL:` in the header");
        fails(&format!("Bootstrap: {agent}\n"), &expected);
    }
    fails("Bootstrap: yum\nMirrorURL: http://h.example/%{OSVERSION}\n", "needs `OSVersion:` in the header");
    fails("Bootstrap: arch\nConfURL: http://h.example\n", "a file of this machine is expected");
}

#[test]
fn a_program_that_is_missing_is_named_with_its_package() {
    let scratch = Scratch::new();
    if ["/usr/bin/zypper", "/usr/sbin/zypper"].iter().any(|path| fs::exists(path).unwrap_or(false)) {
        println!("skipped: needs a machine without zypper");
        return;
    }
    let output = build(&scratch, "Bootstrap: zypper\nMirrorURL: http://h.example/\n");
    let said = output.clean_failure();
    assert!(said.contains("needs the program `zypper`, which is not there"), "{said}");
    assert!(said.contains("apt install zypper"), "{said}");
}

#[test]
fn a_busybox_is_all_that_an_image_needs() {
    if lacks(&[USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let scratch = Scratch::new();
    let busybox = static_busybox().expect("a busybox");
    let definition = format!("Bootstrap: busybox\nMirrorURL: file://{}\n%post\nls / > /seen\n", busybox.display());
    let output = build(&scratch, &definition);
    assert_eq!(output.code, Some(0), "{output:?}");
    let output = sifu(&["exec", "image.sif", "head", "-n", "1", "/seen"]).current_dir(scratch.path()).run();
    assert_eq!(output.quiet_success(), "bin");
}

#[test]
fn what_is_no_program_is_no_busybox() {
    let scratch = Scratch::new();
    let text = scratch.file("page.html", "<html>");
    fails(&format!("Bootstrap: busybox\nMirrorURL: file://{}\n", text.display()), "what is there is no program");
    fails("Bootstrap: busybox\nMirrorURL: file:///nonexistent/busybox\n", "/nonexistent/busybox is not there");
}

/// Specifications of the two packages that every such root has.
const RELEASE: &str = "Name: redhat-release\nVersion: 9\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch\n\
    Requires: coreutils\n%description\nx\n%install\nmkdir -p %{buildroot}/etc\n\
    echo 'a release' > %{buildroot}/etc/redhat-release\n%files\n/etc/redhat-release\n";
const COREUTILS: &str = "%global _build_id_links none\n%global __os_install_post %{nil}\n%global debug_package %{nil}\n\
    Name: coreutils\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\n%description\nx\n%install\n\
    mkdir -p %{buildroot}/bin\ncp BUSYBOX %{buildroot}/bin/busybox\n\
    for a in sh cat touch chown stat mknod; do ln -s busybox %{buildroot}/bin/$a; done\n\
    %post\ntouch /made\nchown 5:6 /made\nmknod /null c 1 3\n%files\n/bin/*\n";

#[test]
fn dnf_installs_as_an_ordinary_user_and_owners_are_those_of_the_image() {
    if lacks(&[USERNS, FUSE, BUSYBOX, DNF]) {
        return;
    }
    let scratch = Scratch::new();
    let busybox = static_busybox().expect("a busybox").display().to_string();
    let top = scratch.path().join("top");
    for (name, text) in [("release.spec", RELEASE), ("coreutils.spec", COREUTILS)] {
        let specification = scratch.file(name, &text.replace("BUSYBOX", &busybox));
        let define = format!("_topdir {}", top.display());
        let status = Command::new("rpmbuild").args(["--quiet", "-bb", "--define", &define]).arg(specification).status();
        assert!(status.expect("rpmbuild").success());
    }
    let packages = top.join("RPMS");
    let status = Command::new("createrepo_c").arg("--quiet").arg(&packages).status();
    assert!(status.expect("createrepo_c").success());
    let definition = format!(
        "Bootstrap: dnf\nOSVersion: 9\nMirrorURL: file://{}\n%post\nstat -c '%u:%g %F' /made /null\n",
        packages.display()
    );
    let output = build(&scratch, &definition);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.ends_with("5:6 regular empty file\n0:0 character special file\n"), "{}", output.stdout);
    let output = sifu(&["exec", "image.sif", "cat", "/etc/redhat-release"]).current_dir(scratch.path()).run();
    assert_eq!(output.quiet_success(), "a release");
}
