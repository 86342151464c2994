//! A host with accelerators that is made up: mounts of a namespace of its own over `/dev`, `/proc/driver`, `/sys`,
//! `/run` and the linker's cache, in which sifu runs as an ordinary user.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Output, Scratch, sifu_path};
use sifu::elf::{Class, NATIVE_MACHINE, ld_cache};

/// The writer of ELF files that the reader's own tests use.
#[path = "../src/elf/fabricate.rs"]
pub mod fabricate;
use fabricate::Library;

/// Makes the host's directories and starts a program that does not own them.
///
/// `$1` is the directory of the host's parts, the rest is the program with its arguments. What stands for a device is
/// another one that anybody may open: `/dev/zero`, or what the list of nodes says.
const MOUNTS: &str = r#"
host=$1; shift
mount -t tmpfs -o mode=755 none "$host/dev"
cd "$host/dev"
mkdir pts shm
for node in null zero full random urandom tty fuse; do
  : > "$node"; mount --bind "/dev/$node" "$node"
done
mount --rbind /dev/pts pts
ln -s pts/ptmx ptmx; ln -s /proc/self/fd fd; ln -s fd/2 stderr
while read -r node stand_in; do
  mkdir -p "$(dirname "$node")"
  : > "$node"; mount --bind "/dev/$stand_in" "$node"
done < "$host/nodes"
cd /
mount --rbind "$host/dev" /dev
mount --bind "$host/proc" /proc/driver
if [ -d "$host/sys" ]; then mount --bind "$host/sys" /sys; fi
mount --bind "$host/run" /run
if [ -e "$host/ld.so.cache" ]; then mount --bind "$host/ld.so.cache" /etc/ld.so.cache; fi
cd "$host"
exec unshare --user --map-user=1000 --map-group=1000 -- "$@"
"#;

pub struct Host {
    scratch: Scratch,
    nodes: String,
    cache: Vec<(String, String, u32)>,
    environment: Vec<(&'static str, String)>,
    /// Said before the mounts are made.
    before: String,
}

impl Host {
    /// A host without any accelerator.
    pub fn bare() -> Self {
        let scratch = Scratch::new();
        for directory in ["dev", "proc", "run", "lib", "bin"] {
            fs::create_dir_all(scratch.path().join(directory)).expect("a directory");
        }
        let (nodes, cache) = (String::new(), Vec::new());
        Self { scratch, nodes, cache, environment: Vec::new(), before: String::new() }
    }

    /// Two GPUs of NVIDIA's, the second of which has two MIG instances, with the driver's libraries and programs.
    pub fn nvidia() -> Self {
        let mut host = Self::bare();
        host.gpu("0000:3b:00.0", "GPU-aaaa", 0).gpu("0000:af:00.0", "GPU-bbbb", 1);
        for (path, minor) in [("gi1", 3), ("gi1/ci0", 4), ("gi2", 12), ("gi2/ci0", 13)] {
            host.capability(&format!("gpu1/mig/{path}"), minor);
        }
        // Who manages instances has this one; a container has no use for it.
        host.capability("mig", 1);
        for node in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
            host.node(node);
        }
        for minor in [1, 3, 4, 12, 13] {
            host.node(&format!("nvidia-caps/nvidia-cap{minor}"));
        }
        host.library("libcuda.so.570", "libcuda.so.1", &Library { soname: Some("libcuda.so.1"), ..native() });
        host.program("nvidia-smi");
        host
    }

    /// Two GPUs of AMD's.
    pub fn amd() -> Self {
        let mut host = Self::bare();
        let topology = "sys/class/kfd/kfd/topology/nodes";
        host.file(&format!("{topology}/0/properties"), "cpu_cores_count 64\ndrm_render_minor 0\n");
        for (number, minor) in [(1, 128), (2, 129)] {
            let properties = format!("simd_count 440\nunique_id {number}\ndrm_render_minor {minor}\n");
            host.file(&format!("{topology}/{number}/properties"), &properties);
            host.node(&format!("dri/renderD{minor}"));
        }
        host.node("kfd");
        host.library("libhsa-runtime64.so.1.14", "libhsa-runtime64.so.1", &native());
        host.program("rocm-smi");
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub fn file(&mut self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, content).expect("a file");
        path
    }

