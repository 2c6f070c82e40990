//! One decision as data: what the request was, what was chosen and why, and what became of it.
//!
//! The only description of a decision: the debug page, `pointsman explain` and the demo all show this.
//! It is kept as the decision made it (the [`Decision`] with its [`Explanation`]s and the [`Signals`] move
//! in), so that recording copies a few names and nothing per endpoint. What can be worked out from it, the
//! margin and what would have changed the choice, is worked out by whoever reads: [`Verdict::of`].
//!
//! Rejected: writing JSON when the decision is made (it took longer than the decision), and keeping
//! references to the endpoints one by one (two atomic operations for each).

use std::sync::OnceLock;
use std::time::Duration;

use super::{Costs, Decision, Explanation, InferenceRequest, Outcome, ProfileResult, Signals, Timestamp, Usage};

/// Longest model name or path that is kept, in bytes; the rest is cut off.
pub const MAX_TEXT: usize = 256;
/// Longest request id that is kept, in bytes.
pub const MAX_ID: usize = 1024;

/// See the module documentation.
#[derive(Debug)]
pub struct Record {
    /// Number of the decision, ascending, from 1.
    pub number: u64,
    /// When the request came.
    pub at: Timestamp,
    /// How long it was held before it was decided.
    pub held: Duration,
    /// `x-request-id`.
    pub request_id: Box<str>,
    /// Path without query.
    pub path: Box<str>,
    /// Model of the body.
    pub model: Box<str>,
    /// Model that the server saw, where it is another one.
    pub target_model: Option<Box<str>>,
    /// Flow that fairness is kept for.
    pub fairness_id: Box<str>,
    /// Higher goes first.
    pub priority: i32,
    /// The choice, with an explanation for each profile.
    pub decision: Decision,
    /// What it was made on, without the block hashes.
    pub signals: Signals,
    ended: OnceLock<Ended>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// HTTP status of the answer; 0 if none came.
    pub status: u16,
    /// From the request's headers to the first bytes of the answer.
    pub ttft: Option<Duration>,
    /// From the request's headers to the end.
    pub total: Duration,
    /// What the model server counted.
    pub usage: Usage,
    /// Who answered, as the data plane reports it.
    pub served_by: Option<Box<str>>,
}

impl Record {
    /// The record of `decision` on `request`, which came at `at` and was held for `held`.
    pub fn new(
        number: u64,
        request: &InferenceRequest,
        decision: Decision,
        mut signals: Signals,
        at: Timestamp,
        held: Duration,
    ) -> Self {
        // Hashes of long prompts are the bulk of what the producers found, and nobody can read them.
        for found in &mut signals.prefix {
            found.chains = Vec::new();
        }
        let target = &request.target_model;
        Self {
            number,
            at,
            held,
            request_id: cut(&request.id, MAX_ID).into(),
            path: cut(&request.path, MAX_TEXT).into(),
            model: cut(&request.model, MAX_TEXT).into(),
            target_model: (*target != request.model).then(|| cut(target, MAX_TEXT).into()),
            fairness_id: cut(&request.fairness_id, MAX_TEXT).into(),
            priority: request.priority,
            decision,
            signals,
            ended: OnceLock::new(),
        }
    }

    /// Writes down what became of the request; only the first time counts.
    pub fn end(&self, ended: Ended) {
        let _ = self.ended.set(ended);
    }

    /// What became of the request, once it has ended.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.get()
    }

    /// Bytes that keeping this takes, about, without what it shares with others.
    pub fn size(&self) -> usize {
        let explained = self.decision.profiles.iter().filter_map(|p| p.explanation.as_deref());
        let by_slot = |s: &Signals| {
            let prefix = s.prefix.iter().map(|m| {
                m.matched.len() * 4 + m.caches.as_ref().map_or(0, |c| (c.capacity.len() + c.oldest_age.len()) * 4)
            });
            prefix.sum::<usize>()
                + s.in_flight.as_ref().map_or(0, |v| v.requests.len() * 4 + v.tokens.len() * 8)
                + s.accounts.as_ref().map_or(0, |a| a.endpoints.len() * size_of::<super::Account>())
        };
        let texts = self.request_id.len() + self.path.len() + self.model.len() + self.fairness_id.len();
        size_of::<Self>() + texts + explained.map(Explanation::size).sum::<usize>() + by_slot(&self.signals)
    }
}

