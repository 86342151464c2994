//! A shell: evaluates the environment scripts of an image before the container starts, and runs scripts inside where
//! an image has no shell of its own.
//!
//! ```text
//! text ── parse ──► ast ── evaluate ──► variables, exit code
//!                             │
//!                             ▼ World
//!             pure: the image, looked up      process: the container, lived in
//! ```
//!
//! The language is POSIX's, and the few extensions that environment scripts use in practice (see [`parse`]). What it
//! lacks it says: there are no arrays, no jobs, no traps and no aliases.

mod arithmetic;
pub mod ast;
mod builtins;
mod escapes;
pub mod evaluate;
mod expand;
pub mod parse;
mod pattern;
pub mod process;
pub mod pure;
mod test_command;
pub mod world;

pub use ast::is_name;
pub use builtins::single_quote;
pub use evaluate::{Flow, Fuel, Shell, Stop};
pub use parse::{ParseError, parse};
pub use pure::PureWorld;
pub use world::World;

#[cfg(test)]
mod tests;
