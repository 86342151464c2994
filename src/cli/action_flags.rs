//! The one flag table of `run`, `exec`, `shell` and `test`, and how what was said becomes a [`LaunchRequest`].

use std::time::Duration;

use super::flags::{Category, Flag, Said, os};
use crate::launch::request::{LaunchRequest, Sharing, Verb};

/// Returns the launch that was asked for, with flags that stand for others spelled out.
///
/// `said.words` holds the image and what follows it; the parser has checked that an image is there.
pub fn request(verb: Verb, said: Said) -> LaunchRequest {
    let level = said.global.level();
    let Said { global, launch, alias, words, .. } = said;
    let mut words = words.into_iter();
    let contain_all = alias.containall || alias.compat;
    LaunchRequest {
        verb,
        image: words.next().unwrap_or_default(),
        arguments: words.collect(),
        contain: launch.contain || contain_all,
        cleanenv: launch.cleanenv || contain_all,
        ipc: launch.ipc || contain_all,
        pid: (launch.pid || contain_all) && !alias.no_pid,
        no_init: launch.no_init || alias.compat,
        no_umask: launch.no_umask || alias.compat,
        no_eval: launch.no_eval || alias.compat,
        writable_tmpfs: launch.writable_tmpfs || alias.compat,
        uts: launch.uts || launch.hostname.is_some(),
        net: launch.net || !launch.network.is_empty(),
        config_file: global.config_file,
        level,
        colour: !global.no_colour,
        ..launch
    }
}

