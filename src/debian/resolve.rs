//! Which packages belong to those that are wanted.
//!
//! What `Depends` and `Pre-Depends` ask for is added until nothing is missing; what is merely recommended stays out. Where
//! there is a choice, it is made late: something else may want one of the packages anyway. Nothing that was chosen is ever
//! taken back, so this ends, and says so where another choice might have gone further.

use super::index::{Index, Package};
use super::relation::{self, RelationError, Wanted};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// Why there is no such set of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// No package is called so.
    Unknown { name: String },
    /// A package needs what is not there, or what does not go with the rest.
    Unmet { package: String, wanted: String },
    /// Two packages that don't go together.
    Conflict { package: String, other: String },
    /// A field of a package that can't be understood.
    Relation { package: String, source: RelationError },
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name } => write!(f, "no package is called `{}`", name.escape_debug()),
            Self::Unmet { package, wanted } => write!(f, "package `{package}` needs `{wanted}`, which can't be had"),
            Self::Conflict { package, other } => write!(f, "package `{package}` can't be there with `{other}`"),
            Self::Relation { package, source } => write!(f, "package `{package}`: {source}"),
        }
    }
}

impl std::error::Error for ResolveError {}

/// The packages that were chosen so far.
struct Choice<'i, 'a> {
    index: &'i Index<'a>,
    chosen: BTreeMap<&'a str, &'i Package<'a>>,
    /// What stands in for something else: the name, who does, and in which version.
    provided: BTreeMap<&'a str, Vec<(&'a str, Option<&'a str>)>>,
    /// Conflicts of what was chosen, by the name that is not to come.
    refused: BTreeMap<&'a str, Vec<(&'a str, Wanted<'a>)>>,
    /// What is still to be met.
    plain: VecDeque<(&'a str, Vec<Wanted<'a>>)>,
    /// The same, where there is a choice.
    open: VecDeque<(&'a str, Vec<Wanted<'a>>)>,
}

/// Gives the packages called `names` and all that they need, by name.
pub fn resolve<'i, 'a>(index: &'i Index<'a>, names: &[&str]) -> Result<Vec<&'i Package<'a>>, ResolveError> {
    let mut choice = Choice {
        index,
        chosen: BTreeMap::new(),
        provided: BTreeMap::new(),
        refused: BTreeMap::new(),
        plain: VecDeque::new(),
        open: VecDeque::new(),
    };
    for name in names {
        let package = index.get(name).or_else(|| index.providers(name).map(|(package, _)| package).min_by_key(rank));
        let package = package.ok_or_else(|| ResolveError::Unknown { name: (*name).to_owned() })?;
        choice.choose(package)?;
    }
    while let Some((package, group)) = choice.plain.pop_front().or_else(|| choice.open.pop_front()) {
        choice.meet(package, &group)?;
    }
    Ok(choice.chosen.into_values().collect())
}

/// Among packages that stand in for a name: the more important one, then the first by name.
fn rank<'a>(package: &&Package<'a>) -> (usize, &'a str) {
    let order = ["required", "important", "standard", "optional"];
    (order.iter().position(|known| *known == package.priority).unwrap_or(order.len()), package.name)
}

impl<'i, 'a> Choice<'i, 'a> {
    fn choose(&mut self, package: &'i Package<'a>) -> Result<(), ResolveError> {
        if self.chosen.contains_key(package.name) {
            return Ok(());
        }
        if let Some(other) = self.conflict(package)? {
            return Err(ResolveError::Conflict { package: package.name.to_owned(), other: other.to_owned() });
        }
        for group in parse(package, package.pre_depends)?.into_iter().chain(parse(package, package.depends)?) {
            let is_plain = matches!(group.as_slice(), [wanted] if self.index.get(wanted.name).is_some());
            let queue = if is_plain { &mut self.plain } else { &mut self.open };
            queue.push_back((package.name, group));
        }
        for wanted in refusals(package)? {
            self.refused.entry(wanted.name).or_default().push((package.name, wanted));
        }
        for (name, version) in provided_by(package)? {
            self.provided.entry(name).or_default().push((package.name, version));
        }
        self.chosen.insert(package.name, package);
        Ok(())
    }

    /// Something that was chosen and does not go with `package`.
    fn conflict(&self, package: &Package<'a>) -> Result<Option<&'a str>, ResolveError> {
        // Whoever was chosen does not want it, or what it stands in for.
        let mut names = vec![(package.name, Some(package.version))];
        names.extend(provided_by(package)?);
        for (name, version) in names {
            for (other, wanted) in self.refused.get(name).into_iter().flatten() {
                if *other != package.name && takes(wanted, version) {
                    return Ok(Some(other));
                }
            }
        }
        // It does not want somebody who was chosen, or who stands in.
        for wanted in refusals(package)? {
            if let Some(chosen) = self.chosen.get(wanted.name)
                && chosen.name != package.name
                && wanted.takes(chosen.version)
            {
                return Ok(Some(chosen.name));
            }
            for (provider, version) in self.provided.get(wanted.name).into_iter().flatten() {
                if *provider != package.name && takes(&wanted, *version) {
                    return Ok(Some(provider));
                }
            }
        }
        Ok(None)
    }

    fn is_met(&self, wanted: &Wanted) -> bool {
        self.chosen.get(wanted.name).is_some_and(|package| wanted.takes(package.version))
            || self.provided.get(wanted.name).into_iter().flatten().any(|(_, version)| takes(wanted, *version))
    }

    /// Adds a package for a group of alternatives, unless one is there.
    fn meet(&mut self, package: &'a str, group: &[Wanted<'a>]) -> Result<(), ResolveError> {
        if group.iter().any(|wanted| self.is_met(wanted)) {
            return Ok(());
        }
        for wanted in group {
            let real = self.index.get(wanted.name).filter(|found| wanted.takes(found.version));
            let mut providers: Vec<_> = self.index.providers(wanted.name).collect();
            providers.retain(|(_, version)| takes(wanted, *version));
            providers.sort_by_key(|(package, _)| rank(package));
            for candidate in real.into_iter().chain(providers.into_iter().map(|(package, _)| package)) {
                if !self.chosen.contains_key(candidate.name) && self.conflict(candidate)?.is_none() {
                    return self.choose(candidate);
                }
            }
        }
        let wanted = group.iter().map(Wanted::to_string).collect::<Vec<_>>().join(" | ");
        Err(ResolveError::Unmet { package: package.to_owned(), wanted })
    }
}

