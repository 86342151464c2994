//! Arbitrary bytes as a SIF image: opened, listed, read and changed. Nothing may panic, and what the reader calls sound
//! must lie in the file; an image that was changed must still be one.
//!
//! An image begins with 4096 bytes of which 128 count, so the input is the header, then the table, then data: the zeros
//! between are put in here, and the positions that a fuzzer would have to guess are offered by the first byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sifu::sif::{DataType, Deletion, NewObject, Reader, Stamp, Time, Writer, text};

const HEADER: usize = 128;
const TABLE: usize = 4096;
const RECORD: usize = 585;

/// The image that an input stands for.
fn image(input: &[u8]) -> Vec<u8> {
    let Some((&how, bytes)) = input.split_first() else { return Vec::new() };
    if how & 1 == 0 {
        return bytes.to_vec();
    }
    let (header, table) = bytes.split_at(bytes.len().min(HEADER));
    let mut image = header.to_vec();
    image.resize(TABLE, 0);
    image.extend_from_slice(table);
    if how & 2 != 0 {
        image[32..45].copy_from_slice(b"SIF_MAGIC\x0001\0");
        let records = (table.len() / RECORD) as i64;
        let numbers = [records, TABLE as i64, records * RECORD as i64, TABLE as i64 + records * RECORD as i64];
        for (index, number) in numbers.iter().enumerate() {
            image[88 + 8 * index..96 + 8 * index].copy_from_slice(&number.to_le_bytes());
        }
    }
    image
}

fuzz_target!(|input: &[u8]| {
    let image = image(input);
    let Ok(reader) = Reader::open(image.as_slice()) else { return };
    let _ = text::header(reader.header(), reader.descriptors_free());
    assert_eq!(text::list(reader.objects()).lines().count(), 3 + reader.objects().len());
    for object in reader.objects() {
        let _ = text::info(&object.descriptor);
        if let Ok(data) = reader.read(object, 1 << 20) {
            let extent = object.extent().expect("it was read");
            assert!(extent.size == 0 || extent.offset + extent.size <= image.len() as u64);
            assert_eq!(data.len() as u64, extent.size);
        }
    }
    if let Ok(root) = reader.root() {
        assert!(root.extent.size == 0 || root.extent.offset + root.extent.size <= image.len() as u64);
        let _ = reader.overlay_partitions(&root).count();
    }
    let ids: Vec<u32> = reader.objects().iter().map(|object| object.id()).collect();
    let Ok(mut writer) = Writer::open(image) else { return };
    let now = Stamp::Now(Time(0));
    if writer.add(&NewObject::new(DataType::Generic), &b"added"[..], now).is_ok() {
        let id = writer.objects().iter().map(|object| object.id()).find(|id| !ids.contains(id)).expect("a new id");
        let object = writer.objects().iter().find(|object| object.id() == id).expect("the new object").clone();
        let reader = Reader::open(writer.into_storage()).expect("still an image");
        assert_eq!(reader.read(&object, 5).expect("its data"), b"added");
        writer = Writer::open(reader.into_source()).expect("still an image");
    }
    if let Some(&id) = ids.first() {
        let _ = writer.set_primary(id, now);
        let deletion = Deletion { zero: id % 2 == 0, compact: id % 3 == 0 };
        let _ = writer.delete(&[id], deletion, now);
    }
    assert!(Reader::open(writer.into_storage()).is_ok());
});
