//! Configurations and the plans that they become.

use super::*;
use crate::host::facts::laptop;
use crate::tree::lookup::{Entry, Stat};
use serde_json::{Value, json};

/// A root file system with the usual directories, and a link `/var/run` to `/run`.
struct Files;

impl Lookup for Files {
    fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError> {
        let kind = match path.as_bytes() {
            b"/" | b"/bin" | b"/dev" | b"/etc" | b"/proc" | b"/run" | b"/sys" | b"/var" => Kind::Directory,
            b"/etc/passwd" | b"/etc/hosts" => Kind::File,
            b"/var/run" => Kind::Symlink,
            _ => return Ok(None),
        };
        Ok(Some(Stat { kind, mode: 0o755, uid: 0, gid: 0, size_bytes: 60, mtime: 0, inode: 1, nlink: 1, rdev: 0 }))
    }
    fn read_link(&self, path: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
        Ok((path.as_bytes() == b"/var/run").then(|| b"/run".to_vec()))
    }
    fn read_file(&self, path: &ContainerPath, _: u64) -> Result<Option<Vec<u8>>, LookupError> {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nada:x:7:7::/home/ada:/bin/sh\n";
        Ok((path.as_bytes() == b"/etc/passwd").then(|| passwd.to_vec()))
    }
    fn read_dir(&self, _: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
        Ok(None)
    }
}

/// What `runc spec --rootless` writes, shortened.
fn rootless() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "env": ["PATH=/bin"], "cwd": "/" },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["noexec"] },
            { "destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"] }
        ],
        "linux": {
            "uidMappings": [{ "containerID": 0, "hostID": 1000, "size": 1 }],
            "gidMappings": [{ "containerID": 0, "hostID": 1000, "size": 1 }],
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "user" }],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

/// The plan of [`rootless`] after `change`, for a user who may not mount; `/sys` and `/data` are there on the host.
fn planned(change: impl FnOnce(&mut Value)) -> Result<Planned, BundleError> {
    planned_on(Root::Directory { path: HostPath::new("/b/rootfs"), writable: true }, change)
}

fn planned_on(root: Root, change: impl FnOnce(&mut Value)) -> Result<Planned, BundleError> {
    let mut value = rootless();
    change(&mut value);
    let config = Config::parse(value.to_string().as_bytes()).expect("a configuration");
    let bundle = HostPath::new("/b");
    let mut host = laptop();
    for path in sources(&config, &bundle) {
        let kind = match path.as_bytes() {
            b"/dev/null" => PathKind::Device,
            b"/b/file" => PathKind::File,
            b"/b/missing" => continue,
            _ => PathKind::Directory,
        };
        host.paths.insert(path, PathFacts { kind, link: None, identity: None });
    }
    plan(&Facts { config: &config, site: &SiteConfig::default(), bundle: &bundle, root, tree: &Files, host: &host })
}

fn text(planned: &Planned) -> String {
    String::from_utf8_lossy(&planned.plan.to_text()).into_owned()
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Value), message: &str) {
    let error = planned(change).expect_err(message).to_string();
    assert_eq!(error, message);
}

#[test]
fn a_rootless_configuration_becomes_a_plan() {
    let expected = "\
sifu-plan 1
identity root uid=1000 gid=1000
namespaces pid
root directory /b/rootfs ro
proc /proc new,host
tmpfs /dev mode=0755,size=65536
dev /dev/null /dev/null rw,optional,create
dev /dev/zero /dev/zero rw,optional,create
dev /dev/full /dev/full rw,optional,create
dev /dev/random /dev/random rw,optional,create
dev /dev/urandom /dev/urandom rw,optional,create
dev /dev/tty /dev/tty rw,optional,create
make symlink /dev/fd 0777 /proc/self/fd optional
make symlink /dev/stdin 0777 /proc/self/fd/0 optional
make symlink /dev/stdout 0777 /proc/self/fd/1 optional
make symlink /dev/stderr 0777 /proc/self/fd/2 optional
make symlink /dev/ptmx 0777 pts/ptmx optional
tmpfs /dev/shm mode=1777,create
bind /sys /sys ro
restrict /dev/shm noexec
restrict /proc/sys ro
mask /proc/kcore
umask 0022
directory /
env PATH=/bin
env HOME=/root
detached
exec sh
";
    assert_eq!(text(&planned(|_| ()).unwrap()), expected);
}

