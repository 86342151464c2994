//! Scripts, and what they print and end with: written down, and compared with the shells of this machine.

use super::evaluate::Stop;
use super::process::tests::run_process;
use super::pure;
use crate::tree::lookup::{Entry, Kind, Lookup, LookupError, Stat};
use proptest::prelude::*;
use starter::paths::ContainerPath;

/// A directory `/d` with a few files, all readable and executable; `/d/link` leads to `/d/a.sh`.
struct Files;

const FILES: [(&str, &str); 4] =
    [("/d/a.sh", "A=sourced\n"), ("/d/b.txt", "text\n"), ("/d/.hidden", ""), ("/d/sub/c.sh", "return 3\necho no\n")];

impl Lookup for Files {
    fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError> {
        let path = String::from_utf8_lossy(path.as_bytes()).into_owned();
        let kind = if path == "/d/link" {
            Kind::Symlink
        } else if FILES.iter().any(|(name, _)| *name == path) {
            Kind::File
        } else if path == "/" || FILES.iter().any(|(name, _)| name.starts_with(&format!("{path}/"))) {
            Kind::Directory
        } else {
            return Ok(None);
        };
        let size_bytes = FILES.iter().find(|(name, _)| *name == path).map_or(0, |(_, text)| text.len() as u64);
        Ok(Some(Stat { kind, mode: 0o755, uid: 0, gid: 0, size_bytes, mtime: 0, inode: 1, nlink: 1, rdev: 0 }))
    }
    fn read_link(&self, path: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
        Ok((path.as_bytes() == b"/d/link").then(|| b"a.sh".to_vec()))
    }
    fn read_file(&self, path: &ContainerPath, _: u64) -> Result<Option<Vec<u8>>, LookupError> {
        Ok(FILES.iter().find(|(name, _)| name.as_bytes() == path.as_bytes()).map(|(_, text)| text.as_bytes().to_vec()))
    }
    fn read_dir(&self, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
        let names: &[(&[u8], Kind)] = match path.as_bytes() {
            b"/" => &[(b"d", Kind::Directory)],
            b"/d" => &[
                (b".hidden", Kind::File),
                (b"a.sh", Kind::File),
                (b"b.txt", Kind::File),
                (b"link", Kind::Symlink),
                (b"sub", Kind::Directory),
            ],
            b"/d/sub" => &[(b"c.sh", Kind::File)],
            _ => return Ok(None),
        };
        Ok(Some(names.iter().map(|(name, kind)| Entry { name: name.to_vec(), kind: *kind }).collect()))
    }
}

/// What the script prints, and its exit code.
fn run(script: &str) -> Result<(String, u8), Stop> {
    let mut shell = pure::shell(&Files, &[], b"/");
    shell.state.arguments = vec![b"one".to_vec(), b"two words".to_vec(), b"*".to_vec()];
    let status = shell.run(b"sh", script.as_bytes())?;
    Ok((String::from_utf8_lossy(&shell.world.stdout).into_owned(), status))
}

fn check(script: &str, expected: &str) {
    match run(script) {
        Ok((printed, _)) => assert_eq!(printed, expected, "{script}"),
        Err(stop) => panic!("{script}: {stop:?}"),
    }
}

fn needs_shell(script: &str, because: &str) {
    match run(script) {
        Err(Stop::NeedsShell { reason }) => assert!(reason.contains(because), "{script}: {reason}"),
        other => panic!("{script}: {other:?}"),
    }
}

#[test]
fn files_of_the_image_are_seen() {
    for (script, expected) in [
        ("echo /d/*", "/d/a.sh /d/b.txt /d/link /d/sub\n"),
        ("echo /d/.*", "/d/.hidden\n"),
        ("echo /*/*.sh /d/x* /d/[ab].*", "/d/a.sh /d/x* /d/a.sh /d/b.txt\n"),
        ("cd /d; echo *.sh; pwd", "a.sh\n/d\n"),
        (
            "[ -f /d/a.sh ] && [ -d /d/sub ] && [ ! -e /d/none ] && [ -L /d/link ] && [ -s /d/b.txt ] && echo yes",
            "yes\n",
        ),
        (". /d/a.sh; echo $A", "sourced\n"),
        (". /d/link; echo $A", "sourced\n"),
        (". /d/sub/c.sh; echo $?", "3\n"),
        ("PATH=/none:/d; command -v a.sh b.sh; echo $?", "/d/a.sh\n1\n"),
        ("while read -r line; do echo \"<$line>\"; done < /d/b.txt", "<text>\n"),
        ("set -f; echo /d/*", "/d/*\n"),
        ("echo \"${x:-it's}\" \"${x:-'q'}\"", "it's 'q'\n"),
    ] {
        check(script, expected);
    }
}

