//! Descriptions as vendors write them, and what containers get of them.

use super::spec::Language;
use super::*;
use crate::elf::fabricate::Library;

fn found(path: &str, directory: usize, yaml: &str) -> Found {
    let spec = spec::parse(yaml.as_bytes(), Language::Yaml).expect("a description");
    Found { path: HostPath::new(path), directory, spec }
}

/// In the manner of what NVIDIA's tool generates.
fn nvidia() -> Found {
    found(
        "/etc/cdi/nvidia.yaml",
        0,
        "\
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: \"0\"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/dri/renderD128
      hostPath: /dev/dri/renderD130
    hooks:
    - hookName: createContainer
      path: /usr/bin/nvidia-ctk
      args: [nvidia-ctk, hook, chmod, --mode, '755', --path, /dev/dri]
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
  - path: /dev/nvidiactl
  additionalGids: [0, 44, 100]
  mounts:
  - hostPath: /usr/lib/libcuda.so.570
    containerPath: /usr/lib64/libcuda.so.570
    options: [ro, nosuid, nodev, bind]
  - hostPath: /run/nvidia-persistenced/socket
    containerPath: /run/nvidia-persistenced/socket
    options: [nosuid, nodev, rbind]
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - libcuda.so.1::/usr/lib64/libcuda.so
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, create-soname-symlinks, --folder=/usr/lib64]
  - hookName: createContainer
    path: /usr/bin/nvidia-ctk
    args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib64]
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, enable-cuda-compat, --host-driver-version=570]
  - hookName: poststop
    path: /opt/vendor/clean-up
",
    )
}

fn edited(names: &[&str], found: &[Found]) -> Result<Edits, CdiError> {
    let names: Vec<Vec<u8>> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    edits(&names, found, &[44])
}

fn binds(edits: &Edits) -> Vec<String> {
    edits.binds.iter().map(|bind| format!("{} {} {}", bind.kind, bind.source, bind.target)).collect()
}

#[test]
fn a_device_brings_its_own_and_what_its_kind_needs() {
    let edits = edited(&["nvidia.com/gpu=0", "nvidia.com/gpu=all"], &[nvidia()]).expect("edits");
    assert_eq!(
        binds(&edits),
        [
            "device /dev/nvidiactl /dev/nvidiactl",
            "file /usr/lib/libcuda.so.570 /usr/lib64/libcuda.so.570",
            "writable file /run/nvidia-persistenced/socket /run/nvidia-persistenced/socket",
            "device /dev/nvidia0 /dev/nvidia0",
            "device /dev/dri/renderD130 /dev/dri/renderD128",
        ]
    );
    assert_eq!(edits.environment, [(b"NVIDIA_VISIBLE_DEVICES".to_vec(), b"void".to_vec())]);
    assert_eq!(edits.modes, [(ContainerPath::fixed("/dev/dri"), 0o755)]);
    let said: Vec<String> = edits.remarks.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "the hook `/opt/vendor/clean-up` (poststop) of a device is not run",
            "a device asks for the group 100, which you are not in",
        ]
    );
}

#[test]
fn the_linker_of_the_container_knows_what_the_devices_bring() {
    let edits = edited(&["nvidia.com/gpu=0"], &[nvidia()]).expect("edits");
    let library = Library { soname: Some("libcuda.so.1"), ..Library::default() };
    let object = Object::parse(&library.to_bytes()[..]).expect("a library");
    assert_eq!(edits.libraries(), [HostPath::new("/usr/lib/libcuda.so.570")]);
    let objects = BTreeMap::from([(HostPath::new("/usr/lib/libcuda.so.570"), object)]);
    let entry = |name: &'static str, path: &'static str| ld_cache::Entry {
        name: name.as_bytes(),
        path: path.as_bytes(),
        flags: 0x0303,
        hwcap: 0,
    };
    let image = ld_cache::write(&[entry("libc.so.6", "/lib/libc.so.6"), entry("libcuda.so.1", "/old/libcuda.so.1")]);
    let done = edits.finish(&objects, &[], &image);
    assert_eq!(
        done.links,
        [
            (ContainerPath::fixed("/usr/lib64/libcuda.so"), b"libcuda.so.1".to_vec()),
            (ContainerPath::fixed("/usr/lib64/libcuda.so.1"), b"libcuda.so.570".to_vec()),
        ]
    );
    let [(path, cache)] = &done.files[..] else { panic!("one file") };
    assert_eq!(path, &ContainerPath::fixed("/etc/ld.so.cache"));
    let expected = [entry("libcuda.so.1", "/usr/lib64/libcuda.so.1"), entry("libc.so.6", "/lib/libc.so.6")];
    assert_eq!(ld_cache::parse(cache).expect("a cache"), expected);
}

