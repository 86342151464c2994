//! The launcher as its ranks see it: who started them, how they find each other, which one this is. Pure.

use std::fmt;

use super::Family;
use crate::env_names;

/// A variable and its value.
type Pair = (Vec<u8>, Vec<u8>);

/// How ranks find each other through what started them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pmi {
    /// PMIx: a server on the node, found by `PMIX_NAMESPACE` and `PMIX_SERVER_URI*`.
    Pmix,
    /// PMI-2: the same socket as PMI-1.
    Pmi2,
    /// PMI-1: a socket that is inherited (`PMI_FD`) or named (`PMI_PORT`).
    Pmi1,
    None,
}

impl fmt::Display for Pmi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pmix => "PMIx",
            Self::Pmi2 => "PMI-2",
            Self::Pmi1 => "PMI-1",
            Self::None => "none",
        })
    }
}

/// Who starts ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `mpirun` of an MPI.
    MpiRun(Family),
    /// `srun`.
    Slurm,
    /// Something that is known by its variables only.
    Other,
}

/// What started this process as a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launcher {
    pub kind: Kind,
    pub pmi: Pmi,
    pub rank: Option<u32>,
    pub size: Option<u32>,
}

impl Launcher {
    /// Whether this process is the one of several that speaks for all.
    pub fn is_first_of_several(&self) -> bool {
        self.rank == Some(0) && self.size.is_some_and(|size| size > 1)
    }
}

/// Recognizes the launcher by the variables that it sets; `None` where nobody started this process as a rank.
pub fn of_variables(variables: &[Pair]) -> Option<Launcher> {
    let value =
        |name: &str| variables.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| value.as_slice());
    let number = |name: &str| std::str::from_utf8(value(name)?).ok()?.parse::<u32>().ok();
    let step = value(env_names::SLURM_STEP_ID).is_some();
    let slurm_size = number(env_names::SLURM_STEP_NUM_TASKS).filter(|_| step);
    if value(env_names::PMIX_NAMESPACE).is_some() {
        let open_mpi = number(env_names::OMPI_COMM_WORLD_SIZE);
        let kind = match open_mpi {
            Some(_) => Kind::MpiRun(Family::OpenMpi),
            None if slurm_size.is_some() => Kind::Slurm,
            None => Kind::Other,
        };
        return Some(Launcher {
            kind,
            pmi: Pmi::Pmix,
            rank: number(env_names::PMIX_RANK).or_else(|| number(env_names::OMPI_COMM_WORLD_RANK)),
            size: open_mpi.or(slurm_size),
        });
    }
    if [env_names::PMI_FD, env_names::PMI_PORT, env_names::PMI_RANK].into_iter().any(|name| value(name).is_some()) {
        let hydra = value(env_names::MPI_LOCALNRANKS).is_some();
        let kind = match step {
            _ if hydra => Kind::MpiRun(Family::Mpich),
            true => Kind::Slurm,
            false => Kind::Other,
        };
        let second = kind == Kind::Slurm && value(env_names::SLURM_MPI_TYPE).is_none_or(|plugin| plugin == b"pmi2");
        return Some(Launcher {
            kind,
            pmi: if second { Pmi::Pmi2 } else { Pmi::Pmi1 },
            rank: number(env_names::PMI_RANK).or_else(|| number(env_names::SLURM_PROCID)),
            size: number(env_names::PMI_SIZE).or(slurm_size),
        });
    }
    let rank = number(env_names::SLURM_PROCID).filter(|_| step)?;
    Some(Launcher { kind: Kind::Slurm, pmi: Pmi::None, rank: Some(rank), size: slurm_size })
}

/// The way of ranks under a plugin of Slurm, by its name (`MpiDefault`, `srun --mpi=`).
pub fn of_slurm_plugin(name: &str) -> Pmi {
    match name {
        "pmix" => Pmi::Pmix,
        name if name.starts_with("pmix_") => Pmi::Pmix,
        "pmi2" | "cray_shasta" => Pmi::Pmi2,
        _ => Pmi::None,
    }
}

/// Whether a variable is the launcher's way to speak to its ranks, or a setting of an MPI.
pub fn is_for_ranks(name: &[u8]) -> bool {
    const PREFIXES: [&str; 19] = [
        "PMIX_", "PMI_", "PMI2_", "OMPI_", "OPAL_", "PRTE_", "PRRTE_", "HYDRA_", "HYDI_", "MPI_", "MPIR_", "MPICH_",
        "I_MPI_", "MV2_", "UCX_", "FI_", "SLURM_", "PALS_", "PSM",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Launcher> {
        let pair = |word: &str| {
            let (name, value) = word.split_once('=').unwrap();
            (name.as_bytes().to_vec(), value.as_bytes().to_vec())
        };
        of_variables(&text.split_whitespace().map(pair).collect::<Vec<_>>())
    }

    #[track_caller]
    fn check(text: &str, kind: Kind, pmi: Pmi, rank: u32, size: u32) {
        assert_eq!(of(text), Some(Launcher { kind, pmi, rank: Some(rank), size: Some(size) }), "{text}");
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        let (open_mpi, hydra) = (Kind::MpiRun(Family::OpenMpi), Kind::MpiRun(Family::Mpich));
        check("PMIX_NAMESPACE=7 PMIX_RANK=3 OMPI_COMM_WORLD_SIZE=4", open_mpi, Pmi::Pmix, 3, 4);
        check("PMI_RANK=1 PMI_SIZE=2 PMI_FD=6 MPI_LOCALNRANKS=2", hydra, Pmi::Pmi1, 1, 2);
        check("SLURM_STEP_ID=0 SLURM_PROCID=2 SLURM_STEP_NUM_TASKS=3", Kind::Slurm, Pmi::None, 2, 3);
        check("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=3 PMIX_NAMESPACE=s PMIX_RANK=0", Kind::Slurm, Pmi::Pmix, 0, 3);
        check("SLURM_STEP_ID=0 SLURM_MPI_TYPE=pmi2 PMI_FD=9 PMI_RANK=0 PMI_SIZE=2", Kind::Slurm, Pmi::Pmi2, 0, 2);
    }

    #[test]
    fn mpirun_inside_a_step_of_slurm_is_the_launcher() {
        let step = "SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1";
        let hydra = format!("{step} PMI_RANK=1 PMI_SIZE=4 PMI_FD=6 MPI_LOCALNRANKS=4");
        check(&hydra, Kind::MpiRun(Family::Mpich), Pmi::Pmi1, 1, 4);
        let open_mpi = format!("{step} PMIX_NAMESPACE=7 PMIX_RANK=2 OMPI_COMM_WORLD_SIZE=4");
        check(&open_mpi, Kind::MpiRun(Family::OpenMpi), Pmi::Pmix, 2, 4);
    }

    #[test]
    fn a_batch_script_is_no_rank() {
        assert_eq!(of("SLURM_JOB_ID=5 SLURM_PROCID=0 HOME=/"), None);
    }

    #[test]
    fn plugins_of_slurm_are_known_by_name() {
        for (name, pmi) in [("pmix_v4", Pmi::Pmix), ("pmix", Pmi::Pmix), ("pmi2", Pmi::Pmi2), ("none", Pmi::None)] {
            assert_eq!(of_slurm_plugin(name), pmi, "{name}");
        }
    }
}
