//! Layers of an image, merged into one tree while each of them streams by once.
//!
//! Layers are read from the uppermost down. What a layer removes or replaces is known, then, before the layers below it
//! come, so that each file is known to survive the moment its header is read, and its content is kept or passed over:
//!
//! ```text
//! read first  3 | etc/hosts   .wh.opt                     keeps etc/hosts
//!             2 | opt/tool    etc/passwd                  keeps etc/passwd; opt is gone
//! read last   1 | etc/        etc/hosts   bin/sh          keeps bin/sh; another etc/hosts came first
//! ```
//!
//! That look at names alone is a forecast: symbolic links among the parents of an entry, and hard links to what a layer
//! above replaced, can make it wrong. So everything but contents is noted, and at the end the layers are applied from
//! the lowest up, exactly, as if each had been unpacked over the one below: parents followed through symbolic links
//! within the tree, an explicit directory replacing a link, whiteouts removing what lower layers brought and nothing of
//! their own. A file that survives against the forecast is [`Missing`] then, and its layer is read once more for it.

use super::names::{NameId, Names};
use super::tar::{Entry, EntryKind, TarError, TarReader};
use crate::report::Hint;
use crate::tree::{Attributes, Body, Content, InodeId, MAX_NAME_BYTES, Tree, TreeError, Xattr};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::Read;

/// Most entries in all layers of an image, and most paths that they may name.
pub const MAX_ENTRIES: usize = 5_000_000;
/// Most bytes of names, link targets and extended attributes in all layers.
pub const MAX_METADATA_BYTES: usize = 512 << 20;
/// Longest target of a symbolic link; the kernel takes no longer one.
const MAX_TARGET_BYTES: usize = 4095;
/// Longest path from the root, without the slash before it; the kernel takes no longer one.
const MAX_PATH_BYTES: usize = 4095;
/// How much of a path is shown that is too long.
const SHOWN_BYTES: usize = 100;
/// Most components that are looked up to apply an image: links to long paths can make every entry cost thousands.
const MAX_STEPS: u64 = 1 << 30;
/// Most bytes that the holes of sparse files may claim in an image.
pub const MAX_HOLE_BYTES: u64 = 64 << 30;
/// Most symbolic links that are followed to find one parent, as many as the kernel's path walk times six.
const MAX_LINKS: usize = 255;

/// Takes the contents that survive, in the order in which they stream by.
pub trait Keep {
    type Error;

    /// Reads `size_bytes` of the file `path` to their end, and says where they are from now on.
    fn keep(&mut self, path: &[u8], size_bytes: u64, content: &mut dyn Read) -> Result<Content, Self::Error>;
}

/// Why layers could not be merged.
#[derive(Debug)]
pub enum LayerError {
    /// The stream of a layer; layers are counted from the lowest, which is 1.
    Tar {
        layer: usize,
        source: TarError,
    },
    /// An entry that can't be applied.
    Entry {
        layer: usize,
        path: Vec<u8>,
        why: EntryFault,
    },
    TooMany {
        what: &'static str,
        limit: u64,
    },
    /// A path that nobody could ever name: its beginning.
    PathTooLong {
        beginning: Vec<u8>,
    },
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryFault {
    NameTooLong,
    /// A zero byte in a name.
    ZeroByte,
    /// The root of the image as something else than a directory.
    RootIsNoDirectory,
    /// A parent that is a file.
    ParentIsNoDirectory,
    /// Symbolic links that lead nowhere, in circles.
    LinkLoop,
    /// A symbolic link longer than a kernel takes.
    TargetTooLong,
    /// Paths so long, or through so many links, that applying them has no end.
    TooManySteps,
    /// A hard link to what is not there, or to a directory.
    NoLinkTarget {
        target: Vec<u8>,
    },
    LinkToDirectory {
        target: Vec<u8>,
    },
    /// A device whose numbers no kernel can have.
    DeviceNumber,
    Tree(TreeError),
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tar { layer, source } => write!(f, "layer {layer} is no tar archive that can be used: {source}"),
            Self::Entry { layer, path, why } => {
                write!(f, "cannot apply `{}` of layer {layer}: {why}", String::from_utf8_lossy(path))
            }
            Self::TooMany { what, limit } => write!(f, "the layers hold too many {what}: more than {limit}"),
            Self::PathTooLong { beginning } => {
                let beginning = String::from_utf8_lossy(beginning);
                write!(f, "the layers hold a path of more than {MAX_PATH_BYTES} bytes, below `{beginning}`")
            }
        }
    }
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        match self {
            Self::NameTooLong => write!(f, "a name of more than {MAX_NAME_BYTES} bytes"),
            Self::ZeroByte => f.write_str("a zero byte in its name"),
            Self::RootIsNoDirectory => f.write_str("the root of an image must be a directory"),
            Self::ParentIsNoDirectory => f.write_str("one of its parents is no directory"),
            Self::LinkLoop => f.write_str("the symbolic links in its path lead in a circle"),
            Self::TargetTooLong => write!(f, "a symbolic link of more than {MAX_TARGET_BYTES} bytes"),
            Self::TooManySteps => f.write_str("the paths of this image are too long to follow"),
            Self::NoLinkTarget { target } => write!(f, "a hard link to `{}`, which is not there", text(target)),
            Self::LinkToDirectory { target } => write!(f, "a hard link to `{}`, which is a directory", text(target)),
            Self::DeviceNumber => f.write_str("a device number that is too large"),
            Self::Tree(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LayerError {}

impl Hint for LayerError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Tar { source: TarError::Read { .. }, .. } => Vec::new(),
            _ => vec!["The image is damaged, or was made to be: have it made anew.".to_owned()],
        }
    }
}

