//! `exec`, `run`, `shell`, `test`: from the request to the program in its container; and `plan`, which stops before.
//!
//! Reads top to bottom: open the image, look at the host, choose the way, lay the mounts out, evaluate the environment,
//! put the plan together, perform it, become the program.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::unpack;
use starter::paths::HostPath;
use starter::perform::{Launched, PerformError, Stage, Warning};
use starter::plan::{Command, Emulation, LaunchPlan, Node};
use starter::supervise::end_alike;

use super::{accelerators, mpi, ranks};
use crate::conf::{self, SiteConfig};
use crate::elf::Object;
use crate::gpu::libraries::NARROW_DIRECTORY;
use crate::gpu::{BindKind, GpuBinds};
use crate::host::facts::{Attempt, FuseDevice, HostFacts};
use crate::host::{self, What, switches};
use crate::host_command::{self, HostCommand, HostCommandError, server::HostCommands};
use crate::image::{self, ImageKind};
use crate::launch::binds::Bind;
use crate::launch::diagnosis;
use crate::launch::environment::{self, Action, EnvFile, Environment, EnvironmentFacts, Output, Pair, ShellProgram};
use crate::launch::job;
use crate::launch::layout::{self, LayoutFacts, Root};
use crate::launch::mount_method::{MountMethod, mount_method};
use crate::launch::plan::{self, Parts, PlanError};
use crate::launch::request::LaunchRequest;
use crate::launch::seccomp::{self, Architecture, SeccompContext};
use crate::launch::start::{self, Company, start};
use crate::remembered::{Journal, JournalError};
use crate::report::{self, Failure, cause, failure};
use crate::squashfs;
use crate::tree::lookup::{self, Kind};

/// Limit for the evaluation of environment scripts where none is said.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);
/// No environment file and no seccomp profile is longer.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Starts the container and becomes its program. Returns when that fails, or when a pid namespace keeps this process
/// outside as the parent.
pub fn run(request: &LaunchRequest) -> Result<ExitCode, Failure> {
    let mut early = match ranks::meet_early(request) {
        ranks::Met::Group { group, plan } => {
            // Whoever came first has looked at everything else for all.
            if mpi::speaks_for_all().is_some()
                && let Ok(image) = image::open(&request.image)
            {
                mpi::warn_of_singletons(request, image.root());
            }
            let entered = group.join(&plan).map_err(|error| explained(&error, FuseDevice::NotObserved))?;
            entered.warnings.iter().for_each(warn);
            return Err(explained(&starter::perform::exec(&plan, &entered.environment), FuseDevice::NotObserved));
        }
        ranks::Met::Nobody(early) => early,
    };
    let ready = match prepare(request, Purpose::Start, &mut early)? {
        Prepared::Ready(ready) => *ready,
        Prepared::Ended(code) => return Ok(ExitCode::from(code)),
    };
    let Ready { plan, plan_for_others, images, output, fuse, host_commands } = ready;
    if report::level() >= report::DEBUG {
        report::debug(format_args!("launch plan:\n{}", String::from_utf8_lossy(&plan.to_text())));
    }
    let journal = plan.emulation.as_ref().map(records).transpose()?;
    let host_commands = (!host_commands.is_empty()).then(|| HostCommands {
        commands: host_commands,
        inside: plan.environment.iter().map(|(name, _)| name.clone()).collect(),
    });
    let company = Company { ranks: ranks::announced(), early: early.zip(plan_for_others) };
    match start(&plan, images, journal, host_commands, company).map_err(|error| explained(&error, fuse))? {
        Launched::Ended(ended) => Ok(ExitCode::from(end_alike(ended))),
        Launched::Left(_) => Ok(ExitCode::SUCCESS),
        Launched::Inside(entered) => {
            entered.warnings.iter().for_each(warn);
            pass_on(&output);
            if let Command::EmbeddedShell { driver, arguments } = &plan.command {
                let words = std::iter::once(b"-c".to_vec()).chain([driver.clone()]).chain(arguments.iter().cloned());
                let words: Vec<OsString> = words.map(OsString::from_vec).collect();
                let limit = request.runscript_timeout.unwrap_or(SCRIPT_TIMEOUT);
                return Ok(ExitCode::from(crate::shell::process::run(&words, &entered.environment, limit)));
            }
            Err(explained(&starter::perform::exec(&plan, &entered.environment), fuse))
        }
    }
}

fn warn(warning: &Warning) {
    if warning.is_harmless() { report::verbose(warning) } else { report::warning(warning) }
}

