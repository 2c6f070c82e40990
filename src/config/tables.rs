//! Every plugin type that a configuration can name, by group.
//!
//! Two sorts of group. *Rows* are built here into instances: the tables of `scheduling` and
//! `signals`. *Kinds* belong to rooms that build their own objects (parsers, data sources, extractors,
//! discovery, saturation detectors); this room checks their parameters strictly and hands them on as
//! [`Declared`](super::Declared). A type may be in both: a saturation detector is a filter, too.
//!
//! Everything takes the tables as an argument, so that tests bring small ones of their own.

use crate::admission;
use crate::collector;
use crate::dialect;
use crate::discovery::file;
use crate::domain::node::{Node, Problems};
use crate::params;
use crate::scheduling::params::Params;
use crate::scheduling::plugin::{About, Row, Stability};
use crate::scheduling::{detectors, filters, handlers, pickers, responses, scorers};
use crate::signals;

/// A type whose objects are built by another room.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Name, parameters, sample.
    pub about: About,
    /// Decodes the parameters and records what is wrong with them.
    pub check: fn(Option<&Node>, &str, &mut Problems),
}

impl Kind {
    /// A beta type with parameters `P`.
    pub const fn new<P: Params>(kind: &'static str, summary: &'static str, sample: &'static str) -> Self {
        Self::of::<P>(About { kind, aliases: &[], stability: Stability::Beta, summary, params: P::SPEC, sample })
    }

    /// A type that another room describes, with parameters `P`.
    pub const fn of<P: Params>(about: About) -> Self {
        Self { about, check: check::<P> }
    }
}

fn check<P: Params>(node: Option<&Node>, path: &str, problems: &mut Problems) {
    P::decode_fields(node, path, problems);
}

/// The types that are available.
#[derive(Clone, Default)]
pub struct Tables {
    /// Filters, scorers, pickers, handlers, saturation detectors, response plugins and dispatch.
    pub scheduling: Vec<Row>,
    /// Producers (and what else `signals` has); built before the others, see `resolve`.
    pub signals: Vec<Row>,
    /// Request parsers.
    pub parsers: Vec<Kind>,
    /// Data sources.
    pub sources: Vec<Kind>,
    /// Extractors of data sources.
    pub extractors: Vec<Kind>,
    /// Discovery instead of Kubernetes.
    pub discovery: Vec<Kind>,
    /// Saturation detectors; their rows are in `scheduling`.
    pub saturation: Vec<Kind>,
    /// Whether the flow-control queue exists in this build; without it the gate is an error.
    pub flow_control: bool,
}

impl Tables {
    /// The types of this build.
    pub fn standard() -> Self {
        Self {
            scheduling: [
                filters::TABLE,
                scorers::TABLE,
                pickers::TABLE,
                handlers::TABLE,
                detectors::TABLE,
                responses::TABLE,
                admission::TABLE,
            ]
            .concat(),
            signals: signals::TABLE.to_vec(),
            parsers: parsers(),
            sources: collector_rows(true),
            extractors: collector_rows(false),
            discovery: discovery(),
            saturation: saturation(),
            flow_control: false,
        }
    }

    /// Rows of both sorts.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.scheduling.iter().chain(&self.signals)
    }

    /// Kinds of all groups.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        [&self.parsers, &self.sources, &self.extractors, &self.discovery, &self.saturation].into_iter().flatten()
    }

    /// Every type once, in table order.
    pub fn abouts(&self) -> Vec<&About> {
        let mut all: Vec<&About> = Vec::new();
        for about in self.rows().map(|r| &r.about).chain(self.kinds().map(|k| &k.about)) {
            if !all.iter().any(|a| a.kind == about.kind) {
                all.push(about);
            }
        }
        all
    }

    /// The type called `kind`, by its name or an older one.
    pub fn find(&self, kind: &str) -> Option<&About> {
        let all = self.abouts();
        let exact = all.iter().find(|a| a.kind == kind).copied();
        exact.or_else(|| all.into_iter().find(|a| a.aliases.contains(&kind)))
    }

    /// The row that builds `kind`.
    pub fn row(&self, kind: &str) -> Option<&Row> {
        self.rows().find(|r| r.about.kind == kind)
    }
}

params! {
    /// A type without parameters.
    pub struct NoParams {}
}

/// Request parsers.
fn parsers() -> Vec<Kind> {
    dialect::TABLE.iter().map(|row| Kind::of::<NoParams>(*row.about)).collect()
}

