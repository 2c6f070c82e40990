//! `mirror-prefix-cache-producer`: the caches of the endpoints, block by block, as their engines keep them.
//!
//! Reading order: [`super::prefix`] (what it shares with the [approximate producer](super::approx_prefix)),
//! [`learnt`] (bytes per token, correction of the capacity), then the plugin below.
//!
//! Like the approximate producer it knows which blocks an endpoint holds from the prompts that were sent there.
//! What it adds is when they go. An engine pins the blocks of a request while it runs, puts them back when it
//! ends, deepest first, and evicts those that have lain longest. The mirror does the same with the same capacity,
//! so that it forgets a block when the engine does:
//!
//! ```text
//! room  = C - min(C / 2, outputReserveTokens * requests in flight)      per endpoint, in blocks of the index
//! C     = num_gpu_blocks * block_size * bytes per token / bytes per block * correction
//! age   = now - end of the last request that used the block             A: of the block that goes next
//! tau   = mean of the ages of deepest matched blocks over 0.5 s         0.99 of the old, 0.01 of the new one
//! ```
//!
//! A block counts as present from the moment its request is routed, and cannot go while a request with it is in
//! flight. `A` is infinite while less than 97 % of the room is taken. The room that is kept free for answers goes
//! back to prompts when their request ends.
//!
//! **Bytes and tokens.** The index counts in blocks of four bytes a token; engines in tokens of their model.
//! Bytes per token are learnt per target model, and per endpoint for its capacity, from the `prompt_tokens` of
//! answers ([`learnt::Measure`]). Only conversions change with what is learnt, never the blocks themselves.
//!
//! **Correction.** Where an answer names `cached_tokens`, they are held against what was predicted when it was
//! routed: a shortfall of more than a block and a sixteenth times 0.95; more than predicted, by over a block and
//! the longest answer of late, while the mirror is full, times 1.02, and 1.2 if it was more than twice what was predicted
//! besides; a prediction that came true times 1.001, up to 1.
//! The factor stays within 0.1 to 4 for capacities from metrics, 1/64 to 16 for assumed ones. Used are only
//! answers that completed, of a single prompt and a single profile, and not those of which the data plane says
//! that another endpoint gave them; where it reports nothing that cannot be known, and the endpoint that was
//! picked is taken to have answered.
//!
//! **Without metrics** an endpoint is given `lruCapacityPerServer` blocks as by the approximate producer; the rest
//! works as it does with them. `/debug/plugins/state` says for how many endpoints that holds.
//!
//! # When it misleads
//! It sees what this process sends. Traffic past it and other replicas take room in the engine that the mirror
//! does not know of: the correction then finds a smaller capacity. Engines that do not evict by last use, or have
//! tiers with rules of their own, differ. Generated text is not indexed (the answer of the last turn is a miss
//! once), though it lies in the engine's cache after the request: with answers much longer than
//! prompts the correction has to make up for that. An engine never reuses the very last token of a prompt.
//!
//! # Sources
//! The rules of eviction are those of vLLM's block pool (V1). That an exact mirror beats a longer list, and the
//! constants 1024, 97 %, 0.95 and 0.99, come from simulation on public traces.
//!
//! Rejected: a list of blocks per endpoint (a probe per block and endpoint; the tree gives the same order, and
//! tests compare with one); ageing by insertion (twice the prediction errors); a lock per endpoint for ages (they
//! are read for every endpoint in each pick).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::prefix::index::{Index, Order, Pin, SHARDS, Stay};
use super::prefix::{Blocks, Seen, debug_page, engine_tokens, holders, index_bytes, look_again};
use crate::domain::{
    Endpoint, InferenceRequest, Outcome, PrefixMatch, Prompt, Signals, Slot, Snapshot, Timestamp, Usage,
};
use crate::params;
use crate::scheduling::params::{Params, Quantity};
use crate::scheduling::plugin::{
    About, Build, Built, Commit, End, Metric, Need, Producer, ResponseStart, Routed, Row, SignalKind, Stability, Watch,
};

pub mod learnt;

use learnt::{ASSUMED, Answers, Measure, REPORTED, Ratios, is_telling};

/// Bytes per token in the stream of a prompt, and so in the size of a block.
const STREAM_BYTES: f64 = 4.0;

/// Reuse age before anything was reused, in seconds.
const FIRST_REUSE_AGE: f32 = 30.0;
/// Weight of one reuse in the mean age.
const REUSE_WEIGHT: f32 = 0.01;
/// Reuses that came sooner, in seconds, are of the same burst and say nothing of how long a block must lie.
const LEAST_REUSE_AGE: f32 = 0.5;

