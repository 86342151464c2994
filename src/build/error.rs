//! Why nothing was built.

use super::source::layered::LayeredError;
use crate::image::ImageError;
use crate::image::extract::ExtractError;
use crate::remembered::JournalError;
use crate::report::{Hint, cause};
use crate::sif;
use crate::squashfs::{AsTreeError, write};
use crate::tree::{LookupError, WalkError};
use starter::paths::HostPath;
use std::fmt;
use std::io;

/// Why nothing was built. Whatever was begun is gone.
#[derive(Debug)]
pub enum BuildError {
    /// The source directory.
    Walk(WalkError),
    /// What the source directory remembers of its files.
    Remembered(JournalError),
    /// The source image.
    Image(Box<ImageError>),
    AsTree(AsTreeError),
    /// An image of layers.
    Layered(Box<LayeredError>),
    Lookup(LookupError),
    /// A file that is no image: in `build` that is a definition file.
    DefinitionFile {
        path: HostPath,
    },
    /// Something is at the target, and may not be replaced.
    Exists {
        path: HostPath,
    },
    /// A directory where a file is to be, or the other way round.
    OtherKind {
        path: HostPath,
    },
    /// The target has no file name: `/` or `..`.
    NoName {
        path: HostPath,
    },
    /// The file system of the target refused something.
    Target {
        doing: &'static str,
        path: HostPath,
        source: io::Error,
    },
    Pack(write::WriteError),
    Sif(sif::WriteError),
    Extract(ExtractError),
    /// A bootstrap agent that is none.
    UnknownAgent {
        agent: String,
    },
    /// A bootstrap agent of later versions.
    LaterAgent {
        agent: String,
    },
    /// A header without what its agent needs.
    HeaderLacks {
        agent: String,
        key: &'static str,
    },
    /// Later work.
    NotYet {
        what: &'static str,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Walk(error) => error.fmt(f),
            Self::Remembered(error) => error.fmt(f),
            Self::Image(error) => error.fmt(f),
            Self::AsTree(error) => error.fmt(f),
            Self::Layered(error) => error.fmt(f),
            Self::Lookup(error) => error.fmt(f),
            Self::DefinitionFile { path } => {
                write!(f, "{path} is no image, and building from a definition file is not there yet")
            }
            Self::Exists { path } => write!(f, "build target {path} already exists"),
            Self::OtherKind { path } => {
                write!(f, "build target {path} exists and is of another kind than what is built")
            }
            Self::NoName { path } => write!(f, "build target {path} names no file that can be made"),
            Self::Target { doing, path, source } => write!(f, "cannot {doing} {path}: {}", cause(source)),
            Self::Pack(error) => error.fmt(f),
            Self::Sif(error) => error.fmt(f),
            Self::Extract(error) => error.fmt(f),
            Self::UnknownAgent { agent } => write!(f, "no bootstrap agent is called `{agent}`"),
            Self::LaterAgent { agent } => write!(f, "the bootstrap agent `{agent}` is not there yet in this version"),
            Self::HeaderLacks { agent, key } => write!(f, "the bootstrap agent `{agent}` needs `{key}:` in the header"),
            Self::NotYet { what } => write!(f, "building {what} is not there yet"),
        }
    }
}

impl std::error::Error for BuildError {}

impl Hint for BuildError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Walk(error) => return error.hints(),
            Self::Remembered(error) => return error.hints(),
            Self::Image(error) => return error.hints(),
            Self::AsTree(error) => return error.hints(),
            Self::Layered(error) => return error.hints(),
            Self::Pack(error) => return error.hints(),
            Self::Sif(error) => return error.hints(),
            Self::Extract(ExtractError::NoSpace { .. } | ExtractError::NoInodes { .. }) => {
                "Free some space, or put the sandbox on another file system."
            }
            Self::Extract(error) => return error.hints(),
            Self::DefinitionFile { .. } | Self::NotYet { .. } => {
                "This version packs directories, and packs or unpacks SIF and SquashFS images."
            }
            Self::UnknownAgent { .. } | Self::LaterAgent { .. } => {
                "The agents of this version are `localimage` (a SIF file, a SquashFS file, a directory) and `scratch`."
            }
            Self::HeaderLacks { .. } => "Name the image or directory to begin with.",
            Self::Exists { .. } => "Use --force to replace it.",
            Self::OtherKind { .. } => "Remove it first, or choose another name.",
            Self::Target { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "Make the directory first.",
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "The image is made beside its name: choose a directory that you may write to."
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "Free some space, or write the image to another file system."
                }
                _ => return Vec::new(),
            },
            Self::Lookup(_) | Self::NoName { .. } => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

impl From<WalkError> for BuildError {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

impl From<JournalError> for BuildError {
    fn from(error: JournalError) -> Self {
        Self::Remembered(error)
    }
}

impl From<ImageError> for BuildError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

impl From<AsTreeError> for BuildError {
    fn from(error: AsTreeError) -> Self {
        Self::AsTree(error)
    }
}

impl From<LookupError> for BuildError {
    fn from(error: LookupError) -> Self {
        Self::Lookup(error)
    }
}

impl From<write::WriteError> for BuildError {
    fn from(error: write::WriteError) -> Self {
        Self::Pack(error)
    }
}

impl From<sif::WriteError> for BuildError {
    fn from(error: sif::WriteError) -> Self {
        Self::Sif(error)
    }
}

impl From<ExtractError> for BuildError {
    fn from(error: ExtractError) -> Self {
        Self::Extract(error)
    }
}

impl From<LayeredError> for BuildError {
    fn from(error: LayeredError) -> Self {
        Self::Layered(Box::new(error))
    }
}
