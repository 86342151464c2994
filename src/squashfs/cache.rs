//! A cache shared by threads: bounded by weight, split into shards, each value made once.
//!
//! Readers of different keys meet in a lock only when their keys share a shard, and hold it for one table access, never
//! while a value is made. Two readers that want the same absent value: one makes it, the other waits for it. Values
//! leave by second chance: a queue in order of arrival, in which a value that was used since is put back once.

use super::error::SquashfsError;
use std::collections::{HashMap, VecDeque, hash_map};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

const SHARDS: usize = 16;

pub(super) struct Cache<V> {
    shards: [Mutex<Shard<V>>; SHARDS],
    limit_bytes: usize,
    used_bytes: AtomicUsize,
}

struct Shard<V> {
    entries: HashMap<u64, Entry<V>, BuildHasherDefault<PositionHasher>>,
    order: VecDeque<u64>,
}

struct Entry<V> {
    slot: Arc<Slot<V>>,
    /// 0 until the value is there: such an entry is not in the queue.
    weight_bytes: usize,
    used: bool,
}

type Slot<V> = OnceLock<Result<V, SquashfsError>>;

/// A value of the cache, held beyond its stay there if need be.
pub(super) struct Held<V>(Arc<Slot<V>>);

impl<V> Clone for Held<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V> Deref for Held<V> {
    type Target = V;

    fn deref(&self) -> &V {
        match self.0.get() {
            Some(Ok(value)) => value,
            _ => unreachable!("a held slot has a value"),
        }
    }
}

impl<V> Cache<V> {
    pub(super) fn new(limit_bytes: usize) -> Self {
        let shard = |_| Mutex::new(Shard { entries: HashMap::default(), order: VecDeque::new() });
        Self { shards: std::array::from_fn(shard), limit_bytes, used_bytes: AtomicUsize::new(0) }
    }

    /// Gives the value of `key`; `load` makes it when it is not there. `weigh` says how many bytes it keeps, and
    /// `recycle` gets values that had to leave and that nobody holds.
    pub(super) fn get(
        &self,
        key: u64,
        load: impl FnOnce() -> Result<V, SquashfsError>,
        weigh: impl FnOnce(&V) -> usize,
        recycle: impl FnMut(V),
    ) -> Result<Held<V>, SquashfsError> {
        let shard = shard_of(key);
        let slot = {
            let mut shard = self.lock(shard);
            match shard.entries.get_mut(&key) {
                Some(entry) => {
                    entry.used = true;
                    Arc::clone(&entry.slot)
                }
                None => {
                    let slot = Arc::new(Slot::new());
                    shard.entries.insert(key, Entry { slot: Arc::clone(&slot), weight_bytes: 0, used: false });
                    slot
                }
            }
        };
        let mut made = false;
        let value = slot.get_or_init(|| {
            made = true;
            load()
        });
        match value {
            Ok(value) if made => self.admit(shard, key, weigh(value), recycle),
            Ok(_) => {}
            Err(error) => {
                let error = error.clone();
                // A medium may fail once and work later: whoever comes next tries again.
                let mut shard = self.lock(shard);
                if shard.entries.get(&key).is_some_and(|entry| Arc::ptr_eq(&entry.slot, &slot)) {
                    shard.entries.remove(&key);
                }
                return Err(error);
            }
        }
        Ok(Held(slot))
    }

    /// Keeps a value that was made ahead of need, unless one is there or being made: nobody waits for it meanwhile.
    pub(super) fn offer(&self, key: u64, value: V, weigh: impl FnOnce(&V) -> usize, mut recycle: impl FnMut(V)) {
        let home = shard_of(key);
        let weight_bytes = weigh(&value);
        let refused = {
            let mut shard = self.lock(home);
            match shard.entries.entry(key) {
                hash_map::Entry::Occupied(_) => Some(value),
                hash_map::Entry::Vacant(vacant) => {
                    let slot = Slot::new();
                    let refused = slot.set(Ok(value)).err().and_then(Result::ok);
                    vacant.insert(Entry { slot: Arc::new(slot), weight_bytes: 0, used: false });
                    refused
                }
            }
        };
        match refused {
            Some(value) => recycle(value),
            None => self.admit(home, key, weight_bytes, recycle),
        }
    }

    /// Whether a value is there or being made.
    pub(super) fn contains(&self, key: u64) -> bool {
        self.lock(shard_of(key)).entries.contains_key(&key)
    }

    /// Forgets every value.
    pub(super) fn clear(&self) {
        for index in 0..SHARDS {
            let mut shard = self.lock(index);
            let weight: usize = shard.entries.values().map(|entry| entry.weight_bytes).sum();
            // Entries that are being made are not in the queue: they stay, and are admitted when they are ready.
            shard.entries.retain(|_, entry| entry.weight_bytes == 0);
            shard.order = VecDeque::new();
            self.used_bytes.fetch_sub(weight, Ordering::Relaxed);
        }
    }