/// The records of a root emulation: in memory only where a directory has no place for them.
fn records(emulation: &Emulation) -> Result<Journal, Failure> {
    match start::journal(emulation) {
        Err(error @ JournalError::File { .. }) => {
            report::warning(format_args!(
                "owners other than root are remembered until the container ends, and no longer: {error}"
            ));
            Ok(Journal::in_memory())
        }
        opened => opened.map_err(|error| failure(&error)),
    }
}

/// Prints what [`run`] would do.
pub fn print_plan(request: &LaunchRequest) -> Result<ExitCode, Failure> {
    match prepare(request, Purpose::Print, &mut None)? {
        Prepared::Ready(ready) => super::answer(|out| {
            let mut text = ready.plan.to_text();
            for (number, (_, nodes)) in ready.images.iter().enumerate().filter(|(_, (_, nodes))| !nodes.is_empty()) {
                text.extend_from_slice(format!("# image server, connection {number}, shows in addition:\n").as_bytes());
                for node in nodes {
                    text.extend_from_slice(format!("#   {}\n", node.path).as_bytes());
                }
            }
            for HostCommand { name, path } in &ready.host_commands {
                let name = String::from_utf8_lossy(name);
                text.extend_from_slice(format!("# outside of the container, {name} starts {path}\n").as_bytes());
            }
            out.write_all(&text).map_err(|error| Failure::new(format!("cannot write to standard output: {error}")))
        }),
        Prepared::Ended(code) => Ok(ExitCode::from(code)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Start,
    Print,
}

/// A launch that is decided.
struct Ready {
    plan: LaunchPlan,
    /// What of it ranks need that differ in their number alone, if that is all there is to say.
    plan_for_others: Option<Vec<u8>>,
    /// The image server's connections, each with the nodes that it shows in addition.
    images: Vec<(squashfs::Reader, Vec<Node>)>,
    /// What the image's scripts said while they were evaluated.
    output: Output,
    fuse: FuseDevice,
    /// What programs inside may start on the host.
    host_commands: Vec<HostCommand>,
}

enum Prepared {
    Ready(Box<Ready>),
    /// There is nothing to start.
    Ended(u8),
}

/// Decides on everything. Ranks may wait at `early` meanwhile: it is closed before something that takes long.
fn prepare(request: &LaunchRequest, purpose: Purpose, early: &mut Option<UnixListener>) -> Result<Prepared, Failure> {
    let site = conf::load::load(request.config_file.as_deref().map(Path::new)).map_err(|error| failure(&error))?;
    let image = image::open(&request.image).map_err(|error| failure(&error))?;
    let is_directory = image.facts.kind == ImageKind::Sandbox;
    allowed_kind(&site, image.facts.kind)?;
    plan::check(request, &site, is_directory).map_err(|error| failure(&error))?;
    let security = plan::security(request).map_err(|error| failure(&error))?;
    let mut binds = layout::user_binds(request).map_err(|error| failure(&error))?;
    if site.user_bind_control {
        let of_the_job = job::binds(request, &variables().collect::<Vec<_>>());
        binds.extend(of_the_job.into_iter().filter(|bind| bind.source.as_path().exists()));
    }

    let mut accelerators = accelerators::prepare(request, &site, Some(image.root()))?;
    if request.mpi {
        let brought = mpi::prepare(request, image.root())?;
        accelerators.binds.extend(brought.binds);
        accelerators.environment.extend(brought.environment);
    } else if purpose == Purpose::Start {
        mpi::warn_of_singletons(request, image.root());
    }
    let mut paths = layout::sources(request, &site, &binds).map_err(|error| failure(&error))?;
    paths.extend(accelerators.binds.iter().map(|bind| bind.source.clone()));
    let host = host::observe(&What {
        subordinate_ids: request.fakeroot,
        mounts: site.mount_hostfs,
        terminal: request.contain,
        fuse: !is_directory && !request.unsquash,
        paths,
    });
    let who = plan::who(request, &site, &host, &security).map_err(|error| failure(&error))?;
    let method = mount_method(image.facts.kind, host.fuse, request.unsquash, request.strict, switches::observe)
        .map_err(|error| failure(&error))?;

    let mut images = Vec::new();
    let mut unpacked = None;
    let root = match &method {
        MountMethod::Served => {
            let partition = image.partition().ok_or_else(|| Failure::new("the image has no partition to serve"))?;
            images.push((partition.clone(), Vec::new()));
            Root::Served
        }
        MountMethod::Directory if request.writable => Root::Writable(image.facts.path.clone()),
        MountMethod::Directory => Root::Directory(image.facts.path.clone()),
        MountMethod::Unpacked { instead } => {
            // Each rank has to do that for itself.
            *early = None;
            let image = match purpose {
                Purpose::Start => unpack::unpack(request, &image, *instead)?,
                Purpose::Print => unpack::place(request),
            };
            let tree = image.tree();
            unpacked = Some(image);
            Root::Directory(HostPath::new(tree))
        }
    };
    let keep = plan::kept_capabilities(request, &site, &who.identity).map_err(|error| failure(&error))?;
    let emulation = plan::emulation(request, &who.identity, keep, &root);
    report::verbose(format_args!(
        "{} is {}; its root is {}; uid {} gid {} inside",
        image.facts.path,
        match image.facts.kind {
            ImageKind::Sif => "a SIF file",
            ImageKind::Squashfs => "a SquashFS file",
            ImageKind::Sandbox => "a directory",
        },
        match method {
            MountMethod::Served => "served through /dev/fuse",
            MountMethod::Directory => "used as it is",
            MountMethod::Unpacked { .. } => "unpacked",
        },
        who.uid,
        who.gid,
    ));
    let host_commands = host_commands(request)?;
    let bound_images = open_bound_images(&binds, &mut images)?;

    let laid_out = layout::layout(&LayoutFacts {
        request,
        site: &site,
        root,
        tree: image.root(),
        host: &host,
        binds: &binds,
        images: &bound_images,
        accelerators: &accelerators,
        host_commands: match host_commands.is_empty() {
            true => None,
            false => Some((&host_commands, relay()?)),
        },
        uid: who.uid,
        gid: who.gid,
    })
    .map_err(|error| failure(&error))?;
    for notice in &laid_out.notices {
        if notice.is_warning() { report::warning(notice) } else { report::verbose(notice) }
    }
    if let (MountMethod::Served, Some((_, nodes))) = (&method, images.first_mut()) {
        *nodes = laid_out.invented.clone();
    }

    let action = environment::actions(request, image.root(), &laid_out.covered).map_err(|error| failure(&error))?;
    let arguments = match &action {
        Action::Run { arguments, information, .. } => {
            information.iter().for_each(report::info);
            arguments.clone()
        }
        Action::Nothing { information } => {
            report::info(information);
            return Ok(Prepared::Ended(0));
        }
        Action::Missing { problem, code } => {
            let mut missing = Failure::new(problem.clone());
            missing.code = *code;
            return Err(missing);
        }
    };
    let narrow_libraries = starter::paths::ContainerPath::fixed(NARROW_DIRECTORY);
    let facts = EnvironmentFacts {
        host: host_variables(&accelerators),
        env_files: read_env_files(request)?,
        image_path: image.facts.path.as_bytes().to_vec(),
        image_name: image.facts.name.clone(),
        binds: laid_out.nested_binds.clone(),
        home: laid_out.home.as_bytes().to_vec(),
        directory: laid_out.directories.first().map(|path| path.as_bytes().to_vec()).unwrap_or_default(),
        uid: who.uid,
        gid: who.gid,
        instance: None,
        has_host_commands: !host_commands.is_empty(),
        narrow_libraries_bound: accelerators.binds.iter().any(|bind| bind.target.parent() == narrow_libraries),
        libraries_bound: accelerators.binds.iter().any(|bind| bind.kind == BindKind::Library),
        covered: laid_out.covered.clone(),
    };
    // What a device sets is as strong as --env, and an --env of the user's own comes after it.
    let with_devices = LaunchRequest {
        env: accelerators.environment.iter().chain(&request.env).cloned().collect(),
        ..request.clone()
    };
    let (evaluated, notices) =
        environment::environment(&with_devices, &facts, &action, image.root()).map_err(|error| failure(&error))?;
    for notice in &notices {
        if notice.is_information() { report::info(notice) } else { report::warning(notice) }
    }
    let (command, variables, unseen, output) = match evaluated {
        Environment::Ended { code, output } => {
            pass_on(&output);
            return Ok(Prepared::Ended(code));
        }
        Environment::Known { variables, unseen, output } => {
            match environment::oci_runscript(&arguments, &variables, &facts, image.root()) {
                // It may have looked at anything.
                Some(arguments) => (Command::Program { arguments }, variables, None, output),
                None => (Command::Program { arguments }, variables, Some(unseen), output),
            }
        }
        Environment::NeedsShell { reason, shell, driver, initial } => {
            report::verbose(format_args!("the image's environment scripts need a shell: {reason}"));
            (shell_command(shell, driver, arguments), initial, None, Output::default())
        }
    };
    let seccomp = match &security.seccomp_file {
        None => Vec::new(),
        Some(file) => seccomp(file, request, &site, &who, &host)?,
    };
    let parts = Parts {
        who,
        layout: laid_out,
        command,
        environment: variables,
        seccomp,
        emulation,
        remove: unpacked.map(|image| HostPath::new(image.release())),
    };
    let mut plan = plan::assemble(request, &site, parts).map_err(|error| failure(&error))?;
    plan.share = ranks::share_name(request, &facts.host, &plan, &image);
    // What scripts say is for every rank to hear, and accelerators are given to each.
    let plan_for_others = unseen
        .filter(|_| plan.share.is_some() && output == Output::default() && accelerators == GpuBinds::default())
        .and_then(|unseen| crate::launch::ranks::plan_for_others(&plan, &unseen));
    Ok(Prepared::Ready(Box::new(Ready { plan, plan_for_others, images, output, fuse: host.fuse, host_commands })))
}

fn host_commands(request: &LaunchRequest) -> Result<Vec<HostCommand>, Failure> {
    let search_path = std::env::var_os("PATH");
    host_command::server::find(&request.host_commands, search_path.as_deref()).map_err(|error| failure(&error))
}

/// This program, as what the commands in the container are.
fn relay() -> Result<HostPath, Failure> {
    let unreadable = |error: std::io::Error| Failure::new(format!("cannot find this program: {}", cause(&error)));
    let path = std::env::current_exe().map_err(unreadable)?;
    let file = std::fs::File::open(&path).map_err(unreadable)?;
    match Object::parse(&file) {
        Ok(object) if object.needed.is_empty() => Ok(HostPath::new(path)),
        _ => Err(failure(&HostCommandError::NotStatic)),
    }
}

/// The caller's variables, those that number accelerators as the container counts them.
fn host_variables(accelerators: &GpuBinds) -> Vec<Pair> {
    let recounted = |name: &[u8]| accelerators.recounted.iter().find(|(found, _)| found == name);
    variables().map(|(name, value)| recounted(&name).cloned().unwrap_or((name, value))).collect()
}

fn variables() -> impl Iterator<Item = Pair> {
    std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec()))
}

