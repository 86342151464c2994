//! Help and usage, written from the tables.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use super::applet::Applet;
use super::commands::ROOT;
use super::flags::{Category, Command, Does, Flag, GLOBAL, Rest};
use super::parse::{CommandLineError, path_text};
use super::print;
use crate::report::Failure;

/// Lines are no longer than this, so that they fit a small terminal.
const WIDTH: usize = 80;
/// Where the text of a list begins.
const INDENT: usize = 28;

/// Prints the help of the verb that the words lead to; `help` alone is about sifu itself.
pub fn print_named(applet: Applet, words: &[OsString]) -> Result<ExitCode, Failure> {
    let path = find(applet, words).map_err(|error| error.failure())?;
    print(&help(applet, &path))
}

fn find(applet: Applet, words: &[OsString]) -> Result<Vec<&'static Command>, CommandLineError> {
    let mut path = vec![&ROOT];
    for word in words {
        let command = path[path.len() - 1];
        match command.find(word.as_bytes()) {
            Some(next) => path.push(next),
            // A group that is not there yet has no table of its verbs; its own text names them.
            None if matches!(command.does, Does::Later(_)) => break,
            None => {
                let word = word.to_string_lossy().into_owned();
                return Err(CommandLineError::UnknownCommand { word, path: path_text(applet, &path), meant: None });
            }
        }
    }
    Ok(path)
}

