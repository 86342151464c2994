//! `sifu keyserver …`: servers of public keys, beside the endpoints that have one.

use super::elsewhere::{ElsewhereOptions, access, ask, read_secret};
use super::print;
use super::registry::LoginOptions;
use super::remote::{RemoteOptions, said, services_of};
use crate::remote::RemoteError;
use crate::remote::credentials::{Login, Password};
use crate::remote::endpoints::{EndpointError, KeyserverLogin, Scope, is_same_server};
use crate::remote::http::{Address, Body, Method, Request};
use crate::report::{self, Failure};
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

/// The port of key servers that are named by `hkp://`.
const HKP_PORT: u16 = 11371;

/// The address of a key server on the web.
fn address_of(uri: &str) -> Result<Address, Failure> {
    let uri = match uri.split_once("://") {
        Some(("hkps", rest)) => format!("https://{rest}"),
        Some(("hkp", rest)) if rest.split('/').next().is_some_and(|host| !host.contains(':')) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            format!("http://{host}:{HKP_PORT}/{path}")
        }
        Some(("hkp", rest)) => format!("http://{rest}"),
        _ => uri.to_owned(),
    };
    Address::parse(&uri).map_err(said)
}

/// The endpoint and the server that the words name.
fn place(words: &[OsString]) -> Result<(Option<String>, String), Failure> {
    let text = |word: &OsString| word.to_string_lossy().into_owned();
    let (endpoint, uri) = match words {
        [uri] => (None, text(uri)),
        [endpoint, uri] => (Some(text(endpoint)), text(uri)),
        _ => return Err(Failure::usage("the address of a key server is needed, and before it perhaps an endpoint")),
    };
    address_of(&uri)?;
    Ok((endpoint, uri))
}

/// Adds a key server to an endpoint of the site.
pub fn add(options: &RemoteOptions, words: &[OsString]) -> Result<ExitCode, Failure> {
    let (name, uri) = place(words)?;
    change(options, name.as_deref(), |endpoint, own| {
        endpoint.add_keyserver(&uri, options.order, options.insecure, own)
    })?;
    report::info(format_args!("The key server {uri} is added"));
    Ok(ExitCode::SUCCESS)
}

/// Removes a key server from an endpoint of the site.
pub fn remove(options: &RemoteOptions, words: &[OsString]) -> Result<ExitCode, Failure> {
    let (name, uri) = place(words)?;
    change(options, name.as_deref(), |endpoint, own| endpoint.remove_keyserver(&uri, own))?;
    report::info(format_args!("The key server {uri} is removed"));
    Ok(ExitCode::SUCCESS)
}

fn change(
    options: &RemoteOptions,
    name: Option<&str>,
    change: impl FnOnce(&mut crate::remote::endpoints::Endpoint, Option<&str>) -> Result<(), EndpointError>,
) -> Result<(), Failure> {
    let files = options.files();
    let site = files.of_site().map_err(said)?;
    let (name, endpoint) = site.find(name).map_err(said)?;
    // Those that are written down hold the endpoint's own; elsewhere it has to be asked.
    let own = match endpoint.keyservers.is_empty() {
        true => services_of(name, endpoint)?.1.keyserver(),
        false => None,
    };
    let changed = files.edit(Scope::Site, |site, _| match site.remotes.get_mut(name) {
        Some(endpoint) => change(endpoint, own.as_deref()),
        None => Err(EndpointError::NoneActive),
    });
    changed.map_err(said)
}

