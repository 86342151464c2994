//! sifu: single-file (SIF) containers for ordinary users. `docs/ARCHITECTURE.md` is the map.
#![forbid(unsafe_code)]

pub mod build;
pub mod bundle;
pub mod cache;
pub mod cli;
pub mod conf;
pub mod debian;
pub mod def;
pub mod elf;
pub mod env_names;
pub mod gpu;
pub mod host;
pub mod host_command;
pub mod image;
pub mod launch;
pub mod mpi;
pub mod oci;
pub mod remembered;
pub mod remote;
pub mod report;
pub mod root_emulation;
pub mod serve;
pub mod shell;
pub mod sif;
pub mod squashfs;
pub mod tree;
pub mod yaml;
