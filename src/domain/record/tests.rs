use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::domain::{Endpoint, EndpointSpec, PoolIdentity, PrefixMatch, Ranked, Slot, Topology};

fn topology(n: u32) -> Arc<Topology> {
    let endpoint = |i: u32| {
        let spec = EndpointSpec {
            name: format!("pod-{i}"),
            namespace: "default".into(),
            address: ([10, 0, 0, i as u8 + 1], 8000).into(),
            rank: 0,
            incarnation: 0,
            labels: BTreeMap::new(),
        };
        Some(Arc::new(Endpoint::new(Slot(i), 1, spec)))
    };
    Arc::new(Topology::new(1, PoolIdentity::default(), (0..n).map(endpoint).collect()))
}

/// A profile over as many candidates as the columns have values.
fn profile(winner: u32, weights: &[f32], columns: &[&[f32]], costs: Option<Costs>) -> ProfileResult {
    let n = columns.first().map_or_else(|| costs.as_ref().map_or(0, |c| c.values.len() / c.terms.len()), |c| c.len());
    let topology = topology(n as u32);
    let total = |i: usize| columns.iter().zip(weights).map(|(column, weight)| weight * column[i]).sum();
    let why = Explanation {
        topology: Arc::clone(&topology),
        scorers: weights.iter().enumerate().map(|(i, w)| (format!("s{i}").into(), *w)).collect(),
        candidates: (0..n as u32).map(Slot).collect(),
        values: columns.concat(),
        totals: (0..n).map(total).collect(),
        costs,
        ..Explanation::default()
    };
    let endpoint = Arc::clone(topology.get(Slot(winner)).unwrap());
    ProfileResult {
        profile: "default".into(),
        picked: [Ranked { endpoint, score: why.totals[winner as usize] }].into_iter().collect(),
        explanation: Some(Box::new(why)),
    }
}

fn costs(tolerance: f32, values: &[f32]) -> Costs {
    Costs { terms: vec!["prefill", "wait"], values: values.to_vec(), unit: "s", tolerance }
}

#[test]
fn scores_flip_within_their_range_only() {
    // Totals 2.5, 1.9 and 0: the next one is 0.6 behind.
    let verdict = Verdict::of(&profile(0, &[2.0, 1.0], &[&[1.0, 0.5, 0.0], &[0.5, 0.9, 0.0]], None)).unwrap();
    assert_eq!((verdict.winner, verdict.runner_up, verdict.decided_by), (0, Some(1), DecidedBy::Margin));
    assert!((verdict.margin - 0.6).abs() < 1e-6);
    let shown: Vec<(Column, usize, String)> =
        verdict.flips.iter().map(|f| (f.column, f.candidate, format!("{:.2} {:.2}", f.from, f.to))).collect();
    let first = Column::Scorer(0);
    // The second scorer would have to say 1.5 of the next one, or -0.1 of the winner: it cannot.
    assert_eq!(shown, [(first, 1, "0.50 0.80".into()), (first, 0, "1.00 0.70".into())]);
}

#[test]
fn terms_flip_downwards_to_zero_and_upwards_without_end() {
    let verdict = Verdict::of(&profile(1, &[], &[], Some(costs(0.01, &[0.5, 0.4, 0.25, 0.125])))).unwrap();
    assert_eq!((verdict.winner, verdict.runner_up, verdict.margin), (1, Some(0), 0.525));
    let shown: Vec<(Column, usize, f32)> = verdict.flips.iter().map(|f| (f.column, f.candidate, f.to)).collect();
    assert_eq!(shown, [(Column::Term(0), 1, 0.775), (Column::Term(1), 1, 0.65)], "0.5 and 0.4 cannot fall by 0.525");
}

