//! What the command line decides: ports, TLS, limits, intervals. Plain values, already checked.
//!
//! `cli::flags` fills it; the rest of the process reads it. The defaults here are the defaults of
//! the flags, and a test in `cli::flags` keeps the two equal.

use std::path::PathBuf;
use std::time::Duration;

/// Ports of the three listeners; 0 lets the system choose (tests).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// ext_proc (`--grpc-port`).
    pub grpc: u16,
    /// gRPC health (`--grpc-health-port`).
    pub health: u16,
    /// Metrics and debug pages (`--metrics-port`).
    pub metrics: u16,
}

/// Which pool is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// `--pool-name`.
    pub name: Option<String>,
    /// `--pool-namespace`, else `NAMESPACE`, else `default`.
    pub namespace: String,
    /// `--pool-group`.
    pub group: String,
    /// `--endpoint-selector`.
    pub selector: Option<String>,
    /// `--endpoint-target-ports`, without duplicates, 1 to 8 when a selector is set.
    pub target_ports: Vec<u16>,
    /// `POD_NAME`: the pod that this process runs in.
    pub pod_name: Option<String>,
}

/// Lowest TLS version of a listener; 1.0 and 1.1 are raised to 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Cipher suites that the TLS library offers, by their TLS names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs, reason = "the names of the standard; they document themselves")]
pub enum CipherSuite {
    TLS13_AES_128_GCM_SHA256,
    TLS13_AES_256_GCM_SHA384,
    TLS13_CHACHA20_POLY1305_SHA256,
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

/// TLS of the ext_proc port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// `--secure-serving`.
    pub enabled: bool,
    /// `--cert-path`, a directory with `tls.crt` and `tls.key`; self-signed if absent.
    pub cert_path: Option<PathBuf>,
    /// `--enable-cert-reload`.
    pub reload: bool,
    /// `--tls-min-version`.
    pub min_version: TlsVersion,
    /// `--tls-cipher-suites` for TLS 1.2; empty means the library's choice. As in Go, the suites of
    /// TLS 1.3 stay on whatever is listed.
    pub cipher_suites: Vec<CipherSuite>,
}

/// The metrics listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsServer {
    /// `--metrics-endpoint-auth`; without Kubernetes there is nobody to ask and it has no effect.
    pub auth: bool,
    /// `--metrics-cert-dir`.
    pub cert_dir: Option<PathBuf>,
    /// `--metrics-client-ca-file`.
    pub client_ca: Option<PathBuf>,
    /// `--enable-pprof`.
    pub pprof: bool,
    /// `--enable-grpc-stream-metrics`.
    pub stream_metrics: bool,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEncoder {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Console,
}

/// Logging flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// `-v`: 1 warn, 2 default, 3 verbose, 4 debug, 5 trace.
    pub verbosity: u8,
    /// `--zap-devel`.
    pub devel: bool,
    /// `--zap-encoder`; JSON unless `--zap-devel`.
    pub encoder: LogEncoder,
    /// `--zap-log-level` as written: debug, info, error, panic or a number.
    pub level: Option<String>,
    /// `--zap-stacktrace-level` as written.
    pub stacktrace_level: Option<String>,
    /// `--zap-time-encoding` as written.
    pub time_encoding: Option<String>,
    /// `--access-log`.
    pub access_log: bool,
}

/// Sizes and counts that bound the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `--max-request-body` in bytes.
    pub request_body: u64,
    /// `--grpc-max-recv-msg-size` in bytes; absent is the largest body and 1 MiB.
    pub grpc_receive: Option<u64>,
    /// `--grpc-max-send-msg-size` in bytes.
    pub grpc_send: Option<u64>,
    /// `--debug-decisions`: last decisions kept for `/debug/decisions`.
    pub debug_decisions: usize,
    /// `--debug-decisions-rate`: most of them recorded per second; 0 is no limit.
    pub decisions_per_second: u32,
    /// `--worker-threads`; absent means one per core.
    pub worker_threads: Option<usize>,
}

/// How often things happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// `--refresh-metrics-interval`, at least 50 ms.
    pub refresh_metrics: Duration,
    /// `--refresh-prometheus-metrics-interval`.
    pub refresh_gauges: Duration,
    /// `--metrics-staleness-threshold`.
    pub staleness: Duration,
    /// `--drain-timeout`.
    pub drain: Duration,
    /// `--shutdown-grace`: what open streams get after the drain.
    pub grace: Duration,
}

