//! The index over all prompts: shards of [`Tree`], per-endpoint capacity, the byte bound and pins.
//!
//! A chain belongs to the shard that its first hash selects, so a prompt is in one shard and a look-up
//! takes one read lock. Prompts that begin with the same block (a common system prompt) share a shard;
//! they also share nodes, which is why they cannot be apart.
//!
//! # Capacity and order across shards
//! Each endpoint has one capacity in blocks over all shards. Per (endpoint, shard) the tick of the oldest
//! leaf is kept in an atomic; eviction goes to the shard whose oldest leaf is the oldest of all, and
//! stays there until another shard's is older. Ticks come from one counter, read under the shard's
//! lock. With one writer at a time this is exactly the block-wise LRU over the whole endpoint.
//!
//! # What is exact under concurrency
//! Exact at every moment: each shard's tree with its invariants, pins, the sums of blocks and bytes once
//! writers are done. Approximate while writers overlap: an endpoint can exceed its capacity by the
//! chains being inserted (each writer brings it back before it returns), two writers that both see the
//! excess may evict it twice, and the shard chosen as oldest may just have changed. The byte bound has
//! the same slack. A look-up of one chain is atomic; those of a batch are not, one with another.
//!
//! # Bounds
//! An endpoint over its capacity loses its least recently used blocks, never pinned ones; a chain longer
//! than the capacity is cut to it. Over the byte bound, the endpoint that holds most loses blocks until
//! 1/64 is free; if what remains is pinned, nothing new is learnt. Slots from [`MAX_SLOTS`] are not
//! indexed.
//!
//! # Life of an endpoint
//! Every insertion names the endpoint's generation. [`Index::purge`] closes the generation first and
//! empties the shards then, so that neither a late commit nor a late unpin can touch the slot's next
//! endpoint. Generations of one slot must grow.
//!
//! Lock order: the table of endpoints, then at most one shard. No lock is held while another shard's is
//! taken.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::tree::{NodeId, Tree};

/// Shards of an index in production.
pub const SHARDS: usize = 64;

/// Slots that are indexed.
pub const MAX_SLOTS: u32 = 1 << 16;

/// Blocks taken from an endpoint at a time when the whole index is too large.
const BYTE_EVICTION: u64 = 256;

/// "No leaf": later than every tick.
const NONE: u64 = u64::MAX;

/// An endpoint's state beside the trees.
struct Holdings {
    /// Generation times four, plus [`OPEN`], [`CLOSED`] or [`CLEARING`].
    life: AtomicU64,
    /// Blocks held in all shards.
    blocks: AtomicU64,
    /// Most blocks to hold.
    capacity: AtomicU64,
    /// Tick of the oldest evictable leaf, by shard; [`NONE`] without one.
    oldest: Box<[AtomicU64]>,
}

impl Holdings {
    fn new(shards: usize, capacity: u64) -> Self {
        Self {
            life: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            capacity: AtomicU64::new(capacity),
            oldest: (0..shards).map(|_| AtomicU64::new(NONE)).collect(),
        }
    }

    fn is_open(&self, generation: u64) -> bool {
        self.life.load(Ordering::Acquire) == life(generation, OPEN)
    }

    /// The shard with the oldest leaf, and the oldest tick of all other shards.
    fn oldest_shard(&self) -> Option<(usize, u64)> {
        let (mut best, mut shard, mut next) = (NONE, 0, NONE);
        for (i, tick) in self.oldest.iter().enumerate() {
            let tick = tick.load(Ordering::Relaxed);
            if tick < best {
                (next, best, shard) = (best, tick, i);
            } else {
                next = next.min(tick);
            }
        }
        (best != NONE).then_some((shard, next))
    }
}

/// The endpoint may insert.
const OPEN: u64 = 0;
/// The endpoint has left.
const CLOSED: u64 = 1;
/// The endpoint is new and its predecessor's blocks are being removed.
const CLEARING: u64 = 2;

const fn life(generation: u64, state: u64) -> u64 {
    generation << 2 | state
}

/// What one endpoint holds, for the debug page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointUse {
    /// The endpoint's slot.
    pub slot: u32,
    /// Blocks held.
    pub blocks: u64,
    /// Most blocks to hold.
    pub capacity: u64,
}

/// See the module documentation. Shared; all methods take `&self`.
pub struct Index {
    shards: Box<[RwLock<Tree>]>,
    endpoints: RwLock<Vec<Arc<Holdings>>>,
    clock: AtomicU64,
    bytes: AtomicU64,
    entries: AtomicU64,
    max_bytes: u64,
    default_capacity: u64,
}

impl Index {
    /// An empty index of at most `max_bytes`, in which an endpoint may hold `default_capacity` blocks
    /// (at least 1) until [`Index::set_capacity`] says otherwise.
    pub fn new(max_bytes: u64, default_capacity: u64) -> Self {
        Self::with_shards(SHARDS, max_bytes, default_capacity)
    }

