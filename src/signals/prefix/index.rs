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
//! # Order of eviction
//! [`Order::Routed`]: a block was last used when a prompt with it was inserted. [`Order::Ended`]: when such a
//! prompt was done with, as engines free the blocks of a request when it ends and take those first that have
//! lain longest, deepest first. Ticks are then microseconds of the clock that the callers pass, pushed on where
//! that would not make them unique, times two; the lowest bit says that a prompt in flight made the tick. Such a
//! block is pinned. (One whose prompts overlapped can be pinned without the bit; only [`Pin::idle`] is affected.)
//!
//! # Room
//! Of an endpoint's capacity, `reserve` blocks per [`Stay`] are kept free for what its requests generate, but no
//! more than half of the capacity: requests that wait in the engine's queue take no room yet.
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
use crate::domain::Timestamp;

/// Shards of an index in production.
pub const SHARDS: usize = 64;

/// Slots that are indexed.
pub const MAX_SLOTS: u32 = 1 << 16;

/// Blocks taken from an endpoint at a time when the whole index is too large.
const BYTE_EVICTION: u64 = 256;

/// "No leaf": later than every tick.
const NONE: u64 = u64::MAX;

/// Below this share of its room in percent, an endpoint's cache counts as not full: what it takes in pushes
/// nothing out. A little below 100, since eviction leaves some of the room free for a moment.
const FULL_PERCENT: u64 = 97;

/// What counts as the last use of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A prompt with it was routed.
    Routed,
    /// A prompt with it was done with.
    Ended,
}

/// An endpoint's state beside the trees.
struct Holdings {
    /// Generation times four, plus [`OPEN`], [`CLOSED`] or [`CLEARING`].
    life: AtomicU64,
    /// Blocks held in all shards.
    blocks: AtomicU64,
    /// Most blocks to hold, with what requests in flight will generate.
    capacity: AtomicU64,
    /// Blocks to keep free for each request in flight.
    reserve: AtomicU64,
    /// Requests in flight that want room kept free.
    stays: AtomicU64,
    /// The least of `oldest`, kept with [`Order::Ended`] only.
    eldest: AtomicU64,
    /// Tick of the oldest evictable leaf, by shard; [`NONE`] without one.
    oldest: Box<[AtomicU64]>,
}

impl Holdings {
    fn new(shards: usize, capacity: u64) -> Self {
        Self {
            life: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            capacity: AtomicU64::new(capacity),
            reserve: AtomicU64::new(0),
            stays: AtomicU64::new(0),
            eldest: AtomicU64::new(NONE),
            oldest: (0..shards).map(|_| AtomicU64::new(NONE)).collect(),
        }
    }

    /// Blocks of prompts that the endpoint has room for now.
    fn room(&self) -> u64 {
        let capacity = self.capacity.load(Ordering::Relaxed);
        let kept = self.reserve.load(Ordering::Relaxed).saturating_mul(self.stays.load(Ordering::Relaxed));
        capacity - kept.min(capacity / 2)
    }

    fn is_full(&self) -> bool {
        self.blocks.load(Ordering::Relaxed).saturating_mul(100) >= self.room().saturating_mul(FULL_PERCENT)
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
    /// What of that is not kept free for requests in flight.
    pub room: u64,
    /// Requests in flight that room is kept free for.
    pub in_flight: u64,
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
    order: Order,
}

impl Index {
    /// An empty index of at most `max_bytes`, in which an endpoint may hold `default_capacity` blocks
    /// (at least 1) until [`Index::set_capacity`] says otherwise.
    pub fn new(max_bytes: u64, default_capacity: u64) -> Self {
        Self::with_shards(SHARDS, max_bytes, default_capacity)
    }

    /// This (still empty) index with another order of eviction than [`Order::Routed`].
    pub fn ordered(self, order: Order) -> Self {
        Self { order, ..self }
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
            order: Order::Routed,
        }
    }

