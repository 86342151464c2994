//! What an image says of itself: scripts, labels, help, definition file and apps.
//!
//! Apptainer keeps it twice: as files of the root file system, and in a SIF as the object `inspect-metadata.json`:
//!
//! ```text
//! {"data":{"attributes":{"apps":{NAME:{..}},"environment":{PATH:TEXT},"labels":{KEY:VALUE},"runscript":TEXT,
//!   "test":TEXT,"helpfile":TEXT,"deffile":TEXT,"startscript":TEXT}},"type":"container"}
//! ```
//!
//! [`collect`] makes it from the files, [`Metadata::parse`] from the object, [`Metadata::to_json`] writes the object,
//! byte for byte as Go's encoder does (which escapes `<`, `>` and `&` too). Empty attributes are left out.

use crate::tree::lookup::{self, Kind, Lookup, LookupError};
use serde::Deserialize;
use starter::paths::ContainerPath;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The name of the SIF object that holds the metadata.
pub const OBJECT_NAME: &str = "inspect-metadata.json";
/// The largest metadata, as an object and as the sum of the files, in bytes.
pub const MAX_BYTES: u64 = 8 << 20;

/// The content of a script or text file, without its trailing newlines; not necessarily UTF-8.
pub type Text = Vec<u8>;

/// What an image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Apps by name.
    pub apps: BTreeMap<String, App>,
    /// Environment scripts by their path in the container.
    pub environment: BTreeMap<String, Text>,
    pub labels: BTreeMap<String, String>,
    pub runscript: Text,
    pub test: Text,
    pub helpfile: Text,
    pub deffile: Text,
    pub startscript: Text,
}

/// What an app (SCIF: `/scif/apps/NAME`) says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct App {
    /// Environment scripts by their path in the container.
    pub environment: BTreeMap<String, Text>,
    pub labels: BTreeMap<String, String>,
    pub runscript: Text,
    pub startscript: Text,
    pub test: Text,
    pub helpfile: Text,
}

/// Metadata read from files, and what could not be read.
#[derive(Debug, Default)]
pub struct Collected {
    pub metadata: Metadata,
    /// Files that were passed over, each with the reason.
    pub skipped: Vec<Skipped>,
}

/// A file or object of the image that gave no metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file or object.
    pub what: String,
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is passed over: {}", self.what, self.reason)
    }
}

/// Reads the metadata from the files of an image.
///
/// A file that the caller may not read, or labels that are no JSON object, are passed over and named in the result;
/// damage of the file system is an error. Images of Singularity 2.3 and older, which have no `/.singularity.d`, keep
/// their scripts as `/environment` and `/singularity`.
pub fn collect(root: &dyn Lookup) -> Result<Collected, LookupError> {
    let mut reader = Reader { root, left_bytes: MAX_BYTES, skipped: Vec::new() };
    let own = ContainerPath::fixed("/.singularity.d");
    let mut metadata = Metadata {
        environment: reader.scripts(&own, is_environment_script)?,
        labels: reader.labels(&own)?,
        runscript: reader.text(&own, "runscript")?,
        test: reader.text(&own, "test")?,
        helpfile: reader.text(&own, "runscript.help")?,
        deffile: reader.text(&own, "Singularity")?,
        startscript: reader.text(&own, "startscript")?,
        apps: reader.apps()?,
    };
    if lookup::resolve(root, &own)?.stat.is_none() {
        let top = ContainerPath::root();
        let environment = reader.text(&top, "environment")?;
        if !environment.is_empty() {
            metadata.environment.insert("/environment".to_owned(), environment);
        }
        metadata.runscript = reader.text(&top, "singularity")?;
    }
    Ok(Collected { metadata, skipped: reader.skipped })
}

/// Reads small files of an image, up to a total.
struct Reader<'a> {
    root: &'a dyn Lookup,
    left_bytes: u64,
    skipped: Vec<Skipped>,
}

