//! Ranges of ids that the administrator gave to users, `/etc/subuid` and `/etc/subgid`.
//!
//! ```text
//! ada:100000:65536      owner (a name or a number), first id, count
//! ```
//!
//! A user can have several lines, of any size. Sites that keep the ranges in a directory service say so in
//! `nsswitch.conf` (`subid: sss`); those are asked through `getsubids`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use starter::paths::HostPath;

use super::facts::{IdRange, MapHelper, SubordinateIds, User};
use super::name_service::{self, Question};
use super::user::{find_line, number};

/// Ranges that are read at most; the kernel takes 340 lines of a map.
const RANGES_MAX: usize = 340;

/// Looks up the caller's ranges, and the programs that may map them.
pub fn observe(user: &User) -> SubordinateIds {
    let by_service = name_service::serves("subid");
    let ranges = |file: &str, option: Option<&str>| {
        let mut ranges = File::open(file).map_or_else(
            |_| Vec::new(),
            |file| find_ranges(BufReader::with_capacity(32 << 10, file), &user.entry.name, user.uid),
        );
        if ranges.is_empty() && by_service {
            let name = String::from_utf8_lossy(&user.entry.name).into_owned();
            let arguments: Vec<String> = option.map(str::to_owned).into_iter().chain([name]).collect();
            let question = Question::ask("getsubids", &arguments, name_service::deadline());
            ranges = question.map_or_else(Vec::new, |question| parse_getsubids(&question.answer()));
        }
        ranges
    };
    SubordinateIds {
        uid_ranges: ranges("/etc/subuid", None),
        gid_ranges: ranges("/etc/subgid", Some("-g")),
        newuidmap: find_helper("newuidmap"),
        newgidmap: find_helper("newgidmap"),
    }
}

/// Returns the ranges that a file gives to a user, in the file's order. Empty ranges, those that leave the numbers of
/// ids, and lines that are none, are left out.
pub fn find_ranges(file: impl BufRead, name: &[u8], uid: u32) -> Vec<IdRange> {
    let mut ranges = Vec::new();
    find_line(file, |line| {
        let mut fields = line.trim_ascii().split(|&b| b == b':');
        let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        if fields.next().is_none() && (owner == name || number(owner) == Some(uid)) {
            ranges.extend(range(first, count));
        }
        (ranges.len() >= RANGES_MAX).then_some(())
    });
    ranges
}

fn range(first: &[u8], count: &[u8]) -> Option<IdRange> {
    let (first, count): (u32, u32) = (number(first)?, number(count)?);
    // The last number, 4294967295, is "no id" to the kernel.
    let end = first.checked_add(count)?;
    (count > 0 && end < u32::MAX).then_some(IdRange { first, count })
}

/// Reads what `getsubids` says: `0: ada 100000 65536`.
fn parse_getsubids(text: &[u8]) -> Vec<IdRange> {
    text.split(|&b| b == b'\n')
        .filter_map(|line| {
            let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            let (_, _, first, count) = (words.next()?, words.next()?, words.next()?, words.next()?);
            range(first, count)
        })
        .take(RANGES_MAX)
        .collect()
}

/// Looks for `newuidmap` or `newgidmap` where the caller's shell would, then where distributions put them.
fn find_helper(name: &str) -> Option<MapHelper> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&search).filter(|place| place.is_absolute());
    let usual = ["/usr/bin", "/bin", "/usr/sbin", "/run/wrappers/bin"].map(PathBuf::from);
    let found = places.chain(usual).map(|place| place.join(name)).filter_map(|path| helper(&path));
    // A copy that can do something is worth more than the first one.
    let found: Vec<MapHelper> = found.collect();
    found.iter().find(|helper| helper.privileged).or(found.first()).cloned()
}

fn helper(path: &Path) -> Option<MapHelper> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
        return None;
    }
    let set_uid = metadata.mode() & 0o4000 != 0 && metadata.uid() == 0;
    Some(MapHelper { path: HostPath::new(path), privileged: set_uid || has_file_capabilities(path) })
}

fn has_file_capabilities(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    starter::sys::has_xattr(&path, c"security.capability")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(file: &str, expected: &[(u32, u32)]) {
        let ranges = find_ranges(file.as_bytes(), b"ada", 1000);
        assert_eq!(ranges.iter().map(|range| (range.first, range.count)).collect::<Vec<_>>(), expected, "{file}");
    }

    #[test]
    fn ranges_are_found_by_name_and_by_number_in_any_size() {
        check("bob:1:1\nada:100000:65536\n1000:300000:5\nada:7:1", &[(100_000, 65536), (300_000, 5), (7, 1)]);
        check("  ada:1:2  \n", &[(1, 2)]);
    }

    #[test]
    fn lines_that_give_nothing_are_left_out() {
        check("", &[]);
        check("ada:100000\nada:x:1\nada:1:0\nada:-1:5\nada:1:2:3\n#ada:1:2\nadam:1:2\n10000:1:2", &[]);
    }

    #[test]
    fn a_range_ends_before_the_number_that_is_no_id() {
        check("ada:4294967290:4", &[(4_294_967_290, 4)]);
        check("ada:4294967290:5\nada:4294967295:1\nada:1:99999999999", &[]);
    }

    #[test]
    fn more_ranges_than_a_map_takes_are_not_read() {
        assert_eq!(find_ranges("ada:1:1\n".repeat(1000).as_bytes(), b"ada", 1000).len(), RANGES_MAX);
    }

    #[test]
    fn getsubids_is_read_line_by_line() {
        let expected = [IdRange { first: 100_000, count: 65536 }, IdRange { first: 9, count: 1 }];
        assert_eq!(parse_getsubids(b"0: ada 100000 65536\n1: ada 9 1\nError fetching ranges\n"), expected);
    }
}
