//! The order of work between "the request is complete" and "this is its endpoint", and the exchange
//! that follows one request to its end.
//!
//! Steps (protocol 3.4): objective (priority) and fairness id, dialect by path, parse, model rewrite by header
//! and rule, candidates = subset ∩ pool, admission, producers, scheduling, the `prefer: if-available` check,
//! commit.
//!
//! **Holding.** With just-in-time dispatch a request may wait between its decision and the commit; see
//! [`dispatch`]. A decision that does not go is thrown away: it changed nothing, it is in no metric and takes nobody's
//! place among those that are sampled. Those in the queue are decided about often and not explained; whoever is let go
//! from there and is to be explained is decided about once more, with the same facts and the same random numbers.
//!
//! **Admission.** A request of negative priority is refused (429) where the candidates are full; one integer
//! is all that other requests pay for it. If nothing is known of the load the request passes, and the log says
//! so once a minute.
//!
//! **Picking and reserving are one step.** A decision reads the work in flight, chooses, and reserves
//! what it chose. Two threads that did this side by side would both see the same idle endpoint, so a
//! reservation is only made if no other one was made since this decision read the counters; else the
//! decision is made again (a few microseconds; the body is not parsed and the prompt not hashed
//! again). See [`claim`]. With no plugin that reserves the check costs nothing.
//!
//! Rejected: a mutex around decide and commit (one slow decision would stop all), and reserving
//! before choosing (nothing to reserve yet).

pub mod claim;
pub mod decisions;
pub mod dispatch;
mod exchange;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::dialect::{Dialects, Wants};
use crate::domain::{Decision, EndpointSet, InferenceRequest, Policies, Rejection, Signals, Slot, Snapshot, Timestamp};
use crate::extproc::{Exchanges, SubsetHint};
use crate::lifecycle::clock::Clock;
use crate::pool::Pool;
use crate::scheduling::detectors::Saturation;
use crate::scheduling::dispatch::{Dispatch, DispatchMode};
use crate::scheduling::plugin::{Commit, Cycle, Producer, Routed, SaturationDetector, TestSwitches, Watch};
use crate::scheduling::profile::{Laps, Scratch};
use crate::scheduling::scheduler::Scheduler;
use crate::telemetry::metrics::{Metrics, PrefixMetrics};
use crate::telemetry::trace::{RequestTrace, Traces, kind_of};

use claim::Claims;
use decisions::DecisionLog;
use dispatch::hold::Hold;

pub use exchange::DirectedExchange;

/// One decision of this many is observed plugin by plugin, so that observing costs nothing that shows.
const TIMED_EVERY: u32 = 64;

/// Time between two warnings that sheddable requests pass unchecked.
const UNCHECKED_EVERY: Duration = Duration::from_secs(60);

/// A producer with the names that metrics use.
#[derive(Clone)]
pub struct NamedProducer {
    /// Plugin name.
    pub name: Arc<str>,
    /// Plugin type.
    pub kind: &'static str,
    /// The producer.
    pub producer: Arc<dyn Producer>,
}

/// What the director is told by flags and configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is read from bodies.
    pub wants: Wants,
    /// Whether token counts of answers are read.
    pub reads_usage: bool,
    /// `--disable-endpoint-subset-filter`.
    pub ignore_subset: bool,
    /// `--emit-endpoint-scores`.
    pub emit_scores: bool,
    /// One log line per request.
    pub access_log: bool,
    /// Seed of the random numbers in picks and model rewrites, for each thread that decides; `None` draws one.
    pub seed: Option<u64>,
    /// What test plugins switch.
    pub test: TestSwitches,
}

