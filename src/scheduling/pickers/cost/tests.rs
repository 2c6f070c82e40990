use super::*;
use crate::domain::node::Value;
use crate::domain::{Account, AccountView, PrefixMatch};
use crate::scheduling::fixtures::{Scene, build as build_plugin, build_in, errors, pool, text};
use crate::scheduling::plugin::Registry;
use proptest::prelude::*;

/// Endpoints with this much outstanding prefill in seconds, and this intake.
fn scene(accounts: &[(f32, f32)]) -> Scene {
    let mut scene = pool(accounts.len());
    let endpoints = accounts
        .iter()
        .map(|(outstanding, intake)| Account {
            outstanding: *outstanding,
            backlog: *outstanding,
            rate: 10_000.0,
            intake: *intake,
            ..Account::default()
        })
        .collect();
    scene.signals.accounts = Some(AccountView { endpoints, ..AccountView::default() });
    scene.signals.prompt_tokens = Some(10_000);
    scene
}

fn picks(built: &Built, scene: &Scene, totals: &[f32], seed: u64) -> Vec<usize> {
    let (mut picked, mut explained) = (Vec::new(), Vec::new());
    let picker = built.picker.as_ref().unwrap();
    let drawn = || fastrand::Rng::with_seed(seed);
    picker.pick(&scene.cycle(), &scene.slots(), totals, &mut drawn(), &mut picked);
    picker.pick_explained(&scene.cycle(), &scene.slots(), totals, &mut drawn(), &mut explained);
    assert_eq!(picked, explained, "an explanation changes nothing");
    picked
}

fn costs(scene: &Scene, totals: &[f32]) -> Costs {
    let (mut rng, mut picked) = (fastrand::Rng::with_seed(1), Vec::new());
    plain().picker.unwrap().pick_explained(&scene.cycle(), &scene.slots(), totals, &mut rng, &mut picked).unwrap()
}

fn plain() -> Built {
    build_plugin(&ROW, vec![])
}

#[test]
fn the_cheapest_wins_and_a_cached_prefix_is_worth_its_time() {
    let mut scene = scene(&[(0.5, 0.0), (0.0, 0.0), (0.3, 0.0)]);
    assert_eq!(picks(&plain(), &scene, &[0.0; 3], 1), [1]);
    let matched = vec![0, 0, 4];
    *scene.signals.prefix_mut(0) =
        PrefixMatch { block_tokens: 1_000, total_blocks: 10, matched, ..PrefixMatch::default() };
    // 0.3 s of waiting against 0.4 s of computing.
    assert_eq!(picks(&plain(), &scene, &[0.0; 3], 1), [2]);
    assert_eq!(picks(&build_plugin(&ROW, vec![("waitWeight", Value::Integer(2))]), &scene, &[0.0; 3], 1), [1]);
}

#[test]
fn scores_are_seconds_of_credit() {
    let scene = scene(&[(0.0, 0.0), (0.5, 0.0)]);
    assert_eq!(picks(&plain(), &scene, &[0.0, 0.4], 1), [0]);
    assert_eq!(picks(&plain(), &scene, &[0.0, 0.6], 1), [1]);
    assert_eq!(picks(&plain(), &scene, &[-0.6, 0.0], 1), [1]);
    assert_eq!(picks(&plain(), &scene, &[f32::NAN, -1e6], 1), [1], "what is no number is worst");
    assert_eq!(picks(&plain(), &scene, &[f32::NAN, f32::NAN], 1).len(), 1, "there is always a pick");
    assert_eq!(picks(&plain(), &scene, &[0.0, f32::INFINITY], 1), [1]);
}

#[test]
fn near_ties_go_to_the_least_intake_then_by_lot() {
    // Least cost 1 s: 30 ms of tolerance.
    let mut scene = scene(&[(0.0, 9_000.0), (0.029, 5_000.0), (0.031, 0.0)]);
    assert_eq!(picks(&plain(), &scene, &[0.0; 3], 1), [1]);
    let exact = build_plugin(&ROW, vec![("tieSeconds", Value::Integer(0)), ("tieShare", Value::Integer(0))]);
    assert_eq!(picks(&exact, &scene, &[0.0; 3], 1), [0]);
    let accounts = scene.signals.accounts.as_mut().unwrap();
    accounts.endpoints[1].in_flight = 2;
    accounts.endpoints[1].intake = 4_999.0;
    assert_eq!(picks(&plain(), &scene, &[0.0; 3], 1), [1], "8,999 with its two requests");
    scene.signals.accounts.as_mut().unwrap().endpoints[1].in_flight = 3;
    assert_eq!(picks(&plain(), &scene, &[0.0; 3], 1), [0]);

    let equals = self::scene(&[(0.0, 7.0), (0.0, 3.0), (0.0, 3.0), (0.0, 3.0)]);
    let mut wins = [0u32; 4];
    (0..4_000).for_each(|seed| wins[picks(&plain(), &equals, &[0.0; 4], seed)[0]] += 1);
    assert_eq!(wins[0], 0);
    assert!(wins[1..].iter().all(|w| (1_150..1_520).contains(w)), "{wins:?}");
}