impl Reader<'_> {
    fn apps(&mut self) -> Result<BTreeMap<String, App>, LookupError> {
        let mut apps = BTreeMap::new();
        let top = ContainerPath::fixed("/scif/apps");
        for name in self.names(&top)? {
            let at = child(&child(&top, &name)?, b"scif")?;
            if lookup::resolve(self.root, &at)?.stat.is_none_or(|stat| stat.kind != Kind::Directory) {
                continue;
            }
            let app = App {
                environment: self.scripts(&at, is_numbered_environment_script)?,
                labels: self.labels(&at)?,
                runscript: self.text(&at, "runscript")?,
                startscript: self.text(&at, "startscript")?,
                test: self.text(&at, "test")?,
                helpfile: self.text(&at, "runscript.help")?,
            };
            self.spend(&at, name.len() as u64 + 64)?;
            apps.insert(lossy(&name), app);
        }
        Ok(apps)
    }

    fn scripts(
        &mut self,
        directory: &ContainerPath,
        wanted: fn(&[u8]) -> bool,
    ) -> Result<BTreeMap<String, Text>, LookupError> {
        let mut scripts = BTreeMap::new();
        let directory = child(directory, b"env")?;
        for name in self.names(&directory)?.into_iter().filter(|name| wanted(name)) {
            let path = child(&directory, &name)?;
            let text = self.read(&path)?;
            if !text.is_empty() {
                scripts.insert(lossy(path.as_bytes()), text);
            }
        }
        Ok(scripts)
    }

    fn labels(&mut self, directory: &ContainerPath) -> Result<BTreeMap<String, String>, LookupError> {
        let path = child(directory, b"labels.json")?;
        let text = self.read(&path)?;
        if text.is_empty() {
            return Ok(BTreeMap::new());
        }
        match parse_labels(&text) {
            Ok(labels) => Ok(labels),
            Err(error) => {
                self.skip(&path, &format!("no labels as JSON: {error}"));
                Ok(BTreeMap::new())
            }
        }
    }

    fn text(&mut self, directory: &ContainerPath, name: &str) -> Result<Text, LookupError> {
        let path = child(directory, name.as_bytes())?;
        self.read(&path)
    }

    /// The text of a file; empty when there is no such file.
    fn read(&mut self, path: &ContainerPath) -> Result<Text, LookupError> {
        let mut text = match lookup::read(self.root, path, self.left_bytes) {
            Ok(text) => text.unwrap_or_default(),
            Err(LookupError::Denied { path }) => return Ok(self.skip(&path, "permission denied")),
            Err(LookupError::TooManyLinks { path }) => return Ok(self.skip(&path, "too many symbolic links")),
            Err(error) => return Err(error),
        };
        self.spend(path, text.len() as u64)?;
        trim(&mut text);
        Ok(text)
    }

    /// The names in a directory; none when there is no such directory.
    fn names(&mut self, directory: &ContainerPath) -> Result<Vec<Vec<u8>>, LookupError> {
        let listed = lookup::resolve(self.root, directory).and_then(|at| match at.stat {
            // A packed listing of gigabytes takes little room in an image, and all of the memory here.
            Some(stat) if stat.kind == Kind::Directory && stat.size_bytes > MAX_BYTES => {
                Err(LookupError::TooLarge { path: at.path, size_bytes: stat.size_bytes, limit_bytes: MAX_BYTES })
            }
            Some(_) => self.root.read_dir(&at.path),
            None => Ok(None),
        });
        match listed {
            Ok(entries) => Ok(entries.unwrap_or_default().into_iter().map(|entry| entry.name).collect()),
            Err(LookupError::Denied { path }) => {
                self.skip(&path, "permission denied");
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    fn skip(&mut self, path: &ContainerPath, reason: &str) -> Text {
        self.skipped.push(Skipped { what: format!("{path} in the image"), reason: reason.to_owned() });
        Text::new()
    }

    fn spend(&mut self, path: &ContainerPath, size_bytes: u64) -> Result<(), LookupError> {
        let limit_bytes = self.left_bytes;
        self.left_bytes = limit_bytes.checked_sub(size_bytes).ok_or_else(|| LookupError::TooLarge {
            path: path.clone(),
            size_bytes,
            limit_bytes,
        })?;
        Ok(())
    }
}

/// Makes a file's content what a shell's `$(cat FILE)` gives: no NUL bytes, no newlines at the end.
pub fn trim(text: &mut Text) {
    text.retain(|&byte| byte != 0);
    while text.last() == Some(&b'\n') {
        text.pop();
    }
}

/// `10-docker2singularity.sh` (made from an OCI image) and `90-environment.sh`, `91-environment.sh` …: what the
/// image's author wrote. The rest of the directory is the runtime's own and the same in every image.
fn is_environment_script(name: &[u8]) -> bool {
    (name.starts_with(b"10-docker") && name.ends_with(b".sh")) || is_numbered_environment_script(name)
}

fn is_numbered_environment_script(name: &[u8]) -> bool {
    name.starts_with(b"9") && name.ends_with(b"-environment.sh")
}

fn child(directory: &ContainerPath, name: &[u8]) -> Result<ContainerPath, LookupError> {
    directory.join(name).map_err(|error| LookupError::Damaged { path: directory.clone(), reason: error.to_string() })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads `labels.json`: an object. Values that are no strings (hand-written files have numbers) are kept as their JSON.
fn parse_labels(text: &[u8]) -> Result<BTreeMap<String, String>, serde_json::Error> {
    let text = String::from_utf8_lossy(text);
    let values: BTreeMap<String, Box<serde_json::value::RawValue>> = serde_json::from_str(&text)?;
    Ok(values
        .into_iter()
        .map(|(key, raw)| {
            let value = serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
            (key, value)
        })
        .collect())
}

// The object's JSON as Go's decoder takes it: unknown members ignored, `null` like absent.
#[derive(Deserialize)]
struct Document {
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    attributes: Option<Attributes>,
}

#[derive(Deserialize)]
struct Attributes {
    apps: Option<BTreeMap<String, AppAttributes>>,
    environment: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    runscript: Option<String>,
    test: Option<String>,
    helpfile: Option<String>,
    deffile: Option<String>,
    startscript: Option<String>,
}

#[derive(Deserialize)]
struct AppAttributes {
    environment: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    runscript: Option<String>,
    startscript: Option<String>,
    test: Option<String>,
    helpfile: Option<String>,
}

impl Metadata {
    /// Parses the object `inspect-metadata.json`; the caller bounds its size by [`MAX_BYTES`].
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let text = String::from_utf8_lossy(json);
        let document: Document = serde_json::from_str(&text)?;
        let Some(from) = document.data.and_then(|data| data.attributes) else { return Ok(Self::default()) };
        Ok(Self {
            apps: from.apps.unwrap_or_default().into_iter().map(|(name, app)| (name, app.into())).collect(),
            environment: texts(from.environment),
            labels: from.labels.unwrap_or_default(),
            runscript: text_of(from.runscript),
            test: text_of(from.test),
            helpfile: text_of(from.helpfile),
            deffile: text_of(from.deffile),
            startscript: text_of(from.startscript),
        })
    }

    /// The object `inspect-metadata.json`: one line of compact JSON without a newline at its end.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.document().write(&mut out, None);
        out
    }

    /// The same JSON for people: indented by tabs, with a newline at its end.
    pub fn to_indented_json(&self) -> String {
        let mut out = String::new();
        self.document().write(&mut out, Some(0));
        out.push('\n');
        out
    }

    fn document(&self) -> Json<'_> {
        let mut attributes = Vec::new();
        if !self.apps.is_empty() {
            let apps = self.apps.iter().map(|(name, app)| (name.as_str(), app.json())).collect();
            attributes.push(("apps", Json::Object(apps)));
        }
        push_texts(&mut attributes, "environment", &self.environment);
        push_labels(&mut attributes, &self.labels);
        push_text(&mut attributes, "runscript", &self.runscript);
        push_text(&mut attributes, "test", &self.test);
        push_text(&mut attributes, "helpfile", &self.helpfile);
        push_text(&mut attributes, "deffile", &self.deffile);
        push_text(&mut attributes, "startscript", &self.startscript);
        let data = Json::Object(vec![("attributes", Json::Object(attributes))]);
        Json::Object(vec![("data", data), ("type", Json::Text(b"container"))])
    }
}

