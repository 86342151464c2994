//! The verbs `sif header|list|info|dump|new|add|del|setprim`: an image and its parts, seen and changed one at a time.
//!
//! Every failure of these verbs has exit code 1, as scripts for Apptainer expect it.

use crate::report::{self, EXIT_USAGE, Failure, Hint};
use crate::sif::descriptor::EXTRA_SIZE;
use crate::sif::{
    Arch, Creation, CreationOptions, DEFAULT_CAPACITY, DataType, Deletion, FileSystem, HashType, ImageId, Link,
    NewObject, ObjectError, Partition, PartitionKind, Reader, SbomFormat, Signature, Stamp, Time, Writer, make_empty,
    text,
};
use nix::fcntl::OFlag;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

/// Warnings about the objects of one image, at most.
const MAX_WARNINGS: usize = 8;

/// Prints the global header of an image.
///
/// # Errors
/// The file can't be opened as an image, or `out` failed.
pub fn header(path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let image = open(path)?;
    print(out, &text::header(image.header(), image.descriptors_free()))
}

/// Prints the table of an image's objects. Damaged ones are listed too, with a warning.
///
/// # Errors
/// As [`header`].
pub fn list(path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let image = open(path)?;
    let problems = || image.objects().iter().filter_map(|object| Some((object.id(), object.problem?)));
    for (id, problem) in problems().take(MAX_WARNINGS) {
        report::warning(format_args!("object {id} of {} can't be used: {problem}", path.display()));
    }
    let more = problems().count().saturating_sub(MAX_WARNINGS);
    if more > 0 {
        report::warning(format_args!("{more} more objects of {} can't be used", path.display()));
    }
    print(out, &text::list(image.objects()))
}

/// Prints what is known of the object `id`.
///
/// # Errors
/// As [`header`]; also when there is no such object.
pub fn info(id: u32, path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let image = open(path)?;
    let object = image.by_id(id).map_err(|error| failed("show an object of", path, &error))?;
    print(out, &text::info(&object.descriptor))
}

/// Writes the data of the object `id` to `out`, exactly.
///
/// # Errors
/// As [`info`]; also when the object is damaged.
pub fn dump(id: u32, path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let image = open(path)?;
    let copied = image.by_id(id).and_then(|object| image.copy(object, out));
    copied.map_err(|error| failed("dump an object of", path, &error))?;
    out.flush().map_err(|source| failed("dump an object of", path, &ObjectError::Write { id, source }))
}

/// Makes an empty image with 48 descriptors; what was at `path` is overwritten, at one moment.
///
/// # Errors
/// The file can't be written.
pub fn new(path: &Path) -> Result<(), Failure> {
    let doing = "create";
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o755)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|error| plain(doing, path, &error))?;
    let file = lock(regular(file, doing, path)?, doing, path)?;
    let options = CreationOptions {
        launch_line: Vec::new(),
        id: random_id().map_err(|error| plain("find a random identity for", path, &error))?,
        time: now(),
        capacity: DEFAULT_CAPACITY,
    };
    let is_new = file.metadata().map_err(|error| plain(doing, path, &error))?.len() == 0;
    let created = match is_new {
        true => Creation::begin(file, &options).and_then(Creation::finish).map(drop),
        false => make_empty(file, &options),
    };
    created.map_err(|error| failed(doing, path, &error))
}

/// What `sif add` was told of the new object. Numbers are those of the command line, not yet checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddOptions {
    /// 1 (definition file) to 11 (OCI blob).
    pub datatype: Option<i64>,
    pub parttype: Option<i64>,
    pub partfs: Option<i64>,
    pub partarch: Option<i64>,
    pub signhash: Option<i64>,
    /// 40 hex digits.
    pub signentity: Option<String>,
    pub sbomformat: Option<String>,
    /// 0 for no group.
    pub groupid: u32,
    /// Id of an object, 0 for none.
    pub link: u32,
    /// In bytes; 4096 for partitions and none for others unless given. Negative ones are none.
    pub alignment: Option<i64>,
    pub filename: Option<Vec<u8>>,
}

