//! The flow of requests through the pool, decayed, and their means.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Published, seconds};
use crate::domain::{AccountView, Timestamp};

/// Seconds over which the flow of requests to the pool is averaged.
const FLOW_SECONDS: f64 = 30.0;

/// The flow of requests through the pool.
#[derive(Debug)]
pub(super) struct Flow {
    state: Mutex<FlowState>,
    at: AtomicU64,
    arrivals: Published,
    load: Published,
    mean_prefill: Published,
    mean_stay: Published,
}

#[derive(Debug)]
pub(super) struct FlowState {
    at: Timestamp,
    arrivals: f64,
    load: f64,
    mean_prefill: f64,
    mean_stay: f64,
}

impl Default for Flow {
    fn default() -> Self {
        // The means start at ordinary values of chat traffic; a hundred and fifty requests later they are learnt.
        let state =
            FlowState { at: Timestamp::default(), arrivals: 0.0, load: 0.0, mean_prefill: 0.3, mean_stay: 10.0 };
        let flow = Self {
            state: Mutex::new(state),
            at: AtomicU64::new(0),
            arrivals: Published::default(),
            load: Published::default(),
            mean_prefill: Published::default(),
            mean_stay: Published::default(),
        };
        flow.write(|_| ());
        flow
    }
}

impl Flow {
    fn write(&self, change: impl FnOnce(&mut FlowState)) {
        let mut state = self.state.lock();
        change(&mut state);
        self.at.store(state.at.0, Relaxed);
        self.arrivals.set(state.arrivals);
        self.load.set(state.load);
        self.mean_prefill.set(state.mean_prefill);
        self.mean_stay.set(state.mean_stay);
    }

    pub(super) fn arrived(&self, cost: f64, now: Timestamp) {
        self.write(|state| {
            let kept = (-seconds(now, state.at) / FLOW_SECONDS).exp();
            state.at = state.at.max(now);
            state.arrivals = state.arrivals * kept + 1.0;
            state.load = state.load * kept + cost;
            state.mean_prefill = 0.99 * state.mean_prefill + 0.01 * cost;
        });
    }

    pub(super) fn stayed(&self, stay: Duration) {
        self.write(|state| state.mean_stay = 0.98 * state.mean_stay + 0.02 * stay.as_secs_f64());
    }

    pub(super) fn last(&self) -> Timestamp {
        Timestamp(self.at.load(Relaxed))
    }

    pub(super) fn read(&self, now: Timestamp, endpoints: usize, view: &mut AccountView) {
        let kept = (-seconds(now, self.last()) / FLOW_SECONDS).exp();
        let each = (kept / FLOW_SECONDS / endpoints.max(1) as f64) as f32;
        view.arrivals = self.arrivals.get() * each;
        view.load = self.load.get() * each;
        view.mean_prefill = self.mean_prefill.get();
        view.mean_stay = self.mean_stay.get();
    }
}
