//! The environment of the payload, and the program that each verb runs.
//!
//! ```text
//! host variables ── filtered ──► set aside ───────────────────────────────┐
//! image: /.singularity.d/env/*.sh, in name order ──► a shell ──► exported │
//!        after 99-base.sh: SIFUENV_X, APPTAINERENV_X, SINGULARITYENV_X,   │ names the image has not set come back;
//!                          --env-file, --env                              │ those it has set to nothing go
//!        after 99-runtimevars.sh: PREPEND_PATH, APPEND_PATH, PATH         ▼
//!                                                             PS1, PROMPT_COMMAND, … ──► the payload
//! ```
//!
//! The scripts are evaluated here and now, by [`crate::shell`], without a process. Where a script needs one (it runs a
//! program, writes a file, asks about what will be mounted), the same steps are written down as a script, the driver,
//! for a shell inside the container.

use super::request::{LaunchRequest, Verb};
use crate::host_command;
use crate::report::Hint;
use crate::shell::evaluate::{Fuel, Shell, Stop};
use crate::shell::parse::MAX_SCRIPT_BYTES;
use crate::shell::pure::{self, PureWorld};
use crate::shell::{is_name, single_quote};
use crate::tree::lookup::{self, Entry, Kind, Lookup, LookupError, Stat};
use starter::paths::ContainerPath;
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// The `PATH` of a container whose image sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the caller's `PATH` is extended by in `USER_PATH`.
const USER_PATH_TAIL: &str = "/bin:/usr/bin:/sbin:/usr/sbin:/usr/local/bin:/usr/local/sbin";
/// Where host libraries are bound.
const LIBRARIES: &str = "/.singularity.d/libs";
const NARROW_LIBRARIES: &str = "/.singularity.d/libs32";
const PROMPT: &str = "Apptainer> ";
/// The script that a definition file's `%post` may append to.
const CUSTOM_SCRIPT: &str = "/.singularity.d/env/91-environment.sh";

/// Prefixes of host variables that set one inside, the strongest first.
const INJECTING: [&str; 3] = ["SIFUENV_", "APPTAINERENV_", "SINGULARITYENV_"];
/// Prefixes of variables that speak to the runtime and stay outside.
const OURS: [&str; 3] = ["SIFU_", "APPTAINER_", "SINGULARITY_"];
/// Host variables that pass `--cleanenv`.
const ALWAYS_PASSED: [&str; 11] = [
    "TERM",
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "ftp_proxy",
    "FTP_PROXY",
];
/// Host variables that never pass as they are.
const NEVER_PASSED: [&str; 3] = ["HOME", "PATH", "LD_LIBRARY_PATH"];
/// Names that no user may set from outside.
const FIXED: [&str; 5] = ["HOME", "APPTAINER_SHELL", "APPTAINER_APPNAME", "SINGULARITY_SHELL", "SINGULARITY_APPNAME"];
/// Variables that the image's scripts see with the values they have outside.
const NOT_HIDDEN: [&str; 7] = ["PWD", "HOME", "OPTIND", "UID", "GID", "SINGULARITY_APPNAME", "SINGULARITY_SHELL"];
/// Variables that the image's scripts see and can't change.
const KEPT: [&str; 3] = ["APPTAINER_NAME", "APPTAINER_CONTAINER", "APPTAINER_INSTANCE"];
/// Names under which values for edits of search paths travel.
const EDITS: [(&str, &str); 5] = [
    ("PREPEND_PATH", "SING_USER_DEFINED_PREPEND_PATH"),
    ("APPEND_PATH", "SING_USER_DEFINED_APPEND_PATH"),
    ("PATH", "SING_USER_DEFINED_PATH"),
    ("PREPEND_LD_LIBRARY_PATH", "SING_USER_DEFINED_PREPEND_LD_LIBRARY_PATH"),
    ("APPEND_LD_LIBRARY_PATH", "SING_USER_DEFINED_APPEND_LD_LIBRARY_PATH"),
];

/// What all environment scripts of an image may hold together.
const MAX_SCRIPTS_BYTES: u64 = 1 << 20;

/// A variable's name and value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// What is known of this start beside the request. All paths inside the container unless said otherwise.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentFacts {
    /// The caller's variables, in order.
    pub host: Vec<Pair>,
    /// The contents of `request.env_files`, in order.
    pub env_files: Vec<EnvFile>,
    /// The image's absolute path on the host.
    pub image_path: Vec<u8>,
    /// The image's file name.
    pub image_name: Vec<u8>,
    /// Destinations of the user's binds.
    pub binds: Vec<Vec<u8>>,
    pub home: Vec<u8>,
    /// The payload's first directory.
    pub directory: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    /// The instance's name, for processes of one.
    pub instance: Option<Vec<u8>>,
    /// Libraries of the host are bound at `/.singularity.d/libs`.
    pub libraries_bound: bool,
    /// Commands of the host stand in [`host_command::DIRECTORY`].
    pub has_host_commands: bool,
    /// And such of 32 bits at `/.singularity.d/libs32`.
    pub narrow_libraries_bound: bool,
    /// Mount points: below them the image is not what will be seen.
    pub covered: Vec<ContainerPath>,
}

/// An environment file as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvFile {
    /// As given, for messages.
    pub path: Vec<u8>,
    pub content: Vec<u8>,
}

