use smallvec::smallvec;

use super::*;
use crate::domain::node::{Problems, Value};
use crate::domain::{Headers, Segment, Served};
use crate::scheduling::plugin::Registry;
use crate::signals::prefix::fixtures::{commit, commit_at, produce, request, snapshot};
use crate::signals::prefix::{DEBUG_ENDPOINTS, fixtures};

fn make(parameters: &[(&str, Value)]) -> (Option<Built>, Problems, Registry) {
    fixtures::make(build, parameters)
}

fn built(parameters: &[(&str, Value)]) -> Built {
    make(parameters).0.unwrap()
}

fn end(second: u64, prompt_tokens: Option<u64>, cached_tokens: Option<u64>) -> End {
    let usage = Usage { prompt_tokens, cached_tokens, completion_tokens: None };
    End { outcome: Outcome::Completed, usage, now: Timestamp::from_millis(second * 1_000) }
}

/// Sends `request` to the endpoint in slot 1 at `second`.
fn send(built: &Built, request: &InferenceRequest, pool: &Snapshot, second: u64) -> Box<dyn Watch> {
    let at = Timestamp::from_millis(second * 1_000);
    commit_at(at, built, request, pool, &produce(built, request, pool), &[1]).unwrap()
}

/// `request`, as received at `second`.
fn at(second: u64, request: &InferenceRequest) -> InferenceRequest {
    InferenceRequest { received_at: Timestamp::from_millis(second * 1_000), ..request.clone() }
}

/// What the debug page says of the endpoint in slot 1.
fn page(built: &Built) -> serde_json::Value {
    let page = built.producer.as_ref().unwrap().debug_state().unwrap();
    page["endpoints"].as_array().unwrap().iter().find(|e| e["slot"] == 1).unwrap().clone()
}

fn number(page: &serde_json::Value) -> f64 {
    page.as_f64().unwrap()
}

#[test]
fn a_prompt_is_present_from_its_routing_and_ages_from_its_end() {
    let (built, problems, registry) = make(&[]);
    let built = built.unwrap();
    assert!(problems.errors.is_empty() && problems.warnings.is_empty());
    for need in [Need::Prompts, Need::Usage, Need::Metric(Metric::CacheInfo)] {
        assert!(registry.needs(&need));
    }
    // 200 engine blocks of 16 tokens are 50 of ours; of these a request in flight keeps 16 free.
    let pool = snapshot(Some((16, 200)));
    let (a, b) = (request(&[b'a'; 256 * 40]), request(&[b'b'; 256 * 20]));
    let matched = |r: &InferenceRequest| produce(&built, r, &pool).prefix[0].matched.clone();
    let mut first = send(&built, &a, &pool, 10);
    assert_eq!((matched(&a), page(&built)["room"].clone()), (vec![0, 40], 34.into()));
    let caches = |second| produce(&built, &at(second, &b), &pool).prefix[0].caches.clone().unwrap();
    assert_eq!(caches(15).oldest_age, [f32::INFINITY; 2], "nothing can go");
    assert!(caches(15).capacity[0].is_nan() && caches(15).capacity[1] == 3_200.0);
    first.finished(&end(20, None, None));
    assert_eq!(matched(&a), [0, 40]);
    assert_eq!(caches(25).oldest_age, [f32::INFINITY; 2], "there is room");
    let mut second = send(&built, &b, &pool, 30);
    assert_eq!((matched(&a), matched(&b)), (vec![0, 14], vec![0, 20]), "from its tail");
    assert_eq!(caches(45).oldest_age, [f32::INFINITY, 25.0]);
    second.finished(&end(50, None, None));
    // The oldest is still of the first, used again now; an age above half a second is a sample.
    assert_eq!(caches(50).reuse_age, 30.0);
    drop(send(&built, &a, &pool, 130));
    let expected = 0.99 * 30.0 + 0.01 * 110.0;
    assert!((caches(130).reuse_age - expected).abs() < 1e-3);
    drop(send(&built, &a, &pool, 130));
    assert!((caches(130).reuse_age - expected).abs() < 1e-3, "at once is none");
    assert_eq!(registry.producers(SignalKind::Prefix).count(), 1);
}

#[test]
fn caches_are_described_to_those_who_ask() {
    for asked in [false, true] {
        let (built, _, mut registry) = make(&[]);
        if asked {
            registry.needs.insert(Need::Caches, vec!["somebody".to_owned()]);
        }
        registry.settle();
        let pool = snapshot(Some((16, 200)));
        let found = produce(&built.unwrap(), &request(&[b'a'; 256 * 4]), &pool).prefix[0].clone();
        assert_eq!(found.caches.is_some(), asked);
    }
}

