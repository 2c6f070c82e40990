//! The order of what is held. Pure: time comes in as numbers, nothing is locked, nothing wakes up.
//!
//! * **Bands** by priority, the highest first.
//! * **Flows** by fairness id within a band. Service is counted in prefill time: a flow is charged when a
//!   request of it is sent, and each of the `n` flows that wait had a claim to one `n`-th of that. A flow
//!   that got more than its claim by at most the *quantum* competes by order key alone; one that got more
//!   goes after those, the least served first, until the others have caught up. So with one flow, and with flows that
//!   are all new, the order is purely by key, and flows that always wait share evenly whatever they ask for.
//!   A flow starts without claim or debt; who waits while nobody else of the band does owes nothing.
//! * **Order keys** within a flow; ties by arrival.
//!
//! Flows have a bound of [`MAX_FLOWS`] per band; ids beyond it share one flow.
//!
//! Every operation is O(log n) in what is held; [`Queue::order`] is O(depth · log).
//!
//! Rejected: round-robin over flows (ten requests of a second each would count like ten of a millisecond),
//! start tags in strict order (a fairness id per request would turn the order into first come, first served),
//! and sorting when planning (10,000 held requests cost milliseconds at each event).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, btree_set};

use hashbrown::HashMap;
use slab::Slab;

use crate::domain::Timestamp;

/// Flows of one band that are told apart.
pub const MAX_FLOWS: usize = 1024;

/// Names what is held. Never used twice by one queue, and rising with arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Where an arrival belongs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Higher goes first.
    pub priority: i32,
    /// Fairness id.
    pub flow: &'a str,
    /// Order key in microseconds, lower first.
    pub key: u64,
    /// When it came.
    pub arrival: Timestamp,
    /// Bytes that it keeps.
    pub bytes: u64,
}

struct Entry<T> {
    priority: i32,
    flow: usize,
    key: u64,
    arrival: Timestamp,
    bytes: u64,
    item: T,
}

#[derive(Default)]
struct Flow {
    name: Box<str>,
    /// Prefill time that it was sent, in microseconds of the band's virtual time.
    served: u64,
    waiting: BTreeSet<(u64, Ticket)>,
}

struct Band {
    quantum: u64,
    /// What a flow that got just its claim was sent.
    due: u64,
    flows: Slab<Flow>,
    by_name: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    /// First of each flow that is not ahead of its claim by more than the quantum.
    heads: BTreeSet<(u64, Ticket, usize)>,
    /// The other flows that wait, by what they were sent.
    ahead: BTreeSet<(u64, usize)>,
    /// Flows without requests that are still ahead, by what they were sent.
    idle: BTreeSet<(u64, usize)>,
    tickets: BTreeSet<Ticket>,
}

/// The queue.
pub struct Queue<T> {
    quantum: u64,
    next: u64,
    bytes: u64,
    entries: HashMap<Ticket, Entry<T>, foldhash::fast::RandomState>,
    bands: BTreeMap<Reverse<i32>, Band>,
    by_age: BTreeSet<(Timestamp, Ticket)>,
}

impl<T> Queue<T> {
    /// An empty queue; `quantum` is in microseconds of prefill.
    pub fn new(quantum: u64) -> Self {
        Self {
            quantum,
            next: 0,
            bytes: 0,
            entries: HashMap::default(),
            bands: BTreeMap::new(),
            by_age: BTreeSet::new(),
        }
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes an arrival in.
    pub fn push(&mut self, place: Place<'_>, item: T) -> Ticket {
        let Place { priority, flow, key, arrival, bytes } = place;
        let ticket = Ticket(self.next);
        self.next += 1;
        let quantum = self.quantum;
        let band = self.bands.entry(Reverse(priority)).or_insert_with(|| Band::new(quantum));
        let flow = band.flow(flow);
        band.detach(flow);
        band.flows[flow].waiting.insert((key, ticket));
        band.attach(flow);
        band.tickets.insert(ticket);
        band.settle();
        self.by_age.insert((arrival, ticket));
        self.bytes = self.bytes.saturating_add(bytes);
        self.entries.insert(ticket, Entry { priority, flow, key, arrival, bytes, item });
        ticket
    }

    /// What `ticket` stands for.
    pub fn get(&self, ticket: Ticket) -> Option<&T> {
        self.entries.get(&ticket).map(|entry| &entry.item)
    }

    /// Takes `ticket` out, which was not sent.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        self.take(ticket, 0)
    }

    /// Takes `ticket` out, which was sent, and charges its flow with `prefill` microseconds.
    pub fn take(&mut self, ticket: Ticket, prefill: u64) -> Option<T> {
        let entry = self.entries.remove(&ticket)?;
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        self.by_age.remove(&(entry.arrival, ticket));
        if let Some(band) = self.bands.get_mut(&Reverse(entry.priority)) {
            let waiting = (band.heads.len() + band.ahead.len()) as u64;
            band.detach(entry.flow);
            band.tickets.remove(&ticket);
            if let Some(flow) = band.flows.get_mut(entry.flow) {
                flow.waiting.remove(&(entry.key, ticket));
                flow.served = flow.served.saturating_add(prefill);
            }
            band.due = band.due.saturating_add(prefill / waiting.max(1));
            band.attach(entry.flow);
            band.settle();
            if band.tickets.is_empty() {
                self.bands.remove(&Reverse(entry.priority));
            }
        }
        Some(entry.item)
    }

