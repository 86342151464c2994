//! What the probes mean: one finding per ability, and a verdict on the whole. Pure.

use super::{Cure, CuredBy, explain};
use crate::host::facts::{
    Attempt, ContainerEngine, ControlGroups, EntrySource, FuseDevice, IdRange, Outcome, ProbeResults,
    TemporaryDirectory,
};

/// The first kernel that lets users mount FUSE in a namespace of their own.
const KERNEL_WANTED: (u32, u32) = (4, 18);

/// Bytes of free space below which an image that has to be unpacked will hardly fit.
const SPACE_WANTED: u64 = 4 << 30;

/// How much of an ability there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Ok,
    /// It works in part.
    Limited,
    Missing,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

/// What depends on an ability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Without it no container starts.
    Start,
    /// Without it images have to be unpacked first.
    Serving,
    /// It takes the place of serving.
    Unpacking,
    /// Some options or programs need it.
    Option,
}

/// One ability of the host, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub subject: &'static str,
    pub state: State,
    /// What was seen, or why it is missing.
    pub detail: String,
    /// What it is good for.
    pub why: &'static str,
    pub weight: Weight,
    /// Absent when all is well, or nothing known helps.
    pub cure: Option<Cure>,
}

/// What a user can expect of a start on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A SIF is served in place.
    FullSpeed,
    /// A SIF has to be unpacked before it runs.
    Restricted,
    /// No SIF can be started.
    Impossible,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::FullSpeed => "full-speed",
            Self::Restricted => "restricted",
            Self::Impossible => "impossible",
        }
    }

    /// Returns the exit code of `doctor`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::FullSpeed => 0,
            Self::Restricted => 1,
            Self::Impossible => 2,
        }
    }
}

/// Judges the whole: what starts need stands before what makes them fast. Findings of options don't count.
pub fn verdict(findings: &[Finding]) -> Verdict {
    let missing =
        |weight: Weight| findings.iter().any(|finding| finding.weight == weight && finding.state == State::Missing);
    let can_unpack =
        findings.iter().any(|finding| finding.weight == Weight::Unpacking && finding.state != State::Missing);
    if missing(Weight::Start) {
        Verdict::Impossible
    } else if !missing(Weight::Serving) {
        Verdict::FullSpeed
    } else if can_unpack {
        Verdict::Restricted
    } else {
        Verdict::Impossible
    }
}

/// Judges what the probes brought, in the order in which a reader wants to know it.
pub fn diagnose(results: &ProbeResults) -> Vec<Finding> {
    let mut findings = vec![
        kernel(results),
        of_attempts(
            results,
            "user namespaces",
            Weight::Start,
            "a start without privileges begins with one",
            &[Attempt::UnshareUser, Attempt::DenySetgroups, Attempt::WriteUidMap, Attempt::WriteGidMap],
        ),
        of_attempts(
            results,
            "mounts",
            Weight::Start,
            "the container's root, and every bind, is a mount in a namespace of its own",
            &[Attempt::UnshareMounts, Attempt::MakeSlave, Attempt::MountTmpfs, Attempt::Bind, Attempt::PivotRoot],
        ),
        fuse(results),
        of_attempts(
            results,
            "overlay",
            Weight::Option,
            "`--writable-tmpfs` and other writable layers over an image are overlays",
            &[Attempt::MountOverlay],
        ),
        of_attempts(
            results,
            "pid namespaces",
            Weight::Option,
            "`--pid` and `--containall` hide the host's processes",
            &[Attempt::UnsharePid],
        ),
        of_attempts(
            results,
            "fresh /proc",
            Weight::Option,
            "`--pid` shows the container's processes alone; without it the host's `/proc` is bound",
            &[Attempt::MountProc],
        ),
        of_attempts(
            results,
            "other namespaces",
            Weight::Option,
            "`--ipc`, `--uts` and `--net` need one each",
            &[Attempt::UnshareIpc, Attempt::UnshareUts, Attempt::UnshareNet],
        ),
        of_attempts(
            results,
            "joining",
            Weight::Option,
            "a further command enters a running container by joining its namespaces",
            &[Attempt::JoinNamespaces],
        ),
        of_attempts(
            results,
            "root emulation",
            Weight::Option,
            "`--fakeroot` without subordinate ids gives files away to other users through it",
            &[Attempt::EmulateRoot],
        ),
        subordinate_ids(results),
        control_groups(&results.control_groups),
    ];
    findings.extend(results.temporary_directories.iter().map(temporary_directory));
    findings.extend([user_entry(results), ptrace(results), foreign_programs(results)]);
    findings
}

