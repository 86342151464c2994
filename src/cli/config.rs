//! `config global --get`: what the site's configuration says.

use std::path::Path;
use std::process::ExitCode;

use super::flags::Said;
use super::print;
use crate::conf::directives::{self, DIRECTIVES};
use crate::conf::nearest::nearest;
use crate::conf::{Settings, load};
use crate::report::{Failure, failure};

/// Prints the values of a directive, separated by commas.
pub fn global(said: Said) -> Result<ExitCode, Failure> {
    if !said.config.get {
        return Err(Failure::usage("`config global` needs the option `--get`")
            .hint("`sifu config global --get \"bind path\"` shows a directive's value."));
    }
    if let [_, further, ..] = said.words.as_slice() {
        let further = further.to_string_lossy();
        return Err(Failure::usage(format!("`config global --get` has no use for the further word `{further}`"))
            .hint("A directive's name of several words is written in quotes."));
    }
    let name = said.words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let file = said.global.config_file.as_deref().map(Path::new);
    let settings = load::read(file).map_err(|error| failure(&error))?.unwrap_or_default();
    print(&value_line(&settings, &name)?)
}

fn value_line(settings: &Settings, name: &str) -> Result<String, Failure> {
    let Some(directive) = directives::find(name.as_bytes()) else {
        let error = Failure::new(format!("there is no directive `{name}`"));
        return Err(match nearest(name, DIRECTIVES.iter().map(|directive| directive.name)) {
            Some(meant) => error.hint(format!("Did you mean `{meant}`?")),
            None => error.hint("The man page of `config global` lists all directives."),
        });
    };
    let values = settings.in_force(directive);
    let values: Vec<_> = values.iter().map(|value| String::from_utf8_lossy(value)).collect();
    Ok(format!("{}\n", values.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::parse::parse;

    fn check(file: &str, name: &str, expected: &str) {
        let (settings, _) = parse(file.as_bytes()).unwrap();
        assert_eq!(value_line(&settings, name).unwrap(), expected);
    }

    #[test]
    fn the_files_value_or_the_default_is_shown() {
        check("mount tmp = no\n", "mount tmp", "no\n");
        check("mount tmp = no\n", "memory fs type", "tmpfs\n");
        check("", "bind path", "/etc/localtime,/etc/hosts\n");
        check("bind path = /a\nbind path = /b\n", "bind path", "/a,/b\n");
        check("bind path =\n", "bind path", "\n");
        check("mount tmp = no\nmount tmp = yes\n", "mount tmp", "yes\n");
    }

    #[test]
    fn a_misspelt_directive_comes_with_the_one_that_was_meant() {
        let error = value_line(&Settings::default(), "mount hom").unwrap_err();
        assert_eq!(error.message, "there is no directive `mount hom`");
        assert_eq!(error.hints, ["Did you mean `mount home`?"]);
    }
}
