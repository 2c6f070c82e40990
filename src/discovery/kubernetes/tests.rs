//! Discovery as a whole against an API server in memory, with time held still.

mod fake;

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::watch::{ABSENT_RETRY, ANSWER, LAST_DELAY, PAGE, PATIENCE, SILENCE};
use super::*;
use crate::domain::{ObjectiveSpec, Policies, PoolIdentity, RewriteSpec};
use crate::lifecycle::clock::ManualClock;
use fake::{Fake, OBJECTIVES, OLD_OBJECTIVES, PODS, POOLS, REWRITES};

struct Stand {
    fake: Fake,
    pool: Arc<Pool>,
    readiness: Readiness,
    stats: Arc<Stats>,
    clock: Arc<ManualClock>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stand {
    /// Discovery of pool `p` in namespace `n`.
    fn start(fake: Fake) -> Self {
        Self::of(fake, Target::Pool { name: "p".into(), group: GROUP_V1.into() })
    }

    fn of(fake: Fake, target: Target) -> Self {
        let clock = Arc::new(ManualClock::default());
        let identity = PoolIdentity { name: "p".into(), namespace: "n".into() };
        let pool = Arc::new(Pool::new(identity, Duration::from_secs(1), Arc::clone(&clock) as _, Box::new(|_| {})));
        let readiness = Readiness::new();
        let stats: Arc<Stats> = Arc::default();
        let discovery = Discovery {
            cluster: Cluster::of(fake.client()),
            target,
            namespace: "n".into(),
            pool: Arc::clone(&pool),
            block: readiness.block("pool"),
            readiness: readiness.clone(),
            stats: Arc::clone(&stats),
            clock: Arc::clone(&clock) as _,
        };
        Self { fake, pool, readiness, stats, clock, task: tokio::spawn(discovery.run()) }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.pool.snapshot().topology.endpoints().map(|e| e.name().to_owned()).collect();
        names.sort();
        names
    }

    /// Waits until the endpoints are these, for as long as any retry may take.
    async fn becomes(&self, names: &[&str]) {
        self.until(|s| s.names() == names, || format!("{names:?}")).await;
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool, what: impl Fn() -> String) {
        let end = Instant::now() + Duration::from_secs(300);
        while !condition(self) {
            assert!(!self.task.is_finished(), "discovery ended");
            assert!(Instant::now() < end, "not {}: {:?}, {:?}", what(), self.names(), self.fake.requests(""));
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ready(&self) {
        self.until(|s| s.readiness.is_ready(), || "ready".into()).await;
        self.watched().await;
    }

    /// Waits until changes of pods are followed, so that what a test says there is heard.
    async fn watched(&self) {
        self.until(|s| s.fake.is_watched(PODS), || "watched".into()).await;
    }

    fn failures(&self, resource: Resource) -> BTreeMap<&'static str, u64> {
        self.stats.of(resource).failures().filter(|(_, n)| *n > 0).map(|(r, n)| (r.as_str(), n)).collect()
    }
}

fn pool(selector: &str, ports: &[u16]) -> Value {
    let (key, value) = selector.split_once('=').unwrap();
    let ports: Vec<_> = ports.iter().map(|number| json!({"number": number})).collect();
    json!({"metadata": {"name": "p"}, "spec": {"selector": {"matchLabels": {key: value}}, "targetPorts": ports}})
}

fn pod(name: &str, ip: &str, label: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": label}},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

/// A cluster with pool `p` of `app=a`, port 80, and the pods `a` and `b`.
fn cluster() -> Fake {
    let fake = Fake::default();
    fake.serve_group(GROUP_LLM_D);
    fake.apply(POOLS, pool("app=a", &[80]));
    fake.apply(POOLS, {
        let mut other = pool("app=x", &[1]);
        other["metadata"]["name"] = json!("other");
        other
    });
    fake.apply(PODS, pod("a", "10.0.0.1", "a"));
    fake.apply(PODS, pod("b", "10.0.0.2", "a"));
    fake.apply(PODS, pod("x", "10.0.0.9", "x"));
    fake
}

const BOTH: &[&str] = &["a-rank-0", "b-rank-0"];

#[tokio::test(start_paused = true)]
async fn pods_of_the_pool_come_and_go() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    assert_eq!(stand.names(), BOTH, "ready means that the list is complete");
    stand.fake.apply(PODS, pod("c", "10.0.0.3", "a"));
    stand.becomes(&["a-rank-0", "b-rank-0", "c-rank-0"]).await;
    let mut unready = pod("a", "10.0.0.1", "a");
    unready["status"]["conditions"][0]["status"] = json!("False");
    stand.fake.apply(PODS, unready);
    stand.becomes(&["b-rank-0", "c-rank-0"]).await;
    stand.fake.apply(PODS, pod("b", "10.0.0.2", "elsewhere"));
    stand.becomes(&["c-rank-0"]).await;
    stand.fake.delete(PODS, "c");
    stand.becomes(&[]).await;
    assert!(stand.readiness.is_ready(), "an empty pool is a pool");
    let asked = stand.fake.requests("/pods");
    assert!(asked.iter().all(|r| r.contains("labelSelector=app%3Da")), "the server filters: {asked:?}");
    assert!(stand.fake.requests("/inferencepools").iter().all(|r| r.contains("fieldSelector=metadata.name%3Dp")));
    assert_eq!(stand.stats.of(Resource::Pods).state(), WatchState::Watching);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_created_anew_is_another_endpoint() {
    let fake = cluster();
    let of = |uid: &str| {
        let mut pod = pod("a", "10.0.0.1", "a");
        pod["metadata"]["uid"] = json!(uid);
        pod
    };
    fake.apply(PODS, of("one"));
    let stand = Stand::start(fake);
    let generation = |s: &Stand| {
        let topology = Arc::clone(&s.pool.snapshot().topology);
        topology.endpoints().find(|e| e.name() == "a-rank-0").map(|e| e.generation)
    };
    let mut before = None;
    // In one batch of a watch, and between two lists.
    for (uid, listed) in [("two", false), ("three", true)] {
        stand.ready().await;
        before = generation(&stand).max(before);
        if listed {
            stand.fake.end();
            stand.fake.compact();
        }
        stand.fake.delete(PODS, "a");
        stand.fake.apply(PODS, of(uid));
        if listed {
            stand.fake.compact();
        }
        stand.until(|s| generation(s) > before, || format!("{uid} is new")).await;
    }
    before = generation(&stand);
    let mut other = of("three");
    other["metadata"]["labels"]["more"] = json!("x");
    stand.watched().await;
    stand.fake.apply(PODS, other);
    stand.until(|s| s.pool.snapshot().topology.endpoints().any(|e| e.label("more").is_some()), || "more".into()).await;
    assert_eq!(generation(&stand), before, "the same pod with another label");
}

#[tokio::test(start_paused = true)]
async fn the_pool_decides_on_pods_ports_and_readiness() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    stand.fake.apply(POOLS, pool("app=a", &[80, 81]));
    stand.becomes(&["a-rank-0", "a-rank-1", "b-rank-0", "b-rank-1"]).await;
    stand.fake.apply(POOLS, pool("app=x", &[80]));
    stand.becomes(&["x-rank-0"]).await;
    stand.fake.delete(POOLS, "p");
    stand.becomes(&[]).await;
    assert!(!stand.readiness.is_ready());
    stand.fake.apply(POOLS, pool("app=a", &[80]));
    stand.becomes(BOTH).await;
    stand.ready().await;
    stand.fake.apply(POOLS, pool("app=a", &[0]));
    stand.until(|s| s.stats.of(Resource::Pool).unreadables() == 1, || "counted".into()).await;
    assert_eq!(stand.names(), BOTH, "a pool that makes no sense stays what it was");
}

#[tokio::test(start_paused = true)]
async fn it_is_not_ready_without_a_pool_or_a_list() {
    let fake = Fake::default();
    fake.serve_group(GROUP_LLM_D);
    let stand = Stand::start(fake);
    sleep(Duration::from_secs(60)).await;
    assert!(!stand.readiness.is_ready());
    stand.fake.refuse(PODS, 500);
    stand.fake.apply(POOLS, pool("app=a", &[80]));
    sleep(Duration::from_secs(60)).await;
    assert!(!stand.readiness.is_ready(), "the pool is known, its pods are not");
    stand.fake.refuse(PODS, 0);
    stand.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_list_comes_in_pages_and_appears_whole() {
    let fake = cluster();
    for i in 0..2 * PAGE + 10 {
        fake.apply(PODS, pod(&format!("m{i}"), "10.1.0.1", "a"));
    }
    let stand = Stand::start(fake);
    stand.until(|s| !s.names().is_empty(), || "seen".into()).await;
    assert_eq!(stand.names().len(), 2 * PAGE as usize + 12, "never a part of it");
    assert_eq!(stand.fake.requests("limit=250").iter().filter(|r| r.contains("/pods")).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn pages_that_are_too_large_are_asked_for_in_smaller_ones() {
    let fake = cluster();
    for i in 0..100 {
        fake.apply(PODS, pod(&format!("m{i}"), "10.1.0.1", "a"));
    }
    fake.page_limit(70);
    let stand = Stand::start(fake);
    stand.ready().await;
    assert_eq!(stand.names().len(), 102);
    assert_eq!(stand.fake.requests("limit=62").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_a_watch_was_broken_is_caught_up() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    stand.fake.forget_requests();
    stand.fake.cut();
    stand.fake.apply(PODS, pod("c", "10.0.0.3", "a"));
    stand.becomes(&["a-rank-0", "b-rank-0", "c-rank-0"]).await;
    stand.fake.end();
    stand.fake.delete(PODS, "a");
    stand.becomes(&["b-rank-0", "c-rank-0"]).await;
    assert_eq!(stand.fake.requests("limit="), [""; 0], "from where it was, without a list");
    assert_eq!(stand.failures(Resource::Pods), [("unreachable", 1)].into(), "an end in time is no failure");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_expired_lists_anew() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    stand.fake.end();
    stand.fake.delete(PODS, "a");
    stand.fake.apply(PODS, pod("c", "10.0.0.3", "a"));
    stand.fake.compact();
    stand.becomes(&["b-rank-0", "c-rank-0"]).await;
    assert_eq!(stand.failures(Resource::Pods), [("expired", 1)].into());
    // In the middle of a watch as well.
    stand.watched().await;
    stand.fake.forget_requests();
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}});
    stand.fake.say(PODS, format!("{gone}\n"));
    let pods = |s: &Stand| s.fake.requests("limit=").iter().filter(|r| r.contains("/pods")).count();
    stand.until(|s| pods(s) == 1, || "listed".into()).await;
    stand.watched().await;
    stand.fake.refuse(PODS, 410);
    stand.fake.cut();
    stand.until(|s| s.failures(Resource::Pods)["expired"] > 3, || "refused".into()).await;
    stand.fake.refuse(PODS, 0);
    stand.fake.delete(PODS, "b");
    stand.becomes(&["c-rank-0"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_lost_takes_nothing_away() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    for status in [500, 503, 429, 403, 404, 401] {
        stand.fake.refuse("/", status);
        stand.fake.cut();
        sleep(Duration::from_secs(120)).await;
        assert_eq!(stand.names(), BOTH, "{status}");
        assert!(stand.readiness.is_ready());
    }
    assert_eq!(stand.stats.of(Resource::Pods).state(), WatchState::Retrying);
    let tries = stand.fake.requests("/pods").len();
    assert!((100..6 * 60).contains(&tries), "{tries} tries in twelve minutes");
    stand.fake.refuse("/", 0);
    stand.fake.delete(PODS, "a");
    let back = Instant::now();
    stand.becomes(&["b-rank-0"]).await;
    assert!(back.elapsed() <= LAST_DELAY, "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn silence_on_a_watch_is_noticed_and_ends_in_a_new_list() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    // A word within the time keeps a watch.
    for _ in 0..10 {
        sleep(SILENCE - Duration::from_secs(5)).await;
        for path in [PODS, POOLS, OBJECTIVES, REWRITES] {
            stand.fake.bookmark(path);
        }
    }
    assert!(stand.failures(Resource::Pods).is_empty());
    stand.fake.forget_requests();
    stand.fake.deaf(true);
    stand.fake.delete(PODS, "a");
    sleep(SILENCE + Duration::from_secs(1)).await;
    assert_eq!(stand.failures(Resource::Pods), [("timeout", 1)].into());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(stand.names(), BOTH);
    stand.fake.deaf(false);
    stand.becomes(&["b-rank-0"]).await;
}

#[tokio::test(start_paused = true)]
async fn age_counts_from_the_last_word() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    stand.clock.advance(Duration::from_secs(50));
    let age = || stand.stats.of(Resource::Pods).age(stand.clock.now());
    assert_eq!(age(), Some(Duration::from_secs(50)));
    stand.fake.bookmark(PODS);
    stand.until(|_| age() == Some(Duration::ZERO), || "heard".into()).await;
    assert_eq!(stand.stats.of(Resource::Pool).age(stand.clock.now()), Some(Duration::from_secs(50)));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_passed_over_and_counted() {
    let fake = cluster();
    let mut broken = pod("broken", "nonsense", "a");
    fake.apply(PODS, broken.clone());
    let stand = Stand::start(fake);
    stand.ready().await;
    assert_eq!(
        (stand.names(), stand.stats.of(Resource::Pods).unreadables()),
        (BOTH.iter().map(ToString::to_string).collect(), 1)
    );
    broken["metadata"]["name"] = json!("a");
    stand.fake.apply(PODS, broken);
    stand.becomes(&["b-rank-0"]).await;
    stand.fake.apply(PODS, pod("a", "10.0.0.1", "a"));
    stand.becomes(BOTH).await;
    // Garbage on the watch itself: another list, and nothing is lost.
    for garbage in
        ["no json\n", "{}\n", "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"q\"}}}\n", "\n\n", "[1]\n"]
    {
        stand.fake.say(PODS, garbage);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(stand.names(), BOTH, "{garbage}");
    }
    assert_eq!(stand.failures(Resource::Pods), [("malformed", 4)].into());
    stand.fake.say(PODS, vec![b'x'; 17 << 20]);
    stand.until(|s| s.failures(Resource::Pods)["malformed"] == 5, || "bounded".into()).await;
}

#[tokio::test(start_paused = true)]
async fn events_may_be_cut_anywhere() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    let mut object = pod("c", "10.0.0.3", "a");
    object["metadata"]["resourceVersion"] = json!("100");
    let lines = format!("{}\n", json!({"type": "ADDED", "object": object})).repeat(2);
    for byte in lines.bytes() {
        stand.fake.say(PODS, vec![byte]);
    }
    stand.becomes(&["a-rank-0", "b-rank-0", "c-rank-0"]).await;
}

#[tokio::test(start_paused = true)]
async fn events_that_are_there_together_are_one_edit() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    let before = stand.pool.snapshot().topology.version;
    for i in 0..100 {
        stand.fake.apply(PODS, pod(&format!("m{i}"), "10.1.0.1", "a"));
    }
    stand.until(|s| s.names().len() == 102, || "all".into()).await;
    assert_eq!(stand.pool.snapshot().topology.version, before + 1);
}

fn objective(name: &str, priority: i32, pool: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"priority": priority, "poolRef": {"name": pool}}})
}

fn policies(objectives: &[(&str, i32)], rewrites: &[&str]) -> Policies {
    let objectives =
        objectives.iter().map(|(name, priority)| ObjectiveSpec { name: (*name).into(), priority: *priority });
    let rewrites =
        rewrites.iter().map(|name| RewriteSpec { name: (*name).into(), created: i64::MAX, rules: Vec::new() });
    Policies::new(objectives.collect(), rewrites.collect())
}

#[tokio::test(start_paused = true)]
async fn objectives_and_rewrites_of_the_pool_are_in_force() {
    let fake = cluster();
    fake.apply(OBJECTIVES, objective("o", 1, "p"));
    fake.apply(OBJECTIVES, objective("foreign", 1, "q"));
    fake.apply(REWRITES, json!({"metadata": {"name": "r"}, "spec": {"poolRef": {"name": "p"}, "rules": []}}));
    let stand = Stand::start(fake);
    let are = |objectives: &'static [(&str, i32)], rewrites: &'static [&str]| {
        let expected = policies(objectives, rewrites);
        let what = format!("{expected:?}");
        (move |s: &Stand| **s.pool.policies() == expected, move || what.clone())
    };
    stand.ready().await;
    let (check, what) = are(&[("o", 1)], &["r"]);
    assert!(check(&stand), "ready means that they are known: {}", what());
    stand.fake.apply(OBJECTIVES, objective("o", -1, "p"));
    stand.fake.apply(OBJECTIVES, objective("foreign", 7, "p"));
    let (check, what) = are(&[("foreign", 7), ("o", -1)], &["r"]);
    stand.until(check, what).await;
    stand.fake.apply(OBJECTIVES, objective("foreign", 7, "q"));
    stand.fake.delete(REWRITES, "r");
    let (check, what) = are(&[("o", -1)], &[]);
    stand.until(check, what).await;
    stand.fake.delete(POOLS, "p");
    stand.until(|s| **s.pool.policies() == Policies::default(), || "none".into()).await;
    stand.fake.apply(POOLS, pool("app=a", &[80]));
    let (check, what) = are(&[("o", -1)], &[]);
    stand.until(check, what).await;
}

#[tokio::test(start_paused = true)]
async fn absent_resources_are_picked_up_when_they_appear() {
    let fake = Fake::default();
    fake.apply(POOLS, pool("app=a", &[80]));
    fake.apply(OLD_OBJECTIVES, objective("old", 1, "p"));
    fake.apply(OBJECTIVES, objective("new", 2, "p"));
    let stand = Stand::start(fake);
    stand.ready().await;
    assert_eq!(stand.stats.of(Resource::Objectives).state(), WatchState::Absent);
    assert!(stand.fake.requests("/inferenceobjectives").is_empty(), "what is not there is not asked for");
    stand.fake.serve_group(GROUP_V1ALPHA2);
    let appeared = Instant::now();
    stand.until(|s| **s.pool.policies() == policies(&[("old", 1)], &[]), || "the older group".into()).await;
    assert!(appeared.elapsed() <= ABSENT_RETRY + Duration::from_secs(1));
    // The present group wins as soon as it is there and the watch is renewed.
    stand.fake.serve_group(GROUP_LLM_D);
    stand.fake.end();
    stand.until(|s| **s.pool.policies() == policies(&[("new", 2)], &[]), || "the present group".into()).await;
}

#[tokio::test(start_paused = true)]
async fn forbidden_resources_do_not_keep_it_from_being_ready() {
    let fake = cluster();
    fake.apply(OBJECTIVES, objective("o", 1, "p"));
    fake.refuse(OBJECTIVES, 403);
    fake.refuse("/apis/inference.networking.x-k8s.io", 403);
    let stand = Stand::start(fake);
    stand.ready().await;
    sleep(Duration::from_secs(600)).await;
    let tries = stand.fake.requests("/inferenceobjectives").len();
    assert!((20..=22).contains(&tries), "{tries} in ten minutes");
    stand.fake.refuse(OBJECTIVES, 0);
    stand.until(|s| **s.pool.policies() == policies(&[("o", 1)], &[]), || "in force".into()).await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_stumbles_does_not_make_it_ready_without_policies() {
    // By path and status: what a server that is starting, or a group that is not yet served, answers.
    for (path, status) in [("/apis/llm-d.ai", 500), (OBJECTIVES, 503), (OBJECTIVES, 404), ("/apis/llm-d.ai", 404)] {
        let fake = cluster();
        fake.apply(OBJECTIVES, objective("o", 1, "p"));
        fake.refuse(path, status);
        let stand = Stand::start(fake);
        stand.watched().await;
        sleep(Duration::from_millis(500)).await;
        assert!(!stand.readiness.is_ready(), "{status} of {path}");
        stand.fake.refuse(path, 0);
        stand.until(|s| s.readiness.is_ready(), || "ready".into()).await;
        assert_eq!(**stand.pool.policies(), policies(&[("o", 1)], &[]), "{status} of {path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_always_fails_does_not_keep_it_from_being_ready_for_ever() {
    let fake = cluster();
    fake.refuse(OBJECTIVES, 500);
    let stand = Stand::start(fake);
    stand.watched().await;
    let begun = Instant::now();
    sleep(PATIENCE - Duration::from_secs(1)).await;
    assert!(!stand.readiness.is_ready());
    stand.until(|s| s.readiness.is_ready(), || "ready".into()).await;
    assert!(begun.elapsed() <= PATIENCE + LAST_DELAY + Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn patience_does_not_run_out_before_the_api_server_is_there() {
    for deaf in [false, true] {
        let fake = cluster();
        fake.apply(OBJECTIVES, objective("o", 1, "p"));
        fake.deaf(deaf);
        fake.refuse("/", 503);
        let stand = Stand::start(fake);
        sleep(PATIENCE * 6).await;
        // The pool comes back first, whatever the delays are.
        stand.fake.refuse("/apis/llm-d.ai", 503);
        stand.fake.refuse("/", 0);
        stand.fake.deaf(false);
        stand.watched().await;
        sleep(Duration::from_secs(1)).await;
        assert!(!stand.readiness.is_ready());
        stand.fake.refuse("/apis/llm-d.ai", 0);
        let back = Instant::now();
        stand.until(|s| s.readiness.is_ready(), || "ready".into()).await;
        assert!(back.elapsed() <= ANSWER + LAST_DELAY);
        assert_eq!(**stand.pool.policies(), policies(&[("o", 1)], &[]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_selector_needs_no_custom_resources() {
    let target = Target::Selector { selector: "app=a".into(), ports: vec![90, 91] };
    let stand = Stand::of(cluster(), target);
    stand.ready().await;
    assert_eq!(stand.names(), ["a-rank-0", "a-rank-1", "b-rank-0", "b-rank-1"]);
    sleep(Duration::from_secs(60)).await;
    assert!(stand.fake.requests("/apis/").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_at_once_is_asked_with_pauses() {
    let stand = Stand::start(cluster());
    stand.ready().await;
    stand.fake.forget_requests();
    let end = Instant::now() + Duration::from_secs(100);
    while Instant::now() < end {
        stand.fake.end();
        sleep(Duration::from_millis(1)).await;
    }
    let asked = stand.fake.requests("/pods").len();
    assert!(asked < 40, "{asked} times in 100 s");
}

/// What is logged in this thread.
#[derive(Clone, Default)]
struct Said(Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Said {
    /// Listens until the guard is dropped.
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let out = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || out.clone());
        tracing::subscriber::set_default(subscriber.finish())
    }

    /// Takes the lines that contain `what`.
    fn take(&self, what: &str) -> Vec<String> {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap();
        text.lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lists_and_does_not_watch_is_asked_with_pauses_and_reported_once() {
    let said = Said::default();
    let _listening = said.listen();
    let expired = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}});
    for (answer, reason) in [
        (Err(403), "forbidden"),
        (Err(410), "expired"),
        (Ok(format!("{expired}\n").into()), "expired"),
        (Ok("no json\n".into()), "malformed"),
    ] {
        let fake = cluster();
        fake.spoil_watches(PODS, Some(answer));
        let stand = Stand::start(fake);
        stand.until(|s| s.readiness.is_ready(), || "ready".into()).await;
        sleep(Duration::from_secs(60)).await;
        let lists = stand.fake.requests("limit=").iter().filter(|r| r.contains("/pods")).count();
        assert!((12..40).contains(&lists), "{reason}: {lists} lists in a minute");
        assert_eq!(stand.failures(Resource::Pods).into_keys().collect::<Vec<_>>(), [reason]);
        let lines = said.take("resource=\"pods\"");
        assert_eq!(lines.len(), 1, "{reason}: {lines:?}");
        assert!(lines[0].contains("WARN"), "{lines:?}");
        // A good watch ends it, and the next trouble is news.
        stand.fake.spoil_watches(PODS, None);
        stand.watched().await;
        sleep(Duration::from_secs(6)).await;
        let lines = said.take("resource=\"pods\"");
        assert!(lines.len() == 1 && lines[0].contains("tells again"), "{lines:?}");
        stand.fake.cut();
        stand.watched().await;
        assert_eq!(said.take("resource=\"pods\"").len(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever happens to objects and connections, in the end the endpoints are what the objects say.
    #[test]
    fn the_pool_follows_the_cluster(steps in proptest::collection::vec((0u8..14, 0u8..5, 0u8..4), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let stand = Stand::start(cluster());
            let mut expected: BTreeMap<String, bool> = [("a".to_owned(), true), ("b".to_owned(), true), ("x".to_owned(), false)].into();
            for (what, which, pause) in steps {
                let name = ["a", "b", "c", "d", "x"][usize::from(which)];
                match what {
                    0..=3 => {
                        stand.fake.apply(PODS, pod(name, &format!("10.0.0.{}", which + 1), "a"));
                        expected.insert(name.into(), true);
                    }
                    4 => {
                        stand.fake.apply(PODS, pod(name, "10.0.0.1", "elsewhere"));
                        expected.insert(name.into(), false);
                    }
                    5 => {
                        stand.fake.apply(PODS, pod(name, "", "a"));
                        expected.insert(name.into(), false);
                    }
                    6..=7 => {
                        stand.fake.delete(PODS, name);
                        expected.remove(name);
                    }
                    8 => stand.fake.cut(),
                    9 => stand.fake.end(),
                    10 => stand.fake.compact(),
                    11 => stand.fake.refuse("/", 503),
                    12 => stand.fake.refuse("/", 0),
                    _ => stand.fake.bookmark(PODS),
                }
                sleep(Duration::from_millis([0, 1, 200, 5_000][usize::from(pause)])).await;
            }
            stand.fake.refuse("/", 0);
            let expected: Vec<_> = expected.into_iter().filter(|(_, there)| *there).map(|(n, _)| format!("{n}-rank-0")).collect();
            stand.becomes(&expected.iter().map(String::as_str).collect::<Vec<_>>()).await;
            sleep(LAST_DELAY * 3).await;
            assert_eq!(stand.names(), expected);
        });
    }
}
