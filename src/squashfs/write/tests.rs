//! Images of trees in memory.

use super::*;
use crate::tree::{Attributes, Content, Source, SourceId};
use std::io::{Cursor, Read};
use std::sync::Arc;

fn attributes(mode: u16) -> Attributes {
    Attributes { mode, uid: 0, gid: 0, mtime: 1_700_000_000, xattrs: Vec::new() }
}

fn options(compression: Compression, threads: usize) -> PackOptions {
    let threads = NonZeroUsize::new(threads).unwrap();
    PackOptions { compression, block_bytes: BLOCK_BYTES, threads, time: 1_700_000_000 }
}

/// A file system with all that the format distinguishes in how data lie: whole blocks, tails, zeros, duplicates.
fn sample() -> Tree {
    let mut tree = Tree::new(attributes(0o755));
    let mut noise = 1_u64;
    let mut random = |length: usize| -> Arc<[u8]> {
        let mut next = || {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise as u8
        };
        (0..length).map(|_| next()).collect()
    };
    let twice = random(BLOCK_BYTES * 10 + 77);
    let contents = [
        twice.clone(),
        vec![0; BLOCK_BYTES * 3 + 5].into(),
        random(BLOCK_BYTES),
        b"a tail".as_slice().into(),
        twice,
        vec![b'x'; BLOCK_BYTES * 40 + 1].into(),
        Vec::new().into(),
    ];
    let directory = tree.insert(tree.root(), b"many", attributes(0o755), Body::Directory).unwrap();
    for (index, content) in contents.into_iter().enumerate() {
        let body = Body::File(Content::Bytes(content));
        tree.insert(tree.root(), format!("file{index}").as_bytes(), attributes(0o644), body).unwrap();
    }
    for index in 0..3000 {
        let body = Body::File(Content::Bytes(format!("{index}").repeat(index % 70).into_bytes().into()));
        tree.insert(directory, format!("a file of many {index}").as_bytes(), attributes(0o600), body).unwrap();
    }
    tree
}

fn image(tree: &Tree, options: &PackOptions) -> (Vec<u8>, Summary) {
    let mut out = Cursor::new(Vec::new());
    let summary = write(tree, options, &mut out).unwrap();
    (out.into_inner(), summary)
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let tree = sample();
    for compression in [Compression::None, Compression::GZIP, Compression::Lz4, Compression::ZSTD] {
        let one = image(&tree, &options(compression, 1));
        for threads in [2, 7] {
            assert!(one == image(&tree, &options(compression, threads)), "{compression:?}, {threads} threads");
        }
    }
}

#[test]
fn the_digest_follows_the_content() {
    let summary = |byte: u8| {
        let mut tree = Tree::new(attributes(0o755));
        let body = Body::File(Content::Bytes(vec![byte; 5].into()));
        tree.insert(tree.root(), b"file", attributes(0o644), body).unwrap();
        image(&tree, &options(Compression::None, 1)).1
    };
    assert_eq!(summary(1), summary(1));
    assert_ne!(summary(1).digest, summary(2).digest);
}

#[test]
fn duplicates_are_stored_once_and_zeros_not_at_all() {
    let (bytes, summary) = image(&sample(), &options(Compression::None, 2));
    assert!(summary.duplicate_bytes > 10 * BLOCK_BYTES as u64, "{summary:?}");
    // What is left: eleven random blocks, forty of `x`, small files and names.
    assert!(bytes.len() < 57 * BLOCK_BYTES, "{}", bytes.len());
}

#[test]
fn an_image_begins_where_its_file_stands_and_ends_at_a_page() {
    let tree = sample();
    let alone = image(&tree, &options(Compression::GZIP, 2)).0;
    let mut out = Cursor::new(vec![b'.'; 8192 + 17]);
    out.set_position(8192);
    let summary = write(&tree, &options(Compression::GZIP, 2), &mut out).unwrap();
    assert_eq!(out.position(), 8192 + summary.size_bytes);
    assert_eq!(summary.size_bytes % PADDING_BYTES, 0);
    assert!(out.get_ref()[8192..] == alone);
    assert_eq!(out.get_ref()[..8192], [b'.'; 8192]);
}

#[test]
fn block_sizes_that_the_format_lacks_are_refused() {
    for block_bytes in [0, 1, 2048, 100_000, 2 << 20] {
        let options = PackOptions { block_bytes, ..options(Compression::GZIP, 1) };
        let error = write(&sample(), &options, &mut Cursor::new(Vec::new())).unwrap_err();
        assert!(matches!(error, WriteError::BlockSize { bytes } if bytes == block_bytes), "{error}");
    }
}

#[test]
fn progress_of_each_stage_grows_to_its_total() {
    let mut told: Vec<Progress> = Vec::new();
    let mut watch = |progress| told.push(progress);
    write_watched(&sample(), &options(Compression::ZSTD, 3), &mut Cursor::new(Vec::new()), &mut watch).unwrap();
    for stage in [Stage::Hashing, Stage::Comparing, Stage::Packing] {
        let of_stage: Vec<&Progress> = told.iter().filter(|progress| progress.stage == stage).collect();
        assert!(of_stage.is_sorted_by_key(|progress| progress.done_bytes));
        assert!(of_stage.iter().all(|progress| progress.done_bytes <= progress.total_bytes));
    }
    let last = told.last().unwrap();
    assert_eq!((last.stage, last.done_bytes), (Stage::Packing, last.total_bytes));
}

