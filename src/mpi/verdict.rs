//! Whether the ranks of a job will find each other, and how. Pure.

use std::fmt;

use super::launcher::{Kind, Pmi};
use super::{Abi, Family};

/// An MPI as far as it speaks with launchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    pub abi: Abi,
    /// As it is called: `Open MPI 4.1.4`.
    pub name: String,
    /// Whether it is linked with PMIx; Open MPI always speaks it.
    pub pmix: bool,
    /// Whether an Open MPI has components for the PMI of Slurm.
    pub slurm: bool,
}

impl Speaker {
    /// Whether ranks of this MPI find each other by `pmi` under a launcher of `kind`.
    pub fn speaks(&self, kind: Kind, pmi: Pmi) -> bool {
        match (self.abi.family, pmi) {
            (_, Pmi::None) => false,
            // Open MPI 1 and 2 have a PMIx that later launchers don't understand.
            (Family::OpenMpi, Pmi::Pmix) => self.abi.number >= 40,
            (Family::OpenMpi, Pmi::Pmi1 | Pmi::Pmi2) => self.slurm && kind == Kind::Slurm,
            (Family::Mpich, Pmi::Pmix) => self.pmix,
            (Family::Mpich, Pmi::Pmi1 | Pmi::Pmi2) => true,
        }
    }

    /// What it speaks, in words.
    pub fn speech(&self) -> String {
        let mut words = match self.abi.family {
            Family::OpenMpi if self.abi.number >= 40 => vec!["PMIx"],
            Family::OpenMpi => vec!["an early PMIx"],
            Family::Mpich => vec!["PMI-1", "PMI-2"],
        };
        if self.abi.family == Family::Mpich && self.pmix {
            words.push("PMIx");
        }
        if self.abi.family == Family::OpenMpi && self.slurm {
            words.push("Slurm's PMI");
        }
        words.join(", ")
    }
}

/// What is judged.
pub struct Case<'a> {
    pub launcher: Kind,
    pub pmi: Pmi,
    /// The image's MPIs.
    pub image: &'a [Speaker],
    /// The host's MPI that `--mpi` would bring, or why it would bring none.
    pub host: Result<&'a Speaker, String>,
    /// The ABI that the program is linked with, where that is known.
    pub program: Option<Abi>,
    /// Whether the program is known to have nothing to do with MPI.
    pub without_mpi: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The launcher of the host's MPI and the image's MPI speak with each other.
    Hybrid,
    /// The host's MPI can be brought: `--mpi`.
    Bind,
    /// The batch system's launcher and the image's MPI speak with each other; the host needs no MPI.
    Contained,
    /// Every rank would be alone.
    Singletons,
    /// Nothing here has the ABI that the program is linked with.
    OtherAbi,
    NoMpi,
}

impl Verdict {
    /// The word of the JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hybrid => "hybrid",
            Self::Bind => "bind",
            Self::Contained => "contained",
            Self::Singletons => "singletons",
            Self::OtherAbi => "abi-mismatch",
            Self::NoMpi => "no-mpi",
        }
    }

    /// Whether the ranks will be one job, with the flag that it names.
    pub fn works(self) -> bool {
        matches!(self, Self::Hybrid | Self::Bind | Self::Contained | Self::NoMpi)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hybrid => "works (hybrid)",
            Self::Bind => "works with --mpi (bind)",
            Self::Contained => "works (contained)",
            Self::Singletons => "does not work: every rank would be alone (N singletons)",
            Self::OtherAbi => "does not work: another ABI",
            Self::NoMpi => "nothing to do with MPI",
        })
    }
}

/// Judges, with the reason.
pub fn judge(case: &Case<'_>) -> (Verdict, String) {
    if case.without_mpi {
        return (Verdict::NoMpi, "the program needs no MPI library".to_owned());
    }
    let launcher = launcher_name(case.launcher);
    let fitting: Vec<&Speaker> =
        case.image.iter().filter(|mpi| case.program.is_none_or(|abi| abi == mpi.abi)).collect();
    if let Some(mpi) = fitting.iter().find(|mpi| mpi.speaks(case.launcher, case.pmi)) {
        let verdict = if matches!(case.launcher, Kind::MpiRun(_)) { Verdict::Hybrid } else { Verdict::Contained };
        return (verdict, format!("the image's {} speaks {}, as {launcher} does", mpi.name, case.pmi));
    }
    let wanted = case.program.or(fitting.first().map(|mpi| mpi.abi));
    if let Ok(host) = case.host
        && host.speaks(case.launcher, case.pmi)
        && wanted.is_none_or(|abi| abi == host.abi)
    {
        let instead = match fitting.first() {
            Some(mpi) => format!("instead of the image's {}, which does not", mpi.name),
            None => "and the image has none for the program".to_owned(),
        };
        return (Verdict::Bind, format!("the host's {} speaks {}, {instead}", host.name, case.pmi));
    }
    let offers = match case.pmi {
        Pmi::None => "no PMI".to_owned(),
        pmi => pmi.to_string(),
    };
    if let Some(mpi) = fitting.first() {
        let reason = format!("{launcher} offers {offers}, and the image's {} speaks {}", mpi.name, mpi.speech());
        return (Verdict::Singletons, reason);
    }
    let program = |abi: Abi| format!("the program is linked with {abi}; the image has none of it");
    match (wanted, &case.host) {
        (Some(abi), Ok(host)) if host.abi != abi => {
            (Verdict::OtherAbi, format!("{}, and the host has {}", program(abi), host.name))
        }
        (Some(abi), Err(why)) => (Verdict::OtherAbi, format!("{}, and {why}", program(abi))),
        (_, Ok(host)) => {
            let reason = format!("{launcher} offers {offers}, and the host's {} speaks {}", host.name, host.speech());
            (Verdict::Singletons, reason)
        }
        (None, Err(why)) => (Verdict::NoMpi, format!("the image has no MPI, and {why}")),
    }
}

