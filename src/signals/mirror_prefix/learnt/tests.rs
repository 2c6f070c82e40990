use super::*;

#[test]
fn the_first_long_prompt_outweighs_the_guess_and_later_ones_even_out() {
    let mut measure = Measure::default();
    assert_eq!(measure.ratio(), 4.0);
    measure.add(30_000, 10_000);
    assert!((measure.ratio() - 3.0).abs() < 0.05, "{measure:?}");
    for _ in 0..400 {
        measure.add(500, 100);
        measure.add(4_000, 2_000);
    }
    assert!((measure.ratio() - 4_500.0 / 2_100.0).abs() < 0.1, "{measure:?}");
    // Counts that cannot be stay within what can be.
    for (bytes, tokens, expected) in [(u64::MAX, 1, 16.0), (0, u64::MAX, 1.0)] {
        let mut measure = Measure::default();
        (0..4_000).for_each(|_| measure.add(bytes, tokens));
        assert!((measure.ratio() - expected).abs() < 0.1, "{measure:?}");
    }
    assert!(!is_telling(1_000_000, 63) && !is_telling(0, 100) && is_telling(64, 64));
}

#[test]
fn models_learn_apart_and_unknown_ones_from_all() {
    let ratios = Ratios::default();
    assert_eq!(ratios.of("a"), None);
    ratios.add("a", 40_000, 20_000);
    ratios.add("b", 100_000, 20_000);
    let of = |model: &str| ratios.of(model).unwrap();
    assert!((of("a") - 2.0).abs() < 0.05 && (of("b") - 5.0).abs() < 0.05);
    assert!((of("c") - 3.5).abs() < 0.05);
    // Names and their number are bounded.
    let long = "x".repeat(MAX_NAME + 1);
    ratios.add(&long, 40_000, 20_000);
    (0..2 * MAX_MODELS).for_each(|i| ratios.add(&format!("m{i:03}"), 40_000, 20_000));
    assert_eq!(ratios.list().len(), MAX_MODELS);
    assert!(ratios.list().iter().all(|(name, _)| **name != *long));
}

/// An outcome of a full mirror with an idle prediction, blocks of 64 tokens.
fn outcome(predicted: f64, delivered: f64) -> Outcome {
    Outcome { predicted, delivered, block: 64.0, output: 1_024.0, idle: true, full: true }
}

#[test]
fn only_what_says_something_of_the_capacity_corrects_it() {
    let correct = |o: Outcome, factor| o.correct(factor, &REPORTED);
    // A shortfall of more than a block and a sixteenth.
    assert_eq!(correct(outcome(640.0, 500.0), 1.0), 0.95);
    assert_eq!(correct(outcome(640.0, 540.0), 1.0), 1.0);
    assert_eq!(correct(outcome(10_000.0, 9_400.0), 1.0), 1.0);
    assert_eq!(correct(Outcome { idle: false, ..outcome(640.0, 0.0) }, 1.0), 1.0);
    // More than an answer and a block beyond the prediction; more than twice as much is another matter.
    assert_eq!(correct(outcome(6_400.0, 7_889.0), 1.0), 1.02);
    assert_eq!(correct(outcome(6_400.0, 7_888.0), 1.0), 1.0);
    assert_eq!(correct(outcome(6_400.0, 14_289.0), 1.0), 1.2);
    assert_eq!(correct(outcome(6_400.0, 14_288.0), 1.0), 1.02);
    assert_eq!(correct(outcome(0.0, 1_089.0), 1.0), 1.2);
    assert_eq!(correct(outcome(0.0, 1_088.0), 1.0), 1.0);
    assert_eq!(correct(Outcome { full: false, ..outcome(0.0, 9_000.0) }, 1.0), 1.0);
    // A prediction of some length that came true, up to one.
    assert_eq!(correct(outcome(640.0, 640.0), 0.5), 0.5 * 1.001);
    assert_eq!(correct(outcome(640.0, 640.0), 0.9999), 1.0);
    assert_eq!(correct(outcome(640.0, 640.0), 1.5), 1.5);
    assert_eq!(correct(outcome(128.0, 128.0), 0.5), 0.5);
}

#[test]
fn the_longest_answer_fades() {
    let answers = Answers::default();
    assert_eq!(answers.longest(), 0.0);
    [100, 4_000, 200].iter().for_each(|tokens| answers.note(*tokens));
    assert!((3_900.0..4_000.0).contains(&answers.longest()));
    (0..1_000).for_each(|_| answers.note(200));
    assert_eq!(answers.longest(), 200.0);
}

#[test]
fn corrections_stay_within_their_bounds() {
    for bounds in [&REPORTED, &ASSUMED] {
        let run = |outcome: Outcome| (0..1_000).fold(1.0, |factor, _| outcome.correct(factor, bounds));
        assert_eq!(run(outcome(640.0, 0.0)), *bounds.start());
        assert_eq!(run(outcome(0.0, 9_000.0)), *bounds.end());
    }
}
