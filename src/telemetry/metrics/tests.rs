//! Tests of the page as a whole: what a scraper sees of a populated registry.

use std::collections::{BTreeMap, BTreeSet};

#[path = "../../../tests/shared/promtool.rs"]
mod promtool;

use super::*;
use crate::domain::{
    Account, AccountView, Endpoint, EndpointSpec, LoadSample, LoadTable, PoolIdentity, Slot, Timestamp, Topology,
};
use crate::lifecycle::clock::ManualClock;
use crate::scheduling::profile::Run;

fn endpoint(slot: u32, name: &str) -> Arc<Endpoint> {
    let spec = EndpointSpec {
        name: name.into(),
        namespace: "prod".into(),
        address: format!("10.0.0.{}:8000", slot + 1).parse().unwrap(),
        rank: 0,
        incarnation: 0,
        labels: BTreeMap::new(),
    };
    Arc::new(Endpoint::new(Slot(slot), u64::from(slot), spec))
}

/// Three endpoints: waiting 2 and 6 with fresh samples, the third with a stale one.
fn snapshot() -> Arc<Snapshot> {
    let endpoints: Vec<_> = (0..3).map(|i| endpoint(i, &format!("pod-{i}-rank-0"))).collect();
    endpoints[0].in_flight.add(3, 900);
    let mut loads = LoadTable::new(Duration::from_secs(2));
    for (slot, taken, waiting) in [(0, 9_000, 2.0), (1, 9_500, 6.0), (2, 1_000, 100.0)] {
        let sample = LoadSample {
            taken_at: Timestamp::from_millis(taken),
            waiting: Some(waiting),
            running: Some(1.0),
            kv_usage: Some(0.5),
            ..LoadSample::default()
        };
        loads.set(Slot(slot), &sample);
    }
    let pool = PoolIdentity { name: "vllm".into(), namespace: "prod".into() };
    let topology = Topology::new(1, pool, endpoints.into_iter().map(Some).collect());
    Arc::new(Snapshot { topology: Arc::new(topology), loads: Arc::new(loads) })
}

