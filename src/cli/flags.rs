//! What a flag is, what a verb is, and everything that a command line can say ([`Said`]).
//!
//! A flag is one entry of a table: its names, its environment keys, its help, and the function that writes its value into
//! [`Said`]. Parser, help, manual pages and completions all read the same entries, so none of them can know a flag that
//! another does not.

use std::ffi::OsString;
use std::process::ExitCode;

use super::applet::Applet;
use super::build::BuildOptions;
use super::cache::CacheOptions;
use super::elsewhere::ElsewhereOptions;
use super::inspect::InspectOptions;
use super::library::LibraryOptions;
use super::mpi::CheckOptions;
use super::oci::OciOptions;
use super::pull::PullOptions;
use super::registry::LoginOptions;
use super::remote::RemoteOptions;
use super::sif::AddOptions;
use crate::launch::request::LaunchRequest;
use crate::report::Failure;

/// Everything that was said: flags of all verbs, and the words that are no flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub applet: Applet,
    pub global: Global,
    pub launch: LaunchRequest,
    pub alias: Alias,
    /// Of `inspect`; `run-help` has the app of it.
    pub inspect: InspectOptions,
    pub object: AddOptions,
    pub build: BuildOptions,
    pub elsewhere: ElsewhereOptions,
    pub pull: PullOptions,
    pub login: LoginOptions,
    /// Of `remote` and `keyserver`.
    pub remote: RemoteOptions,
    /// Of `search`, `delete` and `push`.
    pub library: LibraryOptions,
    pub cache: CacheOptions,
    pub config: Config,
    pub doctor: Doctor,
    pub mpi: CheckOptions,
    pub oci: OciOptions,
    /// The words after the verb, in order.
    pub words: Vec<OsString>,
}

/// Flags that every verb has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Global {
    pub config_file: Option<OsString>,
    pub debug: bool,
    pub verbose: bool,
    pub quiet: bool,
    pub silent: bool,
    pub no_colour: bool,
    /// The level that `MESSAGELEVEL` asks for, where no flag does.
    pub inherited_level: Option<i32>,
}

impl Global {
    /// Returns the level of messages: -3, -1, 1, 4 or 5 (or the inherited number); the most talkative flag wins.
    pub fn level(&self) -> i32 {
        match self {
            Self { debug: true, .. } => 5,
            Self { verbose: true, .. } => 4,
            Self { quiet: true, .. } => -1,
            Self { silent: true, .. } => -3,
            _ => self.inherited_level.unwrap_or(1),
        }
    }
}

/// Action flags that stand for others, as said; `action_flags::request` spells them out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alias {
    pub containall: bool,
    pub compat: bool,
    pub no_pid: bool,
}

/// What `config global` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub get: bool,
}

/// What `doctor` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doctor {
    pub json: bool,
}

/// A flag: one entry of a table.
#[derive(Debug)]
pub struct Flag {
    /// The long name without its dashes.
    pub name: &'static str,
    /// Other long names that mean the same; shown nowhere.
    pub aliases: &'static [&'static str],
    pub short: Option<char>,
    pub takes: Takes,
    /// Environment keys without a prefix, the strongest first.
    pub keys: &'static [&'static str],
    /// One line or more, without a full stop at the end.
    pub help: &'static str,
    pub category: Category,
    /// True for flags that help, manual pages and completions leave out.
    pub hidden: bool,
}

