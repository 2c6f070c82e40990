//! `lora-affinity-scorer`: an adapter goes where it is loaded, else where there is room to load it.
//!
//! Formula, for the model that the server will see:
//!
//! | Score | When |
//! |---|---|
//! | 1.0 | the endpoint runs requests of the adapter |
//! | 0.8 | it has room for one adapter more |
//! | 0.6 | requests of the adapter wait there, or run there in turns with those of others |
//! | 0 | it is full of other adapters |
//!
//! There is room if fewer distinct adapters are named than `max_lora` says can be resident.
//!
//! Inputs: the LoRA state of each candidate ([`Metric::Lora`]; vLLM's `vllm:lora_requests_info`, of
//! whose series, one for each state that the server was in, the newest counts). A candidate
//! without a fresh one gets 0; when nobody has one, or the request names no model, all get 1 (see
//! [`super`]). The prefix of a name is no name: adapters are compared whole.
//!
//! What vLLM means: its V1 engine makes both labels, running and waiting, from one list of adapters
//! that have requests of any kind. So an adapter that only waits is named as running, and adding up
//! the labels counts each adapter twice. We count each name once, and believe "running" only as long
//! as all that are named so fit; where more are named than can be resident, some of them wait, it
//! cannot be told which, and 0.6 is the answer for each. (The picker we replace gives 1.0 there, so
//! an adapter stays at an overcrowded endpoint beside one with room; and it counts twice.) A server
//! that does not say how many adapters fit has no room, and its "running" is believed.
//!
//! When it misleads: the base model is a name that no list has, so its requests prefer endpoints
//! with room although they need none; give base-model traffic a profile without this scorer where
//! that matters. A vLLM server that has served nothing since it started has no series yet and counts
//! as unknown; the load scorers bring it its first request. Adapters that are loaded but have no
//! request are invisible. Ranks behind one port overwrite each other's state.
//!
//! ```yaml
//! - type: lora-affinity-scorer
//! ```

use super::read_fresh;
use crate::domain::{AdapterId, LoraState, Slot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Metric, Need, Row, Scorer, Stability};

crate::params! {
    /// The scorer has no parameters.
    pub struct Params {}
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "lora-affinity-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers endpoints that run the LoRA adapter, then those with room for one more.",
        params: Params::SPEC,
        sample: "- type: lora-affinity-scorer\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params {} = b.params();
    b.need(Need::Metric(Metric::Lora));
    Some(Built::scorer(LoraAffinity))
}

struct LoraAffinity;

fn tier(lora: &LoraState, adapter: AdapterId) -> f32 {
    let runs = lora.runs(adapter);
    let all_fit = lora.max == 0 || lora.running.len() <= lora.max as usize;
    if runs && all_fit {
        1.0
    } else if lora.named < lora.max {
        0.8
    } else if runs || lora.waits(adapter) {
        0.6
    } else {
        0.0
    }
}

