//! The exact numbers of one account, and what each event does to them.

use std::collections::BTreeMap;

use super::{FIXED_SECONDS, INTAKE_SECONDS, LOAD_SECONDS, MIN_SAMPLE_TOKENS, Settings, Share, moved, seconds};
use crate::domain::Timestamp;

/// What is left of a sample of the rate when the next one comes: the last fifty or so count.
const SAMPLE_DECAY: f64 = 0.98;

/// Seconds of prefill that the initial rate counts for: a few prompts, so that it is soon forgotten.
const INITIAL_WEIGHT: f64 = 5.0;

/// Shortest time that a prefill is believed to take, in seconds.
const MIN_PREFILL_SECONDS: f64 = 1e-3;

/// Prefills of one endpoint at most whose end is only foretold; beyond it the first of them counts as over. Far
/// more than an endpoint can have waiting: it bounds what a wrong rate can pile up where no ends are seen.
pub(super) const MAX_FORETOLD: usize = 4_096;

/// The exact numbers of one account.
#[derive(Debug)]
pub(super) struct State {
    pub(super) outstanding: f64,
    pub(super) finish: Timestamp,
    pub(super) prefill_tokens: u64,
    pub(super) prefilling: u32,
    pub(super) in_flight: u32,
    pub(super) rate_tokens: f64,
    pub(super) rate_seconds: f64,
    pub(super) samples: u32,
    pub(super) last_first: Timestamp,
    pub(super) load: f64,
    pub(super) intake: f64,
    pub(super) decayed_at: Timestamp,
    /// Shares whose end is not noticed, by when it is foretold.
    pub(super) foretold: BTreeMap<Due, Share>,
    pub(super) next_number: u64,
}

/// When a prefill is foretold to end, and a number that tells equal times apart.
pub(super) type Due = (Timestamp, u64);

impl State {
    /// An account of which nothing is known but the initial rate.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            outstanding: 0.0,
            finish: Timestamp::default(),
            prefill_tokens: 0,
            prefilling: 0,
            in_flight: 0,
            rate_tokens: settings.initial_rate * INITIAL_WEIGHT,
            rate_seconds: INITIAL_WEIGHT,
            samples: 0,
            last_first: Timestamp::default(),
            load: 0.0,
            intake: 0.0,
            decayed_at: Timestamp::default(),
            foretold: BTreeMap::new(),
            next_number: 0,
        }
    }

    /// Returns when the prefill is foretold to end, and where that is noted if it will not be noticed.
    pub(super) fn routed(&mut self, share: &Share, now: Timestamp) -> (Timestamp, Option<Due>) {
        self.lapse(now);
        let elapsed = seconds(now, self.decayed_at);
        self.decayed_at = self.decayed_at.max(now);
        self.load *= (-elapsed / LOAD_SECONDS).exp();
        self.intake *= (-elapsed / INTAKE_SECONDS).exp();
        self.prefilling += 1;
        self.in_flight += 1;
        self.prefill_tokens += share.tokens;
        if let Some(cost) = share.cost {
            self.outstanding += cost;
            self.finish = moved(self.finish.max(now), cost);
            self.load += cost;
            self.intake += share.tokens as f64;
        }
        let finish = self.finish.max(now);
        (finish, (!share.noticed).then(|| self.foretell(share, finish)))
    }

    /// Lets `share` end at `finish` by itself.
    pub(super) fn foretell(&mut self, share: &Share, finish: Timestamp) -> Due {
        self.next_number += 1;
        let due = (finish, self.next_number);
        self.foretold.insert(due, *share);
        if self.foretold.len() > MAX_FORETOLD
            && let Some((_, first)) = self.foretold.pop_first()
        {
            self.prefilled(&first);
        }
        due
    }

    /// The prefill of `share` is over.
    pub(super) fn prefilled(&mut self, share: &Share) {
        self.prefilling = self.prefilling.saturating_sub(1);
        self.prefill_tokens = self.prefill_tokens.saturating_sub(share.tokens);
        self.outstanding = (self.outstanding - share.seconds()).max(0.0);
        if self.prefilling == 0 {
            // What rounding has left.
            self.outstanding = 0.0;
        }
    }

    pub(super) fn first_token(&mut self, share: &Share, routed: Timestamp, now: Timestamp) {
        self.prefilled(share);
        if share.cost.is_none() {
            return;
        }
        let took = seconds(now, routed.max(self.last_first)) - FIXED_SECONDS;
        if share.tokens > MIN_SAMPLE_TOKENS {
            self.rate_tokens = self.rate_tokens * SAMPLE_DECAY + share.tokens as f64;
            self.rate_seconds = self.rate_seconds * SAMPLE_DECAY + took.max(MIN_PREFILL_SECONDS);
            self.samples = self.samples.saturating_add(1);
        }
        self.last_first = self.last_first.max(now);
        self.finish = moved(now, self.outstanding);
    }

    /// Ends the prefills that were foretold to end by `now`.
    pub(super) fn lapse(&mut self, now: Timestamp) {
        while let Some(entry) = self.foretold.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let share = entry.remove();
            self.prefilled(&share);
        }
    }
}
