//! The little of classic BPF that a seccomp filter needs (`seccomp(2)`, linux/filter.h).
//!
//! An instruction is 8 bytes: `code` (2), how many instructions to skip when a test holds (1) and when it does not (1),
//! and a number (4). A filter sees 64 bytes: number (0..4), architecture (4..8), instruction pointer (8..16), and six
//! arguments of 8 bytes, the lower half first on the machines known here.

/// How many arguments a system call has.
pub const ARGUMENTS: usize = 6;
pub const NUMBER_OFFSET: u32 = 0;
pub const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

/// Loads 32 bits of what the filter sees into the accumulator.
pub const LOAD: u16 = 0x20;
pub const AND: u16 = 0x54;
pub const JA: u16 = 0x05;
pub const JEQ: u16 = 0x15;
pub const JGT: u16 = 0x25;
pub const JGE: u16 = 0x35;
/// Ends the program with an answer.
pub const RET: u16 = 0x06;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub skip_if_true: u8,
    pub skip_if_false: u8,
    pub number: u32,
}

impl Instruction {
    pub fn to_bytes(self) -> [u8; 8] {
        let [a, b] = self.code.to_ne_bytes();
        let [e, f, g, h] = self.number.to_ne_bytes();
        [a, b, self.skip_if_true, self.skip_if_false, e, f, g, h]
    }
}

fn plain(code: u16, number: u32) -> Instruction {
    Instruction { code, skip_if_true: 0, skip_if_false: 0, number }
}

pub fn ret(answer: u32) -> Instruction {
    plain(RET, answer)
}

pub fn load(offset: u32) -> Instruction {
    plain(LOAD, offset)
}

/// Returns a test of the accumulator and both ways on; each way must end by itself.
pub fn choose(test: u16, number: u32, then: Vec<Instruction>, otherwise: Vec<Instruction>) -> Vec<Instruction> {
    let mut program = Vec::with_capacity(2 + then.len() + otherwise.len());
    match u8::try_from(then.len()) {
        Ok(length) => program.push(Instruction { code: test, skip_if_true: 0, skip_if_false: length, number }),
        // Too far for a test: it skips over a jump, which has 32 bits for its length.
        Err(_) => {
            program.push(Instruction { code: test, skip_if_true: 1, skip_if_false: 0, number });
            program.push(plain(JA, u32::try_from(then.len()).unwrap_or(u32::MAX)));
        }
    }
    program.extend(then);
    program.extend(otherwise);
    program
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Holds when an argument, masked, stands in this relation to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Below [`ARGUMENTS`].
    pub argument: usize,
    pub operator: Operator,
    pub mask: u64,
    pub value: u64,
}

/// Where a test leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// The next instruction.
    Next,
    /// Past the comparison: it holds.
    Holds,
    /// Past the whole rule: it does not hold.
    Fails,
}

/// Appends a rule: the answer when every comparison holds, else on to what is appended next.
///
/// At most seven instructions for each of six arguments, so that every skip fits.
pub fn answer_if_all_hold(comparisons: &[Comparison], wide: bool, answer: u32, program: &mut Vec<Instruction>) {
    let drafts: Vec<Vec<(u16, u32, To, To)>> = comparisons.iter().map(|c| draft(c, wide)).collect();
    let mut left: usize = drafts.iter().map(Vec::len).sum();
    for draft in drafts {
        for (at, &(code, number, if_true, if_false)) in draft.iter().enumerate() {
            left -= 1;
            let skip = |to| match to {
                To::Next => 0,
                To::Holds => draft.len() - at - 1,
                // The answer stands behind the last comparison.
                To::Fails => left + 1,
            };
            let byte = |to| u8::try_from(skip(to)).expect("a rule has at most 43 instructions");
            program.push(Instruction { code, skip_if_true: byte(if_true), skip_if_false: byte(if_false), number });
        }
    }
    program.push(ret(answer));
}

/// Returns a comparison, upper half first. 32-bit programs have no upper half.
fn draft(comparison: &Comparison, wide: bool) -> Vec<(u16, u32, To, To)> {
    let Comparison { argument, operator, mask, value } = *comparison;
    let lower_half = ARGUMENTS_OFFSET + 8 * argument as u32;
    let (lower, upper) = (value as u32, (value >> 32) as u32);
    let (lower_mask, upper_mask) = (mask as u32, (mask >> 32) as u32);
    let mut draft = Vec::with_capacity(7);
    let fetch = |offset, mask, draft: &mut Vec<_>| {
        draft.push((LOAD, offset, To::Next, To::Next));
        if mask != u32::MAX {
            draft.push((AND, mask, To::Next, To::Next));
        }
    };
    let (when_greater, when_less) = match operator {
        Operator::Equal => (To::Fails, To::Fails),
        Operator::NotEqual => (To::Holds, To::Holds),
        Operator::Greater | Operator::GreaterOrEqual => (To::Holds, To::Fails),
        Operator::Less | Operator::LessOrEqual => (To::Fails, To::Holds),
    };
    if wide {
        fetch(lower_half + 4, upper_mask, &mut draft);
        if when_greater != when_less {
            draft.push((JGT, upper, when_greater, To::Next));
        }
        draft.push((JEQ, upper, To::Next, when_less));
    }
    fetch(lower_half, lower_mask, &mut draft);
    draft.push(match operator {
        Operator::Equal => (JEQ, lower, To::Holds, To::Fails),
        Operator::NotEqual => (JEQ, lower, To::Fails, To::Holds),
        Operator::Greater => (JGT, lower, To::Holds, To::Fails),
        Operator::GreaterOrEqual => (JGE, lower, To::Holds, To::Fails),
        Operator::Less => (JGE, lower, To::Fails, To::Holds),
        Operator::LessOrEqual => (JGT, lower, To::Fails, To::Holds),
    });
    draft
}
