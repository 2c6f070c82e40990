//! Several pickers of one pool as processes of their own: leader election, the end of a leader, and a rolling restart behind
//! Envoy that loses nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use pointsman::sim::client;
use pointsman::sim::envoy::{Bootstrap, Envoy};
use tokio::time::Instant;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::apiserver;
use super::harness::Picker;
use super::stack::{Answer, completion, envoy_binary, post, sim_at, until, within};
use super::world::{DOCUMENT, POOL, World, pool};

/// A picker of `world` as a process, plaintext, with these arguments besides.
async fn picker(world: &World<'_>, token: &str, more: &[&str]) -> Picker {
    let kubeconfig = world.server.kubeconfig_file(token);
    let usual = [
        "--pool-name",
        POOL,
        "--pool-namespace",
        &world.namespace,
        "--zap-encoder",
        "json",
        "--config-text",
        DOCUMENT,
        "--secure-serving=false",
        "--metrics-endpoint-auth=false",
        "--grpc-port=0",
        "--grpc-health-port=0",
        "--metrics-port=0",
    ];
    Picker::start_in(&[&usual[..], more].concat(), &[("KUBECONFIG", &kubeconfig)]).await
}

/// What the health service says of `service`.
async fn health(picker: &Picker, service: &str) -> ServingStatus {
    let mut client = HealthClient::new(picker.health().await);
    client.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner().status()
}

async fn is_ready(picker: &Picker) -> bool {
    health(picker, "readiness").await == ServingStatus::Serving
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_leads_and_the_other_takes_over() {
    let world = World::new(apiserver::shared().await, "leader").await;
    world.apply(&pool(POOL, &[8000])).await;
    world.ready("a", "127.0.0.1").await;
    let first = picker(&world, apiserver::ADMIN, &["--ha-enable-leader-election", "--drain-timeout=0s"]).await;
    until("the first one leads", async || is_ready(&first).await).await;
    let second = picker(&world, apiserver::ADMIN, &["--ha-enable-leader-election", "--drain-timeout=0s"]).await;
    let pods = "llm_d_epp_ready_endpoints";
    assert_eq!(health(&second, "liveness").await, ServingStatus::Serving);
    for name in ["readiness", "", "envoy.service.ext_proc.v3.ExternalProcessor"] {
        assert_eq!(health(&second, name).await, ServingStatus::NotServing, "{name:?}");
    }
    // The standby knows the pool as well and answers a stray request.
    let warm = async || second.get("/metrics").await.1.lines().any(|l| l.starts_with(pods) && l.ends_with(" 1"));
    until("the standby is warm", warm).await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), &world.namespace);
    let name = format!("epp-{}-{POOL}.llm-d.ai", world.namespace);
    let holder = leases.get(&name).await.unwrap().spec.unwrap().holder_identity.unwrap();

    // A leader that is told to stop gives the lease back, and the standby need not wait for its end.
    let started = Instant::now();
    first.signal("TERM").await;
    until("the standby leads", async || is_ready(&second).await).await;
    println!("leader stopped with SIGTERM: the standby is ready after {:?}", started.elapsed());
    // The lease would have run out after 13 seconds at the soonest.
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    let (status, log) = first.ended().await;
    assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    let next = leases.get(&name).await.unwrap().spec.unwrap().holder_identity.unwrap();
    assert_ne!(next, holder);

    // A leader that is killed says nothing; its lease has to run out.
    let third = picker(&world, apiserver::ADMIN, &["--ha-enable-leader-election", "--drain-timeout=0s"]).await;
    until("the third one is warm", async || health(&third, "liveness").await == ServingStatus::Serving).await;
    assert!(!is_ready(&third).await);
    let started = Instant::now();
    second.signal("KILL").await;
    until("the third one leads", async || is_ready(&third).await).await;
    println!("leader killed: the standby is ready after {:?} (llm-d: 5 to 30 s)", started.elapsed());
    let _ = second.ended().await;
    third.stop().await;
}

