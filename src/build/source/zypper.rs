//! `Bootstrap: zypper`: openSUSE, by this machine's zypper.

use super::host_tool::{self, ToolError, line};
use super::{Fetching, Root};
use crate::build::BuildError;
use crate::def::Header;
use std::path::Path;

const AGENT: &str = "zypper";
const PACKAGES: &str = "`apt install zypper` or `dnf install zypper`";

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zypper {
    version: Option<String>,
    /// Addresses of repositories and their names.
    repositories: Vec<(String, String)>,
    include: Vec<String>,
}

impl Zypper {
    pub(super) fn of(header: &Header) -> Result<Self, BuildError> {
        if header.get("product").is_some() {
            return Err(
                ToolError::NotThere { agent: AGENT, what: "the registration of a product (SUSEConnect)" }.into()
            );
        }
        let mirror = host_tool::address(AGENT, "MirrorURL", header)?;
        let mirror = mirror.ok_or(BuildError::HeaderLacks { agent: header.agent(), key: "MirrorURL" })?;
        let mut repositories = vec![(mirror, "repo".to_owned())];
        if let Some(update) = host_tool::address(AGENT, "UpdateURL", header)? {
            repositories.push((update, "repo-update".to_owned()));
        }
        let others = header.lines().filter_map(|(key, value)| Some((key.strip_prefix("otherurl")?, value)));
        repositories.extend(others.map(|(number, address)| (address.to_owned(), format!("repo-{number}"))));
        Ok(Self {
            version: header.get("osversion").map(str::to_owned),
            repositories,
            include: host_tool::words(header, "include"),
        })
    }

    pub(in crate::build) fn fetch(&self, fetching: &mut Fetching) -> Result<Root, BuildError> {
        let program = host_tool::find(AGENT, &["zypper"], PACKAGES)?;
        host_tool::fill(AGENT, fetching, |root, work| host_tool::rpm_records(work) + &self.script(&program, root))
    }

    fn script(&self, program: &Path, root: &Path) -> String {
        let (program, root) = (program.display().to_string(), root.display().to_string());
        let version = self.version.as_ref().map(|version| format!("--releasever={version}"));
        let mut zypper = vec![program.as_str(), "--root", &root, "--non-interactive", "--gpg-auto-import-keys"];
        zypper.extend(version.as_deref());
        let run = |words: &[&str]| line(&[&zypper, words].concat());
        let mut text = String::new();
        for (address, name) in &self.repositories {
            text += &run(&["addrepo", address, name]);
        }
        text += &run(&["refresh"]);
        let mut install = vec!["install", "--auto-agree-with-licenses", "--download-in-advance", "aaa_base"];
        install.extend(self.include.iter().map(String::as_str));
        text += &run(&install);
        text += &run(&["clean", "--all"]);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::host_tool::tests::header;
    use super::*;

    #[test]
    fn every_repository_of_the_header_is_added() {
        let zypper = Zypper::of(&header(
            "Bootstrap: zypper\nOSVersion: 15.6\nMirrorURL: http://a.example/%{OSVERSION}/oss/\nOtherURL1: http://b.example/\nInclude: vim\n",
        ));
        let script = zypper.expect("a header").script(Path::new("/usr/bin/zypper"), Path::new("/w/root"));
        let head =
            "'/usr/bin/zypper' '--root' '/w/root' '--non-interactive' '--gpg-auto-import-keys' '--releasever=15.6'";
        let expected = [
            "'addrepo' 'http://a.example/15.6/oss/' 'repo'",
            "'addrepo' 'http://b.example/' 'repo-1'",
            "'refresh'",
            "'install' '--auto-agree-with-licenses' '--download-in-advance' 'aaa_base' 'vim'",
            "'clean' '--all'",
        ];
        assert_eq!(script, expected.map(|words| format!("{head} {words}\n")).concat());
    }

    #[test]
    fn what_is_missing_in_the_header_is_named() {
        let of = |lines: &str| {
            Zypper::of(&header(&format!("Bootstrap: zypper\n{lines}"))).expect_err("an error").to_string()
        };
        assert_eq!(of("Include: x\n"), "the bootstrap agent `zypper` needs `MirrorURL:` in the header");
        assert!(of("Product: SLES\n").contains("SUSEConnect"));
    }
}
