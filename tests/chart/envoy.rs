//! The rendered bootstrap in a real Envoy, in front of a picker that runs with the rendered arguments. Only what
//! belongs to a cluster is replaced: ports by free ones, the pool by an endpoints file, its DNS name by loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http_body_util::BodyExt as _;
use pointsman::sim::server::{self, SimConfig, SimHandle};
use pointsman::sim::{client, envoy};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::harness::{Picker, until};
use super::helm::{CASES, arguments, object, template, template_set, text};

fn binary() -> PathBuf {
    let env: BTreeMap<String, String> = std::env::vars().collect();
    envoy::find_binary(&env).unwrap_or_else(|e| panic!("this test needs a real Envoy: {e}"))
}

fn bootstrap(objects: &[Value]) -> &str {
    text(&object(objects, "ConfigMap", "demo-epp-proxy")["data"]["envoy.yaml"])
}

#[tokio::test]
async fn envoy_accepts_every_rendered_bootstrap() {
    let binary = binary();
    let standalone = CASES.iter().filter(|(_, modes)| modes.contains(&"standalone"));
    let others = [
        &["mode=standalone", "router.proxy.failOpen=false", "router.epp.flags.secure-serving=false"][..],
        &["mode=standalone", "router.proxy.listenAddress=::", "router.proxy.timeouts.route=0s"],
        &["mode=standalone", "router.proxy.timeouts.healthInterval=0.25s", "router.proxy.accessLog=true"],
    ];
    let renderings = standalone.map(|(case, _)| template(case, "standalone")).chain(others.map(template_set));
    for objects in renderings {
        let text = bootstrap(&objects);
        let args = ["--mode", "validate", "--log-level", "error", "--config-yaml", text];
        let output = Command::new(&binary).args(args).output().await.unwrap();
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
        // It is Envoy's sidecar that the bootstrap is mounted into, at the path that its arguments name.
        let pod = &object(&objects, "Deployment", "demo-epp")["spec"]["template"]["spec"];
        let sidecar = &pod["initContainers"][0];
        assert_eq!((&sidecar["name"], &sidecar["restartPolicy"]), (&"envoy".into(), &"Always".into()));
        assert_eq!(sidecar["args"][1], "/etc/envoy/envoy.yaml");
        assert_eq!(sidecar["volumeMounts"][0]["mountPath"], "/etc/envoy");
    }
}

#[test]
fn a_bootstrap_of_ones_own_is_taken_as_it_is() {
    let objects = template_set(&["mode=standalone", "router.proxy.bootstrap=admin: {}"]);
    assert_eq!(bootstrap(&objects).trim_end(), "admin: {}");
}

/// An Envoy and where its two listeners are.
struct Running {
    _child: Child,
    inference: SocketAddr,
    ready: SocketAddr,
    admin: SocketAddr,
}

