//! Binds as users write them: `--bind`, `--mount`, and the site's `bind path`.
//!
//! ```text
//! --bind   source[:destination[:options]],…     `\:` and `\,` stand for the characters; options ro rw image-src=P id=N
//! --mount  type=bind,source=…,destination=…,…   a line of CSV: a field that holds a comma stands in double quotes
//! ```
//!
//! Nothing here looks at a file.

use crate::report::Hint;
use starter::paths::{ContainerPath, HostPath};
use std::fmt;

/// One bind, as it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// A directory or file of the host, or of the image that `image` names.
    pub source: HostPath,
    /// `None`: the same path as `source`.
    pub destination: Option<ContainerPath>,
    pub read_only: bool,
    /// The bind shows something of an image file: then `source` is that file.
    pub image: Option<ImageSource>,
    /// Containers started inside do not get it again.
    pub nonested: bool,
    /// The words, for messages.
    pub said: String,
}

/// Which part of an image file is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSource {
    /// A path inside the image.
    pub path: ContainerPath,
    /// The object of a SIF file.
    pub id: Option<u32>,
}

/// Why a bind can't be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindError {
    /// The bind as it was said.
    pub said: String,
    pub problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    NoSource,
    NoDestination,
    TooManyParts,
    UnknownOption(String),
    BadId(String),
    /// The path in the container is relative, or leaves the root.
    BadDestination(String),
    BadImagePath(String),
    /// `--mount` without `type=bind`.
    Type(Option<String>),
    UnknownKey(String),
    OpenQuote,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use the bind `{}`: ", self.said)?;
        match &self.problem {
            Problem::NoSource => f.write_str("it names no source"),
            Problem::NoDestination => f.write_str("it names no destination"),
            Problem::TooManyParts => f.write_str("it has more than three parts"),
            Problem::UnknownOption(option) => write!(f, "`{option}` is not an option"),
            Problem::BadId(id) => write!(f, "`{id}` is not the id of an object"),
            Problem::BadDestination(path) => write!(f, "the destination `{path}` is not an absolute path"),
            Problem::BadImagePath(path) => write!(f, "the path in the image `{path}` is not an absolute path"),
            Problem::Type(None) => f.write_str("it names no type"),
            Problem::Type(Some(kind)) => write!(f, "`{kind}` is not a type of mount that can be made"),
            Problem::UnknownKey(key) => write!(f, "`{key}` is not known"),
            Problem::OpenQuote => f.write_str("a double quote is not closed"),
        }
    }
}

impl std::error::Error for BindError {}

