//! The environment of real images, computed without a process: what their scripts set, for every image of the corpus.

use crate::need::{CORPUS, lacks};
use crate::support;
use sifu::launch::environment::{Environment, EnvironmentFacts, Pair, actions, environment};
use sifu::launch::request::{LaunchRequest, Verb};
use starter::paths::ContainerPath;

/// The variables of a payload of this image, for a caller with the usual mounts.
fn known(image: &str, change: impl FnOnce(&mut LaunchRequest)) -> Vec<Pair> {
    let path = support::shared().join("sif-corpus").join(image);
    let image = sifu::image::open(path.as_os_str()).expect("an image");
    let mut request = LaunchRequest::new(Verb::Exec, path.as_os_str(), vec!["true".into()]);
    change(&mut request);
    let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let facts = EnvironmentFacts {
        host: vec![pair("PATH", "/usr/bin:/bin"), pair("FOO", "bar"), pair("LC_ALL", "de_DE.UTF-8")],
        home: b"/home/ada".to_vec(),
        directory: b"/home/ada".to_vec(),
        covered: ["/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/home/ada"].map(ContainerPath::fixed).to_vec(),
        ..EnvironmentFacts::default()
    };
    let action = actions(&request, image.root(), &facts.covered).expect("an action");
    match environment(&request, &facts, &action, image.root()).expect("an environment").0 {
        Environment::Known { variables, .. } => variables,
        Environment::NeedsShell { reason, .. } => panic!("{}: {reason}", path.display()),
        Environment::Ended { code, output } => panic!("{}: ended with {code}: {output:?}", path.display()),
    }
}

/// `NAME=value`: is set so; `NAME`: is not set.
fn check(image: &str, variables: &[Pair], expected: &[&str]) {
    for line in expected {
        let (name, value) = line.split_once('=').map_or((*line, None), |(name, value)| (name, Some(value)));
        let got = variables.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, v)| String::from_utf8_lossy(v));
        assert_eq!(got.as_deref(), value, "{image}: {name}");
    }
}

const OF_OCI: &str = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
const DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[test]
fn images_of_both_runtimes_need_no_shell() {
    if lacks(&[CORPUS]) {
        return;
    }
    for (image, expected) in [
        ("apptainer/def-full.sif", ["SIFU_GREETING=hello from environment", "LC_ALL=C", "SIFU_POST=set-in-post"]),
        ("apptainer/busybox-signed-pgp.sif", ["LC_ALL=de_DE.UTF-8", "FOO=bar", "SIFU_POST"]),
        ("apptainer/oci.sif", ["LC_ALL=de_DE.UTF-8", "FOO=bar", "SIFU_POST"]),
        // Written by SingularityCE, with a prompt of its own.
        ("singularity/busybox_amd64.sif", ["PS1=Singularity> ", "FOO=bar", "LD_LIBRARY_PATH=/.singularity.d/libs"]),
    ] {
        let variables = known(image, |_| {});
        check(image, &variables, &expected);
        check(image, &variables, &["LD_LIBRARY_PATH=/.singularity.d/libs", "HOME=/home/ada"]);
        // The usual directories that the path of an OCI image lacks come after it.
        check(image, &variables, &[if image == "apptainer/oci.sif" { OF_OCI } else { DEFAULT }]);
    }
}

#[test]
fn an_app_of_a_real_image_has_its_variables() {
    if lacks(&[CORPUS]) {
        return;
    }
    let image = "apptainer/def-full.sif";
    let variables = known(image, |request| request.app = Some(b"foo".to_vec()));
    check(image, &variables, &["SCIF_APPNAME=foo", "SCIF_APPROOT=/scif/apps/foo", "SINGULARITY_APPNAME=foo"]);
}
