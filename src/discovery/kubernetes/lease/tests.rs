//! Candidates against an API server in this process, in paused time.

use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::fake_api::{FakeApi, Line, TokioClock};
use super::*;

struct Replica {
    standing: watch::Receiver<Standing>,
    identity: Arc<str>,
    line: Line,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(api: &FakeApi, clock: &Arc<dyn Clock>, host: &str) -> Self {
        let (cluster, line) = api.cluster();
        let candidate = Candidate::new(&cluster, "prod", "llama", host, false, Arc::clone(clock));
        let (standing, identity) = (candidate.standing(), Arc::clone(candidate.identity()));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(candidate.run(async {
            let _ = stopped.await;
        }));
        Self { standing, identity, line, stop: Some(stop), task }
    }

    fn role(&self) -> Role {
        self.standing.borrow().role
    }

    /// Waits for a role; the time it took.
    async fn becomes(&mut self, role: Role) -> Duration {
        let begun = Instant::now();
        let waited = timeout(Duration::from_secs(120), self.standing.wait_for(|s| s.role == role)).await;
        waited.unwrap_or_else(|_| panic!("{role:?} does not come")).unwrap();
        begun.elapsed()
    }

    fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }
}

async fn two(api: &FakeApi) -> (Replica, Replica) {
    let clock = TokioClock::start();
    let mut first = Replica::start(api, &clock, "a");
    first.becomes(Role::Leader).await;
    let second = Replica::start(api, &clock, "b");
    sleep(Duration::from_secs(31)).await;
    assert_eq!((first.role(), second.role()), (Role::Leader, Role::Standby));
    assert_eq!(second.standing.borrow().holder, first.identity);
    (first, second)
}

