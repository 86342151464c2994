//! Starts what a plan says: the servers beside this process, then the plan itself, in this process.
//!
//! ```text
//! this process ──fork──► image server     waits for the mounts; in the host's namespaces
//!      │       ──fork──► supervisor       answers the calls that an emulated root makes
//!      │       ──fork──► host commands    starts what relays in the container ask for
//!      │       ──fork──► remover          waits for this process to end, then removes an unpacked tree
//!      ▼
//! starter::perform::launch                namespaces, mounts, privileges
//!      ▼
//! the command                             same process id
//! ```
//!
//! The children are not the command's: its waits never see them, and signals for the job do not end them.

use crate::host_command::{self, server::HostCommands};
use crate::image::extract;
use crate::remembered::{self, Journal, JournalError};
use crate::root_emulation;
use crate::serve::{self, Invented, InventedContent, Owner, ServeOptions, end_of_this_process};
use crate::squashfs::Reader;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::socket::{getsockopt, sockopt};
use starter::image_server::{
    EARLY_RANK, MOUNT_NAMESPACE, PLAN, RANK, USER_NAMESPACE, receive, send_listener, send_plan, send_rank,
};
use starter::paths::HostPath;
use starter::perform::{self, Entered, Launched, PerformError};
use starter::plan::{Emulation, Identity, LaunchPlan, Node, NodeContent, Records};
use starter::sys;
use starter::trapped::Scope;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

/// Whom a container is shared with.
#[derive(Default)]
pub struct Company {
    /// How many ranks of its job step this node has at most, where that is known.
    pub ranks: Option<u32>,
    /// Where those meet this process that have no plan yet, and what of its own they need.
    pub early: Option<(UnixListener, Vec<u8>)>,
}

/// Starts the servers that `plan` needs, and performs all of it but its command. The process must have one thread.
///
/// `images` are the connections of the plan, in order, with the nodes that each shows in addition; `journal` has the
/// records of its root emulation; `host_commands` is what the host does for programs inside.
pub fn start(
    plan: &LaunchPlan,
    images: Vec<(Reader, Vec<Node>)>,
    journal: Option<Journal>,
    host_commands: Option<HostCommands>,
    company: Company,
) -> Result<Launched, PerformError> {
    sys::shield_descriptors();
    if let Some(directory) = &plan.parent.remove {
        remove_at_the_end(directory)?;
    }
    let host = host_commands.map(start_host_commands).transpose()?;
    let early: Option<(OwnedFd, OwnedFd)> =
        company.early.and_then(|(listener, plan)| Some((listener.into(), kept_in_memory(&plan).ok()?)));
    let meeting = match plan.share.as_deref().map(|name| meet(name, |stream| join(stream, early.as_ref()))) {
        Some(Met::Group((user, mounts))) => return perform::join(plan, &user, &mounts).map(Launched::Inside),
        Some(Met::Nobody(listener)) => Some(serve::Meeting { listener: listener.into(), early, ranks: company.ranks }),
        Some(Met::Strangers) | None => None,
    };
    // Somebody has to keep the namespaces of a container that others may join, even if no image is to be served.
    let served = !images.is_empty() || meeting.is_some();
    let control = if served { Some(start_server(plan, images, meeting)?) } else { None };
    let supervisor = match (&plan.emulation, journal) {
        (Some(emulation), Some(journal)) => Some(start_supervisor(emulation.scope, journal)?),
        _ => None,
    };
    let launched = perform::launch(plan, control.as_ref().map(AsFd::as_fd), supervisor.as_ref().map(AsFd::as_fd))?;
    if let (Launched::Inside(_), Some(host)) = (&launched, &host) {
        let listening = host_command::server::listen(host);
        listening.map_err(system("open the socket of the host's commands"))?;
    }
    Ok(launched)
}

fn system(doing: &'static str) -> impl Fn(std::io::Error) -> PerformError {
    move |error| PerformError::System { doing, errno: errno_of(&error) }
}

fn start_host_commands(commands: HostCommands) -> Result<UnixStream, PerformError> {
    let (ours, theirs) = UnixStream::pair().map_err(system("make a socket"))?;
    let this = end_of_this_process().map_err(system("watch this process"))?;
    sys::fork_unseen(move || host_command::server::run(&commands, theirs, this))
        .map_err(system("start the server of the host's commands"))?;
    Ok(ours)
}

/// Opens the records that a root emulation begins with, and where it keeps them.
pub fn journal(emulation: &Emulation) -> Result<Journal, JournalError> {
    match &emulation.records {
        Records::Fresh => Ok(Journal::in_memory()),
        Records::Read(path) => Ok(Journal::starting_with(remembered::read(path)?)),
        Records::Kept(path) => Journal::open(path),
    }
}

