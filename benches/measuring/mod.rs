//! What the benchmarks share: contenders that run in turn as an ordinary user, and the table of their ratios.
//!
//! Started as root a benchmark orchestrates, and a copy of itself runs the contenders as an ordinary user ([`measure`]), so
//! that what is timed is that user's own `posix_spawn` to `wait`.

// Each benchmark uses a part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What one contender does, once per round.
#[derive(Clone, Serialize, Deserialize)]
pub struct Contender {
    pub name: String,
    pub command: Vec<String>,
    pub directory: Option<PathBuf>,
    pub clock: Clock,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Clock {
    /// From spawn to the end of wait.
    Whole,
    /// The same for so many at once, from the first spawn to the last end.
    AtOnce(u32),
    /// The same for so many ranks of a job step, a new one in every round.
    Ranks(u32),
    /// From the moment that the command prints last (`tick`) to the end of wait.
    Exit,
}

/// A directory of one benchmark's own, removed when dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(benchmark: &str) -> io::Result<Self> {
        let path = PathBuf::from(format!("/var/tmp/sifu-{benchmark}-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What one command took.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub wall_s: f64,
    pub cpu_s: f64,
    pub peak_kib: u64,
}

/// Runs a command below a process of its own, which then knows what that command alone has used: `main` hands on to
/// [`measured`] what follows the word `measured`. `surround` sets what both are started with.
pub fn usage(words: &[OsString], surround: impl FnOnce(&mut Command)) -> io::Result<Usage> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("measured").args(words).stdin(Stdio::null());
    surround(&mut command);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let mut numbers = last.split(' ').map(str::parse::<f64>);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(wall_s)), Some(Ok(cpu_s)), Some(Ok(peak_kib))) => {
            Ok(Usage { wall_s, cpu_s, peak_kib: peak_kib as u64 })
        }
        _ => Err(io::Error::other(format!("{words:?}: {last} {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// Runs a command and prints its wall time and processor time in seconds, and its peak memory in KiB.
pub fn measured(words: &[OsString]) -> io::Result<()> {
    let [program, arguments @ ..] = words else { return Err(io::ErrorKind::InvalidInput.into()) };
    let start = Instant::now();
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status()?;
    let wall_s = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(io::Error::other(format!("{status}")));
    }
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    println!("{wall_s} {} {}", seconds(usage.user_time()) + seconds(usage.system_time()), usage.max_rss());
    Ok(())
}

/// Nanoseconds of every round, by contender.
pub type Times = BTreeMap<String, Vec<u64>>;

// --- as the ordinary user: run contenders and tell how long each took

/// Reads rounds and contenders from standard input, writes their times to standard output.
pub fn measure() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("contenders on standard input");
    let (rounds, contenders): (u32, Vec<Contender>) = serde_json::from_str(&text).expect("contenders as JSON");
    let mut times = Times::new();
    for round in 0..=rounds {
        for contender in &contenders {
            let nanoseconds = time_one(contender);
            // The first round warms up.
            if round > 0 {
                times.entry(contender.name.clone()).or_default().push(nanoseconds);
            }
            // What a contender leaves to be done behind its end should not fall on the next one.
            std::thread::sleep(Duration::from_millis(8));
        }
    }
    println!("{}", serde_json::to_string(&times).expect("times as JSON"));
}

pub fn command_of(contender: &Contender) -> Command {
    let mut command = Command::new(&contender.command[0]);
    command.args(&contender.command[1..]).stdin(Stdio::null()).stderr(Stdio::inherit());
    command.stdout(if contender.clock == Clock::Exit { Stdio::piped() } else { Stdio::null() });
    if let Some(directory) = &contender.directory {
        command.current_dir(directory);
    }
    command
}

/// The command lines of ranks, with the variables that a launcher with PMIx gives them; a job step of their own.
pub fn ranks_of_a_step(count: u32, line: &[String]) -> Vec<Command> {
    static STEPS: AtomicU32 = AtomicU32::new(0);
    let step = format!("bench-{}-{}", std::process::id(), STEPS.fetch_add(1, Ordering::Relaxed));
    (0..count)
        .map(|rank| {
            let mut command = Command::new(&line[0]);
            command.args(&line[1..]).env("PMIX_NAMESPACE", &step).env("PMIX_SERVER_URI2", "here");
            command.env("PMIX_RANK", rank.to_string()).env("OMPI_COMM_WORLD_SIZE", count.to_string());
            command
        })
        .collect()
}

pub fn time_one(contender: &Contender) -> u64 {
    let mut commands: Vec<Command> = match contender.clock {
        Clock::AtOnce(count) => (0..count).map(|_| command_of(contender)).collect(),
        Clock::Ranks(count) => ranks_of_a_step(count, &contender.command),
        Clock::Whole | Clock::Exit => vec![command_of(contender)],
    };
    for command in &mut commands {
        command.stdin(Stdio::null());
    }
    let start = Instant::now();
    let mut children: Vec<Child> =
        commands.iter_mut().map(|command| command.spawn().expect("a contender can be started")).collect();
    let mut said = String::new();
    if contender.clock == Clock::Exit {
        children[0].stdout.take().expect("its output").read_to_string(&mut said).expect("its output");
    }
    for child in &mut children {
        let status = child.wait().expect("a contender ends");
        assert!(status.success(), "{}: {status}", contender.name);
    }
    if contender.clock == Clock::Exit {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock");
        let now = now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned();
        let ticked: u64 = said.lines().last().and_then(|line| line.parse().ok()).expect("the time that tick says");
        return now - ticked;
    }
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

// --- as whoever started it: which contenders, in which surroundings, and the table

/// Where things are and who runs them.
pub struct Bench {
    pub sifu: String,
    pub directory: PathBuf,
    /// The ordinary user that root measures as.
    pub user: Option<String>,
    pub myself: String,
}

impl Bench {
    pub fn new() -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by setup/bench"));
        let root = nix::unistd::geteuid().is_root();
        Self {
            sifu: variable("SIFU_BENCH_BIN"),
            directory: PathBuf::from(variable("SIFU_BENCH_DIR")),
            user: root.then(|| variable("SIFU_BENCH_USER")),
            myself: std::env::current_exe().expect("this program").display().to_string(),
        }
    }

    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    pub fn has(&self, name: &str) -> bool {
        self.directory.join(name).exists()
    }

    /// A command line run by the ordinary user, in a fresh environment, with `groups` supplementary groups.
    pub fn as_user(&self, groups: u32, command: &[&str]) -> Command {
        let mut line: Vec<String> = Vec::new();
        if let Some(name) = &self.user {
            let user = nix::unistd::User::from_name(name).ok().flatten().expect("the user that setup/bench made");
            line.extend(["setpriv".into(), format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]);
            line.push(if groups == 0 {
                "--clear-groups".into()
            } else {
                let ids: Vec<String> = (0..groups).map(|index| (70_000 + index).to_string()).collect();
                format!("--groups={}", ids.join(","))
            });
            let home = user.dir.display().to_string();
            line.extend(["env".into(), "-i".into(), format!("HOME={home}"), format!("USER={name}"), "LANG=C".into()]);
            line.push("PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into());
        }
        line.extend(command.iter().map(|&word| word.to_owned()));
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).current_dir("/");
        command
    }

    /// Runs `contenders` in turn for `rounds` rounds; `around` is put before the command line (`unshare` and a script).
    pub fn times(&self, rounds: u32, groups: u32, around: &[&str], contenders: &[Contender]) -> Times {
        let inner = self.as_user(groups, &[&self.myself, "measure"]);
        let words = around.iter().map(std::ffi::OsStr::new).chain([inner.get_program()]).chain(inner.get_args());
        let words: Vec<_> = words.collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the measuring process can be started");
        let spec = serde_json::to_string(&(rounds, contenders)).expect("contenders as JSON");
        child.stdin.take().expect("its input").write_all(spec.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "measuring failed: {}", output.status);
        serde_json::from_slice(&output.stdout).expect("times as JSON")
    }

    pub fn sifu_exec(&self, image: &str, command: &[&str]) -> Vec<String> {
        let mut line = vec![self.sifu.clone(), "exec".into(), self.file(image)];
        line.extend(command.iter().map(|&word| word.to_owned()));
        line
    }
}

pub fn installed(program: &str) -> bool {
    let search = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search).any(|directory| directory.join(program).is_file())
}