impl Hint for BindError {
    fn hints(&self) -> Vec<String> {
        let hint = match &self.problem {
            Problem::TooManyParts => "A colon that belongs to a path is written `\\:`.",
            Problem::UnknownOption(_) => "Options are ro, rw, image-src=PATH and id=NUMBER.",
            Problem::Type(_) | Problem::NoDestination => "Write type=bind,source=PATH,destination=PATH.",
            Problem::UnknownKey(_) => "Keys are type, source (src), destination (dst, target), ro, image-src and id.",
            Problem::NoSource => "Write SOURCE[:DESTINATION[:OPTIONS]].",
            Problem::BadDestination(_) => "Paths in the container begin with a slash and hold no `..`.",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// Reads one value of `--bind`, which may hold several binds.
pub fn parse_list(value: &[u8]) -> Result<Vec<Bind>, BindError> {
    let mut binds: Vec<Vec<Vec<u8>>> = Vec::new();
    for element in split(value, b',') {
        let parts: Vec<Vec<u8>> = split(&element, b':').into_iter().map(|part| unescape(&part)).collect();
        match binds.last_mut() {
            // A comma inside the options of the bind before.
            Some(before) if before.len() == 3 && parts.len() == 1 && is_option(&parts[0]) => {
                before[2].push(b',');
                before[2].extend_from_slice(&parts[0]);
            }
            _ if element.is_empty() => {}
            _ => binds.push(parts),
        }
    }
    binds.into_iter().map(bind).collect()
}

/// Splits at `separator`, unless a backslash stands before it. Backslashes stay.
fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut escaped = false;
    for &byte in text {
        if byte == separator && !escaped {
            parts.push(Vec::new());
            continue;
        }
        escaped = byte == b'\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(byte);
        }
    }
    parts
}

/// Takes the backslash from `\:`, `\,` and `\\`; others stay as they are.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail.first()) {
            (b'\\', Some(&next @ (b':' | b',' | b'\\'))) => {
                plain.push(next);
                rest = &tail[1..];
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

fn is_option(word: &[u8]) -> bool {
    matches!(word, b"ro" | b"rw") || word.starts_with(b"image-src=") || word.starts_with(b"id=")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bind(parts: Vec<Vec<u8>>) -> Result<Bind, BindError> {
    let said = text(&parts.join(&b':'));
    let wrong = |problem| BindError { said: said.clone(), problem };
    let (source, destination, options) = match parts.as_slice() {
        [source] => (source, None, None),
        [source, destination] => (source, Some(destination), None),
        [source, destination, options] => (source, Some(destination), Some(options)),
        _ => return Err(wrong(Problem::TooManyParts)),
    };
    if source.is_empty() {
        return Err(wrong(Problem::NoSource));
    }
    let destination = match destination {
        Some(path) if !path.is_empty() => Some(container_path(path).map_err(&wrong)?),
        _ => None,
    };
    let (mut read_only, mut path, mut id) = (false, None, None);
    for option in options.map_or(&b""[..], Vec::as_slice).split(|&b| b == b',').filter(|option| !option.is_empty()) {
        match option {
            b"ro" => read_only = true,
            b"rw" => read_only = false,
            _ => {
                if let Some(value) = option.strip_prefix(b"image-src=") {
                    path = Some(image_path(value).map_err(&wrong)?);
                } else if let Some(value) = option.strip_prefix(b"id=") {
                    id = Some(object_id(value).map_err(&wrong)?);
                } else {
                    return Err(wrong(Problem::UnknownOption(text(option))));
                }
            }
        }
    }
    let image = image_source(path, id);
    let source = HostPath::from_bytes(source);
    Ok(Bind { source, destination, read_only, image, nonested: false, said })
}

fn image_source(path: Option<ContainerPath>, id: Option<u32>) -> Option<ImageSource> {
    (path.is_some() || id.is_some()).then(|| ImageSource { path: path.unwrap_or_else(ContainerPath::root), id })
}

fn container_path(path: &[u8]) -> Result<ContainerPath, Problem> {
    ContainerPath::parse(path).map_err(|_| Problem::BadDestination(text(path)))
}

fn image_path(path: &[u8]) -> Result<ContainerPath, Problem> {
    ContainerPath::parse(path).map_err(|_| Problem::BadImagePath(text(path)))
}

fn object_id(value: &[u8]) -> Result<u32, Problem> {
    let id = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
    id.filter(|&id| id > 0).ok_or_else(|| Problem::BadId(text(value)))
}

/// Reads one value of `--mount`.
pub fn parse_mount(value: &[u8]) -> Result<Bind, BindError> {
    let said = text(value);
    let wrong = |problem| BindError { said: said.clone(), problem };
    let (mut kind, mut source, mut destination) = (None, None, None);
    let (mut read_only, mut path, mut id, mut nonested) = (false, None, None, false);
    for field in csv_fields(value).map_err(&wrong)? {
        let at = field.iter().position(|&b| b == b'=');
        let (key, argument) = match at {
            Some(at) => (&field[..at], Some(&field[at + 1..])),
            None => (field.as_slice(), None),
        };
        match (key, argument) {
            (b"type", Some(argument)) => kind = Some(argument.to_vec()),
            (b"source" | b"src", Some(argument)) => source = Some(argument.to_vec()),
            (b"destination" | b"dst" | b"target", Some(argument)) => {
                destination = Some(container_path(argument).map_err(&wrong)?)
            }
            (b"ro" | b"readonly", None | Some(b"true" | b"1")) => read_only = true,
            (b"ro" | b"readonly", Some(b"false" | b"0")) | (b"rw", None) => read_only = false,
            (b"nonested", None) => nonested = true,
            (b"image-src", Some(argument)) => path = Some(image_path(argument).map_err(&wrong)?),
            (b"id", Some(argument)) => id = Some(object_id(argument).map_err(&wrong)?),
            _ => return Err(wrong(Problem::UnknownKey(text(&field)))),
        }
    }
    match kind.as_deref() {
        Some(b"bind") => {}
        other => return Err(wrong(Problem::Type(other.map(text)))),
    }
    let source = source.filter(|source| !source.is_empty()).ok_or_else(|| wrong(Problem::NoSource))?;
    let destination = Some(destination.ok_or_else(|| wrong(Problem::NoDestination))?);
    let image = image_source(path, id);
    Ok(Bind { source: HostPath::from_bytes(&source), destination, read_only, image, nonested, said })
}

/// Splits a line of CSV (RFC 4180): a field may stand in double quotes, and holds `""` for one of them.
fn csv_fields(line: &[u8]) -> Result<Vec<Vec<u8>>, Problem> {
    let mut fields = vec![Vec::new()];
    let mut quoted = false;
    let mut rest = line;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let Some(field) = fields.last_mut() else { break };
        match byte {
            b'"' if quoted && tail.first() == Some(&b'"') => {
                field.push(b'"');
                rest = &tail[1..];
            }
            b'"' if quoted => quoted = false,
            b'"' if field.is_empty() => quoted = true,
            b',' if !quoted => fields.push(Vec::new()),
            byte => field.push(byte),
        }
    }
    if quoted { Err(Problem::OpenQuote) } else { Ok(fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(bind: &Bind) -> String {
        let destination = bind.destination.as_ref().map_or("-".to_owned(), ToString::to_string);
        let image = bind.image.as_ref().map_or(String::new(), |image| format!(" image {} {:?}", image.path, image.id));
        format!("{} {destination} {}{image}", bind.source, if bind.read_only { "ro" } else { "rw" })
    }

    #[test]
    fn binds_are_read_with_their_options() {
        let check = |value: &str, expected: &[&str]| {
            let binds: Vec<String> = parse_list(value.as_bytes()).unwrap().iter().map(show).collect();
            assert_eq!(binds, expected, "{value}");
        };
        check("/a", &["/a - rw"]);
        check("/a:/b:ro", &["/a /b ro"]);
        check("/a:/b:ro,/c:/d", &["/a /b ro", "/c /d rw"]);
        check("/a,/b,", &["/a - rw", "/b - rw"]);
        check(r"a\:b:/x,c\,d:/y", &["a:b /x rw", "c,d /y rw"]);
        check(r"/a\b:/x", &[r"/a\b /x rw"]);
        check("e.img:/m:image-src=/sub,ro", &["e.img /m ro image /sub None"]);
        check("m.sif:/m:id=3", &["m.sif /m rw image / Some(3)"]);
        // `ro` alone is a file of that name, unless options stand before it.
        check("/a:/b,ro", &["/a /b rw", "ro - rw"]);
    }

    #[test]
    fn what_is_no_bind_says_what_is_wrong() {
        let check =
            |value: &str, problem| assert_eq!(parse_list(value.as_bytes()).unwrap_err().problem, problem, "{value}");
        check("/a:/b:ro:x", Problem::TooManyParts);
        check("/a:/b:nonsense", Problem::UnknownOption("nonsense".into()));
        check("/a:relative", Problem::BadDestination("relative".into()));
        check("/a:/b/../c", Problem::BadDestination("/b/../c".into()));
        check(":/b", Problem::NoSource);
        check("/a:/b:id=x", Problem::BadId("x".into()));
    }

    #[test]
    fn mounts_are_lines_of_csv() {
        let check = |value: &str, expected: &str| {
            assert_eq!(show(&parse_mount(value.as_bytes()).unwrap()), expected, "{value}")
        };
        check("type=bind,src=/a,dst=/b", "/a /b rw");
        check("type=bind,source=/a,destination=/b,ro", "/a /b ro");
        check("type=bind,src=/a,target=/b,readonly", "/a /b ro");
        check(r#"type=bind,"source=/a,b",destination=/c"#, "/a,b /c rw");
        check(r#"type=bind,"source=/a""b",destination=/c"#, "/a\"b /c rw");
        check("type=bind,src=i.sqfs,dst=/m,image-src=/x,id=2", "i.sqfs /m rw image /x Some(2)");
    }

    #[test]
    fn what_is_no_mount_says_what_is_wrong() {
        let check =
            |value: &str, problem| assert_eq!(parse_mount(value.as_bytes()).unwrap_err().problem, problem, "{value}");
        check("type=tmpfs,destination=/m", Problem::Type(Some("tmpfs".into())));
        check("src=/a,dst=/b", Problem::Type(None));
        check("type=bind,src=/a,dst=/b,colour=red", Problem::UnknownKey("colour=red".into()));
        check("type=bind,src=/a", Problem::NoDestination);
        check("type=bind,dst=/b", Problem::NoSource);
        check("type=bind,\"src=/a,dst=/b", Problem::OpenQuote);
    }
}
