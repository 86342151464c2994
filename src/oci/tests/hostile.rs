//! Layers that were made to break something: each gives an error that names the place, and nothing else.

use super::{Header, Layer, base, check, layer, listing, merge, refused};

#[test]
fn names_that_lead_out_stay_within_the_image() {
    check(
        &[layer()
            .file("../../../tmp/escaped", b"1")
            .file("/abs/file", b"2")
            .file("./dot/../dot/file", b"3")
            .symlink("esc", "/tmp")
            .file("esc/through", b"4")],
        "/abs 755 /\n/abs/file 644 `2`\n/dot 755 /\n/dot/file 644 `3`\n/esc 777 -> /tmp\n/tmp 755 /\n/tmp/escaped 644 `1`\n/tmp/through 644 `4`\n",
    );
    let (merged, _) = merge(&[layer().file("a/../../b", b"").file("c", b"").stream()]).unwrap();
    assert_eq!(merged.notices.names_with_dots, 1);
}

#[test]
fn hard_links_reach_nothing_but_files_of_the_image() {
    refused(
        &[base(), layer().hard_link("h", "../../../etc/passwd")],
        "cannot apply `h` of layer 2: a hard link to `etc/passwd`, which is not there",
    );
    refused(
        &[base(), layer().hard_link("h", "d")],
        "cannot apply `h` of layer 2: a hard link to `d`, which is a directory",
    );
    refused(&[layer().hard_link("h", "/")], "cannot apply `h` of layer 1: a hard link to `/`, which is a directory");
    // A target inside of what the link replaces.
    refused(
        &[base(), layer().hard_link("c", "c/x")],
        "cannot apply `c` of layer 2: a hard link to `c/x`, which is not there",
    );
}

#[test]
fn the_root_can_be_nothing_but_a_directory() {
    for name in [".", "/", "./", "a/.."] {
        let expected = format!("cannot apply `{name}` of layer 1: the root of an image must be a directory");
        refused(&[layer().symlink(name, "/etc")], &expected);
    }
}

#[test]
fn parents_that_are_files_and_links_in_circles_are_refused() {
    refused(&[base(), layer().file("f/b", b"")], "cannot apply `f/b` of layer 2: one of its parents is no directory");
    refused(
        &[layer().symlink("l", "l/l").file("l/x", b"")],
        "cannot apply `l/x` of layer 1: the symbolic links in its path lead in a circle",
    );
}

#[test]
fn two_sizes_for_one_file_are_refused() {
    let smuggled = layer().file("hidden", b"content").stream();
    let header = |size| Header::new(b"outer", b'0').octal(124, 12, size);
    refused(
        &[layer().records(&[("size", b"2048")]).entry(header(0), &smuggled[..1024])],
        "layer 1 is no tar archive that can be used: the entry at byte 1024 states two sizes: 0 in its header, 2048 in its \
         PAX record",
    );
    // Equal ones are no question, nor is a size too large for the header, which then ends too early here.
    let (merged, _) = merge(&[layer().records(&[("size", b"3")]).file("ok", b"yes").stream()]).unwrap();
    assert_eq!(listing(&merged), "/ok 644 `yes`\n");
}

fn broken(bytes: &[u8], expected: &str) {
    let error = merge(&[bytes.to_vec()]).err().expect("this stream is refused").to_string();
    let expected = format!("layer 1 is no tar archive that can be used: {expected}");
    assert_eq!(error, expected);
}

#[test]
fn a_stream_that_is_cut_anywhere_is_refused_unless_between_entries() {
    let whole = layer().directory("d", 0o755).records(&[("path", b"d/long")]).file("d/short", b"content").stream();
    for length in 0..whole.len() {
        let cut = merge(&[whole[..length].to_vec()]);
        // Between entries: at the start, behind the directory and the file, whose padding counts for nothing; or behind
        // the zeros that end the archive.
        let may_end = [0, 512].contains(&length) || (2055..=2560).contains(&length) || length >= 3072;
        assert_eq!(cut.is_ok(), may_end, "{length}");
    }
}

#[test]
fn any_changed_byte_of_a_header_is_noticed() {
    let whole = layer().file("name", b"content").stream();
    for at in 0..512 {
        let mut changed = whole.clone();
        changed[at] ^= 0x01;
        // The byte behind the checksum's digits is no part of it.
        if !(154..156).contains(&at) {
            assert!(merge(&[changed]).is_err(), "{at}");
        }
    }
}

#[test]
fn records_that_cannot_be_taken_apart_are_refused() {
    for (records, why) in [
        (b"no length=x\n".as_slice(), "have a wrong length"),
        (b"999 a=b\n", "have a wrong length"),
        (b"5 a=b\n", "have a wrong length"),
        (b"0 a=b\n", "have a wrong length"),
        (b"4 =\n\n", "have no name"),
        (b"6 a=bcdef", "have a wrong length"),
        (b"9999999999999999999999 a=b\n", "have no length"),
        (b"13 path=a\0bc\n", "have a name with a zero byte in it"),
    ] {
        let stream = layer().raw_records(records).file("f", b"").stream();
        let error = merge(&[stream]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.ends_with(why), "{}: {error}", records.escape_ascii());
    }
}

