//! What an endpoint said about itself, when, and how fresh that still is.
//!
//! A value that was never reported is `None`, never zero: each scorer decides what missing means.
//! Samples live in columns by slot, so that a scorer reads one dense array.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::FixedState;
use smallvec::SmallVec;

use super::{Slot, Timestamp};

/// Most custom metrics that a [`LoadTable`] holds; the configuration allows no more, and what comes on top is
/// not kept.
pub const MAX_ATTRIBUTES: usize = 16;

/// One reading of an endpoint's metrics page. Absent metrics are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadSample {
    /// When the page was received.
    pub taken_at: Timestamp,
    /// Requests waiting in the engine's queue.
    pub waiting: Option<f32>,
    /// Requests running in the engine.
    pub running: Option<f32>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f32>,
    /// Values that change rarely or that only some plugins read.
    pub detail: Arc<LoadDetail>,
}

/// The rarer part of a sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadDetail {
    /// Tokens per KV block of the engine.
    pub block_size: Option<u32>,
    /// KV blocks that the engine has.
    pub num_blocks: Option<u32>,
    /// LoRA adapters, where the engine reports them.
    pub lora: Option<LoraState>,
    /// Custom metrics by attribute key.
    pub attributes: BTreeMap<Box<str>, f64>,
}

/// A LoRA adapter, by a 64-bit hash of its name.
///
/// Adapters are only ever compared, once per endpoint and decision, so their names are not kept. Two
/// of a million names collide with a probability of 3e-8. The hash has no secret: a client that makes
/// up a model name that collides gets the affinity of another adapter for a request that every engine
/// refuses, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AdapterId(u64);

impl AdapterId {
    /// The adapter called `name`.
    pub fn of(name: &str) -> Self {
        Self(FixedState::default().hash_one(name))
    }
}

/// LoRA adapters of an endpoint, as it last named them. The lists are ascending and without repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoraState {
    /// Adapters named as running. In vLLM's V1 engine both lists name every adapter that has a request
    /// of either kind (`llm-d-router.md` 3.4, LoRA caveat), so this one may be longer than `max`.
    pub running: SmallVec<[AdapterId; 4]>,
    /// Adapters named as waiting.
    pub waiting: SmallVec<[AdapterId; 4]>,
    /// Adapters that either list names.
    pub named: u32,
    /// How many can be resident; 0 if the endpoint does not say.
    pub max: u32,
}

impl LoraState {
    /// Adapters of one list that are kept; the rest counts as not named.
    pub const MAX_ADAPTERS: usize = 1024;

    /// Replaces the state by these names; keeps the buffers.
    pub fn set<'n>(
        &mut self,
        running: impl Iterator<Item = &'n str>,
        waiting: impl Iterator<Item = &'n str>,
        max: u32,
    ) {
        fill(&mut self.running, running);
        fill(&mut self.waiting, waiting);
        let only_waiting = self.waiting.iter().filter(|id| !self.runs(**id)).count();
        self.named = (self.running.len() + only_waiting) as u32;
        self.max = max;
    }

    /// Whether `adapter` is named as running.
    #[inline]
    pub fn runs(&self, adapter: AdapterId) -> bool {
        self.running.binary_search(&adapter).is_ok()
    }

    /// Whether `adapter` is named as waiting.
    #[inline]
    pub fn waits(&self, adapter: AdapterId) -> bool {
        self.waiting.binary_search(&adapter).is_ok()
    }
}

fn fill<'n>(list: &mut SmallVec<[AdapterId; 4]>, names: impl Iterator<Item = &'n str>) {
    list.clear();
    list.extend(names.take(LoraState::MAX_ADAPTERS).map(AdapterId::of));
    list.sort_unstable();
    list.dedup();
}

/// How far a sample can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// No page was ever read.
    Never,
    /// Older than the staleness threshold.
    Stale(Duration),
    /// Young enough to act on.
    Fresh(Duration),
}

/// One custom metric of all endpoints.
#[derive(Clone, Debug)]
struct Attribute {
    key: Arc<str>,
    values: Vec<f64>,
}

/// Samples of all endpoints in columns by slot. `NaN` in a column is "not reported".
#[derive(Clone, Debug, Default)]
pub struct LoadTable {
    waiting: Vec<f32>,
    running: Vec<f32>,
    kv_usage: Vec<f32>,
    taken_at: Vec<Option<Timestamp>>,
    detail: Vec<Option<Arc<LoadDetail>>>,
    attributes: Vec<Attribute>,
    stale_after: Duration,
}

impl LoadTable {
    /// An empty table whose samples go stale after `stale_after`.
    pub fn new(stale_after: Duration) -> Self {
        Self { stale_after, ..Self::default() }
    }

