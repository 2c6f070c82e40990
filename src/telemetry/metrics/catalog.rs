//! The families: names, help texts, labels, buckets. `docs/metrics.md` lists the same names; a test
//! compares the two.
//!
//! Names, labels and buckets are those of llm-d-router's endpoint picker (llm-d-router.md 5.1), down
//! to the misspelt token bound 32778, so that dashboards and recording rules line up. Of three sets
//! of bounds only the range is known and the values between are ours: `TTFT_BUCKETS`,
//! `TPOT_BUCKETS` and `PROCESSING_BUCKETS`.

use prometheus::proto::MetricType;

/// Prefix of every current name but those of which [`is_bare`] says so.
pub const PREFIX: &str = "llm_d_epp_";
/// What the names begin with that every Prometheus client library gives its process.
pub const PROCESS: &str = "process_";
/// The one name that comes from the library for controllers.
pub const LEADERSHIP: &str = "leader_election_master_status";

/// Whether a name goes without [`PREFIX`].
pub fn is_bare(name: &str) -> bool {
    name.starts_with(PROCESS) || name == LEADERSHIP
}

/// One family without its prefix.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Name without [`PREFIX`], which [`is_bare`] names do not have.
    pub name: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Label names in order.
    pub labels: &'static [&'static str],
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// Upper bounds, for histograms.
    pub buckets: &'static [f64],
}

impl Spec {
    /// The name on the page.
    pub fn full_name(&self) -> String {
        if is_bare(self.name) { self.name.to_owned() } else { format!("{PREFIX}{}", self.name) }
    }

    /// Whether this is the family called `name` on the page.
    pub fn is_called(&self, name: &str) -> bool {
        name == self.name && is_bare(name) || name.strip_prefix(PREFIX) == Some(self.name)
    }
}

const MODEL: &[&str] = &["model_name", "target_model_name", "fairness_id", "priority"];
const POOL: &[&str] = &["name"];
const PLUGIN: &[&str] = &["plugin_name", "plugin_type"];

/// 5 ms to one hour.
const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// 5 ms to two minutes, 24 bounds.
const TTFT_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 60.0, 120.0,
];
/// Half a millisecond to two seconds per token.
const TPOT_BUCKETS: &[f64] = &[
    0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0,
];
const NTPOT_BUCKETS: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// 64 B to 1 GiB.
const BYTES_BUCKETS: &[f64] = &[
    64.0,
    128.0,
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    8192.0,
    16384.0,
    32768.0,
    65536.0,
    131072.0,
    262144.0,
    524288.0,
    1048576.0,
    2097152.0,
    4194304.0,
    8388608.0,
    16777216.0,
    33554432.0,
    67108864.0,
    134217728.0,
    268435456.0,
    536870912.0,
    1073741824.0,
];
/// 32778 is not a slip here: see the module docs.
const TOKENS_BUCKETS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32778.0, 65536.0,
    131072.0, 262144.0, 524288.0, 1048576.0,
];
/// 100 µs to 100 ms: the picker's own work. The first four bounds are ours; a decision takes tens of
/// microseconds and would all fall into the first bucket otherwise.
const OWN_WORK_BUCKETS: &[f64] =
    &[0.000005, 0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1];
