//! Under Slurm, a real one: batch scripts, steps, arrays, signals, limits, accounting, processors.
//!
//! `setup/slurm` starts the cluster; its jobs run as the user of the tests. Every test has a directory of its own, which holds
//! a copy of the image, so that what a job leaves behind can be told from what other tests do meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::need::{BUSYBOX, FUSE, Need, ORDINARY, SIFU, SLURM, STATIC, USERNS, lacks};
use crate::support::{Scratch, busybox_image, sifu_path, slurm_configuration};

const START: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX, ORDINARY, SLURM];
/// Slurm looks at time limits every half minute.
const PATIENCE: Duration = Duration::from_secs(90);

/// The cluster, as one test uses it.
struct Cluster {
    scratch: Scratch,
    /// What of sifu's was there before, where everybody can write.
    before: BTreeSet<PathBuf>,
}

/// What a command of Slurm's said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    #[track_caller]
    fn success(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout.trim_end()
    }
}

impl Cluster {
    /// Prepares a directory with `image.sif`, and `bin` with sifu by two of its names.
    fn new() -> Self {
        let scratch = Scratch::new();
        let image = scratch.path().join("image.sif");
        fs::copy(busybox_image(), &image).expect("a copy of the image");
        fs::set_permissions(&image, PermissionsExt::from_mode(0o755)).expect("mode");
        fs::create_dir(scratch.path().join("bin")).expect("a directory");
        for name in ["sifu", "run-singularity"] {
            symlink(sifu_path(), scratch.path().join("bin").join(name)).expect("a link");
        }
        Self { scratch, before: public_files() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.scratch.path()).stdin(Stdio::null()).env_clear();
        for name in ["HOME", "USER"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        command.env("SLURM_CONF", slurm_configuration().expect("the test asked for SLURM"));
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Said {
        let output = self.command(program, arguments).output().expect("Slurm's programs can be started");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs `sifu exec image.sif sh -c SCRIPT` in a step of its own.
    fn srun(&self, flags: &[&str], script: &str) -> Said {
        let words = [flags, &["sifu", "exec", "image.sif", "sh", "-c", script]].concat();
        self.run("srun", &words)
    }

    /// Hands a batch script in; its output goes to `output`, or with `%a` to one file per task of an array.
    #[track_caller]
    fn sbatch(&self, flags: &[&str], script: &str) -> Job<'_> {
        let file = self.scratch.file("job.sh", script);
        fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("mode");
        let words = [&["--parsable", "--output=output"], flags, &["job.sh"]].concat();
        Job { cluster: self, id: self.run("sbatch", &words).success().to_owned() }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Processes that name this test's directory, or stand in it.
    fn processes(&self) -> Vec<String> {
        let directory = self.scratch.path();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc can be listed").flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let stands = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
            if stands || line.contains(&*directory.to_string_lossy()) {
                found.push(line);
            }
        }
        found
    }

    /// Expects that the jobs have left no process and no file where everybody can write.
    #[track_caller]
    fn is_clean(&self) {
        eventually("all processes of the job end", || self.processes().is_empty());
        let left: Vec<PathBuf> = public_files().difference(&self.before).cloned().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Files of sifu's name where everybody can write; those of tests that run meanwhile aside.
fn public_files() -> BTreeSet<PathBuf> {
    let entries = ["/tmp", "/dev/shm"].into_iter().flat_map(fs::read_dir).flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().contains("sifu"));
    named.map(|entry| entry.path()).filter(|path| !path.to_string_lossy().contains("sifu-test-")).collect()
}

/// A batch job.
struct Job<'a> {
    cluster: &'a Cluster,
    id: String,
}

impl Job<'_> {
    /// Waits until the job has ended, and gives what is in `output`.
    #[track_caller]
    fn output(&self) -> String {
        self.ends();
        self.cluster.text("output")
    }

    #[track_caller]
    fn ends(&self) {
        eventually("the job ends", || {
            let queue = self.cluster.run("squeue", &["--noheader", "--job", &self.id]);
            queue.stdout.trim().is_empty()
        });
    }

    /// Waits until `text` is in `output`.
    #[track_caller]
    fn says(&self, text: &str) {
        eventually(&format!("`{text}` in the output"), || self.cluster.text("output").contains(text));
    }

    /// Reads `field` of what the controller knows of the job.
    fn field(&self, field: &str) -> String {
        let shown = self.cluster.run("scontrol", &["show", "job", &self.id]);
        let field = format!("{field}=");
        shown.stdout.split_whitespace().find_map(|word| word.strip_prefix(&field)).unwrap_or_default().to_owned()
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        // A test that failed leaves its job to nobody.
        if std::thread::panicking() {
            let _ = self.cluster.run("scancel", &[&self.id]);
        }
    }
}

#[track_caller]
fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happens() {
        assert!(Instant::now() < end, "within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn ranks_of_a_step_share_one_user_namespace_and_steps_do_not() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    // Both steps run at once: a rank ends when its step's other ranks and the other step have begun.
    let ranks = 4;
    let script = |step: &str, other: &str| {
        format!(
            "echo $(readlink /proc/self/ns/user) $SLURM_PROCID; touch {step}.$SLURM_PROCID; \
             until [ -e {step}.0 -a -e {step}.1 -a -e {step}.2 -a -e {step}.3 -a -e {other}.0 ]; do sleep 0.02; done"
        )
    };
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| cluster.srun(&["-n4", "-O", "-N1"], &script("one", "two")));
        let two = scope.spawn(|| cluster.srun(&["-n4", "-O", "-N1"], &script("two", "one")));
        (one.join().expect("no panic"), two.join().expect("no panic"))
    });
    let namespaces = |said: &Said| {
        let lines: Vec<(String, String)> = said
            .success()
            .lines()
            .map(|line| line.split_once(' ').map(|(ns, rank)| (ns.to_owned(), rank.to_owned())).expect("two words"))
            .collect();
        assert_eq!(lines.iter().map(|(_, rank)| rank.as_str()).collect::<BTreeSet<_>>().len(), ranks, "{said:?}");
        lines.into_iter().map(|(namespace, _)| namespace).collect::<BTreeSet<_>>()
    };
    let (one, two) = (namespaces(&one), namespaces(&two));
    assert_eq!((one.len(), two.len()), (1, 1), "{one:?} {two:?}");
    assert_ne!(one, two);
    cluster.is_clean();
}

