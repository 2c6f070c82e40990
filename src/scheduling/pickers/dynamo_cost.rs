//! `dynamo-cost-picker`: the cost of NVIDIA Dynamo's KV router, for comparison.
//!
//! Formula, in blocks: w × prefill blocks + decode blocks, least first, equals by lot; w = `overlapScoreWeight`. *Prefill blocks* are
//! the tokens that the endpoint would have to compute, those of requests before this one included: (uncached tokens
//! in flight + prompt tokens - tokens held) / block size. *Decode blocks* are those in use there with this request in it: blocks in use +
//! prompt blocks that the endpoint does not hold. Totals are ignored. Source: NVIDIA Dynamo's documentation, "Router Design"
//! (docs.nvidia.com/dynamo), cost function with `--router-kv-overlap-score-weight` 1.0 and `--router-temperature` 0.
//!
//! One difference: Dynamo counts the blocks of the requests that it routed, each shared block once. Here the blocks in
//! use are what the model server last reported (KV cache usage × blocks), and none where that is not known.
//!
//! Inputs: a prefix producer (`prefixMatchInfoProducerName`, else the first one), the prompt tokens, uncached tokens in flight from
//! `inflight-load-producer`, KV usage and cache geometry as scraped.
//!
//! When it wins: light load: it sees long prefills that queues do not show. When it misleads: near capacity. It is the expected time of this
//! request alone; each request avoids a short wait by computing a prefix again elsewhere, which makes the wait longer for all.
//! `docs/routing.md` measures it.
//!
//! ```yaml
//! - type: dynamo-cost-picker
//!   parameters:
//!     overlapScoreWeight: 1.0
//! ```

use super::{Uncached, least};
use crate::domain::{Costs, Slot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Metric, Need, Picker, Row, SignalKind, Stability};

/// Tokens per block where no prefix producer says.
const BLOCK_TOKENS: u32 = 64;

