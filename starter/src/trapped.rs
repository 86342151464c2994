//! The system calls that the root emulation answers, and the seccomp filter that hands them over.
//!
//! ```text
//!   payload                      kernel                         supervisor (`sifu::root_emulation`)
//!   chown("f", 33, 33) ────────► filter: USER_NOTIF ──────────► reads "f" from the payload's memory, remembers 33:33
//!                       ◄─────── 0 ◄──────────────────────────── answers 0
//! ```
//!
//! The filter looks at the number of a call and at one argument at most, so the kernel passes all other calls without
//! running it (it keeps a bitmap of numbers that are always allowed, since Linux 5.11).

use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use nix::sys::stat::Mode;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A system call that can reach the supervisor, by the kernel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Stat,
    Lstat,
    Fstat,
    Newfstatat,
    Statx,
    Chown,
    Lchown,
    Fchown,
    Fchownat,
    Chmod,
    Fchmod,
    Fchmodat,
    Fchmodat2,
    Mknod,
    Mknodat,
    Mkdir,
    Mkdirat,
    Symlink,
    Symlinkat,
    Open,
    Openat,
    Creat,
    Getuid,
    Geteuid,
    Getgid,
    Getegid,
    Getresuid,
    Getresgid,
    Getgroups,
    Setuid,
    Setgid,
    Setreuid,
    Setregid,
    Setresuid,
    Setresgid,
    Setgroups,
    Setfsuid,
    Setfsgid,
    /// `prctl(PR_SET_KEEPCAPS)`
    KeepCapabilities,
    Setxattr,
    Lsetxattr,
    Fsetxattr,
    Getxattr,
    Lgetxattr,
    Fgetxattr,
    Listxattr,
    Llistxattr,
    Flistxattr,
    Removexattr,
    Lremovexattr,
    Fremovexattr,
}

/// How much of root a process tree lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// User id 0 alone is mapped: owners and ids are emulated too.
    Everything,
    /// A range of ids is mapped, so the kernel itself keeps owners: only device nodes and extended attributes are
    /// emulated.
    DevicesAndAttributes,
}

/// When a call is handed over.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// If the low word of an argument has one of the bits.
    Bits {
        argument: u32,
        mask: u32,
    },
    /// If the low word of the first argument is this.
    First(u32),
}

#[derive(Clone, Copy)]
struct Trap {
    number: libc::c_long,
    call: Call,
    when: When,
    /// Whether the call is handed over where a range of ids is mapped, too.
    with_range: bool,
}

/// For calls that matter in both scopes.
const fn both(number: libc::c_long, call: Call) -> Trap {
    Trap { number, call, when: When::Always, with_range: true }
}

/// For calls that matter where owners are emulated.
const fn owners(number: libc::c_long, call: Call) -> Trap {
    Trap { number, call, when: When::Always, with_range: false }
}

/// For one of the many things that a call does, where owners are emulated.
const fn first(number: libc::c_long, call: Call, value: i32) -> Trap {
    Trap { number, call, when: When::First(value as u32), with_range: false }
}

/// For calls that may make a file.
const fn creating(number: libc::c_long, call: Call, argument: u32) -> Trap {
    let when = When::Bits { argument, mask: libc::O_CREAT as u32 };
    Trap { number, call, when, with_range: false }
}

/// Added after 2023, so the libraries have no names for them; the numbers are those of every architecture.
const SYS_FCHMODAT2: libc::c_long = 452;
const SYS_XATTRAT: [libc::c_long; 4] = [463, 464, 465, 466];

/// Calls that would go around the emulation; programs that know them know what to do where they are missing.
const MISSING: [libc::c_long; 5] =
    [SYS_XATTRAT[0], SYS_XATTRAT[1], SYS_XATTRAT[2], SYS_XATTRAT[3], libc::SYS_io_uring_setup];