impl Scorer for LoraAffinity {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let model = &*cx.request.target_model;
        if model.is_empty() {
            out.fill(1.0);
            return;
        }
        let adapter = AdapterId::of(model);
        let spread = read_fresh(cx, candidates, out, |loads, slot| {
            loads.detail(slot)?.lora.as_ref().map(|lora| tier(lora, adapter))
        });
        match spread {
            None => out.fill(1.0),
            Some(_) => out.iter_mut().filter(|value| value.is_nan()).for_each(|value| *value = 0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{LoadDetail, LoadSample, Timestamp};
    use crate::scheduling::fixtures::{NOW, Scene, build, build_in, pool, sampled};
    use crate::scheduling::plugin::Registry;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn state(running: &[&str], waiting: &[&str], max: u32) -> LoraState {
        let mut state = LoraState::default();
        state.set(running.iter().copied(), waiting.iter().copied(), max);
        state
    }

    fn with(lora: Option<LoraState>) -> Option<LoadSample> {
        let detail = Arc::new(LoadDetail { lora, ..LoadDetail::default() });
        Some(LoadSample { taken_at: NOW, detail, ..LoadSample::default() })
    }

    fn scene(model: &str, samples: &[Option<LoadSample>]) -> Scene {
        let mut scene = sampled(samples);
        scene.request.target_model = model.into();
        scene
    }

    #[test]
    fn the_four_tiers() {
        let of = |running: &[&str], waiting: &[&str], max| tier(&state(running, waiting, max), AdapterId::of("sql"));
        assert_eq!(of(&["chat", "sql"], &[], 2), 1.0);
        assert_eq!(of(&["chat"], &[], 2), 0.8);
        assert_eq!(of(&[], &[], 1), 0.8);
        assert_eq!(of(&["chat", "code"], &["sql"], 2), 0.6);
        assert_eq!(of(&["chat", "code"], &[], 2), 0.0);
        assert_eq!(of(&["chat"], &["sql"], 3), 0.8, "it waits, and there is room: it is being loaded");
        assert_eq!(of(&["sqlite", "SQL"], &[], 2), 0.0, "other names");
    }

    #[test]
    fn labels_that_name_everything_twice_are_understood() {
        let vllm = |names: &[&str], max| tier(&state(names, names, max), AdapterId::of("sql"));
        assert_eq!(vllm(&["chat"], 2), 0.8, "one of two places is taken, not two");
        assert_eq!(vllm(&["chat", "sql"], 2), 1.0);
        assert_eq!(vllm(&["chat", "sql", "code"], 2), 0.6, "one of the three waits");
        assert_eq!(vllm(&["chat", "other", "code"], 2), 0.0);
        assert_eq!((vllm(&["sql"], 0), vllm(&["chat"], 0)), (1.0, 0.0), "no number of places given");
    }

    #[test]
    fn the_unknown_rank_last_unless_nobody_is_known() {
        let scorer = build(&ROW, vec![]);
        let full = with(Some(state(&["chat"], &["chat"], 1)));
        let room = with(Some(state(&[], &[], 1)));
        let stale = room.clone().map(|s| LoadSample { taken_at: Timestamp::from_millis(1_000), ..s });
        let scores = |model: &str, samples: &[_]| scene(model, samples).scores(&scorer);
        assert_eq!(scores("sql", &[room.clone(), None, stale.clone(), with(None), full]), [0.8, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(scores("sql", &[None, stale, with(None)]), [1.0; 3]);
        assert_eq!(scores("", &[room, None]), [1.0; 2], "no model, no opinion");
        assert!(pool(0).scores(&scorer).is_empty());
    }

    #[test]
    fn switches_on_the_lora_metric_and_nothing_else() {
        let mut registry = Registry::default();
        build_in(&mut registry, &ROW, vec![]);
        assert_eq!(registry.needs.keys().collect::<Vec<_>>(), [&Need::Metric(Metric::Lora)]);
        assert!(registry.take_missing().is_empty());
    }

    /// Adapters by number, as sets.
    fn named(set: u8) -> Vec<String> {
        (0..8).filter(|i| set & (1 << i) != 0).map(|i| format!("adapter-{i}")).collect()
    }

    proptest! {
        #[test]
        fn the_tier_is_that_of_the_sets(running: u8, waiting: u8, max in 0u32..10, wanted in 0u32..8) {
            let lists = [named(running), named(waiting)];
            let names = |i: usize| lists[i].iter().map(String::as_str).collect::<Vec<_>>();
            let found = tier(&state(&names(0), &names(1), max), AdapterId::of(&format!("adapter-{wanted}")));
            let has = |set: u8| set & (1 << wanted) != 0;
            let expected = match () {
                () if has(running) && (max == 0 || running.count_ones() <= max) => 1.0,
                () if (running | waiting).count_ones() < max => 0.8,
                () if has(running | waiting) => 0.6,
                () => 0.0,
            };
            prop_assert_eq!(found, expected);
        }
    }
}
