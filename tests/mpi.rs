//! MPI: both families, all three ways, under a real `mpirun`; what `mpi check` says beforehand; and MPIs that the tests make
//! up, for what no host should have.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::accelerator_host::fabricate::Library;
use crate::need::{BUSYBOX, FUSE, MPI, Need, ORDINARY, SIFU, SLURM, USERNS, lacks};
use crate::support::{Output, Scratch, busybox_root, find_program, sifu, sifu_path, slurm_configuration, wait};

/// As an ordinary user: real root has no user namespace to share, and Open MPI warns of it.
const START: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX, ORDINARY, MPI];
/// For MPIs that are made up.
const MADE_UP: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX];

const RANKS: usize = 3;

/// One of the two families that Debian has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    OpenMpi,
    Mpich,
}

const BOTH: [Family; 2] = [Family::OpenMpi, Family::Mpich];

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "openmpi",
            Self::Mpich => "mpich",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::OpenMpi => Self::Mpich,
            Self::Mpich => Self::OpenMpi,
        }
    }

    /// The name of the program in the images.
    fn program(self) -> String {
        format!("ranks.{}", self.name())
    }

    /// `mpirun -n N`, of the host or of an image.
    fn mpirun(self) -> Vec<String> {
        let mut words = vec![format!("mpirun.{}", self.name())];
        if self == Self::OpenMpi {
            words.push("--oversubscribe".to_owned());
        }
        words.extend(["-n".to_owned(), RANKS.to_string()]);
        words
    }
}

/// What is made once for all tests of this user: the program for both families, and three images.
struct Made {
    /// `ranks.openmpi`, `ranks.mpich`.
    programs: PathBuf,
    /// A C library, a shell and the programs; no MPI.
    plain: PathBuf,
    openmpi: PathBuf,
    mpich: PathBuf,
}

impl Made {
    fn with(&self, family: Family) -> &Path {
        match family {
            Family::OpenMpi => &self.openmpi,
            Family::Mpich => &self.mpich,
        }
    }
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        // The next run replaces it: nothing tells when the last test of this one has ended.
        let directory = PathBuf::from(format!("/var/tmp/sifu-test-mpi-{}", nix::unistd::geteuid()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).expect("a directory");
        let source = directory.join("ranks.c");
        fs::write(&source, include_str!("ranks.c")).expect("a source");
        for family in BOTH {
            let compiler = format!("mpicc.{}", family.name());
            let status = Command::new(&compiler).arg("-o").arg(directory.join(family.program())).arg(&source).status();
            assert!(status.expect("a compiler").success(), "{compiler}");
        }
        let image = |name: &str, fill: &dyn Fn(&Path)| {
            let (root, image) = (directory.join(name), directory.join(format!("{name}.sif")));
            busybox_root(&root);
            fs::create_dir_all(root.join("usr/bin")).expect("a directory");
            for family in BOTH {
                fs::copy(directory.join(family.program()), root.join("usr/bin").join(family.program()))
                    .expect("a copy");
            }
            let nothing = find_program("true").expect("a program without MPI");
            fs::copy(&nothing, root.join("usr/bin/nothing")).expect("a copy");
            add_needs(&root, &nothing);
            fill(&root);
            let output =
                sifu(&["build".as_ref(), image.as_os_str(), root.as_os_str()]).limit(Duration::from_secs(300)).run();
            assert_eq!(output.code, Some(0), "{output:?}");
            image
        };
        Made {
            plain: image("plain", &|root| {
                // The C library is the image's own, all of it.
                add_library(root, Path::new("/lib/x86_64-linux-gnu/libm.so.6"));
            }),
            openmpi: image("openmpi", &|root| {
                add_program(root, "mpirun.openmpi");
                add_needs(root, &directory.join("ranks.openmpi"));
                let library = PathBuf::from("/usr/lib/x86_64-linux-gnu");
                for components in [library.join("openmpi/lib/openmpi3"), library.join("pmix2/lib/pmix")] {
                    add_directory(root, &components);
                }
                for files in
                    [Path::new("/usr/share/openmpi"), Path::new("/etc/openmpi"), &library.join("pmix2/share/pmix")]
                {
                    add_directory(root, files);
                }
            }),
            mpich: image("mpich", &|root| {
                add_program(root, "mpirun.mpich");
                add_program(root, "hydra_pmi_proxy");
                add_needs(root, &directory.join("ranks.mpich"));
            }),
            programs: directory,
        }
    })
}

