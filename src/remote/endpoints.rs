//! Endpoints: groups of services (a library, key servers, tokens) at one address, and which of them is used.
//!
//! ```text
//! PREFIX/etc/sifu/remote.yaml   the site's          Active: NAME
//! ~/.apptainer/remote.yaml      the user's          Remotes:
//!                                                       NAME: URI, Token, System, Exclusive, Insecure, Keyservers
//!                                                   Credentials: [{URI, Auth, Insecure}]     of key servers
//! ```
//!
//! The files are Apptainer's. What the site has, its users have too: their own entries of the same name are stronger, an
//! exclusive one of the site is the strongest. Where the site has no file, there is one endpoint, which has a key server
//! and no library.

use super::RemoteError;
use super::credentials::Password;
use crate::report::{Hint, cause};
use crate::yaml;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The endpoint that is there where nobody has said anything: its name, its address, and its key server. It has no library.
pub const DEFAULT_ENDPOINT: (&str, &str, &str) = ("DefaultRemote", "cloud.apptainer.org", "https://keys.openpgp.org");
/// No file of endpoints is longer.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A group of services at one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Endpoint {
    /// Host, perhaps with a port and a path, without a scheme.
    #[serde(default, rename = "URI")]
    pub uri: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Password>,
    /// The site has set it up.
    #[serde(default)]
    pub system: bool,
    /// No other one may be used.
    #[serde(default)]
    pub exclusive: bool,
    /// It is reached without encryption.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keyservers: Vec<Keyserver>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// A server of public keys, in the order in which they are asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Keyserver {
    #[serde(rename = "URI")]
    pub uri: String,
    /// The endpoint's own, which is not to be asked.
    #[serde(default)]
    pub skip: bool,
    /// Not the endpoint's own.
    #[serde(default)]
    pub external: bool,
    #[serde(default)]
    pub insecure: bool,
}

/// What proves to a key server who asks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyserverLogin {
    #[serde(rename = "URI")]
    pub uri: String,
    /// The value of `Authorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Password>,
    #[serde(default)]
    pub insecure: bool,
}

/// What one file says, or the files of the site and the user together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Endpoints {
    #[serde(default)]
    pub active: String,
    #[serde(default)]
    pub remotes: BTreeMap<String, Endpoint>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<KeyserverLogin>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Whose file is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    User,
    Site,
}

/// Where endpoints are written down.
#[derive(Clone, Debug, Default)]
pub struct EndpointFiles {
    pub user: Option<PathBuf>,
    pub site: Option<PathBuf>,
}

/// Why an endpoint can't be used or changed.
#[derive(Debug)]
pub enum EndpointError {
    Read {
        path: PathBuf,
        source: io::Error,
    },
    Form {
        path: PathBuf,
        why: String,
    },
    NoFile,
    Name,
    Address {
        address: String,
        why: &'static str,
    },
    /// An address without encryption that nobody has called insecure.
    NeedsInsecure {
        address: String,
    },
    Unknown {
        name: String,
        known: Vec<String>,
    },
    Exists {
        name: String,
    },
    /// Only the site can change it.
    OfTheSite {
        name: String,
    },
    /// A user asks for what only the site can say.
    ExclusiveForUser,
    Exclusive {
        name: String,
    },
    NoneActive,
    NoService {
        name: String,
        service: &'static str,
    },
    /// A library was named twice, and differently.
    TwoLibraries,
    KeyserverExists {
        uri: String,
    },
    KeyserverUnknown {
        uri: String,
    },
    KeyserverOrder {
        most: usize,
    },
    LastKeyserver {
        uri: String,
    },
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, source } => {
                write!(f, "cannot read the endpoints in {}: {}", path.display(), cause(source))
            }
            Self::Form { path, why } => write!(f, "cannot use the endpoints in {}: {why}", path.display()),
            Self::NoFile => write!(f, "there is no place for endpoints: the home directory is not known"),
            Self::Name => write!(f, "an endpoint needs a name, without blanks at its ends or control characters"),
            Self::Address { address, why } => {
                write!(f, "`{}` is no address of an endpoint: {why}", address.escape_default())
            }
            Self::NeedsInsecure { address } => {
                write!(f, "{address} is reached without encryption, which has to be asked for")
            }
            Self::Unknown { name, .. } => write!(f, "no endpoint is called `{name}`"),
            Self::Exists { name } => write!(f, "an endpoint is called `{name}` already"),
            Self::OfTheSite { name } => {
                write!(f, "the endpoint `{name}` is the site's: it can't be removed for one user")
            }
            Self::ExclusiveForUser => write!(f, "only the site can make an endpoint exclusive"),
            Self::Exclusive { name } => write!(f, "this site allows no other endpoint than `{name}`"),
            Self::NoneActive => write!(f, "no endpoint is in use"),
            Self::NoService { name, service } => write!(f, "the endpoint `{name}` has no {service}"),
            Self::TwoLibraries => write!(f, "--library names one library, and the image's address another"),
            Self::KeyserverExists { uri } => write!(f, "the key server {uri} is there already"),
            Self::KeyserverUnknown { uri } => write!(f, "no key server is {uri}"),
            Self::KeyserverOrder { most } => write!(f, "the order of a key server is a number from 1 to {most} here"),
            Self::LastKeyserver { uri } => write!(f, "{uri} is the only key server: it can't be removed"),
        }
    }
}

