//! A file system as a value, and the way to look something up in one.

pub mod lookup;
pub use lookup::{Entry, Kind, Lookup, LookupError, Resolved, Stat};
