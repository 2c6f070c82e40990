//! The director as the edge uses it, without sockets: bursts, subsets, refusals, body-less
//! requests; objectives and model rewrites are in `director/policies.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman::config::{Purpose, Settings, Tables, resolve};
use pointsman::dialect::{Dialects, Wants};
use pointsman::director::decisions::DecisionLog;
use pointsman::director::{self, Directed, Director, NamedProducer};
use pointsman::domain::{EndpointSpec, Headers, Outcome, PoolIdentity, Rejection, Served};
use pointsman::extproc::{CompleteRequest, Exchange, Exchanges, Route, SubsetEntry, SubsetHint};
use pointsman::lifecycle::clock::SystemClock;
use pointsman::pool::Pool;
use pointsman::scheduling::plugin::Need;
use pointsman::telemetry::metrics::Metrics;
use pointsman::telemetry::replay_log::ReplayLog;

#[path = "director/costs.rs"]
mod costs;
#[path = "director/policies.rs"]
mod policies;

const ACTIVE: &str = "
plugins:
- type: active-request-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: active-request-scorer
";

const DECODE_ONLY: &str = "
plugins:
- type: decode-filter
- type: random-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: decode-filter
  - pluginRef: random-picker
";

const COLD_TURNS: &str = "
plugins:
- type: approx-prefix-cache-producer
  parameters: {autoTune: false, blockSizeTokens: 4}
- type: no-hit-lru-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: no-hit-lru-scorer
  - pluginRef: max-score-picker
";

fn spec(i: u8, role: &str) -> EndpointSpec {
    EndpointSpec {
        name: format!("pod-{i}"),
        namespace: "default".into(),
        address: SocketAddr::from(([192, 168, 1, i], 8000)),
        rank: 0,
        incarnation: 0,
        labels: BTreeMap::from([("llm-d.ai/role".to_owned(), role.to_owned())]),
    }
}

fn director(document: &str, endpoints: Vec<EndpointSpec>) -> (Directed, Arc<Pool>) {
    director_with(document, endpoints, DecisionLog::new(10))
}

fn director_with(document: &str, endpoints: Vec<EndpointSpec>, decisions: DecisionLog) -> (Directed, Arc<Pool>) {
    let text = format!("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n{document}");
    let settings = Settings { allow_experimental: true, ..Settings::default() };
    let config = resolve("test.yaml", Some(text.as_bytes()), settings, &Tables::standard(), Purpose::Check)
        .unwrap_or_else(|e| panic!("{e}"));
    let clock = Arc::new(SystemClock::new());
    let pool = Arc::new(Pool::new(PoolIdentity::default(), Duration::from_secs(2), clock.clone(), Box::new(|_| {})));
    pool.replace(endpoints);
    let producers = config.producers.iter();
    let director = Director::new(director::Parts {
        pool: Arc::clone(&pool),
        scheduler: config.scheduler.clone(),
        producers: producers
            .map(|p| NamedProducer { name: p.name.clone(), kind: p.kind, producer: p.producer.clone() })
            .collect(),
        prefix_producers: Vec::new(),
        commits: config.commits.clone(),
        saturation: config.detector.clone(),
        dispatch: config.dispatch.clone(),
        plugins: config.names.clone(),
        dialects: Dialects::default(),
        metrics: Metrics::new(),
        clock,
        traces: None,
        decisions: Arc::new(decisions),
        settings: director::Settings {
            wants: Wants { prompts: config.registry.needs(&Need::Prompts) },
            reads_usage: true,
            ignore_subset: false,
            emit_scores: true,
            access_log: false,
            seed: Some(7),
            test: config.registry.test_switches.clone(),
        },
    });
    (Directed(Arc::new(director)), pool)
}

fn completion() -> CompleteRequest {
    prompt("say something")
}

fn prompt(text: &str) -> CompleteRequest {
    let headers =
        Headers::from([(":method", "POST"), (":path", "/v1/completions"), ("content-type", "application/json")]);
    let body = Bytes::from(format!(r#"{{"model":"m","prompt":"{text}"}}"#));
    CompleteRequest { headers, body, has_body: true, subset: None, may_wait: false }
}

fn in_flight(pool: &Pool) -> Vec<u64> {
    pool.snapshot().topology.endpoints().map(|e| e.in_flight.requests()).collect()
}

#[test]
fn a_burst_from_many_threads_spreads_evenly_and_is_given_back() {
    let (directed, pool) = director(ACTIVE, (1..=8).map(|i| spec(i, "decode")).collect());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let directed = directed.clone();
            std::thread::spawn(move || {
                let mut open = Vec::new();
                for _ in 0..64 {
                    let mut exchange = directed.open();
                    exchange.decide(completion()).expect("routed");
                    open.push(exchange);
                }
                open
            })
        })
        .collect();
    let mut open: Vec<_> = threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect();
    let counts = in_flight(&pool);
    assert_eq!(counts.iter().sum::<u64>(), 256);
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 2, "picking and reserving are one step: {counts:?}");

    // Half end in peace, half are dropped.
    for exchange in open.drain(..128) {
        drop(exchange);
    }
    for mut exchange in open {
        exchange.end(Outcome::Completed);
    }
    assert_eq!(in_flight(&pool), vec![0; 8]);
    let tokens: u64 = pool.snapshot().topology.endpoints().map(|e| e.in_flight.tokens()).sum();
    assert_eq!(tokens, 0);
}

