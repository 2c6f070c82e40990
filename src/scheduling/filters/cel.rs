//! `cel-filter`: keeps the endpoints for which an expression is true.
//!
//! Rule. The expression is evaluated for every candidate; those where it is false leave, and so do
//! those where it has no value because something that it reads is missing (a metric that was not
//! reported or is stale, an absent label). Such results are counted, and logged when the count reaches
//! 1, 10, 100 and so on. When nobody is left the request is refused with 429, or, with
//! `fallbackOnEmpty`, all candidates stay as if there were no filter.
//!
//! Inputs: the attributes that the expression names; see [`crate::scheduling::cel`] for the language and its
//! bounds. Only what it names is scraped, parsed and counted. A mistake in it stops the start.
//!
//! When it misleads: a broken scrape makes every metric missing, so a filter on a metric removes
//! everybody: set `fallbackOnEmpty`, or write `!has(endpoint.waiting_requests) || endpoint.waiting_requests < 10`.
//!
//! ```yaml
//! - type: cel-filter
//!   parameters:
//!     expression: endpoint.labels['tier'] == 'gold' || request.prompt_tokens < 1000
//!     fallbackOnEmpty: true
//! ```

use crate::domain::Slot;
use crate::scheduling::cel::{CHUNK, Kind, Producers, Program};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Filter, Row, Stability};

crate::params! {
    /// Parameters of `cel-filter`.
    pub struct Params {
        /// CEL expression that gives a boolean; required.
        expression: String = String::new(), "expression";
        /// Keep all candidates when the expression is true for none of them.
        fallback_on_empty: bool = false, "fallbackOnEmpty";
        /// Name of the prefix producer behind `endpoint.prefix_match`; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Name of the inflight-load-producer behind `endpoint.inflight_requests`; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "cel-filter",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Keeps endpoints for which an expression over request and endpoint is true.",
        params: Params::SPEC,
        sample: "- type: cel-filter\n  parameters:\n    expression: endpoint.labels['tier'] == 'gold' || request.prompt_tokens < 1000\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let producers = Producers {
        prefix: params.prefix_match_info_producer_name.as_deref(),
        in_flight: params.in_flight_load_producer_name.as_deref(),
    };
    let program = Program::compile(b, &params.expression, Kind::Bool, producers)?;
    Some(Built::filter(CelFilter { program, fallback_on_empty: params.fallback_on_empty }))
}

struct CelFilter {
    program: Program,
    fallback_on_empty: bool,
}

impl Filter for CelFilter {
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>) {
        let (mut kept, mut missing, mut example) = (0, 0, None);
        self.program.evaluate(cx, |evaluator| {
            let mut results = [0.0; CHUNK];
            let mut start = 0;
            while start < candidates.len() {
                let end = candidates.len().min(start + CHUNK);
                let results = &mut results[..end - start];
                evaluator.chunk(&candidates[start..end], results);
                for (i, result) in results.iter().enumerate() {
                    let slot = candidates[start + i];
                    if *result == 1.0 {
                        // In place: what is kept never overtakes what is still to be looked at.
                        candidates[kept] = slot;
                        kept += 1;
                    } else if result.is_nan() {
                        missing += 1;
                        example = Some(slot);
                    }
                }
                start = end;
            }
        });
        if kept > 0 || !self.fallback_on_empty {
            candidates.truncate(kept);
        }
        if let Some(slot) = example {
            self.program.count_missing(cx, missing, slot, "false");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{build, errors, fresh, labelled, sampled, stale, text};

    fn filter(expression: &str) -> Built {
        build(&ROW, vec![("expression", text(expression))])
    }

    fn or_all(expression: &str) -> Built {
        build(&ROW, vec![("expression", text(expression)), ("fallbackOnEmpty", Value::Bool(true))])
    }

    #[test]
    fn keeps_those_for_which_it_is_true() {
        let scene = labelled(&[&[("tier", "gold")], &[], &[("tier", "free")], &[("tier", "gold")]]);
        assert_eq!(scene.kept(&filter("endpoint.labels['tier'] == 'gold'")), [0, 3]);
        assert_eq!(scene.kept(&filter("endpoint.labels['tier'] != 'gold'")), [2], "without the label it has no value");
        assert_eq!(scene.kept(&filter("!('tier' in endpoint.labels)")), [1]);
        assert_eq!(scene.kept(&filter("true")), [0, 1, 2, 3]);
        assert!(scene.kept(&filter("false")).is_empty());
    }

    #[test]
    fn falls_back_to_all_only_when_nobody_is_left() {
        let scene = sampled(&[fresh(3.0, 0.0, 0.1), fresh(30.0, 0.0, 0.1), stale(0.0, 0.0, 0.1), None]);
        assert_eq!(scene.kept(&or_all("endpoint.waiting_requests < 10")), [0]);
        assert_eq!(
            scene.kept(&or_all("endpoint.waiting_requests < 1")),
            [0, 1, 2, 3],
            "stale and unknown are not zero"
        );
        assert!(scene.kept(&filter("endpoint.waiting_requests < 1")).is_empty());
    }

    #[test]
    fn keeps_the_order_over_many_pieces() {
        let labels: Vec<[(&str, &str); 1]> =
            (0..1_000).map(|i| [("odd", if i % 2 == 1 { "1" } else { "0" })]).collect();
        let labels: Vec<&[(&str, &str)]> = labels.iter().map(|l| &l[..]).collect();
        let scene = labelled(&labels);
        let odd: Vec<u32> = (0..1_000).filter(|i| i % 2 == 1).collect();
        assert_eq!(scene.kept(&filter("endpoint.labels.odd == '1'")), odd);
    }

    #[test]
    fn a_mistake_is_an_error_of_the_configuration() {
        assert!(errors(&ROW, vec![])[0].contains("there is no expression"));
        let number = errors(&ROW, vec![("expression", text("endpoint.kv_cache_usage"))]);
        assert!(number[0].starts_with("parameters.expression: the expression gives a number"), "{number:?}");
        assert!(number[0].contains("fix: compare it"), "{number:?}");
    }
}
