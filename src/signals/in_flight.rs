//! `inflight-load-producer`: requests and uncached tokens that we sent to each endpoint and that have
//! not ended.
//!
//! Rule. When a request is routed, each profile's first pick is charged one request and the tokens
//! that it still has to compute: prompt tokens minus the tokens that the prefix signal says it holds
//! (all of them where there is no prefix producer). At the first bytes of the answer the prompt has
//! been computed, so the tokens are given back, and so is everything charged to helper profiles
//! (prefill, encode), which are done by then. The request of the destination, and its share of
//! estimated output tokens if `addEstimatedOutputTokens` is on, are given back at the end. Output is
//! estimated as prompt tokens times `outputRatio`, at most `maxEstimatedOutputTokens` and at most
//! what the client allows.
//!
//! Charging happens in [`Commit`], right after the choice and before the answer leaves, so that the
//! requests of a burst see each other. What was charged is held by the request's [`Watch`]; whatever
//! way the request ends, its `Drop` gives back what is left, exactly once.
//!
//! Inputs: the prompt tokens of the token signal, else four bytes per token; the prefix signal.
//!
//! When it misleads: it counts what this process sent; other replicas and other clients of the model
//! servers are invisible. `syncCrossReplicaState` is accepted and has no effect yet. Fallback picks
//! (after the first) are not charged, so a retry in the data plane counts for the wrong endpoint.
//!
//! ```yaml
//! - type: inflight-load-producer
//!   parameters:
//!     addEstimatedOutputTokens: false
//! ```

use std::mem;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::domain::{Endpoint, InFlightView, InferenceRequest, Signals, Snapshot, Timestamp};
use crate::scheduling::params::{IfGiven, Params as _};
use crate::scheduling::plugin::{
    About, Build, Built, Commit, End, Need, Producer, Routed, Row, SignalKind, Stability, Watch,
};

/// Charged for one request at most, so that no claim of a client can overflow a counter.
const MAX_TOKENS: u64 = 1 << 40;

