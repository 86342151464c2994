//! `sifu push docker://…`: what Docker, Podman and others run.

use super::real::{Layout, Registry, podman, podman_run, skopeo, succeeds};
use crate::need::{BUSYBOX, DOCKER_REGISTRY, PODMAN, ROOT, SIFU, SKOPEO, UMOCI, lacks};
use crate::support::{Scratch, busybox_root};
use serde_json::Value;
use sifu::image;
use sifu::tree::{Options, Owners, from_directory};
use starter::paths::HostPath;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// The tree of an image file, as text.
pub fn dump_of_image(path: &Path) -> String {
    let image = image::open_to_read(path.as_os_str()).unwrap();
    image.into_partition().unwrap().unwrap().into_tree("image").unwrap().dump().unwrap()
}

/// The tree of a directory, as text.
pub fn dump_of_directory(path: &Path) -> String {
    let options = Options { owners: Owners::AsFound, remembered: Arc::default() };
    from_directory(&HostPath::new(path), &options).unwrap().tree.dump().unwrap()
}

/// The lines of a dump without what conversions add to an image.
pub fn without_own(dump: &str) -> String {
    let own = ["/.singularity.d", "/.exec", "/.run", "/.shell", "/.test", "/environment", "/singularity"];
    let is_own = |line: &str| {
        let path = line.split(' ').next().unwrap_or_default();
        own.iter().any(|own| path == *own || path.strip_prefix(own).is_some_and(|rest| rest.starts_with('/')))
    };
    dump.lines().filter(|line| !is_own(line)).map(|line| format!("{line}\n")).collect()
}

fn skopeo_inspect(registry: &Registry, name: &str) -> Value {
    let mut inspect = skopeo();
    inspect.args(["--insecure-policy", "inspect", "--config", "--tls-verify=false"]);
    serde_json::from_str(&succeeds(inspect.arg(format!("docker://{}/{name}", registry.host)))).unwrap()
}

