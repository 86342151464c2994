//! Ranks, measured: messages between two of them against the same program on the host; how 64 of one image start, and what
//! they cost in time and memory when each imports numpy and scipy, against Apptainer.
//!
//! `setup/bench` prepares programs and images and runs this. Contenders take turns, round by round.
#![forbid(unsafe_code)]

mod measuring;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use measuring::{Bench, Clock, Table, contender, duration, installed, measure, median, ranks_of_a_step, words};

const RANKS: u32 = 64;

/// What measures some rows of the table.
type Part = fn(&Bench, &mut Table);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("measure") => return measure(),
        Some("hold") => return hold(&arguments[1..]),
        _ => {}
    }
    let only = arguments.first().map(String::as_str);
    let bench = Bench::new();
    let mut table = Table::begin();
    let parts: [(&str, Part); 3] = [("messages", messages), ("ranks", start), ("import", import)];
    for (name, part) in parts {
        if only.is_none_or(|only| only == name) {
            part(&bench, &mut table);
        }
    }
    println!("{} of the targets missed", table.missed);
}

// --- messages between two ranks

/// Nanoseconds for one way, of every round, by the bytes of the message.
type Messages = BTreeMap<u64, Vec<u64>>;

fn messages(bench: &Bench, table: &mut Table) {
    const ROUNDS: usize = 9;
    for (name, family) in [("Open MPI", "openmpi"), ("MPICH", "mpich")] {
        let image = format!("mpi-{family}.sif");
        if !bench.has(&image) {
            table.left_out(&format!("{name}: messages between two ranks"), &format!("no {image}"));
            continue;
        }
        let mut mpirun = words(&[&format!("mpirun.{family}"), "-n", "2"]);
        if family == "openmpi" {
            mpirun.insert(1, "--oversubscribe".into());
        }
        let host = [mpirun.clone(), vec![bench.file(&format!("pingpong.{family}"))]].concat();
        let ours = [mpirun, bench.sifu_exec(&image, &["pingpong"])].concat();
        let (mut on_the_host, mut in_images) = (Messages::new(), Messages::new());
        for round in 0..=ROUNDS {
            // Who is first takes turns as well.
            let mut pair = [(&host, &mut on_the_host), (&ours, &mut in_images)];
            if round % 2 == 1 {
                pair.reverse();
            }
            for (line, all) in pair {
                let said = ping_pong(bench, line);
                // The first round warms up.
                for (bytes, nanoseconds) in said.into_iter().filter(|_| round > 0) {
                    all.entry(bytes).or_default().push(nanoseconds);
                }
            }
        }
        for (bytes, host) in &on_the_host {
            let (host, ours) = (median(host), median(&in_images[bytes]));
            let how = |unit: &dyn Fn(f64) -> String| format!("sifu {}, host {}", unit(ours), unit(host));
            if *bytes <= 1024 {
                let what = format!("{name}: latency of {}", size(*bytes));
                let how = how(&|nanoseconds| format!("{:.2} us", nanoseconds / 1e3));
                let ratio = ours / host;
                table.row(&what, "at most 1.05 of it", &format!("{ratio:.3}"), ratio <= 1.05, &how);
            } else {
                let what = format!("{name}: bandwidth of {}", size(*bytes));
                let how = how(&|nanoseconds| format!("{:.2} GB/s", *bytes as f64 / nanoseconds));
                let ratio = host / ours;
                table.row(&what, "at least 0.97 of it", &format!("{ratio:.3}"), ratio >= 0.97, &how);
            }
        }
    }
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

fn ping_pong(bench: &Bench, line: &[String]) -> Vec<(u64, u64)> {
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let user = bench.as_user(0, &line);
    // As root: ahead of what else the machine does, or two ranks that wait for each other measure the scheduler.
    let mut command = Command::new("chrt");
    if bench.user.is_some() && installed("chrt") {
        command.args(["--rr", "10"]).arg(user.get_program()).args(user.get_args()).current_dir("/");
    } else {
        command = user;
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("mpirun can be started");
    assert!(output.status.success(), "{line:?}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = |line: &str| {
        let (bytes, nanoseconds) = line.split_once(' ')?;
        Some((bytes.parse().ok()?, nanoseconds.parse().ok()?))
    };
    let said: Vec<(u64, u64)> = text.lines().filter_map(numbers).collect();
    assert!(!said.is_empty(), "`{text}`");
    said
}

// --- 64 ranks of one image

fn start(bench: &Bench, table: &mut Table) {
    let mut contenders = vec![contender("sifu", Clock::Ranks(RANKS), bench.sifu_exec("busy.sif", &["true"]))];
    if installed("apptainer") {
        let line = ["apptainer", "exec", &bench.file("busy.sif"), "true"];
        contenders.push(contender("apptainer", Clock::Ranks(RANKS), words(&line)));
    }
    // As messages are measured, and for the same reason.
    let ahead: &[&str] = if bench.user.is_some() && installed("chrt") { &["chrt", "--rr", "10"] } else { &[] };
    let times = bench.times(3, 0, ahead, &contenders);
    table.times_faster("start of 64 ranks of one small image", 60.0, &times, "sifu", "apptainer");
}

/// What 64 ranks took until all were ready, and what they hold then.
struct Held {
    nanoseconds: u64,
    bytes: Option<u64>,
}

fn import(bench: &Bench, table: &mut Table) {
    const ROUNDS: usize = 3;
    let what = "64 ranks that import numpy and scipy";
    if !bench.has("deb.sif") || !bench.has("deb.dir") {
        return table.left_out(what, "no deb.sif, or no deb.dir");
    }
    let command = ["python3", "-c", "import numpy, scipy.linalg; print('ready', flush=True); input()"];
    let plain = ["unshare", "--user", "--map-root-user", "chroot", &bench.file("deb.dir")];
    let mut contenders = vec![
        // The work itself: the same from a directory, which costs a start next to nothing.
        ("directory", [&plain[..], &command].concat().into_iter().map(str::to_owned).collect()),
        ("sifu", bench.sifu_exec("deb.sif", &command)),
    ];
    if installed("apptainer") {
        let line = ["apptainer", "exec", &bench.file("deb.sif")];
        contenders.push(("apptainer", words(&[&line[..], &command].concat())));
    }
    // The image itself is in the page cache for all.
    let _ = fs::read(bench.file("deb.sif")).map(|bytes| bytes.len());
    let mut held: BTreeMap<&str, Vec<Held>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        for (name, line) in &contenders {
            let one = hold_ranks(bench, line);
            // The first round warms up, but for those whose every start is a first one.
            if round > 0 {
                held.entry(name).or_default().push(one);
            }
        }
    }
    let Some(theirs) = held.get("apptainer") else { return table.left_out(what, "apptainer is not installed") };
    let wall = |held: &[Held]| median(&held.iter().map(|one| one.nanoseconds).collect::<Vec<_>>());
    let (work, ours, others) = (wall(&held["directory"]), wall(&held["sifu"]), wall(theirs));
    let ratio = (ours - work).max(0.0) / (others - work);
    let how = format!("sifu {}, apptainer {}, the work {}", duration(ours), duration(others), duration(work));
    table.row(
        "64 ranks importing: wall without the work",
        "at most 0.4 of it",
        &format!("{ratio:.3}"),
        ratio <= 0.4,
        &how,
    );
    let memory = |held: &[Held]| {
        let bytes: Option<Vec<u64>> = held.iter().map(|one| one.bytes).collect();
        bytes.map(|bytes| median(&bytes) / f64::from(1 << 20))
    };
    let (Some(work), Some(ours), Some(others)) = (memory(&held["directory"]), memory(&held["sifu"]), memory(theirs))
    else {
        return table.left_out("64 ranks importing: extra memory", "no control group for memory can be made");
    };
    let ratio = (ours - work).max(0.0) / (others - work);
    let how = format!("sifu {:.0} MiB, apptainer {:.0} MiB more than the work", ours - work, others - work);
    let limit = 1.0 / 40.0;
    table.row("64 ranks importing: extra memory", "at most 1/40 of it", &format!("{ratio:.4}"), ratio <= limit, &how);
}

/// A control group that counts the memory of what runs in it; removed when dropped.
struct MemoryGroup {
    directory: PathBuf,
    counter: &'static str,
}

impl MemoryGroup {
    fn new() -> Option<Self> {
        let name = format!("sifu-bench-{}", std::process::id());
        let known = [("/sys/fs/cgroup/memory", "memory.usage_in_bytes"), ("/sys/fs/cgroup", "memory.current")];
        known.into_iter().find_map(|(parent, counter)| {
            let directory = Path::new(parent).join(&name);
            fs::create_dir(&directory).ok()?;
            let group = Self { directory, counter };
            group.directory.join(counter).exists().then_some(group)
        })
    }

    fn bytes(&self) -> Option<u64> {
        fs::read_to_string(self.directory.join(self.counter)).ok()?.trim().parse().ok()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The last process may not be reaped yet.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn hold_ranks(bench: &Bench, line: &[String]) -> Held {
    let mut inner = vec![bench.myself.as_str(), "hold"];
    inner.extend(line.iter().map(String::as_str));
    let user = bench.as_user(0, &inner);
    let group = MemoryGroup::new();
    let mut command = Command::new("sh");
    match &group {
        Some(group) => {
            let enter = "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"";
            command.args(["-c", enter]).arg(&group.directory).arg(user.get_program()).args(user.get_args());
        }
        None => command = user,
    }
    let mut child =
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ranks can be started");
    let mut said = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut said).expect("a time");
    let nanoseconds = said.trim().parse().unwrap_or_else(|_| panic!("`{said}` is a time"));
    let bytes = group.as_ref().and_then(MemoryGroup::bytes);
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success(), "{line:?}");
    Held { nanoseconds, bytes }
}

/// As the ordinary user: starts the ranks, tells when all have said that they are ready, and keeps them until standard input
/// ends.
fn hold(line: &[String]) {
    let mut commands = ranks_of_a_step(RANKS, line);
    let start = Instant::now();
    let mut ranks: Vec<Child> = commands
        .iter_mut()
        .map(|command| command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a rank can be started"))
        .collect();
    for rank in &mut ranks {
        let mut said = String::new();
        BufReader::new(rank.stdout.as_mut().expect("its output")).read_line(&mut said).expect("a line");
        assert_eq!(said, "ready\n");
    }
    println!("{}", start.elapsed().as_nanos());
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    for rank in &mut ranks {
        // `input()` sees the end of its input and complains; that is its end.
        let _ = rank.stdin.take().map(|mut input| input.write_all(b"\n"));
        let _ = rank.wait();
    }
}
