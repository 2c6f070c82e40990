//! The table of pickers, one file each.
//!
//! A picker gets weighted totals and answers with indices, best first. One that looks at load itself, whatever the
//! scorers say, is built with [`Built::picker_by_load`](super::plugin::Built::picker_by_load); for a profile with any
//! other picker and no scorer there is a warning. All randomness comes from the
//! generator that the caller passes in, one per worker and never behind a lock (in the picker we
//! replace, all pickers of all requests wait for one generator).

pub mod cache_aware;
pub mod cost;
pub mod dynamo_cost;
pub mod least_request;
pub mod lmetric;
pub mod max_score;
pub mod power_of_two;
pub mod random;
pub mod round_robin;
pub mod weighted_random;

use std::cmp::Ordering;

use super::plugin::{Build, Cycle, Row};
use crate::domain::{PrefixMatch, Slot};

/// Every picker that a configuration can name.
pub const TABLE: &[Row] = &[
    max_score::ROW,
    random::ROW,
    weighted_random::ROW,
    round_robin::ROW,
    least_request::ROW,
    power_of_two::ROW,
    lmetric::ROW,
    dynamo_cost::ROW,
    cache_aware::ROW,
    cost::ROW,
];

crate::params! {
    /// What all pickers have in common.
    pub struct Params {
        /// How many endpoints to name, best first; those after the first are for the data plane's retries.
        max_num_of_endpoints: usize = 1, "maxNumOfEndpoints", 1..;
    }
}

/// How many endpoints a picker with the parameters of `b` names.
fn count(b: &mut Build<'_>) -> usize {
    let Params { max_num_of_endpoints } = b.params();
    max_num_of_endpoints
}

/// A total that can be compared: a sum that is not a number (infinite weights of both signs) ranks
/// below everything.
#[inline]
fn comparable(total: f32) -> f32 {
    if total.is_nan() { f32::NEG_INFINITY } else { total }
}

/// Appends the `count` indices below `len` with the least `key`, least first, equals in random order. For one
/// index `key` is asked once per candidate and nothing is stored.
fn least<K: PartialOrd>(
    len: usize,
    count: usize,
    rng: &mut fastrand::Rng,
    picked: &mut Vec<usize>,
    key: impl Fn(usize) -> K,
) {
    if len == 0 {
        return;
    }
    if count == 1 {
        let (mut best, mut least, mut equals) = (0, key(0), 1usize);
        for i in 1..len {
            let other = key(i);
            if other < least {
                (best, least, equals) = (i, other, 1);
            } else if other == least {
                equals += 1;
                // Each of the equals so far is the one with the same chance.
                if rng.usize(..equals) == 0 {
                    best = i;
                }
            }
        }
        picked.push(best);
        return;
    }
    let start = picked.len();
    picked.extend(0..len);
    let order = &mut picked[start..];
    // After the shuffle no position says anything about the element.
    rng.shuffle(order);
    let ascending = |a: &usize, b: &usize| key(*a).partial_cmp(&key(*b)).unwrap_or(Ordering::Equal);
    if count < order.len() {
        order.select_nth_unstable_by(count - 1, ascending);
    }
    picked.truncate(start + count);
    picked[start..].sort_unstable_by(ascending);
}

/// The requests in flight at each candidate; none without the signal.
fn requests(cx: &Cycle<'_>, slot: Slot) -> u32 {
    cx.signals.in_flight.as_ref().map_or(0, |view| view.requests(slot))
}

/// How much of a prompt endpoints would have to compute.
struct Uncached<'a> {
    prompt: u64,
    prefix: Option<&'a PrefixMatch>,
}

impl<'a> Uncached<'a> {
    /// By what prefix producer `ordinal` found; without it nothing is cached.
    fn of(cx: &Cycle<'a>, ordinal: usize) -> Self {
        let prefix = cx.signals.prefix.get(ordinal);
        let known = prefix.and_then(|m| m.prompt_tokens).or(cx.signals.prompt_tokens);
        Self { prompt: known.unwrap_or_else(|| cx.request.estimated_prompt_tokens()), prefix }
    }

    /// Tokens of the prompt that `slot` does not hold.
    fn tokens(&self, slot: Slot) -> u64 {
        self.prompt.saturating_sub(self.prefix.map_or(0, |m| m.tokens(slot)))
    }
}
