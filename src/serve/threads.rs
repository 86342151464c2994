//! Who answers: at first the main thread alone; once READs queue up, workers.
//!
//! One thread is best for look-ups, which it answers faster than a second one wakes up. Unpacking blocks is worth more:
//! when READs queue up, or one of them makes others likely, the connection is handed to workers, which block in read(2);
//! the main thread then only watches the launcher's socket and the owner. Workers are added when READs wait and all are
//! busy, up to the number of CPUs. A program of a few KiB never sees one.
//!
//! One more thread, of the lowest priority, unpacks what the READs so far make likely. On a node whose CPUs are all
//! busy it gets next to nothing, and no READ ever waits for it.

use super::ServeOptions;
use super::control::{self, Message};
use super::process;
use super::ranks::{Meeting, Namespaces, PATIENCE, Ranks};
use super::served::{Answer, Served, Work};
use super::wire::{self, REPLY_HEADER_BYTES, REQUEST_BYTES_MAX, Request};
use crate::squashfs::{Ahead, Piece, Reader};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::writev;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const WORKERS_MAX: usize = 8;
/// Guesses that wait to be unpacked; more are dropped.
const GUESSES_MAX: usize = 64;
const WORKER_STACK_BYTES: usize = 256 << 10;

/// After so long without a READ the unpacked blocks are given up: the kernel has what was read in its page cache.
const IDLE_MILLISECONDS: u16 = 1000;

/// The longest run of zeros that one slice of a reply can point to.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

const SUCCESS: i32 = 0;
const FAILURE: i32 = 1;

/// An image and the device it is served over.
struct Connection {
    served: Served,
    device: OnceLock<OwnedFd>,
    over: AtomicBool,
    workers: AtomicUsize,
    /// Workers that wait for a request.
    waiting: AtomicUsize,
    /// To the thread that unpacks ahead.
    guesses: OnceLock<SyncSender<Ahead>>,
}

struct Server {
    connections: Vec<Connection>,
    /// Connections that are not over.
    alive: AtomicUsize,
    cpus: OnceLock<usize>,
    /// Set by every READ; cleared when the time without one is measured.
    active: AtomicBool,
    /// Wakes the main thread when it sleeps without a time limit. Both ends.
    wake: OnceLock<(UnixStream, UnixStream)>,
}

/// Serves until all connections are over; gives the exit code.
pub(super) fn serve(
    images: Vec<(Reader, ServeOptions)>,
    control: OwnedFd,
    owner: Option<OwnedFd>,
    ranks: Option<Meeting>,
) -> i32 {
    let mut needed: Vec<BorrowedFd<'_>> = vec![control.as_fd()];
    needed.extend(owner.as_ref().map(AsFd::as_fd));
    needed.extend(ranks.iter().flat_map(Meeting::descriptors));
    needed.extend(images.iter().filter_map(|(reader, _)| reader.descriptor()));
    process::settle(c"sifu-serve", &needed);
    drop(needed);

    let mut connections = Vec::new();
    for (reader, options) in images {
        let Ok(served) = Served::new(reader, options) else { return FAILURE };
        connections.push(Connection {
            served,
            device: OnceLock::new(),
            over: AtomicBool::new(false),
            workers: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            guesses: OnceLock::new(),
        });
    }
    let server = Arc::new(Server {
        alive: AtomicUsize::new(connections.len()),
        connections,
        cpus: OnceLock::new(),
        active: AtomicBool::new(false),
        wake: OnceLock::new(),
    });
    watch(&server, control, owner, Ranks::new(ranks))
}

/// What the main thread waits for.
#[derive(Clone, Copy)]
enum Source {
    Control,
    /// Index of an owner.
    Owner(usize),
    /// Index of a listener.
    Rank(usize),
    /// Index of an arrival.
    Arrival(usize),
    Wake,
    Device(usize),
}

