//! Pulling: a Debian with numpy from a registry of this machine, cold, against Apptainer and against its own parts.
//!
//!   pull [--runs N] REFERENCE BLOBS ROOT
//!
//! REFERENCE is the image (`127.0.0.1:5056/deb:1`), BLOBS a directory of its blobs, ROOT one of its files. Contenders take
//! turns and medians are compared; processor time stands beside wall time, since it tells more on a busy machine. The
//! parts are the image's layers inflated by one thread, and its files packed by all, to nowhere.

mod measuring;

use measuring::{Nowhere, Scratch, Usage, measured, usage};
use sifu::build::processors;
use sifu::oci::inflate::inflate;
use sifu::squashfs::write::{BLOCK_BYTES, Compression, PackOptions, write};
use sifu::tree::{Options, Owners, from_directory};
use starter::paths::HostPath;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// What wall time may be: of Apptainer's, and of the parts' sum.
const OF_APPTAINER: f64 = 0.2;
const OF_PARTS: f64 = 1.15;
/// What a reference may cost more than a file, when the image is in the cache.
const REFERENCE_MS: f64 = 5.0;
const STARTS: usize = 50;
const MEMORY_BYTES: u64 = 512 << 20;

fn main() -> io::Result<()> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).filter(|word| word != "--bench").collect();
    match arguments.first().and_then(|word| word.to_str()) {
        Some("measured") => return measured(&arguments[1..]),
        Some("part") => return part(&arguments[1..]),
        _ => {}
    }
    let mut runs = 3;
    if let [option, value, ..] = arguments.as_slice()
        && option == "--runs"
    {
        runs = value.to_str().and_then(|value| value.parse().ok()).unwrap_or(runs);
        arguments.drain(..2);
    }
    let [reference, blobs, root] = arguments.as_slice() else {
        println!("skipped: needs an image in a registry, its blobs and its files (setup/bench makes them)");
        return Ok(());
    };
    let scratch = Scratch::new("pull")?;
    let bench = Bench { uri: format!("docker://{}", reference.to_string_lossy()), scratch: scratch.0.clone(), runs };
    bench.pulls(blobs, root)?;
    bench.confined()?;
    bench.starts()
}

struct Bench {
    uri: String,
    scratch: PathBuf,
    runs: usize,
}

impl Bench {
    fn pulls(&self, blobs: &OsString, root: &OsString) -> io::Result<()> {
        let has_peer = Command::new("apptainer").arg("--version").stdout(Stdio::null()).status().is_ok();
        let own = std::env::current_exe()?.into_os_string();
        let part = |name: &str, place: &OsString| [own.clone(), "part".into(), name.into(), place.clone()];
        let (mut ours, mut theirs, mut inflating, mut packing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.runs {
            self.forget()?;
            ours.push(run(&self.sifu(&["pull", "--force", "--no-https"], &["ours.sif"]))?);
            inflating.push(run(&part("inflating", blobs))?);
            packing.push(run(&part("packing", root))?);
            if has_peer {
                let peer = ["--silent", "pull", "--force", "--no-https", "theirs.sif", &self.uri];
                let words = std::iter::once("apptainer").chain(peer).map(OsString::from);
                theirs.push(run(&words.collect::<Vec<_>>())?);
            }
        }
        let (ours, inflating, packing) = (median(ours), median(inflating), median(packing));
        println!("pull, cold, median of {}: wall, processor time, peak memory", self.runs);
        let row = |name: &str, run: Usage| {
            println!("  {name:<12} {:>7.2} s {:>7.2} s {:>6} MiB", run.wall_s, run.cpu_s, run.peak_kib >> 10);
        };
        row("sifu", ours);
        row("inflating", inflating);
        row("packing", packing);
        let verdict = |ratio: f64, target: f64| if ratio > target { "  above the target" } else { "" };
        let parts = ours.wall_s / (inflating.wall_s + packing.wall_s);
        let cpu = ours.cpu_s / (inflating.cpu_s + packing.cpu_s);
        println!("  of the parts {parts:.3} (at most {OF_PARTS}), processor time {cpu:.3}{}", verdict(parts, OF_PARTS));
        if theirs.is_empty() {
            println!("  apptainer is missing");
            return Ok(());
        }
        let theirs = median(theirs);
        row("apptainer", theirs);
        let (wall, cpu) = (ours.wall_s / theirs.wall_s, ours.cpu_s / theirs.cpu_s);
        println!(
            "  of apptainer {wall:.3} (at most {OF_APPTAINER}), processor time {cpu:.3}{}",
            verdict(wall, OF_APPTAINER)
        );
        Ok(())
    }

    /// With a /tmp of 64 MiB and 512 MiB of memory, page cache included.
    fn confined(&self) -> io::Result<()> {
        let Some(group) = memory_group() else {
            println!("pull in 64 MiB of /tmp and 512 MiB of memory: needs root and a control group for memory");
            return Ok(());
        };
        self.forget()?;
        let script = "mount -t tmpfs -o size=64m tmpfs /tmp && exec \"$@\"";
        let mut words: Vec<OsString> =
            ["unshare", "--mount", "sh", "-c", script, "sh"].iter().map(OsString::from).collect();
        words.extend(self.sifu(&["pull", "--force", "--no-https"], &["ours.sif"]));
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.display());
        let mut whole: Vec<OsString> = vec!["sh".into(), "-c".into(), script.into(), "sh".into()];
        whole.append(&mut words);
        let confined = run(&whole);
        let _ = fs::remove_dir(&group);
        let run = confined?;
        println!(
            "pull in 64 MiB of /tmp and 512 MiB of memory: succeeds, {:.2} s, peak {} MiB",
            run.wall_s,
            run.peak_kib >> 10
        );
        Ok(())
    }

