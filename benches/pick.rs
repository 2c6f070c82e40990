//! What one decision costs: three weighted scorers over 10, 1,000 and 10,000 endpoints, a prompt of 64
//! prefix blocks; the same under `cost-picker`, the default; and what it costs to read the accounts for it. The aim is 2, 20 and 200 microseconds and no allocation, which
//! `tests/pick_allocations.rs` holds to; the allocations are printed here too.
//!
//! `cargo bench --bench pick`

#[path = "micro/allocations.rs"]
mod allocations;
#[path = "pick/pool.rs"]
mod pool;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pointsman::domain::AccountView;
use pointsman::scheduling::plugin::Cycle;
use pointsman::signals::accounts::ledger::{Ledger, Settings, Share};
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
    for endpoints in [10, 100, 1_000, 10_000] {
        let pool = Pool::priced(endpoints);
        let mut worker = pool.worker();
        group.throughput(Throughput::Elements(endpoints as u64));
        allocations::bench(&mut group, &format!("cost-picker, {endpoints} endpoints"), || {
            black_box(worker.pick());
        });
    }
    group.finish();
}

/// Every endpoint has had a request, a second before it is read.
fn accounts(c: &mut Criterion) {
    let mut group = c.benchmark_group("accounts");
    for endpoints in [10, 100, 1_000, 10_000] {
        let pool = Pool::new(endpoints);
        let ledger = Ledger::new(Settings::default());
        let Cycle { snapshot, now, .. } = pool.cycle();
        let mut view = AccountView::default();
        ledger.view(&snapshot.topology, now, &mut view);
        let share = Share { tokens: 5_000, cost: Some(0.5), noticed: true };
        let charges: Vec<_> =
            snapshot.topology.endpoints().map(|endpoint| ledger.charge(endpoint, share, now)).collect();
        let later = now.plus(std::time::Duration::from_secs(1));
        group.throughput(Throughput::Elements(endpoints as u64));
        allocations::bench(&mut group, &format!("read, {endpoints} endpoints"), || {
            ledger.view(&snapshot.topology, black_box(later), &mut view);
            black_box(&view);
        });
        drop(charges);
    }
    let pool = Pool::new(1);
    let ledger = Ledger::new(Settings::default());
    let Cycle { snapshot, now, .. } = pool.cycle();
    let share = Share { tokens: 5_000, cost: Some(0.5), noticed: true };
    let endpoint = snapshot.topology.endpoints().next().expect("one endpoint");
    group.throughput(Throughput::Elements(1));
    allocations::bench(&mut group, "charge and give back", || {
        ledger.arrived(0.5, now);
        ledger.charge(endpoint, share, now).first_token(now);
    });
    group.finish();
}

criterion_group!(benches, pick, accounts);
criterion_main!(benches);
