//! The options of `mksquashfs` that build scripts pass on (`--mksquashfs-args`): compressor, level, threads. What has no
//! meaning here is refused by name, never ignored.

use crate::report::Hint;
use crate::squashfs::write::{BLOCK_BYTES, Compression};
use std::fmt;
use std::num::NonZeroUsize;

/// What the options ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub compression: Option<Compression>,
    pub threads: Option<NonZeroUsize>,
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
        vec!["Known are -comp, -Xcompression-level, -b 128K and -processors.".to_owned()]
    }
}

/// Reads options that are separated by blanks.
pub fn parse(text: &str) -> Result<Asked, ArgsError> {
    let mut words = text.split_whitespace();
    let mut asked = Asked::default();
    let mut compressor = None;
    let mut level = None;
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
            "-b" => {
                let value = value()?;
                if !["128K", "128k", "131072"].contains(&value) {
                    return Err(bad(value, "128K, the one block size of this version"));
                }
            }
            "-processors" => {
                let value = value()?;
                asked.threads = Some(value.parse().map_err(|_| bad(value, "a number from 1"))?);
            }
            other => return Err(ArgsError::Unknown { option: other.to_owned() }),
        }
    }
    debug_assert_eq!(BLOCK_BYTES, 128 << 10);
    asked.compression = compression(compressor, level)?;
    Ok(asked)
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
    }

    #[test]
    fn what_can_not_be_had_is_refused_by_name() {
        check("-comp lzo", Err("mksquashfs option `-comp` cannot be `lzo`: expected gzip, zstd, xz or lz4"));
        check("-noI", Err("mksquashfs option `-noI` is not supported"));
        check("-comp", Err("mksquashfs option `-comp` needs a value"));
        check("-b 1M", Err("mksquashfs option `-b` cannot be `1M`: expected 128K, the one block size of this version"));
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
