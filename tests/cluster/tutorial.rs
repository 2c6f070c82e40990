//! The commands of `docs/tutorials/first-request.md`, taken from the page and run: Helm installs into the real API server, the
//! requests go through the rendered Envoy to the picker and simulated servers. What a kubelet, a controller and a port-forward
//! would do is done here: processes in the place of containers, on the ports that were free.
//!
//! `cargo test --test cluster tutorial -- --nocapture` prints what the page shows.

use std::net::IpAddr;
use std::process::Command;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ListParams, PostParams};
use pointsman::sim::client;
use pointsman::sim::envoy::Envoy;
use pointsman::sim::server::{self, SimConfig};
use serde_json::{Value, json};

use super::apiserver;
use super::conformance::listeners;
use super::harness::Picker;
use super::helm::root;
use super::kubelet;
use super::stack::{envoy_binary, until};
use super::world::{World, pod};

const NAMESPACE: &str = "first";

/// The shell commands of the page, block by block.
fn blocks() -> Vec<String> {
    let page = std::fs::read_to_string(root("docs/tutorials/first-request.md")).unwrap();
    let mut blocks = Vec::new();
    let mut rest = page.as_str();
    while let Some((_, after)) = rest.split_once("```sh\n") {
        let (block, end) = after.split_once("```").expect("a block ends");
        blocks.push(block.to_owned());
        rest = end;
    }
    blocks
}

/// The one block with `word`.
fn block(word: &str) -> String {
    let mut found: Vec<String> = blocks().into_iter().filter(|block| block.contains(word)).collect();
    assert_eq!(found.len(), 1, "blocks with {word:?}");
    found.remove(0)
}

/// Runs a script in the folder of the project; what it printed.
async fn shell(script: &str, env: &[(&str, &str)]) -> String {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(root("")).envs(env.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{script}\n{out}\n{}", String::from_utf8_lossy(&output.stderr));
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_request_goes_as_the_page_says() {
    let server = apiserver::shared().await;
    let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } })).unwrap();
    Api::<Namespace>::all(server.admin()).create(&PostParams::default(), &namespace).await.unwrap();
    let world = World { server, namespace: NAMESPACE.to_owned(), client: server.admin() };

    // `kubectl apply` of the sample, and what its controller and the kubelets make of it.
    let sample = std::fs::read_to_string(root("deploy/samples/simulated-servers.yaml")).unwrap();
    let sample = super::helm::documents(&sample).unwrap();
    world.apply(&sample[0]).await;
    let ips: Vec<IpAddr> = (1..5).map(|i| IpAddr::from([127, 0, 30, i])).collect();
    let (ports, listeners) = listeners(&ips, 1).await;
    let port = ports[0];
    let mut servers = Vec::new();
    for (i, (_, listener)) in listeners.into_iter().enumerate() {
        let config = SimConfig { name: format!("simulated-{i}"), ..SimConfig::default() };
        servers.push(server::start(config, Some(listener)).await.unwrap());
    }
    for server in &servers {
        world.pod(&pod(server.name(), &[("app", "vllm")])).await;
        world.status(server.name(), &server.address.ip().to_string(), true).await;
    }

    // `helm install`, word by word.
    let kubeconfig = server.kubeconfig_file(apiserver::ADMIN);
    let install = block("helm install");
    let install = install.split("kubectl").next().unwrap().trim_end();
    let helm = super::variable("HELM_BIN").unwrap_or_else(|| "helm".to_owned());
    // The servers have another port here than containers of their own would have.
    let install = format!("{install} --set 'router.modelServers.targetPorts[0].number={port}'");
    println!("$ {install}");
    let script = format!("helm() {{ {helm} \"$@\"; }}\n{install}");
    println!("{}", shell(&script, &[("KUBECONFIG", &kubeconfig)]).await);

    // What the kubelet does with the Deployment that is now in the cluster.
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), NAMESPACE);
    let deployment = serde_json::to_value(deployments.get("demo-epp").await.unwrap()).unwrap();
    let spec = &deployment["spec"]["template"]["spec"];
    let container = spec["containers"].as_array().unwrap().iter().find(|c| c["name"] == "epp").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), NAMESPACE);
    let maps = maps.list(&ListParams::default()).await.unwrap().items;
    let map =
        |name: &str| maps.iter().find(|m| m.metadata.name.as_deref() == Some(name)).unwrap().data.clone().unwrap();
    let files = map("demo-epp");
    kubelet::mount(files.iter().map(|(name, content)| (name, content.as_str())), folder.path());
    let args = kubelet::arguments(&super::helm::texts(&container["args"]), folder.path());
    let account = spec["serviceAccountName"].as_str().unwrap();
    let token = server.token(NAMESPACE, account).await;
    let account_config = server.kubeconfig_file(&token);
    let env =
        [("KUBECONFIG", account_config.as_str()), ("NAMESPACE", NAMESPACE), ("POD_NAME", "demo-epp-7d9c5b8f6-x2x2x")];
    let picker = Picker::start_in(&args.iter().map(String::as_str).collect::<Vec<_>>(), &env).await;

    let bootstrap = kubelet::bootstrap(&map("demo-epp-proxy")["envoy.yaml"], picker.grpc, NAMESPACE);
    let envoy_folder = tempfile::tempdir().unwrap();
    let envoy = Envoy::start_with(&envoy_binary(), &bootstrap, 1, envoy_folder.path()).await.unwrap();
    let proxy = kubelet::inference(&envoy).await;
    until("the picker knows the servers", async || {
        let (_, page) = picker.get("/metrics").await;
        page.lines().any(|l| l.starts_with("llm_d_epp_ready_endpoints") && l.ends_with(" 4"))
    })
    .await;
    // Envoy looks for its picker every two seconds.
    until("Envoy has found the picker", async || {
        let clusters = client::get(envoy.admin(), "/clusters").await.unwrap().1;
        String::from_utf8_lossy(&clusters)
            .lines()
            .any(|l| l.starts_with("epp::") && l.contains("health_flags::healthy"))
    })
    .await;

    // The two requests, word by word but for the port.
    let requests = block("ask()");
    let requests: String = requests.lines().filter(|l| !l.contains("port-forward")).map(|l| format!("{l}\n")).collect();
    let answers = shell(&requests.replace("localhost:8081", &proxy.to_string()), &[]).await;
    println!("{answers}");
    let answers: Vec<Value> =
        answers.lines().filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    assert_eq!(cached(&answers[0]), 0);
    assert!(cached(&answers[1]) > 0, "{}", answers[1]);

    // What `kubectl logs … | grep` shows.
    let mut lines = Vec::new();
    until("both requests are in the log", async || {
        lines = picker.log.all().into_iter().filter(|l| l.contains("\"msg\":\"request\"")).collect();
        lines.len() == 2
    })
    .await;
    println!("{}", lines.join("\n"));
    let lines: Vec<Value> = lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["endpoint"], lines[1]["endpoint"]);
    assert_eq!(lines[0]["endpoint"], lines[0]["servedBy"]);
    assert_eq!(lines[1]["cachedTokens"].as_u64(), Some(cached(&answers[1])));
    assert!(lines[1]["predictedCachedTokens"].as_u64() > Some(0));

    let metrics = block("localhost:9090");
    let metrics = shell(&metrics.replace("localhost:9090", &picker.metrics.to_string()), &[]).await;
    println!("{metrics}");
    assert!(metrics.contains("request_outcome_total") && metrics.contains("delivered_tokens_total"), "{metrics}");
    picker.stop().await;
}
