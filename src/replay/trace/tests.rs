//! Both forms of a trace, hostile lines, spreading, scaling, and the statistics of generated traffic.

use super::generate::{PRESETS, Shape, generate};
use super::read::{TraceError, read, spread};
use super::scale::{Target, by, to_load};
use super::*;
use crate::replay::pod::Hardware;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Trace, TraceError> {
    read("trace.jsonl", &mut text.as_bytes())
}

fn row(t: u64, input: u32, ids: &[u64]) -> String {
    format!("{{\"timestamp\": {t}, \"input_length\": {input}, \"output_length\": 100, \"hash_ids\": {ids:?}}}\n")
}

#[test]
fn mooncake_lines_become_requests_in_order() {
    let trace = parse(&(row(5_000, 1_100, &[1, 2, 3]) + "\n" + &row(2_000, 600, &[1, 9]))).unwrap();
    assert_eq!((trace.block_tokens, trace.distinct, trace.seconds), (512, 4, 3.0));
    let [first, second] = trace.requests[..] else { panic!("{trace:?}") };
    assert_eq!((first.at, first.input, first.output, first.blocks), (0.0, 600, 100, 2));
    assert_eq!((second.at, second.input, trace.full(&second)), (3.0, 1_100, 2));
    assert_eq!(trace.blocks(&first)[0], trace.blocks(&second)[0], "equal ids stay equal");
}

#[test]
fn a_decision_log_is_read_with_its_block_size_and_missing_outputs_are_the_mean() {
    let line = |at: f64, output: &str, model: &str, blocks: &str| {
        format!(
            "{{\"at\":{at},\"model\":\"{model}\",\"promptTokens\":200,{output}\"blockTokens\":64,\
             \"blocks\":[{blocks}],\"endpoint\":\"pod-1\",\"other\":{{}}}}\n"
        )
    };
    let hashes = "18446744073709551615,3,4";
    let log = line(1.5, "\"outputTokens\":10,", "a", hashes)
        + &line(2.0, "\"outputTokens\":30,", "a", hashes)
        + &line(2.5, "", "b", hashes)
        + &line(3.0, "\"outputTokens\":null,", "a", "7");
    let trace = parse(&log).unwrap();
    assert_eq!(trace.block_tokens, 64);
    assert_eq!(trace.requests.iter().map(|r| r.output).collect::<Vec<_>>(), [10, 30, 20, 20]);
    let blocks: Vec<&[u32]> = trace.requests.iter().map(|r| trace.blocks(r)).collect();
    assert_eq!(blocks[0], blocks[1]);
    assert_ne!(blocks[0], blocks[2], "caches of different models have nothing in common");
    assert_eq!(trace.full(&trace.requests[0]), 3);
}

#[test]
fn wrong_lines_are_named_with_file_and_line() {
    let good = row(0, 600, &[1, 2]);
    let log = "{\"at\":1,\"promptTokens\":9,\"blockTokens\":64,\"blocks\":[]}\n";
    for (text, what) in [
        (String::new(), "trace.jsonl: there is no request"),
        (format!("{good}nonsense\n"), "trace.jsonl:2: no request: "),
        (format!("{good}{{\"timestamp\":1}}\n"), "missing field `input_length`"),
        ("{\"at\":1,\"promptTokens\":5,\"blocks\":[]}\n".into(), "missing field `blockTokens`"),
        (row(0, 600, &[1]).replace("[1]", "[-1]"), "trace.jsonl:1: no request: invalid value"),
        (row(0, 99_000_000, &[1]), "99000000 prompt tokens are more than the limit"),
        (row(0, 600, &[1]).replace("100", "99000000"), "99000000 output tokens are more"),
        (good.replace("\"timestamp\": 0", "\"timestamp\": 1e300"), "is out of range"),
        (format!("{good}{log}"), "trace.jsonl:2: this line has another form"),
        (log.replace("64", "0").replace("[]", "[1]"), "`blockTokens` is 0"),
        (format!("{log}{}", log.replace("64", "16")), "trace.jsonl:2: blocks of 16 tokens after blocks of 64"),
        ("[[[[[[[[[[[[".into(), "trace.jsonl:1: no request"),
    ] {
        let message = parse(&text).unwrap_err().to_string();
        assert!(message.contains(what), "{message} / {what}");
    }
    // The log of a picker without a prefix index.
    let unhashed = parse(&(log.replace("64", "0") + log)).unwrap();
    assert_eq!((unhashed.block_tokens, unhashed.requests.len()), (64, 2));
    let empty = parse(&(row(0, 0, &[]) + &good)).unwrap();
    assert_eq!((empty.empty, empty.requests.len()), (1, 1));
}

