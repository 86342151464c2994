//! The environment of real images, in a tree in memory, against what Apptainer 1.4.5 gives.

use super::*;
use starter::paths::ContainerPath;
use std::collections::BTreeMap;

/// Files and their modes, by absolute path; directories are those above them.
#[derive(Default)]
struct Image(BTreeMap<Vec<u8>, (u32, Vec<u8>)>);

impl Image {
    fn file(mut self, path: &str, content: &str) -> Self {
        self.0.insert(path.as_bytes().to_vec(), (0o755, content.as_bytes().to_vec()));
        self
    }
}

impl Lookup for Image {
    fn lstat(&self, path: &ContainerPath) -> Result<Option<Stat>, LookupError> {
        let stat = |kind, mode, size| Stat {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size_bytes: size,
            mtime: 0,
            inode: 1,
            nlink: 1,
            rdev: 0,
        };
        if let Some((mode, content)) = self.0.get(path.as_bytes()) {
            return Ok(Some(stat(Kind::File, *mode, content.len() as u64)));
        }
        let below = [path.as_bytes().strip_suffix(b"/").unwrap_or(path.as_bytes()), b"/"].concat();
        Ok(self.0.keys().any(|k| k.starts_with(&below)).then(|| stat(Kind::Directory, 0o755, 0)))
    }
    fn read_link(&self, _: &ContainerPath) -> Result<Option<Vec<u8>>, LookupError> {
        Ok(None)
    }
    fn read_file(&self, path: &ContainerPath, _: u64) -> Result<Option<Vec<u8>>, LookupError> {
        Ok(self.0.get(path.as_bytes()).map(|(_, content)| content.clone()))
    }
    fn read_dir(&self, path: &ContainerPath) -> Result<Option<Vec<Entry>>, LookupError> {
        if self.lstat(path)?.is_none_or(|s| s.kind != Kind::Directory) {
            return Ok(None);
        }
        let below = [path.as_bytes().strip_suffix(b"/").unwrap_or(path.as_bytes()), b"/"].concat();
        let mut names = BTreeMap::new();
        for name in self.0.keys().filter_map(|k| k.strip_prefix(below.as_slice())) {
            let (first, kind) = match name.iter().position(|&b| b == b'/') {
                Some(end) => (&name[..end], Kind::Directory),
                None => (name, Kind::File),
            };
            names.insert(first.to_vec(), kind);
        }
        Ok(Some(names.into_iter().map(|(name, kind)| Entry { name, kind }).collect()))
    }
}

/// What every image built by Apptainer holds, in its words' effect.
const BASE: &str = r#"#!/bin/sh
if [ -z "${LD_LIBRARY_PATH:-}" ]; then
    LD_LIBRARY_PATH="/.singularity.d/libs"
else
    LD_LIBRARY_PATH="$LD_LIBRARY_PATH:/.singularity.d/libs"
fi
if [ -z "${PS1:-}" ]; then
    PS1="Apptainer> "
fi
export LD_LIBRARY_PATH PS1
"#;

const APPS: &str = r#"#!/bin/sh
if test -n "${SINGULARITY_APPNAME:-}"; then
    export SINGULARITY_APPNAME
    if test -d "/scif/apps/${SINGULARITY_APPNAME:-}/"; then
        SCIF_APPS="/scif/apps"
        SCIF_APPROOT="/scif/apps/${SINGULARITY_APPNAME:-}"
        export SCIF_APPROOT SCIF_APPS
        PATH="/scif/apps/${SINGULARITY_APPNAME:-}:/scif/apps/singularity:$PATH"
        if test -d "/scif/apps/${SINGULARITY_APPNAME:-}/bin"; then
            PATH="/scif/apps/${SINGULARITY_APPNAME:-}/bin:$PATH"
        fi
        if [ -f "/scif/apps/${SINGULARITY_APPNAME:-}/scif/env/90-environment.sh" ]; then
            . "/scif/apps/${SINGULARITY_APPNAME:-}/scif/env/90-environment.sh"
        fi
        export PATH
    else
        echo "no such app: ${SINGULARITY_APPNAME}"
        exit 1
    fi
fi
"#;

fn plain() -> Image {
    Image::default()
        .file("/bin/sh", "")
        .file("/.singularity.d/runscript", "#!/bin/sh\n")
        .file("/.singularity.d/env/01-base.sh", "#!/bin/sh\n# nothing\n")
        .file("/.singularity.d/env/90-environment.sh", "#!/bin/sh\n")
        .file("/.singularity.d/env/94-appsbase.sh", "")
        .file("/.singularity.d/env/95-apps.sh", APPS)
        .file("/.singularity.d/env/99-base.sh", BASE)
        .file("/.singularity.d/env/99-runtimevars.sh", "export PATH=never/sourced\n")
}