    /// Stores a sample, growing the columns as needed.
    pub fn set(&mut self, slot: Slot, sample: &LoadSample) {
        self.grow(slot);
        let i = slot.index();
        self.waiting[i] = finite(sample.waiting);
        self.running[i] = finite(sample.running);
        self.kv_usage[i] = finite(sample.kv_usage);
        self.taken_at[i] = Some(sample.taken_at);
        // The collector hands the same detail on for as long as nothing in it changes.
        if self.detail[i].as_ref().is_none_or(|known| !Arc::ptr_eq(known, &sample.detail)) {
            self.set_attributes(i, &sample.detail.attributes);
            self.detail[i] = Some(Arc::clone(&sample.detail));
        }
    }

    fn set_attributes(&mut self, index: usize, reported: &BTreeMap<Box<str>, f64>) {
        for key in reported.keys() {
            if self.attributes.len() < MAX_ATTRIBUTES && !self.attributes.iter().any(|a| *a.key == **key) {
                self.attributes.push(Attribute { key: Arc::from(&**key), values: Vec::new() });
            }
        }
        for Attribute { key, values } in &mut self.attributes {
            let value = reported.get(&**key).copied().filter(|v| v.is_finite()).unwrap_or(f64::NAN);
            if values.len() <= index {
                values.resize(index + 1, f64::NAN);
            }
            values[index] = value;
        }
    }

    /// Forgets everything about a slot.
    pub fn clear(&mut self, slot: Slot) {
        if slot.index() < self.waiting.len() {
            let i = slot.index();
            self.waiting[i] = f32::NAN;
            self.running[i] = f32::NAN;
            self.kv_usage[i] = f32::NAN;
            self.taken_at[i] = None;
            self.detail[i] = None;
            for attribute in &mut self.attributes {
                if let Some(value) = attribute.values.get_mut(i) {
                    *value = f64::NAN;
                }
            }
        }
    }

    fn grow(&mut self, slot: Slot) {
        let len = slot.index() + 1;
        if self.waiting.len() < len {
            self.waiting.resize(len, f32::NAN);
            self.running.resize(len, f32::NAN);
            self.kv_usage.resize(len, f32::NAN);
            self.taken_at.resize(len, None);
            self.detail.resize(len, None);
        }
    }

    /// Waiting requests, if reported.
    #[inline]
    pub fn waiting(&self, slot: Slot) -> Option<f32> {
        read(&self.waiting, slot)
    }

    /// Running requests, if reported.
    #[inline]
    pub fn running(&self, slot: Slot) -> Option<f32> {
        read(&self.running, slot)
    }

    /// KV cache usage 0 to 1, if reported.
    #[inline]
    pub fn kv_usage(&self, slot: Slot) -> Option<f32> {
        read(&self.kv_usage, slot)
    }

    /// The column of a custom metric by slot, if any endpoint ever reported it; NaN is "not reported", and so
    /// is a slot past the end.
    pub fn attribute(&self, key: &str) -> Option<&[f64]> {
        self.attributes.iter().find(|a| &*a.key == key).map(|a| a.values.as_slice())
    }

    /// The rarer values, if any page was read.
    pub fn detail(&self, slot: Slot) -> Option<&LoadDetail> {
        self.detail.get(slot.index())?.as_deref()
    }

    /// How fresh the endpoint's sample is at `now`.
    pub fn freshness(&self, slot: Slot, now: Timestamp) -> Freshness {
        match self.taken_at.get(slot.index()).copied().flatten() {
            None => Freshness::Never,
            Some(at) => {
                let age = now.since(at);
                if age > self.stale_after { Freshness::Stale(age) } else { Freshness::Fresh(age) }
            }
        }
    }

    /// What `metric` (such as [`LoadTable::waiting`]) reads, if the sample is not older than `oldest`.
    #[inline]
    pub fn since(&self, oldest: Timestamp, metric: fn(&Self, Slot) -> Option<f32>, slot: Slot) -> Option<f32> {
        metric(self, slot).filter(|_| self.taken_at(slot) >= Some(oldest))
    }

    /// When a sample must have been taken at least to be fresh at `now`. For loops over many
    /// endpoints: compare [`taken_at`](Self::taken_at) with it instead of asking for each age.
    pub fn oldest_fresh(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0.saturating_sub(u64::try_from(self.stale_after.as_micros()).unwrap_or(u64::MAX)))
    }

    /// When the endpoint's sample was taken, if there is one.
    #[inline]
    pub fn taken_at(&self, slot: Slot) -> Option<Timestamp> {
        self.taken_at.get(slot.index()).copied().flatten()
    }
}

fn finite(value: Option<f32>) -> f32 {
    value.filter(|v| v.is_finite()).unwrap_or(f32::NAN)
}

