//! The page that Prometheus scrapes, after traffic through the whole picker with simulated servers.

#[path = "shared/app.rs"]
mod app;
#[path = "shared/client.rs"]
mod client;
#[path = "shared/promtool.rs"]
mod promtool;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use app::{Running, sum, until};
use client::{Call, request_body, request_headers, response_body, response_headers};
use pointsman::sim::server::{self, SimConfig, SimHandle};
use serde_json::json;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(30);
const DOCS: &str = include_str!("../docs/metrics.md");

async fn servers(count: usize) -> Vec<SimHandle> {
    let mut servers = Vec::new();
    for i in 0..count {
        let config = SimConfig { name: format!("sim-{i}"), time_scale: 0.0, answer_tokens: 4, ..SimConfig::default() };
        servers.push(server::start(config, None).await.unwrap());
    }
    servers
}

/// Every scorer that reads metrics, the prefix index and work in flight.
async fn picker(servers: &[SimHandle]) -> Running {
    let endpoints: Vec<SocketAddr> = servers.iter().map(|s| s.address).collect();
    let plugins = "- {type: approx-prefix-cache-producer, parameters: {autoTune: false, blockSizeTokens: 4}}\n\
                   - {type: prefix-cache-scorer}\n\
                   - {type: queue-scorer}\n\
                   - {type: running-requests-size-scorer}\n\
                   - {type: kv-cache-utilization-scorer}\n\
                   - {type: active-request-scorer}";
    let profile = "  - {pluginRef: prefix-cache-scorer}\n  - {pluginRef: queue-scorer}\n  \
                   - {pluginRef: running-requests-size-scorer}\n  - {pluginRef: kv-cache-utilization-scorer}\n  \
                   - {pluginRef: active-request-scorer}";
    app::start(plugins, profile, &endpoints, |_| {}).await
}

/// One request to the end: the picker routes it, its server answers, the answer passes.
async fn whole(channel: &Channel, headers: &[(&str, &str)], body: &serde_json::Value) {
    let mut call = Call::open(channel).await.unwrap();
    let routed = call.request(headers, body.to_string()).await.unwrap();
    let server: SocketAddr = routed.destination.parse().unwrap();
    let (status, answer) = pointsman::sim::client::post(server, "/v1/completions", routed.body).await.unwrap();
    let kind = if body["stream"] == true { "text/event-stream" } else { "application/json" };
    // In two pieces, so that there is a time between chunks.
    let half = answer.len() / 2;
    call.send(response_headers(status.as_str(), kind));
    call.send(response_body(answer.slice(..half), false));
    call.send(response_body(answer.slice(half..), true));
    call.responded().await;
    call.finish().await;
}

async fn mixed_traffic(picker: &Running, channel: &Channel) {
    let prompt = "the same beginning of every prompt, some blocks long, and then ";
    for i in 0..12 {
        let body = json!({"model": "sim/model", "prompt": format!("{prompt}{i}"), "stream": i % 2 == 0,
            "stream_options": {"include_usage": true}});
        whole(channel, &[("x-llm-d-inference-fairness-id", "team-a")], &body).await;
    }
    let body = json!({"model": "alias", "prompt": prompt});
    whole(channel, &[("x-llm-d-model-name-rewrite", "sim/model")], &body).await;
    // Refused, left, failed at the server, answered by the proxy itself.
    let mut refused = Call::open(channel).await.unwrap();
    assert_eq!(refused.request(&[], "no json").await.unwrap_err().status, 400);
    let mut left = Call::open(channel).await.unwrap();
    left.request(&[], body.to_string()).await.unwrap();
    drop(left);
    let mut failed = Call::open(channel).await.unwrap();
    failed.request(&[], body.to_string()).await.unwrap();
    failed.response("503", "text/plain", &[b"upstream connect error"]).await;
    failed.finish().await;
    drop(refused);
    until("all have ended", PATIENCE, || picker.outcomes("") == 16).await;
}

/// Names of the tables in docs/metrics.md: with the prefix, and which of them need something that this
/// picker does not do here.
fn documented() -> (BTreeSet<String>, BTreeSet<String>) {
    let section = |from: &str, to: &str| DOCS.split(from).nth(1).unwrap().split(to).next().unwrap();
    let first_column = |text: &str| -> BTreeSet<String> {
        text.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next().map(str::to_owned)).collect()
    };
    let current = first_column(section("## Current names", "Notes:"));
    let older = first_column(section("## Older names", "## Linting"));
    let bare = |name: &str| name.starts_with("process_") || name == "leader_election_master_status";
    let full = |name: String| if bare(&name) { name } else { format!("llm_d_epp_{name}") };
    (current.into_iter().map(full).collect(), older)
}

