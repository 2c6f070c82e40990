//! The life of one endpoint's task: when to poll, which page to ask for, what to tell.
//!
//! Invariants: polls of an endpoint never overlap; it is not asked for more than half of the time, however slow
//! it is; endpoints do not fall into step, because the first poll and every pause are jittered; on average
//! the interval is kept, however late the thread is with a single poll. A dead endpoint is asked less and
//! less often, and at full pace again after one success. The longest pause is short ([`MAX_PAUSE`]),
//! because what it spares is little and what it costs is requests that do not reach a revived server.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::mapping::Plan;
use super::reading::Reading;
use super::scrape::{Buffer, Target, Wire};
use super::{PollError, SampleSink};
use crate::domain::{Endpoint, LoadDetail, LoadSample};
use crate::lifecycle::clock::Clock;

/// Longest pause between two polls of an endpoint that fails, unless the interval itself is longer. With the
/// jitter a server that refused connections is seen within 1.1 s of its return; one that let polls run into
/// the timeout, within twice that timeout (no answer, then as long a rest) and a tenth.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Polls after which a page that was found to be unfilterable is tried again, or an honest lack is looked into.
const RETRY_POLLS: u32 = 1000;

/// Which page an endpoint is asked for, and what is known of its filter.
///
/// `name[]` makes prometheus_client render the named families only, which spares a model server most of the
/// work of a poll. Other servers ignore it (then the whole page comes, which does no harm), refuse it, or
/// answer without some family. The last is told from a family that does not exist by reading the whole
/// page once; the finding is kept, so that a family that no page has does not make the polls flip-flop.
#[derive(Debug)]
struct Pages {
    filtered: bool,
    polls: u32,
    /// Families that the whole page lacks too, as bits by name index.
    absent: u128,
}

impl Default for Pages {
    fn default() -> Self {
        Self { filtered: true, polls: 0, absent: 0 }
    }
}

impl Pages {
    /// Starts a poll; whether it asks for the filtered page.
    fn start(&mut self) -> bool {
        self.polls += 1;
        if self.polls > RETRY_POLLS {
            *self = Self { polls: 1, ..Self::default() };
        }
        self.filtered
    }

    /// Whether what the filtered page lacked must be looked for on the whole page.
    fn doubts(&self, missing: u128) -> bool {
        missing & !self.absent != 0
    }

    /// Compares both pages. `filtered` is what the filtered page lacked, `None` if it was refused.
    fn compare(&mut self, filtered: Option<u128>, full: u128) {
        match filtered {
            Some(missing) if missing & !full == 0 => self.absent |= missing,
            _ => *self = Self { filtered: false, polls: 0, absent: 0 },
        }
    }

    /// The server may be another one from now on.
    fn forget_absent(&mut self) {
        self.absent = 0;
    }
}

/// Everything that one endpoint's task owns.
pub(super) struct Poller {
    pub endpoint: Arc<Endpoint>,
    pub plan: Arc<Plan>,
    pub target: Target,
    pub interval: Duration,
    pub sink: Arc<dyn SampleSink>,
    pub clock: Arc<dyn Clock>,
    rng: fastrand::Rng,
    wire: Wire,
    reading: Reading,
    pages: Pages,
    detail: Arc<LoadDetail>,
    failures: u32,
}