#[test]
fn what_needs_a_process_says_so() {
    needs_shell("date", "runs `date`");
    needs_shell("x=$(uname -r)", "runs `uname`");
    needs_shell("echo x > /tmp/file", "redirects descriptor 1");
    needs_shell("read x", "standard input");
    needs_shell("echo $$", "variable $");
    needs_shell("sleep 1 &", "background");
    needs_shell("[ -w /d/a.sh ]", "can be written");
    needs_shell("exec /d/a.sh", "runs `/d/a.sh`");
    needs_shell("trap 'echo x' EXIT", "`trap`");
    needs_shell("a=(1 2)", "arrays");
    needs_shell("cat /d/../d/a.sh", "runs `cat`");
    needs_shell("[ -e /d/../d ]", "looks at");
}

#[test]
fn scripts_that_never_end_are_stopped() {
    needs_shell("while :; do :; done", "too many steps");
    needs_shell("x=a; while :; do x=$x$x; done", "too many steps");
    needs_shell("set -- ''; while :; do set -- \"$@\" \"$@\"; done", "too many steps");
    needs_shell("IFS=:; x=::::::::; while :; do x=$x$x; set -- $x; done", "too many steps");
    needs_shell("x=a; while :; do x=\"$x;$x\"; eval \"false && { $x; }\"; done", "too many steps");
    needs_shell("f() { f; }; f", "deep");
    needs_shell("while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done", "writes too much");
    needs_shell("eval 'f() { eval f; }'; f", "deep");
    assert_eq!(run("x='x+1'; echo $((x))").expect("an exit code"), (String::new(), 2));
}

#[test]
fn nesting_without_end_is_refused() {
    for open in
        ["(", "{ ", "$(", "`echo ${x:-", "if ", "while ", "${x:-", "\"${x:-", "$((", "case x in x) ", "[[ ( ", "f() "]
    {
        assert!(super::parse(open.repeat(20_000).as_bytes()).is_err(), "{open}");
    }
    let nested = format!("{}:{}", "if :; then ".repeat(12), "; fi".repeat(12));
    assert_eq!(run(&nested).expect("runs"), (String::new(), 0));
    let arithmetic = format!("echo $(({}1{}))", "(".repeat(5000), ")".repeat(5000));
    assert!(matches!(run(&arithmetic), Ok((_, 2)) | Err(_)));
    let tests = format!("[ {} x ]", "! ".repeat(5000));
    assert_eq!(run(&tests).expect("runs").1, 2);
}

#[test]
fn errors_name_their_line() {
    let mut shell = pure::shell(&Files, &[], b"/");
    let status = shell.run(b"script", b"A=1\n\necho ${B:?is missing}\n").expect("an exit code");
    assert_eq!(status, 2);
    assert_eq!(String::from_utf8_lossy(&shell.world.stderr), "sh: line 3: B: is missing\n");
    for (script, message) in [
        ("echo 'a", "line 1: missing `'` before the end"),
        ("if x\nthen y", "line 2: missing `fi` before the end"),
        ("echo\n)", "line 2: unexpected `)`"),
        ("cat <<E\nx", "line 2: missing `end of the here-document` before the end"),
        ("${x!}", "line 1: bad substitution"),
        ("a &&", "line 1: unexpected end of script"),
        ("done", "line 1: unexpected `done`"),
    ] {
        assert_eq!(super::parse(script.as_bytes()).expect_err(script).to_string(), message, "{script}");
    }
}

