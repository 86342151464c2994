//! `Bootstrap: debootstrap`: Debian, or what descends from it, from the packages of a mirror. No program is needed for it.
//!
//! ```text
//! header, apt's files ──► Repositories ──► Release, signed ──► Packages ──► which packages
//!                                                                             │ fetched, digests compared
//!      dpkg, apt in a container, as root  ◄── the first of them unpacked  ◄───┘
//! ```
//!
//! The packages that every system has are unpacked by sifu, so that there is a dpkg; then dpkg itself installs all of them,
//! in the container and in the order that its scripts need. What root owns there is remembered as in `%post`.

mod archive;
mod error;
mod signature;

pub use error::DebootstrapError;

use super::spool::Spool;
use super::{Fetching, Files, Root};
use crate::build::builder::RootOptions;
use crate::build::edit::Edit;
use crate::build::rootfs::Rootfs;
use crate::build::{BuildError, Note, sections, unpack};
use crate::debian::index::{Index, Package};
use crate::debian::sources::{self, Repository, SignedBy};
use crate::debian::{deb, relation, resolve, version};
use crate::def::Header;
use crate::oci::layers::Keep;
use crate::remote::http::Http;
use crate::sif::Arch;
use crate::tree::{Attributes, Body, Tree, lookup};
use archive::Suite;
use starter::paths::{ContainerPath, HostPath};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debootstrap {
    /// `bookworm`; that of this machine if it is not said.
    suite: Option<String>,
    /// An address, with options before it as in a `sources.list`; those of this machine if it is not said.
    mirror: Option<String>,
    /// Names of packages.
    include: Vec<String>,
}

/// Installed before the others, in this order: their scripts count on each other.
const FIRST: [&[&str]; 5] =
    [&["base-passwd"], &["base-files"], &["dpkg"], &["libc6", "libc6.1"], &["perl-base", "mawk", "debconf"]];
/// Packages in whose suites `/bin` and its like are links into `/usr`: since this version of `base-files`.
const MERGED_SINCE: &str = "10.2";
/// Where the packages are while they are installed.
const ARCHIVES: &str = "/var/cache/bootstrap";
const LOG: &str = "/var/log/bootstrap.log";
const SCRIPT: &str = "/.install.script";

impl Debootstrap {
    pub(super) fn of(header: &Header) -> Result<Self, BuildError> {
        let suite = header.get("osversion").map(str::to_owned);
        if let Some(suite) = suite.as_ref().filter(|suite| !sources::is_suite(suite)) {
            return Err(DebootstrapError::Suite { suite: suite.clone() }.into());
        }
        let words = header.get("include").unwrap_or_default().split([',', ' ', '\t']);
        let include: Vec<String> = words.filter(|word| !word.is_empty()).map(str::to_owned).collect();
        if let Some(name) = include.iter().find(|name| !relation::is_name(name)) {
            return Err(DebootstrapError::Name { name: name.clone() }.into());
        }
        Ok(Self { suite, mirror: header.get("mirrorurl").map(str::to_owned), include })
    }

    pub(in crate::build) fn fetch(&self, fetching: &mut Fetching) -> Result<Root, BuildError> {
        let architecture = Arch::host();
        let architecture =
            debian_name(architecture).ok_or(DebootstrapError::Architecture { name: architecture.name() })?;
        (fetching.say)(Note::Doing("Reading the indexes of packages..."));
        let repositories = self.repositories(architecture)?;
        let http = Http::to_any_host();
        let suites = self.suites(&http, &repositories, architecture, fetching)?;
        let mut index = Index::default();
        for (number, suite) in suites.iter().enumerate() {
            for (address, text) in &suite.indexes {
                let failed = |source| DebootstrapError::Index { address: address.clone(), source };
                index.add(text, number).map_err(failed)?;
            }
        }
        let chosen = Chosen::of(&index, &of_one_origin(&suites, &index), &self.include)?;
        let archives = fetching.work.join("packages");
        archive::fetch_packages(&http, &chosen.all, &suites, &archives, fetching.say)?;
        let suites = of_one_origin(&suites, &index);
        let newest_mtime = suites.values().filter_map(|suite| suite.release.date).max().unwrap_or(0);
        let directory = (fetching.directory)(fetching.builder)?;
        (fetching.say)(Note::Doing("Unpacking the packages of the base..."));
        let tree = unpack_base(&chosen, &archives, fetching.work, architecture, newest_mtime)?;
        unpack::unpack(&tree, &directory)?;
        let rootfs = Rootfs::open(&directory)?;
        prepare(&rootfs, &chosen, &suites, &archives)?;
        let doing = format!("Installing {} packages...", chosen.all.len());
        (fetching.say)(Note::Doing(&doing));
        install(&rootfs, &chosen, newest_mtime, fetching.builder.options())?;
        Ok(Root { files: Files::Directory { newest_mtime }, labels: BTreeMap::new(), objects: Vec::new() })
    }

