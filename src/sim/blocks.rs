//! The KV-cache blocks of a simulated engine: a pool of block ids with a prefix cache over them,
//! after vLLM's block pool.
//!
//! - Every block is either held by at least one running request or in the free queue, oldest first.
//! - A free block keeps its content (its hash) until the queue hands it out again; that is the whole
//!   prefix cache, and the queue's order is the LRU order.
//! - A request gives its blocks back in reverse order, so the tail of a prompt is evicted before its
//!   head, which other prompts are more likely to share.
//! - A hash names the newest block with that content.
//!
//! The queue is a doubly linked list through the blocks themselves, because a hit takes a block out
//! of its middle. Blocks come into being when first needed, so that hundreds of idle servers cost
//! nothing.

use hashbrown::HashMap;

/// No block: the end of the list.
const NONE: u32 = u32::MAX;

struct Block {
    hash: Option<u64>,
    holders: u32,
    before: u32,
    after: u32,
}

/// See the module.
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    capacity: u32,
    by_hash: HashMap<u64, u32>,
    first: u32,
    last: u32,
    queued: u32,
}

impl BlockPool {
    /// A pool of `capacity` empty blocks.
    pub(super) fn new(capacity: u32) -> Self {
        Self { blocks: Vec::new(), capacity, by_hash: HashMap::new(), first: NONE, last: NONE, queued: 0 }
    }

    /// Blocks that nobody holds, cached ones included.
    pub(super) fn free(&self) -> u32 {
        self.capacity - self.held()
    }

    /// Blocks that running requests hold.
    pub(super) fn held(&self) -> u32 {
        self.blocks.len() as u32 - self.queued
    }

    /// How many of the leading `hashes` are cached, and how many of those nobody holds.
    pub(super) fn leading(&self, hashes: &[u64]) -> (usize, u32) {
        let mut idle = 0;
        for (n, hash) in hashes.iter().enumerate() {
            match self.by_hash.get(hash) {
                Some(id) => idle += u32::from(self.blocks[*id as usize].holders == 0),
                None => return (n, idle),
            }
        }
        (hashes.len(), idle)
    }

    /// Holds the cached block named `hash`.
    pub(super) fn hold(&mut self, hash: u64) -> Option<u32> {
        let id = *self.by_hash.get(&hash)?;
        if self.blocks[id as usize].holders == 0 {
            self.unlink(id);
        }
        self.blocks[id as usize].holders += 1;
        Some(id)
    }

    /// Takes a block for new content: a never used one, else the one free for longest, whose content is lost.
    pub(super) fn take(&mut self) -> Option<u32> {
        if (self.blocks.len() as u32) < self.capacity {
            self.blocks.push(Block { hash: None, holders: 1, before: NONE, after: NONE });
            return Some(self.blocks.len() as u32 - 1);
        }
        let id = self.first;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        self.forget(id);
        self.blocks[id as usize].holders = 1;
        Some(id)
    }

    /// Says that `id` is full and holds the content named `hash`.
    pub(super) fn name(&mut self, id: u32, hash: u64) {
        self.forget(id);
        if let Some(older) = self.by_hash.insert(hash, id) {
            self.blocks[older as usize].hash = None;
        }
        self.blocks[id as usize].hash = Some(hash);
    }

    /// Takes the content off a block, if it has any.
    pub(super) fn forget(&mut self, id: u32) {
        if let Some(hash) = self.blocks[id as usize].hash.take() {
            self.by_hash.remove(&hash);
        }
    }

    /// How many requests hold `id`.
    pub(super) fn holders(&self, id: u32) -> u32 {
        self.blocks[id as usize].holders
    }

    /// Gives back the blocks of one request (in the order of its tokens), the last one first.
    pub(super) fn give_back(&mut self, ids: &[u32]) {
        for &id in ids.iter().rev() {
            let block = &mut self.blocks[id as usize];
            block.holders -= 1;
            if block.holders == 0 {
                block.before = self.last;
                block.after = NONE;
                match self.last {
                    NONE => self.first = id,
                    last => self.blocks[last as usize].after = id,
                }
                self.last = id;
                self.queued += 1;
            }
        }
    }

