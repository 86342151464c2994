//! Opens an image and answers what is in it. No number of the file is believed before it was checked.
//!
//! What makes the table unreadable fails the opening. What is wrong with one object is kept beside it as a
//! [`Problem`]: such an object can be listed, its data can't be had.
//!
//! Opening costs one size query and one read in the usual case: a table of 48 records behind the header ends at byte
//! 32176. Only used records are decoded.

use super::descriptor::{DESCRIPTOR_SIZE, GROUP_TAG, USED_OFFSET};
use super::header::{HEADER_SIZE, MAGIC, MAGIC_OFFSET};
use super::{
    Arch, DataType, Descriptor, FileSystem, Header, LAUNCH_LINE, MAX_DESCRIPTORS, ObjectError, OpenError,
    PartitionKind, Problem, ReadAt, RootError,
};
use std::borrow::Cow;
use std::io;

/// What the first read takes: the header and a table of 48 records in its usual place.
const FIRST_READ: usize = 4096 + 48 * DESCRIPTOR_SIZE;
/// Data are copied in pieces of this size, in bytes.
const PIECE: usize = 256 << 10;

/// Whether a file that begins with `bytes` (42 or more) calls itself SIF. Whether it is sound shows when it is opened.
pub fn is_sif(bytes: &[u8]) -> bool {
    let name = &MAGIC[..MAGIC.len() - 1];
    bytes.get(MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(name))
}

/// The length in bytes of the launch line that stands before a bare file system image, as old programs put it there.
pub fn launch_line_length(bytes: &[u8]) -> Option<usize> {
    let line = &bytes[..bytes.iter().take(256).position(|&b| b == b'\n')? + 1];
    (line.starts_with(b"#!") && line.ends_with(&LAUNCH_LINE[LAUNCH_LINE.len() - 17..])).then_some(line.len())
}

/// Where an object's data are, in bytes from the start of the file. Inside the file, unless the size is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub size: u64,
}

/// A used slot of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Index of its record in the table.
    pub slot: u32,
    pub descriptor: Descriptor,
    /// Why it must not be used, if so.
    pub problem: Option<Problem>,
}

impl Object {
    pub fn id(&self) -> u32 {
        self.descriptor.id
    }

    /// Where its data are.
    ///
    /// # Errors
    /// The object is damaged.
    pub fn extent(&self) -> Result<Extent, ObjectError> {
        let problem = match self.problem {
            Some(problem) => problem,
            None => match extent_of(&self.descriptor) {
                Ok(extent) => return Ok(extent),
                Err(problem) => problem,
            },
        };
        Err(ObjectError::Damaged { id: self.id(), problem })
    }
}

/// The root file system of an image: a partition that can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootPartition {
    pub id: u32,
    /// Its group; overlays of the same group belong to it.
    pub group: Option<u32>,
    pub fs: FileSystem,
    pub arch: Arch,
    pub extent: Extent,
}

impl RootPartition {
    /// Returns the partition if a `host` runs its programs without emulation.
    ///
    /// # Errors
    /// [`RootError::WrongArchitecture`].
    pub fn for_host(self, host: Arch) -> Result<Self, RootError> {
        if self.arch.runs_on(host) { Ok(self) } else { Err(RootError::WrongArchitecture { image: self.arch, host }) }
    }
}

/// An open image.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    size_bytes: u64,
    header: Header,
    objects: Vec<Object>,
}

