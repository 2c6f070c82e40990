//! Whole runs through the real code, small enough for every build.

use super::*;
use crate::config::{Source, Tables};
use crate::replay::compare::{Plan, Progress, compare};
use crate::replay::picker::{Fleet, resolve};
use crate::replay::preset;
use crate::replay::table::Results;
use crate::replay::trace::generate::{Shape, generate};

fn fleet(trace: &Trace, scene: &Scene) -> Fleet {
    let Scene { hardware, speeds, .. } = scene;
    Fleet { pods: speeds.len(), kv_tokens: hardware.kv_tokens, block_tokens: trace.block_tokens }
}

fn play(trace: &Trace, scene: &Scene, source: &Source, seed: u64) -> Outcome {
    let tables = Tables::standard();
    let make = |seed: u64| Picker::new(&resolve(source, &tables).unwrap(), fleet(trace, scene), seed);
    run(trace, scene, &make, seed, &|_| {})
}

fn small() -> Trace {
    generate(&Shape::parse("sessions,seconds=60,rate=3,think=5,output-tokens=100").unwrap())
}

fn scene(pods: usize) -> Scene {
    Scene { speeds: vec![1.0; pods], ..Scene::default() }
}

#[test]
fn one_seed_gives_one_outcome_and_another_another() {
    let (trace, scene) = (small(), scene(3));
    let weighted = preset::source("llm-d-default");
    for source in [&Source::Default, &weighted] {
        let one = play(&trace, &scene, source, 1);
        assert_eq!(one, play(&trace, &scene, source, 1), "also after other runs on this thread");
        assert_eq!(one.unfinished, 0);
        assert!(one.ttft.len() > 80 && one.cached_tokens > 0, "{} requests", one.ttft.len());
    }
    // Costs leave next to nothing to lots; equal totals are drawn by lot.
    assert_ne!(play(&trace, &scene, &weighted, 1), play(&trace, &scene, &weighted, 2));
}

#[test]
fn a_prefix_aware_configuration_beats_a_random_one() {
    let (trace, scene) = (small(), scene(4));
    let random = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: random-picker\n\
                  schedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: random-picker\n";
    let aware = play(&trace, &scene, &preset::source("llm-d-default"), 1);
    let random = play(&trace, &scene, &Source::Text(random.into()), 1);
    assert!(aware.cached_tokens as f64 > 1.3 * random.cached_tokens as f64);
    assert!(random.false_tokens == 0 && random.imbalance >= 1.0);
}

#[test]
fn faults_change_what_they_should_and_leave_no_request_behind() {
    let trace = small();
    let plain = play(&trace, &scene(3), &Source::Default, 1);
    for (name, scene) in [
        ("restart", Scene { restart: Some(0.6), ..scene(3) }),
        ("pickers", Scene { pickers: 3, ..scene(3) }),
        ("late scrapes", Scene { scrape_delay: 1.0, scrape_interval: 1.0, ..scene(3) }),
        ("exact scrapes", Scene { scrape_interval: 0.0, ..scene(3) }),
        ("slow pod", Scene { slow_pod: Some(SlowPod { pod: 0, speed: 0.2, from: 0.1 }), ..scene(3) }),
        ("speeds", Scene { speeds: vec![1.0, 1.0, 0.3], ..scene(3) }),
        ("not streamed", Scene { streamed: false, ..scene(3) }),
    ] {
        let outcome = play(&trace, &scene, &Source::Default, 1);
        assert_eq!((outcome.unfinished, outcome.refused, outcome.ttft.len()), (0, 0, plain.ttft.len()), "{name}");
        // The configuration under test does not look at answers.
        assert!(outcome != plain || name == "not streamed", "{name} changed nothing");
        if name == "restart" || name == "pickers" {
            assert!(outcome.cached_tokens < plain.cached_tokens, "{name} costs hits");
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let trace = small();
    let plan = Plan { loads: vec![0.3, 0.6], seeds: vec![1, 2], seconds: 40.0, scene: scene(2) };
    let tables = Tables::standard();
    let sources = [Source::Default, preset::source("llm-d-default")];
    let make =
        |config: usize, fleet: Fleet, seed: u64| Picker::new(&resolve(&sources[config], &tables).unwrap(), fleet, seed);
    let run = |threads: usize| {
        let progress = Progress::default();
        let cells = compare(&trace, &plan, 2, &make, threads, &progress, &mut || {}).unwrap();
        assert_eq!(progress.get().1, 8);
        Results::new(vec!["a".into(), "b".into()], &plan, 2.0, cells)
    };
    let (one, four) = (run(1), run(4));
    assert_eq!(one.table(), four.table());
    assert_eq!(one.json(), four.json());
    let impossible = Plan { loads: vec![1e7], ..plan.clone() };
    let failed = compare(&trace, &impossible, 2, &make, 2, &Progress::default(), &mut || {}).unwrap_err();
    assert!(failed.contains("times the traffic of the trace"), "{failed}");
}

#[test]
fn held_requests_are_sent_in_the_end_also_after_a_restart() {
    let hold = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n\
                - type: mirror-prefix-cache-producer\n- type: prefill-account-producer\n- type: cost-picker\n\
                - type: just-in-time-dispatch\nschedulingProfiles:\n- name: default\n  plugins:\n\
                \x20 - pluginRef: cost-picker\n";
    let hold = Source::Text(hold.into());
    let (trace, plain) = (small(), Scene { warm: 0.0, ..scene(1) });
    let one = play(&trace, &plain, &hold, 1);
    assert!(one.held_seconds > 1.0, "{} s held", one.held_seconds);
    assert_eq!((one.unfinished, one.refused, one.ttft.len()), (0, 0, trace.requests.len()));
    assert_eq!(one, play(&trace, &plain, &hold, 1));
    let restarted = play(&trace, &Scene { restart: Some(0.6), ..plain.clone() }, &hold, 1);
    assert_eq!((restarted.unfinished, restarted.refused, restarted.ttft.len()), (0, 0, trace.requests.len()));
    let unseen = play(&trace, &Scene { streamed: false, ..plain }, &hold, 1);
    assert!(unseen.held_seconds < one.held_seconds / 2.0, "{} s held without notices", unseen.held_seconds);
}
