//! What is held and who waits for it: places, the planner's state, and the counts.
//!
//! A [`Place`] is shared by the queue and by the [`Held`] that the stream polls. Its request is in one of the
//! hands at any time: in the place, with the plan that decides about it, or with the stream when it is
//! done. Whoever drops a `Held` takes the request and its body out at once; what is left in the queue is a
//! few words that the next plan removes.
//!
//! Locks, in order, none held while another thread's work runs: planner, inbox, place.

use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Decided, FRESH};
use crate::admission::queue::{self, Queue, Ticket};
use crate::domain::{
    AccountView, EndpointSet, InferenceRequest, Outcome, Rejection, RejectionReason, Segment, Signals, Slot, Timestamp,
};
use crate::extproc::SubsetHint;
use crate::scheduling::dispatch::{Dispatch, DispatchMode};
use crate::scheduling::plugin::{End, ResponseStart, Watch};
use crate::telemetry::metrics::{DispatchMetrics, DispatchReason, Metrics};

/// Answers that must have been seen before they say anything.
const MIN_ANSWERS: u32 = 8;
/// Time between first and last bytes from which an answer counts as streamed even if nothing says so.
const STREAMED_FOR: Duration = Duration::from_millis(100);

/// Everything about holding that threads share.
pub(in crate::director) struct Hold {
    pub settings: Arc<Dispatch>,
    pub answers: Arc<Answers>,
    pub counts: Arc<DispatchMetrics>,
    /// Somebody wants a plan.
    pub again: AtomicBool,
    pub planner: Mutex<Planner>,
    /// Told when the first one is held.
    pub filled: Notify,
    /// Nothing is held any more.
    stopping: AtomicBool,
    inbox: Mutex<Inbox>,
    held: Arc<Amounts>,
}

/// What is held now.
#[derive(Default)]
struct Amounts {
    requests: AtomicUsize,
    bytes: AtomicU64,
}

/// Notes for the next plan.
#[derive(Default)]
struct Inbox {
    arrivals: VecDeque<Arc<Place>>,
    /// Places that were left.
    left: Vec<Arc<Place>>,
}

/// What plans work with; one plan at a time.
pub(in crate::director) struct Planner {
    pub queue: Queue<Arc<Place>>,
    /// What the last plan promised.
    pub walk: Walk,
    pub order: Vec<Ticket>,
    /// The accounts as they are now.
    pub signals: Signals,
    /// Lent to the one that is decided about.
    pub lent: Option<AccountView>,
    /// Endpoints that could start on something.
    pub open: Vec<Slot>,
    /// Open endpoints that nobody chose.
    pub barren: EndpointSet,
    pub barren_until: Timestamp,
    /// How many behind the head were shown them, and which they were then.
    pub behind: usize,
    pub behind_for: EndpointSet,
    pub topology: u64,
    pub refresh_at: Timestamp,
    /// What came with the last look into the inbox.
    pub arrived: Vec<Ticket>,
    /// Decisions that were made about those that are held, whatever came of them.
    pub looks: u64,
    /// Whose facts are kept, in order.
    kept: Vec<Ticket>,
}

/// What one plan has promised so far, by slot.
#[derive(Default)]
pub(in crate::director) struct Walk {
    /// Prefill seconds.
    pub ahead: Vec<f32>,
    promised: EndpointSet,
}

impl Walk {
    pub fn begin(&mut self, capacity: usize) {
        self.ahead.clear();
        self.ahead.resize(capacity, 0.0);
        self.promised = EndpointSet::new();
    }

    pub fn is_promised(&self, slot: Slot) -> bool {
        self.promised.contains(slot)
    }

    pub fn promise(&mut self, slot: Slot, prefill: f32) {
        self.promised.insert(slot);
        if let Some(ahead) = self.ahead.get_mut(slot.index()) {
            *ahead += prefill;
        }
    }
}

impl Planner {
    /// Keeps the facts of `tickets`, and of nobody else.
    pub fn keep_facts_of(&mut self, tickets: &[Ticket]) {
        let before = mem::take(&mut self.kept);
        self.kept.extend_from_slice(tickets);
        self.kept.sort_unstable();
        for ticket in before.into_iter().filter(|ticket| !self.keeps_facts_of(*ticket)) {
            let Some(place) = self.queue.get(ticket) else { continue };
            if let Some(mut waiting) = place.borrow() {
                waiting.forget_facts();
                place.put_back(waiting);
            }
        }
    }

