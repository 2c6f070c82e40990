//! `max-score-picker`: the highest total wins, equals are drawn by lot.
//!
//! Rule: rank by total, descending; candidates with equal totals come in random order, each order
//! equally likely. With `maxNumOfEndpoints` 1 that is two passes over the totals (the maximum and
//! how often it occurs, then the n-th of those) and one random number; with more, a shuffle and a
//! partial selection. Nothing is allocated beyond the caller's buffer.
//!
//! Inputs: the totals.
//!
//! When it misleads: the totals of a burst are equal or nearly so, and every request of the burst
//! follows the same small difference to the same endpoint until the metrics move. Random order helps
//! among exact equals only; against near-equals, weigh in `active-request-scorer`, whose counts are
//! reserved with the choice, or use `weighted-random-picker`.
//!
//! ```yaml
//! - type: max-score-picker
//!   parameters:
//!     maxNumOfEndpoints: 1
//! ```

use std::cmp::Ordering;

use super::{Params, comparable, count};
use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Picker, Row, Stability};

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "max-score-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Picks the endpoint with the highest total; equal totals are drawn by lot.",
        params: Params::SPEC,
        sample: "- type: max-score-picker\n  parameters:\n    maxNumOfEndpoints: 1\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    Some(Built::picker(MaxScore { count: count(b) }))
}

struct MaxScore {
    count: usize,
}

impl Picker for MaxScore {
    fn pick(&self, _: &Cycle<'_>, _: &[Slot], totals: &[f32], rng: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        if totals.is_empty() {
            return;
        }
        if self.count == 1 {
            picked.push(one(totals, rng));
            return;
        }
        let start = picked.len();
        picked.extend(0..totals.len());
        let order = &mut picked[start..];
        rng.shuffle(order);
        let descending = |a: &usize, b: &usize| {
            comparable(totals[*b]).partial_cmp(&comparable(totals[*a])).unwrap_or(Ordering::Equal)
        };
        // After the shuffle no position says anything about the element, so an unstable selection
        // and sort still leave each order of equals equally likely.
        if self.count < order.len() {
            order.select_nth_unstable_by(self.count - 1, descending);
        }
        picked.truncate(start + self.count);
        picked[start..].sort_unstable_by(descending);
    }

    fn tie_rule(&self) -> Option<&'static str> {
        Some("lot")
    }
}

/// A random one of the highest totals.
fn one(totals: &[f32], rng: &mut fastrand::Rng) -> usize {
    let (mut best, mut first, mut equals) = (f32::NEG_INFINITY, 0, 0usize);
    for (i, total) in totals.iter().enumerate() {
        let total = comparable(*total);
        if total > best {
            (best, first, equals) = (total, i, 1);
        } else if total == best {
            equals += 1;
        }
    }
    if equals <= 1 {
        return first;
    }
    let nth = rng.usize(..equals);
    totals.iter().enumerate().filter(|(_, t)| comparable(**t) == best).nth(nth).map_or(first, |(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::pool;

    fn pick(count: usize, totals: &[f32], seed: u64) -> Vec<usize> {
        let (scene, mut picked) = (pool(totals.len()), Vec::new());
        let slots = scene.slots();
        let mut rng = fastrand::Rng::with_seed(seed);
        MaxScore { count }.pick(&scene.cycle(), &slots, totals, &mut rng, &mut picked);
        picked
    }

    #[test]
    fn the_best_come_first() {
        assert_eq!(pick(1, &[0.5, 2.0, 1.0], 1), [1]);
        assert_eq!(pick(2, &[0.5, 2.0, 1.0], 1), [1, 2]);
        assert_eq!(pick(9, &[0.5, 2.0, 1.0], 1), [1, 2, 0]);
        assert_eq!(pick(1, &[f32::NAN, f32::NEG_INFINITY, -1.0], 1), [2]);
        assert_eq!(pick(1, &[f32::NAN], 1), [0], "there is always a pick");
        assert!(pick(1, &[], 1).is_empty() && pick(3, &[], 1).is_empty());
    }

    #[test]
    fn equals_are_drawn_by_lot() {
        for count in [1, 2] {
            let mut wins = [0u32; 4];
            for seed in 0..4_000 {
                wins[pick(count, &[1.0, 3.0, 3.0, 3.0], seed)[0]] += 1;
            }
            assert_eq!(wins[0], 0);
            assert!(wins[1..].iter().all(|w| (1_150..1_520).contains(w)), "{count}: {wins:?}");
        }
    }
}
