//! Replicas without listeners: readiness, election and the end, in paused time.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::config::{Purpose, Settings, Tables, resolve};
use crate::discovery::kubernetes::fake_api::{FakeApi, TokioClock};
use crate::lifecycle::task::{Supervisor, supervisor};

struct Replica {
    readiness: Readiness,
    metrics: Arc<Metrics>,
    released: oneshot::Receiver<Infallible>,
    _supervisor: Supervisor,
}

fn replica(api: &FakeApi, pool: &BlockedPool) -> Replica {
    let mut settings = Settings { leader_election: true, ..Settings::default() };
    (settings.pool.name, settings.pool.namespace) = (Some("llama".into()), "prod".into());
    let config = resolve("t", None, settings, &Tables::standard(), Purpose::Serve).unwrap();
    let (metrics, clock) = (Metrics::new(), TokioClock::start());
    let readiness = pool.0.clone();
    let leadership = Leadership::new(&config, Some(&api.cluster().0), &readiness, &metrics, &clock).unwrap();
    let (spawner, supervisor) = supervisor();
    let released = leadership.spawn(&spawner);
    Replica { readiness, metrics, released, _supervisor: supervisor }
}

/// A readiness whose pool has not been read.
struct BlockedPool(Readiness, Option<BlockReady>);

fn blocked() -> BlockedPool {
    let readiness = Readiness::new();
    let block = readiness.block("pool");
    BlockedPool(readiness, Some(block))
}

fn synced() -> BlockedPool {
    BlockedPool(Readiness::new(), None)
}

impl Replica {
    async fn becomes(&self, condition: Condition) -> Duration {
        let begun = Instant::now();
        let mut watch = self.readiness.watch();
        let waited = timeout(Duration::from_secs(60), watch.wait_for(|now| *now == condition)).await;
        waited.unwrap_or_else(|_| panic!("{condition:?} does not come")).unwrap();
        begun.elapsed()
    }

    /// The value of one of the three series.
    fn value(&self, name: &str) -> f64 {
        let page = String::from_utf8(self.metrics.render()).unwrap();
        let series = format!("{name}{{name=\"epp-prod-llama.llm-d.ai\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_is_ready_and_a_stop_hands_over_at_once() {
    let api = FakeApi::default();
    let mut first = replica(&api, &synced());
    first.becomes(Condition::Ready).await;
    let second = replica(&api, &synced());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(second.readiness.pending(), [Arc::from(BLOCK)]);
    assert!(first.readiness.is_ready());
    assert_eq!(
        (first.value("leader_election_master_status"), second.value("leader_election_master_status")),
        (1.0, 0.0)
    );
    for replica in [&first, &second] {
        assert!(replica.value("llm_d_epp_leader_election_contact_age_seconds") <= 2.5);
    }

    first.readiness.draining();
    let gap = second.becomes(Condition::Ready).await;
    assert!(gap <= Duration::from_millis(10), "{gap:?}");
    (&mut first.released).await.unwrap_err();
    assert_eq!(first.value("leader_election_master_status"), 0.0);
    assert_eq!(second.value("leader_election_master_status"), 1.0);
    assert_eq!(second.value("llm_d_epp_leader_election_transitions_total"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_not_ready_otherwise_does_not_take_part() {
    let api = FakeApi::default();
    let mut pool = blocked();
    let cold = replica(&api, &pool);
    sleep(Duration::from_secs(60)).await;
    assert_eq!((api.holder().as_str(), api.0.lock().calls.len()), ("", 0));
    // Stopping it then takes no time.
    let other = blocked();
    let stopped = replica(&api, &other);
    stopped.readiness.draining();
    stopped.released.await.unwrap_err();
    drop(pool.1.take());
    cold.becomes(Condition::Ready).await;
    assert_ne!(api.holder(), "");
}

#[tokio::test(start_paused = true)]
async fn a_leader_keeps_its_readiness_while_the_api_server_is_away_and_loses_it_to_a_successor() {
    let api = FakeApi::default();
    let first = replica(&api, &synced());
    first.becomes(Condition::Ready).await;
    api.0.lock().away = true;
    sleep(Duration::from_secs(600)).await;
    assert!(first.readiness.is_ready());
    assert!(first.value("llm_d_epp_leader_election_contact_age_seconds") > 590.0);
    // Back, with another holder.
    let mut lease = api.0.lock().lease.clone().unwrap();
    lease["spec"]["holderIdentity"] = "another".into();
    api.0.lock().put(lease);
    api.0.lock().away = false;
    assert!(first.becomes(Condition::Waiting).await <= Duration::from_millis(7_500));
    assert_eq!(first.readiness.pending(), [Arc::from(BLOCK)]);
    // It stays a candidate, and its turn comes.
    first.becomes(Condition::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn without_the_flag_or_a_cluster_there_is_no_election() {
    let api = FakeApi::default();
    let (metrics, clock, readiness) = (Metrics::new(), TokioClock::start(), Readiness::new());
    for election in [true, false] {
        let settings = Settings { leader_election: election, ..Settings::default() };
        let config = resolve("t", None, settings, &Tables::standard(), Purpose::Check).unwrap();
        let cluster = (!election).then(|| api.cluster().0);
        assert!(Leadership::new(&config, cluster.as_ref(), &readiness, &metrics, &clock).is_none());
    }
    assert!(readiness.is_ready());
}
