//! `config.json` of the OCI runtime specification, version 1, as far as Linux has a use for it.
//!
//! What is not named here is not looked at, as the specification wants it of properties that a runtime does not know.
//! What is named and can't be done is refused by [`super::plan`].

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The file's name in a bundle.
pub const FILE_NAME: &str = "config.json";
/// Largest configuration that is read.
pub const MAX_BYTES: u64 = 8 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub oci_version: String,
    pub root: Option<Root>,
    pub process: Option<Process>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "or_default")]
    pub hooks: Hooks,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub linux: Linux,
}

#[derive(Debug, Deserialize)]
pub struct Root {
    pub path: String,
    #[serde(default)]
    pub readonly: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    #[serde(default)]
    pub terminal: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub user: User,
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    pub cwd: String,
    pub capabilities: Option<Capabilities>,
    #[serde(default, deserialize_with = "or_default")]
    pub rlimits: Vec<Rlimit>,
    #[serde(default, deserialize_with = "or_default")]
    pub apparmor_profile: String,
    #[serde(default, deserialize_with = "or_default")]
    pub selinux_label: String,
    pub oom_score_adj: Option<i32>,
    pub scheduler: Option<Box<RawValue>>,
    pub io_priority: Option<Box<RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub umask: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    pub additional_gids: Vec<u32>,
}

/// The two sets that decide what a command has: the kernel computes the others from them at `execve(2)`.
#[derive(Debug, Default, Deserialize)]
pub struct Capabilities {
    #[serde(default, deserialize_with = "or_default")]
    pub bounding: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub ambient: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Deserialize)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    pub kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub source: String,
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    #[serde(deserialize_with = "or_default")]
    pub prestart: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub create_container: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub start_container: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub poststart: Vec<Hook>,
    #[serde(deserialize_with = "or_default")]
    pub poststop: Vec<Hook>,
}

/// A program of the host to run at a turn of the container's life, with the state on its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Hook {
    pub path: String,
    /// With the name at its head; only the path where empty.
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    #[serde(deserialize_with = "or_default")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "or_default")]
    pub namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    #[serde(deserialize_with = "or_default")]
    pub sysctl: BTreeMap<String, String>,
    /// Kept as text: the compiler of profiles reads it.
    pub seccomp: Option<Box<RawValue>>,
    #[serde(deserialize_with = "or_default")]
    pub resources: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    pub rootfs_propagation: String,
    #[serde(deserialize_with = "or_default")]
    pub masked_paths: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub readonly_paths: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub mount_label: String,
    pub personality: Option<Box<RawValue>>,
    pub intel_rdt: Option<Box<RawValue>>,
    #[serde(deserialize_with = "or_default")]
    pub time_offsets: BTreeMap<String, serde_json::Value>,
}

/// A line of `uid_map` or `gid_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

#[derive(Debug, Deserialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub path: String,
}

#[derive(Debug, Deserialize)]
pub struct Device {
    pub path: String,
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    pub kind: String,
}

impl Config {
    /// Reads a configuration; the error is what the JSON reader says, with line and column.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }
}

/// Programs write `null` for what is not there.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
