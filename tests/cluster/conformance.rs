//! The tests of the Gateway API Inference Extension's conformance suite that concern an endpoint picker, each reproduced under
//! its name against a real Envoy and a real API server (protocol 6). The data plane is a static Envoy in the place of a
//! gateway, the echo servers are simulated model servers on loopback addresses, and each pool has a picker process of its own,
//! started with the arguments of the suite's manifests by an account with the rights that the suite gives it.
//!
//! Not here, because they concern gateway controllers only: InferencePoolAccepted, InferencePoolInvalidEPPService,
//! HTTPRouteInvalidInferencePoolRef. Of InferencePoolResolvedRefsCondition and InferencePoolMissingEPPRef the part that
//! concerns the picker is that it serves the pool all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::Empty;
use pointsman::sim::client;
use pointsman::sim::envoy::{Bootstrap, Envoy};
use pointsman::sim::server::{self, SimHandle};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::apiserver;
use super::harness::Picker;
use super::stack::{Answer, envoy_binary, post, quick, until, with_headers, within};
use super::world::World;

const SELECTION: &str = "test-epp-endpoint-selection";
const SERVED: &str = "x-conformance-test-served-endpoint";
const BODY: &str = r#"{"model": "conformance-fake-model", "prompt": "Write as if you were a critic: San Francisco"}"#;

/// A pool with its echo servers and its picker.
struct Pool {
    name: &'static str,
    ips: Vec<IpAddr>,
    ports: Vec<u16>,
    picker: Picker,
    _servers: Vec<SimHandle>,
}

/// Ports that are free on all of these addresses. A port is taken on the first one by the system's choice and then on the
/// others; where that fails another one is tried.
pub async fn listeners(ips: &[IpAddr], ports: usize) -> (Vec<u16>, Vec<(SocketAddr, TcpListener)>) {
    let (mut chosen, mut all) = (Vec::new(), Vec::new());
    while chosen.len() < ports {
        let first = TcpListener::bind((ips[0], 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut these = vec![(SocketAddr::new(ips[0], port), first)];
        for ip in &ips[1..] {
            if let Ok(listener) = TcpListener::bind((*ip, port)).await {
                these.push((SocketAddr::new(*ip, port), listener));
            }
        }
        if these.len() == ips.len() {
            chosen.push(port);
            all.extend(these);
        }
    }
    (chosen, all)
}

impl Pool {
    /// A pool of pods at `ips` with `ports` ports each, and its picker. `change` may alter the InferencePool.
    async fn start(
        world: &World<'_>,
        name: &'static str,
        ips: &[&str],
        ports: usize,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let (ports, listeners) = listeners(&ips, ports).await;
        let mut servers = Vec::new();
        for (address, listener) in listeners {
            servers.push(server::start(quick(&address.to_string()), Some(listener)).await.unwrap());
        }
        let numbers: Vec<Value> = ports.iter().map(|number| json!({ "number": number })).collect();
        let mut pool = json!({
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": { "name": name },
            "spec": {
                "selector": { "matchLabels": { "app": name } },
                "targetPorts": numbers,
                "endpointPickerRef": { "name": "epp", "port": { "number": 9002 } },
            },
        });
        change(&mut pool);
        world.apply(&pool).await;
        for (i, ip) in ips.iter().enumerate() {
            let pod_name = format!("{name}-{i}");
            world.pod(&super::world::pod(&pod_name, &[("app", name)])).await;
            world.status(&pod_name, &ip.to_string(), true).await;
        }
        let picker = picker(world, name).await;
        Self { name, ips, ports, picker, _servers: servers }
    }

    /// Addresses of all its servers.
    fn addresses(&self) -> Vec<SocketAddr> {
        let of = |ip: &IpAddr| self.ports.iter().map(|port| SocketAddr::new(*ip, *port)).collect::<Vec<_>>();
        self.ips.iter().flat_map(of).collect()
    }

    /// Stops the picker; of what it must have it was refused nothing. That objectives and rewrites are forbidden to it
    /// is what the suite gives it (R-07).
    async fn stop(self, world: &World<'_>) {
        self.picker.stop().await;
        let user = format!("system:serviceaccount:{}:epp-{}", world.namespace, self.name);
        let asked = world.server.audit(&user);
        assert!(asked.iter().any(|(verb, path, _)| verb == "watch" && path.contains("/pods")), "{asked:?}");
        for (verb, path, status) in asked {
            let optional = path.contains("inferenceobjectives") || path.contains("inferencemodelrewrites");
            assert!(status < 400 || status == 404 || (optional && status == 403), "{status}: {verb} {path}");
        }
    }
}

/// A picker as the suite's manifests start it (6.1), by an account that may see pods and pools and nothing else.
async fn picker(world: &World<'_>, pool: &str) -> Picker {
    let account = format!("epp-{pool}");
    let token = world.server.service_account(&world.namespace, &account).await;
    let rule = |group: &str, resource: &str| json!({ "apiGroups": [group], "resources": [resource], "verbs": ["get", "list", "watch"] });
    world
        .apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": account },
            "rules": [rule("", "pods"), rule("inference.networking.k8s.io", "inferencepools")],
        }))
        .await;
    world
        .apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": account },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": world.namespace }],
        }))
        .await;
    let kubeconfig = world.server.kubeconfig_file(&token);
    let args = [
        "--pool-name",
        pool,
        "--pool-namespace",
        &world.namespace,
        "--zap-encoder",
        "json",
        "--grpc-port",
        "0",
        "--grpc-health-port",
        "0",
        // Not in the manifests: the port of the metrics must not be the same for several, and nothing waits at the end.
        "--metrics-port",
        "0",
        "--drain-timeout",
        "0s",
    ];
    let env = [("KUBECONFIG", kubeconfig.as_str()), ("POINTSMAN_CONFORMANCE_TEST_MODE", "true")];
    let picker = Picker::start_in(&args, &env).await;
    let mut health = HealthClient::new(picker.health().await);
    until("the probe of the manifests succeeds", async || {
        let request = HealthCheckRequest { service: "inference-extension".into() };
        health.check(request).await.unwrap().into_inner().status() == ServingStatus::Serving
    })
    .await;
    picker
}

