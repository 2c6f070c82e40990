//! `prefill-account-producer`: what this picker itself has sent to each endpoint, in seconds of prefill.
//!
//! An engine's metrics say too little and too late: a server that is deep in a prompt of 100,000 tokens
//! reports that nobody waits. The picker knows better, because it sent the prompt, knows how much of it the
//! server has cached, and sees when the first token comes back. From that it keeps, per endpoint (times in
//! seconds; the words are those of [`Account`](crate::domain::Account)):
//!
//! - outstanding prefill `S`: estimated prefill times of the requests without a first token;
//! - virtual finish `F`: when all of that should be done. Routing: `F = max(F, now) + c`; first token: `F = now + S`;
//! - prefill rate `R`: uncached tokens over the time from `max(routed, last first token there)` to the first
//!   token, less the fixed time; sums decayed by 0.98 a sample, half the endpoint's own, half the pool's, so
//!   that a pool of different machines is told apart and one odd sample does not turn it;
//! - arrivals `lambda`, load `rho` (30 s) and `rho_p` (60 s), intake (300 s), the mean prefill and stay.
//!
//! The estimate of a request is `c = uncached / R + 20 ms`. Uncached are the prompt tokens, by the prefix
//! producer's measure if it has one, less those that it says the endpoint holds.
//!
//! **Who is charged.** The first pick of each profile. Where a helper profile computes the prompt (prefill and
//! decode apart), its endpoint owns the prefill work until the first token, and the destination is
//! charged the room only. A helper that only encodes owns no prefill.
//!
//! **What ends a prefill.** The first bytes of an answer that the client asked to be streamed; these also teach the
//! rate. Other answers come in one piece at the end, so their prefill counts as over when it was foretold
//! to be (`F` when it was routed), and they teach nothing. A request that fails, or whose client leaves, before the
//! first token gives everything back and teaches nothing; an error's body is no first token.
//! The averages of what was asked for (arrivals, load, intake) stay: it was asked for.
//!
//! **The initial rate** hardly matters: it has the weight of 5 s of prefill, and simulation with a guess five times
//! too low or too high changed the mean time to first token by less than 2 %. What matters is that the rate is learnt:
//! without streamed answers it stays the guess, and [`AccountView::samples`](crate::domain::AccountView) stays 0.
//!
//! When it misleads: other pickers and clients that go past this one are not in the account (their waiting
//! requests are added from the metrics, see `cost-picker`). Where answers never pass the picker (a data plane without
//! the response phase), every prefill is foretold, no rate is learnt, and nothing is in flight.
//!
//! Rejected: a queue model of the engine's batches (needs constants of the engine, and the first token corrects
//! the simple one each time); learning from the engine's own prefill histogram alone (a scrape late, and it does
//! not say which request).
//!
//! ```yaml
//! - type: prefill-account-producer
//!   parameters:
//!     initialPrefillRate: 10000
//! ```

pub mod ledger;

use std::sync::Arc;

use smallvec::SmallVec;

use crate::domain::{AccountView, Endpoint, InferenceRequest, Outcome, Signals, Snapshot, Timestamp};
use crate::scheduling::cost;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{
    About, Build, Built, Commit, End, Need, Producer, ResponseStart, Routed, Row, SignalKind, Stability, Watch,
};

use ledger::{Charge, FIXED_SECONDS, Ledger, Settings, Share};

/// Endpoints on the debug page.
const DEBUG_ENDPOINTS: usize = 100;

