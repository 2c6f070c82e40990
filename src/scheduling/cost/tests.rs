use super::*;
use crate::domain::{LoadDetail, LoadSample};
use crate::scheduling::fixtures::NOW;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

fn close(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-4 * b.abs().max(1e-3)
}

#[track_caller]
fn assert_close(a: f32, b: f32) {
    assert!(close(a, b), "{a} is not {b}");
}

/// A sample of 1,000 blocks of 16 tokens.
fn sample(millis_ago: u64, waiting: f32, kv_usage: f32) -> LoadSample {
    let detail = LoadDetail { block_size: Some(16), num_blocks: Some(1_000), ..LoadDetail::default() };
    LoadSample {
        taken_at: Timestamp(NOW.0 - millis_ago * 1_000),
        waiting: Some(waiting),
        kv_usage: Some(kv_usage),
        detail: Arc::new(detail),
        ..LoadSample::default()
    }
}

fn loads(sample: LoadSample) -> LoadTable {
    let mut loads = LoadTable::new(Duration::from_secs(2));
    loads.set(Slot(0), &sample);
    loads
}

#[test]
fn each_term_by_hand() {
    assert_close(prefill(12_000.0, 8_000.0), 1.5);
    assert_close(prefill(5_000.0, 0.0), 0.5);
    let account = |outstanding, backlog| Account { outstanding, backlog, ..Account::default() };
    assert_close(own_wait(&account(2.0, 1.2)), 1.2);
    assert_close(own_wait(&account(2.0, 0.0)), 0.2);
    assert_close(own_wait(&account(2.0, 9.0)), 2.0);
    assert_close(own_wait(&account(0.0, 9.0)), 0.0);
    assert_close(others_wait(7.0, 3, 0.5, 0.25), 1.75);
    assert_close(others_wait(7.0, 3, 0.5, 5.0), 0.0);
    assert_close(others_wait(2.0, 3, 0.5, 0.0), 0.0);
    // 0.5 arrivals a second, load 0.75: 4 · 0.5 · (2 · 1 + 0.5).
    assert_close(delay_on_others(2.0, 1.0, stretched_arrivals(0.5, 0.75)), 5.0);
    assert_close(delay_on_others(0.0, 1.0, stretched_arrivals(0.5, 7.0)), 2.5);
    assert_close(eviction(2.0, 30.0, 60.0), 2.0 / 3.0);
    assert_close(eviction(2.0, 30.0, 0.0), 2.0);
    assert_close(eviction(2.0, 30.0, f32::INFINITY), 0.0);
    assert_close(eviction(2.0, 0.0, 0.0), 0.0);
    assert_close(balance(0.4), 0.4);
    assert_close(balance(3.0), 1.0);
    assert_close(memory(5_000.0, 8_000.0, 10_000.0, 12.0), 4.5);
    assert_close(memory(1_000.0, 8_000.0, 10_000.0, 12.0), 0.0);
    assert_close(memory(50_000.0, 0.0, 10_000.0, 12.0), 0.0);
}

