//! The tree of verbs: names, words, flags, texts, and the function behind each.

use super::action_flags::{self, ACCELERATORS, ACTION, SHELL, request};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use super::elsewhere::{self, ELSEWHERE};
use super::flags::{Command, Does, Flag, Rest, Said, os};
use super::{action, answer, completion, config, inspect, oci, registry, remote_commands, run_help, sif, version};
use crate::build::sections::Secret;
use crate::launch::request::Verb;
use crate::remote::access::Access;
use crate::remote::credentials::Password;
use crate::report::Failure;
use crate::sif::Arch;

/// The program itself: a group of all verbs.
pub static ROOT: Command = Command::group("sifu", VERBS, "Run single-file (SIF) containers as an ordinary user")
    .text(ROOT_TEXT, ROOT_EXAMPLES);

const ROOT_TEXT: &str = "\
sifu starts programs in containers that are single files, in the SIF format of Apptainer and Singularity, for ordinary users: \
no privileges, no daemon, no helper programs. It takes Apptainer's command lines and variables as they are, also under the names \
apptainer, singularity and run-singularity.";

const ROOT_EXAMPLES: &[(&str, &str)] = &[
    ("sifu exec image.sif python3 script.py", "Run a program of the image on files of the current directory"),
    ("sifu help exec", "Explain one command"),
    ("sifu doctor", "Tell what this machine allows, and how to cure what it does not"),
];

const OCI: Command = Command::group("oci", OCI_VERBS, "Run OCI bundles")
    .flags(&[oci::OF_RUNTIME])
    .text(
        "The command line of an OCI runtime, for those who call one: podman, Slurm. A bundle is a directory with a config.json, whose \
         root.path is a directory or an image. Containers run as their caller, in the caller's cgroup. The same command line is \
         understood without the word `oci` under the name sifu-oci.",
        &[
            ("sifu oci run --bundle DIRECTORY job1", "Run a bundle, and wait for it"),
            ("podman --runtime /usr/local/bin/sifu-oci run IMAGE", "Let podman run containers by sifu"),
        ],
    );

const OCI_VERBS: &[Command] = &[
    Command::later("attach", "A container's standard streams are those of `sifu oci create`.", "Attach to a container"),
    Command::verb("bundle", oci::bundle, "Write a bundle around an image")
        .flags(&[oci::OF_RUNTIME])
        .words(&["IMAGE", "DIRECTORY"], Rest::Payload("ARGUMENTS"))
        .text(
            "DIRECTORY/rootfs is a link to the image where it is now. With the bundle a container sees what one of `sifu exec` sees: \
             the home directory, /tmp, /dev, and the variables that the image sets. ARGUMENTS is the command, by default /bin/sh.",
            &[("sifu oci bundle image.sif bundle && srun --container=bundle hostname", "Run a program of an image in a job step")],
        ),
    Command::verb("create", oci::create, "Make a container, up to its command")
        .flags(&[oci::OF_CREATE, oci::OF_RUNTIME])
        .words(&["ID"], Rest::Nothing),
    Command::verb("delete", oci::delete, "Remove what is kept of a container that has ended")
        .flags(&[oci::OF_DELETE, oci::OF_RUNTIME])
        .words(&["ID"], Rest::Nothing),
    Command::later("exec", "", "Run another command in a container"),
    Command::verb("kill", oci::kill, "Send a signal to a container's command")
        .flags(&[oci::OF_KILL, oci::OF_RUNTIME])
        .words(&["ID"], Rest::Words("SIGNAL")),
    Command::verb("list", oci::list, "List containers: id, status, bundle").flags(&[oci::OF_RUNTIME]),
    Command::later("mount", "Let root.path of a config.json name the image.", "Make a bundle of an image"),
    Command::later("pause", "`sifu oci kill --all ID STOP` stops its processes.", "Stop all processes of a container"),
    Command::later("resume", "`sifu oci kill --all ID CONT` lets its processes go on.", "Let a container go on"),
    Command::verb("run", oci::run, "Make a container, start it, and wait for its end")
        .flags(&[oci::OF_CREATE, oci::OF_RUN, oci::OF_RUNTIME])
        .words(&["ID"], Rest::Nothing),
    Command::verb("start", oci::start, "Start the command of a container that was made")
        .flags(&[oci::OF_RUNTIME])
        .words(&["ID"], Rest::Nothing),
    Command::verb("state", oci::state, "Print the state of a container as JSON")
        .flags(&[oci::OF_RUNTIME])
        .words(&["ID"], Rest::Nothing),
    Command::later("umount", "", "Take a bundle of an image down"),
    Command::later("update", "", "Change the limits of a container"),
];

const OF_ACTION: &[&[Flag]] = &[ACTION, ACCELERATORS, ELSEWHERE];
const OF_SECTION: &[&[Flag]] = &[action_flags::SECTION, ACTION, ACCELERATORS, ELSEWHERE];
const OF_SHELL: &[&[Flag]] = &[SHELL, ACTION, ACCELERATORS, ELSEWHERE];

