//! Makes images: what a user names becomes a tree, the tree becomes a SIF file or a sandbox directory.
//!
//! ```text
//! directory ──► tree::from_directory ──┐
//! SIF, SquashFS ──► Reader::into_tree ─┴─► Tree ──► squashfs::write ──► SIF: definition, metadata, partition
//!               └─► image::extract ──► sandbox directory
//!
//! definition file ──► def::parse ──► plan::plan ──► stages ─┬─► Tree            as above
//!                                                           └─► directory ──► Tree, or the sandbox itself
//! ```
//!
//! A stage is built in a directory only where something has to run in it or be copied to it; labels, scripts and variables
//! are put into the tree in memory.
//!
//! Everything is made in a directory beside the target (see [`target`]) and moved when it is whole. Nothing depends on a
//! clock, on the order in which a directory lists its entries, or on the number of threads: the same input gives the
//! same bytes.

mod architecture;
pub mod builder;
mod copy;
pub mod edit;
pub mod elsewhere;
mod error;
mod glob;
pub mod mksquashfs_args;
pub mod plan;
pub mod processors;
mod room;
mod rootfs;
pub mod seal;
pub mod sections;
pub mod source;
mod stages;
mod streamed;
mod target;
mod times;
pub mod unpack;

pub use error::BuildError;

use crate::cache::Cache;
use crate::def::{self, BuildArgs, Definition, Header};
use crate::image::facts::ImageFacts;
use crate::image::{self, ImageError, extract, metadata};
use crate::remote::access::Access;
use crate::sif::{self, Creation, CreationOptions, DataType, ImageId, NewObject, Partition};
use crate::squashfs::write;
use crate::tree::{Kind, Lookup, Tree};
use builder::Builder;
use room::Verdict;
use sections::RunOptions;
use sha2::{Digest, Sha256};
use source::{Fetching, Files, LocalImage, Source};
use stages::{Built, Contents, Stages};
use starter::paths::{ContainerPath, HostPath};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use target::{Target, Work};

/// What is to be built.
#[derive(Clone, Debug)]
pub struct Request {
    pub target: HostPath,
    /// A directory or an image, as the user named it.
    pub source: OsString,
    pub form: Form,
    /// Whether what is at `target` may be replaced.
    pub replace: bool,
    pub pack: write::PackOptions,
    /// The time that the image states, in seconds since 1970, and that no file in it exceeds; without it, that of the
    /// newest file.
    pub time: Option<i64>,
    pub definition: DefinitionOptions,
    /// The machine that the image is for, where it was said.
    pub architecture: Option<sif::Arch>,
    /// The SIF file holds data, which is no root file system.
    pub is_data: bool,
    /// How to get at what is elsewhere.
    pub access: Access,
    /// Where files of registries and libraries are kept, if they may be.
    pub cache: Option<Cache>,
}

