//! `--nv`, `--rocm`, `--device` and `gpu explain` with drivers that the tests make up: small ELF files, device nodes, CDI
//! descriptions.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use crate::accelerator_host::fabricate::Library;
use crate::accelerator_host::{Host, native};
use crate::need::{BUSYBOX, FUSE, Need, ROOT, SIFU, USERNS, lacks};
use crate::support::{Output, Scratch, busybox_image, busybox_root, sifu};
use sifu::elf::Class;

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

/// Writes descriptions into directories of their own and names these, in the order of `--cdi-dirs`.
fn descriptions(scratch: &Scratch, files: &[(&str, &str)]) -> String {
    let mut directories: Vec<String> = Vec::new();
    for (name, text) in files {
        let path = scratch.file(&format!("cdi/{name}"), text);
        let directory = path.parent().expect("a directory").display().to_string();
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories.join(",")
}

#[test]
fn descriptions_of_every_version_are_followed() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    let data = scratch.file("data", "data\n").display().to_string();
    let image = busybox_image().display().to_string();
    // What each version brought, in both languages; `DATA` is a file of the host's.
    let node = "{\"path\": \"/dev/vendor/zero\", \"hostPath\": \"/dev/zero\", \"type\": \"c\", \"major\": 1, \"minor\": 5, \
                \"permissions\": \"rw\", \"fileMode\": 438, \"uid\": 0, \"gid\": 0}";
    let mount =
        "{\"hostPath\": \"DATA\", \"containerPath\": \"/opt/data\", \"options\": [\"ro\", \"nosuid\", \"rbind\"]";
    for (version, edits) in [
        ("0.1.0", "\"env\": [\"A=b\"]".to_owned()),
        ("0.2.0", "\"env\": [\"A=b\"], \"deviceNodes\": [{\"path\": \"/dev/zero\"}]".to_owned()),
        ("0.3.0", format!("\"env\": [\"A=b\"], \"mounts\": [{mount}}}]")),
        ("0.4.0", format!("\"env\": [\"A=b\"], \"mounts\": [{mount}, \"type\": \"bind\"}}]")),
        ("0.5.0", format!("\"env\": [\"A=b\"], \"deviceNodes\": [{node}]")),
        ("0.6.0", format!("\"env\": [\"A=b\"], \"deviceNodes\": [{node}]")),
        ("0.7.0", "\"env\": [\"A=b\"], \"additionalGids\": [0], \"intelRdt\": {\"closID\": \"x\"}".to_owned()),
        ("0.8.0", format!("\"env\": [\"A=b\"], \"mounts\": [{mount}, \"type\": \"none\"}}]")),
        ("1.0.0", format!("\"env\": [\"A=b\"], \"deviceNodes\": [{node}], \"hooks\": null")),
        (
            "1.1.0",
            "\"env\": [\"A=b\"], \"netDevices\": [{\"hostInterfaceName\": \"eth0\", \"name\": \"net\"}]".to_owned(),
        ),
    ] {
        let edits = edits.replace("DATA", &data);
        let (class, annotations) =
            if version < "0.6.0" { ("gpu", "") } else { ("gpu.part", "\"annotations\": {\"a\": \"b\"},") };
        let json = format!(
            "{{\"cdiVersion\": \"{version}\", \"kind\": \"vendor.com/{class}\", {annotations}\n\"devices\": [{{\"name\": \
             \"0\", \"containerEdits\": {{{edits}}}}}]}}"
        );
        let yaml = format!(
            "cdiVersion: {version}\nkind: vendor.com/{class}\ndevices:\n- name: \"0\"\n  containerEdits: {{{edits}}}\n"
        );
        for (file, text) in [("a.json", json), ("a.yaml", yaml)] {
            let scratch = Scratch::new();
            let directory = descriptions(&scratch, &[(file, &text)]);
            let device = format!("vendor.com/{class}=0");
            let command = "echo $A; cat /opt/data 2>/dev/null; head -c 2 /dev/vendor/zero 2>/dev/null | wc -c";
            let arguments =
                ["exec", "--contain", "--cdi-dirs", &directory, "--device", &device, &image, "sh", "-c", command];
            let page = sifu(&arguments).run().quiet_success().to_owned();
            let mut expected = "b\n".to_owned();
            expected.push_str(if text.contains("/opt/data") { "data\n" } else { "" });
            expected.push_str(if text.contains("/dev/vendor/zero") { "2" } else { "0" });
            assert_eq!(page, expected, "{version} {file}");
        }
    }
}