    /// Whether the facts of `ticket` are worth their memory.
    pub fn keeps_facts_of(&self, ticket: Ticket) -> bool {
        self.kept.binary_search(&ticket).is_ok()
    }

    /// One that has been held for `max_hold`.
    pub fn expired(&self, now: Timestamp, max_hold: Duration) -> Option<Ticket> {
        self.queue.oldest().filter(|(arrival, _)| now.since(*arrival) >= max_hold).map(|(_, ticket)| ticket)
    }

    /// Leaves the endpoints alone that nobody chose, until `until`.
    pub fn note_barren(&mut self, walk: &Walk, until: Timestamp) {
        // All are looked at again when the first of them is due, so that none is left alone for longer.
        if self.barren.is_empty() {
            self.barren_until = until;
        }
        for slot in self.open.iter().filter(|slot| !walk.is_promised(**slot)) {
            self.barren.insert(*slot);
        }
    }
}

/// A request that is held, and what its decision needs.
pub(in crate::director) struct Waiting {
    pub request: InferenceRequest,
    pub subset: Option<SubsetHint>,
    pub signals: Signals,
    /// When its facts were found, and the version of the topology that they are about; none if they are forgotten.
    pub found: Option<(Timestamp, u64)>,
}

impl Waiting {
    /// One whose turn may come late: without what is by endpoint.
    pub fn new(request: InferenceRequest, subset: Option<SubsetHint>, signals: Signals) -> Self {
        let mut waiting = Self { request, subset, signals, found: None };
        waiting.forget_facts();
        waiting
    }

    pub fn is_stale(&self, now: Timestamp, topology: u64) -> bool {
        self.found.is_none_or(|(at, about)| about != topology || now.since(at) > FRESH)
    }

    /// Gives the memory back that grows with the pool. What was hashed stays.
    pub fn forget_facts(&mut self) {
        self.found = None;
        for found in &mut self.signals.prefix {
            (found.matched, found.caches) = (Vec::new(), None);
        }
    }

    /// Bytes that it keeps while it waits, as far as its client decides on them.
    fn bytes(&self) -> u64 {
        let ids = |segment: &Segment| match segment {
            Segment::Tokens(ids) => size_of_val::<[u32]>(ids),
            _ => size_of::<Segment>(),
        };
        let prompts = self.request.prompts.iter().flat_map(|prompt| &prompt.segments).map(ids).sum::<usize>();
        let chains = self.signals.prefix.iter().flat_map(|found| &found.chains);
        let chains = chains.map(|chain| size_of_val::<[u64]>(chain)).sum::<usize>();
        (self.request.body.len() + prompts + chains) as u64
    }
}

/// A place in the queue.
pub(in crate::director) struct Place {
    pub arrival: Timestamp,
    priority: i32,
    flow: Box<str>,
    bytes: u64,
    key: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    /// Set by the plan that took it into the queue.
    ticket: Option<Ticket>,
    waker: Option<Waker>,
}

enum State {
    /// Here.
    Waiting(Box<Waiting>),
    /// With a plan.
    Borrowed,
    /// Decided.
    Done(Box<Decided>),
    /// Nobody waits for it.
    Left,
}

impl Place {
    /// Takes the request out to decide about it; `None` if there is none.
    pub fn borrow(&self) -> Option<Box<Waiting>> {
        let mut inner = self.inner.lock();
        match mem::replace(&mut inner.state, State::Borrowed) {
            State::Waiting(waiting) => Some(waiting),
            other => {
                inner.state = other;
                None
            }
        }
    }

    /// Gives it back, if anybody still waits for it.
    pub fn put_back(&self, waiting: Box<Waiting>) {
        let mut inner = self.inner.lock();
        if let State::Borrowed = inner.state {
            inner.state = State::Waiting(waiting);
            return;
        }
        drop(inner);
        drop(waiting);
    }

    pub fn key(&self) -> u64 {
        self.key.load(Ordering::Relaxed)
    }

    pub fn set_key(&self, key: u64) {
        self.key.store(key, Ordering::Relaxed);
    }
}