impl Poller {
    pub fn new(
        endpoint: Arc<Endpoint>,
        plan: Arc<Plan>,
        target: Target,
        interval: Duration,
        buffer: Buffer,
        sink: Arc<dyn SampleSink>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            endpoint,
            plan,
            target,
            interval,
            sink,
            clock,
            rng: fastrand::Rng::new(),
            wire: Wire::new(buffer),
            reading: Reading::default(),
            pages: Pages::default(),
            detail: Arc::default(),
            failures: 0,
        }
    }

    /// Polls for ever; the owner of the task ends it. The first poll comes within one interval after `delay`.
    pub async fn run(mut self, delay: Duration) {
        let mut due = Instant::now() + delay + self.interval.mul_f64(self.rng.f64());
        loop {
            sleep_until(due).await;
            let started = Instant::now();
            let outcome = self.poll().await;
            self.tell(outcome);
            let now = Instant::now();
            let pause = pause(self.interval, self.failures).mul_f64(0.9 + 0.2 * self.rng.f64());
            // After a slow answer the server is left alone for as long as it took.
            due = (due + pause).max(now + (now - started));
        }
    }

    async fn poll(&mut self) -> Result<LoadSample, PollError> {
        let Self { wire, target, plan, reading, pages, .. } = self;
        if pages.start() {
            let lacked = match wire.fetch(target, &target.filtered, plan, reading).await {
                Ok(()) => Some(missing(plan, reading)),
                Err(PollError::Status | PollError::Parse) => None,
                Err(other) => return Err(other),
            };
            if lacked.is_none_or(|missing| pages.doubts(missing)) {
                wire.fetch(target, &target.full, plan, reading).await?;
                pages.compare(lacked, missing(plan, reading));
                tracing::debug!(
                    endpoint = self.endpoint.name(),
                    address = %target.address(),
                    filtered = pages.filtered,
                    "compared the filtered metrics page with the whole one"
                );
            }
        } else {
            wire.fetch(target, &target.full, plan, reading).await?;
        }
        if !reading.has_load(plan) {
            return Err(if reading.looks_foreign() { PollError::Parse } else { PollError::MissingFamily });
        }
        Ok(reading.sample(plan, self.clock.now(), &self.detail))
    }

    /// Reports the outcome; logs only when the endpoint starts or ceases to fail.
    fn tell(&mut self, outcome: Result<LoadSample, PollError>) {
        let (slot, generation) = (self.endpoint.slot, self.endpoint.generation);
        let (endpoint, address) = (self.endpoint.name(), self.target.address());
        match outcome {
            Ok(sample) => {
                if self.failures > 0 {
                    tracing::info!(endpoint, %address, failures = self.failures, "metrics can be read again");
                }
                self.failures = 0;
                self.detail = Arc::clone(&sample.detail);
                self.sink.report(slot, generation, sample);
            }
            Err(cause) => {
                let cause_label = cause.as_str();
                if self.failures == 0 {
                    tracing::warn!(endpoint, %address, cause = cause_label, "metrics cannot be read: {cause}");
                } else {
                    tracing::debug!(endpoint, %address, cause = cause_label, failures = self.failures, "poll failed");
                }
                self.failures = self.failures.saturating_add(1);
                self.pages.forget_absent();
                self.sink.poll_failed(slot, generation, cause);
            }
        }
    }
}

fn missing(plan: &Plan, reading: &Reading) -> u128 {
    (0..plan.names.len().min(128)).filter(|i| !reading.saw(plan, *i)).fold(0, |bits, i| bits | 1 << i)
}

/// The interval, doubled with each failure in a row up to [`MAX_PAUSE`].
fn pause(interval: Duration, failures: u32) -> Duration {
    interval.saturating_mul(1 << failures.min(16)).min(MAX_PAUSE.max(interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_lengthen_the_pause_up_to_a_bound() {
        let ms = Duration::from_millis;
        let pauses = [0, 1, 2, 4, 5, u32::MAX].map(|failures| pause(ms(50), failures));
        assert_eq!(pauses, [ms(50), ms(100), ms(200), ms(800), MAX_PAUSE, MAX_PAUSE]);
        assert_eq!(pause(Duration::from_secs(60), 9), Duration::from_secs(60), "never shorter than the interval");
    }

    #[test]
    fn a_family_that_no_page_has_is_looked_for_once() {
        let mut pages = Pages::default();
        assert!(pages.start() && pages.doubts(0b100));
        pages.compare(Some(0b100), 0b100);
        for _ in 1..RETRY_POLLS {
            assert!(pages.start() && !pages.doubts(0b100));
        }
        assert!(pages.start() && pages.doubts(0b100), "and again after many polls");
        pages.compare(Some(0b100), 0b100);
        assert!(pages.doubts(0b001), "another family is another matter");
    }

    #[test]
    fn a_filter_that_loses_a_family_is_given_up_for_long() {
        for refused in [Some(0b11), None] {
            let mut pages = Pages::default();
            assert!(pages.start());
            pages.compare(refused, 0b10);
            for _ in 0..RETRY_POLLS {
                assert!(!pages.start());
            }
            assert!(pages.start());
        }
    }
}
