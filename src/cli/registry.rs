//! `sifu registry login|logout|list`: whose name and password registries get.

use super::elsewhere::{ElsewhereOptions, access, ask_login, credentials_file, read_secret};
use super::print;
use crate::oci::reference::Reference;
use crate::remote::RemoteError;
use crate::remote::access::Access;
use crate::remote::credentials::{self, Login, Password, Places};
use crate::report::{self, Failure, failure};
use std::ffi::OsStr;
use std::process::ExitCode;

/// What `registry login` is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoginOptions {
    pub username: Option<String>,
    pub password: Option<Password>,
    pub password_stdin: bool,
}

/// The registry that a word names, as the reference of an image in it that need not be there.
fn registry(word: &OsStr) -> Result<Reference, Failure> {
    let text = word.to_string_lossy();
    let text = match text.split_once("://") {
        Some(("docker" | "oras", rest)) => rest,
        Some(_) => {
            return Err(Failure::new(format!("`{text}` is no registry: docker://HOST or oras://HOST is one")));
        }
        None => &text,
    };
    let host = text.split('/').next().unwrap_or_default();
    format!("{host}/login").parse().map_err(|error| failure(&error))
}

/// Checks a name and password with the registry, then keeps them.
pub fn login(options: &LoginOptions, said: &ElsewhereOptions, word: &OsStr) -> Result<ExitCode, Failure> {
    let reference = registry(word)?;
    let password = match &options.password {
        Some(Password(password)) => Some(password.clone()),
        None if options.password_stdin => Some(read_secret()?),
        None => None,
    };
    let login = match (&options.username, password) {
        (Some(name), Some(password)) => Login::Password { name: name.clone(), password },
        (None, Some(_)) => return Err(Failure::new("a password needs a name: --username")),
        (name, None) => ask_login(name.clone())?,
    };
    let places = Places { said: Some(login.clone()), ..Places::default() };
    let access = Access { places, ..access(&ElsewhereOptions { authfile: None, ..said.clone() })? };
    let check = |access: &Access| access.registry(&reference, false)?.check_login();
    let checked = match check(&access) {
        // A registry of this machine needs no encryption.
        Err(RemoteError::Connection { is_https: true, .. }) if is_loopback(&reference.registry) => {
            check(&Access { no_https: true, ..access })
        }
        checked => checked,
    };
    checked.map_err(|error| failure(&error))?;
    let file = credentials_file(said)?;
    credentials::store(&file, &reference.registry, &login).map_err(|error| failure(&error))?;
    report::info(format_args!("Credentials for {} are kept in {}", reference.registry, file.display()));
    Ok(ExitCode::SUCCESS)
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name == "[::1]" || name.starts_with("127.")
}

/// Forgets a registry's name and password.
pub fn logout(said: &ElsewhereOptions, word: &OsStr) -> Result<ExitCode, Failure> {
    let reference = registry(word)?;
    let file = credentials_file(said)?;
    let was_there = credentials::forget(&file, &reference.registry).map_err(|error| failure(&error))?;
    match was_there {
        true => report::info(format_args!("Credentials for {} are forgotten", reference.registry)),
        false => report::info(format_args!("No credentials for {} are kept in {}", reference.registry, file.display())),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the registries for which credentials are kept.
pub fn list(said: &ElsewhereOptions) -> Result<ExitCode, Failure> {
    let known = credentials::list(&credentials_file(said)?).map_err(|error| failure(&error))?;
    let mut text = format!("{:<40} USERNAME\n", "URI");
    for (registry, name) in known {
        text += &format!("{:<40} {}\n", format!("docker://{}", report::printable(&registry)), report::printable(&name));
    }
    print(&text)
}
