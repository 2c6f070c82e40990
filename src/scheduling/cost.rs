//! What it costs to send a request to an endpoint, in seconds, term by term. Pure arithmetic over the picker's
//! accounts, the prefix match and the last metrics.
//!
//! | term | formula | meaning |
//! |---|---|---|
//! | prefill | `w = u / R` | time to compute the `u` tokens that are not cached |
//! | wait | `W = clamp(backlog, S/10, S) + others + ahead` | time until the endpoint gets to it |
//! | delay on others | `sigma · lambda · (W·w + w²/2) / (1 - min(rho, 0.9))` | what later arrivals wait for it |
//! | eviction | `epsilon · w · tau / (tau + A)` | cached blocks that it pushes out, by how young they are |
//! | balance | `beta · min(rho_p, 1)` | where much went lately, its next turns will come too |
//! | memory | `max(0, used + L + 400 - C) / used · T` | time until decodes that end have made room |
//!
//! The first two are the expected time to first token. Minimising them alone is a trap: under load each
//! request avoids a short wait by computing a prefix again elsewhere, and the pool computes everything several times. The
//! third makes a request pay for the work it adds: work `w` behind a wait of `W` delays, in a queue with
//! arrivals `lambda`, those who come during `W + w` (M/G/1, one step ahead; the busy period stretches it by
//! `1 / (1 - rho)`).
//!
//! **Missing and stale data.** Wrong certainty is worse than none, so each term says what it knows:
//!
//! - accounts missing (no producer): no wait, no delay on others, no balance, and the prefill at
//!   [`GUESSED_RATE`], so that the prefix match decides;
//! - prefix match missing: nothing is cached anywhere, no eviction;
//! - waiting count (for `others`): the queue seen then has been worked on since, so its age is
//!   subtracted; an old reading fades to nothing by itself. Without one there are no others;
//! - KV usage: it moves with the ends of requests, in seconds to minutes, so the last reading counts up to an age of
//!   [`TRUSTED_SECONDS`], with what this picker sent and has not been computed on top; without one
//!   only the latter counts;
//! - capacity unknown: no memory term, and there is room;
//! - age of the oldest block unknown (no mirror of the cache): no eviction.

use crate::domain::{
    Account, AccountView, CacheView, InferenceRequest, LoadTable, PrefixMatch, Signals, Slot, Timestamp,
};

use super::plugin::Cycle;

/// Prefill rate in tokens per second where no account says one. Only proportions to the other terms depend
/// on it, and without accounts there are hardly any.
pub const GUESSED_RATE: f32 = 10_000.0;

/// Tokens of an answer that room is asked for besides the prompt: that of a typical chat answer.
pub const OUTPUT_ROOM: f32 = 400.0;

/// Share of the outstanding prefill that is waited for at least, however late it is: work that is overdue is
/// not done.
const OVERDUE: f32 = 0.1;

/// Load beyond which the delay on others grows no further: measured load passes 1 in bursts.
const MOST_LOAD: f32 = 0.9;

/// Age in seconds up to which a KV usage counts: about the time in which all requests that it counted end.
pub const TRUSTED_SECONDS: f32 = 30.0;

/// Largest cost that is told apart; keeps sums of hostile inputs finite.
const MOST: f32 = 1e9;

/// Prompt tokens of a request: by the measure of the prefix producer, else of the token producer, else
/// four bytes each.
pub fn prompt_tokens(request: &InferenceRequest, signals: &Signals, prefix: Option<&PrefixMatch>) -> u64 {
    prefix.and_then(|p| p.prompt_tokens).or(signals.prompt_tokens).unwrap_or_else(|| request.estimated_prompt_tokens())
}

/// The weights of the terms; 0 switches a term off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of the request's own prefill.
    pub prefill: f32,
    /// Of its wait.
    pub wait: f32,
    /// `sigma`: of the delay put on later arrivals.
    pub delay_on_others: f32,
    /// `epsilon`: of the cache pushed out.
    pub eviction: f32,
    /// `beta`, in seconds: of the endpoint's load.
    pub balance: f32,
    /// Of the wait for memory.
    pub memory: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { prefill: 1.0, wait: 1.0, delay_on_others: 2.0, eviction: 8.0, balance: 1.0, memory: 1.0 }
    }
}

/// The terms of one endpoint's cost, in weighted seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Own prefill.
    pub prefill: f32,
    /// Wait.
    pub wait: f32,
    /// Delay put on later arrivals.
    pub delay_on_others: f32,
    /// Cache pushed out.
    pub eviction: f32,
    /// Load of the endpoint.
    pub balance: f32,
    /// Wait for memory.
    pub memory: f32,
}

