//! `--mpi`: from the request to what of the host's MPI the container gets; the warning about ranks that would each be alone;
//! and `mpi check`, which tells beforehand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde_json::{Value, json};
use starter::paths::HostPath;

use crate::elf::{NATIVE_MACHINE, Object};
use crate::env_names;
use crate::host::facts::{HostMpi, MpiHostFacts};
use crate::host::mpi::{self as observed, MpiQuery};
use crate::image::facts::{ImageMpi, ImageMpiFacts, ImageProgram};
use crate::image::{self, libraries};
use crate::launch::environment::Pair;
use crate::launch::request::{LaunchRequest, Verb};
use crate::mpi::bind::{self, BindFacts, MpiBinds};
use crate::mpi::choice::{self, Because};
use crate::mpi::launcher::{self, Kind, Launcher, Pmi};
use crate::mpi::verdict::{self, Case, Speaker, Verdict, judge};
use crate::mpi::{self, Abi, Family};
use crate::report::{self, Failure, failure};
use crate::tree::lookup::{Lookup, LookupError};

/// What `mpi check` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    pub json: bool,
}

/// Programs that run others, or whose modules bring an MPI: what they are linked with says nothing.
const INTERPRETERS: [&str; 20] = [
    "sh", "bash", "dash", "env", "python", "python3", "perl", "ruby", "R", "Rscript", "julia", "lua", "time",
    "timeout", "taskset", "numactl", "nice", "strace", "gdb", "busybox",
];

/// Decides what of the host's MPI the container gets, and says what is worth saying.
pub fn prepare(request: &LaunchRequest, root: &dyn Lookup) -> Result<MpiBinds, Failure> {
    let variables = variables();
    let has = observe_image(root, false)?;
    let program = program_of(request, root, &has)?;
    let launcher = launcher::of_variables(&variables);
    let host = observe_host();
    let wanted = wanted(&has, program.as_ref());
    let (chosen, abi) = choice::choose(&host, wanted, launcher.as_ref()).map_err(|error| failure(&error))?;
    report::verbose(format_args!("--mpi: {abi} of this host, {}", chosen.library.path));
    let kept_out = if request.cleanenv { variables } else { Vec::new() };
    let binds = plan(root, &has, &host, chosen, abi, &kept_out)?.map_err(|error| failure(&error))?;
    for library in &binds.left_out {
        if library.is_cause() { report::warning(library) } else { report::verbose(library) }
    }
    Ok(binds)
}

/// Warns where the ranks of this job would each be alone. The first rank speaks for all.
pub fn warn_of_singletons(request: &LaunchRequest, root: &dyn Lookup) {
    let Some(launcher) = speaks_for_all() else { return };
    // A warning is no reason to fail: what the image can't tell, its start will.
    if let Ok(Some(reason)) = singletons(request, root, &launcher) {
        let ranks = launcher.size.unwrap_or_default();
        report::warning(format_args!(
            "the {ranks} ranks won't find each other, a program of MPI sees one rank only: {reason}; `sifu mpi check` tells \
             what fits"
        ));
    }
}

/// The launcher of this process, if that is the one rank of several that speaks for all.
pub fn speaks_for_all() -> Option<Launcher> {
    launcher::of_variables(&variables()).filter(Launcher::is_first_of_several)
}

