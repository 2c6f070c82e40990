//! `active-request-scorer`: the fewer requests we have in flight at an endpoint, the better.
//!
//! Formula: 1 when in-flight requests <= `idleThreshold`, otherwise
//! (max - requests) / max * `maxBusyScore`, max being the most of any candidate.
//!
//! Inputs: the in-flight signal of `inflight-load-producer`, which is created when none is
//! configured. Unlike scraped metrics it is exact at the moment of the decision, as reservation
//! follows the choice at once. Without the signal all candidates count as idle and get 1.
//!
//! When it misleads: it sees only the requests of this process; with several replicas each balances
//! its own share. Requests are counted, not their length. A request ends when its
//! stream ends; there is no timeout (`requestTimeout` of old files is dropped as they are read).
//!
//! ```yaml
//! - type: active-request-scorer
//!   parameters:
//!     idleThreshold: 0
//!     maxBusyScore: 1.0
//! ```

use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Row, Scorer, SignalKind, Stability};

crate::params! {
    /// Parameters of `active-request-scorer`.
    pub struct Params {
        /// In-flight requests up to which an endpoint counts as idle.
        idle_threshold: u32 = 0, "idleThreshold";
        /// The best score that an endpoint above the threshold can get.
        max_busy_score: f32 = 1.0, "maxBusyScore", 0.0..=1.0;
        /// Name of the inflight-load-producer to read; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "active-request-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers endpoints with fewer requests in flight, as counted here.",
        params: Params::SPEC,
        sample: "- type: active-request-scorer\n  parameters:\n    idleThreshold: 0\n    maxBusyScore: 1.0\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    // There is one in-flight signal, so the ordinal says nothing; a wrong name is still an error.
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    Some(Built::scorer(ActiveRequest { idle_threshold: params.idle_threshold, max_busy_score: params.max_busy_score }))
}

struct ActiveRequest {
    idle_threshold: u32,
    max_busy_score: f32,
}

impl Scorer for ActiveRequest {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let Some(in_flight) = &cx.signals.in_flight else {
            out.fill(1.0);
            return;
        };
        let most = candidates.iter().map(|slot| in_flight.requests(*slot)).max().unwrap_or(0);
        for (value, slot) in out.iter_mut().zip(candidates) {
            let requests = in_flight.requests(*slot);
            *value = if requests <= self.idle_threshold {
                1.0
            } else {
                // Above the threshold `most` is at least 1.
                (most - requests) as f32 / most as f32 * self.max_busy_score
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::InFlightView;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{build, build_in, errors, pool, text};
    use crate::scheduling::plugin::Registry;

    #[test]
    fn idle_is_one_and_the_busiest_is_zero() {
        let mut scene = pool(4);
        assert_eq!(scene.scores(&build(&ROW, vec![])), [1.0; 4], "without the signal all are idle");
        scene.signals.in_flight = Some(InFlightView { requests: vec![0, 2, 8], tokens: vec![] });
        assert_eq!(scene.scores(&build(&ROW, vec![])), [1.0, 0.75, 0.0, 1.0]);
        let gap = build(&ROW, vec![("idleThreshold", Value::Integer(1)), ("maxBusyScore", Value::Float(0.5))]);
        assert_eq!(scene.scores(&gap), [1.0, 0.375, 0.0, 1.0]);
    }

    #[test]
    fn asks_for_its_producer() {
        let mut registry = Registry::default();
        let (_, problems) = build_in(&mut registry, &ROW, vec![]);
        assert!(problems.errors.is_empty() && problems.warnings.is_empty());
        assert_eq!(registry.take_missing(), [SignalKind::InFlight]);
        assert!(errors(&ROW, vec![("inFlightLoadProducerName", text("mine"))])[0].contains("no producer is called"));
        assert!(errors(&ROW, vec![("maxBusyScore", Value::Float(1.5))])[0].contains("between 0 and 1"));
    }
}
