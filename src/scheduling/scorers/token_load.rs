//! `token-load-scorer`: the fewer tokens an endpoint still has to compute, this prompt included, the
//! better.
//!
//! Formula: 1 - min(tokens in flight + uncached tokens of this request, t) / t, with
//! t = `queueThresholdTokens`. Uncached are the prompt tokens less those that the endpoint is
//! believed to hold.
//!
//! Inputs: the in-flight signal of `inflight-load-producer`, which is created when none is
//! configured (without the signal nothing is in flight); the prompt tokens of a `token-producer`, else
//! four bytes per token; the first prefix producer, if there is one, else all tokens are uncached.
//! The count of tokens is exact at the moment of the decision and knows nothing that the endpoints
//! report, so there is no missing or stale reading.
//!
//! When it misleads: it sees only what this process sent. Tokens are given back at the first bytes of
//! the answer, so endpoints that generate for long look idle; add a scorer of running or in-flight
//! requests. The default threshold (128 requests of 32k tokens) is meant for large pools of large
//! requests: with prompts of a few thousand tokens all scores lie close to 1 and the other
//! scorers decide. Set it to the backlog that you would call full.
//!
//! ```yaml
//! - type: token-load-scorer
//!   parameters:
//!     queueThresholdTokens: 262144
//! ```

use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Need, Row, Scorer, SignalKind, Stability};

/// 128 requests of 32k tokens.
const DEFAULT_THRESHOLD: u64 = 4_194_304;

crate::params! {
    /// Parameters of `token-load-scorer`.
    pub struct Params {
        /// Tokens at which the score reaches 0; 0 stands for the default.
        queue_threshold_tokens: u64 = 4_194_304, "queueThresholdTokens";
        /// Name of the inflight-load-producer to read; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "token-load-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers endpoints with fewer uncached tokens in flight, those of this request included.",
        params: Params::SPEC,
        sample: "- type: token-load-scorer\n  parameters:\n    queueThresholdTokens: 262144\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    // There is one in-flight signal, so the ordinal says nothing; a wrong name is still an error.
    b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", params.in_flight_load_producer_name.as_deref());
    b.need(Need::Prompts);
    let threshold = match params.queue_threshold_tokens {
        0 => DEFAULT_THRESHOLD,
        tokens => tokens,
    };
    Some(Built::scorer(TokenLoad { threshold }))
}

struct TokenLoad {
    /// Above 0.
    threshold: u64,
}

impl Scorer for TokenLoad {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let prompt = cx.signals.prompt_tokens.unwrap_or_else(|| cx.request.estimated_prompt_tokens());
        let (prefix, in_flight) = (cx.signals.prefix.first(), cx.signals.in_flight.as_ref());
        let per_token = 1.0 / self.threshold as f64;
        for (value, slot) in out.iter_mut().zip(candidates) {
            let cached = prefix.map_or(0, |p| p.tokens(*slot));
            let waiting = in_flight.map_or(0, |view| view.tokens(*slot));
            let load = waiting.saturating_add(prompt.saturating_sub(cached)).min(self.threshold);
            *value = (1.0 - load as f64 * per_token) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::Value;
    use crate::domain::{InFlightView, PrefixMatch, Prompt, Segment};
    use crate::scheduling::fixtures::{Scene, build, build_in, errors, pool, text};
    use crate::scheduling::plugin::Registry;
    use proptest::prelude::*;

    fn scorer(threshold: i64) -> Built {
        build(&ROW, vec![("queueThresholdTokens", Value::Integer(threshold))])
    }

    fn scene(prompt: u64, in_flight: &[u64]) -> Scene {
        let mut scene = pool(in_flight.len());
        scene.signals.prompt_tokens = Some(prompt);
        scene.signals.in_flight = Some(InFlightView { requests: vec![], tokens: in_flight.to_vec() });
        scene
    }

    #[test]
    fn is_the_backlog_with_this_request_against_the_threshold() {
        assert_eq!(scene(0, &[0, 250, 1_000, u64::MAX]).scores(&scorer(1_000)), [1.0, 0.75, 0.0, 0.0]);
        let mut scene = scene(500, &[0, 0, 250, 600]);
        assert_eq!(scene.scores(&scorer(1_000)), [0.5, 0.5, 0.25, 0.0]);
        *scene.signals.prefix_mut(0) =
            PrefixMatch { block_tokens: 64, total_blocks: 7, matched: vec![0, 4, 1_000], ..PrefixMatch::default() };
        assert_eq!(scene.scores(&scorer(1_000)), [0.5, 0.756, 0.75, 0.0], "cached tokens are no load");
    }

    #[test]
    fn without_signals_it_counts_the_prompt_as_it_is() {
        let mut scene = pool(2);
        assert_eq!(scene.scores(&scorer(1_000)), [1.0; 2]);
        scene.request.prompts = [Prompt { segments: [Segment::Body(0..400)].into_iter().collect() }].into();
        assert_eq!(scene.scores(&scorer(1_000)), [0.9; 2], "four bytes to a token");
        scene.signals.prompt_tokens = Some(u64::MAX);
        assert_eq!(scene.scores(&scorer(1_000)), [0.0; 2]);
    }

    #[test]
    fn zero_is_the_default_threshold() {
        let scene = scene(0, &[DEFAULT_THRESHOLD / 4]);
        assert_eq!(scene.scores(&scorer(0)), [0.75]);
        assert_eq!(scene.scores(&build(&ROW, vec![])), [0.75]);
        assert_eq!(scene.scores(&scorer(i64::MAX)).len(), 1);
        assert!(errors(&ROW, vec![("queueThresholdTokens", Value::Integer(-1))])[0].contains("out of range"));
    }

    #[test]
    fn asks_for_the_in_flight_producer_and_the_prompts_and_no_metric() {
        let mut registry = Registry::default();
        build_in(&mut registry, &ROW, vec![]);
        assert_eq!(registry.needs.keys().collect::<Vec<_>>(), [&Need::Prompts]);
        assert_eq!(registry.take_missing(), [SignalKind::InFlight], "the prefix signal is optional");
        assert!(errors(&ROW, vec![("inFlightLoadProducerName", text("mine"))])[0].contains("no producer is called"));
    }

    proptest! {
        #[test]
        fn more_tokens_are_never_better(
            prompt in prop_oneof![0u64..10_000, any::<u64>()],
            tokens in prop::collection::vec(prop_oneof![4 => 0u64..20_000, 1 => any::<u64>()], 2..20),
            threshold in prop_oneof![1i64..10_000, 0i64..i64::MAX],
        ) {
            let scores = scene(prompt, &tokens).scores(&scorer(threshold));
            prop_assert!(scores.iter().all(|s| (0.0..=1.0).contains(s)), "{:?}", scores);
            for (a, b) in (0..tokens.len()).flat_map(|a| (0..tokens.len()).map(move |b| (a, b))) {
                prop_assert!(tokens[a] > tokens[b] || scores[a] >= scores[b]);
            }
        }
    }
}