/// Whether what is provided in `version`, or in none, does: a version is met by one that is stated alone.
fn takes(wanted: &Wanted, version: Option<&str>) -> bool {
    version.map_or(wanted.version.is_none(), |version| wanted.takes(version))
}

fn parse<'a>(package: &Package<'a>, field: &'a str) -> Result<Vec<Vec<Wanted<'a>>>, ResolveError> {
    relation::parse(field).map_err(|source| ResolveError::Relation { package: package.name.to_owned(), source })
}

/// What a package stands in for, and in which version.
fn provided_by<'a>(package: &Package<'a>) -> Result<Vec<(&'a str, Option<&'a str>)>, ResolveError> {
    let groups = parse(package, package.provides)?.into_iter().flatten();
    Ok(groups.map(|wanted| (wanted.name, wanted.version.map(|(_, version)| version))).collect())
}

fn refusals<'a>(package: &Package<'a>) -> Result<Vec<Wanted<'a>>, ResolveError> {
    let groups = parse(package, package.conflicts)?.into_iter().chain(parse(package, package.breaks)?);
    Ok(groups.flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::super::index::tests::paragraph;
    use super::*;

    /// Packages as `name version | Field: value`, one a line.
    fn text(lines: &[&str]) -> String {
        let one = |line: &&str| {
            let (head, rest) = line.split_once('|').unwrap_or((line, ""));
            let (name, version) = head.trim().split_once(' ').expect("a name and a version");
            let rest: String = rest.split(';').map(|field| format!("{}\n", field.trim())).collect();
            paragraph(name, version, rest.trim_start_matches('\n'))
        };
        lines.iter().map(one).collect()
    }

    #[track_caller]
    fn check(lines: &[&str], names: &[&str], expected: &str) {
        let text = text(lines);
        let mut index = Index::default();
        index.add(&text, 0).expect("an index");
        let found = match resolve(&index, names) {
            Ok(packages) => packages.iter().map(|package| package.name).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_needed_comes_along() {
        let lines =
            ["a 1 | Depends: b (>= 2), c; Recommends: r", "b 2 | Pre-Depends: d", "c 1", "d 1 | Depends: a", "r 1"];
        check(&lines, &["a"], "a b c d");
        check(&lines, &["c", "c"], "c");
        check(&lines, &[], "");
        check(&lines, &["x"], "no package is called `x`");
    }

    #[test]
    fn of_alternatives_the_first_is_taken_unless_another_is_there() {
        let lines =
            ["a 1 | Depends: x | y", "b 1 | Depends: y", "x 1", "y 1", "z 1 | Depends: n | m (>= 2) | y", "m 1"];
        check(&lines, &["a"], "a x");
        check(&lines, &["a", "b"], "a b y");
        check(&lines, &["z"], "y z");
    }

    #[test]
    fn a_name_without_a_package_is_met_by_who_provides_it() {
        let lines = [
            "a 1 | Depends: mail",
            "exim 1 | Provides: mail; Priority: standard",
            "axim 1 | Provides: mail; Priority: optional",
            "b 1 | Depends: api (>= 2)",
            "one 1 | Provides: api (= 1)",
            "two 1 | Provides: api (= 2)",
            "none 1 | Provides: api",
            "c 1 | Depends: axim, mail",
        ];
        check(&lines, &["a"], "a exim");
        check(&lines, &["b"], "b two");
        check(&lines, &["a", "c"], "a axim c");
        check(&lines, &["mail"], "exim");
    }

    #[test]
    fn packages_that_refuse_each_other_are_not_taken_together() {
        let lines = [
            "a 1 | Conflicts: b",
            "b 1",
            "c 1 | Depends: b | d",
            "d 1",
            "e 1 | Breaks: b (<< 1)",
            "f 1 | Provides: mail; Conflicts: mail",
            "g 1 | Provides: mail; Conflicts: mail",
            "h 1 | Depends: b",
        ];
        check(&lines, &["a", "b"], "package `b` can't be there with `a`");
        check(&lines, &["b", "a"], "package `a` can't be there with `b`");
        check(&lines, &["a", "c"], "a c d");
        check(&lines, &["b", "e"], "b e");
        check(&lines, &["f"], "f");
        check(&lines, &["f", "g"], "package `g` can't be there with `f`");
        check(&lines, &["a", "h"], "package `h` needs `b`, which can't be had");
    }

    #[test]
    fn what_is_missing_is_named() {
        check(&["a 1 | Depends: b (>= 2)", "b 1"], &["a"], "package `a` needs `b (>= 2)`, which can't be had");
        check(&["a 1 | Depends: x | y (= 1)"], &["a"], "package `a` needs `x | y (= 1)`, which can't be had");
        check(&["a 1 | Depends: ???"], &["a"], "package `a`: `???` names no package");
    }
}