params! {
    /// Parameters of `mirror-prefix-cache-producer`.
    pub struct MirrorPrefixParams {
        /// Take block size and capacity from the metrics of the model servers.
        auto_tune: bool = true, "autoTune";
        /// Tokens per block; without it the engine's, at least 64.
        block_size_tokens: Option<i64> = None, "blockSizeTokens";
        /// Longest prefix to compare, in tokens; 0 leaves the limit to `maxPrefixBlocksToMatch`.
        max_prefix_tokens: i64 = 131_072, "maxPrefixTokensToMatch", 0..;
        /// Longest prefix to compare, in blocks, if the limit in tokens is 0; 0 is no limit but 131072 blocks.
        max_prefix_blocks: i64 = 2_048, "maxPrefixBlocksToMatch", 0..;
        /// Blocks that an endpoint is believed to hold, if its metrics do not say.
        lru_capacity: i64 = 31_250, "lruCapacityPerServer", 1..=4_294_967_295;
        /// Memory of the whole index.
        max_index_bytes: Quantity = Quantity(256 << 20), "maxIndexBytes";
        /// Correct the capacity of each endpoint by the `cached_tokens` of its answers.
        correct_capacity: bool = true, "correctCapacity";
        /// Tokens kept free for each request in flight: its answer and the end of its prompt that fills no block.
        output_reserve_tokens: u32 = 1_024, "outputReserveTokens", 0..=1_048_576;
    }
}

/// This producer's entry in the plugin table.
pub const ROW: Row = Row {
    about: About {
        kind: "mirror-prefix-cache-producer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Mirrors each endpoint's prefix cache: what it holds, and what it will evict next.",
        params: MirrorPrefixParams::SPEC,
        sample: "- type: mirror-prefix-cache-producer\n  parameters:\n    autoTune: true\n    correctCapacity: true\n    outputReserveTokens: 1024\n    maxIndexBytes: 256Mi\n",
    },
    build,
};

fn build(build: &mut Build<'_>) -> Option<Built> {
    let params: MirrorPrefixParams = build.params();
    let (size, tune) = (params.block_size_tokens, params.auto_tune);
    let blocks = Blocks::new(build, size, tune, params.max_prefix_tokens, params.max_prefix_blocks)?;
    let bytes = index_bytes(build, params.max_index_bytes)?;
    build.need(Need::Prompts);
    build.need(Need::Usage);
    let shows_caches = build.registry.watch(Need::Caches);
    if params.auto_tune {
        build.need(Need::Metric(Metric::CacheInfo));
    }
    let capacity = u64::try_from(params.lru_capacity).unwrap_or(1);
    let index = Arc::new(Index::with_shards(SHARDS, bytes, capacity).ordered(Order::Ended));
    let plugin = Arc::new(MirrorPrefix {
        ordinal: build.produces(SignalKind::Prefix),
        mirror: Arc::new(Mirror {
            index: Arc::clone(&index),
            auto_tune: params.auto_tune,
            correct: params.correct_capacity,
            capacity,
            reserve: f64::from(params.output_reserve_tokens),
            shows_caches,
            ratios: Ratios::default(),
            answers: Answers::default(),
            reuse_age: AtomicU32::new(FIRST_REUSE_AGE.to_bits()),
            beliefs: Mutex::default(),
            tuning: ArcSwap::from_pointee(Tuning {
                seen: Seen::default(),
                block_tokens: blocks.first_size(),
                capacity: Box::default(),
            }),
        }),
        blocks,
    });
    Some(Built {
        producer: Some(Arc::clone(&plugin) as Arc<dyn Producer>),
        commit: Some(plugin),
        handle: Some(index),
        ..Built::default()
    })
}

/// What follows from one published state of the pool.
struct Tuning {
    /// The state; also the names for the debug page.
    seen: Seen,
    block_tokens: u32,
    /// Tokens that each endpoint has room for after correction, by slot; bits of an `f32`, NaN if not known.
    capacity: Box<[AtomicU32]>,
}

/// What is believed of one endpoint.
#[derive(Clone, Copy, Default)]
struct Belief {
    generation: u64,
    /// Tokens that its metrics named last, and its tokens per block.
    reported: Option<u64>,
    engine_block: u32,
    /// Of the capacity.
    correction: Correction,
    /// Of what it was sent.
    measure: Measure,
}

