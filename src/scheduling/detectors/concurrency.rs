//! `concurrency-detector`: full by what we have in flight there, without asking the model servers.
//!
//! Rule: saturation is what is in flight at the endpoints over what they may have together, `maxConcurrency`
//! requests each (`concurrencyMode: requests`), `maxTokenConcurrency` tokens each (`tokens`), or the larger
//! share of both (`hybrid`). As a filter it keeps the endpoints that are below the limit times `1 + headroom`;
//! if none is, the request is refused (429).
//!
//! Inputs: the counters of `inflight-load-producer`, which is created when none is configured.
//!
//! Missing data: there is none, an endpoint that was sent nothing has nothing in flight.
//!
//! When it misleads: it counts what this process sent; other replicas and other clients of the model
//! servers are invisible. Tokens are those of the prompt that are not believed to be cached, and given
//! back with the first bytes of the answer.
//!
//! ```yaml
//! - type: concurrency-detector
//!   parameters:
//!     maxConcurrency: 100
//! ```

use std::sync::Arc;

use crate::domain::{Slot, Snapshot, Timestamp};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Filter, Row, SaturationDetector, SignalKind, Stability};

crate::choice! {
    /// What `concurrency-detector` counts.
    pub enum Mode {
        /// Requests.
        Requests = "requests",
        /// Tokens.
        Tokens = "tokens",
        /// The larger share of both.
        Hybrid = "hybrid",
    }
}

crate::params! {
    /// Parameters of `concurrency-detector`.
    pub struct Params {
        /// Requests in flight at which an endpoint is full.
        max_concurrency: u64 = 100, "maxConcurrency", 1..;
        /// Tokens in flight at which an endpoint is full.
        max_token_concurrency: u64 = 1_000_000, "maxTokenConcurrency", 1..;
        /// What is counted.
        concurrency_mode: Mode = Mode::Requests, "concurrencyMode";
        /// Share above the threshold up to which the filter lets an endpoint pass.
        headroom: f64 = 0.0, "headroom", 0.0..;
        /// Name of the inflight-load-producer that counts; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "concurrency-detector",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Saturation from requests or tokens in flight.",
        params: Params::SPEC,
        sample: "- type: concurrency-detector\n  parameters:\n    maxConcurrency: 100\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    // There is one in-flight signal, so the ordinal says nothing; a wrong name is still an error.
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    let limit = |counts: bool, most: u64| counts.then_some(most as f64);
    let plugin = Arc::new(Concurrency {
        requests: limit(params.concurrency_mode != Mode::Tokens, params.max_concurrency),
        tokens: limit(params.concurrency_mode != Mode::Requests, params.max_token_concurrency),
        room: 1.0 + params.headroom,
    });
    Some(Built { filter: Some(Arc::clone(&plugin) as _), saturation: Some(plugin), ..Built::default() })
}

struct Concurrency {
    /// Limits per endpoint of what is counted.
    requests: Option<f64>,
    tokens: Option<f64>,
    /// The filter's limit as a multiple.
    room: f64,
}

impl Concurrency {
    /// The larger share of what `endpoints` endpoints may have together.
    fn share(&self, requests: u64, tokens: u64, endpoints: usize) -> f64 {
        let share = |load: u64, most: Option<f64>| most.map_or(0.0, |most| load as f64 / (most * endpoints as f64));
        share(requests, self.requests).max(share(tokens, self.tokens))
    }
}

impl SaturationDetector for Concurrency {
    fn saturation(&self, snapshot: &Snapshot, endpoints: &[Slot], _: Timestamp) -> Option<f64> {
        let (mut requests, mut tokens) = (0u64, 0u64);
        for endpoint in endpoints.iter().filter_map(|slot| snapshot.topology.get(*slot)) {
            requests = requests.saturating_add(endpoint.in_flight.requests());
            tokens = tokens.saturating_add(endpoint.in_flight.tokens());
        }
        (!endpoints.is_empty()).then(|| self.share(requests, tokens, endpoints.len()))
    }
}

impl Filter for Concurrency {
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>) {
        let Some(view) = &cx.signals.in_flight else { return };
        candidates.retain(|slot| self.share(u64::from(view.requests(*slot)), view.tokens(*slot), 1) < self.room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::InFlightView;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{NOW, build, build_in, errors, pool, text};
    use crate::scheduling::plugin::Registry;

    fn detector(mode: &str, more: Vec<(&str, Value)>) -> Built {
        let mut parameters = vec![
            ("maxConcurrency", Value::Integer(10)),
            ("maxTokenConcurrency", Value::Integer(1_000)),
            ("concurrencyMode", text(mode)),
        ];
        parameters.extend(more);
        build(&ROW, parameters)
    }

    #[test]
    fn it_is_what_is_in_flight_over_what_may_be() {
        let scene = pool(2);
        let of = |mode: &str| {
            let built = detector(mode, vec![]);
            built.saturation.unwrap().saturation(&scene.snapshot, &scene.slots(), NOW).unwrap()
        };
        assert_eq!(["requests", "tokens", "hybrid"].map(of), [0.0; 3]);
        let endpoints: Vec<_> = scene.snapshot.topology.endpoints().collect();
        endpoints[0].in_flight.add(12, 200);
        endpoints[1].in_flight.add(3, 1_200);
        assert_eq!(["requests", "tokens", "hybrid"].map(of), [0.75, 0.7, 0.75]);
        endpoints[1].in_flight.add(0, 2_600);
        assert_eq!(["requests", "tokens", "hybrid"].map(of), [0.75, 2.0, 2.0]);
        let built = detector("requests", vec![]);
        assert_eq!(built.saturation.unwrap().saturation(&scene.snapshot, &[], NOW), None);
    }

    #[test]
    fn as_a_filter_it_drops_the_full_even_if_that_is_all() {
        let mut scene = pool(3);
        assert_eq!(scene.kept(&detector("requests", vec![])), [0, 1, 2], "no signal, no limit");
        scene.signals.in_flight = Some(InFlightView { requests: vec![9, 10, 0], tokens: vec![0, 0, 1_000] });
        assert_eq!(scene.kept(&detector("requests", vec![])), [0, 2]);
        assert_eq!(scene.kept(&detector("tokens", vec![])), [0, 1]);
        assert_eq!(scene.kept(&detector("hybrid", vec![])), [0]);
        assert_eq!(scene.kept(&detector("hybrid", vec![("headroom", Value::Float(0.1))])), [0, 1, 2]);
        scene.signals.in_flight = Some(InFlightView { requests: vec![10; 3], tokens: vec![] });
        assert!(scene.kept(&detector("requests", vec![])).is_empty());
    }

    #[test]
    fn it_asks_for_the_counters() {
        let mut registry = Registry::default();
        build_in(&mut registry, &ROW, vec![]);
        assert_eq!(registry.take_missing(), [SignalKind::InFlight]);
        assert!(errors(&ROW, vec![("inFlightLoadProducerName", text("mine"))])[0].contains("no producer is called"));
        assert!(errors(&ROW, vec![("maxConcurrency", Value::Integer(0))])[0].contains("at least 1"));
        assert!(errors(&ROW, vec![("concurrencyMode", text("request"))])[0].contains("did you mean `requests`"));
    }
}
