//! `sifu exec`: what the command sees, and what its caller gets back.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::need::{BUSYBOX, CORPUS, FUSE, Need, ORDINARY, SIFU, SUBUID, USERNS, is_root, lacks};
use crate::support::{Output, Scratch, busybox_image, busybox_root, shared, sifu, sifu_path};

const START: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX];

/// Runs `command` by a shell of the busybox image, with `flags` before the image.
fn in_busybox(flags: &[&str], command: &str) -> Output {
    let mut arguments: Vec<OsString> = vec!["exec".into()];
    arguments.extend(flags.iter().map(OsString::from));
    arguments.push(busybox_image().into());
    arguments.extend(["sh", "-c", command].map(OsString::from));
    sifu(&arguments).run()
}

/// Expects `command` to print `expected` and nothing else to be said.
#[track_caller]
fn check(flags: &[&str], command: &str, expected: &str) {
    if lacks(START) {
        return;
    }
    let output = in_busybox(flags, command);
    assert_eq!((output.stdout.trim_end(), output.stderr.as_str()), (expected, ""), "{flags:?} {command}: {output:?}");
}

#[test]
fn a_command_prints_what_it_prints_and_sifu_nothing() {
    check(&[], "echo out", "out");
}

#[test]
fn the_exit_code_is_the_command_s_own() {
    if lacks(START) {
        return;
    }
    for code in [0, 1, 7, 126, 255] {
        assert_eq!(in_busybox(&[], &format!("exit {code}")).code, Some(code));
    }
}

#[test]
fn a_signal_that_ends_the_command_ends_sifu() {
    if lacks(START) {
        return;
    }
    assert_eq!(in_busybox(&[], "kill -TERM $$").signal, Some(15));
    assert_eq!(in_busybox(&[], "kill -KILL $$").signal, Some(9));
}

#[test]
fn standard_input_reaches_the_command() {
    if lacks(START) {
        return;
    }
    let arguments = [OsString::from("exec"), busybox_image().into(), "wc".into(), "-c".into()];
    assert_eq!(sifu(&arguments).input(&"x".repeat(200_000)).run().quiet_success(), "200000");
}

