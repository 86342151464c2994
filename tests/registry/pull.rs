//! `sifu pull` from a real registry: the files are those that umoci unpacks, and who may come in comes in.

use super::hostile::write::Layer;
use super::push::{check_equal, dump_of_directory, dump_of_image, without_own};
use super::real::{Layout, NAME, PASSWORD, Registry, skopeo, succeeds};
use crate::need::{BUSYBOX, DOCKER_REGISTRY, ROOT, SIFU, SKOPEO, UMOCI, lacks};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

fn shell(directory: &Path, script: &str) {
    std::fs::create_dir_all(directory).unwrap();
    succeeds(Command::new("sh").args(["-ec", script]).current_dir(directory));
}

#[track_caller]
fn check_against_umoci(registry: &Registry, layout: &Layout, name: &str) {
    registry.fill(layout, name);
    let file = format!("{name}.sif");
    let pulled = registry.sifu(&["pull", "--no-https", &file, &format!("docker://{}/{name}", registry.host)]).run();
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    let unpacked = layout.unpack(name, &registry.path(&format!("{name}.unpacked")));
    check_equal(&without_own(&dump_of_directory(&unpacked)), &without_own(&dump_of_image(&registry.path(&file))));
}

#[test]
fn whatever_layers_hold_is_pulled_as_umoci_unpacks_it() {
    if lacks(&[SIFU, ROOT, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::open();
    let layout = Layout::new(registry.path("layout"));
    layout.image("all");
    let part = |name: &str, script: &str| {
        shell(&registry.path(name), script);
        layout.insert("all", &[registry.path(name).as_os_str(), OsStr::new("/")]);
    };
    part(
        "one",
        "mkdir -p dev home proc root sys var etc; mkdir -m 1777 tmp var/tmp; : > etc/hosts; : > etc/resolv.conf
         mkdir -p -m 2755 deep/er etc opt/old/sub usr/bin; ln -s usr/bin bin; echo a > etc/a
         echo tool > usr/bin/tool; chmod 4755 usr/bin/tool; ln usr/bin/tool usr/bin/other; echo x > opt/old/sub/x
         head -c 700000 /dev/urandom > deep/random; : > deep/empty; chmod 000 deep/empty; chown 70000:80000 deep/random
         mkfifo deep/fifo; mknod deep/char c 5 1; mknod deep/block b 8 17; truncate -s 3M deep/hole
         mkdir -p replaced/by/file link/target; echo y > replaced/by/file/y; ln -s link/target to
         ! command -v setfattr || setfattr -n user.note -v 'a note' deep/random
         touch -d @1000000000 tmp etc/a; touch -d @1234567890 deep/random",
    );
    part(
        "two",
        "mkdir -p etc replaced deep; echo b > etc/b; echo file > replaced/by; ln -s ../etc deep/up; echo new > deep/empty",
    );
    layout.insert("all", &["--whiteout", "/opt/old"]);
    layout.insert("all", &["--whiteout", "/usr/bin/other"]);
    part("three", "mkdir -p opt/old; echo again > opt/old/again; mkdir -p to; echo z > to/z; touch -d @77 to/z");
    layout.insert("all", &["--opaque", registry.path("two/etc").to_str().unwrap(), "/link"]);
    check_against_umoci(&registry, &layout, "all");
}

#[test]
fn more_layers_than_docker_makes_are_pulled_and_empty_ones_too() {
    if lacks(&[SIFU, ROOT, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::open();
    let root = ["dev", "etc", "home", "proc", "root", "sys", "var"];
    let root = root.iter().fold(Layer::default(), |layer, name| layer.directory(name, 0o755));
    let root = root.directory("tmp", 0o1777).directory("var/tmp", 0o1777).directory(".", 0o755);
    let root = root.directory("d", 0o755).file("etc/hosts", b"").file("etc/resolv.conf", b"");
    let mut layers = vec![root];
    for number in 0..127 {
        // Each adds a file, replaces one of the layer below, and removes one of an older layer.
        let [own, last] = [number, number / 2].map(|number| format!("d/{number}"));
        let layer = Layer::default().file(&own, own.as_bytes()).file("d/newest", own.as_bytes());
        layers.push(layer.file(&last, b"again").file(&format!("d/.wh.{}", number / 3), b""));
        if number % 40 == 0 {
            layers.push(Layer::default());
        }
    }
    let streams: Vec<Vec<u8>> = layers.iter().map(Layer::stream).collect();
    let layout = Layout::of_layers(registry.path("layout"), "many", &streams);
    check_against_umoci(&registry, &layout, "many");
    // An image may have no layer, or one that holds nothing.
    for (name, layers) in [("none", vec![]), ("empty", vec![Layer::default().stream()])] {
        let place = registry.path(&format!("layout-{name}"));
        Layout::of_layers(place.clone(), name, &layers);
        let uri = format!("oci:{}:{name}", place.display());
        let pulled = registry.sifu(&["pull", &format!("{name}.sif"), &uri]).run();
        assert_eq!(pulled.code, Some(0), "{pulled:?}");
        assert!(dump_of_image(&registry.path(&format!("{name}.sif"))).contains("\n/etc directory 0755"));
    }
}

#[test]
fn a_guarded_registry_is_reached_with_its_authority_and_a_password() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::guarded();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    registry.fill(&layout, "box");
    let uri = format!("docker://{}/box", registry.host);
    let pull =
        |words: &[&str]| registry.sifu(&[&["pull", "--force", "--disable-cache"], words, &[uri.as_str()]].concat());
    let unknown = pull(&["a.sif"]).run();
    assert!(unknown.clean_failure().contains("certificate"), "{unknown:?}");
    // Known by the user's own directory of certificates.
    let directory = registry.path("home/.config/containers/certs.d").join(&registry.host);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(registry.authority(), directory.join("ca.crt")).unwrap();
    let nobody = pull(&["a.sif"]).run();
    assert!(nobody.clean_failure().contains("asks for a name and a password"), "{nobody:?}");
    let by_variable =
        pull(&["a.sif"]).env("APPTAINER_DOCKER_USERNAME", NAME).env("APPTAINER_DOCKER_PASSWORD", PASSWORD).run();
    assert_eq!(by_variable.code, Some(0), "{by_variable:?}");
    let wrong = pull(&["--docker-username", NAME, "--docker-password", "wrong", "a.sif"]).run();
    assert!(wrong.clean_failure().contains("refuses the name and password"), "{wrong:?}");
    assert!(!wrong.stderr.contains("wrong"), "{wrong:?}");
    // A login is kept, and lets push and pull.
    let login =
        registry.sifu(&["registry", "login", "-u", NAME, "--password-stdin", &format!("docker://{}", registry.host)]);
    assert_eq!(login.input(PASSWORD).run().code, Some(0));
    assert_eq!(pull(&["a.sif"]).run().code, Some(0));
    for to in [format!("docker://{}/copy", registry.host), format!("oras://{}/file", registry.host)] {
        let pushed = registry.sifu(&["push", "a.sif", &to]).run();
        assert_eq!(pushed.code, Some(0), "{pushed:?}");
        let back = registry.sifu(&["pull", "--force", "back.sif", &to]).run();
        assert_eq!(back.code, Some(0), "{back:?}");
    }
}

#[test]
fn a_registry_that_wants_a_certificate_gets_the_one_of_its_directory() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::for_certified();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    registry.fill(&layout, "box");
    let uri = format!("docker://{}/box", registry.host);
    let pull = || registry.sifu(&["pull", "--force", "--disable-cache", "a.sif", &uri]).run();
    let directory = registry.path("home/.config/containers/certs.d").join(&registry.host);
    std::fs::create_dir_all(&directory).unwrap();
    let give = |name: &str| {
        std::fs::copy(registry.certificates().join(name), directory.join(name)).unwrap();
    };
    give("ca.crt");
    let nobody = pull();
    assert!(nobody.clean_failure().contains("wants a certificate of who connects"), "{nobody:?}");
    assert!(nobody.stderr.contains("certs.d"), "{nobody:?}");
    give("client.cert");
    let without_key = pull();
    assert!(without_key.clean_failure().contains("client.key: no such file"), "{without_key:?}");
    give("client.key");
    let known = pull();
    assert_eq!(known.code, Some(0), "{known:?}");
    let pushed = registry.sifu(&["push", "a.sif", &format!("oras://{}/file", registry.host)]).run();
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    // The directory is for one host and port.
    std::fs::rename(&directory, directory.with_file_name("127.0.0.1:1")).unwrap();
    assert!(pull().clean_failure().contains("certificate"));
}

#[test]
fn credentials_are_found_where_other_tools_keep_them() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::guarded();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    registry.fill(&layout, "box");
    let directory = registry.path("home/.config/containers/certs.d").join(&registry.host);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(registry.authority(), directory.join("ca.crt")).unwrap();
    let uri = format!("docker://{}/box", registry.host);
    let pull = |words: &[&str]| {
        registry.sifu(&[&["pull", "--force", "--disable-cache"], words, &["a.sif", uri.as_str()]].concat())
    };
    // As `docker login`, `podman login` and `skopeo login` write them.
    let mut login = skopeo();
    login.args(["login", "--tls-verify=false", "--authfile"]).arg(registry.path("auth.json"));
    succeeds(login.args(["--username", NAME, "--password", PASSWORD, &registry.host]));
    let file = registry.path("auth.json");
    assert_eq!(pull(&["--authfile", file.to_str().unwrap()]).run().code, Some(0));
    assert_eq!(pull(&[]).env("REGISTRY_AUTH_FILE", &file).run().code, Some(0));
    for place in [".docker/config.json", ".config/containers/auth.json"] {
        let kept = registry.path("home").join(place);
        std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
        std::fs::copy(&file, &kept).unwrap();
        assert_eq!(pull(&[]).run().code, Some(0), "{place}");
        std::fs::remove_file(kept).unwrap();
    }
    assert_ne!(pull(&[]).run().code, Some(0));
    // A helper is asked by the name of the registry.
    let helper = registry.scratch.file(
        "bin/docker-credential-test",
        &format!("#!/bin/sh\nread -r host\n[ \"$1 $host\" = \"get {}\" ] || exit 1\nprintf '%s' '{{\"Username\":\"{NAME}\",\"Secret\":\"{PASSWORD}\"}}'\n", registry.host),
    );
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    registry.scratch.file("home/.docker/config.json", "{\"credsStore\": \"test\"}");
    let path = format!("{}:{}", helper.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let helped = pull(&[]).env("PATH", path).run();
    assert_eq!(helped.code, Some(0), "{helped:?}");
}

#[test]
fn registries_conf_moves_mirrors_and_blocks() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::open();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    registry.fill(&layout, "box");
    let conf = |text: &str| {
        registry.scratch.file("home/.config/containers/registries.conf", &text.replace("HOST", &registry.host))
    };
    let pull = |uri: &str| registry.sifu(&["pull", "--force", "--disable-cache", "a.sif", uri]).run();
    // A registry without TLS needs no flag where the file says so.
    conf("[[registry]]\nlocation = \"HOST\"\ninsecure = true\n");
    assert_eq!(pull(&format!("docker://{}/box", registry.host)).code, Some(0));
    conf("[[registry]]\nprefix = \"far.example/team\"\nlocation = \"HOST\"\ninsecure = true\n");
    assert_eq!(pull("docker://far.example/team/box").code, Some(0));
    let pushed = registry.sifu(&["push", "a.sif", "docker://far.example/team/pushed:1"]).run();
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    assert_eq!(pull("docker://far.example/team/pushed:1").code, Some(0));
    // Nobody answers at the registry, but its mirror does; at the other mirror nobody does either.
    conf(
        "[[registry]]\nlocation = \"127.0.0.1:1\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:2\"\n\
          [[registry.mirror]]\nlocation = \"HOST\"\ninsecure = true\n",
    );
    let mirrored = pull("docker://127.0.0.1:1/box");
    assert_eq!(mirrored.code, Some(0), "{mirrored:?}");
    conf("[[registry]]\nlocation = \"HOST\"\nblocked = true\n");
    let blocked = pull(&format!("docker://{}/box", registry.host));
    assert!(blocked.clean_failure().contains("registries.conf blocks"), "{blocked:?}");
    conf("[[registry]]\nlocation = 5\n");
    let wrong = pull(&format!("docker://{}/box", registry.host));
    assert!(wrong.clean_failure().contains("registries.conf: line 2"), "{wrong:?}");
}