/// What the director works with.
pub struct Parts {
    /// Endpoints and loads.
    pub pool: Arc<Pool>,
    /// Profiles and handler.
    pub scheduler: Scheduler,
    /// Producers in dependency order.
    pub producers: Vec<NamedProducer>,
    /// Name and type of each prefix producer, by ordinal.
    pub prefix_producers: Vec<(Arc<str>, &'static str)>,
    /// Committers.
    pub commits: Vec<(Arc<str>, Arc<dyn Commit>)>,
    /// Name and type of every plugin, for metric labels.
    pub plugins: Vec<(Arc<str>, &'static str)>,
    /// Says how full the pool is, for requests of negative priority; without it none is refused.
    pub saturation: Option<Arc<dyn SaturationDetector>>,
    /// When requests are sent; at once without it.
    pub dispatch: Option<Arc<Dispatch>>,
    /// Dialects by path.
    pub dialects: Dialects,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Traces, if they are exported.
    pub traces: Option<Arc<Traces>>,
    /// The last decisions, if any are kept.
    pub decisions: Arc<DecisionLog>,
    /// Settings.
    pub settings: Settings,
}

/// Decides for every request of one pool.
pub struct Director {
    parts: Parts,
    /// Tells this director from others of the process, whose random numbers a thread may have left behind.
    id: u64,
    claims: Claims,
    reserves: bool,
    prefix_metrics: Vec<Arc<PrefixMetrics>>,
    /// The policies whose models have their own label values.
    pinned: ArcSwapOption<Policies>,
    /// When it was last said that a sheddable request passed unchecked, in microseconds; 0 is never.
    unchecked: AtomicU64,
    /// What is held, if anything ever is.
    hold: Option<Arc<Hold>>,
}

/// What one thread reuses from decision to decision.
struct Local {
    scratch: Scratch,
    candidates: Vec<Slot>,
    /// Random numbers, with the director that they are for.
    rng: Option<(u64, fastrand::Rng)>,
    decisions: u32,
}

/// The id of the next director.
static DIRECTORS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static LOCAL: RefCell<Local> =
        RefCell::new(Local { scratch: Scratch::default(), candidates: Vec::new(), rng: None, decisions: 0 });
}

impl Director {
    /// A director over `parts`.
    pub fn new(parts: Parts) -> Self {
        let reserves =
            parts.producers.iter().any(|p| p.producer.is_volatile()) || parts.commits.iter().any(|(_, c)| c.reserves());
        let prefix_metrics =
            parts.prefix_producers.iter().map(|(name, kind)| parts.metrics.prefix_index(name, kind)).collect();
        let on = |dispatch: &&Arc<Dispatch>| dispatch.mode != DispatchMode::Off;
        let hold = parts.dispatch.as_ref().filter(on).map(|dispatch| {
            let hold = Arc::new(Hold::new(Arc::clone(dispatch)));
            hold.show(&parts.metrics);
            hold
        });
        Self {
            parts,
            id: DIRECTORS.fetch_add(1, Ordering::Relaxed),
            hold,
            claims: Claims::default(),
            reserves,
            prefix_metrics,
            pinned: ArcSwapOption::empty(),
            unchecked: AtomicU64::new(0),
        }
    }

    /// The parts, for the process around it.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Chooses endpoints for a request and commits the choice if its gate lets it. What is traced, and a
    /// sample of all decisions besides, is observed plugin by plugin.
    fn route(
        &self,
        ask: Ask<'_>,
        signals: &mut Signals,
        trace: Option<&mut RequestTrace>,
    ) -> Result<Choice, Rejection> {
        let routed = self.route_observed(ask, signals, trace.is_some());
        let waits = matches!(routed, Ok(Choice::Waits));
        let observed = LOCAL.with_borrow_mut(|local| {
            local.decisions = local.decisions.wrapping_add(u32::from(!waits));
            local.scratch.laps.take()
        });
        if let Some(laps) = observed.filter(|_| !waits) {
            self.observe_laps(&laps);
            if let Some(trace) = trace {
                trace.observed(laps);
            }
        }
        routed
    }

