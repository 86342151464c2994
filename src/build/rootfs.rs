//! Makes the changes that were decided: to a tree in memory, or to a root file system in a directory.
//!
//! Names are followed inside the file system, as a process in it would: a symbolic link to `/etc` is that of the image.

use super::BuildError;
use super::edit::Edit;
use crate::image::sandbox::Sandbox;
use crate::report::cause;
use crate::tree::lookup::{self, Kind, Lookup, LookupError};
use crate::tree::{Attributes, Body, Content, InodeId, Tree, TreeError};
use starter::paths::{ContainerPath, HostPath};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

/// Why a change was not made.
#[derive(Debug)]
pub enum EditError {
    Lookup(LookupError),
    Tree {
        path: ContainerPath,
        source: TreeError,
    },
    /// Something that is no directory stands on the way.
    NotADirectory {
        path: ContainerPath,
    },
    /// A directory stands where a file is to be.
    IsADirectory {
        path: ContainerPath,
    },
    System {
        path: ContainerPath,
        source: io::Error,
    },
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup(error) => error.fmt(f),
            Self::Tree { path, source } => write!(f, "cannot write {path} in the image: {source}"),
            Self::NotADirectory { path } => write!(f, "{path} in the image is no directory"),
            Self::IsADirectory { path } => write!(f, "{path} in the image is a directory"),
            Self::System { path, source } => write!(f, "cannot write {path} in the image: {}", cause(source)),
        }
    }
}

impl std::error::Error for EditError {}

impl From<LookupError> for EditError {
    fn from(error: LookupError) -> Self {
        Self::Lookup(error)
    }
}

/// Makes the changes to a tree; what is new gets this time, in seconds since 1970.
pub fn apply_to_tree(tree: &mut Tree, edits: &[Edit], time: i64) -> Result<(), BuildError> {
    for edit in edits {
        apply_one_to_tree(tree, edit, time)?;
    }
    Ok(())
}

fn apply_one_to_tree(tree: &mut Tree, edit: &Edit, time: i64) -> Result<(), EditError> {
    let path = edit.path();
    let attributes = |mode| Attributes { mode, uid: 0, gid: 0, mtime: time, xattrs: Vec::new() };
    let failed = |source| EditError::Tree { path: path.clone(), source };
    if let Edit::Directory { mode, .. } = edit {
        if lookup::resolve(tree, path)?.stat.is_none() {
            let (parent, name) = parent_in_tree(tree, path, time)?;
            // A symbolic link that leads nowhere stays one.
            if tree.child(parent, &name).is_none() {
                tree.insert(parent, &name, attributes(*mode), Body::Directory).map_err(failed)?;
            }
        }
        return Ok(());
    }
    let body = match edit {
        Edit::File { mode, content, .. } => Some((*mode, Body::File(Content::Bytes(content.as_slice().into())))),
        Edit::Symlink { target, .. } => Some((0o777, Body::Symlink(target.as_slice().into()))),
        Edit::Directory { .. } | Edit::Remove { .. } => None,
    };
    if body.is_none() && lookup::resolve(tree, &path.parent())?.stat.is_none() {
        return Ok(());
    }
    let (parent, name) = parent_in_tree(tree, path, time)?;
    if let Some(there) = tree.child(parent, &name) {
        if matches!(tree.inode(there).body, Body::Directory) {
            return Err(EditError::IsADirectory { path: path.clone() });
        }
        tree.remove(parent, &name);
    }
    if let Some((mode, body)) = body {
        tree.insert(parent, &name, attributes(mode), body).map_err(failed)?;
    }
    Ok(())
}

/// The directory that `path` is in, made where it is missing, and the last name.
fn parent_in_tree(tree: &mut Tree, path: &ContainerPath, time: i64) -> Result<(InodeId, Vec<u8>), EditError> {
    let resolved = lookup::resolve(tree, &path.parent())?;
    let mut at = tree.find(&resolved.existing).unwrap_or(tree.root());
    let missing = resolved.path.components().skip(resolved.existing.components().count());
    for name in missing {
        let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: time, xattrs: Vec::new() };
        at = tree
            .insert(at, name, attributes, Body::Directory)
            .map_err(|source| EditError::Tree { path: path.clone(), source })?;
    }
    if !matches!(tree.inode(at).body, Body::Directory) {
        return Err(EditError::NotADirectory { path: path.parent() });
    }
    Ok((at, path.name().to_vec()))
}