impl Hold {
    pub fn new(settings: Arc<Dispatch>) -> Self {
        let quantum = u64::try_from(settings.fairness_quantum.as_micros()).unwrap_or(u64::MAX / 4);
        Self {
            settings,
            answers: Arc::default(),
            counts: Arc::default(),
            again: AtomicBool::new(false),
            planner: Mutex::new(Planner {
                queue: Queue::new(quantum),
                walk: Walk::default(),
                order: Vec::new(),
                signals: Signals::default(),
                lent: None,
                open: Vec::new(),
                barren: EndpointSet::new(),
                barren_until: Timestamp(0),
                behind: 0,
                behind_for: EndpointSet::new(),
                topology: 0,
                refresh_at: Timestamp(0),
                arrived: Vec::new(),
                looks: 0,
                kept: Vec::new(),
            }),
            filled: Notify::new(),
            stopping: AtomicBool::new(false),
            inbox: Mutex::default(),
            held: Arc::default(),
        }
    }

    /// Shows what is held on the metrics page.
    pub fn show(&self, metrics: &Metrics) {
        let held = Arc::clone(&self.held);
        metrics.watch_dispatch(Arc::clone(&self.counts), move || {
            (held.requests.load(Ordering::Relaxed) as u64, held.bytes.load(Ordering::Relaxed))
        });
    }

