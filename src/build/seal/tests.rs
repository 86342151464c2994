//! Images made of nothing, sealed and looked at.

use super::*;
use crate::build::rootfs::apply_to_tree;
use crate::def::{BuildArgs, parse};
use crate::image::metadata::collect;
use crate::shell::pure;
use crate::tree::{Attributes, Tree};

fn circumstances() -> Circumstances {
    Circumstances { replaces: false, architecture: Arch::Amd64, time: 0, inherited_labels: BTreeMap::new() }
}

/// Seals `tree` as the only stage of a definition file says.
fn build(tree: &mut Tree, text: &str, circumstances: &Circumstances) -> Vec<String> {
    let definition = parse(text.as_bytes(), &BuildArgs::default()).expect("a definition");
    let stage = &definition.stages[0];
    let edits = base(tree).expect("a tree");
    apply_to_tree(tree, &edits, 7).expect("edits");
    if !stage.apps.is_empty() {
        let edits = apps(tree, &stage.apps).expect("a tree");
        apply_to_tree(tree, &edits, 7).expect("edits");
    }
    let what = Seal {
        header: stage.header.clone(),
        definition: definition.text.clone(),
        environment: stage.environment.clone(),
        runscript: stage.runscript.clone(),
        startscript: stage.startscript.clone(),
        test: stage.test.clone(),
        help: stage.help.clone(),
        labels: stage.labels.clone(),
    };
    let sealed = seal(tree, &what, circumstances).expect("a tree");
    apply_to_tree(tree, &sealed.edits, 7).expect("edits");
    sealed.warnings
}

fn empty() -> Tree {
    Tree::new(Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() })
}

fn read(tree: &Tree, path: &'static str) -> String {
    let text = lookup::read(tree, &ContainerPath::fixed(path), 1 << 20).expect("a tree");
    String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
}

fn label(tree: &Tree, name: &str) -> Option<String> {
    collect(tree).expect("metadata").metadata.labels.get(name).cloned()
}

#[test]
fn an_image_of_nothing_has_what_a_container_needs() {
    let mut tree = empty();
    build(&mut tree, "Bootstrap: scratch\n", &circumstances());
    let names = |path: &'static str| -> Vec<String> {
        let entries = lookup::list(&tree, &ContainerPath::fixed(path)).expect("a tree").expect("a directory");
        entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect()
    };
    let top = [
        ".exec",
        ".run",
        ".shell",
        ".singularity.d",
        ".test",
        "dev",
        "environment",
        "etc",
        "home",
        "proc",
        "root",
        "singularity",
        "sys",
        "tmp",
        "var",
    ];
    assert_eq!(names("/"), top);
    assert_eq!(
        names("/.singularity.d"),
        ["Singularity", "actions", "env", "labels.json", "libs", "runscript", "startscript"]
    );
    let tmp = tree.lstat(&ContainerPath::fixed("/var/tmp")).expect("a tree").expect("a directory");
    assert_eq!(tmp.mode, 0o1777);
    assert_eq!(read(&tree, "/singularity"), "#!/bin/sh\necho \"This image has no runscript\"\n");
}

#[test]
fn what_an_image_has_stays() {
    let mut tree = empty();
    let own = Edit::File { path: own("actions/run"), mode: 0o755, content: b"mine".to_vec() };
    let link = Edit::Symlink { path: ContainerPath::fixed("/etc/hosts"), target: b"../run/hosts".to_vec() };
    apply_to_tree(&mut tree, &[own, link], 1).expect("edits");
    build(&mut tree, "Bootstrap: scratch\n", &circumstances());
    assert_eq!(read(&tree, "/.run"), "mine");
    let target = tree.read_link(&ContainerPath::fixed("/etc/hosts")).expect("a tree");
    assert_eq!(target.as_deref(), Some(b"../run/hosts".as_slice()));
}

