//! Seccomp profiles as Docker and OCI runtimes write them, compiled to the classic BPF that the kernel runs.
//!
//! ```text
//! { "defaultAction": "SCMP_ACT_ERRNO", "archMap": [..],          load arch
//!   "syscalls": [ { "names": ["read", ..],                       x86_64?   load nr ─► tree of ranges of numbers
//!                   "action": "SCMP_ACT_ALLOW",           ──►    x86?      load nr ─► tree of ranges of numbers
//!                   "args": [..],                                else kill
//!                   "includes": {..}, "excludes": {..} } ] }
//! ```
//!
//! Numbers with the same answer next to each other are one range, found by bisection: a filter of four hundred names
//! costs a call some ten instructions. Within a call, entries that look at arguments are asked in the order of the
//! profile, and an entry that does not look at them is stronger than those that do.
//!
//! A profile that refuses what it does not name, and does not name `clone3(2)`, was written before that call: there it
//! fails with ENOSYS, at which C libraries go back to `clone(2)`, instead of with the default number, at which they
//! can't start a thread.
//!
//! Names that an architecture has not are skipped, so that one profile serves them all. Calls of another architecture
//! than the profile allows end the process; x32 calls fail with ENOSYS, as on a kernel without them. Everything here is
//! pure: bytes in, bytes out.

mod bpf;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::capabilities;
use crate::report::Hint;
use bpf::{Comparison, Instruction};

/// The size of a profile in bytes above which it is not looked at.
const MAX_PROFILE_BYTES: usize = 1 << 20;
/// `BPF_MAXINSNS`: the kernel takes no longer program.
const MAX_INSTRUCTIONS: usize = 4096;

/// What `SCMP_ACT_ERRNO` and `SCMP_ACT_TRACE` answer when the profile gives no number: EPERM.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel's largest errno.
const MAX_ERRNO: u32 = 4095;