    /// Ends the holding.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether it has ended.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.held.requests.load(Ordering::SeqCst)
    }

    /// Follows the answer to a request, if it is of interest how it comes.
    pub fn watch(&self, request: &InferenceRequest) -> Option<Box<dyn Watch>> {
        (self.settings.mode == DispatchMode::Hold).then(|| {
            let answers = Arc::clone(&self.answers);
            Box::new(Followed { answers, streamed: request.stream, first: None }) as Box<dyn Watch>
        })
    }

    /// Gives a request a place.
    pub fn enter(self: &Arc<Self>, waiting: Waiting, arrival: Timestamp, key: u64) -> Held {
        let request = &waiting.request;
        let names = InferenceRequest {
            id: request.id.clone(),
            received_at: request.received_at,
            path: request.path.clone(),
            model: request.model.clone(),
            target_model: request.target_model.clone(),
            stream: request.stream,
            priority: request.priority,
            objective: request.objective.clone(),
            fairness_id: request.fairness_id.clone(),
            ..InferenceRequest::default()
        };
        let place = Arc::new(Place {
            arrival,
            priority: request.priority,
            flow: request.fairness_id.clone(),
            bytes: waiting.bytes(),
            key: AtomicU64::new(key),
            inner: Mutex::new(Inner { state: State::Waiting(Box::new(waiting)), ticket: None, waker: None }),
        });
        // Counted before a plan can see it, or its end could be counted first.
        self.held.bytes.fetch_add(place.bytes, Ordering::Relaxed);
        let first = self.held.requests.fetch_add(1, Ordering::SeqCst) == 0;
        self.inbox.lock().arrivals.push_back(Arc::clone(&place));
        if first {
            self.filled.notify_one();
        }
        Held { hold: Arc::clone(self), place, names: Box::new(names), over: false }
    }

    /// Takes notes out of the inbox and keeps the bounds.
    pub fn collect(&self, planner: &mut Planner, woken: &mut Vec<Waker>) {
        let Inbox { arrivals, left } = mem::take(&mut *self.inbox.lock());
        for place in arrivals {
            let mut inner = place.inner.lock();
            if let State::Left = inner.state {
                continue;
            }
            let at = queue::Place {
                priority: place.priority,
                flow: &place.flow,
                key: place.key(),
                arrival: place.arrival,
                bytes: place.bytes,
            };
            let ticket = planner.queue.push(at, Arc::clone(&place));
            inner.ticket = Some(ticket);
            drop(inner);
            planner.arrived.push(ticket);
        }
        for place in left {
            let ticket = place.inner.lock().ticket;
            ticket.and_then(|ticket| planner.queue.remove(ticket));
        }
        let full =
            |queue: &Queue<_>| queue.len() > self.settings.max_requests || queue.bytes() > self.settings.max_bytes;
        while full(&planner.queue) {
            let Some(place) = planner.queue.least().and_then(|ticket| planner.queue.remove(ticket)) else { break };
            let Some(waiting) = place.borrow() else { continue };
            self.counts.count(DispatchReason::Full);
            woken.extend(self.leave(&place, Box::new((waiting.request, Err(full_queue())))));
        }
    }

    /// Ends the wait of `place`, which was taken out of the queue and whose request was borrowed.
    pub fn leave(&self, place: &Place, decided: Box<Decided>) -> Option<Waker> {
        let mut inner = place.inner.lock();
        if let State::Left = inner.state {
            drop(inner);
            // Outside of the lock: this gives back what was reserved.
            drop(decided);
            return None;
        }
        inner.state = State::Done(decided);
        let waker = inner.waker.take();
        drop(inner);
        self.release(place);
        waker
    }

    fn release(&self, place: &Place) {
        self.held.bytes.fetch_sub(place.bytes, Ordering::Relaxed);
        self.held.requests.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The refusal beyond the bounds.
fn full_queue() -> Rejection {
    Rejection::ResourceExhausted {
        message: "system saturated, too many requests are held".into(),
        reason: RejectionReason::Saturated,
    }
}

/// The place of a request in the queue.
pub struct Held {
    hold: Arc<Hold>,
    place: Arc<Place>,
    names: Box<InferenceRequest>,
    over: bool,
}

impl Held {
    /// The request without headers, body and prompts, to name it while it is held.
    pub fn names(&self) -> &InferenceRequest {
        &self.names
    }

    /// When it began.
    pub fn since(&self) -> Timestamp {
        self.place.arrival
    }

    /// What became of it, once, if it is decided.
    pub fn take(&mut self) -> Option<Box<Decided>> {
        let mut inner = self.place.inner.lock();
        match mem::replace(&mut inner.state, State::Left) {
            State::Done(decided) => {
                self.over = true;
                Some(decided)
            }
            other => {
                inner.state = other;
                None
            }
        }
    }
}

impl Future for Held {
    type Output = Box<Decided>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let held = self.get_mut();
        {
            let mut inner = held.place.inner.lock();
            if !matches!(inner.state, State::Done(_)) {
                if inner.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    inner.waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
        }
        match held.take() {
            Some(decided) => Poll::Ready(decided),
            None => Poll::Pending,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut inner = self.place.inner.lock();
        let state = mem::replace(&mut inner.state, State::Left);
        inner.waker = None;
        drop(inner);
        match state {
            State::Waiting(_) | State::Borrowed => {
                self.hold.release(&self.place);
                self.hold.counts.count(DispatchReason::Cancelled);
                self.hold.inbox.lock().left.push(Arc::clone(&self.place));
            }
            // Decided, but nobody came for it: this gives back what was reserved.
            State::Done(_) | State::Left => {}
        }
    }
}

/// How the last answers came: one bit each for the last 64.
#[derive(Default)]
pub(in crate::director) struct Answers {
    streamed: AtomicU64,
    seen: AtomicU32,
}

impl Answers {
    /// Whether at least half of the last answers were streamed, so that first tokens tell when prefills end.
    pub fn are_streamed(&self) -> bool {
        let seen = self.seen.load(Ordering::Relaxed);
        seen >= MIN_ANSWERS && 2 * self.streamed.load(Ordering::Relaxed).count_ones() >= seen.min(64)
    }

    fn note(&self, streamed: bool) {
        let shifted = |bits: u64| Some(bits << 1 | u64::from(streamed));
        let _ = self.streamed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shifted);
        let counted = |seen: u32| Some(seen.saturating_add(1));
        let _ = self.seen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }
}

/// Looks at how an answer comes.
struct Followed {
    answers: Arc<Answers>,
    streamed: bool,
    first: Option<Timestamp>,
}

impl Watch for Followed {
    fn response_headers(&mut self, start: &ResponseStart<'_>, _: &mut Vec<(&'static str, String)>) {
        let kind = start.headers.get("content-type");
        self.streamed = self.streamed || kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
    }

    fn first_token(&mut self, now: Timestamp) {
        self.first = Some(now);
    }

    fn finished(&mut self, end: &End) {
        if end.outcome == Outcome::Completed {
            let slowly = |first: Timestamp| self.streamed || end.now.since(first) >= STREAMED_FOR;
            self.answers.note(self.first.is_some_and(slowly));
        }
    }
}
