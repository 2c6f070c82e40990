use super::state::MAX_FORETOLD;
use super::*;
use crate::scheduling::fixtures::{Scene, pool};
use proptest::prelude::*;

const SETTINGS: Settings = Settings { initial_rate: 10_000.0, min_rate: 500.0, max_rate: 200_000.0 };

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + millis)
}

fn streamed(tokens: u64, cost: f64) -> Share {
    Share { tokens, cost: Some(cost), noticed: true }
}

fn endpoint(scene: &Scene, slot: u32) -> Arc<Endpoint> {
    Arc::clone(scene.snapshot.topology.get(crate::domain::Slot(slot)).unwrap())
}

fn view(ledger: &Ledger, scene: &Scene, now: Timestamp) -> AccountView {
    let mut view = AccountView::default();
    ledger.view(&scene.snapshot.topology, now, &mut view);
    view
}

fn close(a: f32, b: f64) -> bool {
    (f64::from(a) - b).abs() <= 1e-4 * b.abs().max(1e-2)
}

#[track_caller]
fn assert_close(a: f32, b: f64) {
    assert!(close(a, b), "{a} is not {b}");
}

/// Routing 1.0 s at 0, 0.5 s at 200 ms, first tokens at 1.2 s and 1.5 s: by hand.
#[test]
fn a_first_token_moves_outstanding_and_finish_and_teaches_the_rate() {
    let (ledger, scene) = (Ledger::new(SETTINGS), pool(2));
    let here = endpoint(&scene, 0);
    let of = |now| view(&ledger, &scene, now).endpoints[0];

    let mut one = ledger.charge(&here, streamed(9_800, 1.0), at(0));
    let account = of(at(0));
    assert_eq!((account.outstanding, account.backlog), (1.0, 1.0));
    let mut two = ledger.charge(&here, streamed(4_800, 0.5), at(200));
    let account = of(at(200));
    assert_close(account.outstanding, 1.5);
    assert_close(account.backlog, 1.3);
    assert_eq!((account.prefill_tokens, account.prefilling, account.in_flight), (14_600.0, 2, 2));
    assert_eq!(account.rate, 10_000.0, "nothing learnt yet");

    one.first_token(at(1_200));
    let account = of(at(1_200));
    assert_close(account.outstanding, 0.5);
    assert_close(account.backlog, 0.5);
    assert_eq!((account.prefill_tokens, account.prefilling, account.in_flight), (4_800.0, 1, 2));
    // 1.2 s less 20 ms for 9,800 tokens, on top of 5 s at 10,000.
    let first = (50_000.0 * 0.98 + 9_800.0) / (5.0 * 0.98 + 1.18);
    assert_close(account.rate, first);

    two.first_token(at(1_500));
    two.first_token(at(1_600));
    let account = of(at(1_500));
    assert_eq!((account.outstanding, account.backlog, account.prefill_tokens), (0.0, 0.0, 0.0));
    // From the last first token on, not from when it was routed.
    let second = ((50_000.0 * 0.98 + 9_800.0) * 0.98 + 4_800.0) / ((5.0 * 0.98 + 1.18) * 0.98 + 0.28);
    assert_close(account.rate, second);
    let both = view(&ledger, &scene, at(1_500));
    assert_eq!(both.samples, 2);
    assert_close(both.endpoints[1].rate, second);

    drop((one, two));
    assert_eq!(of(at(1_500)).in_flight, 0);
}

