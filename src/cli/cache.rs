//! `sifu cache list|clean`: what the cache holds, and away with it.

use super::elsewhere::cache;
use super::print;
use crate::cache::{Entry, Kind};
use crate::report::{self, Failure, failure};
use crate::sif::Time;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// What the flags ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// Names of kinds; all where none is said.
    pub kinds: Vec<Vec<u8>>,
    pub verbose: bool,
    pub days: Option<u64>,
    pub dry_run: bool,
    pub force: bool,
}

/// Kinds of Apptainer's cache that there is nothing of here.
const NEVER_KEPT: [&str; 4] = ["blob", "blobs", "shub", "ipfs"];

fn kinds(options: &CacheOptions) -> Result<Vec<Kind>, Failure> {
    let mut kinds = Vec::new();
    for name in &options.kinds {
        let name = String::from_utf8_lossy(name);
        match name.as_ref() {
            "all" => kinds.extend(Kind::ALL),
            "oci" => kinds.push(Kind::Oci),
            name if NEVER_KEPT.contains(&name) => {}
            name => {
                let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
                let unknown = || Failure::new(format!("nothing in the cache is of the type `{name}`"));
                kinds.push(kind.ok_or_else(unknown)?);
            }
        }
    }
    Ok(if options.kinds.is_empty() { Kind::ALL.to_vec() } else { kinds })
}

fn entries(options: &CacheOptions) -> Result<Vec<Entry>, Failure> {
    let kinds = kinds(options)?;
    let mut entries = cache()?.list().map_err(|error| failure(&error))?;
    entries.retain(|entry| kinds.contains(&entry.kind));
    Ok(entries)
}

/// Prints how much there is, and with `--verbose` each image.
pub fn list(options: &CacheOptions) -> Result<ExitCode, Failure> {
    let entries = entries(options)?;
    let mut text = String::new();
    if options.verbose {
        text += &format!("{:<24} {:<22} {:<16} TYPE\n", "NAME", "DATE CREATED", "SIZE");
        for entry in &entries {
            let seconds = entry.created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            let created = Time(i64::try_from(seconds).unwrap_or(0)).to_string();
            let created = created.trim_end_matches(" +0000 UTC");
            let name: String = entry.name.chars().take(22).collect();
            text += &format!("{name:<24} {created:<22} {:<16} {}\n", size(entry.size_bytes), entry.kind.name());
        }
        text.push('\n');
    }
    let total = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size_bytes));
    text += &format!(
        "There are {} container file(s) using {} and 0 oci blob file(s) using {} of space\nTotal space used: {}\n",
        entries.len(),
        size(total),
        size(0),
        size(total)
    );
    print(&text)
}

/// Removes images; asks before it does.
pub fn clean(options: &CacheOptions) -> Result<ExitCode, Failure> {
    let mut entries = entries(options)?;
    if let Some(days) = options.days {
        let age = Duration::from_secs(days.saturating_mul(86_400));
        let now = SystemTime::now();
        entries.retain(|entry| now.duration_since(entry.used).unwrap_or_default() >= age);
    }
    if options.dry_run {
        let line = |entry: &Entry| format!("Would remove {} ({})\n", entry.name, size(entry.size_bytes));
        return print(&entries.iter().map(line).collect::<String>());
    }
    if !options.force && !entries.is_empty() && !agreed(entries.len())? {
        report::info("Nothing was removed");
        return Ok(ExitCode::SUCCESS);
    }
    let cache = cache()?;
    for entry in &entries {
        cache.delete(entry).map_err(|error| failure(&error))?;
        report::info(format_args!("Removed {} ({})", entry.name, size(entry.size_bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

fn agreed(count: usize) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("cannot ask: {}", report::cause(&error)));
    let mut stderr = std::io::stderr().lock();
    let question = format!("Remove {count} image(s) from the cache? [y/N] ");
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A size as Apptainer writes it.
fn size(bytes: u64) -> String {
    let (unit, name) = [(1_u64 << 30, "GiB"), (1 << 20, "MiB")]
        .into_iter()
        .find(|(unit, _)| bytes >= *unit)
        .unwrap_or((1 << 10, "KiB"));
    format!("{:.2} {name}", bytes as f64 / unit as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits_behind_the_point() {
        assert_eq!(
            [size(0), size(1536), size(5 << 20), size(3 << 30)],
            ["0.00 KiB", "1.50 KiB", "5.00 MiB", "3.00 GiB"]
        );
    }

    #[test]
    fn types_that_nothing_is_kept_of_are_known() {
        let options = |kind: &str| CacheOptions { kinds: vec![kind.as_bytes().to_vec()], ..CacheOptions::default() };
        assert_eq!(kinds(&options("blob")).unwrap(), []);
        assert_eq!(kinds(&options("oci-tmp")).unwrap(), [Kind::Oci]);
        assert_eq!(kinds(&CacheOptions::default()).unwrap(), Kind::ALL);
        assert!(kinds(&options("nonsense")).is_err());
    }
}
