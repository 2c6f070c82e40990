//! What a request leaves behind: names, parents, times and attributes, and what it passes on.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::domain::{Endpoint, EndpointSpec, PoolIdentity, Slot, Topology, Usage};
use crate::lifecycle::clock::ManualClock;

#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Recorder {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().extend(batch);
        Ok(())
    }
}

struct Setup {
    traces: Arc<Traces>,
    clock: Arc<ManualClock>,
    recorder: Recorder,
}

fn setup(ratio: f64, follows_parent: bool, queue: usize) -> Setup {
    let exporter = Exporter {
        endpoint: "http://localhost:1".into(),
        headers: Vec::new(),
        timeout: Duration::from_secs(1),
        gzip: false,
        certificate: None,
        sampling: Sampling { ratio, follows_parent },
        resource: vec![("service.name".into(), "test".into())],
        queue,
        batch: queue,
        delay: Duration::from_secs(600),
    };
    let (clock, recorder, counts) = (Arc::new(ManualClock::default()), Recorder::default(), Arc::<Counts>::default());
    let provider = exporter.provider_over(recorder.clone(), &counts);
    let traces = Arc::new(Traces::over(provider, Arc::clone(&clock) as Arc<dyn Clock>, counts));
    Setup { traces, clock, recorder }
}

impl Setup {
    fn spans(&self) -> Vec<SpanData> {
        self.traces.provider.force_flush().unwrap();
        self.recorder.0.lock().clone()
    }
}

fn headers(entries: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::default();
    for (name, value) in entries {
        headers.push(name.as_bytes().to_vec().into(), value.as_bytes().to_vec().into());
    }
    headers
}

fn line<'a>() -> AccessLine<'a> {
    AccessLine {
        request_id: "r-1",
        method: Some("POST"),
        path: "/v1/completions",
        model: "base",
        target_model: "base-v2",
        objective: None,
        fairness_id: "default-flow",
        priority: 0,
        endpoint: Some("10.0.0.1:8000"),
        served_by: None,
        status: Some(200),
        outcome: Outcome::Completed,
        total: Duration::from_millis(50),
        decision: None,
        held: None,
        ttft: Some(Duration::from_millis(20)),
        request_bytes: 10,
        response_bytes: 20,
        usage: Usage { prompt_tokens: Some(7), cached_tokens: Some(4), completion_tokens: None },
        rejection: None,
        predicted_cached_tokens: Some(16),
    }
}

const KINDS: [(&str, &str); 4] = [
    ("index", "approx-prefix-cache-producer"),
    ("by-label", "by-label"),
    ("queue", "queue-scorer"),
    ("best", "max-score-picker"),
];

fn kinds() -> Vec<(Arc<str>, &'static str)> {
    KINDS.iter().map(|(name, kind)| ((*name).into(), *kind)).collect()
}

/// A decision over three endpoints of which a filter left two, each plugin taking 10 µs from 1000 µs on.
fn observed() -> Laps {
    let endpoint = |i: u32| {
        let spec = EndpointSpec {
            name: format!("e{i}"),
            namespace: "ns".into(),
            address: ([10, 0, 0, 1], 8000).into(),
            rank: 0,
            incarnation: 0,
            labels: BTreeMap::new(),
        };
        Some(Arc::new(Endpoint::new(Slot(i), 1, spec)))
    };
    let topology = Arc::new(Topology::new(1, PoolIdentity::default(), (0..3).map(endpoint).collect()));
    let mut laps = Laps::start(|| Timestamp(1000));
    let lap = |i: u64, point, name: &str| Lap {
        point,
        name: name.into(),
        started: Timestamp(1000 + 10 * i),
        took: Duration::from_micros(10),
    };
    let calls = [
        ("DataProducer", "index"),
        ("Filter", "by-label"),
        ("Scorer", "queue"),
        ("Picker", "best"),
        ("PreRequest", "index"),
    ];
    laps.laps = calls.iter().zip(0..).map(|((point, name), i)| lap(i, point, name)).collect();
    laps.runs.push(Run {
        profile: "default".into(),
        started: Timestamp(1010),
        ended: Timestamp(1040),
        laps: 1..4,
        base: 3,
        topology,
        candidates: vec![Slot(0), Slot(2)],
        scorers: vec![("queue".into(), 2.0)],
        values: vec![0.25, 0.75],
        totals: vec![0.5, 1.5],
    });
    laps
}