const VERBS: &[Command] = &[
    BUILD,
    CACHE,
    Command::later("capability", "", "Manage capabilities that users and groups may have")
        .text("Commands: add, avail, drop, list.", &[]),
    Command::later("checkpoint", "", "Manage saved states of containers")
        .text("Commands: create, delete, instance, list.", &[]),
    COMPLETION,
    CONFIG,
    remote_commands::DELETE,
    DOCTOR,
    EXEC,
    GPU,
    HELP,
    INSPECT,
    Command::later(
        "instance",
        "A program in the background is `sifu run IMAGE &` for now.",
        "Run containers in the background, by name",
    )
    .text("Commands: list, run, start, stats, stop.", &[]),
    Command::later("key", "", "Manage the keys that sign and verify images")
        .aliases(&["keys"])
        .text("Commands: export, import, list, newpair, pull, push, remove, search.", &[]),
    remote_commands::KEYSERVER,
    MPI,
    OCI,
    Command::later(
        "overlay",
        "For changes that need not last use --writable-tmpfs; for lasting ones use --writable on a directory.",
        "Make writable overlay images",
    )
    .text("Commands: create.", &[]),
    PLAN,
    Command::later("plugin", "", "Manage plugins")
        .aliases(&["plugins"])
        .text("Commands: compile, create, disable, enable, inspect, install, list, uninstall.", &[]),
    PULL,
    PUSH,
    REGISTRY,
    remote_commands::REMOTE,
    RUN,
    RUN_HELP,
    remote_commands::SEARCH,
    SECTION,
    SHELL_COMMAND,
    SIF,
    Command::later("sign", "", "Sign an image"),
    TEST,
    Command::later("verify", "", "Verify an image's signatures"),
    VERSION,
];

const IMAGE_TEXT: &str = "\
The image is a SIF file, a bare SquashFS file or a directory that holds a root file system; its content tells which, not its name. \
Options stand before the image, and everything after it belongs to the program in the container. The program keeps the caller's \
process id, terminal, standard streams and current directory; its exit code is the exit code.";

const EXEC: Command = Command::verb("exec", exec, "Run a command within a container")
    .flags(OF_ACTION)
    .words(&["IMAGE", "COMMAND"], Rest::Payload("ARGUMENTS"))
    .text(
        IMAGE_TEXT,
        &[
            ("sifu exec tools.sif samtools view in.bam", "Run a program of the image"),
            ("sifu exec -B /data:/mnt:ro tools.sif ls /mnt", "Show a directory of the host read-only"),
            ("cat in.txt | sifu exec -C tools.sif sort > out.txt", "Work in a pipe, with nothing of the host to see"),
        ],
    );

/// What a build runs its sections by: `exec`, tied to the build.
const SECTION: Command = Command {
    hidden: true,
    ..Command::verb("section", section, "Run a command of a build, which ends with it")
        .flags(OF_SECTION)
        .words(&["IMAGE", "COMMAND"], Rest::Payload("ARGUMENTS"))
};

const RUN: Command = Command::verb("run", run, "Run the image's own program (its runscript)")
    .flags(OF_ACTION)
    .words(&["IMAGE"], Rest::Payload("ARGUMENTS"))
    .text(
        IMAGE_TEXT,
        &[
            ("sifu run tool.sif --threads 4 in.txt", "Run the runscript with arguments"),
            ("./tool.sif --threads 4 in.txt", "The same, where run-singularity is in the PATH"),
            ("sifu run --app align tool.sif", "Run an app of the image"),
        ],
    );

const SHELL_COMMAND: Command = Command::verb("shell", shell, "Run a shell within a container")
    .flags(OF_SHELL)
    .words(&["IMAGE"], Rest::Payload("ARGUMENTS"))
    .text(
        IMAGE_TEXT,
        &[
            ("sifu shell image.sif", "Look around in the image"),
            ("sifu shell --writable-tmpfs image.sif", "Try changes out; they end with the shell"),
        ],
    );

const TEST: Command = Command::verb("test", test, "Run the image's own tests within a container")
    .flags(OF_ACTION)
    .words(&["IMAGE"], Rest::Payload("ARGUMENTS"))
    .text(IMAGE_TEXT, &[("sifu test image.sif", "Run the tests; an image without tests passes")]);

const PLAN_VERBS: &[Command] = &[
    Command::verb("exec", plan_exec, "Print what exec would do")
        .flags(OF_ACTION)
        .words(&["IMAGE", "COMMAND"], Rest::Payload("ARGUMENTS")),
    Command::verb("run", plan_run, "Print what run would do")
        .flags(OF_ACTION)
        .words(&["IMAGE"], Rest::Payload("ARGUMENTS")),
    Command::verb("shell", plan_shell, "Print what shell would do")
        .flags(OF_SHELL)
        .words(&["IMAGE"], Rest::Payload("ARGUMENTS")),
    Command::verb("test", plan_test, "Print what test would do")
        .flags(OF_ACTION)
        .words(&["IMAGE"], Rest::Payload("ARGUMENTS")),
];

const PLAN: Command = Command::group(
    "plan",
    PLAN_VERBS,
    "Print what a launch would do, without doing it",
)
.text(
    "The launch plan is text, one step a line: mounts in their order, variables, the command. It takes the same options as the \
     command that it stands for.",
    &[("sifu plan exec -C image.sif true", "See what --containall brings")],
);

const BUILD: Command = Command::verb("build", build, "Make an image from a definition or another image")
    .flags(BUILD_FLAGS)
    .words(&["IMAGE", "SOURCE"], Rest::Nothing)
    .text(
        "Builds what a definition file says, packs a directory that holds a root file system into a SIF file, or packs an image \
         anew. The image appears whole or not at all, and the same source gives the same bytes; SOURCE_DATE_EPOCH is the time \
         in it, if it is set. A definition's scripts run as root of the container, and need no rights outside. A comment \
         `# secret: NAME` in %arguments keeps the value of NAME out of the definition that the image holds.",
        &[
            ("sifu build image.sif image.def", "Build what a definition file says"),
            ("sifu build --build-arg VERSION=2 image.sif image.def", "Fill in {{ VERSION }}"),
            ("sifu build image.sif rootfs/", "Pack a directory"),
            ("sifu build --sandbox rootfs image.sif", "Unpack an image into a directory"),
        ],
    );