#[test]
fn the_rate_is_half_own_and_half_the_pools_within_its_bounds() {
    let (ledger, scene) = (Ledger::new(SETTINGS), pool(3));
    for (slot, tokens) in [(0, 1_000), (1, 40_000)] {
        for second in 0..400 {
            let mut charge = ledger.charge(&endpoint(&scene, slot), streamed(tokens, 0.1), at(second * 1_000));
            charge.first_token(at(second * 1_000 + 120));
        }
    }
    let rates: Vec<f32> = view(&ledger, &scene, at(0)).endpoints.iter().map(|a| a.rate).collect();
    let all = (10_000.0 + 400_000.0) / 2.0;
    assert!((rates[0] / (0.5 * (10_000.0 + all)) - 1.0).abs() < 0.02, "{rates:?}");
    assert_eq!(rates[1], 200_000.0, "the upper bound");
    assert_eq!(rates[2], 200_000.0, "who has taught nothing counts as the pool");

    let mut slow = ledger.charge(&endpoint(&scene, 2), streamed(257, 0.1), at(0));
    slow.first_token(at(10_000_000));
    assert!(view(&ledger, &scene, at(0)).endpoints[2].rate < 4_000.0, "one stalled answer weighs by its time");
    let mut short = ledger.charge(&endpoint(&scene, 2), streamed(256, 0.1), at(0));
    short.first_token(at(20_000_000));
    assert_eq!(view(&ledger, &scene, at(0)).samples, 801, "short prompts teach nothing");
}

#[test]
fn what_did_not_happen_is_given_back() {
    let (ledger, scene) = (Ledger::new(SETTINGS), pool(1));
    let here = endpoint(&scene, 0);
    let _stays = ledger.charge(&here, streamed(10_000, 1.0), at(0));
    let before = view(&ledger, &scene, at(0)).endpoints[0];
    for noticed in [true, false] {
        drop(ledger.charge(&here, Share { tokens: 5_000, cost: Some(0.5), noticed }, at(0)));
        let after = view(&ledger, &scene, at(0)).endpoints[0];
        assert_eq!(Account { load: 0.0, intake: 0.0, ..after }, Account { load: 0.0, intake: 0.0, ..before });
    }
    assert_eq!(view(&ledger, &scene, at(0)).samples, 0);
}

#[test]
fn a_prefill_that_nobody_notices_is_over_when_foretold() {
    let (ledger, scene) = (Ledger::new(SETTINGS), pool(1));
    let here = endpoint(&scene, 0);
    let blind = |cost| Share { tokens: 1_000, cost: Some(cost), noticed: false };
    let mut first = ledger.charge(&here, blind(1.0), at(0));
    let mut second = ledger.charge(&here, blind(0.5), at(0));
    let of = |millis| view(&ledger, &scene, at(millis)).endpoints[0];
    assert_eq!((of(999).prefilling, of(999).outstanding), (2, 1.5));
    assert_eq!((of(1_000).prefilling, of(1_000).outstanding), (1, 0.5));
    // The whole answer came before the second was foretold to be computed.
    second.first_token(at(1_100));
    assert_eq!((of(1_100).prefilling, of(1_100).outstanding, of(1_100).in_flight), (0, 0.0, 2));
    first.first_token(at(1_200));
    first.prefilled();
    assert_eq!((of(1_200).prefilling, of(1_200).in_flight), (0, 2), "once");
    assert_eq!(view(&ledger, &scene, at(1_200)).samples, 0);
    drop((first, second));
    assert_eq!(of(1_200).in_flight, 0);
    assert_eq!(ledger.describe(9)["endpoints"][0]["foretold"], 0);
}

#[test]
fn what_is_lost_ends_when_foretold_and_does_not_pile_up() {
    let (ledger, scene) = (Ledger::new(SETTINGS), pool(1));
    let here = endpoint(&scene, 0);
    let of = |millis| view(&ledger, &scene, at(millis)).endpoints[0];
    for noticed in [true, false] {
        let mut charge = ledger.charge(&here, Share { tokens: 1_000, cost: Some(1.0), noticed }, at(0));
        charge.lost();
        drop(charge);
    }
    assert_eq!((of(999).outstanding, of(999).in_flight), (2.0, 0));
    assert_eq!((of(1_000).outstanding, of(2_000).outstanding), (1.0, 0.0));
    for _ in 0..MAX_FORETOLD + 500 {
        ledger.charge(&here, streamed(1, 1.0), at(2_000)).lost();
    }
    assert_eq!(of(2_000).prefilling as usize, MAX_FORETOLD);
    assert_eq!(of(2_000).outstanding, MAX_FORETOLD as f32);
    assert_eq!(of(10_000_000).prefilling, 0);
}

