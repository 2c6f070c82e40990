//! The Grafana dashboard, and a real Prometheus that scrapes a running picker and answers its queries.

#[path = "shared/app.rs"]
mod app;
#[path = "shared/client.rs"]
mod client;
#[path = "monitoring/prometheus.rs"]
mod prometheus;
#[path = "shared/promtool.rs"]
mod promtool;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use app::{Running, until};
use client::{Call, response_body, response_headers};
use pointsman::sim::server::{self, SimConfig, SimHandle};
use pointsman::telemetry::metrics::catalog::{self, Spec};
use prometheus::Prometheus;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/pointsman.json");
    serde_json::from_slice(&std::fs::read(path).expect("the dashboard is there")).expect("JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list `{key}` in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text `{key}` in {value}"))
}

/// Queries by panel title, with the variables of Grafana filled in.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for panel in list(dashboard, "panels").iter().filter(|p| p["type"] != "row") {
        for target in list(panel, "targets") {
            let query = text(target, "expr").replace("$__rate_interval", "30s");
            let query = query.replace("$job", ".*").replace("$instance", ".*");
            assert!(!query.contains('$'), "{query}");
            all.push((text(panel, "title").to_owned(), query));
        }
    }
    all
}

/// The family that a name of a series belongs to.
fn family(series: &str) -> Option<&'static Spec> {
    let is_histogram = |spec: &&Spec| !spec.buckets.is_empty();
    let parts = ["_bucket", "_sum", "_count"].into_iter().filter_map(|part| series.strip_suffix(part));
    parts
        .filter_map(|base| catalog::ALL.iter().filter(is_histogram).find(|s| s.full_name() == base))
        .chain(catalog::ALL.iter().filter(|s| s.buckets.is_empty()).find(|s| s.full_name() == series))
        .next()
}

/// The words of a query outside of quotes.
fn words(query: &str) -> Vec<String> {
    let unquoted: String = query.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    unquoted.split(|c| !is_name(c)).filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_dashboard_has_the_shape_that_grafana_reads() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|v| v >= 36));
    assert_eq!((text(&dashboard, "uid"), text(&dashboard, "title")), ("pointsman", "Pointsman"));
    assert!(dashboard["id"].is_null(), "an id belongs to one Grafana");
    let variables: Vec<&str> = list(&dashboard["templating"], "list").iter().map(|v| text(v, "name")).collect();
    assert_eq!(variables, ["datasource", "job", "instance"]);

    let mut ids = BTreeSet::new();
    let mut taken = BTreeMap::new();
    let mut rows = Vec::new();
    for panel in list(&dashboard, "panels") {
        let title = text(panel, "title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{title} has no {key}"));
        let (x, y, w, h) = (at("x"), at("y"), at("w"), at("h"));
        assert!(w >= 1 && h >= 1 && x + w <= 24, "{title}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            let other = taken.insert(cell, title);
            assert!(other.is_none(), "{title} lies over {other:?}");
        }
        match text(panel, "type") {
            "row" => rows.push(title),
            kind => {
                assert!(["timeseries", "stat", "table"].contains(&kind), "{kind}");
                assert_eq!(text(&panel["datasource"], "uid"), "${datasource}", "{title}");
                assert!(panel["fieldConfig"]["defaults"].is_object() && panel["options"].is_object(), "{title}");
                let refs: BTreeSet<&str> = list(panel, "targets").iter().map(|t| text(t, "refId")).collect();
                assert!(!refs.is_empty() && refs.len() == list(panel, "targets").len(), "{title}");
            }
        }
    }
    assert_eq!(
        rows,
        [
            "Traffic and outcomes",
            "Decision latency",
            "Plugin durations",
            "Prefix cache: predicted and delivered",
            "Endpoints: load and scores",
            "Pool",
            "Collector health",
            "Process"
        ]
    );
}

#[test]
fn every_query_names_families_and_labels_that_exist() {
    let mut used = BTreeSet::new();
    for (title, query) in queries(&dashboard()) {
        let words = words(&query);
        let series: Vec<&String> =
            words.iter().filter(|w| w.starts_with(catalog::PREFIX) || w.starts_with(catalog::PROCESS)).collect();
        assert!(!series.is_empty(), "{title}: {query}");
        let mut labels: BTreeSet<&str> = BTreeSet::from(["job", "instance", "le"]);
        for name in &series {
            let spec = family(name).unwrap_or_else(|| panic!("{title}: there is no {name}"));
            used.insert(spec.name);
            labels.extend(spec.labels);
        }
        // What is neither a series, a label, a function nor a number is a slip.
        const WORDS: &[&str] =
            &["sum", "avg", "max", "min", "count", "by", "rate", "histogram_quantile", "time", "30s"];
        for word in words.iter().filter(|w| !series.contains(w)) {
            let known = WORDS.contains(&word.as_str()) || labels.contains(word.as_str()) || word.parse::<u64>().is_ok();
            assert!(known, "{title}: `{word}` in {query}");
        }
    }
    assert!(used.len() > 40, "{} families are shown", used.len());
}

