//! OCI and Docker images: what their documents say, and how their layers become one tree.
//!
//! ```text
//! blob ──► inflate ──► tar ──► layers::Merge ──► Tree          contents go to a `layers::Keep` as they stream by
//! Tree ──► write_tar ──► gzip ──► blob                         the way back; `exported` is the configuration for it
//! ```
//!
//! Nothing here opens a file or a connection: `build::source` and `remote` bring the blobs.

pub mod digest;
pub mod documents;
pub mod exported;
pub mod gzip;
pub mod inflate;
pub mod layers;
mod names;
pub mod reference;
pub mod runtime;
pub mod tar;
pub mod write_tar;

#[cfg(test)]
mod tests;
