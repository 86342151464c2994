//! `{{ name }}` in the text, and where its value comes from.
//!
//! A value given with the build counts before one of a file of arguments, and that before the default of the stage's
//! `%arguments`. A default may hold `{{ other }}`, one level deep. Lines that are comments are left as they are.
//!
//! A comment `# secret: NAME …` in `%arguments` keeps the values of these names out of the text that the image keeps.

use super::SectionName;
use super::error::{DefError, Problem};
use super::split::{Line, RawStage};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// Values that were given with the build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildArgs {
    /// By `--build-arg` or, where that does not name it, by `--build-arg-file`.
    values: BTreeMap<String, Vec<u8>>,
}

impl BuildArgs {
    /// Adds what a file of arguments says: `NAME=VALUE` lines, blank ones and comments.
    ///
    /// # Errors
    /// A line is something else.
    pub fn add_file(&mut self, text: &[u8]) -> Result<(), DefError> {
        for line in super::split::lines(text)? {
            if let Some((name, value)) = assignment(&line)? {
                self.values.insert(name, value);
            }
        }
        Ok(())
    }

    /// Adds one value; it takes the place of an earlier one.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        self.values.insert(name.to_owned(), value.to_vec());
    }
}

/// The variables of one stage.
pub(super) struct Variables<'a> {
    given: &'a BuildArgs,
    defaults: BTreeMap<String, (Line<'a>, Vec<u8>)>,
    secret: BTreeSet<String>,
    /// What all templates became together.
    filled_bytes: Cell<usize>,
}

/// The values of all templates of a stage are no longer than this: one can double the next.
const MAX_FILLED_BYTES: usize = 64 << 20;

/// Text with its templates filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filled {
    pub text: Vec<u8>,
    pub holds_secret: bool,
}

impl<'a> Variables<'a> {
    pub fn of(stage: &RawStage<'a>, given: &'a BuildArgs) -> Result<Self, DefError> {
        let mut variables =
            Self { given, defaults: BTreeMap::new(), secret: BTreeSet::new(), filled_bytes: Cell::new(0) };
        let sections = stage.sections.iter().filter(|section| section.name == SectionName::Arguments);
        for line in sections.flat_map(|section| &section.lines) {
            variables.declare_secret(line)?;
            if let Some((name, value)) = assignment(line)? {
                variables.defaults.insert(name, (*line, value));
            }
        }
        Ok(variables)
    }

    fn declare_secret(&mut self, line: &Line) -> Result<(), DefError> {
        let Some((at, rest)) = line.first_word() else { return Ok(()) };
        let Some(names) = rest.strip_prefix(b"#").map(<[u8]>::trim_ascii_start) else { return Ok(()) };
        let Some(names) = names.strip_prefix(b"secret:") else { return Ok(()) };
        for name in names.split(|b| b.is_ascii_whitespace() || *b == b',').filter(|name| !name.is_empty()) {
            if !name.iter().all(|&b| is_name_byte(b)) {
                let name = String::from_utf8_lossy(name).into_owned();
                return Err(line.error(at, Problem::BadSecretName { name }));
            }
            self.secret.insert(String::from_utf8_lossy(name).into_owned());
        }
        Ok(())
    }

    /// Fills in the templates of one line; `used` gets the names that stand in it.
    pub fn fill(&self, line: &Line, used: &mut BTreeSet<String>) -> Result<Filled, DefError> {
        self.fill_all(line, true, used)
    }

    /// The line as the image keeps it: templates of secrets stay.
    pub fn redact(&self, line: &Line) -> Result<Vec<u8>, DefError> {
        Ok(self.fill_all(line, false, &mut BTreeSet::new())?.text)
    }

    fn fill_all(&self, line: &Line, with_secrets: bool, used: &mut BTreeSet<String>) -> Result<Filled, DefError> {
        let mut filled = Filled::default();
        if line.is_comment() {
            filled.text = line.text.to_vec();
            return Ok(filled);
        }
        let mut rest = line.text;
        while let Some((before, name, after)) = next_template(rest) {
            let column = line.text.len() - rest.len() + before.len();
            filled.text.extend_from_slice(before);
            used.insert(name.to_owned());
            let value = self
                .value(name, used)?
                .ok_or_else(|| line.error(column, Problem::NoValue { name: name.to_owned() }))?;
            self.count(line, value.text.len())?;
            if value.holds_secret && !with_secrets {
                filled.text.extend_from_slice(&rest[before.len()..rest.len() - after.len()]);
            } else {
                filled.text.extend_from_slice(&value.text);
            }
            filled.holds_secret |= value.holds_secret;
            rest = after;
        }
        filled.text.extend_from_slice(rest);
        Ok(filled)
    }

    /// The value of `name`; `None` when it has none.
    fn value(&self, name: &str, used: &mut BTreeSet<String>) -> Result<Option<Filled>, DefError> {
        let is_secret = self.secret.contains(name);
        if let Some(given) = self.given.values.get(name) {
            return Ok(Some(Filled { text: given.clone(), holds_secret: is_secret }));
        }
        let Some((line, default)) = self.defaults.get(name) else { return Ok(None) };
        let mut value = self.default(line, default, used)?;
        value.holds_secret |= is_secret;
        Ok(Some(value))
    }

