//! A decision must not allocate per endpoint: memory that grows with the pool is time that grows with
//! the pool, and more than arithmetic does.

#[path = "../benches/pick/pool.rs"]
mod pool;

use pointsman::config::yaml;
use pointsman::domain::node::Problems;
use pointsman::domain::{Headers, InFlightView, InferenceRequest, Prompt, Segment, Signals};
use pointsman::scheduling::plugin::{Build, Built, Cycle, Registry};
use pointsman::scheduling::{filters, scorers};
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
