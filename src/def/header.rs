//! The header of a stage: `Key: value` lines that say where its file system comes from.

use crate::conf::nearest::nearest;
use std::fmt;

/// A key of a header; written in any case, shown in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

/// Keys that some bootstrap agent understands. `otherurl0`, `otherurl1` … come on top.
const KEYS: &[&str] = &[
    "bootstrap",
    "from",
    "includecmd",
    "mirrorurl",
    "updateurl",
    "osversion",
    "include",
    "library",
    "registry",
    "namespace",
    "stage",
    "product",
    "user",
    "regcode",
    "productpgp",
    "registerurl",
    "modules",
    "fingerprints",
    "confurl",
    "setopt",
    "target",
    "frontend",
    "filename",
    "buildargs",
];

impl Key {
    /// The key that `text` spells, in any case; `None` when no agent knows it.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.to_ascii_lowercase();
        let is_other_url = name
            .strip_prefix("otherurl")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
        (is_other_url || KEYS.contains(&name.as_str())).then_some(Self(name))
    }

    /// The key in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The known key that `text` most likely was meant to be.
    pub fn nearest(text: &str) -> Option<&'static str> {
        nearest(&text.to_ascii_lowercase(), KEYS.iter().copied())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The header of one stage, in the order of its lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    lines: Vec<(Key, String)>,
}

impl Header {
    /// The header that a bootstrap agent and its `From:` alone make.
    pub fn of_agent(agent: &str, from: &str) -> Self {
        let mut header = Self::default();
        header.set(Key("bootstrap".to_owned()), agent.to_owned());
        header.set(Key("from".to_owned()), from.to_owned());
        header
    }

    /// Sets the value of a key; a second value takes the place of the first.
    pub(super) fn set(&mut self, key: Key, value: String) {
        match self.lines.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.lines.push((key, value)),
        }
    }

    /// The value of `key` (lower case), if it stands in the header and is not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        let line = self.lines.iter().find(|(known, _)| known.as_str() == key)?;
        Some(line.1.as_str()).filter(|value| !value.is_empty())
    }

    /// The bootstrap agent in lower case; empty when there is none.
    pub fn agent(&self) -> String {
        self.get("bootstrap").unwrap_or_default().to_ascii_lowercase()
    }

    /// All keys and values, in the order of the file.
    pub fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_in_any_case_and_other_urls_by_their_number() {
        assert_eq!(Key::parse("MirrorURL").map(|key| key.to_string()), Some("mirrorurl".to_owned()));
        assert!(Key::parse("OtherURL12").is_some());
        for unknown in ["", "otherurl", "otherurlx", "form", "mirror url"] {
            assert_eq!(Key::parse(unknown), None, "{unknown}");
        }
        assert_eq!(Key::nearest("Form"), Some("from"));
    }

    #[test]
    fn an_empty_value_is_none_and_the_last_of_several_counts() {
        let mut header = Header::of_agent("LocalImage", "a.sif");
        header.set(Key("from".into()), "b.sif".into());
        header.set(Key("stage".into()), String::new());
        assert_eq!(
            (header.agent().as_str(), header.get("from"), header.get("stage")),
            ("localimage", Some("b.sif"), None)
        );
        assert_eq!(header.lines().count(), 3);
    }
}
