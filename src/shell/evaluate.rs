//! The evaluator: runs a parsed script against a [`World`].
//!
//! Everything it does burns [`Fuel`], by commands and by bytes, so a script of an image can neither hang nor fill the
//! memory where that is limited.

use super::ast::*;
use super::parse::{ParseError, parse, parse_quoted};
use super::world::{External, Target, World};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// How deep lists may run inside each other: compound commands, functions, substitutions, sourced files.
pub const MAX_RUN_DEPTH: u32 = 200;
/// What one command burns, in bytes handled.
pub(super) const COMMAND_FUEL: u64 = 64;
/// What a byte of a script burns when it is parsed: about the memory that its tree takes.
const PARSE_FUEL: u64 = 200;

/// Why an evaluation ended before the end of its script.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// `exit`, or an error that ends a shell; the exit code.
    Exit(u8),
    /// `exec` of a program, which the caller may start.
    Exec { arguments: Vec<Vec<u8>>, variables: Vec<(Vec<u8>, Vec<u8>)> },
    /// What comes next can't be done here: a process, a write, a fact that is not known.
    NeedsShell { reason: String },
}

/// How much work an evaluation may still do: bytes handled; a command counts as sixty-four.
#[derive(Clone, Debug)]
pub struct Fuel(u64);

impl Fuel {
    pub fn new(amount: u64) -> Self {
        Self(amount)
    }

    pub fn burn(&mut self, amount: u64) -> Result<(), Stop> {
        match self.0.checked_sub(amount) {
            Some(rest) => {
                self.0 = rest;
                Ok(())
            }
            None => Err(Stop::NeedsShell { reason: "the script takes too many steps".to_owned() }),
        }
    }
}

/// What happens after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Next,
    /// Leave this many loops.
    Break(u32),
    /// Go on with the loop this many levels out.
    Continue(u32),
    /// Leave the function or sourced script.
    Return,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variable {
    /// `None`: only its attributes are known (`export X`).
    pub value: Option<Vec<u8>>,
    pub exported: bool,
    pub readonly: bool,
}

/// `set -a` and its like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub allexport: bool,
    pub errexit: bool,
    pub noglob: bool,
    pub noclobber: bool,
    pub nounset: bool,
    pub xtrace: bool,
    pub pipefail: bool,
}

/// What a subshell copies.
#[derive(Clone, Debug)]
pub struct State {
    pub variables: HashMap<Vec<u8>, Variable>,
    pub functions: HashMap<Vec<u8>, Arc<Command>>,
    pub name: Vec<u8>,
    pub arguments: Vec<Vec<u8>>,
    pub options: Options,
    pub status: u8,
    /// The current directory, absolute.
    pub directory: Vec<u8>,
    /// Per running function: what its `local` variables hid.
    pub locals: Vec<HashMap<Vec<u8>, Option<Variable>>>,
    /// How many loops surround the command, within this function.
    pub loops: u32,
    pub getopts_at: usize,
}

/// A shell: state, surroundings, and what it may still do.
pub struct Shell<W: World> {
    pub state: State,
    pub world: W,
    pub fuel: Fuel,
    depth: u32,
    /// A failure here is asked about (`if`, `&&`, `!`), so `set -e` keeps quiet.
    tested: u32,
    pub(super) line: u32,
    /// The exit code of the last substitution of a command without a name.
    pub(super) substituted: Option<u8>,
}

impl<W: World> Shell<W> {
    /// A shell without variables, in `directory`.
    pub fn new(world: W, directory: &[u8], fuel: Fuel) -> Self {
        let state = State {
            variables: HashMap::new(),
            functions: HashMap::new(),
            name: b"sh".to_vec(),
            arguments: Vec::new(),
            options: Options::default(),
            status: 0,
            directory: directory.to_vec(),
            locals: Vec::new(),
            loops: 0,
            getopts_at: 0,
        };
        Self { state, world, fuel, depth: 0, tested: 0, line: 1, substituted: None }
    }