impl Terms {
    /// Names of the terms in the order of [`Terms::values`].
    pub const NAMES: [&'static str; 6] = ["prefill", "wait", "delay-on-others", "eviction", "balance", "memory"];

    /// The terms in order.
    pub fn values(&self) -> [f32; 6] {
        [self.prefill, self.wait, self.delay_on_others, self.eviction, self.balance, self.memory]
    }

    /// Their sum.
    #[inline]
    pub fn sum(&self) -> f32 {
        self.prefill + self.wait + self.delay_on_others + self.eviction + self.balance + self.memory
    }
}

/// Time to compute `uncached` tokens at `rate` tokens per second.
#[inline]
pub fn prefill(uncached: f32, rate: f32) -> f32 {
    bounded(uncached / if rate > 0.0 { rate } else { GUESSED_RATE })
}

/// Time until the endpoint has worked off what this picker sent it: the backlog, but no less than a tenth of
/// the outstanding prefill and no more than all of it.
#[inline]
pub fn own_wait(account: &Account) -> f32 {
    let outstanding = bounded(account.outstanding);
    smaller(larger(account.backlog, OVERDUE * outstanding), outstanding)
}

/// Time that requests of other pickers add to the wait: those that the endpoint reported as waiting, beyond our
/// own without a first token, at `mean_prefill` each, less the `age` of the reading in seconds.
#[inline]
pub fn others_wait(waiting: f32, prefilling: u32, mean_prefill: f32, age: f32) -> f32 {
    bounded(larger(waiting - prefilling as f32, 0.0) * mean_prefill - age)
}

/// Delay of later arrivals, in seconds of theirs: each of those that come while the request waits and is computed waits
/// for it, on average for half of what is left. `stretched` are the [`stretched_arrivals`].
#[inline]
pub fn delay_on_others(wait: f32, prefill: f32, stretched: f32) -> f32 {
    bounded(stretched * prefill * (wait + 0.5 * prefill))
}

/// Arrivals per second at an endpoint of this `load`, stretched by the busy period: what does not depend on
/// the endpoint in the delay on others.
#[inline]
pub fn stretched_arrivals(arrivals: f32, load: f32) -> f32 {
    bounded(arrivals) / (1.0 - between(load, MOST_LOAD))
}

/// Prefill that will have to be done again, because computing for `prefill` seconds pushes out blocks whose
/// oldest was last used `oldest_age` seconds ago, where blocks are used again after `reuse_age`.
#[inline]
pub fn eviction(prefill: f32, reuse_age: f32, oldest_age: f32) -> f32 {
    // An infinite age (there is room) is 0, and so is one that is not known.
    if !(reuse_age > 0.0 && oldest_age < f32::INFINITY) {
        return 0.0;
    }
    let (reuse, oldest) = (bounded(reuse_age), bounded(oldest_age));
    prefill * (reuse / (reuse + oldest))
}

/// Prefill seconds per second that went to the endpoint lately, at most 1.
#[inline]
pub fn balance(load: f32) -> f32 {
    between(load, 1.0)
}

/// Time until requests that end have freed what is missing for `needed` tokens.
#[inline]
pub fn memory(needed: f32, used: f32, capacity: f32, mean_stay: f32) -> f32 {
    let over = used + needed - capacity;
    // With nothing in use there is nothing to wait for, however small the cache is.
    if over > 0.0 && used > 0.0 { bounded(over / used * mean_stay) } else { 0.0 }
}

/// `value`, but between 0 and `most`; NaN is 0, which a clamp would keep.
#[inline]
fn between(value: f32, most: f32) -> f32 {
    smaller(larger(value, 0.0), most)
}

/// The larger one; `least` if `value` is not a number. One instruction, where `f32::max`, which must not care which of the
/// two is none, takes five; there are ten of these for each endpoint.
#[inline]
fn larger(value: f32, least: f32) -> f32 {
    if value > least { value } else { least }
}

/// The smaller one; `most` if `value` is not a number. See [`larger`].
#[inline]
fn smaller(value: f32, most: f32) -> f32 {
    if value < most { value } else { most }
}

/// A time or a number of tokens that can be calculated with.
#[inline]
fn bounded(value: f32) -> f32 {
    between(value, MOST)
}

/// What one decision knows, to price any endpoint with.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    accounts: Option<&'a AccountView>,
    prefix: Option<&'a PrefixMatch>,
    caches: Option<&'a CacheView>,
    loads: &'a LoadTable,
    now: Timestamp,
    prompt: u64,
    stretched: f32,
    mean_prefill: f32,
    mean_stay: f32,
}

