//! `cel-scorer`: the score is what an expression gives.
//!
//! Formula: the value of the expression for the endpoint, cut to 0..1; with `normalization: min-max`
//! (value - least) / (most - least) over the candidates, all equal being 1. More is better: write a
//! minus, or `1.0 - x`, in front of what is a burden.
//!
//! Missing data, as for all scorers: a candidate for which the expression has no value gets 0 as long as
//! another one has a value, and when nobody has one all get 1. Such results are counted, and logged
//! when the count reaches 1, 10, 100 and so on.
//!
//! Inputs: the attributes that the expression names; see [`crate::scheduling::cel`] for the language and its
//! bounds. Only what it names is scraped, parsed and counted. A mistake in it stops the start.
//!
//! When it misleads: min-max makes a large difference of a small one, as it does for `queue-scorer`: among
//! candidates with 0 and 1 waiting requests the second one gets 0. Use a fixed scale, such as
//! `1.0 - endpoint.waiting_requests / 128.0`, where the size of the difference matters.
//!
//! ```yaml
//! - type: cel-scorer
//!   parameters:
//!     expression: 1.0 - math.greatest(endpoint.kv_cache_usage, endpoint.waiting_requests / 128.0)
//!     normalization: clamp
//! ```

use crate::domain::Slot;
use crate::scheduling::cel::{CHUNK, Evaluator, Kind, Producers, Program};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Row, Scorer, Stability};

crate::choice! {
    /// How a value becomes a score.
    pub enum Normalization {
        /// It is one; what is below 0 or above 1 is cut.
        Clamp = "clamp",
        /// From 0 for the least to 1 for the most of the candidates.
        MinMax = "min-max",
    }
}

crate::params! {
    /// Parameters of `cel-scorer`.
    pub struct Params {
        /// CEL expression that gives a number, more being better; required.
        expression: String = String::new(), "expression";
        /// Whether the number is the score, cut to 0..1, or is set in relation to those of the other candidates.
        normalization: Normalization = Normalization::Clamp, "normalization";
        /// Name of the prefix producer behind `endpoint.prefix_match`; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Name of the inflight-load-producer behind `endpoint.inflight_requests`; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "cel-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Scores endpoints by an expression over request and endpoint.",
        params: Params::SPEC,
        sample: "- type: cel-scorer\n  parameters:\n    expression: 1.0 - math.greatest(endpoint.kv_cache_usage, endpoint.waiting_requests / 128.0)\n    normalization: clamp\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let producers = Producers {
        prefix: params.prefix_match_info_producer_name.as_deref(),
        in_flight: params.in_flight_load_producer_name.as_deref(),
    };
    let program = Program::compile(b, &params.expression, Kind::Number, producers)?;
    Some(Built::scorer(CelScorer { program, normalization: params.normalization }))
}

struct CelScorer {
    program: Program,
    normalization: Normalization,
}

/// Calls `each` with the candidate's index and its value, NaN for none.
fn values(evaluator: &Evaluator<'_>, candidates: &[Slot], mut each: impl FnMut(usize, f64)) {
    let mut results = [0.0; CHUNK];
    for (i, slots) in candidates.chunks(CHUNK).enumerate() {
        let results = &mut results[..slots.len()];
        evaluator.chunk(slots, results);
        results.iter().enumerate().for_each(|(at, value)| each(i * CHUNK + at, *value));
    }
}

impl Scorer for CelScorer {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let (mut missing, mut example) = (0, None);
        self.program.evaluate(cx, |evaluator| {
            let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
            values(evaluator, candidates, |i, value| {
                if value.is_nan() {
                    missing += 1;
                    example = Some(candidates[i]);
                    out[i] = 0.0;
                } else {
                    least = least.min(value);
                    most = most.max(value);
                    out[i] = value.clamp(0.0, 1.0) as f32;
                }
            });
            if least > most {
                out.fill(1.0);
            } else if self.normalization == Normalization::MinMax {
                // Worked out again: as `f32` large values would have lost their differences. Halves cannot overflow.
                let width = most / 2.0 - least / 2.0;
                values(evaluator, candidates, |i, value| {
                    out[i] = match value {
                        value if value.is_nan() => 0.0,
                        value if width > 0.0 => ((value / 2.0 - least / 2.0) / width) as f32,
                        _ => 1.0,
                    };
                });
            }
        });
        if let Some(slot) = example {
            self.program.count_missing(cx, missing, slot, "the worst score");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::InFlightView;
    use crate::scheduling::fixtures::{build, errors, fresh, pool, sampled, text};

    fn scorer(expression: &str, normalization: &str) -> Built {
        build(&ROW, vec![("expression", text(expression)), ("normalization", text(normalization))])
    }

    #[test]
    fn is_the_value_cut_to_the_range_of_scores() {
        let scene = sampled(&[fresh(0.0, 0.0, 0.25), fresh(0.0, 0.0, 1.0), fresh(0.0, 0.0, 0.0), None]);
        let scores = scene.scores(&scorer("1.5 - 2.0 * endpoint.kv_cache_usage", "clamp"));
        assert_eq!(scores, [1.0, 0.0, 1.0, 0.0], "the unseen is the worst");
        assert_eq!(pool(3).scores(&scorer("endpoint.kv_cache_usage", "clamp")), [1.0; 3], "nobody is seen: all equal");
        assert_eq!(pool(3).scores(&scorer("0.25", "clamp")), [0.25; 3]);
    }

    #[test]
    fn min_max_spreads_over_the_candidates() {
        let mut scene = pool(4);
        let tokens = vec![1 << 53, (1 << 53) + 2, (1 << 53) + 8, (1 << 53) + 4];
        scene.signals.in_flight = Some(InFlightView { requests: vec![7; 4], tokens });
        let scores = scene.scores(&scorer("-endpoint.inflight_tokens", "min-max"));
        assert_eq!(scores, [1.0, 0.75, 0.0, 0.5], "large numbers keep their differences");
        assert_eq!(scene.scores(&scorer("endpoint.inflight_requests", "min-max")), [1.0; 4], "all equal");
        let huge = "endpoint.inflight_tokens > 9007199254740993.0 ? 1.7e308 : -1.7e308";
        assert_eq!(scene.scores(&scorer(huge, "min-max")), [0.0, 1.0, 1.0, 1.0], "without overflow");
        assert_eq!(pool(2).scores(&scorer("endpoint.kv_cache_usage", "min-max")), [1.0; 2]);
    }

    #[test]
    fn a_condition_is_no_score() {
        let wrong = errors(&ROW, vec![("expression", text("endpoint.waiting_requests < 3"))]);
        assert!(
            wrong[0].contains("gives a boolean, and a number is needed") && wrong[0].contains("? 1.0 : 0.0"),
            "{wrong:?}"
        );
        assert!(errors(&ROW, vec![("normalization", text("minmax"))])[0].contains("did you mean `min-max`?"));
    }
}
