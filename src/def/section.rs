//! Names of sections.

use crate::conf::nearest::nearest;

/// A section that definition files can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectionName {
    Pre,
    Setup,
    Files,
    Arguments,
    Post,
    Environment,
    Runscript,
    Startscript,
    Test,
    Labels,
    Help,
    AppInstall,
    AppRun,
    AppStart,
    AppEnv,
    AppTest,
    AppHelp,
    AppLabels,
    AppFiles,
}

/// Every section by its name in lower case.
const NAMES: [(&str, SectionName); 19] = [
    ("pre", SectionName::Pre),
    ("setup", SectionName::Setup),
    ("files", SectionName::Files),
    ("arguments", SectionName::Arguments),
    ("post", SectionName::Post),
    ("environment", SectionName::Environment),
    ("runscript", SectionName::Runscript),
    ("startscript", SectionName::Startscript),
    ("test", SectionName::Test),
    ("labels", SectionName::Labels),
    ("help", SectionName::Help),
    ("appinstall", SectionName::AppInstall),
    ("apprun", SectionName::AppRun),
    ("appstart", SectionName::AppStart),
    ("appenv", SectionName::AppEnv),
    ("apptest", SectionName::AppTest),
    ("apphelp", SectionName::AppHelp),
    ("applabels", SectionName::AppLabels),
    ("appfiles", SectionName::AppFiles),
];

impl SectionName {
    /// The section called `name`, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, section)| *section)
    }

    /// Its name in lower case, without `%`.
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|(_, section)| *section == self).map_or("", |(name, _)| name)
    }

    /// The known name that `text` most likely was meant to be.
    pub fn nearest(text: &str) -> Option<&'static str> {
        nearest(&text.to_ascii_lowercase(), NAMES.iter().map(|(name, _)| *name))
    }

    /// Whether its lines are a shell's, so that they can hold here-documents.
    pub(super) fn is_script(self) -> bool {
        !matches!(
            self,
            Self::Files
                | Self::Arguments
                | Self::Labels
                | Self::Help
                | Self::AppHelp
                | Self::AppLabels
                | Self::AppFiles
        )
    }

    /// Whether the name of an app follows.
    pub(super) fn is_of_app(self) -> bool {
        self.as_str().starts_with("app")
    }

    /// Whether its text can be read in the finished image.
    pub(super) fn is_kept(self) -> bool {
        !matches!(self, Self::Pre | Self::Setup | Self::Files | Self::Arguments | Self::Post | Self::AppInstall)
    }
}