#[test]
fn an_image_that_was_pulled_is_pushed_with_the_configuration_that_it_had() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::open();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    registry.fill(&layout, "box");
    let [from, to] = ["box", "copy"].map(|name| format!("docker://{}/{name}", registry.host));
    assert_eq!(registry.sifu(&["pull", "--no-https", "box.sif", &from]).run().code, Some(0));
    let pushed = registry.sifu(&["push", "--no-https", "box.sif", &to]).run();
    assert_eq!((pushed.code, pushed.stderr), (Some(0), format!("INFO:    Pushed box.sif to {to}\n")));
    let (before, mut after) = (skopeo_inspect(&registry, "box"), skopeo_inspect(&registry, "copy"));
    // What the conversion says of itself comes on top.
    after["config"]["Labels"].as_object_mut().unwrap().retain(|key, _| !key.starts_with("org.label-schema."));
    assert_eq!(before["config"], after["config"]);
    assert_eq!(after["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
    // There and back again, nothing of the files is another.
    assert_eq!(registry.sifu(&["pull", "--no-https", "back.sif", &to]).run().code, Some(0));
    let dumps = ["box.sif", "back.sif"].map(|name| dump_of_image(&registry.path(name)));
    check_equal(&without_own(&dumps[0]), &without_own(&dumps[1]));
}

/// Compares two dumps, and shows no more than what differs.
#[track_caller]
pub fn check_equal(expected: &str, found: &str) {
    let only = |one: &str, other: &str| -> Vec<String> {
        let other: std::collections::HashSet<&str> = other.lines().collect();
        one.lines().filter(|line| !other.contains(line)).map(str::to_owned).collect()
    };
    assert_eq!(only(expected, found), only(found, expected));
}

#[test]
fn the_layer_is_what_umoci_unpacks_to_the_same_files() {
    if lacks(&[SIFU, ROOT, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::open();
    let root = registry.path("tree");
    make_tree(&root);
    let to = format!("docker://{}/tree:1", registry.host);
    assert_eq!(registry.sifu(&["build", "--fix-perms", "tree.sif", "tree"]).run().code, Some(0));
    assert_eq!(registry.sifu(&["push", "--no-https", "tree.sif", &to]).run().code, Some(0));
    let mut copy = skopeo();
    copy.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &to]);
    succeeds(copy.arg(format!("oci:{}:tree", registry.path("copied").display())));
    let layout = Layout::at(registry.path("copied"));
    let unpacked = layout.unpack("tree", &registry.path("unpacked"));
    check_equal(&dump_of_image(&registry.path("tree.sif")), &dump_of_directory(&unpacked));
}

/// Whatever a file system can hold.
fn make_tree(root: &Path) {
    std::fs::create_dir(root).unwrap();
    let script = "
        mkdir -m 1777 tmp; mkdir -m 2755 deep; d=deep; for i in $(seq 40); do d=$d/directory$i; mkdir $d; done
        echo text > $d/file; ln $d/file second; ln -s $d/file link; ln -s gone broken
        head -c 3000000 /dev/urandom > random; truncate -s 5M hole; : > empty
        chown 70000:80000 random; chmod 4755 second; chmod 000 empty
        mkfifo fifo; mknod char c 5 1; mknod block b 8 17
        ! command -v setfattr || setfattr -n user.note -v 'a note' random; ! command -v setcap || setcap cap_net_raw+ep hole
        printf x > \"$(printf 'b\\344d\\nname')\"; touch -d @1000000000 tmp; touch -d @1234567890 random
    ";
    succeeds(Command::new("sh").args(["-c", script]).current_dir(root));
}

#[test]
fn podman_runs_what_was_pushed() {
    if lacks(&[SIFU, ROOT, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI, PODMAN]) {
        return;
    }
    let registry = Registry::open();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    registry.fill(&layout, "box");
    let of = |name: &str| format!("docker://{}/{name}", registry.host);
    assert_eq!(registry.sifu(&["pull", "--no-https", "box.sif", &of("box")]).run().code, Some(0));
    assert_eq!(registry.sifu(&["push", "--no-https", "box.sif", &of("plain")]).run().code, Some(0));
    let definition = "Bootstrap: localimage\nFrom: box.sif\n%environment\nexport SHAPE=round\n%labels\nsize big\n\
                      %runscript\necho $COLOUR $SHAPE \"$@\"\n";
    registry.scratch.file("changed.def", definition);
    assert_eq!(registry.sifu(&["build", "changed.sif", "changed.def"]).run().code, Some(0));
    assert_eq!(registry.sifu(&["push", "--no-https", "changed.sif", &of("changed")]).run().code, Some(0));
    let scratch = registry.scratch.path();
    for name in ["plain", "changed"] {
        succeeds(podman(scratch).args(["pull", "--quiet", "--tls-verify=false", &of(name)]));
    }
    let image = |name: &str| format!("{}/{name}", registry.host);
    let inspected: Value =
        serde_json::from_str(&succeeds(podman(scratch).args(["image", "inspect", &image("changed")]))).unwrap();
    let labels = &inspected[0]["Config"]["Labels"];
    assert_eq!((&labels["size"], &inspected[0]["Architecture"]), (&"big".into(), &go_architecture().into()));
    if !podman_can_run(&registry) {
        return;
    }
    let run = |words: &[&str]| succeeds(&mut podman_run(scratch, words));
    assert_eq!(run(&[&image("plain")]), "hello world");
    assert_eq!(run(&[&image("plain"), "you"]), "hello you");
    assert_eq!(run(&["--entrypoint", "/bin/pwd", &image("plain")]), "/tmp");
    assert_eq!(run(&["--entrypoint", "/bin/env", &image("plain")]).lines().filter(|l| *l == "COLOUR=green").count(), 1);
    assert_eq!(run(&[&image("changed"), "and", "more words"]), "green round and more words");
}

fn go_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Whether Podman starts containers here: not every machine lets it.
fn podman_can_run(registry: &Registry) -> bool {
    let scratch = Scratch::new();
    busybox_root(&scratch.path().join("root"));
    let archive = scratch.path().join("root.tar");
    succeeds(Command::new("tar").arg("-C").arg(scratch.path().join("root")).arg("-cf").arg(&archive).arg("."));
    succeeds(podman(registry.scratch.path()).args(["import", "--quiet"]).arg(archive).arg("localhost/control:1"));
    let words = ["localhost/control:1", "/bin/true"];
    let output = podman_run(registry.scratch.path(), &words).stdin(Stdio::null()).output().unwrap();
    if !output.status.success() {
        use std::io::Write;
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let _ = writeln!(
            std::io::stderr(),
            "podman_runs_what_was_pushed ... half of it skipped: podman starts nothing ({why})"
        );
    }
    output.status.success()
}

#[test]
fn another_machines_image_keeps_its_architecture() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::open();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    layout.configure("box", &["--architecture=riscv64"]);
    registry.fill(&layout, "box");
    let of = |name: &str| format!("docker://{}/{name}", registry.host);
    assert_eq!(registry.sifu(&["pull", "--no-https", "--arch", "riscv64", "box.sif", &of("box")]).run().code, Some(0));
    assert_eq!(registry.sifu(&["push", "--no-https", "box.sif", &of("copy")]).run().code, Some(0));
    assert_eq!(skopeo_inspect(&registry, "copy")["architecture"], "riscv64");
}