impl AddOptions {
    /// The object that these options describe.
    ///
    /// # Errors
    /// What is missing or has no meaning.
    pub fn object(&self) -> Result<NewObject, Failure> {
        let mistake = |message: String| Failure::usage(message);
        let Some(data_type) = self.datatype.and_then(DataType::from_number) else {
            return Err(mistake("`--datatype` is required, with a number from 1 to 11".into()));
        };
        let extra = match data_type {
            DataType::Partition => self.partition()?.to_extra(),
            DataType::Signature => self.signature()?.to_extra(),
            DataType::Sbom => {
                let name = self.sbomformat.as_deref();
                let name = name.ok_or_else(|| mistake("with an SBOM, `--sbomformat` must be given".into()))?;
                let format = SbomFormat::from_name(name);
                format.ok_or_else(|| mistake(format!("invalid SBOM format: `{name}`")))?.to_extra()
            }
            _ => [0; EXTRA_SIZE],
        };
        let default = NewObject::new(data_type);
        Ok(NewObject {
            name: self.filename.clone().unwrap_or_default(),
            group: Some(self.groupid).filter(|&group| group != 0),
            link: if self.link == 0 { Link::None } else { Link::Object(self.link) },
            alignment: self.alignment.map_or(default.alignment, |bytes| u64::try_from(bytes).unwrap_or(0)),
            extra,
            ..default
        })
    }

    fn partition(&self) -> Result<Partition, Failure> {
        let given = |number: Option<i64>| number.filter(|&number| number != 0);
        let (Some(fs), Some(kind), Some(arch)) = (given(self.partfs), given(self.parttype), given(self.partarch))
        else {
            return Err(Failure::usage("with a partition, `--partfs`, `--parttype` and `--partarch` must be given"));
        };
        // File system and kind are not checked, so that what a newer program knows can be added.
        let code = |flag: &str, number: i64| {
            i32::try_from(number).map_err(|_| Failure::usage(format!("invalid value of `{flag}`: {number}")))
        };
        Ok(Partition {
            fs: FileSystem::from_code(code("--partfs", fs)?),
            kind: PartitionKind::from_code(code("--parttype", kind)?),
            arch: Arch::from_number(arch).ok_or_else(|| Failure::usage(format!("unknown architecture: {arch}")))?,
        })
    }

    fn signature(&self) -> Result<Signature, Failure> {
        let number = self.signhash.unwrap_or(0);
        let hash = i32::try_from(number).map_or(HashType::Other(0), HashType::from_code);
        if matches!(hash, HashType::Other(_)) {
            return Err(Failure::usage(format!("invalid hash type: {number}")).hint("`--signhash` takes 1 to 5."));
        }
        let entity = self.signentity.as_deref().unwrap_or_default();
        let fingerprint = fingerprint(entity).ok_or_else(|| {
            Failure::usage(format!("invalid signing entity fingerprint `{entity}`, expected 40 hex digits"))
        })?;
        Ok(Signature { hash, fingerprint })
    }

    /// The flags that were given and say nothing of this type of object.
    fn superfluous(&self, data_type: DataType) -> Vec<&'static str> {
        let flags = [
            (self.partfs.is_some(), DataType::Partition, "--partfs"),
            (self.parttype.is_some(), DataType::Partition, "--parttype"),
            (self.partarch.is_some(), DataType::Partition, "--partarch"),
            (self.signhash.is_some(), DataType::Signature, "--signhash"),
            (self.signentity.is_some(), DataType::Signature, "--signentity"),
            (self.sbomformat.is_some(), DataType::Sbom, "--sbomformat"),
        ];
        flags.iter().filter(|(given, of, _)| *given && *of != data_type).map(|(_, _, flag)| *flag).collect()
    }
}

