//! `consistent-hash-scorer`: prompts that begin alike go to the same endpoint, without any memory of
//! what was sent where.
//!
//! Rule. The first `prefixBlocks` blocks of the prompt, with the target model and the cache salt, give
//! a key; key and endpoint name give a distance; the candidates by growing distance are the order in
//! which they serve this prefix. A candidate is eligible while its requests in flight are below
//! max(`minRequests`, ceil(`loadFactor` * (all requests in flight at the candidates + 1) / candidates)):
//! consistent hashing with bounded loads. Since `loadFactor` is at least 1 some candidate always is.
//! Scores: the first eligible candidate gets 1, the next 1/2, 1/4 and so on for [`RANKED`] places, all
//! others less than the last of these, still in order; those over the bound follow in the same order
//! below everyone else. So the first place wins against small differences of other scorers, and a
//! hot prefix spills over to the next endpoints of its own order instead of tipping one over: the
//! second place becomes a second home that holds the prefix, too.
//!
//! Only whole blocks count, so that a conversation keeps its key while it grows past them; a prompt
//! below one block is hashed as it is. Requests without a prompt score 1 everywhere.
//!
//! The order depends on nothing but names: every replica and every restart finds the same one. An
//! endpoint that enters takes over 1/n of the prefixes, one that leaves gives only its own away.
//!
//! Inputs: the prompt; requests in flight from `inflight-load-producer`, which is created when none is
//! configured. Without that signal nobody is over the bound.
//!
//! When it misleads: prompts that share a long preamble (one system prompt for everybody) are one
//! prefix and spread by the bound alone: make `prefixBlocks` longer than the preamble. Each replica
//! sees only its own requests in flight. An endpoint that restarts under its old name keeps its
//! prefixes but has lost its cache. It knows nothing of the true cache: together with
//! `prefix-cache-scorer` it says where cold prompts should go.
//!
//! Rejected: a ring of virtual nodes. It finds its eight places sooner (0.4 against 3.2 microseconds for
//! 1,000 endpoints), but with 100 points per endpoint their shares still lie between 0.66 and 1.47 of the
//! mean, and each change of the set costs a new ring: 4 ms and 1.5 MiB for 1,000 endpoints, 55 ms and
//! 15 MiB for 10,000. Candidates also differ from request to request, as filters see fit. A hash per
//! (key, endpoint), known as rendezvous hashing, needs no state but the hashed names, moves exactly as
//! little, balances as well as chance does, and costs two multiplications per candidate.
//!
//! ```yaml
//! - type: consistent-hash-scorer
//!   parameters:
//!     prefixBlocks: 4
//!     blockSizeTokens: 64
//!     loadFactor: 1.25
//!     minRequests: 4
//! ```

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::domain::{InFlightView, InferenceRequest, Prompt, Segment, Slot, Topology};
use crate::scheduling::params::Params as _;
use crate::scheduling::per_topology::PerTopology;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Need, Row, Scorer, SignalKind, Stability};

/// Places that have a score of their own, each half of the one before.
pub const RANKED: usize = 8;

/// Most tokens that may decide; hashing them takes some 20 microseconds.
const MAX_PREFIX_TOKENS: u64 = 65_536;

/// Bytes per pseudo-token, see [`Prompt`].
const TOKEN_BYTES: u64 = 4;

crate::params! {
    /// Parameters of `consistent-hash-scorer`.
    pub struct Params {
        /// Blocks at the start of the prompt that decide.
        prefix_blocks: u32 = 4, "prefixBlocks", 1..=4096;
        /// Tokens per block, at four bytes each.
        block_size_tokens: u32 = 64, "blockSizeTokens", 1..=65_536;
        /// How much more than the mean of requests in flight an endpoint may have before its prefixes go elsewhere.
        load_factor: f64 = 1.25, "loadFactor", 1.0..=100.0;
        /// Requests in flight that an endpoint may always have, so that an idle pool does not spread a prefix.
        min_requests: u32 = 4, "minRequests", 1..;
        /// Name of the inflight-load-producer to read; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "consistent-hash-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Sends prompts that begin alike to the same endpoint, and to the next one when it is overloaded.",
        params: Params::SPEC,
        sample: "- type: consistent-hash-scorer\n  parameters:\n    prefixBlocks: 4\n    blockSizeTokens: 64\n    loadFactor: 1.25\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let tokens = u64::from(params.prefix_blocks) * u64::from(params.block_size_tokens);
    if tokens > MAX_PREFIX_TOKENS {
        let message =
            format!("prefixBlocks times blockSizeTokens is {tokens} tokens, and the most is {MAX_PREFIX_TOKENS}");
        b.error("prefixBlocks", message, "write a smaller number: prompts that differ later need not differ here");
        return None;
    }
    b.need(Need::Prompts);
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    Some(Built::scorer(ConsistentHash {
        blocks: u64::from(params.prefix_blocks),
        block_bytes: u64::from(params.block_size_tokens) * TOKEN_BYTES,
        load_factor: params.load_factor,
        min_requests: u64::from(params.min_requests),
        names: PerTopology::default(),
    }))
}

struct ConsistentHash {
    blocks: u64,
    block_bytes: u64,
    load_factor: f64,
    min_requests: u64,
    /// Hashed names by slot.
    names: PerTopology<Vec<u64>>,
}

/// Hashes of `namespace/name`, which no two endpoints of a pool share, by slot.
fn hashed_names(topology: &Topology) -> Vec<u64> {
    let mut names = vec![0; topology.capacity()];
    for endpoint in topology.endpoints() {
        let mut hasher = Xxh3::new();
        hasher.update(endpoint.spec.namespace.as_bytes());
        hasher.update(b"/");
        hasher.update(endpoint.spec.name.as_bytes());
        if let Some(name) = names.get_mut(endpoint.slot.index()) {
            *name = hasher.digest();
        }
    }
    names
}

/// Where an endpoint stands in the order of a key: the smallest comes first. A bijection of the name for
/// each key, so that two endpoints never stand in the same place.
#[inline]
fn distance(key: u64, name: u64) -> u64 {
    let mut x = key ^ name;
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 32)
}

