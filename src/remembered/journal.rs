//! Records on disk: a file that only grows, so that what was remembered outlives every end of its writer.

use super::text::{BadLine, HEADER, line, parse};
use super::{FileId, Generation, Record, Remembered};
use crate::report::{Hint, cause};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{AccessFlags, faccessat};
use starter::paths::HostPath;
use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Lines that may be out of date before the file is written anew.
const STALE_LINES: usize = 10_000;

/// Why remembered records can't be read or written.
#[derive(Debug)]
pub enum JournalError {
    File { path: HostPath, doing: &'static str, source: io::Error },
    TooLarge { path: HostPath },
    Line { path: HostPath, number: usize, why: &'static str },
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, doing, source } => write!(f, "cannot {doing} {path}: {}", cause(source)),
            Self::TooLarge { path } => write!(f, "cannot read {path}: it is larger than {MAX_FILE_BYTES} bytes"),
            Self::Line { path, number, why } => write!(f, "{path}, line {number}: {why}"),
        }
    }
}

impl std::error::Error for JournalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::TooLarge { .. } | Self::Line { .. } => None,
        }
    }
}

impl Hint for JournalError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::File { .. } => Vec::new(),
            Self::TooLarge { .. } | Self::Line { .. } => vec![
                "The file remembers owners and devices of files beside it; without it they belong to the caller again."
                    .into(),
            ],
        }
    }
}

/// Records, and the file that keeps them.
#[derive(Debug)]
pub struct Journal {
    remembered: Remembered,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    path: HostPath,
    place: Place,
    device: u64,
}

#[derive(Debug)]
enum Place {
    File(File),
    /// The directory in which the file is made when there is something to write.
    Directory(OwnedFd, CString),
}

impl Journal {
    /// Records that nobody keeps.
    pub fn in_memory() -> Self {
        Self { remembered: Remembered::default(), kept: None }
    }

    /// Records that are known from the start, and that nobody keeps when they change.
    pub fn starting_with(remembered: Remembered) -> Self {
        Self { remembered, kept: None }
    }

    /// Opens the file at `path`; if there is none, it is made with the first record. It must lie on the file system whose
    /// files it is about, or the device numbers of that must last.
    pub fn open(path: &HostPath) -> Result<Self, JournalError> {
        let failed = |doing| move |source| JournalError::File { path: path.clone(), doing, source };
        let mut options = File::options();
        options.read(true).append(true).custom_flags(nix::libc::O_NOFOLLOW);
        let mut file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::to_be_made(path),
            opened => opened.map_err(failed("open"))?,
        };
        let device = file.metadata().map_err(failed("examine"))?.dev();
        let text = contents(&mut file, path)?;
        let mut remembered = parsed(&text, device, path)?;
        if text.is_empty() {
            file.write_all(HEADER.as_bytes()).map_err(failed("write"))?;
        } else if !text.ends_with(b"\n") {
            // Its writer was stopped in the middle of a line: what follows must not be taken for the rest of it.
            let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            file.set_len(whole as u64).map_err(failed("shorten"))?;
            if whole == 0 {
                file.write_all(HEADER.as_bytes()).map_err(failed("write"))?;
            }
        }
        let lines = text.iter().filter(|&&byte| byte == b'\n').count();
        if lines > 2 * remembered.len() + STALE_LINES {
            file = rewritten(&mut remembered, device, path)?;
        }
        Ok(Self { remembered, kept: Some(Kept { path: path.clone(), place: Place::File(file), device }) })
    }

    fn to_be_made(path: &HostPath) -> Result<Self, JournalError> {
        let failed = |errno: Errno| JournalError::File { path: path.clone(), doing: "make", source: errno.into() };
        let name = path.as_path().file_name().and_then(|name| CString::new(name.as_bytes()).ok());
        let name = name.ok_or_else(|| failed(Errno::EINVAL))?;
        let parent = path.as_path().parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent.unwrap_or(Path::new(".")), flags, Mode::empty()).map_err(failed)?;
        faccessat(&directory, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).map_err(failed)?;
        let device = fstat(&directory).map_err(failed)?.st_dev;
        let kept = Kept { path: path.clone(), place: Place::Directory(directory, name), device };
        Ok(Self { remembered: Remembered::default(), kept: Some(kept) })
    }

    pub fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    /// The descriptor by which the records are kept, for a process that closes all others.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.kept.as_ref().map(|kept| match &kept.place {
            Place::File(file) => file.as_fd(),
            Place::Directory(directory, _) => directory.as_fd(),
        })
    }

    /// Puts `record` in the place of what was known of the file, and writes it down.
    pub fn set(&mut self, file: FileId, generation: Generation, record: Record) -> Result<(), JournalError> {
        if let Some(kept) = &mut self.kept {
            let line = line(file, generation, &record, kept.device);
            // One call, so that lines of several writers don't mix.
            kept.file().and_then(|mut file| file.write_all(line.as_bytes())).map_err(|source| JournalError::File {
                path: kept.path.clone(),
                doing: "write",
                source,
            })?;
        }
        self.remembered.set(file, generation, record);
        Ok(())
    }
}

