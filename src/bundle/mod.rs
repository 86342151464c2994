//! OCI bundles: a directory with a `config.json` that says what to run and in what, as the OCI runtime specification has it.
//!
//! ```text
//! config.json ──► config::Config ──┐
//! the root file system, the host ──┴─► plan::plan ──► LaunchPlan       (pure)
//!                                                        │
//!          lifecycle::create ── fork ── performs it ─────┘             waits before the command
//!          lifecycle::start  ── a socket in the run directory ──►      execve
//! store    what is known of a container between two calls: <run directory>/<id>/{state.json,start}
//! ```
//!
//! A runtime's caller (podman, Slurm) knows a container by its id alone, so what is kept of it has to be believed with
//! care: [`store`] takes files of this user only, and [`lifecycle`] a process only if it is the one that was started.

pub mod config;
pub mod lifecycle;
pub mod options;
pub mod plan;
pub mod process;
pub mod record;
pub mod store;
pub mod template;
