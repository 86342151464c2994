//! Definition files as people write them, and what is said of those with mistakes.

use super::*;
use crate::report::Hint;
use proptest::prelude::*;

fn definition(text: &str) -> Definition {
    parse(text.as_bytes(), &BuildArgs::default()).unwrap_or_else(|error| panic!("{error}\n---\n{text}"))
}

fn with_args(text: &str, args: &[(&str, &str)]) -> Result<Definition, DefError> {
    let mut given = BuildArgs::default();
    for (name, value) in args {
        given.add(name, value.as_bytes());
    }
    parse(text.as_bytes(), &given)
}

fn only_stage(text: &str) -> Stage {
    let mut definition = definition(text);
    assert_eq!(definition.stages.len(), 1, "{text}");
    definition.stages.remove(0)
}

fn text(script: Option<&Script>) -> String {
    String::from_utf8_lossy(&script.expect("the section").text).into_owned()
}

/// A file with this in its `%post`.
fn post(lines: &str) -> Stage {
    only_stage(&format!("Bootstrap: scratch\n%post\n{lines}\n%runscript\necho run\n"))
}

#[track_caller]
fn check_error(text: &str, expected: &str) {
    let error = parse(text.as_bytes(), &BuildArgs::default()).expect_err(text);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_header_has_keys_in_any_case_comments_and_continued_lines() {
    let stage = only_stage(
        "# a comment\nBOOTSTRAP: yum  \n\n  mirrorURL: http://mirror/#here/ # not part\nInclude: a \\\n   b \\\n   c\nStage: one\n",
    );
    let lines: Vec<_> = stage.header.lines().collect();
    let expected =
        [("bootstrap", "yum"), ("mirrorurl", "http://mirror/#here/"), ("include", "a b c"), ("stage", "one")];
    assert_eq!(lines, expected);
    assert_eq!(stage.name(), Some("one"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_line() {
    assert_eq!(only_stage("\u{feff}Bootstrap: scratch\n").header.get("bootstrap"), Some("scratch"));
}

#[test]
fn a_comment_after_the_name_of_a_section_is_no_argument() {
    let stage =
        only_stage("Bootstrap: scratch\n%post -u # as root\ntrue\n%test # nothing yet\ntrue\n%setup a#b\ntrue\n");
    assert_eq!([&stage.post[0], &stage.setup[0]].map(|script| script.arguments.as_str()), ["-u", "a#b"]);
    assert_eq!(stage.test.expect("a test").arguments, "");
}

#[test]
fn a_first_stage_may_begin_with_another_key() {
    assert_eq!(only_stage("From: a.sif\nBootstrap: localimage\n").header.get("from"), Some("a.sif"));
}

#[test]
fn sections_keep_their_lines_and_lose_blank_ones_at_the_end() {
    let stage = only_stage("Bootstrap: scratch\n\n%HELP\n  First\n\n      100% \"quoted\"\n\n\n%Test -x\nfalse\n");
    assert_eq!(text(stage.help.as_ref()), "  First\n\n      100% \"quoted\"\n");
    let test = stage.test.expect("a test");
    assert_eq!((test.arguments.as_str(), test.text.as_slice(), test.line), ("-x", b"false\n".as_slice(), 9));
}

#[test]
fn carriage_returns_are_no_part_of_lines() {
    let stage = only_stage("Bootstrap: localimage\r\nFrom: a.sif\r\n%post\r\n echo\r\n");
    assert_eq!((stage.header.get("from"), stage.post[0].text.as_slice()), (Some("a.sif"), b" echo\n".as_slice()));
}

#[test]
fn a_section_that_stands_twice_goes_on() {
    let stage =
        only_stage("Bootstrap: scratch\n%post\na\n%environment\nx=1\n%post\nb\n%environment -c /bin/bash\ny=2\n");
    assert_eq!(stage.post.len(), 1);
    assert_eq!(stage.post[0].text, b"a\nb\n");
    let environment = stage.environment.expect("an environment");
    assert_eq!(
        (environment.arguments.as_str(), environment.text.as_slice()),
        ("-c /bin/bash", b"x=1\ny=2\n".as_slice())
    );
}

#[test]
fn scripts_for_different_interpreters_stay_apart() {
    let stage = only_stage("Bootstrap: scratch\n%post\na\n%post -c /bin/bash\nb\n%post -c /bin/bash\nc\n");
    let scripts: Vec<_> = stage.post.iter().map(|s| (s.arguments.as_str(), s.text.as_slice())).collect();
    assert_eq!(scripts, [("", b"a\n".as_slice()), ("-c /bin/bash", b"b\nc\n".as_slice())]);
}

#[test]
fn stages_take_files_from_earlier_ones() {
    let definition = definition(
        "Bootstrap: localimage\nFrom: a\nStage: build\n%post\nmake\nbootstrap: localimage\nFrom: b\n%files from build\n  /x /y\n%files\nz\n",
    );
    assert_eq!(definition.stages.len(), 2);
    let last = &definition.stages[1];
    assert_eq!(last.header.get("from"), Some("b"));
    let froms: Vec<_> = last.files.iter().map(|files| files.from.as_deref()).collect();
    assert_eq!(froms, [Some("build"), None]);
    assert_eq!(last.files[0].transfers[0].source.text, b"/x");
}

#[test]
fn a_percent_sign_is_text_when_it_is_indented_or_in_a_here_document() {
    for lines in [
        "printf '\n  %d\n' 1",
        "cat > x.tex <<EOF\n% a comment\n%post\n\\begin\nEOF",
        "cat > x.def <<'END'\nBootstrap: docker\nFrom: debian\n%post\ntrue\nEND\necho done",
        "cat <<A <<-B\n%one\nA\n%two\n\tB",
        "awk '\n%x\n' file",
        "  %files",
    ] {
        let stage = post(lines);
        assert_eq!(stage.post[0].text, format!("{lines}\n").as_bytes(), "{lines}");
        assert_eq!(text(stage.runscript.as_ref()), "echo run\n", "{lines}");
    }
}

#[test]
fn what_looks_like_an_open_here_document_hides_no_section() {
    for lines in ["cat <<EOF\nno end", "x=$((1<<y))", "echo '<<EOF'", "echo \"it's <<EOF\"", "# don't <<EOF"] {
        assert_eq!(text(post(lines).runscript.as_ref()), "echo run\n", "{lines}");
    }
}

#[test]
fn an_indented_section_is_worth_a_warning() {
    let definition = definition("Bootstrap: scratch\n%post\ntrue\n  %runscript\n  %d\n");
    assert_eq!(definition.warnings, [(4, "an indented `%runscript` is a line of `%post`, not a section".to_owned())]);
}

#[test]
fn labels_are_a_word_and_the_rest_of_its_line() {
    let stage = only_stage("Bootstrap: scratch\n%labels\n A 1\n B  two words \n C \"quoted\"\n D\n # no\n e.f x=y\n");
    let labels: Vec<_> = stage.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("A", "1"), ("B", "two words"), ("C", "\"quoted\""), ("D", ""), ("e.f", "x=y")]);
}

#[test]
fn the_sections_of_an_app_come_together() {
    let stage = only_stage(
        "Bootstrap: scratch\n%apprun b\nrun\n%appinstall a\nmake\n%appfiles b\nx bin/\n%applabels b\nK v\n%apphelp b\nhelp\n",
    );
    let names: Vec<_> = stage.apps.iter().map(|app| app.name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    let b = &stage.apps[0];
    assert_eq!((text(b.run.as_ref()), b.files.len(), b.labels.len()), ("run\n".to_owned(), 1, 1));
    assert_eq!(text(stage.apps[1].install.as_ref()), "make\n");
}

#[test]
fn a_given_value_counts_before_a_default() {
    let source = "Bootstrap: {{ AGENT }}\nFrom: {{BASE}}\n%arguments\nAGENT=localimage\nBASE={{ NAME }}.sif\nNAME=a\n%post\necho {{ NAME }} # {{ NAME }}\n# {{ nothing }}\n";
    let check = |args: &[(&str, &str)], from: &str, script: &str| {
        let definition = with_args(source, args).expect("a definition");
        let stage = &definition.stages[0];
        assert_eq!(stage.header.get("from"), Some(from));
        assert_eq!(stage.post[0].text, script.as_bytes());
        assert!(definition.unused_arguments.is_empty());
    };
    check(&[], "a.sif", "echo a # a\n# {{ nothing }}\n");
    check(&[("NAME", "b")], "b.sif", "echo b # b\n# {{ nothing }}\n");
    check(&[("BASE", "c"), ("NAME", "x y")], "c", "echo x y # x y\n# {{ nothing }}\n");
}

#[test]
fn arguments_that_stand_nowhere_are_told() {
    let definition = with_args("Bootstrap: scratch\n%post\necho {{ A }}\n", &[("A", "1"), ("B", "2")]).unwrap();
    assert_eq!(definition.unused_arguments, ["B"]);
}

#[test]
fn a_file_of_arguments_is_assignments() {
    let mut given = BuildArgs::default();
    given.add_file(b"# comment\nA=file\n\nB=b=c\n").unwrap();
    given.add("A", b"option");
    let definition = parse(b"Bootstrap: scratch\n%post\n{{ A }} {{ B }}\n", &given).unwrap();
    assert_eq!(definition.stages[0].post[0].text, b"option b=c\n");
    let error = given.add_file(b"A=1\nno assignment\n").unwrap_err();
    assert_eq!((error.line, error.problem), (2, Problem::NotAnAssignment));
}

#[test]
fn the_image_keeps_the_text_with_its_values_but_for_secrets() {
    let source = "Bootstrap: scratch\n%arguments\n# secret: TOKEN\nWHO=me\n%post\ncurl {{ TOKEN }} {{ WHO }}\n";
    let definition = with_args(source, &[("TOKEN", "s3cr3t")]).unwrap();
    let expected = "Bootstrap: scratch\n%arguments\n# secret: TOKEN\nWHO=me\n%post\ncurl {{ TOKEN }} me\n";
    assert_eq!(String::from_utf8_lossy(&definition.text), expected);
    let post = &definition.stages[0].post[0];
    assert_eq!((post.text.as_slice(), post.holds_secret), (b"curl s3cr3t me\n".as_slice(), true));
    assert!(definition.warnings.is_empty());
}

#[test]
fn a_secret_in_what_the_image_keeps_is_worth_a_warning() {
    let source = "Bootstrap: scratch\n%arguments\n# secret: TOKEN\n%environment\nexport T={{ TOKEN }}\n";
    let definition = with_args(source, &[("TOKEN", "s3cr3t")]).unwrap();
    assert_eq!(definition.warnings, [(4, "`%environment` writes a secret build argument into the image".to_owned())]);
}

#[test]
fn mistakes_are_shown_with_their_place() {
    check_error("Bootstrap: scratch\n\n%pots\ntrue\n", "3:2: no section is called `%pots`\n    3 | %pots\n      |  ^");
    check_error(
        "Bootstrap: scratch\n  Form: x\n",
        "2:3: no header key is called `Form`\n    2 |   Form: x\n      |   ^",
    );
    check_error(
        "Bootstrap: scratch\n\tnonsense\n",
        "2:2: expected `Key: value` or a section\n    2 |  nonsense\n      |  ^",
    );
    check_error("From: x\n", "1:1: the header has no `Bootstrap:`\n    1 | From: x\n      | ^");
    check_error(
        "%post\ntrue\n",
        "1:1: expected a header that begins with `Bootstrap:` before the first section\n    1 | %post\n      | ^",
    );
    check_error(
        "Bootstrap: scratch\n%post\n% x\n",
        "3:2: expected the name of a section after `%`\n    3 | % x\n      |  ^",
    );
    check_error(
        "Bootstrap: scratch\n%post\necho {{ A }}\n",
        "3:6: `{{ A }}` has no value\n    3 | echo {{ A }}\n      |      ^",
    );
    check_error(
        "Bootstrap: scratch\nStage: a\n%files from b\n",
        "3:8: no earlier stage is called `b`\n    3 | %files from b\n      |        ^",
    );
    check_error(
        "Bootstrap: scratch\n%files to b\n",
        "2:8: expected `from STAGE` or nothing after `%files`\n    2 | %files to b\n      |        ^",
    );
    check_error(
        "Bootstrap: scratch\n%files\n a b c\n",
        "3:6: expected a source and a target; `c` is one word more\n    3 |  a b c\n      |      ^",
    );
    check_error(
        "Bootstrap: scratch\n%apprun\nx\n",
        "2:8: expected the name of an app after `%apprun`\n    2 | %apprun\n      |        ^",
    );
    check_error(
        "Bootstrap: scratch\n%apprun ../x\n",
        "2:9: `../x` cannot be the name of an app\n    2 | %apprun ../x\n      |         ^",
    );
    check_error(
        "Bootstrap: scratch\nStage: a\n%post\nBootstrap: scratch\nStage: a\n",
        "5:1: an earlier stage is called `a` too\n    5 | Stage: a\n      | ^",
    );
}

#[test]
fn what_is_no_definition_file_is_said_to_be_none() {
    for empty in ["", "\n\n", "# nothing\n"] {
        let error = parse(empty.as_bytes(), &BuildArgs::default()).unwrap_err();
        assert_eq!(error.problem, Problem::Empty);
    }
    let error = parse(b"\x7fELF\x02\0\0", &BuildArgs::default()).unwrap_err();
    assert_eq!(error.to_string(), "1:1: this is no text: it holds a NUL byte");
    assert_eq!(error.hints().len(), 1);
}

#[test]
fn a_misspelled_name_is_answered_with_the_one_that_was_meant() {
    let hints = |text: &str| parse(text.as_bytes(), &BuildArgs::default()).unwrap_err().hints();
    assert_eq!(hints("Bootstrap: scratch\n%enviroment\n"), ["`%environment` is one."]);
    assert_eq!(hints("Bootsrap: scratch\n"), ["`bootstrap:` is one."]);
}

#[test]
fn a_long_line_is_shown_around_the_place() {
    let long = format!("Bootstrap: scratch\n%post\n{} {{{{ A }}}} {}\n", "x".repeat(1000), "y".repeat(1000));
    let error = parse(long.as_bytes(), &BuildArgs::default()).unwrap_err();
    let shown = error.to_string();
    assert!(error.column == 1002 && shown.len() < 500 && shown.contains("x {{ A }} y"), "{shown}");
}

#[test]
fn values_that_multiply_one_another_are_refused() {
    let text = format!(
        "Bootstrap: scratch\n%arguments\nB={}\nA={}\n%post\n{{{{ A }}}}\n",
        "b".repeat(1 << 16),
        "{{B}}".repeat(1 << 12)
    );
    let error = parse(text.as_bytes(), &BuildArgs::default()).unwrap_err();
    assert!(matches!(error.problem, Problem::TooLarge { .. }));
}

#[test]
fn many_here_documents_take_no_time() {
    let text = format!("Bootstrap: scratch\n%post\n{}", "cat <<E\n".repeat(200_000));
    assert_eq!(parse(text.as_bytes(), &BuildArgs::default()).unwrap().stages.len(), 1);
}

proptest! {
    /// Any lines from a handful of awkward ones: an answer, and never a panic.
    #[test]
    fn any_text_is_answered(lines in prop::collection::vec(prop::sample::select(vec![
        "Bootstrap: scratch", "bootstrap:", "From: x", "Stage: a", "%post", "%post -c /bin/sh", "%files from a", "%files",
        "%apprun a", "%arguments", "A={{ B }}", "B=1", "# secret: A", "{{ A }}", "cat <<E <<-F", "E", "\tF", "'", "\"", "\\",
        "a b", "\"a", "%", " %x", "$((", "))", "$(", ")", "{{", "é\u{301}",
    ]), 0..24)) {
        let text = lines.join("\n");
        if let Err(error) = parse(text.as_bytes(), &BuildArgs::default()) {
            prop_assert!(error.line >= 1 && error.line as usize <= lines.len().max(1));
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// Without templates the image keeps every line as it stands.
    #[test]
    fn text_without_templates_is_kept(lines in prop::collection::vec("[ -z|~]{0,30}", 0..10)) {
        let text = format!("Bootstrap: scratch\n%help\nx{}\n", lines.iter().map(|l| format!("\n {l}")).collect::<String>());
        let kept = parse(text.as_bytes(), &BuildArgs::default()).unwrap().text;
        prop_assert_eq!(String::from_utf8_lossy(&kept).into_owned(), text);
    }
}
