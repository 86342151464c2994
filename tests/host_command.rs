//! `--host-cmd`: commands of the host, run by programs in a container.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::need::{BUSYBOX, FUSE, Need, SIFU, STATIC, USERNS, lacks};
use crate::support::{Output, Scratch, busybox_image, busybox_root, sifu, sifu_path};

const START: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX, STATIC];

/// A directory that is on the host's search path, and a command in it.
struct Host {
    scratch: Scratch,
}

impl Host {
    fn new(name: &str, script: &str) -> Self {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path().join("work")).expect("a directory");
        let host = Self { scratch };
        host.command(name, script);
        host
    }

    fn command(&self, name: &str, script: &str) {
        let file = self.scratch.file(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(file, PermissionsExt::from_mode(0o755)).expect("mode");
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    fn sifu(&self, flags: &[&str], script: &str) -> crate::support::Sifu {
        let image = busybox_image().display().to_string();
        let words = [&["exec"], flags, &[&image, "sh", "-c", script]].concat();
        let path = std::env::var("PATH").unwrap_or_default();
        sifu(&words).env("PATH", format!("{}:{path}", self.path("bin"))).current_dir(self.path("work"))
    }

    fn run(&self, flags: &[&str], script: &str) -> Output {
        self.sifu(flags, script).run()
    }

    /// Processes that name this test's directory, or stand in it.
    fn processes(&self) -> Vec<String> {
        let directory = self.scratch.path().file_name().expect("a name").to_string_lossy();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc can be listed").flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // In the container the directory has a path of another mount.
            let stands = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if line.contains(&*directory) || stands.to_string_lossy().contains(&*directory) {
                found.push(line);
            }
        }
        found
    }
}

#[track_caller]
fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !happens() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn words_streams_and_exit_code_pass_as_they_are() {
    if lacks(START) {
        return;
    }
    let script = "for word; do echo \"<$word>\"; done; cat; echo complaint >&2; exit 7";
    let host = Host::new("fake", script);
    let said = host.sifu(&["--host-cmd", "fake"], "fake 'a  b' '' '$HOME;*' -- \"x\ny\"").input("from inside").run();
    assert_eq!(said.code, Some(7), "{said:?}");
    assert_eq!(said.stdout, "<a  b>\n<>\n<$HOME;*>\n<-->\n<x\ny>\nfrom inside");
    assert_eq!(said.stderr, "complaint\n");
}

#[test]
fn the_command_runs_on_the_host_in_the_same_directory() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "readlink /proc/self/ns/mnt; pwd; umask");
    let own = fs::read_link("/proc/self/ns/mnt").expect("a namespace").display().to_string();
    let said = host.run(&["--host-cmd", "fake"], "mkdir below; cd below; umask 027; fake");
    assert_eq!(said.quiet_success(), format!("{own}\n{}\n0027", host.path("work/below")));
}

#[test]
fn only_what_was_named_is_there_and_by_the_search_path_of_the_start() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "echo $0 $PATH");
    host.command("other", "echo never");
    let said = host.run(&["--host-cmd", "fake"], "PATH=/tmp:$PATH fake; other");
    assert_eq!(said.code, Some(127), "{said:?}");
    assert!(said.stdout.starts_with(&format!("{} {}:", host.path("bin/fake"), host.path("bin"))), "{said:?}");
    // A file of another name asks for nothing that was not offered.
    let forged = "cp /.singularity.d/host-cmd/fake /.singularity.d/host-cmd/other; other";
    let said = host.run(&["--host-cmd", "fake"], forged);
    assert_eq!(said.clean_failure(), "FATAL:   cannot run other on the host: --host-cmd does not name it\n");
    // Without the flag there is nothing.
    assert_eq!(host.run(&[], "fake").code, Some(127));
}

