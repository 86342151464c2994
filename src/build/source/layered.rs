//! An image of layers: where its blobs are, and how they become a tree while each of them is read once.
//!
//! ```text
//! a thread:     blob ──► digest ──► inflate ──► digest ──► pieces of 256 KiB ──┐      the uppermost layer first
//! the caller:                                    tar ──► Merge ◄───────────────┘      ──► Keep, Tree
//! ```
//!
//! The thread works ahead by some pieces, into the next layer too, so that inflating and what is done with the contents
//! overlap, and memory stays bounded.

use crate::build::Transfer;
use crate::oci::digest::{Digest, Hasher};
use crate::oci::documents::{Descriptor, DocumentError, ImageConfig};
use crate::oci::inflate::inflate;
use crate::oci::layers::{Keep, LayerError, Merge, MergeError, Notices};
use crate::oci::runtime;
use crate::report::{Hint, cause};
use crate::tree::Tree;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait for whoever merges, at most.
const PIECES_AHEAD: usize = 16;

/// Where blobs can be read, any number of times.
pub trait Blobs: Send + Sync {
    /// Opens a blob from its beginning.
    fn open(&self, blob: &Blob) -> io::Result<Box<dyn Read + Send + '_>>;

    /// Those that are on their way here.
    fn transfers(&self) -> Vec<Transfer> {
        Vec::new()
    }
}

/// A layer's blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// What to call it, for those who hold it and for those who read of it.
    pub name: String,
    /// The digest of the blob as it is kept.
    pub digest: Option<Digest>,
    /// The digest of what is in it, checked where that of the blob is not known.
    pub diff_id: Option<Digest>,
    pub size_bytes: u64,
}

/// An image of layers.
pub struct Layered {
    blobs: Arc<dyn Blobs>,
    /// From the lowest.
    layers: Vec<Blob>,
    pub config: ImageConfig,
    /// The configuration as it was found.
    pub config_bytes: Vec<u8>,
    /// Bytes of the blobs that were read.
    read_bytes: AtomicU64,
}

/// Why an image of layers can't be had.
#[derive(Debug)]
pub enum LayeredError {
    /// A file or blob can't be read.
    Read {
        what: String,
        source: io::Error,
    },
    /// A file of an image that is not there.
    Missing {
        what: String,
        place: String,
    },
    /// A document that is too large to be one.
    TooLarge {
        what: String,
        limit: u64,
    },
    Document {
        what: String,
        source: DocumentError,
    },
    /// A blob that is not what it is called.
    Digest {
        what: String,
        expected: Digest,
        found: Digest,
    },
    /// Several images, and none was named.
    WhichImage {
        place: String,
        names: Vec<String>,
    },
    /// No image of that name.
    NoImage {
        place: String,
        wanted: String,
        names: Vec<String>,
    },
    /// A layer that may not be handed on by registries.
    Foreign {
        what: String,
        urls: Vec<String>,
    },
    Layer(LayerError),
}

impl fmt::Display for LayeredError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[String]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match self {
            Self::Read { what, source } => write!(f, "cannot read {what}: {}", cause(source)),
            Self::Missing { what, place } => write!(f, "{place} holds no {what}"),
            Self::TooLarge { what, limit } => {
                write!(f, "{what} is larger than {limit} bytes, too large for what it is")
            }
            Self::Document { what, source } => write!(f, "{what}: {source}"),
            Self::Digest { what, expected, found } => {
                write!(f, "{what} is damaged: its digest is {found}, and not {expected}")
            }
            Self::WhichImage { place, names } => write!(f, "{place} holds several images: {}", list(names)),
            Self::NoImage { place, wanted, names } if names.is_empty() => {
                write!(f, "{place} holds no image `{wanted}`, nor any other with a name")
            }
            Self::NoImage { place, wanted, names } => {
                write!(f, "{place} holds no image `{wanted}`, but {}", list(names))
            }
            Self::Foreign { what, urls } => write!(f, "{what} is kept elsewhere: {}", list(urls)),
            Self::Layer(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LayeredError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Document { source, .. } => Some(source),
            Self::Layer(source) => Some(source),
            _ => None,
        }
    }
}

