//! Figures and ratios of small results.

use super::*;
use crate::replay::run::Scene;

fn results() -> Results {
    let mut cells = Vec::new();
    for load in 0..2 {
        for seed in 0..2 {
            for config in 0..2 {
                let factor = if config == 0 { 1.0 } else { [0.5, 0.125][seed] };
                let ttft = (1..=100).map(|i| f64::from(i) * 0.04 * factor).collect();
                let outcome =
                    Outcome { ttft, input_tokens: 100, cached_tokens: 40, false_tokens: 1, ..Outcome::default() };
                cells.push(Cell { config, load, seed, requests: 100, seconds: 60.0, speedup: 1.0, outcome });
            }
        }
    }
    let plan = Plan { loads: vec![0.5, 0.8], seeds: vec![1, 2], seconds: 60.0, scene: Scene::default() };
    Results::new(vec!["one".into(), "other".into()], &plan, 2.0, cells)
}

#[test]
fn figures_are_means_over_seeds_and_ratios_are_geometric() {
    let results = results();
    let (one, other) = (results.figures(0, 0), results.figures(1, 0));
    assert!((one.mean - 2.02).abs() < 1e-9 && (one.p50 - 2.0).abs() < 1e-9 && (one.p99 - 3.96).abs() < 1e-9);
    assert!((one.ratio - 1.0).abs() < 1e-9 && (other.ratio - 0.25).abs() < 1e-9, "{other:?}");
    assert_eq!((one.hit, one.false_hit, one.good), (0.4, 0.01, 0.49));
    assert_eq!(other.requests, 200);
    assert_eq!((results.highest_good_load(0, 0.8), results.highest_good_load(1, 0.8)), (None, Some(0.8)));
}

#[test]
fn the_table_has_a_line_for_each_configuration_and_load() {
    let table = results().table();
    assert_eq!(table.lines().filter(|l| l.contains("  one ") || l.contains("  other ")).count(), 6, "{table}");
    assert!(table.contains("0.250"), "{table}");
    let lines = results().json();
    assert_eq!(lines.len(), 8);
    assert_eq!(lines[1]["config"], "other");
    assert_eq!(lines[1]["ratio"], 0.5);
}

#[test]
fn refusals_are_not_in_time_and_are_remarked() {
    let outcome = Outcome { ttft: vec![0.1], refused: 3, ..Outcome::default() };
    assert_eq!(figures(&outcome, None, 2.0).good, 0.25);
    assert_eq!(figures(&Outcome::default(), None, 2.0).mean, 0.0, "nothing measured is no division by zero");
}
