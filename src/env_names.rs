//! Every environment variable name that sifu reads, once.
