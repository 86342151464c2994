//! Transfers that go wrong: what can be saved is saved, and the rest is an error that says what happened.

use super::faulty::{Fault, Faulty};
use super::push::dump_of_image;
use super::real::{Layout, Registry};
use crate::need::{BUSYBOX, DOCKER_REGISTRY, SIFU, SKOPEO, UMOCI, lacks};
use std::time::Duration;

#[test]
fn what_breaks_on_the_way_is_taken_up_again_or_refused() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::open();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    registry.fill(&layout, "box");
    let before = Faulty::before(&registry.host);
    let uri = format!("docker://{}/box", before.host);
    let pull = |fault, name: &str| {
        before.set(fault);
        let login = ["--docker-username", "ada", "--docker-password", "secret"];
        let words = [&["pull", "--no-https", "--disable-cache"], &login[..], &[name, &uri]].concat();
        registry.sifu(&words).run()
    };
    let whole = pull(Fault::None, "whole.sif");
    assert_eq!(whole.code, Some(0), "{whole:?}");
    let expected = dump_of_image(&registry.path("whole.sif"));
    for (number, fault) in [Fault::Reset, Fault::Short, Fault::Elsewhere, Fault::Busy].into_iter().enumerate() {
        let name = format!("{number}.sif");
        let pulled = pull(fault, &name);
        assert_eq!(pulled.code, Some(0), "{fault:?}: {pulled:?}");
        let without_labels =
            |dump: &str| dump.lines().filter(|line| !line.contains("labels.json")).collect::<Vec<_>>().join("\n");
        assert_eq!(without_labels(&dump_of_image(&registry.path(&name))), without_labels(&expected), "{fault:?}");
        match fault {
            Fault::Reset => assert!(before.count("GET", "/blobs/", 1) > 3, "it broke, and went on"),
            Fault::Elsewhere => assert!(!before.had_credentials("elsewhere"), "no password goes to another host"),
            _ => {}
        }
    }
    for (fault, why) in [(Fault::Flip, "layer 1"), (Fault::Long, "longer than")] {
        let pulled = pull(fault, "bad.sif");
        assert!(pulled.clean_failure().contains(why), "{fault:?}: {pulled:?}");
        assert!(!pulled.stderr.contains("secret"));
        let left: Vec<_> =
            std::fs::read_dir(registry.scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("bad")), "{fault:?}: {left:?}");
    }
}

#[test]
fn a_transfer_in_which_nothing_comes_is_taken_up_again_or_ends() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let registry = Registry::open();
    let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
    registry.fill(&layout, "box");
    let before = Faulty::before(&registry.host);
    let uri = format!("docker://{}/box", before.host);
    let pull = |fault, seconds: &str, name: &str| {
        before.set(fault);
        let pull = registry.sifu(&["pull", "--no-https", "--disable-cache", name, &uri]);
        pull.env("SIFU_STALL_TIMEOUT", seconds).limit(Duration::from_secs(180)).run()
    };
    let pulled = pull(Fault::Stall, "1", "a.sif");
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert_eq!(before.count("GET", "/blobs/", 100_000), 2, "it was asked for once more");
    assert_eq!(before.ranges(), ["bytes=400000-"], "from where it stood");
    let pulled = pull(Fault::Silence, "1", "b.sif");
    assert!(pulled.clean_failure().contains("layer 1"), "{pulled:?}");
    assert!(pulled.stderr.contains("nothing came in time"), "{pulled:?}");
    assert!(!registry.path("b.sif").exists());
    let wrong = pull(Fault::None, "soon", "c.sif");
    assert!(wrong.clean_failure().contains("`soon`, no number of seconds"), "{wrong:?}");
}
