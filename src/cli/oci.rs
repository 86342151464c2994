//! `oci`: the command line of an OCI runtime, as podman and Slurm call one.
//!
//! Each verb opens the run directory, reads what it needs, and hands it to `bundle`. Every failure is exit code 1, as
//! with other runtimes, and is written to the file of `--log` as well.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::unistd::{AccessFlags, access};
use starter::paths::HostPath;

use super::action;
use super::flags::{Flag, Said, os};
use crate::bundle::config::{self, Config};
use crate::bundle::lifecycle::{self, Hooks, Launch, LifecycleError, Mode};
use crate::bundle::plan::{self, Facts, Planned, Root};
use crate::bundle::process;
use crate::bundle::record::{self, Record, Status};
use crate::bundle::store::{Entry, Store, StoreError};
use crate::bundle::template::{self, Contents};
use crate::conf;
use crate::env_names::XDG_RUNTIME_DIR;
use crate::host::facts::{FuseDevice, User};
use crate::host::{self, What, switches};
use crate::image::{self, Image, ImageKind};
use crate::launch::environment::{self, Environment, EnvironmentFacts};
use crate::launch::mount_method::mount_method;
use crate::launch::request::{LaunchRequest, Verb};
use crate::report::{self, Failure, cause, failure};
use crate::squashfs::Reader;

/// What is said to `oci` and its verbs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OciOptions {
    pub root: Option<OsString>,
    pub log: Option<OsString>,
    pub log_json: bool,
    pub bundle: Option<OsString>,
    pub pid_file: Option<OsString>,
    pub console_socket: Option<OsString>,
    pub detach: bool,
    pub signal: Option<String>,
    pub all: bool,
    pub force: bool,
}

/// Flags that stand before or after the verb.
pub const OF_RUNTIME: &[Flag] = &[
    Flag::text(
        "root",
        "DIRECTORY",
        |said, directory| said.oci.root = Some(os(directory)),
        "Keep what is known of containers here, not in $XDG_RUNTIME_DIR/sifu/oci or /tmp/sifu-UID/oci",
    ),
    Flag::text("log", "FILE", |said, file| said.oci.log = Some(os(file)), "Add errors to this file as well"),
    Flag::checked(
        "log-format",
        "FORMAT",
        |said, format| match format {
            b"json" | b"text" => {
                said.oci.log_json = format == b"json";
                Ok(())
            }
            _ => Err("it is text or json".to_owned()),
        },
        "How that file is written: text (the default) or json",
    ),
    Flag::switch(
        "systemd-cgroup",
        |_, _| (),
        "Accepted from callers that say it always: containers stay in the caller's cgroup, whoever manages it",
    ),
];

/// Flags of the verbs that make a container.
pub const OF_CREATE: &[Flag] = &[
    Flag::text(
        "bundle",
        "DIRECTORY",
        |said, directory| said.oci.bundle = Some(os(directory)),
        "The directory that holds config.json (default: the current one)",
    )
    .short('b'),
    Flag::text(
        "pid-file",
        "FILE",
        |said, file| said.oci.pid_file = Some(os(file)),
        "Write the container's process id to this file",
    ),
    Flag::text(
        "console-socket",
        "SOCKET",
        |said, socket| said.oci.console_socket = Some(os(socket)),
        "Hand the terminal out over this socket",
    ),
    Flag::later("preserve-fds", Some("COUNT"), ""),
    Flag::later("no-pivot", None, "sifu takes the way that the kernel allows."),
    Flag::later("no-new-keyring", None, ""),
    Flag::later("sync-socket", Some("SOCKET"), "Ask by `sifu oci state`."),
    Flag::later("empty-process", None, ""),
    Flag::later("log-path", Some("FILE"), "Redirect standard output and standard error."),
];

pub const OF_RUN: &[Flag] = &[
    Flag::switch("detach", |said, on| said.oci.detach = on, "Leave the container running in the background").short('d'),
    Flag::later("keep", None, ""),
];

