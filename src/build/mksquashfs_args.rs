//! The options of `mksquashfs` that build scripts pass on (`--mksquashfs-args`): compressor, level, block size, threads,
//! owners. Options that ask for what happens anyway are accepted; what can't be had is refused by name, never ignored.

use crate::report::Hint;
use crate::squashfs::write::{BLOCK_BYTES_RANGE, Compression};
use std::fmt;
use std::num::NonZeroUsize;

/// What the options ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub compression: Option<Compression>,
    /// A power of two that the format allows.
    pub block_bytes: Option<usize>,
    pub threads: Option<NonZeroUsize>,
    /// User and group 0 own everything.
    pub all_root: bool,
}

/// An option that can't be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgsError {
    Unknown { option: String },
    NoValue { option: String },
    BadValue { option: String, value: String, expected: &'static str },
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { option } => write!(f, "mksquashfs option `{option}` is not supported"),
            Self::NoValue { option } => write!(f, "mksquashfs option `{option}` needs a value"),
            Self::BadValue { option, value, expected } => {
                write!(f, "mksquashfs option `{option}` cannot be `{value}`: expected {expected}")
            }
        }
    }
}

impl std::error::Error for ArgsError {}

impl Hint for ArgsError {
    fn hints(&self) -> Vec<String> {
        vec!["Known are -comp, -Xcompression-level, -no-compression, -b, -processors and -all-root.".to_owned()]
    }
}

/// Reads options that are separated by blanks.
pub fn parse(text: &str) -> Result<Asked, ArgsError> {
    let mut words = text.split_whitespace();
    let mut asked = Asked::default();
    let mut compressor = None;
    let mut level = None;
    let mut uncompressed = false;
    while let Some(option) = words.next() {
        let mut value = || words.next().ok_or_else(|| ArgsError::NoValue { option: option.to_owned() });
        let bad = |value: &str, expected| ArgsError::BadValue {
            option: option.to_owned(),
            value: value.to_owned(),
            expected,
        };
        match option {
            "-comp" => compressor = Some(value()?),
            "-Xcompression-level" => {
                let value = value()?;
                level = Some(value.parse::<u8>().map_err(|_| bad(value, "a number"))?);
            }
            "-no-compression" => uncompressed = true,
            "-b" => {
                let value = value()?;
                let bytes = block_bytes(value).ok_or_else(|| bad(value, "a power of two from 4K to 1M"))?;
                asked.block_bytes = Some(bytes);
            }
            "-all-root" => asked.all_root = true,
            // A new image is made, silently for its maker; there is nothing to recover, and little memory is used.
            "-noappend" | "-no-progress" | "-progress" | "-quiet" | "-no-recovery" | "-exports" => {}
            "-mem" => {
                value()?;
            }
            "-processors" => {
                let value = value()?;
                asked.threads = Some(value.parse().map_err(|_| bad(value, "a number from 1"))?);
            }
            other => return Err(ArgsError::Unknown { option: other.to_owned() }),
        }
    }
    asked.compression = if uncompressed { Some(Compression::None) } else { compression(compressor, level)? };
    Ok(asked)
}

/// Reads `131072`, `128K` or `1M`.
fn block_bytes(text: &str) -> Option<usize> {
    let (number, unit) = match text.strip_suffix(['k', 'K']) {
        Some(number) => (number, 1 << 10),
        None => text.strip_suffix(['m', 'M']).map_or((text, 1), |number| (number, 1 << 20)),
    };
    let bytes = number.parse::<usize>().ok()?.checked_mul(unit)?;
    let (least, most) = BLOCK_BYTES_RANGE;
    (bytes.is_power_of_two() && (least..=most).contains(&bytes)).then_some(bytes)
}