pub(super) fn allowed_kind(site: &SiteConfig, kind: ImageKind) -> Result<(), Failure> {
    let (allowed, what, directive) = match kind {
        ImageKind::Sif => (site.allow_container_sif, "SIF files", "allow container sif"),
        ImageKind::Squashfs => (site.allow_container_squashfs, "bare SquashFS files", "allow container squashfs"),
        ImageKind::Sandbox => (site.allow_container_dir, "directories as images", "allow container dir"),
    };
    if allowed { Ok(()) } else { Err(failure(&PlanError::Forbidden { what, directive })) }
}

fn shell_command(shell: ShellProgram, driver: Vec<u8>, arguments: Vec<Vec<u8>>) -> Command {
    let parameters = std::iter::once(b"sh".to_vec()).chain(arguments);
    match shell {
        ShellProgram::Embedded => Command::EmbeddedShell { driver, arguments: parameters.collect() },
        ShellProgram::Image(path) => {
            let words = [path.as_bytes().to_vec(), b"-c".to_vec(), driver];
            Command::Program { arguments: words.into_iter().chain(parameters).collect() }
        }
    }
}

fn seccomp(
    file: &OsStr,
    request: &LaunchRequest,
    site: &SiteConfig,
    who: &plan::Who,
    host: &HostFacts,
) -> Result<Vec<u8>, Failure> {
    let architecture = Architecture::from_machine(&host.kernel.machine)
        .ok_or_else(|| Failure::new(format!("cannot filter system calls on {}", host.kernel.machine)))?;
    let capabilities = plan::kept_capabilities(request, site, &who.identity).map_err(|error| failure(&error))?;
    let context = SeccompContext { capabilities, architecture, kernel: host.kernel.version() };
    let profile = read_text(file, "seccomp profile")?;
    seccomp::compile(&profile, &context).map_err(|error| {
        failure(&error).context(format_args!("cannot use the seccomp profile {}", Path::new(file).display()))
    })
}

