//! The single writer of the pool: merges discovery and load samples into one published [`Snapshot`].
//!
//! Discovery replaces or edits the endpoint set; the collector reports samples. Both go through one
//! lock that no decision ever takes: a decision loads the current `Arc<Snapshot>` and keeps it.
//! A change of the endpoint set is published at once; samples are gathered and published together,
//! at most every [`PUBLISH_EVERY`], because a pool of 100 endpoints reports 2,000 times a second and a copy
//! of the columns per report would cost O(endpoints²).
//!
//! A slot is not given to another endpoint before [`SLOT_REST`] has passed, so that a decision still
//! running on an older snapshot cannot teach an index about the wrong endpoint.
//!
//! Rejected: one `ArcSwap` per endpoint (a decision could see half of an update), and a channel to a
//! writer task (a queue that needs a bound, where a lock held for nanoseconds does).

pub mod state;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::domain::{Endpoint, EndpointSpec, LoadSample, Policies, PoolIdentity, Slot, Snapshot, Timestamp, Topology};
use crate::lifecycle::clock::Clock;

pub use state::Key;
use state::{Changes, PoolState};

/// How long samples are gathered before they become visible: a tenth of the default scrape period.
pub const PUBLISH_EVERY: Duration = Duration::from_millis(5);

/// How long a freed slot rests before it is reused.
pub const SLOT_REST: Duration = Duration::from_secs(30);

/// Most endpoints a pool can hold; discovery results beyond it are refused and logged.
pub const MAX_ENDPOINTS: usize = 65_536;

/// Called with each endpoint that left, after the snapshot without it was published.
pub type OnRemoved = Box<dyn Fn(&Endpoint) + Send + Sync>;

/// Shared handle: readers take snapshots, discovery and the collector write.
pub struct Pool {
    state: Mutex<PoolState>,
    current: ArcSwap<Snapshot>,
    policies: ArcSwap<Policies>,
    topology: watch::Sender<Arc<Topology>>,
    dirty: Notify,
    last_edit: AtomicU64,
    clock: Arc<dyn Clock>,
    on_removed: OnRemoved,
}

impl Pool {
    /// An empty pool. Samples older than `stale_after` count as stale.
    pub fn new(identity: PoolIdentity, stale_after: Duration, clock: Arc<dyn Clock>, on_removed: OnRemoved) -> Self {
        let state = PoolState::new(identity, stale_after);
        let snapshot = state.snapshot();
        Self {
            topology: watch::Sender::new(Arc::clone(&snapshot.topology)),
            current: ArcSwap::from_pointee(snapshot),
            policies: ArcSwap::default(),
            state: Mutex::new(state),
            dirty: Notify::new(),
            last_edit: AtomicU64::new(clock.now().0),
            clock,
            on_removed,
        }
    }

    /// The snapshot to decide on. Wait-free; hold it only as long as the decision takes.
    #[inline]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The objectives and rewrites in force. Wait-free.
    #[inline]
    pub fn policies(&self) -> Guard<Arc<Policies>> {
        self.policies.load()
    }

    /// Puts other objectives and rewrites in force, from the next request on. What is wrong with them is
    /// logged when it is new.
    pub fn set_policies(&self, policies: Policies) {
        let before = self.policies.swap(Arc::new(policies));
        for warning in self.policies.load().warnings().iter().filter(|w| !before.warnings().contains(w)) {
            tracing::warn!("{warning}");
        }
    }

