//! Makes images ([`Creation`]) and changes them in place ([`Writer`]).
//!
//! Where a new object goes: `end` is the largest end of any object, at least where the data begin.
//!
//! ```text
//!   ... | last object |  gap  | new object            header data size  = (end - data offset) + size with padding
//!                     ^       ^                       size with padding = gap + size
//!                    end      end, rounded up to the alignment
//! ```
//!
//! Every change of an existing image is durable when the call returns. If the machine stops in the middle, the image is
//! the one of before or the one of after, even when it stops within a write. Records are changed by turning the header,
//! which a disk writes whole, to a copy of the table, and back; between two steps everything is synced:
//!
//! ```text
//!   | header | table   | data ...                       the new object's data lie behind the old ones
//!   | header | table   | data ... | new table           a copy of the table, changed
//!   | HEADER | table   | data ... | new table           from here on the image is the new one
//!   | HEADER | TABLE   | data ... | new table           the table at its place is written over
//!   | header | TABLE   | data ...                       the copy is cut off
//! ```
//!
//! Whoever finds an image whose table lies behind its data takes up the work there ([`Writer::open`]).

use super::descriptor::{DESCRIPTOR_SIZE, EXTRA_SIZE, GROUP_TAG, NAME_SIZE};
use super::header::HEADER_SIZE;
use super::reader::by_id;
use super::{
    Arch, DEFAULT_CAPACITY, DataType, Descriptor, Extent, Header, ImageId, Link, MAX_DESCRIPTORS, Object, Partition,
    PartitionKind, Reader, Storage, Time, WriteError, put,
};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Where new images have their table, in bytes.
const TABLE_OFFSET: u64 = 4096;
/// Alignment of partitions in bytes: a page, so that they can be mapped and attached to loop devices.
const PARTITION_ALIGNMENT: u64 = 4096;
/// Zeros are written and data are copied in pieces of this size, in bytes.
const PIECE: usize = 256 << 10;

/// The time of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// This time, unless the image is deterministic: that one stays free of times.
    Now(Time),
    /// This time, whatever the image is.
    Exactly(Time),
}

/// An object to be added, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewObject {
    pub data_type: DataType,
    pub name: Vec<u8>,
    /// `None` for no group.
    pub group: Option<u32>,
    pub link: Link,
    /// In bytes; 0 and 1 are none.
    pub alignment: u64,
    /// As [`Partition::to_extra`] and its kin make it.
    pub extra: [u8; EXTRA_SIZE],
    /// Its times; `None` for the time of the change.
    pub time: Option<Time>,
}

impl NewObject {
    /// An object of group 1, with no name, link or alignment.
    pub fn new(data_type: DataType) -> Self {
        Self {
            data_type,
            name: Vec::new(),
            group: Some(1),
            link: Link::None,
            alignment: if data_type == DataType::Partition { PARTITION_ALIGNMENT } else { 0 },
            extra: [0; EXTRA_SIZE],
            time: None,
        }
    }

    /// A partition, aligned to 4096 bytes.
    pub fn partition(partition: Partition) -> Self {
        Self { extra: partition.to_extra(), ..Self::new(DataType::Partition) }
    }

    pub fn named(self, name: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The record before it has a place: no id, no offset, no size.
    ///
    /// # Errors
    /// A name, group or link that the format can't hold, or a partition without a known architecture.
    fn descriptor(&self, time: Time) -> Result<Descriptor, WriteError> {
        let mut name = [0; NAME_SIZE];
        if self.name.len() > NAME_SIZE {
            return Err(WriteError::NameTooLong { length: self.name.len() });
        }
        put(&mut name, 0, &self.name);
        let group = self.group.unwrap_or(0);
        if group & GROUP_TAG != 0 {
            return Err(WriteError::GroupTooLarge { group });
        }
        if let Link::Object(link) | Link::Group(link) = self.link
            && link & GROUP_TAG != 0
        {
            return Err(WriteError::LinkTooLarge { link });
        }
        let time = self.time.unwrap_or(time);
        let descriptor = Descriptor {
            data_type: self.data_type,
            id: 0,
            group: GROUP_TAG | group,
            link: self.link.to_raw(),
            offset: 0,
            size: 0,
            size_with_padding: 0,
            created: time,
            modified: time,
            uid: 0,
            gid: 0,
            name,
            extra: self.extra,
        };
        match descriptor.partition() {
            Some(Partition { arch, .. }) if !arch.is_known() => Err(WriteError::UnknownArchitecture { arch }),
            _ => Ok(descriptor),
        }
    }
}

/// What a deletion does beside freeing the slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Overwrites the data with zeros.
    pub zero: bool,
    /// Cuts the file after the last object that remains.
    pub compact: bool,
}

/// What a new image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreationOptions {
    /// Up to 31 bytes, [`super::LAUNCH_LINE`] for images that are run.
    pub launch_line: Vec<u8>,
    pub id: ImageId,
    pub time: Time,
    /// Number of descriptors; fixed for the life of the image.
    pub capacity: u32,
}

impl CreationOptions {
    /// An image with neither identity nor time: equal contents give equal files.
    pub fn deterministic() -> Self {
        Self { launch_line: Vec::new(), id: ImageId::NIL, time: Time::UNSET, capacity: DEFAULT_CAPACITY }
    }
}

/// A new image. Its table and header are written by [`Creation::finish`]; before that the storage holds no image.
#[derive(Debug)]
pub struct Creation<S>(Writer<S>);

