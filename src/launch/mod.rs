//! From request and facts to a launch plan (pure), and its start.

pub mod capabilities;
pub mod diagnosis;
pub mod environment;
pub mod request;
pub mod seccomp;
