//! Whether an archive's release file is signed by whom it should be signed.
//!
//! `gpgv` looks at the signature: it is there wherever apt or rpm is, and made for this. A library that does the same has
//! a hundred packages below it.

use super::DebootstrapError;
use crate::debian::sources::SignedBy;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use starter::paths::HostPath;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A release file and where its signature is.
pub(super) enum Signed<'a> {
    /// Within the file: `InRelease`.
    Inside(&'a [u8]),
    /// Beside it: `Release` and `Release.gpg`.
    Beside { text: &'a [u8], signature: &'a [u8] },
}

/// Directories of the keys that this machine trusts for any archive.
const TRUSTED: &str = "/etc/apt/trusted.gpg.d";
const TRUSTED_FILE: &str = "/etc/apt/trusted.gpg";
/// Where distributions put the keys of their archives; `*-archive-keyring.gpg` is what they call them.
const KEYRINGS: &str = "/usr/share/keyrings";

/// Gives the text that was signed. Files for `gpgv` are made in `work`.
pub(super) fn verify(
    address: &str,
    signed: &Signed,
    signed_by: &SignedBy,
    work: &Path,
) -> Result<Vec<u8>, DebootstrapError> {
    let failed = |doing, path: &Path| {
        let path = HostPath::new(path);
        move |source| DebootstrapError::System { doing, path, source }
    };
    let scratch = work.join("signature");
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir(&scratch).map_err(failed("make", &scratch))?;
    let mut arguments: Vec<OsString> = vec!["--status-fd".into(), "1".into()];
    for (number, keyring) in keyrings(signed_by)?.into_iter().enumerate() {
        // gpgv takes keys without armor alone, and a name with a slash for a path.
        let path = scratch.join(format!("keyring-{number}.gpg"));
        std::fs::write(&path, keyring).map_err(failed("write", &path))?;
        arguments.extend(["--keyring".into(), path.into()]);
    }
    let (file, text) = (scratch.join("file"), scratch.join("text"));
    match signed {
        Signed::Inside(bytes) => {
            std::fs::write(&file, bytes).map_err(failed("write", &file))?;
            arguments.extend(["--output".into(), text.clone().into(), file.into()]);
        }
        Signed::Beside { text: bytes, signature } => {
            std::fs::write(&text, bytes).map_err(failed("write", &text))?;
            std::fs::write(&file, signature).map_err(failed("write", &file))?;
            arguments.extend([file.into(), text.clone().into()]);
        }
    }
    let mut command = Command::new("gpgv");
    command.args(&arguments).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DebootstrapError::NoVerifier,
        _ => DebootstrapError::System { doing: "run", path: HostPath::new("gpgv"), source },
    })?;
    judge(&String::from_utf8_lossy(&output.stdout))
        .map_err(|why| DebootstrapError::Signature { address: address.to_owned(), why })?;
    let verified = std::fs::read(&text).map_err(failed("read", &text))?;
    let _ = std::fs::remove_dir_all(&scratch);
    Ok(verified)
}

/// Judges what gpgv reports: one good signature is needed, and no bad one. Those of keys that are not known don't count.
fn judge(status: &str) -> Result<(), String> {
    let reports = || status.lines().filter_map(|line| line.strip_prefix("[GNUPG:] "));
    let find = |word: &str| reports().find_map(|report| report.strip_prefix(word)?.strip_prefix(' '));
    if let Some(who) = find("BADSIG") {
        return Err(format!("the signature is wrong ({who})"));
    }
    if find("GOODSIG").is_some() && find("VALIDSIG").is_some() {
        return Ok(());
    }
    for (word, why) in [("EXPKEYSIG", "the key has expired"), ("EXPSIG", "the signature has expired")] {
        if let Some(who) = find(word) {
            return Err(format!("{why} ({who})"));
        }
    }
    Err(match (find("REVKEYSIG"), find("NO_PUBKEY")) {
        (Some(who), _) => format!("the key was revoked ({who})"),
        (None, Some(key)) => format!("no key that is trusted for it made the signature; one of them is {key}"),
        (None, None) => "it has no signature".to_owned(),
    })
}

