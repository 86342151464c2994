//! What a call does to the record of a file: judgement only, from what is known to what is to be remembered.

use super::identity::Identity;
use crate::remembered::{Device, Record};
use nix::errno::Errno;
use nix::libc;

/// Kind and permissions, owners and device number of a file, as the process is to see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
}

const SET_IDS: u32 = libc::S_ISUID | libc::S_ISGID;

impl Seen {
    /// What is seen of a file that the file system shows as `self`, given what is remembered of it.
    pub(super) fn with(self, record: Option<&Record>) -> Self {
        let Some(record) = record else { return self };
        let permissions = record.mode.map_or(self.mode & 0o7777, u32::from);
        let (kind, rdev) = match record.device {
            Some(Device::Char(number)) => (libc::S_IFCHR, number),
            Some(Device::Block(number)) => (libc::S_IFBLK, number),
            None => (self.mode & libc::S_IFMT, self.rdev),
        };
        Self {
            mode: kind | permissions,
            uid: record.uid.unwrap_or(self.uid),
            gid: record.gid.unwrap_or(self.gid),
            rdev,
        }
    }

    pub(super) fn is_directory(self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    pub(super) fn is_symlink(self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFLNK
    }

    /// Whether new files in this directory get its group.
    pub(super) fn passes_group_on(self) -> bool {
        self.is_directory() && self.mode & libc::S_ISGID != 0
    }
}

/// An attribute that only the records can hold.
pub(super) const CAPABILITIES: &[u8] = b"security.capability";

/// Whether a process may give a file that it sees as `seen` these owners.
pub(super) fn may_change_owner(
    identity: &Identity,
    seen: Seen,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<(), Errno> {
    if identity.is_root() || (uid.is_none() && gid.is_none()) {
        return Ok(());
    }
    let owns = identity.user.filesystem == seen.uid;
    let keeps_owner = uid.is_none_or(|uid| uid == seen.uid);
    let may_group = gid.is_none_or(|gid| gid == seen.gid || identity.in_group(gid));
    if owns && keeps_owner && may_group { Ok(()) } else { Err(Errno::EPERM) }
}

/// The record after `chown`; `native` is what the file system shows after the call.
pub(super) fn owned(mut record: Record, native: Seen, uid: Option<u32>, gid: Option<u32>) -> Record {
    let differing = |wanted: u32, native: u32| Some(wanted).filter(|&wanted| wanted != native);
    if let Some(uid) = uid {
        record.uid = differing(uid, native.uid);
    }
    if let Some(gid) = gid {
        record.gid = differing(gid, native.gid);
    }
    if !native.is_directory() && (uid.is_some() || gid.is_some()) {
        // As the kernel does it, for root too: a program of somebody else is not to keep its rights.
        record.xattrs.remove(CAPABILITIES);
        record.mode = record.mode.map(|mode| mode & !without_set_ids(mode)).filter(|&mode| !same_mode(mode, native));
    }
    record
}

/// The bits that a change of owner takes from `mode`: set-group-id only where it means that.
fn without_set_ids(mode: u16) -> u16 {
    let executable = u32::from(mode) & libc::S_IXGRP != 0;
    (if executable { SET_IDS } else { libc::S_ISUID }) as u16
}

fn same_mode(mode: u16, native: Seen) -> bool {
    u32::from(mode) == native.mode & 0o7777
}

/// The record after `chmod` to `mode`; `native` is what the file system shows after the call.
pub(super) fn permitted(mut record: Record, native: Seen, mode: u32) -> Record {
    let mode = (mode & 0o7777) as u16;
    record.mode = Some(mode).filter(|&mode| !same_mode(mode, native));
    record
}

/// Owner and group of a file that `identity` makes in a directory that it sees as `directory`.
pub(super) fn owners_of_new(identity: &Identity, directory: Seen) -> (u32, u32) {
    let gid = if directory.passes_group_on() { directory.gid } else { identity.group.filesystem };
    (identity.user.filesystem, gid)
}

/// How an extended attribute is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// The records alone: the kernel gives it to the real root only, or in another form.
    Records,
    /// The file system, and the records where it refuses.
    FileSystemFirst,
    /// The kernel alone.
    Kernel,
}

pub(super) fn keeper(name: &[u8]) -> Keeper {
    if name == CAPABILITIES || name.starts_with(b"trusted.") {
        Keeper::Records
    } else if name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") {
        Keeper::FileSystemFirst
    } else {
        Keeper::Kernel
    }
}

/// Longest value of an extended attribute (`XATTR_SIZE_MAX`).
pub(super) const MAX_XATTR_BYTES: u64 = 1 << 16;
/// The most that the attributes of one file may take in the records.
const MAX_XATTRS_BYTES: usize = 1 << 20;

