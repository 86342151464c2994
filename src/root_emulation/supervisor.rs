//! Answers calls: reads what they name, decides, changes the file system as far as the caller may, and remembers the rest.
//!
//! A call about a file without a record goes on in the kernel, which then answers as if nobody had asked. The supervisor
//! has no rights that the caller lacks, so a path that changes between the look and the deed gains nobody anything.

use super::decide::{
    self, CAPABILITIES, Keeper, MAX_XATTR_BYTES, Seen, keeper, may_change_owner, owners_of_new, with_xattr,
};
use super::identity::{Change, Identities, Identity};
use super::target::{Reference, Root, Target, errno, open_in, path_of, status_of};
use crate::remembered::{Device, FileId, Journal, JournalError, Record, generation_of};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::libc;
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::unistd::{Uid, fchownat, symlinkat};
use starter::sys::{Notification, RawStat, RawStatx};
use starter::trapped::{Call, Scope};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// What is answered when nothing went wrong.
pub(super) enum Reply {
    /// The kernel is to perform the call.
    Continue,
    Value(i64),
    /// A new descriptor for the caller.
    Descriptor {
        descriptor: OwnedFd,
        close_on_exec: bool,
    },
}

const DONE: Result<Reply, Errno> = Ok(Reply::Value(0));
const CONTINUE: Result<Reply, Errno> = Ok(Reply::Continue);

/// Most supplementary groups of a process (`NGROUPS_MAX`).
const MAX_GROUPS: u64 = 1 << 16;

pub(super) struct Supervisor {
    scope: Scope,
    journal: Journal,
    identities: Identities,
    root: Root,
    /// Whether a directory may give a remembered group to what is made in it.
    groups_are_passed_on: bool,
}

impl Supervisor {
    pub(super) fn new(scope: Scope, journal: Journal, root: Root) -> Self {
        let groups_are_passed_on = journal.remembered().has_groups();
        Self { scope, journal, identities: Identities::default(), root, groups_are_passed_on }
    }