/// Own work that may include a queue.
const PROCESSING_BUCKETS: &[f64] =
    &[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const RATIO_BUCKETS: &[f64] = &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
const HIT_BYTES_BUCKETS: &[f64] =
    &[0.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0];
const STREAM_BUCKETS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

macro_rules! catalog {
    ($( $id:ident = $kind:ident $name:literal $labels:expr, $buckets:expr, $help:literal; )*) => {
        $(
            #[doc = $help]
            pub const $id: Spec = Spec {
                name: $name, help: $help, labels: $labels, kind: MetricType::$kind, buckets: $buckets,
            };
        )*
        /// Every family with our prefix, and those of the process.
        pub const ALL: &[Spec] = &[$($id),*];
    };
}

catalog! {
    REQUEST_TOTAL = COUNTER "request_total" MODEL, &[], "Requests by model, target model, fairness id and priority.";
    REQUEST_ERROR_TOTAL = COUNTER "request_error_total"
        &["model_name", "target_model_name", "fairness_id", "priority", "error_code"], &[],
        "Requests that ended in an error, by error code.";
    REQUEST_DURATION = HISTOGRAM "request_duration_seconds" MODEL, DURATION_BUCKETS,
        "Time from the request headers to the end of the response.";
    REQUEST_SIZE = HISTOGRAM "request_size_bytes" MODEL, BYTES_BUCKETS, "Size of request bodies.";
    RESPONSE_SIZE = HISTOGRAM "response_size_bytes" MODEL, BYTES_BUCKETS, "Size of response bodies.";
    INPUT_TOKENS = HISTOGRAM "request_input_tokens" MODEL, TOKENS_BUCKETS, "Prompt tokens as counted by the model server.";
    OUTPUT_TOKENS = HISTOGRAM "request_output_tokens" MODEL, TOKENS_BUCKETS, "Generated tokens as counted by the model server.";
    CACHED_TOKENS = HISTOGRAM "request_cached_tokens" MODEL, TOKENS_BUCKETS,
        "Prompt tokens that the model server took from its prefix cache.";
    REQUEST_RUNNING = GAUGE "request_running" MODEL, &[], "Requests that were routed and have not ended.";
    NTPOT = HISTOGRAM "request_ntpot_seconds" MODEL, NTPOT_BUCKETS,
        "Request duration divided by the number of generated tokens.";
    TTFT = HISTOGRAM "request_ttft_seconds"
        &["model_name", "target_model_name", "fairness_id", "priority", "streaming"], TTFT_BUCKETS,
        "Time from the request headers to the first bytes of the response body.";
    TPOT = HISTOGRAM "request_streaming_tpot_seconds" MODEL, TPOT_BUCKETS,
        "Mean time per generated token after the first, for streamed responses.";
    ITL = HISTOGRAM "request_streaming_itl_seconds" MODEL, TPOT_BUCKETS,
        "Time between successive chunks of a streamed response.";

    AVERAGE_KV = GAUGE "average_kv_cache_utilization" POOL, &[],
        "Mean share of the KV cache in use over endpoints with a fresh sample.";
    AVERAGE_QUEUE = GAUGE "average_queue_size" POOL, &[],
        "Mean number of waiting requests over endpoints with a fresh sample.";
    AVERAGE_RUNNING = GAUGE "average_running_requests" POOL, &[],
        "Mean number of running requests over endpoints with a fresh sample.";
    STD_DEV_KV = GAUGE "std_dev_kv_cache_utilization" POOL, &[],
        "Standard deviation of the KV cache share over endpoints with a fresh sample.";
    STD_DEV_QUEUE = GAUGE "std_dev_queue_size" POOL, &[],
        "Standard deviation of waiting requests over endpoints with a fresh sample.";
    STD_DEV_RUNNING = GAUGE "std_dev_running_requests" POOL, &[],
        "Standard deviation of running requests over endpoints with a fresh sample.";
    READY_ENDPOINTS = GAUGE "ready_endpoints" POOL, &[], "Endpoints in the pool.";
    ENDPOINT_QUEUE = GAUGE "per_endpoint_queue_size" &["name", "model_server_endpoint"], &[],
        "Waiting requests of one endpoint at its last fresh sample.";
    ENDPOINT_SAMPLES = GAUGE "endpoint_samples" &["name", "freshness"], &[],
        "Endpoints by the freshness of their last load sample: fresh, stale or never.";
    POOL_SATURATION = GAUGE "flow_control_pool_saturation" &["inference_pool", "stage"], &[],
        "Work of the endpoints of a stage (prefill, decode) over what they should have, and the larger one (effective); at 1 \
         requests of negative priority are refused. Absent while nothing is known.";
    OLDEST_SAMPLE = GAUGE "oldest_load_sample_age_seconds" POOL, &[],
        "Age of the oldest last load sample over the endpoints that have one.";

    SCHEDULER_DURATION = HISTOGRAM "scheduler_e2e_duration_seconds" &[], OWN_WORK_BUCKETS,
        "Time of one scheduling decision.";
    SCHEDULER_ATTEMPTS = COUNTER "scheduler_attempts_total"
        &["status", "target_model_name", "endpoint_name", "namespace", "port"], &[],
        "Scheduling decisions by status and chosen endpoint.";
    REQUEST_PROCESSING = HISTOGRAM "request_processing_duration_seconds" &[], PROCESSING_BUCKETS,
        "Time from the request headers to our answer to the data plane.";
    RESPONSE_PROCESSING = HISTOGRAM "response_processing_duration_seconds" &[], PROCESSING_BUCKETS,
        "Our own time spent on the messages of one response.";
    PLUGIN_DURATION = HISTOGRAM "plugin_duration_seconds" &["extension_point", "plugin_type", "plugin_name"], OWN_WORK_BUCKETS,
        "Time of one call of a plugin.";
    INFO = GAUGE "info" &["commit", "build_ref"], &[], "Build of this process; always 1.";
    MODEL_REWRITES = COUNTER "model_rewrite_decisions_total"
        &["model_rewrite_name", "model_name", "target_model"], &[], "Model rewrites by rule and target.";
    POLL_ERRORS = COUNTER "datalayer_poll_errors_total" &["source_type"], &[],
        "Failed reads of a data source, such as a metrics page that did not answer.";
    EXTRACT_ERRORS = COUNTER "datalayer_extract_errors_total" &["source_type", "extractor_type"], &[],
        "Answers of a data source that could not be used.";

    PREFIX_SIZE = GAUGE "prefix_indexer_size" PLUGIN, &[], "Entries of the prefix index.";
    PREFIX_HIT_RATIO = HISTOGRAM "prefix_indexer_hit_ratio" PLUGIN, RATIO_BUCKETS,
        "Share of the prompt that the best endpoint is believed to hold, per look-up.";
    PREFIX_HIT_BYTES = HISTOGRAM "prefix_indexer_hit_bytes" PLUGIN, HIT_BYTES_BUCKETS,
        "Bytes of the prompt that the best endpoint is believed to hold, per look-up.";

    PREFIX_PICKED_RATIO = HISTOGRAM "prefix_indexer_picked_hit_ratio" PLUGIN, RATIO_BUCKETS,
        "Share of the prompt that the picked endpoint is believed to hold, per decision.";
    PREFIX_COMPARED = COUNTER "prefix_compared_requests_total" PLUGIN, &[],
        "Requests whose prediction was compared: completed, served by the picked endpoint, which counted cached tokens.";
    PREFIX_PROMPT_TOKENS = COUNTER "prefix_prompt_tokens_total" PLUGIN, &[],
        "Prompt tokens of compared requests, as counted by the model server.";
    PREFIX_PREDICTED_TOKENS = COUNTER "prefix_predicted_tokens_total" PLUGIN, &[],
        "Prompt tokens of compared requests that the picked endpoint was believed to hold.";
    PREFIX_DELIVERED_TOKENS = COUNTER "prefix_delivered_tokens_total" PLUGIN, &[],
        "Prompt tokens of compared requests that the model server took from its prefix cache.";
    PREFIX_OVER_TOKENS = COUNTER "prefix_overpredicted_tokens_total" PLUGIN, &[],
        "Tokens predicted beyond what was delivered, summed over compared requests.";
    PREFIX_UNDER_TOKENS = COUNTER "prefix_underpredicted_tokens_total" PLUGIN, &[],
        "Tokens delivered beyond what was predicted, summed over compared requests.";

    ENDPOINT_SCORE = GAUGE "endpoint_score" &["endpoint_name", "namespace", "profile", "plugin_type", "plugin_name"], &[],
        "Value from 0 to 1 that a scorer gave an endpoint, before its weight, in the last observed decision that had it as a candidate.";
    ENDPOINT_TOTAL_SCORE = GAUGE "endpoint_total_score" &["endpoint_name", "namespace", "profile"], &[],
        "Weighted sum of the scores of an endpoint in the last observed decision that had it as a candidate.";

    STREAMS_IN_FLIGHT = GAUGE "extproc_streams_inflight" &[], &[], "Open ext_proc streams.";
    STREAM_DURATION = HISTOGRAM "extproc_stream_duration_seconds" &[], STREAM_BUCKETS, "How long ext_proc streams stay open.";
    STREAMS_TOTAL = COUNTER "extproc_streams_total" &["code"], &[], "Finished ext_proc streams by gRPC status code.";

    DISPATCHES = COUNTER "dispatch_total" &["mode", "reason"], &[],
        "Requests by when just-in-time dispatch sent them (immediate, or after it held them) and why.";
    DISPATCH_REQUESTS = GAUGE "dispatch_held_requests" &[], &[], "Requests that are held.";
    DISPATCH_BYTES = GAUGE "dispatch_held_bytes" &[], &[], "Bytes of requests that are held: bodies, token ids and block hashes.";
    DISPATCH_HELD = HISTOGRAM "dispatch_held_seconds" &[], PROCESSING_BUCKETS,
        "Time for which requests were held that were then sent or refused.";

    IN_FLIGHT_REQUESTS = GAUGE "inflight_requests"
        &["endpoint_name", "namespace", "producer_name", "fairness_id", "priority"], &[],
        "Requests that were routed to an endpoint and have not ended.";
    IN_FLIGHT_TOKENS = GAUGE "inflight_tokens"
        &["endpoint_name", "namespace", "producer_name", "fairness_id", "priority"], &[],
        "Uncached tokens that were routed to an endpoint and have not ended.";

    OUTSTANDING_PREFILL = GAUGE "endpoint_outstanding_prefill_seconds" &["endpoint_name", "namespace"], &[],
        "Estimated prefill time of the requests that were routed to an endpoint and have no first token yet.";
    PREFILL_RATE = GAUGE "endpoint_prefill_rate_tokens_per_second" &["endpoint_name", "namespace"], &[],
        "Prefill rate that an endpoint is believed to have, learnt from first tokens.";
    PREFILL_SAMPLES = GAUGE "prefill_rate_samples" POOL, &[],
        "First tokens that the prefill rates of the present endpoints were learnt from; 0 while the initial rate is used.";

    OUTCOMES = COUNTER "request_outcome_total" &["outcome"], &[], "How requests ended; every request counts once.";
    LOG_LINES_DROPPED = COUNTER "log_lines_dropped_total" &[], &[],
        "Log lines that were dropped because the writer was behind.";
    FEATURES = GAUGE "feature_enabled" &["feature", "plugin"], &[],
        "Work that is switched on, by the plugin or flag that asks for it; always 1.";
    TRACE_SPANS = COUNTER "trace_spans_total" &["result"], &[],
        "Spans by result: recorded, then exported or failed; what is neither waits or was dropped.";
    DECISION_LOG_LINES = COUNTER "decision_log_lines_total" &["result"], &[],
        "Lines of the decision log by result: written, or dropped because the disk was behind or failed.";
    LABEL_SETS = GAUGE "request_label_sets" &[], &[], "Label sets that the request metrics hold.";

    LEADER = GAUGE "leader_election_master_status" POOL, &[], "Whether this process leads: 1, or 0 as a standby.";
    LEADER_TRANSITIONS = COUNTER "leader_election_transitions_total" POOL, &[],
        "How often this process became the leader or ceased to be it.";
    LEADER_CONTACT = GAUGE "leader_election_contact_age_seconds" POOL, &[],
        "Time since the API server last told of the lease.";

    DISCOVERY_STATE = GAUGE "discovery_watch_state" &["resource", "state"], &[],
        "What a watch of the API server is doing: 1 at its state (off, absent, listing, watching or retrying), 0 at the others.";
    DISCOVERY_AGE = GAUGE "discovery_age_seconds" &["resource"], &[],
        "Time since the API server last said anything on a watch, be it that nothing changed.";
    DISCOVERY_OBJECTS = GAUGE "discovery_objects" &["resource"], &[],
        "Objects that are held: pools, pods that may be endpoints, objectives, rewrites.";
    DISCOVERY_UNREADABLE = COUNTER "discovery_unreadable_objects_total" &["resource"], &[],
        "Objects of the API server that could not be read and were passed over.";
    DISCOVERY_FAILURES = COUNTER "discovery_failures_total" &["resource", "reason"], &[],
        "Lists and watches that ended before their time, by reason; each is tried again.";

    PROCESS_CPU = COUNTER "process_cpu_seconds_total" &[], &[], "CPU time of the process, user and system.";
    PROCESS_RESIDENT = GAUGE "process_resident_memory_bytes" &[], &[], "Resident memory of the process.";
    PROCESS_THREADS = GAUGE "process_threads" &[], &[], "Threads of the process.";
    PROCESS_OPEN_FDS = GAUGE "process_open_fds" &[], &[], "Open file descriptors of the process.";
    PROCESS_MAX_FDS = GAUGE "process_max_fds" &[], &[], "File descriptors that the process may open.";
    PROCESS_START = GAUGE "process_start_time_seconds" &[], &[], "When the process began, in seconds since 1970.";
}
