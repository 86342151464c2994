//! The parser: text of a script to [`List`]. POSIX grammar, and the few extensions that environment scripts use in
//! practice (`[[ ]]`, `(( ))`, `function`, `$'…'`, `<<<`, `&>`, `+=`, `${x//a/b}`, `${x:1:2}`, `${!x}`, `${x^^}`).
//!
//! ```text
//! list      item { (";" | "&" | newline) item }
//! item      pipeline { ("&&" | "||") pipeline }
//! pipeline  [ "!" ] command { "|" command }
//! command   compound { redirect } | name "(" ")" compound | { assignment | redirect | word }
//! ```
//!
//! Recursion is bounded by [`MAX_DEPTH`], size by [`MAX_SCRIPT_BYTES`]; the tree is never larger than a small multiple
//! of the text.

use super::ast::*;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Scripts beyond this are refused.
pub const MAX_SCRIPT_BYTES: usize = 1 << 18;
/// How deep commands, quotes and expansions may nest.
pub const MAX_DEPTH: u32 = 60;

/// Why a text is no script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Counted from 1.
    pub line: u32,
    pub problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    TooLarge,
    TooDeep,
    Nul,
    /// A quote, a bracket or a compound command is still open at the end; what is missing.
    Unclosed(&'static str),
    Unexpected(String),
    BadSubstitution,
    /// Grammar that this shell does not know (arrays, process substitution, …).
    Unsupported(&'static str),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::TooLarge => write!(f, "script is larger than {MAX_SCRIPT_BYTES} bytes"),
            Problem::TooDeep => write!(f, "nested more than {MAX_DEPTH} deep"),
            Problem::Nul => f.write_str("script holds a NUL byte"),
            Problem::Unclosed(what) => write!(f, "missing `{what}` before the end"),
            Problem::Unexpected(what) => write!(f, "unexpected {what}"),
            Problem::BadSubstitution => f.write_str("bad substitution"),
            Problem::Unsupported(what) => write!(f, "{what} are not supported"),
        }
    }
}

impl std::error::Error for ParseError {}

type Result<T> = std::result::Result<T, ParseError>;

/// Parses a whole script.
pub fn parse(text: &[u8]) -> Result<List> {
    parse_nested(text, 1, 0)
}

/// Parses what stands between double quotes, without them.
pub fn parse_quoted(text: &[u8]) -> Result<Word> {
    if text.len() > MAX_SCRIPT_BYTES {
        return Err(ParseError { line: 1, problem: Problem::TooLarge });
    }
    let text = [text, b"\""].concat();
    if text.contains(&0) {
        return Err(ParseError { line: 1, problem: Problem::Nul });
    }
    let mut parser = Parser { text: &text, at: 0, line: 1, depth: 0, pending: Vec::new() };
    let parts = parser.double_quoted(Some(b'"'))?;
    if parser.at < text.len() {
        return Err(parser.unexpected());
    }
    parser.finish_here_documents()?;
    Ok(Word(vec![Part::DoubleQuoted(parts)]))
}

/// Parses the text of `eval` or of backquotes, which begins at `line` and is `depth` deep already.
fn parse_nested(text: &[u8], line: u32, depth: u32) -> Result<List> {
    if text.len() > MAX_SCRIPT_BYTES {
        return Err(ParseError { line, problem: Problem::TooLarge });
    }
    if text.contains(&0) {
        return Err(ParseError { line, problem: Problem::Nul });
    }
    let mut parser = Parser { text, at: 0, line, depth, pending: Vec::new() };
    let list = parser.list()?;
    if parser.at < parser.text.len() {
        return Err(parser.unexpected());
    }
    parser.finish_here_documents()?;
    Ok(list)
}

/// Commands that take assignments as arguments.
const DECLARATIONS: [&[u8]; 5] = [b"export", b"readonly", b"local", b"declare", b"typeset"];

/// Words that end a list where a command could begin.
const CLOSERS: [&[u8]; 8] = [b"then", b"do", b"done", b"fi", b"else", b"elif", b"esac", b"}"];

struct HereDocument {
    delimiter: Vec<u8>,
    /// A quoted delimiter: nothing is expanded in the body.
    verbatim: bool,
    /// `<<-`
    strip_tabs: bool,
    body: Arc<OnceLock<Word>>,
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
    depth: u32,
    pending: Vec<HereDocument>,
}

/// Where a word stands, which decides what ends it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Ends at blanks and operators.
    Word,
    /// As `Word`; `~` may also follow `:`.
    Assignment,
    /// Within `${…}` outside double quotes: ends at `}`.
    Brace,
    /// Within `${…/…/` : ends at `/` as well.
    BracePattern,
    /// Within `${…:…:`: ends at `:` as well.
    BraceNumber,
    /// As the three above, inside double quotes: single quotes are ordinary characters.
    QuotedBrace,
}