    /// Answers one call. `is_waiting` tells whether the caller still waits, so that its memory is its own.
    pub(super) fn answer(
        &mut self,
        call: Call,
        notification: &Notification,
        is_waiting: &dyn Fn() -> bool,
    ) -> Result<Reply, Errno> {
        let arguments = notification.arguments;
        let thread = notification.thread;
        let number = |index: usize| arguments[index] as u32;
        let signed = |index: usize| arguments[index] as u32 as i32;
        let caller = Caller { thread, is_waiting };
        let here = libc::AT_FDCWD;
        match call {
            Call::Stat => self.stat(caller, Name::Path(here, arguments[0], 0), arguments[1]),
            Call::Lstat => self.stat(caller, Name::Path(here, arguments[0], libc::AT_SYMLINK_NOFOLLOW), arguments[1]),
            Call::Fstat => self.stat(caller, Name::Descriptor(signed(0)), arguments[1]),
            Call::Newfstatat => self.stat(caller, Name::Path(signed(0), arguments[1], signed(3)), arguments[2]),
            Call::Statx => self.statx(caller, Name::Path(signed(0), arguments[1], signed(2)), number(3), arguments[4]),
            Call::Chown => self.chown(caller, Name::Path(here, arguments[0], 0), number(1), number(2)),
            Call::Lchown => {
                self.chown(caller, Name::Path(here, arguments[0], libc::AT_SYMLINK_NOFOLLOW), number(1), number(2))
            }
            Call::Fchown => self.chown(caller, Name::Descriptor(signed(0)), number(1), number(2)),
            Call::Fchownat => self.chown(caller, Name::Path(signed(0), arguments[1], signed(4)), number(2), number(3)),
            Call::Chmod => self.chmod(caller, Name::Path(here, arguments[0], 0), number(1)),
            Call::Fchmod => self.chmod(caller, Name::Descriptor(signed(0)), number(1)),
            Call::Fchmodat => self.chmod(caller, Name::Path(signed(0), arguments[1], 0), number(2)),
            Call::Fchmodat2 => self.chmod(caller, Name::Path(signed(0), arguments[1], signed(3)), number(2)),
            Call::Mknod => self.mknod(caller, Name::made(here, arguments[0]), number(1), number(2)),
            Call::Mknodat => self.mknod(caller, Name::made(signed(0), arguments[1]), number(2), number(3)),
            Call::Mkdir => self.mkdir(caller, Name::made(here, arguments[0]), number(1)),
            Call::Mkdirat => self.mkdir(caller, Name::made(signed(0), arguments[1]), number(2)),
            Call::Symlink => self.symlink(caller, arguments[0], Name::made(here, arguments[1])),
            Call::Symlinkat => self.symlink(caller, arguments[0], Name::made(signed(1), arguments[2])),
            Call::Open => self.open(caller, Name::made(here, arguments[0]), signed(1), number(2)),
            Call::Openat => self.open(caller, Name::made(signed(0), arguments[1]), signed(2), number(3)),
            Call::Creat => {
                let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
                self.open(caller, Name::made(here, arguments[0]), flags, number(1))
            }
            Call::Getuid => self.get_id(caller, |identity| identity.user.real),
            Call::Geteuid => self.get_id(caller, |identity| identity.user.effective),
            Call::Getgid => self.get_id(caller, |identity| identity.group.real),
            Call::Getegid => self.get_id(caller, |identity| identity.group.effective),
            Call::Getresuid => self.get_ids(caller, arguments, |identity| identity.user),
            Call::Getresgid => self.get_ids(caller, arguments, |identity| identity.group),
            Call::Getgroups => self.get_groups(caller, signed(0), arguments[1]),
            Call::Setuid => self.set_user(caller, Change::Set(given(number(0))?)),
            Call::Setgid => self.set_group(caller, Change::Set(given(number(0))?)),
            Call::Setreuid => self.set_user(caller, Change::RealEffective(kept(number(0)), kept(number(1)))),
            Call::Setregid => self.set_group(caller, Change::RealEffective(kept(number(0)), kept(number(1)))),
            Call::Setresuid => self.set_user(caller, Change::All(kept(number(0)), kept(number(1)), kept(number(2)))),
            Call::Setresgid => self.set_group(caller, Change::All(kept(number(0)), kept(number(1)), kept(number(2)))),
            Call::Setgroups => self.set_groups(caller, arguments[0], arguments[1]),
            Call::Setfsuid => {
                let before = self.identity(thread).user.filesystem;
                self.set_user(caller, Change::Filesystem(number(0)))?;
                Ok(Reply::Value(before.into()))
            }
            Call::Setfsgid => {
                let before = self.identity(thread).group.filesystem;
                self.set_group(caller, Change::Filesystem(number(0)))?;
                Ok(Reply::Value(before.into()))
            }
            Call::KeepCapabilities => {
                let mut identity = self.identity(thread);
                identity.keeps_capabilities = arguments[1] != 0;
                self.become_known_as(caller, identity)?;
                // The kernel's own flag goes with it.
                CONTINUE
            }
            Call::Setxattr => self.set_xattr(caller, Name::Path(here, arguments[0], 0), arguments),
            Call::Lsetxattr => {
                self.set_xattr(caller, Name::Path(here, arguments[0], libc::AT_SYMLINK_NOFOLLOW), arguments)
            }
            Call::Fsetxattr => self.set_xattr(caller, Name::Descriptor(signed(0)), arguments),
            Call::Getxattr => self.get_xattr(caller, Name::Path(here, arguments[0], 0), arguments),
            Call::Lgetxattr => {
                self.get_xattr(caller, Name::Path(here, arguments[0], libc::AT_SYMLINK_NOFOLLOW), arguments)
            }
            Call::Fgetxattr => self.get_xattr(caller, Name::Descriptor(signed(0)), arguments),
            Call::Listxattr => self.list_xattrs(caller, Name::Path(here, arguments[0], 0), arguments),
            Call::Llistxattr => {
                self.list_xattrs(caller, Name::Path(here, arguments[0], libc::AT_SYMLINK_NOFOLLOW), arguments)
            }
            Call::Flistxattr => self.list_xattrs(caller, Name::Descriptor(signed(0)), arguments),
            Call::Removexattr => self.remove_xattr(caller, Name::Path(here, arguments[0], 0), arguments[1]),
            Call::Lremovexattr => {
                self.remove_xattr(caller, Name::Path(here, arguments[0], libc::AT_SYMLINK_NOFOLLOW), arguments[1])
            }
            Call::Fremovexattr => self.remove_xattr(caller, Name::Descriptor(signed(0)), arguments[1]),
        }
    }

