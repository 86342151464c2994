//! `sifu search`, `sifu delete`, and `sifu push` where it goes to a library.

use super::elsewhere::{ElsewhereOptions, access};
use super::print;
use super::push::{digest_of_file, watching};
use crate::build::source::docker::check_sif;
use crate::remote::RemoteError;
use crate::remote::library::FoundImage;
use crate::remote::library::push::Upload;
use crate::remote::library::reference::LibraryReference;
use crate::report::{self, Failure, failure};
use crate::sif::{Arch, DataType, Reader};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// The fewest characters that are searched for: libraries refuse fewer.
const MIN_SEARCH_CHARACTERS: usize = 3;

/// What the flags of these verbs ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibraryOptions {
    pub architecture: Option<Arch>,
    pub signed: bool,
    pub force: bool,
    pub allow_unsigned: bool,
    pub description: Option<String>,
    /// In which a deletion has to be done.
    pub timeout_seconds: Option<u64>,
}

impl LibraryOptions {
    fn architecture(&self) -> &'static str {
        self.architecture.unwrap_or_else(Arch::host).name()
    }
}

fn said(error: &RemoteError) -> Failure {
    failure(error)
}

/// Prints the images of a library whose names hold a word.
pub fn search(options: &LibraryOptions, elsewhere: &ElsewhereOptions, word: &OsStr) -> Result<ExitCode, Failure> {
    let word = word.to_string_lossy();
    if word.chars().count() < MIN_SEARCH_CHARACTERS {
        return Err(Failure::new(format!("`{word}` is too short to search for: three characters are needed")));
    }
    let library = access(elsewhere)?.library(None).map_err(|error| said(&error))?;
    let found = library.search(&word, options.architecture(), options.signed).map_err(|error| said(&error))?;
    print(&report::printable(&answer(&word, options.architecture(), &found)))
}

fn answer(word: &str, architecture: &str, found: &[FoundImage]) -> String {
    if found.is_empty() {
        return format!("No container images found for {architecture} matching {word:?}.\n\n");
    }
    let mut images: Vec<String> = found.iter().map(one_found).collect();
    images.sort();
    let count = images.len();
    format!("Found {count} container images for {architecture} matching {word:?}:\n\n{}\n\n", images.join("\n\n"))
}

fn one_found(image: &FoundImage) -> String {
    let FoundImage { entity_name, collection_name, container_name, hash, tags, description, fingerprints } = image;
    let tags = if tags.is_empty() { hash.clone() } else { tags.join(",") };
    let mut text = format!("\tlibrary://{entity_name}/{collection_name}/{container_name}:{tags}");
    if !description.is_empty() && !description.eq_ignore_ascii_case("no description") {
        text += &format!("\n\t\t{description}");
    }
    if !fingerprints.is_empty() {
        text += &format!("\n\t\tSigned by: {}", fingerprints.join(","));
    }
    text
}

/// Deletes an image of a library, for one architecture; asks before it does.
pub fn delete(options: &LibraryOptions, elsewhere: &ElsewhereOptions, uri: &OsStr) -> Result<ExitCode, Failure> {
    let uri = uri.to_string_lossy();
    let is_of_library = uri.starts_with("library:") || !uri.contains("://");
    if !is_of_library {
        return Err(Failure::new(format!("`{uri}` is no image of a library: only those can be deleted")));
    }
    let parsed = uri.parse::<LibraryReference>().and_then(LibraryReference::with_one_tag);
    let reference = parsed.map_err(|error| failure(&error))?;
    let architecture = options.architecture();
    if !options.force && !agreed(&format!("Delete {reference} for {architecture}? [y/N] "))? {
        report::info("Nothing was deleted");
        return Ok(ExitCode::SUCCESS);
    }
    let mut access = access(elsewhere)?;
    // From here on: nobody knows how long an answer to the question takes.
    access.patience.end =
        options.timeout_seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let library = access.library(reference.host.as_deref()).map_err(|error| said(&error))?;
    library.delete(&reference, architecture).map_err(|error| said(&error))?;
    report::info(format_args!("Deleted {reference} for {architecture}"));
    Ok(ExitCode::SUCCESS)
}

