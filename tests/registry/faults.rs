//! Transfers that go wrong: what can be saved is saved, and the rest is an error that says what happened.

use super::faulty::{Fault, Faulty};
use super::push::dump_of_image;
use crate::need::{BUSYBOX, DOCKER_REGISTRY, SIFU, SKOPEO, UMOCI, lacks};
use crate::support::Output;
use crate::terminal::Terminal;
use std::time::Duration;

#[test]
fn what_breaks_on_the_way_is_taken_up_again_or_refused() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let (registry, before) = Faulty::before_box();
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
fn on_a_terminal_each_blob_has_a_bar_while_it_comes() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let (registry, before) = Faulty::before_box();
    before.set(Fault::Slow);
    let uri = format!("docker://{}/box", before.host);
    let mut terminal = Terminal::of(&registry.sifu(&["pull", "--no-https", "--disable-cache", "a.sif", &uri]));
    // The blob's, and below it that of the whole.
    terminal.expect(" [");
    terminal.expect(" KiB\u{1b}[K\r\npacking   [");
    // Both go up to their start.
    terminal.expect("\r\u{1b}[1A");
}

#[test]
fn what_a_failed_pull_has_made_stays_where_that_is_wanted() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let (registry, before) = Faulty::before_box();
    let uri = |scheme: &str, name: &str| format!("{scheme}://{}/{name}", before.host);
    let pull = |words: &[&str]| registry.sifu(&[&["pull", "--no-https", "--no-cleanup"], words].concat()).run();
    let kept = |output: &Output| {
        let line = output.stderr.lines().find(|line| line.contains("kept in")).expect("it is said where");
        registry.path(line.split("kept in ").nth(1).unwrap())
    };
    before.set(Fault::Flip);
    // Beside the image, cache or not: half a file, and half a directory.
    let failed = pull(&["file.sif", &uri("docker", "box")]);
    failed.clean_failure();
    assert!(kept(&failed).join("new").is_file(), "{failed:?}");
    let failed = pull(&["--sandbox", "directory", &uri("docker", "box")]);
    failed.clean_failure();
    assert!(kept(&failed).is_dir(), "{failed:?}");
    before.set(Fault::None);
    assert_eq!(pull(&["whole.sif", &uri("docker", "box")]).code, Some(0));
    let pushed = registry.sifu(&["push", "--no-https", "whole.sif", &uri("oras", "file")]).run();
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    before.set(Fault::Flip);
    let failed = pull(&["sif.sif", &uri("oras", "file")]);
    failed.clean_failure();
    let (half, whole) = (std::fs::metadata(kept(&failed)), std::fs::metadata(registry.path("whole.sif")));
    assert_eq!(half.unwrap().len(), whole.unwrap().len(), "what is kept has the one wrong byte");
    let left = ["file.sif", "directory", "sif.sif", "home/.apptainer/cache"].map(|name| registry.path(name).exists());
    assert_eq!(left, [false; 4]);
}

#[test]
fn a_transfer_in_which_nothing_comes_is_taken_up_again_or_ends() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let (registry, before) = Faulty::before_box();
    let uri = format!("docker://{}/box", before.host);
    let pull = |fault, seconds: &str, name: &str| {
        before.set(fault);
        let pull = registry.sifu(&["pull", "--no-https", "--disable-cache", name, &uri]);
        pull.env("SIFU_STALL_TIMEOUT", seconds).limit(Duration::from_secs(180)).run()
    };
    let pulled = pull(Fault::Stall, "4", "a.sif");
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert!(before.ranges().contains(&"bytes=400000-".to_owned()), "it went on where it stood: {:?}", before.ranges());
    let pulled = pull(Fault::Silence, "2", "b.sif");
    assert!(pulled.clean_failure().contains("layer 1"), "{pulled:?}");
    assert!(pulled.stderr.contains("nothing came in time"), "{pulled:?}");
    assert!(!registry.path("b.sif").exists());
    let wrong = pull(Fault::None, "soon", "c.sif");
    assert!(wrong.clean_failure().contains("`soon`, no number of seconds"), "{wrong:?}");
}
