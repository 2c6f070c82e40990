use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use smallvec::smallvec;

use super::*;
use crate::domain::{Prompt, Segment};
use crate::signals::prefix::hash;
use crate::signals::prefix::tree::check::Summary;

impl Index {
    /// Verifies every shard and the sums over them; call it while nobody writes.
    fn check(&self) -> Summary {
        let (mut all, mut bytes) = (Summary::default(), 0);
        let endpoints = self.endpoints.read();
        for (shard, tree) in self.shards.iter().enumerate() {
            let tree = tree.read();
            bytes += tree.bytes();
            let Summary { blocks, pins } = tree.check();
            blocks.into_iter().for_each(|(slot, n)| *all.blocks.entry(slot).or_default() += n);
            pins.into_iter().for_each(|(slot, n)| *all.pins.entry(slot).or_default() += n);
            for (slot, holdings) in endpoints.iter().enumerate() {
                let oldest = tree.oldest(slot as u32).unwrap_or(NONE);
                assert_eq!(holdings.oldest[shard].load(Ordering::Relaxed), oldest);
            }
        }
        assert_eq!(self.bytes(), bytes);
        assert_eq!(self.entries(), all.blocks.values().sum::<u64>());
        for (slot, holdings) in endpoints.iter().enumerate() {
            let counted = all.blocks.get(&(slot as u32)).copied().unwrap_or(0);
            assert_eq!(holdings.blocks.load(Ordering::Relaxed), counted);
        }
        all
    }
}

/// The real chain of a prompt whose blocks are `blocks`.
fn chain(blocks: &[u32]) -> Vec<u64> {
    let prompt = Prompt { segments: smallvec![Segment::Tokens(blocks.into())] };
    hash::chain(&prompt, &[], 7, 1, usize::MAX)
}

fn index(shards: usize, capacity: u64) -> Arc<Index> {
    Arc::new(Index::with_shards(shards, u64::MAX, capacity))
}

fn blocks(index: &Index, slot: u32, chain: &[u64]) -> u32 {
    let mut out = vec![0; slot as usize + 1];
    index.lookup(chain, &mut out);
    out[slot as usize]
}

/// What one endpoint holds, block by block: the rules in their plainest form.
#[derive(Default)]
struct Naive {
    /// Last use and parent of each block held.
    held: HashMap<u64, (u64, Option<u64>)>,
    pins: BTreeMap<u64, u32>,
    capacity: usize,
}

impl Naive {
    fn insert(&mut self, chain: &[u64], tick: u64) -> Option<u64> {
        let chain = &chain[..chain.len().min(self.capacity)];
        let mut parent = None;
        for hash in chain {
            self.held.insert(*hash, (tick, parent));
            parent = Some(*hash);
        }
        let last = *chain.last()?;
        *self.pins.entry(last).or_default() += 1;
        self.evict();
        Some(last)
    }

    fn unpin(&mut self, hash: u64) {
        let count = self.pins.get_mut(&hash).unwrap();
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&hash);
        }
        self.evict();
    }

    fn evict(&mut self) {
        while self.held.len() > self.capacity {
            let parents: BTreeSet<u64> = self.held.values().filter_map(|(_, parent)| *parent).collect();
            let leaves = self.held.iter().filter(|(h, _)| !parents.contains(*h) && !self.pins.contains_key(*h));
            let Some((oldest, _)) = leaves.min_by_key(|(_, (tick, _))| *tick) else { return };
            let oldest = *oldest;
            self.held.remove(&oldest);
        }
    }

    fn matched(&self, chain: &[u64]) -> u32 {
        chain.iter().take_while(|h| self.held.contains_key(*h)).count() as u32
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert { slot: u32, path: Vec<u32>, keep: bool },
    Grow { slot: u32, of: prop::sample::Index, by: Vec<u32>, keep: bool },
    Release(prop::sample::Index),
    Purge(u32),
    Capacity(u32, u64),
    LateCommit(u32, Vec<u32>),
}

const SLOTS: u32 = 3;

fn op() -> impl Strategy<Value = Op> {
    let path = || proptest::collection::vec(0u32..3, 0..9);
    let slot = || 0..SLOTS;
    prop_oneof![
        8 => (slot(), path(), any::<bool>()).prop_map(|(slot, path, keep)| Op::Insert { slot, path, keep }),
        4 => (slot(), any::<prop::sample::Index>(), path(), any::<bool>())
            .prop_map(|(slot, of, by, keep)| Op::Grow { slot, of, by, keep }),
        4 => any::<prop::sample::Index>().prop_map(Op::Release),
        1 => slot().prop_map(Op::Purge),
        1 => (slot(), 1u64..30).prop_map(|(s, c)| Op::Capacity(s, c)),
        1 => (slot(), path()).prop_map(|(s, p)| Op::LateCommit(s, p)),
    ]
}