/// Where traces go, from the environment of OpenTelemetry.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceExport {
    /// The collector, with scheme (`OTEL_EXPORTER_OTLP_ENDPOINT`; this and the next four also as `…_OTLP_TRACES_…`).
    pub endpoint: String,
    /// Headers of each call (`OTEL_EXPORTER_OTLP_HEADERS`).
    pub headers: Vec<(String, String)>,
    /// Longest time of one export (`OTEL_EXPORTER_OTLP_TIMEOUT`).
    pub timeout: Duration,
    /// Whether calls are compressed (`OTEL_EXPORTER_OTLP_COMPRESSION`).
    pub gzip: bool,
    /// PEM file of authorities (`OTEL_EXPORTER_OTLP_CERTIFICATE`).
    pub certificate: Option<PathBuf>,
    /// Share of requests that are recorded, 0 to 1 (`OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`).
    pub ratio: f64,
    /// Whether the decision in the request's `traceparent` counts (`OTEL_TRACES_SAMPLER`).
    pub follows_parent: bool,
    /// Attributes of this process (`OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`).
    pub resource: Vec<(String, String)>,
    /// Spans that may wait for export (`OTEL_BSP_MAX_QUEUE_SIZE`).
    pub queue: usize,
    /// Spans of one export (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`).
    pub batch: usize,
    /// Longest time that a span waits for others (`OTEL_BSP_SCHEDULE_DELAY`).
    pub delay: Duration,
}

/// What the conformance suite needs and production must not have; see
/// `config::conformance`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conformance {
    /// `--conformance-test-mode`, `POINTSMAN_CONFORMANCE_TEST_MODE`: the test plugins are added to the configuration.
    pub test_mode: bool,
    /// `--conformance-echo-destination`, `POINTSMAN_CONFORMANCE_ECHO_DESTINATION`: the suite's echo servers are asked
    /// to return the picked endpoint.
    pub echo_destination: bool,
}

/// All that the flags say.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Listeners.
    pub ports: Ports,
    /// The pool.
    pub pool: PoolSettings,
    /// TLS of ext_proc.
    pub tls: Tls,
    /// The metrics listener.
    pub metrics: MetricsServer,
    /// Logging.
    pub logging: Logging,
    /// Bounds.
    pub limits: Limits,
    /// Intervals.
    pub intervals: Intervals,
    /// `--disable-endpoint-subset-filter`.
    pub disable_subset_filter: bool,
    /// `--emit-endpoint-scores`.
    pub emit_scores: bool,
    /// `--allow-experimental-plugins`.
    pub allow_experimental: bool,
    /// `--ha-enable-leader-election`.
    pub leader_election: bool,
    /// `--health-checking`: gRPC health on the ext_proc port as well.
    pub health_checking: bool,
    /// `--tracing`: whether traces are exported, if there is a collector.
    pub tracing: bool,
    /// The collector, if the environment names one.
    pub trace_export: Option<TraceExport>,
    /// `--strip-control-headers`.
    pub strip_control_headers: bool,
    /// `--debug-response-header`.
    pub debug_response_header: bool,
    /// `--allow-explain-header`: `x-pointsman-explain: true` has a decision recorded.
    pub allow_explain_header: bool,
    /// `--decision-log` and `--decision-log-size`: the file that replays read, and its size in bytes.
    pub decision_log: Option<(PathBuf, u64)>,
    /// The test mode.
    pub conformance: Conformance,
    /// `--token-metrics`: read the token counts of answers even if no plugin needs them.
    pub token_metrics: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ports: Ports { grpc: 9002, health: 9003, metrics: 9090 },
            pool: PoolSettings {
                name: None,
                namespace: "default".into(),
                group: "inference.networking.k8s.io".into(),
                selector: None,
                target_ports: Vec::new(),
                pod_name: None,
            },
            tls: Tls {
                enabled: true,
                cert_path: None,
                reload: false,
                min_version: TlsVersion::Tls12,
                cipher_suites: Vec::new(),
            },
            metrics: MetricsServer { auth: true, cert_dir: None, client_ca: None, pprof: true, stream_metrics: false },
            logging: Logging {
                verbosity: 2,
                devel: false,
                encoder: LogEncoder::Json,
                level: None,
                stacktrace_level: None,
                time_encoding: None,
                access_log: true,
            },
            limits: Limits {
                request_body: 64 << 20,
                grpc_receive: None,
                grpc_send: None,
                debug_decisions: 256,
                decisions_per_second: 100,
                worker_threads: None,
            },
            intervals: Intervals {
                refresh_metrics: Duration::from_millis(50),
                refresh_gauges: Duration::from_secs(5),
                staleness: Duration::from_secs(2),
                drain: Duration::from_secs(30),
                grace: Duration::from_secs(90),
            },
            disable_subset_filter: false,
            emit_scores: false,
            allow_experimental: false,
            leader_election: false,
            health_checking: false,
            tracing: true,
            trace_export: None,
            strip_control_headers: true,
            debug_response_header: false,
            allow_explain_header: false,
            decision_log: None,
            conformance: Conformance::default(),
            token_metrics: true,
        }
    }
}