#[test]
fn a_request_that_waited_is_looked_up_without_its_body() {
    let built = built(&[]);
    let (pool, mut waiting) = (snapshot(None), request(&[b'x'; 256 * 6]));
    let mut signals = produce(&built, &waiting, &pool);
    waiting.body = bytes::Bytes::new();
    drop(send(&built, &request(&[b'x'; 256 * 4]), &pool, 1));
    let producer = built.producer.as_ref().unwrap();
    producer.refresh(&waiting, &pool, &mut signals);
    assert_eq!((signals.prefix[0].total_blocks, &signals.prefix[0].matched[..]), (6, &[0, 4][..]));
    // Another block size makes other chains.
    let larger = snapshot(Some((128, 100)));
    let whole = request(&[b'x'; 256 * 6]);
    producer.refresh(&whole, &larger, &mut signals);
    assert_eq!((signals.prefix[0].block_tokens, signals.prefix[0].total_blocks), (128, 3));
    assert_eq!(signals.prefix[0].caches.as_ref().unwrap().capacity[1], 12_800.0);
}

#[test]
fn bytes_per_token_convert_and_never_change_the_blocks() {
    let built = built(&[("correctCapacity", Value::Bool(false))]);
    let pool = snapshot(Some((16, 4_000)));
    let text = request(&[b'x'; 256 * 20]);
    let before = produce(&built, &text, &pool);
    assert_eq!((before.prefix[0].learnt_block_tokens, before.prefix[0].prompt_tokens), (0.0, None));
    // Two bytes per token: a block of 256 bytes has 128 tokens, and the cache half as many blocks.
    for second in 0..50 {
        send(&built, &text, &pool, second).finished(&end(second, Some(2_560), Some(0)));
    }
    let after = produce(&built, &text, &pool);
    let found = &after.prefix[0];
    assert_eq!((&found.chains, found.block_tokens, found.blocks(Slot(1))), (&before.prefix[0].chains, 64, 20));
    assert!((found.learnt_block_tokens - 128.0).abs() < 1.0);
    assert!(found.tokens(Slot(1)).abs_diff(2_560) < 20 && found.prompt_tokens.unwrap().abs_diff(2_560) < 20);
    assert_eq!(found.caches.as_ref().unwrap().capacity[1], 64_000.0);
    let page = page(&built);
    assert!(number(&page["capacity"]).abs() - 500.0 < 6.0 && (number(&page["bytesPerToken"]) - 2.0).abs() < 0.02);
    assert_eq!((number(&page["correction"]), &page["reportedTokens"]), (1.0, &64_000.into()));
    // Another model knows what all models had, a request of another endpoint its own capacity only.
    let other = InferenceRequest { target_model: "n".into(), ..text.clone() };
    assert!((produce(&built, &other, &pool).prefix[0].learnt_block_tokens - 128.0).abs() < 1.0);
    // Counts that contradict themselves and those of failed requests teach nothing.
    let learnt = |built: &Built| produce(built, &text, &pool).prefix[0].learnt_block_tokens;
    let fresh = make(&[]).0.unwrap();
    send(&fresh, &text, &pool, 1).finished(&end(1, Some(2_560), Some(3_000)));
    send(&fresh, &text, &pool, 2).finished(&End { outcome: Outcome::UpstreamError, ..end(2, Some(2_560), None) });
    send(&fresh, &text, &pool, 3).finished(&end(3, None, Some(4)));
    assert_eq!(learnt(&fresh), 0.0);
}

