//! SquashFS 4.0 images: reader and writer.
//!
//! ```text
//!   | superblock | data blocks and fragments | inode table | directory table | fragment, export, id, xattr tables |
//! ```
//!
//! The [`Reader`] reads by position from a shared descriptor, never by a memory map: an image that is replaced or
//! truncated while it is in use is an error, not a signal. It checks every value on disk before using it.

mod as_tree;
mod cache;
mod codec;
mod directory;
mod error;
mod file;
mod inode;
mod lookup;
mod lzo;
mod metadata;
mod reader;
mod source;
mod superblock;
mod walk;
pub mod write;
mod xattr;

pub use as_tree::AsTreeError;
pub use directory::{Directory, DirectoryEntry, ListingPosition, NAME_BYTES_MAX};
pub use error::SquashfsError;
pub use file::{BlockBytes, Piece};
pub use inode::{Inode, InodeRef};
pub use lookup::PathReader;
pub use reader::{Ahead, InodeReader, Reader};
pub use source::{Bytes, ReadAt};
pub use superblock::{Compression, SUPERBLOCK_BYTES, Superblock, SuperblockError};
pub use walk::{Visit, Walk};
