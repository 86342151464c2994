//! Word expansion: `~`, parameters, substitutions, arithmetic, field splitting, file names, quotes, in POSIX's order.

use super::ast::*;
use super::evaluate::{COMMAND_FUEL, Shell, Stop};
use super::pattern::{Marked, Pattern, may_be_pattern};
use super::world::World;

/// The fields that a word grows into.
struct Fields {
    done: Vec<Marked>,
    /// The field being written; `None` between fields.
    current: Option<Marked>,
    /// What separates fields; `None` where nothing is split.
    separators: Option<Vec<u8>>,
    /// A blank has just ended a field: one separator that follows belongs to it.
    blank_ended: bool,
}

impl Fields {
    fn push(&mut self, bytes: &[u8], quoted: bool) {
        self.blank_ended = false;
        self.current.get_or_insert_default().push(bytes, quoted);
    }

    fn end(&mut self) {
        if let Some(field) = self.current.take() {
            self.done.push(field);
        }
    }

    /// Adds what an unquoted expansion gave, split.
    fn push_split(&mut self, bytes: &[u8]) {
        let Some(separators) = self.separators.clone() else {
            return self.push(bytes, false);
        };
        for run in bytes.chunk_by(|a, b| !separators.contains(a) && !separators.contains(b)) {
            let byte = run[0];
            if !separators.contains(&byte) {
                self.push(run, false);
            } else if byte.is_ascii_whitespace() {
                if self.current.is_some() {
                    self.end();
                    self.blank_ended = true;
                }
            } else {
                if self.current.is_none() && !self.blank_ended {
                    self.done.push(Marked::default());
                }
                self.end();
                self.blank_ended = false;
            }
        }
    }
}

impl<W: World> Shell<W> {
    /// The arguments that words become. With `declaration`, those of the form `NAME=…` stay whole.
    pub(super) fn fields(&mut self, words: &[Word], declaration: bool) -> Result<Vec<Vec<u8>>, Stop> {
        let mut all = Vec::with_capacity(words.len());
        for word in words {
            if let Some(text) = word.plain()
                && !may_be_pattern(text)
            {
                self.fuel.burn(text.len() as u64)?;
                all.push(text.to_vec());
                continue;
            }
            if declaration && is_assignment(word) {
                all.push(self.single(word)?);
                continue;
            }
            let separators = self.separators();
            let fields = self.expand(word, Some(separators))?;
            for field in fields {
                if !self.state.options.noglob && field.has_pattern() {
                    let names = self.file_names(&field)?;
                    if !names.is_empty() {
                        all.extend(names);
                        continue;
                    }
                }
                all.push(field.text);
            }
        }
        Ok(all)
    }

    /// The text of a word where it is not split: values, file names of redirections, `case`.
    pub(super) fn single(&mut self, word: &Word) -> Result<Vec<u8>, Stop> {
        if let Some(text) = word.plain() {
            self.fuel.burn(text.len() as u64)?;
            return Ok(text.to_vec());
        }
        Ok(self.marked(word)?.text)
    }

    /// As [`Self::single`], with what was quoted.
    pub(super) fn marked(&mut self, word: &Word) -> Result<Marked, Stop> {
        let mut fields = self.expand(word, None)?.into_iter();
        let mut whole = fields.next().unwrap_or_default();
        for field in fields {
            whole.push(b" ", true);
            whole.text.extend(field.text);
            whole.quoted.extend(field.quoted);
        }
        Ok(whole)
    }

    /// Whether the pattern `word` fits `value`.
    pub(super) fn fits(&mut self, word: &Word, value: &[u8]) -> Result<bool, Stop> {
        let pattern = self.marked(word)?;
        Pattern::new(&pattern).matches(value, &mut self.fuel)
    }

    fn separators(&self) -> Vec<u8> {
        self.get(b"IFS").unwrap_or(b" \t\n").to_vec()
    }

    fn expand(&mut self, word: &Word, separators: Option<Vec<u8>>) -> Result<Vec<Marked>, Stop> {
        let mut fields = Fields { done: Vec::new(), current: None, separators, blank_ended: false };
        self.parts(&word.0, false, false, &mut fields)?;
        fields.end();
        Ok(fields.done)
    }

