//! The SIF format against a corpus of images: golden texts, golden files of every change, damaged files.
//!
//! The texts and files come from the reference programs; the damaged files say what is required of a reader.

use crate::need::{CORPUS, lacks};
use crate::support::{Scratch, shared};
use serde_json::Value;
use sifu::cli::sif as verbs;
use sifu::report::Failure;
use sifu::sif::{
    Arch, Creation, CreationOptions, CryptoFormat, CryptoMessage, DataType, Deletion, FileSystem, HashType, ImageId,
    Link, MessageType, NewObject, Object, OpenError, Partition, PartitionKind, Reader, SbomFormat, Signature, Stamp,
    Time, WriteError, Writer,
};
use std::fs;
use std::path::{Path, PathBuf};

fn corpus(path: &str) -> PathBuf {
    shared().join("sif-corpus").join(path)
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&read(&corpus(path))).expect("JSON")
}

/// Unpacks a gzip file; its last four bytes say how large the content is.
fn gunzip(packed: &[u8]) -> Vec<u8> {
    let size = u32::from_le_bytes(*packed.last_chunk().expect("a gzip trailer"));
    let mut content = vec![0; size as usize];
    let length = libdeflater::Decompressor::new().gzip_decompress(packed, &mut content).expect("gzip");
    content.truncate(length);
    content
}

/// The images of a folder by name without `.sif`, packed ones unpacked into `scratch`.
fn images(folder: &str, scratch: &Scratch) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(corpus(folder)).expect("a folder of the corpus").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if let Some(name) = name.strip_suffix(".sif.gz") {
            let unpacked = scratch.path().join(format!("{folder}-{name}.sif"));
            fs::write(&unpacked, gunzip(&read(&path))).expect("the unpacked image");
            found.push((name.to_owned(), unpacked));
        } else if let Some(name) = name.strip_suffix(".sif") {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    found
}

/// What a verb printed.
fn printed(verb: impl FnOnce(&mut Vec<u8>) -> Result<(), Failure>) -> Vec<u8> {
    let mut out = Vec::new();
    verb(&mut out).unwrap_or_else(|failure| panic!("{failure}"));
    out
}

#[track_caller]
fn check_text(golden: &Path, text: &[u8], what: &str) {
    let expected = read(golden);
    let (expected, text) = (String::from_utf8_lossy(&expected), String::from_utf8_lossy(text));
    assert_eq!(text, expected, "{what}: {}", golden.display());
}

fn infos(path: &Path) -> Vec<u8> {
    let reader = Reader::open(read(path)).expect("an image");
    let mut text = Vec::new();
    for object in reader.objects() {
        text.extend(format!("== {} rc=0\n", object.id()).bytes());
        text.extend(printed(|out| verbs::info(object.id(), path, out)));
    }
    text
}

#[test]
fn header_list_and_info_print_what_apptainer_prints() {
    if lacks(&[CORPUS]) {
        return;
    }
    let scratch = Scratch::new();
    let mut checked = 0;
    for folder in ["lib", "apptainer", "singularity", "oci-sif", "corrupt"] {
        for (name, path) in images(folder, &scratch) {
            let golden = |verb: &str| corpus(&format!("expected/{folder}__{name}.{verb}.txt"));
            if !golden("header").exists() {
                assert_eq!(folder, "corrupt", "{name} has no golden text");
                continue;
            }
            check_text(&golden("header"), &printed(|out| verbs::header(&path, out)), &name);
            check_text(&golden("list"), &printed(|out| verbs::list(&path, out)), &name);
            check_text(&golden("info"), &infos(&path), &name);
            checked += 3;
        }
    }
    assert_eq!(checked, 168);
}

