//! `--nv`, `--device` and `gpu explain` with drivers that the tests make up: small ELF files, CDI descriptions.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use crate::need::{BUSYBOX, FUSE, Need, SIFU, USERNS, lacks};
use crate::support::{Output, Scratch, busybox_image, busybox_root, sifu};
use sifu::elf::Class;

/// The writer of ELF files that the reader's own tests use.
#[path = "../src/elf/fabricate.rs"]
mod fabricate;
use fabricate::Library;

const START: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX];

/// A host with a driver beside the real one, found through `LD_LIBRARY_PATH` and `PATH`.
struct Driver {
    scratch: Scratch,
}

impl Driver {
    fn new() -> Self {
        let driver = Self { scratch: Scratch::new() };
        let machine = sifu::elf::NATIVE_MACHINE;
        driver.library("libcuda.so.570", &Library { soname: Some("libcuda.so.1"), machine, ..Library::default() });
        symlink("libcuda.so.570", driver.path("lib/libcuda.so.1")).expect("a link");
        symlink("gone", driver.path("lib/libnvidia-cfg.so.1")).expect("a link");
        driver.library("libnvidia-ml.so.1", &Library { glibc_needs: &["GLIBC_9.99"], machine, ..Library::default() });
        let (class, other) = (Class::Bits32, 40);
        driver.library("libnvidia-nvvm.so.4", &Library { class, machine: other, ..Library::default() });
        driver.library("libz.so.1", &Library { machine, ..Library::default() });
        let program = driver.path("bin/nvidia-smi");
        fs::create_dir_all(driver.path("bin")).expect("a directory");
        fs::write(&program, "#!/bin/sh\necho smi \"$@\"\n").expect("a program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
        driver
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn library(&self, name: &str, library: &Library<'_>) {
        fs::create_dir_all(self.path("lib")).expect("a directory");
        fs::write(self.path("lib").join(name), library.to_bytes()).expect("a library");
    }

    /// A sandbox whose C library is of version 2.31.
    fn image_with_glibc(&self) -> PathBuf {
        let root = self.path("image");
        busybox_root(&root);
        let definitions = &["libc.so.6", "GLIBC_2.2.5", "GLIBC_2.31"];
        let libc = Library { machine: sifu::elf::NATIVE_MACHINE, definitions, ..Library::default() };
        fs::create_dir_all(root.join("lib64")).expect("a directory");
        fs::write(root.join("lib64/libc.so.6"), libc.to_bytes()).expect("a C library");
        root
    }

    fn run(&self, words: &[&str]) -> Output {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        sifu(&words).env("LD_LIBRARY_PATH", self.path("lib")).env("PATH", path).run()
    }
}

/// Whether this host has a driver of its own, which the tests would find instead of theirs.
fn has_driver() -> bool {
    let found = PathBuf::from("/proc/driver/nvidia").exists() || PathBuf::from("/dev/nvidiactl").exists();
    if found {
        eprintln!("skipped: needs a host without NVIDIA's driver (/dev/nvidiactl is there)");
    }
    found
}

#[test]
fn a_container_gets_the_libraries_that_it_can_load_and_one_line_about_the_others() {
    if lacks(START) || has_driver() {
        return;
    }
    let driver = Driver::new();
    let image = driver.image_with_glibc().display().to_string();
    let output = driver.run(&["exec", "--nv", &image, "sh", "-c", "ls /.singularity.d/libs; nvidia-smi -L"]);
    assert_eq!(output.stdout, "libcuda.so.1\nlibcuda.so.570\nsmi -L\n", "{output:?}");
    assert_eq!(
        output.stderr,
        "WARNING: 1 library of the host can't work in this image and is left out: libnvidia-ml.so.1 (needs glibc 9.99, \
         the image has 2.31)\n"
    );
    assert_eq!(output.code, Some(0));
}

#[test]
fn nothing_of_the_driver_is_there_without_the_flag() {
    if lacks(START) || has_driver() {
        return;
    }
    let driver = Driver::new();
    let image = busybox_image().display().to_string();
    for flags in [&["exec"][..], &["exec", "--nv", "--no-nv"]] {
        let command =
            [&image, "sh", "-c", "ls /.singularity.d/libs 2>/dev/null; command -v nvidia-smi; echo $LD_LIBRARY_PATH"];
        let output = driver.run(&[flags, &command].concat());
        assert!(!output.stdout.contains("libcuda") && !output.stdout.contains("nvidia-smi"), "{output:?}");
    }
}

#[test]
fn a_host_without_a_driver_is_worth_a_warning() {
    if lacks(START) || has_driver() {
        return;
    }
    let image = busybox_image().display().to_string();
    let output = sifu(&["exec", "--nv", "--gpus", "0", &image, "echo", "ran"]).run();
    assert_eq!((output.stdout.as_str(), output.code), ("ran\n", Some(0)));
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{output:?}");
    assert!(lines[0].contains("this host has no NVIDIA driver") && lines[1].contains("no GPU that may be used"));
    let output = sifu(&["exec", "--gpus", "zero", &image, "true"]).run();
    assert!(output.clean_failure().contains("cannot use `zero` for `--gpus`"));
}

/// A description of a device in a directory of its own, and what it brings.
fn description(driver: &Driver) -> String {
    let directory = driver.path("cdi");
    fs::create_dir_all(&directory).expect("a directory");
    let (lib, data) = (driver.path("lib").display().to_string(), driver.path("data"));
    fs::write(&data, "data\n").expect("a file");
    let text = format!(
        "\
cdiVersion: 0.6.0
kind: vendor.com/device
devices:
- name: one
  containerEdits:
    env: [VENDOR_DEVICE=one, EDITOR_OF=spec]
    deviceNodes:
    - {{path: /dev/vendor/zero, hostPath: /dev/zero}}
containerEdits:
  mounts:
  - {{hostPath: {lib}/libcuda.so.570, containerPath: /opt/vendor/lib/libcuda.so.570, options: [ro, bind]}}
  - {{hostPath: {data}, containerPath: /opt/vendor/data, options: [rw]}}
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-ctk
    args: [nvidia-ctk, hook, create-symlinks, --link, 'libcuda.so.1::/opt/vendor/lib/libcuda.so']
  - hookName: createContainer
    path: /usr/bin/nvidia-ctk
    args: [nvidia-ctk, hook, create-soname-symlinks, --folder, /opt/vendor/lib]
  - hookName: createContainer
    path: /usr/bin/nvidia-ctk
    args: [nvidia-ctk, hook, update-ldcache, --folder, /opt/vendor/lib]
",
        data = data.display()
    );
    fs::write(directory.join("vendor.yaml"), text).expect("a description");
    directory.display().to_string()
}

#[test]
fn a_device_comes_with_all_that_its_description_says() {
    if lacks(START) {
        return;
    }
    let driver = Driver::new();
    let directory = description(&driver);
    let image = busybox_image().display().to_string();
    let command = "head -c 3 /dev/vendor/zero | wc -c; readlink /opt/vendor/lib/libcuda.so; \
                   readlink /opt/vendor/lib/libcuda.so.1; grep -c /opt/vendor/lib/libcuda.so.1 /etc/ld.so.cache; \
                   echo more >>/opt/vendor/data; echo x 2>/dev/null >>/opt/vendor/lib/libcuda.so.570 || echo read-only; \
                   echo $VENDOR_DEVICE $EDITOR_OF";
    let flags = ["exec", "--contain", "--cdi-dirs", &directory, "--device", "vendor.com/device=one"];
    let output = driver.run(&[&flags[..], &["--env", "EDITOR_OF=user", &image, "sh", "-c", command]].concat());
    assert_eq!(output.stdout, "3\nlibcuda.so.1\nlibcuda.so.570\n1\nread-only\none user\n", "{output:?}");
    assert_eq!(output.stderr, "");
    assert_eq!(fs::read_to_string(driver.path("data")).expect("the file"), "data\nmore\n");
}

#[test]
fn a_device_that_is_not_described_is_a_failure_that_names_those_that_are() {
    if lacks(START) {
        return;
    }
    let driver = Driver::new();
    let directory = description(&driver);
    fs::write(driver.path("cdi/broken.json"), "{").expect("a file");
    let image = busybox_image().display().to_string();
    let output =
        driver.run(&["exec", "--cdi-dirs", &directory, "--device", "vendor.com/device=two", &image, "echo", "ran"]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(255), ""));
    assert!(output.stderr.contains("no description on this host has the device `vendor.com/device=two`"), "{output:?}");
    assert!(output.stderr.contains("There are: vendor.com/device=one."), "{output:?}");
    assert!(output.stderr.contains("broken.json describes no devices: "), "{output:?}");
}

#[test]
fn explain_names_every_path_and_its_reason() {
    if lacks(&[SIFU, BUSYBOX]) || has_driver() {
        return;
    }
    let driver = Driver::new();
    let image = driver.image_with_glibc().display().to_string();
    let output = driver.run(&["gpu", "explain", "--nv", &image]);
    let page = output.quiet_success();
    for expected in [
        "library   /.singularity.d/libs/libcuda.so.1 <- ",
        "program   /usr/bin/nvidia-smi <- ",
        "left out  libnvidia-ml.so.1 at ",
        "(needs glibc 9.99, the image has 2.31)",
        "(for another kind of machine)",
        "no such file or directory)",
    ] {
        assert!(page.contains(expected), "{expected} in {page}");
    }
    assert!(!page.contains("libz.so"), "{page}");
}
