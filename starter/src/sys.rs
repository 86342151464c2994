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

/// `listxattrat(2)`: Linux 6.13 and newer, on every machine under this number.
const LISTXATTRAT: libc::c_long = 465;

/// Names of the extended attributes of `name` in `directory` (a symbolic link is not followed), each ended by NUL. Fails with
/// `ENOSYS` before Linux 6.13.
pub fn list_xattrs_at(directory: std::os::fd::BorrowedFd<'_>, name: &std::ffi::CStr) -> std::io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd;
    let directory = directory.as_raw_fd();
    sized_answer(|buffer| {
        // SAFETY: `name` is a NUL-terminated string and `directory` a descriptor that outlive the call; the kernel writes at
        // most `buffer.len()` bytes to `buffer`, which is exclusively ours for the call; with length 0 it writes nothing.
        let answer = unsafe {
            libc::syscall(
                LISTXATTRAT,
                directory,
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        answer as libc::ssize_t
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
pub fn rename_if_new(from: &std::path::Path, to: &std::path::Path) -> nix::Result<()> {
    rename_with(from, to, libc::RENAME_NOREPLACE)
}

/// Lets two names change places in one step, whatever they name; `EINVAL` where the file system can't.
pub fn rename_exchange(one: &std::path::Path, other: &std::path::Path) -> nix::Result<()> {
    rename_with(one, other, libc::RENAME_EXCHANGE)
}

/// Written out because nix offers it for one C library only.
fn rename_with(from: &std::path::Path, to: &std::path::Path, flags: libc::c_uint) -> nix::Result<()> {
    use nix::NixPath;
    let here = libc::AT_FDCWD;
    let result = from.with_nix_path(|from| {
        to.with_nix_path(|to| {
            // SAFETY: both names are NUL-terminated and outlive the call, which only reads them.
            unsafe { libc::syscall(libc::SYS_renameat2, here, from.as_ptr(), here, to.as_ptr(), flags) }
        })
    })??;
    nix::errno::Errno::result(result).map(drop)
}

/// Gives the calling thread the lowest priority of ordinary ones: it runs where a CPU has nothing else to do.
pub fn lower_thread_priority() {
    // SAFETY: takes numbers only; 0 means the calling thread, since Linux keeps a nice value for each.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

// ---- a process that nobody waits for ----

/// Runs `work` in a child process that the caller's own waits never report: its end sends no signal, and only a wait
/// for all kinds of children sees it. A tracer of this process does not get the child either.
///
/// The same holds for `work` as in [`fork_child`].
pub fn fork_unseen(work: impl FnOnce() -> u8) -> std::io::Result<i32> {
    // The exit signal, the lowest byte, is 0.
    let flags = libc::c_long::from(libc::CLONE_UNTRACED);
    // SAFETY: without CLONE_VM this is a fork: a null stack means that the child goes on with its copy of this one, and
    // the other pointers are not used without their flags. What the C library caches of the thread's id is stale in
    // the child; it asks the kernel wherever that counts, and so does this program. As in `fork_child`, the child
    // leaves by `_exit`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(std::io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(255);
            exit_immediately(i32::from(code))
        }
        pid => Ok(pid as i32),
    }
}

/// Opens a descriptor for a process, which polls as readable once the process has ended; closed on exec.
pub fn pidfd_open(pid: i32) -> nix::Result<std::os::fd::OwnedFd> {
    // SAFETY: takes two numbers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Gives an inherited descriptor an owner, and closes it on exec; `None` if it is not open.
pub fn inherited_fd(number: i32) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: takes numbers only.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the descriptor is open, as the call has just shown; it was handed over to this process by number, and
    // whoever starts this process by that convention gives it no other owner.
    (result == 0).then(|| unsafe { std::os::fd::OwnedFd::from_raw_fd(number) })
}

/// A descriptor that a system call has just made.
fn owned(result: libc::c_long) -> nix::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let raw = nix::errno::Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(raw as libc::c_int) })
}

// ---- mounts by descriptors (Linux 5.2, mount_setattr 5.12) ----

/// Attributes of a mount, to be set; see `mount_setattr(2)`.
pub mod mount_attr {
    pub const RDONLY: u64 = 1;
    pub const NOSUID: u64 = 2;
    pub const NODEV: u64 = 4;
    pub const NOEXEC: u64 = 8;
}

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// Copies the mount at `path` (relative to `directory`; empty for `directory` itself), with all below it if
/// `recursive`. The copy is attached nowhere.
pub fn open_tree(
    directory: Option<std::os::fd::BorrowedFd<'_>>,
    path: &std::path::Path,
    recursive: bool,
) -> nix::Result<std::os::fd::OwnedFd> {
    use nix::NixPath;
    use std::os::fd::AsRawFd;
    let directory = directory.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    let mut flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= libc::AT_EMPTY_PATH as libc::c_uint;
    }
    owned(path.with_nix_path(|path| {
        // SAFETY: the path is NUL-terminated and outlives the call, which only reads it.
        unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) }
    })?)
}

