//! A `Release` file: what an archive says of one suite, with the digests of its indexes.
//!
//! ```text
//! Origin: Debian
//! Suite: stable
//! Codename: bookworm
//! Date: Sat, 17 May 2025 09:20:01 UTC
//! SHA256:
//!  0b34...e1  1468324  main/binary-amd64/Packages.xz
//! ```

use super::deb822::{self, Deb822Error};
use crate::oci::digest::Digest;
use std::collections::HashMap;
use std::fmt;

/// Most bytes of a release file; Debian's have 150 to 1500 KB.
pub const MAX_BYTES: u64 = 16 << 20;

/// What a release file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub origin: String,
    pub suite: String,
    pub codename: String,
    /// When it was made, in seconds since 1970.
    pub date: Option<i64>,
    /// Until when it was meant to be believed, in seconds since 1970.
    pub valid_until: Option<i64>,
    files: HashMap<String, Listed>,
}

/// What is known of a file before it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub digest: Digest,
    pub size_bytes: u64,
}

/// Why a release file is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseError {
    Syntax(Deb822Error),
    /// Nothing in it can be checked.
    NoDigests,
    /// A line of digests that is none.
    Digest {
        line: String,
    },
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(error) => error.fmt(f),
            Self::NoDigests => f.write_str("it states no SHA-256 digests"),
            Self::Digest { line } => write!(f, "`{}` is no digest, size and name", line.escape_debug()),
        }
    }
}

impl std::error::Error for ReleaseError {}

impl Release {
    /// Reads a release file, of which the signature is gone.
    pub fn parse(text: &str) -> Result<Self, ReleaseError> {
        let paragraph = deb822::paragraphs(text).next().ok_or(ReleaseError::NoDigests)?;
        let paragraph = paragraph.map_err(ReleaseError::Syntax)?;
        let mut files = HashMap::new();
        for line in paragraph.get("SHA256").ok_or(ReleaseError::NoDigests)?.lines().filter(|line| !line.is_empty()) {
            let mut words = line.split_ascii_whitespace();
            let listed = || -> Option<(String, Listed)> {
                let (hex, size, name) = (words.next()?, words.next()?, words.next()?);
                let digest = format!("sha256:{}", hex.to_ascii_lowercase()).parse().ok()?;
                Some((name.to_owned(), Listed { digest, size_bytes: size.parse().ok()? }))
            }();
            let wrong = || ReleaseError::Digest { line: line.chars().take(120).collect() };
            let (name, listed) = listed.ok_or_else(wrong)?;
            files.insert(name, listed);
        }
        let text = |name| paragraph.get(name).unwrap_or_default().to_owned();
        let time = |name| paragraph.get(name).and_then(seconds);
        Ok(Self {
            origin: text("Origin"),
            suite: text("Suite"),
            codename: text("Codename"),
            date: time("Date"),
            valid_until: time("Valid-Until"),
            files,
        })
    }

    /// Whether it is the release file of a suite that was asked for by this name: `bookworm`, `stable`.
    pub fn is_of(&self, suite: &str) -> bool {
        // `bookworm/updates`, as security updates were called, has a code name `bookworm`, and so on.
        let plain = suite.split('/').next().unwrap_or_default();
        [&self.suite, &self.codename].into_iter().any(|known| known == suite || known.split('/').next() == Some(plain))
    }

    /// What it states of a file, by its path beside the release file.
    pub fn listed(&self, path: &str) -> Option<&Listed> {
        self.files.get(path)
    }
}

/// Seconds since 1970 of `Sat, 17 May 2025 09:20:01 UTC`.
fn seconds(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let &[_, day, month, year, time, "UTC" | "GMT" | "+0000" | "Z"] = words.as_slice() else { return None };
    let number = |text: &str, range: std::ops::RangeInclusive<i64>| {
        text.parse().ok().filter(|number: &i64| range.contains(number))
    };
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let (day, year) = (number(day, 1..=31)?, number(year, 1970..=9999)?);
    let &[hour, minute, second] = time.split(':').collect::<Vec<_>>().as_slice() else { return None };
    let (hour, minute, second) = (number(hour, 0..=23)?, number(minute, 0..=59)?, number(second, 0..=60)?);
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn indexes_are_known_by_digest_and_size() {
        let text = format!(
            "Origin: Debian\nSuite: stable-security\nCodename: bookworm-security\nDate: Thu, 01 Jan 1970 00:01:00 UTC\n\
             MD5Sum:\n 00 1 x\nSHA256:\n {HEX} 3 main/binary-amd64/Packages.xz\n {} 0 other\n",
            HEX.to_uppercase()
        );
        let release = Release::parse(&text).expect("a release file");
        assert_eq!((release.date, release.valid_until), (Some(60), None));
        let listed = release.listed("main/binary-amd64/Packages.xz").expect("a listed file");
        assert_eq!((listed.digest.hex(), listed.size_bytes), (HEX, 3));
        assert_eq!(release.listed("other").map(|listed| listed.digest.hex()), Some(HEX));
        assert_eq!(release.listed("x"), None);
        assert!(release.is_of("bookworm-security") && release.is_of("stable-security"));
        assert!(!release.is_of("bookworm") && !release.is_of("trixie-security"));
    }

    #[test]
    fn what_can_not_be_checked_is_an_error() {
        assert_eq!(Release::parse(""), Err(ReleaseError::NoDigests));
        assert_eq!(Release::parse("Suite: x\nMD5Sum:\n 00 1 x\n"), Err(ReleaseError::NoDigests));
        for line in ["00 1 x", &format!("{HEX} -1 x"), &format!("{HEX} 1"), &format!("{HEX}0 1 x")] {
            let error = Release::parse(&format!("SHA256:\n {line}\n")).unwrap_err();
            assert!(matches!(error, ReleaseError::Digest { .. }), "{line}: {error}");
        }
    }

    #[test]
    fn dates_are_seconds_since_1970() {
        let check = |text: &str, expected: Option<i64>| assert_eq!(seconds(text), expected, "{text}");
        check("Thu, 01 Jan 1970 00:00:00 UTC", Some(0));
        check("Tue, 29 Feb 2000 12:34:56 GMT", Some(951_827_696));
        check("Sat, 17 May 2025 09:20:01 UTC", Some(1_747_473_601));
        check("Fri, 31 Dec 9999 23:59:60 +0000", Some(253_402_300_800));
        for wrong in ["", "17 May 2025", "Sat, 17 Mai 2025 09:20:01 UTC", "Sat, 17 May 2025 09:20:01 CEST"] {
            check(wrong, None);
        }
    }
}
