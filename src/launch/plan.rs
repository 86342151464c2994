//! From request, site and facts to a [`LaunchPlan`]: identity, namespaces, capabilities, and everything put together.
//! Pure.

use super::capabilities;
use super::environment::Pair;
use super::layout::{Layout, Root};
use super::request::LaunchRequest;
use crate::conf::{RootCapabilities, SiteConfig};
use crate::host::facts::HostFacts;
use crate::remembered::IN_SANDBOX;
use crate::report::Hint;
use starter::paths::HostPath;
use starter::plan::{
    Capabilities, Command, Directory, Emulation, IdRange, Identity, LaunchPlan, Namespaces, Parent, Records,
};
use starter::trapped::Scope;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;

/// The capabilities that an emulation stands in for: `CAP_CHOWN`, `CAP_SETGID`, `CAP_SETUID`.
const EMULATED: u64 = 1 | 1 << 6 | 1 << 7;

/// Every capability that there is room for.
const ALL: u64 = u64::MAX;

/// Why a request can't be planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The site forbids what was asked for, by this directive.
    Forbidden {
        what: &'static str,
        directive: &'static str,
    },
    UnknownCapability(String),
    /// `--security` with a word that is not understood.
    Security(String),
    /// A network that takes more than a namespace.
    Network(String),
    /// `--writable` with an image that is no directory.
    NotWritable,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden { what, .. } => write!(f, "this site allows no {what}"),
            Self::UnknownCapability(name) => write!(f, "`{name}` is not a capability"),
            Self::Security(word) => write!(f, "cannot do --security `{word}`"),
            Self::Network(name) if name.is_empty() => {
                f.write_str("--net without --network needs a bridge, which an ordinary user can't make")
            }
            Self::Network(name) => write!(f, "cannot set up the network `{name}`"),
            Self::NotWritable => f.write_str("cannot make the image writable: only a directory can be changed"),
        }
    }
}

impl std::error::Error for PlanError {}

impl Hint for PlanError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Forbidden { directive, .. } => return vec![format!("Its configuration says `{directive} = no`.")],
            Self::UnknownCapability(_) => {
                "Names are those of capabilities(7), such as CAP_NET_RAW; `all` means all of them."
            }
            Self::Security(_) => "seccomp:FILE, uid:NUMBER and gid:NUMBER are understood.",
            Self::Network(_) => "`--net --network none` gives a network of its own, with the loopback interface only.",
            Self::NotWritable => {
                "Use --writable-tmpfs for changes that need not last, or make a directory of it: `sifu build --sandbox DIRECTORY IMAGE`."
            }
        };
        vec![hint.to_owned()]
    }
}

/// Who the command is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    pub identity: Identity,
    /// Ids inside.
    pub uid: u32,
    pub gid: u32,
}

/// What `--security` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    pub seccomp_file: Option<OsString>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// Reads the words of `--security`.
pub fn security(request: &LaunchRequest) -> Result<Security, PlanError> {
    let mut security = Security::default();
    for word in &request.security {
        let wrong = || PlanError::Security(String::from_utf8_lossy(word).into_owned());
        let at = word.iter().position(|&b| b == b':').ok_or_else(wrong)?;
        let (key, value) = (&word[..at], &word[at + 1..]);
        // The number that a namespace shows to no one, `(uid_t)-1`, is none.
        let id = || std::str::from_utf8(value).ok()?.parse::<u32>().ok().filter(|&id| id != u32::MAX);
        match key {
            b"seccomp" if !value.is_empty() => security.seccomp_file = Some(OsString::from_vec(value.to_vec())),
            b"uid" => security.uid = Some(id().ok_or_else(wrong)?),
            b"gid" => security.gid = Some(id().ok_or_else(wrong)?),
            _ => return Err(wrong()),
        }
    }
    Ok(security)
}

/// Chooses who the command is.
pub fn who(
    request: &LaunchRequest,
    site: &SiteConfig,
    host: &HostFacts,
    security: &Security,
) -> Result<Who, PlanError> {
    let user = &host.user;
    if user.uid == 0 && host.may_mount && !request.userns {
        return Ok(Who { identity: Identity::Privileged, uid: 0, gid: user.gid });
    }
    if !site.allow_user_ns {
        return Err(PlanError::Forbidden { what: "user namespaces", directive: "allow user ns" });
    }
    if !request.fakeroot {
        let (uid, gid) = (security.uid.unwrap_or(user.uid), security.gid.unwrap_or(user.gid));
        return Ok(Who { identity: Identity::Keep { uid, gid }, uid, gid });
    }
    let root = Identity::Root { uid: user.uid, gid: user.gid };
    let identity = match &host.subordinate_ids {
        Some(ids) if ids.usable() && !request.ignore_subuid => match (&ids.newuidmap, &ids.newgidmap) {
            (Some(newuidmap), Some(newgidmap)) => Identity::Range {
                newuidmap: newuidmap.path.clone(),
                newgidmap: newgidmap.path.clone(),
                uids: IdRange::with_root(user.uid, ids.uid_ranges.iter().map(|range| (range.first, range.count))),
                gids: IdRange::with_root(user.gid, ids.gid_ranges.iter().map(|range| (range.first, range.count))),
            },
            _ => root,
        },
        _ => root,
    };
    Ok(Who { identity, uid: 0, gid: 0 })
}

