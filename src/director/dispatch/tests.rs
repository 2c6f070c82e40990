//! Holding through the director, over the real accounts and the cost picker, in time that the test moves.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Wake};

use smallvec::smallvec;

use super::*;
use crate::config::{Purpose, Settings, Tables, resolve};
use crate::dialect::{Dialects, Wants};
use crate::director::decisions::DecisionLog;
use crate::director::{NamedProducer, Parts};
use crate::domain::{
    EndpointSpec, Explanation, Headers, LoadSample, Outcome, PoolIdentity, Prompt, Segment, Served, SubsetEntry, Usage,
};
use crate::lifecycle::clock::{Clock as _, ManualClock};
use crate::pool::Pool;
use crate::scheduling::plugin::{End, ResponseStart};
use crate::telemetry::metrics::Metrics;

/// Tokens per second that the pods of these tests prefill.
const RATE: u64 = 1_000;

struct World {
    clock: Arc<ManualClock>,
    pool: Arc<Pool>,
    director: Arc<Director>,
}

fn spec(i: usize) -> EndpointSpec {
    EndpointSpec {
        name: format!("pod-{i}"),
        namespace: "default".into(),
        address: SocketAddr::from(([192, 168, (i >> 8) as u8, i as u8], 8000)),
        rank: 0,
        incarnation: 0,
        labels: BTreeMap::new(),
    }
}

/// Pods with a learnt rate and streamed answers, unless `taught` is off.
fn world(pods: usize, dispatch: &str, taught: bool) -> World {
    world_with(pods, "", dispatch, DecisionLog::new(0), taught)
}

/// With more plugins, a YAML list, and a log of decisions.
fn world_with(pods: usize, plugins: &str, dispatch: &str, decisions: DecisionLog, taught: bool) -> World {
    let text = format!(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n{plugins}\
         - {{type: prefill-account-producer, parameters: {{initialPrefillRate: 1000}}}}\n- type: cost-picker\n\
         - {{type: just-in-time-dispatch, parameters: {dispatch}}}\n\
         schedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: cost-picker\n"
    );
    let settings = Settings { allow_experimental: true, ..Settings::default() };
    let config = resolve("test.yaml", Some(text.as_bytes()), settings, &Tables::standard(), Purpose::Check)
        .unwrap_or_else(|e| panic!("{e}"));
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(1));
    let pool = Pool::new(PoolIdentity::default(), Duration::from_secs(2), clock.clone(), Box::new(|_| {}));
    let pool = Arc::new(pool);
    pool.replace((0..pods).map(spec).collect());
    let named = |p: &crate::config::NamedProducer| NamedProducer {
        name: p.name.clone(),
        kind: p.kind,
        producer: p.producer.clone(),
    };
    let director = Director::new(Parts {
        pool: Arc::clone(&pool),
        scheduler: config.scheduler.clone(),
        producers: config.producers.iter().map(named).collect(),
        prefix_producers: Vec::new(),
        commits: config.commits.clone(),
        saturation: config.detector.clone(),
        dispatch: config.dispatch.clone(),
        plugins: config.names.clone(),
        dialects: Dialects::default(),
        metrics: Metrics::new(),
        clock: clock.clone(),
        traces: None,
        decisions: Arc::new(decisions),
        settings: super::super::Settings {
            wants: Wants { prompts: true },
            reads_usage: true,
            ignore_subset: false,
            emit_scores: false,
            access_log: false,
            seed: Some(7),
            test: config.registry.test_switches.clone(),
        },
    });
    let world = World { clock, pool, director: Arc::new(director) };
    if taught {
        for _ in 0..25 {
            let mut sent = world.sent(request(400));
            world.pass(420);
            sent.first_token(&world);
            world.pass(200);
            sent.end(&world);
        }
        // Averages of what was asked for fade, so that tests begin alike.
        world.pass(600_000);
    }
    world
}

