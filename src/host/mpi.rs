//! Looks for MPI libraries and launchers, and follows what a library needs.
//!
//! ```text
//! LD_LIBRARY_PATH          ─┐
//! parent process, PATH      ├─► libmpi.so.40, libmpi.so.12, ... ─► siblings ─► DT_NEEDED, plugins ─► closure
//! /etc/ld.so.cache         ─┘
//! ```
//!
//! A needed library is looked for as the dynamic linker does. All paths are below a root, which is `/` but for tests.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use starter::paths::HostPath;

use super::accelerators::{Host, directories_of};
use super::facts::{
    Companions, FoundBy, HostLauncher, HostLibrary, HostMpi, MpiClosure, MpiHostFacts, PluginDirectory,
};
use crate::elf::{NATIVE_MACHINE, Object, is_of_glibc, ld_cache};

/// Where libraries lie that need no cache to be found.
const DIRECTORIES: [&str; 6] =
    ["/lib64", "/usr/lib64", "/usr/lib", "/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
/// Where libraries of a prefix lie, relative to the directory of its programs.
const BESIDE_PROGRAMS: [&str; 4] = ["../lib64", "../lib", "../lib/release", "../../lib"];
/// Directories that belong to no MPI, wherever its library lies: an image's own stay its own.
const EVERYBODYS: [&str; 8] =
    ["/", "/etc", "/opt", "/usr", "/usr/etc", "/usr/local/etc", "/usr/share", "/usr/local/share"];
/// An MPI with everything it can load has some eighty libraries.
const MAX_LIBRARIES: usize = 512;

/// What to look for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MpiQuery {
    /// Sonames of MPI libraries.
    pub names: &'static [&'static str],
    /// Names of launchers, the usual one first.
    pub launchers: &'static [&'static str],
    /// Names that the files of launchers have.
    pub launcher_programs: &'static [&'static str],
    /// Devices, by what their names in `/dev` begin with.
    pub devices: &'static [&'static str],
    /// `PATH`.
    pub search_path: Vec<u8>,
    /// `LD_LIBRARY_PATH`.
    pub library_path: Vec<u8>,
    /// Prefixes that variables of an MPI name, such as `OPAL_PREFIX`.
    pub prefixes: Vec<HostPath>,
}

/// Takes the snapshot. Nothing here fails: what can't be seen is not there.
pub fn observe(root: &Path, query: &MpiQuery) -> MpiHostFacts {
    let host = Host { root };
    let launchers = launchers(&host, query);
    MpiHostFacts {
        machine: NATIVE_MACHINE,
        libraries: libraries(&host, query, &launchers),
        srun: program(&host, query, "srun").map(HostPath::new),
        devices: devices(&host, query),
        launchers,
    }
}

fn launchers(host: &Host<'_>, query: &MpiQuery) -> Vec<HostLauncher> {
    let mut launchers = Vec::new();
    let parent = fs::read_link(format!("/proc/{}/exe", std::os::unix::process::parent_id())).ok();
    if let Some(path) = parent {
        let program = path.file_name().unwrap_or_default().as_bytes().to_vec();
        if query.launcher_programs.iter().any(|name| name.as_bytes() == program) {
            launchers.push(HostLauncher { path: HostPath::new(path), program, parent: true });
        }
    }
    for name in query.launchers {
        let Some(path) = program(host, query, name) else { continue };
        let real = fs::canonicalize(host.at(&path)).unwrap_or_else(|_| path.clone());
        let program = real.file_name().unwrap_or_default().as_bytes().to_vec();
        if !launchers.iter().any(|known: &HostLauncher| !known.parent && known.program == program) {
            launchers.push(HostLauncher { path: HostPath::new(path), program, parent: false });
        }
    }
    launchers
}

fn program(host: &Host<'_>, query: &MpiQuery, name: &str) -> Option<PathBuf> {
    directories_of(&query.search_path).map(|directory| directory.join(name)).find(|path| host.at(path).is_file())
}

