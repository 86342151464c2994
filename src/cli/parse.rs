//! From words and variables to what was said. Pure: nothing is looked up, nothing printed.
//!
//! The grammar is the one that Apptainer's users know. Flags stand before the words of a verb; for action verbs everything
//! after the image belongs to the payload, for others flags may follow words as well.
//!
//! ```text
//! --flag VALUE   --flag=VALUE   --switch   --switch=false   -Ce   -B VALUE   -BVALUE   -B=VALUE   --
//! ```
//!
//! A variable speaks for its flag where the command line does not; `BIND` and `MOUNT` add to what the command line says.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::applet::Applet;
use super::flags::{Command, Does, Flag, GLOBAL, LaterVariable, Pair, Rest, Said, Takes};
use crate::conf::nearest::nearest;
use crate::env_names;
use crate::report::{EXIT_USAGE, Failure};

/// The verb and the groups above it, the program itself first.
pub type Path = Vec<&'static Command>;

/// What a command line asks for, of the last verb of the path.
#[derive(Debug)]
pub enum Order {
    /// Do it.
    Do(Box<Said>),
    /// Print its help.
    Help,
    /// Print the version, as `--version` does.
    Version,
}

/// Something to tell the user before the verb starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Info(String),
    Warning(String),
}

/// A command line, understood or not.
#[derive(Debug)]
pub struct Parsed {
    /// The level of messages and whether colours may be used, as far as the command line was understood.
    pub level: i32,
    pub colour: bool,
    pub notes: Vec<Note>,
    /// The verb as far as it was understood.
    pub path: Path,
    pub order: Result<Order, CommandLineError>,
}

/// Why a command line can't be followed.
#[derive(Debug, PartialEq, Eq)]
pub enum CommandLineError {
    NoCommand { path: String },
    UnknownCommand { word: String, path: String, meant: Option<String> },
    UnknownFlag { flag: String, path: String, meant: Option<String> },
    MissingValue { flag: String },
    BadValue { flag: String, value: String, why: String },
    BadVariable { name: String, value: String, why: String },
    MissingWords { path: String, missing: Vec<&'static str> },
    TooManyWords { path: String, first: String },
    LaterFlag { flag: String, path: String, instead: &'static str },
    LaterCommand { path: String, instead: &'static str },
}

impl fmt::Display for CommandLineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommand { path } => write!(f, "`{path}` needs a command"),
            Self::UnknownCommand { word, path, .. } => write!(f, "`{path}` has no command `{word}`"),
            Self::UnknownFlag { flag, path, .. } => write!(f, "`{path}` has no option `{flag}`"),
            Self::MissingValue { flag } => write!(f, "the option `{flag}` needs a value"),
            Self::BadValue { flag, value, why } => write!(f, "cannot use `{value}` for the option `{flag}`: {why}"),
            Self::BadVariable { name, value, why } => {
                write!(f, "cannot use `{value}` of the environment variable `{name}`: {why}")
            }
            Self::MissingWords { path, missing } => write!(f, "`{path}` needs {}", missing.join(" and ")),
            Self::TooManyWords { path, first } => write!(f, "`{path}` has no use for the further word `{first}`"),
            Self::LaterFlag { flag, path, .. } => {
                write!(f, "the option `{flag}` of `{path}` is not there yet in this version")
            }
            Self::LaterCommand { path, .. } => write!(f, "the command `{path}` is not there yet in this version"),
        }
    }
}