#[test]
fn header_list_info_and_dump_print_what_the_reference_library_prints() {
    if lacks(&[CORPUS]) {
        return;
    }
    let scratch = Scratch::new();
    let images = images("lib", &scratch);
    // Goldens are named `OneGroupSignedPGP`, images `one-group-signed-pgp`.
    let image = |golden: &str| {
        let wanted = golden.to_lowercase();
        let found = images.iter().find(|(name, _)| name.replace('-', "") == wanted);
        &found.unwrap_or_else(|| panic!("no image for {golden}")).1
    };
    let check =
        |golden: &str, text: Vec<u8>| check_text(&corpus(&format!("lib-golden/{golden}.golden")), &text, golden);
    let mut checked = 0;
    for entry in fs::read_dir(corpus("lib-golden/TestApp_Header")).expect("goldens").flatten() {
        let name = entry.path().file_stem().expect("a name").to_string_lossy().into_owned();
        check(&format!("TestApp_Header/{name}"), printed(|out| verbs::header(image(&name), out)));
        check(&format!("TestApp_List/{name}"), printed(|out| verbs::list(image(&name), out)));
        checked += 2;
    }
    for (golden, from, id) in [
        ("OCIRootIndex", "OneObjectOCIRootIndex", 1),
        ("OCIBlob", "OneObjectOCIBlob", 1),
        ("CryptMessage", "OneObjectCryptMessage", 1),
        ("SBOM", "OneObjectSBOM", 1),
        ("GenericJSON", "OneObjectGenericJSON", 1),
        ("Time", "OneObjectTime", 1),
        ("DataPartitionRaw", "TwoGroupsSignedPGP", 1),
        ("DataPartitionSquashFS", "TwoGroupsSignedPGP", 2),
        ("DataPartitionEXT3", "TwoGroupsSignedPGP", 3),
        ("DataSignature", "TwoGroupsSignedPGP", 4),
    ] {
        check(&format!("TestApp_Info/{golden}"), printed(|out| verbs::info(id, image(from), out)));
        checked += 1;
    }
    for (golden, id) in [("One", 1), ("Two", 2)] {
        check(&format!("TestApp_Dump/{golden}"), printed(|out| verbs::dump(id, image("OneGroup"), out)));
        checked += 1;
    }
    assert_eq!(checked, 50);
}

#[test]
fn every_object_of_every_sound_image_can_be_read() {
    if lacks(&[CORPUS]) {
        return;
    }
    let scratch = Scratch::new();
    for folder in ["lib", "apptainer", "singularity", "oci-sif"] {
        for (name, path) in images(folder, &scratch) {
            let bytes = read(&path);
            let reader = Reader::open(bytes.as_slice()).unwrap_or_else(|error| panic!("{name}: {error}"));
            for object in reader.objects() {
                assert_eq!(object.problem, None, "{name}, object {}", object.id());
                let data = reader.read(object, u64::MAX).expect("its data");
                assert_eq!(printed(|out| verbs::dump(object.id(), &path, out)), data, "{name}");
                if let Some(digest) = object.descriptor.digest() {
                    assert_eq!(digest, format!("sha256:{}", sha256(&data)), "{name}, object {}", object.id());
                }
            }
        }
    }
}

