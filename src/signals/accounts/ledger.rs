//! The ledger behind `prefill-account-producer`: one account per endpoint and one of the whole flow of
//! requests. It has no clock; every operation is told the time, so that a replay runs it in virtual time.
//!
//! **Writers** change an account under its own small mutex, in exact numbers (f64, integers), and publish the
//! result as plain atomics. **Readers** ([`Ledger::view`]) read those atomics and take no lock. In one thread
//! a reader sees exactly what was written, so one order of events has one outcome.
//!
//! A reader in another thread may see one half of a write. What that can do:
//!
//! - outstanding and finish of different writes: the wait is clamped between a tenth of the outstanding
//!   prefill and all of it, so it is wrong by one request at most, as if the reader had come a moment earlier
//!   for one of the two;
//! - tokens and seconds of the rate of different writes: 2 % of one endpoint's own half of the rate;
//! - a decayed sum and its time of different writes: a factor e^(-dt/60) where dt is the time between two
//!   requests to one endpoint.
//!
//! All of this is gone at the next read. Decisions that reserve are ordered by the director's claim, so a
//! decision that counts has seen all reservations before it in full.
//!
//! Bounds: one account per slot, replaced when the slot gets another endpoint; at most 4096 foretold
//! ends per endpoint.
//!
//! Rejected: one lock around all accounts (every first token of every request would wait for every decision);
//! a sequence lock per endpoint (readers would retry under load for an accuracy that means nothing here);
//! summing the decayed flow of the endpoints at each read (one exponential more per endpoint).

mod flow;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::domain::{Account, AccountView, Endpoint, Timestamp, Topology};

use flow::Flow;
use state::{Due, State};

/// Time to the first token that is not prefill, in seconds: network both ways, parsing, tokenizing, scheduling
/// and the first decode step come to 10 to 30 ms on the engines that were looked at. It keeps short prompts
/// from looking like slow ones; the rate is learnt from long ones, where it does not matter.
pub const FIXED_SECONDS: f64 = 0.02;

/// Prompts with no more uncached tokens than this teach no rate: [`FIXED_SECONDS`] is most of their time.
pub const MIN_SAMPLE_TOKENS: u64 = 256;

/// Seconds over which the prefill load of one endpoint is averaged: longer than the pool's, since it has
/// fewer requests.
const LOAD_SECONDS: f64 = 60.0;

/// Seconds over which the intake of an endpoint is remembered, [`INTAKE_PER_LOAD`] times [`LOAD_SECONDS`].
const INTAKE_SECONDS: f64 = 300.0;
const INTAKE_PER_LOAD: i32 = 5;

/// Charged for one request at most, so that no claim of a client can overflow a sum.
const MAX_TOKENS: u64 = 1 << 40;

/// What a ledger is told by the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Prefill rate that is believed before the first samples, in tokens per second.
    pub initial_rate: f64,
    /// Lowest rate that is believed.
    pub min_rate: f64,
    /// Highest rate that is believed.
    pub max_rate: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { initial_rate: 10_000.0, min_rate: 500.0, max_rate: 200_000.0 }
    }
}

/// An `f32` that is read without a lock.
#[derive(Debug, Default)]
struct Published(AtomicU32);

impl Published {
    fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    fn set(&self, value: f64) {
        self.0.store((value as f32).to_bits(), Relaxed);
    }
}

/// The accounts of a pool.
#[derive(Debug)]
pub struct Ledger {
    settings: Settings,
    accounts: ArcSwap<Vec<Option<Arc<EndpointAccount>>>>,
    /// Held while `accounts` is replaced.
    growing: Mutex<()>,
    flow: Flow,
}

impl Ledger {
    /// A ledger without accounts.
    pub fn new(settings: Settings) -> Self {
        Self { settings, accounts: ArcSwap::default(), growing: Mutex::default(), flow: Flow::default() }
    }

