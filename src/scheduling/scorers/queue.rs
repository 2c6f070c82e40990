//! `queue-scorer`: the shorter the engine's queue, the better.
//!
//! Formula: (max - waiting) / (max - min) over the candidates; 1 for all when they are equal.
//!
//! Inputs: the waiting-requests metric of each candidate ([`Metric::Waiting`]). A candidate without
//! a fresh reading gets 0; when nobody has one, all get 1 (see [`super`]).
//!
//! When it misleads: the score is relative, so queues of 0 and 1 are as far apart as 0 and 500. The
//! reading is as old as the last scrape: within that time a burst sees the same shortest queue.
//! Weigh in `active-request-scorer` where bursts are common.
//!
//! ```yaml
//! - type: queue-scorer
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
        kind: "queue-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers endpoints with fewer waiting requests, relative to the other candidates.",
        params: Params::SPEC,
        sample: "- type: queue-scorer\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params {} = b.params();
    b.need(Need::Metric(Metric::Waiting));
    Some(Built::scorer(Queue))
}

struct Queue;

impl Scorer for Queue {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let spread = read_fresh(cx, candidates, out, LoadTable::waiting);
        fewest_is_best(out, spread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::{build, fresh, pool, sampled, stale};

    #[test]
    fn scales_between_the_longest_and_the_shortest_queue() {
        let scorer = build(&ROW, vec![]);
        let scores = |samples: &[_]| sampled(samples).scores(&scorer);
        let waiting = |n| fresh(n, 0.0, 0.0);
        assert_eq!(scores(&[waiting(10.0), waiting(0.0), waiting(5.0)]), [0.0, 1.0, 0.5]);
        assert_eq!(scores(&[waiting(7.0), waiting(7.0)]), [1.0, 1.0]);
        assert_eq!(scores(&[waiting(-3.0), waiting(0.0)]), [1.0, 1.0], "a negative queue is an empty one");
        assert_eq!(scores(&[waiting(f32::MAX), waiting(0.0)]), [0.0, 1.0]);
    }

    #[test]
    fn the_unknown_rank_last_unless_nobody_is_known() {
        let scorer = build(&ROW, vec![]);
        let scores = |samples: &[_]| sampled(samples).scores(&scorer);
        assert_eq!(scores(&[fresh(9.0, 0.0, 0.0), None, stale(0.0, 0.0, 0.0)]), [1.0, 0.0, 0.0]);
        assert_eq!(scores(&[stale(3.0, 0.0, 0.0), None, stale(0.0, 0.0, 0.0)]), [1.0, 1.0, 1.0]);
        assert!(pool(0).scores(&scorer).is_empty());
    }
}
