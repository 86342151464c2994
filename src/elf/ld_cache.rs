//! `/etc/ld.so.cache`: which file the dynamic linker takes for a library's name.
//!
//! Two formats, written by `ldconfig(8)` for this machine's byte order; a file may hold the old one and then the new:
//!
//! ```text
//! old  | "ld.so-1.7.0" 0 | count (4) | entries of 12: flags, name, path | strings ...
//! new  | "glibc-ld.so.cache1.1" | count (4) | bytes of strings (4) | byte order (1) | 3 | extensions (4) | 12 |
//!      | entries of 24: flags (4), name (4), path (4), osversion (4), hwcap (8) | strings ...
//! ```
//!
//! Names and paths are offsets: of the old format from its strings, of the new one from its beginning. Entries are
//! sorted by name, descending, digits as numbers; the linker bisects them, so [`write`] must do the same.

use std::cmp::Ordering;
use std::fmt;

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_HEADER_BYTES: usize = 16;
const OLD_ENTRY_BYTES: usize = 12;
const NEW_MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const NEW_HEADER_BYTES: usize = 48;
const NEW_ENTRY_BYTES: usize = 24;
/// No path is longer.
const MAX_STRING_BYTES: usize = 4096;
/// The bits of [`Entry::flags`] that say for which kind of program the library is.
const ABI_MASK: u32 = 0xff00;
/// `FLAG_ELF_LIBC6`.
const ELF_LIBC6: u32 = 3;
const LITTLE_ENDIAN: u8 = 2;
const BIG_ENDIAN: u8 = 3;

/// A library in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The soname that programs ask for.
    pub name: &'a [u8],
    pub path: &'a [u8],
    /// The kind in the low byte (3 for every library of today), the ABI above it.
    pub flags: u32,
    /// Which processors it is for; 0 when for all.
    pub hwcap: u64,
}

impl Entry<'_> {
    /// Whether it is for programs whose `e_machine` is `machine`, with the addresses that these usually have.
    ///
    /// An ABI that is not known here is taken for the right one: who opens the file sees what it is.
    pub fn serves(&self, machine: u16) -> bool {
        /// Without a statement about the floating point unit, in its registers, in the others.
        const ARM: [u32; 3] = [0, 0x0900, 0x0b00];
        let abi = self.flags & ABI_MASK;
        match abi_of(machine) {
            _ if machine == 40 => ARM.contains(&abi),
            Some(expected) => abi == expected,
            None => true,
        }
    }
}

/// Returns the ABI bits of libraries for a machine (`e_machine`).
fn abi_of(machine: u16) -> Option<u32> {
    match machine {
        62 => Some(0x0300),
        3 => Some(0),
        183 => Some(0x0a00),
        21 => Some(0x0500),
        22 => Some(0x0400),
        _ => None,
    }
}

/// Why bytes are no cache of this machine's linker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheError {
    /// Begins as neither format does.
    UnknownFormat,
    /// Written for a machine of the other byte order.
    OtherByteOrder,
    /// A count or an offset leads out of the file.
    Broken,
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownFormat => "not a cache of the dynamic linker",
            Self::OtherByteOrder => "a cache for machines of the other byte order",
            Self::Broken => "a broken cache: a count or an offset leads out of the file",
        })
    }
}

impl std::error::Error for CacheError {}

/// Reads every entry, in the order of the file: the linker takes the first of a name that it can use.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry<'_>>, CacheError> {
    if bytes.starts_with(NEW_MAGIC) {
        return parse_new(bytes);
    }
    if !bytes.starts_with(OLD_MAGIC) {
        return Err(CacheError::UnknownFormat);
    }
    let count = count(bytes, 12, OLD_HEADER_BYTES, OLD_ENTRY_BYTES)?;
    let strings_at = OLD_HEADER_BYTES + count * OLD_ENTRY_BYTES;
    // The new format stands where the strings would begin, at the next multiple of eight.
    if let Some(new) = bytes.get(strings_at.next_multiple_of(8)..)
        && new.starts_with(NEW_MAGIC)
    {
        return parse_new(new);
    }
    let strings = &bytes[strings_at..];
    bytes[OLD_HEADER_BYTES..strings_at]
        .chunks_exact(OLD_ENTRY_BYTES)
        .map(|entry| {
            Ok(Entry {
                name: string(strings, number(entry, 4))?,
                path: string(strings, number(entry, 8))?,
                flags: number(entry, 0),
                hwcap: 0,
            })
        })
        .collect()
}

