//! What the API server says becomes endpoints: pods, the pool, and what happens when the API server is away.

use serde_json::json;

use super::apiserver::{self, ApiServer};
use super::stack::until;
use super::world::{Inside, POOL, World, pod, pool};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_endpoints_while_they_are_ready() {
    let world = World::new(apiserver::shared().await, "pods").await;
    world.apply(&pool(POOL, &[8000])).await;
    world.ready("early", "10.0.0.1").await;
    world.pod(&pod("unscheduled", &[])).await;
    let stranger = pod("stranger", &[("app", "something-else")]);
    world.pod(&stranger).await;
    world.status("stranger", "10.0.0.9", true).await;

    let picker = world.picker().await;
    until("the picker is ready", async || picker.readiness.is_ready()).await;
    assert_eq!(picker.endpoints().into_iter().collect::<Vec<_>>(), [("early-rank-0".into(), "10.0.0.1:8000".into())]);

    world.ready("late", "10.0.0.2").await;
    picker.has(&[("early-rank-0", "10.0.0.1:8000"), ("late-rank-0", "10.0.0.2:8000")]).await;
    world.status("early", "10.0.0.1", false).await;
    picker.has(&[("late-rank-0", "10.0.0.2:8000")]).await;
    world.status("unscheduled", "fd00::3", true).await;
    picker.has(&[("late-rank-0", "10.0.0.2:8000"), ("unscheduled-rank-0", "[fd00::3]:8000")]).await;
    world.delete("late").await;
    picker.has(&[("unscheduled-rank-0", "[fd00::3]:8000")]).await;

    // A finalizer keeps the object; the pod is on its way out all the same.
    world.patch("unscheduled", &json!({ "metadata": { "finalizers": ["tests.pointsman.dev/keep"] } })).await;
    world.delete("unscheduled").await;
    picker.has(&[]).await;
    assert!(picker.readiness.is_ready(), "a pool without endpoints is a pool");
    world.patch("unscheduled", &json!({ "metadata": { "finalizers": null } })).await;

    world.patch("stranger", &json!({ "metadata": { "labels": { "app": POOL } } })).await;
    picker.has(&[("stranger-rank-0", "10.0.0.9:8000")]).await;
    world.patch("stranger", &json!({ "metadata": { "labels": { "llm-d.ai/role": "prefill" } } })).await;
    until("the label is seen", async || {
        let snapshot = picker.pool.snapshot();
        snapshot.topology.endpoints().any(|e| e.label("llm-d.ai/role") == Some("prefill"))
    })
    .await;
    world.patch("stranger", &json!({ "metadata": { "labels": { "app": null } } })).await;
    picker.has(&[]).await;
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_port_of_a_pod_is_an_endpoint() {
    let world = World::new(apiserver::shared().await, "ports").await;
    world.apply(&pool(POOL, &[8000, 8001, 8002])).await;
    world.ready("a", "10.0.0.1").await;
    let picker = world.picker().await;
    let all = [("a-rank-0", "10.0.0.1:8000"), ("a-rank-1", "10.0.0.1:8001"), ("a-rank-2", "10.0.0.1:8002")];
    picker.has(&all).await;
    let active = |ports: Option<&str>| json!({ "metadata": { "annotations": { "llm-d.ai/active-ports": ports } } });
    world.patch("a", &active(Some("8002, 8000, 9999"))).await;
    picker.has(&[all[0], all[2]]).await;
    world.patch("a", &active(None)).await;
    picker.has(&all).await;
    let older = json!({ "metadata": { "annotations": { "inference.networking.k8s.io/active-ports": "8001" } } });
    world.patch("a", &older).await;
    picker.has(&[all[1]]).await;
    // Ranks are places in the pool's list.
    world.apply(&pool(POOL, &[8002, 8001])).await;
    picker.has(&[("a-rank-1", "10.0.0.1:8001")]).await;
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_may_come_late_change_its_selector_and_go() {
    let world = World::new(apiserver::shared().await, "pool").await;
    let picker = world.picker().await;
    world.ready("a", "10.0.0.1").await;
    world.pod(&pod("b", &[("app", "others")])).await;
    world.status("b", "10.0.0.2", true).await;
    assert!(!picker.readiness.is_ready(), "there is no pool yet");
    world.apply(&pool(POOL, &[8000])).await;
    picker.has(&[("a-rank-0", "10.0.0.1:8000")]).await;
    until("the picker is ready", async || picker.readiness.is_ready()).await;
    world.apply(&pool("others", &[8000])).await;
    picker.has(&[("b-rank-0", "10.0.0.2:8000")]).await;
    world.delete_pool().await;
    picker.has(&[]).await;
    until("the picker is not ready", async || !picker.readiness.is_ready()).await;
    // Without a reference to a picker, as data planes with one of their own have it (conformance).
    let mut bare = pool(POOL, &[8000]);
    bare["spec"].as_object_mut().unwrap().remove("endpointPickerRef");
    let accepted = apiserver::apply(&world.client, &bare, &world.namespace, true).await.is_ok();
    world.apply(&if accepted { bare } else { pool(POOL, &[8000]) }).await;
    picker.has(&[("a-rank-0", "10.0.0.1:8000")]).await;
    until("the picker is ready again", async || picker.readiness.is_ready()).await;
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losing_the_api_server_changes_nothing_until_it_is_back() {
    let mut server = ApiServer::start().await;
    super::definitions::install(&server).await;
    let other = server.another().await;
    // Through the other one, which stays.
    let world = World::new(&other, "lost").await;
    world.apply(&pool(POOL, &[8000])).await;
    for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")] {
        world.ready(name, ip).await;
    }
    let picker = Inside::start(server.admin(), &world.namespace, |_| ()).await;
    let before = [("a-rank-0", "10.0.0.1:8000"), ("b-rank-0", "10.0.0.2:8000"), ("c-rank-0", "10.0.0.3:8000")];
    picker.has(&before).await;

    server.kill();
    world.delete("a").await;
    world.status("b", "10.0.0.2", false).await;
    world.ready("d", "10.0.0.4").await;
    let failures = |labels: &[(&str, &str)]| picker.page().sum("llm_d_epp_discovery_failures_total", labels);
    until("the picker notices", async || failures(&[]) > 0.0).await;
    picker.has(&before).await;
    assert!(picker.readiness.is_ready(), "what was known last is still routed to");

    // It comes back with a cache that begins after what the picker saw last, so its watches are answered with 410 Gone and
    // the picker has to find out for itself what vanished.
    server.serve().await;
    picker.has(&[("c-rank-0", "10.0.0.3:8000"), ("d-rank-0", "10.0.0.4:8000")]).await;
    assert!(failures(&[("resource", "pods"), ("reason", "expired")]) > 0.0, "no watch was told 410 Gone");
    world.status("b", "10.0.0.2", true).await;
    picker.has(&[("b-rank-0", "10.0.0.2:8000"), ("c-rank-0", "10.0.0.3:8000"), ("d-rank-0", "10.0.0.4:8000")]).await;
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selector_needs_no_definitions_and_they_may_come_later() {
    let server = ApiServer::start().await;
    let world = World::new(&server, "selector").await;
    world.pod(&pod("a", &[("app", "models"), ("tier", "gold")])).await;
    world.status("a", "10.0.0.1", true).await;
    world.pod(&pod("b", &[("app", "models"), ("tier", "lead")])).await;
    world.status("b", "10.0.0.2", true).await;
    let picker = Inside::start(server.admin(), &world.namespace, |settings| {
        settings.pool.name = None;
        settings.pool.selector = Some("app=models,tier in (gold, silver)".to_owned());
        settings.pool.target_ports = vec![8000, 8001];
    })
    .await;
    picker.has(&[("a-rank-0", "10.0.0.1:8000"), ("a-rank-1", "10.0.0.1:8001")]).await;
    until("the picker is ready", async || picker.readiness.is_ready()).await;
    // Nothing of the kind exists yet on this server.
    let path = "/apis/inference.networking.k8s.io/v1";
    assert!(world.client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await.is_err());
    picker.stop().await;

    // A pool without its definition, which is installed while the picker looks for it.
    let picker = world.picker().await;
    assert!(!picker.readiness.is_ready());
    super::definitions::install(&server).await;
    world.apply(&pool(POOL, &[8000])).await;
    picker.has(&[("a-rank-0", "10.0.0.1:8000"), ("b-rank-0", "10.0.0.2:8000")]).await;
    picker.stop().await;
}