#[test]
fn mount_points_that_the_root_lacks_are_made_where_it_can_be_changed_and_a_layer_where_not() {
    let mount = json!({ "destination": "/opt/data", "type": "bind", "source": "data", "options": ["rbind"] });
    let add = |value: &mut Value| value["mounts"].as_array_mut().unwrap().push(mount.clone());
    let layered = text(&planned(add).unwrap());
    assert!(layered.contains("layer ro,size=67108864\nwith directory /opt/data 0755 \\\nproc"), "{layered}");
    let made = text(
        &planned(|value| {
            add(value);
            value["root"]["readonly"] = false.into();
        })
        .unwrap(),
    );
    assert!(made.contains("make directory /opt/data 0755 \\\nbind /b/data /opt/data rw\n"), "{made}");
    assert!(made.contains("root directory /b/rootfs rw\nproc"), "{made}");
    let served = planned_on(Root::Served, add).unwrap();
    assert_eq!(served.invented.iter().map(|node| node.path.to_string()).collect::<Vec<_>>(), ["/opt/data"]);
    assert!(text(&served).contains("root served 0\nproc"), "{}", text(&served));
}

#[test]
fn a_root_that_its_user_may_not_change_is_read_only_and_an_image_takes_changes_in_memory() {
    let writable = |value: &mut Value| value["root"]["readonly"] = false.into();
    let path = HostPath::new("/b/rootfs");
    let locked = planned_on(Root::Directory { path: path.clone(), writable: false }, writable).unwrap();
    assert_eq!(locked.notices, [Notice::ReadOnlyRoot(path)]);
    assert!(text(&locked).contains("root directory /b/rootfs ro\n"));
    let served = planned_on(Root::Served, writable).unwrap();
    assert!(text(&served).contains("root served 0\nlayer rw,size=67108864\n"), "{}", text(&served));
}

#[test]
fn mounts_below_others_and_over_links_of_the_root_find_their_place() {
    let planned = planned(|value| {
        value["mounts"] = json!([
            { "destination": "/var/run/slurm", "type": "none", "source": "/spool", "options": ["bind"] },
            { "destination": "/run", "type": "tmpfs" },
            { "destination": "/var/run/x", "type": "bind", "source": "file" },
            { "destination": "etc/hosts", "type": "bind", "source": "file", "options": ["ro"] },
            { "destination": "/dev/null", "type": "bind", "source": "/dev/null" },
        ]);
    });
    let text = text(&planned.unwrap());
    for line in [
        "with directory /run/slurm 0755 \\\n",
        "bind /spool /run/slurm rw\n",
        "bind /b/file /run/x rw,create\n",
        "bind /b/file /etc/hosts ro\n",
        "dev /dev/null /dev/null rw\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[test]
fn who_the_command_is_follows_from_the_mappings() {
    let identity = |change: fn(&mut Value)| {
        let Planned { plan, .. } = planned(change).unwrap();
        (plan.identity, plan.user)
    };
    let keep = identity(|value| {
        value["linux"]["uidMappings"] = json!(null);
        value["linux"]["gidMappings"] = json!(null);
        value["process"]["user"] = json!({ "uid": 7, "gid": 8 });
    });
    assert_eq!(keep, (Identity::Keep { uid: 7, gid: 8 }, None));
    let (range, user) = identity(|value| {
        for key in ["uidMappings", "gidMappings"] {
            value["linux"][key].as_array_mut().unwrap().push(json!({ "containerID": 1, "hostID": 100000, "size": 10 }));
        }
        value["process"]["user"] = json!({ "uid": 7, "gid": 8, "additionalGids": [9] });
    });
    assert!(matches!(range, Identity::Range { uids, .. } if uids.len() == 2));
    assert_eq!(user, Some(User { uid: 7, gid: 8, groups: vec![9] }));
    refused(
        |value| value["process"]["user"]["uid"] = 5.into(),
        "process.user.uid in config.json is 5, and 0 alone is mapped",
    );
    refused(
        |value| value["linux"]["uidMappings"][0]["hostID"] = 5.into(),
        "linux.uidMappings[0].hostID in config.json is 5, and the caller's id is 1000: without mappings it is mapped",
    );
}

#[test]
fn capabilities_are_those_that_the_kernel_would_leave() {
    let kept = |uid: u32| {
        planned(|value| {
            value["linux"]["uidMappings"] = json!([]);
            value["linux"]["gidMappings"] = json!([]);
            value["process"]["user"] = json!({ "uid": uid, "gid": uid });
            let sets = json!({ "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"], "ambient": ["CAP_KILL", "CAP_SYS_ADMIN"] });
            value["process"]["capabilities"] = sets;
        })
        .unwrap()
        .plan
        .capabilities
        .keep
    };
    assert_eq!(kept(0), 1 | 1 << 5);
    assert_eq!(kept(7), 1 << 5);
}

#[test]
fn limits_parameters_and_namespaces_are_passed_on() {
    let planned = planned(|value| {
        value["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": u64::MAX }]);
        value["process"]["user"]["umask"] = 0o77.into();
        value["process"]["oomScoreAdj"] = 100.into();
        value["hostname"] = "box".into();
        value["linux"]["namespaces"] =
            json!([{ "type": "uts" }, { "type": "cgroup" }, { "type": "network", "path": "/proc/1/ns/net" }]);
        value["linux"]["sysctl"] = json!({ "net.ipv4.ping_group_range": "0 0" });
        value["linux"]["resources"] = json!({ "memory": { "limit": 5 }, "devices": [{ "allow": false }], "cpu": {} });
    })
    .unwrap();
    let text = text(&planned);
    for line in [
        "namespaces uts cgroup\n",
        "join net /proc/1/ns/net\n",
        "hostname box\n",
        "sysctl net.ipv4.ping_group_range 0\\0400\n",
        "umask 0077\n",
        "limit 7 10 18446744073709551615\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    assert_eq!(planned.oom_score_adj, Some(100));
    assert_eq!(planned.notices, [Notice::Resources(vec!["memory".into()])]);
}

