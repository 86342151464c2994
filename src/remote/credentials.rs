//! Names and passwords for registries: where people keep them.
//!
//! ```text
//! said on the command line or by variables
//! --authfile FILE
//! ~/.apptainer/docker-config.json       sifu's own, written by `registry login`; where it is absent:
//! ~/.docker/config.json
//! $XDG_RUNTIME_DIR/containers/auth.json and ~/.config/containers/auth.json
//! ```
//!
//! All files have one form: `{"auths": {HOST: {"auth": BASE64 of NAME:PASSWORD}}, "credHelpers": {HOST: PROGRAM},
//! "credsStore": PROGRAM}`. A helper is the program `docker-credential-PROGRAM`.

use super::RemoteError;
use crate::oci::reference::DEFAULT_REGISTRY;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Largest file of credentials that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The name under which helpers give tokens instead of passwords.
const TOKEN_NAME: &str = "<token>";

/// A text that is shown to nobody.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    Password {
        name: String,
        password: String,
    },
    /// What a registry's token server takes instead of a password.
    IdentityToken(String),
}

/// Shows no secret.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { name, .. } => write!(f, "Password({name:?}, …)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(…)"),
        }
    }
}

impl Login {
    /// The value of `Authorization` for a name and password.
    pub fn basic(&self) -> Option<String> {
        match self {
            Self::Password { name, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))
            }
            Self::IdentityToken(_) => None,
        }
    }
}

/// Where credentials are looked for.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// What was said for this one time.
    pub said: Option<Login>,
    /// A file that was named: the only one, then.
    pub named: Option<PathBuf>,
    /// sifu's own file, and those of others where it is absent.
    pub own: Option<PathBuf>,
    pub others: Vec<PathBuf>,
}

#[derive(Clone, Default, Deserialize, Serialize)]
struct Stored {
    #[serde(default)]
    auths: BTreeMap<String, StoredLogin>,
    #[serde(default, rename = "credHelpers", skip_serializing_if = "BTreeMap::is_empty")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore", skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Clone, Default, Deserialize, Serialize)]
struct StoredLogin {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    auth: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    password: String,
    #[serde(default, rename = "identitytoken", skip_serializing_if = "String::is_empty")]
    identity_token: String,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

impl Places {
    /// Who asks `repository` of `registry`, if anybody is known there.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Login>, RemoteError> {
        if let Some(said) = &self.said {
            return Ok(Some(said.clone()));
        }
        let files: Vec<&PathBuf> = match (&self.named, &self.own) {
            (Some(named), _) => vec![named],
            (None, Some(own)) if own.exists() => vec![own],
            (None, _) => self.others.iter().collect(),
        };
        for path in files {
            if let Some(stored) = read(path)?
                && let Some(login) = stored.login(registry, repository, path)?
            {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }
}

impl Stored {
    fn login(&self, registry: &str, repository: &str, path: &Path) -> Result<Option<Login>, RemoteError> {
        let own = |key: &&String| host_of(key) == registry;
        if let Some(name) = self.helpers.iter().find(|(key, _)| own(key)).map(|(_, name)| name) {
            return helper(name, registry);
        }
        // The longest key that is the repository or leads to it.
        let whole = format!("{registry}/{repository}");
        let serves = |key: &str| {
            let key = host_of(key);
            whole == key || whole.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'))
        };
        let best = self.auths.iter().filter(|(key, _)| serves(key)).max_by_key(|(key, _)| host_of(key).len());
        if let Some((_, login)) = best
            && let Some(login) = login.login(path)?
        {
            return Ok(Some(login));
        }
        match &self.store {
            Some(name) => helper(name, registry),
            None => Ok(None),
        }
    }
}

impl StoredLogin {
    fn login(&self, path: &Path) -> Result<Option<Login>, RemoteError> {
        if !self.identity_token.is_empty() {
            return Ok(Some(Login::IdentityToken(self.identity_token.clone())));
        }
        if !self.username.is_empty() {
            return Ok(Some(Login::Password { name: self.username.clone(), password: self.password.clone() }));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let parts = decoded.as_deref().and_then(|text| text.split_once(':'));
        let Some((name, password)) = parts else {
            let why = "an `auth` in it is not NAME:PASSWORD in base 64".to_owned();
            return Err(RemoteError::Credentials { path: path.display().to_string(), why });
        };
        // Docker pads them with zero bytes.
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Login::Password { name: name.to_owned(), password }))
    }
}

/// The registry that a key is for: keys can be addresses, with a scheme and a version behind.
fn host_of(key: &str) -> &str {
    if key == DEFAULT_REGISTRY.2 {
        return DEFAULT_REGISTRY.0;
    }
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

/// The key under which a registry's credentials are kept.
fn key_of(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY.0 { DEFAULT_REGISTRY.2 } else { registry }
}

fn read(path: &Path) -> Result<Option<Stored>, RemoteError> {
    let failed = |why: String| RemoteError::Credentials { path: path.display().to_string(), why };
    let size = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(crate::report::cause(&error))),
        Ok(metadata) => metadata.len(),
    };
    if size > MAX_FILE_BYTES {
        return Err(failed("it is too large".to_owned()));
    }
    let bytes = fs::read(path).map_err(|error| failed(crate::report::cause(&error)))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // The words of the parser could show what is in the file.
    serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(format!("no JSON at line {}", error.line())))
}

