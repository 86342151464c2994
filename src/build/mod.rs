//! Makes images: what a user names becomes a tree, the tree becomes a SIF file or a sandbox directory.
//!
//! ```text
//! directory ──► tree::from_directory ──┐
//! SIF, SquashFS ──► Reader::into_tree ─┴─► Tree ──► squashfs::write ──► SIF: definition, metadata, partition
//!               └─► image::extract ──► sandbox directory
//! ```
//!
//! Everything is made in a directory beside the target (see [`target`]) and moved when it is whole. Nothing depends on a
//! clock, on the order in which a directory lists its entries, or on the number of threads: the same input gives the
//! same bytes.

mod architecture;
mod error;
pub mod mksquashfs_args;
pub mod processors;
pub mod source;
mod streamed;
mod target;

pub use error::BuildError;

use crate::image::{self, ImageError, extract, metadata};
use crate::oci::layers::{EntryFault, LayerError};
use crate::sif::{self, Creation, CreationOptions, DataType, ImageId, NewObject, Partition};
use crate::squashfs::write;
use crate::tree::{Attributes, Body, Content, Kind, Lookup, Owners, Tree};
use sha2::{Digest, Sha256};
use source::layered::LayeredError;
use source::{Fetching, Files, LocalImage, Source};
use starter::paths::{ContainerPath, HostPath};
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use target::Target;

/// What is to be built.
#[derive(Clone, Debug)]
pub struct Request {
    pub target: HostPath,
    /// A directory or an image, as the user named it.
    pub source: OsString,
    pub form: Form,
    /// Whether what is at `target` may be replaced.
    pub replace: bool,
    pub owners: Owners,
    pub pack: write::PackOptions,
    /// The time that the image states, in seconds since 1970, and that no file in it exceeds; without it, that of the
    /// newest file.
    pub time: Option<i64>,
}

/// What is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Sif,
    Sandbox,
}

/// What the user is told while an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    Doing(&'a str),
    Warning(&'a str),
    /// Comes often.
    Progress(write::Progress),
}

/// What stands at the target, if anything does.
pub fn existing(target: &HostPath) -> Result<Option<Kind>, BuildError> {
    target::existing(target.as_path())
}

/// Builds an image. `say` is told what is being done, and what the image will lack.
pub fn build(request: &Request, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
    // A source that can't be used is noticed before anything is written.
    let source = source_of(&request.source)?;
    let target = Target::begin(request.target.as_path(), request.replace)?;
    if request.form == Form::Sandbox
        && let Source::LocalImage(image) = &source
    {
        say(Note::Doing("Creating sandbox directory..."));
        unpack_image(image, &target, say)?;
        return target.finish();
    }
    let mut directory = || Err(BuildError::NotYet { what: "a directory by an agent" });
    let root = source.fetch(&mut Fetching { owners: request.owners, directory: &mut directory, say })?;
    if let Files::Layers(layered) = &root.files
        && request.form == Form::Sif
    {
        say(Note::Doing("Creating SIF file..."));
        streamed::write_sif(layered, request, &target, &mut |tree| own_files(tree, layered), say)?;
        return target.finish();
    }
    let Files::Tree(mut tree) = root.files else { return Err(BuildError::NotYet { what: "from a directory" }) };
    if request.form == Form::Sandbox {
        return Err(BuildError::NotYet { what: "a sandbox from this source" });
    }
    if let Some(time) = request.time {
        tree.clamp_mtimes(time);
    }
    if let Some(warning) = target.room_warning(&tree)? {
        say(Note::Warning(&warning));
    }
    say(Note::Doing("Creating SIF file..."));
    write_sif(&tree, request, &target, say)?;
    target.finish()
}

/// What the user named: a source by its agent, an image, or a directory.
fn source_of(name: &OsStr) -> Result<Source, BuildError> {
    let path = Path::new(name);
    if path.symlink_metadata().is_err()
        && let Some(header) = Source::header_of_uri(&name.to_string_lossy())
    {
        return Source::of(&header);
    }
    if !path.is_dir() {
        image::open(name).map_err(|error| match error {
            ImageError::NotAnImage { .. } => BuildError::DefinitionFile { path: HostPath::new(path) },
            error => error.into(),
        })?;
    }
    Ok(Source::LocalImage(LocalImage { path: name.to_owned() }))
}

