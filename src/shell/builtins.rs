//! The commands that the shell performs itself.

use super::ast::is_name;
use super::escapes::{Style, unescape};
use super::evaluate::{COMMAND_FUEL, Flow, Shell, Stop};
use super::world::{Access, External, World};
use crate::tree::Kind;

/// The value of `$-`.
const LETTERS: [(u8, &str); 6] = [
    (b'a', "allexport"),
    (b'e', "errexit"),
    (b'f', "noglob"),
    (b'C', "noclobber"),
    (b'u', "nounset"),
    (b'x', "xtrace"),
];

/// What the shell performs itself.
const BUILTINS: [&[u8]; 33] = [
    b":",
    b".",
    b"[",
    b"break",
    b"cd",
    b"command",
    b"continue",
    b"declare",
    b"echo",
    b"eval",
    b"exec",
    b"exit",
    b"export",
    b"false",
    b"getopts",
    b"hash",
    b"let",
    b"local",
    b"printf",
    b"pwd",
    b"read",
    b"readonly",
    b"return",
    b"set",
    b"shift",
    b"source",
    b"test",
    b"true",
    b"type",
    b"typeset",
    b"umask",
    b"unset",
    b"builtin",
];

/// What other shells perform themselves and this one does not.
const UNSUPPORTED: [&[u8]; 16] = [
    b"alias",
    b"unalias",
    b"bg",
    b"fg",
    b"jobs",
    b"wait",
    b"trap",
    b"shopt",
    b"ulimit",
    b"times",
    b"disown",
    b"bind",
    b"mapfile",
    b"complete",
    b"compgen",
    b"suspend",
];

impl<W: World> Shell<W> {
    /// Runs a built-in; `None` when the name is not one.
    pub(super) fn builtin(&mut self, arguments: &[Vec<u8>]) -> Result<Option<Flow>, Stop> {
        let (name, rest) = (arguments[0].as_slice(), &arguments[1..]);
        if UNSUPPORTED.contains(&name) {
            let shown = String::from_utf8_lossy(name).into_owned();
            self.state.status = self.world.unsupported(&format!("`{shown}`"))?;
            return Ok(Some(Flow::Next));
        }
        let status = match name {
            b":" | b"true" | b"hash" => 0,
            b"false" => 1,
            b"echo" => self.echo(rest)?,
            b"printf" => self.printf(rest)?,
            b"test" | b"[" => self.test_command(name, rest)?,
            b"export" => self.declare(rest, Declaration { exported: true, ..Declaration::default() })?,
            b"readonly" => self.declare(rest, Declaration { readonly: true, ..Declaration::default() })?,
            b"local" => {
                if self.state.locals.is_empty() {
                    self.complain(&"local: not in a function")?;
                    1
                } else {
                    self.declare(rest, Declaration { local: true, ..Declaration::default() })?
                }
            }
            b"declare" | b"typeset" => {
                let local = !self.state.locals.is_empty();
                self.declare(rest, Declaration { local, ..Declaration::default() })?
            }
            b"unset" => self.unset(rest)?,
            b"set" => self.set(rest)?,
            b"shift" => self.shift(rest)?,
            b"cd" => self.cd(rest)?,
            b"pwd" => {
                let line = [self.state.directory.as_slice(), b"\n"].concat();
                u8::from(!self.world.write(1, &line)?)
            }
            b"read" => self.read(rest)?,
            b"let" => {
                let mut value = 0;
                for expression in rest {
                    value = self.arithmetic(expression)?;
                }
                u8::from(value == 0)
            }
            b"umask" => self.umask(rest)?,
            b"getopts" => self.getopts(rest)?,
            b"type" => self.describe(rest, true)?,
            b"." | b"source" => return self.dot(rest).map(Some),
            b"eval" => {
                let text = rest.join(&b' ');
                self.state.status = 0;
                return self.source(b"eval", &text).map(Some);
            }
            b"command" => return self.command_builtin(rest).map(Some),
            b"builtin" => {
                if rest.is_empty() {
                    0
                } else if let Some(flow) = self.builtin(rest)? {
                    return Ok(Some(flow));
                } else {
                    1
                }
            }
            b"exec" => {
                if let Some(first) = rest.first() {
                    let skip = usize::from(first == b"--");
                    let command = External {
                        arguments: &rest[skip..],
                        variables: self.exported(),
                        path: self.get(b"PATH").map(<[u8]>::to_vec),
                        directory: &self.state.directory,
                    };
                    if command.arguments.is_empty() {
                        0
                    } else {
                        return Err(Stop::Exit(self.world.exec(command)?));
                    }
                } else {
                    0
                }
            }
            b"exit" => return Err(Stop::Exit(self.status_argument(rest)?)),
            b"return" => {
                self.state.status = self.status_argument(rest)?;
                return Ok(Some(Flow::Return));
            }
            b"break" | b"continue" => {
                let levels = match rest.first() {
                    None => 1,
                    Some(text) => {
                        parse_number(text).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(1)
                    }
                };
                self.state.status = 0;
                if self.state.loops == 0 {
                    return Ok(Some(Flow::Next));
                }
                let levels = levels.min(self.state.loops);
                return Ok(Some(if name == b"break" { Flow::Break(levels) } else { Flow::Continue(levels) }));
            }
            _ => return Ok(None),
        };
        self.state.status = status;
        Ok(Some(Flow::Next))
    }

