//! One shard of the index: a radix tree of block hashes that knows which endpoint holds what.
//!
//! A node is a run of consecutive blocks. Per endpoint that holds any of it (a *holder*) it records how
//! many leading blocks of the run, when the endpoint last used them, how many requests in flight pin
//! them, and how many child nodes the endpoint holds too. A walk down a prompt therefore costs nodes
//! times holders, not blocks times endpoints, and a block costs eight bytes however many hold it.
//!
//! Nodes are found by (parent, first hash) through one hash table, so a node needs no list of
//! children, and hashes that collide under different parents stay apart.
//!
//! # Invariants (all verified by `Tree::check` in tests)
//! 1. What an endpoint holds is closed under prefixes: a holder's endpoint holds the whole parent run,
//!    and the parent's tick is not lower. So the match of an endpoint is one run from the root.
//! 2. Every node has a holder that holds its whole run; a node without holders does not exist.
//! 3. A pinned holder holds the whole run: pins sit at the node where a chain ends, and its ancestors
//!    are safe because only leaves are trimmed. A split keeps the id with the lower part, where the
//!    pins stay; nodes are joined only where no pin is in between. So a pinned node keeps its id.
//! 4. An endpoint's *leaves* (nodes it holds without holding a child, not pinned) are ordered by tick.
//!    Ticks are unique per insertion and end and each touches one path, so no two leaves of an
//!    endpoint share a tick and the order is total.
//!
//! The last use of a block is when a prompt that has it was inserted, or, for those who [`Tree::end`] its
//! pins, when such a prompt was done with: then a leaf's tick is what an engine orders by that puts blocks
//! back when their last request ends, deepest first.
//!
//! Trimming takes the oldest leaf's last block first, which is what a block-wise LRU with the same rules
//! would take; the tests compare with one. An insertion or trim is O(log leaves) per endpoint plus the
//! walk; nothing is per block but comparing and copying hashes.
//!
//! Rejected: map from block hash to the set of endpoints with an LRU per endpoint (about 100 bytes per
//! entry, a probe per block, and it forgets the root first); child lists in nodes (memory for what the
//! hash table does anyway); a tick per block (the path rule gives the same order).

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashTable};
use smallvec::SmallVec;

/// Index of a node in its tree; stays the same while the node is pinned.
pub type NodeId = u32;

/// The parent of root nodes.
const NIL: NodeId = NodeId::MAX;

/// Accounted size of a node without its run: the slab entry, its hash-table entry (4 + 1 bytes at up to
/// 7/8 load after doubling) and the allocator's rounding.
const NODE_BYTES: u64 = size_of::<Node>() as u64 + 16;
/// Accounted size of an entry in the ordered map of leaves (12 bytes, B-tree nodes half to full).
const LEAF_BYTES: u64 = 20;
/// Accounted size of an endpoint's entry in a shard.
const SLOT_BYTES: u64 = 64;

#[derive(Clone, Copy, Debug)]
struct Holder {
    /// Last use.
    tick: u64,
    slot: u32,
    /// Leading blocks of the run held, at least 1.
    held: u32,
    /// Requests in flight whose chain ends here.
    pins: u32,
    /// Child nodes that `slot` holds too.
    kids: u32,
}

#[derive(Debug)]
struct Node {
    /// `run[0]`, beside the parent so that finding a node touches one line; 0 in a freed node.
    first: u64,
    run: Vec<u64>,
    /// Ascending by slot; empty in a freed node.
    holders: SmallVec<[Holder; 1]>,
    parent: NodeId,
    children: u32,
}

impl Node {
    fn weight(&self) -> u64 {
        let spilled = if self.holders.spilled() { self.holders.capacity() * size_of::<Holder>() } else { 0 };
        NODE_BYTES + (self.run.capacity() * size_of::<u64>() + spilled) as u64
    }

    fn position(&self, slot: u32) -> Result<usize, usize> {
        self.holders.binary_search_by_key(&slot, |h| h.slot)
    }
}

/// What one endpoint holds in this tree.
#[derive(Debug, Default)]
struct PerSlot {
    blocks: u64,
    /// Unpinned leaves by tick.
    leaves: BTreeMap<u64, NodeId>,
}

