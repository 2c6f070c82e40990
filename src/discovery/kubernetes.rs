//! Everything that talks to a Kubernetes API server, and the only importer of kube and k8s-openapi.
//!
//! [`Discovery`] keeps a pool in step with the cluster: the InferencePool says which pods belong to it
//! and on which ports they serve, pods that are ready become endpoints, InferenceObjectives and
//! InferenceModelRewrites become the policies of the pool. One task does it all: [`watch`] delivers
//! changes through a queue, [`index`] works out what follows, and all changes that are there together
//! become one edit of the pool. `stats` says what the watches do, [`crds`] describes the resources.
//!
//! Losing the API server never stops routing: what was last seen stays in force, nothing is taken away
//! because a watch failed, and readiness stays as it is.
//!
//! Rejected: one `reflector` store per resource (whole objects in memory, and after its atomic swap
//! nobody knows what left), and a task per watch (a panic in one would go unnoticed).

pub mod crds;
pub mod index;
pub mod lease;
pub mod objects;
pub mod reviews;
pub mod selector;
pub mod stats;
pub mod watch;

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::lifecycle::clock::Clock;
use crate::lifecycle::ready::{BlockReady, Readiness};
use crate::pool::Pool;

use index::{Edit, Index, Message, PodWatch};
use objects::{Object, PodFacts, PoolFacts, PoolRef};
use stats::{Resource, Stats, WatchState};
use watch::{Change, Place, Watch};

/// API group of the InferencePool, version v1.
pub const GROUP_V1: &str = "inference.networking.k8s.io";
/// The older group, version v1alpha2: of pools, and of objectives and rewrites before [`GROUP_LLM_D`].
pub const GROUP_V1ALPHA2: &str = "inference.networking.x-k8s.io";
/// API group of objectives and rewrites, version v1alpha2.
pub const GROUP_LLM_D: &str = "llm-d.ai";

/// Changes that wait to be taken in; a watch that is ahead waits.
const QUEUE: usize = 256;
/// Longest time to reach the API server.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to the API server, shared by everything that needs it. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// There is no usable description of an API server.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no Kubernetes API server to ask: this is no pod, and KUBECONFIG or ~/.kube/config is of no use ({0}); \
     fix: set KUBECONFIG, or without a cluster name a file-discovery in dataLayer.discovery"
)]
pub struct NoCluster(String);

impl Cluster {
    /// The API server of `KUBECONFIG` or `~/.kube/config`, or the one whose pod this process runs in.
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// Neither is there, or what is there cannot be used.
    pub async fn connect() -> Result<Self, NoCluster> {
        let mut config = kube::Config::infer().await.map_err(|e| NoCluster(e.to_string()))?;
        config.connect_timeout = Some(CONNECT);
        Ok(Self { client: kube::Client::try_from(config).map_err(|e| NoCluster(e.to_string()))? })
    }

    /// A cluster behind `client`, for tests.
    pub fn of(client: kube::Client) -> Self {
        Self { client }
    }

    /// The client.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }
}

/// Which pods are the endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Those of an InferencePool.
    Pool {
        /// Its name.
        name: String,
        /// Its API group: [`GROUP_V1`] or [`GROUP_V1ALPHA2`].
        group: String,
    },
    /// Those that a label selector chooses. No custom resource is looked at, so that there are neither
    /// objectives nor rewrites.
    Selector {
        /// The selector, in the text form of the API.
        selector: String,
        /// Ports, 1 to 8.
        ports: Vec<u16>,
    },
}

/// Keeps a pool in step with the cluster.
pub struct Discovery {
    /// The API server.
    pub cluster: Cluster,
    /// Which pods.
    pub target: Target,
    /// Namespace of the pool and its pods.
    pub namespace: String,
    /// The pool that is kept.
    pub pool: Arc<Pool>,
    /// Where to block again when the pool is gone.
    pub readiness: Readiness,
    /// The block that holds until the first list is complete.
    pub block: BlockReady,
    /// Counters of the watches.
    pub stats: Arc<Stats>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

type Never = Pin<Box<dyn Future<Output = Infallible> + Send>>;

/// The watches that run, in the order of [`Resource`].
#[derive(Default)]
struct Running([Option<Never>; Resource::ALL.len()]);

impl Running {
    fn start(&mut self, resource: Resource, watch: Never) {
        self.0[resource as usize] = Some(watch);
    }

