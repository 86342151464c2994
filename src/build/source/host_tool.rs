//! Agents that leave the work to a program of this machine: `dnf`, `zypper`, `pacman`.
//!
//! ```text
//! header ──► script ──► sifu section / sh SCRIPT        this machine's own files, read-only, and the new root
//! (pure)                                                as an emulated root, whose files are remembered in the new root
//! ```

use super::{Fetching, Files, Root};
use crate::build::edit::Edit;
use crate::build::rootfs::Rootfs;
use crate::build::{BuildError, Note, sections};
use crate::def::Header;
use crate::report::Hint;
use starter::paths::{ContainerPath, HostPath};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why such an agent made nothing.
#[derive(Debug)]
pub enum ToolError {
    /// None of the programs is there.
    Missing {
        agent: &'static str,
        programs: &'static [&'static str],
        packages: &'static str,
    },
    /// A value of the header that is of no use.
    Header {
        agent: &'static str,
        key: &'static str,
        value: String,
        why: &'static str,
    },
    /// What Apptainer does with a program that sifu does not use.
    NotThere {
        agent: &'static str,
        what: &'static str,
    },
    /// Packages are for other machines.
    Architecture {
        agent: &'static str,
    },
    Failed {
        agent: &'static str,
        status: ExitStatus,
    },
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { agent, programs, .. } => {
                let names: Vec<_> = programs.iter().map(|name| format!("`{name}`")).collect();
                write!(f, "the bootstrap agent `{agent}` needs the program {}, which is not there", names.join(" or "))
            }
            Self::Header { agent, key, value, why } => {
                write!(f, "the bootstrap agent `{agent}` can't use `{key}: {}`: {why}", value.escape_debug())
            }
            Self::NotThere { agent, what } => write!(f, "{what} of the bootstrap agent `{agent}` is not there in sifu"),
            Self::Architecture { agent } => {
                write!(f, "the bootstrap agent `{agent}` has no packages for this machine's architecture")
            }
            Self::Failed { agent, status } => {
                write!(f, "the packages of the bootstrap agent `{agent}` could not be installed ({status})")
            }
        }
    }
}

impl std::error::Error for ToolError {}

impl Hint for ToolError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Missing { packages, .. } => vec![format!("Install it: {packages}.")],
            Self::NotThere { .. } => vec!["Build from an image of that system instead.".to_owned()],
            Self::Header { .. } | Self::Architecture { .. } | Self::Failed { .. } => Vec::new(),
        }
    }
}

/// The first of these programs that is there.
pub(super) fn find(
    agent: &'static str,
    programs: &'static [&'static str],
    packages: &'static str,
) -> Result<PathBuf, ToolError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Programs for root are not on everybody's path.
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    let directories: Vec<PathBuf> = directories.filter(|directory| directory.is_absolute()).collect();
    let mut found = programs.iter().flat_map(|name| directories.iter().map(move |directory| directory.join(name)));
    found.find(|path| path.is_file()).ok_or(ToolError::Missing { agent, programs, packages })
}

/// Has `script` fill a new root, where it finds this machine's own files and both directories.
pub(super) fn fill(
    agent: &'static str,
    fetching: &mut Fetching,
    script: impl FnOnce(&Path, &Path) -> String,
) -> Result<Root, BuildError> {
    let work = std::path::absolute(fetching.work);
    let work =
        work.map_err(|source| BuildError::Target { doing: "find", path: HostPath::new(fetching.work), source })?;
    let rootfs = Rootfs::open(&(fetching.directory)(fetching.builder)?)?;
    rootfs.apply(&[Edit::Directory { path: ContainerPath::fixed("/.singularity.d"), mode: 0o755 }])?;
    let path = work.join("script");
    let written = std::fs::write(&path, script(rootfs.path(), &work));
    written.map_err(|source| BuildError::Target { doing: "write", path: HostPath::new(&*path), source })?;
    (fetching.say)(Note::Doing("Installing packages..."));
    let command = ["/bin/sh".into(), "-ex".into(), path.into()];
    let status = sections::run_beside(&command, &rootfs, &work, fetching.builder.options())?;
    if !status.success() {
        return Err(ToolError::Failed { agent, status }.into());
    }
    Ok(Root { files: Files::Directory { newest_mtime: 0 }, labels: BTreeMap::new(), objects: Vec::new() })
}

