//! Leader election over a Lease (`coordination.k8s.io/v1`), so that one replica of several takes traffic.
//!
//! Name, record and times are those of llm-d-router (llm-d-router.md 1.4), so that replicas of both can
//! compete during a change-over. [`election`] decides; this module calls the API server, one call at a
//! time, each bounded by `CALL`.
//!
//! Verbs on that one Lease: `get`, `create` and `update` are needed. `watch` is used if allowed: a
//! standby then sees a release the moment it happens, where reading every two seconds would see it a
//! second later on average. Either way a standby tries in the moment that the lease of a killed
//! leader runs out, not at the next of its rounds.
//!
//! Nothing here ends the process or the task: a replica that lost the lease is a standby again, with
//! all it has learnt (see [`election`] for what happens while the API server is away).

pub mod election;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_core::Stream;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff;
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, timeout};

use super::Cluster;
use crate::domain::Timestamp;
use crate::lifecycle::clock::Clock;
use election::{Election, Failure, Record, Role, Step, Timing};

/// Longest time of one call. Two of them fit into the time that a leader has to renew.
const CALL: Duration = Duration::from_secs(5);
/// Longest time of one call when the process stops.
const LAST_CALL: Duration = Duration::from_secs(2);
/// Calls that may be spent on giving the lease back.
const LAST_CALLS: usize = 3;

/// What [`Candidate::run`] takes at most once it was told to stop.
pub const RELEASE: Duration = Duration::from_secs(8);

/// What a candidate is and knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its role.
    pub role: Role,
    /// The holder of the lease when it was last seen; empty if nobody.
    pub holder: Arc<str>,
    /// When the API server last told of the lease; `None` if it never did.
    pub contact: Option<Timestamp>,
}

/// One replica in the election.
pub struct Candidate {
    api: Api<Lease>,
    name: Arc<str>,
    election: Election<Box<ObjectMeta>>,
    clock: Arc<dyn Clock>,
    standing: watch::Sender<Standing>,
    /// Whether the last call failed, so that each trouble is told once.
    failing: bool,
}

/// The name of the lease of a pool (protocol 2.5).
pub fn name(namespace: &str, pool: &str) -> String {
    format!("epp-{namespace}-{pool}.llm-d.ai")
}

impl Candidate {
    /// A candidate for the lease of `pool` in `namespace`.
    ///
    /// `host` begins its identity. With `is_pod` it is the name of the pod that this process is alone
    /// in, and a lease that a former process of it left is taken without waiting.
    pub fn new(
        cluster: &Cluster,
        namespace: &str,
        pool: &str,
        host: &str,
        is_pod: bool,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let unique = uuid::Builder::from_random_bytes(fastrand::u128(..).to_le_bytes()).into_uuid();
        let identity = format!("{host}_{unique}");
        let election = Election::new(identity, is_pod.then_some(host), Timing::default(), fastrand::u64(..));
        let (standing, _) = watch::channel(Standing { role: Role::Standby, holder: Arc::from(""), contact: None });
        Self {
            api: Api::namespaced(cluster.client().clone(), namespace),
            name: name(namespace, pool).into(),
            election,
            clock,
            standing,
            failing: false,
        }
    }

    /// The name of the lease.
    pub fn lease(&self) -> &Arc<str> {
        &self.name
    }

    /// The name of this candidate in the lease.
    pub fn identity(&self) -> &Arc<str> {
        self.election.identity()
    }