impl<R: ReadAt> Reader<R> {
    /// Opens an image and checks its header, its table and every used record.
    ///
    /// # Errors
    /// Not a SIF image, another version, or a table that can't be trusted.
    pub fn open(source: R) -> Result<Self, OpenError> {
        let size_bytes = source.size().map_err(|source| OpenError::Read { what: "size", source })?;
        // No more than FIRST_READ, so it fits.
        let length = size_bytes.min(FIRST_READ as u64) as usize;
        let start = match source.in_memory(0, length) {
            Some(start) => Cow::Borrowed(start),
            None => {
                let mut start = vec![0; length];
                source.read_exact_at(&mut start, 0).map_err(|source| OpenError::Read { what: "header", source })?;
                Cow::Owned(start)
            }
        };
        let header = Header::parse(&start)?;
        let table = Table::check(&header, size_bytes)?;
        let mut objects = read_table(&source, &table, &start)?;
        drop(start);
        find_problems(&mut objects, &table, size_bytes);
        Ok(Self { source, size_bytes, header, objects })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The size of the file when it was opened, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The used slots in the order of the table, damaged ones included.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// The free slots, counted; the header's number is not believed.
    pub fn descriptors_free(&self) -> u64 {
        // The header was checked: there are at most MAX_DESCRIPTORS, and no more objects than slots.
        (self.header.descriptors_total as u64).saturating_sub(self.objects.len() as u64)
    }

    pub fn source(&self) -> &R {
        &self.source
    }

    pub fn into_source(self) -> R {
        self.source
    }

    /// The object with this id; the first of them in a damaged image that has several.
    ///
    /// # Errors
    /// The id is 0, or there is no such object.
    pub fn by_id(&self, id: u32) -> Result<&Object, ObjectError> {
        by_id(&self.objects, id)
    }

    /// The first object with this name.
    pub fn by_name(&self, name: &[u8]) -> Option<&Object> {
        self.objects.iter().find(|object| object.descriptor.name() == name)
    }

    /// The objects of a type.
    pub fn of_type(&self, data_type: DataType) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |object| object.descriptor.data_type == data_type)
    }

    /// The partition marked as the root, damaged or not, whatever it holds; `None` when none is.
    ///
    /// # Errors
    /// [`RootError::Several`].
    pub fn primary_partition(&self) -> Result<Option<&Object>, RootError> {
        let mut primaries = self.partitions(PartitionKind::PrimarySystem);
        let first = primaries.next();
        if let (Some(first), Some(second)) = (first, primaries.next()) {
            let ids = [first, second].into_iter().chain(primaries).map(Object::id).collect();
            return Err(RootError::Several { ids });
        }
        Ok(first)
    }

    /// The partitions of a kind.
    pub fn partitions(&self, kind: PartitionKind) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(move |object| object.descriptor.is_partition(kind))
    }

    /// The overlay partitions that belong to `root`: those of its group.
    pub fn overlay_partitions(&self, root: &RootPartition) -> impl Iterator<Item = &Object> {
        let group = root.group;
        self.partitions(PartitionKind::Overlay).filter(move |object| object.descriptor.group_id() == group)
    }

    /// Whether the root is an OCI image inside the SIF.
    pub fn is_oci_sif(&self) -> bool {
        self.of_type(DataType::OciRootIndex).next().is_some()
    }

    /// The root file system.
    ///
    /// # Errors
    /// There is none, several, or one that this version can't open: the error says which.
    pub fn root(&self) -> Result<RootPartition, RootError> {
        let Some(object) = self.primary_partition()? else {
            return Err(if self.is_oci_sif() { RootError::OciSif } else { RootError::None });
        };
        let id = object.id();
        let partition = object.descriptor.partition().ok_or(RootError::None)?;
        match partition.fs {
            FileSystem::Squashfs => {}
            FileSystem::Ext3 => return Err(RootError::Ext3 { id }),
            FileSystem::EncryptedSquashfs => return Err(RootError::EncryptedLuks { id }),
            FileSystem::GocryptfsSquashfs => return Err(RootError::EncryptedGocryptfs { id }),
            FileSystem::Archive | FileSystem::Raw => {
                return Err(RootError::NotAFileSystem { id, kind: partition.fs.name() });
            }
            FileSystem::Other(code) => return Err(RootError::UnknownFileSystem { id, code }),
        }
        if let Arch::Other(code) = partition.arch {
            return Err(RootError::UnknownArchitecture { id, code });
        }
        let extent = match object.extent() {
            Ok(extent) => extent,
            Err(ObjectError::Damaged { id, problem }) => return Err(RootError::Damaged { id, problem }),
            Err(_) => return Err(RootError::None),
        };
        Ok(RootPartition { id, group: object.descriptor.group_id(), fs: partition.fs, arch: partition.arch, extent })
    }

    /// Reads all of an object's data, which may be `limit_bytes` at most.
    ///
    /// # Errors
    /// The object is damaged or larger, or the medium failed.
    pub fn read(&self, object: &Object, limit_bytes: u64) -> Result<Vec<u8>, ObjectError> {
        let (id, extent) = (object.id(), object.extent()?);
        // The extent lies in the file, so what is allocated has been paid for by whoever wrote it, unless it is sparse:
        // hence the limit.
        let length = usize::try_from(extent.size).ok().filter(|_| extent.size <= limit_bytes);
        let Some(length) = length else {
            return Err(ObjectError::TooLarge { id, size_bytes: extent.size, limit_bytes });
        };
        let mut data = vec![0; length];
        if length > 0 {
            self.source.read_exact_at(&mut data, extent.offset).map_err(|source| ObjectError::Read { id, source })?;
        }
        Ok(data)
    }

    /// Copies an object's data to `out`, in pieces.
    ///
    /// # Errors
    /// The object is damaged, or one side failed; what was written before stays written.
    pub fn copy(&self, object: &Object, out: &mut dyn io::Write) -> Result<(), ObjectError> {
        let (id, extent) = (object.id(), object.extent()?);
        let mut piece = vec![0; extent.size.min(PIECE as u64) as usize];
        let mut done = 0;
        while done < extent.size {
            let length = (extent.size - done).min(PIECE as u64) as usize;
            let piece = &mut piece[..length];
            self.source
                .read_exact_at(piece, extent.offset + done)
                .map_err(|source| ObjectError::Read { id, source })?;
            out.write_all(piece).map_err(|source| ObjectError::Write { id, source })?;
            done += length as u64;
        }
        Ok(())
    }
}

