//! The last decisions, kept for `/debug/decisions` and `pointsman explain`.
//!
//! Bounded by count (`--debug-decisions`), by memory ([`MAX_BYTES`]) and by the number of topologies that the
//! records refer to ([`MAX_TOPOLOGIES`]); the oldest goes.
//!
//! **Which decisions.** Of a busy pool not every one: at most `--debug-decisions-rate` in a second, the first ones of
//! each second, so that recording costs a fixed share of a core however many requests come and however dear a
//! picker's terms are to compute twice. A request that asks for it (`x-pointsman-explain: true`, where that is allowed)
//! is recorded besides. A record is kept as it is and becomes JSON when somebody reads it: see [`Record`] and
//! the `page` module.
//!
//! Rejected: every 64th decision, as for metrics; a pool with little traffic, where somebody is looking, would
//! show next to nothing.

mod page;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::Value;

use crate::domain::{Decision, InferenceRequest, Record, Signals, Timestamp, Topology};
use crate::telemetry::replay_log::ReplayLog;

/// Most decisions that can be kept.
pub const MAX_KEPT: usize = 10_000;
/// Memory in bytes for all records, about.
pub const MAX_BYTES: usize = 64 << 20;
/// Most topologies that records keep in memory: one is as large as the pool, and every change makes another.
pub const MAX_TOPOLOGIES: usize = 64;
/// Endpoints on one page of JSON, over all its decisions, unless one decision alone has more: 20 MB of text and a
/// multiple of it in memory while it is made.
pub const MAX_ROWS: usize = 100_000;
/// Decisions kept for those who ask by header, where none are kept otherwise.
const KEPT_WHEN_ASKED: usize = 64;

/// Request header that asks for a record.
pub const EXPLAIN_HEADER: &str = "x-pointsman-explain";
/// Response header with the name of the record.
pub const DECISION_HEADER: &str = "x-pointsman-decision";

/// Which records are wanted.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// At most so many, the newest.
    pub limit: Option<usize>,
    /// Those of this name or this request id.
    pub id: Option<String>,
}

impl Query {
    /// Reads a query string: `limit=N` and `id=X`, percent-encoded.
    ///
    /// # Errors
    /// What is wrong, as a line of text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "limit" => {
                    let wrong = |_| format!("limit={value}: a number is expected\n");
                    query.limit = Some(value.parse().map_err(wrong)?);
                }
                "id" => query.id = Some(decoded(value)),
                _ => return Err(format!("`{key}` is not known here; use limit=N and id=X\n")),
            }
        }
        Ok(query)
    }
}