crate::params! {
    /// Parameters of `inflight-load-producer`.
    pub struct Params {
        /// Also charge the destination with the tokens that the answer is expected to have.
        add_estimated_output_tokens: bool = false, "addEstimatedOutputTokens";
        /// Expected output tokens per prompt token.
        output_ratio: f64 = 1.5, "outputRatio", 0.0..=1_000_000.0;
        /// Upper bound of the expected output tokens; none by default.
        max_estimated_output_tokens: Option<u64> = None, "maxEstimatedOutputTokens", IfGiven(0..);
        /// Name of the prefix producer whose cached tokens are not charged; the first one, if any, by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Share the counts with other replicas. Accepted, without effect yet.
        sync_cross_replica_state: bool = true, "syncCrossReplicaState";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "inflight-load-producer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Counts requests and uncached tokens in flight per endpoint.",
        params: Params::SPEC,
        sample: "- type: inflight-load-producer\n  parameters:\n    addEstimatedOutputTokens: false\n    outputRatio: 1.5\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    // The prefix signal is optional: an absent producer is not asked for, only a named one must be.
    let prefix = match &params.prefix_match_info_producer_name {
        None => 0,
        Some(name) => b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", Some(name)),
    };
    let first = b.registry.producers(SignalKind::InFlight).next().cloned();
    if let Some(first) = first {
        let at = b.at;
        let message = format!("`{first}` already counts requests in flight; a second one would count them twice");
        b.problems.error(at, b.path.clone(), message, "remove one of the two");
        return None;
    }
    b.produces(SignalKind::InFlight);
    b.need(Need::Prompts);
    let output = params.add_estimated_output_tokens.then_some(OutputEstimate {
        ratio: params.output_ratio,
        most: params.max_estimated_output_tokens.unwrap_or(u64::MAX),
    });
    let plugin = Arc::new(InFlight { prefix, output });
    Some(Built { producer: Some(Arc::clone(&plugin) as _), commit: Some(plugin), ..Built::default() })
}

struct OutputEstimate {
    ratio: f64,
    most: u64,
}

struct InFlight {
    prefix: usize,
    output: Option<OutputEstimate>,
}

impl Producer for InFlight {
    fn is_volatile(&self) -> bool {
        true
    }

    fn produce(&self, _: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals) {
        let topology = &snapshot.topology;
        let mut view = InFlightView { requests: vec![0; topology.capacity()], tokens: vec![0; topology.capacity()] };
        for endpoint in topology.endpoints() {
            let slot = endpoint.slot.index();
            if let (Some(requests), Some(tokens)) = (view.requests.get_mut(slot), view.tokens.get_mut(slot)) {
                *requests = u32::try_from(endpoint.in_flight.requests()).unwrap_or(u32::MAX);
                *tokens = endpoint.in_flight.tokens();
            }
        }
        signals.in_flight = Some(view);
    }
}

impl Commit for InFlight {
    fn reserves(&self) -> bool {
        true
    }

    fn commit(&self, routed: &Routed<'_>) -> Option<Box<dyn Watch>> {
        let prompt = routed.signals.prompt_tokens.unwrap_or_else(|| routed.request.estimated_prompt_tokens());
        let prefix = routed.signals.prefix.get(self.prefix);
        let output = self.output.as_ref().map_or(0, |estimate| {
            let allowed = routed.request.max_output_tokens.unwrap_or(u64::MAX);
            // A float that is too large for the integer saturates.
            ((prompt as f64 * estimate.ratio).ceil() as u64).min(estimate.most).min(allowed)
        });
        let mut charges = SmallVec::new();
        for (i, result) in routed.decision.profiles.iter().enumerate() {
            let Some(picked) = result.picked.first() else { continue };
            let cached = prefix.map_or(0, |p| p.tokens(picked.endpoint.slot));
            let primary = i == routed.decision.primary;
            charges.push(Charge::new(
                &picked.endpoint,
                primary,
                prompt.saturating_sub(cached),
                if primary { output } else { 0 },
            ));
        }
        Some(Box::new(Held { charges }))
    }
}

/// What one endpoint was charged and has not got back.
struct Charge {
    endpoint: Arc<Endpoint>,
    /// Given back at the first bytes of the answer.
    until_first: Amount,
    /// Given back at the end.
    until_end: Amount,
}

#[derive(Clone, Copy, Default)]
struct Amount {
    requests: i64,
    tokens: i64,
}

impl Charge {
    fn new(endpoint: &Arc<Endpoint>, primary: bool, prompt: u64, output: u64) -> Self {
        let tokens = |n: u64| n.min(MAX_TOKENS) as i64;
        let request = |here: bool| i64::from(here);
        let charge = Self {
            endpoint: Arc::clone(endpoint),
            until_first: Amount { requests: request(!primary), tokens: tokens(prompt) },
            until_end: Amount { requests: request(primary), tokens: tokens(output) },
        };
        endpoint.in_flight.add(1, charge.until_first.tokens + charge.until_end.tokens);
        charge
    }

    fn give_back_first(&mut self) {
        let Amount { requests, tokens } = mem::take(&mut self.until_first);
        self.endpoint.in_flight.add(-requests, -tokens);
    }

    fn give_back_all(&mut self) {
        self.give_back_first();
        let Amount { requests, tokens } = mem::take(&mut self.until_end);
        self.endpoint.in_flight.add(-requests, -tokens);
    }
}

struct Held {
    charges: SmallVec<[Charge; 2]>,
}

impl Watch for Held {
    fn first_token(&mut self, _: Timestamp) {
        self.charges.iter_mut().for_each(Charge::give_back_first);
    }

    fn finished(&mut self, _: &End) {
        self.charges.iter_mut().for_each(Charge::give_back_all);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.charges.iter_mut().for_each(Charge::give_back_all);
    }
}

#[cfg(test)]
mod tests;
