//! Packing: sifu against mksquashfs and Apptainer, on one directory.
//!
//!   pack [--runs N] [--levels 3,6,9,15] [DIRECTORY]
//!
//! `ONE.tar`, `ONE.oci.tar` and `LAYERS.oci.tar` beside the directory, if they are there, hold the same files: as `docker save`
//! writes an image of one layer, as an OCI archive of one, and as one of several.
//!
//! Contenders take turns and medians are compared; every image is looked at for its size. Both have as many threads as
//! this process may use. Memory is measured with contents that are made up while they are packed, so that nothing but
//! the packer is measured.

mod measuring;

use measuring::{Nowhere, Scratch, Usage, measured, usage};
use sifu::build::processors;
use sifu::squashfs::write::{BLOCK_BYTES, Compression, PackOptions, write};
use sifu::tree::{Attributes, Body, Content, Source, Tree};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const DIRECTORY: &str = "/var/tmp/deb-root";
/// What memory may grow to, whatever the contents are: this, and so much for each thread.
const MEMORY_MIB: u64 = 64;
const MEMORY_MIB_A_THREAD: u64 = 8;
/// A peer that takes longer is run once.
const SLOW_S: f64 = 30.0;

fn main() -> io::Result<()> {
    // `cargo bench` adds an option of its own.
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).filter(|word| word != "--bench").collect();
    match arguments.first().and_then(|word| word.to_str()) {
        Some("measured") => return measured(&arguments[1..]),
        Some("made-up") => return made_up(number(arguments.get(1))),
        _ => {}
    }
    let mut runs = 3;
    let mut levels = vec![3, 6, 9];
    while let [option, value, ..] = arguments.as_slice() {
        match option.to_str() {
            Some("--runs") => runs = number(Some(value)) as usize,
            Some("--levels") => {
                let text = value.to_string_lossy();
                levels = text.split(',').filter_map(|level| level.parse().ok()).collect();
            }
            _ => break,
        }
        arguments.drain(..2);
    }
    let directory = PathBuf::from(arguments.first().cloned().unwrap_or_else(|| DIRECTORY.into()));
    if !directory.is_dir() {
        println!("skipped: needs a directory to pack ({})", directory.display());
        return Ok(());
    }
    let scratch = Scratch::new("pack")?;
    let bench = Bench { directory, runs, threads: threads(), scratch: scratch.0.clone() };
    bench.squashfs(&levels)?;
    bench.against_apptainer()?;
    bench.archives()?;
    bench.memory()
}

fn number(word: Option<&OsString>) -> u64 {
    word.and_then(|word| word.to_str()).and_then(|word| word.parse().ok()).unwrap_or(1)
}

fn threads() -> usize {
    processors::usable(&processors::observe(), None).get()
}

/// One run of one program.
#[derive(Clone, Copy, Debug)]
struct Run {
    wall_s: f64,
    cpu_s: f64,
    peak_kib: u64,
    image_bytes: u64,
}

struct Bench {
    directory: PathBuf,
    runs: usize,
    threads: usize,
    scratch: PathBuf,
}

impl Bench {
    fn squashfs(&self, levels: &[u32]) -> io::Result<()> {
        println!("directory to image, {} threads, median of {}:", self.threads, self.runs);
        println!("{:<22} {:>8} {:>8} {:>7} {:>7} {:>9} {:>6}", "", "sifu", "peer", "ratio", "target", "size", "busy");
        self.pair("gzip", "-comp gzip", &["-comp", "gzip"], Some(0.2))?;
        for level in levels {
            let level = level.to_string();
            let ours = format!("-comp zstd -Xcompression-level {level}");
            self.pair(&format!("zstd {level}"), &ours, &["-comp", "zstd", "-Xcompression-level", &level], Some(0.85))?;
        }
        Ok(())
    }

