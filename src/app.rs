//! The composition root: a [`Config`](crate::config::Config) becomes bound sockets, tasks and an [`App`].
//!
//! Every socket is bound in [`build()`], before anything is served, so that a taken port fails start-up
//! and tests can ask for port 0. Files that the configuration names (endpoints, certificate) are read
//! before that: one that cannot be used is [`Unusable`], a wrong configuration like any other. Nothing
//! imports this module but the commands.
//!
//! What runs, each with its own failures: the ext_proc listener, the health listener and the admin
//! listener (critical: if one ends, the process ends), the publisher of load samples (critical), the
//! collector, the watchers of the endpoints file and of the certificates, and in a cluster discovery and
//! the leader election (critical).
//!
//! Stop: readiness goes at once and for good, the lease of the leader is given back, and what is held is sent; ext_proc
//! keeps serving for the drain time; then connections are told to go away and open streams may end; what is left
//! after the grace is cut. The process goes when the connections have written out what was said last, a
//! second later at most.

mod build;
mod files;
mod grpc;
mod guard;
mod leadership;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::director::Director;
use crate::discovery::kubernetes::{Cluster, lease};
use crate::extproc;
use crate::lifecycle::drain::{DrainTrigger, Drained};
use crate::lifecycle::ready::Readiness;
use crate::lifecycle::task::{Spawner, Supervisor};
use crate::pool::Pool;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::Traces;
use leadership::Leadership;

pub use build::{build, offline};

/// What stopping may take after the drain time (default of `--shutdown-grace`); with the default drain
/// it ends within the 130 s that the charts give a pod.
pub const GRACE: Duration = Duration::from_secs(90);

/// What the export of the last spans may take at the end.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// Files that the configuration names and that cannot be used, one line per problem.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Unusable(pub Vec<String>);

/// What the process adds to flags and configuration.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Address that the listeners bind.
    pub bind: IpAddr,
    /// How long open streams may go on after the drain time.
    pub grace: Duration,
    /// Seed of the random numbers in picks, for tests.
    pub seed: Option<u64>,
    /// The API server, for tests; absent means the one that the process finds itself.
    pub cluster: Option<Cluster>,
}

impl Default for Environment {
    fn default() -> Self {
        Self { bind: IpAddr::V6(Ipv6Addr::UNSPECIFIED), grace: GRACE, seed: None, cluster: None }
    }
}

/// Where the process listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// ext_proc.
    pub grpc: SocketAddr,
    /// gRPC health.
    pub health: SocketAddr,
    /// Metrics and debug pages.
    pub metrics: SocketAddr,
}

/// A process that is bound and ready to run.
pub struct App {
    /// The bound addresses.
    pub addresses: Addresses,
    /// The pool.
    pub pool: Arc<Pool>,
    /// The director.
    pub director: Arc<Director>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Readiness.
    pub readiness: Readiness,
    leadership: Option<Leadership>,
    listeners: Listeners,
    parts: build::Parts,
    spawner: Spawner,
    supervisor: Supervisor,
    drain: DrainTrigger,
    drain_time: Duration,
    grace: Duration,
    traces: Option<Arc<Traces>>,
}

struct Listeners {
    grpc: TcpListener,
    health: TcpListener,
    metrics: TcpListener,
}

impl App {
    /// Serves until `stop` completes, then drains. The result says what had to be cut.
    ///
    /// # Errors
    /// A critical task ended by itself.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<Drained> {
        let Self {
            addresses, listeners, parts, spawner, mut supervisor, drain, readiness, leadership, director, ..
        } = self;
        let (drain_time, grace) = (self.drain_time, self.grace);
        let closed = parts.spawn(listeners, &spawner, &drain.watcher());
        let released = leadership.map(|leadership| leadership.spawn(&spawner));
        tracing::info!(
            grpc = %addresses.grpc,
            health = %addresses.health,
            metrics = %addresses.metrics,
            version = env!("CARGO_PKG_VERSION"),
            "pointsman is serving"
        );
        tokio::select! {
            ended = supervisor.ended() => return Err(ended.into()),
            () = stop => {}
        }
        readiness.draining();
        director.stop_holding();
        tracing::info!(
            drain_s = drain_time.as_secs_f64(),
            "stopping: not ready any more, still serving; a second signal ends at once"
        );
        tokio::select! {
            ended = supervisor.ended() => return Err(ended.into()),
            () = tokio::time::sleep(drain_time) => {}
        }
        tracing::info!(grace_s = grace.as_secs_f64(), "drain time is over: waiting for open streams");
        let drained = drain.drain(grace).await;
        // A stream is over when its last words are queued; the connections still have to write them.
        // They end themselves in time; the timeout is for a peer that does not read.
        let _ = tokio::time::timeout(2 * extproc::listener::AFTER_FORCE, closed).await;
        if let Some(released) = released {
            // Begun with the drain; a process that goes before keeps its successors waiting.
            let _ = tokio::time::timeout(lease::RELEASE, released).await;
        }
        if let Some(traces) = self.traces {
            // The export blocks, and a collector that is away must not hold up the end.
            let _ = tokio::task::spawn_blocking(move || traces.shutdown(LAST_EXPORT)).await;
        }
        tracing::info!(forced = drained.forced, "stopped");
        Ok(drained)
    }

    /// The work in flight over all endpoints: (requests, tokens). Zero when nothing runs.
    pub fn in_flight(&self) -> (u64, u64) {
        in_flight(&self.pool)
    }
}

/// The work in flight over all endpoints of `pool`.
pub fn in_flight(pool: &Pool) -> (u64, u64) {
    let snapshot = pool.snapshot();
    snapshot
        .topology
        .endpoints()
        .map(|e| (e.in_flight.requests(), e.in_flight.tokens()))
        .fold((0, 0), |(r, t), (requests, tokens)| (r + requests, t + tokens))
}
