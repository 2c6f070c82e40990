//! The definitions against the rules of protocol 2.1, 2.6 and 2.7. A real API server tries them as well.

use super::*;
use serde_json::{Value, json};

fn definition(kind: &str) -> Value {
    let all = all().into_iter().map(|d| serde_json::to_value(d).unwrap());
    all.into_iter().find(|d| d["spec"]["names"]["kind"] == kind).unwrap()
}

fn schema(kind: &str) -> Value {
    definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn at<'a>(schema: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(schema, |schema, part| match part {
        "[]" => &schema["items"],
        "{}" => &schema["additionalProperties"],
        part => &schema["properties"][part],
    })
}

#[test]
fn names_versions_columns() {
    let pool = definition("InferencePool");
    assert_eq!(pool["metadata"]["name"], "inferencepools.inference.networking.k8s.io");
    assert_eq!(pool["spec"]["names"]["shortNames"], json!(["infpool"]));
    assert_eq!(pool["spec"]["names"]["listKind"], "InferencePoolList");
    assert_eq!(pool["spec"]["scope"], "Namespaced");
    let version = &pool["spec"]["versions"][0];
    assert_eq!((&version["name"], &version["served"], &version["storage"]), (&json!("v1"), &json!(true), &json!(true)));
    assert_eq!(version["subresources"]["status"], json!({}));
    assert_eq!(version["additionalPrinterColumns"], Value::Null);
    let columns = |kind: &str| {
        let columns = &definition(kind)["spec"]["versions"][0]["additionalPrinterColumns"];
        let columns = columns.as_array().unwrap().iter();
        columns
            .map(|c| format!("{}={}", c["name"].as_str().unwrap(), c["jsonPath"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    let (ours, age) = ("Inference Pool=.spec.poolRef.name", "Age=.metadata.creationTimestamp");
    assert_eq!(columns("InferenceObjective"), [ours, "Priority=.spec.priority", age]);
    assert_eq!(columns("InferenceModelRewrite"), [ours, age]);
    for kind in ["InferencePool", "InferenceObjective", "InferenceModelRewrite"] {
        assert_eq!(schema(kind)["required"], json!(["spec"]));
        assert!(!definition(kind).to_string().contains("nullable"), "{kind}");
    }
}

#[test]
fn rules_of_the_pool() {
    let pool = schema("InferencePool");
    for (path, key, value) in [
        ("spec", "required", json!(["selector", "targetPorts"])),
        ("spec.selector.matchLabels", "minProperties", json!(1)),
        ("spec.selector.matchLabels", "maxProperties", json!(64)),
        ("spec.selector.matchLabels.{}", "maxLength", json!(63)),
        ("spec.targetPorts", "minItems", json!(1)),
        ("spec.targetPorts", "maxItems", json!(8)),
        ("spec.targetPorts", "x-kubernetes-list-type", json!("atomic")),
        ("spec.targetPorts.[].number", "minimum", json!(1.0)),
        ("spec.targetPorts.[].number", "maximum", json!(65535.0)),
        ("spec.appProtocol", "default", json!("http")),
        ("spec.appProtocol", "enum", json!(["http", "kubernetes.io/h2c"])),
        ("spec.endpointPickerRef", "required", json!(["name"])),
        ("spec.endpointPickerRef.kind", "default", json!("Service")),
        ("spec.endpointPickerRef.group", "default", json!("")),
        ("spec.endpointPickerRef.failureMode", "default", json!("FailClose")),
        ("spec.endpointPickerRef.failureMode", "enum", json!(["FailOpen", "FailClose"])),
        ("status.parents", "maxItems", json!(32)),
        ("status.parents", "x-kubernetes-list-type", json!("atomic")),
        ("status.parents.[].parentRef.group", "default", json!("gateway.networking.k8s.io")),
        ("status.parents.[].parentRef.kind", "default", json!("Gateway")),
        ("status.parents.[].parentRef.namespace", "maxLength", json!(63)),
        ("status.parents.[].conditions", "maxItems", json!(8)),
        ("status.parents.[].conditions", "x-kubernetes-list-map-keys", json!(["type"])),
    ] {
        assert_eq!(at(&pool, path)[key], value, "{path} {key}");
    }
    for path in ["spec.targetPorts", "spec.endpointPickerRef"] {
        assert!(at(&pool, path)["x-kubernetes-validations"][0]["rule"].is_string(), "{path}");
    }
}

#[test]
fn rules_of_objectives_and_rewrites() {
    let objective = schema("InferenceObjective");
    assert_eq!(at(&objective, "spec")["required"], json!(["poolRef"]));
    assert_eq!(at(&objective, "spec.priority")["default"], Value::Null);
    assert_eq!(at(&objective, "spec.poolRef.group")["default"], "inference.networking.k8s.io");
    assert_eq!(at(&objective, "spec.poolRef.kind")["default"], "InferencePool");
    assert_eq!(at(&objective, "status.conditions")["default"][0]["type"], "Ready");
    let rewrite = schema("InferenceModelRewrite");
    assert_eq!(at(&rewrite, "spec")["required"], json!(["poolRef", "rules"]));
    assert_eq!(at(&rewrite, "spec.rules.[].targets")["minItems"], 1);
    assert_eq!(at(&rewrite, "spec.rules.[].targets.[].weight")["maximum"], 1e6);
    assert_eq!(at(&rewrite, "spec.rules.[].targets.[]")["required"], json!(["modelRewrite"]));
    assert_eq!(at(&rewrite, "spec.rules.[].matches.[].model.type")["default"], "Exact");
    assert_eq!(at(&rewrite, "spec.rules.[].matches.[].model.value")["minLength"], 1);
    assert_eq!(at(&rewrite, "status.conditions")["default"][0]["type"], "Accepted");
}

#[test]
fn what_the_types_write_is_what_routing_reads() {
    use crate::discovery::kubernetes::objects::{Object, PoolFacts, Read};
    let pool = InferencePool::new(
        "p",
        InferencePoolSpec {
            selector: LabelSelector { match_labels: BTreeMap::from([("app".into(), "vllm".into())]) },
            target_ports: vec![Port { number: 8000 }],
            app_protocol: AppProtocol::Http,
            endpoint_picker_ref: None,
        },
    );
    let json = serde_json::to_string(&pool).unwrap();
    let facts = PoolFacts { selector: "app=vllm".into(), ports: vec![8000] };
    assert_eq!(PoolFacts::read(&json, &crate::discovery::kubernetes::GROUP_V1.to_owned()), Ok(Read::Present(facts)));
}
