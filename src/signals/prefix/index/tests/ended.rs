//! [`Order::Ended`] against the plainest form of what an engine does: a list of free blocks, longest unused first,
//! and counts of requests that pin the others.

use super::*;

/// One endpoint's cache block by block. Blocks are free or pinned; the free ones lie in a queue.
#[derive(Default)]
struct Engine {
    pins: BTreeMap<u64, u32>,
    /// Free blocks with the time of their last use, next to go first.
    free: Vec<(u64, u64)>,
    capacity: u64,
    reserve: u64,
    in_flight: u64,
}

impl Engine {
    fn holds(&self, block: u64) -> bool {
        self.pins.contains_key(&block) || self.free.iter().any(|(b, _)| *b == block)
    }

    fn len(&self) -> u64 {
        (self.pins.len() + self.free.len()) as u64
    }

    fn matched(&self, chain: &[u64]) -> u32 {
        chain.iter().take_while(|b| self.holds(**b)).count() as u32
    }

    fn room(&self) -> u64 {
        self.capacity - (self.reserve * self.in_flight).min(self.capacity / 2)
    }

    /// Returns the blocks pinned and, if the deepest block that matched was free, when it was used last.
    fn route(&mut self, chain: &[u64]) -> (Vec<u64>, Option<u64>) {
        let chain = &chain[..chain.len().min(self.capacity as usize)];
        let deepest = self.matched(chain).checked_sub(1).map(|at| chain[at as usize]);
        let last_use = deepest.and_then(|deepest| self.free.iter().find(|(b, _)| *b == deepest)).map(|(_, t)| *t);
        for block in chain {
            self.free.retain(|(b, _)| b != block);
            *self.pins.entry(*block).or_default() += 1;
        }
        // Room is made for prompts only.
        if !chain.is_empty() {
            self.evict();
        }
        (chain.to_vec(), last_use)
    }

    fn end(&mut self, chain: &[u64], now: u64) {
        for block in chain.iter().rev() {
            let pins = self.pins.get_mut(block).unwrap();
            *pins -= 1;
            if *pins == 0 {
                self.pins.remove(block);
                self.free.push((*block, now));
            }
        }
        self.evict();
    }

    fn evict(&mut self) {
        while self.len() > self.room() && !self.free.is_empty() {
            self.free.remove(0);
        }
    }

