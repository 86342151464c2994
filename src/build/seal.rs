//! What the files of `/.singularity.d` say, which make a root file system an image that Apptainer and sifu run alike.
//!
//! ```text
//! /.singularity.d/actions/{exec,run,shell,start,test}    how each verb begins
//! /.singularity.d/env/*.sh                               the environment, in the order of names
//! /.singularity.d/{runscript,startscript,test,runscript.help,labels.json}
//! /.singularity.d/Singularity                            the definition file; earlier ones in bootstrap_history/
//! /scif/apps/NAME/scif/                                  the same for an app
//! ```
//!
//! Everything here is decided from what the file system holds, and given as [`Edit`]s.

use super::edit::Edit;
use super::plan::Seal;
use crate::def::{App, Script};
use crate::sif::Arch;
use crate::tree::lookup::{self, Kind, Lookup, LookupError};
use starter::paths::ContainerPath;
use std::collections::BTreeMap;

/// Scripts that every image has; those of a base image stay.
const SCRIPTS: [(&str, &str); 11] = [
    ("actions/exec", include_str!("seal/exec.sh")),
    ("actions/run", include_str!("seal/run.sh")),
    ("actions/shell", include_str!("seal/shell.sh")),
    ("actions/start", include_str!("seal/start.sh")),
    ("actions/test", include_str!("seal/test.sh")),
    ("env/01-base.sh", "#!/bin/sh\n# The first of the environment: nothing is set before the image's own scripts.\n"),
    ("env/90-environment.sh", ENVIRONMENT_HEAD),
    ("env/94-appsbase.sh", "#!/bin/sh\n# By these, everything in the image finds its apps.\n\n"),
    ("env/95-apps.sh", include_str!("seal/apps.sh")),
    ("env/99-base.sh", include_str!("seal/base.sh")),
    ("env/99-runtimevars.sh", include_str!("seal/runtimevars.sh")),
];

const ENVIRONMENT_HEAD: &str = "#!/bin/sh\n# What %environment says\n\n";

/// Where `%post` writes lines for the environment.
pub const POST_ENVIRONMENT: &str = "/.singularity.d/env/91-environment.sh";
/// Where `%post` writes labels; no part of the image.
pub const POST_LABELS: &str = "/.build.labels";

/// Files of an image that are read here are no larger.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// What is not said by the definition file.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// `--force`: labels and help of the base image are replaced.
    pub replaces: bool,
    pub architecture: Arch,
    /// When the image was built, in seconds since 1970.
    pub time: i64,
    /// Labels that came with the source.
    pub inherited_labels: BTreeMap<String, String>,
}

/// Changes, and what the user should know about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    pub edits: Vec<Edit>,
    pub warnings: Vec<String>,
}

/// Directories, scripts and links that an image needs, as far as `root` lacks them.
pub fn base(root: &dyn Lookup) -> Result<Vec<Edit>, LookupError> {
    let mut edits = Vec::new();
    let mut add = |path: ContainerPath, edit: Edit| -> Result<(), LookupError> {
        if root.lstat(&path)?.is_none() && lookup::resolve(root, &path)?.stat.is_none() {
            edits.push(edit);
        }
        Ok(())
    };
    const DIRECTORIES: [(&str, u16); 11] = [
        ("/dev", 0o755),
        ("/etc", 0o755),
        ("/home", 0o755),
        ("/proc", 0o755),
        ("/root", 0o755),
        ("/sys", 0o755),
        ("/tmp", 0o1777),
        ("/var/tmp", 0o1777),
        ("/.singularity.d/actions", 0o755),
        ("/.singularity.d/env", 0o755),
        ("/.singularity.d/libs", 0o755),
    ];
    for (path, mode) in DIRECTORIES {
        let path = ContainerPath::fixed(path);
        add(path.clone(), Edit::Directory { path, mode })?;
    }
    // What is bound over them at run time needs a name to be bound to.
    for path in ["/etc/hosts", "/etc/resolv.conf"].map(ContainerPath::fixed) {
        add(path.clone(), Edit::File { path, mode: 0o644, content: Vec::new() })?;
    }
    for (name, content) in SCRIPTS {
        let path = own(name);
        add(path.clone(), Edit::File { path, mode: 0o755, content: content.as_bytes().to_vec() })?;
    }
    // Whoever runs an image that does nothing is told why.
    const NO_RUNSCRIPT: &[u8] = b"#!/bin/sh\necho \"This image has no runscript\"\n";
    for (name, content) in [("runscript", NO_RUNSCRIPT), ("startscript", b"#!/bin/sh\n")] {
        let path = own(name);
        add(path.clone(), Edit::File { path, mode: 0o755, content: content.to_vec() })?;
    }
    const LINKS: [(&str, &str); 6] = [
        ("/.exec", ".singularity.d/actions/exec"),
        ("/.run", ".singularity.d/actions/run"),
        ("/.shell", ".singularity.d/actions/shell"),
        ("/.test", ".singularity.d/actions/test"),
        ("/environment", ".singularity.d/env/90-environment.sh"),
        ("/singularity", ".singularity.d/runscript"),
    ];
    for (path, target) in LINKS {
        let path = ContainerPath::fixed(path);
        add(path.clone(), Edit::Symlink { path, target: target.as_bytes().to_vec() })?;
    }
    Ok(edits)
}