    /// Gives `ticket` another order key.
    pub fn rekey(&mut self, ticket: Ticket, key: u64) {
        let Some(entry) = self.entries.get_mut(&ticket).filter(|entry| entry.key != key) else { return };
        let Some(band) = self.bands.get_mut(&Reverse(entry.priority)) else { return };
        band.detach(entry.flow);
        if let Some(flow) = band.flows.get_mut(entry.flow) {
            flow.waiting.remove(&(entry.key, ticket));
            flow.waiting.insert((key, ticket));
        }
        entry.key = key;
        band.attach(entry.flow);
        band.settle();
    }

    /// The one that came first of all.
    pub fn oldest(&self) -> Option<(Timestamp, Ticket)> {
        self.by_age.first().copied()
    }

    /// The one to be refused first: the newest of the lowest priority.
    pub fn least(&self) -> Option<Ticket> {
        self.bands.last_key_value()?.1.tickets.last().copied()
    }

    /// Writes the first `depth` in their order to `out`.
    pub fn order(&self, depth: usize, out: &mut Vec<Ticket>) {
        out.clear();
        for band in self.bands.values() {
            if out.len() >= depth {
                return;
            }
            band.order(depth, out);
        }
    }
}

impl Band {
    fn new(quantum: u64) -> Self {
        Self {
            quantum,
            due: 0,
            flows: Slab::new(),
            by_name: HashMap::default(),
            heads: BTreeSet::new(),
            ahead: BTreeSet::new(),
            idle: BTreeSet::new(),
            tickets: BTreeSet::new(),
        }
    }

    /// The flow called `name`, made if there is room for another one.
    fn flow(&mut self, name: &str) -> usize {
        let name = if self.by_name.len() < MAX_FLOWS || self.by_name.contains_key(name) { name } else { "" };
        if let Some(known) = self.by_name.get(name) {
            return *known;
        }
        let index = self.flows.insert(Flow { name: name.into(), served: self.due, waiting: BTreeSet::new() });
        self.by_name.insert(name.into(), index);
        index
    }

    /// Takes a flow out of the lists, before it changes.
    fn detach(&mut self, index: usize) {
        let Some(flow) = self.flows.get(index) else { return };
        match flow.waiting.first() {
            None => {
                self.idle.remove(&(flow.served, index));
            }
            Some((key, ticket)) => {
                if !self.heads.remove(&(*key, *ticket, index)) {
                    self.ahead.remove(&(flow.served, index));
                }
            }
        }
    }

    /// Puts a flow into its list, or forgets it if there is nothing to remember.
    fn attach(&mut self, index: usize) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        match flow.waiting.first() {
            None if flow.served > self.due => {
                self.idle.insert((flow.served, index));
            }
            None => self.forget(index),
            Some((key, ticket)) if flow.served <= self.due.saturating_add(self.quantum) => {
                self.heads.insert((*key, *ticket, index));
            }
            Some(_) => {
                self.ahead.insert((flow.served, index));
            }
        }
    }

    fn forget(&mut self, index: usize) {
        if let Some(flow) = self.flows.try_remove(index) {
            self.by_name.remove(&flow.name);
        }
    }

    /// Lets those compete again that the others have caught up with.
    fn settle(&mut self) {
        if self.heads.is_empty()
            && let Some((served, _)) = self.ahead.first()
        {
            // Who had less has nothing to send.
            self.due = self.due.max(*served);
        }
        while let Some((served, index)) = self.ahead.first().copied() {
            if served > self.due.saturating_add(self.quantum) {
                break;
            }
            self.ahead.pop_first();
            if let Some((key, ticket)) = self.flows.get(index).and_then(|flow| flow.waiting.first()) {
                self.heads.insert((*key, *ticket, index));
            }
        }
        while let Some((served, index)) = self.idle.first().copied() {
            if served > self.due {
                break;
            }
            self.idle.pop_first();
            self.forget(index);
        }
    }

    fn order(&self, depth: usize, out: &mut Vec<Ticket>) {
        let mut heads = self.heads.iter().peekable();
        // Flows whose first is out, by what comes next of them.
        let mut opened: BinaryHeap<Reverse<(u64, Ticket, usize)>> = BinaryHeap::new();
        let mut rests: Vec<btree_set::Iter<'_, (u64, Ticket)>> = Vec::new();
        while out.len() < depth {
            let next = opened.peek().map(|Reverse((key, ticket, _))| (*key, *ticket));
            let from_heads = match (heads.peek(), next) {
                (Some((key, ticket, _)), Some(next)) => (*key, *ticket) < next,
                (head, _) => head.is_some(),
            };
            let rest = if from_heads {
                let Some((_, ticket, index)) = heads.next() else { break };
                out.push(*ticket);
                let Some(flow) = self.flows.get(*index) else { continue };
                let mut rest = flow.waiting.iter();
                rest.next();
                rests.push(rest);
                rests.len() - 1
            } else {
                let Some(Reverse((_, ticket, rest))) = opened.pop() else { break };
                out.push(ticket);
                rest
            };
            if let Some((key, ticket)) = rests[rest].next() {
                opened.push(Reverse((*key, *ticket, rest)));
            }
        }
        for (_, index) in &self.ahead {
            let Some(flow) = self.flows.get(*index) else { continue };
            for (_, ticket) in &flow.waiting {
                if out.len() >= depth {
                    return;
                }
                out.push(*ticket);
            }
        }
    }
}

#[cfg(test)]
mod tests;