/// The payload's environment, as far as it can be known before the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Environment {
    /// All of it, sorted by name; which of the caller's variables came back unseen by the image, and so with the caller's
    /// values, whatever those are; and what the image's scripts said, to be passed on before the payload starts.
    Known { variables: Vec<Pair>, unseen: Vec<Vec<u8>>, output: Output },
    /// A script of the image ends the start with this exit code.
    Ended { code: u8, output: Output },
    /// A script needs a process. `shell -c DRIVER sh PROGRAM ARGUMENTS…`, started with the variables of `initial`,
    /// evaluates the scripts and becomes the program.
    NeedsShell { reason: String, shell: ShellProgram, driver: Vec<u8>, initial: Vec<Pair> },
}

/// What scripts wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Which shell runs the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShellProgram {
    /// One of the image: bash, whose language is nearest to what such scripts expect, else `/bin/sh`.
    Image(ContainerPath),
    /// [`crate::shell`], inside.
    Embedded,
}

/// Something to tell the user that stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The old spelling of a prefix was used.
    OldPrefix { name: String },
    /// Two spellings of a variable disagree.
    Disagreement { used: String, ignored: String },
    /// This name can't be set from outside.
    Fixed { name: String, by: String },
    /// No shell can hold a variable of this name.
    BadName { name: String },
    /// The value is no text that a shell could expand; it is taken as it is.
    Literal { name: String, problem: String },
}

impl Notice {
    /// Whether it is only information, no warning.
    pub fn is_information(&self) -> bool {
        matches!(self, Self::OldPrefix { .. })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldPrefix { name } => {
                let rest = name.strip_prefix("SINGULARITYENV_").unwrap_or(name);
                write!(f, "environment variable {name} is set, but APPTAINERENV_{rest} is preferred")
            }
            Self::Disagreement { used, ignored } => {
                write!(f, "{ignored} and {used} have different values, using the latter")
            }
            Self::Fixed { name, by } => write!(f, "{name} cannot be set by {by}, ignored"),
            Self::BadName { name } => write!(f, "`{name}` is no name of a shell variable, ignored"),
            Self::Literal { name, problem } => write!(f, "value of {name} taken literally: {problem}"),
        }
    }
}

/// Why there is no environment.
#[derive(Debug)]
pub enum EnvironmentError {
    /// An environment file can't be evaluated.
    File { path: String, problem: String },
    /// The image can't be read.
    Image(LookupError),
}

impl fmt::Display for EnvironmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, problem } => write!(f, "cannot evaluate the environment file {path}: {problem}"),
            Self::Image(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EnvironmentError {}

impl Hint for EnvironmentError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::File { .. } => vec![
                "An environment file holds assignments as a shell reads them; it can't run programs or use files."
                    .to_owned(),
            ],
            Self::Image(_) => Vec::new(),
        }
    }
}

/// What is to be started inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A program: looked for on `PATH` inside when its name holds no slash.
    Run {
        /// Program and arguments; never empty.
        arguments: Vec<Vec<u8>>,
        /// The value that `SHELL` gets.
        shell_variable: Option<&'static str>,
        information: Option<&'static str>,
    },
    /// There is nothing to do, and that is a success.
    Nothing { information: &'static str },
    /// There is nothing to do, and that is a failure.
    Missing { problem: String, code: u8 },
}

/// Chooses what the verb starts.
pub fn actions(
    request: &LaunchRequest,
    image: &dyn Lookup,
    covered: &[ContainerPath],
) -> Result<Action, EnvironmentError> {
    let arguments = || request.arguments.iter().map(|a| a.as_bytes().to_vec());
    let run = |program: &[u8]| Action::Run {
        arguments: std::iter::once(program.to_vec()).chain(arguments()).collect(),
        shell_variable: None,
        information: None,
    };
    let is_program = |path: &str| is_program(image, &[], path.as_bytes());
    match request.verb {
        Verb::Exec => Ok(Action::Run { arguments: arguments().collect(), shell_variable: None, information: None }),
        Verb::Shell => {
            if let Some(shell) = &request.shell
                && is_program_or_covered(image, covered, shell)?
            {
                let arguments = vec![shell.clone()];
                return Ok(Action::Run { arguments, shell_variable: None, information: None });
            }
            for (path, arguments) in [("/bin/bash", &["/bin/bash", "--norc"][..]), ("/bin/sh", &["/bin/sh"])] {
                if is_program(path)? {
                    let arguments = arguments.iter().map(|a| a.as_bytes().to_vec()).collect();
                    return Ok(Action::Run { arguments, shell_variable: Some(path), information: None });
                }
            }
            Ok(Action::Missing { problem: "no /bin/bash and no /bin/sh in the image".to_owned(), code: 255 })
        }
        Verb::Run | Verb::Test => {
            let script = if request.verb == Verb::Run { "runscript" } else { "test" };
            if let Some(app) = request.app.as_ref().filter(|a| !a.is_empty()) {
                let path = [b"/scif/apps/", app.as_slice(), b"/scif/", script.as_bytes()].concat();
                for candidate in [path, b"/scif/apps/singularity/scif/test".to_vec()] {
                    if self::is_program(image, &[], &candidate)? {
                        return Ok(run(&candidate));
                    }
                }
                let problem = format!("no {script} for the app {}", String::from_utf8_lossy(app));
                return Ok(Action::Missing { problem, code: 1 });
            }
            let own = format!("/.singularity.d/{script}");
            if is_program(&own)? {
                return Ok(run(own.as_bytes()));
            }
            if request.verb == Verb::Test {
                return Ok(Action::Nothing { information: "no test script found in the container, nothing to do" });
            }
            if is_program("/apptainer")? {
                return Ok(run(b"/apptainer"));
            }
            if is_program("/bin/sh")? {
                let mut action = run(b"/bin/sh");
                if let Action::Run { information, .. } = &mut action {
                    *information = Some("no runscript found in the container, executing /bin/sh");
                }
                return Ok(action);
            }
            Ok(Action::Missing { problem: "no runscript and no /bin/sh in the image".to_owned(), code: 255 })
        }
    }
}

