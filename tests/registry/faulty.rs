//! A server between sifu and a registry, which counts what is asked, holds it back, and spoils the answers.

use super::real::{Layout, Registry};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is done to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Every connection ends in the midst of a large blob, until the rest fits.
    Reset,
    /// One byte of each large blob is another.
    Flip,
    /// Large blobs end early, and their stated length says that this is all.
    Short,
    /// Large blobs go on behind their end.
    Long,
    /// Blobs are somewhere else, at a server that wants to know who asks.
    Elsewhere,
    /// The first three requests are too many.
    Busy,
    /// In the midst of a large blob nothing more comes, and the connection stays open; the next time all of it comes.
    Stall,
    /// Large blobs take twenty seconds.
    Slow,
    /// Of large blobs nothing comes but the head of the answer.
    Silence,
}

pub struct Faulty {
    pub host: String,
    state: Arc<State>,
}

struct State {
    registry: String,
    fault: Mutex<Fault>,
    holds: AtomicBool,
    /// First line, whether it had credentials, bytes of the answer's body.
    asked: Mutex<Vec<(String, bool, usize)>>,
    ranges: Mutex<Vec<String>>,
    busy: Mutex<u32>,
    /// Transfers that stopped.
    stalled: AtomicUsize,
}

/// Blobs that are no larger are left alone: configurations.
const SMALL_BYTES: usize = 100_000;
/// How much of a blob comes before the connection breaks.
const PIECE_BYTES: usize = 400_000;

impl Faulty {
    /// A registry with the image `box`, and a server of this kind before it.
    pub fn before_box() -> (Registry, Self) {
        let registry = Registry::open();
        let layout = Layout::busybox(registry.path("layout"), &registry.path("root"));
        registry.fill(&layout, "box");
        let before = Self::before(&registry.host);
        (registry, before)
    }

    pub fn before(registry: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            registry: registry.to_owned(),
            fault: Mutex::new(Fault::None),
            holds: AtomicBool::new(false),
            asked: Mutex::default(),
            ranges: Mutex::default(),
            busy: Mutex::new(0),
            stalled: AtomicUsize::new(0),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // A client that hangs up early is no failure of the test.
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Self { host, state }
    }

    pub fn set(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
        *self.state.busy.lock().unwrap() = 0;
        self.state.stalled.store(0, Ordering::Release);
        self.state.asked.lock().unwrap().clear();
        self.state.ranges.lock().unwrap().clear();
    }

    /// Keeps large blobs back until told otherwise.
    pub fn hold_blobs(&self, holds: bool) {
        self.state.holds.store(holds, Ordering::Release);
    }

    /// How many requests there were of a method, with `part` in their address, whose answers had so many bytes at least.
    pub fn count(&self, method: &str, part: &str, bytes: usize) -> usize {
        let asked = self.state.asked.lock().unwrap();
        asked
            .iter()
            .filter(|(line, _, length)| line.starts_with(method) && line.contains(part) && *length >= bytes)
            .count()
    }

    /// The ranges that were asked for.
    pub fn ranges(&self) -> Vec<String> {
        self.state.ranges.lock().unwrap().clone()
    }

    /// Whether any request with `part` in its address had credentials.
    pub fn had_credentials(&self, part: &str) -> bool {
        self.state.asked.lock().unwrap().iter().any(|(line, had, _)| line.contains(part) && *had)
    }
}

impl State {
    fn serve(&self, client: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(client.try_clone().ok()?);
        let mut client = client;
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let first = head.lines().next()?.to_owned();
        let header = |head: &str, name: &str| {
            let found = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(str::to_owned));
            found.map(|value| value.trim().to_owned())
        };
        let had_credentials = header(&head, "authorization:").is_some();
        self.ranges.lock().unwrap().extend(header(&head, "range:"));
        let fault = *self.fault.lock().unwrap();
        let log = |length| self.asked.lock().unwrap().push((first.clone(), had_credentials, length));
        if fault == Fault::Busy {
            let mut busy = self.busy.lock().unwrap();
            *busy += 1;
            if *busy <= 3 {
                log(0);
                let answer = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                return client.write_all(answer.as_bytes()).ok();
            }
        }
        let is_blob = first.starts_with("GET") && first.contains("/blobs/");
        if fault == Fault::Elsewhere && is_blob && !first.contains("elsewhere") {
            log(0);
            // The same server by another name, which is another host.
            let own = client.local_addr().ok()?;
            let path = first.split(' ').nth(1)?;
            let location = format!("http://localhost:{}{path}?elsewhere", own.port());
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return client.write_all(answer.as_bytes()).ok();
        }
        let mut registry = TcpStream::connect(&self.registry).ok()?;
        let length = header(&head, "content-length:").and_then(|length| length.parse::<u64>().ok());
        let kept = head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
        registry.write_all(format!("{kept}Connection: close\r\n\r\n").as_bytes()).ok()?;
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            copy_chunks(&mut reader, &mut registry)?;
        } else {
            std::io::copy(&mut (&mut reader).take(length.unwrap_or(0)), &mut registry).ok()?;
        }
        let mut answer = Vec::new();
        registry.read_to_end(&mut answer).ok()?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let size = answer.len() - end;
        log(size);
        if !is_blob || size < SMALL_BYTES {
            return client.write_all(&answer).ok();
        }
        while self.holds.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let with_length = |length: usize| {
            let head = String::from_utf8_lossy(&answer[..end]);
            let lines = head.lines().filter(|line| !line.is_empty());
            let lines = lines.map(|line| match line.to_ascii_lowercase().starts_with("content-length:") {
                true => format!("Content-Length: {length}\r\n"),
                false => format!("{line}\r\n"),
            });
            lines.collect::<String>() + "\r\n"
        };
        match fault {
            Fault::Stall if self.stalled.fetch_add(1, Ordering::AcqRel) == 0 => {
                client.write_all(&answer[..end + PIECE_BYTES]).ok()?;
                return wait_for_end(&mut reader);
            }
            Fault::Slow => {
                for piece in answer.chunks(answer.len().div_ceil(400)) {
                    client.write_all(piece).ok()?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                return Some(());
            }
            Fault::Silence => {
                client.write_all(&answer[..end]).ok()?;
                return wait_for_end(&mut reader);
            }
            Fault::Reset if size > PIECE_BYTES => answer.truncate(end + PIECE_BYTES),
            Fault::Flip => answer[end + size / 2] ^= 1,
            Fault::Short => {
                let head = with_length(size - 1000);
                answer.truncate(end + size - 1000);
                answer.splice(..end, head.into_bytes());
            }
            Fault::Long => {
                let head = with_length(size + 1000);
                answer.extend([0; 1000]);
                answer.splice(..end, head.into_bytes());
            }
            _ => {}
        }
        client.write_all(&answer).ok()
    }
}

/// Holds a connection until its client hangs up.
fn wait_for_end(reader: &mut impl Read) -> Option<()> {
    std::io::copy(reader, &mut std::io::sink()).ok().map(|_| ())
}

/// Hands chunks on as they are, to the last one, which is empty.
fn copy_chunks(from: &mut impl BufRead, to: &mut impl Write) -> Option<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        to.write_all(line.as_bytes()).ok()?;
        let length = u64::from_str_radix(line.trim(), 16).ok()?;
        std::io::copy(&mut from.take(length + 2), to).ok()?;
        if length == 0 {
            return Some(());
        }
    }
}
