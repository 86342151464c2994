//! Decompression of blocks, one door per outside library. Contexts and the buffer for packed bytes belong to the
//! thread and are used again, so that nothing is allocated per block.

use super::Compression;
use super::error::SquashfsError;
use super::lzo;
use super::source::{ReadAt, read_exact};
use liblzma::stream::{Action, Status, Stream};
use std::cell::RefCell;

/// What an xz or lzma decoder may allocate: dictionaries of SquashFS are as large as a block, 1 MiB at most.
const LZMA_MEMORY_BYTES: u64 = 16 << 20;

#[derive(Default)]
struct Contexts {
    packed: Vec<u8>,
    deflate: Option<libdeflater::Decompressor>,
    zstd: Option<zstd::zstd_safe::DCtx<'static>>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::default();
}

/// Reads `packed_bytes` at `offset_bytes` and decompresses them into `out`; gives the length of the result.
pub(super) fn read_packed(
    source: &dyn ReadAt,
    compression: Compression,
    offset_bytes: u64,
    packed_bytes: usize,
    out: &mut [u8],
) -> Result<usize, SquashfsError> {
    CONTEXTS.with_borrow_mut(|contexts| {
        let mut packed = std::mem::take(&mut contexts.packed);
        if packed.len() < packed_bytes {
            packed.resize(packed_bytes, 0);
        }
        let read = read_exact(source, &mut packed[..packed_bytes], offset_bytes);
        let length = read.and_then(|()| {
            inflate(contexts, compression, &packed[..packed_bytes], out).ok_or(SquashfsError::Inflate { offset_bytes })
        });
        contexts.packed = packed;
        length
    })
}

/// Decompresses `packed` into `out`; `None` if it is damaged or needs more room than `out` has.
pub(super) fn decompress(compression: Compression, packed: &[u8], out: &mut [u8]) -> Option<usize> {
    CONTEXTS.with_borrow_mut(|contexts| inflate(contexts, compression, packed, out))
}

fn inflate(contexts: &mut Contexts, compression: Compression, packed: &[u8], out: &mut [u8]) -> Option<usize> {
    match compression {
        Compression::Gzip => {
            contexts.deflate.get_or_insert_with(libdeflater::Decompressor::new).zlib_decompress(packed, out).ok()
        }
        Compression::Zstd => {
            if contexts.zstd.is_none() {
                contexts.zstd = zstd::zstd_safe::DCtx::try_create();
            }
            contexts.zstd.as_mut()?.decompress(out, packed).ok()
        }
        Compression::Lz4 => lz4_flex::block::decompress_into(packed, out).ok(),
        Compression::Lzo => lzo::decompress(packed, out),
        Compression::Xz => run(Stream::new_stream_decoder(LZMA_MEMORY_BYTES, 0).ok()?, packed, out),
        Compression::Lzma => run(Stream::new_lzma_decoder(LZMA_MEMORY_BYTES).ok()?, packed, out),
    }
}

fn run(mut decoder: Stream, packed: &[u8], out: &mut [u8]) -> Option<usize> {
    match decoder.process(packed, out, Action::Finish) {
        Ok(Status::StreamEnd) => usize::try_from(decoder.total_out()).ok(),
        _ => None,
    }
}
