//! Blobs of a registry, several at a time, each in a file without a name until it was read.
//!
//! ```text
//! threads:  registry ──► file ······· breaks off? again from where it stands
//! readers:               file ──► as far as it is there, then waiting for more
//! ```
//!
//! Nothing is checked here: whoever reads computes the digest. Files have no name, so nothing is left behind whatever
//! happens, and their room is free as soon as they were read.

use super::RemoteError;
use super::http::jittered;
use super::registry::Registry;
use crate::oci::digest::Digest;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Transfers at the same time.
const PARALLEL: usize = 4;
/// How often a transfer may break off without a byte in between.
const MAX_IDLE_BREAKS: u32 = 5;
const BUFFER_BYTES: usize = 256 << 10;
/// The first pause before a broken transfer is taken up again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Fetches something to a file, from where it broke off when it does; `open` gives it from some offset. `watch` sees all
/// bytes in their order, and how many there are by then.
pub fn to_file(
    open: &mut dyn FnMut(u64) -> Result<Box<dyn Read + Send>, RemoteError>,
    file: &File,
    size_bytes: Option<u64>,
    watch: &mut dyn FnMut(&[u8], u64),
) -> Result<u64, RemoteError> {
    let host = String::new;
    let mut position = 0;
    let mut idle_breaks = 0;
    let mut pause = FIRST_PAUSE;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let before = position;
        let broken = match open(position) {
            Err(error @ RemoteError::Read { .. }) => error,
            Err(error) => return Err(error),
            Ok(mut body) => loop {
                match body.read(&mut buffer) {
                    Ok(0) if size_bytes.is_none_or(|size_bytes| position >= size_bytes) => return Ok(position),
                    Ok(0) => break RemoteError::Read { host: host(), source: io::ErrorKind::UnexpectedEof.into() },
                    Ok(count) => {
                        let written = file.write_all_at(&buffer[..count], position);
                        let failed =
                            |source| RemoteError::Local { doing: "write", path: "the image".to_owned(), source };
                        written.map_err(failed)?;
                        position += count as u64;
                        if let Some(expected) = size_bytes.filter(|&size_bytes| position > size_bytes) {
                            let what = "the image".to_owned();
                            return Err(RemoteError::Size { what, expected, found: position });
                        }
                        watch(&buffer[..count], position);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(source) => break RemoteError::Read { host: host(), source },
                }
            },
        };
        if position > before {
            (idle_breaks, pause) = (0, FIRST_PAUSE);
            continue;
        }
        idle_breaks += 1;
        if idle_breaks == MAX_IDLE_BREAKS {
            return Err(broken);
        }
        std::thread::sleep(jittered(pause));
        pause *= 2;
    }
}

/// A blob to fetch.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: Digest,
    pub size_bytes: u64,
    /// Where it is, if the registry doesn't have it.
    pub urls: Vec<String>,
}

/// Blobs on their way.
pub struct Downloads(Arc<Shared>);

struct Shared {
    registry: Registry,
    directory: PathBuf,
    /// In the order in which they are wanted.
    blobs: Vec<Wanted>,
    next: AtomicUsize,
    /// Nobody wants the rest.
    stopped: AtomicBool,
}

struct Wanted {
    blob: Blob,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    file: Option<Arc<File>>,
    written_bytes: u64,
    /// Why no more will come.
    failed: Option<String>,
}

impl Wanted {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Downloads {
    /// Begins to fetch blobs, in the order in which they will be read, by files in `directory`.
    pub fn begin(registry: Registry, directory: &Path, blobs: Vec<Blob>) -> Self {
        let wanted = |blob| Wanted { blob, state: Mutex::default(), changed: Condvar::new() };
        let mut seen = HashSet::new();
        // Of layers that are the same, one is fetched ahead.
        let blobs = blobs.into_iter().filter(|blob| seen.insert(blob.digest.clone()));
        let blobs: Vec<Wanted> = blobs.map(wanted).collect();
        let shared = Arc::new(Shared {
            registry,
            directory: directory.to_owned(),
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            blobs,
        });
        for _ in 0..PARALLEL.min(shared.blobs.len()) {
            let shared = shared.clone();
            // They end by themselves; what they hold has no name.
            std::thread::spawn(move || shared.work());
        }
        Self(shared)
    }

    /// The blobs that were begun and are not all there: digest, bytes there, bytes in all.
    pub fn under_way(&self) -> Vec<(&Digest, u64, u64)> {
        let each = self.0.blobs.iter().filter_map(|wanted| {
            let state = wanted.lock();
            let is_under_way = state.file.is_some() && state.written_bytes < wanted.blob.size_bytes;
            is_under_way.then_some((&wanted.blob.digest, state.written_bytes, wanted.blob.size_bytes))
        });
        each.collect()
    }