/// Attaches the mount of `mount` at what `target` refers to.
pub fn move_mount(mount: std::os::fd::BorrowedFd<'_>, target: std::os::fd::BorrowedFd<'_>) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (mount.as_raw_fd(), target.as_raw_fd());
    // SAFETY: both paths are empty static strings; the rest are numbers.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) };
    nix::errno::Errno::result(result).map(drop)
}

/// Sets attributes (see [`mount_attr`]) of the mount of `mount`, and of all below it if `recursive`.
pub fn mount_setattr(mount: std::os::fd::BorrowedFd<'_>, attributes: u64, recursive: bool) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    /// `struct mount_attr`: set, clear, propagation, user namespace.
    #[repr(C)]
    struct MountAttr([u64; 4]);
    let attr = MountAttr([attributes, 0, 0, 0]);
    let mut flags = libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: the path is an empty static string; `attr` has the layout and the size that are stated, and outlives the
    // call, which only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    nix::errno::Errno::result(result).map(drop)
}

/// A file system that is being configured, before it is mounted.
#[derive(Debug)]
pub struct FsContext(std::os::fd::OwnedFd);

impl FsContext {
    /// Begins a file system of a kind, such as `tmpfs`.
    pub fn open(kind: &std::ffi::CStr) -> nix::Result<Self> {
        // SAFETY: the name is NUL-terminated and outlives the call, which only reads it.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    /// Sets an option that has a value.
    pub fn set(&self, key: &std::ffi::CStr, value: &str) -> nix::Result<()> {
        let value = std::ffi::CString::new(value).map_err(|_| nix::errno::Errno::EINVAL)?;
        self.configure(FSCONFIG_SET_STRING, Some(key), Some(&value))
    }

    /// Sets an option that has none.
    pub fn set_flag(&self, key: &std::ffi::CStr) -> nix::Result<()> {
        self.configure(FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// Makes the file system and a mount of it with attributes (see [`mount_attr`]), attached nowhere.
    pub fn mount(&self, attributes: u64) -> nix::Result<std::os::fd::OwnedFd> {
        use std::os::fd::AsRawFd;
        self.configure(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: takes numbers only.
        owned(unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as libc::c_uint)
        })
    }

    fn configure(
        &self,
        command: libc::c_uint,
        key: Option<&std::ffi::CStr>,
        value: Option<&std::ffi::CStr>,
    ) -> nix::Result<()> {
        use std::os::fd::AsRawFd;
        let key = key.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
        let value = value.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
        // SAFETY: key and value are null or NUL-terminated strings that outlive the call, which only reads them; which
        // of them a command needs, the kernel checks.
        let result = unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, 0) };
        nix::errno::Errno::result(result).map(drop)
    }
}

/// Makes the current directory the root, and detaches the old one with the mounts over it: `mounts` in all.
pub fn pivot_root_here(mounts: u32) -> nix::Result<()> {
    // SAFETY: both paths are static strings.
    let result = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    nix::errno::Errno::result(result)?;
    // The old root lies over the new one at `.`, and over it what lay over it before: the last one is seen.
    for _ in 0..mounts {
        // SAFETY: the path is a static string.
        let result = unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) };
        nix::errno::Errno::result(result)?;
    }
    Ok(())
}

// ---- privileges ----

/// `struct __user_cap_header_struct` and its data for 64 capabilities, see `capget(2)`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// Effective, permitted and inheritable, the low 32 bits, then the high ones.
type CapabilityData = [[u32; 3]; 2];

