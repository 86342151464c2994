//! `Bootstrap: localimage`: a SIF file, a SquashFS file or a directory of this machine.

use super::{Fetching, Root};
use crate::build::builder::{Builder, Who};
use crate::build::{BuildError, Note};
use crate::def::Header;
use crate::image;
use crate::remembered::{self, Remembered};
use crate::squashfs::Reader;
use crate::tree::{self, Owners, WalkError, Walked};
use starter::paths::HostPath;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// An image or directory, as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    pub path: OsString,
}

impl LocalImage {
    pub(super) fn of(header: &Header) -> Result<Self, BuildError> {
        match header.get("from") {
            Some(from) => Ok(Self { path: from.into() }),
            None => Err(BuildError::HeaderLacks { agent: header.agent(), key: "From" }),
        }
    }

    pub(in crate::build) fn fetch(&self, fetching: &mut Fetching) -> Result<Root, BuildError> {
        let path = Path::new(&self.path);
        if path.is_dir() {
            let remembered = remembered::read(&remembered::of_sandbox(path))?;
            let walked = walk(path, fetching.builder, Arc::new(remembered))?;
            for (name, path) in &walked.skipped_xattrs {
                let warning = format!("SquashFS has no extended attributes `{name}`: left out ({path} has one)");
                (fetching.say)(Note::Warning(&warning));
            }
            return Ok(Root::of_tree(walked.tree));
        }
        Ok(Root::of_tree(self.open()?.into_tree(&path.display().to_string())?))
    }

    /// The root file system of an image file.
    pub(in crate::build) fn open(&self) -> Result<Reader, BuildError> {
        let image = image::open(&self.path)?;
        // `None`: it became a directory since it was looked at.
        image.partition().cloned().ok_or(BuildError::NotYet { what: "an image from what changes meanwhile" })
    }
}

/// Walks a directory, as root of the caller's range where files in it belong to that.
fn walk(path: &Path, builder: &mut Builder, remembered: Arc<Remembered>) -> Result<Walked, BuildError> {
    let host = HostPath::new(path);
    let options = |owners| tree::Options { owners, remembered: remembered.clone() };
    // What another user made, and this one's range does not hold, has owners that nobody inside knows.
    let is_strange =
        |owners: &[u32]| Who::this_process() == Who::RootOfNamespace && owners.first() == Some(&OVERFLOW_ID);
    match tree::from_directory(&host, &options(builder.owners())) {
        Ok(walked) if is_strange(&walked.owners) => Ok(tree::from_directory(&host, &options(Owners::AllRoot))?),
        Ok(walked) => match builder.become_owner_of(&walked.owners)? {
            true => Ok(tree::from_directory(&host, &options(builder.owners()))?),
            false => Ok(walked),
        },
        // A directory that only its owner may read.
        Err(WalkError::File { path, doing, source }) if source.kind() == ErrorKind::PermissionDenied => {
            let owner = path.as_path().symlink_metadata().ok().map(|metadata| metadata.uid());
            match builder.become_owner_of(owner.as_slice())? {
                true => Ok(tree::from_directory(&host, &options(builder.owners()))?),
                false => Err(WalkError::File { path, doing, source }.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Whom the kernel shows for an owner that is not mapped (`/proc/sys/kernel/overflowuid`, which nobody changes).
const OVERFLOW_ID: u32 = 65_534;
