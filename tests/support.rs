//! Runs sifu as a user would, and makes the images that the tests run.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The top of the checkout, or the copy of it that `SIFU_TEST_ROOT` names (only what tests read at run time).
pub fn checkout() -> PathBuf {
    match std::env::var_os("SIFU_TEST_ROOT") {
        Some(root) => PathBuf::from(root),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")),
    }
}

/// The folder that holds the corpus and the conformance cases, beside the checkout.
pub fn shared() -> PathBuf {
    match std::env::var_os("SIFU_SHARED") {
        Some(shared) => PathBuf::from(shared),
        None => checkout().join("../shared"),
    }
}

/// The sifu under test.
pub fn sifu_path() -> PathBuf {
    match std::env::var_os("SIFU_TEST_BIN") {
        Some(program) => PathBuf::from(program),
        None => PathBuf::from(env!("CARGO_BIN_EXE_sifu")),
    }
}

/// The configuration of the Slurm cluster that tests may use.
pub fn slurm_configuration() -> Option<PathBuf> {
    std::env::var_os("SIFU_TEST_SLURM").map(PathBuf::from)
}

/// Finds `name` on the search path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&search).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.or_else(|| Some(Path::new("/usr/sbin").join(name)).filter(|path| path.is_file()))
}

/// Returns a busybox that needs no library, or why there is none.
pub fn static_busybox() -> Result<PathBuf, String> {
    let path = find_program("busybox").ok_or("no busybox")?;
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let elf = goblin::elf::Elf::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    match elf.interpreter {
        None => Ok(path),
        Some(interpreter) => Err(format!("{} asks for {interpreter}", path.display())),
    }
}

/// What a run of sifu left: its end and its two streams.
#[derive(Debug)]
pub struct Output {
    /// The exit code, absent if a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Returns standard output without its last newline.
    ///
    /// # Panics
    /// When sifu did not exit with code 0, or said anything.
    #[track_caller]
    pub fn quiet_success(&self) -> &str {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "a successful start says nothing: {self:?}");
        self.stdout.trim_end_matches('\n')
    }

    /// Returns standard error of a run that failed cleanly: a code above 0, one `FATAL:` line, no panic.
    #[track_caller]
    pub fn clean_failure(&self) -> &str {
        assert!(self.code.is_some_and(|code| code > 0), "a failure, not a success or a signal: {self:?}");
        assert!(!self.stderr.contains("panicked"), "no panic: {self:?}");
        let fatal = self.stderr.lines().filter(|line| line.starts_with("FATAL:")).count();
        assert_eq!(fatal, 1, "one clear error: {self:?}");
        &self.stderr
    }
}

/// One call of sifu.
pub struct Sifu {
    arguments: Vec<OsString>,
    applet: Option<&'static str>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Vec<u8>,
    limit: Duration,
    data_limit_bytes: Option<u64>,
}

/// Prepares a call with `arguments`: an empty environment but for `PATH`, `HOME`, `USER` and `LANG`, no input, a limit
/// of one minute.
pub fn sifu<A: AsRef<OsStr>>(arguments: &[A]) -> Sifu {
    Sifu {
        arguments: arguments.iter().map(|argument| argument.as_ref().to_owned()).collect(),
        applet: None,
        environment: Vec::new(),
        directory: None,
        input: Vec::new(),
        limit: Duration::from_secs(60),
        data_limit_bytes: None,
    }
}

