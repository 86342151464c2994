//! The version, and the one that is told to scripts written for Apptainer.

use std::process::ExitCode;

use super::applet::Applet;
use super::flags::Said;
use super::print as print_text;
use crate::report::Failure;

/// sifu's own version.
const SIFU: &str = env!("CARGO_PKG_VERSION");

/// The version of Apptainer whose command line and behaviour sifu follows. Workflow tools and batch scripts run
/// `apptainer --version` or `singularity --version`, take the last word, and refuse what is older than 1.0 (or 2.4, or 3.5):
/// under these names the answer is about the command line that they are about to use.
const APPTAINER: &str = "1.4.5";

/// Prints what `version` prints: the number alone.
pub fn print(said: Said) -> Result<ExitCode, Failure> {
    print_text(&format!("{}\n", number(said.applet)))
}

/// Prints what `--version` prints: a name and the number.
pub fn print_long(applet: Applet) -> Result<ExitCode, Failure> {
    print_text(&long(applet))
}

fn number(applet: Applet) -> &'static str {
    match applet {
        Applet::Sifu | Applet::Oci => SIFU,
        Applet::Apptainer | Applet::Singularity | Applet::RunSingularity => APPTAINER,
    }
}

fn long(applet: Applet) -> String {
    // `singularity` of an Apptainer installation answers as Apptainer as well.
    let name = if matches!(applet, Applet::Sifu | Applet::Oci) { "sifu" } else { "apptainer" };
    format!("{name} version {}\n", number(applet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_for_apptainer_find_its_name_and_a_version_they_accept() {
        assert_eq!(long(Applet::Apptainer), "apptainer version 1.4.5\n");
        assert_eq!(long(Applet::Singularity), "apptainer version 1.4.5\n");
    }

    #[test]
    fn sifu_tells_its_own_version() {
        assert_eq!(long(Applet::Sifu), format!("sifu version {SIFU}\n"));
        assert_eq!(number(Applet::Sifu), SIFU);
    }
}
