//! What a build will do, decided before anything is done.
//!
//! ```text
//! for each stage:  %pre ─ source ─ base ─ apps ─ %files from ─ %setup ─ %files ─ %post, %appinstall ─ seal ─ %test
//! ```
//!
//! The order is Apptainer's. [`plan`] is pure: `build` does what it says.

use crate::def::{App, Definition, Files, Header, Script, Stage, Transfer};

/// A section that `--section` can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    Setup,
    Post,
    Files,
    Environment,
    Test,
    Labels,
}

impl Chosen {
    /// What each name stands for; `none` chooses nothing, `all` everything.
    const NAMES: [(&str, Self); 6] = [
        ("setup", Self::Setup),
        ("post", Self::Post),
        ("files", Self::Files),
        ("environment", Self::Environment),
        ("test", Self::Test),
        ("labels", Self::Labels),
    ];
}

/// Which sections are done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice(Option<Vec<Chosen>>);

impl Choice {
    /// Reads the words of `--section`.
    ///
    /// # Errors
    /// The word that names no section.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let mut chosen = Vec::new();
        for word in words {
            match word.as_str() {
                "all" => return Ok(Self::default()),
                "none" => {}
                word => match Chosen::NAMES.iter().find(|(name, _)| *name == word) {
                    Some((_, section)) => chosen.push(*section),
                    None => return Err(word.to_owned()),
                },
            }
        }
        Ok(Self(Some(chosen)))
    }

    /// Whether every section is done.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether a section is done.
    pub fn has(&self, section: Chosen) -> bool {
        self.0.as_ref().is_none_or(|chosen| chosen.contains(&section))
    }
}

/// What the command line says about the sections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub sections: Choice,
    /// `--notest`: `%test` is written to the image and not run.
    pub skips_tests: bool,
    /// `--update`: the sections are run over what is there, without the header.
    pub updates: bool,
    /// The image becomes a directory, so the last stage is built in one.
    pub makes_directory: bool,
}

/// Everything that will be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildPlan {
    /// In order; the last one becomes the image.
    pub stages: Vec<StagePlan>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagePlan {
    /// What messages call it: its name, or its number from 1.
    pub title: String,
    /// Scripts on the host before anything is there.
    pub pre: Vec<Script>,
    /// Where the file system comes from; `None` with `--update`.
    pub header: Option<Header>,
    pub actions: Vec<Action>,
    /// Whether a directory is needed; otherwise the file system stays a value, and nothing is unpacked.
    pub needs_directory: bool,
}

impl StagePlan {
    /// Whether a script of the definition runs, here or in the container.
    pub fn runs_scripts(&self) -> bool {
        let on_host = self.actions.iter().any(|action| matches!(action, Action::Setup(_)));
        !self.pre.is_empty() || on_host || self.runs_in_container()
    }

    /// Whether a script runs in the container.
    pub fn runs_in_container(&self) -> bool {
        self.actions.iter().any(|a| matches!(a, Action::Post(_) | Action::InstallApp { .. } | Action::Test))
    }
}

/// A step of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Puts in what every image has.
    Base,
    /// Puts in the directories and scripts of the apps.
    Apps(Vec<App>),
    CopyFromStage {
        stage: usize,
        transfers: Vec<Transfer>,
    },
    /// `%setup`, on the host.
    Setup(Script),
    CopyFromHost {
        transfers: Vec<Transfer>,
    },
    /// Files of an app; its targets are below the app's directory.
    CopyForApp {
        app: String,
        transfers: Vec<Transfer>,
    },
    /// `%post`, in the container.
    Post(Script),
    /// `%appinstall`, in the container.
    InstallApp {
        app: String,
        script: Script,
    },
    /// Writes what the definition says about the image.
    Seal(Box<Seal>),
    /// Runs `%test`, in the container.
    Test,
}

