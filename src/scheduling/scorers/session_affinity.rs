//! `session-affinity-scorer`: a session goes back to the endpoint that it was last sent to.
//!
//! Formula: 1 for the session's endpoint, 0 for all others; all 0 without a session or when its
//! endpoint is no candidate (any more).
//!
//! Strategies, parameters, bounds, inputs, and what is learnt and when:
//! [`session_affinity`](crate::scheduling::session_affinity).
//!
//! When it misleads: affinity works against balance, one busy session or tenant stays where it
//! is; give it less weight than the sum of the load scorers. For a hard rule there is
//! `session-affinity-filter`.
//!
//! Where ours differs: the type is Alpha in the picker we replace and Beta here.
//!
//! ```yaml
//! - type: session-affinity-scorer
//!   parameters:
//!     strategy: session_id
//!     sources:
//!     - header: x-session-id
//!     evictionTtlSeconds: 300
//! ```

use std::sync::Arc;

use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Row, Scorer, Stability};
use crate::scheduling::session_affinity::{Params, SessionAffinity};

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "session-affinity-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers the endpoint that the session was last sent to.",
        params: Params::SPEC,
        sample: "- type: session-affinity-scorer\n  parameters:\n    strategy: session_id\n    sources:\n    - header: x-session-id\n    evictionTtlSeconds: 300\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let plugin = Arc::new(SessionAffinity::build(b)?);
    Some(Built { scorer: Some(Arc::clone(&plugin) as _), commit: Some(plugin), ..Built::default() })
}

impl Scorer for SessionAffinity {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        if let Some(slot) = self.wanted(cx)
            && let Ok(i) = candidates.binary_search(&slot)
            && let Some(value) = out.get_mut(i)
        {
            *value = 1.0;
        }
    }
}

#[cfg(test)]
mod tests;