    /// Opens a blob; its reader waits for what has not come yet.
    pub fn open(&self, digest: &Digest) -> io::Result<impl Read + Send + use<>> {
        let at = self.0.blobs.iter().position(|wanted| wanted.blob.digest == *digest).ok_or(io::ErrorKind::NotFound)?;
        {
            // Read before, and gone: it comes once more.
            let wanted = &self.0.blobs[at];
            let size_bytes = wanted.blob.size_bytes;
            let mut state = wanted.lock();
            if state.file.is_none() && state.written_bytes == size_bytes && size_bytes > 0 {
                *state = State::default();
                let shared = self.0.clone();
                std::thread::spawn(move || shared.fetch(&shared.blobs[at]));
            }
        }
        Ok(Following { shared: self.0.clone(), at, position: 0 })
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(wanted) = self.blobs.get(at) else { return };
            self.fetch(wanted);
        }
    }

    fn fetch(&self, wanted: &Wanted) {
        if let Err(why) = self.try_fetch(wanted) {
            wanted.lock().failed = Some(why);
            wanted.changed.notify_all();
        }
    }

    fn try_fetch(&self, wanted: &Wanted) -> Result<(), String> {
        let size_bytes = wanted.blob.size_bytes;
        let file = unnamed_file(&self.directory).map_err(|error| {
            format!("cannot write to {}: {}", self.directory.display(), crate::report::cause(&error))
        })?;
        let file = Arc::new(file);
        wanted.lock().file = Some(file.clone());
        let mut position = 0;
        let mut idle_breaks = 0;
        let mut pause = FIRST_PAUSE;
        while position < size_bytes {
            let before = position;
            match self.transfer(wanted, &file, &mut position) {
                Ok(()) if position == size_bytes => break,
                Err(Break::Ended(why)) => return Err(why),
                // A connection that closes early is one that broke.
                Ok(()) | Err(Break::Passing(_)) if position > before => {
                    idle_breaks = 0;
                    pause = FIRST_PAUSE;
                }
                answer => {
                    idle_breaks += 1;
                    if idle_breaks == MAX_IDLE_BREAKS {
                        return Err(match answer {
                            Err(Break::Passing(why)) => why,
                            _ => format!("it ends after {position} of {size_bytes} bytes"),
                        });
                    }
                    std::thread::sleep(jittered(pause));
                    pause *= 2;
                }
            }
            if self.stopped.load(Ordering::Relaxed) {
                return Err("nobody wants it any more".to_owned());
            }
        }
        wanted.changed.notify_all();
        Ok(())
    }

    /// Moves what comes to the file, until the connection ends.
    fn transfer(&self, wanted: &Wanted, file: &File, position: &mut u64) -> Result<(), Break> {
        let size_bytes = wanted.blob.size_bytes;
        let mut body = self.open(&wanted.blob, *position).map_err(|error| match error {
            RemoteError::Read { .. } => Break::Passing(error.to_string()),
            error => Break::Ended(error.to_string()),
        })?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(Break::Ended("nobody wants it any more".to_owned()));
            }
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Break::Passing(crate::report::cause(&error))),
            };
            if *position + count as u64 > size_bytes {
                return Err(Break::Ended(format!("it is longer than the {size_bytes} bytes it should have")));
            }
            let written = file.write_all_at(&buffer[..count], *position);
            written.map_err(|error| {
                Break::Ended(format!("cannot write to {}: {}", self.directory.display(), crate::report::cause(&error)))
            })?;
            *position += count as u64;
            wanted.lock().written_bytes = *position;
            wanted.changed.notify_all();
        }
    }

    /// Opens a blob at the registry; what that doesn't have, where its manifest says that it is.
    fn open(&self, blob: &Blob, offset_bytes: u64) -> Result<Box<dyn Read + Send>, RemoteError> {
        let mut opened = self.registry.blob(&blob.digest, offset_bytes);
        for url in &blob.urls {
            if !matches!(opened, Err(RemoteError::NotFound { .. })) {
                break;
            }
            opened = self.registry.foreign_blob(url, offset_bytes);
        }
        opened
    }
}

enum Break {
    /// Worth another try.
    Passing(String),
    Ended(String),
}

/// Reads a blob while it comes.
struct Following {
    shared: Arc<Shared>,
    at: usize,
    position: u64,
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = &self.shared.blobs[self.at];
        if self.position == wanted.blob.size_bytes || buffer.is_empty() {
            // Read to its end: its room is free when the last reader goes.
            wanted.lock().file = None;
            return Ok(0);
        }
        let (file, there_bytes) = {
            let mut state = wanted.lock();
            loop {
                if let Some(why) = &state.failed {
                    return Err(io::Error::other(why.clone()));
                }
                match &state.file {
                    Some(file) if state.written_bytes > self.position => break (file.clone(), state.written_bytes),
                    _ => state = wanted.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            }
        };
        let length = (there_bytes - self.position).min(buffer.len() as u64) as usize;
        let count = file.read_at(&mut buffer[..length], self.position)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

/// A file that only who holds it can reach.
pub fn unnamed_file(directory: &Path) -> io::Result<File> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!(".blob-{}-{number}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}