fn libraries(host: &Host<'_>, query: &MpiQuery, launchers: &[HostLauncher]) -> Vec<HostMpi> {
    let mut directories: Vec<(PathBuf, FoundBy)> = Vec::new();
    directories.extend(directories_of(&query.library_path).map(|directory| (directory, FoundBy::LibraryPath)));
    for prefix in &query.prefixes {
        let libraries = ["lib64", "lib", "lib/release"].map(|name| prefix.as_path().join(name));
        directories.extend(libraries.map(|directory| (directory, FoundBy::Launcher)));
    }
    for launcher in launchers {
        let beside = |program: &Path| {
            let programs = program.parent().unwrap_or(Path::new("/")).to_owned();
            BESIDE_PROGRAMS.map(|relative| (by_name(&programs.join(relative)), FoundBy::Launcher))
        };
        // What lies in /usr/lib is in the cache, and the launcher's own directory says nothing of it.
        directories
            .extend(beside(launcher.path.as_path()).into_iter().filter(|(path, _)| !path.starts_with("/usr/lib")));
    }
    let mut found: Vec<HostMpi> = Vec::new();
    let mut add = |name: &[u8], directory: &Path, path: PathBuf, found_by| {
        let library = host.library(name.to_vec(), path);
        let known = found.iter().any(|mpi: &HostMpi| mpi.library.path == library.path);
        if library.object.is_ok() && !known {
            found.push(HostMpi { library, directory: HostPath::new(directory), found_by });
        }
    };
    for (directory, found_by) in directories {
        for name in query.names {
            let path = directory.join(name);
            if host.at(&path).is_file() {
                add(name.as_bytes(), &directory, path, found_by);
            }
        }
    }
    let cache = host.linker_cache();
    for entry in ld_cache::parse(&cache).unwrap_or_default() {
        let wanted = query.names.iter().any(|name| name.as_bytes() == entry.name);
        if wanted && entry.hwcap == 0 && entry.serves(NATIVE_MACHINE) {
            let path = PathBuf::from(OsStr::from_bytes(entry.path));
            let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
            add(entry.name, &directory, path, FoundBy::Cache);
        }
    }
    found
}

/// Takes `..` away by name.
fn by_name(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    clean
}

fn devices(host: &Host<'_>, query: &MpiQuery) -> Vec<HostPath> {
    let names = host.names("/dev").into_iter();
    let names = names.filter(|name| query.devices.iter().any(|prefix| name.starts_with(prefix.as_bytes())));
    let mut paths = Vec::new();
    for path in names.map(|name| Path::new("/dev").join(OsStr::from_bytes(&name))) {
        if host.at(&path).is_dir() {
            paths.extend(host.names(&path).into_iter().map(|name| HostPath::new(path.join(OsStr::from_bytes(&name)))));
        } else {
            paths.push(HostPath::new(path));
        }
    }
    paths
}

/// Follows what `mpi` needs. `siblings` tells which other libraries of its directory belong to it.
pub fn follow(
    root: &Path,
    mpi: &HostMpi,
    siblings: impl Fn(&[u8]) -> bool,
    companions: &[Companions],
    library_path: &[u8],
) -> MpiClosure {
    let host = Host { root };
    let cache = host.linker_cache();
    let mut linker = Linker {
        host: &host,
        cache: ld_cache::parse(&cache).unwrap_or_default(),
        library_path: directories_of(library_path).chain([mpi.directory.as_path().to_owned()]).collect(),
        seen: BTreeSet::new(),
        closure: MpiClosure::default(),
    };
    linker.seen.insert(mpi.library.name.clone());
    let mut pending = vec![(mpi.library.clone(), mpi.directory.as_path().to_owned())];
    for name in host.names(&mpi.directory).into_iter().filter(|name| siblings(name)) {
        if linker.seen.insert(name.clone()) {
            let path = mpi.directory.as_path().join(OsStr::from_bytes(&name));
            pending.push((host.library(name, path), mpi.directory.as_path().to_owned()));
        }
    }
    while let Some((library, directory)) = pending.pop() {
        if linker.closure.libraries.len() >= MAX_LIBRARIES {
            break;
        }
        if let Ok(object) = &library.object {
            pending.extend(linker.needed(object, &library.path));
        }
        for companion in companions.iter().filter(|companion| library.name.starts_with(companion.of.as_bytes())) {
            pending.extend(linker.companions(companion, &library.path, &directory));
        }
        linker.closure.libraries.push(library);
    }
    linker.closure.libraries.sort_by(|one, other| one.name.cmp(&other.name));
    linker.closure
}

