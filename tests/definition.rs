//! `sifu build` of definition files: those of `defs/`, and what sections may and may not do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use sifu::def::{BuildArgs, parse};
use sifu::image;

use crate::need::{APPTAINER, BUSYBOX, FUSE, ORDINARY, SOURCES, USERNS, XATTR_TOOLS, lacks};
use crate::support::{Output, Scratch, busybox_image, checkout, find_program, sifu, static_busybox};

/// What a build that runs sections needs.
fn cannot_build() -> bool {
    lacks(&[BUSYBOX, USERNS, FUSE])
}

fn base() -> String {
    busybox_image().display().to_string()
}

/// A definition file that begins with a busybox.
fn definition(scratch: &Scratch, sections: &str) {
    scratch.file("image.def", &format!("Bootstrap: localimage\nFrom: {}\n\n{sections}", base()));
}

fn build(scratch: &Scratch, arguments: &[&str]) -> Output {
    sifu(&[&["build"], arguments].concat()).current_dir(scratch.path()).run()
}

#[track_caller]
fn builds(scratch: &Scratch, arguments: &[&str]) -> Output {
    let output = build(scratch, arguments);
    assert_eq!(output.code, Some(0), "{output:?}");
    output
}

#[track_caller]
fn says(scratch: &Scratch, arguments: &[&str], expected: &str) {
    let output = sifu(arguments).current_dir(scratch.path()).run();
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), expected), "{output:?}");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_example_is_understood() {
    if lacks(&[SOURCES]) {
        return;
    }
    let mut arguments = BuildArgs::default();
    arguments.add("ACCOUNT", b"me");
    let directory = checkout().join("defs");
    let table = read(&directory.join("README.md"));
    let examples: Vec<_> = names(&directory).into_iter().filter(|name| name.ends_with(".def")).collect();
    assert!(examples.len() >= 12, "{examples:?}");
    for name in examples {
        let definition = parse(read(&directory.join(&name)).as_bytes(), &arguments);
        let definition = definition.unwrap_or_else(|error| panic!("{name}:{error}"));
        assert!(definition.warnings.is_empty(), "{name}: {:?}", definition.warnings);
        assert!(table.contains(&format!("`{name}`")), "{name} has a line in the table");
    }
}

#[test]
fn the_examples_that_need_an_image_are_built_and_run() {
    if cannot_build() || lacks(&[SOURCES]) {
        return;
    }
    let scratch = Scratch::new();
    let example = |name: &str| checkout().join("defs").join(name).display().to_string();
    let argument = format!("BASE={}", base());
    builds(&scratch, &["--build-arg", &argument, "hello.sif", &example("from-image.def")]);
    says(&scratch, &["run", "hello.sif", "you"], "hello from you\n");
    builds(&scratch, &["--build-arg", &argument, "apps.sif", &example("apps.def")]);
    scratch.file("three", "1\n2\n3\n");
    says(&scratch, &["run", "--app", "count", "apps.sif", "three"], "3 three\n");
    says(&scratch, &["run", "--app", "greet", "apps.sif", "you"], "hello you\n");
    fs::create_dir(scratch.path().join("reference")).expect("a scratch directory");
    scratch.file("reference/a.fa", "A");
    scratch.file("reference/b.other", "B");
    builds(&scratch, &["--build-arg", &argument, "data.sif", &example("data.def")]);
    says(&scratch, &["exec", "data.sif", "ls", "/data"], "a.fa\n");
}

#[test]
fn an_image_of_nothing_but_a_static_program_runs() {
    if cannot_build() || lacks(&[SOURCES]) {
        return;
    }
    let scratch = Scratch::new();
    let program = format!("BUSYBOX={}", static_busybox().expect("a busybox").display());
    let example = checkout().join("defs/busybox-static.def").display().to_string();
    builds(&scratch, &["--build-arg", &program, "static.sif", &example]);
    says(&scratch, &["run", "static.sif", "echo", "alone"], "alone\n");
}

