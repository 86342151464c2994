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

// ---- the image server: descriptors it receives and must not keep, an end without clean-up ----

/// Receives bytes and at most one descriptor from a Unix socket; 0 bytes mean that the other end was closed.
/// The descriptor is closed on exec.
pub fn receive_descriptor(
    socket: std::os::fd::BorrowedFd<'_>,
    bytes: &mut [u8],
) -> std::io::Result<(usize, Option<std::os::fd::OwnedFd>)> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    // Room for a header and one descriptor, aligned as the header needs it.
    let mut ancillary = [0u64; 4];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero bytes are a valid `msghdr` (null pointers and zero lengths).
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.as_mut_ptr().cast();
    // SAFETY: pure arithmetic.
    let space = unsafe { libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) } as usize;
    message.msg_controllen = space as _;
    // SAFETY: `message` points to one iovec over `bytes` and to `ancillary`, which is longer than `space`; all three
    // outlive the call.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if count < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `message` was filled by a successful `recvmsg`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Ok((count as usize, None));
    }
    // SAFETY: `CMSG_FIRSTHDR` gave a non-null pointer: a whole, aligned header inside `ancillary`.
    let head = unsafe { std::ptr::read(header) };
    // SAFETY: pure arithmetic.
    let expected = unsafe { libc::CMSG_LEN(size_of::<libc::c_int>() as u32) } as usize;
    if head.cmsg_level != libc::SOL_SOCKET || head.cmsg_type != libc::SCM_RIGHTS || head.cmsg_len as usize != expected {
        return Ok((count as usize, None));
    }
    // SAFETY: `header` is valid; the result points behind it, inside `ancillary`.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: the length was checked: one `c_int` lies at `data`, perhaps unaligned.
    let raw = unsafe { std::ptr::read_unaligned(data.cast::<libc::c_int>()) };
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok((count as usize, Some(unsafe { OwnedFd::from_raw_fd(raw) })))
}

/// Closes every descriptor above 2 but `needed`. Only for a process that goes on with `needed` alone and ends by
/// [`exit_immediately`]: owners of other descriptors must not use or drop them afterwards.
pub fn close_all_except(needed: &[std::os::fd::BorrowedFd<'_>]) {
    use std::os::fd::AsRawFd;
    let mut kept: Vec<u32> = needed.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.into_iter().map(Some).chain([None]) {
        let end = last.map_or(u32::MAX, |kept| kept.saturating_sub(1));
        if first <= end && last.is_none_or(|kept| kept > first) {
            close_range(first, end);
        }
        first = last.map_or(first, |kept| first.max(kept + 1));
    }
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closes descriptors by number and touches no memory; that nobody uses them later is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        return;
    }
    // Kernels before 5.9: one by one, as far as descriptors are given out in practice.
    for descriptor in first..=last.min(4096) {
        // SAFETY: as above; a number that is not open is an error without effect.
        unsafe { libc::close(descriptor as libc::c_int) };
    }
}

/// Ends the process at once: no destructors, no handlers, no buffers flushed. For forked children, whose memory holds
/// copies of what their parent still has to write.
pub fn exit_immediately(code: i32) -> ! {
    // SAFETY: does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

// ---- names that must not be there yet ----

/// Renames `from` to `to` unless `to` exists (`EEXIST`); `EINVAL` where the file system can't promise that.
///
/// Written out because nix offers it for one C library only.
pub fn rename_if_new(from: &std::path::Path, to: &std::path::Path) -> nix::Result<()> {
    use nix::NixPath;
    let here = libc::AT_FDCWD;
    let result = from.with_nix_path(|from| {
        to.with_nix_path(|to| {
            // SAFETY: both names are NUL-terminated and outlive the call, which only reads them.
            unsafe {
                libc::syscall(libc::SYS_renameat2, here, from.as_ptr(), here, to.as_ptr(), libc::RENAME_NOREPLACE)
            }
        })
    })??;
    nix::errno::Errno::result(result).map(drop)
}

/// Gives the calling thread the lowest priority of ordinary ones: it runs where a CPU has nothing else to do.
pub fn lower_thread_priority() {
    // SAFETY: takes numbers only; 0 means the calling thread, since Linux keeps a nice value for each.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}