const INSPECT: Command = Command::verb("inspect", inspect_image, "Show an image's labels, scripts and other metadata")
    .flags(INSPECT_FLAGS)
    .words(&["IMAGE"], Rest::Nothing)
    .text(
        "Shows what an image says about itself; labels, unless something else is asked for. No container is started.",
        &[
            ("sifu inspect image.sif", "Show the labels"),
            ("sifu inspect --runscript --environment image.sif", "Show what run does, and with which variables"),
            ("sifu inspect --all image.sif", "Show everything as JSON"),
        ],
    );

const RUN_HELP: Command = Command::verb("run-help", help_of_image, "Show the help text that an image brings")
    .flags(RUN_HELP_FLAGS)
    .words(&["IMAGE"], Rest::Nothing)
    .text(
        "",
        &[
            ("sifu run-help image.sif", "Show the image's help"),
            ("sifu run-help --app align image.sif", "Show the help of an app"),
        ],
    );

const SIF_VERBS: &[Command] = &[
    Command::verb("add", sif_add, "Add a data object to a SIF file")
        .flags(SIF_ADD_FLAGS)
        .words(&["IMAGE", "FILE"], Rest::Nothing),
    Command::verb("del", sif_del, "Delete a data object from a SIF file").words(&["ID", "IMAGE"], Rest::Nothing),
    Command::verb("dump", sif_dump, "Write a data object's bytes to standard output")
        .words(&["ID", "IMAGE"], Rest::Nothing),
    Command::verb("header", sif_header, "Show the global header of a SIF file").words(&["IMAGE"], Rest::Nothing),
    Command::verb("info", sif_info, "Show the descriptor of a data object").words(&["ID", "IMAGE"], Rest::Nothing),
    Command::verb("list", sif_list, "List the data objects of a SIF file").words(&["IMAGE"], Rest::Nothing),
    Command::verb("new", sif_new, "Make a SIF file without objects").words(&["IMAGE"], Rest::Nothing),
    Command::verb("setprim", sif_setprim, "Make a partition the one that runs").words(&["ID", "IMAGE"], Rest::Nothing),
];

const SIF: Command = Command::group(
    "sif",
    SIF_VERBS,
    "Look into SIF files and change them",
)
.aliases(&["siftool"])
.text(
    "A SIF file is a header, a table of descriptors, and data objects: partitions, definition files, labels, signatures. \
     An ID is the number in the first column of `sif list`.",
    &[("sifu sif list image.sif", "See what is in a file"), ("sifu sif dump 1 image.sif > image.def", "Save an object")],
);

const CONFIG_VERBS: &[Command] = &[
    Command::verb("global", config::global, "Show the site's configuration")
        .flags(CONFIG_FLAGS)
        .words(&["DIRECTIVE"], Rest::Words("VALUES"))
        .text("", &[("sifu config global --get \"bind path\"", "Show the value of a directive")]),
    Command::later(
        "fakeroot",
        "Edit /etc/subuid and /etc/subgid, or use usermod --add-subuids and --add-subgids.",
        "Manage subordinate ids of users",
    ),
];

const CONFIG: Command = Command::group("config", CONFIG_VERBS, "Show the site's configuration");

const DOCTOR: Command = Command::verb("doctor", doctor, "Tell what this machine allows, and how to cure what it does not")
    .flags(DOCTOR_FLAGS)
    .text(
        "Tries each ability that containers need (user namespaces, /dev/fuse, overlay mounts, subordinate ids, control groups, \
         usable temporary directories), names the switch of this machine that blocks it, and the command that cures it. The exit \
         code is 0 where a SIF starts at full speed, 1 where it has to be unpacked first, 2 where none can be started.",
        &[("sifu doctor", "Read what to do"), ("sifu doctor --json", "Keep it with a bug report")],
    );

const DOCTOR_FLAGS: &[&[Flag]] =
    &[&[Flag::switch("json", |said, on| said.doctor.json = on, "Print JSON").short('j').keys(&["JSON"])]];

const MPI: Command = Command::group("mpi", MPI_VERBS, "Tell how the ranks of an image find each other");

const MPI_VERBS: &[Command] = &[Command::verb("check", mpi_check, "Tell whether ranks in an image will be one job, and why")
    .flags(MPI_FLAGS)
    .words(&["IMAGE"], Rest::Words("PROGRAM"))
    .text(
        "Names the MPI of the image and of this host (family, version, ABI), the launcher with its PMI (as this process sees it, or \
         else those on PATH, and Slurm's default), what the program is linked with, and judges each way to start ranks: hybrid, \
         with --mpi, contained, each rank alone, or another ABI. Nothing is started. The exit code is 0 where one way works, else 1.",
        &[
            ("sifu mpi check image.sif", "See what fits before the job is queued"),
            ("sifu mpi check image.sif /opt/app/bin/solver", "Judge one program"),
            ("mpirun -n 1 sifu mpi check image.sif", "Judge the launcher that starts the job"),
        ],
    )];

const MPI_FLAGS: &[&[Flag]] =
    &[&[Flag::switch("json", |said, on| said.mpi.json = on, "Print JSON").short('j').keys(&["JSON"])]];

const GPU: Command = Command::group("gpu", GPU_VERBS, "Tell what containers get of the host's GPUs");

