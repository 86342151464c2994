//! What `%files` does: copies from the host, or from the file system of an earlier stage, into that of a stage.
//!
//! From the host symbolic links are followed, as `cp -L` does; from a stage only the name that was given is followed, inside
//! that stage, and links in what it holds stay links. Targets are followed inside the image. Modes and times are kept;
//! everything belongs to who builds.

use super::BuildError;
use super::glob::{self, GlobError, Listing};
use super::rootfs::{EditError, Rootfs};
use crate::def::{Transfer, Word};
use crate::report::cause;
use crate::tree::lookup::{self, Kind};
use starter::paths::{ContainerPath, HostPath};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a line of `%files` was not done.
#[derive(Debug)]
pub struct CopyError {
    /// The line of the definition file, from 1.
    pub line: u32,
    pub problem: CopyProblem,
}

/// What is wrong with a line of `%files`.
#[derive(Debug)]
pub enum CopyProblem {
    /// The pattern, and why it stands for nothing.
    Pattern {
        pattern: String,
        source: GlobError,
    },
    NoMatch {
        pattern: String,
    },
    Missing {
        path: String,
    },
    /// A variable in the source that is not set.
    NoVariable {
        name: String,
    },
    /// A source that can't be a path in the image.
    NoTarget {
        path: String,
    },
    /// A directory that a symbolic link in it leads back to.
    Cycle {
        path: HostPath,
    },
    Read {
        path: HostPath,
        source: io::Error,
    },
    Write {
        path: HostPath,
        source: io::Error,
    },
    Edit(EditError),
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl fmt::Display for CopyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern { pattern, source } => write!(f, "cannot use the pattern `{pattern}`: {source}"),
            Self::NoMatch { pattern } => write!(f, "nothing is called like `{pattern}`"),
            Self::Missing { path } => write!(f, "there is no `{path}`"),
            Self::NoVariable { name } => write!(f, "the variable `{name}` is not set"),
            Self::NoTarget { path } => write!(f, "`{path}` cannot be a path in the image: give a target"),
            Self::Cycle { path } => write!(f, "a symbolic link in {path} leads back to it"),
            Self::Read { path, source } => write!(f, "cannot copy {path}: {}", cause(source)),
            Self::Write { path, source } => write!(f, "cannot write {path}: {}", cause(source)),
            Self::Edit(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CopyError {}

impl From<EditError> for CopyProblem {
    fn from(error: EditError) -> Self {
        Self::Edit(error)
    }
}

impl From<lookup::LookupError> for CopyProblem {
    fn from(error: lookup::LookupError) -> Self {
        Self::Edit(error.into())
    }
}

/// Where a transfer comes from.
pub enum Origin<'a> {
    /// The host; relative names are relative to the caller's directory. The function gives a variable's value.
    Host(&'a dyn Fn(&str) -> Option<OsString>),
    Stage(&'a Rootfs),
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// The newest time of a file that was copied, in seconds since 1970.
    pub newest_mtime: i64,
    /// Sockets and devices, which are not copied.
    pub left_out: u64,
}

/// Does the lines of a `%files` section. Targets, absolute ones too, and sources without a target are below `base`.
pub fn copy(from: &Origin, into: &Rootfs, base: &ContainerPath, transfers: &[Transfer]) -> Result<Copied, BuildError> {
    let mut copied = Copied::default();
    for transfer in transfers {
        let mut copier = Copier { from, into, base, copied: &mut copied };
        copier.transfer(transfer).map_err(|problem| CopyError { line: transfer.line, problem })?;
    }
    Ok(copied)
}

struct Copier<'a> {
    from: &'a Origin<'a>,
    into: &'a Rootfs,
    base: &'a ContainerPath,
    copied: &'a mut Copied,
}

impl Copier<'_> {
    fn transfer(&mut self, transfer: &Transfer) -> Result<(), CopyProblem> {
        let source = match self.from {
            Origin::Host(variable) => with_variables(&transfer.source, variable)?,
            Origin::Stage(_) => transfer.source.clone(),
        };
        let pattern = || String::from_utf8_lossy(&transfer.source.text).into_owned();
        let listing: &dyn Listing = match self.from {
            Origin::Host(_) => &HostListing,
            Origin::Stage(rootfs) => *rootfs,
        };
        let names =
            glob::expand(&source, listing).map_err(|source| CopyProblem::Pattern { pattern: pattern(), source })?;
        if names.is_empty() {
            return Err(CopyProblem::NoMatch { pattern: pattern() });
        }
        let is_single = names.len() == 1;
        for name in &names {
            let (host, own_name) = self.source(name)?;
            let target = self.target(transfer.target.as_ref(), name, &own_name, is_single)?;
            let mut above = Vec::new();
            self.entry(&host, &target, &mut above)?;
        }
        Ok(())
    }

    /// The file on the host that a source names, and the last name by which it was given.
    fn source(&self, name: &[u8]) -> Result<(PathBuf, Vec<u8>), CopyProblem> {
        let missing = || CopyProblem::Missing { path: String::from_utf8_lossy(name).into_owned() };
        let host = match self.from {
            Origin::Host(_) => {
                let path = PathBuf::from(OsStr::from_bytes(name));
                std::fs::metadata(&path).map_err(|_| missing())?;
                path
            }
            Origin::Stage(rootfs) => {
                let path = in_image(name).ok_or_else(missing)?;
                let resolved = lookup::resolve(rootfs.lookup(), &path)?;
                resolved.stat.as_ref().ok_or_else(missing)?;
                rootfs.host_path(&resolved.path)
            }
        };
        let own_name = name.split(|&b| b == b'/').rfind(|part| !part.is_empty()).unwrap_or_default().to_vec();
        Ok((host, own_name))
    }

    /// Where a source goes: what `cp` would make of the target, in the image.
    fn target(
        &self,
        target: Option<&Word>,
        source: &[u8],
        own_name: &[u8],
        is_single: bool,
    ) -> Result<ContainerPath, CopyProblem> {
        let no_target = || CopyProblem::NoTarget { path: String::from_utf8_lossy(source).into_owned() };
        let below = |path: &[u8]| in_image(&[self.base.as_bytes(), b"/", path].concat());
        let (path, ends_in_slash) = match target {
            Some(target) => (below(&target.text), target.text.ends_with(b"/")),
            // The same path; for an app, below its directory.
            None => (below(source), false),
        };
        let path = path.ok_or_else(no_target)?;
        let resolved = lookup::resolve(self.into.lookup(), &path)?;
        let is_directory = resolved.stat.as_ref().is_some_and(|stat| stat.kind == Kind::Directory);
        let named = target.is_some() && (ends_in_slash || is_directory || !is_single);
        if named && own_name != b"." && own_name != b".." {
            return path.join(own_name).map_err(|_| no_target());
        }
        Ok(path)
    }

    /// Copies a file or everything in a directory to `target`. `above` are the directories on the way, by device and inode.
    fn entry(&mut self, host: &Path, target: &ContainerPath, above: &mut Vec<(u64, u64)>) -> Result<(), CopyProblem> {
        let read = |source| CopyProblem::Read { path: HostPath::new(host), source };
        // The name that was given is followed in either case: a stage's was followed before, inside the stage.
        let follows = matches!(self.from, Origin::Host(_));
        let metadata = if follows { std::fs::metadata(host) } else { std::fs::symlink_metadata(host) }.map_err(read)?;
        self.copied.newest_mtime = self.copied.newest_mtime.max(metadata.mtime());
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.directory(host, &metadata, target, above);
        }
        let parent = self.into.make_directory(&target.parent(), 0o755)?;
        let mut place = parent.join(target.name()).map_err(|e| CopyProblem::Edit(system(target, e)))?;
        if !kind.is_symlink() {
            // A link in the image is written through, as cp does, but never out of the image.
            let resolved = lookup::resolve(self.into.lookup(), &place)?;
            if resolved.stat.as_ref().is_some_and(|stat| stat.kind == Kind::Directory) {
                return Err(CopyProblem::Edit(EditError::IsADirectory { path: place }));
            }
            place =
                self.into.make_directory(&resolved.path.parent(), 0o755)?.join(resolved.path.name()).unwrap_or(place);
        }
        let path = self.into.host_path(&place);
        let write = |source| CopyProblem::Write { path: HostPath::new(&*path), source };
        if kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            self.copied.left_out += 1;
            return Ok(());
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write(error)),
            _ => {}
        }
        if kind.is_symlink() {
            let link = std::fs::read_link(host).map_err(read)?;
            return std::os::unix::fs::symlink(link, &path).map_err(write);
        }
        if kind.is_fifo() {
            let mode = nix::sys::stat::Mode::from_bits_truncate(metadata.mode() & 0o7777);
            return nix::unistd::mkfifo(&path, mode).map_err(|errno| write(errno.into()));
        }
        let mut from = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(host).map_err(read)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(write)?;
        io::copy(&mut from, &mut file).map_err(write)?;
        finish(&file, &metadata).map_err(write)
    }

    fn directory(
        &mut self,
        host: &Path,
        metadata: &Metadata,
        target: &ContainerPath,
        above: &mut Vec<(u64, u64)>,
    ) -> Result<(), CopyProblem> {
        const MAX_DEPTH: usize = 2000;
        let own = (metadata.dev(), metadata.ino());
        if above.contains(&own) || above.len() > MAX_DEPTH {
            return Err(CopyProblem::Cycle { path: HostPath::new(host) });
        }
        let read = |source| CopyProblem::Read { path: HostPath::new(host), source };
        let was_there = lookup::resolve(self.into.lookup(), target)?.stat.is_some();
        let place = self.into.make_directory(target, 0o700)?;
        above.push(own);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(host).map_err(read)? {
            names.push(entry.map_err(read)?.file_name());
        }
        names.sort();
        for name in names {
            let below = place.join(name.as_bytes()).map_err(|e| CopyProblem::Edit(system(&place, e)))?;
            self.entry(&host.join(&name), &below, above)?;
        }
        above.pop();
        if !was_there {
            let path = self.into.host_path(&place);
            let finished = File::open(&path).and_then(|directory| finish(&directory, metadata));
            finished.map_err(|source| CopyProblem::Write { path: HostPath::new(path), source })?;
        }
        Ok(())
    }
}