#[test]
fn records_for_all_files_that_name_or_size_them_are_refused() {
    let global = |bytes: &[u8]| {
        Layer::default()
            .entry(Header::new(b"g", b'g').octal(124, 12, bytes.len() as u64), bytes)
            .file("f", b"")
            .stream()
    };
    broken(
        &global(b"12 path=abc\n"),
        "the PAX records at byte 0 describe all files behind them, names or sizes among that",
    );
    let (merged, _) = merge(&[global(b"15 comment=abc\n")]).unwrap();
    assert_eq!(listing(&merged), "/f 644 ``\n");
}

#[test]
fn what_announces_an_entry_must_be_followed_by_one() {
    broken(&layer().records(&[("path", b"x")]).stream(), "it ends at byte 1024, where an entry was announced");
    let many = (0..17).fold(layer(), |layer, _| layer.records(&[("path", b"x")]));
    broken(&many.file("f", b"").stream(), "the PAX records at byte 16384 are too many for one entry");
}

#[test]
fn sizes_that_no_stream_could_have_are_no_reason_to_allocate() {
    let huge = Header::new(b"f", b'0').bytes(124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let error = merge(&[layer().entry(huge, b"").stream()]).err().unwrap().to_string();
    assert!(error.contains("ends within this file"), "{error}");
    let too_huge = Header::new(b"f", b'0').bytes(124, &[0xbf; 12]);
    broken(&layer().entry(too_huge, b"").stream(), "the header at byte 0 has a size that is no number or too large");
    let name = Header::new(b"f", b'L').octal(124, 12, 1 << 30);
    broken(&layer().entry(name, b"").stream(), "the entry at byte 0 has a name of more than 65536 bytes");
    let records = Header::new(b"f", b'x').octal(124, 12, 1 << 30);
    broken(&layer().entry(records, b"").stream(), "the entry at byte 0 has PAX records of more than 1048576 bytes");
}

#[test]
fn names_too_long_for_a_directory_and_types_of_no_layer_are_refused() {
    let long = "n".repeat(256);
    let stream = layer().records(&[("path", long.as_bytes())]).file("f", b"");
    let error = merge(&[stream.stream()]).err().unwrap().to_string();
    assert!(error.ends_with("cannot be the name of a file"), "{error}");
    broken(
        &layer().entry(Header::new(b"v", b'V'), b"").stream(),
        "the entry at byte 0 is of type `V`, which has no place in a layer",
    );
}

#[test]
fn paths_that_no_kernel_takes_are_refused_however_they_come_about() {
    let deep = |length: usize| (0..length / 100).map(|_| "d".repeat(99)).collect::<Vec<_>>().join("/");
    let expected = format!("the layers hold a path of more than 4095 bytes, below `/{}`", "d".repeat(99));
    refused(&[layer().records(&[("path", deep(5000).as_bytes())]).file("x", b"")], &expected);
    // Each name is short enough, and the link between them leads deeper.
    let through = deep(3000);
    let records = [("path", through.as_bytes())];
    let links = layer().records(&records).directory("x", 0o755).records(&[("linkpath", through.as_bytes())]);
    let below = format!("l/{}", deep(2000));
    refused(&[links.symlink("l", "x").records(&[("path", below.as_bytes())]).file("x", b"")], &expected);
    let (merged, _) = merge(&[layer().records(&[("path", deep(4000).as_bytes())]).file("x", b"").stream()]).unwrap();
    assert_eq!(listing(&merged).lines().count(), 40);
}

#[test]
fn maps_of_sparse_files_must_fit_the_data_and_holes_have_an_end() {
    let sparse = |map: &str, size: &str, data: &[u8]| {
        let records = [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())];
        layer().records(&records).file("s", data)
    };
    check(&[sparse("1,2,5,1", "7", b"abc")], "/s 644 `\0ab\0\0c\0`\n");
    for (map, size, why) in [
        ("1,2,2,1", "7", "has overlaps"),
        ("1,2,5,1", "5", "runs past the file's end"),
        ("1,2", "7", "is not as long as its data"),
        ("18446744073709551615,2,5,1", "7", "runs past the file's end"),
        ("1,2,5", "7", "has a length without an offset"),
    ] {
        let error = merge(&[sparse(map, size, b"abc").stream()]).err().unwrap().to_string();
        assert!(error.ends_with(why), "{error}");
    }
    refused(
        &[sparse("0,3", "99999999999999", b"abc")],
        "the layers hold too many bytes in holes: more than 68719476736",
    );
}