    /// Forgets all content. Held blocks stay held.
    pub(super) fn clear(&mut self) {
        self.by_hash.clear();
        for block in &mut self.blocks {
            block.hash = None;
        }
    }

    fn unlink(&mut self, id: u32) {
        let Block { before, after, .. } = self.blocks[id as usize];
        match before {
            NONE => self.first = after,
            before => self.blocks[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            after => self.blocks[after as usize].before = before,
        }
        self.queued -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill(pool: &mut BlockPool, hashes: &[u64]) -> Vec<u32> {
        let known = pool.leading(hashes).0;
        let mut ids: Vec<u32> = hashes[..known].iter().map(|h| pool.hold(*h).unwrap()).collect();
        for hash in &hashes[known..] {
            let id = pool.take().unwrap();
            pool.name(id, *hash);
            ids.push(id);
        }
        ids
    }

    #[test]
    fn tails_are_evicted_before_heads_and_old_before_new() {
        let mut pool = BlockPool::new(6);
        let old = fill(&mut pool, &[1, 2, 3]);
        let new = fill(&mut pool, &[11, 12, 13]);
        pool.give_back(&old);
        pool.give_back(&new);
        // Four new blocks: 3, 2, 1 go (old request, tail first), then 13.
        let other = fill(&mut pool, &[21, 22, 23, 24]);
        assert_eq!(pool.leading(&[1]), (0, 0));
        assert_eq!(pool.leading(&[11, 12, 13]), (2, 2));
        assert_eq!(pool.held(), 4);
        pool.give_back(&other);
        // A touched block is young again: 12 and then 24 ... 22 go before 11.
        let again = fill(&mut pool, &[11]);
        pool.give_back(&again);
        fill(&mut pool, &[31, 32, 33, 34, 35]);
        assert_eq!(pool.leading(&[11]), (1, 1));
        assert_eq!(pool.leading(&[21]), (0, 0));
    }

    #[test]
    fn held_blocks_are_never_evicted() {
        let mut pool = BlockPool::new(2);
        let held = fill(&mut pool, &[1]);
        let other = fill(&mut pool, &[2]);
        assert_eq!(pool.take(), None);
        pool.give_back(&other);
        assert!(pool.take().is_some());
        assert_eq!(pool.take(), None);
        assert_eq!(pool.leading(&[1]), (1, 0));
        assert_eq!(pool.holders(held[0]), 1);
    }

    #[test]
    fn a_hash_names_the_newest_block() {
        let mut pool = BlockPool::new(3);
        let first = pool.take().unwrap();
        pool.name(first, 7);
        let second = pool.take().unwrap();
        pool.name(second, 7);
        pool.give_back(&[first]);
        assert_eq!(pool.hold(7), Some(second));
        pool.forget(second);
        assert_eq!(pool.leading(&[7]), (0, 0));
    }

    proptest! {
        /// Against the simplest thing that could be right: a list of (content) in LRU order.
        #[test]
        fn agrees_with_a_plain_list(requests in prop::collection::vec((0u64..4, 1usize..6), 1..60)) {
            const CAPACITY: usize = 8;
            let mut pool = BlockPool::new(CAPACITY as u32);
            let mut list: Vec<Option<u64>> = vec![None; CAPACITY];
            for (family, length) in requests {
                let hashes: Vec<u64> = (0..length as u64).map(|i| family * 100 + i).collect();
                let expected = hashes.iter().take_while(|h| list.contains(&Some(**h))).count();
                prop_assert_eq!(pool.leading(&hashes).0, expected);
                let ids = fill(&mut pool, &hashes);
                // Hits leave the list first, then the oldest entries make room.
                list.retain(|e| !e.is_some_and(|h| hashes[..expected].contains(&h)));
                list.drain(..length - expected);
                for entry in list.iter_mut() {
                    if entry.is_some_and(|h| hashes[expected..].contains(&h)) {
                        *entry = None;
                    }
                }
                list.extend(hashes.iter().rev().map(|h| Some(*h)));
                prop_assert_eq!(pool.held() as usize, length);
                pool.give_back(&ids);
                prop_assert_eq!(pool.free() as usize, CAPACITY);
            }
        }
    }
}