/// Computes the payload's environment. Pure: same inputs, same answer.
pub fn environment(
    request: &LaunchRequest,
    facts: &EnvironmentFacts,
    action: &Action,
    image: &dyn Lookup,
) -> Result<(Environment, Vec<Notice>), EnvironmentError> {
    let mut notices = Vec::new();
    let injections = injections(request, facts, &mut notices)?;
    let start = Start::new(request, facts, &injections);
    let steps = steps(image)?;
    let shell_variable = match action {
        Action::Run { shell_variable, .. } => *shell_variable,
        Action::Nothing { .. } | Action::Missing { .. } => None,
    };
    let evaluation = Evaluation { facts, start: &start, injections: &injections, steps: &steps, shell_variable };
    let environment = match evaluation.evaluate(image) {
        Ok(known) => known,
        Err(reason) => {
            let shell = shell_program(image)?;
            let driver = evaluation.driver(&shell);
            Environment::NeedsShell { reason, shell, driver, initial: evaluation.initial() }
        }
    };
    Ok((environment, notices))
}

/// Evaluates a runscript that was made from an OCI image's entry point, which ends in `exec`: the arguments of that
/// `exec`, without a shell having run. `None` when the script is not of this kind, or needs a process.
pub fn oci_runscript(
    arguments: &[Vec<u8>],
    variables: &[Pair],
    facts: &EnvironmentFacts,
    image: &dyn Lookup,
) -> Option<Vec<Vec<u8>>> {
    const PATH: &str = "/.singularity.d/runscript";
    const MARK: &[u8] = b"eval \"set ${SINGULARITY_OCI_RUN}\"";
    let (program, rest) = arguments.split_first()?;
    if program != PATH.as_bytes() {
        return None;
    }
    let text = lookup::read(image, &ContainerPath::fixed(PATH), MAX_SCRIPT_BYTES as u64).ok()??;
    if !text.split(|&b| b == b'\n').any(|line| line == MARK) {
        return None;
    }
    let world = PureWorld::new(image, &facts.covered).allow_exec();
    let mut shell = Shell::new(world, &facts.directory, Fuel::new(pure::FUEL));
    for (name, value) in variables.iter().filter(|(name, _)| is_name(name)) {
        shell.define(name, value, true);
    }
    shell.state.name = program.clone();
    shell.state.arguments = rest.to_vec();
    let stop = shell.source(program, &text).err()?;
    // A script that says something, or changes the variables that the program gets, is left to a shell.
    let quiet = shell.world.stdout.is_empty() && shell.world.stderr.is_empty();
    match stop {
        Stop::Exec { arguments, variables: given } if quiet => {
            let known: Vec<&Pair> = variables.iter().filter(|(name, _)| is_name(name)).collect();
            (given.iter().eq(known)).then_some(arguments)
        }
        _ => None,
    }
}

/// A variable set from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Injection {
    name: Vec<u8>,
    value: Vec<u8>,
    /// Expanded inside, as between double quotes.
    expanded: bool,
}

/// Collects what prefixes, files and options set, by rising strength of the source.
fn injections(
    request: &LaunchRequest,
    facts: &EnvironmentFacts,
    notices: &mut Vec<Notice>,
) -> Result<Vec<Injection>, EnvironmentError> {
    let mut all: Vec<(Vec<u8>, Vec<u8>, String)> = Vec::new();
    let set = |name: &[u8], value: &[u8], by: String, all: &mut Vec<(Vec<u8>, Vec<u8>, String)>| {
        all.retain(|(known, ..)| known != name);
        all.push((name.to_vec(), value.to_vec(), by));
    };
    for prefix in INJECTING {
        for (spelled, value) in &facts.host {
            let Some(name) = spelled.strip_prefix(prefix.as_bytes()).filter(|n| !n.is_empty()) else { continue };
            let spelled = text(spelled);
            let earlier = all.iter().find(|(known, ..)| known == name);
            match earlier {
                Some((_, known, used)) if known != value && *used != spelled => {
                    notices.push(Notice::Disagreement { used: used.clone(), ignored: spelled });
                }
                Some(_) => {}
                None => {
                    if prefix == "SINGULARITYENV_" {
                        notices.push(Notice::OldPrefix { name: spelled.clone() });
                    }
                    set(name, value, spelled, &mut all);
                }
            }
        }
    }
    for file in &facts.env_files {
        for (name, value) in evaluate_file(file, facts)? {
            set(&name, &value, text(&file.path), &mut all);
        }
    }
    for (name, value) in &request.env {
        set(name, value, "--env".to_owned(), &mut all);
    }
    let mut injections = Vec::new();
    for (name, mut value, by) in all {
        if FIXED.iter().any(|fixed| name == fixed.as_bytes()) {
            notices.push(Notice::Fixed { name: text(&name), by });
            continue;
        }
        if !is_name(&name) {
            notices.push(Notice::BadName { name: text(&name) });
            continue;
        }
        // The shell's own; whoever starts the container is who they are.
        if name == b"UID" || name == b"GID" {
            continue;
        }
        if name == b"LD_LIBRARY_PATH" && !value.is_empty() {
            value.extend_from_slice(format!(":{LIBRARIES}").as_bytes());
        }
        let mut expanded = !request.no_eval;
        if expanded && let Err(error) = crate::shell::parse::parse_quoted(&quotable(&value)) {
            notices.push(Notice::Literal { name: text(&name), problem: error.problem.to_string() });
            expanded = false;
        }
        let edit = EDITS.iter().find(|(short, _)| name == short.as_bytes());
        let name = edit.map_or(name, |(_, long)| long.as_bytes().to_vec());
        injections.push(Injection { name, value, expanded });
    }
    Ok(injections)
}