/// The keys that may have signed, without armor.
fn keyrings(signed_by: &SignedBy) -> Result<Vec<Vec<u8>>, DebootstrapError> {
    let read = |path: &Path| {
        let bytes = std::fs::read(path);
        bytes.map_err(|source| DebootstrapError::Keyring { path: HostPath::new(path), source })
    };
    let texts = match signed_by {
        SignedBy::Key(key) => vec![key.clone().into_bytes()],
        SignedBy::Files(files) => files.iter().map(|file| read(Path::new(file))).collect::<Result<_, _>>()?,
        SignedBy::Anybody => trusted().iter().map(|path| read(path)).collect::<Result<_, _>>()?,
    };
    if texts.is_empty() {
        return Err(DebootstrapError::NoKeys);
    }
    texts.into_iter().map(without_armor).collect()
}

fn trusted() -> Vec<PathBuf> {
    let list = |directory: &str, is: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.to_str().is_some_and(is)).collect()
    };
    let mut paths = list(TRUSTED, &|name| name.ends_with(".gpg") || name.ends_with(".asc"));
    paths.extend(list(KEYRINGS, &|name| name.ends_with("-archive-keyring.gpg")));
    paths.extend(Some(PathBuf::from(TRUSTED_FILE)).filter(|path| path.exists()));
    paths.sort();
    paths
}

/// Takes the armor off a key: the lines of base64 between its first and its last line, with headers and a checksum.
fn without_armor(bytes: Vec<u8>) -> Result<Vec<u8>, DebootstrapError> {
    if !bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Ok(bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut keys = Vec::new();
    let mut block: Option<(bool, String)> = None;
    for line in text.lines().map(str::trim) {
        match &mut block {
            None if line.starts_with("-----BEGIN") => block = Some((false, String::new())),
            None => {}
            Some((_, base64)) if line.starts_with("-----END") => {
                keys.extend(STANDARD.decode(&*base64).map_err(|_| DebootstrapError::NoKey)?);
                block = None;
            }
            Some((is_body @ false, _)) if line.is_empty() => *is_body = true,
            // A header, or the checksum, which protects from nobody.
            Some((false, _)) => {}
            Some((true, _)) if line.starts_with('=') => {}
            Some((true, base64)) => base64.push_str(line),
        }
    }
    if keys.is_empty() { Err(DebootstrapError::NoKey) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_good_signature_is_needed_and_no_bad_one() {
        let check = |reports: &[&str], expected: Result<(), &str>| {
            let status: String = reports.iter().map(|report| format!("[GNUPG:] {report}\n")).collect();
            assert_eq!(judge(&status), expected.map_err(str::to_owned), "{status}");
        };
        let unknown = "no key that is trusted for it made the signature; one of them is ABC";
        check(&["GOODSIG A x", "VALIDSIG F y"], Ok(()));
        check(&["ERRSIG ABC 1", "NO_PUBKEY ABC", "GOODSIG A x", "VALIDSIG F y"], Ok(()));
        check(&["GOODSIG A x", "VALIDSIG F y", "BADSIG B z"], Err("the signature is wrong (B z)"));
        check(&["NO_PUBKEY ABC"], Err(unknown));
        check(&["EXPKEYSIG A x", "VALIDSIG F y"], Err("the key has expired (A x)"));
        check(&["REVKEYSIG A x", "VALIDSIG F y"], Err("the key was revoked (A x)"));
        check(&["EXPSIG A x", "VALIDSIG F y"], Err("the signature has expired (A x)"));
        check(&[], Err("it has no signature"));
        assert!(judge("GOODSIG A x\nVALIDSIG F y\n").is_err());
    }

    #[test]
    fn armor_is_taken_off() {
        let armored = b"\n-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: 1\n\naGVs\nbG8=\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n";
        assert_eq!(without_armor(armored.to_vec()).expect("a key"), b"hello");
        assert_eq!(without_armor(b"\x99\x01binary".to_vec()).expect("a key"), b"\x99\x01binary");
        for wrong in ["-----BEGIN x\n\n???\n-----END x\n", "-----BEGIN x\n\naGVs\n"] {
            assert!(matches!(without_armor(wrong.into()), Err(DebootstrapError::NoKey)), "{wrong}");
        }
    }
}
