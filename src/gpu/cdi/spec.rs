//! CDI descriptions: files in which vendors say what a container needs for a device.
//!
//! ```text
//! cdiVersion: 0.6.0
//! kind: vendor.com/class
//! containerEdits: what every device of the kind needs
//! devices:
//! - name: "0"
//!   containerEdits: {env, deviceNodes, mounts, hooks, additionalGids}
//! ```
//!
//! JSON, and YAML that says the same. Fields of later versions than a description claims are taken as they are; a field
//! of no version is an error, as it is for the vendors' own reader. Everything is checked while it is read, so that an
//! error has its line.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use starter::paths::{ContainerPath, HostPath};

use crate::yaml::{self, YamlError};

/// The versions that were published.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// No description is larger; one of a machine with eight GPUs has 50 kilobytes.
pub const MAX_SPEC_BYTES: usize = 4 << 20;

/// A description.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    #[serde(rename = "cdiVersion")]
    pub version: Version,
    pub kind: Kind,
    #[serde(default, deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
    /// For people and their tools.
    #[serde(default)]
    pub annotations: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub name: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
    #[serde(default)]
    pub annotations: Option<Value>,
}

/// What to change in a container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ContainerEdits {
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<Variable>,
    #[serde(deserialize_with = "or_default")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    #[serde(deserialize_with = "or_default")]
    pub hooks: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
    pub intel_rdt: Option<Value>,
    #[serde(deserialize_with = "or_default")]
    pub net_devices: Vec<Value>,
}

/// A device node of the host. What its number, its mode and its owner should be is what they are: an ordinary user can
/// show nodes and make none.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    pub path: InContainer,
    #[serde(default)]
    pub host_path: Option<OnHost>,
    #[serde(default, rename = "type")]
    pub node_type: Option<NodeType>,
    #[serde(default)]
    pub major: Option<i64>,
    #[serde(default)]
    pub minor: Option<i64>,
    #[serde(default)]
    pub file_mode: Option<u32>,
    #[serde(default)]
    pub permissions: Option<Permissions>,
    #[serde(default)]
    pub uid: Option<u32>,
    #[serde(default)]
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: OnHost,
    pub container_path: InContainer,
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
    #[serde(default, rename = "type")]
    pub mount_type: Option<MountType>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HookFields {
    hook_name: String,
    path: String,
    #[serde(default, deserialize_with = "or_default")]
    args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    env: Vec<Variable>,
    #[serde(default)]
    timeout: Option<i64>,
}

/// What a hook would do that a vendor ships.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "HookFields")]
pub enum Hook {
    /// Symbolic links: where, and where to.
    CreateSymlinks(Vec<(ContainerPath, Vec<u8>)>),
    /// Links by their sonames for the libraries of directories.
    CreateSonameSymlinks(Vec<ContainerPath>),
    /// The linker has to know the libraries of these directories.
    UpdateLdcache(Vec<ContainerPath>),
    Chmod {
        mode: u32,
        paths: Vec<ContainerPath>,
    },
    /// The image's own libraries of a driver count where they are newer than the host's, whose version it is.
    EnableCudaCompat {
        host_driver: Option<u32>,
    },
    /// One whose work has no meaning for an ordinary user's container.
    Needless {
        name: String,
    },
    /// Any other program.
    Unknown {
        path: String,
        stage: String,
    },
}

impl TryFrom<HookFields> for Hook {
    type Error = Wrong;

    fn try_from(hook: HookFields) -> Result<Self, Wrong> {
        let program = hook.path.rsplit('/').next().unwrap_or_default();
        let mut words = hook.args.iter().skip(1).map(String::as_str).peekable();
        words.next_if_eq(&"hook");
        let work = words.next().unwrap_or_default();
        let options: Vec<&str> = words.collect();
        let folders = || values(&options, "--folder").map(container_path).collect::<Result<Vec<_>, _>>();
        let vendors_own = ["nvidia-ctk", "nvidia-cdi-hook"].contains(&program);
        Ok(match work {
            "create-symlinks" if vendors_own => {
                let link = |link: &str| {
                    let (target, path) = link.split_once("::").ok_or_else(|| Wrong::HookOption(link.to_owned()))?;
                    Ok((container_path(path)?, target.as_bytes().to_vec()))
                };
                Self::CreateSymlinks(values(&options, "--link").map(link).collect::<Result<_, Wrong>>()?)
            }
            "create-soname-symlinks" if vendors_own => Self::CreateSonameSymlinks(folders()?),
            "update-ldcache" if vendors_own => Self::UpdateLdcache(folders()?),
            "chmod" if vendors_own => {
                let mode = values(&options, "--mode").next().unwrap_or_default();
                let bits = u32::from_str_radix(mode, 8).map_err(|_| Wrong::HookOption(mode.to_owned()))?;
                let paths = values(&options, "--path").map(container_path).collect::<Result<_, _>>()?;
                Self::Chmod { mode: bits & 0o777, paths }
            }
            "enable-cuda-compat" if vendors_own => {
                let version = values(&options, "--host-driver-version").next();
                let major = version.and_then(|version| version.split('.').next()?.parse().ok());
                Self::EnableCudaCompat { host_driver: major }
            }
            "disable-device-node-modification" if vendors_own => Self::Needless { name: work.to_owned() },
            _ => Self::Unknown { path: hook.path.clone(), stage: hook.hook_name.clone() },
        })
    }
}