    /// Where packages are to come from.
    fn repositories(&self, architecture: &str) -> Result<Vec<Repository>, DebootstrapError> {
        let own = own_suite();
        let suite = self.suite.as_deref().or(own.as_deref()).ok_or(DebootstrapError::NoSuite)?;
        if let Some(mirror) = &self.mirror {
            let wrong = |why| DebootstrapError::Mirror { mirror: mirror.clone(), why };
            return Ok(vec![sources::parse_mirror(mirror, suite).map_err(wrong)?]);
        }
        let found = sources::of_suite(&read_sources(architecture)?, own.as_deref(), suite);
        if found.is_empty() {
            return Err(DebootstrapError::NoSources { suite: suite.to_owned() });
        }
        Ok(found)
    }

    /// Fetches what the archives say of themselves. Where there are several, one can be missing.
    fn suites(
        &self,
        http: &Http,
        repositories: &[Repository],
        architecture: &str,
        fetching: &mut Fetching,
    ) -> Result<Vec<Suite>, DebootstrapError> {
        let mut suites = Vec::new();
        let mut failure = None;
        for repository in repositories {
            match archive::fetch_suite(http, repository, architecture, fetching.work) {
                Ok(suite) => {
                    if suite.is_out_of_date {
                        (fetching.say)(Note::Warning(&format!(
                            "the index of {} at {} is out of date: newer packages may be there",
                            repository.suite, repository.uri
                        )));
                    }
                    suites.push(suite);
                }
                Err(error @ DebootstrapError::NotThere { .. }) if repositories.len() > 1 => {
                    (fetching.say)(Note::Warning(&format!("left out: {error}")));
                    failure.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) if suites.is_empty() => Err(error),
            _ => Ok(suites),
        }
    }
}

/// A file by its address, of no more than `limit` bytes.
pub(super) fn fetch_file(address: &str, limit: u64) -> Result<Vec<u8>, DebootstrapError> {
    archive::bytes(&Http::to_any_host(), address, limit)
}

/// Debian's name of an architecture; `None` where Debian has none.
fn debian_name(architecture: Arch) -> Option<&'static str> {
    Some(match architecture {
        Arch::Amd64 => "amd64",
        Arch::Arm64 => "arm64",
        Arch::I386 => "i386",
        Arch::Arm => "armhf",
        Arch::Ppc64le => "ppc64el",
        Arch::S390x => "s390x",
        Arch::Riscv64 => "riscv64",
        Arch::Loong64 => "loong64",
        _ => return None,
    })
}

/// The code name of this machine's own release.
fn own_suite() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(line.trim_matches('"').to_owned()).filter(|name| !name.is_empty() && sources::is_suite(name))
}