fn singletons(request: &LaunchRequest, root: &dyn Lookup, launcher: &Launcher) -> Result<Option<String>, LookupError> {
    let has =
        image::mpi::observe(root, NATIVE_MACHINE, mpi::SONAMES, mpi::COMPONENT_DIRECTORIES, mpi::LAUNCHERS, false)?;
    let speakers: Vec<Speaker> = has
        .libraries
        .iter()
        .filter_map(|library| speaker(root, &has, library).transpose())
        .collect::<Result<_, _>>()?;
    let one_speaks = speakers.iter().any(|mpi| mpi.speaks(launcher.kind, launcher.pmi));
    // What does not speak can't be linked with: mostly all is well, and nothing more has to be read.
    let all_speak = speakers.iter().all(|mpi| mpi.speaks(launcher.kind, launcher.pmi));
    if speakers.is_empty() || (all_speak && !request.cleanenv) {
        return Ok(None);
    }
    let program = program_in(request, root, &has)?;
    let abi = program.as_ref().and_then(|program| abi_of_program(&has, program));
    if abi.is_none() && (one_speaks || program.as_ref().is_some_and(is_without_mpi)) {
        return Ok(None);
    }
    if request.cleanenv {
        return Ok(Some("--cleanenv keeps the variables of their launcher out".to_owned()));
    }
    let (verdict, reason) = judge(&Case {
        launcher: launcher.kind,
        pmi: launcher.pmi,
        image: &speakers,
        host: Err(String::new()),
        program: abi,
        without_mpi: false,
    });
    Ok((verdict == Verdict::Singletons).then_some(reason))
}

// ---- facts ----

fn variables() -> Vec<Pair> {
    std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect()
}

fn library_path() -> Vec<u8> {
    std::env::var_os("LD_LIBRARY_PATH").map(OsStringExt::into_vec).unwrap_or_default()
}

fn observe_host() -> MpiHostFacts {
    observed::observe(
        Path::new("/"),
        &MpiQuery {
            names: mpi::SONAMES,
            launchers: mpi::LAUNCHERS,
            launcher_programs: mpi::LAUNCHER_PROGRAMS,
            devices: mpi::DEVICES,
            search_path: std::env::var_os("PATH").map(OsStringExt::into_vec).unwrap_or_default(),
            library_path: library_path(),
            prefixes: env_names::MPI_PREFIXES.iter().filter_map(std::env::var_os).map(HostPath::new).collect(),
        },
    )
}

fn observe_image(root: &dyn Lookup, thorough: bool) -> Result<ImageMpiFacts, Failure> {
    let (names, plugins) = (mpi::SONAMES, mpi::COMPONENT_DIRECTORIES);
    image::mpi::observe(root, NATIVE_MACHINE, names, plugins, mpi::LAUNCHERS, thorough).map_err(unreadable)
}

fn unreadable(error: LookupError) -> Failure {
    Failure::new(error.to_string())
}

fn abi_of_image(library: &ImageMpi) -> Option<Abi> {
    Abi::of(&library.name, library.beside.iter().any(|name| mpi::is_part_of_open_mpi(name)))
}

/// What an MPI of the image speaks. Its file is read only where the answer depends on it.
fn speaker(root: &dyn Lookup, has: &ImageMpiFacts, library: &ImageMpi) -> Result<Option<Speaker>, LookupError> {
    let Some(abi) = abi_of_image(library) else { return Ok(None) };
    let is_pmix = |name: &[u8]| name.starts_with(b"libpmix.so");
    let pmix = match abi.family {
        Family::OpenMpi => true,
        Family::Mpich if !has.places.keys().any(|name| is_pmix(name)) => false,
        Family::Mpich => {
            let object = libraries::object(root, &library.path)?;
            object.is_some_and(|object| object.needed.iter().any(|name| is_pmix(name)))
        }
    };
    let slurm = library.beside.iter().any(|name| name == b"mca_pmix_s2.so" || name == b"mca_pmix_s1.so");
    let name = format!("{} ({})", abi.family, String::from_utf8_lossy(&library.name));
    Ok(Some(Speaker { abi, name, pmix, slurm }))
}

fn speaker_of_host(library: &HostMpi, abi: Abi, name: String) -> Speaker {
    let needed = library.library.object.as_ref().map_or(&[][..], |object| &object.needed);
    let pmix = abi.family == Family::OpenMpi || needed.iter().any(|name| name.starts_with(b"libpmix.so"));
    Speaker { abi, name, pmix, slurm: false }
}

