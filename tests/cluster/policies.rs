//! Objectives and rewrites as objects of the cluster: they take effect on the next request after the API server said so.

use std::net::SocketAddr;

use pointsman::sim::client;
use pointsman::sim::envoy::{Bootstrap, Envoy};
use pointsman::sim::server::{self, SimConfig};
use serde_json::{Value, json};

use super::apiserver;
use super::harness::Picker;
use super::stack::{Answer, MODEL, envoy_binary, post, quick, until, within};
use super::world::{DOCUMENT, POOL, World, pool};

fn rewrite(name: &str, pool: &str, from: &str, targets: Value) -> Value {
    json!({
        "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite", "metadata": { "name": name },
        "spec": { "poolRef": { "name": pool }, "rules": [{ "matches": [{ "model": { "value": from } }], "targets": targets }] },
    })
}

fn objective(name: &str, pool: &str, priority: i32) -> Value {
    json!({
        "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjective", "metadata": { "name": name },
        "spec": { "poolRef": { "name": pool }, "priority": priority },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_the_cluster_take_effect_on_the_next_request() {
    let world = World::new(apiserver::shared().await, "policies").await;
    // It answers 404 to other models than its own, as vLLM does.
    let sim = server::start(SimConfig { strict_model: true, ..quick("one") }, None).await.unwrap();
    world.apply(&pool(POOL, &[sim.address.port()])).await;
    world.ready("one", &sim.address.ip().to_string()).await;
    let kubeconfig = world.server.kubeconfig_file(apiserver::ADMIN);
    let args = [
        "--pool-name",
        POOL,
        "--pool-namespace",
        &world.namespace,
        "--config-text",
        DOCUMENT,
        "--secure-serving=false",
        "--metrics-endpoint-auth=false",
        "--drain-timeout=0s",
        "--grpc-port=0",
        "--grpc-health-port=0",
        "--metrics-port=0",
    ];
    let picker = Picker::start_in(&args, &[("KUBECONFIG", &kubeconfig)]).await;
    let folder = tempfile::tempdir().unwrap();
    let bootstrap = Bootstrap::original_dst(SocketAddr::from(([127, 0, 0, 1], picker.grpc.port())));
    let envoy = Envoy::start(&envoy_binary(), &bootstrap, 1, folder.path()).await.unwrap();
    let ask = async |model: &str, headers: &[(&str, &str)]| {
        let body = json!({ "model": model, "prompt": "Hello", "max_tokens": 4 }).to_string();
        let answer = within("an answer", client::send(envoy.address(), post("/v1/completions", headers, body))).await;
        Answer::read(answer.unwrap()).await
    };
    until("the endpoint is known", async || ask(MODEL, &[]).await.status == 200).await;
    assert_eq!(ask("client/name", &[]).await.status, 404);

    // One of another pool does not count, however old.
    world.apply(&rewrite("a-stranger", "another-pool", "client/name", json!([{ "modelRewrite": "nonsense" }]))).await;
    world.apply(&rewrite("b-ours", POOL, "client/name", json!([{ "modelRewrite": MODEL }]))).await;
    until("the rewrite has an effect", async || ask("client/name", &[]).await.status == 200).await;
    let answer = ask("client/name", &[]).await;
    assert_eq!(answer.json()["model"], "client/name", "the client's name is put back");
    assert_eq!(ask("another/name", &[]).await.status, 404, "the rule is for one model");

    world.apply(&rewrite("b-ours", POOL, "client/name", json!([{ "modelRewrite": "gone" }]))).await;
    until("the change has an effect", async || ask("client/name", &[]).await.status == 404).await;
    let plural = format!("/apis/llm-d.ai/v1alpha2/namespaces/{}/inferencemodelrewrites/b-ours", world.namespace);
    world.client.request_text(http::Request::delete(&plural).body(Vec::new()).unwrap()).await.unwrap();
    let mut generic = rewrite("c-generic", POOL, "", json!([{ "modelRewrite": MODEL, "weight": 1 }]));
    generic["spec"]["rules"][0].as_object_mut().unwrap().remove("matches");
    world.apply(&generic).await;
    until("the generic rule has an effect", async || ask("anything/at-all", &[]).await.status == 200).await;

    world.apply(&objective("batch", POOL, -5)).await;
    world.apply(&objective("stranger", "another-pool", 9)).await;
    let header = |name: &'static str| [("x-llm-d-inference-objective", name)];
    let counted = async |priority: &str| {
        let (_, page) = picker.get("/metrics").await;
        page.lines()
            .any(|l| l.starts_with("llm_d_epp_request_total{") && l.contains(&format!("priority=\"{priority}\"")))
    };
    until("the objective has an effect", async || {
        assert_eq!(ask(MODEL, &header("batch")).await.status, 200, "nothing is saturated");
        counted("-5").await
    })
    .await;
    ask(MODEL, &header("stranger")).await;
    assert!(!counted("9").await, "an objective of another pool does not count");
    picker.stop().await;
}