#[test]
fn the_same_definition_gives_the_same_bytes() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    scratch.file("input", "input");
    definition(
        &scratch,
        "%files\ninput /input\n%post\ndate > /dev/null\necho made > /made\nmkdir -p /a/b\n%labels\nA b\n",
    );
    builds(&scratch, &["one.sif", "image.def"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    builds(&scratch, &["two.sif", "image.def"]);
    let bytes = |name: &str| fs::read(scratch.path().join(name)).expect("an image");
    assert!(bytes("one.sif") == bytes("two.sif"));
}

#[test]
fn owners_and_devices_that_sections_make_are_those_of_the_image() {
    if cannot_build() || lacks(&[ORDINARY]) {
        return;
    }
    let scratch = Scratch::new();
    definition(
        &scratch,
        "%post\ntouch /owned\nchown 3:4 /owned\nmknod /null c 1 3\nmkdir -m 000 /closed\ntouch /closed/in\n",
    );
    builds(&scratch, &["image.sif", "image.def"]);
    let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
    let tree = image.partition().expect("a partition").clone().into_tree("image.sif").expect("a tree");
    let dump = tree.dump().expect("contents");
    let line =
        |name: &str| dump.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default().to_owned();
    assert!(line("/owned").starts_with("/owned file 0664 3:4"), "{}", line("/owned"));
    assert!(line("/null").starts_with("/null char"), "{}", line("/null"));
    assert!(line("/closed").starts_with("/closed directory 0000 0:0"), "{}", line("/closed"));
    assert!(!line("/closed/in").is_empty());
}

#[test]
fn a_secret_is_there_for_post_alone() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    scratch.file("token", "s3cr3t-file");
    definition(
        &scratch,
        "%arguments\n# secret: WORD\n%post\ntest $(cat /run/secrets/token | wc -c) = 11\ntest $(echo {{ WORD }} | wc -c) = 12\n",
    );
    let arguments =
        ["--secret", "id=token,src=token", "--build-arg", "WORD=s3cr3t-word", "--sandbox", "box", "image.def"];
    let output = builds(&scratch, &arguments);
    assert!(!output.stderr.contains("s3cr3t"), "{output:?}");
    assert!(read(&scratch.path().join("box/.singularity.d/Singularity")).contains("{{ WORD }}"));
    let mut pending = vec![scratch.path().join("box")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").flatten() {
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                let bytes = fs::read(entry.path()).expect("a file");
                assert!(!bytes.windows(6).any(|part| part == b"s3cr3t"), "{}", entry.path().display());
            }
        }
    }
    let missing = build(&scratch, &["--secret", "id=a,src=none", "--build-arg", "WORD=x", "b.sif", "image.def"]);
    assert!(missing.clean_failure().contains("the secret `a` has no file none"), "{missing:?}");
}

#[test]
fn a_section_that_fails_is_named_and_leaves_nothing() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    definition(&scratch, "%post\nmkdir -p /a/b\nchmod 0 /a\nexit 3\n");
    let output = build(&scratch, &["image.sif", "image.def"]);
    assert!(output.clean_failure().contains("%post (line 4) failed with exit code 3"), "{output:?}");
    assert_eq!((output.code, names(scratch.path())), (Some(255), vec!["image.def".to_owned()]));
    let kept = build(&scratch, &["--no-cleanup", "image.sif", "image.def"]);
    assert!(kept.stderr.contains("are kept in"), "{kept:?}");
    assert_eq!(names(scratch.path()).len(), 2);
}

