//! What the user pointed at: a SIF file, a bare SquashFS, a sandbox directory.
//!
//! [`open`] opens the path once and looks at what it opened: everything later (the mount, the look-ups, the server)
//! goes through that descriptor, so an image that is exchanged meanwhile changes nothing. What kind it is follows from
//! its content; names mean nothing. Usually that takes one `open`, one `fstat`, one `pread` of 36 KiB, and the few
//! blocks of the root file system that the facts ask for.

mod binfmt;
pub mod detect;
mod error;
pub mod extract;
pub mod facts;
pub mod libraries;
pub mod metadata;
pub mod mpi;
pub mod sandbox;
mod source;

pub use error::ImageError;
pub use facts::{ImageFacts, ImageKind};
pub use source::Source;

use crate::sif;
use crate::squashfs;
use crate::tree::lookup::{self, Kind, Lookup, LookupError};
use detect::{Format, Transport};
use facts::{Extent, ExtraPartition, PartitionFileSystem};
use metadata::{Collected, Metadata, Skipped};
use sandbox::Sandbox;
use starter::paths::{ContainerPath, HostPath};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// An image whose root file system is open.
pub struct Image {
    pub facts: ImageFacts,
    source: Source,
    root: Root,
}

/// Where a root file system is looked at.
enum Root {
    Partition(squashfs::PathReader),
    Sandbox(Sandbox),
}

/// What was opened: an image that may be good for reading about it only, or for its data partitions.
pub struct Opened {
    pub facts: ImageFacts,
    source: Source,
    sif: Option<sif::Reader<Source>>,
    /// The root, or why it can't be used here.
    root: Result<Root, ImageError>,
}

/// Opens the image at `path` in order to run it: its root file system must be one that this program opens, and for an
/// architecture that this machine runs.
pub fn open(path: &OsStr) -> Result<Image, ImageError> {
    let Opened { facts, source, root, .. } = open_to_read(path)?;
    Ok(Image { facts, source, root: root? })
}

/// Opens the image at `path` in order to read about it, or to use its data: one that can't run here is opened too.
pub fn open_to_read(path: &OsStr) -> Result<Opened, ImageError> {
    let given = Path::new(path);
    refuse_uri(path)?;
    let (source, format) = Source::open(given)?;
    match format {
        None => Ok(from_directory(given, source)),
        Some(Format::Sif) => from_sif(given, source),
        Some(Format::Squashfs { offset_bytes }) => from_squashfs(given, source, offset_bytes),
        Some(Format::Ext) => Err(ImageError::Ext { path: given.into() }),
        Some(Format::Other(content)) => Err(ImageError::NotAnImage { path: given.into(), content }),
    }
}

fn refuse_uri(path: &OsStr) -> Result<(), ImageError> {
    let uri = path.to_string_lossy();
    match detect::transport(&uri) {
        None => Ok(()),
        Some(Transport::Elsewhere(scheme)) => {
            Err(ImageError::Elsewhere { scheme: scheme.to_owned(), uri: uri.to_string() })
        }
        Some(Transport::Instance) => Err(ImageError::Instance { uri: uri.into_owned() }),
        // A directory `a:` is unusual, but no error.
        Some(Transport::Unknown(_)) if Path::new(path).symlink_metadata().is_ok() => Ok(()),
        Some(Transport::Unknown(scheme)) => {
            Err(ImageError::UnknownScheme { scheme: scheme.to_owned(), uri: uri.to_string() })
        }
    }
}

fn from_directory(given: &Path, source: Source) -> Opened {
    let root = Root::Sandbox(Sandbox::new(Arc::clone(source.file())));
    let mut facts = facts(given, ImageKind::Sandbox);
    // What a directory does not show to the caller is not there for the container either.
    let _ = look_around(&mut facts, root.lookup());
    Opened { facts, source, sif: None, root: Ok(root) }
}

fn from_squashfs(given: &Path, source: Source, offset_bytes: u64) -> Result<Opened, ImageError> {
    let mut facts = ImageFacts { size_bytes: source.size_bytes(), ..facts(given, ImageKind::Squashfs) };
    // The magic was found there, so the offset lies in the file.
    let extent = Extent { offset_bytes, size_bytes: source.size_bytes() - offset_bytes };
    facts.root = Some(extent);
    let root = open_root(given, &source, extent, &mut facts)?;
    Ok(Opened { facts, source, sif: None, root: Ok(root) })
}

