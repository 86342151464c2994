//! The compressors of the format, one call each: bytes in, smaller bytes out, or the news that they don't get smaller.

use super::{WriteError, metadata};
use std::io::Cursor;

use libdeflater::{CompressionLvl, Compressor as Deflate};
use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};

/// How blocks and metadata are compressed. Levels are those of the library: 1 to 12 for gzip (libdeflate), 1 to 22 for
/// zstd, 0 to 9 for xz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip { level: u8 },
    Lz4,
    Xz { level: u8 },
    Zstd { level: u8 },
}

impl Compression {
    /// The default level of each.
    pub const GZIP: Self = Self::Gzip { level: 6 };
    pub const XZ: Self = Self::Xz { level: 6 };
    pub const ZSTD: Self = Self::Zstd { level: 6 };

    /// The number in the superblock. An image without compression has that of gzip, and no block that is compressed.
    pub(super) fn id(self) -> u16 {
        match self {
            Self::None | Self::Gzip { .. } => 1,
            Self::Xz { .. } => 4,
            Self::Lz4 => 5,
            Self::Zstd { .. } => 6,
        }
    }

    pub(super) fn flags(self) -> u16 {
        const UNCOMPRESSED_INODES: u16 = 0x1;
        const UNCOMPRESSED_DATA: u16 = 0x2;
        const UNCOMPRESSED_FRAGMENTS: u16 = 0x8;
        const UNCOMPRESSED_XATTRS: u16 = 0x100;
        const COMPRESSOR_OPTIONS: u16 = 0x400;
        const UNCOMPRESSED_IDS: u16 = 0x800;
        match self {
            Self::None => {
                UNCOMPRESSED_INODES
                    | UNCOMPRESSED_DATA
                    | UNCOMPRESSED_FRAGMENTS
                    | UNCOMPRESSED_XATTRS
                    | UNCOMPRESSED_IDS
            }
            Self::Lz4 => COMPRESSOR_OPTIONS,
            Self::Gzip { .. } | Self::Xz { .. } | Self::Zstd { .. } => 0,
        }
    }

    /// The compressor options behind the superblock, a metadata block of their own. Only lz4 must have them (its
    /// version, and no flags); the others describe themselves.
    pub(super) fn stored_options(self) -> Vec<u8> {
        match self {
            Self::Lz4 => [0x8008_u16.to_le_bytes().as_slice(), &1_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat(),
            _ => Vec::new(),
        }
    }
}

/// A compressor with its working memory, for one thread.
pub(super) enum Compressor {
    None,
    Gzip(Deflate),
    Lz4,
    Xz(LzmaOptions),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// For data in blocks of `block_bytes`.
    pub(super) fn for_data(compression: Compression, block_bytes: usize) -> Result<Self, WriteError> {
        let mut compressor = Self::new(compression)?;
        if let Self::Xz(options) = &mut compressor {
            // The kernel allocates one dictionary of a block's size, at least this large.
            options.dict_size(block_bytes.max(metadata::BLOCK_BYTES) as u32);
        }
        Ok(compressor)
    }

    /// For metadata, whose blocks are small.
    pub(super) fn new(compression: Compression) -> Result<Self, WriteError> {
        let failed = |reason: String| WriteError::Compress { reason };
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Lz4 => Self::Lz4,
            Compression::Gzip { level } => {
                let level =
                    CompressionLvl::new(i32::from(level)).map_err(|e| failed(format!("level {level}: {e:?}")))?;
                Self::Gzip(Deflate::new(level))
            }
            Compression::Xz { level } => {
                let mut options = LzmaOptions::new_preset(u32::from(level)).map_err(|e| failed(e.to_string()))?;
                options.dict_size(metadata::BLOCK_BYTES as u32);
                Self::Xz(options)
            }
            Compression::Zstd { level } => {
                Self::Zstd(zstd::bulk::Compressor::new(i32::from(level)).map_err(|e| failed(e.to_string()))?)
            }
        })
    }

    /// Appends `input` to `output`, compressed. When that would not make it smaller, appends nothing and returns false.
    pub(super) fn append(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool, WriteError> {
        let failed = |reason: String| WriteError::Compress { reason };
        let start = output.len();
        let written = match self {
            Self::None => None,
            Self::Gzip(deflate) => {
                // Room for less than the input: libdeflate gives up when it does not fit.
                output.resize(start + input.len().saturating_sub(1), 0);
                deflate.zlib_compress(input, &mut output[start..]).ok()
            }
            Self::Lz4 => {
                output.resize(start + lz4_flex::block::get_maximum_output_size(input.len()), 0);
                let answer = lz4_flex::block::compress_into(input, &mut output[start..]);
                Some(answer.map_err(|e| failed(e.to_string()))?)
            }
            Self::Xz(options) => {
                output.resize(start + input.len(), 0);
                let mut filters = Filters::new();
                filters.lzma2(options);
                let mut stream =
                    Stream::new_stream_encoder(&filters, Check::Crc32).map_err(|e| failed(e.to_string()))?;
                let status =
                    stream.process(input, &mut output[start..], Action::Finish).map_err(|e| failed(e.to_string()))?;
                (status == Status::StreamEnd).then(|| stream.total_out() as usize)
            }
            Self::Zstd(zstd) => {
                // Behind what is there, into memory that need not be filled with zeros before.
                output.reserve(zstd::zstd_safe::compress_bound(input.len()));
                let mut behind = Cursor::new(std::mem::take(output));
                behind.set_position(start as u64);
                let written = zstd.compress_to_buffer(input, &mut behind);
                *output = behind.into_inner();
                Some(written.map_err(|e| failed(e.to_string()))?)
            }
        };
        let kept = written.filter(|&written| written < input.len());
        output.truncate(start + kept.unwrap_or(0));
        Ok(kept.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::BLOCK_BYTES;
    use super::*;

    const ALL: [Compression; 5] =
        [Compression::None, Compression::GZIP, Compression::Lz4, Compression::XZ, Compression::ZSTD];

    #[test]
    fn what_repeats_gets_smaller_and_is_appended() {
        for compression in &ALL[1..] {
            let mut output = b"before".to_vec();
            let mut compressor = Compressor::for_data(*compression, BLOCK_BYTES).unwrap();
            assert!(compressor.append(&[7; BLOCK_BYTES], &mut output).unwrap());
            assert!(output.starts_with(b"before") && output.len() < 2000, "{compression:?}: {}", output.len());
        }
    }

    #[test]
    fn what_does_not_get_smaller_is_not_appended() {
        for compression in ALL {
            let mut output = b"before".to_vec();
            let mut compressor = Compressor::new(compression).unwrap();
            for input in [b"".as_slice(), b"x", b"q8Zk2#"] {
                assert!(!compressor.append(input, &mut output).unwrap(), "{compression:?}");
                assert_eq!(output, b"before");
            }
        }
    }

    #[test]
    fn a_level_that_the_library_lacks_is_an_error() {
        let error = Compressor::new(Compression::Gzip { level: 13 }).err().unwrap();
        assert!(matches!(error, WriteError::Compress { reason } if reason.contains("13")));
    }
}