/// The dynamic linker's way to a library.
struct Linker<'a> {
    host: &'a Host<'a>,
    cache: Vec<ld_cache::Entry<'a>>,
    library_path: Vec<PathBuf>,
    /// Names of libraries and paths of plugins that were looked for.
    seen: BTreeSet<Vec<u8>>,
    closure: MpiClosure,
}

impl Linker<'_> {
    /// Finds what `object` at `path` needs and nobody has looked for yet, each with the directory it was found in.
    fn needed(&mut self, object: &Object, path: &HostPath) -> Vec<(HostLibrary, PathBuf)> {
        let origin = path.as_path().parent().unwrap_or(Path::new("/")).as_os_str().as_bytes().to_vec();
        let run_paths: Vec<PathBuf> = object.run_paths.iter().filter_map(|path| run_path(path, &origin)).collect();
        let mut found = Vec::new();
        for name in &object.needed {
            if is_of_glibc(name) || !self.seen.insert(name.clone()) {
                continue;
            }
            if let Some(path) = self.find(name, &run_paths) {
                let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
                found.push((self.host.library(name.clone(), path), directory));
            }
        }
        found
    }

    fn find(&self, name: &[u8], run_paths: &[PathBuf]) -> Option<PathBuf> {
        let file = OsStr::from_bytes(name);
        let in_directories = |directories: &[PathBuf]| {
            directories.iter().map(|directory| directory.join(file)).find(|path| self.host.at(path).is_file())
        };
        let in_cache = || {
            let fits = |entry: &&ld_cache::Entry<'_>| entry.name == name && entry.hwcap == 0;
            let mut entries = self.cache.iter().filter(fits).filter(|entry| entry.serves(NATIVE_MACHINE));
            entries.next().map(|entry| PathBuf::from(OsStr::from_bytes(entry.path)))
        };
        in_directories(&self.library_path)
            .or_else(|| in_directories(run_paths))
            .or_else(in_cache)
            .or_else(|| in_directories(&DIRECTORIES.map(PathBuf::from)))
    }

    /// Adds the plugins and files of a library, and returns what the plugins need.
    fn companions(&mut self, of: &Companions, path: &HostPath, directory: &Path) -> Vec<(HostLibrary, PathBuf)> {
        let real = path.as_path().parent().unwrap_or(Path::new("/"));
        let directory = self.without_merged_usr(directory);
        let mut places = vec![real];
        if directory != real {
            places.push(&directory);
        }
        let mut needed = Vec::new();
        for place in places {
            for plugins in of.plugins {
                needed.extend(self.plugins(by_name(&place.join(plugins))));
            }
            for file in of.files {
                let path = HostPath::new(by_name(&place.join(file)));
                let is_everybodys = EVERYBODYS.iter().any(|directory| path.as_path() == Path::new(directory));
                if !is_everybodys && self.host.kind(&path).is_some() && !self.closure.files.contains(&path) {
                    self.closure.files.push(path);
                }
            }
        }
        needed
    }

    /// Where `/lib` is a link to `/usr/lib`, the two are one place.
    fn without_merged_usr(&self, directory: &Path) -> PathBuf {
        let below_usr = Path::new("/usr").join(directory.strip_prefix("/").unwrap_or(directory));
        let same = || {
            let canonical = |path: &Path| fs::canonicalize(self.host.at(path)).ok();
            canonical(directory).is_some() && canonical(directory) == canonical(&below_usr)
        };
        let may_be_a_link = directory.starts_with("/lib") || directory.starts_with("/lib64");
        if may_be_a_link && same() { below_usr } else { directory.to_owned() }
    }

    fn plugins(&mut self, path: PathBuf) -> Vec<(HostLibrary, PathBuf)> {
        if !self.host.at(&path).is_dir() || !self.seen.insert(path.clone().into_os_string().into_vec()) {
            return Vec::new();
        }
        let names = self.host.names(&path).into_iter().filter(|name| name.windows(3).any(|part| part == b".so"));
        let libraries: Vec<HostLibrary> =
            names.map(|name| self.host.library(name.clone(), path.join(OsStr::from_bytes(&name)))).collect();
        let mut needed = Vec::new();
        for library in &libraries {
            if let Ok(object) = &library.object {
                needed.extend(self.needed(object, &library.path));
            }
        }
        if !libraries.is_empty() {
            self.closure.plugins.push(PluginDirectory { path: HostPath::new(path), libraries });
        }
        needed
    }
}