impl<S: Storage> Creation<S> {
    /// Begins an image in `storage`, whose content is lost.
    ///
    /// # Errors
    /// A launch line or capacity that the format can't hold, or the medium failed.
    pub fn begin(mut storage: S, options: &CreationOptions) -> Result<Self, WriteError> {
        let mut launch = [0; 32];
        let length = options.launch_line.len();
        if length >= launch.len() {
            return Err(WriteError::LaunchLineTooLong { length });
        }
        put(&mut launch, 0, &options.launch_line);
        if u64::from(options.capacity) > MAX_DESCRIPTORS {
            return Err(WriteError::Capacity { asked: options.capacity });
        }
        let table_size = i64::from(options.capacity) * DESCRIPTOR_SIZE as i64;
        let header = Header {
            launch,
            arch: Arch::Unknown,
            id: options.id,
            created: options.time,
            modified: options.time,
            descriptors_free: i64::from(options.capacity),
            descriptors_total: i64::from(options.capacity),
            table_offset: TABLE_OFFSET as i64,
            table_size,
            data_offset: TABLE_OFFSET as i64 + table_size,
            data_size: 0,
        };
        let failed = |source| WriteError::Storage { what: "image", source };
        storage.set_size(0).map_err(failed)?;
        storage.set_size(header.data_offset as u64).map_err(failed)?;
        Ok(Self(Writer { storage, header, objects: Vec::new() }))
    }

    /// Adds an object with all that `data` gives. Returns its id.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn add(&mut self, object: &NewObject, data: impl Read) -> Result<u32, WriteError> {
        let mut sink = self.sink(object)?;
        sink.fill(data)?;
        sink.finish()
    }

    /// Begins an object whose data are written by [`Write`] and [`Seek`]; position 0 is its first byte.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn sink(&mut self, object: &NewObject) -> Result<ObjectSink<'_, S>, WriteError> {
        let time = self.0.header.created;
        ObjectSink::begin(&mut self.0, object, time)
    }

    /// Gives the image its id, which may follow from data that were written since it was begun.
    pub fn set_id(&mut self, id: ImageId) {
        self.0.header.id = id;
    }

    /// Writes table and header, and returns the storage. Nothing was synced: a caller that renames the file into place
    /// does that.
    ///
    /// # Errors
    /// The medium failed.
    pub fn finish(self) -> Result<S, WriteError> {
        let Writer { mut storage, header, objects } = self.0;
        for object in &objects {
            write_record(&mut storage, &header, object.slot, &object.descriptor)?;
        }
        write_header(&mut storage, &header)?;
        Ok(storage)
    }
}

/// An existing image that is changed in place.
#[derive(Debug)]
pub struct Writer<S> {
    storage: S,
    header: Header,
    objects: Vec<Object>,
}

impl<S: Storage> Writer<S> {
    /// Opens an image.
    ///
    /// # Errors
    /// As [`Reader::open`]; also when its header leaves no place for data.
    pub fn open(storage: S) -> Result<Self, WriteError> {
        let reader = Reader::open(storage)?;
        let (header, objects) = (reader.header().clone(), reader.objects().to_vec());
        let mut writer = Self { storage: reader.into_source(), header, objects };
        // The reader has checked the table: no sum with its size overflows.
        if writer.header.table_offset >= writer.header.data_offset {
            writer.bring_table_home()?;
        }
        let table_end = writer.header.table_offset + writer.table_size();
        if writer.header.data_offset < table_end {
            return Err(WriteError::DataOffset { offset: writer.header.data_offset });
        }
        Ok(writer)
    }

    /// Finishes a change that was interrupted when the table lay behind the data.
    fn bring_table_home(&mut self) -> Result<(), WriteError> {
        let (size, data_offset) = (self.table_size(), self.header.data_offset);
        let home = data_offset.checked_sub(size).filter(|&home| home >= HEADER_SIZE as i64);
        let is_free = self.objects.iter().all(|object| object.descriptor.offset >= data_offset);
        let home = home.filter(|_| is_free).ok_or(WriteError::DataOffset { offset: data_offset })?;
        let table = self.table()?;
        let header = Header { table_offset: home, table_size: size, ..self.header.clone() };
        put_table(&mut self.storage, &header, &table)?;
        self.header = header;
        Ok(())
    }

    /// Bytes of the whole table.
    fn table_size(&self) -> i64 {
        self.header.descriptors_total * DESCRIPTOR_SIZE as i64
    }

    /// The table as it is in the file.
    fn table(&self) -> Result<Vec<u8>, WriteError> {
        // The reader has checked that there are at most MAX_DESCRIPTORS, and that they lie in the file.
        let mut table = vec![0; self.table_size() as usize];
        let read = self.storage.read_exact_at(&mut table, self.header.table_offset as u64);
        read.map_err(|source| WriteError::Storage { what: "descriptor table", source })?;
        Ok(table)
    }