impl Action {
    /// Whether it can be done to a file system that is a value.
    fn is_edit(&self) -> bool {
        matches!(self, Self::Base | Self::Apps(_) | Self::Seal(_))
    }
}

/// What a stage says about its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    pub header: Header,
    /// The definition file.
    pub definition: Vec<u8>,
    pub environment: Option<Script>,
    pub runscript: Option<Script>,
    pub startscript: Option<Script>,
    pub test: Option<Script>,
    pub help: Option<Script>,
    pub labels: Vec<(String, String)>,
}

/// Decides what is done.
pub fn plan(definition: &Definition, options: &Options) -> BuildPlan {
    let mut stages = Vec::new();
    for (index, stage) in definition.stages.iter().enumerate() {
        let is_last = index + 1 == definition.stages.len();
        stages.push(of_stage(definition, index, stage, options, is_last));
    }
    BuildPlan { stages }
}

fn of_stage(definition: &Definition, index: usize, stage: &Stage, options: &Options, is_last: bool) -> StagePlan {
    let has = |section| options.sections.has(section);
    let updates = options.updates && is_last;
    let mut actions = vec![Action::Base];
    if !stage.apps.is_empty() {
        actions.push(Action::Apps(stage.apps.clone()));
    }
    let with_lines = |files: &&Files| !files.transfers.is_empty() && has(Chosen::Files);
    let number_of = |name: &str| definition.stages[..index].iter().position(|stage| stage.name() == Some(name));
    for files in stage.files.iter().filter(with_lines) {
        if let Some(from) = files.from.as_deref().and_then(number_of) {
            actions.push(Action::CopyFromStage { stage: from, transfers: files.transfers.clone() });
        }
    }
    let scripts = |scripts: &[Script], section| -> Vec<Script> {
        let wanted = scripts.iter().filter(|script| has(section) && !script.text.is_empty());
        wanted.cloned().collect()
    };
    actions.extend(scripts(&stage.setup, Chosen::Setup).into_iter().map(Action::Setup));
    for files in stage.files.iter().filter(with_lines).filter(|files| files.from.is_none()) {
        actions.push(Action::CopyFromHost { transfers: files.transfers.clone() });
    }
    for app in stage.apps.iter().filter(|app| !app.files.is_empty() && has(Chosen::Files)) {
        actions.push(Action::CopyForApp { app: app.name.clone(), transfers: app.files.clone() });
    }
    actions.extend(scripts(&stage.post, Chosen::Post).into_iter().map(Action::Post));
    for app in stage.apps.iter().filter(|_| has(Chosen::Post)) {
        if let Some(script) = app.install.as_ref().filter(|script| !script.text.is_empty()) {
            actions.push(Action::InstallApp { app: app.name.clone(), script: script.clone() });
        }
    }
    // As in Apptainer: these have no names of their own for `--section`, so they come with all of it.
    let all = options.sections.is_all();
    // A section without a line says nothing, and what the base image says stays.
    let said = |script: &Option<Script>, wanted: bool| script.clone().filter(|s| wanted && !s.text.is_empty());
    actions.push(Action::Seal(Box::new(Seal {
        header: stage.header.clone(),
        definition: definition.text.clone(),
        environment: said(&stage.environment, has(Chosen::Environment)),
        runscript: said(&stage.runscript, all),
        startscript: said(&stage.startscript, all),
        test: said(&stage.test, has(Chosen::Test)),
        help: said(&stage.help, all),
        labels: if has(Chosen::Labels) { stage.labels.clone() } else { Vec::new() },
    })));
    if stage.test.as_ref().is_some_and(|test| !test.text.is_empty()) && has(Chosen::Test) && !options.skips_tests {
        actions.push(Action::Test);
    }
    // A stage that is no image is there to be copied from.
    let needs_directory = !is_last || options.makes_directory || updates || !actions.iter().all(Action::is_edit);
    StagePlan {
        title: stage.name().map_or_else(|| (index + 1).to_string(), str::to_owned),
        pre: scripts(&stage.pre, Chosen::Setup),
        header: (!updates).then(|| stage.header.clone()),
        actions,
        needs_directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::def::{BuildArgs, parse};

    fn planned(text: &str, options: &Options) -> BuildPlan {
        plan(&parse(text.as_bytes(), &BuildArgs::default()).expect("a definition"), options)
    }

    /// The names of the last stage's actions.
    fn names(text: &str, options: &Options) -> Vec<&'static str> {
        let plan = planned(text, options);
        let stage = plan.stages.last().expect("a stage");
        let name = |action: &Action| match action {
            Action::Base => "base",
            Action::Apps(_) => "apps",
            Action::CopyFromStage { .. } => "files from stage",
            Action::Setup(_) => "setup",
            Action::CopyFromHost { .. } => "files",
            Action::CopyForApp { .. } => "appfiles",
            Action::Post(_) => "post",
            Action::InstallApp { .. } => "appinstall",
            Action::Seal(_) => "seal",
            Action::Test => "test",
        };
        stage.actions.iter().map(name).collect()
    }

    const EVERYTHING: &str = "Bootstrap: scratch\nStage: a\n%post\nx\nBootstrap: scratch\n%test\nx\n%post\nx\n%appinstall b\nx\n\
        %appfiles b\nx\n%files\nx\n%setup\nx\n%files from a\n/x\n%pre\nx\n%labels\na b\n%environment\nx\n";

    #[test]
    fn the_order_of_sections_in_the_file_does_not_matter() {
        let expected =
            ["base", "apps", "files from stage", "setup", "files", "appfiles", "post", "appinstall", "seal", "test"];
        assert_eq!(names(EVERYTHING, &Options::default()), expected);
    }

    #[test]
    fn only_the_chosen_sections_are_done() {
        let choose = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            Options { sections: Choice::parse(&words).expect("names of sections"), ..Options::default() }
        };
        assert_eq!(names(EVERYTHING, &choose(&["post"])), ["base", "apps", "post", "appinstall", "seal"]);
        assert_eq!(names(EVERYTHING, &choose(&["none"])), ["base", "apps", "seal"]);
        assert_eq!(names(EVERYTHING, &choose(&["all", "none"])).len(), 10);
        assert_eq!(Choice::parse(&["posts".to_owned()]), Err("posts".to_owned()));
        let plan = planned(EVERYTHING, &choose(&["files"]));
        let Some(Action::Seal(seal)) = plan.stages[1].actions.last() else { panic!("sealed last") };
        assert!(seal.labels.is_empty() && seal.environment.is_none());
    }

    #[test]
    fn tests_are_left_out_when_they_are_not_wanted() {
        let options = Options { skips_tests: true, ..Options::default() };
        assert_eq!(names("Bootstrap: scratch\n%test\nx\n", &options), ["base", "seal"]);
    }

    #[test]
    fn a_directory_is_made_only_for_what_needs_one() {
        let needs = |text: &str, options: &Options| planned(text, options).stages.last().map(|s| s.needs_directory);
        let edits = "Bootstrap: scratch\n%labels\na b\n%runscript\nx\n%environment\nx\n";
        assert_eq!(needs(edits, &Options::default()), Some(false));
        assert_eq!(needs(edits, &Options { makes_directory: true, ..Options::default() }), Some(true));
        for section in ["%post\nx\n", "%files\nx\n", "%setup\nx\n", "%test\nx\n"] {
            assert_eq!(needs(&format!("{edits}{section}"), &Options::default()), Some(true), "{section}");
        }
        let first = &planned(EVERYTHING, &Options::default()).stages[0];
        assert!(first.needs_directory && first.title == "a");
    }

    #[test]
    fn an_update_has_no_source() {
        let plan = planned("Bootstrap: scratch\n%post\nx\n", &Options { updates: true, ..Options::default() });
        assert_eq!(plan.stages[0].header, None);
        assert!(plan.stages[0].needs_directory);
    }
}