const TRAPS: &[Trap] = &[
    both(libc::SYS_newfstatat, Call::Newfstatat),
    both(libc::SYS_fstat, Call::Fstat),
    both(libc::SYS_statx, Call::Statx),
    creating(libc::SYS_openat, Call::Openat, 2),
    owners(libc::SYS_fchown, Call::Fchown),
    owners(libc::SYS_fchownat, Call::Fchownat),
    owners(libc::SYS_fchmod, Call::Fchmod),
    owners(libc::SYS_fchmodat, Call::Fchmodat),
    owners(SYS_FCHMODAT2, Call::Fchmodat2),
    both(libc::SYS_mknodat, Call::Mknodat),
    owners(libc::SYS_mkdirat, Call::Mkdirat),
    owners(libc::SYS_symlinkat, Call::Symlinkat),
    owners(libc::SYS_getuid, Call::Getuid),
    owners(libc::SYS_geteuid, Call::Geteuid),
    owners(libc::SYS_getgid, Call::Getgid),
    owners(libc::SYS_getegid, Call::Getegid),
    owners(libc::SYS_getresuid, Call::Getresuid),
    owners(libc::SYS_getresgid, Call::Getresgid),
    owners(libc::SYS_getgroups, Call::Getgroups),
    owners(libc::SYS_setuid, Call::Setuid),
    owners(libc::SYS_setgid, Call::Setgid),
    owners(libc::SYS_setreuid, Call::Setreuid),
    owners(libc::SYS_setregid, Call::Setregid),
    owners(libc::SYS_setresuid, Call::Setresuid),
    owners(libc::SYS_setresgid, Call::Setresgid),
    owners(libc::SYS_setgroups, Call::Setgroups),
    owners(libc::SYS_setfsuid, Call::Setfsuid),
    owners(libc::SYS_setfsgid, Call::Setfsgid),
    first(libc::SYS_prctl, Call::KeepCapabilities, libc::PR_SET_KEEPCAPS),
    both(libc::SYS_setxattr, Call::Setxattr),
    both(libc::SYS_lsetxattr, Call::Lsetxattr),
    both(libc::SYS_fsetxattr, Call::Fsetxattr),
    both(libc::SYS_getxattr, Call::Getxattr),
    both(libc::SYS_lgetxattr, Call::Lgetxattr),
    both(libc::SYS_fgetxattr, Call::Fgetxattr),
    both(libc::SYS_listxattr, Call::Listxattr),
    both(libc::SYS_llistxattr, Call::Llistxattr),
    both(libc::SYS_flistxattr, Call::Flistxattr),
    both(libc::SYS_removexattr, Call::Removexattr),
    both(libc::SYS_lremovexattr, Call::Lremovexattr),
    both(libc::SYS_fremovexattr, Call::Fremovexattr),
];

/// The calls without a directory descriptor, which newer architectures never had.
#[cfg(target_arch = "x86_64")]
const OLD_TRAPS: &[Trap] = &[
    both(libc::SYS_stat, Call::Stat),
    both(libc::SYS_lstat, Call::Lstat),
    creating(libc::SYS_open, Call::Open, 1),
    owners(libc::SYS_creat, Call::Creat),
    owners(libc::SYS_chown, Call::Chown),
    owners(libc::SYS_lchown, Call::Lchown),
    owners(libc::SYS_chmod, Call::Chmod),
    both(libc::SYS_mknod, Call::Mknod),
    owners(libc::SYS_mkdir, Call::Mkdir),
    owners(libc::SYS_symlink, Call::Symlink),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_TRAPS: &[Trap] = &[];

fn traps() -> impl Iterator<Item = &'static Trap> {
    OLD_TRAPS.iter().chain(TRAPS)
}

impl Call {
    /// The call with the native number `number`, if it is one that the filter hands over.
    pub fn from_number(number: i32) -> Option<Self> {
        traps().find(|trap| trap.number == libc::c_long::from(number)).map(|trap| trap.call)
    }
}

