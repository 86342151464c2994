//! Where the file system of an image begins: one file for each bootstrap agent.
//!
//! ```text
//! Header ──► Source::of ──► Source ──► Source::fetch ──► Root ─┬─ Files::Tree        packed or unpacked by `build`
//! (pure)                                                       └─ Files::Directory   the agent has filled it itself
//! ```
//!
//! A new agent is a variant of [`Source`], its name in [`Source::of`], and a file with its `fetch`.

mod arch;
mod archive;
mod busybox;
mod debootstrap;
mod dnf;
pub mod docker;
mod docker_archive;
mod docker_daemon;
mod host_tool;
pub mod layered;
pub mod library;
mod localimage;
mod oci;
mod scratch;
mod spool;
mod zypper;

pub use arch::ArchLinux;
pub use busybox::Busybox;
pub use debootstrap::{Debootstrap, DebootstrapError};
pub use dnf::Dnf;
pub use docker::{DockerImage, OrasImage};
pub use docker_archive::DockerArchive;
pub use docker_daemon::DockerDaemon;
pub use host_tool::ToolError;
pub use layered::Layered;
pub use library::LibraryImage;
pub use localimage::LocalImage;
pub use oci::OciLayout;
pub use zypper::Zypper;

use super::builder::Builder;
use super::{BuildError, Note};
use crate::cache::Cache;
use crate::def::Header;
use crate::oci::documents::Platform;
use crate::remote::access::Access;
use crate::sif::Arch;
use crate::tree::Tree;
use starter::paths::HostPath;
use std::collections::BTreeMap;
use std::path::Path;

/// A bootstrap agent, with what its header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An empty file system.
    Scratch,
    /// An image or a directory of this machine.
    LocalImage(LocalImage),
    /// An archive that `docker save` wrote.
    DockerArchive(DockerArchive),
    /// An image that a daemon holds.
    DockerDaemon(DockerDaemon),
    /// An OCI layout, as a directory or in an archive.
    Oci(OciLayout),
    /// An image in a registry.
    Docker(DockerImage),
    /// A SIF file in a registry.
    Oras(OrasImage),
    /// A SIF file of a library.
    Library(Box<LibraryImage>),
    /// Packages of Debian.
    Debootstrap(Debootstrap),
    /// RPM packages, by dnf or yum.
    Dnf(Dnf),
    /// Packages of openSUSE.
    Zypper(Zypper),
    /// Packages of Arch Linux.
    Arch(ArchLinux),
    /// One static program.
    Busybox(Busybox),
}

/// Agents of images that are no file of sifu's: what a URI on the command line can name.
const NAMED_BY_URI: &[&str] =
    &["docker", "docker-archive", "docker-daemon", "oci", "oci-archive", "oras", "library", "shub"];

/// What is to be said of Singularity Hub.
pub const HUB_IS_GONE: &str = "Singularity Hub was closed in 2021; its images are gone";

/// Agents of Apptainer that are not in [`Source`].
const LATER: &[&str] = &["buildkit", "dockerfile", "http", "https", "ipfs"];

/// What an agent may use.
pub struct Fetching<'a> {
    pub builder: &'a mut Builder,
    /// How to get at what is elsewhere.
    pub access: &'a Access,
    /// Where files of registries and libraries are kept, if they may be.
    pub cache: Option<&'a Cache>,
    /// The machine that the image is for; this one where it is not said.
    pub architecture: Option<Arch>,
    /// A directory for temporary files, beside that of the root file system.
    pub work: &'a Path,
    /// Makes the empty directory of the root file system, for agents that fill it themselves.
    pub directory: &'a mut dyn FnMut(&mut Builder) -> Result<HostPath, BuildError>,
    pub say: &'a mut dyn FnMut(Note),
}

/// What an agent gives.
pub struct Root {
    pub files: Files,
    /// Labels that come with it, below those of its own `labels.json`.
    pub labels: BTreeMap<String, String>,
    /// Objects that the SIF file shall hold, by name: the configuration of an OCI image.
    pub objects: Vec<(String, Vec<u8>)>,
}

/// Where the files are.
pub enum Files {
    Tree(Tree),
    /// In layers that are yet to be read, once.
    Layers(Box<Layered>),
    /// In the directory of [`Fetching::directory`].
    Directory {
        /// The time of the newest input, in seconds since 1970; 0 where none has one.
        newest_mtime: i64,
    },
}

impl Root {
    /// A file system and nothing that is said of it.
    pub fn of_tree(tree: Tree) -> Self {
        Self { files: Files::Tree(tree), labels: BTreeMap::new(), objects: Vec::new() }
    }

    /// An image of layers, with the labels of its configuration.
    fn of_layers(layered: Layered) -> Self {
        let labels = layered.config.process().labels.unwrap_or_default();
        Self { files: Files::Layers(Box::new(layered)), labels, objects: Vec::new() }
    }
}

