//! Looks for accelerators and their drivers: the linker's cache, the libraries of a list, `/proc`, `/sys`, `/dev`.
//!
//! ```text
//! /etc/ld.so.cache                              names ─► files, of which the dynamic parts are read
//! /proc/driver/nvidia/gpus/ADDRESS/information  model, UUID, minor number: /dev/nvidiaN
//! /proc/driver/nvidia/capabilities/gpuN/mig     instances: /dev/nvidia-caps/nvidia-capM
//! /sys/bus/pci/devices/ADDRESS/drm              /dev/dri/renderDN, cardN
//! /sys/class/kfd/kfd/topology/nodes/N           AMD: /dev/dri/renderDN
//! ```
//!
//! No device is opened, which could take a sleeping one seconds: `access(2)` knows the device rules of the control
//! group as well. All paths are below a root, which is `/` but for tests.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use starter::paths::HostPath;

use super::facts::{Gpu, GpuHostFacts, HostLibrary, MigInstance, Node, PathKind, Vendor};
use crate::elf::{NATIVE_MACHINE, Object, ReadAt, is_version_of, ld_cache};

/// No linker cache is larger.
const MAX_CACHE_BYTES: u64 = 16 << 20;
/// Files of `/proc` and `/sys` that are read here have a few hundred bytes.
const MAX_TEXT_BYTES: u64 = 64 << 10;

/// Where drivers lie that are not in the linker's cache: those of WSL and of NixOS.
const OTHER_DIRECTORIES: [&str; 2] = ["/usr/lib/wsl/lib", "/run/opengl-driver/lib"];

/// What to look for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceleratorQuery {
    pub nvidia: bool,
    pub amd: bool,
    /// Names up to `.so`.
    pub libraries: Vec<Vec<u8>>,
    /// Those of `libraries` that stand for their drivers.
    pub drivers: Vec<Vec<u8>>,
    pub programs: Vec<Vec<u8>>,
    /// The last name of one may hold `*`.
    pub paths: Vec<HostPath>,
    /// `PATH`.
    pub search_path: Vec<u8>,
    /// `LD_LIBRARY_PATH`, which counts where the cache lacks a driver.
    pub library_path: Vec<u8>,
}

/// Takes the snapshot. Nothing here fails: what can't be seen is not there.
pub fn observe(root: &Path, query: &AcceleratorQuery) -> GpuHostFacts {
    let host = Host { root };
    let mut facts = GpuHostFacts {
        machine: NATIVE_MACHINE,
        libraries: host.libraries(query),
        programs: host.programs(query),
        files: query.paths.iter().map(|path| (path.clone(), host.files(path))).collect(),
        ..GpuHostFacts::default()
    };
    if query.nvidia {
        facts.gpus.extend(host.nvidia_gpus());
        facts.control.extend(host.nvidia_control().into_iter().map(|node| (Vendor::Nvidia, node)));
    }
    if query.amd {
        let gpus = host.amd_gpus();
        let control = host.amd_control(gpus.is_empty());
        facts.gpus.extend(gpus);
        facts.control.extend(control.into_iter().map(|node| (Vendor::Amd, node)));
    }
    facts
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match FileExt::read_at(self, &mut buffer[read..], offset.saturating_add(read as u64)) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }
}

/// The files of a host.
pub(super) struct Host<'a> {
    pub(super) root: &'a Path,
}