impl Hint for LayeredError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Document { source, .. } => return source.hints(),
            Self::Layer(error) => return error.hints(),
            Self::WhichImage { .. } => "Name one of them behind the file, after a colon.",
            Self::Digest { .. } => "Have it copied or downloaded again.",
            Self::Missing { .. } => {
                "Look whether it is an archive of that kind: docker save writes docker-archive, skopeo and \
                                     others oci-archive."
            }
            Self::Foreign { .. } => "Layers that registries may not hand on are not fetched.",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

impl From<LayerError> for LayeredError {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// Why layers were not merged: their own fault, or that of who keeps the contents.
#[derive(Debug)]
pub enum MergeFailure<E> {
    Source(LayeredError),
    Keep(E),
}

impl Layered {
    /// Puts an image together; its layers from the lowest.
    pub fn new(blobs: Arc<dyn Blobs>, layers: Vec<Blob>, config: ImageConfig, config_bytes: Vec<u8>) -> Self {
        Self { blobs, layers, config, config_bytes, read_bytes: AtomicU64::new(0) }
    }

    /// The digests by which the layers are known, from the lowest.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().filter_map(|layer| layer.digest.as_ref().or(layer.diff_id.as_ref()))
    }

    /// How many bytes of the blobs were read, and how many there are.
    pub fn progress(&self) -> (u64, u64) {
        let total_bytes = self.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size_bytes));
        (self.read_bytes.load(Ordering::Relaxed).min(total_bytes), total_bytes)
    }

    /// The blobs that are on their way here.
    pub fn transfers(&self) -> Vec<Transfer> {
        self.blobs.transfers()
    }

    /// The files that say how the image is run: path, permissions, content.
    pub fn own_files(&self) -> Vec<(&'static str, u16, Vec<u8>)> {
        let process = self.config.process();
        let environment = runtime::environment_script(&process).into_bytes();
        let mut files = vec![(runtime::ENVIRONMENT_PATH, 0o755, environment)];
        if let Some(script) = runtime::runscript(&process) {
            files.push((runtime::RUNSCRIPT_PATH, 0o755, script.into_bytes()));
        }
        files
    }

    /// Reads all layers, and gives what survives to `keep`.
    pub fn merge<K: Keep>(&self, keep: &mut K) -> Result<(Tree, Notices), MergeFailure<K::Error>> {
        let mut merge = Merge::new(self.layers.len());
        let downwards: Vec<usize> = (0..self.layers.len()).rev().collect();
        self.stream(&downwards, |layer, stream| merge.read_layer(layer, stream, keep))?;
        let mut merged = merge.finish().map_err(|error| MergeFailure::Source(error.into()))?;
        let mut again: Vec<usize> = merged.missing.iter().map(|missing| missing.layer).collect();
        again.dedup();
        self.stream(&again, |layer, stream| merged.fill(layer, stream, keep))?;
        Ok((merged.tree, merged.notices))
    }

    /// Inflates layers in a thread of its own, and gives the streams to `take`, one after the other.
    fn stream<E>(
        &self,
        layers: &[usize],
        mut take: impl FnMut(usize, &mut Pieces<'_>) -> Result<(), MergeError<E>>,
    ) -> Result<(), MergeFailure<E>> {
        let (sender, receiver) = sync_channel(PIECES_AHEAD);
        // Memory goes round: fresh memory costs a page fault for every page.
        let (give_back, spare) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for &layer in layers {
                    let last = match self.inflate(&self.layers[layer], &sender, &spare) {
                        Ok(()) => Piece::End,
                        Err(error) => Piece::Failed(error),
                    };
                    if sender.send(last).is_err() {
                        return;
                    }
                }
            });
            // Owned here, so that the thread finds nobody who listens when this ends early.
            let (receiver, give_back) = (receiver, give_back);
            for &layer in layers {
                let mut pieces = Pieces {
                    receiver: &receiver,
                    give_back: &give_back,
                    bytes: Vec::new(),
                    used: 0,
                    ended: false,
                    failure: None,
                };
                let taken = take(layer, &mut pieces);
                match (taken, pieces.failure) {
                    (Ok(()), _) => {}
                    (Err(_), Some(error)) => return Err(MergeFailure::Source(error)),
                    (Err(MergeError::Layer(error)), None) => return Err(MergeFailure::Source(error.into())),
                    (Err(MergeError::Keep(error)), None) => return Err(MergeFailure::Keep(error)),
                }
            }
            Ok(())
        })
    }

    /// Sends what is in a blob, and checks its digest at the end.
    fn inflate(&self, blob: &Blob, sender: &SyncSender<Piece>, spare: &Receiver<Vec<u8>>) -> Result<(), LayeredError> {
        let failed = |source| LayeredError::Read { what: blob.name.clone(), source };
        let opened = self.blobs.open(blob).map_err(failed)?;
        let hasher = blob.digest.as_ref().map(|digest| Hasher::new(digest.algorithm()));
        let hashed = Arc::new(Mutex::new(hasher));
        let mut source = BufReader::with_capacity(
            PIECE_BYTES,
            Hashed { source: opened, hasher: hashed.clone(), read_bytes: &self.read_bytes },
        );
        // Docker's archives call layers by what is in them.
        let inner = blob.diff_id.as_ref().filter(|_| blob.digest.is_none());
        let mut inner_hasher = inner.map(|digest| Hasher::new(digest.algorithm()));
        {
            let mut stream = inflate(&mut source).map_err(failed)?;
            loop {
                let mut bytes = spare.try_recv().unwrap_or_default();
                bytes.resize(PIECE_BYTES, 0);
                let length = fill(&mut stream, &mut bytes).map_err(failed)?;
                bytes.truncate(length);
                if let Some(hasher) = &mut inner_hasher {
                    hasher.update(&bytes);
                }
                if length == 0 {
                    break;
                }
                if sender.send(Piece::Bytes(bytes)).is_err() {
                    return Ok(());
                }
            }
        }
        // What stands behind the compressed stream counts for the digest.
        loop {
            let length = source.fill_buf().map_err(failed)?.len();
            if length == 0 {
                break;
            }
            source.consume(length);
        }
        let hasher = hashed.lock().unwrap_or_else(PoisonError::into_inner).take();
        for (expected, hasher) in [(blob.digest.as_ref(), hasher), (inner, inner_hasher)] {
            if let (Some(expected), Some(hasher)) = (expected, hasher) {
                check_digest(&blob.name, expected, hasher.finish())?;
            }
        }
        Ok(())
    }
}

