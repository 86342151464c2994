//! Which of the host's MPIs a container gets: of the ABI that is wanted, and by what speaks for it. Pure.

use std::fmt;

use super::launcher::{Kind, Launcher, Pmi};
use super::{Abi, Family, family_of_launcher, is_part_of_open_mpi};
use crate::host::facts::{FoundBy, HostMpi, MpiHostFacts};
use crate::report::Hint;

/// Returns the ABI of a library of the host.
pub fn abi(mpi: &HostMpi) -> Option<Abi> {
    let object = mpi.library.object.as_ref().ok()?;
    let open_mpi = object.needed.iter().any(|name| is_part_of_open_mpi(name));
    // A vendor's library may be found under a name of the vendor's own.
    let soname = object.soname.as_deref().unwrap_or(&mpi.library.name);
    Abi::of(soname, open_mpi).or_else(|| Abi::of(&mpi.library.name, open_mpi))
}

/// What speaks for one ABI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// The program is linked with it.
    Program(String),
    /// The image has it.
    Image(String),
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(path) => write!(f, "{path} is linked with it"),
            Self::Image(path) => write!(f, "the image has {path}"),
        }
    }
}

/// Why there is no MPI to be brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChoiceError {
    NothingFound,
    /// The host has others only.
    OtherAbi {
        wanted: Abi,
        because: Because,
        host: Vec<Abi>,
    },
}

impl fmt::Display for ChoiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingFound => f.write_str("this host has no MPI that could be found"),
            Self::OtherAbi { wanted, because, host } => {
                let host: Vec<String> = host.iter().map(ToString::to_string).collect();
                write!(f, "this host has no MPI with the ABI of {wanted}, only {} ({because})", host.join(" and "))
            }
        }
    }
}

impl std::error::Error for ChoiceError {}

impl Hint for ChoiceError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NothingFound => {
                "It is looked for in LD_LIBRARY_PATH, beside the mpirun of PATH, and in the linker's cache. On a cluster, load \
                 its module first."
            }
            Self::OtherAbi { .. } => {
                "Load the module of an MPI with that ABI, or start the ranks with an mpirun that the image's own MPI speaks \
                 with; `sifu mpi check IMAGE` tells which."
            }
        };
        vec![hint.to_owned()]
    }
}

/// Chooses: the ABI decides, then what the launcher speaks, then where the MPI was found.
pub fn choose<'a>(
    host: &'a MpiHostFacts,
    wanted: Option<(Abi, Because)>,
    launcher: Option<&Launcher>,
) -> Result<(&'a HostMpi, Abi), ChoiceError> {
    let known: Vec<(&HostMpi, Abi)> = host.libraries.iter().filter_map(|mpi| Some((mpi, abi(mpi)?))).collect();
    if known.is_empty() {
        return Err(ChoiceError::NothingFound);
    }
    let fitting: Vec<(&HostMpi, Abi)> = match &wanted {
        Some((wanted, _)) => known.iter().filter(|(_, abi)| abi == wanted).copied().collect(),
        None => known.clone(),
    };
    let usual = host.launchers.iter().find_map(|launcher| family_of_launcher(&launcher.program));
    let rank = |(mpi, abi): &(&HostMpi, Abi)| {
        let launched = launcher.and_then(family_of_ranks).is_none_or(|family| family == abi.family);
        // In the cache all MPIs of a host lie side by side; its mpirun tells which one is meant.
        let meant = mpi.found_by != FoundBy::Cache || usual.is_none_or(|family| family == abi.family);
        (!launched, mpi.found_by == FoundBy::Cache, !meant, mpi.found_by)
    };
    match (fitting.into_iter().min_by_key(rank), wanted) {
        (Some(best), _) => Ok(best),
        (None, Some((wanted, because))) => {
            let mut host: Vec<Abi> = known.iter().map(|(_, abi)| *abi).collect();
            host.sort_unstable();
            host.dedup();
            Err(ChoiceError::OtherAbi { wanted, because, host })
        }
        (None, None) => Err(ChoiceError::NothingFound),
    }
}

