//! The approximate prefix index at the sizes it is made for, and what an entry costs in memory.
//!
//! `cargo bench --bench prefix_index`. Before the timings it prints the bytes per (endpoint, block) at a
//! million entries, as accounted and as the process grew.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pointsman::domain::{Prompt, Segment};
use pointsman::signals::approx_prefix::hash;
use pointsman::signals::approx_prefix::index::Index;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENDPOINTS: u32 = 100;
const BLOCKS: usize = 2_000;

/// A chain of `len` hashes that continues `head`; distinct `id`s give distinct chains.
fn grown(head: &[u64], id: u64, len: usize) -> Vec<u64> {
    let mut rng = fastrand::Rng::with_seed(id);
    head.iter().copied().chain(std::iter::repeat_with(|| rng.u64(..))).take(head.len().max(len)).collect()
}

/// Resident memory of this process in bytes, where the system tells.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|s| s.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()));
    pages.unwrap_or(0) * 4096
}

/// Conversations of `turns` turns of `per_turn` blocks under one of `prompts` shared system prompts of
/// 32 blocks, each on one endpoint, until a million entries are held.
fn million(prompts: u64, turns: usize, per_turn: usize, drop_tails: bool) -> Arc<Index> {
    let index = Arc::new(Index::new(u64::MAX, 31_250));
    let mut id = 0;
    while index.entries() < 1_000_000 {
        id += 1;
        let system = grown(&[], 1 << 40 | (id % prompts), 32);
        let chain = grown(&system, id, 32 + turns * per_turn);
        for turn in 1..=turns {
            let slot = (id % u64::from(ENDPOINTS)) as u32;
            // Now and then a client edits an earlier turn: the conversation branches.
            let branch = drop_tails && turn == turns;
            let chain = match branch {
                true => grown(&chain[..32 + (turn - 1) * per_turn / 2], id | 1 << 41, 32 + turn * per_turn),
                false => chain[..32 + turn * per_turn].to_vec(),
            };
            drop(index.insert(slot, 1, &chain));
        }
    }
    index
}

fn memory() {
    let before = resident();
    // All are kept to the end, so that none lives in memory that another one gave back.
    let mut kept = Vec::new();
    for (name, prompts, turns, per_turn, branches) in [
        ("conversations of 5 x 20 blocks", 20, 5, 20, false),
        ("conversations of 5 x 20 blocks that branch", 20, 5, 20, true),
        ("single prompts of 32 + 10 blocks", 1_000, 1, 10, false),
    ] {
        let index = million(prompts, turns, per_turn, branches);
        let (entries, nodes) = (index.entries(), index.nodes());
        let accounted = index.bytes() as f64 / entries as f64;
        println!("{name}: {entries} entries, {nodes} nodes, {accounted:.1} B/entry accounted");
        kept.push(index);
    }
    let entries: u64 = kept.iter().map(|i| i.entries()).sum();
    let accounted: u64 = kept.iter().map(|i| i.bytes()).sum();
    let grown = resident().saturating_sub(before) as f64 / entries as f64;
    println!("together: {:.1} B/entry accounted, {grown:.1} B resident", accounted as f64 / entries as f64);
}

/// Every endpoint holds a different share of one prompt, each end being a node boundary.
fn staircase() -> (Arc<Index>, Vec<u64>) {
    let index = Arc::new(Index::new(u64::MAX, 31_250));
    let chain = grown(&[], 1, BLOCKS);
    for slot in 0..ENDPOINTS {
        drop(index.insert(slot, 1, &chain[..BLOCKS * (slot as usize + 1) / ENDPOINTS as usize]));
    }
    (index, chain)
}

fn lookup(c: &mut Criterion) {
    memory();
    let mut group = c.benchmark_group("lookup 2000 blocks x 100 endpoints");
    let (index, chain) = staircase();
    let mut matched = vec![0u32; ENDPOINTS as usize];
    group.bench_function("each endpoint holds another share", |b| {
        b.iter(|| {
            matched.fill(0);
            index.lookup(black_box(&chain), &mut matched);
            matched[99]
        });
    });
    let all = Arc::new(Index::new(u64::MAX, 31_250));
    (0..ENDPOINTS).for_each(|slot| drop(all.insert(slot, 1, &chain)));
    group.bench_function("all endpoints hold all", |b| {
        b.iter(|| {
            matched.fill(0);
            all.lookup(black_box(&chain), &mut matched);
            matched[99]
        });
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
    group.bench_function("200 nodes, all held by all", |b| {
        b.iter(|| {
            matched.fill(0);
            many.lookup(black_box(&chain), &mut matched);
            matched[99]
        });
    });
    let large = million(20, 5, 20, true);
    let ids: Vec<_> = (1..200u64).map(|id| grown(&grown(&[], 1 << 40 | (id % 20), 32), id, 132)).collect();
    let mut next = ids.iter().cycle();
    group.bench_function("132 blocks among a million entries", |b| {
        b.iter(|| {
            matched.fill(0);
            large.lookup(next.next().unwrap(), &mut matched);
            matched[99]
        });
    });
    group.finish();
}

fn insert(c: &mut Criterion) {
    let mut group = c.benchmark_group("insert and unpin");
    let index = Arc::new(Index::new(u64::MAX, 31_250));
    let chain = grown(&[], 1, BLOCKS);
    drop(index.insert(0, 1, &chain));
    group.bench_function("2000 blocks already held", |b| b.iter(|| drop(index.insert(0, 1, black_box(&chain)))));
    let mut id = 10;
    group.bench_function("2000 new blocks at capacity", |b| {
        b.iter_batched(
            || {
                id += 1;
                grown(&[], id, BLOCKS)
            },
            |chain| drop(index.insert(0, 1, &chain)),
            BatchSize::SmallInput,
        );
    });
    let system = grown(&[], 2, 32);
    group.bench_function("100 new blocks below a shared prompt, at capacity", |b| {
        b.iter_batched(
            || {
                id += 1;
                ((id % 100) as u32, grown(&system, id, 132))
            },
            |(slot, chain)| drop(index.insert(slot, 1, &chain)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn hashing(c: &mut Criterion) {
    let mut group = c.benchmark_group("hash 128 KiB");
    let body: Vec<u8> = (0..131_072u32).map(|i| (i % 251) as u8).collect();
    let prompt = Prompt { segments: [Segment::Body(0..body.len())].into_iter().collect() };
    group.throughput(Throughput::Bytes(body.len() as u64));
    for block_tokens in [16, 64, 128] {
        group.bench_function(format!("{block_tokens} tokens per block"), |b| {
            b.iter(|| hash::chain(&prompt, black_box(&body), 7, block_tokens, usize::MAX));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(std::time::Duration::from_secs(2));
    targets = lookup, insert, hashing
}
criterion_main!(benches);