fn ok(subject: &'static str, weight: Weight, why: &'static str, detail: impl Into<String>) -> Finding {
    Finding { subject, state: State::Ok, detail: detail.into(), why, weight, cure: None }
}

/// Judges an ability by the steps that it consists of: the first that failed names the cause.
fn of_attempts(
    results: &ProbeResults,
    subject: &'static str,
    weight: Weight,
    why: &'static str,
    attempts: &[Attempt],
) -> Finding {
    let outcomes = attempts.iter().map(|attempt| (*attempt, results.outcome(*attempt)));
    for (attempt, outcome) in outcomes {
        let (detail, cure) = match outcome {
            Outcome::Done => continue,
            Outcome::Failed { errno } => {
                let diagnosis = explain(attempt, errno, &results.switches, results.fuse);
                (diagnosis.to_string(), diagnosis.cure)
            }
            Outcome::NotTried => ("not tried: something before it is missing".to_owned(), None),
            Outcome::TimedOut => ("no answer in time".to_owned(), None),
        };
        return Finding { subject, state: State::Missing, detail, why, weight, cure };
    }
    ok(subject, weight, why, "works")
}

fn kernel(results: &ProbeResults) -> Finding {
    let kernel = &results.kernel;
    let version = kernel.version();
    let name = format!("Linux {} on {}", kernel.release, kernel.machine);
    let why = "users may mount FUSE filesystems since 4.18 and overlays since 5.11";
    let around = surroundings(results);
    let detail = if around.is_empty() { name } else { format!("{name}; {}", around.join(", ")) };
    let state = if version != (0, 0) && version < KERNEL_WANTED { State::Limited } else { State::Ok };
    let cure =
        (state != State::Ok).then(|| Cure::advice(CuredBy::Administrator, "install a kernel of version 4.18 or later"));
    Finding { subject: "kernel", state, detail, why, weight: Weight::Option, cure }
}

/// What lies around this process: not good or bad in itself, but the first question of whoever reads the page.
fn surroundings(results: &ProbeResults) -> Vec<String> {
    let switches = &results.switches;
    let mut around = Vec::new();
    match switches.container {
        None => {}
        Some(ContainerEngine::Other) => around.push("in a container".to_owned()),
        Some(engine) => around.push(format!("in a container ({engine:?})")),
    }
    if switches.nested {
        around.push("in a user namespace".to_owned());
    }
    if switches.seccomp == 2 {
        around.push("under a system call filter".to_owned());
    }
    if let Some(label) = switches.apparmor_label.as_deref().filter(|label| *label != "unconfined") {
        around.push(format!("AppArmor `{label}`"));
    }
    if switches.selinux_enforcing {
        around.push("SELinux enforcing".to_owned());
    }
    around
}

fn fuse(results: &ProbeResults) -> Finding {
    let why = "the image is served through it; without it each start unpacks the image first";
    let (subject, weight) = ("/dev/fuse", Weight::Serving);
    let judged = of_attempts(results, subject, weight, why, &[Attempt::OpenFuse, Attempt::MountFuse]);
    // The device was looked at outside the namespace too: that says why where the probe got no further.
    let errno = match results.fuse {
        FuseDevice::NotObserved | FuseDevice::Usable => return judged,
        FuseDevice::Missing => 2,
        FuseDevice::Denied { .. } => 13,
        FuseDevice::NotADevice => 22,
        FuseDevice::NoDriver => 19,
        FuseDevice::Refused { errno } => errno,
    };
    let diagnosis = explain(Attempt::OpenFuse, errno, &results.switches, results.fuse);
    Finding { state: State::Missing, detail: diagnosis.cause.to_string(), cure: diagnosis.cure, ..judged }
}