/// Content that is not as long as was said, or can't be had.
struct Odd(Result<&'static [u8], io::ErrorKind>);

impl Source for Odd {
    fn open(&self, _: u64, offset_bytes: u64) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(&self.0?[offset_bytes as usize..]))
    }
    fn name(&self, key: u64) -> String {
        format!("odd/{key}")
    }
}

fn check_odd(source: Odd, files: u64, expected: &str) {
    let mut tree = Tree::new(attributes(0o755));
    let source: SourceId = tree.add_source(Arc::new(source)).unwrap();
    for key in 0..files {
        let body = Body::File(Content::Stored { source, key, size_bytes: 5 });
        tree.insert(tree.root(), &[b'a' + key as u8], attributes(0o644), body).unwrap();
    }
    let error = write(&tree, &options(Compression::GZIP, 2), &mut Cursor::new(Vec::new())).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_file_that_changed_is_an_error_with_its_name() {
    let changed = "odd/0 changed while it was packed: it no longer holds 5 bytes";
    check_odd(Odd(Ok(b"1234")), 1, changed);
    check_odd(Odd(Ok(b"123456")), 1, changed);
    check_odd(Odd(Ok(b"1234")), 2, changed);
}

#[test]
fn a_file_that_can_not_be_read_is_an_error_with_its_name() {
    check_odd(Odd(Err(io::ErrorKind::PermissionDenied)), 1, "cannot read odd/0: permission denied");
    check_odd(Odd(Err(io::ErrorKind::PermissionDenied)), 2, "cannot read odd/0: permission denied");
}

/// A file with room for so many bytes.
struct Full(Cursor<Vec<u8>>, usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.position() as usize + bytes.len() > self.1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Full {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn a_full_file_system_is_an_error_wherever_it_fills() {
    let tree = sample();
    let whole = image(&tree, &options(Compression::None, 2)).0.len();
    for room in [0, 96, 200_000, whole / 2, whole - 5000, whole - 1] {
        let error = write(&tree, &options(Compression::None, 2), &mut Full(Cursor::default(), room)).unwrap_err();
        assert!(matches!(&error, WriteError::Output { .. }), "{error}");
        assert_eq!(error.hints().len(), 1);
    }
}

mod identity {
    //! Tree to image to tree changes nothing that the format can hold.

    use super::*;
    use crate::squashfs::{Bytes, Reader};
    use crate::tree::Xattr;
    use proptest::prelude::*;

    fn again(bytes: Vec<u8>) -> Tree {
        let size_bytes = bytes.len() as u64;
        Reader::open(Bytes(bytes), 0, size_bytes).unwrap().into_tree("image").unwrap()
    }

    fn check(tree: &Tree, compression: Compression) {
        check_blocks(tree, compression, BLOCK_BYTES);
    }

    fn check_blocks(tree: &Tree, compression: Compression, block_bytes: usize) {
        let (bytes, _) = image(tree, &PackOptions { block_bytes, ..options(compression, 2) });
        let (expected, actual) = (tree.dump().unwrap(), again(bytes).dump().unwrap());
        for (expected, actual) in expected.lines().zip(actual.lines()) {
            assert_eq!(expected, actual, "{compression:?}, blocks of {block_bytes} bytes");
        }
        assert_eq!(expected.lines().count(), actual.lines().count());
    }

    const ALL: [Compression; 5] =
        [Compression::None, Compression::GZIP, Compression::Lz4, Compression::XZ, Compression::ZSTD];

    #[test]
    fn of_files_of_many_sizes() {
        for compression in ALL {
            check(&sample(), compression);
        }
    }

    #[test]
    fn in_blocks_of_every_size() {
        let (least, most) = BLOCK_BYTES_RANGE;
        for shift in least.trailing_zeros()..=most.trailing_zeros() {
            for compression in [Compression::None, Compression::Lz4] {
                check_blocks(&sample(), compression, 1 << shift);
            }
        }
        check_blocks(&sample(), Compression::XZ, least);
        check_blocks(&sample(), Compression::XZ, most);
    }

    #[test]
    fn of_nothing_but_a_root() {
        for compression in ALL {
            check(&Tree::new(attributes(0o1777)), compression);
        }
    }

    #[test]
    fn of_a_directory_with_an_index() {
        let mut tree = Tree::new(attributes(0o755));
        for index in 0..40_000 {
            let name = format!("{index:0200}");
            tree.insert(tree.root(), name.as_bytes(), attributes(0o644), Body::Fifo).unwrap();
        }
        let (bytes, _) = image(&tree, &options(Compression::ZSTD, 2));
        let size_bytes = bytes.len() as u64;
        let reader = Reader::open(Bytes(bytes), 0, size_bytes).unwrap();
        let root = reader.inode(reader.root()).unwrap();
        for index in (0..40_000).step_by(1111).chain([39_999]) {
            let found = reader.find(&root, format!("{index:0200}").as_bytes()).unwrap();
            assert!(found.is_some(), "{index}");
        }
        assert!(reader.find(&root, format!("{:0200}", 40_000).as_bytes()).unwrap().is_none());
        assert_eq!(reader.into_tree("image").unwrap().dump().unwrap(), tree.dump().unwrap());
    }

    #[test]
    fn of_directories_within_directories() {
        let mut tree = Tree::new(attributes(0o755));
        let mut directory = tree.root();
        for _ in 0..1000 {
            directory = tree.insert(directory, b"d", attributes(0o700), Body::Directory).unwrap();
        }
        check(&tree, Compression::GZIP);
    }

    /// What a random tree is made of: each step adds something below one of the directories that are there.
    #[derive(Clone, Debug)]
    struct Step {
        directory: prop::sample::Index,
        name: Vec<u8>,
        attributes: Attributes,
        what: What,
    }

    #[derive(Clone, Debug)]
    enum What {
        Directory,
        /// Blocks of zeros or not, then a tail; equal seeds give equal files.
        File {
            blocks: Vec<bool>,
            tail: usize,
            seed: u8,
        },
        Symlink(Vec<u8>),
        Device {
            block: bool,
            rdev: u32,
        },
        Fifo,
        Socket,
        Link(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let xattr = ("(user|trusted|security)\\.[a-z]{1,20}", prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(name, value)| Xattr { name: name.into_bytes().into(), value: value.into() });
        let xattrs = prop_oneof![
            3 => Just(Vec::new()),
            1 => prop::collection::vec(xattr, 1..4).prop_map(|mut xattrs| {
                xattrs.sort();
                xattrs.dedup_by(|a, b| a.name == b.name);
                xattrs
            }),
        ];
        let id = prop_oneof![3 => Just(0), 1 => 0_u32..5, 1 => any::<u32>()];
        let attributes = (0_u16..0o10000, id.clone(), id, 0_i64..1 << 32, xattrs)
            .prop_map(|(mode, uid, gid, mtime, xattrs)| Attributes { mode, uid, gid, mtime, xattrs });
        let what = prop_oneof![
            3 => Just(What::Directory),
            6 => (prop::collection::vec(any::<bool>(), 0..2), 0..BLOCK_BYTES, 0_u8..3)
                .prop_map(|(blocks, tail, seed)| What::File { blocks, tail, seed }),
            6 => (0_usize..200, 0_u8..3).prop_map(|(tail, seed)| What::File { blocks: Vec::new(), tail, seed }),
            2 => prop::collection::vec(1..=u8::MAX, 1..300).prop_map(What::Symlink),
            1 => (any::<bool>(), any::<u32>()).prop_map(|(block, rdev)| What::Device { block, rdev }),
            1 => Just(What::Fifo),
            1 => Just(What::Socket),
            2 => any::<prop::sample::Index>().prop_map(What::Link),
        ];
        let name = prop::collection::vec((1..=u8::MAX).prop_filter("no slash", |b| *b != b'/'), 1..=255);
        let step = (any::<prop::sample::Index>(), name, attributes, what)
            .prop_map(|(directory, name, attributes, what)| Step { directory, name, attributes, what });
        prop::collection::vec(step, 0..60)
    }

    fn build(steps: Vec<Step>) -> Tree {
        let mut tree = Tree::new(attributes(0o755));
        let mut directories = vec![tree.root()];
        let mut others = Vec::new();
        for Step { directory, name, attributes, what } in steps {
            let directory = *directory.get(&directories);
            if tree.child(directory, &name).is_some() || name == b"." || name == b".." {
                continue;
            }
            let body = match what {
                What::Directory => Body::Directory,
                What::File { blocks, tail, seed } => {
                    let filled = |filled: bool| if filled { seed.wrapping_add(1) } else { 0 };
                    let mut content: Vec<u8> = blocks.into_iter().flat_map(|b| vec![filled(b); BLOCK_BYTES]).collect();
                    content.extend((0..tail).map(|at| (at / 7) as u8 ^ seed));
                    Body::File(Content::Bytes(content.into()))
                }
                What::Symlink(target) => Body::Symlink(target.into()),
                What::Device { block: true, rdev } => Body::BlockDevice(rdev.into()),
                What::Device { block: false, rdev } => Body::CharDevice(rdev.into()),
                What::Fifo => Body::Fifo,
                What::Socket => Body::Socket,
                What::Link(to) => {
                    if !others.is_empty() {
                        tree.link(directory, &name, *to.get(&others)).unwrap();
                    }
                    continue;
                }
            };
            let is_directory = matches!(body, Body::Directory);
            let id = tree.insert(directory, &name, attributes, body).unwrap();
            if is_directory { directories.push(id) } else { others.push(id) }
        }
        tree
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn of_any_tree(steps in steps(), compression in prop::sample::select(ALL.to_vec())) {
            check(&build(steps), compression);
        }
    }
}
