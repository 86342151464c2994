//! `inspect` and `run-help`: what an image says of itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sifu::cli::inspect::{self, InspectOptions};
use sifu::cli::run_help;
use sifu::image::{self, metadata};

use crate::need::{CORPUS, SIFU, lacks};
use crate::support::{Scratch, shared, sifu};

fn corpus(name: &str) -> PathBuf {
    shared().join("sif-corpus").join(name)
}

fn inspect(options: InspectOptions, image: &Path) -> String {
    let mut out = Vec::new();
    inspect::run(&options, image.as_os_str(), &mut out).expect("an image that can be read");
    String::from_utf8(out).expect("text")
}

#[test]
fn the_files_of_an_image_give_the_same_bytes_as_its_metadata_object() {
    if lacks(&[CORPUS]) {
        return;
    }
    for name in ["def-full.sif", "oci.sif", "busybox-signed-pgp.sif", "def-full-signed-pgp.sif"] {
        let path = corpus("apptainer").join(name);
        let sif = sifu::sif::Reader::open(std::fs::File::open(&path).expect("there")).expect("valid");
        let object = sif.by_name(metadata::OBJECT_NAME.as_bytes()).expect("Apptainer writes one");
        let object = String::from_utf8(sif.read(object, metadata::MAX_BYTES).expect("readable")).expect("JSON");
        let image = image::open(path.as_os_str()).expect("valid");
        let collected = metadata::collect(image.root()).expect("a sound image");
        assert_eq!(collected.metadata.to_json(), object, "{name}");
        assert_eq!(collected.skipped, [], "{name}");
    }
}

#[test]
fn labels_come_sorted_by_default() {
    if lacks(&[CORPUS]) {
        return;
    }
    let shown = inspect(InspectOptions::default(), &corpus("apptainer/def-full.sif"));
    let keys: Vec<&str> = shown.lines().filter_map(|line| line.split_once(": ")).map(|(key, _)| key).collect();
    assert!(keys.is_sorted() && keys.contains(&"org.label-schema.build-arch"), "{shown}");
}

#[test]
fn an_image_of_old_singularity_is_read_from_its_files() {
    if lacks(&[CORPUS]) {
        return;
    }
    let image = corpus("singularity/busybox_amd64.sif");
    assert!(inspect(InspectOptions::default(), &image).contains("org.label-schema.usage.singularity.version: 3.8.1\n"));
    let deffile = inspect(InspectOptions { deffile: true, ..Default::default() }, &image);
    assert_eq!(deffile, "BootStrap: docker\nFrom: busybox:1.33.1\n");
}

#[test]
fn json_is_indented_by_tabs_and_names_what_is_asked_for_only() {
    if lacks(&[CORPUS]) {
        return;
    }
    let options = InspectOptions { deffile: true, json: true, ..Default::default() };
    assert_eq!(
        inspect(options, &corpus("singularity/busybox_amd64.sif")),
        "{\n\t\"data\": {\n\t\t\"attributes\": {\n\t\t\t\"deffile\": \"BootStrap: docker\\nFrom: busybox:1.33.1\"\n\
         \t\t}\n\t},\n\t\"type\": \"container\"\n}\n"
    );
}

#[test]
fn a_sandbox_of_long_ago_shows_its_scripts() {
    let scratch = Scratch::new();
    scratch.file("root/environment", "export OLD=1\n");
    scratch.file("root/singularity", "#!/bin/sh\necho old\n");
    let options = InspectOptions { environment: true, runscript: true, ..Default::default() };
    let shown = inspect(options, &scratch.path().join("root"));
    assert_eq!(shown, "#!/bin/sh\necho old\n=== /environment ===\nexport OLD=1\n\n");
}

#[test]
fn a_metadata_object_that_is_no_json_gives_way_to_the_files() {
    if lacks(&[CORPUS]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("image.sif");
    let mut bytes = std::fs::read(corpus("apptainer/def-full.sif")).expect("there");
    let at = bytes.windows(9).position(|part| part == b"{\"data\":{").expect("the object's start");
    bytes[at] = b'[';
    std::fs::write(&path, bytes).expect("a scratch file");
    let options = || InspectOptions { all: true, ..Default::default() };
    assert_eq!(inspect(options(), &path), inspect(options(), &corpus("apptainer/def-full.sif")));
}

#[test]
fn what_is_no_image_fails_with_nothing_on_standard_output() {
    let scratch = Scratch::new();
    let mut out = Vec::new();
    let text = scratch.file("text", "text\n");
    let failure = inspect::run(&InspectOptions::default(), text.as_os_str(), &mut out).expect_err("no image");
    assert_eq!((failure.code, out.len()), (255, 0));
    assert!(failure.message.contains("is no image: it holds text"), "{failure}");
}

#[test]
fn run_help_prints_the_help_of_the_image_or_of_an_app() {
    if lacks(&[CORPUS]) {
        return;
    }
    let help = |app: Option<&str>, name: &str| {
        let mut out = Vec::new();
        run_help::run(app, corpus(name).as_os_str(), &mut out).expect("an image that can be read");
        String::from_utf8(out).expect("text")
    };
    let shown = inspect(InspectOptions { helpfile: true, ..Default::default() }, &corpus("apptainer/def-full.sif"));
    assert_eq!(help(None, "apptainer/def-full.sif"), shown);
    assert!(shown.len() > 5);
    assert_eq!(help(None, "apptainer/oci.sif"), "This image has no help\n");
    assert_eq!(help(Some("none"), "apptainer/def-full.sif"), "This image has no help for the app `none`\n");
}

#[test]
fn every_image_of_the_corpus_is_inspected_or_refused_cleanly() {
    if lacks(&[SIFU, CORPUS]) {
        return;
    }
    let mut inspected = 0;
    for folder in ["apptainer", "corrupt", "lib", "oci-sif", "singularity"] {
        for entry in std::fs::read_dir(corpus(folder)).expect("a folder of the corpus").flatten() {
            let image = entry.path();
            if image.extension().is_none_or(|extension| extension != "sif") {
                continue;
            }
            for words in [&["inspect"][..], &["inspect", "--all"], &["run-help"]] {
                let line: Vec<_> =
                    words.iter().map(|word| (*word).into()).chain([image.clone().into_os_string()]).collect();
                let output = sifu(&line).limit(Duration::from_secs(10)).data_limit_bytes(256 << 20).run();
                if output.code == Some(0) {
                    assert!(!output.stdout.contains('\u{1b}'), "no escapes for the terminal: {output:?}");
                    inspected += 1;
                } else {
                    assert_eq!(output.stdout, "", "{output:?}");
                    output.clean_failure();
                }
            }
        }
    }
    assert!(inspected > 100, "{inspected} answers");
}
