use proptest::prelude::*;

use super::*;

fn matched<const N: usize>(tree: &Tree, chain: &[u64]) -> [u32; N] {
    let mut out = [0; N];
    tree.lookup(chain, &mut out);
    out
}

#[test]
fn runs_split_at_divergence_and_at_chain_ends() {
    let mut tree = Tree::default();
    tree.insert(0, &[1, 2, 3, 4], 1, false);
    assert_eq!(tree.nodes(), 1);
    tree.insert(1, &[1, 2, 8, 9], 2, false);
    assert_eq!(tree.nodes(), 3);
    assert_eq!(matched(&tree, &[1, 2, 3, 4, 5]), [4, 2]);
    assert_eq!(matched(&tree, &[1, 2, 8]), [2, 3]);
    assert_eq!(matched(&tree, &[2, 3]), [0, 0]);
    tree.insert(2, &[1], 3, false);
    assert_eq!(tree.nodes(), 4);
    assert_eq!(matched(&tree, &[1, 2, 3, 4]), [4, 2, 1]);
    tree.check();
}

#[test]
fn a_growing_conversation_stays_one_run() {
    let chain: Vec<u64> = (1..=100).collect();
    let mut tree = Tree::default();
    for turn in 1..=10 {
        let end = tree.insert(0, &chain[..turn * 10], turn as u64, true).unwrap().node;
        assert!(tree.unpin(0, end));
        assert_eq!(tree.nodes(), 1);
    }
    // Turns that overlap in time leave a boundary, which goes at the next use without pins.
    let first = tree.insert(1, &chain[..50], 11, true).unwrap().node;
    let second = tree.insert(1, &chain, 12, true).unwrap().node;
    assert_eq!(tree.nodes(), 2);
    assert!(tree.unpin(1, first) && tree.unpin(1, second) && !tree.unpin(1, second));
    assert_eq!(tree.purge(0), 100);
    tree.insert(1, &chain, 13, false);
    assert_eq!(tree.nodes(), 1);
    tree.check();
}

#[test]
fn trimming_takes_the_oldest_leaf_from_its_tail() {
    let mut tree = Tree::default();
    tree.insert(0, &[1, 2, 3], 1, false);
    tree.insert(0, &[1, 2, 7, 8], 2, false);
    assert_eq!(tree.trim(0, 1, u64::MAX), 1);
    assert_eq!((matched(&tree, &[1, 2, 3]), matched(&tree, &[1, 2, 7, 8])), ([2], [4]));
    assert_eq!(tree.trim(0, 1, 1), 0, "the next leaf is younger than asked for");
    assert_eq!(tree.trim(0, 3, u64::MAX), 3);
    assert_eq!(matched(&tree, &[1, 2, 7, 8]), [1]);
    assert_eq!(tree.trim(0, 9, u64::MAX), 1);
    assert_eq!((tree.nodes(), tree.bytes()), (0, 0));
    tree.check();
}

#[test]
fn pins_survive_a_split_and_hold_their_ancestors() {
    let mut tree = Tree::default();
    let long = tree.insert(0, &[1, 2, 3, 4], 1, true).unwrap().node;
    let short = tree.insert(0, &[1, 2], 2, true).unwrap().node;
    tree.insert(1, &[1, 2, 3, 9], 3, false);
    assert_eq!(tree.trim(0, 9, u64::MAX), 0);
    assert!(tree.unpin(0, long));
    assert_eq!(tree.trim(0, 9, u64::MAX), 2);
    assert!(tree.unpin(0, short));
    assert_eq!(tree.trim(0, 9, u64::MAX), 2);
    assert_eq!(tree.trim(1, 9, u64::MAX), 4);
    assert_eq!(tree.bytes(), 0);
}

#[test]
fn runs_are_not_joined_over_a_difference_in_age() {
    let mut tree = Tree::default();
    tree.insert(1, &[1, 2, 3, 4], 1, false);
    tree.insert(1, &[7, 8], 2, false);
    tree.insert(1, &[1, 2], 3, false);
    // Endpoint 0 uses both parts together, endpoint 1 used the first one later.
    tree.insert(0, &[1, 2, 3, 4], 4, false);
    assert_eq!(tree.nodes(), 3);
    assert_eq!(tree.trim(1, 3, u64::MAX), 3);
    assert_eq!((matched(&tree, &[1, 2, 3, 4]), matched(&tree, &[7, 8])), ([4, 2], [0, 1]));
    tree.check();
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u32, Vec<u64>, bool),
    Unpin(prop::sample::Index),
    Trim(u32, u64),
    Purge(u32),
}

proptest! {
    /// Hashes that are no chain at all (collisions, repeats) must not break anything.
    #[test]
    fn hostile_hashes_keep_the_invariants(ops in proptest::collection::vec(prop_oneof![
        4 => (0u32..3, proptest::collection::vec(0u64..3, 0..8), any::<bool>()).prop_map(|(s, c, p)| Op::Insert(s, c, p)),
        2 => any::<prop::sample::Index>().prop_map(Op::Unpin),
        2 => (0u32..3, 0u64..6).prop_map(|(s, n)| Op::Trim(s, n)),
        1 => (0u32..3).prop_map(Op::Purge),
    ], 0..60)) {
        let mut tree = Tree::default();
        let mut pins: Vec<(u32, NodeId)> = Vec::new();
        for (tick, op) in (1..).zip(ops) {
            match op {
                Op::Insert(slot, chain, pin) => {
                    let inserted = tree.insert(slot, &chain, tick, pin);
                    prop_assert_eq!(inserted.is_some(), !chain.is_empty());
                    if let (Some(inserted), true) = (inserted, pin) {
                        pins.push((slot, inserted.node));
                    }
                    let mut found = [0; 3];
                    tree.lookup(&chain, &mut found);
                    prop_assert_eq!(found[slot as usize] as usize, chain.len());
                    prop_assert!(found.iter().all(|m| *m as usize <= chain.len()));
                }
                Op::Unpin(at) if !pins.is_empty() => {
                    let (slot, node) = pins.swap_remove(at.index(pins.len()));
                    prop_assert!(tree.unpin(slot, node));
                }
                Op::Unpin(_) => {}
                Op::Trim(slot, want) => prop_assert!(tree.trim(slot, want, u64::MAX) <= want),
                Op::Purge(slot) => {
                    tree.purge(slot);
                    pins.retain(|(s, _)| *s != slot);
                }
            }
            let summary = tree.check();
            prop_assert_eq!(summary.pins.values().sum::<u64>(), pins.len() as u64);
        }
        for (slot, node) in pins {
            prop_assert!(tree.unpin(slot, node));
        }
        for slot in 0..3 {
            tree.trim(slot, u64::MAX, u64::MAX);
        }
        prop_assert_eq!((tree.check(), tree.nodes(), tree.bytes()), (check::Summary::default(), 0, 0));
    }
}
