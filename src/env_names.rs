//! Every environment variable name that sifu reads or sets, once, with its meaning.
//!
//! Most have a key (`BIND`) that is said with a prefix: `SIFU_BIND`, `APPTAINER_BIND`, `SINGULARITY_BIND`, read in this
//! order. The keys of flags stand in the flag tables of `cli`, beside the flag; those that belong to no flag are here.

/// Prefixes of a key, the strongest first.
pub const PREFIXES: [&str; 3] = ["SIFU_", "APPTAINER_", "SINGULARITY_"];

/// The prefix of [`PREFIXES`] that is read for the sake of old scripts, with a note that says so.
pub const OLD_PREFIX: &str = "SINGULARITY_";

/// Prefixes of variables that are set in the container without the prefix, the strongest first.
pub const INJECT_PREFIXES: [&str; 3] = ["SIFUENV_", "APPTAINERENV_", "SINGULARITYENV_"];

/// Key: how much is said, as a number (-3, -1, 1, 4, 5), where no flag says it.
pub const MESSAGE_LEVEL: &str = "MESSAGELEVEL";

/// Key: the directory of the cache, in which it is called `cache`.
pub const CACHE_DIRECTORY: &str = "CACHEDIR";

/// Key: what all images in the cache may take, in MiB.
pub const CACHE_CEILING: &str = "CACHE_MAX_MIB";

/// Key: a cache of the site, from which images are taken and to which none are added.
pub const SITE_CACHE: &str = "SITE_CACHEDIR";

/// Key: how long nothing may come of a transfer, in seconds.
pub const STALL_TIMEOUT: &str = "STALL_TIMEOUT";

/// Key: the directory of what sifu keeps for a user, instead of `~/.apptainer`.
pub const CONFIG_DIRECTORY: &str = "CONFIGDIR";

/// Whole name: the directory of Docker's configuration, instead of `~/.docker`.
pub const DOCKER_CONFIG: &str = "DOCKER_CONFIG";

/// Whole name: the file of credentials of containers' tools.
pub const REGISTRY_AUTH_FILE: &str = "REGISTRY_AUTH_FILE";

/// Whole name: the file that says where registries are, instead of those of the system and the user.
pub const REGISTRIES_CONF: &str = "CONTAINERS_REGISTRIES_CONF";

/// Whole names: where the daemon of Docker or Podman is, and how connections to it by TCP are encrypted.
pub const DOCKER_HOST: &str = "DOCKER_HOST";
pub const CONTAINER_HOST: &str = "CONTAINER_HOST";
pub const DOCKER_TLS_VERIFY: &str = "DOCKER_TLS_VERIFY";
pub const DOCKER_CERT_PATH: &str = "DOCKER_CERT_PATH";

/// Whole name: a directory of this user's on this machine, gone after logout.
pub const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// Whole name: the time that a built image states, in seconds since 1970 (reproducible-builds.org).
pub const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Whole name: how many processors Slurm gives a task; the kernel enforces it only where tasks are bound.
pub const SLURM_CPUS_PER_TASK: &str = "SLURM_CPUS_PER_TASK";

/// Whole names: which accelerators programs are to use, in the words of their vendors.
pub const NVIDIA_VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
pub const CUDA_VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
pub const CUDA_DEVICE_ORDER: &str = "CUDA_DEVICE_ORDER";
pub const ROCR_VISIBLE_DEVICES: &str = "ROCR_VISIBLE_DEVICES";
pub const HIP_VISIBLE_DEVICES: &str = "HIP_VISIBLE_DEVICES";

/// Whole name: a directory of pipes that programs share an NVIDIA GPU by.
pub const CUDA_MPS_PIPE_DIRECTORY: &str = "CUDA_MPS_PIPE_DIRECTORY";

/// Whole names: of how many ranks a process is one, as Open MPI, MPICH's Hydra and Slurm's steps say it.
pub const RANK_COUNTS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Whole names: of how many ranks on this node a process is one.
pub const LOCAL_RANK_COUNTS: [&str; 2] = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];

/// Whole names: a job step of Slurm, and how many tasks it has.
pub const SLURM_JOB_ID: &str = "SLURM_JOB_ID";
pub const SLURM_STEP_ID: &str = "SLURM_STEP_ID";
pub const SLURM_STEP_NUM_TASKS: &str = "SLURM_STEP_NUM_TASKS";

