//! `sifu doctor` on machines that were broken on purpose, as an ordinary user could.
//!
//! Each sabotage is a script that runs in namespaces of its own (`unshare` of util-linux) before sifu takes its place.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::need::{FUSE, USERNS, lacks};
use crate::support::{Scratch, find_program, sifu, sifu_path};

/// The page for programs, and the exit code.
struct Page {
    code: Option<i32>,
    json: Value,
}

impl Page {
    /// Returns state and detail of a finding.
    #[track_caller]
    fn finding(&self, subject: &str) -> (&str, &str) {
        let findings = self.json["findings"].as_array().expect("a list of findings");
        let of = |finding: &&Value| finding["subject"] == subject;
        let finding = findings.iter().find(of).unwrap_or_else(|| panic!("a finding on {subject}: {}", self.json));
        let text = |name: &str| finding[name].as_str().expect("a text");
        (text("state"), text("detail"))
    }

    /// Checks the verdict, and that the finding on `subject` is missing for a reason that has these words.
    #[track_caller]
    fn check(&self, code: i32, subject: &str, detail: &str) {
        let (state, said) = self.finding(subject);
        assert!(state == "missing" && said.contains(detail), "{state} {said}: {:#}", self.json);
        assert_eq!(self.code, Some(code), "{:#}", self.json);
    }
}

/// Runs `command` with `sifu doctor --json` after it.
#[track_caller]
fn doctor(mut command: Command, program: PathBuf) -> Page {
    let output = command.arg(program).args(["doctor", "--json"]).stdin(Stdio::null()).output().expect("a doctor");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    assert_eq!(stderr, "", "the doctor says nothing beside the page");
    Page { code: output.status.code(), json }
}

/// Asks the doctor in new namespaces (options of `unshare`), after a script has broken something in them.
#[track_caller]
fn sabotaged(options: &[&str], script: &str) -> Page {
    let mut command = Command::new("unshare");
    command.args(options).args(["--", "sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"]);
    doctor(command, sifu_path())
}

/// Root in a user namespace, with mounts of its own.
const ROOT: &[&str] = &["--user", "--map-root-user", "--mount"];

fn cannot_sabotage() -> bool {
    lacks(&[USERNS])
}

#[test]
fn a_page_for_people_ends_with_the_verdict_that_the_exit_code_gives() {
    let output = sifu(&["doctor"]).run();
    assert_eq!(output.stderr, "");
    let last = output.stdout.lines().last().unwrap_or_default();
    let expected = match output.code {
        Some(0) => "A SIF starts at full speed here.",
        Some(1) => "A SIF starts here, but has to be unpacked first.",
        Some(2) => "No container can be started here.",
        code => panic!("an exit code of 0, 1 or 2: {code:?}"),
    };
    assert!(last.starts_with(expected), "{last}");
    assert!(output.stdout.lines().any(|line| line.contains("user namespaces")), "{}", output.stdout);
}

#[test]
fn a_machine_with_namespaces_and_fuse_has_full_speed() {
    if lacks(&[USERNS, FUSE]) {
        return;
    }
    let page = sabotaged(&["--user", "--map-current-user"], "true");
    assert_eq!((page.code, page.json["verdict"].as_str()), (Some(0), Some("full-speed")), "{:#}", page.json);
    assert_eq!(page.finding("/dev/fuse"), ("ok", "works"));
}

#[test]
fn a_limit_of_no_user_namespaces_is_named() {
    if cannot_sabotage() {
        return;
    }
    let page = sabotaged(ROOT, "echo 0 > /proc/sys/user/max_user_namespaces");
    page.check(2, "user namespaces", "`user.max_user_namespaces` is 0");
    assert_eq!(page.json["attempts"]["unshare-user"]["errno"], 28);
}

