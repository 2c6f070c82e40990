//! Per-request facts about endpoints, produced before scheduling and read by filters and scorers.
//!
//! A consumer holds the ordinal of its producer, resolved when the configuration is built, so that a
//! look-up here is an array access and a missing producer cannot be a surprise at run time.

use std::sync::Arc;

use super::Slot;

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

/// Everything the producers found for one request.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Estimated prompt tokens, if a token producer ran.
    pub prompt_tokens: Option<u64>,
    /// One entry per prefix producer, by ordinal.
    pub prefix: Vec<PrefixMatch>,
    /// In-flight work, if its producer ran.
    pub in_flight: Option<InFlightView>,
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