/// Scripts that every POSIX shell agrees on.
const COMMON: &[&str] = &[
    "x=abc; echo ${#x} ${x#a} ${x%c} ${x%%[bc]*} ${x##*b}",
    "x='a b'; echo $x; echo \"$x\"; for w in $x; do echo \"<$w>\"; done",
    "unset x; echo ${x:-d} ${x-d} \"${x:-a b}\" ${x:+set}; : ${x:=now}; echo $x ${x:+set} ${x+set}",
    "x=; echo \"<${x:-d}> <${x-d}> <${x:+s}> <${x+s}>\"",
    "x=p:q:r; IFS=:; for w in $x; do echo \"<$w>\"; done; echo \"$*\"",
    "IFS=': '; x='a : b::c :'; for w in $x; do echo \"<$w>\"; done",
    "IFS=; x='a b'; for w in $x; do echo \"<$w>\"; done",
    "for a in \"$@\"; do echo \"[$a]\"; done; echo $#; shift; echo \"$1\" $#",
    "for a in $*; do echo \"[$a]\"; done",
    "for a; do echo \"$a\"; done; for a in x\"$@\"y; do echo \"[$a]\"; done",
    "set --; for a in \"$@\"; do echo never; done; for a in \"\" ''; do echo \"<$a>\"; done; echo $#",
    "echo $(echo a; echo b) \"$(echo a; echo b)\" `echo c`",
    "echo \"$(echo \"nested $(echo \"deep\")\")\" `echo \\`echo x\\``",
    "echo $((1+2*3)) $(( (1+2)*3 )) $((7/2)) $((7%3)) $((-7/2)) $((1<<4)) $((5>3)) $((!0)) $((~0))",
    "x=5; echo $((x+1)) $(($x*2)) $((x>3?1:0)) $((x==5&&x<6)) $((x=7)) $x $((x+=2)) $((010)) $((0x1f))",
    "if false; then echo a; elif true; then echo b; else echo c; fi",
    "i=0; while [ $i -lt 3 ]; do i=$((i+1)); [ $i = 2 ] && continue; echo $i; done; echo end",
    "for i in 1 2 3; do for j in a b; do [ $i$j = 2a ] && continue 2; [ $i$j = 3b ] && break 2; echo $i$j; done; done",
    "i=3; until [ $i -eq 0 ]; do echo $i; i=$((i-1)); done",
    "case abc in a) echo one;; a*|b) echo two;; *) echo three;; esac",
    "x='*'; case '*' in \"$x\") echo quoted;; esac; case abc in $x) echo pattern;; esac; case a in '*') echo no;; [!b]) echo set;; esac",
    "case x in (x) echo paren; esac",
    "f() { echo \"f $1 $#\"; return 3; }; f a b; echo $?; echo $1",
    "f() { local x=in; echo $x; g; }; g() { echo \"g $x\"; x=changed; }; x=out; f; echo $x",
    "x=1; (x=2; echo $x); echo $x; { x=3; }; echo $x",
    "true && echo a || echo b; false && echo a || echo b; ! true; echo $?",
    "false; echo $?; true; echo $?; (exit 7); echo $?",
    "x=$(exit 4); echo $?; x=$(false) y=1; echo $? $y",
    "eval 'a=1; b=\"$a 2\"'; echo \"$b\"; eval echo '$b' '\"$b\"'",
    "export A=1; A=2; readonly R=r; echo $A $R; unset A; echo ${A-gone}",
    "cat=x; y=${cat}y; echo $y${cat}'$cat'\"'$cat'\" \\$cat \"\\$cat\"",
    "echo a\\ b 'c d' \"e  f\" g\\\nh",
    "printf '%s\\n' \"a\\b \\$ \\\\ \\\" \\` '\"",
    "while read a b; do echo \"$b-$a\"; done <<E\n1 2 3\n x  y \nE\necho after",
    "x=v; while read -r l; do echo \"$l\"; done <<E\n$x \\$x `echo s` \"q\" $((1+1))\nE",
    "while read -r l; do echo \"$l\"; done <<'E'\n$x \\$x\nE",
    "while read -r l; do echo \"<$l>\"; done <<-E\n\t\ttabs\n\tE",
    "echo a b | while read x y; do echo \"$y $x\"; done",
    "echo 'p q' | { read x; echo \"<$x>\"; }",
    "IFS=: read a b <<E\n1:2:3\nE\necho \"$a|$b\"",
    "printf '%s-%s\\n' a b c; printf '%d %5d|%-5s|%05d %x %o %c\\n' 42 42 ab 42 255 8 xyz; printf '%%\\n'",
    "printf '%b\\n' 'a\\tb'; printf 'no newline'; printf '\\n'; printf '%.2s|%5.1s|\\n' abc def",
    "[ a = a ] && [ a != b ] && [ -n a ] && [ -z '' ] && [ 1 -lt 2 ] && [ ! a = b ] && echo ok",
    "[ a = a -a b = b ] && [ a = b -o b = b ] && [ \\( a = a \\) ] && echo ok; test; echo $?; test x; echo $?",
    "[ -n \"$nothing\" ] || echo empty; [ \"!\" = \"!\" ] && echo bang; [ -z ] && echo z; [ \"(\" = \"(\" ] && echo paren",
    "set -- a b c; echo $# $2; set -- \"$@\" d; echo $4; shift 2; echo $1",
    "set -e; false || true; if false; then :; fi; ! true; echo still; (false); echo never",
    "set -u; echo ${x-unset}; x=1; echo $x",
    "set -a; Z=1; set +a; Y=2; export | grep -c nothing >/dev/null 2>&1; echo $Z",
    "x=~; [ \"$x\" = \"$HOME\" ] && echo home; echo a~ '~' \"~\"",
    "HOME=/h; x=~/a:~/b; echo $x ~ ~/c",
    "x=abcabc; echo ${x%b*} ${x%%b*} ${x#*b} ${x##*b}; y=\"*b\"; echo ${x#$y} ${x#\"$y\"}",
    "x=/a/b/c.txt; echo ${x##*/} ${x%/*} ${x%.txt}",
    "unset u; echo ${u:-$(echo sub)} ${u:-${v:-deep}} \"${u:-\"quoted\"}\" ${u:-'single'}",
    "echo one; exit 5; echo two",
    "{ echo out; echo err >&2; } 2>/dev/null; echo x 2>&1 1>/dev/null; (echo gone) >/dev/null",
    "f() { echo $(($1 * 2)); }; echo $(f 21)",
    "f() { [ $1 -le 1 ] && { echo 1; return; }; echo $(( $1 * $(f $(($1 - 1))) )); }; f 5",
    "f() { f2() { echo inner; }; f2; }; f; f2",
    "x=1; f() { echo $x; }; x=2 f; x='a  b'; echo $x",
    "echo \"${#}\" \"$#\" ${1#o} \"${1}\" \"${10-none}\"",
    "command echo hi; command -v echo; type nosuchthing >/dev/null 2>&1 || echo none",
    "while getopts ab:c o -a -b val -cx; do echo \"$o ${OPTARG-}\"; done 2>/dev/null; echo $OPTIND",
    "set -- -a arg1 rest; while getopts a: o; do echo $o=$OPTARG; done; shift $((OPTIND-1)); echo $1",
    "x='a\nb'; echo $x; echo \"$x\"; y=$(printf 'a\\n\\n\\n'); echo \"<$y>\"",
    "if [ \"${x:-}\" ]; then echo t; else echo f; fi; # comment\necho '#' a#b #c",
    "for i in a b\ndo\n echo $i\ndone\nfor i in; do echo never; done\nwhile false; do :; done; echo $?",
    "PATH=/a:/b; case \":$PATH:\" in *\":/b:\"*) echo has;; *) echo no;; esac; PATH=\"${PATH:+$PATH:}/c\"; echo $PATH",
    ": ${X:=1} ${Y=2}; echo $X$Y; [ -z \"${LD:-}\" ] && LD=/l || LD=$LD:/l; echo $LD",
    "echo ${x:-\\}} ${x:-a\\ b}",
    "a=1; b=a; eval c=\\$$b; echo $c; eval \"d_$b=9\"; echo $d_a",
    "printf '%s\\n' `printf %s \"a\\\\\\\\b\"` \"`echo '$x'`\"",
    "x=5; x=$((x-1)); : $((x-=1)); echo $x $((x - -1)) $((- -3))",
    "unset -f nosuch; unset nosuch; echo $?; readonly Q=1; (Q=2) 2>/dev/null; echo $Q",
    "test 5 -gt 3 -a 2 -ge 2 && echo yes; [ 07 -eq 7 ] && echo seven",
];

