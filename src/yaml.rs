//! YAML as far as it says what JSON can say: a document becomes a JSON value, or JSON text whose values stand on the lines
//! that they have in the document; and a JSON value becomes a document.
//!
//! Plain words are typed as YAML 1.2's core schema types them (`null`, `true`, `12`, `0x1f`, `1.5`), quoted ones are
//! text. Anchors are followed within a bound, so that a few lines can't become gigabytes.

use std::collections::{HashMap, HashSet};
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Map, Number, Value};

/// How deep a document may nest: a description of devices needs six.
const MAX_DEPTH: usize = 64;
/// How many values a document may hold, those that anchors repeat included.
const MAX_VALUES: usize = 200_000;

/// Spaces before what belongs to the key above.
const INDENT: usize = 4;
/// Words that some version of YAML takes for something else than text.
const SWITCHES: [&str; 9] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];

/// Why a text is no document that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    /// Counted from 1.
    pub line: usize,
    pub wrong: Wrong,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    Syntax(String),
    TooDeep,
    TooLarge,
    /// A key that is a list or a mapping.
    Key,
    SameKey(String),
    SecondDocument,
    UnknownAnchor,
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        match &self.wrong {
            Wrong::Syntax(why) => f.write_str(why),
            Wrong::TooDeep => write!(f, "nested deeper than {MAX_DEPTH} levels"),
            Wrong::TooLarge => write!(f, "more than {MAX_VALUES} values"),
            Wrong::Key => f.write_str("a key is no text"),
            Wrong::SameKey(key) => write!(f, "the key `{key}` is there twice"),
            Wrong::SecondDocument => f.write_str("a second document begins"),
            Wrong::UnknownAnchor => f.write_str("an alias of nothing"),
        }
    }
}

impl std::error::Error for YamlError {}

/// Reads the one document of a text; an empty text is null.
pub fn to_json(text: &str) -> Result<Value, YamlError> {
    serde_json::from_str(&to_json_lines(text)?)
        .map_err(|error| YamlError { line: error.line(), wrong: Wrong::Syntax(error.to_string()) })
}

/// As [`to_json`], as text: who reads it names the document's own lines where something is wrong.
pub fn to_json_lines(text: &str) -> Result<String, YamlError> {
    let events = Parser::new_from_str(text);
    let mut reader = Reader { events, anchors: HashMap::new(), left: MAX_VALUES, json: String::new(), line: 1 };
    let mut read = false;
    loop {
        let (event, line) = reader.next()?;
        match event {
            Event::StreamEnd if read => return Ok(reader.json),
            Event::StreamEnd => return Ok("null".to_owned()),
            Event::DocumentStart(_) if read => return Err(YamlError { line, wrong: Wrong::SecondDocument }),
            Event::DocumentStart(_) => {
                let (event, line) = reader.next()?;
                reader.value(event, line, 0)?;
                read = true;
            }
            _ => {}
        }
    }
}

struct Reader<I> {
    events: I,
    /// What an anchor stands for, in one line, and how many values that is.
    anchors: HashMap<usize, (String, usize)>,
    /// How many values may still come.
    left: usize,
    json: String,
    /// Where `json` ends.
    line: usize,
}

