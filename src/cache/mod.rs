//! The cache of images that came from elsewhere, shared by any number of processes, on network file systems too.
//!
//! ```text
//! ROOT/oci-tmp/KEY            a SIF file made from layers          KEY: what it was made from, and how
//! ROOT/{oras,library,net}/KEY a SIF file as it came                KEY: its digest, or that of where it came from
//! ROOT/KIND/KEY.sha256        size, digest and time of the file, written before the file gets its name
//! ROOT/KIND/KEY.claim         who is making it
//! ROOT/KIND/.new-KEY-…        what is being made
//! ```
//!
//! A file whose size or time is another than was written down is read to the end, and removed if its digest is another too.
//!
//! A file gets its name by a rename when it is whole, so whoever sees the name sees a whole image, and nothing depends on
//! locks. A claim only keeps others from doing the same work at the same time: who holds it touches it every few
//! seconds, and when it is abandoned (its process is gone, or, on another machine, nobody touches it) another takes over.

mod claim;

use crate::oci::digest::{Algorithm, Digest, Hasher};
use crate::report::{Hint, cause};
use claim::{Claim, Claiming};
use std::fmt;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// What all images in the cache may take, unless something else is said.
pub const DEFAULT_CEILING_BYTES: u64 = 20 << 30;
/// The longest pause between two looks at whether another process is done.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// What is kept. Names are those of Apptainer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Made from the layers of an image.
    Oci,
    Oras,
    Library,
    Net,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Library, Self::Oci, Self::Oras, Self::Net];

    /// The name of its directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Oci => "oci-tmp",
            Self::Oras => "oras",
            Self::Library => "library",
            Self::Net => "net",
        }
    }
}

/// A cache, perhaps with another one below that is only read.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    site: Option<PathBuf>,
    ceiling_bytes: u64,
}

/// A file in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub name: String,
    pub size_bytes: u64,
    pub created: SystemTime,
    pub used: SystemTime,
}

/// Why the cache can't be used.
#[derive(Debug)]
pub struct CacheError {
    pub doing: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.doing, self.path.display(), cause(&self.source))
    }
}

impl std::error::Error for CacheError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Hint for CacheError {
    fn hints(&self) -> Vec<String> {
        vec!["The cache is where APPTAINER_CACHEDIR says; --disable-cache does without.".to_owned()]
    }
}

/// Why an image was not had.
#[derive(Debug)]
pub enum ObtainError<E> {
    Cache(CacheError),
    /// It could not be made.
    Make(E),
}

impl Cache {
    /// The cache in `root`; images are looked for in `site` too, and only there kept from going away.
    pub fn new(root: PathBuf, site: Option<PathBuf>, ceiling_bytes: u64) -> Self {
        Self { root, site, ceiling_bytes }
    }

    /// The image under a key, if it is there and as it was when it was made. A damaged one of the user's is removed.
    pub fn get(&self, kind: Kind, key: &str) -> Option<PathBuf> {
        let at = |root: &PathBuf| root.join(kind.name()).join(key);
        let own = at(&self.root);
        match soundness(&own) {
            Soundness::Sound => {
                touch(&own);
                return Some(own);
            }
            Soundness::Touched if self.is_unchanged(&own).unwrap_or(false) => {
                // So that it is not read again the next time. Where that can't be written, it is.
                let _ = write_record(&own, &own);
                touch(&own);
                return Some(own);
            }
            Soundness::Touched | Soundness::Damaged => self.remove(&own),
            Soundness::Missing => {}
        }
        // Who keeps the site's cache may have copied it there with other times.
        let site = self.site.as_ref().map(at);
        site.filter(|path| matches!(soundness(path), Soundness::Sound | Soundness::Touched))
    }

    /// Whether the image at `path` still has the digest that it had when it was made.
    pub fn is_unchanged(&self, path: &Path) -> Result<bool, CacheError> {
        let Some(Record { digest: expected, .. }) = record(path) else { return Ok(true) };
        let found = digest_of(path).map_err(|source| CacheError { doing: "read", path: path.to_owned(), source })?;
        Ok(expected == found)
    }

    /// Removes an image that turned out to be damaged.
    pub fn remove(&self, path: &Path) {
        for path in [path.to_owned(), record_path(path)] {
            // Another process may have been faster.
            let _ = fs::remove_file(path);
        }
    }