/// Reads a file of the user's whose size has a bound.
fn read_text(path: &OsStr, what: &str) -> Result<Vec<u8>, Failure> {
    let shown = Path::new(path).display();
    let mut content = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut content))
        .map_err(|error| Failure::new(format!("cannot read the {what} {shown}: {}", cause(&error))))?;
    if content.len() as u64 > MAX_TEXT_BYTES {
        return Err(Failure::new(format!("cannot use {shown} as {what}: it is longer than {MAX_TEXT_BYTES} bytes")));
    }
    Ok(content)
}

fn read_env_files(request: &LaunchRequest) -> Result<Vec<EnvFile>, Failure> {
    let read = |path: &OsString| {
        let content = read_text(path, "environment file")?;
        Ok(EnvFile { path: path.as_bytes().to_vec(), content })
    };
    request.env_files.iter().map(read).collect()
}

/// Opens the images that binds show something of: for each bind, its connection and whether it shows a directory.
fn open_bound_images(
    binds: &[Bind],
    images: &mut Vec<(squashfs::Reader, Vec<Node>)>,
) -> Result<Vec<Option<(usize, bool)>>, Failure> {
    let mut opened: Vec<(&HostPath, Option<u32>, usize)> = Vec::new();
    let mut bound = Vec::new();
    for bind in binds {
        let Some(part) = &bind.image else {
            bound.push(None);
            continue;
        };
        let doing = |failed: Failure| failed.context(format_args!("cannot bind `{}`", bind.said));
        let known = opened.iter().find(|(path, id, _)| **path == bind.source && *id == part.id);
        let connection = match known {
            Some((_, _, connection)) => *connection,
            None => {
                let file =
                    image::open_to_read(bind.source.as_path().as_os_str()).map_err(|error| doing(failure(&error)))?;
                let (_, reader) = file.data_partition(part.id).map_err(|error| doing(failure(&error)))?;
                images.push((reader, Vec::new()));
                opened.push((&bind.source, part.id, images.len() - 1));
                images.len() - 1
            }
        };
        let at = lookup::resolve(&squashfs::PathReader::new(images[connection].0.clone()), &part.path)
            .map_err(|error| doing(Failure::new(error.to_string())))?;
        let Some(stat) = at.stat else {
            return Err(doing(Failure::new(format!("{} is not in the image", part.path))));
        };
        bound.push(Some((connection, stat.kind == Kind::Directory)));
    }
    Ok(bound)
}

