//! Cuts a definition file into stages, and each stage into its header and its sections.
//!
//! A line begins a section when `%` is its first byte, and a stage when it begins with `Bootstrap:`; neither counts inside
//! a here-document or inside quotes of a script. An indented `%` is text.

use super::SectionName;
use super::error::{DefError, Problem};
use super::here_document::{HereDocument, Scanner};
use std::collections::{HashMap, VecDeque};

/// No definition file is larger than this; what is was named by mistake.
pub const MAX_BYTES: usize = 16 << 20;

/// A line of the file, without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// From 1.
    pub number: u32,
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// An error at byte `column` (from 0) of this line.
    pub fn error(&self, column: usize, problem: Problem) -> DefError {
        // Files are at most 16 MiB long.
        let column = column.min(self.text.len()) as u32 + 1;
        DefError { line: self.number, column, shown: self.text.to_vec(), problem }
    }

    /// Where the first byte that is no blank stands, and the rest from there; `None` for a blank line.
    pub fn first_word(&self) -> Option<(usize, &'a [u8])> {
        let at = self.text.iter().position(|b| !b.is_ascii_whitespace())?;
        Some((at, &self.text[at..]))
    }

    /// Whether the first byte that is no blank is `#`.
    pub fn is_comment(&self) -> bool {
        self.first_word().is_some_and(|(_, rest)| rest[0] == b'#')
    }
}

/// A stage, cut.
#[derive(Debug, Default)]
pub(super) struct RawStage<'a> {
    /// The lines before the first section, comments and blank ones among them.
    pub header: Vec<Line<'a>>,
    pub sections: Vec<RawSection<'a>>,
}

/// A section, cut.
#[derive(Debug)]
pub(super) struct RawSection<'a> {
    pub name: SectionName,
    /// The line `%name arguments`.
    pub line: Line<'a>,
    /// Where the arguments begin in it.
    pub arguments_at: usize,
    pub lines: Vec<Line<'a>>,
}

/// The lines of a file; a carriage return before the end of a line is no part of it, nor is a byte order mark at the top.
pub(super) fn lines(text: &[u8]) -> Result<Vec<Line<'_>>, DefError> {
    let broken = |line, problem| DefError { line, column: 1, shown: Vec::new(), problem };
    if text.len() > MAX_BYTES {
        return Err(broken(1, Problem::TooLarge { limit_bytes: MAX_BYTES }));
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut lines = Vec::new();
    for (line, number) in text.split(|&b| b == b'\n').zip(1..) {
        if line.contains(&0) {
            return Err(broken(number, Problem::NotText));
        }
        lines.push(Line { number, text: line.strip_suffix(b"\r").unwrap_or(line) });
    }
    Ok(lines)
}

/// Cuts the file into stages.
pub(super) fn split<'a>(lines: &[Line<'a>]) -> Result<Vec<RawStage<'a>>, DefError> {
    let mut stages = vec![RawStage::default()];
    let mut scanner = Scanner::default();
    let mut waiting: VecDeque<HereDocument> = VecDeque::new();
    let ends = Ends::of(lines);
    for (index, line) in lines.iter().enumerate() {
        let current = stages.len() - 1;
        if let Some(document) = waiting.front() {
            if document.ends_at(line.text) {
                waiting.pop_front();
            }
            keep(&mut stages[current], line);
            continue;
        }
        let is_in_quotes = scanner.is_in_quotes();
        if begins_stage(line) && !is_in_quotes && !stages[current].sections.is_empty() {
            stages.push(RawStage { header: vec![*line], sections: Vec::new() });
            scanner = Scanner::default();
            continue;
        }
        if let Some(rest) = line.text.strip_prefix(b"%")
            && let Some(section) = section(line, rest, is_in_quotes)?
        {
            if !stages[current].header.iter().any(says_something) {
                return Err(line.error(0, Problem::NoHeader));
            }
            stages[current].sections.push(section);
            scanner = Scanner::default();
            continue;
        }
        keep(&mut stages[current], line);
        if stages[current].sections.last().is_some_and(|section| section.name.is_script()) {
            let found = scanner.line(line.text);
            // One that never ends is none: the rest of the file would be data.
            waiting = found.into_iter().filter(|document| ends.is_after(index, document)).collect();
        }
    }
    match stages[0].sections.is_empty() && !stages[0].header.iter().any(says_something) {
        true => Err(Line { number: 1, text: b"" }.error(0, Problem::Empty)),
        false => Ok(stages),
    }
}

/// Where each line stands last: whether a here-document has an end is asked often.
struct Ends<'a> {
    whole: HashMap<&'a [u8], usize>,
    without_tabs: HashMap<&'a [u8], usize>,
}

impl<'a> Ends<'a> {
    fn of(lines: &[Line<'a>]) -> Self {
        let stripped = |text: &'a [u8]| &text[text.iter().take_while(|&&b| b == b'\t').count()..];
        Self {
            whole: lines.iter().enumerate().map(|(index, line)| (line.text, index)).collect(),
            without_tabs: lines.iter().enumerate().map(|(index, line)| (stripped(line.text), index)).collect(),
        }
    }

    fn is_after(&self, index: usize, document: &HereDocument) -> bool {
        let ends = if document.strips_tabs { &self.without_tabs } else { &self.whole };
        ends.get(document.end.as_slice()).is_some_and(|&last| last > index)
    }
}

/// Adds a line to where it belongs: the last section, or the header before the first.
fn keep<'a>(stage: &mut RawStage<'a>, line: &Line<'a>) {
    match stage.sections.last_mut() {
        Some(section) => section.lines.push(*line),
        None => stage.header.push(*line),
    }
}

fn says_something(line: &Line) -> bool {
    line.first_word().is_some() && !line.is_comment()
}

fn begins_stage(line: &Line) -> bool {
    const BEGIN: &[u8] = b"bootstrap";
    let Some((name, rest)) = line.text.split_at_checked(BEGIN.len()) else { return false };
    name.eq_ignore_ascii_case(BEGIN) && rest.trim_ascii_start().first() == Some(&b':')
}

/// The section that a line begins; `None` where a line inside quotes names none.
fn section<'a>(line: &Line<'a>, rest: &'a [u8], is_in_quotes: bool) -> Result<Option<RawSection<'a>>, DefError> {
    let length = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
    let name = String::from_utf8_lossy(&rest[..length]);
    if let Some(name) = SectionName::parse(&name) {
        return Ok(Some(RawSection { name, line: *line, arguments_at: 1 + length, lines: Vec::new() }));
    }
    match name.as_ref() {
        _ if is_in_quotes => Ok(None),
        "" => Err(line.error(1, Problem::NoSectionName)),
        name => {
            let meant = SectionName::nearest(name);
            Err(line.error(1, Problem::UnknownSection { name: name.to_owned(), meant }))
        }
    }
}
