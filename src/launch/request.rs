//! What a user asked of a launch, in types: no file has been looked at and no default of the site applied.
//!
//! `cli` fills it from the command line and the environment. Flags that stand for others are spelled out there:
//! `--containall` arrives as `contain`, `pid`, `ipc` and `cleanenv`; `--compat` as those with `no_init`, `no_umask`,
//! `no_eval` and `writable_tmpfs`; `--hostname` brings `uts`, `--network` brings `net`, and `--no-pid` takes `pid` away.

use std::ffi::OsString;
use std::time::Duration;

/// What to do in the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Runs the command given after the image.
    #[default]
    Exec,
    /// Runs the image's runscript with the arguments.
    Run,
    /// Starts an interactive shell; arguments go to it.
    Shell,
    /// Runs the image's test script with the arguments.
    Test,
}

impl Verb {
    /// Returns the verb's word on the command line, which is also its script's name in `/.singularity.d/actions`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Run => "run",
            Self::Shell => "shell",
            Self::Test => "test",
        }
    }
}

/// With whom a container is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// With the other ranks of the same job step on this node.
    #[default]
    WithinJobStep,
    /// `--sharens`: with those, or with what the same process starts.
    Always,
    /// `--no-sharens`.
    Never,
}

/// One start of a container, as it was asked for.
///
/// Words that name things in the container or have a grammar of their own are bytes, whole and unparsed; paths of the
/// host are `OsString`, as given (relative ones are relative to the current directory).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaunchRequest {
    pub verb: Verb,
    /// The image as given: a path, or a URI of a kind that `image` refuses.
    pub image: OsString,
    /// Everything after the image, untouched. Never empty for [`Verb::Exec`].
    pub arguments: Vec<OsString>,

    /// `--bind` values in order, then those of `BIND` and `BINDPATH`; each may hold a comma list.
    pub binds: Vec<Vec<u8>>,
    /// `--mount` values in order, then the lines of `MOUNT`.
    pub mounts: Vec<Vec<u8>>,
    /// `--home`: `source[:destination]`.
    pub home: Option<Vec<u8>>,
    pub no_home: bool,
    /// `--no-mount`: words such as `tmp`, or absolute paths of site binds.
    pub no_mount: Vec<Vec<u8>>,
    pub contain: bool,
    /// `--scratch`: paths in the container.
    pub scratch: Vec<Vec<u8>>,
    /// `--workdir`: a host directory that holds contained `/tmp`, `/var/tmp`, home and scratch directories.
    pub workdir: Option<OsString>,
    /// `--cwd`: the payload's first directory, in the container.
    pub cwd: Option<Vec<u8>>,
    pub writable: bool,
    pub writable_tmpfs: bool,
    /// `--unsquash`: unpack the image into a directory first.
    pub unsquash: bool,
    /// `--tmpdir` or the `TMPDIR` key: the host directory for temporary files; `None` leaves the choice to the host's
    /// own `TMPDIR`.
    pub tmpdir: Option<OsString>,

    pub cleanenv: bool,
    /// `--env` pairs in order; a later one of the same name wins.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// `--env-file` paths in order; a later file wins.
    pub env_files: Vec<OsString>,
    /// `--no-env`: names of host variables that stay out.
    pub no_env: Vec<Vec<u8>>,
    /// `--no-eval`: values are taken literally, without a shell's expansions.
    pub no_eval: bool,
    /// `--no-umask`: umask 0022 instead of the caller's.
    pub no_umask: bool,

    pub pid: bool,
    /// `--no-init`: no pid 1 of ours in a pid namespace; the payload is it.
    pub no_init: bool,
    pub ipc: bool,
    pub uts: bool,
    pub hostname: Option<Vec<u8>>,
    pub userns: bool,
    pub net: bool,
    /// `--network` names; empty if not given.
    pub network: Vec<Vec<u8>>,
    /// `--dns` addresses.
    pub dns: Vec<Vec<u8>>,

    /// `--fakeroot`: root in the container.
    pub fakeroot: bool,
    /// `--ignore-subuid`: no range of subordinate ids is mapped, even if there is one.
    pub ignore_subuid: bool,
    /// `--ignore-fakeroot-command`: what root may do is not emulated.
    pub no_root_emulation: bool,
    /// Root of a user namespace makes device nodes and sets file capabilities, which are remembered.
    pub emulate_devices: bool,
    /// The directory whose files the emulated root changes, where that is not the container's root directory.
    pub emulate_root_in: Option<OsString>,
    /// `--add-caps` words, commas split: `CAP_CHOWN`, `chown`, `all`.
    pub add_caps: Vec<Vec<u8>>,
    /// `--drop-caps` words, commas split.
    pub drop_caps: Vec<Vec<u8>>,
    /// `--security` words such as `seccomp:FILE`.
    pub security: Vec<Vec<u8>>,
    pub no_privs: bool,

    pub nv: bool,
    pub no_nv: bool,
    pub rocm: bool,
    pub no_rocm: bool,
    /// `--nvccli`: means what `--nv` means.
    pub nvccli: bool,
    /// `--compat32`: libraries for programs with 32-bit addresses as well.
    pub compat32: bool,
    /// `--gpus`: which accelerators, unparsed.
    pub gpus: Option<Vec<u8>>,
    /// `--device`: names of CDI devices.
    pub devices: Vec<Vec<u8>>,
    /// `--cdi-dirs`: where to look for their descriptions; empty for the usual directories.
    pub cdi_dirs: Vec<OsString>,

    /// `--mpi`: bring in the host's MPI.
    pub mpi: bool,

    /// `--app`: the SCIF app.
    pub app: Option<Vec<u8>>,
    /// `--shell`: the program that [`Verb::Shell`] starts.
    pub shell: Option<Vec<u8>>,
    /// `--runscript-timeout`: limit for the evaluation of the environment scripts; `None` if not given.
    pub runscript_timeout: Option<Duration>,

    /// `--host-cmd`: commands of the host that programs inside may start, by name or absolute path.
    pub host_commands: Vec<Vec<u8>>,
    /// `--sharens`, `--no-sharens`.
    pub sharing: Sharing,

    /// `--config`: the site configuration to read instead of the installed one.
    pub config_file: Option<OsString>,
    /// `--strict`: fail where a rung is missing instead of taking a slower or smaller one.
    pub strict: bool,
    /// What is said: -3 errors only, -1 warnings, 1 default, 4 verbose, 5 debug.
    pub level: i32,
    /// False with `--nocolor`.
    pub colour: bool,
}

impl LaunchRequest {
    /// Returns a request for `verb` on `image`, with nothing else asked and the default level of messages.
    pub fn new(verb: Verb, image: impl Into<OsString>, arguments: Vec<OsString>) -> Self {
        Self { verb, image: image.into(), arguments, level: 1, colour: true, ..Self::default() }
    }
}