/// Requests at a steady rate, whatever becomes of them.
struct Steady {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Steady {
    fn start(proxy: SocketAddr, per_second: u32) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            let mut under_way = tokio::task::JoinSet::new();
            let mut failed = Vec::new();
            let mut keep = |answer: Result<Result<(), String>, tokio::task::JoinError>| {
                if let Err(what) = answer.unwrap() {
                    failed.push(what);
                }
            };
            while !over.load(Ordering::Acquire) {
                tick.tick().await;
                let i = count.fetch_add(1, Ordering::AcqRel);
                under_way.spawn(async move {
                    let body = completion(&format!("Question {i}"));
                    let answer = within("an answer", client::send(proxy, post("/v1/completions", &[], body))).await;
                    let answer = Answer::read(answer.map_err(|e| format!("{i}: {e}"))?).await;
                    if answer.status == 200 { Ok(()) } else { Err(format!("{i}: {answer:?}")) }
                });
                while let Some(answer) = under_way.try_join_next() {
                    keep(answer);
                }
            }
            while let Some(answer) = under_way.join_next().await {
                keep(answer);
            }
            failed
        });
        Self { stop, sent, task }
    }

    /// Waits for so many more requests.
    async fn more(&self, count: u64) {
        let goal = self.sent.load(Ordering::Acquire) + count;
        until("requests are sent", async || self.sent.load(Ordering::Acquire) >= goal).await;
    }

    /// How many were sent, and what became of those that failed.
    async fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Release);
        let failed = self.task.await.unwrap();
        (self.sent.load(Ordering::Acquire), failed)
    }
}

/// Requests per second; `POINTSMAN_RATE` asks for another rate (the figure in docs/kubernetes.md is of 500, optimised).
fn rate() -> u32 {
    super::variable("POINTSMAN_RATE").map_or(100, |rate| rate.parse().expect("POINTSMAN_RATE is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_request() {
    let world = World::new(apiserver::shared().await, "rolling").await;
    let servers = [sim_at("one", "127.0.0.21:0").await, sim_at("two", "127.0.0.22:0").await];
    world.apply(&pool(POOL, &servers.each_ref().map(|s| s.address.port()))).await;
    for (i, server) in servers.iter().enumerate() {
        let name = format!("server-{i}");
        world.pod(&super::world::pod(&name, &[])).await;
        let active = serde_json::json!({ "metadata": { "annotations": { "llm-d.ai/active-ports": server.address.port().to_string() } } });
        world.patch(&name, &active).await;
        world.status(&name, &server.address.ip().to_string(), true).await;
    }
    // Ports of their own, because a picker that is started again must come back where Envoy looks for it.
    let ports = [apiserver::free_port(), apiserver::free_port()];
    let start = async |port: u16| {
        let picker = picker(&world, apiserver::ADMIN, &["--drain-timeout=2s", &format!("--grpc-port={port}")]).await;
        until("the picker is ready", async || is_ready(&picker).await).await;
        picker
    };
    let mut pickers = vec![start(ports[0]).await, start(ports[1]).await];
    let folder = tempfile::tempdir().unwrap();
    let mut bootstrap = Bootstrap::original_dst(SocketAddr::from(([127, 0, 0, 1], ports[0])));
    bootstrap.replicas = vec![SocketAddr::from(([127, 0, 0, 1], ports[1]))];
    let envoy = Envoy::start(&envoy_binary(), &bootstrap, 2, folder.path()).await.unwrap();

    let load = Steady::start(envoy.address(), rate());
    load.more(u64::from(rate())).await;
    for _ in 0..2 {
        let old = pickers.remove(0);
        let port = old.grpc.port();
        old.stop().await;
        pickers.push(start(port).await);
        // Envoy looks every 250 ms whether it is back.
        load.more(u64::from(rate())).await;
    }
    let (sent, failed) = load.finish().await;
    println!("rolling restart of two replicas at {} requests/s: {} of {sent} requests failed", rate(), failed.len());
    assert!(failed.is_empty(), "{} of {sent} failed, the first: {:?}\n{}", failed.len(), failed[0], envoy.log_tail());
    for picker in pickers {
        picker.stop().await;
    }
}