#[inline]
fn read(column: &[f32], slot: Slot) -> Option<f32> {
    column.get(slot.index()).copied().filter(|v| !v.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_counted_once_and_up_to_the_bound() {
        let mut state = LoraState::default();
        state.set(["b", "a", "b"].into_iter(), ["c", "a"].into_iter(), 2);
        assert_eq!((state.running.len(), state.waiting.len(), state.named, state.max), (2, 2, 3, 2));
        let (a, c) = (AdapterId::of("a"), AdapterId::of("c"));
        assert_eq!((state.runs(a), state.waits(a), state.runs(c), state.waits(c)), (true, true, false, true));
        assert!(!state.runs(AdapterId::of("")) && !state.waits(AdapterId::of("A")));
        let other = |names: &[&'static str]| {
            let mut other = state.clone();
            other.set(names.iter().copied(), ["a", "c"].into_iter(), 2);
            other
        };
        assert_eq!(other(&["a", "b"]), state, "order says nothing");
        assert_ne!(other(&["a", "d"]), state);
        let names: Vec<String> = (0..2_000).map(|i| format!("adapter-{i}")).collect();
        state.set(names.iter().map(String::as_str), names.iter().map(String::as_str), 8);
        assert_eq!((state.running.len(), state.named as usize), (LoraState::MAX_ADAPTERS, LoraState::MAX_ADAPTERS));
        state.set(std::iter::empty(), std::iter::empty(), 0);
        assert_eq!(state, LoraState::default());
    }

    #[test]
    fn missing_and_stale_are_told_apart() {
        let mut table = LoadTable::new(Duration::from_secs(2));
        let sample = LoadSample {
            taken_at: Timestamp::from_millis(1_000),
            waiting: Some(3.0),
            kv_usage: Some(f32::INFINITY),
            ..LoadSample::default()
        };
        table.set(Slot(5), &sample);
        assert_eq!(table.waiting(Slot(5)), Some(3.0));
        assert_eq!(table.running(Slot(5)), None);
        assert_eq!(table.kv_usage(Slot(5)), None, "an infinite reading is no reading");
        assert_eq!(table.waiting(Slot(4)), None);
        assert_eq!(table.waiting(Slot(900)), None);
        assert_eq!(table.freshness(Slot(4), Timestamp::from_millis(1_000)), Freshness::Never);
        let at = |ms| table.freshness(Slot(5), Timestamp::from_millis(ms));
        assert_eq!(at(3_000), Freshness::Fresh(Duration::from_secs(2)));
        assert_eq!(at(3_001), Freshness::Stale(Duration::from_millis(2_001)));
        for ms in [0, 500, 1_999, 3_000, 3_001, 90_000] {
            let now = Timestamp::from_millis(ms);
            let fresh = table.taken_at(Slot(5)) >= Some(table.oldest_fresh(now));
            assert_eq!(fresh, matches!(table.freshness(Slot(5), now), Freshness::Fresh(_)), "at {ms}");
        }
        assert_eq!((table.taken_at(Slot(4)), table.taken_at(Slot(900))), (None, None));
        table.clear(Slot(5));
        assert_eq!(table.freshness(Slot(5), Timestamp::from_millis(3_000)), Freshness::Never);
    }

    #[test]
    fn custom_metrics_are_columns_and_bounded() {
        let mut table = LoadTable::default();
        let mut set = |slot, values: &[(&str, f64)]| {
            let attributes = values.iter().map(|(k, v)| ((*k).into(), *v)).collect();
            let detail = Arc::new(LoadDetail { attributes, ..LoadDetail::default() });
            table.set(Slot(slot), &LoadSample { detail, ..LoadSample::default() });
            ["a", "b", "none"].map(|key| {
                let column = table.attribute(key)?;
                column.get(slot as usize).copied().filter(|v| !v.is_nan())
            })
        };
        assert_eq!(set(2, &[("a", 16_777_217.0)]), [Some(16_777_217.0), None, None], "not cut to 24 bits");
        assert_eq!(set(0, &[("b", f64::INFINITY)]), [None; 3], "an infinite reading is no reading");
        assert_eq!(set(2, &[("b", 1.0)]), [None, Some(1.0), None], "what is not reported any more is gone");
        let many: Vec<String> = (0..40).map(|i| format!("m{i:02}")).collect();
        let many: Vec<(&str, f64)> = many.iter().map(|k| (k.as_str(), 7.0)).collect();
        assert_eq!(set(1, &many), [None; 3]);
        let kept = many.iter().filter(|(key, _)| table.attribute(key).is_some()).count();
        assert_eq!(kept, MAX_ATTRIBUTES - 2);
        table.clear(Slot(2));
        assert!(table.attribute("b").is_some_and(|column| column[2].is_nan()));
    }
}