/// Checks what the site lets users ask for.
pub fn check(request: &LaunchRequest, site: &SiteConfig, is_directory: bool) -> Result<(), PlanError> {
    let forbidden = |what, directive| Err(PlanError::Forbidden { what, directive });
    if request.pid && !site.allow_pid_ns {
        return forbidden("pid namespaces", "allow pid ns");
    }
    if request.ipc && !site.allow_ipc_ns {
        return forbidden("ipc namespaces", "allow ipc ns");
    }
    if request.uts && !site.allow_uts_ns {
        return forbidden("uts namespaces", "allow uts ns");
    }
    if request.net && (request.network.is_empty() || request.network.iter().any(|name| name != b"none")) {
        let name = request.network.iter().find(|name| name.as_slice() != b"none");
        return Err(PlanError::Network(
            name.map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default(),
        ));
    }
    if request.writable && !is_directory {
        return Err(PlanError::NotWritable);
    }
    Ok(())
}

/// Which capabilities stay.
pub fn kept_capabilities(request: &LaunchRequest, site: &SiteConfig, identity: &Identity) -> Result<u64, PlanError> {
    let start = match identity {
        _ if request.no_privs => 0,
        Identity::Keep { .. } => 0,
        Identity::Root { .. } | Identity::Range { .. } => ALL,
        Identity::Privileged => match site.root_default_capabilities {
            RootCapabilities::Full => ALL,
            RootCapabilities::File | RootCapabilities::No => 0,
        },
    };
    Ok((start | capability_set(&request.add_caps)?) & !capability_set(&request.drop_caps)?)
}

fn capability_set(words: &[Vec<u8>]) -> Result<u64, PlanError> {
    let mut set = 0;
    for word in words {
        match word.trim_ascii() {
            b"" => {}
            word if word.eq_ignore_ascii_case(b"all") => set = ALL,
            word => match capabilities::bit(word) {
                Some(bit) => set |= bit,
                None => return Err(PlanError::UnknownCapability(String::from_utf8_lossy(word).into_owned())),
            },
        }
    }
    Ok(set)
}

/// Whether and how root is emulated: where no range of ids is mapped, and nobody has taken from root what it needs.
///
/// What is remembered of a directory's files is kept with it if it can be changed, and seen if not.
pub fn emulation(request: &LaunchRequest, identity: &Identity, keep: u64, root: &Root) -> Option<Emulation> {
    let scope = match identity {
        Identity::Root { .. } if !request.no_root_emulation => Scope::Everything,
        Identity::Privileged if request.emulate_devices => Scope::DevicesAndAttributes,
        _ => return None,
    };
    if keep & EMULATED != EMULATED {
        return None;
    }
    let records_of = |directory: &HostPath| HostPath::new(directory.as_path().join(IN_SANDBOX));
    let records = match (&request.emulate_root_in, root) {
        (Some(directory), _) => Records::Kept(records_of(&HostPath::new(directory))),
        (None, Root::Served) => Records::Fresh,
        (None, Root::Directory(directory)) => Records::Read(records_of(directory)),
        (None, Root::Writable(directory)) => Records::Kept(records_of(directory)),
    };
    Some(Emulation { scope, records })
}

/// What goes into a plan beside request and site.
pub struct Parts {
    pub who: Who,
    pub layout: Layout,
    pub command: Command,
    pub environment: Vec<Pair>,
    pub seccomp: Vec<u8>,
    pub emulation: Option<Emulation>,
    /// A directory of the host to remove when the command has ended.
    pub remove: Option<HostPath>,
}