/// A launcher in words.
pub fn launcher_name(kind: Kind) -> &'static str {
    match kind {
        Kind::MpiRun(Family::OpenMpi) => "mpirun of Open MPI",
        Kind::MpiRun(Family::Mpich) => "mpirun of MPICH (Hydra)",
        Kind::Slurm => "srun",
        Kind::Other => "the launcher",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_MPI: Abi = Abi { family: Family::OpenMpi, number: 40 };
    const MPICH: Abi = Abi { family: Family::Mpich, number: 12 };

    fn speaker(abi: Abi) -> Speaker {
        Speaker { abi, name: format!("{}", abi.family), pmix: abi.family == Family::OpenMpi, slurm: false }
    }

    /// Every pair of an image's MPI and a launcher, with a host that has the MPI of `host`.
    #[track_caller]
    fn check(launcher: Kind, pmi: Pmi, image: Option<Abi>, host: Option<Abi>, program: Option<Abi>, expected: Verdict) {
        let image: Vec<Speaker> = image.map(speaker).into_iter().collect();
        let host = host.map(speaker);
        let host = host.as_ref().ok_or_else(|| "this host has no MPI that could be found".to_owned());
        let (verdict, reason) = judge(&Case { launcher, pmi, image: &image, host, program, without_mpi: false });
        assert_eq!(verdict, expected, "{reason}");
    }

    const ORTE: Kind = Kind::MpiRun(Family::OpenMpi);
    const HYDRA: Kind = Kind::MpiRun(Family::Mpich);

    #[test]
    fn the_matrix_of_launchers_and_images() {
        let (open_mpi, mpich) = (Some(OPEN_MPI), Some(MPICH));
        check(ORTE, Pmi::Pmix, open_mpi, open_mpi, None, Verdict::Hybrid);
        check(ORTE, Pmi::Pmix, mpich, open_mpi, None, Verdict::Singletons);
        check(HYDRA, Pmi::Pmi1, mpich, mpich, None, Verdict::Hybrid);
        check(HYDRA, Pmi::Pmi1, open_mpi, mpich, None, Verdict::Singletons);
        check(Kind::Slurm, Pmi::Pmi2, mpich, None, None, Verdict::Contained);
        check(Kind::Slurm, Pmi::Pmix, open_mpi, None, None, Verdict::Contained);
        check(Kind::Slurm, Pmi::Pmi2, open_mpi, None, None, Verdict::Singletons);
        check(Kind::Slurm, Pmi::None, mpich, None, None, Verdict::Singletons);
    }

    #[test]
    fn an_image_without_mpi_gets_the_hosts_if_it_is_the_right_one() {
        let (open_mpi, mpich) = (Some(OPEN_MPI), Some(MPICH));
        check(ORTE, Pmi::Pmix, None, open_mpi, None, Verdict::Bind);
        check(HYDRA, Pmi::Pmi1, None, mpich, mpich, Verdict::Bind);
        check(ORTE, Pmi::Pmix, None, open_mpi, mpich, Verdict::OtherAbi);
        check(ORTE, Pmi::Pmix, mpich, open_mpi, open_mpi, Verdict::Bind);
        check(HYDRA, Pmi::Pmi1, None, None, mpich, Verdict::OtherAbi);
        check(HYDRA, Pmi::Pmi1, None, None, None, Verdict::NoMpi);
        check(HYDRA, Pmi::Pmi1, None, open_mpi, None, Verdict::Singletons);
    }

    #[test]
    fn an_mpich_that_is_linked_with_pmix_speaks_it() {
        let mpi = Speaker { pmix: true, ..speaker(MPICH) };
        assert!(mpi.speaks(ORTE, Pmi::Pmix));
        assert_eq!(mpi.speech(), "PMI-1, PMI-2, PMIx");
        let slurm = Speaker { slurm: true, ..speaker(OPEN_MPI) };
        assert!(slurm.speaks(Kind::Slurm, Pmi::Pmi2) && !slurm.speaks(HYDRA, Pmi::Pmi1));
    }
}