#[test]
fn a_description_that_is_wrong_is_named_with_its_line() {
    if lacks(START) {
        return;
    }
    let image = busybox_image().display().to_string();
    let good = "cdiVersion: 0.6.0\nkind: a.com/b\ndevices:\n- {name: x, containerEdits: {env: [A=b]}}\n";
    for (name, text, expected) in [
        ("bad.json", "{\n\"cdiVersion\": \"0.6.0\",\n\"kind\": }", "line 3: expected value"),
        (
            "bad.json",
            "{\n\"cdiVersion\": \"0.6.0\",\n\"kind\": \"c.com/d\",\n\"device\": []}",
            "line 4: unknown field `device`",
        ),
        (
            "bad.yaml",
            "cdiVersion: 0.6.0\nkind: c.com/d\ndevices:\n- name: x\n  containerEdits:\n    env: [A]\n",
            "line 6: `A` is not NAME=VALUE",
        ),
        ("bad.yaml", "cdiVersion: 0.6.0\nkind: c.com/d\ndevices: [\n", "line "),
        ("bad.yaml", "cdiVersion: 2.0.0\nkind: c.com/d\n", "line 1: version `2.0.0` of CDI is not known"),
    ] {
        let scratch = Scratch::new();
        let directory = descriptions(&scratch, &[("good.yaml", good), (name, text)]);
        let run = |device: &str| {
            sifu(&["exec", "--cdi-dirs", &directory, "--device", device, &image, "sh", "-c", "echo $A"]).run()
        };
        // What is asked for is elsewhere.
        let output = run("a.com/b=x");
        assert_eq!(output.stdout, "b\n", "{output:?}");
        let warning = format!("WARNING: {directory}/{name} describes no devices: {expected}");
        assert!(output.stderr.starts_with(&warning), "{output:?}");
        let output = run("c.com/d=x");
        assert!(output.clean_failure().contains("no description on this host has the device `c.com/d=x`"));
        assert!(output.stderr.starts_with(&warning), "{output:?}");
    }
}

#[test]
fn the_strongest_directory_counts_and_two_of_a_name_are_a_conflict() {
    if lacks(START) {
        return;
    }
    let text = |value: &str| {
        format!("cdiVersion: 0.6.0\nkind: a.com/b\ndevices:\n- {{name: x, containerEdits: {{env: [A={value}]}}}}\n")
    };
    let (weak, strong) = (text("weak"), text("strong"));
    let scratch = Scratch::new();
    let directories = descriptions(&scratch, &[("one/a.yaml", &weak), ("two/a.yaml", &strong), ("two/notes.txt", "x")]);
    let image = busybox_image().display().to_string();
    let run =
        |name: &str| sifu(&["exec", "--cdi-dirs", &directories, "--device", name, &image, "sh", "-c", "echo $A"]).run();
    assert_eq!(run("a.com/b=x").quiet_success(), "strong");
    assert_eq!(run("a.com/b=all").quiet_success(), "strong", "all of a kind that has no device of this name");
    descriptions(&scratch, &[("two/b.yaml", &weak)]);
    let output = run("a.com/b=x");
    let message = output.clean_failure();
    assert!(message.contains("the device `a.com/b=x` is in ") && message.contains("two/b.yaml"), "{message}");
}