    fn status_argument(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let Some(text) = arguments.first() else { return Ok(self.state.status) };
        match parse_number(text) {
            // A shell keeps the low eight bits.
            Some(number) => Ok((number & 0xff) as u8),
            None => {
                let shown = String::from_utf8_lossy(text).into_owned();
                self.complain(&format_args!("{shown}: not a number"))?;
                Ok(2)
            }
        }
    }

    fn echo(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let (mut newline, mut escapes) = (true, false);
        let mut words = arguments;
        while let Some((option, rest)) = words.split_first()
            && option.len() > 1
            && option[0] == b'-'
            && option[1..].iter().all(|b| matches!(b, b'n' | b'e' | b'E'))
        {
            for letter in &option[1..] {
                match letter {
                    b'n' => newline = false,
                    letter => escapes = *letter == b'e',
                }
            }
            words = rest;
        }
        let mut text = words.join(&b' ');
        if escapes {
            let (plain, ended) = unescape(&text, Style::Echo);
            text = plain;
            newline &= !ended;
        }
        if newline {
            text.push(b'\n');
        }
        self.fuel.burn(text.len() as u64)?;
        Ok(u8::from(!self.world.write(1, &text)?))
    }

    fn printf(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let mut arguments = arguments;
        let mut into = None;
        if let [option, name, rest @ ..] = arguments
            && option == b"-v"
        {
            into = Some(name.clone());
            arguments = rest;
        }
        if arguments.first().is_some_and(|a| a == b"--") {
            arguments = &arguments[1..];
        }
        let Some((format, values)) = arguments.split_first() else {
            self.complain(&"printf: a format is missing")?;
            return Ok(2);
        };
        let mut printer = Printer { out: Vec::new(), values, failed: None, ended: false };
        loop {
            let before = printer.values.len();
            printer.round(format);
            self.fuel.burn(format.len() as u64 + printer.out.len() as u64 / 64)?;
            if printer.ended || printer.values.is_empty() || printer.values.len() == before {
                break;
            }
            if printer.out.len() > MAX_PRINTED_BYTES {
                return Err(self.fatal(&"printf: too much output"));
            }
        }
        let Printer { out, failed, .. } = printer;
        if let Some(message) = &failed {
            self.complain(&format_args!("printf: {message}"))?;
        }
        self.fuel.burn(out.len() as u64)?;
        match into {
            Some(name) if is_name(&name) => self.assign(&name, out)?,
            Some(_) => return Ok(2),
            None => {
                if !self.world.write(1, &out)? {
                    return Ok(1);
                }
            }
        }
        Ok(u8::from(failed.is_some()))
    }

