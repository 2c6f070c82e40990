use super::*;
use crate::domain::node::Value;
use crate::domain::{Endpoint, EndpointSpec, InFlightView, PoolIdentity, Snapshot};
use crate::scheduling::fixtures::{Scene, build, build_in, errors, pool};
use crate::scheduling::plugin::Registry;
use bytes::Bytes;
use proptest::prelude::*;
use smallvec::smallvec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A pool of the endpoints `pod-<name>`, each in the slot that stands with it.
fn arranged(endpoints: &[(u32, u32)]) -> Scene {
    let mut slots = vec![None; endpoints.iter().map(|(_, slot)| *slot as usize + 1).max().unwrap_or(0)];
    for (name, slot) in endpoints {
        let spec = EndpointSpec {
            name: format!("pod-{name}"),
            namespace: "default".into(),
            address: ([10, 0, (name >> 8) as u8, *name as u8], 8000).into(),
            rank: 0,
            incarnation: 0,
            labels: BTreeMap::new(),
        };
        slots[*slot as usize] = Some(Arc::new(Endpoint::new(Slot(*slot), u64::from(*slot) + 1, spec)));
    }
    let topology = Arc::new(Topology::new(1, PoolIdentity::default(), slots));
    Scene { snapshot: Snapshot { topology, ..Snapshot::default() }, ..Scene::default() }
}

fn in_order(names: impl IntoIterator<Item = u32>) -> Scene {
    arranged(&names.into_iter().enumerate().map(|(slot, name)| (name, slot as u32)).collect::<Vec<_>>())
}

fn ask(scene: &mut Scene, text: &str) {
    scene.request.body = Bytes::copy_from_slice(text.as_bytes());
    scene.request.prompts = smallvec![Prompt { segments: smallvec![Segment::Body(0..text.len())] }];
}

/// Names of the endpoints, best first.
fn ranking(scene: &Scene, built: &Built) -> Vec<String> {
    let mut scored: Vec<_> = scene.slots().into_iter().zip(scene.scores(built)).collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    scored.iter().map(|(slot, _)| scene.snapshot.topology.get(*slot).unwrap().name().to_owned()).collect()
}

/// The best endpoint for each of `keys` prompts.
fn homes(scene: &mut Scene, built: &Built, keys: usize) -> Vec<String> {
    (0..keys)
        .map(|key| {
            ask(scene, &format!("prompt number {key}"));
            ranking(scene, built).swap_remove(0)
        })
        .collect()
}

fn plain() -> Built {
    build(&ROW, vec![])
}

#[test]
fn the_first_places_halve_and_the_others_follow_in_order() {
    let mut scene = in_order(0..40);
    assert_eq!(scene.scores(&plain()), [1.0; 40], "without a prompt all are equal");
    ask(&mut scene, "hello");
    let mut scores = scene.scores(&plain());
    scores.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(scores[..RANKED], [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]);
    assert!(scores[RANKED..].iter().all(|s| *s > 0.0 && *s <= 1.0 / 256.0));
    assert!(scores[RANKED..].windows(2).all(|pair| pair[0] > pair[1]));
    assert_eq!(in_order(0..1).scores(&plain()), [1.0]);
}

#[test]
fn only_the_first_whole_blocks_model_and_salt_decide() {
    let two = build(&ROW, vec![("prefixBlocks", Value::Integer(2)), ("blockSizeTokens", Value::Integer(2))]);
    let mut scene = in_order(0..30);
    let mut order = |text: &str| {
        ask(&mut scene, text);
        ranking(&scene, &two)
    };
    let base = order("0123456789abcdef and more");
    assert_eq!(order("0123456789abcdef"), base);
    assert_eq!(order("0123456789abcdef, and something else"), base);
    assert_ne!(order("0123456789abcdeX and more"), base);
    assert_eq!(order("01234567"), order("01234567890"), "the second block is not whole");
    assert_ne!(order("0123"), order("012"), "below one block everything counts");
    ask(&mut scene, "0123456789abcdef");
    scene.request.target_model = "adapter".into();
    let adapted = ranking(&scene, &two);
    assert_ne!(adapted, base);
    scene.request.cache_salt = Some("tenant".into());
    assert_ne!(ranking(&scene, &two), adapted);
    scene.request.prompts = smallvec![Prompt::default()];
    assert_eq!(scene.scores(&two), [1.0; 30], "an empty prompt is none");
}