/// An absolute directory of a run path, `$ORIGIN` filled in.
fn run_path(path: &[u8], origin: &[u8]) -> Option<PathBuf> {
    for word in [&b"$ORIGIN"[..], b"${ORIGIN}"] {
        if let Some(rest) = path.strip_prefix(word) {
            return Some(by_name(Path::new(OsStr::from_bytes(&[origin, rest].concat()))));
        }
    }
    path.starts_with(b"/").then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// What Slurm says of the plugins by which it speaks to ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlurmPlugins {
    /// Where `srun` has no `--mpi`.
    pub default: Option<String>,
    /// Those that there are.
    pub names: Vec<String>,
}

/// Asks Slurm, by the programs beside `srun`. Where it does not answer, nothing is known.
pub fn slurm_plugins(srun: &HostPath) -> SlurmPlugins {
    let config = output(&srun.as_path().with_file_name("scontrol"), &["show", "config"]);
    let default = config.lines().find(|line| line.trim_start().starts_with("MpiDefault"));
    let default = default.and_then(|line| line.split_once('=')).map(|(_, value)| value.trim().to_owned());
    let list = output(srun.as_path(), &["--mpi=list"]);
    let is_name = |word: &&str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    // `MPI plugin types are...`, then a name a line.
    let names = list.lines().map(str::trim).filter(|line| !line.is_empty()).filter(is_name).map(str::to_owned);
    SlurmPlugins { default, names: names.collect() }
}