/// Scripts in the language that bash adds.
const EXTENDED: &[&str] = &[
    "A=1 eval 'echo $A'; echo \"<$A>\"",
    "[[ abc == a* ]] && echo p; [[ abc == 'a*' ]] || echo q; [[ -n x && ( a = b || ! a = b ) ]] && echo r",
    "x='a b'; [[ $x = 'a b' ]] && echo s; [[ -z $nothing ]] && echo t; [[ 2 -lt 10 ]] && echo u; [[ a < b ]] && echo v",
    "x=hello; echo ${x/l/L} ${x//l/L} ${x/#he/HE} ${x/%lo/LO} ${x//l} ${x//l*/-}",
    "x=hello; echo ${x:1} ${x:1:2} ${x: -2} ${x:0:-1} ${x^} ${x^^} ${x,,}",
    "x=y; y=z; echo ${!x}; x+=more; echo $x; export E=1; E+=2; echo $E",
    "function f { echo f; }; f; function g() { echo g; }; g",
    "echo $'a\\tb\\x41\\101\\n'; echo $\"dollar\"",
    "read x <<< 'a here string'; echo $x; { echo a; echo b >&2; } &>/dev/null; echo c",
    "((x = 3 + 4)); echo $x; ((0)) || echo zero; let y=x*2; echo $y; ((x++)); echo $x",
    "echo -e 'a\\tb\\c'; echo; echo -n x; echo -E 'a\\tb'; echo -ne 'y\\n'",
    "declare -x D=1; f() { declare l=2; echo $l; }; f; echo ${l-unset} $D; typeset -i n=3+4; echo $n",
    "set -o pipefail; false | true; echo $?; test -v x; echo $?; x=1; test -v x; echo $?",
    "printf -v v '%03d' 7; echo $v",
    "f() { return 4; }; f || echo $?; echo ${x:=def} ${#x}",
    "echo a |& while read x; do echo \"<$x>\"; done",
];

