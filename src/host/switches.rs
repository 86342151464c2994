//! The settings of a host that forbid or limit, read from `/proc`, `/sys` and `/etc`.
//!
//! Nobody reads these for a start that works: they explain one that did not, and fill `doctor`'s page.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, getgid, getuid};
use starter::paths::HostPath;

use super::facts::{BinaryFormat, ContainerEngine, ControlGroups, Switches, TemporaryDirectory};
use super::mountinfo;

/// Bytes of a setting, a profile or a status file that are read at most.
const SETTING_MAX: u64 = 256 << 10;

/// Files of a directory of settings that are looked at, at most.
const FILES_MAX: usize = 4096;

/// Reads the switches of this host.
pub fn observe() -> Switches {
    let kernel = super::observe_kernel();
    let program = std::env::current_exe().ok();
    Switches { kernel: Some(kernel), ..observe_below(Path::new("/"), program.as_deref()) }
}

/// Reads the switches from the tree at `root`, for the program at `program`.
fn observe_below(root: &Path, program: Option<&Path>) -> Switches {
    let sysctl = |name: &str| number(&root.join("proc/sys").join(name));
    let status = text(&root.join("proc/self/status")).unwrap_or_default();
    let mounts = mountinfo::parse(text(&root.join("proc/self/mountinfo")).unwrap_or_default().as_bytes());
    let own = |map: &str| text(&root.join("proc/self").join(map));
    let (uid_map, gid_map) = (own("uid_map"), own("gid_map"));
    let proc_mounted = root.join("proc/self/stat").exists();
    Switches {
        unprivileged_userns_clone: sysctl("kernel/unprivileged_userns_clone"),
        max_user_namespaces: sysctl("user/max_user_namespaces"),
        max_mnt_namespaces: sysctl("user/max_mnt_namespaces"),
        max_pid_namespaces: sysctl("user/max_pid_namespaces"),
        max_ipc_namespaces: sysctl("user/max_ipc_namespaces"),
        max_uts_namespaces: sysctl("user/max_uts_namespaces"),
        max_net_namespaces: sysctl("user/max_net_namespaces"),
        mount_max: sysctl("fs/mount-max"),
        apparmor_restrict_userns: sysctl("kernel/apparmor_restrict_unprivileged_userns"),
        apparmor_label: apparmor_label(root),
        apparmor_profile: program.and_then(|program| apparmor_profile(root, program)),
        selinux_enforcing: number(&root.join("sys/fs/selinux/enforce")) == Some(1),
        seccomp: status_field(&status, "Seccomp").unwrap_or(0),
        ptrace_scope: sysctl("kernel/yama/ptrace_scope"),
        proc_mounted,
        kernel_has_user_namespaces: !proc_mounted || root.join("proc/self/ns/user").exists(),
        // The table shows what is below the caller's root; a root that is no mount itself is missing from it.
        chroot: !mounts.is_empty() && !mounts.iter().any(|mount| mount.mount_point.as_bytes() == b"/"),
        nested: uid_map.as_deref().is_some_and(is_nested),
        unmapped_caller: uid_map.is_some_and(|map| is_unmapped(&map, getuid().as_raw()))
            || gid_map.is_some_and(|map| is_unmapped(&map, getgid().as_raw())),
        masked_proc: mounts.into_iter().map(|mount| mount.mount_point).filter(hides_proc).collect(),
        container: container(root, std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()),
        program: program.map(HostPath::new),
        kernel: None,
    }
}

fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(SETTING_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.trim().parse().ok()
}

fn status_field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}

/// Whether a map of ids is not that of the host, where every id is itself.
fn is_nested(map: &str) -> bool {
    !map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether a map of ids, which is empty until somebody writes it, leaves `id` out.
fn is_unmapped(map: &str, id: u32) -> bool {
    let covers = |line: &str| {
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first.saturating_add(count)).contains(&u64::from(id)))
    };
    !map.lines().any(covers)
}

/// Whether a mount covers a part of `/proc` so that the kernel allows no fresh one. Two are made on empty directories
/// that exist for them.
fn hides_proc(mount_point: &HostPath) -> bool {
    let path = mount_point.as_bytes();
    path.starts_with(b"/proc/") && path != b"/proc/sys/fs/binfmt_misc" && path != b"/proc/fs/nfsd"
}

fn container(root: &Path, kubernetes: bool) -> Option<ContainerEngine> {
    let there = |path: &str| root.join(path).exists();
    if kubernetes {
        Some(ContainerEngine::Kubernetes)
    } else if there(".dockerenv") {
        Some(ContainerEngine::Docker)
    } else if there("run/.containerenv") {
        Some(ContainerEngine::Podman)
    } else {
        there(".singularity.d").then_some(ContainerEngine::Other)
    }
}