fn main_image() -> Image {
    plain().file(
        "/.singularity.d/env/90-environment.sh",
        "export FRUIT=apple\nexport GREETING='hello world'\nNOT_EXPORTED=x\n",
    )
}

/// The environment section of the suite's most intricate image.
fn intricate() -> Image {
    plain()
        .file("/.singularity.d/env/20-first.sh", "export ORDER=\"20\"\nexport EARLY=early\n")
        .file("/.singularity.d/env/91-environment.sh", "export ORDER=\"${ORDER}-post\"\n")
        .file("/.singularity.d/env/95-extra.sh", "export ORDER=\"${ORDER}-95\"\nexport LATE=late\n")
        .file(
            "/.singularity.d/env/90-environment.sh",
            r#"
    export ORDER="${ORDER}-90"
    export PATH=/opt/bin:$PATH
    export LD_LIBRARY_PATH=/opt/lib:$LD_LIBRARY_PATH
    export FRUIT=apple
    export DEFAULTED=${DEFAULTED:-image-default}
    export FROM_HOST="host says ${HOSTVAR:-nothing}"
    export QUOTES="single ' double \" back \\ tick"
    export DOLLAR='$HOME literal'
    export MULTI="line one
    line two"
    export EMPTYVAR=""
    export COMPUTED=$(echo computed)
    helper() { echo from-function; }
    export FROM_FUNC="$(helper)"
    unset DROPPED
    if [ -n "$TOGGLE" ]; then export TOGGLED=on; else export TOGGLED=off; fi
"#,
        )
}

fn apps() -> Image {
    plain()
        .file("/.singularity.d/env/90-environment.sh", "export GLOBAL=global\nexport SHARED=from-image\n")
        .file("/scif/apps/foo/bin/fooprog", "")
        .file("/scif/apps/foo/scif/runscript", "")
        .file("/scif/apps/foo/scif/env/90-environment.sh", "export FOOVAR=foovalue\nexport SHARED=from-foo\n")
}

struct Case {
    request: LaunchRequest,
    facts: EnvironmentFacts,
}

fn pair(text: &str) -> Pair {
    let (name, value) = text.split_once('=').expect("a pair");
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

/// A start with these host variables.
fn with(host: &[&str]) -> Case {
    let request = LaunchRequest::new(Verb::Exec, "x.sif", vec!["true".into()]);
    let mut facts = EnvironmentFacts {
        image_path: b"/images/x.sif".to_vec(),
        image_name: b"x.sif".to_vec(),
        home: b"/home/ada".to_vec(),
        directory: b"/work".to_vec(),
        uid: 1000,
        gid: 1000,
        covered: ["/proc", "/sys", "/dev", "/tmp", "/home", "/work"].map(ContainerPath::fixed).to_vec(),
        ..EnvironmentFacts::default()
    };
    facts.host.push(pair("PATH=/host/bin"));
    facts.host.extend(host.iter().map(|text| pair(text)));
    Case { request, facts }
}

impl Case {
    fn env(mut self, pairs: &[&str]) -> Self {
        self.request.env = pairs.iter().map(|text| pair(text)).collect();
        self
    }
    fn file(mut self, content: &str) -> Self {
        self.facts.env_files.push(EnvFile { path: b"e".to_vec(), content: content.as_bytes().to_vec() });
        self
    }
    fn ask(mut self, change: impl FnOnce(&mut LaunchRequest)) -> Self {
        change(&mut self.request);
        self
    }

    fn environment(&self, image: &Image) -> Environment {
        let action = actions(&self.request, image, &self.facts.covered).expect("an action");
        environment(&self.request, &self.facts, &action, image).expect("an environment").0
    }

    fn known(&self, image: &Image) -> Vec<Pair> {
        match self.environment(image) {
            Environment::Known { variables, output, .. } => {
                assert_eq!(output, Output::default());
                variables
            }
            Environment::NeedsShell { reason, .. } => panic!("needs a shell: {reason}"),
            Environment::Ended { code, output } => panic!("ended with {code}: {output:?}"),
        }
    }
}

#[test]
fn what_the_image_has_not_set_comes_back_unseen() {
    let image =
        plain().file("/.singularity.d/env/20-first.sh", "export PMI_RANK=image\nexport PMIX_RANK=\n: $SLURM_PROCID\n");
    let case = with(&["PMI_RANK=1", "PMIX_RANK=2", "SLURM_PROCID=3", "SIFUENV_PMI_FD=4", "PMI_FD=5"]);
    let Environment::Known { variables, unseen, .. } = case.environment(&image) else { panic!("not known") };
    let value = |name: &str| variables.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, v)| text(v));
    let came = |name: &str| unseen.iter().any(|n| n == name.as_bytes());
    assert_eq!((value("SLURM_PROCID"), came("SLURM_PROCID")), (Some("3".into()), true));
    assert_eq!((value("PMI_RANK"), came("PMI_RANK")), (Some("image".into()), false));
    assert_eq!((value("PMIX_RANK"), came("PMIX_RANK")), (None, false));
    assert_eq!((value("PMI_FD"), came("PMI_FD")), (Some("4".into()), false));
}

