//! `approx-prefix-cache-producer`: which endpoint probably holds how much of a prompt, learnt from where
//! earlier prompts were sent.
//!
//! What it shares with the [mirror](super::mirror_prefix) is in [`super::prefix`]: read that first.
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

use std::sync::Arc;

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use super::prefix::index::{Index, Pin};
use super::prefix::{Blocks, Seen, debug_page, engine_tokens, holders, index_bytes, look_again};
use crate::domain::{Endpoint, InferenceRequest, Signals, Snapshot};
use crate::params;
use crate::scheduling::params::{Params, Quantity};
use crate::scheduling::plugin::{
    About, Build, Built, Commit, End, Metric, Need, Producer, Routed, Row, SignalKind, Stability, Watch,
};

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
    let (size, tune) = (params.block_size_tokens, params.auto_tune);
    let blocks = Blocks::new(build, size, tune, params.max_prefix_tokens, params.max_prefix_blocks)?;
    let bytes = index_bytes(build, params.max_index_bytes)?;
    build.need(Need::Prompts);
    if params.auto_tune {
        build.need(Need::Metric(Metric::CacheInfo));
    }
    let capacity = u64::try_from(params.lru_capacity).unwrap_or(1);
    let index = Arc::new(Index::new(bytes, capacity));
    let plugin = Arc::new(ApproxPrefix {
        index: Arc::clone(&index),
        ordinal: build.produces(SignalKind::Prefix),
        auto_tune: params.auto_tune,
        capacity,
        tuning: ArcSwap::from_pointee(Tuning { seen: Seen::default(), block_tokens: blocks.first_size() }),
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
}

/// The plugin; see the module documentation.
struct ApproxPrefix {
    index: Arc<Index>,
    ordinal: usize,
    blocks: Blocks,
    auto_tune: bool,
    /// Blocks per endpoint without metrics.
    capacity: u64,
    tuning: ArcSwap<Tuning>,
}

impl ApproxPrefix {
    /// Tokens per block now. Looks at every endpoint when the pool has published something new, and
    /// at nothing otherwise.
    fn tune(&self, snapshot: &Snapshot) -> u32 {
        let tuning = self.tuning.load();
        if tuning.seen.is(snapshot) {
            return tuning.block_tokens;
        }
        let block_tokens = self.blocks.size(snapshot);
        if self.auto_tune {
            for endpoint in snapshot.topology.endpoints() {
                let capacity = engine_tokens(snapshot, endpoint.slot)
                    .map_or(self.capacity, |tokens| (tokens / u64::from(block_tokens)).max(1));
                self.index.set_capacity(endpoint.slot.0, capacity);
            }
        }
        self.tuning.store(Arc::new(Tuning { seen: Seen::of(snapshot), block_tokens }));
        block_tokens
    }
}

impl Producer for ApproxPrefix {
    fn produce(&self, request: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals) {
        let block_tokens = self.tune(snapshot);
        self.blocks.find(request, snapshot, block_tokens, &self.index, signals.prefix_mut(self.ordinal));
    }

    fn refresh(&self, request: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals) {
        let found = signals.prefix_mut(self.ordinal);
        // Chains of another block size have nothing to be found.
        if self.tune(snapshot) == found.block_tokens {
            look_again(snapshot, &self.index, found);
        } else {
            self.produce(request, snapshot, signals);
        }
    }

    fn size(&self) -> Option<u64> {
        Some(self.index.entries())
    }

    fn debug_state(&self) -> Option<serde_json::Value> {
        let tuning = self.tuning.load();
        Some(debug_page(&self.index, &tuning.seen.topology, tuning.block_tokens, |_, _| {}))
    }
}

impl Commit for ApproxPrefix {
    fn commit(&self, routed: &Routed<'_>) -> Option<Box<dyn Watch>> {
        let chains = &routed.signals.prefix.get(self.ordinal)?.chains;
        let mut pins: SmallVec<[Pin; 1]> = SmallVec::new();
        for endpoint in holders(routed.decision) {
            pins.extend(chains.iter().filter_map(|c| self.index.insert(endpoint.slot.0, endpoint.generation, c)));
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