impl Host<'_> {
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Returns a small file's text.
    fn text(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        File::open(self.at(path)).ok()?.take(MAX_TEXT_BYTES).read_to_end(&mut text).ok()?;
        Some(text)
    }

    /// Returns the names in a directory, sorted; none where there is no such directory.
    pub(super) fn names(&self, path: impl AsRef<Path>) -> Vec<Vec<u8>> {
        let entries = fs::read_dir(self.at(path)).into_iter().flatten().flatten();
        let mut names: Vec<Vec<u8>> = entries.map(|entry| entry.file_name().into_vec()).collect();
        names.sort();
        names
    }

    /// Returns what is there of a path whose last name may hold `*`.
    fn files(&self, path: &HostPath) -> Vec<(HostPath, PathKind)> {
        let kind = |path: HostPath| {
            let metadata = fs::metadata(self.at(&path)).ok()?;
            Some((path, super::kind(&metadata)))
        };
        let (Some(directory), Some(name)) = (path.as_path().parent(), path.as_path().file_name()) else {
            return Vec::new();
        };
        if !name.as_bytes().contains(&b'*') {
            return kind(path.clone()).into_iter().collect();
        }
        let names = self.names(directory).into_iter().filter(|found| matches(name.as_bytes(), found));
        names.filter_map(|name| kind(HostPath::new(directory.join(OsStr::from_bytes(&name))))).collect()
    }

    pub(super) fn kind(&self, path: &HostPath) -> Option<PathKind> {
        fs::metadata(self.at(path)).ok().map(|metadata| super::kind(&metadata))
    }

    fn node(&self, path: impl Into<PathBuf>) -> Node {
        self.node_for(path, AccessFlags::R_OK | AccessFlags::W_OK)
    }

    fn node_for(&self, path: impl Into<PathBuf>, use_of_it: AccessFlags) -> Node {
        let path = HostPath::new(path);
        let refused = access(&self.at(&path), use_of_it).err().map(|errno| errno as i32);
        Node { path, refused }
    }

    // ---- files ----

    fn libraries(&self, query: &AcceleratorQuery) -> Vec<HostLibrary> {
        if query.libraries.is_empty() {
            return Vec::new();
        }
        let wanted = |name: &[u8]| query.libraries.iter().any(|library| is_version_of(name, library));
        let cache = self.linker_cache();
        let mut found: Vec<(Vec<u8>, PathBuf)> = ld_cache::parse(&cache)
            .unwrap_or_default()
            .iter()
            .filter(|entry| entry.hwcap == 0 && wanted(entry.name))
            .map(|entry| (entry.name.to_vec(), PathBuf::from(OsStr::from_bytes(entry.path))))
            .collect();
        let mut directories: Vec<PathBuf> = OTHER_DIRECTORIES.iter().map(PathBuf::from).collect();
        // The modules of a cluster put dozens of directories there, on a file system far away.
        let known = |driver: &Vec<u8>| found.iter().any(|(name, _)| is_version_of(name, driver));
        if !query.drivers.iter().all(known) {
            directories.extend(directories_of(&query.library_path));
        }
        for directory in directories {
            for name in self.names(&directory).into_iter().filter(|name| wanted(name)) {
                let path = directory.join(OsStr::from_bytes(&name));
                found.push((name, path));
            }
        }
        found.into_iter().map(|(name, path)| self.library(name, path)).collect()
    }

    /// The bytes of the linker's cache; none where there is none.
    pub(super) fn linker_cache(&self) -> Vec<u8> {
        let mut cache = Vec::new();
        if let Ok(file) = File::open(self.at("/etc/ld.so.cache")) {
            let _ = file.take(MAX_CACHE_BYTES).read_to_end(&mut cache);
        }
        cache
    }

    pub(super) fn library(&self, name: Vec<u8>, path: PathBuf) -> HostLibrary {
        let real = fs::canonicalize(self.at(&path)).ok();
        let real = real.and_then(|real| Some(Path::new("/").join(real.strip_prefix(self.root).ok()?)));
        let path = real.unwrap_or(path);
        let object = self.object(&path).map_err(|error| format!("{}: {error}", path.display()));
        HostLibrary { name, path: HostPath::new(path), object }
    }

    fn object(&self, path: &Path) -> Result<Object, String> {
        let cause = |error: io::Error| match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).desc().to_lowercase(),
            None => error.to_string(),
        };
        // Not to wait for a writer, should it be a pipe.
        let mut options = File::options();
        let file = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open(self.at(path)).map_err(cause)?;
        if !file.metadata().map_err(cause)?.is_file() {
            return Err("not a regular file".to_owned());
        }
        Object::parse(&file).map_err(|error| error.to_string())
    }

    fn programs(&self, query: &AcceleratorQuery) -> BTreeMap<Vec<u8>, HostPath> {
        let directories: Vec<PathBuf> = directories_of(&query.search_path).collect();
        let find = |name: &Vec<u8>| {
            let candidates = directories.iter().map(|directory| directory.join(OsStr::from_bytes(name)));
            let path = candidates.into_iter().find(|path| {
                let path = self.at(path);
                path.is_file() && access(&path, AccessFlags::X_OK).is_ok()
            })?;
            Some((name.clone(), HostPath::new(path)))
        };
        query.programs.iter().filter_map(find).collect()
    }

    // ---- NVIDIA ----

    /// By PCI address, as the driver's tools count.
    fn nvidia_gpus(&self) -> Vec<Gpu> {
        let directory = Path::new("/proc/driver/nvidia/gpus");
        let mut gpus: Vec<Gpu> = Vec::new();
        for address in self.names(directory) {
            let address = OsStr::from_bytes(&address);
            let Some(text) = self.text(directory.join(address).join("information")) else { continue };
            let Some(minor) = number(&field(&text, b"Device Minor")) else { continue };
            let mut nodes = vec![self.node(format!("/dev/nvidia{minor}"))];
            nodes.extend(self.rendering_nodes(&Path::new("/sys/bus/pci/devices").join(address).join("drm")));
            let (id, model) = (field(&text, b"GPU UUID"), field(&text, b"Model"));
            gpus.push(Gpu { vendor: Vendor::Nvidia, id, model, nodes, instances: self.instances(minor) });
        }
        if gpus.is_empty() {
            gpus = self.nvidia_gpus_of_dev();
        }
        gpus
    }

    /// What is left where another container engine shows the devices and hides the rest.
    fn nvidia_gpus_of_dev(&self) -> Vec<Gpu> {
        let minors = self.names("/dev").into_iter().filter_map(|name| number(name.strip_prefix(b"nvidia")?));
        let mut minors: Vec<u32> = minors.collect();
        minors.sort_unstable();
        minors
            .into_iter()
            .map(|minor| Gpu {
                vendor: Vendor::Nvidia,
                id: Vec::new(),
                model: Vec::new(),
                nodes: vec![self.node(format!("/dev/nvidia{minor}"))],
                instances: Vec::new(),
            })
            .collect()
    }

    /// The nodes in `/dev/dri` that a directory of `/sys` names.
    fn rendering_nodes(&self, directory: &Path) -> Vec<Node> {
        let names = self.names(directory).into_iter();
        let names = names.filter(|name| name.starts_with(b"renderD") || name.starts_with(b"card"));
        let paths = names.map(|name| Path::new("/dev/dri").join(OsStr::from_bytes(&name)));
        paths.filter(|path| self.at(path).exists()).map(|path| self.node(path)).collect()
    }

    fn instances(&self, minor: u32) -> Vec<MigInstance> {
        let directory = PathBuf::from(format!("/proc/driver/nvidia/capabilities/gpu{minor}/mig"));
        let numbered = |path: &Path, prefix: &str| {
            let names = self.names(path).into_iter();
            let mut numbers: Vec<u32> =
                names.filter_map(|name| number(name.strip_prefix(prefix.as_bytes())?)).collect();
            numbers.sort_unstable();
            numbers
        };
        let node = |path: PathBuf| {
            let minor = number(&field(&self.text(path.join("access"))?, b"DeviceFileMinor"))?;
            // Who may read a capability has it; the driver gives nobody the right to write.
            Some(self.node_for(format!("/dev/nvidia-caps/nvidia-cap{minor}"), AccessFlags::R_OK))
        };
        let mut instances = Vec::new();
        for gpu_instance in numbered(&directory, "gi") {
            let outer = directory.join(format!("gi{gpu_instance}"));
            for compute_instance in numbered(&outer, "ci") {
                let inner = outer.join(format!("ci{compute_instance}"));
                let nodes = [node(outer.clone()), node(inner)].into_iter().flatten().collect();
                instances.push(MigInstance { gpu_instance, compute_instance, nodes });
            }
        }
        instances
    }

    /// Everything of NVIDIA's in `/dev` that belongs to no single GPU.
    fn nvidia_control(&self) -> Vec<Node> {
        let of_a_gpu = |name: &[u8]| name.strip_prefix(b"nvidia").is_none_or(|rest| number(rest).is_some());
        let mut names: Vec<Vec<u8>> = self.names("/dev").into_iter().filter(|name| !of_a_gpu(name)).collect();
        names.retain(|name| !self.at(Path::new("/dev").join(OsStr::from_bytes(name))).is_dir());
        // The device of WSL serves as all of them.
        names.extend(self.at("/dev/dxg").exists().then(|| b"dxg".to_vec()));
        let channels = self.names("/dev/nvidia-caps-imex-channels").into_iter();
        names.extend(channels.map(|name| [b"nvidia-caps-imex-channels/", &name[..]].concat()));
        names.into_iter().map(|name| self.node(Path::new("/dev").join(OsStr::from_bytes(&name)))).collect()
    }

    // ---- AMD ----

    /// By node of the topology, as ROCm counts.
    fn amd_gpus(&self) -> Vec<Gpu> {
        let directory = Path::new("/sys/class/kfd/kfd/topology/nodes");
        let mut nodes: Vec<u32> = self.names(directory).iter().filter_map(|name| number(name)).collect();
        nodes.sort_unstable();
        let gpu = |node: u32| {
            let node = directory.join(node.to_string());
            let properties = self.text(node.join("properties"))?;
            // A processor has no node for rendering.
            let minor = number(&property(&properties, b"drm_render_minor")).filter(|&minor| minor > 0)?;
            let id = std::str::from_utf8(&property(&properties, b"unique_id")).ok()?.parse::<u64>().unwrap_or(0);
            let render = format!("renderD{minor}");
            let mut nodes = vec![self.node(Path::new("/dev/dri").join(&render))];
            let all = self.rendering_nodes(&Path::new("/sys/class/drm").join(&render).join("device/drm"));
            nodes.extend(all.into_iter().filter(|found| found.path != nodes[0].path).collect::<Vec<_>>());
            let model = self.text(node.join("name")).unwrap_or_default().trim_ascii().to_vec();
            let id = format!("GPU-{id:016x}").into_bytes();
            Some(Gpu { vendor: Vendor::Amd, id, model, nodes, instances: Vec::new() })
        };
        nodes.into_iter().filter_map(gpu).collect()
    }

    /// `/dev/kfd`; with it all nodes for rendering where the topology does not tell whose they are.
    fn amd_control(&self, topology_is_missing: bool) -> Vec<Node> {
        let kfd = Path::new("/dev/kfd");
        if !self.at(kfd).exists() {
            return Vec::new();
        }
        let mut nodes = vec![self.node(kfd)];
        if topology_is_missing {
            let names = self.names("/dev/dri").into_iter().filter(|name| name.starts_with(b"renderD"));
            nodes.extend(names.map(|name| self.node(Path::new("/dev/dri").join(OsStr::from_bytes(&name)))));
        }
        nodes
    }
}