/// A registry in which every family has a value.
fn populated() -> Arc<Metrics> {
    let options = MetricsOptions { grpc_stream_metrics: true, ..MetricsOptions::default() };
    let metrics = Metrics::with_options(options);
    for (fairness, priority, millis) in [("team-a", 0, 100), ("team-b", 5, 300)] {
        let request = metrics.request("llama", "llama-v2", fairness, priority);
        request.received();
        request.error("BadRequest");
        request.observe_duration(Duration::from_millis(millis));
        request.observe_request_size(100);
        request.observe_response_size(5000);
        let usage = Usage { prompt_tokens: Some(32_770), cached_tokens: Some(16), completion_tokens: Some(11) };
        request.observe_usage(&usage);
        request.observe_ttft(Duration::from_millis(30), false);
        request.observe_ttft(Duration::from_millis(30), true);
        request.observe_ntpot(Duration::from_millis(millis), 11);
        request.observe_tpot(Duration::from_millis(millis), 11);
        request.observe_itl(Duration::from_millis(10));
        std::mem::forget(request.running());
    }
    metrics.outcome(Outcome::Completed);
    metrics.observe_request_processing(Duration::from_micros(80));
    metrics.observe_response_processing(Duration::from_micros(80));
    metrics.observe_scheduling(Duration::from_micros(30));
    metrics.scheduler_attempt("llama-v2", Some(&endpoint(0, "pod-0-rank-0")));
    metrics.scheduler_attempt("llama-v2", None);
    metrics.plugin("Scorer", "queue-scorer", "queue").observe(Duration::from_micros(3));
    metrics.prefix_index("approx", "approx-prefix-cache-producer").observe(0.5, 512);
    metrics.prefix_index("approx", "approx-prefix-cache-producer").observe_picked(0.5);
    metrics.prefix_index("second", "approx-prefix-cache-producer").observe(1.0, 64);
    metrics.model_rewrite("canary", "llama", "llama-v2");
    metrics.poll_errors("metrics-data-source").inc();
    metrics.extract_errors("metrics-data-source", "core-metrics-extractor").inc();
    metrics.stream_opened().finish("OK", Duration::from_secs(2));
    drop(metrics.stream_opened());
    let clock = ManualClock::default();
    clock.advance(Duration::from_secs(10));
    let snapshot = snapshot();
    metrics.watch_pool(Arc::new(clock), Some("inflight-load-producer".into()), move || Arc::clone(&snapshot));
    let known = self::snapshot();
    metrics.watch_accounts(
        Arc::new(ManualClock::default()),
        move || Arc::clone(&known),
        |snapshot, _| {
            let account = Account { outstanding: 1.5, rate: 12_000.0, ..Account::default() };
            let endpoints = vec![account; snapshot.topology.capacity()];
            Some(AccountView { endpoints, samples: 7, ..AccountView::default() })
        },
    );
    metrics.watch_prefix_size(|| {
        vec![("approx".into(), "approx-prefix-cache-producer".into(), 7), ("second".into(), "t".into(), 5)]
    });
    metrics.watch_saturation("pool".into(), || [("prefill", None), ("decode", Some(0.5)), ("effective", Some(0.5))]);
    let dispatched = Arc::new(DispatchMetrics::default());
    dispatched.count(DispatchReason::Held);
    dispatched.observe_held(Duration::from_millis(300));
    metrics.watch_dispatch(dispatched, || (2, 900));
    metrics.watch_dropped_log_lines(|| 4);
    let shown = self::snapshot();
    metrics.record_scores(&Run {
        profile: "default".into(),
        started: Timestamp::default(),
        ended: Timestamp::default(),
        laps: 0..0,
        base: 1,
        topology: Arc::clone(&shown.topology),
        candidates: vec![Slot(0)],
        scorers: vec![("queue".into(), 2.0)],
        values: vec![0.75],
        totals: vec![1.5],
    });
    metrics.watch_scores(vec![("queue".into(), "queue-scorer")], move || Arc::clone(&shown));
    metrics.show_features(vec![("usage".into(), "--token-metrics".into())]);
    metrics.watch_spans(|| [5, 3, 1]);
    metrics.watch_decision_log(|| [9, 2]);
    metrics.watch_watches(|| {
        vec![WatchPage {
            resource: "pods",
            states: vec![("watching", true), ("retrying", false)],
            age: Some(Duration::from_millis(1500)),
            objects: 7,
            unreadable: 2,
            failures: vec![("expired", 3)],
        }]
    });
    metrics.watch_leadership("epp-prod-llama.llm-d.ai".into(), || (true, 3, Some(Duration::from_secs(1))));
    metrics
}

fn page(metrics: &Metrics) -> String {
    String::from_utf8(metrics.render()).unwrap()
}

fn value(page: &str, series: &str) -> f64 {
    let found = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no series {series} in\n{page}")).parse().unwrap()
}

