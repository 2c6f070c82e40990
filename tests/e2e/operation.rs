//! While it runs: the endpoints file changes, metrics pages break, operators look.

use std::time::Duration;

use pointsman::domain::Outcome;
use pointsman::sim::server::{MetricsFault, SimHandle};
use pointsman::telemetry::metrics::twins;
use serde_json::{Value, json};

use crate::log;
use crate::stack::{Entry, MODEL, Setup, Stack, Traffic, completion, endpoints_yaml, sims, until};

fn listed(servers: &[&SimHandle]) -> String {
    let entries: Vec<Entry> = servers.iter().map(|server| Entry::from(*server)).collect();
    endpoints_yaml(&entries)
}

/// Endpoints come and go while requests run; a file that cannot be used changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoints_file_is_followed_without_a_failed_request() {
    log::keep();
    let servers = sims(&["stays", "leaves", "joins"]).await;
    let [stays, leaves, joins] = [&servers[0], &servers[1], &servers[2]];
    let stack = Stack::start(Setup::a([stays, leaves])).await;
    let size = || stack.pool.snapshot().topology.len();
    let traffic = Traffic::start(&stack, 3);
    until("both get requests", async || stays.stats().requests > 5 && leaves.stats().requests > 5).await;
    assert_eq!(joins.stats().requests, 0);

    stack.write_endpoints(&listed(&[stays, leaves, joins]));
    until("the new one gets requests", async || joins.stats().requests > 5).await;
    assert_eq!(stack.metrics().await.sum("llm_d_epp_ready_endpoints", &[]), 3.0);

    stack.write_endpoints(&listed(&[stays, joins]));
    until("one has left", async || size() == 2).await;
    // A request that was decided before may still arrive; of those that come now none goes there.
    stack.get("/v1/models", &[]).await;
    let before = leaves.stats().requests;
    let moving = stays.stats().requests;
    until("the others go on", async || stays.stats().requests > moving + 10).await;
    assert!(leaves.stats().requests <= before + 3, "three clients have one request each under way");

    // Broken, half written, empty, an address twice, a name twice: all refused, with the reason in the log.
    let path = stack.folder.path().join("endpoints.yaml").display().to_string();
    let good = listed(&[stays, joins]);
    let address = format!("  address: {}\n  port: {}\n", stays.address.ip(), stays.address.port());
    let refused = [
        (format!("{good}- name: x\n  address: nowhere\n  port: 1\n"), "`nowhere` is not an IP address"),
        (format!("{good}- name: other\n{address}"), "is already listed on line"),
        (format!("{good}- name: stays\n  address: 127.0.0.1\n  port: 1\n"), "is already defined on line"),
        (String::new(), "the file is empty"),
        ("endpoints: [".to_owned(), "check indentation"),
    ];
    for (text, reason) in &refused {
        stack.write_endpoints(text);
        let told = async || !log::lines_with(&[&path, "keeping the last good one", reason]).is_empty();
        until(&format!("the log says {reason}"), told).await;
        assert_eq!(size(), 2, "{reason}");
        let moving = joins.stats().requests;
        until("requests go on", async || joins.stats().requests > moving + 2).await;
    }
    stack.write_endpoints(&listed(&[stays, leaves, joins]));
    until("the file is good again", async || size() == 3).await;

    let seen = traffic.stop().await;
    assert!(seen.keys().all(|(status, _)| *status == 200), "{seen:?}");
    let sent: u64 = seen.values().sum();
    stack.finish(&[(Outcome::Completed, sent + 1)]).await;
}

/// One broken metrics page is the affair of one endpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_metrics_pages_stop_nobody_else() {
    let servers = sims(&["good", "html", "endless", "half", "hang", "nan", "status", "also-good"]).await;
    let stack =
        Stack::start(Setup::a(&servers).scheduling("- type: queue-scorer\n", "- pluginRef: queue-scorer\n")).await;
    let fresh = async || stack.metrics().await.sum("llm_d_epp_endpoint_samples", &[("freshness", "fresh")]);
    until("all samples are fresh", async || fresh().await == 8.0).await;
    assert_eq!(stack.metrics().await.sum("llm_d_epp_datalayer_poll_errors_total", &[]), 0.0);

    let faults = [
        MetricsFault::Html,
        MetricsFault::Endless,
        MetricsFault::Half,
        MetricsFault::Hang,
        MetricsFault::NaN,
        MetricsFault::Status(500),
    ];
    for (server, fault) in servers[1..7].iter().zip(faults) {
        server.set_fault(|faults| faults.metrics = fault);
    }
    let traffic = Traffic::start(&stack, 2);
    until("the broken samples grow old", async || fresh().await <= 3.0).await;
    let queues = async |name: &str| {
        let page = stack.metrics().await;
        page.has("llm_d_epp_per_endpoint_queue_size", &[("model_server_endpoint", name)])
    };
    let polled = servers[0].stats().scrapes;
    until("the good ones are polled on", async || servers[0].stats().scrapes > polled + 20).await;
    for name in ["good", "also-good"] {
        assert!(queues(name).await, "{name}");
    }
    for name in ["html", "endless", "half", "hang", "status"] {
        assert!(!queues(name).await, "{name}: a stale value is not shown as if it were true");
    }
    let errors = stack.metrics().await.sum("llm_d_epp_datalayer_poll_errors_total", &[]);
    assert!(errors >= 5.0, "{errors}");
    let answer = stack.post("/v1/completions", &[], completion("Hello")).await;
    assert!(["good", "also-good"].contains(&answer.endpoint()), "endpoints without a sample come last: {answer:?}");
    let seen = traffic.stop().await;
    assert!(seen.keys().all(|(status, _)| *status == 200), "{seen:?}");

    for server in &servers {
        server.clear_faults();
    }
    until("all samples are fresh again", async || fresh().await == 8.0).await;
    let sent: u64 = seen.values().sum();
    stack.finish(&[(Outcome::Completed, sent + 1)]).await;
}