impl App {
    fn json(&self) -> Json<'_> {
        let mut members = Vec::new();
        push_texts(&mut members, "environment", &self.environment);
        push_labels(&mut members, &self.labels);
        push_text(&mut members, "runscript", &self.runscript);
        push_text(&mut members, "startscript", &self.startscript);
        push_text(&mut members, "test", &self.test);
        push_text(&mut members, "helpfile", &self.helpfile);
        Json::Object(members)
    }
}

impl From<AppAttributes> for App {
    fn from(from: AppAttributes) -> Self {
        Self {
            environment: texts(from.environment),
            labels: from.labels.unwrap_or_default(),
            runscript: text_of(from.runscript),
            startscript: text_of(from.startscript),
            test: text_of(from.test),
            helpfile: text_of(from.helpfile),
        }
    }
}

fn text_of(text: Option<String>) -> Text {
    text.unwrap_or_default().into_bytes()
}

fn texts(map: Option<BTreeMap<String, String>>) -> BTreeMap<String, Text> {
    map.unwrap_or_default().into_iter().map(|(path, text)| (path, text.into_bytes())).collect()
}

fn push_text<'a>(members: &mut Vec<(&'a str, Json<'a>)>, name: &'static str, text: &'a Text) {
    if !text.is_empty() {
        members.push((name, Json::Text(text)));
    }
}