fn shells_agree(program: &str, scripts: &[&str]) {
    if std::process::Command::new(program).arg("-c").arg(":").output().is_err() {
        eprintln!("skipped: needs {program}");
        return;
    }
    for script in scripts {
        let Ok((printed, status)) = run(script) else {
            // /dev/null is outside of an image's files, `grep` a program; said elsewhere.
            assert!(script.contains("/dev/null") || script.contains("HOME"), "{script}: {:?}", run(script));
            continue;
        };
        let output = std::process::Command::new(program)
            .args(["-c", script, "sh", "one", "two words", "*"])
            .current_dir("/proc/self/ns")
            .env_clear()
            .output()
            .expect("runs");
        let theirs = String::from_utf8_lossy(&output.stdout).into_owned();
        // An empty directory for ours, one without a match for theirs; `*` stands for itself in neither.
        if !script.contains("$*;") {
            assert_eq!(printed, theirs, "{program}: {script}");
        }
        let code = output.status.code().unwrap_or(-1);
        assert_eq!(status == 0, code == 0, "{program}: {script}: {status} and {code}");
    }
}

#[test]
fn scripts_do_what_the_systems_shell_does() {
    shells_agree("/bin/sh", COMMON);
}

#[test]
fn scripts_do_what_bash_does() {
    shells_agree("/bin/bash", COMMON);
    shells_agree("/bin/bash", EXTENDED);
}

