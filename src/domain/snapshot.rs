//! The one immutable picture of the pool that a decision reads.
//!
//! Topology changes when discovery says so, loads several times a second; both are published
//! together through one pointer, so that a decision never sees half of an update.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{Endpoint, EndpointSet, LoadTable, Slot, SubsetEntry};

/// Name of the pool as metrics and logs show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolIdentity {
    /// Pool name (`epp` when endpoints come from a file and none was given).
    pub name: String,
    /// Namespace of the pool.
    pub namespace: String,
}

/// The endpoints of the pool in dense slots, with the look-ups that routing needs.
#[derive(Debug, Default)]
pub struct Topology {
    /// Grows with every change of the endpoint set.
    pub version: u64,
    /// The pool's name.
    pub pool: PoolIdentity,
    slots: Vec<Option<Arc<Endpoint>>>,
    live: EndpointSet,
    live_slots: Vec<Slot>,
    /// Usually one slot, as many as there are target ports. A set of slots per IP would be a bitset over
    /// all slots for each of them: O(endpoints²) bits.
    by_ip: HashMap<IpAddr, SmallVec<[Slot; 2]>, foldhash::fast::RandomState>,
}

impl Topology {
    /// Builds the look-ups over `slots` (index = slot).
    pub fn new(version: u64, pool: PoolIdentity, slots: Vec<Option<Arc<Endpoint>>>) -> Self {
        let mut topology = Self { version, pool, slots, ..Self::default() };
        let taken = topology.slots.iter().flatten().count();
        topology.live_slots.reserve_exact(taken);
        topology.by_ip.reserve(taken);
        for endpoint in topology.slots.iter().flatten() {
            topology.live.insert(endpoint.slot);
            topology.live_slots.push(endpoint.slot);
            topology.by_ip.entry(endpoint.spec.address.ip()).or_default().push(endpoint.slot);
        }
        topology
    }

    /// The endpoint in `slot`, if the slot is taken.
    #[inline]
    pub fn get(&self, slot: Slot) -> Option<&Arc<Endpoint>> {
        self.slots.get(slot.index())?.as_ref()
    }

    /// All endpoints in slot order.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.slots.iter().flatten()
    }

    /// Slots in use.
    pub fn live(&self) -> &EndpointSet {
        &self.live
    }

    /// Slots in use, ascending.
    pub fn live_slots(&self) -> &[Slot] {
        &self.live_slots
    }

    /// One more than the highest slot ever used: the length of per-slot arrays.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Number of endpoints.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether there are no endpoints.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// The endpoint with exactly this address; of several the one in the highest slot.
    pub fn by_address(&self, address: &SocketAddr) -> Option<Slot> {
        let is_it = |slot: &&Slot| self.get(**slot).is_some_and(|e| e.spec.address == *address);
        self.by_ip(&address.ip()).iter().rev().find(is_it).copied()
    }

    /// All endpoints (ports) of one IP, ascending.
    pub fn by_ip(&self, ip: &IpAddr) -> &[Slot] {
        self.by_ip.get(ip).map_or(&[], |slots| slots)
    }

    /// Adds the endpoints that `entry` names to `set`.
    pub fn add_named(&self, entry: &SubsetEntry, set: &mut EndpointSet) {
        match entry {
            SubsetEntry::Address(address) => {
                if let Some(slot) = self.by_address(address) {
                    set.insert(slot);
                }
            }
            SubsetEntry::Ip(ip) => {
                for slot in self.by_ip(ip) {
                    set.insert(*slot);
                }
            }
        }
    }
}

/// What a decision reads: who is there and how loaded they said they are.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Endpoints.
    pub topology: Arc<Topology>,
    /// Their last samples.
    pub loads: Arc<LoadTable>,
}
