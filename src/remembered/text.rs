//! Records as lines of text, and back.

use super::{Device, FileId, Generation, Record, Remembered};
use std::fmt::Write;

/// The first line of every such text.
pub(super) const HEADER: &str = "sifu-remembered 1\n";

/// Longest line that is read: a file can have as many attributes as fit here.
const MAX_LINE_BYTES: usize = 4 << 20;

/// One line about one file; `own_device` is that on which the text lies.
pub(super) fn line(file: FileId, generation: Generation, record: &Record, own_device: u64) -> String {
    let mut line = String::from("file ");
    // Writing to a string does not fail.
    let _ = match file.device == own_device {
        true => write!(line, "- {} {:016x}", file.inode, generation.0),
        false => write!(line, "{} {} {:016x}", file.device, file.inode, generation.0),
    };
    if let Some(uid) = record.uid {
        let _ = write!(line, " uid={uid}");
    }
    if let Some(gid) = record.gid {
        let _ = write!(line, " gid={gid}");
    }
    if let Some(mode) = record.mode {
        let _ = write!(line, " mode={mode:o}");
    }
    match record.device {
        Some(Device::Char(number)) => drop(write!(line, " char={number}")),
        Some(Device::Block(number)) => drop(write!(line, " block={number}")),
        None => {}
    }
    for (name, value) in &record.xattrs {
        line.push_str(" xattr=");
        for &byte in name {
            // A name can hold anything but NUL.
            match byte {
                b'!'..=b'~' if byte != b'=' && byte != b'%' => line.push(char::from(byte)),
                _ => drop(write!(line, "%{byte:02x}")),
            }
        }
        line.push('=');
        for byte in value {
            let _ = write!(line, "{byte:02x}");
        }
    }
    line.push('\n');
    line
}

/// Why a text can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadLine {
    /// Counted from 1.
    pub number: usize,
    pub why: &'static str,
}

/// Reads a whole text. A last line without its end was being written when something stopped, and is left out.
pub(super) fn parse(text: &[u8], own_device: u64) -> Result<Remembered, BadLine> {
    let mut remembered = Remembered::default();
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    for (index, line) in text[..whole].split_inclusive(|&byte| byte == b'\n').enumerate() {
        let bad = |why| BadLine { number: index + 1, why };
        if index == 0 {
            if line != HEADER.as_bytes() {
                return Err(bad("the first line is not `sifu-remembered 1`"));
            }
            continue;
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(bad("the line is too long"));
        }
        let line = std::str::from_utf8(line).map_err(|_| bad("the line is not text"))?;
        let (file, generation, record) = parse_line(line.trim_end_matches('\n'), own_device).map_err(bad)?;
        remembered.set(file, generation, record);
    }
    Ok(remembered)
}

fn parse_line(line: &str, own_device: u64) -> Result<(FileId, Generation, Record), &'static str> {
    let mut words = line.split(' ');
    if words.next() != Some("file") {
        return Err("the line does not begin with `file`");
    }
    let device = match words.next() {
        Some("-") => own_device,
        word => number(word, 10).ok_or("the device is no number")?,
    };
    let inode = number(words.next(), 10).ok_or("the inode is no number")?;
    let generation = number(words.next(), 16).ok_or("the generation is no number")?;
    let mut record = Record::default();
    for word in words {
        let (name, value) = word.split_once('=').ok_or("a field has no value")?;
        let id = || number(Some(value), 10).and_then(|id| u32::try_from(id).ok());
        match name {
            "uid" => record.uid = Some(id().ok_or("the owner is no id")?),
            "gid" => record.gid = Some(id().ok_or("the group is no id")?),
            "mode" => {
                let mode = number(Some(value), 8).filter(|&mode| mode <= 0o7777).ok_or("the mode is none")?;
                record.mode = Some(mode as u16);
            }
            "char" => record.device = Some(Device::Char(number(Some(value), 10).ok_or("the device is no number")?)),
            "block" => record.device = Some(Device::Block(number(Some(value), 10).ok_or("the device is no number")?)),
            "xattr" => {
                let (name, value) = value.split_once('=').ok_or("an attribute has no value")?;
                let name = unescape(name).ok_or("the name of an attribute is damaged")?;
                let value = unhex(value).ok_or("the value of an attribute is damaged")?;
                record.xattrs.insert(name.into(), value.into());
            }
            _ => return Err("the line has a field of an unknown name"),
        }
    }
    Ok((FileId { device, inode }, Generation(generation), record))
}

