//! What the producers that index prompts share: how a prompt becomes chains of block hashes, and who holds them.
//!
//! Reading order: [`hash`] (a prompt as a chain of block hashes), [`tree`] (who holds which blocks),
//! [`index`] (shards, capacity, order of eviction, bounds, pins), then `Blocks` below, then a producer.
//!
//! # Block size
//! `blockSizeTokens` if given. Otherwise, with `autoTune`, the largest block size that an endpoint
//! reports, at least 64 tokens; 64 without metrics. The largest, because it does not change with the
//! order of endpoints: another block size makes everything learnt useless (it is part of the seed), and
//! what was learnt then ages out.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::domain::{Decision, Endpoint, InferenceRequest, LoadTable, PrefixMatch, Slot, Snapshot, Topology};
use crate::scheduling::params::Quantity;
use crate::scheduling::plugin::Build;

pub mod hash;
pub mod index;
pub mod tree;

#[cfg(test)]
pub(super) mod fixtures;

use index::{EndpointUse, Index};

/// Tokens per block without metrics, and the least that `autoTune` chooses: smaller blocks cost more
/// and tell routing nothing more.
pub const DEFAULT_BLOCK_TOKENS: u32 = 64;

/// Largest block size accepted, in tokens.
const MAX_BLOCK_TOKENS: i64 = 1 << 16;

/// Blocks hashed per request over all its prompts when the configuration sets no limit; also the most
/// that it can set.
pub const MAX_REQUEST_BLOCKS: usize = 1 << 17;

/// Endpoints on the debug page.
pub(super) const DEBUG_ENDPOINTS: usize = 100;

/// How prompts are cut into blocks.
pub(super) struct Blocks {
    /// Take the block size from the metrics.
    auto_tune: bool,
    /// Block size that the configuration fixes.
    fixed: Option<u32>,
    max_tokens: u64,
    max_blocks: u64,
}

