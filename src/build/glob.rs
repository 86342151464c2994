//! Names of `%files` that stand for several: `*`, `?`, `[…]`, `{a,b}`, `**`, and `?(…)`, `*(…)`, `+(…)`, `@(…)`, `!(…)`.
//!
//! ```text
//! src/{a,b}/*.txt ──► braces ──► src/a/*.txt ──► one component after the other ──► src/a/1.txt, src/a/2.txt
//!                                src/b/*.txt
//! ```
//!
//! As in a shell, a name that begins with a dot is matched by a pattern that does. Work and results are bounded.

use crate::def::Word;
use std::fmt;

/// A directory's entries: names, and whether each is a directory.
pub trait Listing {
    /// The entries of `directory` (empty for the current one), in any order; none when it can't be listed.
    fn entries(&self, directory: &[u8]) -> Vec<(Vec<u8>, bool)>;
    /// Whether there is something at `path`.
    fn exists(&self, path: &[u8]) -> bool;
}

/// Why a pattern has no names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GlobError {
    /// It stands for more names than any definition means.
    TooMany,
    /// It takes more steps to match than any definition needs.
    TooHard,
}

impl fmt::Display for GlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMany => "it stands for too many names",
            Self::TooHard => "it is too hard to match",
        })
    }
}

const MAX_NAMES: usize = 1 << 20;
const MAX_BRACES: usize = 1 << 12;
const MAX_DEPTH: usize = 64;
/// Steps of matching for one name of a directory.
const MAX_STEPS: usize = 1 << 18;

/// The names that a word stands for, sorted within each alternative of braces; a word without a pattern stands for itself,
/// whether it is there or not.
pub fn expand(word: &Word, listing: &dyn Listing) -> Result<Vec<Vec<u8>>, GlobError> {
    let bytes: Vec<Byte> = word.text.iter().zip(&word.is_literal).map(|(&byte, &plain)| Byte { byte, plain }).collect();
    let mut names = Vec::new();
    let mut alternatives = Vec::new();
    braces(&bytes, 0, &mut alternatives)?;
    for alternative in alternatives {
        let mut found = Vec::new();
        if is_pattern(&alternative) {
            components(&alternative, listing, &mut found)?;
            found.sort();
            found.dedup();
        } else {
            found.push(alternative.iter().map(|b| b.byte).collect());
        }
        names.extend(found);
        if names.len() > MAX_NAMES {
            return Err(GlobError::TooMany);
        }
    }
    Ok(names)
}

/// A byte, and whether it stands for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Byte {
    byte: u8,
    plain: bool,
}

impl Byte {
    fn is(self, special: u8) -> bool {
        !self.plain && self.byte == special
    }
}

/// Spells out `{a,b}`; braces without a comma are text.
fn braces(word: &[Byte], depth: usize, found: &mut Vec<Vec<Byte>>) -> Result<(), GlobError> {
    if depth > MAX_DEPTH || found.len() > MAX_BRACES {
        return Err(GlobError::TooMany);
    }
    for (start, _) in word.iter().enumerate().filter(|(_, byte)| byte.is(b'{')) {
        let (mut level, mut cuts) = (0_usize, vec![start]);
        let end = word[start..].iter().position(|byte| {
            level += usize::from(byte.is(b'{'));
            level -= usize::from(byte.is(b'}'));
            level == 0
        });
        let Some(end) = end.map(|length| start + length) else { continue };
        let mut level = 0_usize;
        for (at, byte) in word.iter().enumerate().take(end).skip(start) {
            level += usize::from(byte.is(b'{'));
            level = level.saturating_sub(usize::from(byte.is(b'}')));
            if level == 1 && byte.is(b',') {
                cuts.push(at);
            }
        }
        if cuts.len() == 1 {
            continue;
        }
        cuts.push(end);
        for pair in cuts.windows(2) {
            let chosen = [&word[..start], &word[pair[0] + 1..pair[1]], &word[end + 1..]].concat();
            braces(&chosen, depth + 1, found)?;
        }
        return Ok(());
    }
    found.push(word.to_vec());
    Ok(())
}