/// Whole names: a job of PMIx, and the addresses of the server that started it, by the version of PMIx.
pub const PMIX_NAMESPACE: &str = "PMIX_NAMESPACE";
pub const PMIX_SERVERS: [&str; 5] =
    ["PMIX_SERVER_URI41", "PMIX_SERVER_URI4", "PMIX_SERVER_URI3", "PMIX_SERVER_URI21", "PMIX_SERVER_URI2"];

/// Whole names: the number of a rank, by PMIx, Open MPI and Slurm.
pub const PMIX_RANK: &str = "PMIX_RANK";
pub const OMPI_COMM_WORLD_RANK: &str = "OMPI_COMM_WORLD_RANK";
pub const SLURM_PROCID: &str = "SLURM_PROCID";

/// Whole names: how many ranks there are in all, by Open MPI and PMI.
pub const OMPI_COMM_WORLD_SIZE: &str = "OMPI_COMM_WORLD_SIZE";
pub const PMI_SIZE: &str = "PMI_SIZE";

/// Whole names: what launchers tell each rank alone, by Slurm, PMIx, Open MPI, PMI, Hydra, MVAPICH, PALS and Flux. No plan
/// of a container depends on their values.
pub const OF_ONE_RANK: [&str; 21] = [
    SLURM_PROCID,
    "SLURM_LOCALID",
    "SLURM_TASK_PID",
    PMIX_RANK,
    "PMIX_ID",
    OMPI_COMM_WORLD_RANK,
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_NODE_RANK",
    "OMPI_MCA_ess_base_vpid",
    "OMPI_MCA_orte_ess_node_rank",
    PMI_RANK,
    PMI_FD,
    "PMI_ID",
    "PMI_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_RANKID",
    "PALS_LOCAL_RANKID",
    "FLUX_TASK_RANK",
    "FLUX_TASK_LOCAL_ID",
];

/// Whole name: the plugin by which Slurm speaks to ranks.
pub const SLURM_MPI_TYPE: &str = "SLURM_MPI_TYPE";

/// Whole name: how many ranks Hydra has on this node.
pub const MPI_LOCALNRANKS: &str = "MPI_LOCALNRANKS";

/// Whole names: prefixes of installed MPIs.
pub const MPI_PREFIXES: [&str; 5] = ["OPAL_PREFIX", "I_MPI_ROOT", "MPI_HOME", "MPI_ROOT", "MPICH_DIR"];

/// Whole name: the directory in which a server of PMIx keeps what it shares with its clients.
pub const PMIX_SERVER_TMPDIR: &str = "PMIX_SERVER_TMPDIR";

/// Whole names: a rank of PMI-1 and PMI-2, and the address of its server where it has one.
pub const PMI_RANK: &str = "PMI_RANK";
pub const PMI_PORT: &str = "PMI_PORT";
/// Whole name: the descriptor by which a rank speaks to its server.
pub const PMI_FD: &str = "PMI_FD";

/// Beginnings of the names by which programs speak to batch systems: Slurm, PBS, LSF, Grid Engine, Flux, OAR.
pub const SCHEDULER_PREFIXES: [&str; 17] = [
    "SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SPRIO_", "SSHARE_",
    "PBS_", "LSB_", "LSF_", "SGE_", "FLUX_", "OAR_",
];

/// Whether a variable of this name speaks to a batch system.
pub fn is_of_scheduler(name: &[u8]) -> bool {
    SCHEDULER_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// Splits a variable's name into the rank of its prefix in [`PREFIXES`] and its key.
pub fn key_of(name: &[u8]) -> Option<(usize, &[u8])> {
    PREFIXES.iter().enumerate().find_map(|(rank, prefix)| {
        let key = name.strip_prefix(prefix.as_bytes())?;
        (!key.is_empty()).then_some((rank, key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefixed_name_gives_its_key_and_rank() {
        assert_eq!(key_of(b"SIFU_BIND"), Some((0, &b"BIND"[..])));
        assert_eq!(key_of(b"SINGULARITY_NO_HOME"), Some((2, &b"NO_HOME"[..])));
    }

    #[test]
    fn other_names_have_no_key() {
        for name in ["BIND", "SIFU_", "APPTAINERENV_BIND", "APPTAINER"] {
            assert_eq!(key_of(name.as_bytes()), None, "{name}");
        }
    }
}
