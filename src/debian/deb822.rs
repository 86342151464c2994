//! Paragraphs of `Name: value` lines, the form of nearly all of Debian's control files.
//!
//! ```text
//! Package: base-files          one field
//! Description: miscellaneous   a field whose value
//!  files of the base system    goes on in lines that begin with a blank
//!                              an empty line ends the paragraph
//! Package: base-passwd
//! ```

use std::fmt;

/// Most fields of one paragraph; packages have some twenty.
const MAX_FIELDS: usize = 256;

/// One paragraph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paragraph<'a> {
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Paragraph<'a> {
    /// The value of a field, without blanks around it; names are compared without regard to case. Lines after the first
    /// are as they stand in the file.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// A line that belongs to no paragraph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deb822Error {
    /// Counted from 1.
    pub line: usize,
    pub why: &'static str,
}

impl fmt::Display for Deb822Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl std::error::Error for Deb822Error {}

/// The paragraphs of a text, one after the other; after an error there are no more.
pub struct Paragraphs<'a> {
    text: &'a str,
    /// Where the next line begins.
    at: usize,
    line: usize,
}

/// Reads the paragraphs of `text`. Lines that begin with `#` are comments.
pub fn paragraphs(text: &str) -> Paragraphs<'_> {
    Paragraphs { text, at: 0, line: 0 }
}

impl<'a> Paragraphs<'a> {
    /// The next line, with where it begins and ends.
    fn next_line(&mut self) -> Option<(usize, usize)> {
        if self.at >= self.text.len() {
            return None;
        }
        let start = self.at;
        let end = self.text[start..].find('\n').map_or(self.text.len(), |length| start + length);
        self.at = end + 1;
        self.line += 1;
        Some((start, end))
    }

    fn fail(&mut self, why: &'static str) -> Option<Result<Paragraph<'a>, Deb822Error>> {
        self.at = self.text.len();
        Some(Err(Deb822Error { line: self.line, why }))
    }
}

impl<'a> Iterator for Paragraphs<'a> {
    type Item = Result<Paragraph<'a>, Deb822Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut fields: Vec<(&'a str, &'a str)> = Vec::new();
        // Where the value of the last field begins.
        let mut value_start = 0;
        while let Some((start, end)) = self.next_line() {
            let line = &self.text[start..end];
            if line.starts_with('#') {
                continue;
            }
            if line.trim().is_empty() {
                if fields.is_empty() {
                    continue;
                }
                break;
            }
            if line.starts_with([' ', '\t']) {
                match fields.last_mut() {
                    // A comment between two lines stays in the value: those of signed files have none.
                    Some((_, value)) => *value = self.text[value_start..end].trim(),
                    None => return self.fail("a continued line without a field before it"),
                }
                continue;
            }
            let Some(colon) = line.find(':') else { return self.fail("no `Name: value`") };
            let name = &line[..colon];
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                return self.fail("no name of a field before the colon");
            }
            if fields.len() == MAX_FIELDS {
                return self.fail("too many fields in one paragraph");
            }
            if fields.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
                return self.fail("a field for the second time");
            }
            value_start = start + colon + 1;
            fields.push((name, self.text[value_start..end].trim()));
        }
        if fields.is_empty() { None } else { Some(Ok(Paragraph { fields })) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<Vec<(&str, &str)>> {
        paragraphs(text).map(|paragraph| paragraph.expect("a paragraph").fields).collect()
    }

    #[track_caller]
    fn check_error(text: &str, line: usize, why: &'static str) {
        let error = paragraphs(text).find_map(Result::err);
        assert_eq!(error, Some(Deb822Error { line, why }), "{text}");
        assert!(paragraphs(text).count() <= text.len());
    }

    #[test]
    fn paragraphs_end_at_empty_lines_and_comments_are_none() {
        assert_eq!(fields(""), Vec::<Vec<_>>::new());
        assert_eq!(fields("\n# x\n \n"), Vec::<Vec<_>>::new());
        let two = "\nA: 1\nB:2\n\n\t\n# comment: x\nA: 3";
        assert_eq!(fields(two), [vec![("A", "1"), ("B", "2")], vec![("A", "3")]]);
    }

    #[test]
    fn a_value_goes_on_in_lines_that_begin_with_a_blank() {
        let text = "Description: first\n second\n\tthird: x\nNext: y\n";
        assert_eq!(fields(text), [vec![("Description", "first\n second\n\tthird: x"), ("Next", "y")]]);
        let paragraph = paragraphs("SHA256:\n abc 1 x\n def 2 y\n").next().expect("one").expect("a paragraph");
        assert_eq!(paragraph.get("sha256"), Some("abc 1 x\n def 2 y"));
        assert_eq!(paragraph.get("MD5Sum"), None);
    }

    #[test]
    fn what_is_no_field_is_an_error_with_its_line() {
        check_error(" continued\n", 1, "a continued line without a field before it");
        check_error("A: 1\nno field\n", 2, "no `Name: value`");
        check_error("A: 1\n\n: x\n", 3, "no name of a field before the colon");
        check_error("A b: x\n", 1, "no name of a field before the colon");
        check_error("A: 1\na: 2\n", 2, "a field for the second time");
        let many: String = (0..300).map(|number| format!("F{number}: x\n")).collect();
        check_error(&many, 257, "too many fields in one paragraph");
    }
}