    /// The used slots in the order of the table.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    pub fn into_storage(self) -> S {
        self.storage
    }

    /// Adds an object with all that `data` gives. Returns its id.
    ///
    /// OCI objects get the digest of their data, unless `object` brings one.
    ///
    /// # Errors
    /// No free slot, a second primary partition, a name, group, link or architecture that the format can't hold, a
    /// damaged object in the image, or a side that failed. The image is as it was then.
    pub fn add(&mut self, object: &NewObject, data: impl Read, stamp: Stamp) -> Result<u32, WriteError> {
        let time = self.time_of(stamp);
        let size_before = self.storage.size().map_err(|source| WriteError::Storage { what: "image", source })?;
        let mut sink = ObjectSink::begin(self, object, time)?;
        let id = match sink.fill(data).and_then(|()| sink.finish()) {
            Ok(id) => id,
            Err(error) => {
                // What was written lies behind the image: a disk that is full should not stay so. Best effort, since
                // the error at hand says more.
                let _ = self.storage.set_size(size_before);
                return Err(error);
            }
        };
        self.header.modified = time;
        self.commit(&[id - 1])?;
        Ok(id)
    }

    /// Deletes the objects with these ids; all or none.
    ///
    /// # Errors
    /// An id that is 0 or not there, damaged data that should be zeroed or cut away, or the medium failed.
    pub fn delete(&mut self, ids: &[u32], deletion: Deletion, stamp: Stamp) -> Result<(), WriteError> {
        let mut slots = Vec::new();
        let mut extents = Vec::new();
        for &id in ids {
            let object = by_id(&self.objects, id)?;
            slots.push(object.slot);
            if deletion.zero {
                extents.push(object.extent()?);
            }
        }
        if deletion.compact {
            self.sound_end(|object| !slots.contains(&object.slot))?;
        }
        let was_primary = |object: &Object| object.descriptor.is_partition(PartitionKind::PrimarySystem);
        if self.objects.iter().any(|object| slots.contains(&object.slot) && was_primary(object)) {
            self.header.arch = Arch::Unknown;
        }
        self.objects.retain(|object| !slots.contains(&object.slot));
        self.header.modified = self.time_of(stamp);
        let end = if deletion.compact { Some(self.sound_end(|_| true)?) } else { None };
        if let Some(end) = end {
            // `end` is never before the data.
            self.header.data_size = end as i64 - self.header.data_offset;
        }
        self.commit(&slots)?;
        // Only now: data of an object that is still there are never touched.
        for extent in extents {
            zero(&mut self.storage, extent)?;
        }
        if deletion.zero {
            self.storage.sync().map_err(|source| WriteError::Storage { what: "image", source })?;
        }
        if let Some(end) = end {
            let failed = |source| WriteError::Storage { what: "end of the image", source };
            self.storage.set_size(end).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the System partition `id` the root; what was primary before becomes a System partition.
    ///
    /// # Errors
    /// No such object, or it is no System partition.
    pub fn set_primary(&mut self, id: u32, stamp: Stamp) -> Result<(), WriteError> {
        let object = by_id(&self.objects, id)?;
        let (slot, Some(chosen)) = (object.slot, object.descriptor.partition()) else {
            return Err(WriteError::NotAPartition { id });
        };
        match chosen.kind {
            PartitionKind::System => {}
            PartitionKind::PrimarySystem if !self.has_other_primary(slot) => return Ok(()),
            PartitionKind::PrimarySystem => {}
            _ => return Err(WriteError::NotASystemPartition { id }),
        }
        let time = self.time_of(stamp);
        let mut changed = Vec::new();
        for object in &mut self.objects {
            let Some(partition) = object.descriptor.partition() else { continue };
            let kind = match partition.kind {
                _ if object.slot == slot => PartitionKind::PrimarySystem,
                PartitionKind::PrimarySystem => PartitionKind::System,
                _ => continue,
            };
            object.descriptor.extra = Partition { kind, ..partition }.to_extra();
            object.descriptor.modified = time;
            changed.push(object.slot);
        }
        self.header.arch = chosen.arch;
        self.header.modified = time;
        self.commit(&changed)
    }

    /// Records another digest for an OCI object, for when its data have changed.
    ///
    /// # Errors
    /// No such object, or one without a digest.
    pub fn set_digest(&mut self, id: u32, sha256: [u8; 32], stamp: Stamp) -> Result<(), WriteError> {
        let slot = by_id(&self.objects, id)?.slot;
        let time = self.time_of(stamp);
        let Some(object) = self.objects.iter_mut().find(|object| object.slot == slot && has_digest(object)) else {
            return Err(WriteError::NotOci { id });
        };
        object.descriptor.extra = digest_extra(sha256);
        object.descriptor.modified = time;
        self.header.modified = time;
        self.commit(&[slot])
    }

    fn has_other_primary(&self, slot: u32) -> bool {
        let is_primary = |object: &Object| object.descriptor.is_partition(PartitionKind::PrimarySystem);
        self.objects.iter().any(|object| object.slot != slot && is_primary(object))
    }

    fn time_of(&self, stamp: Stamp) -> Time {
        match stamp {
            Stamp::Exactly(time) => time,
            Stamp::Now(_) if self.header.is_deterministic() => Time::UNSET,
            Stamp::Now(time) => time,
        }
    }

    /// Where the data of the `counted` objects end, at least where data begin.
    fn sound_end(&self, counted: impl Fn(&Object) -> bool) -> Result<u64, WriteError> {
        // `open` and `begin` have seen that it is positive.
        let mut end = self.header.data_offset as u64;
        for object in self.objects.iter().filter(|object| counted(object)) {
            let extent = object.extent()?;
            // An extent's end is below 2^63.
            end = end.max(extent.offset + extent.size);
        }
        Ok(end)
    }

    /// The first free slot whose id is free as well.
    fn free_slot(&self) -> Result<u32, WriteError> {
        let slots: HashSet<u32> = self.objects.iter().map(|object| object.slot).collect();
        let ids: HashSet<u32> = self.objects.iter().map(Object::id).collect();
        let capacity = self.header.descriptors_total;
        (0..u32::try_from(capacity).unwrap_or(0))
            .find(|slot| !slots.contains(slot) && !ids.contains(&(slot + 1)))
            .ok_or(WriteError::Full { capacity })
    }

    /// Makes the state durable: the data written so far, then the records of `slots` and the header.
    fn commit(&mut self, slots: &[u32]) -> Result<(), WriteError> {
        self.header.descriptors_free = self.header.descriptors_total - self.objects.len() as i64;
        self.storage.sync().map_err(|source| WriteError::Storage { what: "image", source })?;
        let mut table = self.table()?;
        let (records, _) = table.as_chunks_mut::<DESCRIPTOR_SIZE>();
        for &slot in slots {
            let object = self.objects.iter().find(|object| object.slot == slot);
            if let Some(record) = records.get_mut(slot as usize) {
                *record = object.map_or([0; DESCRIPTOR_SIZE], |object| object.descriptor.to_bytes());
            }
        }
        replace_table(&mut self.storage, &self.header, &table)
    }
}

/// Makes an empty image of an existing file, whatever that holds. Until the last step the file is what it was, or the new
/// image already.
///
/// # Errors
/// As [`Creation::begin`].
pub fn make_empty<S: Storage>(mut storage: S, options: &CreationOptions) -> Result<(), WriteError> {
    let empty = Creation::begin(Vec::new(), options)?.finish()?;
    let header = Reader::open(&empty)?.header().clone();
    let failed = |source| WriteError::Storage { what: "image", source };
    let size = storage.size().map_err(failed)?;
    if size < empty.len() as u64 {
        storage.set_size(empty.len() as u64).map_err(failed)?;
    }
    replace_table(&mut storage, &header, &empty[header.table_offset as usize..])?;
    storage.set_size(empty.len() as u64).map_err(failed)?;
    storage.sync().map_err(failed)
}

/// Puts `table` and `header` in the place of those that are there, by way of a copy behind everything else.
fn replace_table(storage: &mut impl Storage, header: &Header, table: &[u8]) -> Result<(), WriteError> {
    let failed = |source| WriteError::Storage { what: "descriptor table", source };
    let size = storage.size().map_err(failed)?;
    let aside = i64::try_from(size).ok().filter(|aside| aside.checked_add(table.len() as i64).is_some());
    // An object that is no longer than nothing, or a hole at the end, can leave the file shorter than its data.
    let aside = aside.ok_or(WriteError::Overflow)?.max(header.data_offset);
    let copied = storage.write_all_at(table, aside as u64).and_then(|()| storage.sync());
    match copied {
        Ok(()) => {
            let turned = Header { table_offset: aside, table_size: table.len() as i64, ..header.clone() };
            write_header(storage, &turned)?;
            storage.sync().map_err(failed)?;
            put_table(storage, header, table)?;
            storage.set_size(size.max(header.data_offset as u64)).map_err(failed)
        }
        Err(error) => {
            // What was written of the copy goes again; the error at hand says more than one here would.
            let _ = storage.set_size(size);
            // A full file system must not keep anybody from deleting objects.
            let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if is_full { put_table(storage, header, table) } else { Err(failed(error)) }
        }
    }
}

/// Writes a table to its place, then the header that names it.
fn put_table(storage: &mut impl Storage, header: &Header, table: &[u8]) -> Result<(), WriteError> {
    let failed = |source| WriteError::Storage { what: "descriptor table", source };
    // The place was checked, or made by us: it is positive.
    storage.write_all_at(table, header.table_offset as u64).map_err(failed)?;
    storage.sync().map_err(failed)?;
    write_header(storage, header)?;
    storage.sync().map_err(failed)
}

/// An object that is being written. Without [`ObjectSink::finish`] the image stays as it was.
///
/// Positions are relative to the object; its size is the furthest byte written. Gaps are filled with zeros, so that no
/// stale bytes of deleted objects come back.
#[derive(Debug)]
pub struct ObjectSink<'w, S> {
    writer: &'w mut Writer<S>,
    slot: u32,
    descriptor: Descriptor,
    /// Where the data before it end.
    previous_end: u64,
    offset: u64,
    position: u64,
    size: u64,
}