#[test]
fn hooks_are_done_or_said() {
    if lacks(START) {
        return;
    }
    let driver = Driver::new();
    // An image of CUDA's with libraries of a newer driver.
    let root = driver.path("cuda");
    busybox_root(&root);
    let compat = root.join("usr/local/cuda-13/compat");
    fs::create_dir_all(&compat).expect("a directory");
    symlink("cuda-13", root.join("usr/local/cuda")).expect("a link");
    for (name, to) in [("libcuda.so", "libcuda.so.1"), ("libcuda.so.1", "libcuda.so.580.65.06")] {
        symlink(to, compat.join(name)).expect("a link");
    }
    fs::write(compat.join("libcuda.so.580.65.06"), native().to_bytes()).expect("a library");
    let image = root.display().to_string();
    let lib = driver.path("lib").display().to_string();
    let text = |version: &str| {
        format!(
            "cdiVersion: 0.6.0\nkind: nvidia.com/gpu\ndevices:\n- name: all\n  containerEdits:\n    deviceNodes:\n    - {{path: \
             /dev/dri/renderD128, hostPath: /dev/zero}}\n    mounts:\n    - {{hostPath: {lib}/libcuda.so.570, containerPath: \
             /usr/lib64/libcuda.so.570, options: [ro]}}\n    hooks:\n    - {{hookName: createContainer, path: \
             /usr/bin/nvidia-cdi-hook, args: [nvidia-cdi-hook, enable-cuda-compat, '--host-driver-version={version}']}}\n    - \
             {{hookName: createContainer, path: /usr/bin/nvidia-cdi-hook, args: [nvidia-cdi-hook, update-ldcache, --folder, \
             /usr/lib64]}}\n    - {{hookName: createContainer, path: /usr/bin/nvidia-cdi-hook, args: [nvidia-cdi-hook, \
             disable-device-node-modification]}}\n    - {{hookName: createContainer, path: /usr/bin/nvidia-cdi-hook, args: \
             [nvidia-cdi-hook, chmod, --mode, '711', --path, /dev/dri]}}\n    - {{hookName: poststart, path: /opt/x/hook, args: \
             [hook]}}\n"
        )
    };
    for (version, expected) in [
        ("570.1", "/usr/local/cuda/compat/libcuda.so.1"),
        ("580.2", "/usr/lib64/libcuda.so.570"),
        ("", "/usr/lib64/libcuda.so.570"),
    ] {
        let scratch = Scratch::new();
        let directory = descriptions(&scratch, &[("nvidia.yaml", &text(version))]);
        let command = "strings /etc/ld.so.cache | grep '^/'; stat -c %a /dev/dri";
        let flags = ["exec", "--contain", "--cdi-dirs", &directory, "--device", "nvidia.com/gpu=all"];
        let output = driver.run(&[&flags[..], &[&image, "sh", "-c", command]].concat());
        assert_eq!(output.stdout, format!("{expected}\n711\n"), "{version}: {output:?}");
        assert_eq!(output.stderr, "WARNING: the hook `/opt/x/hook` (poststart) of a device is not run\n");
    }
}

#[test]
fn a_device_under_another_name_makes_nothing_in_the_hosts_dev() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    let text = "cdiVersion: 0.6.0\nkind: a.com/b\ndevices:\n- name: x\n  containerEdits:\n    deviceNodes:\n    - {path: \
                /dev/sifu-test-node, hostPath: /dev/zero}\n";
    let directory = descriptions(&scratch, &[("a.yaml", text)]);
    let image = busybox_image().display().to_string();
    let output = sifu(&["exec", "--cdi-dirs", &directory, "--device", "a.com/b=x", &image, "true"]).run();
    assert!(output.clean_failure().contains("/dev/sifu-test-node"), "{output:?}");
    assert!(!PathBuf::from("/dev/sifu-test-node").exists(), "root of the host runs tests as well");
}

// ---- hosts that are made up ----

/// Lists the device nodes of accelerators that can be read, in the container's `/dev`.
const READABLE: &str = "cd /dev; for node in nvidia* nvidia-caps/* dri/* kfd; do head -c 1 $node >/dev/null 2>&1 && \
                        echo -n \"$node \"; done; true";

fn image() -> String {
    busybox_image().display().to_string()
}

/// Runs a shell's command in a container on a made-up host, and returns what it wrote.
#[track_caller]
fn shell(host: &Host, flags: &[&str], command: &str) -> String {
    let image = image();
    let output = host.run(&[&["exec"], flags, &[&image, "sh", "-c", command]].concat());
    assert_eq!(output.code, Some(0), "{output:?}");
    output.stdout
}