#[test]
fn a_later_turn_shows_the_blocks_of_the_earlier_answer() {
    // Two full blocks and 476 tokens, then an answer of 600: the third and fourth block are full afterwards.
    let text = row(0, 1_500, &[1, 2, 30]).replace("100", "600") + &row(9_000, 3_000, &[1, 2, 3, 4, 5, 6]);
    let trace = parse(&text).unwrap();
    let [first, second] = trace.requests[..] else { panic!("{trace:?}") };
    assert_eq!(trace.generated(&first), &trace.blocks(&second)[2..4]);
    assert!(trace.generated(&second).is_empty());
}

#[test]
fn batches_are_spread_over_the_gap_that_follows() {
    let batch = |t: u64, n: u64| (0..n).map(|i| row(t, 600, &[t * 100 + i])).collect::<String>();
    let trace = spread(parse(&(batch(0, 40) + &batch(3_000, 40) + &batch(3_200, 5))).unwrap(), 1);
    let (early, late): (Vec<f64>, Vec<f64>) = trace.requests.iter().map(|r| r.at).partition(|at| *at < 2.9);
    assert!((38..=40).contains(&early.len()), "{}", early.len());
    let mean = early.iter().sum::<f64>() / early.len() as f64;
    assert!((1.0..2.0).contains(&mean), "{mean}");
    assert!(late.len() >= 45 && trace.requests.is_sorted_by(|a, b| a.at <= b.at));
}

proptest! {
    #[test]
    fn no_line_panics(text in "\\PC{0,200}", rows in proptest::collection::vec((0u64..9, 0u32..3_000), 0..6)) {
        let mut lines: String = rows.iter().map(|(t, n)| row(*t, *n, &[*t, 7, u64::from(*n)])).collect();
        if let Ok(trace) = parse(&lines) {
            prop_assert!(trace.requests.iter().all(|r| r.input > 0 && r.output > 0));
            prop_assert!(trace.ids.iter().all(|id| *id < trace.distinct));
            prop_assert_eq!(trace.requests.len() + trace.empty, rows.len());
        }
        lines.push_str(&text);
        let _ = parse(&lines);
    }

    #[test]
    fn any_blocks_of_later_turns_stay_in_bounds(
        rows in proptest::collection::vec((1u32..4_000, 1u32..2_000, proptest::collection::vec(0u64..6, 0..10)), 1..30),
    ) {
        let text: String = rows
            .iter()
            .enumerate()
            .map(|(t, (input, output, ids))| {
                row(t as u64, *input, ids).replace("\"output_length\": 100", &format!("\"output_length\": {output}"))
            })
            .collect();
        let trace = parse(&text).unwrap();
        for request in &trace.requests {
            let filled = (request.input + request.output) / 512;
            prop_assert!(trace.generated(request).len() as u32 <= filled);
            prop_assert!(trace.full(request) <= request.blocks);
        }
        let target = Target { load: 1.0, seconds: 1e6, warm: 0.0, capacity: 1.0, pool_blocks: 64, seed: 3 };
        let scaled = by(&trace, 3.0, &target).unwrap();
        prop_assert_eq!(scaled.requests.len(), 3 * trace.requests.len());
        prop_assert!(scaled.ids.iter().all(|id| *id < scaled.distinct));
    }
}

