//! Patterns of `case`, `${x#…}` and file names: `*`, `?`, `[…]`.

use super::evaluate::{Fuel, Stop};

/// Text whose bytes know whether they were quoted; quoted ones stand for themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    pub text: Vec<u8>,
    pub quoted: Vec<bool>,
}

impl Marked {
    pub fn push(&mut self, bytes: &[u8], quoted: bool) {
        self.text.extend_from_slice(bytes);
        self.quoted.resize(self.text.len(), quoted);
    }

    /// Whether an unquoted pattern character is in it.
    pub fn has_pattern(&self) -> bool {
        let plain = |at: &usize| !self.quoted[*at];
        may_be_pattern(&self.text)
            && (0..self.text.len()).filter(plain).any(|at| matches!(self.text[at], b'*' | b'?' | b'['))
    }

    /// The part between two positions.
    pub fn slice(&self, from: usize, to: usize) -> Self {
        Self { text: self.text[from..to].to_vec(), quoted: self.quoted[from..to].to_vec() }
    }
}

/// Whether text holds what a pattern is made of; a `[` alone (the command) does not.
pub fn may_be_pattern(text: &[u8]) -> bool {
    text.iter().any(|b| matches!(b, b'*' | b'?'))
        || text.iter().position(|&b| b == b'[').is_some_and(|at| text[at..].contains(&b']'))
}

enum Token {
    Byte(u8),
    One,
    Many,
    Set { negated: bool, ranges: Vec<(u8, u8)> },
}

/// A pattern ready to match.
pub struct Pattern(Vec<Token>);

impl Pattern {
    pub fn new(marked: &Marked) -> Self {
        let mut tokens = Vec::new();
        let mut at = 0;
        while at < marked.text.len() {
            let byte = marked.text[at];
            at += 1;
            tokens.push(match byte {
                _ if marked.quoted[at - 1] => Token::Byte(byte),
                b'*' => Token::Many,
                b'?' => Token::One,
                b'\\' if at < marked.text.len() => {
                    at += 1;
                    Token::Byte(marked.text[at - 1])
                }
                b'[' => match set(marked, at) {
                    Some((token, end)) => {
                        at = end;
                        token
                    }
                    None => Token::Byte(b'['),
                },
                _ => Token::Byte(byte),
            });
        }
        Self(tokens)
    }

    /// Whether the pattern fits all of `text`. Takes at most their lengths' product of steps.
    pub fn matches(&self, text: &[u8], fuel: &mut Fuel) -> Result<bool, Stop> {
        let tokens = &self.0;
        let (mut token, mut at) = (0, 0);
        // After the last `*`: where to go on when what follows it does not fit.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            fuel.burn(1)?;
            let fits = match tokens.get(token) {
                Some(Token::Many) => {
                    retry = Some((token + 1, at));
                    token += 1;
                    continue;
                }
                Some(t) => text.get(at).is_some_and(|&b| t.fits(b)),
                None if at == text.len() => return Ok(true),
                None => false,
            };
            if fits {
                token += 1;
                at += 1;
                continue;
            }
            match retry {
                Some((after, from)) if from < text.len() => {
                    retry = Some((after, from + 1));
                    token = after;
                    at = from + 1;
                }
                _ => return Ok(false),
            }
        }
    }
}

impl Token {
    fn fits(&self, byte: u8) -> bool {
        match self {
            Self::Byte(b) => *b == byte,
            Self::One => true,
            Self::Many => false,
            Self::Set { negated, ranges } => ranges.iter().any(|(a, b)| (*a..=*b).contains(&byte)) != *negated,
        }
    }
}

/// The set that begins after a `[` at `at`, and where it ends.
fn set(marked: &Marked, mut at: usize) -> Option<(Token, usize)> {
    let text = &marked.text;
    let negated = matches!(text.get(at), Some(b'!' | b'^'));
    if negated {
        at += 1;
    }
    let first = at;
    let mut ranges = Vec::new();
    loop {
        let byte = *text.get(at)?;
        if byte == b']' && at > first && !marked.quoted[at] {
            return Some((Token::Set { negated, ranges }, at + 1));
        }
        if byte == b'/' {
            return None;
        }
        if byte == b'['
            && text.get(at + 1) == Some(&b':')
            && let Some(length) = text[at + 2..].windows(2).position(|w| w == b":]")
        {
            ranges.extend_from_slice(class(&text[at + 2..at + 2 + length])?);
            at += length + 4;
            continue;
        }
        if text.get(at + 1) == Some(&b'-') && text.get(at + 2).is_some_and(|&b| b != b']') {
            ranges.push((byte, text[at + 2]));
            at += 3;
        } else {
            ranges.push((byte, byte));
            at += 1;
        }
    }
}

fn class(name: &[u8]) -> Option<&'static [(u8, u8)]> {
    Some(match name {
        b"alpha" => &[(b'a', b'z'), (b'A', b'Z')],
        b"digit" => &[(b'0', b'9')],
        b"alnum" => &[(b'a', b'z'), (b'A', b'Z'), (b'0', b'9')],
        b"upper" => &[(b'A', b'Z')],
        b"lower" => &[(b'a', b'z')],
        b"space" => &[(9, 13), (b' ', b' ')],
        b"blank" => &[(9, 9), (b' ', b' ')],
        b"punct" => &[(33, 47), (58, 64), (91, 96), (123, 126)],
        b"xdigit" => &[(b'0', b'9'), (b'a', b'f'), (b'A', b'F')],
        b"print" => &[(32, 126)],
        b"graph" => &[(33, 126)],
        b"cntrl" => &[(0, 31), (127, 127)],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, text: &str, expected: bool) {
        let mut marked = Marked::default();
        marked.push(pattern.as_bytes(), false);
        let fits = Pattern::new(&marked).matches(text.as_bytes(), &mut Fuel::new(1 << 20)).expect("fuel");
        assert_eq!(fits, expected, "{pattern} against {text}");
    }

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]x]", "]", true),
            ("[", "[", true),
            ("[[:digit:]]*", "7up", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
        ] {
            check(pattern, text, expected);
        }
    }

    #[test]
    fn a_hostile_pattern_ends() {
        let mut marked = Marked::default();
        marked.push(format!("*{}b", "a".repeat(5000)).as_bytes(), false);
        let mut fuel = Fuel::new(1 << 20);
        assert!(Pattern::new(&marked).matches("a".repeat(100_000).as_bytes(), &mut fuel).is_err());
    }
}