#[test]
fn the_devices_of_the_driver_are_there_and_those_alone() {
    if lacks(START) {
        return;
    }
    let host = Host::nvidia();
    let all = "nvidia-uvm nvidia0 nvidia1 nvidiactl nvidia-caps/nvidia-cap12 nvidia-caps/nvidia-cap13 \
               nvidia-caps/nvidia-cap3 nvidia-caps/nvidia-cap4 ";
    assert_eq!(shell(&host, &["--nv", "--contain"], READABLE), all);
    assert_eq!(shell(&host, &["--contain"], READABLE), "");
    let command = "nvidia-smi -L; ls /.singularity.d/libs; echo $LD_LIBRARY_PATH";
    assert_eq!(
        shell(&host, &["--nv"], command),
        "nvidia-smi -L\nlibcuda.so.1\n/.singularity.d/libs\n",
        "a library lies under its soname"
    );
}

#[test]
fn what_is_chosen_is_there_and_the_rest_can_not_be_opened() {
    if lacks(START) {
        return;
    }
    let both = ("nvidia0 nvidia1", "12 13 3 4");
    let (first, second, none) = (("nvidia0", ""), ("nvidia1", "12 13 3 4"), ("", ""));
    let ((one, other), shown) = ((("nvidia1", "3 4"), ("nvidia1", "12 13")), "echo CUDA=$CUDA_VISIBLE_DEVICES");
    for (flags, variables, (gpus, capabilities), cuda) in [
        (&["--gpus", "0"][..], &[][..], first, ""),
        (&["--gpus", "GPU-b"], &[], second, ""),
        (&["--gpus", "1:0"], &[], one, ""),
        (&["--gpus", "none"], &[], none, ""),
        (&["--nv", "--gpus", "all"], &[("NVIDIA_VISIBLE_DEVICES", "0")], both, ""),
        (&["--nv"], &[("NVIDIA_VISIBLE_DEVICES", "1:1")], other, ""),
        (&["--nv"], &[("NVIDIA_VISIBLE_DEVICES", "MIG-GPU-bbbb/2/0")], other, ""),
        (&["--nv"], &[("NVIDIA_VISIBLE_DEVICES", "MIG-5c1d0a3e-uuid")], second, ""),
        (&["--nv"], &[("NVIDIA_VISIBLE_DEVICES", "void")], both, ""),
        (&["--nv"], &[("NVIDIA_VISIBLE_DEVICES", "none"), ("CUDA_VISIBLE_DEVICES", "1")], none, ""),
        (&["--nv"], &[("CUDA_VISIBLE_DEVICES", "1")], second, "0"),
        (&["--nv"], &[("CUDA_VISIBLE_DEVICES", "GPU-bbbb")], second, "GPU-bbbb"),
        (&["--nv"], &[("CUDA_VISIBLE_DEVICES", "MIG-5c1d0a3e-uuid")], second, "MIG-5c1d0a3e-uuid"),
        (&["--nv"], &[("CUDA_VISIBLE_DEVICES", "")], none, ""),
    ] {
        let mut host = Host::nvidia();
        for (name, value) in variables {
            host.env(name, value);
        }
        let case = format!("{flags:?} {variables:?}");
        let join = |prefix: &str, words: &str| -> String {
            words.split_whitespace().map(|word| format!("{prefix}{word} ")).collect()
        };
        let nodes = join("", &format!("nvidia-uvm {gpus} nvidiactl")) + &join("nvidia-caps/nvidia-cap", capabilities);
        let command = format!("{READABLE}; {shown}");
        let expected = format!("{nodes}CUDA={cuda}\n");
        assert_eq!(shell(&host, &[flags, &["--contain"]].concat(), &command), expected, "{case}");
        // In the host's own /dev lies what belongs to no instance as well.
        let whole = shell(&host, flags, &command).replace("nvidia-caps/nvidia-cap1 ", "");
        assert_eq!(whole, expected, "{case}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_of_the_flag_and_a_warning_of_a_variable() {
    if lacks(START) {
        return;
    }
    let mut host = Host::nvidia();
    let image = image();
    let output = host.run(&["exec", "--gpus", "2", &image, "true"]);
    assert!(output.clean_failure().contains("cannot use the GPU `2`: there are 2, with the numbers 0 to 1"));
    let output = host.run(&["exec", "--gpus", "0:0", &image, "true"]);
    assert!(output.clean_failure().contains("cannot use the GPU `0:0`"));
    host.env("NVIDIA_VISIBLE_DEVICES", "0,7");
    let output = host.run(&["exec", "--nv", &image, "echo", "ran"]);
    assert_eq!(output.stdout, "ran\n", "{output:?}");
    assert_eq!(output.stderr, "WARNING: NVIDIA_VISIBLE_DEVICES names the GPU `7`, which is not there\n");
}

#[test]
fn what_the_device_rules_of_a_job_refuse_is_not_there_and_not_counted() {
    if lacks(START) || lacks(&[ROOT]) {
        return;
    }
    let own = fs::read_to_string("/proc/self/cgroup").expect("control groups");
    let own = own.lines().find_map(|line| line.split_once(":devices:").map(|(_, path)| path.to_owned()));
    let Some(parent) = own.map(|path| PathBuf::from(format!("/sys/fs/cgroup/devices{path}"))) else {
        eprintln!("skipped: needs control groups of version 1 for devices");
        return;
    };
    let group = parent.join(format!("sifu-test-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&group) {
        eprintln!("skipped: needs a control group for devices ({error})");
        return;
    }
    // In this job the first GPU is somebody else's: /dev/full stands for it.
    let mut host = Host::nvidia();
    host.node_like("nvidia0", "full");
    host.before(&format!(
        "echo $$ > {group}/cgroup.procs; echo 'c 1:7 rwm' > {group}/devices.deny",
        group = group.display()
    ));
    let (all, first) = (["--nv", "--contain"], ["--gpus", "0", "--contain"]);
    let shown = [shell(&host, &all, READABLE), shell(&host, &first, READABLE)];
    let page = host.run(&["gpu", "explain", "--nv"]);
    let _ = fs::remove_dir(&group);
    for nodes in shown {
        assert!(nodes.contains("nvidia1 ") && !nodes.contains("nvidia0 "), "{nodes}");
    }
    assert!(page.stdout.contains("refused   /dev/nvidia0  (GPU-aaaa: operation not permitted)\n"), "{page:?}");
    assert!(page.stdout.contains("device    /dev/nvidia1  (GPU 0, GPU-bbbb: all are taken)\n"), "{page:?}");
    assert_eq!(page.stderr, "");
}

#[test]
fn a_service_is_spoken_to_through_its_socket_and_its_pipes() {
    if lacks(START) {
        return;
    }
    let mut host = Host::nvidia();
    host.socket("nvidia-persistenced/socket").socket("nvidia-fabricmanager/socket");
    let pipes = host.file("mps/control", "").parent().expect("a directory").display().to_string();
    host.env("CUDA_MPS_PIPE_DIRECTORY", &pipes);
    let command = format!(
        "ls -d /run/nvidia-*/socket; echo hello > {pipes}/from-a-client && cat {pipes}/from-a-client; \
         (echo x > /.singularity.d/libs/libcuda.so.1) 2>/dev/null || echo read-only"
    );
    let expected = "/run/nvidia-fabricmanager/socket\n/run/nvidia-persistenced/socket\nhello\nread-only\n";
    assert_eq!(shell(&host, &["--nv", "--contain"], &command), expected);
    // A directory without the pipe of the service is none of its directories.
    for other in ["/", "/etc", "/usr/share"] {
        host.env("CUDA_MPS_PIPE_DIRECTORY", other);
        assert_eq!(
            shell(&host, &["--nv"], "ls /etc/passwd /bin/sh; ls -d /usr/share 2>/dev/null || true"),
            "/bin/sh\n/etc/passwd\n"
        );
    }
}

#[test]
fn rocm_brings_its_devices_and_leaves_an_image_its_own_libraries() {
    if lacks(START) {
        return;
    }
    let host = Host::amd();
    assert_eq!(shell(&host, &["--rocm", "--contain"], READABLE), "dri/renderD128 dri/renderD129 kfd ");
    assert_eq!(shell(&host, &["--rocm"], "ls /.singularity.d/libs; rocm-smi"), "libhsa-runtime64.so.1\nrocm-smi\n");
    assert_eq!(shell(&host, &["--rocm", "--gpus", "1", "--contain"], READABLE), "dri/renderD129 kfd ");
    let own = host.path("own");
    busybox_root(&own);
    fs::create_dir_all(own.join("usr/lib64")).expect("a directory");
    fs::write(own.join("usr/lib64/libhsa-runtime64.so.1"), native().to_bytes()).expect("a library");
    let output = host.run(&["exec", "--rocm", &own.display().to_string(), "ls", "/.singularity.d/libs"]);
    assert!(!output.stdout.contains("libhsa"), "{output:?}");
    for (variable, value) in [("ROCR_VISIBLE_DEVICES", "1"), ("HIP_VISIBLE_DEVICES", "1")] {
        let mut host = Host::amd();
        host.env(variable, value);
        let command = format!("{READABLE}; echo ${variable}");
        assert_eq!(shell(&host, &["--rocm", "--contain"], &command), "dri/renderD129 kfd 0\n", "{variable}");
    }
    // Both vendors' flags at once: what is missing is said, what is there works.
    let image = image();
    let output = host.run(&["exec", "--nv", "--rocm", &image, "rocm-smi"]);
    assert_eq!((output.stdout.as_str(), output.code), ("rocm-smi\n", Some(0)));
    assert_eq!(
        output.stderr,
        "WARNING: --nv: this host has no NVIDIA driver: neither its library nor its devices were found\n"
    );
}

#[test]
fn a_site_can_ask_for_the_driver_and_a_user_can_leave_it_out() {
    if lacks(START) {
        return;
    }
    let mut host = Host::nvidia();
    let site = host.file("sifu.conf", "always use nv = yes\n").display().to_string();
    let image = image();
    let run = |host: &Host, flags: &[&str]| {
        host.run(&[&["--config", &site, "exec"], flags, &[&image, "sh", "-c", "nvidia-smi || echo none"]].concat())
            .stdout
    };
    assert_eq!(run(&host, &[]), "nvidia-smi\n");
    assert_eq!(run(&host, &["--no-nv"]), "none\n");
    host.env("APPTAINER_NO_NV", "1");
    assert_eq!(run(&host, &[]), "none\n");
    let bare = Host::bare();
    let output = bare.run(&["--config", &site, "exec", &image, "echo", "ran"]);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("ran\n", ""), "nobody asked on this host");
    let output = Host::nvidia().run(&["exec", "--nvccli", &image, "nvidia-smi"]);
    assert_eq!(output.stdout, "nvidia-smi\n");
    assert!(output.stderr.starts_with("INFO:    --nvccli is not needed"), "{output:?}");
}

#[test]
fn an_image_can_not_turn_the_driver_against_the_host() {
    if lacks(START) {
        return;
    }
    let host = Host::nvidia();
    let target = host.path("elsewhere");
    fs::create_dir(&target).expect("a directory");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o777)).expect("a mode");
    let shown = target.display().to_string();
    // Each line makes an image that leads astray; the directory of the host is bound, as a home or /tmp would be.
    for (case, script) in [
        ("libs", "mkdir .singularity.d; ln -s TARGET .singularity.d/libs"),
        ("metadata", "ln -s TARGET .singularity.d"),
        ("programs", "ln -s TARGET usr/bin"),
        ("usr", "rm -r usr; ln -s TARGET usr"),
        ("library directories", "ln -s / usr/lib64; ln -s / lib64"),
        (
            "a way out",
            "mkdir .singularity.d; ln -s ../../../../..TARGET .singularity.d/libs; ln -s /proc/1/root usr/bin",
        ),
        ("a circle", "mkdir .singularity.d; ln -s libs .singularity.d/libs; ln -s bin usr/bin"),
        ("a file", "mkdir .singularity.d; echo > .singularity.d/libs; echo > usr/bin"),
        ("a library", "mkdir -p .singularity.d/libs; ln -s TARGET/libcuda.so.1 .singularity.d/libs/libcuda.so.1"),
        ("a device", "rm -r dev; ln -s TARGET dev"),
        (
            "variables",
            "mkdir -p .singularity.d/env; echo 'export NVIDIA_VISIBLE_DEVICES=none CUDA_VISIBLE_DEVICES=none \
             LD_PRELOAD=TARGET/x.so' > .singularity.d/env/90-environment.sh",
        ),
        ("a linker's cache", "ln -s /proc/self/environ etc/ld.so.cache"),
        ("a linker's cache that never ends", "ln -s /dev/zero etc/ld.so.cache"),
        ("a linker's cache of noise", "head -c 100000 /dev/urandom > etc/ld.so.cache"),
        ("a C library that is none", "mkdir lib64; ln -s /dev/zero lib64/libc.so.6; echo > lib/libc.so.6"),
    ] {
        let root = host.path("hostile");
        let _ = fs::remove_dir_all(&root);
        busybox_root(&root);
        for directory in ["usr", "lib"] {
            fs::create_dir(root.join(directory)).expect("a directory");
        }
        let made = std::process::Command::new("sh")
            .args(["-ec", &script.replace("TARGET", &shown)])
            .current_dir(&root)
            .status()
            .expect("a shell");
        assert!(made.success(), "{case}");
        let image = root.display().to_string();
        let bind = format!("{shown}:{shown}");
        for flags in [&["--nv"][..], &["--nv", "--contain"], &["--nv", "--gpus", "1"]] {
            let output =
                host.run(&[&["exec", "--bind", &bind], flags, &[&image, "/bin/sh", "-c", "echo ran"]].concat());
            assert!(!output.stderr.contains("panicked"), "{case}: {output:?}");
            assert!(output.stdout == "ran\n" || output.code == Some(255), "{case}: {output:?}");
            let left: Vec<_> =
                fs::read_dir(&target).expect("a directory").flatten().map(|entry| entry.path()).collect();
            assert!(left.is_empty(), "{case} {flags:?}: {left:?}");
        }
        if case == "variables" {
            let output = host.run(&["exec", "--nv", "--contain", &image, "/bin/sh", "-c", READABLE]);
            assert!(output.stdout.contains("nvidia0 nvidia1"), "the caller's variables count: {output:?}");
        }
    }
}