fn is_pattern(word: &[Byte]) -> bool {
    let is_extended = |pair: &[Byte]| b"@+!".iter().any(|&b| pair[0].is(b)) && pair[1].is(b'(');
    word.iter().any(|byte| byte.is(b'*') || byte.is(b'?') || byte.is(b'[')) || word.windows(2).any(is_extended)
}

/// Matches one component after the other.
fn components(word: &[Byte], listing: &dyn Listing, found: &mut Vec<Vec<u8>>) -> Result<(), GlobError> {
    let parts: Vec<&[Byte]> = split_components(word);
    // Paths found so far, each with the component that comes next.
    let mut pending: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), 0)];
    let mut steps = 0_usize;
    while let Some((path, index)) = pending.pop() {
        steps += 1;
        if steps > MAX_NAMES {
            return Err(GlobError::TooMany);
        }
        let Some(part) = parts.get(index) else {
            found.push(path);
            continue;
        };
        let is_last = index + 1 == parts.len();
        if part.len() == 2 && part.iter().all(|byte| byte.is(b'*')) && !is_last {
            // No directory at all, or one more, and then again.
            pending.push((path.clone(), index + 1));
            for (name, is_directory) in listing.entries(&path) {
                if is_directory && !name.starts_with(b".") {
                    pending.push((joined(&path, &name), index));
                }
            }
            continue;
        }
        if !is_pattern(part) {
            let name: Vec<u8> = part.iter().map(|b| b.byte).collect();
            // The part before the first slash of an absolute path is empty; one behind the last asks for a directory.
            let next = if index == 0 && name.is_empty() { b"/".to_vec() } else { joined(&path, &name) };
            if !is_last || name.is_empty() || listing.exists(&next) {
                pending.push((next, index + 1));
            }
            continue;
        }
        let takes_hidden = part.first().is_some_and(|byte| byte.byte == b'.');
        for (name, is_directory) in listing.entries(&path) {
            if name.starts_with(b".") && !takes_hidden {
                continue;
            }
            let mut budget = MAX_STEPS;
            if (is_last || is_directory) && matches(part, &name, 0, &mut budget)? {
                pending.push((joined(&path, &name), index + 1));
            }
        }
    }
    Ok(())
}

/// Cuts at slashes, but for those in parentheses and brackets, which match no name anyway.
fn split_components(word: &[Byte]) -> Vec<&[Byte]> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, byte) in word.iter().enumerate() {
        if byte.byte == b'/' {
            // Slashes that follow one another are one.
            if at == 0 || at > start {
                parts.push(&word[start..at]);
            }
            start = at + 1;
        }
    }
    parts.push(&word[start..]);
    parts
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        b"" => name.to_vec(),
        _ if path.ends_with(b"/") => [path, name].concat(),
        _ => [path, b"/", name].concat(),
    }
}

