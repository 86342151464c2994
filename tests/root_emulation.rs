//! Root without a range of ids: scripts run in a user namespace that maps the caller alone, and see what root would see.
//!
//! Each runs in a process forked for it, as the launcher does it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid};
use sifu::remembered::{Journal, read};
use sifu::root_emulation::run;
use sifu::tree::{Options, Owners, from_directory};
use starter::paths::HostPath;
use starter::trapped::{Installed, Scope, install_listener};

use crate::need::{BUSYBOX, FUSE, MUSL, Need, ORDINARY, PYTHON, SIFU, USERNS, lacks};
use crate::support::{Output, Scratch, busybox_image, busybox_root, sifu, static_busybox};

/// A directory in which scripts are run as root who is none.
struct Emulated {
    scratch: Scratch,
}

impl Emulated {
    fn new() -> Self {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path().join("work")).expect("a directory");
        Self { scratch }
    }

    fn work(&self) -> std::path::PathBuf {
        self.scratch.path().join("work")
    }

    fn records(&self) -> HostPath {
        HostPath::new(self.scratch.path().join("records"))
    }

    /// Runs `script` in the directory; gives what it says on both streams.
    fn run(&self, script: &str) -> String {
        let path = self.scratch.path().join("output");
        let output = File::create(&path).expect("a file");
        let work = self.work();
        let child = starter::sys::fork_child(|| {
            let error = enter_and_execute(&work, &self.records(), &output, script);
            let _ = std::io::Write::write_all(&mut &output, format!("{error}\n").as_bytes());
            125
        });
        let ended = end_of(Pid::from_raw(child.expect("a process")));
        let said = fs::read_to_string(path).expect("its output");
        assert!(!matches!(ended, WaitStatus::Exited(_, 125)), "the script could not be started: {said}");
        said
    }
}

/// Becomes the script; returns why it can't.
fn enter_and_execute(work: &Path, records: &HostPath, output: &File, script: &str) -> String {
    let enter = || -> Result<(), Box<dyn std::error::Error>> {
        let (uid, gid) = (geteuid(), getegid());
        let (launcher, control) = UnixStream::pair()?;
        let journal = Journal::open(records)?;
        starter::sys::fork_child(|| run(control.into(), journal, Scope::Everything))?;
        unshare(CloneFlags::CLONE_NEWUSER)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        nix::sys::prctl::set_no_new_privs()?;
        match install_listener(launcher.as_fd(), Scope::Everything)? {
            Installed::Here => Ok(()),
            Installed::Already => Err("emulated already".into()),
        }
    };
    if let Err(error) = enter() {
        return error.to_string();
    }
    let streams = (output.try_clone().expect("a descriptor"), output.try_clone().expect("a descriptor"));
    Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(work)
        .stdout(streams.0)
        .stderr(streams.1)
        .exec()
        .to_string()
}

fn end_of(child: Pid) -> WaitStatus {
    let start = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("a child") {
            WaitStatus::StillAlive if start.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(2));
            }
            status => return status,
        }
    }
}

fn check_with(needs: &[Need], script: &str, expected: &str) {
    if lacks(&[USERNS]) || lacks(needs) {
        return;
    }
    assert_eq!(Emulated::new().run(script), expected, "{script}");
}

fn check(script: &str, expected: &str) {
    check_with(&[], script, expected);
}

#[test]
fn a_file_given_away_is_seen_so_under_every_name() {
    check(
        "touch f; chown 33:34 f; ln f g; mv f h; stat -c '%u:%g %h' g h; ls -ln g | cut -d' ' -f3,4",
        "33:34 2\n33:34 2\n33 34\n",
    );
    check(
        "touch f; ln -s f l; chown -h 7:8 l; stat -c %u:%g l; stat -Lc %u:%g l; chown 5 l; stat -c %u f",
        "7:8\n0:0\n5\n",
    );
    check("mkdir d; chown 33:33 d; cd d; touch ../f; chown :9 ../d/../f; stat -c %u:%g . ../f", "33:33\n0:9\n");
}