/// The words of a header's list: packages, options.
pub(super) fn words(header: &Header, key: &str) -> Vec<String> {
    header.get(key).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// An address with the version in the place of `%{OSVERSION}`, which needs one.
pub(super) fn address(agent: &'static str, key: &'static str, header: &Header) -> Result<Option<String>, BuildError> {
    let Some(value) = header.get(&key.to_ascii_lowercase()) else { return Ok(None) };
    let version = header.get("osversion");
    if value.contains("%{OSVERSION}") && version.is_none() {
        return Err(BuildError::HeaderLacks { agent: agent.to_owned(), key: "OSVersion" });
    }
    let value = value.replace("%{OSVERSION}", version.unwrap_or_default());
    let is_known = ["http://", "https://", "file:/", "ftp://"].iter().any(|scheme| value.starts_with(scheme));
    let why = match (is_known, value.contains(char::is_whitespace)) {
        (false, _) => "it is no address",
        (_, true) => "an address holds no blanks",
        (true, false) => return Ok(Some(value)),
    };
    Err(ToolError::Header { agent, key, value, why }.into())
}

/// The beginning of a script in which rpm keeps its records where they belong: Debian's has them in the home directory.
pub(super) fn rpm_records(work: &Path) -> String {
    let home = format!("HOME={}", work.display());
    let moved = "echo '%_dbpath /var/lib/rpm' >\"$HOME/.rpmmacros\"";
    format!("export {}case $(rpm --eval '%_dbpath') in */.rpmdb) {moved} ;; esac\n", line(&[&home]))
}

/// A line of a script: words as they are, whatever is in them.
pub(super) fn line(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    quoted.join(" ") + "\n"
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::def::{BuildArgs, parse};

    /// The header of a definition of these lines.
    pub fn header(lines: &str) -> Header {
        parse(lines.as_bytes(), &BuildArgs::default()).expect("a definition").stages[0].header.clone()
    }

    #[test]
    fn a_word_of_a_line_is_one_whatever_is_in_it() {
        assert_eq!(line(&["a b", "it's $HOME"]), "'a b' 'it'\\''s $HOME'\n");
    }

    #[test]
    fn an_address_gets_its_version() {
        let check = |lines: &str, expected: Result<Option<&str>, &str>| {
            let found = address("dnf", "MirrorURL", &header(&format!("Bootstrap: dnf\n{lines}")));
            let expected = expected.map(|address| address.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(found.map_err(|error| error.to_string()), expected, "{lines}");
        };
        check("OSVersion: 9\nMirrorURL: http://a.example/%{OSVERSION}/os/\n", Ok(Some("http://a.example/9/os/")));
        check("Include: x\n", Ok(None));
        let lacks = "the bootstrap agent `dnf` needs `OSVersion:` in the header";
        check("MirrorURL: http://a.example/%{OSVERSION}/os/\n", Err(lacks));
        let wrong = "the bootstrap agent `dnf` can't use `MirrorURL: a.example`: it is no address";
        check("MirrorURL: a.example\n", Err(wrong));
    }

    #[test]
    fn a_program_that_is_missing_is_named_with_its_package() {
        let error = find("zypper", &["no-such-program"], "`apt install zypper`").expect_err("no program");
        let expected = "the bootstrap agent `zypper` needs the program `no-such-program`, which is not there";
        assert_eq!(
            (error.to_string().as_str(), error.hints()),
            (expected, vec!["Install it: `apt install zypper`.".into()])
        );
        assert!(find("sh", &["no-such-program", "sh"], "").is_ok());
    }
}
