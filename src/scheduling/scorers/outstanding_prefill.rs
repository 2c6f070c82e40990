//! `outstanding-prefill-scorer`: the fewer prompt tokens this picker has sent to an endpoint that it has not
//! computed yet, the better.
//!
//! Formula: 1 - tokens / the most among the candidates; all equal (none at all included) is 1.
//!
//! For people who stay with weighted scores: `prefix-cache-scorer` 3, this one 2, `kv-cache-utilization-scorer` 1 is the best
//! mix of scores that simulation found, and dividing by the largest among the candidates the best norm for it: any fixed
//! number of tokens is right for one length of prompts only. `cost-picker` does better.
//!
//! Inputs: the accounts of `prefill-account-producer`, which is created when none is configured. They are exact at
//! the moment of the decision; an endpoint without an account has had nothing. Nothing is scraped, so nothing
//! is stale.
//!
//! When it misleads: it sees only what this process sent, and tokens are not seconds: among machines of different
//! speed the slow one looks as free as the fast one.
//!
//! ```yaml
//! - type: outstanding-prefill-scorer
//! ```

use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Need, Row, Scorer, SignalKind, Stability};

crate::params! {
    /// Parameters of `outstanding-prefill-scorer`.
    pub struct Params {
        /// Name of the prefill-account-producer to read; the only one by default.
        prefill_account_producer_name: Option<String> = None, "prefillAccountProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "outstanding-prefill-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers endpoints with fewer prompt tokens that were sent there and are not computed yet.",
        params: Params::SPEC,
        sample: "- type: outstanding-prefill-scorer\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    // There is one account signal, so the ordinal says nothing; a wrong name is still an error.
    b.consumes(SignalKind::Account, "prefillAccountProducerName", params.prefill_account_producer_name.as_deref());
    b.need(Need::Prompts);
    Some(Built::scorer(OutstandingPrefill))
}

struct OutstandingPrefill;

impl Scorer for OutstandingPrefill {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let accounts = cx.signals.accounts.as_ref();
        let (mut least, mut most) = (f32::INFINITY, 0.0f32);
        for (value, slot) in out.iter_mut().zip(candidates) {
            let tokens = accounts.and_then(|a| a.endpoints.get(slot.index())).map_or(0.0, |a| a.prefill_tokens);
            // NaN is none.
            *value = if tokens > 0.0 { tokens.min(f32::MAX) } else { 0.0 };
            least = least.min(*value);
            most = most.max(*value);
        }
        for value in out {
            *value = if least < most { 1.0 - *value / most } else { 1.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Account, AccountView};
    use crate::scheduling::fixtures::{Scene, build, build_in, errors, pool, text};
    use crate::scheduling::plugin::Registry;
    use proptest::prelude::*;

    fn scene(tokens: &[f32]) -> Scene {
        let mut scene = pool(tokens.len());
        let endpoints = tokens.iter().map(|t| Account { prefill_tokens: *t, ..Account::default() }).collect();
        scene.signals.accounts = Some(AccountView { endpoints, ..AccountView::default() });
        scene
    }

    #[test]
    fn is_the_distance_from_the_most_loaded_candidate() {
        let scorer = build(&ROW, vec![]);
        assert_eq!(scene(&[0.0, 1_000.0, 4_000.0]).scores(&scorer), [1.0, 0.75, 0.0]);
        assert_eq!(scene(&[300.0; 3]).scores(&scorer), [1.0; 3]);
        assert_eq!(scene(&[0.0; 2]).scores(&scorer), [1.0; 2]);
        assert_eq!(pool(2).scores(&scorer), [1.0; 2], "without accounts nothing is outstanding");
        let mut short = scene(&[5.0, 10.0, 0.0]);
        short.signals.accounts.as_mut().unwrap().endpoints.truncate(2);
        assert_eq!(short.scores(&scorer), [0.5, 0.0, 1.0]);
    }

    #[test]
    fn asks_for_the_accounts() {
        let mut registry = Registry::default();
        build_in(&mut registry, &ROW, vec![]);
        assert_eq!(registry.take_missing(), [SignalKind::Account]);
        assert!(errors(&ROW, vec![("prefillAccountProducerName", text("x"))])[0].contains("no producer is called"));
    }

    proptest! {
        #[test]
        fn more_tokens_are_never_better(tokens in prop::collection::vec(any::<f32>(), 1..20)) {
            let scores = scene(&tokens).scores(&build(&ROW, vec![]));
            prop_assert!(scores.iter().all(|s| (0.0..=1.0).contains(s)), "{:?}", scores);
            for (a, b) in (0..tokens.len()).flat_map(|a| (0..tokens.len()).map(move |b| (a, b))) {
                let ordered = tokens[a].max(0.0) <= tokens[b].max(0.0);
                prop_assert!(!ordered || scores[a] >= scores[b]);
            }
        }
    }
}