#[test]
fn a_file_that_gets_the_number_of_another_does_not_get_its_owner() {
    check("for i in 1 2 3 4 5; do touch f; stat -c %u:%g f; chown 33:34 f; rm f; done", &"0:0\n".repeat(5));
}

#[test]
fn a_change_of_owner_takes_the_set_user_id_bit() {
    check("touch f; chown 33 f; chmod 4755 f; stat -c %a f; chown 34 f; stat -c %a f", "4755\n755\n");
}

#[test]
fn what_cannot_be_changed_says_so() {
    check("chown 33 missing", "chown: cannot access 'missing': No such file or directory\n");
    let refused = "chown: changing ownership of '/etc/passwd': Operation not permitted\n";
    check_with(&[ORDINARY], "chown 33 /etc/passwd", refused);
}

#[test]
fn device_nodes_are_seen_as_such() {
    check(
        "mknod -m 666 n c 1 3; mknod -m 600 b b 8 17; stat -c '%F %t,%T %a' n b; test -c n; echo $?; mknod p p; stat -c %F p",
        "character special file 1,3 666\nblock special file 8,11 600\n0\nfifo\n",
    );
    check("umask 027; mknod n c 1 3; stat -c %a n; mknod n c 1 3", "640\nmknod: n: File exists\n");
}

#[test]
fn an_archive_keeps_owners_and_devices() {
    check(
        "mkdir d; touch d/f; mknod d/n c 1 3; chown 5:6 d/f; chown 7 d; tar cf t d; rm -r d; tar xf t; stat -c '%n %u:%g %F' d d/*",
        "d 7:0 directory\nd/f 5:6 regular empty file\nd/n 0:0 character special file\n",
    );
}

#[test]
fn a_process_that_gave_up_root_does_not_get_it_back() {
    const SCRIPT: &str = r#"
import os
os.setgroups([1, 2]); os.setresgid(34, 34, 34); os.setresuid(33, 33, 33)
print(os.getresuid(), os.getresgid(), os.getgroups())
for attempt in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([]), lambda: os.seteuid(0)):
    try: attempt(); print('allowed')
    except PermissionError: print('refused')
"#;
    let expected = "(33, 33, 33) (34, 34, 34) [1, 2]\nrefused\nrefused\nrefused\nrefused\n";
    check_with(&[PYTHON], &format!("python3 -c \"{SCRIPT}\""), expected);
    let back = "import os; os.seteuid(33); print(os.getresuid()); os.seteuid(0); print(os.getresuid())";
    check_with(&[PYTHON], &format!("python3 -c '{back}'"), "(0, 33, 0)\n(0, 0, 0)\n");
}

#[test]
fn a_child_whose_parent_has_ended_is_who_its_parent_was() {
    const SCRIPT: &str = "import os, time\n\
        os.setuid(33)\n\
        if os.fork() == 0:\n\
        \x20 if os.fork() == 0:\n\
        \x20   time.sleep(0.1); os.execlp('id', 'id', '-u')\n\
        \x20 os._exit(0)\n\
        os.wait(); time.sleep(0.5)";
    check_with(&[PYTHON], &format!("python3 -c \"{SCRIPT}\""), "33\n");
}

#[test]
fn files_belong_to_whoever_makes_them() {
    let script = "setpriv --reuid 33 --regid 34 --clear-groups sh -c 'touch f; mkdir d; ln -s x l; echo a > f; cat f'; \
                  stat -c '%n %u:%g %a' d f l; rm -r d f";
    check(script, "a\nd 33:34 755\nf 33:34 644\nl 33:34 777\n");
    check(
        "mkdir d; chown :50 d; chmod 2775 d; touch d/a; mkdir d/b; stat -c '%n %u:%g %a' d/a d/b",
        "d/a 0:50 644\nd/b 0:50 2755\n",
    );
}

#[test]
fn who_is_not_root_gives_nothing_away() {
    let as_user = |script: &str| format!("setpriv --reuid 33 --regid 34 --clear-groups sh -c '{script}'");
    check(&as_user("touch f; chown 0 f 2>&1 | sed s/.*://; chgrp 34 f && echo own"), " Operation not permitted\nown\n");
    check(&as_user("mknod n c 1 3 2>&1 | sed s/.*://"), " Operation not permitted\n");
}