fn request(tokens: u64) -> InferenceRequest {
    // No two share a block, so that the caches play no part.
    static PROMPTS: AtomicUsize = AtomicUsize::new(0);
    let first = (PROMPTS.fetch_add(1, Ordering::Relaxed) as u32).wrapping_mul(0x9E37_79B1);
    let ids: Box<[u32]> = (0..tokens as u32).map(|i| first.wrapping_add(i)).collect();
    InferenceRequest {
        id: tokens.to_string().into(),
        path: "/v1/completions".into(),
        model: "m".into(),
        target_model: "m".into(),
        prompts: smallvec![Prompt { segments: smallvec![Segment::Tokens(ids)] }],
        stream: true,
        fairness_id: "default-flow".into(),
        ..InferenceRequest::default()
    }
}

/// A request that was sent.
struct Sent {
    slot: Slot,
    id: Box<str>,
    held: Duration,
    order_key: Option<u64>,
    why: Option<Box<Explanation>>,
    watches: Vec<Box<dyn Watch>>,
}

impl Sent {
    fn of((request, result): Decided) -> Self {
        let Committed { mut decision, watches, held, order_key, .. } = result.unwrap_or_else(|e| panic!("{e}"));
        let why = decision.profiles[0].explanation.take();
        Self { slot: decision.destination().slot, id: request.id, held, order_key, why, watches }
    }

    fn first_token(&mut self, world: &World) {
        let headers = Headers::default();
        let now = world.clock.now();
        let start = ResponseStart { status: 200, headers: &headers, served: &Served::Unreported, now };
        for watch in &mut self.watches {
            watch.response_headers(&start, &mut Vec::new());
            watch.first_token(now);
        }
        world.director.plan();
    }

    fn end(mut self, world: &World) {
        let end = End { outcome: Outcome::Completed, usage: Usage::default(), now: world.clock.now() };
        self.watches.iter_mut().for_each(|watch| watch.finished(&end));
        self.watches.clear();
        world.director.plan();
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll(held: &mut Held) -> Option<Decided> {
    match Pin::new(held).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(decided) => Some(*decided),
        Poll::Pending => None,
    }
}

impl World {
    fn pass(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
    }

    fn submit(&self, request: InferenceRequest) -> Submitted {
        self.director.submit(request, None, true)
    }

    fn sent(&self, request: InferenceRequest) -> Sent {
        match self.submit(request) {
            Submitted::Decided(decided) => Sent::of(*decided),
            Submitted::Held(_) => panic!("held"),
        }
    }

    fn held(&self, request: InferenceRequest) -> Held {
        let Submitted::Held(mut held) = self.submit(request) else { panic!("sent at once") };
        self.director.plan();
        assert!(poll(&mut held).is_none(), "sent by the next plan");
        held
    }

    fn counted(&self, why: Why) -> u64 {
        self.hold().counts.counted(why)
    }

    fn hold(&self) -> &Hold {
        self.director.hold.as_ref().expect("it holds")
    }

    /// Samples and the sum of counters of a metric family.
    fn metric(&self, name: &str) -> u64 {
        let families = self.director.parts.metrics.gather();
        let all = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        all.map(|m| m.get_histogram().get_sample_count() + m.get_counter().get_value() as u64).sum()
    }

    fn looks(&self) -> u64 {
        self.hold().planner.lock().looks
    }

    /// Of those that are held: how many have what is by endpoint, and how many have their hashes.
    fn kept(&self) -> (usize, usize) {
        let planner = self.hold().planner.lock();
        let mut order = Vec::new();
        planner.queue.order(usize::MAX, &mut order);
        let (mut facts, mut chains) = (0, 0);
        for place in order.iter().filter_map(|ticket| planner.queue.get(*ticket)) {
            let waiting = place.borrow().expect("it waits");
            let found = &waiting.signals.prefix[0];
            facts += usize::from(found.matched.capacity() > 0 || found.caches.is_some());
            chains += usize::from(!found.chains.is_empty());
            place.put_back(waiting);
        }
        (facts, chains)
    }

