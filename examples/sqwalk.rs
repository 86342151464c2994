use sifu::squashfs::Reader;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let f = std::fs::File::open(&a[1]).unwrap();
    let all = std::fs::read(&a[1]).unwrap();
    let len = all.len() as u64;
    // find hsqs on 4096 boundary
    let off = (0..all.len()).step_by(4096).find(|&o| all[o..].starts_with(b"hsqs")).map(|o| o as u64);
    let off = off.or_else(|| all.windows(4).position(|w| w == b"hsqs").map(|o| o as u64)).unwrap_or(0);
    drop(all);
    let r = match Reader::open(f, off, len - off) {
        Ok(r) => r,
        Err(e) => {
            println!("open: {e}");
            return;
        }
    };
    let mut n = 0u64;
    let mut bytes = 0u64;
    let verbose = a.len() > 2;
    for v in r.walk() {
        let v = match v {
            Ok(v) => v,
            Err(e) => {
                println!("walk after {n}: {e}");
                return;
            }
        };
        n += 1;
        let mut h = 0u64;
        let own = r.owner(&v.inode);
        let mut off = 0;
        let mut buf = vec![0; 1 << 20];
        loop {
            match r.read(v.reference, &v.inode, off, &mut buf) {
                Ok(0) => break,
                Ok(k) => {
                    off += k as u64;
                    for c in buf[..k].chunks(8) {
                        let mut w = [0; 8];
                        w[..c.len()].copy_from_slice(c);
                        h = (h ^ u64::from_le_bytes(w)).wrapping_mul(0x100000001b3).rotate_left(5);
                    }
                }
                Err(e) => {
                    println!("{}: {e}", String::from_utf8_lossy(&v.path));
                    break;
                }
            }
        }
        bytes += off;
        let t = r.symlink_target(&v.inode);
        let x: Vec<_> = match r.xattr_names(&v.inode) {
            Ok(ns) => ns
                .into_iter()
                .map(|n| {
                    let val = r.xattr(&v.inode, &n);
                    (n, val)
                })
                .collect(),
            Err(e) => {
                println!("xattr {e}");
                vec![]
            }
        };
        if verbose {
            println!(
                "{} {:?} {:o} {:?} {} {} {:x} {:?} {:?}",
                String::from_utf8_lossy(&v.path),
                v.inode.kind,
                v.inode.mode,
                own,
                v.inode.size_bytes,
                v.inode.nlink,
                h,
                t,
                x.len()
            );
        }
        if let Err(e) = t {
            println!("{}: {e}", String::from_utf8_lossy(&v.path));
        }
        if let Err(e) = own {
            println!("{}: {e}", String::from_utf8_lossy(&v.path));
        }
    }
    println!("{n} entries {bytes} bytes");
}
