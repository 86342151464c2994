//! What is known of a container between two calls, as text, and what follows from it. Pure.
//!
//! The text comes from a directory that only this user can write, and is still read as if a stranger had written it: a
//! process counts only if it was started when the record says, on this boot of this machine.

use super::config::Hook;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Version of the runtime specification that states are written by.
pub const OCI_VERSION: &str = "1.0.2";

/// Longest id: it is the name of a directory.
const MAX_ID_BYTES: usize = 255;

/// Says why `id` can't name a container.
pub fn check_id(id: &str) -> Result<(), &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    match id {
        "" => Err("it is empty"),
        "." | ".." => Err("it names a directory"),
        _ if id.len() > MAX_ID_BYTES => Err("it is longer than 255 bytes"),
        _ if !id.bytes().all(allowed) => Err("only letters, digits and `_`, `+`, `-`, `.` may stand in it"),
        _ => Ok(()),
    }
}

/// A process that can't be mistaken for another that has its id later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProcessId {
    pub pid: i32,
    /// When it was started, in ticks since the boot.
    pub start: u64,
}

/// Where a process id means something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    pub boot: String,
    /// Inode of the pid namespace in which the ids count.
    pub pid_namespace: u64,
}

/// The record of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    pub id: String,
    pub bundle: String,
    pub annotations: BTreeMap<String, String>,
    pub place: Place,
    pub process: ProcessId,
    /// Inodes of the container's mount and user namespaces.
    pub mount_namespace: u64,
    pub user_namespace: u64,
    /// Whether its processes have a pid namespace that ends with `process`.
    pub ends_together: bool,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

impl Record {
    /// Reads what [`Record::to_text`] wrote; the error says where it is wrong.
    pub fn parse(text: &[u8], id: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if record.id != id {
            return Err(format!("it is of the container `{}`", record.id));
        }
        if record.process.pid < 2 {
            return Err(format!("{} is no process of a container", record.process.pid));
        }
        Ok(record)
    }

    pub fn to_text(&self) -> String {
        // No map with keys that are not text, and nothing else that JSON has no words for.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The state as the specification has it, for `state` and for hooks.
    pub fn state(&self, status: Status) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct State<'a> {
            oci_version: &'a str,
            id: &'a str,
            status: String,
            pid: i32,
            bundle: &'a str,
            annotations: &'a BTreeMap<String, String>,
        }
        let state = State {
            oci_version: OCI_VERSION,
            id: &self.id,
            status: status.to_string(),
            pid: if status == Status::Stopped { 0 } else { self.process.pid },
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        serde_json::to_string_pretty(&state).unwrap_or_default() + "\n"
    }

    /// Judges by what is there: this boot and pid namespace, whether `process` lives, whether it still waits.
    pub fn status(&self, here: &Place, lives: bool, waits: bool) -> Result<Status, Elsewhere> {
        match (self.place.boot == here.boot, lives) {
            // Nothing outlives a boot.
            (false, _) => Ok(Status::Stopped),
            (true, _) if self.place.pid_namespace != here.pid_namespace => Err(Elsewhere),
            (true, false) => Ok(Status::Stopped),
            (true, true) if waits => Ok(Status::Created),
            (true, true) => Ok(Status::Running),
        }
    }
}

/// A container of another pid namespace, about whose processes nothing can be said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere;

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: "a".into(),
            bundle: "/b".into(),
            annotations: BTreeMap::from([("k".into(), "v".into())]),
            place: Place { boot: "x".into(), pid_namespace: 7 },
            process: ProcessId { pid: 4711, start: 99 },
            mount_namespace: 1,
            user_namespace: 2,
            ends_together: true,
            poststart: Vec::new(),
            poststop: vec![Hook { path: "/h".into(), args: vec!["h".into()], env: Vec::new(), timeout: Some(1) }],
        }
    }

    #[test]
    fn text_and_back_is_the_same_record() {
        let text = record().to_text();
        assert_eq!(Record::parse(text.as_bytes(), "a"), Ok(record()));
    }

    #[test]
    fn a_record_that_somebody_made_up_is_refused() {
        let check = |from: &str, to: &str, reason: &str| {
            let text = record().to_text().replace(from, to);
            let error = Record::parse(text.as_bytes(), "a").unwrap_err();
            assert!(error.contains(reason), "{error}");
        };
        check("4711", "1", "1 is no process of a container");
        check("4711", "-1", "-1 is no process of a container");
        check("4711", "99999999999", "invalid value");
        check("\"a\"", "\"c\"", "it is of the container `c`");
        check("\"place\"", "\"extra\": 1, \"place\"", "unknown field `extra`");
        assert!(Record::parse(b"", "a").is_err());
    }

    #[test]
    fn status_follows_from_what_is_there() {
        let here = Place { boot: "x".into(), pid_namespace: 7 };
        let of = |here: &Place, lives, waits| record().status(here, lives, waits);
        assert_eq!(of(&here, true, true), Ok(Status::Created));
        assert_eq!(of(&here, true, false), Ok(Status::Running));
        assert_eq!(of(&here, false, true), Ok(Status::Stopped));
        assert_eq!(of(&Place { boot: "y".into(), ..here.clone() }, true, true), Ok(Status::Stopped));
        assert_eq!(of(&Place { pid_namespace: 8, ..here }, true, true), Err(Elsewhere));
    }

    #[test]
    fn a_state_says_what_the_specification_asks_for() {
        let state: serde_json::Value = serde_json::from_str(&record().state(Status::Running)).unwrap();
        let expected = serde_json::json!({
            "ociVersion": "1.0.2", "id": "a", "status": "running", "pid": 4711, "bundle": "/b", "annotations": {"k": "v"}
        });
        assert_eq!(state, expected);
        let state: serde_json::Value = serde_json::from_str(&record().state(Status::Stopped)).unwrap();
        assert_eq!(state["pid"], 0);
    }

    #[test]
    fn ids_are_names_and_no_paths() {
        for id in ["a", "node1.ada.12.0.3", "A_b+c-d", "...", "-x"] {
            assert_eq!(check_id(id), Ok(()), "{id}");
        }
        for id in ["", ".", "..", "a/b", "../a", "a b", "a\n", "é", &"a".repeat(256)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
