//! `sifu build IMAGE SOURCE`: makes an image from a definition file, a directory, or another image.

use super::flags::Pair;
use super::progress::Meter;
use crate::build::plan::{self, Choice};
use crate::build::sections::RunOptions;
use crate::build::{self, BuildError, DefinitionOptions, Form, Note, Request, mksquashfs_args, processors};
use crate::cache::Cache;
use crate::def::BuildArgs;
use crate::env_names::SOURCE_DATE_EPOCH;
use crate::remote::access::Access;
use crate::report::{self, Failure, failure};
use crate::sif::Arch;
use crate::squashfs::write::{BLOCK_BYTES, Compression, PackOptions};
use crate::tree::Kind;
use nix::sys::signal::{SigSet, Signal};
use starter::paths::HostPath;
use std::ffi::OsStr;
use std::io::{BufRead, IsTerminal, Write};
use std::num::NonZeroUsize;

/// What the flags ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Make a directory instead of a SIF file.
    pub sandbox: bool,
    /// Replace what is there, without a question.
    pub force: bool,
    /// How many threads may compress; all processors of the process if it is not said.
    pub jobs: Option<NonZeroUsize>,
    pub mksquashfs_args: Option<String>,
    /// Run the sections over the directory that is there.
    pub update: bool,
    /// Don't run `%test`.
    pub notest: bool,
    /// Names of sections; all of them where none is said.
    pub sections: Vec<Vec<u8>>,
    pub build_args: Vec<Pair>,
    pub build_arg_files: Vec<Vec<u8>>,
    pub warn_unused_build_args: bool,
    pub architecture: Option<Arch>,
    pub fix_perms: bool,
    pub data: bool,
    pub no_cleanup: bool,
    /// The definition is JSON.
    pub json: bool,
    pub tmpdir: Option<Vec<u8>>,
    pub run: RunOptions,
}

/// Builds `image` from `source`, and says what is being done.
pub fn run(
    options: &BuildOptions,
    access: Access,
    cache: Option<Cache>,
    image: &OsStr,
    source: &OsStr,
) -> Result<(), Failure> {
    let target = HostPath::new(image);
    let asked = match &options.mksquashfs_args {
        Some(text) => mksquashfs_args::parse(text).map_err(|e| failure(&e))?,
        None => mksquashfs_args::Asked::default(),
    };
    let epoch = std::env::var_os(SOURCE_DATE_EPOCH);
    let time = epoch.map(|epoch| parse_epoch(&epoch.to_string_lossy())).transpose()?;
    let form = if options.sandbox { Form::Sandbox } else { Form::Sif };
    let replace = match build::existing(&target).map_err(|e| failure(&e))? {
        None => options.force,
        // An update replaces nothing.
        Some(_) if options.force || options.update => true,
        Some(kind) => may_replace(&target, kind)?,
    };
    let pack = PackOptions {
        compression: asked.compression.unwrap_or(Compression::ZSTD),
        block_bytes: asked.block_bytes.unwrap_or(BLOCK_BYTES),
        threads: processors::usable(&processors::observe(), options.jobs.or(asked.threads)),
        time: time.unwrap_or(0),
    };
    if form == Form::Sif {
        let threads = pack.threads.get();
        report::verbose(format_args!("compressing with {threads} thread{}", if threads == 1 { "" } else { "s" }));
    }
    let mut definition = definition_options(options)?;
    definition.run.root.all_root |= asked.all_root;
    let request = Request {
        target,
        source: source.to_owned(),
        form,
        replace,
        pack,
        time,
        definition,
        architecture: options.architecture,
        is_data: options.data,
        access,
        cache,
    };
    outlive_the_file_size_limit();
    report::info("Starting build...");
    let mut meter = Meter::on_stderr();
    let mut say = |note: Note| match note {
        Note::Doing(text) => meter.aside(|| report::info(text)),
        Note::Warning(text) => meter.aside(|| report::warning(text)),
        Note::Transfers(transfers) => meter.note(transfers),
        Note::Progress(progress) => meter.show(progress),
    };
    let built = build::build(&request, &mut say);
    meter.clear();
    built.map_err(|e| failure(&e))?;
    report::info(format_args!("Build complete: {}", request.target));
    Ok(())
}