/// What operators see after traffic of every kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_for_operators_tell_what_happened() {
    let servers = sims(&["one", "two"]).await;
    // Metrics of the servers are read as far as plugins need them, so the averages need these scorers.
    let plugins = "- type: prefix-cache-scorer\n- type: queue-scorer\n- type: active-request-scorer\n\
                   - type: kv-cache-utilization-scorer\n- type: running-requests-size-scorer\n";
    let profile = "- pluginRef: prefix-cache-scorer\n  weight: 3\n- pluginRef: queue-scorer\n\
                   - pluginRef: active-request-scorer\n- pluginRef: kv-cache-utilization-scorer\n\
                   - pluginRef: running-requests-size-scorer\n";
    let stack = Stack::start(Setup::a(&servers).scheduling(plugins, profile)).await;
    let ask = |stream: bool| {
        json!({"model": MODEL, "prompt": "Tell me more. ".repeat(100), "max_tokens": 8, "stream": stream}).to_string()
    };
    let headers = [("x-request-id", "first"), ("x-llm-d-inference-fairness-id", "tenant")];
    let first = stack.post("/v1/completions", &headers, ask(false)).await;
    let second = stack.post("/v1/completions", &[("x-request-id", "second")], ask(true)).await;
    assert_eq!(second.endpoint(), first.endpoint());
    stack.post("/v1/completions", &[("x-llm-d-model-name-rewrite", "other")], ask(false)).await;
    stack.post("/v1/completions", &[("x-test-subset", "127.0.0.9:9")], ask(false)).await;
    servers.iter().for_each(|server| server.set_fault(|faults| faults.status = Some(500)));
    stack.post("/v1/completions", &[], ask(false)).await;
    stack.get("/v1/models", &[]).await;
    let ended = [(Outcome::Completed, 4), (Outcome::Rejected, 1), (Outcome::UpstreamError, 1)];
    stack.settled(&ended).await;
    until("both have been polled", async || {
        stack.metrics().await.sum("llm_d_epp_endpoint_samples", &[("freshness", "fresh")]) == 2.0
    })
    .await;

    let decisions: Value = serde_json::from_str(&stack.admin_text("/debug/decisions").await).unwrap();
    let decisions = decisions["decisions"].as_array().unwrap();
    assert_eq!(decisions.len(), 5, "the refused one has no decision");
    let second = decisions.iter().find(|d| d["requestId"] == "second").unwrap();
    assert_eq!(second["model"], MODEL);
    let candidates = second["profiles"][0]["explanation"]["candidates"].as_array().unwrap();
    let held =
        |name: &str| candidates.iter().find(|c| c["endpoint"] == name).unwrap()["prefixBlocks"][0].as_u64().unwrap();
    assert!(held(first.endpoint()) > 0, "{second}");
    assert_eq!(candidates.iter().filter(|c| c["prefixBlocks"][0].as_u64() > Some(0)).count(), 1, "{second}");

    let config = stack.admin_text("/debug/config").await;
    for part in ["prefix-cache-scorer", "file-discovery", "mirror-prefix-cache-producer", "weight: 3"] {
        assert!(config.contains(part), "{part} is missing in {config}");
    }
    let state: Value = serde_json::from_str(&stack.admin_text("/debug/plugins/state").await).unwrap();
    assert!(state.is_object(), "{state}");
    stack.admin_text("/healthz").await;
    stack.admin_text("/readyz").await;

    let page = stack.metrics().await;
    let missing: Vec<&str> = twins::ALL.iter().map(|twin| twin.old).filter(|old| page.kind(old).is_none()).collect();
    assert_eq!(missing, Vec::<&str>::new());
    for (name, labels, expected) in [
        ("llm_d_epp_request_total", &[("model_name", MODEL)][..], 5.0),
        ("llm_d_epp_request_total", &[("fairness_id", "tenant")], 1.0),
        ("llm_d_epp_request_total", &[("target_model_name", "other")], 1.0),
        ("inference_objective_request_total", &[("model_name", MODEL)], 5.0),
        ("llm_d_epp_request_error_total", &[("error_code", "ServiceUnavailable")], 1.0),
        ("inference_objective_request_error_total", &[("error_code", "ModelServerError")], 1.0),
        ("llm_d_epp_request_output_tokens_sum", &[("model_name", MODEL)], 24.0),
        ("inference_objective_output_tokens_sum", &[("model_name", MODEL)], 24.0),
        ("llm_d_epp_request_ttft_seconds_count", &[("streaming", "true")], 1.0),
        ("llm_d_epp_request_streaming_tpot_seconds_count", &[], 1.0),
        ("llm_d_epp_scheduler_attempts_total", &[("status", "success")], 5.0),
        ("llm_d_epp_ready_endpoints", &[], 2.0),
        ("inference_pool_ready_pods", &[], 2.0),
        ("llm_d_epp_info", &[], 1.0),
        ("llm_d_epp_log_lines_dropped_total", &[], 0.0),
    ] {
        assert_eq!(page.sum(name, labels), expected, "{name} {labels:?}");
    }
    let took = page.sum("llm_d_epp_request_duration_seconds_sum", &[]);
    assert!(took > 0.0 && took < Duration::from_secs(60).as_secs_f64(), "{took}");
    for family in page.families() {
        let known = ["llm_d_epp_", "inference_", "llm_d_inference_scheduler_", "process_"];
        assert!(known.iter().any(|prefix| family.starts_with(prefix)), "{family}");
    }
    stack.finish(&ended).await;
}
