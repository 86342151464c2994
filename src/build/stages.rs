//! Does what a [`BuildPlan`](super::plan::BuildPlan) says: stage after stage, action after action.

use super::builder::{Builder, remembers_owners};
use super::copy::{self, Origin};
use super::edit::Edit;
use super::plan::{Action, Seal, StagePlan};
use super::rootfs::{Rootfs, apply_to_tree};
use super::seal::{self, Circumstances};
use super::sections::{self, RunOptions};
use super::source::{Fetching, Files, Layered, Source};
use super::target::Work;
use super::{BuildError, Note, streamed, times, unpack};
use crate::cache::Cache;
use crate::def::Script;
use crate::remembered;
use crate::remote::access::Access;
use crate::sif::Arch;
use crate::tree::{self, Body, Lookup, Tree};
use nix::sys::statvfs::{FsFlags, statvfs};
use starter::paths::{ContainerPath, HostPath};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What all stages share.
pub(super) struct Stages<'a> {
    /// Where the file systems of stages are made, and other files of the build.
    pub work: &'a Work,
    /// Where that of the last stage is made, if not there.
    pub last: Option<PathBuf>,
    pub builder: Builder,
    /// `--force`: what the base image says of itself is replaced.
    pub replaces: bool,
    /// `--fix-perms`: the owner may read and write everything, and enter every directory.
    pub fixes_permissions: bool,
    pub architecture: Option<Arch>,
    pub access: &'a Access,
    pub cache: Option<&'a Cache>,
    pub run: &'a RunOptions,
    /// The time that the image will state, in seconds since 1970, where one was asked for.
    pub time: Option<i64>,
    /// That of the newest input so far.
    pub newest_input: i64,
    /// The time when no input has one.
    pub definition_time: i64,
    /// File systems of stages that are done, for `%files from`.
    pub done: Vec<Option<Rootfs>>,
    pub say: &'a mut dyn FnMut(Note),
}

/// A stage that is done.
pub(super) struct Built {
    pub contents: Contents,
    /// Objects for the SIF file, by name.
    pub objects: Vec<(String, Vec<u8>)>,
}

/// The file system of a stage.
pub(super) enum Contents {
    Tree(Tree),
    /// Layers that become the image while they are read.
    Layers {
        layered: Box<Layered>,
        labels: BTreeMap<String, String>,
    },
    Directory,
}

