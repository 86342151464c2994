//! `test`, `[` and `[[`.

use super::ast::Condition;
use super::builtins::parse_number;
use super::evaluate::{Shell, Stop};
use super::world::{Access, World};
use crate::tree::Kind;

/// How deep `!` and parentheses may nest.
const MAX_DEPTH: u32 = 60;

/// Binary operators of `test`.
const BINARY: [&[u8]; 14] =
    [b"=", b"==", b"!=", b"<", b">", b"-eq", b"-ne", b"-gt", b"-ge", b"-lt", b"-le", b"-nt", b"-ot", b"-ef"];

impl<W: World> Shell<W> {
    pub(super) fn test_command(&mut self, name: &[u8], arguments: &[Vec<u8>]) -> Result<u8, Stop> {
        let mut words = arguments;
        if name == b"[" {
            match words.split_last() {
                Some((last, before)) if last == b"]" => words = before,
                _ => {
                    self.complain(&"[: missing `]`")?;
                    return Ok(2);
                }
            }
        }
        let mut expression = Expression { shell: self, words, at: 0, depth: 0 };
        let answer = match expression.whole()? {
            Some(answer) if expression.at == words.len() => Some(answer),
            _ => None,
        };
        match answer {
            Some(answer) => Ok(u8::from(!answer)),
            None => {
                self.complain(&format_args!("{}: expression can't be read", String::from_utf8_lossy(name)))?;
                Ok(2)
            }
        }
    }

    /// The value of a `[[ … ]]`.
    pub(super) fn holds(&mut self, condition: &Condition) -> Result<bool, Stop> {
        Ok(match condition {
            Condition::Not(inner) => !self.holds(inner)?,
            Condition::And(left, right) => self.holds(left)? && self.holds(right)?,
            Condition::Or(left, right) => self.holds(left)? || self.holds(right)?,
            Condition::Word(word) => !self.single(word)?.is_empty(),
            Condition::Unary(letter, word) => {
                let operand = self.single(word)?;
                match self.unary(*letter, &operand)? {
                    Some(answer) => answer,
                    None => return Err(self.fatal(&format_args!("-{}: not a condition", char::from(*letter)))),
                }
            }
            Condition::Binary(operator, left, right) => {
                let left = self.single(left)?;
                match operator.as_slice() {
                    b"=" | b"==" => self.fits(right, &left)?,
                    b"!=" => !self.fits(right, &left)?,
                    b"-eq" | b"-ne" | b"-gt" | b"-ge" | b"-lt" | b"-le" => {
                        let right = self.single(right)?;
                        let (left, right) = (self.arithmetic(&left)?, self.arithmetic(&right)?);
                        compare(operator, left, right)
                    }
                    _ => {
                        let right = self.single(right)?;
                        match self.binary(operator, &left, &right)? {
                            Some(answer) => answer,
                            None => {
                                let shown = String::from_utf8_lossy(operator).into_owned();
                                return Err(self.fatal(&format_args!("{shown}: not a condition")));
                            }
                        }
                    }
                }
            }
        })
    }

    /// `-f operand` and its like; `None` when the letter means nothing.
    fn unary(&mut self, letter: u8, operand: &[u8]) -> Result<Option<bool>, Stop> {
        Ok(Some(match letter {
            b'n' => !operand.is_empty(),
            b'z' => operand.is_empty(),
            b'v' => self.value(operand)?.is_some(),
            b't' => {
                let descriptor = parse_number(operand).and_then(|n| u32::try_from(n).ok());
                match descriptor {
                    Some(descriptor) => self.world.is_terminal(descriptor)?,
                    None => false,
                }
            }
            b'r' | b'w' | b'x' => {
                let access = match letter {
                    b'r' => Access::Read,
                    b'w' => Access::Write,
                    _ => Access::Execute,
                };
                let path = self.absolute(operand);
                !operand.is_empty() && self.world.access(&path, access)?
            }
            b'a' | b'b' | b'c' | b'd' | b'e' | b'f' | b'g' | b'h' | b'k' | b'L' | b'p' | b'S' | b's' | b'u' => {
                if operand.is_empty() {
                    return Ok(Some(false));
                }
                let path = self.absolute(operand);
                let Some(facts) = self.world.facts(&path, !matches!(letter, b'h' | b'L'))? else {
                    return Ok(Some(false));
                };
                match letter {
                    b'b' => facts.kind == Kind::BlockDevice,
                    b'c' => facts.kind == Kind::CharDevice,
                    b'd' => facts.kind == Kind::Directory,
                    b'f' => facts.kind == Kind::File,
                    b'h' | b'L' => facts.kind == Kind::Symlink,
                    b'p' => facts.kind == Kind::Fifo,
                    b'S' => facts.kind == Kind::Socket,
                    b's' => facts.size_bytes > 0,
                    b'g' => facts.mode & 0o2000 != 0,
                    b'k' => facts.mode & 0o1000 != 0,
                    b'u' => facts.mode & 0o4000 != 0,
                    _ => true,
                }
            }
            _ => return Ok(None),
        }))
    }