const GPU_VERBS: &[Command] = &[Command::verb("explain", gpu_explain, "List what a container would get, with the reasons")
    .flags(&[ACCELERATORS])
    .words(&[], Rest::Words("IMAGE"))
    .text(
        "Lists libraries, programs, files and devices of the host, what is hidden or left out, and why, for NVIDIA and AMD, or \
         as the options say. With an image its C library and its own libraries count.",
        &[
            ("sifu gpu explain", "See what --nv and --rocm find on this host"),
            ("sifu gpu explain --nv --gpus 0 image.sif", "See what a command line would bring into an image"),
        ],
    )];

const HELP: Command = Command::new("help", Does::Help, "Explain a command")
    .words(&[], Rest::Words("COMMAND"))
    .text("", &[("sifu help exec", "Explain exec"), ("sifu help sif add", "Explain a command of a group")]);

const VERSION: Command = Command::verb("version", version::print, "Show the version");

const COMPLETION: Command = Command::verb("completion", completion::print, "Print a completion script for a shell")
    .words(&["SHELL"], Rest::Nothing)
    .text(
        "SHELL is bash, zsh or fish.",
        &[
            ("source <(sifu completion bash)", "Complete in this bash"),
            ("sifu completion fish > ~/.config/fish/completions/sifu.fish", "Complete in every fish"),
        ],
    );

const BUILD_FLAGS: &[&[Flag]] = &[ELSEWHERE, &[
    Flag::switch("force", |said, on| said.build.force = on, "Replace the image if it is there").short('F').keys(&["FORCE"]),
    Flag::checked(
        "jobs",
        "NUMBER",
        |said, text| number(text).map(|number| said.build.jobs = Some(number)),
        "Compress on so many processors; on all that the process may use by default",
    )
    .short('j')
    .keys(&["JOBS"]),
    Flag::text(
        "mksquashfs-args",
        "OPTIONS",
        |said, options| said.build.mksquashfs_args = Some(text(options)),
        "Compress as these options of mksquashfs say; of them -comp (gzip, zstd, xz, lz4), -Xcompression-level, -b, -processors \
         and -all-root are understood",
    )
    .keys(&["MKSQUASHFS_ARGS"]),
    Flag::switch("sandbox", |said, on| said.build.sandbox = on, "Make a directory instead of a file")
        .short('s')
        .keys(&["SANDBOX"]),
    Flag::switch("update", |said, on| said.build.update = on, "Run the definition over the directory that is there")
        .short('u')
        .keys(&["UPDATE"]),
    Flag::switch("notest", |said, on| said.build.notest = on, "Leave %test unrun").short('T').keys(&["NOTEST"]),
    Flag::list(
        "section",
        "LIST",
        |said, words| said.build.sections.extend(words),
        "Do only these sections: setup, files, post, environment, labels, test; or none. Scripts and help go into the image with all",
    )
    .keys(&["SECTION"]),
    Flag::pairs(
        "build-arg",
        "NAME=VALUE",
        |said, pairs| said.build.build_args.extend(pairs),
        "Put a value for {{ NAME }} into the definition",
    ),
    Flag::each(
        "build-arg-file",
        "FILE",
        |said, file| said.build.build_arg_files.push(file),
        None,
        "Read such values from a file of NAME=VALUE lines",
    ),
    Flag::switch(
        "warn-unused-build-args",
        |said, on| said.build.warn_unused_build_args = on,
        "Go on when the definition does not use a value",
    ),
    Flag::checked(
        "secret",
        "id=NAME,src=FILE",
        |said, text| Secret::parse(text).map(|secret| said.build.run.secrets.push(secret)),
        "Let %post read a file as /run/secrets/NAME; the image does not get it",
    ),
    Flag::each(
        "bind",
        "SPEC",
        |said, spec| said.build.run.binds.push(os(spec)),
        None,
        "Show a file or directory of the host to %post and %test: source[:target[:options]]",
    )
    .short('B'),
    Flag::each(
        "mount",
        "SPEC",
        |said, spec| said.build.run.mounts.push(os(spec)),
        Some(b'\n'),
        "The same, written type=bind,src=..,dst=..",
    )
    .keys(&["MOUNT"]),
    Flag::switch("nv", |said, on| said.build.run.nv = on, "Bring the NVIDIA driver to %post and %test"),
    Flag::switch("rocm", |said, on| said.build.run.rocm = on, "Bring the AMD libraries to %post and %test"),
    Flag::switch(
        "writable-tmpfs",
        |said, on| said.build.run.writable_tmpfs = on,
        "Let %test change files, for itself alone",
    )
    .keys(&["WRITABLE_TMPFS"]),
    Flag::checked(
        "arch",
        "NAME",
        |said, text| architecture(text).map(|arch| said.build.architecture = Some(arch)),
        "The machine that the image is for (default this one, or that of its programs)",
    )
    .keys(&["BUILD_ARCH"]),
    Flag::switch("fix-perms", |said, on| said.build.fix_perms = on, "Let the owner read and write every file")
        .keys(&["FIXPERMS"]),
    Flag::switch("data", |said, on| said.build.data = on, "Make a SIF file that holds data, to be bound elsewhere")
        .keys(&["DATA"]),
    Flag::text(
        "tmpdir",
        "DIRECTORY",
        |said, directory| said.build.tmpdir = Some(directory),
        "Build in this directory instead of beside the image",
    )
    .keys(&["TMPDIR"]),
    Flag::switch("no-cleanup", |said, on| said.build.no_cleanup = on, "Keep the files of a build that failed")
        .keys(&["NO_CLEANUP"]),
    Flag::switch(
        "ignore-subuid",
        |said, on| said.build.run.root.ignores_range = on,
        "Emulate root, even if there is a range of subordinate ids: all files of a sandbox are the caller's",
    )
    .keys(&["IGNORE_SUBUID"]),
    Flag::switch(
        "ignore-fakeroot-command",
        |said, on| said.build.run.root.no_emulation = on,
        "Without a range of subordinate ids: do not emulate what root may do",
    )
    .keys(&["IGNORE_FAKEROOT_COMMAND"])
    .hidden(),
    // What builds do anyway, as an ordinary user.
    Flag::switch(
        "fakeroot",
        |said, on| said.build.run.root.asked = on,
        "Build as root of the container; scripts of a build always do, and with this the files of any sandbox have their owners",
    ).short('f').keys(&["FAKEROOT"]),
    Flag::switch("reproducible", |_, _| {}, "Give the same bytes for the same inputs; builds always do")
        .keys(&["REPRODUCIBLE"]),
    Flag::switch("userns", |_, _| {}, "Use a user namespace and nothing that needs rights; builds always do").hidden(),
    Flag::text(
        "arch-variant",
        "NAME",
        |said, name| said.pull.variant = Some(text(name)),
        "The variant of that machine, such as v7, where an image has several",
    )
    .keys(&["BUILD_ARCH_VARIANT"]),
    Flag::later("encrypt", None, "").short('e'),
    Flag::switch(
        "json",
        |said, on| said.build.json = on,
        "Read the definition as JSON, as Apptainer's programs write it: an object, or a list with one for each stage",
    )
    .keys(&["JSON"]),
    Flag::later("passphrase", None, ""),
    Flag::later("pem-path", Some("FILE"), ""),
]];

