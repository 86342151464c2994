//! Where packages come from: apt's `sources.list` and `*.list`, a line for each archive, and `*.sources`, a paragraph.
//!
//! ```text
//! deb [signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian bookworm main contrib
//!
//! Types: deb
//! URIs: http://mirror.example/debian
//! Suites: bookworm bookworm-updates
//! Components: main
//! Signed-By: /usr/share/keyrings/a.gpg
//! ```

use super::deb822::{self, Deb822Error};
use std::fmt;

/// One suite of one archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// `http:`, `https:` or `file:`; without a slash at its end.
    pub uri: String,
    /// `bookworm`, `bookworm-updates`.
    pub suite: String,
    pub components: Vec<String>,
    pub signed_by: SignedBy,
    /// Believed without a signature.
    pub is_trusted: bool,
}

/// Whose signature an archive has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignedBy {
    /// It is not said: somebody's whom this machine trusts.
    Anybody,
    /// Somebody's whose keys are in these files.
    Files(Vec<String>),
    /// That of this key, in armor.
    Key(String),
}

/// What could not be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourcesError {
    Line { line: usize, why: &'static str },
    Paragraph(Deb822Error),
}

impl fmt::Display for SourcesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { line, why } => write!(f, "line {line}: {why}"),
            Self::Paragraph(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SourcesError {}

/// What stands in brackets, or in fields of other names.
#[derive(Default)]
struct Options {
    signed_by: Option<String>,
    trusted: Option<String>,
    architectures: Option<String>,
}

impl Options {
    /// Reads `[name=value name=value]` from the beginning of a text; gives the rest.
    fn take(text: &str) -> Result<(Self, &str), &'static str> {
        let mut options = Self::default();
        let Some(inner) = text.strip_prefix('[') else { return Ok((options, text)) };
        let (inner, rest) = inner.split_once(']').ok_or("a bracket that is not closed")?;
        for word in inner.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').ok_or("an option without a value")?;
            let place = match name {
                "signed-by" => &mut options.signed_by,
                "trusted" => &mut options.trusted,
                "arch" => &mut options.architectures,
                // Others say how apt is to fetch, which is our own business.
                _ => continue,
            };
            *place = Some(value.to_owned());
        }
        Ok((options, rest.trim_start()))
    }

    fn has_architecture(&self, architecture: &str) -> bool {
        let split = |list: &String| list.split([',', ' ', '\n']).any(|word| word.trim() == architecture);
        self.architectures.as_ref().is_none_or(split)
    }

    fn is_trusted(&self) -> bool {
        self.trusted.as_deref().is_some_and(|word| matches!(word.to_ascii_lowercase().as_str(), "yes" | "true" | "1"))
    }

    fn signed_by(&self) -> SignedBy {
        match self.signed_by.as_deref() {
            None | Some("") => SignedBy::Anybody,
            Some(text) if text.contains("-----BEGIN") => SignedBy::Key(unfold(text)),
            Some(text) => {
                let words = text.split([',', ' ', '\n']).filter(|word| word.starts_with('/'));
                let files: Vec<String> = words.map(str::to_owned).collect();
                // Fingerprints of keys that this machine trusts.
                if files.is_empty() { SignedBy::Anybody } else { SignedBy::Files(files) }
            }
        }
    }
}

/// The lines of a key that stands in a field: each begins with a blank, and an empty one is a dot.
fn unfold(text: &str) -> String {
    let lines = text.lines().map(str::trim).map(|line| if line == "." { "" } else { line });
    lines.filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect()
}

/// Reads a `sources.list`: the archives of binary packages for `architecture`.
pub fn parse_list(text: &str, architecture: &str) -> Result<Vec<Repository>, SourcesError> {
    let mut repositories = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t', '['])) else {
            if line.is_empty() || line.starts_with("deb-src") {
                continue;
            }
            return Err(SourcesError::Line { line: number + 1, why: "neither `deb` nor `deb-src`" });
        };
        let failed = |why| SourcesError::Line { line: number + 1, why };
        let (options, rest) = Options::take(rest.trim_start()).map_err(failed)?;
        let mut words = rest.split_ascii_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            return Err(failed("no address and suite"));
        };
        let components: Vec<&str> = words.collect();
        add(&mut repositories, &options, architecture, uri, suite, &components);
    }
    Ok(repositories)
}