fn start_supervisor(scope: Scope, journal: Journal) -> Result<UnixStream, PerformError> {
    let (ours, theirs) = UnixStream::pair().map_err(system("make a socket"))?;
    sys::fork_unseen(move || root_emulation::run(theirs.into(), journal, scope))
        .map_err(system("start the supervisor of the root emulation"))?;
    Ok(ours)
}

fn start_server(
    plan: &LaunchPlan,
    images: Vec<(Reader, Vec<Node>)>,
    ranks: Option<serve::Meeting>,
) -> Result<UnixStream, PerformError> {
    let owner = owner_of(&plan.identity);
    let images: Vec<_> = images
        .into_iter()
        .map(|(reader, nodes)| (reader, ServeOptions { owner, invented: nodes.into_iter().map(invented).collect() }))
        .collect();
    // This process has no more use for them, and to give back memory that it shares with the server would copy it.
    let images = ManuallyDrop::new(images);
    let (ours, theirs) = UnixStream::pair().map_err(system("make a socket"))?;
    let this = end_of_this_process().map_err(system("watch this process"))?;
    sys::fork_unseen(move || serve::run(ManuallyDrop::into_inner(images), theirs.into(), Some(this), ranks))
        .map_err(system("start the image server"))?;
    Ok(ours)
}

/// Who was met under a name that several processes know.
enum Met<G> {
    /// Those who were here before, with what they gave.
    Group(G),
    /// This process is the first.
    Nobody(UnixListener),
    /// There is no agreement to be had; a container of one's own always works.
    Strangers,
}

/// What comes of looking for others before there is a plan.
pub enum Early {
    /// There is a container for this process; and a plan for it, by [`super::ranks::plan_for_others`].
    Group(EarlyGroup),
    /// This process is the first; others will look for it here.
    First(UnixListener),
    /// A plan of one's own is needed.
    Alone,
}

/// A container that can be joined without a plan of one's own.
pub struct EarlyGroup {
    pub plan: Vec<u8>,
    user: OwnedFd,
    mounts: OwnedFd,
}

impl EarlyGroup {
    /// Joins it. The process must have one thread.
    pub fn join(&self, plan: &LaunchPlan) -> Result<Entered, PerformError> {
        sys::shield_descriptors();
        perform::join(plan, &self.user, &self.mounts)
    }
}

/// Looks for others under the name that ranks have before they have a plan, and waits for it while the first of them is
/// still at work.
pub fn meet_early(name: &[u8]) -> Early {
    // Where the first one has nothing to give, its name is free again at once; to take it would let others wait in vain.
    let met = meet(name, |stream| match join_early(stream) {
        Ok(Some(group)) => Ok(Some(group)),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    });
    match met {
        Met::Group(group) => Early::Group(group),
        Met::Nobody(listener) => Early::First(listener),
        Met::Strangers => Early::Alone,
    }
}

/// Meets the other ranks under `name`, or becomes the first of them. `join` gets what they have to give; `None` where they
/// have just gone.
fn meet<G>(name: &[u8], mut join: impl FnMut(&UnixStream) -> std::io::Result<Option<G>>) -> Met<G> {
    /// A name changes hands when a container ends just now.
    const ATTEMPTS: u32 = 20;
    /// The first rank may be slow on a busy node; one that is stopped is not waited for.
    const PATIENCE: Duration = Duration::from_secs(20);
    let Ok(address) = SocketAddr::from_abstract_name(name) else { return Met::Strangers };
    for attempt in 0..ATTEMPTS {
        match UnixStream::connect_addr(&address) {
            Ok(stream) => {
                if stream.set_read_timeout(Some(PATIENCE)).is_err() || !is_of_this_user(&stream) {
                    return Met::Strangers;
                }
                match join(&stream) {
                    Ok(Some(group)) => return Met::Group(group),
                    // It has just ended, or failed.
                    Ok(None) => {}
                    Err(_) => return Met::Strangers,
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                if let Ok(listener) = UnixListener::bind_addr(&address) {
                    return Met::Nobody(listener);
                }
            }
            Err(_) => return Met::Strangers,
        }
        std::thread::sleep(Duration::from_micros(200 * u64::from(attempt)));
    }
    Met::Strangers
}

/// Anybody may take a name; only what this user has made is joined.
fn is_of_this_user(stream: &UnixStream) -> bool {
    getsockopt(stream, sockopt::PeerCredentials).is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw())
}