/// The flags of every action verb.
pub const ACTION: &[Flag] = &[
    // Files and mounts.
    Flag::each(
        "bind",
        "SPEC",
        |said, spec| said.launch.binds.push(spec),
        None,
        "Show a file or directory of the host in the container: SOURCE[:DESTINATION[:OPTIONS]], several separated by \
         commas. Options are ro and rw; a backslash protects a colon or comma of a name",
    )
    .short('B')
    .keys(&["BIND", "BINDPATH"])
    .category(Category::Files),
    Flag::each(
        "mount",
        "SPEC",
        |said, spec| said.launch.mounts.push(spec),
        Some(b'\n'),
        "Show a file or directory of the host in the container: type=bind,source=PATH,destination=PATH[,ro]",
    )
    .keys(&["MOUNT"])
    .category(Category::Files),
    Flag::text(
        "home",
        "SPEC",
        |said, spec| said.launch.home = Some(spec),
        "Use another home directory: SOURCE[:DESTINATION]",
    )
    .short('H')
    .keys(&["HOME"])
    .category(Category::Files),
    Flag::switch("no-home", |said, on| said.launch.no_home = on, "Leave the home directory out")
        .keys(&["NO_HOME"])
        .category(Category::Files),
    Flag::list(
        "no-mount",
        "LIST",
        |said, words| said.launch.no_mount.extend(words),
        "Leave mounts out: proc, sys, dev, devpts, home, tmp, hostfs, cwd, bind-paths, or the absolute destination of a \
         bind path of the site",
    )
    .keys(&["NO_MOUNT"])
    .category(Category::Files),
    Flag::switch(
        "contain",
        |said, on| said.launch.contain = on,
        "Share no directory of the host: a small /dev, and /tmp, /var/tmp and home of the container's own",
    )
    .short('c')
    .keys(&["CONTAIN"])
    .category(Category::Files),
    Flag::text(
        "workdir",
        "DIRECTORY",
        |said, directory| said.launch.workdir = Some(os(directory)),
        "Keep the container's own /tmp, /var/tmp, home and scratch directories below this directory of the host",
    )
    .short('W')
    .keys(&["WORKDIR"])
    .category(Category::Files),
    Flag::list(
        "scratch",
        "LIST",
        |said, paths| said.launch.scratch.extend(paths),
        "Provide writable temporary directories at these paths of the container",
    )
    .short('S')
    .keys(&["SCRATCH", "SCRATCHDIR"])
    .category(Category::Files),
    Flag::switch(
        "writable",
        |said, on| said.launch.writable = on,
        "Write into the image itself; it has to be a directory",
    )
    .short('w')
    .keys(&["WRITABLE"])
    .category(Category::Files),
    Flag::switch(
        "writable-tmpfs",
        |said, on| said.launch.writable_tmpfs = on,
        "Allow writing everywhere; what is written lives in memory and ends with the container",
    )
    .keys(&["WRITABLE_TMPFS"])
    .category(Category::Files),
    Flag::switch(
        "unsquash",
        |said, on| said.launch.unsquash = on,
        "Unpack the image into a temporary directory first instead of serving it",
    )
    .keys(&["UNSQUASH"])
    .category(Category::Files),
    Flag::text(
        "tmpdir",
        "DIRECTORY",
        |said, directory| said.launch.tmpdir = Some(os(directory)),
        "Use this directory of the host for temporary files",
    )
    .keys(&["TMPDIR"])
    .category(Category::Files)
    .hidden(),
    // What it asks for is always so: destinations that an image lacks are made without an overlay.
    Flag::switch("underlay", |_, _| (), "Make missing destinations without an overlay")
        .keys(&["UNDERLAY"])
        .category(Category::Files)
        .hidden(),
    Flag::later(
        "overlay",
        Some("LIST"),
        "For changes that need not last use --writable-tmpfs; for lasting ones use --writable on a directory.",
    )
    .short('o')
    .keys(&["OVERLAY", "OVERLAYIMAGE"]),
    Flag::later("fusemount", Some("SPEC"), "Mount it on the host and pass the mount point with --bind.")
        .keys(&["FUSESPEC"]),
    Flag::later("containlibs", Some("LIST"), "Pass the libraries with --bind to a directory in LD_LIBRARY_PATH.")
        .keys(&["CONTAINLIBS"]),
    // Environment.
    Flag::switch(
        "cleanenv",
        |said, on| said.launch.cleanenv = on,
        "Keep the host's variables out, but for TERM and proxies",
    )
    .short('e')
    .keys(&["CLEANENV"])
    .category(Category::Environment),
    Flag::pairs(
        "env",
        "NAME=VALUE",
        |said, pairs| said.launch.env.extend(pairs),
        "Set variables in the container, several separated by commas; stronger than every other source",
    )
    .category(Category::Environment),
    Flag::list(
        "env-file",
        "LIST",
        |said, files| said.launch.env_files.extend(files.into_iter().map(os)),
        "Set variables in the container from files of assignments in shell syntax",
    )
    .keys(&["ENV_FILE"])
    .category(Category::Environment),
    Flag::list(
        "no-env",
        "LIST",
        |said, names| said.launch.no_env.extend(names),
        "Keep these variables of the host out of the container",
    )
    .keys(&["NOENV"])
    .category(Category::Environment),
    Flag::switch(
        "no-eval",
        |said, on| said.launch.no_eval = on,
        "Take values of variables as they are, without expansions of a shell",
    )
    .keys(&["NO_EVAL"])
    .category(Category::Environment),
    Flag::text("app", "NAME", |said, name| said.launch.app = Some(name), "Use an app of the image (SCIF)")
        .keys(&["APP", "APPNAME"])
        .category(Category::Environment),
    Flag::text(
        "cwd",
        "DIRECTORY",
        |said, directory| said.launch.cwd = Some(directory),
        "Start in this directory of the container",
    )
    .aliases(&["pwd"])
    .keys(&["CWD", "TARGET_CWD", "PWD", "TARGET_PWD"])
    .category(Category::Environment),
    Flag::switch("no-umask", |said, on| said.launch.no_umask = on, "Use the umask 0022 instead of the caller's")
        .keys(&["NO_UMASK"])
        .category(Category::Environment),
    Flag::checked(
        "runscript-timeout",
        "DURATION",
        |said, text| {
            said.launch.runscript_timeout = Some(duration(text)?);
            Ok(())
        },
        "Limit the time for evaluating the environment scripts (default 1m)",
    )
    .keys(&["RUNSCRIPT_TIMEOUT"])
    .category(Category::Environment),
    // Isolation and network.
    Flag::switch(
        "containall",
        |said, on| said.alias.containall = on,
        "Contain files, processes, IPC and environment: --contain --pid --ipc --cleanenv",
    )
    .short('C')
    .keys(&["CONTAINALL"])
    .category(Category::Isolation),
    Flag::switch(
        "compat",
        |said, on| said.alias.compat = on,
        "Behave more like Docker: --containall --no-init --no-umask --no-eval --writable-tmpfs",
    )
    .keys(&["COMPAT"])
    .category(Category::Isolation),
    Flag::switch("pid", |said, on| said.launch.pid = on, "Use a new PID namespace")
        .short('p')
        .keys(&["PID", "UNSHARE_PID"])
        .category(Category::Isolation),
    Flag::switch("no-pid", |said, on| said.alias.no_pid = on, "Use no new PID namespace, whatever else is asked for")
        .keys(&["NO_PID"])
        .category(Category::Isolation),
    Flag::switch(
        "no-init",
        |said, on| said.launch.no_init = on,
        "Let the program itself be process 1 of a PID namespace",
    )
    .keys(&["NOSHIMINIT"])
    .category(Category::Isolation),
    Flag::switch("ipc", |said, on| said.launch.ipc = on, "Use a new IPC namespace")
        .short('i')
        .keys(&["IPC", "UNSHARE_IPC"])
        .category(Category::Isolation),
    Flag::switch("uts", |said, on| said.launch.uts = on, "Use a new UTS namespace")
        .keys(&["UTS", "UNSHARE_UTS"])
        .category(Category::Isolation),
    Flag::text(
        "hostname",
        "NAME",
        |said, name| said.launch.hostname = Some(name),
        "Set the host name in the container; brings --uts",
    )
    .keys(&["HOSTNAME"])
    .category(Category::Isolation),
    Flag::switch("userns", |said, on| said.launch.userns = on, "Use a new user namespace, for root as well")
        .short('u')
        .keys(&["USERNS", "UNSHARE_USERNS"])
        .category(Category::Isolation),
    Flag::switch("net", |said, on| said.launch.net = on, "Use a new network namespace; needs --network none")
        .short('n')
        .keys(&["NET", "UNSHARE_NET"])
        .category(Category::Isolation),
    Flag::list(
        "network",
        "LIST",
        |said, names| said.launch.network.extend(names),
        "Choose the networks of a new network namespace: none; brings --net",
    )
    .keys(&["NETWORK"])
    .category(Category::Isolation),
    Flag::list(
        "dns",
        "LIST",
        |said, servers| said.launch.dns.extend(servers),
        "Write these name servers into the container's /etc/resolv.conf",
    )
    .keys(&["DNS"])
    .category(Category::Isolation),
    Flag::list(
        "host-cmd",
        "LIST",
        |said, names| said.launch.host_commands.extend(names),
        "Let programs in the container run these commands of the host, outside of the container: names on the search path, \
         or absolute paths",
    )
    .keys(&["HOST_CMD"])
    .category(Category::Isolation),
    Flag::switch(
        "strict",
        |said, on| said.launch.strict = on,
        "Fail where this host can't do a thing in the best way, instead of doing it in a slower or smaller one",
    )
    .keys(&["STRICT"])
    .category(Category::Isolation),
    Flag::later("network-args", Some("LIST"), "Leave it out: `--network none` takes no arguments.")
        .keys(&["NETWORK_ARGS"]),
    Flag::later("netns-path", Some("PATH"), "Enter the network namespace with nsenter first.").keys(&["NETNS_PATH"]),
    Flag::switch(
        "sharens",
        |said, on| said.launch.sharing = if on { Sharing::Always } else { Sharing::WithinJobStep },
        "Share one container among all that the same process starts with the same image and options; ranks of a job step do by themselves",
    )
    .keys(&["SHARENS"]),
    Flag::switch(
        "no-sharens",
        |said, on| {
            if on {
                said.launch.sharing = Sharing::Never;
            }
        },
        "Give this rank of a job step a container of its own",
    )
    .keys(&["NO_SHARENS"]),
    Flag::switch(
        "mpi",
        |said, on| said.launch.mpi = on,
        "Bring in the host's MPI: the libraries that it needs and the image lacks, and the devices of the fabric",
    )
    .keys(&["MPI"]),
    // Identity and privileges.
    Flag::switch("fakeroot", |said, on| said.launch.fakeroot = on, "Appear as root in the container")
        .short('f')
        .keys(&["FAKEROOT"])
        .category(Category::Privileges),
    Flag::list(
        "add-caps",
        "LIST",
        |said, names| said.launch.add_caps.extend(names),
        "Give capabilities within the container's user namespace",
    )
    .keys(&["ADD_CAPS"])
    .category(Category::Privileges),
    Flag::list("drop-caps", "LIST", |said, names| said.launch.drop_caps.extend(names), "Take capabilities away")
        .keys(&["DROP_CAPS"])
        .category(Category::Privileges),
    Flag::list(
        "security",
        "LIST",
        |said, words| said.launch.security.extend(words),
        "Switch security features on: seccomp:FILE",
    )
    .keys(&["SECURITY"])
    .category(Category::Privileges),
    Flag::switch("no-privs", |said, on| said.launch.no_privs = on, "Take all capabilities away, root's as well")
        .keys(&["NO_PRIVS"])
        .category(Category::Privileges),
    Flag::later("keep-privs", None, "").keys(&["KEEP_PRIVS"]),
    Flag::later("allow-setuid", None, "").keys(&["ALLOW_SETUID"]),
    Flag::switch(
        "ignore-subuid",
        |said, on| said.launch.ignore_subuid = on,
        "With --fakeroot: map root alone, even if there is a range of subordinate ids",
    )
    .keys(&["IGNORE_SUBUID"])
    .category(Category::Privileges)
    .hidden(),
    Flag::switch(
        "ignore-fakeroot-command",
        |said, on| said.launch.no_root_emulation = on,
        "With --fakeroot: do not emulate what root may do beyond the ids that are mapped",
    )
    .keys(&["IGNORE_FAKEROOT_COMMAND"])
    .category(Category::Privileges)
    .hidden(),
    Flag::later("ignore-userns", None, "").keys(&["IGNORE_USERNS"]),
    // Accelerators.
    Flag::later("intel-hpu", None, GPU).keys(&["INTEL_HPU"]),
    // Limits.
    Flag::later("apply-cgroups", Some("FILE"), LIMIT).keys(&["APPLY_CGROUPS"]),
    Flag::later("cpus", Some("NUMBER"), LIMIT).keys(&["CPUS"]),
    Flag::later("cpu-shares", Some("NUMBER"), LIMIT).keys(&["CPU_SHARES"]),
    Flag::later("cpuset-cpus", Some("LIST"), "Start it under taskset.").keys(&["CPUSET_CPUS"]),
    Flag::later("cpuset-mems", Some("LIST"), "Start it under numactl.").keys(&["CPUSET_MEMS"]),
    Flag::later("memory", Some("BYTES"), LIMIT).keys(&["MEMORY"]),
    Flag::later("memory-reservation", Some("BYTES"), LIMIT).keys(&["MEMORY_RESERVATION"]),
    Flag::later("memory-swap", Some("BYTES"), LIMIT).keys(&["MEMORY_SWAP"]),
    Flag::later("oom-kill-disable", None, LIMIT).keys(&["OOM_KILL_DISABLE"]),
    Flag::later("pids-limit", Some("NUMBER"), LIMIT).keys(&["PIDS_LIMIT"]),
    Flag::later("blkio-weight", Some("NUMBER"), LIMIT).keys(&["BLKIO_WEIGHT"]),
    Flag::later("blkio-weight-device", Some("LIST"), LIMIT).keys(&["BLKIO_WEIGHT_DEVICE"]),
    // Images from elsewhere.
    Flag::later("passphrase", None, "").keys(&["ENCRYPTION_PASSPHRASE"]).quiet_variable(),
    Flag::later("pem-path", Some("FILE"), "").keys(&["ENCRYPTION_PEM_PATH", "ENCRYPTION_PEM_DATA"]).quiet_variable(),
];

