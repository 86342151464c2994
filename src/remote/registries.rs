//! `registries.conf`: where an image is really fetched from, as containers-registries.conf(5) has it (version 2).
//!
//! ```text
//! [[registry]]
//! prefix = "registry.example/team"      the longest that leads to a reference counts; `*.example` for all below
//! location = "inside.example:5000/t"    takes the place of the prefix
//! insecure, blocked
//! [[registry.mirror]]                   asked before, in their order, for pulls alone
//! location = "mirror.example"
//! ```
//!
//! Names without a registry are always those of the one default; aliases for short names are not read.

use super::RemoteError;
use crate::oci::reference::Reference;
use serde::Deserialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where the files are.
#[derive(Clone, Debug, Default)]
pub struct RegistriesFiles {
    /// The first that is there counts.
    pub main: Vec<PathBuf>,
    /// All that end in `.conf` count, those of later directories more.
    pub directories: Vec<PathBuf>,
}

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries(Vec<Entry>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFrom,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Deserialize)]
struct Parsed {
    #[serde(default)]
    registry: Vec<Entry>,
}

/// A place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The image as it is called there.
    pub reference: Reference,
    /// Certificates are not checked, and a registry without TLS will do.
    pub is_insecure: bool,
    pub is_mirror: bool,
}

impl RegistriesFiles {
    /// Reads what is there.
    pub fn read(&self) -> Result<Registries, RemoteError> {
        let mut paths: Vec<PathBuf> = self.main.iter().find(|path| path.exists()).cloned().into_iter().collect();
        for directory in &self.directories {
            let listed = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
            let mut found: Vec<PathBuf> =
                listed.filter(|path| path.extension().is_some_and(|extension| extension == "conf")).collect();
            found.sort();
            paths.extend(found);
        }
        let mut registries = Registries::default();
        for path in paths {
            let failed = |why| RemoteError::Registries { path: path.display().to_string(), why };
            registries.add(&text(&path).map_err(|error| failed(crate::report::cause(&error)))?).map_err(failed)?;
        }
        Ok(registries)
    }
}

fn text(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read_to_string(path)
}

impl Registries {
    /// Adds what a file says, which replaces what was said of the same prefixes.
    fn add(&mut self, text: &str) -> Result<(), String> {
        let parsed: Parsed = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
            format!("line {}: {}", line.unwrap_or(1), error.message())
        })?;
        for mut entry in parsed.registry {
            let trimmed = |text: &str| text.trim_end_matches('/').to_owned();
            (entry.prefix, entry.location) = (trimmed(&entry.prefix), trimmed(&entry.location));
            match (entry.prefix.is_empty(), entry.location.is_empty()) {
                (true, true) => return Err("a registry has neither a prefix nor a location".to_owned()),
                (true, false) => entry.prefix.clone_from(&entry.location),
                // What a pattern matches stays where it is.
                (false, true) if !entry.prefix.starts_with("*.") => entry.location.clone_from(&entry.prefix),
                _ => {}
            }
            if entry.mirror.iter().any(|mirror| mirror.location.is_empty()) {
                return Err(format!("a mirror of `{}` has no location", entry.prefix));
            }
            self.0.retain(|known| known.prefix != entry.prefix);
            self.0.push(entry);
        }
        Ok(())
    }

    /// Where to ask for an image, in this order; where to push it when `pushes`.
    pub fn endpoints(&self, reference: &Reference, pushes: bool) -> Result<Vec<Endpoint>, RemoteError> {
        let name = format!("{}/{}", reference.registry, reference.repository);
        let fitting = self.0.iter().filter_map(|entry| Some((matched_bytes(&entry.prefix, &name)?, entry)));
        let Some((length, entry)) = fitting.max_by_key(|(length, entry)| (!entry.prefix.starts_with('*'), *length))
        else {
            return Ok(vec![Endpoint { reference: reference.clone(), is_insecure: false, is_mirror: false }]);
        };
        if entry.blocked {
            return Err(RemoteError::Blocked { what: name, prefix: entry.prefix.clone() });
        }
        let (matched, rest) = name.split_at(length);
        let at = |location: &str| moved(reference, location, rest);
        let serves = |mirror: &&Mirror| match mirror.pull_from_mirror {
            PullFrom::All => !entry.mirror_by_digest_only || reference.digest.is_some(),
            PullFrom::DigestOnly => reference.digest.is_some(),
            PullFrom::TagOnly => reference.digest.is_none(),
        };
        let mirrors = entry.mirror.iter().filter(|_| !pushes).filter(serves);
        let mut endpoints: Vec<Endpoint> = mirrors
            .map(|mirror| {
                let reference = at(mirror.location.trim_end_matches('/'));
                Endpoint { reference, is_insecure: mirror.insecure, is_mirror: true }
            })
            .collect();
        let location = if entry.location.is_empty() { matched } else { &entry.location };
        endpoints.push(Endpoint { reference: at(location), is_insecure: entry.insecure, is_mirror: false });
        Ok(endpoints)
    }
}

