//! ELF files as the dynamic linker sees them, and its cache: what a library is called, what it needs, where it lies.
//!
//! Both parsers work over bytes that are handed to them, and take nothing that they read for granted: a driver's
//! library can be as broken as an image's.

#[cfg(test)]
pub mod fabricate;
pub mod ld_cache;
mod object;

pub use object::{Class, ElfError, GlibcVersion, Object, ReadAt};
