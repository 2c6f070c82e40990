//! What the watches said, and what follows from it. Pure state: messages in, edits of the pool out.
//!
//! ```text
//! pool ──> selector ──> which pods are watched ──> pods ──┐
//!   └────> target ports ─────────────────────────────────┴─> endpoints
//! objectives, rewrites (of this pool) ─────────────────────> policies
//! ```
//!
//! Invariants. The endpoints are those of the pods held with the ports in force, whatever the order of
//! the messages was. A pool that gets another selector keeps its pods and ports until the list for the
//! new selector is complete; then both change in one step. Messages of a pod watch that was replaced are
//! ignored, by the number of the watch. A pool that is gone takes everything with it; objectives and
//! rewrites stay held, to be in force again when it comes back.

use std::collections::BTreeMap;

use crate::domain::{EndpointSpec, ObjectiveSpec, Policies, RewriteSpec};
use crate::pool::{Key, MAX_ENDPOINTS};

use super::objects::{MAX_PORTS, PodFacts, PoolFacts, endpoint_name};
use super::watch::Change;

/// A change that a watch delivers.
#[derive(Debug)]
pub enum Message {
    /// Of the InferencePool.
    Pool(Change<PoolFacts>),
    /// Of a pod, as seen by the pod watch of this number.
    Pods(u64, Change<PodFacts>),
    /// Of an InferenceObjective.
    Objectives(Change<ObjectiveSpec>),
    /// Of an InferenceModelRewrite.
    Rewrites(Change<RewriteSpec>),
}

/// Which pods are to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodWatch {
    /// Number of this watch; its messages carry it.
    pub number: u64,
    /// Label selector.
    pub selector: String,
}

/// How the endpoints change.
#[derive(Debug, PartialEq, Eq)]
pub enum Edit {
    /// This is the whole set.
    Whole(Vec<EndpointSpec>),
    /// These go, those come or change.
    Part(Vec<Key>, Vec<EndpointSpec>),
}

/// Most objectives, and most rewrites, that are held; what comes beyond is passed over.
pub const MAX_POLICY_OBJECTS: usize = 10_000;

/// Objects of one kind by name.
#[derive(Debug)]
struct Held<T> {
    objects: BTreeMap<String, T>,
    /// Whether the watch has said anything, were it only that there is nothing to be had.
    settled: bool,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), settled: false }
    }
}