impl<'w, S: Storage> ObjectSink<'w, S> {
    fn begin(writer: &'w mut Writer<S>, object: &NewObject, time: Time) -> Result<Self, WriteError> {
        let descriptor = object.descriptor(time)?;
        if descriptor.is_partition(PartitionKind::PrimarySystem)
            && let Some(first) = writer.objects.iter().find(|o| o.descriptor.is_partition(PartitionKind::PrimarySystem))
        {
            return Err(WriteError::SecondPrimary { id: first.id() });
        }
        let slot = writer.free_slot()?;
        let previous_end = writer.sound_end(|_| true)?;
        let offset = previous_end.checked_next_multiple_of(object.alignment.max(1)).ok_or(WriteError::Overflow)?;
        i64::try_from(offset).map_err(|_| WriteError::Overflow)?;
        Ok(Self { writer, slot, descriptor, previous_end, offset, position: 0, size: 0 })
    }

    /// Writes all that `data` gives, and the digest if this is an OCI object without one.
    fn fill(&mut self, mut data: impl Read) -> Result<(), WriteError> {
        let is_oci = matches!(self.descriptor.data_type, DataType::OciRootIndex | DataType::OciBlob);
        let mut digest = (is_oci && self.descriptor.extra == [0; EXTRA_SIZE]).then(Sha256::new);
        let mut piece = vec![0; PIECE];
        loop {
            let length = match data.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(WriteError::Source { source }),
            };
            let piece = &piece[..length];
            if let Some(digest) = &mut digest {
                digest.update(piece);
            }
            self.write_all(piece).map_err(|source| WriteError::Storage { what: "data", source })?;
        }
        if let Some(digest) = digest {
            self.descriptor.extra = digest_extra(digest.finalize().into());
        }
        Ok(())
    }

    /// Takes back what was written behind the first `size` bytes.
    ///
    /// # Errors
    /// The medium failed.
    pub fn truncate(&mut self, size: u64) -> Result<(), WriteError> {
        if size < self.size {
            let end = self.offset.checked_add(size).ok_or(WriteError::Overflow)?;
            let cut = self.writer.storage.set_size(end);
            cut.map_err(|source| WriteError::Storage { what: "data", source })?;
            self.size = size;
        }
        Ok(())
    }

    /// Enters the object into the table in memory and returns its id.
    ///
    /// # Errors
    /// Offsets that the format can't hold.
    pub fn finish(self) -> Result<u32, WriteError> {
        let Self { writer, slot, mut descriptor, previous_end, offset, size, .. } = self;
        let signed = |number: u64| i64::try_from(number).map_err(|_| WriteError::Overflow);
        let with_padding = (offset - previous_end).checked_add(size).ok_or(WriteError::Overflow)?;
        // Both ends are those of a file, below 2^63.
        let data_size = (previous_end - writer.header.data_offset as u64).checked_add(with_padding);
        signed(offset.checked_add(size).ok_or(WriteError::Overflow)?)?;
        writer.header.data_size = signed(data_size.ok_or(WriteError::Overflow)?)?;
        descriptor.id = slot + 1;
        descriptor.offset = signed(offset)?;
        descriptor.size = signed(size)?;
        descriptor.size_with_padding = signed(with_padding)?;
        if descriptor.is_partition(PartitionKind::PrimarySystem)
            && let Some(partition) = descriptor.partition()
        {
            writer.header.arch = partition.arch;
        }
        let at = writer.objects.partition_point(|object| object.slot < slot);
        writer.objects.insert(at, Object { slot, descriptor, problem: None });
        writer.header.descriptors_free = writer.header.descriptors_total - writer.objects.len() as i64;
        Ok(slot + 1)
    }
}