#[test]
fn what_is_wrong_or_not_built_is_named() {
    refused(|value| value["ociVersion"] = "2.0".into(), "ociVersion in config.json is `2.0`, expected 1.x");
    refused(|value| value["process"] = Value::Null, "process in config.json is missing");
    refused(|value| value["process"]["args"] = json!([]), "process.args in config.json names no program");
    refused(|value| value["process"]["args"] = json!(["a\u{0}"]), "process.args in config.json has a NUL byte");
    refused(|value| value["process"]["cwd"] = "x".into(), "process.cwd in config.json is no absolute path: `x`");
    refused(
        |value| value["hostname"] = "a".into(),
        "hostname in config.json needs a uts namespace of the container's own",
    );
    refused(
        |value| value["linux"]["namespaces"] = json!([{ "type": "time" }]),
        "linux.namespaces[0] (a time namespace) in config.json is not supported",
    );
    refused(
        |value| value["linux"]["namespaces"] = json!([{ "type": "user", "path": "/x" }]),
        "linux.namespaces[0].path in config.json is not supported",
    );
    refused(
        |value| value["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "pid" }]),
        "linux.namespaces[1] in config.json is a second `pid`",
    );
    refused(
        |value| value["linux"]["sysctl"] = json!({ "net.core.somaxconn": "1" }),
        "linux.sysctl.net.core.somaxconn in config.json belongs to no namespace of the container's own",
    );
    refused(
        |value| value["mounts"][1]["options"] = json!(["tmpcopyup"]),
        "the option `tmpcopyup` of mounts[1] in config.json is not supported",
    );
    refused(
        |value| value["mounts"][1]["type"] = "nfs".into(),
        "the type `nfs` of mounts[1] in config.json is not supported",
    );
    refused(
        |value| value["mounts"][1]["destination"] = "/a/../b".into(),
        "mounts[1].destination in config.json is no path: `/a/../b`",
    );
    refused(
        |value| value["mounts"][3]["source"] = "missing".into(),
        "cannot mount /b/missing on /sys: there is no /b/missing",
    );
    refused(
        |value| value["mounts"][3]["source"] = "file".into(),
        "cannot mount a file on /sys, which is a directory in the root file system",
    );
    refused(
        |value| value["process"]["apparmorProfile"] = "x".into(),
        "process.apparmorProfile in config.json is not supported",
    );
    refused(
        |value| value["hooks"] = json!({ "startContainer": [{ "path": "/x" }] }),
        "hooks.startContainer in config.json is not supported",
    );
    refused(
        |value| value["process"]["capabilities"] = json!({ "bounding": ["CAP_DANCE"] }),
        "process.capabilities.bounding in config.json names `CAP_DANCE`, which is not a capability",
    );
}