/// The effective capabilities of this thread, a bit each.
pub fn effective_capabilities() -> nix::Result<u64> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data: CapabilityData = [[0; 3]; 2];
    // SAFETY: header and data have the layout of version 3 and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    nix::errno::Errno::result(result)?;
    Ok(u64::from(data[0][0]) | u64::from(data[1][0]) << 32)
}

/// Keeps exactly `keep` of this thread's capabilities: permitted, effective, inheritable and ambient ones.
pub fn keep_capabilities(keep: u64) -> nix::Result<()> {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    nix::errno::Errno::result(result)?;
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let data: CapabilityData = [[keep as u32; 3], [(keep >> 32) as u32; 3]];
    // SAFETY: header and data have the layout of version 3 and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    nix::errno::Errno::result(result)?;
    for capability in (0..64).filter(|bit| keep >> bit & 1 == 1) {
        // SAFETY: takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) };
        nix::errno::Errno::result(result)?;
    }
    Ok(())
}

/// Takes every capability but `keep` out of the bounding set, for good.
pub fn bound_capabilities(keep: u64) -> nix::Result<()> {
    for capability in (0..64u64).filter(|bit| keep >> bit & 1 == 0) {
        // SAFETY: takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match nix::errno::Errno::result(result) {
            Ok(_) => {}
            // The first number that this kernel has no capability for.
            Err(nix::errno::Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Puts a filter on this thread's system calls: `struct sock_filter` instructions, 8 bytes each.
pub fn install_seccomp(program: &[u8]) -> nix::Result<()> {
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let Ok(len) = u16::try_from(instructions.len()) else { return Err(nix::errno::Errno::EINVAL) };
    let filter = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `filter` states the length of `instructions`; both outlive the call, which only reads them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    nix::errno::Errno::result(result).map(drop)
}

// ---- signals ----

/// Lets `signal` do again what it does by default. The Rust runtime ignores SIGPIPE, which a program started from it
/// would inherit.
pub fn default_signal(signal: nix::sys::signal::Signal) -> nix::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed that could run at a bad moment.
    unsafe { sigaction(signal, &action) }.map(drop)
}

/// Sends `signal` to the process of a descriptor from [`pidfd_open`]; 0 only asks whether it could be sent.
pub fn pidfd_send_signal(process: std::os::fd::BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: takes numbers and a null pointer, which the call allows.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, nothing, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// Makes `terminal` the controlling terminal of this session, whose leader the process must be.
pub fn control_terminal(terminal: std::os::fd::BorrowedFd<'_>) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: takes numbers only.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// Sets a limit of this process by its number; `u64::MAX` is none.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call, which only reads it.
    let result = unsafe { libc::setrlimit(resource as _, &raw const limit) };
    nix::errno::Errno::result(result).map(drop)
}

// ---- the loopback interface ----

/// Brings up `lo` of this network namespace.
pub fn bring_up_loopback() -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: takes numbers only.
    let socket =
        owned(libc::c_long::from(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }))?;
    // SAFETY: all-zero bytes are a valid `ifreq`: an empty name and a union of plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is an `ifreq` with its name ended by NUL; it outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    nix::errno::Errno::result(result).map(drop)
}

// ---- children ----

/// Forks; gives the child's pid in the parent and `None` in the child. For a process with one thread, so that nothing
/// is locked in the child that nobody will unlock.
pub fn fork() -> nix::Result<Option<i32>> {
    // SAFETY: takes no pointers; with one thread the child has all that the parent has.
    let pid = nix::errno::Errno::result(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// Waits for `child`, and gives its status as `wait(2)` has it.
pub fn wait_status(child: i32) -> nix::Result<i32> {
    let mut status = 0;
    // SAFETY: `status` outlives the call, which writes one `int` to it.
    nix::errno::Errno::result(unsafe { libc::waitpid(child, &raw mut status, 0) })?;
    Ok(status)
}

/// Reaps a child that has ended, if there is one: its pid and status.
pub fn reap_any() -> nix::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call, which writes one `int` to it.
    let pid = nix::errno::Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    Ok((pid != 0).then_some((pid, status)))
}

// ---- inherited descriptors ----

/// Closes on exec those inherited descriptors that would lead a program out of its container: directories, paths,
/// namespaces. Files, pipes and sockets that the caller opened for the program stay, as redirections mean it.
pub fn shield_descriptors() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<libc::c_int>().ok());
    for number in numbers.filter(|&number| number > 2).collect::<Vec<_>>() {
        if leads_outside(number) {
            // SAFETY: takes numbers only.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Closes on exec every inherited descriptor but the standard ones.
pub fn close_on_exec_all() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<libc::c_int>().ok());
    for number in numbers.filter(|&number| number > 2).collect::<Vec<_>>() {
        // SAFETY: takes numbers only.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

fn leads_outside(number: libc::c_int) -> bool {
    /// `NSFS_MAGIC` of `linux/magic.h`.
    const NSFS: u64 = 0x6e73_6673;
    // SAFETY: takes numbers only.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFL) };
    if flags < 0 {
        return false;
    }
    // SAFETY: all-zero bytes are a valid `stat`, a struct of numbers.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` outlives the call, which fills it.
    let result = unsafe { libc::fstat(number, &raw mut stat) };
    let directory = result == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    // SAFETY: all-zero bytes are a valid `statfs`, a struct of numbers.
    let mut file_system: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `file_system` outlives the call, which fills it.
    let result = unsafe { libc::fstatfs(number, &raw mut file_system) };
    let namespace = result == 0 && file_system.f_type as u64 == NSFS;
    flags & libc::O_PATH != 0 || directory || namespace
}

// ---- root emulation: seccomp notifications ----

/// Gives the calling thread and what it will start a seccomp filter; the listener gets the calls that it hands over.
/// The listener is closed on exec. `EBUSY` when a filter further out has a listener already.
pub fn install_seccomp_listener(program: &[libc::sock_filter]) -> std::io::Result<std::os::fd::OwnedFd> {
    // A signal may not interrupt a call that the supervisor has begun: it would be begun twice. Linux 5.19.
    match install_listener(program, libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        installed => return installed,
    }
    // Once the filter is there it can't be taken away.
    try_seccomp_listener()?;
    install_listener(program, 0)
}

/// Tries whether a supervisor can give callers descriptors (Linux 5.9), and so whether it can leave calls to the kernel
/// (5.5): `EINVAL` if not. A child tries it.
pub fn try_seccomp_listener() -> std::io::Result<()> {
    let allow =
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let child = fork_child(|| {
        let _ = nix::sys::prctl::set_no_new_privs();
        let told = install_listener(&[allow], 0).and_then(|listener| {
            use std::os::fd::AsFd;
            add_descriptor(listener.as_fd(), NO_CALL, listener.as_fd(), false, 0).map(drop)
        });
        match told.map_err(|error| error.raw_os_error()) {
            // There is no such call, or there is a supervisor around this process already.
            Err(Some(libc::ENOENT | libc::EBUSY)) => 0,
            Err(Some(errno)) => u8::try_from(errno).unwrap_or(u8::MAX),
            Ok(()) | Err(None) => u8::MAX,
        }
    })?;
    let status: std::process::ExitStatus = std::os::unix::process::ExitStatusExt::from_raw(wait_status(child)?);
    match status.success() {
        true => Ok(()),
        false => Err(std::io::Error::from_raw_os_error(status.code().unwrap_or(libc::EINVAL))),
    }
}

/// The kernel counts calls from a random number; that it is this one is as good as impossible.
const NO_CALL: u64 = 0;

fn install_listener(program: &[libc::sock_filter], more: libc::c_ulong) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let length = u16::try_from(program.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // The filter is no sandbox: nothing is to be slowed down for its sake (kernels before 5.16 do so by default).
    let flags = more | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: `filter` and the `length` instructions that it points to outlive the call, which copies and checks them and
    // writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        Ok(raw) if raw >= 0 => Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(raw) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// Names the call until it is answered.
    pub id: u64,
    /// The calling thread, as the receiver's process namespace knows it.
    pub thread: i32,
    pub number: i32,
    pub arguments: [u64; 6],
}

/// Waits for the next call; `ENOENT` when the caller has gone meanwhile.
pub fn receive_notification(listener: std::os::fd::BorrowedFd<'_>) -> std::io::Result<Notification> {
    use std::os::fd::AsRawFd;
    // A later kernel may know more fields than these eighty bytes.
    #[repr(C)]
    struct Roomy {
        known: libc::seccomp_notif,
        more: [u64; 32],
    }
    // SAFETY: all-zero bytes are valid for these structures of integers.
    let mut notification: Roomy = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `struct seccomp_notif` to the buffer, which is larger and ours for the call; it must
    // be zero before, and is.
    let result =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut notification) };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let Roomy { known, .. } = notification;
    Ok(Notification {
        id: known.id,
        thread: known.pid.cast_signed(),
        number: known.data.nr,
        arguments: known.data.args,
    })
}

/// What a call that waits is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotificationAnswer {
    /// The kernel performs the call as if there were no filter.
    Continue,
    Value(i64),
    /// An error number, above 0.
    Error(i32),
}