impl std::error::Error for EndpointError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Hint for EndpointError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Unknown { known, .. } if !known.is_empty() => {
                return vec![format!("There are: {}.", known.join(", "))];
            }
            Self::NeedsInsecure { .. } => "Write https://, or say --insecure.",
            Self::Exists { .. } => "Remove it first: `sifu remote remove NAME`.",
            Self::NoneActive => "Choose one: `sifu remote use NAME`; `sifu remote list` shows them.",
            Self::NoService { service: LIBRARY, .. } => {
                "Name a library server once, by `sifu remote add --no-login NAME HOST`; or this time, by library://HOST/ENTITY/COLLECTION/NAME:TAG \
                 or --library ADDRESS."
            }
            Self::TwoLibraries => "Leave one of them out.",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// What the service of images is called.
pub const LIBRARY: &str = "library";

impl Endpoint {
    /// The endpoint at an address as people write it: `host`, `https://host:port/path`.
    pub fn parse(address: &str, insecure: bool, scope: Scope) -> Result<Self, EndpointError> {
        let wrong = |why| EndpointError::Address { address: address.to_owned(), why };
        let (scheme, rest) = address.split_once("://").map_or((None, address), |(scheme, rest)| (Some(scheme), rest));
        let insecure = match scheme {
            // Who writes https gets it.
            Some("https") => false,
            Some("http") if !insecure => return Err(EndpointError::NeedsInsecure { address: address.to_owned() }),
            Some("http") | None => insecure,
            Some(_) => return Err(wrong("its scheme is neither http nor https")),
        };
        let uri = rest.trim_end_matches('/');
        if super::http::Address::parse(&format!("https://{uri}")).is_err() || uri.contains(['?', '#']) {
            return Err(wrong("it is a host, perhaps with a port and a path"));
        }
        Ok(Self { uri: uri.to_owned(), insecure, system: scope == Scope::Site, ..Self::default() })
    }

    /// The address with its scheme.
    pub fn address(&self) -> String {
        let scheme = if self.insecure { "http" } else { "https" };
        format!("{scheme}://{}", self.uri.trim_end_matches('/'))
    }

    /// Puts a key server at a place in the order, counted from 1; at the end where none is said. `own` is the endpoint's own,
    /// which is there without being written down.
    pub fn add_keyserver(
        &mut self,
        uri: &str,
        order: Option<usize>,
        insecure: bool,
        own: Option<&str>,
    ) -> Result<(), EndpointError> {
        self.write_down_own(own);
        let known = self.keyservers.iter().position(|server| is_same_server(&server.uri, uri));
        let server = match known {
            // The endpoint's own comes back.
            Some(at) if self.keyservers[at].skip => Keyserver { skip: false, ..self.keyservers[at].clone() },
            Some(_) => return Err(EndpointError::KeyserverExists { uri: uri.to_owned() }),
            None => Keyserver { uri: uri.to_owned(), skip: false, external: true, insecure },
        };
        let most = self.keyservers.iter().filter(|server| !server.skip).count() + 1;
        let order = order.unwrap_or(most);
        if !(1..=most).contains(&order) {
            return Err(EndpointError::KeyserverOrder { most });
        }
        if let Some(at) = known {
            self.keyservers.remove(at);
        }
        let mut asked = self.keyservers.iter().enumerate().filter(|(_, server)| !server.skip).map(|(at, _)| at);
        let at = asked.nth(order - 1).unwrap_or(self.keyservers.len());
        self.keyservers.insert(at, server);
        Ok(())
    }