fn push_texts<'a>(members: &mut Vec<(&'a str, Json<'a>)>, name: &'static str, texts: &'a BTreeMap<String, Text>) {
    if !texts.is_empty() {
        members.push((name, Json::Object(texts.iter().map(|(k, v)| (k.as_str(), Json::Text(v))).collect())));
    }
}

fn push_labels<'a>(members: &mut Vec<(&'a str, Json<'a>)>, labels: &'a BTreeMap<String, String>) {
    if !labels.is_empty() {
        let labels = labels.iter().map(|(k, v)| (k.as_str(), Json::Text(v.as_bytes()))).collect();
        members.push(("labels", Json::Object(labels)));
    }
}

/// The JSON that metadata is made of: strings and objects with ordered members.
enum Json<'a> {
    Text(&'a [u8]),
    Object(Vec<(&'a str, Json<'a>)>),
}

impl Json<'_> {
    /// Appends the value; `depth` is the number of tabs before its members, `None` for the compact form.
    fn write(&self, out: &mut String, depth: Option<usize>) {
        match self {
            Self::Text(text) => write_text(out, text),
            Self::Object(members) if members.is_empty() => out.push_str("{}"),
            Self::Object(members) => {
                out.push('{');
                for (at, (name, value)) in members.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    write_line_start(out, depth.map(|depth| depth + 1));
                    write_text(out, name.as_bytes());
                    out.push_str(if depth.is_some() { ": " } else { ":" });
                    value.write(out, depth.map(|depth| depth + 1));
                }
                write_line_start(out, depth);
                out.push('}');
            }
        }
    }
}

fn write_line_start(out: &mut String, tabs: Option<usize>) {
    if let Some(tabs) = tabs {
        out.push('\n');
        out.extend(std::iter::repeat_n('\t', tabs));
    }
}

/// Writes a string as Go's `encoding/json` does by default: safe inside HTML and JavaScript, invalid UTF-8 as `\ufffd`.
fn write_text(out: &mut String, text: &[u8]) {
    out.push('"');
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match escape(c) {
                Some(escaped) => out.push_str(&escaped),
                None => out.push(c),
            }
        }
        // Go replaces each byte of a broken sequence by itself.
        for _ in chunk.invalid() {
            out.push_str("\\ufffd");
        }
    }
    out.push('"');
}

