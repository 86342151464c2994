//! What an image's configuration becomes in a SIF file: an environment script and a runscript, as Apptainer has them.
//!
//! ```text
//! Env         ──► /.singularity.d/env/10-docker2singularity.sh     a variable keeps what an earlier script set; PATH does not
//! Entrypoint  ─┬► /.singularity.d/runscript                        arguments replace Cmd, and go behind Entrypoint
//! Cmd         ─┘
//! ```
//!
//! The names `OCI_ENTRYPOINT`, `OCI_CMD` and `SINGULARITY_OCI_RUN` and the line that evaluates the last one are what
//! Apptainer's users and sifu's own launch look for.

use super::documents::Process;

/// Where the variables go.
pub const ENVIRONMENT_PATH: &str = "/.singularity.d/env/10-docker2singularity.sh";
/// Where the runscript goes.
pub const RUNSCRIPT_PATH: &str = "/.singularity.d/runscript";

/// The script that sets the variables of the configuration. What is no assignment is left out, as a container would not
/// see it.
pub fn environment_script(process: &Process) -> String {
    let mut script = "#!/bin/sh\n".to_owned();
    for assignment in process.env.iter().flatten() {
        let Some((name, value)) = assignment.split_once('=') else { continue };
        if !is_name(name) || value.contains('\0') {
            continue;
        }
        let value = double_quoted(value);
        // The image's PATH is where its programs are, whatever was set before.
        match name {
            "PATH" => script += &format!("export PATH={value}\n"),
            _ => script += &format!("export {name}=\"${{{name}:-{value}}}\"\n"),
        }
    }
    script
}

/// The script that runs what the configuration says; `None` where it says nothing.
pub fn runscript(process: &Process) -> Option<String> {
    let entrypoint = process.entrypoint.as_deref().unwrap_or_default();
    let cmd = process.cmd.as_deref().unwrap_or_default();
    if entrypoint.is_empty() && cmd.is_empty() {
        return None;
    }
    let evaluated = |words: &[String]| {
        let words: Vec<String> = words.iter().map(|word| double_quoted(word)).collect();
        single_quoted(&words.join(" "))
    };
    let literal = |words: &[String]| words.iter().map(|word| single_quoted(word)).collect::<Vec<_>>().join(" ");
    let mut script = format!("#!/bin/sh\nOCI_ENTRYPOINT={}\nOCI_CMD={}\n\n", evaluated(entrypoint), evaluated(cmd));
    script += "\
# With SINGULARITY_NO_EVAL every word stays as it is, as Docker has it.
if [ -n \"$SINGULARITY_NO_EVAL\" ]; then
";
    if !cmd.is_empty() {
        script += &format!("    if [ $# -eq 0 ]; then\n        set -- {}\n    fi\n", literal(cmd));
    }
    if !entrypoint.is_empty() {
        script += &format!("    set -- {} \"$@\"\n", literal(entrypoint));
    }
    script += "    exec \"$@\"\nfi\n
# Otherwise entrypoint, command and arguments are expanded by the shell once more.
CMDLINE_ARGS=\"\"
for arg in \"$@\"; do
    CMDLINE_ARGS=\"${CMDLINE_ARGS} \\\"$arg\\\"\"
done
if [ $# -gt 0 ]; then
    SINGULARITY_OCI_RUN=\"${OCI_ENTRYPOINT} ${CMDLINE_ARGS}\"
else
    SINGULARITY_OCI_RUN=\"${OCI_ENTRYPOINT} ${OCI_CMD}\"
fi

eval \"set ${SINGULARITY_OCI_RUN}\"
exec \"$@\"
";
    Some(script)
}

/// A name that a shell can set.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A word that a shell takes as it is.
fn single_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\"'\"'"))
}

/// A word that a shell takes as it is, between double quotes.
fn double_quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn variables_give_way_to_those_set_before_but_for_path() {
        let env =
            words(&["PATH=/opt/bin:/bin", "A=b", "EMPTY=", "E=x=y", "Q=a\"b $x `c` \\ d'e", "no name=1", "B", "1=2"]);
        let script = environment_script(&Process { env, ..Process::default() });
        assert_eq!(
            script,
            "#!/bin/sh\nexport PATH=\"/opt/bin:/bin\"\nexport A=\"${A:-\"b\"}\"\nexport EMPTY=\"${EMPTY:-\"\"}\"\n\
             export E=\"${E:-\"x=y\"}\"\nexport Q=\"${Q:-\"a\\\"b \\$x \\`c\\` \\\\ d'e\"}\"\n"
        );
    }

    #[test]
    fn nothing_to_run_is_no_script() {
        assert_eq!(runscript(&Process::default()), None);
        assert_eq!(runscript(&Process { cmd: Some(Vec::new()), ..Process::default() }), None);
    }

    #[test]
    fn words_of_the_configuration_stay_words() {
        let process =
            Process { entrypoint: words(&["/bin/echo", "he'llo $X"]), cmd: words(&["b c"]), ..Process::default() };
        let script = runscript(&process).unwrap();
        assert!(
            script.starts_with("#!/bin/sh\nOCI_ENTRYPOINT='\"/bin/echo\" \"he'\"'\"'llo \\$X\"'\nOCI_CMD='\"b c\"'\n"),
            "{script}"
        );
        assert!(script.contains("        set -- 'b c'\n"), "{script}");
        assert!(script.contains("    set -- '/bin/echo' 'he'\"'\"'llo $X' \"$@\"\n"), "{script}");
        assert!(script.contains("\neval \"set ${SINGULARITY_OCI_RUN}\"\n"));
    }
}
