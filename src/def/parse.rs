//! What each part of a definition file means.

use super::error::{DefError, Problem};
use super::files::transfer;
use super::json;
use super::split::{Line, RawSection, RawStage, lines, split};
use super::template::Variables;
use super::{App, BuildArgs, Definition, Files, Header, Key, Script, SectionName, Stage, Transfer};
use std::collections::BTreeSet;

/// Understands a definition file.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(text: &[u8], given: &BuildArgs) -> Result<Definition, DefError> {
    let lines = lines(text)?;
    understand(&split(&lines)?, given)
}

/// Understands a definition in JSON: what Apptainer writes of a definition (its `Definition`), or a list of such, one for each
/// stage. Errors tell the line of the definition file that says the same, which is what the image keeps.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_json(text: &[u8], given: &BuildArgs) -> Result<Definition, DefError> {
    let written = json::write(text)?;
    let lines = lines(written.text.as_bytes())?;
    understand(&written.stages(&lines), given)
}

fn understand(raw: &[RawStage], given: &BuildArgs) -> Result<Definition, DefError> {
    let mut parser = Parser { used: BTreeSet::new(), warnings: Vec::new(), kept: Vec::new() };
    let mut stages: Vec<Stage> = Vec::new();
    for stage in raw {
        let parsed = parser.stage(stage, given, &stages)?;
        stages.push(parsed);
    }
    let unused_arguments = Variables::unused(given, &parser.used);
    Ok(Definition { stages, text: parser.kept, unused_arguments, warnings: parser.warnings })
}

struct Parser {
    /// Names of all templates.
    used: BTreeSet<String>,
    warnings: Vec<(u32, String)>,
    /// The text that the image keeps.
    kept: Vec<u8>,
}

/// The lines of a section with their templates filled in.
struct Lines<'a> {
    lines: Vec<(Line<'a>, Vec<u8>)>,
    holds_secret: bool,
}

impl Parser {
    fn stage(&mut self, raw: &RawStage, given: &BuildArgs, earlier: &[Stage]) -> Result<Stage, DefError> {
        let variables = Variables::of(raw, given)?;
        self.keep(raw, &variables)?;
        let mut stage = Stage { header: self.header(raw, &variables, earlier)?, ..Stage::default() };
        for section in &raw.sections {
            self.section(section, &variables, earlier, &mut stage)?;
        }
        Ok(stage)
    }

    /// Adds the stage's text to what the image keeps.
    fn keep(&mut self, raw: &RawStage, variables: &Variables) -> Result<(), DefError> {
        let sections = raw.sections.iter().flat_map(|section| std::iter::once(&section.line).chain(&section.lines));
        for line in raw.header.iter().chain(sections) {
            self.kept.extend(variables.redact(line)?);
            self.kept.push(b'\n');
        }
        Ok(())
    }

    fn header(&mut self, raw: &RawStage, variables: &Variables, earlier: &[Stage]) -> Result<Header, DefError> {
        let mut header = Header::default();
        let mut said = raw.header.iter().filter(|line| line.first_word().is_some() && !line.is_comment());
        let first = raw.header.iter().find(|line| line.first_word().is_some() && !line.is_comment());
        while let Some(line) = said.next() {
            let filled = variables.fill(line, &mut self.used)?.text;
            let start = filled.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(0);
            let filled = without_comment(&filled);
            let colon = filled.iter().position(|&b| b == b':').ok_or_else(|| line.error(start, Problem::NoColon))?;
            let key_text = String::from_utf8_lossy(filled[..colon].trim_ascii()).into_owned();
            let key = Key::parse(&key_text).ok_or_else(|| {
                let meant = Key::nearest(&key_text);
                line.error(start, Problem::UnknownKey { key: key_text.clone(), meant })
            })?;
            let mut value = filled[colon + 1..].trim_ascii().to_vec();
            while let Some(part) = value.strip_suffix(b"\\") {
                let mut joined = part.trim_ascii_end().to_vec();
                if let Some(next) = said.next() {
                    joined.push(b' ');
                    let next = variables.fill(next, &mut self.used)?.text;
                    joined.extend_from_slice(without_comment(&next).trim_ascii());
                }
                value = joined;
            }
            let value = String::from_utf8_lossy(&value).into_owned();
            if key.as_str() == "stage" && earlier.iter().any(|stage| stage.name() == Some(&value)) {
                return Err(line.error(start, Problem::SameStage { name: value }));
            }
            header.set(key, value);
        }
        match (header.get("bootstrap"), first) {
            (None, Some(first)) => Err(first.error(0, Problem::NoBootstrap)),
            _ => Ok(header),
        }
    }