fn from_sif(given: &Path, source: Source) -> Result<Opened, ImageError> {
    let sif = sif::Reader::open(source.clone()).map_err(|source| ImageError::Sif { path: given.into(), source })?;
    let mut facts = ImageFacts { size_bytes: source.size_bytes(), ..facts(given, ImageKind::Sif) };
    facts.data = extra_partitions(sif.partitions(sif::PartitionKind::Data));
    facts.architecture = stated(sif.header().arch);
    let root = sif.root().map_err(|source| ImageError::Root { path: given.into(), source }).and_then(|partition| {
        facts.architecture = stated(partition.arch);
        facts.overlays = extra_partitions(sif.overlay_partitions(&partition));
        let extent = extent_of(partition.extent);
        facts.root = Some(extent);
        runs_here(partition).map_err(|source| ImageError::Root { path: given.into(), source })?;
        open_root(given, &source, extent, &mut facts)
    });
    Ok(Opened { facts, source, sif: Some(sif), root })
}

fn stated(arch: sif::Arch) -> Option<&'static str> {
    arch.is_known().then(|| arch.name())
}

fn extent_of(extent: sif::Extent) -> Extent {
    Extent { offset_bytes: extent.offset, size_bytes: extent.size }
}

/// The machine's own programs run, and those that the kernel has an emulator for.
fn runs_here(partition: sif::RootPartition) -> Result<(), sif::RootError> {
    match partition.for_host(sif::Arch::host()) {
        Err(_) if binfmt::runs(partition.arch) => Ok(()),
        checked => checked.map(drop),
    }
}

fn extra_partitions<'a>(objects: impl Iterator<Item = &'a sif::Object>) -> Vec<ExtraPartition> {
    objects
        .filter_map(|object| {
            let file_system = match object.descriptor.partition()?.fs {
                sif::FileSystem::Squashfs => PartitionFileSystem::Squashfs,
                sif::FileSystem::Ext3 => PartitionFileSystem::Ext3,
                _ => PartitionFileSystem::Other,
            };
            Some(ExtraPartition { id: object.id(), file_system, extent: extent_of(object.extent().ok()?) })
        })
        .collect()
}

fn open_root(given: &Path, source: &Source, extent: Extent, facts: &mut ImageFacts) -> Result<Root, ImageError> {
    let root = Root::Partition(squashfs::PathReader::new(open_squashfs(given, source, extent)?));
    look_around(facts, root.lookup()).map_err(|source| ImageError::Lookup { path: given.into(), source })?;
    Ok(root)
}

fn open_squashfs(given: &Path, source: &Source, extent: Extent) -> Result<squashfs::Reader, ImageError> {
    squashfs::Reader::open(source.clone(), extent.offset_bytes, extent.size_bytes)
        .map_err(|source| ImageError::Squashfs { path: given.into(), source })
}

/// The facts that follow from the path alone.
fn facts(given: &Path, kind: ImageKind) -> ImageFacts {
    let path = absolute(given);
    let name = path.file_name().map_or_else(|| b"/".to_vec(), |name| name.as_bytes().to_vec());
    ImageFacts {
        kind,
        path: HostPath::new(path),
        name,
        architecture: None,
        root: None,
        size_bytes: 0,
        overlays: Vec::new(),
        data: Vec::new(),
        has_shell: false,
        has_singularity_d: false,
    }
}

