//! `cost-picker`: the least expected cost in seconds.
//!
//! Rule: each candidate costs the sum of the terms of [`cost`](crate::scheduling::cost): own prefill, wait, delay put
//! on later arrivals, cache pushed out, balance, memory. The least wins. Candidates within `tieSeconds` plus
//! `tieShare` of the least count as equal; of those the one with the least intake wins (uncached tokens
//! routed there lately, plus 2000 for each request in flight), and equals among these are drawn by lot. Fallbacks
//! (`maxNumOfEndpoints`) follow by cost.
//!
//! **Scorers beside it.** The weighted sum of the profile's scorers is subtracted as seconds: the weight of a scorer is
//! how many seconds a score of 1 is worth against a score of 0. `session-affinity-scorer` with
//! weight 0.5 keeps a session where it is unless another endpoint is half a second cheaper. Filters work as with
//! any picker.
//!
//! Inputs: the accounts of `prefill-account-producer` and a prefix producer, both created when none is
//! configured; the metrics for waiting requests, KV usage, block size and number of blocks. What each term
//! does without its input is said in [`cost`](crate::scheduling::cost).
//!
//! The weights. Simulated on four kinds of traffic at 50 to 100 % load, `delayOnOthersWeight` 1 to 8,
//! `evictionWeight` 4 to 32 and `balanceWeight` 0 to 2 changed the mean time to first token by 1 to 3 %, so there
//! is no reason to tune them; but a `delayOnOthersWeight` of 0 lost nearly the whole gain. Per profile: one
//! that only decodes what another endpoint computes has no prefill of its own (`prefillWeight: 0`, `waitWeight: 0`,
//! `delayOnOthersWeight: 0`).
//!
//! When it misleads: it believes the prefix match. With an index that promises what the servers have thrown away it
//! sends requests to wait for a cache that is not there; give the index the servers' true capacity.
//!
//! Rejected: **the least expected time to first token** (prefill and wait alone). As good as any at half
//! load, and it collapses when loaded: each request avoids a short wait by computing its prefix again on another
//! endpoint, until all compute everything. **A sum of normalised scores** (0 to 1 within the candidates): the
//! trade between a second of wait and a second of prefill then depends on who else is a candidate, and
//! no set of weights is right for short and long prompts at once; the best one found was a third worse.
//!
//! ```yaml
//! - type: cost-picker
//!   parameters:
//!     delayOnOthersWeight: 2
//!     evictionWeight: 8
//!     balanceWeight: 1
//! ```

use std::cell::RefCell;

use crate::domain::{Costs, Slot};
use crate::scheduling::cost::{Facts, Terms, Weights};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Metric, Need, Picker, Row, SignalKind, Stability};

/// Tokens of intake that a request in flight counts for in a tie: it will go on taking up memory and steps.
const TOKENS_PER_REQUEST: f32 = 2_000.0;