/// Evaluates an environment file: assignments, with the host's variables to be seen and everything exported.
fn evaluate_file(file: &EnvFile, facts: &EnvironmentFacts) -> Result<Vec<Pair>, EnvironmentError> {
    let everything = [ContainerPath::root()];
    let mut shell = pure::shell(&Nothing, &everything, &facts.directory);
    for (name, value) in facts.host.iter().filter(|(name, _)| is_name(name)) {
        shell.define(name, value, false);
    }
    shell.state.options.allexport = true;
    shell.state.name.clone_from(&file.path);
    let problem = match shell.run(&file.path, &file.content) {
        Ok(0) => return Ok(shell.exported()),
        Ok(_) if shell.world.stderr.is_empty() => return Ok(shell.exported()),
        Ok(_) => text(shell.world.stderr.trim_ascii_end()),
        Err(Stop::NeedsShell { reason }) => format!("line {}: it {reason}", shell.line()),
        Err(Stop::Exit(_) | Stop::Exec { .. }) => "it ends early".to_owned(),
    };
    Err(EnvironmentError::File { path: text(&file.path), problem })
}

/// A file system without files.
struct Nothing;

impl Lookup for Nothing {
    fn lstat(&self, _: &ContainerPath) -> Result<Option<Stat>, LookupError> {
        Ok(None)
    }
    fn read_link(&self, _: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
        Ok(None)
    }
    fn read_file(&self, _: &ContainerPath, _: u64) -> Result<Option<Vec<u8>>, LookupError> {
        Ok(None)
    }
    fn read_dir(&self, _: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
        Ok(None)
    }
}

/// The variables as they stand before the image has its say.
struct Start {
    /// Seen by the image's scripts.
    visible: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Set aside until the scripts have run.
    hidden: BTreeMap<Vec<u8>, Vec<u8>>,
    /// With names that no shell can hold; handed over as they are.
    untouchable: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Start {
    fn new(request: &LaunchRequest, facts: &EnvironmentFacts, injections: &[Injection]) -> Self {
        let mut all: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (name, value) in &facts.host {
            if passes(name, request) && !injections.iter().any(|i| i.name == *name) {
                all.insert(name.clone(), value.clone());
            }
        }
        let mut set = |name: &str, value: &[u8]| {
            all.insert(name.as_bytes().to_vec(), value.to_vec());
        };
        if request.cleanenv {
            set("LANG", b"C");
        } else if let Some((_, path)) = facts.host.iter().find(|(name, _)| name == b"PATH") {
            let separator: &[u8] = if path.is_empty() { b"" } else { b":" };
            set("USER_PATH", &[path.as_slice(), separator, USER_PATH_TAIL.as_bytes()].concat());
        }
        set("HOME", &facts.home);
        set("PATH", DEFAULT_PATH.as_bytes());
        set("PWD", &facts.directory);
        let app = request.app.as_deref().unwrap_or_default();
        let binds = facts.binds.join(&b',');
        for prefix in ["APPTAINER", "SINGULARITY"] {
            let mut both = |name: &str, value: &[u8]| set(&format!("{prefix}_{name}"), value);
            both("CONTAINER", &facts.image_path);
            both("NAME", &facts.image_name);
            both("BIND", &binds);
            if let Some(instance) = &facts.instance {
                both("INSTANCE", instance);
            }
            if let Some(shell) = &request.shell {
                both("SHELL", shell);
            }
            if request.no_eval {
                both("NO_EVAL", b"1");
            }
            if !app.is_empty() {
                both("APPNAME", app);
            }
        }
        set("APPTAINER_APPNAME", app);
        set("APPTAINER_COMMAND", request.verb.name().as_bytes());
        let mut start = Self { visible: BTreeMap::new(), hidden: BTreeMap::new(), untouchable: BTreeMap::new() };
        for (name, value) in all {
            let seen = NOT_HIDDEN.iter().chain(&KEPT).any(|n| name == n.as_bytes());
            let place = match (is_name(&name), seen) {
                (false, _) => &mut start.untouchable,
                (true, true) => &mut start.visible,
                (true, false) => &mut start.hidden,
            };
            place.insert(name, value);
        }
        start
    }
}

/// Whether a variable of the host is one of the container's.
fn passes(name: &[u8], request: &LaunchRequest) -> bool {
    let is = |list: &[&str]| list.iter().any(|n| name == n.as_bytes());
    if OURS.iter().chain(&INJECTING).any(|prefix| name.starts_with(prefix.as_bytes())) || name.is_empty() {
        return false;
    }
    if is(&ALWAYS_PASSED) {
        return true;
    }
    // A function that bash has exported is code for another system's bash.
    !request.cleanenv
        && !is(&NEVER_PASSED)
        && !request.no_env.iter().any(|n| n == name)
        && !name.starts_with(b"BASH_FUNC_")
}

/// What happens between the bare start and the payload, in order.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Sets `PATH` if nothing has.
    DefaultPath,
    /// Runs a script of the image.
    Source { path: Vec<u8>, text: Vec<u8> },
    /// Appends what is missing of the default `PATH`.
    CompletePath,
    /// Sets what was asked for from outside.
    Inject,
    /// Edits `PATH` and `LD_LIBRARY_PATH` as asked.
    EditPaths,
}