fn subordinate_ids(results: &ProbeResults) -> Finding {
    let why = "with them `--fakeroot` can be any user; without them uid 0 alone";
    let subject = "subordinate ids";
    let ids = &results.subordinate_ids;
    let limited = |detail: String, cure| Finding {
        subject,
        state: State::Limited,
        detail,
        why,
        weight: Weight::Option,
        cure: Some(cure),
    };
    let (uids, gids) = (total(&ids.uid_ranges), total(&ids.gid_ranges));
    if uids == 0 || gids == 0 {
        let file = match (uids, gids) {
            (0, 0) => "`/etc/subuid` and `/etc/subgid` have",
            (0, _) => "`/etc/subuid` has",
            _ => "`/etc/subgid` has",
        };
        let ranges = "--add-subuids 100000-165535 --add-subgids 100000-165535";
        // A user of a directory service has no line for usermod to extend; the files take any name.
        let command = match results.entry_source {
            EntrySource::PasswordFile => format!("sudo usermod {ranges} {}", results.user_name),
            _ => format!("echo {}:100000:65536 | sudo tee -a /etc/subuid /etc/subgid", results.uid),
        };
        let cure = Cure::new(CuredBy::Administrator, "give you a range", command);
        return limited(format!("{file} no line for {}", results.user_name), cure);
    }
    let (Some(newuidmap), Some(newgidmap)) = (&ids.newuidmap, &ids.newgidmap) else {
        let command = "sudo apt install uidmap || sudo dnf install shadow-utils";
        let cure = Cure::new(CuredBy::Administrator, "install both", command);
        return limited("`newuidmap` or `newgidmap` is not installed".to_owned(), cure);
    };
    if let Some(helper) = [newuidmap, newgidmap].into_iter().find(|helper| !helper.privileged) {
        let command = format!("sudo chown root {0} && sudo chmod u+s {0}", helper.path);
        let cure = Cure::new(CuredBy::Administrator, "make it set-uid root", command);
        return limited(format!("`{}` has no privilege to map ids", helper.path), cure);
    }
    for attempt in [Attempt::RunNewuidmap, Attempt::RunNewgidmap] {
        if let Outcome::Failed { errno } = results.outcome(attempt) {
            let diagnosis = explain(attempt, errno, &results.switches, results.fuse);
            let again = format!("sudo chmod u+s {} {}", newuidmap.path, newgidmap.path);
            let cure = Cure::new(CuredBy::Administrator, "give them their privilege", again);
            return limited(diagnosis.cause.to_string(), cure);
        }
    }
    ok(subject, Weight::Option, why, format!("{uids} uids and {gids} gids"))
}

fn total(ranges: &[IdRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.count)).sum()
}

fn control_groups(groups: &ControlGroups) -> Finding {
    let (subject, weight) = ("control groups", Weight::Option);
    let why = "limits on memory and processors need a delegated group; nothing else does";
    let limited = |state, detail: String, cure| Finding { subject, state, detail, why, weight, cure };
    match groups {
        ControlGroups::Absent => limited(
            State::Missing,
            "none are mounted".to_owned(),
            Some(Cure::new(CuredBy::Administrator, "mount them", "sudo mount -t cgroup2 cgroup2 /sys/fs/cgroup")),
        ),
        ControlGroups::Version1 => limited(
            State::Limited,
            "version 1, which can't be delegated".to_owned(),
            Some(Cure::new(
                CuredBy::Administrator,
                "switch to version 2, from the next boot on,",
                "sudo grubby --update-kernel=ALL --args=systemd.unified_cgroup_hierarchy=1",
            )),
        ),
        ControlGroups::Version2 { group, delegated: true, controllers, .. } => {
            let controllers = if controllers.is_empty() { "no controllers".to_owned() } else { controllers.join(", ") };
            ok(subject, weight, why, format!("version 2, `{group}` is yours: {controllers}"))
        }
        ControlGroups::Version2 { group, user_manager, .. } => {
            let cure = if *user_manager {
                let command = "systemd-run --user --scope -p Delegate=yes $SHELL";
                Cure::new(CuredBy::Caller, "get a group of your own", command)
            } else {
                Cure::new(CuredBy::Administrator, "start a manager for you", "sudo loginctl enable-linger $USER")
            };
            limited(State::Limited, format!("version 2, `{group}` is not delegated to you"), Some(cure))
        }
    }
}

