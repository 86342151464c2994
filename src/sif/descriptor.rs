//! A SIF descriptor: one record of 585 bytes in the table says what a data object is and where its bytes are.
//!
//! ```text
//!   0      4      5    9       13     17       25     33          41        49         57    65    73       201      585
//!   | type | used | id | group | link | offset | size | size with | created | modified | uid | gid | name   | extra  |
//!   | i32  | u8   | u32| u32   | u32  | i64    | i64  | padding   | i64     | i64      | i64 | i64 | 128    | 384    |
//! ```
//!
//! A free slot is 585 zero bytes; [`Descriptor`] is a used one. Groups and links carry a tag in their top four bits:
//! `0xF` marks a group. What `extra` means depends on the type: [`Partition`], [`Signature`], [`CryptoMessage`],
//! [`SbomFormat`], or the digest of an OCI object as text.

use super::{Arch, Time, bytes_at, i32_at, i64_at, put, u32_at, until_nul};

/// Size of a record in bytes.
pub const DESCRIPTOR_SIZE: usize = 585;
/// Where the `used` byte stands in a record.
pub const USED_OFFSET: usize = 4;
/// Longest name in bytes.
pub const NAME_SIZE: usize = 128;
/// Room for what a type adds, in bytes.
pub const EXTRA_SIZE: usize = 384;
/// The tag of groups, in the group field and in links to groups.
pub const GROUP_TAG: u32 = 0xf000_0000;

/// What a data object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    DefinitionFile,
    Environment,
    Labels,
    Partition,
    Signature,
    GenericJson,
    Generic,
    CryptoMessage,
    Sbom,
    OciRootIndex,
    OciBlob,
    /// A type that this program does not know: it can be listed and dumped, not used.
    Other(i32),
}

/// Index + 0x4001 = code; the texts are those of `sif list`.
const DATA_TYPES: [(DataType, &str); 11] = [
    (DataType::DefinitionFile, "Def.FILE"),
    (DataType::Environment, "Env.Vars"),
    (DataType::Labels, "JSON.Labels"),
    (DataType::Partition, "FS"),
    (DataType::Signature, "Signature"),
    (DataType::GenericJson, "JSON.Generic"),
    (DataType::Generic, "Generic/Raw"),
    (DataType::CryptoMessage, "Cryptographic Message"),
    (DataType::Sbom, "SBOM"),
    (DataType::OciRootIndex, "OCI.RootIndex"),
    (DataType::OciBlob, "OCI.Blob"),
];
const FIRST_DATA_TYPE: i32 = 0x4001;

impl DataType {
    pub fn from_code(code: i32) -> Self {
        find(&DATA_TYPES, code, FIRST_DATA_TYPE).unwrap_or(Self::Other(code))
    }

    /// The type with this number on a command line: 1 (definition file) to 11 (OCI blob).
    pub fn from_number(number: i64) -> Option<Self> {
        find(&DATA_TYPES, i32::try_from(number).ok()?, 1)
    }

    pub fn code(self) -> i32 {
        if let Self::Other(code) = self { code } else { code_of(&DATA_TYPES, self, FIRST_DATA_TYPE) }
    }

    pub fn name(self) -> &'static str {
        name_of(&DATA_TYPES, self)
    }
}

/// The file system in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileSystem {
    Squashfs,
    Ext3,
    Archive,
    Raw,
    /// SquashFS in a LUKS2 volume.
    EncryptedSquashfs,
    /// SquashFS whose blocks are a gocryptfs directory.
    GocryptfsSquashfs,
    Other(i32),
}

const FILE_SYSTEMS: [(FileSystem, &str); 6] = [
    (FileSystem::Squashfs, "Squashfs"),
    (FileSystem::Ext3, "Ext3"),
    (FileSystem::Archive, "Archive"),
    (FileSystem::Raw, "Raw"),
    (FileSystem::EncryptedSquashfs, "Encrypted squashfs"),
    (FileSystem::GocryptfsSquashfs, "Gocryptfs squashfs"),
];

impl FileSystem {
    pub fn from_code(code: i32) -> Self {
        find(&FILE_SYSTEMS, code, 1).unwrap_or(Self::Other(code))
    }

    pub fn code(self) -> i32 {
        if let Self::Other(code) = self { code } else { code_of(&FILE_SYSTEMS, self, 1) }
    }

