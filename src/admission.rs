//! `just-in-time-dispatch`: requests wait here, in a good order, until an endpoint can start on them.
//!
//! **Why.** What was sent cannot be taken back: a short prompt behind a long one waits in the engine, and
//! a request that was sent early was sent on what was known early. Held here it goes first where that costs
//! the others little, to the endpoint that is best when it goes.
//!
//! Rule. In mode `hold` a request waits while this picker's own part of the wait `W` at its best endpoint is above
//! `holdAbove` (`H`),
//! or while one that goes first waits for the same endpoint, or while that endpoint's cache has no room for
//! it. The queue is ordered by `arrival + orderWeight × least own prefill time over the endpoints`, so within
//! a flow nobody is overtaken by what came later than `orderWeight` times its own prefill time after it.
//! A plan goes through the first `planDepth` of the queue: each is decided by the same filters, scorers
//! and picker as ever, which see in [`Account::ahead`](crate::domain::Account) what is promised to those before it.
//! Plans are made on arrivals, first tokens, ends, and every 20 ms while anything is held.
//!
//! **Priority and fairness.** Objectives of higher priority go first, whatever the order keys. Among the
//! fairness ids of one priority, see [`queue`].
//!
//! **Never a lost request.** Holding is a courtesy. After `maxHold` a request is sent to its best endpoint at
//! once, whatever the wait. Beyond `maxRequests` or `maxBytes` the newest of the lowest priority is refused
//! (429, `rejected-saturated`). A client that leaves frees its place at once. When the process is told to stop it sends
//! what it holds at once and holds nothing more. Counted as bytes are bodies, the token ids in them, and block hashes;
//! what else a held request takes (its headers and its stream) is bounded by `maxRequests`.
//!
//! **When it holds.** Only what may wait: the data plane sets no time limit (FULL_DUPLEX_STREAMED), the
//! prefill rate is learnt (`minSamples`), and at least half of the answers of late were streamed, since
//! without first tokens nobody knows when a prefill ended. Everything else is sent at once, and
//! `dispatch_total` counts by reason.
//!
//! **In the engine instead.** With `writePriority` the order key, in milliseconds of wall time, is written into the
//! `priority` member of OpenAI bodies that have none. vLLM takes the lowest first if it runs with
//! `--scheduling-policy priority`; other engines ignore it. With mode `immediate` this gives most of the gain
//! where requests cannot be held.
//!
//! Inputs: the account of `prefill-account-producer`, which is created when none is configured; the prefix
//! signal, scraped KV usage and cache geometry where they are known.
//!
//! Missing data: an endpoint whose account is empty has no wait; one whose cache size is unknown has room.
//!
//! When it misleads: others' waiting requests count where an endpoint is chosen and hold nothing: nobody here would see
//! them end, and next to others who do not wait a request could wait for ever. Others' running requests are in
//! the KV usage, so where they fill a cache, and something of this picker's runs there as well, requests wait for the end of
//! that. Each replica of the picker has a queue of its own.
//!
//! ```yaml
//! - type: just-in-time-dispatch
//!   parameters:
//!     mode: hold
//! ```

pub mod queue;

use std::sync::Arc;
use std::time::Duration;

use crate::domain::Timestamp;
use crate::scheduling::dispatch::{Dispatch, DispatchMode};
use crate::scheduling::params::{Params as _, Quantity};
use crate::scheduling::plugin::{About, Build, Built, Metric, Need, Row, SignalKind, Stability};