#[test]
fn who_only_needs_room_has_no_prefill() {
    let (ledger, scene) = (Ledger::new(SETTINGS), pool(1));
    let mut room = ledger.charge(&endpoint(&scene, 0), Share { tokens: 9_000, cost: None, noticed: true }, at(0));
    let account = view(&ledger, &scene, at(0)).endpoints[0];
    assert_eq!((account.outstanding, account.backlog, account.load, account.intake), (0.0, 0.0, 0.0, 0.0));
    assert_eq!((account.prefill_tokens, account.in_flight), (9_000.0, 1));
    room.first_token(at(500));
    let view = view(&ledger, &scene, at(500));
    assert_eq!((view.endpoints[0].prefill_tokens, view.samples), (0.0, 0));
}

#[test]
fn a_slot_that_is_used_again_starts_anew() {
    let (ledger, mut scene) = (Ledger::new(SETTINGS), pool(2));
    let old = endpoint(&scene, 1);
    let mut charge = ledger.charge(&old, streamed(5_000, 2.0), at(0));
    ledger.closed(&old);
    assert_eq!(ledger.describe(9)["endpoints"].as_array().unwrap().len(), 0);
    let fresh = Arc::new(Endpoint::new(old.slot, 77, old.spec.clone()));
    let slots = vec![Some(endpoint(&scene, 0)), Some(Arc::clone(&fresh))];
    let before = Arc::clone(&scene.snapshot.topology);
    scene.snapshot.topology = Arc::new(Topology::new(2, Default::default(), slots));
    assert_eq!(view(&ledger, &scene, at(0)).endpoints[1].in_flight, 0);
    let second = ledger.charge(&fresh, streamed(100, 0.25), at(0));
    // What still runs at the old one settles with the old one, and an old snapshot changes nothing.
    charge.first_token(at(900));
    ledger.view(&before, at(900), &mut AccountView::default());
    let account = view(&ledger, &scene, at(0)).endpoints[1];
    assert_eq!((account.outstanding, account.in_flight), (0.25, 1));
    assert_eq!(view(&ledger, &scene, at(0)).samples, 0);
    drop((charge, second));
}

#[test]
fn the_flow_is_per_endpoint_and_second() {
    let (ledger, scene) = (Ledger::new(SETTINGS), pool(4));
    ledger.arrived(2.0, at(0));
    ledger.arrived(1.0, at(30_000));
    let view = view(&ledger, &scene, at(60_000));
    let e = std::f64::consts::E.recip();
    assert_close(view.arrivals, (e * e + e) / 30.0 / 4.0);
    assert_close(view.load, (2.0 * e * e + e) / 30.0 / 4.0);
    assert_close(view.mean_prefill, (0.3 * 0.99 + 0.02) * 0.99 + 0.01);
    ledger.stayed(Duration::from_secs(60));
    assert_close(self::view(&ledger, &scene, at(0)).mean_stay, 11.0);
}

// === against a model that remembers everything and works each number out anew ===

#[derive(Clone, Debug)]
enum Step {
    Route { slot: u32, tokens: u64, cost_ms: u64, noticed: bool },
    First(usize),
    Prefilled(usize),
    Drop(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..3, 0u64..50_000, 20u64..4_000, any::<bool>())
            .prop_map(|(slot, tokens, cost_ms, noticed)| Step::Route { slot, tokens, cost_ms, noticed }),
        3 => (0usize..64).prop_map(Step::First),
        1 => (0usize..64).prop_map(Step::Prefilled),
        2 => (0usize..64).prop_map(Step::Drop),
        3 => prop_oneof![0u64..3_000, 60_000u64..90_000].prop_map(Step::Wait),
    ]
}

/// All that ever happened at one endpoint; times in milliseconds.
#[derive(Default)]
struct Past {
    routed: Vec<(u64, u64, u64)>,
    samples: Vec<(u64, f64)>,
    finish: u64,
    last_first: u64,
}

struct Open {
    charge: Charge,
    slot: usize,
    tokens: u64,
    cost_ms: u64,
    routed: u64,
    due: Option<u64>,
    prefilling: bool,
}