#[test]
fn where_segments_end_does_not_matter() {
    let four = build(&ROW, vec![("blockSizeTokens", Value::Integer(2))]);
    let mut scene = in_order(0..30);
    ask(&mut scene, "0123456789abcdefABCDEFGH and more");
    let whole = ranking(&scene, &four);
    let pieces = [
        smallvec![Segment::Body(0..3), Segment::Body(3..16), Segment::Body(16..33)],
        smallvec![Segment::Fixed(b"0123456789"), Segment::Body(10..33)],
        smallvec![Segment::Tokens([*b"0123", *b"4567"].map(u32::from_le_bytes).into()), Segment::Body(8..33)],
    ];
    for segments in pieces {
        scene.request.prompts = smallvec![Prompt { segments }];
        assert_eq!(ranking(&scene, &four), whole);
    }
    // A claim of billions of tokens costs no more than the blocks that count; a range outside the body is empty.
    let media = |digest| smallvec![Prompt { segments: smallvec![Segment::Media { digest, tokens: u32::MAX }] }];
    scene.request.prompts = media(1);
    let image = ranking(&scene, &four);
    scene.request.prompts = smallvec![Prompt { segments: smallvec![Segment::Tokens(vec![1; 200].into())] }];
    assert_eq!(ranking(&scene, &four), image, "a run of one token");
    scene.request.prompts = media(2);
    assert_ne!(ranking(&scene, &four), image);
    scene.request.prompts = smallvec![Prompt { segments: smallvec![Segment::Body(7..usize::MAX)] }];
    ranking(&scene, &four);
}

#[test]
fn prefixes_are_in_balance_and_few_move() {
    const KEYS: usize = 4_000;
    let mut ten = in_order(0..10);
    let before = homes(&mut ten, &plain(), KEYS);
    let mut counts = BTreeMap::<&str, usize>::new();
    before.iter().for_each(|home| *counts.entry(home).or_default() += 1);
    // 400 each, six standard deviations of 19.
    assert!(counts.len() == 10 && counts.values().all(|n| (286..=514).contains(n)), "{counts:?}");
    let after = homes(&mut in_order(0..11), &plain(), KEYS);
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!((250..=480).contains(&moved), "a new one of eleven takes {moved} of {KEYS}");
}

#[test]
fn a_hot_prefix_spills_to_the_next_places_and_never_tips_one_over() {
    let built = build(&ROW, vec![("minRequests", Value::Integer(2))]);
    let mut scene = in_order(0..8);
    ask(&mut scene, "everybody asks this");
    let order = ranking(&scene, &built);
    let slot_of = |scene: &Scene, name: &str| {
        scene.slots().into_iter().find(|s| scene.snapshot.topology.get(*s).unwrap().name() == name).unwrap().index()
    };
    let mut requests = vec![0u32; 8];
    let mut used = Vec::new();
    for sent in 1..=200u32 {
        scene.signals.in_flight = Some(InFlightView { requests: requests.clone(), tokens: vec![] });
        let best = ranking(&scene, &built).swap_remove(0);
        let slot = slot_of(&scene, &best);
        requests[slot] += 1;
        if !used.contains(&best) {
            used.push(best);
        }
        let bound = (1.25 * f64::from(sent) / 8.0).ceil().max(2.0) as u32;
        assert!(requests[slot] <= bound, "{requests:?} after {sent}");
    }
    assert_eq!(used, order[..used.len()], "in the order of the prefix");
    assert!(used.len() >= 7, "{used:?}");
    assert_eq!(requests[slot_of(&scene, &order[0])], 32, "the first place is full first");
}