    /// The image under a key; where it is not there, one process makes it while the others wait. `make` writes it to the
    /// path that it is given.
    pub fn obtain<E>(
        &self,
        kind: Kind,
        key: &str,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, ObtainError<E>> {
        let directory = self.root.join(kind.name());
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| ObtainError::Cache(CacheError { doing, path, source })
        };
        let path = directory.join(key);
        if let Some(found) = self.get(kind, key) {
            return Ok(found);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed("make", &directory))?;
        let mut pause = Duration::from_millis(20);
        let _claim = loop {
            let claimed = Claim::take(&directory, key).map_err(failed("claim an image in", &directory))?;
            // Whoever held the claim may just have finished.
            if let Some(found) = self.get(kind, key) {
                return Ok(found);
            }
            match claimed {
                Claiming::Mine(claim) => break claim,
                Claiming::Held => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        };
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let new = directory.join(format!(".new-{key}-{}-{number}", std::process::id()));
        remove_abandoned(&directory, key);
        let made = make(&new).map_err(ObtainError::Make).and_then(|()| {
            write_record(&new, &path).map_err(failed("write the record of", &path))?;
            fs::rename(&new, &path).map_err(failed("rename an image to", &path))
        });
        if made.is_err() {
            let _ = fs::remove_file(&new);
        }
        made?;
        self.evict(&path);
        Ok(path)
    }

    /// All images, by kind and name.
    pub fn list(&self) -> Result<Vec<Entry>, CacheError> {
        let mut entries = Vec::new();
        for kind in Kind::ALL {
            let directory = self.root.join(kind.name());
            let listing = match fs::read_dir(&directory) {
                Ok(listing) => listing,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(CacheError { doing: "list", path: directory, source }),
            };
            for found in listing.flatten() {
                let name = found.file_name().to_string_lossy().into_owned();
                let Ok(metadata) = found.metadata() else { continue };
                if !metadata.is_file() || !is_image_name(&name) {
                    continue;
                }
                let created = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let used = metadata.accessed().unwrap_or(created);
                entries.push(Entry { kind, name, size_bytes: metadata.len(), created, used });
            }
        }
        entries.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        Ok(entries)
    }

    /// Removes one image. One that is in use stays with those who have it open.
    pub fn delete(&self, entry: &Entry) -> Result<(), CacheError> {
        let path = self.root.join(entry.kind.name()).join(&entry.name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CacheError { doing: "remove", path, source });
            }
            _ => {}
        }
        let _ = fs::remove_file(record_path(&path));
        Ok(())
    }

    /// Removes what was not used for longest until the rest fits below the ceiling; the image at `kept` stays.
    fn evict(&self, kept: &Path) {
        let Ok(mut entries) = self.list() else { return };
        let mut total = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size_bytes));
        entries.sort_by_key(|entry| entry.used);
        for entry in entries {
            if total <= self.ceiling_bytes {
                return;
            }
            if self.root.join(entry.kind.name()).join(&entry.name) != kept && self.delete(&entry).is_ok() {
                total -= entry.size_bytes;
            }
        }
    }
}

fn is_image_name(name: &str) -> bool {
    !name.starts_with('.') && !name.contains('.')
}

fn record_path(path: &Path) -> PathBuf {
    path.with_extension("sha256")
}

/// An image as it was when it was made.
struct Record {
    size_bytes: u64,
    digest: Digest,
    /// Time of change, in nanoseconds since 1970; older records lack it.
    changed_ns: Option<i128>,
}

fn record(path: &Path) -> Option<Record> {
    let text = fs::read_to_string(record_path(path)).ok()?;
    let mut words = text.split_whitespace();
    let (size_bytes, digest) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Record { size_bytes, digest, changed_ns: words.next().and_then(|word| word.parse().ok()) })
}

fn changed_ns(metadata: &fs::Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// What can be said of an image without reading it.
enum Soundness {
    Missing,
    Sound,
    /// Somebody wrote to it since it was made, or copied it.
    Touched,
    Damaged,
}

fn soundness(path: &Path) -> Soundness {
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        _ => return Soundness::Missing,
    };
    match record(path) {
        Some(record) if record.size_bytes != metadata.len() => Soundness::Damaged,
        Some(Record { changed_ns: Some(then), .. }) if then != changed_ns(&metadata) => Soundness::Touched,
        _ => Soundness::Sound,
    }
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes down what the image at `new`, which will be at `path`, is.
fn write_record(new: &Path, path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(new)?;
    let text = format!("{} {} {}\n", metadata.len(), digest_of(new)?, changed_ns(&metadata));
    let written = new.with_extension("record");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&written)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&written, record_path(path))
}

/// Notes that an image was used. Its time of change stays what it was.
fn touch(path: &Path) {
    if let Ok(file) = File::open(path) {
        // One of a site can't be touched, and need not be.
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
    }
}

/// Removes what killed processes left of one image. Who holds its claim may do that.
fn remove_abandoned(directory: &Path, key: &str) {
    let prefix = format!(".new-{key}-");
    for found in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = found.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            let _ = fs::remove_file(found.path());
        } else if name.starts_with(&format!(".{prefix}")) {
            // The directory in which the file was made.
            let _ = fs::remove_dir_all(found.path());
        }
    }
}

#[cfg(test)]
mod tests;