fn escape(c: char) -> Option<Cow<'static, str>> {
    Some(match c {
        '"' => Cow::Borrowed("\\\""),
        '\\' => Cow::Borrowed("\\\\"),
        '\n' => Cow::Borrowed("\\n"),
        '\r' => Cow::Borrowed("\\r"),
        '\t' => Cow::Borrowed("\\t"),
        '\u{8}' => Cow::Borrowed("\\b"),
        '\u{c}' => Cow::Borrowed("\\f"),
        '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => Cow::Owned(format!("\\u{:04x}", u32::from(c))),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::lookup::{Entry, Stat};
    use proptest::prelude::*;

    /// A root in memory: files by path; directories are implied, and `/scif/apps` says that it has this size.
    struct Files(BTreeMap<&'static str, &'static [u8]>, u64);

    impl Files {
        fn kind(&self, path: &ContainerPath) -> Option<Kind> {
            let name = std::str::from_utf8(path.as_bytes()).unwrap();
            if self.0.contains_key(name) {
                return Some(Kind::File);
            }
            let below = format!("{}/", name.trim_end_matches('/'));
            self.0.keys().any(|file| file.starts_with(&below)).then_some(Kind::Directory)
        }
    }

    impl Lookup for Files {
        fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError> {
            Ok(self.kind(path).map(|kind| Stat {
                kind,
                mode: 0o755,
                uid: 0,
                gid: 0,
                size_bytes: if path.as_bytes() == b"/scif/apps" { self.1 } else { 0 },
                mtime: 0,
                inode: 1,
                nlink: 1,
                rdev: 0,
            }))
        }
        fn read_link(&self, _: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
            Ok(None)
        }
        fn read_file(&self, path: &ContainerPath, limit_bytes: u64) -> Result<Option<Vec<u8>>, LookupError> {
            let Some(content) = self.0.get(std::str::from_utf8(path.as_bytes()).unwrap()) else { return Ok(None) };
            let size_bytes = content.len() as u64;
            if *content == b"denied" {
                return Err(LookupError::Denied { path: path.clone() });
            }
            if size_bytes > limit_bytes {
                return Err(LookupError::TooLarge { path: path.clone(), size_bytes, limit_bytes });
            }
            Ok(Some(content.to_vec()))
        }
        fn read_dir(&self, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
            if self.kind(path) != Some(Kind::Directory) {
                return Ok(None);
            }
            let below = format!("{}/", path.to_string().trim_end_matches('/'));
            let names: std::collections::BTreeSet<&str> =
                self.0.keys().filter_map(|f| f.strip_prefix(below.as_str())?.split('/').next()).collect();
            Ok(Some(names.into_iter().map(|n| Entry { name: n.into(), kind: Kind::File }).collect()))
        }
    }

    fn files<const N: usize>(files: [(&'static str, &'static [u8]); N]) -> Files {
        Files(BTreeMap::from(files), 4096)
    }

    #[track_caller]
    fn check(root: &Files, json: &str) {
        let collected = collect(root).unwrap();
        assert_eq!(collected.metadata.to_json(), json);
    }

    #[test]
    fn an_image_that_says_nothing_has_empty_attributes() {
        check(&files([("/bin/true", b"")]), r#"{"data":{"attributes":{}},"type":"container"}"#);
        assert_eq!(
            Metadata::default().to_indented_json(),
            "{\n\t\"data\": {\n\t\t\"attributes\": {}\n\t},\n\t\"type\": \"container\"\n}\n"
        );
    }

    #[test]
    fn attributes_stand_in_the_order_of_apptainer() {
        check(
            &files([
                ("/.singularity.d/env/01-base.sh", b"no"),
                ("/.singularity.d/env/90-environment.sh", b"e\n"),
                ("/.singularity.d/env/10-docker2singularity.sh", b"d\n"),
                ("/.singularity.d/env/94-appsbase.sh", b"no"),
                ("/.singularity.d/labels.json", b"{\"b\":\"2\",\"a\":\"1\"}"),
                ("/.singularity.d/runscript", b"r\n\n"),
                ("/.singularity.d/runscript.help", b"h"),
                ("/.singularity.d/startscript", b"s"),
                ("/.singularity.d/test", b"\n"),
                ("/.singularity.d/Singularity", b"def"),
                ("/scif/apps/foo/scif/runscript", b"fr"),
                ("/scif/apps/foo/scif/runscript.help", b"fh"),
                ("/scif/apps/foo/scif/startscript", b"fs"),
                ("/scif/apps/foo/scif/env/01-base.sh", b"no"),
                ("/scif/apps/foo/scif/env/90-environment.sh", b"fe"),
                ("/scif/apps/noscif/bin/x", b""),
            ]),
            concat!(
                r#"{"data":{"attributes":{"apps":{"foo":{"environment":{"/scif/apps/foo/scif/env/90-environment.sh":"fe"},"#,
                r#""runscript":"fr","startscript":"fs","helpfile":"fh"}},"#,
                r#""environment":{"/.singularity.d/env/10-docker2singularity.sh":"d","#,
                r#""/.singularity.d/env/90-environment.sh":"e"},"labels":{"a":"1","b":"2"},"#,
                r#""runscript":"r","helpfile":"h","deffile":"def","startscript":"s"}},"type":"container"}"#
            ),
        );
    }

    #[test]
    fn an_image_without_singularity_d_keeps_its_scripts_at_the_top() {
        check(
            &files([("/environment", b"export A=1\n"), ("/singularity", b"#!/bin/sh\n")]),
            r##"{"data":{"attributes":{"environment":{"/environment":"export A=1"},"runscript":"#!/bin/sh"}},"type":"container"}"##,
        );
    }

    #[test]
    fn text_is_escaped_as_go_does() {
        let mut out = String::new();
        write_text(&mut out, b"a<b>&\"\\\t\r\n\x01\x7f\xff\xc3\xa9\xe2\x80\xa8\x08\x0c");
        assert_eq!(out, "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\t\\r\\n\\u0001\u{7f}\\ufffd\u{e9}\\u2028\\b\\f\"");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let root = files([
            ("/.singularity.d/runscript", b"#!/bin/sh\necho \"<&>\""),
            ("/.singularity.d/labels.json", b"{\"k\":\"v\"}"),
            ("/scif/apps/a/scif/test", b"t"),
        ]);
        let metadata = collect(&root).unwrap().metadata;
        assert_eq!(Metadata::parse(metadata.to_json().as_bytes()).unwrap(), metadata);
        assert_eq!(Metadata::parse(metadata.to_indented_json().as_bytes()).unwrap(), metadata);
    }

    proptest! {
        #[test]
        fn any_text_survives_the_object(key in ".*", label in ".*", script in ".*") {
            let app = App { labels: BTreeMap::from([(key.clone(), label.clone())]), ..App::default() };
            let metadata = Metadata {
                apps: BTreeMap::from([(key.clone(), app)]),
                environment: BTreeMap::from([(key.clone(), script.clone().into_bytes())]),
                labels: BTreeMap::from([(key, label)]),
                runscript: script.into_bytes(),
                ..Metadata::default()
            };
            prop_assert_eq!(&Metadata::parse(metadata.to_json().as_bytes()).unwrap(), &metadata);
            prop_assert_eq!(&Metadata::parse(metadata.to_indented_json().as_bytes()).unwrap(), &metadata);
        }

        #[test]
        fn no_object_panics(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(metadata) = Metadata::parse(&json) {
                // What was understood is written in a form that is understood the same.
                prop_assert_eq!(Metadata::parse(metadata.to_json().as_bytes()).unwrap(), metadata);
            }
        }
    }

    #[test]
    fn a_directory_with_a_listing_beyond_reason_is_refused() {
        let mut root = files([("/scif/apps/a/scif/test", b"t")]);
        root.1 = MAX_BYTES + 1;
        assert!(matches!(collect(&root), Err(LookupError::TooLarge { .. })));
    }

    #[test]
    fn json_of_another_shape_is_an_error_or_empty_but_no_panic() {
        assert_eq!(Metadata::parse(b"{}").unwrap(), Metadata::default());
        assert_eq!(Metadata::parse(b"{\"data\":null}").unwrap(), Metadata::default());
        for bad in [&b"[]"[..], b"", b"{\"data\":{\"attributes\":{\"labels\":7}}}", b"{\"data\":"] {
            assert!(Metadata::parse(bad).is_err(), "{}", lossy(bad));
        }
        let deep = vec![b'['; 100_000];
        assert!(Metadata::parse(&deep).is_err());
    }

    #[test]
    fn labels_that_are_no_strings_keep_their_json_and_broken_ones_are_named() {
        check(
            &files([("/.singularity.d/labels.json", b"{\"n\":5,\"o\":{\"a\": 1}}")]),
            r#"{"data":{"attributes":{"labels":{"n":"5","o":"{\"a\": 1}"}}},"type":"container"}"#,
        );
        let broken = collect(&files([("/.singularity.d/labels.json", b"{\"n\":")])).unwrap();
        assert_eq!(broken.metadata, Metadata::default());
        assert_eq!(broken.skipped[0].what, "/.singularity.d/labels.json in the image");
    }

    #[test]
    fn a_file_that_may_not_be_read_is_passed_over_and_named() {
        let root = files([("/.singularity.d/runscript", b"denied"), ("/.singularity.d/test", b"t")]);
        let collected = collect(&root).unwrap();
        assert_eq!(collected.metadata.test, b"t");
        assert_eq!(
            collected.skipped[0].to_string(),
            "/.singularity.d/runscript in the image is passed over: permission denied"
        );
    }

    #[test]
    fn more_text_than_the_limit_is_refused() {
        let big: &'static [u8] = Box::leak(vec![b'x'; (MAX_BYTES / 2) as usize + 1].into_boxed_slice());
        let root = files([("/.singularity.d/runscript", big), ("/.singularity.d/test", big)]);
        assert!(matches!(collect(&root), Err(LookupError::TooLarge { .. })));
    }
}
