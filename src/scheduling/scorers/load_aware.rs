//! `load-aware-scorer`: an empty queue scores 0.5, a queue at the threshold 0.
//!
//! Formula: 0.5 * (1 - min(waiting, threshold) / threshold).
//!
//! Inputs: the waiting-requests metric of each candidate ([`Metric::Waiting`]). A candidate without
//! a fresh reading gets 0; when nobody has one, all get 0.5 (see [`super`]).
//!
//! When it misleads: it never exceeds 0.5, so at equal weight it counts half of the other scorers.
//! It is absolute: unlike `queue-scorer` it hardly tells queues of 0 and 1 apart, which damps
//! flapping, but beyond the threshold it tells nothing apart.
//!
//! ```yaml
//! - type: load-aware-scorer
//!   parameters:
//!     threshold: 128
//! ```

use super::read_fresh;
use crate::domain::{LoadTable, Slot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Metric, Need, Row, Scorer, Stability};

crate::params! {
    /// Parameters of `load-aware-scorer`.
    pub struct Params {
        /// Waiting requests at which the score reaches 0.
        threshold: u32 = 128, "threshold", 1..;
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "load-aware-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Lowers the score from 0.5 to 0 as the queue grows to a threshold.",
        params: Params::SPEC,
        sample: "- type: load-aware-scorer\n  parameters:\n    threshold: 128\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params { threshold } = b.params();
    b.need(Need::Metric(Metric::Waiting));
    Some(Built::scorer(LoadAware { threshold: threshold as f32 }))
}

struct LoadAware {
    threshold: f32,
}

impl Scorer for LoadAware {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        if read_fresh(cx, candidates, out, LoadTable::waiting).is_none() {
            out.fill(0.5);
            return;
        }
        for value in out {
            *value = if value.is_nan() { 0.0 } else { 0.5 * (1.0 - value.min(self.threshold) / self.threshold) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{build, errors, fresh, sampled, stale};

    #[test]
    fn falls_from_one_half_to_zero_at_the_threshold() {
        let waiting = |n| fresh(n, 0.0, 0.0);
        let scene = sampled(&[waiting(0.0), waiting(64.0), waiting(128.0), waiting(4000.0), None]);
        assert_eq!(scene.scores(&build(&ROW, vec![])), [0.5, 0.25, 0.0, 0.0, 0.0]);
        let small = build(&ROW, vec![("threshold", Value::Integer(8))]);
        assert_eq!(sampled(&[waiting(2.0)]).scores(&small), [0.375]);
        assert_eq!(sampled(&[None, stale(5.0, 0.0, 0.0)]).scores(&small), [0.5, 0.5]);
        assert!(errors(&ROW, vec![("threshold", Value::Integer(0))])[0].contains("must be at least 1"));
    }
}
