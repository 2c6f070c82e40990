use super::*;
use crate::domain::node::Value;
use crate::domain::{Endpoint, Headers, PoolIdentity, Served, Timestamp, Topology};
use crate::scheduling::fixtures::{NOW, Scene, build, build_in, decision, errors, map, node, pool, text};
use crate::scheduling::plugin::{Registry, ResponseStart, Routed, SignalKind, Watch};
use crate::scheduling::session_affinity::TOKEN_HEADER;

const TOKEN_OF_POD_1: &str = "ZGVmYXVsdC9wb2QtMS1yYW5rLTA=";

fn with_header(n: usize, name: &'static str, value: &'static str) -> Scene {
    let mut scene = pool(n);
    scene.request.headers = Headers::from([(name, value)]);
    scene
}

fn commit(built: &Built, scene: &Scene, profiles: &[(&str, &[u32])], now: Timestamp) -> Option<Box<dyn Watch>> {
    let decision = decision(scene, profiles);
    let routed = Routed { request: &scene.request, decision: &decision, signals: &scene.signals, now };
    built.commit.as_ref().unwrap().commit(&routed)
}

fn response_token(watch: &mut dyn Watch, served: Option<&str>) -> Vec<(&'static str, String)> {
    let mut add = Vec::new();
    let served = &served.map_or(Served::Unreported, |endpoint| Served::By(endpoint.into()));
    watch.response_headers(&ResponseStart { status: 200, headers: &Headers::default(), served, now: NOW }, &mut add);
    add
}

fn session_id(more: Vec<(&str, Value)>) -> Built {
    let mut parameters = vec![("strategy", text("session_id"))];
    parameters.extend(more);
    build(&ROW, parameters)
}

#[test]
fn the_token_goes_out_with_the_response_and_leads_back() {
    let built = build(&ROW, vec![]);
    let scene = with_header(3, TOKEN_HEADER, TOKEN_OF_POD_1);
    assert_eq!(scene.scores(&built), [0.0, 1.0, 0.0]);
    let mut watch = commit(&built, &scene, &[("default", &[1])], NOW).unwrap();
    assert_eq!(response_token(&mut *watch, None), [(TOKEN_HEADER, TOKEN_OF_POD_1.to_owned())]);
}

#[test]
fn the_token_names_the_endpoint_that_answered() {
    let built = build(&ROW, vec![]);
    let scene = pool(3);
    let mut watch = commit(&built, &scene, &[("default", &[0, 1])], NOW).unwrap();
    let token = |watch: &mut dyn Watch, served| response_token(watch, served).remove(0).1;
    assert_eq!(token(&mut *watch, Some("10.0.0.2:8000")), TOKEN_OF_POD_1, "a retry went to the fallback");
    assert_eq!(token(&mut *watch, Some("10.9.9.9:1")), token(&mut *watch, None), "unknown: the first choice");
}

#[test]
fn foreign_tokens_say_nothing() {
    let built = build(&ROW, vec![]);
    let long: &'static str = Box::leak("QUJD".repeat(10_000).into_boxed_str());
    for token in ["", "%%%", "AAAA", "/////w==", "ZGVmYXVsdC9wb2QtOS1yYW5rLTA=", "ZGVmYXVsdC9wb2QtMS1yYW5rLTA", long] {
        assert_eq!(with_header(3, TOKEN_HEADER, token).scores(&built), [0.0; 3], "{token}");
    }
}

#[test]
fn a_named_profile_is_followed_instead_of_the_destination() {
    let built = build(&ROW, vec![("profileName", text("prefill"))]);
    let scene = pool(3);
    let mut watch = commit(&built, &scene, &[("decode", &[0]), ("prefill", &[1])], NOW).unwrap();
    assert_eq!(response_token(&mut *watch, None)[0].1, TOKEN_OF_POD_1);
    assert!(commit(&built, &scene, &[("decode", &[0])], NOW).is_none(), "the profile did not run");
}

