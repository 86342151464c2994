//! What the flags and variables say about images elsewhere: credentials, the cache, where files go.

use super::flags::{Category, Flag, os};
use super::progress::Meter;
use crate::build::builder::RootOptions;
use crate::build::elsewhere::{self, Conversion};
use crate::build::{Note, processors};
use crate::cache::{Cache, DEFAULT_CEILING_BYTES};
use crate::env_names::{
    CACHE_CEILING, CACHE_DIRECTORY, CONFIG_DIRECTORY, CONTAINER_HOST, DOCKER_CERT_PATH, DOCKER_CONFIG, DOCKER_HOST,
    DOCKER_TLS_VERIFY, PREFIXES, REGISTRIES_CONF, REGISTRY_AUTH_FILE, SITE_CACHE, STALL_TIMEOUT, XDG_RUNTIME_DIR,
};
use crate::remote::access::{Access, Libraries};
use crate::remote::credentials::{Login, Password, Places};
use crate::remote::daemon::DaemonPlace;
use crate::remote::endpoints::EndpointFiles;
use crate::remote::http::Patience;
use crate::remote::registries::RegistriesFiles;
use crate::report::{self, Failure, failure};
use crate::sif::Arch;
use crate::squashfs::write::{BLOCK_BYTES, Compression, PackOptions};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where systems keep what tools for containers share, the strongest first.
const SYSTEM_CONTAINERS: [&str; 2] = ["/etc/containers", "/usr/share/containers"];

/// What is said about images elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElsewhereOptions {
    pub no_https: bool,
    pub authfile: Option<OsString>,
    pub username: Option<String>,
    pub password: Option<Password>,
    pub docker_login: bool,
    pub disable_cache: bool,
    pub docker_host: Option<String>,
    pub library: Option<String>,
}

/// The flags of every verb that fetches images.
pub const ELSEWHERE: &[Flag] = &[
    Flag::switch("disable-cache", |said, on| said.elsewhere.disable_cache = on, "Neither use nor fill the cache")
        .keys(&["DISABLE_CACHE"])
        .category(Category::Sources),
    Flag::text(
        "docker-username",
        "NAME",
        |said, name| said.elsewhere.username = Some(String::from_utf8_lossy(&name).into_owned()),
        "Ask registries as this user",
    )
    .keys(&["DOCKER_USERNAME"])
    .category(Category::Sources),
    Flag::text(
        "docker-password",
        "PASSWORD",
        |said, password| said.elsewhere.password = Some(Password(String::from_utf8_lossy(&password).into_owned())),
        "With this password; others on this machine can see it, so prefer the variable",
    )
    .keys(&["DOCKER_PASSWORD"])
    .category(Category::Sources),
    Flag::switch("docker-login", |said, on| said.elsewhere.docker_login = on, "Ask for a name and password")
        .keys(&["DOCKER_LOGIN"])
        .category(Category::Sources),
    Flag::text(
        "authfile",
        "FILE",
        |said, file| said.elsewhere.authfile = Some(os(file)),
        "Take credentials from this file, in Docker's form",
    )
    .keys(&["AUTH_FILE"])
    .category(Category::Sources),
    Flag::switch("no-https", |said, on| said.elsewhere.no_https = on, "Talk to registries without encryption")
        .aliases(&["nohttps"])
        .keys(&["NOHTTPS", "NO_HTTPS"])
        .category(Category::Sources),
    Flag::text(
        "docker-host",
        "ADDRESS",
        |said, address| said.elsewhere.docker_host = Some(String::from_utf8_lossy(&address).into_owned()),
        "Where the daemon of docker-daemon: images is: unix:///SOCKET or tcp://HOST:PORT",
    )
    .keys(&["DOCKER_HOST"])
    .category(Category::Sources),
    Flag::text(
        "library",
        "ADDRESS",
        |said, address| said.elsewhere.library = Some(String::from_utf8_lossy(&address).into_owned()),
        "Ask this library server for library:// images",
    )
    .keys(&["LIBRARY"])
    .category(Category::Sources),
];

/// The value of a variable under the strongest of its prefixes.
pub fn variable(key: &str) -> Option<OsString> {
    let found = PREFIXES.iter().find_map(|prefix| std::env::var_os(format!("{prefix}{key}")));
    found.filter(|value| !value.is_empty())
}

fn home() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.map(PathBuf::from).ok_or_else(|| Failure::new("there is no home directory: the variable HOME is not set"))
}

/// The directory of what sifu keeps for a user.
fn own_directory() -> Result<PathBuf, Failure> {
    match variable(CONFIG_DIRECTORY) {
        Some(directory) => Ok(directory.into()),
        None => Ok(home()?.join(".apptainer")),
    }
}

