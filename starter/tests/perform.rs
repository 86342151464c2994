//! Each step of a plan alone, performed in a child process that has a container of its own and looks at it from inside.
//!
//! Each twice: as this kernel does it, and under a filter that answers for the calls of later kernels as Linux 4.18 does.
//!
//! A machine without user namespaces skips them, and says so.

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::stat::Mode;
use starter::paths::{ContainerPath, HostPath};
use starter::perform::{Entered, Launched, PerformError, Stage, StepProblem, Warning, launch};
use starter::plan::{
    Access, Capabilities, Command, Directory, Identity, LaunchPlan, Namespaces, Need, Node, NodeContent, Parent, Step,
};
use starter::sys;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A directory that is a root file system, removed at the end.
struct Root(PathBuf);

impl Root {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sifu-perform-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        for directory in ["root/etc", "root/mnt", "root/proc", "root/tmp", "host"] {
            fs::create_dir_all(path.join(directory)).unwrap();
        }
        fs::write(path.join("root/etc/issue"), "image\n").unwrap();
        fs::write(path.join("host/file"), "host\n").unwrap();
        Self(path)
    }

    fn host(&self, name: &str) -> HostPath {
        HostPath::new(self.0.join("host").join(name))
    }

    fn plan(&self, access: Access, steps: Vec<Step>) -> LaunchPlan {
        let root = Step::RootDirectory { source: HostPath::new(self.0.join("root")), access };
        LaunchPlan {
            identity: Identity::Keep { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() },
            namespaces: Namespaces::default(),
            join: Vec::new(),
            private_mounts: false,
            share: None,
            hostname: None,
            steps: std::iter::once(root).chain(steps).collect(),
            umask: None,
            user: None,
            limits: Vec::new(),
            capabilities: Capabilities { keep: 0 },
            seccomp: Vec::new(),
            emulation: None,
            directory: Directory { candidates: vec![ContainerPath::root()] },
            environment: Vec::new(),
            command: Command::Program { arguments: vec![b"none".to_vec()] },
            parent: Parent::default(),
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn at(path: &'static str) -> ContainerPath {
    ContainerPath::fixed(path)
}

fn bind(source: HostPath, target: &'static str, access: Access, need: Need, create: bool) -> Step {
    Step::Bind { source, target: at(target), access, need, create }
}

/// Runs `work` in a child process; its panic is the test's failure.
fn in_child(work: impl FnOnce()) {
    let pid = sys::fork_child(|| {
        work();
        0
    })
    .unwrap();
    assert_eq!(sys::wait_status(pid).unwrap(), 0, "the child failed; its message stands above");
}

/// Whether this machine lets the caller be somebody in a user namespace.
fn lacks_user_namespaces() -> bool {
    let pid =
        sys::fork_child(|| u8::from(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_err())).unwrap();
    let lacks = sys::wait_status(pid).unwrap() != 0;
    if lacks {
        eprintln!("skipped: needs userns (unshare is refused)");
    }
    lacks
}

/// Calls that Linux 4.18 does not have.
const LATER: [Refused; 9] = [
    Refused::always(libc::SYS_open_tree),
    Refused::always(libc::SYS_move_mount),
    Refused::always(libc::SYS_fsopen),
    Refused::always(libc::SYS_fsconfig),
    Refused::always(libc::SYS_fsmount),
    Refused::always(libc::SYS_mount_setattr),
    Refused::always(libc::SYS_openat2),
    Refused::always(libc::SYS_pidfd_open),
    Refused::always(libc::SYS_close_range),
];
/// Linux 5.4: mounts by descriptors, and nothing that changes their attributes.
const LATER_THAN_5_4: [Refused; 2] = [Refused::always(libc::SYS_mount_setattr), Refused::always(libc::SYS_openat2)];

/// What makes a file system read-only from the beginning: in a container whose root is a directory, an overlay alone.
const READ_ONLY: u32 = 1 | 2 | 4;
const READ_ONLY_FILE_SYSTEMS: [Refused; 2] =
    [Refused::with(libc::SYS_fsmount, 2, READ_ONLY), Refused::with(libc::SYS_mount, 3, READ_ONLY)];

/// A call that a filter refuses.
#[derive(Clone, Copy)]
struct Refused {
    call: c_long,
    /// If the low word of the argument of this number is this.
    argument: Option<(u32, u32)>,
}

impl Refused {
    const fn always(call: c_long) -> Self {
        Self { call, argument: None }
    }

    const fn with(call: c_long, number: u32, value: u32) -> Self {
        Self { call, argument: Some((number, value)) }
    }
}

/// Answers `errno` for the calls in this process from now on.
fn refuse(calls: &[Refused], errno: Errno) {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ARGUMENTS: u32 = 16;
    let mut program = Vec::new();
    let mut say = |code: u16, otherwise: u8, k: u32| {
        program.extend_from_slice(&code.to_ne_bytes());
        program.extend_from_slice(&[0, otherwise]);
        program.extend_from_slice(&k.to_ne_bytes());
    };
    for refused in calls {
        say(LOAD, 0, 0);
        say(JUMP_IF_EQUAL, if refused.argument.is_some() { 3 } else { 1 }, u32::try_from(refused.call).unwrap());
        if let Some((number, value)) = refused.argument {
            say(LOAD, 0, ARGUMENTS + 8 * number);
            say(JUMP_IF_EQUAL, 1, value);
        }
        say(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno as u32);
    }
    say(RETURN, 0, libc::SECCOMP_RET_ALLOW);
    nix::sys::prctl::set_no_new_privs().unwrap();
    sys::install_seccomp(&program).unwrap();
}

/// Performs the plan in a child and looks at what comes of it, once for each kernel.
fn perform(plan: &LaunchPlan, look: impl Fn(Result<Launched, PerformError>)) {
    if lacks_user_namespaces() {
        return;
    }
    let kernels: [(&[Refused], Errno); 4] =
        [(&[], Errno::ENOSYS), (&LATER, Errno::ENOSYS), (&LATER, Errno::EPERM), (&LATER_THAN_5_4, Errno::ENOSYS)];
    for (missing, errno) in kernels {
        in_child(|| {
            refuse(missing, errno);
            look(launch(plan, None, None));
        });
    }
}

/// Performs the plan and looks around inside.
fn inside(plan: &LaunchPlan, look: impl Fn(&Entered)) {
    perform(plan, |launched| match launched {
        Ok(Launched::Inside(entered)) => look(&entered),
        Ok(Launched::Ended(ended)) => panic!("a parent stayed: {ended:?}"),
        Ok(Launched::Left(child)) => panic!("a parent left its child {child}"),
        Err(error) => panic!("{error}"),
    });
}

/// Performs the plan and looks at its error.
fn fails(plan: &LaunchPlan, look: impl Fn(&PerformError)) {
    perform(plan, |launched| match launched {
        Ok(_) => panic!("it worked"),
        Err(error) => look(&error),
    });
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("{error}"))
}

#[test]
fn a_root_is_read_only_and_the_only_one() {
    let root = Root::new("root");
    inside(&root.plan(Access::ReadOnly, vec![]), |_| {
        assert_eq!(read("/etc/issue"), "image\n");
        assert!(fs::write("/etc/new", "").is_err());
        let up = Path::new("/../../..");
        assert_eq!(up.metadata().unwrap().ino(), Path::new("/").metadata().unwrap().ino());
        assert!(!Path::new("/host").exists());
    });
}

#[test]
fn a_bind_shows_the_host_and_heeds_its_access() {
    let root = Root::new("bind");
    let steps = vec![
        bind(root.host(""), "/mnt", Access::ReadOnly, Need::Required, false),
        bind(root.host(""), "/tmp", Access::ReadWrite, Need::Required, false),
        bind(root.host("file"), "/etc/issue", Access::ReadOnly, Need::Required, false),
    ];
    inside(&root.plan(Access::ReadOnly, steps), |_| {
        assert_eq!(read("/etc/issue"), "host\n");
        assert!(fs::write("/mnt/new", "x").is_err());
        fs::write("/tmp/new", "x").unwrap();
        assert_eq!(read("/mnt/new"), "x");
    });
}

#[test]
fn links_of_the_image_move_no_bind_out_of_it() {
    let root = Root::new("links");
    let outside = root.0.join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, root.0.join("root/absolute")).unwrap();
    symlink("../../../../../../../..", root.0.join("root/relative")).unwrap();
    let step = |target| bind(root.host(""), target, Access::ReadOnly, Need::Required, true);
    fails(&root.plan(Access::ReadOnly, vec![step("/absolute")]), |error| {
        // Inside the root there is no such directory, and a read-only root gets none.
        assert!(matches!(error, PerformError::Step { problem: StepProblem::Target { .. }, .. }), "{error}");
    });
    inside(&root.plan(Access::ReadOnly, vec![step("/relative/mnt")]), |_| assert_eq!(read("/mnt/file"), "host\n"));
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
}