#[test]
fn fallbacks_follow_by_cost() {
    let scene = scene(&[(0.4, 0.0), (0.005, 0.0), (0.2, 0.0), (0.0, 9.0)]);
    let three = |n| build_plugin(&ROW, vec![("maxNumOfEndpoints", Value::Integer(n))]);
    assert_eq!(picks(&three(2), &scene, &[0.0; 4], 1), [1, 3]);
    assert_eq!(picks(&three(3), &scene, &[0.0; 4], 1), [1, 3, 2]);
    assert_eq!(picks(&three(9), &scene, &[0.0; 4], 1), [1, 3, 2, 0]);
    assert!(picks(&three(3), &self::scene(&[]), &[], 1).is_empty());
}

#[test]
fn what_it_went_by_can_be_read() {
    let scene = scene(&[(0.5, 0.0), (0.0, 0.0)]);
    let costs = self::costs(&scene, &[0.25, 0.0]);
    assert_eq!(costs.terms, ["prefill", "wait", "delay-on-others", "eviction", "balance", "memory", "scores"]);
    assert_eq!(costs.unit, "s");
    assert_eq!(costs.of(0), [1.0, 0.5, 0.0, 0.0, 0.0, 0.0, -0.25]);
    assert_eq!(costs.of(1), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert!(costs.of(1)[6].is_sign_positive(), "a zero is not shown as -0");
    assert!((costs.tolerance - 0.03).abs() < 1e-6);
    let unscored = self::costs(&scene, &[0.0, 0.0]);
    assert_eq!((unscored.terms.len(), unscored.of(0)), (6, &[1.0, 0.5, 0.0, 0.0, 0.0, 0.0][..]));
    assert!(plain().picker.unwrap().tie_rule().unwrap().contains("intake"));
}

#[test]
fn asks_for_what_its_terms_read() {
    let mut registry = Registry::default();
    build_in(&mut registry, &ROW, vec![]);
    let metrics = [Metric::Waiting, Metric::KvUsage, Metric::CacheInfo].map(Need::Metric);
    assert!([Need::Prompts, Need::Usage, Need::Caches].iter().chain(&metrics).all(|need| registry.needs(need)));
    assert_eq!(registry.take_missing(), [SignalKind::Prefix, SignalKind::Account]);
    for key in ["prefixMatchInfoProducerName", "prefillAccountProducerName"] {
        assert!(errors(&ROW, vec![(key, text("mine"))])[0].contains("no producer is called `mine`"));
    }
    assert!(errors(&ROW, vec![("evictionWeight", Value::Integer(-1))])[0].contains("out of range"));
}

proptest! {
    /// Costs that are apart decide alone, wherever the endpoints stand in the list.
    #[test]
    fn the_choice_does_not_depend_on_the_order(
        outstanding in prop::collection::vec(0u32..1_000, 1..30).prop_map(|mut v| { v.sort_unstable(); v.dedup(); v }),
        seed in any::<u64>(),
        shift in 0usize..30,
    ) {
        let accounts: Vec<(f32, f32)> = outstanding.iter().map(|n| (*n as f32, 0.0)).collect();
        let n = accounts.len();
        let turned: Vec<(f32, f32)> = (0..n).map(|i| accounts[(i + shift) % n]).collect();
        let zeros = vec![0.0; n];
        let exact = build_plugin(&ROW, vec![("tieSeconds", Value::Integer(0)), ("tieShare", Value::Integer(0))]);
        let one = picks(&exact, &scene(&accounts), &zeros, seed)[0];
        let other = picks(&exact, &scene(&turned), &zeros, seed + 1)[0];
        prop_assert_eq!(accounts[one], turned[other]);
        prop_assert_eq!(one, 0);
    }
}