    /// `inner`: the parts are the result of an expansion, so even their plain text is split.
    fn parts(&mut self, parts: &[Part], quoted: bool, inner: bool, fields: &mut Fields) -> Result<(), Stop> {
        for part in parts {
            match part {
                Part::Literal(text) if inner && !quoted => {
                    self.fuel.burn(text.len() as u64)?;
                    fields.push_split(text);
                }
                Part::Literal(text) => {
                    self.fuel.burn(text.len() as u64)?;
                    fields.push(text, quoted);
                }
                Part::Quoted(text) => {
                    self.fuel.burn(text.len() as u64)?;
                    fields.push(text, true);
                }
                Part::DoubleQuoted(within) => {
                    let all_arguments = within.iter().any(|p| matches!(p, Part::Parameter(p) if p.name == b"@"));
                    if !all_arguments {
                        fields.push(b"", true);
                    }
                    self.parts(within, true, inner, fields)?;
                }
                Part::Tilde(user) => {
                    let home = if user.is_empty() {
                        self.get(b"HOME").map(<[u8]>::to_vec)
                    } else {
                        self.world.home_of(user)?
                    };
                    match home {
                        Some(home) => fields.push(&home, true),
                        None => fields.push(&[b"~", user.as_slice()].concat(), quoted),
                    }
                }
                Part::Parameter(parameter) => self.parameter(parameter, quoted, fields)?,
                Part::Substitution(list) => {
                    let output = self.substitute(list)?;
                    self.add(&output, quoted, fields)?;
                }
                Part::Arithmetic(word) => {
                    let text = self.single(word)?;
                    let value = self.arithmetic(&text)?;
                    self.add(value.to_string().as_bytes(), quoted, fields)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, value: &[u8], quoted: bool, fields: &mut Fields) -> Result<(), Stop> {
        self.fuel.burn(value.len() as u64)?;
        if quoted {
            fields.push(value, true);
        } else if !value.is_empty() {
            if let Some(separators) = &fields.separators {
                // Each may end a field, be it empty.
                let ends = value.iter().filter(|b| separators.contains(b)).count();
                self.fuel.burn(ends as u64 * COMMAND_FUEL)?;
            }
            fields.push_split(value);
        }
        Ok(())
    }

    fn parameter(&mut self, parameter: &Parameter, quoted: bool, fields: &mut Fields) -> Result<(), Stop> {
        let name = if parameter.indirect {
            let target = self.value(&parameter.name)?.unwrap_or_default();
            if !is_name(&target) {
                return Err(self.fatal(&format_args!("{}: bad indirection", String::from_utf8_lossy(&parameter.name))));
            }
            target
        } else {
            parameter.name.clone()
        };
        if matches!(name.as_slice(), b"@" | b"*") && matches!(parameter.operation, Operation::Plain) {
            return self.all_arguments(name == b"*", quoted, fields);
        }
        let value = self.value(&name)?;
        match &parameter.operation {
            Operation::Default { kind, colon, word } => {
                let present = value.as_ref().is_some_and(|v| !(*colon && v.is_empty()));
                match (kind, present) {
                    (DefaultKind::Alternative, true) | (DefaultKind::Use, false) => {
                        if quoted {
                            fields.push(b"", true);
                        }
                        self.parts(&word.0, quoted, true, fields)
                    }
                    (DefaultKind::Alternative, false) => Ok(()),
                    (DefaultKind::Assign, false) => {
                        if !is_name(&name) {
                            let shown = String::from_utf8_lossy(&name).into_owned();
                            return Err(self.fatal(&format_args!("{shown}: cannot be assigned to")));
                        }
                        let text = self.single(word)?;
                        self.assign(&name, text.clone())?;
                        self.add(&text, quoted, fields)
                    }
                    (DefaultKind::Fail, false) => {
                        let mut text = self.single(word)?;
                        if text.is_empty() {
                            text = b"parameter is not set".to_vec();
                        }
                        let (name, text) =
                            (String::from_utf8_lossy(&name).into_owned(), String::from_utf8_lossy(&text));
                        Err(self.fatal(&format_args!("{name}: {text}")))
                    }
                    (_, true) => self.add(&value.unwrap_or_default(), quoted, fields),
                }
            }
            operation => {
                if value.is_none() && self.state.options.nounset {
                    let shown = String::from_utf8_lossy(&name).into_owned();
                    return Err(self.fatal(&format_args!("{shown}: parameter is not set")));
                }
                let set = value.is_some();
                let result = self.operate(operation, &name, value.unwrap_or_default())?;
                if set || !result.is_empty() { self.add(&result, quoted, fields) } else { Ok(()) }
            }
        }
    }

    fn all_arguments(&mut self, joined: bool, quoted: bool, fields: &mut Fields) -> Result<(), Stop> {
        let arguments = self.copy_arguments()?;
        if quoted && joined {
            let separator = self.separators().first().map_or(Vec::new(), |&b| vec![b]);
            return self.add(&arguments.join(separator.as_slice()), true, fields);
        }
        for (at, argument) in arguments.iter().enumerate() {
            if at > 0 {
                fields.end();
            }
            self.add(argument, quoted, fields)?;
        }
        Ok(())
    }

    /// The value of a parameter of any kind; `None` when it is not set.
    pub(super) fn value(&mut self, name: &[u8]) -> Result<Option<Vec<u8>>, Stop> {
        Ok(match name {
            b"#" => Some(self.state.arguments.len().to_string().into_bytes()),
            b"?" => Some(self.state.status.to_string().into_bytes()),
            b"@" | b"*" => {
                let arguments = self.copy_arguments()?;
                (!arguments.is_empty()).then(|| arguments.join(&b' '))
            }
            b"-" => Some(self.option_letters()),
            b"!" => None,
            b"0" => Some(self.state.name.clone()),
            b"LINENO" => Some(self.line.to_string().into_bytes()),
            _ if name[0].is_ascii_digit() => {
                let number = std::str::from_utf8(name).ok().and_then(|n| n.parse::<usize>().ok());
                number.and_then(|n| self.state.arguments.get(n.checked_sub(1)?).cloned())
            }
            _ => match self.get(name) {
                Some(value) => Some(value.to_vec()),
                None => self.world.computed(name)?,
            },
        })
    }

    fn operate(&mut self, operation: &Operation, name: &[u8], value: Vec<u8>) -> Result<Vec<u8>, Stop> {
        Ok(match operation {
            Operation::Plain | Operation::Default { .. } => value,
            Operation::Length => {
                let length = match name {
                    b"@" | b"*" => self.state.arguments.len(),
                    _ => String::from_utf8_lossy(&value).chars().count(),
                };
                length.to_string().into_bytes()
            }
            Operation::Trim { suffix, longest, pattern } => {
                let marked = self.marked(pattern)?;
                let pattern = Pattern::new(&marked);
                let all = value.len();
                let rest = |cut: usize| if *suffix { &value[..all - cut] } else { &value[cut..] };
                let part = |cut: usize| if *suffix { &value[all - cut..] } else { &value[..cut] };
                for at in 0..=all {
                    let cut = if *longest { all - at } else { at };
                    if pattern.matches(part(cut), &mut self.fuel)? {
                        return Ok(rest(cut).to_vec());
                    }
                }
                value
            }
            Operation::Replace { place, pattern, replacement } => {
                let marked = self.marked(pattern)?;
                let replacement = self.single(replacement)?;
                self.replace(*place, &marked, &replacement, &value)?
            }
            Operation::Slice { offset, length } => {
                let text = self.single(offset)?;
                let offset = self.arithmetic(&text)?;
                let length = match length {
                    Some(word) => {
                        let text = self.single(word)?;
                        Some(self.arithmetic(&text)?)
                    }
                    None => None,
                };
                slice(&value, offset, length)
            }
            Operation::Case { upper, all } => {
                let turned: String = String::from_utf8_lossy(&value)
                    .chars()
                    .enumerate()
                    .map(|(at, c)| match (*all || at == 0, upper) {
                        (false, _) => c,
                        (true, true) => c.to_uppercase().next().unwrap_or(c),
                        (true, false) => c.to_lowercase().next().unwrap_or(c),
                    })
                    .collect();
                turned.into_bytes()
            }
        })
    }

    /// `${x/pattern/replacement}`: the longest match at the leftmost place.
    fn replace(
        &mut self,
        place: ReplacePlace,
        pattern: &Marked,
        replacement: &[u8],
        value: &[u8],
    ) -> Result<Vec<u8>, Stop> {
        if pattern.text.is_empty() && matches!(place, ReplacePlace::First | ReplacePlace::All) {
            return Ok(value.to_vec());
        }
        let compiled = Pattern::new(pattern);
        let mut out = Vec::new();
        let mut at = 0;
        'places: while at <= value.len() {
            let starts = match place {
                ReplacePlace::Start => at == 0,
                _ => true,
            };
            for end in (at..=value.len()).rev() {
                let allowed = starts && (place != ReplacePlace::End || end == value.len());
                if !allowed || (end == at && !matches!(place, ReplacePlace::Start | ReplacePlace::End)) {
                    break;
                }
                if compiled.matches(&value[at..end], &mut self.fuel)? {
                    self.fuel.burn(replacement.len() as u64)?;
                    out.extend_from_slice(replacement);
                    at = end;
                    if place == ReplacePlace::All {
                        continue 'places;
                    }
                    out.extend_from_slice(&value[at..]);
                    return Ok(out);
                }
                if place == ReplacePlace::End {
                    break;
                }
            }
            if let Some(&byte) = value.get(at) {
                out.push(byte);
            }
            at += 1;
        }
        Ok(out)
    }

    /// The files that a pattern names, sorted; none when nothing fits.
    fn file_names(&mut self, pattern: &Marked) -> Result<Vec<Vec<u8>>, Stop> {
        let mut components = Vec::new();
        let mut from = 0;
        for at in 0..=pattern.text.len() {
            if at == pattern.text.len() || pattern.text[at] == b'/' {
                components.push(pattern.slice(from, at));
                from = at + 1;
            }
        }
        let mut found: Vec<Vec<u8>> = vec![Vec::new()];
        let mut certain = true;
        for (at, component) in components.iter().enumerate() {
            let last = at + 1 == components.len();
            let mut next = Vec::new();
            for prefix in found {
                if !component.has_pattern() {
                    let mut path = prefix;
                    path.extend_from_slice(&component.text);
                    next.push(path);
                    continue;
                }
                let directory = self.absolute(if prefix.is_empty() { b"." } else { &prefix });
                let Some(names) = self.world.list(&directory)? else { continue };
                let compiled = Pattern::new(component);
                let hidden = component.text.first() == Some(&b'.');
                for name in names {
                    self.fuel.burn(1)?;
                    if (name.first() == Some(&b'.')) == hidden && compiled.matches(&name, &mut self.fuel)? {
                        next.push([prefix.as_slice(), &name].concat());
                    }
                }
            }
            certain = component.has_pattern() || (certain && component.text.is_empty());
            if !last {
                for path in &mut next {
                    path.push(b'/');
                }
            }
            self.fuel.burn(next.iter().map(|p| p.len() as u64).sum())?;
            found = next;
        }
        if !certain {
            let mut existing = Vec::new();
            for path in found {
                if self.world.facts(&self.absolute(&path), false)?.is_some() {
                    existing.push(path);
                }
            }
            found = existing;
        }
        Ok(found)
    }
}

/// Whether a word reads `NAME=…` before anything is expanded.
fn is_assignment(word: &Word) -> bool {
    let Some(Part::Literal(text)) = word.0.first() else { return false };
    let Some(end) = text.iter().position(|&b| b == b'=') else { return false };
    is_name(text[..end].strip_suffix(b"+").unwrap_or(&text[..end]))
}

/// `${x:offset:length}`, counted in characters.
fn slice(value: &[u8], offset: i64, length: Option<i64>) -> Vec<u8> {
    let text = String::from_utf8_lossy(value);
    let count = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let from = if offset < 0 { count.saturating_add(offset) } else { offset };
    if from < 0 || from > count {
        return Vec::new();
    }
    let end = match length {
        None => count,
        Some(length) if length < 0 => count.saturating_add(length),
        Some(length) => from.saturating_add(length).min(count),
    };
    let take = usize::try_from(end.saturating_sub(from)).unwrap_or(0);
    let skip = usize::try_from(from).unwrap_or(0);
    text.chars().skip(skip).take(take).collect::<String>().into_bytes()
}