fn sha256(data: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The object of a golden case: a type, data, and for partitions what they are.
fn object_of(case: &Value) -> (NewObject, Vec<u8>) {
    let number = |key: &str| case[key].as_i64().map(|number| i32::try_from(number).expect("an i32"));
    let mut object = NewObject::new(DataType::from_code(number("type").expect("a type")));
    if let (Some(fs), Some(kind), Some(arch)) = (number("fs"), number("part"), case["arch"].as_str()) {
        object = NewObject::partition(Partition {
            fs: FileSystem::from_code(fs),
            kind: PartitionKind::from_code(kind),
            arch: Arch::from_name(arch).expect("an architecture"),
        });
    }
    if let Some(alignment) = case["align"].as_u64() {
        object.alignment = alignment;
    }
    (object, unhex(case["data"].as_str().expect("data")))
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

fn change(writer: &mut Writer<Vec<u8>>, operation: &Value) -> Result<(), WriteError> {
    let stamp = match (operation["time"].as_i64(), operation["deterministic"].as_bool()) {
        (Some(time), _) => Stamp::Exactly(Time(time)),
        (None, Some(true)) => Stamp::Exactly(Time::UNSET),
        // A time that no golden file holds: those images are deterministic and have to stay so.
        (None, _) => Stamp::Now(Time(1)),
    };
    let flag = |key: &str| operation[key].as_bool().unwrap_or(false);
    let id = operation["id"].as_u64().map_or(0, |id| id as u32);
    match operation["op"].as_str().expect("an operation") {
        "add" => {
            let (object, data) = object_of(&operation["object"]);
            writer.add(&object, data.as_slice(), stamp).map(drop)
        }
        "delete" => {
            let is_selected =
                |object: &&Object| match (operation["select_type"].as_i64(), operation["select_part"].as_i64()) {
                    (Some(code), _) => object.descriptor.data_type.code() == code as i32,
                    (None, Some(kind)) => object.descriptor.is_partition(PartitionKind::from_code(kind as i32)),
                    (None, None) => unreachable!("selected by id"),
                };
            let ids = match operation["id"].as_u64() {
                Some(_) => vec![id],
                None => writer.objects().iter().filter(is_selected).map(Object::id).collect(),
            };
            writer.delete(&ids, Deletion { zero: flag("zero"), compact: flag("compact") }, stamp)
        }
        "setprim" => writer.set_primary(id, stamp),
        "setdigest" => {
            let digest = operation["digest"].as_str().expect("a digest").strip_prefix("sha256:").expect("sha256");
            writer.set_digest(id, unhex(digest).try_into().expect("32 bytes"), stamp)
        }
        other => panic!("operation {other}"),
    }
}

fn make(case: &Value) -> Vec<u8> {
    let create = &case["create"];
    let id = create["id"].as_str().map_or(ImageId::NIL, |id| ImageId(unhex(id).try_into().expect("16 bytes")));
    let options = CreationOptions {
        launch_line: create["launch"].as_str().unwrap_or_default().into(),
        id,
        time: create["time"].as_i64().map_or(Time::UNSET, Time),
        capacity: create["capacity"].as_u64().map_or(48, |capacity| capacity as u32),
    };
    let mut creation = Creation::begin(Vec::new(), &options).expect("a new image");
    for object in create["objects"].as_array().into_iter().flatten() {
        let (object, data) = object_of(object);
        creation.add(&object, data.as_slice()).expect("an object");
    }
    let mut writer = Writer::open(creation.finish().expect("an image")).expect("the image");
    for operation in case["ops"].as_array().into_iter().flatten() {
        match (change(&mut writer, operation), operation["error"].as_str()) {
            (Ok(()), None) => {}
            (Err(error), Some(reason)) => assert!(error.to_string().contains(reason), "{error}: expected {reason}"),
            (result, reason) => panic!("{result:?}, expected {reason:?}"),
        }
    }
    writer.into_storage()
}

#[test]
fn images_are_made_and_changed_byte_for_byte_as_the_reference_does() {
    if lacks(&[CORPUS]) {
        return;
    }
    let cases = json("ops/ops.json");
    let cases = cases["cases"].as_array().expect("cases");
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let golden = case["golden"].as_str().expect("a golden file");
        let (expected, image) = (gunzip(&read(&corpus(&format!("ops/{golden}")))), make(case));
        let differs = image.iter().zip(&expected).position(|(ours, theirs)| ours != theirs);
        assert_eq!((image.len(), differs), (expected.len(), None), "{name}: size, and first byte that differs");
        assert_eq!(sha256(&image), case["sha256"].as_str().expect("a digest"), "{name}");
    }
    assert_eq!(cases.len(), 49);
}

/// The record of `object` in an image that holds nothing else, without its place.
fn record_of(object: &NewObject, data: &[u8]) -> Vec<u8> {
    let mut creation = Creation::begin(Vec::new(), &CreationOptions::deterministic()).expect("a new image");
    creation.add(object, data).expect("an object");
    let image = creation.finish().expect("an image");
    let mut record = image[4096..4096 + 585].to_vec();
    // Used, id, offset, size and size with padding are the place.
    record[4..9].fill(0);
    record[17..41].fill(0);
    record
}

#[test]
fn records_of_new_objects_are_those_of_the_reference() {
    if lacks(&[CORPUS]) {
        return;
    }
    let generic = || NewObject::new(DataType::Generic);
    let mut metadata = generic();
    metadata.extra[..13].copy_from_slice(b"{\"Value\":100}");
    let fingerprint = unhex("12045C8C0B1004D058DE4BEDA20C27EE7FF7BA84").try_into().expect("20 bytes");
    let message = CryptoMessage { format: CryptoFormat::OpenPgp, message: MessageType::ClearSignature };
    let partition = Partition { fs: FileSystem::Squashfs, kind: PartitionKind::PrimarySystem, arch: Arch::I386 };
    let signature = Signature { hash: HashType::Sha256, fingerprint };
    let with = |data_type, extra| NewObject { extra, ..NewObject::new(data_type) };
    for (golden, object) in [
        ("Empty", generic()),
        ("OptNoGroup", NewObject { group: None, ..generic() }),
        ("OptGroupID", NewObject { group: Some(2), ..generic() }),
        ("OptLinkedID", NewObject { link: Link::Object(1), ..generic() }),
        ("OptLinkedGroupID", NewObject { link: Link::Group(1), ..generic() }),
        ("OptObjectAlignment", NewObject { alignment: 8, ..generic() }),
        ("OptObjectName", generic().named("name")),
        ("OptObjectTime", NewObject { time: Some(Time(946_702_800)), ..generic() }),
        ("OptMetadata", metadata),
        ("OptCryptoMessageMetadata", with(DataType::CryptoMessage, message.to_extra())),
        ("OptPartitionMetadata", NewObject::partition(partition)),
        ("OptSignatureMetadata", with(DataType::Signature, signature.to_extra())),
        ("OptSBOMMetadata", with(DataType::Sbom, SbomFormat::CycloneDxJson.to_extra())),
        ("DataOCIRootIndex", NewObject::new(DataType::OciRootIndex)),
        ("DataOCIBlob", NewObject::new(DataType::OciBlob)),
    ] {
        let expected = read(&corpus(&format!("lib-golden/TestNewDescriptorInput/{golden}.golden")));
        let record = record_of(&object, b"");
        let differs = record.iter().zip(&expected).position(|(ours, theirs)| ours != theirs);
        assert_eq!((record.len(), differs), (expected.len(), None), "{golden}: size, and first byte that differs");
    }
}

/// Runs the verb that a manifest names; `None` for verbs of other subjects.
fn run(command: &str, path: &Path, scratch: &Scratch) -> Option<Result<(), Failure>> {
    let mut out = Vec::new();
    let result = match command.split(' ').collect::<Vec<_>>().as_slice() {
        ["sif", "header"] => verbs::header(path, &mut out),
        ["sif", "list"] => verbs::list(path, &mut out),
        ["sif", "dump", id] => verbs::dump(id.parse().expect("an id"), path, &mut out),
        ["sif", "add"] => {
            let (copy, data) = (scratch.path().join("copy.sif"), scratch.path().join("data"));
            // Not with its mode: the corpus may be read-only.
            fs::write(&copy, read(path)).expect("a copy");
            fs::write(&data, b"x").expect("a file");
            let options = verbs::AddOptions { datatype: Some(7), ..verbs::AddOptions::default() };
            let result = verbs::add(&copy, &data, &options);
            if result.is_err() {
                assert_eq!(read(&copy), read(path), "a refused change changes nothing");
            }
            result
        }
        _ => return None,
    };
    let is_text = !command.starts_with("sif dump");
    let is_harmless = String::from_utf8_lossy(&out).chars().all(|c| c == '\n' || !c.is_control());
    assert!(!is_text || is_harmless, "control characters from {}", path.display());
    Some(result)
}

#[test]
fn damaged_images_give_what_their_manifest_requires() {
    if lacks(&[CORPUS]) {
        return;
    }
    let scratch = Scratch::new();
    let manifest = json("corrupt/manifest.json");
    let mut files = 0;
    for case in manifest["cases"].as_array().expect("cases") {
        let name = case["file"].as_str().expect("a file");
        let path = corpus(&format!("corrupt/{name}"));
        let commands = case["commands"].as_object().expect("commands");
        for (command, required) in commands {
            let Some(result) = run(command, &path, &scratch) else { continue };
            match required.as_str().expect("a requirement") {
                "error" => {
                    let failure = result.expect_err(&format!("{command} {name}"));
                    assert_eq!(failure.code, 1, "{command} {name}");
                    assert!(!failure.message.contains('\n'), "one line: {}", failure.message);
                }
                "ok" => result.unwrap_or_else(|failure| panic!("{command} {name}: {failure}")),
                "any" => {}
                other => panic!("requirement {other}"),
            }
        }
        // What no manifest asks for must not panic either.
        for command in ["sif header", "sif list", "sif add"] {
            let _ = run(command, &path, &scratch);
        }
        if let Ok(reader) = Reader::open(read(&path)) {
            for object in reader.objects() {
                let _ = verbs::info(object.id(), &path, &mut Vec::new());
                let _ = verbs::dump(object.id(), &path, &mut Vec::new());
            }
            let _ = reader.root();
        }
        files += 1;
    }
    assert_eq!(files, 105);
}

/// What the damage of an object or of a partition's type must do to the root.
#[track_caller]
fn check_root(file: &str, reason: &str) {
    if lacks(&[CORPUS]) {
        return;
    }
    let reader = Reader::open(read(&corpus(&format!("corrupt/{file}.sif")))).expect("it can be listed");
    let error = reader.root().and_then(|root| root.for_host(Arch::Amd64)).expect_err(file).to_string();
    assert!(error.contains(reason), "{file}: {error}");
}

#[test]
fn a_root_that_cannot_be_opened_says_why() {
    check_root("trunc-data", "it ends at");
    check_root("obj-offset-negative", "its offset is -4096");
    check_root("obj-offset-past-eof", "it ends at");
    check_root("obj-size-negative", "its size is -1");
    check_root("obj-size-past-eof", "it ends at");
    check_root("obj-end-overflow", "overflow");
    check_root("obj-offset-max", "overflow");
    check_root("obj-on-header", "lies in the image's header");
    check_root("id-zero", "its id is 0");
    check_root("primary-twice", "say that they are the primary one");
    check_root("primary-missing", "no primary partition");
    check_root("part-fs-unknown", "unknown type 99");
    check_root("part-fs-negative", "unknown type -1");
    check_root("part-fs-ext3", "is ext3");
    check_root("part-fs-luks", "encrypted (LUKS2)");
    check_root("part-fs-gocryptfs", "encrypted (gocryptfs)");
    check_root("part-arch-arm64", "(arm64) can't run on the host's (amd64)");
}

#[test]
fn an_oci_sif_is_called_by_its_name() {
    if lacks(&[CORPUS]) {
        return;
    }
    let reader = Reader::open(read(&corpus("oci-sif/synthetic-one-layer.sif"))).expect("an image");
    assert!(reader.root().expect_err("no root").to_string().contains("OCI-SIF"));
}

#[test]
fn an_encrypted_image_of_the_real_program_is_recognized() {
    if lacks(&[CORPUS]) {
        return;
    }
    for name in ["enc-pass", "enc-rsa"] {
        let reader = Reader::open(read(&corpus(&format!("apptainer/{name}.sif")))).expect("an image");
        assert!(reader.root().expect_err("no root").to_string().contains("encrypted (gocryptfs)"), "{name}");
    }
}

#[test]
fn other_files_are_not_sif() {
    let scratch = Scratch::new();
    let path = scratch.path().join("text");
    fs::write(&path, "text\n").expect("a file");
    for result in [
        verbs::header(&path, &mut Vec::new()),
        verbs::list(&path, &mut Vec::new()),
        verbs::info(1, &path, &mut Vec::new()),
        verbs::dump(1, &path, &mut Vec::new()),
        verbs::del(1, &path),
        verbs::setprim(1, &path),
    ] {
        let failure = result.expect_err("no image");
        assert_eq!(failure.code, 1);
        assert!(failure.message.contains("not a SIF image"), "{}", failure.message);
    }
    let failure = verbs::list(scratch.path(), &mut Vec::new()).expect_err("a directory");
    assert!(failure.message.ends_with("not a regular file"), "{}", failure.message);
    assert!(matches!(Reader::open(&b"text"[..]), Err(OpenError::NotSif)));
}

#[test]
fn a_new_image_takes_objects_and_gives_them_back() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let (path, data) = (scratch.path().join("n.sif"), scratch.path().join("data"));
    fs::write(&data, "{\"a\":1}\n").expect("a file");
    verbs::new(&path).expect("a new image");
    let mode = fs::metadata(&path).expect("the image").permissions().mode();
    assert_eq!(mode & 0o700, 0o700);
    assert_eq!(fs::metadata(&path).expect("the image").len(), 32_176);
    let options = verbs::AddOptions {
        datatype: Some(6),
        groupid: 1,
        filename: Some(b"j.json".to_vec()),
        ..verbs::AddOptions::default()
    };
    verbs::add(&path, &data, &options).expect("added");
    assert_eq!(printed(|out| verbs::dump(1, &path, out)), b"{\"a\":1}\n");
    let text = printed(|out| verbs::info(1, &path, out));
    assert!(String::from_utf8_lossy(&text).contains("Name:         j.json\n"));
    let reader = Reader::open(read(&path)).expect("an image");
    assert!(!reader.header().created.is_unset());
    assert_ne!(reader.header().id, ImageId::NIL);
    verbs::del(1, &path).expect("deleted");
    let failure = verbs::dump(1, &path, &mut Vec::new()).expect_err("it is gone");
    assert!(failure.message.contains("object not found"), "{}", failure.message);
    verbs::new(&path).expect("an image may be made anew");
    assert_eq!(fs::metadata(&path).expect("the image").len(), 32_176);
}

