//! What one decision costs: the default profile over 10, 1,000 and 10,000 endpoints, a prompt of 64
//! prefix blocks. The aim is 2, 20 and 200 microseconds and no allocation, which
//! `tests/pick_allocations.rs` holds to; the allocations are printed here too.
//!
//! `cargo bench --bench pick`

#[path = "pick/pool.rs"]
mod pool;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pool::Pool;

fn pick(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for endpoints in [10, 1_000, 10_000] {
        let pool = Pool::new(endpoints);
        let mut worker = pool.worker();
        black_box(worker.pick());
        let used = allocation_counter::measure(|| {
            black_box(worker.pick());
        });
        println!("pick/{endpoints}: {} allocations, {} bytes per decision", used.count_total, used.bytes_total);
        group.throughput(Throughput::Elements(endpoints as u64));
        group.bench_function(BenchmarkId::from_parameter(endpoints), |b| b.iter(|| black_box(worker.pick())));
    }
    group.finish();
}

criterion_group!(benches, pick);
criterion_main!(benches);
