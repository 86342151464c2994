//! Processor architectures: two ASCII digits and a NUL in the header and in each partition.

use std::fmt;

/// An architecture code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// `00`: not stated. Such a partition is taken to run anywhere.
    Unknown,
    I386,
    Amd64,
    Arm,
    Arm64,
    Ppc64,
    Ppc64le,
    Mips,
    Mipsle,
    Mips64,
    Mips64le,
    S390x,
    Riscv64,
    Loong64,
    /// A code that no table has; the bytes as they are in the file.
    Other([u8; 3]),
}

/// Index = number of the code; names are those of Go, which users know from `--arch`.
const TABLE: [(Arch, &str); 14] = [
    (Arch::Unknown, "unknown"),
    (Arch::I386, "386"),
    (Arch::Amd64, "amd64"),
    (Arch::Arm, "arm"),
    (Arch::Arm64, "arm64"),
    (Arch::Ppc64, "ppc64"),
    (Arch::Ppc64le, "ppc64le"),
    (Arch::Mips, "mips"),
    (Arch::Mipsle, "mipsle"),
    (Arch::Mips64, "mips64"),
    (Arch::Mips64le, "mips64le"),
    (Arch::S390x, "s390x"),
    (Arch::Riscv64, "riscv64"),
    (Arch::Loong64, "loong64"),
];

impl Arch {
    /// The architecture of a code in a file.
    pub fn from_code(code: [u8; 3]) -> Self {
        match code {
            [tens @ b'0'..=b'9', ones @ b'0'..=b'9', 0] => {
                let number = usize::from(tens - b'0') * 10 + usize::from(ones - b'0');
                TABLE.get(number).map_or(Self::Other(code), |(arch, _)| *arch)
            }
            _ => Self::Other(code),
        }
    }

    /// The code as a file holds it.
    pub fn code(self) -> [u8; 3] {
        if let Self::Other(code) = self {
            return code;
        }
        let number = TABLE.iter().position(|(arch, _)| *arch == self).unwrap_or(0);
        // The table has fewer than 100 entries.
        [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8, 0]
    }

    /// The architecture with this number (1 is `386`, 2 is `amd64`, …); `None` for 0 and for numbers without one.
    pub fn from_number(number: i64) -> Option<Self> {
        let index = usize::try_from(number).ok().filter(|&index| index > 0)?;
        TABLE.get(index).map(|(arch, _)| *arch)
    }

    /// The architecture that Go calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE[1..].iter().find(|(_, known)| *known == name).map(|(arch, _)| *arch)
    }

    /// Go's name; `unknown` for codes without one.
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|(arch, _)| *arch == self).map_or("unknown", |(_, name)| name)
    }

    /// Whether the code names an architecture.
    pub fn is_known(self) -> bool {
        !matches!(self, Self::Unknown | Self::Other(_))
    }

    /// The architecture that this program was built for.
    pub fn host() -> Self {
        const LITTLE: bool = cfg!(target_endian = "little");
        match () {
            () if cfg!(target_arch = "x86") => Self::I386,
            () if cfg!(target_arch = "x86_64") => Self::Amd64,
            () if cfg!(target_arch = "arm") => Self::Arm,
            () if cfg!(target_arch = "aarch64") => Self::Arm64,
            () if cfg!(target_arch = "powerpc64") && LITTLE => Self::Ppc64le,
            () if cfg!(target_arch = "powerpc64") => Self::Ppc64,
            () if cfg!(target_arch = "mips") && LITTLE => Self::Mipsle,
            () if cfg!(target_arch = "mips") => Self::Mips,
            () if cfg!(target_arch = "mips64") && LITTLE => Self::Mips64le,
            () if cfg!(target_arch = "mips64") => Self::Mips64,
            () if cfg!(target_arch = "s390x") => Self::S390x,
            () if cfg!(target_arch = "riscv64") => Self::Riscv64,
            () if cfg!(target_arch = "loongarch64") => Self::Loong64,
            () => Self::Unknown,
        }
    }

    /// Whether programs of this architecture run on a `host` without emulation: the same one, its 32-bit sibling, or one
    /// that the image does not state.
    pub fn runs_on(self, host: Self) -> bool {
        self == host
            || matches!(
                (self, host),
                (Self::Unknown, _)
                    | (Self::I386, Self::Amd64)
                    | (Self::Arm, Self::Arm64)
                    | (Self::Mips, Self::Mips64)
                    | (Self::Mipsle, Self::Mips64le)
            )
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_table_survives_a_round_trip() {
        for (number, (arch, name)) in TABLE.iter().enumerate() {
            assert_eq!(arch.code(), [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8, 0]);
            assert_eq!(Arch::from_code(arch.code()), *arch);
            assert_eq!(arch.name(), *name);
        }
    }

    #[test]
    fn codes_without_a_meaning_are_kept_and_called_unknown() {
        for code in [*b"99\0", *b"022", *b"\xff\xff\xff", [0; 3]] {
            let arch = Arch::from_code(code);
            assert_eq!(arch, Arch::Other(code));
            assert_eq!(arch.code(), code);
            assert_eq!(arch.name(), "unknown");
            assert!(!arch.is_known());
        }
    }

    #[test]
    fn numbers_begin_at_one_and_end_with_the_table() {
        assert_eq!(Arch::from_number(2), Some(Arch::Amd64));
        assert_eq!(Arch::from_number(13), Some(Arch::Loong64));
        for number in [i64::MIN, -1, 0, 14, i64::MAX] {
            assert_eq!(Arch::from_number(number), None);
        }
        assert_eq!(Arch::from_name("riscv64"), Some(Arch::Riscv64));
        assert_eq!(Arch::from_name("unknown"), None);
    }

    #[test]
    fn a_host_runs_its_own_its_32_bit_sibling_and_the_unstated() {
        assert!(Arch::Amd64.runs_on(Arch::Amd64));
        assert!(Arch::I386.runs_on(Arch::Amd64));
        assert!(Arch::Unknown.runs_on(Arch::Arm64));
        assert!(!Arch::Amd64.runs_on(Arch::I386));
        assert!(!Arch::Arm64.runs_on(Arch::Amd64));
        assert!(!Arch::Other(*b"99\0").runs_on(Arch::Amd64));
    }
}
