//! Definition files: text that says how an image is built.
//!
//! ```text
//! Bootstrap: localimage          header of a stage: where its file system comes from
//! From: base.sif
//! Stage: final
//!
//! %files from build              sections: a name, arguments, lines up to the next section
//!     /opt/app /opt/app
//! %post -c /bin/bash
//!     make install
//! ```
//!
//! [`parse`] turns the text into a [`Definition`]; everything that is wrong with it is a [`DefError`] with its place.
//!
//! ```text
//! lines ──► split: stages, sections ──► template: {{ name }} ──► parse: what each section means
//!           (here_document knows which lines of a script are data)
//! ```
//!
//! Nothing here reads a file or runs anything.

mod error;
mod files;
mod header;
mod here_document;
mod json;
mod parse;
mod section;
mod split;
mod template;
#[cfg(test)]
mod tests;

pub use error::{DefError, Problem};
pub use files::{Transfer, Word};
pub use header::{Header, Key};
pub use parse::{parse, parse_json};
pub use section::SectionName;
pub use split::MAX_BYTES;
pub use template::BuildArgs;

/// A definition file, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// In the order of the file, which is the order of their builds; the last one becomes the image. Never empty.
    pub stages: Vec<Stage>,
    /// The text that the image keeps: with the values of templates, but for those declared secret.
    pub text: Vec<u8>,
    /// Build arguments that stand nowhere in the text.
    pub unused_arguments: Vec<String>,
    /// What is allowed and probably not meant, each with its line.
    pub warnings: Vec<(u32, String)>,
}

impl Definition {
    /// The definition that is a header alone: what a source on the command line stands for.
    pub fn of_header(header: Header) -> Self {
        let mut text: Vec<u8> =
            header.lines().flat_map(|(key, value)| format!("{key}: {value}\n").into_bytes()).collect();
        text.push(b'\n');
        let stages = vec![Stage { header, ..Stage::default() }];
        Self { stages, text, unused_arguments: Vec::new(), warnings: Vec::new() }
    }
}

/// One stage: a header and its sections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    pub header: Header,
    /// Scripts of `%pre`, `%setup` and `%post`: one for each choice of arguments, in the order of the file.
    pub pre: Vec<Script>,
    pub setup: Vec<Script>,
    pub post: Vec<Script>,
    pub test: Option<Script>,
    pub runscript: Option<Script>,
    pub startscript: Option<Script>,
    pub environment: Option<Script>,
    pub help: Option<Script>,
    /// Names and values; of several with one name the last counts.
    pub labels: Vec<(String, String)>,
    pub files: Vec<Files>,
    /// In the order in which the file names them first.
    pub apps: Vec<App>,
}

impl Stage {
    /// The name by which later stages take files from this one.
    pub fn name(&self) -> Option<&str> {
        self.header.get("stage")
    }
}

/// The lines of a section, without blank ones at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// What stands after the section's name: `-c /bin/bash`.
    pub arguments: String,
    /// Ends in a newline, unless it is empty.
    pub text: Vec<u8>,
    /// The line of its first section in the file, from 1.
    pub line: u32,
    /// Whether a value declared secret is in it.
    pub holds_secret: bool,
}

/// A `%files` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The stage that they come from; `None` for the host.
    pub from: Option<String>,
    pub transfers: Vec<Transfer>,
    /// The section's line in the file, from 1.
    pub line: u32,
}

/// A SCIF app: what the `%app…` sections say of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct App {
    pub name: String,
    pub install: Option<Script>,
    pub run: Option<Script>,
    pub start: Option<Script>,
    pub test: Option<Script>,
    pub environment: Option<Script>,
    pub help: Option<Script>,
    pub labels: Vec<(String, String)>,
    pub files: Vec<Transfer>,
}
