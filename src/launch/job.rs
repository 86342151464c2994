//! What a batch system keeps for a job in directories of its own on the node, and a container of that job has to show. Pure.

use super::binds::Bind;
use super::environment::Pair;
use super::request::{LaunchRequest, Verb};
use crate::env_names::{PMIX_SERVER_TMPDIR, SLURM_JOB_ID};
use starter::paths::HostPath;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Returns what to bind at the paths that the program will look at, if it is there.
pub fn binds(request: &LaunchRequest, variables: &[Pair]) -> Vec<Bind> {
    let value = |name: &str| variables.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| value);
    let mut binds = Vec::new();
    // A batch script of Slurm whose first line names an image: the kernel starts the image with the script's path.
    if request.verb == Verb::Run
        && value(SLURM_JOB_ID).is_some()
        && let Some(script) = request.arguments.first().map(HostPath::new)
        && script.as_path().ends_with("slurm_script")
    {
        binds.push(bind(script, true));
    }
    // Clients of PMIx share memory with their server here, locks included.
    if !request.cleanenv
        && let Some(directory) = value(PMIX_SERVER_TMPDIR)
    {
        binds.push(bind(HostPath::new(OsStr::from_bytes(directory)), false));
    }
    binds.retain(|bind| bind.source.as_path().is_absolute());
    binds
}

fn bind(source: HostPath, read_only: bool) -> Bind {
    Bind { said: source.to_string(), source, destination: None, read_only, image: None, nonested: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: &LaunchRequest, variables: &[(&str, &str)], expected: &[&str]) {
        let variables: Vec<Pair> =
            variables.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        let binds: Vec<String> = binds(request, &variables)
            .iter()
            .map(|bind| format!("{}:{}", bind.source, if bind.read_only { "ro" } else { "rw" }))
            .collect();
        assert_eq!(binds, expected);
    }

    fn run(argument: &str) -> LaunchRequest {
        LaunchRequest::new(Verb::Run, "a.sif", vec![argument.into()])
    }

    #[test]
    fn a_batch_script_that_an_image_interprets_is_shown() {
        let job = [("SLURM_JOB_ID", "7")];
        let script = "/var/spool/slurmd/job00007/slurm_script";
        check(&run(script), &job, &["/var/spool/slurmd/job00007/slurm_script:ro"]);
        check(&run(script), &[], &[]);
        check(&run("/home/ada/job.sh"), &job, &[]);
        check(&run("slurm_script"), &job, &[]);
        check(&LaunchRequest { verb: Verb::Exec, ..run(script) }, &job, &[]);
    }

    #[test]
    fn the_directory_of_a_pmix_server_is_shown_to_those_who_know_of_it() {
        let server = [("PMIX_SERVER_TMPDIR", "/var/spool/slurmd/pmix.7.0/")];
        check(&run("x"), &server, &["/var/spool/slurmd/pmix.7.0/:rw"]);
        check(&LaunchRequest { cleanenv: true, ..run("x") }, &server, &[]);
        check(&run("x"), &[("PMIX_SERVER_TMPDIR", "relative")], &[]);
    }
}