#[test]
fn the_environment_is_the_host_s_but_for_the_scheduler() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "echo $OUTSIDE,$INSIDE,$SLURM_CONF,$SLURM_JOB_ID,$SBATCH_ACCOUNT,$LD_PRELOAD");
    let script =
        "export INSIDE=1 OUTSIDE=changed LD_PRELOAD=/x.so SBATCH_ACCOUNT=a; unset SLURM_JOB_ID; fake 2>/dev/null";
    let run = |flags: &[&str], script| {
        let sifu = host.sifu(&[&["--host-cmd", "fake"], flags].concat(), script);
        sifu.env("OUTSIDE", "host").env("SLURM_CONF", "/conf").env("SLURM_JOB_ID", "5").run()
    };
    assert_eq!(run(&[], script).stdout, "host,,/conf,,a,\n");
    // What the container never had was not unset in it.
    assert_eq!(run(&["--cleanenv"], "SBATCH_ACCOUNT=b fake").stdout, "host,,/conf,5,b,\n");
}

#[test]
fn contained_without_a_network_and_as_root_it_works_too() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "echo reached");
    for flags in [
        &["--contain", "--cleanenv", "--cwd", "/"][..],
        &["--containall", "--cwd", "/"],
        &["--net", "--network", "none"],
        &["--fakeroot"],
        &["--writable-tmpfs"],
        &["--unsquash"],
    ] {
        let said = host.run(&[&["--quiet", "--host-cmd", "fake"], flags].concat(), "fake");
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), "reached\n"), "{flags:?}: {said:?}");
    }
}

#[test]
fn a_directory_is_an_image_too_and_a_writable_one_needs_the_place() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "echo reached");
    let root = host.path("root");
    busybox_root(root.as_ref());
    let run = |flags: &[&str]| {
        let words = [&["exec", "--host-cmd", "fake"], flags, &[&root, "fake"]].concat();
        sifu(&words).env("PATH", format!("{}:/usr/bin:/bin", host.path("bin"))).current_dir("/").run()
    };
    assert_eq!(run(&[]).quiet_success(), "reached");
    let refused = run(&["--writable"]);
    assert!(refused.clean_failure().contains("cannot bind `--host-cmd` on /.singularity.d/host-cmd"), "{refused:?}");
    // An environment that only a shell inside can evaluate leads to the commands as well.
    fs::create_dir_all(format!("{root}/.singularity.d/env")).expect("directories");
    fs::write(format!("{root}/.singularity.d/env/50-group.sh"), "export FIRST=$(head -1 /etc/group)\n")
        .expect("a script");
    assert_eq!(run(&[]).quiet_success(), "reached");
    fs::create_dir_all(format!("{root}/.singularity.d/host-cmd")).expect("directories");
    assert_eq!(run(&["--writable"]).quiet_success(), "reached");
}

#[test]
fn a_directory_that_the_host_lacks_is_a_clear_error() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "echo never");
    let said = host.run(&["--host-cmd", "fake", "--contain"], "mkdir /tmp/only-inside; cd /tmp/only-inside; fake");
    assert_eq!(
        said.clean_failure(),
        "FATAL:   cannot run fake on the host: the directory /tmp/only-inside of the container: no such file or directory\n\
         \x20        hint: Change to a directory that the host has at the same path, or bind it there.\n"
    );
}

#[test]
fn a_command_that_can_not_be_had_stops_the_start() {
    if lacks(&[SIFU, USERNS, FUSE, BUSYBOX]) {
        return;
    }
    let host = Host::new("fake", "");
    host.command("plain", "");
    fs::set_permissions(host.path("bin/plain"), PermissionsExt::from_mode(0o644)).expect("mode");
    for (list, problem) in [
        ("no-such-command", "no program `no-such-command` on the host's search path"),
        ("plain", "no program `plain` on the host's search path"),
        ("./fake", "`./fake` is neither the name of a command nor an absolute path"),
        (".relay", "`.relay` is neither the name of a command nor an absolute path"),
        ("/usr/bin/", "`/usr/bin/` is neither the name of a command nor an absolute path"),
        ("/no/such/command", "/no/such/command is no program that can be started"),
        ("fake,/bin/../bin/sh,/bin/sh", "two programs are called `sh`"),
    ] {
        let said = host.run(&["--host-cmd", list], "true");
        assert!(said.clean_failure().starts_with(&format!("FATAL:   cannot use --host-cmd: {problem}\n")), "{said:?}");
    }
}

