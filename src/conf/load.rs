//! Finds and reads the configuration file. One attempt to open it; no file is no error, unless it was asked for.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::parse::{LineError, Settings, UnknownDirective, parse};
use super::{SiteConfig, directives};
use crate::report::Hint;

/// No configuration is longer; the bound keeps a wrong path (a device, an image) from being swallowed.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a configuration can't be used.
#[derive(Debug)]
pub enum ConfError {
    Read { path: PathBuf, source: io::Error },
    TooLong { path: PathBuf },
    Line { path: PathBuf, source: LineError },
}

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, source } => write!(f, "cannot read the configuration `{}`: {source}", path.display()),
            Self::TooLong { path } => {
                write!(
                    f,
                    "cannot use `{}` as the configuration: it is longer than {MAX_FILE_BYTES} bytes",
                    path.display()
                )
            }
            Self::Line { path, source } => write!(f, "cannot use the configuration `{}`: {source}", path.display()),
        }
    }
}

impl std::error::Error for ConfError {}

impl Hint for ConfError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Line { source: LineError::BadValue { directive, .. }, .. } => directives::find(directive.as_bytes())
                .map(|directive| format!("`{}` can be {}.", directive.name, directive.allowed.words()))
                .into_iter()
                .collect(),
            Self::Line { source: LineError::NoEquals { .. }, .. } => {
                vec!["A comment starts with `#`.".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// Reads the site's configuration in types: `given` if it names a file, else the installed one, else the defaults.
///
/// Warns of directives that nobody knows.
pub fn load(given: Option<&Path>) -> Result<SiteConfig, ConfError> {
    Ok(match read(given)? {
        Some(settings) => SiteConfig::from_settings(&settings),
        None => SiteConfig::default(),
    })
}

/// Reads the settings of the same file that [`load`] takes; none where there is no file.
pub fn read(given: Option<&Path>) -> Result<Option<Settings>, ConfError> {
    let Some(path) = path(given) else { return Ok(None) };
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(error) if given.is_none() && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(ConfError::Read { path, source }),
    };
    let Some(text) = text else { return Err(ConfError::TooLong { path }) };
    match parse(&text) {
        Ok((settings, unknown)) => {
            warn(&path, &unknown);
            Ok(Some(settings))
        }
        Err(source) => Err(ConfError::Line { path, source }),
    }
}

/// The path of the configuration that [`load`] takes, if there is one.
pub fn path(given: Option<&Path>) -> Option<PathBuf> {
    given.map(Path::to_owned).or_else(installed_path)
}

/// The path of the file called `name` beside the configuration that [`load`] takes.
pub fn path_beside(given: Option<&Path>, name: &str) -> Option<PathBuf> {
    path(given).map(|path| path.with_file_name(name))
}

/// Reads the file called `name` beside the configuration that [`load`] takes; `None` where there is none.
pub fn read_beside(given: Option<&Path>, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>, ConfError> {
    let Some(path) = path_beside(given, name) else {
        return Ok(None);
    };
    match read_bounded(&path) {
        Ok(Some(text)) => Ok(Some((path, text))),
        Ok(None) => Err(ConfError::TooLong { path }),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(ConfError::Read { path, source }),
    }
}

fn warn(path: &Path, unknown: &[UnknownDirective]) {
    for directive in unknown {
        crate::report::warning(format!("{}: {directive}", path.display()));
    }
}

/// Reads a file; `None` if it is too long.
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= MAX_FILE_BYTES).then_some(text))
}

/// Returns the path that an installation uses, from the place of the running program.
fn installed_path() -> Option<PathBuf> {
    installed_beside(&std::env::current_exe().ok()?)
}

/// `PREFIX/bin/sifu` reads `PREFIX/etc/sifu/sifu.conf`; the prefix `/usr` reads `/etc/sifu/sifu.conf`.
fn installed_beside(program: &Path) -> Option<PathBuf> {
    let prefix = program.parent()?.parent()?;
    let etc = if prefix == Path::new("/usr") { Path::new("/etc").to_owned() } else { prefix.join("etc") };
    Some(etc.join("sifu/sifu.conf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_file_is_found_from_the_program() {
        for (program, expected) in [
            ("/usr/bin/sifu", "/etc/sifu/sifu.conf"),
            ("/usr/local/bin/sifu", "/usr/local/etc/sifu/sifu.conf"),
            ("/home/ada/sifu/bin/sifu", "/home/ada/sifu/etc/sifu/sifu.conf"),
        ] {
            assert_eq!(installed_beside(Path::new(program)), Some(PathBuf::from(expected)), "{program}");
        }
    }

    #[test]
    fn a_file_that_was_asked_for_has_to_be_there() {
        let error = load(Some(Path::new("/nonexistent/sifu.conf"))).unwrap_err();
        assert!(error.to_string().starts_with("cannot read the configuration `/nonexistent/sifu.conf`: "), "{error}");
    }

    #[test]
    fn an_endless_file_is_refused() {
        let error = load(Some(Path::new("/dev/zero"))).unwrap_err();
        assert!(matches!(error, ConfError::TooLong { .. }), "{error}");
    }

    #[test]
    fn a_bad_value_comes_with_what_can_be_written() {
        let source = LineError::BadValue { line: 2, directive: "mount dev", value: b"some".to_vec() };
        let error = ConfError::Line { path: "/etc/sifu/sifu.conf".into(), source };
        assert_eq!(
            error.to_string(),
            "cannot use the configuration `/etc/sifu/sifu.conf`: line 2: `mount dev` cannot be `some`"
        );
        assert_eq!(error.hints(), ["`mount dev` can be yes, no or minimal."]);
    }
}