#[test]
fn scripts_get_the_interpreter_that_they_name() {
    let check = |section: &str, expected: &str| {
        let mut tree = empty();
        build(&mut tree, &format!("Bootstrap: scratch\n{section}\n"), &circumstances());
        assert_eq!(read(&tree, "/.singularity.d/runscript"), expected, "{section}");
    };
    check("%runscript\n    echo hi\n", "#!/bin/sh\n\n    echo hi\n");
    check("%runscript\n#!/bin/awk -f\nBEGIN {}\n", "#!/bin/awk -f\n\nBEGIN {}\n");
    check("%runscript\n\n  #!/bin/bash\n  echo hi\n", "#!/bin/bash\n\n  echo hi\n");
    check("%runscript -c /bin/bash\necho hi\n", "#!/bin/bash\n\necho hi\n");
    check("%runscript -e\necho hi\n", "#!/bin/sh -e\n\necho hi\n");
}

#[test]
fn labels_and_help_of_the_base_stay_unless_replaced() {
    let first = "Bootstrap: scratch\n%labels\nA one\nB one\n%help\nfirst\n";
    let second = "Bootstrap: scratch\n%labels\nA two\nC two\n%help\nsecond\n";
    let mut tree = empty();
    build(&mut tree, first, &circumstances());
    let warnings = build(&mut tree, second, &circumstances());
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(
        [label(&tree, "A"), label(&tree, "B"), label(&tree, "C")],
        ["one", "one", "two"].map(|v| Some(v.into()))
    );
    assert_eq!(read(&tree, "/.singularity.d/runscript.help"), "first\n");
    build(&mut tree, second, &Circumstances { replaces: true, ..circumstances() });
    assert_eq!(label(&tree, "A"), Some("two".into()));
    assert_eq!(read(&tree, "/.singularity.d/runscript.help"), "second\n");
}

#[test]
fn labels_from_post_and_from_the_source_are_labels() {
    let mut tree = empty();
    let from_post = b"Two second value\n# no\n\nThree\n".to_vec();
    let path = ContainerPath::fixed(POST_LABELS);
    apply_to_tree(&mut tree, &[Edit::File { path: path.clone(), mode: 0o644, content: from_post }], 1).expect("edits");
    let inherited_labels = BTreeMap::from([("maintainer".to_owned(), "nobody".to_owned())]);
    build(
        &mut tree,
        "Bootstrap: scratch\n",
        &Circumstances { inherited_labels, time: 1_795_475_788, ..circumstances() },
    );
    assert_eq!(label(&tree, "Two"), Some("second value".into()));
    assert_eq!(label(&tree, "Three"), Some(String::new()));
    assert_eq!(label(&tree, "maintainer"), Some("nobody".into()));
    assert_eq!(label(&tree, "org.label-schema.usage.singularity.deffile.bootstrap"), Some("scratch".into()));
    assert_eq!(label(&tree, "org.label-schema.build-date"), Some("Monday_23_November_2026_23:16:28_UTC".into()));
    assert!(tree.find(&path).is_none(), "the file of labels is no part of the image");
}

#[test]
fn definition_files_of_base_images_become_history() {
    let mut tree = empty();
    for number in 0..3 {
        build(&mut tree, &format!("Bootstrap: scratch\n# {number}\n"), &circumstances());
    }
    assert!(read(&tree, "/.singularity.d/Singularity").ends_with("# 2\n"));
    assert!(read(&tree, "/.singularity.d/bootstrap_history/Apptainer0").ends_with("# 0\n"));
    assert!(read(&tree, "/.singularity.d/bootstrap_history/Apptainer1").ends_with("# 1\n"));
}

#[test]
fn the_environment_of_the_base_is_added_to() {
    let mut tree = empty();
    build(&mut tree, "Bootstrap: scratch\n%environment\nexport A=1\n", &circumstances());
    build(&mut tree, "Bootstrap: scratch\n%environment\nexport B=2\n", &circumstances());
    let text = read(&tree, "/environment");
    assert!(text.ends_with("\n\nexport A=1\n\nexport B=2\n") && text.starts_with("#!/bin/sh\n"), "{text}");
}

