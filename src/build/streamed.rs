//! A SIF file from an image of layers, in one stream: nothing is unpacked to disk.
//!
//! ```text
//! blobs ──► Layered::merge ──► squashfs::write_stream ──► partition of the SIF file
//!            (in memory)        (contents as they come)
//! ```
//!
//! What the files say of the image is known when the last layer was read: that object stands behind the partition here.

use super::source::layered::{Layered, MergeFailure};
use super::target::Target;
use super::{About, BuildError, Note, Request, image_id, metadata_json};
use crate::image::metadata;
use crate::oci::layers::{Keep, Notices};
use crate::sif::{self, Arch, CONFIG_OBJECT, Creation, CreationOptions, DataType, ImageId, NewObject, Partition};
use crate::squashfs::write::{self, Packer, Progress, Stage, WriteError};
use crate::tree::{Content, Tree};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Seek, Write};
use std::time::{Duration, Instant};

/// Files of an image's own metadata that are no larger stay in memory, so that they can be read again.
const MAX_METADATA_FILE_BYTES: u64 = 1 << 20;
/// How much all of them may be.
const MAX_METADATA_BYTES: u64 = 16 << 20;

/// What changes a tree before it is written, and who is told of it.
pub(super) type Edit<'a> = dyn FnMut(&mut Tree, &mut dyn FnMut(Note)) -> Result<(), BuildError> + 'a;

/// Writes the SIF file of `request`.
pub(super) fn write_sif(
    layered: &Layered,
    about: &About,
    request: &Request,
    target: &Target,
    edit: &mut Edit,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    // The newest file is known too late for a header.
    let time = request.time.or_else(|| layered.config.created_seconds()).unwrap_or(0);
    let options = CreationOptions {
        launch_line: sif::LAUNCH_LINE.to_vec(),
        id: ImageId::NIL,
        time: sif::Time(time),
        capacity: sif::DEFAULT_CAPACITY,
    };
    let mut creation = Creation::begin(target.make_file()?, &options)?;
    let mut digest = Sha256::new();
    digest.update(time.to_le_bytes());
    for (object, bytes) in [
        (NewObject::new(DataType::DefinitionFile), &about.definition),
        (NewObject::new(DataType::GenericJson).named(CONFIG_OBJECT), &layered.config_bytes),
    ] {
        digest.update(bytes);
        creation.add(&object, bytes.as_slice())?;
    }
    let partition = Partition {
        fs: sif::FileSystem::Squashfs,
        kind: sif::PartitionKind::PrimarySystem,
        arch: Arch::from_name(&layered.config.platform.architecture).unwrap_or_else(Arch::host),
    };
    let mut sink = creation.sink(&NewObject::partition(partition))?;
    let (tree, summary) = write::write_stream(&request.pack, &mut sink, |packer| {
        let mut contents =
            Contents { packer, telling: Telling { layered, say: &mut *say, told: None }, metadata_bytes: 0 };
        let (mut tree, notices) = layered.merge(&mut contents).map_err(|failure| match failure {
            MergeFailure::Source(error) => BuildError::Layered(Box::new(error)),
            MergeFailure::Keep(error) => error.into(),
        })?;
        for warning in warnings(&notices) {
            say(Note::Warning(&warning));
        }
        edit(&mut tree, say)?;
        if request.time.is_some() {
            tree.clamp_mtimes(time);
        }
        Ok::<_, BuildError>((tree, time))
    })?;
    sink.truncate(summary.size_bytes)?;
    sink.finish()?;
    digest.update(summary.digest);
    if let Some(json) = metadata_json(&tree, say)? {
        digest.update(&json);
        creation.add(&NewObject::new(DataType::GenericJson).named(metadata::OBJECT_NAME), json.as_bytes())?;
    }
    creation.set_id(image_id(digest));
    creation.finish()?;
    Ok(())
}

/// Hands contents to the image that is written.
struct Contents<'a, 'p, O> {
    packer: &'a mut Packer<'p, O>,
    telling: Telling<'a>,
    /// Kept in memory so far.
    metadata_bytes: u64,
}

impl<O: Write + Seek> Keep for Contents<'_, '_, O> {
    type Error = WriteError;

    fn keep(&mut self, path: &[u8], size_bytes: u64, content: &mut dyn Read) -> Result<Content, WriteError> {
        self.telling.tell();
        let name = || String::from_utf8_lossy(path).into_owned();
        let is_metadata = path.split(|&byte| byte == b'/').any(|component| component == b".singularity.d");
        if is_metadata
            && size_bytes <= MAX_METADATA_FILE_BYTES
            && self.metadata_bytes + size_bytes <= MAX_METADATA_BYTES
        {
            self.metadata_bytes += size_bytes;
            let mut bytes = Vec::new();
            let read = content.read_to_end(&mut bytes);
            read.map_err(|source| WriteError::Read { name: name(), source })?;
            return Ok(Content::Bytes(bytes.into()));
        }
        self.packer.add(&name(), size_bytes, &mut Told { content, telling: &mut self.telling })
    }
}

/// Tells how far the image is.
struct Telling<'a> {
    layered: &'a Layered,
    say: &'a mut dyn FnMut(Note),
    told: Option<Instant>,
}

/// How often it is told: there can be a hundred thousand files in a second.
const TELL_EVERY: Duration = Duration::from_millis(50);

impl Telling<'_> {
    fn tell(&mut self) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            return;
        }
        self.told = Some(now);
        let (done_bytes, total_bytes) = self.layered.progress();
        (self.say)(Note::Transfers(&self.layered.transfers()));
        (self.say)(Note::Progress(Progress { stage: Stage::Packing, done_bytes, total_bytes }));
    }
}

/// A content that tells how far the image is while it is read: one file can take long.
struct Told<'a, 'b> {
    content: &'a mut dyn Read,
    telling: &'a mut Telling<'b>,
}

impl Read for Told<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.telling.tell();
        self.content.read(buffer)
    }
}

/// What the user should know about what was not taken.
pub(super) fn warnings(notices: &Notices) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, count) in &notices.dropped_xattrs {
        let name = String::from_utf8_lossy(name);
        warnings.push(format!("extended attributes `{name}` of {count} files in the layers are left out"));
    }
    if notices.dropped_whiteout_devices > 0 {
        let count = notices.dropped_whiteout_devices;
        warnings
            .push(format!("{count} devices with the numbers 0 and 0, which overlay file systems use, are left out"));
    }
    if notices.names_with_dots > 0 {
        let count = notices.names_with_dots;
        warnings.push(format!("{count} names in the layers lead out of the image by `..`: they were taken within it"));
    }
    warnings
}
