//! `Bootstrap: localimage`: a SIF file, a SquashFS file or a directory of this machine.

use super::{Fetching, Root};
use crate::build::{BuildError, Note};
use crate::def::Header;
use crate::image;
use crate::remembered;
use crate::squashfs::Reader;
use crate::tree;
use starter::paths::HostPath;
use std::ffi::OsString;
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
            let options = tree::Options { owners: fetching.owners, remembered: Arc::new(remembered) };
            let walked = tree::from_directory(&HostPath::new(path), &options)?;
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