#[test]
fn every_family_and_every_twin_is_on_the_page_with_help() {
    let page = page(&populated());
    let names = c::ALL.iter().map(c::Spec::full_name).chain(twins::ALL.iter().map(|t| t.old.into()));
    for name in names {
        assert!(page.contains(&format!("\n# TYPE {name} ")) || page.starts_with(&format!("# TYPE {name} ")), "{name}");
        assert!(page.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
}

#[test]
fn current_series_have_their_labels() {
    let page = page(&populated());
    let labels = r#"model_name="llama",target_model_name="llama-v2",fairness_id="team-a",priority="0""#;
    for (series, expected) in [
        (format!("llm_d_epp_request_total{{{labels}}}"), 1.0),
        (format!("llm_d_epp_request_running{{{labels}}}"), 1.0),
        (format!("llm_d_epp_request_error_total{{{labels},error_code=\"BadRequest\"}}"), 1.0),
        (format!("llm_d_epp_request_ttft_seconds_count{{{labels},streaming=\"true\"}}"), 1.0),
        (format!("llm_d_epp_request_input_tokens_bucket{{{labels},le=\"16384\"}}"), 0.0),
        (format!("llm_d_epp_request_input_tokens_bucket{{{labels},le=\"32778\"}}"), 1.0),
        (format!("llm_d_epp_request_streaming_tpot_seconds_sum{{{labels}}}"), 0.01),
        ("llm_d_epp_extproc_streams_total{code=\"Unknown\"}".into(), 1.0),
        ("llm_d_epp_extproc_streams_inflight".into(), 0.0),
        ("llm_d_epp_request_outcome_total{outcome=\"completed\"}".into(), 1.0),
        ("llm_d_epp_request_outcome_total{outcome=\"shutdown\"}".into(), 0.0),
        ("llm_d_epp_log_lines_dropped_total".into(), 4.0),
        ("llm_d_epp_feature_enabled{feature=\"usage\",plugin=\"--token-metrics\"}".into(), 1.0),
        ("llm_d_epp_trace_spans_total{result=\"exported\"}".into(), 3.0),
        ("llm_d_epp_decision_log_lines_total{result=\"dropped\"}".into(), 2.0),
        (
            "llm_d_epp_endpoint_score{endpoint_name=\"pod-0-rank-0\",namespace=\"prod\",profile=\"default\",\
             plugin_type=\"queue-scorer\",plugin_name=\"queue\"}"
                .into(),
            0.75,
        ),
    ] {
        assert!((value(&page, &series) - expected).abs() < 1e-9, "{series}");
    }
    let attempt =
        r#"{status="success",target_model_name="llama-v2",endpoint_name="pod-0-rank-0",namespace="prod",port="8000"}"#;
    assert_eq!(value(&page, &format!("llm_d_epp_scheduler_attempts_total{attempt}")), 1.0);
}

#[test]
fn pool_gauges_come_from_fresh_samples() {
    let page = page(&populated());
    for (series, expected) in [
        ("llm_d_epp_average_queue_size{name=\"vllm\"}", 4.0),
        ("llm_d_epp_std_dev_queue_size{name=\"vllm\"}", 2.0),
        ("llm_d_epp_average_kv_cache_utilization{name=\"vllm\"}", 0.5),
        ("llm_d_epp_ready_endpoints{name=\"vllm\"}", 3.0),
        ("llm_d_epp_endpoint_samples{name=\"vllm\",freshness=\"stale\"}", 1.0),
        (r#"llm_d_epp_endpoint_outstanding_prefill_seconds{endpoint_name="pod-1-rank-0",namespace="prod"}"#, 1.5),
        (
            r#"llm_d_epp_endpoint_prefill_rate_tokens_per_second{endpoint_name="pod-0-rank-0",namespace="prod"}"#,
            12_000.0,
        ),
        ("llm_d_epp_prefill_rate_samples{name=\"vllm\"}", 7.0),
        ("llm_d_epp_oldest_load_sample_age_seconds{name=\"vllm\"}", 9.0),
        ("llm_d_epp_per_endpoint_queue_size{name=\"vllm\",model_server_endpoint=\"pod-1-rank-0\"}", 6.0),
    ] {
        assert_eq!(value(&page, series), expected, "{series}");
    }
    assert!(!page.contains("model_server_endpoint=\"pod-2-rank-0\""), "a stale reading is not shown as current");
    let in_flight = r#"{endpoint_name="pod-0-rank-0",namespace="prod",producer_name="inflight-load-producer",fairness_id="",priority=""}"#;
    assert_eq!(value(&page, &format!("llm_d_epp_inflight_tokens{in_flight}")), 900.0);
}

#[test]
fn a_pool_that_never_reported_has_no_averages() {
    let metrics = Metrics::new();
    let topology = Topology::new(1, PoolIdentity::default(), vec![Some(endpoint(0, "new"))]);
    let snapshot = Arc::new(Snapshot { topology: Arc::new(topology), loads: Arc::default() });
    metrics.watch_pool(Arc::new(ManualClock::default()), None, move || Arc::clone(&snapshot));
    let page = page(&metrics);
    assert_eq!(value(&page, "llm_d_epp_ready_endpoints{name=\"\"}"), 1.0);
    assert!(!page.contains("average_queue_size") && !page.contains("inflight_requests"));
}

#[test]
fn endpoints_of_one_name_in_two_namespaces_share_a_series() {
    let one = endpoint(0, "a");
    let spec = EndpointSpec { namespace: "other".into(), ..endpoint(1, "a").spec.clone() };
    let two = Arc::new(Endpoint::new(Slot(1), 1, spec));
    let mut loads = LoadTable::new(Duration::from_secs(2));
    for slot in [0, 1] {
        loads.set(Slot(slot), &LoadSample { waiting: Some(3.0), ..LoadSample::default() });
    }
    let topology = Topology::new(1, PoolIdentity::default(), vec![Some(one), Some(two)]);
    let snapshot = Arc::new(Snapshot { topology: Arc::new(topology), loads: Arc::new(loads) });
    let metrics = Metrics::new();
    metrics.watch_pool(Arc::new(ManualClock::default()), Some("p".into()), move || Arc::clone(&snapshot));
    let page = page(&metrics);
    each_series_once(&page);
    assert_eq!(value(&page, "llm_d_epp_per_endpoint_queue_size{name=\"\",model_server_endpoint=\"a\"}"), 6.0);
}

#[test]
fn twins_drop_labels_and_add_up() {
    let page = page(&populated());
    let models = r#"model_name="llama",target_model_name="llama-v2""#;
    for (series, expected) in [
        (format!("inference_objective_request_total{{{models},priority=\"5\"}}"), 1.0),
        (format!("inference_objective_request_error_total{{{models},error_code=\"BadRequest\"}}"), 2.0),
        (format!("inference_objective_request_duration_seconds_count{{{models}}}"), 2.0),
        (format!("inference_objective_request_duration_seconds_bucket{{{models},le=\"0.2\"}}"), 1.0),
        (format!("inference_objective_request_duration_seconds_bucket{{{models},le=\"+Inf\"}}"), 2.0),
        (format!("inference_objective_request_duration_seconds_sum{{{models}}}"), 0.4),
        (format!("inference_objective_request_ttft_seconds_count{{{models}}}"), 4.0),
        (format!("inference_objective_output_tokens_sum{{{models}}}"), 22.0),
        ("inference_objective_running_requests{model_name=\"llama\"}".into(), 2.0),
        ("inference_pool_average_queue_size{name=\"vllm\"}".into(), 4.0),
        ("inference_pool_ready_pods{name=\"vllm\"}".into(), 3.0),
        ("inference_pool_per_pod_queue_size{name=\"vllm\",model_server_pod=\"pod-0-rank-0\"}".into(), 2.0),
        ("inference_extension_prefix_indexer_size".into(), 12.0),
        ("inference_extension_prefix_indexer_hit_bytes_sum".into(), 576.0),
        ("inference_extension_scheduler_e2e_duration_seconds_count".into(), 1.0),
        ("llm_d_inference_scheduler_datalayer_poll_errors_total{source_type=\"metrics-data-source\"}".into(), 1.0),
    ] {
        assert!((value(&page, &series) - expected).abs() < 1e-9, "{series}");
    }
    let attempt =
        r#"{status="success",target_model_name="llama-v2",pod_name="pod-0-rank-0",namespace="prod",port="8000"}"#;
    assert_eq!(value(&page, &format!("inference_extension_scheduler_attempts_total{attempt}")), 1.0);
}

#[test]
fn no_series_appears_twice() {
    each_series_once(&page(&populated()));
}

fn each_series_once(page: &str) {
    let mut seen = BTreeSet::new();
    for line in page.lines() {
        let series = if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 };
        assert!(seen.insert(series), "{series} appears twice");
    }
}

#[test]
fn model_fairness_and_priority_are_capped() {
    let metrics = Metrics::new();
    for i in 0..MAX_MODELS + 50 {
        let model = format!("model-{i}");
        metrics.request(&model, &model, "flow", 0).received();
    }
    for i in 0..MAX_PRIORITIES as i32 + 10 {
        metrics.request("model-0", "model-0", "flow", i).received();
    }
    let page = page(&metrics);
    let total = "llm_d_epp_request_total";
    let both = format!(r#"{total}{{model_name="other",target_model_name="other",fairness_id="flow",priority="0"}}"#);
    assert_eq!(value(&page, &both), 50.0);
    let model = r#"model_name="model-0",target_model_name="model-0""#;
    let priorities = format!(r#"{total}{{{model},fairness_id="flow",priority="other"}}"#);
    assert_eq!(value(&page, &priorities), 10.0);

    let metrics = Metrics::new();
    for i in 0..1050 {
        metrics.request("m", "m", &format!("flow-{i}"), 0).received();
    }
    let flows = r#"llm_d_epp_request_total{model_name="m",target_model_name="m",fairness_id="other",priority="0"}"#;
    assert_eq!(value(&self::page(&metrics), flows), 50.0);
}

fn flood(metrics: &Metrics, labels: impl Iterator<Item = (u32, u32)>) -> String {
    let mut sent = 0;
    for (model, flow) in labels {
        metrics.request(&format!("m{model}"), "t", &format!("f{flow}"), 0).received();
        sent += 1;
    }
    assert_eq!(metrics.requests.len(), MAX_LABEL_SETS);
    let page = page(metrics);
    each_series_once(&page);
    let totals = page.lines().filter(|l| l.starts_with("llm_d_epp_request_total{"));
    let counted: f64 = totals.map(|l| l.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum();
    assert_eq!(counted, f64::from(sent), "no request is lost");
    page
}

#[test]
fn the_product_of_labels_is_capped() {
    let metrics = Metrics::new();
    let page = flood(&metrics, (0..100).flat_map(|model| (0..100).map(move |flow| (model, flow))));
    assert!(metrics.folded.len() <= 100);
    assert!(
        page.contains(r#"model_name="m99",target_model_name="t",fairness_id="other""#),
        "the model outlives the flow"
    );
}

#[test]
fn a_set_folded_by_its_cap_and_one_folded_for_room_are_one_series() {
    let metrics = Metrics::with_options(MetricsOptions { max_fairness_ids: 50, ..MetricsOptions::default() });
    // Flows 0 to 49 take the places; then every model meets `other` before the sets are full.
    let first = (0..50).map(|flow| (0, flow));
    flood(&metrics, first.chain((0..100).rev().flat_map(|flow| (0..100).map(move |model| (model, flow)))));
    assert_eq!(metrics.folded.len(), 0, "every folded set was there already");
}

#[test]
fn pinned_models_keep_their_label() {
    let metrics = Metrics::new();
    for i in 0..MAX_MODELS {
        metrics.request(&format!("noise-{i}"), "", "", 0);
    }
    metrics.pin_models(["configured"]);
    metrics.request("configured", "", "", 0).received();
    let series = r#"llm_d_epp_request_total{model_name="configured",target_model_name="",fairness_id="",priority="0"}"#;
    assert_eq!(value(&page(&metrics), series), 1.0);
}

#[test]
fn handles_are_the_same_for_the_same_labels() {
    let metrics = Metrics::new();
    let one = metrics.request("m", "t", "f", 42);
    assert!(Arc::ptr_eq(&one, &metrics.request("m", "t", "f", 42)));
    assert!(!Arc::ptr_eq(&one, &metrics.request("mt", "", "f", 42)));
    let running = one.running();
    drop(running);
    assert_eq!(one.running.load(Ordering::Relaxed), 0);
}

#[test]
fn label_values_are_escaped() {
    let metrics = Metrics::new();
    metrics.request("a\"b\\c\nd", "", "", 0).received();
    assert!(page(&metrics).contains(r#"model_name="a\"b\\c\nd""#));
}

#[test]
fn the_reference_lists_every_name() {
    let docs = include_str!("../../../docs/metrics.md");
    for spec in c::ALL {
        let line = docs.lines().find(|l| l.starts_with(&format!("| `{}` ", spec.name)));
        let line = line.unwrap_or_else(|| panic!("{} is not in docs/metrics.md", spec.name));
        for label in spec.labels {
            assert!(line.contains(label), "docs/metrics.md does not name label {label} of {}", spec.name);
        }
    }
    for twin in twins::ALL {
        let row = format!("| `{}` | `{}` ", twin.old, twin.new);
        assert!(docs.lines().any(|l| l.starts_with(&row)), "docs/metrics.md has no row starting with {row}");
    }
}

#[test]
fn promtool_has_no_complaint() {
    promtool::accepts(&page(&populated()));
}

#[test]
fn watches_of_the_cluster_are_shown() {
    let page = page(&populated());
    for (series, expected) in [
        ("llm_d_epp_discovery_watch_state{resource=\"pods\",state=\"watching\"}", 1.0),
        ("llm_d_epp_discovery_watch_state{resource=\"pods\",state=\"retrying\"}", 0.0),
        ("llm_d_epp_discovery_age_seconds{resource=\"pods\"}", 1.5),
        ("llm_d_epp_discovery_objects{resource=\"pods\"}", 7.0),
        ("llm_d_epp_discovery_unreadable_objects_total{resource=\"pods\"}", 2.0),
        ("llm_d_epp_discovery_failures_total{resource=\"pods\",reason=\"expired\"}", 3.0),
    ] {
        assert_eq!(value(&page, series), expected, "{series}");
    }
}