/// Reads the name of an architecture, by Go's or the kernel's name.
pub(super) fn architecture(text: &[u8]) -> Result<Arch, String> {
    let name = String::from_utf8_lossy(text);
    let name = match name.as_ref() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i686" | "i386" => "386",
        other => other,
    };
    Arch::from_name(name).ok_or_else(|| "amd64, arm64, ppc64le, riscv64, s390x … was expected".to_owned())
}

const PULL: Command = Command::verb("pull", pull, "Fetch an image from a registry, a library or the web")
    .flags(PULL_FLAGS)
    .words(&["[FILE] URI"], Rest::Further)
    .text(
        "Makes a SIF file of an image elsewhere: docker:// and oras:// name one in a registry, library:// one in a library, http:// \
         and https:// a file on the web, docker-archive:, oci: and oci-archive: one that another tool has stored here. Without FILE its name is that of the \
         image with the tag. The file appears whole or not at all. Layers stream into the image: nothing is unpacked to disk.",
        &[
            ("sifu pull docker://debian:12", "Make debian_12.sif"),
            ("sifu pull --force tool.sif oras://registry.example/team/tool:1.0", "Replace tool.sif"),
        ],
    );

const PULL_FLAGS: &[&[Flag]] = &[
    &[
        Flag::switch("force", |said, on| said.pull.force = on, "Replace the file if it is there")
            .short('F')
            .keys(&["FORCE"]),
        Flag::text(
            "dir",
            "DIRECTORY",
            |said, path| said.pull.directory = Some(os(path)),
            "Put the file into this directory",
        )
        .keys(&["PULLDIR", "PULLFOLDER"]),
        Flag::text("name", "FILE", |said, name| said.pull.name = Some(os(name)), "Give the file this name")
            .keys(&["PULL_NAME"])
            .hidden(),
        Flag::checked(
            "arch",
            "NAME",
            |said, text| architecture(text).map(|arch| said.pull.architecture = Some(arch)),
            "The machine that the image is for (default this one)",
        )
        .keys(&["PULL_ARCH"]),
        Flag::text(
            "arch-variant",
            "NAME",
            |said, name| said.pull.variant = Some(text(name)),
            "The variant of that machine, such as v7, where an image has several",
        )
        .keys(&["PULL_ARCH_VARIANT"]),
        Flag::switch("sandbox", |said, on| said.pull.sandbox = on, "Make a directory instead of a file")
            .keys(&["SANDBOX"]),
        Flag::switch("reproducible", |_, _| {}, "Make the same bytes of the same image; pulls always do")
            .keys(&["REPRODUCIBLE"])
            .hidden(),
        Flag::later(
            "tmpdir",
            Some("DIRECTORY"),
            "Leave it out: what is temporary lies beside the image or in the cache.",
        )
        .keys(&["TMPDIR"])
        .quiet_variable(),
        Flag::switch(
            "no-cleanup",
            |said, on| said.pull.no_cleanup = on,
            "Keep what was made of an image when it could not be finished; it lies beside the image, not in the cache",
        )
        .keys(&["NO_CLEANUP"]),
        Flag::switch("allow-unsigned", |_, _| {}, "Take images that nobody has signed; pulls always do")
            .short('U')
            .keys(&["ALLOW_UNSIGNED"])
            .hidden(),
    ],
    ELSEWHERE,
];

