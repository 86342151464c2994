//! Completion scripts for bash, zsh and fish, written from the tables.
//!
//! Each script follows the words up to the cursor through the tree of verbs, skips flags with their values, and offers the
//! flags and verbs of the place it reached. Behind the image of an action verb everything is the payload's: files.

use std::fmt::Write;
use std::process::ExitCode;

use super::commands::ROOT;
use super::flags::{Command, Flag, GLOBAL, Rest, Said};
use super::print as print_text;
use crate::report::Failure;

/// Prints the script for the shell that the first word names.
pub fn print(said: Said) -> Result<ExitCode, Failure> {
    let shell = said.words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    match script(&shell) {
        Some(script) => print_text(&script),
        None => Err(Failure::usage(format!("there is no completion for the shell `{shell}`"))
            .hint("The shells are bash, zsh and fish.")),
    }
}

/// Returns the completion script for `bash`, `zsh` or `fish`.
pub fn script(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash(&places())),
        "zsh" => Some(zsh(&places())),
        "fish" => Some(fish(&places())),
        _ => None,
    }
}

/// A place in the tree of verbs: the words that lead to it, joined by spaces.
struct Place {
    words: String,
    command: &'static Command,
}

impl Place {
    /// The flags that may stand here.
    fn flags(&self) -> Vec<&'static Flag> {
        self.command.own_flags().chain(GLOBAL.iter()).filter(|flag| flag.is_shown()).collect()
    }

    /// The verbs that may stand here: those of the group, for `help` all.
    fn commands(&self) -> Vec<&'static Command> {
        let of = if self.command.name == "help" { &ROOT } else { self.command };
        of.commands().iter().filter(|command| !command.hidden && command.is_ready()).collect()
    }

    fn has_payload(&self) -> bool {
        matches!(self.command.rest, Rest::Payload(_))
    }

    /// The spellings of its flags that are followed by a value in a word of its own.
    fn valued(&self) -> Vec<String> {
        self.flags().into_iter().filter(|flag| flag.value_name().is_some()).flat_map(spellings).collect()
    }
}

fn places() -> Vec<Place> {
    let mut places = vec![Place { words: String::new(), command: &ROOT }];
    let mut next = 0;
    while let Some(Place { words, command }) = places.get(next) {
        let prefix = if words.is_empty() { String::new() } else { format!("{words} ") };
        let below: Vec<Place> = command
            .commands()
            .iter()
            .filter(|command| !command.hidden && command.is_ready())
            .map(|command| Place { words: format!("{prefix}{}", command.name), command })
            .collect();
        places.extend(below);
        next += 1;
    }
    places
}

fn spellings(flag: &Flag) -> Vec<String> {
    let short = flag.short.map(|short| format!("-{short}"));
    std::iter::once(format!("--{}", flag.name)).chain(short).collect()
}

fn bash(places: &[Place]) -> String {
    let mut text = String::from(
        "# Completion of sifu for bash, written by `sifu completion bash`.\n\
         _sifu() {\n\
         \x20   local place='' word valued='' offer='' current=\"${COMP_WORDS[COMP_CWORD]}\" index words=0\n\
         \x20   for ((index = 1; index < COMP_CWORD; index++)); do\n\
         \x20       word=\"${COMP_WORDS[index]}\"\n\
         \x20       case \"$place\" in\n",
    );
    for place in places {
        let _ = writeln!(text, "            '{}') valued=' {} ' ;;", place.words, place.valued().join(" "));
    }
    text.push_str(
        "        esac\n\
         \x20       case \"$word\" in\n\
         \x20           --*=*) ;;\n\
         \x20           -*) [[ \"$valued\" == *\" $word \"* ]] && ((index++)) ;;\n\
         \x20           *)\n\
         \x20               case \"${place:+$place }$word\" in\n",
    );
    for place in &places[1..] {
        let _ = writeln!(text, "                    '{0}') place='{0}' ;;", place.words);
    }
    text.push_str("                    *) ((words++)) ;;\n                esac ;;\n        esac\n    done\n    case \"$place\" in\n");
    for place in places {
        let flags: Vec<_> = place.flags().into_iter().map(|flag| format!("--{}", flag.name)).collect();
        let commands: Vec<_> = place.commands().into_iter().map(|command| command.name).collect();
        let before = if place.has_payload() { "((words)) || " } else { "" };
        let _ = writeln!(text, "        '{}')", place.words);
        let _ = writeln!(
            text,
            "            {before}case \"$current\" in -*) offer='{} --help' ;; *) offer='{}' ;; esac ;;",
            flags.join(" "),
            commands.join(" ")
        );
    }
    text.push_str(
        "    esac\n\
         \x20   COMPREPLY=($(compgen -W \"$offer\" -- \"$current\"))\n\
         }\n\
         complete -o default -F _sifu sifu\n",
    );
    text
}

