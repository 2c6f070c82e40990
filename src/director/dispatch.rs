//! From a request that is understood to its decision: at once, or after it was held.
//!
//! [`Director::submit`] is what an exchange and a replay have in common: both bring an
//! [`InferenceRequest`], and go on with what was [`Committed`] for it.
//!
//! **The empty queue** costs an arrival one atomic load and two comparisons: it is decided as ever, and
//! goes unless its endpoint is too busy. Only then, and while others wait, it goes through the queue.
//!
//! **A plan** ([`Director::plan`]) is made by one thread at a time; who comes meanwhile leaves a note and
//! goes on with his own work, so no thread waits for another one's plan. Arrivals are left in an inbox. A
//! plan decides on the planning thread with the same code as any decision, and commits by the same claims.
//! While every endpoint is busy or promised, which is the usual case under overload, it costs what reading the
//! accounts costs, whatever is held. It looks at the first `planDepth` only, asks again what is
//! cached only for the first `REFRESH` times as many, each at most every `FRESH`, and a bounded number
//! of them in one plan. An endpoint that nobody of those it looked at chose (a filter may keep it from
//! all) is not a reason to look again for `BARREN`, or every event would cost a full round; meanwhile it is shown to
//! those who come, and with each round to the next `BEHIND` of those further back, so that a head that may not use it
//! does not keep it from all others.
//!
//! **What is kept** of a request while it waits is the request and what cannot be found again cheaply (its block
//! hashes). What the caches are believed to hold is by endpoint, so it is kept for the head of the queue only, as far
//! as plans look; all others are asked about when their turn comes.
//!
//! **Stopping** ([`Director::stop_holding`]): nothing is held any more, and what is held goes in its order to its best
//! endpoint, `STOPPING_PER_PLAN` at a time, since it has to be answered before the process ends.
//!
//! Rejected: a planning task with a channel (two hops more for each request, and a replay has no tasks), and
//! deciding for all that is held (what is far back is decided again anyway).

mod gates;
pub(super) mod hold;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use super::{Ask, Choice, Director, Facts, Gate, candidates_of};
use crate::admission::queue::Ticket;
use crate::domain::{Decision, EndpointSet, InferenceRequest, Rejection, Signals, Slot, Timestamp};
use crate::extproc::SubsetHint;
use crate::scheduling::cost::Facts as Costs;
use crate::scheduling::dispatch::DispatchMode;
use crate::scheduling::plugin::{Cycle, Watch};
use crate::telemetry::metrics::DispatchReason as Why;
use crate::telemetry::trace::RequestTrace;
use gates::{Always, Arrival, Next, key_of};
use hold::{Hold, Planner, Waiting};

pub use hold::Held;

/// Time between plans while anything is held.
pub const TICK: Duration = Duration::from_millis(20);
/// Age from which what is cached is asked again.
const FRESH: Duration = Duration::from_millis(200);
/// Times the plan's depth that are kept fresh.
const REFRESH: usize = 2;
/// Requests that one plan asks again about.
const REFRESH_PER_PLAN: usize = 32;
/// Time for which an endpoint that nobody chose is no reason to look again.
const BARREN: Duration = Duration::from_millis(300);
/// Requests that one plan sends while the process stops.
const STOPPING_PER_PLAN: usize = 256;
/// Requests behind the head that one plan shows such an endpoint to.
const BEHIND: usize = 32;
/// How far behind the head that goes.
const MOST_BEHIND: usize = 4_096;
/// Looks without a taker that make an endpoint such a one.
const BARREN_LOOKS: usize = 16;
/// Plans that one call makes for those who left a note.
const MAX_ROUNDS: usize = 4;

/// A decision that was committed.
pub struct Committed {
    /// The choice.
    pub decision: Decision,
    /// What it was made on.
    pub signals: Signals,
    /// Who follows the request to its end.
    pub watches: Vec<Box<dyn Watch>>,
    /// How long it was held; zero if it was not.
    pub held: Duration,
    /// Its order key in microseconds of the director's clock, if it is to be written into the body.
    pub order_key: Option<u64>,
}

/// A request with what became of it.
pub type Decided = (InferenceRequest, Result<Committed, Rejection>);

