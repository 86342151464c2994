//! What a script says: commands, words and their parts, as the parser leaves them.
//!
//! The tree owns its text. Bodies that outlive the script they stand in (functions, substitutions) are shared.

use std::sync::{Arc, OnceLock};

/// Commands that run one after the other.
pub type List = Vec<Item>;

/// One member of a list: pipelines joined by `&&` and `||`.
#[derive(Debug)]
pub struct Item {
    pub first: Pipeline,
    pub rest: Vec<(Connector, Pipeline)>,
    /// Ends in `&`.
    pub background: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connector {
    And,
    Or,
}

#[derive(Debug)]
pub struct Pipeline {
    /// Begins with `!`.
    pub negated: bool,
    pub commands: Vec<Command>,
}

#[derive(Debug)]
pub struct Command {
    /// Counted from 1, where the command begins.
    pub line: u32,
    pub kind: CommandKind,
    pub redirects: Vec<Redirect>,
}

#[derive(Debug)]
pub enum CommandKind {
    Simple {
        assignments: Vec<Assignment>,
        words: Vec<Word>,
        /// The command takes assignments as arguments (`export`, `local`, …), which are not split into fields.
        declaration: bool,
    },
    /// `{ … }`
    Group(List),
    /// `( … )`
    Subshell(List),
    If {
        branches: Vec<(List, List)>,
        otherwise: Option<List>,
    },
    For {
        name: Vec<u8>,
        /// `None` without `in`: the positional parameters.
        words: Option<Vec<Word>>,
        body: List,
    },
    While {
        condition: List,
        body: List,
        /// `until`: runs while the condition fails.
        until: bool,
    },
    Case {
        word: Word,
        arms: Vec<(Vec<Word>, List)>,
    },
    Function {
        name: Vec<u8>,
        body: Arc<Command>,
    },
    /// `[[ … ]]`
    Conditional(Condition),
    /// `(( … ))`
    Arithmetic(Word),
}

#[derive(Debug)]
pub struct Assignment {
    pub name: Vec<u8>,
    /// `NAME+=value`
    pub append: bool,
    pub value: Word,
}

/// An expression between `[[` and `]]`.
#[derive(Debug)]
pub enum Condition {
    Not(Box<Condition>),
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
    /// A word alone: true when not empty.
    Word(Word),
    /// `-f word` and its like; the letter.
    Unary(u8, Word),
    /// The operator as written; the right side is a pattern for `=`, `==` and `!=`.
    Binary(Vec<u8>, Word, Word),
}

#[derive(Debug)]
pub struct Redirect {
    pub line: u32,
    pub descriptor: u32,
    pub target: RedirectTarget,
}

#[derive(Debug)]
pub enum RedirectTarget {
    Read(Word),
    Write(Word),
    Append(Word),
    ReadWrite(Word),
    /// `>&word`, `<&word`: a number or `-`.
    Duplicate(Word),
    /// `&>word`: standard output and standard error.
    Both(Word),
    /// Filled in when the line is over and the body has been read.
    HereDocument(Arc<OnceLock<Word>>),
    /// `<<<word`
    HereString(Word),
}

/// A word before expansion.
#[derive(Debug, Default)]
pub struct Word(pub Vec<Part>);

#[derive(Debug)]
pub enum Part {
    /// Unquoted text: may hold pattern characters.
    Literal(Vec<u8>),
    /// Quoted text: stands for itself.
    Quoted(Vec<u8>),
    /// `"…"`: what it holds is neither split nor a pattern.
    DoubleQuoted(Vec<Part>),
    /// `~` or `~user` where a home directory may stand; the user.
    Tilde(Vec<u8>),
    Parameter(Box<Parameter>),
    /// `$(…)` and backquotes.
    Substitution(Arc<List>),
    /// `$((…))`
    Arithmetic(Word),
}

#[derive(Debug)]
pub struct Parameter {
    /// A variable's name, a positional number, or one of `@*#?-$!`.
    pub name: Vec<u8>,
    /// `${!name}`: the value names the variable meant.
    pub indirect: bool,
    pub operation: Operation,
}

#[derive(Debug)]
pub enum Operation {
    Plain,
    /// `${#name}`
    Length,
    /// `-`, `=`, `?`, `+`; `colon` when an empty value counts as unset.
    Default {
        kind: DefaultKind,
        colon: bool,
        word: Word,
    },
    /// `#`, `##`, `%`, `%%`
    Trim {
        suffix: bool,
        longest: bool,
        pattern: Word,
    },
    /// `/`, `//`, `/#`, `/%`
    Replace {
        place: ReplacePlace,
        pattern: Word,
        replacement: Word,
    },
    /// `:offset`, `:offset:length`, both arithmetic.
    Slice {
        offset: Word,
        length: Option<Word>,
    },
    /// `^`, `^^`, `,`, `,,`
    Case {
        upper: bool,
        all: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultKind {
    Use,
    Assign,
    Fail,
    Alternative,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplacePlace {
    First,
    All,
    Start,
    End,
}

impl Word {
    /// The text of a word without expansions and quotes, as a command's name usually is.
    pub fn plain(&self) -> Option<&[u8]> {
        match self.0.as_slice() {
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// A word that stands for exactly `text`.
    pub fn quoted(text: &[u8]) -> Self {
        Self(vec![Part::Quoted(text.to_vec())])
    }
}

/// Whether `name` can be a variable's name.
pub fn is_name(name: &[u8]) -> bool {
    name.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
}