#[derive(Clone, Copy)]
struct Correction(f64);

impl Default for Correction {
    fn default() -> Self {
        Self(1.0)
    }
}

/// What producer, commits and watches share.
struct Mirror {
    index: Arc<Index>,
    auto_tune: bool,
    correct: bool,
    /// Blocks per endpoint without metrics.
    capacity: u64,
    /// Tokens kept free per request in flight.
    reserve: f64,
    /// Whether anybody reads sizes and ages.
    shows_caches: Arc<AtomicBool>,
    ratios: Ratios,
    answers: Answers,
    /// Bits of an `f32`, in seconds.
    reuse_age: AtomicU32,
    /// By slot. Locked at the end of requests, and when the pool publishes something new.
    beliefs: Mutex<Vec<Belief>>,
    tuning: ArcSwap<Tuning>,
}

impl Mirror {
    /// What follows from the state of the pool. Looks at every endpoint when the pool has published something
    /// new, and at nothing otherwise.
    fn tune(&self, blocks: &Blocks, snapshot: &Snapshot) -> arc_swap::Guard<Arc<Tuning>> {
        let tuning = self.tuning.load();
        if tuning.seen.is(snapshot) {
            return tuning;
        }
        let topology = &snapshot.topology;
        let next = Tuning {
            seen: Seen::of(snapshot),
            block_tokens: blocks.size(snapshot),
            capacity: (0..topology.capacity()).map(|_| AtomicU32::new(f32::NAN.to_bits())).collect(),
        };
        {
            let mut beliefs = self.beliefs.lock();
            if beliefs.len() < topology.capacity() {
                beliefs.resize(topology.capacity(), Belief::default());
            }
            for endpoint in topology.endpoints() {
                let Some(belief) = beliefs.get_mut(endpoint.slot.index()) else { continue };
                // A thread with an older snapshot must not undo what is known of the slot's next endpoint.
                if belief.generation > endpoint.generation {
                    continue;
                }
                if belief.generation < endpoint.generation {
                    *belief = Belief { generation: endpoint.generation, ..Belief::default() };
                }
                if self.auto_tune {
                    belief.heed(
                        engine_tokens(snapshot, endpoint.slot),
                        snapshot.loads.detail(endpoint.slot).and_then(|detail| detail.block_size),
                    );
                }
                self.apply(endpoint.slot, belief, &next);
            }
        }
        self.tuning.store(Arc::new(next));
        self.tuning.load()
    }

    /// Makes the index and the readers follow a belief.
    fn apply(&self, slot: Slot, belief: &Belief, tuning: &Tuning) {
        let ratio = belief.measure.ratio();
        let block_bytes = f64::from(tuning.block_tokens) * STREAM_BYTES;
        let Correction(factor) = belief.correction;
        let blocks = match belief.reported {
            Some(tokens) => tokens as f64 * ratio / block_bytes,
            None => self.capacity as f64,
        };
        let reserve = (self.reserve * ratio / block_bytes).ceil();
        self.index.set_room(slot.0, (blocks * factor) as u64, reserve as u64);
        if let Some(place) = tuning.capacity.get(slot.index()) {
            let tokens = belief.reported.map_or(f32::NAN, |tokens| (tokens as f64 * factor) as f32);
            place.store(tokens.to_bits(), Ordering::Relaxed);
        }
    }

    /// Adds what is known of caches and lengths to what was found for `request`.
    fn describe(&self, request: &InferenceRequest, tuning: &Tuning, found: &mut PrefixMatch) {
        let ratio = self.ratios.of(&request.target_model);
        let block_bytes = tuning.block_tokens as f32 * STREAM_BYTES as f32;
        found.learnt_block_tokens = ratio.map_or(0.0, |ratio| block_bytes / ratio);
        found.prompt_tokens = ratio.map(|ratio| (stream_bytes(request) as f64 / f64::from(ratio)).round() as u64);
        if !self.shows_caches.load(Ordering::Relaxed) {
            return;
        }
        let caches = found.caches.get_or_insert_default();
        caches.capacity.clear();
        caches.capacity.extend(tuning.capacity.iter().map(|tokens| f32::from_bits(tokens.load(Ordering::Relaxed))));
        caches.oldest_age.resize(tuning.capacity.len(), f32::INFINITY);
        // A request that is held was received a while ago; the index hears of the time whenever one comes or ends.
        self.index.oldest_ages(request.received_at.max(self.index.latest()), &mut caches.oldest_age);
        caches.reuse_age = f32::from_bits(self.reuse_age.load(Ordering::Relaxed));
    }