    /// Takes a key server out of the order.
    pub fn remove_keyserver(&mut self, uri: &str, own: Option<&str>) -> Result<(), EndpointError> {
        self.write_down_own(own);
        let is_it = |server: &Keyserver| !server.skip && is_same_server(&server.uri, uri);
        let Some(at) = self.keyservers.iter().position(is_it) else {
            return Err(EndpointError::KeyserverUnknown { uri: uri.to_owned() });
        };
        if self.keyservers.iter().filter(|server| !server.skip).count() == 1 {
            return Err(EndpointError::LastKeyserver { uri: uri.to_owned() });
        }
        if self.keyservers[at].external {
            self.keyservers.remove(at);
        } else {
            self.keyservers[at].skip = true;
        }
        Ok(())
    }

    fn write_down_own(&mut self, own: Option<&str>) {
        if let Some(own) = own.filter(|_| self.keyservers.is_empty()) {
            self.keyservers.push(Keyserver { uri: own.to_owned(), skip: false, external: false, insecure: false });
        }
    }
}

/// Whether two addresses are those of one key server.
pub fn is_same_server(one: &str, other: &str) -> bool {
    let plain = |uri: &str| {
        let uri = uri.trim_end_matches('/').to_ascii_lowercase();
        // These two schemes of key servers stand for those of the web.
        uri.replacen("hkps://", "https://", 1).replacen("hkp://", "http://", 1)
    };
    plain(one) == plain(other)
}

impl Endpoints {
    /// What is there where a site has said nothing.
    fn built_in() -> Self {
        let (name, uri, _) = DEFAULT_ENDPOINT;
        let endpoint = Endpoint { uri: uri.to_owned(), system: true, ..Endpoint::default() };
        Self { active: name.to_owned(), remotes: [(name.to_owned(), endpoint)].into(), ..Self::default() }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value = yaml::to_json(text).map_err(|error| error.to_string())?;
        if value.is_null() {
            return Ok(Self::default());
        }
        // The words of the parser could show a token.
        serde_json::from_value(without_nulls(value))
            .map_err(|_| "an entry of it has not the form of an endpoint".to_owned())
    }

    fn to_text(&self) -> Result<String, serde_json::Error> {
        Ok(yaml::from_json(&serde_json::to_value(self)?))
    }

    /// What a user has: the user's own, and what the site gives.
    fn over(mut self, site: Self) -> Self {
        for (name, of_site) in site.remotes {
            let entry =
                self.remotes.entry(name.clone()).or_insert_with(|| Endpoint { system: true, ..Endpoint::default() });
            if !entry.system {
                continue;
            }
            if of_site.exclusive {
                self.active = name;
            }
            let token = entry.token.take();
            *entry = Endpoint { token, system: true, ..of_site };
        }
        if self.active.is_empty() {
            self.active = site.active;
        }
        self
    }

