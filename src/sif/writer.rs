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
//! Every change of an existing image is durable when the call returns, and leaves a sound image behind if the machine
//! stops in the middle: first the data (nothing of the old image is overwritten), then a sync, then the records that
//! changed, then the header, then a sync. Only then is a file cut. A header that is older than its table does no harm:
//! what it says of the objects is for people.

use super::descriptor::{DESCRIPTOR_SIZE, EXTRA_SIZE, GROUP_TAG, NAME_SIZE};
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

    /// Writes table and header, and returns the storage. Nothing was synced: a caller that renames the file into place
    /// does that.
    ///
    /// # Errors
    /// The medium failed.
    pub fn finish(self) -> Result<S, WriteError> {
        let Writer { mut storage, header, objects } = self.0;
        for object in &objects {
            write_record(&mut storage, &header, object.slot, Some(&object.descriptor))?;
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
        let table_end = header.table_offset + header.descriptors_total * DESCRIPTOR_SIZE as i64;
        if header.data_offset < table_end {
            return Err(WriteError::DataOffset { offset: header.data_offset });
        }
        Ok(Self { storage: reader.into_source(), header, objects })
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
        for &id in ids {
            let object = by_id(&self.objects, id)?;
            slots.push(object.slot);
            if deletion.zero {
                let extent = object.extent()?;
                zero(&mut self.storage, extent)?;
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

    /// Makes the state durable: the data written so far, then the records of `slots`, then the header.
    fn commit(&mut self, slots: &[u32]) -> Result<(), WriteError> {
        let free = self.header.descriptors_total - self.objects.len() as i64;
        self.header.descriptors_free = free;
        let failed = |source| WriteError::Storage { what: "image", source };
        self.storage.sync().map_err(failed)?;
        for &slot in slots {
            let object = self.objects.iter().find(|object| object.slot == slot);
            write_record(&mut self.storage, &self.header, slot, object.map(|object| &object.descriptor))?;
        }
        write_header(&mut self.storage, &self.header)?;
        self.storage.sync().map_err(failed)
    }
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

/// Writes the record of a slot, zeros for a free one.
fn write_record(
    storage: &mut impl Storage,
    header: &Header,
    slot: u32,
    descriptor: Option<&Descriptor>,
) -> Result<(), WriteError> {
    let record = descriptor.map_or([0; DESCRIPTOR_SIZE], Descriptor::to_bytes);
    // The table was checked, or made by us: its offset is positive and its slots lie in the file.
    let offset = header.table_offset as u64 + u64::from(slot) * DESCRIPTOR_SIZE as u64;
    let failed = |source| WriteError::Storage { what: "descriptor table", source };
    storage.write_all_at(&record, offset).map_err(failed)
}

fn write_header(storage: &mut impl Storage, header: &Header) -> Result<(), WriteError> {
    storage.write_all_at(&header.to_bytes(), 0).map_err(|source| WriteError::Storage { what: "header", source })
}