/// Envoy with a bootstrap, and the folder it writes to.
struct Gateway {
    envoy: Envoy,
    _folder: TempDir,
}

impl Gateway {
    async fn start(config: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(config).unwrap();
        let envoy = Envoy::start_with(&envoy_binary(), &text, 2, folder.path()).await.unwrap();
        Self { envoy, _folder: folder }
    }

    async fn over(pool: &Pool) -> Self {
        Self::start(&bootstrap(pool)).await
    }

    async fn post(&self, headers: &[(&str, &str)]) -> Answer {
        self.post_to("/v1/completions", headers).await
    }

    async fn post_to(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let answer = within("an answer", client::send(self.envoy.address(), post(path, headers, BODY))).await;
        Answer::read(answer.unwrap_or_else(|e| panic!("{e}; {}", self.envoy.log_tail()))).await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = with_headers(http::Request::get(path), headers).body(Empty::<Bytes>::new()).unwrap();
        let answer = within("an answer", client::send(self.envoy.address(), request)).await;
        Answer::read(answer.unwrap_or_else(|e| panic!("{e}; {}", self.envoy.log_tail()))).await
    }

    /// `count` requests, `at_once` at a time; how many were answered by which server. All must be 200.
    async fn spread(&self, headers: &[(&str, &str)], count: usize, at_once: usize) -> BTreeMap<SocketAddr, usize> {
        let mut found = BTreeMap::new();
        let answers = futures_util::stream::iter(0..count).map(|_| self.post(headers)).buffer_unordered(at_once);
        for answer in answers.collect::<Vec<_>>().await {
            assert_eq!(answer.status, 200, "{answer:?}\n{}", self.envoy.log_tail());
            *found.entry(served_by(&answer)).or_default() += 1;
        }
        found
    }
}

/// The server that answered.
fn served_by(answer: &Answer) -> SocketAddr {
    answer.endpoint().parse().unwrap_or_else(|_| panic!("no server in {answer:?}"))
}

/// Envoy that knows the members of the pool and follows the picker's list (variant B), TLS to the picker.
fn bootstrap(pool: &Pool) -> Value {
    let mut bootstrap = Bootstrap::override_host(pool.picker.grpc, pool.addresses());
    bootstrap.epp_tls = true;
    serde_saphyr::from_str(&bootstrap.render().unwrap()).unwrap()
}

/// The place of the routes in a bootstrap.
const ROUTES: &str =
    "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes";