fn agreed(question: &str) -> Result<bool, Failure> {
    let failed = |error: io::Error| Failure::new(format!("cannot ask: {}", report::cause(&error)));
    let mut stderr = io::stderr().lock();
    stderr.write_all(report::printable(question).as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Stores the image at `path` in a library.
pub fn push(options: &LibraryOptions, elsewhere: &ElsewhereOptions, path: &Path, place: &str) -> Result<(), Failure> {
    let reference: LibraryReference = place.parse().map_err(|error| failure(&error))?;
    reference.whole_path().map_err(|error| failure(&error))?;
    let cannot_read =
        |error: io::Error| Failure::new(format!("cannot read {}: {}", path.display(), report::cause(&error)));
    let mut file = File::open(path).map_err(cannot_read)?;
    check_sif(&file, path).map_err(|_| Failure::new(format!("{} is no SIF file", path.display())))?;
    let architecture = look_at(options, path, &file)?;
    let (digest, size_bytes) = digest_of_file(&mut file).map_err(cannot_read)?;
    let library = access(elsewhere)?.library(reference.host.as_deref()).map_err(|error| said(&error))?;
    let open = |offset: u64| -> io::Result<Box<dyn Read + Send + Sync>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Box::new(file))
    };
    let description = options.description.as_deref().unwrap_or("No description");
    let sent_bytes = Arc::new(AtomicU64::new(0));
    let stored = watching(size_bytes, &sent_bytes, || {
        let sent_bytes = sent_bytes.clone();
        let upload =
            Upload { architecture: architecture.name(), description, digest, size_bytes, open: &open, sent_bytes };
        library.push(&reference, &upload)
    })?;
    if let Some((used, most)) = stored.quota {
        let most = if most == 0 { "without a limit".to_owned() } else { format!("of {}", mebibytes(most)) };
        report::info(format_args!("The library holds {} of yours, {most}", mebibytes(used)));
    }
    let what = if stored.was_there { "The library had the file already: tagged" } else { "Pushed" };
    report::info(format_args!("{what} {} as {reference} for {}", path.display(), architecture.name()));
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The architecture of an image that is to be stored, if it may be.
fn look_at(options: &LibraryOptions, path: &Path, file: &File) -> Result<Arch, Failure> {
    let file = file.try_clone().map_err(|error| Failure::new(report::cause(&error)))?;
    let opened = Reader::open(file).map_err(|error| Failure::new(format!("cannot use {}: {error}", path.display())))?;
    let is_signed = opened.of_type(DataType::Signature).next().is_some();
    match (options.allow_unsigned, is_signed) {
        (true, _) => {}
        (false, true) => report::warning("the image's signatures are not checked: this version can't"),
        (false, false) => {
            return Err(Failure::new(format!("{} is not signed", path.display()))
                .hint("--allow-unsigned stores it as it is. This version can't sign images."));
        }
    }
    let partition = opened.primary_partition().ok().flatten().and_then(|object| object.descriptor.partition());
    let architecture = partition.map_or(opened.header().arch, |partition| partition.arch);
    match architecture {
        Arch::Unknown | Arch::Other(_) => {
            Err(Failure::new(format!("{} does not say which machine it is for", path.display()))
                .hint("A library keeps images by their machine; build it anew with --arch."))
        }
        known => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_told_as_apptainer_does() {
        let image = FoundImage {
            hash: "sha256.1".to_owned(),
            entity_name: "ada".to_owned(),
            collection_name: "tools".to_owned(),
            container_name: "box".to_owned(),
            ..FoundImage::default()
        };
        let tagged = FoundImage {
            tags: vec!["1".to_owned(), "latest".to_owned()],
            description: "A box".to_owned(),
            fingerprints: vec!["ABCD".to_owned()],
            ..image.clone()
        };
        assert_eq!(
            answer("box", "amd64", &[image, tagged]),
            "Found 2 container images for amd64 matching \"box\":\n\n\
             \tlibrary://ada/tools/box:1,latest\n\t\tA box\n\t\tSigned by: ABCD\n\n\
             \tlibrary://ada/tools/box:sha256.1\n\n"
        );
        assert_eq!(answer("box", "arm64", &[]), "No container images found for arm64 matching \"box\".\n\n");
    }
}