    /// What it was told.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Writes the accounts of all endpoints of `topology` at `now`, or at the last arrival if that is later, to `view`.
    ///
    /// The rate of an endpoint is half its own and half the pool's; of one that has not taught anything yet
    /// it is the pool's, and the initial one if nobody has.
    pub fn view(&self, topology: &Topology, now: Timestamp, view: &mut AccountView) {
        // A clock that runs late would make every wait as long as it can be.
        let now = now.max(self.flow.last());
        let accounts = self.accounts.load();
        let endpoints = &mut view.endpoints;
        endpoints.clear();
        endpoints.resize(topology.capacity(), Account::default());
        let (mut tokens, mut seconds, mut samples, mut missing) = (0.0f64, 0.0f64, 0u32, false);
        for endpoint in topology.endpoints() {
            let slot = endpoint.slot.index();
            let Some(known) = accounts.get(slot).and_then(Option::as_ref) else {
                missing = true;
                continue;
            };
            if known.generation != endpoint.generation {
                missing |= known.generation < endpoint.generation;
                continue;
            }
            let own = &known.published;
            if own.next_due.load(Relaxed) <= now.0 {
                known.try_lapse(now);
            }
            let taught = own.samples.load(Relaxed);
            let mut rate = 0.0;
            if taught > 0 {
                let (own_tokens, own_seconds) = (own.rate_tokens.get(), own.rate_seconds.get());
                rate = own_tokens / own_seconds;
                tokens += f64::from(own_tokens);
                seconds += f64::from(own_seconds);
                samples = samples.saturating_add(taught);
            }
            if let Some(account) = endpoints.get_mut(slot) {
                *account = own.read(now, rate);
            }
        }
        let pool = if seconds > 0.0 { tokens / seconds } else { self.settings.initial_rate };
        let (least, most) = (self.settings.min_rate as f32, self.settings.max_rate as f32);
        let pool = pool as f32;
        for account in endpoints.iter_mut() {
            let own = if account.rate > 0.0 { account.rate } else { pool };
            account.rate = (0.5 * (own + pool)).max(least).min(most);
        }
        view.samples = samples;
        self.flow.read(now, topology.len(), view);
        if missing {
            self.open(topology);
        }
    }

    /// Opens the accounts that `topology` lacks, all at once: copying the table for each would be quadratic.
    #[cold]
    fn open(&self, topology: &Topology) {
        let _growing = self.growing.lock();
        let mut accounts = Vec::clone(&self.accounts.load());
        for endpoint in topology.endpoints() {
            self.open_in(&mut accounts, endpoint);
        }
        self.accounts.store(Arc::new(accounts));
    }

    fn open_in(&self, accounts: &mut Vec<Option<Arc<EndpointAccount>>>, endpoint: &Endpoint) -> Arc<EndpointAccount> {
        let slot = endpoint.slot.index();
        if accounts.len() <= slot {
            accounts.resize(slot + 1, None);
        }
        let place = &mut accounts[slot];
        match place {
            // A decision on an older snapshot must not undo the newer one.
            Some(known) if known.generation == endpoint.generation => Arc::clone(known),
            Some(known) if known.generation > endpoint.generation => {
                Arc::new(EndpointAccount::new(endpoint, &self.settings))
            }
            _ => {
                let fresh = Arc::new(EndpointAccount::new(endpoint, &self.settings));
                *place = Some(Arc::clone(&fresh));
                fresh
            }
        }
    }

    fn account(&self, endpoint: &Endpoint) -> Arc<EndpointAccount> {
        if let Some(Some(known)) = self.accounts.load().get(endpoint.slot.index())
            && known.generation == endpoint.generation
        {
            return Arc::clone(known);
        }
        let _growing = self.growing.lock();
        let mut accounts = Vec::clone(&self.accounts.load());
        let account = self.open_in(&mut accounts, endpoint);
        self.accounts.store(Arc::new(accounts));
        account
    }

    /// Counts a request that was routed at `now` with prefill work of `cost` seconds in all.
    pub fn arrived(&self, cost: f64, now: Timestamp) {
        self.flow.arrived(cost, now);
    }

    /// Learns how long a request that ended well stayed.
    pub fn stayed(&self, stay: Duration) {
        self.flow.stayed(stay);
    }

