//! From request and facts to a launch plan (pure), and its start.

pub mod accounts;
pub mod binds;
pub mod capabilities;
pub mod diagnosis;
pub mod environment;
pub mod job;
pub mod layout;
pub mod mount_method;
pub mod plan;
pub mod ranks;
pub mod request;
pub mod seccomp;
pub mod start;