#[test]
fn promtool_parses_every_query() {
    promtool::parses(&queries(&dashboard()).into_iter().map(|(_, query)| query).collect::<Vec<_>>());
}

async fn simulators(count: usize) -> Vec<SimHandle> {
    let mut servers = Vec::new();
    for i in 0..count {
        let config = SimConfig { name: format!("sim-{i}"), time_scale: 0.0, answer_tokens: 4, ..SimConfig::default() };
        servers.push(server::start(config, None).await.unwrap());
    }
    servers
}

async fn picker(servers: &[SimHandle]) -> Running {
    let endpoints: Vec<SocketAddr> = servers.iter().map(|s| s.address).collect();
    let plugins = "- {type: approx-prefix-cache-producer, parameters: {autoTune: false, blockSizeTokens: 4}}\n\
                   - {type: prefix-cache-scorer}\n\
                   - {type: queue-scorer}\n\
                   - {type: active-request-scorer}";
    let profile = "  - {pluginRef: prefix-cache-scorer}\n  - {pluginRef: queue-scorer}\n  \
                   - {pluginRef: active-request-scorer}";
    app::start(plugins, profile, &endpoints, |_| {}).await
}

/// Streamed requests with a common beginning, each to its end.
async fn traffic(picker: &Running, requests: usize) {
    let channel = picker.connect().await;
    for i in 0..requests {
        let prompt = format!("the same beginning of every prompt, some blocks long, and then {i}");
        let body = json!({"model": "sim/model", "prompt": prompt, "stream": true,
            "stream_options": {"include_usage": true}});
        let mut call = Call::open(&channel).await.unwrap();
        let routed = call.request(&[], body.to_string()).await.unwrap();
        let server: SocketAddr = routed.destination.parse().unwrap();
        let (status, answer) = pointsman::sim::client::post(server, "/v1/completions", routed.body).await.unwrap();
        let half = answer.len() / 2;
        call.send(response_headers(status.as_str(), "text/event-stream"));
        call.send(response_body(answer.slice(..half), false));
        call.send(response_body(answer.slice(half..), true));
        call.responded().await;
        call.finish().await;
    }
    let mut refused = Call::open(&channel).await.unwrap();
    refused.request(&[], "no json").await.unwrap_err();
}

/// Panels that are empty here: nobody lost a span or a log line, since there are no traces and no log.
const EMPTY: &[&str] = &["What was lost"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_and_answers_the_dashboard() {
    let servers = simulators(3).await;
    let picker = picker(&servers).await;
    until("every endpoint was scraped", PATIENCE, || {
        picker.sum("llm_d_epp_endpoint_samples", "freshness=\"fresh\"") == 3.0
    })
    .await;
    let prometheus = Prometheus::start(picker.addresses.metrics).await;
    prometheus.until_up().await;
    // A rate takes two samples of a series; the first of them must be before the traffic that it counts.
    traffic(&picker, 5).await;
    prometheus.until_scraped("sum(llm_d_epp_request_outcome_total)", 6.0).await;
    traffic(&picker, 15).await;
    prometheus.until_scraped("sum(llm_d_epp_request_outcome_total)", 22.0).await;

    for (query, expected) in [
        ("up", 1.0),
        ("sum(llm_d_epp_request_outcome_total{outcome=\"completed\"})", 20.0),
        ("sum(llm_d_epp_request_outcome_total{outcome=\"rejected\"})", 2.0),
        ("sum(llm_d_epp_request_error_total)", 2.0),
        ("sum(llm_d_epp_request_output_tokens_sum)", 80.0),
        ("sum(llm_d_epp_scheduler_attempts_total{status=\"success\"})", 20.0),
        ("sum(llm_d_epp_prefix_compared_requests_total)", 20.0),
        ("llm_d_epp_ready_endpoints", 3.0),
        ("count(llm_d_epp_endpoint_total_score)", 3.0),
        ("count(llm_d_epp_endpoint_score)", 9.0),
        ("sum(llm_d_epp_request_running)", 0.0),
        ("sum(llm_d_epp_inflight_requests)", 0.0),
        ("llm_d_epp_feature_enabled{feature=\"prefix-index\"}", 1.0),
        ("sum(inference_objective_request_total)", 22.0),
        ("histogram_quantile(0.5, sum by (le) (llm_d_epp_scheduler_e2e_duration_seconds_bucket)) > bool 0", 1.0),
        ("process_resident_memory_bytes > bool 1e6", 1.0),
    ] {
        assert_eq!(prometheus.query(query).await, vec![expected], "{query}");
    }

    for (title, query) in queries(&dashboard()) {
        let values = prometheus.query(&query).await;
        let expected = !EMPTY.contains(&title.as_str());
        assert_eq!(!values.is_empty(), expected, "{title}: {query} gives {values:?}");
    }
    // The traffic shows where an operator looks for it.
    let rate = prometheus.query("sum(rate(llm_d_epp_request_outcome_total[30s]))").await;
    assert!(rate[0] > 0.0, "{rate:?}");
    let complaints = prometheus.stop().await;
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    picker.stop().await;
}
