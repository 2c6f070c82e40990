//! The older names, made from the current families when the page is read.
//!
//! Every value is observed once; a twin is its current family with labels dropped or renamed and the
//! children that fall together added up. Autoscalers and dashboards written for the older names go on
//! working, and the hot path pays nothing for them.
//!
//! A twin has the buckets of its current family; where the picker we replace has others for the old
//! name (`response_sizes`, `output_tokens`, `request_ttft_seconds`), quantiles stay right and only
//! the `le` values differ.

use std::collections::HashMap;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::catalog::PREFIX;
use super::family::pair;

/// One older name.
#[derive(Clone, Copy, Debug)]
pub struct Twin {
    /// The full older name.
    pub old: &'static str,
    /// The current name without prefix.
    pub new: &'static str,
    /// Labels kept, as (current, older) names.
    pub labels: &'static [(&'static str, &'static str)],
}

type Labels = &'static [(&'static str, &'static str)];

const NONE: Labels = &[];
const MODELS: Labels = &[("model_name", "model_name"), ("target_model_name", "target_model_name")];
const POOL: Labels = &[("name", "name")];

const fn twin(old: &'static str, new: &'static str, labels: Labels) -> Twin {
    Twin { old, new, labels }
}

/// Every older name that is produced.
pub const ALL: &[Twin] = &[
    twin(
        "inference_objective_request_total",
        "request_total",
        &[("model_name", "model_name"), ("target_model_name", "target_model_name"), ("priority", "priority")],
    ),
    twin(
        "inference_objective_request_error_total",
        "request_error_total",
        &[("model_name", "model_name"), ("target_model_name", "target_model_name"), ("error_code", "error_code")],
    ),
    twin("inference_objective_request_duration_seconds", "request_duration_seconds", MODELS),
    twin("inference_objective_request_sizes", "request_size_bytes", MODELS),
    twin("inference_objective_response_sizes", "response_size_bytes", MODELS),
    twin("inference_objective_input_tokens", "request_input_tokens", MODELS),
    twin("inference_objective_output_tokens", "request_output_tokens", MODELS),
    twin("inference_objective_prompt_cached_tokens", "request_cached_tokens", MODELS),
    twin("inference_objective_running_requests", "request_running", &[("model_name", "model_name")]),
    twin("inference_objective_normalized_time_per_output_token_seconds", "request_ntpot_seconds", MODELS),
    twin("inference_objective_request_ttft_seconds", "request_ttft_seconds", MODELS),
    twin("inference_objective_request_tpot_seconds", "request_streaming_tpot_seconds", MODELS),
    twin("inference_pool_average_kv_cache_utilization", "average_kv_cache_utilization", POOL),
    twin("inference_pool_average_queue_size", "average_queue_size", POOL),
    twin("inference_pool_average_running_requests", "average_running_requests", POOL),
    twin("inference_pool_ready_pods", "ready_endpoints", POOL),
    twin(
        "inference_pool_per_pod_queue_size",
        "per_endpoint_queue_size",
        &[("name", "name"), ("model_server_endpoint", "model_server_pod")],
    ),
    twin("inference_extension_scheduler_e2e_duration_seconds", "scheduler_e2e_duration_seconds", NONE),
    twin(
        "inference_extension_scheduler_attempts_total",
        "scheduler_attempts_total",
        &[
            ("status", "status"),
            ("target_model_name", "target_model_name"),
            ("endpoint_name", "pod_name"),
            ("namespace", "namespace"),
            ("port", "port"),
        ],
    ),
    twin(
        "inference_extension_plugin_duration_seconds",
        "plugin_duration_seconds",
        &[("extension_point", "extension_point"), ("plugin_type", "plugin_type"), ("plugin_name", "plugin_name")],
    ),
    twin("inference_extension_info", "info", &[("commit", "commit"), ("build_ref", "build_ref")]),
    twin(
        "inference_extension_model_rewrite_decisions_total",
        "model_rewrite_decisions_total",
        &[("model_rewrite_name", "model_rewrite_name"), ("model_name", "model_name"), ("target_model", "target_model")],
    ),
    twin(
        "inference_extension_flow_control_pool_saturation",
        "flow_control_pool_saturation",
        &[("inference_pool", "inference_pool"), ("stage", "stage")],
    ),
    twin("inference_extension_prefix_indexer_size", "prefix_indexer_size", NONE),
    twin("inference_extension_prefix_indexer_hit_ratio", "prefix_indexer_hit_ratio", NONE),
    twin("inference_extension_prefix_indexer_hit_bytes", "prefix_indexer_hit_bytes", NONE),
    twin(
        "llm_d_inference_scheduler_datalayer_poll_errors_total",
        "datalayer_poll_errors_total",
        &[("source_type", "source_type")],
    ),
    twin(
        "llm_d_inference_scheduler_datalayer_extract_errors_total",
        "datalayer_extract_errors_total",
        &[("source_type", "source_type"), ("extractor_type", "extractor_type")],
    ),
];