fn apparmor_label(root: &Path) -> Option<String> {
    if !root.join("sys/kernel/security/apparmor").exists() && !root.join("sys/module/apparmor").exists() {
        return None;
    }
    let attributes = root.join("proc/self/attr");
    let label = text(&attributes.join("apparmor/current")).or_else(|| text(&attributes.join("current")))?;
    let label = label.trim_end_matches(['\0', '\n']).to_owned();
    (!label.is_empty()).then_some(label)
}

/// Looks for a profile that names `program` and lets it make user namespaces.
fn apparmor_profile(root: &Path, program: &Path) -> Option<HostPath> {
    let program = program.to_str()?;
    let profiles = fs::read_dir(root.join("etc/apparmor.d")).ok()?;
    let names = |path: &PathBuf| {
        path.is_file() && text(path).is_some_and(|text| text.contains(program) && text.contains("userns"))
    };
    profiles.flatten().take(FILES_MAX).map(|entry| entry.path()).find(names).map(HostPath::new)
}

/// Looks at the directories that temporary files may go to, the preferred one first.
pub fn observe_temporary_directories() -> Vec<TemporaryDirectory> {
    const VARIABLES: [&str; 4] = ["SIFU_TMPDIR", "APPTAINER_TMPDIR", "SINGULARITY_TMPDIR", "TMPDIR"];
    let named = VARIABLES.into_iter().find_map(|name| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        Some((PathBuf::from(value), Some(name.to_owned())))
    });
    let mut directories: Vec<TemporaryDirectory> = Vec::new();
    for (path, variable) in named.into_iter().chain(["/tmp", "/var/tmp"].map(|path| (PathBuf::from(path), None))) {
        if !directories.iter().any(|known| known.path.as_path() == path) {
            directories.push(observe_temporary_directory(path, variable));
        }
    }
    directories
}

fn observe_temporary_directory(path: PathBuf, variable: Option<String>) -> TemporaryDirectory {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let directory = match fs::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => Err(nix::errno::Errno::ENOTDIR),
        _ => access(&path, AccessFlags::W_OK | AccessFlags::X_OK),
    };
    let filesystem = statvfs(&path).ok();
    let has = |flag| filesystem.is_some_and(|filesystem| filesystem.flags().contains(flag));
    TemporaryDirectory {
        unwritable: directory.err().map(|errno| errno as i32),
        noexec: has(FsFlags::ST_NOEXEC),
        nodev: has(FsFlags::ST_NODEV),
        free_bytes: filesystem
            .map_or(0, |filesystem| filesystem.blocks_available().saturating_mul(filesystem.fragment_size())),
        path: HostPath::new(path),
        variable,
    }
}

