//! `running-requests-size-scorer`: the fewer requests an engine runs, the better.
//!
//! Formula: (max - running) / (max - min) over the candidates; 1 for all when they are equal.
//!
//! Inputs: the running-requests metric of each candidate ([`Metric::Running`]). A candidate without
//! a fresh reading gets 0; when nobody has one, all get 1 (see [`super`]).
//!
//! When it misleads: engines batch, so running requests cost little until the batch is full; a
//! server with twice the GPUs runs twice the requests at the same speed and looks worse. The engine
//! `triton` reports no such gauge, so its endpoints count as unknown.
//!
//! ```yaml
//! - type: running-requests-size-scorer
//! ```

use super::{fewest_is_best, read_fresh};
use crate::domain::{LoadTable, Slot};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Metric, Need, Row, Scorer, Stability};

crate::params! {
    /// The scorer has no parameters.
    pub struct Params {}
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "running-requests-size-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers endpoints with fewer running requests, relative to the other candidates.",
        params: Params::SPEC,
        sample: "- type: running-requests-size-scorer\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params {} = b.params();
    b.need(Need::Metric(Metric::Running));
    Some(Built::scorer(RunningRequests))
}

struct RunningRequests;

impl Scorer for RunningRequests {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let spread = read_fresh(cx, candidates, out, LoadTable::running);
        fewest_is_best(out, spread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::{build, fresh, sampled};

    #[test]
    fn reads_running_and_not_waiting_requests() {
        let scene = sampled(&[fresh(0.0, 8.0, 0.0), fresh(9.0, 2.0, 0.0), fresh(1.0, 4.0, 0.0), None]);
        let scores = scene.scores(&build(&ROW, vec![]));
        assert_eq!(scores, [0.0, 1.0, 4.0 / 6.0, 0.0]);
    }
}