/// The result of [`Tree::insert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// Blocks that the endpoint did not hold before.
    pub added: u64,
    /// The node at which the chain ends.
    pub node: NodeId,
    /// Tick of the deepest block that the endpoint did hold before.
    pub last_use: Option<u64>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    table: HashTable<NodeId>,
    slots: HashMap<u32, PerSlot, foldhash::fast::FixedState>,
    bytes: u64,
}

/// Length of the common prefix of two slices.
#[inline]
fn common_prefix(a: &[u64], b: &[u64]) -> usize {
    let len = a.len().min(b.len());
    if a[..len] == b[..len] {
        return len;
    }
    a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(len)
}

impl Tree {
    /// Adds to `matched[slot]` the number of leading blocks of `chain` that each slot holds. Slots past
    /// the end of `matched` are left out.
    pub fn lookup(&self, chain: &[u64], matched: &mut [u32]) {
        let (mut parent, mut rest) = (NIL, chain);
        while let Some(&first) = rest.first() {
            let Some(id) = self.find(parent, first) else { return };
            let node = &self.nodes[id as usize];
            let common = common_prefix(&node.run, rest);
            for holder in &node.holders {
                // By invariant 1 the holder has everything above, so its own part is simply added.
                if let Some(blocks) = matched.get_mut(holder.slot as usize) {
                    *blocks = blocks.saturating_add(holder.held.min(common as u32));
                }
            }
            if common < node.run.len() {
                return;
            }
            (parent, rest) = (id, &rest[common..]);
        }
    }

    /// Pins of all nodes. O(nodes).
    pub fn pins(&self) -> u64 {
        self.nodes.iter().flat_map(|n| &n.holders).map(|h| u64::from(h.pins)).sum()
    }

    /// Records that `slot` holds `chain` as of `tick` (greater than every tick before), and pins the
    /// chain once if `pin`. `None` for an empty chain.
    pub fn insert(&mut self, slot: u32, chain: &[u64], tick: u64, pin: bool) -> Option<Inserted> {
        let (mut last, mut rest, mut added, mut last_use) = (NIL, chain, 0, None);
        while let Some(&first) = rest.first() {
            let Some(found) = self.find(last, first) else {
                added += rest.len() as u64;
                if self.can_extend(last) {
                    self.extend(last, slot, rest);
                } else {
                    last = self.append(last, slot, rest, tick);
                }
                break;
            };
            let run = &self.nodes[found as usize].run;
            let common = common_prefix(run, rest);
            let node = if common < run.len() { self.split(found, common) } else { found };
            let (gained, before) = self.touch(last, node, slot, tick);
            added += gained;
            last_use = before.or(last_use);
            self.join(last, node);
            (last, rest) = (node, &rest[common..]);
        }
        if last == NIL {
            return None;
        }
        let position = self.nodes[last as usize].position(slot).ok()?;
        let holder = &mut self.nodes[last as usize].holders[position];
        holder.pins += u32::from(pin);
        if holder.pins == 0 && holder.kids == 0 {
            self.add_leaf(slot, tick, last);
        }
        self.slot_mut(slot).blocks += added;
        Some(Inserted { added, node: last, last_use })
    }

    /// Takes back one pin of `slot` at `node`. Returns whether there was one.
    pub fn unpin(&mut self, slot: u32, node: NodeId) -> bool {
        let Some(found) = self.nodes.get_mut(node as usize) else { return false };
        let Ok(position) = found.position(slot) else { return false };
        let holder = &mut found.holders[position];
        if holder.pins == 0 {
            return false;
        }
        holder.pins -= 1;
        let Holder { tick, pins, kids, .. } = *holder;
        if pins == 0 && kids == 0 {
            self.add_leaf(slot, tick, node);
        }
        true
    }