/// The flags that bring accelerators in; those of every action verb and of `gpu explain`.
pub const ACCELERATORS: &[Flag] = &[
    Flag::switch("nv", |said, on| said.launch.nv = on, "Bring in the host's NVIDIA driver: libraries, programs, devices")
        .keys(&["NV"])
        .category(Category::Gpu),
    Flag::switch("no-nv", |said, on| said.launch.no_nv = on, "Leave NVIDIA's driver out, whatever the site does")
        .keys(&["NV_OFF", "NO_NV"])
        .category(Category::Gpu),
    Flag::switch("nvccli", |said, on| said.launch.nvccli = on, "Same as --nv; no program of NVIDIA's is needed")
        .keys(&["NVCCLI"])
        .category(Category::Gpu),
    Flag::switch("rocm", |said, on| said.launch.rocm = on, "Bring in the host's AMD driver: libraries, programs, devices")
        .keys(&["ROCM"])
        .category(Category::Gpu),
    Flag::switch("no-rocm", |said, on| said.launch.no_rocm = on, "Leave AMD's driver out, whatever the site does")
        .keys(&["ROCM_OFF", "NO_ROCM"])
        .category(Category::Gpu),
    Flag::switch(
        "compat32",
        |said, on| said.launch.compat32 = on,
        "Bring in the driver's libraries for programs of 32 bits as well",
    )
    .keys(&["COMPAT32"])
    .category(Category::Gpu),
    Flag::text(
        "gpus",
        "LIST",
        |said, list| said.launch.gpus = Some(list),
        "Show these GPUs only: numbers, NUMBER:INSTANCE for parts made by MIG, identifiers, all or none; brings --nv where \
         --rocm is not said",
    )
    .keys(&["GPUS"])
    .category(Category::Gpu),
    Flag::list(
        "device",
        "LIST",
        |said, names| said.launch.devices.extend(names),
        "Bring in devices by their CDI names, VENDOR/CLASS=NAME",
    )
    .category(Category::Gpu),
    Flag::list(
        "cdi-dirs",
        "LIST",
        |said, directories| said.launch.cdi_dirs.extend(directories.into_iter().map(os)),
        "Look for descriptions of CDI devices here (default /etc/cdi,/var/run/cdi); a later directory is stronger",
    )
    .category(Category::Gpu),
];