#[test]
fn a_price_is_the_weighted_terms() {
    let account = Account {
        outstanding: 2.0,
        backlog: 1.0,
        rate: 2_000.0,
        prefill_tokens: 6_000.0,
        prefilling: 2,
        in_flight: 3,
        load: 0.3,
        ahead: 0.25,
        ..Account::default()
    };
    let accounts = AccountView {
        endpoints: vec![account],
        arrivals: 0.2,
        load: 0.5,
        mean_prefill: 0.5,
        mean_stay: 8.0,
        samples: 9,
    };
    let caches = CacheView { capacity: vec![20_000.0], oldest_age: vec![10.0], reuse_age: 30.0 };
    let prefix = PrefixMatch { block_tokens: 500, matched: vec![4], caches: Some(caches), ..PrefixMatch::default() };
    // Four wait, two of them ours; the sample is half a second old.
    let loads = loads(sample(500, 4.0, 0.6));
    let facts = Facts::new(Some(&accounts), Some(&prefix), &loads, 6_000, NOW);
    assert_close(facts.uncached(Slot(0)), 4_000.0);
    assert_close(facts.prefill(Slot(0)), 2.0);
    assert_close(facts.own_wait(Slot(0)), 1.0);
    let once = Weights { prefill: 1.0, wait: 1.0, delay_on_others: 1.0, eviction: 1.0, balance: 1.0, memory: 1.0 };
    let terms = facts.terms(Slot(0), &once);
    assert_close(terms.prefill, 2.0);
    assert_close(terms.wait, 1.75);
    assert_close(terms.delay_on_others, 0.4 * (1.75 * 2.0 + 2.0));
    assert_close(terms.eviction, 1.5);
    assert_close(terms.balance, 0.3);
    // 12,000 reported and 6,000 on their way, 6,400 needed, 20,000 there are.
    assert_close(terms.memory, 4_400.0 / 18_000.0 * 8.0);
    assert!(!facts.has_room(Slot(0)));
    let weighted = facts.terms(Slot(0), &Weights { prefill: 0.0, memory: 0.0, ..Weights::default() });
    assert_eq!((weighted.prefill, weighted.memory), (0.0, 0.0));
    assert_close(weighted.delay_on_others, 2.0 * terms.delay_on_others);
    assert_close(weighted.eviction, 8.0 * terms.eviction);
    assert_close(terms.sum(), terms.values().iter().sum());
}

#[test]
fn room_is_what_the_uncached_part_and_an_answer_need() {
    let accounts = |in_flight, prefill_tokens| AccountView {
        endpoints: vec![Account { in_flight, prefill_tokens, ..Account::default() }],
        ..AccountView::default()
    };
    // 16,000 tokens, half of them used.
    let fresh = loads(sample(0, 0.0, 0.5));
    let room = |view: &AccountView, loads: &LoadTable, prompt| {
        Facts::new(Some(view), None, loads, prompt, NOW).has_room(Slot(0))
    };
    assert!(room(&accounts(1, 0.0), &fresh, 7_600));
    assert!(!room(&accounts(1, 0.0), &fresh, 7_601));
    assert!(!room(&accounts(1, 1_000.0), &fresh, 7_600), "what is on its way needs room too");
    assert!(room(&accounts(0, 0.0), &fresh, 1_000_000), "an idle endpoint takes anything");
    assert!(room(&accounts(1, 0.0), &LoadTable::default(), 1_000_000), "capacity is not known");
    assert!(!room(&accounts(1, 0.0), &loads(sample(30_000, 0.0, 0.5)), 7_601));
    assert!(room(&accounts(1, 0.0), &loads(sample(30_001, 0.0, 0.5)), 15_600), "too old to be believed");
    assert!(!room(&accounts(1, 0.0), &loads(sample(30_001, 0.0, 0.5)), 15_601));
}

#[test]
fn without_data_the_prefix_match_decides() {
    let prefix = PrefixMatch { block_tokens: 1_000, matched: vec![0, 4], ..PrefixMatch::default() };
    let loads = LoadTable::default();
    let facts = Facts::new(None, Some(&prefix), &loads, 5_000, NOW);
    let terms = [0, 1].map(|s| facts.terms(Slot(s), &Weights::default()));
    assert_eq!(terms[0], Terms { prefill: 0.5, ..Terms::default() });
    assert_eq!(terms[1], Terms { prefill: 0.1, ..Terms::default() });
    let nothing = Facts::new(None, None, &loads, 0, NOW).terms(Slot(7), &Weights::default());
    assert_eq!(nothing, Terms::default());
}

