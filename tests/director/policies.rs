//! Objectives, model rewrites, shedding and the conformance plugins, as the director applies them.

use bytes::Bytes;
use pointsman::domain::{
    Headers, ObjectiveSpec, Outcome, Policies, Rejection, RewriteRule, RewriteSpec, RewriteTarget, Served,
};
use pointsman::extproc::{CompleteRequest, Exchange, Exchanges, Route, SubsetEntry, SubsetHint};

use super::{ACTIVE, Directed, Pool, completion, director, spec};

const OBJECTIVE: &str = "x-llm-d-inference-objective";
const REWRITE: &str = "x-llm-d-model-name-rewrite";

fn rewrite(name: &str, models: &[&str], targets: &[(&str, Option<u32>)]) -> RewriteSpec {
    let targets = targets.iter().map(|(model, weight)| RewriteTarget { model: (*model).into(), weight: *weight });
    let rule = RewriteRule { models: models.iter().map(|m| (*m).to_owned()).collect(), targets: targets.collect() };
    RewriteSpec { name: name.into(), created: 0, rules: vec![rule] }
}

fn rewrites(pool: &Pool, rewrites: Vec<RewriteSpec>) {
    pool.set_policies(Policies::new(Vec::new(), rewrites));
}

fn objectives(pool: &Pool, named: &[(&str, i32)]) {
    let specs = named.iter().map(|(name, priority)| ObjectiveSpec { name: (*name).into(), priority: *priority });
    pool.set_policies(Policies::new(specs.collect(), Vec::new()));
}

fn with(mut request: CompleteRequest, headers: &[(&'static str, &'static str)]) -> CompleteRequest {
    for (name, value) in headers {
        request.headers.push(Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()));
    }
    request
}

/// The body that goes on, if it is another than came.
fn body(route: Route) -> Option<String> {
    route.body.map(|pieces| String::from_utf8(pieces.concat()).unwrap())
}

fn sent(directed: &Directed, headers: &[(&'static str, &'static str)]) -> Option<String> {
    body(directed.open().decide(with(completion(), headers)).unwrap())
}