/// Directories, scripts and metadata of apps.
pub fn apps(root: &dyn Lookup, apps: &[App]) -> Result<Vec<Edit>, LookupError> {
    let mut edits = Vec::new();
    let mut exports = text_at(root, &own("env/94-appsbase.sh"))?;
    for app in apps {
        let top = app_directory(&app.name);
        let data = ContainerPath::fixed("/scif/data");
        let data = join(&data, &app.name);
        for directory in [join(&top, "bin"), join(&top, "lib"), join(&data, "input"), join(&data, "output")] {
            edits.push(Edit::Directory { path: directory, mode: 0o755 });
        }
        let meta = join(&top, "scif");
        let mut file = |name: &str, mode, content: Vec<u8>| {
            edits.push(Edit::File { path: join(&meta, name), mode, content });
        };
        file("env/01-base.sh", 0o755, app_variables(&app.name));
        file("env/90-environment.sh", 0o755, app.environment.as_ref().map_or_else(Vec::new, |s| s.text.clone()));
        let mut labels = BTreeMap::from([("SCIF_APP_NAME".to_owned(), app.name.clone())]);
        labels.extend(app.labels.iter().cloned());
        file("labels.json", 0o644, labels_json(&labels));
        for (name, script) in [("runscript", &app.run), ("startscript", &app.start), ("test", &app.test)] {
            if let Some(script) = script {
                file(name, 0o755, executable(script));
            }
        }
        if let Some(help) = &app.help {
            file("runscript.help", 0o644, help.text.clone());
        }
        exports.extend(app_exports(app));
    }
    edits.push(Edit::File { path: own("env/94-appsbase.sh"), mode: 0o755, content: exports });
    Ok(edits)
}

/// The directory of an app.
pub fn app_directory(name: &str) -> ContainerPath {
    join(&ContainerPath::fixed("/scif/apps"), name)
}

/// What the definition says about the image.
pub fn seal(root: &dyn Lookup, seal: &Seal, circumstances: &Circumstances) -> Result<Sealed, LookupError> {
    let mut sealed = Sealed::default();
    history(root, seal, &mut sealed.edits)?;
    if let Some(help) = seal.help.as_ref().filter(|help| !help.text.is_empty()) {
        let path = own("runscript.help");
        if root.lstat(&path)?.is_some() && !circumstances.replaces {
            sealed.warnings.push("the base image has a help text, which stays; --force replaces it".to_owned());
        } else {
            sealed.edits.push(Edit::File { path, mode: 0o644, content: help.text.clone() });
        }
    }
    if let Some(environment) = &seal.environment {
        let path = own("env/90-environment.sh");
        let mut content = text_at(root, &path)?;
        if content.is_empty() {
            content.extend_from_slice(ENVIRONMENT_HEAD.as_bytes());
        }
        // Parts of several builds stand apart.
        if !content.ends_with(b"\n\n") {
            content.push(b'\n');
        }
        content.extend_from_slice(&environment.text);
        sealed.edits.push(Edit::File { path, mode: 0o755, content });
    }
    for (name, script) in [("runscript", &seal.runscript), ("startscript", &seal.startscript), ("test", &seal.test)] {
        if let Some(script) = script {
            sealed.edits.push(Edit::File { path: own(name), mode: 0o755, content: executable(script) });
        }
    }
    labels(root, seal, circumstances, &mut sealed)?;
    Ok(sealed)
}