pub(super) fn by_id(objects: &[Object], id: u32) -> Result<&Object, ObjectError> {
    if id == 0 {
        return Err(ObjectError::InvalidId);
    }
    objects.iter().find(|object| object.id() == id).ok_or(ObjectError::NotFound { id })
}

/// The place of the descriptor table, checked against the file.
#[derive(Clone, Copy, Debug)]
struct Table {
    offset: u64,
    records: u64,
}

impl Table {
    fn check(header: &Header, size_bytes: u64) -> Result<Self, OpenError> {
        let total = header.descriptors_total;
        let records = u64::try_from(total).ok().filter(|&records| records <= MAX_DESCRIPTORS);
        let records = records.ok_or(OpenError::DescriptorCount { total })?;
        let offset = u64::try_from(header.table_offset).ok().filter(|&offset| offset >= HEADER_SIZE as u64);
        let offset = offset.ok_or(OpenError::TableOffset { offset: header.table_offset })?;
        let size = u64::try_from(header.table_size).ok().filter(|&size| size >= records * DESCRIPTOR_SIZE as u64);
        if size.is_none() {
            return Err(OpenError::TableSize { size: header.table_size, total });
        }
        let end = header.table_offset.checked_add(header.table_size);
        if end.is_none_or(|end| end as u64 > size_bytes) {
            return Err(OpenError::TablePastEnd { end, size_bytes });
        }
        Ok(Self { offset, records })
    }

    /// Where its last record ends.
    fn end(&self) -> u64 {
        self.offset + self.records * DESCRIPTOR_SIZE as u64
    }
}

/// Decodes the used records. `start` is what was read already, from the start of the file.
fn read_table(source: &impl ReadAt, table: &Table, start: &[u8]) -> Result<Vec<Object>, OpenError> {
    let mut objects = Vec::new();
    if table.end() <= start.len() as u64 {
        decode(&start[table.offset as usize..table.end() as usize], 0, &mut objects);
        return Ok(objects);
    }
    const RECORDS: u64 = 448;
    let mut piece = vec![0; table.records.min(RECORDS) as usize * DESCRIPTOR_SIZE];
    let mut slot = 0;
    while slot < table.records {
        let records = (table.records - slot).min(RECORDS);
        let piece = &mut piece[..records as usize * DESCRIPTOR_SIZE];
        source
            .read_exact_at(piece, table.offset + slot * DESCRIPTOR_SIZE as u64)
            .map_err(|source| OpenError::Read { what: "descriptor table", source })?;
        // There are at most MAX_DESCRIPTORS slots.
        decode(piece, slot as u32, &mut objects);
        slot += records;
    }
    Ok(objects)
}

fn decode(records: &[u8], first_slot: u32, objects: &mut Vec<Object>) {
    let (records, _) = records.as_chunks::<DESCRIPTOR_SIZE>();
    for (slot, record) in (first_slot..).zip(records) {
        if record[USED_OFFSET] != 0
            && let Some(descriptor) = Descriptor::parse(record)
        {
            objects.push(Object { slot, descriptor, problem: None });
        }
    }
}

