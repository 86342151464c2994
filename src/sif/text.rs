//! What `sif header`, `sif list` and `sif info` print, byte for byte as users' scripts expect it.
//!
//! Text that comes from the image is made harmless first: control characters become visible escapes.

use super::{Descriptor, Header, ImageId, Link, Object, Time, until_nul};
use crate::report::printable;
use std::fmt::Write;

/// The text of `sif header`: a line for each field that says something.
pub fn header(header: &Header, descriptors_free: u64) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    let launch = header.launch_line();
    if !launch.is_empty() {
        lines.push(("Launch Script:", visible(launch.strip_suffix(b"\n").unwrap_or(launch))));
    }
    // `Header::parse` takes no other.
    lines.push(("Version:", "01".to_owned()));
    if header.arch.is_known() {
        lines.push(("Primary Architecture:", header.arch.to_string()));
    }
    if header.id != ImageId::NIL {
        lines.push(("ID:", header.id.to_string()));
    }
    push_times(&mut lines, header.created, header.modified);
    lines.extend([
        ("Descriptors Free:", descriptors_free.to_string()),
        ("Descriptors Total:", header.descriptors_total.to_string()),
        ("Descriptors Offset:", header.table_offset.to_string()),
        ("Descriptors Size:", size(header.table_size)),
        ("Data Offset:", header.data_offset.to_string()),
        ("Data Size:", size(header.data_size)),
    ]);
    aligned(&lines, "", 1)
}

/// The text of `sif list`: a table of the objects.
pub fn list(objects: &[Object]) -> String {
    let rule = "-".repeat(78);
    let mut text = format!("{rule}\nID   |GROUP   |LINK    |SIF POSITION (start-end)  |TYPE\n{rule}\n");
    for Object { descriptor, .. } in objects {
        let link = match descriptor.linked() {
            Link::None => format!("|{:<7} ", "NONE"),
            Link::Group(id) => format!("|{id:<3} (G) "),
            Link::Object(id) => format!("|{id:<7} "),
        };
        let end = i128::from(descriptor.offset) + i128::from(descriptor.size);
        let position = format!("|{}-{end} ", descriptor.offset);
        let (id, group) = (descriptor.id, group(descriptor));
        let _ = writeln!(text, "{id:<4} |{group:<7} {link}{position:<26} |{}", type_of(descriptor));
    }
    text
}

/// The text of `sif info`: all that the descriptor says of an object.
pub fn info(descriptor: &Descriptor) -> String {
    let mut lines: Vec<(&str, String)> = vec![
        ("Data Type:", descriptor.data_type.name().to_owned()),
        ("ID:", descriptor.id.to_string()),
        ("Group ID:", group(descriptor)),
        (
            "Linked ID:",
            match descriptor.linked() {
                Link::None => "NONE".to_owned(),
                Link::Group(id) => format!("{id} (G)"),
                Link::Object(id) => id.to_string(),
            },
        ),
        ("Offset:", descriptor.offset.to_string()),
        ("Size:", descriptor.size.to_string()),
    ];
    push_times(&mut lines, descriptor.created, descriptor.modified);
    if !descriptor.name().is_empty() {
        lines.push(("Name:", visible(descriptor.name())));
    }
    if let Some(partition) = descriptor.partition() {
        lines.push(("Filesystem Type:", partition.fs.name().to_owned()));
        lines.push(("Partition Type:", partition.kind.name().to_owned()));
        lines.push(("Architecture:", partition.arch.to_string()));
    }
    if let Some(signature) = descriptor.signature() {
        lines.push(("Hash Type:", signature.hash.name().to_owned()));
        if signature.fingerprint != [0; 20] {
            let hex = signature.fingerprint.iter().map(|byte| format!("{byte:02X}")).collect();
            lines.push(("Entity:", hex));
        }
    }
    if let Some(message) = descriptor.crypto_message() {
        lines.push(("Format Type:", message.format.name().to_owned()));
        lines.push(("Message Type:", message.message.name().to_owned()));
    }
    if let Some(format) = descriptor.sbom() {
        lines.push(("Format:", format.name().to_owned()));
    }
    if let Some(digest) = descriptor.digest() {
        lines.push(("Digest:", digest.to_owned()));
    }
    aligned(&lines, "  ", 2)
}

/// Makes text of an image fit for one line on a terminal.
pub fn visible(text: &[u8]) -> String {
    printable(&String::from_utf8_lossy(until_nul(text))).replace('\n', "\\n").replace('\t', "\\t")
}

fn push_times(lines: &mut Vec<(&str, String)>, created: Time, modified: Time) {
    for (label, time) in [("Created At:", created), ("Modified At:", modified)] {
        if !time.is_unset() {
            lines.push((label, time.to_string()));
        }
    }
}

/// Labels in a column as wide as the longest of them and `gap` blanks.
fn aligned(lines: &[(&str, String)], indent: &str, gap: usize) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + gap;
    lines.iter().fold(String::new(), |mut text, (label, value)| {
        let _ = writeln!(text, "{indent}{label:width$}{value}");
        text
    })
}

fn group(descriptor: &Descriptor) -> String {
    descriptor.group_id().map_or("NONE".to_owned(), |id| id.to_string())
}

/// The last column of the list: the type, and what its `extra` adds.
fn type_of(descriptor: &Descriptor) -> String {
    let name = descriptor.data_type.name();
    if let Some(partition) = descriptor.partition() {
        format!("{name} ({}/{}/{})", partition.fs.name(), partition.kind.name(), partition.arch)
    } else if let Some(signature) = descriptor.signature() {
        format!("{name} ({})", signature.hash.name())
    } else if let Some(message) = descriptor.crypto_message() {
        format!("{name} ({}/{})", message.format.name(), message.message.name())
    } else if let Some(format) = descriptor.sbom() {
        format!("{name} ({})", format.name())
    } else {
        name.to_owned()
    }
}

/// A size in the unit that suits it, rounded: `0 B`, `27 KiB`.
fn size(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut unit, mut divisor) = (0, 1024i128);
    while i128::from(bytes) / divisor >= 1024 {
        unit += 1;
        divisor *= 1024;
    }
    format!("{} {}", (i128::from(bytes) + divisor / 2) / divisor, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sif::descriptor::tests::any_descriptor;
    use crate::sif::header::tests::any_header;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_rounded_to_a_whole_number_of_their_unit() {
        for (bytes, text) in [
            (-1, "-1 B"),
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1535, "1 KiB"),
            (1536, "2 KiB"),
            (28_080, "27 KiB"),
            (1_048_575, "1024 KiB"),
            (1_048_576, "1 MiB"),
            (i64::MAX, "8 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn text_of_an_image_cannot_move_the_cursor() {
        assert_eq!(visible(b"a\x1b[2Jb\nc\td\0e"), "a\\u{1b}[2Jb\\nc\\td");
        assert_eq!(visible(b"\xff\x9b"), "\u{fffd}\u{fffd}");
    }

    fn is_harmless(text: &str) -> bool {
        text.chars().all(|c| c == '\n' || !c.is_control())
    }

    proptest! {
        #[test]
        fn any_header_prints_without_control_characters(any in any_header()) {
            prop_assert!(is_harmless(&header(&any, 0)));
        }

        #[test]
        fn any_object_is_one_line_of_the_list(descriptor in any_descriptor()) {
            prop_assert!(is_harmless(&info(&descriptor)));
            let text = list(&[Object { slot: 0, descriptor, problem: None }]);
            prop_assert!(is_harmless(&text));
            prop_assert_eq!(text.lines().count(), 4);
        }
    }
}