fn parse_new(bytes: &[u8]) -> Result<Vec<Entry<'_>>, CacheError> {
    let count = count(bytes, 20, NEW_HEADER_BYTES, NEW_ENTRY_BYTES)?;
    // 0 is what versions wrote that did not know the field.
    let foreign = if cfg!(target_endian = "big") { LITTLE_ENDIAN } else { BIG_ENDIAN };
    if bytes[28] & 3 == foreign {
        return Err(CacheError::OtherByteOrder);
    }
    bytes[NEW_HEADER_BYTES..NEW_HEADER_BYTES + count * NEW_ENTRY_BYTES]
        .chunks_exact(NEW_ENTRY_BYTES)
        .map(|entry| {
            let halves = [number(entry, 16), number(entry, 20)];
            let [lower, upper] = if cfg!(target_endian = "big") { [halves[1], halves[0]] } else { halves };
            Ok(Entry {
                name: string(bytes, number(entry, 4))?,
                path: string(bytes, number(entry, 8))?,
                flags: number(entry, 0),
                hwcap: u64::from(upper) << 32 | u64::from(lower),
            })
        })
        .collect()
}

/// Reads the count of entries and checks that they are there.
fn count(bytes: &[u8], at: usize, header: usize, entry: usize) -> Result<usize, CacheError> {
    let room = bytes.len().checked_sub(header).ok_or(CacheError::Broken)? / entry;
    let count = usize::try_from(number(bytes, at)).map_err(|_| CacheError::Broken)?;
    if count <= room { Ok(count) } else { Err(CacheError::Broken) }
}

/// Reads four bytes that are known to be there.
fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn string(bytes: &[u8], at: u32) -> Result<&[u8], CacheError> {
    let rest = bytes.get(at as usize..).ok_or(CacheError::Broken)?;
    let rest = &rest[..rest.len().min(MAX_STRING_BYTES)];
    let end = rest.iter().position(|&byte| byte == 0).ok_or(CacheError::Broken)?;
    Ok(&rest[..end])
}

/// Returns the flags of a 64-bit library for a machine; `None` where the ABI is not known.
pub fn flags_of(machine: u16) -> Option<u32> {
    abi_of(machine).map(|abi| abi | ELF_LIBC6)
}

/// Writes a cache in the new format. Of entries with the same name, flags and hwcap the first counts.
///
/// Entries for particular processors need a table that is not written, so they are left out.
pub fn write(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut entries: Vec<&Entry<'_>> = entries.iter().filter(|entry| entry.hwcap == 0).collect();
    entries.sort_by(|one, other| compare(other.name, one.name).then(other.flags.cmp(&one.flags)));
    entries.dedup_by(|later, first| later.name == first.name && later.flags == first.flags);
    let strings_at = NEW_HEADER_BYTES + entries.len() * NEW_ENTRY_BYTES;
    let mut strings: Vec<u8> = Vec::new();
    let mut table = Vec::with_capacity(entries.len() * NEW_ENTRY_BYTES);
    for entry in &entries {
        table.extend(entry.flags.to_ne_bytes());
        for text in [entry.name, entry.path] {
            table.extend(((strings_at + strings.len()) as u32).to_ne_bytes());
            strings.extend(text);
            strings.push(0);
        }
        table.extend([0; 12]);
    }
    let mut out = NEW_MAGIC.to_vec();
    out.extend((entries.len() as u32).to_ne_bytes());
    out.extend((strings.len() as u32).to_ne_bytes());
    out.push(if cfg!(target_endian = "big") { BIG_ENDIAN } else { LITTLE_ENDIAN });
    out.resize(NEW_HEADER_BYTES, 0);
    out.extend(table);
    out.extend(strings);
    out
}

/// The linker's order of names: runs of digits count as numbers, and a digit is more than any other character.
fn compare(one: &[u8], other: &[u8]) -> Ordering {
    let (mut one, mut other) = (one, other);
    loop {
        match (one, other) {
            ([a, ..], [b, ..]) if a.is_ascii_digit() && b.is_ascii_digit() => {
                let order = take_number(&mut one).cmp(&take_number(&mut other));
                if order.is_ne() {
                    return order;
                }
            }
            ([a, ..], [b, ..]) if a.is_ascii_digit() != b.is_ascii_digit() => {
                return a.is_ascii_digit().cmp(&b.is_ascii_digit());
            }
            ([a, one_rest @ ..], [b, other_rest @ ..]) => {
                if a != b {
                    // As C compares its signed characters.
                    return (*a as i8).cmp(&(*b as i8));
                }
                (one, other) = (one_rest, other_rest);
            }
            _ => return one.len().cmp(&other.len()),
        }
    }
}