    /// The tick of something that happens at `now`; `routed` if it begins a prompt's stay. To be called under
    /// the lock of the shard that it is for.
    #[inline]
    fn tick(&self, now: Timestamp, routed: bool) -> u64 {
        if self.order == Order::Routed {
            return self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        }
        // Two doublings below the sentinel, whatever a clock says.
        self.clock.fetch_max(now.0.min(u64::MAX >> 3).saturating_sub(1), Ordering::Relaxed);
        (self.clock.fetch_add(1, Ordering::Relaxed) + 1) << 1 | u64::from(routed)
    }

    /// The latest time that the index was told of.
    pub fn latest(&self) -> Timestamp {
        Timestamp(self.clock.load(Ordering::Relaxed))
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
        self.insert_at(slot, generation, chain, Timestamp::default())
    }

    /// As [`Index::insert`] at `now`, which only [`Order::Ended`] asks for.
    pub fn insert_at(self: &Arc<Self>, slot: u32, generation: u64, chain: &[u64], now: Timestamp) -> Option<Pin> {
        let holdings = self.holdings(slot)?;
        self.admit(&holdings, slot, generation);
        let capacity = usize::try_from(holdings.capacity.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let chain = &chain[..chain.len().min(capacity)];
        let shard = self.shard_of(*chain.first()?);
        if self.bytes() > self.max_bytes && !self.shed_bytes() {
            return None;
        }
        let (inserted, tick) = {
            let mut tree = self.shards[shard].write();
            if !holdings.is_open(generation) {
                return None;
            }
            let tick = self.tick(now, true);
            let before = tree.bytes();
            let inserted = tree.insert(slot, chain, tick, true)?;
            holdings.blocks.fetch_add(inserted.added, Ordering::Relaxed);
            self.entries.fetch_add(inserted.added, Ordering::Relaxed);
            self.settle(&tree, before, &holdings, shard, slot);
            (inserted, tick)
        };
        // From here on the pin is released whatever happens.
        let pin = Pin {
            index: Arc::clone(self),
            generation,
            slot,
            node: inserted.node,
            shard: shard as u32,
            matched: chain.len() as u32 - inserted.added as u32,
            last_use: inserted.last_use,
            tick,
            ended: Timestamp::default(),
        };
        self.shed_capacity(&holdings, slot);
        if self.bytes() > self.max_bytes {
            self.shed_bytes();
        }
        Some(pin)
    }

    /// Keeps `reserve` blocks of the endpoint free (see [`Index::set_room`]) until the result is dropped. `None` as
    /// for [`Index::insert`].
    pub fn stay(self: &Arc<Self>, slot: u32, generation: u64) -> Option<Stay> {
        let holdings = self.holdings(slot)?;
        self.admit(&holdings, slot, generation);
        if !holdings.is_open(generation) {
            return None;
        }
        holdings.stays.fetch_add(1, Ordering::Relaxed);
        Some(Stay { holdings, generation })
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
        holdings.stays.store(0, Ordering::Relaxed);
        for (shard, tree) in self.shards.iter().enumerate() {
            let mut tree = tree.write();
            let before = tree.bytes();
            let gone = tree.purge(slot);
            holdings.blocks.fetch_sub(gone, Ordering::Relaxed);
            self.entries.fetch_sub(gone, Ordering::Relaxed);
            self.settle(&tree, before, holdings, shard, slot);
        }
        self.note_eldest(holdings);
    }

    /// Sets how many blocks (at least 1) the endpoint in `slot` may hold. Takes effect at its next
    /// insertion or release.
    pub fn set_capacity(&self, slot: u32, blocks: u64) {
        if let Some(holdings) = self.holdings(slot) {
            holdings.capacity.store(blocks.max(1), Ordering::Relaxed);
        }
    }

    /// As [`Index::set_capacity`], and sets how many blocks each [`Stay`] keeps free.
    pub fn set_room(&self, slot: u32, blocks: u64, reserve: u64) {
        if let Some(holdings) = self.holdings(slot) {
            holdings.capacity.store(blocks.max(1), Ordering::Relaxed);
            holdings.reserve.store(reserve, Ordering::Relaxed);
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
            match self.order {
                Order::Routed => tree.unpin(pin.slot, pin.node),
                Order::Ended => tree.end(pin.slot, pin.node, self.tick(pin.ended, false)),
            };
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
            let over = holdings.blocks.load(Ordering::Relaxed).saturating_sub(holdings.room());
            if over == 0 {
                break;
            }
            let Some((shard, until)) = holdings.oldest_shard() else { break };
            self.trim(holdings, slot, shard, over, until);
        }
        self.note_eldest(holdings);
    }

    /// Finds the oldest of the shards' oldest leaves, so that readers need not. With other writers about it can
    /// be one operation late.
    fn note_eldest(&self, holdings: &Holdings) {
        if self.order == Order::Ended {
            let oldest = holdings.oldest.iter().map(|tick| tick.load(Ordering::Relaxed)).min();
            holdings.eldest.store(oldest.unwrap_or(NONE), Ordering::Relaxed);
        }
    }

    /// Writes to each place of `ages` the seconds at `now` since the block of that slot was last used that would
    /// be evicted next; infinite while the endpoint has room. [`Order::Ended`] only.
    pub fn oldest_ages(&self, now: Timestamp, ages: &mut [f32]) {
        ages.fill(f32::INFINITY);
        for (age, holdings) in ages.iter_mut().zip(self.endpoints.read().iter()) {
            let eldest = holdings.eldest.load(Ordering::Relaxed);
            if eldest != NONE && holdings.is_full() {
                *age = seconds(now.0.saturating_sub(eldest >> 1));
            }
        }
    }

    /// Whether what the endpoint takes in pushes something out, so that it may have forgotten something.
    pub fn is_full(&self, slot: u32) -> bool {
        self.endpoints.read().get(slot as usize).is_some_and(|h| h.is_full())
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
            let gone = self.trim(holdings, slot as u32, shard, BYTE_EVICTION, until);
            self.note_eldest(holdings);
            if gone > 0 {
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
                room: h.room(),
                in_flight: h.stays.load(Ordering::Relaxed),
            })
            .filter(|e| e.blocks > 0)
            .take(limit)
            .collect()
    }
}