#[test]
fn those_over_the_bound_come_last_in_the_same_order() {
    let mut scene = in_order(0..20);
    ask(&mut scene, "x");
    let idle = ranking(&scene, &plain());
    let busy: BTreeSet<&String> = idle.iter().step_by(3).collect();
    let names: Vec<String> = scene.snapshot.topology.endpoints().map(|e| e.name().to_owned()).collect();
    let requests = names.iter().map(|name| if busy.contains(name) { 50 } else { 1 }).collect();
    scene.signals.in_flight = Some(InFlightView { requests, tokens: vec![] });
    let (over, under): (Vec<String>, Vec<String>) = idle.iter().cloned().partition(|name| busy.contains(name));
    assert_eq!(ranking(&scene, &plain()), [under, over].concat());
    assert_eq!(scene.scores(&plain()).iter().filter(|s| **s == 1.0).count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn only_what_must_move_moves(names in proptest::collection::btree_set(0u32..5_000, 2..24), at in any::<prop::sample::Index>()) {
        let names: Vec<u32> = names.into_iter().collect();
        let gone = names[at.index(names.len())];
        let (mut all, mut fewer) = (in_order(names.clone()), in_order(names.iter().copied().filter(|n| *n != gone)));
        for key in 0..20 {
            let text = format!("key {key}");
            ask(&mut all, &text);
            ask(&mut fewer, &text);
            let mut before = ranking(&all, &plain());
            before.retain(|name| *name != format!("pod-{gone}"));
            prop_assert_eq!(before, ranking(&fewer, &plain()), "the order of the others stays");
        }
    }

    #[test]
    fn slots_and_instances_do_not_matter(
        slots in Just((0u32..60).collect::<Vec<_>>()).prop_shuffle(),
        loads in proptest::collection::vec(0u32..12, 25),
        key in "[a-z]{1,40}",
    ) {
        let here: Vec<(u32, u32)> = (0..25).map(|name| (name, name)).collect();
        let there: Vec<(u32, u32)> = (0..25).zip(slots).collect();
        let rank = |endpoints: &[(u32, u32)]| {
            let mut scene = arranged(endpoints);
            ask(&mut scene, &key);
            let mut view = InFlightView { requests: vec![0; 60], tokens: vec![] };
            endpoints.iter().for_each(|(name, slot)| view.requests[*slot as usize] = loads[*name as usize]);
            scene.signals.in_flight = Some(view);
            ranking(&scene, &plain())
        };
        prop_assert_eq!(rank(&here), rank(&there));
    }

    #[test]
    fn some_candidate_is_always_eligible(loads in proptest::collection::vec(any::<u32>(), 1..20), factor in 1.0f64..3.0) {
        let mut scene = pool(loads.len());
        ask(&mut scene, "x");
        scene.signals.in_flight = Some(InFlightView { requests: loads.clone(), tokens: vec![] });
        let scores = scene.scores(&build(&ROW, vec![("loadFactor", Value::Float(factor))]));
        let best = scores.iter().position(|s| *s == 1.0);
        prop_assert!(best.is_some());
        // No one else could have been below the mean if the best is not.
        let mean = loads.iter().map(|l| f64::from(*l)).sum::<f64>() / loads.len() as f64;
        prop_assert!(f64::from(loads[best.unwrap()]) <= (mean + 1.0) * factor + 4.0);
    }
}

#[test]
fn it_asks_for_prompts_and_load_and_refuses_nonsense() {
    let mut registry = Registry::default();
    build_in(&mut registry, &ROW, vec![]);
    assert!(registry.needs(&Need::Prompts));
    assert_eq!(registry.take_missing(), [SignalKind::InFlight]);
    assert!(errors(&ROW, vec![("loadFactor", Value::Float(0.9))])[0].contains("between 1 and 100"));
    assert!(errors(&ROW, vec![("prefixBlocks", Value::Integer(0))])[0].contains("between 1 and 4096"));
    let many = vec![("prefixBlocks", Value::Integer(4096)), ("blockSizeTokens", Value::Integer(64))];
    assert!(errors(&ROW, many)[0].contains("262144 tokens"));
    assert!(errors(&ROW, vec![("minRequests", Value::Integer(0))])[0].contains("at least 1"));
}