impl Sifu {
    /// The name that sifu is called by.
    pub fn called(mut self, applet: &'static str) -> Self {
        self.applet = Some(applet);
        self
    }

    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    pub fn input(mut self, input: &str) -> Self {
        self.input = input.into();
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Caps the private memory of every process of the run.
    pub fn data_limit_bytes(mut self, limit: u64) -> Self {
        self.data_limit_bytes = Some(limit);
        self
    }

    /// The command line as it will be executed.
    pub fn command(&self) -> Command {
        let mut command = match self.data_limit_bytes {
            None => Command::new(sifu_path()),
            Some(bytes) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--data={bytes}")).arg("--").arg(sifu_path());
                command
            }
        };
        if let Some(applet) = self.applet {
            command.arg0(applet);
        }
        command.args(&self.arguments).env_clear();
        for name in ["PATH", "HOME", "USER"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("LANG", "C").envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it does not end within the limit: everything it started in its process group is killed then.
    #[track_caller]
    pub fn run(self) -> Output {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("sifu can be started");
        let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
        if let Some(mut stdin) = child.stdin.take() {
            // A command that reads nothing closes the pipe: no failure of the test.
            let _ = stdin.write_all(&self.input);
        }
        let Some(status) = wait(&mut child, self.limit) else {
            let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _ = child.wait();
            panic!("no end within {:?}: {:?}", self.limit, self.arguments);
        };
        let text = |bytes: std::thread::JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&bytes.join().expect("a reader ends")).into_owned()
        };
        Output { code: status.code(), signal: status.signal(), stdout: text(stdout), stderr: text(stderr) }
    }
}

fn read_all(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits for `child` until `limit`; `None` if it still runs then.
pub fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A directory of one test's own, removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sifu-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new("/var/tmp").join(name);
        std::fs::create_dir(&path).expect("a scratch directory can be made");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file below it.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("a name below the scratch directory")).expect("directories");
        std::fs::write(&path, text).expect("a file can be written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The applets that the busybox root has links for.
const APPLETS: &[&str] = &[
    "sh", "cat", "chmod", "chown", "date", "echo", "env", "false", "find", "grep", "head", "id", "kill", "ls", "mkdir",
    "mknod", "mount", "ps", "pwd", "readlink", "rm", "seq", "sleep", "stat", "stty", "test", "touch", "true", "tty",
    "umask", "wc",
];

/// Makes a root of busybox below `directory`, as a sandbox.
pub fn busybox_root(directory: &Path) {
    let busybox = static_busybox().expect("the test asked for BUSYBOX");
    for name in ["bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "var/tmp"] {
        std::fs::create_dir_all(directory.join(name)).expect("directories of the root");
    }
    std::fs::copy(busybox, directory.join("bin/busybox")).expect("busybox can be copied");
    std::fs::set_permissions(directory.join("bin/busybox"), PermissionsExt::from_mode(0o755)).expect("mode");
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", directory.join("bin").join(applet)).expect("a link");
    }
    std::fs::write(directory.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("passwd");
    std::fs::write(directory.join("etc/group"), "root:x:0:\n").expect("group");
}

/// The image most tests run: busybox and little else, packed once per run of the tests by `sifu build`.
///
/// It lies where the next run replaces it, since nothing tells when the last test of this one has ended.
///
/// # Panics
/// When `sifu build` fails.
pub fn busybox_image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let scratch = Scratch::new();
        let (root, image) = (scratch.path().join("root"), scratch.path().join("busybox.sif"));
        busybox_root(&root);
        // Run as a program, it is a shell.
        let own = root.join(".singularity.d");
        std::fs::create_dir(&own).expect("a directory for the runscript");
        std::fs::write(own.join("runscript"), "#!/bin/sh\nexec /bin/sh \"$@\"\n").expect("a runscript");
        std::fs::set_permissions(own.join("runscript"), PermissionsExt::from_mode(0o755)).expect("mode");
        let output = sifu(&[OsStr::new("build"), image.as_os_str(), root.as_os_str()]).run();
        assert_eq!(output.code, Some(0), "sifu build makes the tests' image: {output:?}");
        let kept = PathBuf::from(format!("/var/tmp/sifu-test-image-{}.sif", nix::unistd::geteuid()));
        std::fs::rename(image, &kept).expect("the image can be put where it stays");
        kept
    })
}

/// The processes, zombies aside, that were started as one of `programs`: id and command line. A process that a program
/// forked has its command line; another program that it became has not.
pub fn processes_of(programs: &[PathBuf]) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc can be listed").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Not by the executable: a server shows it to nobody. A zombie has an empty command line.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let first = line.split(|&b| b == 0).next().unwrap_or_default();
        if programs.iter().any(|program| program.as_os_str().as_bytes() == first) {
            found.push((pid, OsString::from_vec(line).to_string_lossy().replace('\0', " ")));
        }
    }
    found
}

/// The id of the process that started the process `pid`.
pub fn parent_of(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}
