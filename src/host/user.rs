//! Who calls: ids from the kernel, names from the files that hold them.
//!
//! The program may be static, so the C library's name service is not used. A user is looked up in `/etc/passwd`, then
//! (sites with LDAP, SSSD or NIS) by the host's `getent`, then made from the environment: an unknown uid is no error.
//! Groups likewise, and a group without a name is only a number.
//!
//! ```text
//! /etc/passwd   name:password:uid:gid:gecos:home:shell
//! /etc/group    name:password:gid:member,member
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getgid, getgroups, getuid};
use starter::paths::HostPath;

use super::facts::{EntrySource, User, UserEntry};

/// How long the host's name service may take. Beyond it a start goes on with what the files and the environment say:
/// a site whose LDAP is down still computes.
const NAME_SERVICE_TIME: Duration = Duration::from_millis(300);

/// Bytes of an answer of the name service that are read at most: a group can have many members.
const ANSWER_MAX: usize = 16 << 20;

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

    let mut service = NameService::new();
    let asked_user = from_file.is_none().then(|| service.ask("passwd", &[uid])).flatten();
    let asked_groups = if unnamed.is_empty() { None } else { service.ask("group", &unnamed) };
    let (entry, entry_source) = match from_file {
        Some(entry) => (entry, EntrySource::PasswordFile),
        None => match asked_user.map(|question| service.answer(question)).and_then(|text| find_user(&text[..], uid)) {
            Some(entry) => (entry, EntrySource::NameService),
            None => (entry_from_environment(uid, &|name| std::env::var_os(name)), EntrySource::Environment),
        },
    };
    if let Some(question) = asked_groups {
        group_names.extend(find_groups(&service.answer(question)[..], &unnamed));
    }
    User { uid, gid, groups, entry, entry_source, group_names }
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
fn find_line<T>(mut file: impl BufRead, mut found: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
    let mut line = Vec::new();
    loop {
        line.clear();
        match file.by_ref().take(ANSWER_MAX as u64).read_until(b'\n', &mut line) {
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

fn number(field: &[u8]) -> Option<u32> {
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

/// The host's name service, behind its own `getent`: questions run side by side, within one time limit.
struct NameService {
    program: Option<&'static str>,
    deadline: Option<Instant>,
}

struct Question {
    child: Child,
    answer: ChildStdout,
}

impl NameService {
    fn new() -> Self {
        // Fixed places, not the search path: the answer decides who the caller is.
        const PLACES: [&str; 3] = ["/usr/bin/getent", "/bin/getent", "/run/current-system/sw/bin/getent"];
        Self { program: PLACES.into_iter().find(|place| Path::new(place).exists()), deadline: None }
    }

    fn ask(&mut self, database: &str, ids: &[u32]) -> Option<Question> {
        // The kernel takes 128 KiB and more of arguments; beyond this many groups the rest stay numbers.
        let ids = ids.iter().take(4096).map(u32::to_string);
        let mut child = Command::new(self.program?)
            .arg(database)
            .args(ids)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        self.deadline.get_or_insert_with(|| Instant::now() + NAME_SERVICE_TIME);
        let answer = child.stdout.take()?;
        Some(Question { child, answer })
    }

    /// Returns what was answered before the time ran out; lines that were complete by then count.
    fn answer(&self, mut question: Question) -> Vec<u8> {
        let mut text = Vec::new();
        let mut chunk = [0u8; 8192];
        while text.len() < ANSWER_MAX && wait_readable(&question.answer, self.deadline) {
            match question.answer.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(count) => text.extend_from_slice(&chunk[..count]),
            }
        }
        // No child may be left to the command that takes this process over. A kill is a no-op for one that has ended.
        let _ = question.child.kill();
        let _ = question.child.wait();
        text
    }
}

fn wait_readable(pipe: &ChildStdout, deadline: Option<Instant>) -> bool {
    let Some(left) = deadline.and_then(|deadline| deadline.checked_duration_since(Instant::now())) else {
        return false;
    };
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    matches!(poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout), Ok(ready) if ready > 0)
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