/// Why a layer could not be read: its own fault, or that of who keeps the contents.
#[derive(Debug)]
pub enum MergeError<E> {
    Layer(LayerError),
    Keep(E),
}

impl<E> From<LayerError> for MergeError<E> {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// What of an image's layers has no place in a SIF file, or was understood in a way worth a word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Extended attributes that were left out, with how many files had each.
    pub dropped_xattrs: BTreeMap<Vec<u8>, u64>,
    /// Device nodes with the numbers 0 and 0, which overlay file systems take for whiteouts: left out.
    pub dropped_whiteout_devices: u64,
    /// Entries whose names held `..`, which were taken within the image.
    pub names_with_dots: u64,
}

/// Layers being merged.
#[derive(Default)]
pub struct Merge {
    names: Names,
    /// By layer, from the lowest.
    layers: Vec<Vec<Change>>,
    /// What the layers above the one being read do to those below, by name.
    above: Above,
    entries: usize,
    metadata_bytes: usize,
    hole_bytes: u64,
    notices: Notices,
}

/// One entry of a layer, its content kept or passed over.
struct Change {
    name: NameId,
    what: What,
}

enum What {
    /// Removes the name.
    Whiteout,
    /// Empties the directory.
    Opaque,
    Make(Box<Attributes>, Make),
    HardLink(NameId),
}

enum Make {
    /// A file with its content, or without one that was passed over.
    File(Option<Content>),
    Other(Body),
}

/// The forecast, by name.
#[derive(Default)]
struct Above(Vec<u8>);

/// Something of a layer above is there: an entry, or a directory that an entry needs.
const TAKEN: u8 = 1;
/// Nothing below this name survives, nor the name itself.
const GONE: u8 = 2;
/// Nothing below this directory survives.
const EMPTIED: u8 = 4;
/// A hard link needs the content.
const LINKED: u8 = 8;

impl Above {
    fn has(&self, name: NameId, mark: u8) -> bool {
        self.0.get(name.index()).is_some_and(|marks| marks & mark != 0)
    }

    fn set(&mut self, name: NameId, mark: u8) {
        if self.0.len() <= name.index() {
            self.0.resize(name.index() + 1, 0);
        }
        self.0[name.index()] |= mark;
    }
}

/// A surviving file whose content was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Counted from the lowest, which is 0.
    pub layer: usize,
    /// The entry of the layer, counted over all that make or remove something.
    change: usize,
    inode: InodeId,
}

/// What became of the layers.
pub struct Merged {
    pub tree: Tree,
    /// Contents that [`Merged::fill`] has to get, by layer.
    pub missing: Vec<Missing>,
    pub notices: Notices,
}

