//! Which lines of a shell script are data: here-documents, and lines inside quotes.
//!
//! A definition file is cut into sections before any shell sees it, so a line of a here-document that begins with `%` or
//! `Bootstrap:` has to be recognized as data. This reads just enough of the shell's language for that: quotes, comments,
//! `$( )` inside double quotes, `(( ))`, and `<<`.

use std::collections::VecDeque;

/// A here-document that a line began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HereDocument {
    /// The line that ends it.
    pub end: Vec<u8>,
    /// `<<-`: tabs before the end don't count.
    pub strips_tabs: bool,
}

impl HereDocument {
    /// Whether `line` is the end.
    pub fn ends_at(&self, line: &[u8]) -> bool {
        let tabs = if self.strips_tabs { line.iter().take_while(|&&b| b == b'\t').count() } else { 0 };
        line[tabs..] == *self.end
    }
}

/// What is open at the end of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// `$(` or `(`.
    Parenthesis,
    /// `((` or `$((`.
    Arithmetic,
    Single,
    /// `$'`.
    Ansi,
    Double,
}

/// Deeper than any script goes; more is taken as it comes.
const MAX_DEPTH: usize = 64;

/// Reads a script line by line.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    open: Vec<Open>,
    /// The line before ended in a backslash, so that this one goes on a word.
    is_continued: bool,
}

impl Scanner {
    /// Whether the next line begins inside quotes.
    pub fn is_in_quotes(&self) -> bool {
        matches!(self.open.last(), Some(Open::Single | Open::Ansi | Open::Double))
    }

    /// Reads one line, without its end; gives the here-documents whose first lines follow it, in their order.
    pub fn line(&mut self, line: &[u8]) -> VecDeque<HereDocument> {
        let mut documents = VecDeque::new();
        let mut at = 0;
        let mut is_word_start = !std::mem::take(&mut self.is_continued);
        while at < line.len() {
            let byte = line[at];
            let next = line.get(at + 1).copied();
            let was_word_start = std::mem::replace(&mut is_word_start, false);
            at += 1;
            match (self.open.last().copied(), byte) {
                (Some(Open::Single), b'\'') => drop(self.open.pop()),
                (Some(Open::Single), _) => {}
                (_, b'\\') => {
                    self.is_continued = at == line.len();
                    at += 1;
                }
                (Some(Open::Ansi), b'\'') => drop(self.open.pop()),
                (Some(Open::Ansi), _) => {}
                (Some(Open::Double), b'"') => drop(self.open.pop()),
                (_, b'$') if next == Some(b'(') => {
                    let is_arithmetic = line.get(at + 1) == Some(&b'(');
                    at += if is_arithmetic { 2 } else { 1 };
                    self.push(if is_arithmetic { Open::Arithmetic } else { Open::Parenthesis });
                    is_word_start = true;
                }
                (Some(Open::Double), _) => {}
                (Some(Open::Arithmetic), b')') if next == Some(b')') => {
                    at += 1;
                    self.open.pop();
                }
                (Some(Open::Arithmetic), _) => {}
                (_, b'$') if next == Some(b'\'') => {
                    at += 1;
                    self.push(Open::Ansi);
                }
                (_, b'\'') => self.push(Open::Single),
                (_, b'"') => self.push(Open::Double),
                (_, b'#') if was_word_start => break,
                (_, b'(') if next == Some(b'(') && was_word_start => {
                    at += 1;
                    self.push(Open::Arithmetic);
                }
                (_, b'(') => {
                    self.push(Open::Parenthesis);
                    is_word_start = true;
                }
                (Some(Open::Parenthesis), b')') => {
                    self.open.pop();
                    is_word_start = true;
                }
                (_, b'<') if next == Some(b'<') => {
                    at += 1;
                    if line.get(at) == Some(&b'<') {
                        at += 1;
                        continue;
                    }
                    let strips_tabs = line.get(at) == Some(&b'-');
                    at += usize::from(strips_tabs);
                    if let Some(end) = delimiter(line, &mut at) {
                        documents.push_back(HereDocument { end, strips_tabs });
                    }
                }
                (_, b' ' | b'\t' | b';' | b'&' | b'|' | b')' | b'`') => is_word_start = true,
                _ => {}
            }
        }
        documents
    }

    fn push(&mut self, open: Open) {
        if self.open.len() < MAX_DEPTH {
            self.open.push(open);
        }
    }
}

/// The word after `<<`, without its quotes; `None` where no word follows.
fn delimiter(line: &[u8], at: &mut usize) -> Option<Vec<u8>> {
    while line.get(*at).is_some_and(|b| matches!(b, b' ' | b'\t')) {
        *at += 1;
    }
    let start = *at;
    let mut word = Vec::new();
    let mut quote = None;
    while let Some(&byte) = line.get(*at) {
        match (quote, byte) {
            (None, b' ' | b'\t' | b';' | b'|' | b'&' | b'<' | b'>' | b'(' | b')') => break,
            (None, b'\'' | b'"') => quote = Some(byte),
            (None, b'\\') => {
                *at += 1;
                word.extend(line.get(*at));
            }
            (Some(open), _) if open == byte => quote = None,
            _ => word.push(byte),
        }
        *at += 1;
    }
    let is_whole = quote.is_none() && *at > start;
    is_whole.then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(script: &str, expected: &[(&str, bool)]) {
        let mut scanner = Scanner::default();
        let found: Vec<_> = script.lines().flat_map(|line| scanner.line(line.as_bytes())).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(end, strips_tabs)| HereDocument { end: end.as_bytes().to_vec(), strips_tabs: *strips_tabs })
            .collect();
        assert_eq!(found, expected, "{script}");
    }

    #[test]
    fn a_here_document_is_found_with_every_way_to_write_its_end() {
        check("cat <<EOF > x", &[("EOF", false)]);
        check("cat > x << 'END OF' ; true", &[("END OF", false)]);
        check("cat <<-\"A\" <<\\B|sh", &[("A", true), ("B", false)]);
        check("x=\"$(cat <<E", &[("E", false)]);
        check("(cat <<E)", &[("E", false)]);
    }

    #[test]
    fn what_only_looks_like_one_is_none() {
        for script in [
            "echo '<<EOF'",
            "echo \"<<EOF\"",
            "echo \\<<EOF",
            "# cat <<EOF",
            "true # <<EOF",
            "cat <<< EOF",
            "x=$((1 << y))",
            "((x << 2))",
            "echo 'a\n<<EOF\n'",
            "cat <<",
        ] {
            check(script, &[]);
        }
    }

    #[test]
    fn a_hash_inside_a_word_begins_no_comment() {
        check("echo a#b ${x#y} <<EOF", &[("EOF", false)]);
        check("echo a\\\n#b <<EOF", &[("EOF", false)]);
    }

    #[test]
    fn the_end_of_a_document_is_a_whole_line() {
        let plain = HereDocument { end: b"EOF".to_vec(), strips_tabs: false };
        let strips = HereDocument { strips_tabs: true, ..plain.clone() };
        assert!(plain.ends_at(b"EOF") && !plain.ends_at(b"\tEOF") && !plain.ends_at(b"EOF "));
        assert!(strips.ends_at(b"\t\tEOF") && !strips.ends_at(b" EOF"));
    }
}