impl Parser<'_> {
    fn error<T>(&self, problem: Problem) -> Result<T> {
        Err(ParseError { line: self.line, problem })
    }

    fn unexpected(&self) -> ParseError {
        let rest = &self.text[self.at.min(self.text.len())..];
        let what = match rest.first() {
            None => "end of script".to_owned(),
            Some(b'\n') => "end of line".to_owned(),
            Some(_) => {
                let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len()).clamp(1, 20);
                format!("`{}`", String::from_utf8_lossy(&rest[..end.min(rest.len())]))
            }
        };
        ParseError { line: self.line, problem: Problem::Unexpected(what) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn starts_with(&self, token: &[u8]) -> bool {
        self.text[self.at..].starts_with(token)
    }

    /// Takes `token` if it comes next; tokens hold no newline.
    fn take(&mut self, token: &[u8]) -> bool {
        let found = self.starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        if byte == b'\n' {
            self.line = self.line.saturating_add(1);
        }
        Some(byte)
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return self.error(Problem::TooDeep);
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Skips blanks, continued lines and comments, up to the next token.
    fn skip_blanks(&mut self) {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\r') => self.at += 1,
                Some(b'\\') if self.text.get(self.at + 1) == Some(&b'\n') => {
                    self.next();
                    self.next();
                }
                Some(b'#') => {
                    let rest = &self.text[self.at..];
                    self.at += rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }

    fn newline(&mut self) -> Result<bool> {
        if self.peek() != Some(b'\n') {
            return Ok(false);
        }
        self.next();
        self.read_here_documents()?;
        Ok(true)
    }

    fn skip_lines(&mut self) -> Result<()> {
        self.skip_blanks();
        while self.newline()? {
            self.skip_blanks();
        }
        Ok(())
    }

    fn at_keyword(&self, word: &[u8]) -> bool {
        self.starts_with(word) && self.text.get(self.at + word.len()).is_none_or(|&b| ends_word(b))
    }

    fn keyword(&mut self, word: &'static str) -> Result<()> {
        self.skip_lines()?;
        if self.at_keyword(word.as_bytes()) {
            self.at += word.len();
            return Ok(());
        }
        if self.at >= self.text.len() { self.error(Problem::Unclosed(word)) } else { Err(self.unexpected()) }
    }

    fn symbol(&mut self, symbol: &'static str) -> Result<()> {
        if self.take(symbol.as_bytes()) {
            return Ok(());
        }
        if self.at >= self.text.len() { self.error(Problem::Unclosed(symbol)) } else { Err(self.unexpected()) }
    }

    /// A list up to a closing word, `)`, `;;` or the end of the text, which the caller takes.
    fn list(&mut self) -> Result<List> {
        self.deeper(|p| {
            let mut items = Vec::new();
            loop {
                p.skip_lines()?;
                if p.at >= p.text.len()
                    || p.peek() == Some(b')')
                    || p.starts_with(b";;")
                    || CLOSERS.iter().any(|c| p.at_keyword(c))
                {
                    return Ok(items);
                }
                let mut item = p.item()?;
                p.skip_blanks();
                let closed = p.starts_with(b";;") || p.peek() == Some(b')') || p.at >= p.text.len();
                item.background = !closed && p.take(b"&");
                if !closed && !item.background && !p.take(b";") && !p.newline()? {
                    return Err(p.unexpected());
                }
                items.push(item);
            }
        })
    }

    fn nonempty_list(&mut self) -> Result<List> {
        let list = self.list()?;
        if list.is_empty() {
            return Err(self.unexpected());
        }
        Ok(list)
    }

    fn item(&mut self) -> Result<Item> {
        let first = self.pipeline()?;
        let mut rest = Vec::new();
        loop {
            self.skip_blanks();
            let connector = if self.take(b"&&") {
                Connector::And
            } else if self.take(b"||") {
                Connector::Or
            } else {
                return Ok(Item { first, rest, background: false });
            };
            self.skip_lines()?;
            rest.push((connector, self.pipeline()?));
        }
    }

    fn pipeline(&mut self) -> Result<Pipeline> {
        self.skip_blanks();
        let mut negated = false;
        while self.at_keyword(b"!") {
            self.at += 1;
            negated = !negated;
            self.skip_blanks();
        }
        let mut commands = vec![self.command()?];
        loop {
            self.skip_blanks();
            if self.starts_with(b"||") || !self.take(b"|") {
                return Ok(Pipeline { negated, commands });
            }
            if self.take(b"&") {
                let line = self.line;
                let target = RedirectTarget::Duplicate(Word::quoted(b"1"));
                if let Some(command) = commands.last_mut() {
                    command.redirects.push(Redirect { line, descriptor: 2, target });
                }
            }
            self.skip_lines()?;
            commands.push(self.command()?);
        }
    }

    fn command(&mut self) -> Result<Command> {
        self.skip_blanks();
        let line = self.line;
        let Some(kind) = self.deeper(Self::compound)? else {
            return self.simple(line);
        };
        let mut redirects = Vec::new();
        if !matches!(kind, CommandKind::Function { .. }) {
            while let Some(redirect) = self.redirect()? {
                redirects.push(redirect);
            }
        }
        Ok(Command { line, kind, redirects })
    }

    /// A compound command, if one begins here.
    fn compound(&mut self) -> Result<Option<CommandKind>> {
        if self.starts_with(b"((") && self.arithmetic_end(self.at + 2).is_some() {
            self.at += 2;
            return Ok(Some(CommandKind::Arithmetic(self.arithmetic()?)));
        }
        if self.take(b"(") {
            let list = self.nonempty_list()?;
            self.symbol(")")?;
            return Ok(Some(CommandKind::Subshell(list)));
        }
        let Some(word) = ["{", "if", "for", "while", "until", "case", "function", "[["]
            .into_iter()
            .find(|w| self.at_keyword(w.as_bytes()))
        else {
            return Ok(None);
        };
        self.at += word.len();
        Ok(Some(match word {
            "{" => {
                let list = self.nonempty_list()?;
                self.keyword("}")?;
                CommandKind::Group(list)
            }
            "if" => self.if_clause()?,
            "for" => self.for_clause()?,
            "while" | "until" => {
                let condition = self.nonempty_list()?;
                let body = self.do_group()?;
                CommandKind::While { condition, body, until: word == "until" }
            }
            "case" => self.case_clause()?,
            "function" => {
                self.skip_blanks();
                let name = self.bare_word();
                self.skip_blanks();
                if self.take(b"(") {
                    self.skip_blanks();
                    self.symbol(")")?;
                }
                self.function_body(name)?
            }
            _ => {
                let condition = self.condition_or()?;
                self.skip_lines()?;
                self.keyword("]]")?;
                CommandKind::Conditional(condition)
            }
        }))
    }

    fn if_clause(&mut self) -> Result<CommandKind> {
        let mut branches = Vec::new();
        let mut otherwise = None;
        loop {
            let condition = self.nonempty_list()?;
            self.keyword("then")?;
            branches.push((condition, self.nonempty_list()?));
            if self.at_keyword(b"elif") {
                self.at += 4;
                continue;
            }
            if self.at_keyword(b"else") {
                self.at += 4;
                otherwise = Some(self.nonempty_list()?);
            }
            self.keyword("fi")?;
            return Ok(CommandKind::If { branches, otherwise });
        }
    }

    fn for_clause(&mut self) -> Result<CommandKind> {
        self.skip_blanks();
        if self.starts_with(b"((") {
            return self.error(Problem::Unsupported("C-like `for` loops"));
        }
        let name = self.bare_word();
        if !is_name(&name) {
            return Err(self.unexpected());
        }
        self.skip_lines()?;
        let mut words = None;
        if self.at_keyword(b"in") {
            self.at += 2;
            let mut list = Vec::new();
            loop {
                self.skip_blanks();
                match self.peek() {
                    Some(b';') => {
                        self.at += 1;
                        break;
                    }
                    Some(b'\n') => break,
                    _ => list.push(self.word(Place::Word)?),
                }
            }
            words = Some(list);
        } else if self.peek() == Some(b';') {
            self.at += 1;
        }
        let body = self.do_group()?;
        Ok(CommandKind::For { name, words, body })
    }

    fn do_group(&mut self) -> Result<List> {
        self.keyword("do")?;
        let body = self.nonempty_list()?;
        self.keyword("done")?;
        Ok(body)
    }

    fn case_clause(&mut self) -> Result<CommandKind> {
        self.skip_blanks();
        let word = self.word(Place::Word)?;
        self.keyword("in")?;
        let mut arms = Vec::new();
        loop {
            self.skip_lines()?;
            if self.at_keyword(b"esac") {
                self.at += 4;
                return Ok(CommandKind::Case { word, arms });
            }
            if self.at >= self.text.len() {
                return self.error(Problem::Unclosed("esac"));
            }
            self.take(b"(");
            let mut patterns = Vec::new();
            loop {
                self.skip_blanks();
                patterns.push(self.word(Place::Word)?);
                self.skip_blanks();
                if self.take(b")") {
                    break;
                }
                self.symbol("|")?;
            }
            let body = self.list()?;
            arms.push((patterns, body));
            self.skip_lines()?;
            if self.starts_with(b";;&") || self.starts_with(b";&") {
                return self.error(Problem::Unsupported("`case` arms that fall through"));
            }
            if !self.take(b";;") && !self.at_keyword(b"esac") {
                return if self.at >= self.text.len() {
                    self.error(Problem::Unclosed("esac"))
                } else {
                    Err(self.unexpected())
                };
            }
        }
    }

    fn function_body(&mut self, name: Vec<u8>) -> Result<CommandKind> {
        if name.is_empty() {
            return Err(self.unexpected());
        }
        self.skip_lines()?;
        let body = self.command()?;
        if matches!(body.kind, CommandKind::Simple { .. }) {
            return Err(self.unexpected());
        }
        Ok(CommandKind::Function { name, body: Arc::new(body) })
    }

    fn condition_or(&mut self) -> Result<Condition> {
        let mut left = self.condition_and()?;
        loop {
            self.skip_lines()?;
            if !self.take(b"||") {
                return Ok(left);
            }
            left = Condition::Or(Box::new(left), Box::new(self.condition_and()?));
        }
    }

    fn condition_and(&mut self) -> Result<Condition> {
        let mut left = self.condition_primary()?;
        loop {
            self.skip_lines()?;
            if !self.take(b"&&") {
                return Ok(left);
            }
            left = Condition::And(Box::new(left), Box::new(self.condition_primary()?));
        }
    }

    fn condition_primary(&mut self) -> Result<Condition> {
        self.deeper(|p| {
            p.skip_lines()?;
            if p.at_keyword(b"!") {
                p.at += 1;
                return Ok(Condition::Not(Box::new(p.condition_primary()?)));
            }
            if p.take(b"(") {
                let inner = p.condition_or()?;
                p.skip_lines()?;
                p.symbol(")")?;
                return Ok(inner);
            }
            if p.peek() == Some(b'-')
                && p.text.get(p.at + 1).is_some_and(u8::is_ascii_alphabetic)
                && p.text.get(p.at + 2).is_some_and(|&b| b == b' ' || b == b'\t')
            {
                let letter = p.text[p.at + 1];
                p.at += 2;
                p.skip_blanks();
                return Ok(Condition::Unary(letter, p.word(Place::Word)?));
            }
            let left = p.word(Place::Word)?;
            p.skip_blanks();
            let operator: Vec<u8> = match p.peek() {
                Some(c @ (b'<' | b'>')) => {
                    p.at += 1;
                    vec![c]
                }
                Some(b'=' | b'!' | b'-') => p.bare_word(),
                _ => return Ok(Condition::Word(left)),
            };
            p.skip_blanks();
            if operator == b"=~" {
                return p.error(Problem::Unsupported("regular expressions"));
            }
            Ok(Condition::Binary(operator, left, p.word(Place::Word)?))
        })
    }

    fn simple(&mut self, line: u32) -> Result<Command> {
        let mut assignments = Vec::new();
        let mut words: Vec<Word> = Vec::new();
        let mut redirects = Vec::new();
        let mut declaration = false;
        loop {
            self.skip_blanks();
            if let Some(redirect) = self.redirect()? {
                redirects.push(redirect);
                continue;
            }
            match self.peek() {
                None | Some(b'\n' | b';' | b'&' | b'|' | b')') => break,
                Some(b'(') => {
                    let name = match (words.as_slice(), assignments.is_empty(), redirects.is_empty()) {
                        ([only], true, true) => only.plain().map(<[u8]>::to_vec),
                        _ => None,
                    };
                    let Some(name) = name else { return Err(self.unexpected()) };
                    self.at += 1;
                    self.skip_blanks();
                    self.symbol(")")?;
                    let kind = self.deeper(|p| p.function_body(name))?;
                    return Ok(Command { line, kind, redirects });
                }
                Some(_) => {}
            }
            if words.is_empty()
                && let Some((name, append)) = self.assignment_head()
            {
                if self.peek() == Some(b'(') {
                    return self.error(Problem::Unsupported("arrays"));
                }
                let value = self.word(Place::Assignment)?;
                assignments.push(Assignment { name, append, value });
                continue;
            }
            let place = if declaration { Place::Assignment } else { Place::Word };
            let word = self.word(place)?;
            if words.is_empty() {
                declaration = word.plain().is_some_and(|w| DECLARATIONS.contains(&w));
            }
            words.push(word);
        }
        if assignments.is_empty() && words.is_empty() && redirects.is_empty() {
            return Err(self.unexpected());
        }
        Ok(Command { line, kind: CommandKind::Simple { assignments, words, declaration }, redirects })
    }

    /// `NAME=` or `NAME+=`, if it comes next.
    fn assignment_head(&mut self) -> Option<(Vec<u8>, bool)> {
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_')?;
        let name = &rest[..end];
        if !is_name(name) {
            return None;
        }
        let append = rest[end..].starts_with(b"+=");
        if !append && rest[end] != b'=' {
            return None;
        }
        self.at += end + if append { 2 } else { 1 };
        Some((name.to_vec(), append))
    }

    fn bare_word(&mut self) -> Vec<u8> {
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|&b| ends_word(b)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_vec()
    }

    fn redirect(&mut self) -> Result<Option<Redirect>> {
        self.skip_blanks();
        let line = self.line;
        if self.starts_with(b"&>") {
            self.at += 2;
            self.skip_blanks();
            let target = RedirectTarget::Both(self.word(Place::Word)?);
            return Ok(Some(Redirect { line, descriptor: 1, target }));
        }
        let rest = &self.text[self.at..];
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if !matches!(rest.get(digits), Some(b'<' | b'>')) {
            return Ok(None);
        }
        let given: Option<u32> = match digits {
            0 => None,
            1..=3 => std::str::from_utf8(&rest[..digits]).ok().and_then(|d| d.parse().ok()),
            _ => return Err(self.unexpected()),
        };
        self.at += digits;
        let operators: [&[u8]; 9] = [b"<<<", b"<<-", b"<<", b"<&", b"<>", b">>", b">&", b">|", b"<"];
        let operator = operators.into_iter().find(|o| self.starts_with(o)).unwrap_or(b">");
        self.at += operator.len();
        if self.peek() == Some(b'(') {
            return self.error(Problem::Unsupported("process substitutions"));
        }
        self.skip_blanks();
        let default = if operator[0] == b'<' { 0 } else { 1 };
        let descriptor = given.unwrap_or(default);
        let target = match operator {
            b"<<" | b"<<-" => self.here_document(operator == b"<<-")?,
            _ => {
                let word = self.word(Place::Word)?;
                match operator {
                    b"<<<" => RedirectTarget::HereString(word),
                    b"<&" | b">&" => RedirectTarget::Duplicate(word),
                    b"<>" => RedirectTarget::ReadWrite(word),
                    b">>" => RedirectTarget::Append(word),
                    b"<" => RedirectTarget::Read(word),
                    _ => RedirectTarget::Write(word),
                }
            }
        };
        Ok(Some(Redirect { line, descriptor, target }))
    }

    fn here_document(&mut self, strip_tabs: bool) -> Result<RedirectTarget> {
        let word = self.word(Place::Word)?;
        let (mut delimiter, mut verbatim) = (Vec::new(), false);
        flatten(&word.0, &mut delimiter, &mut verbatim);
        let body = Arc::new(OnceLock::new());
        self.pending.push(HereDocument { delimiter, verbatim, strip_tabs, body: Arc::clone(&body) });
        Ok(RedirectTarget::HereDocument(body))
    }

    /// Called after a newline: the bodies of the here-documents that the line announced.
    fn read_here_documents(&mut self) -> Result<()> {
        for document in std::mem::take(&mut self.pending) {
            let begin = self.line;
            let mut body = Vec::new();
            loop {
                if self.at >= self.text.len() {
                    return self.error(Problem::Unclosed("end of the here-document"));
                }
                let rest = &self.text[self.at..];
                let end = rest.iter().position(|&b| b == b'\n');
                let mut line = &rest[..end.unwrap_or(rest.len())];
                self.at += end.map_or(rest.len(), |e| e + 1);
                self.line = self.line.saturating_add(u32::from(end.is_some()));
                while document.strip_tabs && line.first() == Some(&b'\t') {
                    line = &line[1..];
                }
                if line == document.delimiter {
                    break;
                }
                body.extend_from_slice(line);
                body.push(b'\n');
            }
            let word = if document.verbatim {
                Word::quoted(&body)
            } else {
                let mut inner = Parser { text: &body, at: 0, line: begin, depth: self.depth, pending: Vec::new() };
                Word(vec![Part::DoubleQuoted(inner.double_quoted(None)?)])
            };
            // The cell was made for this body alone.
            let _ = document.body.set(word);
        }
        Ok(())
    }

    fn finish_here_documents(&mut self) -> Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.error(Problem::Unclosed("end of the here-document")) }
    }

    /// A word, at least one character long unless it is the value of an assignment or stands in braces.
    fn word(&mut self, place: Place) -> Result<Word> {
        let parts = self.deeper(|p| p.parts(place))?;
        if parts.is_empty() && place == Place::Word {
            return Err(self.unexpected());
        }
        Ok(Word(parts))
    }

    fn parts(&mut self, place: Place) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let braced = !matches!(place, Place::Word | Place::Assignment);
        let mut tilde_may_follow = true;
        loop {
            let Some(byte) = self.peek() else {
                if braced {
                    return self.error(Problem::Unclosed("}"));
                }
                break;
            };
            let tilde_here = std::mem::take(&mut tilde_may_follow);
            match byte {
                b'}' if braced => break,
                b'/' if place == Place::BracePattern => break,
                b':' if place == Place::BraceNumber => break,
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'&' | b'|' | b'<' | b'>' | b'(' | b')' if !braced => break,
                b'~' if tilde_here && place != Place::QuotedBrace => {
                    if let Some(user) = self.tilde(place) {
                        flush(&mut literal, &mut parts);
                        parts.push(Part::Tilde(user));
                    } else {
                        self.at += 1;
                        literal.push(b'~');
                    }
                }
                b'\\' => {
                    self.next();
                    match self.next() {
                        None => literal.push(b'\\'),
                        Some(b'\n') => {}
                        Some(c) if place == Place::QuotedBrace && !matches!(c, b'$' | b'`' | b'"' | b'\\' | b'}') => {
                            literal.extend([b'\\', c]);
                        }
                        Some(c) => {
                            flush(&mut literal, &mut parts);
                            parts.push(Part::Quoted(vec![c]));
                        }
                    }
                }
                b'\'' if place != Place::QuotedBrace => {
                    self.at += 1;
                    flush(&mut literal, &mut parts);
                    parts.push(Part::Quoted(self.single_quoted()?));
                }
                b'"' => {
                    self.at += 1;
                    flush(&mut literal, &mut parts);
                    let inner = self.deeper(|p| p.double_quoted(Some(b'"')))?;
                    parts.push(Part::DoubleQuoted(inner));
                }
                b'$' if place != Place::QuotedBrace && self.starts_with(b"$'") => {
                    self.at += 2;
                    flush(&mut literal, &mut parts);
                    parts.push(Part::Quoted(self.ansi_quoted()?));
                }
                b'$' if place != Place::QuotedBrace && self.starts_with(b"$\"") => self.at += 1,
                b'$' | b'`' => match self.deeper(|p| p.expansion(place == Place::QuotedBrace))? {
                    Some(part) => {
                        flush(&mut literal, &mut parts);
                        parts.push(part);
                    }
                    None => literal.push(b'$'),
                },
                _ => {
                    self.next();
                    literal.push(byte);
                    // In an assignment a home directory may follow the `=` of `export A=~/x` and each `:`.
                    tilde_may_follow =
                        place == Place::Assignment && (byte == b':' || (byte == b'=' && parts.is_empty()));
                }
            }
        }
        flush(&mut literal, &mut parts);
        Ok(parts)
    }

    /// `~user` up to a slash or the end of the word, when nothing in it is quoted.
    fn tilde(&mut self, place: Place) -> Option<Vec<u8>> {
        let rest = &self.text[self.at + 1..];
        let end = rest
            .iter()
            .position(|&b| !(b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')))
            .unwrap_or(rest.len());
        let ends = match rest.get(end) {
            None | Some(b'/') => true,
            Some(b':') => place == Place::Assignment,
            Some(b'}') => place != Place::Word && place != Place::Assignment,
            Some(&b) => ends_word(b),
        };
        if !ends {
            return None;
        }
        self.at += 1 + end;
        Some(rest[..end].to_vec())
    }

    fn single_quoted(&mut self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        loop {
            match self.next() {
                None => return self.error(Problem::Unclosed("'")),
                Some(b'\'') => return Ok(text),
                Some(byte) => text.push(byte),
            }
        }
    }

    /// `$'…'` after its opening quote.
    fn ansi_quoted(&mut self) -> Result<Vec<u8>> {
        let begin = self.at;
        loop {
            match self.next() {
                None => return self.error(Problem::Unclosed("'")),
                Some(b'\\') => {
                    self.next();
                }
                Some(b'\'') => {
                    let (text, _) =
                        super::escapes::unescape(&self.text[begin..self.at - 1], super::escapes::Style::Ansi);
                    return Ok(text);
                }
                Some(_) => {}
            }
        }
    }

    /// The inside of double quotes up to and with `end`, or of a here-document up to the end of the text.
    fn double_quoted(&mut self, end: Option<u8>) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        loop {
            let Some(byte) = self.peek() else {
                if end.is_some() {
                    return self.error(Problem::Unclosed("\""));
                }
                break;
            };
            if Some(byte) == end {
                self.at += 1;
                break;
            }
            match byte {
                b'\\' => {
                    self.next();
                    match self.next() {
                        Some(b'\n') => {}
                        Some(c @ (b'$' | b'`' | b'\\')) => literal.push(c),
                        Some(b'"') if end.is_some() => literal.push(b'"'),
                        Some(c) => literal.extend([b'\\', c]),
                        None => literal.push(b'\\'),
                    }
                }
                b'$' | b'`' => match self.deeper(|p| p.expansion(true))? {
                    Some(part) => {
                        quote(&mut literal, &mut parts);
                        parts.push(part);
                    }
                    None => literal.push(b'$'),
                },
                _ => {
                    self.next();
                    literal.push(byte);
                }
            }
        }
        quote(&mut literal, &mut parts);
        Ok(parts)
    }

    /// What begins with `$` or a backquote; `None` for a dollar sign that stands for itself (taken).
    fn expansion(&mut self, quoted: bool) -> Result<Option<Part>> {
        if self.take(b"`") {
            return self.backquoted(quoted).map(Some);
        }
        if self.starts_with(b"$((") && self.arithmetic_end(self.at + 3).is_some() {
            self.at += 3;
            return Ok(Some(Part::Arithmetic(self.arithmetic()?)));
        }
        if self.take(b"$(") {
            let list = self.list()?;
            self.skip_lines()?;
            self.symbol(")")?;
            return Ok(Some(Part::Substitution(Arc::new(list))));
        }
        if self.take(b"${") {
            return self.braced(quoted).map(Some);
        }
        self.at += 1;
        let name = match self.peek() {
            Some(b) if b.is_ascii_alphabetic() || b == b'_' => self.name(),
            Some(b) if b.is_ascii_digit() || is_special(b) => {
                self.at += 1;
                vec![b]
            }
            _ => return Ok(None),
        };
        Ok(Some(Part::Parameter(Box::new(Parameter { name, indirect: false, operation: Operation::Plain }))))
    }

    fn name(&mut self) -> Vec<u8> {
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_').unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_vec()
    }

    fn braced(&mut self, quoted: bool) -> Result<Part> {
        let parameter =
            |name, indirect, operation| Ok(Part::Parameter(Box::new(Parameter { name, indirect, operation })));
        // `${#x}` is a length; `${#}`, `${#-…}` and `${##…}` are about the number of arguments.
        if self.peek() == Some(b'#')
            && self.text.get(self.at + 1).is_some_and(|&b| b.is_ascii_alphanumeric() || b == b'_' || is_special(b))
            && !(is_special(self.text[self.at + 1]) && self.text.get(self.at + 2) != Some(&b'}'))
        {
            self.at += 1;
            let name = self.parameter_name()?;
            self.symbol("}")?;
            return parameter(name, false, Operation::Length);
        }
        let indirect = self.peek() == Some(b'!')
            && self.text.get(self.at + 1).is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
        if indirect {
            self.at += 1;
        }
        let name = self.parameter_name()?;
        if self.take(b"}") {
            return parameter(name, indirect, Operation::Plain);
        }
        let word_place = if quoted { Place::QuotedBrace } else { Place::Brace };
        let colon = self.take(b":");
        let operation = match self.peek() {
            Some(c @ (b'-' | b'=' | b'?' | b'+')) => {
                self.at += 1;
                let kind = match c {
                    b'-' => DefaultKind::Use,
                    b'=' => DefaultKind::Assign,
                    b'?' => DefaultKind::Fail,
                    _ => DefaultKind::Alternative,
                };
                Operation::Default { kind, colon, word: self.word(word_place)? }
            }
            _ if colon => {
                let offset = self.word(Place::BraceNumber)?;
                let length = if self.take(b":") { Some(self.word(Place::Brace)?) } else { None };
                Operation::Slice { offset, length }
            }
            Some(c @ (b'#' | b'%')) => {
                self.at += 1;
                let longest = self.take(&[c]);
                Operation::Trim { suffix: c == b'%', longest, pattern: self.word(Place::Brace)? }
            }
            Some(b'/') => {
                self.at += 1;
                let place = if self.take(b"/") {
                    ReplacePlace::All
                } else if self.take(b"#") {
                    ReplacePlace::Start
                } else if self.take(b"%") {
                    ReplacePlace::End
                } else {
                    ReplacePlace::First
                };
                let pattern = self.word(Place::BracePattern)?;
                let replacement = if self.take(b"/") { self.word(word_place)? } else { Word::default() };
                Operation::Replace { place, pattern, replacement }
            }
            Some(c @ (b'^' | b',')) => {
                self.at += 1;
                Operation::Case { upper: c == b'^', all: self.take(&[c]) }
            }
            Some(b'[') => return self.error(Problem::Unsupported("arrays")),
            Some(_) => return self.error(Problem::BadSubstitution),
            None => return self.error(Problem::Unclosed("}")),
        };
        self.symbol("}")?;
        parameter(name, indirect, operation)
    }

    fn parameter_name(&mut self) -> Result<Vec<u8>> {
        match self.peek() {
            Some(b) if b.is_ascii_alphabetic() || b == b'_' => Ok(self.name()),
            Some(b) if b.is_ascii_digit() => {
                let rest = &self.text[self.at..];
                let end = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
                self.at += end;
                Ok(rest[..end].to_vec())
            }
            Some(b) if is_special(b) => {
                self.at += 1;
                Ok(vec![b])
            }
            None => self.error(Problem::Unclosed("}")),
            Some(_) => self.error(Problem::BadSubstitution),
        }
    }

    fn backquoted(&mut self, quoted: bool) -> Result<Part> {
        let line = self.line;
        let mut text = Vec::new();
        loop {
            match self.next() {
                None => return self.error(Problem::Unclosed("`")),
                Some(b'`') => break,
                Some(b'\\') => match self.next() {
                    Some(c @ (b'`' | b'\\' | b'$')) => text.push(c),
                    Some(b'"') if quoted => text.push(b'"'),
                    Some(c) => text.extend([b'\\', c]),
                    None => return self.error(Problem::Unclosed("`")),
                },
                Some(c) => text.push(c),
            }
        }
        Ok(Part::Substitution(Arc::new(parse_nested(&text, line, self.depth)?)))
    }

    /// Where the `))` stands that closes the arithmetic which begins at `from`; `None` when it is none after all.
    fn arithmetic_end(&self, from: usize) -> Option<usize> {
        let mut open = 0u32;
        let mut at = from;
        loop {
            match self.text.get(at)? {
                b'(' => open += 1,
                b')' if open > 0 => open -= 1,
                b')' => return (self.text.get(at + 1) == Some(&b')')).then_some(at),
                b'\\' => at += 1,
                _ => {}
            }
            at += 1;
        }
    }

    /// The inside of `((…))` and what closes it.
    fn arithmetic(&mut self) -> Result<Word> {
        let Some(end) = self.arithmetic_end(self.at) else {
            return self.error(Problem::Unclosed("))"));
        };
        let inside = &self.text[self.at..end];
        let mut inner = Parser { text: inside, at: 0, line: self.line, depth: self.depth, pending: Vec::new() };
        let parts = inner.deeper(|p| p.double_quoted(None))?;
        let lines = inside.iter().filter(|&&b| b == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        self.at = end + 2;
        Ok(Word(vec![Part::DoubleQuoted(parts)]))
    }
}

fn ends_word(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b';' | b'&' | b'|' | b'<' | b'>' | b'(' | b')')
}

fn is_special(byte: u8) -> bool {
    matches!(byte, b'@' | b'*' | b'#' | b'?' | b'-' | b'$' | b'!')
}

fn flush(literal: &mut Vec<u8>, parts: &mut Vec<Part>) {
    if !literal.is_empty() {
        parts.push(Part::Literal(std::mem::take(literal)));
    }
}

fn quote(literal: &mut Vec<u8>, parts: &mut Vec<Part>) {
    if !literal.is_empty() {
        parts.push(Part::Quoted(std::mem::take(literal)));
    }
}

/// The text of a here-document's delimiter, and whether any of it was quoted.
fn flatten(parts: &[Part], text: &mut Vec<u8>, quoted: &mut bool) {
    for part in parts {
        match part {
            Part::Literal(t) => text.extend_from_slice(t),
            Part::Quoted(t) => {
                text.extend_from_slice(t);
                *quoted = true;
            }
            Part::DoubleQuoted(inner) => {
                *quoted = true;
                flatten(inner, text, quoted);
            }
            Part::Tilde(user) => {
                text.push(b'~');
                text.extend_from_slice(user);
            }
            Part::Parameter(_) | Part::Substitution(_) | Part::Arithmetic(_) => {}
        }
    }
}
