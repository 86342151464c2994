//! `inspect`: prints what an image says of itself. No container is started.
//!
//! The order of what is printed as text is that of Apptainer: apps, definition file, runscript, startscript, test, help,
//! environment, labels.

use crate::image::metadata::{App, Metadata, Text};
use crate::image::{self, ImageError};
use crate::report::{self, Failure};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Write};

/// What of an image is shown. Nothing chosen means the labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InspectOptions {
    pub labels: bool,
    pub deffile: bool,
    pub runscript: bool,
    pub startscript: bool,
    pub test: bool,
    pub environment: bool,
    pub helpfile: bool,
    pub list_apps: bool,
    /// Everything, as JSON.
    pub all: bool,
    pub json: bool,
    /// The app whose scripts, labels and help are shown instead of the image's own.
    pub app: Option<String>,
}

/// Prints what `options` ask for of the image at `image`.
pub fn run(options: &InspectOptions, image: &OsStr, out: &mut dyn Write) -> Result<(), Failure> {
    let metadata = metadata(image).map_err(|error| report::failure(&error))?;
    let shown = select(metadata, options);
    let text = if options.json || options.all { shown.to_indented_json().into_bytes() } else { text(&shown, options) };
    print(&text, out)
}

/// Reads an image's metadata, and warns of what could not be read.
pub(super) fn metadata(image: &OsStr) -> Result<Metadata, ImageError> {
    let collected = image::open_to_read(image)?.into_metadata()?;
    for skipped in &collected.skipped {
        report::warning(skipped);
    }
    Ok(collected.metadata)
}

