//! One scheduling cycle: filters shrink the candidates, scorers fill dense arrays, the picker ranks.
//!
//! Each scorer writes into one scratch column that is reused; its values are clamped to 0..=1 and
//! added to the totals with the scorer's weight. Nothing is allocated per endpoint.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::{Explanation, ProfileResult, Ranked, Slot, Timestamp, Topology};

use super::plugin::{Cycle, Filter, Picker, Scorer};

/// A named filter.
pub type NamedFilter = (Arc<str>, Arc<dyn Filter>);

/// A named scorer with its weight.
#[derive(Clone)]
pub struct WeightedScorer {
    /// Plugin name.
    pub name: Arc<str>,
    /// Factor of its 0..=1 value; finite.
    pub weight: f32,
    /// The scorer.
    pub scorer: Arc<dyn Scorer>,
}

/// A profile of the configuration, ready to run.
#[derive(Clone)]
pub struct Profile {
    /// Profile name.
    pub name: Arc<str>,
    /// Filters in configured order.
    pub filters: Vec<NamedFilter>,
    /// Scorers.
    pub scorers: Vec<WeightedScorer>,
    /// The picker and its name.
    pub picker: (Arc<str>, Arc<dyn Picker>),
}

/// One call of a plugin.
#[derive(Clone, Debug)]
pub struct Lap {
    /// Extension point, as metrics name it.
    pub point: &'static str,
    /// Plugin name.
    pub name: Arc<str>,
    /// When it was called.
    pub started: Timestamp,
    /// How long it took.
    pub took: Duration,
}

/// One run of a profile: what its filters left and what its scorers said.
#[derive(Clone, Debug)]
pub struct Run {
    /// Profile name.
    pub profile: Arc<str>,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Its laps among [`Laps::laps`].
    pub laps: Range<usize>,
    /// Candidates before the filters.
    pub base: usize,
    /// The endpoints that the slots mean.
    pub topology: Arc<Topology>,
    /// Candidates that the filters left, in slot order.
    pub candidates: Vec<Slot>,
    /// Scorers with their weights, in the order of `values`.
    pub scorers: Vec<(Arc<str>, f32)>,
    /// Values from 0 to 1, scorer by scorer, each as many as there are candidates.
    pub values: Vec<f32>,
    /// Weighted sums by candidate; empty if the run ended before.
    pub totals: Vec<f32>,
}

/// Observes one decision: when each plugin ran and what it said. The clock is the caller's, since this
/// room may not read one. It allocates, so it is made for few decisions only.
pub struct Laps {
    now: Box<dyn Fn() -> Timestamp + Send>,
    last: Timestamp,
    /// Each call, in order.
    pub laps: Vec<Lap>,
    /// Each run of a profile, in order.
    pub runs: Vec<Run>,
}

impl Laps {
    /// Starts the first lap.
    pub fn start(now: impl Fn() -> Timestamp + Send + 'static) -> Self {
        let last = now();
        Self { now: Box::new(now), last, laps: Vec::with_capacity(16), runs: Vec::with_capacity(1) }
    }

    /// Starts a lap without ending one: what ran since the last one was no plugin.
    pub fn restart(&mut self) {
        self.last = (self.now)();
    }

    /// Ends the lap of the plugin that just ran and starts the next one.
    pub fn lap(&mut self, point: &'static str, name: &Arc<str>) {
        let now = (self.now)();
        self.laps.push(Lap { point, name: Arc::clone(name), started: self.last, took: now.since(self.last) });
        self.last = now;
    }

    fn begin(&mut self, profile: &Profile, cx: &Cycle<'_>, base: usize) {
        self.restart();
        self.runs.push(Run {
            profile: Arc::clone(&profile.name),
            started: self.last,
            ended: self.last,
            laps: self.laps.len()..self.laps.len(),
            base,
            topology: Arc::clone(&cx.snapshot.topology),
            candidates: Vec::new(),
            scorers: Vec::new(),
            values: Vec::new(),
            totals: Vec::new(),
        });
    }

    fn filtered(&mut self, candidates: &[Slot], scorers: &[WeightedScorer]) {
        if let Some(run) = self.runs.last_mut() {
            run.candidates = candidates.to_vec();
            run.scorers = scorers.iter().map(|s| (Arc::clone(&s.name), s.weight)).collect();
            run.values = Vec::with_capacity(candidates.len() * scorers.len());
        }
        // Copying is no plugin's time.
        self.restart();
    }

    fn scored(&mut self, column: &[f32]) {
        if let Some(run) = self.runs.last_mut() {
            run.values.extend_from_slice(column);
        }
        self.restart();
    }