fn temporary_directory(directory: &TemporaryDirectory) -> Finding {
    let subject = "temporary files";
    let why = "images are unpacked there where they can't be served, and builds work there";
    let free = gibibytes(directory.free_bytes);
    let name = match &directory.variable {
        Some(variable) => format!("`{}` (from `{variable}`)", directory.path),
        None => format!("`{}`", directory.path),
    };
    let elsewhere =
        Cure::new(CuredBy::Caller, "name another directory", "export SIFU_TMPDIR=/path/to/a/local/directory");
    let with = |state, detail: String, cure| Finding { subject, state, detail, why, weight: Weight::Unpacking, cure };
    if let Some(errno) = directory.unwritable {
        let detail = format!("{name} can't be written: {}", super::errno_text(errno));
        return with(State::Missing, detail, Some(elsewhere));
    }
    if directory.noexec {
        let detail = format!("{name} is mounted noexec: nothing unpacked there can run");
        return with(State::Missing, detail, Some(elsewhere));
    }
    if directory.free_bytes < SPACE_WANTED {
        return with(State::Limited, format!("{name} has {free} free"), Some(elsewhere));
    }
    // Containers get their devices from the host; only what is unpacked with device nodes in it would miss them.
    let nodev = if directory.nodev { ", nodev: no device files in what is unpacked there" } else { "" };
    with(State::Ok, format!("{name} has {free} free{nodev}"), None)
}

/// Writes a size for people: `12.3 GiB`.
fn gibibytes(bytes: u64) -> String {
    format!("{}.{} GiB", bytes >> 30, ((bytes & ((1 << 30) - 1)) * 10) >> 30)
}

fn user_entry(results: &ProbeResults) -> Finding {
    let (subject, weight) = ("user entry", Weight::Option);
    let why = "the container's password file gets your line";
    match results.entry_source {
        EntrySource::PasswordFile => ok(subject, weight, why, format!("`{}`, from /etc/passwd", results.user_name)),
        EntrySource::NameService => ok(subject, weight, why, format!("`{}`, from the name service", results.user_name)),
        EntrySource::Environment => Finding {
            subject,
            state: State::Limited,
            detail: format!("nobody knows uid {}; `{}` is made from the environment", results.uid, results.user_name),
            why,
            weight,
            cure: Some(Cure::new(CuredBy::Caller, "choose name and home", "export USER=name HOME=/path/to/a/home")),
        },
    }
}

fn ptrace(results: &ProbeResults) -> Finding {
    let (subject, weight) = ("memory of ranks", Weight::Option);
    let why = "MPI ranks of one node copy from each other's memory where `kernel.yama.ptrace_scope` is 0";
    match results.switches.ptrace_scope {
        None | Some(0) => ok(subject, weight, why, "single copies between ranks are allowed"),
        Some(scope) => Finding {
            subject,
            state: State::Limited,
            detail: format!("`kernel.yama.ptrace_scope` is {scope}: MPI falls back to two copies"),
            why,
            weight,
            cure: Some(Cure::sysctl("allow it", "kernel.yama.ptrace_scope", 0)),
        },
    }
}

