//! Writes tar streams of layers entry by entry, wrong ones too. The tests of the program write theirs with it as well.

/// Writes a tar stream entry by entry.
#[derive(Clone, Default)]
pub struct Layer(Vec<u8>);

/// A header whose fields can be changed before it is written.
#[derive(Clone)]
pub struct Header(pub [u8; 512]);

impl Header {
    pub fn new(name: &[u8], kind: u8) -> Self {
        let mut header = Self([0; 512]);
        header.0[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header.0[156] = kind;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header.octal(100, 8, 0o644).octal(108, 8, 0).octal(116, 8, 0).octal(124, 12, 0).octal(136, 12, 7)
    }

    pub fn octal(mut self, at: usize, length: usize, value: u64) -> Self {
        let digits = format!("{value:0width$o}\0", width = length - 1);
        self.0[at..at + length].copy_from_slice(digits.as_bytes());
        self
    }

    pub fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn sealed(mut self) -> [u8; 512] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|&byte| u64::from(byte)).sum();
        self.octal(148, 7, sum).0
    }
}

impl Layer {
    pub fn entry(mut self, header: Header, content: &[u8]) -> Self {
        self.0.extend(header.sealed());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(Header::new(name.as_bytes(), b'0').octal(124, 12, content.len() as u64), content)
    }

    pub fn directory(self, name: &str, mode: u64) -> Self {
        self.entry(Header::new(name.as_bytes(), b'5').octal(100, 8, mode), b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(Header::new(name.as_bytes(), b'2').bytes(157, target.as_bytes()), b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(Header::new(name.as_bytes(), b'1').bytes(157, target.as_bytes()), b"")
    }

    /// PAX records for the entry that comes next.
    pub fn records(self, records: &[(&str, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            bytes.extend(format!("{length} {key}=").as_bytes());
            bytes.extend(*value);
            bytes.push(b'\n');
        }
        self.raw_records(&bytes)
    }

    pub fn raw_records(self, bytes: &[u8]) -> Self {
        self.entry(Header::new(b"PaxHeaders/x", b'x').octal(124, 12, bytes.len() as u64), bytes)
    }

    /// The stream with its end.
    pub fn stream(&self) -> Vec<u8> {
        [self.0.as_slice(), &[0; 1024]].concat()
    }
}