#[test]
fn a_build_that_is_killed_leaves_no_process() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    // A command line that no other process has.
    let seconds = 100_000 + std::process::id();
    definition(&scratch, &format!("%post\ntouch /tmp/started\nsleep {seconds} & sleep {seconds}\n"));
    let mut build = sifu(&["build", "--bind", &format!("{}:/tmp", scratch.path().display()), "image.sif", "image.def"])
        .current_dir(scratch.path())
        .command()
        .spawn()
        .expect("sifu starts");
    let wait_until = |what: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !what() && begun.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(20));
        }
        what()
    };
    assert!(wait_until(&|| scratch.path().join("started").exists()), "the section runs");
    build.kill().expect("the build can be killed");
    build.wait().expect("the build ends");
    let own_id = nix::unistd::geteuid().as_raw();
    let sleeps = || {
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let command = |process: &fs::DirEntry| fs::read(process.path().join("cmdline")).unwrap_or_default();
        let is_ours = |process: &fs::DirEntry| process.metadata().is_ok_and(|metadata| metadata.uid() == own_id);
        let line = format!("sleep\0{seconds}\0");
        processes.filter(is_ours).filter(|process| command(process).ends_with(line.as_bytes())).count()
    };
    assert!(wait_until(&|| sleeps() == 0), "no process of the section is left");
    scratch.file("next.def", "Bootstrap: scratch\n");
    builds(&scratch, &["image.sif", "next.def"]);
    assert_eq!(names(scratch.path()), ["image.def", "image.sif", "next.def", "started"]);
}

#[test]
fn the_files_of_a_build_are_made_where_tmpdir_says() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("tmp")).expect("a scratch directory");
    definition(&scratch, "%setup\ndirname \"$(dirname \"$APPTAINER_ROOTFS\")\" > where\n");
    builds(&scratch, &["--tmpdir", "tmp", "image.sif", "image.def"]);
    assert!(read(&scratch.path().join("where")).trim_end().ends_with("/tmp"));
    assert_eq!(names(&scratch.path().join("tmp")), [""; 0]);
}

#[test]
fn a_shell_that_a_section_names_stops_at_errors_unless_told_to_go_on() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    definition(&scratch, "%post -c /bin/sh\nfalse\ntrue\n");
    assert_eq!(build(&scratch, &["image.sif", "image.def"]).code, Some(255));
    definition(&scratch, "%post -c /bin/sh +e\nfalse\ntrue\n");
    builds(&scratch, &["image.sif", "image.def"]);
}

#[test]
fn a_link_in_the_image_leads_no_copy_out_of_it() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).expect("a scratch directory");
    scratch.file("file", "content");
    let setup = format!("%setup\nln -s {} \"$APPTAINER_ROOTFS/way\"\n%files\nfile /way/file\n", outside.display());
    definition(&scratch, &setup);
    builds(&scratch, &["--sandbox", "box", "image.def"]);
    assert_eq!(names(&outside), [""; 0]);
    let inside = scratch.path().join("box").join(outside.strip_prefix("/").expect("absolute")).join("file");
    assert_eq!(read(&inside), "content");
}

/// A machine without `/etc/hosts`, in mount and user namespaces of its own: then no copy of it is made for the section.
#[test]
fn a_link_of_the_image_is_no_copy_of_a_file_that_this_machine_lacks() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    let outside = scratch.file("outside", "as it was");
    definition(&scratch, &format!("%setup\nln -s {} $APPTAINER_ROOTFS/.post.hosts\n", outside.display()));
    builds(&scratch, &["base.sif", "image.def"]);
    let section = "%post\nmkdir -p /etc\ncat /etc/hosts > /seen || :\necho changed > /etc/hosts || :\n";
    scratch.file("next.def", &format!("Bootstrap: localimage\nFrom: base.sif\n{section}"));
    for name in ["passwd", "group"] {
        let of_host = Path::new("/etc").join(name);
        scratch.file(&format!("etc/{name}"), &read(&of_host));
    }
    let script = "mount --bind etc /etc && exec \"$0\" build --sandbox box next.def";
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(crate::support::sifu_path());
    let output = command.current_dir(scratch.path()).output().expect("unshare");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(read(&outside), "as it was");
    assert_eq!(read(&scratch.path().join("box/seen")), "");
    // Where there is one, the link makes way for the copy, which goes with the section.
    builds(&scratch, &["--sandbox", "other", "next.def"]);
    assert_eq!(read(&scratch.path().join("other/seen")), read(Path::new("/etc/hosts")));
    assert_eq!(read(&outside), "as it was");
    assert!(scratch.path().join("other/.post.hosts").symlink_metadata().is_err());
}