/// The program that the request names.
fn program_of(
    request: &LaunchRequest,
    root: &dyn Lookup,
    has: &ImageMpiFacts,
) -> Result<Option<ImageProgram>, Failure> {
    program_in(request, root, has).map_err(unreadable)
}

fn program_in(
    request: &LaunchRequest,
    root: &dyn Lookup,
    has: &ImageMpiFacts,
) -> Result<Option<ImageProgram>, LookupError> {
    match (request.verb, request.arguments.first()) {
        (Verb::Exec, Some(command)) => find_program(command.as_bytes(), root, has),
        _ => Ok(None),
    }
}

/// Looks for a program in the image, and then, by its path, on the host: the caller's files are in the container too.
fn find_program(command: &[u8], root: &dyn Lookup, has: &ImageMpiFacts) -> Result<Option<ImageProgram>, LookupError> {
    let found = image::mpi::program(root, command, has, mpi::is_mpi)?;
    if found.is_some() || !command.contains(&b'/') {
        return Ok(found);
    }
    let path = HostPath::from_bytes(command);
    let Some(file) = File::open(&path).ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))
    else {
        return Ok(None);
    };
    let object = Object::parse(&file).ok();
    let mpi = object.as_ref().map_or(Ok(Vec::new()), |object| image::mpi::follow(root, object, has, mpi::is_mpi))?;
    Ok(Some(ImageProgram { path: command.to_vec(), object, mpi }))
}

/// Whether a program is known to have nothing to do with MPI.
fn is_without_mpi(program: &ImageProgram) -> bool {
    let name = program.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    // python3.11 is python3.
    let name = name.split(|&byte| byte == b'.').next().unwrap_or_default();
    let interprets = INTERPRETERS.iter().any(|known| known.as_bytes() == name);
    program.object.is_some() && program.mpi.is_empty() && !interprets
}

/// The ABI that a program is linked with.
fn abi_of_program(has: &ImageMpiFacts, program: &ImageProgram) -> Option<Abi> {
    program.mpi.iter().find_map(|name| {
        let image = has.libraries.iter().find(|library| library.name == *name).and_then(abi_of_image);
        let needed = program.object.as_ref().map_or(&[][..], |object| &object.needed);
        image.or_else(|| Abi::of(name, needed.iter().any(|name| mpi::is_part_of_open_mpi(name))))
    })
}

/// The ABI that only will do: the program's, or the one that all MPIs of the image have.
fn wanted(has: &ImageMpiFacts, program: Option<&ImageProgram>) -> Option<(Abi, Because)> {
    if let Some(program) = program
        && let Some(abi) = abi_of_program(has, program)
    {
        return Some((abi, Because::Program(String::from_utf8_lossy(&program.path).into_owned())));
    }
    let mut of_image = has.libraries.iter().filter_map(|library| Some((abi_of_image(library)?, library)));
    let (abi, library) = of_image.next()?;
    of_image.all(|(other, _)| other == abi).then(|| (abi, Because::Image(library.path.to_string())))
}

/// Decides what `chosen` brings into the image.
fn plan(
    root: &dyn Lookup,
    has: &ImageMpiFacts,
    host: &MpiHostFacts,
    chosen: &HostMpi,
    abi: Abi,
    kept_out: &[Pair],
) -> Result<Result<MpiBinds, bind::CannotBind>, Failure> {
    let core = &chosen.library.name;
    let siblings = |name: &[u8]| mpi::is_sibling(core, name);
    let closure = observed::follow(Path::new("/"), chosen, siblings, mpi::COMPANIONS, &library_path());
    let image = libraries::observe(root, host.machine).map_err(unreadable)?;
    let mut definitions = BTreeMap::new();
    for name in bind::to_be_compared(&closure, &has.places) {
        let Some(path) = has.places.get(&name) else { continue };
        if let Some(object) = libraries::object(root, path).map_err(unreadable)? {
            definitions.insert(name, object.version_definitions);
        }
    }
    Ok(bind::plan(&BindFacts {
        abi,
        core,
        machine: host.machine,
        closure: &closure,
        devices: &host.devices,
        image: &image,
        places: &has.places,
        definitions: &definitions,
        kept_out,
    }))
}