    fn section(
        &mut self,
        section: &RawSection,
        variables: &Variables,
        earlier: &[Stage],
        stage: &mut Stage,
    ) -> Result<(), DefError> {
        let filled = self.fill(section, variables)?;
        let name = variables.fill(&section.line, &mut self.used)?;
        let arguments = without_comment(name.text.get(section.arguments_at..).unwrap_or_default());
        let arguments = String::from_utf8_lossy(arguments.trim_ascii()).into_owned();
        if section.name.is_kept() && (filled.holds_secret || name.holds_secret) {
            let text = format!("`%{}` writes a secret build argument into the image", section.name.as_str());
            self.warnings.push((section.line.number, text));
        }
        if section.name.is_of_app() {
            let app = app_named(stage, section, &arguments)?;
            return self.app_section(section, filled, app);
        }
        let script = || script_of(section, &filled, arguments.clone());
        match section.name {
            SectionName::Pre => add_in_order(&mut stage.pre, script()),
            SectionName::Setup => add_in_order(&mut stage.setup, script()),
            SectionName::Post => add_in_order(&mut stage.post, script()),
            SectionName::Test => add(&mut stage.test, script()),
            SectionName::Runscript => add(&mut stage.runscript, script()),
            SectionName::Startscript => add(&mut stage.startscript, script()),
            SectionName::Environment => add(&mut stage.environment, script()),
            SectionName::Help => add(&mut stage.help, script()),
            SectionName::Labels => stage.labels.extend(labels(&filled)),
            SectionName::Files => {
                let from = stage_of_files(section, &arguments, earlier)?;
                let transfers = transfers(&filled)?;
                stage.files.push(Files { from, transfers, line: section.line.number });
            }
            // Read before everything else; the sections of apps were taken above.
            _ => {}
        }
        Ok(())
    }

    fn app_section(&mut self, section: &RawSection, filled: Lines, app: &mut App) -> Result<(), DefError> {
        let script = script_of(section, &filled, String::new());
        match section.name {
            SectionName::AppInstall => add(&mut app.install, script),
            SectionName::AppRun => add(&mut app.run, script),
            SectionName::AppStart => add(&mut app.start, script),
            SectionName::AppTest => add(&mut app.test, script),
            SectionName::AppEnv => add(&mut app.environment, script),
            SectionName::AppHelp => add(&mut app.help, script),
            SectionName::AppLabels => app.labels.extend(labels(&filled)),
            _ => app.files.extend(transfers(&filled)?),
        }
        Ok(())
    }

    /// Fills in the templates of a section's lines, and looks for what was probably not meant.
    fn fill<'a>(&mut self, section: &RawSection<'a>, variables: &Variables) -> Result<Lines<'a>, DefError> {
        let mut filled = Lines { lines: Vec::with_capacity(section.lines.len()), holds_secret: false };
        for line in &section.lines {
            if let Some(name) = indented_section(line) {
                let text = format!("an indented `%{name}` is a line of `%{}`, not a section", section.name.as_str());
                self.warnings.push((line.number, text));
            }
            // What `%arguments` says was read before; a default that nothing uses may lack values.
            if section.name == SectionName::Arguments {
                continue;
            }
            let text = variables.fill(line, &mut self.used)?;
            filled.holds_secret |= text.holds_secret;
            filled.lines.push((*line, text.text));
        }
        Ok(filled)
    }
}

/// A `#` at the beginning or after a blank begins a comment; one inside a word (an address) does not.
fn without_comment(text: &[u8]) -> &[u8] {
    let is_begin = |&at: &usize| text[at] == b'#' && (at == 0 || text[at - 1].is_ascii_whitespace());
    (0..text.len()).find(is_begin).map_or(text, |at| &text[..at])
}

