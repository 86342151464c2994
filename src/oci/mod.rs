//! OCI and Docker images: what their documents say, and how their layers become one tree.
//!
//! ```text
//! blob ──► inflate ──► tar ──► layers::Merge ──► Tree          contents go to a `layers::Keep` as they stream by
//! ```
//!
//! Nothing here opens a file or a connection: `build::source` and `remote` bring the blobs.

pub mod digest;
pub mod documents;
pub mod inflate;
pub mod layers;
mod names;
pub mod reference;
pub mod runtime;
pub mod tar;

#[cfg(test)]
mod tests;
