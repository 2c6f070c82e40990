use super::*;
use crate::domain::node::Value;
use crate::domain::{Outcome, PrefixMatch, Prompt, Segment, Slot, Usage};
use crate::scheduling::fixtures::{NOW, Scene, build, build_in, decision, pool, text};
use crate::scheduling::plugin::Registry;
use proptest::prelude::*;

const END: End = End {
    outcome: Outcome::Completed,
    usage: Usage { prompt_tokens: None, cached_tokens: None, completion_tokens: None },
    now: NOW,
};

/// A pool and a request with a prompt of `tokens` tokens.
fn scene(tokens: usize) -> Scene {
    let mut scene = pool(3);
    let prompt = Prompt { segments: [Segment::Body(0..tokens * 4)].into_iter().collect() };
    scene.request.prompts = [prompt].into_iter().collect();
    scene
}

fn commit(built: &Built, scene: &Scene, profiles: &[(&str, &[u32])]) -> Box<dyn Watch> {
    let decision = decision(scene, profiles);
    let routed = Routed { request: &scene.request, decision: &decision, signals: &scene.signals, now: NOW };
    built.commit.as_ref().unwrap().commit(&routed).unwrap()
}

/// (requests, tokens) per slot, as a decision would see them.
fn in_flight(built: &Built, scene: &Scene) -> Vec<(u32, u64)> {
    let mut signals = Signals::default();
    built.producer.as_ref().unwrap().produce(&scene.request, &scene.snapshot, &mut signals);
    let view = signals.in_flight.unwrap();
    (0..3).map(|s| (view.requests(Slot(s)), view.tokens(Slot(s)))).collect()
}

#[test]
fn tokens_go_at_the_first_bytes_and_the_request_at_the_end() {
    let (built, scene) = (build(&ROW, vec![]), scene(100));
    let mut watch = commit(&built, &scene, &[("default", &[1, 2])]);
    assert_eq!(in_flight(&built, &scene), [(0, 0), (1, 100), (0, 0)], "fallbacks are not charged");
    watch.first_token(NOW);
    assert_eq!(in_flight(&built, &scene)[1], (1, 0));
    watch.first_token(NOW);
    watch.finished(&END);
    assert_eq!(in_flight(&built, &scene)[1], (0, 0));
    drop(watch);
    assert_eq!(in_flight(&built, &scene)[1], (0, 0), "given back once");
}

#[test]
fn cached_tokens_are_not_charged() {
    let (built, mut scene) = (build(&ROW, vec![]), scene(100));
    *scene.signals.prefix_mut(0) =
        PrefixMatch { block_tokens: 16, total_blocks: 6, matched: vec![0, 5, 60], ..PrefixMatch::default() };
    let watches = [0, 1, 2].map(|slot| commit(&built, &scene, &[("default", &[slot])]));
    assert_eq!(in_flight(&built, &scene), [(1, 100), (1, 20), (1, 0)]);
    drop(watches);
    scene.signals.prompt_tokens = Some(7);
    let watch = commit(&built, &scene, &[("default", &[0])]);
    assert_eq!(in_flight(&built, &scene)[0], (1, 7), "the token signal is better than the estimate");
    drop(watch);
    assert_eq!(in_flight(&built, &scene), [(0, 0); 3]);
}

#[test]
fn helper_profiles_are_done_at_the_first_bytes() {
    let (built, scene) = (build(&ROW, vec![]), scene(10));
    let mut watch = commit(&built, &scene, &[("decode", &[0]), ("prefill", &[1])]);
    assert_eq!(in_flight(&built, &scene), [(1, 10), (1, 10), (0, 0)]);
    watch.first_token(NOW);
    assert_eq!(in_flight(&built, &scene), [(1, 0), (0, 0), (0, 0)]);
}