#[test]
fn what_is_missing_is_an_error_or_left_out() {
    let root = Root::new("missing");
    let missing = |need| bind(root.host("none"), "/mnt", Access::ReadOnly, need, false);
    inside(&root.plan(Access::ReadOnly, vec![missing(Need::Optional)]), |_| {
        assert_eq!(fs::read_dir("/mnt").unwrap().count(), 0);
    });
    fails(&root.plan(Access::ReadOnly, vec![missing(Need::Required)]), |error| {
        assert!(matches!(error, PerformError::Step { problem: StepProblem::Source { .. }, .. }), "{error}");
    });
}

#[test]
fn a_file_is_not_mounted_over_a_directory_nor_the_other_way_round() {
    let root = Root::new("kinds");
    for (source, target) in [("file", "/mnt"), ("", "/etc/issue")] {
        let step = bind(root.host(source), target, Access::ReadOnly, Need::Required, false);
        fails(&root.plan(Access::ReadOnly, vec![step]), |error| {
            assert!(matches!(error, PerformError::Step { problem: StepProblem::Kinds { .. }, .. }), "{error}");
        });
    }
}

#[test]
fn a_tmpfs_has_its_mode_and_takes_nodes_and_mount_points() {
    let root = Root::new("tmpfs");
    let node = |path, content| Step::Make { node: Node { path: at(path), mode: 0o750, content }, need: Need::Required };
    let steps = vec![
        Step::Tmpfs { target: at("/tmp"), mode: 0o1777, size_bytes: Some(1 << 20), create: false },
        node("/tmp/a/b", NodeContent::Directory),
        node("/tmp/link", NodeContent::Symlink(b"a/b".to_vec())),
        bind(root.host("file"), "/tmp/new/file", Access::ReadOnly, Need::Required, true),
    ];
    inside(&root.plan(Access::ReadOnly, steps), |_| {
        assert_eq!(Path::new("/tmp").metadata().unwrap().permissions().mode() & 0o7777, 0o1777);
        assert_eq!(Path::new("/tmp/link").metadata().unwrap().permissions().mode() & 0o7777, 0o750);
        assert_eq!(read("/tmp/new/file"), "host\n");
    });
}