    fn starts(&self) -> io::Result<()> {
        let file = self.sifu(&["exec"], &[]);
        let by_file: Vec<OsString> =
            file[..file.len() - 1].iter().cloned().chain(["ours.sif".into(), "/bin/true".into()]).collect();
        let mut by_reference = self.sifu(&["exec", "--no-https"], &[]);
        by_reference.push("/bin/true".into());
        let (mut files, mut references) = (Vec::new(), Vec::new());
        for round in 0..=STARTS {
            let (file, reference) = (time(&by_file, &self.scratch)?, time(&by_reference, &self.scratch)?);
            // The first round warms up.
            if round > 0 {
                files.push(file);
                references.push(reference);
            }
        }
        let middle = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] * 1e3
        };
        let (file, reference) = (middle(&mut files), middle(&mut references));
        let more = reference - file;
        let verdict = if more > REFERENCE_MS { "  above the target" } else { "" };
        println!(
            "exec of a file {file:.1} ms, of a cached reference {reference:.1} ms: {more:.1} ms more (at most {REFERENCE_MS}){verdict}"
        );
        Ok(())
    }

    fn sifu(&self, before: &[&str], after: &[&str]) -> Vec<OsString> {
        let program = std::env::var_os("SIFU_BENCH_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sifu").into());
        let words = std::iter::once("--quiet").chain(before.iter().copied()).chain(after.iter().copied());
        std::iter::once(program).chain(words.chain([self.uri.as_str()]).map(OsString::from)).collect()
    }

    /// Empties both caches.
    fn forget(&self) -> io::Result<()> {
        for name in ["home", "cache"] {
            let path = self.scratch.join(name);
            if path.exists() {
                fs::remove_dir_all(&path)?;
            }
            fs::create_dir(&path)?;
        }
        Ok(())
    }
}

fn median(mut runs: Vec<Usage>) -> Usage {
    runs.sort_by(|a, b| a.wall_s.total_cmp(&b.wall_s));
    runs[runs.len() / 2]
}

/// The surroundings of everything that is measured.
fn surround(command: &mut Command, scratch: &Path) {
    command.current_dir(scratch).stdin(Stdio::null());
    command.env("HOME", scratch.join("home")).env("APPTAINER_CACHEDIR", scratch.join("cache"));
}

fn time(words: &[OsString], scratch: &Path) -> io::Result<f64> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdout(Stdio::null());
    surround(&mut command, scratch);
    let start = Instant::now();
    let status = command.status()?;
    if status.success() {
        Ok(start.elapsed().as_secs_f64())
    } else {
        Err(io::Error::other(format!("{words:?}: {status}")))
    }
}

fn run(words: &[OsString]) -> io::Result<Usage> {
    let scratch = PathBuf::from(format!("/var/tmp/sifu-pull-{}", std::process::id()));
    usage(words, |command| surround(command, &scratch))
}

/// One part of a pull alone.
fn part(words: &[OsString]) -> io::Result<()> {
    let [name, place] = words else { return Err(io::ErrorKind::InvalidInput.into()) };
    let place = Path::new(place);
    if name == "inflating" {
        for entry in fs::read_dir(place)? {
            let blob = BufReader::with_capacity(256 << 10, File::open(entry?.path())?);
            io::copy(&mut inflate(blob)?, &mut io::sink())?;
        }
        return Ok(());
    }
    let options = Options { owners: Owners::AsFound, remembered: Arc::default() };
    let walked = from_directory(&HostPath::new(place), &options).map_err(io::Error::other)?;
    let threads = processors::usable(&processors::observe(), None);
    let options = PackOptions { compression: Compression::ZSTD, block_bytes: BLOCK_BYTES, threads, time: 0 };
    write(&walked.tree, &options, &mut Nowhere::default()).map_err(io::Error::other)?;
    Ok(())
}

/// A new control group whose memory is limited, of either version.
fn memory_group() -> Option<PathBuf> {
    let name = format!("sifu-pull-{}", std::process::id());
    [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")].iter().find_map(
        |(top, limit)| {
            let group = Path::new(top).join(&name);
            fs::create_dir(&group).ok()?;
            match fs::write(group.join(limit), MEMORY_BYTES.to_string()) {
                Ok(()) => Some(group),
                Err(_) => {
                    let _ = fs::remove_dir(&group);
                    None
                }
            }
        },
    )
}
