//! Mounts an image with sifu's server and serves it in this process until it is unmounted, for measurements and tests:
//!
//!   io_serve IMAGE DIRECTORY [OWNER-UID]
//!
//! IMAGE is a SquashFS image or a SIF. It needs the right to mount: root, or `unshare -Urm`.

use sifu::serve::{Owner, ServeOptions, run, send_fuse};
use sifu::squashfs::Reader;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, directory, rest @ ..] = arguments.as_slice() else {
        return Err(io::Error::other("usage: io_serve IMAGE DIRECTORY [OWNER-UID]"));
    };
    let owner = match rest.first() {
        Some(uid) => {
            let uid = uid.parse().map_err(io::Error::other)?;
            Owner::Everyone { uid, gid: uid }
        }
        None => Owner::Recorded,
    };
    let reader = open(image)?;
    let fuse = File::options().read(true).write(true).open("/dev/fuse")?;
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", fuse.as_raw_fd());
    let flags = nix::mount::MsFlags::MS_RDONLY | nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV;
    nix::mount::mount(Some("sifu"), directory.as_str(), Some("fuse"), flags, Some(options.as_str()))?;
    let (launcher, server) = UnixStream::pair()?;
    send_fuse(&launcher, 0, &fuse)?;
    run(vec![(reader, ServeOptions { owner, invented: Vec::new() })], server.into(), None)
}

/// Finds the SquashFS partition: images of SIF start it at a multiple of 4 KiB.
fn open(path: &str) -> io::Result<Reader> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut start = Vec::new();
    (&mut file).take(16 << 20).read_to_end(&mut start)?;
    let found = (0..start.len()).step_by(4096).find(|&at| start[at..].starts_with(b"hsqs"));
    let offset = found.ok_or_else(|| io::Error::other("no SquashFS in this file"))? as u64;
    Reader::open(file, offset, length - offset).map_err(io::Error::other)
}