/// All archives that apt uses on this machine.
fn read_sources(architecture: &str) -> Result<Vec<Repository>, DebootstrapError> {
    let directory = Path::new("/etc/apt/sources.list.d");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.insert(0, "/etc/apt/sources.list".into());
    let mut repositories = Vec::new();
    for path in paths {
        let is = |extension: &str| path.extension().is_some_and(|found| found == extension);
        let parse = match (is("list"), is("sources")) {
            (true, _) => sources::parse_list,
            (_, true) => sources::parse_paragraphs,
            _ => continue,
        };
        // What is not there, or not for everybody's eyes, is not used.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let failed = |source| DebootstrapError::Sources { path: HostPath::new(&*path), source };
        repositories.extend(parse(&String::from_utf8_lossy(&bytes), architecture).map_err(failed)?);
    }
    Ok(repositories)
}

/// The suites of the distribution, by their number: those that come from where `base-files` comes from.
fn of_one_origin<'s>(suites: &'s [Suite], index: &Index) -> BTreeMap<usize, &'s Suite> {
    let origin = index.get("base-files").and_then(|package| suites.get(package.repository));
    let is_same = |suite: &Suite| origin.is_none_or(|origin| origin.release.origin == suite.release.origin);
    suites.iter().enumerate().filter(|(_, suite)| is_same(suite)).collect()
}

/// The packages of the system.
struct Chosen<'i, 'a> {
    /// All of them, by name.
    all: Vec<&'i Package<'a>>,
    /// Those that every system has, and apt: installed by dpkg.
    base: Vec<&'i Package<'a>>,
    include: Vec<String>,
}

impl<'i, 'a> Chosen<'i, 'a> {
    fn of(
        index: &'i Index<'a>,
        suites: &BTreeMap<usize, &Suite>,
        include: &[String],
    ) -> Result<Self, DebootstrapError> {
        let is_base = |package: &&Package<'a>| {
            suites.contains_key(&package.repository) && (package.is_essential || package.priority == "required")
        };
        let mut names: Vec<&str> = index.packages().filter(is_base).map(|package| package.name).collect();
        names.sort_unstable();
        // The other way to have merged directories is a program that merges them.
        names.extend(["usr-is-merged", "apt"].into_iter().filter(|name| index.get(name).is_some()));
        if !names.contains(&"dpkg") || !names.contains(&"base-files") {
            return Err(DebootstrapError::NoSystem);
        }
        let base = resolve::resolve(index, &names).map_err(DebootstrapError::Resolve)?;
        names.extend(include.iter().map(String::as_str));
        let all = resolve::resolve(index, &names).map_err(DebootstrapError::Resolve)?;
        Ok(Self { all, base, include: include.to_vec() })
    }

    fn is_base(&self, name: &str) -> bool {
        self.base.iter().any(|package| package.name == name)
    }
}

/// The name of a package's file while it is installed.
fn file_name(package: &Package) -> String {
    format!("{}_{}.deb", package.name, package.architecture)
}