/// How a definition file is built.
#[derive(Clone, Debug, Default)]
pub struct DefinitionOptions {
    pub arguments: BuildArgs,
    /// Build arguments that stand nowhere are worth a warning, and no error.
    pub allows_unused: bool,
    pub plan: plan::Options,
    /// `--force`: labels and help of a base image are replaced.
    pub replaces: bool,
    pub fixes_permissions: bool,
    pub run: RunOptions,
    /// Where stages are built; beside the target if it is not said.
    pub tmpdir: Option<HostPath>,
    /// `--json`: the source is a definition in JSON.
    pub is_json: bool,
    /// The files of a build that failed stay.
    pub keeps_files: bool,
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
    /// What is on its way, each by itself; the next progress is that of all together.
    Transfers(&'a [Transfer]),
}

/// A blob on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub name: String,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What stands at the target, if anything does.
pub fn existing(target: &HostPath) -> Result<Option<Kind>, BuildError> {
    target::existing(target.as_path())
}

/// Builds an image. `say` is told what is being done, and what the image will lack.
pub fn build(request: &Request, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
    // A source that can't be used is noticed before anything is written.
    match specification(request)? {
        Specification::Image(image) => repack(&image, request, say),
        Specification::Definition { definition, mtime } => build_definition(&definition, mtime, request, say),
    }
}

/// What the user named.
enum Specification {
    /// An image or a directory, which is packed as it is.
    Image(LocalImage),
    /// A definition file and its time, or a source that stands for one.
    Definition { definition: Definition, mtime: i64 },
}

fn specification(request: &Request) -> Result<Specification, BuildError> {
    let name = request.source.as_os_str();
    let path = Path::new(name);
    let place = |path: &Path| path.metadata().ok().filter(|m| m.is_dir()).map(|m| (m.dev(), m.ino()));
    if place(path).is_some_and(|source| place(request.target.as_path()) == Some(source)) {
        return Err(BuildError::IsSource { path: request.target.clone() });
    }
    let of_header = |header| Specification::Definition { definition: Definition::of_header(header), mtime: 0 };
    if path.symlink_metadata().is_err()
        && let Some(header) = Source::header_of_uri(&name.to_string_lossy())
    {
        return Ok(of_header(header));
    }
    match image::open(name) {
        // An image becomes the base of one that says where it comes from. So does a root file system that has a shell for
        // the scripts of images; any other tree is packed as it is.
        Ok(image) => match name.to_str().filter(|_| is_base(&image.facts) && !request.is_data) {
            Some(from) => Ok(of_header(Header::of_agent("localimage", from))),
            None => Ok(Specification::Image(LocalImage { path: name.to_owned() })),
        },
        Err(ImageError::NotAnImage { .. }) => {
            let failed = |source| BuildError::Target { doing: "read", path: HostPath::new(path), source };
            let mut file = File::open(path).map_err(failed)?;
            let mtime = file.metadata().map_err(failed)?.mtime();
            let mut text = Vec::new();
            // One byte more than a definition file has, so that the parser can say what is wrong.
            (&mut file).take(def::MAX_BYTES as u64 + 1).read_to_end(&mut text).map_err(failed)?;
            let parse = if request.definition.is_json { def::parse_json } else { def::parse };
            let definition = parse(&text, &request.definition.arguments)
                .map_err(|source| BuildError::Definition { path: HostPath::new(path), source: Box::new(source) })?;
            Ok(Specification::Definition { definition, mtime })
        }
        Err(error) => Err(error.into()),
    }
}

fn is_base(facts: &ImageFacts) -> bool {
    facts.has_singularity_d || facts.has_shell
}

/// Packs an image or a directory as it is, or unpacks an image.
fn repack(image: &LocalImage, request: &Request, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
    let target = Target::begin(request.target.as_path(), request.replace)?;
    if request.form == Form::Sandbox && !Path::new(&image.path).is_dir() {
        say(Note::Doing("Creating sandbox directory..."));
        unpack_image(image, &target, say)?;
        return target.finish();
    }
    let mut builder = Builder::new(request.definition.run.root);
    let mut no_directory = |_: &mut Builder| Err(BuildError::NotYet { what: "a directory by this agent" });
    let mut fetching = Fetching {
        builder: &mut builder,
        directory: &mut no_directory,
        access: &request.access,
        cache: request.cache.as_ref(),
        architecture: request.architecture,
        work: target.work().path(),
        say,
    };
    let Files::Tree(mut tree) = image.fetch(&mut fetching)?.files else {
        return Err(BuildError::NotYet { what: "from a directory" });
    };
    if request.form == Form::Sandbox {
        say(Note::Doing("Creating sandbox directory..."));
        drop(target.make_directory()?);
        let left_out = unpack::unpack(&tree, &HostPath::new(target.directory_path()))?.left_out;
        warn_of_left_out(left_out, say);
        return target.finish();
    }
    if let Some(time) = request.time {
        tree.clamp_mtimes(time);
    }
    let about = About { definition: definition(&image.path), objects: Vec::new() };
    finish_sif(&tree, &about, request, target, say)
}

/// Builds what a definition file says.
fn build_definition(
    definition: &Definition,
    definition_time: i64,
    request: &Request,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    let options = &request.definition;
    for (line, warning) in &definition.warnings {
        say(Note::Warning(&format!("line {line}: {warning}")));
    }
    if !definition.unused_arguments.is_empty() {
        let error = BuildError::UnusedArguments { names: definition.unused_arguments.clone() };
        if !options.allows_unused {
            return Err(error);
        }
        say(Note::Warning(&error.to_string()));
    }
    if let Some(secret) = options.run.secrets.iter().find(|secret| !secret.source.as_path().is_file()) {
        return Err(BuildError::NoSecret { id: secret.id.clone(), path: secret.source.clone() });
    }
    let makes_directory = request.form == Form::Sandbox;
    let plan = plan::plan(definition, &plan::Options { makes_directory, ..options.plan.clone() });
    let sources = plan.stages.iter().map(|stage| stage.header.as_ref().map(Source::of).transpose());
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let place = Place::of(request)?;
    let work = match &options.tmpdir {
        Some(directory) => {
            Some(Work::begin(directory.as_path(), request.target.as_path().file_name().unwrap_or_default())?)
        }
        None => None,
    };
    let work = work.as_ref().unwrap_or(place.work());
    let last = match &place {
        Place::Update { .. } => Some(request.target.as_path().to_owned()),
        Place::New(target) => makes_directory.then(|| target.directory_path()),
    };
    work.keep(options.keeps_files);
    let mut stages = Stages {
        work,
        last,
        builder: Builder::new(options.run.root),
        replaces: options.replaces,
        fixes_permissions: options.fixes_permissions,
        architecture: request.architecture,
        access: &request.access,
        cache: request.cache.as_ref(),
        run: &options.run,
        time: request.time,
        newest_input: 0,
        definition_time,
        done: plan.stages.iter().map(|_| None).collect(),
        say,
    };
    let mut built = None;
    for (index, (stage, source)) in plan.stages.iter().zip(&sources).enumerate() {
        if plan.stages.len() > 1 {
            (stages.say)(Note::Doing(&format!("Building stage {}...", stage.title)));
        }
        built = Some(stages.build(index, stage, source.as_ref())?);
    }
    // A definition has at least one stage.
    let Some(Built { contents, objects }) = built else { return Ok(()) };
    let time = stages.time();
    let target = match place {
        Place::Update { work: ref own } => {
            work.keep(false);
            own.keep(false);
            return times::clamp(request.target.as_path(), time);
        }
        Place::New(ref target) => target,
    };
    if makes_directory {
        times::clamp(&target.directory_path(), time)?;
    } else {
        let about = About { definition: definition.text.clone(), objects };
        let request_in_time = Request { time: Some(time), ..request.clone() };
        match contents {
            Contents::Tree(mut tree) => {
                tree.clamp_mtimes(time);
                make_sif(&tree, &about, &request_in_time, target, stages.say)?;
            }
            Contents::Directory => {
                let mut tree = stages.tree_of_last()?;
                tree.clamp_mtimes(time);
                make_sif(&tree, &about, &request_in_time, target, stages.say)?;
            }
            Contents::Layers { layered, labels } => {
                (stages.say)(Note::Doing("Creating SIF file..."));
                let circumstances = stages.circumstances(labels);
                let last = plan.stages.last();
                let mut edit = |tree: &mut Tree, say: &mut dyn FnMut(Note)| match last {
                    Some(last) => stages::edit_layers(tree, &layered, last, &circumstances, say),
                    None => Ok(()),
                };
                streamed::write_sif(&layered, &about, request, target, &mut edit, stages.say)?;
            }
        }
    }
    work.keep(false);
    match place {
        Place::New(target) => target.finish(),
        Place::Update { .. } => Ok(()),
    }
}

/// Where the image of a definition is made.
enum Place {
    New(Target),
    /// In the directory that is there.
    Update {
        work: Work,
    },
}

impl Place {
    fn of(request: &Request) -> Result<Self, BuildError> {
        let path = request.target.as_path();
        if !request.definition.plan.updates {
            return Ok(Self::New(Target::begin(path, request.replace)?));
        }
        if request.form != Form::Sandbox || !path.is_dir() {
            return Err(BuildError::NothingToUpdate { path: request.target.clone() });
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok(Self::Update { work: Work::begin(parent, path.file_name().unwrap_or_default())? })
    }

    fn work(&self) -> &Work {
        match self {
            Self::New(target) => target.work(),
            Self::Update { work } => work,
        }
    }
}

fn unpack_image(image: &LocalImage, target: &Target, say: &mut dyn FnMut(Note)) -> Result<(), BuildError> {
    let reader = image.open()?;
    let directory = target.make_directory()?;
    extract::check_space(&extract::survey(&reader)?, directory.as_fd())?;
    warn_of_left_out(extract::extract(&reader, directory)?.left_out, say);
    Ok(())
}

fn warn_of_left_out(left_out: u64, say: &mut dyn FnMut(Note)) {
    if left_out > 0 {
        let warning = format!("{left_out} device nodes and sockets of the image are not in the sandbox");
        say(Note::Warning(&warning));
    }
}

/// What a SIF file says beside its root file system.
struct About {
    definition: Vec<u8>,
    /// Objects by name.
    objects: Vec<(String, Vec<u8>)>,
}

fn finish_sif(
    tree: &Tree,
    about: &About,
    request: &Request,
    target: Target,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    make_sif(tree, about, request, &target, say)?;
    target.finish()
}

fn make_sif(
    tree: &Tree,
    about: &About,
    request: &Request,
    target: &Target,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    match room::check(tree, &request.pack, target.room()?)? {
        Verdict::Fits => {}
        Verdict::MayNotFit { needed_bytes, left_bytes } => {
            let (needed, left) = (room::size(needed_bytes), room::size(left_bytes));
            let path = target.path().display();
            say(Note::Warning(&format!(
                "the image may not fit: about {needed} are needed beside {path}, {left} are left"
            )));
        }
        Verdict::WillNotFit { needed_bytes, left_bytes } => {
            return Err(BuildError::NoRoom { path: HostPath::new(target.path()), needed_bytes, left_bytes });
        }
    }
    say(Note::Doing("Creating SIF file..."));
    write_sif(tree, about, request, target, say)
}

/// Writes the objects in the order that Apptainer gives them: definition file, metadata, root file system.
fn write_sif(
    tree: &Tree,
    about: &About,
    request: &Request,
    target: &Target,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    let time = request.time.unwrap_or_else(|| tree.newest_mtime());
    let options = CreationOptions {
        launch_line: sif::LAUNCH_LINE.to_vec(),
        id: ImageId::NIL,
        time: sif::Time(time),
        capacity: sif::DEFAULT_CAPACITY,
    };
    let mut creation = Creation::begin(target.make_file()?, &options)?;
    let mut digest = Sha256::new();
    digest.update(time.to_le_bytes());
    if !request.is_data {
        digest.update(&about.definition);
        creation.add(&NewObject::new(DataType::DefinitionFile), about.definition.as_slice())?;
        let mut objects = about.objects.clone();
        objects.extend(metadata_json(tree, say)?.map(|json| (metadata::OBJECT_NAME.to_owned(), json.into_bytes())));
        objects.sort();
        for (name, json) in &objects {
            digest.update(json);
            creation.add(&NewObject::new(DataType::GenericJson).named(name.as_str()), json.as_slice())?;
        }
    }
    let partition = Partition {
        fs: sif::FileSystem::Squashfs,
        kind: if request.is_data { sif::PartitionKind::Data } else { sif::PartitionKind::PrimarySystem },
        arch: request.architecture.unwrap_or_else(|| architecture::of(tree)),
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