/// The family whose ranks such a launcher starts as a rule.
fn family_of_ranks(launcher: &Launcher) -> Option<Family> {
    match (launcher.kind, launcher.pmi) {
        (Kind::MpiRun(family), _) => Some(family),
        (_, Pmi::Pmix) => Some(Family::OpenMpi),
        (_, Pmi::Pmi1 | Pmi::Pmi2) => Some(Family::Mpich),
        (_, Pmi::None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::Object;
    use crate::elf::fabricate::Library;
    use crate::host::facts::{HostLauncher, HostLibrary};
    use starter::paths::HostPath;

    fn mpi(name: &str, directory: &str, needed: &[&str], found_by: FoundBy) -> HostMpi {
        let library = Library { soname: Some(name), needed, ..Library::default() };
        let object = Object::parse(&library.to_bytes()[..]).map_err(|error| error.to_string());
        let path = HostPath::new(format!("{directory}/{name}"));
        HostMpi {
            library: HostLibrary { name: name.into(), path, object },
            directory: HostPath::new(directory),
            found_by,
        }
    }

    fn launcher(program: &str) -> HostLauncher {
        HostLauncher { path: HostPath::new("/usr/bin/mpirun"), program: program.into(), parent: false }
    }

    fn debian() -> MpiHostFacts {
        MpiHostFacts {
            libraries: vec![
                mpi("libmpich.so.12", "/usr/lib", &["libc.so.6"], FoundBy::Cache),
                mpi("libmpi.so.40", "/usr/lib", &["libopen-pal.so.40"], FoundBy::Cache),
            ],
            launchers: vec![launcher("orterun")],
            ..MpiHostFacts::default()
        }
    }

    const OPEN_MPI: Abi = Abi { family: Family::OpenMpi, number: 40 };
    const MPICH: Abi = Abi { family: Family::Mpich, number: 12 };

    fn started_by(kind: Kind, pmi: Pmi) -> Launcher {
        Launcher { kind, pmi, rank: Some(0), size: Some(2) }
    }

    #[test]
    fn the_mpi_of_mpirun_is_meant_where_nothing_else_speaks() {
        assert_eq!(choose(&debian(), None, None).unwrap().1, OPEN_MPI);
        let hydra = MpiHostFacts { launchers: vec![launcher("mpiexec.hydra")], ..debian() };
        assert_eq!(choose(&hydra, None, None).unwrap().1, MPICH);
    }

    #[test]
    fn the_launcher_is_stronger_and_the_program_strongest() {
        let hydra = started_by(Kind::MpiRun(Family::Mpich), Pmi::Pmi1);
        assert_eq!(choose(&debian(), None, Some(&hydra)).unwrap().1, MPICH);
        let program = Some((OPEN_MPI, Because::Program("ring".to_owned())));
        assert_eq!(choose(&debian(), program, Some(&hydra)).unwrap().1, OPEN_MPI);
    }

    #[test]
    fn what_a_module_brings_is_taken_before_what_the_host_has() {
        let mut host = debian();
        host.libraries.push(mpi("libmpi.so.40", "/opt/openmpi/lib", &["libopen-pal.so.80"], FoundBy::LibraryPath));
        let (chosen, _) = choose(&host, None, None).unwrap();
        assert_eq!(chosen.directory, HostPath::new("/opt/openmpi/lib"));
    }

    #[test]
    fn another_abi_is_refused_with_both() {
        let mut host = debian();
        host.libraries.remove(0);
        let wanted = Some((MPICH, Because::Image("/usr/lib/libmpi.so.12".to_owned())));
        assert_eq!(
            choose(&host, wanted, None).unwrap_err().to_string(),
            "this host has no MPI with the ABI of MPICH (libmpi.so.12), only Open MPI (libmpi.so.40) (the image has \
             /usr/lib/libmpi.so.12)"
        );
        assert_eq!(choose(&MpiHostFacts::default(), None, None), Err(ChoiceError::NothingFound));
    }

    #[test]
    fn one_number_of_two_families_is_told_by_what_the_library_needs() {
        let old = mpi("libmpi.so.12", "/opt/openmpi-1.10/lib", &["libopen-rte.so.12"], FoundBy::LibraryPath);
        assert_eq!(abi(&old), Some(Abi { family: Family::OpenMpi, number: 12 }));
    }
}
