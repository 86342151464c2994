//! Which way an image's root file system gets into the container: the first rung of the ladder that this host offers.
//!
//! ```text
//!   1  served      by the image server, through /dev/fuse       nothing is copied, starts in milliseconds
//!   2  unpacked    into a temporary directory                   takes time and space, and says so
//! ```
//!
//! A sandbox is its own directory, and needs no rung.

use super::diagnosis::{self, Diagnosis};
use crate::host::facts::{Attempt, FuseDevice, Switches};
use crate::image::facts::ImageKind;
use crate::report::Hint;
use std::fmt;

/// How the root gets into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountMethod {
    Served,
    /// The image is a directory.
    Directory,
    Unpacked {
        /// Why it can't be served; `None` when unpacking was asked for.
        instead: Option<FuseDevice>,
    },
}

/// Every rung, and why it can't be taken.
#[derive(Debug)]
pub struct NoMountMethod {
    /// Serving the image.
    pub served: Diagnosis,
}

impl fmt::Display for NoMountMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; and --strict forbids unpacking the image instead", self.served)
    }
}

impl std::error::Error for NoMountMethod {}

impl Hint for NoMountMethod {
    fn hints(&self) -> Vec<String> {
        let mut hints = self.served.hints();
        hints.push("Leave --strict out to unpack the image into a temporary directory for this one start.".to_owned());
        hints
    }
}

/// What opening `/dev/fuse` would say, as an error of the system.
pub fn fuse_errno(fuse: FuseDevice) -> i32 {
    use super::diagnosis::errno::{EACCES, ENODEV, ENOENT, ENXIO};
    match fuse {
        FuseDevice::Missing | FuseDevice::NotObserved | FuseDevice::Usable => ENOENT,
        FuseDevice::Denied { .. } => EACCES,
        FuseDevice::NotADevice => ENODEV,
        FuseDevice::NoDriver => ENXIO,
        FuseDevice::Refused { errno } => errno,
    }
}

/// Chooses the rung. `switches` is asked for only where a rung is missing.
pub fn mount_method(
    kind: ImageKind,
    fuse: FuseDevice,
    unsquash: bool,
    strict: bool,
    switches: impl FnOnce() -> Switches,
) -> Result<MountMethod, NoMountMethod> {
    match kind {
        ImageKind::Sandbox => Ok(MountMethod::Directory),
        ImageKind::Sif | ImageKind::Squashfs if unsquash => Ok(MountMethod::Unpacked { instead: None }),
        ImageKind::Sif | ImageKind::Squashfs if fuse.may_work() => Ok(MountMethod::Served),
        ImageKind::Sif | ImageKind::Squashfs if strict => {
            Err(NoMountMethod { served: diagnosis::explain(Attempt::OpenFuse, fuse_errno(fuse), &switches(), fuse) })
        }
        ImageKind::Sif | ImageKind::Squashfs => Ok(MountMethod::Unpacked { instead: Some(fuse) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rung_that_is_there_is_taken() {
        let check = |kind, fuse, unsquash, expected| {
            let method = mount_method(kind, fuse, unsquash, false, Switches::default).unwrap();
            assert_eq!(method, expected, "{kind:?} {fuse:?} {unsquash}");
        };
        let missing = FuseDevice::Missing;
        check(ImageKind::Sif, FuseDevice::Usable, false, MountMethod::Served);
        check(ImageKind::Squashfs, FuseDevice::Usable, true, MountMethod::Unpacked { instead: None });
        check(ImageKind::Sif, missing, false, MountMethod::Unpacked { instead: Some(missing) });
        check(ImageKind::Sandbox, missing, true, MountMethod::Directory);
    }

    #[test]
    fn strict_takes_no_lower_rung_and_says_why_the_upper_one_is_missing() {
        let error = mount_method(ImageKind::Sif, FuseDevice::Missing, false, true, Switches::default).unwrap_err();
        assert!(error.to_string().contains("/dev/fuse"), "{error}");
        assert!(mount_method(ImageKind::Sif, FuseDevice::Missing, true, true, Switches::default).is_ok());
    }
}
