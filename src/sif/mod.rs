//! The SIF file format: one file that holds a container's root file system and what belongs to it.
//!
//! ```text
//! 0        global header, 128 bytes                            header.rs
//! 128      unused, zero
//! 4096     descriptor table: N records of 585 bytes            descriptor.rs
//! ...      data objects, each at its own alignment
//! ```
//!
//! All integers are little-endian, structures are packed, times are seconds since 1970 with [`Time::UNSET`] for none.
//! Positions come from the header and the descriptors only: the 4096 above is what writers choose, not a rule.
//!
//! [`Reader`] works over anything that reads at an offset ([`ReadAt`]) and never trusts a number of the file.
//! [`Writer`] changes an image in place, [`Creation`] makes a new one. [`text`] is what the `sif` verbs print.

pub mod arch;
pub mod descriptor;
mod error;
pub mod header;
mod reader;
mod storage;
pub mod text;
mod time;
mod writer;

pub use arch::Arch;
pub use descriptor::{
    CryptoFormat, CryptoMessage, DataType, Descriptor, FileSystem, HashType, Link, MessageType, Partition,
    PartitionKind, SbomFormat, Signature,
};
pub use error::{ObjectError, OpenError, Problem, RootError, WriteError};
pub use header::{Header, ImageId};
pub use reader::{Extent, Object, Reader, RootPartition, is_sif, launch_line_length};
pub use storage::{ReadAt, Storage};
pub use time::Time;
pub use writer::{Creation, CreationOptions, Deletion, NewObject, ObjectSink, Stamp, Writer, make_empty};

/// The launch line of images that can be executed: the kernel runs `run-singularity IMAGE`.
pub const LAUNCH_LINE: &[u8] = b"#!/usr/bin/env run-singularity\n";
/// The object that holds the configuration of the OCI or Docker image that a SIF file was made from.
pub const CONFIG_OBJECT: &str = "oci-config.json";
/// Descriptors of a new image, unless asked otherwise.
pub const DEFAULT_CAPACITY: u32 = 48;
/// The largest descriptor table that is read: 65536 records are 36 MiB.
pub const MAX_DESCRIPTORS: u64 = 65536;

/// Copies the `N` bytes at `at` out of a record. Both are constants of the layouts, and the callers' records are arrays.
fn bytes_at<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&record[at..at + N]);
    bytes
}

fn i32_at(record: &[u8], at: usize) -> i32 {
    i32::from_le_bytes(bytes_at(record, at))
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(record, at))
}

fn i64_at(record: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(bytes_at(record, at))
}

fn put(record: &mut [u8], at: usize, bytes: &[u8]) {
    record[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The text of a fixed-width field: what stands before its first NUL, or all of it.
fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}
