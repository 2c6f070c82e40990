//! What a request costs from frames in to frames out, without sockets: the state machine, the whole edge, the
//! decision, and all of it together.
//!
//! `cargo bench --bench edge`. For the picker as a process, HTTP/2 included, see `benches/load.rs`.

#[path = "micro/allocations.rs"]
mod allocations;
#[path = "micro/edge.rs"]
mod edge;
#[path = "micro/picker.rs"]
mod picker;
#[path = "micro/requests.rs"]
mod requests;

use criterion::{Criterion, criterion_group, criterion_main};
use edge::Shape;

const SHAPES: [(&str, Shape); 4] = [
    ("1 KB, 3 chunks", Shape { body: 1 << 10, chunks: 3 }),
    ("16 KB, 3 chunks", Shape { body: 16 << 10, chunks: 3 }),
    ("128 KB, 3 chunks", Shape { body: 128 << 10, chunks: 3 }),
    ("1 KB, 100 chunks", Shape { body: 1 << 10, chunks: 100 }),
];

fn machine(c: &mut Criterion) {
    let mut group = c.benchmark_group("machine");
    for (name, shape) in SHAPES {
        allocations::bench(&mut group, name, edge::machine(shape));
    }
    group.finish();
}

fn stream(c: &mut Criterion) {
    let mut group = c.benchmark_group("edge");
    for (name, shape) in SHAPES {
        allocations::bench(&mut group, name, edge::stream(shape));
    }
    group.finish();
}

fn decision(c: &mut Criterion) {
    let mut group = c.benchmark_group("decision");
    for kilobytes in [1, 16, 128] {
        allocations::bench(&mut group, &format!("{kilobytes} KB"), edge::decision(kilobytes << 10));
    }
    group.finish();
}

fn picker(c: &mut Criterion) {
    let mut group = c.benchmark_group("edge and decision");
    for (name, shape) in SHAPES {
        allocations::bench(&mut group, name, edge::picker(shape, false, 0));
    }
    for (name, shape) in SHAPES {
        let shipped = include_str!("../config/default.yaml");
        allocations::bench(&mut group, &format!("{name}, by cost"), edge::configured(shape, shipped, 0));
    }
    group.finish();
}

criterion_group!(benches, machine, stream, decision, picker);
criterion_main!(benches);