/// The kernel's name for the architecture of this program (`AUDIT_ARCH_*` of `linux/audit.h`), where it is known.
const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// Set in the numbers of x32 calls, whose structures have another layout.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE_OF_CALL: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The filter as a program for the kernel's packet filter; `None` on an architecture without a known name.
///
/// Calls of a foreign architecture (32-bit programs) are left alone.
pub fn filter(scope: Scope) -> Option<Vec<libc::sock_filter>> {
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let answer = |action| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    // Goes on with the next instruction if true, skips as many as said if not.
    let unless = |test, value, skip| instruction(libc::BPF_JMP | test | libc::BPF_K, 0, skip, value);
    let (allow, hand_over) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_USER_NOTIF);

    let mut program = vec![
        load(ARCHITECTURE_OF_CALL),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, ARCHITECTURE?),
        answer(allow),
        load(NUMBER),
    ];
    if cfg!(target_arch = "x86_64") {
        program.extend([unless(libc::BPF_JSET, X32, 1), answer(allow)]);
    }
    for number in MISSING {
        let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        program.extend([unless(libc::BPF_JEQ, number as u32, 1), answer(missing)]);
    }
    for trap in traps().filter(|trap| trap.with_range || scope == Scope::Everything) {
        let number = trap.number as u32;
        match trap.when {
            When::Always => program.extend([unless(libc::BPF_JEQ, number, 1), answer(hand_over)]),
            // The low word comes first: the architectures above are little-endian.
            When::Bits { argument, mask } => program.extend([
                unless(libc::BPF_JEQ, number, 4),
                load(ARGUMENTS + 8 * argument),
                unless(libc::BPF_JSET, mask, 1),
                answer(hand_over),
                answer(allow),
            ]),
            When::First(value) => program.extend([
                unless(libc::BPF_JEQ, number, 4),
                load(ARGUMENTS),
                unless(libc::BPF_JEQ, value, 1),
                answer(hand_over),
                answer(allow),
            ]),
        }
    }
    program.push(answer(allow));
    Some(program)
}

fn instruction(code: u32, if_true: u8, if_false: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: if_true, jf: if_false, k: value }
}

/// Why the root emulation can't begin.
#[derive(Debug)]
pub enum InstallError {
    /// The kernel refuses the filter: too old, or a filter further out forbids it.
    Filter(io::Error),
    /// The supervisor has gone, or can't be reached.
    Supervisor(io::Error),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(source) if source.raw_os_error() == Some(libc::EINVAL) => {
                f.write_str("the kernel can't let another process answer system calls as it must; Linux 5.9 can")
            }
            Self::Filter(source) => write!(f, "cannot install the seccomp filter of the root emulation: {source}"),
            Self::Supervisor(source) => write!(f, "cannot reach the supervisor of the root emulation: {source}"),
        }
    }
}

impl std::error::Error for InstallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Filter(source) | Self::Supervisor(source) => Some(source),
        }
    }
}

/// What [`install_listener`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The supervisor answers from now on.
    Here,
    /// A supervisor further out answers already, and the kernel allows one only.
    Already,
}

/// What the supervisor gets, each in a message of one byte and one descriptor, before it sends a byte back.
pub const USER_NAMESPACE: u8 = b'U';
pub const LISTENER: u8 = b'L';