/// The values of an option in `--name value` and `--name=value`, commas split.
fn values<'a>(options: &'a [&'a str], name: &'a str) -> impl Iterator<Item = &'a str> {
    let given = options.iter().enumerate().filter_map(move |(at, word)| match word.strip_prefix(name)? {
        "" => options.get(at + 1).copied(),
        rest => rest.strip_prefix('='),
    });
    given.flat_map(|value| value.split(','))
}

// ---- words that have a form of their own ----

/// Makes a type of a text that is checked when it is read, so that an error has its line.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident($inner:ty), $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
        #[serde(try_from = "String")]
        pub struct $name(pub $inner);

        impl TryFrom<String> for $name {
            type Error = Wrong;

            fn try_from(text: String) -> Result<Self, Wrong> {
                let check: fn(String) -> Result<$inner, Wrong> = $check;
                check(text).map(Self)
            }
        }
    };
}

checked_text!(
    /// One of the versions that are known.
    Version(String), |text| {
        match VERSIONS.contains(&text.strip_prefix('v').unwrap_or(&text)) {
            true => Ok(text),
            false => Err(Wrong::Version(text)),
        }
    }
);
checked_text!(
    /// `vendor.com/class`.
    Kind(String), |text| if is_kind(&text) { Ok(text) } else { Err(Wrong::Kind(text)) }
);
checked_text!(
    /// What a device is called among those of its kind.
    Name(String), |text| if is_name(&text) { Ok(text) } else { Err(Wrong::Name(text)) }
);
checked_text!(
    /// `NAME=VALUE`.
    Variable((String, String)), |text| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Wrong::Variable(text)),
    }
);
checked_text!(
    /// An absolute path on the host.
    OnHost(HostPath), |text| match text.starts_with('/') && !text.contains('\0') {
        true => Ok(HostPath::new(text)),
        false => Err(Wrong::Path(text)),
    }
);
checked_text!(
    /// An absolute path in the container, below its root.
    InContainer(ContainerPath), |text| container_path(&text)
);
checked_text!(
    /// `b`, `c` or `u` for devices, `p` for pipes; or nothing.
    NodeType(String), |text| match text.as_str() {
        "" | "b" | "c" | "u" | "p" => Ok(text),
        _ => Err(Wrong::NodeType(text)),
    }
);
checked_text!(
    /// What the device rules of a control group should allow: reading, writing, making nodes.
    Permissions(String), |text| match text.chars().all(|letter| "rwm".contains(letter)) {
        true => Ok(text),
        false => Err(Wrong::Permissions(text)),
    }
);
checked_text!(
    /// The type of a mount, which has to be a bind.
    MountType(String), |text| match text.as_str() {
        "" | "none" | "bind" | "rbind" => Ok(text),
        _ => Err(Wrong::MountType(text)),
    }
);

/// Whether a text is `vendor/class`.
pub fn is_kind(text: &str) -> bool {
    let good = |word| is_word(word, |c| c.is_ascii_alphabetic(), "_-.");
    text.split_once('/').is_some_and(|(vendor, class)| good(vendor) && good(class))
}

/// Whether a text can name a device.
pub fn is_name(text: &str) -> bool {
    is_word(text, |c| c.is_ascii_alphanumeric(), "_-.:")
}