fn compression(name: Option<&str>, level: Option<u8>) -> Result<Option<Compression>, ArgsError> {
    // mksquashfs compresses by gzip unless told otherwise, so that is whose level a level alone is.
    let name = match (name, level) {
        (Some(name), _) => name,
        (None, Some(_)) => "gzip",
        (None, None) => return Ok(None),
    };
    let (default, highest, expected) = match name {
        "gzip" => (Compression::GZIP, 9, "1 to 9"),
        "zstd" => (Compression::ZSTD, 22, "1 to 22"),
        "xz" => (Compression::XZ, 0, "nothing: xz has no levels there"),
        "lz4" => (Compression::Lz4, 0, "nothing: lz4 has no levels"),
        other => {
            return Err(ArgsError::BadValue {
                option: "-comp".to_owned(),
                value: other.to_owned(),
                expected: "gzip, zstd, xz or lz4",
            });
        }
    };
    Ok(Some(match level {
        None => default,
        Some(level) if (1..=highest).contains(&level) => match default {
            Compression::Zstd { .. } => Compression::Zstd { level },
            _ => Compression::Gzip { level },
        },
        Some(level) => {
            let option = "-Xcompression-level".to_owned();
            return Err(ArgsError::BadValue { option, value: level.to_string(), expected });
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<Option<Compression>, &str>) {
        let actual = parse(text).map(|asked| asked.compression).map_err(|error| error.to_string());
        assert_eq!(actual, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn a_compressor_and_its_level_are_understood() {
        check("", Ok(None));
        check("-comp gzip", Ok(Some(Compression::GZIP)));
        check(" -comp zstd  -Xcompression-level 19 ", Ok(Some(Compression::Zstd { level: 19 })));
        check("-Xcompression-level 9 -b 128K", Ok(Some(Compression::Gzip { level: 9 })));
        check("-comp xz", Ok(Some(Compression::XZ)));
        check("-comp lz4", Ok(Some(Compression::Lz4)));
        check("-no-compression", Ok(Some(Compression::None)));
    }

    #[test]
    fn options_that_ask_for_what_happens_anyway_change_nothing() {
        assert_eq!(parse("-noappend -no-progress -quiet -mem 2G -exports"), Ok(Asked::default()));
        assert_eq!(parse("-mem"), Err(ArgsError::NoValue { option: "-mem".to_owned() }));
    }

    #[test]
    fn a_block_size_is_a_power_of_two_that_the_format_has() {
        let bytes = |text: &str| parse(&format!("-b {text}")).ok().and_then(|asked| asked.block_bytes);
        assert_eq!([bytes("131072"), bytes("4K"), bytes("1M")], [Some(131_072), Some(4096), Some(1 << 20)]);
        for text in ["0", "2K", "2M", "100K", "k", "-4K", "1G", "99999999999999999999"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn owners_are_asked_for_by_one_word() {
        assert!(parse("-all-root").unwrap().all_root && !parse("").unwrap().all_root);
    }

    #[test]
    fn what_can_not_be_had_is_refused_by_name() {
        check("-comp lzo", Err("mksquashfs option `-comp` cannot be `lzo`: expected gzip, zstd, xz or lz4"));
        check("-noI", Err("mksquashfs option `-noI` is not supported"));
        check("-comp", Err("mksquashfs option `-comp` needs a value"));
        check("-b 2M", Err("mksquashfs option `-b` cannot be `2M`: expected a power of two from 4K to 1M"));
        check("-no-fragments", Err("mksquashfs option `-no-fragments` is not supported"));
        check(
            "-comp lz4 -Xcompression-level 3",
            Err("mksquashfs option `-Xcompression-level` cannot be `3`: expected nothing: lz4 has no levels"),
        );
        check(
            "-comp gzip -Xcompression-level 0",
            Err("mksquashfs option `-Xcompression-level` cannot be `0`: expected 1 to 9"),
        );
    }

    #[test]
    fn threads_are_a_number_from_one() {
        assert_eq!(parse("-processors 3").unwrap().threads, NonZeroUsize::new(3));
        assert!(parse("-processors 0").is_err());
    }
}