    /// A default with the templates in it filled in.
    fn default(&self, line: &Line, default: &[u8], used: &mut BTreeSet<String>) -> Result<Filled, DefError> {
        let mut filled = Filled::default();
        let mut rest = default;
        while let Some((before, name, after)) = next_template(rest) {
            used.insert(name.to_owned());
            filled.text.extend_from_slice(before);
            let inner = self.given.values.get(name).or_else(|| self.defaults.get(name).map(|(_, value)| value));
            let inner = inner.ok_or_else(|| line.error(0, Problem::NoValue { name: name.to_owned() }))?;
            self.count(line, inner.len())?;
            filled.text.extend_from_slice(inner);
            filled.holds_secret |= self.secret.contains(name);
            rest = after;
        }
        filled.text.extend_from_slice(rest);
        Ok(filled)
    }

    fn count(&self, line: &Line, bytes: usize) -> Result<(), DefError> {
        let limit_bytes = MAX_FILLED_BYTES;
        self.filled_bytes.set(self.filled_bytes.get().saturating_add(bytes));
        let is_too_large = self.filled_bytes.get() > limit_bytes;
        if is_too_large { Err(line.error(0, Problem::TooLarge { limit_bytes })) } else { Ok(()) }
    }

    /// Names given with the build that are not in `used`.
    pub fn unused(given: &BuildArgs, used: &BTreeSet<String>) -> Vec<String> {
        given.values.keys().filter(|name| !used.contains(*name)).cloned().collect()
    }
}

/// Reads `NAME=VALUE`; `None` for a blank line or a comment. Quotes are part of the value, as in Apptainer: scripts that have
/// `export FLAGS={{ FLAGS }}` live by them.
fn assignment(line: &Line) -> Result<Option<(String, Vec<u8>)>, DefError> {
    let Some((at, rest)) = line.first_word() else { return Ok(None) };
    if rest[0] == b'#' {
        return Ok(None);
    }
    let wrong = || line.error(at, Problem::NotAnAssignment);
    let equals = rest.iter().position(|&b| b == b'=').ok_or_else(wrong)?;
    let name = rest[..equals].trim_ascii_end();
    if name.is_empty() || !name.iter().all(|&b| is_name_byte(b)) {
        return Err(wrong());
    }
    let value = rest[equals + 1..].trim_ascii();
    let name = String::from_utf8_lossy(name).into_owned();
    Ok(Some((name, value.to_vec())))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The first `{{ name }}`: what stands before it, the name, what stands after it. Other `{{` are text: Helm and Jinja have
/// them too.
fn next_template(text: &[u8]) -> Option<(&[u8], &str, &[u8])> {
    let mut from = 0;
    loop {
        let at = from + text.get(from..)?.windows(2).position(|bytes| bytes == b"{{")?;
        let inner = text[at + 2..].trim_ascii_start();
        let length = inner.iter().take_while(|&&b| is_name_byte(b)).count();
        let (name, rest) = inner.split_at(length);
        if let Some(after) = rest.trim_ascii_start().strip_prefix(b"}}")
            && !name.is_empty()
            && let Ok(name) = std::str::from_utf8(name)
        {
            return Some((&text[..at], name, after));
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, &str, &str)>) {
        let expected = expected.map(|(before, name, after)| (before.as_bytes(), name, after.as_bytes()));
        assert_eq!(next_template(text.as_bytes()), expected, "{text}");
    }

    #[test]
    fn a_template_is_a_name_in_two_braces() {
        check("a {{ b }} c {{ d }}", Some(("a ", "b", " c {{ d }}")));
        check("{{b_1}}", Some(("", "b_1", "")));
        check("{{{b}}}", Some(("{", "b", "}")));
    }

    #[test]
    fn what_other_tools_write_in_braces_is_text() {
        for text in ["{{ .Values }}", "{{ a-b }}", "{{}}", "{{ a", "{ { a } }", "${{ a.b }}", "{{ a b }}"] {
            check(text, None);
        }
    }

    #[test]
    fn an_assignment_has_blanks_around_its_value_dropped_and_quotes_kept() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let read = assignment(&Line { number: 1, text: text.as_bytes() }).unwrap();
            let expected = expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
            assert_eq!(read, expected, "{text}");
        };
        check(" A = 1 ", Some(("A", "1")));
        check("A=b=c # d", Some(("A", "b=c # d")));
        check("A=\"x y\"", Some(("A", "\"x y\"")));
        check("A=\"x\" \"y\"", Some(("A", "\"x\" \"y\"")));
        check("A=", Some(("A", "")));
        check(" # A=1", None);
        check("", None);
        for wrong in ["A", "=1", "A B=1", "A-B=1"] {
            let error = assignment(&Line { number: 3, text: wrong.as_bytes() }).unwrap_err();
            assert_eq!((error.line, error.problem), (3, Problem::NotAnAssignment), "{wrong}");
        }
    }
}
