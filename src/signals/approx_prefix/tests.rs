use smallvec::smallvec;

use super::*;
use crate::domain::node::{Problems, Value};
use crate::domain::{Prompt, Segment, Slot};
use crate::scheduling::plugin::Registry;
use crate::signals::prefix::fixtures::{commit, end, produce, request, snapshot};
use crate::signals::prefix::{DEBUG_ENDPOINTS, MAX_REQUEST_BLOCKS, fixtures};

fn make(parameters: &[(&str, Value)]) -> (Option<Built>, Problems, Registry) {
    fixtures::make(build, parameters)
}

#[test]
fn a_committed_prompt_is_found_where_it_went() {
    let (built, problems, registry) = make(&[]);
    let built = built.unwrap();
    assert!(problems.errors.is_empty() && problems.warnings.is_empty());
    assert!(registry.needs(&Need::Prompts) && registry.needs(&Need::Metric(Metric::CacheInfo)));
    assert_eq!(registry.producers(SignalKind::Prefix).count(), 1);

    let (pool, body) = (snapshot(None), [b'x'; 256 * 4 + 10]);
    let first = request(&body);
    let signals = produce(&built, &first, &pool);
    assert_eq!((signals.prefix[0].total_blocks, signals.prefix[0].block_tokens), (4, 64));
    assert_eq!(signals.prefix[0].matched, [0, 0]);
    // A prefill endpoint learns the prompt too; the same endpoint twice learns it once.
    let mut watch = commit(&built, &first, &pool, &signals, &[1, 0, 1]).unwrap();

    let longer = request(&[&body[..], &[b'y'; 256]].concat());
    let signals = produce(&built, &longer, &pool);
    assert_eq!((signals.prefix[0].total_blocks, &signals.prefix[0].matched[..]), (5, &[4, 4][..]));
    assert_eq!(built.producer.as_ref().unwrap().size(), Some(8));
    watch.finished(&end());

    // Another model and another salt share nothing.
    let other = InferenceRequest { target_model: "n".into(), ..first.clone() };
    assert_eq!(produce(&built, &other, &pool).prefix[0].matched, [0, 0]);
    let salted = InferenceRequest { cache_salt: Some("s".into()), ..first.clone() };
    assert_eq!(produce(&built, &salted, &pool).prefix[0].matched, [0, 0]);

    built.commit.as_ref().unwrap().endpoint_removed(pool.topology.get(Slot(1)).unwrap());
    assert_eq!(produce(&built, &first, &pool).prefix[0].matched, [4, 0]);
    let late = produce(&built, &first, &pool);
    assert!(commit(&built, &first, &pool, &late, &[1]).is_none(), "it has left");
}

#[test]
fn requests_in_flight_keep_their_blocks_until_they_end_or_vanish() {
    let (built, ..) = make(&[("lruCapacityPerServer", Value::Integer(4))]);
    let (built, pool) = (built.unwrap(), snapshot(None));
    let (a, b) = (request(&[b'a'; 256 * 3]), request(&[b'b'; 256 * 3]));
    let send =
        |request: &InferenceRequest| commit(&built, request, &pool, &produce(&built, request, &pool), &[0]).unwrap();
    let held = |request: &InferenceRequest| produce(&built, request, &pool).prefix[0].matched[0];
    let (mut first, second) = (send(&a), send(&b));
    assert_eq!((held(&a), held(&b)), (3, 3), "over capacity, but all of it in use");
    first.finished(&end());
    assert_eq!((held(&a), held(&b)), (1, 3));
    drop(second);
    drop(first);
    drop(send(&a));
    assert_eq!((held(&a), held(&b)), (3, 1), "a watch that was only dropped gave its pins back");
}

