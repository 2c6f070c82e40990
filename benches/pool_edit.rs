//! What publishing a change of one pod costs, by an edit and by replacing the whole set.
//!
//! `cargo bench --bench pool_edit`. The goal is at most 1 ms at 1,000 pods.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pointsman::domain::{EndpointSpec, LoadSample, PoolIdentity};
use pointsman::lifecycle::clock::{Clock, ManualClock};
use pointsman::pool::{Pool, SLOT_REST};

fn spec(i: u32, revision: u32) -> EndpointSpec {
    let labels = [
        ("app", "vllm".to_owned()),
        ("app.kubernetes.io/name", "vllm".to_owned()),
        ("app.kubernetes.io/version", "0.9.1".to_owned()),
        ("llm-d.ai/role", "decode".to_owned()),
        ("pod-template-hash", "5d8f7c9b46".to_owned()),
        ("revision", revision.to_string()),
    ];
    EndpointSpec {
        name: format!("vllm-llama-5d8f7c9b46-{i:05}-rank-0"),
        namespace: "inference".into(),
        address: ([10, 1, (i / 250) as u8, (i % 250) as u8], 8000).into(),
        rank: 0,
        incarnation: 0,
        labels: labels.map(|(key, value)| (key.to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>(),
    }
}

fn pool(pods: u32) -> (Arc<Pool>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let shared: Arc<dyn Clock> = clock.clone();
    let pool = Arc::new(Pool::new(PoolIdentity::default(), Duration::from_secs(2), shared, Box::new(|_| {})));
    pool.replace((0..pods).map(|i| spec(i, 0)).collect());
    let snapshot = pool.snapshot().clone();
    for endpoint in snapshot.topology.endpoints() {
        let sample = LoadSample { waiting: Some(1.0), running: Some(2.0), ..LoadSample::default() };
        pool.report(endpoint.slot, endpoint.generation, &sample);
    }
    (pool, clock)
}

fn publish(criterion: &mut Criterion) {
    for pods in [100, 1_000, 10_000] {
        let mut group = criterion.benchmark_group(format!("pool_of_{pods}"));
        let (relabelled, _) = pool(pods);
        let mut revision = 0;
        group.bench_function("edit_labels_of_one_pod", |b| {
            b.iter_batched(
                || {
                    revision += 1;
                    vec![spec(7, revision)]
                },
                |specs| black_box(relabelled.edit(&[], specs)),
                BatchSize::SmallInput,
            );
        });
        let (flapping, clock) = pool(pods);
        let key = ("inference".to_owned(), spec(7, 0).name);
        let mut there = true;
        group.bench_function("edit_pod_goes_or_comes", |b| {
            b.iter_batched(
                || {
                    // So that slots are used again and the arrays keep their length.
                    clock.advance(SLOT_REST);
                    there = !there;
                    if there { (Vec::new(), vec![spec(7, 0)]) } else { (vec![key.clone()], Vec::new()) }
                },
                |(gone, come)| black_box(flapping.edit(&gone, come)),
                BatchSize::PerIteration,
            );
        });
        let (replaced, _) = pool(pods);
        let mut revision = 0;
        group.bench_function("replace_with_one_pod_changed", |b| {
            b.iter_batched(
                || {
                    revision += 1;
                    let mut specs: Vec<_> = (0..pods).map(|i| spec(i, 0)).collect();
                    specs[7] = spec(7, revision);
                    specs
                },
                |specs| black_box(replaced.replace(specs)),
                BatchSize::LargeInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, publish);
criterion_main!(benches);