fn decayed(past: &[(u64, u64, u64)], now: u64, over: f64, what: fn(&(u64, u64, u64)) -> f64) -> f64 {
    past.iter().map(|event| what(event) * (-((now - event.0) as f64) / 1e3 / over).exp()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_ledger_agrees_with_a_model_that_remembers_everything(steps in prop::collection::vec(step(), 0..120)) {
        let (ledger, scene) = (Ledger::new(SETTINGS), pool(3));
        let mut past: [Past; 3] = Default::default();
        let mut flow: Vec<(u64, u64, u64)> = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Wait(millis) => now += millis,
                Step::Route { slot, tokens, cost_ms, noticed } => {
                    let share = Share { tokens, cost: Some(cost_ms as f64 / 1e3), noticed };
                    let charge = ledger.charge(&endpoint(&scene, slot), share, at(now));
                    ledger.arrived(cost_ms as f64 / 1e3, at(now));
                    let past = &mut past[slot as usize];
                    past.finish = past.finish.max(now) + cost_ms;
                    past.routed.push((now, cost_ms, tokens));
                    flow.push((now, cost_ms, 1));
                    let due = (!noticed).then_some(past.finish);
                    open.push(Open { charge, slot: slot as usize, tokens, cost_ms, routed: now, due, prefilling: true });
                }
                Step::First(i) | Step::Prefilled(i) if i < open.len() => {
                    let request = &mut open[i];
                    if matches!(step, Step::First(_)) { request.charge.first_token(at(now)) } else { request.charge.prefilled() }
                    let (slot, was) = (request.slot, std::mem::replace(&mut request.prefilling, false));
                    if matches!(step, Step::First(_)) && was && request.due.is_none() {
                        let (tokens, routed) = (request.tokens, request.routed);
                        let left: u64 = open.iter().filter(|o| o.slot == slot && o.prefilling).map(|o| o.cost_ms).sum();
                        let past = &mut past[slot];
                        if tokens > 256 {
                            let took = (now - routed.max(past.last_first)) as f64 / 1e3 - 0.02;
                            past.samples.push((tokens, took.max(1e-3)));
                        }
                        past.last_first = now;
                        past.finish = now + left;
                    }
                }
                Step::Drop(i) if i < open.len() => {
                    let gone = open.swap_remove(i);
                    if gone.prefilling {
                        // Times before the test began are not told apart here.
                        past[gone.slot].finish = past[gone.slot].finish.saturating_sub(gone.cost_ms);
                    }
                    drop(gone);
                }
                _ => {}
            }
            for request in open.iter_mut().filter(|o| o.due.is_some_and(|due| due <= now)) {
                request.prefilling = false;
            }
            let seen = view(&ledger, &scene, at(now));
            let n = past.iter().map(|p| p.samples.len()).sum::<usize>();
            prop_assert_eq!(seen.samples as usize, n);
            let sums: Vec<(f64, f64)> = past.iter().map(|p| {
                p.samples.iter().fold((50_000.0, 5.0), |s, x| (s.0 * 0.98 + x.0 as f64, s.1 * 0.98 + x.1))
            }).collect();
            let taught = |i: &usize| !past[*i].samples.is_empty();
            let all = (0..3).filter(taught).fold((0.0, 0.0), |a, i| (a.0 + sums[i].0, a.1 + sums[i].1));
            let pool = if n == 0 { 10_000.0 } else { all.0 / all.1 };
            for (slot, past) in past.iter().enumerate() {
                let account = seen.endpoints[slot];
                let here = || open.iter().filter(|o| o.slot == slot);
                let waiting = || here().filter(|o| o.prefilling);
                let outstanding = waiting().map(|o| o.cost_ms).sum::<u64>() as f64 / 1e3;
                prop_assert!(close(account.outstanding, outstanding), "{:?} {}", account, outstanding);
                prop_assert!(close(account.backlog, past.finish.saturating_sub(now) as f64 / 1e3), "{:?}", account);
                prop_assert_eq!(account.prefill_tokens, waiting().map(|o| o.tokens).sum::<u64>() as f32);
                prop_assert_eq!(account.prefilling as usize, waiting().count());
                prop_assert_eq!(account.in_flight as usize, here().count());
                let own = if taught(&slot) { sums[slot].0 / sums[slot].1 } else { pool };
                prop_assert!(close(account.rate, ((own + pool) / 2.0).clamp(500.0, 200_000.0)), "{:?}", account);
                prop_assert!(close(account.load, decayed(&past.routed, now, 60.0, |e| e.1 as f64 / 1e3) / 60.0));
                prop_assert!(close(account.intake, decayed(&past.routed, now, 300.0, |e| e.2 as f64)));
            }
            prop_assert!(close(seen.arrivals, decayed(&flow, now, 30.0, |e| e.2 as f64) / 90.0));
            prop_assert!(close(seen.load, decayed(&flow, now, 30.0, |e| e.1 as f64 / 1e3) / 90.0));
        }
        drop(open);
        for account in view(&ledger, &scene, at(now)).endpoints {
            prop_assert_eq!((account.outstanding, account.prefill_tokens), (0.0, 0.0));
            prop_assert_eq!((account.prefilling, account.in_flight), (0, 0));
        }
    }

    /// Clocks that stand still or jump, and sizes that nobody has.
    #[test]
    fn no_order_of_strange_events_makes_a_strange_account(
        events in prop::collection::vec((any::<u64>(), any::<u64>(), 0.0f64..1e18, any::<bool>(), 0u8..4), 0..60),
    ) {
        let (ledger, scene) = (Ledger::new(SETTINGS), pool(1));
        let mut open = Vec::new();
        for (time, tokens, cost, noticed, what) in events {
            let now = Timestamp(time);
            open.push(ledger.charge(&endpoint(&scene, 0), Share { tokens, cost: Some(cost), noticed }, now));
            ledger.arrived(cost, now);
            match what {
                0 => open.iter_mut().for_each(|c: &mut Charge| c.first_token(now)),
                1 => open.clear(),
                2 => open.truncate(open.len() / 2),
                _ => {}
            }
            let view = view(&ledger, &scene, now);
            let a = view.endpoints[0];
            for x in [a.outstanding, a.backlog, a.rate, a.prefill_tokens, a.load, a.intake, view.arrivals, view.load] {
                prop_assert!(x.is_finite() && x >= 0.0, "{:?}", view);
            }
            prop_assert!((500.0..=200_000.0).contains(&a.rate));
            prop_assert_eq!(a.in_flight as usize, open.len());
        }
    }
}