/// Takes the digits that the text begins with; numbers beyond 64 bits count as the largest.
fn take_number(text: &mut &[u8]) -> u64 {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(length);
    *text = rest;
    digits.iter().fold(0, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: u32 = 0x0303;

    fn entry(name: &'static str, path: &'static str) -> Entry<'static> {
        Entry { name: name.as_bytes(), path: path.as_bytes(), flags: X86_64, hwcap: 0 }
    }

    fn old(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut out = OLD_MAGIC.to_vec();
        out.extend((entries.len() as u32).to_ne_bytes());
        let mut strings = Vec::new();
        for entry in entries {
            out.extend(entry.flags.to_ne_bytes());
            for text in [entry.name, entry.path] {
                out.extend((strings.len() as u32).to_ne_bytes());
                strings.extend([text, b"\0"].concat());
            }
        }
        out.extend(strings);
        out
    }

    fn sample() -> Vec<Entry<'static>> {
        vec![entry("libcuda.so.1", "/usr/lib/libcuda.so.1"), entry("libc.so.6", "/lib/libc.so.6")]
    }

    #[test]
    fn both_formats_are_read() {
        assert_eq!(parse(&old(&sample())).unwrap(), sample());
        assert_eq!(parse(&write(&sample())).unwrap(), sample());
    }

    #[test]
    fn the_new_format_behind_the_old_one_is_preferred() {
        let mut bytes = old(&[]);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(write(&sample()));
        assert_eq!(parse(&bytes).unwrap(), sample());
    }

    #[test]
    fn names_are_ordered_as_the_linker_bisects_them() {
        let ordered = ["libz.so.1", "libm.so.12", "libm.so.6", "libm.so", "libm+.so", "lib9.so", "liba.so"];
        let mut entries: Vec<Entry<'_>> = ordered.iter().map(|name| entry(name, "/x")).collect();
        entries.reverse();
        let bytes = write(&entries);
        let names: Vec<&[u8]> = parse(&bytes).unwrap().iter().map(|entry| entry.name).collect();
        let expected = ["lib9.so", "libz.so.1", "libm.so.12", "libm.so.6", "libm.so", "libm+.so", "liba.so"];
        assert_eq!(names, expected.map(str::as_bytes));
    }

    #[test]
    fn the_cache_of_this_host_is_in_the_order_that_is_written() {
        let Ok(bytes) = std::fs::read("/etc/ld.so.cache") else {
            eprintln!("skipped: needs /etc/ld.so.cache (ENOENT)");
            return;
        };
        let entries = parse(&bytes).expect("the host's cache");
        assert!(entries.iter().any(|entry| entry.name == b"libc.so.6"));
        for pair in entries.windows(2) {
            assert!(compare(pair[0].name, pair[1].name).is_ge(), "{:?}", pair.map_names());
        }
    }

    trait MapNames {
        fn map_names(&self) -> Vec<String>;
    }

    impl MapNames for [Entry<'_>] {
        fn map_names(&self) -> Vec<String> {
            self.iter().map(|entry| String::from_utf8_lossy(entry.name).into_owned()).collect()
        }
    }

    #[test]
    fn the_first_of_a_name_counts() {
        let twice = [entry("libx.so.1", "/first"), entry("libx.so.1", "/second")];
        assert_eq!(parse(&write(&twice)).unwrap(), [twice[0]]);
    }

    #[test]
    fn an_entry_is_for_one_machine() {
        let other = Entry { flags: 3, ..entry("libx.so.1", "/lib32/libx.so.1") };
        assert!(entry("libx.so.1", "/x").serves(62));
        assert!(!entry("libx.so.1", "/x").serves(183));
        assert!(!other.serves(62));
        assert!(other.serves(3) && !entry("libx.so.1", "/x").serves(3));
        assert!(other.serves(40) && !entry("libx.so.1", "/x").serves(40));
        assert!(other.serves(243), "an ABI that is not known here");
    }

    #[test]
    fn a_damaged_cache_is_an_error_and_no_panic() {
        assert_eq!(parse(b""), Err(CacheError::UnknownFormat));
        assert_eq!(parse(b"#!/bin/sh\n"), Err(CacheError::UnknownFormat));
        for whole in [old(&sample()), write(&sample())] {
            for length in 0..whole.len() {
                assert!(parse(&whole[..length]).is_err(), "{length} bytes");
            }
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] = 0xff;
                let _ = parse(&bytes);
            }
        }
    }

    #[test]
    fn a_cache_of_the_other_byte_order_is_told_apart() {
        let mut bytes = write(&sample());
        bytes[28] = if cfg!(target_endian = "big") { LITTLE_ENDIAN } else { BIG_ENDIAN };
        assert_eq!(parse(&bytes), Err(CacheError::OtherByteOrder));
    }
}