    fn route_observed(&self, ask: Ask<'_>, signals: &mut Signals, traced: bool) -> Result<Choice, Rejection> {
        let Ask { request, subset, mut facts, mut gate } = ask;
        let parts = &self.parts;
        let mut attempts = 0;
        let mut recorded = false;
        LOCAL.with_borrow_mut(|local| {
            let Local { scratch, candidates, rng, decisions } = local;
            // Every 64th decision of a thread, the first included.
            scratch.laps = (traced || decisions.is_multiple_of(TIMED_EVERY)).then(|| {
                let clock = Arc::clone(&parts.clock);
                Laps::start(move || clock.now())
            });
            let rng = seeded(rng, self.id, parts.settings.seed);
            let subset = self.subset_for(request, subset);
            loop {
                let seen = self.claims.seen();
                let snapshot = parts.pool.snapshot();
                candidates.clear();
                candidates_of(&snapshot, subset, candidates);
                if candidates.is_empty() {
                    return Err(Rejection::no_endpoints());
                }
                if request.priority < 0 && facts == Facts::None {
                    self.admit(&snapshot, candidates)?;
                }
                signals.now = parts.clock.now();
                for NamedProducer { name, producer, .. } in &parts.producers {
                    match facts {
                        Facts::Known if !producer.is_volatile() => continue,
                        Facts::Stale => producer.refresh(request, &snapshot, signals),
                        _ => producer.produce(request, &snapshot, signals),
                    }
                    lap(scratch, "DataProducer", name);
                }
                facts = Facts::Known;
                if let Some(gate) = &mut gate {
                    gate.promise(signals);
                }
                let now = parts.clock.now();
                recorded = recorded || attempts == 0 && parts.decisions.wants(request, now);
                let explain = recorded || parts.settings.emit_scores;
                let refuses_often = gate.as_ref().is_some_and(|gate| gate.refuses_often());
                let drawn = rng.get_seed();
                let cycle = Cycle { request, snapshot: &snapshot, signals, now };
                let scheduled = parts.scheduler.schedule(&cycle, candidates, rng, scratch, explain && !refuses_often);
                let took = parts.clock.now().since(now);
                let lacks_prefix = |decision: &Decision| {
                    request.headers.get("prefer").is_some_and(|v| v.eq_ignore_ascii_case("if-available"))
                        && !holds_prefix(signals, decision.destination().slot)
                };
                if let (Ok(decision), Some(gate)) = (&scheduled, &mut gate)
                    && !lacks_prefix(decision)
                    && !gate.lets(&cycle, candidates, decision.destination().slot)
                {
                    return Ok(Choice::Waits);
                }
                parts.metrics.observe_scheduling(took);
                if scheduled.is_err() {
                    parts.metrics.scheduler_attempt(&request.target_model, None);
                }
                let mut decision = scheduled?;
                if lacks_prefix(&decision) {
                    return Err(Rejection::PreconditionFailed("no decode worker has the requested KV cache".into()));
                }
                if explain {
                    if refuses_often {
                        self.explain(&cycle, candidates, drawn, scratch, &mut decision);
                    }
                    let explained = decision.profiles.iter_mut().filter_map(|p| p.explanation.as_deref_mut());
                    explained.for_each(|why| why.scores_only = !recorded);
                }
                attempts += 1;
                let claim = if self.reserves { self.claims.claim(seen, attempts) } else { claim::Claim::free() };
                let Some(claim) = claim.granted() else { continue };
                if recorded {
                    parts.decisions.count(now);
                }
                let routed = Routed { request, decision: &decision, signals, now };
                let mut watches = Vec::with_capacity(parts.commits.len() + 1);
                let mut commit = |reserving: bool| {
                    if let Some(laps) = &mut scratch.laps {
                        laps.restart();
                    }
                    for (name, commit) in parts.commits.iter().filter(|(_, c)| c.reserves() == reserving) {
                        watches.extend(commit.commit(&routed));
                        lap(scratch, "PreRequest", name);
                    }
                };
                commit(true);
                drop(claim);
                commit(false);
                parts.metrics.scheduler_attempt(&request.target_model, Some(decision.destination()));
                return Ok(Choice::Sent(decision, watches));
            }
        })
    }

