//! Objects as the API server writes them, and as it would not.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn pod(json: serde_json::Value) -> Result<Read<PodFacts>, String> {
    PodFacts::read(&json.to_string(), &())
}

fn running(ip: &str) -> serde_json::Value {
    json!({
        "metadata": {
            "name": "a", "namespace": "n", "resourceVersion": "7", "labels": {"app": "vllm", "empty": ""},
            "annotations": {"other": "x".repeat(100)}, "managedFields": [{"fieldsV1": {"f:a": {}}}]
        },
        "spec": {"containers": [{"name": "c"}]},
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}, {"ip": "fd00::9"}], "hostIP": "10.9.0.1",
            "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]
        }
    })
}

fn present(json: serde_json::Value) -> PodFacts {
    match pod(json) {
        Ok(Read::Present(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ready_pod_is_one_endpoint_per_port() {
    let endpoints = present(running("10.0.0.1")).endpoints("n", &[8000, 8001]);
    let seen: Vec<_> = endpoints.iter().map(|e| (e.name.as_str(), e.address.to_string(), e.rank)).collect();
    assert_eq!(seen, [("a-rank-0", "10.0.0.1:8000".into(), 0), ("a-rank-1", "10.0.0.1:8001".into(), 1)]);
    assert_eq!(endpoints[0].namespace, "n");
    let labels: Vec<_> = endpoints[1].labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("app", "vllm"), ("empty", "")]);
    let six = present(running("fd00::1")).endpoints("n", &[80]);
    assert_eq!(six[0].address.to_string(), "[fd00::1]:80");
    let mapped = present(running("::ffff:10.0.0.1")).endpoints("n", &[80]);
    assert_eq!(mapped[0].address.to_string(), "10.0.0.1:80");
}

#[test]
fn a_pod_that_was_created_anew_is_another_incarnation() {
    let of = |uid: serde_json::Value| {
        let mut json = running("10.0.0.1");
        json["metadata"]["uid"] = uid;
        present(json).endpoints("n", &[80]).remove(0).incarnation
    };
    let one = of(json!("5f6c3f0e-0d0b-4a55-8c3e-6b2f3b1a9c01"));
    assert_eq!(one, of(json!("5f6c3f0e-0d0b-4a55-8c3e-6b2f3b1a9c01")));
    assert_ne!(one, of(json!("5f6c3f0e-0d0b-4a55-8c3e-6b2f3b1a9c02")));
    assert_eq!(of(json!(null)), 0);
    assert_ne!(one, 0);
}

#[test]
fn a_pod_that_may_not_be_sent_requests_is_absent() {
    let mut terminating = running("10.0.0.1");
    terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut unready = running("10.0.0.1");
    unready["status"]["conditions"][1]["status"] = json!("False");
    let mut unknown = running("10.0.0.1");
    unknown["status"]["conditions"][1]["status"] = json!("Unknown");
    let mut without_conditions = running("10.0.0.1");
    without_conditions["status"]["conditions"] = json!(null);
    let mut without_ip = running("10.0.0.1");
    without_ip["status"].as_object_mut().unwrap().remove("podIP");
    let mut without_status = running("10.0.0.1");
    without_status.as_object_mut().unwrap().remove("status");
    for json in [terminating, unready, unknown, without_conditions, without_ip, without_status, running("")] {
        assert_eq!(pod(json.clone()), Ok(Read::Absent), "{json}");
    }
}

#[test]
fn a_pod_that_makes_no_sense_is_an_error() {
    for json in [running("host.example"), running("0.0.0.0"), running("::"), json!({"metadata": {}}), json!([])] {
        assert!(pod(json.clone()).is_err(), "{json}");
    }
    let mut label = running("10.0.0.1");
    label["metadata"]["labels"]["a"] = json!("b\0c");
    assert!(pod(label).unwrap_err().contains("NUL"));
}

#[test]
fn active_ports_say_which_target_ports_are_live() {
    let ranks = |annotations: serde_json::Value| {
        let mut json = running("10.0.0.1");
        json["metadata"]["annotations"] = annotations;
        present(json).endpoints("n", &[8000, 8001, 8002]).iter().map(|e| e.rank).collect::<Vec<_>>()
    };
    let (new, old) = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports");
    assert_eq!(ranks(json!(null)), [0, 1, 2]);
    assert_eq!(ranks(json!({new: "8002, 8000,9999"})), [0, 2]);
    assert_eq!(ranks(json!({old: "8001"})), [1]);
    assert_eq!(ranks(json!({old: "8001", new: "8000"})), [0]);
    assert_eq!(ranks(json!({new: ""})), [0_u32; 0]);
    assert_eq!(ranks(json!({new: "x,-1,70000,8001"})), [1]);
}

#[test]
fn pools_of_both_groups_come_to_the_same() {
    let v1 = json!({"metadata": {"name": "p"}, "spec": {
        "selector": {"matchLabels": {"app": "vllm", "a": ""}}, "targetPorts": [{"number": 8000}, {"number": 8001}, {"number": 8000}],
        "appProtocol": "http", "endpointPickerRef": {"name": "epp", "port": {"number": 9002}}}, "status": {"parents": []}});
    let facts = PoolFacts { selector: "a=,app=vllm".into(), ports: vec![8000, 8001] };
    assert_eq!(PoolFacts::read(&v1.to_string(), &GROUP_V1.to_owned()), Ok(Read::Present(facts)));
    let older = json!({"metadata": {"name": "p"}, "spec": {
        "selector": {"app": "vllm"}, "targetPortNumber": 8000, "extensionRef": {"name": "epp"}}});
    let facts = PoolFacts { selector: "app=vllm".into(), ports: vec![8000] };
    assert_eq!(PoolFacts::read(&older.to_string(), &GROUP_V1ALPHA2.to_owned()), Ok(Read::Present(facts)));
}

#[test]
fn a_pool_that_would_take_every_pod_or_none_is_an_error() {
    let read = |spec: serde_json::Value| PoolFacts::read(&json!({"spec": spec}).to_string(), &GROUP_V1.to_owned());
    for (spec, why) in [
        (json!({"selector": {"matchLabels": {}}, "targetPorts": [{"number": 1}]}), "selector is empty"),
        (json!({"selector": {}, "targetPorts": [{"number": 1}]}), "no map of labels"),
        (json!({"selector": {"matchLabels": {"a": 1}}, "targetPorts": [{"number": 1}]}), "no map of labels"),
        (json!({"selector": {"matchLabels": {"a": "b"}}}), "0 target ports"),
        (json!({"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{"number": 0}]}), "no port"),
        (json!({"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{"number": 65536}]}), "not a port"),
        (
            json!({"selector": {"matchLabels": {"a": "b"}}, "targetPorts": (1..10).map(|n| json!({"number": n})).collect::<Vec<_>>()}),
            "9 target ports",
        ),
    ] {
        let error = read(spec.clone()).unwrap_err();
        assert!(error.contains(why) || why == "no port" && error.contains("0 is not a port"), "{spec}: {error}");
    }
}

#[test]
fn objectives_and_rewrites_count_for_their_pool_only() {
    let pool = PoolRef { name: "p".into(), group: GROUP_V1.into() };
    let objective = |spec: serde_json::Value| {
        let json = json!({"metadata": {"name": "o", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec});
        ObjectiveSpec::read(&json.to_string(), &pool)
    };
    let found = |priority| Ok(Read::Present(ObjectiveSpec { name: "o".into(), priority }));
    assert_eq!(objective(json!({"poolRef": {"name": "p"}, "priority": -3})), found(-3));
    assert_eq!(objective(json!({"poolRef": {"name": "p", "group": GROUP_V1}})), found(0));
    assert_eq!(objective(json!({"poolRef": {"name": "q"}})), Ok(Read::Absent));
    assert_eq!(objective(json!({"poolRef": {"name": "p", "group": GROUP_V1ALPHA2}})), Ok(Read::Absent));
    assert!(objective(json!({"priority": 1})).is_err());

    let rewrite = |created: &str, rules: serde_json::Value| {
        let json = json!({"metadata": {"name": "r", "creationTimestamp": created}, "spec": {"poolRef": {"name": "p"}, "rules": rules}});
        RewriteSpec::read(&json.to_string(), &pool)
    };
    let rules = json!([
        {"matches": [{"model": {"type": "Exact", "value": "a"}}, {"model": {"value": "b"}}],
         "targets": [{"modelRewrite": "x", "weight": 9}, {"modelRewrite": "y"}]},
        {}
    ]);
    let target = |model: &str, weight| RewriteTarget { model: model.into(), weight };
    let expected = RewriteSpec {
        name: "r".into(),
        created: 1_767_225_600,
        rules: vec![
            RewriteRule {
                models: vec!["a".into(), "b".into()],
                targets: vec![target("x", Some(9)), target("y", None)],
            },
            RewriteRule { models: Vec::new(), targets: Vec::new() },
        ],
    };
    assert_eq!(rewrite("2026-01-01T00:00:00Z", rules), Ok(Read::Present(expected)));
    let Ok(Read::Present(ageless)) = rewrite("yesterday", json!([])) else { panic!() };
    assert_eq!(ageless.created, i64::MAX, "an object without a time is not the oldest");
    let regex = json!([{"matches": [{"model": {"type": "Regex", "value": "a"}}]}]);
    assert!(rewrite("2026-01-01T00:00:00Z", regex).unwrap_err().contains("Regex"));
}

proptest! {
    #[test]
    fn labels_come_out_as_they_went_in(labels in proptest::collection::btree_map("[a-z./]{0,8}", "[a-zA-Z0-9.é]{0,8}", 0..8)) {
        let mut json = running("10.0.0.1");
        json["metadata"]["labels"] = json!(labels);
        let endpoints = present(json).endpoints("n", &[1]);
        prop_assert_eq!(&endpoints[0].labels, &labels);
    }

    #[test]
    fn hostile_text_is_answered(text in "\\PC{0,80}", at in 0usize..400) {
        let pool = PoolRef { name: "p".into(), group: GROUP_V1.into() };
        let mut cut = running("10.0.0.1").to_string();
        let at = (0..=at.min(cut.len())).rev().find(|i| cut.is_char_boundary(*i)).unwrap_or(0);
        cut.truncate(at);
        for text in [text, cut] {
            let _ = PodFacts::read(&text, &());
            let _ = PoolFacts::read(&text, &GROUP_V1.to_owned());
            let _ = ObjectiveSpec::read(&text, &pool);
            let _ = RewriteSpec::read(&text, &pool);
        }
    }
}