fn steps(image: &dyn Lookup) -> Result<Vec<Step>, EnvironmentError> {
    const DIRECTORY: &str = "/.singularity.d/env";
    let mut left_bytes = MAX_SCRIPTS_BYTES;
    let mut read = |path: &ContainerPath| {
        let limit = left_bytes.min(MAX_SCRIPT_BYTES as u64);
        let text = lookup::read(image, path, limit).map_err(EnvironmentError::Image)?;
        left_bytes = left_bytes.saturating_sub(text.as_ref().map_or(0, |text| text.len() as u64));
        Ok(text)
    };
    let directory = ContainerPath::fixed(DIRECTORY);
    let mut steps = Vec::new();
    let mut edited = false;
    match lookup::list(image, &directory).map_err(EnvironmentError::Image)? {
        Some(entries) => {
            for Entry { name, .. } in entries {
                if !name.ends_with(b".sh") || name.starts_with(b".") {
                    continue;
                }
                let Ok(path) = directory.join(&name) else { continue };
                let Some(text) = read(&path)? else { continue };
                let script = Step::Source { path: path.as_bytes().to_vec(), text };
                match name.as_slice() {
                    b"90-environment.sh" => steps.extend([Step::DefaultPath, script]),
                    b"10-docker2singularity.sh" | b"10-docker.sh" => steps.extend([script, Step::CompletePath]),
                    b"99-base.sh" => steps.extend([script, Step::Inject]),
                    // The image's copy knows only what its builder knew.
                    b"99-runtimevars.sh" => {
                        edited = true;
                        steps.push(Step::EditPaths);
                    }
                    _ => steps.push(script),
                }
            }
        }
        // Images older than Singularity 2.3.
        None => {
            let path = ContainerPath::fixed("/environment");
            if let Some(text) = read(&path)? {
                let script = Step::Source { path: path.as_bytes().to_vec(), text };
                steps.extend([script, Step::CompletePath]);
            }
        }
    }
    if !steps.contains(&Step::Inject) {
        // No 99-base.sh: after everything else, but before the edits.
        let at = if edited { steps.iter().position(|s| *s == Step::EditPaths) } else { None };
        steps.insert(at.unwrap_or(steps.len()), Step::Inject);
    }
    if !edited {
        steps.push(Step::EditPaths);
    }
    Ok(steps)
}

struct Evaluation<'a> {
    facts: &'a EnvironmentFacts,
    start: &'a Start,
    injections: &'a [Injection],
    steps: &'a [Step],
    shell_variable: Option<&'static str>,
}