crate::params! {
    /// Parameters of `just-in-time-dispatch`.
    pub struct Params {
        /// `hold` until an endpoint can start, `immediate` (never hold), or `off`.
        mode: DispatchMode = DispatchMode::Hold, "mode";
        /// Part of the wait at the best endpoint that this picker caused itself, above which a request is held. 50 to 300 ms make no difference; a second or more gives the gain away.
        hold_above: Duration = std::time::Duration::from_millis(200), "holdAbove";
        /// Seconds of waiting that one second of own prefill counts for in the order. 0 is first come, first served; 10 is milder to long prompts.
        order_weight: f64 = 20.0, "orderWeight", 0.0..=10_000.0;
        /// Requests at the head of the queue that one plan looks at.
        plan_depth: usize = 64, "planDepth", 1..=1_024;
        /// Most requests that are held; beyond them the newest of the lowest priority is refused.
        max_requests: usize = 10_000, "maxRequests", 1..=1_000_000;
        /// Most bytes of requests that are held; beyond them the newest of the lowest priority is refused.
        max_bytes: Quantity = Quantity(1 << 30), "maxBytes";
        /// Longest time that a request is held; then it is sent whatever the wait.
        max_hold: Duration = std::time::Duration::from_secs(60), "maxHold";
        /// Samples of the prefill rate without which nothing is held.
        min_samples: u32 = 20, "minSamples", 0..=1_000_000;
        /// Prefill time by which a fairness id may be ahead of its share before others go first.
        fairness_quantum: Duration = std::time::Duration::from_secs(2), "fairnessQuantum";
        /// Write the order key into the `priority` member of OpenAI bodies, for engines with priority scheduling.
        write_priority: bool = false, "writePriority";
        /// Name of the producer that keeps the accounts; the only one by default.
        prefill_account_producer_name: Option<String> = None, "prefillAccountProducerName";
        /// Name of the prefix producer that says what is cached; the first one, if any, by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
    }
}

/// Every plugin of this room that a configuration can name.
pub const TABLE: &[Row] = &[ROW];

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "just-in-time-dispatch",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Holds requests, in a good order, until an endpoint can start on them.",
        params: Params::SPEC,
        sample: "- type: just-in-time-dispatch\n  parameters:\n    mode: hold\n    holdAbove: 200ms\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    if params.mode == DispatchMode::Off {
        // Nothing is done, so nothing is asked for.
        return Some(Built { dispatch: Some(Arc::new(settings(&params, 0))), ..Built::default() });
    }
    // There is one account, so the ordinal says nothing; a wrong name is still an error.
    b.consumes(SignalKind::Account, "prefillAccountProducerName", params.prefill_account_producer_name.as_deref());
    let prefix = match &params.prefix_match_info_producer_name {
        None => 0,
        Some(name) => b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", Some(name)),
    };
    b.need(Need::Prompts);
    if params.mode == DispatchMode::Hold {
        check_hold(&params, b);
        b.need(Need::Caches);
        for metric in [Metric::KvUsage, Metric::CacheInfo] {
            b.need(Need::Metric(metric));
        }
    }
    Some(Built { dispatch: Some(Arc::new(settings(&params, prefix))), ..Built::default() })
}

/// Values that would hold nothing, or refuse what should be held.
fn check_hold(params: &Params, b: &mut Build<'_>) {
    if params.max_bytes.0 == 0 {
        let message = "`0` has room for no request: each that should be held would be refused";
        b.error("maxBytes", message, "write a size such as 1Gi, or `mode: immediate` to hold nothing");
    }
    let (above, longest) = (params.hold_above, params.max_hold);
    if longest.is_zero() {
        b.warn(
            "maxHold",
            "`0s` sends every request at once: nothing is held",
            "write `mode: immediate`, or a time such as 60s",
        );
    } else if above >= longest {
        let message = format!(
            "`{above:?}` is not below `maxHold` ({longest:?}): what is held is mostly sent before an endpoint is free"
        );
        b.warn("holdAbove", message, "write a shorter time, such as the default of 200ms, or a longer maxHold");
    }
}

fn settings(params: &Params, prefix: usize) -> Dispatch {
    Dispatch {
        mode: params.mode,
        hold_above: params.hold_above.as_secs_f32(),
        order_weight: params.order_weight,
        plan_depth: params.plan_depth,
        max_requests: params.max_requests,
        max_bytes: params.max_bytes.0,
        max_hold: params.max_hold,
        min_samples: params.min_samples,
        fairness_quantum: params.fairness_quantum,
        write_priority: params.write_priority,
        prefix,
    }
}

/// Where a request stands in the order, in microseconds: its arrival and `weight` times its least own
/// prefill time in seconds. The epoch is that of `arrival`.
pub fn order_key(arrival: Timestamp, weight: f64, prefill: f32) -> u64 {
    let prefill = if prefill.is_finite() { f64::from(prefill.max(0.0)) } else { 0.0 };
    // A float that is too large for the integer saturates.
    arrival.0.saturating_add((prefill * weight * 1e6) as u64)
}

#[cfg(test)]
mod tests;