impl Source {
    /// Decides which agent a header asks for, and reads what that agent needs from it.
    pub fn of(header: &Header) -> Result<Self, BuildError> {
        // Who names keys wants nothing else: it is not enough to leave the check out.
        if header.get("fingerprints").is_some_and(|keys| !keys.trim().is_empty()) {
            return Err(BuildError::NotYet { what: "from an image that certain keys have signed (`Fingerprints`)" });
        }
        match header.agent().as_str() {
            "scratch" => Ok(Self::Scratch),
            "localimage" => Ok(Self::LocalImage(LocalImage::of(header)?)),
            "docker-archive" => Ok(Self::DockerArchive(DockerArchive { from: from(header)? })),
            "docker-daemon" => Ok(Self::DockerDaemon(DockerDaemon { from: from(header)? })),
            "oci" => Ok(Self::Oci(OciLayout { from: from(header)?, is_archive: false })),
            "docker" => Ok(Self::Docker(DockerImage { reference: docker::reference(header)? })),
            "oras" => Ok(Self::Oras(OrasImage { reference: docker::reference(header)? })),
            "library" => Ok(Self::Library(Box::new(LibraryImage::of(header)?))),
            "shub" => Err(BuildError::Elsewhere {
                what: header.get("from").map_or_else(|| "shub".to_owned(), |from| format!("shub://{from}")),
                why: HUB_IS_GONE,
            }),
            "oci-archive" => Ok(Self::Oci(OciLayout { from: from(header)?, is_archive: true })),
            "debootstrap" => Ok(Self::Debootstrap(Debootstrap::of(header)?)),
            "dnf" | "yum" => Ok(Self::Dnf(Dnf::of(header)?)),
            "zypper" => Ok(Self::Zypper(Zypper::of(header)?)),
            "arch" => Ok(Self::Arch(ArchLinux::of(header)?)),
            "busybox" => Ok(Self::Busybox(Busybox::of(header)?)),
            agent if LATER.contains(&agent) => Err(BuildError::LaterAgent { agent: agent.to_owned() }),
            agent => Err(BuildError::UnknownAgent { agent: agent.to_owned() }),
        }
    }

    /// The header that a source on the command line stands for: `docker-archive:image.tar`. `None` for what names no agent.
    pub fn header_of_uri(uri: &str) -> Option<Header> {
        let (agent, rest) = uri.split_once(':')?;
        let from = rest.strip_prefix("//").unwrap_or(rest);
        let is_agent = agent == "localimage" || NAMED_BY_URI.contains(&agent) || LATER.contains(&agent);
        is_agent.then(|| Header::of_agent(agent, from))
    }

    /// Gets the file system.
    pub fn fetch(&self, fetching: &mut Fetching) -> Result<Root, BuildError> {
        match self {
            Self::Scratch => Ok(scratch::fetch()),
            Self::LocalImage(image) => image.fetch(fetching),
            Self::DockerArchive(archive) => Ok(Root::of_layers(archive.open(&fetching.platform())?)),
            Self::DockerDaemon(image) => {
                Ok(Root::of_layers(image.open(fetching.access, &fetching.platform(), fetching.work)?))
            }
            Self::Oci(layout) => Ok(Root::of_layers(layout.open(&fetching.platform())?)),
            Self::Docker(image) => {
                Ok(Root::of_layers(image.open(fetching.access, &fetching.platform(), fetching.work)?))
            }
            Self::Oras(image) => {
                let path = image.file(fetching)?;
                LocalImage { path: path.into() }.fetch(fetching)
            }
            Self::Library(image) => {
                let path = image.file(fetching)?;
                LocalImage { path: path.into() }.fetch(fetching)
            }
            Self::Debootstrap(debian) => debian.fetch(fetching),
            Self::Dnf(dnf) => dnf.fetch(fetching),
            Self::Zypper(zypper) => zypper.fetch(fetching),
            Self::Arch(arch) => arch.fetch(fetching),
            Self::Busybox(busybox) => busybox.fetch(fetching),
        }
    }
}

fn from(header: &Header) -> Result<String, BuildError> {
    let from = header.get("from").map(str::to_owned);
    from.ok_or_else(|| BuildError::HeaderLacks { agent: header.agent(), key: "From" })
}

impl Fetching<'_> {
    /// The machine whose images are wanted.
    fn platform(&self) -> Platform {
        platform(self.architecture, self.access)
    }
}

/// The machine whose images are wanted.
pub fn platform(architecture: Option<Arch>, access: &Access) -> Platform {
    Platform::linux(architecture.unwrap_or_else(Arch::host).name(), access.variant.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_known_later_or_unknown() {
        let of = |agent| Source::of(&Header::of_agent(agent, "x"));
        assert_eq!(of("Scratch").ok(), Some(Source::Scratch));
        assert!(matches!(of("DockerFile"), Err(BuildError::LaterAgent { agent }) if agent == "dockerfile"));
        assert!(matches!(of("nonsense"), Err(BuildError::UnknownAgent { agent }) if agent == "nonsense"));
        assert!(matches!(of(""), Err(BuildError::UnknownAgent { .. })));
    }

    #[test]
    fn keys_that_can_not_be_checked_are_not_passed_over() {
        let definition = b"Bootstrap: library\nFrom: ada/tools/box\nFingerprints: 0123\n";
        let definition = crate::def::parse(definition, &crate::def::BuildArgs::default()).unwrap();
        let error = Source::of(&definition.stages[0].header).unwrap_err();
        assert!(matches!(error, BuildError::NotYet { .. }), "{error}");
    }

    #[test]
    fn a_uri_is_a_header_of_two_lines() {
        let check = |uri: &str, expected| {
            let header = Source::header_of_uri(uri);
            let lines = header.as_ref().map(|h| (h.agent(), h.get("from").unwrap_or_default().to_owned()));
            assert_eq!(lines, expected, "{uri}");
        };
        let some = |agent: &str, from: &str| Some((agent.to_owned(), from.to_owned()));
        check("docker://debian:12", some("docker", "debian:12"));
        check("oci-archive:./a.tar", some("oci-archive", "./a.tar"));
        check("image.sif", None);
        check("my:directory", None);
        check("/a/docker:x", None);
    }
}