fn fingerprint(hex: &str) -> Option<[u8; 20]> {
    let mut bytes = [0; 20];
    if hex.len() != 2 * bytes.len() || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Adds the content of the file `data` to the image.
///
/// # Errors
/// The options say nothing sensible, a file can't be used, or the image can't take the object.
pub fn add(path: &Path, data: &Path, options: &AddOptions) -> Result<(), Failure> {
    let object = options.object()?;
    for flag in options.superfluous(object.data_type) {
        report::warning(format_args!("`{flag}` says nothing of a data object of this type"));
    }
    let source = File::open(data).map_err(|error| plain("open", data, &error))?;
    let image = open_to_change(path, "add to")?;
    if is_same_file(&image, &source).map_err(|error| plain("open", data, &error))? {
        return Err(failed("add to", path, &SelfAdded));
    }
    let mut writer = Writer::open(image).map_err(|error| failed("add to", path, &error))?;
    let added = writer.add(&object, source, Stamp::Now(now()));
    added.map(drop).map_err(|error| failed("add to", path, &error))
}

/// Deletes the object `id`. Its data stay in the file until others are written over them, as with Apptainer.
///
/// # Errors
/// There is no such object, or the file can't be changed.
pub fn del(id: u32, path: &Path) -> Result<(), Failure> {
    let doing = "delete an object of";
    let mut writer = Writer::open(open_to_change(path, doing)?).map_err(|error| failed(doing, path, &error))?;
    writer.delete(&[id], Deletion::default(), Stamp::Now(now())).map_err(|error| failed(doing, path, &error))
}

/// Makes the System partition `id` the root file system of the image.
///
/// # Errors
/// There is no such object, it is no System partition, or the file can't be changed.
pub fn setprim(id: u32, path: &Path) -> Result<(), Failure> {
    let doing = "set the primary partition of";
    let mut writer = Writer::open(open_to_change(path, doing)?).map_err(|error| failed(doing, path, &error))?;
    writer.set_primary(id, Stamp::Now(now())).map_err(|error| failed(doing, path, &error))
}

/// An image identity that no other image has.
///
/// # Errors
/// The machine has no source of random numbers.
pub fn random_id() -> io::Result<ImageId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(ImageId::from_random(bytes))
}

/// The time of the machine's clock.
pub fn now() -> Time {
    let seconds = |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Time(match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => seconds(since),
        Err(before) => -seconds(before.duration()),
    })
}

fn open(path: &Path) -> Result<Reader<File>, Failure> {
    // Without O_NONBLOCK, a named pipe would be waited for.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = regular(file.map_err(|error| plain("open", path, &error))?, "open", path)?;
    Reader::open(file).map_err(|error| failed("open", path, &error))
}

fn open_to_change(path: &Path, doing: &str) -> Result<File, Failure> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    lock(regular(file.map_err(|error| plain(doing, path, &error))?, doing, path)?, doing, path)
}

/// Returns the file if it is an ordinary one.
fn regular(file: File, doing: &str, path: &Path) -> Result<File, Failure> {
    let metadata = file.metadata().map_err(|error| plain(doing, path, &error))?;
    if metadata.is_file() { Ok(file) } else { Err(failed(doing, path, &NotAFile)) }
}

/// Keeps a second change of the same image away until the file is closed. A file system that knows no locks has to do
/// without.
fn lock(file: File, doing: &str, path: &Path) -> Result<File, Failure> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(failed(doing, path, &BeingChanged)),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

fn is_same_file(image: &File, other: &File) -> io::Result<bool> {
    let (image, other) = (image.metadata()?, other.metadata()?);
    Ok((image.dev(), image.ino()) == (other.dev(), other.ino()))
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::usage(format!("cannot print: {error}")))
}

fn failed(doing: &str, path: &Path, error: &(impl fmt::Display + Hint)) -> Failure {
    let context = format!("cannot {doing} {}", path.display());
    Failure { code: EXIT_USAGE, ..report::failure(error) }.context(context)
}

fn plain(doing: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot {doing} {}: {error}", path.display()))
}

struct NotAFile;

impl fmt::Display for NotAFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a regular file")
    }
}

impl Hint for NotAFile {}

struct BeingChanged;

impl fmt::Display for BeingChanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another process is changing it")
    }
}

impl Hint for BeingChanged {
    fn hints(&self) -> Vec<String> {
        vec!["Try again when it has finished.".into()]
    }
}

struct SelfAdded;

impl fmt::Display for SelfAdded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image can't be added to itself")
    }
}

