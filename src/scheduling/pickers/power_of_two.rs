//! `power-of-two-picker`: the better of two that are drawn by lot, for comparison.
//!
//! Rule: draw two different candidates; the one with fewer requests in flight is picked, the first drawn of
//! equals. Further endpoints, if asked for, are found the same way among the rest. Totals are ignored. Source: M. Mitzenmacher, "The Power of
//! Two Choices in Randomized Load Balancing", IEEE Transactions on Parallel and Distributed Systems 12 (10), 2001; as in Envoy's
//! `LEAST_REQUEST`, which draws twice from all and so may draw one endpoint against itself.
//!
//! Inputs: requests in flight from `inflight-load-producer`, which is created when none is configured.
//!
//! When it wins: many routers that do not see each other's requests: they do not all run to the one that looks
//! idle. When it misleads: as `least-request-picker`, and it balances a little worse than that where one process sees all traffic.
//!
//! ```yaml
//! - type: power-of-two-picker
//!   parameters:
//!     maxNumOfEndpoints: 1
//! ```

use super::requests;
use crate::domain::{Costs, Slot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Picker, Row, SignalKind, Stability};

crate::params! {
    /// Parameters of `power-of-two-picker`.
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
        kind: "power-of-two-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Draws two endpoints and picks the one with fewer requests in flight; for comparison.",
        params: Params::SPEC,
        sample: "- type: power-of-two-picker\n  parameters:\n    maxNumOfEndpoints: 1\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    Some(Built::picker_by_load(PowerOfTwo { count: params.max_num_of_endpoints }))
}

struct PowerOfTwo {
    count: usize,
}

impl Picker for PowerOfTwo {
    fn pick(&self, cx: &Cycle<'_>, candidates: &[Slot], _: &[f32], rng: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        let (n, start) = (candidates.len(), picked.len());
        let fewer = |a: usize, b: usize| requests(cx, candidates[b]) < requests(cx, candidates[a]);
        if self.count == 1 && n > 1 {
            let first = rng.usize(..n);
            let second = (first + rng.usize(1..n)) % n;
            picked.push(if fewer(first, second) { second } else { first });
            return;
        }
        picked.extend(0..n);
        let order = &mut picked[start..];
        for at in 0..self.count.min(n) {
            order.swap(at, rng.usize(at..n));
            if at + 1 < n {
                order.swap(at + 1, rng.usize(at + 1..n));
                if fewer(order[at], order[at + 1]) {
                    order.swap(at, at + 1);
                }
            }
        }
        picked.truncate(start + self.count.min(n));
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
    fn chances_are_those_of_the_best_of_two() {
        let mut scene = pool(4);
        scene.signals.in_flight = Some(InFlightView { requests: vec![3, 0, 2, 1], tokens: vec![] });
        let slots = scene.slots();
        for count in [1, 3] {
            let (mut rng, mut wins) = (fastrand::Rng::with_seed(5), [0u32; 4]);
            for _ in 0..12_000 {
                let mut picked = Vec::new();
                PowerOfTwo { count }.pick(&scene.cycle(), &slots, &[0.0; 4], &mut rng, &mut picked);
                wins[picked[0]] += 1;
            }
            // Of the six pairs the emptiest wins three, the next two, the third one, the fullest none.
            assert_eq!(wins[0], 0, "{count}");
            for (win, pairs) in [(wins[1], 3), (wins[3], 2), (wins[2], 1)] {
                assert!((i64::from(win) - 2_000 * pairs).abs() < 250, "{count}: {wins:?}");
            }
        }
        let one = pool(1);
        let mut picked = Vec::new();
        PowerOfTwo { count: 1 }.pick(&one.cycle(), &one.slots(), &[0.0], &mut fastrand::Rng::with_seed(1), &mut picked);
        assert_eq!(picked, [0]);
    }
}