#[test]
fn attributes_of_root_are_remembered() {
    const SCRIPT: &str = r#"
import os
cap = bytes.fromhex('0100000200040000000000000000000000000000')
open('f', 'w').close(); os.symlink('f', 'l')
os.setxattr('f', 'security.capability', cap)
os.setxattr('l', 'trusted.a', b'1')
os.setxattr('l', 'trusted.b', b'2', follow_symlinks=False)
print(os.getxattr('f', 'security.capability') == cap)
print(sorted(n for n in os.listxattr('f') if not n.startswith('security.s')), os.listxattr('l', follow_symlinks=False))
os.removexattr('f', 'trusted.a')
for name, flags in (('trusted.a', os.XATTR_REPLACE), ('security.capability', os.XATTR_CREATE)):
    try: os.setxattr('f', name, b'', flags)
    except OSError as e: print(e.strerror)
os.chown('f', 33, 33)
print('security.capability' in os.listxattr('f'))
"#;
    let expected = "True\n['security.capability', 'trusted.a'] ['trusted.b']\nNo data available\nFile exists\nFalse\n";
    check_with(&[PYTHON], &format!("python3 -c \"{SCRIPT}\""), expected);
}

#[test]
fn programs_without_libraries_are_served_too() {
    if lacks(&[USERNS, BUSYBOX]) {
        return;
    }
    let busybox = static_busybox().expect("the test asked for it");
    let script = "B touch f; B chown 33:34 f; B stat -c '%u %g' f; B mknod n c 1 3; B ls -ln n | B sed 's/ .*//'";
    let script = script.replace("B ", &format!("{} ", busybox.display()));
    assert_eq!(Emulated::new().run(&script), "33 34\ncrw-r--r--\n");
}

#[test]
fn programs_of_another_c_library_are_served_too() {
    if lacks(&[USERNS, MUSL]) {
        return;
    }
    let emulated = Emulated::new();
    let source = emulated.scratch.file(
        "who.c",
        "#include <stdio.h>\n#include <sys/stat.h>\n#include <unistd.h>\n\
         int main() { struct stat s; chown(\"f\", 33, 34); stat(\"f\", &s); printf(\"%d:%d\", s.st_uid, s.st_gid);\n\
         setgid(5); setuid(6); printf(\" %d:%d\\n\", getuid(), getgid()); }\n",
    );
    let program = emulated.work().join("who");
    let compiled = Command::new("musl-gcc").arg("-o").arg(&program).arg(source).status().expect("the compiler runs");
    assert!(compiled.success());
    assert_eq!(emulated.run("touch f; ./who"), "33:34 6:5\n");
}

#[test]
fn below_another_root_names_mean_what_they_mean_there() {
    if lacks(&[USERNS, BUSYBOX]) {
        return;
    }
    let emulated = Emulated::new();
    let root = emulated.work().join("root");
    fs::create_dir_all(root.join("bin")).expect("directories");
    fs::copy(static_busybox().expect("the test asked for it"), root.join("bin/busybox")).expect("a copy");
    let script = "/usr/sbin/chroot root /bin/busybox sh -c '>/f; busybox ln -s /f /l; busybox chown 33 /l; busybox stat -c %u /f'; \
                  touch f; stat -c %u f root/f";
    assert_eq!(emulated.run(&script.replace(" busybox ", " /bin/busybox ")), "33\n0\n33\n");
}

