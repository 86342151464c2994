//! Backslash escapes, as `$'…'`, `printf` and `echo -e` understand them.

/// Whose escapes are meant; they differ in octal numbers and in `\c`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `$'…'`: `\nnn`, `\'`, `\"`.
    Ansi,
    /// The format of `printf`: `\nnn`.
    Format,
    /// `echo -e` and `%b`: `\0nnn`; `\c` ends the output.
    Echo,
}

/// Replaces the escapes in `text`; the flag tells that `\c` ended it.
pub fn unescape(text: &[u8], style: Style) -> (Vec<u8>, bool) {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some(&escape) = text.get(at) else {
            out.push(b'\\');
            break;
        };
        at += 1;
        match escape {
            b'a' => out.push(7),
            b'b' => out.push(8),
            b'e' | b'E' => out.push(27),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'\\' => out.push(b'\\'),
            b'\'' | b'"' if style != Style::Echo => out.push(escape),
            b'c' if style == Style::Echo => return (out, true),
            b'0'..=b'7' => {
                // `\0nnn` has its zero before the three digits, `\nnn` within them.
                let start = if style == Style::Echo && escape == b'0' { at } else { at - 1 };
                let (value, used) = digits(&text[start..], 8, 3);
                out.push(value as u8);
                at = start + used;
            }
            b'x' => match digits(&text[at..], 16, 2) {
                (_, 0) => out.extend(b"\\x"),
                (value, used) => {
                    out.push(value as u8);
                    at += used;
                }
            },
            b'u' | b'U' => match digits(&text[at..], 16, if escape == b'u' { 4 } else { 8 }) {
                (_, 0) => out.extend([b'\\', escape]),
                (value, used) => {
                    let character = char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER);
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    at += used;
                }
            },
            other => out.extend([b'\\', other]),
        }
    }
    // A NUL can be in no variable and no argument.
    out.retain(|&b| b != 0);
    (out, false)
}

/// The number at the start of `text`, of at most `most` digits, and how many there were.
fn digits(text: &[u8], radix: u32, most: usize) -> (u32, usize) {
    let mut value = 0u32;
    let mut used = 0;
    while used < most {
        let Some(digit) = text.get(used).and_then(|&b| char::from(b).to_digit(radix)) else { break };
        value = value.wrapping_mul(radix).wrapping_add(digit);
        used += 1;
    }
    (value, used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_style_has_its_own_octal_numbers() {
        assert_eq!(unescape(b"\\101\\0101", Style::Format).0, b"A\x081");
        assert_eq!(unescape(b"\\0101", Style::Echo).0, b"A");
        assert_eq!(unescape(b"a\\cb", Style::Echo), (b"a".to_vec(), true));
        assert_eq!(unescape(b"\\x41\\u00e9\\'", Style::Ansi).0, "A\u{e9}'".as_bytes());
        assert_eq!(unescape(b"end\\", Style::Ansi).0, b"end\\");
    }
}