/// Answers the call `id`; `ENOENT` when the caller has gone meanwhile.
pub fn answer_notification(
    listener: std::os::fd::BorrowedFd<'_>,
    id: u64,
    answer: NotificationAnswer,
) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let (val, error, flags) = match answer {
        NotificationAnswer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        NotificationAnswer::Value(value) => (value, 0, 0),
        NotificationAnswer::Error(number) => (0, -number, 0),
    };
    let mut response = libc::seccomp_notif_resp { id, val, error, flags };
    // SAFETY: `response` is a whole `struct seccomp_notif_resp` that outlives the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw mut response) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the call `id` still waits: its thread is then the one that made it.
pub fn notification_is_valid(listener: std::os::fd::BorrowedFd<'_>, id: u64) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: the kernel reads the eight bytes of `id`, which outlive the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw const id) };
    result == 0
}

/// Answers the call `id` with a copy of `descriptor`, made in the caller.
pub fn answer_with_descriptor(
    listener: std::os::fd::BorrowedFd<'_>,
    id: u64,
    descriptor: std::os::fd::BorrowedFd<'_>,
    close_on_exec: bool,
) -> std::io::Result<()> {
    match add_descriptor(listener, id, descriptor, close_on_exec, libc::SECCOMP_ADDFD_FLAG_SEND as u32) {
        // Before Linux 5.14 these are two steps; a caller that goes away in between takes the descriptor along.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let number = add_descriptor(listener, id, descriptor, close_on_exec, 0)?;
            answer_notification(listener, id, NotificationAnswer::Value(number.into()))
        }
        answered => answered.map(drop),
    }
}