const PUSH: Command = Command::verb("push", push, "Store an image in a registry or a library")
    .flags(PUSH_FLAGS)
    .words(&["FILE", "URI"], Rest::Nothing)
    .text(
        "Stores a SIF file in a registry: as it is under oras://HOST/NAME:TAG, or, under docker://HOST/NAME:TAG, as an image that \
         Docker, Podman and others run. A library takes it as it is, under library://ENTITY/COLLECTION/NAME:TAG, with several tags \
         if they are given (`:1.0,latest`).",
        &[
            ("sifu push tool.sif oras://registry.example/team/tool:1.0", "Share the file itself"),
            (
                "sifu push tool.sif docker://registry.example/team/tool:1.0",
                "Share it with those who run Docker or Podman",
            ),
            ("sifu push --allow-unsigned tool.sif library://team/tools/tool:1.0", "Share it in a library"),
        ],
    );

const PUSH_FLAGS: &[&[Flag]] = &[
    &[
        Flag::switch(
            "allow-unsigned",
            |said, on| said.library.allow_unsigned = on,
            "Store an image in a library that nobody has signed",
        )
        .short('U')
        .keys(&["ALLOW_UNSIGNED"]),
        Flag::text(
            "description",
            "TEXT",
            |said, words| said.library.description = Some(text(words)),
            "What a library says about the image",
        )
        .short('D'),
    ],
    ELSEWHERE,
];

/// Who logs in.
pub(super) const WHO: &[Flag] = &[
    Flag::text("username", "NAME", |said, name| said.login.username = Some(text(name)), "The name to log in with")
        .short('u')
        .keys(&["LOGIN_USERNAME"]),
    Flag::text(
        "password",
        "PASSWORD",
        |said, password| said.login.password = Some(Password(text(password))),
        "Its password; others on this machine can see it, so prefer --password-stdin",
    )
    .short('p')
    .keys(&["LOGIN_PASSWORD"]),
    Flag::switch("password-stdin", |said, on| said.login.password_stdin = on, "Read the password from standard input"),
];

const LOGIN_FLAGS: &[&[Flag]] = &[WHO, REGISTRY_PLACE];

const REGISTRY_PLACE: &[Flag] = &[
    Flag::text(
        "authfile",
        "FILE",
        |said, file| said.elsewhere.authfile = Some(os(file)),
        "Keep the credentials in this file",
    )
    .keys(&["AUTH_FILE"]),
    Flag::switch("no-https", |said, on| said.elsewhere.no_https = on, "Talk to the registry without encryption")
        .aliases(&["nohttps"])
        .keys(&["NOHTTPS", "NO_HTTPS"]),
];

const REGISTRY_VERBS: &[Command] = &[
    Command::verb("list", registry_list, "List the registries for which credentials are kept").flags(&[REGISTRY_PLACE]),
    Command::verb("login", registry_login, "Check a name and password with a registry and keep them")
        .flags(LOGIN_FLAGS)
        .words(&["URI"], Rest::Nothing)
        .text("", &[("sifu registry login -u ada docker://registry.example", "Ask for the password, and keep it")]),
    Command::verb("logout", registry_logout, "Forget the name and password for a registry")
        .flags(&[REGISTRY_PLACE])
        .words(&["URI"], Rest::Nothing),
];

const REGISTRY: Command = Command::group("registry", REGISTRY_VERBS, "Manage logins to OCI registries")
    .flags(&[&[Flag::later(
        "config",
        Some("FILE"),
        "Leave it out: what is known of registries is in the file of their credentials, which --authfile names.",
    )
    .short('c')]])
    .text(
    "Credentials are kept in ~/.apptainer/docker-config.json, in Docker's form; where that file is absent, those of Docker and \
     Podman count.",
    &[],
);

const CACHE_VERBS: &[Command] = &[
    Command::verb("clean", cache_clean, "Remove images from the cache").flags(&[&[
        Flag::list("type", "LIST", |said, kinds| said.cache.kinds.extend(kinds), CACHE_TYPES).short('T'),
        Flag::checked(
            "days",
            "NUMBER",
            |said, text| number(text).map(|days| said.cache.days = Some(days)),
            "Remove only what was not used for so many days",
        )
        .short('D'),
        Flag::switch("dry-run", |said, on| said.cache.dry_run = on, "Say what would be removed").short('n'),
        Flag::switch("force", |said, on| said.cache.force = on, "Don't ask").short('f'),
    ]]),
    Command::verb("list", cache_list, "Show how much the cache holds").flags(&[&[
        Flag::list("type", "LIST", |said, kinds| said.cache.kinds.extend(kinds), CACHE_TYPES).short('T'),
        Flag::switch("verbose", |said, on| said.cache.verbose = on, "Show each image").short('v'),
    ]]),
];

const CACHE_TYPES: &str = "Only these types: library, oci-tmp, oras, net; or all";

const CACHE: Command = Command::group("cache", CACHE_VERBS, "Manage the cache of images from elsewhere").text(
    "Images that were fetched or converted are kept as SIF files in ~/.apptainer/cache, or in the directory cache of \
     APPTAINER_CACHEDIR. Together they take 20 GiB at most (SIFU_CACHE_MAX_MIB says otherwise); what was not used for longest \
     goes first. SIFU_SITE_CACHEDIR names a cache of the site, which is only read.",
    &[("sifu cache list --verbose", "Show each image"), ("sifu cache clean --days 30", "Remove what was not used for a month")],
);

