//! Layers that were made to lead astray: sifu makes of them what umoci unpacks as root, or the table says why not.

#[path = "../../src/oci/tests/write.rs"]
pub mod write;

use super::push::{check_equal, dump_of_directory, dump_of_image, without_own};
use super::real::Layout;
use crate::need::{ROOT, SIFU, UMOCI, lacks};
use crate::support::{Scratch, sifu};
use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};
use write::{Header, Layer};

/// What the two make of an image.
enum Verdict {
    /// The same tree, entry by entry.
    Same,
    /// Neither takes it, and sifu says this.
    Neither(&'static str),
    /// umoci takes it, and sifu says this.
    UmociAlone(&'static str),
    /// umoci fails, and sifu's tree has these lines: paths, and what follows them as far as it is said here.
    SifuAlone(&'static [&'static str]),
    /// The trees differ in these lines, umoci's and sifu's.
    Differ(&'static [&'static str], &'static [&'static str]),
}

use Verdict::{Differ, Neither, Same, SifuAlone, UmociAlone};

fn layer() -> Layer {
    Layer::default()
}

/// What a conversion would add if it were not there.
fn skeleton() -> Layer {
    let names = ["dev", "etc", "home", "proc", "root", "sys", "var"];
    let named = names.iter().fold(layer().directory("./", 0o755), |layer, name| layer.directory(name, 0o755));
    let with_tmp = named.directory("tmp", 0o1777).directory("var/tmp", 0o1777);
    with_tmp.file("etc/hosts", b"").file("etc/resolv.conf", b"")
}

/// Something to lead astray.
fn base() -> Layer {
    let names = ["d", "d/sub", "c", "opq", "opq/deep"];
    let named = names.iter().fold(skeleton(), |layer, name| layer.directory(name, 0o755));
    named
        .file("d/x", b"x of d")
        .file("d/sub/y", b"y of d")
        .file("c/x", b"x of c")
        .file("opq/a", b"a")
        .file("opq/deep/b", b"b")
        .file("f", b"f")
        .symlink("l", "c")
        .symlink("abs", "/c")
        .symlink("up", "../../../../c")
        .symlink("gone", "no/where")
}

/// A path of names of 49 bytes.
fn long(length: usize) -> String {
    (0..length / 50).map(|number| format!("{number:049}")).collect::<Vec<_>>().join("/")
}

/// Lays `upper` over the base, and compares what becomes of it.
#[track_caller]
fn over_base(what: &str, upper: Layer, verdict: &Verdict) {
    check(what, &[base(), upper], verdict);
}

