//! `sifu remote …`: endpoints of libraries, and who one is there.

use super::elsewhere::{ElsewhereOptions, access, ask, endpoint_files, read_secret};
use super::registry::LoginOptions;
use super::{print, registry};
use crate::remote::RemoteError;
use crate::remote::credentials::Password;
use crate::remote::endpoints::{Endpoint, EndpointFiles, Endpoints, Scope};
use crate::remote::http::{Address, Http};
use crate::remote::services::{self, Services};
use crate::report::{self, Failure, failure};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// What the flags of `remote` and `keyserver` ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteOptions {
    /// Another file than the user's own.
    pub file: Option<OsString>,
    pub global: bool,
    pub exclusive: bool,
    pub insecure: bool,
    pub no_login: bool,
    pub no_default: bool,
    pub token_file: Option<OsString>,
    /// The place of a key server, counted from 1.
    pub order: Option<usize>,
}

impl RemoteOptions {
    pub fn files(&self) -> EndpointFiles {
        let files = endpoint_files();
        match &self.file {
            Some(file) => EndpointFiles { user: Some(file.into()), ..files },
            None => files,
        }
    }

    fn scope(&self) -> Scope {
        if self.global || self.exclusive { Scope::Site } else { Scope::User }
    }
}

pub fn said<E: Into<RemoteError>>(error: E) -> Failure {
    failure(&error.into())
}

/// Prepares to talk to an endpoint.
pub fn http_of(endpoint: &Endpoint) -> Result<Http, Failure> {
    let address = Address::parse(&endpoint.address()).map_err(said)?;
    Ok(access(&ElsewhereOptions::default())?.http(&address))
}

/// The services of an endpoint.
pub fn services_of(name: &str, endpoint: &Endpoint) -> Result<(Http, Services), Failure> {
    let http = http_of(endpoint)?;
    let services = Services::find(&http, name, endpoint).map_err(said)?;
    Ok((http, services))
}

/// Adds an endpoint, uses it from now on, and logs in there.
pub fn add(options: &RemoteOptions, login: &LoginOptions, name: &OsStr, address: &OsStr) -> Result<ExitCode, Failure> {
    let (name, address) = (name.to_string_lossy(), address.to_string_lossy());
    let endpoint = Endpoint::parse(&address, options.insecure, options.scope()).map_err(said)?;
    if options.insecure && !endpoint.insecure {
        report::info("--insecure has no effect on an https:// address");
    }
    let logs_in = !options.no_login && !options.global;
    let files = options.files();
    let added = files.edit(options.scope(), |own, all| {
        own.add(&name, endpoint)?;
        if options.no_default {
            return Ok(());
        }
        // It is not among those of the site and the user yet.
        let mut all = all.clone();
        all.remotes.extend(own.remotes.clone());
        own.make_active(&name, false, options.scope(), &all)
    });
    added.map_err(said)?;
    report::info(format_args!("The endpoint `{name}` is added"));
    if !logs_in {
        return Ok(ExitCode::SUCCESS);
    }
    log_in(options, login, Some(&name)).map_err(|failure| {
        failure.hint(format!("The endpoint is there: log in with `sifu remote login {name}`, or go without a login."))
    })
}

/// Uses an endpoint from now on.
pub fn use_(options: &RemoteOptions, name: &OsStr) -> Result<ExitCode, Failure> {
    let (name, scope) = (name.to_string_lossy(), options.scope());
    let used = options.files().edit(scope, |own, all| own.make_active(&name, options.exclusive, scope, all));
    used.map_err(said)?;
    report::info(format_args!("The endpoint `{name}` is in use"));
    Ok(ExitCode::SUCCESS)
}

/// Removes an endpoint, with its token.
pub fn remove(options: &RemoteOptions, name: &OsStr) -> Result<ExitCode, Failure> {
    let (name, scope) = (name.to_string_lossy(), options.scope());
    let removed = options.files().edit(scope, |own, all| own.remove(&name, scope, all));
    removed.map_err(said)?;
    report::info(format_args!("The endpoint `{name}` is removed"));
    Ok(ExitCode::SUCCESS)
}

/// Prints the endpoints.
pub fn list(options: &RemoteOptions) -> Result<ExitCode, Failure> {
    print(&table_of(&options.files().load().map_err(said)?))
}

