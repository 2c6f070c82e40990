//! What became of requests at just-in-time dispatch.

use std::time::Duration;

use super::catalog as c;
use super::family::{Count, Lazy, Page};

/// Why a request was sent or given up when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DispatchReason {
    /// Sent at once: the configuration holds nothing.
    Configured,
    /// Sent at once: the data plane waits for a limited time only.
    TimeLimit,
    /// Sent at once: the process is stopping.
    Stopping,
    /// Sent at once: too few answers are streamed.
    NotStreamed,
    /// Sent at once: the prefill rate is not learnt yet.
    Learning,
    /// Sent at once: its endpoint could start on it.
    Room,
    /// Held, then sent in its turn.
    Held,
    /// Held for as long as allowed, then sent.
    Expired,
    /// Held, then sent because the process is stopping.
    Drained,
    /// Held, and its client left.
    Cancelled,
    /// Refused: too much is held.
    Full,
    /// Held, then refused for another reason.
    Refused,
}

impl DispatchReason {
    /// All reasons, in the order of declaration.
    pub const ALL: [Self; 12] = [
        Self::Configured,
        Self::TimeLimit,
        Self::Stopping,
        Self::NotStreamed,
        Self::Learning,
        Self::Room,
        Self::Held,
        Self::Expired,
        Self::Drained,
        Self::Cancelled,
        Self::Full,
        Self::Refused,
    ];

    /// The labels `mode` and `reason`.
    pub const fn labels(self) -> [&'static str; 2] {
        match self {
            Self::Configured => ["immediate", "configured"],
            Self::TimeLimit => ["immediate", "time-limit"],
            Self::Stopping => ["immediate", "stopping"],
            Self::NotStreamed => ["immediate", "not-streamed"],
            Self::Learning => ["immediate", "learning"],
            Self::Room => ["immediate", "endpoint-free"],
            Self::Held => ["hold", "sent"],
            Self::Expired => ["hold", "max-hold"],
            Self::Drained => ["hold", "stopping"],
            Self::Cancelled => ["hold", "cancelled"],
            Self::Full => ["hold", "full"],
            Self::Refused => ["hold", "refused"],
        }
    }
}

/// The counts of one dispatcher.
#[derive(Debug, Default)]
pub struct DispatchMetrics {
    counts: [Count; DispatchReason::ALL.len()],
    held: Lazy,
}

impl DispatchMetrics {
    /// Counts one request.
    pub fn count(&self, reason: DispatchReason) {
        self.counts[reason as usize].inc();
    }

    /// Time that one was held before it was sent.
    pub fn observe_held(&self, held: Duration) {
        self.held.observe(&c::DISPATCH_HELD, held.as_secs_f64());
    }

    /// How many were counted with `reason`.
    pub fn counted(&self, reason: DispatchReason) -> u64 {
        self.counts[reason as usize].get()
    }

    pub(super) fn collect(&self, page: &mut Page, (requests, bytes): (u64, u64)) {
        for (reason, count) in DispatchReason::ALL.iter().zip(&self.counts) {
            page.value(&c::DISPATCHES, &reason.labels(), count.get() as f64);
        }
        page.value::<&str>(&c::DISPATCH_REQUESTS, &[], requests as f64);
        page.value::<&str>(&c::DISPATCH_BYTES, &[], bytes as f64);
        page.lazy::<&str>(&c::DISPATCH_HELD, &[], &self.held);
    }
}
