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
//! JSON, and YAML that says the same. Fields of later versions than a description claims are taken as they are.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::yaml::{self, YamlError};

/// The versions that were published.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// No description is larger; one of a machine with eight GPUs has 50 kilobytes.
pub const MAX_SPEC_BYTES: usize = 4 << 20;

/// A description.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    #[serde(rename = "cdiVersion")]
    pub version: String,
    /// `vendor.com/class`.
    pub kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

/// What to change in a container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerEdits {
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
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

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeviceNode {
    pub path: String,
    pub host_path: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
    #[serde(rename = "type")]
    pub file_system: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    pub hook_name: String,
    pub path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
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
    let value: Value = match language {
        Language::Json => serde_json::from_slice(text).map_err(|error| SpecError::Fields(error.to_string()))?,
        Language::Yaml => {
            let text = std::str::from_utf8(text).map_err(|_| SpecError::Fields("not UTF-8".to_owned()))?;
            yaml::to_json(text).map_err(SpecError::Yaml)?
        }
    };
    let spec: Spec = serde_json::from_value(value).map_err(|error| SpecError::Fields(error.to_string()))?;
    if !VERSIONS.contains(&spec.version.strip_prefix('v').unwrap_or(&spec.version)) {
        return Err(SpecError::Version(spec.version));
    }
    Ok(spec)
}

/// Why a file is no description that can be used. The caller says which file it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecError {
    TooLarge,
    Yaml(YamlError),
    /// Not JSON, or a field that is missing or wrong.
    Fields(String),
    Version(String),
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "longer than {MAX_SPEC_BYTES} bytes"),
            Self::Yaml(error) => error.fmt(f),
            Self::Fields(why) => f.write_str(why),
            Self::Version(version) => {
                write!(f, "version `{version}` of CDI is not known, the last one that is known is {}", VERSIONS[9])
            }
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
            assert_eq!(spec.version, version);
            assert_eq!(spec.devices[0].container_edits.device_nodes[0].host_path.as_deref(), Some("/dev/c0"));
            assert_eq!(spec.container_edits.additional_gids, [44]);
        }
    }

    #[test]
    fn yaml_says_the_same_as_json() {
        let yaml = "cdiVersion: 0.6.0\nkind: vendor.com/gpu\nannotations: {a: b}\ndevices:\n- name: \"0\"\n  \
                    containerEdits:\n    deviceNodes:\n    - path: /dev/card0\n      hostPath: /dev/c0\n      type: c\n\
                    containerEdits:\n  env:\n  - A=b\n  mounts:\n  - hostPath: /a\n    containerPath: /b\n    options: [ro]\n    \
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
        for (text, language, expected) in [
            ("{}", Language::Json, "missing field `cdiVersion`"),
            ("kind: a.b/c\n", Language::Yaml, "missing field `cdiVersion`"),
            ("a: [\n", Language::Yaml, "line "),
            (
                "cdiVersion: 9.0.0\nkind: a.b/c\n",
                Language::Yaml,
                "version `9.0.0` of CDI is not known, the last one that is known is 1.1.0",
            ),
            ("cdiVersion: 0.6.0\nkind: [a]\n", Language::Yaml, "invalid type: sequence, expected a string"),
        ] {
            let error = parse(text.as_bytes(), language).expect_err("no description").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
