//! `sifu pull [FILE] URI`: fetches an image from elsewhere.

use super::elsewhere::{self as said_elsewhere, ElsewhereOptions, watched};
use crate::build::elsewhere::Conversion;
use crate::build::{self, BuildError, DefinitionOptions, Form, Request, elsewhere};
use crate::report::{self, Failure, failure};
use crate::sif::Arch;
use starter::paths::HostPath;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What the flags ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullOptions {
    pub force: bool,
    pub directory: Option<OsString>,
    pub name: Option<OsString>,
    pub architecture: Option<Arch>,
    pub variant: Option<String>,
    pub sandbox: bool,
    /// What a failed pull has made stays.
    pub no_cleanup: bool,
}

/// Fetches the image that the last word names.
pub fn run(options: &PullOptions, elsewhere_options: &ElsewhereOptions, words: &[OsString]) -> Result<(), Failure> {
    let (name, uri) = match words {
        [uri] => (options.name.as_deref(), uri),
        [name, uri] => (Some(name.as_os_str()), uri),
        _ => return Err(Failure::usage("an image is needed, and before it perhaps the name of a file")),
    };
    let uri = uri.to_str().filter(|uri| elsewhere::is_uri(uri)).ok_or_else(|| {
        let name = uri.to_string_lossy();
        Failure::new(format!("`{name}` does not say where the image is"))
            .hint(format!("For an image of a registry: `sifu pull docker://{name}`."))
    })?;
    let target = target(options, name, uri)?;
    if fs::symlink_metadata(&target).is_ok() && !options.force {
        let path = target.display();
        return Err(Failure::new(format!("{path} is there already")).hint("Use --force to replace it."));
    }
    let how = said_elsewhere::conversion(elsewhere_options, options.architecture, options.variant.clone())?;
    let how = Conversion { keeps_files: options.no_cleanup, ..how };
    if options.sandbox {
        let request = Request {
            target: HostPath::new(&*target),
            source: uri.into(),
            form: Form::Sandbox,
            replace: options.force,
            pack: how.pack,
            time: how.time,
            definition: DefinitionOptions { keeps_files: options.no_cleanup, ..DefinitionOptions::default() },
            architecture: how.architecture,
            is_data: false,
            access: how.access,
            cache: None,
        };
        return watched(|say| build::build(&request, say));
    }
    let new = beside(&target);
    let made = if elsewhere_options.disable_cache {
        watched(|say| elsewhere::fetch(uri, &how, &new, say))
    } else {
        from_cache(uri, &how, &new)
    };
    let placed = made.and_then(|()| place(&new, &target, options.force));
    if placed.is_err() && !options.no_cleanup {
        let _ = fs::remove_file(&new);
    } else if placed.is_err() && new.exists() {
        report::info(format_args!("What was made of the image is kept in {}", new.display()));
    }
    placed
}

/// Where the image goes.
fn target(options: &PullOptions, name: Option<&OsStr>, uri: &str) -> Result<PathBuf, Failure> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => elsewhere::default_name(uri).map_err(|error| failure(&error))?.into(),
    };
    Ok(match &options.directory {
        Some(directory) => Path::new(directory).join(name),
        None => name.into(),
    })
}

/// A name in the same directory, for a file that is not whole yet.
fn beside(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().take(100).collect();
    target.with_file_name(format!(".{name}.sifu-{}", std::process::id()))
}

/// Copies the image of the cache. One that was damaged there is fetched anew.
fn from_cache(uri: &str, how: &Conversion, new: &Path) -> Result<(), Failure> {
    let cache = said_elsewhere::cache()?;
    if how.keeps_files && elsewhere::find_cached(uri, how, &cache).map_err(|error| failure(&error))?.is_none() {
        return watched(|say| elsewhere::fetch(uri, how, new, say));
    }
    let get = || watched(|say| elsewhere::cached(uri, how, &cache, say));
    let mut path = get()?;
    if !cache.is_unchanged(&path).map_err(|error| failure(&error))? {
        report::warning(format_args!("{} is damaged, and is fetched anew", path.display()));
        cache.remove(&path);
        path = get()?;
    }
    fs::copy(&path, new).map(|_| ()).map_err(|error| cannot_write(new, error))
}

fn place(new: &Path, target: &Path, replaces: bool) -> Result<(), Failure> {
    let placed = if replaces {
        fs::rename(new, target)
    } else {
        starter::sys::rename_if_new(new, target).or_else(|errno| match errno {
            // File systems that lack it: what was not there at the beginning is taken not to be there now.
            nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS => fs::rename(new, target),
            errno => Err(errno.into()),
        })
    };
    placed.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => failure(&BuildError::Exists { path: HostPath::new(target) }),
        _ => cannot_write(target, error),
    })
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    Failure::new(format!("cannot write {}: {}", path.display(), report::cause(&error)))
        .hint("The image is made beside its name: choose a directory with room that you may write to.")
}