fn is_word(word: &str, first: fn(char) -> bool, more: &str) -> bool {
    word.starts_with(first)
        && word.ends_with(|c: char| c.is_ascii_alphanumeric())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

fn container_path(text: &str) -> Result<ContainerPath, Wrong> {
    ContainerPath::parse(text.as_bytes())
        .ok()
        .filter(|path| !path.is_root())
        .ok_or_else(|| Wrong::Path(text.to_owned()))
}

/// What a description says that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    Version(String),
    Kind(String),
    Name(String),
    Variable(String),
    Path(String),
    NodeType(String),
    Permissions(String),
    MountType(String),
    HookOption(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(text) => {
                write!(f, "version `{text}` of CDI is not known, the last one that is known is {}", VERSIONS[9])
            }
            Self::Kind(text) => write!(f, "`{text}` is not VENDOR/CLASS"),
            Self::Name(text) => write!(f, "`{text}` is no name of a device"),
            Self::Variable(text) => write!(f, "`{text}` is not NAME=VALUE"),
            Self::Path(text) => write!(f, "`{text}` is not an absolute path without `..`"),
            Self::NodeType(text) => write!(f, "a device node has the type `{text}`, which is none of b, c, u and p"),
            Self::Permissions(text) => write!(f, "`{text}` are not permissions of r, w and m"),
            Self::MountType(text) => write!(f, "a mount has the type `{text}`, and only binds can be made"),
            Self::HookOption(text) => write!(f, "a hook has the option `{text}`, which is not understood"),
        }
    }
}

/// A null is as good as a field that is not there.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// How a description is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Json,
    Yaml,
}

impl Language {
    /// Returns the language of a file by its name; `None` where the file is no description.
    pub fn of_file(name: &[u8]) -> Option<Self> {
        match name {
            name if name.ends_with(b".json") => Some(Self::Json),
            name if name.ends_with(b".yaml") => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// Reads a description.
pub fn parse(text: &[u8], language: Language) -> Result<Spec, SpecError> {
    if text.len() > MAX_SPEC_BYTES {
        return Err(SpecError::TooLarge);
    }
    let read = match language {
        Language::Json => serde_json::from_slice(text),
        Language::Yaml => {
            let text = std::str::from_utf8(text).map_err(|_| SpecError::Encoding)?;
            serde_json::from_str(&yaml::to_json_lines(text).map_err(SpecError::Yaml)?)
        }
    };
    read.map_err(|error: serde_json::Error| {
        // The reader's columns are those of the JSON; what it says ends with both.
        let (said, place) = (error.to_string(), format!(" at line {} column {}", error.line(), error.column()));
        let what = said.strip_suffix(&place).unwrap_or(&said).to_owned();
        SpecError::Fields { line: error.line(), what }
    })
}

/// Why a file is no description that can be used. The caller says which file it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecError {
    TooLarge,
    Encoding,
    Yaml(YamlError),
    /// Not JSON, or a field that is missing, wrong, or of no meaning. Lines are counted from 1.
    Fields {
        line: usize,
        what: String,
    },
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "longer than {MAX_SPEC_BYTES} bytes"),
            Self::Encoding => f.write_str("not UTF-8"),
            Self::Yaml(error) => error.fmt(f),
            Self::Fields { line, what } => write!(f, "line {line}: {what}"),
        }
    }
}