    /// The endpoint of a name, or the one in use.
    pub fn find(&self, name: Option<&str>) -> Result<(&str, &Endpoint), EndpointError> {
        let name = name.unwrap_or(&self.active);
        if name.is_empty() {
            return Err(EndpointError::NoneActive);
        }
        let found = self.remotes.get_key_value(name).map(|(name, endpoint)| (name.as_str(), endpoint));
        found.ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> EndpointError {
        EndpointError::Unknown { name: name.to_owned(), known: self.remotes.keys().cloned().collect() }
    }

    /// The endpoint beside which the site allows no other.
    pub fn exclusive(&self) -> Option<&str> {
        self.remotes.iter().find(|(_, endpoint)| endpoint.system && endpoint.exclusive).map(|(name, _)| name.as_str())
    }

    /// Adds an endpoint to a file.
    pub fn add(&mut self, name: &str, endpoint: Endpoint) -> Result<(), EndpointError> {
        if name.is_empty() || name.trim() != name || name.chars().any(char::is_control) {
            return Err(EndpointError::Name);
        }
        if self.remotes.contains_key(name) {
            return Err(EndpointError::Exists { name: name.to_owned() });
        }
        self.remotes.insert(name.to_owned(), endpoint);
        Ok(())
    }

    /// Makes an endpoint the one in use. `all` are those of the site and the user together.
    pub fn make_active(&mut self, name: &str, exclusive: bool, scope: Scope, all: &Self) -> Result<(), EndpointError> {
        let known =
            if scope == Scope::Site { self.find(Some(name))?.1.clone() } else { all.find(Some(name))?.1.clone() };
        if scope == Scope::User {
            if exclusive {
                return Err(EndpointError::ExclusiveForUser);
            }
            if let Some(only) = all.exclusive().filter(|only| *only != name) {
                return Err(EndpointError::Exclusive { name: only.to_owned() });
            }
        }
        if scope == Scope::Site {
            for (other, endpoint) in &mut self.remotes {
                endpoint.exclusive = exclusive && other == name;
            }
        } else {
            // One of the site is written down too, as Apptainer does.
            self.remotes.entry(name.to_owned()).or_insert(known);
        }
        self.active = name.to_owned();
        Ok(())
    }

    pub fn remove(&mut self, name: &str, scope: Scope, all: &Self) -> Result<(), EndpointError> {
        match self.remotes.get(name) {
            Some(endpoint) if scope == Scope::Site || !endpoint.system => {}
            Some(_) => return Err(EndpointError::OfTheSite { name: name.to_owned() }),
            None if scope == Scope::User && all.remotes.contains_key(name) => {
                return Err(EndpointError::OfTheSite { name: name.to_owned() });
            }
            None => return Err(self.unknown(name)),
        }
        self.remotes.remove(name);
        if self.active == name {
            self.active.clear();
        }
        Ok(())
    }

    /// Keeps or forgets the token of an endpoint, in the user's file.
    pub fn set_token(&mut self, name: &str, token: Option<Password>, all: &Self) -> Result<(), EndpointError> {
        let known = all.find(Some(name))?.1.clone();
        let entry = self.remotes.entry(name.to_owned()).or_insert(Endpoint { token: None, ..known });
        entry.token = token;
        Ok(())
    }

    /// Keeps what proves to a key server who asks.
    pub fn set_login(&mut self, login: KeyserverLogin) {
        self.credentials.retain(|known| !is_same_server(&known.uri, &login.uri));
        self.credentials.push(login);
    }

    /// Forgets it. False where there was nothing.
    pub fn forget_login(&mut self, uri: &str) -> bool {
        let before = self.credentials.len();
        self.credentials.retain(|known| !is_same_server(&known.uri, uri));
        self.credentials.len() < before
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(mapping) => {
            let kept = mapping.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

impl EndpointFiles {
    /// What the site and the user have together.
    pub fn load(&self) -> Result<Endpoints, RemoteError> {
        let user = self.user.as_deref().map(read).transpose()?.flatten().unwrap_or_default();
        Ok(user.over(self.of_site()?))
    }

    /// What the site has.
    pub fn of_site(&self) -> Result<Endpoints, RemoteError> {
        let site = self.site.as_deref().map(read).transpose()?.flatten();
        Ok(site.unwrap_or_else(Endpoints::built_in))
    }

    /// The file of a scope.
    pub fn path(&self, scope: Scope) -> Result<&Path, RemoteError> {
        let path = if scope == Scope::Site { &self.site } else { &self.user };
        path.as_deref().ok_or_else(|| EndpointError::NoFile.into())
    }

    /// Changes one of the files. `change` gets what is in it, and what the site and the user have together.
    pub fn edit<T>(
        &self,
        scope: Scope,
        change: impl FnOnce(&mut Endpoints, &Endpoints) -> Result<T, EndpointError>,
    ) -> Result<T, RemoteError> {
        let path = self.path(scope)?;
        let all = self.load()?;
        let mut own = match (read(path)?, scope) {
            (Some(own), _) => own,
            (None, Scope::Site) => Endpoints::built_in(),
            (None, Scope::User) => Endpoints::default(),
        };
        let changed = change(&mut own, &all)?;
        write(path, &own, scope)?;
        Ok(changed)
    }
}

fn read(path: &Path) -> Result<Option<Endpoints>, RemoteError> {
    let failed = |source| EndpointError::Read { path: path.to_owned(), source };
    let form = |why: &str| EndpointError::Form { path: path.to_owned(), why: why.to_owned() };
    let size_bytes = match fs::metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error).into()),
        Ok(metadata) => metadata.len(),
    };
    if size_bytes > MAX_FILE_BYTES {
        return Err(form("it is too large").into());
    }
    let bytes = fs::read(path).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| form("it is no text"))?;
    Ok(Some(Endpoints::parse(&text).map_err(|why| form(&why))?))
}

