//! The chart against a real API server: every object that it renders is accepted, and a picker with the rendered arguments
//! and exactly the rendered rights does its work, in standalone mode behind the rendered Envoy.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use http::Request;
use pointsman::sim::client;
use pointsman::sim::envoy::Envoy;
use serde_json::{Value, json};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::apiserver::{self, ApiServer};
use super::harness::Picker;
use super::helm::{CASES, arguments, object, picker, render, root, template, text};
use super::kubelet;
use super::stack::{Answer, completion, envoy_binary, post, sim_at, until, within};
use super::world::{World, pod};

/// Groups that every API server has, and those whose definitions are ours.
const KNOWN: [&str; 9] = [
    "",
    "apps",
    "policy",
    "autoscaling",
    "networking.k8s.io",
    "rbac.authorization.k8s.io",
    "inference.networking.k8s.io",
    "llm-d.ai",
    "inference.networking.x-k8s.io",
];

/// A definition for a kind of somebody else, which takes whatever stands in it.
fn foreign(object: &Value) -> Option<Value> {
    let (group, version) = text(&object["apiVersion"]).split_once('/').unwrap_or(("", "v1"));
    if KNOWN.contains(&group) {
        return None;
    }
    let kind = text(&object["kind"]);
    let singular = kind.to_lowercase();
    let plural = singular.strip_suffix('y').map_or_else(|| format!("{singular}s"), |stem| format!("{stem}ies"));
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            "annotations": { "api-approved.kubernetes.io": "unapproved, for tests" },
        },
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": singular },
            "versions": [{ "name": version, "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }],
        },
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rendered_object_is_accepted() {
    let world = World::new(apiserver::shared().await, "chart").await;
    let mut defined = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut accepted = BTreeSet::new();
    for (case, mode) in CASES.iter().flat_map(|(case, modes)| modes.iter().map(move |mode| (*case, *mode))) {
        for mut rendered in template(case, mode) {
            if let Some(definition) =
                foreign(&rendered).filter(|d| defined.insert(text(&d["metadata"]["name"]).to_owned()))
            {
                world.server.apply(&definition, "").await;
            }
            let kind = text(&rendered["kind"]).to_owned();
            let name = text(&rendered["metadata"]["name"]).to_owned();
            if rendered["metadata"]["namespace"].is_string() {
                rendered["metadata"]["namespace"] = json!(world.namespace);
            }
            match apiserver::apply(&world.client, &rendered, &world.namespace, true).await {
                Ok(_) => {
                    accepted.insert(kind);
                }
                Err(error) => wrong.push(format!("{case}, {mode}: {kind} {name}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for kind in ["Deployment", "Service", "ConfigMap", "Role", "RoleBinding", "ClusterRole", "InferencePool"] {
        assert!(accepted.contains(kind), "no {kind} was rendered: {accepted:?}");
    }
    println!("accepted by the API server: {accepted:?}");
}

/// The plain manifests of the repository are accepted as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_manifests_are_accepted() {
    let world = World::new(apiserver::shared().await, "manifests").await;
    let mut count = 0;
    for folder in ["deploy/manifests", "deploy/samples"] {
        for file in std::fs::read_dir(root(folder)).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_none_or(|e| e != "yaml") {
                continue;
            }
            for mut manifest in super::helm::documents(&std::fs::read_to_string(&file).unwrap()).unwrap() {
                if manifest["metadata"]["namespace"].is_string() {
                    manifest["metadata"]["namespace"] = json!(world.namespace);
                }
                apiserver::apply(&world.client, &manifest, &world.namespace, true)
                    .await
                    .unwrap_or_else(|e| panic!("{}: {e}\n{manifest:#}", file.display()));
                count += 1;
            }
        }
    }
    assert!(count > 10, "{count} manifests");
}

/// A release whose objects are stored, and its picker as a process.
struct Release {
    objects: Vec<Value>,
    picker: Picker,
    /// How the API server calls the picker's account.
    user: String,
    _folder: tempfile::TempDir,
}

impl Release {
    async fn install(world: &World<'_>, args: &[&str]) -> Self {
        let objects =
            render(&[&["--namespace", &world.namespace][..], args].concat()).unwrap_or_else(|e| panic!("{e}"));
        for rendered in objects.iter().filter(|o| foreign(o).is_none()) {
            world.apply(rendered).await;
        }
        let deployment = object(&objects, "Deployment", "demo-epp");
        let account = text(&deployment["spec"]["template"]["spec"]["serviceAccountName"]).to_owned();
        let token = world.server.token(&world.namespace, &account).await;
        let kubeconfig = world.server.kubeconfig_file(&token);

        // What the kubelet does: the files of the ConfigMap, and the ports of a network of its own.
        let folder = tempfile::tempdir().unwrap();
        let files = object(&objects, "ConfigMap", "demo-epp")["data"].as_object().unwrap();
        kubelet::mount(files.iter().map(|(name, content)| (name, text(content))), folder.path());
        let args = kubelet::arguments(&arguments(&objects), folder.path());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let named = picker(&objects)["env"].as_array().cloned().unwrap_or_default();
        let mut env = vec![("KUBECONFIG", kubeconfig.as_str())];
        for variable in &named {
            match text(&variable["name"]) {
                "NAMESPACE" => env.push(("NAMESPACE", &world.namespace)),
                "POD_NAME" => env.push(("POD_NAME", "demo-epp-7d9c5b8f6-x2x2x")),
                name => env.extend(variable["value"].as_str().map(|value| (name, value))),
            }
        }
        let picker = Picker::start_in(&args, &env).await;
        let user = format!("system:serviceaccount:{}:{account}", world.namespace);
        Self { objects, picker, user, _folder: folder }
    }

    async fn ready(&self) {
        let mut health = HealthClient::new(self.picker.health().await);
        until("the picker is ready", async || {
            let request = HealthCheckRequest { service: "readiness".into() };
            health.check(request).await.unwrap().into_inner().status() == ServingStatus::Serving
        })
        .await;
    }

    /// Stops the picker; nothing that it asked for may have been forbidden.
    async fn stop(self, server: &ApiServer) -> BTreeSet<String> {
        self.picker.stop().await;
        let asked = server.audit(&self.user);
        let forbidden: Vec<_> = asked.iter().filter(|(_, _, status)| [401, 403].contains(status)).collect();
        assert!(forbidden.is_empty(), "{forbidden:#?}");
        let resource = |path: &str| {
            let path = path.split('?').next().unwrap_or_default().trim_end_matches('/');
            let known = [
                "pods",
                "inferencepools",
                "inferenceobjectives",
                "inferencemodelrewrites",
                "leases",
                "tokenreviews",
                "subjectaccessreviews",
            ];
            known.into_iter().find(|r| path.split('/').any(|part| part == *r)).unwrap_or("discovery").to_owned()
        };
        asked.iter().map(|(verb, path, _)| format!("{verb} {}", resource(path))).collect()
    }
}

/// A GET of `path` on the picker's metrics port with this token.
async fn scrape(at: SocketAddr, token: Option<&str>) -> u16 {
    let mut request = Request::get("/metrics");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = client::send(at, request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
    answer.status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_release_needs_no_more_than_its_rights() {
    let world = World::new(apiserver::shared().await, "release").await;
    let release = Release::install(
        &world,
        &[
            "--set",
            "mode=gateway,router.epp.replicas=2,router.modelServers.matchLabels.app=models,router.monitoring.prometheus.enabled=true",
            "--set",
            "router.inferenceObjectives[0].name=urgent,router.inferenceObjectives[0].priority=10",
        ],
    )
    .await;
    world.ready("a", "192.0.2.7").await;
    release.ready().await;

    // The metrics are for whoever may read them, as the cluster's roles say.
    let reader = world.server.service_account(&world.namespace, "reader").await;
    let stranger = world.server.service_account(&world.namespace, "stranger").await;
    let role = format!("metrics-reader-{}", world.namespace);
    world
        .apply(
            &json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": role },
            "rules": [{ "nonResourceURLs": ["/metrics"], "verbs": ["get"] }] }),
        )
        .await;
    world
        .apply(&json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": role },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": "reader", "namespace": world.namespace }] }))
        .await;
    let metrics = release.picker.metrics;
    assert_eq!(scrape(metrics, None).await, 401);
    assert_eq!(scrape(metrics, Some("no-token-of-this-cluster")).await, 401);
    assert_eq!(scrape(metrics, Some(&stranger)).await, 403);
    until("the reader's role is known", async || scrape(metrics, Some(&reader)).await == 200).await;

    let asked = release.stop(world.server).await;
    for call in [
        "watch pods",
        "watch inferencepools",
        "watch inferenceobjectives",
        "watch inferencemodelrewrites",
        "create leases",
        "update leases",
        "create tokenreviews",
        "create subjectaccessreviews",
    ] {
        assert!(asked.contains(call), "no {call} in {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_release_routes_by_its_own_envoy() {
    let world = World::new(apiserver::shared().await, "standalone").await;
    let servers = [sim_at("one", "127.0.20.1:0").await, sim_at("two", "127.0.20.2:0").await];
    for create_pool in [true, false] {
        let ports: Vec<String> = servers
            .iter()
            .enumerate()
            .map(|(i, s)| format!("router.modelServers.targetPorts[{i}].number={}", s.address.port()))
            .collect();
        let sets = format!(
            "mode=standalone,router.modelServers.matchLabels.app=models,router.inferencePool.create={create_pool},{}",
            ports.join(",")
        );
        let release = Release::install(&world, &["--set", &sets]).await;
        for (i, server) in servers.iter().enumerate() {
            let name = format!("server-{create_pool}-{i}");
            world.pod(&pod(&name, &[])).await;
            let active = server.address.port().to_string();
            world.patch(&name, &json!({ "metadata": { "annotations": { "llm-d.ai/active-ports": active } } })).await;
            world.status(&name, &server.address.ip().to_string(), true).await;
        }
        release.ready().await;

        // The rendered bootstrap with ports that are free here.
        let rendered = text(&object(&release.objects, "ConfigMap", "demo-epp-proxy")["data"]["envoy.yaml"]).to_owned();
        let folder = tempfile::tempdir().unwrap();
        let config = kubelet::bootstrap(&rendered, release.picker.grpc, &world.namespace);
        let envoy = Envoy::start_with(&envoy_binary(), &config, 1, folder.path()).await.unwrap();
        let proxy = kubelet::inference(&envoy).await;

        let ask = async |prompt: &str| {
            let answer =
                within("an answer", client::send(proxy, post("/v1/completions", &[], completion(prompt)))).await;
            Answer::read(answer.unwrap_or_else(|e| panic!("{e}; {}", envoy.log_tail()))).await
        };
        until("both servers are asked", async || {
            let mut seen = BTreeSet::new();
            for i in 0..20 {
                let answer = ask(&format!("Question {i}, which nobody asked before")).await;
                assert_eq!(answer.status, 200, "{answer:?}\n{}", envoy.log_tail());
                seen.insert(answer.endpoint().to_owned());
            }
            seen.len() == 2
        })
        .await;
        // A prompt that grew goes where its beginning is.
        let long = "You are a careful assistant. ".repeat(40);
        let first = ask(&long).await;
        for i in 0..5 {
            assert_eq!(ask(&format!("{long} And {i}?")).await.endpoint(), first.endpoint());
        }
        let line = release.picker.log.with(&["\"msg\":\"request\"", "127.0.20."]).await;
        println!("{line}");
        release.stop(world.server).await;
        for i in 0..servers.len() {
            world.delete(&format!("server-{create_pool}-{i}")).await;
        }
    }
}