    /// Tells of every change.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Takes part until `stop`, then gives the lease back if it holds it, within [`RELEASE`].
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut follower = Follower::new(self.api.clone(), Arc::clone(&self.name));
        loop {
            let now = self.clock.now();
            let step = self.election.next(now, self.wall());
            self.publish();
            if self.election.role().leads() {
                // What a watch says may be older than what we wrote.
                follower.close();
            }
            if let Step::Wait(until) = step {
                let standby = !self.election.role().leads();
                tokio::select! {
                    biased;
                    () = &mut stop => break,
                    seen = follower.changed(), if standby => self.saw(seen, false),
                    () = sleep(until.since(now)) => {}
                }
                continue;
            }
            let mut call = call(self.api.clone(), Arc::clone(&self.name), step);
            let (answer, stopping) = loop {
                let deadline = self.election.deadline().map(|at| at.since(self.clock.now()));
                tokio::select! {
                    biased;
                    answer = &mut call => break (answer, false),
                    // Not dropped: it may take the lease for a process that is about to end.
                    () = &mut stop => break (timeout(LAST_CALL, call).await.unwrap_or_else(|_| late()), true),
                    () = sleep(deadline.unwrap_or_default()), if deadline.is_some() => {
                        self.election.tick(self.clock.now());
                        self.publish();
                    }
                }
            };
            self.answered(answer, now);
            if stopping {
                break;
            }
        }
        self.resign().await;
    }

    async fn resign(mut self) {
        let led = self.election.role().leads();
        for _ in 0..LAST_CALLS {
            let Some(step) = self.election.resign(self.wall()) else { break };
            self.publish();
            let now = self.clock.now();
            let call = call(self.api.clone(), Arc::clone(&self.name), step);
            let answer = timeout(LAST_CALL, call).await.unwrap_or_else(|_| late());
            self.answered(answer, now);
        }
        self.election.resign(self.wall());
        self.publish();
        if led {
            let given_back = self.election.holder() != &**self.election.identity();
            tracing::info!(lease = &*self.name, given_back, "no longer a candidate");
        }
    }

    /// Wall clock in microseconds since 1970.
    fn wall(&self) -> i64 {
        let since = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    fn saw(&mut self, lease: Option<Lease>, fresh: bool) {
        let now = self.clock.now();
        match lease {
            Some(lease) => {
                let (record, meta) = read(lease);
                self.election.found(record, meta, fresh, now);
            }
            None => self.election.absent(now),
        }
    }

    fn answered(&mut self, answer: Answer, began: Timestamp) {
        let now = self.clock.now();
        match answer {
            Answer::Read(lease) => self.saw(lease.map(|lease| *lease), true),
            Answer::Wrote(record, meta) => self.election.wrote(record, meta, began, now),
            Answer::Conflict => self.election.conflict(now),
            Answer::Failed(failure, error) => {
                self.election.failed(failure, now);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(lease = &*self.name, error, "cannot reach the lease");
                }
                return;
            }
        }
        if std::mem::replace(&mut self.failing, false) {
            tracing::info!(lease = &*self.name, "the lease can be reached again");
        }
    }

    fn publish(&mut self) {
        let (role, contact) = (self.election.role(), self.election.contact());
        let (lease, holder) = (&*self.name, self.election.holder());
        self.standing.send_if_modified(|standing| {
            if standing.role != role {
                match role {
                    Role::Leader => tracing::info!(lease, holder, "leading"),
                    Role::Unconfirmed => tracing::warn!(
                        lease,
                        "the lease could not be renewed in time: leading on until another holder is seen"
                    ),
                    Role::Standby => tracing::warn!(lease, holder, "not leading any more: standing by"),
                }
            } else if *standing.holder != *holder {
                tracing::info!(lease, holder, "the leader is another one");
            }
            let changed = standing.role != role || *standing.holder != *holder || standing.contact != contact;
            if *standing.holder != *holder {
                standing.holder = Arc::from(holder);
            }
            (standing.role, standing.contact) = (role, contact);
            changed
        });
    }
}

/// What a call came to.
enum Answer {
    /// The lease, if there is one.
    Read(Option<Box<Lease>>),
    Wrote(Record, Box<ObjectMeta>),
    Conflict,
    Failed(Failure, String),
}

fn late() -> Answer {
    Answer::Failed(Failure::Everybodys, "no answer in time".into())
}

fn call(api: Api<Lease>, name: Arc<str>, step: Step<Box<ObjectMeta>>) -> BoxFuture<'static, Answer> {
    Box::pin(async move {
        let work = async {
            match step {
                Step::Wait(_) | Step::Read => api.get_opt(&name).await.map(|lease| Answer::Read(lease.map(Box::new))),
                Step::Create(record) => {
                    let meta = ObjectMeta { name: Some(name.to_string()), ..ObjectMeta::default() };
                    let made = api.create(&PostParams::default(), &write(meta, &record)).await;
                    made.map(|lease| Answer::Wrote(record, Box::new(lease.metadata)))
                }
                Step::Update(meta, record) => {
                    // What others wrote into the metadata stays; whose field is whose, the server knows.
                    let meta = ObjectMeta { managed_fields: None, ..*meta };
                    match api.replace(&name, &PostParams::default(), &write(meta, &record)).await {
                        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Answer::Read(None)),
                        replaced => replaced.map(|lease| Answer::Wrote(record, Box::new(lease.metadata))),
                    }
                }
            }
        };
        match timeout(CALL, work).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Answer::Conflict,
            Ok(Err(error)) => Answer::Failed(failure(&error), error.to_string()),
            Err(_) => late(),
        }
    })
}

