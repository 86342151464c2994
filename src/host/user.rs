//! Who calls: ids from the kernel, names from the files that hold them.
//!
//! The program may be static, so the C library's name service is not used. A user is looked up in `/etc/passwd`, then
//! (sites with LDAP, SSSD or NIS) by the host's `getent`, then made from the environment: an unknown uid is no error.
//! Groups likewise, if the user is one of the name service; a group without a name is only a number.
//!
//! ```text
//! /etc/passwd   name:password:uid:gid:gecos:home:shell
//! /etc/group    name:password:gid:member,member
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStringExt;

use nix::unistd::{getgid, getgroups, getuid};
use starter::paths::HostPath;

use super::facts::{EntrySource, User, UserEntry};
use super::name_service::{self, Question};

/// Bytes of one line that are read at most: a group can have many members.
const LINE_MAX: u64 = 16 << 20;

/// Looks the caller up.
pub fn observe() -> User {
    let uid = getuid().as_raw();
    let gid = getgid().as_raw();
    let mut groups: Vec<u32> = Vec::new();
    let mut wanted = vec![gid];
    for group in getgroups().unwrap_or_default().iter().map(|group| group.as_raw()) {
        // A user can be in 65,536 groups; those lists come sorted, so the neighbour tells of a repetition.
        if groups.last() != Some(&group) {
            groups.push(group);
            wanted.push(group);
        }
    }
    wanted.sort_unstable();
    wanted.dedup();

    let from_file = File::open("/etc/passwd").ok().and_then(|file| find_user(BufReader::new(file), uid));
    let mut group_names = match File::open("/etc/group") {
        Ok(file) => find_groups(BufReader::with_capacity(32 << 10, file), &wanted),
        Err(_) => BTreeMap::new(),
    };
    let unnamed: Vec<u32> = wanted.iter().copied().filter(|gid| !group_names.contains_key(gid)).collect();

    let asked = (from_file.is_none() && name_service::serves("passwd")).then(|| {
        let deadline = name_service::deadline();
        // A local user's groups are local as a rule, and one without a name is no reason to start a program.
        let groups = (!unnamed.is_empty()).then(|| Question::ask("getent", &question("group", &unnamed), deadline));
        (Question::ask("getent", &question("passwd", &[uid]), deadline), groups.flatten())
    });
    let (asked_user, asked_groups) = asked.unwrap_or_default();
    let (entry, entry_source) = match from_file {
        Some(entry) => (entry, EntrySource::PasswordFile),
        None => match asked_user.and_then(|question| find_user(&question.answer()[..], uid)) {
            Some(entry) => (entry, EntrySource::NameService),
            None => (entry_from_environment(uid, &|name| std::env::var_os(name)), EntrySource::Environment),
        },
    };
    if let Some(question) = asked_groups {
        group_names.extend(find_groups(&question.answer()[..], &unnamed));
    }
    User { uid, gid, groups, entry, entry_source, group_names }
}

fn question(database: &str, ids: &[u32]) -> Vec<String> {
    // The kernel takes 128 KiB and more of arguments; beyond this many groups the rest stay numbers.
    [database.to_owned()].into_iter().chain(ids.iter().take(4096).map(u32::to_string)).collect()
}

/// Returns the first entry of `uid` in a password file.
pub fn find_user(file: impl BufRead, uid: u32) -> Option<UserEntry> {
    find_line(file, |line| {
        let fields: Vec<&[u8]> = line.split(|&b| b == b':').collect();
        let &[name, _, id, _, gecos, home, shell] = fields.as_slice() else { return None };
        if number(id) != Some(uid) || name.is_empty() {
            return None;
        }
        // login(1) takes an empty home for the root directory and an empty shell for the Bourne shell.
        let home = HostPath::from_bytes(if home.is_empty() { b"/" } else { home });
        let shell = if shell.is_empty() { b"/bin/sh" } else { shell };
        Some(UserEntry { name: name.to_vec(), gecos: gecos.to_vec(), home, shell: shell.to_vec() })
    })
}

/// Returns the names of those of `gids` (sorted) that a group file knows, in one pass that ends with the last of them.
pub fn find_groups(file: impl BufRead, gids: &[u32]) -> BTreeMap<u32, Vec<u8>> {
    let mut names = BTreeMap::new();
    find_line(file, |line| {
        let mut fields = line.splitn(4, |&b| b == b':');
        let (Some(name), Some(_), Some(gid)) = (fields.next(), fields.next(), fields.next()) else { return None };
        let gid = number(gid)?;
        if !name.is_empty() && gids.binary_search(&gid).is_ok() {
            names.entry(gid).or_insert_with(|| name.to_vec());
        }
        (names.len() == gids.len()).then_some(())
    });
    names
}

