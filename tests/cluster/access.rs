//! What a picker's own account may do and what it lets others read: the metrics port behind the reviews of a real API server,
//! and an election with no more permissions than the documents ask for.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::apiserver;
use super::harness::Picker;
use super::stack::until;
use super::world::{DOCUMENT, POOL, World, pool};

/// Lets the account `account` of the namespace do what `rules` say, in the namespace or in the cluster.
async fn allow(world: &World<'_>, account: &str, whole_cluster: bool, rules: &Value) {
    let kind = if whole_cluster { "ClusterRole" } else { "Role" };
    let name = format!("{account}-{}", world.namespace);
    let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "rules": rules });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": format!("{kind}Binding"),
        "metadata": { "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": world.namespace }],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
    });
    world.apply(&role).await;
    world.apply(&binding).await;
}

/// A token of a picker's account with the permissions that a picker asks for.
async fn account(world: &World<'_>) -> String {
    let token = world.server.service_account(&world.namespace, "picker").await;
    let read = ["get", "list", "watch"];
    let own = json!([
        { "apiGroups": [""], "resources": ["pods"], "verbs": read },
        { "apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": read },
        { "apiGroups": ["llm-d.ai", "inference.networking.x-k8s.io"],
          "resources": ["inferenceobjectives", "inferencemodelrewrites"], "verbs": read },
        { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update", "watch"] },
    ]);
    allow(world, "picker", false, &own).await;
    let reviews = json!([
        { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
        { "apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"] },
    ]);
    allow(world, "picker", true, &reviews).await;
    token
}

async fn picker(world: &World<'_>, token: &str, pod: &str) -> Picker {
    let kubeconfig = world.server.kubeconfig_file(token);
    let args = [
        "--pool-name",
        POOL,
        "--pool-namespace",
        &world.namespace,
        "--config-text",
        DOCUMENT,
        "--ha-enable-leader-election",
        "--secure-serving=false",
        "--drain-timeout=0s",
        "--grpc-port=0",
        "--grpc-health-port=0",
        "--metrics-port=0",
    ];
    Picker::start_in(&args, &[("KUBECONFIG", &kubeconfig), ("POD_NAME", pod)]).await
}

/// Status of a GET with this token, if any.
async fn status(picker: &Picker, path: &str, token: Option<&str>) -> u16 {
    let mut request = http::Request::get(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    pointsman::sim::client::send(picker.metrics, request).await.unwrap().status().as_u16()
}

/// Nothing that the picker's account asked for was forbidden.
fn nothing_was_forbidden(world: &World<'_>) {
    let asked = world.server.audit(&format!("system:serviceaccount:{}:picker", world.namespace));
    assert!(asked.iter().any(|(verb, path, _)| verb == "create" && path.contains("/leases")), "{asked:?}");
    let refused: Vec<_> = asked.iter().filter(|(_, _, status)| *status == 403).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_port_is_open_to_whom_the_cluster_says() {
    let world = World::new(apiserver::shared().await, "metrics").await;
    world.apply(&pool(POOL, &[8000])).await;
    let own = account(&world).await;
    let scraper = world.server.service_account(&world.namespace, "scraper").await;
    allow(&world, "scraper", true, &json!([{ "nonResourceURLs": ["/metrics"], "verbs": ["get"] }])).await;
    let stranger = world.server.service_account(&world.namespace, "stranger").await;
    let picker = picker(&world, &own, "picker-0").await;
    until("it is ready", async || status(&picker, "/readyz", None).await == 200).await;
    // Permissions take a moment to reach the authorizer.
    until("the scraper gets in", async || status(&picker, "/metrics", Some(&scraper)).await == 200).await;
    for (path, token, expected) in [
        ("/metrics", Some(stranger.as_str()), 403),
        ("/debug/config", Some(scraper.as_str()), 403),
        ("/metrics", Some("made-up"), 401),
        ("/metrics", None, 401),
        ("/healthz", None, 200),
    ] {
        assert_eq!(status(&picker, path, token).await, expected, "{path}");
    }
    nothing_was_forbidden(&world);
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_started_again_takes_its_lease_without_waiting() {
    let world = World::new(apiserver::shared().await, "restart").await;
    world.apply(&pool(POOL, &[8000])).await;
    let token = account(&world).await;
    let leader = picker(&world, &token, "picker-0").await;
    until("it leads", async || status(&leader, "/readyz", None).await == 200).await;
    let standby = picker(&world, &token, "picker-1").await;
    leader.signal("KILL").await;
    let killed = Instant::now();
    let _ = leader.ended().await;
    let again = picker(&world, &token, "picker-0").await;
    until("it leads again", async || status(&again, "/readyz", None).await == 200).await;
    println!("leader killed and started again in its pod: ready after {:?}", killed.elapsed());
    // Its lease would have run out after 13 seconds at the soonest.
    assert!(killed.elapsed().as_secs() < 12, "{:?}", killed.elapsed());
    assert_eq!(status(&standby, "/readyz", None).await, 503);
    nothing_was_forbidden(&world);
    again.stop().await;
    until("the standby leads", async || status(&standby, "/readyz", None).await == 200).await;
    standby.stop().await;
}