    pub fn name(self) -> &'static str {
        name_of(&FILE_SYSTEMS, self)
    }
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartitionKind {
    System,
    /// The one System partition that is the container's root.
    PrimarySystem,
    Data,
    Overlay,
    Other(i32),
}

const PARTITION_KINDS: [(PartitionKind, &str); 4] = [
    (PartitionKind::System, "System"),
    (PartitionKind::PrimarySystem, "*System"),
    (PartitionKind::Data, "Data"),
    (PartitionKind::Overlay, "Overlay"),
];

impl PartitionKind {
    pub fn from_code(code: i32) -> Self {
        find(&PARTITION_KINDS, code, 1).unwrap_or(Self::Other(code))
    }

    pub fn code(self) -> i32 {
        if let Self::Other(code) = self { code } else { code_of(&PARTITION_KINDS, self, 1) }
    }

    pub fn name(self) -> &'static str {
        name_of(&PARTITION_KINDS, self)
    }
}

/// The digest algorithm of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashType {
    Sha256,
    Sha384,
    Sha512,
    Blake2s256,
    Blake2b256,
    Other(i32),
}

const HASH_TYPES: [(HashType, &str); 5] = [
    (HashType::Sha256, "SHA-256"),
    (HashType::Sha384, "SHA-384"),
    (HashType::Sha512, "SHA-512"),
    (HashType::Blake2s256, "BLAKE2s-256"),
    (HashType::Blake2b256, "BLAKE2b-256"),
];

impl HashType {
    pub fn from_code(code: i32) -> Self {
        find(&HASH_TYPES, code, 1).unwrap_or(Self::Other(code))
    }

    pub fn code(self) -> i32 {
        if let Self::Other(code) = self { code } else { code_of(&HASH_TYPES, self, 1) }
    }

    pub fn name(self) -> &'static str {
        name_of(&HASH_TYPES, self)
    }
}

/// How a cryptographic message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CryptoFormat {
    OpenPgp,
    Pem,
    Other(i32),
}

const CRYPTO_FORMATS: [(CryptoFormat, &str); 2] = [(CryptoFormat::OpenPgp, "OpenPGP"), (CryptoFormat::Pem, "PEM")];

impl CryptoFormat {
    pub fn from_code(code: i32) -> Self {
        find(&CRYPTO_FORMATS, code, 1).unwrap_or(Self::Other(code))
    }

    pub fn code(self) -> i32 {
        if let Self::Other(code) = self { code } else { code_of(&CRYPTO_FORMATS, self, 1) }
    }

    pub fn name(self) -> &'static str {
        name_of(&CRYPTO_FORMATS, self)
    }
}

/// What a cryptographic message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    ClearSignature,
    RsaOaep,
    Other(i32),
}

impl MessageType {
    pub fn from_code(code: i32) -> Self {
        match code {
            0x100 => Self::ClearSignature,
            0x200 => Self::RsaOaep,
            _ => Self::Other(code),
        }
    }

    pub fn code(self) -> i32 {
        match self {
            Self::ClearSignature => 0x100,
            Self::RsaOaep => 0x200,
            Self::Other(code) => code,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::ClearSignature => "Clear Signature",
            Self::RsaOaep => "RSA-OAEP",
            Self::Other(_) => UNKNOWN,
        }
    }
}

/// How a software bill of materials is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SbomFormat {
    CycloneDxJson,
    CycloneDxXml,
    GitHubJson,
    SpdxJson,
    SpdxRdf,
    SpdxTagValue,
    SpdxYaml,
    SyftJson,
    Other(i32),
}

const SBOM_FORMATS: [(SbomFormat, &str); 8] = [
    (SbomFormat::CycloneDxJson, "cyclonedx-json"),
    (SbomFormat::CycloneDxXml, "cyclonedx-xml"),
    (SbomFormat::GitHubJson, "github-json"),
    (SbomFormat::SpdxJson, "spdx-json"),
    (SbomFormat::SpdxRdf, "spdx-rdf"),
    (SbomFormat::SpdxTagValue, "spdx-tag-value"),
    (SbomFormat::SpdxYaml, "spdx-yaml"),
    (SbomFormat::SyftJson, "syft-json"),
];

impl SbomFormat {
    pub fn from_code(code: i32) -> Self {
        find(&SBOM_FORMATS, code, 1).unwrap_or(Self::Other(code))
    }

