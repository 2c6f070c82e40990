//! The custom resources: our typed definitions, and those that their projects publish, must take the same objects.

use std::path::Path;

use serde_json::{Value, json};

use super::apiserver::{self, ApiServer};
use super::world::{POOL, World, pool};

/// Our own definitions.
pub fn own() -> Vec<Value> {
    let all = pointsman::discovery::kubernetes::crds::all();
    all.iter().map(|definition| serde_json::to_value(definition).unwrap()).collect()
}

/// The published definitions, if `UPSTREAM_CRDS` names a folder with them.
fn published() -> Option<Vec<Value>> {
    let folder = super::variable("UPSTREAM_CRDS")?;
    let mut found: Vec<_> = std::fs::read_dir(Path::new(&folder)).unwrap().map(|f| f.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    found.sort();
    assert!(!found.is_empty(), "UPSTREAM_CRDS is {folder}, where there are no YAML files");
    Some(found.iter().map(|path| serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()).collect())
}

/// Applies our definitions to `server` and waits until their kinds are served.
pub async fn install(server: &ApiServer) {
    install_all(server, &own()).await;
}

async fn install_all(server: &ApiServer, definitions: &[Value]) {
    for definition in definitions {
        server.apply(definition, "").await;
    }
    let client = server.admin();
    for definition in definitions {
        let spec = &definition["spec"];
        let (group, version) = (spec["group"].as_str().unwrap(), spec["versions"][0]["name"].as_str().unwrap());
        let kind = kube::api::GroupVersionKind::gvk(group, version, spec["names"]["kind"].as_str().unwrap());
        super::stack::until("the kind is served", async || kube::discovery::pinned_kind(&client, &kind).await.is_ok())
            .await;
    }
}

fn objective(spec: Value) -> Value {
    json!({ "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjective", "metadata": { "name": "a" }, "spec": spec })
}

fn rewrite(spec: Value) -> Value {
    json!({ "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite", "metadata": { "name": "a" }, "spec": spec })
}

fn changed(mut object: Value, pointer: &str, value: Value) -> Value {
    *object.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    object
}

/// Objects, and whether they are to be taken.
fn cases() -> Vec<(&'static str, Value, bool)> {
    let reference = json!({ "name": POOL });
    let usual = || pool(POOL, &[8000, 8001]);
    let rules = |rules: Value| rewrite(json!({ "poolRef": { "name": POOL }, "rules": rules }));
    let weight = |weight: i64| rules(json!([{ "targets": [{ "modelRewrite": "m", "weight": weight }] }]));
    vec![
        ("a pool", usual(), true),
        ("eight ports", pool(POOL, &[1, 2, 3, 4, 5, 6, 7, 65535]), true),
        ("nine ports", pool(POOL, &[1, 2, 3, 4, 5, 6, 7, 8, 9]), false),
        ("no port", pool(POOL, &[]), false),
        ("port 0", pool(POOL, &[0]), false),
        ("one port twice", pool(POOL, &[8000, 8000]), false),
        ("no labels", changed(usual(), "/spec/selector/matchLabels", json!({})), false),
        ("a long label", changed(usual(), "/spec/selector/matchLabels/app", json!("x".repeat(64))), false),
        ("an odd label", changed(usual(), "/spec/selector/matchLabels/app", json!("-x")), false),
        ("an empty label", changed(usual(), "/spec/selector/matchLabels/app", json!("")), true),
        ("a Service without port", changed(usual(), "/spec/endpointPickerRef", json!({ "name": "x" })), false),
        (
            "another kind without port",
            changed(usual(), "/spec/endpointPickerRef", json!({ "name": "x", "kind": "Other", "group": "a.b" })),
            true,
        ),
        (
            "a failure mode",
            changed(
                usual(),
                "/spec/endpointPickerRef",
                json!({ "name": "x", "port": { "number": 1 }, "failureMode": "FailOpen" }),
            ),
            true,
        ),
        (
            "a wrong failure mode",
            changed(
                usual(),
                "/spec/endpointPickerRef",
                json!({ "name": "x", "port": { "number": 1 }, "failureMode": "Open" }),
            ),
            false,
        ),
        ("a field that nobody knows", changed(usual(), "/spec", json!({ "nonsense": 1 })), false),
        ("an objective", objective(json!({ "priority": -1, "poolRef": reference })), true),
        ("an objective without priority", objective(json!({ "poolRef": reference })), true),
        ("an objective without pool", objective(json!({ "priority": 1 })), false),
        ("a priority in words", objective(json!({ "priority": "high", "poolRef": reference })), false),
        ("a generic rule", rules(json!([{ "targets": [{ "modelRewrite": "m" }] }])), true),
        (
            "an exact rule",
            rules(json!([{ "matches": [{ "model": { "value": "a" } }, { "model": { "type": "Exact", "value": "b" } }],
                "targets": [{ "modelRewrite": "m", "weight": 1 }, { "modelRewrite": "n", "weight": 1_000_000 }] }])),
            true,
        ),
        ("a match of nothing", rules(json!([{ "matches": [{ "model": { "value": "" } }] }])), false),
        ("a match by prefix", rules(json!([{ "matches": [{ "model": { "type": "Prefix", "value": "a" } }] }])), false),
        ("no targets", rules(json!([{ "matches": [{ "model": { "value": "a" } }] }])), true),
        ("empty targets", rules(json!([{ "targets": [] }])), false),
        ("weight 0", weight(0), false),
        ("weight 1000001", weight(1_000_001), false),
        ("no rules", rewrite(json!({ "poolRef": reference })), false),
    ]
}

async fn take_what_they_should(server: &ApiServer, which: &str) {
    let world = World::new(server, "definitions").await;
    let mut wrong = Vec::new();
    for (what, object, expected) in cases() {
        let taken = apiserver::apply(&world.client, &object, &world.namespace, true).await;
        if taken.is_ok() != expected {
            wrong.push(format!("{what}: expected {expected}, {taken:?}"));
        }
    }
    assert!(wrong.is_empty(), "{which}:\n{}", wrong.join("\n"));
    let stored = world.apply(&pool(POOL, &[8000])).await;
    let reference = &stored["spec"]["endpointPickerRef"];
    assert_eq!(reference["kind"], "Service");
    assert_eq!(reference["failureMode"], "FailClose", "defaults are filled in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_definitions_take_what_they_should() {
    take_what_they_should(apiserver::shared().await, "ours").await;
}

/// The same with the published ones, where they are at hand: what ours take, theirs take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_definitions_take_the_same() {
    let Some(published) = published() else {
        // They are other projects' files, which this one does not carry.
        println!("set UPSTREAM_CRDS to a folder with the published definitions to compare ours with them");
        return;
    };
    let server = ApiServer::start().await;
    install_all(&server, &published).await;
    take_what_they_should(&server, "the published ones").await;
}