crate::params! {
    /// Parameters of `dynamo-cost-picker`.
    pub struct Params {
        /// How many endpoints to name, best first; those after the first are for the data plane's retries.
        max_num_of_endpoints: usize = 1, "maxNumOfEndpoints", 1..;
        /// Weight of blocks to compute against blocks in use.
        overlap_score_weight: f32 = 1.0, "overlapScoreWeight", 0.0..=1e6;
        /// Name of the prefix producer to read; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Name of the inflight-load-producer to read; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "dynamo-cost-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Picks by the cost of NVIDIA Dynamo's KV router: blocks to compute plus blocks in use; for comparison.",
        params: Params::SPEC,
        sample: "- type: dynamo-cost-picker\n  parameters:\n    overlapScoreWeight: 1.0\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let name = params.prefix_match_info_producer_name.as_deref();
    let prefix = b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", name);
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    b.need(Need::Prompts);
    b.need(Need::Metric(Metric::KvUsage));
    b.need(Need::Metric(Metric::CacheInfo));
    Some(Built::picker_by_load(DynamoCost {
        count: params.max_num_of_endpoints,
        weight: params.overlap_score_weight,
        prefix,
    }))
}

struct DynamoCost {
    count: usize,
    weight: f32,
    prefix: usize,
}

impl DynamoCost {
    /// Weighted blocks to compute and blocks in use, by endpoint.
    fn blocks<'a>(&self, cx: &'a Cycle<'a>) -> impl Fn(Slot) -> [f32; 2] + 'a {
        let uncached = Uncached::of(cx, self.prefix);
        let block_tokens = uncached.prefix.map_or(BLOCK_TOKENS, |m| m.block_tokens).max(1) as f32;
        let (weight, loads) = (self.weight, &cx.snapshot.loads);
        move |slot| {
            let own = uncached.tokens(slot) as f32;
            let ahead = cx.signals.in_flight.as_ref().map_or(0, |view| view.tokens(slot)) as f32;
            let used = loads.kv_usage(slot).zip(loads.detail(slot)).map_or(0.0, |(usage, detail)| {
                usage * detail.num_blocks.unwrap_or(0) as f32 * detail.block_size.unwrap_or(0) as f32
            });
            [weight * (ahead + own) / block_tokens, (used + own) / block_tokens]
        }
    }
}

impl Picker for DynamoCost {
    fn pick(&self, cx: &Cycle<'_>, candidates: &[Slot], _: &[f32], rng: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        let blocks = self.blocks(cx);
        least(candidates.len(), self.count, rng, picked, |i| blocks(candidates[i]).iter().sum::<f32>());
    }

    fn costs(&self, cx: &Cycle<'_>, candidates: &[Slot], _: &[f32]) -> Option<Costs> {
        let blocks = self.blocks(cx);
        let values = candidates.iter().flat_map(|slot| blocks(*slot)).collect();
        Some(Costs { terms: vec!["prefill", "decode"], values, unit: "blocks", tolerance: 0.0 })
    }

    fn tie_rule(&self) -> Option<&'static str> {
        Some("lot")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{InFlightView, LoadDetail, LoadSample, PrefixMatch};
    use crate::scheduling::fixtures::{NOW, Scene, sampled};

    /// Endpoints by (blocks held, tokens in flight, KV usage of 1,000 blocks of 16 tokens); 640 prompt tokens.
    fn scene(endpoints: &[(u32, u64, Option<f32>)]) -> Scene {
        let detail = Arc::new(LoadDetail { block_size: Some(16), num_blocks: Some(1_000), ..LoadDetail::default() });
        let samples: Vec<_> = endpoints
            .iter()
            .map(|(_, _, kv_usage)| {
                let (kv_usage, detail) = (*kv_usage, Arc::clone(&detail));
                kv_usage.map(|_| LoadSample { taken_at: NOW, kv_usage, detail, ..LoadSample::default() })
            })
            .collect();
        let mut scene = sampled(&samples);
        scene.signals.prompt_tokens = Some(640);
        let matched = endpoints.iter().map(|e| e.0).collect();
        *scene.signals.prefix_mut(0) =
            PrefixMatch { block_tokens: 64, total_blocks: 10, matched, ..PrefixMatch::default() };
        let tokens = endpoints.iter().map(|e| e.1).collect();
        scene.signals.in_flight = Some(InFlightView { requests: vec![], tokens });
        scene
    }

    fn picker(weight: f32, count: usize) -> DynamoCost {
        DynamoCost { count, weight, prefix: 0 }
    }

    #[test]
    fn counts_what_is_to_be_computed_and_what_is_in_use() {
        let scene = scene(&[(10, 0, Some(0.2)), (0, 320, Some(0.1)), (5, 0, None)]);
        let costs = picker(2.0, 1).costs(&scene.cycle(), &scene.slots(), &[]).unwrap();
        assert_eq!(costs.of(0), [0.0, 50.0], "all held; 3,200 tokens in use");
        assert_eq!(costs.of(1), [30.0, 35.0], "15 blocks twice; 25 in use and 10 more");
        assert_eq!(costs.of(2), [10.0, 5.0], "nothing known of it");
    }

    #[test]
    fn the_weight_turns_the_order() {
        let scene = scene(&[(10, 0, Some(0.2)), (0, 0, Some(0.1))]);
        let order = |weight| {
            let mut picked = Vec::new();
            let mut rng = fastrand::Rng::with_seed(3);
            picker(weight, 5).pick(&scene.cycle(), &scene.slots(), &[], &mut rng, &mut picked);
            let mut first = Vec::new();
            picker(weight, 1).pick(&scene.cycle(), &scene.slots(), &[], &mut rng, &mut first);
            assert_eq!(first[0], picked[0]);
            picked
        };
        assert_eq!((order(1.0), order(2.0)), (vec![1, 0], vec![0, 1]), "50 against 45, and against 55");
    }
}