/// Copies `descriptor` into the caller of `id`; gives its number there.
fn add_descriptor(
    listener: std::os::fd::BorrowedFd<'_>,
    id: u64,
    descriptor: std::os::fd::BorrowedFd<'_>,
    close_on_exec: bool,
    flags: u32,
) -> std::io::Result<i32> {
    use std::os::fd::AsRawFd;
    let mut request = libc::seccomp_notif_addfd {
        id,
        flags,
        srcfd: descriptor.as_raw_fd().cast_unsigned(),
        newfd: 0,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
    };
    // SAFETY: `request` is a whole `struct seccomp_notif_addfd` that outlives the call, and its descriptor is open.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw mut request) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// Lets the kernel run caller and supervisor on one CPU in turn, where it can (Linux 6.6): a wake-up across CPUs costs
/// more than the work.
pub fn wake_on_this_cpu(listener: std::os::fd::BorrowedFd<'_>) {
    use std::os::fd::AsRawFd;
    // `SECCOMP_IOCTL_NOTIF_SET_FLAGS` and `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`: write of eight bytes, number 4.
    const SET_FLAGS: u32 = (1 << 30) | (8 << 16) | ((b'!' as u32) << 8) | 4;
    // SAFETY: the argument is a number, not an address.
    unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS as _, 1_u64) };
}