impl Kept {
    /// The file, made if need be.
    fn file(&mut self) -> io::Result<&File> {
        if let Place::Directory(directory, name) = &self.place {
            let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP | Mode::S_IROTH;
            let made = openat(directory, name.as_c_str(), flags | OFlag::O_CREAT | OFlag::O_EXCL, mode);
            let file = match made {
                // Another container of the same directory was first.
                Err(Errno::EEXIST) => File::from(openat(directory, name.as_c_str(), flags, Mode::empty())?),
                made => {
                    let mut file = File::from(made?);
                    file.write_all(HEADER.as_bytes())?;
                    file
                }
            };
            self.place = Place::File(file);
        }
        match &self.place {
            Place::File(file) => Ok(file),
            Place::Directory(..) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Reads the records of the file at `path`; none if there is no such file.
pub fn read(path: &HostPath) -> Result<Remembered, JournalError> {
    let failed = |doing| move |source| JournalError::File { path: path.clone(), doing, source };
    let mut file = match File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Remembered::default()),
        Err(error) => return Err(failed("open")(error)),
    };
    let device = file.metadata().map_err(failed("examine"))?.dev();
    let text = contents(&mut file, path)?;
    parsed(&text, device, path)
}

fn contents(file: &mut File, path: &HostPath) -> Result<Vec<u8>, JournalError> {
    let failed = |source| JournalError::File { path: path.clone(), doing: "read", source };
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(JournalError::TooLarge { path: path.clone() });
    }
    Ok(text)
}

fn parsed(text: &[u8], device: u64, path: &HostPath) -> Result<Remembered, JournalError> {
    parse(text, device).map_err(|BadLine { number, why }| JournalError::Line { path: path.clone(), number, why })
}

/// Writes what is known to a new file in the place of the one at `path`.
fn rewritten(remembered: &mut Remembered, device: u64, path: &HostPath) -> Result<File, JournalError> {
    let failed = |source| JournalError::File { path: path.clone(), doing: "rewrite", source };
    let beside = path.as_path().with_extension(format!("new-{}", std::process::id()));
    let mut text = HEADER.to_owned();
    let mut files: Vec<_> = remembered.records.iter().collect();
    files.sort_unstable_by_key(|(file, _)| **file);
    for (file, (generation, record)) in files {
        text.push_str(&line(*file, *generation, record, device));
    }
    let mut options = File::options();
    options.read(true).append(true).create_new(true).mode(0o644).custom_flags(nix::libc::O_NOFOLLOW);
    let written = options.open(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        std::fs::rename(&beside, path)?;
        Ok(file)
    });
    written.map_err(|source| {
        let _ = std::fs::remove_file(&beside);
        failed(source)
    })
}

/// The generation of `name` below `directory` (of `directory` itself if `name` is empty); a symbolic link is not
/// followed.
///
/// It comes from the file handle, which holds the generation that the file system gave the inode; where there are no
/// handles, from the time of birth, whose clock ticks some hundred times a second; where there is neither, all are 0.
pub fn generation_of(directory: BorrowedFd<'_>, name: &CStr) -> Generation {
    use nix::libc::{AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, STATX_BTIME};
    if let Ok(handle) = starter::sys::file_handle(directory, name) {
        return Generation(digest(&handle));
    }
    let flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW;
    match starter::sys::RawStatx::of(directory, name, flags, STATX_BTIME) {
        Ok(answer) if answer.fields().stx_mask & STATX_BTIME != 0 => {
            let birth = answer.fields().stx_btime;
            Generation(birth.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(birth.tv_nsec.into()))
        }
        _ => Generation(0),
    }
}

