//! Paths of the host and paths of the container, kept apart by type.
//!
//! Both are bytes, as the kernel has them. A [`ContainerPath`] is absolute, normalized and free of `..`, so joining
//! one below the container's root can't leave it by name (symbolic links are the resolver's business).

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A path as the host names it; relative ones are relative to the caller's directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPath(PathBuf);

impl HostPath {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
    pub fn as_path(&self) -> &Path {
        &self.0
    }
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_os_str().as_bytes()
    }
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(PathBuf::from(OsString::from_vec(bytes.to_vec())))
    }
}

impl AsRef<Path> for HostPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Why bytes are no [`ContainerPath`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerPathError {
    /// Does not begin with `/`.
    Relative,
    /// Holds a `..` component.
    Parent,
    /// Holds a NUL byte.
    Nul,
}

impl fmt::Display for ContainerPathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relative => "path in the container is not absolute",
            Self::Parent => "path in the container holds `..`",
            Self::Nul => "path in the container holds a NUL byte",
        })
    }
}

impl std::error::Error for ContainerPathError {}

/// An absolute path inside the container: `/` or `/a/b`, no empty, `.` or `..` component, no trailing slash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerPath(Vec<u8>);

impl ContainerPath {
    /// Parses `bytes`, dropping empty and `.` components.
    pub fn parse(bytes: &[u8]) -> Result<Self, ContainerPathError> {
        if bytes.first() != Some(&b'/') {
            return Err(ContainerPathError::Relative);
        }
        if bytes.contains(&0) {
            return Err(ContainerPathError::Nul);
        }
        let mut clean = Vec::with_capacity(bytes.len());
        for component in bytes.split(|&b| b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(ContainerPathError::Parent),
                name => {
                    clean.push(b'/');
                    clean.extend_from_slice(name);
                }
            }
        }
        Ok(Self(if clean.is_empty() { b"/".to_vec() } else { clean }))
    }

    /// A path known at compile time.
    ///
    /// # Panics
    /// When `path` is no container path.
    pub fn fixed(path: &'static str) -> Self {
        Self::parse(path.as_bytes()).expect("a fixed container path is valid")
    }

    pub fn root() -> Self {
        Self(b"/".to_vec())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The path without its leading slash; `.` for the root. For calls that are relative to a root descriptor.
    pub fn relative(&self) -> &Path {
        if self.is_root() { Path::new(".") } else { Path::new(OsStr::from_bytes(&self.0[1..])) }
    }

    pub fn is_root(&self) -> bool {
        self.0 == b"/"
    }

    /// The components in order; none for the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// Joins one name (no `/`, not `.` or `..`).
    pub fn join(&self, name: &[u8]) -> Result<Self, ContainerPathError> {
        let mut bytes = self.0.clone();
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Self::parse(&bytes)
    }

    /// The directory that holds this path; the root holds itself.
    pub fn parent(&self) -> Self {
        match self.0.iter().rposition(|&b| b == b'/') {
            None | Some(0) => Self::root(),
            Some(at) => Self(self.0[..at].to_vec()),
        }
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        let at = self.0.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        &self.0[at..]
    }

    /// Whether `self` is `other` or lies below it, by whole components.
    pub fn starts_with(&self, other: &Self) -> bool {
        other.is_root()
            || self.0 == other.0
            || (self.0.starts_with(&other.0) && self.0.get(other.0.len()) == Some(&b'/'))
    }
}

impl fmt::Display for ContainerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_path().display().fmt(f)
    }
}

impl fmt::Debug for ContainerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContainerPath({})", self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_dot_components_vanish() {
        assert_eq!(ContainerPath::parse(b"//a/./b//").unwrap().as_bytes(), b"/a/b");
        assert_eq!(ContainerPath::parse(b"/./").unwrap(), ContainerPath::root());
    }

    #[test]
    fn parents_relative_paths_and_nul_are_refused() {
        assert_eq!(ContainerPath::parse(b"/a/../b"), Err(ContainerPathError::Parent));
        assert_eq!(ContainerPath::parse(b"a"), Err(ContainerPathError::Relative));
        assert_eq!(ContainerPath::parse(b"/a\0"), Err(ContainerPathError::Nul));
    }

    #[test]
    fn a_prefix_counts_by_components() {
        let at = |p: &'static str| ContainerPath::fixed(p);
        assert!(at("/scratch/a").starts_with(&at("/scratch")));
        assert!(!at("/scratch2").starts_with(&at("/scratch")));
        assert!(at("/x").starts_with(&at("/")));
    }

    #[test]
    fn parent_and_name() {
        assert_eq!(ContainerPath::fixed("/a/b").parent(), ContainerPath::fixed("/a"));
        assert_eq!(ContainerPath::fixed("/a").parent(), ContainerPath::root());
        assert_eq!(ContainerPath::fixed("/a/b").name(), b"b");
    }
}