impl Evaluation<'_> {
    /// Evaluates without a process; the error says what needs one.
    fn evaluate(&self, image: &dyn Lookup) -> Result<Environment, String> {
        let mut shell = pure::shell(image, &self.facts.covered, &self.facts.directory);
        for (name, value) in &self.start.visible {
            shell.define(name, value, true);
        }
        for (name, number) in [("UID", self.facts.uid), ("GID", self.facts.gid)] {
            if shell.get(name.as_bytes()).is_none() {
                shell.define(name.as_bytes(), number.to_string().as_bytes(), false);
            }
        }
        let ended = self.perform(&mut shell);
        let output = |shell: &mut Shell<PureWorld<'_>>| Output {
            stdout: std::mem::take(&mut shell.world.stdout),
            stderr: std::mem::take(&mut shell.world.stderr),
        };
        match ended {
            Ok(()) => {}
            Err(Stop::Exit(code)) => return Ok(Environment::Ended { code, output: output(&mut shell) }),
            Err(Stop::NeedsShell { reason }) => return Err(reason),
            Err(Stop::Exec { .. }) => return Err("becomes another program".to_owned()),
        }
        let unseen = self.finish(&mut shell);
        let mut variables = shell.exported();
        variables.extend(self.start.untouchable.iter().map(|(n, v)| (n.clone(), v.clone())));
        variables.sort();
        Ok(Environment::Known { variables, unseen, output: output(&mut shell) })
    }

    fn perform(&self, shell: &mut Shell<PureWorld<'_>>) -> Result<(), Stop> {
        for step in self.steps {
            match step {
                Step::Source { path, text } => {
                    shell.source(path, text)?;
                }
                Step::DefaultPath => {
                    if shell.get(b"PATH").is_none() {
                        shell.define(b"PATH", DEFAULT_PATH.as_bytes(), true);
                    }
                }
                Step::CompletePath => {
                    let path = complete_path(shell.get(b"PATH").unwrap_or_default());
                    shell.define(b"PATH", &path, true);
                }
                Step::Inject => {
                    if shell.get(b"PATH").is_none() {
                        shell.define(b"PATH", DEFAULT_PATH.as_bytes(), true);
                    }
                    for injection in self.injections {
                        let value = if injection.expanded {
                            let expanded = shell.expand_quoted(&quotable(&injection.value))?;
                            expanded.unwrap_or_else(|_| injection.value.clone())
                        } else {
                            injection.value.clone()
                        };
                        shell.define(&injection.name, &value, true);
                    }
                }
                Step::EditPaths => {
                    if let Some(path) = edited(shell, "PATH") {
                        shell.define(b"PATH", &path, true);
                    }
                    if let Some(path) = edited(shell, "LD_LIBRARY_PATH") {
                        shell.define(b"LD_LIBRARY_PATH", &path, true);
                    }
                    for (_, name) in EDITS {
                        shell.forget(name.as_bytes());
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the linker has to look for libraries of the host.
    fn library_directories(&self) -> impl Iterator<Item = &'static str> {
        let wide = self.facts.libraries_bound.then_some(LIBRARIES);
        wide.into_iter().chain(self.facts.narrow_libraries_bound.then_some(NARROW_LIBRARIES))
    }

    /// Brings back what was set aside, and sets what always is; says what came back.
    fn finish(&self, shell: &mut Shell<PureWorld<'_>>) -> Vec<Vec<u8>> {
        let mut unseen = Vec::new();
        for (name, value) in &self.start.hidden {
            match shell.get(name) {
                None => {
                    shell.define(name, value, true);
                    unseen.push(name.clone());
                }
                Some(b"") => shell.forget(name),
                Some(_) => {}
            }
        }
        for name in KEPT {
            if let Some(value) = self.start.visible.get(name.as_bytes()) {
                shell.define(name.as_bytes(), value, true);
            }
        }
        let value = |shell: &Shell<PureWorld<'_>>, name: &str, default: &str| match shell.get(name.as_bytes()) {
            None | Some(b"") => default.as_bytes().to_vec(),
            Some(value) => value.to_vec(),
        };
        for directory in self.library_directories() {
            let path = value(shell, "LD_LIBRARY_PATH", "");
            if !path.split(|&b| b == b':').any(|p| p == directory.as_bytes()) {
                let separator: &[u8] = if path.is_empty() { b"" } else { b":" };
                shell.define(b"LD_LIBRARY_PATH", &[path.as_slice(), separator, directory.as_bytes()].concat(), true);
            }
        }
        if self.facts.has_host_commands {
            let path = value(shell, "PATH", DEFAULT_PATH);
            let separated = [host_command::DIRECTORY.as_bytes(), b":", &path].concat();
            shell.define(b"PATH", &separated, true);
        }
        let prompt = value(shell, "PS1", PROMPT);
        if shell.get(b"PS1").is_none_or(<[u8]>::is_empty) {
            shell.define(b"PS1", &prompt, true);
        }
        let before = value(shell, "PROMPT_COMMAND", "");
        shell.define(b"PROMPT_COMMAND", &prompt_command(&before, &prompt), true);
        let script = value(shell, "APPTAINER_ENVIRONMENT", CUSTOM_SCRIPT);
        shell.define(b"APPTAINER_ENVIRONMENT", &script, true);
        shell.define(b"SINGULARITY_ENVIRONMENT", &script, true);
        if let Some(path) = self.shell_variable {
            shell.define(b"SHELL", path.as_bytes(), true);
        }
        unseen
    }

    /// The variables that the driver starts with. Values that are set aside travel under other names, not in the
    /// driver's text: command lines are for everybody to read, environments are not.
    fn initial(&self) -> Vec<Pair> {
        let mut all: Vec<Pair> =
            self.start.visible.iter().chain(&self.start.untouchable).map(|(n, v)| (n.clone(), v.clone())).collect();
        let prefixed = |prefix: &str, name: &[u8]| [prefix.as_bytes(), name].concat();
        all.extend(self.aside().map(|n| (prefixed(ASIDE, n), self.start.hidden[n].clone())));
        for name in KEPT {
            if let Some(value) = self.start.visible.get(name.as_bytes()) {
                all.push((prefixed(ASIDE, name.as_bytes()), value.clone()));
            }
        }
        for injection in self.injections {
            let value = if injection.expanded { quotable(&injection.value) } else { injection.value.clone() };
            all.push((prefixed(INJECTED, &injection.name), value));
        }
        all.sort();
        all
    }

    /// The names that the driver brings back, as far as a bash lets anybody set them.
    fn aside(&self) -> impl Iterator<Item = &Vec<u8>> {
        const READ_ONLY: [&str; 5] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS"];
        self.start.hidden.keys().filter(|name| !READ_ONLY.iter().any(|r| name.as_slice() == r.as_bytes()))
    }

    /// The steps as a script of POSIX `sh` that ends by becoming `"$@"`.
    fn driver(&self, shell: &ShellProgram) -> Vec<u8> {
        let mut out = Vec::new();
        let mut line = |text: &[u8]| {
            out.extend_from_slice(text);
            out.push(b'\n');
        };
        // What a shell sets of its own accord must not pass for what the image sets.
        line(b"unset PATH SHLVL OLDPWD PS1");
        for name in self.aside() {
            line(&[b"unset ", name.as_slice()].concat());
        }
        line(format!("[ \"${{UID+x}}\" ] || UID={}", self.facts.uid).as_bytes());
        line(format!("[ \"${{GID+x}}\" ] || GID={}", self.facts.gid).as_bytes());
        for step in self.steps {
            match step {
                Step::Source { path, .. } => {
                    // `command`: an error in the script does not end the shell.
                    line(&[b"command . ".as_slice(), &single_quote(path)].concat());
                }
                Step::DefaultPath => line(format!("[ \"${{PATH+x}}\" ] || export PATH={DEFAULT_PATH}").as_bytes()),
                Step::CompletePath => {
                    line(format!("for sifu_dir in {}; do", DEFAULT_PATH.replace(':', " ")).as_bytes());
                    line(
                        b"case \":$PATH:\" in *\":$sifu_dir:\"*) ;; *) PATH=\"${PATH:+$PATH:}$sifu_dir\" ;; esac; done",
                    );
                    line(b"unset sifu_dir; export PATH");
                }
                Step::Inject => {
                    line(format!("[ \"${{PATH+x}}\" ] || export PATH={DEFAULT_PATH}").as_bytes());
                    for injection in self.injections {
                        let name = text(&injection.name);
                        if injection.expanded {
                            line(format!("eval \"export {name}=\\\"${{{INJECTED}{name}}}\\\"\"").as_bytes());
                        } else {
                            line(format!("export {name}=\"${{{INJECTED}{name}}}\"").as_bytes());
                        }
                        line(format!("unset {INJECTED}{name}").as_bytes());
                    }
                }
                Step::EditPaths => {
                    for path in ["PATH", "LD_LIBRARY_PATH"] {
                        let (before, after) = (edit_name("PREPEND_", path), edit_name("APPEND_", path));
                        line(
                            format!(
                                "[ -z \"${{{before}:-}}\" ] || export {path}=\"${{{before}}}${{{path}:+:${path}}}\""
                            )
                            .as_bytes(),
                        );
                        line(
                            format!("[ -z \"${{{after}:-}}\" ] || export {path}=\"${{{path}:+${path}:}}${{{after}}}\"")
                                .as_bytes(),
                        );
                    }
                    let whole = edit_name("", "PATH");
                    line(format!("[ -z \"${{{whole}:-}}\" ] || PATH=\"${{{whole}}}\"").as_bytes());
                    let names: Vec<&str> = EDITS.iter().map(|(_, name)| *name).collect();
                    line(format!("[ -z \"${{PATH+x}}\" ] || export PATH; unset {}", names.join(" ")).as_bytes());
                }
            }
        }
        for name in self.aside() {
            let name = text(name);
            line(
                format!(
                    "if [ -z \"${{{name}+x}}\" ]; then export {name}=\"${{{ASIDE}{name}}}\"; \
                     elif [ -z \"${name}\" ]; then unset {name}; fi; unset {ASIDE}{name}"
                )
                .as_bytes(),
            );
        }
        for name in KEPT.iter().filter(|n| self.start.visible.contains_key(n.as_bytes())) {
            line(format!("export {name}=\"${{{ASIDE}{name}}}\"; unset {ASIDE}{name}").as_bytes());
        }
        for directory in self.library_directories() {
            line(
                format!(
                    "case \":${{LD_LIBRARY_PATH:-}}:\" in *:{directory}:*) ;; *) \
                     export LD_LIBRARY_PATH=\"${{LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}}{directory}\" ;; esac"
                )
                .as_bytes(),
            );
        }
        if self.facts.has_host_commands {
            let directory = host_command::DIRECTORY;
            line(format!("export PATH=\"{directory}:${{PATH:-{DEFAULT_PATH}}}\"").as_bytes());
        }
        line(format!("[ -n \"${{PS1:-}}\" ] || export PS1=\"{PROMPT}\"").as_bytes());
        line(
            b"if [ -z \"${PROMPT_COMMAND:-}\" ]; then export PROMPT_COMMAND=\"PS1=\\\"$PS1\\\"; unset PROMPT_COMMAND\"",
        );
        line(b"else export PROMPT_COMMAND=\"$PROMPT_COMMAND; PROMPT_COMMAND=\\\"\\${PROMPT_COMMAND%%; PROMPT_COMMAND=*}\\\"; PS1=\\\"$PS1\\\"\"; fi");
        line(format!("export APPTAINER_ENVIRONMENT=\"${{APPTAINER_ENVIRONMENT:-{CUSTOM_SCRIPT}}}\"").as_bytes());
        line(b"export SINGULARITY_ENVIRONMENT=\"$APPTAINER_ENVIRONMENT\"");
        if let Some(path) = self.shell_variable {
            line(format!("export SHELL={path}").as_bytes());
        }
        if *shell == ShellProgram::Embedded {
            // It looks for the program and reports failures as sifu does.
            line(b"exec \"$@\"");
        } else {
            out.extend_from_slice(HAND_OVER);
        }
        out
    }
}

/// Prefixes of the names under which values travel to the driver.
const ASIDE: &str = "sifu_aside_";
const INJECTED: &str = "sifu_set_";

/// The end of the driver for shells that are not ours: finds the program, and ends with 255 where it can't be started.
const HAND_OVER: &[u8] = br#"sifu_fail() { echo "FATAL:   cannot execute $1: $2" >&2; exit 255; }
sifu_program=
case "$1" in
*/*) sifu_program=$1 ;;
*)
    sifu_rest=${PATH:-}:
    while [ -n "$sifu_rest" ]; do
        sifu_dir=${sifu_rest%%:*}; sifu_rest=${sifu_rest#*:}
        if [ -f "${sifu_dir:-.}/$1" ] && [ -x "${sifu_dir:-.}/$1" ]; then sifu_program=${sifu_dir:-.}/$1; break; fi
    done
    [ -n "$sifu_program" ] || sifu_fail "$1" "command not found on PATH" ;;
esac
[ -e "$sifu_program" ] || sifu_fail "$1" "no such file or directory"
[ ! -d "$sifu_program" ] || sifu_fail "$1" "is a directory"
[ -x "$sifu_program" ] || sifu_fail "$1" "permission denied"
shift
set -- "$sifu_program" "$@"
unset sifu_program sifu_rest sifu_dir
unset -f sifu_fail
trap 'exit 255' 0
if command -v shopt > /dev/null 2>&1; then shopt -s execfail; fi
exec "$@"
exit 255
"#;

/// `PREPEND_` and `PATH` to the name under which that edit travels.
fn edit_name(kind: &str, path: &str) -> &'static str {
    let short = format!("{kind}{path}");
    EDITS.iter().find(|(name, _)| *name == short).map_or("", |(_, long)| *long)
}

/// A search path with the user's edits; `None` when there are none.
fn edited(shell: &Shell<PureWorld<'_>>, path: &str) -> Option<Vec<u8>> {
    let asked = |kind: &str| {
        let value = shell.get(edit_name(kind, path).as_bytes())?;
        (!value.is_empty()).then(|| value.to_vec())
    };
    let (before, after) = (asked("PREPEND_"), asked("APPEND_"));
    let whole = if path == "PATH" { asked("") } else { None };
    if whole.is_some() {
        return whole;
    }
    if before.is_none() && after.is_none() {
        return None;
    }
    let current = shell.get(path.as_bytes()).filter(|v| !v.is_empty()).map(<[u8]>::to_vec);
    let parts: Vec<Vec<u8>> = [before, current, after].into_iter().flatten().collect();
    Some(parts.join(&b':'))
}

/// Appends to a search path the default directories that it lacks.
fn complete_path(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = if path.is_empty() { Vec::new() } else { path.split(|&b| b == b':').collect() };
    for directory in DEFAULT_PATH.split(':') {
        if !parts.contains(&directory.as_bytes()) {
            parts.push(directory.as_bytes());
        }
    }
    parts.join(&b':')
}

/// Makes a bash that sets a prompt of its own take ours.
fn prompt_command(before: &[u8], prompt: &[u8]) -> Vec<u8> {
    if before.is_empty() {
        return [b"PS1=\"".as_slice(), prompt, b"\"; unset PROMPT_COMMAND"].concat();
    }
    let strip: &[u8] = b"; PROMPT_COMMAND=\"${PROMPT_COMMAND%%; PROMPT_COMMAND=*}\"; PS1=\"";
    [before, strip, prompt, b"\""].concat()
}

/// Text as it has to stand between double quotes so that its own double quotes stay, and all else expands.
fn quotable(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut escaped = false;
    for &byte in value {
        if byte == b'"' && !escaped {
            out.push(b'\\');
        }
        escaped = byte == b'\\' && !escaped;
        out.push(byte);
    }
    out
}

fn shell_program(image: &dyn Lookup) -> Result<ShellProgram, EnvironmentError> {
    for path in ["/bin/bash", "/usr/bin/bash", "/bin/sh"] {
        if is_program(image, &[], path.as_bytes())? {
            return Ok(ShellProgram::Image(ContainerPath::fixed(path)));
        }
    }
    Ok(ShellProgram::Embedded)
}

fn is_program_or_covered(image: &dyn Lookup, covered: &[ContainerPath], path: &[u8]) -> Result<bool, EnvironmentError> {
    // A relative path is looked for inside, later.
    if !path.starts_with(b"/") { Ok(true) } else { is_program(image, covered, path) }
}

/// Whether a path of the image leads to an executable file; what lies on a mount counts as one.
fn is_program(image: &dyn Lookup, covered: &[ContainerPath], path: &[u8]) -> Result<bool, EnvironmentError> {
    let Ok(path) = ContainerPath::parse(path) else { return Ok(false) };
    let is_covered = |path: &ContainerPath| covered.iter().any(|c| path.starts_with(c));
    if is_covered(&path) {
        return Ok(true);
    }
    let at = lookup::resolve(image, &path).map_err(EnvironmentError::Image)?;
    Ok(is_covered(&at.path) || at.stat.is_some_and(|s| s.kind == Kind::File && s.mode & 0o111 != 0))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
