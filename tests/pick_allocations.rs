//! A decision must not allocate per endpoint: memory that grows with the pool is time that grows with
//! the pool, and more than arithmetic does.

#[path = "../benches/pick/pool.rs"]
mod pool;

use std::sync::Arc;

use pointsman::config::yaml;
use pointsman::domain::node::{Node, Problems, Value};
use pointsman::domain::{
    Decision, Headers, InFlightView, InferenceRequest, LoadDetail, LoadSample, LoadTable, LoraState, ObjectiveSpec,
    Policies, PrefixMatch, ProfileResult, Prompt, Ranked, RewriteRule, RewriteSpec, RewriteTarget, Segment, Signals,
    Slot, Snapshot,
};
use pointsman::scheduling::detectors::{self, Saturation};
use pointsman::scheduling::plugin::{Build, Built, Cycle, Registry, Routed, Row};
use pointsman::scheduling::{filters, scorers};
use pointsman::signals;
use pool::Pool;

/// Expressions, of which the sample shows one only, and a hashed prompt, which the default profile has none of.
#[test]
fn expressions_and_hashed_prompts_allocate_nothing_at_any_pool_size() {
    const FILTER: &str = "expression: request.headers['x-zone'] == endpoint.labels['zone'] || \
                          endpoint.name.contains('pod') && request.prompt_tokens > 1 && endpoint.waiting_requests < 15";
    const SCORER: &str = "{normalization: min-max, expression: 'endpoint.sample_age + endpoint.metrics.none + \
                          (endpoint.prefix_match > 0.5 ? endpoint.inflight_tokens : double(endpoint.name))'}";
    for endpoints in [1, 10, 1_000, 10_000] {
        let pool = Pool::new(endpoints);
        let request = InferenceRequest {
            headers: Headers::from([("x-zone", "eu-1")]),
            prompts: std::iter::once(Prompt { segments: [Segment::Fixed(b"Once upon a time")].into_iter().collect() })
                .collect(),
            ..InferenceRequest::default()
        };
        let load: Vec<u32> = (0..endpoints as u32).map(|i| i % 9).collect();
        let in_flight = InFlightView { tokens: load.iter().map(|n| u64::from(*n)).collect(), requests: load };
        let signals = Signals { in_flight: Some(in_flight), ..pool.cycle().signals.clone() };
        let cycle = Cycle { request: &request, signals: &signals, ..pool.cycle() };
        let mut candidates = Vec::with_capacity(endpoints);
        let mut column = vec![0.0; endpoints];
        for (kind, parameters) in [
            ("cel-filter", FILTER),
            ("cel-scorer", "expression: 1.0 - endpoint.kv_cache_usage"),
            ("cel-scorer", SCORER),
            ("consistent-hash-scorer", "{}"),
        ] {
            let built = built(kind, parameters);
            let mut run = || {
                candidates.clear();
                candidates.extend_from_slice(pool.slots());
                built.filter.iter().for_each(|filter| filter.filter(&cycle, &mut candidates));
                built.scorer.iter().for_each(|scorer| scorer.score(&cycle, pool.slots(), &mut column));
            };
            // The first decision over a topology works out what depends on names and labels.
            run();
            let used = allocation_counter::measure(|| (0..3).for_each(|_| run()));
            assert_eq!(used.count_total, 0, "{kind}: {} bytes for {endpoints} endpoints", used.bytes_total);
            assert!(built.filter.is_none() || !candidates.is_empty(), "{kind} keeps nobody");
            assert!(built.scorer.is_none() || column.contains(&1.0) || column[0] > 0.0, "{kind}: {column:?}");
        }
    }
}

fn built(kind: &str, parameters: &str) -> Built {
    let mut problems = Problems::default();
    let node = yaml::read(parameters.as_bytes(), &mut problems).expect("YAML");
    let row = filters::TABLE.iter().chain(scorers::TABLE).find(|row| row.about.kind == kind).expect("a known type");
    let mut context = Build {
        name: kind,
        path: String::new(),
        at: node.at,
        parameters: Some(&node),
        registry: &mut Registry::default(),
        problems: &mut problems,
    };
    let built = (row.build)(&mut context);
    built.unwrap_or_else(|| panic!("{kind}: {:?}", problems.errors))
}

