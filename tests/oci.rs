//! `oci`: a container's life as an OCI runtime's caller sees it, beside runc's, and what hostile records come to.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::need::{BUSYBOX, FUSE, Need, ORDINARY, PYTHON, RUNC, SIFU, USERNS, lacks};
use crate::support::{Output, Scratch, busybox_image, busybox_root, find_program, processes_of, sifu, sifu_path, wait};

const START: &[Need] = &[SIFU, USERNS, BUSYBOX];
const PATIENCE: Duration = Duration::from_secs(20);

/// A bundle with a run directory beside it.
struct Bundle {
    scratch: Scratch,
    config: Value,
}

impl Bundle {
    /// A root of busybox, and what `runc spec --rootless` writes, shortened; `script` is the command.
    fn new(script: &str) -> Self {
        let scratch = Scratch::new();
        busybox_root(&scratch.path().join("rootfs"));
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": ["sh", "-c", script],
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "noNewPrivileges": true
            },
            "root": { "path": "rootfs", "readonly": true },
            "hostname": "box",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"] }
            ],
            "linux": {
                "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "user" }],
                "uidMappings": [{ "containerID": 0, "hostID": nix::unistd::geteuid().as_raw(), "size": 1 }],
                "gidMappings": [{ "containerID": 0, "hostID": nix::unistd::getegid().as_raw(), "size": 1 }],
                "maskedPaths": ["/proc/kcore", "/proc/timer_list"],
                "readonlyPaths": ["/proc/sys"]
            }
        });
        let bundle = Self { scratch, config };
        bundle.write();
        bundle
    }

    fn changed(script: &str, change: impl FnOnce(&mut Value)) -> Self {
        let mut bundle = Self::new(script);
        change(&mut bundle.config);
        bundle.write();
        bundle
    }

    fn write(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).expect("a configuration");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// `sifu oci WORDS` with the run directory of this bundle.
    fn oci(&self, words: &[&str]) -> Output {
        let mut all = vec![OsStr::new("oci").to_owned(), "--root".into(), self.path("run").into()];
        all.extend(words.iter().map(Into::into));
        sifu(&all).current_dir(self.scratch.path()).run()
    }

    /// As [`Bundle::oci`] for `create`, whose container keeps the streams: they are the file `out`.
    fn create(&self, id: &str, flags: &[&str]) -> Option<i32> {
        let out = File::create(self.path("out")).expect("a file");
        let mut words = vec![OsStr::new("oci").to_owned(), "--root".into(), self.path("run").into(), "create".into()];
        words.extend(flags.iter().map(Into::into));
        words.push(id.into());
        let mut command = sifu(&words).current_dir(self.scratch.path()).command();
        let both = out.try_clone().expect("a second descriptor");
        command.stdin(Stdio::null()).stdout(out).stderr(both).status().expect("sifu can be started").code()
    }

    fn out(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap_or_default()
    }

    fn state(&self, id: &str) -> Value {
        let said = self.oci(&["state", id]);
        serde_json::from_str(said.quiet_success()).expect("a state")
    }

    #[track_caller]
    fn status_becomes(&self, id: &str, status: &str) {
        eventually(&format!("{id} is {status}"), || self.state(id)["status"] == status);
    }

    #[track_caller]
    fn fails(&self, words: &[&str], message: &str) {
        let said = self.oci(words);
        assert_eq!(said.code, Some(1), "{words:?}: {said:?}");
        assert!(said.clean_failure().contains(message), "{words:?}: {said:?}");
    }

    /// Nothing is kept any more, and no process of sifu's runs for this bundle.
    #[track_caller]
    fn is_clean(&self) {
        let kept: Vec<_> = fs::read_dir(self.path("run")).expect("the run directory").flatten().collect();
        assert!(kept.is_empty(), "{kept:?}");
        let here = self.scratch.path().display().to_string();
        eventually("all processes have gone", || {
            processes_of(&[sifu_path()]).iter().all(|(_, line)| !line.contains(&here))
        });
    }
}