#[test]
fn a_definition_in_json_makes_an_image_that_runs() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    scratch.file("my file", "copied");
    let json = format!(
        r#"{{"header": {{"bootstrap": "localimage", "from": "{}"}},
        "imageData": {{"metadata": null, "labels": {{"Version": "v1.0"}}, "imageScripts": {{
            "help": {{"args": "", "script": "Ask nobody.\n"}},
            "environment": {{"args": "", "script": "export GREETING=hello\n"}},
            "runScript": {{"args": "", "script": "echo \"$GREETING $(cat /opt/name) $*\"\n"}},
            "test": {{"args": "", "script": "test -e /opt/name\n"}}, "startScript": {{"args": "", "script": ""}}}}}},
        "buildData": {{"files": [{{"args": "", "files": [{{"source": "my file", "destination": "/opt/"}}]}}],
            "buildScripts": {{"pre": {{"args": "", "script": ""}}, "setup": {{"args": "", "script": ""}},
            "post": {{"args": "", "script": "cat <<X > /opt/name\n%post\nX\n"}}, "test": {{"args": "", "script": ""}}}}}},
        "customData": {{"apprun count": "echo $#\n"}}, "raw": null, "fullraw": null, "appOrder": ["count"]}}"#,
        base()
    );
    scratch.file("image.json", &json);
    builds(&scratch, &["--json", "image.sif", "image.json"]);
    says(&scratch, &["run", "image.sif", "a", "b c"], "hello %post a b c\n");
    says(&scratch, &["run", "--app", "count", "image.sif", "a", "b c"], "2\n");
    says(&scratch, &["exec", "image.sif", "cat", "/opt/my file"], "copied");
    says(&scratch, &["run-help", "image.sif"], "Ask nobody.\n");
    let output = sifu(&["inspect", "image.sif"]).current_dir(scratch.path()).run();
    assert!(output.stdout.contains("Version: v1.0"), "{output:?}");
    scratch.file("image.json", &json.replace("test -e /opt/name", "test -e /nothing"));
    let output = build(&scratch, &["--json", "failed.sif", "image.json"]);
    assert!(output.clean_failure().contains("%test"), "{output:?}");
}

/// Whoever builds, and however root is made up.
#[test]
fn extended_attributes_that_post_sets_are_those_of_the_image() {
    if cannot_build() || lacks(&[XATTR_TOOLS]) {
        return;
    }
    let scratch = Scratch::new();
    // The tools are those of this machine, with its libraries.
    definition(
        &scratch,
        "%setup
    mkdir $APPTAINER_ROOTFS/usr $APPTAINER_ROOTFS/lib64 $APPTAINER_ROOTFS/lib
%post
    touch /noted /capable
    mkdir /folder
    /usr/bin/setfattr -n user.note -v 'a b' /noted
    /usr/bin/setfattr -n trusted.note -v yes /folder
    /usr/sbin/setcap cap_net_bind_service+ep /capable
    /usr/sbin/setcap -v cap_net_bind_service+ep /capable
",
    );
    let mut ways = vec![vec![]];
    if !crate::need::is_root() {
        ways.push(vec!["--ignore-subuid"]);
    }
    let libraries = ["--bind", "/usr,/lib64,/lib"];
    for way in ways {
        builds(&scratch, &[&libraries[..], &way, &["--force", "image.sif", "image.def"]].concat());
        let image = image::open(scratch.path().join("image.sif").as_os_str()).expect("an image");
        let tree = image.partition().expect("a partition").clone().into_tree("image.sif").expect("a tree");
        let dump = tree.dump().expect("contents");
        for (name, expected) in [
            ("/noted", " user.note=a\\x20b"),
            ("/folder", " trusted.note=yes"),
            // Revision 2, effective; permitted: 1 << 10. Nothing of the builder's namespace (revision 3) is in it.
            ("/capable", " security.capability=\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00"),
        ] {
            let line = dump.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default();
            assert!(line.contains(expected), "{way:?}: {line}, expected {expected}");
        }
    }
}

