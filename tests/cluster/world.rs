//! A namespace with a pool and its pods, and a picker in this process that watches it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use pointsman::app::{self, Environment};
use pointsman::config::{self, Purpose, Settings, Source, Tables};
use pointsman::discovery::kubernetes::Cluster;
use pointsman::domain::Topology;
use pointsman::lifecycle::clock::SystemClock;
use pointsman::lifecycle::ready::Readiness;
use pointsman::pool::Pool;
use pointsman::telemetry::metrics::Metrics;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::apiserver::ApiServer;
use super::page::Page;

/// Name of the pool; its pods have the label `app` with the same value.
pub const POOL: &str = "models";

/// An InferencePool that selects `app: <app>`.
pub fn pool(app: &str, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|number| json!({ "number": number })).collect();
    json!({
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": { "name": POOL },
        "spec": {
            "selector": { "matchLabels": { "app": app } },
            "targetPorts": ports,
            "endpointPickerRef": { "name": "pointsman", "port": { "number": 9002 } },
        },
    })
}

/// A pod that selects itself into the pool.
pub fn pod(name: &str, labels: &[(&str, &str)]) -> Value {
    let mut all = BTreeMap::from([("app", POOL)]);
    all.extend(labels.iter().copied());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": all },
        "spec": { "containers": [{ "name": "server", "image": "server" }] },
    })
}

/// A namespace on an API server.
pub struct World<'a> {
    pub server: &'a ApiServer,
    pub namespace: String,
    pub client: Client,
}

impl<'a> World<'a> {
    /// A new namespace whose name begins with `prefix`.
    pub async fn new(server: &'a ApiServer, prefix: &str) -> Self {
        Self { server, namespace: server.namespace(prefix).await, client: server.admin() }
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies any object into the namespace.
    pub async fn apply(&self, object: &Value) -> Value {
        super::apiserver::apply(&self.client, object, &self.namespace, false)
            .await
            .unwrap_or_else(|e| panic!("{e}\n{object:#}"))
    }

    /// Creates a pod that has no status yet.
    pub async fn pod(&self, object: &Value) {
        let typed: Pod = serde_json::from_value(object.clone()).unwrap();
        self.pods().create(&PostParams::default(), &typed).await.unwrap();
    }

    /// Says what a kubelet would.
    pub async fn status(&self, name: &str, ip: &str, ready: bool) {
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{ "ip": ip }],
            "hostIP": "192.0.2.1",
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
        } });
        self.pods().patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }

    /// A pod that is Ready.
    pub async fn ready(&self, name: &str, ip: &str) {
        self.pod(&pod(name, &[])).await;
        self.status(name, ip, true).await;
    }

    /// Changes the metadata or the specification of a pod.
    pub async fn patch(&self, name: &str, change: &Value) {
        self.pods().patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }

    /// Deletes the pool.
    pub async fn delete_pool(&self) {
        let path = format!("/apis/inference.networking.k8s.io/v1/namespaces/{}/inferencepools/{POOL}", self.namespace);
        self.client.request_text(http::Request::delete(path).body(Vec::new()).unwrap()).await.unwrap();
    }

    /// A picker that watches the pool as the administrator.
    pub async fn picker(&self) -> Inside {
        Inside::start(self.server.admin(), &self.namespace, |_| ()).await
    }
}

/// A picker in this process.
pub struct Inside {
    pub pool: Arc<Pool>,
    pub readiness: Readiness,
    pub metrics: Arc<Metrics>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<pointsman::lifecycle::drain::Drained>>,
}

/// What a picker is told in these tests: it scrapes nothing.
pub const DOCUMENT: &str = "apiVersion: llm-d.ai/v1alpha1\n\
    kind: EndpointPickerConfig\n\
    plugins:\n- {type: active-request-scorer}\n\
    schedulingProfiles:\n- name: default\n  plugins:\n  - {pluginRef: active-request-scorer}\n";

impl Inside {
    /// Starts one that sees what `client` may see.
    pub async fn start(client: Client, namespace: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        (settings.ports.grpc, settings.ports.health, settings.ports.metrics) = (0, 0, 0);
        settings.pool.name = Some(POOL.to_owned());
        settings.pool.namespace = namespace.to_owned();
        settings.tls.enabled = false;
        settings.metrics.auth = false;
        settings.intervals.drain = Duration::ZERO;
        change(&mut settings);
        let source = Source::Text(DOCUMENT.to_owned());
        let config = config::load(&source, settings, &Tables::standard(), Purpose::Serve)
            .unwrap_or_else(|e| panic!("{}", e.lines().collect::<Vec<_>>().join("\n")));
        let environment = Environment {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            grace: Duration::from_secs(2),
            seed: Some(7),
            cluster: Some(Cluster::of(client)),
        };
        let app = app::build(config, environment, Arc::new(SystemClock::new())).await.unwrap();
        let (pool, metrics) = (Arc::clone(&app.pool), Arc::clone(&app.metrics));
        let readiness = app.readiness.clone();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(app.run(async move {
            // A dropped sender is a stop, too.
            let _ = stopped.await;
        }));
        Self { pool, readiness, metrics, stop, task }
    }

    /// Name and address of every endpoint, in the order of names.
    pub fn endpoints(&self) -> BTreeMap<String, String> {
        listed(&self.pool.snapshot().topology)
    }

    /// Waits until exactly these are the endpoints.
    pub async fn has(&self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> = expected.iter().map(|(n, a)| ((*n).into(), (*a).into())).collect();
        let mut seen = BTreeMap::new();
        let met = async {
            while seen != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
                seen = self.endpoints();
            }
        };
        let met = tokio::time::timeout(super::stack::PATIENCE, met).await.is_ok();
        assert!(met, "expected {expected:#?}\nfound {:#?}", self.endpoints());
    }

    pub fn page(&self) -> Page {
        Page::parse(&String::from_utf8(self.metrics.render()).unwrap())
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        super::stack::within("the end of the picker", self.task).await.unwrap().unwrap();
    }
}

/// Name and address of every endpoint of `topology`.
pub fn listed(topology: &Topology) -> BTreeMap<String, String> {
    topology.endpoints().map(|e| (e.name().to_owned(), e.destination().to_owned())).collect()
}