/// Reads a `*.sources` file: the archives of binary packages for `architecture`.
pub fn parse_paragraphs(text: &str, architecture: &str) -> Result<Vec<Repository>, SourcesError> {
    let mut repositories = Vec::new();
    for paragraph in deb822::paragraphs(text) {
        let paragraph = paragraph.map_err(SourcesError::Paragraph)?;
        let words = |name| paragraph.get(name).unwrap_or_default().split_ascii_whitespace();
        let is_off = paragraph.get("Enabled").is_some_and(|word| matches!(word, "no" | "false" | "0" | "off"));
        if is_off || !words("Types").any(|word| word == "deb") {
            continue;
        }
        let text = |name| paragraph.get(name).map(str::to_owned);
        let options =
            Options { signed_by: text("Signed-By"), trusted: text("Trusted"), architectures: text("Architectures") };
        let components: Vec<&str> = words("Components").collect();
        for uri in words("URIs") {
            for suite in words("Suites") {
                add(&mut repositories, &options, architecture, uri, suite, &components);
            }
        }
    }
    Ok(repositories)
}

/// Reads a `MirrorURL:`: an address, with options before it as in a `sources.list`.
pub fn parse_mirror(text: &str, suite: &str) -> Result<Repository, &'static str> {
    let (options, uri) = Options::take(text.trim())?;
    let mut repositories = Vec::new();
    add(&mut repositories, &options, "", uri.trim(), suite, &["main"]);
    repositories.pop().ok_or("it is neither http:, https: nor file:")
}

/// Adds an archive, unless it is of a kind that no distribution is: a flat one, one on a medium.
fn add(
    repositories: &mut Vec<Repository>,
    options: &Options,
    architecture: &str,
    uri: &str,
    suite: &str,
    components: &[&str],
) {
    let is_known = ["http://", "https://", "file:/"].iter().any(|scheme| uri.starts_with(scheme));
    let is_bare = uri.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_known
        || !is_bare
        || !is_suite(suite)
        || (!architecture.is_empty() && !options.has_architecture(architecture))
    {
        return;
    }
    let components: Vec<String> = components.iter().filter(|name| is_suite(name)).map(|&name| name.into()).collect();
    if components.is_empty() {
        return;
    }
    repositories.push(Repository {
        uri: uri.trim_end_matches('/').to_owned(),
        suite: suite.to_owned(),
        components,
        signed_by: options.signed_by(),
        is_trusted: options.is_trusted(),
    });
}

/// What may stand behind the name of a distribution's suite: what came out for it later.
const LATER: [&str; 3] = ["-updates", "-security", "/updates"];
/// Names that lead to another suite each year or two.
const ALIASES: [&str; 5] = ["stable", "oldstable", "oldoldstable", "testing", "unstable"];

/// Chooses the archives of a suite among those that this machine uses. Where it uses none of them, those of its own suite
/// (`own`) are taken for archives that have the other, too.
pub fn of_suite(repositories: &[Repository], own: Option<&str>, wanted: &str) -> Vec<Repository> {
    let is_distribution = |repository: &&Repository| repository.components.iter().any(|name| name == "main");
    let parts = |suite: &str| {
        let later = LATER.iter().find(|later| suite.ends_with(**later)).copied().unwrap_or_default();
        (suite[..suite.len() - later.len()].to_owned(), later)
    };
    let candidates: Vec<_> = repositories.iter().filter(is_distribution).collect();
    let exact = candidates.iter().filter(|repository| parts(&repository.suite).0 == wanted);
    let mut found: Vec<Repository> = exact.map(|repository| (*repository).clone()).collect();
    if found.is_empty() {
        let is_own = |name: &str| own == Some(name) || ALIASES.contains(&name);
        found = candidates.into_iter().filter(|r| is_own(&parts(&r.suite).0)).cloned().collect();
        found.iter_mut().for_each(|r| r.suite = format!("{wanted}{}", parts(&r.suite).1));
    }
    // The same archive by several mirrors: the first will do.
    let mut seen = std::collections::HashSet::new();
    found.retain(|repository| seen.insert(repository.suite.clone()));
    found
}

impl Repository {
    /// The line of a `sources.list` for it; `options` stand in the brackets.
    pub fn line(&self, options: &[String]) -> String {
        let options = if options.is_empty() { String::new() } else { format!("[{}] ", options.join(" ")) };
        format!("deb {options}{} {} {}\n", self.uri, self.suite, self.components.join(" "))
    }
}

