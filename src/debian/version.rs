//! Versions of packages, compared as dpkg compares them.
//!
//! ```text
//! 1:2.36-9+deb12u10
//! │ │    └─ revision: behind the last hyphen
//! │ └────── upstream version
//! └──────── epoch: before the first colon, 0 where there is none
//! ```
//!
//! Upstream version and revision are compared in turns: a stretch without digits, by letters, and a stretch of digits, by
//! its number. In the former letters come before everything else, and `~` before even the end.

use std::cmp::Ordering;

/// Compares two versions; every text counts as one.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (left, right) = (split(left), split(right));
    compare_numbers(left.epoch, right.epoch)
        .then_with(|| compare_parts(left.upstream, right.upstream))
        .then_with(|| compare_parts(left.revision, right.revision))
}

struct Parts<'a> {
    epoch: &'a [u8],
    upstream: &'a [u8],
    revision: &'a [u8],
}

fn split(version: &str) -> Parts<'_> {
    let version = version.trim();
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) if epoch.bytes().all(|byte| byte.is_ascii_digit()) => (epoch, rest),
        _ => ("", version),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    Parts { epoch: epoch.as_bytes(), upstream: upstream.as_bytes(), revision: revision.as_bytes() }
}

fn compare_parts(mut left: &[u8], mut right: &[u8]) -> Ordering {
    while !left.is_empty() || !right.is_empty() {
        let (words_left, words_right) = (take(&mut left, false), take(&mut right, false));
        let longest = words_left.len().max(words_right.len());
        for at in 0..longest {
            let ordering = rank(words_left.get(at)).cmp(&rank(words_right.get(at)));
            if ordering != Ordering::Equal {
                return ordering;
            }
        }
        let ordering = compare_numbers(take(&mut left, true), take(&mut right, true));
        if ordering != Ordering::Equal {
            return ordering;
        }
    }
    Ordering::Equal
}

/// Takes the digits, or what is none, from the beginning.
fn take<'a>(text: &mut &'a [u8], digits: bool) -> &'a [u8] {
    let end = text.iter().position(|byte| byte.is_ascii_digit() != digits).unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

fn rank(byte: Option<&u8>) -> (u8, u8) {
    match byte {
        Some(b'~') => (0, 0),
        // The end, or the digits that follow.
        None => (1, 0),
        Some(byte) if byte.is_ascii_alphabetic() => (2, *byte),
        Some(byte) => (3, *byte),
    }
}

/// Compares numbers of any length.
fn compare_numbers(left: &[u8], right: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| digits.iter().position(|&digit| digit != b'0').unwrap_or(digits.len());
    let (left, right) = (&left[significant(left)..], &right[significant(right)..]);
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(left: &str, expected: Ordering, right: &str) {
        assert_eq!(compare(left, right), expected, "{left} and {right}");
        assert_eq!(compare(right, left), expected.reverse(), "{right} and {left}");
    }

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        use Ordering::{Equal, Greater, Less};
        for (left, expected, right) in [
            ("1.0", Equal, "1.0"),
            ("1.0", Equal, "0:1.0"),
            ("1.0", Equal, "1.00"),
            ("1.0-0", Equal, "1.0"),
            ("1.2", Less, "1.10"),
            ("1:0.1", Greater, "9.9"),
            ("1.0~rc1", Less, "1.0"),
            ("1.0~~", Less, "1.0~"),
            ("1.0~rc1-1", Less, "1.0-1"),
            ("1.0a", Greater, "1.0"),
            ("1.0a", Less, "1.0+"),
            ("1.0-1", Less, "1.0-1.1"),
            ("1.0-1+deb12u1", Less, "1.0-1+deb12u10"),
            ("1.0-1+b1", Greater, "1.0-1"),
            ("2.36-9", Less, "2.36-10"),
            ("1-2-3", Greater, "1-1-4"),
            ("20230101", Greater, "9999"),
            ("99999999999999999999999999", Greater, "99999999999999999999999998"),
            ("", Equal, "0"),
            ("~", Less, ""),
            ("a:1", Greater, "1"),
        ] {
            check(left, expected, right);
        }
    }
}
