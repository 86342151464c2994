//! The tar stream of a layer, read once from its beginning: headers checked, content handed on as it comes.
//!
//! ```text
//! 0      100    108   116   124    136     148        156    157        257     265     329   337   345      500   512
//! | name | mode | uid | gid | size | mtime | checksum | type | linkname | magic | names | major | minor | prefix |     |
//!
//! | header | content, padded to 512 | header | content | ... | 512 zeros | 512 zeros | whatever
//! ```
//!
//! A name, a size or an owner that does not fit stands in an entry before the one it is for: type `x` (PAX records,
//! `27 path=some/long/name\n`) or `L` and `K` (GNU: the name, the link's target). Sparse files of GNU tar are read in all
//! their spellings. Where two readers could differ about what an entry holds, the stream is refused: that is how things
//! get smuggled past whoever checks.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

const BLOCK_BYTES: usize = 512;
/// Longest name, link target, or value of a record other than an extended attribute's.
const MAX_NAME_BYTES: usize = 64 << 10;
/// Most bytes of PAX records before one entry.
const MAX_RECORDS_BYTES: u64 = 1 << 20;
/// Most entries that may describe the one behind them.
const MAX_PRECEDING: usize = 16;
/// Most stretches of data in a sparse file.
const MAX_SPARSE_PARTS: usize = 1 << 20;
/// What a size of eleven octal digits can state; a larger one stands in a PAX record alone.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// An entry of a layer, before anything is made of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as it stands there: it can begin with `/` or hold `..`.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Names and values, in the order of the stream.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the entry's header begins in the stream.
    pub offset_bytes: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Its content is what [`TarReader::content`] gives.
    File {
        size_bytes: u64,
    },
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Directory,
    Fifo,
}

/// Why a stream is no tar archive that can be used.
#[derive(Debug)]
pub enum TarError {
    /// The bytes could not be had: the file, the network, the compression.
    Read {
        offset_bytes: u64,
        source: io::Error,
    },
    /// The stream ends within an entry.
    Truncated {
        offset_bytes: u64,
    },
    /// The header's checksum is wrong: this is no tar archive, or not here.
    Checksum {
        offset_bytes: u64,
    },
    /// A field that is no number, or one too large for what it counts.
    Number {
        offset_bytes: u64,
        field: &'static str,
    },
    /// PAX records that can't be taken apart, or that no writer may make.
    Records {
        offset_bytes: u64,
        why: &'static str,
    },
    /// Header and PAX record state different sizes: which one readers believe decides what the archive holds.
    Sizes {
        offset_bytes: u64,
        header_bytes: u64,
        record_bytes: u64,
    },
    /// The map of a sparse file that has overlaps, runs past the end, or is not as long as the data.
    Sparse {
        offset_bytes: u64,
        why: &'static str,
    },
    TooLong {
        offset_bytes: u64,
        what: &'static str,
        limit: u64,
    },
    /// A type of entry that no layer may hold.
    Type {
        offset_bytes: u64,
        kind: u8,
    },
    /// Entries that describe another one, without that one.
    Dangling {
        offset_bytes: u64,
    },
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { offset_bytes, source } => {
                write!(f, "cannot read on at byte {offset_bytes}: {}", crate::report::cause(source))
            }
            Self::Truncated { offset_bytes } => write!(f, "it ends at byte {offset_bytes}, within an entry"),
            Self::Checksum { offset_bytes } => write!(f, "no tar header at byte {offset_bytes}: its checksum is wrong"),
            Self::Number { offset_bytes, field } => {
                write!(f, "the header at byte {offset_bytes} has a {field} that is no number or too large")
            }
            Self::Records { offset_bytes, why } => write!(f, "the PAX records at byte {offset_bytes} {why}"),
            Self::Sizes { offset_bytes, header_bytes, record_bytes } => write!(
                f,
                "the entry at byte {offset_bytes} states two sizes: {header_bytes} in its header, {record_bytes} in its \
                 PAX record"
            ),
            Self::Sparse { offset_bytes, why } => {
                write!(f, "the sparse file at byte {offset_bytes} has a map that {why}")
            }
            Self::TooLong { offset_bytes, what, limit } => {
                write!(f, "the entry at byte {offset_bytes} has {what} of more than {limit} bytes")
            }
            Self::Type { offset_bytes, kind } => {
                write!(
                    f,
                    "the entry at byte {offset_bytes} is of type `{}`, which has no place in a layer",
                    kind.escape_ascii()
                )
            }
            Self::Dangling { offset_bytes } => {
                write!(f, "it ends at byte {offset_bytes}, where an entry was announced")
            }
        }
    }
}

