//! The table of directives: name, allowed values, default, meaning, and the field of [`SiteConfig`] that takes it.
//!
//! The names are those of `apptainer.conf`, so that a site's file serves both. Directives that arrange what sifu has not
//! (set-uid, loop devices) are known, checked and without effect; the text says so.

use super::parse::Settings;

/// The site's configuration in types. `Default` is what counts where no file says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteConfig {
    pub allow_ipc_ns: bool,
    pub allow_pid_ns: bool,
    pub allow_user_ns: bool,
    pub allow_uts_ns: bool,
    pub config_passwd: bool,
    pub config_group: bool,
    pub config_resolv_conf: bool,
    pub mount_proc: bool,
    pub mount_sys: bool,
    pub mount_dev: MountDev,
    pub mount_devpts: bool,
    pub mount_home: bool,
    pub mount_tmp: bool,
    pub mount_hostfs: bool,
    /// `source[:destination[:options]]`, unparsed.
    pub bind_paths: Vec<Vec<u8>>,
    pub user_bind_control: bool,
    pub enable_overlay: EnableOverlay,
    pub mount_slave: bool,
    /// Limit for what a container writes into memory, in MiB.
    pub sessiondir_max_size_mib: u64,
    pub memory_fs_type: MemoryFilesystem,
    pub allow_container_sif: bool,
    pub allow_container_encrypted: bool,
    pub allow_container_squashfs: bool,
    pub allow_container_extfs: bool,
    pub allow_container_dir: bool,
    pub root_default_capabilities: RootCapabilities,
    pub always_use_nv: bool,
    pub always_use_rocm: bool,
}

/// How `/dev` is made where nothing contains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountDev {
    Yes,
    No,
    Minimal,
}

/// Whether overlay mounts may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnableOverlay {
    Yes,
    No,
    Try,
    Driver,
}

/// The kind of file system in memory that writable parts live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFilesystem {
    Tmpfs,
    Ramfs,
}

/// What root keeps by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootCapabilities {
    Full,
    File,
    No,
}

impl Default for SiteConfig {
    fn default() -> Self {
        // Written out rather than read from the table: every start without a file takes this way.
        Self {
            allow_ipc_ns: true,
            allow_pid_ns: true,
            allow_user_ns: true,
            allow_uts_ns: true,
            config_passwd: true,
            config_group: true,
            config_resolv_conf: true,
            mount_proc: true,
            mount_sys: true,
            mount_dev: MountDev::Yes,
            mount_devpts: true,
            mount_home: true,
            mount_tmp: true,
            mount_hostfs: false,
            bind_paths: vec![b"/etc/localtime".to_vec(), b"/etc/hosts".to_vec()],
            user_bind_control: true,
            enable_overlay: EnableOverlay::Yes,
            mount_slave: true,
            sessiondir_max_size_mib: 64,
            memory_fs_type: MemoryFilesystem::Tmpfs,
            allow_container_sif: true,
            allow_container_encrypted: true,
            allow_container_squashfs: true,
            allow_container_extfs: true,
            allow_container_dir: true,
            root_default_capabilities: RootCapabilities::Full,
            always_use_nv: false,
            always_use_rocm: false,
        }
    }
}

impl SiteConfig {
    /// Reads the settings of a file in types; what the file leaves out keeps its default.
    pub fn from_settings(settings: &Settings) -> Self {
        let mut site = Self::default();
        for directive in DIRECTIVES {
            if let (Some(set), Some(values)) = (directive.set, settings.said(directive)) {
                set(&mut site, values);
            }
        }
        site
    }
}

/// Writes a directive's values, already checked, into the types.
type Set = fn(&mut SiteConfig, &[Vec<u8>]);

/// One directive of the configuration.
#[derive(Debug)]
pub struct Directive {
    pub name: &'static str,
    pub allowed: Allowed,
    pub default: &'static [&'static str],
    pub help: &'static str,
    /// Takes the file's values, already checked; `None` where the directive has no effect.
    set: Option<Set>,
}

/// What a directive's value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    YesNo,
    OneOf(&'static [&'static str]),
    /// A whole number from 0.
    Number,
    Text,
    /// A value may hold several texts separated by commas, and the directive may be repeated.
    TextList,
    /// The directive may be repeated, one text each.
    Lines,
}

impl Allowed {
    /// Tells whether a value (not empty) is allowed.
    pub fn accepts(self, value: &[u8]) -> bool {
        match self {
            Self::YesNo => matches!(value, b"yes" | b"no"),
            Self::OneOf(words) => words.iter().any(|word| word.as_bytes() == value),
            Self::Number => value.len() <= 18 && value.iter().all(u8::is_ascii_digit),
            Self::Text | Self::TextList | Self::Lines => true,
        }
    }

