//! What is known of a host's MPI: its libraries, what belongs to them, its launchers.

use starter::paths::HostPath;

use super::HostLibrary;

/// A snapshot of what `--mpi` and `mpi check` are decided from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MpiHostFacts {
    /// `e_machine` of the host's programs.
    pub machine: u16,
    /// Its MPI libraries, the one that the caller's environment means first.
    pub libraries: Vec<HostMpi>,
    /// `mpirun` and its like: the process that started this one, then those of `PATH`.
    pub launchers: Vec<HostLauncher>,
    /// `srun`, where it is on `PATH`.
    pub srun: Option<HostPath>,
    /// Devices of a fabric that are there.
    pub devices: Vec<HostPath>,
}

/// One MPI library of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMpi {
    /// Its `name` is the soname that programs ask for.
    pub library: HostLibrary,
    /// The directory in which it was found; symbolic links of it are kept, since its MPI may have been made for that path.
    pub directory: HostPath,
    pub found_by: FoundBy,
}

/// What led to a library, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FoundBy {
    /// `LD_LIBRARY_PATH`, as the modules of a cluster set it.
    LibraryPath,
    /// It lies beside the launcher: `PREFIX/bin/mpirun`, `PREFIX/lib/libmpi.so.40`.
    Launcher,
    /// `/etc/ld.so.cache`.
    Cache,
}

/// A program that starts the ranks of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLauncher {
    /// As it is called.
    pub path: HostPath,
    /// The name of the file that it leads to, such as `orterun` or `mpiexec.hydra`.
    pub program: Vec<u8>,
    /// Whether it is what started this process.
    pub parent: bool,
}

/// Where a library loads further ones from, beyond what it says it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Companions {
    /// What the name of the library begins with.
    pub of: &'static str,
    /// Directories of libraries, relative to the library's own.
    pub plugins: &'static [&'static str],
    /// Other files and directories that it reads: relative to its own directory, or absolute.
    pub files: &'static [&'static str],
}

/// All that belongs to one MPI library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MpiClosure {
    /// The library itself, its siblings, and everything that they and the plugins need; the C library is left out.
    pub libraries: Vec<HostLibrary>,
    pub plugins: Vec<PluginDirectory>,
    /// Files and directories that they read.
    pub files: Vec<HostPath>,
}

/// A directory that libraries are loaded from by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginDirectory {
    pub path: HostPath,
    pub libraries: Vec<HostLibrary>,
}