#[test]
fn a_layer_takes_changes_and_leaves_the_directory_as_it_is() {
    let root = Root::new("layer");
    let nodes = vec![
        Node { path: at("/etc/passwd"), mode: 0o644, content: NodeContent::File(b"ada\n".to_vec()) },
        Node { path: at("/brand/new"), mode: 0o755, content: NodeContent::Directory },
    ];
    let layer = |access| Step::RootLayer { access, size_bytes: None, nodes: nodes.clone() };
    inside(&root.plan(Access::ReadOnly, vec![layer(Access::ReadOnly)]), |_| {
        assert_eq!(read("/etc/passwd"), "ada\n");
        assert_eq!(read("/etc/issue"), "image\n");
        assert!(Path::new("/brand/new").is_dir());
        assert!(fs::write("/etc/issue", "x").is_err());
    });
    inside(&root.plan(Access::ReadOnly, vec![layer(Access::ReadWrite)]), |_| {
        fs::write("/etc/issue", "changed").unwrap();
        assert_eq!(read("/etc/issue"), "changed");
    });
    assert_eq!(fs::read_to_string(root.0.join("root/etc/issue")).unwrap(), "image\n");
    assert!(!root.0.join("root/brand").exists());
}

#[test]
fn without_overlays_the_root_is_rebuilt_from_mounts() {
    let root = Root::new("underlay");
    symlink("etc/issue", root.0.join("root/link")).unwrap();
    symlink("/etc", root.0.join("root/tmp/etc")).unwrap();
    fs::create_dir_all(root.0.join("root/etc/deep/er")).unwrap();
    fs::set_permissions(root.0.join("root/etc"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(root.0.join("root/etc/passwd"), "root\n").unwrap();
    fs::write(root.0.join("root/etc/deep/file"), "deep\n").unwrap();
    let node = |path, content| Node { path: at(path), mode: 0o640, content };
    let nodes = vec![
        node("/etc/passwd", NodeContent::File(b"ada\n".to_vec())),
        node("/etc/deep/er/new", NodeContent::Directory),
        node("/etc/mtab", NodeContent::Symlink(b"/proc/mounts".to_vec())),
        node("/mnt", NodeContent::Directory),
        node("/link/below", NodeContent::Directory),
        node("/brand/new", NodeContent::File(Vec::new())),
    ];
    let steps = vec![
        Step::RootLayer { access: Access::ReadOnly, size_bytes: None, nodes },
        bind(root.host(""), "/etc/deep/er/new", Access::ReadWrite, Need::Required, false),
        bind(root.host("file"), "/brand/new", Access::ReadOnly, Need::Required, false),
    ];
    let plan = root.plan(Access::ReadOnly, steps);
    perform_without_overlays(&plan, |launched| {
        let Ok(Launched::Inside(entered)) = launched else { panic!("{launched:?}") };
        assert!(matches!(entered.warnings[..], [Warning::NoOverlay(Errno::ENODEV)]), "{:?}", entered.warnings);
        assert!(entered.warnings[0].is_harmless());
        assert_eq!(read("/etc/passwd"), "ada\n");
        assert_eq!(read("/etc/issue"), "image\n");
        assert_eq!(read("/etc/deep/file"), "deep\n");
        assert_eq!(read("/etc/deep/er/new/file"), "host\n");
        assert_eq!(read("/brand/new"), "host\n");
        assert_eq!(fs::read_link("/etc/mtab").unwrap(), Path::new("/proc/mounts"));
        assert_eq!(fs::read_link("/tmp/etc").unwrap(), Path::new("/etc"));
        // A link on the way is replaced, as an overlay would.
        assert!(Path::new("/link/below").is_dir());
        assert_eq!(Path::new("/etc").metadata().unwrap().permissions().mode() & 0o7777, 0o711);
        for path in ["/new", "/etc/new", "/etc/issue", "/etc/passwd", "/mnt/new", "/etc/deep/new"] {
            assert!(fs::write(path, "x").is_err(), "{path}");
        }
        fs::write("/etc/deep/er/new/written", "x").unwrap();
    });
    assert_eq!(fs::read_to_string(root.0.join("root/etc/passwd")).unwrap(), "root\n");
    assert!(!root.0.join("root/brand").exists());
}

#[test]
fn a_writable_layer_needs_an_overlay() {
    let root = Root::new("overlay-needed");
    let layer = Step::RootLayer { access: Access::ReadWrite, size_bytes: None, nodes: Vec::new() };
    let plan = root.plan(Access::ReadOnly, vec![layer]);
    if lacks_user_namespaces() {
        return;
    }
    // The only option without a value in this plan is the overlay's.
    const FLAG: u32 = 0;
    in_child(|| {
        refuse(&[Refused::with(libc::SYS_fsconfig, 1, FLAG)], Errno::EPERM);
        let Err(error) = launch(&plan, None, None) else { panic!("it worked") };
        assert!(matches!(error, PerformError::Stage { stage: Stage::MountOverlay, errno: Errno::EPERM }), "{error}");
    });
}

#[test]
fn a_kernel_whose_supervisors_can_t_answer_is_found_out() {
    let probe = |refused: &'static [Refused]| {
        in_child(move || {
            refuse(refused, Errno::EINVAL);
            let told = sys::try_seccomp_listener().map_err(|error| error.raw_os_error());
            let expected = if refused.is_empty() { Ok(()) } else { Err(Some(libc::EINVAL)) };
            assert_eq!(told, expected);
        });
    };
    probe(&[]);
    const ADD_DESCRIPTOR: u32 = libc::SECCOMP_IOCTL_NOTIF_ADDFD as u32;
    const NONE_ADDED: [Refused; 1] = [Refused::with(libc::SYS_ioctl, 1, ADD_DESCRIPTOR)];
    probe(&NONE_ADDED);
}

/// As [`perform`], where no overlay can be mounted.
fn perform_without_overlays(plan: &LaunchPlan, look: impl Fn(Result<Launched, PerformError>)) {
    if lacks_user_namespaces() {
        return;
    }
    for missing in [&[][..], &LATER] {
        in_child(|| {
            refuse(missing, Errno::ENOSYS);
            refuse(&READ_ONLY_FILE_SYSTEMS, Errno::ENODEV);
            look(launch(plan, None, None));
        });
    }
}

#[test]
fn a_bind_restricts_what_is_mounted_below_it() {
    let root = Root::new("below");
    let steps = vec![
        bind(HostPath::new("/"), "/mnt", Access::ReadOnly, Need::Required, false),
        bind(HostPath::new("/proc"), "/proc", Access::ReadWrite, Need::Required, false),
    ];
    inside(&root.plan(Access::ReadOnly, steps), |_| {
        let mounts = read("/proc/self/mountinfo");
        let lines = || mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        // The last mount at a point hides those before it.
        let seen: HashMap<&str, &str> = lines().map(|fields| (fields[4], fields[5])).collect();
        let below: Vec<_> = seen.into_iter().filter(|(point, _)| point.starts_with("/mnt")).collect();
        assert!(below.len() > 2, "{mounts}");
        for (point, options) in below {
            for wanted in ["ro", "nosuid", "nodev"] {
                assert!(options.split(',').any(|option| option == wanted), "{point} lacks {wanted}: {options}");
            }
        }
        // Nothing of how the container was made is in the copy.
        assert!(!mounts.contains(" sifu "), "{mounts}");
    });
}

#[test]
fn a_generated_file_lies_over_the_image_s() {
    let root = Root::new("file");
    let step = Step::File { target: at("/etc/issue"), mode: 0o644, content: b"made\n".to_vec() };
    inside(&root.plan(Access::ReadWrite, vec![step]), |_| {
        assert_eq!(read("/etc/issue"), "made\n");
        assert!(fs::write("/etc/issue", "x").is_err());
    });
    assert_eq!(fs::read_to_string(root.0.join("root/etc/issue")).unwrap(), "image\n");
}

#[test]
fn no_privilege_is_left() {
    let root = Root::new("privileges");
    let step = bind(HostPath::new("/proc"), "/proc", Access::ReadWrite, Need::Required, false);
    inside(&root.plan(Access::ReadOnly, vec![step]), |_| {
        let status = read("/proc/self/status");
        let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(value(set), Some("0000000000000000"), "{set}");
        }
        assert_eq!(value("NoNewPrivs:"), Some("1"));
    });
}