/// The files of the base, without what scripts add.
fn unpack_base(
    chosen: &Chosen,
    archives: &Path,
    work: &Path,
    architecture: &str,
    mtime: i64,
) -> Result<Tree, BuildError> {
    let directory = || Attributes { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
    let mut tree = Tree::new(directory());
    let path = work.join("base");
    let failed = |doing: &'static str, source| BuildError::Target { doing, path: HostPath::new(&*path), source };
    let made = File::options().read(true).write(true).create_new(true).open(&path);
    let mut spool = Spool::new(made.map_err(|source| failed("make", source))?);
    std::fs::remove_file(&path).map_err(|source| failed("remove", source))?;
    let base_files = chosen.base.iter().find(|package| package.name == "base-files");
    if base_files.is_some_and(|package| version::compare(package.version, MERGED_SINCE) != Ordering::Less) {
        link_into_usr(&mut tree, architecture, &directory)
            .map_err(|source| DebootstrapError::Unpack { package: "base-files".to_owned(), why: source.to_string() })?;
    }
    for package in &chosen.base {
        let failed = |why: String| DebootstrapError::Unpack { package: package.name.to_owned(), why };
        let file =
            File::open(archives.join(file_name(package))).map_err(|error| failed(crate::report::cause(&error)))?;
        let data = deb::data(BufReader::with_capacity(1 << 18, file)).map_err(|error| failed(error.to_string()))?;
        let mut keep = |size_bytes: u64, content: &mut dyn Read| spool.keep(b"", size_bytes, content);
        crate::debian::unpack::unpack(&mut tree, data, &mut keep).map_err(|error| failed(error.to_string()))?;
    }
    spool.finish(&mut tree).map_err(|source| failed("write", source))?;
    Ok(tree)
}

/// Makes `/bin` and its like links into `/usr`, as they are since Debian 10.
fn link_into_usr(
    tree: &mut Tree,
    architecture: &str,
    directory: &dyn Fn() -> Attributes,
) -> Result<(), crate::tree::TreeError> {
    let root = tree.root();
    let usr = tree.insert(root, b"usr", directory(), Body::Directory)?;
    let loaders: &[&str] = match architecture {
        "amd64" | "ppc64el" | "loong64" => &["lib64"],
        _ => &[],
    };
    for name in ["bin", "sbin", "lib"].iter().chain(loaders) {
        tree.insert(usr, name.as_bytes(), directory(), Body::Directory)?;
        let target = format!("usr/{name}").into_bytes();
        let attributes = Attributes { mode: 0o777, ..directory() };
        tree.insert(root, name.as_bytes(), attributes, Body::Symlink(target.into()))?;
    }
    Ok(())
}

/// Puts into the root what dpkg and apt expect to be there.
fn prepare(
    rootfs: &Rootfs,
    chosen: &Chosen,
    suites: &BTreeMap<usize, &Suite>,
    archives: &Path,
) -> Result<(), BuildError> {
    let file = |path: &'static str, mode, content: &[u8]| Edit::File {
        path: ContainerPath::fixed(path),
        mode,
        content: content.to_vec(),
    };
    let mut edits = vec![
        file("/var/lib/dpkg/status", 0o644, b""),
        file("/var/lib/dpkg/available", 0o644, b""),
        // Nothing is started while it is installed.
        file("/usr/sbin/policy-rc.d", 0o755, b"#!/bin/sh\nexit 101\n"),
        // What containers of a build get from the host is bound over these.
        file("/etc/hosts", 0o644, b""),
        file("/etc/resolv.conf", 0o644, b""),
        Edit::Directory { path: ContainerPath::fixed(ARCHIVES), mode: 0o755 },
    ];
    let mut lines = String::new();
    for suite in suites.values() {
        lines += &suite.repository.line(&options_in(rootfs, suite, &mut edits)?);
    }
    edits.push(file("/etc/apt/sources.list", 0o644, lines.as_bytes()));
    rootfs.apply(&edits)?;
    let to = lookup::resolve(rootfs.lookup(), &ContainerPath::fixed(ARCHIVES))?.path;
    for package in &chosen.all {
        let name = file_name(package);
        let (from, to) = (archives.join(&name), rootfs.host_path(&to).join(&name));
        let moved = std::fs::rename(&from, &to);
        moved.map_err(|source| BuildError::Target { doing: "move", path: HostPath::new(&*from), source })?;
    }
    Ok(())
}

/// The options with which apt can use an archive in the image; keys that the image lacks are put there.
fn options_in(rootfs: &Rootfs, suite: &Suite, edits: &mut Vec<Edit>) -> Result<Vec<String>, BuildError> {
    let mut options = Vec::new();
    if suite.repository.is_trusted {
        options.push("trusted=yes".to_owned());
    }
    if suite.is_out_of_date {
        options.push("check-valid-until=no".to_owned());
    }
    let mut keyrings = Vec::new();
    match &suite.repository.signed_by {
        SignedBy::Anybody => {}
        SignedBy::Key(key) => {
            let path = ContainerPath::fixed("/etc/apt/keyrings/archive.asc");
            keyrings.push("/etc/apt/keyrings/archive.asc".to_owned());
            edits.push(Edit::File { path, mode: 0o644, content: key.clone().into_bytes() });
        }
        SignedBy::Files(files) => {
            for name in files {
                let Ok(path) = ContainerPath::parse(name.as_bytes()) else { continue };
                if lookup::resolve(rootfs.lookup(), &path)?.stat.is_none() {
                    let read = std::fs::read(name);
                    let content =
                        read.map_err(|source| DebootstrapError::Keyring { path: HostPath::new(name), source })?;
                    edits.push(Edit::File { path, mode: 0o644, content });
                }
                keyrings.push(name.clone());
            }
        }
    }
    if !keyrings.is_empty() {
        options.push(format!("signed-by={}", keyrings.join(",")));
    }
    Ok(options)
}