impl crate::report::Hint for CommandLineError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::UnknownCommand { meant: Some(meant), .. } | Self::UnknownFlag { meant: Some(meant), .. } => {
                vec![format!("Did you mean `{meant}`?")]
            }
            Self::LaterFlag { instead, .. } | Self::LaterCommand { instead, .. } if !instead.is_empty() => {
                vec![(*instead).to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

impl CommandLineError {
    /// Tells whether the command line itself is at fault, so that its usage is worth showing.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::LaterFlag { .. } | Self::LaterCommand { .. } | Self::BadVariable { .. })
    }

    /// Tells whether a list of the verbs helps to find the right one.
    pub fn wants_list(&self) -> bool {
        matches!(self, Self::NoCommand { .. } | Self::UnknownCommand { meant: None, .. })
    }

    /// Returns the failure for it: exit code 1 for usage, 255 for what is not there yet or comes from the environment.
    pub fn failure(&self) -> Failure {
        let failure = crate::report::failure(self);
        if self.is_usage() { Failure { code: EXIT_USAGE, ..failure } } else { failure }
    }
}

/// Understands a command line. `words` are those after `argv[0]`; `variables` may be the whole environment.
pub fn parse(
    root: &'static Command,
    applet: Applet,
    words: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Parsed {
    let leading = applet.leading_words().iter().map(OsString::from);
    let mut parser = Parser {
        applet,
        path: vec![root],
        words: leading.chain(words).map(OsString::into_vec).collect(),
        said: Said { applet, ..Said::default() },
        given: Vec::new(),
        notes: Vec::new(),
    };
    let ending = parser.parse(variables);
    let global = &parser.said.global;
    let (level, colour) = (global.level(), !global.no_colour);
    let order = ending.map(|ending| match ending {
        Ending::Do => Order::Do(Box::new(parser.said)),
        Ending::Help => Order::Help,
        Ending::Version => Order::Version,
    });
    Parsed { level, colour, notes: parser.notes, path: parser.path, order }
}

struct Parser {
    applet: Applet,
    path: Path,
    /// The words not yet read.
    words: VecDeque<Vec<u8>>,
    said: Said,
    /// Flags that the command line gave: their variables do not count.
    given: Vec<&'static Flag>,
    notes: Vec<Note>,
}

enum Ending {
    Do,
    Help,
    Version,
}

/// What one word led to.
enum Step {
    Go,
    End(Ending),
}

impl Parser {
    fn parse(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Ending, CommandLineError> {
        let variables = Variables::of(variables);
        // Global variables count even where the command line is not understood: `SIFU_NOCOLOR` for its very error.
        let ending = self.read_words();
        self.read_variables(GLOBAL, &variables)?;
        self.said.global.inherited_level = variables.level();
        match ending? {
            Ending::Do => {}
            other => return Ok(other),
        }
        if self.path.len() > 1 && !self.command().commands().is_empty() {
            // A group alone explains itself, as with Apptainer.
            return Ok(Ending::Help);
        }
        self.check_words()?;
        let command = self.command();
        for table in command.flags {
            self.read_variables(table, &variables)?;
        }
        Ok(Ending::Do)
    }

    fn command(&self) -> &'static Command {
        self.path[self.path.len() - 1]
    }

    fn path_text(&self) -> String {
        path_text(self.applet, &self.path)
    }

    fn read_words(&mut self) -> Result<Ending, CommandLineError> {
        let mut flags_ended = false;
        while let Some(word) = self.words.pop_front() {
            let step = if flags_ended || word.len() < 2 || word[0] != b'-' {
                self.word(word)?
            } else if word == b"--" {
                flags_ended = true;
                Step::Go
            } else if let Some(long) = word.strip_prefix(b"--") {
                self.long_flag(long)?
            } else {
                self.short_flags(&word[1..])?
            };
            if let Step::End(ending) = step {
                return Ok(ending);
            }
        }
        Ok(Ending::Do)
    }

    /// A word that is no flag: a verb's name, or a word of the verb.
    fn word(&mut self, word: Vec<u8>) -> Result<Step, CommandLineError> {
        let command = self.command();
        if !command.commands().is_empty() {
            let Some(next) = command.find(&word) else {
                let names = command.commands().iter().filter(|c| !c.hidden).map(|c| c.name);
                let word = lossy(&word);
                let meant = nearest(&word, names).map(str::to_owned);
                return Err(CommandLineError::UnknownCommand { word, path: self.path_text(), meant });
            };
            self.path.push(next);
            return if next.rest == Rest::Raw { self.raw(next) } else { Ok(Step::Go) };
        }
        self.said.words.push(OsString::from_vec(word));
        if let Rest::Payload(_) = command.rest {
            self.take_the_rest();
        }
        Ok(Step::Go)
    }

    /// All that follows a verb whose flags we don't read.
    fn raw(&mut self, command: &Command) -> Result<Step, CommandLineError> {
        let Does::Later(instead) = command.does else {
            self.take_the_rest();
            return Ok(Step::Go);
        };
        if self.words.iter().any(|word| word == b"--help" || word == b"-h") {
            return Ok(Step::End(Ending::Help));
        }
        Err(CommandLineError::LaterCommand { path: self.path_text(), instead })
    }

    fn take_the_rest(&mut self) {
        self.said.words.extend(self.words.drain(..).map(OsString::from_vec));
    }

    fn long_flag(&mut self, long: &[u8]) -> Result<Step, CommandLineError> {
        let (name, value) = match long.iter().position(|&byte| byte == b'=') {
            Some(at) => (&long[..at], Some(long[at + 1..].to_vec())),
            None => (long, None),
        };
        let shown = format!("--{}", lossy(name));
        let Some(flag) = self.flags().find(|flag| flag.has_name(name)) else {
            match name {
                b"help" => return Ok(Step::End(Ending::Help)),
                // Callers of a runtime ask it for its version, not sifu for that of `oci`.
                b"version" if self.path.len() == 1 || (self.applet == Applet::Oci && self.path.len() == 2) => {
                    return Ok(Step::End(Ending::Version));
                }
                _ => {}
            }
            let name = lossy(name);
            let names = self.flags().filter(|flag| flag.is_shown()).map(|flag| flag.name);
            let meant = nearest(&name, names).map(|name| format!("--{name}"));
            return Err(CommandLineError::UnknownFlag { flag: shown, path: self.path_text(), meant });
        };
        let value = match value {
            Some(value) => value,
            None if flag.value_name().is_none() => b"true".to_vec(),
            None => self.words.pop_front().ok_or_else(|| CommandLineError::MissingValue { flag: shown.clone() })?,
        };
        self.give(flag, shown, value)
    }

    fn short_flags(&mut self, cluster: &[u8]) -> Result<Step, CommandLineError> {
        let mut rest = cluster;
        while let Some((&letter, tail)) = rest.split_first() {
            let shown = format!("-{}", char::from(letter));
            let Some(flag) = self.flags().find(|flag| flag.short == Some(char::from(letter))) else {
                if letter == b'h' {
                    return Ok(Step::End(Ending::Help));
                }
                let flag = if letter.is_ascii() { shown } else { format!("-{}", lossy(rest)) };
                return Err(CommandLineError::UnknownFlag { flag, path: self.path_text(), meant: None });
            };
            if let Some(value) = tail.strip_prefix(b"=") {
                return self.give(flag, shown, value.to_vec());
            }
            if flag.value_name().is_some() {
                let value = if tail.is_empty() { self.words.pop_front() } else { Some(tail.to_vec()) };
                let value = value.ok_or_else(|| CommandLineError::MissingValue { flag: shown.clone() })?;
                return self.give(flag, shown, value);
            }
            self.give(flag, shown, b"true".to_vec())?;
            rest = tail;
        }
        Ok(Step::Go)
    }

    /// The flags in force: the verb's own, which may take a global one's short name, then the global ones.
    fn flags(&self) -> impl Iterator<Item = &'static Flag> + use<> {
        self.command().own_flags().chain(GLOBAL.iter())
    }

    fn give(&mut self, flag: &'static Flag, shown: String, value: Vec<u8>) -> Result<Step, CommandLineError> {
        if let Takes::Later { instead, .. } = flag.takes {
            return Err(CommandLineError::LaterFlag { flag: shown, path: self.path_text(), instead });
        }
        set(&mut self.said, flag, &value).map_err(|why| CommandLineError::BadValue {
            flag: shown,
            value: lossy(&value),
            why,
        })?;
        self.given.push(flag);
        Ok(Step::Go)
    }

    fn check_words(&self) -> Result<(), CommandLineError> {
        let command = self.command();
        let words = &self.said.words;
        if !command.commands().is_empty() {
            return Err(CommandLineError::NoCommand { path: self.path_text() });
        }
        if words.len() < command.words.len() {
            let missing = command.words[words.len()..].to_vec();
            return Err(CommandLineError::MissingWords { path: self.path_text(), missing });
        }
        if command.rest == Rest::Nothing && words.len() > command.words.len() {
            let first = lossy(words[command.words.len()].as_bytes());
            return Err(CommandLineError::TooManyWords { path: self.path_text(), first });
        }
        Ok(())
    }

    /// Lets variables speak for the flags of a table that the command line did not give.
    fn read_variables(&mut self, flags: &'static [Flag], variables: &Variables) -> Result<(), CommandLineError> {
        if variables.0.is_empty() {
            return Ok(());
        }
        for flag in flags {
            let adds = matches!(flag.takes, Takes::Each { .. });
            if !adds && self.given.iter().any(|given| std::ptr::eq(*given, flag)) {
                continue;
            }
            for key in flag.keys {
                let Some(variable) = variables.find(key, self.applet, &mut self.notes) else { continue };
                self.take_variable(flag, variable)?;
                if !adds {
                    break;
                }
            }
        }
        Ok(())
    }

    fn take_variable(&mut self, flag: &'static Flag, variable: &Variable) -> Result<(), CommandLineError> {
        let bad = |why| CommandLineError::BadVariable { name: variable.name(), value: lossy(&variable.value), why };
        match &flag.takes {
            Takes::Later { value, variable: LaterVariable::Warn, .. } => {
                // A switch that is off asks for nothing.
                if value.is_some() || switch(&variable.value).map_err(bad)? {
                    self.notes.push(Note::Warning(format!(
                        "the environment variable `{}` has no effect: the option `--{}` is not there yet in this version",
                        variable.name(),
                        flag.name
                    )));
                }
                Ok(())
            }
            Takes::Later { .. } => Ok(()),
            Takes::Each { set, environment_separator: Some(separator), .. } => {
                for part in variable.value.split(|byte| byte == separator).filter(|part| !part.is_empty()) {
                    set(&mut self.said, part.to_vec());
                }
                Ok(())
            }
            Takes::List(_, set) => {
                let words = comma_list(&variable.value).map_err(bad)?;
                set(&mut self.said, words.iter().map(|word| word.trim_ascii().to_vec()).collect());
                Ok(())
            }
            _ => set(&mut self.said, flag, &variable.value).map_err(bad),
        }
    }
}

/// Returns the words that lead to a verb: `sifu config global`.
pub fn path_text(applet: Applet, path: &[&'static Command]) -> String {
    // `run-singularity` is a whole verb: its users never typed `run`.
    let below = if applet == Applet::RunSingularity { 2 } else { 1 };
    let names = path.iter().skip(below).map(|command| command.name);
    std::iter::once(applet.name()).chain(names).collect::<Vec<_>>().join(" ")
}

/// The prefixed variables of an environment.
struct Variables(Vec<Variable>);

struct Variable {
    /// The place of its prefix in [`env_names::PREFIXES`].
    rank: usize,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Variable {
    fn name(&self) -> String {
        format!("{}{}", env_names::PREFIXES[self.rank], lossy(&self.key))
    }
}

impl Variables {
    /// Keeps the variables with one of our prefixes; an empty value counts as none.
    fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut kept: Vec<Variable> = variables
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(name, value)| {
                let (rank, key) = env_names::key_of(name.as_bytes())?;
                Some(Variable { rank, key: key.to_vec(), value: value.into_vec() })
            })
            .collect();
        kept.sort_by_key(|variable| variable.rank);
        Self(kept)
    }

    /// Returns the strongest variable of a key, and notes what users should know about the choice.
    fn find(&self, key: &str, applet: Applet, notes: &mut Vec<Note>) -> Option<&Variable> {
        let mut all = self.0.iter().filter(|variable| variable.key == key.as_bytes());
        let first = all.next()?;
        for other in all.filter(|other| other.value != first.value) {
            notes.push(Note::Warning(format!(
                "the environment variables `{}` and `{}` differ, the first one counts",
                first.name(),
                other.name()
            )));
        }
        // Who calls the program `singularity` means the old names.
        let old = env_names::PREFIXES[first.rank] == env_names::OLD_PREFIX;
        if old && !matches!(applet, Applet::Singularity | Applet::RunSingularity) {
            notes.push(Note::Info(format!(
                "the environment variable `{}` is read, its present name is `{}{key}`",
                first.name(),
                env_names::PREFIXES[1]
            )));
        }
        Some(first)
    }

    /// Returns the level of messages that an outer sifu hands down.
    fn level(&self) -> Option<i32> {
        let variable = self.0.iter().find(|variable| variable.key == env_names::MESSAGE_LEVEL.as_bytes())?;
        let level: i32 = std::str::from_utf8(&variable.value).ok()?.trim().parse().ok()?;
        Some(level.clamp(-3, 5))
    }
}

/// Writes a flag's value into what was said.
fn set(said: &mut Said, flag: &Flag, value: &[u8]) -> Result<(), String> {
    match &flag.takes {
        Takes::Switch(set) => set(said, switch(value)?),
        Takes::Text(_, set) | Takes::Each { set, .. } => set(said, value.to_vec()),
        Takes::List(_, set) => set(said, comma_list(value)?),
        Takes::Pairs(_, set) => set(said, pairs(value)?),
        Takes::Checked(_, set) => set(said, value)?,
        Takes::Later { instead, .. } => return Err((*instead).to_owned()),
    }
    Ok(())
}

/// Reads a truth value: `1` and `true`, `0` and `false`, and their usual spellings.
fn switch(value: &[u8]) -> Result<bool, String> {
    match value {
        b"1" | b"t" | b"T" | b"true" | b"True" | b"TRUE" => Ok(true),
        b"0" | b"f" | b"F" | b"false" | b"False" | b"FALSE" => Ok(false),
        _ => Err("use 1 or true, 0 or false".into()),
    }
}

/// Splits a comma list. A word in double quotes may hold commas; two quotes in it stand for one.
fn comma_list(value: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut rest = value;
    loop {
        let word;
        (word, rest) = match rest.strip_prefix(b"\"") {
            Some(quoted) => quoted_word(quoted)?,
            None => {
                let end = rest.iter().position(|&byte| byte == b',').unwrap_or(rest.len());
                (rest[..end].to_vec(), &rest[end..])
            }
        };
        if !word.is_empty() {
            words.push(word);
        }
        match rest.split_first() {
            None => return Ok(words),
            Some((b',', tail)) => rest = tail,
            Some(_) => return Err("only a comma may follow a closing quote".into()),
        }
    }
}

/// Reads a quoted word after its opening quote; returns it and what follows the closing one.
fn quoted_word(text: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut word = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if text[at] != b'"' {
            word.push(text[at]);
            at += 1;
        } else if text.get(at + 1) == Some(&b'"') {
            word.push(b'"');
            at += 2;
        } else {
            return Ok((word, &text[at + 1..]));
        }
    }
    Err("a quote is not closed".into())
}