/// A variable of the container and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// What follows a flag, and where it goes. The word is the value's name in help.
#[derive(Debug)]
pub enum Takes {
    /// Nothing, or `=true` and `=false`.
    Switch(fn(&mut Said, bool)),
    /// A value; of several the last one counts.
    Text(&'static str, fn(&mut Said, Vec<u8>)),
    /// A value with a grammar of its own; every one counts, those of the environment after those of the command line.
    Each { value: &'static str, set: fn(&mut Said, Vec<u8>), environment_separator: Option<u8> },
    /// Words separated by commas; every one counts.
    List(&'static str, fn(&mut Said, Vec<Vec<u8>>)),
    /// `NAME=VALUE` pairs separated by commas; every one counts.
    Pairs(&'static str, fn(&mut Said, Vec<Pair>)),
    /// A value that has to be understood; the error is the end of the sentence "cannot use `x` for `--flag`: ..".
    Checked(&'static str, fn(&mut Said, &[u8]) -> Result<(), String>),
    /// Known, and not there yet in this version.
    Later { value: Option<&'static str>, instead: &'static str, variable: LaterVariable },
}

/// What to do when a flag that is not there yet is asked for by the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaterVariable {
    /// Say that it has no effect: the container differs from what was asked.
    Warn,
    /// Say nothing: it concerns images or services that this version refuses anyway.
    Quiet,
}

/// The heading under which help lists a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    Own,
    Files,
    Environment,
    Isolation,
    Privileges,
    Gpu,
    Limits,
    Sources,
    Global,
}

impl Category {
    /// Returns the heading in help.
    pub fn title(self) -> &'static str {
        match self {
            Self::Own => "Options",
            Self::Files => "Files and mounts",
            Self::Environment => "Environment",
            Self::Isolation => "Isolation and network",
            Self::Privileges => "Identity and privileges",
            Self::Gpu => "Accelerators",
            Self::Limits => "Limits",
            Self::Sources => "Images from elsewhere",
            Self::Global => "Global options",
        }
    }
}

impl Flag {
    const fn new(name: &'static str, takes: Takes, help: &'static str) -> Self {
        Self { name, aliases: &[], short: None, takes, keys: &[], help, category: Category::Own, hidden: false }
    }

    pub(super) const fn switch(name: &'static str, set: fn(&mut Said, bool), help: &'static str) -> Self {
        Self::new(name, Takes::Switch(set), help)
    }

    pub(super) const fn text(
        name: &'static str,
        value: &'static str,
        set: fn(&mut Said, Vec<u8>),
        help: &'static str,
    ) -> Self {
        Self::new(name, Takes::Text(value, set), help)
    }

    pub(super) const fn list(
        name: &'static str,
        value: &'static str,
        set: fn(&mut Said, Vec<Vec<u8>>),
        help: &'static str,
    ) -> Self {
        Self::new(name, Takes::List(value, set), help)
    }

    pub(super) const fn checked(
        name: &'static str,
        value: &'static str,
        set: fn(&mut Said, &[u8]) -> Result<(), String>,
        help: &'static str,
    ) -> Self {
        Self::new(name, Takes::Checked(value, set), help)
    }

    pub(super) const fn each(
        name: &'static str,
        value: &'static str,
        set: fn(&mut Said, Vec<u8>),
        environment_separator: Option<u8>,
        help: &'static str,
    ) -> Self {
        Self::new(name, Takes::Each { value, set, environment_separator }, help)
    }

    pub(super) const fn pairs(
        name: &'static str,
        value: &'static str,
        set: fn(&mut Said, Vec<Pair>),
        help: &'static str,
    ) -> Self {
        Self::new(name, Takes::Pairs(value, set), help)
    }

    /// A flag of later versions; `instead` is a sentence, or empty where there is no other way.
    pub(super) const fn later(name: &'static str, value: Option<&'static str>, instead: &'static str) -> Self {
        Self::new(name, Takes::Later { value, instead, variable: LaterVariable::Warn }, "")
    }

    pub(super) const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }

    pub(super) const fn keys(self, keys: &'static [&'static str]) -> Self {
        Self { keys, ..self }
    }

    pub(super) const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    pub(super) const fn category(self, category: Category) -> Self {
        Self { category, ..self }
    }

    pub(super) const fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    pub(super) const fn quiet_variable(self) -> Self {
        match self.takes {
            Takes::Later { value, instead, .. } => {
                Self { takes: Takes::Later { value, instead, variable: LaterVariable::Quiet }, ..self }
            }
            _ => panic!("only a flag of later versions has a variable without effect"),
        }
    }

    /// Returns the name of the value that follows the flag, if one does.
    pub fn value_name(&self) -> Option<&'static str> {
        match self.takes {
            Takes::Switch(_) => None,
            Takes::Text(value, _)
            | Takes::Each { value, .. }
            | Takes::List(value, _)
            | Takes::Pairs(value, _)
            | Takes::Checked(value, _) => Some(value),
            Takes::Later { value, .. } => value,
        }
    }

    /// Tells whether this version can do what the flag asks for.
    pub fn is_ready(&self) -> bool {
        !matches!(self.takes, Takes::Later { .. })
    }

    /// Tells whether the flag is shown to people.
    pub fn is_shown(&self) -> bool {
        self.is_ready() && !self.hidden
    }

    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        self.name.as_bytes() == name || self.aliases.iter().any(|alias| alias.as_bytes() == name)
    }
}