fn seconds(micros: u64) -> f32 {
    (micros as f64 / 1e6) as f32
}

/// A request in flight whose answer will take room; gives it back when dropped.
pub struct Stay {
    holdings: Arc<Holdings>,
    generation: u64,
}

impl Drop for Stay {
    fn drop(&mut self) {
        // The count starts anew with every endpoint of the slot; should one begin right between these lines, its
        // count is one short until it is idle.
        if self.holdings.is_open(self.generation) {
            let less = |stays: u64| stays.checked_sub(1);
            let _ = self.holdings.stays.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
}

/// Blocks of a request in flight: not evicted until this is dropped.
pub struct Pin {
    index: Arc<Index>,
    generation: u64,
    slot: u32,
    node: NodeId,
    shard: u32,
    matched: u32,
    last_use: Option<u64>,
    tick: u64,
    ended: Timestamp,
}

impl Pin {
    /// Leading blocks of the prompt that the endpoint was believed to hold when it was inserted.
    pub fn matched(&self) -> u32 {
        self.matched
    }

    /// Seconds for which the deepest of them had lain unused, if there is one and no request in flight had it.
    /// [`Order::Ended`] only.
    pub fn idle(&self) -> Option<f32> {
        let free = self.last_use.filter(|tick| tick & 1 == 0)?;
        Some(seconds((self.tick >> 1).saturating_sub(free >> 1)))
    }

    /// Ends the request at `now`. A pin that is merely dropped ends at the latest time the index knows of.
    pub fn end(mut self, now: Timestamp) {
        self.ended = now;
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.index.unpin(self);
    }
}

#[cfg(test)]
mod tests;