/// Copies a library, and makes nothing of a link to it.
fn add_library(root: &Path, library: &Path) {
    let target = root.join(library.strip_prefix("/").expect("an absolute path"));
    if !target.exists() {
        fs::create_dir_all(target.parent().expect("a directory")).expect("directories");
        fs::copy(library, target).unwrap_or_else(|error| panic!("{}: {error}", library.display()));
    }
}

/// Copies all libraries that a file needs.
fn add_needs(root: &Path, file: &Path) {
    let output = Command::new("ldd").arg(file).stdin(Stdio::null()).output().expect("ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for path in text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))) {
        add_library(root, Path::new(path));
    }
}

fn add_program(root: &Path, name: &str) {
    let path = find_program(name).unwrap_or_else(|| panic!("{name}"));
    fs::copy(&path, root.join("usr/bin").join(name)).expect("a program");
    add_needs(root, &path);
}

/// Copies the files of a directory, and what they need.
fn add_directory(root: &Path, directory: &Path) {
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            add_library(root, &path);
            if path.extension().is_some_and(|extension| extension == "so") {
                add_needs(root, &path);
            }
        }
    }
}

/// Runs a command line in an environment as small as that of [`sifu`].
fn run(words: &[OsString]) -> Output {
    let mut child = spawn(words);
    let status = wait(&mut child, Duration::from_secs(60));
    if status.is_none() {
        let _ = child.kill();
    }
    let output = child.wait_with_output().expect("its output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Output { code: status.expect("it ends within a minute").code(), signal: None, stdout, stderr }
}

fn spawn(words: &[OsString]) -> Child {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_clear().current_dir("/");
    for name in ["PATH", "HOME", "USER"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be started")
}

fn words(parts: &[&[&str]]) -> Vec<OsString> {
    parts.concat().into_iter().map(OsString::from).collect()
}

/// `mpirun -n 3 sifu exec FLAGS IMAGE PROGRAM`.
fn under_mpirun(launcher: Family, flags: &[&str], image: &Path, program: &str) -> Vec<OsString> {
    let mpirun = launcher.mpirun();
    let mpirun: Vec<&str> = mpirun.iter().map(String::as_str).collect();
    let (sifu, image) = (sifu_path().display().to_string(), image.display().to_string());
    words(&[&mpirun, &[&sifu, "exec"], flags, &[&image, program]])
}

/// Checks that the ranks were one job in one namespace, could copy from each other's memory, and returns the namespace.
#[track_caller]
fn check_one_job(output: &Output) -> String {
    assert_eq!(output.code, Some(0), "{output:?}");
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    let namespaces: BTreeSet<&str> = lines.iter().filter_map(|line| line.split(" namespace ").nth(1)).collect();
    assert_eq!(namespaces.len(), 1, "{output:?}");
    let namespace = namespaces.into_iter().next().expect("a namespace").to_owned();
    let expected: Vec<String> = (0..RANKS)
        .map(|rank| {
            let (sum, before) = (RANKS * (RANKS - 1) / 2, (rank + RANKS - 1) % RANKS);
            format!("rank {rank} of {RANKS} sum {sum} copied rank {before} namespace {namespace}")
        })
        .collect();
    assert_eq!(lines, expected, "{output:?}");
    assert_eq!(output.stderr, "", "{output:?}");
    namespace
}

#[test]
fn hybrid_an_mpi_in_the_image_speaks_with_the_hosts_mpirun() {
    if lacks(START) {
        return;
    }
    for family in BOTH {
        let namespace = check_one_job(&run(&under_mpirun(family, &[], made().with(family), &family.program())));
        let own = fs::read_link("/proc/self/ns/user").expect("a namespace");
        assert_ne!(Path::new(&namespace), own);
    }
}

#[test]
fn bind_an_image_without_mpi_gets_the_hosts() {
    if lacks(START) {
        return;
    }
    for family in BOTH {
        check_one_job(&run(&under_mpirun(family, &["--mpi"], &made().plain, &family.program())));
        // A program of the host's, in a directory that is shown.
        let program = made().programs.join(family.program());
        check_one_job(&run(&under_mpirun(family, &["--mpi"], &made().plain, &program.display().to_string())));
        let output = run(&under_mpirun(family, &[], &made().plain, &family.program()));
        assert!(output.stderr.contains("error while loading shared libraries: libmpi"), "{output:?}");
    }
}

#[test]
fn bind_covers_an_mpi_of_the_images_own_and_leaves_the_other_family_alone() {
    if lacks(START) {
        return;
    }
    for family in BOTH {
        check_one_job(&run(&under_mpirun(family, &["--mpi"], made().with(family), &family.program())));
        check_one_job(&run(&under_mpirun(family, &["--mpi"], made().with(family.other()), &family.program())));
    }
}

#[test]
fn bind_keeps_the_launchers_variables_in_an_environment_that_is_clean() {
    if lacks(START) {
        return;
    }
    for family in BOTH {
        check_one_job(&run(&under_mpirun(family, &["--mpi", "--cleanenv"], &made().plain, &family.program())));
        let output = run(&under_mpirun(family, &["--cleanenv"], made().with(family), &family.program()));
        check_singletons(&output, "--cleanenv keeps the variables of their launcher out");
    }
}

#[test]
fn contained_ranks_meet_through_slurm() {
    if lacks(START) || lacks(&[ORDINARY, SLURM]) {
        return;
    }
    let configuration = format!("SLURM_CONF={}", slurm_configuration().expect("the test asked for SLURM").display());
    let ranks = RANKS.to_string();
    for (family, interface) in [(Family::Mpich, "--mpi=pmi2"), (Family::OpenMpi, "--mpi=pmix")] {
        let mut command = words(&[&["env", &configuration, "srun", "-n", &ranks, "-O", "-N1", interface]]);
        // Nothing of the host is shown but what Slurm's own server for PMIx needs.
        command.extend([sifu_path().into(), "exec".into(), "--contain".into(), made().with(family).into()]);
        command.push(family.program().into());
        check_one_job(&run(&command));
    }
}

#[test]
fn contained_the_image_has_its_own_mpirun() {
    if lacks(START) {
        return;
    }
    for family in BOTH {
        let (sifu, image) = (sifu_path().display().to_string(), made().with(family).display().to_string());
        let mpirun = family.mpirun();
        let mpirun: Vec<&str> = mpirun.iter().map(String::as_str).collect();
        // On one node nobody has to log in anywhere.
        let alone: &[&str] = if family == Family::OpenMpi { &["--mca", "plm", "isolated"] } else { &[] };
        check_one_job(&run(&words(&[&[&sifu, "exec", &image], &mpirun, alone, &[&family.program()]])));
    }
}

/// Checks that each rank was alone, and that one line said so.
#[track_caller]
fn check_singletons(output: &Output, reason: &str) {
    let alone = output.stdout.lines().filter(|line| line.starts_with("rank 0 of 1 ")).count();
    assert_eq!(alone, RANKS, "{output:?}");
    let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("WARNING: ")).collect();
    let [warning] = warnings[..] else { panic!("one warning: {output:?}") };
    assert!(warning.contains("the 3 ranks won't find each other") && warning.contains(reason), "{warning}");
}

#[test]
fn ranks_that_would_each_be_alone_are_told_so_once() {
    if lacks(START) {
        return;
    }
    for (launcher, reason) in [
        (Family::OpenMpi, "mpirun of Open MPI offers PMIx, and the image's MPICH (libmpich.so.12) speaks PMI-1, PMI-2"),
        (Family::Mpich, "mpirun of MPICH (Hydra) offers PMI-1, and the image's Open MPI (libmpi.so.40) speaks PMIx"),
    ] {
        let other = launcher.other();
        check_singletons(&run(&under_mpirun(launcher, &[], made().with(other), &other.program())), reason);
        // A program that has nothing to do with MPI may be started as often as one likes.
        let output = run(&under_mpirun(launcher, &[], made().with(other), "nothing"));
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{output:?}");
    }
}

#[test]
fn two_jobs_with_one_image_at_once_have_a_container_each() {
    if lacks(START) {
        return;
    }
    for family in BOTH {
        let line = under_mpirun(family, &[], made().with(family), &family.program());
        let jobs: Vec<Child> = (0..2).map(|_| spawn(&line)).collect();
        let outputs = jobs.into_iter().map(|job| job.wait_with_output().expect("its output"));
        let namespaces: BTreeSet<String> = outputs
            .map(|output| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
                check_one_job(&Output { code: output.status.code(), signal: None, stdout, stderr })
            })
            .collect();
        // One may have ended before the other began; then its number may be used again.
        assert!(!namespaces.is_empty());
    }
}