#[tokio::test(start_paused = true)]
async fn a_release_is_seen_at_once_by_watch_and_in_two_seconds_without() {
    for (watch, most) in [(true, Duration::from_millis(10)), (false, Duration::from_millis(2_500))] {
        let api = FakeApi::default();
        if !watch {
            api.0.lock().refuse.insert("watch", 403);
        }
        let (mut first, mut second) = two(&api).await;
        assert_eq!(api.transitions(), 0);
        first.stop();
        let gap = second.becomes(Role::Leader).await;
        assert!(gap <= most, "{gap:?} with watch={watch}");
        assert_eq!(first.role(), Role::Standby);
        assert_eq!((api.holder(), api.transitions()), (second.identity.to_string(), 1));
        first.task.await.unwrap();
        // The last one leaves nobody behind.
        second.stop();
        second.task.await.unwrap();
        assert_eq!(api.holder(), "");
        let name = "/apis/coordination.k8s.io/v1/namespaces/prod/leases/epp-prod-llama.llm-d.ai";
        let calls = api.0.lock().calls.clone();
        for call in &calls {
            let (verb, path) = call.split_once(' ').unwrap();
            match verb {
                "get" | "update" => assert_eq!(path, name),
                "create" | "watch" => assert_eq!(path, name.rsplit_once('/').unwrap().0),
                _ => panic!("{call}"),
            }
        }
        if !watch {
            assert_eq!(calls.iter().filter(|c| c.starts_with("watch")).count(), 1, "a refusal is remembered");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_replaced_when_its_lease_runs_out() {
    let api = FakeApi::default();
    let (first, mut second) = two(&api).await;
    first.task.abort();
    let gap = second.becomes(Role::Leader).await;
    assert!((12_900..=15_010).contains(&gap.as_millis()), "{gap:?}");
    assert_eq!(api.transitions(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_the_leader_leads_on() {
    let api = FakeApi::default();
    let (mut first, second) = two(&api).await;
    api.0.lock().away = true;
    let sure = first.becomes(Role::Unconfirmed).await;
    assert!((7_900..=10_010).contains(&sure.as_millis()), "{sure:?}");
    let contact = first.standing.borrow().contact;
    sleep(Duration::from_secs(300)).await;
    assert_eq!((first.role(), second.role()), (Role::Unconfirmed, Role::Standby));
    assert_eq!(first.standing.borrow().contact, contact);
    api.0.lock().away = false;
    // Whoever comes first: the lease has run out. In the end one leads and the other knows.
    sleep(Duration::from_secs(20)).await;
    let mut roles = [first.role(), second.role()];
    roles.sort_by_key(|role| !role.leads());
    assert_eq!(roles, [Role::Leader, Role::Standby]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_alone_is_cut_off_steps_down_with_the_first_answer() {
    let api = FakeApi::default();
    let (mut first, mut second) = two(&api).await;
    *first.line.cut.lock() = true;
    second.becomes(Role::Leader).await;
    first.becomes(Role::Unconfirmed).await;
    *first.line.cut.lock() = false;
    let beside = first.becomes(Role::Standby).await;
    assert!(beside <= Duration::from_millis(7_500), "one call and one pause at most: {beside:?}");
    assert_eq!(second.role(), Role::Leader);
    // It is warm, and takes over again when its turn comes.
    second.stop();
    assert!(first.becomes(Role::Leader).await < Duration::from_millis(300));
}

#[tokio::test(start_paused = true)]
async fn permissions_taken_away_stop_nobody_and_a_refused_token_does() {
    let api = FakeApi::default();
    let (mut first, _second) = two(&api).await;
    api.0.lock().refuse.insert("update", 403);
    first.becomes(Role::Unconfirmed).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(first.role(), Role::Unconfirmed);
    api.0.lock().refuse.clear();
    sleep(Duration::from_secs(20)).await;
    assert!(first.role() != Role::Unconfirmed, "{:?}", first.role());

    let api = FakeApi::default();
    let (mut third, _fourth) = two(&api).await;
    for verb in ["get", "update"] {
        api.0.lock().refuse.insert(verb, 401);
    }
    let sure = third.becomes(Role::Standby).await;
    assert!(sure <= Duration::from_millis(10_010), "{sure:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_of_taking_leaves_no_dead_holder() {
    let api = FakeApi::default();
    let clock = TokioClock::start();
    api.0.lock().slow = Duration::from_secs(1);
    let mut only = Replica::start(&api, &clock, "a");
    // Read until 1 s, created in the first moment after, answered at 2 s.
    sleep(Duration::from_millis(1_500)).await;
    assert_ne!(api.holder(), "");
    assert_eq!(only.role(), Role::Standby);
    only.stop();
    only.task.await.unwrap();
    assert_eq!(api.holder(), "");
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_api_server_ends_in_time() {
    let api = FakeApi::default();
    let (mut first, _second) = two(&api).await;
    api.0.lock().away = true;
    let begun = Instant::now();
    first.stop();
    first.task.await.unwrap();
    assert!(begun.elapsed() <= RELEASE, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_another_make_is_read_and_what_is_not_ours_stays() {
    let api = FakeApi::default();
    let foreign = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "epp-prod-llama.llm-d.ai", "namespace": "prod", "labels": {"team": "x"},
            "annotations": {"note": "y"}, "uid": "1-2-3"},
        "spec": {"holderIdentity": "go_1", "leaseDurationSeconds": 15, "leaseTransitions": 7,
            "acquireTime": "2026-01-01T00:00:00.000001Z", "renewTime": "2026-01-01T00:00:02.5Z"}});
    api.0.lock().put(foreign);
    let clock = TokioClock::start();
    let mut replica = Replica::start(&api, &clock, "a");
    let waited = replica.becomes(Role::Leader).await;
    assert!((15_000..15_010).contains(&waited.as_millis()), "{waited:?}");
    let lease = api.0.lock().lease.clone().unwrap();
    assert_eq!(
        (&lease["metadata"]["labels"]["team"], &lease["metadata"]["annotations"]["note"]),
        (&json!("x"), &json!("y"))
    );
    assert_eq!(lease["metadata"]["uid"], "1-2-3");
    assert_eq!((&lease["spec"]["leaseTransitions"], &lease["spec"]["leaseDurationSeconds"]), (&json!(8), &json!(15)));
    let time = lease["spec"]["acquireTime"].as_str().unwrap();
    assert!(time.starts_with("2023-11-14T22:13:35.") && time.len() == "2023-11-14T22:13:35.000000Z".len(), "{time}");
    assert!(replica.identity.starts_with("a_") && replica.identity.len() > 30);
}
