//! A decision must not allocate per endpoint: memory that grows with the pool is time that grows with
//! the pool, and more than arithmetic does.

#[path = "../benches/pick/pool.rs"]
mod pool;

use std::sync::Arc;

use pointsman::config::yaml;
use pointsman::domain::node::{Node, Problems, Value};
use pointsman::domain::{
    Decision, Headers, InFlightView, InferenceRequest, LoadDetail, LoadSample, LoadTable, LoraState, PrefixMatch,
    ProfileResult, Ranked, Signals, Slot, Snapshot,
};
use pointsman::scheduling::plugin::{Build, Built, Cycle, Registry, Routed, Row};
use pointsman::scheduling::{filters, scorers};
use pool::Pool;

#[test]
fn a_warm_pick_allocates_nothing_at_any_pool_size() {
    let counts = allocation_counter::measure(|| drop(std::hint::black_box(vec![0u8; 64])));
    assert_eq!(counts.count_total, 1, "the counter counts");
    for endpoints in [1, 10, 1_000] {
        let pool = Pool::new(endpoints);
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
        let prefix = PrefixMatch { block_tokens: 64, total_blocks: 64, matched, chains: Vec::new() };
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
        for row in filters::TABLE.iter().chain(scorers::TABLE) {
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
            };
            run();
            let used = allocation_counter::measure(|| (0..10).for_each(|_| run()));
            let kind = row.about.kind;
            assert_eq!(used.count_total, 0, "{kind}: {} bytes for {endpoints} endpoints", used.bytes_total);
        }
    }
}