crate::params! {
    /// Parameters of `cost-picker`.
    pub struct Params {
        /// Weight of the time to compute the part of the prompt that the endpoint has not cached; 0 for a profile whose endpoint does not compute the prompt.
        prefill_weight: f32 = 1.0, "prefillWeight", 0.0..=1_000.0;
        /// Weight of the wait for what was sent to the endpoint before.
        wait_weight: f32 = 1.0, "waitWeight", 0.0..=1_000.0;
        /// Weight of the delay put on later requests: more keeps prompts where they are cached though there is a queue. 1 to 8 differ by 1 to 3 %, 0 is the greedy rule that collapses under load.
        delay_on_others_weight: f32 = 2.0, "delayOnOthersWeight", 0.0..=1_000.0;
        /// Weight of the cache that is pushed out: more sends new prompts to endpoints whose cache has room or is old. 4 to 32 differ by 1 to 3 %.
        eviction_weight: f32 = 8.0, "evictionWeight", 0.0..=1_000.0;
        /// Seconds that an endpoint costs which was given prefill without a pause lately: more spreads new conversations. 0 to 2 differ by 1 to 3 %.
        balance_weight: f32 = 1.0, "balanceWeight", 0.0..=1_000.0;
        /// Weight of the wait for room in the KV cache.
        memory_weight: f32 = 1.0, "memoryWeight", 0.0..=1_000.0;
        /// Costs this close in seconds to the least one count as equal; then the least intake decides.
        tie_seconds: f32 = 0.01, "tieSeconds", 0.0..=1_000.0;
        /// Share of the least cost that is added to `tieSeconds`.
        tie_share: f32 = 0.02, "tieShare", 0.0..=1.0;
        /// How many endpoints to name, best first; those after the first are for the data plane's retries.
        max_num_of_endpoints: usize = 1, "maxNumOfEndpoints", 1..;
        /// Name of the prefix producer to read; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Name of the prefill-account-producer to read; the only one by default.
        prefill_account_producer_name: Option<String> = None, "prefillAccountProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "cost-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Picks the endpoint with the least expected cost in seconds, to this request and to others.",
        params: Params::SPEC,
        sample: "- type: cost-picker\n  parameters:\n    delayOnOthersWeight: 2\n    evictionWeight: 8\n    balanceWeight: 1\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let prefix = params.prefix_match_info_producer_name.as_deref();
    let prefix = b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", prefix);
    // There is one account signal, so the ordinal says nothing; a wrong name is still an error.
    b.consumes(SignalKind::Account, "prefillAccountProducerName", params.prefill_account_producer_name.as_deref());
    for need in [
        Need::Prompts,
        Need::Usage,
        Need::Caches,
        Need::Metric(Metric::CacheInfo),
        Need::Metric(Metric::KvUsage),
        Need::Metric(Metric::Waiting),
    ] {
        b.need(need);
    }
    let weights = Weights {
        prefill: params.prefill_weight,
        wait: params.wait_weight,
        delay_on_others: params.delay_on_others_weight,
        eviction: params.eviction_weight,
        balance: params.balance_weight,
        memory: params.memory_weight,
    };
    Some(Built::picker_by_load(CostPicker {
        prefix,
        weights,
        tie_seconds: params.tie_seconds,
        tie_share: params.tie_share,
        count: params.max_num_of_endpoints,
    }))
}

struct CostPicker {
    prefix: usize,
    weights: Weights,
    tie_seconds: f32,
    tie_share: f32,
    count: usize,
}

thread_local! {
    /// The costs of the candidates of the decision that this thread is making.
    static COSTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Cost less credit as something that can be compared: what is not a number is worst.
#[inline]
fn net(cost: f32, credit: f32) -> f32 {
    let net = cost - credit;
    if net.is_nan() { f32::INFINITY } else { net }
}

impl CostPicker {
    /// Distance from the least cost within which costs count as equal. Credit can make the least cost negative;
    /// a share of that means nothing.
    fn tolerance(&self, least: f32) -> f32 {
        self.tie_seconds + if least.is_finite() { self.tie_share * least.max(0.0) } else { 0.0 }
    }

    /// The index of the cheapest candidate under the tie rule; `costs` is not empty.
    fn first(
        &self,
        facts: &Facts<'_>,
        candidates: &[Slot],
        costs: &[f32],
        least: f32,
        rng: &mut fastrand::Rng,
    ) -> usize {
        let limit = least + self.tolerance(least);
        let (mut first, mut lowest, mut equals) = (0, f32::INFINITY, 0u32);
        for (i, slot) in candidates.iter().enumerate() {
            if costs[i] > limit {
                continue;
            }
            let account = facts.account(*slot);
            let taken = account.intake + TOKENS_PER_REQUEST * account.in_flight as f32;
            if equals == 0 || taken < lowest {
                (first, lowest, equals) = (i, taken, 1);
            } else if taken == lowest {
                // Each of n equals stays with a chance of 1 in n.
                equals += 1;
                if rng.u32(..equals) == 0 {
                    first = i;
                }
            }
        }
        first
    }
}

impl Picker for CostPicker {
    fn pick(
        &self,
        cx: &Cycle<'_>,
        candidates: &[Slot],
        totals: &[f32],
        rng: &mut fastrand::Rng,
        picked: &mut Vec<usize>,
    ) {
        if candidates.is_empty() {
            return;
        }
        let facts = Facts::of(cx, self.prefix);
        self.choose(&facts, candidates, totals, rng, picked, |_, _| {});
    }

    fn pick_explained(
        &self,
        cx: &Cycle<'_>,
        candidates: &[Slot],
        totals: &[f32],
        rng: &mut fastrand::Rng,
        picked: &mut Vec<usize>,
    ) -> Option<Costs> {
        let facts = Facts::of(cx, self.prefix);
        // Without scorers there is nothing to show.
        let scored = totals.iter().any(|credit| *credit != 0.0);
        let mut terms = Terms::NAMES.to_vec();
        terms.extend(scored.then_some("scores"));
        let mut values = Vec::with_capacity(candidates.len() * terms.len());
        let mut least = f32::INFINITY;
        if !candidates.is_empty() {
            least = self.choose(&facts, candidates, totals, rng, picked, |of_slot, credit| {
                values.extend(of_slot.values());
                // Not a negation, which would show a zero as -0.
                values.extend(scored.then_some(0.0 - credit));
            });
        }
        Some(Costs { terms, values, unit: "s", tolerance: self.tolerance(least) })
    }

    fn tie_rule(&self) -> Option<&'static str> {
        Some("the least intake: what was sent there uncached of late, and 2000 tokens a request in flight")
    }
}

impl CostPicker {
    /// Chooses among `candidates`, which are not empty, shows the terms and the credit of each, and returns the least
    /// cost.
    #[inline]
    fn choose(
        &self,
        facts: &Facts<'_>,
        candidates: &[Slot],
        totals: &[f32],
        rng: &mut fastrand::Rng,
        picked: &mut Vec<usize>,
        mut show: impl FnMut(&Terms, f32),
    ) -> f32 {
        COSTS.with_borrow_mut(|costs| {
            costs.clear();
            costs.extend(candidates.iter().zip(totals).map(|(slot, credit)| {
                let terms = facts.terms(*slot, &self.weights);
                show(&terms, *credit);
                net(terms.sum(), *credit)
            }));
            // None of them is not a number.
            let least =
                costs.iter().copied().fold(f32::INFINITY, |least, cost| if cost < least { cost } else { least });
            let first = self.first(facts, candidates, costs, least, rng);
            if self.count == 1 {
                picked.push(first);
                return least;
            }
            let start = picked.len();
            picked.extend(0..costs.len());
            picked.swap(start, start + first);
            let rest = &mut picked[start + 1..];
            // Equal costs keep the order of slots: nobody picks among fallbacks often enough to care.
            let ascending = |a: &usize, b: &usize| costs[*a].total_cmp(&costs[*b]).then(a.cmp(b));
            let wanted = self.count - 1;
            if wanted < rest.len() {
                rest.select_nth_unstable_by(wanted - 1, ascending);
            }
            picked.truncate(start + self.count);
            picked[start + 1..].sort_unstable_by(ascending);
            least
        })
    }
}

#[cfg(test)]
mod tests;