/// A verb, or a group of verbs.
#[derive(Debug)]
pub struct Command {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// One imperative line without a full stop.
    pub about: &'static str,
    /// Paragraphs for help and the manual page.
    pub description: &'static str,
    /// Command lines to copy, each with a line that says what it does.
    pub examples: &'static [(&'static str, &'static str)],
    pub flags: &'static [&'static [Flag]],
    /// The names of the words that have to follow.
    pub words: &'static [&'static str],
    pub rest: Rest,
    pub does: Does,
    pub hidden: bool,
}

/// What may follow the words that a verb needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    Nothing,
    /// Further words of this name, among flags.
    Words(&'static str),
    /// Further words, which the names of the needed ones tell of.
    Further,
    /// Everything after the first word belongs to the program in the container and is no flag of ours.
    Payload(&'static str),
    /// Everything after the verb, flags included, is taken as it is.
    Raw,
}

/// What a verb does.
#[derive(Debug)]
pub enum Does {
    Verb(fn(Said) -> Result<ExitCode, Failure>),
    Group(&'static [Command]),
    /// Prints help for the verb that its words name.
    Help,
    /// Known, and not there yet in this version; the sentence says what to do meanwhile, or is empty.
    Later(&'static str),
}

impl Command {
    pub(super) const fn verb(
        name: &'static str,
        does: fn(Said) -> Result<ExitCode, Failure>,
        about: &'static str,
    ) -> Self {
        Self::new(name, Does::Verb(does), about)
    }

    pub(super) const fn group(name: &'static str, commands: &'static [Command], about: &'static str) -> Self {
        Self::new(name, Does::Group(commands), about)
    }

    pub(super) const fn later(name: &'static str, instead: &'static str, about: &'static str) -> Self {
        Self { rest: Rest::Raw, ..Self::new(name, Does::Later(instead), about) }
    }

    pub(super) const fn new(name: &'static str, does: Does, about: &'static str) -> Self {
        Self {
            name,
            aliases: &[],
            about,
            description: "",
            examples: &[],
            flags: &[],
            words: &[],
            rest: Rest::Nothing,
            does,
            hidden: false,
        }
    }

    pub(super) const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    pub(super) const fn flags(self, flags: &'static [&'static [Flag]]) -> Self {
        Self { flags, ..self }
    }

    pub(super) const fn words(self, words: &'static [&'static str], rest: Rest) -> Self {
        Self { words, rest, ..self }
    }

    pub(super) const fn text(
        self,
        description: &'static str,
        examples: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self { description, examples, ..self }
    }

    /// Returns the verbs of a group, and none for a verb.
    pub fn commands(&self) -> &'static [Command] {
        match self.does {
            Does::Group(commands) => commands,
            _ => &[],
        }
    }

    /// Returns the verb of this group that goes by `name`.
    pub fn find(&self, name: &[u8]) -> Option<&'static Command> {
        self.commands()
            .iter()
            .find(|c| c.name.as_bytes() == name || c.aliases.iter().any(|alias| alias.as_bytes() == name))
    }

    /// Returns the verb's own flags, without the global ones.
    pub fn own_flags(&self) -> impl Iterator<Item = &'static Flag> + use<> {
        self.flags.iter().flat_map(|table| table.iter())
    }

    pub fn is_ready(&self) -> bool {
        !matches!(self.does, Does::Later(_))
    }
}

/// Flags that every verb has, before it or (but for short names that the verb uses itself) after it.
pub static GLOBAL: &[Flag] = &[
    Flag::text(
        "config",
        "FILE",
        |said, file| said.global.config_file = Some(os(file)),
        "Read this site configuration instead of the installed one",
    )
    .short('c')
    .keys(&["CONFIG_FILE"])
    .category(Category::Global),
    Flag::switch("debug", |said, on| said.global.debug = on, "Say everything, for finding faults")
        .short('d')
        .keys(&["DEBUG"])
        .category(Category::Global),
    Flag::switch("verbose", |said, on| said.global.verbose = on, "Say more about what is done and why")
        .short('v')
        .keys(&["VERBOSE"])
        .category(Category::Global),
    Flag::switch("quiet", |said, on| said.global.quiet = on, "Say warnings and errors only")
        .short('q')
        .keys(&["QUIET"])
        .category(Category::Global),
    Flag::switch("silent", |said, on| said.global.silent = on, "Say errors only")
        .short('s')
        .keys(&["SILENT"])
        .category(Category::Global),
    Flag::switch("nocolor", |said, on| said.global.no_colour = on, "Write messages without colours")
        .keys(&["NOCOLOR"])
        .category(Category::Global),
];

/// Makes a path or word of the host from bytes.
pub(super) fn os(bytes: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}