    pub fn gpu(&mut self, address: &str, id: &str, minor: u32) -> &mut Self {
        let text = format!("Model: \t\t NVIDIA H200\nGPU UUID: \t {id}\nDevice Minor: \t {minor}\n");
        self.file(&format!("proc/nvidia/gpus/{address}/information"), &text);
        self
    }

    fn capability(&mut self, path: &str, minor: u32) {
        let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
        self.file(&format!("proc/nvidia/capabilities/{path}/access"), &text);
    }

    pub fn node(&mut self, name: &str) -> &mut Self {
        self.node_like(name, "zero")
    }

    pub fn node_like(&mut self, name: &str, stand_in: &str) -> &mut Self {
        self.nodes.push_str(&format!("{name} {stand_in}\n"));
        self
    }

    /// A library that the linker's cache knows by a name, which is a link to the file.
    pub fn library(&mut self, file: &str, name: &str, library: &Library<'_>) -> &mut Self {
        fs::write(self.path("lib").join(file), library.to_bytes()).expect("a library");
        if file != name {
            symlink(file, self.path("lib").join(name)).expect("a link");
        }
        self.cached(name, library.machine)
    }

    /// An entry of the linker's cache, whatever is there.
    pub fn cached(&mut self, name: &str, machine: u16) -> &mut Self {
        /// Of the C library of version 6, for no known machine.
        const OTHER: u32 = 3;
        let flags = ld_cache::flags_of(machine).unwrap_or(OTHER);
        let path = self.path("lib").join(name).display().to_string();
        let name = name.rsplit('/').next().unwrap_or_default();
        self.cache.push((name.to_owned(), path, flags));
        self
    }

    pub fn program(&mut self, name: &str) -> &mut Self {
        let path = self.file(&format!("bin/{name}"), &format!("#!/bin/sh\necho {name} \"$@\"\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
        self
    }

    /// A socket below `/run`.
    pub fn socket(&mut self, name: &str) -> &mut Self {
        let path = self.path("run").join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        UnixListener::bind(path).expect("a socket");
        self
    }

    pub fn env(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Lines of a shell for those who may do more than mount.
    pub fn before(&mut self, script: &str) -> &mut Self {
        self.before.push_str(script);
        self
    }

    /// Runs sifu there.
    pub fn run(&self, words: &[&str]) -> Output {
        fs::write(self.path("nodes"), &self.nodes).expect("a list of nodes");
        let entries: Vec<ld_cache::Entry<'_>> = self
            .cache
            .iter()
            .map(|(name, path, flags)| ld_cache::Entry {
                name: name.as_bytes(),
                path: path.as_bytes(),
                flags: *flags,
                hwcap: 0,
            })
            .collect();
        fs::write(self.path("ld.so.cache"), ld_cache::write(&entries)).expect("a cache");
        let script = format!(
            "{}\nexec unshare --user --map-root-user --mount -- sh -ec '{}' sh \"$@\"",
            self.before,
            MOUNTS.replace('\'', "'\\''")
        );
        let mut command = Command::new("sh");
        command.args(["-ec", &script, "sh"]).arg(self.scratch.path()).arg(sifu_path()).args(words);
        command.env_clear().env("HOME", self.scratch.path()).env("LANG", "C");
        command.env("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", self.path("bin").display()));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.stdin(Stdio::null()).output().expect("a shell");
        Output {
            code: output.status.code(),
            signal: None,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }
}

/// A library for this machine.
pub fn native() -> Library<'static> {
    Library { machine: NATIVE_MACHINE, ..Library::default() }
}
