//! The options of a mount in `config.json`: the words of `mount(8)` and of a few runtimes. Pure.

/// What the options of a mount come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub bind: bool,
    pub read_only: bool,
    pub no_exec: bool,
    /// Device nodes are asked not to work.
    pub no_dev: bool,
    /// Mode of a fresh file system's root.
    pub mode: Option<u32>,
    pub size_bytes: Option<u64>,
}

/// Understands the options of a mount; the error is the option that can't be done.
pub fn parse(words: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    for word in words {
        match word.as_str() {
            "bind" | "rbind" => options.bind = true,
            "ro" | "rro" => options.read_only = true,
            "rw" | "rrw" => options.read_only = false,
            "noexec" | "rnoexec" => options.no_exec = true,
            "exec" | "rexec" => options.no_exec = false,
            "nodev" | "rnodev" => options.no_dev = true,
            "dev" | "rdev" => options.no_dev = false,
            // Set-user-id bits never count in a container of sifu's.
            "nosuid" | "rnosuid" | "suid" | "rsuid" => {}
            // Mounts that the host makes later are passed on or not as the site's configuration says.
            "private" | "rprivate" | "slave" | "rslave" => {}
            // How times of access are kept, and when data is written, nobody in the container can rely on.
            "defaults" | "relatime" | "norelatime" | "strictatime" | "nostrictatime" | "atime" | "noatime"
            | "diratime" | "nodiratime" | "rrelatime" | "rstrictatime" | "ratime" | "rnoatime" | "rdiratime"
            | "rnodiratime" | "async" | "nolazytime" | "silent" | "loud" => {}
            // Always so for the terminals of a container.
            "newinstance" | "ptmxmode=0666" | "ptmxmode=666" => {}
            word => {
                let Some((key, value)) = word.split_once('=') else { return Err(word.to_owned()) };
                let understood = match key {
                    "mode" => u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777).map(|mode| {
                        options.mode = Some(mode);
                    }),
                    "size" => bytes(value).map(|size| options.size_bytes = Some(size)),
                    // New files belong to who makes them; a user namespace has seldom another id to give them to.
                    "uid" | "gid" => value.parse::<u32>().ok().map(drop),
                    _ => None,
                };
                understood.ok_or(word)?;
            }
        }
    }
    Ok(options)
}

/// Reads a number of bytes as tmpfs does: `65536k`, `1g`.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Options, String> {
        parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_that_runtimes_write_are_understood() {
        let dev = Options { mode: Some(0o755), size_bytes: Some(65536 << 10), ..Options::default() };
        assert_eq!(read("nosuid,strictatime,mode=755,size=65536k"), Ok(dev));
        let bind = Options { bind: true, read_only: true, no_dev: true, ..Options::default() };
        assert_eq!(read("rbind,nosuid,nodev,ro,rprivate"), Ok(bind));
        let pts = Options { no_exec: true, mode: Some(0o620), ..Options::default() };
        assert_eq!(read("nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"), Ok(pts));
    }

    #[test]
    fn the_last_word_of_two_counts() {
        assert_eq!(read("ro,rw,noexec,exec"), Ok(Options::default()));
    }

    #[test]
    fn what_can_not_be_done_is_named() {
        for word in ["rshared", "tmpcopyup", "idmap", "lowerdir=/a", "size=10%", "mode=9", "size=x", "size="] {
            assert_eq!(read(&format!("ro,{word}")), Err(word.to_owned()));
        }
    }
}