/// The record after an extended attribute was set, with the flags of `setxattr`.
pub(super) fn with_xattr(mut record: Record, name: &[u8], value: &[u8], flags: u64) -> Result<Record, Errno> {
    let there = record.xattrs.contains_key(name);
    if flags & libc::XATTR_CREATE as u64 != 0 && there {
        return Err(Errno::EEXIST);
    }
    if flags & libc::XATTR_REPLACE as u64 != 0 && !there {
        return Err(Errno::ENODATA);
    }
    record.xattrs.insert(name.into(), value.into());
    let total: usize = record.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > MAX_XATTRS_BYTES { Err(Errno::ENOSPC) } else { Ok(record) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Seen = Seen { mode: 0o100_644, uid: 0, gid: 0, rdev: 0 };
    const DIRECTORY: Seen = Seen { mode: 0o040_755, ..FILE };

    fn user(uid: u32, gid: u32) -> Identity {
        let mut identity = Identity::default();
        identity.user.effective = uid;
        identity.user.filesystem = uid;
        identity.group.filesystem = gid;
        identity
    }

    #[test]
    fn a_new_owner_is_remembered_until_it_is_what_the_file_system_has() {
        let record = owned(Record::default(), FILE, Some(33), Some(34));
        assert_eq!(FILE.with(Some(&record)), Seen { uid: 33, gid: 34, ..FILE });
        let record = owned(record, FILE, Some(0), None);
        assert_eq!(FILE.with(Some(&record)), Seen { gid: 34, ..FILE });
        assert!(owned(record, FILE, None, Some(0)).is_empty());
    }

    #[test]
    fn a_new_owner_takes_set_id_bits_and_capabilities_of_files() {
        let mut record = Record { mode: Some(0o6755), ..Record::default() };
        record.xattrs.insert(CAPABILITIES.into(), b"cap".as_slice().into());
        let after = owned(record.clone(), FILE, Some(33), None);
        assert_eq!((after.mode, after.xattrs.len()), (Some(0o755), 0));
        let lock = Record { mode: Some(0o2644), ..Record::default() };
        assert_eq!(owned(lock, FILE, Some(33), None).mode, Some(0o2644), "a mark, not a right");
        let after = owned(record, DIRECTORY, Some(33), None);
        assert_eq!((after.mode, after.xattrs.len()), (Some(0o6755), 1));
    }

    #[test]
    fn a_mode_is_remembered_where_the_file_system_lost_bits() {
        let record = permitted(Record::default(), FILE, 0o2644);
        assert_eq!(FILE.with(Some(&record)).mode, 0o102_644);
        assert!(permitted(record, FILE, 0o644).is_empty());
    }

    #[test]
    fn a_device_is_seen_in_the_place_of_a_file() {
        let record = Record { device: Some(Device::Char(0x103)), ..Record::default() };
        let seen = FILE.with(Some(&record));
        assert_eq!((seen.mode, seen.rdev), (0o020_644, 0x103));
    }

    fn check_chown(identity: &Identity, owner: u32, uid: Option<u32>, gid: Option<u32>, expected: Result<(), Errno>) {
        let seen = Seen { uid: owner, gid: owner, ..FILE };
        assert_eq!(may_change_owner(identity, seen, uid, gid), expected, "{identity:?} {uid:?} {gid:?}");
    }

    #[test]
    fn only_root_gives_files_away() {
        check_chown(&user(0, 0), 33, Some(5), Some(5), Ok(()));
        check_chown(&user(33, 33), 33, Some(5), None, Err(Errno::EPERM));
        check_chown(&user(33, 33), 33, Some(33), None, Ok(()));
        check_chown(&user(33, 40), 33, None, Some(40), Ok(()));
        check_chown(&user(33, 40), 33, None, Some(41), Err(Errno::EPERM));
        check_chown(&user(33, 40), 5, None, Some(40), Err(Errno::EPERM));
    }

    #[test]
    fn new_files_get_the_group_of_a_directory_that_passes_it_on() {
        let shared = Seen { mode: 0o042_775, gid: 50, ..DIRECTORY };
        assert_eq!(owners_of_new(&user(0, 0), shared), (0, 50));
        assert_eq!(owners_of_new(&user(33, 34), Seen { gid: 50, ..DIRECTORY }), (33, 34));
    }

    #[test]
    fn attributes_are_kept_where_they_can_be() {
        assert_eq!(keeper(b"security.capability"), Keeper::Records);
        assert_eq!(keeper(b"trusted.overlay.opaque"), Keeper::Records);
        assert_eq!(keeper(b"user.origin"), Keeper::FileSystemFirst);
        assert_eq!(keeper(b"security.selinux"), Keeper::Kernel);
    }

    #[test]
    fn attributes_are_made_and_replaced_as_the_flags_say() {
        let (create, replace) = (libc::XATTR_CREATE as u64, libc::XATTR_REPLACE as u64);
        assert_eq!(with_xattr(Record::default(), b"user.a", b"1", replace), Err(Errno::ENODATA));
        let record = with_xattr(Record::default(), b"user.a", b"1", create).unwrap();
        assert_eq!(with_xattr(record.clone(), b"user.a", b"2", create), Err(Errno::EEXIST));
        assert_eq!(&*with_xattr(record, b"user.a", b"2", replace).unwrap().xattrs[&b"user.a"[..]], b"2");
        let large = vec![0; MAX_XATTRS_BYTES];
        assert_eq!(with_xattr(Record::default(), b"user.a", &large, 0), Err(Errno::ENOSPC));
    }
}