#[test]
fn programs_of_32_bits_get_libraries_where_they_are_asked_for() {
    if lacks(START) {
        return;
    }
    let Some(machine) = sifu::elf::compatible_machine(sifu::elf::NATIVE_MACHINE) else {
        eprintln!("skipped: needs a machine that runs programs of 32 bits");
        return;
    };
    let mut host = Host::nvidia();
    fs::create_dir(host.path("lib/narrow")).expect("a directory");
    for (name, glibc_needs) in [("libcuda.so.1", &["GLIBC_2.0"][..]), ("libnvidia-ml.so.1", &["GLIBC_9.99"])] {
        let narrow = Library { class: Class::Bits32, machine, glibc_needs, ..Library::default() };
        host.library(&format!("narrow/{name}"), &format!("narrow/{name}"), &narrow);
    }
    let root = host.path("multilib");
    busybox_root(&root);
    let definitions = &["libc.so.6", "GLIBC_2.0", "GLIBC_2.31"];
    let libc = Library { class: Class::Bits32, machine, definitions, ..Library::default() };
    fs::create_dir_all(root.join("usr/lib32")).expect("a directory");
    fs::write(root.join("usr/lib32/libc.so.6"), libc.to_bytes()).expect("a C library");
    let image = root.display().to_string();
    let command =
        "cd /.singularity.d; ls libs libs32; head -c 5 libs32/libcuda.so.1 | od -An -tu1; echo $LD_LIBRARY_PATH";
    let output = host.run(&[
        "exec",
        "--nv",
        "--compat32",
        &image,
        "/bin/busybox",
        "sh",
        "-c",
        &command.replace("od", "busybox od"),
    ]);
    let class = " 127  69  76  70   1\n";
    let expected =
        format!("libs:\nlibcuda.so.1\n\nlibs32:\nlibcuda.so.1\n{class}/.singularity.d/libs:/.singularity.d/libs32\n");
    assert_eq!(output.stdout, expected, "{output:?}");
    assert!(output.stderr.contains("1 library of the host can't work in this image"), "{output:?}");
    assert!(output.stderr.contains("libnvidia-ml.so.1 (needs glibc 9.99, the image has 2.31)"), "{output:?}");
    let output = host.run(&["exec", "--nv", &image, "/bin/busybox", "ls", "/.singularity.d"]);
    assert_eq!(output.stdout, "libs\n", "{output:?}");
    let output = host.run(&["exec", "--compat32", &image, "/bin/busybox", "true"]);
    assert_eq!(output.stderr, "WARNING: --compat32 brings nothing without --nv or --rocm\n");
}