/// The answer to [`Director::submit`].
pub enum Submitted {
    /// Decided at once.
    Decided(Box<Decided>),
    /// Held: complete when it was sent, which may be with the next [`Director::plan`]. Dropping it gives its
    /// place up.
    Held(Held),
}

impl Director {
    /// Decides for `request`, or holds it if that is better and `may_wait`.
    pub fn submit(
        self: &Arc<Self>,
        request: InferenceRequest,
        subset: Option<&SubsetHint>,
        may_wait: bool,
    ) -> Submitted {
        self.submit_traced(request, subset, may_wait, None)
    }

    /// The same, observed for a trace if it is decided at once.
    pub(super) fn submit_traced(
        &self,
        request: InferenceRequest,
        subset: Option<&SubsetHint>,
        may_wait: bool,
        trace: Option<&mut RequestTrace>,
    ) -> Submitted {
        let Some(hold) = &self.hold else {
            let result = self.at_once(&request, subset, trace);
            return Submitted::Decided(Box::new((request, result)));
        };
        let why = match hold.settings.mode {
            DispatchMode::Off | DispatchMode::Immediate => Some(Why::Configured),
            DispatchMode::Hold if hold.is_stopping() => Some(Why::Stopping),
            DispatchMode::Hold if !may_wait => Some(Why::TimeLimit),
            DispatchMode::Hold if !hold.answers.are_streamed() => Some(Why::NotStreamed),
            DispatchMode::Hold => None,
        };
        if let Some(why) = why {
            let result = self.at_once(&request, subset, trace);
            if result.is_ok() {
                hold.counts.count(why);
            }
            return Submitted::Decided(Box::new((request, result)));
        }
        let mut signals = Signals::default();
        let now = self.parts.clock.now();
        let mut arrival = Arrival { settings: &hold.settings, arrival: now, key: now.0, why: Why::Room };
        if hold.held() == 0 {
            let ask = Ask { request: &request, subset, facts: Facts::None, gate: Some(&mut arrival) };
            match self.route(ask, &mut signals, trace) {
                Ok(Choice::Waits) => {}
                Ok(Choice::Sent(decision, watches)) => {
                    let done = committed((decision, watches), signals, &request, hold, Some(arrival.key));
                    hold.counts.count(arrival.why);
                    return Submitted::Decided(Box::new((request, Ok(done))));
                }
                Err(rejection) => return Submitted::Decided(Box::new((request, Err(rejection)))),
            }
        } else {
            let mut key = now.0;
            let found = self.facts(&request, subset, &mut signals, |cycle, candidates| {
                key = key_of(&hold.settings, now, cycle, candidates);
            });
            if let Err(rejection) = found {
                return Submitted::Decided(Box::new((request, Err(rejection))));
            }
            arrival.key = key;
        }
        let key = arrival.key;
        (signals.accounts, signals.in_flight) = (None, None);
        Submitted::Held(hold.enter(Waiting::new(request, subset.cloned(), signals), now, key))
    }

    /// Decides without any waiting.
    fn at_once(
        &self,
        request: &InferenceRequest,
        subset: Option<&SubsetHint>,
        trace: Option<&mut RequestTrace>,
    ) -> Result<Committed, Rejection> {
        let mut signals = Signals::default();
        match &self.hold {
            None => {
                let ask = Ask { request, subset, facts: Facts::None, gate: None };
                match self.route(ask, &mut signals, trace)? {
                    Choice::Sent(decision, watches) => {
                        Ok(Committed { decision, signals, watches, held: Duration::ZERO, order_key: None })
                    }
                    Choice::Waits => Err(waits_for_nobody()),
                }
            }
            Some(hold) => {
                let arrival = self.parts.clock.now();
                let mut always = Always { settings: &hold.settings, arrival, key: None, prefill: 0.0 };
                let ask = Ask { request, subset, facts: Facts::None, gate: Some(&mut always) };
                match self.route(ask, &mut signals, trace)? {
                    Choice::Sent(decision, watches) => {
                        Ok(committed((decision, watches), signals, request, hold, always.key))
                    }
                    Choice::Waits => Err(waits_for_nobody()),
                }
            }
        }
    }

