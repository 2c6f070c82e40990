//! Who says whether a choice is acted on: what is to go at once, what comes while nothing is held, and who is next in
//! the queue.

use super::super::Gate;
use super::hold::Walk;
use crate::admission::order_key;
use crate::domain::{AccountView, EndpointSet, Signals, Slot, Timestamp};
use crate::scheduling::cost::Facts as Costs;
use crate::scheduling::dispatch::Dispatch;
use crate::scheduling::plugin::Cycle;
use crate::telemetry::metrics::DispatchReason as Why;

/// The order key of a request that came at `arrival`.
pub(super) fn key_of(settings: &Dispatch, arrival: Timestamp, cycle: &Cycle<'_>, candidates: &[Slot]) -> u64 {
    let costs = Costs::of(cycle, settings.prefix);
    let least = candidates.iter().map(|slot| costs.prefill(*slot)).fold(f32::INFINITY, f32::min);
    order_key(arrival, settings.order_weight, least)
}

/// Whether `slot` can start on the request of `cycle` now.
fn can_start(settings: &Dispatch, cycle: &Cycle<'_>, slot: Slot) -> bool {
    let costs = Costs::of(cycle, settings.prefix);
    costs.own_wait(slot) <= settings.hold_above && costs.has_room(slot)
}

/// Sends whatever the wait.
pub(super) struct Always<'a> {
    pub settings: &'a Dispatch,
    pub arrival: Timestamp,
    pub key: Option<u64>,
    pub prefill: f32,
}

impl Gate for Always<'_> {
    fn refuses_often(&self) -> bool {
        false
    }

    fn prefill(&self) -> f32 {
        self.prefill
    }

    fn lets(&mut self, cycle: &Cycle<'_>, candidates: &[Slot], destination: Slot) -> bool {
        self.prefill = Costs::of(cycle, self.settings.prefix).prefill(destination);
        if self.settings.write_priority {
            self.key = Some(key_of(self.settings, self.arrival, cycle, candidates));
        }
        true
    }
}

/// Sends what comes while nothing is held, unless it is better held.
pub(super) struct Arrival<'a> {
    pub settings: &'a Dispatch,
    pub arrival: Timestamp,
    pub key: u64,
    pub why: Why,
}

impl Gate for Arrival<'_> {
    // It is asked only while nothing is held.
    fn refuses_often(&self) -> bool {
        false
    }

    fn lets(&mut self, cycle: &Cycle<'_>, candidates: &[Slot], destination: Slot) -> bool {
        let learnt = |view: &AccountView| view.samples >= self.settings.min_samples;
        if !cycle.signals.accounts.as_ref().is_some_and(learnt) {
            self.why = Why::Learning;
        } else if !can_start(self.settings, cycle, destination) {
            self.key = key_of(self.settings, self.arrival, cycle, candidates);
            return false;
        }
        if self.settings.write_priority {
            self.key = key_of(self.settings, self.arrival, cycle, candidates);
        }
        true
    }
}

/// Sends the next one of the queue if its endpoint can start on it and nobody before it waits for that.
pub(super) struct Next<'a> {
    pub settings: &'a Dispatch,
    pub walk: &'a mut Walk,
    /// Whether those behind it must know where it waits.
    pub promises: bool,
    /// The endpoints that it may take, if not all: others are for those before it.
    pub only: Option<&'a EndpointSet>,
    /// Own prefill at the destination.
    pub prefill: f32,
}

impl Gate for Next<'_> {
    fn promise(&mut self, signals: &mut Signals) {
        let Some(view) = &mut signals.accounts else { return };
        for (account, ahead) in view.endpoints.iter_mut().zip(&self.walk.ahead) {
            account.ahead += ahead;
        }
    }

    fn prefill(&self) -> f32 {
        self.prefill
    }

    fn lets(&mut self, cycle: &Cycle<'_>, _: &[Slot], destination: Slot) -> bool {
        self.prefill = Costs::of(cycle, self.settings.prefix).prefill(destination);
        let may = self.only.is_none_or(|only| only.contains(destination));
        if may && !self.walk.is_promised(destination) && can_start(self.settings, cycle, destination) {
            return true;
        }
        if self.promises {
            self.walk.promise(destination, self.prefill);
        }
        false
    }
}
