//! argv to `cli::run`, its answer to an exit code.
#![forbid(unsafe_code)]

#[global_allocator]
static ALLOCATOR: starter::sys::ArenaFirst = starter::sys::ArenaFirst;

fn main() -> std::process::ExitCode {
    sifu::cli::run()
}