impl std::error::Error for TarError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Reads the entries of a stream, one after the other.
pub struct TarReader<R> {
    source: R,
    /// Bytes taken from `source`.
    position: u64,
    content: ContentState,
    ended: bool,
}

/// How much of the current entry's content is still to come.
#[derive(Debug, Default)]
struct ContentState {
    /// Bytes of it in the stream, and the padding behind them.
    stored_bytes: u64,
    padding_bytes: u64,
    /// Bytes that its reader gets, holes included, and how many it got.
    size_bytes: u64,
    given_bytes: u64,
    /// Where data lies in a sparse file, the rest being zeros: (offset, length), ascending; empty for other files.
    parts: Vec<(u64, u64)>,
    next_part: usize,
    is_sparse: bool,
}

/// What entries before an entry say about it.
#[derive(Default)]
struct Preceding {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size_bytes: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: SparseRecords,
    count: usize,
}

/// The records by which GNU tar describes sparse files, in three versions.
#[derive(Default)]
struct SparseRecords {
    is_map_in_data: bool,
    name: Option<Vec<u8>>,
    size_bytes: Option<u64>,
    parts: Vec<(u64, u64)>,
    pending_offset: Option<u64>,
    seen: bool,
}

impl<R: Read> TarReader<R> {
    pub fn new(source: R) -> Self {
        Self { source, position: 0, content: ContentState::default(), ended: false }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Length of the content of the entry that was given last.
    pub fn content_bytes(&self) -> u64 {
        self.content.size_bytes
    }

    /// How much of it are holes: zeros that the stream does not hold.
    pub fn hole_bytes(&self) -> u64 {
        self.content.size_bytes.saturating_sub(self.content.stored_bytes)
    }

    /// The next entry; `None` at the end of the archive. What was left of the content before is passed over.
    ///
    /// # Errors
    /// Anything that is not exactly one entry; the reader is of no use then.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        let mut preceding = Preceding::default();
        loop {
            let offset_bytes = self.position;
            let Some(header) = self.header()? else {
                return if preceding.count == 0 { Ok(None) } else { Err(TarError::Dangling { offset_bytes }) };
            };
            if !matches!(header.kind(), b'x' | b'X' | b'g' | b'L' | b'K') {
                return self.entry(&header, offset_bytes, preceding).map(Some);
            }
            preceding.count += 1;
            if preceding.count > MAX_PRECEDING {
                return Err(TarError::Records { offset_bytes, why: "are too many for one entry" });
            }
            let size_bytes = header.size(offset_bytes)?;
            match header.kind() {
                b'L' => preceding.path = Some(self.long_name(size_bytes, offset_bytes)?),
                b'K' => preceding.link = Some(self.long_name(size_bytes, offset_bytes)?),
                kind => {
                    let bytes = self.metadata(size_bytes, MAX_RECORDS_BYTES, "PAX records", offset_bytes)?;
                    for (key, value) in (Records { bytes: &bytes, offset_bytes }).all()? {
                        if kind == b'g' {
                            // Written by `git archive` for its comment. As every reader has its own idea of how long
                            // such records last, they may not say anything that counts.
                            if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
                                let why = "describe all files behind them, names or sizes among that";
                                return Err(TarError::Records { offset_bytes, why });
                            }
                        } else {
                            preceding.record(key, value, offset_bytes)?;
                        }
                    }
                }
            }
        }
    }

    /// The content of the entry that [`TarReader::next_entry`] gave last; nothing unless that was a file.
    pub fn content(&mut self) -> impl Read + '_ {
        Content(self)
    }

    /// Reads what follows the end of the archive, so that a digest of the whole stream can be taken.
    pub fn drain(&mut self) -> Result<(), TarError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if self.read_some(&mut buffer)? == 0 {
                return Ok(());
            }
        }
    }

    /// The next header; `None` at the end, which is a block of zeros or that of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let offset_bytes = self.position;
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.read_some(&mut block[filled..])? {
                0 if filled == 0 => break,
                0 => return Err(TarError::Truncated { offset_bytes: self.position }),
                count => filled += count,
            }
        }
        if filled == 0 || block == [0; BLOCK_BYTES] {
            self.ended = true;
            return Ok(None);
        }
        let header = Header(block);
        if header.checksum_holds() { Ok(Some(header)) } else { Err(TarError::Checksum { offset_bytes }) }
    }

    fn entry(&mut self, header: &Header, offset_bytes: u64, preceding: Preceding) -> Result<Entry, TarError> {
        let mut path = preceding.path.unwrap_or_else(|| header.path());
        let link = preceding.link.unwrap_or_else(|| header.link());
        let has_content = matches!(header.kind(), b'0' | 0 | b'7' | b'S');
        let mut stored_bytes = 0;
        if has_content {
            let header_bytes = header.size(offset_bytes)?;
            stored_bytes = preceding.size_bytes.unwrap_or(header_bytes);
            if stored_bytes != header_bytes && stored_bytes <= MAX_OCTAL_SIZE {
                return Err(TarError::Sizes { offset_bytes, header_bytes, record_bytes: stored_bytes });
            }
        }
        let padding_bytes = (BLOCK_BYTES as u64 - stored_bytes % BLOCK_BYTES as u64) % BLOCK_BYTES as u64;
        self.content =
            ContentState { stored_bytes, padding_bytes, size_bytes: stored_bytes, ..ContentState::default() };
        if header.kind() == b'S' {
            self.old_sparse_map(header, offset_bytes)?;
        } else if preceding.sparse.seen && has_content {
            if let Some(name) = &preceding.sparse.name {
                path.clone_from(name);
            }
            self.sparse_map(preceding.sparse, offset_bytes)?;
        }
        let kind = match header.kind() {
            // Archives from before 1988 mark a directory by its name alone.
            b'0' | 0 if path.ends_with(b"/") && stored_bytes == 0 => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File { size_bytes: self.content.size_bytes },
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => EntryKind::CharDevice { major: header.major(offset_bytes)?, minor: header.minor(offset_bytes)? },
            b'4' => EntryKind::BlockDevice { major: header.major(offset_bytes)?, minor: header.minor(offset_bytes)? },
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            kind => return Err(TarError::Type { offset_bytes, kind }),
        };
        let owner = |field: &[u8], name| {
            let number = number(field).and_then(|number| u32::try_from(number).ok());
            number.ok_or(TarError::Number { offset_bytes, field: name })
        };
        let uid = preceding.uid.map_or_else(|| owner(header.field(108, 8), "owner"), Ok)?;
        let gid = preceding.gid.map_or_else(|| owner(header.field(116, 8), "group"), Ok)?;
        let mtime = match preceding.mtime {
            Some(mtime) => mtime,
            None => number(header.field(136, 12)).ok_or(TarError::Number { offset_bytes, field: "time" })?,
        };
        // Some writers put the type of the file there too.
        let mode = number(header.field(100, 8)).ok_or(TarError::Number { offset_bytes, field: "mode" })?;
        let mode = (mode & 0o7777) as u16;
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs: preceding.xattrs, offset_bytes })
    }

    /// GNU's first way: four stretches in the header, more in blocks behind it.
    fn old_sparse_map(&mut self, header: &Header, offset_bytes: u64) -> Result<(), TarError> {
        let mut parts = Vec::new();
        let real_size = size_field(header.field(483, 12), offset_bytes)?;
        sparse_rows(header.field(386, 96), &mut parts, offset_bytes)?;
        let mut more = header.0[482] != 0;
        while more {
            let mut block = [0; BLOCK_BYTES];
            self.read_all(&mut block)?;
            sparse_rows(&block[..504], &mut parts, offset_bytes)?;
            more = block[504] != 0;
            if parts.len() > MAX_SPARSE_PARTS {
                return Err(TarError::Sparse { offset_bytes, why: "is too long" });
            }
        }
        self.set_sparse(parts, real_size, offset_bytes)
    }

    /// The ways of PAX: the map in records, or (version 1.0) as decimal lines before the data.
    fn sparse_map(&mut self, records: SparseRecords, offset_bytes: u64) -> Result<(), TarError> {
        let Some(real_size) = records.size_bytes else {
            return Err(TarError::Sparse { offset_bytes, why: "does not state the file's size" });
        };
        let mut parts = records.parts;
        if records.is_map_in_data {
            let mut lines = MapLines { block: [0; BLOCK_BYTES], next: BLOCK_BYTES };
            let count = lines.number(self, offset_bytes)?;
            if count > MAX_SPARSE_PARTS as u64 {
                return Err(TarError::Sparse { offset_bytes, why: "is too long" });
            }
            for _ in 0..count {
                let offset = lines.number(self, offset_bytes)?;
                parts.push((offset, lines.number(self, offset_bytes)?));
            }
        }
        self.set_sparse(parts, real_size, offset_bytes)
    }

    fn set_sparse(&mut self, mut parts: Vec<(u64, u64)>, size_bytes: u64, offset_bytes: u64) -> Result<(), TarError> {
        let wrong = |why| TarError::Sparse { offset_bytes, why };
        let mut end = 0;
        let mut data_bytes = 0_u64;
        for &(offset, length) in &parts {
            let next = offset.checked_add(length).ok_or(wrong("runs past the file's end"))?;
            if offset < end {
                return Err(wrong("has overlaps"));
            }
            end = next;
            data_bytes += length;
        }
        if end > size_bytes {
            return Err(wrong("runs past the file's end"));
        }
        if data_bytes != self.content.stored_bytes {
            return Err(wrong("is not as long as its data"));
        }
        parts.retain(|(_, length)| *length > 0);
        self.content = ContentState {
            size_bytes,
            parts,
            is_sparse: true,
            stored_bytes: self.content.stored_bytes,
            padding_bytes: self.content.padding_bytes,
            ..ContentState::default()
        };
        Ok(())
    }

    fn long_name(&mut self, size_bytes: u64, offset_bytes: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.metadata(size_bytes, MAX_NAME_BYTES as u64, "a name", offset_bytes)?;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    /// The content of an entry that describes another one.
    fn metadata(
        &mut self,
        size_bytes: u64,
        limit: u64,
        what: &'static str,
        offset_bytes: u64,
    ) -> Result<Vec<u8>, TarError> {
        if size_bytes > limit {
            return Err(TarError::TooLong { offset_bytes, what, limit });
        }
        let mut bytes = vec![0; (size_bytes as usize).next_multiple_of(BLOCK_BYTES)];
        self.read_all(&mut bytes)?;
        bytes.truncate(size_bytes as usize);
        Ok(bytes)
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let padding_bytes = self.content.padding_bytes;
        let mut left_bytes = self.content.stored_bytes + padding_bytes;
        self.content = ContentState::default();
        let mut buffer = [0; 8 << 10];
        while left_bytes > 0 {
            let length = left_bytes.min(buffer.len() as u64) as usize;
            match self.read_some(&mut buffer[..length])? {
                // Some writers, `umoci insert` among them, leave out the padding of the last file.
                0 if left_bytes <= padding_bytes => {
                    self.ended = true;
                    break;
                }
                0 => return Err(TarError::Truncated { offset_bytes: self.position }),
                count => left_bytes -= count as u64,
            }
        }
        Ok(())
    }

    fn read_all(&mut self, mut buffer: &mut [u8]) -> Result<(), TarError> {
        while !buffer.is_empty() {
            match self.read_some(buffer)? {
                0 => return Err(TarError::Truncated { offset_bytes: self.position }),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.source.read(buffer) {
                Ok(count) => {
                    self.position += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset_bytes: self.position, source }),
            }
        }
    }
}