/// Puts the plan together.
pub fn assemble(request: &LaunchRequest, site: &SiteConfig, parts: Parts) -> Result<LaunchPlan, PlanError> {
    const USUAL_UMASK: u32 = 0o022;
    let keep = kept_capabilities(request, site, &parts.who.identity)?;
    Ok(LaunchPlan {
        identity: parts.who.identity,
        namespaces: Namespaces {
            pid: request.pid,
            ipc: request.ipc,
            uts: request.uts,
            net: request.net,
            cgroup: false,
        },
        join: Vec::new(),
        private_mounts: !site.mount_slave,
        share: None,
        hostname: request.hostname.clone(),
        steps: parts.layout.steps,
        umask: request.no_umask.then_some(USUAL_UMASK),
        user: None,
        limits: Vec::new(),
        capabilities: Capabilities { keep },
        seccomp: parts.seccomp,
        emulation: parts.emulation,
        directory: Directory { candidates: parts.layout.directories },
        environment: parts.environment,
        command: parts.command,
        parent: Parent { init: request.pid && !request.no_init, detached: false, remove: parts.remove },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::{laptop, login_node_without_fuse};
    use crate::launch::request::Verb;

    fn request(change: impl FnOnce(&mut LaunchRequest)) -> LaunchRequest {
        let mut request = LaunchRequest::new(Verb::Exec, "a.sif", vec!["true".into()]);
        change(&mut request);
        request
    }

    #[test]
    fn an_ordinary_user_stays_who_they_are() {
        let who = who(&request(|_| ()), &SiteConfig::default(), &laptop(), &Security::default()).unwrap();
        assert_eq!(who.identity, Identity::Keep { uid: 1000, gid: 1000 });
    }

    #[test]
    fn fakeroot_maps_a_range_where_there_is_one_and_root_alone_where_not() {
        let request = request(|request| request.fakeroot = true);
        let identity = |host| who(&request, &SiteConfig::default(), &host, &Security::default()).unwrap().identity;
        let Identity::Range { uids, .. } = identity(laptop()) else { panic!("no range") };
        let lines: Vec<_> = uids.iter().map(|range| (range.inside, range.outside, range.count)).collect();
        assert_eq!(lines, [(0, 1000, 1), (1, 100_000, 65536)]);
        assert_eq!(identity(login_node_without_fuse()), Identity::Root { uid: 1000, gid: 1000 });
    }

    #[test]
    fn without_a_range_root_is_emulated_unless_somebody_objects() {
        let identity = Identity::Root { uid: 1, gid: 1 };
        let of = |change: fn(&mut LaunchRequest), identity: &Identity, root: &Root| {
            let request = request(change);
            let keep = kept_capabilities(&request, &SiteConfig::default(), identity).unwrap();
            emulation(&request, identity, keep, root).map(|emulation| emulation.records)
        };
        let directory = HostPath::new("/box");
        let records = HostPath::new("/box/.singularity.d/remembered");
        assert_eq!(of(|_| (), &identity, &Root::Served), Some(Records::Fresh));
        assert_eq!(of(|_| (), &identity, &Root::Directory(directory.clone())), Some(Records::Read(records.clone())));
        assert_eq!(of(|_| (), &identity, &Root::Writable(directory)), Some(Records::Kept(records)));
        assert_eq!(of(|request| request.no_root_emulation = true, &identity, &Root::Served), None);
        assert_eq!(of(|request| request.drop_caps = vec![b"chown".to_vec()], &identity, &Root::Served), None);
        assert_eq!(of(|_| (), &Identity::Keep { uid: 1, gid: 1 }, &Root::Served), None);
    }

    #[test]
    fn capabilities_are_those_of_the_identity_with_what_was_said() {
        let keep = Identity::Keep { uid: 1, gid: 1 };
        let root = Identity::Root { uid: 1, gid: 1 };
        let check = |identity: &Identity, add: &str, drop: &str, expected: u64| {
            let words = |said: &str| said.split(',').map(|word| word.as_bytes().to_vec()).collect();
            let request = request(|request| (request.add_caps, request.drop_caps) = (words(add), words(drop)));
            assert_eq!(kept_capabilities(&request, &SiteConfig::default(), identity), Ok(expected), "{add} {drop}");
        };
        check(&keep, "", "", 0);
        check(&keep, "CAP_NET_RAW,chown", "", 1 << 13 | 1);
        check(&root, "", "", ALL);
        check(&root, "", "CAP_CHOWN", ALL & !1);
        check(&root, "", "all", 0);
        let unknown = request(|request| request.add_caps = vec![b"CAP_DANCE".to_vec()]);
        let error = kept_capabilities(&unknown, &SiteConfig::default(), &keep);
        assert_eq!(error, Err(PlanError::UnknownCapability("CAP_DANCE".into())));
    }

    #[test]
    fn what_takes_more_than_a_namespace_is_refused() {
        let site = SiteConfig::default();
        let none = request(|request| (request.net, request.network) = (true, vec![b"none".to_vec()]));
        assert_eq!(check(&none, &site, false), Ok(()));
        let bridge = request(|request| request.net = true);
        assert_eq!(check(&bridge, &site, false), Err(PlanError::Network(String::new())));
        let writable = request(|request| request.writable = true);
        assert_eq!(check(&writable, &site, false), Err(PlanError::NotWritable));
        assert_eq!(check(&writable, &site, true), Ok(()));
    }

    #[test]
    fn security_words_are_read() {
        let read = |word: &str| security(&request(|request| request.security = vec![word.as_bytes().to_vec()]));
        assert_eq!(read("seccomp:p.json").unwrap().seccomp_file, Some("p.json".into()));
        assert_eq!(read("uid:5").unwrap().uid, Some(5));
        for word in ["uid:x", "uid:4294967295", "apparmor:x", "seccomp"] {
            assert_eq!(read(word), Err(PlanError::Security(word.into())));
        }
    }
}
