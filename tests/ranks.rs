//! Ranks of a job step: they share a container, whoever comes first, whoever goes first, and leave nothing behind.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::need::{BUSYBOX, FUSE, Need, ORDINARY, SIFU, USERNS, lacks};
use crate::support::{Scratch, busybox_image, busybox_root, parent_of, processes_of, sifu_path};

/// Real root has no user namespace to share.
const START: &[Need] = &[SIFU, USERNS, FUSE, BUSYBOX, ORDINARY];

/// A rank that has told its namespaces and waits for the end of its standard input.
struct Rank {
    child: Child,
    /// User and mount namespace.
    namespaces: String,
}

/// Starts a rank of the job step called `step`; it is not waited for.
fn begin(step: &str, flags: &[&str], image: &OsString) -> Child {
    let script = "echo $(readlink /proc/self/ns/user) $(readlink /proc/self/ns/mnt); read end; exit 7";
    Command::new(sifu_path())
        .arg("exec")
        .args(flags)
        .arg(image)
        .args(["sh", "-c", script])
        .env("PMIX_NAMESPACE", step)
        .env("PMIX_SERVER_URI2", "here")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sifu can be started")
}

fn arrive(mut child: Child) -> Rank {
    let mut namespaces = String::new();
    let output = child.stdout.as_mut().expect("its output");
    BufReader::new(output).read_line(&mut namespaces).expect("a line");
    assert!(namespaces.contains("mnt:"), "`{namespaces}`");
    Rank { child, namespaces }
}

fn rank(step: &str, flags: &[&str]) -> Rank {
    arrive(begin(step, flags, &busybox_image().into()))
}

impl Rank {
    fn end(mut self) {
        self.child.stdin.take().expect("its input").write_all(b"\n").expect("it reads");
        let status = self.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(7), "the exit code is the rank's own");
    }
}

