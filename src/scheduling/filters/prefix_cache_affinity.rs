//! `prefix-cache-affinity-filter`: stay with the endpoints that hold the prompt, until they are too far behind.
//!
//! Rule. *Sticky* are the candidates that hold at least `affinityThreshold` of the prompt's blocks. Only they are kept, unless
//! there are none, or the best of them would give the first token more than `maxTTFTPenaltyMs` later than the best of the others; then all
//! are kept. The time to the first token is estimated as (uncached tokens in flight) / `peakPrefillThroughput`. With
//! `explorationProbability` some requests are let through to all candidates. Source: the plugin of this name of llm-d-router, whose
//! parameters and defaults these are.
//!
//! Differences: there the time may also come from a latency predictor (`ttftSource: latencyPredictor`), which this picker does not
//! have. Who explores is drawn from the request's id, so that a decision can be repeated.
//!
//! Inputs: a prefix producer (`prefixMatchInfoProducerName`, else the first one) and uncached tokens in flight from
//! `inflight-load-producer`. Prompts below one block, and endpoints of which nothing is in flight, are as they are: nothing held, no wait.
//!
//! When it wins: long sessions that must stay where they are; beside scorers that would give a match up for a little less load. When it
//! misleads: 18 seconds are long: with `queue-scorer`, `kv-cache-utilization-scorer` and `prefix-cache-scorer` beside it the simulated
//! traces show next to no difference, since those keep to the matches anyway. The rate is a constant for all endpoints; set it to
//! what yours do.
//!
//! ```yaml
//! - type: prefix-cache-affinity-filter
//!   parameters:
//!     affinityThreshold: 0.8
//!     maxTTFTPenaltyMs: 18000
//!     peakPrefillThroughput: 15928
//! ```

use xxhash_rust::xxh3::xxh3_64;

use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Filter, Need, Row, SignalKind, Stability};

crate::choice! {
    /// Where the estimate of the time to the first token comes from.
    pub enum TtftSource {
        /// Tokens in flight over the peak rate.
        PrefillThroughput = "prefillThroughput",
        /// A latency predictor, which there is none of.
        LatencyPredictor = "latencyPredictor",
    }
}

crate::params! {
    /// Parameters of `prefix-cache-affinity-filter`.
    pub struct Params {
        /// Share of the prompt that an endpoint must hold to be sticky.
        affinity_threshold: f32 = 0.8, "affinityThreshold", 0.0..=1.0;
        /// Share of the requests that all candidates are kept for.
        exploration_probability: f32 = 0.0, "explorationProbability", 0.0..=1.0;
        /// Time in milliseconds by which the sticky ones may be behind.
        max_ttft_penalty_ms: f32 = 18_000.0, "maxTTFTPenaltyMs", 0.0..=1e9;
        /// Where the estimate of the time to the first token comes from; only `prefillThroughput`.
        ttft_source: TtftSource = TtftSource::PrefillThroughput, "ttftSource";
        /// Tokens per second that an endpoint computes.
        peak_prefill_throughput: f32 = 15_928.0, "peakPrefillThroughput", 1.0..=1e9;
        /// Name of the prefix producer to read; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Name of the inflight-load-producer to read; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "prefix-cache-affinity-filter",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Keeps the endpoints that hold most of the prompt, unless their backlog is too far above that of the others.",
        params: Params::SPEC,
        sample: "- type: prefix-cache-affinity-filter\n  parameters:\n    affinityThreshold: 0.8\n    \
                 maxTTFTPenaltyMs: 18000\n    peakPrefillThroughput: 15928\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    if params.ttft_source == TtftSource::LatencyPredictor {
        b.error("ttftSource", "there is no latency predictor", "write `prefillThroughput`, or remove the field");
    }
    let name = params.prefix_match_info_producer_name.as_deref();
    let prefix = b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", name);
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    b.need(Need::Prompts);
    Some(Built::filter(PrefixCacheAffinity { prefix, params }))
}

struct PrefixCacheAffinity {
    prefix: usize,
    params: Params,
}