impl<'a> Facts<'a> {
    /// The facts of a decision about a request of `prompt` tokens.
    pub fn new(
        accounts: Option<&'a AccountView>,
        prefix: Option<&'a PrefixMatch>,
        loads: &'a LoadTable,
        prompt: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            accounts,
            prefix,
            caches: prefix.and_then(|p| p.caches.as_ref()),
            loads,
            now,
            prompt,
            stretched: accounts.map_or(0.0, |a| stretched_arrivals(a.arrivals, a.load)),
            mean_prefill: accounts.map_or(0.0, |a| a.mean_prefill),
            mean_stay: accounts.map_or(0.0, |a| bounded(a.mean_stay)),
        }
    }

    /// The facts of `cx`, with the prefix match of producer `prefix`.
    pub fn of(cx: &Cycle<'a>, prefix: usize) -> Self {
        let prefix = cx.signals.prefix.get(prefix);
        let prompt = prompt_tokens(cx.request, cx.signals, prefix);
        Self::new(cx.signals.accounts.as_ref(), prefix, &cx.snapshot.loads, prompt, cx.now)
    }

    /// Tokens of the prompt.
    pub fn prompt(&self) -> u64 {
        self.prompt
    }

    /// The account of `slot`.
    #[inline]
    pub fn account(&self, slot: Slot) -> Account {
        self.accounts.map_or_else(Account::default, |a| a.of(slot))
    }

    /// Tokens that `slot` would have to compute.
    #[inline]
    pub fn uncached(&self, slot: Slot) -> f32 {
        self.prompt.saturating_sub(self.prefix.map_or(0, |p| p.tokens(slot))) as f32
    }

    /// Own prefill (`w`) at `slot`, in seconds.
    #[inline]
    pub fn prefill(&self, slot: Slot) -> f32 {
        prefill(self.uncached(slot), self.account(slot).rate)
    }

    /// The part of the wait (`W`) at `slot` that this picker caused itself, in seconds, without what is promised to held
    /// requests that go first: it ends with first tokens that this picker will see.
    #[inline]
    pub fn own_wait(&self, slot: Slot) -> f32 {
        own_wait(&self.account(slot))
    }

    #[inline]
    fn wait_of(&self, slot: Slot, account: &Account, age: f32) -> f32 {
        // Not reported is none; so is a negative one.
        let waiting = self.loads.waiting(slot).unwrap_or(0.0);
        own_wait(account) + others_wait(waiting, account.prefilling, self.mean_prefill, age)
    }

    /// Age of the last reading of `slot` in seconds, infinite if there is none.
    #[inline]
    fn age(&self, slot: Slot) -> f32 {
        let micros = |at: Timestamp| self.now.0.saturating_sub(at.0) as f32;
        self.loads.taken_at(slot).map_or(f32::INFINITY, |at| micros(at) * 1e-6)
    }

    /// Tokens in use at `slot` and its capacity, if that is known: what it reported, and what was sent there
    /// and is not computed yet.
    #[inline]
    fn room(&self, slot: Slot, account: &Account, age: f32) -> Option<(f32, f32)> {
        let capacity = self.caches.and_then(|c| c.capacity(slot)).or_else(|| self.reported_capacity(slot))?;
        let usage = self.loads.kv_usage(slot).unwrap_or(0.0);
        let usage = if age <= TRUSTED_SECONDS { between(usage, 1.0) } else { 0.0 };
        Some((usage * capacity + bounded(account.prefill_tokens), capacity))
    }

    #[inline]
    fn reported_capacity(&self, slot: Slot) -> Option<f32> {
        let detail = self.loads.detail(slot)?;
        let tokens = u64::from(detail.num_blocks?) * u64::from(detail.block_size?);
        (tokens > 0).then_some(tokens as f32)
    }

    /// Whether `slot` has memory for the request now. Where this picker has nothing in flight it has, whatever the metrics
    /// say: nothing that is waited for would ever change that.
    #[inline]
    pub fn has_room(&self, slot: Slot) -> bool {
        let account = self.account(slot);
        account.in_flight == 0
            || self
                .room(slot, &account, self.age(slot))
                .is_none_or(|(used, capacity)| used + self.uncached(slot) + OUTPUT_ROOM <= capacity)
    }

    /// The terms of `slot`.
    #[inline]
    pub fn terms(&self, slot: Slot, weights: &Weights) -> Terms {
        let account = self.account(slot);
        let w = prefill(self.uncached(slot), account.rate);
        let age = self.age(slot);
        let wait = self.wait_of(slot, &account, age) + bounded(account.ahead);
        let mut terms = Terms {
            prefill: weights.prefill * w,
            wait: weights.wait * wait,
            delay_on_others: weights.delay_on_others * delay_on_others(wait, w, self.stretched),
            balance: weights.balance * balance(account.load),
            ..Terms::default()
        };
        if let Some(caches) = self.caches {
            terms.eviction = weights.eviction * eviction(w, caches.reuse_age, caches.oldest_age(slot));
        }
        if let Some((used, capacity)) = self.room(slot, &account, age) {
            terms.memory = weights.memory * memory(self.prompt as f32 + OUTPUT_ROOM, used, capacity, self.mean_stay);
        }
        terms
    }
}

#[cfg(test)]
mod tests;
