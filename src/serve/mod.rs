//! The FUSE server of image partitions.
