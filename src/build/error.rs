//! Why nothing was built.

use super::copy::{CopyError, CopyProblem};
use super::room;
use super::rootfs::EditError;
use super::source::layered::LayeredError;
use super::source::{DebootstrapError, ToolError};
use super::unpack::UnpackError;
use crate::cache::{CacheError, ObtainError};
use crate::def::DefError;
use crate::image::ImageError;
use crate::image::extract::ExtractError;
use crate::oci::reference::NoReference;
use crate::remembered::JournalError;
use crate::remote::RemoteError;
use crate::report::{Hint, cause};
use crate::sif;
use crate::squashfs::{AsTreeError, write};
use crate::tree::{LookupError, WalkError};
use starter::paths::HostPath;
use starter::perform::PerformError;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

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
    /// What is elsewhere.
    Remote(Box<RemoteError>),
    Reference(Box<NoReference>),
    Cache(CacheError),
    /// What was fetched is another thing than a SIF file.
    NoSif {
        path: String,
    },
    /// An address of a service that is gone, or of one that is not known.
    Elsewhere {
        what: String,
        why: &'static str,
    },
    /// An image of layers.
    Layered(Box<LayeredError>),
    /// A system of Debian's packages.
    Debootstrap(Box<DebootstrapError>),
    /// A root that a program of this machine makes.
    Tool(Box<ToolError>),
    /// Ids could not be mapped.
    Namespace(Box<PerformError>),
    Lookup(LookupError),
    Edit(EditError),
    Unpack(UnpackError),
    Copy(Box<CopyError>),
    /// What is wrong with the definition file.
    Definition {
        path: HostPath,
        source: Box<DefError>,
    },
    /// Build arguments that stand nowhere in the definition file.
    UnusedArguments {
        names: Vec<String>,
    },
    /// The file of a secret.
    NoSecret {
        id: String,
        path: HostPath,
    },
    /// `--update` of something that is no sandbox.
    NothingToUpdate {
        path: HostPath,
    },
    /// A script of a section could not be started.
    Start {
        section: &'static str,
        source: io::Error,
    },
    /// A script of a section failed; the line is where it begins in the definition file.
    Section {
        section: &'static str,
        line: u32,
        status: ExitStatus,
        /// Nothing more can be written where the image is built.
        is_full: bool,
    },
    /// A file system whose programs the kernel does not start.
    NoExec {
        path: HostPath,
    },
    /// Something is at the target, and may not be replaced.
    Exists {
        path: HostPath,
    },
    /// The directory that is packed is the target.
    IsSource {
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
    /// The image is certain not to fit.
    NoRoom {
        path: HostPath,
        needed_bytes: u64,
        left_bytes: u64,
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
            Self::Remote(error) => error.fmt(f),
            Self::Reference(error) => error.fmt(f),
            Self::Cache(error) => error.fmt(f),
            Self::NoSif { path } => write!(f, "what was fetched to {path} is no SIF file"),
            Self::Elsewhere { what, why } => write!(f, "cannot fetch {what}: {why}"),
            Self::Debootstrap(error) => error.fmt(f),
            Self::Tool(error) => error.fmt(f),
            Self::Namespace(error) => write!(f, "cannot map the range of subordinate ids: {error}"),
            Self::Lookup(error) => error.fmt(f),
            Self::Edit(error) => error.fmt(f),
            Self::Unpack(error) => error.fmt(f),
            Self::Copy(error) => write!(f, "%files, {error}"),
            Self::Definition { path, source } => write!(f, "{path}:{source}"),
            Self::UnusedArguments { names } => {
                write!(f, "no template of the definition file uses the build argument {}", quoted(names))
            }
            Self::NoSecret { id, path } => write!(f, "the secret `{id}` has no file {path}"),
            Self::NothingToUpdate { path } => write!(f, "cannot update {path}: it is no sandbox directory"),
            Self::Start { section, source } => write!(f, "cannot run %{section}: {}", cause(source)),
            Self::Section { section, line, status, .. } => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "%{section} (line {line}) failed with exit code {code}"),
                (None, Some(signal)) => write!(f, "%{section} (line {line}) was ended by signal {signal}"),
                (None, None) => write!(f, "%{section} (line {line}) failed"),
            },
            Self::NoExec { path } => write!(f, "cannot run programs in {path}: its file system is mounted noexec"),
            Self::Exists { path } => write!(f, "build target {path} already exists"),
            Self::IsSource { path } => write!(f, "build target {path} is the directory that the image is made of"),
            Self::NoName { path } => write!(f, "build target {path} names no file that can be made"),
            Self::Target { doing, path, source } => write!(f, "cannot {doing} {path}: {}", cause(source)),
            Self::NoRoom { path, needed_bytes, left_bytes } => {
                let (needed, left) = (room::size(*needed_bytes), room::size(*left_bytes));
                write!(f, "no room for {path}: about {needed} are needed, and {left} are left")
            }
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

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl std::error::Error for BuildError {}

