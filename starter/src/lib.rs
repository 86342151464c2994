//! The language of launch plans, and what performs it.
//!
//! `sifu` decides and writes a [`plan::LaunchPlan`]; this package understands it and changes the world accordingly.
//! It parses no image format, draws no text beyond its own errors, and starts no thread.

pub mod image_server;
mod mounts;
pub mod paths;
pub mod perform;
pub mod plan;
pub mod resolve;
pub mod supervise;
pub mod sys;
pub mod trapped;
mod underlay;
