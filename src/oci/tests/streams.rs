//! The dialects of tar: long names, numbers, and sparse files as different writers spell them.

use super::{Header, check, layer, listing, merge};

#[test]
fn a_prefix_belongs_to_the_name_in_posix_headers_and_not_in_gnu_ones() {
    let posix = Header::new(b"name", b'0').bytes(345, b"a/prefix");
    check(&[layer().entry(posix, b"")], "/a 755 /\n/a/prefix 755 /\n/a/prefix/name 644 ``\n");
    let gnu = Header::new(b"name", b'0').bytes(257, b"ustar  \0").bytes(345, b"12345670123\0");
    check(&[layer().entry(gnu, b"")], "/name 644 ``\n");
}

#[test]
fn long_names_come_in_entries_before() {
    let long = "d".repeat(90) + "/" + &"f".repeat(90);
    let name = format!("{long}\0");
    let gnu = layer().entry(Header::new(b"././@LongLink", b'L').octal(124, 12, name.len() as u64), name.as_bytes());
    let pax = layer().records(&[("path", long.as_bytes())]);
    for before in [gnu, pax] {
        let (merged, _) = merge(&[before.file("cut", b"x").stream()]).unwrap();
        assert_eq!(listing(&merged), format!("/{} 755 /\n/{long} 644 `x`\n", "d".repeat(90)));
    }
    let target = "t".repeat(180);
    let name = format!("{target}\0");
    let link = layer().entry(Header::new(b"././@LongLink", b'K').octal(124, 12, name.len() as u64), name.as_bytes());
    check(&[link.symlink("l", "cut")], &format!("/l 777 -> {target}\n"));
}

#[test]
fn numbers_too_large_for_octal_digits_are_binary() {
    let header = Header::new(b"f", b'0')
        .bytes(108, &[0x80, 0, 0, 0, 0, 0x1e, 0x84, 0x80])
        .bytes(136, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
    let (merged, _) = merge(&[layer().entry(header, b"").stream()]).unwrap();
    let tree = &merged.tree;
    let f = tree.inode(tree.child(tree.root(), b"f").unwrap());
    assert_eq!((f.uid, f.mtime), (2_000_000, -2));
}

#[test]
fn digits_stand_between_blanks_or_zeros() {
    let header = Header::new(b"f", b'0').bytes(100, b" 755 \0\0\0").bytes(124, b"         3 \0");
    check(&[layer().entry(header, b"abc")], "/f 755 `abc`\n");
}

#[test]
fn archives_without_a_magic_mark_directories_by_name() {
    let old = |name: &[u8]| Header::new(name, 0).bytes(257, &[0; 8]).octal(100, 8, 0o755);
    check(&[layer().entry(old(b"d/"), b"").entry(old(b"d/f"), b"")], "/d 755 /\n/d/f 755 ``\n");
}

#[test]
fn a_stream_may_end_without_its_zeros_and_go_on_behind_them() {
    let stream = layer().file("f", b"x").stream();
    let (merged, _) = merge(&[stream[..1024].to_vec()]).unwrap();
    assert_eq!(listing(&merged), "/f 644 `x`\n");
    // The padding of the last file may be missing too, but nothing of the file.
    let (merged, _) = merge(&[stream[..513].to_vec()]).unwrap();
    assert_eq!(listing(&merged), "/f 644 `x`\n");
    assert!(merge(&[stream[..512].to_vec()]).is_err());
    let (merged, _) = merge(&[[stream, b"whatever".repeat(1000)].concat()]).unwrap();
    assert_eq!(listing(&merged), "/f 644 `x`\n");
}

#[test]
fn sparse_files_are_read_in_all_spellings() {
    let expected = "/s 644 `ab\0\0\0c`\n";
    // PAX 0.0: pairs of records.
    let records = [
        ("GNU.sparse.size", b"6".as_slice()),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"5"),
        ("GNU.sparse.numbytes", b"1"),
    ];
    check(&[layer().records(&records).file("s", b"abc")], expected);
    // PAX 1.0: the map before the data.
    let records = [
        ("GNU.sparse.major", b"1".as_slice()),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.realsize", b"6"),
    ];
    let mut data = b"2\n0\n2\n5\n1\n".to_vec();
    data.resize(512, 0);
    data.extend(b"abc");
    check(&[layer().records(&records).file("GNUSparseFile.1/s", &data)], expected);
    // GNU's own: rows in the header and in blocks behind it.
    let header = Header::new(b"s", b'S')
        .bytes(257, b"ustar  \0")
        .octal(124, 12, 3)
        .octal(386, 12, 0)
        .octal(398, 12, 2)
        .octal(483, 12, 6)
        .bytes(482, &[1]);
    let more = Header([0; 512]).octal(0, 12, 5).octal(12, 12, 1);
    let data = [more.0.as_slice(), b"abc"].concat();
    check(&[layer().entry(header, &data).file("after", b"")], &format!("/after 644 ``\n{expected}"));
}