#[test]
fn cold_prompts_take_turns_and_known_ones_take_none() {
    let (directed, _) = director(COLD_TURNS, (1..=4).map(|i| spec(i, "decode")).collect());
    let send = |text: &str| directed.open().decide(prompt(text)).expect("routed").destination.to_string();
    let topic = |i: usize| format!("{i}: a beginning that no other prompt has");
    let mut first_round: Vec<String> = (0..4).map(|i| send(&topic(i))).collect();
    let order = first_round.clone();
    first_round.sort();
    first_round.dedup();
    assert_eq!(first_round.len(), 4, "each endpoint once: {order:?}");
    for _ in 0..20 {
        send(&topic(0));
    }
    let second_round: Vec<String> = (4..8).map(|i| send(&topic(i))).collect();
    assert_eq!(second_round, order, "in the same order, whatever was sent in between");
}

#[test]
fn who_asks_is_told_the_name_of_the_decision_and_the_logs_have_its_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decisions.jsonl");
    let file = Arc::new(ReplayLog::open(&path, 1 << 20).unwrap());
    let decisions = DecisionLog::new(0).with_header(true).with_file(Some(file));
    let (directed, _) = director_with(COLD_TURNS, (1..=3).map(|i| spec(i, "decode")).collect(), decisions);
    let ask = |asks: bool| {
        let mut request = prompt(&"a prompt of several blocks ".repeat(100));
        if asks {
            request.headers.push(Bytes::from_static(b"x-pointsman-explain"), Bytes::from_static(b"True"));
        }
        let mut exchange = directed.open();
        let route = exchange.decide(request).unwrap();
        let headers = Headers::from([("content-type", "application/json")]);
        let added = exchange.response_headers(200, headers, &Served::Unreported, false);
        let answer =
            br#"{"usage":{"prompt_tokens":700,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":64}}}"#;
        exchange.response_body(&Bytes::from_static(answer), true);
        exchange.end(Outcome::Completed);
        let name = added.iter().find(|(name, _)| name == "x-pointsman-decision");
        (route.destination, name.map(|(_, name)| String::from_utf8(name.to_vec()).unwrap()))
    };
    assert_eq!(ask(false).1, None);
    let (destination, name) = ask(true);
    let page = directed.0.parts().decisions.to_json();
    let [decision] = page["decisions"].as_array().unwrap().as_slice() else { panic!("{page}") };
    assert_eq!(decision["id"], name.unwrap());
    assert_eq!(decision["destination"], *destination);
    assert_eq!(decision["profiles"][0]["explanation"]["candidates"].as_array().unwrap().len(), 3);
    let outcome = &decision["outcome"];
    assert_eq!(
        (&outcome["outcome"], &outcome["status"], &outcome["cachedTokens"]),
        (&"completed".into(), &200.into(), &64.into())
    );
    drop(directed);
    let lines = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [first, second] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&first["at"], &first["promptTokens"], &first["outputTokens"]), (&0.0.into(), &700.into(), &5.into()));
    assert_eq!(first["blocks"], second["blocks"], "the same prompt");
    assert!(first["blocks"].as_array().unwrap().len() > 5 && second["at"].as_f64() >= Some(0.0));
    assert!(first.as_object().unwrap().keys().all(|key| key != "prompt"));
}

#[test]
fn a_limit_on_requests_in_flight_refuses_or_gives_way() {
    let document = |fallback: bool| {
        format!(
            "plugins:\n- type: utilization-filter\n  parameters:\n    conditions:\n    \
             - {{metric: active-requests, maxValue: 1}}\n    fallbackOnEmpty: {fallback}\n\
             schedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: utilization-filter\n"
        )
    };
    for fallback in [false, true] {
        let (directed, pool) = director(&document(fallback), (1..=3).map(|i| spec(i, "decode")).collect());
        let mut open: Vec<_> = (0..6)
            .map(|_| {
                let mut exchange = directed.open();
                exchange.decide(completion()).expect("routed");
                exchange
            })
            .collect();
        assert_eq!(in_flight(&pool), [2, 2, 2], "at one it may take one more, at two no more");
        let seventh = directed.open().decide(completion());
        assert_eq!(seventh.is_ok(), fallback, "{seventh:?}");
        drop(open.pop());
        assert!(directed.open().decide(completion()).is_ok(), "one has room again");
    }
}

