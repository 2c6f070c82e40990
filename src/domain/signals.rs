//! Per-request facts about endpoints, produced before scheduling and read by filters and scorers.
//!
//! A consumer holds the ordinal of its producer, resolved when the configuration is built, so that a
//! look-up here is an array access and a missing producer cannot be a surprise at run time.

use std::sync::Arc;

use super::{Slot, Timestamp};

/// How much of a prompt each endpoint is believed to hold, from one producer.
#[derive(Clone, Debug, Default)]
pub struct PrefixMatch {
    /// Tokens per block.
    pub block_tokens: u32,
    /// Full blocks of all prompts of the request.
    pub total_blocks: u32,
    /// Leading blocks held, by slot; slots past the end hold none.
    pub matched: Vec<u32>,
    /// Block hashes of each prompt, root first; what a commit teaches the index.
    pub chains: Vec<Arc<[u64]>>,
    /// Tokens that the model makes of one block, as learnt from what its servers count; 0 if nothing was
    /// learnt, and then [`PrefixMatch::block_tokens`] stands for it.
    pub learnt_block_tokens: f32,
    /// Tokens of all prompts of the request by the same measure, if the producer knows.
    pub prompt_tokens: Option<u64>,
    /// What the producer knows of the caches themselves, if it mirrors them.
    pub caches: Option<CacheView>,
}

/// The caches of the endpoints as a mirror of them knows them.
#[derive(Clone, Debug, Default)]
pub struct CacheView {
    /// Tokens that each endpoint's cache has room for, by slot; NaN where that is not known.
    pub capacity: Vec<f32>,
    /// Seconds since the block that would be evicted next was last used, by slot; infinite while there is room.
    pub oldest_age: Vec<f32>,
    /// Mean time in seconds for which a block lay unused before it was hit.
    pub reuse_age: f32,
}

impl CacheView {
    /// Tokens that the cache of `slot` has room for, if that is known.
    #[inline]
    pub fn capacity(&self, slot: Slot) -> Option<f32> {
        self.capacity.get(slot.index()).copied().filter(|tokens| *tokens > 0.0)
    }

    /// See [`CacheView::oldest_age`]; infinite for unknown slots.
    #[inline]
    pub fn oldest_age(&self, slot: Slot) -> f32 {
        self.oldest_age.get(slot.index()).copied().unwrap_or(f32::INFINITY)
    }
}

impl PrefixMatch {
    /// Leading blocks that `slot` is believed to hold.
    #[inline]
    pub fn blocks(&self, slot: Slot) -> u32 {
        self.matched.get(slot.index()).copied().unwrap_or(0)
    }

    /// Tokens of the prompt that `slot` is believed to hold.
    #[inline]
    pub fn tokens(&self, slot: Slot) -> u64 {
        if self.learnt_block_tokens > 0.0 {
            return (f64::from(self.blocks(slot)) * f64::from(self.learnt_block_tokens)) as u64;
        }
        u64::from(self.blocks(slot)) * u64::from(self.block_tokens)
    }

    /// Share of the prompt's blocks that `slot` holds; zero for prompts below one block.
    #[inline]
    pub fn share(&self, slot: Slot) -> f32 {
        if self.total_blocks == 0 { 0.0 } else { self.blocks(slot) as f32 / self.total_blocks as f32 }
    }
}

/// Requests and tokens in flight, captured once so that one decision sees one state.
#[derive(Clone, Debug, Default)]
pub struct InFlightView {
    /// Requests by slot.
    pub requests: Vec<u32>,
    /// Uncached tokens by slot.
    pub tokens: Vec<u64>,
}

impl InFlightView {
    /// Requests in flight at `slot`.
    #[inline]
    pub fn requests(&self, slot: Slot) -> u32 {
        self.requests.get(slot.index()).copied().unwrap_or(0)
    }

    /// Uncached tokens in flight at `slot`.
    #[inline]
    pub fn tokens(&self, slot: Slot) -> u64 {
        self.tokens.get(slot.index()).copied().unwrap_or(0)
    }
}

/// The picker's own account of one endpoint: what it sent there and what became of it. Times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Account {
    /// Estimated prefill time of the requests that have no first token yet (`S`).
    pub outstanding: f32,
    /// Time until all of that should be done, counted on since the last first token (`F` - now, not below 0).
    pub backlog: f32,
    /// Learnt prefill rate in tokens per second (`R`), half the endpoint's own and half the pool's.
    pub rate: f32,
    /// Uncached prompt tokens of the requests that have no first token yet.
    pub prefill_tokens: f32,
    /// Requests that have no first token yet.
    pub prefilling: u32,
    /// Requests that have not ended.
    pub in_flight: u32,
    /// Prefill seconds routed here per second, lately (`rho_p`).
    pub load: f32,
    /// Uncached tokens routed here, lately: decides between equals.
    pub intake: f32,
    /// Prefill time that held requests which go first have been promised here; only while planning.
    pub ahead: f32,
}

/// The accounts of all endpoints, captured once so that one decision sees one state.
#[derive(Clone, Debug, Default)]
pub struct AccountView {
    /// By slot; slots past the end have had nothing.
    pub endpoints: Vec<Account>,
    /// Requests routed per endpoint and second, lately (`lambda`).
    pub arrivals: f32,
    /// Prefill seconds routed per endpoint and second, lately (`rho`).
    pub load: f32,
    /// Mean estimated prefill time of a request in seconds.
    pub mean_prefill: f32,
    /// Mean time in seconds from routing to the end of a request.
    pub mean_stay: f32,
    /// Samples that the pool's prefill rate was learnt from, saturating.
    pub samples: u32,
}

impl AccountView {
    /// The account of `slot`.
    #[inline]
    pub fn of(&self, slot: Slot) -> Account {
        self.endpoints.get(slot.index()).copied().unwrap_or_default()
    }
}

/// Everything the producers found for one request.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// The time that the facts are asked for; set before the producers run, each time they run.
    pub now: Timestamp,
    /// Estimated prompt tokens, if a token producer ran.
    pub prompt_tokens: Option<u64>,
    /// One entry per prefix producer, by ordinal.
    pub prefix: Vec<PrefixMatch>,
    /// In-flight work, if its producer ran.
    pub in_flight: Option<InFlightView>,
    /// The picker's accounts of the endpoints, if their producer ran.
    pub accounts: Option<AccountView>,
    /// Session id per session producer, by ordinal.
    pub sessions: Vec<Option<Box<str>>>,
}

impl Signals {
    /// The entry of prefix producer `ordinal`, made if absent.
    pub fn prefix_mut(&mut self, ordinal: usize) -> &mut PrefixMatch {
        if self.prefix.len() <= ordinal {
            self.prefix.resize_with(ordinal + 1, PrefixMatch::default);
        }
        &mut self.prefix[ordinal]
    }

    /// Sets what session producer `ordinal` found.
    pub fn set_session(&mut self, ordinal: usize, session: Option<Box<str>>) {
        if self.sessions.len() <= ordinal {
            self.sessions.resize(ordinal + 1, None);
        }
        self.sessions[ordinal] = session;
    }
}