impl Stages<'_> {
    /// Builds one stage, the number `index`.
    pub fn build(&mut self, index: usize, plan: &StagePlan, source: Option<&Source>) -> Result<Built, BuildError> {
        let is_last = index + 1 == self.done.len();
        let path = match &self.last {
            Some(last) if is_last => last.clone(),
            _ => self.work.path().join(format!("rootfs-{index}")),
        };
        for script in &plan.pre {
            self.become_root(&path)?;
            self.doing("Running %pre...");
            sections::run_on_host("pre", script, &path, self.work.path())?;
        }
        let Some(source) = source else {
            // An update: what is there is built upon, by who remembers its owners.
            if remembers_owners(&HostPath::new(&*path)) {
                self.builder.stay();
            }
            self.become_root(&path)?;
            let rootfs = Rootfs::open(&HostPath::new(&*path))?;
            self.actions(plan, &rootfs, &BTreeMap::new())?;
            return Ok(Built { contents: Contents::Directory, objects: Vec::new() });
        };
        let mut root = {
            let work = self.work.path();
            // Of its own: another stage can have a source of the same kind.
            let source_files = work.join(format!("source-{index}"));
            let mut directory = |builder: &mut Builder| {
                builder.become_root(&places(work, &path))?;
                make_directory(&path).map(|()| HostPath::new(&*path))
            };
            make_directory(&source_files)?;
            source.fetch(&mut Fetching {
                builder: &mut self.builder,
                directory: &mut directory,
                access: self.access,
                cache: self.cache,
                architecture: self.architecture,
                work: &source_files,
                say: &mut *self.say,
            })?
        };
        let labels = std::mem::take(&mut root.labels);
        let mut objects = std::mem::take(&mut root.objects);
        match root.files {
            Files::Tree(mut tree) => {
                self.newest_input = self.newest_input.max(tree.newest_mtime());
                if self.fixes_permissions {
                    fix_permissions(&mut tree);
                }
                if !plan.needs_directory {
                    let circumstances = self.circumstances(labels);
                    edit(plan, &mut tree, &circumstances, self.say)?;
                    return Ok(Built { contents: Contents::Tree(tree), objects });
                }
                self.unpack(&tree, &path, plan)?;
            }
            Files::Layers(layered) => {
                let created = layered.config.created_seconds().unwrap_or(0);
                self.newest_input = self.newest_input.max(created);
                if !plan.needs_directory && !self.fixes_permissions {
                    return Ok(Built { contents: Contents::Layers { layered, labels }, objects });
                }
                let (mut tree, notices) = layered.spool(self.spool_file()?)?;
                for warning in streamed::warnings(&notices) {
                    (self.say)(Note::Warning(&warning));
                }
                apply_to_tree(&mut tree, &own_files(&layered), created)?;
                objects.push((crate::sif::CONFIG_OBJECT.to_owned(), layered.config_bytes.clone()));
                self.newest_input = self.newest_input.max(tree.newest_mtime());
                if self.fixes_permissions {
                    fix_permissions(&mut tree);
                }
                if !plan.needs_directory {
                    let circumstances = self.circumstances(labels);
                    edit(plan, &mut tree, &circumstances, self.say)?;
                    return Ok(Built { contents: Contents::Tree(tree), objects });
                }
                self.unpack(&tree, &path, plan)?;
            }
            Files::Directory { newest_mtime } => self.newest_input = self.newest_input.max(newest_mtime),
        }
        let rootfs = Rootfs::open(&HostPath::new(&*path))?;
        self.actions(plan, &rootfs, &labels)?;
        self.done[index] = Some(rootfs);
        Ok(Built { contents: Contents::Directory, objects })
    }

    /// The time that the image states.
    pub fn time(&self) -> i64 {
        self.time.unwrap_or(if self.newest_input > 0 { self.newest_input } else { self.definition_time })
    }

    /// The tree of the directory in which the last stage was built.
    pub fn tree_of_last(&mut self) -> Result<Tree, BuildError> {
        let path = self.done.last().and_then(Option::as_ref).map(|rootfs| rootfs.path().to_owned());
        let path = HostPath::new(path.unwrap_or_default());
        times::clamp(path.as_path(), self.time())?;
        let modes = unpack::make_readable(&path)?;
        let remembered = Arc::new(remembered::read(&remembered::of_sandbox(path.as_path()))?);
        let walked = tree::from_directory(&path, &tree::Options { owners: self.builder.owners(), remembered })?;
        for (name, _) in &walked.skipped_xattrs {
            (self.say)(Note::Warning(&format!("SquashFS has no extended attributes `{name}`: left out")));
        }
        let mut tree = walked.tree;
        unpack::restore_modes(&mut tree, &modes);
        Ok(tree)
    }

    /// Becomes root of the caller's range before something is made at `path`.
    fn become_root(&mut self, path: &Path) -> Result<(), BuildError> {
        self.builder.become_root(&places(self.work.path(), path))
    }

    fn unpack(&mut self, tree: &Tree, path: &Path, plan: &StagePlan) -> Result<(), BuildError> {
        // Files of subordinate ids are out of their owner's reach. Where no script of root's asks for them, a sandbox is the
        // caller's, and its owners are remembered.
        if self.last.as_deref() == Some(path) && !plan.runs_scripts() && !self.run.root.asked {
            self.builder.stay();
        }
        self.become_root(path)?;
        self.doing("Unpacking the file system...");
        make_directory(path)?;
        let left_out = unpack::unpack(tree, &HostPath::new(path))?.left_out;
        if left_out > 0 {
            (self.say)(Note::Warning(&format!("{left_out} sockets of the image are left out")));
        }
        Ok(())
    }

    /// A file that has no name, for contents that are unpacked in another order than they come.
    fn spool_file(&self) -> Result<File, BuildError> {
        let path = self.work.path().join("contents");
        let failed = |source| BuildError::Target { doing: "make", path: HostPath::new(&*path), source };
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        Ok(file)
    }

    /// What a seal depends on besides the definition.
    pub fn circumstances(&self, inherited_labels: BTreeMap<String, String>) -> Circumstances {
        Circumstances {
            replaces: self.replaces,
            architecture: self.architecture.unwrap_or(Arch::host()),
            time: self.time(),
            inherited_labels,
        }
    }

    fn actions(
        &mut self,
        plan: &StagePlan,
        rootfs: &Rootfs,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), BuildError> {
        if plan.runs_in_container() {
            may_execute(rootfs.path())?;
        }
        let top = ContainerPath::root();
        for action in &plan.actions {
            match action {
                Action::Base => rootfs.apply(&seal::base(rootfs.lookup())?)?,
                Action::Apps(apps) => rootfs.apply(&seal::apps(rootfs.lookup(), apps)?)?,
                Action::CopyFromStage { stage, transfers } => {
                    self.doing("Copying files of an earlier stage...");
                    let from = self.done.get(*stage).and_then(Option::as_ref);
                    let from = from.ok_or(BuildError::NotYet { what: "from a stage without a directory" })?;
                    copy::copy(&Origin::Stage(from), rootfs, &top, transfers)?;
                }
                Action::CopyFromHost { transfers } => self.copy_from_host(rootfs, &top, transfers)?,
                Action::CopyForApp { app, transfers } => {
                    self.copy_from_host(rootfs, &seal::app_directory(app), transfers)?;
                }
                Action::Setup(script) => {
                    self.doing("Running %setup...");
                    sections::run_on_host("setup", script, rootfs.path(), self.work.path())?;
                }
                Action::Post(script) => {
                    self.doing("Running %post...");
                    sections::run_post(script, rootfs, self.run)?;
                }
                Action::InstallApp { app, script } => {
                    self.doing(&format!("Running %appinstall {app}..."));
                    sections::run_app_install(app, script, rootfs, self.run)?;
                }
                Action::Seal(seal) => {
                    let circumstances = self.circumstances(labels.clone());
                    rootfs.apply(&sealed(rootfs.lookup(), seal, &circumstances, self.say)?)?;
                }
                Action::Test => {
                    self.doing("Running %test...");
                    let line = plan.actions.iter().find_map(|action| match action {
                        Action::Seal(seal) => seal.test.as_ref().map(|test| test.line),
                        _ => None,
                    });
                    let script = Script { line: line.unwrap_or_default(), ..Script::default() };
                    sections::run_test(&script, rootfs, self.run)?;
                }
            }
        }
        Ok(())
    }

    fn copy_from_host(
        &mut self,
        rootfs: &Rootfs,
        base: &ContainerPath,
        transfers: &[crate::def::Transfer],
    ) -> Result<(), BuildError> {
        self.doing("Copying files...");
        let variable = |name: &str| std::env::var_os(name);
        let copied = copy::copy(&Origin::Host(&variable), rootfs, base, transfers)?;
        self.newest_input = self.newest_input.max(copied.newest_mtime);
        if copied.left_out > 0 {
            let warning = format!("{} sockets and device nodes of %files are not copied", copied.left_out);
            (self.say)(Note::Warning(&warning));
        }
        Ok(())
    }

    fn doing(&mut self, text: &str) {
        (self.say)(Note::Doing(text));
    }
}