    fn target(&self, caller: Caller<'_>) -> Target<'_> {
        Target::new(caller.thread, &self.root)
    }

    /// The file that a call names; `None` where the kernel is to say what is wrong with the name.
    fn reference(&self, caller: Caller<'_>, name: Name) -> Result<Option<Reference>, Errno> {
        let (directory, address, flags) = match name {
            Name::Descriptor(descriptor) => return Ok(Some(Reference::Descriptor(descriptor))),
            Name::Path(directory, address, flags) => (directory, address, flags),
        };
        let may_be_empty = flags & libc::AT_EMPTY_PATH != 0;
        if address == 0 {
            return Ok(may_be_empty.then_some(Reference::Descriptor(directory)));
        }
        let path = self.target(caller).read_path(address)?;
        let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
        Ok(match path.is_empty() {
            true => may_be_empty.then_some(Reference::Descriptor(directory)),
            false => Some(Reference::Path { directory, path, follow }),
        })
    }

    /// The file that a call names, and its record, if it has one.
    fn known(&self, caller: Caller<'_>, name: Name) -> Option<(OwnedFd, RawStat, Record)> {
        if self.journal.remembered().is_empty() {
            return None;
        }
        let reference = self.reference(caller, name).ok()??;
        let target = self.target(caller);
        if !self.journal.remembered().may_know(target.identify(&reference).ok()?) {
            return None;
        }
        let file = target.open(&reference).ok()?;
        let status = status_of(&file).ok()?;
        let record = self.record(&file, &status)?.clone();
        Some((file, status, record))
    }

    fn record(&self, file: &OwnedFd, status: &RawStat) -> Option<&Record> {
        let (id, remembered) = (id_of(status), self.journal.remembered());
        if remembered.may_know(id) { remembered.get(id, generation_of(file.as_fd(), c"")) } else { None }
    }

    fn remember(&mut self, file: &OwnedFd, status: &RawStat, record: Record) -> Result<(), Errno> {
        let generation = generation_of(file.as_fd(), c"");
        self.journal.set(id_of(status), generation, record).map_err(|error| match error {
            JournalError::File { source, .. } => errno(source),
            JournalError::TooLarge { .. } | JournalError::Line { .. } => Errno::EIO,
        })
    }

    // ---- what files are ----

    fn stat(&mut self, caller: Caller<'_>, name: Name, buffer: u64) -> Result<Reply, Errno> {
        let Some((_, mut status, record)) = self.known(caller, name) else { return CONTINUE };
        let seen = seen(&status).with(Some(&record));
        let fields = status.fields_mut();
        (fields.st_mode, fields.st_uid, fields.st_gid, fields.st_rdev) = (seen.mode, seen.uid, seen.gid, seen.rdev);
        self.give(caller, buffer, status.as_bytes())?;
        DONE
    }

    fn statx(&mut self, caller: Caller<'_>, name: Name, mask: u32, buffer: u64) -> Result<Reply, Errno> {
        const REMEMBERED: u32 = libc::STATX_TYPE | libc::STATX_MODE | libc::STATX_UID | libc::STATX_GID;
        if mask & REMEMBERED == 0 {
            return CONTINUE;
        }
        let Some((file, status, record)) = self.known(caller, name) else { return CONTINUE };
        let seen = seen(&status).with(Some(&record));
        let Ok(mut answer) = RawStatx::of(file.as_fd(), c"", libc::AT_EMPTY_PATH, mask) else { return CONTINUE };
        let fields = answer.fields_mut();
        (fields.stx_mode, fields.stx_uid, fields.stx_gid) = (seen.mode as u16, seen.uid, seen.gid);
        fields.stx_rdev_major = nix::sys::stat::major(seen.rdev) as u32;
        fields.stx_rdev_minor = nix::sys::stat::minor(seen.rdev) as u32;
        self.give(caller, buffer, answer.as_bytes())?;
        DONE
    }

    /// Writes to the caller's memory.
    fn give(&self, caller: Caller<'_>, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        caller.check()?;
        self.target(caller).write(address, bytes)
    }

    // ---- owners and modes ----

    fn chown(&mut self, caller: Caller<'_>, name: Name, uid: u32, gid: u32) -> Result<Reply, Errno> {
        let (uid, gid) = (kept(uid), kept(gid));
        let to_root = uid.is_none_or(|uid| uid == 0) && gid.is_none_or(|gid| gid == 0);
        let identity = self.identity(caller.thread);
        if to_root && identity.is_root() && self.journal.remembered().is_empty() {
            return CONTINUE;
        }
        let Some(reference) = self.reference(caller, name)? else { return CONTINUE };
        let file = self.target(caller).open(&reference)?;
        let before = status_of(&file)?;
        let record = self.record(&file, &before).cloned();
        if to_root && identity.is_root() && record.is_none() {
            return CONTINUE;
        }
        may_change_owner(&identity, seen(&before).with(record.as_ref()), uid, gid)?;
        caller.check()?;
        if uid.is_some() || gid.is_some() {
            // The owner stays, but all else that comes with a change does too: a refusal where the file is somebody
            // else's or can't be written to, a copy in the upper layer of an overlay, no set-user-id bit any more.
            fchownat(&file, "", Some(Uid::from_raw(0)), None, AtFlags::AT_EMPTY_PATH)?;
        }
        let native = status_of(&file)?;
        let record = decide::owned(record.unwrap_or_default(), seen(&native), uid, gid);
        self.groups_are_passed_on |= record.gid.is_some() && seen(&native).is_directory();
        self.remember(&file, &native, record)?;
        DONE
    }

    fn chmod(&mut self, caller: Caller<'_>, name: Name, mode: u32) -> Result<Reply, Errno> {
        const SPECIAL: u32 = libc::S_ISUID | libc::S_ISGID | libc::S_ISVTX;
        if mode & SPECIAL == 0 && self.journal.remembered().is_empty() {
            return CONTINUE;
        }
        let Some(reference) = self.reference(caller, name)? else { return CONTINUE };
        let file = self.target(caller).open(&reference)?;
        let before = status_of(&file)?;
        let record = self.record(&file, &before).cloned();
        // A bit that the file system drops is one of these, or was remembered before.
        if seen(&before).is_symlink() || (mode & SPECIAL == 0 && record.is_none()) {
            return CONTINUE;
        }
        caller.check()?;
        fchmodat(AT_FDCWD, &path_of(&file), Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
        let native = status_of(&file)?;
        let known = record.clone().unwrap_or_default();
        let after = decide::permitted(known.clone(), seen(&native), mode);
        if after != known {
            self.remember(&file, &native, after)?;
        }
        DONE
    }

    // ---- new files ----

    /// The directory of a new file, its name there, and whose it will be; `None` where the kernel does all that is needed.
    fn place_of_new(&self, caller: Caller<'_>, name: Name) -> Result<Option<New>, Errno> {
        let identity = match self.scope {
            Scope::Everything => self.identity(caller.thread),
            Scope::DevicesAndAttributes => Identity::default(),
        };
        let Some(reference) = self.reference(caller, name)? else { return Ok(None) };
        let Some((parent, name)) = reference.split() else { return Ok(None) };
        let directory = self.target(caller).open(&parent)?;
        let status = status_of(&directory)?;
        let seen = seen(&status).with(self.record(&directory, &status));
        let (uid, gid) = owners_of_new(&identity, seen);
        Ok(Some(New { directory, name, uid, gid, ends_in_slash: reference.ends_in_slash() }))
    }

    /// The permissions of a file that the caller makes.
    fn mode_of_new(&self, caller: Caller<'_>, asked: u32) -> Result<Mode, Errno> {
        Ok(Mode::from_bits_truncate(asked & 0o7777 & !self.target(caller).umask()?))
    }

    /// Whether the kernel makes a new file with the right owners.
    fn new_files_are_right(&self, caller: Caller<'_>) -> bool {
        !self.groups_are_passed_on && self.identity(caller.thread).makes_files_of_root()
    }

    /// Remembers the owners of a file that was just made.
    fn remember_new(&mut self, new: &New, device: Option<Device>) -> Result<(), Errno> {
        let file = open_in(&new.directory, &new.name)?;
        let status = status_of(&file)?;
        let mut record = Record { device, ..Record::default() };
        if self.scope == Scope::Everything {
            record = decide::owned(record, seen(&status), Some(new.uid), Some(new.gid));
        }
        self.groups_are_passed_on |= record.gid.is_some() && seen(&status).is_directory();
        if record.is_empty() { Ok(()) } else { self.remember(&file, &status, record) }
    }

    fn mkdir(&mut self, caller: Caller<'_>, name: Name, mode: u32) -> Result<Reply, Errno> {
        if self.new_files_are_right(caller) {
            return CONTINUE;
        }
        let Some(new) = self.place_of_new(caller, name)?.filter(New::is_not_of_root) else { return CONTINUE };
        let mode = self.mode_of_new(caller, mode)?;
        caller.check()?;
        mkdirat(&new.directory, new.name.as_c_str(), mode)?;
        self.remember_new(&new, None)?;
        DONE
    }

    fn symlink(&mut self, caller: Caller<'_>, content: u64, name: Name) -> Result<Reply, Errno> {
        if self.new_files_are_right(caller) {
            return CONTINUE;
        }
        let Some(new) = self.place_of_new(caller, name)?.filter(New::is_not_of_root) else { return CONTINUE };
        if new.ends_in_slash {
            return CONTINUE;
        }
        let content = CString::new(self.target(caller).read_path(content)?).map_err(|_| Errno::EINVAL)?;
        caller.check()?;
        symlinkat(content.as_c_str(), &new.directory, new.name.as_c_str())?;
        self.remember_new(&new, None)?;
        DONE
    }

    fn open(&mut self, caller: Caller<'_>, name: Name, flags: i32, mode: u32) -> Result<Reply, Errno> {
        if self.new_files_are_right(caller) {
            return CONTINUE;
        }
        let Some(new) = self.place_of_new(caller, name)?.filter(New::is_not_of_root) else { return CONTINUE };
        if new.ends_in_slash {
            return CONTINUE;
        }
        let asked = OFlag::from_bits_retain(flags);
        // Only a new file: to open another could take for ever.
        let flags = asked | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mode = self.mode_of_new(caller, mode)?;
        caller.check()?;
        let descriptor = match openat(&new.directory, new.name.as_c_str(), flags, mode) {
            Err(Errno::EEXIST) if !asked.contains(OFlag::O_EXCL) => return CONTINUE,
            answer => answer?,
        };
        self.remember_new(&new, None)?;
        Ok(Reply::Descriptor { descriptor, close_on_exec: asked.contains(OFlag::O_CLOEXEC) })
    }

    fn mknod(&mut self, caller: Caller<'_>, name: Name, mode: u32, number: u32) -> Result<Reply, Errno> {
        let device = match mode & libc::S_IFMT {
            libc::S_IFCHR => Some(Device::Char(number.into())),
            libc::S_IFBLK => Some(Device::Block(number.into())),
            _ => None,
        };
        if device.is_none() && (self.scope == Scope::DevicesAndAttributes || self.new_files_are_right(caller)) {
            return CONTINUE;
        }
        let Some(new) = self.place_of_new(caller, name)? else { return CONTINUE };
        if new.ends_in_slash || (device.is_none() && !new.is_not_of_root()) {
            return CONTINUE;
        }
        if device.is_some() && self.scope == Scope::Everything && !self.identity(caller.thread).is_root() {
            return Err(Errno::EPERM);
        }
        let kind = SFlag::from_bits_truncate(mode & libc::S_IFMT);
        let mode = self.mode_of_new(caller, mode)?;
        caller.check()?;
        let made = mknodat(&new.directory, new.name.as_c_str(), kind, mode, number.into());
        match made {
            Err(Errno::EPERM) if device.is_some() => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                openat(&new.directory, new.name.as_c_str(), flags, mode)?;
                self.remember_new(&new, device)?;
            }
            made => {
                made?;
                self.remember_new(&new, None)?;
            }
        }
        DONE
    }

    // ---- ids ----

    fn identity(&self, thread: i32) -> Identity {
        match self.scope {
            Scope::Everything => starter::sys::lock_limit(thread)
                .map_or_else(|_| Identity::default(), |(carried, _)| self.identities.of(carried)),
            Scope::DevicesAndAttributes => Identity::default(),
        }
    }

    fn get_id(&self, caller: Caller<'_>, choose: fn(&Identity) -> u32) -> Result<Reply, Errno> {
        let identity = self.identity(caller.thread);
        // In a namespace of its own a process can have ids that nothing here knows of.
        if identity == Identity::default() { CONTINUE } else { Ok(Reply::Value(choose(&identity).into())) }
    }

    fn get_ids(
        &self,
        caller: Caller<'_>,
        addresses: [u64; 6],
        choose: fn(&Identity) -> super::identity::Ids,
    ) -> Result<Reply, Errno> {
        let identity = self.identity(caller.thread);
        if identity == Identity::default() {
            return CONTINUE;
        }
        let ids = choose(&identity);
        for (address, id) in addresses.into_iter().zip([ids.real, ids.effective, ids.saved]) {
            self.give(caller, address, &id.to_ne_bytes())?;
        }
        DONE
    }

    fn get_groups(&self, caller: Caller<'_>, size: i32, address: u64) -> Result<Reply, Errno> {
        let groups = self.identity(caller.thread).groups;
        let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        if size != 0 {
            if size < groups.len() {
                return Err(Errno::EINVAL);
            }
            let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
            self.give(caller, address, &bytes)?;
        }
        Ok(Reply::Value(groups.len() as i64))
    }

    fn set_user(&mut self, caller: Caller<'_>, change: Change) -> Result<Reply, Errno> {
        let identity = self.identity(caller.thread).with_user(change).map_err(|_| Errno::EPERM)?;
        self.become_known_as(caller, identity)
    }

    fn set_group(&mut self, caller: Caller<'_>, change: Change) -> Result<Reply, Errno> {
        let identity = self.identity(caller.thread).with_group(change).map_err(|_| Errno::EPERM)?;
        self.become_known_as(caller, identity)
    }

    fn set_groups(&mut self, caller: Caller<'_>, size: u64, address: u64) -> Result<Reply, Errno> {
        let mut identity = self.identity(caller.thread);
        if !identity.may_change_groups() {
            return Err(Errno::EPERM);
        }
        let size = Some(size & u64::from(u32::MAX)).filter(|&size| size <= MAX_GROUPS).ok_or(Errno::EINVAL)?;
        let bytes = self.target(caller).read_bytes(address, size as usize * 4)?;
        identity.groups = bytes.as_chunks().0.iter().map(|&bytes| u32::from_ne_bytes(bytes)).collect();
        self.become_known_as(caller, identity)
    }

    fn become_known_as(&mut self, caller: Caller<'_>, identity: Identity) -> Result<Reply, Errno> {
        let carried = self.identities.number_of(identity).ok_or(Errno::EAGAIN)?;
        let (_, hard) = starter::sys::lock_limit(caller.thread).map_err(errno)?;
        caller.check()?;
        // Where somebody has limited the locks, there is no place for the number: the process stays what it was.
        if carried <= hard {
            starter::sys::set_lock_limit(caller.thread, carried, hard).map_err(errno)?;
        }
        DONE
    }

    // ---- extended attributes: arguments are file, name, value, size, flags ----

    fn xattr_name(&self, caller: Caller<'_>, address: u64) -> Result<Vec<u8>, Errno> {
        let name = self.target(caller).read_string(address, libc::NAME_MAX as usize, Errno::ERANGE)?;
        if name.is_empty() { Err(Errno::ERANGE) } else { Ok(name) }
    }

    fn set_xattr(&mut self, caller: Caller<'_>, file: Name, arguments: [u64; 6]) -> Result<Reply, Errno> {
        let [_, name, value, size, flags, _] = arguments;
        let name = self.xattr_name(caller, name)?;
        let keeper = keeper(&name);
        if keeper == Keeper::Kernel {
            return CONTINUE;
        }
        if size > MAX_XATTR_BYTES {
            return Err(Errno::E2BIG);
        }
        let value = self.target(caller).read_bytes(value, size as usize)?;
        let Some(reference) = self.reference(caller, file)? else { return CONTINUE };
        let file = self.target(caller).open(&reference)?;
        let before = status_of(&file)?;
        let flags = flags & u64::from(u32::MAX);
        caller.check()?;
        if keeper == Keeper::FileSystemFirst
            && self.record(&file, &before).is_none_or(|known| !known.xattrs.contains_key(&name[..]))
        {
            let c_name = CString::new(name.as_slice()).map_err(|_| Errno::EINVAL)?;
            match starter::sys::set_xattr(&path_of(&file), &c_name, &value, flags as i32).map_err(errno) {
                // The file system has none, or none that name these ids.
                Err(Errno::EOPNOTSUPP) => {}
                Err(Errno::EINVAL) if name.starts_with(b"system.") => {}
                answer => return answer.and(DONE),
            }
        }
        if !self.identity(caller.thread).is_root() && keeper == Keeper::Records {
            return Err(Errno::EPERM);
        }
        if !seen(&before).is_symlink() {
            // Changes nothing, but refuses where nothing may be changed, and copies the file up in an overlay.
            let mode = Mode::from_bits_truncate(before.fields().st_mode);
            fchmodat(AT_FDCWD, &path_of(&file), mode, FchmodatFlags::FollowSymlink)?;
        }
        let status = status_of(&file)?;
        let record = self.record(&file, &before).cloned().unwrap_or_default();
        let record = with_xattr(record, &name, &value, flags)?;
        self.remember(&file, &status, record)?;
        DONE
    }

    fn get_xattr(&mut self, caller: Caller<'_>, file: Name, arguments: [u64; 6]) -> Result<Reply, Errno> {
        let [_, name, buffer, size, ..] = arguments;
        let Some((.., record)) = self.known(caller, file) else { return CONTINUE };
        if record.xattrs.is_empty() {
            return CONTINUE;
        }
        let name = self.xattr_name(caller, name)?;
        match record.xattrs.get(&name[..]) {
            Some(value) => self.give_sized(caller, buffer, size, value),
            None => CONTINUE,
        }
    }

    fn list_xattrs(&mut self, caller: Caller<'_>, file: Name, arguments: [u64; 6]) -> Result<Reply, Errno> {
        let [_, buffer, size, ..] = arguments;
        let Some((file, _, record)) = self.known(caller, file) else { return CONTINUE };
        if record.xattrs.is_empty() {
            return CONTINUE;
        }
        // The file system may have none at all.
        let native = starter::sys::list_xattrs_followed(&path_of(&file)).unwrap_or_default();
        let mut names: Vec<&[u8]> = native.split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
        names.retain(|&name| !record.xattrs.contains_key(name));
        names.extend(record.xattrs.keys().map(|name| &**name));
        let list: Vec<u8> = names.into_iter().flat_map(|name| [name, &[0]].concat()).collect();
        self.give_sized(caller, buffer, size, &list)
    }

    /// Answers with `bytes`, or with their number if the buffer has no size.
    fn give_sized(&self, caller: Caller<'_>, buffer: u64, size: u64, bytes: &[u8]) -> Result<Reply, Errno> {
        if size != 0 {
            if (bytes.len() as u64) > size {
                return Err(Errno::ERANGE);
            }
            self.give(caller, buffer, bytes)?;
        }
        Ok(Reply::Value(bytes.len() as i64))
    }

    fn remove_xattr(&mut self, caller: Caller<'_>, file: Name, name: u64) -> Result<Reply, Errno> {
        let name = self.xattr_name(caller, name)?;
        if let Some((file, status, mut record)) = self.known(caller, file)
            && record.xattrs.remove(&name[..]).is_some()
        {
            caller.check()?;
            self.remember(&file, &status, record)?;
            return DONE;
        }
        // The kernel would say that only the real root may.
        if keeper(&name) == Keeper::Records && name != CAPABILITIES { Err(Errno::ENODATA) } else { CONTINUE }
    }
}

/// A file that is about to be made.
struct New {
    directory: OwnedFd,
    name: CString,
    uid: u32,
    gid: u32,
    ends_in_slash: bool,
}

impl New {
    fn is_not_of_root(&self) -> bool {
        (self.uid, self.gid) != (0, 0)
    }
}

/// The thread whose call is being answered.
#[derive(Clone, Copy)]
struct Caller<'a> {
    thread: i32,
    is_waiting: &'a dyn Fn() -> bool,
}

