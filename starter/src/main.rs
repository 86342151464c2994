//! Reads a launch plan from an inherited descriptor and performs it.
fn main() {}
