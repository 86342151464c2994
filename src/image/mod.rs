//! What the user pointed at: a SIF file, a bare SquashFS, a sandbox directory.

pub mod metadata;