/// The flags of a build's own commands.
pub const SECTION: &[Flag] = &[
    Flag::text(
        "emulate-root-in",
        "DIRECTORY",
        |said, path| said.launch.emulate_root_in = Some(os(path)),
        "With --fakeroot: remember with this directory what root made of its files",
    )
    .hidden(),
    Flag::switch(
        "emulate-devices",
        |said, on| said.launch.emulate_devices = on,
        "As root of a user namespace: remember device nodes and file capabilities, which only the machine's root can make",
    )
    .hidden(),
];

/// The flags of `shell` alone.
pub const SHELL: &[Flag] = &[Flag::text(
    "shell",
    "PATH",
    |said, path| said.launch.shell = Some(path),
    "Start this program instead of the image's bash or sh",
)
.short('s')
.keys(&["SHELL"])];

const GPU: &str = "Bind the driver's libraries and devices with --bind.";
const LIMIT: &str = "Set the limit around the whole command, with ulimit, systemd-run or the batch system.";
/// Reads a duration as `90s`, `1m30s`, `1.5h`; a number alone counts only when it is 0.
fn duration(text: &[u8]) -> Result<Duration, String> {
    const WRONG: &str = "a duration is a number with a unit, such as 90s, 1m30s or 500ms";
    let text = std::str::from_utf8(text).map_err(|_| WRONG)?;
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or(WRONG)?;
        let (number, tail) = rest.split_at(digits);
        let unit_length = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_length);
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(WRONG.into()),
        };
        seconds += number.parse::<f64>().map_err(|_| WRONG)? * scale;
        rest = tail;
    }
    if text.is_empty() {
        return Err(WRONG.into());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| "the duration is too long".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in
            [("90s", 90_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("500ms", 500), ("0", 0), ("2h1m", 7_260_000)]
        {
            assert_eq!(duration(text.as_bytes()), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "90", "m", "1x", "1.2.3s", "-1s", "1e5s", "s1"] {
            assert!(duration(text.as_bytes()).unwrap_err().contains("a number with a unit"), "{text}");
        }
        assert!(duration(format!("{}h", "9".repeat(40)).as_bytes()).unwrap_err().contains("too long"));
    }
}