#[test]
fn a_sandbox_that_is_written_to_gets_the_libraries_and_one_line_about_the_rest() {
    if lacks(&[SIFU, USERNS, BUSYBOX]) {
        return;
    }
    let host = Host::nvidia();
    let root = host.path("sandbox");
    busybox_root(&root);
    fs::create_dir_all(root.join(".singularity.d/libs")).expect("a directory");
    let output = host.run(&["exec", "--writable", "--nv", &root.display().to_string(), "ls", "/.singularity.d/libs"]);
    assert_eq!(output.stdout, "libcuda.so.1\n", "{output:?}");
    assert_eq!(
        output.stderr,
        "WARNING: a file of the host's driver is not mounted on /usr/bin/nvidia-smi: the image has no such file or \
         directory, and --writable makes none\n"
    );
    assert_eq!(fs::read_dir(root.join(".singularity.d/libs")).expect("a directory").count(), 0, "nothing is left");
    assert!(!root.join("usr").exists());
}

#[test]
fn explain_tells_the_whole_of_a_host() {
    if lacks(&[SIFU, USERNS]) {
        return;
    }
    let mut host = Host::nvidia();
    let (class, machine) = (Class::Bits32, 40);
    host.library("libnvidia-ml.so.1", "libnvidia-ml.so.1", &Library { class, machine, ..native() });
    host.cached("libnvidia-cfg.so.1", sifu::elf::NATIVE_MACHINE).socket("nvidia-persistenced/socket");
    let page = host
        .run(&["gpu", "explain", "--gpus", "1:0"])
        .quiet_success()
        .replace(&host.directory().display().to_string(), "HOST");
    let expected = "\
library   /.singularity.d/libs/libcuda.so.1 <- HOST/lib/libcuda.so.570  (in the list)
program   /usr/bin/nvidia-smi <- HOST/bin/nvidia-smi  (in the list)
socket    /run/nvidia-persistenced/socket  (in the list)
device    /dev/nvidia-uvm  (serves all GPUs)
device    /dev/nvidiactl  (serves all GPUs)
device    /dev/nvidia1  (GPU 1, GPU-bbbb: --gpus)
device    /dev/nvidia-caps/nvidia-cap3  (GPU 1, GPU-bbbb, instance 0: --gpus)
device    /dev/nvidia-caps/nvidia-cap4  (GPU 1, GPU-bbbb, instance 0: --gpus)
hidden    /dev/nvidia0  (GPU 0, GPU-aaaa: not chosen, --gpus)
hidden    /dev/nvidia-caps/nvidia-cap12  (GPU 1, GPU-bbbb, instance 1: not chosen, --gpus)
hidden    /dev/nvidia-caps/nvidia-cap13  (GPU 1, GPU-bbbb, instance 1: not chosen, --gpus)
left out  libnvidia-ml.so.1 at HOST/lib/libnvidia-ml.so.1  (for another kind of machine)
left out  libnvidia-cfg.so.1 at HOST/lib/libnvidia-cfg.so.1  (HOST/lib/libnvidia-cfg.so.1: no such file or directory)
An image may have some of its own, or be too old for others: name one to see.";
    assert_eq!(page, expected);
}
