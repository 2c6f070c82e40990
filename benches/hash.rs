//! Hashing a prompt into its chain of blocks.
//!
//! `cargo bench --bench hash`

#[path = "micro/allocations.rs"]
mod allocations;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pointsman::domain::{Prompt, Segment};
use pointsman::signals::prefix::hash;

fn hashing(c: &mut Criterion) {
    for kilobytes in [1usize, 16, 128] {
        let mut group = c.benchmark_group(format!("hash {kilobytes} KB"));
        let body: Vec<u8> = (0..kilobytes << 10).map(|i| (i % 251) as u8).collect();
        let prompt = Prompt { segments: [Segment::Body(0..body.len())].into_iter().collect() };
        group.throughput(Throughput::Bytes(body.len() as u64));
        for block_tokens in [16, 64, 128] {
            allocations::bench(&mut group, &format!("{block_tokens} tokens per block"), || {
                black_box(hash::chain(&prompt, black_box(&body), 7, block_tokens, usize::MAX));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, hashing);
criterion_main!(benches);
