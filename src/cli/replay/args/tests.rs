//! What the flags mean together, and what is wrong with them.

use std::collections::BTreeMap;

use super::*;
use crate::cli::{Invocation, parse};

fn args(words: &str) -> ReplayArgs {
    let words = std::iter::once("replay").chain(words.split_whitespace()).map(str::to_owned);
    match parse(words, &BTreeMap::new()) {
        Ok(Invocation::Replay(args)) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn flags_become_a_plan() {
    let (plan, wanted) = args(
        "--trace t.jsonl --load 0.5,1 --seeds 1-3,7 --pods 3 --pod-speeds 1,0.5 --duration 600 --scrape-interval 1s \
         --slow-pod 2:0.5@0.6 --restart 0.5 --not-streamed --pickers 2",
    )
    .settle()
    .unwrap_or_else(|wrong| panic!("{wrong:?}"));
    assert!(matches!(wanted, Wanted::File(path) if path.ends_with("t.jsonl")));
    assert_eq!((plan.loads, plan.seeds, plan.seconds), (vec![0.5, 1.0], vec![1, 2, 3, 7], 600.0));
    let scene = plan.scene;
    assert_eq!((scene.speeds, scene.scrape_interval, scene.pickers), (vec![1.0, 0.5, 1.0], 1.0, 2));
    assert_eq!(scene.slow_pod, Some(SlowPod { pod: 2, speed: 0.5, from: 0.6 }));
    assert!(!scene.streamed && scene.restart == Some(0.5));
    let as_is = args("--generate zipf --load as-is").settle();
    assert!(as_is.is_ok_and(|(plan, _)| plan.loads.is_empty()));
}

#[test]
fn all_that_is_wrong_is_said_together() {
    let wrong = |words: &str| args(words).settle().err().unwrap_or_default().join("\n");
    assert!(wrong("").contains("give --trace FILE or --generate PRESET"));
    assert!(wrong("--trace a --generate zipf").contains("both given"));
    let all = wrong("--generate zopf --pods 0 --load x --seeds 5-1 --slow-pod 9:1 --warm-up 2 --pod-speeds 1,1");
    for what in ["no preset", "--pods: `0`", "--load: `x`", "--seeds: `5-1`", "--slow-pod: `9:1`", "--warm-up: `2`"] {
        assert!(all.contains(what), "{what} in:\n{all}");
    }
}