    /// Explains a `decision` that was made without: makes it again with what was `drawn` for it.
    #[cold]
    fn explain(
        &self,
        cycle: &Cycle<'_>,
        candidates: &[Slot],
        drawn: u64,
        scratch: &mut Scratch,
        decision: &mut Decision,
    ) {
        // What is observed is the first time.
        let laps = scratch.laps.take();
        let mut rng = fastrand::Rng::with_seed(drawn);
        let again = self.parts.scheduler.schedule(cycle, candidates, &mut rng, scratch, true);
        scratch.laps = laps;
        for (profile, again) in decision.profiles.iter_mut().zip(again.into_iter().flat_map(|again| again.profiles)) {
            // A picker that counts its picks may choose another one now; what it chose from is the same.
            profile.explanation = again.explanation.filter(|_| again.profile == profile.profile);
        }
    }

    /// The subset hint that counts for `request`.
    fn subset_for<'s>(&self, request: &InferenceRequest, subset: Option<&'s SubsetHint>) -> Option<&'s SubsetHint> {
        // Of a director without test plugins this is one test.
        let pinned = self
            .parts
            .settings
            .test
            .beats_subset
            .is_some_and(|name| request.headers.get(name).is_some_and(|value| !value.trim().is_empty()));
        subset.filter(|_| !self.parts.settings.ignore_subset && !pinned)
    }

    /// Finds the facts of a request that will wait whatever they are.
    fn facts(
        &self,
        request: &InferenceRequest,
        subset: Option<&SubsetHint>,
        signals: &mut Signals,
        order: impl FnOnce(&Cycle<'_>, &[Slot]),
    ) -> Result<(), Rejection> {
        let snapshot = self.parts.pool.snapshot();
        let mut candidates = Vec::new();
        candidates_of(&snapshot, self.subset_for(request, subset), &mut candidates);
        if candidates.is_empty() {
            return Err(Rejection::no_endpoints());
        }
        if request.priority < 0 {
            self.admit(&snapshot, &candidates)?;
        }
        let now = self.parts.clock.now();
        signals.now = now;
        for NamedProducer { producer, .. } in &self.parts.producers {
            producer.produce(request, &snapshot, signals);
        }
        order(&Cycle { request, snapshot: &snapshot, signals, now }, &candidates);
        Ok(())
    }
}

/// What is decided about.
struct Ask<'a> {
    request: &'a InferenceRequest,
    subset: Option<&'a SubsetHint>,
    facts: Facts,
    /// Says whether the choice may be acted on; always without one.
    gate: Option<&'a mut dyn Gate>,
}

/// What is known of a request already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Facts {
    /// Nothing: it is new.
    None,
    /// Everything, but some time ago.
    Stale,
    /// Everything but what changes with each reservation.
    Known,
}

/// Who decides whether a request is sent now.
trait Gate {
    /// Whether most that it is asked about wait, so that a choice is explained only after it was let.
    fn refuses_often(&self) -> bool {
        true
    }
    /// Adds what is promised to those before it.
    fn promise(&mut self, _signals: &mut Signals) {}
    /// Prefill time in seconds at the destination that it was last asked about, for those who keep count.
    fn prefill(&self) -> f32 {
        0.0
    }
    /// Whether it may go to `destination`.
    fn lets(&mut self, cycle: &Cycle<'_>, candidates: &[Slot], destination: Slot) -> bool;
}

/// What came of it.
enum Choice {
    /// Chosen and committed.
    Sent(Decision, Vec<Box<dyn Watch>>),
    /// Its gate did not let it.
    Waits,
}

impl Director {
    /// Refuses what may be shed where `candidates` are full.
    #[cold]
    fn admit(&self, snapshot: &Snapshot, candidates: &[Slot]) -> Result<(), Rejection> {
        let Some(detector) = &self.parts.saturation else { return Ok(()) };
        let now = self.parts.clock.now();
        match Saturation::of(detector.as_ref(), snapshot, candidates, now).effective() {
            Some(full) if full >= 1.0 => Err(Rejection::shed()),
            Some(_) => Ok(()),
            None => {
                let said = self.unchecked.load(Ordering::Relaxed);
                let silent = Timestamp(said);
                let due = said == 0 || now.since(silent) >= UNCHECKED_EVERY;
                let mine = |at: u64| self.unchecked.compare_exchange(said, at, Ordering::Relaxed, Ordering::Relaxed);
                if due && mine(now.0.max(1)).is_ok() {
                    tracing::warn!(
                        "a sheddable request passed unchecked: no endpoint has a load sample that is fresh enough; \
                         are metrics scraped, and more often than metricsStalenessThreshold?"
                    );
                }
                Ok(())
            }
        }
    }