/// `NAME=value`: is set so; `NAME`: is not set.
fn check(image: &Image, case: &Case, expected: &[&str]) {
    let known = case.known(image);
    for line in expected {
        let (name, value) = line.split_once('=').map_or((*line, None), |(name, value)| (name, Some(value)));
        let got = known.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, v)| text(v));
        assert_eq!(got.as_deref(), value, "{name}");
    }
}

#[test]
fn defaults_of_an_image_without_an_environment() {
    check(
        &plain(),
        &with(&[
            "FOO=bar",
            "SPACED=a  b",
            "EMPTY=",
            "EQ=a=b==c=",
            "MULTI=a\nb\n",
            "PS1=host> ",
            "LD_LIBRARY_PATH=/host",
        ]),
        &[
            "FOO=bar",
            "SPACED=a  b",
            "EMPTY=",
            "EQ=a=b==c=",
            "MULTI=a\nb\n",
            "PS1=Apptainer> ",
            "PROMPT_COMMAND=PS1=\"Apptainer> \"; unset PROMPT_COMMAND",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH=/.singularity.d/libs",
            "USER_PATH=/host/bin:/bin:/usr/bin:/sbin:/usr/sbin:/usr/local/bin:/usr/local/sbin",
            "HOME=/home/ada",
            "PWD=/work",
            "UID",
            "UNSETVAR",
        ],
    );
}

#[test]
fn the_exact_names_under_cleanenv() {
    let case = with(&["FOO=bar", "TERM=myterm", "http_proxy=http://p", "LANG=de"]).ask(|r| r.cleanenv = true);
    let names: Vec<String> = case.known(&plain()).iter().map(|(name, _)| text(name)).collect();
    let expected = "APPTAINER_APPNAME APPTAINER_BIND APPTAINER_COMMAND APPTAINER_CONTAINER APPTAINER_ENVIRONMENT \
                    APPTAINER_NAME HOME LANG LD_LIBRARY_PATH PATH PROMPT_COMMAND PS1 PWD SINGULARITY_BIND \
                    SINGULARITY_CONTAINER SINGULARITY_ENVIRONMENT SINGULARITY_NAME TERM http_proxy";
    assert_eq!(names.join(" "), expected);
    check(&plain(), &case, &["LANG=C", "TERM=myterm"]);
}

#[test]
fn the_image_wins_over_the_host_and_does_not_see_it() {
    let case = with(&["FRUIT=host", "GREETING=host", "NOT_EXPORTED=host"]);
    check(&main_image(), &case, &["FRUIT=apple", "GREETING=hello world", "NOT_EXPORTED"]);
    let case = with(&["HOSTVAR=hv", "DEFAULTED=host", "TOGGLE=1", "DROPPED=x"]);
    check(
        &intricate(),
        &case,
        &["FROM_HOST=host says nothing", "DEFAULTED=image-default", "TOGGLED=off", "DROPPED=x", "ORDER=20-90-post-95"],
    );
}

#[test]
fn everything_a_shell_would_set_is_set() {
    check(
        &intricate(),
        &with(&[]),
        &[
            "QUOTES=single ' double \" back \\ tick",
            "DOLLAR=$HOME literal",
            "MULTI=line one\n    line two",
            "EMPTYVAR=",
            "COMPUTED=computed",
            "FROM_FUNC=from-function",
            "EARLY=early",
            "LATE=late",
            "PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_LIBRARY_PATH=/opt/lib::/.singularity.d/libs",
        ],
    );
}

