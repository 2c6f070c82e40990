//! `no-hit-lru-scorer`: a prompt that nobody has cached goes where the last such prompt is longest ago.
//!
//! Formula. A request is cold if no endpoint holds a block of its prompt. For a request that is not
//! cold all get 0.5. For a cold one, with n candidates, 1 - rank / (n - 1): rank counts the
//! candidates that were given their last cold request earlier. Those that never were given one rank
//! 0, all of them. A single candidate gets 1.
//!
//! Why: a cold request fills a cache with new blocks, and the load scorers do not see that. Taking
//! turns lets the caches of a pool grow evenly, instead of on whichever endpoint has the shortest
//! queue.
//!
//! Inputs: the prefix signal of the named producer, else of the first one; an
//! `mirror-prefix-cache-producer` is created when none is configured. Without the signal, and for
//! prompts shorter than one block, every request is cold. What is learnt is learnt in [`Commit`]:
//! the first pick of every profile of a cold request is the latest of all. Nothing that endpoints
//! report is read, so there is no missing or stale reading.
//!
//! State: one number per slot, the time of the last cold request on a counter that all share. It is
//! read without a lock and costs 8 bytes per endpoint; an endpoint that leaves the pool is forgotten
//! with its slot. `lruSize` bounds how many ages are told apart in one decision: the candidates beyond
//! that many latest ones count as never used. So a decision costs a sort of the candidates if it is
//! cold, and a look at the prefix signal if it is not.
//!
//! When it misleads: it counts turns, not sizes; ten short prompts and ten long ones are ten turns.
//! Requests that are decided on at the very same moment do not see each other's turn, and may go
//! to the same endpoint. Filters that leave two candidates make n small and the steps between scores
//! large.
//!
//! Where ours differs: endpoints that never had a cold request share the best score, and the picker
//! draws among them (in the picker we replace they are ranked in the order of the list, so after a
//! start all replicas begin with the same endpoint); and "no endpoint" means the whole pool, not
//! only what the filters left.
//!
//! Rejected: an LRU list of names behind a lock (every decision would copy it, whatever the number
//! of candidates), and 1 - age / oldest instead of ranks (one endpoint that was idle for a day would make
//! all the others equal).
//!
//! ```yaml
//! - type: no-hit-lru-scorer
//!   parameters:
//!     lruSize: 1024
//! ```

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::domain::{Endpoint, Signals, Slot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{
    About, Build, Built, Commit, Cycle, Need, Routed, Row, Scorer, SignalKind, Stability, Watch,
};

const DEFAULT_LRU_SIZE: usize = 1024;

crate::params! {
    /// Parameters of `no-hit-lru-scorer`.
    pub struct Params {
        /// Endpoints told apart by their last cold request; earlier ones count as never used; 0 is the default.
        lru_size: usize = 1024, "lruSize";
        /// Name of the prefix producer to read; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "no-hit-lru-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Lets endpoints take turns with prompts that nobody has cached, the least recently used first.",
        params: Params::SPEC,
        sample: "- type: no-hit-lru-scorer\n  parameters:\n    lruSize: 1024\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let name = params.prefix_match_info_producer_name.as_deref();
    let producer = b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", name);
    b.need(Need::Prompts);
    let lru_size = match params.lru_size {
        0 => DEFAULT_LRU_SIZE,
        size => size,
    };
    let plugin = Arc::new(NoHitLru { producer, lru_size, turns: Turns::default() });
    Some(Built { scorer: Some(Arc::clone(&plugin) as _), commit: Some(plugin), ..Built::default() })
}

const CHUNK: usize = 1024;
/// As many slots as a pool can have; endpoints in slots beyond them would count as never used.
const CHUNKS: usize = 64;

/// When each slot had its last turn; 0 is never. A chunk of slots is allocated with its first turn.
struct Turns {
    last: AtomicU64,
    chunks: [OnceLock<Box<[AtomicU64]>>; CHUNKS],
}

impl Default for Turns {
    fn default() -> Self {
        Self { last: AtomicU64::new(0), chunks: [const { OnceLock::new() }; CHUNKS] }
    }
}

impl Turns {
    fn cell(&self, slot: Slot) -> Option<&AtomicU64> {
        self.chunks.get(slot.index() / CHUNK)?.get()?.get(slot.index() % CHUNK)
    }

    #[inline]
    fn of(&self, slot: Slot) -> u64 {
        self.cell(slot).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    fn take(&self, slot: Slot) {
        let Some(chunk) = self.chunks.get(slot.index() / CHUNK) else { return };
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU64::new(0)).collect());
        let turn = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        // Of two turns at once the later one stays.
        chunk[slot.index() % CHUNK].fetch_max(turn, Ordering::Relaxed);
    }

    fn forget(&self, slot: Slot) {
        if let Some(cell) = self.cell(slot) {
            cell.store(0, Ordering::Relaxed);
        }
    }
}

thread_local! {
    /// The turns of the candidates of one decision, kept for its memory alone.
    static SORTED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

struct NoHitLru {
    producer: usize,
    /// Above 0.
    lru_size: usize,
    turns: Turns,
}

impl NoHitLru {
    fn is_cold(&self, signals: &Signals) -> bool {
        signals.prefix.get(self.producer).is_none_or(|prefix| prefix.matched.iter().all(|blocks| *blocks == 0))
    }
}

impl Scorer for NoHitLru {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        if !self.is_cold(cx.signals) {
            out.fill(0.5);
            return;
        }
        SORTED.with_borrow_mut(|sorted| {
            sorted.clear();
            sorted.extend(candidates.iter().map(|slot| self.turns.of(*slot)));
            sorted.sort_unstable();
            // All others are among the `lru_size` latest.
            let forgotten = sorted.len().saturating_sub(self.lru_size);
            let last = sorted.len().saturating_sub(1);
            let step = if last == 0 { 0.0 } else { 1.0 / last as f32 };
            for (value, slot) in out.iter_mut().zip(candidates) {
                let turn = self.turns.of(*slot);
                // A turn that was taken since the list was made ranks behind all others.
                let earlier = sorted.partition_point(|other| *other < turn).min(last);
                let rank = if earlier < forgotten { 0 } else { earlier };
                *value = 1.0 - rank as f32 * step;
            }
        });
    }
}

impl Commit for NoHitLru {
    fn commit(&self, routed: &Routed<'_>) -> Option<Box<dyn Watch>> {
        if self.is_cold(routed.signals) {
            for picked in routed.decision.profiles.iter().filter_map(|result| result.picked.first()) {
                self.turns.take(picked.endpoint.slot);
            }
        }
        None
    }

    fn endpoint_removed(&self, endpoint: &Endpoint) {
        // A decision on the older snapshot may still give it a turn. The slot rests longer than any
        // decision takes, and a newcomer that starts with an old turn is at worst second to others.
        self.turns.forget(endpoint.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PrefixMatch;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{NOW, Scene, build, build_in, decision, errors, pool, text};
    use crate::scheduling::plugin::Registry;
    use proptest::prelude::*;

    fn turn(built: &Built, scene: &Scene, profiles: &[(&str, &[u32])]) {
        let decision = decision(scene, profiles);
        let routed = Routed { request: &scene.request, decision: &decision, signals: &scene.signals, now: NOW };
        assert!(built.commit.as_ref().unwrap().commit(&routed).is_none());
    }

    fn matched(blocks: &[u32]) -> PrefixMatch {
        PrefixMatch { block_tokens: 64, total_blocks: 8, matched: blocks.to_vec(), ..PrefixMatch::default() }
    }

    #[test]
    fn the_least_recently_used_comes_first() {
        let (built, scene) = (build(&ROW, vec![]), pool(5));
        assert_eq!(scene.scores(&built), [1.0; 5], "nobody had a turn");
        turn(&built, &scene, &[("default", &[3, 0])]);
        assert_eq!(scene.scores(&built), [1.0, 1.0, 1.0, 0.0, 1.0], "a fallback had none");
        turn(&built, &scene, &[("default", &[1])]);
        assert_eq!(scene.scores(&built), [1.0, 0.0, 1.0, 0.25, 1.0]);
        for slot in [4, 0, 2, 3] {
            turn(&built, &scene, &[("default", &[slot])]);
        }
        assert_eq!(scene.scores(&built), [0.5, 1.0, 0.25, 0.0, 0.75]);
        turn(&built, &scene, &[("decode", &[1]), ("prefill", &[4])]);
        assert_eq!(scene.scores(&built), [1.0, 0.25, 0.75, 0.5, 0.0], "helpers fill caches too");
        assert_eq!(pool(1).scores(&built), [1.0], "alone");
        assert!(pool(0).scores(&built).is_empty());
    }

    #[test]
    fn a_request_with_a_hit_anywhere_says_and_teaches_nothing() {
        let (built, mut scene) = (build(&ROW, vec![]), pool(3));
        *scene.signals.prefix_mut(0) = matched(&[0, 0, 1]);
        turn(&built, &scene, &[("default", &[0])]);
        assert_eq!(scene.scores(&built), [0.5; 3]);
        *scene.signals.prefix_mut(0) = matched(&[0, 0, 0]);
        assert_eq!(scene.scores(&built), [1.0; 3], "the warm request was no turn");
        turn(&built, &scene, &[("default", &[0])]);
        assert_eq!(scene.scores(&built), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn reads_the_producer_that_it_was_given() {
        let (built, mut scene) = (build(&ROW, vec![]), pool(2));
        *scene.signals.prefix_mut(1) = matched(&[8, 8]);
        assert_eq!(scene.scores(&built), [1.0; 2], "the second producer is not ours");
        let mut registry = Registry::default();
        build_in(&mut registry, &ROW, vec![]);
        assert_eq!(registry.needs.keys().collect::<Vec<_>>(), [&Need::Prompts]);
        assert_eq!(registry.take_missing(), [SignalKind::Prefix]);
        let name = vec![("prefixMatchInfoProducerName", text("mine"))];
        assert!(errors(&ROW, name)[0].contains("no producer is called"));
        assert!(errors(&ROW, vec![("lruSize", Value::Integer(-1))])[0].contains("out of range"));
    }

    #[test]
    fn an_endpoint_that_left_is_forgotten_and_slots_have_a_bound() {
        let (built, scene) = (build(&ROW, vec![]), pool(3));
        turn(&built, &scene, &[("default", &[1])]);
        let gone = scene.snapshot.topology.get(Slot(1)).unwrap();
        built.commit.as_ref().unwrap().endpoint_removed(gone);
        assert_eq!(scene.scores(&built), [1.0; 3]);
        let turns = Turns::default();
        for slot in [0, 1_023, 1_024, 65_535, 65_536, u32::MAX] {
            turns.take(Slot(slot));
        }
        let known = [0, 1, 1_023, 1_024, 65_535, 65_536, u32::MAX].map(|slot| turns.of(Slot(slot)));
        assert_eq!(known, [1, 0, 2, 3, 4, 0, 0]);
        turns.forget(Slot(u32::MAX));
    }

    proptest! {
        /// The list that the picker we replace keeps, over the whole pool; ours has shared ranks for the unused.
        #[test]
        fn ranks_are_those_of_an_lru_list(
            n in 2usize..12, size in 1usize..14, turns in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let built = build(&ROW, vec![("lruSize", Value::Integer(size as i64))]);
            let scene = pool(n);
            let mut list: Vec<u32> = Vec::new();
            for slot in turns {
                let slot = slot.index(n) as u32;
                turn(&built, &scene, &[("default", &[slot])]);
                list.retain(|s| *s != slot);
                list.push(slot);
                if list.len() > size {
                    list.remove(0);
                }
                let unused = n - list.len();
                let expected: Vec<f32> = (0..n as u32)
                    .map(|s| list.iter().position(|l| *l == s).map_or(0, |p| unused + p))
                    .map(|rank| 1.0 - rank as f32 / (n - 1) as f32)
                    .collect();
                for (score, expected) in scene.scores(&built).iter().zip(&expected) {
                    prop_assert!((score - expected).abs() < 1e-6, "{:?} {:?}", scene.scores(&built), expected);
                }
            }
        }
    }
}