    fn summed(&mut self, totals: &[f32]) {
        if let Some(run) = self.runs.last_mut() {
            run.totals = totals.to_vec();
        }
        self.restart();
    }

    fn end(&mut self) {
        let (laps, now) = (self.laps.len(), self.last);
        if let Some(run) = self.runs.last_mut() {
            (run.laps.end, run.ended) = (laps, now);
        }
    }
}

/// Buffers that one thread reuses from decision to decision.
#[derive(Default)]
pub struct Scratch {
    /// If set, the plugins that run are observed.
    pub laps: Option<Laps>,
    candidates: Vec<Slot>,
    before: Vec<Slot>,
    column: Vec<f32>,
    totals: Vec<f32>,
    picked: Vec<usize>,
}

impl Profile {
    /// Runs the cycle over `base` (ascending slots). `None` if the filters left nothing.
    pub fn run(
        &self,
        cx: &Cycle<'_>,
        base: &[Slot],
        rng: &mut fastrand::Rng,
        scratch: &mut Scratch,
        explain: bool,
    ) -> Option<ProfileResult> {
        let Scratch { candidates, before, column, totals, picked, laps } = scratch;
        candidates.clear();
        candidates.extend_from_slice(base);
        let mut explanation = explain.then(Box::<Explanation>::default);

        if let Some(laps) = laps {
            laps.begin(self, cx, base.len());
        }
        for (name, filter) in &self.filters {
            if explanation.is_some() {
                before.clone_from(candidates);
            }
            filter.filter(cx, candidates);
            if let Some(laps) = laps {
                laps.lap("Filter", name);
            }
            if let Some(explanation) = explanation.as_mut().filter(|_| candidates.len() < before.len()) {
                note_removed(explanation, name, before, candidates);
            }
        }
        if let Some(laps) = laps {
            laps.filtered(candidates, &self.scorers);
            laps.end();
        }
        if candidates.is_empty() {
            return None;
        }
        if let Some(explanation) = explanation.as_mut() {
            explanation.topology = Arc::clone(&cx.snapshot.topology);
            explanation.scorers = self.scorers.iter().map(|s| (Arc::clone(&s.name), s.weight)).collect();
            explanation.candidates = candidates.clone();
            explanation.values = Vec::with_capacity(candidates.len() * self.scorers.len());
        }

        totals.clear();
        totals.resize(candidates.len(), 0.0);
        for WeightedScorer { weight, scorer, name } in &self.scorers {
            column.clear();
            column.resize(candidates.len(), 0.0);
            scorer.score(cx, candidates, column);
            if let Some(laps) = laps {
                laps.lap("Scorer", name);
            }
            for (total, value) in totals.iter_mut().zip(column.iter_mut()) {
                *value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
                *total += weight * *value;
            }
            if let Some(laps) = laps {
                laps.scored(column);
            }
            if let Some(explanation) = explanation.as_mut() {
                explanation.values.extend_from_slice(column);
            }
        }
        if let Some(laps) = laps {
            laps.summed(totals);
        }
        picked.clear();
        match explanation.as_mut() {
            None => self.picker.1.pick(cx, candidates, totals, rng, picked),
            Some(explanation) => {
                explanation.costs = self.picker.1.pick_explained(cx, candidates, totals, rng, picked);
            }
        }
        if let Some(laps) = laps {
            laps.lap("Picker", &self.picker.0);
            laps.end();
        }
        if let Some(explanation) = explanation.as_mut() {
            explanation.totals = totals.clone();
            explanation.picker = Arc::clone(&self.picker.0);
            explanation.tie = self.picker.1.tie_rule();
        }
        let ranked: smallvec::SmallVec<[Ranked; 1]> = picked
            .iter()
            .filter_map(|&i| {
                let endpoint = cx.snapshot.topology.get(*candidates.get(i)?)?;
                Some(Ranked { endpoint: Arc::clone(endpoint), score: totals[i] })
            })
            .collect();
        (!ranked.is_empty()).then(|| ProfileResult { profile: Arc::clone(&self.name), picked: ranked, explanation })
    }
}

/// Writes down whom the filter called `name` removed; both lists ascend.
fn note_removed(explanation: &mut Explanation, name: &Arc<str>, before: &[Slot], after: &[Slot]) {
    let index = u16::try_from(explanation.filters.len()).unwrap_or(u16::MAX);
    explanation.filters.push(Arc::clone(name));
    let mut left = after.iter().peekable();
    for slot in before {
        if left.next_if_eq(&slot).is_none() {
            explanation.removed.push((*slot, index));
        }
    }
}