/// A number without a sign.
fn number(word: Option<&str>, radix: u32) -> Option<u64> {
    let word = word?;
    if word.starts_with('+') { None } else { u64::from_str_radix(word, radix).ok() }
}

fn unescape(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            bytes.push(hex_byte(after.get(..2)?)?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    Some(bytes).filter(|name| !name.is_empty() && !name.contains(&0))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(hex_byte).collect()
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    let [high, low] = *digits else { return None };
    Some((value(high)? * 16 + value(low)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(lines: &str, expected: &str) {
        let text = format!("{HEADER}{lines}");
        let outcome = match parse(text.as_bytes(), 5) {
            Ok(remembered) => format!("{} records", remembered.len()),
            Err(bad) => format!("{}: {}", bad.number, bad.why),
        };
        assert_eq!(outcome, expected, "{lines:?}");
    }

    #[test]
    fn later_lines_replace_earlier_ones() {
        check("file - 1 ab uid=33\nfile - 1 ab uid=34\nfile 7 1 ab uid=1\n", "2 records");
        check("file - 1 ab uid=33\nfile - 1 ab\n", "0 records");
    }

    #[test]
    fn a_line_that_was_cut_off_is_left_out() {
        check("file - 1 ab uid=33\nfile - 2 ab ui", "1 records");
    }

    #[test]
    fn damaged_lines_are_named() {
        check("fil - 1 ab\n", "2: the line does not begin with `file`");
        check("file x 1 ab\n", "2: the device is no number");
        check("file - -1 ab\n", "2: the inode is no number");
        check("file - 1 ab\nfile - 1 +ab\n", "3: the generation is no number");
        check("file - 1 ab uid=4294967296\n", "2: the owner is no id");
        check("file - 1 ab mode=17777\n", "2: the mode is none");
        check("file - 1 ab xattr=user.a=123\n", "2: the value of an attribute is damaged");
        check("file - 1 ab xattr=user.%0=12\n", "2: the name of an attribute is damaged");
        check("file - 1 ab size=1\n", "2: the line has a field of an unknown name");
    }

    #[test]
    fn another_file_is_no_such_text() {
        assert_eq!(parse(b"root:x:0:0\n", 0).unwrap_err().number, 1);
        assert!(parse(b"", 0).unwrap().is_empty());
    }

    #[test]
    fn the_device_of_the_text_may_change() {
        let file = FileId { device: 5, inode: 9 };
        let record = Record { gid: Some(8), ..Record::default() };
        let text = format!("{HEADER}{}", line(file, Generation(1), &record, 5));
        let elsewhere = parse(text.as_bytes(), 6).unwrap();
        assert_eq!(elsewhere.get(FileId { device: 6, inode: 9 }, Generation(1)), Some(&record));
    }

    fn record() -> impl Strategy<Value = Record> {
        let device = prop_oneof![any::<u64>().prop_map(Device::Char), any::<u64>().prop_map(Device::Block)];
        let bytes = prop::collection::vec(any::<u8>(), 0..40);
        let name = prop::collection::vec(1..=255_u8, 1..20);
        let xattrs = prop::collection::btree_map(name.prop_map(Into::into), bytes.prop_map(Into::into), 0..4);
        (any::<Option<u32>>(), any::<Option<u32>>(), prop::option::of(0..=0o7777_u16), prop::option::of(device), xattrs)
            .prop_map(|(uid, gid, mode, device, xattrs)| Record { uid, gid, mode, device, xattrs })
    }

    proptest! {
        #[test]
        fn a_line_reads_back_as_it_was(device: u64, inode: u64, generation: u64, record in record()) {
            let file = FileId { device, inode };
            let text = format!("{HEADER}{}", line(file, Generation(generation), &record, 3));
            let found = parse(text.as_bytes(), 3).unwrap();
            if record.is_empty() {
                prop_assert!(found.is_empty());
            } else {
                prop_assert_eq!(found.get(file, Generation(generation)), Some(&record));
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(lines in prop::collection::vec("[a-z0-9=%. -]{0,40}", 0..5)) {
            let _ = parse(format!("{HEADER}{}\n", lines.join("\n")).as_bytes(), 0);
        }
    }
}