// `SECCOMP_RET_*` of linux/seccomp.h.
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ACTION_FULL`: an answer without its number.
const ACTION: u32 = 0xffff_0000;

/// The bit of a system call number that makes it one of x32 (`__X32_SYSCALL_BIT`).
const X32_BIT: u32 = 0x4000_0000;

/// What the conditions of a profile are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeccompContext {
    /// The capabilities that the container keeps; bit `n` is capability `n`.
    pub capabilities: u64,
    pub architecture: Architecture,
    /// Major and minor number of the kernel's version.
    pub kernel: (u32, u32),
}

/// A machine whose system calls are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    /// Returns the architecture that `uname -m` calls `machine`.
    pub fn from_machine(machine: &str) -> Option<Self> {
        match machine {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The name in `archMap` and `architectures`.
    fn libseccomp_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
        }
    }

    /// The name in `includes` and `excludes`, which is Go's.
    fn go_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// How its own programs call, and how programs of its 32-bit sibling do, under that sibling's name.
    fn interfaces(self) -> (Interface, &'static str, Interface) {
        match self {
            Self::X86_64 => (
                Interface {
                    audit: 0xc000_003e,
                    wide: true,
                    x32: true,
                    number: |name| number(name.parse().map(|s: syscalls::x86_64::Sysno| s.id())),
                },
                "SCMP_ARCH_X86",
                Interface {
                    audit: 0x4000_0003,
                    wide: false,
                    x32: false,
                    number: |name| number(name.parse().map(|s: syscalls::x86::Sysno| s.id())),
                },
            ),
            Self::Aarch64 => (
                Interface {
                    audit: 0xc000_00b7,
                    wide: true,
                    x32: false,
                    number: |name| number(name.parse().map(|s: syscalls::aarch64::Sysno| s.id())),
                },
                "SCMP_ARCH_ARM",
                Interface {
                    audit: 0x4000_0028,
                    wide: false,
                    x32: false,
                    number: |name| number(name.parse().map(|s: syscalls::arm::Sysno| s.id())),
                },
            ),
        }
    }
}

fn number(id: Result<i32, ()>) -> Option<u32> {
    id.ok().and_then(|id| u32::try_from(id).ok())
}

/// A way to call the kernel.
#[derive(Clone, Copy)]
struct Interface {
    /// `AUDIT_ARCH_*` of linux/audit.h, which seccomp tells a filter.
    audit: u32,
    /// Whether arguments have 64 bits.
    wide: bool,
    /// Whether numbers with [`X32_BIT`] reach this interface.
    x32: bool,
    number: fn(&str) -> Option<u32>,
}

impl Interface {
    /// Whether `socketcall` and `ipc` are other ways to calls of this interface.
    fn multiplexes(&self) -> bool {
        (self.number)("socketcall").is_some()
    }
}

/// Compiles a profile into `struct sock_filter` instructions, 8 bytes each, in this machine's byte order.
pub fn compile(profile_json: &[u8], context: &SeccompContext) -> Result<Vec<u8>, SeccompError> {
    if profile_json.len() > MAX_PROFILE_BYTES {
        return Err(SeccompError::TooLarge { size_bytes: profile_json.len() });
    }
    let profile: Profile = serde_json::from_slice(profile_json).map_err(|error| SeccompError::Json {
        line: error.line(),
        column: error.column(),
        reason: reason(&error),
    })?;
    let (default, entries) = profile.judge(context)?;
    let (native, sibling_name, sibling) = context.architecture.interfaces();
    let mut interfaces = vec![native];
    if profile.allows_sibling(context.architecture, sibling_name)? {
        interfaces.push(sibling);
    }
    let mut program = vec![bpf::ret(KILL_PROCESS)];
    for interface in interfaces.iter().rev() {
        let filter = filter(interface, default, &entries, profile.names("clone3"))?;
        program = bpf::choose(bpf::JEQ, interface.audit, filter, program);
    }
    program.insert(0, bpf::load(bpf::ARCHITECTURE_OFFSET));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong);
    }
    Ok(program.into_iter().flat_map(Instruction::to_bytes).collect())
}

/// The words of the JSON reader without the place, which is told apart from them.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// A profile as its JSON spells it. Fields that say nothing about the filter (comments) are not looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchitectureMap>>,
    flags: Option<Vec<String>>,
    syscalls: Option<Vec<EntryText>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchitectureMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EntryText {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<ArgumentText>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArgumentText {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// An entry that counts here, with its words understood.
struct Entry<'a> {
    names: Vec<&'a str>,
    /// `SECCOMP_RET_*` with its data.
    answer: u32,
    /// One of these lists must hold as a whole; none when the entry looks at no argument.
    alternatives: Vec<Vec<Comparison>>,
}

impl Profile {
    /// Returns the default answer and the entries that count in `context`.
    fn judge(&self, context: &SeccompContext) -> Result<(u32, Vec<Entry<'_>>), SeccompError> {
        for flag in self.flags.iter().flatten() {
            // The filter is installed by a process of one thread, so there is nothing to synchronize.
            if flag != "SECCOMP_FILTER_FLAG_TSYNC" {
                return Err(SeccompError::new(Place::Flags, Wrong::Flag(flag.clone())));
            }
        }
        let default = answer(&self.default_action, self.default_errno_ret.unwrap_or(EPERM))
            .map_err(|wrong| SeccompError::new(Place::Default, wrong))?;
        let mut entries = Vec::new();
        for (index, text) in self.syscalls.iter().flatten().enumerate() {
            let names = text.names();
            let entry = text.judge(&names, context).map_err(|wrong| {
                SeccompError::new(Place::Entry { index, name: names.first().map(|&name| name.to_owned()) }, wrong)
            })?;
            // An entry that only repeats the default must not hide a later one.
            entries.extend(entry.filter(|entry| entry.answer != default));
        }
        Ok((default, entries))
    }

    /// Whether any entry names `call`, whether it counts or not.
    fn names(&self, call: &str) -> bool {
        self.syscalls.iter().flatten().any(|entry| entry.names().contains(&call))
    }

    /// Whether programs of the architecture's 32-bit sibling may call as well.
    fn allows_sibling(&self, architecture: Architecture, sibling: &str) -> Result<bool, SeccompError> {
        let listed = self.architectures.iter().flatten();
        let mapped = self.arch_map.iter().flatten();
        if self.architectures.as_ref().is_some_and(|list| !list.is_empty())
            && self.arch_map.as_ref().is_some_and(|map| !map.is_empty())
        {
            return Err(SeccompError::new(Place::Architectures, Wrong::Both("archMap", "architectures")));
        }
        Ok(listed.into_iter().any(|name| name == sibling)
            || mapped
                .filter(|map| map.architecture == architecture.libseccomp_name())
                .any(|map| map.sub_architectures.iter().flatten().any(|name| name == sibling)))
    }
}

impl EntryText {
    fn names(&self) -> Vec<&str> {
        self.name
            .iter()
            .filter(|name| !name.is_empty())
            .chain(self.names.iter().flatten())
            .map(String::as_str)
            .collect()
    }

    /// Understands every word; `None` when the entry does not count in `context`.
    fn judge<'a>(&self, names: &[&'a str], context: &SeccompContext) -> Result<Option<Entry<'a>>, Wrong> {
        let has_name = self.name.as_ref().is_some_and(|name| !name.is_empty());
        if has_name && self.names.as_ref().is_some_and(|names| !names.is_empty()) {
            return Err(Wrong::Both("name", "names"));
        }
        if names.is_empty() {
            return Err(Wrong::Nameless);
        }
        let answer = answer(&self.action, self.errno_ret.unwrap_or(EPERM))?;
        let comparisons: Vec<Comparison> =
            self.args.iter().flatten().map(ArgumentText::judge).collect::<Result<_, _>>()?;
        let mut repeated = [0; bpf::ARGUMENTS];
        for comparison in &comparisons {
            repeated[comparison.argument] += 1;
        }
        // Several comparisons of one argument are a choice between them: so do the runtimes that profiles come from.
        let alternatives = match (comparisons.is_empty(), repeated.iter().any(|&count| count > 1)) {
            (true, _) => Vec::new(),
            (false, true) => comparisons.into_iter().map(|comparison| vec![comparison]).collect(),
            (false, false) => vec![comparisons],
        };
        let counts = match &self.includes {
            None => true,
            Some(condition) => condition.all(context)?,
        } && !match &self.excludes {
            None => false,
            Some(condition) => condition.any(context)?,
        };
        Ok(counts.then(|| Entry { names: names.to_vec(), answer, alternatives }))
    }
}

impl ArgumentText {
    fn judge(&self) -> Result<Comparison, Wrong> {
        let argument = self.index as usize;
        if argument >= bpf::ARGUMENTS {
            return Err(Wrong::Argument(self.index));
        }
        let (operator, mask, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => (bpf::Operator::NotEqual, u64::MAX, self.value),
            "SCMP_CMP_LT" => (bpf::Operator::Less, u64::MAX, self.value),
            "SCMP_CMP_LE" => (bpf::Operator::LessOrEqual, u64::MAX, self.value),
            "SCMP_CMP_EQ" => (bpf::Operator::Equal, u64::MAX, self.value),
            "SCMP_CMP_GE" => (bpf::Operator::GreaterOrEqual, u64::MAX, self.value),
            "SCMP_CMP_GT" => (bpf::Operator::Greater, u64::MAX, self.value),
            "SCMP_CMP_MASKED_EQ" => (bpf::Operator::Equal, self.value, self.value_two),
            _ => return Err(Wrong::Operator(self.op.clone())),
        };
        Ok(Comparison { argument, operator, mask, value })
    }
}

impl Condition {
    /// Whether everything that is said holds.
    fn all(&self, context: &SeccompContext) -> Result<bool, Wrong> {
        let mut caps = self.caps.iter().flatten();
        let arches = self.arches.as_deref().unwrap_or_default();
        Ok(caps.all(|name| context.holds(name))
            && (arches.is_empty() || arches.iter().any(|name| name == context.architecture.go_name()))
            && self.kernel_is_at_least(context)?.unwrap_or(true))
    }

    /// Whether anything that is said holds.
    fn any(&self, context: &SeccompContext) -> Result<bool, Wrong> {
        let mut caps = self.caps.iter().flatten();
        let mut arches = self.arches.iter().flatten();
        Ok(caps.any(|name| context.holds(name))
            || arches.any(|name| name == context.architecture.go_name())
            || self.kernel_is_at_least(context)?.unwrap_or(false))
    }

    fn kernel_is_at_least(&self, context: &SeccompContext) -> Result<Option<bool>, Wrong> {
        let Some(text) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let version = text.split_once('.').and_then(|(major, minor)| {
            let minor = minor.split('.').next().unwrap_or_default();
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
        match version {
            Some(version) => Ok(Some(context.kernel >= version)),
            None => Err(Wrong::Kernel(text.to_owned())),
        }
    }
}

impl SeccompContext {
    fn holds(&self, capability: &str) -> bool {
        capabilities::bit(capability.as_bytes()).is_some_and(|bit| self.capabilities & bit != 0)
    }
}

/// Returns the kernel's answer for an action's name; `errno` is for those that carry a number.
fn answer(action: &str, errno: u32) -> Result<u32, Wrong> {
    Ok(match action {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_ERRNO" if errno <= MAX_ERRNO => ERRNO | errno,
        "SCMP_ACT_TRACE" if errno <= 0xffff => TRACE | errno,
        "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE" => return Err(Wrong::Errno(errno)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_NOTIFY" => return Err(Wrong::Notify),
        _ => return Err(Wrong::Action(action.to_owned())),
    })
}

/// What becomes of one system call.
#[derive(Default)]
struct Decision<'a> {
    /// The answer whatever the arguments are.
    always: Option<u32>,
    conditional: Vec<(&'a [Comparison], u32)>,
}

/// Returns the part of the program that answers for one interface.
fn filter(
    interface: &Interface,
    default: u32,
    entries: &[Entry<'_>],
    knows_clone3: bool,
) -> Result<Vec<Instruction>, SeccompError> {
    let mut decisions: BTreeMap<u32, Decision<'_>> = BTreeMap::new();
    let mut conditional = 0;
    for Entry { names, answer, alternatives } in entries {
        for number in names.iter().filter_map(|name| (interface.number)(name)) {
            let decision = decisions.entry(number).or_default();
            if alternatives.is_empty() {
                decision.always.get_or_insert(*answer);
            }
            decision.conditional.extend(alternatives.iter().map(|all| (all.as_slice(), *answer)));
            conditional += alternatives.len();
            if conditional > MAX_INSTRUCTIONS {
                return Err(SeccompError::TooLong);
            }
        }
    }
    let multiplexed = if interface.multiplexes() { multiplexed(entries) } else { Vec::new() };
    for (name, comparison, answer) in &multiplexed {
        if let Some(number) = (interface.number)(name) {
            decisions.entry(number).or_default().conditional.push((std::slice::from_ref(comparison), *answer));
        }
    }
    if default & ACTION == ERRNO
        && !knows_clone3
        && let Some(number) = (interface.number)("clone3")
    {
        decisions.entry(number).or_default().always = Some(ERRNO | ENOSYS);
    }
    // Where a range of numbers begins, and its answer. Number 0 stands for what comes before the first entry.
    let mut ranges = vec![(0, vec![bpf::ret(default)])];
    let mut size = 0;
    let mut next = 0;
    for (number, decision) in &decisions {
        let leaf = leaf(interface, default, decision);
        size += leaf.len();
        if size > MAX_INSTRUCTIONS {
            return Err(SeccompError::TooLong);
        }
        if *number > next {
            push_range(&mut ranges, next, vec![bpf::ret(default)]);
        }
        push_range(&mut ranges, *number, leaf);
        next = number + 1;
    }
    push_range(&mut ranges, next, vec![bpf::ret(default)]);
    let mut program = bisection(&ranges);
    if interface.x32 {
        program = bpf::choose(bpf::JGE, X32_BIT, vec![bpf::ret(ERRNO | ENOSYS)], program);
    }
    program.insert(0, bpf::load(bpf::NUMBER_OFFSET));
    Ok(program)
}

/// Entries on calls that 32-bit x86 also reaches through `socketcall(2)` and `ipc(2)`, which say by their first
/// argument which call they mean. Arguments of such a call lie in memory, where a filter can't look.
fn multiplexed(entries: &[Entry<'_>]) -> Vec<(&'static str, Comparison, u32)> {
    const SOCKETCALL: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    let socketcall = SOCKETCALL.iter().zip(1u64..).map(|(name, code)| (*name, "socketcall", code));
    let ipc = IPC.iter().map(|(name, code)| (*name, "ipc", *code));
    let codes: Vec<(&str, &'static str, u64)> = socketcall.chain(ipc).collect();
    let mut found = Vec::new();
    for (name, multiplexer, value) in codes {
        let first = entries.iter().find(|entry| entry.alternatives.is_empty() && entry.names.contains(&name));
        found.extend(first.map(|entry| {
            let comparison = Comparison { argument: 0, operator: bpf::Operator::Equal, mask: u64::MAX, value };
            (multiplexer, comparison, entry.answer)
        }));
    }
    found
}

/// Returns what answers for one number; it ends on every way.
fn leaf(interface: &Interface, default: u32, decision: &Decision<'_>) -> Vec<Instruction> {
    if let Some(answer) = decision.always {
        return vec![bpf::ret(answer)];
    }
    let mut program = Vec::new();
    for (comparisons, answer) in &decision.conditional {
        bpf::answer_if_all_hold(comparisons, interface.wide, *answer, &mut program);
    }
    program.push(bpf::ret(default));
    program
}

/// Adds a range, or widens the last one when its answer is the same.
fn push_range(ranges: &mut Vec<(u32, Vec<Instruction>)>, start: u32, leaf: Vec<Instruction>) {
    match ranges.last_mut() {
        Some((_, last)) if *last == leaf => {}
        Some((last_start, last)) if *last_start == start => *last = leaf,
        _ => ranges.push((start, leaf)),
    }
}

/// Returns a search for the range that the number in the accumulator falls into. As deep as the ranges' count has bits.
fn bisection(ranges: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    match (lower, upper) {
        ([], [(_, leaf)]) => leaf.clone(),
        (_, [(start, _), ..]) => bpf::choose(bpf::JGE, *start, bisection(upper), bisection(lower)),
        (_, []) => Vec::new(),
    }
}

/// Why a profile can't be used. The caller says which file it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeccompError {
    TooLarge {
        size_bytes: usize,
    },
    /// Not JSON, or not a profile.
    Json {
        line: usize,
        column: usize,
        reason: String,
    },
    Profile {
        place: Place,
        wrong: Wrong,
    },
    /// The filter has more instructions than the kernel takes.
    TooLong,
}

/// Where in a profile something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Default,
    Flags,
    Architectures,
    /// An entry of `syscalls`, counted from 0, with the first name it holds.
    Entry {
        index: usize,
        name: Option<String>,
    },
}

/// What is wrong in a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    Action(String),
    Notify,
    Operator(String),
    Argument(u32),
    Errno(u32),
    Kernel(String),
    Flag(String),
    Both(&'static str, &'static str),
    Nameless,
}

impl SeccompError {
    fn new(place: Place, wrong: Wrong) -> Self {
        Self::Profile { place, wrong }
    }
}

impl fmt::Display for SeccompError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { size_bytes } => {
                write!(f, "the profile is too large: {size_bytes} bytes, expected at most {MAX_PROFILE_BYTES}")
            }
            Self::Json { line, column, reason } => write!(f, "line {line}, column {column}: {reason}"),
            Self::Profile { place, wrong } => write!(f, "{place}: {wrong}"),
            Self::TooLong => {
                write!(f, "the filter would have more than the {MAX_INSTRUCTIONS} instructions that the kernel takes")
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("`defaultAction`"),
            Self::Flags => f.write_str("`flags`"),
            Self::Architectures => f.write_str("architectures"),
            Self::Entry { index, name: Some(name) } => write!(f, "`syscalls[{index}]` (`{name}`)"),
            Self::Entry { index, name: None } => write!(f, "`syscalls[{index}]`"),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Action(word) => write!(f, "`{word}` is no action"),
            Self::Notify => f.write_str("`SCMP_ACT_NOTIFY` needs a supervisor, which a container has not here"),
            Self::Operator(word) => write!(f, "`{word}` is no comparison"),
            Self::Argument(index) => write!(f, "a system call has no argument {index}, the last one is 5"),
            Self::Errno(number) => write!(f, "the error number {number} is too large"),
            Self::Kernel(text) => write!(f, "`minKernel` is `{text}`, expected a version such as `4.8`"),
            Self::Flag(word) => write!(f, "the flag `{word}` is not supported"),
            Self::Both(one, other) => write!(f, "`{one}` and `{other}` exclude each other"),
            Self::Nameless => f.write_str("no system call is named"),
        }
    }
}

impl std::error::Error for SeccompError {}

impl Hint for SeccompError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Profile { wrong: Wrong::Action(_) | Wrong::Notify, .. } => {
                "Actions are SCMP_ACT_ALLOW, ERRNO, KILL_PROCESS, KILL_THREAD, KILL, TRAP, TRACE and LOG."
            }
            Self::Profile { wrong: Wrong::Operator(_), .. } => {
                "Comparisons are SCMP_CMP_EQ, NE, LT, LE, GT, GE and MASKED_EQ."
            }
            Self::Json { .. } | Self::TooLarge { .. } => "Give a seccomp profile in JSON, as Docker reads it.",
            Self::Profile { .. } | Self::TooLong => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

#[cfg(test)]
mod tests;