pub const OF_KILL: &[Flag] = &[
    Flag::text(
        "signal",
        "SIGNAL",
        |said, signal| said.oci.signal = Some(String::from_utf8_lossy(&signal).into_owned()),
        "By name or number (default: TERM)",
    )
    .short('s'),
    Flag::switch("all", |said, on| said.oci.all = on, "To every process of the container").short('a'),
];

pub const OF_DELETE: &[Flag] =
    &[Flag::switch("force", |said, on| said.oci.force = on, "Kill it if it still runs").short('f')];

// ---- verbs ----

pub fn create(said: Said) -> Result<ExitCode, Failure> {
    logged(&said, |said| {
        let store = store(said, true)?;
        let prepared = prepare(said)?;
        if prepared.planned.terminal && said.oci.console_socket.is_none() {
            return Err(Failure::new(
                "process.terminal in config.json needs --console-socket: nobody here keeps a terminal",
            ));
        }
        let (entry, lock) = store.make(&id(said)?).map_err(|error| failure(&error))?;
        make(said, &entry, lock, prepared, Mode::Created).map_err(|error| gone(entry, &error))?;
        Ok(ExitCode::SUCCESS)
    })
}

pub fn run(said: Said) -> Result<ExitCode, Failure> {
    logged(&said, |said| {
        let store = store(said, true)?;
        let prepared = prepare(said)?;
        let mode = if said.oci.detach { Mode::Detached } else { Mode::Foreground };
        if prepared.planned.terminal && mode == Mode::Detached && said.oci.console_socket.is_none() {
            return Err(Failure::new("process.terminal in config.json needs --console-socket with --detach"));
        }
        let (entry, lock) = store.make(&id(said)?).map_err(|error| failure(&error))?;
        let record = match make(said, &entry, lock, prepared, mode) {
            Ok(record) => record,
            Err(error) => return Err(gone(entry, &error)),
        };
        let begun = lifecycle::run_hooks(&record.poststart, &record, Status::Running);
        begun.unwrap_or_else(report::warning);
        if mode == Mode::Detached {
            return Ok(ExitCode::SUCCESS);
        }
        let ended = lifecycle::wait(&record).map_err(|error| failure(&error))?;
        lifecycle::forget(entry, Some(&record)).unwrap_or_else(report::warning);
        Ok(ExitCode::from(ended.code()))
    })
}

pub fn start(said: Said) -> Result<ExitCode, Failure> {
    logged(&said, |said| {
        lifecycle::start(&entry(said)?).map_err(|error| failure(&error))?;
        Ok(ExitCode::SUCCESS)
    })
}

pub fn state(said: Said) -> Result<ExitCode, Failure> {
    logged(&said, |said| {
        let entry = entry(said)?;
        let (status, record) = lifecycle::look(&entry).map_err(|error| failure(&error))?;
        let Some(record) = record else {
            let id = entry.id();
            return Err(Failure::new(format!("container `{id}` has no state yet: it is {status}")));
        };
        super::print(&record.state(status))
    })
}

pub fn kill(said: Said) -> Result<ExitCode, Failure> {
    logged(&said, |said| {
        let word = said.words.get(1).map(|word| word.to_string_lossy().into_owned());
        let word = said.oci.signal.clone().or(word).unwrap_or_else(|| "TERM".to_owned());
        let signal = process::signal_number(&word).ok_or_else(|| Failure::new(format!("`{word}` is no signal")))?;
        lifecycle::kill(&entry(said)?, signal, said.oci.all).map_err(|error| failure(&error))?;
        Ok(ExitCode::SUCCESS)
    })
}

pub fn delete(said: Said) -> Result<ExitCode, Failure> {
    logged(&said, |said| {
        let deleted = match entry_of(said) {
            Err(StoreError::Unknown { .. }) if said.oci.force => Ok(()),
            Err(error) => return Err(failure(&error)),
            Ok(entry) => lifecycle::delete(entry, said.oci.force),
        };
        deleted.map_err(|error| failure(&error))?;
        Ok(ExitCode::SUCCESS)
    })
}