    fn declare(&mut self, arguments: &[Vec<u8>], base: Declaration) -> Result<u8, Stop> {
        let mut wanted = base;
        let mut words = arguments;
        while let Some((option, rest)) = words.split_first()
            && option.len() > 1
            && matches!(option[0], b'-' | b'+')
        {
            words = rest;
            if option == b"--" {
                break;
            }
            let on = option[0] == b'-';
            for letter in &option[1..] {
                match letter {
                    b'x' => wanted.exported = on,
                    b'n' if base.exported => wanted.unexport = true,
                    b'p' => wanted.print = true,
                    b'r' => wanted.readonly = on,
                    b'g' => wanted.local = false,
                    b'i' => wanted.integer = on,
                    other => {
                        let what = format!("declaration option `{}`", char::from(*other));
                        return self.world.unsupported(&what);
                    }
                }
            }
        }
        if words.is_empty() {
            return self.print_variables(&wanted);
        }
        if wanted.print {
            return self.world.unsupported("`-p` with names");
        }
        let mut status = 0;
        for word in words {
            let (name, value) = match word.iter().position(|&b| b == b'=') {
                Some(at) => (&word[..at], Some(&word[at + 1..])),
                None => (word.as_slice(), None),
            };
            let (name, append) = match name.strip_suffix(b"+") {
                Some(name) if value.is_some() => (name, true),
                _ => (name, false),
            };
            if !is_name(name) {
                let shown = String::from_utf8_lossy(name).into_owned();
                self.complain(&format_args!("`{shown}` is not a valid name"))?;
                status = 1;
                continue;
            }
            if wanted.local {
                self.hide(name);
                if let Some(variable) = self.state.variables.get_mut(name)
                    && !variable.readonly
                    && value.is_none()
                {
                    variable.value = None;
                }
            }
            if let Some(value) = value {
                let mut text = value.to_vec();
                if wanted.integer {
                    text = self.arithmetic(value)?.to_string().into_bytes();
                }
                if append {
                    text = [self.get(name).unwrap_or_default(), text.as_slice()].concat();
                }
                self.assign(name, text)?;
            }
            self.fuel.burn(name.len() as u64 + COMMAND_FUEL)?;
            let variable = self.state.variables.entry(name.to_vec()).or_default();
            variable.exported = (variable.exported || wanted.exported) && !wanted.unexport;
            variable.readonly |= wanted.readonly;
        }
        Ok(status)
    }

    /// `export -p`, `readonly`, `declare`: assignments that a shell can read again.
    fn print_variables(&mut self, wanted: &Declaration) -> Result<u8, Stop> {
        let word: &[u8] = match (wanted.exported, wanted.readonly) {
            (true, _) => b"export ",
            (_, true) => b"readonly ",
            _ => b"",
        };
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for (name, variable) in &self.state.variables {
            if (wanted.exported && !variable.exported) || (wanted.readonly && !variable.readonly) {
                continue;
            }
            let mut line = [word, name].concat();
            if let Some(value) = &variable.value {
                line.push(b'=');
                line.extend(single_quote(value));
            }
            line.push(b'\n');
            lines.push(line);
        }
        lines.sort();
        let text = lines.concat();
        self.fuel.burn(text.len() as u64)?;
        Ok(u8::from(!self.world.write(1, &text)?))
    }

    fn unset(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let (mut variables, mut functions) = (true, true);
        let mut names = arguments;
        match names.first().map(Vec::as_slice) {
            Some(b"-v") => functions = false,
            Some(b"-f") => variables = false,
            _ => {}
        }
        if !(variables && functions) {
            names = &names[1..];
        }
        let mut status = 0;
        for name in names {
            let known = self.state.variables.get(name);
            if variables && known.is_some_and(|v| v.readonly) {
                let shown = String::from_utf8_lossy(name).into_owned();
                self.complain(&format_args!("unset: {shown}: is read only"))?;
                status = 1;
            } else if variables && known.is_some() {
                self.state.variables.remove(name);
            } else if functions {
                self.state.functions.remove(name);
            }
        }
        Ok(status)
    }

