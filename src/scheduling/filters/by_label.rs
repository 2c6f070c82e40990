//! `by-label`: keeps the endpoints that carry one of the listed values of a label.
//!
//! Rule: the label is present and its value is in `validValues`, or it is absent and
//! `allowsNoLabel` is true. Kept for configurations of v0.3 to v0.8; `label-selector-filter` says the
//! same and more.
//!
//! Inputs: the labels of the endpoint.
//!
//! When it misleads: as for every label filter, a typing error removes all endpoints and requests
//! are refused with 429. The Go picker also kept endpoints *without* the label when `validValues`
//! held the empty text; here only `allowsNoLabel` does that.
//!
//! ```yaml
//! - type: by-label
//!   parameters:
//!     label: tier
//!     validValues: [gold, silver]
//!     allowsNoLabel: false
//! ```

use super::EndpointFilter;
use crate::domain::Endpoint;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Row, Stability};

crate::params! {
    /// Parameters of `by-label`.
    pub struct Params {
        /// Name of the label; required.
        label: String = String::new(), "label";
        /// Values that are kept; required unless allowsNoLabel is true.
        valid_values: Vec<String> = Vec::new(), "validValues";
        /// Also keep endpoints that lack the label.
        allows_no_label: bool = false, "allowsNoLabel";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "by-label",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Keeps endpoints that carry one of the listed values of a label (older form of label-selector-filter).",
        params: Params::SPEC,
        sample: "- type: by-label\n  parameters:\n    label: tier\n    validValues: [gold, silver]\n    allowsNoLabel: false\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params { label, valid_values, allows_no_label } = b.params();
    if label.is_empty() {
        b.error("label", "a label is required", "name the label to compare");
        return None;
    }
    if valid_values.is_empty() && !allows_no_label {
        b.error("validValues", "nothing could ever pass", "list the values to keep, or set `allowsNoLabel: true`");
        return None;
    }
    Some(Built::filter(EndpointFilter::new(move |endpoint: &Endpoint| match endpoint.label(&label) {
        Some(value) => valid_values.iter().any(|v| v == value),
        None => allows_no_label,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{build, errors, labelled, text, texts};

    #[test]
    fn keeps_listed_values_and_optionally_the_unlabelled() {
        let scene = labelled(&[&[("tier", "gold")], &[("tier", "silver")], &[("tier", "lead")], &[]]);
        let params = |no_label| {
            vec![
                ("label", text("tier")),
                ("validValues", texts(&["gold", "silver"])),
                ("allowsNoLabel", Value::Bool(no_label)),
            ]
        };
        assert_eq!(scene.kept(&build(&ROW, params(false))), [0, 1]);
        assert_eq!(scene.kept(&build(&ROW, params(true))), [0, 1, 3]);
    }

    #[test]
    fn a_filter_that_cannot_work_is_refused() {
        assert!(errors(&ROW, vec![])[0].contains("a label is required"));
        assert!(errors(&ROW, vec![("label", text("tier"))])[0].contains("nothing could ever pass"));
    }
}