/// Appends the twins of `families` to it.
pub fn add(families: &mut Vec<MetricFamily>) {
    let mut twins = Vec::with_capacity(ALL.len());
    for twin in ALL {
        let is = |f: &&MetricFamily| f.name().strip_prefix(PREFIX) == Some(twin.new);
        if let Some(family) = families.iter().find(is) {
            twins.push(project(twin, family));
        }
    }
    families.append(&mut twins);
}

fn project(twin: &Twin, family: &MetricFamily) -> MetricFamily {
    let kind = family.get_field_type();
    let mut metrics: Vec<Metric> = Vec::new();
    let mut places: HashMap<Vec<String>, usize> = HashMap::new();
    for metric in family.get_metric() {
        let value = |name: &str| metric.get_label().iter().find(|l| l.name() == name).map_or("", LabelPair::value);
        let values: Vec<String> = twin.labels.iter().map(|(new, _)| value(new).to_owned()).collect();
        if let Some(at) = places.get(&values) {
            merge(kind, &mut metrics[*at], metric);
        } else {
            let mut copy = metric.clone();
            copy.set_label(twin.labels.iter().zip(&values).map(|((_, old), value)| pair(old, value)).collect());
            places.insert(values, metrics.len());
            metrics.push(copy);
        }
    }
    let mut out = MetricFamily::default();
    out.set_name(twin.old.to_owned());
    out.set_help(format!("Older name of {PREFIX}{}. {}", twin.new, family.help()));
    out.set_field_type(kind);
    out.set_metric(metrics);
    out
}

/// Adds `from` to `to`. Gauges are added up too: all that lose labels are counts.
fn merge(kind: MetricType, to: &mut Metric, from: &Metric) {
    match kind {
        MetricType::COUNTER => {
            let mut sum = Counter::default();
            sum.set_value(to.get_counter().get_value() + from.get_counter().get_value());
            to.set_counter(sum);
        }
        MetricType::HISTOGRAM => {
            let (a, b) = (to.get_histogram(), from.get_histogram());
            let mut sum = Histogram::default();
            sum.set_sample_count(a.get_sample_count() + b.get_sample_count());
            sum.set_sample_sum(a.get_sample_sum() + b.get_sample_sum());
            // Children of one family have the same bounds.
            let buckets = a.get_bucket().iter().zip(b.get_bucket()).map(|(x, y)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(x.upper_bound());
                bucket.set_cumulative_count(x.cumulative_count() + y.cumulative_count());
                bucket
            });
            sum.set_bucket(buckets.collect());
            to.set_histogram(sum);
        }
        _ => {
            let mut sum = Gauge::default();
            sum.set_value(to.get_gauge().get_value() + from.get_gauge().get_value());
            to.set_gauge(sum);
        }
    }
}
