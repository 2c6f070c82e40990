use super::*;
use crate::domain::node::Value;
use crate::domain::{Account, Headers, PrefixMatch, Served, Slot, Usage};
use crate::scheduling::fixtures::{NOW, Scene, build, build_in, decision, errors, labelled, pool, text};
use crate::scheduling::plugin::Registry;

fn end(outcome: Outcome, now: Timestamp) -> End {
    End { outcome, usage: Usage::default(), now }
}

fn later(millis: u64) -> Timestamp {
    NOW.plus(std::time::Duration::from_millis(millis))
}

/// A streamed request of `tokens` tokens.
fn scene(tokens: u64) -> Scene {
    let mut scene = pool(3);
    scene.signals.prompt_tokens = Some(tokens);
    scene.signals.now = NOW;
    scene.request.stream = true;
    scene
}

fn commit(built: &Built, scene: &Scene, profiles: &[(&str, &[u32])]) -> Box<dyn Watch> {
    let decision = decision(scene, profiles);
    let routed = Routed { request: &scene.request, decision: &decision, signals: &scene.signals, now: NOW };
    built.commit.as_ref().unwrap().commit(&routed).unwrap()
}

fn accounts(built: &Built, scene: &Scene, now: Timestamp) -> AccountView {
    let mut signals = Signals { now, ..Signals::default() };
    built.producer.as_ref().unwrap().produce(&scene.request, &scene.snapshot, &mut signals);
    signals.accounts.unwrap()
}

fn of(built: &Built, scene: &Scene, slot: u32, now: Timestamp) -> Account {
    accounts(built, scene, now).of(Slot(slot))
}

fn headers(watch: &mut dyn Watch, status: u16) {
    let (headers, served) = (Headers::default(), Served::default());
    watch.response_headers(&ResponseStart { status, headers: &headers, served: &served, now: NOW }, &mut Vec::new());
}

#[test]
fn the_first_pick_is_charged_with_what_it_has_not_cached() {
    let (built, mut scene) = (build(&ROW, vec![]), scene(10_000));
    let prefix = scene.signals.prefix_mut(0);
    *prefix = PrefixMatch { block_tokens: 100, total_blocks: 100, matched: vec![0, 60], ..PrefixMatch::default() };
    let first = commit(&built, &scene, &[("default", &[1, 2])]);
    let account = of(&built, &scene, 1, NOW);
    // 4,000 tokens at 10,000 a second and 20 ms.
    assert!((account.outstanding - 0.42).abs() < 1e-6, "{account:?}");
    assert_eq!((account.prefill_tokens, account.prefilling, account.in_flight), (4_000.0, 1, 1));
    assert_eq!(of(&built, &scene, 2, NOW).in_flight, 0, "fallbacks are not charged");
    // The rate of the decision counts, and the prefix producer's measure of the prompt.
    scene.signals.accounts = Some(accounts(&built, &scene, NOW));
    scene.signals.accounts.as_mut().unwrap().endpoints[0].rate = 5_000.0;
    scene.signals.prefix_mut(0).prompt_tokens = Some(20_000);
    let second = commit(&built, &scene, &[("default", &[0])]);
    assert!((of(&built, &scene, 0, NOW).outstanding - 4.02).abs() < 1e-5);
    drop((first, second));
    assert!((0..3).all(|slot| of(&built, &scene, slot, NOW).outstanding == 0.0));
}

#[test]
fn a_streamed_answer_teaches_and_a_failed_one_does_not() {
    let (built, scene) = (build(&ROW, vec![]), scene(10_000));
    let run = |status: u16, stream: bool, outcome: Outcome| {
        let mut scene = Scene { snapshot: scene.snapshot.clone(), ..self::scene(10_000) };
        scene.request.stream = stream;
        let before = accounts(&built, &scene, NOW).samples;
        let mut watch = commit(&built, &scene, &[("default", &[0])]);
        headers(watch.as_mut(), status);
        watch.first_token(later(520));
        let prefilling = of(&built, &scene, 0, later(520)).prefilling;
        watch.finished(&end(outcome, later(2_000)));
        let after = of(&built, &scene, 0, later(520));
        assert_eq!((after.prefilling, after.in_flight, after.outstanding), (0, 0, 0.0), "{status} {outcome:?}");
        (prefilling, accounts(&built, &scene, NOW).samples - before)
    };
    assert_eq!(run(200, true, Outcome::Completed), (0, 1));
    assert_eq!(run(200, true, Outcome::ClientDisconnect), (0, 1), "what was seen was seen");
    assert_eq!(run(503, true, Outcome::UpstreamError), (1, 0));
    assert_eq!(run(200, false, Outcome::Completed), (0, 0));
    // 10,000 tokens in 0.5 s.
    let expected = [0, 1].iter().fold((50_000.0, 5.0), |s, _| (s.0 * 0.98 + 1e4, s.1 * 0.98 + 0.5));
    // The second one began at the first token of the first one, at the same time.
    let expected = (expected.0, expected.1 - 0.5 + 1e-3);
    assert!((f64::from(of(&built, &scene, 0, NOW).rate) / (expected.0 / expected.1) - 1.0).abs() < 1e-4);
    let stay = accounts(&built, &scene, NOW).mean_stay;
    let two = (10.0 * 0.98 + 2.0 * 0.02) * 0.98 + 2.0 * 0.02;
    assert!((stay - two).abs() < 1e-5, "only answers that ended well: {stay}");
}

