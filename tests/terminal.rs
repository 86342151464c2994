//! On a terminal: `sifu shell` with job control, Ctrl-C, Ctrl-Z, window size, hang-up; and how far `sifu build` is.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::need::{BUSYBOX, FUSE, Need, ROOT, SIFU, USERNS, lacks};
use crate::support::{Scratch, Sifu, busybox_image, sifu, wait};

const START: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX];
const PATIENCE: Duration = Duration::from_secs(60);

/// A pseudo-terminal with a sifu on it, in a session of its own.
pub struct Terminal {
    keyboard: File,
    line: PathBuf,
    screen: Arc<Mutex<String>>,
    /// Takes what appears to the screen until it is told to let go of the terminal.
    reader: Option<JoinHandle<()>>,
    let_go: Arc<AtomicBool>,
    /// How much of the screen was already looked at.
    seen: usize,
    child: Child,
}

impl Terminal {
    fn shell() -> Self {
        let mut terminal = Self::of(&sifu(&["shell".as_ref(), busybox_image().as_os_str()]));
        terminal.prove_the_prompt();
        terminal
    }

    /// Starts a call on a terminal.
    pub fn of(sifu: &Sifu) -> Self {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a pseudo-terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a pseudo-terminal that can be opened");
        let line = PathBuf::from(ptsname_r(&master).expect("the terminal's name"));
        let side = || OpenOptions::new().read(true).write(true).open(&line).expect("the terminal's line");
        resize(&line, 24, 80);

        let inner = sifu.command();
        // `setsid` makes the terminal the controlling one of a new session, as a terminal emulator does.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(inner.get_program()).args(inner.get_args()).env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value)))).env("TERM", "dumb");
        if let Some(directory) = inner.get_current_dir() {
            command.current_dir(directory);
        }
        command.stdin(Stdio::from(side())).stdout(Stdio::from(side())).stderr(Stdio::from(side()));
        let child = command.spawn().expect("setsid can be started");
        drop(command);

        let keyboard = File::from(OwnedFd::from(master));
        let mut output = keyboard.try_clone().expect("a second descriptor");
        let (screen, let_go) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicBool::new(false)));
        let (shown, told) = (Arc::clone(&screen), Arc::clone(&let_go));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !told.load(Ordering::Relaxed) {
                let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
                if poll(&mut ready, 20_u8) == Ok(0) {
                    continue;
                }
                match output.read(&mut bytes) {
                    // EIO is how a terminal says that its last user left.
                    Ok(0) | Err(_) => return,
                    Ok(count) => shown.lock().expect("the screen").push_str(&String::from_utf8_lossy(&bytes[..count])),
                }
            }
        });
        Self { keyboard, line, screen, reader: Some(reader), let_go, seen: 0, child }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Waits until `text` appears, and looks only at what comes after it from then on.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen.lock().expect("the screen").clone();
            if let Some(at) = screen[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            assert!(Instant::now() < end, "no {text:?} on the screen:\n{}", &screen[self.seen..]);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Types a command whose output can't be mistaken for its echo.
    fn prove_the_prompt(&mut self) {
        self.press("echo ready-$((40 + 2))\n");
        self.expect("ready-42");
    }

    fn exit(mut self) -> ExitStatus {
        self.press("exit 7\n");
        wait(&mut self.child, PATIENCE).expect("the shell ends")
    }

    fn stop_reading(&mut self) {
        self.let_go.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stop_reading();
    }
}

fn resize(line: &std::path::Path, rows: u16, columns: u16) {
    let stdin = File::open(line).expect("the terminal's line");
    let (rows, columns) = (rows.to_string(), columns.to_string());
    let status = Command::new("stty").args(["rows", &rows, "cols", &columns]).stdin(stdin).status();
    assert!(status.expect("stty can be started").success());
}

#[test]
fn a_shell_has_the_terminal_and_gives_its_exit_code() {
    if lacks(START) {
        return;
    }
    let mut terminal = Terminal::shell();
    let name = terminal.line.display().to_string();
    terminal.press("echo \"[$(tty)]\"\n");
    terminal.expect(&format!("[{name}]"));
    assert_eq!(terminal.exit().code(), Some(7));
}

#[test]
fn ctrl_c_ends_the_command_and_neither_the_shell_nor_the_server() {
    if lacks(START) {
        return;
    }
    let mut terminal = Terminal::shell();
    for _ in 0..3 {
        terminal.press("echo start-$((1+1)); sleep 100\n");
        terminal.expect("start-2");
        std::thread::sleep(Duration::from_millis(200));
        terminal.press("\x03");
        terminal.press("echo code-$?-\n");
        terminal.expect("code-130-");
    }
    // A file that nobody read before comes from the server.
    terminal.press("wc -l /etc/group && echo served-$((1+1))\n");
    terminal.expect("served-2");
    assert_eq!(terminal.exit().code(), Some(7));
}