#[test]
fn the_command_has_the_process_id_that_the_caller_started() {
    if lacks(START) {
        return;
    }
    let arguments = [OsString::from("exec"), busybox_image().into(), "sh".into(), "-c".into(), "echo $$".into()];
    let mut command = sifu(&arguments).command();
    let child = command.stdout(std::process::Stdio::piped()).spawn().expect("sifu can be started");
    let pid = child.id();
    let output = child.wait_with_output().expect("sifu ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), pid.to_string());
}

#[test]
fn the_command_has_no_new_privileges_and_no_capabilities() {
    check(&[], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1");
    if lacks(&[ORDINARY]) {
        return;
    }
    let sets = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000";
    check(&[], "grep -E 'Cap(Inh|Prm|Eff)' /proc/self/status", sets);
    check(&[], "grep -E 'CapAmb' /proc/self/status", "CapAmb:\t0000000000000000");
}

#[test]
fn the_command_inherits_what_its_caller_opened_for_it_and_no_way_out() {
    if lacks(START) {
        return;
    }
    // The shell that stands between has what this process leaves open, and in addition a file and a directory.
    let list = |opened: &str, command: &str| {
        let script = format!("{opened}; exec {command} /proc/self/fd");
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().expect("sh runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let inside = format!("{} exec {} ls", sifu_path().display(), busybox_image().display());
    let of_caller = list("exec 5</dev/null", "ls");
    assert_eq!(list("exec 5</dev/null", &inside), of_caller);
    assert!(of_caller.contains("5"));
    assert_eq!(list("exec 5</dev/null 6</", &inside), of_caller);
}

/// Prints the mount points that lack `option`. Field 6 of the table has a mount's own options.
fn mounts_without(option: &str) -> String {
    let test = format!("case ,$options, in *,{option},*) ;; *) echo $point ;; esac");
    format!("while read -r id parent device root point options rest; do {test}; done </proc/self/mountinfo")
}

#[test]
fn every_mount_is_nosuid() {
    check(&[], &mounts_without("nosuid"), "");
}

#[test]
fn every_mount_but_those_of_devices_is_nodev() {
    check(&[], &format!("{} | grep -v '^/dev'", mounts_without("nodev")), "");
}

#[test]
fn the_root_of_an_image_is_read_only() {
    if lacks(START) {
        return;
    }
    let output = in_busybox(&[], "touch /bin/new");
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
}

#[test]
fn the_user_is_the_caller() {
    let id = nix::unistd::geteuid().to_string();
    check(&[], "id -u", &id);
    check(&["--fakeroot"], "id -u", "0");
}

#[test]
fn fakeroot_with_a_range_maps_more_than_one_id() {
    if lacks(START) || lacks(&[SUBUID, ORDINARY]) {
        return;
    }
    check(&["--fakeroot"], "wc -l </proc/self/uid_map", "2");
}

#[test]
fn a_bind_shows_a_directory_of_the_host() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    scratch.file("inside/file", "text of the host\n");
    let source = scratch.path().join("inside");
    check(&["--bind", &format!("{}:/mnt/there:ro", source.display())], "cat /mnt/there/file", "text of the host");
    let output = in_busybox(&["--bind", &format!("{}:/mnt/there:ro", source.display())], "touch /mnt/there/new");
    assert!(output.code != Some(0) && !source.join("new").exists(), "{output:?}");
    check(&["--bind", &format!("{}:/mnt/there", source.display())], "touch /mnt/there/new", "");
    assert!(source.join("new").exists());
}

#[test]
fn a_bind_does_not_follow_the_image_s_links_out_of_it() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    let (root, victim) = (scratch.path().join("root"), scratch.path().join("victim"));
    busybox_root(&root);
    fs::create_dir(&victim).expect("a directory");
    symlink(&victim, root.join("absolute")).expect("a link");
    symlink("../../../../../../../../../..".to_owned() + &victim.display().to_string(), root.join("relative"))
        .expect("a link");
    scratch.file("source/file", "bound\n");
    let source = scratch.path().join("source");
    for link in ["absolute", "relative"] {
        let spec = format!("{}:/{link}", source.display());
        let output =
            sifu(&[OsString::from("exec"), "--bind".into(), spec.into(), root.clone().into(), "true".into()]).run();
        // Refused or bound below the root: both are safe. What matters is that nothing came to be outside.
        assert!(output.signal.is_none(), "{output:?}");
        assert_eq!(fs::read_dir(&victim).expect("the victim").count(), 0, "{link} moved a bind outside");
    }
}

#[test]
fn a_sandbox_directory_runs() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    busybox_root(&root);
    let run = |flags: &[&str], command: &str| {
        let mut arguments: Vec<OsString> = vec!["exec".into()];
        arguments.extend(flags.iter().map(OsString::from));
        arguments.extend([root.clone().into(), "sh".into(), "-c".into(), command.into()]);
        sifu(&arguments).run()
    };
    assert_eq!(run(&[], "echo $((6*7))").quiet_success(), "42");
    assert_ne!(run(&[], "touch /new").code, Some(0), "read-only unless asked for");
    assert_eq!(run(&["--writable"], "touch /new").code, Some(0));
    assert!(root.join("new").exists());
}

#[test]
fn an_image_without_a_shell_runs() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    let (root, image) = (scratch.path().join("root"), scratch.path().join("noshell.sif"));
    busybox_root(&root);
    for entry in fs::read_dir(root.join("bin")).expect("the links").flatten() {
        if !["busybox", "echo"].contains(&entry.file_name().to_string_lossy().as_ref()) {
            fs::remove_file(entry.path()).expect("a link can be removed");
        }
    }
    scratch.file("root/.singularity.d/env/90-environment.sh", "export GREETING=\"hello $USER\"\n");
    let built = sifu(&[OsString::from("build"), image.clone().into(), root.into()]).run();
    assert_eq!(built.code, Some(0), "{built:?}");
    assert_eq!(
        sifu(&[OsString::from("exec"), image.into(), "echo".into(), "runs".into()]).run().quiet_success(),
        "runs"
    );
}

#[test]
fn a_command_that_is_not_there_is_named() {
    if lacks(START) {
        return;
    }
    let output = sifu(&[OsString::from("exec"), busybox_image().into(), "no-such-command".into()]).run();
    assert!(output.clean_failure().contains("no-such-command"), "{output:?}");
}