impl<S: Storage> Write for ObjectSink<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let too_far = || io::Error::from(io::ErrorKind::FileTooLarge);
        let end = self.position.checked_add(bytes.len() as u64).ok_or_else(too_far)?;
        let last = self.offset.checked_add(end).ok_or_else(too_far)?;
        i64::try_from(last).map_err(|_| too_far())?;
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.position > self.size {
            let gap = Extent { offset: self.offset + self.size, size: self.position - self.size };
            write_zeros(&mut self.writer.storage, gap)?;
        }
        self.writer.storage.write_all_at(bytes, self.offset + self.position)?;
        self.position = end;
        self.size = self.size.max(end);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: Storage> Seek for ObjectSink<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.size.checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

fn has_digest(object: &Object) -> bool {
    matches!(object.descriptor.data_type, DataType::OciRootIndex | DataType::OciBlob)
}

/// The `extra` field of an OCI object: its digest as text.
fn digest_extra(sha256: [u8; 32]) -> [u8; EXTRA_SIZE] {
    let mut text = String::from("sha256:");
    for byte in sha256 {
        text.push_str(&format!("{byte:02x}"));
    }
    let mut extra = [0; EXTRA_SIZE];
    put(&mut extra, 0, text.as_bytes());
    extra
}

fn zero(storage: &mut impl Storage, extent: Extent) -> Result<(), WriteError> {
    write_zeros(storage, extent).map_err(|source| WriteError::Storage { what: "zeros over the object's data", source })
}

fn write_zeros(storage: &mut impl Storage, extent: Extent) -> io::Result<()> {
    let zeros = vec![0; extent.size.min(PIECE as u64) as usize];
    let mut done = 0;
    while done < extent.size {
        let length = (extent.size - done).min(PIECE as u64);
        storage.write_all_at(&zeros[..length as usize], extent.offset + done)?;
        done += length;
    }
    Ok(())
}

fn write_record(
    storage: &mut impl Storage,
    header: &Header,
    slot: u32,
    descriptor: &Descriptor,
) -> Result<(), WriteError> {
    // The table was made by us: its offset is positive.
    let offset = header.table_offset as u64 + u64::from(slot) * DESCRIPTOR_SIZE as u64;
    let failed = |source| WriteError::Storage { what: "descriptor table", source };
    storage.write_all_at(&descriptor.to_bytes(), offset).map_err(failed)
}