/// Has dpkg and apt install the packages, in the container.
fn install(rootfs: &Rootfs, chosen: &Chosen, time: i64, root: RootOptions) -> Result<(), BuildError> {
    let path = ContainerPath::fixed(SCRIPT);
    let content = script(chosen, time).into_bytes();
    rootfs.apply(&[Edit::File { path: path.clone(), mode: 0o755, content }])?;
    let status = sections::run_install(&[SCRIPT.into()], rootfs, root);
    let log = ContainerPath::fixed(LOG);
    let status = status?;
    if !status.success() {
        let bytes = std::fs::read(rootfs.host_path(&log)).unwrap_or_default();
        return Err(DebootstrapError::Install { status, said: last_lines(&String::from_utf8_lossy(&bytes)) }.into());
    }
    rootfs.apply(&[Edit::Remove { path }, Edit::Remove { path: log }])
}

/// The end of a log, for people.
fn last_lines(log: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// What is done in the container. `time` is that of the newest input, for what states when it was made.
fn script(chosen: &Chosen, time: i64) -> String {
    let files =
        |packages: &mut dyn Iterator<Item = &&Package>| packages.map(|p| file_name(p)).collect::<Vec<_>>().join(" ");
    let mut text = format!(
        "#!/bin/sh\n\
         exec >{LOG} 2>&1\n\
         set -ex\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C SOURCE_DATE_EPOCH={time}\n\
         umask 022\n\
         cd {ARCHIVES}\n\
         dpkg() {{ command dpkg --force-unsafe-io --force-confold \"$@\" </dev/null; }}\n"
    );
    for names in FIRST.iter().flat_map(|names| names.iter()) {
        if let Some(package) = chosen.base.iter().find(|package| package.name == *names) {
            text += &format!("dpkg --force-depends --install {}\n", file_name(package));
        }
    }
    text += "[ -e /etc/localtime ] || ln -s /usr/share/zoneinfo/UTC /etc/localtime\n";
    text += &format!("dpkg --force-depends --unpack {}\n", files(&mut chosen.base.iter()));
    // Once with packages whose needs come later, and once more to see that nothing is left.
    text += "dpkg --force-depends --force-configure-any --configure --pending\ndpkg --configure --pending\n";
    let rest: Vec<_> = chosen.all.iter().filter(|package| !chosen.is_base(package.name)).collect();
    if !rest.is_empty() {
        let files: Vec<_> = rest.iter().map(|package| format!("{ARCHIVES}/{}", file_name(package))).collect();
        text += &format!(
            "apt-get -q -y --no-install-recommends -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 \
             -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/dev/null -o Dpkg::Options::=--force-unsafe-io \
             install {} </dev/null\n",
            files.join(" ")
        );
        let wanted = |package: &&&&Package| !chosen.include.iter().any(|name| name == package.name);
        let along: Vec<_> = rest.iter().filter(wanted).map(|package| package.name).collect();
        if !along.is_empty() {
            text += &format!("apt-mark auto {}\n", along.join(" "));
        }
    }
    // What says when and where this was done would make every image another.
    text += &format!(
        "cd /\nrm -rf {ARCHIVES}\nrm -f /usr/sbin/policy-rc.d /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache\n\
         rm -f /var/log/dpkg.log /var/log/alternatives.log /var/log/apt/*.log /var/log/apt/*.log.xz\n\
         rm -f /var/lib/dpkg/*-old /var/cache/debconf/*-old /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow-\n\
         [ ! -s /etc/machine-id ] || : >/etc/machine-id\n"
    );
    text
}
