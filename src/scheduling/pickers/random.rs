//! `random-picker`: any candidate, each with the same chance.
//!
//! Rule: `maxNumOfEndpoints` distinct candidates, drawn uniformly; totals are ignored.
//!
//! Inputs: none.
//!
//! When it misleads: with few requests in flight, chance alone puts two on one endpoint while
//! another idles. It is the baseline to compare scorers with, not a strategy.
//!
//! ```yaml
//! - type: random-picker
//!   parameters:
//!     maxNumOfEndpoints: 1
//! ```

use super::{Params, count};
use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Picker, Row, Stability};

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "random-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Picks any candidate with equal chance.",
        params: Params::SPEC,
        sample: "- type: random-picker\n  parameters:\n    maxNumOfEndpoints: 1\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    Some(Built::picker(Random { count: count(b) }))
}

struct Random {
    count: usize,
}

impl Picker for Random {
    fn pick(&self, _: &Cycle<'_>, candidates: &[Slot], _: &[f32], rng: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        let n = candidates.len();
        if n == 0 {
            return;
        }
        if self.count == 1 {
            picked.push(rng.usize(..n));
            return;
        }
        let start = picked.len();
        picked.extend(0..n);
        // The first steps of a Fisher-Yates shuffle.
        for i in 0..self.count.min(n) {
            picked.swap(start + i, start + rng.usize(i..n));
        }
        picked.truncate(start + self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::pool;

    #[test]
    fn every_candidate_has_its_share_at_every_rank() {
        let scene = pool(4);
        let slots = scene.slots();
        let mut rng = fastrand::Rng::with_seed(7);
        for count in [1, 3] {
            let mut seen = [[0u32; 4]; 3];
            for _ in 0..4_000 {
                let mut picked = Vec::new();
                Random { count }.pick(&scene.cycle(), &slots, &[9.0, 0.0, 0.0, 0.0], &mut rng, &mut picked);
                assert_eq!(picked.len(), count);
                picked.iter().enumerate().for_each(|(rank, i)| seen[rank][*i] += 1);
            }
            assert!(seen[..count].iter().flatten().all(|n| (880..1_120).contains(n)), "{seen:?}");
        }
    }
}