impl Merge {
    /// Prepares for an image of so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| Vec::new()).collect(), ..Self::default() }
    }

    /// Reads one layer; each of them has its turn, from the last down to 0. The stream is read to its end.
    ///
    /// # Errors
    /// The stream is no layer, or `keep` failed.
    pub fn read_layer<K: Keep>(
        &mut self,
        layer: usize,
        stream: impl Read,
        keep: &mut K,
    ) -> Result<(), MergeError<K::Error>> {
        let wrong = |source| LayerError::Tar { layer: layer + 1, source };
        let mut reader = TarReader::new(stream);
        // Marks of this layer, for those below it.
        let mut marks = Vec::new();
        let mut changes = Vec::new();
        // What it makes itself: a hard link to that needs nothing of the layers below.
        let mut own = Above::default();
        while let Some(entry) = reader.next_entry().map_err(wrong)? {
            self.count(&entry)?;
            let path = entry.path.clone();
            let fault = |why| LayerError::Entry { layer: layer + 1, path: path.clone(), why };
            let Some(change) = self.change(entry).map_err(fault)? else { continue };
            let name = change.name;
            let what = match change.what {
                What::Make(attributes, Make::File(None)) if self.survives(name) => {
                    let size_bytes = reader.content_bytes();
                    self.hole_bytes = self.hole_bytes.saturating_add(reader.hole_bytes());
                    if self.hole_bytes > MAX_HOLE_BYTES {
                        return Err(LayerError::TooMany { what: "bytes in holes", limit: MAX_HOLE_BYTES }.into());
                    }
                    let kept = keep.keep(&path, size_bytes, &mut reader.content()).map_err(MergeError::Keep)?;
                    What::Make(attributes, Make::File(Some(kept)))
                }
                what => what,
            };
            match &what {
                What::Whiteout => marks.push((name, GONE)),
                What::Opaque => marks.push((name, EMPTIED)),
                What::Make(_, Make::Other(Body::Directory)) => {}
                What::Make(..) => marks.push((name, GONE)),
                What::HardLink(target) => {
                    marks.push((name, GONE));
                    if !own.has(*target, TAKEN) {
                        self.above.set(*target, LINKED);
                    }
                }
            }
            if !matches!(what, What::Whiteout | What::Opaque) {
                marks.push((name, TAKEN));
                own.set(name, TAKEN);
            }
            changes.push(Change { name, what });
        }
        reader.drain().map_err(wrong)?;
        for (name, mark) in marks {
            self.above.set(name, mark);
            if mark == TAKEN {
                let mut parent = self.names.parent(name);
                while !self.above.has(parent, TAKEN) {
                    self.above.set(parent, TAKEN);
                    parent = self.names.parent(parent);
                }
            }
        }
        changes.shrink_to_fit();
        self.layers[layer] = changes;
        Ok(())
    }

    /// Counts what an entry makes the program remember.
    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries.max(self.names.count()) > MAX_ENTRIES {
            return Err(LayerError::TooMany { what: "files", limit: MAX_ENTRIES as u64 });
        }
        let link_bytes = match &entry.kind {
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
            _ => 0,
        };
        let xattr_bytes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.metadata_bytes += entry.path.len() + link_bytes + xattr_bytes;
        if self.metadata_bytes > MAX_METADATA_BYTES {
            return Err(LayerError::TooMany {
                what: "bytes of names and attributes",
                limit: MAX_METADATA_BYTES as u64,
            });
        }
        Ok(())
    }

    /// Whether a file of that name, in the layer being read, will be in the image.
    fn survives(&self, name: NameId) -> bool {
        if self.above.has(name, LINKED) {
            return true;
        }
        if self.above.has(name, TAKEN | GONE) {
            return false;
        }
        let mut below = name;
        while below != Names::ROOT {
            below = self.names.parent(below);
            if self.above.has(below, GONE | EMPTIED) {
                return false;
            }
        }
        true
    }

    /// What an entry does; `None` when it has no meaning here. Files come without content.
    fn change(&mut self, entry: Entry) -> Result<Option<Change>, EntryFault> {
        let Some(components) = self.components(&entry.path)? else { return Ok(None) };
        if let Some((last, parents)) = components.split_last()
            && let Some(hidden) = last.strip_prefix(b".wh.")
        {
            let directory = self.names.enter(parents);
            let what = match hidden {
                b".wh..opq" => return Ok(Some(Change { name: directory, what: What::Opaque })),
                b"" | b"." | b".." => return Ok(None),
                _ => What::Whiteout,
            };
            return Ok(Some(Change { name: self.names.child(directory, hidden), what }));
        }
        let name = self.names.enter(&components);
        let is_directory = matches!(entry.kind, EntryKind::Directory);
        if name == Names::ROOT && !is_directory {
            return Err(EntryFault::RootIsNoDirectory);
        }
        let make = match entry.kind {
            EntryKind::HardLink(target) => {
                let Some(components) = self.components(&target)? else { return Ok(None) };
                return Ok(Some(Change { name, what: What::HardLink(self.names.enter(&components)) }));
            }
            EntryKind::File { size_bytes: 0 } => Make::File(Some(Content::Bytes([].into()))),
            EntryKind::File { .. } => Make::File(None),
            EntryKind::Symlink(target) => {
                if target.contains(&0) {
                    return Err(EntryFault::ZeroByte);
                }
                if target.len() > MAX_TARGET_BYTES {
                    return Err(EntryFault::TargetTooLong);
                }
                Make::Other(Body::Symlink(target.into()))
            }
            EntryKind::CharDevice { major: 0, minor: 0 } => {
                self.notices.dropped_whiteout_devices += 1;
                return Ok(None);
            }
            EntryKind::CharDevice { major, minor } => Make::Other(Body::CharDevice(device(major, minor)?)),
            EntryKind::BlockDevice { major, minor } => Make::Other(Body::BlockDevice(device(major, minor)?)),
            EntryKind::Directory => Make::Other(Body::Directory),
            EntryKind::Fifo => Make::Other(Body::Fifo),
        };
        let Entry { mode, uid, gid, mtime, xattrs, .. } = entry;
        // Whatever is recorded: Linux gives symbolic links no others.
        let mode = if matches!(make, Make::Other(Body::Symlink(_))) { 0o777 } else { mode };
        let xattrs = self.xattrs(xattrs);
        let attributes = Attributes { mode, uid, gid, mtime, xattrs };
        Ok(Some(Change { name, what: What::Make(Box::new(attributes), make) }))
    }

    /// The names along a path, from the image's root: `..` leads up as in a shell that stands in the root. `None` for
    /// what aufs kept for itself.
    fn components<'a>(&mut self, path: &'a [u8]) -> Result<Option<Vec<&'a [u8]>>, EntryFault> {
        if path.contains(&0) {
            return Err(EntryFault::ZeroByte);
        }
        let mut components: Vec<&[u8]> = Vec::new();
        let mut has_dots = false;
        for component in path.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    has_dots = true;
                    components.pop();
                }
                // A whiteout's name is four bytes longer than what it removes.
                name if name.len() > MAX_NAME_BYTES + 4 => return Err(EntryFault::NameTooLong),
                name => components.push(name),
            }
        }
        if components.len() > super::names::MAX_DEPTH {
            return Err(EntryFault::TooManySteps);
        }
        self.notices.names_with_dots += u64::from(has_dots);
        let is_aufs = components.first().is_some_and(|first| first.starts_with(b".wh..wh.") && *first != OPAQUE);
        Ok((!is_aufs).then_some(components))
    }

    /// The extended attributes that an image may have: those of users and programs. What overlay file systems and
    /// security modules keep of their own would be taken for theirs on the machine that runs the image.
    fn xattrs(&mut self, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<Xattr> {
        let mut kept = Vec::new();
        for (name, value) in xattrs {
            let is_overlay = name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.");
            let is_kept = (name.starts_with(b"user.") && !is_overlay) || name == b"security.capability";
            // SquashFS counts both in 16 bits.
            if is_kept && name.len() <= MAX_NAME_BYTES && value.len() <= usize::from(u16::MAX) {
                kept.push(Xattr { name: name.into(), value: value.into() });
            } else {
                *self.notices.dropped_xattrs.entry(name).or_default() += 1;
            }
        }
        kept
    }

    /// Applies the layers from the lowest up.
    ///
    /// # Errors
    /// An entry that can't be applied to what lies below it.
    pub fn finish(self) -> Result<Merged, LayerError> {
        let root = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
        let mut applying =
            Applying { tree: Tree::new(root), names: self.names, directory: None, without: HashMap::new(), steps: 0 };
        for (layer, changes) in self.layers.into_iter().enumerate() {
            applying.layer(layer, changes)?;
        }
        let Applying { tree, without, .. } = applying;
        check_paths(&tree)?;
        let mut missing = Vec::new();
        if !without.is_empty() {
            let mut walk = tree.walk();
            let mut seen = HashSet::new();
            while let Some(inode) = walk.next_entry() {
                if let Some(&(layer, change)) = without.get(&inode)
                    && seen.insert(inode)
                {
                    missing.push(Missing { layer, change, inode });
                }
            }
            missing.sort_unstable_by_key(|missing| (missing.layer, missing.change));
        }
        Ok(Merged { tree, missing, notices: self.notices })
    }
}

