//! Runs the scripts of a definition file: `%pre` and `%setup` on the host, `%post` and `%test` in a container.
//!
//! A script in the container is run by sifu itself, as a child: `sifu section --writable --fakeroot … ROOTFS /bin/sh -ex
//! SCRIPT`, which is `sifu exec` tied to the build: it ends when the build does, and everything in its container with it.
//! So a build has no ways of its own to start a container, and what works there works here.

use super::BuildError;
use super::builder::{RootOptions, Who};
use super::edit::Edit;
use super::room;
use super::rootfs::Rootfs;
use super::seal::{POST_ENVIRONMENT, POST_LABELS, app_directory};
use crate::def::Script;
use crate::env_names::PREFIXES;
use nix::sys::stat::{Mode, umask};
use starter::paths::{ContainerPath, HostPath};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// How containers of a build are started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    pub root: RootOptions,
    /// Values of `--bind` and `--mount`.
    pub binds: Vec<OsString>,
    pub mounts: Vec<OsString>,
    pub nv: bool,
    pub rocm: bool,
    /// For `%test`: changes are possible, and go away.
    pub writable_tmpfs: bool,
    /// Files that `%post` can read, and the image does not hold.
    pub secrets: Vec<Secret>,
    /// The directory whose files root changes, where that is not the root directory.
    pub records: Option<PathBuf>,
}

/// `--secret id=…,src=…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// The file is `/run/secrets/ID`.
    pub id: String,
    pub source: HostPath,
}

impl Secret {
    /// Reads `id=NAME,src=FILE`.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let (mut id, mut source) = (None, None);
        for part in text.split(|&b| b == b',') {
            match part.iter().position(|&b| b == b'=').map(|at| (&part[..at], &part[at + 1..])) {
                Some((b"id", value)) => id = Some(String::from_utf8_lossy(value).into_owned()),
                Some((b"src" | b"source", value)) => source = Some(HostPath::from_bytes(value)),
                _ => return Err("`id=NAME,src=FILE` was expected".to_owned()),
            }
        }
        let id = id.filter(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
        match (id.filter(|id| !id.starts_with('.')), source) {
            (Some(id), Some(source)) => Ok(Self { id, source }),
            _ => Err("a name of letters, digits, `_`, `-` and `.`, and a file were expected".to_owned()),
        }
    }

    fn path(&self) -> ContainerPath {
        ContainerPath::parse(format!("/run/secrets/{}", self.id).as_bytes()).unwrap_or_else(|_| ContainerPath::root())
    }
}

/// The script of a section while it runs in the container.
const SCRIPT: &str = "/.post.script";

/// Files of this machine by which programs find others, and the names of their copies while a section runs.
const NETWORK_FILES: [(&str, &str); 2] = [("/etc/hosts", "/.post.hosts"), ("/etc/resolv.conf", "/.post.resolv.conf")];

/// Runs `%pre` or `%setup` with `/bin/sh -ex` in the caller's directory and environment. `rootfs` is told by variables.
pub fn run_on_host(section: &'static str, script: &Script, rootfs: &Path, work: &Path) -> Result<(), BuildError> {
    let failed = |source| BuildError::Start { section, source };
    let path = work.join("script");
    std::fs::write(&path, &script.text).map_err(failed)?;
    let command = interpreter(script);
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]).arg(&path);
    for prefix in PREFIXES {
        child.env(format!("{prefix}ROOTFS"), rootfs);
        child.env(format!("{prefix}ENVIRONMENT"), rootfs.join(&POST_ENVIRONMENT[1..]));
    }
    let status = status_of(child).map_err(failed);
    let _ = std::fs::remove_file(&path);
    succeeded(section, script, status?, work)
}

/// Runs `%post` as root of `rootfs`.
pub fn run_post(script: &Script, rootfs: &Rootfs, options: &RunOptions) -> Result<(), BuildError> {
    run_script("post", script, &script.text, rootfs, options)
}

/// Runs `%appinstall`: like `%post`, in the directory of the app and with its variables.
pub fn run_app_install(app: &str, script: &Script, rootfs: &Rootfs, options: &RunOptions) -> Result<(), BuildError> {
    let top = app_directory(app);
    let head = format!(". {top}/scif/env/01-base.sh\n. {top}/scif/env/90-environment.sh\ncd {top}\n");
    run_script("appinstall", script, &[head.as_bytes(), &script.text].concat(), rootfs, options)
}