    /// Tells whether the directive may stand in a file more than once.
    pub fn repeats(self) -> bool {
        matches!(self, Self::TextList | Self::Lines)
    }

    /// Tells whether the directive may be said to be empty: `bind path =`.
    pub fn may_be_empty(self) -> bool {
        matches!(self, Self::Text | Self::TextList | Self::Lines)
    }

    /// Returns what to write, for people.
    pub fn words(self) -> String {
        match self {
            Self::YesNo => "yes or no".into(),
            Self::OneOf(words) => {
                let (last, others) = words.split_last().unwrap_or((&"", &[]));
                format!("{} or {last}", others.join(", "))
            }
            Self::Number => "a whole number".into(),
            Self::Text => "a text".into(),
            Self::TextList => "texts separated by commas".into(),
            Self::Lines => "a text; may be repeated".into(),
        }
    }
}

impl Directive {
    /// Tells whether sifu does something with it.
    pub fn has_effect(&self) -> bool {
        self.set.is_some()
    }
}

/// Returns the directive of that name.
pub fn find(name: &[u8]) -> Option<&'static Directive> {
    DIRECTIVES.iter().find(|directive| directive.name.as_bytes() == name)
}

/// Returns `conf/sifu.conf`: every directive with its meaning, set to its default.
pub fn default_file() -> String {
    let mut text = String::from(
        "# sifu.conf: what this site allows and arranges for every user of sifu.\n\
         #\n\
         # A line is `directive = value`. What is left out has the default, which is what stands here.\n\
         # The directives are those of apptainer.conf; those at the end are known and have no effect.\n",
    );
    let (with_effect, without): (Vec<_>, Vec<_>) = DIRECTIVES.iter().partition(|directive| directive.has_effect());
    for directive in with_effect {
        text.push('\n');
        for line in directive.help.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("# Value: {}.\n", directive.allowed.words()));
        if directive.default.is_empty() {
            text.push_str(&format!("# {} =\n", directive.name));
        }
        for value in directive.default {
            text.push_str(&format!("{} = {value}\n", directive.name));
        }
    }
    text.push_str("\n# Known, checked, and without effect:\n");
    for directive in without {
        text.push_str(&format!("#   {}: {}\n", directive.name, directive.help.replace('\n', " ")));
    }
    text
}

const fn yes_no(name: &'static str, default: &'static [&'static str], set: Set, help: &'static str) -> Directive {
    Directive { name, allowed: Allowed::YesNo, default, help, set: Some(set) }
}

const fn no_effect(
    name: &'static str,
    allowed: Allowed,
    default: &'static [&'static str],
    help: &'static str,
) -> Directive {
    Directive { name, allowed, default, help, set: None }
}

/// The last value counts, so that a site can append to a file.
fn last(values: &[Vec<u8>]) -> &[u8] {
    values.last().map_or(b"", Vec::as_slice)
}

fn is_yes(values: &[Vec<u8>]) -> bool {
    last(values) == b"yes"
}

const YES: &[&str] = &["yes"];
const NO: &[&str] = &["no"];
const NO_SETUID: &str = "sifu has no set-uid part";
const NO_LOOP: &str = "sifu uses no loop devices";
const NO_DOOR: &str = "a user who runs sifu could run any other program instead, so there is nothing to guard";
const LATER: &str = "for what this version of sifu has not yet";