/// Links among parents can lead deeper than any name of an entry says.
fn check_paths(tree: &Tree) -> Result<(), LayerError> {
    let mut walk = tree.walk();
    while walk.next_entry().is_some() {
        if walk.path().len() > MAX_PATH_BYTES + 1 {
            return Err(LayerError::PathTooLong { beginning: walk.path()[..SHOWN_BYTES].to_vec() });
        }
    }
    Ok(())
}

const OPAQUE: &[u8] = b".wh..wh..opq";

/// The device number as `st_rdev` packs it: twelve bits of the major number, twenty of the minor.
fn device(major: u32, minor: u32) -> Result<u64, EntryFault> {
    if major > 0xfff || minor > 0xf_ffff {
        return Err(EntryFault::DeviceNumber);
    }
    Ok(u64::from(minor & 0xff | major << 8 | (minor & !0xff) << 12))
}

/// Layers being applied.
struct Applying {
    tree: Tree,
    names: Names,
    /// The directory that was looked for last, by its name in the layers: entries come directory by directory. Forgotten
    /// when anything that could lie on the way to it changes.
    directory: Option<(NameId, InodeId)>,
    /// Files without their content: the layer and change that made them.
    without: HashMap<InodeId, (usize, usize)>,
    /// Components looked up so far.
    steps: u64,
}