#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lives(pid: i64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    if lacks(START) {
        return;
    }
    let bundle = Bundle::new("trap 'echo heard; exit 3' TERM; echo begins; while :; do sleep 0.02; done");
    assert_eq!(bundle.create("one", &["--pid-file", "pid"]), Some(0), "{}", bundle.out());
    let state = bundle.state("one");
    let pid = state["pid"].as_i64().expect("a process id");
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], bundle.scratch.path().to_str().expect("a plain path"));
    assert_eq!(fs::read_to_string(bundle.path("pid")).ok(), Some(pid.to_string()));
    assert_eq!(bundle.out(), "", "the command waits for its start");
    bundle.oci(&["start", "one"]).quiet_success();
    eventually("the command runs", || bundle.out() == "begins\n");
    let state = bundle.state("one");
    assert_eq!((&state["status"], state["pid"].as_i64()), (&json!("running"), Some(pid)));
    bundle.oci(&["kill", "one"]).quiet_success();
    bundle.status_becomes("one", "stopped");
    assert_eq!(bundle.out(), "begins\nheard\n");
    bundle.oci(&["delete", "one"]).quiet_success();
    bundle.fails(&["state", "one"], "container `one` does not exist");
    bundle.is_clean();
}

#[test]
fn a_call_at_the_wrong_time_changes_nothing() {
    if lacks(START) {
        return;
    }
    let bundle = Bundle::new("exec sleep 1000");
    bundle.fails(&["state", "one"], "container `one` does not exist");
    bundle.fails(&["start", "one"], "container `one` does not exist");
    bundle.fails(&["kill", "one"], "container `one` does not exist");
    bundle.fails(&["delete", "one"], "container `one` does not exist");
    bundle.oci(&["delete", "--force", "one"]).quiet_success();
    assert_eq!(bundle.create("one", &[]), Some(0), "{}", bundle.out());
    bundle.fails(&["create", "one"], "container `one` exists already");
    bundle.fails(&["delete", "one"], "cannot delete container `one`: it is created");
    bundle.oci(&["start", "one"]).quiet_success();
    bundle.fails(&["start", "one"], "cannot start container `one`: it is running");
    bundle.fails(&["delete", "one"], "cannot delete container `one`: it is running");
    bundle.fails(&["kill", "one", "NONE"], "`NONE` is no signal");
    assert_eq!(bundle.state("one")["status"], "running");
    bundle.oci(&["kill", "one", "SIGKILL"]).quiet_success();
    bundle.status_becomes("one", "stopped");
    assert_eq!(bundle.state("one")["pid"], 0);
    bundle.fails(&["kill", "one"], "it is stopped");
    bundle.fails(&["start", "one"], "cannot start container `one`: it is stopped");
    bundle.oci(&["delete", "one"]).quiet_success();
    bundle.create("two", &[]);
    let pid = bundle.state("two")["pid"].as_i64().expect("a process id");
    bundle.oci(&["delete", "--force", "two"]).quiet_success();
    assert!(!lives(pid), "it was killed first");
    bundle.is_clean();
}

#[test]
fn ids_that_are_paths_are_refused() {
    if lacks(START) {
        return;
    }
    let bundle = Bundle::new("true");
    for id in ["", "..", "a/b", "../../etc", "a b"] {
        for verb in ["create", "state", "delete", "start"] {
            bundle.fails(&[verb, id], "as the id of a container");
        }
    }
}