/// Whether `pattern` is all of `name`.
fn matches(pattern: &[Byte], name: &[u8], depth: usize, budget: &mut usize) -> Result<bool, GlobError> {
    *budget = budget.checked_sub(1).ok_or(GlobError::TooHard)?;
    if depth > MAX_STEPS.ilog2() as usize * 16 {
        return Err(GlobError::TooHard);
    }
    let Some((&first, rest)) = pattern.split_first() else { return Ok(name.is_empty()) };
    if !first.plain
        && b"?*+@!".contains(&first.byte)
        && rest.first().is_some_and(|byte| byte.is(b'('))
        && let Some((alternatives, after)) = parentheses(&rest[1..])
    {
        return extended(first.byte, &alternatives, pattern, after, name, depth, budget);
    }
    match first.byte {
        b'*' if !first.plain => {
            let after = &pattern[pattern.iter().take_while(|byte| byte.is(b'*')).count()..];
            // `*(` is an operator of its own: give the star back.
            let after = if after.first().is_some_and(|byte| byte.is(b'(')) { rest } else { after };
            for start in 0..=name.len() {
                if matches(after, &name[start..], depth + 1, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        b'?' if !first.plain => Ok(!name.is_empty() && matches(rest, &name[1..], depth + 1, budget)?),
        b'[' if !first.plain => match (set(rest), name.split_first()) {
            (Some((set, after)), Some((&byte, left))) => {
                Ok(set.contains(byte) && matches(after, left, depth + 1, budget)?)
            }
            (Some(_), None) => Ok(false),
            (None, _) => Ok(name.first() == Some(&b'[') && matches(rest, &name[1..], depth + 1, budget)?),
        },
        byte => Ok(name.first() == Some(&byte) && matches(rest, &name[1..], depth + 1, budget)?),
    }
}

/// The alternatives of `(a|b)` and what follows; `None` without an end.
fn parentheses(inner: &[Byte]) -> Option<(Vec<&[Byte]>, &[Byte])> {
    let (mut level, mut start, mut alternatives) = (0_usize, 0, Vec::new());
    for (at, byte) in inner.iter().enumerate() {
        match byte {
            byte if byte.is(b'(') => level += 1,
            byte if byte.is(b'|') && level == 0 => {
                alternatives.push(&inner[start..at]);
                start = at + 1;
            }
            byte if byte.is(b')') && level == 0 => {
                alternatives.push(&inner[start..at]);
                return Some((alternatives, &inner[at + 1..]));
            }
            byte if byte.is(b')') => level -= 1,
            _ => {}
        }
    }
    None
}

fn extended(
    operator: u8,
    alternatives: &[&[Byte]],
    whole: &[Byte],
    after: &[Byte],
    name: &[u8],
    depth: usize,
    budget: &mut usize,
) -> Result<bool, GlobError> {
    if matches!(operator, b'?' | b'*') && matches(after, name, depth + 1, budget)? {
        return Ok(true);
    }
    for end in 0..=name.len() {
        let mut is_one = false;
        for alternative in alternatives {
            is_one = is_one || matches(alternative, &name[..end], depth + 1, budget)?;
        }
        let fits = match operator {
            b'!' => !is_one && matches(after, &name[end..], depth + 1, budget)?,
            b'?' | b'@' => is_one && matches(after, &name[end..], depth + 1, budget)?,
            // One more of them, which is at least a byte, or what follows.
            _ => {
                is_one
                    && (matches(after, &name[end..], depth + 1, budget)?
                        || (end > 0 && matches(whole, &name[end..], depth + 1, budget)?))
            }
        };
        if fits {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `[a-z]`: bytes, or all others.
struct Set {
    is_negated: bool,
    ranges: Vec<(u8, u8)>,
}

impl Set {
    fn contains(&self, byte: u8) -> bool {
        self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&byte)) != self.is_negated
    }
}

/// Reads a set behind its `[`; gives what follows its `]` too.
fn set(inner: &[Byte]) -> Option<(Set, &[Byte])> {
    let is_negated = inner.first().is_some_and(|byte| byte.is(b'!') || byte.is(b'^'));
    let mut at = usize::from(is_negated);
    let begin = at;
    let mut ranges = Vec::new();
    loop {
        let byte = *inner.get(at)?;
        if byte.is(b']') && at > begin {
            return Some((Set { is_negated, ranges }, &inner[at + 1..]));
        }
        match (inner.get(at + 1), inner.get(at + 2)) {
            (Some(dash), Some(to)) if dash.is(b'-') && !to.is(b']') => {
                ranges.push((byte.byte, to.byte));
                at += 3;
            }
            _ => {
                ranges.push((byte.byte, byte.byte));
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Files by their paths; directories are what is before a slash.
    struct Files(BTreeSet<String>);

    impl Listing for Files {
        fn entries(&self, directory: &[u8]) -> Vec<(Vec<u8>, bool)> {
            let directory = String::from_utf8_lossy(directory).into_owned();
            let prefix = if directory.is_empty() || directory.ends_with('/') { directory } else { directory + "/" };
            let below = self.0.iter().filter_map(|path| path.strip_prefix(prefix.as_str()));
            let names: BTreeSet<_> = below
                .filter(|rest| !rest.starts_with('/'))
                .map(|rest| match rest.split_once('/') {
                    Some((name, _)) => (name.as_bytes().to_vec(), true),
                    None => (rest.as_bytes().to_vec(), false),
                })
                .collect();
            names.into_iter().collect()
        }

        fn exists(&self, path: &[u8]) -> bool {
            let path = String::from_utf8_lossy(path).into_owned();
            self.0.iter().any(|known| *known == path || known.starts_with(&format!("{path}/")))
        }
    }

    fn found(word: &str) -> Result<Vec<String>, GlobError> {
        let files = [
            "src/a.txt",
            "src/b.txt",
            "src/c.log",
            "src/.hidden",
            "src/sub/d.txt",
            "src/sub/deep/e.txt",
            "one",
            "two",
            "/etc/hosts",
            "/etc/passwd",
            "odd[1]",
        ];
        let files = Files(files.iter().map(|file| (*file).to_owned()).collect());
        let mut marked = Word::default();
        marked.push(word.as_bytes(), false);
        let names = expand(&marked, &files)?;
        Ok(names.into_iter().map(|name| String::from_utf8_lossy(&name).into_owned()).collect())
    }

    #[track_caller]
    fn check(word: &str, expected: &[&str]) {
        assert_eq!(found(word).unwrap(), expected, "{word}");
    }

    #[test]
    fn stars_and_questions_match_in_one_component() {
        check("src/*.txt", &["src/a.txt", "src/b.txt"]);
        check("src/?.txt", &["src/a.txt", "src/b.txt"]);
        check("src/*", &["src/a.txt", "src/b.txt", "src/c.log", "src/sub"]);
        check("src/.*", &["src/.hidden"]);
        check("*/*.log", &["src/c.log"]);
        check("/etc/h*", &["/etc/hosts"]);
        check("src//*.log", &["src/c.log"]);
        check("none/*", &[]);
    }

    #[test]
    fn sets_and_braces_choose() {
        check("src/[ac].*", &["src/a.txt", "src/c.log"]);
        check("src/[!a-b].*", &["src/c.log"]);
        check("{two,one}", &["two", "one"]);
        check("src/{a,{b,none}}.txt", &["src/a.txt", "src/b.txt", "src/none.txt"]);
        check("src/{a,c}.*", &["src/a.txt", "src/c.log"]);
        check("{one}", &["{one}"]);
        check("odd[[]1]", &["odd[1]"]);
    }

    #[test]
    fn two_stars_match_any_depth() {
        check("src/**/*.txt", &["src/a.txt", "src/b.txt", "src/sub/d.txt", "src/sub/deep/e.txt"]);
        check("src/**", &["src/a.txt", "src/b.txt", "src/c.log", "src/sub"]);
    }

    #[test]
    fn extended_patterns_match() {
        check("src/@(a|c).*", &["src/a.txt", "src/c.log"]);
        check("src/!(*.txt)", &["src/c.log", "src/sub"]);
        check("src/+(a|b).txt", &["src/a.txt", "src/b.txt"]);
        check("?(o)ne", &["one"]);
        check("*(t|w|o)", &["two"]);
    }

    #[test]
    fn a_name_without_a_pattern_is_itself_and_protected_bytes_are_text() {
        check("not/there", &["not/there"]);
        let files = Files(BTreeSet::from(["a*b".to_owned(), "axb".to_owned()]));
        let mut word = Word::default();
        word.push(b"a", false);
        word.push(b"*", true);
        word.push(b"b", false);
        assert_eq!(expand(&word, &files), Ok(vec![b"a*b".to_vec()]));
    }

    #[test]
    fn patterns_that_would_take_forever_are_refused() {
        let long = Files(BTreeSet::from(["a".repeat(200)]));
        let mut word = Word::default();
        word.push(format!("{}b", "*a".repeat(60)).as_bytes(), false);
        assert_eq!(expand(&word, &long), Err(GlobError::TooHard));
        let mut word = Word::default();
        word.push("{a,b}".repeat(30).as_bytes(), false);
        assert_eq!(expand(&word, &long), Err(GlobError::TooMany));
    }
}
