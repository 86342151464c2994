//! The site's configuration: what an administrator allows and arranges for every user.
//!
//! [`directives`] is the one table; `conf/sifu.conf`, as it is installed, is written from it. A file is parsed by
//! [`parse`] into [`Settings`], which [`SiteConfig`] reads in types. Only [`load`] opens files.

pub mod directives;
pub mod load;
pub mod nearest;
pub mod parse;

pub use directives::{EnableOverlay, MemoryFilesystem, MountDev, RootCapabilities, SiteConfig};
pub use parse::Settings;