#[test]
fn an_image_gets_what_was_remembered() {
    if lacks(&[USERNS]) {
        return;
    }
    let emulated = Emulated::new();
    emulated.run("touch f; chown 33:34 f; mknod -m 600 n c 1 3; mkdir d; chown 5 d; touch gone; chown 6 gone; rm gone; touch new");
    // A later run goes on with what an earlier one left.
    let said = emulated.run("stat -c '%u:%g %F' f n; chown :9 f; ln f g");
    assert_eq!(said, "33:34 regular empty file\n0:0 character special file\n");
    let work = emulated.work();
    let node = fs::symlink_metadata(work.join("n")).expect("a file");
    assert!(!node.file_type().is_char_device() && node.uid() == geteuid().as_raw());
    let remembered = Arc::new(read(&emulated.records()).expect("records"));
    let options = Options { owners: Owners::AllRoot, remembered };
    let tree = from_directory(&HostPath::new(&work), &options).expect("a tree").tree;
    let mut found = String::new();
    for (name, inode) in tree.children(tree.root()) {
        let inode = tree.inode(inode);
        let kind = format!("{:?}", inode.body);
        let kind = kind.split('(').next().unwrap_or_default();
        found += &format!("{} {}:{} {:o} {kind}\n", String::from_utf8_lossy(name), inode.uid, inode.gid, inode.mode);
    }
    let expected = "d 5:0 755 Directory\nf 33:9 644 File\ng 33:9 644 File\nn 0:0 600 CharDevice\nnew 0:0 644 File\n";
    assert_eq!(found, expected);
}

#[test]
fn the_supervisor_ends_with_the_last_process() {
    if lacks(&[USERNS]) {
        return;
    }
    let emulated = Emulated::new();
    emulated.run("touch f; chown 33 f");
    // Only the supervisor still has the records open.
    let own = emulated.records();
    let start = Instant::now();
    while holds(own.as_path()) {
        assert!(start.elapsed() < Duration::from_secs(10), "the supervisor is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a script by `sifu exec --fakeroot` without a range of ids.
fn fakeroot(options: &[&str], image: &Path, script: &str) -> Output {
    let mut words: Vec<&OsStr> = ["exec", "--fakeroot", "--ignore-subuid"].iter().map(OsStr::new).collect();
    words.extend(options.iter().map(OsStr::new));
    words.extend([image.as_os_str(), OsStr::new("sh"), OsStr::new("-c"), OsStr::new(script)]);
    sifu(&words).run()
}

#[test]
fn a_sandbox_remembers_from_one_start_to_the_next() {
    if lacks(&[ORDINARY, USERNS, BUSYBOX, SIFU]) {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path().join("box");
    busybox_root(&root);
    fs::create_dir(root.join(".singularity.d")).expect("a directory");
    fakeroot(&["--writable"], &root, "touch /f; busybox chown 33:34 /f").quiet_success();
    assert_eq!(fakeroot(&["--writable"], &root, "stat -c %u:%g /f").quiet_success(), "33:34");
    let file = fs::metadata(root.join("f")).expect("the file");
    assert_eq!((file.uid(), file.gid()), (geteuid().as_raw(), getegid().as_raw()), "the caller's on the host");
    // Without a place for it, memory has to do, and that is said.
    fs::remove_dir_all(root.join(".singularity.d")).expect("removed");
    let output = fakeroot(&["--writable"], &root, "busybox chown 5 /f; stat -c %u /f");
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), "5\n"), "{output:?}");
    assert!(output.stderr.contains("remembered until the container ends"), "{output:?}");
}

#[test]
fn an_image_under_a_layer_can_be_given_away_until_the_end() {
    if lacks(&[ORDINARY, USERNS, FUSE, BUSYBOX, SIFU]) {
        return;
    }
    let script = "busybox chown 33:34 /etc/passwd; echo x >> /etc/passwd; stat -c %u:%g /etc/passwd";
    assert_eq!(fakeroot(&["--writable-tmpfs"], busybox_image(), script).quiet_success(), "33:34");
    let output = fakeroot(&[], busybox_image(), "busybox chown 33 /etc/passwd");
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
}

#[test]
fn without_the_emulation_there_is_only_root() {
    if lacks(&[ORDINARY, USERNS, FUSE, BUSYBOX, SIFU]) {
        return;
    }
    let script = "cd /tmp; id -u; touch sifu-f$$; busybox chown 33 sifu-f$$ || echo refused; rm sifu-f$$";
    let output = fakeroot(&["--ignore-fakeroot-command"], busybox_image(), script);
    assert_eq!(output.stdout, "0\nrefused\n", "{output:?}");
}

/// Whether some process has `path` open.
fn holds(path: &Path) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .flat_map(|process| fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten())
        .any(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|target| target == path))
}