impl<'a, I: Iterator<Item = Result<(Event<'a>, Span), ScanError>>> Reader<I> {
    fn next(&mut self) -> Result<(Event<'a>, usize), YamlError> {
        match self.events.next() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => {
                let wrong = Wrong::Syntax(error.info().to_owned());
                Err(YamlError { line: error.marker().line(), wrong })
            }
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    /// Writes JSON that stands on a line of the document.
    fn write(&mut self, line: usize, json: &str) {
        while self.line < line {
            self.json.push('\n');
            self.line += 1;
        }
        self.json.push_str(json);
    }

    /// Reads the value that begins with `event`.
    fn value(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<(), YamlError> {
        let fail = |wrong| Err(YamlError { line, wrong });
        if depth > MAX_DEPTH {
            return fail(Wrong::TooDeep);
        }
        let (left_before, json_before) = (self.left, self.json.len());
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return fail(Wrong::TooLarge),
        };
        let anchor = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let plain = style == ScalarStyle::Plain && !is_text;
                let value = if plain { plain_word(&text) } else { Value::String(text.into_owned()) };
                self.write(line, &value.to_string());
                anchor
            }
            Event::SequenceStart(anchor, _) => {
                self.write(line, "[");
                let mut separator = "";
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, line) => {
                            // Behind what it ends: who reads the JSON looks on to it before naming a line.
                            self.json.push_str(std::mem::replace(&mut separator, ","));
                            self.value(event, line, depth + 1)?;
                        }
                    }
                }
                self.json.push(']');
                anchor
            }
            Event::MappingStart(anchor, _) => {
                self.write(line, "{");
                self.mapping(depth)?;
                self.json.push('}');
                anchor
            }
            Event::Alias(anchor) => {
                let (json, size) = match self.anchors.get(&anchor) {
                    None => return fail(Wrong::UnknownAnchor),
                    Some((_, size)) if *size > self.left => return fail(Wrong::TooLarge),
                    Some((json, size)) => (json.clone(), *size),
                };
                self.left -= size;
                self.write(line, &json);
                0
            }
            _ => {
                self.write(line, "null");
                0
            }
        };
        if anchor > 0 {
            // Not more is kept than the document itself may hold.
            let size = left_before - self.left;
            self.left = match self.left.checked_sub(size) {
                Some(left) => left,
                None => return fail(Wrong::TooLarge),
            };
            // A newline of the JSON separates, those of texts are written as escapes.
            let json = self.json[json_before..].replace('\n', " ");
            self.anchors.insert(anchor, (json, size));
        }
        Ok(())
    }

    fn mapping(&mut self, depth: usize) -> Result<(), YamlError> {
        let mut keys: HashSet<String> = HashSet::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(());
            }
            let key = match event {
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(YamlError { line, wrong: Wrong::Key }),
            };
            self.json.push_str(if keys.is_empty() { "" } else { "," });
            self.write(line, &format!("{}:", Value::String(key.clone())));
            if !keys.insert(key.clone()) {
                return Err(YamlError { line, wrong: Wrong::SameKey(key) });
            }
            let (event, line) = self.next()?;
            self.value(event, line, depth + 1)?;
        }
    }
}

/// Writes a JSON value as a document of indented lines, which [`to_json`] reads as the same value.
pub fn from_json(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(mapping) if !mapping.is_empty() => write_mapping(mapping, 0, false, &mut text),
        Value::Array(list) if !list.is_empty() => write_list(list, 0, &mut text),
        other => {
            text += &flat(other);
            text.push('\n');
        }
    }
    text
}

/// One key a line; the first stands behind what the line holds already where `begun`.
fn write_mapping(mapping: &Map<String, Value>, indent: usize, begun: bool, text: &mut String) {
    for (number, (key, value)) in mapping.iter().enumerate() {
        if !(begun && number == 0) {
            text.extend(std::iter::repeat_n(' ', indent));
        }
        text.push_str(&word(key));
        text.push(':');
        match value {
            Value::Object(mapping) if !mapping.is_empty() => {
                text.push('\n');
                write_mapping(mapping, indent + INDENT, false, text);
            }
            Value::Array(list) if !list.is_empty() => {
                text.push('\n');
                write_list(list, indent + INDENT, text);
            }
            other => {
                text.push(' ');
                text.push_str(&flat(other));
                text.push('\n');
            }
        }
    }
}

fn write_list(list: &[Value], indent: usize, text: &mut String) {
    for value in list {
        text.extend(std::iter::repeat_n(' ', indent));
        text.push_str("- ");
        match value {
            Value::Object(mapping) if !mapping.is_empty() => write_mapping(mapping, indent + 2, true, text),
            // Lists in lists are written as JSON has them, which YAML understands.
            other => {
                text.push_str(&flat(other));
                text.push('\n');
            }
        }
    }
}

/// A value on one line.
fn flat(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    }
}