/// The definition file takes its place; the one of the base image goes to the history.
fn history(root: &dyn Lookup, seal: &Seal, edits: &mut Vec<Edit>) -> Result<(), LookupError> {
    let path = own("Singularity");
    let before = text_at(root, &path)?;
    if !before.is_empty() {
        let directory = own("bootstrap_history");
        let known = lookup::list(root, &directory)?.unwrap_or_default();
        let is_free = |number: &usize| {
            let name = format!("Apptainer{number}");
            known.iter().all(|entry| entry.name != name.as_bytes())
        };
        // There are more numbers than entries.
        let number = (0..=known.len()).find(is_free).unwrap_or(known.len());
        let kept = join(&directory, &format!("Apptainer{number}"));
        edits.push(Edit::File { path: kept, mode: 0o644, content: before });
    }
    edits.push(Edit::File { path, mode: 0o644, content: seal.definition.clone() });
    Ok(())
}

fn labels(
    root: &dyn Lookup,
    seal: &Seal,
    circumstances: &Circumstances,
    sealed: &mut Sealed,
) -> Result<(), LookupError> {
    const HELP: &str = "/.singularity.d/runscript.help";
    let path = own("labels.json");
    let mut labels = circumstances.inherited_labels.clone();
    let text = text_at(root, &path)?;
    if !text.is_empty() {
        match serde_json::from_slice::<BTreeMap<String, String>>(&text) {
            Ok(known) => labels.extend(known),
            Err(error) => {
                sealed.warnings.push(format!("the base image's labels can't be read ({error}) and are replaced"));
            }
        }
    }
    let from_post = text_at(root, &ContainerPath::fixed(POST_LABELS))?;
    let from_post = String::from_utf8_lossy(&from_post).into_owned();
    let from_post = from_post.lines().filter_map(|line| {
        let line = line.trim();
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (!name.is_empty() && !name.starts_with('#')).then(|| (name.to_owned(), value.trim().to_owned()))
    });
    let base = labels.clone();
    for (name, value) in seal.labels.iter().cloned().chain(from_post) {
        if base.contains_key(&name) && !circumstances.replaces {
            sealed.warnings.push(format!("the base image has the label `{name}`, which stays; --force replaces it"));
        } else {
            labels.insert(name, value);
        }
    }
    let mut set = |name: &str, value: String| labels.insert(format!("org.label-schema.{name}"), value);
    set("schema-version", "1.0".to_owned());
    set("build-arch", circumstances.architecture.name().to_owned());
    set("build-date", date(circumstances.time));
    set("usage.sifu.version", env!("CARGO_PKG_VERSION").to_owned());
    if seal.help.is_some() {
        set("usage", HELP.to_owned());
        set("usage.apptainer.runscript.help", HELP.to_owned());
    }
    for (key, value) in seal.header.lines() {
        set(&format!("usage.singularity.deffile.{key}"), value.to_owned());
    }
    sealed.edits.push(Edit::File { path, mode: 0o644, content: labels_json(&labels) });
    sealed.edits.push(Edit::Remove { path: ContainerPath::fixed(POST_LABELS) });
    Ok(())
}

/// A script that the kernel runs: with a first line that says by what.
fn executable(script: &Script) -> Vec<u8> {
    let text = script.text.trim_ascii_start();
    if text.starts_with(b"#!") {
        let end = text.iter().position(|&byte| byte == b'\n').map_or(text.len(), |at| at + 1);
        return [&text[..end], b"\n", &text[end..]].concat();
    }
    let arguments = script.arguments.trim();
    let interpreter = match arguments.strip_prefix("-c").map(str::trim_start) {
        // `-c /bin/bash` names the interpreter, as for %post.
        Some(interpreter) if interpreter.starts_with('/') => interpreter.to_owned(),
        _ if arguments.is_empty() => "/bin/sh".to_owned(),
        _ => format!("/bin/sh {arguments}"),
    };
    [b"#!", interpreter.as_bytes(), b"\n\n", &script.text].concat()
}