impl<R: Read + Seek> TarReader<R> {
    /// Moves behind the content of the entry that was given last, without reading it.
    pub fn pass_over_content(&mut self) -> Result<(), TarError> {
        let left_bytes = self.content.stored_bytes + self.content.padding_bytes;
        let offset_bytes = self.position;
        self.content = ContentState::default();
        let distance = i64::try_from(left_bytes).map_err(|_| TarError::Truncated { offset_bytes })?;
        self.source.seek(SeekFrom::Current(distance)).map_err(|source| TarError::Read { offset_bytes, source })?;
        self.position += left_bytes;
        Ok(())
    }
}

struct Content<'a, R>(&'a mut TarReader<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let state = &mut self.0.content;
        let left_bytes = state.size_bytes - state.given_bytes;
        let mut length = left_bytes.min(buffer.len() as u64) as usize;
        if length == 0 {
            return Ok(0);
        }
        if state.is_sparse {
            let (start, end) = match state.parts.get(state.next_part) {
                Some(&(offset, part_bytes)) => (offset, offset + part_bytes),
                None => (state.size_bytes, state.size_bytes),
            };
            if state.given_bytes < start {
                length = length.min(usize::try_from(start - state.given_bytes).unwrap_or(usize::MAX));
                buffer[..length].fill(0);
                state.given_bytes += length as u64;
                return Ok(length);
            }
            length = length.min(usize::try_from(end - state.given_bytes).unwrap_or(usize::MAX));
        }
        let count = self.0.source.read(&mut buffer[..length])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the layer ends within this file"));
        }
        self.0.position += count as u64;
        let state = &mut self.0.content;
        state.given_bytes += count as u64;
        state.stored_bytes -= count as u64;
        if state.parts.get(state.next_part).is_some_and(|(offset, length)| state.given_bytes == offset + length) {
            state.next_part += 1;
        }
        Ok(count)
    }
}

