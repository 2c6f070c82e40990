//! The prefix cache of one pod: blocks by id, pinned or in the order of their last use.
//!
//! What bounds it is the pod: it evicts before it inserts.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Place {
    id: u32,
    pins: u32,
    older: u32,
    newer: u32,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Cache {
    by_id: HashMap<u32, u32, FixedState>,
    places: Vec<Place>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
    pinned: usize,
}

impl Default for Cache {
    fn default() -> Self {
        let by_id = HashMap::default();
        Self { by_id, places: Vec::new(), free: Vec::new(), oldest: NONE, newest: NONE, pinned: 0 }
    }
}

impl Cache {
    /// Blocks held.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Blocks that must not be evicted.
    pub fn pinned(&self) -> usize {
        self.pinned
    }

    /// How many of `ids` are here without a gap from the first on.
    pub fn leading(&self, ids: &[u32]) -> usize {
        ids.iter().take_while(|id| self.by_id.contains_key(*id)).count()
    }

    /// How many of `ids`, which must be here, are not pinned.
    pub fn unpinned_among(&self, ids: &[u32]) -> usize {
        let unpinned = |id: &&u32| self.by_id.get(*id).is_some_and(|place| self.places[*place as usize].pins == 0);
        ids.iter().filter(unpinned).count()
    }

    /// Pins `ids`; their places go to `pins`.
    pub fn pin(&mut self, ids: &[u32], pins: &mut Vec<u32>) {
        for id in ids {
            let Some(place) = self.by_id.get(id).copied() else { continue };
            if self.places[place as usize].pins == 0 {
                self.take_out(place);
                self.pinned += 1;
            }
            self.places[place as usize].pins += 1;
            pins.push(place);
        }
    }

    /// Releases `places`; those that nobody pins any more are the newest, in this order.
    pub fn unpin(&mut self, places: impl Iterator<Item = u32>) {
        for place in places {
            let entry = &mut self.places[place as usize];
            entry.pins -= 1;
            if entry.pins == 0 {
                self.pinned -= 1;
                self.put_newest(place);
            }
        }
    }

    /// Takes in `id`, pinned once; its place, or `None` if it is here already.
    pub fn insert(&mut self, id: u32) -> Option<u32> {
        if self.by_id.contains_key(&id) {
            return None;
        }
        let new = Place { id, pins: 1, older: NONE, newer: NONE };
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = new;
                place
            }
            None => {
                self.places.push(new);
                self.places.len() as u32 - 1
            }
        };
        self.by_id.insert(id, place);
        self.pinned += 1;
        Some(place)
    }

    /// Drops the block that was not used for longest; false if all are pinned.
    pub fn evict(&mut self) -> bool {
        let place = self.oldest;
        if place == NONE {
            return false;
        }
        self.take_out(place);
        self.by_id.remove(&self.places[place as usize].id);
        self.free.push(place);
        true
    }

    fn take_out(&mut self, place: u32) {
        let Place { older, newer, .. } = self.places[place as usize];
        if older == NONE {
            self.oldest = newer
        } else {
            self.places[older as usize].newer = newer
        }
        if newer == NONE { self.newest = older } else { self.places[newer as usize].older = older }
    }

    fn put_newest(&mut self, place: u32) {
        let before = self.newest;
        let entry = &mut self.places[place as usize];
        (entry.older, entry.newer) = (before, NONE);
        if before == NONE {
            self.oldest = place
        } else {
            self.places[before as usize].newer = place
        }
        self.newest = place;
    }
}