/// Whether a text can name a suite or a component, and so become part of an address.
pub fn is_suite(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'~' | b'/');
    text.bytes().all(is_plain) && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(repositories: &[Repository]) -> Vec<String> {
        let one = |r: &Repository| format!("{} {} {}", r.uri, r.suite, r.components.join(" "));
        repositories.iter().map(one).collect()
    }

    #[test]
    fn a_line_is_an_archive() {
        let text = "# comment\ndeb http://a.example/debian/ bookworm main contrib # more\n\
            deb-src http://a.example/debian bookworm main\n\
            deb [ arch=amd64,arm64 signed-by=/k/a.gpg,/k/b.gpg lang=de ] https://b.example/x bookworm-security/updates main\n\
            deb [arch=arm64] http://c.example bookworm main\ndeb [trusted=yes] file:///srv/debian stable main\n\
            deb http://flat.example ./\ndeb cdrom:[Debian]/ bookworm main\n";
        let found = parse_list(text, "amd64").expect("sources");
        let expected = [
            "http://a.example/debian bookworm main contrib",
            "https://b.example/x bookworm-security/updates main",
            "file:///srv/debian stable main",
        ];
        assert_eq!(shown(&found), expected);
        assert_eq!(found[0].signed_by, SignedBy::Anybody);
        assert_eq!(found[1].signed_by, SignedBy::Files(vec!["/k/a.gpg".into(), "/k/b.gpg".into()]));
        assert_eq!((found[1].is_trusted, found[2].is_trusted), (false, true));
    }

    #[test]
    fn a_paragraph_is_as_many_archives_as_it_has_addresses_and_suites() {
        let text = "# kept\nTypes: deb deb-src\nURIs: http://a.example/ http://b.example\nSuites: x x-updates\n\
            Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n\n\
            Enabled: no\nTypes: deb\nURIs: http://c.example\nSuites: x\nComponents: main\n\n\
            Types: deb-src\nURIs: http://d.example\nSuites: x\nComponents: main\n";
        let found = parse_paragraphs(text, "amd64").expect("sources");
        let expected = [
            "http://a.example x main",
            "http://a.example x-updates main",
            "http://b.example x main",
            "http://b.example x-updates main",
        ];
        assert_eq!(shown(&found), expected);
        let key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n";
        assert_eq!(found[0].signed_by, SignedBy::Key(key.to_owned()));
    }

    #[test]
    fn what_is_no_archive_is_an_error_with_its_line() {
        let check = |text: &str, line, why| {
            assert_eq!(parse_list(text, "amd64"), Err(SourcesError::Line { line, why }), "{text}");
        };
        check("\nhello", 2, "neither `deb` nor `deb-src`");
        check("deb http://a.example", 1, "no address and suite");
        check("deb [arch=amd64 http://a.example x main", 1, "a bracket that is not closed");
        check("deb [arch] http://a.example x main", 1, "an option without a value");
        assert!(matches!(parse_paragraphs("deb x", "amd64"), Err(SourcesError::Paragraph(_))));
    }

    #[test]
    fn a_mirror_is_an_address_with_options_before_it() {
        let mirror = parse_mirror("[trusted=yes] http://a.example/debian/", "bookworm").expect("a mirror");
        assert_eq!(shown(std::slice::from_ref(&mirror)), ["http://a.example/debian bookworm main"]);
        assert!(mirror.is_trusted);
        for wrong in ["", "a.example/debian", "ftp://a.example", "http://a.example/a b", "[x http://a.example"] {
            assert!(parse_mirror(wrong, "bookworm").is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_archives_of_a_suite_are_those_of_this_machine_or_beside_them() {
        let text = "deb http://a.example/debian bookworm main\ndeb http://a.example/security bookworm-security main\n\
            deb http://b.example/debian bookworm main\ndeb http://tools.example bookworm stable\n\
            deb http://c.example stable main\ndeb http://d.example bookworm-pgdg main\ndeb http://e.example trixie main\n";
        let all = parse_list(text, "amd64").expect("sources");
        let check = |own, wanted, expected: &[&str]| {
            assert_eq!(shown(&of_suite(&all, own, wanted)), expected, "{wanted} on {own:?}");
        };
        let own = ["http://a.example/debian bookworm main", "http://a.example/security bookworm-security main"];
        check(Some("bookworm"), "bookworm", &own);
        check(None, "bookworm", &own);
        check(Some("bookworm"), "trixie", &["http://e.example trixie main"]);
        let other = ["http://a.example/debian sid main", "http://a.example/security sid-security main"];
        check(Some("bookworm"), "sid", &other);
        check(None, "sid", &["http://c.example sid main"]);
    }

    #[test]
    fn a_line_is_written_as_it_is_read() {
        let text = "deb [trusted=yes] http://a.example/x bookworm main contrib\n";
        let found = parse_list(text, "amd64").expect("sources");
        assert_eq!(found[0].line(&["trusted=yes".to_owned()]), text);
        assert_eq!(found[0].line(&[]), "deb http://a.example/x bookworm main contrib\n");
    }

    #[test]
    fn a_suite_stays_below_its_archive() {
        for name in ["bookworm", "bookworm/updates", "non-free-firmware", "1.0"] {
            assert!(is_suite(name), "{name}");
        }
        for name in ["", "..", "a/../b", "/a", "a/", "a b", "a?b", "a%2fb"] {
            assert!(!is_suite(name), "{name}");
        }
    }
}