impl Preceding {
    fn record(&mut self, key: &[u8], value: &[u8], offset_bytes: u64) -> Result<(), TarError> {
        let size = |field| decimal(value).ok_or(TarError::Number { offset_bytes, field });
        let owner = |field| {
            let number = decimal(value).and_then(|number| u32::try_from(number).ok());
            number.map(Some).ok_or(TarError::Number { offset_bytes, field })
        };
        let name = || {
            if value.contains(&0) {
                return Err(TarError::Records { offset_bytes, why: "have a name with a zero byte in it" });
            }
            if value.len() > MAX_NAME_BYTES {
                return Err(TarError::TooLong { offset_bytes, what: "a name", limit: MAX_NAME_BYTES as u64 });
            }
            Ok(Some(value.to_vec()))
        };
        match key {
            // An empty value takes back what was said before.
            b"path" if value.is_empty() => self.path = None,
            b"linkpath" if value.is_empty() => self.link = None,
            b"size" if value.is_empty() => self.size_bytes = None,
            b"path" => self.path = name()?,
            b"linkpath" => self.link = name()?,
            b"size" => self.size_bytes = Some(size("size")?),
            b"uid" => self.uid = owner("owner")?,
            b"gid" => self.gid = owner("group")?,
            b"mtime" => {
                let mtime = seconds(value).ok_or(TarError::Number { offset_bytes, field: "time" })?;
                self.mtime = Some(mtime);
            }
            b"GNU.sparse.major" => self.sparse.is_map_in_data = size("version of sparse files")? == 1,
            b"GNU.sparse.minor" | b"GNU.sparse.numblocks" => {}
            b"GNU.sparse.name" => self.sparse.name = name()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size_bytes = Some(size("sparse size")?),
            b"GNU.sparse.offset" => self.sparse.pending_offset = Some(size("sparse offset")?),
            b"GNU.sparse.numbytes" => {
                let Some(offset) = self.sparse.pending_offset.take() else {
                    return Err(TarError::Sparse { offset_bytes, why: "has a length without an offset" });
                };
                self.sparse.parts.push((offset, size("sparse length")?));
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|&byte| byte == b',').map(decimal).collect();
                let numbers = numbers.ok_or(TarError::Number { offset_bytes, field: "sparse map" })?;
                if numbers.len() % 2 != 0 {
                    return Err(TarError::Sparse { offset_bytes, why: "has a length without an offset" });
                }
                self.sparse.parts = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
                return Ok(());
            }
        }
        self.sparse.seen |= key.starts_with(b"GNU.sparse.");
        Ok(())
    }
}

