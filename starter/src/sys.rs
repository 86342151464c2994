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

// ---- extended attributes ----

/// Names of the extended attributes of `path` itself (a symbolic link is not followed), each ended by NUL.
pub fn list_xattrs(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let path = c_path(path)?;
    sized_answer(|buffer| {
        // SAFETY: `path` is a NUL-terminated string that outlives the call; the kernel writes at most `buffer.len()`
        // bytes to `buffer`, which is exclusively ours for the call; with length 0 it writes nothing.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

/// The value of the extended attribute `name` of `path` itself (a symbolic link is not followed).
pub fn get_xattr(path: &std::path::Path, name: &std::ffi::CStr) -> std::io::Result<Vec<u8>> {
    let path = c_path(path)?;
    sized_answer(|buffer| {
        // SAFETY: `path` and `name` are NUL-terminated strings that outlive the call; the kernel writes at most
        // `buffer.len()` bytes to `buffer`, which is exclusively ours for the call; with length 0 it writes nothing.
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

fn c_path(path: &std::path::Path) -> std::io::Result<std::ffi::CString> {
    Ok(std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))?)
}

/// Asks for the size, then for the bytes, again while the answer grows in between.
fn sized_answer(call: impl Fn(&mut [u8]) -> libc::ssize_t) -> std::io::Result<Vec<u8>> {
    loop {
        let size = usize::try_from(call(&mut [])).map_err(|_| std::io::Error::last_os_error())?;
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; size];
        match usize::try_from(call(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(_) => {
                let error = std::io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ERANGE) {
                    return Err(error);
                }
            }
        }
    }
}
