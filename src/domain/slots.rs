//! Dense endpoint slots and bitsets over them.
//!
//! A slot stays with its endpoint from discovery to removal and is reused afterwards; the owner of
//! the pool purges what was learnt about a slot before it is given to another endpoint.

use smallvec::SmallVec;

/// Index of an endpoint in the arrays of a [`Topology`](super::Topology).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot as an array index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of endpoint slots; the first 256 slots need no allocation.
#[derive(Clone, Debug, Default)]
pub struct EndpointSet {
    words: SmallVec<[u64; 4]>,
}

impl EndpointSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `slot`; returns whether it was absent.
    pub fn insert(&mut self, slot: Slot) -> bool {
        let (word, bit) = (slot.index() / 64, 1u64 << (slot.index() % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let absent = self.words[word] & bit == 0;
        self.words[word] |= bit;
        absent
    }

    /// Removes `slot`; returns whether it was present.
    pub fn remove(&mut self, slot: Slot) -> bool {
        let (word, bit) = (slot.index() / 64, 1u64 << (slot.index() % 64));
        match self.words.get_mut(word) {
            Some(w) if *w & bit != 0 => {
                *w &= !bit;
                true
            }
            _ => false,
        }
    }

    /// Whether `slot` is a member.
    #[inline]
    pub fn contains(&self, slot: Slot) -> bool {
        self.words.get(slot.index() / 64).is_some_and(|w| w & (1u64 << (slot.index() % 64)) != 0)
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// Keeps only the members that `other` has too.
    pub fn intersect(&mut self, other: &EndpointSet) {
        for (i, w) in self.words.iter_mut().enumerate() {
            *w &= other.words.get(i).copied().unwrap_or(0);
        }
    }

    /// Members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                Some(Slot(i as u32 * 64 + bit))
            })
        })
    }
}

impl PartialEq for EndpointSet {
    fn eq(&self, other: &Self) -> bool {
        let longest = self.words.len().max(other.words.len());
        (0..longest).all(|i| self.words.get(i).unwrap_or(&0) == other.words.get(i).unwrap_or(&0))
    }
}

impl Eq for EndpointSet {}

impl FromIterator<Slot> for EndpointSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(iter: I) -> Self {
        let mut set = Self::new();
        for slot in iter {
            set.insert(slot);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_sorted_set(edits in proptest::collection::vec((any::<bool>(), 0u32..700), 0..200)) {
            let (mut set, mut oracle) = (EndpointSet::new(), BTreeSet::new());
            for (add, slot) in edits {
                if add {
                    prop_assert_eq!(set.insert(Slot(slot)), oracle.insert(slot));
                } else {
                    prop_assert_eq!(set.remove(Slot(slot)), oracle.remove(&slot));
                }
            }
            prop_assert_eq!(set.len(), oracle.len());
            prop_assert_eq!(set.is_empty(), oracle.is_empty());
            prop_assert_eq!(set.iter().map(|s| s.0).collect::<Vec<_>>(), oracle.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn equality_ignores_trailing_empty_words() {
        let mut long: EndpointSet = [Slot(1), Slot(600)].into_iter().collect();
        long.remove(Slot(600));
        assert_eq!(long, [Slot(1)].into_iter().collect());
    }
}