/// A value of a query string without percent-encoding; what is none stays as it is.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    let digit = |b: &u8| char::from(*b).to_digit(16);
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        bytes.push(escaped.map_or(*first, |(high, low)| (high << 4 | low) as u8));
        rest = &tail[if escaped.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What both clocks say when a page is read, to give records a date.
pub type Times = (Timestamp, SystemTime);

/// A bounded ring of decisions.
#[derive(Default)]
pub struct DecisionLog {
    keep: usize,
    /// Most in a second; 0 is no limit.
    rate: u32,
    allow_header: bool,
    /// Tells the names of two processes apart.
    process: u16,
    /// Records so far.
    made: AtomicU64,
    /// The present second (upper 32 bits) and the records in it.
    second: AtomicU64,
    kept: Mutex<Ring>,
    file: Option<Arc<ReplayLog>>,
}

#[derive(Default)]
struct Ring {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
    /// How often the topology differs from one record to the next.
    changes: usize,
}

impl DecisionLog {
    /// Keeps the last `keep` decisions, at most [`MAX_KEPT`]; zero switches recording off.
    pub fn new(keep: usize) -> Self {
        Self { keep: keep.min(MAX_KEPT), process: fastrand::u16(..), ..Self::default() }
    }

    /// Records at most `rate` decisions per second besides those that are asked for; zero is no limit.
    #[must_use]
    pub fn with_rate(self, rate: u32) -> Self {
        Self { rate, ..self }
    }

    /// Lets requests ask for a record by header.
    #[must_use]
    pub fn with_header(self, allow: bool) -> Self {
        let keep = if allow && self.keep == 0 { KEPT_WHEN_ASKED } else { self.keep };
        // What nobody asks for stays unrecorded.
        let rate = if self.keep == 0 { u32::MAX } else { self.rate };
        Self { allow_header: allow, keep, rate, ..self }
    }

    /// Writes what replays need of every completed request to `file` as well.
    #[must_use]
    pub fn with_file(self, file: Option<Arc<ReplayLog>>) -> Self {
        Self { file, ..self }
    }

    /// The log that replays read, if there is one. It has every request, whatever is kept here.
    pub fn file(&self) -> Option<&Arc<ReplayLog>> {
        self.file.as_ref()
    }

    /// Whether decisions are recorded.
    pub fn is_on(&self) -> bool {
        self.keep > 0
    }

    /// Whether `request` asks for a record and may.
    pub fn is_asked(&self, request: &InferenceRequest) -> bool {
        self.allow_header && request.headers.get(EXPLAIN_HEADER).is_some_and(|v| v.eq_ignore_ascii_case("true"))
    }

    /// Whether the decision on `request` at `now` is to be explained and recorded, if it is acted on.
    pub fn wants(&self, request: &InferenceRequest, now: Timestamp) -> bool {
        self.is_on() && (self.is_due(now) || self.is_asked(request))
    }

    fn is_due(&self, now: Timestamp) -> bool {
        match self.rate {
            0 => true,
            u32::MAX => false,
            rate => self.counted(now).1 < rate,
        }
    }

    /// Counts a decision that was wanted at `now` and is acted on.
    pub fn count(&self, now: Timestamp) {
        if matches!(self.rate, 0 | u32::MAX) {
            return;
        }
        let (second, count) = self.counted(now);
        // Threads that meet here may be counted as one, or both be the last one: a few records more in that second.
        self.second.store(second | u64::from(count.saturating_add(1)), Ordering::Relaxed);
    }

    /// The second of `now` as it is kept, and the records in it.
    fn counted(&self, now: Timestamp) -> (u64, u32) {
        let second = (now.0 / 1_000_000) << 32;
        let seen = self.second.load(Ordering::Relaxed);
        (second, if seen & !u64::from(u32::MAX) == second { seen as u32 } else { 0 })
    }

    /// Records a decision that was explained: on `request`, which came at `at` and was held for `held`.
    pub fn record(
        &self,
        request: &InferenceRequest,
        decision: Decision,
        signals: Signals,
        at: Timestamp,
        held: Duration,
    ) -> Option<Arc<Record>> {
        let explained = decision.profiles.iter().filter_map(|p| p.explanation.as_deref());
        if !self.is_on() || explained.filter(|why| !why.scores_only).count() == 0 {
            return None;
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let record = Arc::new(Record::new(number, request, decision, signals, at, held));
        let gone = self.kept.lock().push(Arc::clone(&record), self.keep);
        // Freed without the lock.
        drop(gone);
        Some(record)
    }

    /// The name of a record: its number with a mark of this process before it.
    pub fn name(&self, record: &Record) -> String {
        format!("{:04x}-{}", self.process, record.number)
    }

    /// All kept decisions, oldest first.
    pub fn to_json(&self) -> Value {
        self.page(&Query::default(), None)
    }

    /// The kept decisions that `query` wants, oldest first, the newest as far as [`MAX_ROWS`] go; dated if `times` are
    /// given.
    pub fn page(&self, query: &Query, times: Option<Times>) -> Value {
        let all: Vec<Arc<Record>> = self.kept.lock().records.iter().cloned().collect();
        let wanted = |record: &&Arc<Record>| match &query.id {
            None => true,
            Some(id) => *record.request_id == **id || self.name(record) == *id,
        };
        let found: Vec<&Arc<Record>> = all.iter().filter(wanted).collect();
        let mut rows = 0;
        let fits = |record: &&&Arc<Record>| {
            let before = rows;
            rows += page::rows(record);
            before == 0 || rows <= MAX_ROWS
        };
        let newest = found.iter().rev().take(query.limit.unwrap_or(usize::MAX));
        let mut shown: Vec<Value> = newest.take_while(fits).map(|r| page::record(&self.name(r), r, times)).collect();
        shown.reverse();
        serde_json::json!({
            "capacity": self.keep,
            "perSecond": self.shown_rate(),
            "older": found.len() - shown.len(),
            "decisions": shown,
        })
    }

    fn shown_rate(&self) -> Value {
        match self.rate {
            0 => "all".into(),
            u32::MAX => "asked for".into(),
            rate => rate.into(),
        }
    }
}

impl Ring {
    /// Appends `record` and takes out what is over a bound.
    fn push(&mut self, record: Arc<Record>, keep: usize) -> Vec<Arc<Record>> {
        if self.records.back().is_some_and(|last| differ(last, &record)) {
            self.changes += 1;
        }
        self.bytes += record.size();
        self.records.push_back(record);
        let mut gone = Vec::new();
        while self.records.len() > keep
            || (self.records.len() > 1 && (self.bytes > MAX_BYTES || self.changes >= MAX_TOPOLOGIES))
        {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= oldest.size();
            if self.records.front().is_some_and(|next| differ(&oldest, next)) {
                self.changes -= 1;
            }
            gone.push(oldest);
        }
        gone
    }
}

fn topology(record: &Record) -> Option<&Arc<Topology>> {
    record.decision.profiles.iter().find_map(|p| p.explanation.as_deref()).map(|why| &why.topology)
}

fn differ(one: &Record, other: &Record) -> bool {
    match (topology(one), topology(other)) {
        (Some(one), Some(other)) => !Arc::ptr_eq(one, other),
        _ => false,
    }
}