#[test]
fn a_name_the_image_empties_takes_the_hosts_away() {
    let image = plain().file("/.singularity.d/env/90-environment.sh", "export GONE=\n");
    check(&image, &with(&["GONE=host"]), &["GONE"]);
    check(&image, &with(&[]), &["GONE="]);
}

#[test]
fn precedence_is_option_file_prefix_image_host() {
    let host = ["FOO=host", "APPTAINERENV_FOO=new", "SINGULARITYENV_FOO=old", "SINGULARITYENV_FRUIT=pre"];
    check(&main_image(), &with(&host), &["FOO=new", "FRUIT=pre", "APPTAINERENV_FOO"]);
    check(&main_image(), &with(&host).file("FOO=file1\n").file("FOO=file2\n"), &["FOO=file2"]);
    check(&main_image(), &with(&host).file("FOO=file\n").env(&["FOO=opt", "FRUIT=opt"]), &["FOO=opt", "FRUIT=opt"]);
    check(&main_image(), &with(&["FOO=host"]).env(&["FOO="]), &["FOO="]);
    check(&main_image(), &with(&["SIFUENV_FOO=own", "APPTAINERENV_FOO=app"]), &["FOO=own"]);
}

#[test]
fn values_are_expanded_inside_unless_told_not_to() {
    let host = [
        "APPTAINERENV_A=$FRUIT",
        "APPTAINERENV_B=$(echo sub)",
        "APPTAINERENV_C=\\$FRUIT",
        "APPTAINERENV_D='$FRUIT'",
        "APPTAINERENV_E=\"x y\"",
    ];
    check(&main_image(), &with(&host), &["A=apple", "B=sub", "C=$FRUIT", "D='apple'", "E=\"x y\""]);
    let literal = with(&host).ask(|r| r.no_eval = true);
    check(
        &main_image(),
        &literal,
        &["A=$FRUIT", "B=$(echo sub)", "C=\\$FRUIT", "APPTAINER_NO_EVAL=1", "SINGULARITY_NO_EVAL=1"],
    );
    check(&main_image(), &with(&[]).env(&["A=x y", "C=1;2", "D=it's"]), &["A=x y", "C=1;2", "D=it's"]);
}

#[test]
fn a_value_that_can_not_be_expanded_is_taken_literally_with_a_warning() {
    let case = with(&[]).env(&["A=one ` tick", "B=after"]);
    check(&plain(), &case, &["A=one ` tick", "B=after"]);
    let action = actions(&case.request, &plain(), &[]).expect("an action");
    let (_, notices) = environment(&case.request, &case.facts, &action, &plain()).expect("an environment");
    assert!(matches!(notices.as_slice(), [Notice::Literal { name, .. }] if name == "A"), "{notices:?}");
}

#[test]
fn search_paths_are_edited_last() {
    const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = |case: Case, image: &Image, expected: &str| check(image, &case, &[&format!("PATH={expected}")]);
    path(with(&["APPTAINERENV_PATH=/bin:/mine"]), &main_image(), "/bin:/mine");
    path(with(&[]).env(&["PATH=/first:$PATH"]), &plain(), &format!("/first:{DEFAULT}"));
    path(with(&[]).env(&["PATH=$PATH:/last"]), &intricate(), &format!("/opt/bin:{DEFAULT}:/last"));
    path(with(&[]).env(&["APPEND_PATH=/z"]), &plain(), &format!("{DEFAULT}:/z"));
    path(with(&["SINGULARITYENV_PREPEND_PATH=/first"]), &plain(), &format!("/first:{DEFAULT}"));
    path(with(&[]).file("PREPEND_PATH=/p\n"), &plain(), &format!("/p:{DEFAULT}"));
    path(with(&[]).file("PATH=\"\\$PATH:/q\"\n"), &plain(), &format!("{DEFAULT}:/q"));
    let mut host_commands = with(&["APPTAINERENV_PREPEND_PATH=/first"]);
    host_commands.facts.has_host_commands = true;
    path(host_commands, &intricate(), &format!("/.singularity.d/host-cmd:/first:/opt/bin:{DEFAULT}"));
    let case = with(&["APPTAINERENV_LD_LIBRARY_PATH=/mylib"]);
    check(&plain(), &case, &["LD_LIBRARY_PATH=/mylib:/.singularity.d/libs", "SING_USER_DEFINED_PATH"]);
}

