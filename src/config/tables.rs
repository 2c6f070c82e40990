//! Every plugin type that a configuration can name, by group.
//!
//! Two sorts of group. *Rows* are built here into instances: the tables of `scheduling` and
//! `signals`. *Kinds* belong to rooms that build their own objects (parsers, data sources, extractors,
//! discovery, saturation detectors); this room checks their parameters strictly and hands them on as
//! [`Declared`](super::Declared). A type may be in both: a saturation detector is a filter, too.
//!
//! Everything takes the tables as an argument, so that tests bring small ones of their own.

use crate::collector;
use crate::dialect;
use crate::discovery::file;
use crate::domain::node::{Node, Problems};
use crate::scheduling::params::Params;
use crate::scheduling::plugin::{About, Row, Stability};
use crate::scheduling::{filters, handlers, pickers, scorers};
use crate::signals;
use crate::{choice, params};

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
    /// Filters, scorers, pickers and handlers.
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
    /// Saturation detectors.
    pub saturation: Vec<Kind>,
    /// Whether the flow-control queue exists in this build; without it the gate is an error.
    pub flow_control: bool,
}

impl Tables {
    /// The types of this build.
    pub fn standard() -> Self {
        Self {
            scheduling: [filters::TABLE, scorers::TABLE, pickers::TABLE, handlers::TABLE].concat(),
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

params! {
    /// Parameters of `utilization-detector`.
    pub struct UtilizationDetector {
        /// Waiting requests at which an endpoint is full.
        queue_depth_threshold: u32 = 5, "queueDepthThreshold", 1..;
        /// KV cache usage at which an endpoint is full.
        kv_cache_util_threshold: f64 = 0.8, "kvCacheUtilThreshold", 0.0..=1.0;
        /// Age at which metrics count as full.
        metrics_staleness_threshold: std::time::Duration = std::time::Duration::from_millis(200), "metricsStalenessThreshold";
        /// Share above the threshold that filters still let pass.
        headroom: f64 = 0.0, "headroom", 0.0..;
    }
}

choice! {
    /// What `concurrency-detector` counts.
    pub enum ConcurrencyMode {
        /// Requests.
        Requests = "requests",
        /// Tokens.
        Tokens = "tokens",
        /// The larger share of both.
        Hybrid = "hybrid",
    }
}

params! {
    /// Parameters of `concurrency-detector`.
    pub struct ConcurrencyDetector {
        /// Requests in flight at which an endpoint is full.
        max_concurrency: u64 = 100, "maxConcurrency", 1..;
        /// Tokens in flight at which an endpoint is full.
        max_token_concurrency: u64 = 1_000_000, "maxTokenConcurrency", 1..;
        /// What is counted.
        concurrency_mode: ConcurrencyMode = ConcurrencyMode::Requests, "concurrencyMode";
        /// Share above the threshold that filters still let pass.
        headroom: f64 = 0.0, "headroom", 0.0..;
        /// Producer of the counts.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// Saturation detectors, until `admission` brings its own table.
fn saturation() -> Vec<Kind> {
    vec![
        Kind::new::<UtilizationDetector>(
            "utilization-detector",
            "Saturation from queue depth and KV cache usage.",
            "- type: utilization-detector",
        ),
        Kind::new::<ConcurrencyDetector>(
            "concurrency-detector",
            "Saturation from requests or tokens in flight.",
            "- type: concurrency-detector",
        ),
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