    pub fn from_name(name: &str) -> Option<Self> {
        SBOM_FORMATS.iter().find(|(_, known)| *known == name).map(|(format, _)| *format)
    }

    pub fn code(self) -> i32 {
        if let Self::Other(code) = self { code } else { code_of(&SBOM_FORMATS, self, 1) }
    }

    pub fn name(self) -> &'static str {
        name_of(&SBOM_FORMATS, self)
    }

    pub fn to_extra(self) -> [u8; EXTRA_SIZE] {
        extra(&[&self.code().to_le_bytes()])
    }
}

/// The name of every code that has none.
pub const UNKNOWN: &str = "Unknown";

fn find<T: Copy>(table: &[(T, &str)], code: i32, first: i32) -> Option<T> {
    let index = usize::try_from(code.checked_sub(first)?).ok()?;
    table.get(index).map(|(value, _)| *value)
}

/// The code of a value of the table; the tables are shorter than `i32` is wide.
fn code_of<T: Copy + PartialEq>(table: &[(T, &str)], value: T, first: i32) -> i32 {
    table.iter().position(|(known, _)| *known == value).map_or(0, |index| first + index as i32)
}

fn name_of<T: Copy + PartialEq>(table: &[(T, &'static str)], value: T) -> &'static str {
    table.iter().find(|(known, _)| *known == value).map_or(UNKNOWN, |(_, name)| name)
}

/// Joins the parts of an `extra` field and fills it with zeros.
fn extra(parts: &[&[u8]]) -> [u8; EXTRA_SIZE] {
    let mut field = [0; EXTRA_SIZE];
    let mut at = 0;
    for part in parts {
        put(&mut field, at, part);
        at += part.len();
    }
    field
}

/// What `extra` says of a partition: file system (i32), kind (i32), architecture (3 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Partition {
    pub fs: FileSystem,
    pub kind: PartitionKind,
    pub arch: Arch,
}

impl Partition {
    pub fn from_extra(field: &[u8; EXTRA_SIZE]) -> Self {
        Self {
            fs: FileSystem::from_code(i32_at(field, 0)),
            kind: PartitionKind::from_code(i32_at(field, 4)),
            arch: Arch::from_code(bytes_at(field, 8)),
        }
    }

    pub fn to_extra(self) -> [u8; EXTRA_SIZE] {
        extra(&[&self.fs.code().to_le_bytes(), &self.kind.code().to_le_bytes(), &self.arch.code()])
    }
}

/// What `extra` says of a signature: hash type (i32), 256 bytes of which 20 are the signer's fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    pub hash: HashType,
    /// OpenPGP v4 fingerprint of the signer; all zero for signatures by other means.
    pub fingerprint: [u8; 20],
}

impl Signature {
    pub fn from_extra(field: &[u8; EXTRA_SIZE]) -> Self {
        Self { hash: HashType::from_code(i32_at(field, 0)), fingerprint: bytes_at(field, 4) }
    }

    pub fn to_extra(self) -> [u8; EXTRA_SIZE] {
        extra(&[&self.hash.code().to_le_bytes(), &self.fingerprint])
    }
}

/// What `extra` says of a cryptographic message: format (i32), message type (i32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CryptoMessage {
    pub format: CryptoFormat,
    pub message: MessageType,
}

impl CryptoMessage {
    pub fn from_extra(field: &[u8; EXTRA_SIZE]) -> Self {
        Self { format: CryptoFormat::from_code(i32_at(field, 0)), message: MessageType::from_code(i32_at(field, 4)) }
    }

    pub fn to_extra(self) -> [u8; EXTRA_SIZE] {
        extra(&[&self.format.code().to_le_bytes(), &self.message.code().to_le_bytes()])
    }
}

/// What an object is linked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    None,
    /// The object with this id.
    Object(u32),
    /// The group with this id.
    Group(u32),
}

impl Link {
    /// The link field of a descriptor. Ids are below 2^28: the tag has the bits above.
    pub fn to_raw(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Object(id) => id,
            Self::Group(id) => GROUP_TAG | id,
        }
    }
}