fn attribute(span: &SpanData, key: &str) -> String {
    let found = span.attributes.iter().find(|kv| kv.key.as_str() == key);
    found.unwrap_or_else(|| panic!("{} has no {key}", span.name)).value.to_string()
}

/// The names from the root to `span`.
fn path(spans: &[SpanData], span: &SpanData) -> String {
    match spans.iter().find(|s| s.span_context.span_id() == span.parent_span_id) {
        Some(parent) => format!("{} > {}", path(spans, parent), span.name),
        None => span.name.to_string(),
    }
}

#[test]
fn a_sampled_request_leaves_its_whole_tree() {
    let setup = setup(1.0, true, 100);
    setup.clock.advance(Duration::from_micros(1000));
    let mut trace = setup.traces.begin(&headers(&[("x", "y")]), Timestamp(900)).unwrap();
    assert!(trace.is_recording());
    trace.decided(Timestamp(1000), Timestamp(1060));
    trace.observed(observed());
    trace.end(&line(), &kinds(), Timestamp(50_900));

    let spans = setup.spans();
    let mut paths: Vec<_> = spans.iter().map(|span| path(&spans, span)).collect();
    paths.sort();
    let (root, orchestration) = ("gateway.request", "gateway.request > gateway.request_orchestration");
    let run = format!("{orchestration} > run_scheduler_profile");
    assert_eq!(
        paths,
        [
            root,
            orchestration,
            &format!("{orchestration} > index_add"),
            &format!("{orchestration} > index_lookup"),
            &run,
            &format!("{run} > filter_endpoints"),
            &format!("{run} > llm_d.epp.scoring"),
            &format!("{run} > llm_d.epp.scoring > llm_d.epp.scorer.queue-scorer"),
            &format!("{run} > pick_endpoints"),
        ]
    );
    let trace_id = spans[0].span_context.trace_id();
    assert!(spans.iter().all(|s| s.span_context.trace_id() == trace_id && !s.parent_span_is_remote));

    let named = |name: &str| spans.iter().find(|s| s.name == name).unwrap();
    let at = |micros: u64| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
    for (name, began, ended) in [
        (root, 900, 50_900),
        ("gateway.request_orchestration", 1000, 1060),
        ("index_lookup", 1000, 1010),
        ("filter_endpoints", 1010, 1020),
        ("llm_d.epp.scorer.queue-scorer", 1020, 1030),
        ("pick_endpoints", 1030, 1040),
        ("index_add", 1040, 1050),
    ] {
        assert_eq!((named(name).start_time, named(name).end_time), (at(began), at(ended)), "{name}");
    }
    for (span, key, value) in [
        (root, "gen_ai.request.model", "base"),
        (root, "llm_d.epp.outcome", "completed"),
        (root, "http.response.status_code", "200"),
        (root, "gen_ai.usage.input_tokens", "7"),
        ("gateway.request_orchestration", "target_model", "base-v2"),
        ("run_scheduler_profile", "llm_d.epp.scheduling.profile.name", "default"),
        ("filter_endpoints", "llm_d.epp.filter.candidate_endpoints", "3"),
        ("filter_endpoints", "llm_d.epp.filter.filtered_endpoints", "2"),
        ("llm_d.epp.scorer.queue-scorer", "llm_d.epp.scorer.score.max", "0.75"),
        ("llm_d.epp.scorer.queue-scorer", "llm_d.epp.scorer.score.avg", "0.5"),
        ("llm_d.epp.scorer.queue-scorer", "llm_d.epp.scorer.weight", "2"),
        ("pick_endpoints", "llm_d.epp.picker.top_endpoints", "[\"ns/e2\",\"ns/e0\"]"),
        ("pick_endpoints", "llm_d.epp.picker.top_scores", "[1.5,0.5]"),
    ] {
        assert_eq!(attribute(named(span), key), value, "{span} {key}");
    }
    let first_token = &named(root).events.events[0];
    assert_eq!((first_token.name.as_ref(), first_token.timestamp), ("first_token", at(20_900)));
    assert_eq!(named(root).span_kind, SpanKind::Server);
    assert_eq!(named(root).status, Status::Unset);
    assert_eq!(setup.traces.counts()[0], 9);
}

