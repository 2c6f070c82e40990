//! `label-selector-filter`: keeps the endpoints whose labels match a Kubernetes label selector.
//!
//! Rule: every `matchLabels` entry is equal and every `matchExpressions` entry holds. `In` and
//! `Exists` need the label; `NotIn` and `DoesNotExist` also hold without it, as in Kubernetes. A
//! selector without any rule matches everything.
//!
//! Inputs: the labels of the endpoint's pod (or of its entry in the endpoints file).
//!
//! When it misleads: labels say what an operator wrote, not what the server can do; a typing error
//! in a value empties the candidate list, and a request without candidates is refused with 429.
//! Unlike in the picker we replace, labels are not read per request but once per change of the
//! endpoint set; the result is the same.
//!
//! ```yaml
//! - type: label-selector-filter
//!   parameters:
//!     matchLabels: {tier: gold}
//!     matchExpressions:
//!     - {key: gpu, operator: In, values: [h100, h200]}
//! ```

use std::collections::BTreeMap;

use super::EndpointFilter;
use crate::domain::Endpoint;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Row, Stability};

crate::choice! {
    /// How a label is compared.
    pub enum Operator {
        /// The label has one of the values.
        In = "In",
        /// The label is absent or has none of the values.
        NotIn = "NotIn",
        /// The label is present.
        Exists = "Exists",
        /// The label is absent.
        DoesNotExist = "DoesNotExist",
    }
}

crate::params! {
    /// One rule of `matchExpressions`.
    pub struct Expression {
        /// Label that is compared; required.
        key: String = String::new(), "key";
        /// How it is compared: In, NotIn, Exists or DoesNotExist; required.
        operator: Option<Operator> = None, "operator";
        /// Values of In and NotIn; must be empty for the others.
        values: Vec<String> = Vec::new(), "values";
    }
}

crate::params! {
    /// A Kubernetes LabelSelector.
    pub struct Params {
        /// Labels that must have exactly these values.
        match_labels: BTreeMap<String, String> = BTreeMap::new(), "matchLabels";
        /// Rules that must all hold, each with key, operator and values.
        match_expressions: Vec<Expression> = Vec::new(), "matchExpressions";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "label-selector-filter",
        aliases: &["by-label-selector"],
        stability: Stability::Beta,
        summary: "Keeps endpoints whose labels match a Kubernetes label selector.",
        params: Params::SPEC,
        sample: "- type: label-selector-filter\n  parameters:\n    matchLabels:\n      tier: gold\n    matchExpressions:\n    - key: gpu\n      operator: In\n      values: [h100, h200]\n",
    },
    build,
};

/// The longest key and value that Kubernetes allows: prefix 253, slash, name 63.
const MAX_KEY: usize = 317;
const MAX_VALUE: usize = 63;

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params = b.params::<Params>();
    let mut rules = Vec::new();
    let mut sound = true;
    let mut wrong = |b: &mut Build<'_>, key: &str, message: String, fix: &str| {
        b.error(key, message, fix);
        sound = false;
    };
    for (key, value) in params.match_labels {
        if key.is_empty() || key.len() > MAX_KEY || value.len() > MAX_VALUE {
            wrong(b, "matchLabels", format!("`{key}: {value}` cannot be a label"), "write a label that a pod can have");
        }
        rules.push((key, Operator::In, vec![value]));
    }
    for (i, Expression { key, operator, values }) in params.match_expressions.into_iter().enumerate() {
        if key.is_empty() || key.len() > MAX_KEY {
            wrong(b, "matchExpressions", format!("[{i}] has no usable key `{key}`"), "name the label in `key`");
        }
        let Some(operator) = operator else {
            wrong(b, "matchExpressions", format!("[{i}] has no operator"), "write In, NotIn, Exists or DoesNotExist");
            continue;
        };
        match (operator, values.is_empty()) {
            (Operator::In | Operator::NotIn, true) => {
                wrong(b, "matchExpressions", format!("[{i}] compares `{key}` with no values"), "list them in `values`");
            }
            (Operator::Exists | Operator::DoesNotExist, false) => {
                let message = format!("[{i}] has values, but presence of `{key}` is all that is asked");
                wrong(b, "matchExpressions", message, "remove `values`, or use In or NotIn");
            }
            _ => {}
        }
        rules.push((key, operator, values));
    }
    sound.then(|| {
        Built::filter(EndpointFilter::new(move |endpoint: &Endpoint| {
            rules.iter().all(|(key, operator, values)| {
                let label = endpoint.label(key);
                let listed = || label.is_some_and(|l| values.iter().any(|v| v == l));
                match operator {
                    Operator::In => listed(),
                    Operator::NotIn => !listed(),
                    Operator::Exists => label.is_some(),
                    Operator::DoesNotExist => label.is_none(),
                }
            })
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{build, errors, labelled, map, node, text, texts};

    fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
        let mut entries = vec![("key", text(key)), ("operator", text(operator))];
        if !values.is_empty() {
            entries.push(("values", texts(values)));
        }
        Value::Sequence(vec![node(map(entries))])
    }

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        let scene = labelled(&[&[("gpu", "h100"), ("tier", "gold")], &[("gpu", "a100")], &[], &[("gpu", "")]]);
        let kept = |operator, values| {
            scene.kept(&build(&ROW, vec![("matchExpressions", expression("gpu", operator, values))]))
        };
        assert_eq!(kept("In", &["h100", "h200"]), [0]);
        assert_eq!(kept("NotIn", &["h100"]), [1, 2, 3]);
        assert_eq!(kept("Exists", &[]), [0, 1, 3]);
        assert_eq!(kept("DoesNotExist", &[]), [2]);
        assert_eq!(scene.kept(&build(&ROW, vec![])), [0, 1, 2, 3], "no rule matches everything");
        let both = build(
            &ROW,
            vec![
                ("matchLabels", map(vec![("tier", text("gold"))])),
                ("matchExpressions", expression("gpu", "In", &["a100"])),
            ],
        );
        assert!(scene.kept(&both).is_empty(), "all rules must hold");
    }

    #[test]
    fn impossible_rules_are_refused() {
        let wrong = |value| errors(&ROW, vec![("matchExpressions", value)]).join("\n");
        assert!(wrong(expression("gpu", "In", &[])).contains("compares `gpu` with no values"));
        assert!(wrong(expression("gpu", "Exists", &["x"])).contains("remove `values`"));
        assert!(wrong(expression("gpu", "in", &["x"])).contains("did you mean `In`"));
        assert!(wrong(expression("", "Exists", &[])).contains("name the label"));
        let no_operator = Value::Sequence(vec![node(map(vec![("key", text("gpu"))]))]);
        assert!(wrong(no_operator).contains("has no operator"));
        let long = "v".repeat(64);
        let labels = errors(&ROW, vec![("matchLabels", map(vec![("tier", text(&long))]))]);
        assert!(labels[0].contains("cannot be a label"));
    }
}
