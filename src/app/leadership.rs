//! Readiness by leadership: of several replicas only the leader takes traffic (protocol 5.2, R-28).
//!
//! A replica takes part in the election once nothing else keeps it from being ready. One that is
//! still reading its pool would otherwise win against a warm standby, in every rolling restart, and
//! keep the pool without a picker until it has caught up.
//!
//! Standbys do everything that the leader does but say that they are ready: they follow the pool, scrape
//! its endpoints, and answer requests that reach them all the same. The lease is given back the
//! moment the process is told to stop, before the drain, so that a standby is ready while this one
//! still serves what comes.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::config::Config;
use crate::discovery::kubernetes::Cluster;
use crate::discovery::kubernetes::lease::Candidate;
use crate::lifecycle::clock::Clock;
use crate::lifecycle::ready::{BlockReady, Condition, Readiness};
use crate::lifecycle::task::Spawner;
use crate::telemetry::metrics::{Count, Metrics};

/// The name of the block in readiness.
const BLOCK: &str = "leadership";

/// The part of this replica in the election.
pub struct Leadership {
    candidate: Candidate,
    block: BlockReady,
    readiness: Readiness,
    transitions: Arc<Count>,
}

impl Leadership {
    /// Blocks readiness, if there is an election and somewhere to hold it.
    pub fn new(
        config: &Config,
        cluster: Option<&Cluster>,
        readiness: &Readiness,
        metrics: &Metrics,
        clock: &Arc<dyn Clock>,
    ) -> Option<Self> {
        let settings = &config.settings;
        let cluster = cluster.filter(|_| settings.leader_election)?;
        let pod = settings.pool.pod_name.clone();
        let is_pod = pod.is_some();
        let host = pod.unwrap_or_else(host_name);
        let pool = &config.pool;
        let candidate = Candidate::new(cluster, &pool.namespace, &pool.name, &host, is_pod, Arc::clone(clock));
        let transitions = Arc::new(Count::default());
        let (standing, clock, changes) = (candidate.standing(), Arc::clone(clock), Arc::clone(&transitions));
        metrics.watch_leadership(candidate.lease().to_string(), move || {
            let standing = standing.borrow();
            let age = standing.contact.map(|contact| clock.now().since(contact));
            (standing.role.leads(), changes.get(), age)
        });
        Some(Self { candidate, block: readiness.block(BLOCK), readiness: readiness.clone(), transitions })
    }

    /// Takes part until the process drains. The result completes when the lease was given back.
    pub fn spawn(self, spawner: &Spawner) -> oneshot::Receiver<Infallible> {
        let (open, released) = oneshot::channel();
        // Critical: nobody would give up a leadership that nobody looks after.
        spawner.critical("leader election", async move {
            self.run().await;
            drop(open);
            std::future::pending().await
        });
        released
    }

    async fn run(self) {
        let Self { candidate, block, readiness, transitions } = self;
        let (mut conditions, mut left) = (readiness.watch(), readiness.left());
        let draining = async {
            // `readiness` lives as long as this, so the wait cannot fail.
            let _ = conditions.wait_for(|condition| *condition == Condition::Draining).await;
        };
        tokio::pin!(draining);
        tokio::select! {
            () = &mut draining => return,
            // Only our own block.
            _ = left.wait_for(|left| *left <= 1) => {}
        }
        tracing::info!(lease = &**candidate.lease(), identity = &**candidate.identity(), "taking part in the election");
        let mut block = Some(block);
        let mut standing = candidate.standing();
        let part = candidate.run(draining);
        tokio::pin!(part);
        loop {
            tokio::select! {
                () = &mut part => return,
                _ = standing.changed() => {}
            }
            let leads = standing.borrow_and_update().role.leads();
            if leads == block.is_some() {
                block = (!leads).then(|| readiness.block(BLOCK));
                transitions.inc();
            }
        }
    }
}

fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match read.trim() {
        "" => "epp".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
