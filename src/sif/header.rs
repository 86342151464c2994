//! The SIF global header: bytes 0..128 of every image, little-endian, no padding.
//!
//! ```text
//!   0        32      42        45     48     64        72         80     88      96          104        112         120
//!   | launch | magic | version | arch | id   | created | modified | free | total | table at  | table    | data at   | data
//!   |  text  | 10    | "01\0"  | 3    | uuid | i64     | i64      | i64  | i64   | (offset)  | size     | (offset)  | size
//! ```
//!
//! Read with [`Header::parse`], write with [`Header::to_bytes`]. Both are pure: bytes in, bytes out.

use super::{Arch, OpenError, Time, bytes_at, i64_at, put, until_nul};
use std::fmt;

/// Size of the header in bytes.
pub const HEADER_SIZE: usize = 128;
/// Where the magic stands, in bytes.
pub const MAGIC_OFFSET: usize = 32;
pub const MAGIC: [u8; 10] = *b"SIF_MAGIC\0";
/// The only version of the format.
pub const VERSION: [u8; 3] = *b"01\0";

/// The identity of an image: a UUID, all zero for none. Bytes stand in the order of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageId(pub [u8; 16]);

impl ImageId {
    pub const NIL: Self = Self([0; 16]);

    /// Makes a version 4 UUID of 16 random bytes.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// The fields of the header. The signed ones are as the file has them: nothing but magic and version is checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// A `#!` line, NUL filled.
    pub launch: [u8; 32],
    /// Copy of the primary partition's architecture.
    pub arch: Arch,
    pub id: ImageId,
    pub created: Time,
    pub modified: Time,
    /// For people: the truth is in the table.
    pub descriptors_free: i64,
    pub descriptors_total: i64,
    pub table_offset: i64,
    pub table_size: i64,
    pub data_offset: i64,
    pub data_size: i64,
}

impl Header {
    /// Reads the header of a file that begins with `bytes`.
    ///
    /// # Errors
    /// Fewer than 128 bytes, a wrong magic, or another version than 01.
    pub fn parse(bytes: &[u8]) -> Result<Self, OpenError> {
        let magic = bytes.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len());
        if magic.is_none_or(|magic| magic[..MAGIC.len() - 1] != MAGIC[..MAGIC.len() - 1]) {
            return Err(OpenError::NotSif);
        }
        let Some(record) = bytes.first_chunk::<HEADER_SIZE>() else {
            return Err(OpenError::TooShort { size_bytes: bytes.len() as u64 });
        };
        if bytes_at::<10>(record, MAGIC_OFFSET) != MAGIC {
            return Err(OpenError::MagicNotTerminated);
        }
        let version = bytes_at(record, 42);
        if version != VERSION {
            return Err(OpenError::Version { found: version });
        }
        Ok(Self {
            launch: bytes_at(record, 0),
            arch: Arch::from_code(bytes_at(record, 45)),
            id: ImageId(bytes_at(record, 48)),
            created: Time(i64_at(record, 64)),
            modified: Time(i64_at(record, 72)),
            descriptors_free: i64_at(record, 80),
            descriptors_total: i64_at(record, 88),
            table_offset: i64_at(record, 96),
            table_size: i64_at(record, 104),
            data_offset: i64_at(record, 112),
            data_size: i64_at(record, 120),
        })
    }

    /// The header as a file holds it.
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE] {
        let mut record = [0; HEADER_SIZE];
        put(&mut record, 0, &self.launch);
        put(&mut record, MAGIC_OFFSET, &MAGIC);
        put(&mut record, 42, &VERSION);
        put(&mut record, 45, &self.arch.code());
        put(&mut record, 48, &self.id.0);
        let numbers = [
            self.created.0,
            self.modified.0,
            self.descriptors_free,
            self.descriptors_total,
            self.table_offset,
            self.table_size,
            self.data_offset,
            self.data_size,
        ];
        for (index, number) in numbers.iter().enumerate() {
            put(&mut record, 64 + 8 * index, &number.to_le_bytes());
        }
        record
    }

    /// The launch line without its NULs.
    pub fn launch_line(&self) -> &[u8] {
        until_nul(&self.launch)
    }

    /// Whether the image is kept free of times and identity, so that equal contents give equal files.
    pub fn is_deterministic(&self) -> bool {
        self.id == ImageId::NIL && self.created.is_unset() && self.modified.is_unset()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::sif) fn any_header() -> impl Strategy<Value = Header> {
        let numbers = prop::array::uniform8(any::<i64>());
        (prop::array::uniform32(any::<u8>()), any::<[u8; 3]>(), any::<[u8; 16]>(), numbers).prop_map(
            |(launch, arch, id, n)| Header {
                launch,
                arch: Arch::from_code(arch),
                id: ImageId(id),
                created: Time(n[0]),
                modified: Time(n[1]),
                descriptors_free: n[2],
                descriptors_total: n[3],
                table_offset: n[4],
                table_size: n[5],
                data_offset: n[6],
                data_size: n[7],
            },
        )
    }

    proptest! {
        #[test]
        fn a_header_survives_the_way_through_bytes(header in any_header()) {
            prop_assert_eq!(Header::parse(&header.to_bytes()).unwrap(), header);
        }

        #[test]
        fn any_bytes_are_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::parse(&bytes);
        }
    }

    fn reason(change: impl FnOnce(&mut Vec<u8>)) -> OpenError {
        let mut bytes = vec![0; HEADER_SIZE];
        put(&mut bytes, MAGIC_OFFSET, &MAGIC);
        put(&mut bytes, 42, &VERSION);
        change(&mut bytes);
        Header::parse(&bytes).unwrap_err()
    }

    #[test]
    fn damage_of_magic_version_and_length_is_told_apart() {
        assert!(matches!(reason(|b| b[40] = b'X'), OpenError::NotSif));
        assert!(matches!(reason(|b| b[41] = b'X'), OpenError::MagicNotTerminated));
        assert!(matches!(reason(|b| b[43] = b'2'), OpenError::Version { found: [b'0', b'2', 0] }));
        assert!(matches!(reason(|b| b.truncate(127)), OpenError::TooShort { size_bytes: 127 }));
        assert!(matches!(reason(|b| b.truncate(30)), OpenError::NotSif));
    }

    #[test]
    fn an_id_prints_in_the_order_of_its_bytes() {
        let bytes: [u8; 16] = std::array::from_fn(|i| i as u8 * 0x11);
        assert_eq!(ImageId(bytes).to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn a_random_id_says_that_it_is_random() {
        assert_eq!(ImageId::from_random([0xff; 16]).to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(ImageId::from_random([0; 16]).to_string(), "00000000-0000-4000-8000-000000000000");
    }
}
