//! A binary package: an `ar` archive of three members, the last of them the package's files.
//!
//! ```text
//! !<arch>\n | header | 2.0\n | header | control.tar.xz | header | data.tar.xz
//!
//! header, 60 bytes:  name (16) | time (12) | owner (6) | group (6) | mode (8) | size (10) | `\n (2)
//! ```

use std::fmt;
use std::io::{self, BufRead, Read};

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER_BYTES: usize = 60;
/// Most members before the one that is looked for; there are two.
const MAX_MEMBERS: usize = 16;
/// What an xz decoder may allocate: the highest level of compression takes 65 MiB.
const XZ_MEMORY_BYTES: u64 = 192 << 20;
/// Largest window of a zstd stream, as a power of two.
const ZSTD_MAX_WINDOW_LOG: u32 = 27;

/// Why a file is no package.
#[derive(Debug)]
pub enum DebError {
    Read(io::Error),
    /// The file is no archive, or no package's.
    Damaged {
        why: &'static str,
    },
    /// The files are packed in a way that is not known.
    Compression {
        member: String,
    },
}

impl fmt::Display for DebError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(source) => f.write_str(&crate::report::cause(source)),
            Self::Damaged { why } => write!(f, "it is no Debian package: {why}"),
            Self::Compression { member } => {
                write!(f, "`{}` is packed neither with xz, zstd nor gzip", member.escape_debug())
            }
        }
    }
}

impl std::error::Error for DebError {}

/// Finds the files of a package, and gives them as a tar stream.
pub fn data<'a>(mut deb: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>, DebError> {
    let mut magic = [0; MAGIC.len()];
    read(&mut deb, &mut magic)?;
    if magic != *MAGIC {
        return Err(DebError::Damaged { why: "it does not begin as one" });
    }
    for number in 0..MAX_MEMBERS {
        let mut header = [0; HEADER_BYTES];
        read(&mut deb, &mut header)?;
        let name = String::from_utf8_lossy(&header[..16]).trim_end().trim_end_matches('/').to_owned();
        let size_bytes = std::str::from_utf8(&header[48..58]).ok().and_then(|text| text.trim_end().parse::<u64>().ok());
        let Some(size_bytes) = size_bytes.filter(|_| &header[58..] == b"`\n") else {
            return Err(DebError::Damaged { why: "a header of its archive is damaged" });
        };
        if number == 0 && name != "debian-binary" {
            return Err(DebError::Damaged { why: "its first member is another" });
        }
        if let Some(suffix) = name.strip_prefix("data.tar") {
            return unpacked(deb.take(size_bytes), suffix, &name);
        }
        let padded_bytes = size_bytes + size_bytes % 2;
        let skipped = io::copy(&mut (&mut deb).take(padded_bytes), &mut io::sink()).map_err(DebError::Read)?;
        if skipped < padded_bytes {
            return Err(DebError::Damaged { why: "it ends too early" });
        }
    }
    Err(DebError::Damaged { why: "it has too many members" })
}

fn read(source: &mut impl Read, buffer: &mut [u8]) -> Result<(), DebError> {
    source.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => DebError::Damaged { why: "it ends too early" },
        _ => DebError::Read(error),
    })
}

fn unpacked<'a>(member: impl BufRead + 'a, suffix: &str, name: &str) -> Result<Box<dyn Read + 'a>, DebError> {
    Ok(match suffix {
        "" => Box::new(member),
        ".gz" => Box::new(flate2::bufread::MultiGzDecoder::new(member)),
        ".xz" => Box::new(xz(member).map_err(DebError::Read)?),
        ".zst" => Box::new(zstd(member).map_err(DebError::Read)?),
        _ => return Err(DebError::Compression { member: name.to_owned() }),
    })
}

/// What is in an xz stream.
pub fn xz<R: BufRead>(source: R) -> io::Result<impl Read + use<R>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, liblzma::stream::CONCATENATED)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(source, stream))
}

fn zstd<R: BufRead>(source: R) -> io::Result<impl Read + use<R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
    decoder.window_log_max(ZSTD_MAX_WINDOW_LOG)?;
    Ok(decoder)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    fn member(name: &str, content: &[u8]) -> Vec<u8> {
        let header = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", content.len());
        let padding: &[u8] = if content.len() % 2 == 1 { b"\n" } else { b"" };
        [header.as_bytes(), content, padding].concat()
    }

    /// A package of these members behind the first.
    fn package(members: &[(&str, &[u8])]) -> Vec<u8> {
        let members = members.iter().flat_map(|(name, content)| member(name, content));
        [MAGIC.to_vec(), member("debian-binary", b"2.0\n")].concat().into_iter().chain(members).collect()
    }

    fn content(package: &[u8]) -> Result<Vec<u8>, DebError> {
        let mut bytes = Vec::new();
        data(package)?.read_to_end(&mut bytes).map_err(DebError::Read)?;
        Ok(bytes)
    }

    #[track_caller]
    fn check_error(package: &[u8], expected: &str) {
        assert_eq!(content(package).expect_err("an error").to_string(), expected);
    }

    #[test]
    fn the_files_are_behind_the_control_files() {
        let bytes = b"files".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&bytes).unwrap();
        let xz = xz.finish().unwrap();
        let zstd = zstd::bulk::compress(&bytes, 1).unwrap();
        for (name, packed) in
            [("data.tar", &bytes), ("data.tar.gz", &gzip), ("data.tar.xz", &xz), ("data.tar.zst", &zstd)]
        {
            assert_eq!(content(&package(&[("control.tar.xz", b"odd"), (name, packed)])).unwrap(), bytes, "{name}");
            let slashed = format!("{name}/");
            assert_eq!(content(&package(&[(&slashed, packed)])).unwrap(), bytes, "{slashed}");
        }
    }

    #[test]
    fn what_is_no_package_is_an_error() {
        let damaged = |why| format!("it is no Debian package: {why}");
        check_error(b"", &damaged("it ends too early"));
        check_error(b"#!/bin/sh\n...", &damaged("it does not begin as one"));
        check_error(&package(&[]), &damaged("it ends too early"));
        let other = [MAGIC.to_vec(), member("control.tar", b"")].concat();
        check_error(&other, &damaged("its first member is another"));
        let many = [("x", &b""[..]); 20];
        check_error(&package(&many), &damaged("it has too many members"));
        check_error(&package(&[("data.tar.bz2", b"")]), "`data.tar.bz2` is packed neither with xz, zstd nor gzip");
        let mut wrong = package(&[("data.tar", b"x")]);
        wrong[8 + 48] = b'-';
        check_error(&wrong, &damaged("a header of its archive is damaged"));
        let mut long = package(&[("control.tar", b"xx")]);
        let at = long.len() - 2 - 12;
        long[at..at + 10].copy_from_slice(b"9999999999");
        check_error(&long, &damaged("it ends too early"));
    }

    #[test]
    fn a_stream_that_is_cut_is_an_error_and_not_an_end() {
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&b"files".repeat(1000)).unwrap();
        let xz = xz.finish().unwrap();
        assert!(content(&package(&[("data.tar.xz", &xz[..xz.len() - 5])])).is_err());
    }
}