    fn pair(&self, name: &str, ours: &str, theirs: &[&str], target: Option<f64>) -> io::Result<()> {
        let processors = self.threads.to_string();
        let image = self.scratch.join("theirs.sqfs");
        let mut peer = Command::new("mksquashfs");
        peer.arg(&self.directory).arg(&image).args(theirs).args([
            "-processors",
            &processors,
            "-noappend",
            "-no-progress",
        ]);
        self.compare(
            &format!("{name}, mksquashfs"),
            &self.sifu(&["--mksquashfs-args", ours]),
            &words(&peer),
            &image,
            target,
        )
    }

    fn against_apptainer(&self) -> io::Result<()> {
        let image = self.scratch.join("theirs.sif");
        let mut peer = Command::new("apptainer");
        peer.args(["--silent", "build", "--force"]).arg(&image).arg(&self.directory);
        self.compare("defaults, apptainer", &self.sifu(&[]), &words(&peer), &image, Some(1.0 / 6.0))
    }

    /// Archives of layers: one against the compression of the same files from a directory, several against Apptainer.
    fn archives(&self) -> io::Result<()> {
        let beside = |name: &str| self.directory.with_file_name(name);
        println!("archives of layers; those of one against the packing of the directory:");
        for (scheme, name) in [("docker-archive", "ONE.tar"), ("oci-archive", "ONE.oci.tar")] {
            let archive = beside(name);
            if archive.exists() {
                let ours = self.sifu_of(&format!("{scheme}:{}", archive.display()), "archive.sif");
                let image = self.scratch.join("ours.sif");
                self.compare(&format!("{scheme}, one layer"), &ours, &self.sifu(&[]), &image, Some(1.1))?;
            } else {
                println!("skipped: needs {}", archive.display());
            }
        }
        let archive = beside("LAYERS.oci.tar");
        if !archive.exists() {
            println!("skipped: needs {}", archive.display());
            return Ok(());
        }
        let uri = format!("oci-archive:{}", archive.display());
        let image = self.scratch.join("theirs.sif");
        let mut peer = Command::new("apptainer");
        peer.args(["--silent", "build", "--force", "--disable-cache"]).arg(&image).arg(&uri);
        self.compare("layers, apptainer", &self.sifu_of(&uri, "archive.sif"), &words(&peer), &image, Some(1.0 / 6.0))
    }

    fn sifu_of(&self, source: &str, image: &str) -> Vec<OsString> {
        let program = std::env::var_os("SIFU_BENCH_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sifu").into());
        let mut command = Command::new(program);
        command.args(["--quiet", "build", "--force"]).arg(self.scratch.join(image)).arg(source);
        words(&command)
    }

    fn sifu(&self, flags: &[&str]) -> Vec<OsString> {
        let program = std::env::var_os("SIFU_BENCH_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sifu").into());
        let mut command = Command::new(program);
        command
            .args(["--quiet", "build", "--force"])
            .args(flags)
            .arg(self.scratch.join("ours.sif"))
            .arg(&self.directory);
        words(&command)
    }

    /// Runs both in turns. `target` is what the ratio of wall times may be.
    fn compare(
        &self,
        name: &str,
        ours: &[OsString],
        theirs: &[OsString],
        image: &Path,
        target: Option<f64>,
    ) -> io::Result<()> {
        let is_there = Command::new(&theirs[0]).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let has_peer = is_there.is_ok();
        let (mut our_runs, mut their_runs) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            let our_image = ours.iter().map(Path::new).find(|word| word.starts_with(&self.scratch));
            our_runs.push(run(ours, our_image.unwrap_or(&self.scratch))?);
            // Noise matters less to who takes a minute, and patience more.
            let is_slow = their_runs.first().is_some_and(|first: &Run| first.wall_s > SLOW_S);
            if has_peer && !is_slow {
                their_runs.push(run(theirs, image)?);
            }
        }
        let sifu = median(&mut our_runs);
        let busy = sifu.cpu_s / sifu.wall_s / self.threads as f64;
        if their_runs.is_empty() {
            println!("{name:<22} {:>7.2}s {:>8} {:>36.0}%", sifu.wall_s, "missing", busy * 100.0);
            return Ok(());
        }
        let peer = median(&mut their_runs);
        let ratio = sifu.wall_s / peer.wall_s;
        println!(
            "{name:<22} {:>7.2}s {:>7.2}s {ratio:>7.3} {:>7} {:>9.4} {:>5.0}%{}",
            sifu.wall_s,
            peer.wall_s,
            target.map_or(String::new(), |target| format!("{target:.2}")),
            sifu.image_bytes as f64 / peer.image_bytes as f64,
            busy * 100.0,
            if target.is_some_and(|target| ratio > target) { "  above the target" } else { "" }
        );
        println!(
            "{:<22} {:>7.2}s {:>7.2}s {:>7.3} processor time; peak {} MiB and {} MiB",
            "",
            sifu.cpu_s,
            peer.cpu_s,
            sifu.cpu_s / peer.cpu_s,
            sifu.peak_kib >> 10,
            peer.peak_kib >> 10
        );
        Ok(())
    }

    fn memory(&self) -> io::Result<()> {
        let bound = MEMORY_MIB + MEMORY_MIB_A_THREAD * self.threads as u64;
        for gib in [1, 8] {
            let program = std::env::current_exe()?;
            let command = [program.into_os_string(), "made-up".into(), gib.to_string().into()];
            let run = run(&command, Path::new("/dev/null"))?;
            let peak = run.peak_kib >> 10;
            let verdict = if peak > bound { "  above the target" } else { "" };
            println!("{gib} GiB of contents: peak {peak} MiB, at most {bound} MiB{verdict}  ({:.1} s)", run.wall_s);
        }
        Ok(())
    }
}

