//! The SIF file format.
