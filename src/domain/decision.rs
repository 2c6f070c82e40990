//! The result of a decision, with its reasons, and the closed set of refusals.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Endpoint, Slot, Topology};

/// One ranked endpoint with its weighted score.
#[derive(Clone, Debug)]
pub struct Ranked {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Sum of weight times score.
    pub score: f32,
}

/// What one profile chose, best first, and why.
#[derive(Clone, Debug)]
pub struct ProfileResult {
    /// Profile name.
    pub profile: Arc<str>,
    /// Chosen endpoints, best first; never empty.
    pub picked: SmallVec<[Ranked; 1]>,
    /// Every candidate that reached the scorers with its values, when recording was asked for.
    pub explanation: Option<Box<Explanation>>,
}

/// Why a profile chose as it did: columns as the profile filled them, and names that are shared.
///
/// Made on the path of a request, so nothing in it is made per endpoint: endpoints are slots of the topology
/// that the decision read, which is kept with them.
#[derive(Clone, Debug, Default)]
pub struct Explanation {
    /// What the slots mean.
    pub topology: Arc<Topology>,
    /// Names of the filters that removed somebody.
    pub filters: Vec<Arc<str>>,
    /// Endpoints that a filter removed, with the filter's index in `filters`.
    pub removed: Vec<(Slot, u16)>,
    /// Scorer names and weights, in the order of `values`.
    pub scorers: Vec<(Arc<str>, f32)>,
    /// The endpoints that reached the scorers, ascending.
    pub candidates: Vec<Slot>,
    /// Values before their weight, 0 to 1, scorer by scorer, each as many as there are candidates.
    pub values: Vec<f32>,
    /// Weighted sums by candidate.
    pub totals: Vec<f32>,
    /// Name of the picker.
    pub picker: Arc<str>,
    /// What the picker goes by among equals, if it says so.
    pub tie: Option<&'static str>,
    /// What the picker minimised, if it minimises a cost; its candidates are those above.
    pub costs: Option<Costs>,
    /// Made for the scores alone: the decision is not to be recorded.
    pub scores_only: bool,
}

impl Explanation {
    /// The endpoint of the candidate at `index`.
    pub fn endpoint(&self, index: usize) -> Option<&Arc<Endpoint>> {
        self.topology.get(*self.candidates.get(index)?)
    }

    /// The index of the candidate in `slot`.
    pub fn index_of(&self, slot: Slot) -> Option<usize> {
        self.candidates.binary_search(&slot).ok()
    }

    /// What the scorer at `scorer` said of the candidate at `index`.
    pub fn value(&self, scorer: usize, index: usize) -> f32 {
        self.values.get(scorer * self.candidates.len() + index).copied().unwrap_or(0.0)
    }

    /// The weighted sum of the candidate at `index`.
    pub fn total(&self, index: usize) -> f32 {
        self.totals.get(index).copied().unwrap_or(0.0)
    }

    /// Bytes that keeping this takes, about; the topology is not counted because it is shared.
    pub fn size(&self) -> usize {
        let costs = self.costs.as_ref().map_or(0, |c| c.values.len() * 4);
        size_of::<Self>() + self.removed.len() * 8 + self.candidates.len() * 8 + self.values.len() * 4 + costs
    }
}

/// The cost of each candidate by term.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// Names of the terms.
    pub terms: Vec<&'static str>,
    /// Values candidate by candidate, each with as many as there are terms, in `unit`.
    pub values: Vec<f32>,
    /// What the values are counted in, such as `s`.
    pub unit: &'static str,
    /// Candidates whose sum is within this distance of the least one counted as equal to it.
    pub tolerance: f32,
}

impl Costs {
    /// The terms of the candidate at `index`.
    pub fn of(&self, index: usize) -> &[f32] {
        let n = self.terms.len();
        self.values.get(index * n..(index + 1) * n).unwrap_or(&[])
    }

    /// The sum of the terms of the candidate at `index`.
    pub fn total(&self, index: usize) -> f32 {
        self.of(index).iter().sum()
    }
}

/// The outcome of scheduling: the primary profile's result and those of helper profiles.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Results in the order the profiles ran; never empty.
    pub profiles: SmallVec<[ProfileResult; 1]>,
    /// Index of the profile whose pick is the destination.
    pub primary: usize,
    /// Headers that the decision adds to the request (name in lower case).
    pub headers: Vec<(&'static str, String)>,
}

