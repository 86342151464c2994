//! `Bootstrap: arch`: Arch Linux, by this machine's pacman.

use super::host_tool::{self, ToolError, line};
use super::{Fetching, Root};
use crate::build::BuildError;
use crate::def::Header;
use crate::sif::Arch;
use std::path::Path;

const AGENT: &str = "arch";
const PACKAGES: &str = "`apt install pacman-package-manager` or `dnf install pacman`";

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchLinux {
    /// The configuration of pacman: a file; this machine's own if it is not said.
    configuration: String,
    include: Vec<String>,
}

impl ArchLinux {
    pub(super) fn of(header: &Header) -> Result<Self, BuildError> {
        let configuration = match header.get("confurl") {
            None => "/etc/pacman.conf".to_owned(),
            Some(value) => match value.strip_prefix("file://").unwrap_or(value) {
                path if path.starts_with('/') => path.to_owned(),
                _ => {
                    let (key, value, why) = ("ConfURL", value.to_owned(), "a file of this machine is expected");
                    return Err(ToolError::Header { agent: AGENT, key, value, why }.into());
                }
            },
        };
        Ok(Self { configuration, include: host_tool::words(header, "include") })
    }

    pub(in crate::build) fn fetch(&self, fetching: &mut Fetching) -> Result<Root, BuildError> {
        if Arch::host() != Arch::Amd64 {
            return Err(ToolError::Architecture { agent: AGENT }.into());
        }
        let program = host_tool::find(AGENT, &["pacman"], PACKAGES)?;
        host_tool::fill(AGENT, fetching, |root, work| self.script(&program, root, work))
    }

    fn script(&self, program: &Path, root: &Path, work: &Path) -> String {
        let (program, root, work) = (program.display(), root.display(), work.display());
        let mut text = line(&["mkdir", "-p", &format!("{root}/var/lib/pacman"), &format!("{work}/packages")]);
        let (program, root) = (program.to_string(), root.to_string());
        let cache = format!("{work}/packages");
        let mut install =
            vec![program.as_str(), "--root", &root, "--config", &self.configuration, "--cachedir", &cache];
        install.extend(["--noconfirm", "-Sy", "base"]);
        install.extend(self.include.iter().map(String::as_str));
        text += &line(&install);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::host_tool::tests::header;
    use super::*;

    #[test]
    fn packages_are_installed_into_the_root() {
        let arch = ArchLinux::of(&header("Bootstrap: arch\nInclude: vim\n")).expect("a header");
        let script = arch.script(Path::new("/usr/bin/pacman"), Path::new("/w/root"), Path::new("/w"));
        let expected = "'mkdir' '-p' '/w/root/var/lib/pacman' '/w/packages'\n\
            '/usr/bin/pacman' '--root' '/w/root' '--config' '/etc/pacman.conf' '--cachedir' '/w/packages' '--noconfirm' \
            '-Sy' 'base' 'vim'\n";
        assert_eq!(script, expected);
        assert!(ArchLinux::of(&header("Bootstrap: arch\nConfURL: https://a.example/x\n")).is_err());
    }
}
