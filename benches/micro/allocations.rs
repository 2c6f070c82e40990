//! Allocations beside the time, for every micro-benchmark.

use criterion::BenchmarkGroup;
use criterion::measurement::WallTime;

/// Prints what one call of `run` allocates once it is warm, then measures its time.
pub fn bench(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut run: impl FnMut()) {
    count(name, &mut run);
    group.bench_function(name, |b| b.iter(&mut run));
}

/// Prints what one call of `run` allocates once it is warm.
pub fn count(name: &str, mut run: impl FnMut()) {
    // What is sampled (one decision of 64 is observed in detail) shows as a fraction.
    const CALLS: u32 = 64;
    (0..CALLS).for_each(|_| run());
    let used = allocation_counter::measure(|| (0..CALLS).for_each(|_| run()));
    let each = |total: u64| total as f64 / f64::from(CALLS);
    println!("{name}: {:.2} allocations, {:.0} bytes per operation", each(used.count_total), each(used.bytes_total));
}