// ---- mpi check ----

/// An MPI library as `mpi check` shows it.
struct Shown {
    speaker: Speaker,
    /// `Open MPI 4.1.4`.
    name: String,
    version: Option<String>,
    soname: String,
    path: String,
}

/// A way to start ranks, judged.
struct Way {
    launcher: Kind,
    pmi: Pmi,
    /// Where it is known from.
    source: String,
    /// What would be typed.
    command: String,
    verdict: Verdict,
    reason: String,
}

/// Everything that `mpi check` tells.
struct Page {
    image: Vec<Shown>,
    image_launchers: Vec<String>,
    host: Vec<Shown>,
    program: Option<ImageProgram>,
    ways: Vec<Way>,
    /// A launcher that does not say how it speaks.
    silent: Option<String>,
    without_mpi: bool,
}

/// Tells whether ranks in the image will find each other. Returns the exit code: 0 where one way works, else 1.
pub fn check(options: &CheckOptions, image: &std::ffi::OsStr, program: Option<&[u8]>) -> Result<u8, Failure> {
    let image = image::open(image).map_err(|error| failure(&error))?;
    let page = examine(image.root(), program)?;
    let text = if options.json { to_json(&page) } else { to_text(&page) };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(u8::from(!page.works())),
    }
}

impl Page {
    fn works(&self) -> bool {
        self.ways.iter().any(|way| way.verdict.works()) || self.contained_on_one_node() || self.without_mpi
    }

    /// Whether the image can start ranks by itself.
    fn contained_on_one_node(&self) -> bool {
        !self.image.is_empty() && !self.image_launchers.is_empty()
    }
}

fn examine(root: &dyn Lookup, command: Option<&[u8]>) -> Result<Page, Failure> {
    let has = observe_image(root, true)?;
    let program = match command {
        None => None,
        Some(command) => Some(find_program(command, root, &has).map_err(unreadable)?.ok_or_else(|| {
            let name = String::from_utf8_lossy(command);
            Failure::new(format!("the image has no program `{name}`")).hint("Name it by its path in the image.")
        })?),
    };
    let mut of_image = Vec::new();
    for library in &has.libraries {
        let Some(speaker) = speaker(root, &has, library).map_err(unreadable)? else { continue };
        let content = image::mpi::content(root, &library.path).map_err(unreadable)?;
        of_image.push(shown(speaker, &library.name, library.path.as_bytes(), &content));
    }
    let host = observe_host();
    let of_host: Vec<(Shown, &HostMpi)> = host
        .libraries
        .iter()
        .filter_map(|library| {
            let abi = choice::abi(library)?;
            let content = std::fs::read(&library.library.path).unwrap_or_default();
            let speaker = speaker_of_host(library, abi, String::new());
            Some((shown(speaker, &library.library.name, library.library.path.as_bytes(), &content), library))
        })
        .collect();
    let without_mpi = program.as_ref().is_some_and(is_without_mpi);
    let speakers: Vec<Speaker> = of_image.iter().map(|shown| shown.speaker.clone()).collect();
    let mut ways = Vec::new();
    let (offers, silent) = launchers(&host);
    for Offer { kind, pmi, source, start, only_if_it_works } in offers {
        let started = Launcher { kind, pmi, rank: None, size: None };
        let bindable = match choice::choose(&host, wanted(&has, program.as_ref()), Some(&started)) {
            Err(error) => Err(error.to_string()),
            Ok((chosen, abi)) => match plan(root, &has, &host, chosen, abi, &[])? {
                Err(error) => Err(error.to_string()),
                Ok(_) => of_host
                    .iter()
                    .find(|(_, library)| library.library.path == chosen.library.path)
                    .map(|(shown, _)| &shown.speaker)
                    .ok_or_else(|| "the host's MPI can't be read".to_owned()),
            },
        };
        let abi = program.as_ref().and_then(|program| abi_of_program(&has, program));
        let case = Case { launcher: kind, pmi, image: &speakers, host: bindable, program: abi, without_mpi };
        let (verdict, reason) = judge(&case);
        if only_if_it_works && !verdict.works() {
            continue;
        }
        let flag = if verdict == Verdict::Bind { "--mpi " } else { "" };
        let command = format!("{start} sifu exec {flag}IMAGE PROGRAM");
        ways.push(Way { launcher: kind, pmi, source, command, verdict, reason });
    }
    Ok(Page {
        image: of_image,
        image_launchers: has.launchers.iter().map(ToString::to_string).collect(),
        host: of_host.into_iter().map(|(shown, _)| shown).collect(),
        program,
        ways,
        silent,
        without_mpi,
    })
}