#[test]
fn the_clients_trace_goes_on() {
    let setup = setup(0.0, true, 100);
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let trace = setup.traces.begin(&headers(&[("traceparent", parent)]), Timestamp(0)).unwrap();
    let onwards = trace.traceparent();
    trace.end(&line(), &[], Timestamp(1));
    let spans = setup.spans();
    assert_eq!(spans.len(), 1);
    assert_eq!(spans[0].span_context.trace_id(), TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap());
    assert_eq!(spans[0].parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
    assert!(spans[0].parent_span_is_remote);
    let own = spans[0].span_context.span_id();
    assert_eq!(onwards, format!("00-0af7651916cd43dd8448eb211c80319c-{own}-01"));
}

#[test]
fn who_is_not_recorded_costs_no_span() {
    // Nobody decided: our sampler says no, and the model server is told so.
    let setup = setup(0.0, true, 100);
    let trace = setup.traces.begin(&Headers::default(), Timestamp(0)).unwrap();
    assert!(!trace.is_recording() && trace.traceparent().ends_with("-00"), "{}", trace.traceparent());
    drop(trace);
    // The client decided, and its header already says so.
    let unsampled = headers(&[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")]);
    assert!(setup.traces.begin(&unsampled, Timestamp(0)).is_none());
    assert!(setup.spans().is_empty());
    assert_eq!(setup.traces.counts(), [0, 0, 0]);
    // With a sampler that does not ask, the client's decision does not count.
    let own = self::setup(1.0, false, 100);
    assert!(own.traces.begin(&unsampled, Timestamp(0)).is_some_and(|trace| trace.is_recording()));
}

#[test]
fn a_refusal_is_an_error_and_long_texts_are_cut() {
    let setup = setup(1.0, true, 100);
    let long = "é".repeat(MAX_TEXT);
    let rejection = Rejection::BadRequest(long.clone());
    let mut trace = setup.traces.begin(&Headers::default(), Timestamp(0)).unwrap();
    trace.decided(Timestamp(1), Timestamp(2));
    let refused = AccessLine { rejection: Some(&rejection), outcome: Outcome::Rejected, model: &long, ..line() };
    trace.end(&refused, &[], Timestamp(3));
    for span in setup.spans() {
        assert!(matches!(&span.status, Status::Error { description } if description.len() <= MAX_TEXT + 3), "{span:?}");
        for kv in &span.attributes {
            assert!(kv.value.to_string().len() <= MAX_TEXT + 3, "{kv:?}");
        }
    }
}

#[test]
fn a_full_queue_drops_and_blocks_nobody() {
    let setup = setup(1.0, true, 4);
    for _ in 0..500 {
        setup.traces.begin(&Headers::default(), Timestamp(0)).unwrap().end(&line(), &[], Timestamp(1));
    }
    let exported = setup.spans().len() as u64;
    assert_eq!(setup.traces.counts()[0], 500);
    assert!((1..=500).contains(&exported), "{exported}");
}

proptest! {
    #[test]
    fn any_headers_are_read(parent in "[0-9a-f-]{0,70}|\\PC{0,300}", state in "\\PC{0,40}") {
        let setup = setup(1.0, true, 10);
        let trace = setup.traces.begin(&headers(&[("traceparent", &parent), ("tracestate", &state)]), Timestamp(0));
        if let Some(trace) = trace {
            let onwards = trace.traceparent();
            prop_assert_eq!(onwards.len(), 55);
            prop_assert!(!onwards.contains(&"0".repeat(32)), "{}", onwards);
        }
    }
}