    fn admit(&self, home: usize, key: u64, weight_bytes: usize, mut recycle: impl FnMut(V)) {
        {
            let mut shard = self.lock(home);
            if let Some(entry) = shard.entries.get_mut(&key) {
                entry.weight_bytes = weight_bytes.max(1);
                shard.order.push_back(key);
                self.used_bytes.fetch_add(weight_bytes.max(1), Ordering::Relaxed);
            }
        }
        for index in (home..SHARDS).chain(0..home) {
            while self.used_bytes.load(Ordering::Relaxed) > self.limit_bytes {
                let Some(slot) = self.evict(index, key) else { break };
                if let Some(Ok(value)) = Arc::into_inner(slot).and_then(Slot::into_inner) {
                    recycle(value);
                }
            }
        }
    }

    /// Takes the value out of a shard that was not used for longest; `None` when only `newest` is left.
    fn evict(&self, index: usize, newest: u64) -> Option<Arc<Slot<V>>> {
        let mut shard = self.lock(index);
        // Each turn either takes a value or clears a mark, so the marks of one round bound the loop.
        for _ in 0..2 * shard.order.len() {
            let key = shard.order.pop_front()?;
            let entry = shard.entries.get_mut(&key)?;
            if entry.used || key == newest {
                entry.used = false;
                shard.order.push_back(key);
                continue;
            }
            let entry = shard.entries.remove(&key)?;
            self.used_bytes.fetch_sub(entry.weight_bytes, Ordering::Relaxed);
            return Some(entry.slot);
        }
        None
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, Shard<V>> {
        // Nothing can panic between lock and unlock in a way that leaves a shard half-changed.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mix(key: u64) -> u64 {
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

fn shard_of(key: u64) -> usize {
    // The table below uses the low and the highest bits.
    (mix(key) >> 40) as usize % SHARDS
}

/// Hashes positions: one multiplication. The number of entries is bounded, so that crafted collisions cost little.
#[derive(Default)]
struct PositionHasher(u64);

impl Hasher for PositionHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = mix(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = mix(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(cache: &Cache<u64>, key: u64) -> (u64, bool) {
        let mut made = false;
        let value = cache
            .get(
                key,
                || {
                    made = true;
                    Ok(key * 10)
                },
                |_| 100,
                drop,
            )
            .unwrap();
        (*value, made)
    }

    #[test]
    fn a_value_is_made_once_and_kept() {
        let cache = Cache::new(1000);
        assert_eq!(get(&cache, 7), (70, true));
        assert_eq!(get(&cache, 7), (70, false));
        cache.clear();
        assert_eq!(get(&cache, 7), (70, true));
    }

    #[test]
    fn the_weight_stays_below_the_limit_and_used_values_stay_longer() {
        let cache = Cache::new(1000);
        for key in 0..200 {
            get(&cache, key);
            get(&cache, 3);
            assert!(cache.used_bytes.load(Ordering::Relaxed) <= 1000);
        }
        let kept: usize = (0..200).filter(|&key| cache.contains(key)).count();
        assert!((5..=10).contains(&kept), "{kept} values kept");
    }

    #[test]
    fn what_leaves_and_is_not_held_is_recycled() {
        let cache = Cache::new(100);
        let held = cache.get(1, || Ok(10), |_| 100, |_| panic!("nothing to recycle")).unwrap();
        let mut recycled = Vec::new();
        cache.get(2, || Ok(20), |_| 100, |v| recycled.push(v)).unwrap();
        cache.get(3, || Ok(30), |_| 100, |v| recycled.push(v)).unwrap();
        assert_eq!((*held, recycled), (10, vec![20]));
    }

    #[test]
    fn a_failure_is_told_and_not_remembered() {
        let cache: Cache<u64> = Cache::new(100);
        let failure = SquashfsError::Inflate { offset_bytes: 1 };
        assert_eq!(cache.get(1, || Err(failure.clone()), |_| 1, drop).err(), Some(failure));
        assert_eq!(get(&cache, 1), (10, true));
    }

    #[test]
    fn a_value_made_ahead_is_used_and_never_replaces_one() {
        let cache = Cache::new(1000);
        let mut recycled = Vec::new();
        cache.offer(1, 11, |_| 100, |v| recycled.push(v));
        cache.offer(1, 12, |_| 100, |v| recycled.push(v));
        assert_eq!(*cache.get(1, || panic!("it is there"), |_| 100, drop).unwrap(), 11);
        assert_eq!((recycled, cache.used_bytes.load(Ordering::Relaxed)), (vec![12], 100));
    }

    #[test]
    fn readers_of_one_absent_value_make_it_once() {
        let cache = Cache::new(1000);
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let load = || {
                        made.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(5u64)
                    };
                    assert_eq!(*cache.get(1, load, |_| 8, drop).unwrap(), 5);
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
