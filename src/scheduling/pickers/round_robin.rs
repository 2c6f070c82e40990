//! `round-robin-picker`: the candidates take turns. (Ours; the picker we replace has none.)
//!
//! Rule: request number n goes to candidate n mod (number of candidates), in slot order; the ones
//! that follow, wrapping around, are the fallbacks. Totals are ignored.
//!
//! Inputs: the number of requests that this picker's configuration has routed. A decision changes
//! nothing, so the turn moves on in [`Commit`]; a decision that is only explained or is repeated
//! takes nobody's turn. Decisions between which no commit happens get the same endpoint.
//!
//! When it misleads: the turn counts requests, not candidates. If requests of one kind (filtered to
//! two endpoints) alternate strictly with requests of another kind, each kind sees only every second
//! number and may stay on one endpoint; give each kind a picker instance of its own. Requests
//! are not equal either: a turn says nothing about how long the last prompt was.
//!
//! Rejected: remembering the last slot. It has the same weakness, and with several profiles in one
//! request it is not even clear whose slot is the last one.
//!
//! ```yaml
//! - type: round-robin-picker
//!   parameters:
//!     maxNumOfEndpoints: 1
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Params, count};
use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Commit, Cycle, Picker, Routed, Row, Stability, Watch};

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "round-robin-picker",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Lets the candidates take turns, whatever their totals.",
        params: Params::SPEC,
        sample: "- type: round-robin-picker\n  parameters:\n    maxNumOfEndpoints: 1\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let plugin = Arc::new(RoundRobin { count: count(b), turn: AtomicU64::new(0) });
    Some(Built { picker: Some(Arc::clone(&plugin) as _), commit: Some(plugin), ..Built::default() })
}

struct RoundRobin {
    count: usize,
    turn: AtomicU64,
}

impl Picker for RoundRobin {
    fn pick(&self, _: &Cycle<'_>, candidates: &[Slot], _: &[f32], _: &mut fastrand::Rng, picked: &mut Vec<usize>) {
        let n = candidates.len();
        if n > 0 {
            let first = (self.turn.load(Ordering::Relaxed) % n as u64) as usize;
            picked.extend((0..self.count.min(n)).map(|i| (first + i) % n));
        }
    }
}

impl Commit for RoundRobin {
    fn reserves(&self) -> bool {
        // The turn is what the next decision reads.
        true
    }

    fn commit(&self, _: &Routed<'_>) -> Option<Box<dyn Watch>> {
        self.turn.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{NOW, build, decision, errors, pool};

    #[test]
    fn the_turn_moves_with_commits_and_only_with_them() {
        let scene = pool(3);
        let built = build(&ROW, vec![("maxNumOfEndpoints", Value::Integer(2))]);
        let (picker, commit) = (built.picker.unwrap(), built.commit.unwrap());
        let pick = || {
            let mut picked = Vec::new();
            picker.pick(&scene.cycle(), &scene.slots(), &[0.0; 3], &mut fastrand::Rng::with_seed(0), &mut picked);
            picked
        };
        assert_eq!((pick(), pick()), (vec![0, 1], vec![0, 1]), "deciding changes nothing");
        let decision = decision(&scene, &[("default", &[0])]);
        let routed = Routed { request: &scene.request, decision: &decision, signals: &scene.signals, now: NOW };
        let turns: Vec<_> = (0..4)
            .map(|_| {
                assert!(commit.commit(&routed).is_none());
                pick()
            })
            .collect();
        assert_eq!(turns, [[1, 2], [2, 0], [0, 1], [1, 2]]);
    }

    #[test]
    fn at_least_one_endpoint_must_be_named() {
        let shown = errors(&ROW, vec![("maxNumOfEndpoints", Value::Integer(0))]);
        assert!(shown[0].contains("must be at least 1"), "{shown:?}");
    }
}