#[test]
fn estimated_output_stays_to_the_end_within_its_bounds() {
    let on = ("addEstimatedOutputTokens", Value::Bool(true));
    let charged = |built: &Built, scene: &Scene| {
        let mut watch = commit(built, scene, &[("decode", &[0]), ("prefill", &[1])]);
        let before = in_flight(built, scene);
        watch.first_token(NOW);
        let after = in_flight(built, scene);
        (before[0].1, before[1].1, after[0].1, after[1].1)
    };
    let mut scene = scene(101);
    assert_eq!(charged(&build(&ROW, vec![on.clone()]), &scene), (101 + 152, 101, 152, 0));
    let capped = build(&ROW, vec![on.clone(), ("maxEstimatedOutputTokens", Value::Integer(50))]);
    assert_eq!(charged(&capped, &scene).2, 50);
    scene.request.max_output_tokens = Some(3);
    assert_eq!(charged(&capped, &scene).2, 3);
    scene.request.max_output_tokens = None;
    scene.signals.prompt_tokens = Some(u64::MAX);
    let huge = charged(&build(&ROW, vec![on]), &scene);
    assert_eq!((huge.0, huge.2), (2 * MAX_TOKENS, MAX_TOKENS));
    assert_eq!(in_flight(&capped, &scene), [(0, 0); 3]);
}

#[test]
fn one_producer_counts_and_a_named_prefix_producer_must_exist() {
    let mut registry = Registry::default();
    assert!(build_in(&mut registry, &ROW, vec![]).0.is_some());
    assert!(registry.needs(&Need::Prompts));
    assert!(registry.take_missing().is_empty(), "the prefix signal is optional");
    let (second, problems) = build_in(&mut registry, &ROW, vec![]);
    assert!(second.is_none() && problems.errors[0].message.contains("count them twice"));
    let named = vec![("prefixMatchInfoProducerName", text("mine"))];
    let (_, problems) = build_in(&mut Registry::default(), &ROW, named);
    assert!(problems.errors[0].message.contains("no producer is called `mine`"));
}

#[derive(Clone, Debug)]
enum Step {
    Route { tokens: usize, decode: u32, prefill: Option<u32> },
    First(usize),
    Finish(usize),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..5_000, 0u32..3, proptest::option::of(0u32..3))
            .prop_map(|(tokens, decode, prefill)| Step::Route { tokens, decode, prefill }),
        2 => (0usize..16).prop_map(Step::First),
        2 => (0usize..16).prop_map(Step::Finish),
        1 => (0usize..16).prop_map(Step::Drop),
    ]
}

/// What an open request still holds: (slot, tokens, requests) of the decode and the prefill endpoint.
type Open = (Box<dyn Watch>, [(usize, u64, u64); 2]);

proptest! {
    #[test]
    fn whatever_happens_the_counts_are_those_of_the_open_requests(steps in prop::collection::vec(step(), 0..80)) {
        let built = build(&ROW, vec![]);
        let mut scene = scene(0);
        let mut open: Vec<Open> = Vec::new();
        for step in steps {
            match step {
                Step::Route { tokens, decode, prefill } => {
                    scene.signals.prompt_tokens = Some(tokens as u64);
                    let (decode_pick, prefill_pick) = ([decode], [prefill.unwrap_or(0)]);
                    let profiles: [(&str, &[u32]); 2] = [("decode", &decode_pick), ("prefill", &prefill_pick)];
                    let watch = commit(&built, &scene, &profiles[..1 + usize::from(prefill.is_some())]);
                    let helper = prefill.map_or((0, 0, 0), |p| (p as usize, tokens as u64, 1));
                    open.push((watch, [(decode as usize, tokens as u64, 1), helper]));
                }
                Step::First(i) => if let Some((watch, held)) = open.get_mut(i) {
                    watch.first_token(NOW);
                    held[0].1 = 0;
                    held[1] = (0, 0, 0);
                },
                Step::Finish(i) => if let Some((watch, held)) = open.get_mut(i) {
                    watch.finished(&END);
                    *held = [(0, 0, 0); 2];
                },
                Step::Drop(i) => if i < open.len() {
                    open.swap_remove(i);
                },
            }
            let mut expected = [(0u32, 0u64); 3];
            for (slot, tokens, requests) in open.iter().flat_map(|(_, held)| held) {
                expected[*slot].0 += *requests as u32;
                expected[*slot].1 += tokens;
            }
            prop_assert_eq!(in_flight(&built, &scene), expected);
        }
        drop(open);
        prop_assert_eq!(in_flight(&built, &scene), [(0, 0); 3]);
    }
}
