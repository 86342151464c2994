//! Start-up, measured: every contender of a row runs in turn, round by round, and the row shows the ratio of medians.
//!
//! `setup/bench` prepares the images and runs this.
#![forbid(unsafe_code)]

mod measuring;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use measuring::{Bench, Clock, Table, Times, contender, duration, installed, measure, median, words};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("measure") => measure(),
        Some("threads") => idle_threads(arguments.get(1).and_then(|count| count.parse().ok()).unwrap_or(0)),
        only => orchestrate(only),
    }
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
