//! `lmetric-picker`: the least product of tokens to compute and requests in flight, for comparison.
//!
//! Formula: (prompt tokens of this request that the endpoint does not hold) × (requests in flight there). Of equal
//! products the one with fewer tokens to compute, then fewer requests, then by lot. Totals are ignored. Source: D. Zhang and
//! others, "LMetric: Simple is Better - Multiplication May Be All You Need for LLM Request Scheduling", arXiv 2603.15202, March 2026:
//! "new prefill tokens if routed to an instance" times "current batch size of the instance". A product needs no
//! weights: any factor of either number leaves the order as it is. The order among equals is ours; the paper names
//! products of zero as its weak spot.
//!
//! Inputs: a prefix producer (`prefixMatchInfoProducerName`, else the first one), the prompt tokens of a producer or four bytes each,
//! and requests in flight from `inflight-load-producer`.
//!
//! When it wins: chats of one kind, where the number of requests says how busy an endpoint is. When it misleads: an idle endpoint
//! has the product 0 whatever it would have to compute, so a prefix leaves its endpoint when there is an idle one; a whole
//! match gives 0 as well, whatever waits there. The batch says nothing of how long the prompts in it are.
//!
//! ```yaml
//! - type: lmetric-picker
//!   parameters:
//!     maxNumOfEndpoints: 1
//! ```

use super::{Uncached, least, requests};
use crate::domain::{Costs, Slot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Need, Picker, Row, SignalKind, Stability};

crate::params! {
    /// Parameters of `lmetric-picker`.
    pub struct Params {
        /// How many endpoints to name, best first; those after the first are for the data plane's retries.
        max_num_of_endpoints: usize = 1, "maxNumOfEndpoints", 1..;
        /// Name of the prefix producer to read; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Name of the inflight-load-producer to read; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "lmetric-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Picks by the least product of uncached prompt tokens and requests in flight (LMetric); for comparison.",
        params: Params::SPEC,
        sample: "- type: lmetric-picker\n  parameters:\n    maxNumOfEndpoints: 1\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let name = params.prefix_match_info_producer_name.as_deref();
    let prefix = b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", name);
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    b.need(Need::Prompts);
    Some(Built::picker_by_load(LMetric { count: params.max_num_of_endpoints, prefix }))
}

struct LMetric {
    count: usize,
    prefix: usize,
}

impl Picker for LMetric {
    fn pick(&self, cx: &Cycle<'_>, candidates: &[Slot], _: &[f32], rng: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        let uncached = Uncached::of(cx, self.prefix);
        least(candidates.len(), self.count, rng, picked, |i| {
            let (tokens, batch) = (uncached.tokens(candidates[i]), requests(cx, candidates[i]));
            (u128::from(tokens) * u128::from(batch), tokens, batch)
        });
    }

    fn costs(&self, cx: &Cycle<'_>, candidates: &[Slot], _: &[f32]) -> Option<Costs> {
        let uncached = Uncached::of(cx, self.prefix);
        let product = |slot: &Slot| uncached.tokens(*slot) as f32 * requests(cx, *slot) as f32;
        let values = candidates.iter().map(product).collect();
        Some(Costs { terms: vec!["tokens x requests"], values, unit: "", tolerance: 0.0 })
    }

    fn tie_rule(&self) -> Option<&'static str> {
        Some("fewer tokens to compute, then fewer requests, then lot")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{InFlightView, PrefixMatch};
    use crate::scheduling::fixtures::{Scene, pool};

    fn scene(prompt: u64, matched: &[u32], requests: &[u32]) -> Scene {
        let mut scene = pool(matched.len());
        scene.signals.prompt_tokens = Some(prompt);
        *scene.signals.prefix_mut(0) =
            PrefixMatch { block_tokens: 10, total_blocks: 100, matched: matched.to_vec(), ..PrefixMatch::default() };
        scene.signals.in_flight = Some(InFlightView { requests: requests.to_vec(), tokens: vec![] });
        scene
    }

    fn order(scene: &Scene) -> Vec<usize> {
        let (slots, mut picked) = (scene.slots(), Vec::new());
        let mut rng = fastrand::Rng::with_seed(1);
        LMetric { count: 9, prefix: 0 }.pick(&scene.cycle(), &slots, &[], &mut rng, &mut picked);
        let mut first = Vec::new();
        LMetric { count: 1, prefix: 0 }.pick(&scene.cycle(), &slots, &[], &mut rng, &mut first);
        assert_eq!(first.first(), picked.first());
        picked
    }

    #[test]
    fn the_product_decides() {
        // 900 x 2, 100 x 10, 500 x 3.
        assert_eq!(order(&scene(1_000, &[10, 90, 50], &[2, 10, 3])), [1, 2, 0]);
        assert_eq!(order(&scene(1_000_000, &[0, 0], &[7, 6])), [1, 0]);
        assert_eq!(order(&scene(u64::MAX, &[0, 0], &[u32::MAX, 6])), [1, 0], "nothing overflows");
    }

    #[test]
    fn products_of_zero_go_by_tokens_and_then_by_requests() {
        assert_eq!(order(&scene(1_000, &[10, 50, 0], &[0, 0, 4])), [1, 0, 2]);
        assert_eq!(order(&scene(1_000, &[100, 200, 20], &[9, 5, 0])), [1, 0, 2], "all cached");
        assert_eq!(order(&scene(0, &[], &[])), [] as [usize; 0]);
        let scene = scene(1_000, &[10, 90], &[2, 10]);
        let costs = LMetric { count: 1, prefix: 0 }.costs(&scene.cycle(), &scene.slots(), &[]).unwrap();
        assert_eq!((costs.total(0), costs.total(1)), (1_800.0, 1_000.0));
    }
}
