//! The form of a configuration file: lines of `directive = value`.
//!
//! ```text
//! # a comment
//! mount home = no
//! bind path = /scratch
//! bind path = /opt/site:/opt:ro
//! ```
//!
//! Blanks around names and values don't count. A directive that no table knows is noted and skipped, so that a file
//! written for another version serves as well; a value that can't be is an error.

use std::fmt;

use super::directives::{DIRECTIVES, Directive, find};
use super::nearest::nearest;

/// The values that a file gives, checked, by directive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(Vec<(&'static str, Vec<Vec<u8>>)>);

/// A line that can't be followed; lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineError {
    NoEquals { line: usize },
    BadValue { line: usize, directive: &'static str, value: Vec<u8> },
}

/// A line without effect; lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDirective {
    pub line: usize,
    pub name: String,
    pub meant: Option<&'static str>,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEquals { line } => write!(f, "line {line} is not of the form `directive = value`"),
            Self::BadValue { line, directive, value } => {
                let value = String::from_utf8_lossy(value);
                write!(f, "line {line}: `{directive}` cannot be `{value}`")
            }
        }
    }
}

impl fmt::Display for UnknownDirective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: the directive `{}` is unknown and has no effect", self.line, self.name)?;
        match self.meant {
            Some(meant) => write!(f, "; is `{meant}` meant?"),
            None => Ok(()),
        }
    }
}

impl Settings {
    /// Returns what the file says of a directive: `None` if nothing, an empty slice if it says that there is none.
    pub fn said(&self, directive: &Directive) -> Option<&[Vec<u8>]> {
        self.0.iter().find(|(name, _)| *name == directive.name).map(|(_, values)| values.as_slice())
    }

    /// Returns the values that count: the file's, or else the default ones.
    pub fn in_force(&self, directive: &Directive) -> Vec<Vec<u8>> {
        match self.said(directive) {
            Some(values) if directive.allowed.repeats() => values.to_vec(),
            Some(values) => values.last().cloned().into_iter().collect(),
            None => directive.default.iter().map(|value| value.as_bytes().to_vec()).collect(),
        }
    }

    /// Returns the settings of a file in which every directive stands with its default.
    pub fn of_defaults() -> Self {
        let values = |directive: &Directive| directive.default.iter().map(|value| value.as_bytes().to_vec()).collect();
        Self(DIRECTIVES.iter().map(|directive| (directive.name, values(directive))).collect())
    }

    fn values_of(&mut self, name: &'static str) -> &mut Vec<Vec<u8>> {
        let at = self.0.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            self.0.push((name, Vec::new()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

/// Reads a file's text; also returns the directives that nobody knows.
pub fn parse(text: &[u8]) -> Result<(Settings, Vec<UnknownDirective>), LineError> {
    let mut settings = Settings::default();
    let mut unknown = Vec::new();
    for (index, text) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = index + 1;
        let text = text.trim_ascii();
        if text.is_empty() || text.starts_with(b"#") {
            continue;
        }
        let equals = text.iter().position(|&byte| byte == b'=').ok_or(LineError::NoEquals { line })?;
        let (name, value) = (text[..equals].trim_ascii(), text[equals + 1..].trim_ascii());
        let Some(directive) = find(name) else {
            let name = String::from_utf8_lossy(name).into_owned();
            let meant = nearest(&name, DIRECTIVES.iter().map(|directive| directive.name));
            unknown.push(UnknownDirective { line, name, meant });
            continue;
        };
        let values = settings.values_of(directive.name);
        if value.is_empty() && directive.allowed.may_be_empty() {
            // `bind path =` takes away what stood before; lines after it add again.
            values.clear();
        } else if directive.allowed.accepts(value) && !value.is_empty() {
            values.push(value.to_vec());
        } else {
            return Err(LineError::BadValue { line, directive: directive.name, value: value.to_vec() });
        }
    }
    Ok((settings, unknown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::{MountDev, SiteConfig};

    fn site(text: &str) -> SiteConfig {
        SiteConfig::from_settings(&parse(text.as_bytes()).unwrap().0)
    }

    #[test]
    fn what_a_file_says_replaces_the_default_and_the_rest_stays() {
        let expected = SiteConfig { mount_home: false, mount_dev: MountDev::Minimal, ..SiteConfig::default() };
        assert_eq!(site("# home\n\n  mount home=no \nmount dev = minimal"), expected);
    }

    #[test]
    fn the_last_line_of_a_directive_counts() {
        assert!(!site("mount tmp = yes\nmount tmp = no\n").mount_tmp);
    }

    #[test]
    fn bind_paths_add_up_and_an_empty_one_takes_all_away() {
        let paths = |text| site(text).bind_paths;
        assert_eq!(paths("bind path = /a\nbind path = /b:/c:ro\n"), [b"/a".to_vec(), b"/b:/c:ro".to_vec()]);
        assert!(paths("bind path =\n").is_empty());
        assert_eq!(paths("bind path = /a\nbind path =\nbind path = /b\n"), [b"/b".to_vec()]);
        assert_eq!(paths("mount tmp = no\n"), SiteConfig::default().bind_paths);
    }

    #[test]
    fn a_value_that_cannot_be_is_an_error_with_its_line() {
        let error = parse(b"mount tmp = no\nmount home = perhaps\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2: `mount home` cannot be `perhaps`");
        for text in ["sessiondir max size = -1", "sessiondir max size = 1e9", "mount proc =", "memory fs type = disk"] {
            assert!(matches!(parse(text.as_bytes()), Err(LineError::BadValue { line: 1, .. })), "{text}");
        }
        let long = format!("sessiondir max size = {}", "9".repeat(30));
        assert!(matches!(parse(long.as_bytes()), Err(LineError::BadValue { .. })));
    }

    #[test]
    fn a_line_of_another_form_is_an_error_with_its_line() {
        assert_eq!(parse(b"\n\nmount home no\n"), Err(LineError::NoEquals { line: 3 }));
    }

    #[test]
    fn a_directive_that_nobody_knows_is_noted_with_the_one_that_was_meant() {
        let (settings, unknown) = parse(b"mount hom = no\nnonsense = 1\n").unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(unknown[0].meant, Some("mount home"));
        assert_eq!(unknown[1].to_string(), "line 2: the directive `nonsense` is unknown and has no effect");
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        for text in [&b"\0\xff=\xfe"[..], b"=", b"= =", b"#", b"bind path = \xff\n", b"\r\n"] {
            let _ = parse(text);
        }
    }
}