proptest! {
    #[test]
    fn equals_the_naive_index(
        shards in prop_oneof![Just(1usize), Just(4)],
        capacity in 1u64..25,
        ops in proptest::collection::vec(op(), 0..60),
    ) {
        let index = index(shards, capacity);
        let mut naive: Vec<Naive> =
            (0..SLOTS).map(|_| Naive { capacity: capacity as usize, ..Naive::default() }).collect();
        let mut generation = [1u64; SLOTS as usize];
        // Slot, generation at commit, last hash, and the pin itself.
        let mut pins: Vec<(u32, u64, u64, Pin)> = Vec::new();
        let mut paths: Vec<(Vec<u32>, Vec<u64>)> = vec![Default::default()];
        for (tick, op) in (1..).zip(ops) {
            let op = match op {
                Op::Grow { slot, of, by, keep } => {
                    let path = [paths[of.index(paths.len())].0.clone(), by].concat();
                    Op::Insert { slot, path, keep }
                }
                other => other,
            };
            match op {
                Op::Insert { slot, path, keep } => {
                    let chain = chain(&path);
                    let at = slot as usize;
                    let pin = index.insert(slot, generation[at], &chain);
                    let last = naive[at].insert(&chain, tick);
                    prop_assert_eq!(pin.is_some(), last.is_some());
                    if let (Some(pin), Some(last)) = (pin, last) {
                        if keep {
                            pins.push((slot, generation[at], last, pin));
                        } else {
                            drop(pin);
                            naive[at].unpin(last);
                        }
                    }
                    paths.push((path, chain));
                }
                Op::Release(of) if !pins.is_empty() => {
                    let (slot, of, last, pin) = pins.swap_remove(of.index(pins.len()));
                    drop(pin);
                    if of == generation[slot as usize] {
                        naive[slot as usize].unpin(last);
                    }
                }
                Op::Purge(slot) => {
                    let at = slot as usize;
                    index.purge(slot, generation[at]);
                    generation[at] += 1;
                    naive[at] = Naive { capacity: capacity as usize, ..Naive::default() };
                }
                Op::Capacity(slot, blocks) => {
                    index.set_capacity(slot, blocks);
                    naive[slot as usize].capacity = blocks as usize;
                }
                Op::LateCommit(slot, path) => {
                    // A generation below one that was purged: only after a purge there is one.
                    if generation[slot as usize] > 1 {
                        let late = index.insert(slot, generation[slot as usize] - 1, &chain(&path));
                        prop_assert!(late.is_none());
                    }
                }
                Op::Release(_) | Op::Grow { .. } => {}
            }
            let found = index.check();
            for (slot, expected) in naive.iter().enumerate() {
                let count = found.blocks.get(&(slot as u32)).copied().unwrap_or(0);
                prop_assert_eq!(count, expected.held.len() as u64);
                let pinned: u32 = expected.pins.values().sum();
                prop_assert_eq!(found.pins.get(&(slot as u32)).copied().unwrap_or(0), u64::from(pinned));
            }
            for (_, chain) in &paths {
                let mut matched = [0; SLOTS as usize];
                index.lookup(chain, &mut matched);
                for (found, expected) in matched.into_iter().zip(&naive) {
                    prop_assert_eq!(found, expected.matched(chain));
                }
            }
        }
        pins.clear();
        prop_assert!(index.check().pins.is_empty());
    }

    #[test]
    fn the_byte_bound_holds_once_nothing_is_pinned(
        bound in 200u64..6_000,
        paths in proptest::collection::vec((0u32..4, proptest::collection::vec(0u32..4, 1..30)), 1..60),
    ) {
        let index = Arc::new(Index::with_shards(4, bound, 10_000));
        for (slot, path) in paths {
            drop(index.insert(slot, 1, &chain(&path)));
            index.check();
            // What was pinned during the insertion may stay until the next one.
            prop_assert!(index.bytes() <= bound + 30 * 8 + 2 * 400, "{} of {bound}", index.bytes());
        }
    }
}