    /// Notes that a block was used again after `idle` seconds.
    fn reused(&self, idle: f32) {
        if idle > LEAST_REUSE_AGE {
            let mix = |age: u32| Some((f32::from_bits(age) * (1.0 - REUSE_WEIGHT) + idle * REUSE_WEIGHT).to_bits());
            let _ = self.reuse_age.fetch_update(Ordering::Relaxed, Ordering::Relaxed, mix);
        }
    }

    /// Learns from the counts of an answer that completed; `here` unless another endpoint gave it.
    fn learn(&self, routed: &Expected, usage: &Usage, here: bool) {
        if let Some(answer) = usage.completion_tokens {
            self.answers.note(answer);
        }
        let Some(tokens) = usage.prompt_tokens else { return };
        let cached = usage.cached_tokens.filter(|_| self.correct);
        if !is_telling(routed.bytes, tokens) || cached.is_some_and(|cached| cached > tokens) {
            return;
        }
        self.ratios.add(&routed.model, routed.bytes, tokens);
        if !here {
            return;
        }
        let slot = routed.endpoint.slot;
        let full = self.index.is_full(slot.0);
        let tuning = self.tuning.load();
        let mut beliefs = self.beliefs.lock();
        let known = beliefs.get_mut(slot.index()).filter(|b| b.generation == routed.endpoint.generation);
        let Some(belief) = known else { return };
        belief.measure.add(routed.bytes, tokens);
        if let (Some(cached), Some(prediction)) = (cached, &routed.prediction) {
            // In tokens of this very prompt, whatever it is made of.
            let block = f64::from(routed.block_tokens) * STREAM_BYTES * tokens as f64 / routed.bytes as f64;
            let outcome = learnt::Outcome {
                predicted: f64::from(prediction.blocks) * block,
                delivered: cached as f64,
                block: block.max(f64::from(belief.engine_block)),
                output: self.reserve.max(self.answers.longest()),
                idle: prediction.idle,
                full,
            };
            belief.correction.0 = outcome.correct(belief.correction.0, belief.bounds());
        }
        self.apply(slot, belief, &tuning);
    }
}

impl Belief {
    /// Takes over what the metrics say. Missing values change nothing: a server that misses a scrape keeps its
    /// cache.
    fn heed(&mut self, tokens: Option<u64>, block: Option<u32>) {
        if tokens.is_some() && tokens != self.reported {
            // What was corrected was another number.
            (self.reported, self.correction) = (tokens, Correction::default());
        }
        self.engine_block = block.unwrap_or(self.engine_block);
    }

    fn bounds(&self) -> &'static std::ops::RangeInclusive<f64> {
        if self.reported.is_some() { &REPORTED } else { &ASSUMED }
    }
}

fn stream_bytes(request: &InferenceRequest) -> u64 {
    request.prompts.iter().map(Prompt::byte_len).sum()
}

/// The plugin; see the module documentation.
struct MirrorPrefix {
    mirror: Arc<Mirror>,
    ordinal: usize,
    blocks: Blocks,
}

impl Producer for MirrorPrefix {
    fn produce(&self, request: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals) {
        let tuning = self.mirror.tune(&self.blocks, snapshot);
        let found = signals.prefix_mut(self.ordinal);
        self.blocks.find(request, snapshot, tuning.block_tokens, &self.mirror.index, found);
        self.mirror.describe(request, &tuning, found);
    }

    fn refresh(&self, request: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals) {
        let tuning = self.mirror.tune(&self.blocks, snapshot);
        let found = signals.prefix_mut(self.ordinal);
        // Chains of another block size have nothing to be found.
        if found.block_tokens == tuning.block_tokens {
            look_again(snapshot, &self.mirror.index, found);
        } else {
            self.blocks.find(request, snapshot, tuning.block_tokens, &self.mirror.index, found);
        }
        self.mirror.describe(request, &tuning, found);
    }

    fn size(&self) -> Option<u64> {
        Some(self.mirror.index.entries())
    }