pub fn contender(name: &str, clock: Clock, command: Vec<String>) -> Contender {
    Contender { name: name.to_owned(), command, directory: None, clock }
}

pub fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|&word| word.to_owned()).collect()
}

pub fn median(values: &[u64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    let upper = sorted[middle] as f64;
    if sorted.len() % 2 == 1 { upper } else { (sorted[middle - 1] as f64 + upper) / 2.0 }
}

/// Nanoseconds as people read them.
pub fn duration(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n < 10e6 => format!("{:.2} ms", n / 1e6),
        n if n < 10e9 => format!("{:.0} ms", n / 1e6),
        n => format!("{:.1} s", n / 1e9),
    }
}

/// The table, a row at a time as it is measured.
pub struct Table {
    pub missed: u32,
}

impl Table {
    pub fn begin() -> Self {
        println!("{:<52} {:<18} {:<12} {:<5} how", "what", "target", "measured", "");
        Self { missed: 0 }
    }

    pub fn row(&mut self, what: &str, target: &str, measured: &str, met: bool, how: &str) {
        self.missed += u32::from(!met);
        println!("{what:<52} {target:<18} {measured:<12} {:<5} {how}", if met { "met" } else { "MISS" });
    }

    pub fn left_out(&self, what: &str, why: &str) {
        println!("{what:<52} left out: {why}");
    }

    /// A row whose measure is `own / other`, which may be at most `limit`.
    pub fn at_most(&mut self, what: &str, limit: f64, times: &Times, own: &str, other: &str) {
        let (Some(own_times), Some(other_times)) = (times.get(own), times.get(other)) else {
            return self.left_out(what, &format!("{other} is not installed"));
        };
        let (a, b) = (median(own_times), median(other_times));
        let how = format!("{own} {}, {other} {}", duration(a), duration(b));
        self.row(what, &format!("at most {limit} of it"), &format!("{:.3}", a / b), a / b <= limit, &how);
    }

    /// A row whose measure is `other / own`, which has to be at least `limit`.
    pub fn times_faster(&mut self, what: &str, limit: f64, times: &Times, own: &str, other: &str) {
        let (Some(own_times), Some(other_times)) = (times.get(own), times.get(other)) else {
            return self.left_out(what, &format!("{other} is not installed"));
        };
        let (a, b) = (median(own_times), median(other_times));
        let how = format!("{own} {}, {other} {}", duration(a), duration(b));
        self.row(what, &format!("at least {limit} times"), &format!("{:.1}", b / a), b / a >= limit, &how);
    }
}

/// Takes an image and keeps none of it.
#[derive(Default)]
pub struct Nowhere(u64);

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Nowhere {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0 = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(distance) => self.0.checked_add_signed(distance),
            SeekFrom::End(_) => None,
        }
        .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.0)
    }
}