fn indented_section(line: &Line) -> Option<&'static str> {
    let (at, rest) = line.first_word()?;
    let rest = rest.strip_prefix(b"%").filter(|_| at > 0)?;
    let length = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
    SectionName::parse(std::str::from_utf8(&rest[..length]).ok()?).map(SectionName::as_str)
}

fn script_of(section: &RawSection, filled: &Lines, arguments: String) -> Script {
    let blank = |(_, text): &&(Line, Vec<u8>)| text.trim_ascii().is_empty();
    let kept = filled.lines.len() - filled.lines.iter().rev().take_while(blank).count();
    let mut text = Vec::new();
    for (_, line) in &filled.lines[..kept] {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    Script { arguments, text, line: section.line.number, holds_secret: filled.holds_secret }
}

/// Adds a section of the same name: its lines follow, its arguments count.
fn add(scripts: &mut Option<Script>, script: Script) {
    match scripts {
        None => *scripts = Some(script),
        Some(first) => join(first, script),
    }
}

/// Adds a section to those that run one after another: one script with the last, where their arguments agree.
fn add_in_order(scripts: &mut Vec<Script>, script: Script) {
    match scripts.last_mut().filter(|last| last.arguments == script.arguments) {
        Some(last) => join(last, script),
        None => scripts.push(script),
    }
}

fn join(first: &mut Script, next: Script) {
    first.text.extend(next.text);
    first.holds_secret |= next.holds_secret;
    if !next.arguments.is_empty() {
        first.arguments = next.arguments;
    }
}

/// `name value` lines: the name is the first word, the rest its value as it stands.
fn labels(filled: &Lines) -> Vec<(String, String)> {
    let lines = filled.lines.iter().map(|(_, text)| text.trim_ascii());
    lines
        .filter(|text| !text.is_empty() && text[0] != b'#')
        .map(|text| {
            let length = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
            let (name, value) = text.split_at(length);
            let string = |bytes: &[u8]| String::from_utf8_lossy(bytes.trim_ascii()).into_owned();
            (string(name), string(value))
        })
        .collect()
}

fn transfers(filled: &Lines) -> Result<Vec<Transfer>, DefError> {
    filled.lines.iter().filter_map(|(line, text)| transfer(line, text).transpose()).collect()
}

fn stage_of_files(section: &RawSection, arguments: &str, earlier: &[Stage]) -> Result<Option<String>, DefError> {
    let column = section.arguments_at + 1;
    let mut words = arguments.split_ascii_whitespace();
    let name = match (words.next(), words.next(), words.next()) {
        (None, ..) => return Ok(None),
        (Some(from), Some(name), None) if from.eq_ignore_ascii_case("from") => name,
        _ => return Err(section.line.error(column, Problem::FilesArguments)),
    };
    let known: Vec<String> = earlier.iter().filter_map(|stage| stage.name().map(str::to_owned)).collect();
    match known.iter().any(|stage| stage == name) {
        true => Ok(Some(name.to_owned())),
        false => Err(section.line.error(column, Problem::UnknownStage { name: name.to_owned(), known })),
    }
}

/// The app that a section names; it is made where it is named first.
fn app_named<'s>(stage: &'s mut Stage, section: &RawSection, arguments: &str) -> Result<&'s mut App, DefError> {
    let wrong = |problem| section.line.error(section.arguments_at + usize::from(!arguments.is_empty()), problem);
    let name = arguments.split_ascii_whitespace().next();
    let name = name.ok_or_else(|| wrong(Problem::NoAppName { section: section.name.as_str() }))?;
    // The name becomes a directory, and a part of names of variables.
    let is_good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b)) && !name.starts_with('.');
    if !is_good || name.len() > 200 {
        return Err(wrong(Problem::BadAppName { name: name.to_owned() }));
    }
    let index = match stage.apps.iter().position(|app| app.name == name) {
        Some(index) => index,
        None => {
            stage.apps.push(App { name: name.to_owned(), ..App::default() });
            stage.apps.len() - 1
        }
    };
    Ok(&mut stage.apps[index])
}