    /// Sends what is held and may go now. To be called after arrivals, first tokens, ends, and at the time that
    /// the last call returned; `None` if nothing is held.
    pub fn plan(&self) -> Option<Timestamp> {
        let hold = self.hold.as_ref()?;
        if hold.held() == 0 {
            return None;
        }
        hold.again.store(true, Ordering::SeqCst);
        let mut woken = Vec::new();
        for _ in 0..MAX_ROUNDS {
            // Whoever has the lock sees the note after giving it back.
            let Some(mut planner) = hold.planner.try_lock() else { break };
            hold.again.store(false, Ordering::SeqCst);
            self.plan_once(hold, &mut planner, &mut woken);
            drop(planner);
            // Outside of the lock, since a waker runs code of a runtime.
            woken.drain(..).for_each(Waker::wake);
            if !hold.again.load(Ordering::SeqCst) {
                break;
            }
        }
        let tick = if hold.is_stopping() { Duration::ZERO } else { TICK.min(hold.settings.max_hold.max(TICK / 20)) };
        (hold.held() > 0).then(|| self.parts.clock.now().plus(tick))
    }

    /// From now on nothing is held, and plans send what is as fast as they can.
    pub fn stop_holding(&self) {
        if let Some(hold) = &self.hold {
            hold.stop();
            self.plan();
        }
    }