#[test]
fn a_subset_is_obeyed_with_and_without_a_body() {
    let (directed, _) = director(ACTIVE, (1..=3).map(|i| spec(i, "decode")).collect());
    let only = |entries: Vec<SubsetEntry>| Some(SubsetHint { entries });
    let third = SubsetEntry::Address("192.168.1.3:8000".parse().unwrap());
    let bare = SubsetEntry::Ip("192.168.1.2".parse().unwrap());
    let unknown = SubsetEntry::Address("192.168.1.99:8000".parse().unwrap());
    let decide = |request| directed.open().decide(request).map(|route: Route| route.destination);

    for _ in 0..8 {
        let request = CompleteRequest { subset: only(vec![third]), ..completion() };
        assert_eq!(decide(request).unwrap().as_ref(), "192.168.1.3:8000");
        let headers = Headers::from([(":method", "GET"), (":path", "/v1/models")]);
        let request = CompleteRequest { headers, subset: only(vec![unknown, bare]), ..CompleteRequest::default() };
        assert_eq!(decide(request).unwrap().as_ref(), "192.168.1.2:8000");
    }
    for nothing in [vec![], vec![unknown]] {
        let request = CompleteRequest { subset: only(nothing), ..completion() };
        assert_eq!(decide(request), Err(Rejection::no_endpoints()));
    }
}

#[test]
fn filters_hold_for_requests_without_a_body_and_can_leave_nothing() {
    let (directed, pool) = director(DECODE_ONLY, vec![spec(1, "prefill"), spec(2, "decode"), spec(3, "encode")]);
    let models = || {
        let headers = Headers::from([(":method", "GET"), (":path", "/v1/models")]);
        directed.open().decide(CompleteRequest { headers, ..CompleteRequest::default() })
    };
    for _ in 0..16 {
        assert_eq!(models().unwrap().destination.as_ref(), "192.168.1.2:8000");
    }
    pool.replace(vec![spec(1, "prefill")]);
    let refused = models().unwrap_err();
    assert_eq!((refused.status(), refused.reason().map(|r| r.as_str())), (429, Some("rejected-saturated")));
    pool.replace(Vec::new());
    assert_eq!(models().unwrap_err(), Rejection::no_endpoints());
}

#[test]
fn a_rewrite_by_header_changes_the_body_and_names_the_model_in_the_answer() {
    let (directed, _) = director(ACTIVE, vec![spec(1, "decode")]);
    let mut exchange = directed.open();
    let mut request = completion();
    request.headers.push(Bytes::from_static(b"x-gateway-model-name-rewrite"), Bytes::from_static(b"target"));
    let route = exchange.decide(request).unwrap();
    let body: Vec<u8> = route.body.unwrap().iter().flat_map(|p| p.to_vec()).collect();
    assert_eq!(body, br#"{"model":"target","prompt":"say something"}"#);
    assert!(route.set_headers.iter().any(|(name, _)| name == "x-request-id"), "made because there was none");

    exchange.response_headers(200, Headers::from([("content-type", "application/json")]), &Served::Unreported, false);
    let mut answer = Vec::new();
    for (chunk, end) in
        [(&br#"{"mod"#[..], false), (br#"el":"tar"#, false), (br#"get","usage":{"prompt_tokens":3}}"#, true)]
    {
        for part in exchange.response_body(&Bytes::from_static(chunk), end).unwrap() {
            answer.extend_from_slice(&part);
        }
    }
    assert_eq!(answer, br#"{"model":"m","usage":{"prompt_tokens":3}}"#);
    exchange.end(Outcome::Completed);
}

#[test]
fn wrong_bodies_are_refused_and_an_unknown_objective_is_not() {
    let (directed, _) = director(ACTIVE, vec![spec(1, "decode")]);
    let with = |body: &'static [u8]| {
        directed.open().decide(CompleteRequest { body: Bytes::from_static(body), ..completion() })
    };
    for body in
        [&b"no healthy upstream"[..], b"", b"{\"model\":", b"{\"model\":5,\"prompt\":\"x\"}", b"[]", b"\xff\xfe"]
    {
        let refused = with(body).unwrap_err();
        assert_eq!(refused.status(), 400, "{refused}");
    }
    let refused = with(br#"{"prompt":"hello world"}"#).unwrap_err();
    assert_eq!(refused, Rejection::BadRequest("model not found in request body".into()));

    let mut request = completion();
    request.headers.push(Bytes::from_static(b"x-llm-d-inference-objective"), Bytes::from_static(b"nobody-knows-it"));
    assert!(directed.open().decide(request).is_ok());

    let mut request = completion();
    request.headers.push(Bytes::from_static(b"prefer"), Bytes::from_static(b"if-available"));
    assert_eq!(directed.open().decide(request).unwrap_err().status(), 412);
}
