//! `Bootstrap: busybox`: one static program, and a name for everything that it can do.

use super::host_tool::{self, ToolError};
use super::{Fetching, Files, Root, debootstrap};
use crate::build::edit::Edit;
use crate::build::rootfs::Rootfs;
use crate::build::{BuildError, Note, sections};
use crate::def::Header;
use starter::paths::ContainerPath;
use std::collections::BTreeMap;

const AGENT: &str = "busybox";
/// Most bytes of the program; those that are handed out have one to two million.
const MAX_BYTES: u64 = 64 << 20;

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busybox {
    /// The address of the program itself.
    mirror: String,
}

impl Busybox {
    pub(super) fn of(header: &Header) -> Result<Self, BuildError> {
        let mirror = host_tool::address(AGENT, "MirrorURL", header)?;
        Ok(Self { mirror: mirror.ok_or(BuildError::HeaderLacks { agent: header.agent(), key: "MirrorURL" })? })
    }

    pub(in crate::build) fn fetch(&self, fetching: &mut Fetching) -> Result<Root, BuildError> {
        (fetching.say)(Note::Doing("Fetching busybox..."));
        if self.mirror.starts_with("http://") {
            let warning = "nothing protects what comes by http: use https for the MirrorURL, or a file";
            (fetching.say)(Note::Warning(warning));
        }
        let program = debootstrap::fetch_file(&self.mirror, MAX_BYTES)?;
        if !program.starts_with(b"\x7fELF") {
            let (key, value, why) = ("MirrorURL", self.mirror.clone(), "what is there is no program");
            return Err(ToolError::Header { agent: AGENT, key, value, why }.into());
        }
        let rootfs = Rootfs::open(&(fetching.directory)(fetching.builder)?)?;
        let file = |path, mode, content: &[u8]| Edit::File {
            path: ContainerPath::fixed(path),
            mode,
            content: content.to_vec(),
        };
        rootfs.apply(&[
            file("/bin/busybox", 0o755, &program),
            file("/etc/passwd", 0o644, b"root:!:0:0:root:/root:/bin/sh\n"),
            file("/etc/group", 0o644, b"root:x:0:\n"),
            file("/etc/hosts", 0o644, b"127.0.0.1   localhost\n"),
            file("/etc/resolv.conf", 0o644, b""),
        ])?;
        for name in ["/dev", "/proc", "/sys", "/tmp", "/var/tmp", "/root"] {
            let mode = if name.ends_with("tmp") { 0o1777 } else { 0o755 };
            rootfs.apply(&[Edit::Directory { path: ContainerPath::fixed(name), mode }])?;
        }
        let install = ["/bin/busybox", "--install", "/bin"].map(Into::into);
        let status = sections::run_install(&install, &rootfs, fetching.builder.options())?;
        if !status.success() {
            return Err(ToolError::Failed { agent: AGENT, status }.into());
        }
        Ok(Root { files: Files::Directory { newest_mtime: 0 }, labels: BTreeMap::new(), objects: Vec::new() })
    }
}