    /// As [`Tree::unpin`], and makes `tick` (greater than every tick before) the last use of the whole chain that
    /// ends at `node`. O(nodes of the chain).
    pub fn end(&mut self, slot: u32, node: NodeId, tick: u64) -> bool {
        let pinned = |n: &Node| n.position(slot).is_ok_and(|position| n.holders[position].pins > 0);
        if !self.nodes.get(node as usize).is_some_and(pinned) {
            return false;
        }
        // None of these is in the order of leaves: one is pinned, the others hold it up.
        let mut above = node;
        while let Some(found) = self.nodes.get_mut(above as usize) {
            let Ok(position) = found.position(slot) else { break };
            found.holders[position].tick = tick;
            above = found.parent;
        }
        self.unpin(slot, node)
    }

    /// Trims up to `want` blocks of `slot`, oldest leaves first and each from its tail, as long as the
    /// oldest leaf's tick is at most `until`. Returns how many went.
    pub fn trim(&mut self, slot: u32, want: u64, until: u64) -> u64 {
        let mut gone = 0;
        while gone < want {
            let oldest = self.slots.get(&slot).and_then(|s| s.leaves.first_key_value());
            let Some((&tick, &id)) = oldest.filter(|(tick, _)| **tick <= until) else { break };
            let node = &mut self.nodes[id as usize];
            let Ok(position) = node.position(slot) else { break };
            let holder = &mut node.holders[position];
            let take = u64::from(holder.held).min(want - gone) as u32;
            gone += u64::from(take);
            if take < holder.held {
                holder.held -= take;
                self.shrink(id);
            } else {
                self.remove_leaf(slot, tick);
                self.drop_holder(id, position);
            }
        }
        if let Some(state) = self.slots.get_mut(&slot) {
            state.blocks -= gone;
            self.forget_slot_if_empty(slot);
        }
        gone
    }

    /// Removes everything of `slot`, pins included. Returns how many blocks it held. O(nodes).
    pub fn purge(&mut self, slot: u32) -> u64 {
        let Some(state) = self.slots.remove(&slot) else { return 0 };
        self.bytes -= SLOT_BYTES + state.leaves.len() as u64 * LEAF_BYTES;
        let mut empty = Vec::new();
        for id in 0..self.nodes.len() as NodeId {
            if let Ok(position) = self.nodes[id as usize].position(slot) {
                self.edit(id, |node| {
                    node.holders.remove(position);
                });
                if self.nodes[id as usize].holders.is_empty() {
                    empty.push(id);
                } else {
                    self.shrink(id);
                }
            }
        }
        // The children of a node without holders have none either, so order does not matter.
        for id in empty {
            self.release(id);
        }
        state.blocks
    }

    /// The tick of the leaf of `slot` that would be trimmed first; `None` if nothing can be.
    pub fn oldest(&self, slot: u32) -> Option<u64> {
        self.slots.get(&slot)?.leaves.first_key_value().map(|(tick, _)| *tick)
    }