#[test]
fn copies_have_blocks_of_their_own_but_share_the_hot_ones() {
    let text: String = (0..400).map(|i| row(i * 1_000, 1_300, &[0, 1_000 + i])).collect();
    let trace = parse(&text).unwrap();
    let target = Target { load: 1.0, seconds: 1e6, warm: 0.0, capacity: 1.0, pool_blocks: 64, seed: 3 };
    let scaled = by(&trace, 2.0, &target).unwrap();
    assert_eq!(scaled.requests.len(), 800);
    let counts = scaled.occurrences();
    assert_eq!(counts.iter().filter(|n| **n == 800).count(), 1);
    assert_eq!(counts.iter().filter(|n| **n == 1).count(), 800);
    assert!(by(&trace, 1e9, &target).is_err());
    let half = by(&trace, 0.5, &target).unwrap();
    assert!((half.seconds - 2.0 * trace.seconds).abs() < 1e-9);
    let cut = by(&trace, 1.0, &Target { seconds: 100.0, ..target }).unwrap();
    assert_eq!((cut.requests.len(), cut.seconds), (101, 100.0));
}

#[test]
fn load_one_keeps_the_pods_busy_when_nothing_is_reused() {
    let hardware = Hardware::default();
    let trace = generate(&Shape::parse("unique,seconds=2000,rate=2").unwrap());
    let target = Target { load: 0.8, seconds: 2_000.0, warm: 0.2, capacity: 4.0, pool_blocks: 7_800, seed: 1 };
    let (scaled, rate) = to_load(&trace, &target, &hardware).unwrap();
    let work: f64 = scaled
        .requests
        .iter()
        .filter(|r| r.at >= 0.2 * scaled.seconds)
        .map(|r| hardware.seconds(r.input, r.output, 0))
        .sum();
    let load = work / (0.8 * scaled.seconds) / 4.0;
    assert!((0.76..0.84).contains(&load), "{load} at {rate}");
}

#[test]
fn generated_traffic_has_the_numbers_that_were_asked_for() {
    for name in PRESETS {
        let shape = Shape { seconds: 2_500.0, ..Shape::preset(name).unwrap() };
        let trace = generate(&shape);
        assert_eq!(trace, generate(&shape), "{name} is repeatable");
        assert_ne!(trace, generate(&Shape { seed: 2, ..shape }));
        let rate = trace.requests.len() as f64 / shape.seconds;
        assert!((rate / shape.rate - 1.0).abs() < 0.15, "{name}: {rate} for {}", shape.rate);
        let output = trace.requests.iter().map(|r| f64::from(r.output)).sum::<f64>() / trace.requests.len() as f64;
        assert!((output / shape.output_tokens - 1.0).abs() < 0.1, "{name}: {output}");
        let occurrences = trace.occurrences();
        let reused = occurrences.iter().filter(|n| **n > 1).count();
        assert_eq!(reused == 0, name == "unique", "{name}: {reused}");
        assert!(trace.requests.iter().all(|r| r.at >= 0.0 && r.at <= shape.seconds && r.input > 0));
    }
}

#[test]
fn popularity_follows_zipf() {
    let trace = generate(&Shape::parse("shared,prompts=4,zipf=1,spread=0,seconds=9000").unwrap());
    let mut firsts = std::collections::BTreeMap::new();
    for request in &trace.requests {
        *firsts.entry(trace.blocks(request)[0]).or_insert(0u32) += 1;
    }
    let mut counts: Vec<u32> = firsts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(counts.len(), 4);
    let ratio = f64::from(counts[0]) / f64::from(counts[3]);
    assert!((3.7..4.3).contains(&ratio), "{counts:?}");
}

#[test]
fn wrong_shapes_say_what_is_right() {
    for (text, what) in [
        ("chat", "`chat` is no preset"),
        ("zipf,rate", "`rate` in --generate is not `key=value`"),
        ("zipf,rate=x", "`x` in --generate is not a number"),
        ("zipf,rate=nan", "must be from"),
        ("zipf,prompts=1.5", "must be a whole number"),
        ("zipf,colour=1", "`colour` is unknown"),
        ("zipf,rate=100000,seconds=10000000", "more than 5000000 requests"),
    ] {
        let message = Shape::parse(text).unwrap_err();
        assert!(message.contains(what), "{message} / {what}");
    }
}