impl Caller<'_> {
    /// Fails if the thread has gone: its number may be somebody else's by now.
    fn check(self) -> Result<(), Errno> {
        if (self.is_waiting)() { Ok(()) } else { Err(Errno::ESRCH) }
    }
}

/// How a call names a file.
#[derive(Clone, Copy)]
enum Name {
    Descriptor(i32),
    /// A descriptor to start from, the address of a path, and `AT_` flags.
    Path(i32, u64, i32),
}

impl Name {
    /// The name of a new file: a symbolic link is never followed there.
    fn made(directory: i32, address: u64) -> Self {
        Self::Path(directory, address, libc::AT_SYMLINK_NOFOLLOW)
    }
}

fn seen(status: &RawStat) -> Seen {
    let fields = status.fields();
    Seen { mode: fields.st_mode, uid: fields.st_uid, gid: fields.st_gid, rdev: fields.st_rdev }
}

fn id_of(status: &RawStat) -> FileId {
    FileId { device: status.fields().st_dev, inode: status.fields().st_ino }
}

/// An id as an argument; -1 is none.
fn kept(id: u32) -> Option<u32> {
    Some(id).filter(|&id| id != u32::MAX)
}

fn given(id: u32) -> Result<u32, Errno> {
    kept(id).ok_or(Errno::EINVAL)
}