fn zsh(places: &[Place]) -> String {
    let mut text = String::from(
        "#compdef sifu\n\
         # Completion of sifu for zsh, written by `sifu completion zsh`.\n\
         _sifu() {\n\
         \x20   local place='' word valued=''\n\
         \x20   local -i index words=0\n\
         \x20   local -a flags commands\n\
         \x20   for ((index = 2; index < CURRENT; index++)); do\n\
         \x20       word=\"${words_of_line[index]}\"\n\
         \x20       case \"$place\" in\n",
    )
    .replace("local -i index words=0", "local -i index count=0")
    .replace("words_of_line", "words");
    for place in places {
        let _ = writeln!(text, "            ('{}') valued=' {} ' ;;", place.words, place.valued().join(" "));
    }
    text.push_str(
        "        esac\n\
         \x20       case \"$word\" in\n\
         \x20           (--*=*) ;;\n\
         \x20           (-*) [[ \"$valued\" == *\" $word \"* ]] && ((index++)) ;;\n\
         \x20           (*)\n\
         \x20               case \"${place:+$place }$word\" in\n",
    );
    for place in &places[1..] {
        let _ = writeln!(text, "                    ('{0}') place='{0}' ;;", place.words);
    }
    text.push_str("                    (*) ((count++)) ;;\n                esac ;;\n        esac\n    done\n    case \"$place\" in\n");
    for place in places {
        let _ = writeln!(text, "        ('{}')", place.words);
        let item = |name: &str, help: &str| {
            // A description ends at its first clause; a colon would part it from the name.
            let help = help.split([':', ';', '.']).next().unwrap_or(help);
            format!("'{name}:{}'", help.replace('\'', "'\\''"))
        };
        let flags: Vec<_> =
            place.flags().into_iter().map(|flag| item(&format!("--{}", flag.name), flag.help)).collect();
        let commands: Vec<_> = place.commands().into_iter().map(|c| item(c.name, c.about)).collect();
        let before = if place.has_payload() { "((count)) || " } else { "" };
        let _ = writeln!(text, "            {before}flags=({})", flags.join(" "));
        let _ = writeln!(text, "            commands=({}) ;;", commands.join(" "));
    }
    text.push_str(
        "    esac\n\
         \x20   if [[ \"$PREFIX\" == -* ]] && ((${#flags})); then\n\
         \x20       _describe -o option flags\n\
         \x20   elif ((${#commands})); then\n\
         \x20       _describe command commands\n\
         \x20   else\n\
         \x20       _files\n\
         \x20   fi\n\
         }\n\
         if [ \"$funcstack[1]\" = _sifu ]; then _sifu \"$@\"; else compdef _sifu sifu; fi\n",
    );
    text
}