const INSPECT_FLAGS: &[&[Flag]] = &[&[
    Flag::switch("all", |said, on| said.inspect.all = on, "Show everything, as JSON"),
    Flag::text("app", "NAME", |said, name| said.inspect.app = Some(text(name)), "Show what belongs to an app"),
    Flag::switch(
        "deffile",
        |said, on| said.inspect.deffile = on,
        "Show the definition file that the image was built from",
    )
    .short('d'),
    Flag::switch("environment", |said, on| said.inspect.environment = on, "Show the image's environment scripts")
        .short('e'),
    Flag::switch("helpfile", |said, on| said.inspect.helpfile = on, "Show the image's help text").short('H'),
    Flag::switch("json", |said, on| said.inspect.json = on, "Print JSON").short('j'),
    Flag::switch("labels", |said, on| said.inspect.labels = on, "Show the labels (default)").short('l'),
    Flag::switch("list-apps", |said, on| said.inspect.list_apps = on, "List the apps"),
    Flag::switch("runscript", |said, on| said.inspect.runscript = on, "Show what `run` starts").short('r'),
    Flag::switch("startscript", |said, on| said.inspect.startscript = on, "Show what an instance starts").short('s'),
    Flag::switch("test", |said, on| said.inspect.test = on, "Show the tests").short('t'),
]];

const RUN_HELP_FLAGS: &[&[Flag]] =
    &[&[Flag::text("app", "NAME", |said, name| said.inspect.app = Some(text(name)), "Show the help of an app")]];

const SIF_ADD_FLAGS: &[&[Flag]] = &[&[
    Flag::checked(
        "datatype",
        "NUMBER",
        |said, text| number(text).map(|number| said.object.datatype = Some(number)),
        "What the object is; needed. 1 definition file, 2 environment, 3 labels, 4 partition, 5 signature, 6 JSON, 7 generic, \
         8 cryptographic message, 9 SBOM, 10 OCI root index, 11 OCI blob",
    ),
    Flag::checked(
        "parttype",
        "NUMBER",
        |said, text| number(text).map(|number| said.object.parttype = Some(number)),
        "What a partition is for. 1 system, 2 primary system, 3 data, 4 overlay",
    ),
    Flag::checked(
        "partfs",
        "NUMBER",
        |said, text| number(text).map(|number| said.object.partfs = Some(number)),
        "A partition's file system. 1 SquashFS, 2 ext3, 3 immutable objects, 4 raw",
    ),
    Flag::checked(
        "partarch",
        "NUMBER",
        |said, text| number(text).map(|number| said.object.partarch = Some(number)),
        "A partition's architecture. 1 386, 2 amd64, 3 arm, 4 arm64, 5 ppc64, 6 ppc64le, 7 mips, 8 mipsle, 9 mips64, 10 mips64le, \
         11 s390x, 12 riscv64",
    ),
    Flag::checked(
        "signhash",
        "NUMBER",
        |said, text| number(text).map(|number| said.object.signhash = Some(number)),
        "A signature's hash. 1 SHA-256, 2 SHA-384, 3 SHA-512, 4 BLAKE2s-256, 5 BLAKE2b-256",
    ),
    Flag::text(
        "signentity",
        "FINGERPRINT",
        |said, entity| said.object.signentity = Some(text(entity)),
        "The key that signed",
    ),
    Flag::text(
        "sbomformat",
        "FORMAT",
        |said, format| said.object.sbomformat = Some(text(format)),
        "An SBOM's format: cyclonedx-json, cyclonedx-xml, github-json, spdx-json, spdx-rdf, spdx-tag-value, spdx-yaml, syft-json",
    ),
    Flag::checked(
        "groupid",
        "NUMBER",
        |said, text| number(text).map(|number| said.object.groupid = number),
        "The group that the object joins (default none)",
    ),
    Flag::checked(
        "link",
        "NUMBER",
        |said, text| number(text).map(|number| said.object.link = number),
        "The object that this one speaks of (default none)",
    ),
    Flag::checked(
        "alignment",
        "BYTES",
        |said, text| number(text).map(|number| said.object.alignment = Some(number)),
        "The object's offset is a multiple of it (default 4096 for partitions)",
    ),
    Flag::text(
        "filename",
        "NAME",
        |said, name| said.object.filename = Some(name),
        "The object's name (default the file's)",
    ),
]];

const CONFIG_FLAGS: &[&[Flag]] = &[&[
    Flag::switch("get", |said, on| said.config.get = on, "Show the value of a directive").short('g'),
    Flag::later("set", None, EDIT).short('s'),
    Flag::later("unset", None, EDIT).short('u'),
    Flag::later("reset", None, EDIT).short('r'),
    Flag::later("dry-run", None, EDIT).short('d'),
]];

const EDIT: &str = "Edit the configuration file by hand; `config global --get` shows what counts.";

/// Reads a decimal number that fits its type.
pub(super) fn number<N: std::str::FromStr>(text: &[u8]) -> Result<N, String> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| "a small number is needed".to_owned())
}

fn exec(said: Said) -> Result<ExitCode, Failure> {
    launch(Verb::Exec, said)
}

fn section(said: Said) -> Result<ExitCode, Failure> {
    super::build::die_of_the_file_size_limit();
    // The build that is killed takes this process with it, and with its first process the container ends.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|errno| Failure::new(format!("cannot be tied to the build: {}", errno.desc().to_lowercase())))?;
    launch(Verb::Exec, said)
}

fn run(said: Said) -> Result<ExitCode, Failure> {
    launch(Verb::Run, said)
}

fn shell(said: Said) -> Result<ExitCode, Failure> {
    launch(Verb::Shell, said)
}

fn test(said: Said) -> Result<ExitCode, Failure> {
    launch(Verb::Test, said)
}

fn launch(verb: Verb, said: Said) -> Result<ExitCode, Failure> {
    let options = said.elsewhere.clone();
    let mut request = request(verb, said);
    if let Some(image) = elsewhere::image_for(&request.image, &options, request.tmpdir.as_deref())? {
        request.image = image;
    }
    action::run(&request)
}

