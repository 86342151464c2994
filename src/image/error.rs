//! What can be wrong with what the user pointed at, and the words for it.

use super::detect::Content;
use crate::report::Hint;
use crate::sif;
use crate::squashfs::SquashfsError;
use crate::tree::LookupError;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why an image can't be used. Paths are as the user gave them.
#[derive(Debug)]
pub enum ImageError {
    /// It can't be opened: it is not there, or may not be read.
    Open {
        path: PathBuf,
        source: io::Error,
    },
    /// The medium failed.
    Read {
        path: PathBuf,
        source: io::Error,
    },
    /// A device, a fifo, a socket.
    NotAFile {
        path: PathBuf,
        what: &'static str,
    },
    /// A file that is no image.
    NotAnImage {
        path: PathBuf,
        content: Content,
    },
    /// A bare ext2, ext3 or ext4 image.
    Ext {
        path: PathBuf,
    },
    /// A URI of an image that has to be fetched or converted first.
    Elsewhere {
        uri: String,
        scheme: String,
    },
    /// `instance://NAME`.
    Instance {
        uri: String,
    },
    UnknownScheme {
        uri: String,
        scheme: String,
    },
    Sif {
        path: PathBuf,
        source: sif::OpenError,
    },
    /// The SIF has no root file system that can be opened.
    Root {
        path: PathBuf,
        source: sif::RootError,
    },
    /// An object of the SIF can't be had.
    Object {
        path: PathBuf,
        source: sif::ObjectError,
    },
    /// The object is no partition that holds SquashFS.
    NotSquashfs {
        path: PathBuf,
        id: u32,
        what: &'static str,
    },
    /// The SIF has no data partition, and no other was asked for by its id.
    NoDataPartition {
        path: PathBuf,
    },
    /// An id was given for an image that has no objects.
    NoObjects {
        path: PathBuf,
    },
    Squashfs {
        path: PathBuf,
        source: SquashfsError,
    },
    Lookup {
        path: PathBuf,
        source: LookupError,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { path, source } => write!(f, "cannot open image {}: {}", path.display(), describe(source)),
            Self::Read { path, source } => write!(f, "cannot read image {}: {}", path.display(), describe(source)),
            Self::NotAFile { path, what } => write!(f, "{} is no image: it is {what}", path.display()),
            Self::NotAnImage { path, content } => write!(f, "{} is no image: {content}", path.display()),
            Self::Ext { path } => {
                write!(
                    f,
                    "cannot open image {}: it is an ext3 or ext4 file system, which this version can't open yet",
                    path.display()
                )
            }
            Self::Elsewhere { uri, scheme } => {
                write!(
                    f,
                    "cannot open image {uri}: this version opens no `{scheme}` images, only files and directories"
                )
            }
            Self::Instance { uri } => write!(f, "cannot open image {uri}: this version has no instances yet"),
            Self::UnknownScheme { uri, scheme } => {
                write!(f, "cannot open image {uri}: there is no such file, and `{scheme}` is no known kind of image")
            }
            Self::Sif { path, source } => write!(f, "cannot open image {}: {source}", path.display()),
            Self::Root { path, source } => write!(f, "cannot open image {}: {source}", path.display()),
            Self::Object { path, source } => write!(f, "cannot use image {}: {source}", path.display()),
            Self::NotSquashfs { path, id, what } => {
                write!(f, "cannot use object {id} of image {}: it is {what}, not a SquashFS partition", path.display())
            }
            Self::NoDataPartition { path } => {
                write!(f, "cannot use image {}: it has no data partition", path.display())
            }
            Self::NoObjects { path } => {
                write!(f, "cannot choose an object of image {} by its id: it is no SIF", path.display())
            }
            Self::Squashfs { path, source } => write!(f, "cannot open image {}: {source}", path.display()),
            Self::Lookup { path, source } => write!(f, "cannot use image {}: {source}", path.display()),
        }
    }
}

/// The kernel's words without the number that `io::Error` adds.
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

impl std::error::Error for ImageError {}

impl Hint for ImageError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Open { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "Check the path; relative ones begin at the current directory.",
                io::ErrorKind::PermissionDenied => {
                    "Ask its owner for read permission, also on the directories that lead to it."
                }
                _ => return Vec::new(),
            },
            Self::Read { .. } => "Check the medium that holds the image, then try again.",
            Self::NotAnImage { content: Content::Archive, .. } => {
                "An archive of layers has to be converted first, for example by `apptainer build new.sif docker-archive:FILE`."
            }
            Self::NotAnImage { content: Content::Empty | Content::BrokenImage, .. } => {
                "The file was cut short or changed; fetch or build the image again."
            }
            Self::NotAnImage { .. } | Self::NotAFile { .. } => {
                "Give a SIF file, a SquashFS file, or a directory that holds a root file system."
            }
            Self::Ext { .. } => "Convert it where Apptainer is at hand: `apptainer build new.sif old.img`.",
            Self::Elsewhere { .. } => "Make a SIF file of it where Apptainer is at hand: `apptainer pull new.sif URI`.",
            Self::Instance { .. } => "Give the image file itself.",
            Self::UnknownScheme { .. } => "Give the path of a SIF file, a SquashFS file or a directory.",
            Self::Sif { source, .. } => return source.hints(),
            Self::Root { source, .. } => return source.hints(),
            Self::Object { source, .. } => return source.hints(),
            Self::NotSquashfs { .. } | Self::NoDataPartition { .. } => {
                "`sifu sif list IMAGE` shows the partitions and their ids."
            }
            Self::NoObjects { .. } => "Leave the id out.",
            Self::Squashfs { source, .. } => return source.hints(),
            Self::Lookup { source: LookupError::Denied { .. }, .. } => "Ask the directory's owner for permission.",
            Self::Lookup { .. } => "The image was damaged after it was made: fetch or build it again.",
        };
        vec![hint.to_owned()]
    }
}