    /// A copy with a world of its own, for a pipeline's member.
    pub fn branch(&self, world: W) -> Self {
        Self {
            state: self.state.clone(),
            world,
            fuel: self.fuel.clone(),
            depth: self.depth,
            tested: self.tested,
            line: self.line,
            substituted: None,
        }
    }

    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.state.variables.get(name)?.value.as_deref()
    }

    /// Sets a variable, read-only or not, and its export attribute.
    pub fn define(&mut self, name: &[u8], value: &[u8], exported: bool) {
        let variable = self.state.variables.entry(name.to_vec()).or_default();
        variable.value = Some(value.to_vec());
        variable.exported = exported;
    }

    /// The exported variables, sorted by name.
    pub fn exported(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all: Vec<_> = self
            .state
            .variables
            .iter()
            .filter(|(_, v)| v.exported)
            .filter_map(|(name, v)| Some((name.clone(), v.value.clone()?)))
            .collect();
        all.sort();
        all
    }

    /// Assigns as a script does.
    pub(super) fn assign(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), Stop> {
        self.fuel.burn(value.len() as u64)?;
        let allexport = self.state.options.allexport;
        if self.state.variables.get(name).is_some_and(|v| v.readonly) {
            return Err(self.fatal(&format_args!("{}: is read only", String::from_utf8_lossy(name))));
        }
        if name == b"OPTIND" {
            self.state.getopts_at = 0;
        }
        match self.state.variables.get_mut(name) {
            Some(variable) => {
                variable.value = Some(value);
                variable.exported |= allexport;
            }
            None => {
                let variable = Variable { value: Some(value), exported: allexport, readonly: false };
                self.state.variables.insert(name.to_vec(), variable);
            }
        }
        Ok(())
    }

    /// Says what ends the script.
    pub(super) fn fatal(&mut self, message: &dyn fmt::Display) -> Stop {
        let status = self.complain(message);
        match status {
            Ok(()) => Stop::Exit(2),
            Err(stop) => stop,
        }
    }

    /// Writes `name: line N: message` to standard error.
    pub(super) fn complain(&mut self, message: &dyn fmt::Display) -> Result<(), Stop> {
        let name = String::from_utf8_lossy(&self.state.name).into_owned();
        let text = format!("{name}: line {}: {message}\n", self.line);
        self.world.write(2, text.as_bytes())?;
        Ok(())
    }

    /// Runs a script's text in this shell, as `.` does; `name` is for messages.
    pub fn source(&mut self, name: &[u8], text: &[u8]) -> Result<Flow, Stop> {
        self.fuel.burn(text.len() as u64 * PARSE_FUEL)?;
        let list = match parse(text) {
            Ok(list) => list,
            Err(error) => {
                self.state.status = self.world.bad_script(name, &error)?;
                return Ok(Flow::Next);
            }
        };
        let line = self.line;
        let flow = self.list(&list)?;
        self.line = line;
        Ok(flow)
    }

    /// Expands text as between double quotes.
    pub fn expand_quoted(&mut self, text: &[u8]) -> Result<Result<Vec<u8>, ParseError>, Stop> {
        match parse_quoted(text) {
            Ok(word) => self.single(&word).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    /// The line of the command that ran last, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Forgets a variable, read-only or not.
    pub fn forget(&mut self, name: &[u8]) {
        self.state.variables.remove(name);
    }

    /// Runs a whole program; its exit code.
    pub fn run(&mut self, name: &[u8], text: &[u8]) -> Result<u8, Stop> {
        match self.source(name, text) {
            Ok(_) => Ok(self.state.status),
            Err(Stop::Exit(status)) => Ok(status),
            Err(stop) => Err(stop),
        }
    }

    /// Runs `body` in a copy of the state; an `exit` in it ends only the copy.
    pub(super) fn subshell(&mut self, body: impl FnOnce(&mut Self) -> Result<Flow, Stop>) -> Result<(), Stop> {
        let state = &self.state;
        let values = state.variables.values().filter_map(|v| v.value.as_ref());
        let texts: usize = values.chain(&state.arguments).map(Vec::len).sum();
        let count = state.variables.len() + state.arguments.len() + state.functions.len();
        self.fuel.burn((texts + 32 * count) as u64)?;
        let saved = self.state.clone();
        let result = body(self);
        let status = match result {
            Ok(_) => self.state.status,
            Err(Stop::Exit(status)) => status,
            Err(stop) => return Err(stop),
        };
        self.state = saved;
        self.state.status = status;
        Ok(())
    }

    /// Runs one member of a pipeline, in a copy of the state.
    pub fn member(&mut self, command: &Command) -> Result<u8, Stop> {
        self.subshell(|shell| shell.command(command))?;
        Ok(self.state.status)
    }

    /// The output of a substitution, without the newlines at its end.
    pub(super) fn substitute(&mut self, list: &Arc<List>) -> Result<Vec<u8>, Stop> {
        let mut output = W::capture(self, &mut |shell| shell.subshell(|inner| inner.list(list)))?;
        self.substituted = Some(self.state.status);
        self.fuel.burn(output.len() as u64)?;
        while output.last() == Some(&b'\n') {
            output.pop();
        }
        output.retain(|&b| b != 0);
        Ok(output)
    }

    pub(super) fn list(&mut self, list: &[Item]) -> Result<Flow, Stop> {
        if self.depth >= MAX_RUN_DEPTH {
            let reason = format!("commands run more than {MAX_RUN_DEPTH} deep inside each other");
            self.world.unsupported(&reason)?;
            return Err(Stop::Exit(2));
        }
        self.depth += 1;
        let result = self.items(list);
        self.depth -= 1;
        result
    }

    fn items(&mut self, list: &[Item]) -> Result<Flow, Stop> {
        for item in list {
            if item.background {
                self.state.status = self.world.unsupported("a command in the background")?;
                continue;
            }
            let flow = self.item(item)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn item(&mut self, item: &Item) -> Result<Flow, Stop> {
        let mut flow = self.tested_pipeline(&item.first, !item.rest.is_empty())?;
        for (at, (connector, pipeline)) in item.rest.iter().enumerate() {
            if flow != Flow::Next {
                return Ok(flow);
            }
            let run = (self.state.status == 0) == (*connector == Connector::And);
            if run {
                flow = self.tested_pipeline(pipeline, at + 1 < item.rest.len())?;
            }
        }
        Ok(flow)
    }

    fn tested_pipeline(&mut self, pipeline: &Pipeline, tested: bool) -> Result<Flow, Stop> {
        let tested = tested || pipeline.negated;
        self.tested += u32::from(tested);
        let result = self.pipeline(pipeline);
        self.tested -= u32::from(tested);
        let flow = result?;
        if flow == Flow::Next && self.state.status != 0 && self.state.options.errexit && self.tested == 0 && !tested {
            return Err(Stop::Exit(self.state.status));
        }
        Ok(flow)
    }

    fn pipeline(&mut self, pipeline: &Pipeline) -> Result<Flow, Stop> {
        let mut flow = Flow::Next;
        match pipeline.commands.as_slice() {
            [only] => flow = self.command(only)?,
            several => {
                let statuses = W::pipeline(self, several)?;
                let last = statuses.last().copied().unwrap_or(0);
                let failed = statuses.iter().rev().copied().find(|&s| s != 0).unwrap_or(0);
                self.state.status = if self.state.options.pipefail { failed } else { last };
            }
        }
        if pipeline.negated && flow == Flow::Next {
            self.state.status = u8::from(self.state.status == 0);
        }
        Ok(flow)
    }

    fn condition(&mut self, list: &[Item]) -> Result<Flow, Stop> {
        self.tested += 1;
        let result = self.list(list);
        self.tested -= 1;
        result
    }

    pub(super) fn command(&mut self, command: &Command) -> Result<Flow, Stop> {
        self.fuel.burn(COMMAND_FUEL)?;
        self.line = command.line;
        if let CommandKind::Simple { assignments, words, declaration } = &command.kind {
            return self.simple(assignments, words, *declaration, &command.redirects);
        }
        if command.redirects.is_empty() {
            return self.compound(&command.kind);
        }
        let streams = self.world.streams();
        let result = match self.redirect(&command.redirects) {
            Ok(true) => self.compound(&command.kind),
            Ok(false) => Ok(Flow::Next),
            Err(stop) => Err(stop),
        };
        self.world.restore(streams);
        result
    }

    fn compound(&mut self, kind: &CommandKind) -> Result<Flow, Stop> {
        match kind {
            CommandKind::Simple { .. } => Ok(Flow::Next),
            CommandKind::Group(list) => self.list(list),
            CommandKind::Subshell(list) => {
                self.subshell(|shell| shell.list(list))?;
                Ok(Flow::Next)
            }
            CommandKind::If { branches, otherwise } => {
                for (condition, body) in branches {
                    let flow = self.condition(condition)?;
                    if flow != Flow::Next {
                        return Ok(flow);
                    }
                    if self.state.status == 0 {
                        return self.list(body);
                    }
                }
                self.state.status = 0;
                otherwise.as_ref().map_or(Ok(Flow::Next), |body| self.list(body))
            }
            CommandKind::For { name, words, body } => {
                let values = match words {
                    Some(words) => self.fields(words, false)?,
                    None => self.copy_arguments()?,
                };
                self.state.status = 0;
                self.looped(|shell| {
                    for value in values {
                        shell.fuel.burn(COMMAND_FUEL)?;
                        shell.assign(name, value)?;
                        if let Some(flow) = after_round(shell.list(body)?) {
                            return Ok(flow);
                        }
                    }
                    Ok(Flow::Next)
                })
            }
            CommandKind::While { condition, body, until } => self.looped(|shell| {
                let mut status = 0;
                loop {
                    shell.fuel.burn(COMMAND_FUEL)?;
                    if let Some(flow) = after_round(shell.condition(condition)?) {
                        return Ok(flow);
                    }
                    if (shell.state.status == 0) == *until {
                        shell.state.status = status;
                        return Ok(Flow::Next);
                    }
                    if let Some(flow) = after_round(shell.list(body)?) {
                        return Ok(flow);
                    }
                    status = shell.state.status;
                }
            }),
            CommandKind::Case { word, arms } => {
                let value = self.single(word)?;
                for (patterns, body) in arms {
                    for pattern in patterns {
                        if self.fits(pattern, &value)? {
                            self.state.status = 0;
                            return self.list(body);
                        }
                    }
                }
                self.state.status = 0;
                Ok(Flow::Next)
            }
            CommandKind::Function { name, body } => {
                self.state.functions.insert(name.clone(), Arc::clone(body));
                self.state.status = 0;
                Ok(Flow::Next)
            }
            CommandKind::Conditional(condition) => {
                let holds = self.holds(condition)?;
                self.state.status = u8::from(!holds);
                Ok(Flow::Next)
            }
            CommandKind::Arithmetic(word) => {
                let text = self.single(word)?;
                let value = self.arithmetic(&text)?;
                self.state.status = u8::from(value == 0);
                Ok(Flow::Next)
            }
        }
    }

    fn looped(&mut self, body: impl FnOnce(&mut Self) -> Result<Flow, Stop>) -> Result<Flow, Stop> {
        self.state.loops += 1;
        let result = body(self);
        self.state.loops = self.state.loops.saturating_sub(1);
        result
    }

    fn simple(
        &mut self,
        assignments: &[Assignment],
        words: &[Word],
        declaration: bool,
        redirects: &[Redirect],
    ) -> Result<Flow, Stop> {
        self.substituted = None;
        let arguments = self.fields(words, declaration)?;
        if arguments.is_empty() {
            let streams = self.world.streams();
            let redirected = self.redirect(redirects);
            self.world.restore(streams);
            if !redirected? {
                return Ok(Flow::Next);
            }
            for assignment in assignments {
                let value = self.assigned(assignment)?;
                self.trace(&[[&assignment.name[..], b"=", &value].concat()])?;
                self.assign(&assignment.name, value)?;
            }
            self.state.status = self.substituted.unwrap_or(0);
            return Ok(Flow::Next);
        }
        self.trace(&arguments)?;
        // `exec` without a program keeps its redirections.
        let keep = arguments.len() == 1 && arguments[0] == b"exec";
        let streams = self.world.streams();
        let result = match self.redirect(redirects) {
            Ok(true) => self.with_assignments(assignments, &arguments),
            Ok(false) => Ok(Flow::Next),
            Err(stop) => Err(stop),
        };
        if !keep {
            self.world.restore(streams);
        }
        result
    }

    fn trace(&mut self, arguments: &[Vec<u8>]) -> Result<(), Stop> {
        if self.state.options.xtrace {
            let line = [b"+ ".as_slice(), &arguments.join(&b' '), b"\n"].concat();
            self.world.write(2, &line)?;
        }
        Ok(())
    }

    fn assigned(&mut self, assignment: &Assignment) -> Result<Vec<u8>, Stop> {
        let value = self.single(&assignment.value)?;
        if !assignment.append {
            return Ok(value);
        }
        let mut whole = self.get(&assignment.name).unwrap_or_default().to_vec();
        whole.extend(value);
        Ok(whole)
    }

    /// Runs a command with assignments before it, which hold only while it runs.
    fn with_assignments(&mut self, assignments: &[Assignment], arguments: &[Vec<u8>]) -> Result<Flow, Stop> {
        let mut hidden = Vec::new();
        for assignment in assignments {
            let value = self.assigned(assignment)?;
            hidden.push((assignment.name.clone(), self.state.variables.get(&assignment.name).cloned()));
            self.assign(&assignment.name, value)?;
            if let Some(variable) = self.state.variables.get_mut(&assignment.name) {
                variable.exported = true;
            }
        }
        let result = self.invoke(arguments, true);
        for (name, variable) in hidden.into_iter().rev() {
            match variable {
                Some(variable) => self.state.variables.insert(name, variable),
                None => self.state.variables.remove(&name),
            };
        }
        result
    }

    /// Runs a function (unless told not to), a built-in or a program.
    pub(super) fn invoke(&mut self, arguments: &[Vec<u8>], functions: bool) -> Result<Flow, Stop> {
        let Some(name) = arguments.first() else {
            self.state.status = 0;
            return Ok(Flow::Next);
        };
        if functions && let Some(body) = self.state.functions.get(name).cloned() {
            return self.call(&body, &arguments[1..]);
        }
        if let Some(flow) = self.builtin(arguments)? {
            return Ok(flow);
        }
        let command = External {
            arguments,
            variables: self.exported(),
            path: self.get(b"PATH").map(<[u8]>::to_vec),
            directory: &self.state.directory,
        };
        self.state.status = self.world.run(command)?;
        Ok(Flow::Next)
    }

    fn call(&mut self, body: &Arc<Command>, arguments: &[Vec<u8>]) -> Result<Flow, Stop> {
        if self.depth >= MAX_RUN_DEPTH {
            let reason = format!("functions call each other more than {MAX_RUN_DEPTH} deep");
            self.world.unsupported(&reason)?;
            return Err(Stop::Exit(2));
        }
        self.burn_list(arguments)?;
        self.depth += 1;
        let outer = std::mem::replace(&mut self.state.arguments, arguments.to_vec());
        let loops = std::mem::take(&mut self.state.loops);
        self.state.locals.push(HashMap::new());
        let result = self.command(body);
        for (name, variable) in self.state.locals.pop().unwrap_or_default() {
            match variable {
                Some(variable) => self.state.variables.insert(name, variable),
                None => self.state.variables.remove(&name),
            };
        }
        self.state.loops = loops;
        self.state.arguments = outer;
        self.depth -= 1;
        // A function's `return` is over here, and its loops are not the caller's.
        result.map(|_| Flow::Next)
    }

    /// The positional parameters, paid for.
    pub(super) fn copy_arguments(&mut self) -> Result<Vec<Vec<u8>>, Stop> {
        let arguments = self.state.arguments.clone();
        self.burn_list(&arguments)?;
        Ok(arguments)
    }

    /// Burns what a copy of these texts costs, the empty ones as well.
    pub(super) fn burn_list(&mut self, list: &[Vec<u8>]) -> Result<(), Stop> {
        self.fuel.burn(list.iter().map(|text| text.len() as u64 + COMMAND_FUEL).sum())
    }

    /// Performs redirections; false when one failed (the exit code is set).
    fn redirect(&mut self, redirects: &[Redirect]) -> Result<bool, Stop> {
        for redirect in redirects {
            self.line = redirect.line;
            let mut both = false;
            let clobber = !self.state.options.noclobber;
            let target = match &redirect.target {
                RedirectTarget::Read(word) => Target::Read(self.path(word)?),
                RedirectTarget::Write(word) => Target::Write { path: self.path(word)?, append: false, clobber },
                RedirectTarget::Append(word) => Target::Write { path: self.path(word)?, append: true, clobber },
                RedirectTarget::ReadWrite(word) => Target::ReadWrite(self.path(word)?),
                RedirectTarget::Both(word) => {
                    both = true;
                    Target::Write { path: self.path(word)?, append: false, clobber }
                }
                RedirectTarget::HereDocument(body) => {
                    let text = body.get().map_or(Ok(Vec::new()), |word| self.single(word))?;
                    Target::Text(text)
                }
                RedirectTarget::HereString(word) => {
                    let mut text = self.single(word)?;
                    text.push(b'\n');
                    Target::Text(text)
                }
                RedirectTarget::Duplicate(word) => {
                    let text = self.single(word)?;
                    if text == b"-" {
                        Target::Close
                    } else if let Some(number) = std::str::from_utf8(&text).ok().and_then(|t| t.parse().ok()) {
                        Target::Duplicate(number)
                    } else if redirect.descriptor == 1 {
                        // `>&file` is an old spelling of `&>file`.
                        both = true;
                        Target::Write { path: self.absolute(&text), append: false, clobber }
                    } else {
                        return Err(self.fatal(&format_args!("{}: bad descriptor", String::from_utf8_lossy(&text))));
                    }
                }
            };
            let mut done = self.world.redirect(redirect.descriptor, target)?;
            if both && done.is_ok() {
                done = self.world.redirect(2, Target::Duplicate(1))?;
            }
            if let Err(message) = done {
                self.complain(&message)?;
                self.state.status = 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn path(&mut self, word: &Word) -> Result<Vec<u8>, Stop> {
        let path = self.single(word)?;
        Ok(self.absolute(&path))
    }

    /// `path` as seen from the current directory.
    pub(super) fn absolute(&self, path: &[u8]) -> Vec<u8> {
        if path.first() == Some(&b'/') {
            return path.to_vec();
        }
        let mut whole = self.state.directory.clone();
        if whole.last() != Some(&b'/') {
            whole.push(b'/');
        }
        whole.extend_from_slice(path);
        whole
    }

    /// Remembers what a `local` variable hides; outside of functions it hides nothing.
    pub(super) fn hide(&mut self, name: &[u8]) {
        let current = self.state.variables.get(name).cloned();
        if let Some(locals) = self.state.locals.last_mut() {
            locals.entry(name.to_vec()).or_insert(current);
        }
    }
}

/// Whether a loop ends after a round, and how.
fn after_round(flow: Flow) -> Option<Flow> {
    match flow {
        Flow::Next | Flow::Continue(0 | 1) => None,
        Flow::Break(0 | 1) => Some(Flow::Next),
        Flow::Break(levels) => Some(Flow::Break(levels - 1)),
        Flow::Continue(levels) => Some(Flow::Continue(levels - 1)),
        Flow::Return => Some(Flow::Return),
    }
}