/// Does the actions that a tree in memory takes: no others were planned.
fn edit(
    plan: &StagePlan,
    tree: &mut Tree,
    circumstances: &Circumstances,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    for action in &plan.actions {
        let edits = match action {
            Action::Base => seal::base(tree)?,
            Action::Apps(apps) => seal::apps(tree, apps)?,
            Action::Seal(seal) => sealed(tree, seal, circumstances, say)?,
            _ => Vec::new(),
        };
        apply_to_tree(tree, &edits, circumstances.time)?;
    }
    Ok(())
}

/// The same for the tree of an image of layers, with what its configuration says.
pub(super) fn edit_layers(
    tree: &mut Tree,
    layered: &Layered,
    plan: &StagePlan,
    circumstances: &Circumstances,
    say: &mut dyn FnMut(Note),
) -> Result<(), BuildError> {
    apply_to_tree(tree, &own_files(layered), circumstances.time)?;
    edit(plan, tree, circumstances, say)
}

/// The scripts of an image's configuration.
fn own_files(layered: &Layered) -> Vec<Edit> {
    let files = layered.own_files().into_iter();
    files.map(|(path, mode, content)| Edit::File { path: ContainerPath::fixed(path), mode, content }).collect()
}

fn sealed(
    root: &dyn Lookup,
    seal: &Seal,
    circumstances: &Circumstances,
    say: &mut dyn FnMut(Note),
) -> Result<Vec<Edit>, BuildError> {
    let sealed = seal::seal(root, seal, circumstances)?;
    for warning in &sealed.warnings {
        say(Note::Warning(warning));
    }
    Ok(sealed.edits)
}

/// The directories in which a build makes files.
fn places<'a>(work: &'a Path, path: &'a Path) -> [&'a Path; 2] {
    // A sandbox that is updated holds what is made there.
    [work, if path.is_dir() { path } else { path.parent().unwrap_or(work) }]
}

fn make_directory(path: &Path) -> Result<(), BuildError> {
    let failed = |source| BuildError::Target { doing: "make", path: HostPath::new(path), source };
    DirBuilder::new().mode(0o755).create(path).map_err(failed)?;
    // Whatever the umask is: it becomes the root directory of the image.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(failed)
}

/// Scripts in the container are programs on this file system.
fn may_execute(path: &Path) -> Result<(), BuildError> {
    let is_noexec = statvfs(path).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_NOEXEC));
    if is_noexec { Err(BuildError::NoExec { path: HostPath::new(path) }) } else { Ok(()) }
}

fn fix_permissions(tree: &mut Tree) {
    let mut walk = tree.walk();
    let mut lacking = Vec::new();
    while let Some(id) = walk.next_entry() {
        let inode = tree.inode(id);
        let needed = match inode.body {
            Body::Directory => 0o700,
            Body::File(_) if inode.mode & 0o111 != 0 => 0o700,
            Body::File(_) => 0o600,
            _ => 0,
        };
        if inode.mode & needed != needed {
            lacking.push((id, inode.mode | needed));
        }
    }
    for (id, mode) in lacking {
        let inode = tree.inode(id);
        let (uid, gid, mtime, xattrs) = (inode.uid, inode.gid, inode.mtime, inode.xattrs.to_vec());
        tree.set_attributes(id, tree::Attributes { mode, uid, gid, mtime, xattrs });
    }
}