/// Gets the two namespaces. Those who have met this process early, at the socket of `early`, can be let in as well.
fn join(stream: &UnixStream, early: Option<&(OwnedFd, OwnedFd)>) -> std::io::Result<Option<(OwnedFd, OwnedFd)>> {
    let end = end_of_this_process()?;
    let brought =
        early.map_or(Ok(()), |(listener, plan)| send_listener(stream, listener).and_then(|()| send_plan(stream, plan)));
    if brought.and_then(|()| send_rank(stream, RANK, end)).is_err() {
        return Ok(None);
    }
    namespaces(stream)
}

/// Gets the plan and the two namespaces.
fn join_early(stream: &UnixStream) -> std::io::Result<Option<EarlyGroup>> {
    if send_rank(stream, EARLY_RANK, end_of_this_process()?).is_err() {
        return Ok(None);
    }
    let Some(plan) = next(stream, PLAN)? else { return Ok(None) };
    let Some((user, mounts)) = namespaces(stream)? else { return Ok(None) };
    Ok(Some(EarlyGroup { plan: whole(plan)?, user, mounts }))
}

fn namespaces(stream: &UnixStream) -> std::io::Result<Option<(OwnedFd, OwnedFd)>> {
    let Some(user) = next(stream, USER_NAMESPACE)? else { return Ok(None) };
    Ok(next(stream, MOUNT_NAMESPACE)?.map(|mounts| (user, mounts)))
}

/// The descriptor that the next message brings; `None` if it is of another kind, or the other side is gone.
fn next(stream: &UnixStream, expected: u8) -> std::io::Result<Option<OwnedFd>> {
    match receive(stream) {
        Ok(Some((kind, descriptor))) if kind == expected => Ok(Some(descriptor)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file that holds `content` and has no name.
fn kept_in_memory(content: &[u8]) -> std::io::Result<OwnedFd> {
    let file = File::from(memfd_create(c"sifu-plan", MFdFlags::MFD_CLOEXEC)?);
    file.write_all_at(content, 0)?;
    Ok(file.into())
}

/// What such a file holds; several processes read it by one descriptor, so its position means nothing.
fn whole(file: OwnedFd) -> std::io::Result<Vec<u8>> {
    let file = File::from(file);
    let mut content = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// Ids inside: one user has all files, unless a range of ids gives every owner of the image a place.
fn owner_of(identity: &Identity) -> Owner {
    match identity {
        Identity::Keep { uid, gid } => Owner::Everyone { uid: *uid, gid: *gid },
        Identity::Root { .. } => Owner::Everyone { uid: 0, gid: 0 },
        Identity::Range { .. } | Identity::Privileged => Owner::Recorded,
    }
}

fn invented(node: Node) -> Invented {
    let content = match node.content {
        NodeContent::Directory => InventedContent::Directory,
        NodeContent::File(content) => InventedContent::File(content),
        NodeContent::Symlink(target) => InventedContent::Symlink(target),
    };
    Invented { path: node.path, mode: node.mode, content }
}

fn errno_of(error: &std::io::Error) -> nix::errno::Errno {
    error.raw_os_error().map_or(nix::errno::Errno::EIO, nix::errno::Errno::from_raw)
}

/// Leaves a process behind that removes `directory` when this one, whatever it has become, has ended.
fn remove_at_the_end(directory: &HostPath) -> Result<(), PerformError> {
    let this = end_of_this_process().map_err(system("watch this process"))?;
    let (parent, name) = match (directory.as_path().parent(), directory.as_path().file_name()) {
        (Some(parent), Some(name)) => (parent.to_owned(), name.to_owned()),
        _ => return Ok(()),
    };
    let parent = File::open(parent).map_err(system("open the directory of the unpacked image"))?;
    sys::fork_unseen(move || {
        let _ = SigSet::all().thread_block();
        let _ = nix::unistd::setsid();
        let _ = nix::unistd::chdir("/");
        let _ = nix::sys::prctl::set_name(c"sifu-remove");
        if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdin(&null);
            let _ = nix::unistd::dup2_stdout(&null);
            let _ = nix::unistd::dup2_stderr(&null);
        }
        sys::close_all_except(&[this.as_fd(), parent.as_fd()]);
        let mut ended = [PollFd::new(this.as_fd(), PollFlags::POLLIN)];
        while poll(&mut ended, PollTimeout::NONE).is_err() {}
        // Programs that the command left behind may still write to it; they lose it now.
        let code = u8::from(extract::remove(parent.as_fd(), &name).is_err());
        // The descriptors of other owners are closed already.
        sys::exit_immediately(i32::from(code))
    })
    .map_err(system("start the process that removes the unpacked image"))?;
    Ok(())
}