fn shown(speaker: Speaker, soname: &[u8], path: &[u8], content: &[u8]) -> Shown {
    let version = mpi::version(content);
    let product = mpi::product(speaker.abi.family, path, content);
    let name = match &version {
        Some(version) => format!("{product} {version}"),
        None => product.to_owned(),
    };
    Shown {
        speaker: Speaker { name: name.clone(), ..speaker },
        name,
        version,
        soname: String::from_utf8_lossy(soname).into_owned(),
        path: String::from_utf8_lossy(path).into_owned(),
    }
}

/// A launcher, and how it speaks to ranks.
struct Offer {
    kind: Kind,
    pmi: Pmi,
    source: String,
    /// What stands before `sifu`.
    start: String,
    /// Whether it is one of several ways of the same launcher, of which those that don't work are not worth a line.
    only_if_it_works: bool,
}

/// The launcher that started this process, or else those that this host has; and one that does not answer.
fn launchers(host: &MpiHostFacts) -> (Vec<Offer>, Option<String>) {
    if let Some(Launcher { kind, pmi, .. }) = launcher::of_variables(&variables()) {
        let start = match kind {
            Kind::MpiRun(_) => "mpirun -n N",
            Kind::Slurm => "srun",
            Kind::Other => "LAUNCHER",
        };
        let source = "by its variables, in this process".to_owned();
        return (vec![Offer { kind, pmi, source, start: start.to_owned(), only_if_it_works: false }], None);
    }
    let mut found: Vec<Offer> = Vec::new();
    for launcher in host.launchers.iter().filter(|launcher| !launcher.parent) {
        let Some(family) = mpi::family_of_launcher(&launcher.program) else { continue };
        let kind = Kind::MpiRun(family);
        if !found.iter().any(|known| known.kind == kind) {
            let pmi = if family == Family::OpenMpi { Pmi::Pmix } else { Pmi::Pmi1 };
            let name = launcher.path.as_path().file_name().unwrap_or_default().display();
            let (start, source) = (format!("{name} -n N"), launcher.path.to_string());
            found.push(Offer { kind, pmi, source, start, only_if_it_works: false });
        }
    }
    let Some(srun) = &host.srun else { return (found, None) };
    let plugins = observed::slurm_plugins(srun);
    let kind = Kind::Slurm;
    if let Some(name) = &plugins.default {
        let (source, start) = (format!("{srun}, MpiDefault={name}"), "srun".to_owned());
        found.push(Offer { kind, pmi: launcher::of_slurm_plugin(name), source, start, only_if_it_works: false });
    }
    for name in &plugins.names {
        let pmi = launcher::of_slurm_plugin(name);
        let known = found.iter().any(|offer| offer.kind == kind && offer.pmi == pmi);
        if pmi != Pmi::None && !known {
            let (source, start) = (srun.to_string(), format!("srun --mpi={name}"));
            found.push(Offer { kind, pmi, source, start, only_if_it_works: true });
        }
    }
    let silent = plugins == observed::SlurmPlugins::default();
    (found, silent.then(|| format!("srun ({srun}): Slurm does not answer, so how it speaks to ranks is not known")))
}