/// Where the site and the user have their endpoints.
pub fn endpoint_files() -> EndpointFiles {
    const NAME: &str = "remote.yaml";
    EndpointFiles {
        user: own_directory().ok().map(|directory| directory.join(NAME)),
        site: crate::conf::load::path_beside(None, NAME),
    }
}

/// The file of `registry login`.
pub fn credentials_file(said: &ElsewhereOptions) -> Result<PathBuf, Failure> {
    match &said.authfile {
        Some(file) => Ok(file.into()),
        None => Ok(own_directory()?.join("docker-config.json")),
    }
}

/// Everything that is said about access.
pub fn access(said: &ElsewhereOptions) -> Result<Access, Failure> {
    let login = match (&said.username, &said.password) {
        (Some(name), Some(Password(password))) => {
            Some(Login::Password { name: name.clone(), password: password.clone() })
        }
        _ if said.docker_login => Some(ask_login(said.username.clone())?),
        _ => None,
    };
    let mut others = Vec::new();
    let docker = std::env::var_os(DOCKER_CONFIG).map(PathBuf::from);
    let home = home().ok();
    others.extend(docker.or_else(|| home.as_ref().map(|home| home.join(".docker"))).map(|d| d.join("config.json")));
    others.extend(std::env::var_os(REGISTRY_AUTH_FILE).map(PathBuf::from));
    others.extend(std::env::var_os(XDG_RUNTIME_DIR).map(|d| PathBuf::from(d).join("containers/auth.json")));
    others.extend(home.as_ref().map(|home| home.join(".config/containers/auth.json")));
    let named = said.authfile.as_ref().map(PathBuf::from);
    if let Some(named) = named.as_ref().filter(|named| !named.exists()) {
        return Err(Failure::new(format!("cannot read the credentials in {}: no such file", named.display())));
    }
    let own = own_directory().ok().map(|directory| directory.join("docker-config.json"));
    let containers = home.as_ref().map(|home| home.join(".config/containers"));
    let registries = match std::env::var_os(REGISTRIES_CONF) {
        Some(file) => RegistriesFiles { main: vec![file.into()], directories: Vec::new() },
        None => {
            let system = SYSTEM_CONTAINERS.map(PathBuf::from);
            let main = containers.iter().chain(&system).map(|directory| directory.join("registries.conf"));
            let directories =
                system.iter().rev().chain(&containers).map(|directory| directory.join("registries.conf.d"));
            RegistriesFiles { main: main.collect(), directories: directories.collect() }
        }
    };
    let certificates = containers.into_iter().chain(["/etc/containers".into(), "/etc/docker".into()]);
    Ok(Access {
        no_https: said.no_https,
        places: Places { said: login, named, own, others },
        certificates: certificates.map(|directory| directory.join("certs.d")).collect(),
        registries,
        daemon: daemon(said, home.as_deref()),
        patience: patience()?,
        libraries: Libraries { said: said.library.clone(), endpoints: endpoint_files() },
        ..Access::default()
    })
}

/// How long is waited for what is elsewhere.
fn patience() -> Result<Patience, Failure> {
    let Some(text) = variable(STALL_TIMEOUT) else { return Ok(Patience::default()) };
    let seconds = text.to_str().and_then(|text| text.trim().parse::<u64>().ok()).filter(|&seconds| seconds > 0);
    let wrong = || Failure::new(format!("{STALL_TIMEOUT} is `{}`, no number of seconds", text.to_string_lossy()));
    Ok(Patience { stall: Duration::from_secs(seconds.ok_or_else(wrong)?), ..Patience::default() })
}

/// Where the daemon of Docker or Podman is.
fn daemon(said: &ElsewhereOptions, home: Option<&Path>) -> DaemonPlace {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = said.docker_host.clone().or_else(|| named(DOCKER_HOST)).or_else(|| named(CONTAINER_HOST));
    let certificates = named(DOCKER_TLS_VERIFY).and_then(|_| {
        let own = || home.map(|home| home.join(".docker"));
        named(DOCKER_CERT_PATH).map(PathBuf::from).or_else(own)
    });
    let run = named(XDG_RUNTIME_DIR).map(PathBuf::from);
    let of_user = |name: &str| run.as_ref().map(|run| run.join(name));
    let sockets = [
        Some("/var/run/docker.sock".into()),
        of_user("docker.sock"),
        of_user("podman/podman.sock"),
        Some("/run/podman/podman.sock".into()),
    ];
    DaemonPlace { host, certificates, sockets: sockets.into_iter().flatten().collect() }
}

/// Asks on the terminal for a name and a password.
pub fn ask_login(name: Option<String>) -> Result<Login, Failure> {
    let name = match name {
        Some(name) => name,
        None => ask("Username: ", true)?,
    };
    Ok(Login::Password { name, password: ask("Password: ", false)? })
}