/// FNV-1a, 64 bits: the file system's own numbers need no stronger mixing, and the text keeps it, so it may not change.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where a sandbox keeps what is remembered of its files, below its top.
pub const IN_SANDBOX: &str = ".singularity.d/remembered";

/// The file that remembers for the sandbox at `root`.
pub fn of_sandbox(root: &Path) -> HostPath {
    HostPath::new(root.join(IN_SANDBOX))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sifu-remembered-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn path(&self) -> HostPath {
            HostPath::new(self.0.join("remembered"))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn owned(uid: u32) -> Record {
        Record { uid: Some(uid), ..Record::default() }
    }

    fn file(inode: u64) -> FileId {
        FileId { device: 1, inode }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let scratch = Scratch::new("again");
        let mut journal = Journal::open(&scratch.path()).unwrap();
        journal.set(file(1), Generation(1), owned(33)).unwrap();
        journal.set(file(2), Generation(1), owned(34)).unwrap();
        journal.set(file(2), Generation(1), Record::default()).unwrap();
        drop(journal);
        let again = Journal::open(&scratch.path()).unwrap();
        assert_eq!(again.remembered().get(file(1), Generation(1)), Some(&owned(33)));
        assert_eq!(again.remembered().len(), 1);
        assert_eq!(read(&scratch.path()).unwrap().len(), 1);
    }

    #[test]
    fn no_file_is_made_before_there_is_a_record() {
        let scratch = Scratch::new("late");
        let mut journal = Journal::open(&scratch.path()).unwrap();
        let mut other = Journal::open(&scratch.path()).unwrap();
        assert!(!scratch.path().as_path().exists());
        journal.set(file(1), Generation(1), owned(33)).unwrap();
        other.set(file(2), Generation(1), owned(33)).unwrap();
        assert_eq!(read(&scratch.path()).unwrap().len(), 2);
        let nowhere = HostPath::new(scratch.0.join("missing/remembered"));
        let error = Journal::open(&nowhere).unwrap_err().to_string();
        assert_eq!(error, format!("cannot make {nowhere}: no such file or directory"));
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_spoil_the_next() {
        let scratch = Scratch::new("cut");
        std::fs::write(scratch.path().as_path(), format!("{HEADER}file 1 1 1 uid=3\nfile 1 2 1 ui")).unwrap();
        let mut journal = Journal::open(&scratch.path()).unwrap();
        journal.set(file(3), Generation(1), owned(5)).unwrap();
        let again = read(&scratch.path()).unwrap();
        assert_eq!(again.len(), 2);
        assert_eq!(again.get(file(3), Generation(1)), Some(&owned(5)));
    }

    #[test]
    fn a_file_with_many_old_lines_is_written_anew() {
        let scratch = Scratch::new("anew");
        let mut text = HEADER.to_owned();
        for uid in 0..=2 * STALE_LINES {
            text.push_str(&format!("file 1 1 1 uid={uid}\n"));
        }
        std::fs::write(scratch.path().as_path(), text).unwrap();
        let mut journal = Journal::open(&scratch.path()).unwrap();
        journal.set(file(2), Generation(1), owned(5)).unwrap();
        let text = std::fs::read_to_string(scratch.path().as_path()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(read(&scratch.path()).unwrap().len(), 2);
    }

    #[test]
    fn no_file_remembers_nothing_and_another_file_is_an_error() {
        let scratch = Scratch::new("none");
        assert!(read(&scratch.path()).unwrap().is_empty());
        std::fs::write(scratch.path().as_path(), "root:x:0:0\n").unwrap();
        let error = Journal::open(&scratch.path()).unwrap_err().to_string();
        assert!(error.ends_with("line 1: the first line is not `sifu-remembered 1`"), "{error}");
    }

    #[test]
    fn files_made_at_once_under_one_number_differ_in_their_generation() {
        let scratch = Scratch::new("generation");
        let directory = File::open(&scratch.0).unwrap();
        let mut seen = std::collections::HashMap::new();
        for _ in 0..200 {
            let path = scratch.0.join("file");
            std::fs::write(&path, "").unwrap();
            let inode = std::fs::metadata(&path).unwrap().ino();
            let generation = generation_of(directory.as_fd(), c"file");
            assert_eq!(generation, generation_of(File::open(&path).unwrap().as_fd(), c""));
            let before = seen.insert(inode, generation);
            assert_ne!(before, Some(generation), "inode {inode}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