    fn set(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        if arguments.is_empty() {
            return self.print_variables(&Declaration::default());
        }
        let mut at = 0;
        while let Some(option) = arguments.get(at) {
            let (on, letters) = match option.split_first() {
                Some((b'-', letters)) if !letters.is_empty() => (true, letters),
                Some((b'+', letters)) if !letters.is_empty() => (false, letters),
                _ => break,
            };
            at += 1;
            if option == b"--" {
                self.state.arguments = arguments[at..].to_vec();
                return Ok(0);
            }
            for &letter in letters {
                let long = if letter == b'o' {
                    let name = arguments.get(at).cloned();
                    at += 1;
                    name
                } else {
                    let found = LETTERS.iter().find(|(l, _)| *l == letter);
                    found.map(|(_, name)| name.as_bytes().to_vec())
                };
                let known = long.is_some_and(|name| self.set_option(&name, on));
                if !known {
                    let what = format!("`set` option `{}`", String::from_utf8_lossy(option));
                    return self.world.unsupported(&what);
                }
            }
        }
        if at < arguments.len() {
            self.state.arguments = arguments[at..].to_vec();
        }
        Ok(0)
    }

    /// Switches an option by its long name; false when there is none of this name.
    fn set_option(&mut self, name: &[u8], on: bool) -> bool {
        let options = &mut self.state.options;
        let option = match name {
            b"allexport" => &mut options.allexport,
            b"errexit" => &mut options.errexit,
            b"noglob" => &mut options.noglob,
            b"noclobber" => &mut options.noclobber,
            b"nounset" => &mut options.nounset,
            b"xtrace" => &mut options.xtrace,
            b"pipefail" => &mut options.pipefail,
            // This shell is always one that POSIX would know.
            b"posix" => return true,
            _ => return false,
        };
        *option = on;
        true
    }

    /// The value of `$-`.
    pub(super) fn option_letters(&self) -> Vec<u8> {
        let o = &self.state.options;
        let set = [o.allexport, o.errexit, o.noglob, o.noclobber, o.nounset, o.xtrace];
        LETTERS.iter().zip(set).filter(|(_, on)| *on).map(|((letter, _), _)| *letter).collect()
    }

    fn shift(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let count = match arguments.first() {
            None => Some(1),
            Some(text) => parse_number(text).and_then(|n| usize::try_from(n).ok()),
        };
        match count {
            Some(count) if count <= self.state.arguments.len() => {
                self.state.arguments.drain(..count);
                Ok(0)
            }
            _ => Ok(1),
        }
    }

    fn cd(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let words = match arguments.first().map(Vec::as_slice) {
            Some(b"-L" | b"--") => &arguments[1..],
            Some(b"-P") => return self.world.unsupported("`cd -P`"),
            _ => arguments,
        };
        let target = match words.first().map(Vec::as_slice) {
            None => self.get(b"HOME").map(<[u8]>::to_vec),
            Some(b"-") => self.get(b"OLDPWD").map(<[u8]>::to_vec),
            Some(path) => Some(path.to_vec()),
        };
        let Some(target) = target else {
            self.complain(&"cd: no directory to go to")?;
            return Ok(1);
        };
        let path = normalized(&self.absolute(&target));
        let facts = self.world.facts(&path, true)?;
        if facts.is_none_or(|f| f.kind != Kind::Directory) || !self.world.access(&path, Access::Execute)? {
            let shown = String::from_utf8_lossy(&target).into_owned();
            self.complain(&format_args!("cd: {shown}: no such directory"))?;
            return Ok(1);
        }
        let old = std::mem::replace(&mut self.state.directory, path.clone());
        self.assign(b"OLDPWD", old)?;
        self.assign(b"PWD", path)?;
        if words.first().is_some_and(|w| w == b"-") {
            let line = [self.state.directory.as_slice(), b"\n"].concat();
            self.world.write(1, &line)?;
        }
        Ok(0)
    }

