//! `kv-cache-utilization-scorer`: the emptier the KV cache, the better.
//!
//! Formula: 1 - usage, usage being the share of the engine's KV cache in use, 0 to 1.
//!
//! Inputs: the KV usage metric of each candidate ([`Metric::KvUsage`]); readings above 1 (engines
//! that report per cent) count as full. A candidate without a fresh reading gets 0; when nobody
//! has one, all get 1 (see [`super`]).
//!
//! When it misleads: it is absolute, so among busy servers the differences are small and other
//! scorers outweigh it. Some engines count cached but unused blocks as used; then a warm cache
//! looks like a full one and this scorer works against `prefix-cache-scorer`.
//!
//! ```yaml
//! - type: kv-cache-utilization-scorer
//! ```

use super::read_fresh;
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
        kind: "kv-cache-utilization-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers endpoints whose KV cache is emptier.",
        params: Params::SPEC,
        sample: "- type: kv-cache-utilization-scorer\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params {} = b.params();
    b.need(Need::Metric(Metric::KvUsage));
    Some(Built::scorer(KvCacheUtilization))
}

struct KvCacheUtilization;

impl Scorer for KvCacheUtilization {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        if read_fresh(cx, candidates, out, LoadTable::kv_usage).is_none() {
            out.fill(1.0);
            return;
        }
        for value in out {
            *value = if value.is_nan() { 0.0 } else { 1.0 - value.min(1.0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::fixtures::{build, fresh, sampled, stale};

    #[test]
    fn is_what_is_left_of_the_cache() {
        let scorer = build(&ROW, vec![]);
        let scores = |samples: &[_]| sampled(samples).scores(&scorer);
        let usage = |u| fresh(0.0, 0.0, u);
        assert_eq!(scores(&[usage(0.25), usage(1.0), usage(87.0), usage(-1.0)]), [0.75, 0.0, 0.0, 1.0]);
        assert_eq!(scores(&[usage(0.9), None, stale(0.0, 0.0, 0.0)])[1..], [0.0, 0.0]);
        assert_eq!(scores(&[None, stale(0.0, 0.0, 0.9)]), [1.0, 1.0]);
    }
}