impl Hint for SelfAdded {}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(datatype: i64) -> AddOptions {
        AddOptions { datatype: Some(datatype), ..AddOptions::default() }
    }

    fn mistake(options: &AddOptions) -> String {
        let failure = options.object().unwrap_err();
        assert_eq!(failure.code, EXIT_USAGE);
        failure.message
    }

    #[test]
    fn an_object_needs_a_type_that_exists() {
        for datatype in [None, Some(0), Some(12), Some(99), Some(-1)] {
            assert!(mistake(&AddOptions { datatype, ..AddOptions::default() }).contains("`--datatype` is required"));
        }
    }

    #[test]
    fn an_object_is_in_no_group_and_has_no_name_unless_told() {
        let object = options(6).object().unwrap();
        assert_eq!((object.group, object.link, object.alignment), (None, Link::None, 0));
        assert!(object.name.is_empty());
        let told = AddOptions { groupid: 2, link: 3, filename: Some(b"x".to_vec()), ..options(6) }.object().unwrap();
        assert_eq!((told.group, told.link, told.name), (Some(2), Link::Object(3), b"x".to_vec()));
    }

    #[test]
    fn a_partition_needs_all_three_of_its_numbers() {
        let whole = AddOptions { partfs: Some(1), parttype: Some(2), partarch: Some(2), ..options(4) };
        let object = whole.object().unwrap();
        assert_eq!(object.alignment, 4096);
        let expected = Partition { fs: FileSystem::Squashfs, kind: PartitionKind::PrimarySystem, arch: Arch::Amd64 };
        assert_eq!(object.extra, expected.to_extra());
        for part in [
            AddOptions { partfs: None, ..whole.clone() },
            AddOptions { parttype: Some(0), ..whole.clone() },
            AddOptions { partarch: None, ..whole.clone() },
        ] {
            assert!(mistake(&part).contains("must be given"));
        }
        assert_eq!(mistake(&AddOptions { partarch: Some(99), ..whole }), "unknown architecture: 99");
    }

    #[test]
    fn a_partition_of_an_unknown_file_system_can_be_added() {
        let whole = AddOptions { partfs: Some(88), parttype: Some(77), partarch: Some(1), ..options(4) };
        let expected = Partition { fs: FileSystem::Other(88), kind: PartitionKind::Other(77), arch: Arch::I386 };
        assert_eq!(whole.object().unwrap().extra, expected.to_extra());
    }

    #[test]
    fn an_alignment_that_was_given_wins_and_a_negative_one_is_none() {
        let whole = AddOptions { partfs: Some(1), parttype: Some(1), partarch: Some(1), ..options(4) };
        let alignment = |bytes| AddOptions { alignment: Some(bytes), ..whole.clone() }.object().unwrap().alignment;
        assert_eq!((alignment(0), alignment(64), alignment(-5)), (0, 64, 0));
    }

    #[test]
    fn a_signature_needs_a_hash_and_a_fingerprint() {
        let entity = Some("433FE984155206BD962725E20E8713472A879943".to_owned());
        let whole = AddOptions { signhash: Some(3), signentity: entity, ..options(5) };
        assert_eq!(Signature::from_extra(&whole.object().unwrap().extra).hash, HashType::Sha512);
        assert_eq!(mistake(&options(5)), "invalid hash type: 0");
        assert_eq!(mistake(&AddOptions { signhash: Some(9), ..whole.clone() }), "invalid hash type: 9");
        for entity in ["zz", "+13FE984155206BD962725E20E8713472A879943", "é33FE984155206BD962725E20E8713472A87994"] {
            let wrong = AddOptions { signentity: Some(entity.into()), ..whole.clone() };
            assert!(mistake(&wrong).contains("invalid signing entity fingerprint"), "{entity}");
        }
    }

    #[test]
    fn an_sbom_needs_a_format_that_exists() {
        assert!(mistake(&options(9)).contains("`--sbomformat` must be given"));
        let named = |name: &str| AddOptions { sbomformat: Some(name.into()), ..options(9) };
        assert_eq!(mistake(&named("zz")), "invalid SBOM format: `zz`");
        assert_eq!(named("spdx-yaml").object().unwrap().extra, SbomFormat::SpdxYaml.to_extra());
    }

    #[test]
    fn flags_for_another_type_are_named() {
        let odd = AddOptions { partfs: Some(1), sbomformat: Some("spdx-yaml".into()), ..options(9) };
        assert_eq!(odd.superfluous(DataType::Sbom), ["--partfs"]);
    }
}