crate::params! {
    /// Parameters of `prefill-account-producer`.
    pub struct Params {
        /// Prefill rate in tokens per second that is believed until rates are learnt; counts like 5 s of prefill, so that a guess five times too low or too high costs less than 2 %.
        initial_prefill_rate: f64 = 10_000.0, "initialPrefillRate", 1.0..=10_000_000.0;
        /// Lowest prefill rate that is believed, in tokens per second: bounds what a stalled server can teach.
        min_prefill_rate: f64 = 10.0, "minPrefillRate", 1.0..=10_000_000.0;
        /// Highest prefill rate that is believed, in tokens per second: bounds what wrongly counted cache hits can teach.
        max_prefill_rate: f64 = 2_000_000.0, "maxPrefillRate", 1.0..=10_000_000.0;
        /// Name of the prefix producer whose cached tokens are not charged; the first one, if any, by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "prefill-account-producer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Keeps an account of the prefill work sent to each endpoint and learns how fast each one works it off.",
        params: Params::SPEC,
        sample: "- type: prefill-account-producer\n  parameters:\n    initialPrefillRate: 10000\n",
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
    if params.min_prefill_rate > params.max_prefill_rate {
        let message = format!("`{}` is above `maxPrefillRate` ({})", params.min_prefill_rate, params.max_prefill_rate);
        b.error("minPrefillRate", message, "write a rate that is not above maxPrefillRate");
        return None;
    }
    if let Some(first) = b.registry.producers(SignalKind::Account).next().cloned() {
        let message = format!("`{first}` already keeps the accounts; a second producer would count requests twice");
        b.problems.error(b.at, b.path.clone(), message, "remove one of the two");
        return None;
    }
    b.produces(SignalKind::Account);
    b.need(Need::Prompts);
    let ledger = Arc::new(Ledger::new(Settings {
        initial_rate: params.initial_prefill_rate.clamp(params.min_prefill_rate, params.max_prefill_rate),
        min_rate: params.min_prefill_rate,
        max_rate: params.max_prefill_rate,
    }));
    let plugin = Arc::new(PrefillAccounts { ledger: Arc::clone(&ledger), prefix });
    Some(Built {
        producer: Some(Arc::clone(&plugin) as _),
        commit: Some(plugin),
        handle: Some(ledger),
        ..Built::default()
    })
}

struct PrefillAccounts {
    ledger: Arc<Ledger>,
    prefix: usize,
}

impl Producer for PrefillAccounts {
    fn is_volatile(&self) -> bool {
        true
    }

    fn produce(&self, _: &InferenceRequest, snapshot: &Snapshot, signals: &mut Signals) {
        let now = signals.now;
        // A decision that is made again keeps its buffer.
        let view = signals.accounts.get_or_insert_with(AccountView::default);
        self.ledger.view(&snapshot.topology, now, view);
    }

    fn debug_state(&self) -> Option<serde_json::Value> {
        Some(self.ledger.describe(DEBUG_ENDPOINTS))
    }
}

impl Commit for PrefillAccounts {
    fn reserves(&self) -> bool {
        true
    }

    fn commit(&self, routed: &Routed<'_>) -> Option<Box<dyn Watch>> {
        let Routed { request, decision, signals, now } = *routed;
        let prefix = signals.prefix.get(self.prefix);
        let prompt = cost::prompt_tokens(request, signals, prefix);
        let initial = self.ledger.settings().initial_rate;
        let first = |i: usize| decision.profiles.get(i).and_then(|r| r.picked.first()).map(|r| &r.endpoint);
        let helps = |i: usize| i != decision.primary && first(i).is_some_and(|e| computes_prompts(e));
        let disaggregated = (0..decision.profiles.len()).any(helps);
        let mut total = 0.0;
        let mut charges = SmallVec::new();
        for (i, endpoint) in (0..decision.profiles.len()).filter_map(|i| Some((i, first(i)?))) {
            let primary = i == decision.primary;
            let tokens = prompt.saturating_sub(prefix.map_or(0, |p| p.tokens(endpoint.slot)));
            let rate = signals.accounts.as_ref().map_or(0.0, |view| f64::from(view.of(endpoint.slot).rate));
            let rate = if rate > 0.0 { rate } else { initial };
            let owns = if primary { !disaggregated } else { computes_prompts(endpoint) };
            let cost = owns.then(|| tokens as f64 / rate + FIXED_SECONDS);
            total += cost.unwrap_or(0.0);
            let charge = self.ledger.charge(endpoint, Share { tokens, cost, noticed: request.stream }, now);
            charges.push(Charged { charge, primary });
        }
        self.ledger.arrived(total, now);
        Some(Box::new(Following { ledger: Arc::clone(&self.ledger), charges, routed: now, refused: false }))
    }

    fn endpoint_removed(&self, endpoint: &Endpoint) {
        self.ledger.closed(endpoint);
    }
}

/// Whether a helper that runs on `endpoint` computes the prompt: all but those that can only encode.
fn computes_prompts(endpoint: &Endpoint) -> bool {
    endpoint.roles.prefills() || !endpoint.roles.encodes()
}

struct Charged {
    charge: Charge,
    primary: bool,
}

/// Follows one request. What is charged when it is dropped gives itself back.
struct Following {
    ledger: Arc<Ledger>,
    charges: SmallVec<[Charged; 1]>,
    routed: Timestamp,
    /// The answer is an error: its body is no token.
    refused: bool,
}

impl Watch for Following {
    fn response_headers(&mut self, start: &ResponseStart<'_>, _: &mut Vec<(&'static str, String)>) {
        self.refused = !(200..300).contains(&start.status);
    }

    fn first_token(&mut self, now: Timestamp) {
        if self.refused {
            return;
        }
        for Charged { charge, primary } in &mut self.charges {
            charge.first_token(now);
            if !*primary {
                charge.leave();
            }
        }
    }

    fn finished(&mut self, end: &End) {
        match end.outcome {
            Outcome::Completed => {
                self.charges.iter_mut().for_each(|c| c.charge.prefilled());
                self.ledger.stayed(end.now.since(self.routed));
            }
            Outcome::RoutedOnly => self.charges.iter_mut().for_each(|c| c.charge.lost()),
            _ => {}
        }
        self.charges.clear();
    }
}

#[cfg(test)]
mod tests;