/// A used record of the table, field by field as the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub data_type: DataType,
    pub id: u32,
    /// Group with its tag.
    pub group: u32,
    /// Link with its tag.
    pub link: u32,
    pub offset: i64,
    pub size: i64,
    pub size_with_padding: i64,
    pub created: Time,
    pub modified: Time,
    pub uid: i64,
    pub gid: i64,
    pub name: [u8; NAME_SIZE],
    pub extra: [u8; EXTRA_SIZE],
}

impl Descriptor {
    /// Reads a record; `None` for a free slot. Any nonzero `used` byte counts.
    pub fn parse(record: &[u8; DESCRIPTOR_SIZE]) -> Option<Self> {
        if record[USED_OFFSET] == 0 {
            return None;
        }
        Some(Self {
            data_type: DataType::from_code(i32_at(record, 0)),
            id: u32_at(record, 5),
            group: u32_at(record, 9),
            link: u32_at(record, 13),
            offset: i64_at(record, 17),
            size: i64_at(record, 25),
            size_with_padding: i64_at(record, 33),
            created: Time(i64_at(record, 41)),
            modified: Time(i64_at(record, 49)),
            uid: i64_at(record, 57),
            gid: i64_at(record, 65),
            name: bytes_at(record, 73),
            extra: bytes_at(record, 201),
        })
    }

    /// The record as a file holds it.
    pub fn to_bytes(&self) -> [u8; DESCRIPTOR_SIZE] {
        let mut record = [0; DESCRIPTOR_SIZE];
        put(&mut record, 0, &self.data_type.code().to_le_bytes());
        record[USED_OFFSET] = 1;
        put(&mut record, 5, &self.id.to_le_bytes());
        put(&mut record, 9, &self.group.to_le_bytes());
        put(&mut record, 13, &self.link.to_le_bytes());
        let numbers =
            [self.offset, self.size, self.size_with_padding, self.created.0, self.modified.0, self.uid, self.gid];
        for (index, number) in numbers.iter().enumerate() {
            put(&mut record, 17 + 8 * index, &number.to_le_bytes());
        }
        put(&mut record, 73, &self.name);
        put(&mut record, 201, &self.extra);
        record
    }

    /// The group's id; `None` for objects in no group.
    pub fn group_id(&self) -> Option<u32> {
        Some(self.group & !GROUP_TAG).filter(|&id| id != 0)
    }

    /// What the object is linked to. A tag that means nothing is read as part of an object's id.
    pub fn linked(&self) -> Link {
        match self.link {
            0 => Link::None,
            raw if raw & GROUP_TAG == GROUP_TAG => Link::Group(raw & !GROUP_TAG),
            raw => Link::Object(raw),
        }
    }

    /// The name, which may hold anything, terminal escapes and slashes included.
    pub fn name(&self) -> &[u8] {
        until_nul(&self.name)
    }

    /// What a partition says of itself; `None` for other types.
    pub fn partition(&self) -> Option<Partition> {
        (self.data_type == DataType::Partition).then(|| Partition::from_extra(&self.extra))
    }

    /// Whether this is a partition of the `kind`.
    pub fn is_partition(&self, kind: PartitionKind) -> bool {
        self.partition().is_some_and(|partition| partition.kind == kind)
    }

    pub fn signature(&self) -> Option<Signature> {
        (self.data_type == DataType::Signature).then(|| Signature::from_extra(&self.extra))
    }

    pub fn crypto_message(&self) -> Option<CryptoMessage> {
        (self.data_type == DataType::CryptoMessage).then(|| CryptoMessage::from_extra(&self.extra))
    }

    pub fn sbom(&self) -> Option<SbomFormat> {
        (self.data_type == DataType::Sbom).then(|| SbomFormat::from_code(i32_at(&self.extra, 0)))
    }

    /// The digest of an OCI object, `sha256:` and 64 hex digits; `None` for other types and when it is no such text.
    pub fn digest(&self) -> Option<&str> {
        if !matches!(self.data_type, DataType::OciRootIndex | DataType::OciBlob) {
            return None;
        }
        let text = std::str::from_utf8(until_nul(&self.extra)).ok()?;
        let hex = text.strip_prefix("sha256:")?;
        let is_hex = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then_some(text)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::sif) fn any_descriptor() -> impl Strategy<Value = Descriptor> {
        let small = prop_oneof![0x4000..0x400du32, any::<u32>()];
        let tail = prop::collection::vec(any::<u8>(), NAME_SIZE + EXTRA_SIZE);
        let numbers = prop::array::uniform7(any::<i64>());
        (small, any::<[u32; 3]>(), numbers, tail).prop_map(|(code, words, n, tail)| Descriptor {
            data_type: DataType::from_code(code as i32),
            id: words[0],
            group: words[1],
            link: words[2],
            offset: n[0],
            size: n[1],
            size_with_padding: n[2],
            created: Time(n[3]),
            modified: Time(n[4]),
            uid: n[5],
            gid: n[6],
            name: bytes_at(&tail, 0),
            extra: bytes_at(&tail, NAME_SIZE),
        })
    }