/// Compares the digest of what was read with that of what was wanted.
pub fn check_digest(what: &str, expected: &Digest, found: Digest) -> Result<(), LayeredError> {
    if *expected == found {
        return Ok(());
    }
    Err(LayeredError::Digest { what: what.to_owned(), expected: expected.clone(), found })
}

/// Reads until the buffer is full or the stream at its end.
fn fill(stream: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match stream.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// A blob whose digest is computed as it is read.
struct Hashed<'a, R> {
    source: R,
    hasher: Arc<Mutex<Option<Hasher>>>,
    read_bytes: &'a AtomicU64,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.read_bytes.fetch_add(count as u64, Ordering::Relaxed);
        if let Some(hasher) = self.hasher.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            hasher.update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// What the thread sends.
enum Piece {
    Bytes(Vec<u8>),
    /// The layer is at its end, and is what it is called.
    End,
    Failed(LayeredError),
}

/// A layer's stream as its reader sees it.
struct Pieces<'a> {
    receiver: &'a Receiver<Piece>,
    give_back: &'a Sender<Vec<u8>>,
    bytes: Vec<u8>,
    used: usize,
    ended: bool,
    failure: Option<LayeredError>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.bytes.len() && !self.ended {
            match self.receiver.recv() {
                Ok(Piece::Bytes(bytes)) => {
                    let read = std::mem::replace(&mut self.bytes, bytes);
                    self.used = 0;
                    // Nobody takes it once the last layer is read.
                    let _ = self.give_back.send(read);
                }
                Ok(Piece::End) => self.ended = true,
                Ok(Piece::Failed(error)) => {
                    self.failure = Some(error);
                    return Err(io::Error::other("the layer can't be read"));
                }
                Err(_) => return Err(io::Error::other("the thread that reads the layer ended")),
            }
        }
        let length = buffer.len().min(self.bytes.len() - self.used);
        buffer[..length].copy_from_slice(&self.bytes[self.used..self.used + length]);
        self.used += length;
        Ok(length)
    }
}

/// The layer of a manifest; layers are counted from the lowest, which is 0.
pub fn layer_blob(number: usize, descriptor: &Descriptor) -> Blob {
    let name = format!("layer {} ({})", number + 1, descriptor.digest);
    Blob { name, digest: Some(descriptor.digest.clone()), diff_id: None, size_bytes: descriptor.size_bytes }
}