impl ConsistentHash {
    /// The key of the request's first prompt; `None` if it has none.
    fn key(&self, request: &InferenceRequest) -> Option<u64> {
        let prompt = request.prompts.first()?;
        let length = prompt.byte_len();
        let wanted = match (length / self.block_bytes).min(self.blocks) {
            0 if length == 0 => return None,
            0 => length,
            blocks => blocks * self.block_bytes,
        };
        // Caches of different models and tenants have nothing in common. Parts are hashed by themselves, so that
        // moving text from one to the next changes the key.
        let salt = request.cache_salt.as_deref().map_or(0, |salt| xxh3_64(salt.as_bytes()) | 1);
        let mut hasher = Xxh3::new();
        hasher.update(&xxh3_64(request.target_model.as_bytes()).to_le_bytes());
        hasher.update(&salt.to_le_bytes());
        hash_prompt(prompt, &request.body, wanted, &mut hasher);
        Some(hasher.digest())
    }

    /// Requests in flight from which a candidate is over the bound.
    fn bound(&self, in_flight: &InFlightView, candidates: &[Slot]) -> u64 {
        let total: u64 = candidates.iter().map(|slot| u64::from(in_flight.requests(*slot))).sum();
        let mean = (total + 1) as f64 / candidates.len().max(1) as f64;
        ((mean * self.load_factor).ceil() as u64).max(self.min_requests)
    }
}

/// Tokens that are hashed at once.
const RUN: usize = 64;

/// Up to [`RUN`] tokens as bytes; zeros after them.
fn tokens(ids: impl IntoIterator<Item = u32>) -> [u8; RUN * 4] {
    let mut bytes = [0; RUN * 4];
    for (place, id) in bytes.chunks_exact_mut(4).zip(ids) {
        place.copy_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// Feeds the first `wanted` bytes of the prompt's stream to `hasher`, wherever its segments end.
fn hash_prompt(prompt: &Prompt, body: &[u8], wanted: u64, hasher: &mut Xxh3) {
    let mut left = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut feed = |bytes: &[u8]| {
        let now = &bytes[..bytes.len().min(left)];
        hasher.update(now);
        left -= now.len();
        left > 0
    };
    for segment in &prompt.segments {
        let goes_on = match segment {
            Segment::Body(range) => feed(body.get(range.clone()).unwrap_or_default()),
            Segment::Fixed(bytes) => feed(bytes),
            Segment::Tokens(ids) => ids.chunks(RUN).all(|ids| feed(&tokens(ids.iter().copied())[..ids.len() * 4])),
            Segment::Media { digest, tokens: count } => {
                let run = tokens([*digest; RUN]);
                let count = *count as usize;
                (0..count).step_by(RUN).all(|done| feed(&run[..(count - done).min(RUN) * 4]))
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// The nearest eligible candidates so far, nearest first, as (distance, index).
struct Nearest {
    places: [(u64, usize); RANKED],
    taken: usize,
}

impl Nearest {
    #[inline]
    fn offer(&mut self, distance: u64, index: usize) {
        if self.taken == RANKED && distance >= self.places[RANKED - 1].0 {
            return;
        }
        let mut at = self.taken.min(RANKED - 1);
        self.taken = (self.taken + 1).min(RANKED);
        while at > 0 && self.places[at - 1].0 > distance {
            self.places[at] = self.places[at - 1];
            at -= 1;
        }
        self.places[at] = (distance, index);
    }
}

impl Scorer for ConsistentHash {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let Some(key) = self.key(cx.request) else {
            out.fill(1.0);
            return;
        };
        let in_flight = cx.signals.in_flight.as_ref();
        let bound = in_flight.map(|view| self.bound(view, candidates));
        // Below the last of the ranked places, which is 2^-7: (2^-9, 2^-8] for the eligible, [0, 2^-9] for the others.
        const STEP: f32 = 1.0 / 512.0;
        self.names.with(&cx.snapshot.topology, hashed_names, |names| {
            let mut nearest = Nearest { places: [(u64::MAX, 0); RANKED], taken: 0 };
            for (i, (value, slot)) in out.iter_mut().zip(candidates).enumerate() {
                let distance = distance(key, names.get(slot.index()).copied().unwrap_or_default());
                // 23 bits, so that one more step is still a different `f32`.
                let nearness = 1.0 - (distance >> 41) as f32 / (1u32 << 23) as f32;
                let eligible = match (in_flight, bound) {
                    (Some(view), Some(bound)) => u64::from(view.requests(*slot)) < bound,
                    _ => true,
                };
                *value = if eligible {
                    nearest.offer(distance, i);
                    STEP + STEP * nearness
                } else {
                    STEP * nearness
                };
            }
            let mut score = 1.0;
            for (_, index) in &nearest.places[..nearest.taken] {
                out[*index] = score;
                score *= 0.5;
            }
        });
    }
}

#[cfg(test)]
mod tests;