    fn oldest_age(&self, now: u64) -> f32 {
        match self.free.first() {
            Some((_, at)) if self.len() * 100 >= self.room() * 97 => (now - at) as f32 / 1e6,
            _ => f32::INFINITY,
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Route { slot: u32, path: Vec<u32> },
    Grow { slot: u32, of: prop::sample::Index, by: Vec<u32> },
    End(prop::sample::Index),
    Drop(prop::sample::Index),
    Purge(u32),
    Room(u32, u64, u64),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let path = || proptest::collection::vec(0u32..3, 0..9);
    let slot = || 0..SLOTS;
    let of = any::<prop::sample::Index>;
    prop_oneof![
        8 => (slot(), path()).prop_map(|(slot, path)| Op::Route { slot, path }),
        6 => (slot(), of(), path()).prop_map(|(slot, of, by)| Op::Grow { slot, of, by }),
        10 => of().prop_map(Op::End),
        1 => of().prop_map(Op::Drop),
        1 => slot().prop_map(Op::Purge),
        1 => (slot(), 1u64..30, 0u64..4).prop_map(|(s, c, r)| Op::Room(s, c, r)),
        3 => (0u64..3_000_000).prop_map(Op::Wait),
    ]
}

struct Flight {
    slot: u32,
    generation: u64,
    blocks: Vec<u64>,
    pin: Option<Pin>,
    stay: Option<Stay>,
}

proptest! {
    #[test]
    fn equals_the_engine(
        shards in prop_oneof![Just(1usize), Just(4)],
        capacity in 1u64..25,
        reserve in 0u64..3,
        ops in proptest::collection::vec(op(), 0..80),
    ) {
        let index = Arc::new(Index::with_shards(shards, u64::MAX, capacity).ordered(Order::Ended));
        let engine = || Engine { capacity, reserve, ..Engine::default() };
        let mut engines: Vec<Engine> = (0..SLOTS).map(|_| engine()).collect();
        (0..SLOTS).for_each(|slot| index.set_room(slot, capacity, reserve));
        let mut generation = [1u64; SLOTS as usize];
        let mut flights: Vec<Flight> = Vec::new();
        let mut paths: Vec<(Vec<u32>, Vec<u64>)> = vec![Default::default()];
        // Steps of 10 us, so that each operation has a time of its own.
        let mut now = 1_000u64;
        for op in ops {
            now += 10;
            let op = match op {
                Op::Grow { slot, of, by } => {
                    Op::Route { slot, path: [paths[of.index(paths.len())].0.clone(), by].concat() }
                }
                other => other,
            };
            match op {
                Op::Route { slot, path } => {
                    let (chain, at) = (chain(&path), slot as usize);
                    let matched = engines[at].matched(&chain[..chain.len().min(engines[at].capacity as usize)]);
                    engines[at].in_flight += 1;
                    let (blocks, last_use) = engines[at].route(&chain);
                    let stay = index.stay(slot, generation[at]);
                    let pin = index.insert_at(slot, generation[at], &chain, Timestamp(now));
                    prop_assert_eq!(pin.is_some(), !blocks.is_empty());
                    if let Some(pin) = &pin {
                        prop_assert_eq!(pin.matched(), matched);
                        if let Some(last_use) = last_use {
                            let age = (now - last_use) as f32 / 1e6;
                            prop_assert!((pin.idle().unwrap() - age).abs() < 1e-3, "{:?} {age}", pin.idle());
                        }
                        prop_assert!(matched > 0 || pin.idle().is_none());
                    }
                    flights.push(Flight { slot, generation: generation[at], blocks, pin, stay });
                    paths.push((path, chain));
                }
                Op::End(of) | Op::Drop(of) if !flights.is_empty() => {
                    let Flight { slot, generation: of, blocks, pin, stay } = flights.swap_remove(of.index(flights.len()));
                    drop(stay);
                    // A pin that is dropped counts as ended at the last time that the index was told of.
                    let dropped = matches!(op, Op::Drop(_));
                    let time = if dropped { index.latest().0 } else { now };
                    match pin {
                        Some(pin) if dropped => drop(pin),
                        Some(pin) => pin.end(Timestamp(now)),
                        None => {}
                    }
                    if of == generation[slot as usize] {
                        let engine = &mut engines[slot as usize];
                        engine.in_flight -= 1;
                        // Without blocks nothing of the index was called that evicts.
                        if !blocks.is_empty() {
                            engine.end(&blocks, time);
                        }
                    }
                }
                Op::Purge(slot) => {
                    let at = slot as usize;
                    index.purge(slot, generation[at]);
                    generation[at] += 1;
                    engines[at] = engine();
                    index.set_room(slot, capacity, reserve);
                }
                Op::Room(slot, capacity, reserve) => {
                    index.set_room(slot, capacity, reserve);
                    (engines[slot as usize].capacity, engines[slot as usize].reserve) = (capacity, reserve);
                }
                Op::Wait(micros) => now += micros,
                Op::End(_) | Op::Drop(_) | Op::Grow { .. } => {}
            }
            let found = index.check();
            let mut ages = [0.0; SLOTS as usize];
            index.oldest_ages(Timestamp(now), &mut ages);
            let used = index.endpoints(SLOTS as usize);
            for (slot, engine) in engines.iter().enumerate() {
                prop_assert_eq!(found.blocks.get(&(slot as u32)).copied().unwrap_or(0), engine.len());
                let age = engine.oldest_age(now);
                prop_assert!(age == ages[slot] || (age - ages[slot]).abs() < 1e-3, "{age} {}", ages[slot]);
                if let Some(held) = used.iter().find(|held| held.slot == slot as u32) {
                    prop_assert_eq!((held.room, held.in_flight), (engine.room(), engine.in_flight));
                    prop_assert_eq!(index.is_full(held.slot), engine.len() * 100 >= engine.room() * 97);
                }
            }
            for (_, chain) in &paths {
                let mut matched = [0; SLOTS as usize];
                index.lookup(chain, &mut matched);
                for (found, engine) in matched.into_iter().zip(&engines) {
                    prop_assert_eq!(found, engine.matched(chain));
                }
            }
        }
        flights.clear();
        prop_assert!(index.check().pins.is_empty());
        prop_assert!(index.endpoints(9).iter().all(|held| held.in_flight == 0));
    }
}

#[test]
fn use_ends_with_the_request_and_not_with_its_routing() {
    let index = Arc::new(Index::with_shards(4, u64::MAX, 4).ordered(Order::Ended));
    let (early, late) = (chain(&[1, 2]), chain(&[3, 4]));
    let first = index.insert_at(0, 1, &early, Timestamp(1_000_000)).unwrap();
    index.insert_at(0, 1, &late, Timestamp(2_000_000)).unwrap().end(Timestamp(3_000_000));
    first.end(Timestamp(5_000_000));
    let mut age = [0.0];
    index.oldest_ages(Timestamp(7_500_000), &mut age);
    assert_eq!(age, [4.5]);
    // Room for one block is made: of the prompt that ended first, from its tail.
    let next = index.insert_at(0, 1, &chain(&[5]), Timestamp(8_000_000)).unwrap();
    assert_eq!((blocks(&index, 0, &early), blocks(&index, 0, &late)), (2, 1));
    assert_eq!((next.matched(), next.idle()), (0, None));
    let again = index.insert_at(0, 1, &early, Timestamp(9_000_000)).unwrap();
    assert_eq!((again.matched(), again.idle()), (2, Some(4.0)));
    let beside = index.insert_at(0, 1, &early, Timestamp(9_500_000)).unwrap();
    assert_eq!((beside.matched(), beside.idle()), (2, None), "in use");
}

#[test]
fn answers_take_room_while_they_are_made_and_at_most_half() {
    let index = Arc::new(Index::with_shards(1, u64::MAX, 10).ordered(Order::Ended));
    index.set_room(0, 10, 2);
    let path = chain(&[1; 10]);
    index.insert_at(0, 1, &path, Timestamp(1)).unwrap().end(Timestamp(2));
    assert_eq!(blocks(&index, 0, &path), 10);
    let stays: Vec<_> = (0..9).map(|_| index.stay(0, 1).unwrap()).collect();
    drop(index.insert_at(0, 1, &chain(&[7]), Timestamp(3)));
    assert_eq!((blocks(&index, 0, &path), index.endpoints(1)[0].room), (4, 5));
    drop(stays);
    assert_eq!((index.endpoints(1)[0].room, index.endpoints(1)[0].in_flight), (10, 0));
    // Those of an endpoint that has left leave its successor alone.
    let stay = index.stay(0, 1);
    index.purge(0, 1);
    let next = index.stay(0, 2);
    drop(stay);
    assert!(next.is_some() && index.stay(0, 1).is_none());
    drop(index.insert_at(0, 2, &path, Timestamp(4)));
    assert_eq!(index.endpoints(1)[0].in_flight, 1);
}

#[test]
fn a_clock_that_stands_still_or_overflows_keeps_the_order() {
    let index = Arc::new(Index::with_shards(2, u64::MAX, 3).ordered(Order::Ended));
    for now in [0, 0, u64::MAX, u64::MAX, 5] {
        index.insert_at(0, 1, &chain(&[now as u32, 1]), Timestamp(now)).unwrap().end(Timestamp(now));
        index.insert_at(0, 1, &chain(&[8, 9]), Timestamp(now)).unwrap().end(Timestamp(now));
        assert_eq!(blocks(&index, 0, &chain(&[8, 9])), 2);
        index.check();
    }
}