#[test]
fn a_warm_pick_allocates_nothing_at_any_pool_size() {
    let counts = allocation_counter::measure(|| drop(std::hint::black_box(vec![0u8; 64])));
    assert_eq!(counts.count_total, 1, "the counter counts");
    let pools = [1, 10, 1_000].into_iter().flat_map(|n| [(n, Pool::new(n)), (n, Pool::priced(n))]);
    for (endpoints, pool) in pools {
        let mut worker = pool.worker();
        // The first decision grows the scratch buffers.
        assert!(worker.pick().is_some());
        let used = allocation_counter::measure(|| {
            for _ in 0..10 {
                assert!(worker.pick().is_some());
            }
        });
        assert_eq!(used.count_total, 0, "{endpoints} endpoints: {} bytes", used.bytes_total);
    }
}

/// Reading the accounts takes one buffer per decision, and none where a decision is made again.
#[test]
fn accounts_are_read_into_one_buffer() {
    for endpoints in [1, 10, 1_000] {
        let pool = Pool::new(endpoints);
        let row = signals::TABLE.iter().find(|row| row.about.kind == "prefill-account-producer").expect("a known type");
        let producer = sample(row).producer.expect("a producer");
        let cycle = pool.cycle();
        let read = |signals: &mut Signals| producer.produce(cycle.request, cycle.snapshot, signals);
        // The first decision opens the accounts.
        read(&mut Signals::default());
        let mut signals = Signals::default();
        assert_eq!(allocation_counter::measure(|| read(&mut signals)).count_total, 1);
        assert_eq!(allocation_counter::measure(|| read(&mut signals)).count_total, 0);
        assert_eq!(signals.accounts.map(|a| a.endpoints.len()), Some(endpoints));
    }
}

/// An instance with the parameters of its sample.
fn sample(row: &Row) -> Built {
    let mut problems = Problems::default();
    let document = yaml::read(row.about.sample.as_bytes(), &mut problems).expect("the sample is YAML");
    let Value::Sequence(entries) = &document.value else { panic!("{}: the sample is no list", row.about.kind) };
    let mut context = Build {
        name: row.about.kind,
        path: String::new(),
        at: document.at,
        parameters: entries[0].get("parameters").filter(|p: &&Node| p.value != Value::Null),
        registry: &mut Registry::default(),
        problems: &mut problems,
    };
    (row.build)(&mut context).expect("the sample builds")
}

/// What plugins of every kind find something in: adapters, work in flight, a session.
struct Scene {
    request: InferenceRequest,
    snapshot: Snapshot,
    signals: Signals,
}

impl Scene {
    /// Over the endpoints of `pool`; somebody holds blocks of the prompt if it is `warm`.
    fn new(pool: &Pool, warm: bool) -> Self {
        let cycle = pool.cycle();
        let mut loads = LoadTable::clone(&cycle.snapshot.loads);
        let numbers = |step: u32| pool.slots().iter().map(move |slot| slot.0 * step % 23);
        for (slot, n) in pool.slots().iter().zip(numbers(7)) {
            let names: Vec<String> = (0..n % 7).map(|i| format!("adapter-{}", (i + n) % 9)).collect();
            let mut lora = LoraState::default();
            lora.set(names.iter().map(String::as_str), names.iter().map(String::as_str), 4);
            let sample = LoadSample {
                taken_at: cycle.now,
                waiting: Some(n as f32),
                running: Some(n as f32),
                kv_usage: Some(n as f32 / 23.0),
                detail: Arc::new(LoadDetail { lora: Some(lora), ..LoadDetail::default() }),
            };
            loads.set(*slot, &sample);
        }
        let matched = numbers(5).map(|n| if warm { n } else { 0 }).collect();
        let prefix = PrefixMatch { block_tokens: 64, total_blocks: 64, matched, ..PrefixMatch::default() };
        let in_flight = InFlightView { requests: numbers(3).collect(), tokens: numbers(11).map(u64::from).collect() };
        Self {
            request: InferenceRequest {
                headers: Headers::from([("x-session-id", "some-session")]),
                target_model: "adapter-3".into(),
                ..InferenceRequest::default()
            },
            snapshot: Snapshot { topology: Arc::clone(&cycle.snapshot.topology), loads: Arc::new(loads) },
            signals: Signals {
                prompt_tokens: Some(4_096),
                prefix: vec![prefix],
                in_flight: Some(in_flight),
                ..Signals::default()
            },
        }
    }