/// Writes to standard output; a reader that went away early is no failure.
pub(super) fn print(text: &[u8], out: &mut dyn Write) -> Result<(), Failure> {
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Keeps of `all` what is asked for.
fn select(all: Metadata, options: &InspectOptions) -> Metadata {
    if options.all {
        return all;
    }
    let nothing_chosen = !(options.deffile
        || options.runscript
        || options.startscript
        || options.test
        || options.environment
        || options.helpfile
        || options.list_apps);
    let labels = options.labels || nothing_chosen;
    let mut shown = Metadata::default();
    if options.deffile {
        shown.deffile = all.deffile;
    }
    if let Some(name) = &options.app {
        let app = all.apps.get(name).cloned().unwrap_or_default();
        let mut part = App::default();
        keep(options.environment, &mut part.environment, app.environment);
        keep(labels, &mut part.labels, app.labels);
        keep(options.runscript, &mut part.runscript, app.runscript);
        keep(options.startscript, &mut part.startscript, app.startscript);
        keep(options.test, &mut part.test, app.test);
        keep(options.helpfile, &mut part.helpfile, app.helpfile);
        if part != App::default() {
            shown.apps.insert(name.clone(), part);
        }
    } else {
        keep(options.environment, &mut shown.environment, all.environment);
        keep(labels, &mut shown.labels, all.labels);
        keep(options.runscript, &mut shown.runscript, all.runscript);
        keep(options.startscript, &mut shown.startscript, all.startscript);
        keep(options.test, &mut shown.test, all.test);
        keep(options.helpfile, &mut shown.helpfile, all.helpfile);
    }
    // The list is of all apps, whichever one is asked about.
    keep(options.list_apps, &mut shown.apps, all.apps);
    shown
}

fn keep<T>(wanted: bool, into: &mut T, value: T) {
    if wanted {
        *into = value;
    }
}

/// The text form of what [`select`] kept. Scripts are data and are printed as they are; names and labels come with
/// control characters made visible.
fn text(shown: &Metadata, options: &InspectOptions) -> Vec<u8> {
    let mut out = Vec::new();
    if options.list_apps {
        for name in shown.apps.keys() {
            line(&mut out, report::printable(name).as_bytes());
        }
    }
    let part = match &options.app {
        Some(name) => shown.apps.get(name).cloned().unwrap_or_default(),
        None => App {
            environment: shown.environment.clone(),
            labels: shown.labels.clone(),
            runscript: shown.runscript.clone(),
            startscript: shown.startscript.clone(),
            test: shown.test.clone(),
            helpfile: shown.helpfile.clone(),
        },
    };
    for script in [&shown.deffile, &part.runscript, &part.startscript, &part.test, &part.helpfile] {
        if !script.is_empty() {
            line(&mut out, script);
        }
    }
    environment(&mut out, &part.environment);
    for (key, value) in &part.labels {
        line(&mut out, report::printable(&format!("{key}: {value}")).as_bytes());
    }
    out
}

fn environment(out: &mut Vec<u8>, scripts: &BTreeMap<String, Text>) {
    for (path, script) in scripts {
        line(out, format!("=== {} ===", report::printable(path)).as_bytes());
        line(out, script);
        line(out, b"");
    }
}

fn line(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Metadata {
        let app = |name: &str| App {
            labels: BTreeMap::from([("SCIF_APP_NAME".to_owned(), name.to_owned())]),
            runscript: format!("run {name}").into_bytes(),
            ..App::default()
        };
        Metadata {
            apps: BTreeMap::from([("a".to_owned(), app("a")), ("b".to_owned(), app("b"))]),
            environment: BTreeMap::from([("/.singularity.d/env/90-environment.sh".to_owned(), b"export A=1".to_vec())]),
            labels: BTreeMap::from([("z".to_owned(), String::new()), ("B".to_owned(), "\u{1b}[2J".to_owned())]),
            runscript: b"run".to_vec(),
            test: b"test".to_vec(),
            helpfile: b"help".to_vec(),
            deffile: b"def".to_vec(),
            startscript: b"start".to_vec(),
        }
    }

    #[track_caller]
    fn check(options: InspectOptions, expected: &str) {
        let shown = select(example(), &options);
        assert_eq!(String::from_utf8(text(&shown, &options)).unwrap(), expected);
    }

    #[test]
    fn labels_are_shown_by_default_sorted_and_without_escapes_for_the_terminal() {
        check(InspectOptions::default(), "B: \\u{1b}[2J\nz: \n");
        check(InspectOptions { labels: true, ..Default::default() }, "B: \\u{1b}[2J\nz: \n");
    }

    #[test]
    fn everything_stands_in_the_order_of_apptainer() {
        let options = InspectOptions {
            labels: true,
            deffile: true,
            runscript: true,
            startscript: true,
            test: true,
            environment: true,
            helpfile: true,
            list_apps: true,
            ..Default::default()
        };
        check(
            options,
            "a\nb\ndef\nrun\nstart\ntest\nhelp\n=== /.singularity.d/env/90-environment.sh ===\nexport A=1\n\n\
             B: \\u{1b}[2J\nz: \n",
        );
    }

    #[test]
    fn an_app_stands_in_for_the_image_except_for_the_definition_file() {
        let app = |name: &str| Some(name.to_owned());
        check(InspectOptions { app: app("a"), ..Default::default() }, "SCIF_APP_NAME: a\n");
        check(InspectOptions { app: app("a"), runscript: true, deffile: true, ..Default::default() }, "def\nrun a\n");
        check(InspectOptions { app: app("a"), test: true, ..Default::default() }, "");
        check(InspectOptions { app: app("none"), ..Default::default() }, "");
    }

    #[test]
    fn json_holds_what_is_asked_for_only() {
        let json = |options| select(example(), &options).to_json();
        assert_eq!(
            json(InspectOptions { runscript: true, ..Default::default() }),
            r#"{"data":{"attributes":{"runscript":"run"}},"type":"container"}"#
        );
        assert_eq!(
            json(InspectOptions { app: Some("b".into()), runscript: true, ..Default::default() }),
            r#"{"data":{"attributes":{"apps":{"b":{"runscript":"run b"}}}},"type":"container"}"#
        );
        assert_eq!(
            json(InspectOptions { app: Some("none".into()), ..Default::default() }),
            r#"{"data":{"attributes":{}},"type":"container"}"#
        );
        let every_app = r#""apps":{"a":{"labels":{"SCIF_APP_NAME":"a"},"runscript":"run a"},"b":{"labels":{"SCIF_APP_NAME":"b"},"runscript":"run b"}}"#;
        assert!(
            json(InspectOptions { list_apps: true, app: Some("b".into()), ..Default::default() }).contains(every_app)
        );
        assert_eq!(json(InspectOptions { all: true, ..Default::default() }), example().to_json());
    }
}
