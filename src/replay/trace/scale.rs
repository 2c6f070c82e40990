//! A trace at the rate that is asked for.
//!
//! Load 1.0 is the rate at which the pods saturate if all their memory were one cache with LRU eviction: a bound
//! that no placement over separate caches reaches, and finite, unlike the rate with an endless cache.
//!
//! More traffic is made by laying copies of the trace over each other, each shifted in time and with blocks of its
//! own, except for hot blocks (shared system prompts): so think times, bursts and reuse within a conversation stay
//! as they were. What is left to the exact rate is made by stretching time a little.

use super::{MAX_BLOCKS, Request, Trace};
use crate::replay::pod::Hardware;
use crate::replay::text::mix;

/// Steps of the search for the rate.
const STEPS: usize = 6;

/// How much of each step's correction is taken: hits change with the rate, so all of it would overshoot.
const DAMPING: f64 = 0.8;

/// Most copies of a trace.
const MAX_COPIES: f64 = 2_000.0;

/// A block is hot if more than one request of this many has it.
const HOT_SHARE: usize = 100;

/// The fewest occurrences of a hot block.
const HOT_LEAST: usize = 20;

/// What a scaled trace is made for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Load to reach; 1.0 saturates `pods`.
    pub load: f64,
    /// Longest time in seconds.
    pub seconds: f64,
    /// Share of the time that is not measured.
    pub warm: f64,
    /// Sum of the speeds of the pods, 1 being that of the hardware.
    pub capacity: f64,
    /// Blocks that all pods hold together.
    pub pool_blocks: usize,
    /// Seed of the shifts.
    pub seed: u64,
}

/// The trace at `target`, and how much faster than recorded it is.
///
/// # Errors
/// A rate that would take too many copies.
pub fn to_load(trace: &Trace, target: &Target, hardware: &Hardware) -> Result<(Trace, f64), String> {
    let seconds = trace.seconds.max(1e-3);
    let mean = trace.requests.iter().map(|r| hardware.seconds(r.input, r.output, 0)).sum::<f64>();
    let mut rate = target.load * target.capacity / (mean / seconds).max(1e-9);
    let mut lru = Lru::new(target.pool_blocks);
    for _ in 0..STEPS {
        let scaled = by(trace, rate, target)?;
        let work = pooled_work(&scaled, target, hardware, &mut lru);
        rate *= (target.load / work.max(1e-6)).powf(DAMPING);
    }
    Ok((by(trace, rate, target)?, rate))
}

/// The trace `rate` times as fast as recorded.
///
/// # Errors
/// See [`to_load`].
pub fn by(trace: &Trace, rate: f64, target: &Target) -> Result<Trace, String> {
    let copies = rate.round().max(1.0);
    if !(rate > 0.0 && copies <= MAX_COPIES) {
        return Err(format!(
            "load {} takes {rate:.0} times the traffic of the trace; at most {MAX_COPIES} times is possible",
            target.load
        ));
    }
    let stretch = copies / rate;
    let hot = (trace.requests.len() / HOT_SHARE).max(HOT_LEAST) as u32;
    let occurrences = trace.occurrences();
    let mut rng = fastrand::Rng::with_seed(mix(target.seed));
    let mut scaled = Trace { block_tokens: trace.block_tokens, ..Trace::default() };
    // Shared blocks keep their ids, those of a copy follow behind all before.
    for copy in 0..copies as u32 {
        let shift = if copy == 0 { 0.0 } else { rng.f64() * trace.seconds };
        let own = |id: u32| if occurrences[id as usize] >= hot { id } else { copy * trace.distinct + id };
        for request in &trace.requests {
            let mut at = request.at + shift;
            if at > trace.seconds {
                at -= trace.seconds;
            }
            at *= stretch;
            if at > target.seconds {
                continue;
            }
            let added = request.blocks as usize + request.generated.1 as usize;
            if scaled.ids.len() + added > MAX_BLOCKS || u64::from(copy + 1) * u64::from(trace.distinct) >= 1 << 31 {
                return Err(format!("load {} makes more than {MAX_BLOCKS} blocks; shorten --duration", target.load));
            }
            let offset = scaled.ids.len();
            scaled.ids.extend(trace.blocks(request).iter().map(|id| own(*id)));
            let behind = scaled.ids.len();
            scaled.ids.extend(trace.generated(request).iter().map(|id| own(*id)));
            scaled.requests.push(Request { at, offset, generated: (behind, request.generated.1), ..*request });
        }
        scaled.distinct = (copy + 1) * trace.distinct;
    }
    scaled.requests.sort_by(|a, b| a.at.total_cmp(&b.at));
    scaled.seconds = (trace.seconds * stretch).min(target.seconds);
    Ok(scaled)
}

