//! What is known of an image before it is mounted: plain values for the planner.

use std::collections::{BTreeMap, BTreeSet};

use starter::paths::{ContainerPath, HostPath};

use crate::elf::{GlibcVersion, Object};

/// What holds the root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// The primary partition of a SIF file; it holds SquashFS.
    Sif,
    /// A file that is a SquashFS, perhaps after a launch line.
    Squashfs,
    /// A directory.
    Sandbox,
}

/// A file system that other partitions of a SIF hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionFileSystem {
    Squashfs,
    Ext3,
    /// Encrypted, an archive, raw or unknown: nothing that is mounted.
    Other,
}

/// Where a file system stands in the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    pub offset_bytes: u64,
    pub size_bytes: u64,
}

/// A partition of a SIF beside its root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtraPartition {
    /// The id of the SIF object, as `sif list` shows it.
    pub id: u32,
    pub file_system: PartitionFileSystem,
    pub extent: Extent,
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    pub kind: ImageKind,
    /// The absolute path as the user gave it: `.` and `..` removed by name, symbolic links kept.
    /// It becomes `APPTAINER_CONTAINER`.
    pub path: HostPath,
    /// The last component of `path`, which becomes `APPTAINER_NAME`; not necessarily UTF-8.
    pub name: Vec<u8>,
    /// The architecture that the image states, by Go's name (`amd64`); `None` when it states none.
    pub architecture: Option<&'static str>,
    /// Where the root file system stands in the file; `None` for a directory.
    pub root: Option<Extent>,
    /// The size of the image file; 0 for a directory.
    pub size_bytes: u64,
    /// Overlay partitions of the SIF that belong to the root partition's group, in the order of the file.
    pub overlays: Vec<ExtraPartition>,
    /// Data partitions of the SIF, for image binds.
    pub data: Vec<ExtraPartition>,
    /// Whether `/bin/sh` leads to a file.
    pub has_shell: bool,
    /// Whether there is a `/.singularity.d`, which holds the scripts of images made by Apptainer.
    pub has_singularity_d: bool,
}

/// The C library of an image, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CLibrary {
    Glibc(GlibcVersion),
    Musl,
    /// None was found: a static image, or an unusual place.
    Unknown,
}

/// What an image's dynamic linker has to offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLibraries {
    pub c_library: CLibrary,
    /// The names of its libraries.
    pub names: BTreeSet<Vec<u8>>,
}

/// What an image has of MPI, as far as it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageMpiFacts {
    /// Its MPI libraries.
    pub libraries: Vec<ImageMpi>,
    /// Where each library is that its dynamic linker would find, and those beside its MPI.
    pub places: BTreeMap<Vec<u8>, ContainerPath>,
    /// Its programs that start ranks.
    pub launchers: Vec<ContainerPath>,
}

/// An MPI library of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMpi {
    /// The soname that programs ask for.
    pub name: Vec<u8>,
    /// The file, links followed.
    pub path: ContainerPath,
    /// The names in its directory and in the directories of its plugins.
    pub beside: BTreeSet<Vec<u8>>,
}

/// A program of an image, or of the host, as far as MPI goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageProgram {
    pub path: Vec<u8>,
    /// `None` where it is no ELF file: a script.
    pub object: Option<Object>,
    /// What it needs of MPI, by itself or through the image's libraries: sonames.
    pub mpi: Vec<Vec<u8>>,
}