impl Blocks {
    /// The rules of `blockSizeTokens`, `autoTune`, `maxPrefixTokensToMatch` and `maxPrefixBlocksToMatch`, which
    /// the parameters have checked but for the first. `None` after recording an error.
    pub fn new(
        build: &mut Build<'_>,
        size: Option<i64>,
        auto_tune: bool,
        max_tokens: i64,
        max_blocks: i64,
    ) -> Option<Self> {
        let key = "blockSizeTokens";
        let fixed = match size {
            Some(tokens) if tokens > MAX_BLOCK_TOKENS => {
                let message = format!("`{tokens}` is out of range: must be at most {MAX_BLOCK_TOKENS}");
                build.error(key, message, "write a number of tokens such as 64");
                return None;
            }
            Some(tokens) if tokens >= 1 => u32::try_from(tokens).ok(),
            Some(tokens) if auto_tune => {
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
        let limit = |n: i64| u64::try_from(n).unwrap_or(0);
        Some(Self { auto_tune, fixed, max_tokens: limit(max_tokens), max_blocks: limit(max_blocks) })
    }

    /// Tokens per block before anything is known of the pool.
    pub fn first_size(&self) -> u32 {
        self.fixed.unwrap_or(DEFAULT_BLOCK_TOKENS)
    }

    /// Tokens per block for this state of the pool. Looks at every endpoint.
    pub fn size(&self, snapshot: &Snapshot) -> u32 {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let reported = |endpoint: &Arc<Endpoint>| snapshot.loads.detail(endpoint.slot)?.block_size;
        let largest = snapshot.topology.endpoints().filter_map(reported).max().filter(|_| self.auto_tune);
        largest.unwrap_or(0).clamp(DEFAULT_BLOCK_TOKENS, MAX_BLOCK_TOKENS as u32)
    }

    /// Most blocks of one prompt.
    fn per_prompt(&self, size: u32) -> usize {
        let blocks = match (self.max_tokens, self.max_blocks) {
            (0, 0) => u64::MAX,
            (0, blocks) => blocks,
            (tokens, _) => tokens / u64::from(size.max(1)),
        };
        usize::try_from(blocks).unwrap_or(usize::MAX).min(MAX_REQUEST_BLOCKS)
    }

    /// Hashes the prompts of `request` in blocks of `size` tokens and looks them up in `index`.
    pub fn find(
        &self,
        request: &InferenceRequest,
        snapshot: &Snapshot,
        size: u32,
        index: &Index,
        found: &mut PrefixMatch,
    ) {
        found.block_tokens = size;
        found.total_blocks = 0;
        found.chains.clear();
        found.matched.clear();
        found.matched.resize(snapshot.topology.capacity(), 0);
        let seed = hash::seed(&request.target_model, request.cache_salt.as_deref(), size);
        let (per_prompt, mut left) = (self.per_prompt(size), MAX_REQUEST_BLOCKS);
        for prompt in &request.prompts {
            if left == 0 {
                break;
            }
            let chain = hash::chain(prompt, &request.body, seed, size, per_prompt.min(left));
            if chain.is_empty() {
                continue;
            }
            left -= chain.len();
            found.total_blocks += chain.len() as u32;
            index.lookup(&chain, &mut found.matched);
            found.chains.push(Arc::from(chain));
        }
    }
}

/// Looks the chains of `found` up again, for a request that waited.
pub(super) fn look_again(snapshot: &Snapshot, index: &Index, found: &mut PrefixMatch) {
    found.matched.clear();
    found.matched.resize(snapshot.topology.capacity(), 0);
    for chain in &found.chains {
        index.lookup(chain, &mut found.matched);
    }
}

/// A published state of the pool, to tell whether it is still the current one.
#[derive(Default)]
pub(super) struct Seen {
    pub topology: Arc<Topology>,
    loads: Arc<LoadTable>,
}

impl Seen {
    pub fn of(snapshot: &Snapshot) -> Self {
        Self { topology: Arc::clone(&snapshot.topology), loads: Arc::clone(&snapshot.loads) }
    }

    pub fn is(&self, snapshot: &Snapshot) -> bool {
        Arc::ptr_eq(&self.loads, &snapshot.loads) && Arc::ptr_eq(&self.topology, &snapshot.topology)
    }
}

/// Tokens that the KV cache of `slot` has room for, if its metrics say.
pub(super) fn engine_tokens(snapshot: &Snapshot, slot: Slot) -> Option<u64> {
    let detail = snapshot.loads.detail(slot)?;
    let tokens = u64::from(detail.num_blocks?) * u64::from(detail.block_size?);
    (tokens > 0).then_some(tokens)
}

/// The rule of `maxIndexBytes`; `None` after recording an error.
pub(super) fn index_bytes(build: &mut Build<'_>, Quantity(bytes): Quantity) -> Option<u64> {
    if !(1 << 20..=64 << 30).contains(&bytes) {
        let message = format!("{bytes} bytes is out of range: must be between 1Mi and 64Gi");
        build.error("maxIndexBytes", message, "write a quantity such as 256Mi");
        return None;
    }
    Some(bytes)
}

/// The endpoints that will hold the prompt: the first pick of each profile, each once.
pub(super) fn holders(decision: &Decision) -> SmallVec<[&Arc<Endpoint>; 4]> {
    let mut holders: SmallVec<[&Arc<Endpoint>; 4]> = SmallVec::new();
    for picked in decision.profiles.iter().filter_map(|result| result.picked.first()) {
        if !holders.iter().any(|known| known.slot == picked.endpoint.slot) {
            holders.push(&picked.endpoint);
        }
    }
    holders
}

/// The debug page of an index; `add` may say more of each endpoint.
pub(super) fn debug_page(
    index: &Index,
    topology: &Topology,
    block_tokens: u32,
    add: impl Fn(&EndpointUse, &mut serde_json::Value),
) -> serde_json::Value {
    let (bytes, entries) = (index.bytes(), index.entries());
    let endpoints: Vec<_> = index
        .endpoints(DEBUG_ENDPOINTS)
        .into_iter()
        .map(|held| {
            // Shared nodes belong to several: an endpoint's bytes are its part of the whole.
            let share = u128::from(bytes) * u128::from(held.blocks) / u128::from(entries.max(1));
            let mut page = serde_json::json!({
                "endpoint": topology.get(Slot(held.slot)).map(|e| e.name()),
                "slot": held.slot,
                "blocks": held.blocks,
                "capacity": held.capacity,
                "bytes": share as u64,
            });
            add(&held, &mut page);
            page
        })
        .collect();
    serde_json::json!({
        "blockTokens": block_tokens,
        "entries": entries,
        "nodes": index.nodes(),
        "bytes": bytes,
        "maxBytes": index.max_bytes(),
        "endpoints": endpoints,
    })
}