/// Whether a name is one that a pattern means, where `*` stands for anything; a name with a dot first is none.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut parts = pattern.split(|&byte| byte == b'*');
    let (others, mut rest) = match name.strip_prefix(parts.next().unwrap_or_default()) {
        Some(rest) if !name.starts_with(b".") => (parts.collect::<Vec<_>>(), rest),
        _ => return false,
    };
    let Some((last, between)) = others.split_last() else { return rest.is_empty() };
    for part in between {
        match (0..=rest.len()).find(|&at| rest[at..].starts_with(part)) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The absolute directories of a list like `PATH`.
pub(super) fn directories_of(list: &[u8]) -> impl Iterator<Item = PathBuf> {
    let words = list.split(|&byte| byte == b':').filter(|word| word.starts_with(b"/"));
    words.map(|word| PathBuf::from(OsStr::from_bytes(word)))
}

/// The value of a line such as `GPU UUID: \t GPU-4f5e`; empty where there is none.
fn field(text: &[u8], name: &[u8]) -> Vec<u8> {
    let value =
        |line: &[u8]| line.trim_ascii().strip_prefix(name)?.strip_prefix(b":").map(|rest| rest.trim_ascii().to_vec());
    text.split(|&byte| byte == b'\n').find_map(value).unwrap_or_default()
}

/// The value of a line such as `drm_render_minor 128`; empty where there is none.
fn property(text: &[u8], name: &[u8]) -> Vec<u8> {
    let value = |line: &[u8]| line.strip_prefix(name)?.strip_prefix(b" ").map(|rest| rest.trim_ascii().to_vec());
    text.split(|&byte| byte == b'\n').find_map(value).unwrap_or_default()
}

fn number(text: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(text).ok()?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
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
        fn new(files: &[(&str, &[u8])]) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let root = std::env::temp_dir().join(format!("sifu-test-accelerators-{}-{count}", std::process::id()));
            fs::create_dir_all(&root).expect("a directory");
            let host = Self(fs::canonicalize(root).expect("its path"));
            for (path, content) in files {
                let path = host.0.join(path);
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                fs::write(path, content).expect("a file");
            }
            host
        }

        fn observe(&self, query: &AcceleratorQuery) -> GpuHostFacts {
            observe(&self.0, query)
        }
    }

    impl Drop for FabricatedHost {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn nodes(gpu: &Gpu) -> Vec<String> {
        gpu.nodes.iter().map(|node| node.path.to_string()).collect()
    }

    #[test]
    fn libraries_come_from_the_cache_with_what_they_say_of_themselves() {
        let entry = |name: &'static str, path: &'static str| Entry {
            name: name.as_bytes(),
            path: path.as_bytes(),
            flags: ld_cache::flags_of(NATIVE_MACHINE).unwrap_or(3),
            hwcap: 0,
        };
        let cache = ld_cache::write(&[
            entry("libcuda.so.1", "/usr/lib/libcuda.so.1"),
            entry("libnvidia-ml.so.1", "/usr/lib/libnvidia-ml.so.1"),
            entry("libnvidia-gone.so.1", "/usr/lib/gone"),
            entry("libz.so.1", "/usr/lib/libz.so.1"),
        ]);
        let library = Library { soname: Some("libcuda.so.1"), glibc_needs: &["GLIBC_9.99"], ..Library::default() };
        let host = FabricatedHost::new(&[
            ("etc/ld.so.cache", &cache),
            ("usr/lib/libcuda.so.570", &library.to_bytes()),
            ("usr/lib/libnvidia-ml.so.1", b"#!/bin/sh"),
            ("usr/lib/wsl/lib/libdxcore.so", &library.to_bytes()),
        ]);
        symlink("libcuda.so.570", host.0.join("usr/lib/libcuda.so.1")).expect("a link");
        let names = ["libcuda.so", "libnvidia-ml.so", "libnvidia-gone.so", "libdxcore.so"];
        let query =
            AcceleratorQuery { libraries: names.map(|name| name.as_bytes().to_vec()).into(), ..Default::default() };
        let found = host.observe(&query).libraries;
        let said: Vec<String> = found
            .iter()
            .map(|library| {
                let name = String::from_utf8_lossy(&library.name).into_owned();
                match &library.object {
                    Ok(object) => {
                        let needs: Vec<&str> =
                            object.version_needs.iter().filter_map(|need| std::str::from_utf8(need).ok()).collect();
                        format!("{name} {} {}", library.path, needs.join(" "))
                    }
                    Err(why) => format!("{name}: {why}"),
                }
            })
            .collect();
        assert_eq!(
            said,
            [
                "libnvidia-ml.so.1: /usr/lib/libnvidia-ml.so.1: not an ELF file",
                "libnvidia-gone.so.1: /usr/lib/gone: no such file or directory",
                "libcuda.so.1 /usr/lib/libcuda.so.570 GLIBC_9.99",
                "libdxcore.so /usr/lib/wsl/lib/libdxcore.so GLIBC_9.99",
            ]
        );
    }

    #[test]
    fn the_library_path_counts_where_the_cache_lacks_the_driver() {
        let library = Library::default().to_bytes();
        let host = FabricatedHost::new(&[("etc/ld.so.cache", b"broken"), ("opt/nv/libcuda.so.1", &library)]);
        let query = AcceleratorQuery {
            libraries: vec![b"libcuda.so".to_vec()],
            drivers: vec![b"libcuda.so".to_vec()],
            library_path: b"relative:/opt/none:/opt/nv".to_vec(),
            ..AcceleratorQuery::default()
        };
        let found = host.observe(&query).libraries;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, HostPath::new("/opt/nv/libcuda.so.1"));
    }

    #[test]
    fn gpus_are_counted_by_address_and_know_their_nodes_and_instances() {
        let information = |uuid: &str, minor: u32| {
            format!("Model: \t\t NVIDIA H200\nGPU UUID: \t {uuid}\nBus Type: PCIe\nDevice Minor: \t {minor}\n")
        };
        let (first, second) = (information("GPU-aa", 1), information("GPU-bb", 0));
        let mig = "proc/driver/nvidia/capabilities/gpu1/mig";
        let (gi, ci) = (format!("{mig}/gi11/access"), format!("{mig}/gi11/ci0/access"));
        let (other_gi, other_ci) = (format!("{mig}/gi9/access"), format!("{mig}/gi9/ci0/access"));
        let access = |minor: u32| format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\n").into_bytes();
        let host = FabricatedHost::new(&[
            ("proc/driver/nvidia/gpus/0000:3b:00.0/information", first.as_bytes()),
            ("proc/driver/nvidia/gpus/0000:af:00.0/information", second.as_bytes()),
            ("proc/driver/nvidia/gpus/0000:b0:00.0/information", b"nothing of use"),
            (&gi, &access(30)),
            (&ci, &access(31)),
            (&other_gi, &access(3)),
            (&other_ci, &access(4)),
            ("dev/nvidia0", b""),
            ("dev/nvidia1", b""),
            ("dev/nvidiactl", b""),
            ("dev/nvidia-uvm", b""),
            ("dev/nvidia-caps/nvidia-cap1", b""),
            ("dev/nvidia-caps/nvidia-cap4", b""),
            ("dev/nvidia-caps-imex-channels/channel0", b""),
            ("dev/dri/renderD128", b""),
            ("sys/bus/pci/devices/0000:3b:00.0/drm/renderD128/dev", b"226:128"),
            ("sys/bus/pci/devices/0000:3b:00.0/drm/card7/dev", b"226:7"),
        ]);
        let facts = host.observe(&AcceleratorQuery { nvidia: true, ..AcceleratorQuery::default() });
        assert_eq!(facts.gpus.len(), 2);
        let [one, other] = &facts.gpus[..] else { panic!("two GPUs") };
        assert_eq!((&one.id[..], &one.model[..]), (&b"GPU-aa"[..], &b"NVIDIA H200"[..]));
        assert_eq!(nodes(one), ["/dev/nvidia1", "/dev/dri/renderD128"]);
        assert_eq!(nodes(other), ["/dev/nvidia0"]);
        let instances: Vec<(u32, u32)> =
            one.instances.iter().map(|found| (found.gpu_instance, found.compute_instance)).collect();
        assert_eq!(instances, [(9, 0), (11, 0)]);
        let caps = &one.instances[0].nodes;
        assert_eq!((caps[0].refused, caps[1].refused), (Some(Errno::ENOENT as i32), None));
        let control: Vec<String> = facts.control.iter().map(|(_, node)| node.path.to_string()).collect();
        assert_eq!(control, ["/dev/nvidia-uvm", "/dev/nvidiactl", "/dev/nvidia-caps-imex-channels/channel0"]);
    }

    #[test]
    fn the_nodes_alone_are_enough() {
        let host = FabricatedHost::new(&[("dev/nvidia10", b""), ("dev/nvidia2", b""), ("dev/nvidiactl", b"")]);
        let facts = host.observe(&AcceleratorQuery { nvidia: true, ..AcceleratorQuery::default() });
        let found: Vec<String> = facts.gpus.iter().flat_map(nodes).collect();
        assert_eq!(found, ["/dev/nvidia2", "/dev/nvidia10"]);
    }

    #[test]
    fn gpus_of_amd_are_counted_by_the_topology() {
        let topology = "sys/class/kfd/kfd/topology/nodes";
        let (processor, gpu, name) =
            (format!("{topology}/0/properties"), format!("{topology}/1/properties"), format!("{topology}/1/name"));
        let host = FabricatedHost::new(&[
            (&processor, b"cpu_cores_count 64\ndrm_render_minor 0\n"),
            (&gpu, b"simd_count 440\nunique_id 255\ndrm_render_minor 129\n"),
            (&name, b"aldebaran\n"),
            ("dev/kfd", b""),
            ("dev/dri/renderD129", b""),
            ("dev/dri/card1", b""),
            ("sys/class/drm/renderD129/device/drm/card1/dev", b""),
            ("sys/class/drm/renderD129/device/drm/renderD129/dev", b""),
        ]);
        let facts = host.observe(&AcceleratorQuery { amd: true, ..AcceleratorQuery::default() });
        assert_eq!(facts.gpus.len(), 1);
        assert_eq!(facts.gpus[0].id, b"GPU-00000000000000ff");
        assert_eq!(facts.gpus[0].model, b"aldebaran");
        assert_eq!(nodes(&facts.gpus[0]), ["/dev/dri/renderD129", "/dev/dri/card1"]);
        let control: Vec<String> = facts.control.iter().map(|(_, node)| node.path.to_string()).collect();
        assert_eq!(control, ["/dev/kfd"]);
    }

    #[test]
    fn programs_are_found_on_the_path_and_files_where_they_are() {
        use std::os::unix::fs::PermissionsExt;
        let host = FabricatedHost::new(&[("a/nvidia-smi", b""), ("b/nvidia-smi", b""), ("run/x/data", b"")]);
        fs::set_permissions(host.0.join("b/nvidia-smi"), fs::Permissions::from_mode(0o755)).expect("a mode");
        let query = AcceleratorQuery {
            programs: vec![b"nvidia-smi".to_vec(), b"rocminfo".to_vec()],
            paths: ["/run/x", "/run/x/data", "/run/y", "/run/x/d*a", "/run/z/*"].map(HostPath::new).into(),
            search_path: b"/a:/b:/c".to_vec(),
            ..AcceleratorQuery::default()
        };
        let facts = host.observe(&query);
        assert_eq!(facts.programs, BTreeMap::from([(b"nvidia-smi".to_vec(), HostPath::new("/b/nvidia-smi"))]));
        let data = || vec![(HostPath::new("/run/x/data"), PathKind::File)];
        let kinds = [
            ("/run/x", vec![(HostPath::new("/run/x"), PathKind::Directory)]),
            ("/run/x/data", data()),
            ("/run/y", Vec::new()),
            ("/run/x/d*a", data()),
            ("/run/z/*", Vec::new()),
        ];
        assert_eq!(facts.files, BTreeMap::from(kinds.map(|(path, found)| (HostPath::new(path), found))));
    }

    #[test]
    fn a_pattern_stands_for_names() {
        for (pattern, name, expected) in [
            ("*nvidia*.json", "10_nvidia.json", true),
            ("*nvidia*.json", "nvidia_icd.x86_64.json", true),
            ("*nvidia*.json", "50_mesa.json", false),
            ("*nvidia*.json", "nvidia.json.bak", false),
            ("nvidia_icd*.json", "nvidia_icd.json", true),
            ("nvidia_icd*.json", "10_nvidia_icd.json", false),
            ("a*a", "a", false),
            ("*", "x", true),
            ("*", ".x", false),
            ("*.json", ".json", false),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_capability_that_may_only_be_read_is_usable() {
        use std::os::unix::fs::PermissionsExt;
        let mig = "proc/driver/nvidia/capabilities/gpu0/mig";
        let (gi, ci) = (format!("{mig}/gi1/access"), format!("{mig}/gi1/ci0/access"));
        let host = FabricatedHost::new(&[
            ("proc/driver/nvidia/gpus/0000:3b:00.0/information", b"GPU UUID: GPU-a\nDevice Minor: 0\n"),
            (&gi, b"DeviceFileMinor: 3\nDeviceFileMode: 292\n"),
            (&ci, b"DeviceFileMinor: 4\nDeviceFileMode: 292\n"),
            ("dev/nvidia0", b""),
            ("dev/nvidia-caps/nvidia-cap3", b""),
        ]);
        fs::set_permissions(host.0.join("dev/nvidia-caps/nvidia-cap3"), fs::Permissions::from_mode(0o444))
            .expect("a mode");
        let facts = host.observe(&AcceleratorQuery { nvidia: true, ..AcceleratorQuery::default() });
        let refused: Vec<Option<i32>> = facts.gpus[0].instances[0].nodes.iter().map(|node| node.refused).collect();
        assert_eq!(refused, [None, Some(Errno::ENOENT as i32)]);
        assert!(!facts.gpus[0].instances[0].accessible());
    }

    #[test]
    fn a_host_without_anything_gives_nothing() {
        let host = FabricatedHost::new(&[]);
        let query = AcceleratorQuery {
            nvidia: true,
            amd: true,
            libraries: vec![b"libcuda.so".to_vec()],
            programs: vec![b"nvidia-smi".to_vec()],
            ..AcceleratorQuery::default()
        };
        assert_eq!(host.observe(&query), GpuHostFacts { machine: NATIVE_MACHINE, ..GpuHostFacts::default() });
    }
}
