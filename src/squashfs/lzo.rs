//! LZO1X decompression, every copy checked against both buffers.
//!
//! A stream is a sequence of instructions; the high bits of the first byte choose the form, and the two low bits of
//! every match give a number of literals that follow it (`state`). The state decides what a byte below 16 means.
//!
//! ```text
//! 1LLDDDSS H            match of 5..8 within 2 KiB        01LDDDSS H   match of 3..4 within 2 KiB
//! 001LLLLL D..DSS (16)  match within 16 KiB               0001HLLL D..DSS (16)  match within 16..48 KiB, or the end
//! 0000LLLL              state 0: literals; state 1..3: match of 2 within 1 KiB; state 4: match of 3 within 2..3 KiB
//! ```

/// Decompresses the LZO1X stream `packed` into `out`; gives the number of bytes written, or `None` if the stream is
/// damaged or needs more room.
pub(super) fn decompress(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut input = Input { bytes: packed, at: 0 };
    let mut done = 0;
    let mut state = 0;
    let first = usize::from(*packed.first()?);
    if first > 17 {
        input.at = 1;
        let literals = first - 17;
        input.copy(out, &mut done, literals)?;
        state = literals.min(4);
    }
    loop {
        let code = input.byte()?;
        let (length, distance, literals) = match code {
            64.. => ((code >> 5) + 1, ((code >> 2) & 7) + (input.byte()? << 3) + 1, code & 3),
            32.. => {
                let length = input.length(code & 31, 31)? + 2;
                let tail = input.pair()?;
                (length, (tail >> 2) + 1, tail & 3)
            }
            16.. => {
                let length = input.length(code & 7, 7)? + 2;
                let tail = input.pair()?;
                let distance = ((code & 8) << 11) + (tail >> 2);
                if distance == 0 {
                    return (length == 3).then_some(done);
                }
                (length, distance + 16384, tail & 3)
            }
            _ if state == 0 => {
                let literals = input.length(code, 15)? + 3;
                input.copy(out, &mut done, literals)?;
                state = 4;
                continue;
            }
            _ if state == 4 => (3, (code >> 2) + (input.byte()? << 2) + 2049, code & 3),
            _ => (2, (code >> 2) + (input.byte()? << 2) + 1, code & 3),
        };
        let from = done.checked_sub(distance)?;
        let end = done.checked_add(length).filter(|&end| end <= out.len())?;
        if distance >= length {
            out.copy_within(from..from + length, done);
        } else {
            // The match overlaps what it writes: bytes repeat with the period `distance`.
            for at in done..end {
                out[at] = out[at - distance];
            }
        }
        done = end;
        input.copy(out, &mut done, literals)?;
        state = literals;
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Option<usize> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(usize::from(byte))
    }

    fn pair(&mut self) -> Option<usize> {
        Some(self.byte()? | self.byte()? << 8)
    }

    /// A length of which `bits` came with the instruction; 0 there means that bytes of its own follow, after `base`.
    fn length(&mut self, bits: usize, base: usize) -> Option<usize> {
        if bits != 0 {
            return Some(bits);
        }
        let mut length = base;
        loop {
            match self.byte()? {
                // One zero byte of input each, so the sum is at most 255 times the input's length.
                0 => length += 255,
                last => return Some(length + last),
            }
        }
    }

    fn copy(&mut self, out: &mut [u8], done: &mut usize, count: usize) -> Option<()> {
        let end = self.at.checked_add(count)?;
        let target = out.get_mut(*done..done.checked_add(count)?)?;
        target.copy_from_slice(self.bytes.get(self.at..end)?);
        self.at = end;
        *done += count;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::decompress;

    const END: [u8; 3] = [0x11, 0, 0];

    fn check(stream: &[u8], expected: Option<&[u8]>) {
        let mut out = [0; 64];
        let length = decompress(stream, &mut out);
        assert_eq!(length.map(|n| &out[..n]), expected);
    }

    #[test]
    fn literals_and_an_overlapping_match_are_decoded() {
        check(&[&[17 + 4], &b"abcd"[..], &END].concat(), Some(b"abcd"));
        // 01LDDDSS: 3 bytes at distance 1.
        check(&[&[17 + 4], &b"abcd"[..], &[0b0100_0000, 0], &END].concat(), Some(b"abcdddd"));
    }

    #[test]
    fn a_match_before_the_start_is_refused() {
        check(&[&[17 + 4], &b"abcd"[..], &[0b0101_0000, 0], &END].concat(), None);
    }

    #[test]
    fn streams_that_end_early_or_outgrow_the_block_are_refused() {
        check(&[], None);
        check(&[17 + 4, b'a'], None);
        check(&[&[17 + 4], &b"abcd"[..]].concat(), None);
        // 001LLLLL with 31 + 255 + 2 bytes more than fit.
        check(&[&[17 + 4], &b"abcd"[..], &[0b0010_0000, 0, 1, 0, 0], &END].concat(), None);
    }

    proptest::proptest! {
        #[test]
        fn no_stream_makes_it_panic(stream: Vec<u8>) {
            let mut out = [0; 4096];
            let _ = decompress(&stream, &mut out);
        }
    }
}