#[test]
fn every_task_of_an_array_is_a_container_of_its_own() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    let script = "#!/bin/sh\nsifu exec image.sif sh -c 'echo $SLURM_ARRAY_TASK_ID $(readlink /proc/self/ns/user)'\n";
    let job = cluster.sbatch(&["--array=1-12", "--output=task.%a"], script);
    job.ends();
    let mut namespaces = BTreeSet::new();
    for task in 1..=12 {
        let said = cluster.text(&format!("task.{task}"));
        let namespace = said.strip_prefix(&format!("{task} user:")).unwrap_or_else(|| panic!("task {task}: `{said}`"));
        namespaces.insert(namespace.to_owned());
    }
    assert!(!namespaces.contains(""));
    cluster.is_clean();
}

#[test]
fn an_image_is_a_program_of_a_step_and_of_a_batch_script() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    assert_eq!(cluster.run("srun", &["./image.sif", "-c", "echo step"]).success(), "step");
    let job =
        cluster.sbatch(&[], "#!/bin/sh\n./image.sif -c 'echo batch $SLURM_JOB_ID'\nsrun ./image.sif -c 'exit 3'\n");
    assert_eq!(job.output().lines().next().unwrap_or_default(), format!("batch {}", job.id));
    assert_eq!(job.field("ExitCode"), "3:0");
    cluster.is_clean();
}

#[test]
fn an_image_is_the_interpreter_of_a_batch_script() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    // Contained, the image sees nothing of the node's spool directory, where Slurm keeps the script.
    let script = format!("#!{}\necho interpreted $SLURM_JOB_ID\n", cluster.path("image.sif").display());
    let job = cluster.sbatch(&["--export=ALL,APPTAINER_CONTAIN=1"], &script);
    assert_eq!(job.output(), format!("interpreted {}\n", job.id));
    cluster.is_clean();
}

