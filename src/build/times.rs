//! The same input gives the same image, so no file in it may be newer than the input: what the build made is given that time.
//!
//! Python keeps the time of a source in the compiled file beside it, and takes it for stale when they differ; so the time in
//! there changes with it:
//!
//! ```text
//! .pyc:  0       4       8               12            16
//!        | magic | flags | mtime (LE)    | source size | code ...        flags 0: the source is checked by its time
//! ```

use super::BuildError;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use starter::paths::HostPath;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Gives everything below `directory` that is newer than `latest` (seconds since 1970) this time.
pub fn clamp(directory: &Path, latest: i64) -> Result<(), BuildError> {
    let failed = |path: &Path| {
        let path = HostPath::new(path);
        move |source| BuildError::Target { doing: "set the time of", path, source }
    };
    let mut pending = vec![directory.to_owned()];
    // Directories get their time, and their mode again, when nothing in them is changed any more.
    let mut directories = Vec::new();
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().map_err(failed(&path))?;
        let mode = metadata.mode() & 0o7777;
        let is_closed = mode & 0o500 != 0o500;
        if is_closed {
            std::fs::set_permissions(&path, Permissions::from_mode(mode | 0o700)).map_err(failed(&path))?;
        }
        for entry in std::fs::read_dir(&path).map_err(failed(&path))? {
            let entry = entry.map_err(failed(&path))?;
            let below = entry.path();
            let metadata = entry.metadata().map_err(failed(&below))?;
            if metadata.is_dir() {
                pending.push(below);
                continue;
            }
            if metadata.is_file() && below.extension().is_some_and(|extension| extension == "pyc") {
                restamp(&below, latest).map_err(failed(&below))?;
            }
            set_time(&below, metadata.mtime(), latest).map_err(failed(&below))?;
        }
        directories.push((path, metadata.mtime(), is_closed.then_some(mode)));
    }
    // Those inside others come later in the list.
    for (path, mtime, closed) in directories.iter().rev() {
        set_time(path, *mtime, latest).map_err(failed(path))?;
        if let Some(mode) = closed {
            std::fs::set_permissions(path, Permissions::from_mode(*mode)).map_err(failed(path))?;
        }
    }
    Ok(())
}

fn set_time(path: &Path, mtime: i64, latest: i64) -> io::Result<()> {
    // The part of a second counts as newer: an image has whole ones.
    if mtime > latest {
        let time = TimeSpec::new(latest, 0);
        utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

/// Gives a compiled Python file the time that its source will have, if it is that of a source that is newer.
fn restamp(path: &Path, latest: i64) -> io::Result<()> {
    const HEAD_BYTES: usize = 16;
    let no_follow = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let Ok(file) = File::options().read(true).custom_flags(no_follow).open(path) else { return Ok(()) };
    let mut head = [0; HEAD_BYTES];
    if file.read_exact_at(&mut head, 0).is_err() || head[2..4] != *b"\r\n" || head[4..8] != [0; 4] {
        return Ok(());
    }
    let stamp = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if i64::from(stamp) <= latest {
        return Ok(());
    }
    let source_mtime = source_of(path).and_then(|source| source.symlink_metadata().ok()).map(|m| m.mtime());
    // The source may have got its new time already.
    if source_mtime.is_some_and(|mtime| mtime == i64::from(stamp) || mtime == latest) {
        let writer = OpenOptions::new().write(true).custom_flags(no_follow).open(path)?;
        // Python's field has 32 bits, too.
        writer.write_all_at(&(latest as u32).to_le_bytes(), 8)?;
    }
    Ok(())
}

/// `a/__pycache__/m.cpython-312.pyc` is made from `a/m.py`, `a/m.pyc` too.
fn source_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let module = name.split('.').next()?;
    let directory = path.parent()?;
    let directory = if directory.ends_with("__pycache__") { directory.parent()? } else { directory };
    Some(directory.join(format!("{module}.py")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_files_get_the_time_and_compiled_ones_stay_those_of_their_sources() {
        let top = std::env::temp_dir().join(format!("sifu-times-{}", std::process::id()));
        let cache = top.join("lib/__pycache__");
        std::fs::create_dir_all(&cache).unwrap();
        let write = |path: &Path, content: &[u8], mtime: i64| {
            std::fs::write(path, content).unwrap();
            let time = TimeSpec::new(mtime, 5);
            utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
        };
        let compiled = |flags: u8, stamp: u32| {
            [b"\xcb\x0d\r\n".as_slice(), &[flags, 0, 0, 0], &stamp.to_le_bytes(), b"sizecode"].concat()
        };
        write(&top.join("lib/new.py"), b"new", 2000);
        write(&top.join("lib/old.py"), b"old", 500);
        write(&cache.join("new.cpython-312.pyc"), &compiled(0, 2000), 2001);
        write(&cache.join("old.cpython-312.pyc"), &compiled(0, 500), 2001);
        write(&cache.join("hashed.cpython-312.pyc"), &compiled(1, 2000), 2001);
        write(&cache.join("alone.cpython-312.pyc"), &compiled(0, 2000), 2001);
        let closed = top.join("closed");
        std::fs::create_dir(&closed).unwrap();
        write(&closed.join("file"), b"x", 2000);
        std::fs::set_permissions(&closed, Permissions::from_mode(0o600)).unwrap();
        clamp(&top, 1000).unwrap();
        assert_eq!(closed.symlink_metadata().unwrap().mode() & 0o777, 0o600);
        std::fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(closed.join("file").symlink_metadata().unwrap().mtime(), 1000);
        let mtime = |name: &str| top.join(name).symlink_metadata().unwrap().mtime();
        assert_eq!([mtime("lib"), mtime("lib/new.py"), mtime("lib/old.py")], [1000, 1000, 500]);
        let stamp = |name: &str| {
            let bytes = std::fs::read(cache.join(format!("{name}.cpython-312.pyc"))).unwrap();
            u32::from_le_bytes(bytes[8..12].try_into().unwrap())
        };
        assert_eq!([stamp("new"), stamp("old"), stamp("hashed"), stamp("alone")], [1000, 500, 2000, 2000]);
        std::fs::remove_dir_all(&top).unwrap();
    }
}
