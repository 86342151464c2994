//! Manual pages, written from the tables: `sifu.1`, and a page for every verb and group that is there.

use std::fmt::Write;

use super::applet::Applet;
use super::commands::ROOT;
use super::flags::{Category, Command, Flag};
use super::help::{by_category, usage_line};
use crate::conf::directives::DIRECTIVES;
use crate::env_names;

/// Returns every page: its file name (`sifu-exec.1`) and its text.
pub fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    let mut paths = vec![vec![&ROOT]];
    while let Some(path) = paths.pop() {
        let command = path[path.len() - 1];
        pages.push((format!("{}.1", page_name(&path)), page(&path)));
        for next in command.commands().iter().filter(|command| command.is_ready() && !command.hidden) {
            let mut path = path.clone();
            path.push(next);
            paths.push(path);
        }
    }
    pages.sort();
    pages
}

fn page_name(path: &[&'static Command]) -> String {
    path.iter().map(|command| command.name).collect::<Vec<_>>().join("-")
}

fn page(path: &[&'static Command]) -> String {
    let command = path[path.len() - 1];
    let name = page_name(path);
    let mut text = format!(".TH {} 1 \"\" \"sifu\" \"User commands\"\n", name.to_uppercase());
    let _ = write!(text, ".SH NAME\n{} \\- {}\n", escape(&name), escape(&lower_first(command.about)));
    let _ = write!(text, ".SH SYNOPSIS\n.B {}\n", escape(&usage_line(Applet::Sifu, path)));
    if !command.description.is_empty() {
        let _ = write!(text, ".SH DESCRIPTION\n{}\n", escape(command.description));
    }
    let below: Vec<_> = command.commands().iter().filter(|c| !c.hidden && c.is_ready()).collect();
    if !below.is_empty() {
        text.push_str(".SH COMMANDS\n");
        for next in below {
            let _ = write!(text, ".TP\n.BR {}\\-{} (1)\n{}\n", escape(&name), escape(next.name), escape(next.about));
        }
    }
    for (category, flags) in by_category(command) {
        let _ = writeln!(text, ".SH {}", category.title().to_uppercase());
        for flag in flags {
            flag_entry(&mut text, flag);
        }
        if category == Category::Global {
            text.push_str(".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nExplain the command that it stands behind.\n");
            text.push_str(".TP\n\\fB\\-\\-version\\fR\nShow the version.\n");
        }
    }
    if !command.examples.is_empty() {
        text.push_str(".SH EXAMPLES\n");
        for (line, meaning) in command.examples {
            let _ = write!(text, ".PP\n{}:\n.PP\n.RS\n.nf\n{}\n.fi\n.RE\n", escape(meaning), escape(line));
        }
    }
    if name == "sifu-config-global" {
        directives(&mut text);
    }
    if path.len() == 1 {
        text.push_str(&environment());
    } else {
        text.push_str(".SH SEE ALSO\n.BR sifu (1)\n");
    }
    text
}

fn flag_entry(text: &mut String, flag: &Flag) {
    let short = flag.short.map_or(String::new(), |short| format!("\\fB\\-{short}\\fR, "));
    let value = flag.value_name().map_or(String::new(), |value| format!(" \\fI{}\\fR", escape(value)));
    let _ = write!(text, ".TP\n{short}\\fB\\-\\-{}\\fR{value}\n{}.\n", escape(flag.name), escape(flag.help));
    if !flag.keys.is_empty() {
        let names: Vec<_> = flag.keys.iter().map(|key| format!("{}{key}", env_names::PREFIXES[0])).collect();
        let _ = writeln!(text, "Variable: {}.", names.join(", "));
    }
}

fn directives(text: &mut String) {
    text.push_str(".SH DIRECTIVES\n");
    for directive in DIRECTIVES {
        let default = if directive.default.is_empty() { "none".into() } else { directive.default.join(", ") };
        let effect = if directive.has_effect() { "" } else { "Known and without effect: " };
        let help = directive.help.trim_end_matches('.').replace('\n', " ");
        let _ = write!(
            text,
            ".TP\n.B {}\n{effect}{}. Value: {}. Default: {}.\n",
            escape(directive.name),
            escape(&help),
            escape(&directive.allowed.words()),
            escape(&default)
        );
    }
}

fn environment() -> String {
    let [own, apptainer, singularity] = env_names::PREFIXES;
    format!(
        ".SH ENVIRONMENT\n\
         Most options have a variable, named on the option's page. It is read with the prefix {own}, {apptainer} or {singularity} \
         (the first of them that is set counts) and only where the option is not given; the variables of \\-\\-bind and \\-\\-mount add \
         to the options. Switches are 1 or true, 0 or false.\n\
         .PP\n\
         A variable NAME of the container is set by {}NAME, with the prefixes {} and {} as well.\n\
         .SH FILES\n\
         .TP\n\
         .I PREFIX/etc/sifu/sifu.conf\n\
         The site's configuration, beside PREFIX/bin/sifu; /etc/sifu/sifu.conf where the prefix is /usr. See\n\
         .BR sifu\\-config\\-global (1).\n\
         .SH EXIT STATUS\n\
         The exit status of the program in the container; 1 if the command line can't be understood, 255 if sifu itself fails.\n",
        env_names::INJECT_PREFIXES[0],
        env_names::INJECT_PREFIXES[1],
        env_names::INJECT_PREFIXES[2],
    )
}

fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

/// Protects what roff would read as a request or an escape.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    text.lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() })
        .collect::<Vec<_>>()
        .join("\n.PP\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_pages_that_are_installed_are_the_ones_that_the_tables_give() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/man");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let _ = std::fs::remove_dir_all(directory);
            std::fs::create_dir_all(directory).unwrap();
            for (name, text) in pages() {
                std::fs::write(format!("{directory}/{name}"), text).unwrap();
            }
        }
        let installed: BTreeSet<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(
            installed,
            pages().into_iter().map(|(name, _)| name).collect(),
            "run UPDATE_GOLDEN=1 cargo test man::"
        );
        for (name, text) in pages() {
            let installed = std::fs::read_to_string(format!("{directory}/{name}")).unwrap();
            assert!(installed == text, "{name} is not current: run UPDATE_GOLDEN=1 cargo test man::");
        }
    }

    #[test]
    fn a_page_explains_every_flag_that_people_see() {
        let (_, text) = pages().into_iter().find(|(name, _)| name == "sifu-exec.1").unwrap();
        for flag in crate::cli::action_flags::ACTION.iter().filter(|flag| flag.is_shown()) {
            assert!(text.contains(&format!("\\-\\-{}\\fR", escape(flag.name))), "{}", flag.name);
        }
    }

    #[test]
    fn roff_requests_in_texts_are_protected() {
        assert_eq!(escape(".TH \\x"), "\\&.TH \\ex");
    }
}