fn run_script(
    section: &'static str,
    script: &Script,
    text: &[u8],
    rootfs: &Rootfs,
    options: &RunOptions,
) -> Result<(), BuildError> {
    let path = ContainerPath::fixed(SCRIPT);
    let mut edits = vec![Edit::File { path: path.clone(), mode: 0o755, content: text.to_vec() }];
    let mut clean = vec![Edit::Remove { path }];
    for secret in &options.secrets {
        edits.push(Edit::File { path: secret.path(), mode: 0o600, content: Vec::new() });
        clean.push(Edit::Remove { path: secret.path() });
    }
    // Scripts write to these files; what they write is neither for this machine nor for the image.
    let mut network = Vec::new();
    for (of_host, copy) in NETWORK_FILES {
        // What this machine lacks, the container lacks.
        if let Ok(content) = std::fs::read(of_host) {
            let path = ContainerPath::fixed(copy);
            network.push(bind(&rootfs.host_path(&path), of_host, ""));
            edits.push(Edit::File { path: path.clone(), mode: 0o644, content });
            clean.push(Edit::Remove { path });
        }
    }
    rootfs.apply(&edits)?;
    let mut command = interpreter(script);
    command.push(SCRIPT.into());
    let status = run_in(section, rootfs.path(), Access::Writable, &network, &command, options);
    rootfs.apply(&clean)?;
    succeeded(section, script, status?, rootfs.path())
}

/// Runs the image's tests.
pub fn run_test(script: &Script, rootfs: &Rootfs, options: &RunOptions) -> Result<(), BuildError> {
    let command = ["/.singularity.d/actions/test".into()];
    let access = if options.writable_tmpfs { Access::Discarded } else { Access::ReadOnly };
    let status = run_in("test", rootfs.path(), access, &network_of_host(), &command, options)?;
    succeeded("test", script, status, rootfs.path())
}

/// Runs a command of a bootstrap agent as root of `rootfs`, which is not sealed yet.
pub fn run_install(command: &[OsString], rootfs: &Rootfs, root: RootOptions) -> Result<ExitStatus, BuildError> {
    let options = RunOptions { root, ..RunOptions::default() };
    run_in("bootstrap", rootfs.path(), Access::Writable, &network_of_host(), command, &options)
}

/// Runs a command as root of this machine's own files, which it sees as they are, and of those in `rootfs` and `work`,
/// which it may change; what it makes of the former is remembered with them.
pub fn run_beside(
    command: &[OsString],
    rootfs: &Rootfs,
    work: &Path,
    root: RootOptions,
) -> Result<ExitStatus, BuildError> {
    let mut options = RunOptions { root, records: Some(rootfs.path().to_owned()), ..RunOptions::default() };
    options.mounts = [work, rootfs.path()].map(bind_in_place).into();
    run_in("bootstrap", Path::new("/"), Access::ReadOnly, &network_of_host(), command, &options)
}

fn bind_in_place(path: &Path) -> OsString {
    bind(path, path, "")
}

/// Mounts of this machine's own network files, which nobody may change by them.
fn network_of_host() -> Vec<OsString> {
    let files = NETWORK_FILES.into_iter().map(|(of_host, _)| of_host).filter(|of_host| Path::new(of_host).exists());
    files.map(|of_host| bind(Path::new(of_host), of_host, ",ro")).collect()
}

/// A value of `--mount`.
fn bind(source: &Path, target: impl AsRef<Path>, options: &str) -> OsString {
    let (source, target) = (source.as_os_str().as_bytes(), target.as_ref().as_os_str().as_bytes());
    OsString::from_vec([b"type=bind,src=", source, b",dst=", target, options.as_bytes()].concat())
}

/// What a script may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Writable,
    ReadOnly,
    /// Changes go away with the container.
    Discarded,
}

