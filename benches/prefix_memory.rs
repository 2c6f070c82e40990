//! What an entry of the approximate prefix index costs in memory: the bytes per (endpoint, block) at a million
//! entries, as accounted and as the process grew. With the allocator of the process.
//!
//! `cargo bench --bench prefix_memory`

#[path = "micro/chains.rs"]
mod chains;

use chains::million;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Resident memory of this process in bytes, where the system tells.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|s| s.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()));
    pages.unwrap_or(0) * 4096
}

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        // Built and run by `cargo test --all-targets`, which wants no measurement.
        return;
    }
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
