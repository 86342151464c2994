//! The lines of `%files` and `%appfiles`: a source, and a target if it has another name.

use super::error::{DefError, Problem};
use super::split::Line;

/// One line of `%files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// A name or a pattern.
    pub source: Word,
    /// `None`: the same path as the source.
    pub target: Option<Word>,
    /// The line in the file, from 1.
    pub line: u32,
}

/// A word of a line; a byte that a backslash or single quotes protect stands for itself in a pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    pub text: Vec<u8>,
    /// As long as `text`: which of its bytes are protected.
    pub is_literal: Vec<bool>,
}

impl Word {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8], is_literal: bool) {
        self.text.extend_from_slice(bytes);
        self.is_literal.resize(self.text.len(), is_literal);
    }
}

/// Reads one line; `None` for a blank line or a comment. `text` is the line with its templates filled in, `line` says where
/// it stands.
pub(super) fn transfer(line: &Line, text: &[u8]) -> Result<Option<Transfer>, DefError> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some((start, word)) = next_word(line, text, &mut at)? {
        words.push((start, word));
    }
    let mut words = words.into_iter();
    let Some((_, source)) = words.next() else { return Ok(None) };
    let target = words.next().map(|(_, word)| word);
    match words.next() {
        Some((column, extra)) => {
            let word = String::from_utf8_lossy(&extra.text).into_owned();
            Err(line.error(column, Problem::ExtraWord { word }))
        }
        None => Ok(Some(Transfer { source, target, line: line.number })),
    }
}

/// The next word and where it begins. A `#` that begins a word ends the line.
fn next_word(line: &Line, text: &[u8], at: &mut usize) -> Result<Option<(usize, Word)>, DefError> {
    while text.get(*at).is_some_and(u8::is_ascii_whitespace) {
        *at += 1;
    }
    let start = *at;
    if matches!(text.get(start), None | Some(b'#')) {
        return Ok(None);
    }
    let mut word = Word::default();
    let mut quote: Option<(usize, u8)> = None;
    while let Some(&byte) = text.get(*at) {
        match (quote, byte) {
            (None, b' ' | b'\t') => break,
            (None, b'"' | b'\'') => quote = Some((*at, byte)),
            (Some((_, open)), _) if open == byte => quote = None,
            (None | Some((_, b'"')), b'\\') if *at + 1 < text.len() => {
                *at += 1;
                word.push(&text[*at..=*at], true);
            }
            // Patterns in double quotes count: there is no other way to write one for names with blanks.
            _ => word.push(&[byte], quote.is_some_and(|(_, open)| open == b'\'')),
        }
        *at += 1;
    }
    match quote {
        Some((column, _)) => Err(line.error(column, Problem::OpenQuote)),
        None => Ok(Some((start, word))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let line = Line { number: 1, text: text.as_bytes() };
        let read = transfer(&line, line.text).unwrap();
        let words: Vec<String> = read
            .iter()
            .flat_map(|t| [Some(&t.source), t.target.as_ref()].into_iter().flatten())
            .map(|word| String::from_utf8_lossy(&word.text).into_owned())
            .collect();
        assert_eq!(words, expected, "{text}");
    }

    #[test]
    fn words_are_parted_by_blanks_that_nothing_protects() {
        check("  a /b/", &["a", "/b/"]);
        check("\"my dir/my file\" '/opt/their file'", &["my dir/my file", "/opt/their file"]);
        check("my\\ file", &["my file"]);
        check("a\\\\b", &["a\\b"]);
        check("a /b # and why", &["a", "/b"]);
        check("a#b", &["a#b"]);
        check("# nothing", &[]);
        check("", &[]);
    }

    #[test]
    fn a_protected_byte_is_no_pattern() {
        let line = Line { number: 1, text: b"a*\\*\"*\"'*'" };
        let source = transfer(&line, line.text).unwrap().unwrap().source;
        assert_eq!(source.text, b"a****");
        assert_eq!(source.is_literal, [false, false, true, false, true]);
    }

    #[test]
    fn a_third_word_and_an_open_quote_are_named_with_their_columns() {
        let wrong = |text: &str| {
            let line = Line { number: 7, text: text.as_bytes() };
            transfer(&line, line.text).unwrap_err()
        };
        let error = wrong("a b  c");
        assert_eq!((error.line, error.column, error.problem), (7, 6, Problem::ExtraWord { word: "c".into() }));
        let error = wrong("a \"b");
        assert_eq!((error.column, error.problem), (3, Problem::OpenQuote));
    }
}