    fn debug_state(&self) -> Option<serde_json::Value> {
        let mirror = &self.mirror;
        let (tuning, beliefs) = (mirror.tuning.load(), mirror.beliefs.lock().clone());
        let topology = &tuning.seen.topology;
        let belief = |slot: u32| beliefs.get(slot as usize).copied().unwrap_or_default();
        let mut ages = vec![f32::INFINITY; topology.capacity()];
        mirror.index.oldest_ages(mirror.index.latest(), &mut ages);
        let mut page = debug_page(&mirror.index, topology, tuning.block_tokens, |held, page| {
            let Belief { reported, correction, measure, .. } = belief(held.slot);
            page["room"] = held.room.into();
            page["inFlight"] = held.in_flight.into();
            page["reportedTokens"] = reported.into();
            page["correction"] = correction.0.into();
            page["bytesPerToken"] = measure.ratio().into();
            // Infinity is no JSON: null while there is room.
            page["oldestAge"] = ages.get(held.slot as usize).copied().into();
        });
        let reported = topology.endpoints().filter(|e| belief(e.slot.0).reported.is_some()).count();
        page["reportedCapacities"] = reported.into();
        page["assumedCapacities"] = (topology.len() - reported).into();
        page["reuseAge"] = f32::from_bits(mirror.reuse_age.load(Ordering::Relaxed)).into();
        let ratio = |(name, ratio): (Box<str>, f32)| (String::from(name), serde_json::Value::from(ratio));
        page["bytesPerToken"] = serde_json::Value::Object(mirror.ratios.list().into_iter().map(ratio).collect());
        Some(page)
    }
}

impl Commit for MirrorPrefix {
    fn commit(&self, routed: &Routed<'_>) -> Option<Box<dyn Watch>> {
        let found = routed.signals.prefix.get(self.ordinal)?;
        let index = &self.mirror.index;
        let destination = routed.decision.destination();
        let holders = holders(routed.decision);
        let (mut stays, mut pins) = (SmallVec::new(), SmallVec::new());
        let mut prediction = None;
        for endpoint in &holders {
            let (slot, generation) = (endpoint.slot.0, endpoint.generation);
            stays.extend(index.stay(slot, generation));
            for chain in &found.chains {
                let Some(pin) = index.insert_at(slot, generation, chain, routed.now) else { continue };
                if let Some(idle) = pin.idle() {
                    self.mirror.reused(idle);
                }
                // Of several prompts nobody could say which one fell short, and of several endpoints which one.
                if found.chains.len() == 1 && holders.len() == 1 {
                    prediction = Some(Prediction { blocks: pin.matched(), idle: pin.idle().is_some() });
                }
                pins.push(pin);
            }
        }
        let expected = Expected {
            endpoint: Arc::clone(destination),
            model: routed.request.target_model.clone(),
            bytes: stream_bytes(routed.request),
            block_tokens: found.block_tokens,
            prediction,
        };
        Some(Box::new(InFlight { mirror: Arc::clone(&self.mirror), expected, elsewhere: false, stays, pins }))
    }

    fn endpoint_removed(&self, endpoint: &Endpoint) {
        self.mirror.index.purge(endpoint.slot.0, endpoint.generation);
    }
}

/// Blocks that an endpoint was believed to hold when a request was sent there.
struct Prediction {
    blocks: u32,
    /// Whether the deepest one was free to be evicted until then.
    idle: bool,
}

/// What the counts of an answer are held against.
struct Expected {
    endpoint: Arc<Endpoint>,
    model: Box<str>,
    /// Length of all prompts in the stream of bytes.
    bytes: u64,
    block_tokens: u32,
    prediction: Option<Prediction>,
}

/// A request that the engine is working on.
struct InFlight {
    mirror: Arc<Mirror>,
    expected: Expected,
    elsewhere: bool,
    /// Given back by their own `Drop`, if not at the end of the request; before the pins, whose release evicts.
    stays: SmallVec<[Stay; 1]>,
    pins: SmallVec<[Pin; 1]>,
}

impl InFlight {
    fn give_back(&mut self, now: Timestamp) {
        self.stays.clear();
        self.pins.drain(..).for_each(|pin| pin.end(now));
    }
}

impl Watch for InFlight {
    fn response_headers(&mut self, start: &ResponseStart<'_>, _: &mut Vec<(&'static str, String)>) {
        let destination = self.expected.endpoint.destination();
        self.elsewhere = start.served.endpoint().is_some_and(|served| served != destination);
    }

    fn finished(&mut self, end: &End) {
        self.give_back(end.now);
        if end.outcome == Outcome::Completed {
            self.mirror.learn(&self.expected, &end.usage, !self.elsewhere);
        }
    }
}

#[cfg(test)]
mod tests;
