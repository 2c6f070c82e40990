//! The one immutable picture of the pool that a decision reads.
//!
//! Topology changes when discovery says so, loads several times a second; both are published
//! together through one pointer, so that a decision never sees half of an update.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

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
    by_address: HashMap<SocketAddr, Slot>,
    by_ip: HashMap<IpAddr, EndpointSet>,
}

impl Topology {
    /// Builds the look-ups over `slots` (index = slot).
    pub fn new(version: u64, pool: PoolIdentity, slots: Vec<Option<Arc<Endpoint>>>) -> Self {
        let mut topology = Self { version, pool, slots, ..Self::default() };
        for endpoint in topology.slots.iter().flatten() {
            let address = endpoint.spec.address;
            topology.live.insert(endpoint.slot);
            topology.live_slots.push(endpoint.slot);
            topology.by_address.insert(address, endpoint.slot);
            topology.by_ip.entry(address.ip()).or_default().insert(endpoint.slot);
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

    /// The endpoint with exactly this address.
    pub fn by_address(&self, address: &SocketAddr) -> Option<Slot> {
        self.by_address.get(address).copied()
    }

    /// All endpoints (ports) of one IP.
    pub fn by_ip(&self, ip: &IpAddr) -> Option<&EndpointSet> {
        self.by_ip.get(ip)
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
                for slot in self.by_ip(ip).into_iter().flat_map(EndpointSet::iter) {
                    set.insert(slot);
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
