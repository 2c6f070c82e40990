//! `weighted-random-picker`: chance in proportion to the total.
//!
//! Rule: weighted sampling without replacement (A-Res: each candidate draws the key U^(1/total), the
//! largest keys win). When all totals are zero every candidate has the same chance; zeros beside
//! positive totals come only after all of those. For one endpoint this is the plain draw with
//! probability total / sum, which is what is computed: one random number and two passes. For more,
//! the equal but numerically safer form of the key is used, -ln(U) / total, smallest first.
//!
//! Inputs: the totals; negative ones count as zero.
//!
//! When it misleads: totals are sums of several scorers and rarely close to zero, so the chances are
//! flatter than the scores look (7 against 5 is 58 % against 42 %, however bad 5 may be).
//!
//! ```yaml
//! - type: weighted-random-picker
//!   parameters:
//!     maxNumOfEndpoints: 1
//! ```

use smallvec::SmallVec;

use super::{Params, count};
use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Picker, Row, Stability};

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "weighted-random-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Picks at random with chances in proportion to the totals.",
        params: Params::SPEC,
        sample: "- type: weighted-random-picker\n  parameters:\n    maxNumOfEndpoints: 1\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    Some(Built::picker(WeightedRandom { count: count(b) }))
}

struct WeightedRandom {
    count: usize,
}

/// A total as a weight. In f64 the sum of any number of finite f32 weights stays finite.
fn weight(total: f32) -> f64 {
    if total.is_nan() { 0.0 } else { f64::from(total.clamp(0.0, f32::MAX)) }
}

impl Picker for WeightedRandom {
    fn pick(&self, _: &Cycle<'_>, _: &[Slot], totals: &[f32], rng: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        if totals.is_empty() {
            return;
        }
        if self.count == 1 {
            picked.push(one(totals, rng));
            return;
        }
        // Zero weights are a class of their own behind all others, in uniform order.
        let mut keys: SmallVec<[(bool, f64, usize); 64]> = totals
            .iter()
            .enumerate()
            .map(|(i, total)| {
                let weight = weight(*total);
                let drawn = -(1.0 - rng.f64()).ln();
                if weight > 0.0 { (false, drawn / weight, i) } else { (true, drawn, i) }
            })
            .collect();
        let smaller = |a: &(bool, f64, usize), b: &(bool, f64, usize)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1));
        if self.count < keys.len() {
            keys.select_nth_unstable_by(self.count - 1, smaller);
            keys.truncate(self.count);
        }
        keys.sort_unstable_by(smaller);
        picked.extend(keys.iter().map(|(_, _, i)| *i));
    }
}

fn one(totals: &[f32], rng: &mut fastrand::Rng) -> usize {
    let sum: f64 = totals.iter().map(|t| weight(*t)).sum();
    if sum <= 0.0 {
        return rng.usize(..totals.len());
    }
    let mut rest = rng.f64() * sum;
    let mut last = 0;
    for (i, total) in totals.iter().enumerate() {
        let weight = weight(*total);
        if weight > 0.0 {
            last = i;
            if rest < weight {
                return i;
            }
            rest -= weight;
        }
    }
    // Rounding can leave a crumb of `rest`; it belongs to the last candidate with a chance.
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::pool;

    fn first_picks(count: usize, totals: &[f32]) -> Vec<u32> {
        let scene = pool(totals.len());
        let slots = scene.slots();
        let mut rng = fastrand::Rng::with_seed(11);
        let mut wins = vec![0; totals.len()];
        for _ in 0..10_000 {
            let mut picked = Vec::new();
            WeightedRandom { count }.pick(&scene.cycle(), &slots, totals, &mut rng, &mut picked);
            assert_eq!(picked.len(), count.min(totals.len()));
            wins[picked[0]] += 1;
        }
        wins
    }

    #[test]
    fn one_or_many_the_first_pick_follows_the_weights() {
        for count in [1, 2] {
            let wins = first_picks(count, &[1.0, 3.0, 0.0, 6.0]);
            assert!((850..1_150).contains(&wins[0]), "{count}: {wins:?}");
            assert!((2_850..3_150).contains(&wins[1]), "{count}: {wins:?}");
            assert_eq!(wins[2], 0);
        }
    }

    #[test]
    fn no_weight_at_all_is_uniform_and_strange_weights_are_harmless() {
        for count in [1, 3] {
            assert!(first_picks(count, &[0.0; 4]).iter().all(|w| (2_300..2_700).contains(w)));
            let odd = first_picks(count, &[f32::NAN, -5.0, f32::INFINITY, f32::MAX]);
            assert_eq!(odd[0] + odd[1], 0);
            assert!(odd[2] > 4_500 && odd[3] > 4_500, "{odd:?}");
        }
    }

    #[test]
    fn zeros_come_after_everything_that_has_a_chance() {
        let scene = pool(4);
        let slots = scene.slots();
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..100 {
            let mut picked = Vec::new();
            WeightedRandom { count: 4 }.pick(&scene.cycle(), &slots, &[0.0, 1e-30, 0.0, 1.0], &mut rng, &mut picked);
            picked[..2].sort_unstable();
            assert_eq!(picked[..2], [1, 3]);
        }
    }
}
