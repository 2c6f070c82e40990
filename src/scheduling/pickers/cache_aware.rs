//! `cache-aware-picker`: SGLang's cache-aware policy, for comparison.
//!
//! Rule, on requests in flight at the candidates: if most - fewest > `balanceAbsThreshold` and most > `balanceRelThreshold` × fewest, the
//! pool is out of balance and the one with the fewest is picked. Else, if the longest match is more than `cacheThreshold` of the prompt, the
//! one that has it; else the one with the fewest requests. Equals by fewer requests, then by lot. Totals are ignored. Source: SGLang's router
//! (`sgl-model-gateway`, policy `cache_aware`) with the defaults of its Kubernetes manifests and of `CacheAwareConfig`.
//!
//! One difference: SGLang's router sends what matches nowhere to the worker with the smallest tree; its gateway, as this
//! picker, to the one with the least load.
//!
//! Inputs: a prefix producer (`prefixMatchInfoProducerName`, else the first one) and requests in flight from
//! `inflight-load-producer`.
//!
//! When it wins: few long sessions with memory for all of them. When it misleads: at middling and high load. Below the thresholds,
//! and 32 requests may be a long queue, a match wins whatever waits there; above them every match is given up.
//! `docs/routing.md` measures it.
//!
//! ```yaml
//! - type: cache-aware-picker
//!   parameters:
//!     cacheThreshold: 0.5
//!     balanceAbsThreshold: 32
//!     balanceRelThreshold: 1.0001
//! ```

use super::{least, requests};
use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Need, Picker, Row, SignalKind, Stability};

crate::params! {
    /// Parameters of `cache-aware-picker`.
    pub struct Params {
        /// How many endpoints to name, best first; those after the first are for the data plane's retries.
        max_num_of_endpoints: usize = 1, "maxNumOfEndpoints", 1..;
        /// Share of the prompt that must match for the match to decide.
        cache_threshold: f32 = 0.5, "cacheThreshold", 0.0..=1.0;
        /// Difference of requests in flight up to which the pool is in balance.
        balance_abs_threshold: u32 = 32, "balanceAbsThreshold";
        /// Ratio of requests in flight up to which the pool is in balance.
        balance_rel_threshold: f32 = 1.0001, "balanceRelThreshold", 1.0..=1e6;
        /// Name of the prefix producer to read; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Name of the inflight-load-producer to read; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "cache-aware-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Picks the longest match while the pool is in balance, else the fewest requests (SGLang); for comparison.",
        params: Params::SPEC,
        sample: "- type: cache-aware-picker\n  parameters:\n    cacheThreshold: 0.5\n    balanceAbsThreshold: 32\n    \
                 balanceRelThreshold: 1.0001\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let name = params.prefix_match_info_producer_name.as_deref();
    let prefix = b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", name);
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    b.need(Need::Prompts);
    Some(Built::picker_by_load(CacheAware { prefix, params }))
}

struct CacheAware {
    prefix: usize,
    params: Params,
}

impl Picker for CacheAware {
    fn pick(&self, cx: &Cycle<'_>, candidates: &[Slot], _: &[f32], rng: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        let Params { cache_threshold, balance_abs_threshold, balance_rel_threshold, .. } = self.params;
        let prefix = cx.signals.prefix.get(self.prefix);
        let (mut fewest, mut most, mut longest) = (u32::MAX, 0, 0.0f32);
        for slot in candidates {
            let requests = requests(cx, *slot);
            (fewest, most) = (fewest.min(requests), most.max(requests));
            longest = longest.max(prefix.map_or(0.0, |m| m.share(*slot)));
        }
        let unbalanced =
            most.saturating_sub(fewest) > balance_abs_threshold && most as f32 > balance_rel_threshold * fewest as f32;
        let by_match = !unbalanced && longest > cache_threshold;
        least(candidates.len(), self.params.max_num_of_endpoints, rng, picked, |i| {
            let matched = prefix.filter(|_| by_match).map_or(0, |m| m.blocks(candidates[i]));
            (std::cmp::Reverse(matched), requests(cx, candidates[i]))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{InFlightView, PrefixMatch};
    use crate::scheduling::fixtures::pool;

    fn first(matched: &[u32], requests: &[u32]) -> usize {
        let mut scene = pool(matched.len());
        *scene.signals.prefix_mut(0) =
            PrefixMatch { block_tokens: 64, total_blocks: 10, matched: matched.to_vec(), ..PrefixMatch::default() };
        scene.signals.in_flight = Some(InFlightView { requests: requests.to_vec(), tokens: vec![] });
        let picker = CacheAware { prefix: 0, params: Params::default() };
        let mut picked = Vec::new();
        picker.pick(&scene.cycle(), &scene.slots(), &[], &mut fastrand::Rng::with_seed(1), &mut picked);
        picked[0]
    }

    #[test]
    fn a_long_match_wins_while_the_pool_is_in_balance() {
        assert_eq!(first(&[0, 6, 9], &[0, 1, 32]), 2, "32 more is in balance");
        assert_eq!(first(&[0, 6, 9], &[0, 1, 33]), 0, "33 more is not");
        assert_eq!(first(&[9, 9, 0], &[5, 4, 3]), 1, "equal matches by requests");
    }

    #[test]
    fn a_short_match_is_none() {
        assert_eq!(first(&[5, 0, 0], &[3, 2, 1]), 2, "half is not more than half");
        assert_eq!(first(&[6, 0, 0], &[3, 2, 1]), 0);
        assert_eq!(first(&[0, 0], &[1, 0]), 1);
    }
}