#[test]
fn a_limit_that_is_used_up_is_told_from_one_of_none() {
    if cannot_sabotage() {
        return;
    }
    let script = "echo 1 > /proc/sys/user/max_user_namespaces\n\
                  unshare --user sleep 60 > /dev/null 2>&1 & holder=$!; trap 'kill $holder' EXIT; sleep 0.3";
    // The script stays, as the parent of sifu, to end the namespace that uses the limit up.
    let mut command = Command::new("unshare");
    command.args(ROOT).args(["--", "sh", "-ec", &format!("{script}\n\"$@\""), "sh"]);
    doctor(command, sifu_path()).check(2, "user namespaces", "`user.max_user_namespaces` of 1");
}

#[test]
fn a_limit_of_no_mount_namespaces_is_named() {
    if cannot_sabotage() {
        return;
    }
    let page = sabotaged(ROOT, "echo 0 > /proc/sys/user/max_mnt_namespaces");
    page.check(2, "mounts", "`user.max_mnt_namespaces` is 0");
    assert_eq!(page.finding("user namespaces").0, "ok");
}

#[test]
fn a_caller_without_a_mapping_is_named() {
    if cannot_sabotage() {
        return;
    }
    sabotaged(&["--user"], "true").check(2, "user namespaces", "no mapping");
}