fn fish(places: &[Place]) -> String {
    let mut text = String::from(
        "# Completion of sifu for fish, written by `sifu completion fish`.\n\
         function __sifu_at --argument-names wanted payload\n\
         \x20   set -l place ''\n\
         \x20   set -l skip 0\n\
         \x20   set -l count 0\n\
         \x20   for word in (commandline -opc)[2..]\n\
         \x20       if test $skip = 1\n\
         \x20           set skip 0\n\
         \x20           continue\n\
         \x20       end\n\
         \x20       switch $word\n\
         \x20           case '--*=*'\n\
         \x20           case '-*'\n\
         \x20               switch \"$place $word\"\n",
    );
    for place in places {
        let valued: Vec<_> = place.valued().iter().map(|flag| format!("'{} {flag}'", place.words)).collect();
        let _ = writeln!(text, "                    case {}", valued.join(" "));
        text.push_str("                        set skip 1\n");
    }
    text.push_str("                end\n            case '*'\n                switch (string trim \"$place $word\")\n");
    for place in &places[1..] {
        let _ = writeln!(text, "                    case '{0}'\n                        set place '{0}'", place.words);
    }
    text.push_str(
        "                    case '*'\n\
         \x20                       set count (math $count + 1)\n\
         \x20               end\n\
         \x20       end\n\
         \x20   end\n\
         \x20   test \"$place\" = \"$wanted\"; and test -z \"$payload\" -o $count = 0\n\
         end\n",
    );
    let quoted = |help: &str| format!("'{}'", help.replace('\\', "\\\\").replace('\'', "\\'"));
    for place in places {
        let payload = if place.has_payload() { " payload" } else { "" };
        let at = format!("complete -c sifu -n \"__sifu_at '{}'{payload}\"", place.words);
        for command in place.commands() {
            let _ = writeln!(text, "{at} -f -a {} -d {}", command.name, quoted(command.about));
        }
        for flag in place.flags() {
            let short = flag.short.map_or(String::new(), |short| format!(" -s {short}"));
            let value = if flag.value_name().is_some() { " -r" } else { "" };
            let _ = writeln!(text, "{at} -l {}{short}{value} -d {}", flag.name, quoted(flag.help));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command as Process;

    #[test]
    fn every_flag_that_people_see_is_offered_by_every_shell() {
        for shell in ["bash", "zsh", "fish"] {
            let script = script(shell).unwrap();
            for place in places() {
                for flag in place.flags() {
                    let word = if shell == "fish" { format!("-l {} ", flag.name) } else { format!("--{}", flag.name) };
                    assert!(script.contains(&word), "{shell}: {} {word}", place.words);
                }
            }
        }
    }

    /// Lets bash complete the last word; `None` where there is no bash.
    fn complete_in_bash(words: &[&str]) -> Option<Vec<String>> {
        let script = script("bash").unwrap();
        let line: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let test = format!(
            "{script}\nCOMP_WORDS=(sifu {}); COMP_CWORD={}; _sifu; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            line.join(" "),
            words.len()
        );
        let output = Process::new("bash").args(["--norc", "-c", &test]).output().ok()?;
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        Some(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    #[test]
    fn bash_offers_verbs_and_flags_at_their_place_and_nothing_to_the_payload() {
        for (words, expected) in [
            (&["ex"][..], &["exec"][..]),
            (&["-c", "file", "ins"], &["inspect"]),
            (&["sif", "set"], &["setprim"]),
            (&["exec", "--no-ho"], &["--no-home"]),
            (&["exec", "-B", "sif", "--writable-"], &["--writable-tmpfs"]),
            (&["exec", "a.sif", "--no-h"], &[]),
            (&["shell", "--she"], &["--shell"]),
            (&["help", "insp"], &["inspect"]),
        ] {
            let Some(offered) = complete_in_bash(words) else {
                println!("skipped: needs bash");
                return;
            };
            assert_eq!(offered, expected, "{words:?}");
        }
    }

    #[test]
    fn zsh_and_fish_can_read_their_scripts() {
        for (shell, no_run) in [("zsh", "-n"), ("fish", "--no-execute")] {
            let script = script(shell).unwrap();
            let file = std::env::temp_dir().join(format!("sifu-completion-{}-{shell}", std::process::id()));
            std::fs::write(&file, script).unwrap();
            let output = Process::new(shell).arg(no_run).arg(&file).output();
            std::fs::remove_file(&file).unwrap();
            match output {
                Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
                Err(error) => println!("skipped: needs {shell} ({error})"),
            }
        }
    }
}
