//! `/etc/passwd` and `/etc/group` as the container shows them: the image's, with the caller added.

use crate::host::facts::User;
use starter::paths::ContainerPath;

/// Who the caller is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside<'a> {
    pub user: &'a User,
    pub uid: u32,
    pub gid: u32,
    pub home: &'a ContainerPath,
}

/// The image's password file with the caller's line in place of those that have its uid or its name.
pub fn passwd(image: &[u8], inside: &Inside) -> Vec<u8> {
    let root = inside.uid == 0 && inside.user.uid != 0;
    let entry = &inside.user.entry;
    let (name, gecos): (&[u8], &[u8]) = if root { (b"root", b"root") } else { (&entry.name, &entry.gecos) };
    let shell = if entry.shell.is_empty() { &b"/bin/sh"[..] } else { &entry.shell };
    let line = [
        name,
        b":x:",
        inside.uid.to_string().as_bytes(),
        b":",
        inside.gid.to_string().as_bytes(),
        b":",
        gecos,
        b":",
        inside.home.as_bytes(),
        b":",
        shell,
    ]
    .concat();
    let uid = inside.uid.to_string();
    let mut file = Vec::with_capacity(image.len() + line.len() + 2);
    for old in image.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        let mut fields = old.split(|&b| b == b':');
        let (old_name, old_uid) = (fields.next(), fields.nth(1));
        if old_name != Some(name) && old_uid != Some(uid.as_bytes()) {
            file.extend_from_slice(old);
            file.push(b'\n');
        }
    }
    file.extend_from_slice(&clean(&line));
    file.push(b'\n');
    file
}

/// The image's group file with those of the caller's groups that it lacks.
pub fn group(image: &[u8], inside: &Inside) -> Vec<u8> {
    let mut file = image.to_vec();
    if file.last().is_some_and(|&last| last != b'\n') {
        file.push(b'\n');
    }
    let user = inside.user;
    let has = |file: &[u8], gid: u32| {
        let gid = gid.to_string();
        file.split(|&b| b == b'\n').any(|line| line.split(|&b| b == b':').nth(2) == Some(gid.as_bytes()))
    };
    let mut groups = vec![(inside.gid, if inside.gid == user.gid { user.gid } else { 0 })];
    groups.extend(user.groups.iter().map(|&gid| (gid, gid)));
    for (gid, named) in groups {
        if has(&file, gid) {
            continue;
        }
        let unknown = named.to_string().into_bytes();
        let name = if gid == 0 { b"root" } else { user.group_names.get(&named).unwrap_or(&unknown).as_slice() };
        let line = [name, b":x:", gid.to_string().as_bytes(), b":", user.entry.name.as_slice()].concat();
        file.extend_from_slice(&clean(&line));
        file.push(b'\n');
    }
    file
}

/// A name service may hold anything; a line must stay one line.
fn clean(line: &[u8]) -> Vec<u8> {
    line.iter().copied().filter(|&b| b != b'\n' && b != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::laptop;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\nada:x:99:99::/:/bin/false\ndaemon:x:1:1::/:/bin/sh\n";

    fn inside(uid: u32, gid: u32, check: impl FnOnce(&Inside)) {
        let user = laptop().user;
        let home = ContainerPath::fixed("/home/ada");
        check(&Inside { user: &user, uid, gid, home: &home });
    }

    #[test]
    fn the_callers_line_replaces_those_of_the_same_name_or_id() {
        inside(1000, 1000, |inside| {
            let file = String::from_utf8(passwd(PASSWD, inside)).unwrap();
            let expected = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/bin/sh\nada:x:1000:1000:Ada Lovelace:/home/ada:/bin/bash\n";
            assert_eq!(file, expected);
        });
    }

    #[test]
    fn a_root_of_a_user_namespace_is_called_root() {
        inside(0, 0, |inside| {
            let file = String::from_utf8(passwd(PASSWD, inside)).unwrap();
            assert!(file.ends_with("root:x:0:0:root:/home/ada:/bin/bash\n"), "{file}");
            assert_eq!(file.matches("root:x:0").count(), 1);
        });
    }

    #[test]
    fn groups_that_the_image_has_are_not_repeated() {
        inside(1000, 1000, |inside| {
            let file = String::from_utf8(group(b"root:x:0:\nusers:x:100:", inside)).unwrap();
            assert_eq!(file, "root:x:0:\nusers:x:100:\nada:x:1000:ada\nsudo:x:27:ada\n");
        });
    }
}
