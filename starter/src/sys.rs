//! Every `unsafe` block of the repository, behind safe functions.
#![allow(unsafe_code)]

// ---- what a host is asked ----

/// Runs `work` in a child process and returns the child's pid; `work`'s answer is the child's exit code.
///
/// The child has one thread, whatever this process has. It may allocate: the C libraries in use keep their allocators
/// sound across a fork. It must not take locks that another thread may have held.
pub fn fork_child(work: impl FnOnce() -> u8) -> std::io::Result<i32> {
    // SAFETY: `fork` takes no pointers. The child returns to `work` alone and leaves by `_exit`, so nothing that belongs
    // to the parent (destructors, exit handlers, buffered output) runs twice.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(std::io::Error::last_os_error()),
        0 => {
            // A panic must not unwind into a copy of the parent's stack.
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(255);
            // SAFETY: `_exit` takes a number, returns never, and runs no code of this process.
            unsafe { libc::_exit(libc::c_int::from(code)) }
        }
        pid => Ok(pid),
    }
}

/// Says whether the file at `path` has the extended attribute `name`, whatever its value.
pub fn has_xattr(path: &std::ffi::CStr, name: &std::ffi::CStr) -> bool {
    // SAFETY: both names are NUL-terminated and outlive the call; with a size of 0 the kernel writes nothing to the
    // null buffer and answers with the value's length.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    length >= 0
}