#[test]
fn a_capability_that_is_kept_is_the_only_one() {
    let root = Root::new("capability");
    let step = bind(HostPath::new("/proc"), "/proc", Access::ReadWrite, Need::Required, false);
    let mut plan = root.plan(Access::ReadOnly, vec![step]);
    plan.capabilities.keep = 1 << 13;
    inside(&plan, |_| assert_eq!(sys::effective_capabilities(), Ok(1 << 13)));
}

#[test]
fn who_can_unmount_finds_nothing_under_the_root() {
    const SYS_ADMIN: u64 = 1 << 21;
    let root = Root::new("pivot");
    let own = bind(HostPath::new("/proc"), "/proc", Access::ReadWrite, Need::Required, false);
    let layer = Step::RootLayer { access: Access::ReadWrite, size_bytes: None, nodes: Vec::new() };
    let file = Step::File { target: at("/etc/issue"), mode: 0o644, content: b"made\n".to_vec() };
    for steps in [vec![own.clone()], vec![own.clone(), file.clone()], vec![layer, own, file]] {
        let mut plan = root.plan(Access::ReadOnly, steps);
        plan.capabilities.keep = SYS_ADMIN;
        inside(&plan, |_| {
            let same = |path: &str| Path::new(path).metadata().map(|of| (of.dev(), of.ino())).unwrap();
            // Whatever lies over the root is seen from its parent, which is the root again.
            assert_eq!(same("/.."), same("/"));
            let mounts = read("/proc/self/mountinfo");
            let points = |wanted: &str| mounts.lines().filter(|line| line.split(' ').nth(4) == Some(wanted)).count();
            assert_eq!(points("/"), 1, "{mounts}");
            assert!(points("/proc") == 1 && !mounts.contains("/host"), "{mounts}");
        });
    }
}