#[test]
fn run_ends_as_its_command_does() {
    if lacks(START) {
        return;
    }
    let bundle = Bundle::new("echo hello; exit 7");
    let said = bundle.oci(&["run", "one"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (Some(7), "hello\n", ""));
    let killed = Bundle::changed("kill -9 $$", |config| {
        config["linux"]["namespaces"].as_array_mut().expect("a list").retain(|namespace| namespace["type"] != "pid");
    });
    assert_eq!(killed.oci(&["run", "one"]).code, Some(128 + 9));
    let missing = Bundle::changed("", |config| config["process"]["args"] = json!(["nowhere"]));
    for verb in ["run", "create"] {
        missing.fails(&[verb, "one"], "cannot run nowhere: not found in the container");
    }
    for bundle in [bundle, killed, missing] {
        bundle.is_clean();
    }
}

#[test]
fn a_command_that_can_not_be_executed_fails_its_start() {
    if lacks(START) {
        return;
    }
    let bundle = Bundle::changed("", |config| config["process"]["args"] = json!(["/bin/broken"]));
    fs::write(bundle.path("rootfs/bin/broken"), "#!/nowhere\n").expect("a file");
    fs::set_permissions(bundle.path("rootfs/bin/broken"), PermissionsExt::from_mode(0o755)).expect("mode");
    assert_eq!(bundle.create("one", &[]), Some(0), "{}", bundle.out());
    bundle.fails(&["start", "one"], "cannot run /bin/broken");
    bundle.status_becomes("one", "stopped");
    bundle.oci(&["delete", "one"]).quiet_success();
    bundle.is_clean();
}

fn run_in_background(bundle: &Bundle) -> Child {
    let mut command = Command::new(sifu_path());
    command.args(["oci", "--root"]).arg(bundle.path("run")).args(["run", "one"]).current_dir(bundle.scratch.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("sifu can be started")
}

#[test]
fn whoever_is_killed_leaves_no_process() {
    if lacks(START) {
        return;
    }
    for pid_namespace in [true, false] {
        let bundle = Bundle::changed("echo begins; exec sleep 1000", |config| {
            config["linux"]["namespaces"]
                .as_array_mut()
                .expect("a list")
                .retain(|namespace| pid_namespace || namespace["type"] != "pid");
        });
        let mut runs = run_in_background(&bundle);
        let mut line = String::new();
        BufReader::new(runs.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let pid = bundle.state("one")["pid"].as_i64().expect("a process id");
        assert!(lives(pid));
        runs.kill().expect("it can be killed");
        wait(&mut runs, PATIENCE).expect("it ends");
        eventually("the container goes with its caller", || !lives(pid));
        bundle.oci(&["delete", "one"]).quiet_success();
        bundle.is_clean();
    }
    // Without a pid namespace only the mount namespace tells what belongs to the container.
    let bundle = Bundle::changed("sleep 1000 & echo $! >/tmp/pid; exec sleep 1000", |config| {
        config["root"]["readonly"] = false.into();
        config["linux"]["namespaces"].as_array_mut().expect("a list").retain(|namespace| namespace["type"] != "pid");
    });
    assert_eq!(bundle.create("one", &[]), Some(0), "{}", bundle.out());
    bundle.oci(&["start", "one"]).quiet_success();
    let file = bundle.path("rootfs/tmp/pid");
    let child = || fs::read_to_string(&file).ok()?.trim().parse::<i64>().ok();
    eventually("there is a second process", || child().is_some());
    bundle.oci(&["kill", "one", "KILL"]).quiet_success();
    bundle.status_becomes("one", "stopped");
    let child = child().expect("a process id");
    assert!(lives(child), "nobody has ended the second process");
    bundle.oci(&["delete", "one"]).quiet_success();
    eventually("it ends with the container", || !lives(child));
    bundle.is_clean();
}

#[test]
fn a_signal_to_run_reaches_the_command() {
    if lacks(START) {
        return;
    }
    let bundle = Bundle::new("trap 'exit 9' USR1; echo begins; while :; do sleep 0.02; done");
    let mut runs = run_in_background(&bundle);
    let mut line = String::new();
    BufReader::new(runs.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let pid = nix::unistd::Pid::from_raw(runs.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).expect("a signal");
    assert_eq!(wait(&mut runs, PATIENCE).and_then(|status| status.code()), Some(9));
    bundle.is_clean();
}

#[test]
fn records_that_somebody_made_up_are_not_believed() {
    if lacks(START) {
        return;
    }
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create("one", &[]);
    let record = bundle.path("run/one/state.json");
    let true_record = fs::read_to_string(&record).expect("a record");
    let mut victim = Command::new("sleep").arg("1000").spawn().expect("sleep can be started");
    let true_pid = bundle.state("one")["pid"].to_string();

    // A process that has not been the container's: killed by nobody, and taken for none.
    fs::write(&record, true_record.replace(&true_pid, &victim.id().to_string())).expect("a record");
    assert_eq!(bundle.state("one")["status"], "stopped");
    bundle.fails(&["kill", "one", "KILL"], "it is stopped");
    // The same process of another boot.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
    fs::write(&record, true_record.replace(boot.trim(), "another")).expect("a record");
    assert_eq!(bundle.state("one")["status"], "stopped");
    // Another container's record.
    fs::write(&record, true_record.replace("\"one\"", "\"two\"")).expect("a record");
    bundle.fails(&["state", "one"], "it is of the container `two`");
    fs::write(&record, "{").expect("a record");
    bundle.fails(&["state", "one"], "cannot use");
    fs::write(&record, "x".repeat(2 << 20)).expect("a record");
    bundle.fails(&["state", "one"], "it is longer than any record");

    // What others could have written, or put there.
    fs::write(&record, &true_record).expect("a record");
    fs::set_permissions(&record, PermissionsExt::from_mode(0o666)).expect("mode");
    bundle.fails(&["state", "one"], "others can write to it");
    fs::remove_file(&record).expect("a record");
    let elsewhere = bundle.scratch.file("elsewhere", &true_record);
    symlink(&elsewhere, &record).expect("a link");
    bundle.fails(&["state", "one"], "it is a symbolic link");
    fs::remove_file(&record).expect("a link");
    nix::unistd::mkfifo(&record, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    bundle.fails(&["state", "one"], "it is no file");
    fs::remove_file(&record).expect("a pipe");
    symlink("one", bundle.path("run/three")).expect("a link");
    bundle.fails(&["state", "three"], "it is no directory");
    fs::remove_file(bundle.path("run/three")).expect("a link");
    fs::set_permissions(bundle.path("run"), PermissionsExt::from_mode(0o777)).expect("mode");
    bundle.fails(&["state", "one"], "others can write to it");
    fs::set_permissions(bundle.path("run"), PermissionsExt::from_mode(0o700)).expect("mode");

    fs::write(&record, &true_record).expect("a record");
    assert_eq!(bundle.state("one")["status"], "created");
    bundle.oci(&["delete", "--force", "one"]).quiet_success();
    assert!(victim.try_wait().expect("it can be asked").is_none(), "the other process is unharmed");
    victim.kill().and_then(|()| victim.wait()).expect("it ends");
    bundle.is_clean();
}

#[test]
fn an_image_is_a_root() {
    if lacks(START) || lacks(&[FUSE]) {
        return;
    }
    let script = "touch /new 2>/dev/null && echo writable; mkdir /mnt/x; cat /etc/group; ls /data";
    for (read_only, expected) in [(true, "root:x:0:\nhello\n"), (false, "writable\nroot:x:0:\nhello\n")] {
        let bundle = Bundle::changed(script, |config| {
            config["root"] = json!({ "path": busybox_image(), "readonly": read_only });
            let data = json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro"] });
            config["mounts"].as_array_mut().expect("a list").push(data);
        });
        bundle.scratch.file("data/hello", "");
        assert_eq!(bundle.oci(&["run", "one"]).stdout, expected);
        bundle.is_clean();
    }
}

#[test]
fn a_bundle_of_an_image_shows_what_exec_does() {
    if lacks(START) || lacks(&[FUSE, ORDINARY]) {
        return;
    }
    let bundle = Bundle::new("");
    let made = bundle.path("made").display().to_string();
    let image = busybox_image().display().to_string();
    bundle
        .oci(&["bundle", &image, &made, "sh", "-c", "id -u; echo $APPTAINER_NAME; test -d $HOME && pwd"])
        .quiet_success();
    let said = bundle.oci(&["run", "--bundle", &made, "one"]);
    let home = std::env::var("HOME").expect("a home");
    let name = Path::new(&image).file_name().expect("a name").to_string_lossy();
    assert_eq!(said.quiet_success(), format!("{}\n{name}\n{home}", nix::unistd::geteuid()));
    bundle.fails(&["bundle", &image, &made], "cannot write");
    bundle.is_clean();
}

#[test]
fn a_terminal_is_handed_out_over_the_console_socket() {
    if lacks(START) || lacks(&[PYTHON]) {
        return;
    }
    let bundle = Bundle::changed("tty; test -t 0 && echo terminal; read line; echo got $line", |config| {
        config["process"]["terminal"] = true.into();
    });
    bundle.fails(&["create", "one"], "needs --console-socket");
    let listener = r#"
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind("console")
server.listen()
print("listens", flush=True)
stream, _ = server.accept()
_, (master,), _, _ = socket.recv_fds(stream, 64, 1)
os.write(master, b"word\n")
text = b""
try:
    while b"got word" not in text:
        text += os.read(master, 1024)
except OSError:
    pass
print(text.decode().replace("\r", ""))
"#;
    let mut caller = Command::new("python3");
    caller.args(["-c", listener]).current_dir(bundle.scratch.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut caller = caller.spawn().expect("python can be started");
    let mut said = BufReader::new(caller.stdout.take().expect("its output"));
    said.read_line(&mut String::new()).expect("it listens");
    assert_eq!(bundle.create("one", &["--console-socket", "console"]), Some(0), "{}", bundle.out());
    bundle.oci(&["start", "one"]).quiet_success();
    let mut text = String::new();
    said.read_to_string(&mut text).expect("what the terminal showed");
    wait(&mut caller, PATIENCE).expect("it ends");
    for part in ["/dev/pts/0", "terminal", "got word"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    bundle.status_becomes("one", "stopped");
    bundle.oci(&["delete", "one"]).quiet_success();
    bundle.is_clean();
}

#[test]
fn hooks_run_with_the_state_and_their_failure_is_that_of_the_container() {
    if lacks(START) {
        return;
    }
    let hook = |name: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("cat >{name}")] }]);
    let bundle = Bundle::changed("exec sleep 1000", |config| {
        config["hooks"] = json!({
            "createRuntime": hook("created"), "poststart": hook("started"), "poststop": hook("ended")
        });
    });
    let status = |name: &str| {
        let text = fs::read_to_string(bundle.path(name)).expect("what the hook was told");
        let state: Value = serde_json::from_str(&text).expect("a state");
        assert_eq!(state["id"], "one");
        state["status"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(bundle.create("one", &[]), Some(0), "{}", bundle.out());
    assert_eq!(status("created"), "creating");
    bundle.oci(&["start", "one"]).quiet_success();
    assert_eq!(status("started"), "running");
    bundle.oci(&["delete", "--force", "one"]).quiet_success();
    assert_eq!(status("ended"), "stopped");
    bundle.is_clean();
    let failing = Bundle::changed("true", |config| {
        config["hooks"] = json!({ "prestart": [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 4"] }] });
    });
    failing.fails(&["create", "one"], "the hook /bin/sh failed: exit status: 4");
    failing.is_clean();
    let slow = Bundle::changed("true", |config| {
        config["hooks"] = json!({ "prestart": [{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }] });
    });
    slow.fails(&["run", "one"], "it did not end within 1 s");
    slow.is_clean();
}

#[test]
fn failures_are_written_to_the_log_of_the_caller() {
    if lacks(START) {
        return;
    }
    let bundle = Bundle::changed("", |config| config["process"]["args"] = json!(["nowhere"]));
    bundle.fails(&["--log", "log", "--log-format", "json", "run", "one"], "cannot run nowhere");
    let line = fs::read_to_string(bundle.path("log")).expect("a log");
    let entry: Value = serde_json::from_str(line.trim()).expect("JSON");
    assert_eq!(entry["level"], "error");
    assert!(entry["msg"].as_str().is_some_and(|text| text.contains("cannot run nowhere")), "{line}");
    let version = sifu(&["--version"]).called("sifu-oci").run();
    assert!(version.quiet_success().starts_with("sifu version"));
    let listed = sifu(&["--root", bundle.path("run").to_str().expect("a plain path"), "list"]).called("sifu-oci").run();
    assert_eq!(listed.quiet_success(), "");
}

/// Runs the bundle by another runtime; what it says on standard output, and its exit code.
fn by_runc(bundle: &Bundle) -> (String, Option<i32>) {
    let mut command = Command::new(find_program("runc").expect("the test asked for RUNC"));
    command.args(["--rootless", "true", "--root"]).arg(bundle.path("runc")).args(["run", "one"]);
    let said = command.current_dir(bundle.scratch.path()).stdin(Stdio::null()).output().expect("runc can be started");
    (String::from_utf8_lossy(&said.stdout).into_owned(), said.status.code())
}

/// What a configuration asks for is what the command gets, here as there.
#[test]
fn configurations_mean_what_they_mean_to_runc() {
    if lacks(START) || lacks(&[RUNC, ORDINARY]) {
        return;
    }
    let keep = |config: &mut Value, dropped: &str| {
        config["linux"]["namespaces"].as_array_mut().expect("a list").retain(|namespace| namespace["type"] != dropped);
    };
    let mount = |config: &mut Value, mount: Value| config["mounts"].as_array_mut().expect("a list").push(mount);
    type Change<'a> = Box<dyn Fn(&mut Value) + 'a>;
    let variants: Vec<(&str, Change<'_>)> = vec![
        ("id -u; id -g; pwd; hostname; env | sort | grep -v SHLVL; umask", Box::new(|_| ())),
        ("exit 42", Box::new(|_| ())),
        ("kill -TERM $$; echo survives", Box::new(|_| ())),
        ("ls /dev | grep -v console | grep -v mqueue | grep -v core", Box::new(|_| ())),
        ("touch /x 2>/dev/null || echo read-only; touch /dev/shm/x && echo shm", Box::new(|_| ())),
        ("touch /x && ls /x", Box::new(|config| config["root"]["readonly"] = false.into())),
        (
            "wc -c </proc/kcore; cat /proc/timer_list; echo 1 2>/dev/null >/proc/sys/kernel/pid_max || echo no",
            Box::new(|_| ()),
        ),
        (
            "ulimit -n; ulimit -c",
            Box::new(|config| {
                config["process"]["rlimits"] = json!([
                    { "type": "RLIMIT_NOFILE", "soft": 99, "hard": 100 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }
                ]);
            }),
        ),
        ("pwd", Box::new(|config| config["process"]["cwd"] = "/tmp".into())),
        (
            "pwd; ls -d /new/place",
            Box::new(|config| {
                config["root"]["readonly"] = false.into();
                config["process"]["cwd"] = "/new/place".into();
            }),
        ),
        ("umask", Box::new(|config| config["process"]["user"]["umask"] = 0o77.into())),
        ("grep -E 'Cap(Eff|Prm|Bnd|Amb)' /proc/self/status", Box::new(|_| ())),
        (
            "grep -E 'Cap(Eff|Prm|Bnd)' /proc/self/status",
            Box::new(|config| {
                let set = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
                config["process"]["capabilities"] = json!({ "bounding": set, "effective": set, "permitted": set });
            }),
        ),
        (
            "grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj",
            Box::new(|config| {
                config["process"]["oomScoreAdj"] = 500.into();
            }),
        ),
        (
            "cat /data/file; touch /data/new 2>/dev/null || echo read-only",
            Box::new(|config| {
                config["root"]["readonly"] = false.into();
                mount(
                    config,
                    json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro"] }),
                );
            }),
        ),
        (
            "cat /etc/one",
            Box::new(|config| {
                config["root"]["readonly"] = false.into();
                mount(
                    config,
                    json!({ "destination": "/etc/one", "type": "none", "source": "data/file", "options": ["bind"] }),
                );
            }),
        ),
        (
            "/data/run 2>/dev/null; echo $?",
            Box::new(|config| {
                config["root"]["readonly"] = false.into();
                mount(
                    config,
                    json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "noexec"] }),
                );
            }),
        ),
        (
            "touch /run/x && ls /run",
            Box::new(|config| {
                config["root"]["readonly"] = false.into();
                mount(
                    config,
                    json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"] }),
                );
            }),
        ),
        ("echo $$", Box::new(|_| ())),
        (
            "cat /proc/net/dev | grep -c :",
            Box::new(|config| {
                config["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({ "type": "network" }));
            }),
        ),
        (
            "cat /proc/sys/net/ipv4/ping_group_range",
            Box::new(|config| {
                config["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({ "type": "network" }));
                config["linux"]["sysctl"] = json!({ "net.ipv4.ping_group_range": "0 0" });
            }),
        ),
        (
            "mkdir /tmp/x; echo $?",
            Box::new(|config| {
                config["root"]["readonly"] = false.into();
                config["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 17 }]
                });
            }),
        ),
        ("echo $A", Box::new(|config| config["process"]["env"] = json!(["PATH=/bin", "A=1", "A=two words"]))),
        // What both refuse.
        ("true", Box::new(|config| config["process"]["args"] = json!(["nowhere"]))),
        ("true", Box::new(|config| config["process"]["args"] = json!([]))),
        ("true", Box::new(|config| config["process"]["cwd"] = "relative".into())),
        ("true", Box::new(|config| keep(config, "uts"))),
        ("true", Box::new(|config| config["root"]["path"] = "missing".into())),
        (
            "true",
            Box::new(|config| {
                mount(
                    config,
                    json!({ "destination": "/data", "type": "bind", "source": "missing", "options": ["bind"] }),
                );
            }),
        ),
        ("true", Box::new(|config| config["linux"]["sysctl"] = json!({ "kernel.pid_max": "5" }))),
    ];
    let mut differences = Vec::new();
    for (script, change) in &variants {
        let bundle = Bundle::changed(script, change);
        bundle.scratch.file("data/file", "text\n");
        let program = bundle.scratch.file("data/run", "#!/bin/sh\necho ran\n");
        fs::set_permissions(program, PermissionsExt::from_mode(0o755)).expect("mode");
        let ours = bundle.oci(&["run", "one"]);
        let theirs = by_runc(&bundle);
        if (ours.stdout.as_str(), ours.code) != (theirs.0.as_str(), theirs.1) {
            differences.push(format!("`{script}`: {ours:?}, expected {theirs:?}: {}", bundle.config));
        }
        bundle.is_clean();
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