/// Marks every object that must not be used.
fn find_problems(objects: &mut [Object], table: &Table, file_size: u64) {
    for object in objects.iter_mut() {
        object.problem = own_problem(&object.descriptor, table, file_size);
    }
    // Damaged places don't count here: they would drag sound objects down with them.
    let mut by_offset: Vec<(Extent, usize)> = objects
        .iter()
        .enumerate()
        .filter(|(_, object)| object.problem.is_none())
        .filter_map(|(index, object)| Some((extent_of(&object.descriptor).ok().filter(|e| e.size > 0)?, index)))
        .collect();
    by_offset.sort_unstable_by_key(|(extent, _)| extent.offset);
    let mut furthest: Option<(u64, usize)> = None;
    for (extent, index) in by_offset {
        let end = extent.offset + extent.size;
        if let Some((reached, other)) = furthest.filter(|(reached, _)| extent.offset < *reached) {
            let (id, other_id) = (objects[index].id(), objects[other].id());
            objects[index].problem.get_or_insert(Problem::Overlaps { other_id });
            objects[other].problem.get_or_insert(Problem::Overlaps { other_id: id });
            if end <= reached {
                continue;
            }
        }
        furthest = Some((end, index));
    }
    let mut by_id: Vec<usize> = (0..objects.len()).collect();
    by_id.sort_unstable_by_key(|&index| objects[index].id());
    for pair in by_id.windows(2) {
        if objects[pair[0]].id() == objects[pair[1]].id() {
            for &index in pair {
                objects[index].problem.get_or_insert(Problem::IdTwice);
            }
        }
    }
}

/// What is wrong with a descriptor, seen alone.
fn own_problem(descriptor: &Descriptor, table: &Table, file_size: u64) -> Option<Problem> {
    if descriptor.id == 0 {
        return Some(Problem::IdZero);
    }
    if descriptor.group & GROUP_TAG != GROUP_TAG {
        return Some(Problem::GroupTag { group: descriptor.group });
    }
    if !matches!(descriptor.link & GROUP_TAG, 0 | GROUP_TAG) {
        return Some(Problem::LinkTag { link: descriptor.link });
    }
    let extent = match extent_of(descriptor) {
        Ok(extent) => extent,
        Err(problem) => return Some(problem),
    };
    // An object without data may be anywhere: writers put it where data would begin, which can be past the end.
    if extent.size == 0 {
        return None;
    }
    let end = extent.offset + extent.size;
    if end > file_size {
        return Some(Problem::PastEnd { end: end as i64, file_size });
    }
    if extent.offset < HEADER_SIZE as u64 {
        return Some(Problem::OnHeader { offset: descriptor.offset });
    }
    if extent.offset < table.end() && end > table.offset {
        return Some(Problem::OnTable { offset: descriptor.offset });
    }
    None
}

