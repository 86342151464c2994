//! The command line: flags, verbs, and what they print.

pub mod inspect;
pub mod run_help;
pub mod sif;

pub fn run() -> std::process::ExitCode {
    std::process::ExitCode::from(255)
}