/// Runs a command as root of `rootfs`, and waits for it. `network` are the mounts of [`NETWORK_FILES`]. The command reads
/// nothing: whoever starts builds in a loop over a list means to read the list himself.
fn run_in(
    section: &'static str,
    rootfs: &Path,
    access: Access,
    network: &[OsString],
    command: &[OsString],
    options: &RunOptions,
) -> Result<ExitStatus, BuildError> {
    let failed = |source| BuildError::Start { section, source };
    let mut child = Command::new(std::env::current_exe().map_err(failed)?);
    child.args(arguments(access, Who::this_process(), options));
    for mount in network {
        child.arg("--mount").arg(mount);
    }
    child.arg(rootfs).args(command).stdin(Stdio::null());
    // What the caller's variables ask of a container is not meant for those of a build.
    for (name, _) in std::env::vars_os() {
        let bytes = name.clone().into_vec();
        let is_ours = PREFIXES.iter().any(|prefix| bytes.starts_with(prefix.as_bytes()));
        let is_kept = [b"CONFIG_FILE".as_slice(), b"MESSAGELEVEL", b"TMPDIR", b"CACHEDIR", b"CONFIGDIR"]
            .iter()
            .any(|kept| bytes.ends_with(kept));
        if is_ours && !is_kept {
            child.env_remove(name);
        }
    }
    status_of(child).map_err(failed)
}

/// Runs a script and waits for it. Its umask is that of Apptainer's builds, whatever the caller's: what a script makes
/// should have the same modes in everybody's image, and under the 0077 of a careful user no other could use it.
fn status_of(mut child: Command) -> std::io::Result<ExitStatus> {
    let callers = umask(Mode::S_IWOTH);
    let started = child.spawn();
    umask(callers);
    started?.wait()
}

/// The words before the image. Root is root, also that of the range that a build is in. Others are emulated, even where a
/// range could be mapped: the build was decided to do without.
fn arguments(access: Access, who: Who, options: &RunOptions) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["section", "--pid", "--cleanenv", "--no-home", "--cwd", "/"].map(Into::into).into();
    let mut say = |word: &str| words.push(word.into());
    say("--no-mount");
    say("home,cwd,bind-paths");
    match who {
        Who::Root => {}
        Who::RootOfNamespace => say("--emulate-devices"),
        Who::User => {
            say("--fakeroot");
            say("--ignore-subuid");
            if options.root.no_emulation {
                say("--ignore-fakeroot-command");
            }
        }
    }
    if let Some(directory) = options.records.as_ref().filter(|_| who != Who::Root) {
        say("--emulate-root-in");
        words.push(directory.into());
    }
    let mut say = |word: &str| words.push(word.into());
    match access {
        Access::Writable => say("--writable"),
        Access::Discarded => say("--writable-tmpfs"),
        Access::ReadOnly => {}
    }
    for (is_on, flag) in [(options.nv, "--nv"), (options.rocm, "--rocm")] {
        if is_on {
            say(flag);
        }
    }
    if access == Access::Writable {
        for prefix in ["APPTAINER", "SINGULARITY"] {
            say("--env");
            say(&format!("{prefix}_ENVIRONMENT={POST_ENVIRONMENT},{prefix}_LABELS={POST_LABELS}"));
        }
    }
    let mut pair = |flag: &str, value: OsString| words.extend([flag.into(), value]);
    if access == Access::Writable {
        for secret in &options.secrets {
            pair("--mount", bind(secret.source.as_path(), OsStr::from_bytes(secret.path().as_bytes()), ",ro"));
        }
    }
    options.binds.iter().for_each(|bind| pair("--bind", bind.clone()));
    options.mounts.iter().for_each(|mount| pair("--mount", mount.clone()));
    words
}

/// The interpreter of a section and its options: `/bin/sh -ex`, or what `-c` names. A shell ends at the first command
/// that fails, unless it is told to go on by `+e`: an image whose half was made looks like a whole one.
fn interpreter(script: &Script) -> Vec<OsString> {
    let words: Vec<&str> = script.arguments.split_ascii_whitespace().collect();
    // A trace would show the values of secrets.
    let options = if script.holds_secret { "-e" } else { "-ex" };
    match words.split_first() {
        Some((&"-c", [shell, rest @ ..])) if is_shell(OsStr::new(shell)) && !rest.contains(&"+e") => {
            [shell, "-e"].iter().chain(rest).map(Into::into).collect()
        }
        Some((&"-c", rest)) if !rest.is_empty() => rest.iter().map(Into::into).collect(),
        _ => ["/bin/sh", options].iter().chain(&words).map(Into::into).collect(),
    }
}