/// Feeds the lines of `file` to `found` until it has an answer. A line that can't be read ends the search.
pub(super) fn find_line<T>(mut file: impl BufRead, mut found: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
    let mut line = Vec::new();
    loop {
        line.clear();
        match file.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        // A comment, and the `+` and `-` lines of NIS compatibility, describe no one.
        if matches!(line.first(), Some(b'#' | b'+' | b'-')) {
            continue;
        }
        if let Some(answer) = found(line.strip_suffix(b"\n").unwrap_or(&line)) {
            return Some(answer);
        }
    }
}

/// Reads a decimal number of 32 bits.
pub(super) fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Makes an entry for a uid that nobody knows. Values that would break a line of the password file are not used.
fn entry_from_environment(uid: u32, variable: &dyn Fn(&str) -> Option<OsString>) -> UserEntry {
    let value = |name: &str| {
        let bytes = variable(name)?.into_vec();
        let fits = !bytes.is_empty() && !bytes.iter().any(|b| matches!(b, b':' | b'\n'));
        fits.then_some(bytes)
    };
    let absolute = |name: &str| value(name).filter(|path| path.first() == Some(&b'/'));
    UserEntry {
        name: value("USER").or_else(|| value("LOGNAME")).unwrap_or_else(|| format!("user{uid}").into_bytes()),
        gecos: Vec::new(),
        home: HostPath::from_bytes(&absolute("HOME").unwrap_or_else(|| b"/".to_vec())),
        shell: absolute("SHELL").unwrap_or_else(|| b"/bin/sh".to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n# ada:x:1000:1:no::\n+::::::\nbad line\n\
        ada:x:1000:1000:Ada Lovelace,,,:/home/ada:/bin/zsh\nada2:x:1000:1:second:/x:/y\nbare:x:7:7:::";

    #[test]
    fn the_first_line_of_a_uid_counts() {
        let ada = find_user(PASSWD, 1000).unwrap();
        assert_eq!((&ada.name[..], &ada.gecos[..]), (&b"ada"[..], &b"Ada Lovelace,,,"[..]));
        assert_eq!((ada.home.as_bytes(), &ada.shell[..]), (&b"/home/ada"[..], &b"/bin/zsh"[..]));
    }

    #[test]
    fn empty_fields_get_their_meaning_and_a_missing_newline_does_not_matter() {
        let bare = find_user(PASSWD, 7).unwrap();
        assert_eq!((bare.home.as_bytes(), &bare.shell[..]), (&b"/"[..], &b"/bin/sh"[..]));
    }

    #[test]
    fn an_unknown_uid_has_no_entry() {
        assert_eq!(find_user(PASSWD, 4242), None);
        assert_eq!(find_user(&b""[..], 0), None);
    }

    #[test]
    fn groups_are_found_in_one_pass_and_the_first_name_counts() {
        let file = b"root:x:0:\nadm:x:4:a,b\nusers:x:100:\nusers2:x:100:\nodd\n:x:5:\nbig:x:99999999999:\n";
        let names = find_groups(&file[..], &[4, 5, 100, 300]);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), [(4, b"adm".to_vec()), (100, b"users".to_vec())]);
    }

    #[test]
    fn the_search_for_groups_ends_with_the_last_of_them() {
        let mut file = &b"a:x:1:\nb:x:2:\nc:x:3:\n"[..];
        assert_eq!(find_groups(&mut file, &[2]).len(), 1);
        assert_eq!(file, b"c:x:3:\n");
    }

    #[test]
    fn an_unknown_user_is_made_from_the_environment() {
        let entry = entry_from_environment(77, &|name| match name {
            "HOME" => Some("/scratch/ci".into()),
            "LOGNAME" => Some("runner".into()),
            _ => None,
        });
        assert_eq!((&entry.name[..], entry.home.as_bytes()), (&b"runner"[..], &b"/scratch/ci"[..]));
        assert_eq!(entry.shell, b"/bin/sh");
    }

    #[test]
    fn values_that_would_break_a_password_line_are_not_used() {
        let entry = entry_from_environment(77, &|name| match name {
            "HOME" => Some("relative".into()),
            "USER" => Some("eve:x:0:0".into()),
            "SHELL" => Some("/bin/sh\nroot".into()),
            _ => None,
        });
        assert_eq!((&entry.name[..], entry.home.as_bytes()), (&b"user77"[..], &b"/"[..]));
        assert_eq!(entry.shell, b"/bin/sh");
    }

    #[test]
    fn the_caller_is_always_somebody() {
        let user = observe();
        assert!(!user.entry.name.is_empty());
        assert_eq!(user.uid, getuid().as_raw());
    }
}