/// A root file system in a directory of the host. Nobody else changes it meanwhile.
pub struct Rootfs {
    path: PathBuf,
    sandbox: Sandbox,
}

impl Rootfs {
    /// Opens the directory at `path`.
    pub fn open(path: &HostPath) -> Result<Self, BuildError> {
        let failed = |source| BuildError::Target { doing: "open", path: path.clone(), source };
        let path_buf = std::path::absolute(path.as_path()).map_err(failed)?;
        let file = File::open(&path_buf).map_err(failed)?;
        Ok(Self { path: path_buf, sandbox: Sandbox::new(Arc::new(file)) })
    }

    /// Its absolute path on the host.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// To look things up.
    pub fn lookup(&self) -> &dyn Lookup {
        &self.sandbox
    }

    /// Where `path`, which holds no symbolic links, is on the host.
    pub fn host_path(&self, path: &ContainerPath) -> PathBuf {
        self.path.join(path.relative())
    }

    /// Makes the changes.
    pub fn apply(&self, edits: &[Edit]) -> Result<(), BuildError> {
        for edit in edits {
            self.apply_one(edit)?;
        }
        Ok(())
    }

    fn apply_one(&self, edit: &Edit) -> Result<(), EditError> {
        let path = edit.path();
        let failed = |source| EditError::System { path: path.clone(), source };
        if let Edit::Directory { mode, .. } = edit {
            return self.make_directory(path, *mode).map(drop);
        }
        if matches!(edit, Edit::Remove { .. }) && lookup::resolve(self.lookup(), &path.parent())?.stat.is_none() {
            return Ok(());
        }
        let parent = self.make_directory(&path.parent(), 0o755)?;
        let host = self.host_path(&parent).join(OsStr::from_bytes(path.name()));
        match std::fs::remove_file(&host) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) if host.is_dir() => return Err(EditError::IsADirectory { path: path.clone() }),
            Err(error) => return Err(failed(error)),
        }
        match edit {
            Edit::File { mode, content, .. } => {
                let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&host);
                let mut file = opened.map_err(failed)?;
                file.write_all(content).map_err(failed)?;
                file.set_permissions(Permissions::from_mode(u32::from(*mode))).map_err(failed)
            }
            Edit::Symlink { target, .. } => {
                std::os::unix::fs::symlink(OsStr::from_bytes(target), &host).map_err(failed)
            }
            Edit::Directory { .. } | Edit::Remove { .. } => Ok(()),
        }
    }

    /// Makes a directory, unless there is one, and those on the way to it; gives its path without symbolic links.
    pub fn make_directory(&self, path: &ContainerPath, mode: u16) -> Result<ContainerPath, EditError> {
        let resolved = lookup::resolve(self.lookup(), path)?;
        match &resolved.stat {
            Some(stat) if stat.kind == Kind::Directory => return Ok(resolved.path),
            Some(_) => return Err(EditError::NotADirectory { path: path.clone() }),
            None => {}
        }
        let failed = |source| EditError::System { path: path.clone(), source };
        let mut at = resolved.existing.clone();
        let missing: Vec<&[u8]> = resolved.path.components().skip(resolved.existing.components().count()).collect();
        for (index, name) in missing.iter().enumerate() {
            at = at.join(name).map_err(|error| failed(io::Error::other(error)))?;
            let mode = if index + 1 == missing.len() { u32::from(mode) } else { 0o755 };
            let host = self.host_path(&at);
            match DirBuilder::new().mode(0o755).create(&host) {
                Ok(()) => std::fs::set_permissions(&host, Permissions::from_mode(mode)).map_err(failed)?,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOTDIR) => {
                    return Err(EditError::NotADirectory { path: at.parent() });
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(at)
    }
}