/// Whom an error concerns. Permissions belong to the service account, which all replicas share; a token
/// that is not accepted is this pod's.
fn failure(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => match status.code {
            403 | 429 | 500.. => Failure::Everybodys,
            _ => Failure::Own,
        },
        kube::Error::Auth(_) => Failure::Own,
        _ => Failure::Everybodys,
    }
}

fn read(lease: Lease) -> (Record, Box<ObjectMeta>) {
    let spec = lease.spec.unwrap_or_default();
    let micros = |time: Option<MicroTime>| time.map(|t| t.0.as_microsecond());
    let record = Record {
        holder: spec.holder_identity.unwrap_or_default(),
        lasts: Duration::from_secs(spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0)),
        acquired: micros(spec.acquire_time),
        renewed: micros(spec.renew_time),
        transitions: spec.lease_transitions.unwrap_or(0),
    };
    (record, Box::new(lease.metadata))
}

fn write(metadata: ObjectMeta, record: &Record) -> Lease {
    let time = |micros: Option<i64>| jiff::Timestamp::from_microsecond(micros?).ok().map(MicroTime);
    let spec = LeaseSpec {
        holder_identity: Some(record.holder.clone()),
        lease_duration_seconds: Some(i32::try_from(record.lasts.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: time(record.acquired),
        renew_time: time(record.renewed),
        lease_transitions: Some(record.transitions),
        ..LeaseSpec::default()
    };
    Lease { metadata, spec: Some(spec) }
}

type Events = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<Lease>>> + Send>>;

/// Follows the lease by a watch; without the permission it is quiet, and reading goes on.
struct Follower {
    api: Api<Lease>,
    name: Arc<str>,
    state: Follow,
    pause: Duration,
}

enum Follow {
    Off(Pin<Box<Sleep>>),
    Opening(BoxFuture<'static, kube::Result<Events>>),
    On(Events),
}

/// Pauses between watches that end without an event, from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Pause when watching is forbidden.
const FORBIDDEN: Duration = Duration::from_secs(600);

impl Follower {
    fn new(api: Api<Lease>, name: Arc<str>) -> Self {
        Self { api, name, state: off(Duration::ZERO), pause: PAUSES.0 }
    }

    /// Ends the watch; the next call of [`Self::changed`] begins another.
    fn close(&mut self) {
        if !matches!(self.state, Follow::Off(_)) {
            self.state = off(Duration::ZERO);
        }
    }

    /// Waits for the next state of the lease, `None` if it was deleted. Safe to cancel.
    async fn changed(&mut self) -> Option<Lease> {
        loop {
            match &mut self.state {
                Follow::Off(pause) => {
                    pause.await;
                    let (api, name) = (self.api.clone(), Arc::clone(&self.name));
                    self.state = Follow::Opening(Box::pin(async move {
                        let only = WatchParams::default().fields(&format!("metadata.name={name}"));
                        // Without a version the watch begins with the present state.
                        Ok(Box::pin(api.watch(&only, "").await?) as Events)
                    }));
                }
                Follow::Opening(opening) => match opening.await {
                    Ok(events) => self.state = Follow::On(events),
                    Err(kube::Error::Api(status)) if status.code == 403 => {
                        tracing::info!(
                            lease = &*self.name,
                            "watching the lease is not allowed (verb watch on leases): a release is seen up to 2.4 s later"
                        );
                        self.state = off(FORBIDDEN);
                    }
                    Err(error) => self.rest(&error.to_string()),
                },
                Follow::On(events) => match events.next().await {
                    Some(Ok(WatchEvent::Added(lease) | WatchEvent::Modified(lease))) => {
                        self.pause = PAUSES.0;
                        return Some(lease);
                    }
                    Some(Ok(WatchEvent::Deleted(_))) => return None,
                    Some(Ok(WatchEvent::Bookmark(_))) => {}
                    Some(Ok(WatchEvent::Error(status))) => self.rest(&status.message),
                    Some(Err(error)) => self.rest(&error.to_string()),
                    None => self.rest("it ended"),
                },
            }
        }
    }

    fn rest(&mut self, why: &str) {
        tracing::debug!(lease = &*self.name, why, "the watch of the lease is opened again");
        self.state = off(self.pause);
        self.pause = (self.pause * 2).min(PAUSES.1);
    }
}

fn off(pause: Duration) -> Follow {
    Follow::Off(Box::pin(sleep(pause)))
}