/// Families of a page.
fn families(page: &str) -> BTreeSet<String> {
    page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_well_formed_and_complete() {
    let servers = servers(3).await;
    let picker = picker(&servers).await;
    let channel = picker.connect().await;
    until("every endpoint was scraped", PATIENCE, || {
        picker.sum("llm_d_epp_endpoint_samples", "freshness=\"fresh\"") == 3.0
    })
    .await;
    mixed_traffic(&picker, &channel).await;
    let (status, page) = pointsman::sim::client::get(picker.addresses.metrics, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    let page = String::from_utf8(page.to_vec()).unwrap();

    promtool::accepts(&page);

    let (current, older) = documented();
    assert!(current.len() > 40 && older.len() > 25, "{} {}", current.len(), older.len());
    let shown = families(&page);
    let known: BTreeSet<String> = current.union(&older).cloned().collect();
    assert_eq!(shown.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new(), "not in docs/metrics.md");
    // The log is set up by the command only, nothing is traced or logged for replays here, there is no cluster, and
    // no plugin keeps accounts or holds requests.
    let absent: Vec<_> = known.difference(&shown).map(String::as_str).collect();
    let expected = [
        "leader_election_master_status",
        "llm_d_epp_decision_log_lines_total",
        "llm_d_epp_discovery_age_seconds",
        "llm_d_epp_discovery_failures_total",
        "llm_d_epp_discovery_objects",
        "llm_d_epp_discovery_unreadable_objects_total",
        "llm_d_epp_discovery_watch_state",
        "llm_d_epp_dispatch_held_bytes",
        "llm_d_epp_dispatch_held_requests",
        "llm_d_epp_dispatch_held_seconds",
        "llm_d_epp_dispatch_total",
        "llm_d_epp_endpoint_outstanding_prefill_seconds",
        "llm_d_epp_endpoint_prefill_rate_tokens_per_second",
        "llm_d_epp_leader_election_contact_age_seconds",
        "llm_d_epp_leader_election_transitions_total",
        "llm_d_epp_log_lines_dropped_total",
        "llm_d_epp_prefill_rate_samples",
        "llm_d_epp_trace_spans_total",
    ];
    assert_eq!(absent, expected);

    // The numbers are those of the traffic.
    for (outcome, count) in [("completed", 13), ("rejected", 1), ("client-disconnect", 1), ("local-reply", 1)] {
        assert_eq!(picker.outcomes(outcome), count, "{outcome}");
    }
    assert_eq!(picker.sum("llm_d_epp_request_total", ""), 16.0);
    assert_eq!(picker.sum("inference_objective_request_total", ""), 16.0);
    assert_eq!(picker.sum("llm_d_epp_request_total", "target_model_name=\"sim/model\",fairness_id=\"team-a\""), 12.0);
    assert_eq!(picker.sum("llm_d_epp_request_output_tokens_sum", ""), 13.0 * 4.0);
    assert_eq!(picker.sum("llm_d_epp_model_rewrite_decisions_total", "model_name=\"alias\""), 1.0);
    assert_eq!(picker.sum("llm_d_epp_scheduler_attempts_total", "status=\"success\""), 15.0);
    assert_eq!(picker.sum("llm_d_epp_request_running", ""), 0.0);
    assert_eq!(picker.sum("llm_d_epp_ready_endpoints", ""), 3.0);
    assert!(picker.sum("llm_d_epp_prefix_indexer_hit_bytes_sum", "") > 0.0);

    // Predicted and delivered: the simulators count cached tokens in every answer.
    let tokens = |name: &str| picker.sum(&format!("llm_d_epp_prefix_{name}"), "");
    assert_eq!(tokens("compared_requests_total"), 13.0);
    assert_eq!(tokens("prompt_tokens_total"), picker.sum("llm_d_epp_request_input_tokens_sum", ""));
    assert_eq!(tokens("delivered_tokens_total"), picker.sum("llm_d_epp_request_cached_tokens_sum", ""));
    assert!(tokens("predicted_tokens_total") > 0.0);
    assert_eq!(
        tokens("predicted_tokens_total") + tokens("underpredicted_tokens_total"),
        tokens("delivered_tokens_total") + tokens("overpredicted_tokens_total")
    );
    assert_eq!(tokens("indexer_picked_hit_ratio_count"), tokens("indexer_hit_ratio_count"));

    // The first decision of each thread is observed, so there are scores of all endpoints.
    let scored = |labels: &str| {
        let page = picker.page();
        page.lines().filter(|l| l.starts_with("llm_d_epp_endpoint_score{") && l.contains(labels)).count()
    };
    assert_eq!(scored(""), 3 * 5);
    assert_eq!(scored("plugin_type=\"queue-scorer\",plugin_name=\"queue-scorer\""), 3);
    let feature = |feature: &str, plugin: &str| {
        picker.sum("llm_d_epp_feature_enabled", &format!("feature=\"{feature}\",plugin=\"{plugin}\"")) == 1.0
    };
    assert!(feature("prefix-index", "approx-prefix-cache-producer") && feature("metric-waiting", "queue-scorer"));
    assert!(feature("in-flight", "inflight-load-producer") && feature("usage", "--token-metrics"));
    assert_eq!(picker.sum("llm_d_epp_feature_enabled", "feature=\"traces\""), 0.0);
    drop(channel);
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn label_sets_stay_bounded_whatever_clients_send() {
    const DISTINCT: usize = 5_000;
    let endpoints: Vec<SocketAddr> = (1..=2).map(|n| SocketAddr::from(([192, 0, 2, n], 8000))).collect();
    let picker =
        app::start("- {type: active-request-scorer}", "  - {pluginRef: active-request-scorer}", &endpoints, |_| {})
            .await;
    let channel = picker.connect().await;
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..50 {
        let channel = channel.clone();
        tasks.spawn(async move {
            for i in (worker..DISTINCT).step_by(50) {
                let mut call = Call::open(&channel).await.unwrap();
                let (fairness, target) = (format!("tenant-{i}"), format!("target-{i}"));
                let mut headers = vec![("x-llm-d-inference-fairness-id", fairness.as_str())];
                if i % 2 == 0 {
                    headers.push(("x-llm-d-model-name-rewrite", &target));
                }
                call.send(request_headers(&headers));
                call.send(request_body(format!(r#"{{"model":"model-{i}","prompt":"p"}}"#), true));
                call.routed().await.unwrap();
                call.response("200", "application/json", &[b"{}"]).await;
                call.finish().await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }

    // Each stream was read to its end, so all is counted. The page is large here: it is made as rarely
    // as possible.
    let page = picker.page();
    println!("{} MB of page", page.len() >> 20);
    assert_eq!(sum(&page, "llm_d_epp_request_outcome_total", "completed"), DISTINCT as f64);
    let mut values: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    let mut series: BTreeMap<&str, usize> = BTreeMap::new();
    for line in page.lines().filter(|l| !l.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        *series.entry(name).or_default() += 1;
        let Some((labels, _)) = rest.rsplit_once('}') else { continue };
        for label in labels.split("\",") {
            let (key, value) = label.split_once("=\"").unwrap();
            values.entry((name, key)).or_default().insert(value.trim_end_matches('"'));
        }
    }
    const TOTAL: &str = "llm_d_epp_request_total";
    for (label, most) in [("model_name", 1001), ("target_model_name", 1001), ("fairness_id", 1001), ("priority", 65)] {
        let found = values[&(TOTAL, label)].len();
        assert!(found <= most, "{label}: {found}");
    }
    assert!(series[TOTAL] > 1000 && series[TOTAL] <= 2048 + 1024, "{}", series[TOTAL]);
    assert!(values[&(TOTAL, "model_name")].contains("other") && values[&(TOTAL, "fairness_id")].contains("other"));
    for (name, most) in
        [("llm_d_epp_scheduler_attempts_total", 16_384), ("llm_d_epp_model_rewrite_decisions_total", 4096)]
    {
        assert!(series[name] <= most, "{name}: {}", series[name]);
    }
    // Nothing is lost by folding.
    assert_eq!(sum(&page, TOTAL, ""), DISTINCT as f64);
    assert_eq!(sum(&page, "llm_d_epp_request_duration_seconds_count", ""), DISTINCT as f64);
    assert_eq!(sum(&page, "llm_d_epp_scheduler_attempts_total", ""), DISTINCT as f64);
    assert_eq!(sum(&page, "llm_d_epp_model_rewrite_decisions_total", ""), DISTINCT as f64 / 2.0);
    let before = page.lines().count();
    for i in 0..50 {
        let mut call = Call::open(&channel).await.unwrap();
        let body = format!(r#"{{"model":"new-model-{i}","prompt":"p"}}"#);
        call.request(&[("x-llm-d-inference-fairness-id", &format!("new-{i}"))], body).await.unwrap();
        call.response("200", "application/json", &[b"{}"]).await;
        call.finish().await;
    }
    // The fold itself may get a few series (an error code, a first token), but nothing grows with names.
    assert!(picker.page().lines().count() < before + 50, "the page has grown");
    drop(channel);
    picker.stop().await;
}

#[test]
#[should_panic(expected = "promtool check metrics")]
fn promtool_is_really_asked() {
    promtool::accepts("# HELP llm_d_epp_requests Requests.\n# TYPE llm_d_epp_requests counter\nllm_d_epp_requests 1\n");
}