/// Reads memory of another process at `address`; gives how many bytes could be read.
pub fn read_memory(thread: i32, address: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: buffer.len() };
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which is ours for the call. The remote address
    // is resolved in the other process only.
    let count = unsafe { libc::process_vm_readv(thread, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(count).map_err(|_| std::io::Error::last_os_error())
}

/// Writes to the memory of another process at `address`: all of `bytes`, or an error.
pub fn write_memory(thread: i32, address: u64, bytes: &[u8]) -> std::io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the kernel reads `bytes`, which outlive the call, and writes to the memory of the other process only, at an
    // address that is resolved there.
    let count = unsafe { libc::process_vm_writev(thread, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(count) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(std::io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(std::io::Error::last_os_error()),
    }
}

/// The soft and the hard limit on file locks of another process. Kernels since 2.4 keep the number, give it to children,
/// and do nothing with it.
pub fn lock_limit(thread: i32) -> std::io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the null pointer asks for no change; the kernel writes one `struct rlimit64` to `limit`.
    let result = unsafe { libc::prlimit64(thread, libc::RLIMIT_LOCKS as _, std::ptr::null(), &raw mut limit) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok((limit.rlim_cur, limit.rlim_max)) }
}

/// Sets the soft limit on file locks of another process; the hard limit is given as it is.
pub fn set_lock_limit(thread: i32, soft: u64, hard: u64) -> std::io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads `limit`, which outlives the call; the null pointer asks for no answer.
    let result = unsafe { libc::prlimit64(thread, libc::RLIMIT_LOCKS as _, &raw const limit, std::ptr::null_mut()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The status of a file in the kernel's form (`struct stat`), with the fields that matter to the root emulation.
#[derive(Clone, Copy)]
pub struct RawStat(libc::stat);

impl RawStat {
    /// Asks for the status of what `descriptor` is open on.
    pub fn of(descriptor: std::os::fd::BorrowedFd<'_>) -> std::io::Result<Self> {
        use std::os::fd::AsRawFd;
        // SAFETY: all-zero bytes are a valid `struct stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        let (fd, flags) = (descriptor.as_raw_fd(), libc::AT_EMPTY_PATH);
        // SAFETY: the name is NUL-terminated; the kernel writes one `struct stat`, whose layout the libraries of 64-bit
        // Linux share with it, to `stat`.
        let result = unsafe { libc::syscall(libc::SYS_newfstatat, fd, c"".as_ptr(), &raw mut stat, flags) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(Self(stat)) }
    }

    pub fn fields(&self) -> &libc::stat {
        &self.0
    }

    /// The fields, to be changed one by one.
    pub fn fields_mut(&mut self) -> &mut libc::stat {
        &mut self.0
    }

    pub fn as_bytes(&self) -> &[u8] {
        let start = (&raw const self.0).cast::<u8>();
        // SAFETY: the structure names all its bytes as fields, reserved ones included, so every byte is initialized; the
        // slice lives as long as `self`.
        unsafe { std::slice::from_raw_parts(start, size_of::<libc::stat>()) }
    }
}

/// The answer of `statx(2)`.
#[derive(Clone, Copy)]
pub struct RawStatx(libc::statx);

impl RawStatx {
    /// Asks about `name` below `directory`.
    pub fn of(
        directory: std::os::fd::BorrowedFd<'_>,
        name: &std::ffi::CStr,
        flags: i32,
        mask: u32,
    ) -> std::io::Result<Self> {
        use std::os::fd::AsRawFd;
        // SAFETY: all-zero bytes are a valid `struct statx`.
        let mut answer: libc::statx = unsafe { std::mem::zeroed() };
        let fd = directory.as_raw_fd();
        // SAFETY: the name is NUL-terminated and outlives the call; the kernel writes one `struct statx` to `answer`.
        let result = unsafe { libc::syscall(libc::SYS_statx, fd, name.as_ptr(), flags, mask, &raw mut answer) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(Self(answer)) }
    }

    pub fn fields(&self) -> &libc::statx {
        &self.0
    }

    /// The fields, to be changed one by one.
    pub fn fields_mut(&mut self) -> &mut libc::statx {
        &mut self.0
    }

    pub fn as_bytes(&self) -> &[u8] {
        let start = (&raw const self.0).cast::<u8>();
        // SAFETY: the structure names all its bytes as fields, reserved ones included, so every byte is initialized; the
        // slice lives as long as `self`.
        unsafe { std::slice::from_raw_parts(start, size_of::<libc::statx>()) }
    }
}

/// The file handle of `name` below `directory` (of `directory` itself if `name` is empty; symbolic links are not
/// followed): bytes that differ from those of every other file that the file system ever had under the same inode number.
/// `EOPNOTSUPP` where the file system has none.
pub fn file_handle(directory: std::os::fd::BorrowedFd<'_>, name: &std::ffi::CStr) -> std::io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; libc::MAX_HANDLE_SZ as usize],
    }
    let mut handle = Handle { bytes: libc::MAX_HANDLE_SZ as u32, kind: 0, data: [0; libc::MAX_HANDLE_SZ as usize] };
    let mut mount = 0;
    // Linux 6.5 makes handles that can't be opened for file systems that have no others (overlays).
    for fid in [libc::AT_HANDLE_FID, 0] {
        let flags = fid | libc::AT_EMPTY_PATH;
        // SAFETY: the name is NUL-terminated; the kernel writes a `struct file_handle` with at most `bytes` bytes of data
        // to `handle`, and a number to `mount`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                directory.as_raw_fd(),
                name.as_ptr(),
                &raw mut handle,
                &raw mut mount,
                flags,
            )
        };
        if result == 0 {
            let length = (handle.bytes as usize).min(handle.data.len());
            return Ok(handle.data[..length].to_vec());
        }
    }
    Err(std::io::Error::last_os_error())
}

