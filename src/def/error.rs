//! What is wrong with a definition file, and where.

use crate::report::Hint;
use std::fmt;

/// Something wrong in a definition file. Shown as the line with a mark below its column:
///
/// ```text
/// 3:7: no section is called `pots`
///     3 | %pots
///       |  ^
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefError {
    /// From 1.
    pub line: u32,
    /// From 1, in bytes of the line.
    pub column: u32,
    /// The line itself, without its end.
    pub shown: Vec<u8>,
    pub problem: Problem,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not a single line says anything.
    Empty,
    /// A NUL byte: not a text.
    NotText,
    TooLarge {
        limit_bytes: usize,
    },
    /// `--json` of what is none, or of another document.
    Json {
        reason: String,
    },
    /// A line of a header without `:`.
    NoColon,
    UnknownKey {
        key: String,
        meant: Option<&'static str>,
    },
    /// A section before any header.
    NoHeader,
    /// A header without `Bootstrap:`.
    NoBootstrap,
    UnknownSection {
        name: String,
        meant: Option<&'static str>,
    },
    /// `%` alone.
    NoSectionName,
    /// An app section without the name of an app.
    NoAppName {
        section: &'static str,
    },
    /// A name that can't be that of a directory.
    BadAppName {
        name: String,
    },
    /// Arguments of `%files` other than `from STAGE`.
    FilesArguments,
    /// `%files` with more than a source and a target.
    ExtraWord {
        word: String,
    },
    OpenQuote,
    /// `%files from` a stage that no earlier header names.
    UnknownStage {
        name: String,
        known: Vec<String>,
    },
    SameStage {
        name: String,
    },
    /// A line of `%arguments` or of a file of arguments that is not `NAME=VALUE`.
    NotAnAssignment,
    /// `{{ name }}` without a value.
    NoValue {
        name: String,
    },
    /// `# secret:` with something that is no name.
    BadSecretName {
        name: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => {
                f.write_str("the definition file says nothing: expected a header that begins with `Bootstrap:`")
            }
            Self::NotText => f.write_str("this is no text: it holds a NUL byte"),
            Self::TooLarge { limit_bytes } => {
                write!(f, "too large for a definition file: more than {limit_bytes} bytes")
            }
            Self::Json { reason } => write!(f, "this is no definition in JSON: {reason}"),
            Self::NoColon => f.write_str("expected `Key: value` or a section"),
            Self::UnknownKey { key, .. } => write!(f, "no header key is called `{key}`"),
            Self::NoHeader => f.write_str("expected a header that begins with `Bootstrap:` before the first section"),
            Self::NoBootstrap => f.write_str("the header has no `Bootstrap:`"),
            Self::UnknownSection { name, .. } => write!(f, "no section is called `%{name}`"),
            Self::NoSectionName => f.write_str("expected the name of a section after `%`"),
            Self::NoAppName { section } => write!(f, "expected the name of an app after `%{section}`"),
            Self::BadAppName { name } => write!(f, "`{name}` cannot be the name of an app"),
            Self::FilesArguments => f.write_str("expected `from STAGE` or nothing after `%files`"),
            Self::ExtraWord { word } => write!(f, "expected a source and a target; `{word}` is one word more"),
            Self::OpenQuote => f.write_str("the quote that begins here has no end"),
            Self::UnknownStage { name, .. } => write!(f, "no earlier stage is called `{name}`"),
            Self::SameStage { name } => write!(f, "an earlier stage is called `{name}` too"),
            Self::NotAnAssignment => f.write_str("expected `NAME=VALUE`"),
            Self::NoValue { name } => write!(f, "`{{{{ {name} }}}}` has no value"),
            Self::BadSecretName { name } => write!(f, "`{name}` cannot be the name of a build argument"),
        }
    }
}

impl fmt::Display for DefError {
    /// The place, the problem, and the line with a mark; the caller puts the name of the file before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.problem)?;
        if matches!(self.problem, Problem::Empty | Problem::NotText | Problem::TooLarge { .. }) {
            return Ok(());
        }
        const SHOWN_CHARS: usize = 160;
        let number = self.line.to_string();
        let text = String::from_utf8_lossy(&self.shown).replace('\t', " ");
        let before = String::from_utf8_lossy(&self.shown[..(self.column as usize - 1).min(self.shown.len())]);
        let place = before.chars().count();
        // Of a very long line, the part around the place.
        let from = place.saturating_sub(SHOWN_CHARS / 2);
        let shown: String = text.chars().skip(from).take(SHOWN_CHARS).collect();
        write!(f, "\n    {number} | {}", shown.trim_end())?;
        write!(f, "\n    {:width$} | {:indent$}^", "", "", width = number.len(), indent = place - from)
    }
}

impl std::error::Error for DefError {}

impl Hint for DefError {
    fn hints(&self) -> Vec<String> {
        let hint = match &self.problem {
            Problem::UnknownKey { meant: Some(meant), .. } => format!("`{meant}:` is one."),
            Problem::UnknownKey { .. } => "A section begins with `%` in the first column.".to_owned(),
            Problem::UnknownSection { meant: Some(meant), .. } => format!("`%{meant}` is one."),
            Problem::UnknownSection { .. } | Problem::NoSectionName => {
                "A line that begins with `%` begins a section; as text of a script it is taken with a blank before it."
                    .to_owned()
            }
            Problem::Json { .. } => {
                "It begins like `{\"header\": {\"bootstrap\": \"localimage\", \"from\": \"base.sif\"}, \"buildData\": …`.".to_owned()
            }
            Problem::Empty | Problem::NotText => {
                "A definition file begins like `Bootstrap: localimage`; an image or a directory is named without one."
                    .to_owned()
            }
            Problem::NoHeader | Problem::NoBootstrap => {
                "The first line says where the file system comes from: `Bootstrap: localimage`, `Bootstrap: docker` …"
                    .to_owned()
            }
            Problem::ExtraWord { .. } => "A name with blanks stands in double quotes.".to_owned(),
            Problem::UnknownStage { known, .. } if known.is_empty() => {
                "A stage gets its name by `Stage: NAME` in its header, before the stages that use it.".to_owned()
            }
            Problem::UnknownStage { known, .. } => format!("Stages before this one: {}.", known.join(", ")),
            Problem::NoValue { name } => {
                format!("Give it by `--build-arg {name}=VALUE`, or give a default in `%arguments`.")
            }
            _ => return Vec::new(),
        };
        vec![hint]
    }
}