    /// Accounted memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Nodes in use.
    pub fn nodes(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    #[inline]
    fn find(&self, parent: NodeId, first: u64) -> Option<NodeId> {
        let matches = |id: &NodeId| {
            let node = &self.nodes[*id as usize];
            node.first == first && node.parent == parent
        };
        self.table.find(first, matches).copied()
    }

    /// Changes a node and keeps the account.
    fn edit<R>(&mut self, id: NodeId, change: impl FnOnce(&mut Node) -> R) -> R {
        let node = &mut self.nodes[id as usize];
        let before = node.weight();
        let result = change(node);
        self.bytes = self.bytes - before + node.weight();
        result
    }

    fn enlist(&mut self, id: NodeId) {
        let nodes = &self.nodes;
        self.table.insert_unique(nodes[id as usize].first, id, |id| nodes[*id as usize].first);
    }

    fn delist(&mut self, id: NodeId) {
        if let Ok(entry) = self.table.find_entry(self.nodes[id as usize].first, |other| *other == id) {
            entry.remove();
        }
    }

    fn allocate(&mut self, node: Node) -> NodeId {
        self.bytes += node.weight();
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as NodeId
            }
        };
        self.enlist(id);
        id
    }

    /// Frees a node that nobody holds.
    fn release(&mut self, id: NodeId) {
        self.delist(id);
        let node = &mut self.nodes[id as usize];
        self.bytes -= node.weight();
        let parent = node.parent;
        *node = Node { first: 0, run: Vec::new(), holders: SmallVec::new(), parent: NIL, children: 0 };
        self.free.push(id);
        if parent != NIL {
            // A parent that was freed just before (purge) has no count left to lower.
            let parent = &mut self.nodes[parent as usize];
            parent.children = parent.children.saturating_sub(1);
        }
    }

    fn slot_mut(&mut self, slot: u32) -> &mut PerSlot {
        let bytes = &mut self.bytes;
        self.slots.entry(slot).or_insert_with(|| {
            *bytes += SLOT_BYTES;
            PerSlot::default()
        })
    }

    fn forget_slot_if_empty(&mut self, slot: u32) {
        if self.slots.get(&slot).is_some_and(|s| s.blocks == 0) {
            self.slots.remove(&slot);
            self.bytes -= SLOT_BYTES;
        }
    }

    fn add_leaf(&mut self, slot: u32, tick: u64, node: NodeId) {
        if self.slot_mut(slot).leaves.insert(tick, node).is_none() {
            self.bytes += LEAF_BYTES;
        }
    }

    fn remove_leaf(&mut self, slot: u32, tick: u64) {
        if self.slots.get_mut(&slot).is_some_and(|s| s.leaves.remove(&tick).is_some()) {
            self.bytes -= LEAF_BYTES;
        }
    }

    /// Whether a run may grow in place: nothing hangs below it and no pin marks its end.
    fn can_extend(&self, id: NodeId) -> bool {
        self.nodes.get(id as usize).is_some_and(|n| n.children == 0 && n.holders.iter().all(|h| h.pins == 0))
    }

    /// Makes `id`, just touched by `slot`, longer by `rest`. Other holders keep what they had.
    fn extend(&mut self, id: NodeId, slot: u32, rest: &[u64]) {
        self.edit(id, |node| {
            node.run.reserve_exact(rest.len());
            node.run.extend_from_slice(rest);
            if let Ok(position) = node.position(slot) {
                node.holders[position].held = node.run.len() as u32;
            }
        });
    }

    /// Puts a new node below `parent`.
    fn append(&mut self, parent: NodeId, slot: u32, run: &[u64], tick: u64) -> NodeId {
        let mut holders = SmallVec::new();
        holders.push(Holder { tick, slot, held: run.len() as u32, pins: 0, kids: 0 });
        if let Some(above) = self.nodes.get_mut(parent as usize) {
            above.children += 1;
        }
        self.count_kid(parent, slot);
        self.allocate(Node { first: run[0], run: run.to_vec(), holders, parent, children: 0 })
    }

    fn count_kid(&mut self, parent: NodeId, slot: u32) {
        if let Some(node) = self.nodes.get_mut(parent as usize)
            && let Ok(position) = node.position(slot)
        {
            node.holders[position].kids += 1;
        }
    }

    /// Makes `slot` hold all of `id` as of `tick`; returns the blocks that it gained, and its tick if it held any.
    fn touch(&mut self, parent: NodeId, id: NodeId, slot: u32, tick: u64) -> (u64, Option<u64>) {
        let node = &mut self.nodes[id as usize];
        let len = node.run.len() as u32;
        match node.position(slot) {
            Ok(position) => {
                let holder = &mut node.holders[position];
                let (before, gained) = (*holder, len - holder.held);
                (holder.held, holder.tick) = (len, tick);
                if before.kids == 0 && before.pins == 0 {
                    self.remove_leaf(slot, before.tick);
                }
                (u64::from(gained), Some(before.tick))
            }
            Err(position) => {
                let holder = Holder { tick, slot, held: len, pins: 0, kids: 0 };
                self.edit(id, |node| node.holders.insert(position, holder));
                self.count_kid(parent, slot);
                (u64::from(len), None)
            }
        }
    }

    /// Cuts `id` after `at` blocks (0 < at < run). The lower part keeps the id, its pins and its
    /// children; the new upper part is returned.
    fn split(&mut self, id: NodeId, at: usize) -> NodeId {
        self.delist(id);
        let node = &mut self.nodes[id as usize];
        self.bytes -= node.weight();
        let (upper_run, lower_run) = (node.run[..at].to_vec(), node.run[at..].to_vec());
        let (mut upper, mut lower) = (SmallVec::new(), SmallVec::new());
        let mut moved: SmallVec<[(u32, u64); 4]> = SmallVec::new();
        for holder in std::mem::take(&mut node.holders) {
            let within = (holder.held as usize).min(at) as u32;
            let deeper = holder.held - within;
            upper.push(Holder { held: within, pins: 0, kids: u32::from(deeper > 0), ..holder });
            if deeper > 0 {
                lower.push(Holder { held: deeper, ..holder });
            } else {
                moved.push((holder.slot, holder.tick));
            }
        }
        let parent = node.parent;
        (node.first, node.run, node.holders) = (lower_run[0], lower_run, lower);
        self.bytes += node.weight();
        let upper = self.allocate(Node { first: upper_run[0], run: upper_run, holders: upper, parent, children: 1 });
        self.nodes[id as usize].parent = upper;
        self.enlist(id);
        // Who held no more than the upper part has its leaf there now.
        for (slot, tick) in moved {
            self.add_leaf(slot, tick, upper);
        }
        upper
    }

    /// Joins `parent` and its only child `id` if their holders were last used together and no pin marks
    /// the end of `parent`: what a conversation left behind becomes one run again. `id` stays.
    fn join(&mut self, parent: NodeId, id: NodeId) {
        let Some(above) = self.nodes.get(parent as usize) else { return };
        let node = &self.nodes[id as usize];
        // Each holder of the child holds the parent in full, so equal counts mean equal slots.
        let together = above.children == 1
            && above.holders.len() == node.holders.len()
            && above.holders.iter().zip(&node.holders).all(|(a, b)| a.tick == b.tick && a.pins == 0);
        if !together {
            return;
        }
        self.delist(parent);
        self.delist(id);
        let above = &mut self.nodes[parent as usize];
        self.bytes -= above.weight();
        let above = std::mem::replace(
            above,
            Node { first: 0, run: Vec::new(), holders: SmallVec::new(), parent: NIL, children: 0 },
        );
        self.free.push(parent);
        self.edit(id, |node| {
            let mut run = Vec::with_capacity(above.run.len() + node.run.len());
            run.extend_from_slice(&above.run);
            run.extend_from_slice(&node.run);
            for holder in &mut node.holders {
                holder.held += above.run.len() as u32;
            }
            (node.first, node.run, node.parent) = (above.first, run, above.parent);
        });
        self.enlist(id);
    }

    /// Removes the holder at `position` of `id`, which is a leaf of its slot.
    fn drop_holder(&mut self, id: NodeId, position: usize) {
        let holder = self.edit(id, |node| node.holders.remove(position));
        let (slot, parent) = (holder.slot, self.nodes[id as usize].parent);
        if let Some(above) = self.nodes.get_mut(parent as usize)
            && let Ok(position) = above.position(slot)
        {
            let above = &mut above.holders[position];
            above.kids -= 1;
            let (tick, leaf) = (above.tick, above.kids == 0 && above.pins == 0);
            if leaf {
                self.add_leaf(slot, tick, parent);
            }
        }
        if self.nodes[id as usize].holders.is_empty() {
            self.release(id);
        } else {
            self.shrink(id);
        }
    }

    /// Drops the tail of a run that nobody holds any more, and excess memory.
    fn shrink(&mut self, id: NodeId) {
        self.edit(id, |node| {
            let longest = node.holders.iter().map(|h| h.held).max().unwrap_or(0) as usize;
            node.run.truncate(longest);
            // Reallocating for every trimmed block would make slow trimming quadratic.
            if node.run.capacity() > 2 * longest + 8 {
                node.run.shrink_to_fit();
            }
            if node.holders.spilled() && node.holders.len() * 4 <= node.holders.capacity() {
                node.holders.shrink_to_fit();
            }
        });
    }
}

#[cfg(test)]
pub(super) mod check;
#[cfg(test)]
mod tests;