impl PrefixCacheAffinity {
    fn explores(&self, id: &str) -> bool {
        // 24 bits are what an f32 can tell apart.
        (xxh3_64(id.as_bytes()) >> 40) as f32 / ((1u32 << 24) as f32) < self.params.exploration_probability
    }
}

impl Filter for PrefixCacheAffinity {
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>) {
        let Some(prefix) = cx.signals.prefix.get(self.prefix).filter(|m| m.total_blocks > 0) else { return };
        if self.explores(&cx.request.id) {
            return;
        }
        let is_sticky = |slot: Slot| prefix.share(slot) >= self.params.affinity_threshold;
        // Seconds until the best of each kind would begin.
        let (mut sticky, mut other) = (f32::INFINITY, f32::INFINITY);
        for slot in candidates.iter() {
            let tokens = cx.signals.in_flight.as_ref().map_or(0, |view| view.tokens(*slot));
            let best = if is_sticky(*slot) { &mut sticky } else { &mut other };
            *best = best.min(tokens as f32 / self.params.peak_prefill_throughput);
        }
        if sticky.is_finite() && sticky - other <= self.params.max_ttft_penalty_ms / 1_000.0 {
            candidates.retain(|slot| is_sticky(*slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::Value;
    use crate::domain::{InFlightView, PrefixMatch};
    use crate::scheduling::fixtures::{Scene, build, errors, pool, text};

    fn scene(matched: &[u32], tokens: &[u64]) -> Scene {
        let mut scene = pool(matched.len());
        *scene.signals.prefix_mut(0) =
            PrefixMatch { block_tokens: 64, total_blocks: 10, matched: matched.to_vec(), ..PrefixMatch::default() };
        scene.signals.in_flight = Some(InFlightView { requests: vec![], tokens: tokens.to_vec() });
        scene
    }

    #[test]
    fn the_sticky_ones_are_kept_until_they_are_too_far_behind() {
        let rate = |tokens: i64| build(&ROW, vec![("peakPrefillThroughput", Value::Integer(tokens))]);
        let filter = rate(1_000);
        assert_eq!(scene(&[8, 7, 10, 0], &[0, 0, 0, 0]).kept(&filter), [0, 2], "eight of ten is enough");
        assert_eq!(scene(&[7, 7], &[9, 0]).kept(&filter), [0, 1], "nobody is sticky");
        assert_eq!(scene(&[9, 9], &[1 << 40, 1 << 40]).kept(&filter), [0, 1], "all are");
        assert_eq!(scene(&[9, 0, 9], &[20_000, 1_500, 19_500]).kept(&filter), [0, 2], "18 seconds behind");
        assert_eq!(scene(&[9, 0, 9], &[20_000, 1_499, 19_500]).kept(&filter), [0, 1, 2], "and a little more");
        assert_eq!(scene(&[9, 0, 9], &[20_000, 1_499, 19_500]).kept(&rate(2_000)), [0, 2], "of a faster one");
    }

    #[test]
    fn without_blocks_or_a_signal_all_pass() {
        let filter = build(&ROW, vec![("affinityThreshold", Value::Integer(0))]);
        let mut short = scene(&[0, 0], &[0, 0]);
        short.signals.prefix[0].total_blocks = 0;
        assert_eq!(short.kept(&filter), [0, 1]);
        assert_eq!(pool(2).kept(&filter), [0, 1]);
    }

    #[test]
    fn some_explore_and_always_the_same() {
        let filter = build(&ROW, vec![("explorationProbability", Value::Float(0.25))]);
        let mut scene = scene(&[9, 0], &[0, 0]);
        let mut explores = |id: usize| {
            scene.request.id = format!("request-{id}").into();
            scene.kept(&filter).len() == 2
        };
        let first: Vec<bool> = (0..4_000).map(&mut explores).collect();
        let count = first.iter().filter(|explored| **explored).count();
        assert!((900..1_100).contains(&count), "{count}");
        assert_eq!((0..4_000).map(&mut explores).collect::<Vec<_>>(), first);
    }

    #[test]
    fn a_predictor_is_refused() {
        let wrong = errors(&ROW, vec![("ttftSource", text("latencyPredictor"))]);
        assert!(wrong[0].contains("there is no latency predictor"), "{wrong:?}");
    }
}