/// Key and value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// PAX records: `LENGTH KEY=VALUE\n`, the length counting all of it.
struct Records<'a> {
    bytes: &'a [u8],
    offset_bytes: u64,
}

impl<'a> Records<'a> {
    fn all(self) -> Result<Vec<Record<'a>>, TarError> {
        let offset_bytes = self.offset_bytes;
        let wrong = move |why| TarError::Records { offset_bytes, why };
        let mut records = Vec::new();
        let mut left = self.bytes;
        while !left.is_empty() {
            let blank = left.iter().take(21).position(|&byte| byte == b' ').ok_or(wrong("have no length"))?;
            let length = decimal(&left[..blank]).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|&length| length > blank + 1 && length <= left.len());
            let length = length.ok_or(wrong("have a wrong length"))?;
            let (record, rest) = left.split_at(length);
            let record = record[blank + 1..].strip_suffix(b"\n").ok_or(wrong("have a wrong length"))?;
            let equals = record.iter().position(|&byte| byte == b'=').filter(|&at| at > 0);
            let equals = equals.ok_or(wrong("have no name"))?;
            records.push((&record[..equals], &record[equals + 1..]));
            left = rest;
        }
        Ok(records)
    }
}

/// The map of a sparse file of version 1.0: numbers on lines of their own, in blocks before the data.
struct MapLines {
    block: [u8; BLOCK_BYTES],
    next: usize,
}