/// Prints the key servers of all endpoints, or of one.
pub fn list(options: &RemoteOptions, words: &[OsString]) -> Result<ExitCode, Failure> {
    let all = options.files().load().map_err(said)?;
    let only = match words {
        [] => None,
        [name] => Some(all.find(Some(&name.to_string_lossy())).map_err(said)?.0),
        _ => return Err(Failure::usage("one endpoint at most can be given")),
    };
    let mut text = String::new();
    for (name, endpoint) in all.remotes.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        let site = if endpoint.system { "*" } else { "" };
        let active = if *name == all.active { "^" } else { "" };
        text += &format!("\n{} {site}{active}\n", report::printable(name));
        let written = endpoint.keyservers.iter().filter(|server| !server.skip);
        let mut servers: Vec<(String, bool)> = written.map(|server| (server.uri.clone(), server.insecure)).collect();
        if endpoint.keyservers.is_empty() {
            match services_of(name, endpoint).map(|(_, services)| services.keyserver()) {
                Ok(own) => servers.extend(own.map(|own| (own, endpoint.insecure))),
                Err(failure) => text += &format!("   (not known: {})\n", report::printable(&failure.message)),
            }
        }
        for (number, (uri, insecure)) in servers.iter().enumerate() {
            let lock = if *insecure { "" } else { "  🔒" };
            text += &format!("   #{}  {}{lock}\n", number + 1, report::printable(uri.trim_end_matches('/')));
        }
    }
    print(&format!("{text}\n(* = the site's endpoint, ^ = the endpoint in use)\n"))
}

/// Checks a name and password, or a token, with a key server, then keeps them.
pub fn login(options: &RemoteOptions, login: &LoginOptions, word: &OsStr) -> Result<ExitCode, Failure> {
    let uri = word.to_string_lossy();
    let address = address_of(&uri)?;
    let files = options.files();
    let all = files.load().map_err(said)?;
    let mut servers = all.remotes.values().flat_map(|endpoint| &endpoint.keyservers).filter(|server| server.external);
    let Some(server) = servers.find(|server| is_same_server(&server.uri, &uri)) else {
        return Err(said(EndpointError::KeyserverUnknown { uri: uri.into_owned() }).hint(
            "The site adds it with `sifu keyserver add`; an endpoint's own takes the token of `sifu remote login`.",
        ));
    };
    let secret = match &login.password {
        Some(Password(password)) => password.clone(),
        None if login.password_stdin => read_secret()?,
        None => ask("Password or token: ", false)?,
    };
    if secret.is_empty() || secret.chars().any(char::is_control) {
        return Err(Failure::new("a password or a token is needed"));
    }
    let named = |name: &String| Login::Password { name: name.clone(), password: secret.clone() }.basic();
    let authorization = login.username.as_ref().and_then(named).unwrap_or_else(|| format!("Bearer {secret}"));
    let host = address.authority.clone();
    let http = access(&ElsewhereOptions::default())?.http_to(&address, server.insecure);
    let request = Request {
        method: Method::GET,
        address,
        headers: Vec::new(),
        authorization: Some(&authorization),
        body: Body::Empty,
    };
    let response = http.send(&request).map_err(said)?;
    match response.status {
        200 => {}
        401 | 403 => return Err(Failure::new(format!("{host} refuses what it was given"))),
        status => {
            let what = "a login".to_owned();
            return Err(said(RemoteError::Status { host, what, status, message: String::new() }));
        }
    }
    let kept = KeyserverLogin {
        uri: uri.clone().into_owned(),
        auth: Some(Password(authorization)),
        insecure: server.insecure,
    };
    let edited = files.edit(Scope::User, |own, _| {
        own.set_login(kept);
        Ok(())
    });
    edited.map_err(said)?;
    report::info(format_args!("The login to {uri} is kept in {}", files.path(Scope::User).map_err(said)?.display()));
    Ok(ExitCode::SUCCESS)
}

/// Forgets a login to a key server.
pub fn logout(options: &RemoteOptions, word: &OsStr) -> Result<ExitCode, Failure> {
    let uri = word.to_string_lossy();
    let was_there = options.files().edit(Scope::User, |own, _| Ok(own.forget_login(&uri))).map_err(said)?;
    match was_there {
        true => report::info(format_args!("The login to {uri} is forgotten")),
        false => report::info(format_args!("No login to {uri} is kept")),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_servers_are_on_the_web() {
        let check = |uri: &str, expected: &str| assert_eq!(address_of(uri).unwrap().text(), expected);
        check("https://keys.example", "https://keys.example/");
        check("hkps://keys.example/x", "https://keys.example/x");
        check("hkp://keys.example", "http://keys.example:11371/");
        check("hkp://keys.example:80/x", "http://keys.example:80/x");
        assert!(address_of("keys.example").is_err());
        assert!(address_of("ftp://keys.example").is_err());
    }
}