/// Returns the full help of a verb.
pub fn help(applet: Applet, path: &[&'static Command]) -> String {
    let command = path[path.len() - 1];
    let mut text = String::new();
    paragraph(&mut text, command.about, 0);
    let _ = write!(text, "\nUsage:\n  {}\n", usage_line(applet, path));
    if !command.description.is_empty() {
        text.push('\n');
        paragraph(&mut text, command.description, 0);
    }
    if let Does::Later(instead) = command.does {
        text.push('\n');
        let later = format!("This command is not there yet in this version. {instead}");
        paragraph(&mut text, later.trim_end(), 0);
    }
    list_commands(&mut text, command);
    for (category, flags) in by_category(command) {
        let _ = write!(text, "\n{}:\n", category.title());
        for flag in flags {
            list_item(&mut text, &flag_words(flag), flag.help);
        }
        if category == Category::Global {
            list_item(&mut text, "-h, --help", "Explain the command that it stands behind");
            list_item(&mut text, "    --version", "Show the version");
        }
    }
    if path.len() > 1 {
        let _ = writeln!(text, "\nOptions of every command are explained by `{} help`.", applet_of_help(applet).name());
    }
    if !command.examples.is_empty() {
        text.push_str("\nExamples:\n");
        for (line, meaning) in command.examples {
            let _ = write!(text, "  # {meaning}\n  $ {line}\n");
        }
    }
    text
}

/// Returns what to show beside an error of the command line, with the verbs of a group if they help.
pub fn usage(applet: Applet, path: &[&'static Command], with_list: bool) -> String {
    let mut text = format!("Usage:\n  {}\n", usage_line(applet, path));
    if with_list {
        list_commands(&mut text, path[path.len() - 1]);
    }
    let words: Vec<_> = path.iter().skip(1).map(|command| command.name).collect();
    let mut help = format!("{} help {}", applet_of_help(applet).name(), words.join(" "));
    help.truncate(help.trim_end().len());
    let _ = writeln!(text, "\nRun `{help}` for more.");
    text
}

/// `run-singularity` is a whole verb and has no `help` of its own.
fn applet_of_help(applet: Applet) -> Applet {
    if applet == Applet::RunSingularity { Applet::Singularity } else { applet }
}

/// Returns the usage of a verb in one line: `sifu exec [OPTIONS] IMAGE COMMAND [ARGUMENTS...]`.
pub fn usage_line(applet: Applet, path: &[&'static Command]) -> String {
    let command = path[path.len() - 1];
    let mut line = path_text(applet, path);
    if path.len() == 1 || command.own_flags().next().is_some() {
        line.push_str(" [OPTIONS]");
    }
    if !command.commands().is_empty() {
        line.push_str(" COMMAND");
    }
    for word in command.words {
        let _ = write!(line, " {word}");
    }
    match command.rest {
        Rest::Words(name) | Rest::Payload(name) => {
            let _ = write!(line, " [{name}...]");
        }
        Rest::Raw => line.push_str(" ..."),
        Rest::Further | Rest::Nothing => {}
    }
    line
}

/// Returns the names of a flag with its value: `-B, --bind SPEC`.
pub fn flag_words(flag: &Flag) -> String {
    let short = flag.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
    let value = flag.value_name().map_or(String::new(), |value| format!(" {value}"));
    format!("{short}--{}{value}", flag.name)
}

/// Returns the flags that people see, by category; the program's own are the global ones.
pub fn by_category(command: &'static Command) -> Vec<(Category, Vec<&'static Flag>)> {
    let flags: Vec<&'static Flag> =
        if std::ptr::eq(command, &ROOT) { GLOBAL.iter().collect() } else { command.own_flags().collect() };
    let mut categories: Vec<Category> = flags.iter().filter(|flag| flag.is_shown()).map(|flag| flag.category).collect();
    categories.sort_unstable();
    categories.dedup();
    categories
        .into_iter()
        .map(|category| {
            (category, flags.iter().copied().filter(|flag| flag.is_shown() && flag.category == category).collect())
        })
        .collect()
}

fn list_commands(text: &mut String, command: &Command) {
    for (heading, ready) in [("Commands", true), ("Not there yet in this version", false)] {
        let commands: Vec<_> = command.commands().iter().filter(|c| !c.hidden && c.is_ready() == ready).collect();
        if commands.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{heading}:\n");
        let width = commands.iter().map(|c| c.name.len()).max().unwrap_or(0).max(12);
        for command in commands {
            let _ = writeln!(text, "  {:<width$} {}", command.name, command.about);
        }
    }
}

fn list_item(text: &mut String, words: &str, meaning: &str) {
    let start = text.len();
    let _ = write!(text, "  {words}");
    if text.len() - start + 2 > INDENT {
        text.push('\n');
    } else {
        let _ = write!(text, "{:1$}", "", INDENT - (text.len() - start));
    }
    let mut wrapped = String::new();
    paragraph(&mut wrapped, meaning, INDENT);
    // The first line's indent is there already, unless the names took a line of their own.
    text.push_str(if text.ends_with('\n') { &wrapped } else { wrapped.trim_start() });
}

/// Adds a paragraph wrapped at [`WIDTH`], every line with the indent.
fn paragraph(text: &mut String, words: &str, indent: usize) {
    for line in words.lines() {
        let mut column = 0;
        for word in line.split_whitespace() {
            let length = word.chars().count();
            if column == 0 {
                let _ = write!(text, "{:indent$}", "");
                column = indent;
            } else if column + 1 + length > WIDTH {
                let _ = write!(text, "\n{:indent$}", "");
                column = indent;
            } else {
                text.push(' ');
                column += 1;
            }
            text.push_str(word);
            column += length;
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(line: &str) -> Vec<&'static Command> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        find(Applet::Sifu, &words).unwrap()
    }

    /// Compares the help of a verb with its golden file.
    fn check(line: &str) {
        let name = if line.is_empty() { "sifu".to_owned() } else { line.replace(' ', "-") };
        let file = format!("{}/tests/golden/{name}.help", env!("CARGO_MANIFEST_DIR"));
        let text = help(Applet::Sifu, &path(line));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap();
            std::fs::write(&file, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(golden == text, "{file} is not current: run UPDATE_GOLDEN=1 cargo test help::");
    }

    #[test]
    fn help_stands_in_golden_files() {
        for line in ["", "exec", "shell", "inspect", "sif", "sif add", "config global", "pull", "plan"] {
            check(line);
        }
    }

    fn all_paths() -> Vec<Vec<&'static Command>> {
        let mut paths = vec![vec![&ROOT]];
        let mut next = 0;
        while next < paths.len() {
            let path = paths[next].clone();
            paths.extend(path[path.len() - 1].commands().iter().map(|command| [path.clone(), vec![command]].concat()));
            next += 1;
        }
        paths
    }

    #[test]
    fn every_verb_explains_itself_and_every_flag_that_it_shows() {
        for path in all_paths() {
            let text = help(Applet::Sifu, &path);
            let command = path[path.len() - 1];
            assert!(text.starts_with(command.about.split(' ').next().unwrap()), "{text}");
            assert_eq!(text.lines().filter(|line| line.to_lowercase().starts_with("usage")).count(), 1, "{text}");
            for flag in command.own_flags() {
                let shown = text.lines().any(|line| line.trim_start().starts_with(flag_words(flag).trim_start()));
                assert_eq!(shown, flag.is_shown(), "{} --{}", command.name, flag.name);
            }
        }
    }

    #[test]
    fn help_fits_a_small_terminal() {
        for path in all_paths() {
            // Usage and examples are lines to copy and are not broken.
            let text = help(Applet::Sifu, &path);
            let long = text.lines().find(|line| line.chars().count() > WIDTH && !line.starts_with("  $ "));
            assert_eq!(long, None, "{}", path_text(Applet::Sifu, &path));
        }
    }

    #[test]
    fn help_about_a_verb_of_a_later_group_is_the_groups() {
        assert_eq!(path("instance start")[1].name, "instance");
    }

    #[test]
    fn help_about_what_is_not_there_is_a_usage_error() {
        let error = find(Applet::Sifu, &["nonsense".into()]).unwrap_err();
        assert_eq!(error.to_string(), "`sifu` has no command `nonsense`");
    }

    #[test]
    fn usage_names_words_and_payload() {
        let usage = |line| usage_line(Applet::Apptainer, &path(line));
        assert_eq!(usage("exec"), "apptainer exec [OPTIONS] IMAGE COMMAND [ARGUMENTS...]");
        assert_eq!(usage("sif dump"), "apptainer sif dump ID IMAGE");
        assert_eq!(usage("sif"), "apptainer sif COMMAND");
        assert_eq!(usage("version"), "apptainer version");
    }
}
