//! The `config.json` of a bundle around an image: what a container of `sifu exec` sees, in the words of a bundle. Pure.

use serde_json::{Value, json};

/// The name of the image in the bundle.
pub const ROOT: &str = "rootfs";

/// What a bundle is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents<'a> {
    pub uid: u32,
    pub gid: u32,
    /// `NAME=VALUE`, as the image sets them.
    pub variables: Vec<String>,
    pub arguments: Vec<String>,
    /// A directory of the host's that the container starts in.
    pub home: Option<&'a str>,
}

/// Writes the configuration. Ids are not mapped by number, so that it serves whoever runs it.
pub fn configuration(contents: &Contents<'_>) -> Value {
    let bind = |path: &str, options: &[&str]| json!({ "destination": path, "type": "bind", "source": path, "options": options });
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs" }),
        bind("/dev", &["rbind"]),
        bind("/tmp", &["rbind"]),
        bind("/var/tmp", &["rbind"]),
        bind("/etc/hosts", &["bind", "ro"]),
        bind("/etc/resolv.conf", &["bind", "ro"]),
    ];
    mounts.extend(contents.home.map(|home| bind(home, &["rbind"])));
    json!({
        "ociVersion": super::record::OCI_VERSION,
        "root": { "path": ROOT, "readonly": true },
        "process": {
            "terminal": false,
            "user": { "uid": contents.uid, "gid": contents.gid },
            "args": contents.arguments,
            "env": contents.variables,
            "cwd": contents.home.unwrap_or("/"),
            "noNewPrivileges": true
        },
        "mounts": mounts,
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "user" }] }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::config::Config;

    #[test]
    fn a_bundle_of_an_image_is_one_that_can_be_read() {
        let contents = Contents {
            uid: 1000,
            gid: 100,
            variables: vec!["PATH=/bin".into()],
            arguments: vec!["sh".into()],
            home: Some("/home/ada"),
        };
        let config = Config::parse(configuration(&contents).to_string().as_bytes()).expect("a configuration");
        assert_eq!(config.root.map(|root| (root.path, root.readonly)), Some((ROOT.into(), true)));
        assert_eq!(config.process.map(|process| process.cwd), Some("/home/ada".into()));
        assert_eq!(config.mounts.last().map(|mount| mount.destination.clone()), Some("/home/ada".into()));
        assert!(config.linux.uid_mappings.is_empty());
    }
}