#[test]
fn the_capacity_follows_what_was_delivered() {
    let pool = snapshot(Some((64, 1_000)));
    let text = request(&[b'x'; 256 * 20]);
    let correction = |built: &Built| number(&page(built)["correction"]);
    let run = |parameters: &[(&str, Value)], picks: &[u32], cached, served: Served, outcome| {
        let built = built(parameters);
        send(&built, &text, &pool, 1).finished(&end(2, None, None));
        let at = Timestamp::from_millis(3_000);
        let mut watch = commit_at(at, &built, &text, &pool, &produce(&built, &text, &pool), picks).unwrap();
        let headers = Headers::default();
        let start = ResponseStart { status: 200, headers: &headers, served: &served, now: at };
        watch.response_headers(&start, &mut Vec::new());
        watch.finished(&End { outcome, ..end(4, Some(1_280), cached) });
        correction(&built)
    };
    let (here, elsewhere) = (Served::By("10.0.0.2:8000".into()), Served::By("10.0.0.1:8000".into()));
    let done = Outcome::Completed;
    assert_eq!(run(&[], &[1], Some(0), here.clone(), done), 0.95);
    assert_eq!(run(&[], &[1], Some(0), Served::Unreported, done), 0.95);
    assert_eq!(run(&[], &[1], Some(1_216), here.clone(), done), 1.0, "the last block is never reused");
    assert_eq!(run(&[], &[1], Some(0), elsewhere, done), 1.0);
    assert_eq!(run(&[], &[1], Some(0), here.clone(), Outcome::ClientDisconnect), 1.0);
    assert_eq!(run(&[], &[1], None, here.clone(), done), 1.0);
    assert_eq!(run(&[], &[1, 0], Some(0), here.clone(), done), 1.0, "a prefill endpoint had a part in it");
    assert_eq!(run(&[("correctCapacity", Value::Bool(false))], &[1], Some(0), here, done), 1.0);

    // While the first is in flight, the second may come too early to find it computed.
    let built = built(&[]);
    let (mut first, mut second) = (send(&built, &text, &pool, 1), send(&built, &text, &pool, 2));
    first.finished(&end(3, Some(1_280), Some(0)));
    second.finished(&end(4, Some(1_280), Some(0)));
    assert_eq!(correction(&built), 1.0);
    // The view follows at once, and another capacity in the metrics starts anew.
    send(&built, &text, &pool, 5).finished(&end(6, Some(1_280), Some(0)));
    let capacity = |pool: &Snapshot| produce(&built, &text, pool).prefix[0].caches.as_ref().unwrap().capacity[1];
    assert_eq!(capacity(&pool), 64_000.0 * 0.95);
    assert_eq!(capacity(&snapshot(None)), 64_000.0 * 0.95, "a missed scrape takes nothing away");
    assert_eq!(capacity(&snapshot(Some((64, 500)))), 32_000.0);
}

/// A server with an LRU cache of its own, in blocks of 64 tokens, against the mirror of it: sessions that grow and come
/// back, for as long as `requests` last. Returns the correction and the share of prompt tokens falsely predicted
/// in the last quarter.
fn simulate(reported: u32, actual: usize, requests: usize) -> (f64, f64) {
    let built = built(&[("outputReserveTokens", Value::Integer(0))]);
    let pool = snapshot(Some((64, reported)));
    let mut rng = fastrand::Rng::with_seed(7);
    let mut sessions: Vec<Vec<u32>> = Vec::new();
    // The true cache: blocks by (session, depth), next to go first.
    let mut cache: Vec<(u32, usize)> = Vec::new();
    let (mut wrong, mut all, mut fresh) = (0, 0, 0);
    for i in 0..requests {
        if sessions.len() < 40 || rng.u8(0..10) == 0 {
            fresh += 1;
            sessions.push(vec![fresh]);
        }
        if sessions.len() > 40 {
            sessions.remove(0);
        }
        let at = rng.usize(0..sessions.len());
        let grown = sessions[at].len() + rng.usize(1..8);
        let id = sessions[at][0];
        sessions[at].resize(grown, id);
        let prompt = Prompt {
            segments: smallvec![Segment::Tokens(
                (0..grown * 64).map(|n| id << 16 | n as u32).collect::<Vec<_>>().into()
            )],
        };
        let request = InferenceRequest { target_model: "m".into(), prompts: smallvec![prompt], ..Default::default() };
        let signals = produce(&built, &request, &pool);
        let predicted = signals.prefix[0].blocks(Slot(1)) as usize;
        let now = Timestamp::from_millis(i as u64 * 1_000);
        let mut watch = commit_at(now, &built, &request, &pool, &signals, &[1]).unwrap();
        let delivered = (0..grown).take_while(|depth| cache.contains(&(id, *depth))).count();
        cache.retain(|(session, _)| *session != id);
        cache.extend((0..grown).rev().map(|depth| (id, depth)));
        let excess = cache.len().saturating_sub(actual);
        cache.drain(..excess);
        if i >= requests * 3 / 4 {
            wrong += predicted.saturating_sub(delivered);
            all += grown;
        }
        watch.finished(&end(i as u64, Some(grown as u64 * 64), Some(delivered as u64 * 64)));
    }
    (number(&page(&built)["correction"]), wrong as f64 / all as f64)
}

#[test]
fn the_mirror_of_an_engine_is_exact_and_finds_a_capacity_that_is_wrong() {
    let (correction, wrong) = simulate(400, 400, 300);
    assert_eq!((correction, wrong), (1.0, 0.0));
    let (correction, wrong) = simulate(800, 400, 1_200);
    assert!((0.4..0.62).contains(&correction) && wrong < 0.04, "{correction} {wrong}");
    let (correction, wrong) = simulate(200, 400, 1_200);
    assert!((1.6..2.1).contains(&correction) && wrong < 0.02, "{correction} {wrong}");
}