#[test]
fn a_job_submits_jobs_from_its_container() {
    if lacks(START) || lacks(&[STATIC]) {
        return;
    }
    let cluster = Cluster::new();
    cluster.scratch.file("inner.sh", "#!/bin/sh\necho inner $SLURM_JOB_NAME $SLURM_CPUS_PER_TASK\n");
    // As workflow engines do: the inner job is none of the outer one's steps, and gets options by a variable, too.
    let engine = "unset SLURM_JOB_ID SLURM_CPUS_PER_TASK; export SBATCH_JOB_NAME=from-inside; \
                  sbatch --parsable --cpus-per-task=2 --output=inner.out inner.sh; squeue --noheader --format=%j";
    let flags = "--cleanenv --host-cmd sbatch,squeue";
    let job = cluster.sbatch(&[], &format!("#!/bin/sh\nsifu exec {flags} image.sif sh -c '{engine}'\n"));
    let output = job.output();
    let inner = output.lines().next().unwrap_or_default();
    assert!(inner.parse::<u32>().is_ok(), "{output}");
    assert!(output.lines().skip(1).any(|line| line == "job.sh"), "squeue sees the outer job: {output}");
    Job { cluster: &cluster, id: inner.to_owned() }.ends();
    assert_eq!(cluster.text("inner.out"), "inner from-inside 2\n");
    cluster.is_clean();
}

#[test]
fn exit_codes_and_deaths_by_signal_reach_slurm() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    assert_eq!(cluster.srun(&[], "exit 7").code, Some(7));
    let killed = cluster.srun(&[], "kill -USR2 $$");
    assert!(killed.stderr.contains("User defined signal 2"), "{killed:?}");
    let job = cluster.sbatch(&[], "#!/bin/sh\nexec sifu exec image.sif sh -c 'kill -KILL $$'\n");
    job.ends();
    assert_eq!(job.field("ExitCode"), "0:9");
    cluster.is_clean();
}

/// A payload that says which signals it gets, and goes on.
const HEARS: &str = "trap \"echo heard TERM\" TERM; trap \"echo heard USR1\" USR1; trap \"echo heard USR2\" USR2; \
                     echo begins; while :; do sleep 0.1; done";

#[test]
fn scancel_sends_the_payload_what_slurm_meant() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    let job = cluster.sbatch(&[], &format!("#!/bin/sh\nexec sifu exec image.sif sh -c '{HEARS}'\n"));
    job.says("begins");
    // To the script, which became the payload.
    cluster.run("scancel", &["--batch", "--signal=USR1", &job.id]).success();
    job.says("heard USR1");
    // To everything that the job started: the image server is no part of what a signal can end.
    cluster.run("scancel", &["--full", "--signal=USR2", &job.id]).success();
    job.says("heard USR2");
    cluster.run("scancel", &[&job.id]).success();
    job.says("heard TERM");
    job.ends();
    assert_eq!(job.field("JobState"), "CANCELLED");
    cluster.is_clean();
}

#[test]
fn a_cancelled_step_ends_all_its_ranks() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    let job =
        cluster.sbatch(&[], &format!("#!/bin/sh\nsrun -n3 -O sifu exec image.sif sh -c '{HEARS}'\necho code $?\n"));
    eventually("three ranks begin", || cluster.text("output").matches("begins").count() == 3);
    cluster.run("scancel", &["--signal=USR1", &job.id]).success();
    eventually("three ranks hear it", || cluster.text("output").matches("heard USR1").count() == 3);
    cluster.run("scancel", &[&format!("{}.0", job.id)]).success();
    // Slurm gives a step no time after that.
    assert!(job.output().contains("code 137\n"));
    cluster.is_clean();
}

#[test]
fn a_time_limit_warns_the_payload_and_ends_it() {
    if lacks(START) {
        return;
    }
    // Two jobs at once, since the controller looks at limits every half minute only.
    let (warned, ended) = (Cluster::new(), Cluster::new());
    let script = format!("#!/bin/sh\nexec sifu exec image.sif sh -c '{HEARS}'\n");
    // Slurm may send the signal a minute early: it comes as soon as the controller looks.
    let warned_job = warned.sbatch(&["--time=1", "--signal=B:USR1@60"], &script);
    let ended_job = ended.sbatch(&["--time=5"], &script);
    ended_job.says("begins");
    ended.run("scontrol", &["update", &format!("JobId={}", ended_job.id), "EndTime=now+1"]).success();
    ended_job.says("heard TERM");
    ended_job.ends();
    assert_eq!(ended_job.field("JobState"), "TIMEOUT");
    ended.is_clean();
    warned_job.says("heard USR1");
    assert_eq!(warned_job.field("JobState"), "RUNNING");
    warned.run("scancel", &[&warned_job.id]).success();
    warned_job.ends();
    warned.is_clean();
}