#[test]
fn equals_the_better_that_lost_and_the_only_one_are_told_apart() {
    let by = |profile: &ProfileResult| {
        let verdict = Verdict::of(profile).unwrap();
        assert!(verdict.flips.is_empty(), "{verdict:?}");
        verdict.decided_by
    };
    assert_eq!(by(&profile(1, &[1.0], &[&[0.5, 0.5]], None)), DecidedBy::Tie);
    assert_eq!(by(&profile(1, &[1.0], &[&[0.9, 0.5]], None)), DecidedBy::Picker);
    assert_eq!(by(&profile(0, &[1.0], &[&[0.9]], None)), DecidedBy::Alone);
    let near = costs(0.02, &[0.1, 0.2, 0.1, 0.21]);
    assert_eq!(by(&profile(0, &[], &[], Some(near.clone()))), DecidedBy::Tie);
    assert_eq!(by(&profile(1, &[], &[], Some(near))), DecidedBy::Tie, "the dearer one may win a tie");
    assert_eq!(by(&profile(0, &[1.0], &[&[f32::NAN, f32::NAN]], None)), DecidedBy::Tie);
    let unexplained = ProfileResult { explanation: None, ..profile(0, &[1.0], &[&[0.9]], None) };
    assert_eq!(Verdict::of(&unexplained), None);
}

proptest! {
    /// Whatever is said to close the margin does close it.
    #[test]
    fn flips_close_the_margin(
        weights in proptest::collection::vec(prop_oneof![-4.0f32..4.0, Just(0.0)], 1..4),
        rows in proptest::collection::vec([0.0f32..1.0, 0.0f32..1.0, 0.0f32..1.0], 1..6),
    ) {
        let columns: Vec<Vec<f32>> = (0..weights.len()).map(|s| rows.iter().map(|row| row[s]).collect()).collect();
        let columns: Vec<&[f32]> = columns.iter().map(Vec::as_slice).collect();
        let total = |row: &[f32; 3]| weights.iter().zip(row).map(|(w, v)| w * v).sum::<f32>();
        let best = (0..rows.len()).max_by(|a, b| total(&rows[*a]).total_cmp(&total(&rows[*b]))).unwrap();
        let verdict = Verdict::of(&profile(best as u32, &weights, &columns, None)).unwrap();
        prop_assert!(verdict.margin >= 0.0 && verdict.flips.len() <= 2 * weights.len());
        for flip in &verdict.flips {
            let Column::Scorer(scorer) = flip.column else { panic!("a term without costs") };
            let mut changed = rows.clone();
            prop_assert_eq!(changed[flip.candidate][scorer], flip.from);
            changed[flip.candidate][scorer] = flip.to;
            let (winner, other) = (total(&changed[verdict.winner]), total(&changed[verdict.runner_up.unwrap()]));
            prop_assert!((winner - other).abs() < 1e-3, "{:?} leaves {} against {}", flip, winner, other);
        }
    }
}

#[test]
fn a_record_keeps_names_of_bounded_length_and_no_hashes() {
    let request = InferenceRequest {
        id: "x".repeat(5_000).into(),
        path: "/v1/completions".into(),
        model: "\u{e4}".repeat(500).into(),
        target_model: "other".into(),
        ..InferenceRequest::default()
    };
    let result = profile(0, &[1.0], &[&[0.9, 0.1]], None);
    let decision = Decision { profiles: [result].into_iter().collect(), primary: 0, headers: Vec::new() };
    let found = PrefixMatch { chains: vec![vec![1; 10_000].into()], matched: vec![7; 2], ..PrefixMatch::default() };
    let signals = Signals { prefix: vec![found], ..Signals::default() };
    let record = Record::new(1, &request, decision, signals, Timestamp(5), Duration::ZERO);
    assert_eq!((record.request_id.len(), record.model.len()), (MAX_ID, MAX_TEXT));
    assert_eq!(record.target_model.as_deref(), Some("other"));
    assert!(record.signals.prefix[0].chains.is_empty() && record.signals.prefix[0].matched == [7, 7]);
    assert!(record.size() < 4_096, "{}", record.size());
    let ended = |status| Ended {
        outcome: Outcome::Completed,
        status,
        ttft: None,
        total: Duration::ZERO,
        usage: Usage::default(),
        served_by: None,
    };
    record.end(ended(200));
    record.end(ended(500));
    assert_eq!(record.ended(), Some(&ended(200)));
}