    fn cycle<'s>(&'s self, pool: &'s Pool) -> Cycle<'s> {
        Cycle { request: &self.request, snapshot: &self.snapshot, signals: &self.signals, now: pool.cycle().now }
    }

    /// Lets a plugin learn that some requests went somewhere.
    fn teach(&self, pool: &Pool, built: &Built) {
        let Some(commit) = &built.commit else { return };
        for slot in pool.slots().iter().step_by(3) {
            let endpoint = Arc::clone(self.snapshot.topology.get(*slot).expect("a slot in use"));
            let picked = std::iter::once(Ranked { endpoint, score: 1.0 }).collect();
            let result = ProfileResult { profile: "default".into(), picked, explanation: None };
            let decision = Decision { profiles: std::iter::once(result).collect(), primary: 0, headers: Vec::new() };
            let now = pool.cycle().now;
            commit.commit(&Routed { request: &self.request, decision: &decision, signals: &self.signals, now });
        }
    }
}

#[test]
fn no_filter_or_scorer_allocates_once_it_is_warm() {
    for (endpoints, warm) in [(1, true), (10, false), (1_000, true), (1_000, false)] {
        let pool = Pool::new(endpoints);
        let scene = Scene::new(&pool, warm);
        let cycle = scene.cycle(&pool);
        let mut candidates: Vec<Slot> = Vec::with_capacity(endpoints);
        let mut column = vec![0.0; endpoints];
        for row in filters::TABLE.iter().chain(scorers::TABLE).chain(detectors::TABLE) {
            let built = sample(row);
            scene.teach(&pool, &built);
            let mut run = || {
                candidates.clear();
                candidates.extend_from_slice(pool.slots());
                if let Some(filter) = &built.filter {
                    filter.filter(&cycle, &mut candidates);
                }
                if let Some(scorer) = &built.scorer {
                    scorer.score(&cycle, pool.slots(), &mut column);
                }
                if let Some(detector) = &built.saturation {
                    Saturation::of(detector.as_ref(), cycle.snapshot, pool.slots(), cycle.now);
                }
            };
            run();
            let used = allocation_counter::measure(|| (0..10).for_each(|_| run()));
            let kind = row.about.kind;
            assert_eq!(used.count_total, 0, "{kind}: {} bytes for {endpoints} endpoints", used.bytes_total);
        }
    }
}

/// What a request asks of the policies, with none and with a thousand in force.
#[test]
fn policies_are_looked_up_without_allocating() {
    let target = |i: usize| RewriteTarget { model: format!("target-{i}"), weight: Some(1 + i as u32) };
    let rule = |i: usize| RewriteRule { models: vec![format!("model-{i}")], targets: vec![target(i), target(i + 1)] };
    let rewrite = |i: usize| RewriteSpec { name: format!("rewrite-{i}"), created: 0, rules: vec![rule(i)] };
    let objective = |i: usize| ObjectiveSpec { name: format!("objective-{i}"), priority: i as i32 - 500 };
    let many = Policies::new((0..1_000).map(objective).collect(), (0..1_000).map(rewrite).collect());
    for (policies, expected) in [(Policies::default(), (None, None)), (many, (Some(-493), Some("target-8")))] {
        let used = allocation_counter::measure(|| {
            let chosen = policies.rule("model-7").and_then(|rule| rule.choose(|below| below - 1));
            assert_eq!((policies.priority("objective-7"), chosen), expected);
            assert!(policies.rule("another").is_none() && policies.priority("another").is_none());
        });
        assert_eq!(used.count_total, 0, "{} bytes", used.bytes_total);
    }
}