impl Applying {
    fn layer(&mut self, layer: usize, changes: Vec<Change>) -> Result<(), LayerError> {
        // Whiteouts are about the layers below, wherever in the layer they stand.
        for change in &changes {
            let removed = match change.what {
                What::Whiteout => self.remove(change.name),
                What::Opaque => self.empty(change.name),
                _ => continue,
            };
            removed.map_err(|why| self.error(layer, change.name, why))?;
        }
        for (number, Change { name, what }) in changes.into_iter().enumerate() {
            let made = match what {
                What::Whiteout | What::Opaque => continue,
                What::HardLink(target) => self.link(name, target),
                What::Make(attributes, make) => self.make(name, *attributes, make, (layer, number)),
            };
            made.map_err(|why| self.error(layer, name, why))?;
        }
        Ok(())
    }

    fn error(&self, layer: usize, name: NameId, why: EntryFault) -> LayerError {
        LayerError::Entry { layer: layer + 1, path: self.names.path(name), why }
    }

    fn remove(&mut self, name: NameId) -> Result<(), EntryFault> {
        self.directory = None;
        if name == Names::ROOT {
            return Ok(());
        }
        if let Some(directory) = self.find(self.names.parent(name))? {
            self.tree.remove(directory, self.names.name(name));
        }
        Ok(())
    }

    fn empty(&mut self, name: NameId) -> Result<(), EntryFault> {
        self.directory = None;
        let Some(directory) = self.find(name)? else { return Ok(()) };
        let children: Vec<Vec<u8>> = self.tree.children(directory).map(|(name, _)| name.to_vec()).collect();
        for child in children.iter().rev() {
            self.tree.remove(directory, child);
        }
        Ok(())
    }

    fn make(&mut self, name: NameId, attributes: Attributes, make: Make, at: (usize, usize)) -> Result<(), EntryFault> {
        let (body, is_without) = match make {
            Make::File(Some(content)) => (Body::File(content), false),
            Make::File(None) => (Body::File(Content::Bytes([].into())), true),
            Make::Other(body) => (body, false),
        };
        if name == Names::ROOT {
            self.tree.set_attributes(self.tree.root(), attributes);
            return Ok(());
        }
        let directory = self.directory(self.names.parent(name), attributes.mtime)?;
        let own = self.names.name(name);
        if let Some(existing) = self.tree.child(directory, own) {
            let is_directory = matches!(self.tree.inode(existing).body, Body::Directory);
            if is_directory && matches!(body, Body::Directory) {
                self.tree.set_attributes(existing, attributes);
                return Ok(());
            }
            self.tree.remove(directory, own);
            self.directory = None;
        }
        let inode = self.tree.insert(directory, own, attributes, body).map_err(EntryFault::Tree)?;
        if is_without {
            self.without.insert(inode, at);
        }
        Ok(())
    }

