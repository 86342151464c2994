//! Changes to a file system that are decided before they are made.

use starter::paths::ContainerPath;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Makes a directory, unless something is there. Those on the way to it are made too.
    Directory { path: ContainerPath, mode: u16 },
    /// Puts a file in the place of what is there.
    File { path: ContainerPath, mode: u16, content: Vec<u8> },
    /// Puts a symbolic link in the place of what is there.
    Symlink { path: ContainerPath, target: Vec<u8> },
    /// Removes a file; that there is none is fine.
    Remove { path: ContainerPath },
}

impl Edit {
    /// The name that is changed.
    pub fn path(&self) -> &ContainerPath {
        match self {
            Self::Directory { path, .. }
            | Self::File { path, .. }
            | Self::Symlink { path, .. }
            | Self::Remove { path } => path,
        }
    }
}