    /// Charges `endpoint` with its `share` of a request that was routed at `now`.
    pub fn charge(&self, endpoint: &Endpoint, share: Share, now: Timestamp) -> Charge {
        let account = self.account(endpoint);
        let share = Share { tokens: share.tokens.min(MAX_TOKENS), ..share };
        let (finish, due) = account.write(|state| state.routed(&share, now));
        Charge { account, share, routed: now, finish, due, prefilling: true, in_flight: true }
    }

    /// `endpoint` left: its account is no longer shown. Requests that still run there settle with it.
    pub fn closed(&self, endpoint: &Endpoint) {
        if let Some(Some(known)) = self.accounts.load().get(endpoint.slot.index())
            && known.generation == endpoint.generation
        {
            known.closed.store(true, Relaxed);
        }
    }

    /// The accounts of endpoints that have not left, as JSON, at most `limit` of them.
    pub fn describe(&self, limit: usize) -> serde_json::Value {
        let accounts = self.accounts.load();
        let open = accounts.iter().flatten().filter(|a| !a.closed.load(Relaxed));
        let endpoints: Vec<_> = open.take(limit).map(|a| a.describe()).collect();
        let mut view = AccountView::default();
        self.flow.read(self.flow.last(), 1, &mut view);
        serde_json::json!({
            "arrivalsPerSecond": view.arrivals,
            "prefillSecondsPerSecond": view.load,
            "meanPrefillSeconds": view.mean_prefill,
            "meanStaySeconds": view.mean_stay,
            "endpoints": endpoints,
        })
    }
}

/// What a request means for one endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Uncached prompt tokens.
    pub tokens: u64,
    /// Estimated prefill time in seconds; `None` if another endpoint computes the prompt and this one only
    /// needs room for it.
    pub cost: Option<f64>,
    /// Whether the first token will be noticed; if not, the prefill counts as over when it was foretold to be (at once
    /// for a share without a cost).
    pub noticed: bool,
}

impl Share {
    fn seconds(&self) -> f64 {
        self.cost.unwrap_or(0.0)
    }
}

/// The account of one endpoint.
#[derive(Debug)]
struct EndpointAccount {
    generation: u64,
    slot: u32,
    name: Box<str>,
    closed: AtomicBool,
    state: Mutex<State>,
    published: PublishedAccount,
}

/// What readers see of a [`State`].
#[derive(Debug, Default)]
struct PublishedAccount {
    outstanding: Published,
    finish: AtomicU64,
    prefill_tokens: Published,
    prefilling: AtomicU32,
    in_flight: AtomicU32,
    rate_tokens: Published,
    rate_seconds: Published,
    samples: AtomicU32,
    load: Published,
    intake: Published,
    decayed_at: AtomicU64,
    /// When the next foretold prefill ends, in microseconds.
    next_due: AtomicU64,
}

impl PublishedAccount {
    fn publish(&self, state: &State) {
        self.outstanding.set(state.outstanding);
        self.finish.store(state.finish.0, Relaxed);
        self.prefill_tokens.set(state.prefill_tokens as f64);
        self.prefilling.store(state.prefilling, Relaxed);
        self.in_flight.store(state.in_flight, Relaxed);
        self.rate_tokens.set(state.rate_tokens);
        self.rate_seconds.set(state.rate_seconds);
        self.samples.store(state.samples, Relaxed);
        self.load.set(state.load);
        self.intake.set(state.intake);
        self.decayed_at.store(state.decayed_at.0, Relaxed);
        self.next_due.store(state.foretold.first_key_value().map_or(u64::MAX, |((due, _), _)| due.0), Relaxed);
    }

    fn read(&self, now: Timestamp, rate: f32) -> Account {
        let (mut load, mut intake) = (self.load.get(), self.intake.get());
        if intake > 0.0 || load > 0.0 {
            // One exponential serves both: the times are chosen so that one is a whole power of the other.
            let kept = (-seconds(now, Timestamp(self.decayed_at.load(Relaxed))) as f32 / INTAKE_SECONDS as f32).exp();
            intake *= kept;
            load *= kept.powi(INTAKE_PER_LOAD) / LOAD_SECONDS as f32;
        }
        Account {
            outstanding: self.outstanding.get(),
            backlog: seconds(Timestamp(self.finish.load(Relaxed)), now) as f32,
            rate,
            prefill_tokens: self.prefill_tokens.get(),
            prefilling: self.prefilling.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            load,
            intake,
            ahead: 0.0,
        }
    }
}