#[test]
fn mistakes_with_ids_have_their_own_words() {
    let scratch = Scratch::new();
    let (path, data) = (scratch.path().join("n.sif"), scratch.path().join("data"));
    verbs::new(&path).expect("a new image");
    fs::write(&data, "x").expect("a file");
    let options = verbs::AddOptions { datatype: Some(7), ..verbs::AddOptions::default() };
    verbs::add(&path, &data, &options).expect("added");
    let check = |result: Result<(), Failure>, words: &str| {
        let failure = result.expect_err(words);
        assert_eq!(failure.code, 1);
        assert!(failure.message.contains(words), "{}", failure.message);
    };
    check(verbs::info(0, &path, &mut Vec::new()), "invalid object ID");
    check(verbs::dump(0, &path, &mut Vec::new()), "invalid object ID");
    check(verbs::del(0, &path), "invalid object ID");
    check(verbs::info(99, &path, &mut Vec::new()), "object not found");
    check(verbs::del(99, &path), "object not found");
    check(verbs::setprim(99, &path), "object not found");
    check(verbs::setprim(1, &path), "data object not a partition");
    check(verbs::add(&path, &path, &options), "can't be added to itself");
    check(verbs::add(&path, &scratch.path().join("none"), &options), "none: No such file");
    check(verbs::add(&scratch.path().join("none.sif"), &data, &options), "none.sif: No such file");
}

#[test]
fn an_image_that_another_process_changes_is_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.path().join("n.sif");
    verbs::new(&path).expect("a new image");
    let held = fs::File::open(&path).expect("the image");
    held.lock().expect("a lock");
    let failure = verbs::del(1, &path).expect_err("it is held");
    assert!(failure.message.contains("another process is changing it"), "{}", failure.message);
    verbs::list(&path, &mut Vec::new()).expect("it may be read");
}