fn words(command: &Command) -> Vec<OsString> {
    std::iter::once(command.get_program()).chain(command.get_args()).map(OsString::from).collect()
}

fn median(runs: &mut [Run]) -> Run {
    runs.sort_by(|a, b| a.wall_s.total_cmp(&b.wall_s));
    runs[runs.len() / 2]
}

/// Runs a command that makes `image`.
fn run(command: &[OsString], image: &Path) -> io::Result<Run> {
    let Usage { wall_s, cpu_s, peak_kib } = usage(command, |_| {})?;
    let image_bytes = fs::metadata(image).map_or(0, |metadata| metadata.len());
    Ok(Run { wall_s, cpu_s, peak_kib, image_bytes })
}

/// Files of 256 MiB that are made up where they are read: words in an order that never repeats.
struct MadeUp;

const FILE_BYTES: u64 = 256 << 20;

struct MadeUpReader {
    state: u64,
    left_bytes: u64,
}

impl Read for MadeUpReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left_bytes).unwrap_or(usize::MAX));
        for chunk in buffer[..length].chunks_mut(16) {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = (self.state >> 40).to_le_bytes();
            chunk.fill(b'.');
            let known = chunk.len().min(4);
            chunk[..known].copy_from_slice(&random[..known]);
        }
        self.left_bytes -= length as u64;
        Ok(length)
    }
}

impl Source for MadeUp {
    fn open(&self, key: u64, offset_bytes: u64) -> io::Result<Box<dyn Read + '_>> {
        let left_bytes = FILE_BYTES - key - offset_bytes;
        Ok(Box::new(MadeUpReader { state: (key << 32) ^ offset_bytes, left_bytes }))
    }

    fn name(&self, key: u64) -> String {
        format!("file {key}")
    }
}

fn made_up(gib: u64) -> io::Result<()> {
    let attributes = || Attributes { mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
    let mut tree = Tree::new(attributes());
    let source = tree.add_source(Arc::new(MadeUp)).map_err(io::Error::other)?;
    for key in 0..(gib << 30) / FILE_BYTES {
        // Different sizes: no file is read twice to be compared.
        let body = Body::File(Content::Stored { source, key, size_bytes: FILE_BYTES - key });
        tree.insert(tree.root(), key.to_string().as_bytes(), attributes(), body).map_err(io::Error::other)?;
    }
    let threads = processors::usable(&processors::observe(), None);
    let options = PackOptions { compression: Compression::ZSTD, block_bytes: BLOCK_BYTES, threads, time: 0 };
    let summary = write(&tree, &options, &mut Nowhere::default()).map_err(io::Error::other)?;
    println!("{}", summary.size_bytes);
    Ok(())
}