#[test]
fn a_section_without_a_line_leaves_what_the_base_says() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    definition(&scratch, "%runscript\necho of the base\n%test\ntrue\n%help\nAsk the base.\n");
    builds(&scratch, &["base.sif", "image.def"]);
    scratch.file("next.def", "Bootstrap: localimage\nFrom: base.sif\n%runscript\n%startscript\n%test\n%help\n%post\n");
    builds(&scratch, &["image.sif", "next.def"]);
    says(&scratch, &["run", "image.sif"], "of the base\n");
    says(&scratch, &["run-help", "image.sif"], "Ask the base.\n");
}

#[test]
fn files_of_an_app_are_below_its_directory_whatever_their_target() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    scratch.file("a", "content");
    definition(&scratch, "%appfiles one\na\na /opt/b\na bin/\n");
    builds(&scratch, &["image.sif", "image.def"]);
    let find = ["exec", "image.sif", "find", "/scif/apps/one", "/opt", "-type", "f", "-size", "7c"];
    let output = sifu(&find).current_dir(scratch.path()).run();
    let mut found: Vec<_> = output.stdout.lines().collect();
    found.sort_unstable();
    assert_eq!(found, ["/scif/apps/one/a", "/scif/apps/one/bin/a", "/scif/apps/one/opt/b"], "{output:?}");
}

#[test]
fn a_sandbox_has_the_modes_of_its_image() {
    if cannot_build() {
        return;
    }
    let scratch = Scratch::new();
    definition(&scratch, "%post\ntouch /set\nchmod 4755 /set\nmkdir -m 1777 /sticky\n");
    builds(&scratch, &["--sandbox", "box", "image.def"]);
    let mode = |name: &str| fs::metadata(scratch.path().join("box").join(name)).expect("a file").mode() & 0o7777;
    assert_eq!([mode("set"), mode("sticky")], [0o4755, 0o1777]);
    fs::set_permissions(scratch.path().join("box/sticky"), fs::Permissions::from_mode(0o755)).expect("a mode");
    builds(&scratch, &["again.sif", "box"]);
    says(&scratch, &["exec", "again.sif", "stat", "-c", "%a", "/set", "/sticky"], "4755\n755\n");
}

#[test]
fn apptainer_runs_what_a_definition_file_made() {
    if cannot_build() || lacks(&[APPTAINER, ORDINARY]) {
        return;
    }
    let scratch = Scratch::new();
    definition(
        &scratch,
        "%environment\nexport A=1\n%runscript\necho \"run $A $*\"\n%apprun x\necho \"app $SCIF_APPNAME\"\n%labels\nL v\n%test\ntrue\n",
    );
    builds(&scratch, &["image.sif", "image.def"]);
    let apptainer = |arguments: &[&str]| {
        let program = find_program("apptainer").expect("apptainer");
        let output =
            std::process::Command::new(program).arg("--silent").args(arguments).current_dir(scratch.path()).output();
        String::from_utf8_lossy(&output.expect("apptainer starts").stdout).into_owned()
    };
    assert_eq!(apptainer(&["run", "image.sif", "b"]), "run 1 b\n");
    assert_eq!(apptainer(&["run", "--app", "x", "image.sif"]), "app x\n");
    assert!(apptainer(&["inspect", "image.sif"]).contains("L: v\n"));
    assert!(apptainer(&["inspect", "-d", "image.sif"]).contains("Bootstrap: localimage"));
}
