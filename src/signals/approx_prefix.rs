//! `approx-prefix-cache-producer`: which endpoint probably holds how much of a prompt, learnt from where
//! earlier prompts were sent.
//!
//! Reading order: [`hash`] (a prompt as a chain of block hashes), [`tree`] (who holds which blocks),
//! [`index`] (shards, capacity, bounds, pins), then the plugin below.
//!
//! The producer hashes the prompt once and looks the chain up; the commit teaches the index that every
//! endpoint the decision picked (the destination, and a prefill endpoint if there is one) will hold the
//! prompt, and pins those blocks while the request is in flight. Scorers and the in-flight producer
//! read the result from [`Signals::prefix`](crate::domain::Signals).
//!
//! # When it misleads
//! Only prompts are recorded, never generated text, so the answer of the last turn is a miss once.
//! Nothing confirms that an engine kept a block; eviction here copies the engine's (least recently
//! used, tail first) with the engine's capacity. Tokens are four bytes each, so capacity and cached
//! tokens are estimates. Several pickers do not share what they learn. An engine never reuses the very
//! last token of a prompt, so a full match is one block too good.
//!
//! # Differences from the picker we replace
//! Matches are contiguous from the root per endpoint; capacity is counted in the engine's tokens, and
//! follows the metrics when they change; memory is bounded in bytes; only full blocks count; an
//! explicit `blockSizeTokens` is taken as it is instead of being raised to 64.
//!
//! # Block size
//! `blockSizeTokens` if given. Otherwise, with `autoTune`, the largest block size that an endpoint
//! reports, at least 64 tokens; 64 without metrics. The largest, because it does not change with the
//! order of endpoints: another block size makes everything learnt useless (it is part of the seed), and
//! what was learnt then ages out.

use std::sync::Arc;

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use crate::domain::{Endpoint, InferenceRequest, LoadTable, Signals, Slot, Snapshot, Topology};
use crate::params;
use crate::scheduling::params::{Params, Quantity};
use crate::scheduling::plugin::{
    About, Build, Built, Commit, End, Metric, Need, Producer, Routed, Row, SignalKind, Stability, Watch,
};

pub mod hash;
pub mod index;
pub mod tree;

use index::{Index, Pin};

/// Tokens per block without metrics, and the least that `autoTune` chooses: smaller blocks cost more
/// and tell routing nothing more.
pub const DEFAULT_BLOCK_TOKENS: u32 = 64;

/// Largest block size accepted, in tokens.
const MAX_BLOCK_TOKENS: i64 = 1 << 16;

/// Blocks hashed per request over all its prompts when the configuration sets no limit; also the most
/// that it can set.
pub const MAX_REQUEST_BLOCKS: usize = 1 << 17;

/// Endpoints on the debug page.
const DEBUG_ENDPOINTS: usize = 100;

params! {
    /// Parameters of `approx-prefix-cache-producer`.
    pub struct ApproxPrefixParams {
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
    }
}

/// This producer's entry in the plugin table.
pub const ROW: Row = Row {
    about: About {
        kind: "approx-prefix-cache-producer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Estimates how much of a prompt each endpoint has cached, from where earlier prompts were sent.",
        params: ApproxPrefixParams::SPEC,
        sample: "- type: approx-prefix-cache-producer\n  parameters:\n    autoTune: true\n    maxPrefixTokensToMatch: 131072\n    lruCapacityPerServer: 31250\n    maxIndexBytes: 256Mi\n",
    },
    build,
};