fn plan(verb: Verb, said: Said) -> Result<ExitCode, Failure> {
    action::print_plan(&request(verb, said))
}

fn plan_exec(said: Said) -> Result<ExitCode, Failure> {
    plan(Verb::Exec, said)
}

fn plan_run(said: Said) -> Result<ExitCode, Failure> {
    plan(Verb::Run, said)
}

fn plan_shell(said: Said) -> Result<ExitCode, Failure> {
    plan(Verb::Shell, said)
}

fn plan_test(said: Said) -> Result<ExitCode, Failure> {
    plan(Verb::Test, said)
}

fn build(said: Said) -> Result<ExitCode, Failure> {
    // The parser has counted the words.
    let [image, source] = said.words.as_slice() else { return Err(Failure::usage("an image and a source are needed")) };
    let access = Access { variant: said.pull.variant, ..elsewhere::access(&said.elsewhere)? };
    // Without a home directory nothing is kept.
    let cache = if said.elsewhere.disable_cache { None } else { elsewhere::cache().ok() };
    super::build::run(&said.build, access, cache, image, source).map(|()| ExitCode::SUCCESS)
}

fn pull(said: Said) -> Result<ExitCode, Failure> {
    super::pull::run(&said.pull, &said.elsewhere, &said.words).map(|()| ExitCode::SUCCESS)
}

fn push(said: Said) -> Result<ExitCode, Failure> {
    let [file, uri] = said.words.as_slice() else { return Err(Failure::usage("a file and a place are needed")) };
    super::push::run(&said.library, &said.elsewhere, file, uri).map(|()| ExitCode::SUCCESS)
}

fn registry_login(said: Said) -> Result<ExitCode, Failure> {
    registry::login(&said.login, &said.elsewhere, word(&said, 0))
}

fn registry_logout(said: Said) -> Result<ExitCode, Failure> {
    registry::logout(&said.elsewhere, word(&said, 0))
}

fn registry_list(said: Said) -> Result<ExitCode, Failure> {
    registry::list(&said.elsewhere)
}

fn cache_list(said: Said) -> Result<ExitCode, Failure> {
    super::cache::list(&said.cache)
}

fn cache_clean(said: Said) -> Result<ExitCode, Failure> {
    super::cache::clean(&said.cache)
}

fn doctor(said: Said) -> Result<ExitCode, Failure> {
    super::doctor::run(said.doctor.json).map(ExitCode::from)
}

fn mpi_check(said: Said) -> Result<ExitCode, Failure> {
    if said.words.len() > 2 {
        return Err(Failure::usage("an image and one program at most can be checked"));
    }
    let program = said.words.get(1).map(|program| program.as_encoded_bytes());
    super::mpi::check(&said.mpi, word(&said, 0), program).map(ExitCode::from)
}

fn gpu_explain(said: Said) -> Result<ExitCode, Failure> {
    if said.words.len() > 1 {
        return Err(Failure::usage("one image at most can be explained"));
    }
    answer(|out| super::accelerators::explain(&request(Verb::Exec, said), out))
}

fn inspect_image(said: Said) -> Result<ExitCode, Failure> {
    answer(|out| inspect::run(&said.inspect, word(&said, 0), out))
}

fn help_of_image(said: Said) -> Result<ExitCode, Failure> {
    answer(|out| run_help::run(said.inspect.app.as_deref(), word(&said, 0), out))
}

fn sif_header(said: Said) -> Result<ExitCode, Failure> {
    answer(|out| sif::header(path(&said, 0), out))
}

fn sif_list(said: Said) -> Result<ExitCode, Failure> {
    answer(|out| sif::list(path(&said, 0), out))
}

fn sif_info(said: Said) -> Result<ExitCode, Failure> {
    let id = object_id(&said)?;
    answer(|out| sif::info(id, path(&said, 1), out))
}

fn sif_dump(said: Said) -> Result<ExitCode, Failure> {
    let id = object_id(&said)?;
    answer(|out| sif::dump(id, path(&said, 1), out))
}

fn sif_new(said: Said) -> Result<ExitCode, Failure> {
    sif::new(path(&said, 0)).map(|()| ExitCode::SUCCESS)
}

fn sif_add(said: Said) -> Result<ExitCode, Failure> {
    sif::add(path(&said, 0), path(&said, 1), &said.object).map(|()| ExitCode::SUCCESS)
}

fn sif_del(said: Said) -> Result<ExitCode, Failure> {
    sif::del(object_id(&said)?, path(&said, 1)).map(|()| ExitCode::SUCCESS)
}

fn sif_setprim(said: Said) -> Result<ExitCode, Failure> {
    sif::setprim(object_id(&said)?, path(&said, 1)).map(|()| ExitCode::SUCCESS)
}

/// Returns a word of the verb; the parser has counted them.
pub(super) fn word(said: &Said, index: usize) -> &OsStr {
    said.words.get(index).map_or(OsStr::new(""), OsString::as_os_str)
}

fn path(said: &Said, index: usize) -> &Path {
    Path::new(word(said, index))
}

/// Returns the first word as the id of an object.
fn object_id(said: &Said) -> Result<u32, Failure> {
    let word = said.words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    word.parse().map_err(|_| {
        Failure::usage(format!("`{word}` is not the id of an object"))
            .hint("An id is the number in the first column of `sif list`; it stands before the image.")
    })
}

pub(super) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}