#[test]
fn without_metrics_the_configured_capacity_stands() {
    let built = built(&[("lruCapacityPerServer", Value::Integer(100)), ("autoTune", Value::Bool(false))]);
    // Metrics are there and not asked for.
    let (pool, text) = (snapshot(Some((16, 100))), request(&[b'x'; 256 * 20]));
    drop(send(&built, &text, &pool, 1));
    let state = built.producer.as_ref().unwrap().debug_state().unwrap();
    assert_eq!((&state["reportedCapacities"], &state["assumedCapacities"]), (&0.into(), &2.into()));
    assert_eq!((&page(&built)["capacity"], &page(&built)["reportedTokens"]), (&100.into(), &serde_json::Value::Null));
    assert!(produce(&built, &text, &pool).prefix[0].caches.as_ref().unwrap().capacity.iter().all(|c| c.is_nan()));
    // Two bytes per token do not change a capacity in blocks.
    send(&built, &text, &pool, 2).finished(&end(3, Some(2_560), None));
    assert_eq!(page(&built)["capacity"], 100);
}

#[test]
fn every_request_in_flight_keeps_room_free_however_short_and_however_it_ends() {
    let built = built(&[]);
    let pool = snapshot(Some((16, 400)));
    let short = request(b"hello");
    let long = request(&[b'x'; 256 * 90]);
    send(&built, &long, &pool, 1).finished(&end(2, None, None));
    let (first, mut second) = (send(&built, &short, &pool, 3), send(&built, &short, &pool, 3));
    assert_eq!((&page(&built)["inFlight"], &page(&built)["room"]), (&2.into(), &(100 - 32).into()));
    second.finished(&end(4, None, None));
    second.finished(&end(4, None, None));
    drop(first);
    drop(second);
    assert_eq!((&page(&built)["inFlight"], &page(&built)["room"]), (&0.into(), &100.into()));
    // An endpoint that leaves takes its blocks with it; a late end changes nothing.
    let mut late = send(&built, &long, &pool, 5);
    built.commit.as_ref().unwrap().endpoint_removed(pool.topology.get(Slot(1)).unwrap());
    late.finished(&end(6, Some(2_560), Some(0)));
    assert_eq!(produce(&built, &long, &pool).prefix[0].matched, [0, 0]);
    assert_eq!(built.producer.as_ref().unwrap().size(), Some(0));
    // A prefill endpoint learns the prompt too; the same endpoint twice learns it once.
    let signals = produce(&built, &long, &pool);
    let twice = commit(&built, &long, &pool, &signals, &[0, 0]);
    assert_eq!((produce(&built, &long, &pool).prefix[0].matched[0], twice.is_some()), (90, true));
}

#[test]
fn wrong_parameters_are_named() {
    for (parameters, path) in [
        (vec![("maxPrefixTokensToMatch", Value::Integer(-1))], "parameters.maxPrefixTokensToMatch"),
        (vec![("blockSizeTokens", Value::Integer(1 << 40))], "parameters.blockSizeTokens"),
        (vec![("autoTune", Value::Bool(false)), ("blockSizeTokens", Value::Integer(0))], "parameters.blockSizeTokens"),
        (vec![("maxIndexBytes", Value::String("1Ki".into()))], "parameters.maxIndexBytes"),
        (vec![("outputReserveTokens", Value::Integer(-1))], "parameters.outputReserveTokens"),
        (vec![("correctCapacity", Value::Integer(1))], "parameters.correctCapacity"),
    ] {
        let (_, problems, _) = make(&parameters);
        let paths: Vec<_> = problems.errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, [path]);
        assert!(problems.errors.iter().all(|e| !e.fix.is_empty()));
    }
}

#[test]
fn the_debug_page_is_bounded_and_says_where_capacities_come_from() {
    let built = built(&[]);
    let (pool, text) = (snapshot(Some((16, 1_000))), request(&[b'x'; 256 * 3]));
    send(&built, &text, &pool, 1).finished(&end(2, Some(192), None));
    let index = built.handle.clone().unwrap().downcast::<Index>().ok().unwrap();
    for slot in 2..200 {
        drop(index.insert(slot, 1, &[7, 8]));
    }
    let state = built.producer.as_ref().unwrap().debug_state().unwrap();
    assert_eq!(state["endpoints"].as_array().unwrap().len(), DEBUG_ENDPOINTS);
    assert_eq!((&state["reportedCapacities"], &state["assumedCapacities"]), (&1.into(), &1.into()));
    assert_eq!((&state["bytesPerToken"]["m"], &state["reuseAge"]), (&4.0.into(), &30.0.into()));
    let first = &state["endpoints"][0];
    assert_eq!((&first["endpoint"], &first["blocks"], &first["inFlight"]), (&"pod-1".into(), &3.into(), &0.into()));
    assert_eq!(first["oldestAge"], serde_json::Value::Null, "there is room");
}
