//! Where the caller stands, by both of its names.
//!
//! The kernel knows a directory without symbolic links; the shell remembers in `PWD` how the user got there. The second
//! is believed when it names the same inode.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use starter::paths::HostPath;

use super::facts::WorkingDirectory;

/// Asks the kernel for the current directory, and `PWD` for the user's name of it.
pub fn observe() -> WorkingDirectory {
    let physical = match std::env::current_dir() {
        // A directory outside the caller's root reads `(unreachable)/...`.
        Ok(path) if path.is_absolute() => path,
        Ok(_) => return WorkingDirectory::OutOfReach { errno: Errno::EXDEV as i32 },
        Err(error) => return lost(error.raw_os_error()),
    };
    let logical = std::env::var_os("PWD")
        .filter(|pwd| pwd.as_bytes() != physical.as_os_str().as_bytes() && is_plain(pwd) && is_here(Path::new(pwd)));
    let physical = HostPath::new(physical);
    WorkingDirectory::Known { logical: logical.map_or_else(|| physical.clone(), HostPath::new), physical }
}

/// ENOENT has two causes: the directory is gone, or (C libraries that hide the kernel's answer) it is out of reach.
fn lost(errno: Option<i32>) -> WorkingDirectory {
    let gone = std::fs::metadata(".").is_ok_and(|metadata| metadata.nlink() == 0);
    match errno {
        Some(nix::libc::ENOENT) if gone => WorkingDirectory::Deleted,
        errno => WorkingDirectory::OutOfReach { errno: errno.unwrap_or(Errno::EIO as i32) },
    }
}

/// Whether a value of `PWD` is an absolute path without `.` and `..`, as POSIX wants it.
fn is_plain(pwd: &OsStr) -> bool {
    let bytes = pwd.as_bytes();
    bytes.first() == Some(&b'/') && !bytes.split(|&b| b == b'/').any(|name| name == b"." || name == b"..")
}

fn is_here(pwd: &Path) -> bool {
    match (std::fs::metadata(pwd), std::fs::metadata(".")) {
        (Ok(pwd), Ok(here)) => (pwd.dev(), pwd.ino()) == (here.dev(), here.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_path_without_dots_is_believed() {
        let check = |pwd: &str, plain| assert_eq!(is_plain(OsStr::new(pwd)), plain, "{pwd}");
        check("/home/ada", true);
        check("/", true);
        check("/home/...", true);
        check("/home/../root", false);
        check("/home/.", false);
        check("home", false);
        check("", false);
    }

    #[test]
    fn the_directory_of_this_process_is_known() {
        assert!(matches!(observe(), WorkingDirectory::Known { .. }));
    }
}
