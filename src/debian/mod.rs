//! Debian's archive, as text and bytes: which packages there are, which of them belong together, and what is in them.
//!
//! ```text
//! sources.list ──► Repository ──► Release ──► Packages ──► Index ──┐
//! (apt's files)    (where)        (digests)   (deb822)             ├──► resolve ──► packages ──► deb ──► Tree
//!                                          names that are wanted ──┘
//! ```
//!
//! Nothing here opens a file or a connection, and nothing is believed: `build::source::debootstrap` fetches, and compares
//! every file with the digest that a signed file states.

pub mod deb;
pub mod deb822;
pub mod index;
pub mod relation;
pub mod release;
pub mod resolve;
pub mod sources;
pub mod unpack;
pub mod version;
