//! Steps, chunks, admission, reuse and eviction, against times worked out by hand.

use super::*;
use crate::replay::trace::Request;
use proptest::prelude::*;

fn trace(requests: &[(u32, u32, &[u32])]) -> Trace {
    let mut trace = Trace { block_tokens: 100, ..Trace::default() };
    for (input, output, ids) in requests {
        let offset = trace.ids.len();
        trace.ids.extend_from_slice(ids);
        let request =
            Request { input: *input, output: *output, offset, blocks: ids.len() as u32, ..Request::default() };
        trace.requests.push(request);
    }
    trace.distinct = trace.ids.iter().max().map_or(0, |id| id + 1);
    trace
}

fn hardware(kv_tokens: u64) -> Hardware {
    Hardware {
        kv_tokens,
        prefill_rate: 1_000.0,
        slow_position: 1e15,
        step_tokens: 500,
        least_step: 0.01,
        per_sequence: 0.0,
        per_context_token: 0.0,
        ..Hardware::default()
    }
}

/// Runs until all is done; (request, time of its first token, time of its end), in the order of the ends.
fn play(pod: &mut Pod, trace: &Trace, works: &mut [Work], all: &[u32]) -> Vec<(u32, f64, f64)> {
    let (mut now, mut finished) = (0.0, Finished::default());
    let (mut firsts, mut ends) = (vec![f64::NAN; trace.requests.len()], Vec::new());
    for request in all {
        pod.enqueue(*request);
    }
    for _ in 0..100_000 {
        let Some(seconds) = pod.start(trace, works) else { break };
        now += seconds;
        finished.first.clear();
        finished.done.clear();
        pod.end(trace, works, &mut finished);
        for id in &finished.first {
            firsts[*id as usize] = now;
        }
        ends.extend(finished.done.iter().map(|id| (*id, firsts[*id as usize], now)));
    }
    ends
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn prompts_are_computed_in_chunks_and_decode_takes_the_least_step() {
    let trace = trace(&[(1_200, 3, &[]), (100, 1, &[])]);
    let mut works = vec![Work::default(); 2];
    let mut pod = Pod::new(hardware(10_000), 100, 1.0);
    let ends = play(&mut pod, &trace, &mut works, &[0, 1]);
    // Steps of 500, 500 and 200 + 100 tokens; then two more tokens of the first, a hundredth each.
    assert_eq!(ends.iter().map(|e| e.0).collect::<Vec<_>>(), [1, 0]);
    assert!(close(ends[0].1, 1.3) && close(ends[1].1, 1.3), "{ends:?}");
    assert!(close(ends[1].2, 1.32), "{ends:?}");
    assert!(close(pod.prefill_seconds, 1.3));
    assert_eq!(pod.state(), Published::default(), "nothing stays behind but the cache");
}

#[test]
fn a_slow_pod_takes_longer_for_the_same_work() {
    let trace = trace(&[(1_000, 1, &[])]);
    let mut pod = Pod::new(hardware(10_000), 100, 0.5);
    let ends = play(&mut pod, &trace, &mut [Work::default()], &[0]);
    assert!(close(ends[0].1, 2.0) && close(pod.prefill_seconds, 1.0));
}

#[test]
fn what_is_cached_is_not_computed_but_for_the_last_block() {
    let ids: &[u32] = &[0, 1, 2, 3];
    let trace = trace(&[(400, 1, ids), (400, 1, ids), (450, 1, &[0, 1, 2, 3, 9]), (400, 1, &[4, 1, 2, 3])]);
    let mut works = vec![Work::default(); 4];
    let mut pod = Pod::new(hardware(10_000), 100, 1.0);
    for id in 0..4 {
        play(&mut pod, &trace, &mut works, &[id]);
    }
    assert_eq!(works.iter().map(|w| w.cached).collect::<Vec<_>>(), [0, 300, 400, 0]);
}

#[test]
fn blocks_become_visible_as_they_are_computed() {
    let ids: Vec<u32> = (0..10).collect();
    let trace = trace(&[(1_000, 1, &ids), (1_000, 1, &ids)]);
    let mut works = vec![Work::default(); 2];
    let mut pod = Pod::new(hardware(10_000), 100, 1.0);
    pod.enqueue(0);
    pod.start(&trace, &mut works).unwrap();
    pod.end(&trace, &mut works, &mut Finished::default());
    let ends = play(&mut pod, &trace, &mut works, &[1]);
    // The second is let in when the first leaves room in a step: with its last five hundred tokens all is taken.
    assert_eq!(works[1].cached, 900, "{ends:?}");
}

#[test]
fn a_request_waits_for_memory_and_old_blocks_go_first_and_deep_ones_before_shallow_ones() {
    let (a, b): (Vec<u32>, Vec<u32>) = ((0..5).collect(), (10..15).collect());
    let c: Vec<u32> = (20..24).collect();
    // Ten blocks: five and five fill it; the third needs four.
    let trace = trace(&[(499, 1, &a), (499, 1, &b), (399, 1, &c), (499, 1, &a), (499, 1, &b)]);
    let mut works = vec![Work::default(); 5];
    let mut pod = Pod::new(hardware(1_000), 100, 1.0);
    play(&mut pod, &trace, &mut works, &[0]);
    play(&mut pod, &trace, &mut works, &[1]);
    play(&mut pod, &trace, &mut works, &[2]);
    play(&mut pod, &trace, &mut works, &[3]);
    // Four full blocks of the first were held; two had to go, its deepest.
    assert_eq!(works[3].cached, 200);
    let mut pod = Pod::new(hardware(1_000), 100, 1.0);
    let mut works = vec![Work::default(); 5];
    for id in [0, 1, 3] {
        pod.enqueue(id);
    }
    pod.start(&trace, &mut works).unwrap();
    assert_eq!((pod.state().running, pod.state().waiting), (2, 1), "{:?}", pod.state());
    assert!((pod.state().kv - 1.0).abs() < 1e-6);
}

#[test]
fn the_answer_stays_if_a_later_turn_shows_it() {
    let mut trace = trace(&[(200, 150, &[0, 1]), (400, 1, &[0, 1, 2, 3])]);
    trace.requests[0].generated = (4, 1);
    let mut works = vec![Work::default(); 2];
    let mut pod = Pod::new(hardware(1_000), 100, 1.0);
    play(&mut pod, &trace, &mut works, &[0]);
    play(&mut pod, &trace, &mut works, &[1]);
    assert_eq!(works[1].cached, 300);
}

#[test]
fn decoding_costs_by_sequence_and_context() {
    let costly = Hardware { per_sequence: 0.1, per_context_token: 0.001, ..hardware(10_000) };
    let trace = trace(&[(100, 2, &[])]);
    let mut pod = Pod::new(costly, 100, 1.0);
    let ends = play(&mut pod, &trace, &mut [Work::default()], &[0]);
    // A tenth of a second of prompt, then a step with one sequence and 101 tokens of context.
    assert!(close(ends[0].1, 0.1) && close(ends[0].2, 0.1 + 0.01 + 0.1 + 0.101), "{ends:?}");
}

proptest! {
    #[test]
    fn every_request_is_answered_and_all_memory_comes_back(
        requests in proptest::collection::vec((1u32..700, 1u32..250, 0u32..4), 1..25), blocks in 10u64..40,
    ) {
        let ids: Vec<Vec<u32>> =
            requests.iter().map(|(input, _, family)| (0..input.div_ceil(100)).map(|k| family * 10 + k).collect()).collect();
        let given: Vec<(u32, u32, &[u32])> =
            requests.iter().zip(&ids).map(|((i, o, _), ids)| (*i, *o, ids.as_slice())).collect();
        let trace = trace(&given);
        let mut works = vec![Work::default(); given.len()];
        let mut pod = Pod::new(hardware(blocks * 100), 100, 1.0);
        let fitting: Vec<u32> = (0..given.len() as u32)
            .filter(|id| pod.has_room_for(&trace, given[*id as usize].0, given[*id as usize].1))
            .collect();
        let ends = play(&mut pod, &trace, &mut works, &fitting);
        prop_assert_eq!(ends.len(), fitting.len());
        for (id, first, end) in ends {
            prop_assert!(first <= end);
            prop_assert!(works[id as usize].cached < given[id as usize].0);
        }
        prop_assert_eq!(pod.state(), Published::default());
        prop_assert!(pod.cache.len() as u64 <= blocks);
    }
}
