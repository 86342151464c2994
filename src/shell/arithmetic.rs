//! `$((…))`: C expressions over 64-bit integers that wrap around.

use super::ast::is_name;
use super::evaluate::{Shell, Stop};
use super::world::World;

/// How deep parentheses, unary operators and variables that hold expressions may nest.
const MAX_DEPTH: u32 = 60;

/// Binary operators by rising strength; within a level the longer spelling first.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

impl<W: World> Shell<W> {
    /// The value of an expression; the empty one is 0.
    pub(super) fn arithmetic(&mut self, text: &[u8]) -> Result<i64, Stop> {
        self.arithmetic_within(text, 0)
    }

    fn arithmetic_within(&mut self, text: &[u8], depth: u32) -> Result<i64, Stop> {
        self.fuel.burn(text.len() as u64)?;
        let mut expression = Expression { shell: self, text, at: 0, depth };
        expression.blanks();
        if expression.at == text.len() {
            return Ok(0);
        }
        let value = expression.comma(true)?;
        if expression.at < text.len() {
            return Err(expression.error());
        }
        Ok(value)
    }
}

struct Expression<'a, W: World> {
    shell: &'a mut Shell<W>,
    text: &'a [u8],
    at: usize,
    depth: u32,
}

/// `live` is false in the branch that is not taken: it is read, but changes nothing and may divide by zero.
impl<W: World> Expression<'_, W> {
    fn error(&mut self) -> Stop {
        let shown = String::from_utf8_lossy(self.text).into_owned();
        self.shell.fatal(&format_args!("arithmetic expression `{shown}` can't be read"))
    }

    fn blanks(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, token: &str) -> bool {
        self.blanks();
        let found = self.text[self.at..].starts_with(token.as_bytes());
        if found {
            self.at += token.len();
        }
        found
    }

    fn comma(&mut self, live: bool) -> Result<i64, Stop> {
        let mut value = self.assignment(live)?;
        while self.take(",") {
            value = self.assignment(live)?;
        }
        self.blanks();
        Ok(value)
    }

    fn assignment(&mut self, live: bool) -> Result<i64, Stop> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error());
        }
        self.depth += 1;
        let result = self.assignment_here(live);
        self.depth -= 1;
        result
    }

    fn assignment_here(&mut self, live: bool) -> Result<i64, Stop> {
        self.blanks();
        let start = self.at;
        let name = self.name();
        if !name.is_empty() {
            self.blanks();
            let operators = ["<<=", ">>=", "*=", "/=", "%=", "+=", "-=", "&=", "^=", "|="];
            let rest = &self.text[self.at..];
            if let Some(operator) = operators.into_iter().find(|o| rest.starts_with(o.as_bytes())) {
                self.at += operator.len();
                let right = self.assignment(live)?;
                let left = self.variable(&name, live)?;
                let value = self.apply(operator.trim_end_matches('='), left, right, live)?;
                self.store(&name, value, live)?;
                return Ok(value);
            }
            if rest.starts_with(b"=") && !rest.starts_with(b"==") {
                self.at += 1;
                let value = self.assignment(live)?;
                self.store(&name, value, live)?;
                return Ok(value);
            }
        }
        self.at = start;
        let condition = self.binary(0, live)?;
        if !self.take("?") {
            return Ok(condition);
        }
        let yes = self.assignment(live && condition != 0)?;
        if !self.take(":") {
            return Err(self.error());
        }
        let no = self.assignment(live && condition == 0)?;
        Ok(if condition != 0 { yes } else { no })
    }

    fn binary(&mut self, level: usize, live: bool) -> Result<i64, Stop> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary(live);
        };
        let mut left = self.binary(level + 1, live)?;
        'more: loop {
            self.blanks();
            for operator in *operators {
                let rest = &self.text[self.at..];
                if !rest.starts_with(operator.as_bytes()) || longer(rest, operator) {
                    continue;
                }
                self.at += operator.len();
                let live_right = match *operator {
                    "||" => live && left == 0,
                    "&&" => live && left != 0,
                    _ => live,
                };
                let right = self.binary(level + 1, live_right)?;
                left = self.apply(operator, left, right, live)?;
                continue 'more;
            }
            return Ok(left);
        }
    }

    fn unary(&mut self, live: bool) -> Result<i64, Stop> {
        self.blanks();
        for step in ["++", "--"] {
            if self.text[self.at..].starts_with(step.as_bytes()) {
                let start = self.at;
                self.at += 2;
                self.blanks();
                let name = self.name();
                if name.is_empty() {
                    self.at = start;
                    break;
                }
                let delta = if step == "++" { 1 } else { -1 };
                let value = self.variable(&name, live)?.wrapping_add(delta);
                self.store(&name, value, live)?;
                return Ok(value);
            }
        }
        let Some(&byte) = self.text.get(self.at) else { return Err(self.error()) };
        if matches!(byte, b'-' | b'+' | b'!' | b'~') {
            self.at += 1;
            if self.depth >= MAX_DEPTH {
                return Err(self.error());
            }
            self.depth += 1;
            let value = self.unary(live);
            self.depth -= 1;
            let value = value?;
            return Ok(match byte {
                b'-' => value.wrapping_neg(),
                b'!' => i64::from(value == 0),
                b'~' => !value,
                _ => value,
            });
        }
        if byte == b'(' {
            self.at += 1;
            let value = self.comma(live)?;
            return if self.take(")") { Ok(value) } else { Err(self.error()) };
        }
        if byte.is_ascii_digit() {
            return self.number();
        }
        let name = self.name();
        if name.is_empty() {
            return Err(self.error());
        }
        let value = self.variable(&name, live)?;
        for (step, delta) in [("++", 1), ("--", -1)] {
            if self.take(step) {
                self.store(&name, value.wrapping_add(delta), live)?;
            }
        }
        Ok(value)
    }

    fn name(&mut self) -> Vec<u8> {
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_').unwrap_or(rest.len());
        let name = rest[..end].to_vec();
        if !is_name(&name) {
            return Vec::new();
        }
        self.at += end;
        name
    }

    fn number(&mut self) -> Result<i64, Stop> {
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(rest.len());
        match number(&rest[..end]) {
            Some(value) => {
                self.at += end;
                Ok(value)
            }
            None => Err(self.error()),
        }
    }

    fn variable(&mut self, name: &[u8], live: bool) -> Result<i64, Stop> {
        if !live {
            return Ok(0);
        }
        let Some(value) = self.shell.value(name)? else { return Ok(0) };
        let text = value.trim_ascii();
        let (negative, digits) = match text.strip_prefix(b"-") {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        if let Some(value) = number(digits) {
            return Ok(if negative { value.wrapping_neg() } else { value });
        }
        if self.depth >= MAX_DEPTH {
            return Err(self.error());
        }
        self.shell.arithmetic_within(&value, self.depth + 1)
    }

    fn store(&mut self, name: &[u8], value: i64, live: bool) -> Result<(), Stop> {
        if live { self.shell.assign(name, value.to_string().into_bytes()) } else { Ok(()) }
    }

    fn apply(&mut self, operator: &str, left: i64, right: i64, live: bool) -> Result<i64, Stop> {
        Ok(match operator {
            "||" => i64::from(left != 0 || right != 0),
            "&&" => i64::from(left != 0 && right != 0),
            "|" => left | right,
            "^" => left ^ right,
            "&" => left & right,
            "==" => i64::from(left == right),
            "!=" => i64::from(left != right),
            "<=" => i64::from(left <= right),
            ">=" => i64::from(left >= right),
            "<" => i64::from(left < right),
            ">" => i64::from(left > right),
            "<<" => left.wrapping_shl(right as u32),
            ">>" => left.wrapping_shr(right as u32),
            "+" => left.wrapping_add(right),
            "-" => left.wrapping_sub(right),
            "*" => left.wrapping_mul(right),
            _ if right == 0 && !live => 0,
            _ if right == 0 => {
                return Err(self.shell.fatal(&"division by zero"));
            }
            "/" => left.wrapping_div(right),
            _ => left.wrapping_rem(right),
        })
    }
}

/// Whether what stands there is a longer operator that only begins like this one.
fn longer(rest: &[u8], operator: &str) -> bool {
    let next = rest.get(operator.len());
    match operator {
        "|" => matches!(next, Some(b'|' | b'=')),
        "&" => matches!(next, Some(b'&' | b'=')),
        "<" => next == Some(&b'<'),
        ">" => next == Some(&b'>'),
        "<<" | ">>" | "+" | "-" | "*" | "/" | "%" | "^" => next == Some(&b'='),
        _ => false,
    }
}

/// A decimal, octal (`0…`) or hexadecimal (`0x…`) number.
fn number(digits: &[u8]) -> Option<i64> {
    let (radix, digits) = match digits {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', rest @ ..] if !rest.is_empty() => (8, rest),
        all => (10, all),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0i64, |value, &b| {
        let digit = char::from(b).to_digit(radix)?;
        Some(value.wrapping_mul(i64::from(radix)).wrapping_add(i64::from(digit)))
    })
}
