//! One picker without its edges: configuration, pool and director of a process over a clock that its driver moves.
//!
//! The driver tells what would have come in (samples, requests, first tokens, ends) and takes out what was sent
//! where. Samples become visible with the next decision, which is what the publisher of a process does within
//! milliseconds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use parking_lot::Mutex;
use smallvec::smallvec;

use super::text;
use crate::app;
use crate::config::{self, Config, ConfigError, Purpose, Settings, Source, Tables};
use crate::director::Director;
use crate::director::dispatch::{Committed, Held, Submitted};
use crate::domain::{
    EndpointSpec, Headers, InferenceRequest, LoadDetail, LoadSample, Outcome, Prompt, Rejection, Segment, Served, Slot,
    Timestamp, Usage,
};
use crate::lifecycle::clock::ManualClock;
use crate::pool::Pool;
use crate::scheduling::plugin::{End, ResponseStart, Watch};

/// What the clock of a picker shows at second 0 of a replay: 0 means "never" in places.
const START: u64 = 1_000_000;

/// Most endpoints of a replay.
pub const MAX_PODS: usize = 4096;

/// Tokens of one request at most; longer prompts are an error of the driver.
pub const MAX_TOKENS: u32 = 1 << 24;

/// The pods of a replay, as a picker sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Number of pods, 1 to [`MAX_PODS`].
    pub pods: usize,
    /// Tokens of KV cache of each pod.
    pub kv_tokens: u64,
    /// Tokens per block of their caches.
    pub block_tokens: u32,
}

/// What a driver must not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// A pod that is not there.
    #[error("pod {0} does not exist")]
    NoSuchPod(u64),
    /// A request that is not known, or has ended.
    #[error("request {0} is not in flight")]
    NoSuchRequest(u64),
    /// A request that is known already.
    #[error("request {0} is already in flight")]
    Twice(u64),
    /// A prompt of no tokens or of too many.
    #[error("request {0} has {1} tokens; 1 to {MAX_TOKENS} are possible")]
    Tokens(u64, u64),
}

/// A request that was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent {
    /// Its id.
    pub id: u64,
    /// Index of its pod.
    pub pod: usize,
    /// Tokens that the first prefix index believes the pod to hold.
    pub predicted_tokens: u64,
}

/// Ids of held requests that were decided, in the order of the decisions.
type Woken = Arc<Mutex<Vec<u64>>>;

struct HeldWaker {
    id: u64,
    woken: Woken,
}

impl Wake for HeldWaker {
    fn wake(self: Arc<Self>) {
        self.woken.lock().push(self.id);
    }
}

enum Open {
    Held { held: Pin<Box<Held>>, waker: Waker, tokens: u32 },
    Sent { watches: Vec<Box<dyn Watch>>, tokens: u32, started: bool },
}

/// See the module documentation.
pub struct Picker {
    clock: Arc<ManualClock>,
    pool: Arc<Pool>,
    director: Arc<Director>,
    fleet: Fleet,
    /// Slot and generation by pod.
    endpoints: Vec<(Slot, u64)>,
    /// Pod by slot.
    pods: Vec<usize>,
    detail: Arc<LoadDetail>,
    unpublished: bool,
    open: HashMap<u64, Open, FixedState>,
    held: usize,
    woken: Woken,
    /// Swapped with `woken`, to poll without holding its lock.
    woken_before: Vec<u64>,
    sent: Vec<Sent>,
    refused: Vec<(u64, Rejection)>,
    next_plan: Option<Timestamp>,
    answer_headers: Headers,
    streamed: bool,
}

impl fmt::Debug for Picker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picker").field("fleet", &self.fleet).field("held", &self.held).finish_non_exhaustive()
    }
}

/// Resolves `source` for a replay: experimental plugins are allowed, neither discovery nor a pool is asked for.
/// The plugins of a [`Config`] hold state, so each picker takes one of its own.
///
/// # Errors
/// All problems of the document.
pub fn resolve(source: &Source, tables: &Tables) -> Result<Config, ConfigError> {
    let settings = Settings { allow_experimental: true, ..Settings::default() };
    config::load(source, settings, tables, Purpose::Check)
}