async fn start(folder: &Path, bootstrap: &str) -> Running {
    let (config, admin_file) = (folder.join("envoy.yaml"), folder.join("admin.txt"));
    std::fs::write(&config, bootstrap).unwrap();
    let child = Command::new(binary())
        .args(["--disable-hot-restart", "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"])
        .arg("--config-path")
        .arg(&config)
        .arg("--admin-address-path")
        .arg(&admin_file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut admin = None;
    until("Envoy names its admin port", async || {
        admin = std::fs::read_to_string(&admin_file).ok().and_then(|t| t.trim().parse::<SocketAddr>().ok());
        admin.is_some()
    })
    .await;
    let admin = admin.unwrap();
    until("Envoy is ready", async || client::get(admin, "/ready").await.is_ok_and(|(status, _)| status == 200)).await;
    let (_, listeners) = client::get(admin, "/listeners?format=json").await.unwrap();
    let listeners: Value = serde_json::from_slice(&listeners).unwrap();
    let port = |name: &str| {
        let all = listeners["listener_statuses"].as_array().unwrap();
        let found = all.iter().find(|l| l["name"] == name).unwrap();
        let port = found["local_address"]["socket_address"]["port_value"].as_u64().unwrap();
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
    };
    Running { _child: child, inference: port("inference"), ready: port("ready"), admin }
}

/// The rendered bootstrap with free ports, this picker, and to fail open a pool at this port of loopback.
fn local(rendered: &str, picker: SocketAddr, pool: Option<u16>) -> String {
    let mut text = rendered.to_owned();
    // The admin port is in two places, so that the system cannot choose it at the last moment.
    let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let replacements = [
        ("port_value: 8081".to_owned(), "port_value: 0".to_owned()),
        ("port_value: 19001".to_owned(), "port_value: 0".to_owned()),
        ("port_value: 19000".to_owned(), format!("port_value: {admin}")),
        ("port_value: 9002".to_owned(), format!("port_value: {}", picker.port())),
        ("interval: 2s".to_owned(), "interval: 0.1s".to_owned()),
    ];
    let pool = pool.map(|port| {
        let name = "demo-epp-endpoints.llm.svc.cluster.local";
        [(name.to_owned(), "127.0.0.1".to_owned()), ("port_value: 8000".to_owned(), format!("port_value: {port}"))]
    });
    for (from, to) in replacements.into_iter().chain(pool.into_iter().flatten()) {
        assert!(text.contains(&from), "no {from:?} in\n{rendered}");
        text = text.replace(&from, &to);
    }
    text
}

async fn simulator(name: &str) -> SimHandle {
    server::start(SimConfig { name: name.to_owned(), ..SimConfig::default() }, None).await.unwrap()
}

/// A picker with the arguments of the release, apart from the pool, which is a file with this server.
async fn picker(folder: &Path, objects: &[Value], server: SocketAddr) -> Picker {
    let file = folder.join("endpoints.yaml");
    let endpoint = format!("{{name: one, address: {}, port: {}}}", server.ip(), server.port());
    std::fs::write(&file, format!("endpoints: [{endpoint}]\n")).unwrap();
    let config = text(&object(objects, "ConfigMap", "demo-epp")["data"]["default-plugins.yaml"]);
    let discovery = format!("plugins:\n- {{type: file-discovery, parameters: {{path: '{}'}}}}\n", file.display());
    let config = config.replacen("plugins:\n", &discovery, 1);
    let path = folder.join("default-plugins.yaml");
    std::fs::write(&path, format!("{config}\ndataLayer: {{discovery: {{pluginRef: file-discovery}}}}\n")).unwrap();

    let rendered = arguments(objects);
    let at = rendered.iter().position(|a| *a == "--zap-encoder").unwrap();
    assert_eq!(at, 4, "selector and ports come first: {rendered:?}");
    let folder = format!("{}/", folder.display());
    let mut args: Vec<String> = rendered[at..].iter().map(|a| a.replace("/config/", &folder)).collect();
    for port in ["--grpc-port", "--grpc-health-port", "--metrics-port"] {
        let place = args.iter().position(|a| a == port).unwrap();
        "0".clone_into(&mut args[place + 1]);
    }
    Picker::start_with(&args.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Sends a POST to `/echo`; the status, the server that answered, what it read and the answer's headers.
async fn echo(at: SocketAddr, headers: &[(&str, &str)]) -> (u16, Value, http::HeaderMap) {
    let mut request = http::Request::post("/echo").header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(r#"{"model": "sim/model", "prompt": "Hello"}"#.to_owned()).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(20), client::send(at, request)).await.unwrap().unwrap();
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), serde_json::from_slice(&body).unwrap_or_default(), parts.headers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_release_routes_and_fails_open() {
    let (one, other) = (simulator("one").await, simulator("other").await);
    for secure in [true, false] {
        let flag = format!("router.epp.flags.secure-serving={secure}");
        let objects = template_set(&["mode=standalone", "router.inferencePool.create=false", &flag]);
        let folder = tempfile::tempdir().unwrap();
        let picker = picker(folder.path(), &objects, one.address).await;
        // The pool that Envoy itself knows is another server, so that the answers tell who chose.
        let text = local(bootstrap(&objects), picker.grpc, Some(other.address.port()));
        let envoy = start(folder.path(), &text).await;

        until("the picker is asked", async || echo(envoy.inference, &[]).await.1["endpoint"] == "one").await;
        // A client cannot choose, neither does it learn what the proxy tells the picker.
        let spoofed = other.address.to_string();
        let (status, body, headers) = echo(envoy.inference, &[("x-gateway-destination-endpoint", &spoofed)]).await;
        assert_eq!((status, &body["endpoint"], &body["body_bytes"]), (200, &"one".into(), &41.into()));
        assert!(!headers.contains_key("x-envoy-served-endpoint"), "{headers:?}");
        let line = picker.log.with(&["\"msg\":\"request\"", "servedBy"]).await;
        assert!(line.contains(&one.address.to_string()), "{line}");
        // Readiness and statistics have a port of their own, without the rest of the admin interface.
        assert_eq!(client::get(envoy.ready, "/ready").await.unwrap().0, 200);
        let (status, page) = client::get(envoy.ready, "/stats/prometheus").await.unwrap();
        let page = String::from_utf8_lossy(&page).into_owned();
        assert!(status == 200 && page.contains("envoy_cluster_upstream_rq"), "{page}");
        assert_eq!(client::get(envoy.ready, "/config_dump").await.unwrap().0, 404);

        // Draining, it still answers: Envoy must not turn away from it. Killed, requests pass without it.
        picker.signal("TERM").await;
        picker.log.with(&["drain"]).await;
        assert_eq!(echo(envoy.inference, &[]).await.1["endpoint"], "one");
        picker.signal("KILL").await;
        until("requests pass without a picker", async || {
            let (status, body, _) = echo(envoy.inference, &[]).await;
            status == 200 && body["endpoint"] == "other" && body["body_bytes"] == 41
        })
        .await;
        let (_, stats) = client::get(envoy.admin, "/stats?filter=ext_proc.failure_mode_allowed").await.unwrap();
        assert!(!String::from_utf8_lossy(&stats).contains("allowed: 0"), "{stats:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_release_can_fail_closed() {
    let one = simulator("one").await;
    let objects =
        template_set(&["mode=standalone", "router.inferencePool.create=false", "router.proxy.failOpen=false"]);
    assert!(!objects.iter().any(|o| o["metadata"]["name"] == "demo-epp-endpoints"));
    let folder = tempfile::tempdir().unwrap();
    let picker = picker(folder.path(), &objects, one.address).await;
    let text = local(bootstrap(&objects), picker.grpc, None);
    let envoy = start(folder.path(), &text).await;
    until("the picker is asked", async || echo(envoy.inference, &[]).await.1["endpoint"] == "one").await;
    picker.signal("KILL").await;
    until("requests are refused", async || echo(envoy.inference, &[]).await.0 >= 500).await;
}