    /// Nothing is held or kept.
    fn assert_empty(&self) {
        assert_eq!(self.hold().held(), 0);
        let mut planner = self.hold().planner.lock();
        self.hold().collect(&mut planner, &mut Vec::new());
        assert!(planner.queue.is_empty());
        assert_eq!(planner.queue.bytes(), 0);
    }
}

#[test]
fn a_free_endpoint_is_used_at_once_and_a_busy_one_waited_for() {
    let world = world(1, "{}", true);
    let mut long = world.sent(request(RATE));
    assert_eq!(long.held, Duration::ZERO);
    let mut held = world.held(request(RATE / 10));
    assert!(world.director.plan().is_some_and(|at| at == world.clock.now().plus(TICK)));
    // The endpoint has about one second to compute; below 200 ms it may have the next one.
    world.pass(700);
    world.director.plan();
    assert!(poll(&mut held).is_none());
    world.pass(200);
    world.director.plan();
    let mut next = Sent::of(poll(&mut held).expect("sent"));
    assert_eq!(next.held, Duration::from_millis(900));
    assert_eq!(world.director.plan(), None, "nothing is held");
    long.first_token(&world);
    next.first_token(&world);
    assert_eq!((world.counted(Why::Held), world.counted(Why::Cancelled)), (1, 0));
    world.assert_empty();
}

#[test]
fn a_first_token_lets_the_next_one_go_and_wakes_its_stream() {
    let world = world(1, "{}", true);
    let mut long = world.sent(request(2 * RATE));
    let mut held = world.held(request(RATE / 10));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    assert!(Pin::new(&mut held).poll(&mut Context::from_waker(&waker)).is_pending());
    world.pass(100);
    long.first_token(&world);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    Sent::of(poll(&mut held).expect("sent"));
}

#[test]
fn the_order_is_arrival_and_prefill_and_priority_goes_first() {
    let world = world(1, "{}", true);
    let mut running = world.sent(request(3 * RATE));
    // Each takes longer than the endpoint may be busy, so one is sent at a time.
    let urgent = InferenceRequest { priority: 5, ..request(RATE) };
    let mut waiting: Vec<Held> = Vec::new();
    for request in [request(2 * RATE), request(600), request(300), urgent] {
        waiting.push(world.held(request));
        world.pass(10);
    }
    let mut order = Vec::new();
    while order.len() < 4 {
        // As long as its prefill takes, so that what is learnt of the rate stays right.
        world.pass(running.id.parse::<u64>().expect("its tokens") * 1_000 / RATE + 20);
        running.first_token(&world);
        let ready: Vec<Sent> = waiting.iter_mut().filter_map(|held| held.take().map(|done| Sent::of(*done))).collect();
        assert_eq!(ready.len(), 1, "one prefill at a time");
        for sent in ready {
            order.push(sent.id.to_string());
            running = sent;
        }
    }
    assert_eq!(order, ["1000", "300", "600", "2000"]);
    world.assert_empty();
}

#[test]
fn an_early_short_one_is_not_passed_over_for_ever() {
    // Its key grows by 20 s for a second of prefill, so what comes 21 s later does not go first.
    let world = world(1, "{maxHold: 10m}", true);
    let mut running = world.sent(request(30 * RATE));
    let mut first = world.held(request(RATE));
    world.pass(21_000);
    let mut second = world.held(request(RATE / 50));
    running.first_token(&world);
    assert!(poll(&mut first).is_some() && poll(&mut second).is_none());
}

#[test]
fn who_leaves_frees_the_place_and_what_was_reserved() {
    let world = world(1, "{}", true);
    let mut running = world.sent(request(2 * RATE));
    let body = bytes::Bytes::from(vec![b'x'; 1000]);
    let gone = world.held(InferenceRequest { body: body.clone(), ..request(RATE) });
    let mut stays = world.held(request(RATE));
    assert_eq!(world.hold().held(), 2);
    drop(gone);
    assert_eq!(world.hold().held(), 1);
    assert!(body.is_unique(), "the body is not kept");
    world.pass(100);
    running.first_token(&world);
    // Sent to nobody: the reservation of one that is dropped after the decision is given back.
    assert!(stays.take().is_some());
    drop(stays);
    world.assert_empty();
    let mut again = world.sent(request(RATE / 10));
    again.first_token(&world);
    assert_eq!(world.counted(Why::Cancelled), 1);
}

#[test]
fn nobody_is_held_for_longer_than_allowed() {
    let world = world(2, "{maxHold: 3s}", true);
    let _running: Vec<Sent> = (0..2).map(|_| world.sent(request(30 * RATE))).collect();
    let mut held = world.held(request(RATE));
    world.pass(2_990);
    assert!(world.director.plan().is_some());
    assert!(poll(&mut held).is_none());
    world.pass(10);
    assert_eq!(world.director.plan(), None);
    let sent = Sent::of(poll(&mut held).expect("sent whatever the wait"));
    assert_eq!(sent.held, Duration::from_secs(3));
    assert_eq!(world.counted(Why::Expired), 1);
    world.assert_empty();
}

#[test]
fn beyond_the_bounds_the_newest_of_the_lowest_priority_is_refused() {
    for bound in ["{maxRequests: 2}", "{maxBytes: 9000}"] {
        let world = world(1, bound, true);
        let _running = world.sent(request(30 * RATE));
        let body = bytes::Bytes::from(vec![b'x'; 100]);
        // The ids of a thousand tokens count, too.
        let of = |priority| InferenceRequest { priority, body: body.clone(), ..request(RATE) };
        let mut low = world.held(of(0));
        let mut middle = world.held(of(1));
        let refused = |held: &mut Held| {
            let (_, result) = poll(held).expect("decided");
            result.err().map(|refused| (refused.status(), refused.reason().map(|r| r.as_str())))
        };
        let Submitted::Held(mut lowest) = world.submit(of(0)) else { panic!("{bound}") };
        world.director.plan();
        assert_eq!(refused(&mut lowest), Some((429, Some("rejected-saturated"))), "{bound}");
        let mut high = world.held(of(9));
        assert_eq!(refused(&mut low), Some((429, Some("rejected-saturated"))), "{bound}");
        assert!(poll(&mut middle).is_none() && poll(&mut high).is_none());
        assert_eq!((world.hold().held(), world.counted(Why::Full)), (2, 2));
    }
}

#[test]
fn what_is_not_known_well_enough_is_sent_at_once() {
    // No answers yet.
    let fresh = world(1, "{}", false);
    let _sent: Vec<Sent> = (0..3).map(|_| fresh.sent(request(10 * RATE))).collect();
    assert_eq!(fresh.counted(Why::NotStreamed), 3);
    // Answers, but a rate that is not learnt.
    let learning = world(1, "{minSamples: 1000}", true);
    let before = learning.counted(Why::Learning);
    let _sent: Vec<Sent> = (0..3).map(|_| learning.sent(request(10 * RATE))).collect();
    assert_eq!(learning.counted(Why::Learning) - before, 3);
    // A data plane that does not wait.
    let world = world(1, "{}", true);
    for _ in 0..3 {
        assert!(matches!(world.director.submit(request(10 * RATE), None, false), Submitted::Decided(_)));
    }
    assert_eq!(world.counted(Why::TimeLimit), 3);
}

#[test]
fn answers_in_one_piece_end_the_holding() {
    let world = world(1, "{}", true);
    for _ in 0..40 {
        let mut sent = world.sent(InferenceRequest { stream: false, ..request(100) });
        world.pass(500);
        sent.first_token(&world);
        sent.end(&world);
    }
    let _sent: Vec<Sent> = (0..3).map(|_| world.sent(request(10 * RATE))).collect();
    assert!(world.counted(Why::NotStreamed) >= 3);
}

#[test]
fn immediate_computes_the_key_and_off_does_nothing() {
    let immediate = world(1, "{mode: immediate, writePriority: true}", true);
    let now = immediate.clock.now();
    let key = immediate.sent(request(RATE)).order_key.expect("a key");
    let ahead = Timestamp(key).since(now).as_secs_f64();
    assert!((17.0..=23.0).contains(&ahead), "20 times a second of prefill, by the learnt rate: {ahead}");
    assert!(!immediate.director.holds());
    let off = world(1, "{mode: off}", true);
    assert_eq!(off.sent(request(RATE)).order_key, None);
    assert!(off.director.hold.is_none());
}

#[test]
fn an_endpoint_that_nobody_may_use_costs_no_further_rounds_and_is_found_by_who_may() {
    let world = world(2, "{}", true);
    let only = |i: usize| SubsetHint { entries: vec![SubsetEntry::Address(spec(i).address)] };
    let submit = |request, subset: &SubsetHint| world.director.submit(request, Some(subset), true);
    let running = submit(request(20 * RATE), &only(0));
    assert!(matches!(running, Submitted::Decided(_)));
    let held: Vec<Submitted> = (0..40).map(|_| submit(request(RATE), &only(0))).collect();
    world.director.plan();
    assert!(held.iter().all(|held| matches!(held, Submitted::Held(_))));
    assert!(!world.hold().planner.lock().barren.is_empty());
    let Submitted::Held(mut other) = world.submit(request(RATE)) else { panic!("others wait") };
    world.director.plan();
    let sent = Sent::of(poll(&mut other).expect("the second endpoint is free"));
    let snapshot = world.pool.snapshot();
    assert_eq!(Some(sent.slot), snapshot.topology.by_address(&spec(1).address));
}

#[test]
fn a_head_that_may_not_use_a_free_endpoint_does_not_keep_it_from_those_behind() {
    let world = world(2, "{maxHold: 1h, orderWeight: 0}", true);
    let only = |i: usize| SubsetHint { entries: vec![SubsetEntry::Address(spec(i).address)] };
    let submit = |request, subset: &SubsetHint| world.director.submit(request, Some(subset), true);
    let Submitted::Decided(_running) = submit(request(20 * RATE), &only(0)) else { panic!("it is free") };
    let Submitted::Decided(second) = submit(request(20 * RATE), &only(1)) else { panic!("it is free") };
    let _head: Vec<Submitted> = (0..150).map(|_| submit(request(RATE), &only(0))).collect();
    let mut last = world.held(request(RATE));
    Sent::of(*second).first_token(&world);
    let mut rounds = 0;
    let sent = loop {
        if let Some(decided) = poll(&mut last) {
            break Sent::of(decided);
        }
        rounds += 1;
        assert!(rounds < 50, "the free endpoint is not found within ten seconds");
        let before = world.looks();
        for _ in 0..10 {
            world.pass(20);
            world.director.plan();
        }
        assert!(world.looks() - before <= 64 + 32, "at most one round in BARREN");
    };
    let snapshot = world.pool.snapshot();
    assert_eq!(Some(sent.slot), snapshot.topology.by_address(&spec(1).address));
}

#[test]
fn behind_such_a_head_order_is_kept() {
    let world = world(2, "{maxHold: 1h, orderWeight: 0}", true);
    let only = |i: usize| SubsetHint { entries: vec![SubsetEntry::Address(spec(i).address)] };
    let submit = |priority, subset: Option<&SubsetHint>| {
        world.director.submit(InferenceRequest { priority, ..request(RATE) }, subset, true)
    };
    let Submitted::Decided(_running) = submit(0, Some(&only(0))) else { panic!("it is free") };
    let Submitted::Decided(first) = submit(0, Some(&only(1))) else { panic!("it is free") };
    let _head: Vec<Submitted> = (0..70).map(|_| submit(2, Some(&only(0)))).collect();
    let mut waiting: Vec<(i32, Submitted)> = (0..60).map(|_| (0, submit(0, None))).collect();
    waiting.extend((0..40).map(|_| (1, submit(1, None))));
    let mut running = vec![Sent::of(*first)];
    let mut order = Vec::new();
    for _ in 0..4_000 {
        world.pass(20);
        running.drain(..).for_each(|mut sent| sent.first_token(&world));
        world.director.plan();
        for (priority, submitted) in &mut waiting {
            let Submitted::Held(held) = submitted else { panic!("both are busy") };
            if let Some(decided) = held.take() {
                order.push(*priority);
                running.push(Sent::of(*decided));
            }
        }
        if order.len() == 50 {
            break;
        }
    }
    assert_eq!(order, [[1; 40].as_slice(), &[0; 10]].concat());
}

#[test]
fn endpoints_that_go_or_come_are_seen() {
    let world = world(1, "{}", true);
    let _running = world.sent(request(30 * RATE));
    let mut held = world.held(request(RATE));
    world.pool.replace(vec![spec(0), spec(1)]);
    world.director.plan();
    assert!(poll(&mut held).is_some(), "there is a new one");
    let _second = world.sent(request(30 * RATE));
    let mut held = world.held(request(RATE));
    world.pool.replace(Vec::new());
    world.pass(60_000);
    world.director.plan();
    let (_, result) = poll(&mut held).expect("decided");
    assert_eq!(result.err(), Some(Rejection::no_endpoints()));
    world.assert_empty();
}

/// What the metrics of the only endpoint say from now on.
fn report(world: &World, waiting: f32, kv_usage: f32) {
    let sample = LoadSample {
        taken_at: world.clock.now(),
        waiting: Some(waiting),
        kv_usage: Some(kv_usage),
        detail: Arc::new(crate::domain::load::LoadDetail {
            block_size: Some(16),
            num_blocks: Some(1_000),
            ..Default::default()
        }),
        ..LoadSample::default()
    };
    let endpoint = Arc::clone(world.pool.snapshot().topology.endpoints().next().expect("one"));
    world.pool.report(endpoint.slot, endpoint.generation, &sample);
    let mut publishing = std::pin::pin!(world.pool.publish_samples());
    assert!(publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[test]
fn an_endpoint_without_room_is_waited_for() {
    let world = world(1, "{}", true);
    let mut running = world.sent(request(100));
    running.first_token(&world);
    report(&world, 0.0, 0.95);
    let mut held = world.held(request(1_000));
    report(&world, 0.0, 0.5);
    world.director.plan();
    assert!(poll(&mut held).is_some());
}

#[test]
fn what_others_have_waiting_is_not_waited_for() {
    let world = world(1, "{}", true);
    // A backlog that this picker had no part in, and whose end it would not see.
    report(&world, 1_000.0, 0.5);
    let mut first = world.sent(request(RATE));
    // It does wait for its own.
    let mut second = world.held(request(RATE));
    first.first_token(&world);
    report(&world, 1_000.0, 0.5);
    world.director.plan();
    assert!(poll(&mut second).is_some());
}

#[test]
fn ten_thousand_cost_little_to_plan() {
    let world = world(8, "{maxRequests: 20000, maxHold: 1h}", true);
    let _running: Vec<Sent> = (0..8).map(|_| world.sent(request(10 * RATE))).collect();
    let _held: Vec<Submitted> = (0..10_000).map(|i| world.submit(request(50 + i % 50))).collect();
    world.director.plan();
    assert_eq!(world.hold().held(), 10_000);
    // Counted, not timed: a plan under overload looks at nobody.
    let before = world.looks();
    for _ in 0..1_000 {
        world.clock.advance(Duration::from_micros(500));
        world.director.plan();
    }
    assert_eq!(world.looks(), before);
}

#[test]
fn a_look_that_ends_in_waiting_is_in_no_metric_and_takes_no_sample() {
    const SCHEDULED: &str = "llm_d_epp_scheduler_e2e_duration_seconds";
    const ATTEMPTS: &str = "llm_d_epp_scheduler_attempts_total";
    let world = world_with(2, "", "{}", DecisionLog::new(10).with_rate(1), true);
    let only = |i: usize| SubsetHint { entries: vec![SubsetEntry::Address(spec(i).address)] };
    let sent = |submitted| match submitted {
        Submitted::Decided(decided) => Sent::of(*decided),
        Submitted::Held(_) => panic!("held"),
    };
    let first = sent(world.director.submit(request(30 * RATE), Some(&only(0)), true));
    assert!(first.why.is_some(), "the first of its second");
    assert!(sent(world.director.submit(request(100), Some(&only(1)), true)).why.is_none(), "one a second");
    world.pass(1_000);
    let counted = |world: &World| (world.metric(SCHEDULED), world.metric(ATTEMPTS));
    let before = counted(&world);
    let Submitted::Held(mut held) = world.director.submit(request(RATE), Some(&only(0)), true) else { panic!("sent") };
    for _ in 0..9 {
        // The second endpoint is free, so it is looked for a taker.
        world.director.plan();
        world.pass(10);
    }
    assert!(world.looks() >= 9 && held.take().is_none());
    assert_eq!(counted(&world), before);
    drop(first);
    world.director.plan();
    let sent = Sent::of(*held.take().expect("sent"));
    let why = sent.why.expect("the sample of this second was not used up by looks");
    assert!(!why.scores_only && why.costs.is_some());
    assert_eq!(why.candidates, [sent.slot]);
    assert_eq!(counted(&world), (before.0 + 1, before.1 + 1));
}

#[test]
fn a_process_that_stops_sends_what_it_holds_and_holds_nothing_more() {
    let world = world(2, "{}", true);
    let _running: Vec<Sent> = (0..2).map(|_| world.sent(request(30 * RATE))).collect();
    let mut held: Vec<Held> = (0..STOPPING_PER_PLAN + 40).map(|_| world.held(request(RATE))).collect();
    let urgent = InferenceRequest { priority: 1, ..request(RATE) };
    held.push(world.held(urgent));
    world.director.stop_holding();
    let mut sent: Vec<Sent> = held.pop().and_then(|mut held| held.take()).map(|d| Sent::of(*d)).into_iter().collect();
    assert_eq!(sent.len(), 1, "in order");
    sent.extend(held.iter_mut().filter_map(|held| held.take().map(|decided| Sent::of(*decided))));
    assert_eq!(sent.len(), STOPPING_PER_PLAN, "others get a word in between");
    sent.push(world.sent(request(RATE)));
    assert_eq!(world.director.plan(), None);
    sent.extend(held.iter_mut().filter_map(|held| held.take().map(|decided| Sent::of(*decided))));
    assert_eq!(sent.len(), STOPPING_PER_PLAN + 42);
    let here = sent.iter().filter(|sent| sent.slot == sent_slot(&world, 0)).count();
    assert!(here.abs_diff(sent.len() / 2) <= 2, "{here}: each to what is best when it goes");
    assert_eq!((world.counted(Why::Drained), world.counted(Why::Stopping)), (STOPPING_PER_PLAN as u64 + 41, 1));
    world.assert_empty();
}

fn sent_slot(world: &World, i: usize) -> Slot {
    world.pool.snapshot().topology.by_address(&spec(i).address).expect("it is there")
}

const MIRROR: &str = "- {type: mirror-prefix-cache-producer}\n";

#[test]
fn what_is_cached_is_found_again_for_one_that_waited() {
    for warm in 0..2 {
        let world = world_with(2, MIRROR, "{}", DecisionLog::new(0), true);
        let only = |i: usize| SubsetHint { entries: vec![SubsetEntry::Address(spec(i).address)] };
        let asked = request(500);
        let Submitted::Decided(first) = world.director.submit(asked.clone(), Some(&only(warm)), true) else {
            panic!("held")
        };
        let mut first = Sent::of(*first);
        world.pass(520);
        first.first_token(&world);
        first.end(&world);
        let running: Vec<Sent> = (0..2).map(|_| world.sent(request(30 * RATE))).collect();
        let mut held = world.held(asked);
        assert_eq!(world.kept(), (0, 1));
        drop(running);
        world.director.plan();
        assert_eq!(Sent::of(*held.take().expect("sent")).slot, sent_slot(&world, warm));
    }
}

#[test]
fn what_grows_with_the_pool_is_kept_for_the_head_only() {
    let world = world_with(2, MIRROR, "{planDepth: 2}", DecisionLog::new(0), true);
    let only = SubsetHint { entries: vec![SubsetEntry::Address(spec(0).address)] };
    let submit = |priority| {
        let submitted = world.director.submit(InferenceRequest { priority, ..request(RATE) }, Some(&only), true);
        world.director.plan();
        submitted
    };
    let _running = world.director.submit(request(30 * RATE), Some(&only), true);
    let mut held: Vec<Submitted> = (0..10).map(|_| submit(0)).collect();
    assert!(held.iter().all(|held| matches!(held, Submitted::Held(_))));
    // The second endpoint is open to nobody, so each plan looks at the head.
    let settled = |rounds: u32| {
        for _ in 0..rounds {
            world.pass(60);
            world.director.plan();
        }
        world.kept()
    };
    assert_eq!(settled(5), (2 * REFRESH, 10));
    held.extend((0..3).map(|_| submit(1)));
    assert_eq!(settled(5), (2 * REFRESH, 13));
    let bytes = world.hold().planner.lock().queue.bytes();
    let ids = 13 * RATE * 4;
    assert!((ids..ids + 13 * 8 * (RATE / 64 + 4)).contains(&bytes), "{bytes}: ids and hashes");
}