    /// `None` when an operand is no number, or the operator means nothing.
    fn binary(&mut self, operator: &[u8], left: &[u8], right: &[u8]) -> Result<Option<bool>, Stop> {
        Ok(match operator {
            b"=" | b"==" => Some(left == right),
            b"!=" => Some(left != right),
            b"<" => Some(left < right),
            b">" => Some(left > right),
            b"-nt" | b"-ot" | b"-ef" => {
                let (left, right) = (self.absolute(left), self.absolute(right));
                let (left, right) = (self.world.facts(&left, true)?, self.world.facts(&right, true)?);
                Some(match (operator, left, right) {
                    (b"-ef", Some(left), Some(right)) => left.identity == right.identity,
                    (b"-nt", Some(left), Some(right)) => left.mtime > right.mtime,
                    (b"-ot", Some(left), Some(right)) => left.mtime < right.mtime,
                    (b"-nt", Some(_), None) | (b"-ot", None, Some(_)) => true,
                    _ => false,
                })
            }
            b"-eq" | b"-ne" | b"-gt" | b"-ge" | b"-lt" | b"-le" => match (parse_number(left), parse_number(right)) {
                (Some(left), Some(right)) => Some(compare(operator, left, right)),
                _ => None,
            },
            _ => None,
        })
    }
}

fn compare(operator: &[u8], left: i64, right: i64) -> bool {
    match operator {
        b"-eq" => left == right,
        b"-ne" => left != right,
        b"-gt" => left > right,
        b"-ge" => left >= right,
        b"-lt" => left < right,
        _ => left <= right,
    }
}

/// `test`'s arguments, read from left to right. An inner `None` is an expression that can't be read.
struct Expression<'a, 'b, W: World> {
    shell: &'a mut Shell<W>,
    words: &'b [Vec<u8>],
    at: usize,
    depth: u32,
}

type Answer = Result<Option<bool>, Stop>;

impl<W: World> Expression<'_, '_, W> {
    fn word(&self, ahead: usize) -> Option<&[u8]> {
        self.words.get(self.at + ahead).map(Vec::as_slice)
    }

    /// Short forms are decided by the number of arguments, as POSIX demands, so that any text may be an operand.
    fn whole(&mut self) -> Answer {
        match self.words {
            [] => Ok(Some(false)),
            [only] => {
                self.at = 1;
                Ok(Some(!only.is_empty()))
            }
            [not, only] if not == b"!" => {
                self.at = 2;
                Ok(Some(only.is_empty()))
            }
            [left, operator, right] if BINARY.contains(&operator.as_slice()) => {
                self.at = 3;
                self.shell.binary(operator, left, right)
            }
            _ => self.or(),
        }
    }

    fn or(&mut self) -> Answer {
        let Some(mut value) = self.and()? else { return Ok(None) };
        while self.word(0) == Some(b"-o") {
            self.at += 1;
            let Some(right) = self.and()? else { return Ok(None) };
            value |= right;
        }
        Ok(Some(value))
    }

    fn and(&mut self) -> Answer {
        let Some(mut value) = self.not()? else { return Ok(None) };
        while self.word(0) == Some(b"-a") {
            self.at += 1;
            let Some(right) = self.not()? else { return Ok(None) };
            value &= right;
        }
        Ok(Some(value))
    }

    fn not(&mut self) -> Answer {
        if self.depth >= MAX_DEPTH {
            return Ok(None);
        }
        self.depth += 1;
        let answer = if self.word(0) == Some(b"!") && self.word(1).is_some() {
            self.at += 1;
            self.not().map(|value| value.map(|v| !v))
        } else {
            self.primary()
        };
        self.depth -= 1;
        answer
    }

    fn primary(&mut self) -> Answer {
        let (Some(first), second, third) = (self.word(0), self.word(1), self.word(2)) else {
            return Ok(None);
        };
        if let (Some(operator), Some(right)) = (second, third)
            && BINARY.contains(&operator)
        {
            let (left, operator, right) = (first.to_vec(), operator.to_vec(), right.to_vec());
            self.at += 3;
            return self.shell.binary(&operator, &left, &right);
        }
        if first == b"(" {
            self.at += 1;
            let value = self.or()?;
            if self.word(0) != Some(b")") {
                return Ok(None);
            }
            self.at += 1;
            return Ok(value);
        }
        if let (&[b'-', letter], Some(operand)) = (first, second)
            && letter.is_ascii_alphabetic()
        {
            let operand = operand.to_vec();
            self.at += 2;
            return self.shell.unary(letter, &operand);
        }
        let answer = !first.is_empty();
        self.at += 1;
        Ok(Some(answer))
    }
}