    fn read(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let mut raw = false;
        let mut names = arguments;
        while let Some((option, rest)) = names.split_first()
            && option.first() == Some(&b'-')
            && option.len() > 1
        {
            names = rest;
            match option.as_slice() {
                b"--" => break,
                b"-r" => raw = true,
                other => {
                    let what = format!("`read` option `{}`", String::from_utf8_lossy(other));
                    return self.world.unsupported(&what);
                }
            }
        }
        let (line, ended) = self.read_line(raw)?;
        let separators = self.get(b"IFS").unwrap_or(b" \t\n").to_vec();
        let default = [b"REPLY".to_vec()];
        let whole = names.is_empty();
        let names = if whole { &default[..] } else { names };
        let values = if whole {
            vec![line.into_iter().map(|(b, _)| b).collect()]
        } else {
            split_line(&line, &separators, names.len())
        };
        for (at, name) in names.iter().enumerate() {
            if !is_name(name) {
                self.complain(&format_args!("read: `{}` is not a valid name", String::from_utf8_lossy(name)))?;
                return Ok(2);
            }
            self.assign(name, values.get(at).cloned().unwrap_or_default())?;
        }
        Ok(u8::from(!ended))
    }

    /// A line of standard input, each byte with whether a backslash protected it; false at the end of the input.
    fn read_line(&mut self, raw: bool) -> Result<(Vec<(u8, bool)>, bool), Stop> {
        let mut line = Vec::new();
        loop {
            self.fuel.burn(1)?;
            match self.world.read_byte()? {
                None => return Ok((line, false)),
                Some(b'\n') => return Ok((line, true)),
                Some(0) => {}
                Some(b'\\') if !raw => match self.world.read_byte()? {
                    None => return Ok((line, false)),
                    Some(b'\n') => {}
                    Some(byte) => line.push((byte, true)),
                },
                Some(byte) => line.push((byte, false)),
            }
        }
    }

    fn umask(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let Some(text) = arguments.first() else {
            let mask = self.world.umask(None)?;
            return Ok(u8::from(!self.world.write(1, format!("{mask:04o}\n").as_bytes())?));
        };
        let mask = std::str::from_utf8(text).ok().and_then(|t| u32::from_str_radix(t, 8).ok()).filter(|m| *m <= 0o777);
        match mask {
            Some(mask) => {
                self.world.umask(Some(mask))?;
                Ok(0)
            }
            None => {
                let shown = String::from_utf8_lossy(text).into_owned();
                self.complain(&format_args!("umask: {shown}: not an octal number"))?;
                Ok(1)
            }
        }
    }

    fn getopts(&mut self, arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let [letters, name, given @ ..] = arguments else {
            self.complain(&"getopts: options and a name are missing")?;
            return Ok(2);
        };
        let words = if given.is_empty() { self.copy_arguments()? } else { given.to_vec() };
        let mut index =
            self.get(b"OPTIND").and_then(parse_number).and_then(|n| usize::try_from(n).ok()).unwrap_or(1).max(1);
        let quiet = letters.first() == Some(&b':');
        let mut within = self.state.getopts_at;
        let word = words.get(index - 1);
        let Some(word) = word.filter(|w| within > 0 || (w.len() > 1 && w[0] == b'-')) else {
            self.assign(name, b"?".to_vec())?;
            return Ok(1);
        };
        if within == 0 && word == b"--" {
            self.assign(b"OPTIND", (index + 1).to_string().into_bytes())?;
            self.assign(name, b"?".to_vec())?;
            return Ok(1);
        }
        within = within.max(1);
        let letter = word.get(within).copied().unwrap_or(b'?');
        within += 1;
        let known = letters.iter().position(|&l| l == letter && l != b':');
        let takes = known.is_some_and(|at| letters.get(at + 1) == Some(&b':'));
        let (mut result, mut argument) = (vec![letter], None);
        if takes {
            if within < word.len() {
                argument = Some(word[within..].to_vec());
            } else {
                index += 1;
                argument = words.get(index - 1).cloned();
            }
            within = word.len();
        }
        if within >= word.len() {
            index += 1;
            within = 0;
        }
        let problem = match (known, takes, &argument) {
            (None, ..) => Some("no such option"),
            (_, true, None) => Some("an argument is missing"),
            _ => None,
        };
        if let Some(problem) = problem {
            result = if quiet && known.is_some() { b":".to_vec() } else { b"?".to_vec() };
            if quiet {
                argument = Some(vec![letter]);
            } else {
                self.complain(&format_args!("-{}: {problem}", char::from(letter)))?;
            }
        }
        self.assign(b"OPTIND", index.to_string().into_bytes())?;
        self.state.getopts_at = within;
        match argument {
            Some(argument) => self.assign(b"OPTARG", argument)?,
            None => {
                self.state.variables.remove(b"OPTARG".as_slice());
            }
        }
        self.assign(name, result)?;
        Ok(0)
    }