#[test]
fn an_image_that_is_not_there_is_named() {
    if lacks(&[SIFU]) {
        return;
    }
    let output = sifu(&["exec", "/no/such/image.sif", "true"]).run();
    assert_eq!(output.code, Some(255));
    assert!(output.clean_failure().contains("/no/such/image.sif"), "{output:?}");
}

#[test]
fn a_file_that_is_no_image_is_refused() {
    if lacks(&[SIFU]) {
        return;
    }
    let scratch = Scratch::new();
    let text = scratch.file("image.sif", "this is a text file\n");
    let output = sifu(&[OsString::from("exec"), text.into(), "true".into()]).run();
    output.clean_failure();
    assert_eq!(output.code, Some(255));
}

#[test]
fn the_image_is_removed_while_it_runs_and_goes_on() {
    if lacks(START) {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path().join("copy.sif");
    fs::copy(busybox_image(), &image).expect("a copy");
    let script = "read go; exec cat /etc/group";
    let arguments = [OsString::from("exec"), image.clone().into(), "sh".into(), "-c".into(), script.into()];
    let mut command = sifu(&arguments).command();
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("sifu can be started");
    std::thread::sleep(std::time::Duration::from_millis(300));
    fs::remove_file(&image).expect("the image can be removed");
    child.stdin.take().expect("its input").write_all(b"go\n").expect("it reads");
    let output = child.wait_with_output().expect("sifu ends");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("root:"), "{output:?}");
}

#[test]
fn environment_variables_reach_the_command_with_their_precedence() {
    if lacks(START) {
        return;
    }
    let run = |variables: &[(&str, &str)]| {
        let script = "echo $GREETING";
        let mut call = sifu(&[OsString::from("exec"), busybox_image().into(), "sh".into(), "-c".into(), script.into()]);
        for (name, value) in variables {
            call = call.env(name, value);
        }
        call.run().quiet_success().to_owned()
    };
    assert_eq!(run(&[("GREETING", "plain")]), "plain");
    assert_eq!(run(&[("GREETING", "plain"), ("APPTAINERENV_GREETING", "ours")]), "ours");
    assert_eq!(run(&[("SIFUENV_GREETING", "ours")]), "ours");
}

#[test]
fn the_valid_images_of_the_corpus_run() {
    if lacks(START) || lacks(&[CORPUS]) {
        return;
    }
    let corpus = shared().join("sif-corpus");
    let check = |image: &str, command: &[&str], expected: &str| {
        let mut arguments: Vec<OsString> = vec!["exec".into(), corpus.join(image).into()];
        arguments.extend(command.iter().map(OsString::from));
        assert_eq!(sifu(&arguments).run().quiet_success(), expected, "{image}");
    };
    for image in ["corrupt/base.sif", "corrupt/base-raw.sif", "corrupt/signed.sif"] {
        check(image, &["/bin/ok"], "ok");
    }
    for image in ["apptainer/busybox-signed-pgp.sif", "singularity/busybox_amd64.sif"] {
        check(image, &["echo", "runs"], "runs");
    }
    for image in ["apptainer/def-full.sif", "apptainer/def-full-signed-pgp.sif", "apptainer/oci.sif"] {
        check(image, &["sh", "-c", "echo runs"], "runs");
    }
}

#[test]
fn images_that_can_not_be_opened_yet_are_refused_by_name() {
    if lacks(&[SIFU, CORPUS]) {
        return;
    }
    let refused = |image: &Path, word: &str| {
        let output = sifu(&[OsString::from("exec"), image.into(), "true".into()]).run();
        let said = output.clean_failure().to_lowercase();
        assert!(said.contains(word), "{}: {said}", image.display());
    };
    let corpus = shared().join("sif-corpus");
    refused(&corpus.join("apptainer/enc-pass.sif"), "encrypt");
    refused(&corpus.join("apptainer/enc-rsa.sif"), "encrypt");
    refused(&corpus.join("oci-sif/docker-manifest.sif"), "oci");
}

#[test]
fn a_second_pass_as_root_works_too() {
    if !is_root() {
        return;
    }
    check(&[], "id -u; test -w /proc/self/comm && echo writable", "0\nwritable");
}