#[test]
fn check_tells_beforehand_what_the_jobs_show() {
    if lacks(START) {
        return;
    }
    let verdicts = |image: &Path, program: &[&str]| -> Vec<String> {
        let image = image.display().to_string();
        let output = sifu(&[&["mpi", "check", "--json", &image][..], program].concat()).run();
        let page: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let works = page["works"].as_bool().expect("a verdict");
        assert_eq!(output.code, Some(i32::from(!works)), "{output:?}");
        let ways = page["ways"].as_array().expect("ways");
        let of = |launcher: &str| {
            let way = ways.iter().find(|way| way["launcher"].as_str().is_some_and(|name| name.starts_with(launcher)));
            way.expect("a way")["verdict"].as_str().expect("a word").to_owned()
        };
        vec![of("mpirun of Open MPI"), of("mpirun of MPICH")]
    };
    for (image, program, expected) in [
        (&made().openmpi, &[][..], ["hybrid", "singletons"]),
        (&made().mpich, &[], ["singletons", "hybrid"]),
        (&made().plain, &[], ["bind", "bind"]),
        (&made().plain, &["/usr/bin/ranks.openmpi"], ["bind", "singletons"]),
        (&made().plain, &["ranks.mpich"], ["singletons", "bind"]),
        (&made().mpich, &["ranks.openmpi"], ["bind", "singletons"]),
        (&made().openmpi, &["ranks.mpich"], ["singletons", "bind"]),
    ] {
        assert_eq!(verdicts(image, program), expected, "{} {program:?}", image.display());
    }
    let image = made().openmpi.display().to_string();
    let output = sifu(&["mpi", "check", &image, "ranks.openmpi"]).run();
    for expected in [
        "image     Open MPI 4.",
        "libmpi.so.40 at /lib/x86_64-linux-gnu/libmpi.so.40, speaks PMIx\n",
        "program   /usr/bin/ranks.openmpi is linked with libmpi.so.40\n",
        "works (hybrid): the image's Open MPI 4.",
        "does not work: every rank would be alone (N singletons): mpirun of MPICH (Hydra) offers PMI-1",
        "works on one node (contained): the image has its own launcher\n",
    ] {
        assert!(output.stdout.contains(expected), "{expected}: {output:?}");
    }
    let output = sifu(&["mpi", "check", &image, "nowhere"]).run();
    assert!(output.clean_failure().contains("the image has no program `nowhere`"));
}