    fn dot(&mut self, arguments: &[Vec<u8>]) -> Result<Flow, Stop> {
        let Some((file, rest)) = arguments.split_first() else {
            self.complain(&".: a file name is missing")?;
            self.state.status = 2;
            return Ok(Flow::Next);
        };
        let path = if file.contains(&b'/') { Some(self.absolute(file)) } else { self.search(file, Access::Read)? };
        let text = match &path {
            Some(path) => self.world.read_script(path)?,
            None => None,
        };
        let Some(text) = text else {
            let shown = String::from_utf8_lossy(file).into_owned();
            self.complain(&format_args!(".: {shown}: can't be read"))?;
            self.state.status = 1;
            return Ok(Flow::Next);
        };
        let outer =
            if rest.is_empty() { None } else { Some(std::mem::replace(&mut self.state.arguments, rest.to_vec())) };
        self.state.status = 0;
        let flow = self.source(file, &text)?;
        if let Some(outer) = outer {
            self.state.arguments = outer;
        }
        Ok(if flow == Flow::Return { Flow::Next } else { flow })
    }

    fn command_builtin(&mut self, arguments: &[Vec<u8>]) -> Result<Flow, Stop> {
        match arguments.first().map(Vec::as_slice) {
            Some(b"-v") => self.state.status = self.describe(&arguments[1..], false)?,
            Some(b"-V") => self.state.status = self.describe(&arguments[1..], true)?,
            Some(b"-p") => self.state.status = self.world.unsupported("`command -p`")?,
            Some(b"--") => return self.invoke(&arguments[1..], false),
            _ => return self.invoke(arguments, false),
        }
        Ok(Flow::Next)
    }

    /// `command -v` and `type`: what each name would run.
    fn describe(&mut self, names: &[Vec<u8>], sentence: bool) -> Result<u8, Stop> {
        let mut status = 0;
        for name in names {
            let what: Option<&[u8]> = if self.state.functions.contains_key(name) {
                Some(b" is a function")
            } else if BUILTINS.contains(&name.as_slice()) {
                Some(b" is a shell builtin")
            } else {
                None
            };
            let mut line = name.clone();
            if let Some(what) = what {
                if sentence {
                    line.extend_from_slice(what);
                }
            } else {
                let path = if name.contains(&b'/') {
                    let path = self.absolute(name);
                    self.is_program(&path)?.then(|| name.clone())
                } else {
                    self.search(name, Access::Execute)?
                };
                match path {
                    Some(path) if sentence => {
                        line.extend_from_slice(b" is ");
                        line.extend(path);
                    }
                    Some(path) => line = path,
                    None => {
                        status = 1;
                        if sentence {
                            let shown = String::from_utf8_lossy(name).into_owned();
                            self.complain(&format_args!("type: {shown}: not found"))?;
                        }
                        continue;
                    }
                }
            }
            line.push(b'\n');
            self.world.write(1, &line)?;
        }
        Ok(status)
    }

