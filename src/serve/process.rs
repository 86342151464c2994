//! What the server does with itself before it serves: it must outlive the signals, limits and sessions of the job that
//! it was forked in, and hold nothing of it.

use nix::fcntl::{OFlag, open};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use std::ffi::CStr;
use std::os::fd::BorrowedFd;

/// Makes this process a server called `name` that keeps `needed` descriptors only. Nothing of this is needed to serve, so what a
/// host refuses is left as it is.
pub(crate) fn settle(name: &CStr, needed: &[BorrowedFd<'_>]) {
    // A signal for the job (an interrupt, a time limit) is not for the image that the job still reads.
    let _ = SigSet::all().thread_block();
    let _ = setsid();
    let _ = chdir("/");
    if let Ok(null) = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
        let _ = dup2_stdin(&null);
        let _ = dup2_stdout(&null);
        let _ = dup2_stderr(&null);
    }
    starter::sys::close_all_except(needed);
    let _ = prctl::set_no_new_privs();
    let _ = prctl::set_dumpable(false);
    let _ = prctl::set_name(name);
    for resource in [Resource::RLIMIT_CPU, Resource::RLIMIT_AS, Resource::RLIMIT_DATA] {
        if let Ok((_, hard)) = getrlimit(resource) {
            let _ = setrlimit(resource, hard, hard);
        }
    }
}

/// Lets this process run on every CPU of its cpuset: a job's tasks are often bound to one, and the server inherits
/// that. Gives the number of CPUs.
pub(super) fn use_all_cpus() -> usize {
    let mut all = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        let _ = all.set(cpu);
    }
    let this = Pid::from_raw(0);
    let _ = sched_setaffinity(this, &all);
    match nix::sched::sched_getaffinity(this) {
        Ok(cpus) => (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu).unwrap_or(false)).count().max(1),
        Err(_) => 1,
    }
}