/// What a program says on both streams; nothing where it fails or takes long.
fn output(program: &Path, arguments: &[&str]) -> String {
    /// A controller that is down is asked for a minute and more.
    const PATIENCE: Duration = Duration::from_secs(3);
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return String::new() };
    let reader = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stream.map(|mut stream| stream.read_to_string(&mut text));
            text
        })
    };
    let stdout = reader(child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let stderr = reader(child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let end = Instant::now() + PATIENCE;
    let mut succeeded = false;
    while Instant::now() < end {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Ok(Some(status)) => {
                succeeded = status.success();
                break;
            }
            Err(_) => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    let text = [stdout, stderr].into_iter().filter_map(|reader| reader.join().ok()).collect::<Vec<_>>().join("\n");
    if succeeded { text } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::fabricate::Library;
    use crate::elf::ld_cache::Entry;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory that stands for a host's root.
    struct FabricatedHost(PathBuf);

    impl FabricatedHost {
        /// A host with libraries, each by its path, what it needs, and its run path; and those of `cached` in its cache.
        fn new(libraries: &[(&str, &[&str], &str)], cached: &[&'static str]) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let root = std::env::temp_dir().join(format!("sifu-test-mpi-{}-{count}", std::process::id()));
            fs::create_dir_all(&root).expect("a directory");
            let host = Self(fs::canonicalize(root).expect("its path"));
            for (path, needed, run_path) in libraries {
                let name = path.rsplit('/').next().expect("a name");
                let library = Library {
                    soname: Some(name),
                    machine: NATIVE_MACHINE,
                    needed,
                    run_path: Some(run_path),
                    ..Library::default()
                };
                host.file(path, &library.to_bytes());
            }
            let entry = |path: &&'static str| Entry {
                name: path.rsplit('/').next().expect("a name").as_bytes(),
                path: path.as_bytes(),
                flags: ld_cache::flags_of(NATIVE_MACHINE).unwrap_or(3),
                hwcap: 0,
            };
            host.file("/etc/ld.so.cache", &ld_cache::write(&cached.iter().map(entry).collect::<Vec<_>>()));
            host
        }

        fn file(&self, path: &str, content: &[u8]) {
            let path = self.0.join(&path[1..]);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, content).expect("a file");
        }

        fn observe(&self, query: &MpiQuery) -> MpiHostFacts {
            let query = MpiQuery {
                names: &["libmpi.so.40", "libmpi.so.12"],
                launchers: &["mpirun"],
                devices: &["infiniband", "knem"],
                ..query.clone()
            };
            observe(&self.0, &query)
        }

        fn follow(&self, mpi: &HostMpi) -> MpiClosure {
            let companions = [Companions {
                of: "libopen-pal.so",
                plugins: &["openmpi"],
                files: &["../share/openmpi", "../etc", "../../etc"],
            }];
            follow(&self.0, mpi, |name| name == b"libmpi_cxx.so.40", &companions, b"")
        }
    }

    impl Drop for FabricatedHost {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn found(facts: &MpiHostFacts) -> Vec<(String, FoundBy)> {
        facts.libraries.iter().map(|mpi| (mpi.library.path.to_string(), mpi.found_by)).collect()
    }

    #[test]
    fn what_a_module_names_comes_before_what_lies_beside_the_launcher_and_in_the_cache() {
        let libraries = [
            ("/opt/a/lib/libmpi.so.40", &[][..], ""),
            ("/opt/b/lib/libmpi.so.12", &[], ""),
            ("/usr/lib64/libmpi.so.40", &[], ""),
        ];
        let host = FabricatedHost::new(&libraries, &["/usr/lib64/libmpi.so.40"]);
        host.file("/opt/b/bin/mpiexec.hydra", b"");
        symlink("mpiexec.hydra", host.0.join("opt/b/bin/mpirun")).expect("a link");
        host.file("/dev/infiniband/uverbs0", b"");
        host.file("/dev/null", b"");
        let facts = host.observe(&MpiQuery {
            search_path: b"/usr/bin:/opt/b/bin".to_vec(),
            library_path: b"/opt/a/lib".to_vec(),
            ..MpiQuery::default()
        });
        let expected = [
            ("/opt/a/lib/libmpi.so.40".to_owned(), FoundBy::LibraryPath),
            ("/opt/b/lib/libmpi.so.12".to_owned(), FoundBy::Launcher),
            ("/usr/lib64/libmpi.so.40".to_owned(), FoundBy::Cache),
        ];
        assert_eq!(found(&facts), expected);
        let [launcher] = &facts.launchers[..] else { panic!("one launcher: {facts:?}") };
        assert_eq!(
            (&launcher.path, &launcher.program[..]),
            (&HostPath::new("/opt/b/bin/mpirun"), &b"mpiexec.hydra"[..])
        );
        assert_eq!(facts.devices, [HostPath::new("/dev/infiniband/uverbs0")]);
    }

    #[test]
    fn needs_are_followed_as_the_linker_does_and_plugins_with_theirs() {
        let libraries = [
            ("/opt/mpi/lib/libmpi.so.40", &["libopen-pal.so.40", "libc.so.6", "libgone.so.1"][..], ""),
            ("/opt/mpi/lib/libmpi_cxx.so.40", &["libstdc++.so.6"], ""),
            ("/opt/mpi/lib/libopen-pal.so.40", &["libhidden.so.1"], "$ORIGIN/private:/nowhere"),
            ("/opt/mpi/lib/private/libhidden.so.1", &[], ""),
            ("/opt/mpi/lib/openmpi/mca_pml_ucx.so", &["libucp.so.0", "libopen-pal.so.40"], ""),
            ("/usr/lib64/libucp.so.0", &["libc.so.6"], ""),
            ("/usr/lib64/libstdc++.so.6", &[], ""),
        ];
        let host = FabricatedHost::new(&libraries, &["/usr/lib64/libucp.so.0", "/usr/lib64/libstdc++.so.6"]);
        host.file("/opt/mpi/share/openmpi/help.txt", b"");
        let facts = host.observe(&MpiQuery { library_path: b"/opt/mpi/lib".to_vec(), ..MpiQuery::default() });
        let closure = host.follow(&facts.libraries[0]);
        let names: Vec<_> = closure.libraries.iter().map(|library| String::from_utf8_lossy(&library.name)).collect();
        let expected = [
            "libhidden.so.1",
            "libmpi.so.40",
            "libmpi_cxx.so.40",
            "libopen-pal.so.40",
            "libstdc++.so.6",
            "libucp.so.0",
        ];
        assert_eq!(names, expected);
        let plugins: Vec<_> = closure.plugins.iter().map(|plugins| plugins.path.to_string()).collect();
        assert_eq!(plugins, ["/opt/mpi/lib/openmpi"]);
        assert_eq!(closure.files, [HostPath::new("/opt/mpi/share/openmpi")]);
    }

    #[test]
    fn a_prefix_behind_a_link_is_known_by_both_names_and_a_merged_usr_by_one() {
        let libraries = [
            ("/opt/mpi-5/lib/libmpi.so.40", &["libopen-pal.so.80"][..], ""),
            ("/opt/mpi-5/lib/libopen-pal.so.80", &[], ""),
            ("/opt/mpi-5/lib/openmpi/mca_btl_sm.so", &[], ""),
            ("/usr/lib/libmpi.so.40", &["libopen-pal.so.40"], ""),
            ("/usr/lib/libopen-pal.so.40", &[], ""),
            ("/usr/lib/openmpi/mca_btl_sm.so", &[], ""),
        ];
        let host = FabricatedHost::new(&libraries, &["/lib/libmpi.so.40", "/lib/libopen-pal.so.40"]);
        symlink("mpi-5", host.0.join("opt/mpi")).expect("a link");
        symlink("usr/lib", host.0.join("lib")).expect("a link");
        let plugins = |library_path: &[u8]| -> Vec<String> {
            let facts = host.observe(&MpiQuery { library_path: library_path.to_vec(), ..MpiQuery::default() });
            let closure = host.follow(&facts.libraries[0]);
            closure.plugins.iter().map(|plugins| plugins.path.to_string()).collect()
        };
        assert_eq!(plugins(b"/opt/mpi/lib"), ["/opt/mpi-5/lib/openmpi", "/opt/mpi/lib/openmpi"]);
        assert_eq!(plugins(b""), ["/usr/lib/openmpi"]);
    }

    #[test]
    fn directories_that_are_everybodys_do_not_come_along() {
        let libraries =
            [("/usr/lib/libmpi.so.40", &["libopen-pal.so.40"][..], ""), ("/usr/lib/libopen-pal.so.40", &[], "")];
        let host = FabricatedHost::new(&libraries, &["/usr/lib/libmpi.so.40", "/usr/lib/libopen-pal.so.40"]);
        host.file("/usr/etc/passwd", b"");
        let facts = host.observe(&MpiQuery::default());
        assert_eq!(host.follow(&facts.libraries[0]).files, []);
    }
}