/// Seconds from `earlier` to `later`, 0 if it is the other way round.
fn seconds(later: Timestamp, earlier: Timestamp) -> f64 {
    later.0.saturating_sub(earlier.0) as f64 * 1e-6
}

fn moved(time: Timestamp, by: f64) -> Timestamp {
    // A float that is too large for the integer saturates.
    Timestamp(time.0.saturating_add((by * 1e6).round() as u64))
}

impl EndpointAccount {
    fn new(endpoint: &Endpoint, settings: &Settings) -> Self {
        let state = State::new(settings);
        let published = PublishedAccount::default();
        published.publish(&state);
        Self {
            generation: endpoint.generation,
            slot: endpoint.slot.0,
            name: endpoint.name().into(),
            closed: AtomicBool::new(false),
            state: Mutex::new(state),
            published,
        }
    }

    fn write<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        self.published.publish(&state);
        result
    }

    /// Ends what was foretold to end, unless somebody is writing, who will.
    #[cold]
    fn try_lapse(&self, now: Timestamp) {
        if let Some(mut state) = self.state.try_lock() {
            state.lapse(now);
            self.published.publish(&state);
        }
    }

    fn describe(&self) -> serde_json::Value {
        let state = self.state.lock();
        serde_json::json!({
            "endpoint": self.name,
            "slot": self.slot,
            "outstandingPrefillSeconds": state.outstanding,
            "outstandingPrefillTokens": state.prefill_tokens,
            "prefilling": state.prefilling,
            "inFlight": state.in_flight,
            "ownPrefillRate": state.rate_tokens / state.rate_seconds,
            "samples": state.samples,
            "foretold": state.foretold.len(),
        })
    }
}

/// What one endpoint was charged for one request. Whatever is still charged is given back on `Drop`, without
/// teaching anything.
#[derive(Debug)]
pub struct Charge {
    account: Arc<EndpointAccount>,
    share: Share,
    routed: Timestamp,
    finish: Timestamp,
    due: Option<Due>,
    prefilling: bool,
    in_flight: bool,
}

impl Charge {
    /// The first token came: the prefill is over, and what it took is learnt from. If the end of the prefill
    /// was foretold instead, nothing is learnt.
    pub fn first_token(&mut self, now: Timestamp) {
        let Self { share, routed, .. } = *self;
        self.settle(
            |state, foretold| if foretold { state.prefilled(&share) } else { state.first_token(&share, routed, now) },
        );
    }

    /// The prefill is over, and when it was is not known.
    pub fn prefilled(&mut self) {
        let share = self.share;
        self.settle(|state, _| state.prefilled(&share));
    }

    /// Nothing more will be heard of the request: its prefill ends when it was foretold to.
    pub fn lost(&mut self) {
        if std::mem::take(&mut self.prefilling) && self.due.take().is_none() {
            let Self { share, finish, .. } = *self;
            self.account.write(|state| state.foretell(&share, finish));
        }
    }

    /// The prefill will not happen: as if the request had never been routed here, but for the averages of
    /// what was asked for.
    pub fn cancel(&mut self) {
        let share = self.share;
        self.settle(|state, _| {
            state.prefilled(&share);
            state.finish = Timestamp(state.finish.0.saturating_sub((share.seconds() * 1e6).round() as u64));
        });
    }

    /// The request has left the endpoint; a prefill that was not over is cancelled.
    pub fn leave(&mut self) {
        self.cancel();
        if std::mem::take(&mut self.in_flight) {
            self.account.write(|state| state.in_flight = state.in_flight.saturating_sub(1));
        }
    }

    /// Once: what to do with the prefill, unless its foretold end has passed.
    fn settle(&mut self, change: impl FnOnce(&mut State, bool)) {
        if !std::mem::take(&mut self.prefilling) {
            return;
        }
        let due = self.due.take();
        self.account.write(|state| match due {
            None => change(state, false),
            Some(due) => {
                if state.foretold.remove(&due).is_some() {
                    change(state, true);
                }
            }
        });
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests;