fn write_header(storage: &mut impl Storage, header: &Header) -> Result<(), WriteError> {
    storage.write_all_at(&header.to_bytes(), 0).map_err(|source| WriteError::Storage { what: "header", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sif::reader::tests::{image, squashfs};
    use crate::sif::{FileSystem, ReadAt};
    use proptest::prelude::*;

    const NOW: Stamp = Stamp::Now(Time(1_000_000));

    fn generic() -> NewObject {
        NewObject::new(DataType::Generic)
    }

    /// Ids and data of all objects; every one is sound.
    fn contents(image: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let reader = Reader::open(image).unwrap();
        reader.objects().iter().map(|object| (object.id(), reader.read(object, 1 << 20).unwrap())).collect()
    }

    fn ids(contents: &[(u32, Vec<u8>)]) -> Vec<u32> {
        contents.iter().map(|(id, _)| *id).collect()
    }

    /// What a machine leaves whose power goes off after some operations: all that was written before the last sync, and
    /// of what came later any part, torn at the edges of sectors.
    struct PowerCut {
        durable: Vec<u8>,
        current: Vec<u8>,
        pending: Vec<Pending>,
        operations_left: usize,
    }

    #[derive(Clone)]
    enum Pending {
        Write(Vec<u8>, u64),
        Size(u64),
    }

    const SECTOR: u64 = 512;

    impl PowerCut {
        fn new(image: Vec<u8>, operations_left: usize) -> Self {
            Self { durable: image.clone(), current: image, pending: Vec::new(), operations_left }
        }

        fn spend(&mut self) -> io::Result<()> {
            self.operations_left = self.operations_left.checked_sub(1).ok_or(io::ErrorKind::Other)?;
            Ok(())
        }

        /// The file after the crash: `chosen` says for each piece that was not synced whether it reached the disk.
        fn after_crash(&self, mut chosen: impl FnMut() -> bool) -> Vec<u8> {
            let mut file = self.durable.clone();
            for pending in &self.pending {
                match pending {
                    Pending::Size(size) if chosen() => file.set_size(*size).unwrap(),
                    Pending::Size(_) => {}
                    Pending::Write(bytes, offset) => {
                        let mut at = 0;
                        while at < bytes.len() {
                            let left_in_sector = SECTOR - (offset + at as u64) % SECTOR;
                            let end = bytes.len().min(at + left_in_sector as usize);
                            if chosen() {
                                file.write_all_at(&bytes[at..end], offset + at as u64).unwrap();
                            }
                            at = end;
                        }
                    }
                }
            }
            file
        }
    }

    impl ReadAt for PowerCut {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.current.read_exact_at(buffer, offset)
        }

        fn size(&self) -> io::Result<u64> {
            self.current.size()
        }
    }

    impl Storage for &mut PowerCut {
        fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
            self.spend()?;
            self.pending.push(Pending::Write(bytes.to_vec(), offset));
            self.current.write_all_at(bytes, offset)
        }

        fn set_size(&mut self, size_bytes: u64) -> io::Result<()> {
            self.spend()?;
            self.pending.push(Pending::Size(size_bytes));
            self.current.set_size(size_bytes)
        }

        fn sync(&mut self) -> io::Result<()> {
            self.spend()?;
            self.pending.clear();
            self.durable = self.current.clone();
            Ok(())
        }
    }

    impl ReadAt for &mut PowerCut {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            (**self).read_exact_at(buffer, offset)
        }

        fn size(&self) -> io::Result<u64> {
            (**self).size()
        }
    }

    /// What a user sees of an image: each object's id, kind and data.
    fn seen(image: &[u8]) -> Vec<(u32, Option<PartitionKind>, Vec<u8>)> {
        let reader = Reader::open(image).unwrap();
        let kind = |object: &Object| object.descriptor.partition().map(|partition| partition.kind);
        let objects = reader.objects().iter();
        objects.map(|object| (object.id(), kind(object), reader.read(object, 1 << 20).unwrap())).collect()
    }

    /// Cuts the power before each operation in turn, with many outcomes of each cut: the image is always the one of
    /// before or the one of after, and can be changed again.
    fn check_power_cuts(before: &[u8], change: impl Fn(&mut PowerCut) -> Result<(), WriteError>) {
        let mut whole = PowerCut::new(before.to_vec(), usize::MAX);
        change(&mut whole).unwrap();
        let (before_seen, after_seen) = (seen(before), seen(&whole.current));
        assert_ne!(before_seen, after_seen, "there is something to see");
        let mut state = 1_u64;
        for cuts in 0.. {
            let mut storage = PowerCut::new(before.to_vec(), cuts);
            let result = change(&mut storage);
            for outcome in 0..40 {
                let chosen = || match outcome {
                    0 => false,
                    1 => true,
                    _ => {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        state >> 63 == 1
                    }
                };
                let file = storage.after_crash(chosen);
                let found = seen(&file);
                assert!(found == before_seen || found == after_seen, "cut {cuts}, outcome {outcome}");
                // Whoever comes next repairs what is left to repair, and loses nothing.
                let mut writer = Writer::open(file).unwrap();
                assert!(writer.header.table_offset < writer.header.data_offset);
                let id = writer.add(&generic(), &[7; 5000][..], NOW).unwrap();
                let mut found_later = seen(&writer.into_storage());
                found_later.retain(|(known, ..)| *known != id);
                assert_eq!(found_later, found, "cut {cuts}, outcome {outcome}");
            }
            if result.is_ok() {
                assert!(cuts >= 9, "data, two tables, two headers and a sync after each: {cuts}");
                return;
            }
        }
    }

    fn on_writer(
        change: impl Fn(&mut Writer<&mut PowerCut>) -> Result<(), WriteError>,
    ) -> impl Fn(&mut PowerCut) -> Result<(), WriteError> {
        move |storage| change(&mut Writer::open(storage)?)
    }

    #[test]
    fn a_power_cut_leaves_the_image_of_before_or_of_after() {
        let image = image();
        check_power_cuts(&image, on_writer(|writer| writer.add(&generic(), &[9; 60_000][..], NOW).map(drop)));
        check_power_cuts(&image, on_writer(|writer| writer.delete(&[4], Deletion::default(), NOW)));
        check_power_cuts(&image, on_writer(|writer| writer.delete(&[1, 3, 4], Deletion::default(), NOW)));
        for zero in [false, true] {
            let deletion = Deletion { zero, compact: true };
            check_power_cuts(&image, on_writer(|writer| writer.delete(&[4], deletion, NOW)));
        }
    }

    #[test]
    fn a_power_cut_leaves_one_primary_partition() {
        let mut writer = Writer::open(image()).unwrap();
        let id = writer.add(&squashfs(PartitionKind::System), &b"another root"[..], NOW).unwrap();
        let image = writer.into_storage();
        check_power_cuts(&image, on_writer(|writer| writer.set_primary(id, NOW)));
    }

    #[test]
    fn a_power_cut_while_an_image_is_emptied_leaves_all_of_it_or_nothing() {
        check_power_cuts(&image(), |storage| make_empty(storage, &CreationOptions::deterministic()));
    }

    /// Storage without room for more than it holds.
    struct Full(Vec<u8>);

    impl ReadAt for Full {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_exact_at(buffer, offset)
        }

        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }
    }

    impl Storage for Full {
        fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
            if offset + bytes.len() as u64 > self.0.len() as u64 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.write_all_at(bytes, offset)
        }

        fn set_size(&mut self, size_bytes: u64) -> io::Result<()> {
            self.0.set_size(size_bytes)
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_file_system_refuses_data_and_lets_objects_be_deleted() {
        let mut writer = Writer::open(Full(image())).unwrap();
        let error = writer.add(&generic(), &b"more"[..], NOW).unwrap_err();
        assert!(matches!(&error, WriteError::Storage { source, .. } if source.kind() == io::ErrorKind::StorageFull));
        assert_eq!(writer.into_storage().0, image());
        let mut writer = Writer::open(Full(image())).unwrap();
        writer.delete(&[4], Deletion::default(), NOW).unwrap();
        assert_eq!(ids(&contents(&writer.into_storage().0)), [1, 2, 3]);
    }

    #[test]
    fn a_source_that_fails_leaves_the_image_as_it_was() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("broken"))?;
                Ok(buffer.len())
            }
        }
        let mut writer = Writer::open(image()).unwrap();
        let error = writer.add(&generic(), Broken(3), NOW).unwrap_err();
        assert!(matches!(error, WriteError::Source { .. }), "{error}");
        assert_eq!(writer.into_storage(), image());
    }

    fn refusal(object: &NewObject) -> WriteError {
        let mut writer = Writer::open(image()).unwrap();
        let error = writer.add(object, &b"x"[..], NOW).unwrap_err();
        assert_eq!(writer.into_storage(), image(), "nothing was changed");
        error
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        assert!(matches!(refusal(&generic().named([b'x'; 129])), WriteError::NameTooLong { length: 129 }));
        let group = NewObject { group: Some(1 << 28), ..generic() };
        assert!(matches!(refusal(&group), WriteError::GroupTooLarge { .. }));
        let link = NewObject { link: Link::Object(u32::MAX), ..generic() };
        assert!(matches!(refusal(&link), WriteError::LinkTooLarge { link: u32::MAX }));
        let far = NewObject { alignment: 1 << 63, ..generic() };
        assert!(matches!(refusal(&far), WriteError::Overflow));
        let arch = Arch::Other(*b"99\0");
        let strange = Partition { fs: FileSystem::Squashfs, kind: PartitionKind::System, arch };
        let strange = NewObject::partition(strange);
        assert!(matches!(refusal(&strange), WriteError::UnknownArchitecture { .. }));
        let second = squashfs(PartitionKind::PrimarySystem);
        assert!(matches!(refusal(&second), WriteError::SecondPrimary { id: 3 }));
        let options = CreationOptions { launch_line: vec![b'x'; 32], ..CreationOptions::deterministic() };
        let error = Creation::begin(Vec::new(), &options).unwrap_err();
        assert!(matches!(error, WriteError::LaunchLineTooLong { length: 32 }));
        let options = CreationOptions { capacity: u32::MAX, ..CreationOptions::deterministic() };
        assert!(matches!(Creation::begin(Vec::new(), &options).unwrap_err(), WriteError::Capacity { .. }));
    }

    #[test]
    fn a_name_may_fill_its_field() {
        let mut writer = Writer::open(image()).unwrap();
        let id = writer.add(&generic().named([b'x'; 128]), &b"x"[..], NOW).unwrap();
        let reader = Reader::open(writer.into_storage()).unwrap();
        assert_eq!(reader.by_id(id).unwrap().descriptor.name(), [b'x'; 128]);
    }

    fn damaged(at: usize, number: i64) -> Vec<u8> {
        let mut image = image();
        put(&mut image, at, &number.to_le_bytes());
        image
    }

    #[test]
    fn nothing_is_added_behind_an_object_whose_end_is_a_lie() {
        // The size of object 3.
        let mut writer = Writer::open(damaged(4096 + 2 * 585 + 25, 1 << 40)).unwrap();
        let error = writer.add(&generic(), &b"x"[..], NOW).unwrap_err();
        assert!(matches!(error, WriteError::Object(_)), "{error}");
        writer.delete(&[3], Deletion::default(), NOW).unwrap();
        assert_eq!(writer.add(&generic(), &b"x"[..], NOW).unwrap(), 3);
    }

    #[test]
    fn an_image_without_a_place_for_data_is_not_changed() {
        for offset in [-1, 0, 32_175] {
            let error = Writer::open(damaged(112, offset)).unwrap_err();
            assert!(matches!(error, WriteError::DataOffset { .. }), "{error}");
        }
    }

    #[test]
    fn an_id_that_another_slot_uses_is_not_given_again() {
        let mut odd = image();
        put(&mut odd, 4096 + 3 * 585 + 5, &5u32.to_le_bytes());
        let mut writer = Writer::open(odd).unwrap();
        assert_eq!(writer.add(&generic(), &b"x"[..], NOW).unwrap(), 6);
    }

    #[test]
    fn choosing_a_primary_partition_ends_a_dispute() {
        let mut disputed = image();
        put(&mut disputed, 4096 + 3 * 585 + 205, &2i32.to_le_bytes());
        let mut writer = Writer::open(disputed).unwrap();
        writer.set_primary(4, NOW).unwrap();
        assert_eq!(Reader::open(writer.into_storage()).unwrap().root().unwrap().id, 4);
    }

    #[test]
    fn only_system_partitions_become_primary() {
        let mut writer = Writer::open(image()).unwrap();
        assert!(matches!(writer.set_primary(1, NOW), Err(WriteError::NotAPartition { id: 1 })));
        assert!(matches!(writer.set_primary(4, NOW), Err(WriteError::NotASystemPartition { id: 4 })));
        assert!(matches!(writer.set_digest(1, [0; 32], NOW), Err(WriteError::NotOci { id: 1 })));
        writer.set_primary(3, NOW).unwrap();
        assert_eq!(writer.into_storage(), image(), "it was primary already");
    }

    #[test]
    fn a_list_of_deletions_is_done_whole_or_not_at_all() {
        let mut writer = Writer::open(image()).unwrap();
        assert!(writer.delete(&[1, 99], Deletion::default(), NOW).is_err());
        assert_eq!(writer.into_storage(), image());
    }

    #[test]
    fn a_partition_can_be_written_out_of_order() {
        let mut creation = Creation::begin(Vec::new(), &CreationOptions::deterministic()).unwrap();
        let mut sink = creation.sink(&squashfs(PartitionKind::PrimarySystem)).unwrap();
        sink.seek(SeekFrom::Start(96)).unwrap();
        sink.write_all(b"blocks").unwrap();
        assert_eq!(sink.stream_position().unwrap(), 102);
        sink.rewind().unwrap();
        sink.write_all(b"super").unwrap();
        assert_eq!(sink.seek(SeekFrom::End(-1)).unwrap(), 101);
        assert!(sink.seek(SeekFrom::Current(-102)).is_err());
        assert_eq!(sink.finish().unwrap(), 1);
        let mut expected = b"super".to_vec();
        expected.resize(96, 0);
        expected.extend(b"blocks");
        assert_eq!(contents(&creation.finish().unwrap()), [(1, expected)]);
    }

    #[test]
    fn a_gap_shows_nothing_of_what_was_deleted() {
        let mut writer = Writer::open(image()).unwrap();
        writer.delete(&[3, 4], Deletion::default(), NOW).unwrap();
        let mut sink = ObjectSink::begin(&mut writer, &generic(), Time::UNSET).unwrap();
        sink.seek(SeekFrom::Start(5000)).unwrap();
        sink.write_all(b"x").unwrap();
        let id = sink.finish().unwrap();
        writer.commit(&[id - 1]).unwrap();
        let mut expected = vec![0; 5000];
        expected.push(b'x');
        assert_eq!(contents(&writer.into_storage())[2].1, expected);
    }

    #[test]
    fn a_sink_that_was_dropped_leaves_no_object() {
        let mut creation = Creation::begin(Vec::new(), &CreationOptions::deterministic()).unwrap();
        creation.sink(&generic()).unwrap().write_all(b"lost").unwrap();
        creation.add(&generic(), &b"kept"[..]).unwrap();
        assert_eq!(contents(&creation.finish().unwrap()), [(1, b"kept".to_vec())]);
    }

    #[derive(Clone, Debug)]
    enum Change {
        Add(Vec<u8>, u64),
        Delete(u32, Deletion),
        SetPrimary(u32),
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let deletion = any::<(bool, bool)>().prop_map(|(zero, compact)| Deletion { zero, compact });
        prop_oneof![
            (prop::collection::vec(any::<u8>(), 0..300), 0..5000u64).prop_map(|(data, at)| Change::Add(data, at)),
            (0..9u32, deletion).prop_map(|(id, deletion)| Change::Delete(id, deletion)),
            (0..9u32).prop_map(Change::SetPrimary),
        ]
    }

    fn apply<S: Storage>(writer: &mut Writer<S>, change: &Change) -> Result<(), WriteError> {
        match change {
            Change::Add(data, alignment) => {
                let object = NewObject { alignment: *alignment, ..generic() };
                writer.add(&object, data.as_slice(), NOW).map(drop)
            }
            Change::Delete(id, deletion) => writer.delete(&[*id], *deletion, NOW),
            Change::SetPrimary(id) => writer.set_primary(*id, NOW),
        }
    }

    proptest! {
        #[test]
        fn changes_keep_an_image_sound_and_touch_nothing_else(changes in prop::collection::vec(any_change(), 0..12)) {
            let mut model: Vec<(u32, Vec<u8>)> = contents(&image());
            let mut writer = Writer::open(image()).unwrap();
            for change in &changes {
                let ids: Vec<u32> = writer.objects().iter().map(Object::id).collect();
                let done = apply(&mut writer, change).is_ok();
                match change {
                    Change::Add(data, _) => {
                        prop_assert!(done);
                        let id = writer.objects().iter().map(Object::id).find(|id| !ids.contains(id)).unwrap();
                        model.push((id, data.clone()));
                        model.sort();
                    }
                    Change::Delete(id, _) => {
                        prop_assert_eq!(done, ids.contains(id));
                        model.retain(|(known, _)| known != id);
                    }
                    Change::SetPrimary(_) => {}
                }
            }
            let image = writer.into_storage();
            prop_assert_eq!(contents(&image), model);
            let reader = Reader::open(image).unwrap();
            prop_assert_eq!(reader.header().descriptors_free as u64, reader.descriptors_free());
            prop_assert!(reader.header().is_deterministic());
        }

        #[test]
        fn changes_of_a_damaged_image_end_in_an_error_or_not_at_all(
            damage in prop::collection::vec((prop_oneof![0usize..128, 4096usize..6600], any::<u8>()), 1..8),
            changes in prop::collection::vec(any_change(), 1..4),
        ) {
            let mut image = image();
            for (at, byte) in damage {
                image[at] = byte;
            }
            let Ok(mut writer) = Writer::open(image) else { return Ok(()) };
            for change in &changes {
                let _ = apply(&mut writer, change);
            }
            let _ = Reader::open(writer.into_storage());
        }
    }
}