/// Looks at the control groups: which version, and whether the caller may make groups of its own.
pub fn observe_control_groups() -> ControlGroups {
    let top = Path::new("/sys/fs/cgroup");
    if !top.join("cgroup.controllers").exists() {
        let some = fs::read_dir(top).is_ok_and(|mut entries| entries.next().is_some());
        return if some { ControlGroups::Version1 } else { ControlGroups::Absent };
    }
    let table = text(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let own = table.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let group = top.join(own);
    let writable = |name: &str| access(&group.join(name), AccessFlags::W_OK).is_ok();
    let controllers = text(&group.join("cgroup.controllers")).unwrap_or_default();
    let manager = format!("/run/user/{}/systemd/private", getuid().as_raw());
    ControlGroups::Version2 {
        delegated: access(&group, AccessFlags::W_OK).is_ok()
            && writable("cgroup.procs")
            && writable("cgroup.subtree_control"),
        controllers: controllers.split_ascii_whitespace().map(str::to_owned).collect(),
        user_manager: Path::new(&manager).exists() && Path::new("/usr/bin/systemd-run").exists(),
        group: HostPath::new(group),
    }
}

/// Lists the interpreters for programs of other machines; `None` when the kernel offers none.
pub fn observe_binary_formats() -> Option<Vec<BinaryFormat>> {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").ok()?;
    let mut formats: Vec<BinaryFormat> = entries
        .flatten()
        .take(FILES_MAX)
        .filter(|entry| entry.file_name() != "register" && entry.file_name() != "status")
        .filter_map(|entry| {
            Some(binary_format(entry.file_name().to_string_lossy().into_owned(), &text(&entry.path())?))
        })
        .collect();
    formats.sort_by(|a, b| a.name.cmp(&b.name));
    Some(formats)
}

fn binary_format(name: String, description: &str) -> BinaryFormat {
    let flags = description.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default();
    BinaryFormat { name, enabled: description.starts_with("enabled"), fixed: flags.contains('F') }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of settings on disk, removed at the end.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("sifu-switches-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }

        fn observe(&self) -> Switches {
            observe_below(&self.0, Some(Path::new("/opt/sifu/bin/sifu")))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn settings_are_read_and_missing_ones_are_none() {
        let tree = Tree::new(
            "settings",
            &[
                ("proc/sys/kernel/unprivileged_userns_clone", "0\n"),
                ("proc/sys/user/max_user_namespaces", "31390\n"),
                ("proc/sys/user/max_mnt_namespaces", "many\n"),
                ("proc/self/stat", "1 (sifu) R"),
                ("proc/self/ns/user", ""),
                ("proc/self/status", "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"),
            ],
        );
        let switches = tree.observe();
        assert_eq!(switches.unprivileged_userns_clone, Some(0));
        assert_eq!(switches.max_user_namespaces, Some(31390));
        assert_eq!(switches.max_mnt_namespaces, None);
        assert_eq!(switches.seccomp, 2);
        assert_eq!(switches.apparmor_restrict_userns, None);
        assert!(switches.proc_mounted && switches.kernel_has_user_namespaces);
        assert!(!switches.chroot && !switches.nested && !switches.unmapped_caller);
    }

    #[test]
    fn a_kernel_without_user_namespaces_has_no_file_for_them() {
        let tree = Tree::new("without", &[("proc/self/stat", "")]);
        assert!(!tree.observe().kernel_has_user_namespaces);
    }

    #[test]
    fn only_a_profile_that_names_the_program_and_namespaces_counts() {
        let tree = Tree::new(
            "profiles",
            &[
                ("etc/apparmor.d/other", "profile other /usr/bin/other { userns, }"),
                ("etc/apparmor.d/half", "profile half /opt/sifu/bin/sifu { file, }"),
            ],
        );
        assert_eq!(tree.observe().apparmor_profile, None);
        let tree =
            Tree::new("profile", &[("etc/apparmor.d/sifu", "profile sifu /opt/sifu/bin/sifu flags=(x) { userns, }")]);
        assert_eq!(tree.observe().apparmor_profile, Some(HostPath::new(tree.0.join("etc/apparmor.d/sifu"))));
    }

    #[test]
    fn a_label_is_read_only_where_apparmor_is_on() {
        let label = ("proc/self/attr/current", "docker-default (enforce)\n");
        assert_eq!(Tree::new("off", &[label]).observe().apparmor_label, None);
        let tree = Tree::new("on", &[label, ("sys/module/apparmor/x", "")]);
        assert_eq!(tree.observe().apparmor_label.as_deref(), Some("docker-default (enforce)"));
    }

    #[test]
    fn mounts_tell_of_a_chroot_and_of_a_masked_proc() {
        let chroot = Tree::new("chroot", &[("proc/self/mountinfo", "9 1 0:5 / /proc rw - proc proc rw\n")]);
        assert!(chroot.observe().chroot);
        let table = "1 0 0:1 / / rw - a s o\n2 1 0:5 / /proc rw - proc proc rw\n\
                     3 2 0:6 / /proc/kcore rw - tmpfs t rw\n4 2 0:7 / /proc/sys/fs/binfmt_misc rw - b b rw\n";
        let docker = Tree::new("masked", &[("proc/self/mountinfo", table), (".dockerenv", "")]).observe();
        assert_eq!(docker.masked_proc, [HostPath::new("/proc/kcore")]);
        assert_eq!(docker.container, Some(ContainerEngine::Docker));
        assert!(!docker.chroot);
    }

    #[test]
    fn maps_tell_of_a_namespace_around_the_caller() {
        assert!(!is_nested("         0          0 4294967295\n"));
        assert!(is_nested("0 1000 1\n") && is_nested(""));
        assert!(!is_unmapped("0 1000 1\n1 100000 65536\n", 65536));
        assert!(is_unmapped("0 1000 1\n1 100000 65536\n", 65537));
        assert!(is_unmapped("", 5) && is_unmapped("garbage", 5));
    }

    #[test]
    fn a_binary_format_is_read_from_its_description() {
        let format =
            binary_format("qemu-aarch64".into(), "enabled\ninterpreter /usr/bin/qemu\nflags: POCF\noffset 0\n");
        assert!(format.enabled && format.fixed);
        let format = binary_format("qemu-arm".into(), "disabled\ninterpreter /usr/bin/F\nflags: \n");
        assert!(!format.enabled && !format.fixed);
    }
}