#[test]
fn an_environment_file_is_read_as_a_shell_reads_it() {
    let content = "# a comment\nA=plain\n\nB=\"double quoted $A\"\nC='single  quoted'\nexport D=exported\nE=\nF=$HV/x\nG=${NO:-d}\n";
    check(
        &main_image(),
        &with(&["HV=hostval"]).file(content),
        &["A=plain", "B=double quoted plain", "C=single  quoted", "D=exported", "E=", "F=hostval/x", "G=d"],
    );
}

#[test]
fn an_environment_file_runs_no_programs() {
    let case = with(&[]).file("A=1\nQ=a date\n");
    let action = actions(&case.request, &plain(), &[]).expect("an action");
    let error = environment(&case.request, &case.facts, &action, &plain()).expect_err("an error");
    assert_eq!(error.to_string(), "cannot evaluate the environment file e: line 2: it runs `date`");
}

#[test]
fn home_can_not_be_set_from_outside() {
    let case = with(&["APPTAINERENV_HOME=/elsewhere"]);
    check(&main_image(), &case, &["HOME=/home/ada"]);
    let case = with(&[]).env(&["HOME=/elsewhere"]);
    check(&main_image(), &case, &["HOME=/home/ada"]);
    let (_, notices) = environment(&case.request, &case.facts, &Action::Nothing { information: "" }, &plain())
        .expect("an environment");
    assert_eq!(notices, [Notice::Fixed { name: "HOME".to_owned(), by: "--env".to_owned() }]);
}

#[test]
fn variables_of_the_runtime_have_both_spellings() {
    let mut case = with(&["APPTAINER_BIND=/host", "SINGULARITY_X=y", "SIFU_Y=z", "BASH_FUNC_f%%=() { :; }", "A.B=2"]);
    case.facts.binds = vec![b"/mnt/f".to_vec(), b"/opt/d".to_vec()];
    check(
        &main_image(),
        &case,
        &[
            "APPTAINER_BIND=/mnt/f,/opt/d",
            "SINGULARITY_BIND=/mnt/f,/opt/d",
            "APPTAINER_NAME=x.sif",
            "SINGULARITY_NAME=x.sif",
            "APPTAINER_CONTAINER=/images/x.sif",
            "SINGULARITY_CONTAINER=/images/x.sif",
            "APPTAINER_COMMAND=exec",
            "APPTAINER_ENVIRONMENT=/.singularity.d/env/91-environment.sh",
            "SINGULARITY_ENVIRONMENT=/.singularity.d/env/91-environment.sh",
            "SINGULARITY_X",
            "SIFU_Y",
            "BASH_FUNC_f%%",
            "A.B=2",
        ],
    );
}

#[test]
fn the_image_can_not_rename_itself() {
    let image = plain().file("/.singularity.d/env/90-environment.sh", "export APPTAINER_NAME=other\n");
    check(&image, &with(&[]), &["APPTAINER_NAME=x.sif"]);
}

#[test]
fn host_variables_can_be_left_out_by_name() {
    let case = with(&["FOO=bar", "KEEP=x", "TERM=t"]).ask(|r| r.no_env = vec![b"FOO".to_vec(), b"TERM".to_vec()]);
    check(&plain(), &case, &["FOO", "KEEP=x", "TERM=t"]);
}