    /// Lets the models of `policies` keep their own label values, whatever clients send.
    fn pin_models(&self, policies: &Arc<Policies>) {
        if self.pinned.load().as_ref().is_none_or(|pinned| !Arc::ptr_eq(pinned, policies)) {
            self.parts.metrics.pin_models(policies.models());
            self.pinned.store(Some(Arc::clone(policies)));
        }
    }

    /// A time of the clock as milliseconds of wall time, which processes have in common.
    fn wall_millis(&self, micros: u64) -> i64 {
        let clock = &self.parts.clock;
        let (now, wall) = (clock.now(), clock.wall());
        let wall = wall.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let to_go = micros as i64 / 1000 - now.0 as i64 / 1000;
        wall.saturating_add(to_go)
    }

    /// A random number below `below`, which must not be 0.
    fn draw(&self, below: u64) -> u64 {
        LOCAL.with_borrow_mut(|local| seeded(&mut local.rng, self.id, self.parts.settings.seed).u64(..below))
    }

    /// Observes the times and scores of a decision.
    fn observe_laps(&self, observed: &Laps) {
        for lap in &observed.laps {
            let kind = kind_of(&self.parts.plugins, &lap.name);
            self.parts.metrics.plugin(lap.point, kind, &lap.name).observe(lap.took);
        }
        for run in &observed.runs {
            self.parts.metrics.record_scores(run);
        }
    }
}

/// The random numbers of this thread for `director`. They begin anew with another director, so that what one run
/// of a replay draws does not depend on the runs before it.
fn seeded(rng: &mut Option<(u64, fastrand::Rng)>, director: u64, seed: Option<u64>) -> &mut fastrand::Rng {
    if rng.as_ref().is_none_or(|(of, _)| *of != director) {
        *rng = None;
    }
    let new = || (director, seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed));
    &mut rng.get_or_insert_with(new).1
}

/// Ends the lap of a plugin, if this decision is timed.
fn lap(scratch: &mut Scratch, point: &'static str, name: &Arc<str>) {
    if let Some(laps) = &mut scratch.laps {
        laps.lap(point, name);
    }
}

/// Whether any producer believes that `slot` holds a block of the prompt.
fn holds_prefix(signals: &Signals, slot: Slot) -> bool {
    signals.prefix.iter().any(|m| m.blocks(slot) > 0)
}

/// The endpoints that the data plane allows, in slot order (protocol 1.3).
fn candidates_of(snapshot: &Snapshot, subset: Option<&SubsetHint>, out: &mut Vec<Slot>) {
    let topology = &snapshot.topology;
    match subset {
        None => out.extend_from_slice(topology.live_slots()),
        Some(hint) => {
            let mut allowed = EndpointSet::new();
            for entry in &hint.entries {
                topology.add_named(entry, &mut allowed);
            }
            out.extend(allowed.iter());
        }
    }
}

/// The [`Exchanges`] of a shared director.
#[derive(Clone)]
pub struct Directed(pub Arc<Director>);

impl Exchanges for Directed {
    type Exchange = DirectedExchange;

    fn open(&self) -> DirectedExchange {
        DirectedExchange::open(Arc::clone(&self.0))
    }
}
