//! `least-request-picker`: the endpoint with the fewest requests in flight, for comparison.
//!
//! Rule: least requests in flight, equals by lot. Totals are ignored. The oldest rule of load balancers (nginx
//! `least_conn`, HAProxy `leastconn`, Envoy `LEAST_REQUEST` with full scan).
//!
//! Inputs: requests in flight from `inflight-load-producer`, which is created when none is configured; without that
//! signal all are equal. Counts are exact at the moment of the decision and know nothing of other replicas.
//!
//! When it wins: prompts that share nothing and are of similar length. When it misleads: prompts that share much. It spreads
//! a conversation over all endpoints, and each computes it anew: simulated on a conversation trace at 80 % load it has a
//! third of the hits that are to be had. A request of 100,000 tokens counts like one of ten.
//!
//! ```yaml
//! - type: least-request-picker
//!   parameters:
//!     maxNumOfEndpoints: 1
//! ```

use super::{least, requests};
use crate::domain::{Costs, Slot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Picker, Row, SignalKind, Stability};

crate::params! {
    /// Parameters of `least-request-picker`.
    pub struct Params {
        /// How many endpoints to name, best first; those after the first are for the data plane's retries.
        max_num_of_endpoints: usize = 1, "maxNumOfEndpoints", 1..;
        /// Name of the inflight-load-producer to read; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "least-request-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Picks the endpoint with the fewest requests in flight, whatever the totals; for comparison.",
        params: Params::SPEC,
        sample: "- type: least-request-picker\n  parameters:\n    maxNumOfEndpoints: 1\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    Some(Built::picker_by_load(LeastRequest { count: params.max_num_of_endpoints }))
}

struct LeastRequest {
    count: usize,
}

impl Picker for LeastRequest {
    fn pick(&self, cx: &Cycle<'_>, candidates: &[Slot], _: &[f32], rng: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        least(candidates.len(), self.count, rng, picked, |i| requests(cx, candidates[i]));
    }

    fn costs(&self, cx: &Cycle<'_>, candidates: &[Slot], _: &[f32]) -> Option<Costs> {
        let values = candidates.iter().map(|slot| requests(cx, *slot) as f32).collect();
        Some(Costs { terms: vec!["in-flight"], values, unit: "requests", tolerance: 0.0 })
    }

    fn tie_rule(&self) -> Option<&'static str> {
        Some("lot")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::InFlightView;
    use crate::scheduling::fixtures::pool;

    #[test]
    fn the_fewest_first_and_equals_by_lot() {
        let mut scene = pool(4);
        scene.signals.in_flight = Some(InFlightView { requests: vec![3, 1, 2, 1], tokens: vec![] });
        let slots = scene.slots();
        let pick = |count, seed| {
            let mut picked = Vec::new();
            let mut rng = fastrand::Rng::with_seed(seed);
            LeastRequest { count }.pick(&scene.cycle(), &slots, &[0.0; 4], &mut rng, &mut picked);
            picked
        };
        for count in [1, 2] {
            let firsts = (0..1_000).filter(|seed| pick(count, *seed)[0] == 1).count();
            assert!((400..600).contains(&firsts), "{count}: {firsts}");
            assert!((0..100).all(|seed| [1, 3].contains(&pick(count, seed)[0])));
        }
        assert_eq!(pick(9, 1)[2..], [2, 0]);
        let costs = LeastRequest { count: 1 }.costs(&scene.cycle(), &slots, &[]).unwrap();
        assert_eq!((costs.total(0), costs.total(1), costs.terms), (3.0, 1.0, vec!["in-flight"]));
    }
}
