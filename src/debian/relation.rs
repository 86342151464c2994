//! What a package says of others: `Depends: libc6 (>= 2.36), default-mta | mail-transport-agent`.

use super::version;
use std::cmp::Ordering;
use std::fmt;

/// Most packages that one field may name; the largest in Debian have some thousand.
const MAX_NAMES: usize = 20_000;

/// A package that would do, perhaps in some versions alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    pub name: &'a str,
    pub version: Option<(Relation, &'a str)>,
}

/// How a version must compare with the one that is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Earlier,
    EarlierOrEqual,
    Equal,
    LaterOrEqual,
    Later,
}

impl Wanted<'_> {
    /// Whether a package of this version does.
    pub fn takes(&self, version: &str) -> bool {
        let Some((relation, wanted)) = self.version else { return true };
        let ordering = version::compare(version, wanted);
        match relation {
            Relation::Earlier => ordering == Ordering::Less,
            Relation::EarlierOrEqual => ordering != Ordering::Greater,
            Relation::Equal => ordering == Ordering::Equal,
            Relation::LaterOrEqual => ordering != Ordering::Less,
            Relation::Later => ordering == Ordering::Greater,
        }
    }
}

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        let Some((relation, version)) = self.version else { return Ok(()) };
        let sign = match relation {
            Relation::Earlier => "<<",
            Relation::EarlierOrEqual => "<=",
            Relation::Equal => "=",
            Relation::LaterOrEqual => ">=",
            Relation::Later => ">>",
        };
        write!(f, " ({sign} {version})")
    }
}

/// A field that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationError {
    /// The part that is wrong.
    pub text: String,
}

impl fmt::Display for RelationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` names no package", self.text.escape_debug())
    }
}

impl std::error::Error for RelationError {}

/// Reads a field: of every group one package is needed, the first that can be had.
pub fn parse(field: &str) -> Result<Vec<Vec<Wanted<'_>>>, RelationError> {
    let mut names = 0;
    let mut groups = Vec::new();
    for group in field.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        let alternatives = group.split('|').map(|text| one(text.trim())).collect::<Result<Vec<_>, _>>()?;
        names += alternatives.len();
        if names > MAX_NAMES {
            return Err(RelationError { text: format!("more than {MAX_NAMES} names") });
        }
        groups.push(alternatives);
    }
    Ok(groups)
}

fn one(text: &str) -> Result<Wanted<'_>, RelationError> {
    let wrong = || RelationError { text: text.chars().take(80).collect() };
    let (name, version) = match text.split_once('(') {
        Some((name, rest)) => {
            let inner = rest.trim_end().strip_suffix(')').ok_or_else(wrong)?.trim();
            let version = inner.trim_start_matches(['<', '>', '=']);
            let relation = match &inner[..inner.len() - version.len()] {
                "<<" => Relation::Earlier,
                // The single signs are an old spelling, and mean what they do not say.
                "<=" | "<" => Relation::EarlierOrEqual,
                "=" => Relation::Equal,
                ">=" | ">" => Relation::LaterOrEqual,
                ">>" => Relation::Later,
                _ => return Err(wrong()),
            };
            let version = version.trim();
            if version.is_empty() || version.contains(char::is_whitespace) {
                return Err(wrong());
            }
            (name.trim_end(), Some((relation, version)))
        }
        None => (text, None),
    };
    // `python3:any`: one architecture is all there is.
    let name = name.split(':').next().unwrap_or_default();
    if is_name(name) { Ok(Wanted { name, version }) } else { Err(wrong()) }
}

/// Whether a text can be the name of a package; such names are safe in file names and command lines.
pub fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_');
    text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) && text.bytes().all(is_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(field: &str) -> Vec<String> {
        let groups = parse(field).expect("relations");
        let group = |group: &Vec<Wanted>| group.iter().map(Wanted::to_string).collect::<Vec<_>>().join(" | ");
        groups.iter().map(group).collect()
    }

    #[test]
    fn a_field_is_groups_of_alternatives() {
        assert_eq!(shown(""), Vec::<String>::new());
        assert_eq!(shown("a, b(>=1.0)|c (<< 2:1-1),\n d:any (= 3)"), ["a", "b (>= 1.0) | c (<< 2:1-1)", "d (= 3)"]);
        assert_eq!(shown("a (< 1), b (> 1), "), ["a (<= 1)", "b (>= 1)"]);
    }

    #[test]
    fn what_names_no_package_is_an_error() {
        for wrong in ["a b", "a (1)", "a (>= 1", "a (>=)", "a (>= 1 2)", "-a", "a |", "../x", "a (=> 1)", "\u{e9}"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("x, a b").unwrap_err().to_string(), "`a b` names no package");
    }

    #[test]
    fn a_version_is_compared_as_the_sign_says() {
        let check = |field: &str, takes: &[&str], refuses: &[&str]| {
            let wanted = parse(field).expect("a relation")[0][0];
            takes.iter().for_each(|version| assert!(wanted.takes(version), "{field}: {version}"));
            refuses.iter().for_each(|version| assert!(!wanted.takes(version), "{field}: {version}"));
        };
        check("a (<< 2)", &["1", "2~"], &["2", "3"]);
        check("a (<= 2)", &["1", "2"], &["2.1"]);
        check("a (= 2)", &["2", "0:2"], &["2.1", "1"]);
        check("a (>= 2)", &["2", "1:0"], &["2~rc1"]);
        check("a (>> 2)", &["2+b1"], &["2"]);
        check("a", &["0"], &[]);
    }
}
