//! Whether an image will fit where it is made, judged before the work begins.
//!
//! How far contents compress is known by a sample alone, so a build is refused only when the sample leaves no doubt.

use super::error::BuildError;
use crate::squashfs::write::{self, PackOptions};
use crate::tree::{Body, Tree};
use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{getegid, geteuid};
use starter::sys::QuotaKind;
use std::os::fd::AsFd;

/// What is left for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// What the user's quota leaves, where there is one and the kernel tells.
    pub quota_bytes: Option<u64>,
}

impl Room {
    pub fn bytes(self) -> u64 {
        self.quota_bytes.map_or(self.free_bytes, |quota| quota.min(self.free_bytes))
    }
}

/// Asks the file system of the open directory.
pub(super) fn observe(directory: impl AsFd) -> Result<Room, Errno> {
    let stat = fstatvfs(&directory)?;
    // The types differ between architectures.
    let free_bytes = (stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64);
    let kinds = [(QuotaKind::User, geteuid().as_raw()), (QuotaKind::Group, getegid().as_raw())];
    let quotas = kinds.into_iter().filter_map(|(kind, id)| starter::sys::quota(directory.as_fd(), kind, id).ok());
    let left = quotas.filter(|quota| quota.limit_bytes > 0);
    let quota_bytes = left.map(|quota| quota.limit_bytes.saturating_sub(quota.used_bytes)).min();
    Ok(Room { free_bytes, quota_bytes })
}

/// What the user is told of the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fits,
    MayNotFit { needed_bytes: u64, left_bytes: u64 },
    WillNotFit { needed_bytes: u64, left_bytes: u64 },
}

/// Compares `estimated_bytes` of an image with the room for it. Twice the room is beyond what a sample can be wrong by,
/// duplicates aside.
fn judge(estimated_bytes: u64, room: Room) -> Verdict {
    let (needed_bytes, left_bytes) = (estimated_bytes, room.bytes());
    if needed_bytes / 2 > left_bytes {
        Verdict::WillNotFit { needed_bytes, left_bytes }
    } else if needed_bytes.saturating_add(needed_bytes / 8) > left_bytes {
        Verdict::MayNotFit { needed_bytes, left_bytes }
    } else {
        Verdict::Fits
    }
}

/// Judges whether an image of `tree` fits. Contents are looked at only where they would not fit as they are.
pub(super) fn check(tree: &Tree, options: &PackOptions, room: Room) -> Result<Verdict, BuildError> {
    if content_bytes(tree) <= room.bytes() {
        return Ok(Verdict::Fits);
    }
    Ok(judge(write::estimate(tree, options)?, room))
}

fn content_bytes(tree: &Tree) -> u64 {
    let mut seen = vec![false; tree.inode_count()];
    let mut bytes = 0_u64;
    let mut walk = tree.walk();
    while let Some(id) = walk.next_entry() {
        if let Body::File(content) = tree.inode(id).body
            && !std::mem::replace(&mut seen[id.index()], true)
        {
            bytes = bytes.saturating_add(content.size_bytes());
        }
    }
    bytes
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(shift, _)| bytes >> shift >= 2);
    unit.map_or_else(|| format!("{bytes} bytes"), |(shift, name)| format!("{} {name}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_verdict(estimated: u64, free: u64, quota: Option<u64>, expected: Verdict) {
        assert_eq!(judge(estimated, Room { free_bytes: free, quota_bytes: quota }), expected);
    }

    #[test]
    fn a_build_is_refused_when_there_is_no_doubt_alone() {
        check_verdict(1000, 1125, None, Verdict::Fits);
        check_verdict(1000, 1124, None, Verdict::MayNotFit { needed_bytes: 1000, left_bytes: 1124 });
        check_verdict(1000, 500, None, Verdict::MayNotFit { needed_bytes: 1000, left_bytes: 500 });
        check_verdict(1000, 499, None, Verdict::WillNotFit { needed_bytes: 1000, left_bytes: 499 });
        check_verdict(0, 0, None, Verdict::Fits);
    }

    #[test]
    fn a_quota_counts_where_it_leaves_less_than_the_file_system() {
        check_verdict(1000, 1 << 40, Some(100), Verdict::WillNotFit { needed_bytes: 1000, left_bytes: 100 });
        check_verdict(1000, 100, Some(1 << 40), Verdict::WillNotFit { needed_bytes: 1000, left_bytes: 100 });
    }

    #[test]
    fn sizes_have_the_largest_unit_that_says_enough() {
        assert_eq!([size(0), size(2047), size(2048)], ["0 bytes", "2047 bytes", "2 KiB"]);
        assert_eq!([size(1 << 30), size(3 << 40)], ["1024 MiB", "3 TiB"]);
    }

    #[test]
    fn a_directory_of_this_machine_has_room() {
        let room = observe(std::fs::File::open(std::env::temp_dir()).unwrap()).unwrap();
        assert!(room.free_bytes > 0);
    }
}