    fn link(&mut self, name: NameId, target: NameId) -> Result<(), EntryFault> {
        let missing = |names: &Names| EntryFault::NoLinkTarget { target: names.path(target) };
        if target == Names::ROOT {
            return Err(EntryFault::LinkToDirectory { target: b"/".to_vec() });
        }
        let found = self.find(self.names.parent(target))?;
        let found = found.and_then(|directory| self.tree.child(directory, self.names.name(target)));
        let inode = found.ok_or_else(|| missing(&self.names))?;
        if matches!(self.tree.inode(inode).body, Body::Directory) {
            return Err(EntryFault::LinkToDirectory { target: self.names.path(target) });
        }
        let mtime = self.tree.inode(inode).mtime;
        let directory = self.directory(self.names.parent(name), mtime)?;
        let own = self.names.name(name);
        match self.tree.child(directory, own) {
            // What an archiver writes for a file that it was given twice.
            Some(existing) if existing == inode => return Ok(()),
            Some(_) => {
                // The way to the target can lead through what is replaced here.
                self.tree.remove(directory, own);
                self.directory = None;
                if self.tree.inode(inode).names == 0 {
                    return Err(missing(&self.names));
                }
            }
            None => {}
        }
        self.tree.link(directory, own, inode).map_err(EntryFault::Tree)
    }

    /// The directory of that name, through symbolic links, or `None` where there is none.
    fn find(&mut self, name: NameId) -> Result<Option<InodeId>, EntryFault> {
        self.resolve(name, None)
    }

    /// The directory of that name, through symbolic links. What is not there is made, with `mtime` for its time.
    fn directory(&mut self, name: NameId, mtime: i64) -> Result<InodeId, EntryFault> {
        if let Some((known, inode)) = self.directory
            && known == name
        {
            return Ok(inode);
        }
        let found = self.resolve(name, Some(mtime))?.ok_or(EntryFault::ParentIsNoDirectory)?;
        self.directory = Some((name, found));
        Ok(found)
    }

    fn resolve(&mut self, name: NameId, make: Option<i64>) -> Result<Option<InodeId>, EntryFault> {
        let mut at = self.tree.root();
        // Components still to go, the next one last.
        let mut left: Vec<Vec<u8>> = Vec::new();
        let mut up = name;
        while up != Names::ROOT {
            left.push(self.names.name(up).to_vec());
            up = self.names.parent(up);
        }
        let mut links = 0;
        while let Some(component) = left.pop() {
            self.steps += 1;
            if self.steps > MAX_STEPS || self.tree.inode_count() > 2 * MAX_ENTRIES {
                return Err(EntryFault::TooManySteps);
            }
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = self.tree.parent(at);
                    continue;
                }
                _ => {}
            }
            let Some(child) = self.tree.child(at, &component) else {
                let Some(mtime) = make else { return Ok(None) };
                let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
                at = self.tree.insert(at, &component, attributes, Body::Directory).map_err(EntryFault::Tree)?;
                continue;
            };
            match self.tree.inode(child).body {
                Body::Directory => at = child,
                Body::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS || left.len() > 2 * super::names::MAX_DEPTH {
                        return Err(EntryFault::LinkLoop);
                    }
                    if target.starts_with(b"/") {
                        at = self.tree.root();
                    }
                    left.extend(target.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec));
                }
                _ if make.is_some() => return Err(EntryFault::ParentIsNoDirectory),
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}

impl Merged {
    /// Reads a layer again for the contents of it that are missing.
    ///
    /// # Errors
    /// The stream is no longer what it was, or `keep` failed.
    pub fn fill<K: Keep>(&mut self, layer: usize, stream: impl Read, keep: &mut K) -> Result<(), MergeError<K::Error>> {
        let wrong = |source| LayerError::Tar { layer: layer + 1, source };
        let wanted: HashMap<usize, InodeId> =
            self.missing.iter().filter(|missing| missing.layer == layer).map(|m| (m.change, m.inode)).collect();
        let mut reader = TarReader::new(stream);
        // The same names give the same changes in the same order.
        let mut again = Merge::new(0);
        let mut change = 0;
        while let Some(entry) = reader.next_entry().map_err(wrong)? {
            let path = entry.path.clone();
            let fault = |why| LayerError::Entry { layer: layer + 1, path: path.clone(), why };
            if again.change(entry).map_err(fault)?.is_none() {
                continue;
            }
            if let Some(&inode) = wanted.get(&change) {
                let size_bytes = reader.content_bytes();
                let kept = keep.keep(&path, size_bytes, &mut reader.content()).map_err(MergeError::Keep)?;
                self.tree.set_content(inode, kept);
            }
            change += 1;
        }
        reader.drain().map_err(wrong)?;
        self.missing.retain(|missing| missing.layer != layer);
        Ok(())
    }
}