/// Lets a write beyond the limit of file sizes (`ulimit -f`) fail, so that it can be told and cleaned up after: the signal
/// that comes with it would end this process.
pub fn outlive_the_file_size_limit() {
    // Before any thread is started: those inherit it.
    let _ = SigSet::from_iter([Signal::SIGXFSZ]).thread_block();
}

/// Undoes [`outlive_the_file_size_limit`] for a section's programs, which expect the signal.
pub fn die_of_the_file_size_limit() {
    let _ = SigSet::from_iter([Signal::SIGXFSZ]).thread_unblock();
}

/// What the flags say about definition files.
fn definition_options(options: &BuildOptions) -> Result<DefinitionOptions, Failure> {
    let mut arguments = BuildArgs::default();
    for file in &options.build_arg_files {
        let path = HostPath::from_bytes(file);
        let read = std::fs::read(path.as_path());
        let text = read.map_err(|error| Failure::new(format!("cannot read {path}: {}", report::cause(&error))))?;
        arguments.add_file(&text).map_err(|error| {
            let problem = failure(&error);
            Failure { message: format!("{path}:{}", problem.message), ..problem }
        })?;
    }
    for (name, value) in &options.build_args {
        arguments.add(&String::from_utf8_lossy(name), value);
    }
    let words: Vec<String> = options.sections.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let sections = if words.is_empty() { Choice::default() } else { choice(&words)? };
    Ok(DefinitionOptions {
        arguments,
        allows_unused: options.warn_unused_build_args,
        plan: plan::Options {
            sections,
            skips_tests: options.notest,
            updates: options.update,
            makes_directory: options.sandbox,
        },
        replaces: options.force,
        fixes_permissions: options.fix_perms,
        run: options.run.clone(),
        tmpdir: options.tmpdir.as_deref().map(HostPath::from_bytes),
        keeps_files: options.no_cleanup,
        is_json: options.json,
    })
}

fn choice(words: &[String]) -> Result<Choice, Failure> {
    Choice::parse(words).map_err(|word| {
        Failure::new(format!("no section that can be chosen is called `{word}`"))
            .hint("Choose among setup, files, post, environment, labels and test; all and none are names, too.")
    })
}

/// Asks on a terminal; elsewhere the answer is no.
fn may_replace(target: &HostPath, kind: Kind) -> Result<bool, Failure> {
    let refused = || failure(&BuildError::Exists { path: target.clone() });
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return Err(refused());
    }
    let what = if kind == Kind::Directory { "directory with everything in it" } else { "file" };
    let name = report::printable(&target.to_string());
    let question = format!("Build target {name} exists: replace the {what}? [y/N] ");
    let asked = stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush());
    let mut answer = String::new();
    asked.and_then(|()| stdin.lock().read_line(&mut answer)).map_err(|_| refused())?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(true) } else { Err(refused()) }
}

fn parse_epoch(text: &str) -> Result<i64, Failure> {
    let seconds = text.parse::<i64>().ok().filter(|&seconds| seconds >= 0);
    seconds.ok_or_else(|| Failure::new(format!("{SOURCE_DATE_EPOCH} is `{text}`, which is no number of seconds")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_of_seconds_since_1970() {
        assert_eq!(parse_epoch("1700000000").ok(), Some(1_700_000_000));
        for text in ["", "-1", "yesterday", "1e9"] {
            let error = parse_epoch(text).unwrap_err();
            assert_eq!(error.message, format!("SOURCE_DATE_EPOCH is `{text}`, which is no number of seconds"));
        }
    }
}