impl Decision {
    /// The endpoint that the request goes to.
    pub fn destination(&self) -> &Arc<Endpoint> {
        &self.profiles[self.primary].picked[0].endpoint
    }

    /// The primary profile's result.
    pub fn primary(&self) -> &ProfileResult {
        &self.profiles[self.primary]
    }
}

/// Why a request was dropped, as the value of `x-llm-d-request-dropped-reason` (protocol 3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectionReason {
    /// The pool or the flow's queue is full.
    Saturated,
    /// No endpoint is eligible.
    NoEndpoints,
    /// It waited too long.
    TtlExpired,
    /// The client left while it waited.
    ContextCancelled,
    /// The process is stopping.
    ShuttingDown,
}

impl RejectionReason {
    /// The header value.
    pub const fn as_str(self) -> &'static str {
        match self {
            RejectionReason::Saturated => "rejected-saturated",
            RejectionReason::NoEndpoints => "rejected-no-endpoints",
            RejectionReason::TtlExpired => "rejected-ttl-expired",
            RejectionReason::ContextCancelled => "rejected-context-cancelled",
            RejectionReason::ShuttingDown => "rejected-shutting-down",
        }
    }
}

/// A request that will not be routed. One type for every layer; `extproc::respond` maps it to the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// 400: malformed or incomplete input.
    #[error("{0}")]
    BadRequest(String),
    /// 413: the body, or a message with a part of it, is over a limit.
    #[error("the request exceeds the limit of {limit} bytes ({setting})")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
        /// The flag that sets the limit.
        setting: &'static str,
    },
    /// 412: `prefer: if-available` and nobody holds the prefix.
    #[error("{0}")]
    PreconditionFailed(String),
    /// 429: shed, or scheduling left nothing.
    #[error("{message}")]
    ResourceExhausted {
        /// What was exhausted.
        message: String,
        /// The dropped-reason header.
        reason: RejectionReason,
    },
    /// 503: nothing to route to, or stopping.
    #[error("{message}")]
    ServiceUnavailable {
        /// What is unavailable.
        message: String,
        /// The dropped-reason header.
        reason: RejectionReason,
    },
    /// 500: our own fault.
    #[error("{0}")]
    Internal(String),
}

impl Rejection {
    /// The refusal for an empty candidate set, with the wording that callers of the Go picker match.
    pub fn no_endpoints() -> Self {
        Rejection::ServiceUnavailable {
            message: "failed to find endpoint candidates for serving the request".into(),
            reason: RejectionReason::NoEndpoints,
        }
    }

    /// The refusal of a request of negative priority by a full pool, with the wording of the Go picker. The reason
    /// is ours: there it has none.
    pub fn shed() -> Self {
        Rejection::ResourceExhausted {
            message: "system saturated, sheddable request dropped".into(),
            reason: RejectionReason::Saturated,
        }
    }

    /// Name of the class in `inference error: <Code> - <message>` and in `error_code` labels.
    pub const fn code(&self) -> &'static str {
        match self {
            Rejection::BadRequest(_) => "BadRequest",
            Rejection::TooLarge { .. } => "PayloadTooLarge",
            Rejection::PreconditionFailed(_) => "PreconditionFailed",
            Rejection::ResourceExhausted { .. } => "ResourceExhausted",
            Rejection::ServiceUnavailable { .. } => "ServiceUnavailable",
            Rejection::Internal(_) => "Internal",
        }
    }

    /// HTTP status.
    pub const fn status(&self) -> u16 {
        match self {
            Rejection::BadRequest(_) => 400,
            Rejection::TooLarge { .. } => 413,
            Rejection::PreconditionFailed(_) => 412,
            Rejection::ResourceExhausted { .. } => 429,
            Rejection::ServiceUnavailable { .. } => 503,
            Rejection::Internal(_) => 500,
        }
    }

    /// The dropped-reason header, for the refusals that carry one.
    pub const fn reason(&self) -> Option<RejectionReason> {
        match self {
            Rejection::ResourceExhausted { reason, .. } | Rejection::ServiceUnavailable { reason, .. } => Some(*reason),
            _ => None,
        }
    }
}