#[test]
fn an_answer_that_is_not_streamed_is_computed_when_foretold() {
    let (built, mut scene) = (build(&ROW, vec![]), scene(9_800));
    scene.request.stream = false;
    let watch = commit(&built, &scene, &[("default", &[0])]);
    assert_eq!(of(&built, &scene, 0, later(999)).prefilling, 1);
    assert_eq!(of(&built, &scene, 0, later(1_000)).prefilling, 0);
    assert_eq!(of(&built, &scene, 0, later(1_000)).in_flight, 1);
    drop(watch);
    assert_eq!(of(&built, &scene, 0, later(1_000)).in_flight, 0);
}

#[test]
fn without_a_response_phase_every_prefill_is_foretold() {
    let (built, scene) = (build(&ROW, vec![]), scene(9_800));
    commit(&built, &scene, &[("default", &[0])]).finished(&end(Outcome::RoutedOnly, later(1)));
    let (before, after) = (of(&built, &scene, 0, later(999)), of(&built, &scene, 0, later(1_000)));
    assert_eq!((before.prefilling, after.prefilling, before.in_flight), (1, 0, 0));
    assert_eq!(accounts(&built, &scene, later(1_000)).samples, 0);
}

#[test]
fn the_helper_that_computes_the_prompt_owns_its_prefill() {
    let role = |role| [("llm-d.ai/role", role)];
    let labels = [role("decode"), role("prefill"), role("encode")];
    let mut scene = Scene { snapshot: labelled(&labels.each_ref().map(|l| &l[..])).snapshot, ..scene(9_800) };
    scene.request.stream = true;
    let built = build(&ROW, vec![]);
    let mut watch = commit(&built, &scene, &[("decode", &[0]), ("prefill", &[1]), ("encode", &[2])]);
    let account = |slot| of(&built, &scene, slot, NOW);
    assert_eq!([0, 1, 2].map(|s| account(s).outstanding), [0.0, 1.0, 0.0]);
    assert_eq!([0, 1, 2].map(|s| account(s).in_flight), [1; 3]);
    assert_eq!(account(0).prefill_tokens, 9_800.0, "it needs the room");
    watch.first_token(later(1_000));
    assert_eq!([0, 1, 2].map(|s| account(s).in_flight), [1, 0, 0], "helpers are done");
    assert_eq!([0, 1, 2].map(|s| account(s).outstanding), [0.0; 3]);
    assert_eq!(accounts(&built, &scene, NOW).samples, 1);
    watch.finished(&end(Outcome::Completed, later(3_000)));
    assert_eq!(account(0).in_flight, 0);
    let watch = commit(&built, &scene, &[("decode", &[0]), ("encode", &[2])]);
    assert_eq!([0, 2].map(|s| account(s).outstanding > 0.0), [true, false], "encoding is no prefill");
    drop(watch);
}

#[test]
fn there_is_one_and_its_rates_are_in_order() {
    let mut registry = Registry::default();
    assert!(build_in(&mut registry, &ROW, vec![]).0.is_some());
    assert!(registry.needs(&Need::Prompts) && registry.take_missing().is_empty());
    let (second, problems) = build_in(&mut registry, &ROW, vec![]);
    assert!(second.is_none() && problems.errors[0].message.contains("twice"));
    assert!(errors(&ROW, vec![("minPrefillRate", Value::Integer(3_000_000))])[0].contains("is above `maxPrefillRate`"));
    assert!(errors(&ROW, vec![("prefixMatchInfoProducerName", text("x"))])[0].contains("no producer is called `x`"));
    let slow = build(&ROW, vec![("initialPrefillRate", Value::Integer(1_000))]);
    assert_eq!(of(&slow, &pool(1), 0, NOW).rate, 1_000.0);
    let ledger = slow.handle.unwrap().downcast::<Ledger>().unwrap();
    assert_eq!(ledger.settings().initial_rate, 1_000.0);
}

#[test]
fn the_debug_page_names_the_endpoints() {
    let (built, scene) = (build(&ROW, vec![]), scene(9_800));
    let _watch = commit(&built, &scene, &[("default", &[2])]);
    let page = built.producer.as_ref().unwrap().debug_state().unwrap();
    assert_eq!(page["endpoints"][0]["endpoint"], "pod-2-rank-0");
    assert_eq!(page["endpoints"][0]["outstandingPrefillSeconds"], 1.0);
}