#[test]
fn the_shell_of_processes_runs_programs() {
    let directory = std::env::temp_dir().join(format!("sifu-shell-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let there = directory.display();
    for (script, expected, code) in [
        ("x=$(printf 'a\\nb\\n' | tail -n 1); echo $x", "b\n".to_owned(), 0),
        ("seq 1 200000 | while read x; do [ $x = 3 ] && break; done; echo done", "done\n".to_owned(), 0),
        ("seq 3 | tr -d '\\n' | { cat; echo; }", "123\n".to_owned(), 0),
        ("x=$(seq 1 100000); echo ${#x}", "588894\n".to_owned(), 0),
        ("A=1 B=2 env | grep '^[AB]='", "A=1\nB=2\n".to_owned(), 0),
        ("sh -c 'exit 7'; echo $?; sh -c 'kill -9 $$'; echo $?", "7\n137\n".to_owned(), 0),
        ("nosuchprogram; echo $?; /etc/passwd; echo $?; /etc; echo $?", "127\n126\n126\n".to_owned(), 0),
        (
            &format!("cd {there}; echo x > f; echo y >> f; cat < f; cat f | wc -l; set -C; echo z > f; echo $?"),
            "x\ny\n2\n1\n".to_owned(),
            0,
        ),
        (
            &format!("cd {there}; cat <<E > g\n$((6*7))\nE\nread x < g; echo $x; ls; pwd"),
            format!("42\nf\ng\n{there}\n"),
            0,
        ),
        (
            "exec 3>&1; { echo to-three >&3; } > /dev/null; exec 3>&-; echo x >&3; echo $?",
            "to-three\n1\n".to_owned(),
            0,
        ),
        ("(cd /; pwd); pwd; (exit 4) | (exit 5); echo $?", "/\n/proc/self/ns\n5\n".to_owned(), 0),
        ("false | exit 9; exit 6; echo never", String::new(), 6),
        ("exec /no/such/program; echo never", String::new(), 255),
    ] {
        assert_eq!(run_process(script), (expected, code), "{script}");
    }
    std::fs::remove_dir_all(&directory).expect("removed");
}

#[test]
fn the_shell_of_processes_says_what_the_systems_shell_says() {
    for script in COMMON.iter().filter(|s| !s.contains("$*;") && !s.contains("HOME")) {
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", script, "sh", "one", "two words", "*"])
            .current_dir("/proc/self/ns")
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .output();
        let Ok(output) = output else {
            eprintln!("skipped: needs /bin/sh");
            return;
        };
        let (printed, status) = run_process(script);
        assert_eq!(printed, String::from_utf8_lossy(&output.stdout), "{script}");
        assert_eq!(status == 0, output.status.success(), "{script}");
    }
}

/// Pieces of which scripts are made.
const PIECES: [&str; 40] = [
    "echo ",
    "x",
    "=",
    "$x",
    "${x",
    "}",
    "$(",
    ")",
    "`",
    "\"",
    "'",
    "\\",
    ";",
    "\n",
    " ",
    "if ",
    "then ",
    "fi ",
    "for x in ",
    "do ",
    "done ",
    "case x in ",
    "esac ",
    ";;",
    "{ ",
    "( ",
    "[ ",
    "]",
    "[[ ",
    "$((",
    "))",
    "<<E\n",
    "E\n",
    ":-",
    "##*",
    "/",
    "&&",
    "|",
    "set -- a b; ",
    "f() ",
];

proptest! {
    #[test]
    fn no_text_makes_the_shell_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut shell = pure::shell(&Files, &[], b"/");
        let _ = shell.run(b"sh", &bytes);
    }

    #[test]
    fn no_mixture_of_pieces_makes_the_shell_panic(pieces in proptest::collection::vec(0..PIECES.len(), 0..60)) {
        let script: String = pieces.into_iter().map(|at| PIECES[at]).collect();
        let mut shell = pure::shell(&Files, &[], b"/");
        shell.fuel = super::Fuel::new(1 << 18);
        let _ = shell.run(b"sh", script.as_bytes());
    }

    #[test]
    fn quoted_text_comes_back_as_it_was(text in proptest::collection::vec(1u8.., 0..60)) {
        let mut shell = pure::shell(&Files, &[], b"/");
        let script = [b"x=".as_slice(), &super::single_quote(&text)].concat();
        prop_assert_eq!(shell.run(b"sh", &script), Ok(0));
        prop_assert_eq!(shell.get(b"x"), Some(text.as_slice()));
    }
}