fn to_text(page: &Page) -> String {
    let mut text = String::new();
    let mut line = |subject: &str, words: String| {
        let _ = writeln!(text, "{subject:<9} {}", report::printable(&words));
    };
    let describe =
        |mpi: &Shown| format!("{}, {} at {}, speaks {}", mpi.name, mpi.soname, mpi.path, mpi.speaker.speech());
    for (subject, mpis) in [("image", &page.image), ("host", &page.host)] {
        if mpis.is_empty() {
            line(subject, "no MPI".to_owned());
        }
        mpis.iter().for_each(|mpi| line(subject, describe(mpi)));
    }
    if let Some(program) = &page.program {
        let path = String::from_utf8_lossy(&program.path);
        let needed: Vec<_> = program.mpi.iter().map(|name| String::from_utf8_lossy(name)).collect();
        line(
            "program",
            match (&program.object, needed.is_empty()) {
                (_, false) => format!("{path} is linked with {}", needed.join(", ")),
                (Some(_), true) if page.without_mpi => format!("{path} is linked with no MPI"),
                (Some(_), true) => format!("{path} is linked with no MPI; what it runs or loads may be"),
                (None, _) => format!("{path} is a script: what it runs can't be told"),
            },
        );
    }
    for way in &page.ways {
        line("launcher", format!("{}, {} ({})", verdict::launcher_name(way.launcher), offer(way.pmi), way.source));
    }
    if let Some(silent) = &page.silent {
        line("launcher", silent.clone());
    } else if page.ways.is_empty() {
        line("launcher", "none on this host".to_owned());
    }
    text.push('\n');
    for way in &page.ways {
        let reason = report::printable(&way.reason);
        let _ = writeln!(text, "{}\n    {}: {}", way.command, way.verdict, reason);
    }
    if page.contained_on_one_node() {
        let _ = writeln!(
            text,
            "sifu exec IMAGE {} -n N PROGRAM\n    works on one node (contained): the image has its own launcher",
            page.image_launchers[0]
        );
    }
    if page.image.is_empty() && page.ways.is_empty() {
        let _ = writeln!(text, "There is no MPI in the image, and nothing on this host that starts ranks.");
    }
    text
}

fn offer(pmi: Pmi) -> String {
    match pmi {
        Pmi::None => "without a PMI".to_owned(),
        pmi => pmi.to_string(),
    }
}

fn to_json(page: &Page) -> String {
    let mpis = |mpis: &[Shown]| -> Vec<Value> {
        let one = |mpi: &Shown| {
            json!({
                "name": mpi.name,
                "family": mpi.speaker.abi.family.to_string(),
                "version": mpi.version,
                "abi": mpi.speaker.abi.soname(),
                "soname": mpi.soname,
                "path": mpi.path,
                "speaks": mpi.speaker.speech().split(", ").collect::<Vec<_>>(),
            })
        };
        mpis.iter().map(one).collect()
    };
    let program = page.program.as_ref().map(|program| {
        let needed: Vec<_> = program.mpi.iter().map(|name| String::from_utf8_lossy(name)).collect();
        json!({ "path": String::from_utf8_lossy(&program.path), "mpi": needed })
    });
    let ways: Vec<Value> = page
        .ways
        .iter()
        .map(|way| {
            json!({
                "launcher": verdict::launcher_name(way.launcher),
                "pmi": way.pmi.to_string(),
                "known-from": way.source,
                "command": way.command,
                "verdict": way.verdict.word(),
                "works": way.verdict.works(),
                "reason": way.reason,
            })
        })
        .collect();
    let page = json!({
        "works": page.works(),
        "image": { "mpi": mpis(&page.image), "launchers": page.image_launchers },
        "host": { "mpi": mpis(&page.host) },
        "program": program,
        "ways": ways,
    });
    format!("{page:#}\n")
}