/// The longest beginning of `text` that has at most `limit` bytes.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// What a choice was decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// There was nobody else.
    Alone,
    /// It had the highest total, or the least cost.
    Margin,
    /// It and the next one counted as equal.
    Tie,
    /// The picker does not go by totals alone: another endpoint had a better one.
    Picker,
}

/// A value of one candidate, by the column it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The scorer with this index.
    Scorer(usize),
    /// The cost term with this index.
    Term(usize),
}

/// A change of one value that would have closed the margin, all others unchanged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flip {
    /// The column.
    pub column: Column,
    /// The candidate whose value it is: the one that was picked, or the next one.
    pub candidate: usize,
    /// What the value was.
    pub from: f32,
    /// What it would have had to be.
    pub to: f32,
}

/// How near a choice was.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Index of the candidate that was picked.
    pub winner: usize,
    /// Index of the best of the others.
    pub runner_up: Option<usize>,
    /// By how much the winner was better: totals of scores, or costs in their unit. Below zero if the other one
    /// was better; 0 without another one.
    pub margin: f32,
    /// What decided.
    pub decided_by: DecidedBy,
    /// What would have closed the margin; empty unless the margin decided.
    pub flips: Vec<Flip>,
}

impl Verdict {
    /// The verdict on one profile, if it was explained.
    pub fn of(profile: &ProfileResult) -> Option<Self> {
        let why = profile.explanation.as_deref()?;
        let winner = why.index_of(profile.picked.first()?.endpoint.slot)?;
        // Both kinds as "less is better".
        let cost = |index: usize| {
            let value = why.costs.as_ref().map_or_else(|| -why.total(index), |costs| costs.total(index));
            if value.is_nan() { f32::INFINITY } else { value }
        };
        let others = (0..why.candidates.len()).filter(|i| *i != winner);
        let Some(runner_up) = others.min_by(|a, b| cost(*a).total_cmp(&cost(*b))) else {
            let flips = Vec::new();
            return Some(Self { winner, runner_up: None, margin: 0.0, decided_by: DecidedBy::Alone, flips });
        };
        let margin = cost(runner_up) - cost(winner);
        // Two that are infinitely bad are equal.
        let margin = if margin.is_nan() { 0.0 } else { margin };
        let tolerance = why.costs.as_ref().map_or(0.0, |costs| costs.tolerance.max(0.0));
        let decided_by = match margin {
            m if m.abs() <= tolerance => DecidedBy::Tie,
            m if m < 0.0 => DecidedBy::Picker,
            _ => DecidedBy::Margin,
        };
        let mut flips = Vec::new();
        if decided_by == DecidedBy::Margin && margin.is_finite() {
            match &why.costs {
                Some(costs) => flip_terms(costs, winner, runner_up, margin, &mut flips),
                None => flip_scores(why, winner, runner_up, margin, &mut flips),
            }
        }
        Some(Self { winner, runner_up: Some(runner_up), margin, decided_by, flips })
    }
}

/// A score lies between 0 and 1, so only some columns can close the margin.
fn flip_scores(why: &Explanation, winner: usize, runner_up: usize, margin: f32, flips: &mut Vec<Flip>) {
    for (scorer, (_, weight)) in why.scorers.iter().enumerate() {
        let by = margin / weight;
        for (candidate, by) in [(runner_up, by), (winner, -by)] {
            let from = why.value(scorer, candidate);
            let to = from + by;
            if to.is_finite() && (0.0..=1.0).contains(&to) {
                flips.push(Flip { column: Column::Scorer(scorer), candidate, from, to });
            }
        }
    }
}

/// A term of a cost does not go below zero unless it is there already; upwards nothing bounds it.
fn flip_terms(costs: &Costs, winner: usize, runner_up: usize, margin: f32, flips: &mut Vec<Flip>) {
    for term in 0..costs.terms.len() {
        for (candidate, by) in [(runner_up, -margin), (winner, margin)] {
            let Some(from) = costs.of(candidate).get(term).copied() else { continue };
            let to = from + by;
            if to.is_finite() && (to >= 0.0 || from < 0.0) {
                flips.push(Flip { column: Column::Term(term), candidate, from, to });
            }
        }
    }
}

#[cfg(test)]
mod tests;