#[test]
fn an_index_full_of_pins_learns_nothing_and_recovers() {
    let index = Arc::new(Index::with_shards(1, 2_000, 10_000));
    let pins: Vec<_> = (0..100).map(|i| index.insert(0, 1, &chain(&[i; 10]))).collect();
    let learnt = pins.iter().flatten().count();
    assert!((5..20).contains(&learnt), "{learnt}");
    drop(pins);
    assert!(index.insert(0, 1, &chain(&[200; 10])).is_some());
    assert!(index.bytes() <= 2_000);
    assert!(index.check().pins.is_empty());
}

#[test]
fn a_chain_longer_than_the_capacity_keeps_its_head() {
    let index = index(4, 10);
    let long = chain(&(0..50).collect::<Vec<_>>());
    let pin = index.insert(0, 1, &long);
    assert_eq!((blocks(&index, 0, &long), index.entries()), (10, 10));
    drop(pin);
    let other = chain(&[99, 98]);
    drop(index.insert(0, 1, &other));
    assert_eq!((blocks(&index, 0, &long), blocks(&index, 0, &other)), (8, 2));
}

#[test]
fn a_pin_of_a_removed_endpoint_leaves_its_successor_alone() {
    let index = index(1, 3);
    let path = chain(&[1, 2, 3]);
    let late = index.insert(0, 1, &path);
    index.purge(0, 1);
    assert_eq!((index.entries(), index.bytes(), index.nodes()), (0, 0, 0));
    assert!(index.insert(0, 1, &path).is_none(), "it has left");
    let next = index.insert(0, 2, &path);
    drop(late);
    assert_eq!(index.check().pins.get(&0), Some(&1));
    index.purge(0, 1);
    assert_eq!(blocks(&index, 0, &path), 3, "a late notice about an older endpoint changes nothing");
    // An endpoint whose predecessor nobody announced as gone starts empty.
    assert!(index.insert(0, 3, &chain(&[5])).is_some());
    assert_eq!(blocks(&index, 0, &path), 0);
    drop(next);
    assert!(index.check().pins.is_empty());
}

#[test]
fn slots_beyond_the_bound_are_left_out() {
    let index = index(1, 3);
    assert!(index.insert(MAX_SLOTS, 1, &chain(&[1])).is_none());
    index.purge(u32::MAX, 1);
    index.set_capacity(u32::MAX, 5);
    assert_eq!(index.endpoints.read().len(), 0);
}

#[test]
fn overlapping_writers_leave_every_invariant_intact() {
    write_from_all_sides(Order::Routed);
    write_from_all_sides(Order::Ended);
}

fn write_from_all_sides(order: Order) {
    let (threads, capacity, bound) = (4u64, 400u64, 60_000);
    let index = Arc::new(Index::with_shards(8, bound, capacity).ordered(order));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let index = &index;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(0x5EED + thread);
                let mut pins: Vec<(Option<Stay>, Pin)> = Vec::new();
                for round in 0..1_000u64 {
                    // Conversations of a few tenants, some grown, over five endpoints.
                    let mut path = vec![rng.u32(0..6); rng.usize(1..20)];
                    path.extend((0..rng.usize(0..40)).map(|i| i as u32 / 7));
                    let chain = chain(&path);
                    let slot = rng.u32(0..5);
                    let mut found = [0; 5];
                    index.lookup(&chain, &mut found);
                    assert!(found.iter().all(|m| *m as usize <= chain.len()));
                    // Slot 4 changes hands now and then, in no agreed order between threads.
                    let generation = if slot == 4 { 1 + round / 200 } else { 1 };
                    let stay = index.stay(slot, generation);
                    pins.extend(index.insert_at(slot, generation, &chain, Timestamp(round)).map(|pin| (stay, pin)));
                    if slot == 4 && rng.u8(0..20) == 0 {
                        index.purge(4, generation);
                    }
                    while pins.len() > 8 {
                        pins.swap_remove(rng.usize(0..pins.len()));
                    }
                }
            });
        }
    });
    assert!(index.check().pins.is_empty(), "every pin was given back");
    assert!(index.endpoints(4).iter().all(|held| held.slot > 3 || held.in_flight == 0), "and all room");
    for slot in 0..4 {
        drop(index.insert(slot, 1, &chain(&[1])));
    }
    let found = index.check();
    assert!(found.blocks.iter().all(|(_, n)| *n <= capacity), "{:?}", found.blocks);
    assert!(index.bytes() <= bound, "{}", index.bytes());
    for slot in 0..5 {
        index.purge(slot, u64::MAX >> 2);
    }
    assert_eq!((index.check(), index.bytes(), index.nodes()), (Summary::default(), 0, 0));
}

mod ended;
