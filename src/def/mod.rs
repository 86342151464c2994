//! Definition files: text that says how an image is built.
//!
//! ```text
//! Bootstrap: localimage          header of a stage: where its file system comes from
//! From: base.sif
//! Stage: final
//!
//! %files from build              sections: a name, arguments, lines up to the next section
//!     /opt/app /opt/app
//! %post -c /bin/bash
//!     make install
//! ```
//!
//! Nothing here reads a file or runs anything.

mod header;

pub use header::{Header, Key};
