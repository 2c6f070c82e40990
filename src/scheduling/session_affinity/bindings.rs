//! Which endpoint a session was last sent to: bounded, and forgotten after a while without use.
//!
//! Each shard keeps two generations. A binding that is written goes to the young one. When the young
//! one is full, or the time to live has passed since the last turn, it becomes the old one and the
//! old one is dropped whole. So memory is bounded, nothing is ever swept, and what is dropped at the
//! bound are the sessions that were not used for longest.
//!
//! Bound: [`MAX_SESSIONS`] bindings, about 70 MB with the tables they lie in. At the bound at least the
//! younger half is remembered; a dropped session is routed like a new one.
//!
//! Session ids are kept as 64-bit hashes under a random key, so a long id costs nothing. Two of a
//! million ids collide with a probability of 3e-8, and then one session follows another's endpoint.
//!
//! Rejected: one map with a sweeper (a lock held for as long as a million entries take, and a task
//! with a clock), and an exact LRU (a linked list that every read writes to).

use std::hash::BuildHasher;
use std::mem;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::domain::{Endpoint, Slot, Timestamp};

/// Bindings that are kept at most.
pub const MAX_SESSIONS: usize = 1_000_000;
const SHARDS: usize = 64;

type Generation = HashMap<u64, Binding, foldhash::fast::RandomState>;

#[derive(Clone, Copy)]
struct Binding {
    slot: Slot,
    generation: u64,
    used: Timestamp,
}

#[derive(Default)]
struct Shard {
    young: Generation,
    old: Generation,
    turned: Timestamp,
}

/// The bindings of one plugin instance.
pub struct Bindings {
    shards: Box<[Mutex<Shard>]>,
    keys: foldhash::quality::RandomState,
    /// Zero: bindings are only ever dropped at the bound.
    ttl: Duration,
    /// Bindings per generation of a shard.
    room: usize,
}

impl Bindings {
    /// No bindings yet; unused ones are forgotten after `ttl` (zero: never).
    pub fn new(ttl: Duration, max_sessions: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keys: foldhash::quality::RandomState::default(),
            ttl,
            room: (max_sessions / SHARDS / 2).max(1),
        }
    }

    fn shard(&self, session: &str) -> (u64, &Mutex<Shard>) {
        let key = self.keys.hash_one(session);
        (key, &self.shards[key as usize % SHARDS])
    }

    fn outlived(&self, since: Timestamp, now: Timestamp) -> bool {
        !self.ttl.is_zero() && now.since(since) > self.ttl
    }

    /// Slot and generation of the endpoint that `session` was last sent to. Changes nothing.
    pub fn get(&self, session: &str, now: Timestamp) -> Option<(Slot, u64)> {
        let (key, shard) = self.shard(session);
        let shard = shard.lock();
        let binding = shard.young.get(&key).or_else(|| shard.old.get(&key))?;
        (!self.outlived(binding.used, now)).then_some((binding.slot, binding.generation))
    }

    /// Remembers that `session` went to `endpoint`.
    pub fn put(&self, session: &str, endpoint: &Endpoint, now: Timestamp) {
        let (key, shard) = self.shard(session);
        let binding = Binding { slot: endpoint.slot, generation: endpoint.generation, used: now };
        let mut shard = shard.lock();
        let full = shard.young.len() >= self.room && !shard.young.contains_key(&key);
        let mut dropped = Generation::default();
        if full || self.outlived(shard.turned, now) {
            let young = mem::take(&mut shard.young);
            dropped = mem::replace(&mut shard.old, young);
            shard.turned = now;
        }
        shard.young.insert(key, binding);
        // Thousands of entries may go; not under the lock.
        drop(shard);
        drop(dropped);
    }

    /// Bindings held, among them those that have outlived their time but not yet been dropped.
    pub fn held(&self) -> usize {
        self.shards.iter().map(|s| s.lock()).map(|s| s.young.len() + s.old.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::pool;

    const TTL: Duration = Duration::from_secs(300);

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_millis(secs * 1_000)
    }

    #[test]
    fn a_binding_lives_from_its_last_use() {
        let scene = pool(2);
        let endpoints: Vec<_> = scene.snapshot.topology.endpoints().collect();
        let bindings = Bindings::new(TTL, 1_000);
        assert_eq!(bindings.get("s", at(0)), None);
        bindings.put("s", endpoints[0], at(0));
        assert_eq!(bindings.get("s", at(300)), Some((Slot(0), 1)));
        assert_eq!(bindings.get("s", at(301)), None);
        bindings.put("s", endpoints[1], at(200));
        assert_eq!(bindings.get("s", at(500)), Some((Slot(1), 2)), "the last endpoint, and its time");
        bindings.put("s", endpoints[1], at(450));
        bindings.put("s", endpoints[1], at(900));
        assert_eq!(bindings.get("s", at(1_200)), Some((Slot(1), 2)));
        assert_eq!(bindings.get("t", at(900)), None);
    }

    #[test]
    fn what_nobody_uses_is_freed() {
        let scene = pool(1);
        let endpoint = scene.snapshot.topology.endpoints().next().unwrap();
        let bindings = Bindings::new(TTL, 1_000_000);
        (0..5_000).for_each(|i| bindings.put(&format!("s{i}"), endpoint, at(1)));
        assert_eq!(bindings.held(), 5_000);
        for round in 1..=2 {
            // Enough that every shard is written to, whatever the random key of the hash.
            (0..2_000).for_each(|i| bindings.put(&format!("r{round}-{i}"), endpoint, at(1 + round * 301)));
        }
        assert!(bindings.held() <= 4_000, "{}", bindings.held());
    }

    #[test]
    fn the_bound_holds_and_the_latest_are_kept() {
        let scene = pool(1);
        let endpoint = scene.snapshot.topology.endpoints().next().unwrap();
        for ttl in [TTL, Duration::ZERO] {
            let bindings = Bindings::new(ttl, 6_400);
            for i in 0..40_000 {
                bindings.put(&format!("s{i}"), endpoint, at(1));
                if i % 5_000 == 0 {
                    assert!(bindings.held() <= 6_400);
                }
            }
            assert!((3_200..=6_400).contains(&bindings.held()));
            // Shards fill unevenly, so stay well inside the younger half.
            let kept = (38_000..40_000).filter(|i| bindings.get(&format!("s{i}"), at(1)).is_some()).count();
            assert!(kept > 1_950, "{kept}");
            assert_eq!(bindings.get("s0", at(1)), None);
        }
    }
}