fn build(build: &mut Build<'_>) -> Option<Built> {
    let params: ApproxPrefixParams = build.params();
    let key = "blockSizeTokens";
    let block_tokens = match params.block_size_tokens {
        Some(tokens) if tokens > MAX_BLOCK_TOKENS => {
            let message = format!("`{tokens}` is out of range: must be at most {MAX_BLOCK_TOKENS}");
            build.error(key, message, "write a number of tokens such as 64");
            return None;
        }
        Some(tokens) if tokens >= 1 => u32::try_from(tokens).ok(),
        Some(tokens) if params.auto_tune => {
            build.warn(key, format!("`{tokens}` is not positive and is ignored: `autoTune` is on"), "remove it");
            None
        }
        Some(tokens) => {
            let message = format!("`{tokens}` is out of range: must be at least 1 with `autoTune: false`");
            build.error(key, message, "write a number of tokens such as 64, or set `autoTune: true`");
            return None;
        }
        None => None,
    };
    if params.max_index_bytes.0 < 1 << 20 || params.max_index_bytes.0 > 64 << 30 {
        let message = format!("{} bytes is out of range: must be between 1Mi and 64Gi", params.max_index_bytes.0);
        build.error("maxIndexBytes", message, "write a quantity such as 256Mi");
        return None;
    }
    build.need(Need::Prompts);
    if params.auto_tune {
        build.need(Need::Metric(Metric::CacheInfo));
    }
    let capacity = u64::try_from(params.lru_capacity).unwrap_or(1);
    let index = Arc::new(Index::new(params.max_index_bytes.0, capacity));
    let plugin = Arc::new(ApproxPrefix {
        index: Arc::clone(&index),
        ordinal: build.produces(SignalKind::Prefix),
        auto_tune: params.auto_tune,
        block_tokens,
        max_tokens: u64::try_from(params.max_prefix_tokens).unwrap_or(0),
        max_blocks: u64::try_from(params.max_prefix_blocks).unwrap_or(0),
        capacity,
        tuning: ArcSwap::from_pointee(Tuning::untuned(block_tokens.unwrap_or(DEFAULT_BLOCK_TOKENS))),
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
    /// The state, to tell whether it is still the current one; also the names for the debug page.
    topology: Arc<Topology>,
    loads: Arc<LoadTable>,
    block_tokens: u32,
}

impl Tuning {
    fn untuned(block_tokens: u32) -> Self {
        Self { topology: Arc::default(), loads: Arc::default(), block_tokens }
    }
}

/// The plugin; see the module documentation.
struct ApproxPrefix {
    index: Arc<Index>,
    ordinal: usize,
    auto_tune: bool,
    /// Block size that the configuration fixes.
    block_tokens: Option<u32>,
    max_tokens: u64,
    max_blocks: u64,
    /// Blocks per endpoint without metrics.
    capacity: u64,
    tuning: ArcSwap<Tuning>,
}

impl ApproxPrefix {
    /// Tokens per block now. Looks at every endpoint when the pool has published something new, and
    /// at nothing otherwise.
    fn tune(&self, snapshot: &Snapshot) -> u32 {
        let tuning = self.tuning.load();
        if Arc::ptr_eq(&tuning.loads, &snapshot.loads) && Arc::ptr_eq(&tuning.topology, &snapshot.topology) {
            return tuning.block_tokens;
        }
        let block_tokens = self.block_tokens.unwrap_or_else(|| self.reported_block_tokens(snapshot));
        if self.auto_tune {
            for endpoint in snapshot.topology.endpoints() {
                let capacity = engine_tokens(snapshot, endpoint.slot)
                    .map_or(self.capacity, |tokens| (tokens / u64::from(block_tokens)).max(1));
                self.index.set_capacity(endpoint.slot.0, capacity);
            }
        }
        self.tuning.store(Arc::new(Tuning {
            topology: Arc::clone(&snapshot.topology),
            loads: Arc::clone(&snapshot.loads),
            block_tokens,
        }));
        block_tokens
    }

    fn reported_block_tokens(&self, snapshot: &Snapshot) -> u32 {
        let reported = |endpoint: &Arc<Endpoint>| snapshot.loads.detail(endpoint.slot)?.block_size;
        let largest = snapshot.topology.endpoints().filter_map(reported).max().filter(|_| self.auto_tune);
        largest.unwrap_or(0).clamp(DEFAULT_BLOCK_TOKENS, MAX_BLOCK_TOKENS as u32)
    }

    /// Most blocks of one prompt.
    fn max_blocks(&self, block_tokens: u32) -> usize {
        let blocks = match (self.max_tokens, self.max_blocks) {
            (0, 0) => u64::MAX,
            (0, blocks) => blocks,
            (tokens, _) => tokens / u64::from(block_tokens.max(1)),
        };
        usize::try_from(blocks).unwrap_or(usize::MAX).min(MAX_REQUEST_BLOCKS)
    }
}

/// Tokens that the KV cache of `slot` has room for, if its metrics say.
fn engine_tokens(snapshot: &Snapshot, slot: Slot) -> Option<u64> {
    let detail = snapshot.loads.detail(slot)?;
    let tokens = u64::from(detail.num_blocks?) * u64::from(detail.block_size?);
    (tokens > 0).then_some(tokens)
}

impl Producer for ApproxPrefix {
    fn produce(&self, request: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals) {
        let block_tokens = self.tune(snapshot);
        let found = signals.prefix_mut(self.ordinal);
        found.block_tokens = block_tokens;
        found.total_blocks = 0;
        found.chains.clear();
        found.matched.clear();
        found.matched.resize(snapshot.topology.capacity(), 0);
        let seed = hash::seed(&request.target_model, request.cache_salt.as_deref(), block_tokens);
        let (per_prompt, mut left) = (self.max_blocks(block_tokens), MAX_REQUEST_BLOCKS);
        for prompt in &request.prompts {
            if left == 0 {
                break;
            }
            let chain = hash::chain(prompt, &request.body, seed, block_tokens, per_prompt.min(left));
            if chain.is_empty() {
                continue;
            }
            left -= chain.len();
            found.total_blocks += chain.len() as u32;
            self.index.lookup(&chain, &mut found.matched);
            found.chains.push(Arc::from(chain));
        }
    }

    fn size(&self) -> Option<u64> {
        Some(self.index.entries())
    }

    fn debug_state(&self) -> Option<serde_json::Value> {
        let tuning = self.tuning.load();
        let (bytes, entries) = (self.index.bytes(), self.index.entries());
        let endpoints: Vec<_> = self
            .index
            .endpoints(DEBUG_ENDPOINTS)
            .into_iter()
            .map(|held| {
                // Shared nodes belong to several: an endpoint's bytes are its part of the whole.
                let share = u128::from(bytes) * u128::from(held.blocks) / u128::from(entries.max(1));
                serde_json::json!({
                    "endpoint": tuning.topology.get(Slot(held.slot)).map(|e| e.name()),
                    "slot": held.slot,
                    "blocks": held.blocks,
                    "capacity": held.capacity,
                    "bytes": share as u64,
                })
            })
            .collect();
        Some(serde_json::json!({
            "blockTokens": tuning.block_tokens,
            "entries": entries,
            "nodes": self.index.nodes(),
            "bytes": bytes,
            "maxBytes": self.index.max_bytes(),
            "endpoints": endpoints,
        }))
    }
}

impl Commit for ApproxPrefix {
    fn commit(&self, routed: &Routed<'_>) -> Option<Box<dyn Watch>> {
        let chains = &routed.signals.prefix.get(self.ordinal)?.chains;
        let mut taught: SmallVec<[Slot; 4]> = SmallVec::new();
        let mut pins: SmallVec<[Pin; 1]> = SmallVec::new();
        for result in &routed.decision.profiles {
            let Some(picked) = result.picked.first() else { continue };
            let endpoint = &picked.endpoint;
            if !taught.contains(&endpoint.slot) {
                taught.push(endpoint.slot);
                pins.extend(chains.iter().filter_map(|c| self.index.insert(endpoint.slot.0, endpoint.generation, c)));
            }
        }
        (!pins.is_empty()).then(|| Box::new(InFlight { pins }) as Box<dyn Watch>)
    }

    fn endpoint_removed(&self, endpoint: &Endpoint) {
        self.index.purge(endpoint.slot.0, endpoint.generation);
    }
}

/// The blocks of a request that the engine is working on.
struct InFlight {
    /// Released by their own `Drop`, if not by the end of the request.
    pins: SmallVec<[Pin; 1]>,
}

impl Watch for InFlight {
    fn finished(&mut self, _: &End) {
        self.pins.clear();
    }
}

#[cfg(test)]
mod tests;