/// Makes `given` absolute by name only, as users of `APPTAINER_CONTAINER` know it.
fn absolute(given: &Path) -> PathBuf {
    let whole = std::path::absolute(given).unwrap_or_else(|_| given.to_owned());
    let mut clean = PathBuf::new();
    for component in whole.components() {
        match component {
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// Adds what the root file system shows.
fn look_around(facts: &mut ImageFacts, root: &dyn Lookup) -> Result<(), LookupError> {
    facts.has_singularity_d = kind_at(root, "/.singularity.d")? == Some(Kind::Directory);
    facts.has_shell = kind_at(root, "/bin/sh")? == Some(Kind::File);
    Ok(())
}

fn kind_at(root: &dyn Lookup, path: &'static str) -> Result<Option<Kind>, LookupError> {
    match lookup::resolve(root, &ContainerPath::fixed(path)) {
        Ok(resolved) => Ok(resolved.stat.map(|stat| stat.kind)),
        // A loop of links leads to nothing.
        Err(LookupError::TooManyLinks { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Root {
    fn lookup(&self) -> &dyn Lookup {
        match self {
            Self::Partition(reader) => reader,
            Self::Sandbox(sandbox) => sandbox,
        }
    }
}

impl Image {
    /// The descriptor of the file or directory, close-on-exec. That of a directory which the caller may not list has no
    /// access but to names below it (`O_PATH`).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// The root file system, to be looked at without mounting it.
    pub fn root(&self) -> &dyn Lookup {
        self.root.lookup()
    }

    /// The reader of the root partition; `None` for a directory.
    pub fn partition(&self) -> Option<&squashfs::Reader> {
        match &self.root {
            Root::Partition(reader) => Some(reader.reader()),
            Root::Sandbox(_) => None,
        }
    }
}

impl Opened {
    /// The descriptor of the file or directory, close-on-exec.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// Opens a SquashFS of the image for an image bind: of a SIF the partition with this id, or its first data partition;
    /// of a SquashFS file the file itself.
    pub fn data_partition(&self, id: Option<u32>) -> Result<(Extent, squashfs::Reader), ImageError> {
        let path = self.facts.path.as_path();
        let extent = match (&self.sif, id) {
            (Some(sif), Some(id)) => squashfs_object(path, sif, id)?,
            (Some(sif), None) => match sif.partitions(sif::PartitionKind::Data).next() {
                Some(first) => squashfs_object(path, sif, first.id())?,
                None => return Err(ImageError::NoDataPartition { path: path.into() }),
            },
            (None, Some(_)) => return Err(ImageError::NoObjects { path: path.into() }),
            (None, None) => match self.facts.root {
                Some(extent) => extent,
                None => return Err(ImageError::NotAFile { path: path.into(), what: "a directory" }),
            },
        };
        Ok((extent, open_squashfs(path, &self.source, extent)?))
    }

    /// Reads an object of the SIF file by its name, if there is one and it is no larger than metadata may be.
    pub fn object(&self, name: &str) -> Option<Vec<u8>> {
        let sif = self.sif.as_ref()?;
        sif.read(sif.by_name(name.as_bytes())?, metadata::MAX_BYTES).ok()
    }

    /// The reader of the root partition, whatever machine it is for; `None` for a directory.
    pub fn into_partition(self) -> Result<Option<squashfs::Reader>, ImageError> {
        match self.facts.root {
            Some(extent) => open_squashfs(self.facts.path.as_path(), &self.source, extent).map(Some),
            None => self.root.map(|_| None),
        }
    }

    /// Reads what the image says of itself: from its metadata object, or else from the files of its root.
    ///
    /// # Errors
    /// There is no metadata object, and the root can't be read.
    pub fn into_metadata(self) -> Result<Collected, ImageError> {
        let mut skipped = Vec::new();
        match self.metadata_object() {
            Some(Ok(metadata)) => return Ok(Collected { metadata, skipped }),
            Some(Err(reason)) => skipped.push(Skipped { what: format!("object `{}`", metadata::OBJECT_NAME), reason }),
            None => {}
        }
        let definition = self.definition_file();
        let path = self.facts.path;
        let mut collected = metadata::collect(self.root?.lookup())
            .map_err(|source| ImageError::Lookup { path: path.as_path().into(), source })?;
        if collected.metadata.deffile.is_empty() {
            collected.metadata.deffile = definition;
        }
        collected.skipped.splice(0..0, skipped);
        Ok(collected)
    }

    fn metadata_object(&self) -> Option<Result<Metadata, String>> {
        let sif = self.sif.as_ref()?;
        let object = sif.by_name(metadata::OBJECT_NAME.as_bytes())?;
        let json = match sif.read(object, metadata::MAX_BYTES) {
            Ok(json) => json,
            Err(error) => return Some(Err(error.to_string())),
        };
        Some(Metadata::parse(&json).map_err(|error| error.to_string()))
    }

    /// The definition file that old programs kept as an object only; empty when there is none to read.
    fn definition_file(&self) -> metadata::Text {
        let Some(sif) = &self.sif else { return Vec::new() };
        let object = sif.of_type(sif::DataType::DefinitionFile).next();
        let mut text = object.and_then(|object| sif.read(object, metadata::MAX_BYTES).ok()).unwrap_or_default();
        metadata::trim(&mut text);
        text
    }
}

fn squashfs_object(path: &Path, sif: &sif::Reader<Source>, id: u32) -> Result<Extent, ImageError> {
    let wrong = |source| ImageError::Object { path: path.into(), source };
    let object = sif.by_id(id).map_err(wrong)?;
    match object.descriptor.partition().map(|partition| partition.fs) {
        Some(sif::FileSystem::Squashfs) => Ok(extent_of(object.extent().map_err(wrong)?)),
        Some(other) => Err(ImageError::NotSquashfs { path: path.into(), id, what: other.name() }),
        None => Err(ImageError::NotSquashfs { path: path.into(), id, what: object.descriptor.data_type.name() }),
    }
}