// ---- what people see ----

/// Writes what the image's scripts said to where they would have said it.
fn pass_on(output: &Output) {
    // A closed stream is the reader's wish.
    let _ = std::io::stdout().lock().write_all(&output.stdout).and_then(|()| std::io::stdout().lock().flush());
    let _ = std::io::stderr().lock().write_all(&output.stderr);
}

/// Says why a launch failed, by the switches of the host where the host refused it.
pub(super) fn explained(error: &PerformError, fuse: FuseDevice) -> Failure {
    match error {
        PerformError::Stage { stage, errno } => {
            failure(&diagnosis::explain(attempt(*stage), *errno as i32, &switches::observe(), fuse))
        }
        PerformError::Command { name, errno } if *errno == nix::errno::Errno::ENOENT && !name.contains(&b'/') => {
            Failure::new(error.to_string()).hint("It was looked for on the PATH of the container.")
        }
        PerformError::Command { name, errno } if *errno == nix::errno::Errno::ENOENT => {
            let name = String::from_utf8_lossy(name);
            Failure::new(error.to_string())
                .hint(format!("Either {name} is not there, or the interpreter or the loader that it names is not."))
        }
        PerformError::Command { errno, .. } if *errno == nix::errno::Errno::ENOEXEC => Failure::new(error.to_string())
            .hint("It is no program for this machine, and the image has no /bin/sh to read it as a script."),
        error => Failure::new(error.to_string()),
    }
}

fn attempt(stage: Stage) -> Attempt {
    match stage {
        Stage::UnshareUser => Attempt::UnshareUser,
        Stage::DenySetgroups => Attempt::DenySetgroups,
        Stage::WriteUidMap => Attempt::WriteUidMap,
        Stage::WriteGidMap => Attempt::WriteGidMap,
        Stage::RunNewuidmap => Attempt::RunNewuidmap,
        Stage::RunNewgidmap => Attempt::RunNewgidmap,
        Stage::OpenFuse => Attempt::OpenFuse,
        Stage::UnshareMounts => Attempt::UnshareMounts,
        Stage::MakeSlave => Attempt::MakeSlave,
        Stage::MountTmpfs => Attempt::MountTmpfs,
        Stage::MountFuse => Attempt::MountFuse,
        Stage::MountOverlay => Attempt::MountOverlay,
        Stage::UnsharePid => Attempt::UnsharePid,
        Stage::MountProc => Attempt::MountProc,
        Stage::UnshareIpc => Attempt::UnshareIpc,
        Stage::UnshareUts => Attempt::UnshareUts,
        Stage::UnshareNet => Attempt::UnshareNet,
        Stage::PivotRoot => Attempt::PivotRoot,
        Stage::JoinNamespaces => Attempt::JoinNamespaces,
    }
}