impl Picker {
    /// A picker of `config` over `fleet`; `seed` is that of its random numbers.
    pub fn new(config: &Config, fleet: Fleet, seed: u64) -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.advance_to(Timestamp(START));
        let (pool, director) = app::offline(config, seed, Arc::clone(&clock) as _);
        pool.replace((0..fleet.pods.min(MAX_PODS)).map(spec).collect());
        let snapshot = pool.snapshot().clone();
        let mut endpoints = Vec::with_capacity(fleet.pods);
        let mut pods = vec![usize::MAX; snapshot.topology.capacity()];
        for pod in 0..fleet.pods {
            // The pool was empty and has room for MAX_PODS.
            let Some(slot) = snapshot.topology.by_address(&address(pod)) else { break };
            let Some(endpoint) = snapshot.topology.get(slot) else { break };
            endpoints.push((slot, endpoint.generation));
            pods[slot.index()] = pod;
        }
        let blocks = fleet.kv_tokens / u64::from(fleet.block_tokens.max(1));
        let detail = LoadDetail {
            block_size: Some(fleet.block_tokens),
            num_blocks: Some(u32::try_from(blocks).unwrap_or(u32::MAX)),
            ..LoadDetail::default()
        };
        Self {
            clock,
            pool,
            director,
            fleet,
            endpoints,
            pods,
            detail: Arc::new(detail),
            unpublished: false,
            open: HashMap::default(),
            held: 0,
            woken: Woken::default(),
            woken_before: Vec::new(),
            sent: Vec::new(),
            refused: Vec::new(),
            next_plan: None,
            answer_headers: Headers::from([("content-type", "text/event-stream")]),
            streamed: true,
        }
    }

    /// Whether clients ask for streamed answers, from the next request on; they do unless told otherwise.
    pub fn set_streamed(&mut self, streamed: bool) {
        self.streamed = streamed;
        let content_type = if streamed { "text/event-stream" } else { "application/json" };
        self.answer_headers = Headers::from([("content-type", content_type)]);
    }

    /// Takes a sample of `pod` that was read at second `t`.
    ///
    /// # Errors
    /// [`Misuse::NoSuchPod`].
    pub fn metrics(&mut self, t: f64, pod: u64, waiting: f32, running: f32, kv: f32) -> Result<(), Misuse> {
        let found = usize::try_from(pod).ok().and_then(|pod| self.endpoints.get(pod));
        let (slot, generation) = *found.ok_or(Misuse::NoSuchPod(pod))?;
        let sample = LoadSample {
            taken_at: at(t),
            waiting: Some(waiting),
            running: Some(running),
            kv_usage: Some(kv),
            detail: Arc::clone(&self.detail),
        };
        self.pool.report(slot, generation, &sample);
        self.unpublished = true;
        Ok(())
    }

    /// Takes a request of `tokens` prompt tokens that arrives at second `t`.
    ///
    /// # Errors
    /// An id that is in use, a length that no prompt can have.
    pub fn request(&mut self, t: f64, id: u64, tokens: u64, blocks: &[u64]) -> Result<(), Misuse> {
        let Some(length) = u32::try_from(tokens).ok().filter(|n| (1..=MAX_TOKENS).contains(n)) else {
            return Err(Misuse::Tokens(id, tokens));
        };
        if self.open.contains_key(&id) {
            return Err(Misuse::Twice(id));
        }
        self.turn_to(t);
        let body = text::prompt(blocks, self.fleet.block_tokens, length, id);
        let request = InferenceRequest {
            id: id.to_string().into(),
            received_at: at(t),
            path: "/v1/completions".into(),
            model: "replay".into(),
            target_model: "replay".into(),
            prompts: smallvec![Prompt { segments: smallvec![Segment::Body(0..body.len())] }],
            body,
            stream: self.streamed,
            fairness_id: "default-flow".into(),
            ..InferenceRequest::default()
        };
        match self.director.submit(request, None, true) {
            Submitted::Decided(decided) => self.decided(id, decided.1, length),
            Submitted::Held(held) => {
                let waker = Waker::from(Arc::new(HeldWaker { id, woken: Arc::clone(&self.woken) }));
                self.open.insert(id, Open::Held { held: Box::pin(held), waker, tokens: length });
                self.held += 1;
                self.poll(id);
                self.plan();
            }
        }
        Ok(())
    }

    /// The first token of a request is out at second `t`.
    ///
    /// # Errors
    /// [`Misuse::NoSuchRequest`], also for one that is held.
    pub fn first_token(&mut self, t: f64, id: u64) -> Result<(), Misuse> {
        self.turn_to(t);
        let Some(Open::Sent { watches, started, .. }) = self.open.get_mut(&id) else {
            return Err(Misuse::NoSuchRequest(id));
        };
        if !std::mem::replace(started, true) {
            start(watches, &self.answer_headers, at(t));
        }
        self.plan();
        Ok(())
    }

    /// A request ended at second `t`; its server says how many prompt tokens it had cached.
    ///
    /// # Errors
    /// [`Misuse::NoSuchRequest`], also for one that is held.
    pub fn done(&mut self, t: f64, id: u64, cached_tokens: Option<u64>) -> Result<(), Misuse> {
        self.turn_to(t);
        match self.open.remove(&id) {
            Some(Open::Sent { mut watches, tokens, started }) => {
                let now = at(t);
                if !started {
                    // An answer in one piece: its first bytes are its last.
                    start(&mut watches, &self.answer_headers, now);
                }
                let usage = Usage { prompt_tokens: Some(tokens.into()), cached_tokens, completion_tokens: None };
                for watch in &mut watches {
                    watch.finished(&End { outcome: Outcome::Completed, usage, now });
                }
            }
            Some(held) => {
                self.open.insert(id, held);
                return Err(Misuse::NoSuchRequest(id));
            }
            None => return Err(Misuse::NoSuchRequest(id)),
        }
        self.plan();
        Ok(())
    }

    /// The time that [`Picker::wake`] asked for has come, or any other.
    pub fn tick(&mut self, t: f64) {
        self.turn_to(t);
        self.plan();
    }

    /// When the picker wants to be asked again, in seconds; only while something is held.
    pub fn wake(&self) -> Option<f64> {
        self.next_plan.filter(|_| self.held > 0).map(|at| (at.0.saturating_sub(START)) as f64 / 1e6)
    }

    /// Requests that are held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves what was sent since the last call to `out`.
    pub fn take_sent(&mut self, out: &mut Vec<Sent>) {
        out.append(&mut self.sent);
    }

    /// What was refused since the last call.
    pub fn take_refused(&mut self) -> Vec<(u64, Rejection)> {
        std::mem::take(&mut self.refused)
    }

    fn turn_to(&mut self, t: f64) {
        self.clock.advance_to(at(t));
        if std::mem::take(&mut self.unpublished) {
            self.pool.publish_now();
        }
    }

    fn plan(&mut self) {
        if self.held == 0 {
            return;
        }
        self.next_plan = self.director.plan();
        std::mem::swap(&mut self.woken_before, &mut self.woken.lock());
        for i in 0..self.woken_before.len() {
            self.poll(self.woken_before[i]);
        }
        self.woken_before.clear();
    }

    fn poll(&mut self, id: u64) {
        let Some(Open::Held { held, waker, tokens }) = self.open.get_mut(&id) else { return };
        let tokens = *tokens;
        if let Poll::Ready(decided) = held.as_mut().poll(&mut Context::from_waker(waker)) {
            self.open.remove(&id);
            self.held -= 1;
            self.decided(id, decided.1, tokens);
        }
    }

    fn decided(&mut self, id: u64, result: Result<Committed, Rejection>, tokens: u32) {
        match result {
            Ok(Committed { decision, signals, watches, .. }) => {
                let slot = decision.destination().slot;
                let predicted_tokens = signals.prefix.first().map_or(0, |m| m.tokens(slot));
                self.open.insert(id, Open::Sent { watches, tokens, started: false });
                self.sent.push(Sent { id, pod: self.pods[slot.index()], predicted_tokens });
            }
            Err(rejection) => self.refused.push((id, rejection)),
        }
    }
}

/// The answer begins: headers, then its first bytes.
fn start(watches: &mut [Box<dyn Watch>], headers: &Headers, now: Timestamp) {
    let mut added = Vec::new();
    for watch in &mut *watches {
        watch.response_headers(&ResponseStart { status: 200, headers, served: &Served::Unreported, now }, &mut added);
    }
    for watch in watches {
        watch.first_token(now);
    }
}

/// Second `t` on the picker's clock.
fn at(t: f64) -> Timestamp {
    // A float that is too large for the integer saturates, and one below 0 is 0.
    Timestamp(START.saturating_add((t * 1e6).round() as u64))
}

fn address(pod: usize) -> SocketAddr {
    let [_, _, high, low] = (pod as u32).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high, low)), 8000)
}

fn spec(pod: usize) -> EndpointSpec {
    EndpointSpec {
        name: format!("pod-{pod}"),
        namespace: "replay".into(),
        address: address(pod),
        rank: 0,
        incarnation: 0,
        labels: Default::default(),
    }
}