fn watch(server: &Arc<Server>, control: OwnedFd, owner: Option<OwnedFd>, mut ranks: Ranks) -> i32 {
    let mut control = Some(control);
    // Who has no owner holds no namespace.
    let owned = owner.is_some();
    let mut owners: Vec<OwnedFd> = owner.into_iter().collect();
    let mut namespaces = Namespaces::default();
    let mut eager = Eager::default();
    let mut request = [0; REQUEST_BYTES_MAX];
    let mut work = Work::new();
    let mut measuring = false;
    // Since when nobody has owned the container, while there are ranks that may.
    let mut forsaken: Option<Instant> = None;
    loop {
        let mut sources = Vec::with_capacity(4);
        let mut descriptors = Vec::with_capacity(4);
        let mut wait_for = |source, descriptor| {
            sources.push(source);
            descriptors.push(PollFd::new(descriptor, PollFlags::POLLIN));
        };
        if let Some(control) = &control {
            wait_for(Source::Control, control.as_fd());
        }
        for (index, owner) in owners.iter().enumerate() {
            wait_for(Source::Owner(index), owner.as_fd());
        }
        for (index, listener) in ranks.listeners().enumerate() {
            wait_for(Source::Rank(index), listener);
        }
        for (index, arrival) in ranks.arrivals().enumerate() {
            wait_for(Source::Arrival(index), arrival);
        }
        if let Some((reader, _)) = server.wake.get() {
            wait_for(Source::Wake, reader.as_fd());
        }
        for (index, connection) in server.connections.iter().enumerate() {
            if let Some(device) = connection.device.get()
                && connection.workers.load(Ordering::Relaxed) == 0
                && !connection.over.load(Ordering::Relaxed)
            {
                wait_for(Source::Device(index), device.as_fd());
            }
        }
        let timeout = if eager.is_on() {
            PollTimeout::ZERO
        } else if let Some(since) = forsaken {
            let left = PATIENCE.saturating_sub(since.elapsed()).as_millis();
            PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX).saturating_add(1))
        } else if measuring {
            PollTimeout::from(IDLE_MILLISECONDS)
        } else {
            PollTimeout::NONE
        };
        let ready: Vec<Source> = match poll(&mut descriptors, timeout) {
            Ok(0) if eager.is_on() => {
                eager.give_way();
                continue;
            }
            Ok(0) if forsaken.is_some() => Vec::new(),
            Ok(0) => {
                // Not a READ for the whole time: give the memory back, and sleep until the next one.
                measuring = server.active.swap(false, Ordering::Relaxed);
                if !measuring {
                    server.connections.iter().for_each(|connection| connection.served.reader.forget_data());
                }
                continue;
            }
            Ok(_) => sources
                .iter()
                .zip(&descriptors)
                .filter(|(_, descriptor)| descriptor.revents().is_some_and(|events| !events.is_empty()))
                .map(|(&source, _)| source)
                .collect(),
            Err(Errno::EINTR) => continue,
            Err(_) => return FAILURE,
        };
        drop(descriptors);
        let (mut ended, mut heard) = (Vec::new(), false);
        for source in ready {
            match source {
                Source::Control => match control.as_ref().map_or(Message::Closed, |c| control::receive(c.as_fd())) {
                    Message::Fuse { index, descriptor } => {
                        if let Some(connection) = server.connections.get(usize::from(index)) {
                            let _ = connection.device.set(descriptor);
                            eager = Eager::begin();
                        }
                    }
                    Message::MountNamespace(descriptor) if owned && !owners.is_empty() => {
                        namespaces.mount = Some(descriptor);
                        ranks.serve(&namespaces);
                    }
                    Message::UserNamespace(descriptor) => {
                        namespaces.user = Some(descriptor);
                        ranks.serve(&namespaces);
                    }
                    Message::MountNamespace(_) => {}
                    Message::Other => {}
                    Message::Closed => {
                        control = None;
                        // What was not mounted by now never will be, and nobody can join it.
                        if namespaces.mount.is_none() {
                            ranks.close();
                        }
                        for connection in server.connections.iter().filter(|c| c.device.get().is_none()) {
                            server.end(connection);
                        }
                    }
                },
                Source::Owner(index) => {
                    ended.push(index);
                }
                Source::Rank(index) => {
                    owners.extend(ranks.accept(index));
                    ranks.serve(&namespaces);
                }
                // One at a time: the others have another index now.
                Source::Arrival(index) if !heard => {
                    heard = true;
                    if let Some(owner) = ranks.hear(index) {
                        owners.push(owner);
                    }
                    ranks.serve(&namespaces);
                }
                Source::Arrival(_) => {}
                Source::Wake => {
                    if let Some((reader, _)) = server.wake.get() {
                        let _ = nix::unistd::read(reader, &mut [0; 64]);
                    }
                    measuring = true;
                }
                Source::Device(index) => {
                    let connection = &server.connections[index];
                    match step(connection, &mut request, &mut work) {
                        Step::Over => {
                            server.end(connection);
                        }
                        Step::Answered { was_read: false } => {}
                        Step::Answered { was_read: true } => {
                            measuring = true;
                            server.active.store(true, Ordering::Relaxed);
                            if !work.ahead.is_empty() || is_ready(connection) {
                                server.employ(index);
                                connection.guess(&mut work);
                            }
                        }
                    }
                }
            }
        }
        for index in ended.into_iter().rev() {
            owners.swap_remove(index);
        }
        if !owned || !owners.is_empty() {
            forsaken = None;
        } else if namespaces.mount.is_some()
            && ranks.more_are_announced()
            && forsaken.get_or_insert_with(Instant::now).elapsed() < PATIENCE
        {
            // The next one comes.
        } else {
            // The last one to hold it takes the namespace down: here, where nobody waits for it.
            forsaken = None;
            ranks.close();
            namespaces = Namespaces::default();
        }
        if server.alive.load(Ordering::Relaxed) == 0 && !ranks.open() {
            drop(namespaces);
            return SUCCESS;
        }
    }
}

