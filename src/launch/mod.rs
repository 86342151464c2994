//! From request and facts to a launch plan (pure), and its start.

pub mod diagnosis;
pub mod environment;
pub mod request;