/// Gives this process, and all it will start, the filter, and hands the supervisor at the other end of `control` the
/// listener, and the user namespace to join; returns when the supervisor is ready.
///
/// The process needs one thread and `PR_SET_NO_NEW_PRIVS` (or `CAP_SYS_ADMIN` in its user namespace).
pub fn install_listener(control: BorrowedFd<'_>, scope: Scope) -> Result<Installed, InstallError> {
    let program = filter(scope).ok_or_else(|| InstallError::Filter(io::Error::from(Errno::ENOSYS)))?;
    let listener = match sys::install_seccomp_listener(&program) {
        Ok(listener) => listener,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(Installed::Already),
        Err(error) => return Err(InstallError::Filter(error)),
    };
    let unreachable = |errno: Errno| InstallError::Supervisor(errno.into());
    let namespace =
        open("/proc/self/ns/user", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(unreachable)?;
    for (what, descriptor) in [(USER_NAMESPACE, namespace.as_fd()), (LISTENER, listener.as_fd())] {
        let descriptors = [descriptor.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(control.as_raw_fd(), &[IoSlice::new(&[what])], &message, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(unreachable)?;
    }
    match recv(control.as_raw_fd(), &mut [0], MsgFlags::empty()).map_err(unreachable)? {
        0 => Err(unreachable(Errno::ECONNRESET)),
        _ => Ok(Installed::Here),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would, over the few instructions that it is made of.
    fn run(program: &[libc::sock_filter], architecture: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let one = program[at];
            let jump = |taken: bool| 1 + usize::from(if taken { one.jt } else { one.jf });
            at += match u32::from(one.code) {
                0x20 => {
                    accumulator = match one.k {
                        NUMBER => number,
                        ARCHITECTURE_OF_CALL => architecture,
                        offset => arguments[((offset - ARGUMENTS) / 8) as usize],
                    };
                    1
                }
                0x15 => jump(accumulator == one.k),
                0x45 => jump(accumulator & one.k != 0),
                0x06 => return one.k,
                code => panic!("instruction {code:#x}"),
            };
        }
    }

    fn check(scope: Scope, number: libc::c_long, arguments: [u32; 6], expected: u32) {
        let program = filter(scope).unwrap();
        let found = run(&program, ARCHITECTURE.unwrap(), number as u32, arguments);
        assert_eq!(found, expected, "call {number} with {arguments:?}");
    }

    #[test]
    fn calls_about_owners_are_handed_over() {
        check(Scope::Everything, libc::SYS_fchownat, [0; 6], libc::SECCOMP_RET_USER_NOTIF);
        check(Scope::Everything, libc::SYS_setresuid, [0; 6], libc::SECCOMP_RET_USER_NOTIF);
        check(Scope::Everything, libc::SYS_fremovexattr, [0; 6], libc::SECCOMP_RET_USER_NOTIF);
    }

    #[test]
    fn where_ids_are_mapped_the_kernel_keeps_owners() {
        check(Scope::DevicesAndAttributes, libc::SYS_fchownat, [0; 6], libc::SECCOMP_RET_ALLOW);
        check(Scope::DevicesAndAttributes, libc::SYS_getuid, [0; 6], libc::SECCOMP_RET_ALLOW);
        check(Scope::DevicesAndAttributes, libc::SYS_mknodat, [0; 6], libc::SECCOMP_RET_USER_NOTIF);
        check(Scope::DevicesAndAttributes, libc::SYS_statx, [0; 6], libc::SECCOMP_RET_USER_NOTIF);
    }

    #[test]
    fn files_are_opened_by_the_kernel_unless_they_may_be_new() {
        let flags = |bits: i32| [0, 0, bits as u32, 0, 0, 0];
        check(Scope::Everything, libc::SYS_openat, flags(libc::O_RDWR), libc::SECCOMP_RET_ALLOW);
        let new = libc::O_CREAT | libc::O_WRONLY;
        check(Scope::Everything, libc::SYS_openat, flags(new), libc::SECCOMP_RET_USER_NOTIF);
    }

    #[test]
    fn of_a_call_with_many_uses_one_is_handed_over() {
        let use_of = |option: i32| [option as u32, 1, 0, 0, 0, 0];
        check(Scope::Everything, libc::SYS_prctl, use_of(libc::PR_SET_KEEPCAPS), libc::SECCOMP_RET_USER_NOTIF);
        check(Scope::Everything, libc::SYS_prctl, use_of(libc::PR_SET_NAME), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn all_else_is_allowed() {
        for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_mount, libc::SYS_capset, libc::SYS_clone, 9999] {
            check(Scope::Everything, number, [u32::MAX; 6], libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn ways_around_are_missing() {
        let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        check(Scope::Everything, libc::SYS_io_uring_setup, [0; 6], missing);
        check(Scope::DevicesAndAttributes, 463, [0; 6], missing);
    }

    #[test]
    fn calls_of_another_architecture_are_left_alone() {
        let program = filter(Scope::Everything).unwrap();
        let i386 = 0x4000_0003;
        assert_eq!(run(&program, i386, libc::SYS_fchownat as u32, [0; 6]), libc::SECCOMP_RET_ALLOW);
        if cfg!(target_arch = "x86_64") {
            let x32 = X32 | libc::SYS_fchownat as u32;
            assert_eq!(run(&program, ARCHITECTURE.unwrap(), x32, [0; 6]), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn a_number_leads_back_to_its_call() {
        assert_eq!(Call::from_number(libc::SYS_statx as i32), Some(Call::Statx));
        assert_eq!(Call::from_number(libc::SYS_read as i32), None);
        let mut numbers: Vec<_> = traps().map(|trap| trap.number).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "no number twice");
    }
}