/// Variables of an app, which its own scripts see.
fn app_variables(name: &str) -> Vec<u8> {
    format!(
        "#!/bin/sh\n\nSCIF_APPNAME={name}\nSCIF_APPROOT=/scif/apps/{name}\nSCIF_APPMETA=/scif/apps/{name}/scif\n\
         SCIF_DATA=/scif/data\nSCIF_APPDATA=/scif/data/{name}\nSCIF_APPINPUT=/scif/data/{name}/input\n\
         SCIF_APPOUTPUT=/scif/data/{name}/output\n\
         export SCIF_APPNAME SCIF_APPROOT SCIF_APPMETA SCIF_DATA SCIF_APPDATA SCIF_APPINPUT SCIF_APPOUTPUT\n"
    )
    .into_bytes()
}

/// Variables by which everything in the image finds an app.
fn app_exports(app: &App) -> Vec<u8> {
    let name = &app.name;
    // A variable's name holds letters, digits and `_` only.
    let suffix: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let meta = format!("/scif/apps/{name}/scif");
    let mut variables = vec![
        ("DATA", format!("/scif/data/{name}")),
        ("META", meta.clone()),
        ("ROOT", format!("/scif/apps/{name}")),
        ("BIN", format!("/scif/apps/{name}/bin")),
        ("LIB", format!("/scif/apps/{name}/lib")),
        ("LABELS", format!("{meta}/labels.json")),
    ];
    if app.environment.is_some() {
        variables.push(("ENV", format!("{meta}/env/90-environment.sh")));
    }
    if app.run.is_some() {
        variables.push(("RUN", format!("{meta}/runscript")));
    }
    if app.start.is_some() {
        variables.push(("START", format!("{meta}/startscript")));
    }
    let lines = variables.iter().map(|(what, value)| format!("export SCIF_APP{what}_{suffix}=\"{value}\"\n"));
    format!("# App {name}\n{}\n", lines.collect::<String>()).into_bytes()
}

/// JSON as Apptainer writes it: sorted, indented by tabs, without a newline at its end.
fn labels_json(labels: &BTreeMap<String, String>) -> Vec<u8> {
    let string = |text: &str| serde_json::Value::from(text).to_string();
    let members: Vec<String> =
        labels.iter().map(|(name, value)| format!("\t{}: {}", string(name), string(value))).collect();
    format!("{{\n{}\n}}", members.join(",\n")).into_bytes()
}

/// `Monday_23_November_2026_23:16:28_UTC`, in the calendar that everybody uses.
fn date(seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years begin in March, so that the leap day is the last; an era is 400 of them.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = (month + 2) % 12;
    let year = era * 400 + year_of_era + i64::from(month < 2);
    format!(
        "{}_{day_of_month}_{}_{year}_{:02}:{:02}:{:02}_UTC",
        DAYS[days.rem_euclid(7) as usize],
        MONTHS[month as usize],
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// The text of a file of the image; empty when there is none.
fn text_at(root: &dyn Lookup, path: &ContainerPath) -> Result<Vec<u8>, LookupError> {
    match lookup::resolve(root, path)? {
        resolved if resolved.stat.as_ref().is_some_and(|stat| stat.kind == Kind::File) => {
            Ok(root.read_file(&resolved.path, MAX_FILE_BYTES)?.unwrap_or_default())
        }
        _ => Ok(Vec::new()),
    }
}

fn own(name: &str) -> ContainerPath {
    join(&ContainerPath::fixed("/.singularity.d"), name)
}

/// Joins names that are known to be good: fixed ones, and those of apps, which the parser has checked.
fn join(directory: &ContainerPath, name: &str) -> ContainerPath {
    let bytes = [directory.as_bytes(), b"/", name.as_bytes()].concat();
    ContainerPath::parse(&bytes).unwrap_or_else(|_| directory.clone())
}

#[cfg(test)]
mod tests;