    /// As [`Index::new`] with a number of shards, at least 1.
    pub fn with_shards(shards: usize, max_bytes: u64, default_capacity: u64) -> Self {
        Self {
            shards: (0..shards.max(1)).map(|_| RwLock::default()).collect(),
            endpoints: RwLock::default(),
            clock: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            max_bytes,
            default_capacity: default_capacity.max(1),
        }
    }

    fn shard_of(&self, first: u64) -> usize {
        // Not the top or lowest bits, which the hash tables inside the shard use.
        (first >> 24) as u32 as usize % self.shards.len()
    }

    fn holdings(&self, slot: u32) -> Option<Arc<Holdings>> {
        if let Some(found) = self.endpoints.read().get(slot as usize) {
            return Some(Arc::clone(found));
        }
        if slot >= MAX_SLOTS {
            return None;
        }
        let mut endpoints = self.endpoints.write();
        while endpoints.len() <= slot as usize {
            endpoints.push(Arc::new(Holdings::new(self.shards.len(), self.default_capacity)));
        }
        endpoints.get(slot as usize).cloned()
    }

    /// Adds to `matched[slot]` the number of leading blocks of `chain` that each slot holds.
    pub fn lookup(&self, chain: &[u64], matched: &mut [u32]) {
        if let Some(&first) = chain.first() {
            self.shards[self.shard_of(first)].read().lookup(chain, matched);
        }
    }