/// How many bytes of a name a prefix stands for, if it leads to it: up to a `/`, or, as a pattern, the whole host.
fn matched_bytes(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next()?;
        let without_port = host.split(':').next()?;
        return (host.ends_with(domain) || without_port.ends_with(domain)).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
}

/// The image at another place.
fn moved(reference: &Reference, location: &str, rest: &str) -> Reference {
    let whole = format!("{location}{rest}");
    let (registry, repository) = whole.split_once('/').unwrap_or((&whole, ""));
    Reference { registry: registry.to_owned(), repository: repository.to_owned(), ..reference.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(texts: &[&str]) -> Registries {
        let mut registries = Registries::default();
        texts.iter().for_each(|text| registries.add(text).unwrap());
        registries
    }

    #[track_caller]
    fn check(texts: &[&str], reference: &str, expected: &[&str]) {
        let endpoints = registries(texts).endpoints(&reference.parse().unwrap(), false).unwrap();
        let found: Vec<String> = endpoints
            .iter()
            .map(|endpoint| {
                let marks = [(endpoint.is_mirror, " mirror"), (endpoint.is_insecure, " insecure")];
                let marks: String = marks.iter().filter(|(holds, _)| *holds).map(|(_, mark)| *mark).collect();
                format!("{}{marks}", endpoint.reference)
            })
            .collect();
        assert_eq!(found, expected, "{reference}");
    }

    const TEAM: &str = "[[registry]]\nprefix = 'a.example/team'\nlocation = 'inside.example:5000/t'\ninsecure = true\n";
    const WHOLE: &str = "unqualified-search-registries = ['x']\n[[registry]]\nlocation = 'a.example'\n\
                         [[registry.mirror]]\nlocation = 'm.example/cache'\n[[registry.mirror]]\nlocation = 'n.example'\n\
                         insecure = true\npull-from-mirror = 'digest-only'\n";

    #[test]
    fn the_longest_prefix_says_where_an_image_is() {
        let both = [WHOLE, TEAM];
        check(&both, "a.example/team/x:1", &["inside.example:5000/t/x:1 insecure"]);
        check(&both, "a.example/teams/x:1", &["m.example/cache/teams/x:1 mirror", "a.example/teams/x:1"]);
        check(&both, "b.example/team/x:1", &["b.example/team/x:1"]);
        check(&both, "a.example:5000/x", &["a.example:5000/x:latest"]);
    }

    #[test]
    fn mirrors_can_be_for_digests_alone() {
        let digest = format!("a.example/x@{}", crate::oci::digest::Digest::of(b"x"));
        let at = |host: &str| digest.replace("a.example", host);
        let expected = [at("m.example/cache") + " mirror", at("n.example") + " mirror insecure", digest.clone()];
        check(&[WHOLE], &digest, &expected.each_ref().map(String::as_str));
        let only = "[[registry]]\nlocation='a.example'\nmirror-by-digest-only=true\nmirror=[{location='m.example'}]\n";
        check(&[only], "a.example/x:1", &["a.example/x:1"]);
    }

    #[test]
    fn a_pattern_covers_all_hosts_below_a_domain() {
        let pattern = "[[registry]]\nprefix = '*.a.example'\ninsecure = true\n";
        check(&[pattern], "b.a.example:5000/x:1", &["b.a.example:5000/x:1 insecure"]);
        check(&[pattern], "a.example/x:1", &["a.example/x:1"]);
        let moved = "[[registry]]\nprefix = '*.a.example'\nlocation = 'c.example/d'\n";
        check(&[moved], "b.a.example/x:1", &["c.example/d/x:1"]);
        let exact = "[[registry]]\nprefix = 'b.a.example'\nlocation = 'e.example'\n";
        check(&[exact, moved], "b.a.example/x:1", &["e.example/x:1"]);
    }

    #[test]
    fn later_files_replace_what_earlier_ones_said() {
        check(&[TEAM, "[[registry]]\nprefix = 'a.example/team'\n"], "a.example/team/x:1", &["a.example/team/x:1"]);
    }

    #[test]
    fn nothing_is_pushed_to_mirrors_and_what_is_blocked_is_said() {
        let endpoints = registries(&[WHOLE]).endpoints(&"a.example/x:1".parse().unwrap(), true).unwrap();
        assert_eq!(endpoints.len(), 1);
        let blocked = registries(&["[[registry]]\nprefix = 'a.example/bad'\nblocked = true\n"]);
        let error = blocked.endpoints(&"a.example/bad/x".parse().unwrap(), false).unwrap_err().to_string();
        assert_eq!(error, "a.example/bad/x is not to be used: registries.conf blocks `a.example/bad`");
    }

    #[test]
    fn what_is_wrong_in_a_file_is_said_with_its_line() {
        let error = |text: &str| Registries::default().add(text).unwrap_err();
        assert!(error("[[registry]]\nprefix = 5\n").starts_with("line 2: "), "{}", error("[[registry]]\nprefix = 5\n"));
        assert_eq!(error("[[registry]]\ninsecure = true\n"), "a registry has neither a prefix nor a location");
        assert!(error("[[registry]]\nprefix='a'\n[[registry.mirror]]\nlocation=''\n").contains("no location"));
    }
}
