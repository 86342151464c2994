//! Start-up, measured: every contender of a row runs in turn, round by round, and the row shows the ratio of medians.
//!
//! `setup/bench` prepares the images and runs this. Started as root it orchestrates, and a copy of itself runs the
//! contenders as an ordinary user (`measure`), so that what is timed is that user's own `posix_spawn` to `wait`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What one contender does, once per round.
#[derive(Clone, Serialize, Deserialize)]
struct Contender {
    name: String,
    command: Vec<String>,
    directory: Option<PathBuf>,
    clock: Clock,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Clock {
    /// From spawn to the end of wait.
    Whole,
    /// The same for so many at once, from the first spawn to the last end.
    AtOnce(u32),
    /// From the moment that the command prints last (`tick`) to the end of wait.
    Exit,
}

/// Nanoseconds of every round, by contender.
type Times = BTreeMap<String, Vec<u64>>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("measure") => measure(),
        Some("threads") => idle_threads(arguments.get(1).and_then(|count| count.parse().ok()).unwrap_or(0)),
        only => orchestrate(only),
    }
}

// --- as the ordinary user: run contenders and tell how long each took

/// Reads rounds and contenders from standard input, writes their times to standard output.
fn measure() {
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

fn command_of(contender: &Contender) -> Command {
    let mut command = Command::new(&contender.command[0]);
    command.args(&contender.command[1..]).stdin(Stdio::null()).stderr(Stdio::inherit());
    command.stdout(if contender.clock == Clock::Exit { Stdio::piped() } else { Stdio::null() });
    if let Some(directory) = &contender.directory {
        command.current_dir(directory);
    }
    command
}

fn time_one(contender: &Contender) -> u64 {
    let count = if let Clock::AtOnce(count) = contender.clock { count } else { 1 };
    let mut commands: Vec<Command> = (0..count).map(|_| command_of(contender)).collect();
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

/// Keeps `count` threads asleep until standard input ends.
fn idle_threads(count: u32) {
    for _ in 0..count {
        let thread = std::thread::Builder::new().stack_size(16 << 10);
        thread
            .spawn(|| {
                loop {
                    std::thread::park()
                }
            })
            .expect("a thread");
    }
    println!("ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

// --- as whoever started it: which contenders, in which surroundings, and the table

/// Where things are and who runs them.
struct Bench {
    sifu: String,
    directory: PathBuf,
    /// The ordinary user that root measures as.
    user: Option<String>,
    myself: String,
}

impl Bench {
    fn new() -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by setup/bench"));
        let root = nix::unistd::geteuid().is_root();
        Self {
            sifu: variable("SIFU_BENCH_BIN"),
            directory: PathBuf::from(variable("SIFU_BENCH_DIR")),
            user: root.then(|| variable("SIFU_BENCH_USER")),
            myself: std::env::current_exe().expect("this program").display().to_string(),
        }
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn has(&self, name: &str) -> bool {
        self.directory.join(name).exists()
    }

    /// A command line run by the ordinary user, in a fresh environment, with `groups` supplementary groups.
    fn as_user(&self, groups: u32, command: &[&str]) -> Command {
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
    fn times(&self, rounds: u32, groups: u32, around: &[&str], contenders: &[Contender]) -> Times {
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

    fn sifu_exec(&self, image: &str, command: &[&str]) -> Vec<String> {
        let mut line = vec![self.sifu.clone(), "exec".into(), self.file(image)];
        line.extend(command.iter().map(|&word| word.to_owned()));
        line
    }
}

fn installed(program: &str) -> bool {
    let search = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search).any(|directory| directory.join(program).is_file())
}

fn contender(name: &str, clock: Clock, command: Vec<String>) -> Contender {
    Contender { name: name.to_owned(), command, directory: None, clock }
}

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|&word| word.to_owned()).collect()
}

fn median(values: &[u64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    let upper = sorted[middle] as f64;
    if sorted.len() % 2 == 1 { upper } else { (sorted[middle - 1] as f64 + upper) / 2.0 }
}

/// Nanoseconds as people read them.
fn duration(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n < 10e6 => format!("{:.2} ms", n / 1e6),
        n if n < 10e9 => format!("{:.0} ms", n / 1e6),
        n => format!("{:.1} s", n / 1e9),
    }
}

/// The table, a row at a time as it is measured.
struct Table {
    missed: u32,
}

impl Table {
    fn begin() -> Self {
        println!("{:<52} {:<18} {:<12} {:<5} how", "what", "target", "measured", "");
        Self { missed: 0 }
    }

    fn row(&mut self, what: &str, target: &str, measured: &str, met: bool, how: &str) {
        self.missed += u32::from(!met);
        println!("{what:<52} {target:<18} {measured:<12} {:<5} {how}", if met { "met" } else { "MISS" });
    }

    fn left_out(&self, what: &str, why: &str) {
        println!("{what:<52} left out: {why}");
    }

    /// A row whose measure is `own / other`, which may be at most `limit`.
    fn at_most(&mut self, what: &str, limit: f64, times: &Times, own: &str, other: &str) {
        let (Some(own_times), Some(other_times)) = (times.get(own), times.get(other)) else {
            return self.left_out(what, &format!("{other} is not installed"));
        };
        let (a, b) = (median(own_times), median(other_times));
        let how = format!("{own} {}, {other} {}", duration(a), duration(b));
        self.row(what, &format!("at most {limit} of it"), &format!("{:.3}", a / b), a / b <= limit, &how);
    }

    /// A row whose measure is `other / own`, which has to be at least `limit`.
    fn times_faster(&mut self, what: &str, limit: f64, times: &Times, own: &str, other: &str) {
        let (Some(own_times), Some(other_times)) = (times.get(own), times.get(other)) else {
            return self.left_out(what, &format!("{other} is not installed"));
        };
        let (a, b) = (median(own_times), median(other_times));
        let how = format!("{own} {}, {other} {}", duration(a), duration(b));
        self.row(what, &format!("at least {limit} times"), &format!("{:.1}", b / a), b / a >= limit, &how);
    }
}

/// Measures some rows.
type Part = fn(&Bench, &mut Table);

fn orchestrate(only: Option<&str>) {
    let bench = Bench::new();
    let mut table = Table::begin();
    let parts: [(&str, Part); 7] = [
        ("start", start),
        ("import", import),
        ("at-once", many_at_once),
        ("exit", exit_after_reading),
        ("memory", memory),
        ("steady", steady_state),
        ("surroundings", surroundings),
    ];
    for (name, part) in parts {
        if only.is_none_or(|only| only == name) {
            part(&bench, &mut table);
        }
    }
    println!("{} of the targets missed", table.missed);
}

fn start(bench: &Bench, table: &mut Table) {
    let tiny = bench.file("tiny.dir");
    let tick = format!("{tiny}/tick");
    let mut contenders = vec![
        contender("bare", Clock::Whole, vec![tick]),
        contender("sifu tiny", Clock::Whole, bench.sifu_exec("tiny.sif", &["/tick"])),
        contender("sifu busy", Clock::Whole, bench.sifu_exec("busy.sif", &["true"])),
    ];
    if installed("bwrap") {
        let line = ["bwrap", "--unshare-user", "--bind", &tiny, "/", "/tick"];
        contenders.push(contender("bwrap bare", Clock::Whole, words(&line)));
        let mut line = words(&["bwrap", "--unshare-user", "--bind", &tiny, "/"]);
        for (flag, path) in [
            ("--dev-bind", "/dev"),
            ("--bind", "/proc"),
            ("--bind", "/sys"),
            ("--bind", "/tmp"),
            ("--bind", "/var/tmp"),
            ("--bind", "/home"),
        ] {
            line.extend(words(&[flag, path, path]));
        }
        line.push("/tick".into());
        contenders.push(contender("bwrap with the same binds", Clock::Whole, line));
    }
    if installed("ch-run") {
        contenders.push(contender("ch-run", Clock::Whole, words(&["ch-run", &tiny, "--", "/tick"])));
    }
    if installed("apptainer") {
        let line = ["apptainer", "exec", &bench.file("tiny.sif"), "/tick"];
        contenders.push(contender("apptainer tiny", Clock::Whole, words(&line)));
        let line = ["apptainer", "exec", &bench.file("busy.sif"), "true"];
        contenders.push(contender("apptainer busy", Clock::Whole, words(&line)));
    }
    let times = bench.times(41, 0, &[], &contenders);
    let bare = median(&times["bare"]);
    println!("(a bare static program takes {})", duration(bare));
    table.at_most("exec of a tiny program, against bwrap", 0.7, &times, "sifu tiny", "bwrap bare");
    table.at_most("  the same, bwrap with the same binds", 0.7, &times, "sifu tiny", "bwrap with the same binds");
    table.at_most("  the same, against ch-run", 0.7, &times, "sifu tiny", "ch-run");
    table.times_faster("exec of a tiny program, against Apptainer", 50.0, &times, "sifu tiny", "apptainer tiny");
    table.times_faster("exec busy.sif true, against Apptainer", 18.0, &times, "sifu busy", "apptainer busy");
}

fn import(bench: &Bench, table: &mut Table) {
    let what = "import of numpy and scipy.linalg, fresh mount";
    if !bench.has("deb.sif") {
        return table.left_out(what, "no deb.sif");
    }
    let command = ["python3", "-c", "import numpy, scipy.linalg"];
    let mut contenders = vec![contender("sifu", Clock::Whole, bench.sifu_exec("deb.sif", &command))];
    if installed("apptainer") {
        let mut line = words(&["apptainer", "exec", &bench.file("deb.sif")]);
        line.extend(words(&command));
        contenders.push(contender("apptainer", Clock::Whole, line));
    }
    let times = bench.times(9, 0, &[], &contenders);
    table.at_most(what, 0.6, &times, "sifu", "apptainer");
}

fn many_at_once(bench: &Bench, table: &mut Table) {
    let mut contenders = vec![contender("sifu", Clock::AtOnce(64), bench.sifu_exec("busy.sif", &["true"]))];
    if installed("apptainer") {
        let line = ["apptainer", "exec", &bench.file("busy.sif"), "true"];
        contenders.push(contender("apptainer", Clock::AtOnce(64), words(&line)));
    }
    let times = bench.times(3, 0, &[], &contenders);
    table.times_faster("64 of exec busy.sif true at once", 12.0, &times, "sifu", "apptainer");
}

fn exit_after_reading(bench: &Bench, table: &mut Table) {
    let contenders = [
        contender("nothing", Clock::Exit, bench.sifu_exec("big.sif", &["sh", "-c", "exec /tick"])),
        contender(
            "900 MB",
            Clock::Exit,
            bench.sifu_exec("big.sif", &["sh", "-c", "cat /part? >/dev/null; exec /tick"]),
        ),
    ];
    let times = bench.times(9, 0, &[], &contenders);
    let (little, much) = (median(&times["nothing"]), median(&times["900 MB"]));
    let how = format!("after 900 MB {}, after nothing {}", duration(much), duration(little));
    let more = much - little;
    table.row("exit of a container that read 900 MB", "1 ms more", &duration(more.max(0.0)), more < 1e6, &how);
}

/// sifu's own processes: those that execute its programs. The container's command executes something else.
fn own_processes(bench: &Bench) -> Vec<PathBuf> {
    let programs = [PathBuf::from(&bench.sifu), Path::new(&bench.sifu).with_file_name("starter")];
    let entries = std::fs::read_dir("/proc").expect("/proc can be listed").flatten().map(|entry| entry.path());
    entries.filter(|path| std::fs::read_link(path.join("exe")).is_ok_and(|link| programs.contains(&link))).collect()
}

/// The highest resident size of a process so far, in KiB.
fn peak_resident_kib(process: &Path) -> u64 {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0)
}

/// A container whose shell does `work`, says so, and waits.
struct Waiting {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Waiting {
    fn start(bench: &Bench, image: &str, script: &str) -> Self {
        let line = bench.sifu_exec(image, &["sh", "-c", script]);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut command = bench.as_user(0, &line);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a container can be started");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, output }
    }

    fn wait_for_line(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line of the container");
        assert!(!line.is_empty(), "the container ended before it said anything");
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn memory(bench: &Bench, table: &mut Table) {
    let mut measure = |what: &str, image: &str, script: &str, limit_mib: u64| {
        if !bench.has(image) {
            return table.left_out(what, &format!("no {image}"));
        }
        let mut waiting = Waiting::start(bench, image, script);
        waiting.wait_for_line();
        let peaks: Vec<u64> = own_processes(bench).iter().map(|process| peak_resident_kib(process)).collect();
        waiting.end();
        if peaks.is_empty() || peaks.contains(&0) {
            return table.left_out(what, "this user can't look at sifu's processes");
        }
        let sum = peaks.iter().sum::<u64>();
        let how = format!("highest resident size of {} processes", peaks.len());
        table.row(
            what,
            &format!("at most {limit_mib} MiB"),
            &format!("{:.1} MiB", sum as f64 / 1024.0),
            sum <= limit_mib * 1024,
            &how,
        );
    };
    measure("memory of sifu's processes, for true", "busy.sif", "true; echo done; read end", 5);
    let everything = "find / -xdev -type f ! -path '/proc/*' ! -path '/sys/*' -print0 2>/dev/null | xargs -0 cat >/dev/null 2>&1; echo done; read end";
    measure("memory of sifu's processes, serving a large image", "deb.sif", everything, 80);
}

/// Processor time of a process so far, in ticks of 10 ms.
fn processor_ticks(process: &Path) -> u64 {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    [11, 12].iter().filter_map(|&field| fields.get(field)?.parse::<u64>().ok()).sum()
}

fn steady_state(bench: &Bench, table: &mut Table) {
    let what = "processor time of the server, warm and in use";
    if !bench.has("deb.sif") {
        return table.left_out(what, "no deb.sif");
    }
    let read = "find /usr/lib/python3 -xdev -name '*.py' -print0 | xargs -0 cat >/dev/null";
    let script = format!("{read}; {read}; echo warm; while :; do {read}; done");
    let mut waiting = Waiting::start(bench, "deb.sif", &script);
    waiting.wait_for_line();
    let processes = own_processes(bench);
    let ticks = || processes.iter().map(|process| processor_ticks(process)).sum::<u64>();
    let (before, start) = (ticks(), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let share = (ticks() - before) as f64 / 100.0 / start.elapsed().as_secs_f64();
    let _ = waiting.child.kill();
    waiting.end();
    if processes.is_empty() {
        return table.left_out(what, "this user can't look at sifu's processes");
    }
    table.row(
        what,
        "under 1 % of a core",
        &format!("{:.2} %", share * 100.0),
        share < 0.01,
        "5 s of reading the same files",
    );
}

/// Starts in surroundings that cost some runtimes dear, each against the plain one, in alternating batches.
fn surroundings(bench: &Bench, table: &mut Table) {
    let exec = contender("sifu", Clock::Whole, bench.sifu_exec("tiny.sif", &["/tick"]));
    let mut compare = |what: &str, limit: f64, special: &mut dyn FnMut() -> Times| {
        let (mut plain, mut other) = (Vec::new(), Vec::new());
        for _ in 0..6 {
            plain.extend(bench.times(12, 0, &[], std::slice::from_ref(&exec)).remove("sifu").unwrap_or_default());
            other.extend(special().remove("sifu").unwrap_or_default());
        }
        let (a, b) = (median(&other), median(&plain));
        let how = format!("there {}, plain {}", duration(a), duration(b));
        table.row(what, &format!("at most {limit} of it"), &format!("{:.2}", a / b), a / b <= limit, &how);
    };

    let crowded = std::env::temp_dir().join(format!("sifu-bench-crowd-{}", std::process::id()));
    std::fs::create_dir(&crowded).expect("a directory");
    for number in 0..100_000 {
        std::fs::write(crowded.join(number.to_string()), "").expect("a file");
    }
    let mut there = exec.clone();
    there.directory = Some(crowded.clone());
    compare("start with 100,000 files in the current directory", 1.3, &mut || {
        bench.times(12, 0, &[], std::slice::from_ref(&there))
    });
    let _ = std::fs::remove_dir_all(&crowded);

    compare("start on a node with 10,000 threads", 1.2, &mut || {
        let mut command = Command::new(&bench.myself);
        let mut crowd =
            command.args(["threads", "10000"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("threads");
        let mut ready = String::new();
        BufReader::new(crowd.stdout.take().expect("its output")).read_line(&mut ready).expect("threads");
        let times = bench.times(12, 0, &[], std::slice::from_ref(&exec));
        drop(crowd.stdin.take());
        let _ = crowd.wait();
        times
    });

    if bench.user.is_none() {
        for what in ["start with 65 supplementary groups", "start with 1,000 host mounts"] {
            table.left_out(what, "needs root to be arranged");
        }
        return;
    }
    compare("start with 65 supplementary groups", 1.1, &mut || bench.times(12, 65, &[], std::slice::from_ref(&exec)));
    let mounts = "for i in $(seq 1000); do mkdir -p /mnt/$i; mount -t tmpfs none /mnt/$i; done; exec \"$@\"";
    let script = format!("mount -t tmpfs none /mnt; {mounts}");
    let around = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    compare("start with 1,000 host mounts", 2.5, &mut || bench.times(12, 0, &around, std::slice::from_ref(&exec)));
}