/// Data sources and extractors: the rows of `collector` of one sort.
fn collector_rows(sources: bool) -> Vec<Kind> {
    let is_source = |row: &&collector::Row| (row.about.kind == collector::SOURCE_KIND) == sources;
    collector::ROWS.iter().filter(is_source).map(|row| Kind { about: row.about, check: row.check }).collect()
}

/// Discovery.
fn discovery() -> Vec<Kind> {
    vec![Kind { about: file::ABOUT, check: file::check }]
}

/// Saturation detectors: rows of `scheduling`, listed here as what `flowControl.saturationDetector` may name.
fn saturation() -> Vec<Kind> {
    use detectors::{concurrency, utilization};
    vec![
        Kind::of::<utilization::Params>(utilization::ROW.about),
        Kind::of::<concurrency::Params>(concurrency::ROW.about),
    ]
}

/// Types that llm-d-router (or an older generation of it) has and this build may not have, so that
/// an error can tell "not yet" from "no such thing".
pub(super) const UPSTREAM: &[&str] = &[
    "active-request-scorer",
    "agent-identity",
    "always-disagg-multimodal-decider",
    "always-disagg-pd-decider",
    "anthropic-parser",
    "approx-prefix-cache-producer",
    "burst-prefix-cache-producer",
    "by-label",
    "by-label-selector",
    "concurrency-detector",
    "context-length-aware",
    "core-metrics-extractor",
    "data-parallel-profile-handler",
    "dcgm-data-source",
    "dcgm-extractor",
    "decision-tree-filter",
    "decode-filter",
    "destination-endpoint-served-verifier",
    "disagg-headers-handler",
    "disagg-profile-handler",
    "disaggregatedset-rollout-screener",
    "edf-ordering-policy",
    "encode-filter",
    "endpoint-attribute-filter",
    "endpoint-attribute-scorer",
    "endpoint-notification-source",
    "fcfs-ordering-policy",
    "file-discovery",
    "global-strict-fairness-policy",
    "header-based-testing-filter",
    "header-label-affinity-scorer",
    "header-profile-handler",
    "inflight-load-producer",
    "k8s-notification-source",
    "kv-cache-utilization-scorer",
    "label-selector-filter",
    "latency-scorer",
    "latency-slo-admitter",
    "least-kv-cache-filter",
    "least-queue-filter",
    "load-aware-scorer",
    "lora-affinity-filter",
    "lora-affinity-scorer",
    "low-queue-filter",
    "max-score-picker",
    "metrics-data-source",
    "mm-embeddings-cache-producer",
    "mm-embeddings-cache-scorer",
    "models-data-extractor",
    "models-data-source",
    "multicluster-approx-prefix-cache-producer",
    "multicluster-file-discovery",
    "multicluster-kv-cache-utilization-scorer",
    "multicluster-metrics-data-source",
    "multicluster-metrics-extractor",
    "multicluster-prefix-cache-scorer",
    "multicluster-queue-scorer",
    "multicluster-session-affinity-filter",
    "no-hit-lru-scorer",
    "openai-parser",
    "p2p-source-producer",
    "passthrough-parser",
    "pd-profile-handler",
    "precise-prefix-cache-producer",
    "precise-prefix-cache-scorer",
    "predicted-latency-producer",
    "predicted-latency-scorer",
    "prefill-filter",
    "prefill-header-handler",
    "prefix-based-pd-decider",
    "prefix-cache-affinity-filter",
    "prefix-cache-scorer",
    "priority-holdback-policy",
    "priority-then-time-eviction-order-policy",
    "probabilistic-admitter",
    "program-aware-fairness",
    "queue-scorer",
    "random-picker",
    "request-attribute-reporter",
    "round-robin-fairness-policy",
    "running-requests-size-scorer",
    "session-affinity-filter",
    "session-affinity-scorer",
    "session-id-producer",
    "sglanghttp-parser",
    "sheddable-eviction-filter",
    "single-profile-handler",
    "slo-deadline-ordering-policy",
    "slo-headroom-tier-filter",
    "soft-reflective-ceiling-policy",
    "static-usage-limit-policy",
    "token-load-scorer",
    "token-producer",
    "tokenizer",
    "topology-affinity-filter",
    "topology-affinity-scorer",
    "topology-extractor",
    "utilization-detector",
    "utilization-filter",
    "vertexai-parser",
    "vllmgrpc-parser",
    "vllmhttp-parser",
    "weighted-random-picker",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_type_is_in_two_rows_and_the_upstream_list_is_sorted() {
        let tables = Tables::standard();
        let mut kinds: Vec<&str> = tables.rows().map(|r| r.about.kind).collect();
        let rows = kinds.len();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), rows);
        assert!(UPSTREAM.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