fn table_of(endpoints: &Endpoints) -> String {
    let mark = |yes: bool| if yes { "✓" } else { "" }.to_owned();
    let head = ["NAME", "URI", "DEFAULT?", "GLOBAL?", "EXCLUSIVE?", "SECURE?"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    rows.extend(endpoints.remotes.iter().map(|(name, endpoint)| {
        vec![
            report::printable(name),
            report::printable(&endpoint.uri),
            mark(*name == endpoints.active),
            mark(endpoint.system),
            mark(endpoint.exclusive),
            if endpoint.insecure { "✗!".to_owned() } else { mark(true) },
        ]
    }));
    format!("\n{}", in_columns(&rows))
}

/// Lines of columns that are as wide as they have to be.
fn in_columns(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Checks a token with an endpoint, then keeps it. A registry or a key server can be named too.
pub fn login(
    options: &RemoteOptions,
    login: &LoginOptions,
    elsewhere: &ElsewhereOptions,
    words: &[OsString],
) -> Result<ExitCode, Failure> {
    let name = one_word(words)?;
    match name.map(|name| name.to_string_lossy()).as_deref().and_then(|name| name.split_once("://")) {
        Some(("docker" | "oras", _)) => {
            report::warning("logins to registries are done by `sifu registry login`: doing that");
            registry::login(login, &ElsewhereOptions { no_https: options.insecure, ..elsewhere.clone() }, &words[0])
        }
        Some(("http" | "https" | "hkp" | "hkps", _)) => {
            report::warning("logins to key servers are done by `sifu keyserver login`: doing that");
            super::keyserver::login(options, login, &words[0])
        }
        _ => log_in(options, login, name.map(|name| name.to_string_lossy()).as_deref()),
    }
}

fn log_in(options: &RemoteOptions, login: &LoginOptions, name: Option<&str>) -> Result<ExitCode, Failure> {
    let files = options.files();
    let all = files.load().map_err(said)?;
    let (name, endpoint) = all.find(name).map_err(said)?;
    let (http, services) = services_of(name, endpoint)?;
    let token = match (&options.token_file, &login.password) {
        (Some(file), _) => token_in(Path::new(file))?,
        (None, Some(Password(password))) => password.clone(),
        (None, None) if login.password_stdin => read_secret()?,
        (None, None) => ask(&format!("Access token (make one at {}/auth/tokens): ", endpoint.address()), false)?,
    };
    let token = Password(token.trim().to_owned());
    if token.0.is_empty() || token.0.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        return Err(Failure::new("a token is a word without blanks"));
    }
    services.check_token(&http, &token).map_err(said)?;
    files.edit(Scope::User, |own, all| own.set_token(name, Some(token), all)).map_err(said)?;
    let path = files.path(Scope::User).map_err(said)?;
    report::info(format_args!("The token for the endpoint `{name}` is kept in {}", path.display()));
    Ok(ExitCode::SUCCESS)
}

fn token_in(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(format!("cannot read the token in {}: {}", path.display(), report::cause(&error)))
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > 1 << 16 {
        return Err(Failure::new(format!("{} is too large to be a token", path.display())));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Forgets the token for an endpoint.
pub fn logout(options: &RemoteOptions, elsewhere: &ElsewhereOptions, words: &[OsString]) -> Result<ExitCode, Failure> {
    let name = one_word(words)?.map(|name| name.to_string_lossy());
    match name.as_deref().and_then(|name| name.split_once("://")) {
        Some(("docker" | "oras", _)) => return registry::logout(elsewhere, &words[0]),
        Some(("http" | "https" | "hkp" | "hkps", _)) => return super::keyserver::logout(options, &words[0]),
        _ => {}
    }
    let files = options.files();
    let all = files.load().map_err(said)?;
    let (name, _) = all.find(name.as_deref()).map_err(said)?;
    files.edit(Scope::User, |own, all| own.set_token(name, None, all)).map_err(said)?;
    report::info(format_args!("The token for the endpoint `{name}` is forgotten"));
    Ok(ExitCode::SUCCESS)
}

/// Prints the services of an endpoint, and whether its token is good.
pub fn status(options: &RemoteOptions, words: &[OsString]) -> Result<ExitCode, Failure> {
    let name = one_word(words)?.map(|name| name.to_string_lossy());
    let all = options.files().load().map_err(said)?;
    let (name, endpoint) = all.find(name.as_deref()).map_err(said)?;
    let (http, services) = services_of(name, endpoint)?;
    let mut rows = vec![["SERVICE", "STATUS", "VERSION", "URI"].map(str::to_owned).to_vec()];
    for (service, address) in services.all() {
        let version = services::version(&http, address);
        let state = if version.is_ok() { "OK" } else { "N/A" };
        let version = version.unwrap_or_default();
        let uri = address.text();
        let cells = [service, state, &version, uri.trim_end_matches('/')].map(report::printable);
        rows.push(cells.to_vec());
    }
    let (token, checked) = match &endpoint.token {
        None => ("No token is kept: logged out.", Ok(())),
        Some(token) => match services.check_token(&http, token) {
            Ok(()) => ("The token is good: logged in.", Ok(())),
            Err(error) => ("The token is not taken: log in again.", Err(said(error))),
        },
    };
    print(&format!("{}\n{token}\n", in_columns(&rows)))?;
    checked.map(|()| ExitCode::SUCCESS)
}

/// Prints the password that the registry of the endpoint's library takes.
pub fn get_login_password(options: &RemoteOptions) -> Result<ExitCode, Failure> {
    let all = options.files().load().map_err(said)?;
    let (name, endpoint) = all.find(None).map_err(said)?;
    let (http, services) = services_of(name, endpoint)?;
    let Password(password) = services.login_password(&http).map_err(said)?;
    print(&format!("{password}\n"))
}

/// The one word that may be there.
fn one_word(words: &[OsString]) -> Result<Option<&OsStr>, Failure> {
    match words {
        [] => Ok(None),
        [word] => Ok(Some(word)),
        _ => Err(Failure::usage("one name at most can be given")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_stand_in_columns() {
        let file = |name: &str| std::env::temp_dir().join(format!("sifu-remote-{}-{name}", std::process::id()));
        let files = EndpointFiles { user: Some(file("user.yaml")), site: None };
        let endpoint = Endpoint::parse("http://lib.example:5000", true, Scope::User).unwrap();
        files.edit(Scope::User, |own, _| own.add("mine", endpoint)).unwrap();
        let text = table_of(&files.load().unwrap());
        std::fs::remove_file(file("user.yaml")).unwrap();
        assert_eq!(
            text,
            "\nNAME           URI                  DEFAULT?  GLOBAL?  EXCLUSIVE?  SECURE?\n\
             DefaultRemote  cloud.apptainer.org  ✓         ✓                    ✓\n\
             mine           lib.example:5000                                    ✗!\n"
        );
    }
}