pub fn list(said: Said) -> Result<ExitCode, Failure> {
    logged(&said, |said| {
        let store = match open_store(said, false) {
            // Nobody has made a container here.
            Err(StoreError::System { errno: nix::errno::Errno::ENOENT, .. }) => return Ok(ExitCode::SUCCESS),
            opened => opened.map_err(|error| failure(&error))?,
        };
        let mut text = String::new();
        for id in store.ids().map_err(|error| failure(&error))? {
            let line = match store.entry(&id).map_err(LifecycleError::Store).and_then(|entry| lifecycle::look(&entry)) {
                Ok((status, record)) => {
                    let bundle = record.map(|record| record.bundle).unwrap_or_default();
                    format!("{id}\t{status}\t{}\n", report::printable(&bundle))
                }
                Err(error) => {
                    report::warning(error);
                    continue;
                }
            };
            text.push_str(&line);
        }
        super::print(&text)
    })
}

/// Writes a bundle around an image: for callers that want a directory with a `config.json`.
pub fn bundle(said: Said) -> Result<ExitCode, Failure> {
    logged(&said, |said| {
        let [image, directory, arguments @ ..] = said.words.as_slice() else {
            return Err(Failure::usage("an image and a directory are needed"));
        };
        let image = image::open(image).map_err(|error| failure(&error))?;
        let (path, directory) = (&image.facts.path, Path::new(directory));
        let text = |word: &OsStr| {
            let known = word.to_str().map(str::to_owned);
            known.ok_or_else(|| Failure::new(format!("config.json has no words for `{}`", Path::new(word).display())))
        };
        let user = host::observe(&What::default()).user;
        // Root's own directory is nobody else's business.
        let home = if user.uid == 0 { None } else { Some(text(user.entry.home.as_path().as_os_str())?) };
        let contents = Contents {
            uid: user.uid,
            gid: user.gid,
            variables: image_variables(&image, &user, home.as_deref())?,
            arguments: match arguments {
                [] => vec!["/bin/sh".to_owned()],
                words => words.iter().map(|word| text(word)).collect::<Result<_, _>>()?,
            },
            home: home.as_deref(),
        };
        let file = directory.join(config::FILE_NAME);
        let json = format!("{:#}\n", template::configuration(&contents));
        std::fs::create_dir_all(directory)
            // By name below the bundle: Slurm 22.05 takes no other path.
            .and_then(|()| std::os::unix::fs::symlink(path.as_path(), directory.join(template::ROOT)))
            .and_then(|()| std::fs::OpenOptions::new().write(true).create_new(true).open(&file))
            .and_then(|mut file| file.write_all(json.as_bytes()))
            .map_err(|error| Failure::new(format!("cannot write {}: {}", file.display(), cause(&error))))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// What the image's own scripts set, with nothing of the caller's environment.
fn image_variables(image: &Image, user: &User, home: Option<&str>) -> Result<Vec<String>, Failure> {
    /// What says how a program was started by `exec`, and not what the image wants.
    const OF_ONE_CALL: [&[u8]; 9] = [
        b"APPTAINER_APPNAME",
        b"APPTAINER_BIND",
        b"APPTAINER_COMMAND",
        b"OLDPWD",
        b"PROMPT_COMMAND",
        b"PS1",
        b"PWD",
        b"SHLVL",
        b"SINGULARITY_BIND",
    ];
    let mut request = LaunchRequest::new(Verb::Exec, image.facts.path.as_path(), vec!["true".into()]);
    request.cleanenv = true;
    let facts = EnvironmentFacts {
        host: Vec::new(),
        env_files: Vec::new(),
        image_path: image.facts.path.as_bytes().to_vec(),
        image_name: image.facts.name.clone(),
        binds: Vec::new(),
        home: home.unwrap_or("/").as_bytes().to_vec(),
        directory: home.unwrap_or("/").as_bytes().to_vec(),
        uid: user.uid,
        gid: user.gid,
        instance: None,
        libraries_bound: false,
        narrow_libraries_bound: false,
        has_host_commands: false,
        covered: Vec::new(),
    };
    let action = environment::actions(&request, image.root(), &[]).map_err(|error| failure(&error))?;
    let evaluated = environment::environment(&request, &facts, &action, image.root());
    let (evaluated, _) = evaluated.map_err(|error| failure(&error))?;
    let variables = match evaluated {
        Environment::Known { variables, .. } => variables,
        Environment::NeedsShell { reason, initial, .. } => {
            report::warning(format_args!(
                "the image's environment scripts are left out: {reason}; put what they set into process.env"
            ));
            initial
        }
        Environment::Ended { code, .. } => {
            return Err(Failure::new(format!("the image's environment scripts end with exit code {code}")));
        }
    };
    let wanted = variables.into_iter().filter(|(name, _)| !OF_ONE_CALL.contains(&name.as_slice()));
    let texts = wanted.filter_map(|(name, value)| String::from_utf8([name.as_slice(), b"=", &value].concat()).ok());
    Ok(texts.collect())
}

/// Runs a verb, and writes its failure to where the caller looks for it.
fn logged(said: &Said, verb: impl FnOnce(&Said) -> Result<ExitCode, Failure>) -> Result<ExitCode, Failure> {
    /// What other runtimes answer to whatever fails.
    const FAILED: u8 = 1;
    verb(said).map_err(|failure| {
        if let Some(path) = &said.oci.log {
            let line = if said.oci.log_json {
                serde_json::json!({ "level": "error", "msg": failure.message }).to_string()
            } else {
                format!("level=error msg={:?}", failure.message)
            };
            let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
            if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
                report::warning(format_args!("cannot write to {}: {}", Path::new(path).display(), cause(&error)));
            }
        }
        Failure { code: FAILED, ..failure }
    })
}

// ---- what verbs have in common ----

fn id(said: &Said) -> Result<String, Failure> {
    let word = said.words.first().map(|word| word.to_string_lossy().into_owned());
    word.ok_or_else(|| Failure::usage("the id of a container is missing"))
}

fn open_store(said: &Said, make: bool) -> Result<Store, StoreError> {
    const OWN: [&str; 2] = ["sifu", "oci"];
    if let Some(root) = &said.oci.root {
        return Store::open(Path::new(root), &[], make);
    }
    match std::env::var_os(XDG_RUNTIME_DIR).filter(|directory| Path::new(directory).is_absolute()) {
        Some(directory) => Store::open(Path::new(&directory), &OWN, make),
        None => {
            let own = format!("sifu-{}", nix::unistd::geteuid());
            Store::open(Path::new("/tmp"), &[&own, "oci"], make)
        }
    }
}

fn store(said: &Said, make: bool) -> Result<Store, Failure> {
    open_store(said, make).map_err(|error| failure(&error))
}

fn entry_of(said: &Said) -> Result<Entry, StoreError> {
    let id = said.words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    match open_store(said, false) {
        // Where nothing was ever made, nothing is known.
        Err(StoreError::System { errno: nix::errno::Errno::ENOENT, .. }) => {
            record::check_id(&id).map_err(|reason| StoreError::Id { id: id.clone(), reason })?;
            Err(StoreError::Unknown { id })
        }
        opened => opened?.entry(&id),
    }
}

fn entry(said: &Said) -> Result<Entry, Failure> {
    entry_of(said).map_err(|error| failure(&error))
}

/// Removes what there is of a container that was not to be.
fn gone(entry: Entry, error: &LifecycleError) -> Failure {
    lifecycle::forget(entry, None).unwrap_or_else(report::warning);
    failure(error)
}

/// A container that is decided.
struct Prepared {
    planned: Planned,
    images: Vec<Reader>,
    bundle: PathBuf,
    annotations: std::collections::BTreeMap<String, String>,
    hooks: Hooks,
    fuse: FuseDevice,
}

fn prepare(said: &Said) -> Result<Prepared, Failure> {
    let site = conf::load::load(said.global.config_file.as_deref().map(Path::new)).map_err(|error| failure(&error))?;
    let named = said.oci.bundle.clone().unwrap_or_else(|| OsString::from("."));
    let bundle = std::fs::canonicalize(&named).map_err(|error| {
        Failure::new(format!("cannot open the bundle {}: {}", Path::new(&named).display(), cause(&error)))
    })?;
    let config = read_config(&bundle)?;
    let bundle = HostPath::new(bundle);
    let root_path = plan::root_path(&config, &bundle).map_err(|error| failure(&error))?;
    let image = image::open(root_path.as_path().as_os_str()).map_err(|error| failure(&error))?;
    action::allowed_kind(&site, image.facts.kind)?;
    let is_directory = image.facts.kind == ImageKind::Sandbox;
    let host = host::observe(&What {
        subordinate_ids: config.linux.uid_mappings.len() > 1 || config.linux.gid_mappings.len() > 1,
        fuse: !is_directory,
        paths: plan::sources(&config, &bundle),
        ..What::default()
    });
    // There is no second way: an unpacked copy would have to be removed by somebody who outlives the container.
    mount_method(image.facts.kind, host.fuse, false, true, switches::observe).map_err(|error| failure(&error))?;
    let root = match image.partition() {
        Some(_) => Root::Served,
        None => {
            let writable = access(root_path.as_path(), AccessFlags::W_OK).is_ok();
            Root::Directory { path: root_path, writable }
        }
    };
    let facts = Facts { config: &config, site: &site, bundle: &bundle, root, tree: image.root(), host: &host };
    let planned = plan::plan(&facts).map_err(|error| failure(&error))?;
    for notice in &planned.notices {
        if notice.is_warning() { report::warning(notice) } else { report::verbose(notice) }
    }
    if report::level() >= report::DEBUG {
        report::debug(format_args!("launch plan:\n{}", String::from_utf8_lossy(&planned.plan.to_text())));
    }
    let Config { hooks, annotations, .. } = config;
    Ok(Prepared {
        planned,
        images: image.partition().cloned().into_iter().collect(),
        bundle: bundle.as_path().to_owned(),
        annotations,
        hooks: Hooks {
            before_start: hooks.prestart.into_iter().chain(hooks.create_runtime).collect(),
            poststart: hooks.poststart,
            poststop: hooks.poststop,
        },
        fuse: host.fuse,
    })
}

fn read_config(bundle: &Path) -> Result<Config, Failure> {
    let path = bundle.join(config::FILE_NAME);
    let shown = path.display();
    let mut json = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(config::MAX_BYTES + 1).read_to_end(&mut json))
        .map_err(|error| Failure::new(format!("cannot read {shown}: {}", cause(&error))))?;
    if json.len() as u64 > config::MAX_BYTES {
        return Err(Failure::new(format!("cannot use {shown}: it is longer than {} bytes", config::MAX_BYTES)));
    }
    Config::parse(&json).map_err(|reason| Failure::new(format!("cannot read {shown}: {reason}")))
}

fn make(
    said: &Said,
    entry: &Entry,
    lock: std::fs::File,
    prepared: Prepared,
    mode: Mode,
) -> Result<Record, LifecycleError> {
    let Prepared { planned, images, bundle, annotations, hooks, fuse } = prepared;
    let path = |word: &Option<OsString>| word.as_deref().map(|word: &OsStr| PathBuf::from(word));
    let (pid_file, console_socket) = (path(&said.oci.pid_file), path(&said.oci.console_socket));
    let invented = planned.invented.clone();
    let launch = Launch {
        planned,
        images: images.into_iter().map(|reader| (reader, invented.clone())).collect(),
        bundle: &bundle,
        annotations,
        hooks,
        pid_file: pid_file.as_deref(),
        console_socket: console_socket.as_deref(),
        explain: &|error| action::explained(error, fuse),
    };
    let tell = |warning, text: &str| if warning { report::warning(text) } else { report::verbose(text) };
    lifecycle::create(entry, lock, launch, mode, tell)
}
