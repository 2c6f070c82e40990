//! Chains of block hashes, and prefix indexes filled with them.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::sync::Arc;

use pointsman::signals::prefix::index::Index;

pub const ENDPOINTS: u32 = 100;
pub const BLOCKS: usize = 2_000;

/// A chain of `len` hashes that continues `head`; distinct `id`s give distinct chains.
pub fn grown(head: &[u64], id: u64, len: usize) -> Vec<u64> {
    let mut rng = fastrand::Rng::with_seed(id);
    head.iter().copied().chain(std::iter::repeat_with(|| rng.u64(..))).take(head.len().max(len)).collect()
}

/// Every endpoint holds a different share of one prompt, each end being a node boundary.
pub fn staircase() -> (Arc<Index>, Vec<u64>) {
    let index = Arc::new(Index::new(u64::MAX, 31_250));
    let chain = grown(&[], 1, BLOCKS);
    for slot in 0..ENDPOINTS {
        drop(index.insert(slot, 1, &chain[..BLOCKS * (slot as usize + 1) / ENDPOINTS as usize]));
    }
    (index, chain)
}

/// Conversations of `turns` turns of `per_turn` blocks under one of `prompts` shared system prompts of
/// 32 blocks, each on one endpoint, until a million entries are held.
pub fn million(prompts: u64, turns: usize, per_turn: usize, drop_tails: bool) -> Arc<Index> {
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
