//! The full walk that verifies every invariant of a tree and recounts its accounts.

use std::collections::BTreeMap;

use super::*;

/// What a walk found, by slot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Blocks held.
    pub blocks: BTreeMap<u32, u64>,
    /// Pins held.
    pub pins: BTreeMap<u32, u64>,
}

impl Tree {
    /// Panics on the first broken invariant.
    pub fn check(&self) -> Summary {
        let mut summary = Summary::default();
        let mut bytes = 0;
        let mut kids: BTreeMap<(NodeId, u32), u32> = BTreeMap::new();
        let mut children: BTreeMap<NodeId, u32> = BTreeMap::new();
        let mut leaves: BTreeMap<(u32, u64), NodeId> = BTreeMap::new();
        let freed: std::collections::BTreeSet<NodeId> = self.free.iter().copied().collect();
        assert_eq!(freed.len(), self.free.len(), "an id was freed twice");

        for (id, node) in self.nodes.iter().enumerate() {
            let id = id as NodeId;
            if freed.contains(&id) {
                assert!(node.run.capacity() == 0 && node.holders.is_empty(), "a freed node keeps memory");
                continue;
            }
            bytes += node.weight();
            assert_eq!(node.run.first(), Some(&node.first));
            assert_eq!(self.find(node.parent, node.first), Some(id), "a node cannot be found");
            assert!(node.holders.is_sorted_by(|a, b| a.slot < b.slot), "holders are sorted and distinct");
            assert_eq!(
                node.holders.iter().map(|h| h.held as usize).max(),
                Some(node.run.len()),
                "nobody holds the end"
            );
            if node.parent != NIL {
                assert!(!freed.contains(&node.parent));
                *children.entry(node.parent).or_default() += 1;
            }
            for holder in &node.holders {
                let len = node.run.len() as u32;
                assert!((1..=len).contains(&holder.held));
                assert!(holder.pins == 0 || holder.held == len, "a pinned holder lost its tail");
                assert!(holder.kids == 0 || holder.held == len, "a child is held below a missing tail");
                *summary.blocks.entry(holder.slot).or_default() += u64::from(holder.held);
                if holder.pins > 0 {
                    *summary.pins.entry(holder.slot).or_default() += u64::from(holder.pins);
                }
                if holder.kids == 0 && holder.pins == 0 {
                    assert!(leaves.insert((holder.slot, holder.tick), id).is_none(), "two leaves share a tick");
                }
                if node.parent != NIL {
                    *kids.entry((node.parent, holder.slot)).or_default() += 1;
                    let parent = &self.nodes[node.parent as usize];
                    let above = parent.position(holder.slot).expect("holdings are closed under prefixes");
                    let above = &parent.holders[above];
                    assert_eq!(above.held as usize, parent.run.len());
                    assert!(above.tick >= holder.tick, "a child was used after its parent");
                }
            }
        }
        for (id, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.children, children.get(&(id as NodeId)).copied().unwrap_or(0));
            for holder in &node.holders {
                assert_eq!(holder.kids, kids.get(&(id as NodeId, holder.slot)).copied().unwrap_or(0));
            }
        }
        let recorded: BTreeMap<_, _> = self
            .slots
            .iter()
            .flat_map(|(slot, state)| state.leaves.iter().map(|(tick, id)| ((*slot, *tick), *id)))
            .collect();
        assert_eq!(recorded, leaves, "the order of leaves is wrong");
        assert_eq!(self.slots.iter().map(|(s, p)| (*s, p.blocks)).collect::<BTreeMap<_, _>>(), summary.blocks);
        assert_eq!(self.table.len(), self.nodes());
        bytes += recorded.len() as u64 * LEAF_BYTES + self.slots.len() as u64 * SLOT_BYTES;
        assert_eq!(self.bytes, bytes, "the byte account is wrong");
        summary
    }
}