#[test]
fn a_chroot_is_named() {
    if cannot_sabotage() {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    std::fs::create_dir(&root).expect("a directory");
    std::fs::copy(sifu_path(), scratch.path().join("sifu")).expect("a copy of sifu");
    // A plain directory as the root, with what a dynamic program needs.
    let script = format!(
        "cd {}\nfor name in usr bin lib lib64 etc proc dev tmp; do\n  test -d /$name || continue\n  \
         if test -L /$name; then cp -P /$name .; else mkdir $name; mount --rbind /$name $name; fi\ndone\n\
         cp ../sifu sifu; set -- chroot . /sifu doctor --json",
        root.display()
    );
    sabotaged(ROOT, &script).check(2, "user namespaces", "in a chroot");
}

#[test]
fn a_filter_of_system_calls_is_named() {
    if lacks(&[USERNS]) || find_program("bwrap").is_none() {
        return;
    }
    let Some(unshare) = (match std::env::consts::ARCH {
        "x86_64" => Some(272u32),
        "aarch64" | "riscv64" => Some(97),
        _ => None,
    }) else {
        return;
    };
    // Load the number of the call; if it is unshare, skip nothing and answer EPERM, else skip one and allow.
    let program: [(u16, u8, u8, u32); 4] =
        [(0x20, 0, 0, 0), (0x15, 0, 1, unshare), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)];
    let mut filter = Vec::new();
    for (code, yes, no, value) in program {
        filter.extend_from_slice(&code.to_ne_bytes());
        filter.extend_from_slice(&[yes, no]);
        filter.extend_from_slice(&value.to_ne_bytes());
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("filter");
    std::fs::write(&path, filter).expect("a filter");
    let mut command = Command::new("sh");
    command.args(["-c", "exec bwrap --dev-bind / / --seccomp 9 \"$@\" 9<\"$0\""]).arg(&path);
    doctor(command, sifu_path()).check(2, "user namespaces", "system call filter");
}

#[test]
fn a_missing_fuse_device_means_unpacking() {
    if cannot_sabotage() {
        return;
    }
    let page = sabotaged(ROOT, "mount -t tmpfs tmpfs /dev; : > /dev/null");
    page.check(1, "/dev/fuse", "there is no `/dev/fuse`");
    assert_eq!(page.json["verdict"], "restricted");
}

#[test]
fn another_file_in_the_place_of_the_device_is_told() {
    if lacks(&[USERNS, FUSE]) {
        return;
    }
    sabotaged(ROOT, "mount --bind /dev/null /dev/fuse").check(1, "/dev/fuse", "not the FUSE device");
}

#[test]
fn no_fuse_and_no_place_to_unpack_mean_no_start() {
    if cannot_sabotage() {
        return;
    }
    let script = "mount -t tmpfs tmpfs /dev; : > /dev/null\n\
                  mount -t tmpfs -o noexec tmpfs /tmp; mount -t tmpfs -o ro tmpfs /var/tmp";
    // sifu itself may lie below one of the two.
    let Some(directory) = sifu_path().parent().map(PathBuf::from) else { return };
    if directory.starts_with("/tmp") || directory.starts_with("/var/tmp") {
        return;
    }
    let page = sabotaged(ROOT, script);
    page.check(2, "temporary files", "noexec");
    assert_eq!(page.json["verdict"], "impossible");
}

#[test]
fn a_named_temporary_directory_is_judged_first() {
    if cannot_sabotage() {
        return;
    }
    let scratch = Scratch::new();
    let script =
        format!("mount -t tmpfs -o noexec,size=64k tmpfs {0}; export SIFU_TMPDIR={0}", scratch.path().display());
    let page = sabotaged(ROOT, &script);
    let (state, detail) = page.finding("temporary files");
    assert!(state == "missing" && detail.contains("(from `SIFU_TMPDIR`)") && detail.contains("noexec"), "{detail}");
}

#[test]
fn a_covered_part_of_proc_costs_the_fresh_one_and_not_the_start() {
    if lacks(&[USERNS, FUSE]) {
        return;
    }
    let page = sabotaged(ROOT, "mount --bind /dev/null /proc/version");
    page.check(0, "fresh /proc", "parts of `/proc` are covered");
    assert_eq!(page.finding("pid namespaces").0, "ok");
}

#[test]
fn a_uid_that_nobody_knows_gets_an_entry() {
    if lacks(&[USERNS, FUSE]) {
        return;
    }
    let page = sabotaged(&["--user", "--map-user=48213", "--map-group=48213"], "true");
    let (state, detail) = page.finding("user entry");
    assert!(state == "limited" && detail.contains("nobody knows uid 48213"), "{detail}");
    assert_eq!(page.code, Some(0), "{:#}", page.json);
}

#[test]
fn the_verdict_on_namespaces_is_what_another_program_finds() {
    let others = Command::new("unshare")
        .args(["--user", "--mount", "--map-root-user", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let page = doctor(Command::new("env"), sifu_path());
    let (user, mounts) = (page.finding("user namespaces").0, page.finding("mounts").0);
    assert_eq!(user == "ok" && mounts == "ok", others, "{:#}", page.json);
}

/// Asks the doctor as a uid that no file knows, on a host whose name service is this script.
#[track_caller]
fn with_name_service(script: &str) -> Option<Page> {
    let there = |path: &str| std::path::Path::new(path).exists();
    if lacks(&[USERNS]) || !there("/usr/bin/getent") || !there("/etc/nsswitch.conf") {
        return None;
    }
    let scratch = Scratch::new();
    let program = scratch.file("getent", &format!("#!/bin/sh\n{script}\n"));
    let services = scratch.file("nsswitch.conf", "passwd: files ldap\ngroup: files ldap\n");
    let sabotage = format!(
        "chmod 755 {0}; mount --bind {0} /usr/bin/getent; mount --bind {1} /etc/nsswitch.conf\n\
         set -- unshare --user --map-user=48213 --map-group=48213 -- \"$@\"",
        program.display(),
        services.display()
    );
    Some(sabotaged(ROOT, &sabotage))
}

#[test]
fn a_user_of_a_directory_service_is_found() {
    let Some(page) = with_name_service("echo maria:x:48213:48213:Maria:/home/maria:/bin/sh") else { return };
    assert_eq!(page.finding("user entry"), ("ok", "`maria`, from the name service"));
}

#[test]
fn a_directory_service_that_hangs_is_not_waited_for() {
    let begin = std::time::Instant::now();
    let Some(page) = with_name_service("exec sleep 30") else { return };
    assert_eq!(page.finding("user entry").0, "limited");
    assert!(begin.elapsed() < std::time::Duration::from_secs(15), "{:?}", begin.elapsed());
}
