//! What a user can see: one binary, one module per verb or subject, run against a built sifu.
//!
//! `cargo test` runs it against the sifu of its own build; `make test` against the one that `make build` made, as root
//! and as two ordinary users (`SIFU_TEST_BIN` names it, `SIFU_TEST_ROOT` the copy of what the tests read).
#![forbid(unsafe_code)]

mod accelerator_host;
mod need;
mod support;

mod agents;
mod build;
mod cleanliness;
mod cli;
mod corrupt;
mod debootstrap;
mod definition;
mod doctor;
mod environment;
mod exec;
mod gpu;
mod host_command;
mod image;
mod inspect;
mod killed;
mod library;
mod mpi;
mod no_room;
mod oci;
mod ranks;
mod registry;
mod rooms;
mod root_emulation;
mod run;
mod serve;
mod sif;
mod slurm;
mod subordinate_ids;
mod terminal;