    /// Plans every [`TICK`] for as long as anything is held, and sleeps otherwise.
    pub async fn keep_planning(self: Arc<Self>) -> Infallible {
        loop {
            match (self.plan(), &self.hold) {
                (Some(at), _) => match at.since(self.parts.clock.now()) {
                    Duration::ZERO => tokio::task::yield_now().await,
                    wait => tokio::time::sleep(wait).await,
                },
                (None, Some(hold)) => hold.filled.notified().await,
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// Whether requests may be held, so that somebody must keep planning.
    pub fn holds(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.settings.mode == DispatchMode::Hold)
    }

    fn plan_once(&self, hold: &Hold, planner: &mut Planner, woken: &mut Vec<Waker>) {
        let now = self.parts.clock.now();
        let settings = &*hold.settings;
        hold.collect(planner, woken);
        // Without endpoints there is nothing to wait for: they are refused like those who come now.
        if hold.is_stopping() || self.parts.pool.snapshot().topology.is_empty() {
            let mut order = std::mem::take(&mut planner.order);
            planner.queue.order(STOPPING_PER_PLAN, &mut order);
            for ticket in &order {
                let mut always = Always { settings, arrival: now, key: None, prefill: 0.0 };
                self.try_send(hold, planner, *ticket, &mut always, Why::Drained, woken);
            }
            planner.order = order;
            planner.arrived.clear();
            return;
        }
        for _ in 0..STOPPING_PER_PLAN {
            let Some(ticket) = planner.expired(now, settings.max_hold) else { break };
            let mut always = Always { settings, arrival: now, key: None, prefill: 0.0 };
            if !self.try_send(hold, planner, ticket, &mut always, Why::Expired, woken) {
                break;
            }
        }
        // What came since the last plan may like an endpoint that nobody before it did.
        let mut arrived = std::mem::take(&mut planner.arrived);
        if !planner.barren.is_empty() {
            self.offer_barren(hold, planner, &arrived, woken);
        }
        arrived.clear();
        planner.arrived = arrived;
        if planner.queue.is_empty() || !self.look(hold, planner, now) {
            return;
        }
        self.refresh(hold, planner, now, woken);
        let (mut walk, mut order) = (std::mem::take(&mut planner.walk), std::mem::take(&mut planner.order));
        planner.queue.order(settings.plan_depth, &mut order);
        walk.begin(self.parts.pool.snapshot().topology.capacity());
        let none_was_barren = planner.barren.is_empty();
        for (looked, ticket) in order.iter().enumerate() {
            if planner.open.iter().all(|slot| walk.is_promised(*slot)) {
                break;
            }
            let mut next = Next { settings, walk: &mut walk, promises: true, only: None, prefill: 0.0 };
            if self.try_send(hold, planner, *ticket, &mut next, Why::Held, woken) {
                // The accounts have changed with the commit.
                self.look(hold, planner, now);
            }
            if looked + 1 == order.len() && order.len() >= BARREN_LOOKS.min(settings.plan_depth) {
                planner.note_barren(&walk, now.plus(BARREN));
            }
        }
        (planner.walk, planner.order) = (walk, order);
        if none_was_barren && !planner.barren.is_empty() {
            self.look_behind(hold, planner, woken);
        }
    }

    /// Offers the endpoints that nobody at the head chose to some of those behind it, in their order: to the next ones
    /// each time, until one takes one.
    fn look_behind(&self, hold: &Hold, planner: &mut Planner, woken: &mut Vec<Waker>) {
        let depth = hold.settings.plan_depth;
        let same = planner.barren.iter().eq(planner.behind_for.iter());
        if !same || planner.behind >= MOST_BEHIND || depth + planner.behind >= planner.queue.len() {
            planner.behind = 0;
            planner.behind_for = planner.barren.clone();
        }
        let first = depth + planner.behind;
        let mut order = std::mem::take(&mut planner.order);
        planner.queue.order(first + BEHIND, &mut order);
        if !self.offer_barren(hold, planner, order.get(first..).unwrap_or_default(), woken) {
            planner.behind += BEHIND;
        }
        planner.order = order;
    }

    /// Lets `tickets` have what nobody at the head chose; whether any did.
    fn offer_barren(&self, hold: &Hold, planner: &mut Planner, tickets: &[Ticket], woken: &mut Vec<Waker>) -> bool {
        let mut taken = false;
        let (mut walk, barren) = (std::mem::take(&mut planner.walk), std::mem::take(&mut planner.barren));
        for ticket in tickets {
            let (walk, only) = (&mut walk, Some(&barren));
            let mut next = Next { settings: &hold.settings, walk, promises: false, only, prefill: 0.0 };
            taken |= self.try_send(hold, planner, *ticket, &mut next, Why::Held, woken);
        }
        (planner.walk, planner.barren) = (walk, barren);
        taken
    }

    /// Reads how long each endpoint would let a request wait; `false` if all are too busy.
    fn look(&self, hold: &Hold, planner: &mut Planner, now: Timestamp) -> bool {
        let snapshot = self.parts.pool.snapshot();
        let request = InferenceRequest::default();
        planner.signals.now = now;
        for named in self.parts.producers.iter().filter(|named| named.producer.is_volatile()) {
            named.producer.produce(&request, &snapshot, &mut planner.signals);
        }
        if now >= planner.barren_until || planner.topology != snapshot.topology.version {
            planner.barren = EndpointSet::new();
            planner.topology = snapshot.topology.version;
        }
        let cycle = Cycle { request: &request, snapshot: &snapshot, signals: &planner.signals, now };
        planner.open.clear();
        let costs = Costs::of(&cycle, hold.settings.prefix);
        let free = |slot: &&Slot| costs.own_wait(**slot) <= hold.settings.hold_above;
        let open = snapshot.topology.live_slots().iter().filter(|slot| !planner.barren.contains(**slot)).filter(free);
        planner.open.extend(open);
        !planner.open.is_empty()
    }

    /// Asks again what is cached for those near the head.
    fn refresh(&self, hold: &Hold, planner: &mut Planner, now: Timestamp, woken: &mut Vec<Waker>) {
        let snapshot = self.parts.pool.snapshot();
        let version = snapshot.topology.version;
        if now < planner.refresh_at {
            return;
        }
        let mut order = std::mem::take(&mut planner.order);
        planner.queue.order(hold.settings.plan_depth * REFRESH, &mut order);
        planner.keep_facts_of(&order);
        let mut candidates = Vec::new();
        let mut asked = 0;
        for ticket in &order {
            if asked == REFRESH_PER_PLAN {
                break;
            }
            let Some(place) = planner.queue.get(*ticket).cloned() else { continue };
            let Some(mut waiting) = place.borrow() else { continue };
            if !waiting.is_stale(now, version) {
                place.put_back(waiting);
                continue;
            }
            asked += 1;
            waiting.found = Some((now, version));
            waiting.signals.now = now;
            waiting.signals.accounts = planner.lent.take();
            let Waiting { request, subset, signals, .. } = &mut *waiting;
            let asked_anew = catch_unwind(AssertUnwindSafe(|| {
                for named in &self.parts.producers {
                    named.producer.refresh(request, &snapshot, signals);
                }
            }));
            if asked_anew.is_err() {
                planner.queue.remove(*ticket);
                woken.extend(hold.leave(&place, Box::new((waiting.request, Err(failed())))));
                continue;
            }
            candidates.clear();
            candidates_of(&snapshot, self.subset_for(request, subset.as_ref()), &mut candidates);
            let cycle = Cycle { request, snapshot: &snapshot, signals, now };
            let key = key_of(&hold.settings, place.arrival, &cycle, &candidates);
            planner.lent = signals.accounts.take();
            signals.in_flight = None;
            planner.queue.rekey(*ticket, key);
            place.set_key(key);
            place.put_back(waiting);
        }
        if asked < REFRESH_PER_PLAN {
            planner.refresh_at = now.plus(FRESH / 4);
        }
        planner.order = order;
    }

    /// Decides for one that is held; `true` if it is no longer.
    fn try_send(
        &self,
        hold: &Hold,
        planner: &mut Planner,
        ticket: Ticket,
        gate: &mut dyn Gate,
        why: Why,
        woken: &mut Vec<Waker>,
    ) -> bool {
        let Some(place) = planner.queue.get(ticket).cloned() else { return true };
        let Some(mut waiting) = place.borrow() else {
            // It left, and its note is on the way.
            planner.queue.remove(ticket);
            return true;
        };
        let now = self.parts.clock.now();
        let version = self.parts.pool.snapshot().topology.version;
        planner.looks += 1;
        let facts = if waiting.is_stale(now, version) {
            waiting.found = Some((now, version));
            Facts::Stale
        } else {
            Facts::Known
        };
        let Waiting { request, subset, signals, .. } = &mut *waiting;
        // What changes all the time is not kept for each that waits.
        signals.accounts = planner.lent.take();
        let ask = Ask { request, subset: subset.as_ref(), facts, gate: Some(gate) };
        // A plugin that fails on this request must not take down the one whose thread plans.
        let result = match catch_unwind(AssertUnwindSafe(|| self.route(ask, signals, None))) {
            Ok(Ok(Choice::Waits)) => {
                planner.lent = signals.accounts.take();
                signals.in_flight = None;
                if !planner.keeps_facts_of(ticket) {
                    waiting.forget_facts();
                }
                place.put_back(waiting);
                return false;
            }
            Ok(Ok(Choice::Sent(decision, watches))) => Ok((decision, watches)),
            Ok(Err(rejection)) => Err(rejection),
            Err(_) => Err(failed()),
        };
        let Waiting { request, signals, .. } = *waiting;
        let result = result.map(|chosen| {
            let done = committed(chosen, signals, &request, hold, Some(place.key()));
            Committed { held: now.since(place.arrival), ..done }
        });
        planner.queue.take(ticket, (gate.prefill() * 1e6) as u64);
        hold.counts.count(if result.is_ok() { why } else { Why::Refused });
        hold.counts.observe_held(now.since(place.arrival));
        woken.extend(hold.leave(&place, Box::new((request, result))));
        true
    }
}

/// The refusal of a request that a plugin failed on.
fn failed() -> Rejection {
    tracing::error!("a panic was caught while planning");
    Rejection::Internal("the endpoint picker failed on this request".into())
}

/// The commitment to a choice that was sent.
fn committed(
    (decision, mut watches): (Decision, Vec<Box<dyn Watch>>),
    signals: Signals,
    request: &InferenceRequest,
    hold: &Hold,
    key: Option<u64>,
) -> Committed {
    watches.extend(hold.watch(request));
    let order_key = key.filter(|_| hold.settings.write_priority);
    Committed { decision, signals, watches, held: Duration::ZERO, order_key }
}

/// What a decision without a gate never comes to.
fn waits_for_nobody() -> Rejection {
    Rejection::Internal("a request waits that was to be sent at once".into())
}