#[test]
fn a_later_directory_is_stronger_and_two_in_one_are_a_conflict() {
    let file = |path: &str, directory, node: &str| {
        let text = format!(
            "cdiVersion: 0.3.0\nkind: a.com/b\ndevices:\n- name: x\n  containerEdits:\n    deviceNodes:\n    - path: {node}\n"
        );
        found(path, directory, &text)
    };
    let (weak, strong) = (file("/etc/cdi/a.yaml", 0, "/dev/weak"), file("/run/cdi/a.yaml", 1, "/dev/strong"));
    let edits = edited(&["a.com/b=x"], &[strong.clone(), weak.clone()]).expect("edits");
    assert_eq!(binds(&edits), ["device /dev/strong /dev/strong"]);
    let other = file("/run/cdi/b.yaml", 1, "/dev/other");
    let error = edited(&["a.com/b=x"], &[weak, strong, other]).unwrap_err();
    assert_eq!(error.to_string(), "the device `a.com/b=x` is in /run/cdi/a.yaml and in /run/cdi/b.yaml");
}

#[test]
fn what_is_no_device_here_is_refused() {
    for name in [
        "nvidia",
        "nvidia.com/gpu",
        "nvidia.com=0",
        "/gpu=0",
        "1.com/gpu=0",
        "a.com/gpu=",
        "a.com/g/u=0",
        "a.com/gpu=a b",
    ] {
        assert_eq!(edited(&[name], &[nvidia()]), Err(CdiError::BadName(name.to_owned())));
    }
    let error = edited(&["nvidia.com/gpu=7"], &[nvidia()]).unwrap_err();
    assert_eq!(error.to_string(), "no description on this host has the device `nvidia.com/gpu=7`");
    assert_eq!(error.hints(), ["There are: nvidia.com/gpu=0, nvidia.com/gpu=all."]);
    assert!(edited(&["nvidia.com/gpu=7"], &[]).unwrap_err().hints()[0].contains("/etc/cdi"));
}

#[test]
fn all_of_a_kind_are_those_of_every_file() {
    let file = |path: &str, names: [&str; 2]| {
        let device = |name| format!("- {{name: '{name}', containerEdits: {{deviceNodes: [{{path: /dev/{name}}}]}}}}\n");
        let devices: String = names.map(device).concat();
        found(path, 0, &format!("cdiVersion: 0.3.0\nkind: a.com/b\ndevices:\n{devices}"))
    };
    let files = [file("/etc/cdi/a.yaml", ["2", "10"]), file("/etc/cdi/b.yaml", ["x", "y"])];
    let expected = ["device /dev/10 /dev/10", "device /dev/2 /dev/2", "device /dev/x /dev/x", "device /dev/y /dev/y"];
    assert_eq!(binds(&edited(&["a.com/b=all"], &files).expect("edits")), expected);
    // Who describes one of that name means it.
    let files = [file("/etc/cdi/a.yaml", ["2", "all"])];
    assert_eq!(binds(&edited(&["a.com/b=all"], &files).expect("edits")), ["device /dev/all /dev/all"]);
    assert!(matches!(edited(&["c.com/b=all"], &files), Err(CdiError::NoSuchDevice { .. })));
    let twice = [file("/etc/cdi/a.yaml", ["2", "2"])];
    let error = edited(&["a.com/b=2"], &twice).unwrap_err();
    assert_eq!(error.to_string(), "the device `a.com/b=2` is twice in /etc/cdi/a.yaml");
}

#[test]
fn an_image_with_a_newer_driver_keeps_it() {
    let names = ["libcuda.so", "libcuda.so.1", "libcuda.so.580.65", "libnvidia-nvvm.so.4", "libnvidia-nvvm.so.580.65"];
    let names: Vec<Vec<u8>> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    let expected = [b"libcuda.so.1".to_vec(), b"libnvidia-nvvm.so.4".to_vec()];
    assert_eq!(newer_than_the_host(&names, 570), expected);
    assert!(newer_than_the_host(&names, 580).is_empty() && newer_than_the_host(&[], 1).is_empty());
    let edits = edited(&["nvidia.com/gpu=0"], &[nvidia()]).expect("edits");
    assert_eq!(edits.host_driver, Some(570));
    let done = edits.finish(&BTreeMap::new(), &expected, b"");
    let entries = ld_cache::parse(&done.files[0].1).expect("a cache");
    assert_eq!((entries[1].name, entries[1].path), (&b"libcuda.so.1"[..], &b"/usr/local/cuda/compat/libcuda.so.1"[..]));
}