    fn stop(&mut self, resource: Resource) {
        self.0[resource as usize] = None;
    }
}

impl Future for Running {
    type Output = Infallible;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Infallible> {
        for watch in self.0.iter_mut().flatten() {
            if let Poll::Ready(never) = watch.as_mut().poll(context) {
                match never {}
            }
        }
        Poll::Pending
    }
}

impl Discovery {
    /// Keeps the pool in step, for ever.
    ///
    /// # Errors
    /// Only if editing the pool panicked.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut index = match &self.target {
            Target::Pool { .. } => Index::new(self.namespace.clone()),
            Target::Selector { selector, ports } => {
                Index::of_selector(self.namespace.clone(), selector.clone(), ports.clone())
            }
        };
        let (out, mut changes) = mpsc::channel(QUEUE);
        let mut running = Running::default();
        self.start(&mut running, &out);
        let mut pods: Option<PodWatch> = None;
        let mut block = Some(self.block);
        let mut batch = Vec::with_capacity(QUEUE);
        let mut missing = false;
        let mut refused = 0;
        loop {
            if pods.as_ref() != index.pod_watch() {
                pods = index.pod_watch().cloned();
                match &pods {
                    Some(wanted) => {
                        let parts = (&self.cluster, &self.stats, &self.clock);
                        running.start(Resource::Pods, watch_pods(parts, &self.namespace, wanted, out.clone()));
                    }
                    None => {
                        running.stop(Resource::Pods);
                        self.stats.of(Resource::Pods).enter(WatchState::Off);
                    }
                }
            }
            tokio::select! {
                // The watches first: what they have to say now is then one edit.
                biased;
                never = &mut running => match never {},
                _ = changes.recv_many(&mut batch, QUEUE) => {}
            }
            for message in batch.drain(..) {
                index.apply(message);
            }
            if index.is_missing() != std::mem::replace(&mut missing, index.is_missing()) && missing {
                say_missing(&self.target, &self.namespace);
            }
            if let Some(policies) = index.policies() {
                self.pool.set_policies(policies);
            }
            if let Some(edit) = index.edit() {
                let pool = Arc::clone(&self.pool);
                // Forgetting what was learnt of endpoints that left can take milliseconds.
                let without_place = tokio::task::spawn_blocking(move || match edit {
                    Edit::Whole(specs) => pool.replace(specs),
                    Edit::Part(gone, come) => pool.edit(&gone, come),
                });
                if without_place.await? > 0 {
                    index.again();
                }
            }
            for (resource, held) in Resource::ALL.into_iter().zip(index.held()) {
                self.stats.of(resource).hold(held);
            }
            if index.refused() != std::mem::replace(&mut refused, index.refused()) && refused > 0 {
                tracing::warn!(refused, "pods are passed over: the pool is full");
            }
            match (index.is_ready(), block.is_some()) {
                (true, true) => {
                    tracing::info!(endpoints = self.pool.snapshot().topology.len(), "the pool is known");
                    block = None;
                }
                (false, false) => {
                    tracing::warn!("the pool is gone: not ready until it comes back");
                    block = Some(self.readiness.block("pool"));
                }
                _ => {}
            }
        }
    }

    /// Starts the watches that do not depend on what the pool says.
    fn start(&self, running: &mut Running, out: &mpsc::Sender<Message>) {
        let Target::Pool { name, group } = &self.target else { return };
        let namespace = &self.namespace;
        let version = if group == GROUP_V1ALPHA2 { "v1alpha2" } else { "v1" };
        let place = Place::Path(format!("/apis/{group}/{version}/namespaces/{namespace}/inferencepools"));
        let pool = Watch::<PoolFacts> { only: Some(name.clone()), ..self.watch(Resource::Pool, place, group.clone()) };
        running.start(Resource::Pool, boxed(pool, out, Message::Pool));

        let place = || Place::Optional { namespace: namespace.clone() };
        let scope = || PoolRef { name: name.clone(), group: group.clone() };
        let objectives = self.watch(Resource::Objectives, place(), scope());
        running.start(Resource::Objectives, boxed(objectives, out, Message::Objectives));
        let rewrites = self.watch(Resource::Rewrites, place(), scope());
        running.start(Resource::Rewrites, boxed(rewrites, out, Message::Rewrites));
    }

    fn watch<T: Object>(&self, resource: Resource, place: Place, scope: T::Scope) -> Watch<T> {
        let (stats, clock) = (Arc::clone(&self.stats), Arc::clone(&self.clock));
        Watch { cluster: self.cluster.clone(), resource, place, labels: None, only: None, scope, stats, clock }
    }
}

/// Says what a picker that never becomes ready is waiting for.
fn say_missing(target: &Target, namespace: &str) {
    if let Target::Pool { name, group } = target {
        tracing::warn!(
            name,
            namespace,
            group,
            "there is no such InferencePool: not ready until it exists; are --pool-name, --pool-namespace and --pool-group right?"
        );
    }
}

fn watch_pods(
    (cluster, stats, clock): (&Cluster, &Arc<Stats>, &Arc<dyn Clock>),
    namespace: &str,
    wanted: &PodWatch,
    out: mpsc::Sender<Message>,
) -> Never {
    let number = wanted.number;
    let pods = Watch::<PodFacts> {
        cluster: cluster.clone(),
        resource: Resource::Pods,
        place: Place::Path(format!("/api/v1/namespaces/{namespace}/pods")),
        labels: Some(wanted.selector.clone()),
        only: None,
        scope: (),
        stats: Arc::clone(stats),
        clock: Arc::clone(clock),
    };
    boxed(pods, &out, move |change| Message::Pods(number, change))
}

fn boxed<T: Object>(
    watch: Watch<T>,
    out: &mpsc::Sender<Message>,
    wrap: impl Fn(Change<T>) -> Message + Send + Sync + 'static,
) -> Never {
    Box::pin(watch::follow(watch, out.clone(), wrap))
}

#[cfg(test)]
pub(crate) mod fake_api;
#[cfg(test)]
mod tests;