    /// Follows changes of the endpoint set (not of the loads).
    pub fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.subscribe()
    }

    /// When discovery last spoke, whether or not it changed anything.
    pub fn last_edit(&self) -> Timestamp {
        Timestamp(self.last_edit.load(Ordering::Acquire))
    }

    /// Makes `specs` the whole endpoint set: what is missing leaves, what is new enters. The result is how
    /// many found no place.
    pub fn replace(&self, specs: Vec<EndpointSpec>) -> usize {
        self.apply(|state, now| state.replace(specs, now))
    }

    /// Takes out what `removed` names, then puts `specs` in, over what has the same namespace and name;
    /// everything else stays. The result is how many found no place.
    pub fn edit(&self, removed: &[Key], specs: Vec<EndpointSpec>) -> usize {
        self.apply(|state, now| state.edit(removed, specs, now))
    }

    fn apply(&self, change: impl FnOnce(&mut PoolState, Timestamp) -> Changes) -> usize {
        let now = self.clock.now();
        self.last_edit.store(now.0, Ordering::Release);
        let changes = {
            let mut state = self.state.lock();
            let changes = change(&mut state, now);
            if !changes.is_empty() {
                self.publish(&state);
                self.topology.send_replace(state.topology());
            }
            changes
        };
        self.announce(&changes);
        changes.refused.len()
    }

    /// Takes a sample of the endpoint of this generation; samples of endpoints that left are dropped.
    pub fn report(&self, slot: Slot, generation: u64, sample: &LoadSample) {
        if self.state.lock().report(slot, generation, sample) {
            self.dirty.notify_one();
        }
    }

    /// Publishes gathered samples for as long as it is polled: the first at once, those that follow within
    /// [`PUBLISH_EVERY`] together.
    pub async fn publish_samples(&self) -> Infallible {
        let mut next = Instant::now();
        loop {
            self.dirty.notified().await;
            // Asked beforehand: a sleep that is over still waits for the next turn of the runtime.
            if Instant::now() < next {
                sleep_until(next).await;
            }
            next = Instant::now() + PUBLISH_EVERY;
            self.publish(&self.state.lock());
        }
    }

    /// Publishes gathered samples now: for replays, which have no task that runs [`Pool::publish_samples`].
    pub fn publish_now(&self) {
        self.publish(&self.state.lock());
    }

    fn publish(&self, state: &PoolState) {
        self.current.store(Arc::new(state.snapshot()));
    }

    fn announce(&self, changes: &Changes) {
        for endpoint in &changes.added {
            tracing::info!(endpoint = endpoint.name(), address = endpoint.destination(), "endpoint added");
        }
        for endpoint in &changes.removed {
            tracing::info!(endpoint = endpoint.name(), address = endpoint.destination(), "endpoint removed");
            (self.on_removed)(endpoint);
        }
        for spec in &changes.refused {
            tracing::warn!(endpoint = spec.name, limit = MAX_ENDPOINTS, "endpoint refused: the pool is full");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::clock::ManualClock;
    use std::sync::atomic::AtomicUsize;

    fn spec(name: &str, address: &str) -> EndpointSpec {
        EndpointSpec {
            name: name.into(),
            namespace: "default".into(),
            address: address.parse().unwrap(),
            rank: 0,
            incarnation: 0,
            labels: Default::default(),
        }
    }

    fn pool(on_removed: OnRemoved) -> Arc<Pool> {
        let clock = Arc::new(ManualClock::default());
        Arc::new(Pool::new(PoolIdentity::default(), Duration::from_secs(2), clock, on_removed))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_sample_is_visible_at_once_and_the_next_ones_after_the_period() {
        let pool = pool(Box::new(|_| {}));
        pool.replace(vec![spec("a", "127.0.0.1:1")]);
        let endpoint = pool.snapshot().topology.endpoints().next().cloned().unwrap();
        let seen = |value: f32| {
            let sample = LoadSample { waiting: Some(value), ..LoadSample::default() };
            pool.report(endpoint.slot, endpoint.generation, &sample);
        };
        let mut publishing = std::pin::pin!(pool.publish_samples());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut publisher = || publishing.as_mut().poll(&mut context).is_pending();
        let started = Instant::now();
        seen(1.0);
        assert!(publisher());
        assert_eq!(pool.snapshot().loads.waiting(endpoint.slot), Some(1.0));
        seen(2.0);
        seen(3.0);
        assert!(publisher());
        assert_eq!(pool.snapshot().loads.waiting(endpoint.slot), Some(1.0));
        tokio::time::advance(PUBLISH_EVERY).await;
        assert!(publisher());
        assert_eq!(pool.snapshot().loads.waiting(endpoint.slot), Some(3.0));
        assert_eq!(started.elapsed(), PUBLISH_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn samples_become_visible_together_and_removals_are_told() {
        let removed = Arc::new(AtomicUsize::new(0));
        let told = Arc::clone(&removed);
        let pool = pool(Box::new(move |_| {
            told.fetch_add(1, Ordering::AcqRel);
        }));
        let publisher = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.publish_samples().await }
        });
        let mut topology = pool.topology();
        pool.replace(vec![spec("a", "127.0.0.1:1"), spec("b", "127.0.0.1:2")]);
        assert!(topology.has_changed().unwrap());
        assert_eq!(topology.borrow_and_update().len(), 2);

        let before = pool.snapshot().clone();
        let b = before.topology.by_address(&"127.0.0.1:2".parse().unwrap()).unwrap();
        let generation = before.topology.get(b).unwrap().generation;
        let sample = LoadSample { waiting: Some(7.0), ..LoadSample::default() };
        pool.report(b, generation, &sample);
        pool.report(b, generation + 1, &LoadSample { waiting: Some(9.0), ..sample.clone() });
        tokio::time::sleep(PUBLISH_EVERY * 2).await;
        assert_eq!(before.loads.waiting(b), None, "a decision keeps the snapshot it took");
        assert_eq!(pool.snapshot().loads.waiting(b), Some(7.0));

        pool.replace(vec![spec("a", "127.0.0.1:1")]);
        assert_eq!(removed.load(Ordering::Acquire), 1);
        assert_eq!(pool.snapshot().loads.waiting(b), None);
        pool.replace(vec![spec("a", "127.0.0.1:1")]);
        assert!(topology.has_changed().unwrap());
        topology.borrow_and_update();
        assert!(!topology.has_changed().unwrap(), "an unchanged set publishes nothing");
        publisher.abort();
    }
}