#[test]
fn a_command_may_be_named_by_its_path_or_by_a_variable() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "echo reached");
    assert_eq!(host.run(&["--host-cmd", &host.path("bin/fake")], "fake").quiet_success(), "reached");
    let said = host.sifu(&[], "fake").env("APPTAINER_HOST_CMD", "fake,sh").run();
    assert_eq!(said.quiet_success(), "reached");
}

#[test]
fn signals_reach_the_command_and_its_death_reaches_the_caller() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "trap 'echo heard; exit 9' USR1; echo begins; while :; do sleep 0.05; done");
    let mut command = host.sifu(&["--host-cmd", "fake"], "exec fake").command();
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("sifu can be started");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut line = || lines.next().expect("a line").expect("text");
    assert_eq!(line(), "begins");
    // The relay is the container's program now.
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGUSR1).expect("a signal can be sent");
    assert_eq!(line(), "heard");
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
    host.command("dying", "kill -TERM $$");
    let said = host.run(&["--host-cmd", "dying"], "exec dying");
    assert_eq!((said.code, said.signal), (None, Some(15)), "{said:?}");
}

#[test]
fn a_killed_container_leaves_no_command_no_relay_and_no_server() {
    if lacks(START) {
        return;
    }
    for (flags, stubborn) in [(&[][..], false), (&[], true), (&["--pid"], false)] {
        let trap = if stubborn { "trap '' TERM; " } else { "" };
        let host = Host::new("fake", &format!("{trap}echo begins; while :; do sleep 0.05; done"));
        // A sifu of this test's own, to know its processes by.
        let own = host.scratch.path().join("sifu");
        fs::copy(sifu_path(), &own).expect("a copy of the program");
        let prepared = host.sifu(&[&["--host-cmd", "fake"], flags].concat(), "fake; true").command();
        let mut command = Command::new(&own);
        command
            .args(prepared.get_args())
            .current_dir(host.path("work"))
            .env("PATH", format!("{}:/usr/bin:/bin", host.path("bin")));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("sifu can be started");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("its output")).read_line(&mut line).expect("a line");
        assert_eq!(line, "begins\n");
        let of_all = ["bin/fake", ".relay", "sifu exec"];
        let running = host.processes();
        assert!(of_all.iter().all(|name| running.iter().any(|line| line.contains(name))), "{running:?}");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        eventually("all processes of the container end", || host.processes().is_empty());
    }
}

#[test]
fn a_killed_relay_ends_its_command_and_the_container_goes_on() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "echo begins; while :; do sleep 0.05; done");
    let script = "fake & relay=$!; read go; kill -KILL $relay; wait $relay; echo $?; read end";
    let mut command = host.sifu(&["--host-cmd", "fake"], script).command();
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().expect("sifu can be started");
    let mut input = child.stdin.take().expect("its input");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut line = || lines.next().expect("a line").expect("text");
    assert_eq!(line(), "begins");
    input.write_all(b"go\n").expect("it reads");
    assert_eq!(line(), "137");
    eventually("the command ends", || !host.processes().iter().any(|line| line.contains("bin/fake")));
    input.write_all(b"end\n").expect("it reads");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn many_commands_run_at_once() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "sleep 0.2; echo $1");
    let said = host.run(&["--host-cmd", "fake"], "for i in $(seq 1 40); do fake $i & done; wait");
    let mut numbers: Vec<u32> = said.quiet_success().lines().map(|line| line.parse().expect("a number")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
}

#[test]
fn the_plan_says_what_would_run_outside() {
    if lacks(START) {
        return;
    }
    let host = Host::new("fake", "");
    let image = busybox_image().display().to_string();
    let path = format!("{}:/usr/bin:/bin", host.path("bin"));
    let said = sifu(&["plan", "exec", "--host-cmd", "fake", &image, "true"]).env("PATH", path).run();
    assert_eq!(said.code, Some(0), "{said:?}");
    let line = format!("# outside of the container, fake starts {}\n", host.path("bin/fake"));
    assert!(said.stdout.ends_with(&line), "{}", said.stdout);
}