    fn is_program(&mut self, path: &[u8]) -> Result<bool, Stop> {
        let file = self.world.facts(path, true)?.is_some_and(|f| f.kind == Kind::File);
        Ok(file && self.world.access(path, Access::Execute)?)
    }

    /// The file of this name in the directories of `PATH`.
    fn search(&mut self, name: &[u8], access: Access) -> Result<Option<Vec<u8>>, Stop> {
        let path = self.get(b"PATH").unwrap_or_default().to_vec();
        for directory in path.split(|&b| b == b':') {
            let directory = self.absolute(if directory.is_empty() { b"." } else { directory });
            let candidate = [directory.as_slice(), b"/", name].concat();
            let found = match access {
                Access::Execute => self.is_program(&candidate)?,
                _ => self.world.facts(&candidate, true)?.is_some_and(|f| f.kind == Kind::File),
            };
            if found {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }
}

/// What `export`, `local` and their like are asked for.
#[derive(Clone, Copy, Default)]
struct Declaration {
    exported: bool,
    unexport: bool,
    readonly: bool,
    local: bool,
    integer: bool,
    print: bool,
}

/// `printf` stops here; one width of a format can ask for as much as it likes.
const MAX_PRINTED_BYTES: usize = 1 << 20;

struct Printer<'a> {
    out: Vec<u8>,
    values: &'a [Vec<u8>],
    failed: Option<String>,
    ended: bool,
}

impl Printer<'_> {
    fn next(&mut self) -> Option<Vec<u8>> {
        let (first, rest) = self.values.split_first()?;
        self.values = rest;
        Some(first.clone())
    }

    fn number(&mut self) -> i64 {
        let Some(text) = self.next() else { return 0 };
        if let [b'\'' | b'"', rest @ ..] = text.as_slice() {
            return String::from_utf8_lossy(rest).chars().next().map_or(0, |c| i64::from(u32::from(c)));
        }
        let trimmed = text.trim_ascii();
        let parsed = parse_number(trimmed).or_else(|| {
            let digits = std::str::from_utf8(trimmed).ok()?;
            i64::from_str_radix(digits.strip_prefix("0x")?, 16).ok()
        });
        parsed.unwrap_or_else(|| {
            if !trimmed.is_empty() {
                self.failed = Some(format!("{}: not a number", String::from_utf8_lossy(&text)));
            }
            0
        })
    }

    /// The format once, with as many values as it takes.
    fn round(&mut self, format: &[u8]) {
        let mut at = 0;
        while at < format.len() && !self.ended {
            let rest = &format[at..];
            let plain = rest.iter().position(|&b| b == b'%').unwrap_or(rest.len());
            if plain > 0 {
                self.out.extend(unescape(&rest[..plain], Style::Format).0);
                at += plain;
                continue;
            }
            at += 1;
            at += self.directive(&format[at..]);
        }
    }