/// Gives a copy the mode and time of what it is a copy of.
fn finish(file: &File, metadata: &Metadata) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
    file.set_modified(metadata.modified()?)
}

fn system(path: &ContainerPath, error: impl std::error::Error + Send + Sync + 'static) -> EditError {
    EditError::System { path: path.clone(), source: io::Error::other(error) }
}

/// The path in the image that a name means: absolute, `..` removed by name.
fn in_image(name: &[u8]) -> Option<ContainerPath> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    ContainerPath::parse(&[b"/", parts.join(&b'/').as_slice()].concat()).ok()
}

/// Puts in the values of `$NAME` and `${NAME}`, and the home directory for `~` at the beginning.
fn with_variables(word: &Word, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Word, CopyProblem> {
    let mut result = Word::default();
    let value = |name: &str| {
        let value = variable(name).ok_or_else(|| CopyProblem::NoVariable { name: name.to_owned() });
        value.map(OsString::into_vec)
    };
    let mut at = 0;
    if word.text.first() == Some(&b'~') && !word.is_literal[0] && matches!(word.text.get(1), None | Some(b'/')) {
        result.push(&value("HOME")?, true);
        at = 1;
    }
    while let Some(&byte) = word.text.get(at) {
        let rest = &word.text[at + 1..];
        let is_braced = rest.first() == Some(&b'{');
        let name_at = usize::from(is_braced);
        let length =
            rest[name_at.min(rest.len())..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        let is_closed = !is_braced || rest.get(name_at + length) == Some(&b'}');
        if byte == b'$' && !word.is_literal[at] && length > 0 && is_closed {
            let name = String::from_utf8_lossy(&rest[name_at..name_at + length]).into_owned();
            result.push(&value(&name)?, true);
            at += 1 + name_at * 2 + length;
        } else {
            result.push(&[byte], word.is_literal[at]);
            at += 1;
        }
    }
    Ok(result)
}

struct HostListing;

impl Listing for HostListing {
    fn entries(&self, directory: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let directory = if directory.is_empty() { b"." } else { directory };
        let Ok(entries) = std::fs::read_dir(OsStr::from_bytes(directory)) else { return Vec::new() };
        entries.flatten().map(|entry| (entry.file_name().into_vec(), entry.path().is_dir())).collect()
    }

    fn exists(&self, path: &[u8]) -> bool {
        Path::new(OsStr::from_bytes(path)).symlink_metadata().is_ok()
    }
}

impl Listing for Rootfs {
    fn entries(&self, directory: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let Some(path) = in_image(directory) else { return Vec::new() };
        let entries = lookup::list(self.lookup(), &path).ok().flatten().unwrap_or_default();
        let is_directory = |name: &[u8], kind| match kind {
            Kind::Symlink => path.join(name).ok().is_some_and(|below| {
                let resolved = lookup::resolve(self.lookup(), &below).ok().and_then(|resolved| resolved.stat);
                resolved.is_some_and(|stat| stat.kind == Kind::Directory)
            }),
            kind => kind == Kind::Directory,
        };
        entries.into_iter().map(|entry| (entry.name.clone(), is_directory(&entry.name, entry.kind))).collect()
    }

    fn exists(&self, path: &[u8]) -> bool {
        in_image(path).is_some_and(|path| lookup::resolve(self.lookup(), &path).is_ok_and(|at| at.stat.is_some()))
    }
}
