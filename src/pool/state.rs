//! The pool's state without I/O: slots, generations, samples. Driven by [`Pool`](super::Pool).

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{Equivalent, HashMap};

use crate::domain::{Endpoint, EndpointSpec, LoadSample, LoadTable, PoolIdentity, Slot, Snapshot, Timestamp, Topology};

use super::{MAX_ENDPOINTS, SLOT_REST};

/// What one edit changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Endpoints that entered.
    pub added: Vec<Arc<Endpoint>>,
    /// Endpoints that left.
    pub removed: Vec<Arc<Endpoint>>,
    /// Endpoints whose labels changed.
    pub relabelled: Vec<Arc<Endpoint>>,
    /// Endpoints beyond the bound.
    pub refused: Vec<EndpointSpec>,
}

impl Changes {
    /// Whether the published topology stays as it is.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.relabelled.is_empty()
    }
}

/// Namespace and name of an endpoint.
pub type Key = (String, String);

/// A [`Key`] that is only looked up; hashes as its owned form does.
#[derive(Hash)]
struct KeyRef<'a>(&'a str, &'a str);

impl<'a> KeyRef<'a> {
    fn of(spec: &'a EndpointSpec) -> Self {
        Self(&spec.namespace, &spec.name)
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.0 && self.1 == key.1
    }
}

/// Whether two specs of one key mean the same server, so that what is known of it stays true.
fn is_same_server(one: &EndpointSpec, other: &EndpointSpec) -> bool {
    one.address == other.address && one.rank == other.rank && one.incarnation == other.incarnation
}

/// See the module documentation.
pub struct PoolState {
    identity: PoolIdentity,
    slots: Vec<Option<Arc<Endpoint>>>,
    by_key: HashMap<Key, Slot>,
    resting: VecDeque<(Timestamp, Slot)>,
    loads: LoadTable,
    topology: Arc<Topology>,
    generations: u64,
}

impl PoolState {
    /// An empty pool.
    pub fn new(identity: PoolIdentity, stale_after: Duration) -> Self {
        let topology = Arc::new(Topology::new(0, identity.clone(), Vec::new()));
        Self {
            identity,
            slots: Vec::new(),
            by_key: HashMap::new(),
            resting: VecDeque::new(),
            loads: LoadTable::new(stale_after),
            topology,
            generations: 0,
        }
    }