impl std::error::Error for SpecError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(version: &str) -> String {
        format!(
            r#"{{"cdiVersion":"{version}","kind":"vendor.com/gpu","annotations":{{"a":"b"}},
              "devices":[{{"name":"0","containerEdits":{{"deviceNodes":[{{"path":"/dev/card0","hostPath":"/dev/c0",
              "type":"c","major":226,"minor":0,"permissions":"rw","uid":0,"gid":44,"fileMode":438}}]}}}}],
              "containerEdits":{{"env":["A=b"],"mounts":[{{"hostPath":"/a","containerPath":"/b","options":["ro"],
              "type":"bind"}}],"hooks":[{{"hookName":"createContainer","path":"/bin/h","args":["h"],"env":[],"timeout":5}}],
              "additionalGids":[44],"intelRdt":{{"closID":"x"}}}}}}"#
        )
    }

    #[test]
    fn every_published_version_is_read() {
        for version in VERSIONS {
            let spec = parse(json(version).as_bytes(), Language::Json).expect("a description");
            assert_eq!(spec.version.0, version);
            let node = &spec.devices[0].container_edits.device_nodes[0];
            assert_eq!(node.host_path, Some(OnHost(HostPath::new("/dev/c0"))));
            assert_eq!(spec.container_edits.additional_gids, [44]);
        }
    }

    #[test]
    fn yaml_says_the_same_as_json() {
        let yaml = "cdiVersion: 0.6.0\nkind: vendor.com/gpu\nannotations: {a: b}\ndevices:\n- name: \"0\"\n  \
                    containerEdits:\n    deviceNodes:\n    - {path: /dev/card0, hostPath: /dev/c0, type: c, major: 226, minor: 0, permissions: rw,\n       \
                    uid: 0, gid: 44, fileMode: 0o666}\ncontainerEdits:\n  env:\n  - A=b\n  mounts:\n  - hostPath: /a\n    containerPath: /b\n    options: [ro]\n    \
                    type: bind\n  hooks:\n  - hookName: createContainer\n    path: /bin/h\n    args:\n    - h\n  \
                    additionalGids: [44]\n  intelRdt: {closID: x}\n";
        let one = parse(json("0.6.0").as_bytes(), Language::Json).expect("a description");
        assert_eq!(parse(yaml.as_bytes(), Language::Yaml).expect("a description"), one);
    }

    #[test]
    fn what_is_null_or_missing_is_empty() {
        let text =
            "cdiVersion: 0.3.0\nkind: a.b/c\ndevices:\n- name: x\n  containerEdits:\n    env: null\ncontainerEdits:\n";
        let spec = parse(text.as_bytes(), Language::Yaml).expect("a description");
        assert_eq!(spec.devices[0].container_edits, ContainerEdits::default());
        assert_eq!(spec.container_edits, ContainerEdits::default());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let head = "cdiVersion: 0.6.0\nkind: a.b/c\n";
        let edits = |edits: &str| format!("{head}containerEdits:\n  env:\n  - A=b\n  {edits}\n");
        let path = "is not an absolute path without `..`";
        for (text, language, expected) in [
            ("{}".to_owned(), Language::Json, "line 1: missing field `cdiVersion`"),
            (
                "{\n \"cdiVersion\": \"0.6.0\",\n \"kind\": 1\n}".to_owned(),
                Language::Json,
                "line 3: invalid type: integer",
            ),
            ("kind: a.b/c\n".to_owned(), Language::Yaml, "line 1: missing field `cdiVersion`"),
            ("a: [\n".to_owned(), Language::Yaml, "line "),
            (
                "kind: a.b/c\ncdiVersion: 9.0.0\n".to_owned(),
                Language::Yaml,
                "line 2: version `9.0.0` of CDI is not known, the last one that is known is 1.1.0",
            ),
            (
                "cdiVersion: 0.6.0\nkind: [a]\n".to_owned(),
                Language::Yaml,
                "line 2: invalid type: sequence, expected a string",
            ),
            ("cdiVersion: 0.6.0\nkind: gpu\n".to_owned(), Language::Yaml, "line 2: `gpu` is not VENDOR/CLASS"),
            (format!("{head}devices:\n- name: a b\n"), Language::Yaml, "line 4: `a b` is no name of a device"),
            (
                format!("{head}devices:\n- name: x\n  edits: {{}}\n"),
                Language::Yaml,
                "line 5: unknown field `edits`, expected ",
            ),
            (edits("envs: []"), Language::Yaml, "line 6: unknown field `envs`, expected "),
            (edits("- A"), Language::Yaml, "line 6: `A` is not NAME=VALUE"),
            (edits("- '=x'"), Language::Yaml, "line 6: `=x` is not NAME=VALUE"),
            (edits("deviceNodes: [{path: dev/x}]"), Language::Yaml, &format!("line 6: `dev/x` {path}")),
            (edits("deviceNodes:\n  - path: /dev/x\n    hostPath: x"), Language::Yaml, &format!("line 8: `x` {path}")),
            (edits("deviceNodes: [{path: /dev/x, type: d}]"), Language::Yaml, "line 6: a device node has the type `d`"),
            (
                edits("deviceNodes: [{path: /dev/x, permissions: rx}]"),
                Language::Yaml,
                "line 6: `rx` are not permissions",
            ),
            (
                edits("mounts: [{hostPath: /a, containerPath: /../b}]"),
                Language::Yaml,
                &format!("line 6: `/../b` {path}"),
            ),
            (edits("mounts: [{hostPath: /a, containerPath: /}]"), Language::Yaml, &format!("line 6: `/` {path}")),
            (
                edits("mounts: [{hostPath: /a, containerPath: /b, type: proc}]"),
                Language::Yaml,
                "line 6: a mount has the type `proc`, and only binds can be made",
            ),
            (
                edits(
                    "hooks: [{hookName: createContainer, path: /bin/nvidia-ctk, args: [x, hook, create-symlinks, --link, ab]}]",
                ),
                Language::Yaml,
                "line 6: a hook has the option `ab`, which is not understood",
            ),
        ] {
            let error = parse(text.as_bytes(), language).expect_err("no description").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