#[track_caller]
fn check(what: &str, layers: &[Layer], verdict: &Verdict) {
    let scratch = Scratch::new();
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let place = scratch.path().join("layout");
    let streams: Vec<Vec<u8>> = layers.iter().map(Layer::stream).collect();
    let unpacked = Layout::of_layers(place.clone(), "x", &streams).try_unpack("x", &scratch.path().join("unpacked"));
    let uri = format!("oci:{}:x", place.display());
    let pull = sifu(&["pull", "--disable-cache", "x.sif", &uri]).env("HOME", scratch.path());
    let pulled = pull.current_dir(scratch.path()).run();
    let ours = || {
        assert_eq!(pulled.code, Some(0), "{what}: {pulled:?}");
        without_own(&dump_of_image(&scratch.path().join("x.sif")))
    };
    let theirs = || without_own(&dump_of_directory(unpacked.as_ref().expect(what)));
    let refused = |why: &str| assert!(pulled.clean_failure().contains(why), "{what}: {pulled:?}");
    match verdict {
        Same => {
            let [theirs, ours] = without_clock(&theirs(), &ours(), began);
            check_equal(&theirs, &ours);
        }
        Neither(why) => {
            assert!(unpacked.is_err(), "{what}: umoci takes it");
            refused(why);
        }
        UmociAlone(why) => {
            assert!(unpacked.is_ok(), "{what}: {unpacked:?}");
            refused(why);
        }
        SifuAlone(lines) => {
            assert!(unpacked.is_err(), "{what}: umoci takes it");
            let ours = ours();
            let has = |line: &str| ours.lines().any(|ours| ours.starts_with(line));
            assert!(lines.iter().all(|line| has(line)), "{what}: {ours}");
        }
        Differ(in_theirs, in_ours) => {
            let [theirs, ours] = without_clock(&theirs(), &ours(), began);
            let only = |one: &str, other: &str| -> Vec<String> {
                one.lines().filter(|line| !other.lines().any(|other| other == *line)).map(str::to_owned).collect()
            };
            assert_eq!((only(&theirs, &ours), only(&ours, &theirs)), (owned(in_theirs), owned(in_ours)), "{what}");
        }
    }
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

/// Both dumps without the times of directories that no entry of the layer is for: umoci leaves there what the clock says,
/// sifu takes the time of the entry that needed them, so that one image always gives one file.
fn without_clock(theirs: &str, ours: &str, began: u64) -> [String; 2] {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let of_clock = |line: &&str| {
        let words = words(line);
        words.get(1).is_some_and(|kind| kind == "directory") && words[4].parse::<u64>().is_ok_and(|time| time >= began)
    };
    let paths: HashSet<String> = theirs.lines().filter(of_clock).map(|line| words(line)[0].clone()).collect();
    [theirs, ours].map(|dump| {
        let line = |line: &str| {
            let mut words = words(line);
            if paths.contains(&words[0]) && words[1] == "directory" {
                words[4] = "-".to_owned();
            }
            words.join(" ") + "\n"
        };
        dump.lines().map(line).collect()
    })
}

#[test]
fn names_lead_nowhere_but_into_the_image() {
    if lacks(&[SIFU, ROOT, UMOCI]) {
        return;
    }
    over_base("`..`", layer().file("d/../../../c/dots", b"1"), &Same);
    over_base("`..` beyond the root", layer().file("../../../escaped", b"1"), &Same);
    over_base("absolute names", layer().file("/d/absolute", b"1").symlink("/d/link", "/etc/hosts"), &Same);
    over_base("a parent that is a link", layer().file("l/new", b"1"), &Same);
    over_base("a parent that is an absolute link", layer().file("abs/new", b"1"), &Same);
    over_base("a parent that is a link upwards", layer().file("up/new", b"1"), &Same);
    over_base("a parent that is a dangling link", layer().file("gone/new", b"1"), &Same);
    over_base("a directory over a link", layer().directory("l", 0o700).file("l/new", b"1"), &Same);
    let circle = layer().symlink("a", "b").symlink("b", "a").file("a/x", b"1");
    over_base("links in a circle", circle, &Neither("lead in a circle"));
    over_base("a parent that is a file", layer().file("f/below", b"1"), &Neither("one of its parents is no directory"));
    over_base("the root as a file", layer().file(".", b"1"), &Neither("must be a directory"));
    over_base("the root as a link", layer().symlink("./", "/etc"), &Neither("must be a directory"));
    let unusual = layer().entry(Header::new(b"b\xe4d", b'0'), b"").entry(Header::new(b"n\nl\t", b'0'), b"");
    over_base("names that are not UTF-8", unusual.records(&[("path", b"\xff\xfe")]).file("x", b""), &Same);
    over_base("a long name of PAX", layer().records(&[("path", long(900).as_bytes())]).file("x", b"1"), &Same);
    let name = format!("{}\0", long(900));
    let gnu = layer().entry(Header::new(b"././@LongLink", b'L').octal(124, 12, name.len() as u64), name.as_bytes());
    over_base("a long name of GNU", gnu.file("x", b"1"), &Same);
    over_base("a long target", layer().records(&[("linkpath", long(3000).as_bytes())]).symlink("ll", "x"), &Same);
    let longest = layer().records(&[("path", long(6000).as_bytes())]).file("x", b"1");
    over_base("a path that no kernel takes", longest, &Neither("more than 4095 bytes"));
    let component = layer().records(&[("path", "n".repeat(256).as_bytes())]).file("x", b"1");
    over_base("a name that no directory takes", component, &Neither("cannot be the name of a file"));
}

#[test]
fn entries_replace_what_is_there() {
    if lacks(&[SIFU, ROOT, UMOCI]) {
        return;
    }
    let twice = layer().file("twice", b"first").file("twice", b"second").directory("twice", 0o700);
    over_base("one name for several", twice, &Same);
    over_base(
        "one directory several times",
        layer().directory("e", 0o700).file("e/x", b"1").directory("e", 0o711),
        &Same,
    );
    over_base("a file over a directory", layer().file("d", b"now a file"), &Same);
    over_base("a link over a directory", layer().symlink("d", "c"), &Same);
    let back = || layer().directory("d", 0o700).file("d/z", b"z");
    check("a directory that was a file between", &[base(), layer().file("d", b"now a file"), back()], &Same);
    over_base("the same in one layer", layer().file("d", b"file").directory("d", 0o700).file("d/z", b"z"), &Same);
    let noted = || layer().records(&[("SCHILY.xattr.user.note", b"n")]);
    over_base("attributes beside a whiteout", noted().file("noted", b"1").file("d/.wh.x", b""), &Same);
    let hidden = layer().records(&[("SCHILY.xattr.user.note", b"w")]).file("d/.wh.x", b"");
    over_base("attributes of a whiteout", hidden, &Same);
    check("attributes of what was replaced", &[base(), noted().file("f", b"1"), layer().file("f", b"2")], &Same);
    let again = layer().directory("d", 0o755);
    check("attributes of a directory that comes again", &[base(), noted().directory("d", 0o755), again], &Same);
    let device = |name: &[u8], kind, major, minor| Header::new(name, kind).octal(329, 8, major).octal(337, 8, minor);
    let devices = layer().entry(device(b"null", b'3', 1, 3), b"").entry(device(b"disk", b'4', 8, 0o421), b"");
    over_base("devices", devices.entry(Header::new(b"fifo", b'6'), b""), &Same);
    // Below an overlay such a device would remove the file, on whatever machine the image runs.
    let removes = layer().entry(device(b"f", b'3', 0, 0), b"");
    const MINE: &str =
        "/f file 0644 0:0 7 size=1 sha256=252f10c83610ebca1a059c0bae8255eba2f95be4d1d7bcfa89d7248a82d9f111";
    over_base(
        "a device that overlays take for a whiteout",
        removes,
        &Differ(&["/f char 0644 0:0 7 device=0:0"], &[MINE]),
    );
    over_base("set-id bits", layer().entry(Header::new(b"suid", b'0').octal(100, 8, 0o106_755), b""), &Same);
}

#[test]
fn hard_links_reach_files_of_the_image_alone() {
    if lacks(&[SIFU, ROOT, UMOCI]) {
        return;
    }
    over_base("a link out of the tree", layer().hard_link("h", "../../../../etc/passwd"), &Neither("is not there"));
    over_base("an absolute link", layer().hard_link("h", "/c/x"), &Same);
    over_base("a link through a symbolic one", layer().hard_link("h", "l/x"), &Same);
    over_base("a link to a symbolic one", layer().hard_link("h", "l"), &Same);
    over_base("a link to a directory", layer().hard_link("h", "d"), &Neither("which is a directory"));
    let later = layer().hard_link("h", "later").file("later", b"1");
    over_base("a link to what comes later", later, &Neither("is not there"));
    let removed = layer().file("c/.wh.x", b"").hard_link("h", "c/x");
    over_base("a link to what was removed", removed, &Neither("is not there"));
    // umoci goes by the order in the stream. By the image specification a layer's whiteouts are about the layers below it,
    // so that what they remove is not there for any of its entries.
    let before = layer().hard_link("h", "c/x").file("c/.wh.x", b"");
    over_base("a link to what is removed afterwards", before, &UmociAlone("is not there"));
    let layers = [base(), layer().hard_link("h", "c/x"), layer().file("c/.wh.x", b"")];
    check("a link to what the next layer removes", &layers, &Same);
    // What archivers write for a file that they were given twice; umoci removes the file before it links to it.
    over_base("a link to itself", layer().hard_link("f", "f"), &SifuAlone(&["/f file 0644 0:0 7 size=1 "]));
}

#[test]
fn whiteouts_remove_what_lower_layers_brought_and_nothing_else() {
    if lacks(&[SIFU, ROOT, UMOCI]) {
        return;
    }
    over_base("a parent", layer().file("d/new", b"1").file(".wh.d", b""), &Same);
    over_base("a parent, first", layer().file(".wh.d", b"").file("d/new", b"1"), &Same);
    over_base("the layer's own file", layer().file("own", b"1").file(".wh.own", b""), &Same);
    over_base("the layer's own file and one below", layer().file("f", b"new").file(".wh.f", b""), &Same);
    over_base("through a link", layer().file("l/.wh.x", b""), &Same);
    over_base("what is not there", layer().file("d/.wh.nothing", b"").file("nowhere/.wh.x", b""), &Same);
    over_base("as a directory", layer().directory("d/.wh.x", 0o755), &Same);
    over_base("as a parent", layer().file("d/.wh.x/inner", b"1"), &Same);
    let opaque = |name: &str| layer().file(&format!("{name}/.wh..wh..opq"), b"");
    over_base("all, before siblings", opaque("opq").file("opq/new", b"1"), &Same);
    over_base("all, after siblings", layer().file("opq/new", b"1").file("opq/.wh..wh..opq", b""), &Same);
    over_base("all, after deep siblings", layer().file("opq/deep/new", b"1").file("opq/.wh..wh..opq", b""), &Same);
    over_base("all, through a link", opaque("l"), &Same);
    check("all, twice", &[base(), opaque("opq").file("opq/n", b""), opaque("opq")], &Same);
    let skeleton_again = skeleton().file(".wh..wh..opq", b"");
    over_base("all of the root", skeleton_again, &Same);
    over_base("what aufs keeps for itself", layer().file(".wh..wh.plnk", b"").file("d/.wh..wh.aufs", b""), &Same);
    // Names that remove nothing, `.` and `..`: umoci takes the directory itself away, and then misses it.
    for name in [".wh.", "d/.wh.", "d/.wh..", "d/.wh..."] {
        over_base(name, layer().file(name, b""), &SifuAlone(&["/ directory 0755", "/d directory 0755", "/d/x file"]));
    }
}

#[test]
fn what_two_readers_could_take_for_different_things_is_refused() {
    if lacks(&[SIFU, ROOT, UMOCI]) {
        return;
    }
    // One of the sizes hides what the other shows: whoever looks by one reader sees another image than whoever runs it.
    let header = |size| Header::new(b"outer", b'0').octal(124, 12, size);
    let smuggled = &layer().file("hidden", b"content").stream()[..1024];
    for (size, record) in [(0, b"2048".as_slice()), (1024, b"0")] {
        let upper = layer().records(&[("size", record)]).entry(header(size), smuggled);
        over_base("two sizes", upper, &UmociAlone("states two sizes"));
    }
    let records =
        [("GNU.sparse.map", b"0,2,5,1".as_slice()), ("GNU.sparse.size", b"6"), ("GNU.sparse.numblocks", b"2")];
    over_base("a sparse file of PAX 0.1", layer().records(&records).file("s", b"abc"), &Same);
    let mut data = b"2\n0\n2\n5\n1\n".to_vec();
    data.resize(512, 0);
    data.extend(b"abc");
    let records = [("GNU.sparse.major", b"1".as_slice()), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"s")];
    let records = [&records[..], &[("GNU.sparse.realsize", b"6")]].concat();
    over_base("a sparse file of PAX 1.0", layer().records(&records).file("GNUSparseFile.1/s", &data), &Same);
    let old = Header::new(b"s", b'S').bytes(257, b"ustar  \0").octal(124, 12, 3).octal(398, 12, 2).octal(483, 12, 6);
    let more = Header([0; 512]).octal(0, 12, 5).octal(12, 12, 1);
    let upper = layer().entry(old.octal(386, 12, 0).bytes(482, &[1]), &[more.0.as_slice(), b"abc"].concat());
    // umoci knows no entries of this type, which GNU tar writes by itself for such files.
    over_base(
        "a sparse file of GNU",
        upper,
        &SifuAlone(&[
            "/s file 0644 0:0 7 size=6 sha256=95af041a1b15a1ee5cde5345088b5c4b92b3699273937d26b37ae89d64ad78f3",
        ]),
    );
}