// ---- MPIs that are made up ----

/// An Open MPI in a directory that `LD_LIBRARY_PATH` names, and an image with an old C library.
struct MadeUp {
    scratch: Scratch,
}

impl MadeUp {
    fn new() -> Self {
        let host = Self { scratch: Scratch::new() };
        let machine = sifu::elf::NATIVE_MACHINE;
        let add = |path: &str, needed: &[&str], glibc: &str| {
            let path = host.scratch.path().join(path);
            let name = path.file_name().expect("a name").to_str().expect("text").to_owned();
            fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
            let library = Library { soname: Some(&name), needed, glibc_needs: &[glibc], machine, ..Library::default() };
            fs::write(path, library.to_bytes()).expect("a library");
        };
        add("prefix/lib/libmpi.so.40", &["libopen-pal.so.40", "libmade-up.so.1"], "GLIBC_2.14");
        add("prefix/lib/libopen-pal.so.40", &["libc.so.6"], "GLIBC_2.14");
        add("prefix/lib/libmade-up.so.1", &["libc.so.6"], "GLIBC_2.14");
        add("prefix/lib/libmpi_mpifh.so.40", &["libmpi.so.40"], "GLIBC_2.14");
        add("prefix/lib/libucp.so.0", &["libc.so.6"], "GLIBC_9.99");
        add("prefix/lib/openmpi/mca_btl_vader.so", &["libopen-pal.so.40"], "GLIBC_2.14");
        add("prefix/lib/openmpi/mca_pml_ucx.so", &["libucp.so.0"], "GLIBC_2.14");
        host.scratch.file("prefix/share/openmpi/help.txt", "help\n");
        host
    }

    /// A sandbox whose C library is of version `glibc`.
    fn image(&self, name: &str, glibc: &str) -> PathBuf {
        let root = self.scratch.path().join(name);
        busybox_root(&root);
        let definitions = &["libc.so.6", "GLIBC_2.2.5", glibc];
        let libc = Library { machine: sifu::elf::NATIVE_MACHINE, definitions, ..Library::default() };
        fs::create_dir_all(root.join("lib64")).expect("a directory");
        fs::write(root.join("lib64/libc.so.6"), libc.to_bytes()).expect("a C library");
        root
    }

    fn exec(&self, flags: &[&str], image: &Path, script: &str) -> Output {
        let image = image.display().to_string();
        let line = [&["exec"][..], flags, &[&image, "sh", "-c", script]].concat();
        sifu(&line).env("LD_LIBRARY_PATH", self.scratch.path().join("prefix/lib")).current_dir("/").run()
    }
}