/// Sets the extended attribute `name` of what `path` leads to.
pub fn set_xattr(path: &std::path::Path, name: &std::ffi::CStr, value: &[u8], flags: i32) -> std::io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: both names are NUL-terminated; they and `value` outlive the call, which only reads them.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Names of the extended attributes of what `path` leads to, each ended by NUL.
pub fn list_xattrs_followed(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let path = c_path(path)?;
    sized_answer(|buffer| {
        // SAFETY: `path` is a NUL-terminated string that outlives the call; the kernel writes at most `buffer.len()`
        // bytes to `buffer`, which is exclusively ours for the call; with length 0 it writes nothing.
        unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

// ---- memory for a short life ----

/// An allocator for programs that live for a millisecond before they become another: the first megabyte comes from a
/// fixed arena, one piece after the other, and what is given back there stays unused unless it is the last piece. The
/// rest is the C library's. musl's own allocator asks the kernel for pages and returns them so often that it takes a
/// tenth of a start.
pub struct ArenaFirst;

const ARENA_BYTES: usize = 1 << 20;
/// What C programs expect of an allocator, and code that packs C structures into bytes relies on.
const ALIGNMENT_MIN: usize = 16;
/// Larger pieces are not worth the arena's space.
const PIECE_MAX: usize = 64 << 10;

#[repr(align(4096))]
struct Arena(std::cell::UnsafeCell<[u8; ARENA_BYTES]>);

// SAFETY: bytes of the arena are reached only through pointers that `ArenaFirst` gives out, each range to one caller.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(std::cell::UnsafeCell::new([0; ARENA_BYTES]));
/// Bytes of the arena that have been given out.
static ARENA_USED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
/// The end of the part that was ever given out.
static ARENA_TOUCHED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

impl ArenaFirst {
    /// Takes `layout` from the arena, and tells whether it was never used before, so that it holds zeros; `None` when
    /// it does not fit.
    fn take(layout: std::alloc::Layout) -> Option<(*mut u8, bool)> {
        use std::sync::atomic::Ordering::{AcqRel, Acquire};
        if layout.size() > PIECE_MAX || layout.align() > 4096 {
            return None;
        }
        let (mut start, mut end) = (0, 0);
        // A failure means that there is no room: the arena is used up.
        ARENA_USED
            .fetch_update(AcqRel, Acquire, |used| {
                start = used.checked_next_multiple_of(layout.align().max(ALIGNMENT_MIN))?;
                end = start.checked_add(layout.size())?;
                (end <= ARENA_BYTES).then_some(end)
            })
            .ok()?;
        let fresh = ARENA_TOUCHED.fetch_max(end, AcqRel) <= start;
        Some((ARENA.0.get().cast::<u8>().wrapping_add(start), fresh))
    }

    /// Where `pointer` lies in the arena, if it does.
    fn offset(pointer: *mut u8) -> Option<usize> {
        let offset = (pointer as usize).wrapping_sub(ARENA.0.get() as usize);
        (offset < ARENA_BYTES).then_some(offset)
    }

    /// Moves the end of the piece at `start` from `end` to `new_end`, if it is the last piece.
    fn resize_last(start: usize, end: usize, new_end: usize) -> bool {
        use std::sync::atomic::Ordering::{AcqRel, Acquire};
        debug_assert!(start <= new_end);
        if new_end > ARENA_BYTES {
            return false;
        }
        ARENA_TOUCHED.fetch_max(new_end, AcqRel);
        ARENA_USED.compare_exchange(end, new_end, AcqRel, Acquire).is_ok()
    }
}

// SAFETY: a piece of the arena is handed out once: `ARENA_USED` only grows past it, but for the last piece, whose owner
// gives it back or resizes it, and the exchange fails if another piece was taken meanwhile. Pieces have the size and
// the alignment that were asked for (the arena begins at a page). What is not of the arena is left to `System`, which
// gets back exactly what it gave.
unsafe impl std::alloc::GlobalAlloc for ArenaFirst {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        match Self::take(layout) {
            Some((piece, _)) => piece,
            // SAFETY: the caller keeps the contract of `alloc`, which is the same.
            None => unsafe { std::alloc::System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: std::alloc::Layout) -> *mut u8 {
        match Self::take(layout) {
            Some((piece, true)) => piece,
            Some((piece, false)) => {
                // SAFETY: the piece is ours and has this size.
                unsafe { std::ptr::write_bytes(piece, 0, layout.size()) };
                piece
            }
            // Fresh pages of the kernel are zero already: nothing touches them here.
            // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same.
            None => unsafe { std::alloc::System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: std::alloc::Layout) {
        match Self::offset(pointer) {
            Some(start) => {
                Self::resize_last(start, start + layout.size(), start);
            }
            // SAFETY: the pointer is not of the arena, so `System` gave it, for this layout, as the caller promises.
            None => unsafe { std::alloc::System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: std::alloc::Layout, new_size: usize) -> *mut u8 {
        let Some(start) = Self::offset(pointer) else {
            // SAFETY: as in `dealloc`.
            return unsafe { std::alloc::System.realloc(pointer, layout, new_size) };
        };
        let end = start + layout.size();
        let fits = new_size <= layout.size();
        if Self::resize_last(start, end, start + new_size) || fits {
            return pointer;
        }
        // SAFETY: the caller promises that `new_size` is valid for the layout's alignment.
        let new_layout = unsafe { std::alloc::Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: the new layout has a size that is not zero, larger than the old one.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: the old piece has `layout.size()` bytes, the new one more, and they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(pointer, new, layout.size()) };
            // SAFETY: the old piece is of this allocator and has this layout; nobody uses it any more.
            unsafe { self.dealloc(pointer, layout) };
        }
        new
    }
}

// ---- directories ----

/// Reads the first entries of an open directory and forgets them: the kernel then knows them.
pub fn list_beginning(directory: std::os::fd::BorrowedFd<'_>) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    let mut buffer = [0u8; 16 << 10];
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    nix::errno::Errno::result(result).map(drop)
}

// ---- quotas ----

/// Whose quota is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaKind {
    User,
    Group,
}

/// A quota of disk space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// What can't be exceeded; 0 for no limit.
    pub limit_bytes: u64,
    pub used_bytes: u64,
}

/// The quota of `id` on the file system of `file`. An error where there is none, where the kernel has no such call
/// (before Linux 5.14), and for file systems with a protocol of their own.
pub fn quota(file: std::os::fd::BorrowedFd<'_>, kind: QuotaKind, id: u32) -> std::io::Result<Quota> {
    // From <sys/quota.h>: the command, its number of bits for the kind, and the unit of limits.
    const GET_QUOTA: libc::c_uint = 0x80_0007;
    const KIND_BITS: libc::c_uint = 8;
    const LIMIT_UNIT_BYTES: u64 = 1024;
    let kind = match kind {
        QuotaKind::User => 0,
        QuotaKind::Group => 1,
    };
    let mut answer = std::mem::MaybeUninit::<libc::dqblk>::zeroed();
    // SAFETY: the descriptor is open for the call; the kernel writes one `dqblk` at most to `answer`, which is that large
    // and exclusively ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            (GET_QUOTA << KIND_BITS) | kind,
            id,
            answer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: it is made of integers, for which zeros are values, and the kernel has filled it in.
    let answer = unsafe { answer.assume_init() };
    let limit_bytes = answer.dqb_bhardlimit.saturating_mul(LIMIT_UNIT_BYTES);
    Ok(Quota { limit_bytes, used_bytes: answer.dqb_curspace })
}