#[test]
fn an_app_sets_its_variables_on_top() {
    check(&apps(), &with(&[]), &["FOOVAR", "SHARED=from-image", "SINGULARITY_APPNAME", "APPTAINER_APPNAME="]);
    check(
        &apps(),
        &with(&[]).ask(|r| r.app = Some(b"foo".to_vec())),
        &[
            "FOOVAR=foovalue",
            "SHARED=from-foo",
            "GLOBAL=global",
            "SINGULARITY_APPNAME=foo",
            "SCIF_APPS=/scif/apps",
            "PATH=/scif/apps/foo/bin:/scif/apps/foo:/scif/apps/singularity:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ],
    );
}

#[test]
fn a_missing_app_ends_the_start() {
    let case = with(&[]).ask(|r| r.app = Some(b"nothere".to_vec()));
    let output = Output { stdout: b"no such app: nothere\n".to_vec(), stderr: Vec::new() };
    assert_eq!(case.environment(&apps()), Environment::Ended { code: 1, output });
}

#[test]
fn an_oci_environment_yields_to_what_is_set_outside() {
    let script = "export PATH=\"/opt/oci/bin:/usr/bin:/bin\"\nexport FRUIT=\"${FRUIT:-\"oci apple\"}\"\nexport EMPTY=\"${EMPTY:-\"\"}\"\n";
    let image = plain().file("/.singularity.d/env/10-docker2singularity.sh", script);
    check(
        &image,
        &with(&["FRUIT=host"]),
        &[
            "FRUIT=oci apple",
            "EMPTY=",
            "PATH=/opt/oci/bin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin",
        ],
    );
    check(&image, &with(&["APPTAINERENV_FRUIT=pre"]), &["FRUIT=pre"]);
}

#[test]
fn images_without_scripts_get_the_defaults() {
    let image = Image::default().file("/bin/sh", "");
    check(
        &image,
        &with(&["PS1=mine"]).env(&["A=1"]),
        &["PS1=mine", "PROMPT_COMMAND=PS1=\"mine\"; unset PROMPT_COMMAND", "A=1", "LD_LIBRARY_PATH"],
    );
    let mut case = with(&[]);
    case.facts.libraries_bound = true;
    check(&image, &case, &["LD_LIBRARY_PATH=/.singularity.d/libs"]);
    case.facts.narrow_libraries_bound = true;
    check(&image, &case, &["LD_LIBRARY_PATH=/.singularity.d/libs:/.singularity.d/libs32"]);
    let old = Image::default().file("/environment", "export PATH=/old\nexport AGE=old\n");
    check(&old, &with(&[]), &["AGE=old", "PATH=/old:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
}

#[test]
fn a_script_that_runs_programs_is_left_to_a_shell_inside() {
    let image = plain().file("/.singularity.d/env/50-x.sh", "export FROMCAT=$(cat /data/x)\n");
    let case = with(&["SECRET=s3cret", "APPTAINERENV_TOKEN=t0ken"]);
    match case.environment(&image) {
        Environment::NeedsShell { reason, shell, driver, initial } => {
            assert_eq!(reason, "runs `cat`");
            assert_eq!(shell, ShellProgram::Image(ContainerPath::fixed("/bin/sh")));
            let driver = text(&driver);
            assert!(driver.contains("command . '/.singularity.d/env/50-x.sh'"), "{driver}");
            assert!(!driver.contains("s3cret") && !driver.contains("t0ken"), "secrets are in the command line");
            assert!(initial.contains(&pair("sifu_aside_SECRET=s3cret")));
            assert!(!initial.iter().any(|(name, _)| name == b"SECRET"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_question_about_a_mount_is_left_to_a_shell_inside() {
    for script in
        ["[ -d /proc/1 ] && export X=1\n", ". /home/ada/.profile\n", "X=$(test -w /bin/sh)\n", "export X=$$\n"]
    {
        let image = plain().file("/.singularity.d/env/50-x.sh", script);
        let environment = with(&[]).environment(&image);
        assert!(matches!(environment, Environment::NeedsShell { .. }), "{script}: {environment:?}");
    }
}

fn arguments(action: &Action) -> Vec<String> {
    match action {
        Action::Run { arguments, .. } => arguments.iter().map(|a| text(a)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_verb_has_its_program() {
    let act = |image: &Image, verb, change: fn(&mut LaunchRequest)| {
        let mut request = LaunchRequest::new(verb, "x.sif", vec!["a".into(), "b c".into()]);
        change(&mut request);
        actions(&request, image, &with(&[]).facts.covered).expect("an action")
    };
    let none = |_: &mut LaunchRequest| {};
    let image = plain();
    assert_eq!(arguments(&act(&image, Verb::Exec, none)), ["a", "b c"]);
    assert_eq!(arguments(&act(&image, Verb::Run, none)), ["/.singularity.d/runscript", "a", "b c"]);
    assert_eq!(arguments(&act(&image, Verb::Shell, none)), ["/bin/sh"]);
    assert!(matches!(act(&image, Verb::Test, none), Action::Nothing { .. }));
    let bash = plain().file("/bin/bash", "");
    assert_eq!(arguments(&act(&bash, Verb::Shell, none)), ["/bin/bash", "--norc"]);
    assert_eq!(arguments(&act(&bash, Verb::Shell, |r| r.shell = Some(b"/bin/none".to_vec()))), ["/bin/bash", "--norc"]);
    assert_eq!(arguments(&act(&bash, Verb::Shell, |r| r.shell = Some(b"/tmp/mysh".to_vec()))), ["/tmp/mysh"]);
    assert_eq!(
        arguments(&act(&apps(), Verb::Run, |r| r.app = Some(b"foo".to_vec()))),
        ["/scif/apps/foo/scif/runscript", "a", "b c"]
    );
    let missing = act(&apps(), Verb::Run, |r| r.app = Some(b"nothere".to_vec()));
    assert_eq!(missing, Action::Missing { problem: "no runscript for the app nothere".to_owned(), code: 1 });
    let bare = Image::default().file("/bin/sh", "");
    assert_eq!(arguments(&act(&bare, Verb::Run, none)), ["/bin/sh", "a", "b c"]);
    let nothing = Image::default().file("/tools/bb", "");
    assert!(matches!(act(&nothing, Verb::Run, none), Action::Missing { code: 255, .. }));
    assert!(matches!(act(&nothing, Verb::Shell, none), Action::Missing { code: 255, .. }));
}

#[test]
fn a_shell_sets_its_variable() {
    let case = with(&["SHELL=/usr/bin/zsh"]).ask(|r| r.verb = Verb::Shell);
    check(&main_image(), &case, &["SHELL=/bin/sh", "APPTAINER_COMMAND=shell"]);
    check(&main_image(), &with(&["SHELL=/usr/bin/zsh"]), &["SHELL=/usr/bin/zsh"]);
}

/// The runscript that OCI images get, in its effect.
const OCI_RUN: &str = r#"#!/bin/sh
OCI_ENTRYPOINT='"argv" "from entrypoint"'
OCI_CMD='"default cmd" "\$HOME"'
CMDLINE_ARGS=""
for arg in "$@"; do
    CMDLINE_ARGS="${CMDLINE_ARGS} \"$arg\""
done
if [ $# -gt 0 ]; then
    SINGULARITY_OCI_RUN="${OCI_ENTRYPOINT} ${CMDLINE_ARGS}"
else
    SINGULARITY_OCI_RUN="${OCI_ENTRYPOINT} ${OCI_CMD}"
fi
eval "set ${SINGULARITY_OCI_RUN}"
exec "$@"
"#;

#[test]
fn an_oci_runscript_is_seen_through() {
    let image = plain().file("/.singularity.d/runscript", OCI_RUN);
    let case = with(&[]);
    let variables = case.known(&image);
    let run = |given: &[&str]| {
        let arguments: Vec<Vec<u8>> =
            ["/.singularity.d/runscript"].iter().chain(given).map(|a| a.as_bytes().to_vec()).collect();
        oci_runscript(&arguments, &variables, &case.facts, &image)
            .map(|all| all.iter().map(|a| text(a)).collect::<Vec<_>>())
    };
    assert_eq!(run(&[]).expect("known"), ["argv", "from entrypoint", "default cmd", "$HOME"]);
    assert_eq!(run(&["two words", "$HOME"]).expect("known"), ["argv", "from entrypoint", "two words", "/home/ada"]);
    assert_eq!(run(&["$(date)"]), None);
}

/// The driver for a case, and the variables it starts with.
fn driver(case: &Case, image: &Image, shell: &ShellProgram) -> (String, Vec<Pair>) {
    let mut notices = Vec::new();
    let injections = injections(&case.request, &case.facts, &mut notices).expect("injections");
    let start = Start::new(&case.request, &case.facts, &injections);
    let steps = steps(image).expect("steps");
    let evaluation =
        Evaluation { facts: &case.facts, start: &start, injections: &injections, steps: &steps, shell_variable: None };
    (text(&evaluation.driver(shell)), evaluation.initial())
}

/// A temporary directory that holds an image's files, removed at the end.
struct Unpacked(std::path::PathBuf);

impl Unpacked {
    fn new(name: &str, image: &Image) -> Self {
        let root = std::env::temp_dir().join(format!("sifu-environment-{name}-{}", std::process::id()));
        for (path, (_, content)) in &image.0 {
            let path = root.join(text(path).trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, content).expect("a file");
        }
        Self(root)
    }

    /// A driver whose paths lead here.
    fn localized(&self, driver: &str) -> String {
        driver.replace("'/.singularity.d/env/", &format!("'{}/.singularity.d/env/", self.0.display()))
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // What is left behind in a temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a driver in one of this machine's shells.
fn in_shell(program: &[&str], driver: &str, initial: &[Pair], command: &[&str]) -> Option<std::process::Output> {
    use std::os::unix::ffi::OsStrExt;
    let word = |bytes: &'_ [u8]| std::ffi::OsStr::from_bytes(bytes).to_owned();
    let output = std::process::Command::new(program[0])
        .args(&program[1..])
        .args(["-c", driver, "sh"])
        .args(command)
        .env_clear()
        .envs(initial.iter().map(|(name, value)| (word(name), word(value))))
        .current_dir("/")
        .output();
    if output.is_err() {
        eprintln!("skipped: needs {}", program[0]);
    }
    output.ok()
}

const SHELLS: [&[&str]; 3] = [&["/bin/dash"], &["/bin/bash"], &["/bin/busybox", "sh"]];

#[test]
fn the_driver_gives_what_the_evaluation_gives() {
    let host =
        ["FOO=a 'b' \"c\" $x `y`\nz", "EMPTY=", "FRUIT=host", "APPTAINERENV_A=$FRUIT\\$x\"q\"", "GONE=x", "TERM=t"];
    let cases = [
        with(&host).env(&["PREPEND_PATH=/p", "APPEND_PATH=/q", "B=`echo sub`", "LD_LIBRARY_PATH=/l"]),
        with(&host).env(&["PATH=$PATH:/z"]).ask(|r| r.no_eval = true),
        with(&host).file("X='y z'\n").ask(|r| r.cleanenv = true),
    ];
    let image = intricate().file("/.singularity.d/env/92-gone.sh", "export GONE=\nexport APPTAINER_NAME=x\n");
    let root = Unpacked::new("equal", &image);
    for (at, mut case) in cases.into_iter().enumerate() {
        case.facts.directory = b"/".to_vec();
        case.facts.covered.clear();
        let known = case.known(&image);
        let program = ShellProgram::Image(ContainerPath::fixed("/bin/sh"));
        let (script, initial) = driver(&case, &image, &program);
        for shell in SHELLS {
            let Some(output) = in_shell(shell, &root.localized(&script), &initial, &["/usr/bin/env", "-0"]) else {
                continue;
            };
            assert_eq!(text(&output.stderr), "", "{shell:?} {at}");
            let mut theirs: Vec<Pair> = output
                .stdout
                .split(|&b| b == 0)
                .filter(|line| !line.is_empty())
                .map(|line| pair(&text(line)))
                .filter(|(name, _)| !["_", "SHLVL", "OLDPWD"].contains(&text(name).as_str()))
                .collect();
            theirs.sort();
            let shown =
                |pairs: &[Pair]| pairs.iter().map(|(n, v)| format!("{}={}", text(n), text(v))).collect::<Vec<_>>();
            assert_eq!(shown(&theirs), shown(&known), "{shell:?} {at}");
        }
    }
}

#[test]
fn the_driver_ends_with_255_where_the_program_can_not_start() {
    let image = plain();
    let root = Unpacked::new("failure", &image);
    let broken = root.0.join("broken");
    std::fs::write(&broken, "#!/no/such/interpreter\n").expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&broken, mode).expect("a mode");
    let broken = broken.display().to_string();
    let (script, initial) = driver(&with(&[]), &image, &ShellProgram::Image(ContainerPath::fixed("/bin/sh")));
    for shell in SHELLS {
        for (command, code, message) in [
            ("no-such-command", 255, "not found"),
            ("/no/such/command", 255, "no such file"),
            ("/etc", 255, "directory"),
            ("/etc/passwd", 255, "permission denied"),
            (&broken, 255, "not found|bad interpreter|cannot execute|no such file"),
            ("true", 0, ""),
            ("false", 1, ""),
        ] {
            let Some(output) = in_shell(shell, &root.localized(&script), &initial, &[command]) else { continue };
            assert_eq!(output.status.code(), Some(code), "{shell:?} {command}: {}", text(&output.stderr));
            let said = text(&output.stderr).to_lowercase();
            assert!(message.split('|').any(|m| said.contains(m)), "{shell:?} {command}: {said}");
        }
    }
}

#[test]
fn the_embedded_shell_runs_the_driver() {
    let image = intricate()
        .file("/.singularity.d/env/50-x.sh", "export PATH=/usr/bin:/bin\nexport PIPED=$(seq 3 | tr -d '\\n')\n");
    let root = Unpacked::new("embedded", &image);
    let (script, initial) = driver(&with(&["FOO=a b"]).env(&["A=$PIPED"]), &image, &ShellProgram::Embedded);
    let script =
        root.localized(&script).replace("exec \"$@\"", "echo \"$A $PIPED $FOO $ORDER $APPTAINER_NAME\"; exit 3");
    let variables: String =
        initial.iter().map(|(name, value)| format!("export {}={}\n", text(name), text(&single_quote(value)))).collect();
    let (printed, code) = crate::shell::process::tests::run_process(&format!("{variables}{script}"));
    assert_eq!((printed.as_str(), code), ("123 123 a b 20-90-post-95 x.sif\n", 3));
}
