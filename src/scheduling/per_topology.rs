//! A value that depends on the endpoint set alone, worked out once per set and read without a lock.
//!
//! Labels, roles and names change when discovery says so, a few times a minute at most; requests
//! come thousands of times a second. A plugin that needs them keeps a [`PerTopology`] and pays for
//! label maps and string hashes only when the [`Topology`] behind the snapshot is another one.
//!
//! Two decisions that meet a new topology at the same time may both do the work; the results are
//! equal and the last one stays. Decisions that still hold the previous snapshot rebuild for
//! themselves and may swap the newer value out once; the next decision swaps it back.
//!
//! Rejected: a key of [`Topology::version`] alone (two pools, or two tests, share numbers), and a
//! strong reference to the topology (an idle plugin would keep removed endpoints alive). The weak
//! one keeps only the address reserved, so an equal address is the same topology.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;

use crate::domain::Topology;

struct Entry<T> {
    topology: Weak<Topology>,
    value: T,
}

/// A cached function of the topology.
pub struct PerTopology<T> {
    entry: ArcSwapOption<Entry<T>>,
}

impl<T> Default for PerTopology<T> {
    fn default() -> Self {
        Self { entry: ArcSwapOption::empty() }
    }
}

impl<T> PerTopology<T> {
    /// Hands the value for `topology` to `read`, after working it out with `build` if it is not the
    /// one that is kept.
    pub fn with<R>(
        &self,
        topology: &Arc<Topology>,
        build: impl FnOnce(&Topology) -> T,
        read: impl FnOnce(&T) -> R,
    ) -> R {
        let kept = self.entry.load();
        if let Some(entry) = kept.as_ref()
            && Weak::as_ptr(&entry.topology) == Arc::as_ptr(topology)
        {
            return read(&entry.value);
        }
        drop(kept);
        let entry = Arc::new(Entry { topology: Arc::downgrade(topology), value: build(topology) });
        self.entry.store(Some(Arc::clone(&entry)));
        read(&entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PoolIdentity;
    use std::cell::Cell;

    #[test]
    fn the_work_is_done_once_per_topology_even_if_versions_collide() {
        let (cache, built) = (PerTopology::default(), Cell::new(0));
        let read = |topology: &Arc<Topology>| {
            let build = |t: &Topology| {
                built.set(built.get() + 1);
                t.version
            };
            cache.with(topology, build, |v| *v)
        };
        let first = Arc::new(Topology::new(1, PoolIdentity::default(), Vec::new()));
        let second = Arc::new(Topology::new(1, PoolIdentity::default(), Vec::new()));
        assert_eq!((read(&first), read(&first), built.get()), (1, 1, 1));
        assert_eq!((read(&second), built.get()), (1, 2), "another topology with the same number");
        let weak = Arc::downgrade(&second);
        drop(second);
        assert!(weak.upgrade().is_none(), "the cache keeps no topology alive");
        assert_eq!((read(&first), built.get()), (1, 3));
    }
}