#[test]
fn what_the_image_cannot_load_is_left_out_with_one_line() {
    if lacks(MADE_UP) {
        return;
    }
    let host = MadeUp::new();
    let image = host.image("image", "GLIBC_2.31");
    let prefix = host.scratch.path().join("prefix");
    let script = format!("ls /.singularity.d/libs {0}/lib/openmpi; cat {0}/share/openmpi/help.txt", prefix.display());
    let output = host.exec(&["--mpi", "--contain"], &image, &script);
    let expected = format!(
        "/.singularity.d/libs:\nlibmade-up.so.1\nlibmpi.so.40\nlibmpi_mpifh.so.40\nlibopen-pal.so.40\n\n\
         {}/lib/openmpi:\nmca_btl_vader.so\nhelp\n",
        prefix.display()
    );
    assert_eq!(output.stdout, expected, "{output:?}");
    let left_out = "WARNING: libucp.so.0 of the host's MPI is left out: needs glibc 9.99, the image has 2.31\n";
    assert_eq!(output.stderr, left_out);
}

#[test]
fn an_mpi_that_the_image_cannot_load_at_all_is_refused() {
    if lacks(MADE_UP) {
        return;
    }
    let host = MadeUp::new();
    let output = host.exec(&["--mpi"], &host.image("image", "GLIBC_2.12"), "echo ran");
    let failure = output.clean_failure();
    assert!(failure.contains("the host's MPI can't be loaded in this image: "), "{failure}");
    assert!(failure.contains("libmpi.so.40: needs glibc 2.14, the image has 2.12"), "{failure}");
    assert_eq!(output.stdout, "");
}

#[test]
fn an_image_with_another_abi_is_refused_with_both() {
    if lacks(MADE_UP) {
        return;
    }
    let host = MadeUp::new();
    let image = host.image("image", "GLIBC_2.31");
    let library = Library { soname: Some("libmpi.so.20"), machine: sifu::elf::NATIVE_MACHINE, ..Library::default() };
    fs::write(image.join("lib64/libmpi.so.20.10.1"), library.to_bytes()).expect("a library");
    symlink("libmpi.so.20.10.1", image.join("lib64/libmpi.so.20")).expect("a link");
    let output = host.exec(&["--mpi"], &image, "echo ran");
    let failure = output.clean_failure();
    assert!(failure.contains("this host has no MPI with the ABI of Open MPI (libmpi.so.20), only "), "{failure}");
    assert!(failure.contains("(the image has /lib64/libmpi.so.20.10.1)"), "{failure}");
}

#[test]
fn lists_of_binds_in_variables_bring_an_mpi_as_before() {
    if lacks(MADE_UP) {
        return;
    }
    let host = MadeUp::new();
    let (image, prefix) = (host.image("image", "GLIBC_2.31"), host.scratch.path().join("prefix"));
    let list = format!("{0}/lib:/opt/mpi/lib,{0}/share:/opt/mpi/share:ro", prefix.display());
    let image = image.display().to_string();
    let script = "ls /opt/mpi/lib/libmpi.so.40; cat /opt/mpi/share/openmpi/help.txt; echo $LD_LIBRARY_PATH";
    let output = sifu(&["exec", "--contain", &image, "sh", "-c", script])
        .env("APPTAINER_BINDPATH", list)
        .env("APPTAINERENV_LD_LIBRARY_PATH", "/opt/mpi/lib")
        .run();
    assert_eq!(output.stdout, "/opt/mpi/lib/libmpi.so.40\nhelp\n/opt/mpi/lib:/.singularity.d/libs\n", "{output:?}");
}

#[test]
fn a_damaged_library_of_the_image_is_no_mpi_and_no_panic() {
    if lacks(MADE_UP) {
        return;
    }
    let host = MadeUp::new();
    let image = host.image("image", "GLIBC_2.31");
    fs::write(image.join("lib64/libmpich.so.12"), b"\x7fELF\x02\x01\x01 and no more").expect("a library");
    fs::write(image.join("bin/solver"), b"\x7fELF").expect("a program");
    fs::set_permissions(image.join("bin/solver"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let output = sifu(&["mpi", "check", &image.display().to_string(), "solver"]).run();
    assert!(output.code.is_some_and(|code| code <= 1) && !output.stderr.contains("panicked"), "{output:?}");
    assert!(output.stdout.contains("image     MPICH, libmpich.so.12 at /lib64/libmpich.so.12"), "{output:?}");
}
