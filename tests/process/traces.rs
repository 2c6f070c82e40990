//! Traces as a collector gets them: a real OTLP receiver, the real process, and what the client sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding;

use super::client::Call;
use super::harness::{Folder, Picker, until};

/// What the collector was sent.
#[derive(Clone, Default)]
struct Received {
    spans: Arc<Mutex<Vec<Span>>>,
    resource: Arc<Mutex<BTreeMap<String, String>>>,
    authorization: Arc<Mutex<Option<String>>>,
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let header = request.metadata().get("authorization").map(|v| v.to_str().unwrap().to_owned());
        *self.authorization.lock() = header;
        for group in request.into_inner().resource_spans {
            *self.resource.lock() = attributes(&group.resource.unwrap_or_default().attributes);
            self.spans.lock().extend(group.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on a port of its own.
struct Collector {
    received: Received,
    endpoint: String,
    task: JoinHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let received = Received::default();
        let service = TraceServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Gzip);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(async move {
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    // The picker goes when it likes.
                    let _ = http2.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { received, endpoint, task }
    }

    async fn spans(&self, count: usize) -> Vec<Span> {
        until(&format!("{count} spans arrive"), async || self.received.spans.lock().len() >= count).await;
        self.received.spans.lock().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn attributes(all: &[KeyValue]) -> BTreeMap<String, String> {
    all.iter().map(|kv| (kv.key.clone(), kv.value.as_ref().map(text).unwrap_or_default())).collect()
}

fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::ArrayValue(array)) => array.values.iter().map(text).collect::<Vec<_>>().join(","),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Routes one request of this trace to its end; the `traceparent` that goes on to the model server.
async fn request(picker: &Picker, flags: &str) -> Option<String> {
    let mut call = Call::open(&picker.plain().await).await.unwrap();
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    let routed = call.request(&[("traceparent", &parent)], r#"{"model":"m","prompt":"p"}"#).await.unwrap();
    let answer = br#"{"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}"#;
    call.response("200", "application/json", &[answer]).await;
    call.finish().await;
    routed.set_headers.get("traceparent").cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_the_whole_request() {
    let collector = Collector::start().await;
    let folder = Folder::usual();
    let env = [
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        // Nothing but what the client decided is recorded.
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=picker-0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ];
    let args = ["--secure-serving=false", "--drain-timeout=0s"];
    let picker = Picker::start_with_env(&folder, &args, &env).await;
    assert_eq!(request(&picker, "00").await, None, "the client's own header says it all");
    let onwards = request(&picker, "01").await.expect("the trace goes on");
    let spans = collector.spans(10).await;

    let names: BTreeMap<&[u8], &Span> = spans.iter().map(|s| (s.span_id.as_slice(), s)).collect();
    let parent = |span: &Span| names.get(span.parent_span_id.as_slice()).map_or("-", |p| p.name.as_str());
    let mut tree: Vec<(&str, &str)> = spans.iter().map(|s| (parent(s), s.name.as_str())).collect();
    tree.sort_unstable();
    assert_eq!(
        tree,
        [
            ("-", "gateway.request"),
            ("gateway.request", "gateway.request_orchestration"),
            ("gateway.request_orchestration", "index_add"),
            ("gateway.request_orchestration", "index_lookup"),
            ("gateway.request_orchestration", "run_scheduler_profile"),
            ("llm_d.epp.scoring", "llm_d.epp.scorer.active-request-scorer"),
            ("llm_d.epp.scoring", "llm_d.epp.scorer.prefix-cache-scorer"),
            ("run_scheduler_profile", "filter_endpoints"),
            ("run_scheduler_profile", "llm_d.epp.scoring"),
            ("run_scheduler_profile", "pick_endpoints"),
        ]
    );
    let named = |name: &str| spans.iter().find(|s| s.name == name).unwrap();
    let root = named("gateway.request");
    assert!(spans.iter().all(|s| hex(&s.trace_id) == TRACE));
    assert_eq!((hex(&root.parent_span_id).as_str(), root.kind), (PARENT, 2), "a server span below the client's");
    assert_eq!(onwards, format!("00-{TRACE}-{}-01", hex(&root.span_id)));
    for span in &spans {
        assert!(root.start_time_unix_nano <= span.start_time_unix_nano, "{span:?}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano, "{span:?}");
    }
    let of = |name: &str| attributes(&named(name).attributes);
    let request = of("gateway.request");
    for (key, value) in [
        ("gen_ai.request.model", "m"),
        ("http.response.status_code", "200"),
        ("llm_d.epp.outcome", "completed"),
        ("gen_ai.usage.input_tokens", "7"),
        ("gen_ai.usage.output_tokens", "3"),
        ("http.request.method", "POST"),
        ("url.path", "/v1/completions"),
    ] {
        assert_eq!(request.get(key).map(String::as_str), Some(value), "{key} of {request:?}");
    }
    assert!(request["llm_d.epp.endpoint"].starts_with("192.0.2."), "{request:?}");
    assert_eq!(of("filter_endpoints")["llm_d.epp.filter.filtered_endpoints"], "4");
    assert_eq!(of("llm_d.epp.scorer.active-request-scorer")["llm_d.epp.scorer.candidate_endpoints"], "4");
    assert_eq!(of("pick_endpoints")["llm_d.epp.picker.top_endpoints"].split(',').count(), 4);
    assert_eq!(named("gateway.request").events[0].name, "first_token");

    assert_eq!(collector.received.authorization.lock().as_deref(), Some("Bearer secret"));
    let resource = collector.received.resource.lock().clone();
    assert_eq!((resource["service.name"].as_str(), resource["k8s.pod.name"].as_str()), ("llm-d-epp", "picker-0"));

    until("all is counted", async || {
        picker.metric(r#"llm_d_epp_trace_spans_total{result="exported"}"#).await == Some(10.0)
    })
    .await;
    assert_eq!(picker.metric(r#"llm_d_epp_trace_spans_total{result="recorded"}"#).await, Some(10.0));
    assert_eq!(picker.metric(r#"llm_d_epp_feature_enabled{feature="traces",plugin="--tracing"}"#).await, Some(1.0));
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_exported_at_the_end() {
    let collector = Collector::start().await;
    let folder = Folder::usual();
    let env = [
        // Naming a collector is asking for it.
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
    ];
    let args = ["--secure-serving=false", "--drain-timeout=0s"];
    let picker = Picker::start_with_env(&folder, &args, &env).await;
    request(&picker, "01").await.unwrap();
    assert_eq!(picker.metric(r#"llm_d_epp_trace_spans_total{result="exported"}"#).await, Some(0.0));
    picker.stop().await;
    assert_eq!(collector.received.spans.lock().len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_changes_nothing_but_the_log() {
    // Bound and never accepting: connections hang rather than fail.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let folder = Folder::usual();
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8"),
    ];
    let args = ["--secure-serving=false", "--drain-timeout=0s"];
    let picker = Picker::start_with_env(&folder, &args, &env).await;
    for _ in 0..20 {
        assert!(request(&picker, "01").await.is_some());
    }
    picker.log.with(&["does not take spans"]).await;
    assert_eq!(picker.metric(r#"llm_d_epp_request_outcome_total{outcome="completed"}"#).await, Some(20.0));
    let stopping = tokio::time::Instant::now();
    let lines = picker.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(10), "the end waits for nobody");
    assert_eq!(lines.iter().filter(|l| l.contains("does not take spans")).count(), 1, "{}", lines.join("\n"));
}

#[tokio::test]
async fn an_address_that_cannot_be_used_does_not_stop_the_start() {
    let folder = Folder::usual();
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a b:4317"), ("OTEL_TRACES_SAMPLER", "sometimes")];
    let args = ["--secure-serving=false", "--drain-timeout=0s"];
    let picker = Picker::start_with_env(&folder, &args, &env).await;
    picker.log.with(&["there are no traces"]).await;
    picker.log.with(&["OTEL_TRACES_SAMPLER", "no such sampler"]).await;
    assert!(request(&picker, "01").await.is_none());
    picker.stop().await;
}

#[tokio::test]
async fn without_a_collector_there_are_no_traces() {
    let folder = Folder::usual();
    let env = [("OTEL_TRACES_SAMPLER", "always_on")];
    let picker =
        Picker::start_with_env(&folder, &["--secure-serving=false", "--drain-timeout=0s", "--tracing"], &env).await;
    assert_eq!(request(&picker, "01").await, None);
    assert_eq!(picker.metric(r#"llm_d_epp_trace_spans_total{result="recorded"}"#).await, None);
    picker.stop().await;
}