/// Asks a program for a registry's credentials.
fn helper(name: &str, registry: &str) -> Result<Option<Login>, RemoteError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let failed = |why: String| RemoteError::Helper { name: name.to_owned(), why };
    if name.contains('/') || name.is_empty() {
        return Err(failed("its name is that of no program".to_owned()));
    }
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| failed(crate::report::cause(&error)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that reads nothing has said no.
        let _ = stdin.write_all(key_of(registry).as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(crate::report::cause(&error)))?;
    if !output.status.success() {
        // That is how it says that it knows nobody there.
        return Ok(None);
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("its answer is not understood".to_owned()))?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_NAME => Login::IdentityToken(answer.secret),
        _ => Login::Password { name: answer.username, password: answer.secret },
    }))
}

/// Keeps the name and password for a registry in a file, which only its owner can read.
pub fn store(path: &Path, registry: &str, login: &Login) -> Result<(), RemoteError> {
    let mut stored = read(path)?.unwrap_or_default();
    let mut entry = StoredLogin::default();
    match login {
        Login::Password { name, password } => entry.auth = STANDARD.encode(format!("{name}:{password}")),
        Login::IdentityToken(token) => entry.identity_token.clone_from(token),
    }
    stored.auths.retain(|key, _| host_of(key) != registry);
    stored.auths.insert(key_of(registry).to_owned(), entry);
    write(path, &stored)
}

/// Forgets a registry's credentials. False where there were none.
pub fn forget(path: &Path, registry: &str) -> Result<bool, RemoteError> {
    let Some(mut stored) = read(path)? else { return Ok(false) };
    let before = stored.auths.len();
    stored.auths.retain(|key, _| host_of(key) != registry);
    if stored.auths.len() == before {
        return Ok(false);
    }
    write(path, &stored).map(|()| true)
}

/// The registries of a file, with the names that are used there.
pub fn list(path: &Path) -> Result<Vec<(String, String)>, RemoteError> {
    let stored = read(path)?.unwrap_or_default();
    let name = |login: &StoredLogin| match login.login(path) {
        Ok(Some(Login::Password { name, .. })) => name,
        _ => String::new(),
    };
    Ok(stored.auths.iter().map(|(key, login)| (host_of(key).to_owned(), name(login))).collect())
}

/// Writes the file anew and puts it in the place of the old one.
fn write(path: &Path, stored: &Stored) -> Result<(), RemoteError> {
    let failed = |source| RemoteError::Local { doing: "write", path: path.display().to_string(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(failed)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let new = directory.join(format!(".credentials-{}", std::process::id()));
    let text = serde_json::to_vec_pretty(stored).map_err(|error| failed(error.into()))?;
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let renamed = written.and_then(|mut file| file.write_all(&text)).and_then(|()| fs::rename(&new, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&new);
    }
    renamed.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(json: &str, registry: &str, repository: &str) -> Option<Login> {
        let stored: Stored = serde_json::from_str(json).unwrap();
        stored.login(registry, repository, Path::new("x")).unwrap()
    }

    fn password(name: &str, password: &str) -> Option<Login> {
        Some(Login::Password { name: name.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn keys_are_hosts_addresses_or_paths() {
        let json = &r#"{"auths":{
            "https://host.example/v1/":{"auth":"YTpi"},
            "other.example:5000/team":{"username":"c","password":"d"},
            "other.example:5000":{"auth":"ZTpmOmc="},
            "DEFAULT":{"auth":"aDpp"}}}"#
            .replace("DEFAULT", DEFAULT_REGISTRY.2);
        assert_eq!(login(json, "host.example", "x"), password("a", "b"));
        assert_eq!(login(json, "other.example:5000", "team/tool"), password("c", "d"));
        assert_eq!(login(json, "other.example:5000", "teams"), password("e", "f:g"));
        assert_eq!(login(json, DEFAULT_REGISTRY.0, "library/x"), password("h", "i"));
        assert_eq!(login(json, "host.example.evil", "x"), None);
        assert_eq!(login(json, "other.example", "x"), None);
    }

    #[test]
    fn what_is_shown_holds_no_secret() {
        let shown = format!("{:?} {:?}", password("ada", "hunter2"), Login::IdentityToken("hunter2".to_owned()));
        assert!(shown.contains("ada") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_is_kept_is_found_and_forgotten_and_leaves_the_rest_alone() {
        let directory = std::env::temp_dir().join(format!("sifu-credentials-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("docker-config.json");
        fs::write(&path, r#"{"auths":{"a.example":{"auth":"YTpi","email":"x"}},"HttpHeaders":{"X":"y"}}"#).unwrap();
        let new = Login::Password { name: "n".to_owned(), password: "p".to_owned() };
        store(&path, "b.example:5000", &new).unwrap();
        let places = Places { own: Some(path.clone()), ..Places::default() };
        assert_eq!(places.find("b.example:5000", "x").unwrap(), Some(new));
        assert_eq!(places.find("a.example", "x").unwrap(), password("a", "b"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(forget(&path, "b.example:5000").unwrap() && !forget(&path, "b.example:5000").unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("HttpHeaders") && text.contains("email") && !text.contains("b.example"), "{text}");
        fs::remove_dir_all(&directory).unwrap();
    }
}
