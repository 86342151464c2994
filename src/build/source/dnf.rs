//! `Bootstrap: dnf` and `yum`: what is made of RPM packages, by this machine's dnf or yum.

use super::host_tool::{self, ToolError, line};
use super::{Fetching, Root};
use crate::build::{BuildError, Note};
use crate::def::Header;
use std::path::Path;

const AGENT: &str = "dnf";
const PROGRAMS: &[&str] = &["dnf", "dnf5", "yum"];
const PACKAGES: &str = "`apt install dnf`, `zypper install dnf` or `dnf install dnf`";

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dnf {
    version: Option<String>,
    mirror: String,
    update: Option<String>,
    include: Vec<String>,
    /// `Setopt:`: options of dnf's configuration.
    options: Vec<String>,
}

impl Dnf {
    pub(super) fn of(header: &Header) -> Result<Self, BuildError> {
        let mirror = host_tool::address(AGENT, "MirrorURL", header)?;
        let options = host_tool::words(header, "setopt");
        if let Some(value) = options.iter().find(|option| !option.contains('=')) {
            let (key, value, why) = ("Setopt", value.clone(), "`NAME=VALUE` is expected");
            return Err(ToolError::Header { agent: AGENT, key, value, why }.into());
        }
        Ok(Self {
            version: header.get("osversion").map(str::to_owned),
            mirror: mirror.ok_or(BuildError::HeaderLacks { agent: header.agent(), key: "MirrorURL" })?,
            update: host_tool::address(AGENT, "UpdateURL", header)?,
            include: host_tool::words(header, "include"),
            options,
        })
    }

    pub(in crate::build) fn fetch(&self, fetching: &mut Fetching) -> Result<Root, BuildError> {
        let program = host_tool::find(AGENT, PROGRAMS, PACKAGES)?;
        let key = std::env::var("GPG").ok().filter(|key| !key.is_empty());
        if key.is_none() {
            let warning = "no signature of a package is looked at: the variable GPG names no key";
            (fetching.say)(Note::Warning(warning));
        }
        host_tool::fill(AGENT, fetching, |root, work| self.script(&program, key.as_deref(), root, work))
    }

    /// dnf's configuration: two repositories and nothing of this machine's.
    fn configuration(&self, key: Option<&str>) -> String {
        let checks = u8::from(key.is_some());
        let key = key.map(|key| format!("gpgkey={key}\n")).unwrap_or_default();
        let repository = |name: &str, address: &str| {
            // A list of mirrors is told by its address.
            let form = ["mirrorlist", "metalink"].into_iter().find(|form| address.contains(form)).unwrap_or("baseurl");
            format!("[{name}]\nname={name}\n{form}={address}\nenabled=1\ngpgcheck={checks}\n{key}\n")
        };
        let update = self.update.as_deref().map(|address| repository("updates", address)).unwrap_or_default();
        let main = "[main]\nreposdir=/nonexistent\nplugins=0\nobsoletes=1\nkeepcache=0\ninstall_weak_deps=1\n\n";
        format!("{main}{}{update}", repository("base", &self.mirror))
    }

    fn script(&self, program: &Path, key: Option<&str>, root: &Path, work: &Path) -> String {
        let (root, program, home) = (root.display().to_string(), program.display().to_string(), work.display());
        let file = |name: &str| format!("{home}/{name}");
        let write =
            |name: &str, text: &str| line(&["printf", "%s", text]).trim_end().to_owned() + " >" + &line(&[&file(name)]);
        let mut text = host_tool::rpm_records(work);
        text += &write("dnf.conf", &self.configuration(key));
        let config = file("dnf.conf");
        let mut install = vec![program.as_str(), "-y", "-c", &config, "--installroot", &root];
        let version = self.version.as_ref().map(|version| format!("--releasever={version}"));
        install.extend(version.as_deref());
        let options: Vec<String> = self.options.iter().map(|option| format!("--setopt={option}")).collect();
        install.extend(options.iter().map(String::as_str));
        install.extend(["install", "/etc/redhat-release", "coreutils"]);
        install.extend(self.include.iter().map(String::as_str));
        text += &line(&install);
        for name in [
            "/var/cache/dnf",
            "/var/cache/yum",
            "/var/log/dnf.log",
            "/var/log/dnf.librepo.log",
            "/var/log/dnf.rpm.log",
            "/var/log/hawkey.log",
        ] {
            text += &line(&["rm", "-rf", &format!("{root}{name}")]);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::host_tool::tests::header;
    use super::*;

    #[test]
    fn packages_come_from_the_repositories_of_the_header_alone() {
        let dnf = Dnf::of(&header(
            "Bootstrap: yum\nOSVersion: 9\nMirrorURL: http://a.example/%{OSVERSION}/os/\nUpdateURL: http://a.example/mirrorlist\n\
             Include: bash @core\nSetopt: keepcache=1\n",
        ));
        let dnf = dnf.expect("a header");
        let configuration = dnf.configuration(Some("http://a.example/KEY"));
        assert!(
            configuration
                .contains("baseurl=http://a.example/9/os/\nenabled=1\ngpgcheck=1\ngpgkey=http://a.example/KEY\n")
        );
        assert!(configuration.contains("mirrorlist=http://a.example/mirrorlist\n"));
        assert!(dnf.configuration(None).contains("gpgcheck=0\n"));
        let script = dnf.script(Path::new("/usr/bin/dnf"), None, Path::new("/w/root"), Path::new("/w"));
        let install = "'/usr/bin/dnf' '-y' '-c' '/w/dnf.conf' '--installroot' '/w/root' '--releasever=9' \
            '--setopt=keepcache=1' 'install' '/etc/redhat-release' 'coreutils' 'bash' '@core'\n";
        assert!(script.contains(install), "{script}");
    }

    #[test]
    fn a_header_without_a_mirror_is_an_error() {
        let check = |lines: &str, expected: &str| {
            let error = Dnf::of(&header(&format!("Bootstrap: dnf\n{lines}"))).expect_err("an error");
            assert_eq!(error.to_string(), expected);
        };
        check("OSVersion: 9\n", "the bootstrap agent `dnf` needs `MirrorURL:` in the header");
        let wrong = "the bootstrap agent `dnf` can't use `Setopt: x`: `NAME=VALUE` is expected";
        check("MirrorURL: http://a.example\nSetopt: x\n", wrong);
    }
}
