//! A layer's blob as the tar stream in it: gzip, zstd or plain, told apart by its first bytes.
//!
//! What a media type says of the compression is not believed: registries hold blobs that are not what they are called.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many times its own size a blob may grow. A gzip stream can't exceed 1032; a layer of nothing but zeros, in zstd,
/// can.
const MAX_RATIO: u64 = 1100;
/// What any blob may grow to, whatever its size.
const ALWAYS_BYTES: u64 = 1 << 30;
/// Largest window of a zstd stream, as a power of two: 128 MiB, what its own tools take without being told.
const MAX_WINDOW_LOG: u32 = 27;

/// The uncompressed stream of `blob`.
///
/// # Errors
/// The first bytes can't be read, or are of a compression that layers don't have.
pub fn inflate<'a>(blob: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let taken_bytes = Arc::new(AtomicU64::new(0));
    let mut blob = Counted { blob, taken_bytes: taken_bytes.clone() };
    let start = blob.fill_buf()?;
    let is = |magic: &[u8]| start.starts_with(magic);
    // A zstd stream can begin with a frame that decoders pass over.
    let is_skippable = start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
    let decoder: Box<dyn Read + Send> = if is(b"\x1f\x8b") {
        Box::new(flate2::bufread::MultiGzDecoder::new(blob))
    } else if is(b"\x28\xb5\x2f\xfd") || is_skippable {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
        decoder.window_log_max(MAX_WINDOW_LOG)?;
        Box::new(decoder)
    } else if is(b"\xfd7zXZ\0") || is(b"BZh") {
        let why = "it is compressed with xz or bzip2; layers are gzip, zstd or plain";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    } else {
        return Ok(Box::new(blob));
    };
    Ok(Box::new(Bounded { decoder, taken_bytes, given_bytes: 0 }))
}

/// A blob that counts what is taken of it.
struct Counted<R> {
    blob: R,
    taken_bytes: Arc<AtomicU64>,
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.blob.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.taken_bytes.fetch_add(amount as u64, Ordering::Relaxed);
        self.blob.consume(amount);
    }
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        self.taken_bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// A decoder whose output stays in proportion to its input.
struct Bounded<R> {
    decoder: R,
    taken_bytes: Arc<AtomicU64>,
    given_bytes: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.given_bytes += count as u64;
        let allowed_bytes = self.taken_bytes.load(Ordering::Relaxed).saturating_mul(MAX_RATIO).max(ALWAYS_BYTES);
        if self.given_bytes > allowed_bytes {
            let why = format!("it unpacks to more than {MAX_RATIO} times its size");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn unpacked(blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        inflate(blob)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_first_bytes_tell_the_compression() {
        let bytes = b"hello".repeat(1000);
        assert_eq!(unpacked(&gzip(&bytes)).unwrap(), bytes);
        assert_eq!(unpacked(&zstd::bulk::compress(&bytes, 3).unwrap()).unwrap(), bytes);
        assert_eq!(unpacked(&bytes).unwrap(), bytes);
        assert_eq!(unpacked(b"").unwrap(), b"");
    }

    #[test]
    fn members_and_frames_behind_the_first_belong_to_the_stream() {
        assert_eq!(unpacked(&[gzip(b"one"), gzip(b"two")].concat()).unwrap(), b"onetwo");
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let frames =
            [&skipped[..], &zstd::bulk::compress(b"one", 1).unwrap(), &zstd::bulk::compress(b"two", 1).unwrap()];
        assert_eq!(unpacked(&frames.concat()).unwrap(), b"onetwo");
    }

    #[test]
    fn a_stream_that_is_cut_is_an_error_and_not_an_end() {
        let whole = gzip(&b"abcdefgh".repeat(1000));
        assert!(unpacked(&whole[..whole.len() - 9]).is_err());
        let whole = zstd::bulk::compress(&b"abcdefgh".repeat(1000), 3).unwrap();
        assert!(unpacked(&whole[..whole.len() - 1]).is_err());
    }

    #[test]
    fn what_grows_out_of_all_proportion_is_refused() {
        // Two GiB of zeros, in some dozens of KiB.
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        std::io::copy(&mut std::io::repeat(0).take(2 << 30), &mut encoder).unwrap();
        let bomb = encoder.finish().unwrap();
        let error = std::io::copy(&mut inflate(&bomb[..]).unwrap(), &mut std::io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "it unpacks to more than 1100 times its size");
    }

    #[test]
    fn other_compressions_are_named() {
        assert!(unpacked(b"\xfd7zXZ\0...").unwrap_err().to_string().contains("xz or bzip2"));
    }
}