/// Looks for requests without sleeping, for the moment between the mount and the command: the launcher asks some dozen
/// times in a row, and to be woken takes longer than to answer. It made a start a quarter shorter. Where somebody else
/// wants the CPU, it is over at once.
#[derive(Default)]
struct Eager {
    until: Option<Instant>,
}

impl Eager {
    const AT_MOST: Duration = Duration::from_micros(1500);
    /// A yield that takes longer has let somebody else run.
    const UNDISTURBED: Duration = Duration::from_micros(20);

    fn begin() -> Self {
        Self { until: Some(Instant::now() + Self::AT_MOST) }
    }

    fn is_on(&self) -> bool {
        self.until.is_some()
    }

    fn give_way(&mut self) {
        let before = Instant::now();
        // It can't fail on Linux.
        let _ = nix::sched::sched_yield();
        let after = Instant::now();
        if after - before > Self::UNDISTURBED || self.until.is_none_or(|until| after > until) {
            self.until = None;
        }
    }
}

impl Server {
    fn cpus(&self) -> usize {
        *self.cpus.get_or_init(process::use_all_cpus)
    }

    /// Adds a worker to a connection, if there are CPUs for it; the first one takes it over from the main thread.
    fn employ(self: &Arc<Self>, index: usize) {
        let connection = &self.connections[index];
        let limit = self.cpus().min(WORKERS_MAX);
        if limit < 2 {
            return;
        }
        if self.wake.get().is_none()
            && let Ok(pair) = UnixStream::pair()
        {
            let _ = self.wake.set(pair);
        }
        self.look_ahead(index);
        let server = Arc::clone(self);
        let thread = std::thread::Builder::new().stack_size(WORKER_STACK_BYTES);
        if connection.workers.fetch_add(1, Ordering::Relaxed) >= limit
            || thread.spawn(move || server.work(index)).is_err()
        {
            connection.workers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A worker's life.
    fn work(self: &Arc<Self>, index: usize) {
        let connection = &self.connections[index];
        let mut request = [0; REQUEST_BYTES_MAX];
        let mut work = Work::new();
        loop {
            connection.waiting.fetch_add(1, Ordering::Relaxed);
            let received = receive(connection, &mut request);
            let waiting = connection.waiting.fetch_sub(1, Ordering::Relaxed) - 1;
            let Some(length) = received else { break };
            let Some(parsed) = Request::parse(&request[..length]) else { continue };
            let was_read = parsed.opcode == wire::READ;
            if was_read {
                if !self.active.swap(true, Ordering::Relaxed) {
                    self.wake_main();
                }
                if waiting == 0 && is_ready(connection) {
                    self.employ(index);
                }
            }
            answer(connection, &parsed, &mut work);
            if was_read {
                work.pieces.clear();
                connection.guess(&mut work);
            }
        }
        if self.end(connection) {
            starter::sys::exit_immediately(SUCCESS);
        }
    }

    /// Starts the thread that unpacks ahead, once.
    fn look_ahead(self: &Arc<Self>, index: usize) {
        if self.connections[index].guesses.get().is_some() {
            return;
        }
        let (sender, receiver) = sync_channel(GUESSES_MAX);
        let server = Arc::clone(self);
        let thread = std::thread::Builder::new().stack_size(WORKER_STACK_BYTES);
        if thread.spawn(move || server.unpack_ahead(index, &receiver)).is_ok() {
            let _ = self.connections[index].guesses.set(sender);
        }
    }

    fn unpack_ahead(&self, index: usize, guesses: &Receiver<Ahead>) {
        starter::sys::lower_thread_priority();
        while let Ok(ahead) = guesses.recv() {
            // A block that can't be unpacked is told to whoever really wants it.
            let _ = self.connections[index].served.reader.prefetch(&ahead);
        }
    }

    fn wake_main(&self) {
        if let Some((_, writer)) = self.wake.get() {
            let _ = nix::unistd::write(writer, &[0]);
        }
    }

    /// Notes that a connection is over; says whether it was the last.
    fn end(&self, connection: &Connection) -> bool {
        !connection.over.swap(true, Ordering::Relaxed) && self.alive.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl Connection {
    fn guess(&self, work: &mut Work) {
        let Some(guesses) = self.guesses.get() else { return };
        for ahead in work.ahead.drain(..) {
            if !self.served.reader.is_ready(&ahead) {
                let _ = guesses.try_send(ahead);
            }
        }
    }
}

enum Step {
    Answered { was_read: bool },
    Over,
}

/// Receives and answers one request.
fn step(connection: &Connection, buffer: &mut [u8], work: &mut Work) -> Step {
    let Some(length) = receive(connection, buffer) else { return Step::Over };
    let Some(request) = Request::parse(&buffer[..length]) else { return Step::Answered { was_read: false } };
    answer(connection, &request, work);
    work.pieces.clear();
    Step::Answered { was_read: request.opcode == wire::READ }
}

/// Waits for a request; `None` when the connection is over.
fn receive(connection: &Connection, buffer: &mut [u8]) -> Option<usize> {
    let device = connection.device.get()?;
    loop {
        match nix::unistd::read(device, buffer) {
            Ok(length) => return Some(length),
            // ENOENT: the request was taken back before it was read.
            Err(Errno::EINTR | Errno::ENOENT | Errno::EAGAIN) => {}
            Err(_) => return None,
        }
    }
}

fn answer(connection: &Connection, request: &Request<'_>, work: &mut Work) {
    let Some(device) = connection.device.get() else { return };
    let answer = connection.served.answer(request, work);
    // A reply that the kernel does not take belongs to a request that was taken back; a connection that ended says so
    // at the next read.
    let _ = match answer {
        Answer::Silent => Ok(0),
        Answer::Error(errno) => nix::unistd::write(device, &wire::header(request.unique, errno as i32, 0)),
        Answer::Body => nix::unistd::write(device, work.body.reply(request.unique)),
        Answer::Bytes(bytes) => {
            let header = wire::header(request.unique, 0, bytes.len());
            writev(device, &[IoSlice::new(&header), IoSlice::new(bytes)])
        }
        Answer::Pieces(length) => write_pieces(device, request.unique, length, &work.pieces),
    };
}

/// Replies with file content straight from the cached blocks.
fn write_pieces(device: &OwnedFd, unique: u64, length: usize, pieces: &[Piece]) -> nix::Result<usize> {
    let header: [u8; REPLY_HEADER_BYTES] = wire::header(unique, 0, length);
    let mut slices = Vec::with_capacity(pieces.len() + 1);
    slices.push(IoSlice::new(&header));
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => slices.push(IoSlice::new(bytes)),
            Piece::Zeros(count) => {
                let mut left = *count;
                while left > 0 {
                    let part = left.min(ZEROS.len());
                    slices.push(IoSlice::new(&ZEROS[..part]));
                    left -= part;
                }
            }
        }
    }
    writev(device, &slices)
}

fn is_ready(connection: &Connection) -> bool {
    let Some(device) = connection.device.get() else { return false };
    let mut descriptors = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut descriptors, PollTimeout::ZERO), Ok(1..))
}