/// Two pools behind one Envoy: the clusters `pool` and `epp` of the first, `pool_two` and `epp_two` of the second; `routes`
/// is made from the extension of a route that asks the second picker.
fn two_pools(one: &Pool, two: &Pool, routes: impl FnOnce(Value) -> Value) -> Value {
    let (mut all, other) = (bootstrap(one), bootstrap(two));
    for cluster in other["static_resources"]["clusters"].as_array().unwrap() {
        let mut cluster = cluster.clone();
        let name = format!("{}_two", cluster["name"].as_str().unwrap());
        cluster["name"] = json!(name);
        cluster["load_assignment"]["cluster_name"] = json!(name);
        all["static_resources"]["clusters"].as_array_mut().unwrap().push(cluster);
    }
    let second = json!({ "envoy.filters.http.ext_proc": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
        "overrides": { "grpc_service": { "envoy_grpc": { "cluster_name": "epp_two" } } },
    } });
    *all.pointer_mut(ROUTES).unwrap() = routes(second);
    all
}

async fn world(name: &str) -> World<'static> {
    World::new(apiserver::shared().await, name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inference_pool_http_route_port_validation() {
    // The port of a backendRef is the gateway's affair; for the picker the test is a GET, which has no body to read.
    let world = world("port-validation").await;
    let pool = Pool::start(&world, "primary", &["127.0.6.1", "127.0.6.2"], 1, |_| ()).await;
    let gateway = Gateway::over(&pool).await;
    for path in ["/test-no-port", "/test-matching-port", "/test-non-matching-port"] {
        let answer = gateway.get(path, &[("x-sim-echo", "1")]).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(pool.addresses().contains(&served_by(&answer)));
    }
    pool.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_route_multiple_rules_different_pools() {
    let world = world("rules").await;
    let one = Pool::start(&world, "primary", &["127.0.7.1", "127.0.7.2"], 1, |_| ()).await;
    let two = Pool::start(&world, "secondary", &["127.0.7.3", "127.0.7.4"], 1, |_| ()).await;
    let route = |prefix: &str, cluster: &str| json!({ "match": { "prefix": prefix }, "route": { "cluster": cluster, "timeout": "0s" } });
    let gateway = Gateway::start(&two_pools(&one, &two, |second| {
        let mut to_two = route("/secondary", "pool_two");
        to_two["typed_per_filter_config"] = second;
        json!([to_two, route("/primary", "pool")])
    }))
    .await;
    for (path, pool) in [("/primary", &one), ("/secondary", &two), ("/primary/x", &one), ("/secondary/x", &two)] {
        for _ in 0..5 {
            let answer = gateway.get(path, &[("x-sim-echo", "1")]).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            assert!(pool.addresses().contains(&served_by(&answer)), "{path} of {}: {answer:?}", pool.name);
        }
    }
    one.stop(&world).await;
    two.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_route_multiple_gateways_different_pools() {
    let world = world("gateways").await;
    let one = Pool::start(&world, "primary", &["127.0.8.1", "127.0.8.2"], 1, |_| ()).await;
    let two = Pool::start(&world, "secondary", &["127.0.8.3", "127.0.8.4"], 1, |_| ()).await;
    for pool in [&one, &two] {
        let gateway = Gateway::over(pool).await;
        for _ in 0..5 {
            let answer = gateway.get("/", &[("x-sim-echo", "1")]).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(pool.addresses().contains(&served_by(&answer)), "of {}: {answer:?}", pool.name);
        }
    }
    one.stop(&world).await;
    two.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_following_epp_routing() {
    let world = world("following").await;
    let pool = Pool::start(&world, "primary", &["127.0.9.1", "127.0.9.2", "127.0.9.3"], 1, |_| ()).await;
    let gateway = Gateway::over(&pool).await;
    let all = pool.addresses();
    for chosen in [&all[..1], &all[1..], &all[..], &all[2..]] {
        let header = chosen.iter().map(|a| a.ip().to_string()).collect::<Vec<_>>().join(",");
        let found = gateway.spread(&[(SELECTION, &header)], 100, 10).await;
        let (found, chosen): (BTreeSet<_>, BTreeSet<_>) =
            (found.into_keys().collect(), chosen.iter().copied().collect());
        assert_eq!(found, chosen, "{header}");
    }
    // A header without a body, spaces, an address twice; and one that no pod has.
    let odd = format!(" {} , {}", all[1].ip(), all[1]);
    assert_eq!(served_by(&gateway.get("/", &[(SELECTION, &odd), ("x-sim-echo", "1")]).await), all[1]);
    let nobody = gateway.post(&[(SELECTION, "192.0.2.77")]).await;
    assert!(nobody.status == 429 || nobody.status == 503, "{nobody:?}");
    assert_eq!(gateway.spread(&[], 30, 10).await.len(), 3, "without the header any pod will do");
    pool.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_following_epp_routing_with_data_parallelism() {
    let world = world("parallel").await;
    let pool = Pool::start(&world, "dp", &["127.0.10.1", "127.0.10.2"], 3, |_| ()).await;
    let gateway = Gateway::over(&pool).await;
    let at = |pod: usize, port: usize| SocketAddr::new(pool.ips[pod], pool.ports[port]);
    // A bare address means every rank of the pod.
    let found = gateway.spread(&[(SELECTION, &pool.ips[0].to_string())], 100, 10).await;
    assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), (0..3).map(|port| at(0, port)).collect());
    for chosen in [vec![at(1, 2)], vec![at(0, 0), at(0, 2)], vec![at(0, 1), at(1, 0), at(1, 2)]] {
        let header = chosen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let found = gateway.spread(&[(SELECTION, &header)], 100, 10).await;
        assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), chosen.into_iter().collect(), "{header}");
    }
    let header = format!("{},{}", pool.ips[0], at(1, 1));
    let found = gateway.spread(&[(SELECTION, &header)], 100, 10).await;
    assert_eq!(found.len(), 4, "{found:?}");
    pool.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_weighted_across_two_inference_pools() {
    let world = world("weighted").await;
    let one = Pool::start(&world, "primary", &["127.0.11.1", "127.0.11.2"], 1, |_| ()).await;
    let two = Pool::start(&world, "secondary", &["127.0.11.3", "127.0.11.4"], 1, |_| ()).await;
    let gateway = Gateway::start(&two_pools(&one, &two, |second| {
        json!([{ "match": { "prefix": "/" }, "route": { "timeout": "0s", "weighted_clusters": { "clusters": [
            { "name": "pool", "weight": 70 },
            { "name": "pool_two", "weight": 30, "typed_per_filter_config": second },
        ] } } }])
    }))
    .await;
    // The header lists the pods of both pools; each picker must know only its own.
    let header = one.ips.iter().chain(&two.ips).map(ToString::to_string).collect::<Vec<_>>().join(",");
    let found = gateway.spread(&[(SELECTION, &header)], 200, 5).await;
    let to_one: usize = found.iter().filter(|(at, _)| one.addresses().contains(at)).map(|(_, n)| n).sum();
    let to_two: usize = found.iter().filter(|(at, _)| two.addresses().contains(at)).map(|(_, n)| n).sum();
    assert_eq!(to_one + to_two, 200);
    // 4.5 standard deviations of 200 draws at 70 %.
    let deviation = 4.5 * (200.0_f64 * 0.7 * 0.3).sqrt();
    assert!((to_one as f64 - 140.0).abs() <= deviation, "{to_one} and {to_two} of 200");
    one.stop(&world).await;
    two.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_destination_endpoint_served() {
    let world = world("served").await;
    let pool = Pool::start(&world, "primary", &["127.0.12.1", "127.0.12.2", "127.0.12.3"], 1, |_| ()).await;
    let gateway = Gateway::over(&pool).await;
    for address in pool.addresses() {
        let answer = gateway.post(&[(SELECTION, &address.ip().to_string())]).await;
        assert_eq!((answer.status, served_by(&answer)), (200, address));
        assert_eq!(answer.header(SERVED), address.to_string());
    }
    pool.stop(&world).await;

    // A data plane that reports nothing is told so.
    let pool = Pool::start(&world, "silent", &["127.0.12.4"], 1, |_| ()).await;
    let mut config = bootstrap(&pool);
    let filters = config
        .pointer_mut("/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters")
        .unwrap();
    for filter in filters.as_array_mut().unwrap() {
        if filter["name"] == "envoy.filters.http.ext_proc" {
            filter["typed_config"]["metadata_options"]["forwarding_namespaces"] = json!({ "untyped": ["nothing"] });
        }
    }
    let gateway = Gateway::start(&config).await;
    assert_eq!(gateway.post(&[]).await.header(SERVED), "fail: missing envoy lb metadata");
    pool.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inference_pool_app_protocol() {
    let world = world("protocol").await;
    for (name, protocol, ip) in [
        ("h2c", Some("kubernetes.io/h2c"), "127.0.13.1"),
        ("http", Some("http"), "127.0.13.2"),
        ("default", None, "127.0.13.3"),
    ] {
        let change = |pool: &mut Value| {
            if let Some(protocol) = protocol {
                pool["spec"]["appProtocol"] = json!(protocol);
            }
        };
        let pool = Pool::start(&world, name, &[ip], 1, change).await;
        let mut config = bootstrap(&pool);
        let address = pool.addresses()[0];
        if name == "h2c" {
            // The servers of this pool speak HTTP/2 only, and the data plane is what has to know.
            let port = super::echo_h2c::start(address.ip()).await;
            let cluster = &mut config["static_resources"]["clusters"][0];
            assert_eq!(cluster["name"], "pool");
            cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]["explicit_http_config"] =
                json!({ "http2_protocol_options": {} });
            let endpoint =
                cluster.pointer_mut("/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address");
            endpoint.unwrap()["port_value"] = json!(port);
            world
                .apply(&json!({
                    "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": { "name": name },
                    "spec": { "selector": { "matchLabels": { "app": name } }, "targetPorts": [{ "number": port }],
                        "appProtocol": protocol,
                        "endpointPickerRef": { "name": "epp", "port": { "number": 9002 } } },
                }))
                .await;
            let address = SocketAddr::new(address.ip(), port);
            let gateway = Gateway::start(&config).await;
            until("the picker follows the port", async || {
                let answer = gateway.post(&[(SELECTION, &address.to_string())]).await;
                answer.status == 200
                    && answer.header("x-protocol") == "HTTP/2.0"
                    && answer.header(SERVED) == address.to_string()
            })
            .await;
        } else {
            let gateway = Gateway::start(&config).await;
            let answer = gateway.post(&[(SELECTION, &address.to_string())]).await;
            assert_eq!((answer.status, served_by(&answer)), (200, address));
            assert_eq!(answer.header(SERVED), address.to_string());
        }
        pool.stop(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epp_unavailable_fail_open() {
    let world = world("fail-open").await;
    for fail_open in [true, false] {
        let (name, ip) = if fail_open { ("open", "127.0.14.1") } else { ("closed", "127.0.14.2") };
        let pool = Pool::start(&world, name, &[ip], 1, |_| ()).await;
        let mut bootstrap = Bootstrap::override_host(pool.picker.grpc, pool.addresses());
        bootstrap.epp_tls = true;
        bootstrap.failure_mode_allow = fail_open;
        let gateway = Gateway::start(&serde_saphyr::from_str(&bootstrap.render().unwrap()).unwrap()).await;
        let address = pool.addresses()[0];
        let answer = gateway.post(&[(SELECTION, &address.ip().to_string())]).await;
        assert_eq!((answer.status, served_by(&answer)), (200, address));
        let Pool { picker, _servers, .. } = pool;
        picker.stop().await;
        let echo = [("x-sim-echo", "1")];
        if fail_open {
            until("Envoy goes on without the picker", async || gateway.post(&echo).await.status == 200).await;
            let answer = gateway.post(&echo).await;
            let hash = format!("{:016x}", twox_hash::XxHash64::oneshot(0, BODY.as_bytes()));
            assert_eq!(answer.json()["body_xxh64"], hash.as_str(), "the body is whole");
        } else {
            let answer = gateway.post(&echo).await;
            assert!(answer.status >= 500, "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inference_pool_resolved_refs_condition_and_missing_epp_ref() {
    // Status and references are the gateway's affair: the picker serves a pool whatever it refers to, also without any
    // reference where the definition allows that, and never writes a status.
    let world = world("refs").await;
    let pool = Pool::start(&world, "elsewhere", &["127.0.15.1"], 1, |pool| {
        pool["spec"]["endpointPickerRef"] = json!({ "group": "example.com", "kind": "Other", "name": "not-this-one" });
    })
    .await;
    let gateway = Gateway::over(&pool).await;
    assert_eq!(gateway.post(&[]).await.status, 200);
    pool.stop(&world).await;
    let bare = Pool::start(&world, "bare", &["127.0.15.2"], 1, |pool| {
        pool["spec"].as_object_mut().unwrap().remove("endpointPickerRef");
    })
    .await;
    let gateway = Gateway::over(&bare).await;
    assert_eq!(gateway.post(&[]).await.status, 200);
    bare.stop(&world).await;
    let user = format!("system:serviceaccount:{}:epp-bare", world.namespace);
    let asked = world.server.audit(&user);
    assert!(!asked.is_empty());
    for (verb, path, _) in &asked {
        assert!(["get", "list", "watch"].contains(&verb.as_str()), "{verb} {path}");
    }
}