fn unpack_image(image: &LocalImage, target: &Target, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
    if Path::new(&image.path).is_dir() {
        return Err(BuildError::NotYet { what: "a sandbox from a directory" });
    }
    let reader = image.open()?;
    let directory = target.make_directory()?;
    extract::check_space(&extract::survey(&reader)?, directory.as_fd())?;
    let left_out = extract::extract(&reader, directory)?.left_out;
    if left_out > 0 {
        let warning = format!("{left_out} device nodes and sockets of the image are not in the sandbox");
        say(Note::Warning(&warning));
    }
    Ok(())
}

/// Writes the objects in the order that Apptainer gives them: definition file, metadata, root file system.
fn write_sif(tree: &Tree, request: &Request, target: &Target, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
    let time = request.time.unwrap_or_else(|| tree.newest_mtime());
    let definition = definition(&request.source);
    let options = CreationOptions {
        launch_line: sif::LAUNCH_LINE.to_vec(),
        id: ImageId::NIL,
        time: sif::Time(time),
        capacity: sif::DEFAULT_CAPACITY,
    };
    let mut creation = Creation::begin(target.make_file()?, &options)?;
    let mut digest = Sha256::new();
    digest.update(time.to_le_bytes());
    digest.update(&definition);
    creation.add(&NewObject::new(DataType::DefinitionFile), definition.as_slice())?;
    if let Some(json) = metadata_json(tree, say)? {
        digest.update(&json);
        creation.add(&NewObject::new(DataType::GenericJson).named(metadata::OBJECT_NAME), json.as_bytes())?;
    }
    let partition = Partition {
        fs: sif::FileSystem::Squashfs,
        kind: sif::PartitionKind::PrimarySystem,
        arch: architecture::of(tree),
    };
    let mut sink = creation.sink(&NewObject::partition(partition))?;
    let pack = write::PackOptions { time, ..request.pack.clone() };
    let summary = write::write_watched(tree, &pack, &mut sink, &mut |progress| say(Note::Progress(progress)))?;
    digest.update(summary.digest);
    sink.finish()?;
    creation.set_id(image_id(digest));
    creation.finish()?;
    Ok(())
}

/// Equal images are one image, so its id follows from what it holds.
fn image_id(digest: Sha256) -> ImageId {
    let mut id = [0; 16];
    id.copy_from_slice(&digest.finalize()[..16]);
    ImageId::from_random(id)
}

/// The definition file that would build the same: what Apptainer writes for images that have none of their own.
fn definition(source: &OsStr) -> Vec<u8> {
    [b"bootstrap: localimage\nfrom: ".as_slice(), source.as_bytes(), b"\n\n"].concat()
}

/// Puts the scripts of an image's configuration into its tree.
fn own_files(tree: &mut Tree, layered: &source::Layered) -> Result<(), BuildError> {
    let attributes = |mode| Attributes { mode, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
    for (path, mode, content) in layered.own_files() {
        let mut components = path.split('/').skip(1).peekable();
        let mut directory = tree.root();
        while let Some(name) = components.next() {
            let name = name.as_bytes();
            let existing = tree.child(directory, name);
            let is_last = components.peek().is_none();
            if let Some(existing) = existing
                && !is_last
                && matches!(tree.inode(existing).body, Body::Directory)
            {
                directory = existing;
                continue;
            }
            tree.remove(directory, name);
            let (mode, body) = match is_last {
                true => (mode, Body::File(Content::Bytes(content.as_slice().into()))),
                false => (0o755, Body::Directory),
            };
            let made = tree.insert(directory, name, attributes(mode), body);
            directory = made.map_err(|source| {
                let why = EntryFault::Tree(source);
                LayeredError::Layer(LayerError::Entry { layer: 0, path: path.as_bytes().to_vec(), why })
            })?;
        }
    }
    Ok(())
}

/// What the files of `/.singularity.d` say of the image; `None` where there are none.
fn metadata_json(tree: &Tree, say: &mut dyn FnMut(Note)) -> Result<Option<String>, BuildError> {
    let own = ContainerPath::fixed("/.singularity.d");
    if tree.lstat(&own)?.is_none_or(|stat| stat.kind != Kind::Directory) {
        return Ok(None);
    }
    let collected = metadata::collect(tree)?;
    for skipped in &collected.skipped {
        say(Note::Warning(&skipped.to_string()));
    }
    Ok(Some(collected.metadata.to_json()))
}