#[test]
fn the_prompt_is_measured_by_the_one_who_knows_best() {
    let (request, mut signals) = (InferenceRequest::default(), Signals::default());
    assert_eq!(prompt_tokens(&request, &signals, None), 0);
    signals.prompt_tokens = Some(7);
    let mut prefix = PrefixMatch::default();
    assert_eq!(prompt_tokens(&request, &signals, Some(&prefix)), 7);
    prefix.prompt_tokens = Some(9);
    assert_eq!(prompt_tokens(&request, &signals, Some(&prefix)), 9);
}

fn any_account() -> impl Strategy<Value = Account> {
    (any::<[f32; 7]>(), any::<u32>(), any::<u32>()).prop_map(|(f, prefilling, in_flight)| Account {
        outstanding: f[0],
        backlog: f[1],
        rate: f[2],
        prefill_tokens: f[3],
        load: f[4],
        intake: f[5],
        ahead: f[6],
        prefilling,
        in_flight,
    })
}

proptest! {
    #[test]
    fn whatever_is_known_a_price_is_finite_and_not_negative(
        account in any_account(),
        view in any::<[f32; 4]>(),
        cache in any::<[f32; 3]>(),
        prefix in any::<(u32, u32, f32)>(),
        (waiting, kv_usage, age) in (any::<f32>(), any::<f32>(), 0u64..100_000),
        prompt in any::<u64>(),
    ) {
        let accounts = AccountView {
            endpoints: vec![account], arrivals: view[0], load: view[1], mean_prefill: view[2], mean_stay: view[3], samples: 1,
        };
        let prefix = PrefixMatch {
            block_tokens: prefix.0,
            matched: vec![prefix.1],
            learnt_block_tokens: prefix.2,
            caches: Some(CacheView { capacity: vec![cache[0]], oldest_age: vec![cache[1]], reuse_age: cache[2] }),
            ..PrefixMatch::default()
        };
        let loads = loads(sample(age, waiting, kv_usage));
        let facts = Facts::new(Some(&accounts), Some(&prefix), &loads, prompt, NOW);
        let terms = facts.terms(Slot(0), &Weights::default());
        for value in terms.values().into_iter().chain([facts.own_wait(Slot(0)), facts.prefill(Slot(0)), terms.sum()]) {
            prop_assert!(value.is_finite() && value >= 0.0, "{:?}", terms);
        }
        facts.has_room(Slot(0));
    }

    /// More work before it, more tokens to compute, a slower endpoint, a fuller cache: never cheaper.
    #[test]
    fn no_burden_makes_an_endpoint_cheaper(
        tokens in (0u64..200_000, 0u64..200_000),
        outstanding in (0.0f32..100.0, 0.0f32..100.0),
        rate in (500.0f32..1e5, 500.0f32..1e5),
        kv in (0.0f32..1.0, 0.0f32..1.0),
    ) {
        let price = |tokens: u64, outstanding: f32, rate: f32, kv: f32| {
            let account = Account { outstanding, backlog: outstanding, rate, in_flight: 1, ..Account::default() };
            let accounts = AccountView { endpoints: vec![account], arrivals: 0.5, load: 0.5, mean_stay: 0.0, ..AccountView::default() };
            let loads = loads(sample(0, 0.0, kv));
            Facts::new(Some(&accounts), None, &loads, tokens, NOW).terms(Slot(0), &Weights::default()).sum()
        };
        let order = |a: f32, b: f32| (a.min(b), a.max(b));
        let (few, many) = (tokens.0.min(tokens.1), tokens.0.max(tokens.1));
        let (short, long) = order(outstanding.0, outstanding.1);
        let (slow, fast) = order(rate.0, rate.1);
        let (empty, full) = order(kv.0, kv.1);
        let base = price(few, short, fast, empty);
        prop_assert!(base <= price(many, short, fast, empty));
        prop_assert!(base <= price(few, long, fast, empty));
        prop_assert!(base <= price(few, short, slow, empty));
        prop_assert!(base <= price(few, short, fast, full));
    }
}