impl<T: PartialEq> Held<T> {
    /// The result is whether anything changed.
    fn apply(&mut self, change: Change<T>, name: impl Fn(&T) -> &str) -> bool {
        self.settled = true;
        match change {
            Change::Complete { objects, .. } => {
                let named = objects.into_iter().map(|object| (name(&object).to_owned(), object));
                let objects: BTreeMap<_, _> = named.take(MAX_POLICY_OBJECTS).collect();
                let changed = objects != self.objects;
                self.objects = objects;
                changed
            }
            Change::Applied(object) => {
                let key = name(&object);
                if self.objects.get(key) == Some(&object)
                    || self.objects.len() >= MAX_POLICY_OBJECTS && !self.objects.contains_key(key)
                {
                    return false;
                }
                self.objects.insert(key.to_owned(), object);
                true
            }
            Change::Gone(name) => self.objects.remove(&name).is_some(),
            Change::Unavailable => false,
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Index {
    namespace: String,
    /// Whether the API server said that there is no such pool, the last time that it said anything of it.
    missing: bool,
    /// The pool as last seen.
    pool: Option<PoolFacts>,
    /// The pod watch that counts.
    watch: Option<PodWatch>,
    watches: u64,
    /// Whether the list of that watch is complete.
    listed: bool,
    pods: BTreeMap<Box<str>, PodFacts>,
    /// Target ports in force.
    ports: Vec<u16>,
    /// Whether the pods were complete once for this pool; its end takes that back.
    synced: bool,
    objectives: Held<ObjectiveSpec>,
    rewrites: Held<RewriteSpec>,
    /// Pods that changed since the last edit, as they were then.
    touched: BTreeMap<Box<str>, Option<PodFacts>>,
    /// Whether the next edit says the whole set.
    whole: bool,
    new_policies: bool,
    /// Pods that found no place.
    refused: usize,
}

impl Index {
    /// An index for the pool in `namespace`; nothing is known yet.
    pub fn new(namespace: String) -> Self {
        Self {
            namespace,
            missing: false,
            pool: None,
            watch: None,
            watches: 0,
            listed: false,
            pods: BTreeMap::new(),
            ports: Vec::new(),
            synced: false,
            objectives: Held::default(),
            rewrites: Held::default(),
            touched: BTreeMap::new(),
            whole: false,
            new_policies: false,
            refused: 0,
        }
    }

    /// An index for pods that are chosen without an InferencePool; objectives and rewrites do not exist.
    pub fn of_selector(namespace: String, selector: String, ports: Vec<u16>) -> Self {
        let mut index = Self::new(namespace);
        index.objectives.settled = true;
        index.rewrites.settled = true;
        index.set_pool(PoolFacts { selector, ports });
        index
    }

    /// Takes in a message.
    pub fn apply(&mut self, message: Message) {
        match message {
            Message::Pool(change) => self.apply_pool(change),
            Message::Pods(number, change) if self.watch.as_ref().is_some_and(|w| w.number == number) => {
                self.apply_pods(change);
            }
            Message::Pods(..) => {}
            Message::Objectives(change) => self.new_policies |= self.objectives.apply(change, |o| &o.name),
            Message::Rewrites(change) => self.new_policies |= self.rewrites.apply(change, |r| &r.name),
        }
    }

    fn apply_pool(&mut self, change: Change<PoolFacts>) {
        match &change {
            Change::Complete { objects, unreadable } => self.missing = objects.is_empty() && *unreadable == 0,
            Change::Applied(_) => self.missing = false,
            Change::Gone(_) => self.missing = true,
            Change::Unavailable => {}
        }
        match change {
            Change::Complete { objects, unreadable } => match objects.into_iter().next() {
                Some(pool) => self.set_pool(pool),
                // It is there; what it said when it could be read is the best that is known.
                None if unreadable > 0 => {}
                None => self.end_pool(),
            },
            Change::Applied(pool) => self.set_pool(pool),
            Change::Gone(_) => self.end_pool(),
            Change::Unavailable => {}
        }
    }

    fn set_pool(&mut self, pool: PoolFacts) {
        if self.watch.as_ref().is_none_or(|w| w.selector != pool.selector) {
            self.watches += 1;
            self.watch = Some(PodWatch { number: self.watches, selector: pool.selector.clone() });
            self.listed = false;
        } else if self.listed && self.ports != pool.ports {
            self.ports.clone_from(&pool.ports);
            self.whole = true;
        }
        self.new_policies |= self.pool.is_none();
        self.pool = Some(pool);
    }

    fn end_pool(&mut self) {
        if self.pool.take().is_none() {
            return;
        }
        self.watch = None;
        self.listed = false;
        self.synced = false;
        self.pods.clear();
        self.ports.clear();
        self.whole = true;
        self.new_policies = true;
    }

    fn apply_pods(&mut self, change: Change<PodFacts>) {
        match change {
            Change::Complete { objects, .. } => {
                self.refused = objects.len().saturating_sub(MAX_ENDPOINTS);
                self.pods = objects.into_iter().take(MAX_ENDPOINTS).map(|pod| (pod.name.clone(), pod)).collect();
                if let Some(pool) = &self.pool {
                    self.ports.clone_from(&pool.ports);
                }
                self.whole = true;
                self.listed = true;
                self.synced = true;
            }
            Change::Applied(pod) => {
                let name = pod.name.clone();
                if self.pods.len() >= MAX_ENDPOINTS && !self.pods.contains_key(&name) {
                    self.refused += 1;
                    return;
                }
                let before = self.pods.insert(name.clone(), pod);
                self.touch(name, before);
            }
            Change::Gone(name) => {
                if let Some(before) = self.pods.remove(name.as_str()) {
                    self.touch(name.into_boxed_str(), Some(before));
                }
            }
            Change::Unavailable => {}
        }
    }

    fn touch(&mut self, name: Box<str>, before: Option<PodFacts>) {
        if !self.whole {
            self.touched.entry(name).or_insert(before);
        }
    }

    /// What has to change in the pool since the last call, if anything.
    pub fn edit(&mut self) -> Option<Edit> {
        let touched = std::mem::take(&mut self.touched);
        if std::mem::take(&mut self.whole) {
            return Some(Edit::Whole(self.endpoints()));
        }
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (name, before) in touched {
            let after = self.pods.get(&name);
            if before.as_ref() == after {
                continue;
            }
            let now = after.map(|pod| pod.endpoints(&self.namespace, &self.ports)).unwrap_or_default();
            if before.is_some() {
                let left = (0..MAX_PORTS as u32).filter(|rank| now.iter().all(|e| e.rank != *rank));
                gone.extend(left.map(|rank| (self.namespace.clone(), endpoint_name(&name, rank as usize))));
            }
            come.extend(now);
        }
        (!gone.is_empty() || !come.is_empty()).then_some(Edit::Part(gone, come))
    }

    /// Asks for the whole set in the next edit, because the pool could not hold the last one.
    pub fn again(&mut self) {
        self.whole = true;
    }

    /// The whole set, in the order of the pods' names.
    pub fn endpoints(&self) -> Vec<EndpointSpec> {
        self.pods.values().flat_map(|pod| pod.endpoints(&self.namespace, &self.ports)).collect()
    }

    /// Objectives and rewrites, if others are in force than at the last call.
    pub fn policies(&mut self) -> Option<Policies> {
        std::mem::take(&mut self.new_policies).then(|| match self.pool {
            Some(_) => Policies::new(
                self.objectives.objects.values().cloned().collect(),
                self.rewrites.objects.values().cloned().collect(),
            ),
            None => Policies::default(),
        })
    }

    /// The pod watch that is wanted.
    pub fn pod_watch(&self) -> Option<&PodWatch> {
        self.watch.as_ref()
    }

    /// Whether the API server says that the pool does not exist.
    pub fn is_missing(&self) -> bool {
        self.missing
    }

    /// Whether the pool is known with all its pods, and with what there is to know about objectives and
    /// rewrites, or that nothing can be known of them for now: a picker that takes traffic without them would
    /// send models by names that no server has.
    pub fn is_ready(&self) -> bool {
        self.synced && self.objectives.settled && self.rewrites.settled
    }

    /// Objects held: pools, pods that count, objectives, rewrites.
    pub fn held(&self) -> [usize; 4] {
        let pool = usize::from(self.pool.is_some());
        [pool, self.pods.len(), self.objectives.objects.len(), self.rewrites.objects.len()]
    }

    /// How many pods found no place since the last complete list.
    pub fn refused(&self) -> usize {
        self.refused
    }
}

#[cfg(test)]
mod tests;