#[test]
fn block_size_and_capacity_follow_the_metrics() {
    let (built, ..) = make(&[]);
    let built = built.unwrap();
    let index = built.handle.clone().unwrap().downcast::<Index>().ok().unwrap();
    let long = request(&[b'x'; 256 * 40]);
    let run = |pool: &Snapshot| {
        let signals = produce(&built, &long, pool);
        drop(commit(&built, &long, pool, &signals, &[0]));
        drop(commit(&built, &long, pool, &signals, &[1]));
        (signals.prefix[0].block_tokens, index.endpoints(9).iter().map(|e| e.capacity).collect::<Vec<_>>())
    };
    assert_eq!(run(&snapshot(None)), (64, vec![31_250, 31_250]));
    // 100 engine blocks of 16 tokens are 25 of ours.
    assert_eq!(run(&snapshot(Some((16, 100)))), (64, vec![31_250, 25]));
    assert_eq!(index.endpoints(9)[1].blocks, 25);
    assert_eq!(run(&snapshot(Some((16, 1)))), (64, vec![31_250, 1]));
    assert_eq!(run(&snapshot(Some((128, 100)))), (128, vec![31_250, 100]));
    assert_eq!(run(&snapshot(Some((0, 0)))), (64, vec![31_250, 31_250]));
    assert_eq!(run(&snapshot(Some((u32::MAX, u32::MAX)))).0, 65_536);

    let (fixed, _, registry) = make(&[("autoTune", Value::Bool(false)), ("blockSizeTokens", Value::Integer(16))]);
    assert!(!registry.needs(&Need::Metric(Metric::CacheInfo)));
    assert_eq!(produce(&fixed.unwrap(), &long, &snapshot(Some((128, 100)))).prefix[0].block_tokens, 16);
}

#[test]
fn limits_cut_prompts_and_batches() {
    let limit = |tokens: i64, blocks: i64| {
        let (built, ..) = make(&[
            ("maxPrefixTokensToMatch", Value::Integer(tokens)),
            ("maxPrefixBlocksToMatch", Value::Integer(blocks)),
            ("blockSizeTokens", Value::Integer(1)),
        ]);
        let batch = InferenceRequest {
            prompts: smallvec![Prompt { segments: smallvec![Segment::Media { digest: 1, tokens: 100_000 }] }; 2],
            ..InferenceRequest::default()
        };
        let signals = produce(&built.unwrap(), &batch, &snapshot(None));
        let lengths: Vec<_> = signals.prefix[0].chains.iter().map(|c| c.len()).collect();
        assert_eq!(signals.prefix[0].total_blocks as usize, lengths.iter().sum::<usize>());
        lengths
    };
    assert_eq!(limit(10, 5), [10, 10]);
    assert_eq!(limit(0, 5), [5, 5]);
    assert_eq!(limit(0, 0), [100_000, MAX_REQUEST_BLOCKS - 100_000]);
}

#[test]
fn wrong_parameters_are_named() {
    let quantity = |s: &str| Value::String(s.into());
    for (parameters, path) in [
        (vec![("maxPrefixTokensToMatch", Value::Integer(-1))], "parameters.maxPrefixTokensToMatch"),
        (vec![("autoTune", Value::Bool(false)), ("blockSizeTokens", Value::Integer(0))], "parameters.blockSizeTokens"),
        (vec![("autoTune", Value::Bool(false)), ("blockSizeTokens", Value::Integer(-4))], "parameters.blockSizeTokens"),
        (vec![("blockSizeTokens", Value::Integer(1 << 40))], "parameters.blockSizeTokens"),
        (vec![("lruCapacityPerServer", Value::Integer(0))], "parameters.lruCapacityPerServer"),
        (vec![("maxIndexBytes", quantity("1Ki"))], "parameters.maxIndexBytes"),
        (vec![("hashBlockSize", Value::Integer(64))], "parameters.hashBlockSize"),
    ] {
        let (_, problems, _) = make(&parameters);
        let paths: Vec<_> = problems.errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, [path]);
        assert!(problems.errors.iter().all(|e| !e.fix.is_empty()));
    }
    let (built, problems, _) = make(&[("blockSizeTokens", Value::Integer(32))]);
    assert!(problems.warnings.is_empty());
    assert_eq!(produce(&built.unwrap(), &request(&[1; 300]), &snapshot(None)).prefix[0].block_tokens, 32);
    let (built, problems, _) = make(&[("blockSizeTokens", Value::Integer(0))]);
    assert!(built.is_some() && problems.errors.is_empty() && problems.warnings.len() == 1);
}

#[test]
fn the_debug_page_is_bounded_and_named() {
    let (built, ..) = make(&[]);
    let (built, pool) = (built.unwrap(), snapshot(None));
    let long = request(&[b'x'; 256 * 3]);
    let _watch = commit(&built, &long, &pool, &produce(&built, &long, &pool), &[1]);
    let index = built.handle.clone().unwrap().downcast::<Index>().ok().unwrap();
    for slot in 2..200 {
        drop(index.insert(slot, 1, &[7, 8]));
    }
    let state = built.producer.as_ref().unwrap().debug_state().unwrap();
    let endpoints = state["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), DEBUG_ENDPOINTS);
    assert_eq!((&endpoints[0]["endpoint"], &endpoints[0]["blocks"]), (&"pod-1".into(), &3.into()));
    assert_eq!(state["entries"], 3 + 198 * 2);
}