fn is_shell(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().map(OsStr::to_string_lossy).unwrap_or_default();
    name.ends_with("sh")
}

fn succeeded(section: &'static str, script: &Script, status: ExitStatus, directory: &Path) -> Result<(), BuildError> {
    match status.success() {
        true => Ok(()),
        false => Err(BuildError::Section { section, line: script.line, status, is_full: is_full(directory) }),
    }
}

/// Whether next to nothing more can be written. What a program says of it is often hard to find in what it says.
fn is_full(directory: &Path) -> bool {
    const NOTHING_BYTES: u64 = 64 << 10;
    let room = File::open(directory).ok().and_then(|directory| room::observe(directory).ok());
    room.is_some_and(|room| room.bytes() < NOTHING_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(arguments: &str) -> Script {
        Script { arguments: arguments.to_owned(), ..Script::default() }
    }

    #[test]
    fn a_section_is_run_by_sh_or_by_what_it_names() {
        let check = |arguments: &str, expected: &[&str]| {
            assert_eq!(interpreter(&script(arguments)), expected, "{arguments}");
        };
        check("", &["/bin/sh", "-ex"]);
        check("-u", &["/bin/sh", "-ex", "-u"]);
        check("-c /bin/bash", &["/bin/bash", "-e"]);
        check("-c /bin/bash +e", &["/bin/bash", "+e"]);
        check("-c /bin/bash -uo pipefail", &["/bin/bash", "-e", "-uo", "pipefail"]);
        check("-c /usr/bin/python3", &["/usr/bin/python3"]);
        let secret = Script { holds_secret: true, ..script("") };
        assert_eq!(interpreter(&secret), ["/bin/sh", "-e"]);
    }

    #[test]
    fn only_post_can_change_the_image_and_see_secrets() {
        let secrets = vec![Secret::parse(b"id=token,src=/x").expect("a secret")];
        let options = RunOptions { secrets, nv: true, binds: vec!["/a:/b".into()], ..RunOptions::default() };
        let words = |access| -> Vec<String> {
            arguments(access, Who::User, &options).iter().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let has = |words: &[String], word: &str| words.iter().any(|known| known == word);
        let post = words(Access::Writable);
        assert!(has(&post, "--writable") && has(&post, "type=bind,src=/x,dst=/run/secrets/token,ro"));
        assert!(has(&post, "--nv") && has(&post, "/a:/b"));
        let test = words(Access::ReadOnly);
        assert!(!has(&test, "--writable") && !test.iter().any(|word| word.contains("secrets")));
        assert!(has(&words(Access::Discarded), "--writable-tmpfs"));
    }

    #[test]
    fn root_is_emulated_as_far_as_the_builder_is_not_root() {
        let words = |who, root| -> Vec<String> {
            let options = RunOptions { root, records: Some("/r".into()), ..RunOptions::default() };
            let words = arguments(Access::Writable, who, &options);
            let of_root = |word: &String| ["fakeroot", "subuid", "emulate"].iter().any(|part| word.contains(part));
            words.iter().map(|word| word.to_string_lossy().into_owned()).filter(of_root).collect()
        };
        let plain = RootOptions::default();
        assert_eq!(words(Who::Root, plain), [""; 0]);
        assert_eq!(words(Who::RootOfNamespace, plain), ["--emulate-devices", "--emulate-root-in"]);
        assert_eq!(words(Who::User, plain), ["--fakeroot", "--ignore-subuid", "--emulate-root-in"]);
        let alone = RootOptions { no_emulation: true, ..plain };
        let expected = ["--fakeroot", "--ignore-subuid", "--ignore-fakeroot-command", "--emulate-root-in"];
        assert_eq!(words(Who::User, alone), expected);
    }

    #[test]
    fn a_secret_has_a_name_and_a_file() {
        let secret = Secret::parse(b"src=my file,id=a.b-c_1").expect("a secret");
        assert_eq!((secret.id.as_str(), secret.source), ("a.b-c_1", HostPath::new("my file")));
        for wrong in ["", "id=a", "src=b", "id=,src=b", "id=../x,src=b", "id=.x,src=b", "a,b"] {
            assert!(Secret::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
