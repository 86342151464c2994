//! SquashFS: reader and writer.
