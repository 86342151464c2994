//! Small ELF libraries for tests: a header, two program headers, and what the dynamic linker reads.

use super::Class;

/// What a fabricated library says of itself.
pub struct Library<'a> {
    pub class: Class,
    pub big_endian: bool,
    pub machine: u16,
    pub dynamic: bool,
    pub soname: Option<&'a str>,
    pub needed: &'a [&'a str],
    pub run_path: Option<&'a str>,
    /// Versions needed of `libc.so.6`.
    pub glibc_needs: &'a [&'a str],
    pub definitions: &'a [&'a str],
}

impl Default for Library<'_> {
    fn default() -> Self {
        Self {
            class: Class::Bits64,
            big_endian: false,
            machine: 62,
            dynamic: true,
            soname: None,
            needed: &[],
            run_path: None,
            glibc_needs: &[],
            definitions: &[],
        }
    }
}

/// Where the library is loaded: its first byte has this address.
const ADDRESS: u64 = 0x10000;

impl Library<'_> {
    fn wide(&self) -> bool {
        self.class == Class::Bits64
    }

    fn header_bytes(&self) -> usize {
        if self.wide() { 64 + 2 * 56 } else { 52 + 2 * 32 }
    }

    fn put(&self, out: &mut Vec<u8>, number: u64, size: usize) {
        if self.big_endian {
            out.extend(&number.to_be_bytes()[8 - size..]);
        } else {
            out.extend(&number.to_le_bytes()[..size]);
        }
    }

    fn word(&self) -> usize {
        if self.wide() { 8 } else { 4 }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut strings = vec![0];
        let mut name = |text: &str| {
            let at = strings.len() as u64;
            strings.extend(text.as_bytes());
            strings.push(0);
            at
        };
        let base = ADDRESS + self.header_bytes() as u64;
        let mut body = Vec::new();
        let needs_at = base;
        if !self.glibc_needs.is_empty() {
            for (value, size) in [(1, 2), (self.glibc_needs.len() as u64, 2), (name("libc.so.6"), 4), (16, 4), (0, 4)] {
                self.put(&mut body, value, size);
            }
            for (at, version) in self.glibc_needs.iter().enumerate() {
                let next = if at + 1 < self.glibc_needs.len() { 16 } else { 0 };
                for (value, size) in [(7, 4), (0, 2), (2, 2), (name(version), 4), (next, 4)] {
                    self.put(&mut body, value, size);
                }
            }
        }
        let definitions_at = base + body.len() as u64;
        for (at, version) in self.definitions.iter().enumerate() {
            let next = if at + 1 < self.definitions.len() { 28 } else { 0 };
            for (value, size) in [(1, 2), (0, 2), (at as u64 + 1, 2), (1, 2), (7, 4), (20, 4), (next, 4)] {
                self.put(&mut body, value, size);
            }
            self.put(&mut body, name(version), 4);
            self.put(&mut body, 0, 4);
        }
        let mut dynamic = Vec::new();
        dynamic.extend(self.soname.map(|soname| (14, name(soname))));
        dynamic.extend(self.needed.iter().map(|needed| (1, name(needed))));
        dynamic.extend(self.run_path.map(|path| (29, name(path))));
        if !self.glibc_needs.is_empty() {
            dynamic.extend([(0x6fff_fffe, needs_at), (0x6fff_ffff, 1)]);
        }
        if !self.definitions.is_empty() {
            dynamic.extend([(0x6fff_fffc, definitions_at), (0x6fff_fffd, self.definitions.len() as u64)]);
        }
        dynamic.extend([(5, base + body.len() as u64), (10, strings.len() as u64), (0, 0)]);
        body.extend(&strings);
        let dynamic_offset = self.header_bytes() + body.len();
        for (tag, value) in dynamic {
            self.put(&mut body, tag, self.word());
            self.put(&mut body, value, self.word());
        }
        let size = (self.header_bytes() + body.len()) as u64;
        let mut out = b"\x7fELF".to_vec();
        out.extend([if self.wide() { 2 } else { 1 }, if self.big_endian { 2 } else { 1 }, 1]);
        out.resize(16, 0);
        let (word, header, segment) = if self.wide() { (8, 64, 56) } else { (4, 52, 32) };
        for (value, size) in [
            (3, 2),
            (u64::from(self.machine), 2),
            (1, 4),
            (0, word),
            (header, word),
            (0, word),
            (0, 4),
            (header, 2),
            (segment, 2),
            (2, 2),
            (0, 2),
            (0, 2),
            (0, 2),
        ] {
            self.put(&mut out, value, size);
        }
        self.put_segment(&mut out, 1, 0, size);
        let kind = if self.dynamic { 2 } else { 4 };
        self.put_segment(&mut out, kind, dynamic_offset as u64, size - dynamic_offset as u64);
        out.extend(body);
        out
    }

    fn put_segment(&self, out: &mut Vec<u8>, kind: u64, offset: u64, size: u64) {
        let address = ADDRESS + offset;
        let fields = if self.wide() {
            vec![(kind, 4), (4, 4), (offset, 8), (address, 8), (address, 8), (size, 8), (size, 8), (1, 8)]
        } else {
            vec![(kind, 4), (offset, 4), (address, 4), (address, 4), (size, 4), (size, 4), (4, 4), (1, 4)]
        };
        for (value, size) in fields {
            self.put(out, value, size);
        }
    }
}