/// Writes a file anew and puts it in the place of the old one. That of a user can be read by nobody else.
fn write(path: &Path, endpoints: &Endpoints, scope: Scope) -> Result<(), RemoteError> {
    let failed = |source| RemoteError::Local { doing: "write", path: path.display().to_string(), source };
    let (file_mode, directory_mode) = if scope == Scope::User { (0o600, 0o700) } else { (0o644, 0o755) };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(directory_mode).create(directory).map_err(failed)?;
    let text = endpoints.to_text().map_err(|error| failed(error.into()))?;
    let new = directory.join(format!(".remote-{}.yaml", std::process::id()));
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(file_mode).open(&new);
    let placed = opened.and_then(|mut file| file.write_all(text.as_bytes())).and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        let _ = fs::remove_file(&new);
    }
    placed.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(text: &str) -> Endpoints {
        Endpoints::parse(text).unwrap()
    }

    const USERS: &str = "Active: mine\nRemotes:\n    mine:\n        URI: lib.example/x\n        Token: s3cret\n        \
        System: false\n        Exclusive: false\n";

    #[test]
    fn a_file_is_written_as_it_was_read() {
        assert_eq!(endpoints(USERS).to_text().unwrap(), USERS);
        let more = "Active: \"\"\nRemotes:\n    a:\n        URI: a.example\n        System: true\n        Exclusive: false\n        \
            Insecure: true\n        Keyservers:\n            - URI: https://k.example\n              Skip: false\n              \
            External: true\n              Insecure: false\n        Later: 1\nCredentials:\n    - URI: https://k.example\n      \
            Auth: \"Basic eA==\"\n      Insecure: false\nMore: x\n";
        assert_eq!(endpoints(more).to_text().unwrap(), more);
        assert_eq!(endpoints("Active:\nRemotes:\n"), Endpoints::default());
        assert_eq!(endpoints(""), Endpoints::default());
    }

    #[test]
    fn what_is_shown_holds_no_token() {
        assert!(!format!("{:?}", endpoints(USERS)).contains("s3cret"));
        let error = Endpoints::parse("Remotes:\n  a:\n    Token: 123456\n").unwrap_err();
        assert!(!error.contains("123456"), "{error}");
    }

    #[test]
    fn what_the_site_has_is_there_for_its_users() {
        let alone = Endpoints::default().over(Endpoints::built_in());
        assert_eq!(alone.find(None).unwrap().0, "DefaultRemote");
        let both = endpoints(USERS).over(Endpoints::built_in());
        assert_eq!(both.find(None).unwrap().0, "mine");
        assert!(both.remotes["DefaultRemote"].system);
        // The user's token of a site's endpoint stays, whatever else the site has changed.
        let user = endpoints("Remotes:\n  s:\n    {URI: old.example, System: true, Token: t}\n");
        let site = endpoints("Active: s\nRemotes:\n  s: {URI: new.example, Exclusive: true}\n");
        let both = user.over(site.clone());
        assert_eq!(both.remotes["s"].uri, "new.example");
        assert_eq!(both.remotes["s"].token, Some(Password("t".to_owned())));
        // An exclusive one is in use, whatever the user says.
        let both = endpoints(USERS).over(site);
        assert_eq!((both.active.as_str(), both.exclusive()), ("s", Some("s")));
        // An own one of the same name is the user's.
        let own = endpoints("Remotes:\n  DefaultRemote: {URI: own.example}\n").over(Endpoints::built_in());
        assert_eq!(own.remotes["DefaultRemote"].uri, "own.example");
    }

    #[test]
    fn endpoints_come_and_go() {
        let mut own = Endpoints::default();
        let all = |own: &Endpoints| own.clone().over(Endpoints::built_in());
        let new = Endpoint::parse("https://a.example/", false, Scope::User).unwrap();
        own.add("a", new.clone()).unwrap();
        assert!(matches!(own.add("a", new.clone()), Err(EndpointError::Exists { .. })));
        assert!(matches!(own.add(" ", new), Err(EndpointError::Name)));
        let before = all(&own);
        own.make_active("a", false, Scope::User, &before).unwrap();
        assert!(matches!(own.make_active("b", false, Scope::User, &before), Err(EndpointError::Unknown { .. })));
        assert!(matches!(own.make_active("a", true, Scope::User, &before), Err(EndpointError::ExclusiveForUser)));
        assert!(matches!(own.remove("DefaultRemote", Scope::User, &before), Err(EndpointError::OfTheSite { .. })));
        assert!(matches!(own.remove("b", Scope::User, &before), Err(EndpointError::Unknown { .. })));
        own.remove("a", Scope::User, &before).unwrap();
        assert_eq!(own, Endpoints::default());
        // A token for one of the site is kept with the user.
        own.set_token("DefaultRemote", Some(Password("t".to_owned())), &before).unwrap();
        assert!(own.remotes["DefaultRemote"].system);
        let only = endpoints("Active: s\nRemotes:\n  s: {URI: s.example, Exclusive: true}\n");
        let all = endpoints(USERS).over(only);
        assert!(matches!(own.make_active("mine", false, Scope::User, &all), Err(EndpointError::Exclusive { .. })));
    }

    #[test]
    fn an_address_says_how_it_is_reached() {
        let parse = |address, insecure| Endpoint::parse(address, insecure, Scope::User);
        let check =
            |address, insecure, expected: &str| assert_eq!(parse(address, insecure).unwrap().address(), expected);
        check("lib.example", false, "https://lib.example");
        check("lib.example:5000/x/", true, "http://lib.example:5000/x");
        check("https://lib.example", true, "https://lib.example");
        check("http://lib.example", true, "http://lib.example");
        assert!(matches!(parse("http://lib.example", false), Err(EndpointError::NeedsInsecure { .. })));
        for address in ["", "ftp://lib.example", "a@b.example", "a b", "https://", "a.example?x", "a\n"] {
            assert!(matches!(parse(address, true), Err(EndpointError::Address { .. })), "{address}");
        }
    }

    #[test]
    fn key_servers_stand_in_an_order() {
        let mut endpoint = Endpoint::default();
        let own = Some("https://own.example");
        let order = |endpoint: &Endpoint| -> Vec<String> {
            endpoint.keyservers.iter().filter(|server| !server.skip).map(|server| server.uri.clone()).collect()
        };
        endpoint.add_keyserver("https://b.example", None, false, own).unwrap();
        endpoint.add_keyserver("https://a.example", Some(1), true, own).unwrap();
        assert_eq!(order(&endpoint), ["https://a.example", "https://own.example", "https://b.example"]);
        assert!(matches!(
            endpoint.add_keyserver("hkps://A.example/", None, false, own),
            Err(EndpointError::KeyserverExists { .. })
        ));
        assert!(matches!(
            endpoint.add_keyserver("https://c.example", Some(5), false, own),
            Err(EndpointError::KeyserverOrder { most: 4 })
        ));
        endpoint.remove_keyserver("https://own.example", own).unwrap();
        endpoint.remove_keyserver("https://b.example", own).unwrap();
        assert!(matches!(
            endpoint.remove_keyserver("https://a.example", own),
            Err(EndpointError::LastKeyserver { .. })
        ));
        assert!(matches!(
            endpoint.remove_keyserver("https://b.example", own),
            Err(EndpointError::KeyserverUnknown { .. })
        ));
        endpoint.add_keyserver("https://own.example", Some(1), false, own).unwrap();
        assert_eq!(order(&endpoint), ["https://own.example", "https://a.example"]);
    }
}