/// What the scripts of the environment set, evaluated in the order of their names.
fn environment(tree: &Tree, variables: &[(Vec<u8>, Vec<u8>)], names: &[&str]) -> Vec<Option<String>> {
    let mut shell = pure::shell(tree, &[], b"/");
    for (name, value) in variables {
        shell.define(name, value, true);
    }
    for entry in lookup::list(tree, &own("env")).expect("a tree").expect("a directory") {
        let path = own(&format!("env/{}", String::from_utf8_lossy(&entry.name)));
        let text = lookup::read(tree, &path, 1 << 20).expect("a tree").expect("a script");
        assert_eq!(shell.run(&entry.name, &text), Ok(0));
    }
    let text = |value: Option<&[u8]>| value.map(|value| String::from_utf8_lossy(value).into_owned());
    names.iter().map(|name| text(shell.get(name.as_bytes()))).collect()
}

#[test]
fn the_scripts_of_the_environment_put_the_callers_wishes_around_the_images() {
    let mut tree = empty();
    build(
        &mut tree,
        "Bootstrap: scratch\n%environment\nexport PATH=/opt/bin:$PATH LD_LIBRARY_PATH=/opt/lib\n",
        &circumstances(),
    );
    let variable = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let given = [variable("PATH", "/bin"), variable("SING_USER_DEFINED_PREPEND_PATH", "/first")];
    let set = environment(&tree, &given, &["PATH", "LD_LIBRARY_PATH", "PS1", "SING_USER_DEFINED_PREPEND_PATH"]);
    let expected = ["/first:/opt/bin:/bin", "/opt/lib:/.singularity.d/libs", "Apptainer> "].map(|v| Some(v.to_owned()));
    assert_eq!(set[..3], expected);
    assert_eq!(set[3], None);
}

#[test]
fn an_app_that_is_asked_for_comes_first() {
    let mut tree = empty();
    let text = "Bootstrap: scratch\n%appenv one-x\nexport ONE=1\n%apprun one-x\necho\n%applabels one-x\nK v\n";
    build(&mut tree, text, &circumstances());
    let variable = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let plain = [variable("PATH", "/bin")];
    let asked = [variable("PATH", "/bin"), variable("SINGULARITY_APPNAME", "one-x")];
    let names = ["PATH", "ONE", "SCIF_APPNAME", "SCIF_APPRUN_one_x", "LD_LIBRARY_PATH"];
    let some = |value: &str| Some(value.to_owned());
    let run = some("/scif/apps/one-x/scif/runscript");
    assert_eq!(
        environment(&tree, &plain, &names),
        [some("/bin"), None, None, run.clone(), some("/.singularity.d/libs")]
    );
    assert_eq!(
        environment(&tree, &asked, &names),
        [
            some("/scif/apps/one-x/bin:/scif/apps/one-x:/bin"),
            some("1"),
            some("one-x"),
            run,
            some("/scif/apps/one-x/lib:/.singularity.d/libs")
        ]
    );
    let app = collect(&tree).expect("metadata").metadata.apps.remove("one-x").expect("the app");
    assert_eq!((app.labels.len(), app.runscript.as_slice()), (2, b"#!/bin/sh\n\necho".as_slice()));
}

#[test]
fn days_are_those_of_the_calendar() {
    assert_eq!(date(0), "Thursday_1_January_1970_00:00:00_UTC");
    assert_eq!(date(951_782_400), "Tuesday_29_February_2000_00:00:00_UTC");
    assert_eq!(date(4_107_542_399), "Sunday_28_February_2100_23:59:59_UTC");
    assert_eq!(date(-1), "Wednesday_31_December_1969_23:59:59_UTC");
}