    /// Records that the endpoint in `slot` now holds `chain`, and pins those blocks until the result is
    /// dropped. `None` if nothing was learnt: an empty chain, an endpoint that has left (or whose slot
    /// has a younger endpoint), or an index full of pinned blocks.
    pub fn insert(self: &Arc<Self>, slot: u32, generation: u64, chain: &[u64]) -> Option<Pin> {
        let holdings = self.holdings(slot)?;
        self.admit(&holdings, slot, generation);
        let capacity = usize::try_from(holdings.capacity.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let chain = &chain[..chain.len().min(capacity)];
        let shard = self.shard_of(*chain.first()?);
        if self.bytes() > self.max_bytes && !self.shed_bytes() {
            return None;
        }
        let node = {
            let mut tree = self.shards[shard].write();
            if !holdings.is_open(generation) {
                return None;
            }
            let tick = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
            let before = tree.bytes();
            let inserted = tree.insert(slot, chain, tick, true)?;
            holdings.blocks.fetch_add(inserted.added, Ordering::Relaxed);
            self.entries.fetch_add(inserted.added, Ordering::Relaxed);
            self.settle(&tree, before, &holdings, shard, slot);
            inserted.node
        };
        // From here on the pin is released whatever happens.
        let pin = Pin { index: Arc::clone(self), generation, slot, node, shard: shard as u32 };
        self.shed_capacity(&holdings, slot);
        if self.bytes() > self.max_bytes {
            self.shed_bytes();
        }
        Some(pin)
    }

    /// Makes `generation` the one that may insert, if it is younger than the last.
    fn admit(&self, holdings: &Holdings, slot: u32, generation: u64) {
        let last = holdings.life.load(Ordering::Acquire);
        if last >> 2 >= generation {
            return;
        }
        // Of several threads that get here one clears, and the others learn nothing this time.
        let (clearing, open) = (life(generation, CLEARING), life(generation, OPEN));
        if holdings.life.compare_exchange(last, clearing, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.empty(holdings, slot);
            // Fails only after a purge of this generation or a later one, which then stands.
            let _ = holdings.life.compare_exchange(clearing, open, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Forgets everything that the endpoint of `generation` in `slot`, or an older one, is believed to
    /// hold, and learns nothing more about it. Cost: O(nodes) if it holds anything.
    pub fn purge(&self, slot: u32, generation: u64) {
        let Some(holdings) = self.holdings(slot) else { return };
        let outlived = |last: u64| (last >> 2 <= generation).then_some(life(generation, CLOSED));
        if holdings.life.fetch_update(Ordering::AcqRel, Ordering::Acquire, outlived).is_ok() {
            self.empty(&holdings, slot);
            holdings.capacity.store(self.default_capacity, Ordering::Relaxed);
        }
    }

    fn empty(&self, holdings: &Holdings, slot: u32) {
        for (shard, tree) in self.shards.iter().enumerate() {
            let mut tree = tree.write();
            let before = tree.bytes();
            let gone = tree.purge(slot);
            holdings.blocks.fetch_sub(gone, Ordering::Relaxed);
            self.entries.fetch_sub(gone, Ordering::Relaxed);
            self.settle(&tree, before, holdings, shard, slot);
        }
    }

    /// Sets how many blocks (at least 1) the endpoint in `slot` may hold. Takes effect at its next
    /// insertion or release.
    pub fn set_capacity(&self, slot: u32, blocks: u64) {
        if let Some(holdings) = self.holdings(slot) {
            holdings.capacity.store(blocks.max(1), Ordering::Relaxed);
        }
    }

    fn unpin(&self, pin: &Pin) {
        let Some(holdings) = self.holdings(pin.slot) else { return };
        let shard = pin.shard as usize;
        {
            let mut tree = self.shards[shard].write();
            // After a purge the node may be somebody else's.
            if !holdings.is_open(pin.generation) {
                return;
            }
            let before = tree.bytes();
            tree.unpin(pin.slot, pin.node);
            self.settle(&tree, before, &holdings, shard, pin.slot);
        }
        self.shed_capacity(&holdings, pin.slot);
    }

    /// Publishes what a change of `tree` (still locked) did to the accounts.
    fn settle(&self, tree: &Tree, before: u64, holdings: &Holdings, shard: usize, slot: u32) {
        // Wrapping: a decrease is added as its complement.
        self.bytes.fetch_add(tree.bytes().wrapping_sub(before), Ordering::Relaxed);
        holdings.oldest[shard].store(tree.oldest(slot).unwrap_or(NONE), Ordering::Relaxed);
    }

    fn trim(&self, holdings: &Holdings, slot: u32, shard: usize, want: u64, until: u64) -> u64 {
        let mut tree = self.shards[shard].write();
        let before = tree.bytes();
        let gone = tree.trim(slot, want, until);
        holdings.blocks.fetch_sub(gone, Ordering::Relaxed);
        self.entries.fetch_sub(gone, Ordering::Relaxed);
        self.settle(&tree, before, holdings, shard, slot);
        gone
    }

    /// Brings an endpoint back to its capacity as far as pins allow.
    fn shed_capacity(&self, holdings: &Holdings, slot: u32) {
        // With other writers about, a round can come to nothing; the bound keeps them from holding
        // this one up, and the next insertion goes on.
        for _ in 0..1024 {
            let capacity = holdings.capacity.load(Ordering::Relaxed);
            let over = holdings.blocks.load(Ordering::Relaxed).saturating_sub(capacity);
            if over == 0 {
                return;
            }
            let Some((shard, until)) = holdings.oldest_shard() else { return };
            self.trim(holdings, slot, shard, over, until);
        }
    }

    /// Takes blocks from whoever holds most until 1/64 of the byte bound is free. Returns whether the
    /// index is within its bound.
    fn shed_bytes(&self) -> bool {
        let target = self.max_bytes - self.max_bytes / 64;
        let endpoints = self.endpoints.read().clone();
        let mut largest: BinaryHeap<(u64, usize)> =
            endpoints.iter().enumerate().map(|(slot, h)| (h.blocks.load(Ordering::Relaxed), slot)).collect();
        while self.bytes() > target
            && let Some((_, slot)) = largest.pop()
        {
            let holdings = &endpoints[slot];
            let Some((shard, until)) = holdings.oldest_shard() else { continue };
            // An endpoint from which nothing more can be had is not asked again: this ends.
            if self.trim(holdings, slot as u32, shard, BYTE_EVICTION, until) > 0 {
                largest.push((holdings.blocks.load(Ordering::Relaxed), slot));
            }
        }
        self.bytes() <= self.max_bytes
    }

    /// Accounted memory in bytes. The free halves of growing tables come on top: at most the fixed
    /// part of the nodes (about 90 bytes each) once more.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The byte bound.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// (Endpoint, block) pairs held.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Nodes in use. Takes each shard's lock in turn.
    pub fn nodes(&self) -> usize {
        self.shards.iter().map(|s| s.read().nodes()).sum()
    }

    /// Prompts in flight that keep their blocks from eviction, for tests and debugging: looks at every
    /// node under each shard's lock in turn.
    pub fn pins(&self) -> u64 {
        self.shards.iter().map(|s| s.read().pins()).sum()
    }

    /// What each endpoint that holds anything holds, in slot order, at most `limit` of them.
    pub fn endpoints(&self, limit: usize) -> Vec<EndpointUse> {
        self.endpoints
            .read()
            .iter()
            .zip(0..)
            .map(|(h, slot)| EndpointUse {
                slot,
                blocks: h.blocks.load(Ordering::Relaxed),
                capacity: h.capacity.load(Ordering::Relaxed),
            })
            .filter(|e| e.blocks > 0)
            .take(limit)
            .collect()
    }
}

/// Blocks of a request in flight: not evicted until this is dropped.
pub struct Pin {
    index: Arc<Index>,
    generation: u64,
    slot: u32,
    node: NodeId,
    shard: u32,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.index.unpin(self);
    }
}

#[cfg(test)]
mod tests;