    /// The current topology.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology)
    }

    /// A snapshot of topology and loads.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { topology: Arc::clone(&self.topology), loads: Arc::new(self.loads.clone()) }
    }

    /// Makes `specs` the whole set. An endpoint is the same one as long as namespace, name, address,
    /// rank and incarnation are; a later spec with a key that was already given is ignored.
    pub fn replace(&mut self, specs: Vec<EndpointSpec>, now: Timestamp) -> Changes {
        let mut changes = Changes::default();
        let mut wanted: HashSet<Key> = HashSet::with_capacity(specs.len());
        let specs: Vec<_> =
            specs.into_iter().filter(|spec| wanted.insert((spec.namespace.clone(), spec.name.clone()))).collect();
        // What leaves goes first, so that its place counts for what comes.
        let gone: Vec<Key> = self.by_key.keys().filter(|key| !wanted.contains(*key)).cloned().collect();
        for (namespace, name) in &gone {
            self.remove(&KeyRef(namespace, name), now, &mut changes);
        }
        self.put_all(specs, now, &mut changes);
        self.rebuild(&changes);
        changes
    }

    /// Takes out what `removed` names and puts `specs` in, over what has the same key; the rest stays.
    /// Costs what changed, and a pass over the topology if anything did. Of two specs with one key the
    /// later one counts; keys that are not there are ignored.
    pub fn edit(&mut self, removed: &[Key], specs: Vec<EndpointSpec>, now: Timestamp) -> Changes {
        let mut changes = Changes::default();
        for (namespace, name) in removed {
            self.remove(&KeyRef(namespace, name), now, &mut changes);
        }
        self.put_all(specs, now, &mut changes);
        self.rebuild(&changes);
        changes
    }

    fn rebuild(&mut self, changes: &Changes) {
        if !changes.is_empty() {
            let version = self.topology.version + 1;
            self.topology = Arc::new(Topology::new(version, self.identity.clone(), self.slots.clone()));
        }
    }

    fn put_all(&mut self, specs: Vec<EndpointSpec>, now: Timestamp, changes: &mut Changes) {
        for spec in specs {
            match self.by_key.get(&KeyRef::of(&spec)).and_then(|slot| self.slots[slot.index()].clone()) {
                Some(known) if known.spec == spec => {}
                Some(known) if is_same_server(&known.spec, &spec) => {
                    let endpoint = Arc::new(known.relabelled(spec));
                    self.slots[endpoint.slot.index()] = Some(Arc::clone(&endpoint));
                    changes.relabelled.push(endpoint);
                }
                Some(_) => {
                    self.remove(&KeyRef::of(&spec), now, changes);
                    self.add(spec, now, changes);
                }
                None => self.add(spec, now, changes),
            }
        }
    }

    /// Stores a sample if the slot still belongs to `generation`.
    pub fn report(&mut self, slot: Slot, generation: u64, sample: &LoadSample) -> bool {
        let current = self.slots.get(slot.index()).and_then(Option::as_ref).is_some_and(|e| e.generation == generation);
        if current {
            self.loads.set(slot, sample);
        }
        current
    }

    fn add(&mut self, spec: EndpointSpec, now: Timestamp, changes: &mut Changes) {
        let Some(slot) = self.free_slot(now) else {
            changes.refused.push(spec);
            return;
        };
        self.generations += 1;
        self.by_key.insert((spec.namespace.clone(), spec.name.clone()), slot);
        let endpoint = Arc::new(Endpoint::new(slot, self.generations, spec));
        self.slots[slot.index()] = Some(Arc::clone(&endpoint));
        changes.added.push(endpoint);
    }

    fn remove(&mut self, key: &KeyRef<'_>, now: Timestamp, changes: &mut Changes) {
        let Some(slot) = self.by_key.remove(key) else { return };
        if let Some(endpoint) = self.slots[slot.index()].take() {
            self.loads.clear(slot);
            self.resting.push_back((now, slot));
            changes.removed.push(endpoint);
        }
    }

    fn free_slot(&mut self, now: Timestamp) -> Option<Slot> {
        match self.resting.front() {
            Some((since, slot)) if now.since(*since) >= SLOT_REST => {
                let slot = *slot;
                self.resting.pop_front();
                Some(slot)
            }
            // Slots at rest count towards the bound, so a flapping pool cannot grow the arrays.
            _ if self.slots.len() < MAX_ENDPOINTS => {
                self.slots.push(None);
                Some(Slot(self.slots.len() as u32 - 1))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn spec(name: u8, port: u16, label: u8) -> EndpointSpec {
        EndpointSpec {
            name: format!("pod-{name}"),
            namespace: "default".into(),
            address: ([127, 0, 0, name], port).into(),
            rank: 0,
            incarnation: 0,
            labels: BTreeMap::from([("version".to_owned(), label.to_string())]),
        }
    }

    fn state() -> PoolState {
        PoolState::new(PoolIdentity::default(), Duration::from_secs(2))
    }

    #[test]
    fn a_changed_label_keeps_slot_generation_and_counters() {
        let mut pool = state();
        let added = pool.replace(vec![spec(1, 80, 0)], Timestamp(0)).added.remove(0);
        added.in_flight.add(3, 30);
        let changes = pool.replace(vec![spec(1, 80, 1)], Timestamp(1));
        assert!(changes.added.is_empty() && changes.removed.is_empty());
        let now = &changes.relabelled[0];
        assert_eq!((now.slot, now.generation, now.in_flight.requests()), (added.slot, added.generation, 3));
        assert_eq!(now.label("version"), Some("1"));
    }

    #[test]
    fn a_changed_address_is_another_endpoint_in_another_slot() {
        let mut pool = state();
        let old = pool.replace(vec![spec(1, 80, 0)], Timestamp(0)).added.remove(0);
        let changes = pool.replace(vec![spec(1, 81, 0)], Timestamp(1));
        assert_eq!(changes.removed[0].slot, old.slot);
        assert_ne!(changes.added[0].slot, old.slot, "the old slot rests");
        let later = Timestamp(1).plus(SLOT_REST);
        let changes = pool.replace(vec![spec(1, 82, 0)], later);
        assert_eq!(changes.added[0].slot, old.slot, "and is reused afterwards");
        assert!(changes.added[0].generation > old.generation);
    }

    #[test]
    fn another_incarnation_at_the_same_address_is_another_endpoint() {
        let another = || EndpointSpec { incarnation: 7, ..spec(1, 80, 1) };
        for edit in [false, true] {
            let mut pool = state();
            let old = pool.replace(vec![spec(1, 80, 0)], Timestamp(0)).added.remove(0);
            let changes = match edit {
                true => pool.edit(&[], vec![another()], Timestamp(1)),
                false => pool.replace(vec![another()], Timestamp(1)),
            };
            assert_eq!((changes.removed.len(), changes.added.len(), changes.relabelled.len()), (1, 1, 0));
            assert_eq!((changes.removed[0].slot, changes.removed[0].generation), (old.slot, old.generation));
            assert!(changes.added[0].slot != old.slot && changes.added[0].generation > old.generation);
            assert_eq!(pool.topology().by_address(&old.spec.address), Some(changes.added[0].slot));
            assert!(pool.replace(vec![another()], Timestamp(2)).is_empty(), "and stays so");
        }
    }

    proptest! {
        #[test]
        fn the_topology_is_always_exactly_the_last_set(
            steps in proptest::collection::vec(proptest::collection::vec((1u8..20, 80u16..83, 0u8..3), 0..12), 1..20)
        ) {
            let mut pool = state();
            for (i, step) in steps.into_iter().enumerate() {
                let specs: Vec<_> = step.into_iter().map(|(n, p, l)| spec(n, p, l)).collect();
                let mut oracle: BTreeMap<String, EndpointSpec> = BTreeMap::new();
                for s in &specs {
                    oracle.entry(s.name.clone()).or_insert_with(|| s.clone());
                }
                pool.replace(specs, Timestamp::from_millis(i as u64 * 20_000));
                let topology = pool.topology();
                let mut seen: Vec<_> = topology.endpoints().map(|e| e.spec.clone()).collect();
                seen.sort_by(|a, b| a.name.cmp(&b.name));
                prop_assert_eq!(seen, oracle.into_values().collect::<Vec<_>>());
                for endpoint in topology.endpoints() {
                    prop_assert_eq!(topology.by_address(&endpoint.spec.address), Some(endpoint.slot));
                    prop_assert!(topology.by_ip(&endpoint.spec.address.ip()).contains(&endpoint.slot));
                }
            }
        }

        #[test]
        fn edits_and_replacement_lead_to_the_same_endpoints(
            steps in proptest::collection::vec(
                proptest::collection::vec((1u8..12, proptest::option::of((80u16..83, 0u8..3))), 0..8), 1..20)
        ) {
            let (mut edited, mut replaced) = (state(), state());
            let mut oracle: BTreeMap<String, EndpointSpec> = BTreeMap::new();
            for (i, step) in steps.into_iter().enumerate() {
                // One step names a pod at most once; the last word counts.
                let step: BTreeMap<u8, _> = step.into_iter().collect();
                let (mut removed, mut specs) = (Vec::new(), Vec::new());
                for (name, to) in step {
                    match to {
                        Some((port, label)) => {
                            specs.push(spec(name, port, label));
                            oracle.insert(format!("pod-{name}"), spec(name, port, label));
                        }
                        None => {
                            removed.push(("default".to_owned(), format!("pod-{name}")));
                            oracle.remove(&format!("pod-{name}"));
                        }
                    }
                }
                let now = Timestamp::from_millis(i as u64 * 20_000);
                let before = edited.topology().version;
                let one = edited.edit(&removed, specs, now);
                let other = replaced.replace(oracle.values().cloned().collect(), now);
                prop_assert_eq!(one.is_empty(), other.is_empty());
                prop_assert_eq!(edited.topology().version, before + u64::from(!one.is_empty()));
                let seen = |pool: &PoolState| {
                    let mut seen: Vec<_> = pool.topology().endpoints().map(|e| e.spec.clone()).collect();
                    seen.sort_by(|a, b| a.name.cmp(&b.name));
                    seen
                };
                prop_assert_eq!(seen(&edited), seen(&replaced));
                prop_assert_eq!(edited.topology().len(), oracle.len());
                for endpoint in edited.topology().endpoints() {
                    prop_assert_eq!(edited.topology().by_address(&endpoint.spec.address), Some(endpoint.slot));
                }
            }
        }
    }
}