/// Every directive, in the order of the file.
pub static DIRECTIVES: &[Directive] = &[
    yes_no("allow pid ns", YES, |site, v| site.allow_pid_ns = is_yes(v), "Whether users may ask for a PID namespace."),
    yes_no("allow ipc ns", YES, |site, v| site.allow_ipc_ns = is_yes(v), "Whether users may ask for an IPC namespace."),
    yes_no("allow uts ns", YES, |site, v| site.allow_uts_ns = is_yes(v), "Whether users may ask for a UTS namespace."),
    yes_no(
        "allow user ns",
        YES,
        |site, v| site.allow_user_ns = is_yes(v),
        "Whether user namespaces may be used. Without them only root can start containers.",
    ),
    yes_no(
        "config passwd",
        YES,
        |site, v| site.config_passwd = is_yes(v),
        "Whether the caller's entry is added to the container's /etc/passwd.",
    ),
    yes_no(
        "config group",
        YES,
        |site, v| site.config_group = is_yes(v),
        "Whether the caller's groups are added to the container's /etc/group.",
    ),
    yes_no(
        "config resolv_conf",
        YES,
        |site, v| site.config_resolv_conf = is_yes(v),
        "Whether the host's /etc/resolv.conf is shown in the container.",
    ),
    yes_no("mount proc", YES, |site, v| site.mount_proc = is_yes(v), "Whether /proc is mounted."),
    yes_no("mount sys", YES, |site, v| site.mount_sys = is_yes(v), "Whether /sys is mounted."),
    Directive {
        name: "mount dev",
        allowed: Allowed::OneOf(&["yes", "no", "minimal"]),
        default: YES,
        help: "Whether the host's /dev is shown; minimal makes a small one of its own, as --contain does.",
        set: Some(|site, values| {
            site.mount_dev = match last(values) {
                b"no" => MountDev::No,
                b"minimal" => MountDev::Minimal,
                _ => MountDev::Yes,
            }
        }),
    },
    yes_no(
        "mount devpts",
        YES,
        |site, v| site.mount_devpts = is_yes(v),
        "Whether a small /dev gets terminals of its own (devpts).",
    ),
    yes_no("mount home", YES, |site, v| site.mount_home = is_yes(v), "Whether the caller's home directory is shown."),
    yes_no("mount tmp", YES, |site, v| site.mount_tmp = is_yes(v), "Whether the host's /tmp and /var/tmp are shown."),
    yes_no(
        "mount hostfs",
        NO,
        |site, v| site.mount_hostfs = is_yes(v),
        "Whether every file system that is mounted on the host is shown.",
    ),
    Directive {
        name: "bind path",
        allowed: Allowed::Lines,
        default: &["/etc/localtime", "/etc/hosts"],
        help: "A file or directory of the host to show in every container: source[:destination[:ro]].\n\
               Lines of a file replace the default; an empty value (`bind path =`) takes all away.",
        set: Some(|site, values| site.bind_paths = values.to_vec()),
    },
    yes_no(
        "user bind control",
        YES,
        |site, v| site.user_bind_control = is_yes(v),
        "Whether users may choose binds of their own.",
    ),
    Directive {
        name: "enable overlay",
        allowed: Allowed::OneOf(&["yes", "no", "try", "driver"]),
        default: YES,
        help: "Whether overlay mounts may be used for --writable-tmpfs; try and driver mean yes here.",
        set: Some(|site, values| {
            site.enable_overlay = match last(values) {
                b"no" => EnableOverlay::No,
                b"try" => EnableOverlay::Try,
                b"driver" => EnableOverlay::Driver,
                _ => EnableOverlay::Yes,
            }
        }),
    },
    yes_no(
        "mount slave",
        YES,
        |site, v| site.mount_slave = is_yes(v),
        "Whether mounts that the host makes later appear in running containers.",
    ),
    Directive {
        name: "sessiondir max size",
        allowed: Allowed::Number,
        default: &["64"],
        help: "How much a container may write into memory (--contain, --writable-tmpfs), in MiB.",
        set: Some(|site, values| {
            // The parser has checked the digits; 18 of them always fit.
            if let Some(size) = std::str::from_utf8(last(values)).ok().and_then(|text| text.parse().ok()) {
                site.sessiondir_max_size_mib = size;
            }
        }),
    },
    Directive {
        name: "memory fs type",
        allowed: Allowed::OneOf(&["tmpfs", "ramfs"]),
        default: &["tmpfs"],
        help: "The file system in memory for what a container writes. Only tmpfs heeds the size.",
        set: Some(|site, values| {
            site.memory_fs_type = match last(values) {
                b"ramfs" => MemoryFilesystem::Ramfs,
                _ => MemoryFilesystem::Tmpfs,
            }
        }),
    },
    yes_no(
        "allow container sif",
        YES,
        |site, v| site.allow_container_sif = is_yes(v),
        "Whether SIF files may be started.",
    ),
    yes_no(
        "allow container encrypted",
        YES,
        |site, v| site.allow_container_encrypted = is_yes(v),
        "Whether encrypted SIF files may be started.",
    ),
    yes_no(
        "allow container squashfs",
        YES,
        |site, v| site.allow_container_squashfs = is_yes(v),
        "Whether bare SquashFS files may be started.",
    ),
    yes_no(
        "allow container extfs",
        YES,
        |site, v| site.allow_container_extfs = is_yes(v),
        "Whether bare ext3 files may be started.",
    ),
    yes_no(
        "allow container dir",
        YES,
        |site, v| site.allow_container_dir = is_yes(v),
        "Whether directories may be started.",
    ),
    Directive {
        name: "root default capabilities",
        allowed: Allowed::OneOf(&["full", "file", "no"]),
        default: &["full"],
        help: "What root keeps in a container when root starts it: full (all capabilities), file (those of the image's\n\
               files), no (none).",
        set: Some(|site, values| {
            site.root_default_capabilities = match last(values) {
                b"file" => RootCapabilities::File,
                b"no" => RootCapabilities::No,
                _ => RootCapabilities::Full,
            }
        }),
    },
    yes_no(
        "always use nv",
        NO,
        |site, v| site.always_use_nv = is_yes(v),
        "Whether every container gets NVIDIA's driver where this host has it, as with --nv.",
    ),
    yes_no(
        "always use rocm",
        NO,
        |site, v| site.always_use_rocm = is_yes(v),
        "Whether every container gets AMD's driver where this host has it, as with --rocm.",
    ),
    no_effect("allow setuid", Allowed::YesNo, YES, NO_SETUID),
    no_effect("allow setuid-mount encrypted", Allowed::YesNo, YES, NO_SETUID),
    no_effect("allow setuid-mount squashfs", Allowed::OneOf(&["yes", "no", "iflimited"]), &["iflimited"], NO_SETUID),
    no_effect("allow setuid-mount extfs", Allowed::YesNo, NO, NO_SETUID),
    no_effect("max loop devices", Allowed::Number, &["256"], NO_LOOP),
    no_effect("shared loop devices", Allowed::YesNo, NO, NO_LOOP),
    no_effect("limit container owners", Allowed::TextList, &[], NO_DOOR),
    no_effect("limit container groups", Allowed::TextList, &[], NO_DOOR),
    no_effect("limit container paths", Allowed::TextList, &[], NO_DOOR),
    no_effect("allow net users", Allowed::TextList, &[], NO_DOOR),
    no_effect("allow net groups", Allowed::TextList, &[], NO_DOOR),
    no_effect("allow net networks", Allowed::TextList, &[], NO_DOOR),
    no_effect("allow netns paths", Allowed::TextList, &[], NO_DOOR),
    no_effect(
        "enable underlay",
        Allowed::OneOf(&["yes", "no", "preferred"]),
        YES,
        "missing destinations are made without underlay and overlay",
    ),
    no_effect("image driver", Allowed::Text, &[], "sifu mounts images itself"),
    no_effect("binary path", Allowed::Text, &[], "sifu needs no helper programs"),
    no_effect("mksquashfs procs", Allowed::Number, &["0"], "sifu packs images itself"),
    no_effect("mksquashfs mem", Allowed::Text, &[], "sifu packs images itself"),
    no_effect("sync writable extfs", Allowed::YesNo, NO, LATER),
    no_effect("enable fusemount", Allowed::YesNo, YES, LATER),
    no_effect("use nvidia-container-cli", Allowed::YesNo, NO, "--nv needs no program of NVIDIA's"),
    no_effect("cni configuration path", Allowed::Text, &[], LATER),
    no_effect("cni plugin path", Allowed::Text, &[], LATER),
    no_effect("systemd cgroups", Allowed::YesNo, YES, LATER),
    no_effect("download concurrency", Allowed::Number, &["3"], LATER),
    no_effect("download part size", Allowed::Number, &["5242880"], LATER),
    no_effect("download buffer size", Allowed::Number, &["32768"], LATER),
    no_effect("apptheus socket path", Allowed::Text, &["/run/apptheus/gateway.sock"], LATER),
    no_effect("allow monitoring", Allowed::YesNo, NO, LATER),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_table_and_the_defaults_in_types_agree() {
        let settings = Settings::of_defaults();
        assert_eq!(SiteConfig::from_settings(&settings), SiteConfig::default());
    }

    #[test]
    fn every_default_is_allowed_and_every_name_stands_once() {
        let mut names = HashSet::new();
        for directive in DIRECTIVES {
            assert!(names.insert(directive.name), "{} stands twice", directive.name);
            for value in directive.default {
                assert!(directive.allowed.accepts(value.as_bytes()), "{} = {value}", directive.name);
            }
            assert!(directive.default.len() <= 1 || directive.allowed.repeats(), "{}", directive.name);
            assert!(!directive.help.is_empty(), "{}", directive.name);
        }
    }

    #[test]
    fn the_installed_file_is_the_one_that_the_table_gives() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/sifu.conf");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, default_file()).unwrap();
        }
        let installed = std::fs::read_to_string(path).unwrap();
        assert_eq!(installed, default_file(), "run UPDATE_GOLDEN=1 cargo test conf::");
    }

    #[test]
    fn the_installed_file_says_the_defaults() {
        let (settings, notes) = crate::conf::parse::parse(default_file().as_bytes()).unwrap();
        assert_eq!(notes, []);
        assert_eq!(SiteConfig::from_settings(&settings), SiteConfig::default());
    }
}
