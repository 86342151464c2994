//! The cache, shared by many processes: one download, whatever happens to who makes it.

use super::faulty::Faulty;
use super::real::Registry;
use crate::need::{BUSYBOX, DOCKER_REGISTRY, SIFU, SKOPEO, UMOCI, lacks};
use crate::support::{Output, Sifu};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A registry with the image `box`, and a proxy before it that counts and slows.
struct Counted {
    registry: Registry,
    before: Faulty,
}

impl Counted {
    fn new() -> Self {
        let (registry, before) = Faulty::before_box();
        Self { registry, before }
    }

    fn uri(&self) -> String {
        format!("docker://{}/box", self.before.host)
    }

    fn pull(&self, name: &str) -> Sifu {
        self.registry.sifu(&["pull", "--no-https", "--force", name, &self.uri()]).limit(Duration::from_secs(180))
    }

    /// Requests for the one layer.
    fn layer_requests(&self) -> usize {
        self.before.count("GET", "/blobs/", 100_000)
    }

    /// The one image in the cache.
    fn cached(&self) -> PathBuf {
        let directory = self.registry.path("home/.apptainer/cache/oci-tmp");
        let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let images: Vec<PathBuf> = names.filter(|path| path.extension().is_none() && !is_hidden(path)).collect();
        assert_eq!(images.len(), 1, "{images:?}");
        images[0].clone()
    }
}

fn is_hidden(path: &std::path::Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

#[track_caller]
fn check_success(output: &Output) {
    assert_eq!(output.code, Some(0), "{output:?}");
}

#[test]
fn of_64_cold_pulls_one_downloads_and_all_succeed() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let counted = Counted::new();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..64)
            .map(|number| counted.pull(&format!("{number}.sif")))
            .map(|pull| scope.spawn(|| pull.run()))
            .collect();
        pulls.into_iter().for_each(|pull| check_success(&pull.join().unwrap()));
    });
    assert_eq!(counted.layer_requests(), 1);
    // No layers beside the image, no claims, nothing half made.
    let directory = counted.cached().parent().unwrap().to_owned();
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 2);
    assert_eq!(std::fs::read_dir(counted.registry.path("home/.apptainer/cache")).unwrap().count(), 1);
}

#[test]
fn when_the_one_that_downloads_is_killed_another_takes_over() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let counted = Counted::new();
    counted.before.hold_blobs(true);
    let mut first = counted.pull("first.sif").command().stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while counted.layer_requests() == 0 {
        assert!(Instant::now() < end, "the first one asks for the layer");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|number| counted.pull(&format!("{number}.sif")))
            .map(|pull| scope.spawn(|| pull.run()))
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(counted.layer_requests(), 1, "the others wait");
        first.kill().unwrap();
        first.wait().unwrap();
        counted.before.hold_blobs(false);
        waiting.into_iter().for_each(|pull| check_success(&pull.join().unwrap()));
    });
    assert_eq!(counted.layer_requests(), 2);
    let directory = counted.cached().parent().unwrap().to_owned();
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 2, "nothing of the killed one is left");
}

#[test]
fn a_damaged_image_is_fetched_again() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let counted = Counted::new();
    check_success(&counted.pull("a.sif").run());
    let path = counted.cached();
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() / 2]] {
        std::fs::write(&path, bytes).unwrap();
        check_success(&counted.pull("b.sif").run());
        let image = std::fs::read(counted.registry.path("b.sif")).unwrap();
        assert_eq!(image.len(), whole.len());
        assert!(image != damaged);
    }
    assert_eq!(counted.layer_requests(), 3);
}

#[test]
fn the_sites_images_are_used_where_they_are_and_the_ceiling_holds() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let counted = Counted::new();
    let site = counted.registry.path("site");
    check_success(&counted.pull("a.sif").env("APPTAINER_CACHEDIR", &site).run());
    let with_site = || counted.pull("b.sif").env("SIFU_SITE_CACHEDIR", site.join("cache"));
    let pulled = with_site().run();
    check_success(&pulled);
    assert!(pulled.stderr.contains("Using cached SIF image"), "{pulled:?}");
    assert!(!counted.registry.path("home/.apptainer/cache/oci-tmp").exists(), "no copy of the site's");
    assert_eq!(counted.layer_requests(), 1);
    // With room for less than one image, only the last one stays.
    let small = |name: &str, words: &[&str]| {
        let uri = counted.uri();
        let words = [&["pull", "--no-https", "--force"], words, &[name, &uri]].concat();
        check_success(&counted.registry.sifu(&words).env("SIFU_CACHE_MAX_MIB", "0").run());
    };
    small("c.sif", &[]);
    counted.cached();
    let copy = format!("oras://{}/copy", counted.before.host);
    check_success(&counted.registry.sifu(&["push", "--no-https", "c.sif", &copy]).run());
    let pull = ["pull", "--no-https", "--force", "d.sif", &copy];
    check_success(&counted.registry.sifu(&pull).env("SIFU_CACHE_MAX_MIB", "0").run());
    let left = std::fs::read_dir(counted.registry.path("home/.apptainer/cache/oci-tmp")).unwrap().count();
    assert_eq!(left, 0, "the image that was used before is gone");
}

#[test]
fn a_build_from_a_file_of_a_registry_fetches_it_once() {
    if lacks(&[SIFU, BUSYBOX, DOCKER_REGISTRY, SKOPEO, UMOCI]) {
        return;
    }
    let counted = Counted::new();
    check_success(&counted.pull("a.sif").run());
    let copy = format!("oras://{}/copy", counted.before.host);
    check_success(&counted.registry.sifu(&["push", "--no-https", "a.sif", &copy]).run());
    let before = counted.layer_requests();
    let build = |words: &[&str], name: &str| {
        check_success(&counted.registry.sifu(&[&["build", "--no-https"], words, &[name, &copy]].concat()).run());
        counted.layer_requests() - before
    };
    assert_eq!((build(&[], "1.sif"), build(&[], "2.sif")), (1, 1));
    // What a pull of it takes is the same.
    check_success(&counted.registry.sifu(&["pull", "--no-https", "3.sif", &copy]).run());
    assert_eq!(counted.layer_requests() - before, 1);
    assert_eq!(build(&["--disable-cache"], "4.sif"), 2);
    counted.registry.scratch.file("agent.def", &format!("Bootstrap: oras\nFrom: {}/copy\n", counted.before.host));
    check_success(&counted.registry.sifu(&["build", "--no-https", "5.sif", "agent.def"]).run());
    assert_eq!(counted.layer_requests() - before, 2);
}
