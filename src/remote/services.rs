//! The services of an endpoint: a document at its address names them.
//!
//! ```text
//! GET https://ENDPOINT/assets/config/config.prod.json
//!     {"libraryAPI": {"uri": "https://…"}, "keystoreAPI": {"uri": …}, "tokenAPI": {"uri": …}, …}
//! GET TOKEN-SERVICE/v1/token-status              200: the token is good
//! GET SERVICE/version                            {"data": {"version": …}}
//! GET LIBRARY/v1/rbac/users/current              {"oidc_user_meta": {"secret": …}}
//! ```

use super::RemoteError;
use super::credentials::Password;
use super::endpoints::{DEFAULT_ENDPOINT, Endpoint, EndpointError, LIBRARY};
use super::http::{Address, Body, Http, Method, Request, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

const DOCUMENT: &str = "assets/config/config.prod.json";
/// Largest answer that is read.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
const TOKENS: &str = "token";
const KEYSERVER: &str = "keyserver";

/// The services of one endpoint, and the token that they take.
pub struct Services {
    /// What the endpoint is called.
    name: String,
    token: Option<Password>,
    /// By their names: `library`, `keyserver`, `token`, and others.
    addresses: BTreeMap<String, Address>,
}

impl Services {
    /// Asks an endpoint for its services.
    pub fn find(http: &Http, name: &str, endpoint: &Endpoint) -> Result<Self, RemoteError> {
        let mut services = Self { name: name.to_owned(), token: endpoint.token.clone(), addresses: BTreeMap::new() };
        if endpoint.uri == DEFAULT_ENDPOINT.1 {
            services.addresses.insert(KEYSERVER.to_owned(), Address::parse(DEFAULT_ENDPOINT.2)?);
            return Ok(services);
        }
        let address = Address::parse(&endpoint.address())?;
        let response = get(http, address.below(DOCUMENT), None)?;
        let host = response.address.authority.clone();
        if response.status != 200 {
            return Err(unexpected(response, "its services"));
        }
        let wrong = || RemoteError::NotUnderstood { host: host.clone(), what: "its services".to_owned() };
        let document: Map<String, Value> =
            serde_json::from_slice(&response.bytes(MAX_ANSWER_BYTES)?).map_err(|_| wrong())?;
        for (key, value) in &document {
            let uri = value.get("uri").and_then(Value::as_str).filter(|uri| !uri.is_empty());
            let (Some(service), Some(uri)) = (key.strip_suffix("API"), uri) else { continue };
            let service = if service == "keystore" { KEYSERVER } else { service };
            let of_service = Address::parse(uri)?;
            if address.is_https && !of_service.is_https {
                return Err(RemoteError::Downgrade { from: address.authority, to: of_service.authority });
            }
            services.addresses.insert(service.to_owned(), of_service);
        }
        Ok(services)
    }

    /// All of them, by their names.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Address)> {
        self.addresses.iter().map(|(service, address)| (service.as_str(), address))
    }

    fn get(&self, service: &'static str) -> Result<&Address, EndpointError> {
        let none = || EndpointError::NoService { name: self.name.clone(), service };
        self.addresses.get(service).ok_or_else(none)
    }

    /// Where images are, and the token for it.
    pub fn library(&self) -> Result<(Address, Option<Password>), EndpointError> {
        Ok((self.get(LIBRARY)?.clone(), self.token.clone()))
    }

    /// Where public keys are.
    pub fn keyserver(&self) -> Option<String> {
        self.addresses.get(KEYSERVER).map(Address::text)
    }

    /// Sees whether a token is good.
    pub fn check_token(&self, http: &Http, token: &Password) -> Result<(), RemoteError> {
        let service = self.get(TOKENS).map_err(RemoteError::from)?;
        let response = get(http, service.below("v1/token-status"), Some(token))?;
        match response.status {
            200 => Ok(()),
            401 | 403 | 404 => Err(RemoteError::Token { host: service.authority.clone(), had_token: true }),
            _ => Err(unexpected(response, "a token")),
        }
    }

    /// The password that the library's registry takes of whoever has the token.
    pub fn login_password(&self, http: &Http) -> Result<Password, RemoteError> {
        #[derive(Deserialize)]
        struct User {
            #[serde(default)]
            oidc_user_meta: Meta,
        }
        #[derive(Default, Deserialize)]
        struct Meta {
            #[serde(default)]
            secret: String,
        }
        let (library, token) = self.library()?;
        let response = get(http, library.below("v1/rbac/users/current"), token.as_ref())?;
        let host = response.address.authority.clone();
        match response.status {
            200 => {}
            401 | 403 => return Err(RemoteError::Token { host, had_token: token.is_some() }),
            _ => return Err(unexpected(response, "a user")),
        }
        let wrong = || RemoteError::NotUnderstood { host, what: "a user".to_owned() };
        let user: User = serde_json::from_slice(&response.bytes(MAX_ANSWER_BYTES)?).map_err(|_| wrong())?;
        match user.oidc_user_meta.secret {
            secret if secret.is_empty() || secret.chars().any(char::is_control) => {
                Err(RemoteError::NotFound { what: "a password of this user".to_owned() })
            }
            secret => Ok(Password(secret)),
        }
    }
}

/// The version that a service says it has.
pub fn version(http: &Http, service: &Address) -> Result<String, RemoteError> {
    #[derive(Deserialize)]
    struct Answer {
        data: Version,
    }
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    let response = get(http, service.below("version"), None)?;
    if response.status != 200 {
        return Err(unexpected(response, "its version"));
    }
    let host = response.address.authority.clone();
    let wrong = || RemoteError::NotUnderstood { host, what: "its version".to_owned() };
    let answer: Answer = serde_json::from_slice(&response.bytes(MAX_ANSWER_BYTES)?).map_err(|_| wrong())?;
    Ok(answer.data.version)
}

fn get(http: &Http, address: Address, token: Option<&Password>) -> Result<Response, RemoteError> {
    let bearer = token.map(|Password(token)| format!("Bearer {token}"));
    let authorization = bearer.as_deref();
    http.send(&Request { method: Method::GET, address, headers: Vec::new(), authorization, body: Body::Empty })
}

fn unexpected(response: Response, what: &str) -> RemoteError {
    let (host, status) = (response.address.authority.clone(), response.status);
    RemoteError::Status { host, what: what.to_owned(), status, message: String::new() }
}
