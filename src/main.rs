//! argv to `cli::run`, its answer to an exit code.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    sifu::cli::run()
}