#[test]
fn accounting_sees_the_payload() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    // The shell keeps what it read: some 30 MB.
    let hungry = "text=$(seq 3000000 | head -c 20000000); echo begins; read end <fifo";
    let made = Command::new("mkfifo").arg(cluster.path("fifo")).status();
    assert!(made.is_ok_and(|status| status.success()), "a pipe can be made");
    let script = format!("#!/bin/sh\nsrun sifu exec image.sif sh -c 'echo $$ >pid; {hungry}'\n");
    let job = cluster.sbatch(&[], &script);
    job.says("begins");
    let step = format!("{}.0", job.id);
    let payload = cluster.text("pid").trim().to_owned();
    let node = job.field("NodeList");
    let listed = cluster.run("scontrol", &["listpids", &step, &node]);
    let pids = |said: &Said| {
        said.stdout.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert!(pids(&listed).contains(&payload), "{payload}: {listed:?}");
    eventually("the memory of the payload is counted", || {
        let stat = cluster.run("sstat", &["--noheader", "--parsable2", "--format=MaxRSS", "--jobs", &step]);
        let kib = stat.stdout.trim().trim_end_matches('K').parse::<f64>().unwrap_or(0.0);
        kib > 20_000.0
    });
    fs::write(cluster.path("fifo"), "end\n").expect("the payload reads");
    job.ends();
    assert_eq!(job.field("ExitCode"), "0:0");
    cluster.is_clean();
}

#[test]
fn a_build_uses_the_processors_of_its_task() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    fs::create_dir(cluster.path("root")).expect("a directory");
    for (number, flags) in [&["--cpus-per-task=1"][..], &["--cpus-per-task=1", "--cpu-bind=none"]].iter().enumerate() {
        let image = format!("built{number}.sif");
        let words = [flags, &["sifu", "--verbose", "build", &image, "root"][..]].concat();
        let built = cluster.run("srun", &words);
        built.success();
        assert!(built.stderr.contains("compressing with 1 thread\n"), "{flags:?}: {built:?}");
    }
}

#[test]
fn a_step_runs_in_the_container_of_a_bundle() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    cluster.run("sifu", &["oci", "bundle", "image.sif", "bundle"]).success();
    let bundle = format!("--container={}", cluster.path("bundle").display());
    let said = cluster.run("srun", &[&bundle, "sh", "-c", "echo $APPTAINER_NAME $SLURM_JOB_ID; id -u; exit 5"]);
    assert_eq!(said.code, Some(5), "{said:?}");
    let lines: Vec<&str> = said.stdout.lines().collect();
    let [first, uid] = lines.as_slice() else { panic!("{said:?}") };
    assert!(first.starts_with("image.sif ") && first.len() > "image.sif ".len(), "{said:?}");
    assert_eq!(*uid, nix::unistd::geteuid().to_string());
    let script = "#!/bin/sh\necho $APPTAINER_NAME; readlink /proc/self/ns/mnt\n";
    let job = cluster.sbatch(&[&bundle], script);
    job.ends();
    job.says("image.sif");
    let here = fs::read_link("/proc/self/ns/mnt").expect("a namespace");
    assert!(!job.output().contains(&*here.to_string_lossy()), "it has a mount namespace of its own");
    assert!(!job.output().contains("error"), "{}", job.output());
    cluster.is_clean();
}

#[test]
fn a_cancelled_step_ends_its_container() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    cluster.run("sifu", &["oci", "bundle", "image.sif", "bundle"]).success();
    let bundle = format!("--container={}", cluster.path("bundle").display());
    let begun = cluster.path("begun").display().to_string();
    let step = "trap 'echo heard TERM; exit 3' TERM; echo begins; while :; do sleep 0.05; done";
    let job = cluster.sbatch(&[], &format!("#!/bin/sh\n: >{begun}\nsrun {bundle} sh -c \"{step}\"\n"));
    job.says("begins");
    cluster.run("scancel", &[&job.id]).success();
    job.says("heard TERM");
    job.ends();
    cluster.is_clean();
}

#[test]
fn an_image_itself_takes_a_slurm_that_leaves_config_json_alone() {
    if lacks(START) {
        return;
    }
    let cluster = Cluster::new();
    let version = cluster.run("srun", &["--version"]);
    if !version.success().starts_with("slurm-wlm 22.") && !version.success().starts_with("slurm 22.") {
        return;
    }
    // The nodes open config.json below what is named, before any runtime is called.
    let image = format!("--container={}", cluster.path("image.sif").display());
    let said = cluster.run("srun", &[&image, "true"]);
    assert!(said.code != Some(0) && said.stderr.contains("Not a directory"), "{said:?}");
    cluster.is_clean();
}