fn asks_for(model: &str) -> Option<String> {
    Some(format!(r#"{{"model":"{model}","prompt":"say something"}}"#))
}

fn page(directed: &Directed) -> String {
    String::from_utf8(directed.0.parts().metrics.render()).unwrap()
}

/// The value of the series of `family` with all of `labels`.
fn counted(directed: &Directed, family: &str, labels: &[&str]) -> f64 {
    let page = page(directed);
    let lines = page.lines().filter(|l| l.starts_with(&format!("{family}{{")) && labels.iter().all(|x| l.contains(x)));
    lines.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn a_rule_takes_effect_and_goes_with_the_next_request() {
    let (directed, pool) = director(ACTIVE, vec![spec(1, "decode")]);
    assert_eq!(sent(&directed, &[]), None, "without rules the bytes go on as they came");
    rewrites(&pool, vec![rewrite("all", &[], &[("everything", None)])]);
    assert_eq!(sent(&directed, &[]), asks_for("everything"));
    rewrites(&pool, vec![rewrite("all", &[], &[("everything", None)]), rewrite("one", &["m"], &[("exact", None)])]);
    assert_eq!(sent(&directed, &[]), asks_for("exact"));
    rewrites(&pool, vec![rewrite("same", &["m"], &[("m", None)])]);
    assert_eq!(sent(&directed, &[]), None, "the target is what the body says");
    rewrites(&pool, vec![rewrite("other", &["another"], &[("exact", None)])]);
    assert_eq!(sent(&directed, &[]), None);

    let decisions = |rule: &str, target: &str| {
        let labels =
            [r#"model_name="m""#, &format!("model_rewrite_name=\"{rule}\""), &format!("target_model=\"{target}\"")];
        counted(&directed, "llm_d_epp_model_rewrite_decisions_total", &labels)
    };
    assert_eq!([decisions("all", "everything"), decisions("one", "exact"), decisions("same", "m")], [1.0; 3]);
    assert_eq!(counted(&directed, "llm_d_epp_model_rewrite_decisions_total", &[]), 3.0);
    assert_eq!(counted(&directed, "llm_d_epp_request_total", &[r#"target_model_name="exact""#]), 1.0);
}

#[test]
fn the_header_sets_the_target_and_a_rule_for_the_bodys_model_replaces_it() {
    let (directed, pool) = director(ACTIVE, vec![spec(1, "decode")]);
    let asked = [(REWRITE, "by-header")];
    rewrites(&pool, vec![rewrite("r", &["by-header"], &[("never", None)])]);
    assert_eq!(sent(&directed, &asked), asks_for("by-header"), "rules look at the body's model");
    rewrites(&pool, vec![rewrite("r", &["m"], &[("by-rule", None)])]);
    assert_eq!(sent(&directed, &asked), asks_for("by-rule"));
    rewrites(&pool, vec![rewrite("r", &["m"], &[("m", None)])]);
    assert_eq!(sent(&directed, &asked), None, "the rule says: as it is");
    rewrites(&pool, vec![rewrite("r", &["m"], &[])]);
    assert_eq!(sent(&directed, &asked), asks_for("by-header"), "a rule without targets changes nothing");
    assert_eq!(counted(&directed, "llm_d_epp_model_rewrite_decisions_total", &["model_rewrite_name=\"header\""]), 2.0);
}

#[test]
fn an_empty_target_is_a_model_that_is_missing() {
    let (directed, pool) = director(ACTIVE, vec![spec(1, "decode")]);
    rewrites(&pool, vec![rewrite("r", &[], &[("", None)])]);
    let refused = directed.open().decide(completion()).unwrap_err();
    assert_eq!(refused, Rejection::BadRequest("model not found in request body".into()));
}

#[test]
fn what_has_no_model_is_not_rewritten() {
    let (directed, pool) = director(ACTIVE, vec![spec(1, "decode")]);
    rewrites(&pool, vec![rewrite("all", &[], &[("everything", None)])]);
    let models = Headers::from([(":method", "GET"), (":path", "/v1/models")]);
    let route = directed.open().decide(CompleteRequest { headers: models, ..CompleteRequest::default() });
    assert_eq!(body(route.unwrap()), None);
    let zipped = with(completion(), &[("content-encoding", "gzip")]);
    assert_eq!(body(directed.open().decide(zipped).unwrap()), None, "an encoded body is not read (R-22)");
    assert_eq!(counted(&directed, "llm_d_epp_model_rewrite_decisions_total", &[]), 0.0);
}

#[test]
fn weights_are_shares_of_the_requests() {
    let (directed, pool) = director(ACTIVE, vec![spec(1, "decode")]);
    rewrites(&pool, vec![rewrite("canary", &["m"], &[("m", Some(90)), ("canary", Some(10)), ("never", None)])]);
    let mut canary = 0;
    for _ in 0..2_000 {
        match sent(&directed, &[]) {
            None => {}
            changed => {
                assert_eq!(changed, asks_for("canary"));
                canary += 1;
            }
        }
    }
    // 200 are expected; four standard deviations are 54. The seed is fixed.
    assert!((146..=254).contains(&canary), "{canary} of 2000");
    let target = |name: &str| {
        counted(&directed, "llm_d_epp_model_rewrite_decisions_total", &[&format!("target_model=\"{name}\"")])
    };
    assert_eq!((target("canary"), target("m")), (f64::from(canary), 2_000.0 - f64::from(canary)));
}

#[test]
fn the_clients_name_comes_back_unless_the_answer_is_encoded() {
    let (directed, pool) = director(ACTIVE, vec![spec(1, "decode")]);
    rewrites(&pool, vec![rewrite("r", &["m"], &[("target", None)])]);
    let answer = |headers: &[(&'static str, &'static str)], chunks: &[&'static str]| {
        let mut exchange = directed.open();
        exchange.decide(completion()).unwrap();
        let mut all = Headers::with_capacity(2);
        for (name, value) in headers {
            all.push(Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()));
        }
        exchange.response_headers(200, all, &Served::Unreported, false);
        let mut out = Vec::new();
        for (i, chunk) in chunks.iter().enumerate() {
            let chunk = Bytes::from_static(chunk.as_bytes());
            match exchange.response_body(&chunk, i + 1 == chunks.len()) {
                Some(pieces) => out.extend(pieces.concat()),
                None => out.extend_from_slice(&chunk),
            }
        }
        exchange.end(Outcome::Completed);
        String::from_utf8(out).unwrap()
    };
    let json = ("content-type", "application/json");
    assert_eq!(answer(&[json], &[r#"{"id":1,"mo"#, r#"del": "targ"#, r#"et"}"#]), r#"{"id":1,"model":"m"}"#);
    let events = ["data: {\"model\":\"ta", "rget\"}\n\ndata: {\"model\":\"target\"}\n\nda", "ta: [DONE]\n\n"];
    assert_eq!(
        answer(&[("content-type", "text/event-stream")], &events),
        "data: {\"model\":\"m\"}\n\ndata: {\"model\":\"m\"}\n\ndata: [DONE]\n\n"
    );
    let encoded = [json, ("content-encoding", "br")];
    assert_eq!(answer(&encoded, &[r#"{"model":"target"}"#]), r#"{"model":"target"}"#, "bytes of a code are not text");
}

#[test]
fn an_objective_gives_its_priority_from_the_next_request_on() {
    let (directed, pool) = director(ACTIVE, vec![spec(1, "decode")]);
    let ask = |name: &'static str, value: &'static str| {
        directed.open().decide(with(completion(), &[(name, value)])).unwrap();
    };
    let priority = |n: &str| counted(&directed, "llm_d_epp_request_total", &[&format!("priority=\"{n}\"")]);
    ask(OBJECTIVE, "chat");
    assert_eq!((priority("0"), priority("7")), (1.0, 0.0), "unknown is 0");
    objectives(&pool, &[("chat", 7), ("batch", -3)]);
    ask(OBJECTIVE, "chat");
    ask("x-gateway-inference-objective", "batch");
    ask(OBJECTIVE, "nobody");
    assert_eq!((priority("0"), priority("7"), priority("-3")), (2.0, 1.0, 1.0));
    let bad = CompleteRequest { body: Bytes::from_static(b"{"), ..with(completion(), &[(OBJECTIVE, "batch")]) };
    assert_eq!(directed.open().decide(bad).unwrap_err().status(), 400);
    assert_eq!(priority("-3"), 2.0, "refused ones are counted with theirs");
}

const TWO_AT_ONCE: &str = "
plugins:
- type: active-request-scorer
- type: concurrency-detector
  parameters: {maxConcurrency: 2}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: active-request-scorer
flowControl: {saturationDetector: {pluginRef: concurrency-detector}}
";

#[test]
fn a_full_pool_refuses_negative_priorities_and_no_others() {
    let (directed, pool) = director(TWO_AT_ONCE, vec![spec(1, "decode"), spec(2, "decode")]);
    objectives(&pool, &[("batch", -1), ("chat", 5), ("zero", 0)]);
    let ask = |objective: &'static str| {
        let mut exchange = directed.open();
        exchange.decide(with(completion(), &[(OBJECTIVE, objective)])).map(|_| exchange)
    };
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(ask("batch").expect("there is room"));
    }
    open.push(ask("chat").expect("never refused"));
    let refused = ask("batch").err().expect("four of four");
    assert_eq!(refused, Rejection::shed());
    assert_eq!(
        (refused.status(), refused.reason().map(|r| r.as_str()), refused.code()),
        (429, Some("rejected-saturated"), "ResourceExhausted")
    );
    assert_eq!(refused.to_string(), "system saturated, sheddable request dropped");
    for objective in ["chat", "zero", "unknown"] {
        open.push(ask(objective).expect("not sheddable"));
    }
    // The endpoints that the request may use count, not the others.
    pool.replace(vec![spec(1, "decode"), spec(2, "decode"), spec(3, "decode"), spec(4, "decode")]);
    drop(ask("batch").expect("seven of eight"));
    let only = |ip: &str| Some(SubsetHint { entries: vec![SubsetEntry::parse(ip).unwrap()] });
    let within = |ip: &str| {
        let request = CompleteRequest { subset: only(ip), ..with(completion(), &[(OBJECTIVE, "batch")]) };
        directed.open().decide(request).map(|r| r.destination.to_string())
    };
    assert_eq!(within("192.168.1.1"), Err(Rejection::shed()));
    assert_eq!(within("192.168.1.3").as_deref(), Ok("192.168.1.3:8000"));
    assert_eq!(within("192.168.1.9"), Err(Rejection::no_endpoints()), "nobody is not full");

    open.clear();
    pool.replace(vec![spec(1, "decode")]);
    drop(ask("batch").expect("room again"));
}

#[test]
fn an_unknown_load_sheds_nothing() {
    // The default detector; nothing was ever scraped.
    let (directed, pool) = director(ACTIVE, vec![spec(1, "decode")]);
    objectives(&pool, &[("batch", -1)]);
    for _ in 0..20 {
        assert!(directed.open().decide(with(completion(), &[(OBJECTIVE, "batch")])).is_ok());
    }
}

const TEST_FILTER: &str = "
plugins:
- type: header-based-testing-filter
- type: random-picker
- type: destination-endpoint-served-verifier
  parameters: {echoDestination: true}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: header-based-testing-filter
  - pluginRef: random-picker
";

#[test]
fn the_test_header_beats_the_subset_hint_with_and_without_a_body() {
    let (directed, _) = director(TEST_FILTER, (1..=3).map(|i| spec(i, "decode")).collect());
    let hint = || Some(SubsetHint { entries: vec![SubsetEntry::parse("192.168.1.1").unwrap()] });
    let models = || {
        let headers = Headers::from([(":method", "GET"), (":path", "/v1/models")]);
        CompleteRequest { headers, ..CompleteRequest::default() }
    };
    let decide = |request| directed.open().decide(request).map(|r| r.destination.to_string());
    for request in [completion, models] {
        for _ in 0..8 {
            let pinned = with(request(), &[("test-epp-endpoint-selection", " 192.168.1.2 , 10.9.9.9")]);
            let pinned = CompleteRequest { subset: hint(), ..pinned };
            assert_eq!(decide(pinned).as_deref(), Ok("192.168.1.2:8000"));
            let hinted = CompleteRequest { subset: hint(), ..request() };
            assert_eq!(decide(hinted).as_deref(), Ok("192.168.1.1:8000"), "without the header the hint holds");
        }
        let nobody = with(request(), &[("test-epp-endpoint-selection", "10.9.9.9")]);
        assert_eq!(decide(nobody).unwrap_err().status(), 429, "strict");
    }
}

#[test]
fn the_verifier_reports_and_can_ask_for_an_echo() {
    let (directed, _) = director(TEST_FILTER, vec![spec(1, "decode")]);
    let header = |served: &Served| {
        let mut exchange = directed.open();
        let route = exchange.decide(completion()).unwrap();
        let echo = route.set_headers.iter().find(|(name, _)| name == "x-echo-set-header").unwrap();
        assert_eq!(echo.1, "x-conformance-test-served-endpoint:192.168.1.1:8000");
        let added = exchange.response_headers(200, Headers::default(), served, true);
        let found = added.into_iter().find(|(name, _)| name == "x-conformance-test-served-endpoint");
        String::from_utf8(found.unwrap().1.to_vec()).unwrap()
    };
    assert_eq!(header(&Served::By("192.168.1.1:8000".into())), "192.168.1.1:8000");
    assert_eq!(header(&Served::Unreported), "fail: missing envoy lb metadata");
    assert_eq!(header(&Served::Unnamed), "fail: missing destination endpoint served metadata");
    let (plain, _) = director(ACTIVE, vec![spec(1, "decode")]);
    let route = plain.open().decide(completion()).unwrap();
    assert!(route.set_headers.iter().all(|(name, _)| name != "x-echo-set-header"));
}
