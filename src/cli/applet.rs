//! The name that sifu was called by, and what it changes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// A name that sifu answers to. Any other name (a link of the user's own) is [`Applet::Sifu`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Applet {
    #[default]
    Sifu,
    Apptainer,
    Singularity,
    /// What a SIF file names in its first line: `run` with warnings and errors only.
    RunSingularity,
    /// The name of an OCI runtime: `oci`.
    Oci,
}

impl Applet {
    /// Reads the applet from `argv[0]`: only its last part counts.
    pub fn from_argv0(argv0: &OsStr) -> Self {
        let name = argv0.as_bytes();
        match name.rsplit(|&byte| byte == b'/').next().unwrap_or(name) {
            b"apptainer" => Self::Apptainer,
            b"singularity" => Self::Singularity,
            b"run-singularity" => Self::RunSingularity,
            b"sifu-oci" => Self::Oci,
            _ => Self::Sifu,
        }
    }

    /// Returns the name to use in usage lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sifu => "sifu",
            Self::Apptainer => "apptainer",
            Self::Singularity => "singularity",
            Self::RunSingularity => "run-singularity",
            Self::Oci => "sifu",
        }
    }

    /// Returns the words that stand before the user's own.
    pub fn leading_words(self) -> &'static [&'static str] {
        match self {
            Self::RunSingularity => &["--quiet", "run"],
            Self::Oci => &["oci"],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_part_of_the_path_counts() {
        for (argv0, applet) in [
            ("sifu", Applet::Sifu),
            ("/usr/bin/apptainer", Applet::Apptainer),
            ("./singularity", Applet::Singularity),
            ("run-singularity", Applet::RunSingularity),
            ("/usr/local/bin/sifu-oci", Applet::Oci),
            ("/opt/apptainer/bin/other", Applet::Sifu),
            ("apptainer/", Applet::Sifu),
            ("", Applet::Sifu),
        ] {
            assert_eq!(Applet::from_argv0(OsStr::new(argv0)), applet, "{argv0}");
        }
    }
}