impl MapLines {
    fn number<R: Read>(&mut self, reader: &mut TarReader<R>, offset_bytes: u64) -> Result<u64, TarError> {
        let mut digits = Vec::new();
        loop {
            if self.next == BLOCK_BYTES {
                let left_bytes = reader.content.stored_bytes.checked_sub(BLOCK_BYTES as u64);
                let why = "is longer than the entry";
                reader.content.stored_bytes = left_bytes.ok_or(TarError::Sparse { offset_bytes, why })?;
                reader.read_all(&mut self.block)?;
                self.next = 0;
            }
            let byte = self.block[self.next];
            self.next += 1;
            if byte == b'\n' {
                return decimal(&digits).ok_or(TarError::Number { offset_bytes, field: "sparse map" });
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(TarError::Number { offset_bytes, field: "sparse map" });
            }
        }
    }
}

struct Header([u8; BLOCK_BYTES]);

impl Header {
    fn field(&self, start: usize, length: usize) -> &[u8] {
        &self.0[start..start + length]
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn is_ustar(&self) -> bool {
        self.field(257, 6) == b"ustar\0"
    }

    fn path(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        // GNU's header has other things where POSIX has the prefix, and that of star ends earlier.
        let prefix_bytes = if self.field(508, 4) == b"tar\0" { 131 } else { 155 };
        let prefix = if self.is_ustar() { text(self.field(345, prefix_bytes)) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn link(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    fn size(&self, offset_bytes: u64) -> Result<u64, TarError> {
        size_field(self.field(124, 12), offset_bytes)
    }

    fn major(&self, offset_bytes: u64) -> Result<u32, TarError> {
        device_number(self.field(329, 8), offset_bytes)
    }

    fn minor(&self, offset_bytes: u64) -> Result<u32, TarError> {
        device_number(self.field(337, 8), offset_bytes)
    }

    /// The sum of all bytes, the checksum's own taken as blanks; old writers summed signed bytes.
    fn checksum_holds(&self) -> bool {
        let stated = number(self.field(148, 8));
        let byte = |(index, &byte): (usize, &u8)| if (148..156).contains(&index) { b' ' } else { byte };
        let bytes = || self.0.iter().enumerate().map(byte);
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        stated == Some(unsigned) || stated == Some(signed)
    }
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

fn size_field(field: &[u8], offset_bytes: u64) -> Result<u64, TarError> {
    let size = number(field).and_then(|size| u64::try_from(size).ok());
    size.ok_or(TarError::Number { offset_bytes, field: "size" })
}

fn device_number(field: &[u8], offset_bytes: u64) -> Result<u32, TarError> {
    let number = number(field).and_then(|number| u32::try_from(number).ok());
    number.ok_or(TarError::Number { offset_bytes, field: "device number" })
}

/// Rows of the old map of sparse files: offset and length of twelve bytes each, until one is empty.
fn sparse_rows(rows: &[u8], parts: &mut Vec<(u64, u64)>, offset_bytes: u64) -> Result<(), TarError> {
    for row in rows.chunks_exact(24).take_while(|row| row[0] != 0) {
        parts.push((size_field(&row[..12], offset_bytes)?, size_field(&row[12..], offset_bytes)?));
    }
    Ok(())
}

/// A number of a header: octal digits among blanks, or, with the first bit set, 95 bits in two's complement.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (index, &byte) in field.iter().enumerate() {
            let byte = if index == 0 { (byte & 0x7f) | if negative { 0x80 } else { 0 } } else { byte };
            // The bits that leave at the top may be nothing but sign.
            if value >> 55 != if negative { -1 } else { 0 } {
                return None;
            }
            value = value << 8 | i64::from(byte);
        }
        return Some(value);
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    // What stands behind the next blank or zero is not looked at by other readers either.
    let digits = field[start..].split(is_blank).next().unwrap_or_default();
    digits.iter().try_fold(0_i64, |value, &byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Whole seconds of a time with or without a fraction, rounded towards the past.
fn seconds(text: &[u8]) -> Option<i64> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let whole = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let is_fraction = fraction.iter().any(|&digit| digit != b'0');
    if negative { whole.checked_neg()?.checked_sub(i64::from(is_fraction)) } else { Some(whole) }
}