/// Reads `NAME=VALUE,NAME=VALUE`. With a single equal sign the commas belong to the value, as Apptainer has it.
fn pairs(value: &[u8]) -> Result<Vec<Pair>, String> {
    let equals = value.iter().filter(|&&byte| byte == b'=').count();
    let whole = equals == 1 && !value.starts_with(b"\"");
    let words = if whole { vec![value.to_vec()] } else { comma_list(value)? };
    if words.is_empty() {
        return Err("a variable is set as NAME=VALUE".into());
    }
    words
        .into_iter()
        .map(|word| match word.iter().position(|&byte| byte == b'=') {
            Some(at) if at > 0 => Ok((word[..at].to_vec(), word[at + 1..].to_vec())),
            _ => Err(format!("`{}` is not of the form NAME=VALUE", lossy(&word))),
        })
        .collect()
}

fn lossy(bytes: &[u8]) -> String {
    OsStr::from_bytes(bytes).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::action_flags;
    use crate::cli::commands::ROOT;
    use crate::launch::request::{LaunchRequest, Verb};
    use proptest::strategy::Strategy;
    use std::time::Duration;

    /// Splits at blanks; `_` stands for an empty word.
    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(|word| OsString::from(if word == "_" { "" } else { word })).collect()
    }

    fn parse_words(words: Vec<OsString>, variables: &[(&str, &str)]) -> Parsed {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        parse(&ROOT, Applet::Sifu, words, variables)
    }

    fn parsed(line: &str, variables: &[(&str, &str)]) -> Parsed {
        parse_words(words(line), variables)
    }

    fn said(line: &str, variables: &[(&str, &str)]) -> Said {
        match parsed(line, variables).order {
            Ok(Order::Do(said)) => *said,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn request(line: &str, variables: &[(&str, &str)]) -> LaunchRequest {
        action_flags::request(Verb::Exec, said(line, variables))
    }

    /// What `change` makes of the plain request for `true` in `a.sif` is what the line asks for.
    fn check(line: &str, variables: &[(&str, &str)], change: impl FnOnce(&mut LaunchRequest)) {
        let mut expected = LaunchRequest::new(Verb::Exec, "a.sif", words("true"));
        change(&mut expected);
        assert_eq!(request(line, variables), expected, "{line} {variables:?}");
    }

    fn check_error(line: &str, variables: &[(&str, &str)], code: u8, message: &str) {
        let error = parsed(line, variables).order.unwrap_err();
        assert_eq!((error.failure().code, error.to_string().as_str()), (code, message), "{line}");
    }

    fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<Pair> {
        pairs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_plain_line_asks_for_nothing_but_the_command() {
        check("exec a.sif true", &[], |_| ());
        check("exec -- a.sif true", &[], |_| ());
    }

    #[test]
    fn everything_after_the_image_is_the_payloads() {
        check("exec a.sif --help -v --bind /x:/y -- --env A=b _ -h", &[], |request| {
            request.arguments = words("--help -v --bind /x:/y -- --env A=b _ -h");
        });
        check("exec -e -- a.sif -- -e", &[], |request| {
            request.cleanenv = true;
            request.arguments = words("-- -e");
        });
    }

    #[test]
    fn arguments_that_are_no_text_arrive_as_they_are() {
        let odd = OsString::from_vec(b"\xff\xfe --\n".to_vec());
        let line = vec!["exec".into(), "-B".into(), odd.clone(), odd.clone(), odd.clone()];
        let Ok(Order::Do(said)) = parse_words(line, &[]).order else { panic!("not understood") };
        let request = action_flags::request(Verb::Exec, *said);
        assert_eq!((request.image, request.arguments), (odd.clone(), vec![odd.clone()]));
        assert_eq!(request.binds, [odd.into_vec()]);
    }

    #[test]
    fn values_follow_in_every_spelling() {
        for line in ["-B /a:/b", "-B/a:/b", "-B=/a:/b", "--bind /a:/b", "--bind=/a:/b", "-eB /a:/b --cleanenv=false"] {
            check(&format!("exec {line} a.sif true"), &[], |request| request.binds = bytes(&["/a:/b"]));
        }
        check("exec --home= a.sif true", &[], |request| request.home = Some(vec![]));
        check("exec --env A=b=c a.sif true", &[], |request| request.env = env(&[("A", "b=c")]));
    }

    #[test]
    fn switches_cluster_and_can_be_taken_back() {
        check("exec -cei a.sif true", &[], |request| {
            request.contain = true;
            request.cleanenv = true;
            request.ipc = true;
        });
        check("exec -ce=false a.sif true", &[], |request| request.contain = true);
        check("exec --contain --contain=0 a.sif true", &[], |_| ());
    }

    #[test]
    fn flags_that_stand_for_others_are_spelled_out() {
        let all = |request: &mut LaunchRequest| {
            request.contain = true;
            request.cleanenv = true;
            request.ipc = true;
            request.pid = true;
        };
        check("exec -C a.sif true", &[], all);
        check("exec --containall --no-pid a.sif true", &[], |request| {
            all(request);
            request.pid = false;
        });
        check("exec --compat a.sif true", &[], |request| {
            all(request);
            request.no_init = true;
            request.no_umask = true;
            request.no_eval = true;
            request.writable_tmpfs = true;
        });
        check("exec --hostname box a.sif true", &[], |request| {
            request.hostname = Some(b"box".to_vec());
            request.uts = true;
        });
        check("exec --network none a.sif true", &[], |request| {
            request.network = bytes(&["none"]);
            request.net = true;
        });
    }

    #[test]
    fn every_flag_with_a_value_reaches_its_field() {
        check(
            "exec -B a,b -B c --mount type=bind,src=/a,dst=/b --home h --no-mount tmp,home -S /s,/t -W w --cwd /d \
             --env-file e,f --no-env X,Y --app app --dns 1.1.1.1,8.8.8.8 --add-caps chown,CAP_KILL --drop-caps all \
             --security seccomp:p.json --runscript-timeout 90s --tmpdir /var/x -c a.sif true",
            &[],
            |request| {
                request.binds = bytes(&["a,b", "c"]);
                request.mounts = bytes(&["type=bind,src=/a,dst=/b"]);
                request.home = Some(b"h".to_vec());
                request.no_mount = bytes(&["tmp", "home"]);
                request.scratch = bytes(&["/s", "/t"]);
                request.workdir = Some("w".into());
                request.cwd = Some(b"/d".to_vec());
                request.env_files = words("e f");
                request.no_env = bytes(&["X", "Y"]);
                request.app = Some(b"app".to_vec());
                request.dns = bytes(&["1.1.1.1", "8.8.8.8"]);
                request.add_caps = bytes(&["chown", "CAP_KILL"]);
                request.drop_caps = bytes(&["all"]);
                request.security = bytes(&["seccomp:p.json"]);
                request.runscript_timeout = Some(Duration::from_secs(90));
                request.tmpdir = Some("/var/x".into());
                request.contain = true;
            },
        );
    }

    #[test]
    fn every_switch_reaches_its_field() {
        check(
            "exec --no-home -w --writable-tmpfs --unsquash -e --no-eval --no-umask -p --no-init -i --uts -u -n -f \
             --no-privs --strict a.sif true",
            &[],
            |request| {
                request.no_home = true;
                request.writable = true;
                request.writable_tmpfs = true;
                request.unsquash = true;
                request.cleanenv = true;
                request.no_eval = true;
                request.no_umask = true;
                request.pid = true;
                request.no_init = true;
                request.ipc = true;
                request.uts = true;
                request.userns = true;
                request.net = true;
                request.fakeroot = true;
                request.no_privs = true;
                request.strict = true;
            },
        );
    }

    #[test]
    fn pwd_is_cwd() {
        check("exec --pwd /d a.sif true", &[], |request| request.cwd = Some(b"/d".to_vec()));
    }

    #[test]
    fn shell_has_a_flag_of_its_own_that_takes_the_short_name_of_silent() {
        let said = said("shell -s /bin/zsh a.sif", &[]);
        assert_eq!(action_flags::request(Verb::Shell, said).shell, Some(b"/bin/zsh".to_vec()));
    }

    #[test]
    fn commas_in_quotes_belong_to_a_word() {
        assert_eq!(comma_list(br#"a,"b,c",d""e"#), Ok(bytes(&["a", "b,c", "d\"\"e"])));
        assert_eq!(comma_list(br#""say ""hi""","#), Ok(bytes(&["say \"hi\""])));
        assert_eq!(comma_list(b",,"), Ok(vec![]));
        assert_eq!(comma_list(br#""open"#).unwrap_err(), "a quote is not closed");
        assert_eq!(comma_list(br#""a"b"#).unwrap_err(), "only a comma may follow a closing quote");
    }

    #[test]
    fn variables_of_the_container_are_pairs() {
        let ok =
            |text: &str, expected: &[(&str, &str)]| assert_eq!(pairs(text.as_bytes()), Ok(env(expected)), "{text}");
        ok("A=1", &[("A", "1")]);
        ok("A=", &[("A", "")]);
        ok("A=1,B=2", &[("A", "1"), ("B", "2")]);
        ok("A=1,2,3", &[("A", "1,2,3")]);
        ok("\"A=1,2\",B=3", &[("A", "1,2"), ("B", "3")]);
        ok("\"A=1,2\"", &[("A", "1,2")]);
        ok("A=x\ny", &[("A", "x\ny")]);
        for text in ["FOO", "", "=1", "A=1,x,B=2", "A=1,=2"] {
            assert!(pairs(text.as_bytes()).unwrap_err().contains("NAME=VALUE"), "{text}");
        }
    }

    #[test]
    fn a_pair_without_an_equal_sign_is_a_usage_error() {
        check_error(
            "exec --env FOO a.sif true",
            &[],
            1,
            "cannot use `FOO` for the option `--env`: `FOO` is not of the form NAME=VALUE",
        );
    }

    #[test]
    fn variables_speak_for_flags_that_were_not_given() {
        check("exec a.sif true", &[("APPTAINER_CLEANENV", "1"), ("SIFU_PID", "true")], |request| {
            request.cleanenv = true;
            request.pid = true;
        });
        check("exec a.sif true", &[("APPTAINER_CLEANENV", "0"), ("APPTAINER_CONTAIN", "")], |_| ());
        check("exec --home b a.sif true", &[("APPTAINER_HOME", "a")], |request| request.home = Some(b"b".to_vec()));
        check("exec --cleanenv=false a.sif true", &[("APPTAINER_CLEANENV", "1")], |_| ());
        check("exec a.sif true", &[("APPTAINER_PWD", "/p"), ("APPTAINER_CWD", "/c")], |request| {
            request.cwd = Some(b"/c".to_vec());
        });
        check("exec a.sif true", &[("SIFU_NO_MOUNT", " tmp , home ")], |request| {
            request.no_mount = bytes(&["tmp", "home"]);
        });
        check("exec a.sif true", &[("BIND", "/x"), ("APPTAINERENV_BIND", "/x"), ("SIFU_", "/x")], |_| ());
    }

    #[test]
    fn binds_and_mounts_of_variables_are_added() {
        let variables = [("APPTAINER_BIND", "/a,/b"), ("APPTAINER_BINDPATH", "/c"), ("APPTAINER_MOUNT", "m1\nm2\n")];
        check("exec -B /d --mount m0 a.sif true", &variables, |request| {
            request.binds = bytes(&["/d", "/a,/b", "/c"]);
            request.mounts = bytes(&["m0", "m1", "m2"]);
        });
    }

    #[test]
    fn the_stronger_prefix_wins_and_says_so_where_they_differ() {
        let variables =
            [("SINGULARITY_HOME", "old"), ("APPTAINER_HOME", "new"), ("SIFU_APP", "x"), ("APPTAINER_APP", "x")];
        let parsed = parsed("exec a.sif true", &variables);
        let warning = "the environment variables `APPTAINER_HOME` and `SINGULARITY_HOME` differ, the first one counts";
        assert_eq!(parsed.notes, [Note::Warning(warning.into())]);
        assert_eq!(request("exec a.sif true", &variables).home, Some(b"new".to_vec()));
    }

    #[test]
    fn an_old_prefix_is_noted_unless_the_old_name_was_called() {
        let variables = || [("SINGULARITY_CLEANENV".into(), "1".into())];
        let notes = |applet| parse(&ROOT, applet, words("exec a.sif true"), variables()).notes;
        let note = "the environment variable `SINGULARITY_CLEANENV` is read, its present name is `APPTAINER_CLEANENV`";
        assert_eq!(notes(Applet::Sifu), [Note::Info(note.into())]);
        assert_eq!(notes(Applet::Singularity), []);
    }

    #[test]
    fn a_variable_that_cannot_be_understood_is_an_error() {
        check_error(
            "exec a.sif true",
            &[("APPTAINER_CONTAIN", "perhaps")],
            255,
            "cannot use `perhaps` of the environment variable `APPTAINER_CONTAIN`: use 1 or true, 0 or false",
        );
    }

    #[test]
    fn accelerators_are_asked_for_by_flags_and_variables() {
        let line = "exec --nv --gpus 0,2:1 --device a.com/b=x,a.com/b=y --cdi-dirs /d1,/d2 a.sif true";
        check(line, &[("APPTAINER_ROCM", "1"), ("APPTAINER_NO_NV", "1")], |request| {
            request.nv = true;
            request.no_nv = true;
            request.rocm = true;
            request.gpus = Some(b"0,2:1".to_vec());
            request.devices = vec![b"a.com/b=x".to_vec(), b"a.com/b=y".to_vec()];
            request.cdi_dirs = vec!["/d1".into(), "/d2".into()];
        });
    }

    #[test]
    fn flags_of_later_versions_fail_and_say_what_to_do() {
        check_error(
            "exec --intel-hpu a.sif true",
            &[],
            255,
            "the option `--intel-hpu` of `sifu exec` is not there yet in this version",
        );
        check_error(
            "exec -o d a.sif true",
            &[],
            255,
            "the option `-o` of `sifu exec` is not there yet in this version",
        );
        let failure = parsed("exec --intel-hpu a.sif true", &[]).order.unwrap_err().failure();
        assert_eq!(failure.hints, ["Bind the driver's libraries and devices with --bind."]);
    }

    #[test]
    fn variables_of_later_flags_warn_where_the_container_differs() {
        let notes = |name, value| parsed("exec a.sif true", &[(name, value)]).notes;
        let warning = "the environment variable `APPTAINER_INTEL_HPU` has no effect: the option `--intel-hpu` is not there yet in this version";
        assert_eq!(notes("APPTAINER_INTEL_HPU", "1"), [Note::Warning(warning.into())]);
        assert_eq!(notes("APPTAINER_INTEL_HPU", "0"), []);
        assert_eq!(notes("APPTAINER_DISABLE_CACHE", "1"), []);
    }

    #[test]
    fn global_flags_stand_before_the_verb_and_after_it() {
        for line in ["-d exec a.sif true", "exec -d a.sif true", "--debug --quiet exec a.sif true"] {
            check(line, &[], |request| request.level = 5);
        }
        check("-s --nocolor -c site.conf exec a.sif true", &[], |request| {
            request.level = -3;
            request.colour = false;
            request.config_file = Some("site.conf".into());
        });
        check("-q exec -v a.sif true", &[], |request| request.level = 4);
        check("-c site.conf exec -c a.sif true", &[], |request| {
            request.config_file = Some("site.conf".into());
            request.contain = true;
        });
    }

    #[test]
    fn an_outer_sifu_hands_its_level_down() {
        check("exec a.sif true", &[("APPTAINER_MESSAGELEVEL", "-1")], |request| request.level = -1);
        check("-v exec a.sif true", &[("SIFU_MESSAGELEVEL", "5")], |request| request.level = 4);
        check("exec a.sif true", &[("SIFU_MESSAGELEVEL", "99999")], |request| request.level = 5);
        check("exec a.sif true", &[("SIFU_MESSAGELEVEL", "loud")], |_| ());
    }

    #[test]
    fn colours_are_off_even_for_the_error_of_a_bad_line() {
        assert!(!parsed("--nocolor nonsense", &[]).colour);
        assert!(!parsed("nonsense", &[("SIFU_NOCOLOR", "1")]).colour);
    }

    #[test]
    fn what_is_missing_or_too_much_is_a_usage_error() {
        check_error("exec", &[], 1, "`sifu exec` needs IMAGE and COMMAND");
        check_error("exec a.sif", &[], 1, "`sifu exec` needs COMMAND");
        check_error("run -e", &[], 1, "`sifu run` needs IMAGE");
        check_error("sif dump 1", &[], 1, "`sifu sif dump` needs IMAGE");
        check_error("inspect a.sif b.sif", &[], 1, "`sifu inspect` has no use for the further word `b.sif`");
        check_error("exec -B", &[], 1, "the option `-B` needs a value");
        check_error("exec --bind", &[], 1, "the option `--bind` needs a value");
        check_error(
            "exec --contain=maybe a.sif true",
            &[],
            1,
            "cannot use `maybe` for the option `--contain`: use 1 or true, 0 or false",
        );
        check_error("-v", &[], 1, "`sifu` needs a command");
    }

    #[test]
    fn an_unknown_verb_or_flag_comes_with_the_one_that_was_meant() {
        let hints = |line: &str| parsed(line, &[]).order.unwrap_err().failure().hints;
        check_error("nonsense", &[], 1, "`sifu` has no command `nonsense`");
        check_error("exec --no-such-option a.sif true", &[], 1, "`sifu exec` has no option `--no-such-option`");
        check_error("--nonsense exec a.sif true", &[], 1, "`sifu` has no option `--nonsense`");
        check_error("exec -eZ a.sif true", &[], 1, "`sifu exec` has no option `-Z`");
        assert_eq!(hints("exce a.sif true"), ["Did you mean `exec`?"]);
        assert_eq!(hints("exec --contian a.sif true"), ["Did you mean `--contain`?"]);
        assert_eq!(hints("nonsense"), [""; 0]);
    }

    #[test]
    fn verbs_of_later_versions_fail_but_have_help() {
        check_error("sign a.sif", &[], 255, "the command `sifu sign` is not there yet in this version");
        check_error("instance list --json", &[], 255, "the command `sifu instance` is not there yet in this version");
        assert!(matches!(parsed("sign --help", &[]).order, Ok(Order::Help)));
        assert!(matches!(parsed("config fakeroot -h", &[]).order, Ok(Order::Help)));
    }

    #[test]
    fn help_is_asked_for_anywhere_before_the_payload() {
        for line in
            ["--help", "-h", "exec --help", "exec -e -h", "sif list --help", "exec -B a --help", "sif -h", "sif"]
        {
            assert!(matches!(parsed(line, &[]).order, Ok(Order::Help)), "{line}");
        }
        assert!(matches!(parsed("--version", &[]).order, Ok(Order::Version)));
        check_error("exec --version a.sif true", &[], 1, "`sifu exec` has no option `--version`");
    }

    #[test]
    fn flags_may_follow_the_words_of_verbs_without_a_payload() {
        let said = said("inspect a.sif --json -l", &[]);
        assert!(said.inspect.json && said.inspect.labels);
        assert_eq!(said.words, words("a.sif"));
    }

    #[test]
    fn a_sif_that_is_executed_as_a_program_runs_quietly() {
        let parsed = parse(&ROOT, Applet::RunSingularity, words("./a.sif --help x"), []);
        assert_eq!(parsed.level, -1);
        let Ok(Order::Do(said)) = parsed.order else { panic!("not understood") };
        assert_eq!(said.words, words("./a.sif --help x"));
        assert_eq!(parsed.path[1].name, "run");
    }

    #[test]
    fn the_applets_name_stands_in_errors() {
        let error = parse(&ROOT, Applet::Apptainer, words("exec"), []).order.unwrap_err();
        assert_eq!(error.to_string(), "`apptainer exec` needs IMAGE and COMMAND");
        let error = parse(&ROOT, Applet::RunSingularity, words(""), []).order.unwrap_err();
        assert_eq!(error.to_string(), "`run-singularity` needs IMAGE");
    }

    #[test]
    fn no_two_flags_of_a_verb_share_a_name_or_a_key() {
        let mut commands = vec![&ROOT];
        while let Some(command) = commands.pop() {
            commands.extend(command.commands());
            let mut names = std::collections::HashSet::new();
            for flag in command.own_flags() {
                assert!(flag.is_ready() != flag.help.is_empty(), "{} {}", command.name, flag.name);
                let short = flag.short.map(String::from);
                let long = std::iter::once(flag.name).chain(flag.aliases.iter().copied());
                let all = long.map(str::to_owned).chain(short);
                for name in all.chain(flag.keys.iter().map(|key| format!("${key}"))) {
                    assert!(names.insert(name.clone()), "{}: {name} stands twice", command.name);
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_command_line_makes_the_parser_panic(
            words in proptest::collection::vec(
                proptest::prop_oneof![
                    proptest::sample::select(vec!["exec", "sif", "add", "config", "help", "--", "-B", "--env", "-cC", "plan"])
                        .prop_map(|word| word.as_bytes().to_vec()),
                    "-{0,2}[a-zA-Z,=\"]{0,8}".prop_map(String::into_bytes),
                    proptest::collection::vec(proptest::num::u8::ANY, 0..12),
                ],
                0..8,
            ),
            value in proptest::collection::vec(1u8..255, 0..12),
        ) {
            let variables = ["APPTAINER_BIND", "SIFU_NO_MOUNT", "SINGULARITY_NV", "SIFU_MESSAGELEVEL", "SIFU_RUNSCRIPT_TIMEOUT"]
                .map(|name| (OsString::from(name), OsString::from_vec(value.clone())));
            let parsed = parse(&ROOT, Applet::Sifu, words.into_iter().map(OsString::from_vec), variables);
            if let Err(error) = &parsed.order {
                proptest::prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