    proptest! {
        #[test]
        fn a_descriptor_survives_the_way_through_bytes(descriptor in any_descriptor()) {
            prop_assert_eq!(Descriptor::parse(&descriptor.to_bytes()), Some(descriptor));
        }

        #[test]
        fn what_extra_says_survives_the_way_through_bytes(fs in -2..9i32, kind in -2..9i32, arch: [u8; 3]) {
            let partition = Partition {
                fs: FileSystem::from_code(fs),
                kind: PartitionKind::from_code(kind),
                arch: Arch::from_code(arch),
            };
            prop_assert_eq!(Partition::from_extra(&partition.to_extra()), partition);
            let message = CryptoMessage {
                format: CryptoFormat::from_code(fs),
                message: MessageType::from_code(kind * 0x100),
            };
            prop_assert_eq!(CryptoMessage::from_extra(&message.to_extra()), message);
            let signature = Signature { hash: HashType::from_code(fs), fingerprint: [kind as u8; 20] };
            prop_assert_eq!(Signature::from_extra(&signature.to_extra()), signature);
        }
    }

    #[test]
    fn a_free_slot_is_no_descriptor_and_any_used_byte_is_one() {
        let mut record = [0; DESCRIPTOR_SIZE];
        assert_eq!(Descriptor::parse(&record), None);
        record[USED_OFFSET] = 255;
        assert!(Descriptor::parse(&record).is_some());
    }

    #[test]
    fn codes_are_those_of_the_format() {
        assert_eq!(DataType::Partition.code(), 0x4004);
        assert_eq!(DataType::OciBlob.code(), 0x400b);
        assert_eq!(DataType::from_code(0x4000), DataType::Other(0x4000));
        assert_eq!(DataType::from_code(0x400c), DataType::Other(0x400c));
        assert_eq!(DataType::from_number(0), None);
        assert_eq!(DataType::from_number(12), None);
        assert_eq!(DataType::from_number(i64::MAX), None);
        assert_eq!(FileSystem::from_code(i32::MIN), FileSystem::Other(i32::MIN));
        assert_eq!(FileSystem::GocryptfsSquashfs.code(), 6);
        assert_eq!(PartitionKind::PrimarySystem.code(), 2);
        assert_eq!(SbomFormat::from_name("syft-json").map(SbomFormat::code), Some(8));
    }

    fn with_link(link: u32) -> Link {
        let mut record = [0; DESCRIPTOR_SIZE];
        record[USED_OFFSET] = 1;
        put(&mut record, 13, &link.to_le_bytes());
        Descriptor::parse(&record).map_or(Link::None, |d| d.linked())
    }

    #[test]
    fn links_say_whether_they_lead_to_an_object_or_a_group() {
        assert_eq!(with_link(0), Link::None);
        assert_eq!(with_link(4), Link::Object(4));
        assert_eq!(with_link(0xf000_0001), Link::Group(1));
        assert_eq!(with_link(0x3000_0001), Link::Object(0x3000_0001));
    }

    #[test]
    fn a_digest_is_a_digest_or_nothing() {
        let mut record = [0; DESCRIPTOR_SIZE];
        record[USED_OFFSET] = 1;
        put(&mut record, 0, &DataType::OciBlob.code().to_le_bytes());
        let digest =
            |record: &[u8; DESCRIPTOR_SIZE]| Descriptor::parse(record).and_then(|d| d.digest().map(str::to_owned));
        assert_eq!(digest(&record), None);
        let text = format!("sha256:{}", "0f".repeat(32));
        put(&mut record, 201, text.as_bytes());
        assert_eq!(digest(&record), Some(text));
        record[201 + 71] = b'0';
        assert_eq!(digest(&record), None);
        record[201 + 71] = 0x1b;
        assert_eq!(digest(&record), None);
    }
}
