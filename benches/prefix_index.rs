//! The approximate prefix index at the sizes it is made for.
//!
//! `cargo bench --bench prefix_index`. What an entry costs in memory is in `prefix_memory.rs`.

#[path = "micro/allocations.rs"]
mod allocations;
#[path = "micro/chains.rs"]
mod chains;

use std::hint::black_box;
use std::sync::Arc;

use chains::{BLOCKS, ENDPOINTS, grown, million, staircase};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pointsman::signals::prefix::index::Index;

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup 2000 blocks x 100 endpoints");
    let (index, chain) = staircase();
    let mut matched = vec![0u32; ENDPOINTS as usize];
    allocations::bench(&mut group, "each endpoint holds another share", || {
        matched.fill(0);
        index.lookup(black_box(&chain), &mut matched);
        black_box(matched[99]);
    });
    let all = Arc::new(Index::new(u64::MAX, 31_250));
    (0..ENDPOINTS).for_each(|slot| drop(all.insert(slot, 1, &chain)));
    allocations::bench(&mut group, "all endpoints hold all", || {
        matched.fill(0);
        all.lookup(black_box(&chain), &mut matched);
        black_box(matched[99]);
    });
    // The worst shape: a node boundary every 10 blocks, and everyone holds every node.
    let many = Arc::new(Index::new(u64::MAX, 31_250));
    for slot in 0..ENDPOINTS {
        for end in (10..=BLOCKS).step_by(10) {
            let branch = grown(&chain[..end], u64::from(slot) << 20 | end as u64, end + 1);
            drop(many.insert(slot, 1, &branch));
        }
        drop(many.insert(slot, 1, &chain));
    }
    allocations::bench(&mut group, "200 nodes, all held by all", || {
        matched.fill(0);
        many.lookup(black_box(&chain), &mut matched);
        black_box(matched[99]);
    });
    let large = million(20, 5, 20, true);
    let ids: Vec<_> = (1..200u64).map(|id| grown(&grown(&[], 1 << 40 | (id % 20), 32), id, 132)).collect();
    let mut next = ids.iter().cycle();
    allocations::bench(&mut group, "132 blocks among a million entries", || {
        matched.fill(0);
        large.lookup(next.next().unwrap(), &mut matched);
        black_box(matched[99]);
    });
    group.finish();
}

fn insert(c: &mut Criterion) {
    let mut group = c.benchmark_group("insert and unpin");
    let index = Arc::new(Index::new(u64::MAX, 31_250));
    let chain = grown(&[], 1, BLOCKS);
    drop(index.insert(0, 1, &chain));
    allocations::bench(&mut group, "2000 blocks already held", || drop(index.insert(0, 1, black_box(&chain))));
    let system = grown(&[], 2, 32);
    let mut id = 10;
    // New to the index each time; made outside of what is measured.
    let mut whole = || {
        id += 1;
        (0, grown(&[], id, BLOCKS))
    };
    let mut other = 1 << 32;
    let mut tail = || {
        other += 1;
        ((other % 100) as u32, grown(&system, other, 132))
    };
    type Make<'a> = &'a mut dyn FnMut() -> (u32, Vec<u64>);
    let cases: [(&str, Make<'_>); 2] =
        [("2000 new blocks at capacity", &mut whole), ("100 new blocks below a shared prompt, at capacity", &mut tail)];
    for (name, make) in cases {
        let mut ready: Vec<_> = (0..128).map(|_| make()).collect();
        allocations::count(name, || {
            let (slot, chain) = ready.pop().expect("made for each call");
            drop(index.insert(slot, 1, &chain));
        });
        group.bench_function(name, |b| {
            b.iter_batched(&mut *make, |(slot, chain)| drop(index.insert(slot, 1, &chain)), BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(std::time::Duration::from_secs(2));
    targets = lookup, insert
}
criterion_main!(benches);