/// The place a descriptor states, with an end that is a number; not checked against the file.
pub(super) fn extent_of(descriptor: &Descriptor) -> Result<Extent, Problem> {
    let &Descriptor { offset, size, .. } = descriptor;
    let Ok(from) = u64::try_from(offset) else { return Err(Problem::NegativeOffset { offset }) };
    let Ok(length) = u64::try_from(size) else { return Err(Problem::NegativeSize { size }) };
    if offset.checked_add(size).is_none() {
        return Err(Problem::EndOverflows { offset, size });
    }
    Ok(Extent { offset: from, size: length })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sif::{Creation, CreationOptions, NewObject, Partition, put, text};
    use proptest::prelude::*;
    use std::cell::Cell;

    pub(in crate::sif) fn squashfs(kind: PartitionKind) -> NewObject {
        NewObject::partition(Partition { fs: FileSystem::Squashfs, kind, arch: Arch::Amd64 })
    }

    /// Definition file (1), labels (2), root (3), overlay (4).
    pub(in crate::sif) fn image() -> Vec<u8> {
        let mut creation = Creation::begin(Vec::new(), &CreationOptions::deterministic()).unwrap();
        creation.add(&NewObject::new(DataType::DefinitionFile), &b"bootstrap: x\n"[..]).unwrap();
        creation.add(&NewObject::new(DataType::GenericJson).named("labels"), &b"{}"[..]).unwrap();
        creation.add(&squashfs(PartitionKind::PrimarySystem), &[7; 5000][..]).unwrap();
        creation.add(&squashfs(PartitionKind::Overlay), &[8; 10][..]).unwrap();
        creation.finish().unwrap()
    }

    /// Where field `field` of slot `slot` stands in an image of ours.
    fn record(slot: usize, field: usize) -> usize {
        4096 + slot * DESCRIPTOR_SIZE + field
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = image();
        put(&mut image, at, bytes);
        image
    }

    fn ids_of(problem: impl Fn(Problem) -> bool, image: &[u8]) -> Vec<u32> {
        let reader = Reader::open(image).unwrap();
        reader.objects().iter().filter(|o| o.problem.is_some_and(&problem)).map(Object::id).collect()
    }

    #[test]
    fn a_sound_image_has_no_problems_and_a_root() {
        let image = image();
        let reader = Reader::open(image.as_slice()).unwrap();
        assert!(ids_of(|_| true, &image).is_empty());
        assert_eq!(reader.descriptors_free(), 44);
        let root = reader.root().unwrap();
        assert_eq!((root.id, root.arch, root.extent), (3, Arch::Amd64, Extent { offset: 32768, size: 5000 }));
        assert_eq!(reader.overlay_partitions(&root).map(Object::id).collect::<Vec<_>>(), [4]);
        assert_eq!(reader.by_name(b"labels").map(Object::id), Some(2));
        assert_eq!(reader.read(reader.by_id(2).unwrap(), 2).unwrap(), b"{}");
    }

    #[test]
    fn an_overlay_of_another_group_does_not_belong_to_the_root() {
        let image = with(record(3, 9), &0xf000_0002u32.to_le_bytes());
        let reader = Reader::open(image.as_slice()).unwrap();
        assert_eq!(reader.overlay_partitions(&reader.root().unwrap()).count(), 0);
    }

    struct Counting<'a>(&'a [u8], Cell<usize>);

    impl ReadAt for Counting<'_> {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.1.set(self.1.get() + 1);
            self.0.read_exact_at(buffer, offset)
        }

        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }
    }

    #[test]
    fn opening_an_ordinary_image_takes_one_read() {
        let image = image();
        let source = Counting(&image, Cell::new(0));
        assert_eq!(Reader::open(&source).unwrap().objects().len(), 4);
        assert_eq!(source.1.get(), 1);
    }

    #[test]
    fn a_large_table_is_read_in_pieces() {
        let options = CreationOptions { capacity: 1000, ..CreationOptions::deterministic() };
        let mut creation = Creation::begin(Vec::new(), &options).unwrap();
        for _ in 0..900 {
            creation.add(&NewObject::new(DataType::Generic), &b"x"[..]).unwrap();
        }
        let image = creation.finish().unwrap();
        let source = Counting(&image, Cell::new(0));
        let reader = Reader::open(&source).unwrap();
        assert_eq!(reader.objects().iter().map(Object::id).collect::<Vec<_>>(), (1..=900).collect::<Vec<_>>());
        assert_eq!(source.1.get(), 4);
    }

    fn refusal(at: usize, bytes: &[u8]) -> OpenError {
        Reader::open(with(at, bytes)).unwrap_err()
    }

    #[test]
    fn a_table_that_cannot_be_trusted_fails_the_opening() {
        for total in [-1i64, 65_537, i64::MAX] {
            assert!(matches!(refusal(88, &total.to_le_bytes()), OpenError::DescriptorCount { .. }), "{total}");
        }
        for offset in [-4096i64, 0, 127] {
            assert!(matches!(refusal(96, &offset.to_le_bytes()), OpenError::TableOffset { .. }), "{offset}");
        }
        for size in [-1i64, 0, 28_079] {
            assert!(matches!(refusal(104, &size.to_le_bytes()), OpenError::TableSize { .. }), "{size}");
        }
        for size in [1i64 << 40, i64::MAX] {
            assert!(matches!(refusal(104, &size.to_le_bytes()), OpenError::TablePastEnd { .. }), "{size}");
        }
        assert!(matches!(refusal(96, &i64::MAX.to_le_bytes()), OpenError::TablePastEnd { end: None, .. }));
    }

    #[test]
    fn a_file_that_ends_in_the_table_is_refused_with_both_ends() {
        let mut short = image();
        short.truncate(20_000);
        let error = Reader::open(short).unwrap_err();
        assert!(matches!(error, OpenError::TablePastEnd { end: Some(32_176), size_bytes: 20_000 }), "{error}");
    }

    /// Field 17 is the offset, 25 the size. The other objects stay sound.
    fn check_place(field: usize, value: i64, expected: impl Fn(Problem) -> bool) {
        let image = with(record(2, field), &value.to_le_bytes());
        assert_eq!(ids_of(|_| true, &image), [3], "{value}");
        assert_eq!(ids_of(expected, &image), [3], "{value}");
        let reader = Reader::open(image.as_slice()).unwrap();
        let object = reader.by_id(3).unwrap();
        assert!(matches!(reader.read(object, u64::MAX), Err(ObjectError::Damaged { id: 3, .. })));
        assert!(matches!(reader.copy(object, &mut Vec::new()), Err(ObjectError::Damaged { id: 3, .. })));
        assert!(matches!(reader.root(), Err(RootError::Damaged { id: 3, .. })));
        assert_eq!(text::list(reader.objects()).lines().count(), 3 + 4);
    }

    #[test]
    fn data_outside_the_file_or_on_its_tables_cannot_be_used() {
        check_place(17, -4096, |p| matches!(p, Problem::NegativeOffset { offset: -4096 }));
        check_place(25, -1, |p| matches!(p, Problem::NegativeSize { size: -1 }));
        check_place(17, i64::MAX - 10, |p| matches!(p, Problem::EndOverflows { .. }));
        check_place(25, 1 << 40, |p| matches!(p, Problem::PastEnd { .. }));
        check_place(17, 1 << 40, |p| matches!(p, Problem::PastEnd { .. }));
        check_place(17, 100, |p| matches!(p, Problem::OnHeader { offset: 100 }));
        check_place(17, 4000, |p| matches!(p, Problem::OnTable { offset: 4000 }));
        check_place(17, 32_175, |p| matches!(p, Problem::OnTable { .. }));
    }

    #[test]
    fn objects_that_share_bytes_are_both_refused() {
        let image = with(record(1, 17), &32_780i64.to_le_bytes());
        assert_eq!(ids_of(|p| matches!(p, Problem::Overlaps { .. }), &image), [2, 3]);
    }

    #[test]
    fn an_object_without_data_may_be_anywhere() {
        let mut image = with(record(1, 17), &(1i64 << 50).to_le_bytes());
        put(&mut image, record(1, 25), &0i64.to_le_bytes());
        assert!(ids_of(|_| true, &image).is_empty());
        let reader = Reader::open(image.as_slice()).unwrap();
        assert_eq!(reader.read(reader.by_id(2).unwrap(), 0).unwrap(), b"");
    }

    #[test]
    fn ids_groups_and_links_without_sense_are_noticed() {
        let check = |at: usize, value: u32, ids: &[u32], expected: fn(Problem) -> bool| {
            assert_eq!(ids_of(expected, &with(at, &value.to_le_bytes())), ids);
        };
        check(record(1, 5), 0, &[0], |p| p == Problem::IdZero);
        check(record(1, 5), 3, &[3, 3], |p| p == Problem::IdTwice);
        check(record(1, 9), 1, &[2], |p| matches!(p, Problem::GroupTag { group: 1 }));
        check(record(1, 13), 0x3000_0001, &[2], |p| matches!(p, Problem::LinkTag { .. }));
        check(record(1, 13), 77, &[], |_| true);
    }

    fn root_error(changes: &[(usize, &[u8])]) -> RootError {
        let mut image = image();
        for (at, bytes) in changes {
            put(&mut image, *at, bytes);
        }
        Reader::open(image).unwrap().root().unwrap_err()
    }

    #[test]
    fn a_root_that_cannot_be_opened_says_what_it_is() {
        let fs = |code: i32| root_error(&[(record(2, 201), &code.to_le_bytes())]);
        assert!(matches!(fs(2), RootError::Ext3 { id: 3 }));
        assert!(matches!(fs(4), RootError::NotAFileSystem { id: 3, kind: "Raw" }));
        assert!(matches!(fs(5), RootError::EncryptedLuks { id: 3 }));
        assert!(matches!(fs(6), RootError::EncryptedGocryptfs { id: 3 }));
        assert!(matches!(fs(99), RootError::UnknownFileSystem { id: 3, code: 99 }));
        assert!(matches!(fs(-1), RootError::UnknownFileSystem { id: 3, code: -1 }));
        assert!(matches!(root_error(&[(record(2, 209), b"99")]), RootError::UnknownArchitecture { id: 3, .. }));
        let data: &[u8] = &3i32.to_le_bytes();
        assert!(matches!(root_error(&[(record(2, 205), data)]), RootError::None));
        let oci: &[u8] = &0x400ai32.to_le_bytes();
        assert!(matches!(root_error(&[(record(2, 205), data), (record(1, 0), oci)]), RootError::OciSif));
        let primary: &[u8] = &2i32.to_le_bytes();
        assert!(matches!(root_error(&[(record(3, 205), primary)]), RootError::Several { ids } if ids == [3, 4]));
    }

    #[test]
    fn a_root_of_another_architecture_is_refused_for_this_host() {
        let image = image();
        let root = Reader::open(image.as_slice()).unwrap().root().unwrap();
        assert!(root.for_host(Arch::Amd64).is_ok());
        let error = root.for_host(Arch::Arm64).unwrap_err();
        assert_eq!(error.to_string(), "the image's architecture (amd64) can't run on the host's (arm64)");
    }

    #[test]
    fn an_object_larger_than_the_limit_is_not_read() {
        let image = image();
        let reader = Reader::open(image.as_slice()).unwrap();
        let error = reader.read(reader.by_id(3).unwrap(), 4999).unwrap_err();
        assert!(matches!(error, ObjectError::TooLarge { id: 3, size_bytes: 5000, limit_bytes: 4999 }));
        assert!(matches!(reader.by_id(0), Err(ObjectError::InvalidId)));
        assert!(matches!(reader.by_id(99), Err(ObjectError::NotFound { id: 99 })));
    }

    #[test]
    fn launch_lines_and_magic_are_recognized_at_their_places() {
        assert!(is_sif(&image()));
        assert!(!is_sif(b"SIF_MAGIC\0"));
        assert!(!is_sif(b""));
        assert_eq!(launch_line_length(b"#!/usr/bin/env run-singularity\nhsqs"), Some(31));
        assert_eq!(launch_line_length(b"#!/bin/sh\nhsqs"), None);
        assert_eq!(launch_line_length(b"#!/usr/bin/env run-singularity"), None);
    }

    /// Asks everything that can be asked of an image.
    fn ask_everything(bytes: &[u8]) {
        let Ok(reader) = Reader::open(bytes) else { return };
        let _ = text::header(reader.header(), reader.descriptors_free());
        let _ = text::list(reader.objects());
        for object in reader.objects() {
            let _ = text::info(&object.descriptor);
            if let Ok(data) = reader.read(object, 1 << 20) {
                let mut copy = Vec::new();
                reader.copy(object, &mut copy).unwrap();
                assert_eq!(copy, data);
                let extent = object.extent().unwrap();
                assert_eq!(extent.size, data.len() as u64);
            }
        }
        if let Ok(root) = reader.root() {
            assert!(root.extent.offset + root.extent.size <= bytes.len() as u64 || root.extent.size == 0);
            let _ = reader.overlay_partitions(&root).count();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_image_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
            ask_everything(&bytes);
        }

        #[test]
        fn an_image_with_any_damage_is_read_or_refused(
            changes in prop::collection::vec((prop_oneof![0usize..128, 4096usize..6600], any::<u8>()), 1..20),
            numbers in prop::collection::vec((0usize..4, prop_oneof![Just(17usize), Just(25)], any::<i64>()), 0..3),
            length in prop_oneof![Just(usize::MAX), 0usize..40_000],
        ) {
            let mut image = image();
            for (at, byte) in changes {
                image[at] = byte;
            }
            for (slot, field, number) in numbers {
                put(&mut image, record(slot, field), &number.to_le_bytes());
            }
            image.truncate(length);
            ask_everything(&image);
        }
    }
}