#[test]
fn whatever_threads_do_at_once_all_is_given_back() {
    let (ledger, scene) = (Arc::new(Ledger::new(SETTINGS)), Arc::new(pool(4)));
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let (ledger, scene) = (Arc::clone(&ledger), Arc::clone(&scene));
            std::thread::spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                let mut open = Vec::new();
                let mut seen = AccountView::default();
                for step in 0..2_000u64 {
                    let now = at(step);
                    let share = Share {
                        tokens: rng.u64(0..9_000),
                        cost: Some(f64::from(rng.u32(20..900)) / 1e3),
                        noticed: rng.bool(),
                    };
                    open.push(ledger.charge(&endpoint(&scene, rng.u32(0..4)), share, now));
                    ledger.view(&scene.snapshot.topology, now, &mut seen);
                    assert!(seen.endpoints.iter().all(|a| a.outstanding >= 0.0 && a.rate >= 500.0));
                    let i = rng.usize(0..open.len());
                    match rng.u32(0..3) {
                        0 => open[i].first_token(now),
                        1 => open[i].prefilled(),
                        _ => drop(open.swap_remove(i)),
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let view = view(&ledger, &scene, at(2_000));
    assert!(view.samples > 100);
    for account in view.endpoints {
        assert_eq!((account.outstanding, account.prefill_tokens), (0.0, 0.0));
        assert_eq!((account.prefilling, account.in_flight), (0, 0));
        assert!(account.intake > 0.0);
    }
}