#[test]
fn every_mount_is_nosuid_and_binds_are_nodev() {
    let root = Root::new("flags");
    let steps = vec![
        bind(HostPath::new("/proc"), "/proc", Access::ReadWrite, Need::Required, false),
        bind(root.host(""), "/mnt", Access::ReadWrite, Need::Required, false),
        Step::Tmpfs { target: at("/tmp"), mode: 0o755, size_bytes: None, create: false },
    ];
    inside(&root.plan(Access::ReadOnly, steps), |_| {
        let mounts = read("/proc/self/mountinfo");
        let mut seen = 0;
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            assert!(fields[5].split(',').any(|option| option == "nosuid"), "{line}");
            assert!(fields[5].split(',').any(|option| option == "nodev"), "{line}");
            seen += 1;
        }
        assert!(seen >= 4, "{mounts}");
    });
}

#[test]
fn the_first_directory_that_is_there_is_taken_and_told() {
    let root = Root::new("directory");
    let mut plan = root.plan(Access::ReadOnly, vec![]);
    plan.directory.candidates = vec![at("/none"), at("/etc"), at("/")];
    plan.environment = vec![(b"PWD".to_vec(), b"/none".to_vec())];
    inside(&plan, |entered| {
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/etc"));
        assert_eq!(entered.environment, [(b"PWD".to_vec(), b"/etc".to_vec())]);
        assert_eq!(entered.warnings.len(), 1);
    });
    plan.directory.candidates = vec![at("/none")];
    fails(&plan, |error| assert!(matches!(error, PerformError::Directory { .. }), "{error}"));
}

#[test]
fn the_umask_is_the_caller_s_or_the_plan_s() {
    let root = Root::new("umask");
    let mut plan = root.plan(Access::ReadOnly, vec![]);
    let mask = || nix::sys::stat::umask(Mode::empty());
    inside(&plan, |_| assert_ne!(mask(), Mode::from_bits_truncate(0o137)));
    plan.umask = Some(0o137);
    inside(&plan, |_| assert_eq!(mask(), Mode::from_bits_truncate(0o137)));
}

#[test]
fn a_plan_that_names_an_image_needs_a_server() {
    let root = Root::new("server");
    let mut plan = root.plan(Access::ReadOnly, vec![]);
    plan.steps = vec![Step::RootServed { connection: 0 }];
    fails(&plan, |error| assert!(matches!(error, PerformError::NoServer), "{error}"));
}
