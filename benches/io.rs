//! Image I/O: sifu's server against squashfuse_ll, the kernel's SquashFS and the unpacked directory.
//!
//!   io [--runs N] [IMAGE.sqfs [DIRECTORY]]        as root; IMAGE holds what DIRECTORY does
//!
//! Each contender is mounted anew for every run, all of them take turns, and medians are compared. Cold means that
//! the image was put out of the page cache; the directory is measured warm only, since a mount is all that can be
//! renewed without disturbing the rest of the machine.

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount, umount};
use sifu::serve::{Owner, ServeOptions, run, send_fuse};
use sifu::squashfs::Reader;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const IMAGE: &str = "/var/tmp/deb.sqfs";
const DIRECTORY: &str = "/var/tmp/deb-root";
/// A large file of the image, for reads at random places.
const LARGE_FILE_BYTES: u64 = 16 << 20;
const RANDOM_READS: usize = 2000;

fn main() -> io::Result<()> {
    // `cargo bench` adds an option of its own.
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [verb, image, target] = arguments.as_slice()
        && verb == "serve"
    {
        return serve(Path::new(image), target);
    }
    let mut runs = 5;
    if let [option, count, ..] = arguments.as_slice()
        && option == "--runs"
    {
        runs = count.parse().map_err(io::Error::other)?;
        arguments.drain(..2);
    }
    let image = PathBuf::from(arguments.first().map_or(IMAGE, String::as_str));
    let directory = PathBuf::from(arguments.get(1).map_or(DIRECTORY, String::as_str));
    if !nix::unistd::geteuid().is_root() || !image.exists() {
        println!("skipped: needs root, and an image ({})", image.display());
        return Ok(());
    }
    measure(&image, &directory, runs)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Contender {
    Sifu,
    SquashfuseLl,
    Kernel,
    Directory,
}

/// What is measured, in this order: the first ones of a mount see it cold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Workload {
    WalkCold,
    WalkWarm,
    ReadCold,
    ReadColdTwo,
    ReadWarm,
    RandomCold,
    ServerCpuWarm,
    ServerMemory,
}

const ROUNDS: [&[Workload]; 3] = [
    &[
        Workload::WalkCold,
        Workload::WalkWarm,
        Workload::ReadCold,
        Workload::ReadWarm,
        Workload::ServerCpuWarm,
        Workload::ServerMemory,
    ],
    &[Workload::ReadColdTwo],
    &[Workload::RandomCold],
];

fn measure(image: &Path, directory: &Path, runs: usize) -> io::Result<()> {
    let mut times: BTreeMap<(Workload, Contender), Vec<f64>> = BTreeMap::new();
    let target = std::env::temp_dir().join(format!("sifu-io-{}", std::process::id()));
    fs::create_dir(&target)?;
    for _ in 0..runs {
        for round in ROUNDS {
            for contender in [Contender::Sifu, Contender::SquashfuseLl, Contender::Kernel, Contender::Directory] {
                if contender == Contender::Directory && !directory.exists() {
                    continue;
                }
                let Some(mut mounted) = Mounted::new(contender, image, directory, &target)? else { continue };
                for &workload in round {
                    let cold = matches!(
                        workload,
                        Workload::WalkCold | Workload::ReadCold | Workload::ReadColdTwo | Workload::RandomCold
                    );
                    if cold {
                        evict(image)?;
                    }
                    if let Some(value) = mounted.run(workload)? {
                        times.entry((workload, contender)).or_default().push(value);
                    }
                }
                mounted.end(&target);
            }
        }
    }
    let _ = fs::remove_dir(&target);
    report(&times, runs);
    Ok(())
}