#[test]
fn ctrl_z_stops_the_command_and_fg_goes_on_with_it() {
    if lacks(START) {
        return;
    }
    let mut terminal = Terminal::shell();
    terminal.press("sh -c 'echo run-$((1+1)); sleep 100; echo over'\n");
    terminal.expect("run-2");
    std::thread::sleep(Duration::from_millis(200));
    terminal.press("\x1a");
    terminal.expect("Stopped");
    terminal.press("jobs\n");
    terminal.expect("Stopped");
    terminal.press("fg\n");
    std::thread::sleep(Duration::from_millis(200));
    terminal.press("\x03");
    terminal.prove_the_prompt();
    assert_eq!(terminal.exit().code(), Some(7));
}

#[test]
fn the_size_of_the_window_is_known_and_a_change_is_told() {
    if lacks(START) {
        return;
    }
    let mut terminal = Terminal::shell();
    resize(&terminal.line, 43, 132);
    terminal.press("stty size\n");
    terminal.expect("43 132");
    terminal.press("sh -c 'trap \"stty size\" WINCH; echo go-$((1+1)); while :; do sleep 0.1; done'\n");
    terminal.expect("go-2");
    std::thread::sleep(Duration::from_millis(200));
    resize(&terminal.line, 50, 90);
    terminal.expect("50 90");
    terminal.press("\x03");
    terminal.prove_the_prompt();
    assert_eq!(terminal.exit().code(), Some(7));
}

#[test]
fn a_terminal_that_goes_away_ends_the_shell() {
    if lacks(START) {
        return;
    }
    let mut terminal = Terminal::shell();
    terminal.stop_reading();
    // The last master closes: the kernel sends SIGHUP to the session.
    terminal.keyboard = File::open("/dev/null").expect("/dev/null");
    assert!(wait(&mut terminal.child, PATIENCE).is_some(), "the shell ends");
}

/// A directory that is slow to pack, and the call that packs it.
fn slow_build() -> (Scratch, Sifu) {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("root")).expect("a scratch directory");
    let noise: Vec<u8> = (0..24_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    std::fs::write(scratch.path().join("root/noise"), noise).expect("a file");
    let words = ["build", "--jobs", "1", "--mksquashfs-args", "-comp xz", "image.sif", "root"];
    let build = sifu(&words).current_dir(scratch.path());
    (scratch, build)
}

/// Lets time pass for a build in which it does nothing.
fn hold(build: &Child, time: Duration) {
    let id = Pid::from_raw(build.id().cast_signed());
    kill(id, Signal::SIGSTOP).expect("the build can be stopped");
    std::thread::sleep(time);
    kill(id, Signal::SIGCONT).expect("the build can go on");
}

#[test]
fn a_build_shows_on_a_terminal_how_far_it_is_and_how_long_it_will_take() {
    if lacks(&[SIFU]) {
        return;
    }
    let (_scratch, build) = slow_build();
    let mut terminal = Terminal::of(&build);
    terminal.expect("\rpacking   [");
    terminal.expect("]  ");
    terminal.expect(" of 24 MiB");
    // Nothing is said of the time before there is something to judge by.
    hold(&terminal.child, Duration::from_secs(1));
    terminal.expect(" MiB/s  ");
    terminal.expect(" left");
    // Each bar takes the place of the one before.
    terminal.expect("\u{1b}[K\rpacking");
}

/// As root alone: it takes ten seconds.
#[test]
fn a_build_tells_a_log_every_ten_seconds_how_far_it_is() {
    if lacks(&[SIFU, ROOT]) {
        return;
    }
    let (_scratch, build) = slow_build();
    let mut child = build.command().stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("sifu starts");
    let mut lines = BufReader::new(child.stderr.take().expect("its messages")).lines().map(|line| line.expect("text"));
    let begun = lines.find(|line| line.contains("Creating SIF file"));
    assert!(begun.is_some(), "it says that it packs");
    hold(&child, Duration::from_secs(10));
    let said = lines.next().expect("a line");
    assert!(said.starts_with("INFO:    packing: ") && said.contains(" of 24 MiB"), "{said}");
    std::thread::sleep(Duration::from_millis(300));
    child.kill().expect("the build can be killed");
    child.wait().expect("the build ends");
    assert!(!lines.any(|line| line.contains("packing: ")), "one line in ten seconds");
}