/// Asks something on the terminal; the answer is shown while it is written, or not.
pub fn ask(question: &str, shown: bool) -> Result<String, Failure> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::new("a password can be asked for on a terminal only")
            .hint("Give the name with --username and the password with --password-stdin, or set the variables."));
    }
    let failed = |error: std::io::Error| Failure::new(format!("cannot ask on the terminal: {}", report::cause(&error)));
    let errno = |errno: nix::errno::Errno| failed(errno.into());
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let before = tcgetattr(&stdin).map_err(errno)?;
    if !shown {
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &quiet).map_err(errno)?;
    }
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    if !shown {
        let _ = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before);
        let _ = stderr.write_all(b"\n");
    }
    read.map_err(failed)?;
    Ok(answer.trim_end_matches(['\n', '\r']).to_owned())
}

/// Reads a password or a token from standard input.
pub fn read_secret() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(1 << 16).read_to_string(&mut text);
    read.map_err(|error| Failure::new(format!("cannot read the password: {}", report::cause(&error))))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// The user's cache, below it that of the site.
pub fn cache() -> Result<Cache, Failure> {
    let root = match variable(CACHE_DIRECTORY) {
        Some(directory) => PathBuf::from(directory).join("cache"),
        None => own_directory()?.join("cache"),
    };
    let ceiling_bytes = match variable(CACHE_CEILING) {
        None => DEFAULT_CEILING_BYTES,
        Some(text) => {
            let mib = text.to_str().and_then(|text| text.trim().parse::<u64>().ok());
            let mib = mib.and_then(|mib| mib.checked_mul(1 << 20));
            mib.ok_or_else(|| {
                Failure::new(format!("{CACHE_CEILING} is `{}`, no number of MiB", text.to_string_lossy()))
            })?
        }
    };
    Ok(Cache::new(root, variable(SITE_CACHE).map(PathBuf::from), ceiling_bytes))
}

/// How images elsewhere become SIF files.
pub fn conversion(
    said: &ElsewhereOptions,
    architecture: Option<Arch>,
    variant: Option<String>,
) -> Result<Conversion, Failure> {
    Ok(Conversion {
        access: Access { variant, ..access(said)? },
        architecture,
        // What the layers say counts, whoever converts them.
        root: RootOptions::default(),
        pack: PackOptions {
            compression: Compression::ZSTD,
            block_bytes: BLOCK_BYTES,
            threads: processors::usable(&processors::observe(), None),
            time: 0,
        },
        time: None,
        keeps_files: false,
    })
}

/// Does something of which the user is told while it goes on.
pub fn watched<T, E: std::fmt::Display + report::Hint>(
    work: impl FnOnce(&mut dyn FnMut(Note)) -> Result<T, E>,
) -> Result<T, Failure> {
    let mut meter = Meter::on_stderr();
    let done = work(&mut |note| match note {
        Note::Doing(text) => meter.aside(|| report::info(text)),
        Note::Warning(text) => meter.aside(|| report::warning(text)),
        Note::Transfers(transfers) => meter.note(transfers),
        Note::Progress(progress) => meter.show(progress),
    });
    meter.clear();
    done.map_err(|error| failure(&error))
}

/// The file to open for the image that an action names: that of the cache for an image elsewhere. `None` for what is here.
pub fn image_for(image: &OsStr, said: &ElsewhereOptions, tmpdir: Option<&OsStr>) -> Result<Option<OsString>, Failure> {
    let Some(uri) = image.to_str().filter(|text| elsewhere::is_uri(text)) else { return Ok(None) };
    let how = conversion(said, None, None)?;
    if !said.disable_cache {
        let cache = cache()?;
        let path = watched(|say| elsewhere::cached(uri, &how, &cache, say))?;
        return Ok(Some(path.into()));
    }
    let directory = tmpdir.map_or_else(std::env::temp_dir, PathBuf::from);
    let path = directory.join(format!("sifu-image-{}.sif", std::process::id()));
    let fetched = watched(|say| elsewhere::fetch(uri, &how, &path, say));
    // The file has no name as soon as it is open: nothing is left of it when the container ends.
    let opened = fetched.and_then(|()| open_and_remove(&path));
    if opened.is_err() {
        let _ = fs::remove_file(&path);
    }
    opened.map(Some)
}

fn open_and_remove(path: &Path) -> Result<OsString, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(format!("cannot open {}: {}", path.display(), report::cause(&error)));
    let file = File::open(path).map_err(failed)?;
    fs::remove_file(path).map_err(failed)?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    // It stays open until the program of the container takes the place of this one.
    std::mem::forget(file);
    Ok(name.into())
}
