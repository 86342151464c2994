//! The lists of what `--nv` and `--rocm` look for on a host: `nvliblist.conf` and `rocmliblist.conf`.
//!
//! One name a line; blank lines and lines with `#` at the start don't count:
//!
//! ```text
//! nvidia-smi              a program
//! libcuda.so              a library, with any version behind the name
//! libGL.so if-missing     a library for images that have none of this name, where the driver is there
//! /run/some/socket        a file, directory or socket
//! /usr/share/x/nvidia*.y  every file of this name
//! /tmp/pipes writable     one that the container writes to
//! ```
//!
//! The first library stands for the driver: a host that has neither it nor a device of the vendor has no driver.

use std::fmt;

use starter::paths::{ContainerPath, ContainerPathError};

/// The lists that are used where the site has none.
pub const NVIDIA: &str = include_str!("../../conf/nvliblist.conf");
pub const AMD: &str = include_str!("../../conf/rocmliblist.conf");

const IF_MISSING: &[u8] = b"if-missing";
const WRITABLE: &[u8] = b"writable";

/// What a line of a list asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Program(Vec<u8>),
    /// `name` up to `.so`.
    Library {
        name: Vec<u8>,
        if_missing: bool,
    },
    /// Shown in the container at the same path, whose last name may hold `*`.
    Path {
        path: ContainerPath,
        writable: bool,
    },
}

/// Returns the library that stands for the driver: the first one of a list.
pub fn driver(list: &[Wanted]) -> Option<&[u8]> {
    list.iter().find_map(|wanted| match wanted {
        Wanted::Library { name, .. } => Some(&name[..]),
        Wanted::Program(_) | Wanted::Path { .. } => None,
    })
}

/// Reads a list.
pub fn parse(text: &[u8]) -> Result<Vec<Wanted>, ListError> {
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    lines.filter_map(|(at, line)| wanted(line.trim_ascii(), at + 1).transpose()).collect()
}

fn wanted(line: &[u8], number: usize) -> Result<Option<Wanted>, ListError> {
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    if line.starts_with(b"/") {
        // A path may hold blanks.
        let before = line.strip_suffix(WRITABLE).filter(|before| before.ends_with(b" ") || before.ends_with(b"\t"));
        return match ContainerPath::parse(before.unwrap_or(line).trim_ascii()) {
            Ok(path) => Ok(Some(Wanted::Path { path, writable: before.is_some() })),
            Err(why) => Err(ListError { line: number, wrong: Wrong::Path(why) }),
        };
    }
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let name = words.next().unwrap_or_default();
    let condition = words.next();
    let library = name.windows(3).any(|part| part == b".so");
    if name.contains(&b'/') || condition.is_some_and(|word| word != IF_MISSING || !library) || words.next().is_some() {
        let line_text = String::from_utf8_lossy(line).into_owned();
        return Err(ListError { line: number, wrong: Wrong::Words(line_text) });
    }
    let name = name.to_vec();
    Ok(Some(if library { Wanted::Library { name, if_missing: condition.is_some() } } else { Wanted::Program(name) }))
}

/// A line that a list can't hold. The caller says which file it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListError {
    /// Counted from 1.
    pub line: usize,
    pub wrong: Wrong,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    Path(ContainerPathError),
    Words(String),
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        match &self.wrong {
            Wrong::Path(why) => why.fmt(f),
            Wrong::Words(line) => {
                write!(f, "`{line}` is no program, library or absolute path")
            }
        }
    }
}

impl std::error::Error for ListError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(name: &str, if_missing: bool) -> Wanted {
        Wanted::Library { name: name.into(), if_missing }
    }

    fn path(path: &'static str, writable: bool) -> Wanted {
        Wanted::Path { path: ContainerPath::fixed(path), writable }
    }

    #[test]
    fn each_line_asks_for_one_thing() {
        let text = b"# a comment\n\n  nvidia-smi\nlibcuda.so\nlibGL.so  if-missing\n/run/a b/socket\nlibx.so.2\r\n\
                     /tmp/pipes \t writable\n/share/nvidia*.json\n/a/writable\n";
        let expected = [
            Wanted::Program(b"nvidia-smi".to_vec()),
            library("libcuda.so", false),
            library("libGL.so", true),
            path("/run/a b/socket", false),
            library("libx.so.2", false),
            path("/tmp/pipes", true),
            path("/share/nvidia*.json", false),
            path("/a/writable", false),
        ];
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn a_line_that_asks_for_nothing_is_said_with_its_number() {
        for (text, expected) in [
            ("libcuda.so\nlibGL.so sometimes", "line 2: `libGL.so sometimes` is no program, library or absolute path"),
            ("nvidia-smi if-missing", "line 1: `nvidia-smi if-missing` is no program, library or absolute path"),
            ("bin/tool", "line 1: `bin/tool` is no program, library or absolute path"),
            ("\n/a/../b", "line 2: path in the container holds `..`"),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn the_lists_that_are_shipped_are_understood() {
        for list in [NVIDIA, AMD] {
            assert!(parse(list.as_bytes()).unwrap().len() > 10);
        }
    }
}