    /// One `%…`; how much of the format it took.
    fn directive(&mut self, spec: &[u8]) -> usize {
        let mut at = 0;
        let (mut left, mut zero, mut plus) = (false, false, false);
        while let Some(flag) = spec.get(at) {
            match flag {
                b'-' => left = true,
                b'0' => zero = true,
                b'+' => plus = true,
                _ => break,
            }
            at += 1;
        }
        let width = self.size(spec, &mut at).unwrap_or(0);
        let mut precision = None;
        if spec.get(at) == Some(&b'.') {
            at += 1;
            precision = Some(self.size(spec, &mut at).unwrap_or(0));
        }
        let Some(&letter) = spec.get(at) else {
            self.out.push(b'%');
            return at;
        };
        at += 1;
        let mut numeric = false;
        let mut text = match letter {
            b'%' => b"%".to_vec(),
            b's' => self.next().unwrap_or_default(),
            b'q' => single_quote(&self.next().unwrap_or_default()),
            b'b' => {
                let (text, ended) = unescape(&self.next().unwrap_or_default(), Style::Echo);
                self.ended = ended;
                text
            }
            b'c' => self.next().unwrap_or_default().first().map_or(Vec::new(), |&b| vec![b]),
            b'd' | b'i' | b'u' | b'o' | b'x' | b'X' => {
                numeric = true;
                let value = self.number();
                let mut digits = match letter {
                    b'o' => format!("{value:o}"),
                    b'x' => format!("{value:x}"),
                    b'X' => format!("{value:X}"),
                    b'u' => (value as u64).to_string(),
                    _ => value.unsigned_abs().to_string(),
                };
                if let Some(least) = precision.take() {
                    zero = false;
                    digits = format!("{digits:0>least$}");
                }
                let sign = match letter {
                    b'd' | b'i' if value < 0 => "-",
                    b'd' | b'i' if plus => "+",
                    _ => "",
                };
                let pad = if zero && !left { width.saturating_sub(digits.len() + sign.len()) } else { 0 };
                format!("{sign}{}{digits}", "0".repeat(pad)).into_bytes()
            }
            other => {
                self.failed = Some(format!("%{}: not known", char::from(other)));
                self.ended = true;
                return at;
            }
        };
        if !numeric && let Some(most) = precision {
            text.truncate(most);
        }
        let pad = width.saturating_sub(text.len());
        let blanks = vec![b' '; pad];
        if left {
            self.out.extend(text);
            self.out.extend(blanks);
        } else {
            self.out.extend(blanks);
            self.out.extend(text);
        }
        at
    }

    /// A width or precision: digits or `*`, bounded.
    fn size(&mut self, spec: &[u8], at: &mut usize) -> Option<usize> {
        const MOST: usize = 4096;
        if spec.get(*at) == Some(&b'*') {
            *at += 1;
            return usize::try_from(self.number()).ok().map(|n| n.min(MOST));
        }
        let mut value = None;
        while let Some(digit) = spec.get(*at).filter(|b| b.is_ascii_digit()) {
            let digit = usize::from(digit - b'0');
            value = Some((value.unwrap_or(0usize) * 10 + digit).min(MOST));
            *at += 1;
        }
        value
    }
}

/// A decimal number with an optional sign.
pub(super) fn parse_number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Text in single quotes, as a shell reads it back.
pub fn single_quote(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    out.push(b'\'');
    for &byte in text {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            byte => out.push(byte),
        }
    }
    out.push(b'\'');
    out
}

/// The path without `.`, `..`, and repeated slashes.
fn normalized(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    [b"/".as_slice(), &parts.join(&b'/')].concat()
}

/// Splits a line for `read` into at most `most` values, the last of which keeps its separators.
fn split_line(line: &[(u8, bool)], separators: &[u8], most: usize) -> Vec<Vec<u8>> {
    let separates = |&(b, kept): &(u8, bool)| !kept && separators.contains(&b);
    let blank = |item: &(u8, bool)| separates(item) && item.0.is_ascii_whitespace();
    let mut rest = line;
    let mut values = Vec::new();
    let skip_blanks = |mut rest: &'_ [(u8, bool)]| -> usize {
        let before = rest.len();
        while let Some((first, more)) = rest.split_first()
            && blank(first)
        {
            rest = more;
        }
        before - rest.len()
    };
    rest = &rest[skip_blanks(rest)..];
    while values.len() + 1 < most && !rest.is_empty() {
        let end = rest.iter().position(separates).unwrap_or(rest.len());
        values.push(rest[..end].iter().map(|(b, _)| *b).collect());
        rest = &rest[end..];
        rest = &rest[skip_blanks(rest)..];
        if rest.first().is_some_and(|item| separates(item) && !blank(item)) {
            rest = &rest[1..];
            rest = &rest[skip_blanks(rest)..];
        }
    }
    while rest.last().is_some_and(blank) {
        rest = &rest[..rest.len() - 1];
    }
    // One separator at the very end ends the last value and is no part of it.
    if let Some((last, before)) = rest.split_last()
        && separates(last)
        && !before.iter().any(separates)
    {
        rest = before;
    }
    values.push(rest.iter().map(|(b, _)| *b).collect());
    values
}