fn foreign_programs(results: &ProbeResults) -> Finding {
    let (subject, weight) = ("foreign programs", Weight::Option);
    let why = "images of other machines run through an interpreter that is registered with the kernel";
    let usable: Vec<&str> = results
        .binary_formats
        .iter()
        .flatten()
        .filter(|format| format.enabled && format.fixed)
        .map(|format| format.name.as_str())
        .collect();
    if !usable.is_empty() {
        return ok(subject, weight, why, usable.join(", "));
    }
    let detail = match &results.binary_formats {
        Some(formats) if !formats.is_empty() => "the registered interpreters do not work in containers (flag F)",
        _ => "no interpreter is registered",
    };
    let command = "sudo apt install qemu-user-static || sudo dnf install qemu-user-static";
    let cure = Some(Cure::new(CuredBy::Administrator, "install some", command));
    Finding { subject, state: State::Missing, detail: detail.to_owned(), why, weight, cure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::{BinaryFormat, MapHelper, probed_laptop};
    use starter::paths::HostPath;

    /// A laptop with something broken.
    fn broken(sabotage: impl FnOnce(&mut ProbeResults)) -> ProbeResults {
        let mut results = probed_laptop();
        sabotage(&mut results);
        results
    }

    /// Lets `attempt` fail, and those that come after it without an outcome.
    fn fail(results: &mut ProbeResults, attempt: Attempt, errno: i32, and_untried: &[Attempt]) {
        for (of, outcome) in &mut results.outcomes {
            if *of == attempt {
                *outcome = Outcome::Failed { errno };
            } else if and_untried.contains(of) {
                *outcome = Outcome::NotTried;
            }
        }
    }

    const AFTER_USER: [Attempt; 16] = [
        Attempt::DenySetgroups,
        Attempt::WriteUidMap,
        Attempt::WriteGidMap,
        Attempt::OpenFuse,
        Attempt::UnshareMounts,
        Attempt::MountTmpfs,
        Attempt::MountFuse,
        Attempt::Bind,
        Attempt::MountOverlay,
        Attempt::UnsharePid,
        Attempt::MountProc,
        Attempt::UnshareIpc,
        Attempt::UnshareUts,
        Attempt::PivotRoot,
        Attempt::JoinNamespaces,
        Attempt::EmulateRoot,
    ];

    /// Judges a host: the verdict, and the subject whose finding is worst, with words of its detail and its cure.
    #[track_caller]
    fn check(results: &ProbeResults, expected: Verdict, subject: &str, detail: &str, cure: &str) {
        let findings = diagnose(results);
        assert_eq!(verdict(&findings), expected, "{findings:#?}");
        let of = |finding: &&Finding| finding.subject == subject && finding.detail.contains(detail);
        let finding = findings.iter().find(of).unwrap_or_else(|| panic!("{subject}: {detail}\n{findings:#?}"));
        assert_ne!(finding.state, State::Ok, "{finding:?}");
        let text = finding.cure.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains(cure), "{text}");
    }

    #[test]
    fn a_whole_laptop_has_full_speed_and_nothing_to_cure_but_foreign_programs() {
        let findings = diagnose(&probed_laptop());
        assert_eq!(verdict(&findings), Verdict::FullSpeed);
        let ill: Vec<&str> =
            findings.iter().filter(|finding| finding.state != State::Ok).map(|finding| finding.subject).collect();
        assert_eq!(ill, ["foreign programs"]);
        let with = broken(|results| {
            let format = BinaryFormat { name: "qemu-aarch64".into(), enabled: true, fixed: true };
            results.binary_formats = Some(vec![format]);
        });
        assert!(diagnose(&with).iter().all(|finding| finding.state == State::Ok && finding.cure.is_none()));
    }

    #[test]
    fn a_host_that_blocks_user_namespaces_starts_nothing() {
        let check = |errno, sabotage: &dyn Fn(&mut ProbeResults), detail, cure| {
            let results = broken(|results| {
                fail(results, Attempt::UnshareUser, errno, &AFTER_USER);
                sabotage(results);
            });
            check(&results, Verdict::Impossible, "user namespaces", detail, cure);
        };
        check(1, &|r| r.switches.unprivileged_userns_clone = Some(0), "unprivileged_userns_clone", "sysctl -p");
        check(28, &|r| r.switches.max_user_namespaces = Some(0), "max_user_namespaces` is 0", "15000");
        check(28, &|_| {}, "max_user_namespaces` of 63000", "126000");
        check(22, &|r| r.switches.kernel_has_user_namespaces = false, "no user namespaces", "CONFIG_USER_NS");
        check(1, &|r| r.switches.chroot = true, "chroot", "pivot_root");
        check(1, &|r| r.switches.unmapped_caller = true, "no mapping", "map the caller");
        check(87, &|_| {}, "nested", "less deeply");
        check(13, &|r| r.switches.selinux_enforcing = true, "SELinux", "ausearch");
        check(1, &|_| {}, "(error 1)", "");
    }

    #[test]
    fn a_default_docker_container_starts_nothing_and_says_how_to_start_it() {
        let results = broken(|results| {
            fail(results, Attempt::UnshareUser, 1, &AFTER_USER);
            results.switches.seccomp = 2;
            results.switches.container = Some(ContainerEngine::Docker);
            results.fuse = FuseDevice::Missing;
        });
        check(&results, Verdict::Impossible, "user namespaces", "filter", "seccomp=unconfined");
        check(&results, Verdict::Impossible, "/dev/fuse", "there is no", "--device /dev/fuse");
    }

    #[test]
    fn an_unprofiled_program_on_ubuntu_fails_at_the_mounts_and_gets_a_profile() {
        let results = broken(|results| {
            fail(results, Attempt::UnshareMounts, 1, &AFTER_USER[5..]);
            results.switches.apparmor_restrict_userns = Some(1);
        });
        check(&results, Verdict::Impossible, "mounts", "AppArmor", "profile sifu");
    }

    #[test]
    fn no_mount_namespaces_no_start() {
        let results = broken(|results| {
            fail(results, Attempt::UnshareMounts, 28, &AFTER_USER[5..]);
            results.switches.max_mnt_namespaces = Some(0);
        });
        check(&results, Verdict::Impossible, "mounts", "max_mnt_namespaces", "15000");
    }

    #[test]
    fn without_fuse_a_start_is_restricted() {
        let check = |fuse, errno, detail, cure| {
            let results = broken(|results| {
                fail(results, Attempt::OpenFuse, errno, &[Attempt::MountFuse]);
                results.fuse = fuse;
            });
            check(&results, Verdict::Restricted, "/dev/fuse", detail, cure);
        };
        check(FuseDevice::Missing, 2, "there is no", "modprobe fuse");
        check(FuseDevice::Denied { mode: 0o600, uid: 0, gid: 0 }, 13, "mode 0600", "chmod 0666");
        check(FuseDevice::Refused { errno: 1 }, 1, "can't be opened", "device rules");
        check(FuseDevice::NoDriver, 19, "no driver", "modprobe");
    }

    #[test]
    fn a_fuse_mount_that_is_refused_restricts_as_well() {
        let results = broken(|results| {
            fail(results, Attempt::MountFuse, 1, &[]);
            results.kernel.release = "3.10.0-1160.el7".into();
            results.switches.kernel = Some(results.kernel.clone());
        });
        check(&results, Verdict::Restricted, "/dev/fuse", "older than 4.18", "4.18 or later");
        check(&results, Verdict::Restricted, "kernel", "3.10", "4.18 or later");
    }

    #[test]
    fn an_old_kernel_serves_images_and_says_what_it_is_too_old_for() {
        let results = broken(|results| {
            fail(results, Attempt::MountOverlay, 1, &[]);
            results.outcomes.retain(|(of, _)| *of != Attempt::EmulateRoot);
            results.outcomes.push((Attempt::EmulateRoot, Outcome::Failed { errno: 22 }));
            results.kernel.release = "4.18.0-553.el8_10.x86_64".into();
            results.switches.kernel = Some(results.kernel.clone());
        });
        check(&results, Verdict::FullSpeed, "overlay", "older than 5.11", "5.11 or later");
        check(&results, Verdict::FullSpeed, "root emulation", "older than 5.9", "5.9 or later");
        let kernel = kernel(&results);
        assert_eq!(kernel.state, State::Ok);
        assert!(kernel.detail.contains("4.18.0"), "{}", kernel.detail);
    }

    #[test]
    fn the_surroundings_name_an_engine_that_is_known() {
        let with = |engine| broken(|results| results.switches.container = Some(engine));
        assert!(kernel(&with(ContainerEngine::Docker)).detail.ends_with("; in a container (Docker)"));
        assert!(kernel(&with(ContainerEngine::Other)).detail.ends_with("; in a container"));
    }

    #[test]
    fn without_fuse_and_without_a_place_to_unpack_nothing_starts() {
        let results = broken(|results| {
            fail(results, Attempt::OpenFuse, 2, &[Attempt::MountFuse]);
            results.fuse = FuseDevice::Missing;
            results.temporary_directories[0].noexec = true;
        });
        check(&results, Verdict::Impossible, "temporary files", "noexec", "SIFU_TMPDIR");
    }

    #[test]
    fn a_bad_temporary_directory_alone_does_not_slow_a_start() {
        let with = |sabotage: &dyn Fn(&mut TemporaryDirectory)| {
            broken(|results| sabotage(&mut results.temporary_directories[0]))
        };
        let full = Verdict::FullSpeed;
        check(&with(&|d| d.noexec = true), full, "temporary files", "noexec", "SIFU_TMPDIR");
        check(&with(&|d| d.unwritable = Some(30)), full, "temporary files", "can't be written", "SIFU_TMPDIR");
        check(&with(&|d| d.free_bytes = 1 << 30), full, "temporary files", "1.0 GiB free", "SIFU_TMPDIR");
    }

    #[test]
    fn options_that_are_missing_do_not_count_against_a_start() {
        let failed = |attempt, errno| broken(|results| fail(results, attempt, errno, &[]));
        let full = Verdict::FullSpeed;
        check(&failed(Attempt::MountOverlay, 19), full, "overlay", "not loaded", "modprobe overlay");
        check(&failed(Attempt::UnshareNet, 28), full, "other namespaces", "max_net_namespaces", "126000");
        check(&failed(Attempt::JoinNamespaces, 1), full, "joining", "(error 1)", "");
        check(&failed(Attempt::EmulateRoot, 22), full, "root emulation", "(error 22)", "");
        let masked = broken(|results| {
            fail(results, Attempt::MountProc, 1, &[]);
            results.switches.masked_proc = vec![HostPath::new("/proc/kcore")];
        });
        check(&masked, full, "fresh /proc", "covered", "umount /proc/kcore");
        let yama = broken(|results| results.switches.ptrace_scope = Some(1));
        check(&yama, full, "memory of ranks", "ptrace_scope` is 1", "kernel.yama.ptrace_scope=0");
    }

    #[test]
    fn subordinate_ids_fail_in_four_ways() {
        let full = Verdict::FullSpeed;
        let none = broken(|results| results.subordinate_ids.uid_ranges.clear());
        check(&none, full, "subordinate ids", "`/etc/subuid` has no line for ada", "usermod");
        let directory = broken(|results| {
            results.subordinate_ids.gid_ranges.clear();
            results.entry_source = EntrySource::NameService;
        });
        check(&directory, full, "subordinate ids", "`/etc/subgid` has", "echo 1000:100000:65536");
        let helper = broken(|results| results.subordinate_ids.newgidmap = None);
        check(&helper, full, "subordinate ids", "not installed", "uidmap");
        let plain = broken(|results| {
            let path = HostPath::new("/opt/newuidmap");
            results.subordinate_ids.newuidmap = Some(MapHelper { path, privileged: false });
        });
        check(&plain, full, "subordinate ids", "`/opt/newuidmap` has no privilege", "chmod u+s /opt/newuidmap");
        let refused = broken(|results| fail(results, Attempt::RunNewgidmap, 1, &[]));
        check(&refused, full, "subordinate ids", "did not map", "chmod u+s /usr/bin/newuidmap");
    }

    #[test]
    fn control_groups_are_told_apart() {
        let full = Verdict::FullSpeed;
        let with = |groups: ControlGroups| broken(|results| results.control_groups = groups);
        check(&with(ControlGroups::Version1), full, "control groups", "version 1", "grubby");
        check(&with(ControlGroups::Absent), full, "control groups", "none", "mount -t cgroup2");
        let own = |user_manager| ControlGroups::Version2 {
            group: HostPath::new("/sys/fs/cgroup/system.slice/slurmd.service"),
            delegated: false,
            controllers: Vec::new(),
            user_manager,
        };
        check(&with(own(true)), full, "control groups", "not delegated", "systemd-run --user");
        check(&with(own(false)), full, "control groups", "not delegated", "enable-linger");
    }

    #[test]
    fn an_unknown_uid_is_told_and_does_no_harm() {
        let results = broken(|results| results.entry_source = EntrySource::Environment);
        check(&results, Verdict::FullSpeed, "user entry", "nobody knows uid 1000", "export USER");
    }

    #[test]
    fn sizes_are_written_in_tenths() {
        assert_eq!(gibibytes(0), "0.0 GiB");
        assert_eq!(gibibytes(3 << 29), "1.5 GiB");
        assert_eq!(gibibytes(u64::MAX), "17179869183.9 GiB");
    }
}