/// Work that arrives per second and unit of capacity, if all memory were one LRU cache.
fn pooled_work(trace: &Trace, target: &Target, hardware: &Hardware, lru: &mut Lru) -> f64 {
    lru.clear(trace.distinct as usize);
    let from = target.warm * trace.seconds;
    let mut work = 0.0;
    for request in &trace.requests {
        let ids = trace.blocks(request);
        let full = trace.full(request) as usize;
        // The last token is always computed, so a prompt that is all there misses one block.
        let usable = full.min(((request.input - 1) / trace.block_tokens) as usize);
        let hits = ids[..usable].iter().take_while(|id| lru.contains(**id)).count() as u32;
        for id in trace.generated(request).iter().rev().chain(ids[..full].iter().rev()) {
            lru.touch(*id);
        }
        if request.at >= from {
            work += hardware.seconds(request.input, request.output, hits * trace.block_tokens);
        }
    }
    work / (trace.seconds - from).max(1e-9) / target.capacity
}

const NONE: u32 = u32::MAX;

/// Dense ids in the order of their last use.
struct Lru {
    /// Neighbours by id, older and newer; `absent` ids have themselves as the older one.
    links: Vec<(u32, u32)>,
    oldest: u32,
    newest: u32,
    len: usize,
    capacity: usize,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Self { links: Vec::new(), oldest: NONE, newest: NONE, len: 0, capacity: capacity.max(1) }
    }

    fn clear(&mut self, ids: usize) {
        self.links.clear();
        self.links.extend((0..ids as u32).map(|id| (id, NONE)));
        (self.oldest, self.newest, self.len) = (NONE, NONE, 0);
    }

    fn contains(&self, id: u32) -> bool {
        self.links[id as usize].0 != id
    }

    fn take_out(&mut self, id: u32) {
        let (older, newer) = self.links[id as usize];
        if older == NONE {
            self.oldest = newer
        } else {
            self.links[older as usize].1 = newer
        }
        if newer == NONE {
            self.newest = older
        } else {
            self.links[newer as usize].0 = older
        }
        self.links[id as usize] = (id, NONE);
        self.len -= 1;
    }

    fn touch(&mut self, id: u32) {
        if self.contains(id) {
            self.take_out(id);
        } else if self.len >= self.capacity {
            self.take_out(self.oldest);
        }
        self.links[id as usize] = (self.newest, NONE);
        if self.newest == NONE {
            self.oldest = id
        } else {
            self.links[self.newest as usize].1 = id
        }
        self.newest = id;
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_lru_holds_the_last_used(uses in proptest::collection::vec(0u32..12, 1..80), capacity in 1usize..8) {
            let mut lru = Lru::new(capacity);
            lru.clear(12);
            let mut order: Vec<u32> = Vec::new();
            for id in uses {
                lru.touch(id);
                order.retain(|known| *known != id);
                order.push(id);
                let held = &order[order.len().saturating_sub(capacity)..];
                for id in 0..12 {
                    prop_assert_eq!(lru.contains(id), held.contains(&id));
                }
            }
        }
    }
}