#[test]
fn a_session_id_is_remembered_for_its_time() {
    let built = session_id(vec![("evictionTtlSeconds", Value::Float(1.5))]);
    let scene = with_header(3, "x-session-id", "abc");
    assert_eq!(scene.scores(&built), [0.0; 3], "a new session");
    assert!(commit(&built, &scene, &[("default", &[2])], NOW).is_none(), "nothing to write on the response");
    assert_eq!(scene.scores(&built), [0.0, 0.0, 1.0]);
    assert_eq!(with_header(3, "x-session-id", "abd").scores(&built), [0.0; 3]);
    commit(&built, &scene, &[("default", &[0])], Timestamp::from_millis(98_499));
    assert_eq!(scene.scores(&built), [0.0; 3], "one millisecond too old");
    commit(&built, &scene, &[("default", &[0])], Timestamp::from_millis(98_500));
    assert_eq!(scene.scores(&built), [1.0, 0.0, 0.0]);
    assert!(commit(&built, &pool(3), &[("default", &[0])], NOW).is_none(), "no session, nothing to learn");
}

#[test]
fn a_reused_slot_is_not_the_sessions_endpoint() {
    let built = session_id(vec![]);
    let mut scene = with_header(2, "x-session-id", "abc");
    commit(&built, &scene, &[("default", &[1])], NOW);
    let topology = &scene.snapshot.topology;
    let other = Endpoint::new(Slot(1), 77, topology.get(Slot(1)).unwrap().spec.clone());
    let slots = vec![topology.get(Slot(0)).cloned(), Some(Arc::new(other))];
    scene.snapshot.topology = Arc::new(Topology::new(2, PoolIdentity::default(), slots));
    assert_eq!(scene.scores(&built), [0.0; 2]);
}

#[test]
fn sources_are_asked_in_order() {
    let mut registry = Registry::default();
    let mut problems = Default::default();
    let mut context = Build {
        name: "cookie-session",
        path: String::new(),
        at: Default::default(),
        parameters: None,
        registry: &mut registry,
        problems: &mut problems,
    };
    context.produces(SignalKind::Session);
    let list = |sources: Vec<Vec<(&str, Value)>>| Value::Sequence(sources.into_iter().map(|s| node(map(s))).collect());
    let both = list(vec![
        vec![("header", text("X-Chat"))],
        vec![("attribute", text("SessionID")), ("producer", text("cookie-session"))],
    ]);
    let nested = map(vec![("sources", both), ("evictionTtlSeconds", Value::Integer(60))]);
    let parameters = vec![("strategy", text("session_id")), ("sessionIdConfig", nested)];
    let (built, problems) = build_in(&mut registry, &ROW, parameters);
    assert!(problems.errors.is_empty(), "{:?}", problems.errors);
    let built = built.unwrap();

    let mut scene = with_header(2, "x-chat", "from-header");
    scene.signals.set_session(0, Some("from-cookie".into()));
    commit(&built, &scene, &[("default", &[1])], NOW);
    assert_eq!(scene.scores(&built), [0.0, 1.0]);
    scene.request.headers = Headers::default();
    assert_eq!(scene.scores(&built), [0.0, 0.0], "the cookie is another session");
    commit(&built, &scene, &[("default", &[0])], NOW);
    assert_eq!(scene.scores(&built), [1.0, 0.0]);
}

#[test]
fn contradictory_parameters_are_refused() {
    let wrong = |more: Vec<(&str, Value)>| {
        let mut parameters = vec![("strategy", text("session_id"))];
        parameters.extend(more);
        errors(&ROW, parameters).join("\n")
    };
    let source = |entries| Value::Sequence(vec![node(map(entries))]);
    assert!(wrong(vec![("sources", source(vec![]))]).contains("must have either `header`"));
    assert!(wrong(vec![("sources", source(vec![("attribute", text("agent-identity"))]))]).contains("either `header`"));
    assert!(wrong(vec![("sources", source(vec![("producer", text("nobody"))]))]).contains("no producer is called"));
    let twice = vec![("sessionIdConfig", map(vec![])), ("evictionTtlSeconds", Value::Integer(5))];
    assert!(wrong(twice).contains("is also set in `sessionIdConfig`"));
    assert!(wrong(vec![("evictionTtlSeconds", Value::Float(-1.0))]).contains("out of range"));
    assert!(errors(&ROW, vec![("strategy", text("session-id"))])[0].contains("did you mean `session_id`"));
}
