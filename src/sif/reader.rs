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
        let mut start = vec![0; size_bytes.min(FIRST_READ as u64) as usize];
        source.read_exact_at(&mut start, 0).map_err(|source| OpenError::Read { what: "header", source })?;
        let header = Header::parse(&start)?;
        let table = Table::check(&header, size_bytes)?;
        let mut objects = read_table(&source, &table, &start)?;
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
