//! Definitions in JSON, as Apptainer's programs exchange them: one object for each stage.
//!
//! ```text
//! {"header": {"bootstrap": "scratch"},              Bootstrap: scratch
//!  "buildData": {"buildScripts": {                  %post -u
//!    "post": {"args": "-u", "script": "make"}}}}        make
//! ```
//!
//! They are written as the text that says the same, with marks where sections begin: so a line of a script can begin with
//! anything. `raw` and `fullraw`, which hold such a text already, are not read: what is built is what the fields say.

use super::SectionName;
use super::error::{DefError, Problem};
use super::split::{Line, RawSection, RawStage};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Json {
    header: Option<BTreeMap<String, String>>,
    image_data: Option<ImageData>,
    build_data: Option<BuildData>,
    /// Sections of apps: `appinstall NAME` and its lines.
    custom_data: Option<BTreeMap<String, String>>,
    app_order: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ImageData {
    labels: Option<BTreeMap<String, String>>,
    image_scripts: BTreeMap<String, Script>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BuildData {
    files: Option<Vec<Files>>,
    build_scripts: BTreeMap<String, Script>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Script {
    args: String,
    script: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Files {
    args: String,
    files: Option<Vec<Transfer>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Transfer {
    source: String,
    destination: String,
}

/// A definition file, and where its parts begin.
#[derive(Default)]
pub(super) struct Written {
    pub text: String,
    marks: Vec<Mark>,
    lines: usize,
}

/// What begins at a line (from 0).
struct Mark {
    line: usize,
    /// `None` for the header of a stage.
    section: Option<SectionName>,
}

/// Writes the text that says the same.
pub(super) fn write(json: &[u8]) -> Result<Written, DefError> {
    let is_list = json.trim_ascii_start().first() == Some(&b'[');
    let stages: Result<Vec<Json>, _> =
        if is_list { serde_json::from_slice(json) } else { serde_json::from_slice(json).map(|stage| vec![stage]) };
    let stages = stages.map_err(|error| {
        let line = u32::try_from(error.line()).unwrap_or(u32::MAX).max(1);
        let column = u32::try_from(error.column()).unwrap_or(u32::MAX).max(1);
        let shown = json.split(|&byte| byte == b'\n').nth(line as usize - 1).unwrap_or_default();
        const SHOWN_BYTES: usize = 200;
        let shown = shown[..shown.len().min(SHOWN_BYTES)].to_vec();
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        DefError { line, column, shown, problem: Problem::Json { reason } }
    })?;
    if stages.is_empty() {
        return Err(DefError { line: 1, column: 1, shown: Vec::new(), problem: Problem::Empty });
    }
    let mut written = Written::default();
    for stage in stages {
        written.stage(stage)?;
    }
    Ok(written)
}

impl Written {
    fn stage(&mut self, stage: Json) -> Result<(), DefError> {
        let (image, build) = (stage.image_data.unwrap_or_default(), stage.build_data.unwrap_or_default());
        self.begin(None);
        let header = stage.header.unwrap_or_default();
        let (bootstrap, others): (Vec<_>, Vec<_>) =
            header.iter().partition(|(key, _)| key.eq_ignore_ascii_case("bootstrap"));
        for (key, value) in bootstrap.into_iter().chain(others) {
            self.line(&format!("{}: {}", one_line(key), one_line(value)));
        }
        self.line("");
        let labels = image.labels.unwrap_or_default();
        if !labels.is_empty() {
            self.section(
                SectionName::Labels,
                "",
                &labels.iter().map(|(n, v)| format!("    {} {}", one_line(n), one_line(v))),
            );
        }
        for files in build.files.unwrap_or_default() {
            let lines = files.files.unwrap_or_default();
            if !lines.is_empty() {
                let words = |transfer: &Transfer| match transfer.destination.as_str() {
                    "" => format!("    {}", quoted(&transfer.source)),
                    destination => format!("    {} {}", quoted(&transfer.source), quoted(destination)),
                };
                self.section(SectionName::Files, &files.args, &lines.iter().map(words));
            }
        }
        // Apptainer holds `%test` in both places, and runs that of the build.
        let has_test = build.build_scripts.get("test").is_some_and(|test| !test.script.is_empty());
        let of_image = image.image_scripts.iter().filter(|(name, _)| !(has_test && name.as_str() == "test"));
        for (name, script) in build.build_scripts.iter().chain(of_image) {
            if !script.script.is_empty() {
                self.section(named(name)?, &script.args, &script.script.lines().map(str::to_owned));
            }
        }
        self.apps(&stage.custom_data.unwrap_or_default(), &stage.app_order.unwrap_or_default())
    }

    /// The sections of apps, in the order of the apps.
    fn apps(&mut self, sections: &BTreeMap<String, String>, order: &[String]) -> Result<(), DefError> {
        let place = |app: &str| order.iter().position(|known| known == app).unwrap_or(usize::MAX);
        let parts =
            |key: &str| key.split_once(' ').map_or((key.to_owned(), String::new()), |(s, a)| (s.into(), a.into()));
        let mut keys: Vec<(String, String, &String)> = sections
            .iter()
            .map(|(key, text)| (parts(key), text))
            .map(|((section, app), text)| (section, app, text))
            .collect();
        keys.sort_by_key(|(_, app, _)| place(app));
        for (section, app, text) in keys {
            self.section(named(&section)?, &app, &text.lines().map(str::to_owned));
        }
        Ok(())
    }

    fn section(&mut self, name: SectionName, arguments: &str, lines: &(impl Iterator<Item = String> + Clone)) {
        self.begin(Some(name));
        let head = format!("%{} {}", name.as_str(), one_line(arguments));
        self.line(head.trim_end());
        for line in lines.clone() {
            self.line(&line);
        }
        self.line("");
    }

    fn begin(&mut self, section: Option<SectionName>) {
        self.marks.push(Mark { line: self.lines, section });
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
        self.lines += 1;
    }

    /// Cuts the lines of the text where it was marked.
    pub fn stages<'a>(&self, lines: &[Line<'a>]) -> Vec<RawStage<'a>> {
        let ends = self.marks.iter().skip(1).map(|mark| mark.line).chain([lines.len()]);
        let mut stages: Vec<RawStage> = Vec::new();
        for (mark, end) in self.marks.iter().zip(ends) {
            let part = lines.get(mark.line..end).unwrap_or_default();
            match (mark.section, stages.last_mut(), part.split_first()) {
                (Some(name), Some(stage), Some((line, rest))) => stage.sections.push(RawSection {
                    name,
                    line: *line,
                    arguments_at: 1 + name.as_str().len(),
                    lines: rest.to_vec(),
                }),
                _ => stages.push(RawStage { header: part.to_vec(), sections: Vec::new() }),
            }
        }
        stages
    }
}

fn named(name: &str) -> Result<SectionName, DefError> {
    SectionName::parse(name).ok_or_else(|| {
        let meant = SectionName::nearest(name);
        let problem = Problem::UnknownSection { name: name.to_owned(), meant };
        DefError { line: 1, column: 1, shown: Vec::new(), problem }
    })
}

/// What stands in one line can't hold another.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// A path as one word of `%files`.
fn quoted(path: &str) -> String {
    let path = one_line(path);
    if path.contains(char::is_whitespace) { format!("\"{path}\"") } else { path }
}

#[cfg(test)]
mod tests {
    use super::super::{BuildArgs, parse, parse_json};

    const JSON: &str = r#"{
        "header": {"from": "base.sif", "bootstrap": "localimage"},
        "imageData": {"labels": {"Version": "v1.0"}, "metadata": null, "imageScripts": {
            "runScript": {"args": "", "script": "    echo \"$@\"\n"}, "test": {"script": "ignored"}}},
        "buildData": {"files": [{"args": "", "files": [{"source": "my file", "destination": "/opt/"}, {"source": "a"}]}],
            "buildScripts": {"post": {"args": "-u", "script": "cat <<X\n%post\nBootstrap: no\n"}, "test": {"script": "true"},
            "setup": {"args": "", "script": ""}}},
        "customData": {"appinstall b": "touch b\n", "appinstall a": "touch a\n"}, "appOrder": ["b", "a"], "raw": "IyBz"}"#;

    const TEXT: &str = "Bootstrap: localimage\nFrom: base.sif\n%labels\nVersion v1.0\n%files\n\"my file\" /opt/\na\n%test\ntrue\n\
        %runscript\n    echo \"$@\"\n%appinstall b\ntouch b\n%appinstall a\ntouch a\n";

    #[test]
    fn the_fields_mean_what_a_definition_file_says() {
        let given = BuildArgs::default();
        let json = parse_json(JSON.as_bytes(), &given).expect("a definition");
        let text = parse(TEXT.as_bytes(), &given).expect("a definition");
        let [of_json, of_text] = [&json.stages[0], &text.stages[0]];
        let mut header: Vec<_> = of_json.header.lines().collect();
        header.sort_unstable();
        assert_eq!(header, [("bootstrap", "localimage"), ("from", "base.sif")]);
        assert_eq!(of_json.labels, of_text.labels);
        let script = |script: &Option<super::super::Script>| script.as_ref().map(|script| script.text.clone());
        assert_eq!(script(&of_json.runscript), script(&of_text.runscript));
        assert_eq!(script(&of_json.test), script(&of_text.test));
        let files = |stage: &super::super::Stage| -> Vec<_> {
            let transfers = stage.files.iter().flat_map(|files| &files.transfers);
            transfers.map(|t| (t.source.text.clone(), t.target.as_ref().map(|word| word.text.clone()))).collect()
        };
        assert_eq!(files(of_json), files(of_text));
        let apps =
            |stage: &super::super::Stage| -> Vec<String> { stage.apps.iter().map(|app| app.name.clone()).collect() };
        assert_eq!(apps(of_json), ["b", "a"]);
        assert_eq!(of_json.post.len(), 1);
        assert_eq!((of_json.post[0].arguments.as_str(), of_json.setup.len()), ("-u", 0));
        assert_eq!(of_json.post[0].text, b"cat <<X\n%post\nBootstrap: no\n");
    }

    #[test]
    fn a_list_has_a_stage_for_each_object() {
        let json = r#"[{"header": {"bootstrap": "scratch", "stage": "one"}}, {"header": {"bootstrap": "scratch"},
            "buildData": {"files": [{"args": "from one", "files": [{"source": "/a", "destination": ""}]}]}}]"#;
        let definition = parse_json(json.as_bytes(), &BuildArgs::default()).expect("a definition");
        assert_eq!(definition.stages.len(), 2);
        assert_eq!(definition.stages[1].files[0].from.as_deref(), Some("one"));
        assert!(definition.text.starts_with(b"bootstrap: scratch\nstage: one\n"));
    }

    #[track_caller]
    fn fails(json: &str, expected: &str) {
        let error = parse_json(json.as_bytes(), &BuildArgs::default()).expect_err("an error").to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_no_definition_is_an_error() {
        fails("Bootstrap: scratch\n", "no definition in JSON");
        fails("{", "no definition in JSON");
        fails("[]", "1:1: ");
        fails(r#"{"header": {"from": "x"}}"#, "Bootstrap");
        fails(r#"{"header": {"bootstrap": "scratch", "form": "x"}}"#, "form");
        fails(
            r#"{"header": {"bootstrap": "scratch"}, "buildData": {"buildScripts": {"pots": {"script": "x"}}}}"#,
            "pots",
        );
    }
}
