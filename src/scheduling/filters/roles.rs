//! `decode-filter`, `prefill-filter` and `encode-filter`: keep the endpoints that serve a stage.
//!
//! Rule, by the label `llm-d.ai/role`:
//!
//! | filter | values that pass | without the label |
//! |---|---|---|
//! | `decode-filter` | `decode`, `prefill-decode`, `both`, `encode-prefill-decode` | passes |
//! | `prefill-filter` | `prefill`, `encode-prefill`, `prefill-decode`, `both`, `encode-prefill-decode` | removed |
//! | `encode-filter` | `encode`, `encode-prefill`, `encode-prefill-decode` | removed |
//!
//! Inputs: [`Roles`], read from the label when the endpoint joined the pool. Three types in one file
//! because they are one rule with three columns.
//!
//! When it misleads: a pool where nobody wrote the label has no prefill endpoint at all, and an
//! unknown value (also `encode-decode`, which older documentation names) serves no stage.
//!
//! ```yaml
//! - type: decode-filter
//! ```

use super::EndpointFilter;
use crate::domain::{Endpoint, Roles};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Row, Stability};

crate::params! {
    /// The role filters have no parameters.
    pub struct Params {}
}

/// `decode-filter` in the table.
pub const DECODE_ROW: Row = Row {
    about: about(
        "decode-filter",
        "Keeps endpoints that may decode, among them those without a role label.",
        "- type: decode-filter\n",
    ),
    build: |b| build(b, Roles::decodes),
};

/// `prefill-filter` in the table.
pub const PREFILL_ROW: Row = Row {
    about: about("prefill-filter", "Keeps endpoints labelled for prefill.", "- type: prefill-filter\n"),
    build: |b| build(b, Roles::prefills),
};

/// `encode-filter` in the table.
pub const ENCODE_ROW: Row = Row {
    about: about("encode-filter", "Keeps endpoints labelled for multimodal encoding.", "- type: encode-filter\n"),
    build: |b| build(b, Roles::encodes),
};

const fn about(kind: &'static str, summary: &'static str, sample: &'static str) -> About {
    About { kind, aliases: &[], stability: Stability::Beta, summary, params: Params::SPEC, sample }
}

fn build(b: &mut Build<'_>, serves: fn(Roles) -> bool) -> Option<Built> {
    let Params {} = b.params();
    Some(Built::filter(EndpointFilter::new(move |endpoint: &Endpoint| serves(endpoint.roles))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::endpoint::ROLE_LABEL;
    use crate::scheduling::fixtures::{build, errors, labelled, text};

    #[test]
    fn each_stage_keeps_its_roles() {
        let role = |r| [(ROLE_LABEL, r)];
        let (e, p, d, ep, pd, both, epd, odd) = (
            role("encode"),
            role("prefill"),
            role("decode"),
            role("encode-prefill"),
            role("prefill-decode"),
            role("both"),
            role("encode-prefill-decode"),
            role("encode-decode"),
        );
        let scene = labelled(&[&e, &p, &d, &ep, &pd, &both, &epd, &odd, &[]]);
        assert_eq!(scene.kept(&build(&DECODE_ROW, vec![])), [2, 4, 5, 6, 8]);
        assert_eq!(scene.kept(&build(&PREFILL_ROW, vec![])), [1, 3, 4, 5, 6]);
        assert_eq!(scene.kept(&build(&ENCODE_ROW, vec![])), [0, 3, 6]);
    }

    #[test]
    fn parameters_are_refused() {
        assert!(errors(&DECODE_ROW, vec![("role", text("x"))])[0].contains("nothing can be set here"));
    }
}