/// A name that no other test and no other run has.
fn step(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

#[test]
fn ranks_of_a_step_share_namespaces_and_one_server() {
    if lacks(START) {
        return;
    }
    let name = step("share");
    let image = busybox_image().into();
    let begun: Vec<Child> = (0..16).map(|_| begin(&name, &[], &image)).collect();
    let ids: BTreeSet<i32> = begun.iter().filter_map(|child| i32::try_from(child.id()).ok()).collect();
    let ranks: Vec<Rank> = begun.into_iter().map(arrive).collect();
    let namespaces: BTreeSet<&str> = ranks.iter().map(|rank| rank.namespaces.as_str()).collect();
    assert_eq!(namespaces.len(), 1, "{namespaces:?}");
    let servers =
        processes_of(&[sifu_path()]).into_iter().filter(|(pid, _)| parent_of(*pid).is_some_and(|p| ids.contains(&p)));
    assert_eq!(servers.count(), 1);
    ranks.into_iter().for_each(Rank::end);
}

#[test]
fn other_steps_other_options_and_those_who_refuse_have_their_own() {
    if lacks(START) {
        return;
    }
    let name = step("other");
    let first = rank(&name, &[]);
    for (step, flags) in
        [(step("another"), &[][..]), (name.clone(), &["--bind", "/usr:/mnt"]), (name.clone(), &["--no-sharens"])]
    {
        let other = rank(&step, flags);
        assert_ne!(other.namespaces, first.namespaces, "{step} {flags:?}");
        other.end();
    }
    let again = rank(&name, &[]);
    assert_eq!(again.namespaces, first.namespaces);
    again.end();
    first.end();
}

#[test]
fn each_rank_keeps_what_is_its_own() {
    if lacks(START) {
        return;
    }
    let name = step("own");
    let script = "echo $PMIX_RANK $SHADE $(pwd) $(umask) $(readlink /proc/self/ns/mnt); read end; exit $PMIX_RANK";
    let ranks: Vec<(String, Child)> = (0..8)
        .map(|number| {
            // Some differ in their number alone, some in more.
            let (shade, directory, mask) = match number {
                5 => ("red", "/", "0022"),
                6 => ("blue", "/tmp", "0022"),
                7 => ("blue", "/", "0077"),
                _ => ("blue", "/", "0022"),
            };
            let child = Command::new("sh")
                .args(["-c", &format!("umask {mask}; exec \"$@\""), "sh"])
                .arg(sifu_path())
                .arg("exec")
                .arg(busybox_image())
                .args(["sh", "-c", script])
                .envs([("PMIX_NAMESPACE", name.as_str()), ("PMIX_SERVER_URI2", "here"), ("SHADE", shade)])
                .env("PMIX_RANK", number.to_string())
                // Slurm sets this one for the first task of a node alone.
                .envs((number == 0).then_some(("TMPDIR", "/tmp")))
                .current_dir(directory)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("sifu can be started");
            (format!("{number} {shade} {directory} {mask}"), child)
        })
        .collect();
    let mut namespaces = BTreeSet::new();
    let mut left = Vec::new();
    for (number, (expected, child)) in ranks.into_iter().enumerate() {
        let Rank { child, namespaces: said } = arrive(child);
        let (own, namespace) = said.trim_end().rsplit_once(' ').expect("words");
        assert_eq!(own, expected);
        namespaces.insert(namespace.to_owned());
        left.push((number, child));
    }
    assert_eq!(namespaces.len(), 1, "{namespaces:?}");
    for (number, mut child) in left {
        drop(child.stdin.take());
        assert_eq!(child.wait().expect("it ends").code(), i32::try_from(number).ok());
    }
}

#[test]
fn an_image_that_is_exchanged_is_another() {
    if lacks(START) {
        return;
    }
    let (name, scratch) = (step("exchanged"), Scratch::new());
    let path = scratch.path().join("a.sif");
    let copy = || {
        let new = scratch.path().join("new.sif");
        std::fs::copy(busybox_image(), &new).expect("a copy");
        std::fs::rename(&new, &path).expect("its place");
    };
    copy();
    let first = arrive(begin(&name, &[], &path.clone().into()));
    copy();
    let other = arrive(begin(&name, &[], &path.clone().into()));
    assert_ne!(first.namespaces, other.namespaces);
    first.end();
    other.end();
}

#[test]
fn announced_ranks_that_never_come_are_not_waited_for_long() {
    if lacks(START) {
        return;
    }
    let name = step("announced");
    let mut ids = BTreeSet::new();
    for _ in 0..2 {
        let mut rank = Command::new(sifu_path())
            .arg("exec")
            .arg(busybox_image())
            .arg("true")
            .envs([("PMIX_NAMESPACE", name.as_str()), ("PMIX_SERVER_URI2", "here"), ("OMPI_COMM_WORLD_SIZE", "64")])
            .spawn()
            .expect("sifu can be started");
        ids.insert(rank.id().cast_signed());
        assert!(rank.wait().expect("it ends").success());
    }
    check_that_no_server_is_left(&ids);
}

#[test]
fn a_directory_is_shared_too() {
    if lacks(START) {
        return;
    }
    let (name, scratch) = (step("directory"), Scratch::new());
    busybox_root(scratch.path());
    let image: OsString = scratch.path().into();
    let (one, two) = (arrive(begin(&name, &[], &image)), arrive(begin(&name, &[], &image)));
    assert_eq!(one.namespaces, two.namespaces);
    one.end();
    two.end();
}

#[test]
fn the_first_rank_may_be_killed_and_others_still_come() {
    if lacks(START) {
        return;
    }
    let name = step("killed");
    let mut first = rank(&name, &[]);
    let second = rank(&name, &[]);
    first.child.kill().expect("it can be killed");
    first.child.wait().expect("it ends");
    // Its end has to reach the server.
    std::thread::sleep(Duration::from_millis(50));
    let third = rank(&name, &[]);
    assert_eq!(third.namespaces, second.namespaces);
    second.end();
    third.end();
    let alone = rank(&name, &[]);
    alone.end();
}

#[test]
fn groups_that_come_and_are_killed_leave_no_process() {
    if lacks(START) {
        return;
    }
    let image = busybox_image().into();
    let mut ids = BTreeSet::new();
    for round in 0..25 {
        let name = step(&format!("group{round}"));
        let mut begun: Vec<Child> = (0..8).map(|_| begin(&name, &[], &image)).collect();
        ids.extend(begun.iter().filter_map(|child| i32::try_from(child.id()).ok()));
        for (number, child) in begun.iter_mut().enumerate() {
            // Some before they have come, some after.
            if (round + number) % 3 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
    }
    check_that_no_server_is_left(&ids);
}

/// Waits for the servers of the processes `ids` to go.
#[track_caller]
fn check_that_no_server_is_left(ids: &BTreeSet<i32>) {
    // A server whose parent is gone has another one; those of a test are known by what they serve alone, so all of
    // this program's servers without a living parent have to go.
    let end = Instant::now() + Duration::from_secs(10);
    let left = || {
        processes_of(&[sifu_path()])
            .into_iter()
            .filter(|(pid, _)| parent_of(*pid).is_some_and(|p| ids.contains(&p) || p == 1))
            .count()
    };
    while left() > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(left(), 0);
}

/// What lies where everybody can write and has a name of ours; the tests' own scratch files aside.
fn litter() -> BTreeSet<PathBuf> {
    let entries = ["/dev/shm", "/tmp"].into_iter().filter_map(|directory| std::fs::read_dir(directory).ok());
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("sifu") && !name.starts_with("sifu-test")
    };
    entries.flatten().flatten().map(|entry| entry.path()).filter(ours).collect()
}

#[test]
fn a_thousand_starts_in_groups_leave_nothing() {
    if lacks(START) {
        return;
    }
    let image = busybox_image().into();
    let before = litter();
    let mut ids = BTreeSet::new();
    for round in 0..125 {
        let name = step(&format!("thousand{round}"));
        let mut group: Vec<Child> = (0..8).map(|_| begin(&name, &[], &image)).collect();
        for rank in &mut group {
            ids.insert(rank.id().cast_signed());
            // Whoever comes first reads the end of its input first, and the others may still be on their way.
            drop(rank.stdin.take());
        }
        for rank in &mut group {
            assert_eq!(rank.wait().expect("it ends").code(), Some(7));
        }
    }
    check_that_no_server_is_left(&ids);
    assert!(litter().is_subset(&before), "{:?}", litter().difference(&before));
}

#[test]
fn ranks_that_start_a_second_later_join_and_outlive_the_first() {
    if lacks(START) {
        return;
    }
    let name = step("later");
    let first = rank(&name, &[]);
    std::thread::sleep(Duration::from_secs(1));
    let later: Vec<Rank> = (0..3).map(|_| rank(&name, &[])).collect();
    let namespaces = first.namespaces.clone();
    assert!(later.iter().all(|rank| rank.namespaces == namespaces));
    first.end();
    std::thread::sleep(Duration::from_millis(200));
    let last = rank(&name, &[]);
    assert_eq!(last.namespaces, namespaces);
    later.into_iter().for_each(Rank::end);
    last.end();
}