/// A text, in quotes unless every reader of YAML takes it for text without them.
fn word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/' | b':');
    let is_safe = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.bytes().all(is_plain)
        && !text.ends_with(':')
        && !SWITCHES.iter().any(|switch| text.eq_ignore_ascii_case(switch));
    if is_safe { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

/// Types a word without quotes.
fn plain_word(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let based = |prefix, radix| text.strip_prefix(prefix).and_then(|digits| u64::from_str_radix(digits, radix).ok());
    if let Some(number) = based("0x", 16).or_else(|| based("0o", 8)) {
        return Value::Number(number.into());
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Value::String(text.to_owned());
    }
    let whole = text.strip_prefix('+').unwrap_or(text);
    if let Ok(number) = whole.parse::<i64>() {
        return Value::Number(number.into());
    }
    if let Ok(number) = whole.parse::<u64>() {
        return Value::Number(number.into());
    }
    match whole.parse::<f64>().ok().and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(text: &str, expected: Value) {
        assert_eq!(to_json(text), Ok(expected), "{text}");
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &str) {
        let error = to_json(text).expect_err("a text that is refused").to_string();
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn words_have_the_types_of_the_core_schema() {
        check(
            "a: 1\nb: '1'\nc: -7\nd: 1.5\ne: true\nf: ~\ng:\nh: 0x1b6\ni: v1.0\nj: 1.0.0\nk: /dev/x\nl: 0o600\nm: 'true'\n",
            json!({"a": 1, "b": "1", "c": -7, "d": 1.5, "e": true, "f": null, "g": null, "h": 438, "i": "v1.0",
                "j": "1.0.0", "k": "/dev/x", "l": 384, "m": "true"}),
        );
        check("- 18446744073709551615\n- !!str 12\n- .\n- '-'\n", json!([u64::MAX, "12", ".", "-"]));
    }

    #[test]
    fn both_styles_nest() {
        check(
            "---\na:\n- b: {c: [1, x]}\n  d: |\n    text\n...\n",
            json!({"a": [{"b": {"c": [1, "x"]}, "d": "text\n"}]}),
        );
        check("", Value::Null);
        check("# nothing\n", Value::Null);
    }

    #[test]
    fn every_value_stands_on_its_line() {
        let text = "a: 1\n\n# a comment\nb:\n- x\n- {c: 2,\n   d: 3}\ne: |\n  one\n  two\nf: &y [1,\n  2]\ng: *y\n";
        let expected = "{\"a\":1,\n\n\n\"b\":\n[\"x\",\n{\"c\":2,\n\"d\":3}],\n\"e\":\n\"one\\ntwo\\n\",\n\n\"f\":[1,\n2],\n\"g\":[1, 2]}";
        assert_eq!(to_json_lines(text).expect("a document"), expected);
    }

    #[test]
    fn anchors_are_followed_within_a_bound() {
        check("a: &x [1, 2]\nb: *x\n", json!({"a": [1, 2], "b": [1, 2]}));
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        check_refused(&laughs, "line 5: more than 200000 values");
        check_refused("a: &x [*x]\n", "line 1: an alias of nothing");
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let value = json!({
            "Active": "a", "Remotes": {"a": {"URI": "h.example:5000/x", "System": false, "Keyservers": [
                {"URI": "https://k.example", "Skip": true}, {"URI": "", "Skip": false}]}, "yes": {}},
            "odd": ["12", "0x1f", "true", "No", "~", "- a", "a: b", "a #b", " ", "", "\"\\\n\u{1}", "é", "a:", "!x", "&a", "*a"],
            "numbers": [1, -2, 1.5, null, true, [1, ["x"]]],
        });
        let text = from_json(&value);
        assert_eq!(to_json(&text), Ok(value), "{text}");
        assert!(text.starts_with("Active: a\nRemotes:\n    a:\n        URI: h.example:5000/x\n"), "{text}");
        for value in [json!({}), json!([]), json!("x"), Value::Null, json!([[1], {"a": []}])] {
            assert_eq!(to_json(&from_json(&value)), Ok(value));
        }
    }

    #[test]
    fn what_json_can_not_say_is_refused_with_its_line() {
        check_refused("a: 1\n? [1]\n: 2\n", "line 2: a key is no text");
        check_refused("a: 1\nb: 2\na: 3\n", "line 3: the key `a` is there twice");
        check_refused("a: 1\n---\nb: 2\n", "line 2: a second document begins");
        check_refused("a: [1\n", "line ");
        check_refused("a: \"x\n", "line ");
        check_refused(&"[".repeat(5000), "line 1: ");
        check_refused(&format!("{}1{}", "[".repeat(100), "]".repeat(100)), "line 1: nested deeper than 64 levels");
    }
}