impl BuildError {
    /// What the system said when something could not be written.
    fn unwritten(&self) -> Option<&io::Error> {
        match self {
            Self::Target { source, .. } | Self::Remembered(JournalError::File { source, .. }) => Some(source),
            Self::Unpack(UnpackError::Write { source, .. }) => Some(source),
            Self::Edit(EditError::System { source, .. }) => Some(source),
            Self::Copy(error) => match &error.problem {
                CopyProblem::Write { source, .. } | CopyProblem::Edit(EditError::System { source, .. }) => Some(source),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Hint for BuildError {
    fn hints(&self) -> Vec<String> {
        let no_room = match self.unwritten().map(io::Error::kind) {
            Some(io::ErrorKind::StorageFull) => Some("Free some space"),
            Some(io::ErrorKind::QuotaExceeded) => Some("Your quota is used up: remove something"),
            Some(io::ErrorKind::FileTooLarge) => Some("Files may not grow that large: raise the limit (`ulimit -f`)"),
            _ => None,
        };
        if let Some(what) = no_room {
            return vec![format!("{what}, or build elsewhere: the image beside its name, the rest with --tmpdir.")];
        }
        let hint = match self {
            Self::Walk(error) => return error.hints(),
            Self::Remembered(error) => return error.hints(),
            Self::Image(error) => return error.hints(),
            Self::AsTree(error) => return error.hints(),
            Self::Layered(error) => return error.hints(),
            Self::Remote(error) => return error.hints(),
            Self::Cache(error) => return error.hints(),
            Self::Reference(_) | Self::NoSif { .. } | Self::Elsewhere { .. } => return Vec::new(),
            Self::Debootstrap(error) => return error.hints(),
            Self::Tool(error) => return error.hints(),
            Self::Pack(error) => return error.hints(),
            Self::Sif(error) => return error.hints(),
            Self::Extract(ExtractError::NoSpace { .. } | ExtractError::NoInodes { .. }) => {
                "Free some space, or put the sandbox on another file system."
            }
            Self::Extract(error) => return error.hints(),
            Self::Definition { source, .. } => return source.hints(),
            Self::UnusedArguments { .. } => "With --warn-unused-build-args this is a warning.",
            Self::NothingToUpdate { .. } => "--update goes with --sandbox and a directory that is there.",
            Self::NoExec { .. } => "Choose another directory for the build by --tmpdir.",
            Self::UnknownAgent { .. } | Self::LaterAgent { .. } => {
                "The agents of this version are `arch`, `busybox`, `debootstrap`, `dnf`, `docker`, `docker-archive`, `localimage` \
                 (a SIF file, a SquashFS file, a directory), `oci`, `oci-archive`, `oras`, `scratch`, `yum` and `zypper`."
            }
            Self::HeaderLacks { key: "MirrorURL", .. } => {
                "It is the address of a mirror, as the system's own programs use it."
            }
            Self::HeaderLacks { key: "OSVersion", .. } => "It takes the place of `%{OSVERSION}` in addresses.",
            Self::HeaderLacks { .. } => "Name the image or directory to begin with.",
            Self::Exists { .. } => "Use --force to replace it.",
            Self::NoRoom { .. } => "Free some space or quota, or write the image to another file system.",
            Self::IsSource { .. } => "Choose another name: the image would take the place of its source.",
            Self::Target { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "Make the directory first.",
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "The image is made beside its name: choose a directory that you may write to."
                }
                _ => return Vec::new(),
            },
            Self::Section { is_full: true, .. } => {
                "The file system that the image is built on is full, or your quota is used up: free some space, or build \
                 elsewhere with --tmpdir."
            }
            Self::Section { is_full: false, .. } => return Vec::new(),
            Self::Namespace(_) => "Do without the range: --ignore-subuid.",
            Self::Lookup(_)
            | Self::Edit(_)
            | Self::Unpack(_)
            | Self::Copy(_)
            | Self::NotYet { .. }
            | Self::NoSecret { .. }
            | Self::Start { .. }
            | Self::NoName { .. } => return Vec::new(),
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

impl From<UnpackError> for BuildError {
    fn from(error: UnpackError) -> Self {
        Self::Unpack(error)
    }
}

impl From<CopyError> for BuildError {
    fn from(error: CopyError) -> Self {
        Self::Copy(Box::new(error))
    }
}

impl From<EditError> for BuildError {
    fn from(error: EditError) -> Self {
        Self::Edit(error)
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

impl From<ObtainError<BuildError>> for BuildError {
    fn from(error: ObtainError<BuildError>) -> Self {
        match error {
            ObtainError::Cache(error) => error.into(),
            ObtainError::Make(error) => error,
        }
    }
}

impl From<RemoteError> for BuildError {
    fn from(error: RemoteError) -> Self {
        Self::Remote(Box::new(error))
    }
}

impl From<CacheError> for BuildError {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

impl From<DebootstrapError> for BuildError {
    fn from(error: DebootstrapError) -> Self {
        Self::Debootstrap(Box::new(error))
    }
}

impl From<ToolError> for BuildError {
    fn from(error: ToolError) -> Self {
        Self::Tool(Box::new(error))
    }
}
