//! What one decision costs: the default profile over 10, 1,000 and 10,000 endpoints, a prompt of 64
//! prefix blocks. The aim is 2, 20 and 200 microseconds and no allocation, which
//! `tests/pick_allocations.rs` holds to; the allocations are printed here too.
//!
//! `cargo bench --bench pick`

#[path = "micro/allocations.rs"]
mod allocations;
#[path = "pick/pool.rs"]
mod pool;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pool::Pool;

fn pick(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for endpoints in [10, 1_000, 10_000] {
        let pool = Pool::new(endpoints);
        let mut worker = pool.worker();
        group.throughput(Throughput::Elements(endpoints as u64));
        allocations::bench(&mut group, &format!("{endpoints} endpoints"), || {
            black_box(worker.pick());
        });
    }
    group.finish();
}

criterion_group!(benches, pick);
criterion_main!(benches);