fn report(times: &BTreeMap<(Workload, Contender), Vec<f64>>, runs: usize) {
    let median = |workload, contender| {
        let mut values = times.get(&(workload, contender))?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    println!("medians of {runs} runs in ms (memory in KiB), and sifu's as a ratio of each");
    println!("{:<15} {:>9} {:>18} {:>18} {:>18}", "", "sifu", "squashfuse_ll", "kernel", "directory");
    let workloads: std::collections::BTreeSet<Workload> = times.keys().map(|&(workload, _)| workload).collect();
    for workload in workloads {
        let Some(ours) = median(workload, Contender::Sifu) else { continue };
        print!("{:<15} {ours:>9.1}", format!("{workload:?}"));
        for contender in [Contender::SquashfuseLl, Contender::Kernel, Contender::Directory] {
            match median(workload, contender) {
                Some(theirs) => print!(" {theirs:>10.1} {:>7.2}", ours / theirs),
                None => print!(" {:>18}", "-"),
            }
        }
        println!();
    }
}

/// A tree to measure, and the process that serves it.
struct Mounted {
    root: PathBuf,
    server: Option<Child>,
    cpu_before: f64,
}

impl Mounted {
    /// `None` when this contender is not here.
    fn new(contender: Contender, image: &Path, directory: &Path, target: &Path) -> io::Result<Option<Self>> {
        let mut root = target.to_owned();
        let device = fs::metadata(target)?.dev();
        let server = match contender {
            Contender::Directory => {
                root = directory.to_owned();
                None
            }
            Contender::Kernel => {
                let status = Command::new("mount")
                    .args(["-t", "squashfs", "-o", "loop,ro"])
                    .arg(image)
                    .arg(target)
                    .stderr(Stdio::null())
                    .status()?;
                if !status.success() {
                    return Ok(None);
                }
                None
            }
            Contender::Sifu => {
                Some(Command::new(std::env::current_exe()?).arg("serve").arg(image).arg(target).spawn()?)
            }
            Contender::SquashfuseLl => {
                let Some(program) = squashfuse() else { return Ok(None) };
                let options = OsString::from("allow_other");
                Some(
                    Command::new(program)
                        .arg("-f")
                        .arg("-o")
                        .arg(options)
                        .arg(image)
                        .arg(target)
                        .stdout(Stdio::null())
                        .spawn()?,
                )
            }
        };
        if server.is_some() {
            let start = Instant::now();
            while fs::metadata(target).map(|m| m.dev() == device).unwrap_or(true) {
                if start.elapsed() > Duration::from_secs(10) {
                    return Err(io::Error::other("a server did not mount"));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(Some(Self { root, server, cpu_before: 0.0 }))
    }

    fn run(&mut self, workload: Workload) -> io::Result<Option<f64>> {
        let start = Instant::now();
        match workload {
            Workload::WalkCold => {
                walk(&self.root)?;
            }
            Workload::WalkWarm => {
                walk(&self.root)?;
            }
            Workload::ReadCold => read_all(&walk(&self.root)?, 1)?,
            Workload::ReadColdTwo => read_all(&walk(&self.root)?, 2)?,
            Workload::ReadWarm => {
                self.cpu_before = self.server_cpu();
                read_all(&walk(&self.root)?, 1)?;
            }
            Workload::RandomCold => {
                let files = walk(&self.root)?;
                let Some(large) = files.iter().find(|(_, size)| *size > LARGE_FILE_BYTES) else { return Ok(None) };
                let start = Instant::now();
                random_reads(large)?;
                return Ok(Some(milliseconds(start)));
            }
            Workload::ServerCpuWarm => {
                // What the server spent on the warm read, of which the page cache should have answered most.
                return Ok(self.server.as_ref().map(|_| self.server_cpu() - self.cpu_before));
            }
            Workload::ServerMemory => return Ok(self.server.as_ref().and_then(|server| memory_kib(server.id()))),
        }
        Ok(Some(milliseconds(start)))
    }

    /// CPU time of the server so far, ms.
    fn server_cpu(&self) -> f64 {
        let Some(server) = &self.server else { return 0.0 };
        let text = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap_or_default();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime and stime are fields 14 and 15, in ticks of 10 ms.
        fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
    }

    fn end(self, target: &Path) {
        if self.root == target {
            for _ in 0..100 {
                if umount(target).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if let Some(mut server) = self.server {
            let _ = server.wait();
        }
    }
}

fn memory_kib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

fn squashfuse() -> Option<PathBuf> {
    ["/opt/peers/usr/bin/squashfuse_ll", "/usr/libexec/apptainer/bin/squashfuse_ll", "/usr/bin/squashfuse_ll"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

fn evict(image: &Path) -> io::Result<()> {
    let file = File::open(image)?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// Every regular file with its size; every entry is asked for its status.
fn walk(root: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let status = entry.metadata()?;
            if status.is_dir() {
                open.push(entry.path());
            } else if status.is_file() {
                files.push((entry.path(), status.len()));
            }
        }
    }
    Ok(files)
}

fn read_all(files: &[(PathBuf, u64)], readers: usize) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reader = || {
            let mut buffer = vec![0; 128 << 10];
            while let Some((path, _)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut file = File::open(path)?;
                while file.read(&mut buffer)? > 0 {}
            }
            Ok(())
        };
        let threads: Vec<_> = (0..readers).map(|_| scope.spawn(reader)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| io::Error::other("a reader failed"))?)
    })
}

fn random_reads((path, size): &(PathBuf, u64)) -> io::Result<()> {
    let file = File::open(path)?;
    let mut state = 88_172_645_463_325_252_u64;
    let mut page = [0; 4096];
    for _ in 0..RANDOM_READS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(&mut page, state % (size / 4096) * 4096)?;
    }
    Ok(())
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Mounts `image` on `target` and serves it in this process until it is unmounted.
fn serve(image: &Path, target: &str) -> io::Result<()> {
    let file = File::open(image)?;
    let length = file.metadata()?.len();
    let reader = Reader::open(file, 0, length).map_err(io::Error::other)?;
    let fuse = File::options().read(true).write(true).open("/dev/fuse")?;
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", fuse.as_raw_fd());
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("sifu"), target, Some("fuse"), flags, Some(options.as_str()))?;
    let (launcher, server) = UnixStream::pair()?;
    send_fuse(&launcher, 0, &fuse)?;
    run(vec![(reader, ServeOptions { owner: Owner::Recorded, invented: Vec::new() })], server.into(), None, None)
}
