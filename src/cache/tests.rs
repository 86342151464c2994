use super::*;
use std::sync::atomic::AtomicU32;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("sifu-cache-{}-{name}", std::process::id())))
    }

    fn cache(&self, ceiling_bytes: u64) -> Cache {
        Cache::new(self.0.clone(), None, ceiling_bytes)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn obtain(cache: &Cache, key: &str, content: &[u8]) -> PathBuf {
    cache.obtain(Kind::Oci, key, |path| fs::write(path, content)).unwrap()
}

#[test]
fn of_many_who_want_an_image_one_makes_it() {
    let scratch = Scratch::new("many");
    let cache = scratch.cache(u64::MAX);
    let made = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let path = cache.obtain(Kind::Oras, "key", |path| {
                    made.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(50));
                    fs::write(path, "image")
                });
                assert_eq!(fs::read(path.unwrap()).unwrap(), b"image");
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
    let mut left: Vec<_> = fs::read_dir(scratch.0.join("oras")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["key", "key.sha256"]);
}

#[test]
fn who_fails_leaves_nothing_and_the_next_one_tries() {
    let scratch = Scratch::new("fails");
    let cache = scratch.cache(u64::MAX);
    let failed = cache.obtain(Kind::Oci, "key", |path| {
        fs::write(path, "half").unwrap();
        Err("broken")
    });
    assert!(matches!(failed, Err(ObtainError::Make("broken"))));
    assert_eq!(fs::read_dir(scratch.0.join("oci-tmp")).unwrap().count(), 0);
    assert_eq!(fs::read(obtain(&cache, "key", b"whole")).unwrap(), b"whole");
}

#[test]
fn a_damaged_image_is_noticed_by_its_size_and_one_that_was_touched_by_its_digest() {
    let scratch = Scratch::new("damaged");
    let cache = scratch.cache(u64::MAX);
    let path = obtain(&cache, "key", b"image");
    assert!(cache.is_unchanged(&path).unwrap());
    fs::write(&path, "imagE").unwrap();
    assert!(!cache.is_unchanged(&path).unwrap());
    assert_eq!((cache.get(Kind::Oci, "key"), path.exists()), (None, false));
    obtain(&cache, "key", b"image");
    // The same bytes with another time are the same image, and are read once to see it.
    let touched = || fs::metadata(&path).unwrap().modified().unwrap();
    File::options().append(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(cache.get(Kind::Oci, "key"), Some(path.clone()));
    assert_eq!(record(&path).unwrap().changed_ns, Some(0));
    assert_eq!(touched(), SystemTime::UNIX_EPOCH);
    fs::write(&path, "cut").unwrap();
    assert_eq!(cache.get(Kind::Oci, "key"), None);
    assert_eq!(fs::read(obtain(&cache, "key", b"image")).unwrap(), b"image");
    assert!(cache.is_unchanged(&path).unwrap());
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_the_new_one_stays() {
    let scratch = Scratch::new("evict");
    let cache = scratch.cache(25);
    for (age, key) in [(30, "old"), (10, "young"), (20, "older")] {
        let path = obtain(&cache, key, &[b'x'; 8]);
        let used = SystemTime::now() - Duration::from_secs(age);
        File::open(path).unwrap().set_times(FileTimes::new().set_accessed(used)).unwrap();
    }
    obtain(&cache, "new", &[b'x'; 16]);
    let names: Vec<String> = cache.list().unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["new", "young"]);
    obtain(&cache, "too large for all", &[b'x'; 99]);
    let names: Vec<String> = cache.list().unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["too large for all"]);
}

#[test]
fn images_of_the_site_are_used_and_not_copied() {
    let scratch = Scratch::new("site");
    let site = Cache::new(scratch.0.join("site"), None, u64::MAX);
    let there = obtain(&site, "key", b"image");
    let cache = Cache::new(scratch.0.join("own"), Some(scratch.0.join("site")), u64::MAX);
    let found = cache.obtain(Kind::Oci, "key", |_| Err("not to be made")).unwrap();
    assert_eq!(found, there);
    assert!(!scratch.0.join("own").exists());
}
