//! Cost of one poll's parsing: a real vLLM page, whole and filtered, all core metrics wanted or one.
//!
//! At 100 endpoints and 50 ms a picker reads 2000 pages each second, so 10 µs a page are 2 % of a core.

#[path = "micro/allocations.rs"]
mod allocations;

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pointsman::collector::Plan;
use pointsman::collector::mapping::{BUILT_IN, EngineMapping};
use pointsman::collector::reading::Reading;
use pointsman::domain::Timestamp;
use pointsman::scheduling::plugin::Metric;

const PAGE: &str = include_str!("../tests/data/metrics/vllm-metrics.txt");

fn bench(c: &mut Criterion) {
    let vllm = EngineMapping::from(&BUILT_IN[0]);
    let core = [Metric::Waiting, Metric::Running, Metric::KvUsage, Metric::CacheInfo, Metric::Lora];
    let filtered: String = PAGE
        .lines()
        .filter(|l| ["num_requests", "kv_cache_usage", "lora_requests", "cache_config"].iter().any(|n| l.contains(n)))
        .flat_map(|l| [l, "\n"])
        .collect();
    let cases = [
        ("all core metrics, whole page", &core[..], PAGE),
        ("queue length, whole page", &core[..1], PAGE),
        ("all core metrics, filtered page", &core[..], filtered.as_str()),
    ];
    let mut group = c.benchmark_group("scrape_parse");
    for (name, wanted, page) in cases {
        let plan = Plan::new(&vllm, &wanted.iter().cloned().collect::<BTreeSet<_>>());
        let (mut reading, mut detail) = (Reading::default(), Arc::default());
        group.throughput(Throughput::Bytes(page.len() as u64));
        allocations::bench(&mut group, name, || {
            reading.reset(&plan);
            for chunk in black_box(page).as_bytes().chunks(16 * 1024) {
                reading.feed(&plan, chunk);
            }
            assert!(!reading.finish());
            let sample = reading.sample(&plan, Timestamp(1), &detail);
            detail = Arc::clone(&sample.detail);
            black_box(sample);
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
